"""Series of the targets that the lab emulates, computed when asked for, so that they cost nothing while nobody asks.

What tells of objects (kube-state-metrics, the kubelet) is what the objects say now, as if it had been so since they
were made; what tells of work (processor time, memory, traffic) follows smooth curves around the pods' requests.
A sample stands on the grid of the target's interval, and one at the present.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .families import FAMILIES, Scene, Value
from .promql import Selector
from .store import fits
from .targets import Target

if TYPE_CHECKING:
    from .hub import Hub

Labels = Mapping[str, str]
MOST_POINTS = 400
FRESH_SECONDS = 2.0


@dataclass
class Shown:
    """A series that was computed."""

    labels: Labels
    times: Sequence[float]
    values: Sequence[float]


class Emulated:
    """The emulated targets of one cluster."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._sizes: dict[tuple[str, str, int], int] = {}

    def size(self, target: Target) -> int:
        """How many samples a scrape gives."""
        version = self.hub.cluster.store.rv
        key = (target.kind, target.url, version)
        if key not in self._sizes:
            if len(self._sizes) > 500:
                self._sizes.clear()
            scene = self.scene()
            told = FAMILIES.of(target.kind, target.path)
            self._sizes[key] = sum(1 for make in told.values() for _ in make(scene, target))
        return self._sizes[key]

    def scene(self) -> Scene:
        """The cluster as the exporters see it."""
        return Scene(self.hub.cluster, self.hub.clock.now())

    def end(self) -> float:
        """Up to when the collector collected."""
        now = self.hub.clock.now()
        if self.hub.collecting() and self.hub.storing():
            self.hub.collected_until = now
        return self.hub.collected_until

    def select(self, selector: Selector, start: float, end: float) -> list[Shown]:
        """The series asked for."""
        targets = [target for target in self.hub.targets() if not target.dial]
        last = min(end, self.end())
        if not targets or last <= start:
            return []
        scene, external = self.scene(), self.hub.external()
        grids: dict[tuple[float, float], array[float]] = {}
        found: list[Shown] = []
        for labels, value, born, target in self.each(selector, scene, targets):
            merged = self.hub.merged(target, labels) if labels.get("job") is None or target else None
            if merged is None:
                continue
            merged = {key: text for key, text in {**merged, **external}.items() if text}
            if not fits(selector, merged):
                continue
            key = (target.interval, born)
            times = grids.get(key)
            if times is None:
                times = grids[key] = grid(max(start, born), last, target.interval)
            if times:
                found.append(Shown(merged, times, filled(value, times)))
        return found

    def each(
        self, selector: Selector, scene: Scene, targets: Sequence[Target]
    ) -> Iterator[tuple[dict[str, str], Value, float, Target]]:
        """Labels, value, since when, and target of the series whose names fit."""
        name = selector.name
        for target in targets:
            alive = not target.error
            if wanted(selector, "up"):
                change = target.since

                def up(at: float, change: float = change, alive: bool = alive) -> float:
                    return float(alive if at >= change else not alive)

                yield {"__name__": "up"}, (up if change else float(alive)), 0.0, target
            if wanted(selector, "scrape_samples_scraped"):
                count = float(self.size(target)) if alive else 0.0
                yield {"__name__": "scrape_samples_scraped"}, count, 0.0, target
            if wanted(selector, "scrape_duration_seconds"):
                yield {"__name__": "scrape_duration_seconds"}, self.hub.health_of(target).seconds, 0.0, target
            if not alive:
                continue
            told = FAMILIES.of(target.kind, target.path)
            names = [name] if name else [known for known in told if wanted(selector, known)]
            for known in names:
                make = told.get(known)
                for labels, value, born in make(scene, target) if make else ():
                    yield {"__name__": known, **labels}, value, born, target


def wanted(selector: Selector, name: str) -> bool:
    """Whether the selector may ask for a metric of this name."""
    return any(all(m.fits(name) for m in group if m.label == "__name__") for group in selector.groups)


def grid(start: float, end: float, interval: float) -> array[float]:
    """Times of scrapes, and the present."""
    if end < start:
        return array("d")
    step = max(interval, (end - start) / MOST_POINTS)
    step = math.ceil(step / interval) * interval
    first = math.ceil(start / step) * step
    times = array(
        "d", (first + number * step for number in range(int((end - first) / step) + 1)) if first <= end else ()
    )
    fresh = end - end % FRESH_SECONDS
    if fresh >= start and (not times or fresh > times[-1]):
        times.append(fresh)
    return times


def filled(value: Value, times: array[float]) -> array[float]:
    """The values at these times."""
    if isinstance(value, int | float):
        return array("d", [float(value)]) * len(times)
    work: Callable[[float], float] = value
    return array("d", map(work, times))
