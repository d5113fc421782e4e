"""ControllerRevisions: the history of templates of StatefulSets and DaemonSets."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from .client import Cache, Object, Refused
from .context import Context
from .pods_of import controller_of, owner_reference, seconds_of, template_hash

PATH = "/apis/apps/v1/controllerrevisions"
LABEL = "controller-revision-hash"


def data_of(item: Object) -> Object:
    """What a revision of the object's present template holds: a patch that would bring it back."""
    return {"spec": {"template": {**copy.deepcopy(item["spec"]["template"]), "$patch": "replace"}}}


def made_revision(item: Object, number: int, collisions: int | None = None) -> Object:
    """The ControllerRevision of the object's present template, as it is created."""
    letters = template_hash(item["spec"]["template"], collisions)
    metadata = item["metadata"]
    labels = {**(item["spec"]["template"]["metadata"].get("labels") or {}), LABEL: letters}
    made: Object = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"{metadata['name']}-{letters}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(item)],
        },
        "data": data_of(item),
        "revision": number,
    }
    if metadata.get("annotations"):
        made["metadata"]["annotations"] = dict(metadata["annotations"])
    return made


def hash_of(revision: Object) -> str:
    """The letters of the revision."""
    return str((revision["metadata"].get("labels") or {}).get(LABEL, ""))


def by_age(revisions: Iterable[Object]) -> list[Object]:
    """The revisions, oldest first."""
    return sorted(revisions, key=lambda row: (row["revision"], seconds_of(row["metadata"].get("creationTimestamp")),
                                              row["metadata"]["name"]))  # fmt: skip


async def history(context: Context, item: Object, cache: Cache) -> tuple[list[Object], Object, int]:
    """(all revisions, that of the present template, collisions met) after it was written or brought to the top."""
    uid = item["metadata"]["uid"]
    known = by_age(row for row in cache.owned_by(item) if (controller_of(row) or {}).get("uid") == uid)
    top = known[-1]["revision"] if known else 0
    wanted = data_of(item)
    base = f"/apis/apps/v1/namespaces/{item['metadata']['namespace']}/controllerrevisions"
    collisions = int((item.get("status") or {}).get("collisionCount") or 0)
    equal = [row for row in known if row.get("data") == wanted]
    if equal:
        present = equal[-1]
        if present["revision"] != top:
            name = present["metadata"]["name"]
            present = await context.client.update(f"{base}/{name}", {**present, "revision": top + 1})
            await cache.caught_up(present)
            known = by_age([*(row for row in known if row["metadata"]["name"] != name), present])
        return known, present, collisions
    while True:
        made = made_revision(item, top + 1, collisions)
        try:
            present = await context.client.create(base, made)
            break
        except Refused as refused:
            if refused.code != 409:
                raise
            there = await context.client.find(f"{base}/{made['metadata']['name']}")
            if there is not None and there.get("data") == wanted and (controller_of(there) or {}).get("uid") == uid:
                present = there
                break
            collisions += 1
    await cache.caught_up(present)
    return [*known, present], present, collisions


async def truncate(context: Context, item: Object, known: Iterable[Object], live: Iterable[str]) -> None:
    """Deletes the oldest revisions beyond the limit that no pod is of. `live` are names in use."""
    kept = set(live)
    old = [row for row in by_age(known) if row["metadata"]["name"] not in kept]
    for row in old[: max(0, len(old) - item["spec"].get("revisionHistoryLimit", 10))]:
        namespace, name = row["metadata"]["namespace"], row["metadata"]["name"]
        try:
            await context.client.delete(f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions/{name}")
        except Refused as refused:
            if refused.code != 404:
                raise
