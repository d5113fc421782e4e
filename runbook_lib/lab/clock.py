"""Time in the lab: the wall clock stays real, durations are scaled or advanced by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable


class Clock:
    """A clock whose `sleep` is `scale` times faster than life; 0 is frozen, infinity does not wait at all.

    `now()` is the real epoch time plus whatever was advanced by hand, so that a client that compares
    clocks sees a healthy server until a test moves it. With `start`, an epoch time, it is that time plus the lab's own
    seconds instead: what is to repeat to the last digit must not see today's date.
    """

    def __init__(self, scale: float = 1.0, *, start: float | None = None) -> None:
        if not scale >= 0:
            raise ValueError("the scale of time cannot be negative")
        self.scale = scale
        self.start = start
        self.offset = 0.0
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Event]] = []
        self._lab = 0.0
        self._last = time.monotonic()

    def rescale(self, scale: float) -> None:
        """Run faster or slower from now on; sleeps that have begun keep their end."""
        if not scale >= 0:
            raise ValueError("the scale of time cannot be negative")
        self.elapsed()
        self.scale = scale

    def now(self) -> float:
        """Seconds since the epoch, as this lab's servers tell them."""
        return time.time() + self.offset if self.start is None else self.start + self.elapsed()

    def elapsed(self) -> float:
        """Lab seconds since this clock was made: scaled, and with everything that was advanced by hand."""
        tick = time.monotonic()
        if not math.isinf(self.scale):
            self._lab += (tick - self._last) * self.scale
        self._last = tick
        return self._lab

    def real(self, seconds: float) -> float:
        """Real seconds that `seconds` of the lab take; infinity when time is frozen."""
        return math.inf if self.scale == 0 else seconds / self.scale

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of the lab, or as soon as `advance` has moved time that far."""
        if seconds <= 0 or math.isinf(self.scale):
            await asyncio.sleep(0)
            return
        event = asyncio.Event()
        entry = (self.elapsed() + seconds, next(self._order), event)
        heapq.heappush(self._waiting, entry)
        real = self.real(seconds)
        try:
            # Not wait_for: before Python 3.12 it can swallow a cancellation that meets its end.
            async with asyncio.timeout(None if math.isinf(real) else real):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)

    def advance(self, seconds: float) -> None:
        """Move time forward by hand: the wall clock and every sleep that ends within it."""
        self.offset += seconds
        self._lab = self.elapsed() + seconds
        while self._waiting and self._waiting[0][0] <= self._lab + 1e-9:
            heapq.heappop(self._waiting)[2].set()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.Task[None]:
        """The task that calls `callback` after `seconds` of the lab; cancel it to forget the call."""

        async def later() -> None:
            await self.sleep(seconds)
            callback()

        return asyncio.get_running_loop().create_task(later())
