"""What a PromQL expression gives at a moment or over a range, counted as VictoriaMetrics counts.

Where VictoriaMetrics and Prometheus differ, VictoriaMetrics is followed: `rate` and `increase` look at the sample
before their window and extrapolate nothing, a number is a vector of one series without labels, a window that is left
out is five minutes or the step.
"""

from __future__ import annotations

import math
import re
import statistics
import struct
from bisect import bisect_right
from calendar import monthrange
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Protocol

from .promql import (
    COMPARISONS,
    ROLLUPS,
    SETS,
    Aggregate,
    BadQuery,
    Binary,
    Call,
    Expr,
    Number,
    Rollup,
    Selector,
    Text,
)

Labels = Mapping[str, str]
Key = tuple[tuple[str, str], ...]

LOOKBACK_SECONDS = 300.0
MOST_POINTS = 30_000
STALE: float = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
_STALE_BITS = struct.pack("<Q", 0x7FF0000000000002)


def is_stale(value: float) -> bool:
    """Whether a value says that its series has ended."""
    return value != value and struct.pack("<d", value) == _STALE_BITS


class Series(Protocol):
    """Labels and samples in the order of time."""

    @property
    def labels(self) -> Labels:
        """Who it is."""
        ...

    @property
    def times(self) -> Sequence[float]:
        """When."""
        ...

    @property
    def values(self) -> Sequence[float]:
        """What."""
        ...


class Source(Protocol):
    """Where series come from."""

    def select(self, selector: Selector, start: float, end: float) -> Sequence[Series]:
        """The series that fit, with at least their samples of this time."""
        ...


@dataclass(frozen=True)
class Sample:
    """One series at one moment."""

    labels: Labels
    value: float


Vector = list[Sample]


def key_of(labels: Labels) -> Key:
    """What makes a series itself."""
    return tuple(sorted(labels.items()))


def instant(expr: Expr, source: Source, at: float, step: float = LOOKBACK_SECONDS) -> Vector:
    """The expression's vector at this moment. Raises BadQuery."""
    return _Run(source, at, at, step).vector(expr, at)


def matrix(expr: Expr, source: Source, at: float) -> list[tuple[Labels, list[tuple[float, float]]]] | None:
    """The raw samples of `selector[window]`; None for any other expression."""
    if not isinstance(expr, Rollup) or expr.window is None or not isinstance(expr.inner, Selector):
        return None
    end = at - (expr.offset.value(60.0) if expr.offset else 0.0)
    start = end - expr.window.value(60.0)
    found = []
    for series in source.select(expr.inner, start, end):
        low, high = bisect_right(series.times, start), bisect_right(series.times, end)
        rows = [(series.times[i], series.values[i]) for i in range(low, high) if not is_stale(series.values[i])]
        if rows:
            found.append((series.labels, rows))
    return found


def ranged(
    expr: Expr, source: Source, start: float, end: float, step: float
) -> list[tuple[Labels, list[tuple[float, float]]]]:
    """Each series' points from start to end. Raises BadQuery."""
    count = int((end - start) / step) + 1
    if count > MOST_POINTS:
        raise BadQuery(
            f"too many points for the given start={int(start * 1000)}, end={int(end * 1000)} and "
            f"step={int(step * 1000)}: {count}; the maximum number of points is {MOST_POINTS}"
        )
    run = _Run(source, start, end, step)
    kept: dict[Key, tuple[Labels, list[tuple[float, float]]]] = {}
    for number in range(count):
        moment = start + number * step
        for sample in run.vector(expr, moment):
            row = kept.setdefault(key_of(sample.labels), (sample.labels, []))
            row[1].append((moment, sample.value))
    return list(kept.values())


# -- functions over windows -----------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The samples of (start, end], and the one before."""

    start: float
    end: float
    times: Sequence[float]
    values: Sequence[float]
    before: tuple[float, float] | None


def _monotonic(window: Window) -> tuple[tuple[float, float] | None, list[float]]:
    """The sample before and the values, with what was lost at a counter's resets put back."""
    lost, last = 0.0, window.before[1] if window.before else window.values[0]
    found = []
    for value in window.values:
        if value < last:
            # what fell by less than an eighth is no reset but a jitter
            lost += last - value if (last - value) * 8 < last else last
        found.append(value + lost)
        last = value
    return window.before, found


def _rate(window: Window) -> float:
    before, values = _monotonic(window)
    return _slope(before, window.times, values)


def _slope(before: tuple[float, float] | None, times: Sequence[float], values: Sequence[float]) -> float:
    if before is None:
        if len(values) < 2:
            return math.nan
        before = (times[0], values[0])
    return (values[-1] - before[1]) / (times[-1] - before[0])


def _increase(window: Window) -> float:
    before, values = _monotonic(window)
    return values[-1] - _floor(before, values)


def _delta(window: Window) -> float:
    return window.values[-1] - _floor(window.before, window.values)


def _floor(before: tuple[float, float] | None, values: Sequence[float]) -> float:
    """The value from which to count: what was before, else zero for a counter that seems to have just begun."""
    if before is not None:
        return before[1]
    step = values[1] - values[0] if len(values) > 1 else 0.0
    return 0.0 if len(values) > 1 and abs(values[0]) < 10 * (abs(step) + 1) else values[0]


def _last_two(window: Window) -> tuple[tuple[float, float], tuple[float, float]] | None:
    rows = ([window.before] if window.before else []) + list(zip(window.times, window.values, strict=True))
    return (rows[-2], rows[-1]) if len(rows) > 1 else None


def _irate(window: Window) -> float:
    rows = _last_two(window)
    if rows is None:
        return math.nan
    gain = rows[1][1] - rows[0][1]
    return (gain if gain >= 0 else rows[1][1]) / (rows[1][0] - rows[0][0])


def _idelta(window: Window) -> float:
    rows = _last_two(window)
    return rows[1][1] - rows[0][1] if rows else math.nan


def _regression(window: Window, origin: float) -> tuple[float, float]:
    """Value at `origin` and slope of the line through the samples."""
    if len(window.values) < 2:
        return (window.values[0], 0.0)
    xs = [time - origin for time in window.times]
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(window.values)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if not spread:
        return mean_y, 0.0
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, window.values, strict=True)) / spread
    return mean_y - slope * mean_x, slope


def _deriv(window: Window) -> float:
    return _regression(window, window.end)[1] if len(window.values) > 1 else math.nan


def _changes(window: Window) -> float:
    rows = ([window.before[1]] if window.before else []) + list(window.values)
    return float(sum(a != b for a, b in pairwise(rows)))


def _resets(window: Window) -> float:
    rows = ([window.before[1]] if window.before else []) + list(window.values)
    return float(sum(b < a for a, b in pairwise(rows)))


def quantile(phi: float, values: Iterable[float]) -> float:
    """The phi-quantile, with lines between ranks."""
    rows = sorted(value for value in values if value == value)
    if not rows:
        return math.nan
    if phi < 0 or phi > 1:
        return -math.inf if phi < 0 else math.inf
    rank = phi * (len(rows) - 1)
    low = int(rank)
    high = min(low + 1, len(rows) - 1)
    return rows[low] + (rows[high] - rows[low]) * (rank - low)


_WINDOWED: dict[str, Callable[[Window], float]] = {
    "rate": _rate,
    "irate": _irate,
    "increase": _increase,
    "delta": _delta,
    "idelta": _idelta,
    "deriv": _deriv,
    "avg_over_time": lambda w: statistics.fmean(w.values),
    "max_over_time": lambda w: max(w.values),
    "min_over_time": lambda w: min(w.values),
    "sum_over_time": lambda w: math.fsum(w.values),
    "count_over_time": lambda w: float(len(w.values)),
    "last_over_time": lambda w: w.values[-1],
    "default_rollup": lambda w: w.values[-1],
    "first_over_time": lambda w: w.values[0],
    "present_over_time": lambda w: 1.0,
    "stddev_over_time": lambda w: statistics.pstdev(w.values),
    "stdvar_over_time": lambda w: statistics.pvariance(w.values),
    "median_over_time": lambda w: quantile(0.5, w.values),
    "range_over_time": lambda w: max(w.values) - min(w.values),
    "distinct_over_time": lambda w: float(len(set(w.values))),
    "changes": _changes,
    "resets": _resets,
    "lag": lambda w: w.end - w.times[-1],
    "lifetime": lambda w: w.times[-1] - w.times[0],
}
_KEEP_NAME = {
    "avg_over_time", "default_rollup", "first_over_time", "last_over_time", "max_over_time", "median_over_time",
    "min_over_time", "predict_linear", "quantile_over_time",
    "ceil", "clamp", "clamp_max", "clamp_min", "floor", "round",
}  # fmt: skip
_PLAIN: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "ceil": lambda v: v if not math.isfinite(v) else float(math.ceil(v)),
    "floor": lambda v: v if not math.isfinite(v) else float(math.floor(v)),
    "exp": math.exp,
    "ln": lambda v: math.log(v) if v > 0 else (-math.inf if v == 0 else math.nan),
    "log2": lambda v: math.log2(v) if v > 0 else (-math.inf if v == 0 else math.nan),
    "log10": lambda v: math.log10(v) if v > 0 else (-math.inf if v == 0 else math.nan),
    "sqrt": lambda v: math.sqrt(v) if v >= 0 else math.nan,
    "sgn": lambda v: float((v > 0) - (v < 0)),
}
_DATES: dict[str, Callable[[datetime], float]] = {
    "minute": lambda d: float(d.minute),
    "hour": lambda d: float(d.hour),
    "day_of_week": lambda d: float(d.isoweekday() % 7),
    "day_of_month": lambda d: float(d.day),
    "day_of_year": lambda d: float(d.timetuple().tm_yday),
    "days_in_month": lambda d: float(monthrange(d.year, d.month)[1]),
    "month": lambda d: float(d.month),
    "year": lambda d: float(d.year),
}  # fmt: skip
_COUNTS = {
    "predict_linear": 2, "quantile_over_time": 2, "clamp": 3, "clamp_min": 2, "clamp_max": 2, "scalar": 1, "vector": 1,
    "label_replace": 5, "histogram_quantile": 2, "absent": 1, "sort": 1, "sort_desc": 1, "time": 0, "pi": 0,
    "timestamp": 1,
}  # fmt: skip


# -- evaluation -----------------------------------------------------------------------------------


@dataclass
class _Run:
    """One query: its source, its time, and the series it has fetched."""

    source: Source
    start: float
    end: float
    step: float
    _fetched: dict[tuple[int, float, float], Sequence[Series]] = field(default_factory=dict)

    def scalar(self, expr: Expr, at: float) -> float:
        """The value of an expression that has to be one number."""
        if isinstance(expr, Number):
            return expr.value
        rows = self.vector(expr, at)
        return rows[0].value if len(rows) == 1 else math.nan

    def text(self, call: str, expr: Expr) -> str:
        if not isinstance(expr, Text):
            raise BadQuery(f"cannot evaluate args for {_quoted_call(call)}: arg must be a string")
        return expr.value

    def vector(self, expr: Expr, at: float) -> Vector:
        """What the expression gives at this moment."""
        if isinstance(expr, Number):
            return [Sample({}, expr.value)]
        if isinstance(expr, Text):
            return [Sample({}, math.nan)]
        if isinstance(expr, Selector):
            return self.rolled("default_rollup", Rollup(expr), at, ())
        if isinstance(expr, Rollup):
            if expr.window is None and not isinstance(expr.inner, Selector):
                return self.vector(expr.inner, self.moved(expr, at))
            return self.rolled("default_rollup", expr, at, ())
        if isinstance(expr, Call):
            return self.call(expr, at)
        if isinstance(expr, Aggregate):
            return self.aggregate(expr, at)
        return self.binary(expr, at)

    def moved(self, rollup: Rollup, at: float) -> float:
        base = self.scalar(rollup.at, at) if rollup.at else at
        return base - (rollup.offset.value(self.step) if rollup.offset else 0.0)

    # windows

    def series(self, rollup: Rollup, at: float, window: float) -> Sequence[Series]:
        """The series under a rollup: fetched once for a selector, worked out for anything else."""
        if isinstance(rollup.inner, Selector) and not rollup.subquery:
            key = (id(rollup.inner), window, at if rollup.at else 0.0)
            found = self._fetched.get(key)
            if found is None:
                reach = window + LOOKBACK_SECONDS
                shift = rollup.offset.value(self.step) if rollup.offset else 0.0
                first, last = (at, at) if rollup.at else (self.start - shift, self.end - shift)
                found = self._fetched[key] = self.source.select(rollup.inner, first - reach, last)
            return found
        step = rollup.step.value(self.step) if rollup.step else min(self.step, max(window / 10, 1.0))
        first = math.ceil((at - window) / step) * step
        kept: dict[Key, _Made] = {}
        for number in range(int((at - first) / step + 1e-9) + 1):
            moment = first + number * step
            for sample in self.vector(rollup.inner, moment):
                made = kept.setdefault(key_of(sample.labels), _Made(sample.labels))
                made.times.append(moment)
                made.values.append(sample.value)
        return list(kept.values())

    def rolled(self, name: str, expr: Expr, at: float, args: Sequence[float]) -> Vector:
        """A function over the window of each series."""
        rollup = expr if isinstance(expr, Rollup) else Rollup(expr)
        if not isinstance(rollup.inner, Selector) and rollup.window is None:
            rollup = Rollup(rollup.inner, None, None, True, rollup.offset, rollup.at)
        end = self.moved(rollup, at)
        plain = name == "default_rollup" and rollup.window is None
        window = (
            rollup.window.value(self.step) if rollup.window else LOOKBACK_SECONDS if plain else max(self.step, 60.0)
        )
        found: Vector = []
        for series in self.series(rollup, end, window):
            value = self.over(name, _window(series, end - window, end, plain=plain), args)
            if value is not None and value == value:
                labels = series.labels if name in _KEEP_NAME else _nameless(series.labels)
                found.append(Sample(labels, value))
        return found

    def over(self, name: str, window: Window | None, args: Sequence[float]) -> float | None:
        if window is None or not window.values:
            return None
        if name == "predict_linear":
            value, slope = _regression(window, window.end)
            return value + slope * args[0]
        if name == "quantile_over_time":
            return quantile(args[0], window.values)
        return _WINDOWED[name](window)

    # functions

    def call(self, call: Call, at: float) -> Vector:
        name, args = call.name, call.args
        if name in _COUNTS and len(args) != _COUNTS[name] and not (name == "label_replace" and len(args) > 5):
            raise BadQuery(f"unexpected number of args; got {len(args)}; want {_COUNTS[name]}")
        if name in ROLLUPS:
            return self.rollup_call(name, args, at)
        if name in _PLAIN:
            self.need(name, args, 1)
            keep = name in _KEEP_NAME
            return [
                Sample(s.labels if keep else _nameless(s.labels), _PLAIN[name](s.value))
                for s in self.vector(args[0], at)
            ]
        special = getattr(self, f"f_{name}", None)
        if special is not None:
            return list(special(args, at))
        if name in _DATES:
            rows = self.vector(args[0], at) if args else [Sample({}, at)]
            return [Sample(_nameless(s.labels), _DATES[name](datetime.fromtimestamp(s.value, UTC))) for s in rows]
        constants = {
            "time": at,
            "now": self.end,
            "pi": math.pi,
            "start": self.start,
            "end": self.end,
            "step": self.step,
        }
        return [Sample({}, constants[name])]

    def need(self, name: str, args: Sequence[Expr], least: int) -> None:
        if len(args) < least:
            raise BadQuery(f"unexpected number of args; got {len(args)}; want {least}")

    def rollup_call(self, name: str, args: Sequence[Expr], at: float) -> Vector:
        self.need(name, args, 1)
        if name == "quantile_over_time":
            return self.rolled(name, args[1], at, [self.scalar(args[0], at)])
        if name == "predict_linear":
            return self.rolled(name, args[0], at, [self.scalar(args[1], at)])
        if name == "absent_over_time":
            return [] if self.rolled("count_over_time", args[0], at, ()) else [Sample(_expected(args[0]), 1.0)]
        return self.rolled(name, args[0], at, ())

    def f_absent(self, args: Sequence[Expr], at: float) -> Vector:
        return [] if self.vector(args[0], at) else [Sample(_expected(args[0]), 1.0)]

    def f_round(self, args: Sequence[Expr], at: float) -> Vector:
        nearest = self.scalar(args[1], at) if len(args) > 1 else 1.0
        return [
            Sample(s.labels, math.floor(s.value / nearest + 0.5) * nearest if math.isfinite(s.value) else s.value)
            for s in self.vector(args[0], at)
        ]

    def f_clamp(self, args: Sequence[Expr], at: float) -> Vector:
        low, high = self.scalar(args[1], at), self.scalar(args[2], at)
        return [Sample(s.labels, max(low, min(high, s.value))) for s in self.vector(args[0], at)] if low <= high else []

    def f_clamp_min(self, args: Sequence[Expr], at: float) -> Vector:
        low = self.scalar(args[1], at)
        return [Sample(s.labels, max(low, s.value)) for s in self.vector(args[0], at)]

    def f_clamp_max(self, args: Sequence[Expr], at: float) -> Vector:
        high = self.scalar(args[1], at)
        return [Sample(s.labels, min(high, s.value)) for s in self.vector(args[0], at)]

    def f_scalar(self, args: Sequence[Expr], at: float) -> Vector:
        value = self.scalar(args[0], at)
        return [Sample({}, value)] if value == value else []

    def f_vector(self, args: Sequence[Expr], at: float) -> Vector:
        return self.vector(args[0], at)

    def f_union(self, args: Sequence[Expr], at: float) -> Vector:
        kept: dict[Key, Sample] = {}
        for arg in args:
            for sample in self.vector(arg, at):
                kept.setdefault(key_of(sample.labels), sample)
        return list(kept.values())

    def f_timestamp(self, args: Sequence[Expr], at: float) -> Vector:
        inner = args[0]
        if not isinstance(inner, Selector | Rollup):
            return [Sample(_nameless(s.labels), at) for s in self.vector(inner, at)]
        rollup = inner if isinstance(inner, Rollup) else Rollup(inner)
        end = self.moved(rollup, at)
        window = rollup.window.value(self.step) if rollup.window else LOOKBACK_SECONDS
        found = []
        for series in self.series(rollup, end, window):
            held = _window(series, end - window, end, plain=True)
            if held is not None and held.values:
                found.append(Sample(_nameless(series.labels), held.times[-1]))
        return found

    def f_sort(self, args: Sequence[Expr], at: float) -> Vector:
        return sorted(self.vector(args[0], at), key=lambda s: s.value)

    def f_sort_desc(self, args: Sequence[Expr], at: float) -> Vector:
        return sorted(self.vector(args[0], at), key=lambda s: s.value, reverse=True)

    def f_label_replace(self, args: Sequence[Expr], at: float) -> Vector:
        target, replacement, origin, pattern = (self.text("label_replace", arg) for arg in args[1:5])
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise BadQuery(f'cannot compile regex "{pattern}": {error}') from None
        found = []
        for sample in self.vector(args[0], at):
            match = wanted.fullmatch(sample.labels.get(origin, ""))
            labels = dict(sample.labels)
            if match:
                labels[target] = _expanded(replacement, match)
            found.append(Sample(_without_empty(labels), sample.value))
        return found

    def f_label_join(self, args: Sequence[Expr], at: float) -> Vector:
        self.need("label_join", args, 3)
        target, between, *origins = (self.text("label_join", arg) for arg in args[1:])
        return [
            Sample(
                _without_empty({**s.labels, target: between.join(s.labels.get(name, "") for name in origins)}), s.value
            )
            for s in self.vector(args[0], at)
        ]

    def f_label_set(self, args: Sequence[Expr], at: float) -> Vector:
        words = [self.text("label_set", arg) for arg in args[1:]]
        given = dict(zip(words[::2], words[1::2], strict=False))
        return [Sample(_without_empty({**s.labels, **given}), s.value) for s in self.vector(args[0], at)]

    def f_label_del(self, args: Sequence[Expr], at: float) -> Vector:
        gone = {self.text("label_del", arg) for arg in args[1:]}
        return [Sample({k: v for k, v in s.labels.items() if k not in gone}, s.value) for s in self.vector(args[0], at)]

    def f_label_keep(self, args: Sequence[Expr], at: float) -> Vector:
        kept = {self.text("label_keep", arg) for arg in args[1:]}
        return [Sample({k: v for k, v in s.labels.items() if k in kept}, s.value) for s in self.vector(args[0], at)]

    def f_histogram_quantile(self, args: Sequence[Expr], at: float) -> Vector:
        phi = self.scalar(args[0], at)
        groups: dict[Key, tuple[Labels, list[tuple[float, float]]]] = {}
        for sample in self.vector(args[1], at):
            bound = sample.labels.get("le")
            if bound is None:
                continue
            labels = {k: v for k, v in sample.labels.items() if k not in {"le", "__name__"}}
            groups.setdefault(key_of(labels), (labels, []))[1].append((_bound(bound), sample.value))
        return [Sample(labels, value) for labels, rows in groups.values() if (value := _bucketed(phi, rows)) == value]

    # aggregation

    def aggregate(self, expr: Aggregate, at: float) -> Vector:
        name, args = expr.name, list(expr.args)
        self.need(name, args, 2 if name in {"topk", "bottomk", "quantile", "count_values"} else 1)
        parameter = 0.0
        label = ""
        if name in {"topk", "bottomk", "quantile"}:
            parameter = self.scalar(args.pop(0), at)
        elif name == "count_values":
            label = self.text(name, args.pop(0))
        groups: dict[Key, tuple[Labels, Vector]] = {}
        for arg in args:
            for sample in self.vector(arg, at):
                labels = _grouped(sample.labels, expr)
                groups.setdefault(key_of(labels), (labels, []))[1].append(sample)
        found: Vector = []
        for labels, rows in groups.values():
            found += _combined(name, labels, rows, parameter, label)
        return found

    # binary operators

    def binary(self, expr: Binary, at: float) -> Vector:
        left, right = self.vector(expr.left, at), self.vector(expr.right, at)
        if expr.op in SETS:
            return _set(expr, left, right)
        numbers = _is_number(expr.left), _is_number(expr.right)
        if numbers[1] and not expr.labels and not expr.on:
            return _each(expr, left, right[0].value if right else math.nan, right_is_number=True)
        if numbers[0] and not expr.labels and not expr.on:
            return _each(expr, right, left[0].value if left else math.nan, right_is_number=False)
        return _matched(expr, left, right)


@dataclass
class _Made:
    labels: Labels
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def _window(series: Series, start: float, end: float, *, plain: bool) -> Window | None:
    times, values = series.times, series.values
    high = bisect_right(times, end)
    if plain:
        # a series that ended has no value, however fresh its last one
        if not high or times[high - 1] <= start or is_stale(values[high - 1]):
            return None
        return Window(start, end, (times[high - 1],), (values[high - 1],), None)
    low = bisect_right(times, start)
    rows = [index for index in range(low, high) if values[index] == values[index]]
    if not rows:
        return None
    before = None
    if low and not is_stale(values[low - 1]) and times[low - 1] > start - LOOKBACK_SECONDS:
        before = (times[low - 1], values[low - 1])
    if len(rows) == high - low:
        return Window(start, end, times[low:high], values[low:high], before)
    return Window(start, end, [times[i] for i in rows], [values[i] for i in rows], before)


def _nameless(labels: Labels) -> Labels:
    return {key: value for key, value in labels.items() if key != "__name__"} if "__name__" in labels else labels


def _without_empty(labels: Labels) -> Labels:
    return {key: value for key, value in labels.items() if value}


def _quoted_call(name: str) -> str:
    return f'"{name}(...)"'


def _expanded(template: str, match: re.Match[str]) -> str:
    def put(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        try:
            return match[int(name) if name.isdigit() else name] or ""
        except (IndexError, KeyError):
            return ""

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", put, template)


def _expected(expr: Expr) -> Labels:
    """The labels that a selector asks for, as `absent` gives them back."""
    inner = expr.inner if isinstance(expr, Rollup) else expr
    if not isinstance(inner, Selector) or len(inner.groups) != 1:
        return {}
    return {m.label: m.value for m in inner.groups[0] if m.op == "=" and m.label != "__name__" and m.value}


def _bound(text: str) -> float:
    return math.inf if text in {"+Inf", "Inf"} else float(text)


def _bucketed(phi: float, rows: list[tuple[float, float]]) -> float:
    rows = sorted(rows)
    if not rows or rows[-1][0] != math.inf or not rows[-1][1]:
        return math.nan
    if phi < 0 or phi > 1:
        return -math.inf if phi < 0 else math.inf
    rank = phi * rows[-1][1]
    low_bound = low_count = 0.0
    for bound, count in rows:
        if count >= rank and count > 0:
            if bound == math.inf:
                return low_bound
            if count == low_count:
                return bound
            return low_bound + (bound - low_bound) * (rank - low_count) / (count - low_count)
        low_bound, low_count = bound, count
    return low_bound


def _grouped(labels: Labels, expr: Aggregate) -> Labels:
    if expr.without:
        return {key: value for key, value in labels.items() if key not in expr.labels and key != "__name__"}
    return {key: labels[key] for key in expr.labels if labels.get(key)}


def _combined(name: str, labels: Labels, rows: Vector, parameter: float, label: str) -> Vector:
    values = [row.value for row in rows if row.value == row.value]
    if name in {"topk", "bottomk"}:
        ordered = sorted((r for r in rows if r.value == r.value), key=lambda r: r.value, reverse=name == "topk")
        return ordered[: max(0, int(parameter))]
    if name == "any":
        return rows[:1]
    if name == "count_values":
        counts: dict[str, int] = {}
        for value in values:
            counts[written(value)] = counts.get(written(value), 0) + 1
        return [Sample({**labels, label: text}, float(count)) for text, count in counts.items()]
    if not values:
        return []
    return [Sample(labels, _one(name, values, parameter))]


def _one(name: str, values: list[float], parameter: float) -> float:
    if name == "sum":
        return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    if name == "avg":
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values) / len(values)
    if name in {"min", "max"}:
        return min(values) if name == "min" else max(values)
    if name in {"count", "distinct"}:
        return float(len(values) if name == "count" else len(set(values)))
    if name == "group":
        return 1.0
    if name in {"stddev", "stdvar"}:
        return statistics.pstdev(values) if name == "stddev" else statistics.pvariance(values)
    return quantile(0.5 if name == "median" else parameter, values)


def written(value: float) -> str:
    """A number as the query API writes it: shortest, whole ones without a point."""
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    if "e" in text:
        head, _, power = text.partition("e")
        return f"{head}e{int(power):+03d}"
    return text


def _is_number(expr: Expr) -> bool:
    if isinstance(expr, Binary):
        return _is_number(expr.left) and _is_number(expr.right)
    return isinstance(expr, Number) or (
        isinstance(expr, Call) and expr.name in {"scalar", "time", "now", "pi", "start", "end", "step"}
    )


def _compute(op: str, left: float, right: float) -> float:
    try:
        if op == "+":
            return left + right
        if op == "-":
            return left - right
        if op == "*":
            return left * right
        if op == "/":
            if right:
                return left / right
            return math.nan if not left or left != left else math.copysign(math.inf, left) * math.copysign(1, right)
        if op == "%":
            return math.fmod(left, right) if right else math.nan
        if op == "^":
            return float(left**right)
        return math.atan2(left, right)
    except (OverflowError, ValueError, ZeroDivisionError):
        return math.nan


def _holds(op: str, left: float, right: float) -> bool:
    if op == "==":
        return left == right
    if op == "!=":
        return left != right
    if op in {"<", "<="}:
        return left < right if op == "<" else left <= right
    return left > right if op == ">" else left >= right


def _each(expr: Binary, rows: Vector, number: float, *, right_is_number: bool) -> Vector:
    found: Vector = []
    for row in rows:
        left, right = (row.value, number) if right_is_number else (number, row.value)
        if expr.op not in COMPARISONS:
            found.append(Sample(_nameless(row.labels), _compute(expr.op, left, right)))
        elif expr.as_bool:
            found.append(Sample(_nameless(row.labels), float(_holds(expr.op, left, right))))
        elif _holds(expr.op, left, right):
            found.append(row)
    return [row for row in found if row.value == row.value or expr.op not in COMPARISONS]


def _match_key(expr: Binary, labels: Labels) -> Key:
    if expr.on:
        return tuple((name, labels.get(name, "")) for name in sorted(expr.labels))
    return tuple(sorted((k, v) for k, v in labels.items() if k != "__name__" and k not in expr.labels))


def _set(expr: Binary, left: Vector, right: Vector) -> Vector:
    if expr.op == "or":
        known = {_match_key(expr, row.labels) for row in left}
        return left + [row for row in right if _match_key(expr, row.labels) not in known]
    known = {_match_key(expr, row.labels) for row in right}
    return [row for row in left if (_match_key(expr, row.labels) in known) == (expr.op == "and")]


def _matched(expr: Binary, left: Vector, right: Vector) -> Vector:
    many, one = (right, left) if expr.side == "right" else (left, right)
    partners = _partners(expr, one, "left" if expr.side == "right" else "right")
    if not expr.side:
        _partners(expr, left, "left", set(partners))
    found: Vector = []
    for row in many:
        partner = partners.get(_match_key(expr, row.labels))
        if partner is None:
            continue
        a, b = (partner.value, row.value) if expr.side == "right" else (row.value, partner.value)
        labels = _result_labels(expr, row.labels, partner.labels)
        if expr.op not in COMPARISONS:
            found.append(Sample(labels, _compute(expr.op, a, b)))
        elif expr.as_bool:
            found.append(Sample(labels, float(_holds(expr.op, a, b))))
        elif _holds(expr.op, a, b):
            kept = row.labels if not expr.side and not expr.on else labels
            found.append(Sample(kept, a))
    return found


def _partners(expr: Binary, rows: Vector, side: str, wanted: set[Key] | None = None) -> dict[Key, Sample]:
    found: dict[Key, Sample] = {}
    for row in rows:
        key = _match_key(expr, row.labels)
        if wanted is not None and key not in wanted:
            continue
        if key in found:
            word = f"{expr.op} {'on' if expr.on else 'ignoring'}({', '.join(expr.labels)})"
            both = " and ".join(shown(item.labels) for item in (found[key], row))
            raise BadQuery(f"duplicate time series on the {side} side of `{word}`: {both}")
        found[key] = row
    return found


def _result_labels(expr: Binary, many: Labels, one: Labels) -> Labels:
    if not expr.side:
        if expr.on:
            return {name: many[name] for name in expr.labels if many.get(name)}
        return {k: v for k, v in many.items() if k != "__name__" and k not in expr.labels}
    labels = dict(_nameless(many))
    for name in expr.include:
        if one.get(name):
            labels[name] = one[name]
        else:
            labels.pop(name, None)
    return labels


def shown(labels: Labels) -> str:
    """`name{a="b"}`."""
    inner = ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items()) if key != "__name__")
    return f"{labels.get('__name__', '')}{{{inner}}}"
