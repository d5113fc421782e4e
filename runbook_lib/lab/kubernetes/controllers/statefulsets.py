"""StatefulSets: pods with ordinals and claims of their own, one after the other, and their roll-outs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import revisions
from .announce import Announcer
from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .pods_of import (
    Orphans,
    claim,
    delete_pods,
    is_ended,
    is_going,
    is_ready,
    owner_keys,
    owner_reference,
    phase_of,
    pod_from,
    pods_path,
    put_status,
    share_of,
)
from .reconcile import reconcile
from .replicasets import available_now
from .timers import Timers

PATH = "/apis/apps/v1/statefulsets"
CLAIMS = "/api/v1/persistentvolumeclaims"
COMPONENT = "statefulset-controller"
NAME_LABEL, INDEX_LABEL = "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"


# --- judgement ----------------------------------------------------------------------------------------------------


def ordinal_of(item: Object, pod: Object) -> int:
    """The pod's number in the set; -1 when its name is not of the set."""
    found = re.fullmatch(re.escape(item["metadata"]["name"]) + r"-(\d+)", pod["metadata"]["name"])
    return int(found[1]) if found else -1


def ordinals(item: Object) -> range:
    """The numbers the set wants pods of."""
    start = int((item["spec"].get("ordinals") or {}).get("start", 0))
    return range(start, start + int(item["spec"].get("replicas", 1)))


def partition_of(item: Object) -> int:
    """Below which number a roll-out leaves pods as they are."""
    return int(((item["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition", 0))


def claim_names(item: Object, number: int) -> dict[str, str]:
    """The claims of the pod of that number, by the name of the volume."""
    name = item["metadata"]["name"]
    return {
        row["metadata"]["name"]: f"{row['metadata']['name']}-{name}-{number}"
        for row in item["spec"].get("volumeClaimTemplates") or ()
    }


def made_pod(item: Object, number: int, template: Object, revision: str) -> Object:
    """The set's pod of that number, of the revision's template."""
    pod = pod_from(template, item)
    name = f"{item['metadata']['name']}-{number}"
    del pod["metadata"]["generateName"]
    labels = {NAME_LABEL: name, INDEX_LABEL: str(number), revisions.LABEL: revision}
    pod["metadata"] |= {"name": name, "labels": {**(pod["metadata"].get("labels") or {}), **labels}}
    spec = pod["spec"]
    spec["hostname"] = name
    if item["spec"].get("serviceName"):
        spec["subdomain"] = item["spec"]["serviceName"]
    claims = claim_names(item, number)
    if claims:
        own = [{"name": volume, "persistentVolumeClaim": {"claimName": claimed}} for volume, claimed in claims.items()]
        spec["volumes"] = own + [row for row in spec.get("volumes") or () if row["name"] not in claims]
    return pod


def made_claims(item: Object, number: int) -> list[Object]:
    """The claims of the pod of that number, as they are created."""
    made = []
    names = claim_names(item, number)
    labels = (item["spec"].get("selector") or {}).get("matchLabels") or {}
    for row in item["spec"].get("volumeClaimTemplates") or ():
        metadata = copy.deepcopy(row["metadata"])
        metadata.pop("creationTimestamp", None)
        metadata |= {
            "name": names[row["metadata"]["name"]],
            "namespace": item["metadata"]["namespace"],
            "labels": {**(metadata.get("labels") or {}), **labels},
        }
        if _retention(item)["whenDeleted"] == "Delete":
            metadata["ownerReferences"] = [_loose(item)]
        made.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": metadata,
                "spec": copy.deepcopy(row["spec"]),
            }
        )
    return made


def _retention(item: Object) -> dict[str, str]:
    policy = item["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
    return {"whenDeleted": "Retain", "whenScaled": "Retain", **policy}


def _loose(owner: Object) -> Object:
    """A reference that lets the owner go first."""
    return {**owner_reference(owner), "controller": True, "blockOwnerDeletion": True}


def is_healthy(pod: Object) -> bool:
    """Whether the pod runs, is ready, and stays."""
    return phase_of(pod) == "Running" and is_ready(pod) and not is_going(pod)


def revision_label(pod: Object) -> str:
    """The name of the revision the pod is of."""
    return str((pod["metadata"].get("labels") or {}).get(revisions.LABEL, ""))


def status_of(
    item: Object, pods: Sequence[Object], available: int, *, current: str, update: str, collisions: int = 0
) -> Object:
    """The status of a set with these pods; `current` and `update` are names of revisions."""
    here = [pod for pod in pods if not is_going(pod)]
    counts = {
        "readyReplicas": sum(1 for pod in pods if phase_of(pod) == "Running" and is_ready(pod)),
        "currentReplicas": sum(1 for pod in here if revision_label(pod) == current),
        "updatedReplicas": sum(1 for pod in here if revision_label(pod) == update),
    }
    wanted = len(ordinals(item))
    done = counts["updatedReplicas"] == wanted == counts["readyReplicas"] == len(pods)
    strategy = (item["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate")
    if strategy == "RollingUpdate" and done:
        current, counts["currentReplicas"] = update, counts["updatedReplicas"]
    status: Object = {"replicas": len(pods), "availableReplicas": available}
    status |= {key: value for key, value in counts.items() if value}
    status |= {
        "observedGeneration": item["metadata"].get("generation", 1),
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": collisions,
    }
    return status


@dataclass(frozen=True)
class Steps:
    """What a set does next: numbers to make pods of, pods to delete with the reason's words."""

    make: tuple[int, ...] = ()
    delete: tuple[Object, ...] = ()
    replace: tuple[Object, ...] = ()


def next_steps(item: Object, pods: Sequence[Object], update: str, available: Iterable[str]) -> Steps:
    """What comes next. `available` are the names of pods that have been ready for long enough.

    Source: performUpdate and its helpers in pkg/controller/statefulset/stateful_set_control.go.
    """
    by_number = {ordinal_of(item, pod): pod for pod in pods}
    wanted, fine = ordinals(item), set(available)
    one_by_one = item["spec"].get("podManagementPolicy", "OrderedReady") == "OrderedReady"
    if "deletionTimestamp" in item["metadata"]:
        return Steps()
    make: list[int] = []
    here = [by_number[number] for number in wanted if number in by_number]
    ended = [pod for pod in here if is_ended(pod) and not is_going(pod)]
    for number in wanted:
        pod = by_number.get(number)
        if pod is None:
            make.append(number)
            if one_by_one:
                return Steps(make=tuple(make), replace=tuple(ended))
        elif pod in ended:
            if one_by_one:
                return Steps(replace=(pod,))
        elif one_by_one and (not is_healthy(pod) or pod["metadata"]["name"] not in fine):
            return Steps()
    if make or ended:
        return Steps(make=tuple(make), replace=tuple(ended))
    condemned = sorted((pod for pod in pods if ordinal_of(item, pod) not in wanted),
                       key=lambda pod: -ordinal_of(item, pod))  # fmt: skip
    if condemned:
        if not one_by_one:
            staying = tuple(pod for pod in condemned if not is_going(pod))
            if staying:
                return Steps(delete=staying)
        else:
            last = condemned[0]
            sick = [pod for pod in [*by_number.values()] if not is_healthy(pod)]
            first_sick = min(sick, key=lambda pod: ordinal_of(item, pod), default=None)
            if is_going(last) or (not is_healthy(last) and last is not first_sick):
                return Steps()
            return Steps(delete=(last,))
    return _update_steps(item, by_number, update, fine)


def _update_steps(item: Object, by_number: dict[int, Object], update: str, fine: set[str]) -> Steps:
    strategy = item["spec"].get("updateStrategy") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return Steps()
    rolling = strategy.get("rollingUpdate") or {}
    lacking = rolling.get("maxUnavailable")
    budget = max(1, share_of(lacking, len(ordinals(item)), up=False)) if lacking is not None else 1
    start = ordinals(item).start
    targets = [number for number in reversed(ordinals(item)) if number >= start + partition_of(item)]
    sick = [number for number in ordinals(item) if not (is_healthy(by_number[number]) and
            by_number[number]["metadata"]["name"] in fine)]  # fmt: skip
    if lacking is None:
        for number in targets:
            pod = by_number[number]
            if revision_label(pod) != update and not is_going(pod):
                return Steps(delete=(pod,))
            if number in sick:
                return Steps()
        return Steps()
    room = budget - len(sick)
    old = [by_number[n] for n in targets if revision_label(by_number[n]) != update and not is_going(by_number[n])]
    chosen = [pod for pod in old if ordinal_of(item, pod) in sick]
    chosen += [pod for pod in old if ordinal_of(item, pod) not in sick][: max(0, room)]
    return Steps(delete=tuple(chosen))


def template_for(item: Object, number: int, known: Iterable[Object], update: Object) -> tuple[Object, str]:
    """(template, revision name) that a new pod of that number is made of."""
    strategy = item["spec"].get("updateStrategy") or {}
    current = (item.get("status") or {}).get("currentRevision", "")
    rolling = strategy.get("type", "RollingUpdate") == "RollingUpdate"
    if rolling and number < ordinals(item).start + partition_of(item):
        for row in known:
            if row["metadata"]["name"] == current:
                return dict(row["data"]["spec"]["template"]), current
    return item["spec"]["template"], update["metadata"]["name"]


# --- work ---------------------------------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """Keeps every StatefulSet's pods until cancelled."""
    items, pods, claims = context.cache(PATH), context.pods, context.cache(CLAIMS)
    history = context.cache(revisions.PATH)
    await context.synced(items, pods, claims, history)
    orphans = Orphans(pods)
    work = _Keeper(context, items, claims, history, orphans, Announcer(context, COMPONENT), Timers(context))
    also = [(pods, owner_keys("StatefulSet")), (pods, orphans.keys_for(items)), (work.timers, Timers.keys)]
    await reconcile(context, items, work, also=also, workers=5)


@dataclass
class _Keeper:
    """One StatefulSet at a time, brought nearer to its spec."""

    context: Context
    items: Cache
    claims: Cache
    history: Cache
    orphans: Orphans
    told: Announcer
    timers: Timers

    async def __call__(self, key: Key, item: Object | None) -> float | None:
        if item is None:
            self.timers.forget(key)
            return None
        mine = await self._pods(item)
        if "deletionTimestamp" in item["metadata"]:
            return None
        known, update, collisions = await revisions.history(self.context, item, self.history)
        name = update["metadata"]["name"]
        refused: Refused | None = None
        while True:  # as many steps as can be taken without waiting for a kubelet
            steps = next_steps(item, mine, name, self._available(item, mine))
            if not (steps.make or steps.delete or steps.replace):
                break
            try:
                await self._take(item, steps, known, update)
            except Refused as error:
                refused = error
                break
            mine = await self._pods(item)
        await self._status(item, mine, name, collisions)
        live = {name, (item.get("status") or {}).get("currentRevision", ""), *(revision_label(pod) for pod in mine)}
        await revisions.truncate(self.context, item, known, live)
        if refused is not None:
            raise refused
        return None

    async def _pods(self, item: Object) -> list[Object]:
        mine = await claim(self.context, item, self.context.pods, self.orphans, "pods")
        return sorted((pod for pod in mine if ordinal_of(item, pod) >= 0), key=lambda pod: ordinal_of(item, pod))

    def _available(self, item: Object, pods: Iterable[Object]) -> set[str]:
        seconds, now = item["spec"].get("minReadySeconds", 0), self.context.clock.now()
        return {
            pod["metadata"]["name"] for pod in pods if available_now(key_of(item), pod, seconds, self.timers, now)
        }  # fmt: skip

    async def _status(self, item: Object, pods: Sequence[Object], update: str, collisions: int) -> None:
        namespace, name = key_of(item)
        current = (item.get("status") or {}).get("currentRevision") or update
        status = status_of(item, pods, len(self._available(item, pods)), current=current, update=update,
                           collisions=collisions)  # fmt: skip
        await put_status(
            self.context, f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}", item, status, self.items
        )

    async def _take(self, item: Object, steps: Steps, known: Sequence[Object], update: Object) -> None:
        for pod in steps.replace:
            failed = phase_of(pod) == "Failed"
            namespace, name = key_of(item)
            said = f"StatefulSet {namespace}/{name} is recreating {'failed' if failed else 'terminated'} Pod "
            reason = "RecreatingFailedPod" if failed else "RecreatingTerminatedPod"
            self.told.say(item, reason, said + pod["metadata"]["name"], kind="Warning" if failed else "Normal")
            await self._delete(item, [pod])
        for number in steps.make:
            await self._make(item, number, *template_for(item, number, known, update))
        if steps.delete:
            for pod in steps.delete:
                if ordinal_of(item, pod) not in ordinals(item):
                    await self._hand_claims_over(item, pod)
            await self._delete(item, steps.delete)

    async def _delete(self, item: Object, pods: Sequence[Object]) -> None:
        name = item["metadata"]["name"]
        gone, refused = await delete_pods(self.context, pods)
        for pod in gone:
            said = f"delete Pod {pod['metadata']['name']} in StatefulSet {name} successful"
            self.told.say(item, "SuccessfulDelete", said)
        if refused is not None:
            said = f"delete Pod in StatefulSet {name} failed error: {refused.message}"
            self.told.say(item, "FailedDelete", said, kind="Warning")
            raise refused

    async def _make(self, item: Object, number: int, template: Object, revision: str) -> None:
        space, name = key_of(item)
        pod = made_pod(item, number, template, revision)
        called = pod["metadata"]["name"]
        for wish in made_claims(item, number):
            wanted = wish["metadata"]["name"]
            there = self.claims.get(space, wanted)
            if there is not None:
                if "deletionTimestamp" in there["metadata"]:  # its name is free only when it is gone
                    raise Refused(409, "AlreadyExists", f"pvc {wanted} is being deleted")
                continue
            try:
                made = await self.context.client.create(f"/api/v1/namespaces/{space}/persistentvolumeclaims", wish)
            except Refused as refused:
                if refused.code == 409:
                    continue
                said = f"create Claim {wanted} for Pod {called} in StatefulSet {name} failed error: {refused.message}"
                self.told.say(item, "FailedCreate", said, kind="Warning")
                raise
            await self.claims.caught_up(made)
            said = f"create Claim {wanted} Pod {called} in StatefulSet {name} success"
            self.told.say(item, "SuccessfulCreate", said)
        try:
            made = await self.context.client.create(pods_path(item), pod)
        except Refused as refused:
            if refused.code == 409:  # the cache is behind, or someone else has a pod of that name
                raise
            said = f"create Pod {called} in StatefulSet {name} failed error: {refused.message}"
            self.told.say(item, "FailedCreate", said, kind="Warning")
            raise
        await self.context.pods.caught_up(made)
        self.told.say(item, "SuccessfulCreate", f"create Pod {called} in StatefulSet {name} successful")

    async def _hand_claims_over(self, item: Object, pod: Object) -> None:
        """Lets a condemned pod's claims go with it, where the set says so."""
        if _retention(item)["whenScaled"] != "Delete":
            return
        space = item["metadata"]["namespace"]
        owner = {**owner_reference(pod), "controller": False}
        for claimed in claim_names(item, ordinal_of(item, pod)).values():
            if self.claims.get(space, claimed) is not None:
                path = f"/api/v1/namespaces/{space}/persistentvolumeclaims/{claimed}"
                await self.context.client.patch(path, {"metadata": {"ownerReferences": [owner]}})
