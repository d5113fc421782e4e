"""Judgement of readiness: the sprint's success criteria against what was proved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runbook_lib.checks import check, verdict
from runbook_lib.criteria import Reading
from runbook_lib.model import Finding, Status


@check(
    title="The success criteria are met",
    remedy="Run the steps that the finding names, and mend what fails there; not run is not ready.",
    source="Sprint, success criteria; results of this site's runs of the last days",
)
def criteria_are_met(readings: Iterable[Reading]) -> Iterator[Finding]:
    """One finding per criterion: proved passes, not run warns, disproved fails."""
    for reading in readings:
        status = Status.WARN if reading.status in {Status.NOT_RUN, Status.SKIP} else reading.status
        yield verdict(status, reading.title, reading.why, readiness=str(reading.status))
