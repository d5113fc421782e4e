"""What nodes told the cluster last: figures of guests and nodes, as old as the last broadcast of each node.

A real pvestatd tells its figures every ten seconds, each node in its own time; between two broadcasts everybody
sees the old ones. That is also what makes a list of ten thousand guests quick: a row is made once a broadcast.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .drift import BROADCAST_SECONDS, FORGOTTEN_SECONDS, phase

if TYPE_CHECKING:
    from .nodes import NodeState
    from .qemu.guest import GuestState
    from .state import PveState


def broadcast_at(state: PveState, node: NodeState) -> float:
    """When the node told its figures last; a lost one tells nothing new."""
    now, scale = state.clock.now(), state.clock.scale
    if not node.online:
        now = min(now, node.lost_at)
    if scale == float("inf"):
        return now
    interval = BROADCAST_SECONDS / scale if scale > 0 else BROADCAST_SECONDS
    return now - ((now + phase(node.name) * interval) % interval)


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
        row["memhost"] = int(row["mem"] * 1.08)
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


def guest_row(state: PveState, guest: GuestState, moment: float | None, extra: dict[str, Any]) -> dict[str, Any]:
    """A guest's row of the cluster's resources; `extra` is what is known at once."""
    figures = {"status": "unknown"} if moment is None else guest_figures(state, guest, moment)
    return head(guest) | figures | extra


def guest_text(state: PveState, guest: GuestState, moment: float | None, extra: dict[str, Any]) -> str:
    """The same row as JSON, made once a broadcast."""
    key = (moment, guest.node, *extra.values())
    if guest.told is not None and guest.told[0] == key:
        return guest.told[1]
    row = guest_row(state, guest, moment, extra)
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    guest.told = (key, text)
    return text
