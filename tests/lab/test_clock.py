"""Time in the lab."""

from __future__ import annotations

import asyncio
import time

import pytest

from runbook_lib.lab.clock import Clock


def test_a_frozen_clock_moves_by_hand_alone() -> None:
    """A sleep ends when time was advanced past it, and not before."""

    async def story() -> list[str]:
        clock, seen = Clock(0), []

        async def sleeper(seconds: float) -> None:
            await clock.sleep(seconds)
            seen.append(str(seconds))

        tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (30, 10)]
        await asyncio.sleep(0)
        clock.advance(9)
        await asyncio.sleep(0)
        seen.append("9 passed")
        clock.advance(1)
        await tasks[1]
        clock.advance(100)
        await tasks[0]
        return seen

    assert asyncio.run(story()) == ["9 passed", "10", "30"]


def test_the_wall_clock_stays_real_whatever_the_scale() -> None:
    """Only what was advanced by hand sets it apart."""
    clock = Clock(1000)
    assert abs(clock.now() - time.time()) < 1
    clock.advance(60)
    assert 59 < clock.now() - time.time() < 61


def test_durations_are_scaled() -> None:
    """A minute of the lab at scale 6000 takes a hundredth of a second."""
    began = time.monotonic()
    asyncio.run(Clock(6000).sleep(60))
    assert 0.009 < time.monotonic() - began < 1


def test_an_infinite_scale_does_not_wait() -> None:
    """A day passes at once."""
    asyncio.run(asyncio.wait_for(Clock(float("inf")).sleep(86400), 1))


def test_a_cancelled_sleep_leaves_nothing_behind() -> None:
    """Its place in the queue is free again, and time goes on."""

    async def story() -> int:
        clock = Clock(0)
        task = asyncio.create_task(clock.sleep(5))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        clock.advance(10)
        return len(clock._waiting)

    assert asyncio.run(story()) == 0


@pytest.mark.parametrize("scale", [-1.0, float("nan")])
def test_time_does_not_run_backwards(scale: float) -> None:
    """A scale that means nothing is refused."""
    with pytest.raises(ValueError, match="scale"):
        Clock(scale)
