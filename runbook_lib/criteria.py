"""The sprint's success criteria and risks as data, and what the evidence of a site's runs says of each. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from runbook_lib.model import Finding, Run, Status, StepRecord, worst

FRESH_DAYS = 7
"""Evidence older than this no longer counts: a cluster changes."""
MET = frozenset({Status.PASS, Status.WARN})
PROBLEMS = frozenset({Status.WARN, Status.FAIL, Status.ERROR})


@dataclass(frozen=True)
class Criterion:
    """One success criterion. Every step named must have proved it on this site, lately.

    `proved_by` are ids of checks, or beginnings of them: each must have judged something in one of the steps, and the
    gravest verdict counts. Without any the status of the steps counts.
    """

    group: str  # "technical" | "functional" | "closing"
    title: str
    steps: tuple[str, ...]
    proved_by: tuple[str, ...] = ()
    written: bool = False  # enough that the steps ran, whatever they found, and name a remedy for each problem


EIGHT_STEPS = ("21", "22", "24", "31", "32", "41", "42", "43")
DOCUMENTED = ("11", "12", "13", "21", "22", "23", "24", "31", "32", "41", "42", "43", "44")

CRITERIA = (
    Criterion("technical", "All eight steps pass", EIGHT_STEPS),
    Criterion(
        "technical",
        "Proxmox VMs are created through Cluster API",
        ("23", "24"),
        ("providers.both_are_installed", "machines.machines_came_up", "machines.every_machine_has_a_vm"),
    ),
    Criterion("technical", "A Proxmox server works as a Kubernetes worker", ("31",)),
    Criterion("technical", "CSI provisioning works", ("32",), ("csi.volumes_did_as_wanted", "csi.contents_are_intact")),
    Criterion("technical", "Network policies are enforced", ("41",), ("policies.policies_are_enforced",)),
    Criterion(
        "technical",
        "Monitoring collects Proxmox metrics",
        ("42",),
        ("monitoring.everything_has_its_series", "monitoring.series_are_fresh", "monitoring.series_agree"),
    ),
    Criterion(
        "functional",
        "A VM can be created with kubectl",
        ("24",),
        ("machines.manifests_are_accepted", "machines.machines_came_up"),
    ),
    Criterion("functional", "Worker nodes scale automatically", ("31", "62")),
    Criterion(
        "functional",
        "Workloads have persistent storage",
        ("32", "43"),
        ("csi.contents_are_intact", "end_to_end.no_data_is_lost"),
    ),
    Criterion(
        "functional",
        "Tenants are isolated on the network",
        ("41",),
        ("policies.siblings_are_apart", "policies.tenants_go_one_way"),
    ),
    Criterion(
        "functional",
        "Monitoring and logging are central",
        ("42",),
        ("monitoring.every_part_answers", "monitoring.alert_comes_and_goes", "monitoring.logs_are_central"),
    ),
    Criterion("closing", "The documentation is complete", DOCUMENTED, written=True),
    Criterion("closing", "The runbook is ready to use: assessed and prepared", ("11", "12", "13")),
    Criterion(
        "closing",
        "Performance benchmarks are done",
        ("21", "43"),
        ("proxmox.api_is_quick", "end_to_end.measurements_keep_to_targets"),
    ),
    Criterion("closing", "The security audit passed", ("44",)),
    Criterion("closing", "Operations are rehearsed: the team is ready for production", ("61", "63", "65", "66")),
)


@dataclass(frozen=True)
class Level:
    """One level of readiness: what it means, and the steps or groups of criteria that prove it."""

    number: int
    name: str
    means: str
    steps: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


LEVELS = (
    Level(0, "Unknown", "nothing was proved lately"),
    Level(1, "Assessed", "both systems were looked at, and nothing stands in the way", steps=("11", "12")),
    Level(2, "Prepared", "accounts, network and storage are there and were tried", steps=("13", "21", "22")),
    Level(3, "Integrated", "every technical criterion is met", groups=("technical",)),
    Level(4, "Usable", "every functional criterion is met too", groups=("functional",)),
    Level(5, "Ready for production", "every criterion is met", groups=("closing",)),
)
"""Each level holds only with all below it."""


@dataclass(frozen=True)
class Gap:
    """What is missing for a level: a criterion that is not met, or a step alone."""

    criterion: str  # its title; empty of a step
    why: str  # "22 not run"

    def __str__(self) -> str:
        return f"{self.criterion}: {self.why}" if self.criterion else self.why


@dataclass(frozen=True)
class Readiness:
    """The level a site has reached, and what keeps it from the next one."""

    level: int
    name: str
    means: str
    next: str  # the name of the next level; empty at the last
    missing: tuple[Gap, ...]  # for the next level
    rehearsed: bool  # reached on emulated systems: it says nothing of hardware


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


def level(runs: Sequence[Run], *, at: datetime | None = None, fresh_days: int = FRESH_DAYS) -> Readiness:
    """The level of readiness these runs prove. A level with nothing missing counts only when all below it do."""
    latest = _latest(runs)
    oldest = (at or datetime.now(UTC)) - timedelta(days=fresh_days)
    readings = [_reading(criterion, latest, oldest) for criterion in CRITERIA]
    reached, missing = LEVELS[0], tuple[Gap, ...]()
    for rung in LEVELS[1:]:
        missing = tuple(_missing(rung, latest, oldest, readings))
        if missing:
            break
        reached = rung
    following = LEVELS[reached.number + 1].name if reached is not LEVELS[-1] else ""
    rehearsed = any(run.emulated for _, run in latest.values())
    return Readiness(reached.number, reached.name, reached.means, following, missing, rehearsed)


def _missing(
    rung: Level, latest: dict[str, tuple[StepRecord, Run]], oldest: datetime, readings: Sequence[Reading]
) -> Iterator[Gap]:
    for step in rung.steps:
        status, why = _state(step, latest, oldest)
        if status not in MET:
            yield Gap("", why)
    for reading in readings:
        if reading.group in rung.groups and reading.status not in MET:
            yield Gap(reading.title, reading.why)


def is_ready(readings: Sequence[Reading]) -> bool:
    """Whether every criterion is met; of no criteria, no."""
    return bool(readings) and all(reading.status in MET for reading in readings)


def watch(run: Run | None) -> list[Watch]:
    """Every risk with what the checks that watch it found in this run."""
    findings = run.findings if run else []
    watched = []
    for risk in RISKS:
        mine = [finding for finding in findings if finding.check.startswith(risk.watched_by)]
        problems = tuple(f.message for f in mine if f.status in PROBLEMS)
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
            if finding.status in PROBLEMS:
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


def _state(step: str, latest: dict[str, tuple[StepRecord, Run]], oldest: datetime) -> tuple[Status, str]:
    """What the newest evidence of a step is worth, and why where it is not a pass."""
    if step not in latest:
        return Status.NOT_RUN, f"{step} not run"
    record, run = latest[step]
    when = record.finished or run.started
    if _when(when) < oldest:
        return Status.NOT_RUN, f"{step} last ran on {when[:10]}: too old"
    return record.status, "" if record.status is Status.PASS else f"{step} {record.status}"


def _reading(criterion: Criterion, latest: dict[str, tuple[StepRecord, Run]], oldest: datetime) -> Reading:
    told = {step: _state(step, latest, oldest) for step in criterion.steps}
    evidence = tuple(f"{step} in {latest[step][1].id}" for step in criterion.steps if step in latest)
    fresh = [latest[step][0] for step, (status, _) in told.items() if status is not Status.NOT_RUN]
    if criterion.written:
        told |= {record.step: _as_written(record) for record in fresh}
    elif criterion.proved_by:
        told |= {record.step: (Status.PASS, "") for record in fresh if record.status is not Status.ERROR}
        told |= _proofs(criterion.proved_by, fresh)
        if len(fresh) < len(criterion.steps):  # what is missing is said already
            told = {name: (status, why if " judged" not in why else "") for name, (status, why) in told.items()}
    grave = worst(status for status, _ in told.values())
    if grave in MET and any(status is Status.NOT_RUN for status, _ in told.values()):
        grave = Status.NOT_RUN
    why = "; ".join(why for _, why in told.values() if why)
    return Reading(criterion.group, criterion.title, grave, why or "proved", evidence)


def _as_written(record: StepRecord) -> tuple[Status, str]:
    """A step that ran is documented by its notebook; each problem it found must say what to do."""
    found = record.result.findings if record.result else ()
    mute = sum(finding.status in PROBLEMS and not finding.remedy for finding in found)
    return (Status.FAIL, f"{record.step}: {mute} problems without a remedy") if mute else (Status.PASS, "")


def _proofs(proved_by: Sequence[str], records: Sequence[StepRecord]) -> dict[str, tuple[Status, str]]:
    """Per check the gravest verdict in these steps; judged nothing is not run."""
    proofs = {}
    for name in proved_by:
        found = [
            (finding.status, record.step)
            for record in records
            for finding in (record.result.findings if record.result else ())
            if finding.check.startswith(name) and finding.status is not Status.SKIP
        ]
        grave = worst((status for status, _ in found), empty=Status.NOT_RUN)
        step = next((step for status, step in found if status is grave), "")
        why = f"{name} judged nothing" if not found else f"{step} {grave}: {name}" if grave is not Status.PASS else ""
        proofs[name] = (grave, why)
    return proofs


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)
