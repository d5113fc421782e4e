"""Deployments: ReplicaSets of the old and new template, rolled over as the strategy allows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .announce import Announcer
from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .pods_of import (
    Orphans,
    claim,
    condition_of,
    controller_of,
    is_ended,
    owner_keys,
    owner_reference,
    seconds_of,
    set_condition,
    share_of,
    template_hash,
    without_condition,
)
from .reconcile import reconcile
from .replicasets import PATH as SETS
from .timers import Timers

PATH = "/apis/apps/v1/deployments"
COMPONENT = "deployment-controller"
HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MOST = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        REVISION,
        HISTORY,
        DESIRED,
        MOST,
        "deprecated.deployment.rollback.to",
    }
)
_NO_DEADLINE = 2**31 - 1
SHORTEST_DEADLINE = 5.0  # real seconds: requests take real time, however fast the lab's clock runs


# --- judgement ----------------------------------------------------------------------------------------------------


def same_template(one: Object, other: Object) -> bool:
    """Whether two pod templates are the same but for the hash label."""
    return _bare(one) == _bare(other)


def _bare(template: Object) -> Object:
    metadata = {key: value for key, value in (template.get("metadata") or {}).items() if value and key != "labels"}
    labels = (template.get("metadata") or {}).get("labels") or {}
    return {**template, "metadata": {**metadata, "labels": {k: v for k, v in labels.items() if k != HASH}}}


def born(item: Object) -> tuple[float, str]:
    """What sorts objects by age, the oldest first."""
    return seconds_of(item["metadata"].get("creationTimestamp")), item["metadata"]["name"]


def new_set(item: Object, sets: Iterable[Object]) -> Object | None:
    """The ReplicaSet that has the Deployment's present template; the oldest of several."""
    template = item["spec"]["template"]
    return next((rs for rs in sorted(sets, key=born) if same_template(rs["spec"]["template"], template)), None)


def revision_of(item: Object) -> int:
    """The revision an object is annotated with; 0 for none."""
    text = (item["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def rolls(item: Object) -> bool:
    """Whether the strategy is RollingUpdate."""
    return bool((item["spec"].get("strategy") or {}).get("type", "RollingUpdate") == "RollingUpdate")


def surge_of(item: Object) -> int:
    """How many pods more than wanted a roll-out may have."""
    return _fences(item)[0] if rolls(item) else 0


def unavailable_of(item: Object) -> int:
    """How many pods a roll-out may lack."""
    wanted = wanted_of(item)
    return min(_fences(item)[1], wanted) if rolls(item) and wanted else 0


def _fences(item: Object) -> tuple[int, int]:
    rolling = (item["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    surge = share_of(rolling.get("maxSurge", "25%"), wanted_of(item), up=True)
    lacking = share_of(rolling.get("maxUnavailable", "25%"), wanted_of(item), up=False)
    return surge, lacking if surge or lacking else 1  # neither would never get anywhere


def wanted_of(item: Object) -> int:
    """spec.replicas."""
    return int(item["spec"].get("replicas", 1))


def _spec_sum(sets: Iterable[Object]) -> int:
    return sum(wanted_of(rs) for rs in sets)


def _sum(sets: Iterable[Object], count: str) -> int:
    return sum((rs.get("status") or {}).get(count, 0) for rs in sets)


def size_of_new(item: Object, sets: Sequence[Object], new: Object | None) -> int:
    """How many pods the new ReplicaSet may ask for now."""
    present = wanted_of(new) if new else 0
    if not rolls(item):
        return wanted_of(item)
    room = wanted_of(item) + surge_of(item) - _spec_sum(sets)
    if room <= 0:
        return present
    return present + min(room, wanted_of(item) - present)


def shrink_old(item: Object, sets: Sequence[Object], new: Object) -> dict[str, int]:
    """The sizes that old ReplicaSets get now: what is unhealthy goes first, then what the budget allows."""
    old = sorted((rs for rs in sets if rs is not new and wanted_of(rs)), key=born)
    if not old:
        return {}
    least = wanted_of(item) - unavailable_of(item)
    lacking = wanted_of(new) - _sum([new], "availableReplicas")
    may_go = _spec_sum(sets) - least - lacking
    if may_go <= 0:
        return {}
    sizes = {rs["metadata"]["name"]: wanted_of(rs) for rs in old}
    gone = 0
    for rs in old:
        sick = wanted_of(rs) - _sum([rs], "availableReplicas")
        count = min(may_go - gone, sick)
        if count > 0:
            sizes[rs["metadata"]["name"]] -= count
            gone += count
    budget = _sum(sets, "availableReplicas") - least
    for rs in old:
        name = rs["metadata"]["name"]
        count = min(max(budget, 0), sizes[name])
        sizes[name] -= count
        budget -= count
    return {rs["metadata"]["name"]: sizes[rs["metadata"]["name"]] for rs in old
            if sizes[rs["metadata"]["name"]] != wanted_of(rs)}  # fmt: skip


def proportional(item: Object, sets: Sequence[Object]) -> dict[str, int]:
    """The sizes of the active ReplicaSets when a Deployment is scaled amid a roll-out."""
    active = [rs for rs in sets if wanted_of(rs)]
    allowed = wanted_of(item) + surge_of(item) if wanted_of(item) else 0
    to_add = allowed - _spec_sum(active)
    if to_add > 0:
        active.sort(key=lambda rs: (-wanted_of(rs), -born(rs)[0], rs["metadata"]["name"]))
    else:
        active.sort(key=lambda rs: (-wanted_of(rs), *born(rs)))
    added, sizes = 0, {}
    for rs in active:
        share = _proportion(item, rs, to_add, added) if to_add else 0
        sizes[rs["metadata"]["name"]] = wanted_of(rs) + share
        added += share
    if active and to_add:
        first = active[0]["metadata"]["name"]
        sizes[first] = max(0, sizes[first] + to_add - added)
    return sizes


def _proportion(item: Object, rs: Object, to_add: int, added: int) -> int:
    allowed = to_add - added
    if not wanted_of(item):
        share = -wanted_of(rs)
    else:
        notes = rs["metadata"].get("annotations") or {}
        before = int(notes.get(MOST) or (item.get("status") or {}).get("replicas") or 0)
        if not before:
            return 0
        exact = wanted_of(rs) * (wanted_of(item) + surge_of(item)) / before
        share = math.floor(exact + 0.5) - wanted_of(rs)
    return min(share, allowed) if to_add > 0 else max(share, allowed)


def status_of(item: Object, sets: Sequence[Object], new: Object | None, *, stamp: str) -> Object:
    """The counts and the Available condition that follow from the ReplicaSets."""
    before = item.get("status") or {}
    available = _sum(sets, "availableReplicas")
    counts = {
        "replicas": _sum(sets, "replicas"),
        "updatedReplicas": _sum([new] if new else [], "replicas"),
        "readyReplicas": _sum(sets, "readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, _spec_sum(sets) - available),
    }
    status: Object = {"observedGeneration": item["metadata"].get("generation", 1)}
    status |= {key: value for key, value in counts.items() if value}
    if before.get("collisionCount"):
        status["collisionCount"] = before["collisionCount"]
    words = (
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        if available >= wanted_of(item) - unavailable_of(item)
        else ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    )
    status["conditions"] = set_condition(before.get("conditions"), condition("Available", *words, stamp=stamp))
    return status


def condition(kind: str, status: str, reason: str, message: str, *, stamp: str) -> Object:
    """A condition of a Deployment."""
    return {
        "type": kind,
        "status": status,
        "lastUpdateTime": stamp,
        "lastTransitionTime": stamp,
        "reason": reason,
        "message": message,
    }


def has_deadline(item: Object) -> bool:
    """Whether the Deployment's progress is watched."""
    return item["spec"].get("progressDeadlineSeconds", _NO_DEADLINE) != _NO_DEADLINE


def is_complete(item: Object, status: Object) -> bool:
    """Whether every pod is of the new template and available."""
    wanted = wanted_of(item)
    return (
        all(status.get(key, 0) == wanted for key in ("updatedReplicas", "replicas", "availableReplicas"))
        and status.get("observedGeneration", 0) >= item["metadata"].get("generation", 1)
    )  # fmt: skip


def is_progressing(before: Object, status: Object) -> bool:
    """Whether there are more new, fewer old, or more ready pods than before."""
    old_before = before.get("replicas", 0) - before.get("updatedReplicas", 0)
    old_now = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    return old_now < old_before or any(
        status.get(key, 0) > before.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )


def progress_of(item: Object, status: Object, new: Object | None, *, late: bool, stamp: str) -> Object:
    """The status with its Progressing condition brought up to date."""
    conditions = status.get("conditions") or []
    if not has_deadline(item):
        return status | {"conditions": without_condition(conditions, "Progressing")}
    now = condition_of(status | {"status": status}, "Progressing")
    settled = now is not None and now.get("reason") == "NewReplicaSetAvailable"
    if settled and status.get("replicas", 0) == status.get("updatedReplicas", 0):
        return status
    what = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{item["metadata"]["name"]}"'
    if is_complete(item, status):
        row = condition("Progressing", "True", "NewReplicaSetAvailable", f"{what} has successfully progressed.",
                        stamp=stamp)  # fmt: skip
        return status | {"conditions": set_condition(conditions, row)}
    if is_progressing(item.get("status") or {}, status):
        row = condition("Progressing", "True", "ReplicaSetUpdated", f"{what} is progressing.", stamp=stamp)
        if now is not None and now["status"] == "True":
            row["lastTransitionTime"] = now["lastTransitionTime"]
        return status | {"conditions": [*without_condition(conditions, "Progressing"), row]}
    if late:
        row = condition("Progressing", "False", "ProgressDeadlineExceeded", f"{what} has timed out progressing.",
                        stamp=stamp)  # fmt: skip
        return status | {"conditions": set_condition(conditions, row)}
    return status


def failure_of(status: Object, sets: Sequence[Object], new: Object | None) -> Object:
    """The status with the new ReplicaSet's failure, or an old one's, or none."""
    found = next((row for rs in ([new] if new else []) if (row := condition_of(rs, "ReplicaFailure"))), None)
    if found is None:
        found = next((row for rs in sets if (row := condition_of(rs, "ReplicaFailure"))), None)
    conditions = status.get("conditions") or []
    if found is None:
        return status | {"conditions": without_condition(conditions, "ReplicaFailure")}
    at = found["lastTransitionTime"]
    row = condition("ReplicaFailure", found["status"], found["reason"], found.get("message", ""), stamp=at)
    return status | {"conditions": set_condition(conditions, row)}


def annotated(item: Object, rs: Object, revision: int, *, exists: bool) -> dict[str, str]:
    """The annotations of the new ReplicaSet: the Deployment's own, the revision and its history, the sizes."""
    notes = dict(rs["metadata"].get("annotations") or {})
    notes |= {k: v for k, v in (item["metadata"].get("annotations") or {}).items() if k not in _NOT_COPIED}
    before = notes.get(REVISION, "")
    if revision > (int(before) if before.isdigit() else 0):
        notes[REVISION] = str(revision)
        if before:
            history = notes.get(HISTORY, "")
            notes[HISTORY] = f"{history},{before}" if history else before
    if not exists:
        notes |= sizes_noted(item)
    return notes


def sizes_noted(item: Object) -> dict[str, str]:
    """The annotations by which a scaling amid a roll-out is told from the roll-out."""
    return {DESIRED: str(wanted_of(item)), MOST: str(wanted_of(item) + surge_of(item))}


def made_set(item: Object, sets: Sequence[Object], revision: int) -> Object:
    """The ReplicaSet of the Deployment's present template, as it is created."""
    letters = template_hash(item["spec"]["template"], (item.get("status") or {}).get("collisionCount"))
    template = copy.deepcopy(item["spec"]["template"])
    template["metadata"]["labels"] = {**(template["metadata"].get("labels") or {}), HASH: letters}
    selector = copy.deepcopy(item["spec"]["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH: letters}
    made: Object = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{item['metadata']['name']}-{letters}",
            "namespace": item["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner_reference(item)],
        },
        "spec": {
            "replicas": size_of_new(item, sets, None),
            "selector": selector,
            "template": template,
        },
    }
    if item["spec"].get("minReadySeconds"):
        made["spec"]["minReadySeconds"] = item["spec"]["minReadySeconds"]
    made["metadata"]["annotations"] = annotated(item, made, revision, exists=False)
    return made


# --- work ---------------------------------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """Rolls every Deployment until cancelled."""
    items, sets = context.cache(PATH), context.cache(SETS)
    await context.synced(items, sets, context.pods)
    orphans = Orphans(sets)
    work = _Roller(context, items, sets, orphans, Announcer(context, COMPONENT), Timers(context))

    def of_pod(pod: Object) -> Iterable[Key]:
        """Recreate waits for the last old pod to be gone."""
        owner = controller_of(pod)
        rs = sets.get(pod["metadata"]["namespace"], owner["name"]) if owner and owner["kind"] == "ReplicaSet" else None
        for key in owner_keys("Deployment")(rs) if rs else ():
            item = items.items.get(key)
            if item is not None and not rolls(item):
                yield key

    also = [
        (sets, owner_keys("Deployment")),
        (sets, orphans.keys_for(items)),
        (context.pods, of_pod),
        (work.timers, Timers.keys),
    ]
    await reconcile(context, items, work, also=also, workers=5)


@dataclass
class _Roller:
    """One Deployment at a time, brought nearer to its spec."""

    context: Context
    items: Cache
    sets: Cache
    orphans: Orphans
    told: Announcer
    timers: Timers

    async def __call__(self, key: Key, item: Object | None) -> float | None:
        if item is None:
            self.timers.forget(key)
            return None
        selector = item["spec"]["selector"]
        if not (selector.get("matchLabels") or selector.get("matchExpressions")):
            said = "This deployment is selecting all pods. A non-empty selector is required."
            self.told.say(item, "SelectingAll", said, kind="Warning")
            return None
        sets = await claim(self.context, item, self.sets, self.orphans, "replicasets")
        if "deletionTimestamp" in item["metadata"]:
            await self._status_only(item, sets)
            return None
        item = await self._paused(item)
        if item["spec"].get("paused"):
            item, new, _ = await self._new(item, sets, create=False)
            if not await self._scale(item, self._mine(item), new):
                await self._clean_up(item, self._mine(item), new)
                await self._status_only(item, self._mine(item))
            return None
        if self._is_scaling(item, sets):
            item, new, _ = await self._new(item, sets, create=False)
            if not await self._scale(item, self._mine(item), new):
                await self._status_only(item, self._mine(item))
            return None
        if rolls(item):
            await self._roll(item, sets)
        else:
            await self._recreate(item, sets)
        return None

    # -- strategies --------------------------------------------------------------------------------------------

    async def _roll(self, item: Object, sets: Sequence[Object]) -> None:
        item, new, _ = await self._new(item, sets, create=True)
        sets = self._mine(item)
        new = new_set(item, sets)
        if new is not None:
            size = wanted_of(item) if wanted_of(new) > wanted_of(item) else size_of_new(item, sets, new)
            if wanted_of(new) != wanted_of(item) and await self._size(item, new, size):
                await self._progress(item)
                return
            scaled = False
            for name, size in shrink_old(item, sets, new).items():
                rs = next(rs for rs in sets if rs["metadata"]["name"] == name)
                scaled = await self._size(item, rs, size) or scaled
            if scaled:
                await self._progress(item)
                return
        await self._finish(item)

    async def _recreate(self, item: Object, sets: Sequence[Object]) -> None:
        item, new, _ = await self._new(item, sets, create=False)
        sets = self._mine(item)
        scaled = False
        for rs in sets:
            if (new is None or rs["metadata"]["uid"] != new["metadata"]["uid"]) and wanted_of(rs):
                scaled = await self._size(item, rs, 0) or scaled
        if scaled or self._old_pods_run(sets, new):
            await self._progress(item)
            return
        if new is None:
            item, new, _ = await self._new(item, sets, create=True)
        new = new_set(item, self._mine(item))
        if new is not None:
            await self._size(item, new, wanted_of(item))
        await self._finish(item)

    def _old_pods_run(self, sets: Sequence[Object], new: Object | None) -> bool:
        old = (rs for rs in sets if new is None or rs["metadata"]["uid"] != new["metadata"]["uid"])
        return any(not is_ended(pod) for rs in old for pod in self.context.pods.owned_by(rs))

    async def _finish(self, item: Object) -> None:
        status = item.get("status") or {}
        if is_complete(item, status):
            sets = self._mine(item)
            await self._clean_up(item, sets, new_set(item, sets))
        await self._progress(item)

    # -- ReplicaSets -------------------------------------------------------------------------------------------

    def _mine(self, item: Object) -> list[Object]:
        uid = item["metadata"]["uid"]
        return [rs for rs in self.sets.owned_by(item) if (controller_of(rs) or {}).get("uid") == uid]

    async def _new(self, item: Object, sets: Sequence[Object], *, create: bool) -> tuple[Object, Object | None, bool]:
        """(the Deployment, the ReplicaSet of its template or None, whether it was made) with revisions written."""
        new = new_set(item, sets)
        oldest = [rs for rs in sets if new is None or rs["metadata"]["uid"] != new["metadata"]["uid"]]
        revision = max((revision_of(rs) for rs in oldest), default=0) + 1
        stamp = self.context.stamp()
        if new is not None:
            notes = annotated(item, new, revision, exists=True)
            seconds = item["spec"].get("minReadySeconds", 0)
            if notes != (new["metadata"].get("annotations") or {}) or new["spec"].get("minReadySeconds", 0) != seconds:
                new = await self._put_set(new, notes, {"minReadySeconds": seconds})
            found = f'Found new replica set "{new["metadata"]["name"]}"'
            row = condition("Progressing", "True", "FoundNewReplicaSet", found, stamp=stamp)
            item = await self._revise(item, new, None if condition_of(item, "Progressing") else row)
            return item, new, False
        if not create:
            return item, None, False
        wish = made_set(item, sets, revision)
        name = wish["metadata"]["name"]
        path = f"/apis/apps/v1/namespaces/{item['metadata']['namespace']}/replicasets"
        try:
            new = await self.context.client.create(path, wish)
        except Refused as refused:
            if refused.code != 409:
                await self._not_made(item, name, refused)
                raise
            there = await self.context.client.find(f"{path}/{name}")
            mine = there is not None and (controller_of(there) or {}).get("uid") == item["metadata"]["uid"]
            if there is not None and mine and same_template(there["spec"]["template"], item["spec"]["template"]):
                await self.sets.caught_up(there)
                return item, there, False
            status = dict(item.get("status") or {})
            status["collisionCount"] = status.get("collisionCount", 0) + 1
            await self._put(item, status)
            raise
        await self.sets.caught_up(new)
        if wanted_of(new):
            said = f"Scaled up replica set {name} from 0 to {wanted_of(new)}"
            self.told.say(item, "ScalingReplicaSet", said)
        made = f'Created new replica set "{name}"'
        row = condition("Progressing", "True", "NewReplicaSetCreated", made, stamp=stamp)
        return await self._revise(item, new, row), new, True

    async def _not_made(self, item: Object, name: str, refused: Refused) -> None:
        said = f'Failed to create new replica set "{name}": {refused.message}'
        self.told.say(item, "ReplicaSetCreateError", said, kind="Warning")
        if has_deadline(item):
            row = condition("Progressing", "False", "ReplicaSetCreateError", said, stamp=self.context.stamp())
            status = dict(item.get("status") or {})
            await self._put(item, status | {"conditions": set_condition(status.get("conditions"), row)})

    async def _revise(self, item: Object, new: Object, row: Object | None) -> Object:
        """The Deployment with the new set's revision, and the condition where it is given and wanted."""
        revision = (new["metadata"].get("annotations") or {}).get(REVISION, "")
        notes = item["metadata"].get("annotations") or {}
        status = dict(item.get("status") or {})
        if row is not None and has_deadline(item):
            status["conditions"] = set_condition(status.get("conditions"), row)
        if notes.get(REVISION) != revision:
            item = {**item, "metadata": {**item["metadata"], "annotations": {**notes, REVISION: revision}}}
        elif status.get("conditions") == (item.get("status") or {}).get("conditions"):
            return item
        return await self._put(item, status, changed=True)

    async def _put_set(self, rs: Object, notes: dict[str, str], spec: Object) -> Object:
        wish = {**rs, "metadata": {**rs["metadata"], "annotations": notes}, "spec": {**rs["spec"], **spec}}
        if not wish["spec"].get("minReadySeconds"):
            wish["spec"].pop("minReadySeconds", None)
        namespace, name = key_of(rs)
        answer = await self.context.client.update(f"/apis/apps/v1/namespaces/{namespace}/replicasets/{name}", wish)
        await self.sets.caught_up(answer)
        return answer

    async def _size(self, item: Object, rs: Object, size: int) -> bool:
        """Whether the set was scaled to the size; its notes of the sizes follow."""
        before, noted = wanted_of(rs), rs["metadata"].get("annotations") or {}
        notes = {**noted, **sizes_noted(item)}
        if before == size and notes == noted:
            return False
        await self._put_set(rs, notes, {"replicas": size})
        if before == size:
            return False
        way = "up" if size > before else "down"
        said = f"Scaled {way} replica set {rs['metadata']['name']} from {before} to {size}"
        self.told.say(item, "ScalingReplicaSet", said)
        return True

    def _is_scaling(self, item: Object, sets: Iterable[Object]) -> bool:
        for rs in sets:
            noted = (rs["metadata"].get("annotations") or {}).get(DESIRED)
            if wanted_of(rs) and noted is not None and noted != str(wanted_of(item)):
                return True
        return False

    async def _scale(self, item: Object, sets: Sequence[Object], new: Object | None) -> bool:
        """Whether anything was scaled: the only active set to the size, or all in proportion amid a roll-out."""
        active = [rs for rs in sets if wanted_of(rs)]
        if len(active) <= 1:
            newest = new or (max(sets, key=born) if sets else None)
            chosen = active[0] if active else newest
            return chosen is not None and await self._size(item, chosen, wanted_of(item))
        if new is not None and self._saturated(item, new):
            done = [await self._size(item, rs, 0) for rs in active if rs["metadata"]["uid"] != new["metadata"]["uid"]]
            return any(done)
        if not rolls(item):
            return False
        sizes = proportional(item, sets)
        done = [await self._size(item, rs, sizes[rs["metadata"]["name"]]) for rs in active]
        return any(done)

    def _saturated(self, item: Object, new: Object) -> bool:
        noted = (new["metadata"].get("annotations") or {}).get(DESIRED)
        wanted = wanted_of(item)
        return noted == str(wanted) and wanted_of(new) == wanted and _sum([new], "availableReplicas") == wanted

    async def _clean_up(self, item: Object, sets: Sequence[Object], new: Object | None) -> None:
        """Deletes empty ReplicaSets beyond the history limit, the oldest revisions first."""
        old = [rs for rs in sets if new is None or rs["metadata"]["uid"] != new["metadata"]["uid"]]
        old = sorted((rs for rs in old if "deletionTimestamp" not in rs["metadata"]), key=revision_of)
        for rs in old[: max(0, len(old) - item["spec"].get("revisionHistoryLimit", 10))]:
            status = rs.get("status") or {}
            if status.get("replicas") or wanted_of(rs):
                continue
            if rs["metadata"].get("generation", 1) > status.get("observedGeneration", 0):
                continue
            namespace, name = key_of(rs)
            await self.context.client.delete(f"/apis/apps/v1/namespaces/{namespace}/replicasets/{name}")

    # -- status ------------------------------------------------------------------------------------------------

    async def _paused(self, item: Object) -> Object:
        """The Deployment with its Progressing condition told of a pause or its end."""
        row = condition_of(item, "Progressing")
        if not has_deadline(item) or (row and row.get("reason") == "ProgressDeadlineExceeded"):
            return item
        told, paused = bool(row and row.get("reason") == "DeploymentPaused"), bool(item["spec"].get("paused"))
        if told == paused:
            return item
        words = ("DeploymentPaused", "Deployment is paused") if paused else (
            "DeploymentResumed", "Deployment is resumed")  # fmt: skip
        status = dict(item.get("status") or {})
        new = condition("Progressing", "Unknown", *words, stamp=self.context.stamp())
        return await self._put(item, status | {"conditions": set_condition(status.get("conditions"), new)})

    async def _status_only(self, item: Object, sets: Sequence[Object]) -> None:
        await self._put(item, status_of(item, sets, new_set(item, sets), stamp=self.context.stamp()))

    async def _progress(self, item: Object) -> None:
        """Writes the status of a roll-out, and waits for its deadline while it stands still."""
        sets = self._mine(item)
        new, stamp = new_set(item, sets), self.context.stamp()
        status = status_of(item, sets, new, stamp=stamp)
        late = self._late(item, status)
        status = failure_of(progress_of(item, status, new, late=late, stamp=stamp), sets, new)
        await self._put(item, status)

    def _late(self, item: Object, status: Object) -> bool:
        key, row = key_of(item), condition_of(item, "Progressing")
        done = row is None or row.get("reason") in {"NewReplicaSetAvailable", "ProgressDeadlineExceeded"}
        if not has_deadline(item) or done or is_complete(item, status):
            self.timers.forget(key, "progress")
            return False
        assert row is not None
        since = seconds_of(row.get("lastUpdateTime"))
        seconds = item["spec"]["progressDeadlineSeconds"]
        return self.timers.passed(key, "progress", since, seconds, real=SHORTEST_DEADLINE)

    async def _put(self, item: Object, status: Object, *, changed: bool = False) -> Object:
        if not status.get("conditions"):
            status = {key: value for key, value in status.items() if key != "conditions"}
        if status == item.get("status") and not changed:
            return item
        namespace, name = key_of(item)
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status"
        answer = await self.context.client.update(path, {**item, "status": status})
        await self.items.caught_up(answer)
        return answer
