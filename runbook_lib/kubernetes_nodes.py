"""Nodes, pods and workloads as rows, and the arithmetic of their requests."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from runbook_lib import errors
from runbook_lib.facts import KubeNode, Pod, Taint, Workload
from runbook_lib.kubernetes_reading import Object, Reader

QUANTITY = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?P<suffix>[eE][+-]?\d+|[KMGTPE]i|[numkMGTPE]?)")
SUFFIXES = {
    "": Decimal(1),
    **{
        letter: Decimal(10) ** power
        for letter, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}
FINISHED = {"Succeeded", "Failed"}
ROLE_LABEL = "node-role.kubernetes.io/"
WORST_FIRST = (
    "Evicted",
    "NodeLost",
    "OOMKilled",
    "CrashLoopBackOff",
    "RunContainerError",
    "CreateContainerError",
    "CreateContainerConfigError",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "ErrImagePull",
    "Error",
    "Unschedulable",
    "ContainerCannotRun",
    "DeadlineExceeded",
)
ON_THE_WAY = ("Terminating", "PodInitializing", "ContainerCreating", "Completed")


def quantity(text: str | int | float | None) -> Decimal:
    """A Kubernetes quantity as a number: "250m" is 0.25, "1Gi" 1073741824, "1e3" and "1k" 1000; None is 0."""
    if text is None:
        return Decimal(0)
    found = QUANTITY.fullmatch(str(text).strip())
    if not found:
        raise errors.BadAnswer("Kubernetes gave something else where a quantity belongs", repr(text))
    number, suffix = Decimal(found["number"]), found["suffix"]
    if suffix[:1] in {"e", "E"} and len(suffix) > 1 and suffix != "Ei":
        return number * Decimal(10) ** int(suffix[1:])
    return number * SUFFIXES[suffix]


@dataclass(frozen=True)
class Requests:
    """What a pod reserves of its node."""

    cpus: Decimal = Decimal(0)
    memory: Decimal = Decimal(0)

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.cpus + other.cpus, self.memory + other.memory)

    def larger(self, other: Requests) -> Requests:
        """The larger of each."""
        return Requests(max(self.cpus, other.cpus), max(self.memory, other.memory))


def requests_of(pod: Mapping[str, Any]) -> Requests:
    """What the scheduler counts for a pod: the larger of its containers together and of each init container alone.

    Init containers that keep running (restartPolicy Always) count with both from where they stand. What the pod asks
    for as a whole takes the place of its containers' sum; the overhead of its runtime comes on top.
    """
    spec = pod.get("spec") or {}
    beside = peak = Requests()
    for container in spec.get("initContainers") or []:
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":
            beside += asked
            peak = peak.larger(beside)
        else:
            peak = peak.larger(asked + beside)
    together = beside
    for container in spec.get("containers") or []:
        together += _asked(container)
    total = together.larger(peak)
    whole = (spec.get("resources") or {}).get("requests") or {}
    total = Requests(
        quantity(whole["cpu"]) if "cpu" in whole else total.cpus,
        quantity(whole["memory"]) if "memory" in whole else total.memory,
    )
    return total + _amounts(spec.get("overhead") or {})


def _asked(container: Mapping[str, Any]) -> Requests:
    return _amounts((container.get("resources") or {}).get("requests") or {})


def _amounts(found: Mapping[str, Any]) -> Requests:
    return Requests(quantity(found.get("cpu")), quantity(found.get("memory")))


def nodes(k8s: Reader) -> list[KubeNode]:
    """Every Node by name, with the requests of its pods; all pods are listed once. Finished pods do not count."""
    bound: dict[str, list[Object]] = defaultdict(list)
    for pod in k8s.list("/api/v1/pods"):
        node = (pod.get("spec") or {}).get("nodeName")
        if node and (pod.get("status") or {}).get("phase") not in FINISHED:
            bound[node].append(pod)
    found = sorted(k8s.list("/api/v1/nodes"), key=lambda node: node["metadata"]["name"])
    return [_node(node, bound[node["metadata"]["name"]]) for node in found]


def _node(node: Mapping[str, Any], bound: list[Object]) -> KubeNode:
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    labels, info = metadata.get("labels") or {}, status.get("nodeInfo") or {}
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or []}
    room = status.get("allocatable") or {}
    asked = sum((requests_of(pod) for pod in bound), Requests())
    addresses = [entry["address"] for entry in status.get("addresses") or [] if entry["type"] == "InternalIP"]
    return KubeNode(
        name=metadata["name"],
        ready=conditions.pop("Ready", "Unknown"),
        conditions=conditions,
        roles=tuple(sorted(label[len(ROLE_LABEL) :] for label in labels if label.startswith(ROLE_LABEL))),
        kubelet_version=info.get("kubeletVersion", ""),
        runtime=info.get("containerRuntimeVersion", ""),
        os_image=info.get("osImage", ""),
        internal_ip=addresses[0] if addresses else None,
        provider_id=spec.get("providerID", ""),
        system_uuid=info.get("systemUUID", "").lower(),
        unschedulable=bool(spec.get("unschedulable")),
        taints=tuple(Taint(t["key"], t.get("value", ""), t["effect"]) for t in spec.get("taints") or []),
        labels=labels,
        allocatable_cpus=float(quantity(room.get("cpu"))),
        allocatable_memory_bytes=int(quantity(room.get("memory"))),
        allocatable_pods=int(quantity(room.get("pods"))),
        requested_cpus=float(asked.cpus),
        requested_memory_bytes=int(asked.memory),
        pods=len(bound),
    )


def pods(k8s: Reader, namespace: str | None = None) -> list[Pod]:
    """Every pod by namespace and name; of one namespace if named."""
    path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
    return sorted((_pod(pod) for pod in k8s.list(path)), key=lambda pod: (pod.namespace, pod.name))


def _pod(pod: Mapping[str, Any]) -> Pod:
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    inits = {c["name"]: c.get("restartPolicy") for c in spec.get("initContainers") or []}
    every = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    lasting = [entry for entry in every if inits.get(entry["name"], "Always") == "Always"]
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    reasons, messages = _reasons(every, conditions, metadata, status)
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        phase=status.get("phase", "Unknown"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        restarts=sum(int(entry.get("restartCount") or 0) for entry in lasting),
        reasons=reasons,
        labels=metadata.get("labels") or {},
        owner=next(
            (f"{o['kind']}/{o['name']}" for o in metadata.get("ownerReferences") or [] if o.get("controller")), ""
        ),
        message=next(filter(None, messages), ""),
    )


def _reasons(
    statuses: Iterable[Mapping[str, Any]],
    conditions: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, Any],
    status: Mapping[str, Any],
) -> tuple[tuple[str, ...], list[str]]:
    told: list[tuple[str, str]] = []
    if status.get("reason"):
        told.append((status["reason"], status.get("message", "")))
    if metadata.get("deletionTimestamp"):
        told.append(("Terminating", ""))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        told.append((scheduled.get("reason") or "Unschedulable", scheduled.get("message", "")))
    for entry in statuses:
        for state in (entry.get("state") or {}, entry.get("lastState") or {}):
            for kind in ("waiting", "terminated"):
                found = state.get(kind) or {}
                if found.get("reason") and found["reason"] != "Completed":
                    told.append((found["reason"], found.get("message", "")))
    told.sort(key=lambda pair: _gravity(pair[0]))
    return tuple(dict.fromkeys(reason for reason, _ in told)), [message for _, message in told]


def _gravity(reason: str) -> int:
    """Known failures first, then what this list does not know, then what is only on its way."""
    if reason in WORST_FIRST:
        return WORST_FIRST.index(reason)
    return len(WORST_FIRST) + (1 + ON_THE_WAY.index(reason) if reason in ON_THE_WAY else 0)


def workloads(k8s: Reader, namespace: str | None = None) -> list[Workload]:
    """Every Deployment, DaemonSet and StatefulSet, by kind, namespace and name; of one namespace if named."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    rows = [
        _workload(kind, entry)
        for kind, plural in (
            ("DaemonSet", "daemonsets"),
            ("Deployment", "deployments"),
            ("StatefulSet", "statefulsets"),
        )
        for entry in k8s.list(f"/apis/apps/v1{scope}/{plural}")
    ]
    return sorted(rows, key=lambda row: (row.kind, row.namespace, row.name))


def _workload(kind: str, entry: Mapping[str, Any]) -> Workload:
    metadata, spec, status = entry["metadata"], entry.get("spec") or {}, entry.get("status") or {}
    if kind == "DaemonSet":
        desired, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
    else:
        desired, ready = spec.get("replicas", 1), status.get("readyReplicas", 0)
    template = (spec.get("template") or {}).get("spec") or {}
    return Workload(
        kind=kind,
        namespace=metadata["namespace"],
        name=metadata["name"],
        desired=int(desired or 0),
        ready=int(ready or 0),
        images=tuple(container["image"] for container in template.get("containers") or []),
        labels=metadata.get("labels") or {},
    )
