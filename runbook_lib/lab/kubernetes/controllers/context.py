"""What every controller is given: a client, shared caches, the lab's clock, the world outside."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from .client import Cache, KubeClient, Object, Refused
from .network import View, World

log = logging.getLogger(__name__)


class Clock(Protocol):
    """The lab's clock: real wall time, scaled sleeps."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after so many seconds of the lab."""
        ...


@dataclass
class Context:
    """The shared surroundings of all controllers of one cluster."""

    client: KubeClient
    clock: Clock
    world: World
    pods: Cache
    nodes: Cache
    _names: Any = field(default_factory=itertools.count)

    async def synced(self) -> None:
        """Returns once both caches hold what the server has."""
        await self.pods.synced.wait()
        await self.nodes.synced.wait()

    def stamp(self, *, micro: bool = False) -> str:
        """The present as Kubernetes writes it."""
        moment = datetime.fromtimestamp(self.clock.now(), UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")

    async def view(self) -> View:
        """The cluster as a connection meets it; services and their endpoints are read at this moment."""
        services = await self.client.list("/api/v1/services")
        slices = await self.client.list("/apis/discovery.k8s.io/v1/endpointslices")
        return View(list(self.pods.items.values()), list(self.nodes.items.values()), services["items"], slices["items"])

    async def event(
        self, about: Object, reason: str, message: str, *, kind: str = "Normal", component: str, host: str = ""
    ) -> None:
        """Writes an event about the object. One that is refused is not missed."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        now = self.stamp()
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{int(self.clock.now() * 1e6):x}{next(self._names):04x}",
                "namespace": namespace,
            },
            "involvedObject": {
                "apiVersion": about.get("apiVersion", "v1"),
                "kind": about.get("kind", "Pod"),
                "name": metadata["name"],
                "uid": metadata.get("uid", ""),
                "resourceVersion": metadata.get("resourceVersion", ""),
                **({"namespace": metadata["namespace"]} if "namespace" in metadata else {}),
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": component, **({"host": host} if host else {})},
            "reportingComponent": component,
            "reportingInstance": host,
        }
        try:
            await self.client.create(f"/api/v1/namespaces/{namespace}/events", body)
        except Refused as error:
            log.debug("event %s about %s: %s", reason, metadata["name"], error)
