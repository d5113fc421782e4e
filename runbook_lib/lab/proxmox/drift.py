"""Believable figures: values that move slowly around a level, the same for the same seed and moment."""

from __future__ import annotations

import functools
import math
import zlib

BROADCAST_SECONDS = 10.0
"""How often a node tells the cluster its figures (pvestatd)."""

FORGOTTEN_SECONDS = 300.0
"""How long the cluster shows what a lost node told last."""


@functools.lru_cache(maxsize=1 << 17)
def phase(seed: str) -> float:
    """A fraction in [0, 1) that belongs to one seed."""
    return (zlib.crc32(seed.encode()) & 0xFFFFFFFF) / 2**32


def drift(seed: str, level: float, moment: float, *, swing: float = 0.15, period: float = 600.0) -> float:
    """A value around `level`, never further away than `swing` of it; two waves, so that it does not look like one."""
    turn = 2 * math.pi
    slow = math.sin(turn * (moment / period + phase(seed)))
    quick = math.sin(turn * (moment / (period / 7.3) + phase(seed + "~")))
    return level * (1 + swing * (0.7 * slow + 0.3 * quick))


def counter(seed: str, rate: float, since: float, moment: float) -> int:
    """A counter that has grown since `since` at about `rate` a second and never goes back."""
    elapsed = max(0.0, moment - since)
    period = 240.0
    turn = 2 * math.pi
    # the integral of 1 + 0.4 sin(...), so that the counter is monotonic however often it is read
    ripple = 0.4 * period / turn * (math.cos(turn * phase(seed)) - math.cos(turn * (elapsed / period + phase(seed))))
    return int(rate * max(0.0, elapsed + ripple))
