"""The whole state of an emulated Proxmox VE cluster, apart from HTTP.

Each API area owns its part: it defines the dataclasses and a `load(state, section)` that fills them from the
`proxmox:` section of a scenario. `AREAS` is the order in which they load.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from ..clock import Clock
from ..dice import SEED, Dice
from .crowd import expanded
from .permissions import Access
from .worker import Tasks

if TYPE_CHECKING:
    from .nodes import NodeState
    from .pools import PoolState
    from .qemu import GuestState
    from .storage import StorageState, VolumeState

AREAS = (
    "access",
    "nodes",
    "network",
    "storage",
    "qemu",
    "lxc",
    "containers",
    "container_config",
    "pools",
    "tasks",
    "cluster",
    "ha",
    "sdn",
    "firewall",
    "backup",
    "replication",
    "metrics",
    "system",
    "hardware",
    "disks",
    "mapping",
    "certificates",
    "ceph",
    "ceph_changes",
    "realms",
    "factors",
    "notifications",
    "consoles",
    "bulk",
    "images",
    "joining",
    "monitors",
)
"""Modules of this package that hold endpoints, in the order in which they load a scenario."""

VERSIONS = {
    "8.4": {"version": "8.4.21", "release": "8.4", "repoid": "2606ac850d46da29"},
    "9.2": {"version": "9.2.11", "release": "9.2", "repoid": "14a22df35955d97d"},
}


class Volumes(dict[tuple[str, str], "VolumeState"]):
    """Volumes by (node or "" when shared, volid); `on` finds those of one storage without looking at all others."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, str], dict[str, VolumeState]] = {}

    def on(self, node: str, storage: str) -> list[VolumeState]:
        """The volumes of the storage on the node, by name."""
        place = self._places.get((node, storage), {})
        return [place[volid] for volid in sorted(place)]

    def used(self, node: str, storage: str) -> int:
        """Bytes that the volumes of the storage take on the node."""
        return sum(volume.used for volume in self._places.get((node, storage), {}).values())

    def __setitem__(self, key: tuple[str, str], volume: VolumeState) -> None:
        super().__setitem__(key, volume)
        self._places.setdefault((key[0], key[1].partition(":")[0]), {})[key[1]] = volume

    def __delitem__(self, key: tuple[str, str]) -> None:
        super().__delitem__(key)
        self._places[key[0], key[1].partition(":")[0]].pop(key[1], None)

    def take(self, key: tuple[str, str]) -> VolumeState | None:
        """The volume, which is gone now; None when there was none."""
        found = self.get(key)
        if found is not None:
            del self[key]
        return found

    def pop(self, *_: object) -> NoReturn:
        """Refused: dict.pop would leave the volume among those of its storage."""
        raise TypeError("a volume goes by take() or del")


class PveState:
    """One cluster (or one standalone node, when `cluster_name` is None).

    nodes by name in order, the first being the one that answers; guests by vmid; storages by id; pools by id;
    volumes by (node or "" when shared, volid);
    `access` holds users, groups, roles, ACL and tokens; `tasks` everything that ran; `areas` is free space for
    areas that need more (one key each); `spool` is where uploads are kept; `dice` is where chance comes from.
    """

    def __init__(
        self, *, flavour: str = "9.2", cluster_name: str | None = None, clock: Clock | None = None, seed: int = SEED
    ) -> None:
        if flavour not in VERSIONS:
            raise ValueError(f"no such Proxmox VE flavour: {flavour}; known are {', '.join(VERSIONS)}")
        self.flavour = flavour
        self.cluster_name = cluster_name
        self.clock = clock or Clock()
        self.dice = Dice(seed)
        self.nodes: dict[str, NodeState] = {}
        self.guests: dict[int, GuestState] = {}
        self.storages: dict[str, StorageState] = {}
        self.volumes = Volumes()
        self.pools: dict[str, PoolState] = {}
        self.tasks = Tasks(self.clock)
        self.datacenter: dict[str, Any] = {}
        self.areas: dict[str, Any] = {}
        self.access = Access(self)
        self.secret = secrets.token_bytes(32)  # not from the seed: see dice
        self.spool: Path | None = None
        self.certificate_pem = ""
        self.auth_delay_seconds = 3.0  # lab seconds that every 401 is late, against guessing

    @property
    def local_node(self) -> str:
        """The node that answers: the first one."""
        return next(iter(self.nodes), "localhost")

    @classmethod
    def from_scenario(
        cls, section: Mapping[str, Any], *, clock: Clock | None = None, spool: Path | None = None, seed: int = SEED
    ) -> PveState:
        """The state that the `proxmox:` section of a scenario describes."""
        state = cls(
            flavour=str(section.get("flavour", "9.2")),
            cluster_name=section.get("cluster_name") or None,
            clock=clock,
            seed=seed,
        )
        state.spool = spool
        section = expanded(section)
        for area in areas():
            load = getattr(area, "load", None)
            if load is not None:
                load(state, section)
        return state


def areas() -> list[ModuleType]:
    """The modules of all areas, imported; importing one registers its endpoints."""
    return [importlib.import_module(f"{__package__}.{name}") for name in AREAS]
