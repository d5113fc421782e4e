"""Judgement of software-defined networks: zones and vnets as each node has them, and what waits to be applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, verdict
from runbook_lib.facts import Interface, SdnObject, SdnStatus
from runbook_lib.model import Finding, Status

DEFAULT_MTU = 1500
OVERHEAD = 50
"""Bytes that VXLAN puts around a frame (over IPv4)."""


@check(
    title="Zones and vnets are there on every node",
    remedy="See SDN in the node's panel; `error` is mostly a bridge or a package (ifupdown2, frr) the node lacks.",
    source="Sprint 2.1; GET /nodes/{node}/sdn/zones and …/{zone}/content",
)
def sdn_is_available(statuses: Iterable[SdnStatus]) -> Iterator[Finding]:
    """One finding per zone or vnet and node: `available` passes, `pending` warns, anything else fails."""
    for row in statuses:
        subject = f"{row.node}/{row.name}"
        status = {"available": Status.PASS, "pending": Status.WARN}.get(row.status, Status.FAIL)
        why = f": {row.message}" if row.message else ""
        yield verdict(status, subject, f"{row.kind} {row.name} is {row.status or 'unknown'} on {row.node}{why}")


@check(
    title="No SDN change waits",
    remedy="Apply it (Datacenter, SDN, Apply) or take it back before anything is built on it.",
    source="GET /cluster/sdn/zones and /cluster/sdn/vnets with pending=1",
)
def no_sdn_change_waits(objects: Iterable[SdnObject]) -> Iterator[Finding]:
    """One finding per zone or vnet: in force, or waiting (a warning)."""
    for row in objects:
        what = f"{row.kind} {row.name} ({row.type})"
        state = f"waits: {row.waits}" if row.waits else "is in force"
        yield verdict(Status.WARN if row.waits else Status.PASS, row.name, f"{what} {state}")


@check(
    title="Overlays leave room for their headers",
    remedy="Set the zone's MTU to the underlay's less 50, or raise the underlay's.",
    source="Proxmox VE documentation, SDN: VXLAN zones; GET /cluster/sdn/zones",
)
def overlay_mtu_fits(objects: Iterable[SdnObject], interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """One finding per VXLAN or EVPN zone: its MTU and 50 bytes fit the smallest MTU of the nodes' addresses."""
    carriers = [row.mtu or DEFAULT_MTU for row in interfaces if row.cidr or row.cidr6]
    for row in objects:
        if row.kind != "zone" or row.type not in {"vxlan", "evpn"} or not carriers:
            continue
        room = min(carriers) - OVERHEAD
        wanted = row.mtu or room
        yield verdict(wanted <= room, row.name, f"zone {row.name} sends {wanted}, the nodes carry {room} inside VXLAN")
