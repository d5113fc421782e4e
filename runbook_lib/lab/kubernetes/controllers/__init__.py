"""The controllers of a cluster. They speak HTTP to an API server and to nothing else, so any API server will do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import scheduler
from .client import Cache, KubeClient
from .context import Clock, Context
from .kubelet import Kubelets
from .network import World, world

__all__ = ["Handles", "World", "start_all", "world"]

log = logging.getLogger(__name__)


@dataclass
class Handles:
    """Running controllers. `pod_log` and `pod_exec` of `kubelets` answer what an API server asks a node."""

    context: Context
    kubelets: Kubelets
    tasks: list[asyncio.Task[None]]

    async def ready(self) -> None:
        """Returns once the caches hold what the server has."""
        await self.context.synced()

    async def stop(self) -> None:
        """Ends every controller and its connections."""
        for task in self.tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.context.client.close()


async def start_all(
    base_url: str,
    token: str,
    ca_file: str | None,
    clock: Clock,
    section: Mapping[str, Any] | None = None,
) -> Handles:
    """Every controller, started against the API server.

    `section` is the scenario's `kubernetes:` and tells what lies outside the cluster.
    """
    client = KubeClient(base_url, token, ca_file, name="lab-controllers")
    context = Context(
        client, clock, world(section or {}), Cache(client, "/api/v1/pods"), Cache(client, "/api/v1/nodes")
    )
    kubelets = Kubelets(context)
    work = {
        "pods": context.pods.run(),
        "nodes": context.nodes.run(),
        "scheduler": scheduler.run(context),
        "kubelets": kubelets.run(),
    }
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(coroutine, name=f"lab-{name}") for name, coroutine in work.items()]
    for task in tasks:
        task.add_done_callback(_report)
    return Handles(context, kubelets, tasks)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        log.error("controller %s ended", task.get_name(), exc_info=task.exception())
