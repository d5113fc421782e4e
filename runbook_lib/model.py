"""The words of a result: Status, Finding, Measurement, Change, StepResult, Run; to and from plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from statistics import fmean, quantiles
from typing import Any

SCHEMA = 1
"""Version of the step result as stored by scrapbook; readers refuse a larger one."""


class Status(StrEnum):
    """What a check, a step or a run came to. Ordered by `worst`: not run is never pass."""

    PASS = "pass"
    WARN = "warn"
    SKIP = "skip"
    NOT_RUN = "not run"
    FAIL = "fail"
    ERROR = "error"


_GRAVITY = {
    Status.SKIP: 0,
    Status.NOT_RUN: 0,
    Status.PASS: 1,
    Status.WARN: 2,
    Status.FAIL: 3,
    Status.ERROR: 4,
}


def worst(statuses: Iterable[Status], *, empty: Status = Status.SKIP) -> Status:
    """The gravest of the statuses; skips never lift a result, and of nothing comes `empty`.

    A mixture of skip and pass is pass (the skips are counted beside it); only skips give skip.
    """
    seen = list(statuses)
    return max(seen, key=lambda status: _GRAVITY[status], default=empty)


def now() -> str:
    """The current time as the records spell it: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Finding:
    """One judged subject: the smallest piece of evidence."""

    check: str  # "proxmox.storage_has_room"
    status: Status
    subject: str  # what was looked at: "pve1/local-lvm"; empty for the whole site
    message: str  # one sentence with the figures
    title: str = ""
    remedy: str = ""
    source: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=now)


@dataclass(frozen=True)
class Measurement:
    """Repeated readings of one quantity. `threshold` is the largest acceptable p95, when the site names one."""

    name: str  # "proxmox.GET /version"
    unit: str  # "ms", "s", "MiB/s"
    values: tuple[float, ...]
    emulated: bool = False
    subject: str = ""
    threshold: float | None = None
    errors: int = 0
    time: str = field(default_factory=now)

    def percentile(self, percent: int) -> float | None:
        """The given percentile (1–99) by the inclusive method; None of no values."""
        if not self.values:
            return None
        if len(self.values) == 1:
            return self.values[0]
        return quantiles(self.values, n=100, method="inclusive")[percent - 1]

    @property
    def mean(self) -> float | None:
        """Arithmetic mean; None of no values."""
        return fmean(self.values) if self.values else None


class ChangeKind(StrEnum):
    """A borrowed thing is taken away at the step's end; an installed one stays and is listed."""

    BORROW = "borrow"
    INSTALL = "install"


@dataclass(frozen=True)
class Change:
    """One mutating request, as planned. `undo` is the request that takes it back, None where nothing can."""

    id: str  # unique within a run: "13-01"
    system: str  # "proxmox" | "kubernetes"
    action: str  # "create" | "update" | "delete" | "start" …
    target: str  # "/nodes/pve1/storage/local/content" or "v1/Namespace/runbook-test"
    summary: str  # a sentence for the plan
    kind: ChangeKind = ChangeKind.BORROW
    request: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    undo: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StepResult:
    """What one notebook proved; the payload of its one scrap."""

    step: str  # "11"
    title: str
    site: str
    run: str
    status: Status
    started: str
    finished: str
    seconds: float
    findings: tuple[Finding, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    changes: tuple[Change, ...] = ()
    task: str = ""  # the sprint's number: "1.1"
    notes: tuple[str, ...] = ()
    emulated: bool = False
    requests: Mapping[str, int] = field(default_factory=dict)  # requests by system
    schema: int = SCHEMA

    def _ipython_display_(self) -> None:
        """Nothing: a step displays its verdict itself, so a cell that ends with the result shows it once."""


@dataclass(frozen=True)
class StepRecord:
    """One step within a run, also when it has no result: reason tells why it was skipped or could not tell."""

    step: str
    title: str
    notebook: str  # file name
    status: Status
    needs: tuple[str, ...] = ()
    task: str = ""
    reason: str = ""
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None
    result: StepResult | None = None
    run: str = ""  # the folder of the run it is from, where records of several runs stand together


@dataclass(frozen=True)
class Run:
    """One pass over a site."""

    id: str  # "20261123T190312Z-4f2a"
    site: str
    started: str
    steps: tuple[StepRecord, ...] = ()
    finished: str | None = None
    emulated: bool = False
    parameters_digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    status: Status = Status.NOT_RUN
    path: str = ""  # folder, relative to outputs/
    schema: int = SCHEMA

    @property
    def findings(self) -> list[Finding]:
        """Every finding of every step, in step order."""
        return [finding for record in self.steps if record.result for finding in record.result.findings]


def to_dict(value: Any) -> Any:
    """`value` as plain JSON data: dataclasses become dicts, tuples lists, numpy scalars numbers, times ISO text.

    Numbers that JSON has no word for become None, so that nothing is read back as the text "nan".
    Raises TypeError naming the type for anything else.
    """
    if value is None or isinstance(value, str | bool | int):
        return str(value) if isinstance(value, StrEnum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_dict(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return [to_dict(entry) for entry in sorted(value, key=str)]
    if value.__class__.__name__ in {"NaTType", "NAType"}:  # NaT is a datetime, and no time
        return None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return _foreign(value)


def _foreign(value: Any) -> Any:
    """numpy and pandas values, without importing either."""
    for method in ("tolist", "to_list", "item"):  # ndarray, Series and Index, numpy scalar
        convert = getattr(value, method, None)
        if callable(convert):
            return to_dict(convert())
    if callable(getattr(value, "to_dict", None)):  # DataFrame
        return to_dict(value.to_dict(orient="records"))
    raise TypeError(f"a result holds a {type(value).__name__}, which has no plain JSON form; give text or numbers")


def finding_from_dict(data: Mapping[str, Any]) -> Finding:
    """The Finding that `to_dict` wrote."""
    return Finding(**{**data, "status": Status(data["status"])})


def measurement_from_dict(data: Mapping[str, Any]) -> Measurement:
    """The Measurement that `to_dict` wrote; values that were not finite are dropped and counted as errors."""
    values = [entry for entry in data["values"] if entry is not None]
    lost = len(data["values"]) - len(values)
    return Measurement(**{**data, "values": tuple(values), "errors": data.get("errors", 0) + lost})


def change_from_dict(data: Mapping[str, Any]) -> Change:
    """The Change that `to_dict` wrote."""
    return Change(**{**data, "kind": ChangeKind(data["kind"])})


def step_result_from_dict(data: Mapping[str, Any]) -> StepResult:
    """The StepResult that `to_dict` wrote. Raises ValueError for a schema newer than this reader."""
    _known_schema(data)
    return StepResult(
        **{
            **data,
            "status": Status(data["status"]),
            "findings": tuple(finding_from_dict(entry) for entry in data.get("findings", ())),
            "measurements": tuple(measurement_from_dict(entry) for entry in data.get("measurements", ())),
            "changes": tuple(change_from_dict(entry) for entry in data.get("changes", ())),
            "notes": tuple(data.get("notes", ())),
        }
    )


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """The Run that `to_dict` wrote. Raises ValueError for a schema newer than this reader."""
    _known_schema(data)
    steps = tuple(
        StepRecord(
            **{
                **entry,
                "status": Status(entry["status"]),
                "needs": tuple(entry.get("needs", ())),
                "result": step_result_from_dict(entry["result"]) if entry.get("result") else None,
            }
        )
        for entry in data.get("steps", ())
    )
    return Run(**{**data, "steps": steps, "status": Status(data["status"])})


def _known_schema(data: Mapping[str, Any]) -> None:
    if int(data.get("schema", 0)) > SCHEMA:
        raise ValueError(f"written by a newer release (schema {data['schema']}, this one reads up to {SCHEMA})")
