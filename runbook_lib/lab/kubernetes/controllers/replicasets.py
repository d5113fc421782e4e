"""ReplicaSets: as many pods as they ask for, adopted or made, and the right ones deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from .announce import Announcer
from .client import Key, Object, Refused
from .context import Context
from .pods_of import (
    Orphans,
    claim,
    condition_of,
    controller_of,
    delete_pods,
    is_active,
    is_available,
    is_ready,
    matches,
    owner_keys,
    pod_from,
    pods_path,
    put_status,
    ranked_for_deletion,
    seconds_of,
    seen,
    set_condition,
    slow_start,
    without_condition,
)
from .reconcile import reconcile
from .timers import Timers

PATH = "/apis/apps/v1/replicasets"
BURST = 500
COMPONENT = "replicaset-controller"


async def run(context: Context) -> None:
    """Keeps every ReplicaSet's pods until cancelled."""
    sets, pods = context.cache(PATH), context.pods
    await context.synced(sets, pods)
    orphans, told, timers = Orphans(pods), Announcer(context, COMPONENT), Timers(context)

    async def work(key: Key, item: Object | None) -> float | None:
        if item is None:
            timers.forget(key)
            return None
        if (size := item["spec"].get("replicas", 1)) > 10:  # many changes at once are one change of the counts
            await asyncio.sleep(min(0.1, size / 2000))
            item = sets.items.get(key)
            if item is None:
                return None
        active = [pod for pod in await claim(context, item, pods, orphans, "pods") if is_active(pod)]
        refused, why = None, ""
        if "deletionTimestamp" not in item["metadata"]:
            refused, why = await _manage(context, item, active, told)
            active = [pod for pod in pods.owned_by(item) if _mine(pod, item) and is_active(pod)]
        await _tell_status(context, item, active, timers, str(refused.message) if refused else "", why)
        if refused is not None:
            raise refused
        return None

    also = [(pods, owner_keys("ReplicaSet")), (pods, orphans.keys_for(sets)), (timers, Timers.keys)]
    await reconcile(context, sets, work, also=also, workers=5)


def _mine(pod: Object, item: Object) -> bool:
    owner = controller_of(pod)
    return owner is not None and owner["uid"] == item["metadata"]["uid"]


async def _manage(
    context: Context, item: Object, active: Sequence[Object], told: Announcer
) -> tuple[Refused | None, str]:
    """(what was refused, the reason of the condition that says so) after making or deleting what differs."""
    wanted = item["spec"].get("replicas", 1)
    missing = wanted - len(active)
    if missing > 0:
        body = pod_from(item["spec"]["template"], item)

        async def make(_number: int) -> Object:
            try:
                made = await context.client.create(pods_path(item), body)
            except Refused as error:
                if "because it is being terminated" not in error.message:
                    told.say(item, "FailedCreate", f"Error creating: {error.message}", kind="Warning")
                raise
            told.say(item, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")
            return made

        made, refused = await slow_start(min(missing, BURST), make)
        await seen(context.pods, made)
        if refused is not None and "because it is being terminated" in refused.message:
            return None, ""
        return refused, "FailedCreate"
    if missing < 0:
        order = ranked_for_deletion(active, _siblings(context, item))
        gone, refused = await delete_pods(context, order[: min(-missing, BURST)])
        for pod in gone:
            told.say(item, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
        if refused is not None:
            told.say(item, "FailedDelete", f"Error deleting: {refused.message}", kind="Warning")
        return refused, "FailedDelete"
    return None, ""


def _siblings(context: Context, item: Object) -> list[Object]:
    """The pods of all sets that share the owner."""
    owner = controller_of(item)
    if owner is None:
        return context.pods.owned_by(item)
    return [pod for other in context.cache(PATH).owned_by(owner["uid"]) for pod in context.pods.owned_by(other)]


async def _tell_status(
    context: Context, item: Object, active: Sequence[Object], timers: Timers, refusal: str, why: str
) -> None:
    key = (item["metadata"]["namespace"], item["metadata"]["name"])
    seconds = item["spec"].get("minReadySeconds", 0)
    available = available_of(key, active, seconds, timers, context.clock.now())
    status = status_of(item, active, available, stamp=context.stamp(), refusal=refusal, why=why)
    await put_status(
        context, f"/apis/apps/v1/namespaces/{key[0]}/replicasets/{key[1]}", item, status, context.cache(PATH)
    )


def available_of(key: Key, pods: Iterable[Object], seconds: float, timers: Timers, now: float) -> int:
    """How many of the pods have been ready for long enough; the key is called again when more are."""
    if not seconds:
        return sum(1 for pod in pods if is_ready(pod))
    return sum(1 for pod in pods if available_now(key, pod, seconds, timers, now))


def available_now(key: Key, pod: Object, seconds: float, timers: Timers, now: float) -> bool:
    """Whether the pod has been ready for long enough; the key is called again when it has."""
    if not is_ready(pod) or not seconds:
        return is_ready(pod)
    if is_available(pod, seconds, now):
        return True
    since = seconds_of((condition_of(pod, "Ready") or {}).get("lastTransitionTime")) or now
    return timers.passed(key, f"available/{pod['metadata']['uid']}", since, seconds)


def status_of(
    item: Object, active: Sequence[Object], available: int, *, stamp: str, refusal: str = "", why: str = ""
) -> Object:
    """The status a ReplicaSet with these active pods has. `refusal` is what the API server said of the last try."""
    labels = {"matchLabels": item["spec"]["template"]["metadata"].get("labels") or {}}
    before = item.get("status") or {}
    counts = {
        "replicas": len(active),
        "fullyLabeledReplicas": sum(1 for pod in active if matches(labels, pod["metadata"].get("labels"))),
        "readyReplicas": sum(1 for pod in active if is_ready(pod)),
        "availableReplicas": available,
    }
    status: Object = {key: value for key, value in counts.items() if value or key == "replicas"}
    status["observedGeneration"] = item["metadata"].get("generation", 1)
    conditions = list(before.get("conditions") or ())
    failing = any(entry["type"] == "ReplicaFailure" for entry in conditions)
    if refusal and not failing:
        row = {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": stamp, "reason": why}
        conditions = set_condition(conditions, {**row, "message": refusal})
    elif not refusal and failing:
        conditions = without_condition(conditions, "ReplicaFailure")
    if conditions:
        status["conditions"] = conditions
    if "terminatingReplicas" in before:
        status["terminatingReplicas"] = before["terminatingReplicas"]
    return status
