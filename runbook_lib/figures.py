"""Figures drawn from facts and results, each with a text that says the same.

Drawn without pyplot: no global state, and no backend to lose after a fork. matplotlib is loaded on first use.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from runbook_lib.display import Bundle, plain
from runbook_lib.facts import Connection, Guest, KubeNode, Node, PairSpeed
from runbook_lib.model import Measurement, Run, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from runbook_lib.results import RunMetrics

# A palette that stays apart in greyscale and for the common colour-vision deficiencies (Okabe and Ito).
INK, SHADE = "#0072B2", "#A6CEE3"
STATUS_COLOURS = {
    Status.PASS: "#009E73",
    Status.WARN: "#E69F00",
    Status.FAIL: "#D55E00",
    Status.ERROR: "#7F3C8D",
    Status.SKIP: "#999999",
    Status.NOT_RUN: "#CCCCCC",
}
GIB = 1024**3


def headroom(nodes: Sequence[Node], guests: Sequence[Guest]) -> Figure:
    """Per node: memory there is, in use, and promised to running guests, in GiB."""
    known = [node for node in nodes if node.memory_bytes]
    promised = {
        node.name: sum(g.memory_bytes for g in guests if g.node == node.name and g.status == "running") / GIB
        for node in known
    }
    figure, axes = _canvas(height=0.6 + 0.55 * max(len(known), 1))
    for row, node in enumerate(known):
        there = (node.memory_bytes or 0) / GIB
        used = (node.memory_used_bytes or 0) / GIB
        axes.barh(row, there, height=0.7, color="none", edgecolor="#888888", label="installed" if not row else None)
        axes.barh(row + 0.15, used, height=0.3, color=INK, label="in use" if not row else None)
        axes.barh(row - 0.15, promised[node.name], height=0.3, color=SHADE, label="promised" if not row else None)
    axes.set_yticks(range(len(known)), [_text(node.name) for node in known])
    axes.invert_yaxis()
    axes.set_xlabel("memory, GiB")
    _legend(axes)
    lines = (
        f"{node.name}: {(node.memory_used_bytes or 0) / GIB:.0f} GiB in use and {promised[node.name]:.0f} GiB promised "
        f"of {(node.memory_bytes or 0) / GIB:.0f} GiB"
        for node in known
    )
    return _described(figure, "Memory by node. " + "; ".join(lines))


def requests(nodes: Sequence[KubeNode]) -> Figure:
    """Per node: the share of CPU and memory that pods have requested."""
    figure, axes = _canvas(height=0.6 + 0.5 * max(len(nodes), 1))
    cpu = [_share(node.requested_cpus, node.allocatable_cpus) for node in nodes]
    memory = [_share(node.requested_memory_bytes, node.allocatable_memory_bytes) for node in nodes]
    places = range(len(nodes))
    axes.barh([place + 0.18 for place in places], [value * 100 for value in cpu], height=0.34, color=INK, label="CPU")
    axes.barh(
        [place - 0.18 for place in places], [value * 100 for value in memory], height=0.34, color=SHADE, label="memory"
    )
    axes.set_yticks(list(places), [_text(node.name) for node in nodes])
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel("requested, % of allocatable")
    _legend(axes)
    lines = (f"{node.name}: CPU {c:.0%}, memory {m:.0%}" for node, c, m in zip(nodes, cpu, memory, strict=True))
    return _described(figure, "Requests by node. " + "; ".join(lines))


def histogram(measurements: Sequence[Measurement], *, threshold: float | None = None) -> Figure:
    """One row per measurement: its readings as a histogram with p50, p95 and p99, on one shared axis."""
    shown = [measurement for measurement in measurements if measurement.values]
    figure, all_axes = _grid(height=0.7 + 0.9 * max(len(shown), 1), rows=max(len(shown), 1))
    top = max((measurement.percentile(99) or 0 for measurement in shown), default=1) * 1.15 or 1
    for axes, measurement in zip(all_axes, shown, strict=False):
        inside = [min(value, top) for value in measurement.values]
        axes.hist(inside, bins=40, range=(0, top), color=SHADE)
        for percent, style in ((50, "-"), (95, "--"), (99, ":")):
            axes.axvline(measurement.percentile(percent) or 0, color=INK, linestyle=style, linewidth=1.4)
        axes.set_yticks([])
        axes.set_ylabel(_text(measurement.name), rotation=0, ha="right", va="center")
        axes.tick_params(labelbottom=axes is all_axes[-1])
    all_axes[-1].set_xlabel(f"{shown[0].unit if shown else 'ms'}; lines: p50 solid, p95 dashed, p99 dotted")
    if threshold is not None and threshold <= top:
        for axes in all_axes:
            axes.axvline(threshold, color=STATUS_COLOURS[Status.FAIL])
    lines = map(_in_words, measurements)
    emulated = "Emulated. " if any(measurement.emulated for measurement in shown) else ""
    if emulated:
        figure.suptitle("emulated", x=0.99, ha="right", fontsize=8, color="#777777")
    return _described(figure, emulated + "; ".join(lines))


class MomentLike(Protocol):
    """When a machine was first seen at a stage: `evidence.Moment`."""

    @property
    def machine(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def seconds(self) -> float: ...


LANES = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#999999")


def timeline(moments: Sequence[MomentLike], *, title: str = "") -> Figure:
    """Per machine a bar from its first stage to its last, cut where each stage was seen to be reached."""
    lanes: dict[str, list[MomentLike]] = {}
    for row in sorted(moments, key=lambda row: row.seconds):
        lanes.setdefault(row.machine, []).append(row)
    figure, axes = _canvas(height=1.2 + 0.6 * max(len(lanes), 1))
    stages = list(dict.fromkeys(row.stage for rows in lanes.values() for row in rows))
    colours = {stage: LANES[number % len(LANES)] for number, stage in enumerate(stages)}
    told: set[str] = set()
    for place, rows in enumerate(lanes.values()):
        for before, row in pairwise(rows):
            label = row.stage if row.stage not in told else None
            told.add(row.stage)
            width = row.seconds - before.seconds
            axes.barh(place, width, left=before.seconds, height=0.5, color=colours[row.stage], label=label)
            axes.plot(row.seconds, place, marker="|", markersize=16, color="#333333")
    axes.set_yticks(range(len(lanes)), [_text(name) for name in _short(list(lanes))])
    axes.invert_yaxis()
    axes.set_xlabel("seconds after the request; each colour ends where its stage was reached")
    if title:
        axes.set_title(_text(title))
    if told:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=4, frameon=False, fontsize=8)
    lines = (
        f"{name}: " + ", ".join(f"{row.stage} at {row.seconds:.1f} s" for row in rows) for name, rows in lanes.items()
    )
    return _described(figure, "Stages by machine. " + ("; ".join(lines) or "no machine came"))


def _short(names: list[str]) -> list[str]:
    """The names without the beginning they share, which says nothing in a figure of one cluster."""
    split = [name.split("-") for name in names]
    shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False)))
    cut = shared if len(names) > 1 else -2
    return ["-".join(parts[cut:]) or name for parts, name in zip(split, names, strict=True)]


def readings(measurements: Sequence[Measurement]) -> Figure:
    """One row per measurement and subject: every reading as a dot, the median as a bar; a row per unit's scale."""
    shown = [measurement for measurement in measurements if measurement.values]
    units = list(dict.fromkeys(measurement.unit for measurement in shown))
    rows = {unit: [measurement for measurement in shown if measurement.unit == unit] for unit in units}
    figure, all_axes = _grid(height=0.8 + 0.38 * max(len(shown), 1) + 0.5 * len(units), rows=max(len(units), 1),
                             shared=False)  # fmt: skip
    for axes, unit in zip(all_axes, units, strict=False):
        for place, measurement in enumerate(rows[unit]):
            axes.plot(measurement.values, [place] * len(measurement.values), "o", color=SHADE, markersize=6)
            axes.plot([measurement.percentile(50) or 0], [place], "|", color=INK, markersize=16, markeredgewidth=2.5)
        names = [_text(f"{measurement.name} {measurement.subject}") for measurement in rows[unit]]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{unit}; dots: readings, bar: median")
    emulated = "Emulated. " if any(measurement.emulated for measurement in shown) else ""
    if emulated:
        figure.suptitle("emulated", x=0.99, ha="right", fontsize=8, color="#777777")
    lines = (
        f"{entry.name} {entry.subject}: median {entry.percentile(50) or 0:.4g} {entry.unit} of {len(entry.values)}"
        for entry in shown
    )
    return _described(figure, emulated + "; ".join(lines))


def reachability(rows: Sequence[Connection], *, phase: str = "as shipped") -> Figure:
    """Sources down, targets across: each cell open or closed as seen, framed where something else was expected.

    A cell stands for all protocols and families of a pair; where they differ it is "mixed".
    """
    mine = [row for row in rows if row.phase == phase]
    sources = list(dict.fromkeys(row.source for row in mine))
    targets = list(dict.fromkeys(row.target for row in mine))
    figure, axes = _canvas(height=1.8 + 0.36 * max(len(sources), 1))
    colours = {"open": SHADE, "closed": INK, "mixed": STATUS_COLOURS[Status.WARN], "unknown": "#EEEEEE"}
    told = []
    for down, source in enumerate(sources):
        for across, target in enumerate(targets):
            cell = [row for row in mine if row.source == source and row.target == target]
            if not cell:
                continue
            states = {row.seen for row in cell}
            state = states.pop() if len(states) == 1 else "mixed"
            wrong = any(row.seen not in {row.expected, "unknown"} for row in cell)
            edge = STATUS_COLOURS[Status.FAIL] if wrong else "white"
            axes.add_patch(_cell(across, down, colours[state], edge, 2.5 if wrong else 0.8))
            sign = {"open": "o", "closed": "x", "mixed": "~", "unknown": "?"}[state]
            axes.text(across, down, sign, ha="center", va="center", fontsize=8,
                      color="white" if state == "closed" else "black")  # fmt: skip
            if wrong:
                told.append(f"{source} to {target} is {state}, {cell[0].expected} was expected")
    axes.set_xlim(-0.5, max(len(targets), 1) - 0.5)
    axes.set_ylim(max(len(sources), 1) - 0.5, -0.5)
    axes.set_xticks(range(len(targets)), [_text(name) for name in targets], rotation=40, ha="right", fontsize=7)
    axes.set_yticks(range(len(sources)), [_text(name) for name in sources], fontsize=7)
    axes.set_title("o open, x closed, ~ both, ? not tried; a frame marks what was not expected", fontsize=8)
    seen = [row.seen for row in mine]
    counts = ", ".join(f"{seen.count(state)} {state}" for state in ("open", "closed", "unknown"))
    surprises = "; ".join(told) or "nothing that was not expected"
    return _described(figure, f"Connections {phase}: {counts}. {surprises}")


def progress(runs: Sequence[RunMetrics]) -> Figure:
    """Run by run, oldest first: the share of checks that passed, and how many problems stood."""
    ordered = [row for row in reversed(runs) if row.share_passed is not None]
    figure, (above, below) = _grid(height=3.6, rows=2)
    places = range(len(ordered))
    above.plot(places, [(row.share_passed or 0) * 100 for row in ordered], "o-", color=INK)
    above.set_ylim(0, 105)
    above.set_ylabel("passed, %")
    below.bar(places, [row.problems for row in ordered], color=SHADE)
    below.set_ylim(bottom=0)
    below.set_ylabel("problems")
    step = max(1, len(ordered) // 8)
    shown = [(place, row.started[5:16].replace("T", " ")) for place, row in enumerate(ordered) if place % step == 0]
    below.set_xticks([place for place, _ in shown], [label for _, label in shown], fontsize=8)
    lines = (f"{row.started[:16]}: {row.share_passed or 0:.0%} passed, {row.problems} problems" for row in ordered)
    return _described(figure, "Progress by run. " + ("; ".join(lines) or "no run judged anything"))


def pair_speeds(pairs: Sequence[PairSpeed]) -> Figure:
    """Sources down, targets across: the median speed between pods of each pair of nodes; darker is faster."""
    names = list(dict.fromkeys([row.source for row in pairs] + [row.target for row in pairs]))
    figure, axes = _canvas(height=1.6 + 0.4 * max(len(names), 1))
    speed = {(row.source, row.target): median(row.gbits) for row in pairs if row.gbits}
    most = max(speed.values(), default=1.0)
    for row in pairs:
        down, across = names.index(row.source), names.index(row.target)
        value = speed.get((row.source, row.target))
        share = (value or 0.0) / most
        patch = _cell(across, down, SHADE if value else "#EEEEEE", "white", 0.8)
        patch.set_alpha(0.25 + 0.75 * share if value else 1.0)
        axes.add_patch(patch)
        axes.text(across, down, f"{value:.1f}" if value else "?", ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), [_text(name) for name in names], rotation=40, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), [_text(name) for name in names], fontsize=7)
    axes.set_title("Gbit/s between pods, median; from the left to below", fontsize=8)
    told = "; ".join(f"{source} to {target} {value:.1f}" for (source, target), value in speed.items())
    return _described(figure, f"Gbit/s between pods: {told or 'nothing was measured'}")


def _cell(across: int, down: int, face: str, edge: str, width: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((across - 0.46, down - 0.42), 0.92, 0.84, facecolor=face, edgecolor=edge, linewidth=width)


class StepLike(Protocol):
    """A step with its needs: `runner.StepSpec` and `model.StepRecord` both are one."""

    @property
    def step(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def needs(self) -> Sequence[str]: ...


def dag(steps: Sequence[StepLike], run: Run | None = None) -> Figure:
    """The steps from left to right by what they need, framed in the colour of what each came to in the run."""
    needs = {entry.step: entry.needs for entry in steps}
    titles = {entry.step: entry.title for entry in steps}
    statuses = {record.step: record.status for record in run.steps} if run else {}
    depth: dict[str, int] = {}
    for step in _ordered(needs):
        depth[step] = 1 + max((depth[other] for other in needs[step] if other in depth), default=-1)
    columns: dict[int, list[str]] = {}
    for step in sorted(depth):
        columns.setdefault(depth[step], []).append(step)
    tallest = max((len(column) for column in columns.values()), default=1)
    figure, axes = _canvas(height=0.4 + 0.75 * tallest)
    places = {
        step: (column, (tallest - 1) / 2 - (len(steps) - 1) / 2 + row)
        for column, steps in columns.items()
        for row, step in enumerate(steps)
    }
    for step, others in needs.items():
        for other in others:
            if other in places:
                axes.annotate(
                    "",
                    xy=(places[step][0] - 0.4, places[step][1]),
                    xytext=(places[other][0] + 0.4, places[other][1]),
                    arrowprops={"arrowstyle": "->", "color": "#999999", "linewidth": 1},
                )
    for step, (x, y) in places.items():
        status = statuses.get(step, Status.NOT_RUN)
        axes.text(
            x,
            y,
            _text(f"{step}\n{_wrapped(titles.get(step, ''))}"),
            ha="center",
            va="center",
            fontsize=8,
            bbox={
                "boxstyle": "round,pad=0.4",
                "facecolor": "white",
                "edgecolor": STATUS_COLOURS[status],
                "linewidth": 2,
            },
        )
    axes.set_xlim(-0.6, max(columns, default=0) + 0.6)
    axes.set_ylim(tallest - 0.4, -0.6)
    axes.axis("off")
    lines = []
    for step, others in needs.items():
        status = statuses.get(step, Status.NOT_RUN)
        lines.append(f"{step} {titles.get(step, '')} ({status}) needs {', '.join(others) or 'nothing'}")
    return _described(figure, "; ".join(lines))


def bundle(figure: Any, alt: str) -> tuple[Bundle, dict[str, Any]]:
    """The figure as PNG with its alternative text, and the metadata that carries it to a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    words = plain(alt)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": words}
    return data, {"image/png": {"alt": words}}


def _canvas(*, height: float) -> tuple[Figure, Axes]:
    figure, axes = _grid(height=height, rows=1)
    return figure, axes[0]


def _grid(*, height: float, rows: int, shared: bool = True) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=shared, squeeze=False)[:, 0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, frameon=False, fontsize=8)


def _described(figure: Figure, text: str) -> Figure:
    """The figure with its text equivalent, which `step.figure` shows to those who do not see it."""
    figure.alt_text = text  # type: ignore[attr-defined]
    return figure


def _text(text: str) -> str:
    """Text that matplotlib draws as it stands: a dollar would begin a formula, and a bad one is an exception."""
    return plain(text).replace("\\", "\\\\").replace("$", r"\$") if "$" in text else plain(text)


def _in_words(measurement: Measurement) -> str:
    if not measurement.values:
        return f"{measurement.name}: no readings"
    figures = (f"p{percent} {measurement.percentile(percent):.1f}" for percent in (50, 95, 99))
    return f"{measurement.name}: {', '.join(figures)} {measurement.unit}"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _ordered(needs: Mapping[str, Sequence[str]]) -> list[str]:
    done: list[str] = []
    waiting = sorted(needs)
    while waiting:
        ready = [step for step in waiting if not (set(needs[step]) & set(waiting))]
        if not ready:
            raise ValueError(f"steps need each other: {', '.join(waiting)}")
        done += ready
        waiting = [step for step in waiting if step not in ready]
    return done


def _wrapped(text: str, width: int = 18) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
