"""The sprint's success criteria and risks as data, and what the evidence of a site's runs says of each. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from runbook_lib.model import Finding, Run, Status, StepRecord, worst

FRESH_DAYS = 7
"""Evidence older than this no longer counts: a cluster changes."""


@dataclass(frozen=True)
class Criterion:
    """One success criterion. Every step named must have passed on this site, lately."""

    group: str  # "technical" | "functional" | "closing"
    title: str
    steps: tuple[str, ...]


EIGHT_STEPS = ("21", "22", "24", "31", "32", "41", "42", "43")

CRITERIA = (
    Criterion("technical", "All eight steps pass", EIGHT_STEPS),
    Criterion("technical", "Proxmox VMs are created through Cluster API", ("23", "24")),
    Criterion("technical", "A Proxmox server works as a Kubernetes worker", ("31",)),
    Criterion("technical", "CSI provisioning works", ("32",)),
    Criterion("technical", "Network policies are enforced", ("41",)),
    Criterion("technical", "Monitoring collects Proxmox metrics", ("42",)),
    Criterion("functional", "A VM can be created with kubectl", ("24",)),
    Criterion("functional", "Worker nodes scale automatically", ("31", "62")),
    Criterion("functional", "Workloads have persistent storage", ("32", "43")),
    Criterion("functional", "Tenants are isolated on the network", ("41",)),
    Criterion("functional", "Monitoring and logging are central", ("42",)),
    Criterion("closing", "Performance benchmarks are done", ("21", "43")),
    Criterion("closing", "The security audit passed", ("44",)),
    Criterion("closing", "The runbook is ready to use: assessed and prepared", ("11", "12", "13")),
    Criterion("closing", "Operations are rehearsed: the team is ready for production", ("61", "63", "65", "66")),
)


@dataclass(frozen=True)
class Risk:
    """One risk of the sprint and the checks that watch it, by the beginning of their ids."""

    title: str
    answer: str
    watched_by: tuple[str, ...]


RISKS = (
    Risk(
        "Version mismatch",
        "compatibility is checked before anything else",
        ("proxmox.version_is_supported", "kubernetes.version", "kubernetes.kubelet_skew", "proxmox.releases_agree"),
    ),
    Risk("Network trouble", "the network is tested first", ("network.", "kubernetes.agents_run", "kubernetes.dns")),
    Risk(
        "Too few resources",
        "headroom is assessed before starting",
        ("proxmox.cpu_", "proxmox.memory_", "proxmox.room_", "proxmox.largest_", "storage.", "kubernetes.requests"),
    ),
    Risk("Slow answers", "response times are measured against a limit", ("proxmox.api_is_quick",)),
    Risk(
        "Hard diagnosis",
        "stuck pods, failed tasks and broken releases are named with their cause",
        ("kubernetes.no_pod", "kubernetes.releases", "kubernetes.restarts", "proxmox.no_task"),
    ),
)


@dataclass(frozen=True)
class Reading:
    """What the evidence says of one criterion: `why` names the steps that decide it."""

    group: str
    title: str
    status: Status
    why: str
    evidence: tuple[str, ...] = ()  # "24 in 20261123T190312Z-4f2a"


@dataclass(frozen=True)
class Watch:
    """What the checks that watch one risk came to in the newest run."""

    risk: str
    status: Status
    answer: str
    checks: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Action:
    """One thing to do next, most pressing first."""

    status: Status
    what: str
    remedy: str
    where: str  # "11 · 3 findings"


def read(runs: Iterable[Run], *, at: datetime | None = None, fresh_days: int = FRESH_DAYS) -> list[Reading]:
    """Every criterion against the newest evidence of each step. Not run, stale and skipped are never a pass."""
    latest = _latest(runs)
    oldest = (at or datetime.now(UTC)) - timedelta(days=fresh_days)
    return [_reading(criterion, latest, oldest) for criterion in CRITERIA]


def is_ready(readings: Sequence[Reading]) -> bool:
    """Whether every criterion is met; of no criteria, no."""
    return bool(readings) and all(reading.status in {Status.PASS, Status.WARN} for reading in readings)


def watch(run: Run | None) -> list[Watch]:
    """Every risk with what the checks that watch it found in this run."""
    findings = run.findings if run else []
    watched = []
    for risk in RISKS:
        mine = [finding for finding in findings if finding.check.startswith(risk.watched_by)]
        problems = tuple(f.message for f in mine if f.status in {Status.WARN, Status.FAIL, Status.ERROR})
        status = worst((finding.status for finding in mine), empty=Status.NOT_RUN)
        watched.append(Watch(risk.title, status, risk.answer, len(mine), problems))
    return watched


def next_actions(run: Run | None, *, most: int = 10) -> list[Action]:
    """What to do next, from one run: failures before warnings, findings of one remedy together."""
    if run is None:
        return [Action(Status.NOT_RUN, "Nothing has run on this site", "runbook run", "")]
    groups: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    for record in run.steps:
        for finding in record.result.findings if record.result else ():
            if finding.status in {Status.WARN, Status.FAIL, Status.ERROR}:
                groups.setdefault((finding.check, finding.remedy), []).append((record.step, finding))
    actions = [_action(found) for found in groups.values()]
    actions += [
        Action(record.status, f"{record.step} {record.title}: {record.reason}", "runbook resume", record.step)
        for record in run.steps
        if record.status is Status.ERROR and record.reason
    ]
    order = (Status.ERROR, Status.FAIL, Status.WARN)
    return sorted(actions, key=lambda action: order.index(action.status))[:most]


def _action(found: Sequence[tuple[str, Finding]]) -> Action:
    gravest = worst(finding.status for _, finding in found)
    step, first = next(entry for entry in found if entry[1].status is gravest)
    count = f" · {len(found)} findings" if len(found) > 1 else ""
    return Action(gravest, first.message, first.remedy, f"{step}{count}")


def _latest(runs: Iterable[Run]) -> dict[str, tuple[StepRecord, Run]]:
    """The newest record of each step that really ran."""
    latest: dict[str, tuple[StepRecord, Run]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        for record in run.steps:
            if record.status not in {Status.NOT_RUN, Status.SKIP}:
                latest[record.step] = (record, run)
    return latest


def _reading(criterion: Criterion, latest: dict[str, tuple[StepRecord, Run]], oldest: datetime) -> Reading:
    states: list[Status] = []
    reasons: list[str] = []
    evidence: list[str] = []
    for step in criterion.steps:
        if step not in latest:
            states.append(Status.NOT_RUN)
            reasons.append(f"{step} not run")
            continue
        record, run = latest[step]
        evidence.append(f"{step} in {run.id}")
        if _when(record.finished or run.started) < oldest:
            states.append(Status.NOT_RUN)
            reasons.append(f"{step} last ran on {(record.finished or run.started)[:10]}: too old")
        else:
            states.append(record.status)
            if record.status is not Status.PASS:
                reasons.append(f"{step} {record.status}")
    grave = worst(states)
    if grave in {Status.PASS, Status.WARN} and Status.NOT_RUN in states:
        grave = Status.NOT_RUN
    return Reading(criterion.group, criterion.title, grave, "; ".join(reasons) or "proved", tuple(evidence))


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)
