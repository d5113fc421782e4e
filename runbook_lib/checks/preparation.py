"""Judgement of the test environment: storages for each purpose, the plan, what is there afterwards, the clean-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from runbook_lib.checks import check, verdict
from runbook_lib.facts import Namespace
from runbook_lib.model import Finding, Status

PSA = "pod-security.kubernetes.io/enforce"


class Wanted(Protocol):
    """What `prepare` says is still to be changed, is as wanted already, and stands in the way."""

    @property
    def changes(self) -> Sequence[Any]: ...
    @property
    def unchanged(self) -> Sequence[str]: ...
    @property
    def problems(self) -> Sequence[str]: ...


class Applied(Protocol):
    """What was sent of a plan; `refused` tells why nothing was."""

    @property
    def refused(self) -> str: ...


class Use(Protocol):
    """One purpose and the storage that serves it on one node."""

    @property
    def purpose(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def storage(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def problem(self) -> str: ...


@check(
    title="Every purpose has a storage",
    remedy="Name another storage in the site's parameters (`names.iso_storage`, `names.disk_storage`), or add the "
    "content type with `pvesm set`.",
    source="Sprint 1.2; GET /nodes/{node}/storage",
)
def every_purpose_has_a_storage(uses: Iterable[Use]) -> Iterator[Finding]:
    """One finding per purpose and node."""
    for use in uses:
        where = f"{use.node}/{use.storage}"
        yield verdict(not use.problem, where, f"{use.purpose}: {use.problem or f'{use.type}, ready'}")


@check(
    title="Nothing stands in the way of preparing the site",
    remedy="Do what the finding says, then run this notebook again.",
    source="Sprint 1.2; the state both APIs report before the first change",
)
def nothing_stands_in_the_way(wanted: Wanted) -> Iterator[Finding]:
    """One finding a problem, or one that there is none."""
    for problem in wanted.problems:
        subject, _, message = problem.partition(": ")
        yield verdict(False, subject, message or problem)
    if not wanted.problems:
        yield verdict(True, "", f"{len(wanted.changes)} changes to make, {len(wanted.unchanged)} things as wanted")


@check(
    title="The environment is prepared",
    remedy="Apply the plan above; where the site forbids changes, use the `pveum` lines or set `changes: ask`.",
    source="Sprint 1.2; both APIs asked again after the changes",
)
def environment_is_prepared(applied: Applied, after: Wanted) -> Iterator[Finding]:
    """One finding: nothing is left to do; what the site's policy kept from being done is a skip, not a failure."""
    left = [str(change.target) for change in after.changes]
    if not left:
        yield verdict(True, "", f"{len(after.unchanged)} things are as wanted, on both sides")
    elif applied.refused:
        yield verdict(None, "", f"{len(left)} changes not made: {applied.refused}")
    else:
        yield verdict(False, "", f"{len(left)} things are not as wanted: {', '.join(left[:5])}", left=left)


@check(
    title="The test namespace is guarded",
    remedy="Apply the plan of notebook 13; the label and the quota are what bounds a mistake in a test.",
    source="Sprint 1.2; Namespace labels and ResourceQuota",
)
def namespace_is_guarded(namespace: Namespace | None, name: str) -> Iterator[Finding]:
    """Findings for phase, Pod Security level and quota; no namespace at all is a skip: it may not be made here."""
    if namespace is None:
        yield verdict(None, name, f"there is no namespace {name} yet")
        return
    yield verdict(namespace.phase == "Active", name, f"{name} is {namespace.phase}")
    level = namespace.labels.get(PSA, "")
    yield verdict(level == "restricted", f"{name} Pod Security", f"{name} enforces {level or 'no Pod Security level'}")
    limits = sorted(f"{key} {value}" for quota in namespace.quotas for key, value in quota.hard.items())
    yield verdict(bool(limits), f"{name} quota", f"{name}: {', '.join(limits) or 'no quota'}")


class Report(Protocol):
    """What became of borrowed things: `sweep.SweepReport`."""

    @property
    def undone(self) -> Sequence[Any]: ...
    @property
    def failed(self) -> Sequence[Any]: ...
    @property
    def remaining(self) -> Sequence[Any]: ...
    @property
    def unseen(self) -> Sequence[str]: ...
    @property
    def looked_at(self) -> Sequence[str]: ...
    @property
    def clean(self) -> bool: ...


@check(
    title="Nothing borrowed remains",
    remedy="Run `runbook sweep`; if it fails again, remove what it names by hand.",
    source="Both APIs, searched by the run's mark after the clean-up",
)
def nothing_borrowed_remains(report: Report) -> Iterator[Finding]:
    """One finding a borrowed thing: gone with proof, still there, or not to be seen."""
    for gone in report.undone:
        yield verdict(True, gone.target, f"gone: {gone.proof}", change=gone.change)
    for stuck in report.failed:
        yield verdict(False, stuck.target, f"could not be taken back: {stuck.reason}", change=stuck.change)
    known = {stuck.target for stuck in report.failed}
    for thing in report.remaining:
        if thing.target not in known:
            yield verdict(False, thing.target, f"still there with the mark of run {thing.run}")
    for place in report.unseen:
        yield verdict(Status.WARN, place, "could not be looked at, so absence is not proved")
    if report.looked_at and report.clean:
        places = " and ".join(report.looked_at)
        yield verdict(True, places, f"searched {places} for the mark of the run: nothing borrowed remains")
