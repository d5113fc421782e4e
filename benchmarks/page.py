"""The measurements as tables: for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import Case, Sample, middle, values

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PEERS = ("papermill", "nbclient", "nbconvert", "proxmoxer", "kubernetes")

Samples = Mapping[str, Sequence[Sample]]


def machine() -> str:
    """The machine in one line, without its name."""
    cores = os.cpu_count() or 0
    words = [f"{cores} cores", f"{platform.system()} {platform.machine()}", f"Python {platform.python_version()}"]
    return ", ".join([*words, *(f"{name} {version(name)}" for name in PEERS)])


def markdown(results: Iterable[tuple[Case, Samples]]) -> str:
    """What stands between the markers."""
    load = f"The load average was {os.getloadavg()[1]:.1f} at the end; beside other work, trust the CPU seconds."
    parts = [f"Measured on {datetime.now(UTC):%Y-%m-%d}: {machine()}.\n{load}"]
    parts += [part for case, samples in results for part in section(case, samples)]
    return "\n\n".join(parts) + "\n"


def section(case: Case, samples: Samples) -> list[str]:
    """Heading, table, verdict and notes of one comparison."""
    count = len(next(iter(samples.values())))
    parts = [f"## {case.title}", "\n".join(rows(case, samples))]
    if case.met:
        parts.append(f"Target: {case.target} — {'met' if case.met(samples) else '**missed**'}.")
    said = [f"Median of {count} turns, the smallest and largest in brackets.", *verdict(case, samples), *case.notes]
    return [*parts, "\n".join(said)]


def rows(case: Case, samples: Samples) -> list[str]:
    """The Markdown table of one comparison."""
    headings = ["what", "how", "wall s", "CPU s", *case.columns.values()]
    lines = [_row(headings), _row(["---", "---", *("--:" for _ in headings[2:])])]
    for contender in case.contenders:
        taken = samples[contender.name]
        cells = [f"`{contender.name}`" if contender.ours else contender.name, contender.how]
        cells += [spread(taken, key) for key in ("wall", "cpu", *case.columns)]
        lines.append(_row(cells))
    return lines


def verdict(case: Case, samples: Samples) -> list[str]:
    """How our first contender stands to each peer, also where it loses."""
    peers = [contender for contender in case.contenders if not contender.ours]
    first = next(contender for contender in case.contenders if contender.ours)
    if case.better:
        return [_compared(case, samples, first.name, peer.name, key) for peer in peers for key in case.better]
    mine = middle(samples[first.name])
    lines = []
    for peer in peers:
        ratio = middle(samples[peer.name]) / mine
        word = f"{ratio:.1f} times as fast as" if ratio >= 1 else f"{1 / ratio:.1f} times as slow as"
        lines.append(f"`{first.name}` is {word} {peer.name}.")
    return lines


def _compared(case: Case, samples: Samples, mine: str, theirs: str, key: str) -> str:
    own, other = middle(samples[mine], key), middle(samples[theirs], key)
    ratio = (own / other if case.better[key] == "more" else other / own) if own and other else math.nan
    word = f"{ratio:.1f} times as good as" if ratio >= 1 else f"{1 / ratio:.1f} times as bad as"
    return f"{case.columns[key]}: `{mine}` is {word} {theirs}."


def spread(samples: Sequence[Sample], key: str) -> str:
    """`median (smallest–largest)`, or a single number when nothing varies."""
    seen = [value for value in values(samples, key) if not math.isnan(value)]
    if not seen:
        return "–"
    low, high = _number(min(seen)), _number(max(seen))
    return low if low == high else f"{_number(middle(samples, key))} ({low}–{high})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replace_between(page: Path, text: str) -> None:
    """Write `text` between the page's markers; what stands around them stays."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
