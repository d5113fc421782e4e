"""Cluster API's provider for Proxmox VE (CAPMOX), in the generations of 0.7 and of 0.8 and later."""

from __future__ import annotations

import asyncio
import contextlib

from ..context import Context
from ..klog import line
from ..processes import Exit, Process, Program
from .cluster import Clusters
from .era import era_of
from .machine import Machines
from .scope import Shared
from .server import Failure


async def run(context: Context, process: Process) -> None:
    """The manager. It ends at once when it is given a Proxmox VE that does not answer."""
    shared = Shared(context, process, era_of(process.version))
    shared.log("main.go:96", "starting capmox", logger="setup")
    try:
        try:
            shared.server = await shared.from_environment()
        except Failure as error:
            text = "unable to setup proxmox API client"
            raise Exit(
                1, line(context.clock.now(), "E", "main.go:145", text, logger="setup", err=str(error))
            ) from error
        shared.log("main.go:177", "starting manager", logger="setup")
        await shared.synced()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                group.create_task(Clusters(shared).run())
                group.create_task(Machines(shared).run())
        raise asyncio.CancelledError
    finally:
        await shared.close()


PROGRAMS = (Program("cluster-api-provider-proxmox", run),)
