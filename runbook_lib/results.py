"""Folders of outputs become Runs; runs become a history, and two of them a comparison.

A step's result is the one scrap named "step" in its executed notebook. It is read here as plain JSON: scrapbook gives
the same data (a test says so) and takes 1.5 s to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from runbook_lib.errors import UsageError
from runbook_lib.model import Finding, Run, Status, StepRecord, StepResult, run_from_dict, step_result_from_dict, worst

SCRAP_MIMETYPE = "application/scrapbook.scrap.json+json"
SCRAP_NAME = "step"
NO_RESULT = "the notebook ended without step.finish()"
WAITS_FOR_APPROVAL = "waits for approval"
BAD = frozenset({Status.FAIL, Status.ERROR})


def write_atomically(path: Path, text: str) -> None:
    """The file holds all of `text`, or what it held before; 0600, and on the disk when this returns."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------- one notebook


def read_scraps(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Scrap name → data, of every JSON scrap in the outputs; a later one replaces an earlier one of its name."""
    scraps: dict[str, Any] = {}
    for cell in notebook.get("cells", ()):
        for output in cell.get("outputs", ()):
            payload = output.get("data", {}).get(SCRAP_MIMETYPE)
            if isinstance(payload, Mapping) and "name" in payload:
                scraps[payload["name"]] = payload.get("data")
    return scraps


def read_notebook_result(path: Path) -> tuple[StepResult | None, str]:
    """The step's result in an executed notebook, and why there is none ("" when there is one)."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, "no notebook was written"
    except (OSError, ValueError) as problem:
        return None, f"{path.name} cannot be read: {problem}"
    data = read_scraps(notebook).get(SCRAP_NAME)
    if data is None:
        return None, NO_RESULT
    try:
        return step_result_from_dict(data), ""
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        return None, f"{path.name} holds a result that cannot be read: {problem}"


# ---------------------------------------------------------------- one run


def read_run(path: Path) -> Run:
    """The run in this folder. Without run.json (notebooks run by papermill alone) it is put together from the scraps.

    A step whose notebook was finished after run.json was last written counts by its notebook.
    Raises UsageError when the folder holds neither.
    """
    path = Path(path)
    file = path / "run.json"
    if not file.exists():
        return _from_notebooks(path)
    try:
        run = run_from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise UsageError(f"{path.name}/run.json cannot be read", str(problem)) from problem
    steps = tuple(_completed(record, path) for record in run.steps)
    return replace(run, steps=steps, path=f"{path.parent.name}/{path.name}")


def _completed(record: StepRecord, folder: Path) -> StepRecord:
    if record.result is not None or record.status is not Status.NOT_RUN or record.reason:
        return record
    result, _ = read_notebook_result(folder / record.notebook)
    if result is None:
        return record
    return replace(
        record,
        status=result.status,
        result=result,
        started=result.started,
        finished=result.finished,
        seconds=result.seconds,
    )


def _from_notebooks(folder: Path) -> Run:
    records = [record for path in sorted(folder.glob("*.ipynb")) if (record := _record_of(path))]
    results = [record.result for record in records if record.result]
    if not records:
        raise UsageError(f"{folder.name} is not the folder of a run", "", "it holds neither run.json nor notebooks")
    return Run(
        id=folder.name,
        site=results[0].site if results else folder.parent.name,
        started=min((result.started for result in results), default=""),
        finished=max((result.finished for result in results), default=None),
        steps=tuple(records),
        emulated=any(result.emulated for result in results),
        status=worst((record.status for record in records), empty=Status.NOT_RUN),
        path=f"{folder.parent.name}/{folder.name}",
    )


def _record_of(path: Path) -> StepRecord | None:
    if path.name.startswith("."):
        return None
    result, reason = read_notebook_result(path)
    with contextlib.suppress(OSError, ValueError):
        meta = json.loads(path.read_text(encoding="utf-8")).get("metadata", {}).get("runbook", {})
        return StepRecord(
            step=result.step if result else str(meta.get("step") or path.name[:2]),
            title=result.title if result else str(meta.get("title") or path.stem),
            notebook=path.name,
            status=result.status if result else Status.ERROR,
            needs=tuple(meta.get("needs") or ()),
            task=result.task if result else str(meta.get("task") or ""),
            reason=reason,
            started=result.started if result else None,
            finished=result.finished if result else None,
            seconds=result.seconds if result else None,
            result=result,
        )
    return None


def runs(site: str, root: Path) -> list[Run]:
    """Every readable run of a site, newest first. `root` is the project's; the runs lie in its outputs/<site>/."""
    folder = _outputs(root) / site
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (path / "run.json").is_file():
            with contextlib.suppress(UsageError):
                found.append(read_run(path))
    return sorted(found, key=lambda run: run.id, reverse=True)


def run_status(records: Iterable[StepRecord]) -> Status:
    """The worst of the steps; a run with a step that never ran is `not run`, unless it is worse."""
    statuses = [record.status for record in records]
    result = worst(statuses, empty=Status.NOT_RUN)
    if Status.NOT_RUN in statuses and result in {Status.PASS, Status.SKIP, Status.WARN}:
        return Status.NOT_RUN
    return result


def state_of_site(found: Sequence[Run]) -> Run | None:
    """The newest run with, for every step it left out, the record of the newest run that had it; None of no runs.

    A run of one step says nothing about the others: what was known of them stays known. A step that the newest run
    had and skipped is shown as skipped. `StepRecord.run` tells where each record is from.
    """
    ordered = sorted(found, key=lambda run: run.id, reverse=True)
    if not ordered:
        return None
    records: dict[str, StepRecord] = {}
    for run in ordered:
        folder = Path(run.path).name or run.id
        for record in run.steps:
            records.setdefault(record.step, replace(record, run=folder))
    steps = tuple(records[step] for step in sorted(records))
    return replace(ordered[0], steps=steps, status=run_status(steps))


def last_finished(found: Iterable[Run]) -> Run | None:
    """The newest run that has come to its end; None where none has."""
    return next((run for run in sorted(found, key=lambda run: run.id, reverse=True) if run.finished), None)


def at_a_glance(run: Run | None) -> list[dict[str, Any]]:
    """One row per step of a run: what it came to, how many findings of each status, how long it took."""
    rows = []
    for record in run.steps if run else ():
        counts = Counter(finding.status for finding in (record.result.findings if record.result else ()))
        rows.append(
            {
                "step": f"{record.step} {record.title}",
                "status": record.status,
                "findings": ", ".join(f"{counts[status]} {status}" for status in Status if counts[status]) or "none",
                "seconds": record.seconds,
                "reason": record.reason,
            }
        )
    return rows


def sites(root: Path) -> list[str]:
    """Names of the sites that have runs."""
    outputs = _outputs(root)
    if not outputs.is_dir():
        return []
    return sorted({path.parent.parent.name for path in outputs.glob("*/*/run.json")})


def find_run(name: str, root: Path, *, site: str | None = None) -> Path:
    """The folder of a run given as a path, an id, a unique beginning of one, or `last`. Raises UsageError."""
    as_path = Path(name)
    if (as_path / "run.json").is_file():
        return as_path
    outputs = _outputs(root)
    if "/" in name or name in {"", ".", ".."}:
        raise UsageError(f"there is no run {name!r}", "", "see runbook history")
    folders = sorted(path.parent for path in outputs.glob(f"{site or '*'}/*/run.json"))
    folders.sort(key=lambda folder: folder.name)
    if name == "last":
        matches = folders[-1:]
    else:
        matches = [folder for folder in folders if folder.name == name] or [
            folder for folder in folders if folder.name.startswith(name) or folder.name.endswith(f"-{name}")
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{name!r} could be {len(matches)} runs", "", f"one is {matches[-1].name}")
    where = f" of site {site}" if site else ""
    raise UsageError(f"there is no run {name!r}{where}", "", "see runbook history")


def _outputs(root: Path) -> Path:
    return Path(root) / "outputs"


# ---------------------------------------------------------------- two runs


@dataclass(frozen=True)
class FindingChange:
    """One judged subject in both runs; None where a run did not look at it."""

    check: str
    subject: str
    before: Finding | None
    after: Finding | None


@dataclass(frozen=True)
class TimingChange:
    """The median of one measurement in both runs."""

    name: str
    subject: str
    unit: str
    before: float
    after: float

    @property
    def ratio(self) -> float | None:
        """after / before; None from zero."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class StepChange:
    """A step whose status is not what it was."""

    step: str
    title: str
    before: Status | None
    after: Status | None


@dataclass(frozen=True)
class Comparison:
    """What is different between an earlier and a later run."""

    before: Run
    after: Run
    steps: tuple[StepChange, ...] = ()
    appeared: tuple[FindingChange, ...] = ()  # problems that were none before
    fixed: tuple[FindingChange, ...] = ()  # problems that are passes now
    remaining: tuple[FindingChange, ...] = ()  # problems in both
    lost: tuple[FindingChange, ...] = ()  # looked at before, not looked at any more
    timings: tuple[TimingChange, ...] = ()


def compare(before: Run, after: Run) -> Comparison:
    """The differences from an earlier run to a later one. A problem nobody looked at again is lost, not fixed."""
    old, new = _judged(before), _judged(after)
    groups: dict[str, list[FindingChange]] = {"appeared": [], "fixed": [], "remaining": [], "lost": []}
    for key in sorted({*old, *new}):
        change = FindingChange(*key, old.get(key), new.get(key))
        group = _group(change)
        if group:
            groups[group].append(change)
    return Comparison(
        before=before,
        after=after,
        steps=_step_changes(before, after),
        timings=_timings(before, after),
        **{name: tuple(entries) for name, entries in groups.items()},
    )


def _judged(run: Run) -> dict[tuple[str, str], Finding]:
    gravest: dict[tuple[str, str], Finding] = {}
    for finding in run.findings:
        key = (finding.check, finding.subject)
        if key not in gravest or worst([finding.status, gravest[key].status]) is not gravest[key].status:
            gravest[key] = finding
    return gravest


def is_problem(finding: Finding | None) -> bool:
    """True of warn, fail and error."""
    return finding is not None and finding.status in {Status.WARN, *BAD}


def _group(change: FindingChange) -> str | None:
    if is_problem(change.after):
        return "remaining" if is_problem(change.before) else "appeared"
    if is_problem(change.before):
        return "fixed" if change.after is not None and change.after.status is Status.PASS else "lost"
    if change.before is not None and change.before.status is Status.PASS and change.after is None:
        return "lost"
    return None


def _step_changes(before: Run, after: Run) -> tuple[StepChange, ...]:
    old = {record.step: record for record in before.steps}
    new = {record.step: record for record in after.steps}
    return tuple(
        StepChange(
            step,
            (new.get(step) or old[step]).title,
            old[step].status if step in old else None,
            new[step].status if step in new else None,
        )
        for step in sorted({*old, *new})
        if (old[step].status if step in old else None) != (new[step].status if step in new else None)
    )


def _timings(before: Run, after: Run) -> tuple[TimingChange, ...]:
    def medians(run: Run) -> dict[tuple[str, str, str], float]:
        measured = [entry for record in run.steps if record.result for entry in record.result.measurements]
        return {
            (entry.name, entry.subject, entry.unit): median
            for entry in measured
            if (median := entry.percentile(50)) is not None
        }

    old, new = medians(before), medians(after)
    return tuple(TimingChange(*key, old[key], new[key]) for key in sorted(old.keys() & new.keys()))


# ---------------------------------------------------------------- history


@dataclass(frozen=True)
class RunMetrics:
    """One run in figures."""

    run: str
    site: str
    started: str
    status: Status
    seconds: float | None
    checks: int  # checks completed: findings that are not skips
    passed: int
    problems: int  # warn, fail, error
    found: int  # problems that the run before did not have
    fixed: int  # problems of the run before that are passes now
    skipped: int
    steps_run: int
    steps: int
    changes: int
    requests: int
    emulated: bool

    @property
    def share_passed(self) -> float | None:
        """Passed of completed checks, 0–1; None of none."""
        return self.passed / self.checks if self.checks else None


@dataclass(frozen=True)
class Problem:
    """One problem over the runs of a site, known by its check and subject."""

    check: str
    subject: str
    status: Status  # as it was last seen: pass once it was fixed
    message: str  # of the last time it was a problem
    found: str  # start of the run that first saw it since it was last absent
    fixed: str | None  # start of the run that saw it pass; None while it stands or nobody looked again

    @property
    def seconds(self) -> float | None:
        """From the run that found it to the run that saw it fixed; None while it stands."""
        if self.fixed is None:
            return None
        return (datetime.fromisoformat(self.fixed) - datetime.fromisoformat(self.found)).total_seconds()


@dataclass(frozen=True)
class PeriodMetrics:
    """The runs of a day or a week together. What is still true at its end comes from its last run."""

    period: str  # "2026-11-23" or "2026-W48"
    runs: int
    checks: int  # completed in all runs
    share_passed: float | None  # of the last run
    found: int
    fixed: int
    problems: int  # left in the last run
    seconds: float  # in all runs
    last: Status


@dataclass(frozen=True)
class PhaseProgress:
    """How far a phase has come in the last run. A phase is the first digit of its steps."""

    phase: str
    steps: int
    done: int  # steps that ended with pass or warn
    status: Status

    @property
    def share(self) -> float:
        """0–1."""
        return self.done / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class History:
    """A site over time: the sprint's daily and weekly metrics."""

    runs: tuple[RunMetrics, ...] = ()  # newest first
    daily: tuple[PeriodMetrics, ...] = ()  # newest first
    weekly: tuple[PeriodMetrics, ...] = ()
    phases: tuple[PhaseProgress, ...] = field(default_factory=tuple)  # of the newest run


def history(found: Iterable[Run]) -> History:
    """The figures of these runs of one site, in whatever order they are given."""
    ordered = sorted(found, key=lambda run: run.id)
    earlier: Sequence[Run | None] = [None, *ordered]
    metrics = [run_metrics(run, before) for before, run in zip(earlier, ordered, strict=False)]
    return History(
        runs=tuple(reversed(metrics)),
        daily=_periods(metrics, lambda day: day.isoformat()),
        weekly=_periods(metrics, lambda day: f"{day.isocalendar().year}-W{day.isocalendar().week:02}"),
        phases=phase_progress(ordered[-1]) if ordered else (),
    )


def problems(found: Iterable[Run]) -> list[Problem]:
    """Every problem these runs of one site saw: what stands first, gravest first, then what was fixed, newest first.

    A problem that a later run did not look at still stands: only a pass is a repair.
    """
    known: dict[tuple[str, str], Problem] = {}
    for run in sorted(found, key=lambda run: run.id):
        for key, finding in _judged(run).items():
            before = known.get(key)
            if is_problem(finding):
                since = before.found if before and before.fixed is None else run.started
                known[key] = Problem(*key, finding.status, finding.message, since, None)
            elif finding.status is Status.PASS and before and before.fixed is None:
                known[key] = replace(before, status=Status.PASS, fixed=run.started)
    gravity = (Status.ERROR, Status.FAIL, Status.WARN)
    standing = [row for row in known.values() if row.fixed is None]
    mended = [row for row in known.values() if row.fixed is not None]
    return [
        *sorted(standing, key=lambda row: (gravity.index(row.status), row.found, row.check, row.subject)),
        *sorted(mended, key=lambda row: row.fixed or "", reverse=True),
    ]


def run_metrics(run: Run, before: Run | None = None) -> RunMetrics:
    """One run in figures, counted against the run before it."""
    findings = run.findings
    difference = compare(before, run) if before else None
    results = [record.result for record in run.steps if record.result]
    return RunMetrics(
        run=run.id,
        site=run.site,
        started=run.started,
        status=run.status,
        seconds=_duration(run),
        checks=sum(finding.status is not Status.SKIP for finding in findings),
        passed=sum(finding.status is Status.PASS for finding in findings),
        problems=sum(is_problem(finding) for finding in findings),
        found=len(difference.appeared) if difference else sum(is_problem(finding) for finding in findings),
        fixed=len(difference.fixed) if difference else 0,
        skipped=sum(finding.status is Status.SKIP for finding in findings),
        steps_run=len(results),
        steps=len(run.steps),
        changes=sum(len(result.changes) for result in results),
        requests=sum(count for result in results for count in result.requests.values()),
        emulated=run.emulated,
    )


def _duration(run: Run) -> float | None:
    if not run.finished or not run.started:
        return None
    with contextlib.suppress(ValueError):
        return (datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.started)).total_seconds()
    return None


def _periods(metrics: Sequence[RunMetrics], name: Any) -> tuple[PeriodMetrics, ...]:
    grouped: dict[str, list[RunMetrics]] = {}
    for entry in metrics:
        with contextlib.suppress(ValueError):
            grouped.setdefault(name(date.fromisoformat(entry.started[:10])), []).append(entry)
    return tuple(
        PeriodMetrics(
            period=period,
            runs=len(entries),
            checks=sum(entry.checks for entry in entries),
            share_passed=entries[-1].share_passed,
            found=sum(entry.found for entry in entries),
            fixed=sum(entry.fixed for entry in entries),
            problems=entries[-1].problems,
            seconds=round(sum(entry.seconds or 0 for entry in entries), 3),
            last=entries[-1].status,
        )
        for period, entries in sorted(grouped.items(), reverse=True)
    )


def phase_progress(run: Run | None) -> tuple[PhaseProgress, ...]:
    """Progress per phase of one run, by phase; none of none."""
    grouped: dict[str, list[StepRecord]] = {}
    for record in run.steps if run else ():
        grouped.setdefault(record.step[:1], []).append(record)
    return tuple(
        PhaseProgress(
            phase=phase,
            steps=len(records),
            done=sum(record.status in {Status.PASS, Status.WARN} for record in records),
            status=worst((record.status for record in records), empty=Status.NOT_RUN),
        )
        for phase, records in sorted(grouped.items())
    )
