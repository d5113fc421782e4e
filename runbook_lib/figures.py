"""Figures of measurements, drawn without pyplot (no global state, no backend to lose after a fork)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runbook_lib.display import Bundle, plain
from runbook_lib.model import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED, _ORANGE = "#2f6f9f", "#6b7280", "#b42318", "#b45309"


def histogram(measurements: Measurement | Iterable[Measurement], *, title: str = "") -> tuple[Figure, str]:
    """A figure with one histogram a measurement, its p50, p95 and p99 and the threshold, and the same in words."""
    from matplotlib.figure import Figure

    given = [measurements] if isinstance(measurements, Measurement) else list(measurements)
    columns = min(2, max(1, len(given)))
    rows = max(1, math.ceil(len(given) / columns))
    figure = Figure(figsize=(4.6 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, entry in zip(axes, given, strict=False):
        _histogram(axis, entry)
    for axis in axes[len(given) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(_text(title))
    return figure, "; ".join([title or "Histogram", *(_in_words(entry) for entry in given)])


def bars(
    values: Mapping[str, float | None], *, unit: str = "", title: str = "", limit: float | None = None
) -> tuple[Figure, str]:
    """A figure with one horizontal bar a name and the limit as a line, and the same in words."""
    from matplotlib.figure import Figure

    known = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    figure = Figure(figsize=(7.5, 0.9 + 0.34 * max(1, len(known))), layout="constrained")
    axis = figure.subplots()
    colours = [_RED if limit is not None and value > limit else _BLUE for value in known.values()]
    drawn = axis.barh(range(len(known)), list(known.values()), color=colours)
    axis.set_yticks(range(len(known)), [_text(name) for name in known])
    axis.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    if limit is not None:
        axis.axvline(limit, color=_RED, linestyle="--", linewidth=1, label=f"limit {limit:g} {unit}".strip())
        axis.legend(fontsize=8)
    axis.set_xlabel(_text(unit))
    axis.set_title(_text(title), fontsize=10)
    _quiet(axis)
    words = ", ".join(f"{name} {value:.3g} {unit}".strip() for name, value in known.items()) or "nothing to draw"
    return figure, f"{title or 'Bars'}: {words}" + (f"; limit {limit:g} {unit}".rstrip() if limit is not None else "")


def bundle(figure: Any, alt: str) -> tuple[Bundle, dict[str, Any]]:
    """The figure as PNG with its alternative text, and the metadata that carries it to a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    words = plain(alt)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": words}
    return data, {"image/png": {"alt": words}}


def _histogram(axis: Any, entry: Measurement) -> None:
    emulated = ", emulated" if entry.emulated else ""
    axis.set_title(_text(f"{entry.name} (n={len(entry.values)}{emulated})"), fontsize=9)
    axis.set_xlabel(_text(entry.unit), fontsize=8)
    _quiet(axis)
    if not entry.values:
        axis.text(0.5, 0.5, "no readings", ha="center", va="center", transform=axis.transAxes, color=_GREY)
        return
    axis.hist(entry.values, bins=_bins(entry.values), color=_BLUE)
    for percent, style in ((50, "-"), (95, "--"), (99, ":")):
        at = entry.percentile(percent)
        axis.axvline(at, color=_ORANGE, linestyle=style, linewidth=1.1, label=f"p{percent} {at:.3g}")
    # A threshold far beyond the readings would squeeze them into one bar; then it is only named.
    if entry.threshold is not None and entry.threshold <= 3 * max(entry.values):
        axis.axvline(entry.threshold, color=_RED, linewidth=1.3, label=f"limit {entry.threshold:g}")
    elif entry.threshold is not None:
        axis.plot([], [], color=_RED, linewidth=1.3, label=f"limit {entry.threshold:g} (beyond)")
    axis.legend(fontsize=7)


def _bins(values: Sequence[float]) -> int:
    return max(1, min(30, math.ceil(math.sqrt(len(values)) * 1.5)))


def _quiet(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _text(text: str) -> str:
    """Clean, and with `$` kept from starting a formula: a hostile name must not be set as mathematics."""
    return plain(text).replace("$", r"\$")


def _in_words(entry: Measurement) -> str:
    if not entry.values:
        return f"{entry.name}: no readings"
    parts = [f"p{percent} {entry.percentile(percent):.3g} {entry.unit}" for percent in (50, 95, 99)]
    limit = f", limit {entry.threshold:g} {entry.unit}" if entry.threshold is not None else ""
    return f"{entry.name}, {len(entry.values)} readings: {', '.join(parts)}{limit}"
