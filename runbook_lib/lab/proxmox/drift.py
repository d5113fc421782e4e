"""Believable figures: values that move slowly around a level, the same for the same seed and moment."""

from __future__ import annotations

import functools
import hashlib
import math
import struct
import zlib
from math import cos, sin

BROADCAST_SECONDS = 10.0
"""How often a node tells the cluster its figures (pvestatd)."""

FORGOTTEN_SECONDS = 300.0
"""How long the cluster shows what a lost node told last."""

TURN = 2 * math.pi
COUNTER_PERIOD = 240.0
RATES = (24_000, 16_000, 40_000, 90_000)
"""Bytes a second that the idlest guest receives, sends, reads and writes."""
RIPPLE = 0.4 * COUNTER_PERIOD / TURN
"""How far a counter runs ahead or behind: the integral of 1 + 0.4 sin(…), which never goes back."""


@functools.lru_cache(maxsize=1 << 17)
def phase(seed: str) -> float:
    """A fraction in [0, 1) that belongs to one seed."""
    return (zlib.crc32(seed.encode()) & 0xFFFFFFFF) / 2**32


def drift(seed: str, level: float, moment: float, *, swing: float = 0.15, period: float = 600.0) -> float:
    """A value around `level`, never further away than `swing` of it; two waves, so that it does not look like one."""
    slow = sin(TURN * (moment / period + phase(seed)))
    quick = sin(TURN * (moment / (period / 7.3) + phase(seed + "~")))
    return level * (1 + swing * (0.7 * slow + 0.3 * quick))


class Waves:
    """How the figures of one guest drift: what never changes of their waves, worked out once.

    `share` is how busy the guest is on its network and disks, beside others.
    """

    __slots__ = ("_cpu", "_memory", "_rates")

    def __init__(self, name: str, share: int) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        phases = [part / 65536 for part in struct.unpack("<8H", digest)]
        self._cpu, self._memory = (phases[0], phases[1]), (phases[2], phases[3])
        angles = [TURN * each for each in phases[4:]]
        self._rates = tuple((rate * share, angle, cos(angle)) for rate, angle in zip(RATES, angles, strict=True))

    def cpu(self, level: float, moment: float) -> float:
        """How busy it is: around `level`, at most half of it away."""
        slow, quick = self._cpu
        wave = 0.7 * sin(TURN * (moment / 300.0 + slow)) + 0.3 * sin(TURN * (moment / (300.0 / 7.3) + quick))
        return level * (1 + 0.5 * wave)

    def memory(self, level: float, moment: float, up: float) -> float:
        """The share of its memory in use: around `level` once it is up for long enough, never more than all."""
        slow, quick = self._memory
        wave = 0.7 * sin(TURN * (moment / 600.0 + slow)) + 0.3 * sin(TURN * (moment / (600.0 / 7.3) + quick))
        warm = 0.2 + up / 120 if up > 0 else 0.2
        share = level * (warm if warm < 1.0 else 1.0) * (1 + 0.06 * wave)
        return share if share < 1.0 else 1.0

    def counters(self, up: float) -> tuple[int, int, int, int]:
        """Bytes received, sent, read and written in `up` seconds; they never go back."""
        if up < 0:
            up = 0.0
        angle = TURN * (up / COUNTER_PERIOD)
        (r1, a1, f1), (r2, a2, f2), (r3, a3, f3), (r4, a4, f4) = self._rates
        return (
            int(r1 * (up + RIPPLE * (f1 - cos(angle + a1)))),
            int(r2 * (up + RIPPLE * (f2 - cos(angle + a2)))),
            int(r3 * (up + RIPPLE * (f3 - cos(angle + a3)))),
            int(r4 * (up + RIPPLE * (f4 - cos(angle + a4)))),
        )
