"""LINSTOR's CSI plugin, as little of it as a healthy CozyStack shows: its volumes are simply there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from ..context import Context
from ..processes import Process, Program
from .csi import Made, Snapshot, Wanted, listening

NAME = "linstor.csi.linbit.com"
MAKE_SECONDS = 1.5


@dataclass
class LinstorDriver:
    """Volumes that need nothing of the world outside."""

    context: Context
    name: str = NAME
    capabilities: frozenset[str] = frozenset({"expand", "snapshot", "clone"})

    async def create_volume(self, wanted: Wanted) -> Made:
        """A volume of that name and size."""
        await self.context.clock.sleep(MAKE_SECONDS)
        return Made(wanted.name, -(-wanted.size // 2**20) * 2**20, {})

    async def delete_volume(self, handle: str) -> None:
        """Nothing."""
        await self.context.clock.sleep(MAKE_SECONDS / 2)

    async def publish(self, handle: str, node: str, context: Mapping[str, str], *, readonly: bool) -> dict[str, str]:
        """Nothing that a node must know."""
        return {}

    async def unpublish(self, handle: str, node: str) -> None:
        """Nothing."""

    async def expand(self, handle: str, size: int) -> tuple[int, bool]:
        """(the size, True): the node grows the file system."""
        await self.context.clock.sleep(MAKE_SECONDS)
        return size, True

    async def capacity(self, parameters: Mapping[str, str], segments: Mapping[str, str]) -> int:
        """Nothing is known."""
        return 0

    async def create_snapshot(self, handle: str, name: str, parameters: Mapping[str, str]) -> Snapshot:
        """A snapshot of that name."""
        await self.context.clock.sleep(MAKE_SECONDS)
        return Snapshot(name, 0)

    async def delete_snapshot(self, handle: str) -> None:
        """Nothing."""


async def run(context: Context, process: Process) -> None:
    """Serves the pod's sidecars until cancelled."""
    async with listening(context, process, LinstorDriver(context)):
        await asyncio.Event().wait()


PROGRAMS = (Program("linstor-csi", run, leads=False),)
