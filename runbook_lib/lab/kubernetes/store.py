"""Objects, resource versions and their history; nothing here knows HTTP or the meaning of a kind."""

from __future__ import annotations

import bisect
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Key = tuple[str, str]  # namespace ("" when cluster scoped), name

HISTORY = 2000  # events kept per resource; a watch older than these gets 410


# One C encoder for all: json.dumps would make a new one each time, and look for circles that cannot be.
_make: Any = getattr(json.encoder, "c_make_encoder", None)
_quote: Any = json.encoder.encode_basestring
_pieces = _make(None, json.JSONEncoder().default, _quote, None, ":", ",", False, False, True) if _make else None


def encode(value: Any) -> bytes:
    """Compact JSON."""
    if _pieces is None:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return "".join(_pieces(value, 0)).encode()


class Stored:
    """One version of one object; never changed after it is stored."""

    __slots__ = ("_raw", "obj", "rv")

    def __init__(self, obj: Json, rv: int) -> None:
        self.obj, self.rv, self._raw = obj, rv, b""

    def raw(self) -> bytes:
        """The object as JSON, encoded once."""
        if not self._raw:
            self._raw = encode(self.obj)
        return self._raw


@dataclass(slots=True)
class Change:
    """One step in a resource's history; `line` is the watch event once somebody needed it."""

    type: str  # ADDED MODIFIED DELETED
    key: Key
    rv: int
    new: Stored
    old: Stored | None
    line: bytes = b""


Listener = Callable[[Change], None]


class Bucket:
    """All objects of one resource, ordered by namespace and name."""

    def __init__(self) -> None:
        self.items: dict[Key, Stored] = {}
        self.order: list[Key] = []
        self.history: deque[Change] = deque()
        self.forgotten = 0  # resource version up to which history was dropped
        self.listeners: set[Listener] = set()


class Store:
    """Every bucket and the one counter of resource versions."""

    def __init__(self, first: int = 200) -> None:
        self.rv = first
        self.buckets: dict[str, Bucket] = {}
        self.compacted = 0
        self.hooks: list[Callable[[str, Change], None]] = []
        self.watching: set[Callable[[], None]] = set()

    def bucket(self, resource: str) -> Bucket:
        """The bucket of a resource, made on first use."""
        found = self.buckets.get(resource)
        if found is None:
            found = self.buckets[resource] = Bucket()
        return found

    def get(self, resource: str, key: Key) -> Stored | None:
        """The newest version, or None."""
        found = self.buckets.get(resource)
        return found.items.get(key) if found else None

    def put(self, resource: str, key: Key, obj: Json) -> Stored:
        """The object as stored: with a new resourceVersion."""
        self.rv += 1
        bucket = self.bucket(resource)
        old = bucket.items.get(key)
        stored = Stored(obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.rv)}}, self.rv)
        bucket.items[key] = stored
        if old is None:
            bisect.insort(bucket.order, key)
        self._record(resource, bucket, Change("MODIFIED" if old else "ADDED", key, self.rv, stored, old))
        return stored

    def remove(self, resource: str, key: Key, last: Json | None = None) -> Stored:
        """The last version of the removed object, under the resourceVersion of its deletion."""
        self.rv += 1
        bucket = self.bucket(resource)
        old = bucket.items.pop(key)
        del bucket.order[bisect.bisect_left(bucket.order, key)]
        obj = last or old.obj
        gone = Stored(obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.rv)}}, self.rv)
        self._record(resource, bucket, Change("DELETED", key, self.rv, gone, old))
        return gone

    def _record(self, resource: str, bucket: Bucket, change: Change) -> None:
        bucket.history.append(change)
        if len(bucket.history) > HISTORY:
            bucket.forgotten = bucket.history.popleft().rv
        for listener in tuple(bucket.listeners):
            listener(change)
        for hook in self.hooks:
            hook(resource, change)

    def interrupt(self) -> None:
        """Ends every open watch: what it knows is no longer how things came to be."""
        for end in tuple(self.watching):
            end()

    def compact(self) -> None:
        """Forgets history, as etcd compaction does: older watches and pages answer 410."""
        self.compacted = self.rv
        for bucket in self.buckets.values():
            bucket.history.clear()
            bucket.forgotten = self.rv

    def scan(self, resource: str, namespace: str = "", after: Key | None = None) -> Iterator[tuple[Key, Stored]]:
        """Objects in order, of one namespace or all, after a key."""
        bucket = self.buckets.get(resource)
        if bucket is None:
            return
        start = bisect.bisect_left(bucket.order, (namespace, "")) if namespace else 0
        if after is not None:
            start = max(start, bisect.bisect_right(bucket.order, after))
        for key in bucket.order[start:]:
            if namespace and key[0] != namespace:
                return
            yield key, bucket.items[key]

    def at(self, resource: str, rv: int, namespace: str = "") -> list[tuple[Key, Stored]] | None:
        """The objects as they were at a resource version, or None when that history is gone."""
        bucket = self.bucket(resource)
        if rv < max(bucket.forgotten, self.compacted):
            return None
        items = dict(bucket.items)
        for change in reversed(bucket.history):
            if change.rv <= rv:
                break
            if change.old is None:
                items.pop(change.key, None)
            else:
                items[change.key] = change.old
        return [(key, items[key]) for key in sorted(items) if not namespace or key[0] == namespace]

    def latest(self, resource: str) -> int:
        """The resource version of the last thing that happened to a resource, 0 when nothing is known of it."""
        history = self.bucket(resource).history
        return history[-1].rv if history else 0

    def since(self, resource: str, rv: int) -> list[Change] | None:
        """What happened after a resource version, or None when that history is gone."""
        bucket = self.bucket(resource)
        if rv < bucket.forgotten:
            return None
        return [change for change in bucket.history if change.rv > rv]
