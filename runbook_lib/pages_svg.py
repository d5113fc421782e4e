"""Small pictures as inline SVG with a text that says the same; colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

from runbook_lib.model import Measurement, StepRecord
from runbook_lib.pages_notebook import bare

BOX_WIDTH, BOX_HEIGHT, DUMMY, MARGIN = 184, 62, 20, 4
MOST_COLUMNS = 5
"""With more layers than this the steps flow downwards: a page scrolls that way."""

Words = Callable[[str], str]
Layers = list[list[str]]


def dag(steps: Sequence[StepRecord], links: Mapping[str, str], *, t: Words = str) -> str:
    """The steps by what they need, each box leading to the step's page; downwards when there are many layers."""
    needs = _reduced(steps)
    layers, chains = _layers(needs)
    down = len(layers) > MOST_COLUMNS
    places, width, height = _places(layers, down)
    parts = [_edge([places[node] for node in chain], down) for chain in chains]
    parts += [_box(step, places[step.step], links.get(step.step, ""), t) for step in steps]
    label = t("The steps and what they need")
    # A group, not an image: the links inside stay reachable.
    return _svg(width, height, "dag", label, "".join(parts), role="group")


def sparkline(
    values: Sequence[float | None], *, label: str, share: bool = False, width: int = 110, height: int = 34
) -> str:
    """A line through the values, oldest first, left out where nothing was measured; a `share` is drawn from 0 to 1."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, high = (0.0, 1.0) if share else (min(known), max(known))
    span = (high - low) or 1.0
    step = (width - 8) / max(len(values) - 1, 1)
    points = [
        (4 + index * step, height - 5 - (value - low) / span * (height - 10))
        for index, value in enumerate(values)
        if value is not None
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    last = f'<circle class="dot" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3"/>'
    shown = [f"{value:.0%}" if share else f"{value:.4g}" for value in known]
    words = f"{label}: {' → '.join(shown[-8:])}"
    return _svg(width, height, "spark", words, f'<polyline class="line" points="{line}"/>{last}')


def histogram(measurement: Measurement, *, bins: int = 32, width: int = 180, height: int = 40) -> str:
    """The readings of one measurement up to p99, with lines at p50, p95 and p99."""
    top = (measurement.percentile(99) or 0) * 1.1
    if len(measurement.values) < 2 or top <= 0:
        return ""
    counts = [0] * bins
    for value in measurement.values:
        counts[max(0, min(int(value / top * bins), bins - 1))] += 1
    bar, tallest = width / bins, max(counts)
    bars = "".join(
        f'<rect class="bar" x="{i * bar:.1f}" y="{height - n / tallest * (height - 4):.1f}" '
        f'width="{bar - 1:.1f}" height="{n / tallest * (height - 4):.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    lines = "".join(
        f'<line class="p{percent}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
        for percent in (50, 95, 99)
        if 0 <= (x := (measurement.percentile(percent) or 0) / top * width) <= width
    )
    words = ", ".join(f"p{percent} {measurement.percentile(percent) or 0:.2f}" for percent in (50, 95, 99))
    return _svg(width, height, "hist", f"{measurement.name}: {words} {measurement.unit}", bars + lines)


def _text(text: str) -> str:
    return escape(bare(text))


def _svg(width: float, height: float, css: str, words: str, inside: str, *, role: str = "img") -> str:
    title = f"<title>{_text(words)}</title>" if role == "img" else ""
    return (
        f'<svg class="{css}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="{role}" aria-label="{_text(words)}">{title}{inside}</svg>'
    )


# --- where the boxes stand ---------------------------------------------------------------------------


def _reduced(steps: Sequence[StepRecord]) -> dict[str, list[str]]:
    """What each step needs, without what follows from its other needs, and without what would close a circle."""
    known: dict[str, list[str]] = {}
    above: dict[str, set[str]] = {}
    by_id = {step.step: step for step in steps}

    def visit(step: str, path: frozenset[str]) -> set[str]:
        if step not in above:
            direct = [need for need in by_id[step].needs if need in by_id and need not in path | {step}]
            reach = {need: visit(need, path | {step}) for need in direct}
            known[step] = [need for need in direct if not any(need in reach[other] for other in direct)]
            above[step] = set(direct).union(*reach.values())
        return above[step]

    for step in steps:
        visit(step.step, frozenset())
    return {step.step: known[step.step] for step in steps}


def _layers(needs: Mapping[str, Sequence[str]]) -> tuple[Layers, list[list[str]]]:
    """The steps layer by layer with stand-ins where an edge passes, and each edge as the nodes it runs through."""
    depth: dict[str, int] = {}

    def place(step: str) -> int:
        if step not in depth:
            depth[step] = 1 + max((place(need) for need in needs[step]), default=-1)
        return depth[step]

    layers: Layers = [[] for _ in range(1 + max(map(place, needs), default=-1))]
    for step in needs:
        layers[depth[step]].append(step)
    chains = []
    for step, wanted in needs.items():
        for need in wanted:
            between = [f"{need}>{step}:{level}" for level in range(depth[need] + 1, depth[step])]
            for level, dummy in enumerate(between, depth[need] + 1):
                layers[level].append(dummy)
            chains.append([need, *between, step])
    _untangle(layers, chains)
    return layers, chains


def _untangle(layers: Layers, chains: Sequence[Sequence[str]]) -> None:
    """Order each layer by where its neighbours in the layer before stand, then by those after."""
    pairs = [(a, b) for chain in chains for a, b in pairwise(chain)]
    for _ in range(3):
        for direction in (1, -1):
            ordered = layers[::direction]
            for before, layer in pairwise(ordered):
                at = {node: index / max(len(before) - 1, 1) for index, node in enumerate(before)}
                near = {
                    node: [at[x] for pair in pairs if node in pair for x in pair if x in at] or [layer.index(node)]
                    for node in layer
                }
                layer.sort(key=lambda node, near=near: sum(near[node]) / len(near[node]))  # type: ignore[misc]


def _places(layers: Layers, down: bool) -> tuple[dict[str, tuple[float, float]], float, float]:
    """The centre of every node, and the picture's size."""
    along, across = (BOX_HEIGHT + 40, BOX_WIDTH) if down else (BOX_WIDTH + 48, BOX_HEIGHT)
    gap = 22 if down else 16
    sizes = [[DUMMY if ">" in node else across for node in layer] for layer in layers]
    spans = [sum(size) + gap * (len(size) - 1) for size in sizes]
    widest = max(spans, default=0)
    places: dict[str, tuple[float, float]] = {}
    for level, layer in enumerate(layers):
        at = MARGIN + (widest - spans[level]) / 2
        for node, size in zip(layer, sizes[level], strict=True):
            far = MARGIN + level * along + (BOX_HEIGHT if down else BOX_WIDTH) / 2
            places[node] = (at + size / 2, far) if down else (far, at + size / 2)
            at += size + gap
    length = max(len(layers) * along - (40 if down else 48), 0) + 2 * MARGIN
    breadth = widest + 2 * MARGIN
    return (places, breadth, length) if down else (places, length, breadth)


# --- strokes -----------------------------------------------------------------------------------------


def _edge(nodes: Sequence[tuple[float, float]], down: bool) -> str:
    half = (BOX_HEIGHT if down else BOX_WIDTH) / 2
    points = []
    for index, (x, y) in enumerate(nodes):
        before = 0 if index == 0 else -half
        after = 0 if index == len(nodes) - 1 else half
        ends = {before, after} - {0} if index in {0, len(nodes) - 1} else {before, after}
        for shift in sorted(ends):
            points.append((x, y + shift) if down else (x + shift, y))
    x, y = points[-1]
    points[-1] = (x, y - 6) if down else (x - 6, y)
    path = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    for index, ((x1, y1), (x2, y2)) in enumerate(pairwise(points)):
        if index % 2:  # beside a layer's boxes: straight through
            path += f" L{x2:.0f},{y2:.0f}"
        elif down:
            middle = (y1 + y2) / 2
            path += f" C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"
        else:
            middle = (x1 + x2) / 2
            path += f" C{middle:.0f},{y1:.0f} {middle:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"
    head = (
        f"M{x - 4:.0f},{y - 7:.0f} L{x + 4:.0f},{y - 7:.0f} L{x:.0f},{y:.0f} Z"
        if down
        else f"M{x - 7:.0f},{y - 4:.0f} L{x - 7:.0f},{y + 4:.0f} L{x:.0f},{y:.0f} Z"
    )
    return f'<path class="edge" d="{path}"/><path class="head" d="{head}"/>'


def _box(step: StepRecord, centre: tuple[float, float], link: str, t: Words) -> str:
    x, y = centre[0] - BOX_WIDTH / 2, centre[1] - BOX_HEIGHT / 2
    title, state = bare(t(step.title)), t(str(step.status))
    first, second = _two_lines(title)
    status = str(step.status).replace(" ", "-")
    inside = (
        f'<rect class="box {status}" x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"/>'
        f'<text class="number" x="{x + 12:.0f}" y="{y + 20:.0f}">{_text(step.step)}</text>'
        f'<text class="state {status}" x="{x + BOX_WIDTH - 12:.0f}" y="{y + 20:.0f}" text-anchor="end">'
        f"{_text(state)}</text>"
        f'<text x="{x + 12:.0f}" y="{y + 37:.0f}">{_text(first)}</text>'
        f'<text x="{x + 12:.0f}" y="{y + 51:.0f}">{_text(second)}</text>'
    )
    words = f"{step.step} {title}: {state}"
    if step.needs:
        words += f"; {t('needs')} {', '.join(step.needs)}"
    if not link:
        return f'<g role="img" aria-label="{_text(words)}">{inside}</g>'
    return f'<a href="{escape(link)}" aria-label="{_text(words)}"><title>{_text(words)}</title>{inside}</a>'


def _two_lines(text: str, width: int = 23) -> tuple[str, str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    cut = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    if len(cut) > 2:
        cut[1] = cut[1][: width - 2] + " …"
    return cut[0], cut[1] if len(cut) > 1 else ""
