"""The emulated network: how a connection from a pod ends, by what the cluster and the scenario say. No packets.

Pure judgement over lists that the caller read; the policies in force will be one more input here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

Object = dict[str, Any]

DOMAIN = "cozy.local"


@dataclass(frozen=True)
class World:
    """What lies outside the cluster. Addresses as "host:port"; `blocked` are shell patterns of such addresses.

    `names` maps outside host names to addresses. `registries` maps a registry host to what pulling from it does:
    ok, timeout, denied, missing. `node_faults` maps a node to a fault of its own: runtime, network, dead.
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


@dataclass(frozen=True)
class Outcome:
    """How a connection ended: connected, refused, timeout, dns. `address` is what the name stood for."""

    result: str
    seconds: float
    address: str = ""


def connect(view: View, outside: World, source: Object, host: str, port: int, *, timeout: float = 3.0) -> Outcome:
    """How a TCP connection of the pod `source` to host:port ends."""
    address = resolve(view, outside, host)
    if address is None:
        return Outcome("dns", 0.02)
    result = _reach(view, outside, source, address, port)
    seconds = {"timeout": timeout, "refused": 0.001}.get(result, 0.002)
    return Outcome(result, seconds, address)


def resolve(view: View, outside: World, host: str) -> str | None:
    """The address behind a name as a pod's resolver finds it, or None."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if host == "localhost":
        return "127.0.0.1"
    if not _dns_answers(view):
        return None
    name = host.rstrip(".").removesuffix(f".{DOMAIN}")
    if name.endswith(".svc"):
        name = name.removesuffix(".svc")
    short, _, namespace = name.partition(".")
    for service in view.services:
        metadata = service["metadata"]
        if metadata["name"] == short and metadata["namespace"] == (namespace or "default"):
            address = service["spec"].get("clusterIP", "")
            return address if address != "None" else _first_backend(view, service)
    return outside.names.get(host)


def _dns_answers(view: View) -> bool:
    return any(
        endpoint["conditions"].get("ready", True)
        for slice_ in view.slices
        if slice_["metadata"]["namespace"] == "kube-system"
        and slice_["metadata"].get("labels", {}).get("kubernetes.io/service-name") == "kube-dns"
        for endpoint in slice_.get("endpoints") or ()
    )


def _reach(view: View, outside: World, source: Object, address: str, port: int) -> str:
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if any(fnmatchcase(target, pattern) for pattern in outside.blocked):
        return "timeout"
    if ipaddress.ip_address(address).is_loopback:
        return "connected" if port in _ports(source) else "refused"
    for service in view.services:
        if address in service["spec"].get("clusterIPs", ()):
            return _service(view, service, port)
    for pod in view.pods:
        if pod.get("status", {}).get("podIP") == address and not pod["spec"].get("hostNetwork"):
            return "connected" if port in _ports(pod) else "refused"
    for node in view.nodes:
        if any(entry["address"] == address for entry in node["status"].get("addresses", ())):
            return _node(node, port)
    if target in outside.reachable:
        return "connected"
    return "refused" if any(entry.rpartition(":")[0] == address for entry in outside.reachable) else "timeout"


def _service(view: View, service: Object, port: int) -> str:
    if port not in {entry["port"] for entry in service["spec"].get("ports", ())}:
        return "timeout"
    return "connected" if _first_backend(view, service) else "refused"


def _first_backend(view: View, service: Object) -> str | None:
    metadata = service["metadata"]
    for slice_ in view.slices:
        labels = slice_["metadata"].get("labels", {})
        if (slice_["metadata"]["namespace"], labels.get("kubernetes.io/service-name")) != (
            metadata["namespace"],
            metadata["name"],
        ):
            continue
        for endpoint in slice_.get("endpoints") or ():
            if endpoint.get("conditions", {}).get("ready", True):
                return str(endpoint["addresses"][0])
    return None


def _node(node: Object, port: int) -> str:
    ready = any(
        entry["type"] == "Ready" and entry["status"] == "True" for entry in node["status"].get("conditions", ())
    )
    if not ready:
        return "timeout"
    control_plane = "node-role.kubernetes.io/control-plane" in node["metadata"].get("labels", {})
    listening = {10250, 50000} | ({6443, 50001} if control_plane else set())
    return "connected" if port in listening else "refused"


def _ports(pod: Object) -> set[int]:
    return {entry["containerPort"] for container in pod["spec"]["containers"] for entry in container.get("ports") or ()}


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
