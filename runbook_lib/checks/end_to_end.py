"""Judgement of a workload's whole life: whether it did as wanted, whom it failed meanwhile, and what is left of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from statistics import median

from runbook_lib.checks import check, verdict
from runbook_lib.checks.csi import cause_of
from runbook_lib.checks.preparation import Wanted
from runbook_lib.facts import ClaimDisk, Compared, PairSpeed, PersistentVolume, Spoken, Stage, Window
from runbook_lib.model import Finding, Measurement, Status

NEVER_INTERRUPTED = frozenset({
    "client", "volumes", "load balancer", "ingress", "policy", "rolling update", "scale out", "scale in",
    "configuration", "restart", "backup",
    "controller-restarted", "token-expired", "api-unreachable", "storage-full", "node-drained",
})  # fmt: skip
"""Stages during which no request may fail: nothing in them takes the last pod away."""


@check(
    title="A workload can be tried",
    remedy="See the reason; volumes want the driver and the classes of step 32, doors a load balancer or an ingress.",
    source="Sprint 4.3: complete workload life cycle",
)
def workload_can_be_tried(wanted: Wanted) -> Iterator[Finding]:
    """One finding for what is planned, and one skip per part that this site cannot have, with what it would take."""
    for problem in wanted.problems:
        yield verdict(None, problem.partition(":")[0], f"not tried; {problem}")
    if wanted.changes:
        yield verdict(True, "plan", f"{len(wanted.changes)} requests, and each has its way back")


@check(
    title="The workload did as wanted",
    remedy="Read the events of its pods and claims; where one state is not reached, those after it are not waited for.",
    source="Sprint 4.3: Deployment, StatefulSet with Proxmox volumes, Service, policy, update, scale, configuration",
)
def workload_did_as_wanted(stages: Iterable[Stage]) -> Iterator[Finding]:
    """One finding per stage: every state of it was reached, in how long, or what stood in the way."""
    rows = list(stages)
    for stage in dict.fromkeys(row.stage for row in rows):
        mine = [row for row in rows if row.stage == stage]
        missed = [row for row in mine if not row.reached]
        if not missed:
            seconds = max(row.seconds for row in mine)
            yield verdict(True, stage, f"{stage}: {'; '.join(row.told for row in mine)} ({seconds:.1f} s)")
            continue
        first = missed[0]
        cause = cause_of(first.told)
        why = f"; {cause.why}" if cause else ""
        remedy = f"First: {cause.first}." if cause else ""
        yield verdict(False, stage, f"{stage}: {first.what} did not come: {first.told}{why}", remedy=remedy)


@check(
    title="Nobody was turned away",
    remedy="Failures while pods are replaced: their preStop and readiness; failures of one node alone: its network "
    "agents; failures throughout: the Service and its endpoints.",
    source="Sprint 4.3; a client that asks twice a second throughout",
)
def nobody_was_turned_away(windows: Iterable[Window]) -> Iterator[Finding]:
    """One finding per stage: of the client's requests none failed; a stage that it did not see is a skip."""
    for row in windows:
        if row.stage not in NEVER_INTERRUPTED:
            continue
        if not row.requests:
            yield verdict(None, row.stage, f"{row.stage}: the client made no request")
            continue
        codes = ", ".join("no answer" if code == 0 else f"HTTP {code}" for code in row.codes)
        told = f"{row.stage}: {row.failed} of {row.requests} requests failed"
        told += f" ({codes}), {row.longest_row} in a row" if row.failed else ""
        yield verdict(not row.failed, row.stage, told, requests=row.requests, failed=row.failed)


_SUM = re.compile(r"^([0-9a-f]{64})\s", re.MULTILINE)
READ_AS = {
    "read": "the checksum is equal after its pod was replaced",
    "restored": "the restored volume has what the backup had",
    "survived": "the checksum is equal after the experiment",
}


@check(
    title="No data is lost",
    remedy="Stop writing to that storage, and compare the volume with a backup before anything else is done.",
    source="Sprint 4.3: backup and restore, data loss: none; checksums made in the pods",
)
def no_data_is_lost(said: Iterable[Spoken]) -> Iterator[Finding]:
    """One finding per reading: the checksum is that of what was written; a pattern that was never written is a fail."""
    written: dict[str, str] = {}
    for row in said:
        sums = _SUM.findall(row.output)
        if row.what == "write":
            if row.code == 0 and sums:
                written[row.pod] = sums[-1]
            else:
                yield verdict(False, row.pod, f"{row.pod}: nothing was written: {row.output.strip()[-200:]}")
        elif row.what in READ_AS:
            origin = written.get(row.pod) or (written.get("data-0") if row.what == "restored" else None)
            subject = f"{row.pod} {row.trial}"
            if origin is None:
                yield verdict(None, subject, f"{row.pod}: there is nothing to compare with")
                continue
            good = row.code == 0 and bool(sums) and sums[-1] == origin
            told = READ_AS[row.what] if good else f"{row.what} ended with {row.code}: {row.output.strip()[-200:]}"
            yield verdict(good, subject, f"{row.pod}: {told}")


@check(
    title="Nothing of the workload is left",
    remedy="Run `runbook sweep`, then look again; a disk whose volume is gone is freed with `pvesm free`.",
    source="Sprint 4.3: deletion, proved on both sides",
)
def workload_left_nothing(
    tried: Iterable[str], volumes: Iterable[PersistentVolume], disks: Iterable[ClaimDisk], *, home: str = ""
) -> Iterator[Finding]:
    """One finding per side: no volume of the namespace, and none of its disks; a skip where there were none."""
    known = list(tried)
    if not known:
        return
    left = sorted(row.name for row in volumes if row.claim.partition("/")[0] == home)
    still = sorted(row.volid for row in disks if row.volid in known)
    for what, found in (("volumes", left), ("disks", still)):
        told = f"left over: {', '.join(found)}" if found else f"no {what} of this workload, of {len(known)} there were"
        yield verdict(not found, what, told)


@check(
    title="It recovers from what was broken",
    remedy="Read what stood in the way; bring the state before back by `runbook sweep`, then try that one again alone.",
    source="Sprint 4.3: reliability experiments, recovery under 10 minutes",
)
def it_recovers(measured: Iterable[Measurement]) -> Iterator[Finding]:
    """One finding per experiment: every recovery came, and the longest within the window."""
    for row in measured:
        if row.name != "recovery":
            continue
        limit = row.threshold or 0.0
        if row.errors or not row.values:
            yield verdict(False, row.subject, f"{row.subject}: {row.errors} of its recoveries did not come")
            continue
        worst = max(row.values)
        yield verdict(worst <= limit, row.subject, f"{row.subject}: recovered in {worst:.1f} s of {limit:g}")


@check(
    title="All is as before the experiments",
    remedy="Run `runbook sweep`; then `kubectl uncordon`, start the VM, or set the token's expiry as it was.",
    source="Sprint 4.3: automatic return to the state before, read on both sides",
)
def all_is_as_before(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Finding]:
    """One finding per thing that an experiment changed: it reads as it did before."""
    for thing, was in before.items():
        now = after.get(thing, "not there")
        yield verdict(was == now, thing, f"{thing}: {now}" + ("" if was == now else f"; before {was}"))


# --- how quick it is ---------------------------------------------------------------------------------


@check(
    title="Measurements keep to the targets",
    remedy="Look at the readings: one that is far from the others is an accident, all of them are the site.",
    source="The sprint's targets: API 2 s, volume 30 s, pod 2 minutes",
)
def measurements_keep_to_targets(measured: Iterable[Measurement]) -> Iterator[Finding]:
    """One finding per measurement with a limit: its p95 is within it, and no reading failed."""
    for row in measured:
        if row.threshold is None:
            continue
        subject, worst = f"{row.name} ({row.subject})", row.percentile(95)
        if worst is None:
            yield verdict(False, subject, f"{subject}: no reading of {row.errors} came")
            continue
        failed = f", {row.errors} failed" if row.errors else ""
        told = f"{subject}: p95 {worst:.4g} {row.unit} of {row.threshold:g}, {len(row.values)} readings{failed}"
        yield verdict(worst <= row.threshold and not row.errors, subject, told)


@check(
    title="Requests under load are answered",
    remedy="Read what failed: an API that refuses with 429 protects itself; a timeout is a full queue, or a slow disk.",
    source="Sprint 4.3: parallel load",
)
def load_is_borne(measured: Iterable[Measurement]) -> Iterator[Finding]:
    """One finding per measurement with requests that failed; one of all requests where none did."""
    rows = [row for row in measured if row.unit == "ms"]
    for row in rows:
        if row.errors:
            count, subject = len(row.values) + row.errors, f"{row.name} ({row.subject})"
            yield verdict(False, subject, f"{subject}: {row.errors} of {count} requests failed")
    if rows and not any(row.errors for row in rows):
        names = ", ".join(dict.fromkeys(row.subject for row in rows if not row.subject.startswith("/"))) or "APIs"
        yield verdict(True, names, f"{sum(len(row.values) for row in rows)} requests, and none failed")


@check(
    title="Pairs of nodes are alike",
    remedy="A slow pair shares a card, a bridge, a cable or a switch port; compare with `iperf3` on the Proxmox nodes.",
    source="Sprint 4.3: pod network between all pairs of nodes, iperf3",
)
def pairs_are_alike(pairs: Iterable[PairSpeed], *, slower_warn: float = 1.5) -> Iterator[Finding]:
    """One finding per source node: no pair is much slower than the median of all; one without a reading fails."""
    rows = list(pairs)
    known = [median(row.gbits) for row in rows if row.gbits]
    usual = median(known) if known else 0.0
    for source in dict.fromkeys(row.source for row in rows):
        mine = [row for row in rows if row.source == source]
        lost = [f"{row.target} ({row.note})" for row in mine if not row.gbits]
        slow = [f"{row.target} {median(row.gbits):.2f}" for row in mine if row.gbits and
                median(row.gbits) * slower_warn < usual]  # fmt: skip
        if lost:
            yield verdict(False, source, f"{source}: nothing could be measured to {'; '.join(lost)}")
        elif slow:
            told = f"{source}: {', '.join(slow)} Gbit/s, {usual:.2f} is usual here"
            yield verdict(Status.WARN, source, told)
        else:
            least = min(median(row.gbits) for row in mine)
            yield verdict(True, source, f"{source}: {least:.2f} Gbit/s or more to {len(mine)} nodes")


@check(
    title="It is no worse than before",
    remedy="Compare the two runs' pages; something between them changed the site or its load. Where the new figures "
    "are right, take this run's file as the baseline.",
    source="Sprint 4.3: baseline; 95 % intervals of the medians, this run against the baseline or the last run",
)
def it_is_no_worse(compared: Iterable[Compared]) -> Iterator[Finding]:
    """One finding per measurement: better, the same or worse; one skip of all that have nothing to compare with."""
    rows = list(compared)
    for row in rows:
        if row.median is None or row.verdict in {"new", "too few"}:
            continue
        subject = f"{row.name} ({row.subject})"
        told = (
            f"{subject}: {row.verdict}; median {row.median:.4g} {row.unit} [{row.low:.4g}, {row.high:.4g}], "
            f"before {row.before:.4g} [{row.before_low:.4g}, {row.before_high:.4g}]"
        )
        yield verdict(Status.WARN if row.verdict == "worse" else Status.PASS, subject, told)
    for state, why in (("new", "nothing to compare with"), ("too few", "too few readings to compare")):
        mine = [f"{row.name} ({row.subject})" for row in rows if row.verdict == state]
        if mine:
            more = f" and {len(mine) - 3} more" if len(mine) > 3 else ""
            yield verdict(None, state, f"{why}: {', '.join(mine[:3])}{more}")
