"""One watch: what was, what happens, bookmarks, and the end, as lines of JSON."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from . import table
from .cluster import Cluster
from .schema import Kind
from .status import ApiError, expired, too_large_version
from .store import Change, Stored, encode

Json = dict[str, Any]
BOOKMARK_SECONDS = 60.0
FAREWELL_SECONDS = 2.0
BATCH = 500  # events joined to one write
BACKLOG = 20_000  # events one slow client may fall behind before it is cut off


@dataclass
class Watcher:
    """What a client watches, and how it wants to see it."""

    cluster: Cluster
    kind: Kind
    namespace: str
    form: str
    include: str
    matches: Callable[[Json], bool] | None  # None = everything
    bookmarks: bool
    queue: deque[Change] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False
    replaced: bool = False
    trouble: Any = None  # the fault of the lab that hit this watch: `watch` is drop or error
    headed: bool = False

    def listen(self, change: Change) -> None:
        """Takes a change from the store."""
        if len(self.queue) >= BACKLOG:
            self.lost = True
        elif not self.namespace or change.key[0] == self.namespace:
            self.queue.append(change)
        self.wake.set()

    def interrupt(self) -> None:
        """Told that the store was exchanged."""
        self.replaced = True
        self.wake.set()

    def selects(self, obj: Json) -> bool:
        """Whether this watcher wants to see an object."""
        return self.matches is None or self.matches(obj)

    def line(self, kind: str, stored: Stored) -> bytes:
        """One event."""
        if not self.form and stored.obj.get("apiVersion") == self.kind.api_version:
            return _plain(kind, stored)
        obj = self.cluster.view(self.kind, stored.obj)
        if self.form == "Table":
            meta = {"resourceVersion": str(stored.rv)}
            obj = table.table(self.kind, [obj], meta, self.include, self.cluster, head=not self.headed)
            self.headed = True
        elif self.form.startswith("PartialObjectMetadata"):
            obj = table.partial(obj)
        return encode({"type": kind, "object": obj}) + b"\n"

    def event(self, change: Change) -> bytes:
        """The event a change is for this watcher: b"" when it concerns nothing it selects."""
        if self.matches is None and not self.form and change.new.obj.get("apiVersion") == self.kind.api_version:
            # All who watch everything share one encoding.
            if not change.line:
                change.line = _plain(change.type, change.new)
            return change.line
        now = change.type != "DELETED" and self.selects(change.new.obj)
        before = change.old is not None and self.selects(change.old.obj)
        if now:
            return self.line("MODIFIED" if before else "ADDED", change.new)
        if not before or change.old is None:
            return b""
        if change.type == "DELETED":
            return self.line("DELETED", change.new)
        meta = change.old.obj["metadata"] | {"resourceVersion": str(change.rv)}
        return self.line("DELETED", Stored(change.old.obj | {"metadata": meta}, change.rv))

    def bookmark(self, rv: int, *, initial: bool = False) -> bytes:
        """A BOOKMARK event."""
        meta: Json = {"resourceVersion": str(rv)}
        if initial:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        obj: Json = {"kind": self.kind.kind, "apiVersion": self.kind.api_version, "metadata": meta}
        if self.form.startswith("PartialObjectMetadata"):
            obj = table.partial(obj)
        elif self.form == "Table":
            row = {"cells": [], "object": table.partial(obj)}
            obj = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": str(rv)}}
            obj |= {"columnDefinitions": None, "rows": [row]}
        return encode({"type": "BOOKMARK", "object": obj}) + b"\n"


def _plain(kind: str, stored: Stored) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), stored.raw())


def failure(error: Any) -> bytes:
    """An ERROR event in an open stream."""
    return encode({"type": "ERROR", "object": error.body()}) + b"\n"


def _injected(fault: Any) -> ApiError:
    code = fault.status or 410
    reason = {410: "Expired", 429: "TooManyRequests", 500: "InternalError", 504: "Timeout"}.get(code, "InternalError")
    return ApiError(code, reason, fault.reason or f"injected fault {code}")


async def events(watcher: Watcher, version: str, initial: str, timeout: float) -> AsyncIterator[bytes]:
    """The lines of a watch until its time is over or it has to be restarted."""
    store, kind = watcher.cluster.store, watcher.kind
    bucket = store.bucket(kind.bucket)
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    number = int(version or 0)
    bucket.listeners.add(watcher.listen)
    store.watching.add(watcher.interrupt)
    try:
        if number > store.rv:
            await asyncio.sleep(min(timeout, 3.0))
            if number > store.rv:
                if timeout > 3.0:
                    yield failure(too_large_version(number, store.rv))
                return
        with_list = initial in ("true", "1") or (number == 0 and initial not in ("false", "0"))
        if with_list:
            watcher.queue.clear()
            rows = [s for _, s in store.scan(kind.bucket, watcher.namespace) if watcher.selects(s.obj)]
            seen = store.rv
            yield b"".join(watcher.line("ADDED", stored) for stored in rows)
            if (initial in ("true", "1") and watcher.bookmarks) or (watcher.bookmarks and not version and not initial):
                yield watcher.bookmark(seen, initial=True)
        else:
            past = store.since(kind.bucket, number)
            if past is None or number < store.compacted:
                text = f"too old resource version: {number} ({max(bucket.forgotten, store.compacted)})"
                yield failure(expired(text))
                return
            watcher.queue.clear()
            lines = [watcher.event(c) for c in past if not watcher.namespace or c.key[0] == watcher.namespace]
            seen = store.rv
            yield b"".join(lines)
        if watcher.trouble is not None:
            if watcher.trouble.watch == "error":
                yield failure(_injected(watcher.trouble))
            return
        async for chunk in _live(watcher, seen, end):
            yield chunk
    finally:
        bucket.listeners.discard(watcher.listen)
        store.watching.discard(watcher.interrupt)


async def _live(watcher: Watcher, seen: int, end: float) -> AsyncIterator[bytes]:
    loop, store = asyncio.get_running_loop(), watcher.cluster.store
    due = _next_bookmark(loop.time(), end) if watcher.bookmarks else end
    while (now := loop.time()) < end:
        if not watcher.queue:
            if watcher.bookmarks and now >= due:
                # With nothing left to send. A resource that nothing happened to gets none, as on a real server.
                latest = store.latest(watcher.kind.bucket)
                if latest > seen:
                    yield watcher.bookmark(latest)
                due = _next_bookmark(now, end)
            watcher.wake.clear()
            try:
                # Not wait_for: before Python 3.12 it can swallow a cancellation that meets its end.
                async with asyncio.timeout_at(min(due, end)):
                    await watcher.wake.wait()
            except TimeoutError:
                continue
        if watcher.lost:
            return
        if watcher.replaced:
            yield failure(expired(f"too old resource version: {seen} ({store.rv})"))
            return
        chunk = b"".join([watcher.event(watcher.queue.popleft()) for _ in range(min(len(watcher.queue), BATCH))])
        if chunk:
            yield chunk


def _next_bookmark(now: float, end: float) -> float:
    """Every minute, and once shortly before the watch's own end, so that its client goes on from there."""
    last = end - FAREWELL_SECONDS
    return min(now + BOOKMARK_SECONDS, last) if last > now else now + BOOKMARK_SECONDS
