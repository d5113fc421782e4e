"""The scheduler: binds pending pods to the best node that fits, makes room for important ones, says why none does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp

from .client import STRATEGIC, Cache, Key, Object, Refused, key_of
from .context import Context
from .fitting import Board, Judge, Refusal, explain, is_bound
from .preemption import priority, victims
from .volumes import claim_name

log = logging.getLogger(__name__)

NAME = "default-scheduler"
BIND_SECONDS = 600.0
SELECTED = "volume.kubernetes.io/selected-node"
CACHES = {
    "PersistentVolumeClaim": "/api/v1/persistentvolumeclaims",
    "PersistentVolume": "/api/v1/persistentvolumes",
    "StorageClass": "/apis/storage.k8s.io/v1/storageclasses",
    "CSINode": "/apis/storage.k8s.io/v1/csinodes",
    "Namespace": "/api/v1/namespaces",
    "PodDisruptionBudget": "/apis/policy/v1/poddisruptionbudgets",
}
"""What decides about a pod's place, and about who makes room for it, beside nodes and pods."""


def choose(
    pod: Object, nodes: Iterable[Object], pods: Iterable[Object], assumed: Mapping[Key, str]
) -> tuple[str | None, list[Refusal]]:
    """(the node for the pod or None, why each other node was refused)."""
    there: dict[str, list[Object]] = {}
    for other in pods:
        node = other["spec"].get("nodeName") or assumed.get(key_of(other))
        if node and other.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            there.setdefault(node, []).append(other)
    node, refused = place(pod, Board(list(nodes), there))
    return node, [refusal for _, refusal in refused]


def place(pod: Object, board: Board) -> tuple[str | None, list[tuple[Object, Refusal]]]:
    """(the best node for the pod or None, each node that was refused and why)."""
    judge = Judge(pod, board)
    fits: list[tuple[float, str]] = []
    refused: list[tuple[Object, Refusal]] = []
    for node in board.nodes:
        why = judge.refusal(node)
        if why is not None:
            refused.append((node, why))
        else:
            fits.append((judge.score(node), node["metadata"]["name"]))
    return (min(fits)[1] if fits else None), refused


@dataclass
class Scheduler:
    """One scheduler: its queue, what it promised, and the pods of each node."""

    context: Context
    caches: dict[str, Cache]
    queue: asyncio.Queue[Key] = field(default_factory=asyncio.Queue)
    waiting: set[Key] = field(default_factory=set)
    assumed: dict[Key, tuple[str, Object]] = field(default_factory=dict)
    by_node: dict[str, dict[Key, Object]] = field(default_factory=dict)
    where: dict[Key, str] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    binding: set[asyncio.Task[None]] = field(default_factory=set)

    # -- what changes ----------------------------------------------------------------------------

    def pod_changed(self, kind: str, pod: Object) -> None:
        """Nothing; the pod waits for a node, sits on one, or made room."""
        key = key_of(pod)
        gone = kind == "DELETED" or pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        before = self.where.pop(key, "")
        if before:
            self.by_node.get(before, {}).pop(key, None)
        node = pod.get("spec", {}).get("nodeName", "")
        if node and not gone:
            self.by_node.setdefault(node, {})[key] = pod
            self.where[key] = node
        if gone or node:
            self.assumed.pop(key, None)
            self.waiting.discard(key)
        if not gone and wants_a_node(pod):
            if key not in self.waiting:
                self.queue.put_nowait(key)
        elif gone and before:
            self.retry()
        elif node and not before:
            self.retry_companions()

    def node_changed(self, kind: str, node: Object) -> None:
        """Nothing; pods that fitted nowhere are tried again when the node changed in a way that matters."""
        name = node["metadata"]["name"]
        state = _scheduling_state(node) if kind != "DELETED" else None
        if self.seen.get(name) != state:
            self.seen[name] = state
            self.retry()

    def retry(self, *_: object) -> None:
        """Nothing; every pod that fitted nowhere is tried again."""
        for key in list(self.waiting):
            self.waiting.discard(key)
            self.queue.put_nowait(key)

    def retry_companions(self) -> None:
        """Nothing; pods that want to be near others are tried again, as others came."""
        for key in list(self.waiting):
            spec = (self.context.pods.items.get(key) or {"spec": {}})["spec"]
            if (spec.get("affinity") or {}).get("podAffinity"):
                self.waiting.discard(key)
                self.queue.put_nowait(key)

    # -- decisions -------------------------------------------------------------------------------

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object that decides about places, from the cache."""
        return self.caches[kind].items.get((namespace, name))

    def board(self, pod: Object) -> Board:
        """The cluster for this pod: with what was promised, and what more important pods were promised room for."""
        there = {node: list(pods.values()) for node, pods in self.by_node.items()}
        for node, promised in self.assumed.values():
            there.setdefault(node, []).append(promised)
        for key in self.waiting:
            other = self.context.pods.items.get(key)
            nominated = (other or {}).get("status", {}).get("nominatedNodeName", "")
            if other is not None and nominated and key != key_of(pod) and priority(other) >= priority(pod):
                there.setdefault(nominated, []).append(other)
        volumes = list(self.caches["PersistentVolume"].items.values())
        return Board(list(self.context.nodes.items.values()), there, self.find, volumes)

    async def one(self, key: Key) -> None:
        """Returns once this pod was bound, is on its way, or its reason was told."""
        pod = self.context.pods.items.get(key)
        if pod is None or not wants_a_node(pod) or key in self.assumed:
            return
        board = self.board(pod)
        total = len(board.nodes)
        if hopeless := Judge(pod, board).hopeless():
            self.waiting.add(key)
            await self._report(pod, explain([], hopeless=hopeless, nodes=total))
            return
        node, refused = place(pod, board)
        if node is not None:
            self.assumed[key] = (node, pod)
            if self._unbound_claims(pod):
                task = asyncio.get_running_loop().create_task(self._bind_with_volumes(pod, node))
                self.binding.add(task)
                task.add_done_callback(self.binding.discard)
            elif not await self._bind(pod, node):
                self.assumed.pop(key, None)
                self.later(key)
            return
        self.waiting.add(key)
        refusals = [refusal for _, refusal in refused]
        leaving = pod.get("status", {}).get("nominatedNodeName", "")
        if leaving and any("deletionTimestamp" in other["metadata"] for other in board.pods.get(leaving, ())):
            return  # its room is being made
        budgets = list(self.caches["PodDisruptionBudget"].items.values())
        chosen, going = victims(pod, board, refused, budgets)
        never = pod["spec"].get("preemptionPolicy") == "Never"
        words = explain(refusals, may_preempt=not never)
        if chosen:
            words = words.partition(" preemption: ")[0]
        await self._report(pod, words, nominated=chosen)
        for victim in going:
            await self._preempt(pod, victim, chosen)

    def later(self, key: Key) -> None:
        """Nothing; the pod is looked at again in a moment, as one whose binding failed."""
        asyncio.get_running_loop().call_later(0.5, self.queue.put_nowait, key)

    def _unbound_claims(self, pod: Object) -> list[Object]:
        space = pod["metadata"]["namespace"]
        names = [claim_name(pod, volume) for volume in pod["spec"].get("volumes") or ()]
        claims = [self.find("PersistentVolumeClaim", space, name) for name in names if name]
        return [claim for claim in claims if claim is not None and not is_bound(claim)]

    async def _bind_with_volumes(self, pod: Object, node: str) -> None:
        """Names the node to the provisioners, waits for the volumes, then binds."""
        key, cache = key_of(pod), self.caches["PersistentVolumeClaim"]
        try:
            for claim in self._unbound_claims(pod):
                space, name = key_of(claim)
                path = f"/api/v1/namespaces/{space}/persistentvolumeclaims/{name}"
                answer = await self.context.client.patch(path, {"metadata": {"annotations": {SELECTED: node}}})
                await cache.caught_up(answer)
            if problem := await self._volumes_come(pod, node):
                self.assumed.pop(key, None)
                self.waiting.add(key)
                await self._report(pod, f'running PreBind plugin "VolumeBinding": {problem}')
                self.retry()
                return
            if await self._bind(pod, node):
                return
        except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("binding volumes of %s/%s: %s", *key, error)
        self.assumed.pop(key, None)
        self.queue.put_nowait(key)

    async def _volumes_come(self, pod: Object, node: str) -> str:
        """Why the claims did not get their volumes; empty when they did."""
        late = asyncio.get_running_loop().create_task(self._too_late())
        cache = self.caches["PersistentVolumeClaim"]
        try:
            while claims := self._unbound_claims(pod):
                for claim in claims:
                    if (claim["metadata"].get("annotations") or {}).get(SELECTED) != node:
                        name = claim["metadata"]["name"]
                        return f'binding volumes: provisioning failed for PVC "{name}"'
                if key_of(pod) not in self.context.pods.items:
                    return "pod is gone"
                if late.done():
                    return "binding volumes: context deadline exceeded"
                await cache.until(partial(_moved, cache, cache.version), seconds=1.0)
        finally:
            late.cancel()
        return ""

    async def _too_late(self) -> None:
        await self.context.clock.sleep(BIND_SECONDS)
        await asyncio.sleep(5.0)  # provisioners need real time, however fast the lab's clock runs

    async def _bind(self, pod: Object, node: str) -> bool:
        namespace, name = key_of(pod)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod["metadata"].get("uid", "")},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self.context.client.create(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", binding)
        except Refused as error:
            log.debug("binding %s/%s to %s: %s", namespace, name, node, error)
            return False
        message = f"Successfully assigned {namespace}/{name} to {node}"
        telling = asyncio.get_running_loop().create_task(self.context.event(pod, "Scheduled", message, component=NAME))
        self.binding.add(telling)  # the next pod does not wait for the words about this one
        telling.add_done_callback(self.binding.discard)
        return True

    async def _preempt(self, pod: Object, victim: Object, node: str) -> None:
        namespace, name = key_of(victim)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        row = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
               "message": f"{NAME}: preempting to accommodate a higher priority pod",
               "lastTransitionTime": self.context.stamp()}  # fmt: skip
        uid = pod["metadata"].get("uid", "")
        try:
            await self.context.client.patch(f"{path}/status", {"status": {"conditions": [row]}}, content_type=STRATEGIC)
            await self.context.client.delete(path)
        except Refused as error:
            log.debug("preempting %s/%s: %s", namespace, name, error)
            return
        await self.context.event(victim, "Preempted", f"Preempted by pod {uid} on node {node}", component=NAME)

    async def _report(self, pod: Object, message: str, *, nominated: str = "") -> None:
        """Writes PodScheduled=False and its event, once for each new reason."""
        before = pod.get("status", {})
        for entry in before.get("conditions") or ():
            same = entry["type"] == "PodScheduled" and entry.get("message") == message
            if same and nominated in {"", before.get("nominatedNodeName", "")}:
                return
        namespace, name = key_of(pod)
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": self.context.stamp(),
        }
        status = {"conditions": [condition], **({"nominatedNodeName": nominated} if nominated else {})}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        try:
            await self.context.client.patch(path, {"status": status}, content_type=STRATEGIC)
        except Refused as error:
            log.debug("status of %s/%s: %s", namespace, name, error)
            return
        await self.context.event(pod, "FailedScheduling", message, kind="Warning", component=NAME)


async def run(context: Context) -> None:
    """Schedules until cancelled: each unbound pod at once, and the unschedulable again whenever something changed."""
    scheduler = Scheduler(context, {kind: context.cache(path) for kind, path in CACHES.items()})
    context.pods.handlers.append(scheduler.pod_changed)
    context.nodes.handlers.append(scheduler.node_changed)
    for kind in ("PersistentVolumeClaim", "PersistentVolume", "StorageClass"):
        scheduler.caches[kind].handlers.append(scheduler.retry)
    await context.synced(context.pods, context.nodes, *scheduler.caches.values())
    for node in list(context.nodes.items.values()):
        scheduler.node_changed("ADDED", node)
    for pod in list(context.pods.items.values()):
        scheduler.pod_changed("ADDED", pod)
    try:
        while True:
            key = await scheduler.queue.get()
            try:
                await scheduler.one(key)
            except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("scheduling %s/%s: %s", *key, error)
                scheduler.assumed.pop(key, None)
                scheduler.later(key)
    finally:
        for task in scheduler.binding:
            task.cancel()


def _moved(cache: Cache, seen: int) -> bool:
    return cache.version > seen


def wants_a_node(pod: Object) -> bool:
    """Whether a pod waits for this scheduler."""
    return (
        not pod["spec"].get("nodeName")
        and pod["spec"].get("schedulerName", NAME) == NAME
        and not pod["spec"].get("schedulingGates")
        and "deletionTimestamp" not in pod["metadata"]
        and pod.get("status", {}).get("phase", "Pending") == "Pending"
    )


def _scheduling_state(node: Object) -> Any:
    spec, labels = node["spec"], node["metadata"].get("labels")
    return (spec.get("unschedulable"), str(spec.get("taints")), str(labels), str(node["status"].get("allocatable")))


__all__ = ["Scheduler", "choose", "explain", "place", "run", "wants_a_node"]
