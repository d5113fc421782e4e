"""Durations on the lab's clock for controllers that are called by key: whether so many seconds have gone since then."""

from __future__ import annotations

import asyncio

from .client import Cache, Key
from .context import Context


class Timers(Cache):
    """Deadlines of objects. Give it to `reconcile` among `also` with `Timers.keys`: a key is worked on at its end.

    The wall clock does not run faster with the lab's scale, so that a duration cannot be read off two stamps: it has
    passed when a sleep of the lab has, or when the stamps say so (after time was advanced by hand, or long ago).
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context.client, "")
        self._context = context
        self._running: dict[tuple[Key, str], tuple[str, asyncio.Task[None]]] = {}
        self.synced.set()

    @staticmethod
    def keys(item: dict[str, dict[str, str]]) -> list[Key]:
        """The key that rang."""
        return [(item["metadata"]["namespace"], item["metadata"]["name"])]

    def passed(self, key: Key, what: str, since: float, seconds: float, *, real: float = 0.0) -> bool:
        """Whether so many seconds of the lab have gone since that moment; if not, the key is called when they have.

        `real` seconds have to go in any case: requests take real time, however fast the lab's clock runs.
        """
        mark = f"{since}/{seconds}"
        known = self._running.get((key, what))
        if known is not None and known[0] != mark:
            known[1].cancel()
            known = None
        left = since + seconds - self._context.clock.now()
        if left <= 0:
            self.forget(key, what)
            return True
        if known is None:
            task = self._context.spawn(self._wait(key, left, real), name=f"lab-timer {what}")
            self._running[key, what] = (mark, task)
            return False
        return known[1].done()

    def forget(self, key: Key, what: str = "") -> None:
        """Ends the key's timers, or one of them."""
        for known in [entry for entry in self._running if entry[0] == key and what in {"", entry[1]}]:
            self._running.pop(known)[1].cancel()

    async def _wait(self, key: Key, left: float, real: float) -> None:
        await asyncio.gather(self._context.clock.sleep(left), asyncio.sleep(real))
        asyncio.get_running_loop().call_soon(
            self._tell, "MODIFIED", {"metadata": {"namespace": key[0], "name": key[1]}}
        )
