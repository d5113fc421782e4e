"""Small pictures as inline SVG with a text that says the same; colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from runbook_lib.model import Measurement, StepRecord

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 168, 58, 56, 18, 8


def dag(steps: Sequence[StepRecord], links: Mapping[str, str]) -> str:
    """The steps from left to right by what they need; each box leads to the step's page."""
    columns = _columns(steps)
    tallest = max((len(column) for column in columns), default=1)
    width = len(columns) * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = tallest * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    places: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(columns):
        top = (tallest - len(column)) * (BOX_HEIGHT + GAP_Y) / 2
        for y, step in enumerate(column):
            places[step.step] = (MARGIN + x * (BOX_WIDTH + GAP_X), MARGIN + top + y * (BOX_HEIGHT + GAP_Y))
    parts = [_edge(places[need], places[step.step]) for step in steps for need in step.needs if need in places]
    parts += [_box(step, places[step.step], links.get(step.step, "")) for step in steps]
    words = "; ".join(
        f"{step.step} {step.title}: {step.status}, needs {', '.join(step.needs) or 'nothing'}" for step in steps
    )
    return _svg(width, height, "dag", words, "".join(parts))


def sparkline(values: Sequence[float | None], *, label: str, width: int = 160, height: int = 36) -> str:
    """A line through the values, oldest first; gaps where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    step = (width - 8) / max(len(values) - 1, 1)
    points = [
        (4 + index * step, height - 5 - (value - low) / span * (height - 10))
        for index, value in enumerate(values)
        if value is not None
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    last = f'<circle class="dot" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3"/>'
    return _svg(width, height, "spark", label, f'<polyline class="line" points="{line}"/>{last}')


def histogram(measurement: Measurement, *, bins: int = 32, width: int = 320, height: int = 64) -> str:
    """The readings of one measurement up to p99, with lines at p50, p95 and p99."""
    top = (measurement.percentile(99) or 0) * 1.1
    if not measurement.values or top <= 0:
        return ""
    counts = [0] * bins
    for value in measurement.values:
        counts[min(int(value / top * bins), bins - 1)] += 1
    bar = width / bins
    tallest = max(counts)
    bars = "".join(
        f'<rect class="bar" x="{i * bar:.1f}" y="{height - n / tallest * (height - 6):.1f}" '
        f'width="{bar - 1:.1f}" height="{n / tallest * (height - 6):.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    lines = "".join(
        f'<line class="p{percent}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
        for percent in (50, 95, 99)
        if (x := (measurement.percentile(percent) or 0) / top * width) <= width
    )
    words = ", ".join(f"p{percent} {measurement.percentile(percent) or 0:.2f}" for percent in (50, 95, 99))
    return _svg(width, height, "hist", f"{measurement.name}: {words} {measurement.unit}", bars + lines)


def _svg(width: float, height: float, css: str, words: str, inside: str) -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(words)}"><title>{escape(words)}</title>{inside}</svg>'
    )


def _columns(steps: Sequence[StepRecord]) -> list[list[StepRecord]]:
    by_id = {step.step: step for step in steps}
    depth: dict[str, int] = {}

    def place(step: str, above: frozenset[str]) -> int:
        if step not in depth:
            needs = [need for need in by_id[step].needs if need in by_id and need not in above]
            depth[step] = 1 + max((place(need, above | {step}) for need in needs), default=-1)
        return depth[step]

    columns: list[list[StepRecord]] = []
    for step in steps:
        index = place(step.step, frozenset())
        while len(columns) <= index:
            columns.append([])
        columns[index].append(step)
    return [column for column in columns if column]


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x2, y2 = end[0] - 5, end[1] + BOX_HEIGHT / 2
    bend = max((x2 - x1) / 2, 20)
    curve = f"M{x1:.0f},{y1:.0f} C{x1 + bend:.0f},{y1:.0f} {x2 - bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"
    head = f"M{x2:.0f},{y2 - 4:.0f} L{x2 + 5:.0f},{y2:.0f} L{x2:.0f},{y2 + 4:.0f} Z"
    return f'<path class="edge" d="{curve}"/><path class="head" d="{head}"/>'


def _box(step: StepRecord, place: tuple[float, float], link: str) -> str:
    x, y = place
    first, second = _two_lines(step.title)
    status = str(step.status).replace(" ", "-")
    right = x + BOX_WIDTH - 12
    inside = (
        f'<rect class="box {status}" x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>'
        f'<text class="number" x="{x + 12:.0f}" y="{y + 20:.0f}">{escape(step.step)}</text>'
        f'<text class="state" x="{right:.0f}" y="{y + 20:.0f}" text-anchor="end">{escape(step.status)}</text>'
        f'<text x="{x + 12:.0f}" y="{y + 36:.0f}">{escape(first)}</text>'
        f'<text x="{x + 12:.0f}" y="{y + 50:.0f}">{escape(second)}</text>'
    )
    return f'<a href="{escape(link)}">{inside}</a>' if link else inside


def _two_lines(text: str, width: int = 25) -> tuple[str, str]:
    first, second = "", ""
    for word in text.split():
        if not second and len(first) + len(word) < width:
            first = f"{first} {word}".strip()
        elif len(second) + len(word) < width:
            second = f"{second} {word}".strip()
        else:
            return first, second[: width - 1] + "…"
    return first, second
