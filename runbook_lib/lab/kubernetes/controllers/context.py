"""What every controller is given: a client, shared caches, the lab's clock, the world outside."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from .client import Cache, KubeClient, Object, Refused
from .control_planes import ControlPlanes
from .machines import Machines
from .network import View, World
from .policies import Policies

log = logging.getLogger(__name__)

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

VIEWED = {
    "services": "/api/v1/services",
    "slices": "/apis/discovery.k8s.io/v1/endpointslices",
    "namespaces": "/api/v1/namespaces",
    "kubernetes": "/apis/networking.k8s.io/v1/networkpolicies",
    "cilium": "/apis/cilium.io/v2/ciliumnetworkpolicies",
    "clusterwide": "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    "subnets": "/apis/kubeovn.io/v1/subnets",
}
"""What a connection depends on, beside pods and nodes."""

MOST_SERIES = 4096
"""Events that are remembered, to be counted when they happen again."""


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
    """The shared surroundings of all controllers of one cluster.

    `routes` lead from the "host:port" of an API server inside the lab's networks to the URL where it really answers.
    `listeners` are the real processes that play pods: (namespace, "pod/NAME", port) → (host, port).
    `outside` tells where the "host:port" of a Proxmox node really answers; None where nobody does.
    `seed` makes chance repeat: a controller that throws dice takes `random.Random(f"{seed}/…")`.
    """

    client: KubeClient
    clock: Clock
    world: World
    seed: int = 1
    control_planes: ControlPlanes | None = None
    machines: Machines = field(init=False)
    listeners: dict[Any, Any] = field(default_factory=dict)
    outside: Callable[[str], tuple[str, int] | None] | None = None
    routes: dict[str, str] = field(default_factory=dict)
    _caches: dict[str, Cache] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _names: Any = field(default_factory=itertools.count)
    _turns: Any = field(default_factory=itertools.count)
    _events: dict[tuple[str, ...], tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machines = Machines.with_faults(self.world.node_faults)

    def cache(self, path: str) -> Cache:
        """The shared cache of a resource, by its list path over all namespaces; it runs from the first asking on."""
        known = self._caches.get(path)
        if known is None:
            known = self._caches[path] = Cache(self.client, path)
            if path != DEFINITIONS:
                known.definitions = self.cache(DEFINITIONS)
            self.spawn(known.run(), name=f"lab-cache {path}")
        return known

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """The task that does the work until it ends or the cluster is stopped. Its failure is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("%s ended", task.get_name(), exc_info=task.exception())

    async def stop(self) -> None:
        """Ends every task that was spawned here."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def pods(self) -> Cache:
        """The cache of all pods."""
        return self.cache("/api/v1/pods")

    @property
    def nodes(self) -> Cache:
        """The cache of all nodes."""
        return self.cache("/api/v1/nodes")

    async def synced(self, *caches: Cache) -> None:
        """Returns once these caches (or those of pods and nodes) hold what the server has."""
        for cache in caches or (self.pods, self.nodes):
            await cache.synced.wait()

    def stamp(self, *, micro: bool = False) -> str:
        """The present as Kubernetes writes it."""
        moment = datetime.fromtimestamp(self.clock.now(), UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")

    async def view(self) -> View:
        """The cluster as a connection meets it at this moment."""
        held = {name: self.cache(path) for name, path in VIEWED.items()}
        await self.synced(self.pods, self.nodes, *held.values())
        rows = {name: list(cache.items.values()) for name, cache in held.items()}
        policies = Policies(rows["kubernetes"], rows["cilium"], rows["clusterwide"], rows["subnets"])
        # Nobody answers at the address of a pod whose machine is off, whatever its status still says.
        pods = [pod for pod in self.pods.items.values() if self.machines.alive(pod["spec"].get("nodeName", ""))]
        nodes, turn = list(self.nodes.items.values()), next(self._turns)
        return View(pods, nodes, rows["services"], rows["slices"], rows["namespaces"], policies, turn)

    async def event(
        self, about: Object, reason: str, message: str, *, kind: str = "Normal", component: str, host: str = ""
    ) -> None:
        """Writes an event about the object, or counts it once more. One that is refused is not missed."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        now = self.stamp()
        series = (metadata.get("uid", ""), namespace, metadata["name"], reason, message, component, host)
        if series in self._events and await self._count(series, now):
            return
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
            made = await self.client.create(f"/api/v1/namespaces/{namespace}/events", body)
        except Refused as error:
            log.debug("event %s about %s: %s", reason, metadata["name"], error)
            return
        while len(self._events) >= MOST_SERIES:
            del self._events[next(iter(self._events))]
        self._events[series] = (made["metadata"]["name"], 1)

    async def _count(self, series: tuple[str, ...], now: str) -> bool:
        """Whether the event that was told before still stands and now counts one more."""
        name, count = self._events.pop(series)
        self._events[series] = (name, count + 1)
        body = {"count": count + 1, "lastTimestamp": now}
        try:
            await self.client.patch(f"/api/v1/namespaces/{series[1]}/events/{name}", body)
        except Refused:  # expired meanwhile
            self._events.pop(series, None)
            return False
        return True
