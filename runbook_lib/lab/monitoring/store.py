"""Time series in memory: what was really scraped, written by clients, or recorded by rules. Bounded in every way."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .evaluation import STALE, Key, key_of
from .promql import Selector

MOST_SERIES, MOST_SAMPLES_OF_ONE, MOST_SAMPLES = 50_000, 5_000, 2_000_000
Labels = Mapping[str, str]


@dataclass
class Kept:
    """One series as it is stored."""

    labels: Labels
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))


def fits(selector: Selector, labels: Labels) -> bool:
    """Whether a series with these labels is asked for."""
    return any(all(m.fits(labels.get(m.label, "")) for m in group) for group in selector.groups)


@dataclass
class Store:
    """Series by their labels. The oldest samples go first: by age, by number in a series, by number in all."""

    retention: float = 3 * 86400.0
    series: dict[Key, Kept] = field(default_factory=dict)
    dropped: int = 0
    _names: dict[str, dict[Key, Kept]] = field(default_factory=dict)
    _samples: int = 0

    def append(self, labels: Labels, value: float, at: float) -> bool:
        """Whether the sample was taken; one that is older than its series' last is put where it belongs."""
        key = key_of(labels)
        kept = self.series.get(key)
        if kept is None:
            if len(self.series) >= MOST_SERIES:
                self.dropped += 1
                return False
            kept = self.series[key] = Kept(dict(labels))
            self._names.setdefault(labels.get("__name__", ""), {})[key] = kept
        place = len(kept.times)
        if place and at <= kept.times[-1]:
            place = bisect_left(kept.times, at)
            if kept.times[place] == at:
                kept.values[place] = value
                return True
        kept.times.insert(place, at)
        kept.values.insert(place, value)
        self._samples += 1
        self._trim(kept, at)
        return True

    def _trim(self, kept: Kept, now: float) -> None:
        old = bisect_left(kept.times, now - self.retention)
        old = max(old, len(kept.times) - MOST_SAMPLES_OF_ONE)
        if old > 0:
            self._cut(kept, old)
        if self._samples > MOST_SAMPLES:
            for other in self.series.values():
                self._cut(other, len(other.times) // 2)

    def _cut(self, kept: Kept, count: int) -> None:
        del kept.times[:count], kept.values[:count]
        self._samples -= count

    def end(self, labels: Labels, at: float) -> None:
        """Nothing; the series has ended and no query sees it after this moment."""
        if key_of(labels) in self.series:
            self.append(labels, STALE, at)

    def select(self, selector: Selector, start: float, end: float) -> Sequence[Kept]:
        """The series asked for that have samples in this time."""
        name = selector.name
        pool: Iterable[Kept] = self._names.get(name, {}).values() if name else self.series.values()
        return [
            kept
            for kept in pool
            if kept.times and kept.times[-1] >= start and kept.times[0] <= end and fits(selector, kept.labels)
        ]
