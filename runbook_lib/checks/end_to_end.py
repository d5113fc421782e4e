"""Judgement of a workload's whole life: whether it did as wanted, whom it failed meanwhile, and what is left of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from runbook_lib.checks import check, verdict
from runbook_lib.checks.csi import cause_of
from runbook_lib.checks.preparation import Wanted
from runbook_lib.facts import ClaimDisk, PersistentVolume, Spoken, Stage, Window
from runbook_lib.model import Finding

NEVER_INTERRUPTED = frozenset({
    "client", "volumes", "load balancer", "ingress", "policy", "rolling update", "scale out", "scale in",
    "configuration", "restart", "backup",
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
        yield verdict(True, "plan", f"{len(wanted.changes)} requests, all of them in a namespace of this run")


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
