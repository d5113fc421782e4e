"""Judgement of networks: bridges, MTU, pending changes, address ranges, who reaches whom."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
            telling = [line for line in lines if line[1:].strip() and line[1:2] != "#"]  # not PVE's own heading
            shown = "; ".join(line.strip() for line in (telling or lines)[:3])
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


@check(
    title="Nodes have the same bridges",
    remedy="Make the bridge on the other nodes too, with the same kind; a machine starts only where its bridge is.",
    source="Sprint 2.1; GET /nodes/{node}/network",
)
def bridges_agree(interfaces: Sequence[Interface], *, nodes: Sequence[str] | None = None) -> Iterator[Finding]:
    """One finding per bridge name: on every node of the site, as one kind, Linux or OVS."""
    interfaces = [row for row in interfaces if nodes is None or row.node in nodes]
    nodes = sorted({row.node for row in interfaces})
    by_name: dict[str, dict[str, str]] = defaultdict(dict)
    for row in interfaces:
        if row.type in BRIDGES:
            by_name[row.name][row.node] = row.type
    for name, kinds in sorted(by_name.items()):
        lacking = [node for node in nodes if node not in kinds]
        if lacking:
            yield verdict(Status.WARN, name, f"{name} is on {', '.join(sorted(kinds))}, not on {', '.join(lacking)}")
        elif len(set(kinds.values())) > 1:
            listing = ", ".join(f"{node} {kind}" for node, kind in sorted(kinds.items()))
            yield verdict(Status.WARN, name, f"{name} is of two kinds: {listing}")
        else:
            yield verdict(True, name, f"{name} ({kinds[nodes[0]]}) is on every node")


@check(
    title="Bridges have their ports",
    remedy="Correct the ports (System, Network), or bring the interface up; a bridge without one leads nowhere.",
    source="Sprint 2.1; GET /nodes/{node}/network, bridge_ports and ovs_ports",
)
def bridges_have_their_ports(interfaces: Sequence[Interface], *, bridge: str = "vmbr0") -> Iterator[Finding]:
    """One finding per bridge: each port is there and up. Without ports the site's bridge warns; another is private."""
    by_place = {(row.node, row.name): row for row in interfaces}
    for row in interfaces:
        if row.type not in BRIDGES:
            continue
        subject = f"{row.node}/{row.name}"
        down = [port for port in row.ports if not _up(by_place, row.node, port)]
        if down:
            yield verdict(False, subject, f"{subject}: {', '.join(down)} {'is' if len(down) == 1 else 'are'} not up")
        elif row.ports:
            yield verdict(True, subject, f"{subject}: {', '.join(row.ports)} up")
        elif row.name == bridge:
            yield verdict(Status.WARN, subject, f"{subject} has no port: machines on it reach this node and no other")
        else:
            yield verdict(None, subject, f"{subject} has no port: private to its node")


@check(
    title="MTU holds down to the wire",
    remedy="Raise the MTU of the lower interface to the bridge's, switch ports included, or lower the bridge's.",
    source="Sprint 2.1; GET /nodes/{node}/network",
)
def mtu_holds_to_the_wire(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """One finding per bridge with ports: no bond, VLAN or card below it carries less than the bridge lets in."""
    by_place = {(row.node, row.name): row for row in interfaces}
    for row in interfaces:
        if row.type not in BRIDGES or not row.ports:
            continue
        subject, top = f"{row.node}/{row.name}", row.mtu or DEFAULT_MTU
        below = sorted({lower.name: lower.mtu or DEFAULT_MTU for lower in _below(by_place, row)}.items())
        small = [f"{name} {mtu}" for name, mtu in below if mtu < top]
        path = ", ".join(f"{name} {mtu}" for name, mtu in below) or "ports that are not listed"
        message = f"{subject} lets in {top}, below it {', '.join(small) or path}"
        yield verdict(not small, subject, message, below=dict(below))


@check(
    title="No address is given twice",
    remedy="Give one of the two another address; two owners of one address give failures that come and go.",
    source="Sprint 2.1 and risks: network trouble; GET /nodes/{node}/network",
)
def addresses_are_unique(interfaces: Iterable[Interface]) -> Iterator[Finding]:
    """One finding per address of a node's interface, IPv4 and IPv6: one owner in the whole cluster."""
    owners: dict[str, list[str]] = defaultdict(list)
    for row in interfaces:
        for cidr in filter(None, (row.cidr, row.cidr6)):
            address = ipaddress.ip_interface(cidr).ip
            if not address.is_link_local:  # those are unique on one link only
                owners[str(address)].append(f"{row.node}/{row.name}")
    for owned, places in sorted(owners.items()):
        yield verdict(len(places) == 1, owned, f"{owned} is on {' and on '.join(places)}")


@check(
    title="The machine pool holds no address in use",
    remedy="Take the address out of `networks.machine_pool` in the site's parameters.",
    source="CAPMOX in-cluster IPAM gives every address of its pool; GET /nodes/{node}/network",
)
def machine_pool_is_clear(interfaces: Sequence[Interface], pool: Sequence[str]) -> Iterator[Finding]:
    """One finding per range of the pool: no node's address and no gateway lies in it."""
    used: dict[str, str] = {}
    for row in interfaces:
        used |= {str(ipaddress.ip_interface(c).ip): f"{row.node}/{row.name}" for c in (row.cidr, row.cidr6) if c}
        used |= {way: f"gateway of {row.node}" for way in (row.gateway, row.gateway6) if way}
    for entry in pool:
        version, low, high = _span(entry)
        inside = {
            address: owner
            for address, owner in used.items()
            if ipaddress.ip_address(address).version == version and low <= int(ipaddress.ip_address(address)) <= high
        }
        listing = ", ".join(f"{address} ({owner})" for address, owner in sorted(inside.items()))
        yield verdict(not inside, entry, f"{entry} holds {listing or 'no address of a node and no gateway'}")


@check(
    title="Every node has one way out",
    remedy="Set exactly one gateway per node and IP version, an address within the interface's own network.",
    source="Sprint 2.1; GET /nodes/{node}/network, gateway",
)
def gateway_is_right(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """One finding per node: one IPv4 gateway, within its interface's network, the same for nodes of one network."""
    ways = {(row.node, row.name): row for row in interfaces if row.gateway}
    shared: dict[str, set[str]] = defaultdict(set)
    for row in ways.values():
        if row.cidr and row.gateway:
            shared[str(ipaddress.ip_interface(row.cidr).network)].add(row.gateway)
    for node in sorted({row.node for row in interfaces}):
        mine = [row for (owner, _), row in ways.items() if owner == node]
        if len(mine) != 1:
            listing = " and ".join(f"{row.gateway} on {row.name}" for row in mine)
            status = Status.FAIL if mine else Status.WARN
            yield verdict(status, node, f"{node} has {f'two gateways: {listing}' if mine else 'no gateway'}")
            continue
        row = mine[0]
        network = ipaddress.ip_interface(row.cidr).network if row.cidr else None
        alone = network is not None and network.prefixlen == network.max_prefixlen  # a point-to-point link
        if network is not None and not alone and ipaddress.ip_address(row.gateway or "") not in network:
            yield verdict(False, node, f"{node}: gateway {row.gateway} lies outside of {network}, where {row.name} is")
        elif network is not None and len(shared[str(network)]) > 1:
            others = ", ".join(sorted(shared[str(network)]))
            yield verdict(Status.WARN, node, f"{node}: gateway {row.gateway}; the nodes in {network} use {others}")
        else:
            yield verdict(True, node, f"{node}: gateway {row.gateway} on {row.name}")


def _up(by_place: Mapping[tuple[str, str], Interface], node: str, port: str) -> bool:
    """Whether a port is up; of a VLAN of a card ("eno1.20") PVE may list the card alone."""
    found = by_place.get((node, port)) or by_place.get((node, port.partition(".")[0]))
    return found is not None and found.active


def _below(by_place: Mapping[tuple[str, str], Interface], top: Interface) -> Iterator[Interface]:
    """Every interface that frames of `top` pass through on their way out: ports, members of bonds, raw devices."""
    seen, todo = {top.name}, [*top.ports]
    while todo:
        name = todo.pop()
        row = by_place.get((top.node, name)) or by_place.get((top.node, name.partition(".")[0]))
        if row is None or row.name in seen:
            continue
        seen.add(row.name)
        # a port that ends at this node (OVSIntPort) is none of the way out
        if row.type != "OVSIntPort":
            yield row
            raw = row.raw_device or (row.name.partition(".")[0] if "." in row.name else None)
            todo += [*row.ports, *filter(None, [raw])]


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
