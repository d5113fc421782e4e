"""The life of nodes: a silent one is Unknown and tainted, its pods are evicted, those of a lost one collected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import network_plugins
from .client import STRATEGIC, Cache, Key, Object, Refused, key_of
from .context import Context
from .reconcile import reconcile

GRACE_SECONDS = 40.0
LEASES = "/apis/coordination.k8s.io/v1/leases"
COMPONENT = "node-controller"
NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
COLLECT_AFTER_SECONDS = 40.0
_BY_CONDITION = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
_SAID = "Kubelet stopped posting node status."


# -- judgement --------------------------------------------------------------------------------------


def ready(node: Object) -> str:
    """True, False or Unknown; Unknown for a node that never said."""
    for entry in node.get("status", {}).get("conditions") or ():
        if entry["type"] == "Ready":
            return str(entry["status"])
    return "Unknown"


def silent_conditions(node: Object, now: str) -> list[Object]:
    """The conditions of a node that nothing was heard of; empty when they say so already."""
    held = {entry["type"]: entry for entry in node.get("status", {}).get("conditions") or ()}
    rows = []
    for kind in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"):
        before = held.get(kind)
        if before is None:
            reason, words = "NodeStatusNeverUpdated", "Kubelet never posted node status."
        elif before["status"] == "Unknown":
            continue
        else:
            reason, words = "NodeStatusUnknown", _SAID
        rows.append({"type": kind, "status": "Unknown", "reason": reason, "message": words, "lastTransitionTime": now})
    return rows


def wanted_taints(node: Object, now: str) -> list[Object]:
    """The node's taints as its conditions ask for; what others put there stays, and so do times."""
    spec = node.get("spec", {})
    before = list(spec.get("taints") or ())
    state = ready(node)
    wanted: dict[tuple[str, str], Object] = {}
    key = {"False": NOT_READY, "Unknown": UNREACHABLE}.get(state, "")
    if key:
        wanted[key, "NoSchedule"] = {"key": key, "effect": "NoSchedule", "timeAdded": now}
        wanted[key, "NoExecute"] = {"key": key, "effect": "NoExecute", "timeAdded": now}
    for entry in node.get("status", {}).get("conditions") or ():
        if (taint := _BY_CONDITION.get(entry["type"])) and entry["status"] == "True":
            wanted[taint, "NoSchedule"] = {"key": taint, "effect": "NoSchedule", "timeAdded": now}
    if spec.get("unschedulable"):
        taint = "node.kubernetes.io/unschedulable"
        wanted[taint, "NoSchedule"] = {"key": taint, "effect": "NoSchedule", "timeAdded": now}
    kept = []
    for taint in before:
        mine = taint["key"] in {NOT_READY, UNREACHABLE, "node.kubernetes.io/unschedulable", *_BY_CONDITION.values()}
        if not mine or (taint["key"], taint["effect"]) in wanted:
            wanted.pop((taint["key"], taint["effect"]), None)
            kept.append(taint)
    return [*kept, *wanted.values()]


def time_left(pod: Object, taints: Iterable[Object]) -> float | None:
    """Seconds a pod may stay on a node with these taints: 0 for not at all, None for as long as it likes."""
    shortest: float | None = None
    for taint in taints:
        if taint["effect"] != "NoExecute":
            continue
        fitting = [entry for entry in pod["spec"].get("tolerations") or () if _fits(entry, taint)]
        if not fitting:
            return 0.0
        limits = [entry["tolerationSeconds"] for entry in fitting if entry.get("tolerationSeconds") is not None]
        if limits:
            shortest = min([*limits, shortest] if shortest is not None else limits)
    return max(float(shortest), 0.0) if shortest is not None else None


def _fits(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key", "") in {"", taint["key"]}
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")


def has_ended(pod: Object) -> bool:
    """Whether a pod will not run again."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


# -- the controller ---------------------------------------------------------------------------------


@dataclass
class Nodes:
    """What is known of nodes beside the API: when each was last heard of, in real seconds."""

    context: Context
    leases: Cache
    heard: dict[str, tuple[str, float]] = field(default_factory=dict)
    evictions: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    tainted: dict[str, str] = field(default_factory=dict)

    def silent(self, node: Object) -> bool:
        """Whether its lease has not moved for the whole grace period, in real time."""
        name = node["metadata"]["name"]
        lease = self.leases.items.get(("kube-node-lease", name), {}).get("spec", {})
        stamp = f"{lease.get('renewTime')}/{_heartbeat(node)}"
        known = self.heard.get(name)
        if known is None or known[0] != stamp:
            self.heard[name] = (stamp, time.monotonic())
            return False
        return time.monotonic() - known[1] > GRACE_SECONDS

    async def work(self, key: Key, node: Object | None) -> float | None:
        """Brings one node's conditions and taints, and its pods, to what its silence or its voice asks for."""
        name = key[1]
        if node is None:
            self.heard.pop(name, None)
            self.tainted.pop(name, None)
            return None
        context = self.context
        if self.silent(node) or not context.machines.alive(name):
            rows = silent_conditions(node, context.stamp())
            if rows:
                was_ready = ready(node) == "True"
                body = {"status": {"conditions": rows}}
                path = f"/api/v1/nodes/{name}/status"
                node = await context.client.patch(path, body, content_type=STRATEGIC)
                await context.nodes.caught_up(node)
                if was_ready:
                    said = f"Node {name} status is now: NodeNotReady"
                    await context.event(_about(node), "NodeNotReady", said, component=COMPONENT)
        taints = wanted_taints(node, context.stamp())
        if taints != list(node.get("spec", {}).get("taints") or ()):
            # The whole object with its version: others set taints too, and none of theirs may be lost.
            node = await context.client.update(
                f"/api/v1/nodes/{name}", {**node, "spec": {**node["spec"], "taints": taints}}
            )
            await context.nodes.caught_up(node)
        if ready(node) != "True" and not network_plugins.lacks(node):  # one that was never ready took none along
            await self._unready_pods(name)
        self._evict_from(node)
        return None

    async def _unready_pods(self, node: str) -> None:
        """Pods of a node that cannot speak for them are not ready."""
        now = self.context.stamp()
        for pod in _pods_on(self.context, node):
            rows = pod.get("status", {}).get("conditions") or ()
            if not any(row["type"] == "Ready" and row["status"] == "True" for row in rows):
                continue
            body = {"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}]}}
            try:
                await self.context.client.patch(f"{_path(pod)}/status", body, content_type=STRATEGIC)
                about = {"apiVersion": "v1", "kind": "Pod", **pod}
                await self.context.event(
                    about, "NodeNotReady", "Node is not ready", kind="Warning", component=COMPONENT
                )
            except Refused as error:
                if error.code not in {404, 409}:
                    raise

    # -- taint eviction --------------------------------------------------------------------------

    def _evict_from(self, node: Object) -> None:
        name = node["metadata"]["name"]
        taints = [taint for taint in node.get("spec", {}).get("taints") or () if taint["effect"] == "NoExecute"]
        self.tainted[name] = str(taints)
        for pod in _pods_on(self.context, name):
            self.judge(pod, node)

    def judge(self, pod: Object, node: Object) -> None:
        """Nothing; the pod's eviction is begun, called off or left as it is."""
        uid = pod["metadata"]["uid"]
        left = time_left(pod, node.get("spec", {}).get("taints") or ())
        planned = self.evictions.get(uid)
        if left is None or has_ended(pod) or "deletionTimestamp" in pod["metadata"]:
            if planned:
                planned.cancel()
            return
        if planned is None:
            task = asyncio.get_running_loop().create_task(self._evict(pod, left))
            self.evictions[uid] = task
            task.add_done_callback(lambda _: self.evictions.pop(uid, None))

    async def _evict(self, pod: Object, seconds: float) -> None:
        context = self.context
        await asyncio.gather(context.clock.sleep(seconds), asyncio.sleep(0.02 if seconds else 0))
        namespace, name = key_of(pod)
        about = {"apiVersion": "v1", "kind": "Pod", **pod}
        said = f"Marking for deletion Pod {namespace}/{name}"
        row = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
               "message": "Taint manager: deleting due to NoExecute taint",
               "lastTransitionTime": context.stamp()}  # fmt: skip
        try:
            await context.client.patch(
                f"{_path(pod)}/status", {"status": {"conditions": [row]}}, content_type=STRATEGIC
            )
            await context.event(about, "TaintManagerEviction", said, component="taint-eviction-controller")
            await context.client.delete(_path(pod), _options(pod))
        except Refused as error:
            if error.code not in {404, 409}:
                raise


async def run(context: Context) -> None:
    """Watches nodes, their leases and their machines until cancelled."""
    nodes = Nodes(context, context.cache(LEASES))
    await context.synced(nodes.leases)
    heard: asyncio.Event = asyncio.Event()

    def pod_changed(kind: str, pod: Object) -> None:
        name = pod.get("spec", {}).get("nodeName", "")
        if kind != "DELETED" and nodes.tainted.get(name, "[]") != "[]":
            node = context.nodes.items.get(("", name))
            if node is not None:
                nodes.judge(pod, node)
        elif kind == "DELETED" and (task := nodes.evictions.get(pod["metadata"].get("uid", ""))):
            task.cancel()

    def machine_changed(_node: str, _alive: bool) -> None:
        heard.set()

    context.pods.handlers.append(pod_changed)
    context.machines.handlers.append(machine_changed)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(reconcile(context, context.nodes, nodes.work))
            group.create_task(_listen(nodes, heard))
            group.create_task(_collect(context))
    finally:
        context.pods.handlers.remove(pod_changed)
        context.machines.handlers.remove(machine_changed)
        for task in nodes.evictions.values():
            task.cancel()


async def _listen(nodes: Nodes, heard: asyncio.Event) -> None:
    """Looks after silent nodes: every five real seconds, and a grace period after a machine stopped."""
    context = nodes.context
    while True:
        try:
            async with asyncio.timeout(5.0):
                await heard.wait()
            heard.clear()
            await asyncio.gather(context.clock.sleep(GRACE_SECONDS), asyncio.sleep(0.05))
        except TimeoutError:
            pass
        for key, node in list(context.nodes.items.items()):
            if (nodes.silent(node) or not context.machines.alive(key[1])) and silent_conditions(node, ""):
                try:
                    await nodes.work(key, node)
                except Refused:
                    heard.set()


async def _collect(context: Context) -> None:
    """Takes away pods whose node is gone, and those of a node that is out of service; nobody else would."""
    changed = asyncio.Event()

    def node_changed(kind: str, node: Object) -> None:
        if kind == "DELETED" or _out_of_service(node):
            changed.set()

    def pod_changed(kind: str, pod: Object) -> None:
        name = pod.get("spec", {}).get("nodeName", "")
        if kind != "DELETED" and name and (("", name) not in context.nodes.items or _deleting_unbound(pod)):
            changed.set()

    context.nodes.handlers.append(node_changed)
    context.pods.handlers.append(pod_changed)
    try:
        while True:
            await _collect_once(context)
            await changed.wait()
            changed.clear()
            await asyncio.gather(context.clock.sleep(COLLECT_AFTER_SECONDS), asyncio.sleep(0.05))
    finally:
        context.nodes.handlers.remove(node_changed)
        context.pods.handlers.remove(pod_changed)


async def _collect_once(context: Context) -> None:
    for pod in list(context.pods.items.values()):
        node = pod["spec"].get("nodeName", "")
        item = context.nodes.items.get(("", node))
        leaving = "deletionTimestamp" in pod["metadata"]
        lost = bool(node) and item is None
        if not (lost or (leaving and (not node or (item is not None and _out_of_service(item))))):
            continue
        if lost and await context.client.find(f"/api/v1/nodes/{node}") is not None:
            continue  # the cache may be a moment behind
        try:
            if lost and not has_ended(pod):
                row = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                       "message": "PodGC: node no longer exists", "lastTransitionTime": context.stamp()}  # fmt: skip
                body = {"status": {"phase": "Failed", "conditions": [row]}}
                await context.client.patch(f"{_path(pod)}/status", body, content_type=STRATEGIC)
            await context.client.delete(_path(pod), {**_options(pod), "gracePeriodSeconds": 0})
        except Refused as error:
            if error.code not in {404, 409}:
                raise


def _out_of_service(node: Object) -> bool:
    return any(taint["key"] == OUT_OF_SERVICE for taint in node.get("spec", {}).get("taints") or ())


def _deleting_unbound(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName")


def _pods_on(context: Context, node: str) -> list[Object]:
    return [pod for pod in context.pods.items.values() if pod["spec"].get("nodeName") == node]


def _heartbeat(node: Object) -> str:
    for entry in node.get("status", {}).get("conditions") or ():
        if entry["type"] == "Ready":
            return str(entry.get("lastHeartbeatTime", ""))
    return ""


def _path(pod: Object) -> str:
    namespace, name = key_of(pod)
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _options(pod: Object) -> Object:
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod["metadata"]["uid"]}}


def _about(node: Object) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", **node}
