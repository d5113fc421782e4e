"""Network policies as Cilium enforces them: whether a connection between two identities is let through.

Pure judgement over the policies that were read: NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy
and Kube-OVN's private subnets. A denial wins; else one permission of any policy is enough; else a direction that
some policy selects is closed, and one that none selects is open. The host of a pod always reaches it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

Object = dict[str, Any]

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
API_SERVER = "kube-apiserver"


@dataclass(frozen=True)
class Identity:
    """One end of a connection. `kind` is pod, host, remote-node or world; `entities` are Cilium's names for it.

    `labels` are the pod's, or a node's; `ports` maps the names of a pod's ports to numbers.
    """

    kind: str
    address: str
    namespace: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    entities: frozenset[str] = frozenset()
    hostnames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policies:
    """Every policy of a cluster as its API server lists them."""

    kubernetes: Sequence[Object] = ()
    cilium: Sequence[Object] = ()
    clusterwide: Sequence[Object] = ()
    subnets: Sequence[Object] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a connection passes, and the policy ("Kind namespace/name") that closed or opened it."""

    allowed: bool
    by: str = ""


def judge(
    policies: Policies,
    source: Identity,
    target: Identity,
    port: int,
    protocol: str = "TCP",
    *,
    enforced: Sequence[str] = ("egress", "ingress"),
) -> Verdict:
    """Whether `source` may open a connection to a port of `target`, after service translation.

    `enforced` are the sides whose node enforces: an agent that is broken lets everything through.
    """
    if source.kind == target.kind == "pod" and source.address == target.address:
        return Verdict(True)
    if not _subnets_allow(policies.subnets, source, target):
        return Verdict(False, "Subnet")
    last = Verdict(True)
    for direction, own, peer in (("egress", source, target), ("ingress", target, source)):
        if (
            direction not in enforced
            or own.kind == "world"
            or (direction == "ingress" and own.kind == "pod" and peer.kind == "host")
        ):
            continue
        # A port named in a policy is the target's, whichever way the policy looks.
        verdict = _direction(policies, direction, own, peer, target, port, protocol)
        if not verdict.allowed:
            return verdict
        last = verdict if verdict.by else last
    return last


def _direction(
    policies: Policies, direction: str, own: Identity, peer: Identity, target: Identity, port: int, protocol: str
) -> Verdict:
    closed, opened = "", ""
    if own.kind == "pod":
        for policy in policies.kubernetes:
            if _isolates(policy, direction, own):
                closed = closed or _name(policy)
                if _kubernetes_allows(policy, direction, peer, target, port, protocol):
                    opened = opened or _name(policy)
    for policy, spec in _cilium_specs(policies, own):
        space = policy["metadata"].get("namespace", "")
        for rule in spec.get(f"{direction}Deny") or ():
            if _rule_matches(rule, direction, space, peer, target, port, protocol):
                return Verdict(False, _name(policy))
        rules = spec.get(direction)
        closes = (spec.get("enableDefaultDeny") or {}).get(direction)
        if bool(rules or spec.get(f"{direction}Deny")) if closes is None else closes:
            closed = closed or _name(policy)
        if any(_rule_matches(rule, direction, space, peer, target, port, protocol) for rule in rules or ()):
            opened = opened or _name(policy)
    if opened:
        return Verdict(True, opened)
    return Verdict(not closed, closed)


def _name(policy: Object) -> str:
    metadata = policy["metadata"]
    return f"{policy.get('kind', 'policy')} {metadata.get('namespace', '')}/{metadata['name']}".replace(" /", " ")


# -- NetworkPolicy ---------------------------------------------------------------------------------


def _isolates(policy: Object, direction: str, own: Identity) -> bool:
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return (
        policy["metadata"]["namespace"] == own.namespace
        and direction.capitalize() in kinds
        and selects(spec.get("podSelector") or {}, own.labels)
    )


def _kubernetes_allows(
    policy: Object, direction: str, peer: Identity, target: Identity, port: int, protocol: str
) -> bool:
    space, peers = policy["metadata"]["namespace"], "from" if direction == "ingress" else "to"
    return any(
        (not rule.get(peers) or any(_kubernetes_peer(entry, space, peer) for entry in rule[peers]))
        and (not rule.get("ports") or any(_kubernetes_port(entry, target, port, protocol) for entry in rule["ports"]))
        for rule in policy["spec"].get(direction) or ()
    )


def _kubernetes_peer(entry: Object, space: str, peer: Identity) -> bool:
    if block := entry.get("ipBlock"):
        return peer.kind == "world" and _in_block(peer, block["cidr"], block.get("except") or ())
    if peer.kind != "pod":
        return False
    if "namespaceSelector" in entry:
        if not selects(entry["namespaceSelector"] or {}, peer.namespace_labels):
            return False
    elif peer.namespace != space:
        return False
    return selects(entry.get("podSelector") or {}, peer.labels)


def _kubernetes_port(entry: Object, target: Identity, port: int, protocol: str) -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    first = entry.get("port")
    if first is None:
        return True
    number = target.ports.get(first) if isinstance(first, str) else int(first)
    return number is not None and number <= port <= int(entry.get("endPort") or number)


# -- Cilium ----------------------------------------------------------------------------------------


def _cilium_specs(policies: Policies, own: Identity) -> Iterator[tuple[Object, Object]]:
    """The rules that select this end: pods by endpointSelector, nodes by a clusterwide policy's nodeSelector."""
    for policy in (*policies.cilium, *policies.clusterwide):
        space = policy["metadata"].get("namespace", "")
        for spec in [*([policy["spec"]] if policy.get("spec") else []), *(policy.get("specs") or ())]:
            pods, nodes = spec.get("endpointSelector"), spec.get("nodeSelector") if not space else None
            if own.kind == "pod":
                chosen = pods is not None and _endpoint(pods, space, own)
            else:
                chosen = nodes is not None and selects(_plain(nodes), own.labels)
            if chosen:
                yield policy, spec


def _rule_matches(
    rule: Object, direction: str, space: str, peer: Identity, target: Identity, port: int, protocol: str
) -> bool:
    side = "from" if direction == "ingress" else "to"
    ports = rule.get("toPorts")
    if ports and not any(_cilium_ports(entry, target, port, protocol) for entry in ports):
        return False
    if rule.get("icmps") and not ports:
        return False
    given = [key for key in rule if key.startswith(side) and key not in {"toPorts"}]
    if not given:  # a rule of ports alone is for every peer; an empty one is for none
        return bool(ports)
    return any(
        _PEERS[key.removeprefix(side)](rule[key] or (), space, peer) for key in given if key[len(side) :] in _PEERS
    )


def _cilium_ports(entry: Object, target: Identity, port: int, protocol: str) -> bool:
    rows = entry.get("ports")
    if not rows:
        return True
    for row in rows:
        if row.get("protocol", "ANY") not in {"ANY", protocol}:
            continue
        first = str(row.get("port") or "0")
        number = int(first) if first.isdigit() else target.ports.get(first)
        if number is not None and (number == 0 or number <= port <= int(row.get("endPort") or number)):
            return True
    return False


def _endpoints(rows: Iterable[Object], space: str, peer: Identity) -> bool:
    return any(_endpoint(row, space, peer) for row in rows)


def _entities(names: Iterable[str], _space: str, peer: Identity) -> bool:
    return any(name in peer.entities for name in names)


def _cidrs(rows: Iterable[str], _space: str, peer: Identity) -> bool:
    return peer.kind == "world" and any(_in_block(peer, row, ()) for row in rows)


def _cidr_sets(rows: Iterable[Object], _space: str, peer: Identity) -> bool:
    return peer.kind == "world" and any(
        "cidr" in row and _in_block(peer, row["cidr"], row.get("except") or ()) for row in rows
    )


def _nodes(rows: Iterable[Object], _space: str, peer: Identity) -> bool:
    return peer.kind in {"host", "remote-node"} and any(selects(_plain(row), peer.labels) for row in rows)


def _names(rows: Iterable[Object], _space: str, peer: Identity) -> bool:
    return peer.kind == "world" and any(
        row.get("matchName") == name or ("matchPattern" in row and fnmatchcase(name, row["matchPattern"]))
        for row in rows
        for name in peer.hostnames
    )


_PEERS: Mapping[str, Callable[[Iterable[Any], str, Identity], bool]] = {
    "Endpoints": _endpoints,
    "Entities": _entities,
    "CIDR": _cidrs,
    "CIDRSet": _cidr_sets,
    "Nodes": _nodes,
    "FQDNs": _names,
}


def _endpoint(selector: Object, space: str, peer: Identity) -> bool:
    """Whether a selector of endpoints means this pod; one that names no namespace means its policy's own."""
    if peer.kind != "pod":
        reserved = {"reserved:" + entity for entity in peer.entities}
        keys = set(selector.get("matchLabels") or ())
        return bool(keys) and keys <= reserved
    plain = _plain(selector)
    keys = {*(plain["matchLabels"]), *(entry["key"] for entry in plain["matchExpressions"])}
    bound = NAMESPACE in keys or any(key.startswith(NAMESPACE_LABELS) for key in keys)
    if space and not bound and peer.namespace != space:
        return False
    labels = {
        **peer.labels,
        NAMESPACE: peer.namespace,
        "io.cilium.k8s.policy.serviceaccount": peer.service_account,
        "io.cilium.k8s.policy.cluster": "default",
        **{NAMESPACE_LABELS + key: value for key, value in peer.namespace_labels.items()},
    }
    return selects(plain, labels)


def _plain(selector: Object) -> Object:
    """The selector without the sources of its keys: `k8s:app` and `any:app` both are `app`."""

    def bare(key: str) -> str:
        return key.removeprefix("k8s:").removeprefix("any:")

    return {
        "matchLabels": {bare(key): value for key, value in (selector.get("matchLabels") or {}).items()},
        "matchExpressions": [{**entry, "key": bare(entry["key"])} for entry in selector.get("matchExpressions") or ()],
    }


# -- Kube-OVN --------------------------------------------------------------------------------------


def _subnets_allow(subnets: Sequence[Object], source: Identity, target: Identity) -> bool:
    """A private subnet is closed to every other one that it does not name."""
    if source.kind != "pod" or target.kind != "pod":
        return True
    mine, theirs = _subnet_of(subnets, source), _subnet_of(subnets, target)
    if mine is None or theirs is None or mine is theirs:
        return True
    for closed, other in ((mine, theirs), (theirs, mine)):
        spec = closed["spec"]
        if spec.get("private") and not any(
            part in (spec.get("allowSubnets") or ()) for part in other["spec"]["cidrBlock"].split(",")
        ):
            return False
    return True


def _subnet_of(subnets: Sequence[Object], end: Identity) -> Object | None:
    return next(
        (
            subnet
            for subnet in subnets
            if any(_in_block(end, part, ()) for part in subnet["spec"].get("cidrBlock", "").split(",") if part)
        ),
        None,
    )


# -- both ------------------------------------------------------------------------------------------


def _in_block(peer: Identity, cidr: str, without: Iterable[str]) -> bool:
    address = ipaddress.ip_address(peer.address)
    return address in ipaddress.ip_network(cidr, strict=False) and not any(
        address in ipaddress.ip_network(part, strict=False) for part in without
    )


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector means these labels; an empty one means all."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for entry in selector.get("matchExpressions") or ():
        key, values = entry["key"], entry.get("values") or ()
        held = {
            "In": key in labels and labels[key] in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held[entry["operator"]]:
            return False
    return True
