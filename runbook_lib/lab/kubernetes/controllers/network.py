"""The emulated network: how a connection from a pod ends, by what the cluster and the scenario say. No packets.

Pure judgement over lists that the caller read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from .policies import API_SERVER, Identity, Policies, judge

Object = dict[str, Any]

DOMAIN = "cozy.local"


@dataclass(frozen=True)
class World:
    """What lies outside the cluster. Addresses as "host:port"; `blocked` are shell patterns of such addresses.

    `names` maps outside host names to addresses. `registries` maps a registry host to what pulling from it does:
    ok, timeout, denied, missing. `node_faults` maps a node to a fault of its own: runtime, network, dead, a pressure,
    policy when its agent no longer enforces any, or frames when large ones are lost on its wire. What happens while
    the cluster runs: see afflictions.py.
    """

    reachable: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    registries: Mapping[str, str] = field(default_factory=dict)
    node_faults: Mapping[str, str] = field(default_factory=dict)


def world(section: Mapping[str, Any]) -> World:
    """The World that a scenario's `kubernetes:` section describes."""
    network = section.get("network", {})
    return World(
        reachable=tuple(network.get("world", ())),
        blocked=tuple(network.get("blocked", ())),
        names=network.get("names", {}),
        registries=section.get("registries", {}),
        node_faults=section.get("node_faults", {}),
    )


@dataclass(frozen=True)
class View:
    """What the cluster looks like at the moment of a connection."""

    pods: Sequence[Object]
    nodes: Sequence[Object]
    services: Sequence[Object]
    slices: Sequence[Object]
    namespaces: Sequence[Object] = ()
    policies: Policies = field(default_factory=Policies)
    turn: int = 0
    """Which of a Service's ready endpoints a connection is led to: they are taken in turn."""


@dataclass(frozen=True)
class Outcome:
    """How a connection ended: connected, refused, timeout, dns. `address` is what the name stood for.

    `narrow` is True where frames of full size are lost on the way, and only small ones get through.
    """

    result: str
    seconds: float
    address: str = ""
    narrow: bool = False


SAME_NODE, OTHER_NODE, OUTSIDE = 0.0002, 0.0006, 0.002
"""Seconds that opening a connection takes, by how far it goes."""


def connect(
    view: View, outside: World, source: Object, host: str, port: int, *, protocol: str = "TCP", timeout: float = 3.0
) -> Outcome:
    """How a connection of the pod `source` to host:port ends. A blocked one is silent until the timeout."""
    uid = source["metadata"].get("uid")  # the caller's pod may be older than its address
    source = next((pod for pod in view.pods if uid and pod["metadata"].get("uid") == uid), source)
    address = resolve(view, outside, host, source)
    if address is None:
        return Outcome("dns", 0.02)
    result, seconds = _reach(view, outside, source, address, port, host, protocol)
    return Outcome(
        result, timeout if result == "timeout" else seconds, address, _narrow(view, outside, source, address)
    )


def _narrow(view: View, outside: World, source: Object, address: str) -> bool:
    """Whether the way leads over the wire of a node that loses large frames."""
    peer = _pod_at(view, address)
    ends = {source["spec"].get("nodeName", ""), ((peer or {}).get("spec") or {}).get("nodeName", "")}
    return len(ends) > 1 and any(outside.node_faults.get(node) == "frames" for node in ends)


def resolve(view: View, outside: World, host: str, source: Object | None = None) -> str | None:
    """The address behind a name as a pod's resolver finds it, or None."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if host == "localhost":
        return "127.0.0.1"
    if not _dns_answers(view, outside, source):
        return None
    name = host.rstrip(".").removesuffix(f".{DOMAIN}")
    if name.endswith(".svc"):
        name = name.removesuffix(".svc")
    short, _, namespace = name.partition(".")
    own = (source or {}).get("metadata", {}).get("namespace", "default")
    for service in view.services:
        metadata = service["metadata"]
        if metadata["name"] == short and metadata["namespace"] == (namespace or own):
            address = service["spec"].get("clusterIP", "")
            backend = _first_backend(view, service)
            return address if address != "None" else backend and backend[0]
    return outside.names.get(host)


def _dns_answers(view: View, outside: World, source: Object | None) -> bool:
    """Whether a ready server of the cluster's DNS can be asked from there."""
    for address in _addresses(view, "kube-system", "kube-dns"):
        pod = _pod_at(view, address)
        if source is None or pod is None:
            return True
        if _permitted(view, outside, source, identify(view, address, pod), 53, "UDP"):
            return True
    return False


def _reach(
    view: View, outside: World, source: Object, address: str, port: int, host: str, protocol: str
) -> tuple[str, float]:
    if ipaddress.ip_address(address).is_loopback:
        return ("connected" if port in _ports(source, protocol) else "refused"), SAME_NODE
    if behind := _node_port(view, address, port, protocol):
        address, port = behind  # translated where the connection begins, as Cilium's socket load balancer does
    for service in view.services:
        if address in (*service["spec"].get("clusterIPs", ()), *_given_addresses(service)):
            entries = service["spec"].get("ports", ())
            ports = {entry["port"]: entry for entry in entries if entry.get("protocol", "TCP") == protocol}
            if port not in ports:
                return "timeout", 0.0
            backend = _first_backend(view, service, ports[port].get("name", ""))
            if backend is None:
                return "refused", SAME_NODE
            address, port = backend[0], backend[1] or port
            break
    pod = _pod_at(view, address)
    target = identify(view, address, pod, source=source, hostnames=(host,))
    written = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if any(fnmatchcase(written, pattern) for pattern in outside.blocked):
        return "timeout", 0.0
    if not _permitted(view, outside, source, target, port, protocol):
        return "timeout", 0.0
    if pod is not None:
        near = pod["spec"].get("nodeName") == source["spec"].get("nodeName")
        return ("connected" if port in _ports(pod, protocol) else "refused"), SAME_NODE if near else OTHER_NODE
    for node in view.nodes:
        if any(entry["address"] == address for entry in node["status"].get("addresses", ())):
            return _node(node, port if protocol == "TCP" else 0), OTHER_NODE
    if written in outside.reachable:
        return "connected", OUTSIDE
    known = any(entry.rpartition(":")[0] == address for entry in outside.reachable)
    return ("refused" if known else "timeout"), OUTSIDE


def identify(
    view: View, address: str, pod: Object | None, *, source: Object | None = None, hostnames: tuple[str, ...] = ()
) -> Identity:
    """What Cilium takes an address for: a pod of the cluster, one of its nodes, or the world."""
    if pod is not None and not pod["spec"].get("hostNetwork"):
        metadata = pod["metadata"]
        labels: Mapping[str, str] = next(
            (
                space["metadata"].get("labels", {})
                for space in view.namespaces
                if space["metadata"]["name"] == metadata["namespace"]
            ),
            {},
        )
        named = {
            entry["name"]: entry["containerPort"]
            for container in pod["spec"]["containers"]
            for entry in container.get("ports") or ()
            if "name" in entry
        }
        return Identity(
            "pod",
            address,
            metadata["namespace"],
            metadata["name"],
            metadata.get("labels", {}),
            labels,
            pod["spec"].get("serviceAccountName", "default"),
            named,
            frozenset({"all", "cluster"}),
        )
    for node in view.nodes:
        if any(entry["address"] == address for entry in node["status"].get("addresses", ())):
            near = source is not None and source["spec"].get("nodeName") == node["metadata"]["name"]
            labels = node["metadata"].get("labels", {})
            own = {API_SERVER} if "node-role.kubernetes.io/control-plane" in labels else set()
            kind = "host" if near else "remote-node"
            entities = frozenset({"all", "cluster", kind} | own)
            return Identity(kind, address, name=node["metadata"]["name"], labels=labels, entities=entities)
    return Identity("world", address, entities=frozenset({"all", "world"}), hostnames=hostnames)


def _permitted(view: View, outside: World, source: Object, target: Identity, port: int, protocol: str) -> bool:
    """Whether the policies let it through, on each end as far as that end's node enforces them."""
    own = identify(view, source.get("status", {}).get("podIP", "0.0.0.0"), source)
    if own.kind != "pod":
        own = Identity("host", own.address, labels=own.labels, entities=own.entities | {"host"})
    peer = _pod_at(view, target.address)
    nodes = {
        "egress": source["spec"].get("nodeName", ""),
        "ingress": (peer or {"spec": {}})["spec"].get("nodeName", ""),
    }
    enforced = [side for side, node in nodes.items() if outside.node_faults.get(node) != "policy"]
    if own.kind == "host" and nodes["egress"] != nodes["ingress"]:
        own = Identity(
            "remote-node", own.address, labels=own.labels, entities=own.entities - {"host"} | {"remote-node"}
        )
    return judge(view.policies, own, target, port, protocol, enforced=enforced).allowed


def _pod_at(view: View, address: str) -> Object | None:
    return next(
        (
            pod
            for pod in view.pods
            if pod.get("status", {}).get("podIP") == address
            and not pod["spec"].get("hostNetwork")
            and pod["status"].get("phase") not in {"Succeeded", "Failed"}
        ),
        None,
    )


def _first_backend(view: View, service: Object, port: str = "") -> tuple[str, int] | None:
    """Address and port of a ready endpoint behind the named port of a service, another one each time."""
    metadata, found = service["metadata"], []
    for slice_ in _slices(view, metadata["namespace"], metadata["name"]):
        ports = slice_.get("ports") or [{}]
        number = next((entry.get("port") for entry in ports if entry.get("name", "") == port), ports[0].get("port"))
        for endpoint in slice_.get("endpoints") or ():
            if endpoint.get("conditions", {}).get("ready", True):
                found.append((str(endpoint["addresses"][0]), int(number or 0)))
    return found[view.turn % len(found)] if found else None


def _addresses(view: View, namespace: str, service: str) -> list[str]:
    return [
        str(endpoint["addresses"][0])
        for slice_ in _slices(view, namespace, service)
        for endpoint in slice_.get("endpoints") or ()
        if endpoint.get("conditions", {}).get("ready", True)
    ]


def _slices(view: View, namespace: str, service: str) -> list[Object]:
    return [
        slice_
        for slice_ in view.slices
        if slice_["metadata"]["namespace"] == namespace
        and slice_["metadata"].get("labels", {}).get("kubernetes.io/service-name") == service
    ]


def _node(node: Object, port: int) -> str:
    ready = any(
        entry["type"] == "Ready" and entry["status"] == "True" for entry in node["status"].get("conditions", ())
    )
    if not ready:
        return "timeout"
    control_plane = "node-role.kubernetes.io/control-plane" in node["metadata"].get("labels", {})
    listening = {10250, 50000} | ({6443, 50001} if control_plane else set())
    return "connected" if port in listening else "refused"


def _ports(pod: Object, protocol: str) -> set[int]:
    return {
        entry["containerPort"]
        for container in pod["spec"]["containers"]
        for entry in container.get("ports") or ()
        if entry.get("protocol", "TCP") == protocol
    }


def _given_addresses(service: Object) -> list[str]:
    """The addresses that a load balancer gave the Service; from inside, Cilium leads them straight to its pods."""
    given = (service.get("status") or {}).get("loadBalancer") or {}
    return [str(row["ip"]) for row in given.get("ingress") or () if row.get("ip")]


def _node_port(view: View, address: str, port: int, protocol: str) -> tuple[str, int] | None:
    """The ready endpoint behind a node port of any node's address, or None."""
    if not any(entry["address"] == address for node in view.nodes for entry in node["status"].get("addresses", ())):
        return None
    for service in view.services:
        for entry in service["spec"].get("ports") or ():
            if entry.get("nodePort") == port and entry.get("protocol", "TCP") == protocol:
                return _first_backend(view, service, entry.get("name", ""))
    return None


def ready_nodes_of(pods: Iterable[Object], label: str, value: str) -> set[str] | None:
    """Nodes with a ready pod carrying the label; None when no pod anywhere carries it."""
    mine = [pod for pod in pods if pod["metadata"].get("labels", {}).get(label) == value]
    if not mine:
        return None
    return {
        pod["spec"].get("nodeName", "")
        for pod in mine
        if any(
            entry["type"] == "Ready" and entry["status"] == "True"
            for entry in pod.get("status", {}).get("conditions", ())
        )
    }
