"""The scheduler: binds pending pods to the emptiest node that fits, and says why none does."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .client import STRATEGIC, Key, Object, Refused, key_of
from .context import Context
from .quantities import number, requests_of

log = logging.getLogger(__name__)

NAME = "default-scheduler"
RETRY_SECONDS = 60.0


async def run(context: Context) -> None:
    """Schedules until cancelled: each unbound pod at once, and the unschedulable again whenever something changed."""
    queue: asyncio.Queue[Key] = asyncio.Queue()
    waiting: set[Key] = set()

    def pod_changed(kind: str, pod: Object) -> None:
        key = key_of(pod)
        if kind != "DELETED" and _wants_a_node(pod):
            if key not in waiting:
                queue.put_nowait(key)
        elif kind == "DELETED" or pod["status"].get("phase") in {"Succeeded", "Failed"}:
            _retry(queue, waiting - {key})
            waiting.discard(key)

    def node_changed(_kind: str, node: Object) -> None:
        state = _scheduling_state(node)
        if seen.get(node["metadata"]["name"]) != state:
            seen[node["metadata"]["name"]] = state
            _retry(queue, waiting)

    seen: dict[str, Any] = {}
    context.pods.handlers.append(pod_changed)
    context.nodes.handlers.append(node_changed)
    await context.synced()
    for pod in list(context.pods.items.values()):
        pod_changed("ADDED", pod)
    assumed: dict[Key, str] = {}
    while True:
        key = await queue.get()
        found = context.pods.items.get(key)
        if found is None or not _wants_a_node(found) or key in assumed:
            continue
        pod = found
        for known in [entry for entry in assumed if _bound(context.pods.items.get(entry))]:
            del assumed[known]
        node, refusals = choose(pod, context.nodes.items.values(), context.pods.items.values(), assumed)
        if node is None:
            waiting.add(key)
            await _report(context, pod, explain(refusals))
            continue
        waiting.discard(key)
        assumed[key] = node
        if not await _bind(context, pod, node):
            assumed.pop(key, None)


def _bound(pod: Object | None) -> bool:
    return pod is None or bool(pod["spec"].get("nodeName"))


def _retry(queue: asyncio.Queue[Key], keys: Iterable[Key]) -> None:
    for key in list(keys):
        queue.put_nowait(key)


def _scheduling_state(node: Object) -> Any:
    spec, labels = node["spec"], node["metadata"].get("labels")
    return (spec.get("unschedulable"), str(spec.get("taints")), str(labels), str(node["status"].get("allocatable")))


def _wants_a_node(pod: Object) -> bool:
    spec = pod["spec"]
    return (
        not spec.get("nodeName")
        and spec.get("schedulerName", NAME) == NAME
        and not spec.get("schedulingGates")
        and "deletionTimestamp" not in pod["metadata"]
        and pod.get("status", {}).get("phase", "Pending") == "Pending"
    )


def choose(
    pod: Object, nodes: Iterable[Object], pods: Iterable[Object], assumed: Mapping[Key, str]
) -> tuple[str | None, list[str]]:
    """(the node for the pod or None, why each other node was refused)."""
    bound: dict[str, list[Object]] = {}
    for other in pods:
        node = other["spec"].get("nodeName") or assumed.get(key_of(other))
        if node and other.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            bound.setdefault(node, []).append(other)
    fits: list[tuple[float, str]] = []
    refusals: list[str] = []
    for node in nodes:
        name = node["metadata"]["name"]
        why = refusal(pod, node, bound.get(name, ()))
        if why:
            refusals.append(why)
        else:
            fits.append((_score(pod, node, bound.get(name, ())), name))
    return (min(fits)[1] if fits else None), refusals


def refusal(pod: Object, node: Object, others: Sequence[Object]) -> str:
    """Why the pod cannot go there, in the scheduler's words; empty when it can."""
    spec = pod["spec"]
    tolerations = spec.get("tolerations") or ()
    if node["spec"].get("unschedulable") and not _tolerated(
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}, tolerations
    ):
        return "node(s) were unschedulable"
    if not _selected(spec, node):
        return "node(s) didn't match Pod's node affinity/selector"
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] in {"NoSchedule", "NoExecute"} and not _tolerated(taint, tolerations):
            value = taint.get("value") or ""
            return f"node(s) had untolerated taint {{{taint['key']}: {value}}}"
    return _lacking(pod, node, others)


def _tolerated(taint: Mapping[str, str], tolerations: Iterable[Mapping[str, str]]) -> bool:
    for entry in tolerations:
        if entry.get("effect") and entry["effect"] != taint["effect"]:
            continue
        if entry.get("operator") == "Exists" and entry.get("key", taint["key"]) in {taint["key"], ""}:
            return True
        if entry.get("key") == taint["key"] and entry.get("value", "") == taint.get("value", ""):
            return True
    return False


def _selected(spec: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels", {})
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    fields = {"metadata.name": node["metadata"]["name"]}
    return any(
        all(_expression(entry, labels) for entry in term.get("matchExpressions") or ())
        and all(_expression(entry, fields) for entry in term.get("matchFields") or ())
        for term in required["nodeSelectorTerms"]
    )


def _expression(entry: Object, labels: Mapping[str, str]) -> bool:
    key, operator, values = entry["key"], entry["operator"], entry.get("values") or []
    here = labels.get(key)
    if operator == "In":
        return here in values
    if operator == "NotIn":
        return here not in values
    if operator == "Exists":
        return here is not None
    if operator == "DoesNotExist":
        return here is None
    if here is None or not here.lstrip("-").isdigit():
        return False
    return int(here) > int(values[0]) if operator == "Gt" else int(here) < int(values[0])


def _lacking(pod: Object, node: Object, others: Sequence[Object]) -> str:
    allocatable = node["status"].get("allocatable", {})
    if len(others) >= number(allocatable.get("pods", "110")):
        return "Too many pods"
    for name, wanted in requests_of(pod).items():
        used = sum(requests_of(other).get(name, 0.0) for other in others)
        if wanted and used + wanted > number(allocatable.get(name, "0")) + 1e-9:
            return f"Insufficient {name}"
    return ""


def _score(pod: Object, node: Object, others: Sequence[Object]) -> float:
    """Lower is better: CPU share after placement, and a penalty for each sibling that is there already."""
    allocatable = number(node["status"].get("allocatable", {}).get("cpu", "1")) or 1.0
    used = sum(requests_of(other).get("cpu", 0.0) for other in [*others, pod])
    owners = {entry["uid"] for entry in pod["metadata"].get("ownerReferences") or ()}
    siblings = sum(
        1 for other in others if owners & {entry["uid"] for entry in other["metadata"].get("ownerReferences") or ()}
    )
    return used / allocatable + siblings


def explain(refusals: Sequence[str]) -> str:
    """The message of FailedScheduling, as the scheduler writes it."""
    if not refusals:
        return "no nodes available to schedule pods"
    total = len(refusals)
    counted = ", ".join(f"{count} {why}" for why, count in sorted(Counter(refusals).items()))
    helpless = sum(1 for why in refusals if not why.startswith("Insufficient"))
    victims = total - helpless
    parts = [f"{victims} No preemption victims found for incoming pod"] if victims else []
    parts += [f"{helpless} Preemption is not helpful for scheduling"] if helpless else []
    return f"0/{total} nodes are available: {counted}. preemption: 0/{total} nodes are available: {', '.join(parts)}."


async def _bind(context: Context, pod: Object, node: str) -> bool:
    namespace, name = key_of(pod)
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    try:
        await context.client.create(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", binding)
    except Refused as error:
        log.debug("binding %s/%s to %s: %s", namespace, name, node, error)
        return False
    message = f"Successfully assigned {namespace}/{name} to {node}"
    await context.event(pod, "Scheduled", message, component=NAME)
    return True


async def _report(context: Context, pod: Object, message: str) -> None:
    """Writes PodScheduled=False and its event, once for each new reason."""
    for entry in pod.get("status", {}).get("conditions") or ():
        if entry["type"] == "PodScheduled" and entry.get("message") == message:
            return
    namespace, name = key_of(pod)
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": context.stamp(),
    }
    body = {"status": {"conditions": [condition]}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    try:
        await context.client.patch(path, body, content_type=STRATEGIC)
    except Refused as error:
        log.debug("status of %s/%s: %s", namespace, name, error)
        return
    await context.event(pod, "FailedScheduling", message, kind="Warning", component=NAME)
