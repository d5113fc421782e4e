"""What nodes told the cluster last: figures of guests and nodes, as old as the last broadcast of each node.

A real pvestatd tells its figures every ten seconds, each node in its own time; between two broadcasts everybody
sees the old ones. That is also what makes a list of ten thousand guests quick: a row is made once a broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .drift import BROADCAST_SECONDS, FORGOTTEN_SECONDS, phase
from .routing import encode

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


def guest_texts(state: PveState, guests: Iterable[GuestState], pools: Mapping[int, str]) -> list[str]:
    """The rows of many guests as JSON; each was made once a broadcast, or when something known at once has changed."""
    moments, ha = Ages(state).moments, _ha(state)
    rows: list[str] = []
    for guest in guests:
        config, moment = guest.config, moments.get(guest.node)
        if moment is not None and guest.created > moment:
            moment = None
        key = (
            moment,
            guest.node,
            config.get("tags"),
            config.get("lock"),
            pools.get(guest.vmid),
            ha and ha_state(ha, guest),
        )
        if guest.told is None or guest.told[0] != key:
            extra = known_at_once(state, guest, pools.get(guest.vmid))
            guest.told = (key, encode(guest_row(state, guest, moment, extra)))
        rows.append(guest.told[1])
    return rows


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
