"""Being called again later: in seconds of the lab, but never more often than a real machine can bear."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .client import Cache, Key, Object
from .context import Context

QUICKEST, SLOWEST = 0.02, 2.0
"""Real seconds between two looks at something: while it moves, and when it has long stood still."""
SHARE = 0.004
"""Real seconds that each of the keys that wait takes of the machine: many wait longer than one."""
RESTING_SHARE = 0.5
"""The same for keys that nobody waits for, which are looked at for the sake of it."""
PATIENT = 2
"""Looks without progress before the pauses grow."""


def pause_of(looks: int, waiting: int) -> float:
    """Real seconds until a key that was looked at so often in vain is due again, when so many keys wait."""
    return min(max(QUICKEST, SHARE * waiting) * 1.5 ** max(0, looks - PATIENT), SLOWEST)


class Alarms(Cache):
    """Keys that are due at some time. Give it to `reconcile` among `also`, with `keys` as what maps it.

    However fast the lab's clock runs, a key that is set again and again without progress rings ever more slowly,
    and many keys share what one would have.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context.client, "")
        self.context = context
        self.synced.set()
        self._idle: dict[Key, int] = {}
        self._due: dict[Key, asyncio.Task[None]] = {}

    @staticmethod
    def keys(item: Object) -> Iterable[Key]:
        """The key an alarm is about."""
        yield item["metadata"]["namespace"], item["metadata"]["name"]

    def moved(self, key: Key) -> None:
        """Nothing; something happened to the object, so it is worth looking at it soon."""
        self._idle.pop(key, None)

    def set(self, key: Key, seconds: float) -> None:
        """Nothing; the key rings after so many seconds of the lab, in place of what was set for it before."""
        self.cancel(key)
        idle = self._idle[key] = self._idle.get(key, 0) + 1
        pause = pause_of(idle, len(self._due) + 1)
        self._due[key] = asyncio.get_running_loop().create_task(self._ring(key, seconds, pause))

    def rest(self, key: Key, seconds: float) -> None:
        """Nothing; as `set`, but the object has arrived, so that no clock is fast enough to make it ring at once."""
        self.cancel(key)
        pause = max(SLOWEST, RESTING_SHARE * (len(self._due) + 1))
        self._due[key] = asyncio.get_running_loop().create_task(self._ring(key, seconds, pause))

    def cancel(self, key: Key) -> None:
        """Nothing; what was set for the key is forgotten."""
        if task := self._due.pop(key, None):
            task.cancel()

    def close(self) -> None:
        """Forgets everything that was set."""
        for key in list(self._due):
            self.cancel(key)

    async def _ring(self, key: Key, seconds: float, pause: float) -> None:
        await asyncio.gather(self.context.clock.sleep(seconds), asyncio.sleep(pause))
        self._due.pop(key, None)
        self._tell("MODIFIED", {"metadata": {"namespace": key[0], "name": key[1]}})
