"""Disruption budgets: how many pods may be taken away now, so that an eviction is granted or refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from .client import Key, Object, key_of
from .context import Context
from .matching import matches
from .reconcile import reconcile

BUDGETS = "/apis/policy/v1/poddisruptionbudgets"
SCALES = {
    "ReplicaSet": "/apis/apps/v1/replicasets",
    "Deployment": "/apis/apps/v1/deployments",
    "StatefulSet": "/apis/apps/v1/statefulsets",
}
FORGET_SECONDS = 120.0
"""After which an eviction that deleted nothing is forgotten."""


def scaled(value: Any, total: int) -> int:
    """A number, or a share of the total rounded up: "50%" of 3 is 2."""
    text = str(value)
    return math.ceil(int(text[:-1]) * total / 100) if text.endswith("%") else int(text)


def status(
    budget: Object, pods: Sequence[Object], expected: int, now: str, *, problem: str = ""
) -> Object:  # fmt: skip
    """The status that the budget's pods make; `expected` is how many their owners want together."""
    spec, before = budget["spec"], budget.get("status") or {}
    disrupted = _still_disrupted(before.get("disruptedPods") or {}, pods, now)
    healthy = sum(1 for pod in pods if _is_healthy(pod) and pod["metadata"]["name"] not in disrupted)
    if spec.get("maxUnavailable") is not None:
        desired = max(expected - scaled(spec["maxUnavailable"], expected), 0)
    else:
        minimum = spec.get("minAvailable", 1)
        if not str(minimum).endswith("%"):
            expected = len(pods)
        desired = scaled(minimum, expected)
    allowed = 0 if problem or expected <= 0 else max(healthy - desired, 0)
    reason = "SyncFailed" if problem else "SufficientPods" if allowed else "InsufficientPods"
    generation = budget["metadata"].get("generation", 1)
    row = {"type": "DisruptionAllowed", "status": str(allowed > 0), "reason": reason, "message": problem}
    row |= {"observedGeneration": generation, "lastTransitionTime": _since(before, row, now)}
    return {
        "disruptionsAllowed": allowed,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "observedGeneration": generation,
        "conditions": [row],
        **({"disruptedPods": disrupted} if disrupted else {}),
    }


def _since(before: Object, row: Object, now: str) -> str:
    for entry in before.get("conditions") or ():
        if entry["type"] == row["type"] and entry["status"] == row["status"]:
            return str(entry.get("lastTransitionTime") or now)
    return now


def _is_healthy(pod: Object) -> bool:
    rows = pod.get("status", {}).get("conditions") or ()
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in rows)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _still_disrupted(told: Object, pods: Iterable[Object], now: str) -> Object:
    present = {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
    return {name: at for name, at in told.items() if name in present and _seconds(now) - _seconds(at) < FORGET_SECONDS}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


async def run(context: Context) -> None:
    """Keeps the status of every budget until cancelled."""
    cache = context.cache(BUDGETS)
    owners = {kind: context.cache(path) for kind, path in SCALES.items()}

    async def work(key: Key, budget: Object | None) -> float | None:
        if budget is None or "deletionTimestamp" in budget["metadata"]:
            return None
        pods = _pods(context, budget)
        expected, problem = _expected(budget, pods, owners)
        wanted = status(budget, pods, expected, context.stamp(), problem=problem)
        before = budget.get("status") or {}
        if {**before, "disruptedPods": before.get("disruptedPods") or {}} != {"disruptedPods": {}, **wanted}:
            namespace, name = key
            path = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{name}/status"
            # Conditional on what was judged: an eviction granted meanwhile must not be forgotten.
            await cache.caught_up(await context.client.update(path, {**budget, "status": wanted}))
        return FORGET_SECONDS if wanted.get("disruptedPods") else None

    def of_pod(pod: Object) -> list[Key]:
        space, labels = pod["metadata"].get("namespace", ""), pod["metadata"].get("labels") or {}
        return [
            key_of(item) for item in cache.items.values()
            if item["metadata"]["namespace"] == space and matches(item["spec"].get("selector"), labels)
        ]  # fmt: skip

    def of_owner(owner: Object) -> list[Key]:
        space = owner["metadata"].get("namespace", "")
        return [key for key in cache.items if key[0] == space]

    also = [(context.pods, of_pod), *((item, of_owner) for item in owners.values())]
    await reconcile(context, cache, work, also=also, workers=2)


def _pods(context: Context, budget: Object) -> list[Object]:
    space, selector = budget["metadata"]["namespace"], budget["spec"].get("selector")
    return [
        pod for key, pod in context.pods.items.items()
        if key[0] == space and pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}
        and matches(selector, pod["metadata"].get("labels") or {})
    ]  # fmt: skip


def _expected(budget: Object, pods: Sequence[Object], owners: dict[str, Any]) -> tuple[int, str]:
    """(how many pods their owners want together, what makes that impossible to say)."""
    if budget["spec"].get("maxUnavailable") is None and not str(budget["spec"].get("minAvailable", "")).endswith("%"):
        return len(pods), ""
    found: dict[str, int] = {}
    for pod in pods:
        reference = next((o for o in pod["metadata"].get("ownerReferences") or () if o.get("controller")), None)
        if reference is None:
            continue
        space = pod["metadata"]["namespace"]
        item = owners[reference["kind"]].get(space, reference["name"]) if reference["kind"] in owners else None
        if item is None:
            problem = f"{reference['kind'].lower()}s does not implement the scale subresource"
            return 0, "" if reference["kind"] in owners else problem
        above = next((o for o in item["metadata"].get("ownerReferences") or () if o["kind"] == "Deployment"), None)
        item = (owners["Deployment"].get(space, above["name"]) if above else None) or item
        found[item["metadata"]["uid"]] = item["spec"].get("replicas", 1)
    return sum(found.values()), ""
