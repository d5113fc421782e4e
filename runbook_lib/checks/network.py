"""Judgement of networks: bridges, MTU, pending changes, address ranges, who reaches whom."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from runbook_lib.checks import check, verdict
from runbook_lib.facts import Interface, NetworkRange, PendingNetwork, Reach
from runbook_lib.model import Finding, Status

BRIDGES = frozenset({"bridge", "OVSBridge"})
DEFAULT_MTU = 1500


@check(
    title="The bridge is on every node",
    remedy="Create it on the node (System, Network) and apply; a VM cannot start without its bridge.",
    source="Sprint 1.1 and 2.1; GET /nodes/{node}/network",
)
def bridge_is_on_every_node(interfaces: Iterable[Interface], *, bridge: str = "vmbr0") -> Iterator[Finding]:
    """One finding per node: the site's bridge is there and active."""
    by_node: dict[str, list[Interface]] = defaultdict(list)
    for interface in interfaces:
        by_node[interface.node].append(interface)
    for node, rows in sorted(by_node.items()):
        names = sorted(row.name for row in rows if row.type in BRIDGES)
        found = next((row for row in rows if row.name == bridge and row.type in BRIDGES), None)
        if found is None:
            yield verdict(False, node, f"{node} has no bridge {bridge}; it has {', '.join(names) or 'none'}")
        else:
            state = "active" if found.active else "not active"
            yield verdict(found.active, node, f"{node}: {found.name} ({found.type}) is {state}")


@check(
    title="Bridges are VLAN aware",
    remedy="Set `bridge-vlan-aware yes` if machines shall use VLAN tags; without tags nothing is lost.",
    source="Sprint 1.1; GET /nodes/{node}/network",
)
def bridges_are_vlan_aware(interfaces: Iterable[Interface]) -> Iterator[Finding]:
    """One finding per bridge: Linux bridges need the switch, OVS bridges always are; never worse than a warning."""
    for interface in interfaces:
        if interface.type not in BRIDGES:
            continue
        subject = f"{interface.node}/{interface.name}"
        aware = interface.vlan_aware or interface.type == "OVSBridge"
        message = f"{subject} is {'' if aware else 'not '}VLAN aware"
        yield verdict(Status.PASS if aware else Status.WARN, subject, message)


@check(
    title="MTU agrees",
    remedy="Set one MTU on the bridge and its ports on every node; a smaller one drops large packets silently.",
    source="Sprint 1.1; GET /nodes/{node}/network",
)
def mtu_agrees(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """One finding per bridge name over all nodes, and one per bridge that is larger than one of its ports."""
    by_place = {(row.node, row.name): row for row in interfaces}
    by_bridge: dict[str, dict[str, int]] = defaultdict(dict)
    for row in interfaces:
        if row.type not in BRIDGES:
            continue
        by_bridge[row.name][row.node] = row.mtu or DEFAULT_MTU
        for port in row.ports:
            other = by_place.get((row.node, port))
            if other and (other.mtu or DEFAULT_MTU) < (row.mtu or DEFAULT_MTU):
                subject = f"{row.node}/{row.name}"
                yield verdict(
                    False, subject, f"{subject} has MTU {row.mtu}, its port {port} {other.mtu or DEFAULT_MTU}"
                )
    for bridge, mtus in sorted(by_bridge.items()):
        listing = ", ".join(f"{node} {mtu}" for node, mtu in sorted(mtus.items()))
        yield verdict(len(set(mtus.values())) == 1, bridge, f"{bridge}: {listing}")


@check(
    title="No network change waits",
    remedy="Apply or revert it (System, Network) before the runbook changes anything on that node.",
    source="GET /nodes/{node}/network, attribute `changes`",
)
def no_network_change_waits(pending: Iterable[PendingNetwork]) -> Iterator[Finding]:
    """One finding per node."""
    for row in pending:
        lines = [line for line in row.diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        if row.diff:
            shown = "; ".join(line.strip() for line in lines[:3])
            yield verdict(Status.WARN, row.node, f"{row.node}: {len(lines)} lines wait: {shown}", diff=row.diff)
        else:
            yield verdict(True, row.node, f"{row.node}: nothing waits")


@check(
    title="Address ranges do not meet",
    remedy="Move one of the two ranges; two owners of one address give failures that come and go.",
    source="CAPMOX issue #16; CozyStack networking defaults; sprint, risks: network trouble",
)
def ranges_do_not_meet(ranges: Sequence[NetworkRange]) -> Iterator[Finding]:
    """One finding per pair of ranges that overlap, or one pass per range that meets no other.

    The machine pool lies inside the Proxmox LAN by design, and ranges of one kind may meet.
    """
    clean = {entry.name + entry.cidr: entry for entry in ranges}
    for one, other in combinations(ranges, 2):
        if not _meet(one, other) or _may_meet(one, other):
            continue
        clean.pop(one.name + one.cidr, None)
        clean.pop(other.name + other.cidr, None)
        yield verdict(
            False,
            f"{one.name} / {other.name}",
            f"{one.name} {one.cidr} ({one.owner}) overlaps {other.name} {other.cidr} ({other.owner})",
        )
    for entry in clean.values():
        yield verdict(True, entry.name, f"{entry.name} {entry.cidr} meets no other range ({entry.owner})")


@check(
    title="This machine reaches both APIs",
    remedy="Check route, firewall and name resolution between this machine and the endpoint.",
    source="Sprint 1.1 (network connectivity) and risks: test the network first",
)
def runner_reaches(reaches: Iterable[Reach]) -> Iterator[Finding]:
    """One finding per endpoint tried."""
    yield from map(_reached, reaches)


@check(
    title="Pods reach the Proxmox API",
    remedy="Check egress policies of the namespace and the firewall of the Proxmox nodes; CAPMOX, CSI and CCM need it.",
    source="Sprint 1.1 (network connectivity); CAPMOX and CSI call the API from pods",
)
def pods_reach_proxmox(reaches: Iterable[Reach]) -> Iterator[Finding]:
    """One finding per pod that tried; a probe that could not run is a skip with its reason."""
    yield from map(_reached, reaches)


def _reached(reach: Reach) -> Finding:
    subject = f"{reach.source} → {reach.target}"
    if reach.outcome == "not tried":
        return verdict(None, subject, f"{subject}: not tried; {reach.note}")
    took = f" in {reach.seconds * 1000:.0f} ms" if reach.seconds is not None else ""
    note = f" ({reach.note})" if reach.note else ""
    return verdict(reach.outcome == "connected", subject, f"{subject}: {reach.outcome}{took}{note}")


def _span(text: str) -> tuple[int, int, int]:
    """IP version, first and last address of a CIDR, a range or one address."""
    first, _, last = (part.strip() for part in text.partition("-"))
    if last:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
        return low.version, int(low), int(high)
    network = ipaddress.ip_network(first, strict=False)
    return network.version, int(network.network_address), int(network.broadcast_address)


def _meet(one: NetworkRange, other: NetworkRange) -> bool:
    a, b = _span(one.cidr), _span(other.cidr)
    return a[0] == b[0] and a[1] <= b[2] and b[1] <= a[2]


def _may_meet(one: NetworkRange, other: NetworkRange) -> bool:
    return (bool(one.kind) and one.kind == other.kind) or {one.name, other.name} == {"machine pool", "Proxmox LAN"}
