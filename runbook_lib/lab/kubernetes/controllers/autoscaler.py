"""The cluster autoscaler on Cluster API: pods that fit nowhere grow a MachineDeployment, idle nodes shrink it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from .capi.machinedeployments import AUTOSCALER_MAX, AUTOSCALER_MIN
from .capi.manager import Manager, api_of
from .capi.objects import DELETE_MACHINE, DEPLOYMENT_NAME, cluster_key, seconds
from .client import Cache, Object, Refused
from .context import Context
from .fitting import Board, Judge
from .processes import Exit, Process, Program
from .quantities import number, requests_of
from .remote import Remote

SCAN_SECONDS, SHORTEST_SCAN = 10.0, 0.5
UNNEEDED_SECONDS, AFTER_GROWTH_SECONDS, THRESHOLD = 600.0, 600.0, 0.5
CAPACITY = "capacity.cluster-autoscaler.kubernetes.io/"
OPTIONS = "cluster.x-k8s.io/autoscaling-options-"
CANDIDATE, DOOMED = "DeletionCandidateOfClusterAutoscaler", "ToBeDeletedByClusterAutoscaler"
SAFE, NOT_SAFE = (
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "cluster-autoscaler.kubernetes.io/scale-down-disabled",
)
STATUS = "/api/v1/namespaces/kube-system/configmaps"
SOURCE = "cluster-autoscaler"


@dataclass(frozen=True)
class Group:
    """One MachineDeployment that may be scaled, with the nodes it has."""

    deployment: Object
    nodes: tuple[Object, ...]
    low: int
    high: int

    @property
    def name(self) -> str:
        """As the autoscaler writes it."""
        metadata = self.deployment["metadata"]
        return f"MachineDeployment/{metadata['namespace']}/{metadata['name']}"

    @property
    def size(self) -> int:
        """How many machines it shall have."""
        return int(self.deployment["spec"].get("replicas", 1))

    def option(self, name: str, default: float) -> float:
        """An option of this group in seconds or as a fraction."""
        given = (self.deployment["metadata"].get("annotations") or {}).get(OPTIONS + name)
        if given is None:
            return default
        return float(given) if re.fullmatch(r"[\d.]+", given) else seconds(given) or default


def bounds_of(deployment: Object) -> tuple[int, int] | None:
    """Least and most machines by the annotations; None for a deployment that is not to be scaled."""
    annotations = deployment["metadata"].get("annotations") or {}
    low, high = annotations.get(AUTOSCALER_MIN, ""), annotations.get(AUTOSCALER_MAX, "")
    if not (low.isdigit() and high.isdigit()) or int(high) <= 0 or int(low) > int(high):
        return None
    return int(low), int(high)


def template_node(group: Group) -> Object | None:
    """A node as the next machine would be: like one the group has, else by its capacity annotations."""
    for node in group.nodes:
        taints = [
            t
            for t in node["spec"].get("taints") or ()
            if t["key"] not in {CANDIDATE, DOOMED} and "node.kubernetes.io/" not in t["key"]
        ]
        return {
            "metadata": {"name": "template", "labels": node["metadata"].get("labels") or {}},
            "spec": {"taints": taints},
            "status": {"allocatable": node["status"].get("allocatable") or {}},
        }
    annotations = group.deployment["metadata"].get("annotations") or {}
    given = {name: annotations.get(CAPACITY + name) for name in ("cpu", "memory")}
    if not all(given.values()):
        return None
    labels = dict(pair.split("=", 1) for pair in annotations.get(f"{CAPACITY}labels", "").split(",") if "=" in pair)
    taints = [
        {"key": key, "value": value, "effect": effect}
        for key, value, effect in re.findall(r"([^=,]+)=([^:,]*):(\w+)", annotations.get(f"{CAPACITY}taints", ""))
    ]
    room = {**given, "pods": annotations.get(f"{CAPACITY}maxPods", "110")}
    if f"{CAPACITY}ephemeral-disk" in annotations:
        room["ephemeral-storage"] = annotations[f"{CAPACITY}ephemeral-disk"]
    return {
        "metadata": {"name": "template", "labels": labels},
        "spec": {"taints": taints},
        "status": {"allocatable": room},
    }


def needed(pods: Sequence[Object], node: Object, upcoming: int) -> tuple[int, list[Object]]:
    """(how many such nodes beyond the upcoming ones these pods need, the pods that fit on them), packed one by one."""
    rooms: list[list[Object]] = [[] for _ in range(upcoming)]
    helped = []
    for pod in sorted(pods, key=lambda item: -requests_of(item).get("cpu", 0.0)):
        place = next((place for place, room in enumerate(rooms) if _fits(pod, node, room)), None)
        if place is None:
            if not _fits(pod, node, []):
                continue
            place = len(rooms)
            rooms.append([])
        rooms[place].append({**pod, "spec": {**pod["spec"], "nodeName": node["metadata"]["name"]}})
        if place >= upcoming:
            helped.append(pod)
    return len(rooms) - upcoming, helped


def _fits(pod: Object, node: Object, others: Sequence[Object]) -> bool:
    return not _refusal(pod, node, others)


def _refusal(pod: Object, node: Object, others: Sequence[Object]) -> str:
    """Why the scheduler would not put the pod there; empty when it would."""
    found = Judge(pod, Board([node], {node["metadata"]["name"]: list(others)})).refusal(node)
    return ", ".join(found.reasons) if found else ""


def utilization(node: Object, pods: Sequence[Object]) -> float:
    """The larger of what of the node's CPU and memory is asked for."""
    room = node["status"].get("allocatable") or {}
    used = {"cpu": 0.0, "memory": 0.0}
    for pod in pods:
        for name, value in requests_of(pod).items():
            if name in used:
                used[name] += value
    return max((used[name] / number(room[name]) for name in used if room.get(name)), default=0.0)


def movable(pods: Sequence[Object]) -> bool:
    """Whether every pod of a node can be started elsewhere."""
    for pod in pods:
        annotations = pod["metadata"].get("annotations") or {}
        if annotations.get(SAFE) == "true" or _stays(pod):
            continue
        owned = any(entry.get("controller") for entry in pod["metadata"].get("ownerReferences") or ())
        local = any("emptyDir" in volume or "hostPath" in volume for volume in pod["spec"].get("volumes") or ())
        system = pod["metadata"]["namespace"] == "kube-system"
        if annotations.get(SAFE) == "false" or not owned or local or system:
            return False
    return True


def _stays(pod: Object) -> bool:
    """A pod that goes with its node and hinders nobody: a daemon's, or a static one."""
    daemon = any(entry["kind"] == "DaemonSet" for entry in pod["metadata"].get("ownerReferences") or ())
    return daemon or "kubernetes.io/config.mirror" in (pod["metadata"].get("annotations") or {})


def waiting(pods: Sequence[Object]) -> list[Object]:
    """The pods that the scheduler found no node for."""
    return [
        pod for pod in pods
        if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"] and any(
            entry["type"] == "PodScheduled" and entry["status"] == "False" and entry.get("reason") == "Unschedulable"
            for entry in (pod.get("status") or {}).get("conditions") or ()
        )
    ]  # fmt: skip


# --- the program --------------------------------------------------------------------------------------------------


def flags(container: Mapping[str, Any]) -> dict[str, str]:
    """The command line's flags by name."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    found = re.findall(r"--([\w-]+)(?:=(\S+))?", " ".join(map(str, words)))
    return {name: value or "true" for name, value in found}


class _Scaler:
    """One running autoscaler: which nodes are unneeded since when, in seconds of the lab."""

    def __init__(self, manager: Manager, given: Mapping[str, str], key: tuple[str, str]) -> None:
        self.manager, self.key = manager, key
        self.unneeded_seconds = seconds(given.get("scale-down-unneeded-time")) or UNNEEDED_SECONDS
        self.pause = seconds(given.get("scale-down-delay-after-add")) or AFTER_GROWTH_SECONDS
        self.scan = seconds(given.get("scan-interval")) or SCAN_SECONDS
        self.enforce = "enforce-node-group-min-size" in given
        self.unneeded: dict[str, float] = {}
        self.told: dict[str, str] = {}
        self.lived, self.grown, self.status = 0.0, -1e9, ""
        self.pods: Cache | None = None
        self.remote: Remote | None = None

    async def run(self) -> None:
        context = self.manager.context
        while True:
            remote = self.manager.remotes.get(self.key)
            if remote is not None and remote.connected:
                await self._follow(remote)
                try:
                    await self._look(remote)
                except Refused as error:
                    if error.code != 409:
                        self.manager.process.write(f"E static_autoscaler.go:1] Failed to scale: {error}")
            await asyncio.gather(context.clock.sleep(self.scan), asyncio.sleep(SHORTEST_SCAN))
            self.lived += self.scan

    async def _follow(self, remote: Remote) -> None:
        if self.remote is not remote:
            self.remote, self.pods = remote, Cache(remote.client, "/api/v1/pods")
            remote.tasks.append(self.manager.context.spawn(self.pods.run(), name="lab-cache tenant pods"))
        assert self.pods is not None  # set together with the remote
        await self.pods.synced.wait()

    def groups(self, remote: Remote) -> list[Group]:
        """The deployments of the cluster that may be scaled."""
        machines, found = self.manager.cache("machines"), []
        identities = {
            machine["spec"].get("providerID"): machine["metadata"].get("labels", {}).get(DEPLOYMENT_NAME)
            for machine in machines.items.values() if cluster_key(machine) == self.key
        }  # fmt: skip
        for at, deployment in sorted(self.manager.cache("machinedeployments").items.items()):
            limits = bounds_of(deployment)
            if limits is None or cluster_key(deployment) != self.key or "deletionTimestamp" in deployment["metadata"]:
                continue
            nodes = tuple(
                node for _, node in sorted(remote.nodes.items.items())
                if node["spec"].get("providerID") and identities.get(node["spec"]["providerID"]) == at[1]
            )  # fmt: skip
            found.append(Group(deployment, nodes, *limits))
        return found

    async def _look(self, remote: Remote) -> None:
        assert self.pods is not None  # _follow came before
        await self.manager.context.synced(self.manager.cache("machines"), self.manager.cache("machinedeployments"))
        groups, pods = self.groups(remote), list(self.pods.items.values())
        for group in groups:
            if self.enforce and group.size < group.low:
                await self._resize(group, group.low)
                return
        stuck = waiting(pods)
        if stuck:
            await self._grow(remote, groups, stuck)
        else:
            self.told.clear()
            await self._shrink(remote, groups, pods)
        await self._tell_status(remote, groups)

    async def _grow(self, remote: Remote, groups: Sequence[Group], stuck: Sequence[Object]) -> None:
        reasons: dict[str, int] = {}
        for group in groups:
            node = template_node(group)
            if node is None:
                continue
            upcoming = max(group.size - len(group.nodes), 0)
            count, helped = needed(stuck, node, upcoming)
            if count <= 0:
                if upcoming and any(_fits(pod, node, []) for pod in stuck):
                    return  # what is coming will do
                said = _refusal(stuck[0], node, []) or "node(s) didn't match"
                reasons[said] = reasons.get(said, 0) + 1
                continue
            wish = min(group.size + count, group.high)
            if wish <= group.size:
                reasons["max node group size reached"] = reasons.get("max node group size reached", 0) + 1
                continue
            said = f"Scale-up: setting group {group.name} size to {wish} instead of {group.size} (max: {group.high})"
            before = group.size
            await self._resize(group, wish)
            await self._note(remote, "ScaledUpGroup", said)
            shown = f"pod triggered scale-up: [{{{group.name} {before}->{wish} (max: {group.high})}}]"
            for pod in helped:
                await self._event(remote, pod, "TriggeredScaleUp", shown)
            self.grown = self.lived
            return
        detail = ", ".join(f"{count} {said}" for said, count in sorted(reasons.items()))
        said = f"pod didn't trigger scale-up: {detail}" if detail else "pod didn't trigger scale-up: "
        for pod in stuck:
            if self.told.get(pod["metadata"]["uid"]) != said:
                self.told[pod["metadata"]["uid"]] = said
                await self._event(remote, pod, "NotTriggerScaleUp", said)

    async def _resize(self, group: Group, count: int) -> None:
        cache = self.manager.cache("machinedeployments")
        path = self.manager.path("machinedeployments", group.deployment)
        self.manager.process.write(f"I clusterapi_controller.go:1] {group.name}: setting size to {count}")
        await cache.caught_up(await self.manager.context.client.patch(path, {"spec": {"replicas": count}}))

    async def _shrink(self, remote: Remote, groups: Sequence[Group], pods: Sequence[Object]) -> None:
        seen = set()
        for group in groups:
            spare = group.size - group.low
            for node in group.nodes:
                name = node["metadata"]["name"]
                mine = [pod for pod in pods if pod["spec"].get("nodeName") == name and not _ended(pod)]
                if spare <= 0 or not self._idle(remote, group, node, mine, pods):
                    continue
                seen.add(name)
                since = self.unneeded.setdefault(name, self.lived)
                await self._taint(remote, node, CANDIDATE, "PreferNoSchedule")
                wait = group.option("scaledownunneededtime", self.unneeded_seconds)
                if self.lived - since < wait or self.lived - self.grown < self.pause:
                    continue
                await self._remove(remote, group, node, mine)
                self.unneeded.pop(name, None)
                return  # one at a time
        for name in [name for name in self.unneeded if name not in seen]:
            del self.unneeded[name]
            if known := remote.nodes.get("", name):
                rest = [taint for taint in known["spec"].get("taints") or () if taint["key"] != CANDIDATE]
                await remote.client.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": rest or None}})

    def _idle(self, remote: Remote, group: Group, node: Object, mine: Sequence[Object], pods: Sequence[Object]) -> bool:
        if (node["metadata"].get("annotations") or {}).get(NOT_SAFE) == "true":
            return False
        if any(taint["key"] == DOOMED for taint in node["spec"].get("taints") or ()):
            return False
        if utilization(node, mine) >= group.option("scaledownutilizationthreshold", THRESHOLD) or not movable(mine):
            return False
        others = [
            other
            for other in remote.nodes.items.values()
            if other is not node and other["metadata"]["name"] not in self.unneeded
        ]
        placed: dict[str, list[Object]] = {
            other["metadata"]["name"]: [p for p in pods if p["spec"].get("nodeName") == other["metadata"]["name"]]
            for other in others
        }
        for pod in mine:
            if _stays(pod):
                continue
            place = next((o for o in others if _fits(pod, o, placed[o["metadata"]["name"]])), None)
            if place is None:
                return False
            placed[place["metadata"]["name"]].append(
                {**pod, "spec": {**pod["spec"], "nodeName": place["metadata"]["name"]}}
            )
        return True

    async def _taint(self, remote: Remote, node: Object, key: str, effect: str) -> None:
        taints = node["spec"].get("taints") or []
        if any(taint["key"] == key for taint in taints):
            return
        fresh = {"key": key, "value": str(int(self.manager.context.clock.now())), "effect": effect}
        path = f"/api/v1/nodes/{node['metadata']['name']}"
        await remote.nodes.caught_up(await remote.client.patch(path, {"spec": {"taints": [*taints, fresh]}}))

    async def _remove(self, remote: Remote, group: Group, node: Object, mine: Sequence[Object]) -> None:
        name = node["metadata"]["name"]
        moved = [pod for pod in mine if not _stays(pod)]
        fresh = remote.nodes.get("", name) or node
        await self._taint(remote, fresh, DOOMED, "NoSchedule")
        for pod in moved:
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {
                "name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}}  # fmt: skip
            at = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/eviction"
            try:
                await remote.client.create(at, body)
                await self._event(remote, pod, "ScaleDown", "deleting pod for node scale down")
            except Refused as error:
                if error.code != 404:
                    await self._event(
                        remote, pod, "ScaleDownFailed", "failed to delete pod for ScaleDown", kind="Warning"
                    )
                    return
        machine = next(
            machine for machine in self.manager.cache("machines").items.values()
            if machine["spec"].get("providerID") == node["spec"]["providerID"]
        )  # fmt: skip
        mark = {DELETE_MACHINE: str(self.manager.context.stamp()), "cluster.k8s.io/delete-machine": "true"}
        path = self.manager.path("machines", machine)
        fresh = await self.manager.context.client.patch(path, {"metadata": {"annotations": mark}})
        await self.manager.cache("machines").caught_up(fresh)
        await self._resize(group, group.size - 1)
        said = f"Scale-down: node {name} removed with drain" if moved else f"Scale-down: empty node {name} removed"
        await self._note(remote, "ScaleDown" if moved else "ScaleDownEmpty", said)
        await self._event(remote, node, "ScaleDown", "node removed by cluster autoscaler")

    async def _event(self, remote: Remote, about: Object, reason: str, said: str, *, kind: str = "Normal") -> None:
        inside = Context(remote.client, self.manager.context.clock, self.manager.context.world)
        await inside.event(about, reason, said, kind=kind, component=SOURCE)

    async def _note(self, remote: Remote, reason: str, said: str) -> None:
        about = {"kind": "ConfigMap", "metadata": {"name": "cluster-autoscaler-status", "namespace": "kube-system"}}
        self.manager.process.write(f"I scale_up.go:1] {said}")
        await self._event(remote, about, reason, said)

    async def _tell_status(self, remote: Remote, groups: Sequence[Group]) -> None:
        """Writes the status ConfigMap when anything but its time changed."""
        body = status_of(groups, list(self.unneeded))
        text = yaml.safe_dump(body, sort_keys=False)
        if text == self.status:
            return
        data = {"data": {"status": f"time: {self.manager.context.stamp()}\n{text}"}}
        name = "cluster-autoscaler-status"
        try:
            await remote.client.patch(f"{STATUS}/{name}", data)
        except Refused as error:
            if error.code != 404:
                raise
            await remote.client.create(STATUS, {"metadata": {"name": name}, **data})
        self.status = text


def _ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def status_of(groups: Sequence[Group], candidates: Sequence[str]) -> Object:
    """What the status ConfigMap tells of the cluster and of each group."""

    def health(nodes: Sequence[Object], target: int) -> Object:
        ready = sum(
            any(
                entry["type"] == "Ready" and entry["status"] == "True"
                for entry in node["status"].get("conditions") or ()
            )
            for node in nodes
        )
        counts = {"registered": {"total": len(nodes), "ready": ready, "notStarted": 0}, "longUnregistered": 0,
                  "unregistered": max(target - len(nodes), 0)}  # fmt: skip
        return {"status": "Healthy", "nodeCounts": counts}

    def activity(group: Group | None) -> Object:
        chosen = [group] if group else groups
        growing = any(one.size > len(one.nodes) for one in chosen)
        names = {node["metadata"]["name"] for one in chosen for node in one.nodes}
        found = [name for name in candidates if name in names]
        return {
            "scaleUp": {"status": "InProgress" if growing else "NoActivity"},
            "scaleDown": {"status": "CandidatesPresent" if found else "NoCandidates", "candidates": len(found)},
        }

    everything = [node for group in groups for node in group.nodes]
    rows = [
        {
            "name": group.name,
            "health": {
                **health(group.nodes, group.size),
                "cloudProviderTarget": group.size,
                "minSize": group.low,
                "maxSize": group.high,
            },
            **activity(group),
        }
        for group in groups
    ]
    whole = {"health": health(everything, sum(group.size for group in groups)), **activity(None)}
    return {"autoscalerStatus": "Running", "clusterWide": whole, "nodeGroups": rows}


async def run(context: Context, process: Process) -> None:
    """Works until cancelled. Raises Exit for a cloud provider that is not Cluster API."""
    given = flags(process.container)
    if given.get("cloud-provider") != "clusterapi":
        raise Exit(255, f"F cloud_provider_builder.go:1] Unknown cloud provider: {given.get('cloud-provider', '')}\n")
    found = dict(re.findall(r"(namespace|clusterName)=([^,\s]+)", given.get("node-group-auto-discovery", "")))
    space, name = found.get("namespace", process.namespace), found.get("clusterName", "")
    newer = context.cache("/apis/cluster.x-k8s.io/v1beta2/machinedeployments")
    await newer.synced.wait()
    version, contracts = api_of("v1.11.0" if newer.known else "v1.10.0")
    manager = Manager(context, process, version, contracts)
    process.write("I main.go:1] Cluster Autoscaler " + process.version.lstrip("v"))
    await context.synced(context.cache("/api/v1/secrets"))
    try:
        await _Scaler(manager, given, (space, name)).run()
    finally:
        await manager.remotes.close()


PROGRAMS = (Program("cluster-autoscaler", run),)
