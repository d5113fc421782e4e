"""The work queue under every controller: an object's key is worked on once at a time and again when it changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import aiohttp

from .client import Cache, Key, Object, Refused, key_of
from .context import Context

log = logging.getLogger(__name__)

Work = Callable[[Key, Object | None], Awaitable[float | None]]
"""Brings one object nearer to its wish. Gets the object from the cache, None when it is gone; returns None, or
the seconds of the lab after which to be called again without a change."""
Mapped = tuple[Cache, Callable[[Object], Iterable[Key]]]
"""Another resource, and which keys to work on when one of its objects changes."""

FIRST_PAUSE, LAST_PAUSE = 0.05, 5.0  # real seconds, as requests take real time
CROWD_SECONDS = 0.05  # real seconds in which a crowd is waited for


async def reconcile(
    context: Context,
    cache: Cache,
    work: Work,
    *,
    also: Sequence[Mapped] = (),
    crowds: Sequence[Mapped] = (),
    workers: int = 4,
) -> None:
    """Works until cancelled: on every object of the cache, on each that changes, and on those mapped from `also`.

    What is mapped from `crowds` is worked on a moment later: many objects that change together, as the members of one
    owner do, call it once.

    A refusal or a lost connection is tried again with growing pauses; a conflict at once. Each call of `work` sees
    caches that hold at least what its own earlier writes answered, if it awaited `Cache.caught_up`.
    """
    queue = _Queue()

    def changed(kind: str, item: Object) -> None:
        if kind == "DELETED":  # what comes under the same name has failed at nothing yet
            queue.failures.pop(key_of(item), None)
        queue.add(key_of(item))

    cache.handlers.append(changed)
    mapped: list[tuple[Cache, Callable[[str, Object], None]]] = []
    for (other, keys_of), add in [*((row, queue.add) for row in also), *((row, queue.add_soon) for row in crowds)]:

        def told(
            _kind: str,
            item: Object,
            keys_of: Callable[[Object], Iterable[Key]] = keys_of,
            add: Callable[[Key], None] = add,
        ) -> None:
            for key in keys_of(item):
                add(key)

        other.handlers.append(told)
        mapped.append((other, told))
    try:
        await context.synced(cache, *(other for other, _ in (*also, *crowds)))
        for key in list(cache.items):
            queue.add(key)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(_serve(context, cache, work, queue))
    finally:
        cache.handlers.remove(changed)
        for other, handler in mapped:
            other.handlers.remove(handler)
        queue.close()


class _Queue:
    """Keys to work on, each at most once; a key that is being worked on waits until that has ended."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._later: dict[Key, asyncio.Task[None]] = {}
        self._soon: dict[Key, asyncio.TimerHandle] = {}
        self.failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        if key in self._busy:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_soon(self, key: Key) -> None:
        if key not in self._queued and key not in self._soon:
            self._soon[key] = asyncio.get_running_loop().call_later(CROWD_SECONDS, self._now, key)

    def _now(self, key: Key) -> None:
        del self._soon[key]
        self.add(key)

    async def take(self) -> Key:
        key = await self._ready.get()
        self._queued.discard(key)
        self._busy.add(key)
        if handle := self._soon.pop(key, None):
            handle.cancel()
        if timer := self._later.pop(key, None):
            timer.cancel()
        return key

    def done(self, key: Key) -> None:
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def add_later(self, key: Key, wait_for: Callable[[float], Awaitable[None]], seconds: float) -> None:
        async def wait() -> None:
            await wait_for(seconds)  # made here: a timer that is cancelled before it runs leaves nothing behind
            if self._later.get(key) is task:
                del self._later[key]
            self.add(key)

        if timer := self._later.pop(key, None):
            timer.cancel()
        task = self._later[key] = asyncio.get_running_loop().create_task(wait())

    def close(self) -> None:
        for timer in self._later.values():
            timer.cancel()
        for handle in self._soon.values():
            handle.cancel()


async def _serve(context: Context, cache: Cache, work: Work, queue: _Queue) -> None:
    while True:
        key = await queue.take()
        try:
            after = await work(key, cache.items.get(key))
        except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
            count = queue.failures[key] = queue.failures.get(key, 0) + 1
            conflict = isinstance(error, Refused) and error.code == 409
            log.debug("%s %s: %s", cache.path, "/".join(key), error)
            pause = FIRST_PAUSE / 5 if conflict and count < 5 else min(FIRST_PAUSE * 2**count, LAST_PAUSE)
            queue.add_later(key, asyncio.sleep, pause)
        else:
            queue.failures.pop(key, None)
            if after is not None:
                queue.add_later(key, context.clock.sleep, after)
        finally:
            queue.done(key)
