"""What nodes told the cluster last: figures of guests and nodes, as old as the last broadcast of each node.

A real pvestatd tells its figures every ten seconds, each node in its own time; between two broadcasts everybody
sees the old ones. That is also what makes a list of ten thousand guests quick: a row is made once a broadcast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from math import floor
from typing import TYPE_CHECKING, Any

from .drift import BROADCAST_SECONDS, FORGOTTEN_SECONDS, phase
from .routing import encode

if TYPE_CHECKING:
    from .nodes import NodeState
    from .qemu.guest import GuestState
    from .state import PveState


HOST_SHARE = 1.08
"""What a guest's memory costs its host, with what QEMU itself takes."""


def broadcast_at(state: PveState, node: NodeState) -> float:
    """When the node told its figures last; a lost one tells nothing new."""
    now, scale = state.clock.now(), state.clock.scale
    if not node.online:
        now = min(now, node.lost_at)
    if scale == float("inf"):
        return now
    interval = BROADCAST_SECONDS / scale if scale > 0 else BROADCAST_SECONDS
    late = phase(node.salt + node.name)
    # counted, and not subtracted from now: the same broadcast is then the same number to the last bit
    return (floor(now / interval + late) - late) * interval


def forgotten(state: PveState, node: NodeState) -> bool:
    """Whether the node is lost for so long that nobody remembers what it told."""
    return not node.online and state.clock.now() - node.lost_at > FORGOTTEN_SECONDS


def guest_figures(state: PveState, guest: GuestState, moment: float) -> dict[str, Any]:
    """What a broadcast says of one guest."""
    running = guest.running if guest.changed <= moment else guest.was_running
    row: dict[str, Any] = {
        "name": guest.name,
        "status": "running" if running else "stopped",
        "template": int(guest.template),
        "cpu": guest.cpu_fraction(moment),
        "maxcpu": guest.cpus,
        "mem": guest.memory_used(moment),
        "maxmem": guest.maxmem,
        "disk": int(guest.maxdisk * 0.2) if guest.kind == "lxc" and running else 0,
        "maxdisk": guest.maxdisk,
        "uptime": guest.uptime(moment) if running else 0,
        **guest.counters(moment),
    }
    if state.flavour != "8.4":
        row["memhost"] = int(row["mem"] * HOST_SHARE)
    return row


def head(guest: GuestState) -> dict[str, Any]:
    """What the configuration alone says of one guest."""
    return {"id": f"{guest.kind}/{guest.vmid}", "type": guest.kind, "vmid": guest.vmid, "node": guest.node}


class Ages:
    """When each node told its figures last, seen once for a whole list; None for a node nobody remembers."""

    def __init__(self, state: PveState) -> None:
        self.moments = {
            name: None if forgotten(state, node) else broadcast_at(state, node) for name, node in state.nodes.items()
        }

    def of(self, guest: GuestState) -> float | None:
        """When somebody told of the guest last; None when nobody has, or has for long."""
        moment = self.moments.get(guest.node)
        return None if moment is None or guest.created > moment else moment


def guest_row(state: PveState, guest: GuestState, moment: float | None) -> dict[str, Any]:
    """A guest's row of the cluster's resources, without what is known at once."""
    figures = {"status": "unknown"} if moment is None else guest_figures(state, guest, moment)
    return head(guest) | figures


MOVING = ("cpu", "mem", "uptime", "netin", "netout", "diskread", "diskwrite", "memhost")
"""The figures of a running guest's row that every broadcast tells anew, in the order of the row."""
WARMED = 100
"""How many guests' first rows are made in one go: a few milliseconds."""
_HERE = "\x00figure\x00"
_GAP = encode(_HERE)


class Told:
    """What was told of a guest last, as JSON, and what the next broadcast will have in common with it.

    `core` is the row as of `moment`, `tail` what is known at once; neither has to be made anew for the other.
    """

    __slots__ = (
        "busy",
        "config",
        "core",
        "cpus",
        "glance",
        "maxmem",
        "memory",
        "moment",
        "node",
        "parts",
        "still",
        "tail",
        "text",
    )

    def __init__(self, state: PveState, guest: GuestState) -> None:
        self.config, self.node, self.maxmem, self.cpus = dict(guest.config), guest.node, guest.maxmem, guest.cpus
        self.busy, self.memory = 0.0, 0
        self.moment: float | None = None
        self.glance: tuple[Any, ...] | None = None
        self.core = self.tail = self.text = self.still = ""
        self.parts: list[str] = []
        known = guest_figures(state, guest, max(guest.changed, state.clock.now()))
        if guest.running:
            moving = {key: _HERE if key in MOVING else value for key, value in known.items()}
            self.parts = encode(head(guest) | moving)[:-1].split(_GAP)
        else:
            self.still = encode(head(guest) | known)[:-1]

    def fits(self, guest: GuestState) -> bool:
        """Whether what does not move is as it was."""
        return guest.running != bool(self.still) and self.node == guest.node and self.config == guest.config

    def tell(self, state: PveState, guest: GuestState, moment: float | None) -> None:
        """Make the row as of `moment`."""
        self.moment, self.busy, self.memory = moment, -1.0, 0
        if moment is None or guest.changed > moment:
            self.core = encode(guest_row(state, guest, moment))[:-1]
        else:
            self.core = self.still or self._moving(guest, moment)
        self.text = self.core + self.tail

    def _moving(self, guest: GuestState, moment: float) -> str:
        waves, parts, up = guest.waves, self.parts, moment - guest.started
        cpu = 0.0 if guest.paused else waves.cpu(guest.cpu_level, moment)
        mem = int(waves.memory(guest.memory_level, moment, up) * self.maxmem)
        received, sent, read, written = waves.counters(up)
        self.busy, self.memory = cpu * self.cpus, mem
        core = (
            f"{parts[0]}{cpu!r}{parts[1]}{mem}{parts[2]}{int(up) if up >= 1 else 1}{parts[3]}{received}{parts[4]}{sent}"
            f"{parts[5]}{read}{parts[6]}{written}{parts[7]}"
        )
        return core if len(parts) == 8 else f"{core}{int(mem * HOST_SHARE)}{parts[8]}"


def burdens(guests: Iterable[GuestState], moments: Mapping[str, float]) -> dict[str, tuple[float, int]]:
    """How many CPUs the guests of each node keep busy, and their bytes of memory, as of its broadcast."""
    busy, memory = dict.fromkeys(moments, 0.0), dict.fromkeys(moments, 0)
    for guest in guests if moments else ():
        node = guest.node
        if not guest.running or node not in moments:
            continue
        told, moment = guest.told, moments[node]
        if told is not None and told.moment == moment and told.busy >= 0:
            busy[node] += told.busy
            memory[node] += told.memory
        else:
            busy[node] += guest.cpu_fraction(moment) * guest.cpus
            memory[node] += guest.memory_used(moment)
    return {node: (busy[node], memory[node]) for node in moments}


def guest_texts(state: PveState, guests: Iterable[GuestState], pools: Mapping[int, str]) -> list[str]:
    """The rows of many guests as JSON; each was made once a broadcast, or when something known at once has changed."""
    moments, ha = Ages(state).moments, _ha(state)
    rows: list[str] = []
    for guest in guests:
        told, config, moment = guest.told, guest.config, moments.get(guest.node)
        if moment is not None and guest.created > moment:
            moment = None
        if told is None or told.moment != moment or told.node != guest.node:
            if told is None or not told.fits(guest):
                told = guest.told = Told(state, guest)
            told.tell(state, guest, moment)
        glance = (config.get("tags"), config.get("lock"), pools.get(guest.vmid), ha_state(ha, guest) if ha else None)
        if told.glance != glance:
            told.glance = glance
            extra = encode(known_at_once(state, guest, glance[2]))
            told.tail = "," + extra[1:] if len(extra) > 2 else "}"
            told.text = told.core + told.tail
        rows.append(told.text)
    return rows


async def warm(state: PveState) -> None:
    """Make the first rows of all guests, a few at a time, so that nobody has to wait for all of them at once."""
    pools = {vmid: pool.poolid for pool in state.pools.values() for vmid in pool.vms}
    guests = list(state.guests.values())
    for first in range(0, len(guests), WARMED):
        guest_texts(state, guests[first : first + WARMED], pools)
        await asyncio.sleep(0)


def _ha(state: PveState) -> Mapping[str, Any]:
    found: Mapping[str, Any] = state.areas.get("ha", {}).get("resources", {})
    return found


def ha_state(resources: Mapping[str, Any], guest: GuestState) -> str | None:
    """What the HA manager wants of the guest; None when it does not manage it."""
    entry = resources.get(f"{'vm' if guest.kind == 'qemu' else 'ct'}:{guest.vmid}")
    return str(entry.get("state", "started")) if entry else None


def known_at_once(state: PveState, guest: GuestState, pool: str | None) -> dict[str, Any]:
    """What of a guest's row does not wait for a broadcast: tags and locks are the shared configuration's."""
    extra = {"tags": guest.config.get("tags"), "lock": guest.config.get("lock"), "pool": pool}
    extra["hastate"] = ha_state(_ha(state), guest)
    return {key: value for key, value in extra.items() if value}
