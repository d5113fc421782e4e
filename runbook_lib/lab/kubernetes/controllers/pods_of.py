"""The pods of an owner: which are its own, which are ready, which go first, and how new ones are made."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from .client import STRATEGIC, Cache, Key, Object, Refused, key_of
from .context import Context

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # the alphabet Kubernetes encodes hashes with


# --- owners -------------------------------------------------------------------------------------------------------


def controller_of(item: Object) -> Object | None:
    """The owner reference that controls the object, or None for an orphan."""
    for owner in item["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return dict(owner)
    return None


def owner_keys(kind: str) -> Callable[[Object], Iterator[Key]]:
    """What tells the key of an object's controller, where that is of the kind."""

    def keys(item: Object) -> Iterator[Key]:
        owner = controller_of(item)
        if owner is not None and owner["kind"] == kind:
            yield item["metadata"].get("namespace", ""), owner["name"]

    return keys


def owner_reference(owner: Object) -> Object:
    """The reference by which an object is controlled."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def matches(selector: Mapping[str, Any], labels: Mapping[str, str] | None) -> bool:
    """Whether a LabelSelector fits the labels. An empty selector fits everything."""
    labels = labels or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_clause(entry, labels) for entry in selector.get("matchExpressions") or ())


def _clause(entry: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    here, operator = labels.get(entry["key"]), entry["operator"]
    if operator == "Exists":
        return here is not None
    if operator == "DoesNotExist":
        return here is None
    return (here in (entry.get("values") or ())) is (operator == "In")


class Orphans:
    """Which objects of a cache nobody controls, by namespace; `keys_for` tells who might want to adopt one."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._keys: dict[str, set[Key]] = {}
        for item in list(cache.items.values()):
            self._heard("ADDED", item)
        cache.handlers.append(self._heard)

    def _heard(self, kind: str, item: Object) -> None:
        key = key_of(item)
        known = self._keys.setdefault(key[0], set())
        if kind != "DELETED" and controller_of(item) is None:
            known.add(key)
        else:
            known.discard(key)

    def of(self, namespace: str) -> list[Object]:
        """The orphans there, by name."""
        keys = sorted(self._keys.get(namespace, ()))
        return [self._cache.items[key] for key in keys if key in self._cache.items]

    def keys_for(self, owners: Cache) -> Callable[[Object], Iterator[Key]]:
        """What tells the keys of those owners whose selector fits an orphan."""

        def keys(item: Object) -> Iterator[Key]:
            if controller_of(item) is None and "deletionTimestamp" not in item["metadata"]:
                namespace = item["metadata"].get("namespace", "")
                for key, owner in owners.items.items():
                    selector = owner["spec"].get("selector")
                    if key[0] == namespace and selector and matches(selector, item["metadata"].get("labels")):
                        yield key

        return keys


async def claim(context: Context, owner: Object, cache: Cache, orphans: Orphans, path: str) -> list[Object]:
    """The objects the owner controls, after orphans that fit were adopted and what no longer fits was let go.

    `path` is the resource's within a namespace: "pods".
    """
    metadata, selector = owner["metadata"], owner["spec"].get("selector") or {}
    base = ("/api/v1" if path == "pods" else "/apis/apps/v1") + f"/namespaces/{metadata['namespace']}/{path}"
    if "deletionTimestamp" in metadata:
        return cache.owned_by(owner)
    kept = []
    for item in cache.owned_by(owner):
        if (controller_of(item) or {}).get("uid") != metadata["uid"]:
            continue
        if matches(selector, item["metadata"].get("labels")):
            kept.append(item)
            continue
        release = {"metadata": {"uid": item["metadata"]["uid"], "ownerReferences": [_delete_of(metadata["uid"])]}}
        await _patch(context, cache, f"{base}/{item['metadata']['name']}", release)
    wanted = [
        item
        for item in orphans.of(metadata["namespace"])
        if "deletionTimestamp" not in item["metadata"] and matches(selector, item["metadata"].get("labels"))
    ]
    if not wanted or not (selector.get("matchLabels") or selector.get("matchExpressions")):
        return kept
    for item in wanted:
        adopt = {"metadata": {"uid": item["metadata"]["uid"], "ownerReferences": [owner_reference(owner)]}}
        if (adopted := await _patch(context, cache, f"{base}/{item['metadata']['name']}", adopt)) is not None:
            kept.append(adopted)
    return kept


def _delete_of(uid: str) -> Object:
    return {"$patch": "delete", "uid": uid}


async def _patch(context: Context, cache: Cache, path: str, body: Object) -> Object | None:
    try:
        answer = await context.client.patch(path, body, content_type=STRATEGIC)
    except Refused as error:
        if error.code in {404, 422}:  # gone, or another of the same name by now
            return None
        raise
    await cache.caught_up(answer)
    return answer


# --- judging pods -------------------------------------------------------------------------------------------------


def seconds_of(stamp: str | None) -> float:
    """The epoch seconds of a time as Kubernetes writes it; 0 for none."""
    if not stamp:
        return 0.0
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def condition_of(item: Object, kind: str) -> Object | None:
    """The object's condition of that type."""
    for entry in (item.get("status") or {}).get("conditions") or ():
        if entry["type"] == kind:
            return dict(entry)
    return None


def phase_of(pod: Object) -> str:
    """The pod's phase."""
    return str((pod.get("status") or {}).get("phase", "Pending"))


def is_ended(pod: Object) -> bool:
    """Whether the pod succeeded or failed."""
    return phase_of(pod) in {"Succeeded", "Failed"}


def is_going(item: Object) -> bool:
    """Whether someone asked for its deletion."""
    return "deletionTimestamp" in item["metadata"]


def is_active(pod: Object) -> bool:
    """Whether the pod still counts: neither ended nor on its way out."""
    return not is_ended(pod) and not is_going(pod)


def is_ready(pod: Object) -> bool:
    """Whether the pod's Ready condition is True."""
    ready = condition_of(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def is_available(pod: Object, min_ready_seconds: float, now: float) -> bool:
    """Whether the pod has been ready for long enough."""
    ready = condition_of(pod, "Ready")
    if ready is None or ready["status"] != "True":
        return False
    if not min_ready_seconds:
        return True
    since = seconds_of(ready.get("lastTransitionTime"))
    return bool(since) and since + min_ready_seconds <= now


def restarts_of(pod: Object) -> int:
    """The most restarts any container of the pod has had."""
    rows = (pod.get("status") or {}).get("containerStatuses") or ()
    return max((entry.get("restartCount", 0) for entry in rows), default=0)


def ranked_for_deletion(pods: Sequence[Object], related: Iterable[Object] = ()) -> list[Object]:
    """The pods, those first that a ReplicaSet deletes first. `related` are the pods of all sets of one owner.

    Source: ActivePodsWithRanks in pkg/controller/controller_utils.go; ages count by powers of two of seconds.
    """
    here: dict[str, int] = {}
    for pod in related:
        if is_active(pod):
            here[pod["spec"].get("nodeName", "")] = here.get(pod["spec"].get("nodeName", ""), 0) + 1

    def order(pod: Object) -> tuple[Any, ...]:
        node, ready = pod["spec"].get("nodeName", ""), is_ready(pod)
        cost = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
        since = seconds_of((condition_of(pod, "Ready") or {}).get("lastTransitionTime")) if ready else 0.0
        return (
            bool(node),
            {"Pending": 0, "Unknown": 1, "Running": 2}.get(phase_of(pod), 2),
            ready,
            int(cost) if cost.lstrip("-").isdigit() else 0,
            -here.get(node, 0),
            -since,
            -restarts_of(pod),
            -seconds_of(pod["metadata"].get("creationTimestamp")),
            pod["metadata"].get("uid", ""),
        )

    return sorted(pods, key=order)


# --- templates ----------------------------------------------------------------------------------------------------


def template_hash(template: Object, collisions: int | None = None) -> str:
    """The ten letters that tell a pod template from others.

    Kubernetes hashes Go's printing of the template, which nobody else can repeat; the alphabet and shape are its own.
    """
    text = json.dumps(template, sort_keys=True, separators=(",", ":")) + (str(collisions) if collisions else "")
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return "".join(_LETTERS[ord(digit) % 27] for digit in str(number))


def pod_from(template: Object, owner: Object, *, prefix: str = "") -> Object:
    """A pod of the owner as its template says, to be named by the server."""
    metadata = copy.deepcopy(template.get("metadata") or {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **{key: metadata[key] for key in ("labels", "annotations", "finalizers") if metadata.get(key)},
            "generateName": prefix or f"{owner['metadata']['name']}-",
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": copy.deepcopy(template["spec"]),
    }


# --- writing ------------------------------------------------------------------------------------------------------


def pods_path(item: Object, name: str = "") -> str:
    """The path of the pods beside an object, or of one of them."""
    base = f"/api/v1/namespaces/{item['metadata']['namespace']}/pods"
    return f"{base}/{name}" if name else base


async def slow_start(count: int, make: Callable[[int], Awaitable[Object]]) -> tuple[list[Object], Refused | None]:
    """(what was made, the first refusal): one at first, then twice as many each time, until something is refused."""
    made: list[Object] = []
    size = 1
    while len(made) < count:
        first = len(made)
        batch = min(size, count - first)
        answers = await asyncio.gather(*(make(first + number) for number in range(batch)), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Refused):
                raise answer
        made += [answer for answer in answers if isinstance(answer, dict)]
        refused = next((answer for answer in answers if isinstance(answer, Refused)), None)
        if refused is not None:
            return made, refused
        size *= 2
    return made, None


async def seen(cache: Cache, made: Iterable[Object]) -> None:
    """Returns once the cache holds everything that was made."""
    last = max(made, key=lambda item: int(item["metadata"].get("resourceVersion") or 0), default=None)
    if last is not None:
        await cache.caught_up(last)


async def delete_pods(context: Context, pods: Iterable[Object]) -> tuple[list[Object], Refused | None]:
    """(the pods that were told to go, the first refusal). Returns once the cache knows."""
    pods = list(pods)

    async def delete(pod: Object) -> Object:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod["metadata"]["uid"]}}
        try:
            await context.client.delete(pods_path(pod, pod["metadata"]["name"]), body)
        except Refused as error:
            if error.code not in {404, 409}:
                raise
        return pod

    answers = await asyncio.gather(*(delete(pod) for pod in pods), return_exceptions=True)
    gone = [answer for answer in answers if isinstance(answer, dict)]
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, Refused):
            raise answer

    def known() -> bool:
        for pod in gone:
            now = context.pods.items.get(key_of(pod))
            if now is not None and now["metadata"]["uid"] == pod["metadata"]["uid"] and not is_going(now):
                return False
        return True

    await context.pods.until(known)
    return gone, next((answer for answer in answers if isinstance(answer, Refused)), None)


async def put_status(context: Context, path: str, item: Object, status: Object, cache: Cache | None = None) -> Object:
    """The object after a conditional write of its status; no request when it says that already."""
    if item.get("status") == status:
        return item
    answer = await context.client.update(f"{path}/status", {**item, "status": status})
    if cache is not None:
        await cache.caught_up(answer)
    return answer


def set_condition(conditions: Sequence[Object] | None, wanted: Object) -> list[Object]:
    """The conditions with this one: unchanged where status and reason agree, its time kept where the status does."""
    rows = list(conditions or ())
    before = next((entry for entry in rows if entry["type"] == wanted["type"]), None)
    if before and (before["status"], before.get("reason")) == (wanted["status"], wanted.get("reason")):
        return rows
    if before and before["status"] == wanted["status"] and "lastTransitionTime" in before:
        wanted = {**wanted, "lastTransitionTime": before["lastTransitionTime"]}
    return [entry for entry in rows if entry["type"] != wanted["type"]] + [wanted]


def without_condition(conditions: Sequence[Object] | None, kind: str) -> list[Object]:
    """The conditions but that one."""
    return [entry for entry in conditions or () if entry["type"] != kind]


def share_of(value: int | str | None, total: int, *, up: bool) -> int:
    """A number or a percentage of the total, rounded up or down."""
    if isinstance(value, str) and value.endswith("%"):
        percent = int(value[:-1]) * total
        return -(-percent // 100) if up else percent // 100
    return int(value or 0)
