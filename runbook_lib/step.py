"""What a notebook holds: `open_step` gives a Step that shows, records, measures, changes, cleans up and finishes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import json
import logging
import os
import re
import secrets as randomness
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from runbook_lib import display as shown
from runbook_lib.checks import preparation
from runbook_lib.errors import ReadOnly, RunbookError, UsageError
from runbook_lib.journal import Journal
from runbook_lib.model import (
    Change,
    Finding,
    Measurement,
    Run,
    Status,
    StepResult,
    now,
    to_dict,
    worst,
)
from runbook_lib.plan import Applied, Approval, Executor, Plan, apply, approve, borrowed, part, spend
from runbook_lib.secrets import redact, redact_json
from runbook_lib.sweep import SweepReport, clean_up, executors_for

log = logging.getLogger(__name__)

SCRAP = "application/scrapbook.scrap.json+json"
"""The mimetype under which scrapbook 0.5 keeps JSON data."""

SCRAP_VERSION = 1

FINDINGS = "application/x.runbook.finding+json"
"""The mimetype under which findings leave a running notebook, so that the runner sees each as it is made."""

CHANGES_ALLOWED = "step.changes_are_allowed"

_STEP_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*")


def open_step(step: str, *, site: str = "lab", run_dir: str = "") -> Step:
    """The Step of one notebook. Reads the site's parameters, connects to nothing.

    Without `run_dir` (JupyterLab, plain papermill) a run folder is made only when something must be journalled.
    Raises ParameterError for a site that is not usable.
    """
    return Step(step, site=site, run_dir=run_dir)


def new_run_id() -> str:
    """A run id that sorts by time: "20261123T190312Z-4f2a"."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{randomness.token_hex(2)}"


class _Shown(list[Any]):
    """A list that was displayed already: as a cell's last expression it is not displayed again."""

    def _ipython_display_(self) -> None:
        """Nothing; its table stands above."""


class Step:
    """One step under way. Everything it displays or keeps is redacted."""

    def __init__(self, step: str, *, site: Any = "lab", run_dir: str = "") -> None:
        if not _STEP_NAME.fullmatch(step):
            raise UsageError(f"open_step({step!r})", "a step is named by its notebook's number", 'open_step("11")')
        self.step = step
        self.run_dir = Path(run_dir) if run_dir else None
        self.run = self.run_dir.name if self.run_dir else new_run_id()
        self.displayed: list[shown.Bundle] = []
        """What was displayed where there is no notebook to display it in."""
        self._named_site = site
        self._declared = self._load(start_lab=False)
        self._observers: list[Any] = []
        self._findings: list[Finding] = []
        self._measurements: list[Measurement] = []
        self._notes: list[str] = []
        self._changes: list[Change] = []
        self._borrowed: set[str] = set()  # ids of changes, those beside borrowed things too
        self._numbers_used = 0
        self._begun: dict[str, Approval] = {}  # plans that are carried out piece by piece, by digest
        self._result: StepResult | None = None
        self._started, self._clock = now(), time.monotonic()

    # --- the site --------------------------------------------------------------------------------

    @cached_property
    def site(self) -> Any:
        """The site's parameters; for a lab site with its endpoints, the lab being started where it is not up."""
        return self._load(start_lab=True)

    @cached_property
    def proxmox(self) -> Any:
        """The Proxmox VE client, connected when first used."""
        from runbook_lib import proxmox

        return proxmox.connect(self.site, observers=self._observers)

    @cached_property
    def kubernetes(self) -> Any:
        """The Kubernetes client, connected when first used."""
        from runbook_lib import kubernetes

        return kubernetes.connect(self.site, observers=self._observers)

    @cached_property
    def executors(self) -> Mapping[str, Executor]:
        """The hands of both systems; each connects when first used."""
        return executors_for(
            {"proxmox": lambda: self.proxmox, "kubernetes": lambda: self.kubernetes}, root=_project_root()
        )

    @property
    def runs(self) -> list[Run]:
        """Every run of this site, newest first, the one under way among them."""
        from runbook_lib import results

        return results.runs(self._declared.name, self._outputs().parent.parent)

    @property
    def emulated(self) -> bool:
        """Whether the site is a rehearsal; its figures say nothing about real hardware."""
        return bool(self._declared.emulated)

    def _load(self, *, start_lab: bool) -> Any:
        if not isinstance(self._named_site, str | Path):
            return self._named_site
        from runbook_lib.parameters import load_site

        return load_site(self._named_site, start_lab=start_lab)

    # --- what the reader sees --------------------------------------------------------------------

    def record(self, findings: Iterable[Finding]) -> list[Finding]:
        """The findings, shown as a table and kept for the result.

        Findings of one check about one subject that were recorded before (a cell run again) are replaced.
        """
        given = list(findings)
        named = {(entry.check, entry.subject) for entry in given}
        self._findings = [entry for entry in self._findings if (entry.check, entry.subject) not in named] + given
        self._result = None
        data = {"step": self.step, "findings": [to_dict(entry) for entry in given]}
        self._display({**shown.findings_table(given), FINDINGS: redact_json(data)})
        return _Shown(given)

    def check(self, judge: Callable[..., list[Finding]], *facts: Any, about: str = "", **given: Any) -> list[Finding]:
        """The findings of a check with this site's thresholds, shown and kept.

        `about` goes before each subject, where one check looks at the same things at several moments: else the later
        finding would take the place of the earlier.

        Every keyword of the check that the site's `thresholds`, `requires` or `names` knows is taken from there, so
        that a notebook names the check and its facts and nothing else; `given` goes before.
        """
        site = self._declared
        keywords = [p.name for p in inspect.signature(judge).parameters.values() if p.kind is p.KEYWORD_ONLY]
        parts = (site.thresholds, site.requires, site.names)
        known = {name: getattr(part, name) for part in parts for name in keywords if hasattr(part, name)}
        found = judge(*facts, **{**known, **given})
        return self.record([_about(about, entry) for entry in found] if about else found)

    def measure(self, measurements: Measurement | Iterable[Measurement]) -> list[Measurement]:
        """The measurements, shown with their percentiles and kept; on a rehearsal they are marked as emulated."""
        several = [measurements] if isinstance(measurements, Measurement) else list(measurements)
        given = [replace(entry, emulated=entry.emulated or self.emulated) for entry in several]
        named = {(entry.name, entry.subject) for entry in given}
        self._measurements = [e for e in self._measurements if (e.name, e.subject) not in named] + given
        self._result = None
        self._display(shown.measurements_table(given))
        return _Shown(given)

    def show(self, rows: Any, *, columns: Sequence[str] | None = None, title: str = "") -> None:
        """Nothing; the rows (dataclasses, mappings, a DataFrame, one mapping) are displayed as a table."""
        self._display(shown.table(rows, columns=columns, title=title))

    def note(self, text: str) -> None:
        """Nothing; the sentence is displayed and kept for the summary."""
        if text not in self._notes:
            self._notes.append(text)
        self._result = None
        self._display(shown.sentence(text))

    def figure(self, figure: Any, *, alt: str = "") -> None:
        """Nothing; a matplotlib figure is displayed. `alt` says in words what it shows."""
        from runbook_lib import figures

        self._display(*figures.bundle(figure, alt or getattr(figure, "alt_text", "") or _title_of(figure)))

    def keep(self, name: str, text: str) -> Path:
        """The path of a file in the run's `manifests/` that holds the text, for tools that are not ours.

        What is kept there is redacted like everything else, so it holds names and never secrets.
        """
        folder = self._run_folder() / "manifests"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{self.step}-{name}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(redact(text))
        return path

    # --- changes ---------------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        """The run's journal of changes."""
        return Journal(self._run_folder() / "changes.jsonl")

    def plan(self, changes: Iterable[Change] | Plan, *, unchanged: Iterable[str] = ()) -> Plan:
        """The plan of the changes, numbered "<step>-01" and on, its diff displayed. Nothing is sent."""
        known = tuple(unchanged) or tuple(getattr(changes, "unchanged", ()))
        given = changes.changes if isinstance(changes, Plan) else tuple(changes)
        # Ids go on over the plans of a step, so that each names one change of the run.
        numbered = (
            replace(change, id=f"{self.step}-{number:02d}")
            for number, change in enumerate(given, start=1 + self._numbers_used)
        )
        planned = Plan(self._declared.name, tuple(numbered), self.run, known)
        self._display(_plan_bundle(planned))
        for problem in getattr(changes, "problems", ()):
            self._display(shown.sentence(f"In the way: {problem}", css="rb-note rb-fail"))
        return planned

    def apply(
        self,
        plan: Plan | Iterable[Change],
        *,
        approved: str = "",
        only: str = "",
        observe: Callable[[Change], None] | None = None,
    ) -> Applied:
        """What was done of the plan, displayed. Where the site forbids changes this is a `skip`, and nothing is sent.

        `only` sends the changes of one action, for a plan that is carried out piece by piece: it is approved once, as
        a whole, and what was begun in time may be brought to its end.

        `approved` is the plan's digest (12 characters or more) as typed by a person who has read it.
        `observe` is called after each change that was made, to look at what came of it before the next is sent.

        Raises ApprovalNeeded, BudgetExceeded, and whatever a refused request raises.
        """
        planned = plan if isinstance(plan, Plan) else self.plan(plan)
        approval = self._begun.get(planned.digest)
        try:
            approval = approval or self._approval(planned, approved)
        except ReadOnly as refusal:
            return self._refused(planned, refusal)
        if not part(planned, only):
            return Applied(planned)
        if planned.digest not in self._begun:
            self._numbers_used += len(planned.changes)
        if borrowed(planned.changes):
            self._borrowed |= {change.id for change in planned.changes}
            _clean_up_at_exit(self)
        done: list[Change] = []

        def noted(change: Change, _: str) -> None:
            done.append(change)
            if observe is not None:
                observe(change)

        try:
            applied = apply(
                planned,
                approval,
                self.journal,
                self.executors,
                on_change=noted,
                at=approval.given if only and planned.digest in self._begun else None,
                only=only,
            )
        finally:
            self._changes += done
            self._result = None
            if only:
                self._begun[planned.digest] = approval
        spend(self._outputs() / "approvals", planned.digest)
        self._display(shown.sentence(f"{len(done)} of {len(planned.changes)} changes made and journalled."))
        return applied

    borrow = apply

    def clean_up(self) -> SweepReport | None:
        """What became of the things this step borrowed, recorded as findings; None when it borrowed none."""
        if not self._borrowed:
            return None
        report = self._take_back()
        self.record(preparation.nothing_borrowed_remains(report))
        return report

    def _take_back(self) -> SweepReport:
        report = clean_up(self.journal, self.executors, site=self._declared.name, run=self.run, only=self._borrowed)
        if not report.failed:
            self._borrowed = set()
            _unclean.discard(self)
        return report

    def _approval(self, planned: Plan, approved: str) -> Approval:
        policy = self._declared.changes
        approvals = self._outputs() / "approvals"
        if policy == "ask" and len(approved) >= 12 and planned.digest.startswith(approved):
            policy = "allow"
        return approve(planned, policy, approvals, budget=self._declared.budget)

    def _refused(self, planned: Plan, refusal: ReadOnly) -> Applied:
        message = f"{refusal.asked} not made: {refusal.came}"
        skip = Finding(CHANGES_ALLOWED, Status.SKIP, planned.site, message, "Changes are allowed", refusal.hint)
        self.record([skip])
        return Applied(planned, refused=message)

    # --- the end ---------------------------------------------------------------------------------

    def finish(self) -> StepResult:
        """The step's result, once what was borrowed is taken away: displayed as a verdict and kept as one scrap.

        Repeating it changes nothing; recording something more and finishing again replaces the scrap.
        """
        self.clean_up()
        if self._result is None:
            self._result = self._made_result()
            _display_scrap(self, self._result)
            self._display(_verdict_bundle(self._result))
        return self._result

    def _made_result(self) -> StepResult:
        about = _notebook_of(self.step)
        return StepResult(
            step=self.step,
            title=str(about.get("title") or f"Step {self.step}"),
            site=self._declared.name,
            run=self.run,
            status=worst(entry.status for entry in self._findings),
            started=self._started,
            finished=now(),
            seconds=round(time.monotonic() - self._clock, 3),
            findings=tuple(self._findings),
            measurements=tuple(self._measurements),
            changes=tuple(self._changes),
            task=str(about.get("task") or ""),
            notes=tuple(self._notes),
            emulated=self.emulated,
            requests=self._requests(),
        )

    def _requests(self) -> dict[str, int]:
        """Requests sent by system; a client that was never used was never made."""
        used = {name: vars(self)[name] for name in ("proxmox", "kubernetes") if name in vars(self)}
        return {name: int(client.wire.count) for name, client in used.items()}

    # --- where things go -------------------------------------------------------------------------

    def _outputs(self) -> Path:
        return self.run_dir.parent if self.run_dir else _project_root() / "outputs" / self._declared.name

    def _run_folder(self) -> Path:
        if self.run_dir is None:
            self.run_dir = self._outputs() / self.run
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.run_dir

    def _display(self, data: shown.Bundle, metadata: Mapping[str, Any] | None = None) -> None:
        if _in_notebook():
            from IPython.display import display

            display(data, metadata=dict(metadata or {}), raw=True)
        else:
            self.displayed.append(data)


def _about(moment: str, finding: Finding) -> Finding:
    return replace(finding, subject=": ".join(filter(None, (moment, finding.subject))))


def _display_scrap(step: Step, result: StepResult) -> None:
    """scrapbook.glue("step", …) to the letter, without its import, which costs more than most steps (1.5 s)."""
    data = redact_json(to_dict(result))
    json.dumps(data, allow_nan=False)
    payload = {"name": "step", "data": data, "encoder": "json", "version": SCRAP_VERSION}
    step._display({SCRAP: payload}, {"scrapbook": {"name": "step", "data": True, "display": False}})


def _verdict_bundle(result: StepResult) -> shown.Bundle:
    counts = Counter(entry.status for entry in result.findings)
    tally = ", ".join(f"{counts[status]} {status}" for status in reversed(Status) if counts[status])
    rehearsal = " (rehearsal on the lab)" if result.emulated else ""
    text = f"Step {result.step} {result.title}: {result.status}{rehearsal}. {tally or 'no findings'}."
    return shown.sentence(text, css=f"rb-verdict rb-{result.status.value.replace(' ', '-')}")


def _plan_bundle(planned: Plan) -> shown.Bundle:
    """The diff as a table; the digest stands in the title, because that is what is approved."""
    title = f"{len(planned.changes)} change(s) planned on {planned.site}, digest {planned.digest[:12]}"
    if not planned.changes:
        return shown.sentence(f"Nothing to change on {planned.site}: {len(planned.unchanged)} thing(s) are as wanted.")
    rows = shown.table(planned.table(), title=title)
    return {**rows, "text/plain": shown.plain(planned.text())}


def _title_of(figure: Any) -> str:
    titles = [axis.get_title() for axis in getattr(figure, "axes", ())]
    return "; ".join(title for title in titles if title) or "figure"


def _in_notebook() -> bool:
    """Whether displays reach a notebook; in a plain script they are kept on the step."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    return shell is not None and hasattr(shell, "kernel")


@functools.cache
def _notebook_of(step: str) -> Mapping[str, Any]:
    """The `runbook` metadata of the step's notebook, empty when there is no such notebook here."""
    for path in sorted((_project_root() / "notebooks").glob(f"{step}_*.ipynb")):
        with contextlib.suppress(OSError, ValueError):
            metadata = json.loads(path.read_text(encoding="utf-8")).get("metadata", {})
            return metadata.get("runbook") or {}
    return {}


def _project_root() -> Path:
    from runbook_lib.parameters import project_root

    return project_root()


# --- a process that ends early ---------------------------------------------------------------------

_unclean: set[Step] = set()
"""Steps of this process that hold borrowed things."""

_ending = threading.Event()
_armed = threading.Event()

# A forked child inherits the memory of a borrow, not the borrow: only the process that made it takes it back.
os.register_at_fork(after_in_child=_unclean.clear)


def _clean_up_at_exit(step: Step) -> None:
    """Nothing; what the step borrows will be taken back when this process ends, also by SIGTERM."""
    _unclean.add(step)
    if not _armed.is_set():
        _armed.set()
        atexit.register(_clean_all)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not _on_sigterm:
        _previous[:] = [signal.signal(signal.SIGTERM, _on_sigterm)]


_previous: list[Any] = []


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Clean up, then die of the signal as we would have without us. A second one does not cut the clean-up short."""
    if _ending.is_set():
        return
    _clean_all()
    signal.signal(signal.SIGTERM, _previous[0] if callable(_previous[0]) else signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _clean_all() -> None:
    _ending.set()
    for step in list(_unclean):
        try:
            report = step._take_back()
        except (RunbookError, OSError) as error:
            log.warning("step %s could not clean up at its end: %s; `runbook sweep` goes on", step.step, error)
            continue
        log.info("step %s ended early: %d borrowed thing(s) taken back", step.step, len(report.undone))
    _ending.clear()
