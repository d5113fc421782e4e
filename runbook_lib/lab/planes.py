"""Control planes whose machines are VMs of the lab: begun by `kubeadm init`, served while etcd has its quorum."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from .clock import Clock
from .joining import Join, Node, NotJoined, enroll
from .kubernetes.controllers.context import Context
from .kubernetes.controllers.control_planes import ControlPlanes
from .kubernetes.controllers.kubeadm_control_plane_rules import REMOVED

log = logging.getLogger(__name__)

SPACE = "kubeadm"
"""Under what namespace these control planes are kept, beside those of Kamaji's."""
INIT_SECONDS, WAIT_SECONDS = 60.0, 240.0
MANIFESTS = "/etc/kubernetes/manifests/"
NOBODY_SERVES = "error execution phase wait-control-plane: nothing here can serve a control plane"
UNREACHED = (
    "[api-check] The API server is not healthy after 4m0s\n"
    "error execution phase wait-control-plane: could not initialize a Kubernetes cluster"
)


class Alive(Protocol):
    """Who knows the machines: which there are, and which of them run, by their uuids."""

    def __call__(self) -> tuple[set[str], set[str]]:
        """(the uuids of all VMs, of those that run)."""
        ...


@dataclass
class Plane:
    """One control plane by the "host:port" that its clients know. `context` stays when it does not answer."""

    place: str
    version: str
    context: Context
    up: bool = True
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def members(self) -> dict[str, str]:
        """The uuids of the machines that hold a member of etcd, by the names of their nodes."""
        nodes = self.context.nodes.items
        found = {}
        for (space, _), pod in self.context.pods.items.items():
            metadata = pod["metadata"]
            if space != "kube-system" or (metadata.get("labels") or {}).get("component") != "etcd":
                continue
            name = pod["spec"].get("nodeName", "")
            if REMOVED not in (metadata.get("annotations") or {}) and ("", name) in nodes:
                info = (nodes["", name].get("status") or {}).get("nodeInfo") or {}
                found[name] = str(info.get("systemUUID", "")).lower()
        return found


@dataclass
class Planes:
    """The control planes on machines. `tell` hears where one answers, with None when it does no more."""

    clock: Clock
    alive: Alive
    serving: ControlPlanes | None = None
    contexts: Callable[[str], Context | None] = lambda _place: None
    tell: Callable[[str, str | None], None] = lambda _place, _url: None
    _known: dict[str, Plane] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def of(self, uuid: str) -> list[Plane]:
        """The control planes that the machine is a member of."""
        return [plane for plane in self._known.values() if uuid and uuid in plane.members().values()]

    async def begin(self, join: Join, node: Node) -> None:
        """Returns once the cluster answers and the machine is its first node. Raises NotJoined with the reason."""
        if self.serving is None:
            raise NotJoined(NOBODY_SERVES)
        place = join.endpoint or f"{next(iter(node.addresses), '127.0.0.1')}:6443"
        if not is_reached(place, join, node.addresses):
            await self.clock.sleep(WAIT_SECONDS)
            raise NotJoined(UNREACHED)
        await self.clock.sleep(INIT_SECONDS)
        version = str((join.initial or {}).get("kubernetesVersion") or node.version or "v1.33.0")
        context = await self._serve(place, version, join)
        plane = self._known[place] = Plane(place, version, context)
        await enroll(join, node, plane.context)

    async def _serve(self, place: str, version: str, join: Join | None = None) -> Context:
        if self.serving is None:
            raise NotJoined(NOBODY_SERVES)
        endpoint = await self.serving.start(
            SPACE, place, version, authority=join.authority if join else None, place=place,
            configuration=join.initial if join else None,
        )  # fmt: skip
        url = f"{endpoint.host}:{endpoint.port}"
        context = self.contexts(url)
        if context is None:
            raise NotJoined(NOBODY_SERVES)
        self.tell(place, f"https://{url}")
        return context

    def changed(self, planes: Iterable[Plane]) -> None:
        """Nothing; these control planes are looked at: their machines came or went."""
        for plane in planes:
            task = asyncio.get_running_loop().create_task(self.settle(plane))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("a control plane was not looked after: %r", error)

    async def settle(self, plane: Plane) -> None:
        """Returns once the control plane answers as its members allow: most of them run, or nobody hears it."""
        if self.serving is None:
            return
        async with plane.lock:
            members, (there, running) = set(plane.members().values()), self.alive()
            if self._known.get(plane.place) is not plane or not members:
                return
            if not members & there:
                del self._known[plane.place]
                self.tell(plane.place, None)
                await self.serving.stop(SPACE, plane.place)
                return
            quorum = 2 * len(members & running) > len(members)
            if plane.up and not quorum:
                plane.up = False
                self.tell(plane.place, None)
                await self.serving.stop(SPACE, plane.place, forget=False)
            elif quorum and not plane.up:
                plane.context, plane.up = await self._serve(plane.place, plane.version), True

    async def resume(self, places: Iterable[str]) -> None:
        """Nothing; those control planes that were kept answer again."""
        for place in places:
            context = await self._serve(place, "")
            version = str((await context.client.get("/version")).get("gitVersion", ""))
            self._known[place] = Plane(place, version, context)

    async def close(self) -> None:
        """Ends what is being looked after; who serves the control planes ends them."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def is_reached(place: str, join: Join, addresses: Iterable[str]) -> bool:
    """Whether the endpoint leads to the machine: it is its own, or a pod of its own announces it, as kube-vip does."""
    host = place.rpartition(":")[0]
    if host == "localhost" or host.startswith("127.") or host in set(addresses):
        return True
    return any(path.startswith(MANIFESTS) and host in text for path, text in join.files.items())
