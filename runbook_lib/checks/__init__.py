"""Pure judgement: facts in, findings out. The decorator keeps the catalogue and keeps checks honest."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runbook_lib.model import Finding, Status


@dataclass(frozen=True)
class CheckInfo:
    """One line of the catalogue."""

    id: str  # "proxmox.storage_has_room"
    title: str
    remedy: str
    source: str
    summary: str  # the docstring's first line
    thresholds: Mapping[str, Any]

    @property
    def area(self) -> str:
        """The part of the id before the dot: the module that holds the check."""
        return self.id.partition(".")[0]


_catalogue: dict[str, CheckInfo] = {}


def check(
    *, title: str, remedy: str, source: str
) -> Callable[[Callable[..., Iterable[Finding]]], Callable[..., list[Finding]]]:
    """A judgement function as a check: catalogued, never silent, never fatal.

    An empty result becomes one `skip` ("nothing to look at"); an exception inside the judgement becomes one `error`.
    """

    def decorate(judge: Callable[..., Iterable[Finding]]) -> Callable[..., list[Finding]]:
        identity = f"{judge.__module__.rpartition('.')[2]}.{judge.__name__}"
        keywords = {
            name: parameter.default
            for name, parameter in inspect.signature(judge).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        }
        _catalogue[identity] = CheckInfo(
            identity, title, remedy, source, (inspect.getdoc(judge) or "").partition("\n")[0], keywords
        )

        def dressed(finding: Finding) -> Finding:
            fix = remedy if finding.status in {Status.WARN, Status.FAIL} else ""
            return Finding(
                check=identity,
                status=finding.status,
                subject=finding.subject,
                message=finding.message,
                title=title,
                remedy=finding.remedy or fix,
                source=source,
                evidence=finding.evidence,
                time=finding.time,
            )

        @functools.wraps(judge)
        def judged(*args: Any, **kwargs: Any) -> list[Finding]:
            try:
                findings = [dressed(finding) for finding in judge(*args, **kwargs)]
            except Exception as error:  # noqa: BLE001 -- named place: a judgement must never end a run
                could_not = f"the judgement itself failed: {type(error).__name__}: {error}"
                return [dressed(Finding("", Status.ERROR, "", could_not))]
            return findings or [dressed(Finding("", Status.SKIP, "", "nothing to look at"))]

        return judged

    return decorate


def __getattr__(name: str) -> Any:
    """The area of that name, loaded on first use: `checks.proxmox`."""
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"there is no area of checks called {name!r}")


def catalogue() -> list[CheckInfo]:
    """Every check of every area, sorted by id."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return [_catalogue[identity] for identity in sorted(_catalogue)]


def verdict(status: Status | bool | None, subject: str, message: str, *, remedy: str = "", **evidence: Any) -> Finding:
    """One finding: True is pass, False is fail, None is skip; the decorator adds the rest."""
    if status is None:
        status = Status.SKIP
    elif isinstance(status, bool):
        status = Status.PASS if status else Status.FAIL
    return Finding(check="", status=status, subject=subject, message=message, remedy=remedy, evidence=evidence)


def graded(
    value: float | None, subject: str, message: str, *, warn_at: float, fail_at: float, **evidence: Any
) -> Finding:
    """One finding of a quantity that is worse the larger it is; None is skip."""
    if value is None:
        return verdict(None, subject, message, **evidence)
    status = Status.FAIL if value >= fail_at else Status.WARN if value >= warn_at else Status.PASS
    return verdict(status, subject, message, **evidence)
