"""Findings that somebody answers for: a waiver names an owner, a reason and a day on which it ends. No I/O."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from typing import Any, Protocol

from runbook_lib.model import Finding, Status


class Given(Protocol):
    """What a waiver says, as the site's parameters have it."""

    @property
    def check(self) -> str:
        """Id of the check, or a pattern."""

    @property
    def subject(self) -> str:
        """Subject of the finding, or a pattern."""

    @property
    def owner(self) -> str:
        """Who answers for it."""

    @property
    def reason(self) -> str:
        """Why it is accepted."""

    @property
    def expires(self) -> str:
        """The last day on which it holds, YYYY-MM-DD."""


@dataclass(frozen=True)
class WaiverState:
    """One waiver and what became of it today."""

    check: str
    subject: str
    owner: str
    reason: str
    expires: str
    days_left: int
    covers: int  # findings that it stands for


Judge = Callable[..., list[Finding]]


def under(waivers: Sequence[Given], *, today: date | None = None) -> Callable[[Judge], Judge]:
    """What makes a check honour the waivers: `step.check(waived(checks.audit.tokens_expire), tokens)`."""

    def dressed(judge: Judge) -> Judge:
        @functools.wraps(judge)
        def judged(*facts: Any, **given: Any) -> list[Finding]:
            return applied(judge(*facts, **given), waivers, today=today)

        return judged

    return dressed


def applied(findings: Iterable[Finding], waivers: Sequence[Given], *, today: date | None = None) -> list[Finding]:
    """The findings as the waivers leave them: what fails is a warning while somebody answers for it.

    A waived finding never passes, and one whose waiver has ended fails, even if it was a warning without. An error is
    no finding that anyone could answer for.
    """
    day = today or _today()
    return [_waived(finding, waivers, day) for finding in findings]


def states(findings: Iterable[Finding], waivers: Sequence[Given], *, today: date | None = None) -> list[WaiverState]:
    """Every waiver with the days it has left and the number of findings it stands for, the shortest first."""
    day, open_ones = today or _today(), [finding for finding in findings if finding.status in _OPEN]
    rows = [
        WaiverState(
            waiver.check,
            waiver.subject,
            waiver.owner,
            waiver.reason,
            waiver.expires,
            _days_left(waiver, day),
            len({(f.check, f.subject) for f in open_ones if _fits(waiver, f)}),
        )
        for waiver in waivers
    ]
    return sorted(rows, key=lambda row: row.days_left)


_OPEN = {Status.FAIL, Status.WARN}


def _waived(finding: Finding, waivers: Sequence[Given], day: date) -> Finding:
    if finding.status not in _OPEN:
        return finding
    fitting = [waiver for waiver in waivers if _fits(waiver, finding)]
    if not fitting:
        return finding
    best = max(fitting, key=lambda waiver: waiver.expires)
    holds = _days_left(best, day) >= 0
    told = f"accepted by {best.owner} until {best.expires}: {best.reason}"
    if not holds:
        told = f"its waiver by {best.owner} ended on {best.expires}"
    about = {"owner": best.owner, "expires": best.expires, "reason": best.reason}
    return replace(
        finding,
        status=Status.WARN if holds else Status.FAIL,
        message=f"{finding.message}; {told}",
        evidence={**finding.evidence, "waiver": about, "before_waiver": str(finding.status)},
    )


def _fits(waiver: Given, finding: Finding) -> bool:
    return fnmatchcase(finding.check, waiver.check) and fnmatchcase(finding.subject, waiver.subject)


def _days_left(waiver: Given, day: date) -> int:
    return (date.fromisoformat(waiver.expires) - day).days


def _today() -> date:
    return datetime.now(UTC).date()
