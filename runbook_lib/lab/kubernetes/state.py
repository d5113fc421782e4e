"""The whole of a cluster as one value or one file, and back: snapshot, restore, save, read.

Resource versions never run backwards: after a restore every open watch ends with 410 and every older list expires.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import crd, gc
from .aggregated import view_of
from .store import Bucket, Key, Stored, encode

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
FORMAT = 1


def snapshot(cluster: Cluster) -> Json:
    """Every object as it is stored now. The objects are shared with the cluster, which never changes them in place."""
    buckets = {
        name: [bucket.items[key].obj for key in bucket.order]
        for name, bucket in cluster.store.buckets.items()
        if bucket.items
    }
    return {"format": FORMAT, "version": cluster.version, "resourceVersion": cluster.store.rv, "buckets": buckets}


def restore(cluster: Cluster, saved: Json) -> None:
    """Puts a snapshot in the place of everything the cluster holds. ValueError for what is no snapshot."""
    if saved.get("format") != FORMAT or not isinstance(saved.get("buckets"), dict):
        raise ValueError(f"not a snapshot of format {FORMAT}")
    store = cluster.store
    store.rv = max(store.rv, int(saved["resourceVersion"])) + 1
    store.compacted = store.rv
    for name, bucket in list(store.buckets.items()):
        store.buckets[name] = _emptied(bucket, store.rv)
    cluster.owners.clear()
    cluster.uids.clear()
    cluster.dirty.clear()
    for kind in [kind for kind in cluster.registry.order if kind.custom is not None or view_of(kind)]:
        cluster.registry.remove(kind)
    for name, rows in saved["buckets"].items():
        _fill(cluster, name, rows)
    for _, stored in store.scan(crd.BUCKET):
        if (stored.obj.get("status") or {}).get("conditions"):
            crd.serve(cluster, stored.obj)
    cluster.dirty.add(("aggregated", ""))
    gc.settle(cluster)
    store.interrupt()


def _emptied(bucket: Bucket, rv: int) -> Bucket:
    fresh = Bucket()
    fresh.forgotten = rv
    fresh.listeners = bucket.listeners
    return fresh


def _fill(cluster: Cluster, name: str, rows: list[Json]) -> None:
    bucket = cluster.store.bucket(name)
    for obj in rows:
        meta = obj["metadata"]
        key: Key = (meta.get("namespace", ""), meta["name"])
        bucket.items[key] = Stored(obj, int(meta["resourceVersion"]))
        cluster.uids[meta.get("uid", "")] = (name, key)
        for reference in meta.get("ownerReferences") or []:
            cluster.owners.setdefault(reference.get("uid", ""), set()).add((name, key))
    bucket.order = sorted(bucket.items)
    bucket.forgotten = cluster.store.rv


def save(cluster: Cluster, path: Path) -> None:
    """Writes a snapshot to a file only its owner can read: Secrets are in it."""
    part = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(encode(snapshot(cluster)))
    part.replace(path)


def read(cluster: Cluster, path: Path) -> None:
    """Restores the snapshot of a file."""
    saved = json.loads(path.read_bytes())
    if not isinstance(saved, dict):
        raise ValueError(f"not a snapshot of format {FORMAT}")
    restore(cluster, saved)
