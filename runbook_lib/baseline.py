"""Measurements beside those of earlier: better, the same or worse, by the intervals of their medians."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import comb
from pathlib import Path
from typing import Any

from runbook_lib.errors import ParameterError
from runbook_lib.facts import Compared
from runbook_lib.model import Measurement, measurement_from_dict, to_dict

LARGER_IS_BETTER = frozenset({"IOPS", "MiB/s", "Gbit/s", "requests/s"})
FEWEST = 3
"""Readings without which nothing is said."""

ALIKE = 0.10
"""Medians nearer to each other than this are the same, however narrow their intervals are."""

UNFELT = {"ms": 1.0, "s": 0.2}
"""Differences that nobody feels, by unit."""

FORMAT = "runbook-baseline"


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % interval of the median by order statistics, which asks nothing of the distribution.

    Of fewer than six readings it is their whole range, which then covers less than 95 %. Raises ValueError of none.
    """
    held = sorted(values)
    if not held:
        raise ValueError("no readings")
    count, below, rank = len(held), 0.0, 0
    while rank < count // 2:  # how many readings may be cut off at each end
        below += comb(count, rank) / 2**count
        if below > 0.025:
            break
        rank += 1
    cut = max(rank - 1, 0)
    return held[cut], held[count - 1 - cut]


def compare(measured: Iterable[Measurement], earlier: Iterable[Measurement]) -> list[Compared]:
    """Each measurement beside the earlier one of the same name, subject and unit.

    It is better or worse where the intervals of the medians do not meet, and the medians differ by a tenth or more and
    by as much as anybody feels.
    """
    known = {(row.name, row.subject, row.unit): row for row in earlier if row.values}
    return [_compared(row, known.get((row.name, row.subject, row.unit))) for row in measured]


def _compared(now: Measurement, then: Measurement | None) -> Compared:
    if not now.values:
        return Compared(now.name, now.subject, now.unit, 0, None, None, None, None, verdict="too few")
    low, high = interval(now.values)
    own = (now.name, now.subject, now.unit, len(now.values), now.percentile(50), now.percentile(95), low, high)
    if then is None:
        return Compared(*own)
    before = interval(then.values)
    return Compared(*own, then.percentile(50), *before, verdict=_verdict(now, then, (low, high), before))


def _verdict(now: Measurement, then: Measurement, mine: tuple[float, float], theirs: tuple[float, float]) -> str:
    if min(len(now.values), len(then.values)) < FEWEST:
        return "too few"
    median, before = now.percentile(50) or 0.0, then.percentile(50) or 0.0
    apart = mine[0] > theirs[1] or mine[1] < theirs[0]
    if not apart or abs(median - before) < max(ALIKE * before, UNFELT.get(now.unit, 0.0)):
        return "same"
    more = median > before
    return "better" if more == (now.unit in LARGER_IS_BETTER) else "worse"


def text(measured: Iterable[Measurement], *, site: str, run: str) -> str:
    """The contents of a baseline file: every reading, so that a later run can make its own intervals of them."""
    rows = to_dict([row for row in measured if row.values])
    whole = {"format": FORMAT, "version": 1, "site": site, "run": run, "measurements": rows}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> tuple[list[Measurement], str]:
    """The measurements of a baseline file, and the run they are of. Raises ParameterError for any other file."""
    asked = f"benchmarks.baseline: {path.name}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(asked, f"it cannot be read: {type(error).__name__}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ParameterError(asked, "it is no baseline", "take the file that step 43 keeps in a run's manifests/")
    try:
        return [measurement_from_dict(row) for row in data["measurements"]], str(data.get("run", ""))
    except (KeyError, TypeError) as error:
        raise ParameterError(asked, f"a measurement in it is not whole: {error}") from error


def earlier(site: Any, runs: Sequence[Any], *, step: str = "43", this: str = "", root: Path | None = None) -> tuple[
    list[Measurement], str
]:  # fmt: skip
    """What to compare with, and where it is from: the site's baseline file, or else the last finished run."""
    if site.benchmarks.baseline:
        from runbook_lib.parameters import project_root

        found, run = read((root or project_root()) / site.benchmarks.baseline)
        return found, f"baseline {run}"
    for run in runs:
        for record in run.steps:
            if run.id != this and record.step == step and record.result and record.result.measurements:
                return list(record.result.measurements), run.id
    return [], ""
