"""Plan, diff, approval and budget of changes, and the one way they are sent: intent, request, outcome."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from runbook_lib.errors import (
    ApiError,
    ApprovalNeeded,
    BadAnswer,
    BudgetExceeded,
    Conflict,
    NodeUnreachable,
    ReadOnly,
    RunbookError,
    TaskFailed,
    TlsError,
    Unavailable,
    UsageError,
)
from runbook_lib.journal import Journal
from runbook_lib.model import Change, ChangeKind, change_from_dict, now, to_dict

log = logging.getLogger(__name__)

Policy = Literal["forbid", "ask", "allow"]

APPROVAL_SECONDS = 30 * 60
"""How long an approval is good for."""

MARK = "runbook-"
"""What the marks in Proxmox tags, comments and volume names begin with."""


def mark(run: str) -> str:
    """The run's mark as Proxmox keeps it: PVE stores tags in lower case."""
    return f"{MARK}{run.lower()}"


@dataclass(frozen=True)
class DiffRow:
    """One difference of one change; `before` and `after` are texts, empty where there is nothing."""

    change: str
    action: str
    kind: str
    target: str
    field: str
    before: str
    after: str


@dataclass(frozen=True)
class Plan:
    """What would be changed on a site, and what already is as wanted."""

    site: str
    changes: tuple[Change, ...]
    run: str = ""
    unchanged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", tuple(self.changes))
        ids = [change.id for change in self.changes]
        if len(ids) != len(set(ids)):
            raise UsageError(f"plan of {self.site}", "two changes have one id", "give each change an id of its own")

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON. Ids and the run's mark are left out: a resumed run plans the same."""
        meant = [replace(change, id="") for change in self.changes]
        text = json.dumps(to_dict([self.site, meant]), sort_keys=True, separators=(",", ":"))
        for own in (self.run, self.run.lower()) if self.run else ():
            text = text.replace(own, "<run>")
        return hashlib.sha256(text.encode()).hexdigest()

    def diff(self) -> list[DiffRow]:
        """One row a field that changes, in the order in which the changes would be sent."""
        return [row for change in self.changes for row in _differences(change)]

    def table(self) -> list[dict[str, str]]:
        """One row a change for a reader: what, where, why, and each field with `+`, `-` or `~` before it."""
        return [
            {
                "change": change.id,
                "action": f"{change.action}, {change.kind}",
                "target": change.target,
                "why": change.summary,
                "difference": "\n".join(
                    f"{_sign(row)} {row.field}: {_arrow(row)}" for row in _differences(change) if row.field
                ),
            }
            for change in self.changes
        ]

    def text(self) -> str:
        """The plan as a person reads it in a terminal: one paragraph a change, `+` added, `-` removed, `~` changed."""
        lines = [f"{len(self.changes)} change(s) on {self.site}, digest {self.digest[:12]}"]
        for change in self.changes:
            lines.append(f"{change.id} {change.action} {change.target} ({change.kind}): {change.summary}")
            lines += [f"    {_sign(row)} {row.field}: {_arrow(row)}" for row in _differences(change) if row.field]
        return "\n".join(lines + [f"as wanted already: {name}" for name in self.unchanged])


@dataclass(frozen=True)
class Approval:
    """Leave to send exactly one plan, for a while."""

    digest: str
    by: str
    given: float  # seconds since the epoch
    expires: float

    def covers(self, plan: Plan, *, at: float | None = None) -> bool:
        """Whether the plan may be sent now: the digest is the same and the time has not run out."""
        return self.digest == plan.digest and self.given <= (time.time() if at is None else at) < self.expires


@dataclass(frozen=True)
class Applied:
    """What was sent of a plan. `refused` tells why nothing was, where the site's policy forbids changes."""

    plan: Plan
    done: tuple[Change, ...] = ()
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Marked:
    """A thing found by a run's mark, without the journal. `kept` is True of what was installed to stay."""

    system: str
    target: str
    run: str
    kept: bool
    undo: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Search:
    """What bears the mark, and the places that could not be looked at: with any of those, absence is not proved."""

    things: tuple[Marked, ...] = ()
    unseen: tuple[str, ...] = ()


class Executor(Protocol):
    """The hands of one system. Every method may be repeated: what is done is not done twice, what is gone is gone."""

    def send(self, change: Change) -> Mapping[str, Any]:
        """The server's answer, waited for where it is a task, and free of secrets."""

    def undo(self, change: Change) -> str:
        """The proof that the change is taken back; a thing that is not ours is left alone (Conflict)."""

    def exists(self, change: Change) -> bool:
        """Whether what the change made is there and is ours."""

    def marked(self, run: str | None, targets: Iterable[str] = ()) -> Search:
        """Everything that bears the mark of the run, or of any run; `targets` tell which kinds were made."""


def approve(
    plan: Plan,
    policy: Policy,
    approvals_dir: Path,
    *,
    budget: Any = None,
    at: float | None = None,
) -> Approval:
    """Leave to send the plan, by the site's policy; the budget is looked at first.

    forbid raises ReadOnly, ask raises ApprovalNeeded unless the plan was approved (`grant`) within 30 minutes.
    """
    check_budget(plan, budget)
    moment = time.time() if at is None else at
    if not plan.changes or policy == "allow":
        return Approval(plan.digest, "nothing to change" if not plan.changes else "policy", moment, moment + 1800)
    if policy == "forbid":
        raise ReadOnly(
            f"{len(plan.changes)} change(s) on {plan.site}",
            "the site's parameters say `changes: forbid`",
            f"read the plan, then set `changes: ask` in parameters/{plan.site}.yaml",
        )
    given = _granted(approvals_dir, plan.digest)
    if given is not None and given.covers(plan, at=moment):
        return given
    _write(_pending_file(approvals_dir, plan.digest), {"digest": plan.digest, "plan": to_dict(plan), "time": now()})
    raise ApprovalNeeded(
        f"{len(plan.changes)} change(s) on {plan.site}",
        "the approval has run out" if given is not None else "nobody has approved this plan yet",
        f"read it, then `runbook approve {plan.digest[:12]}` and run again within 30 minutes",
    )


def pending(approvals_dir: Path) -> list[Plan]:
    """The plans that wait for approval, newest first."""
    files = sorted(approvals_dir.glob("*.plan.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [_read_plan(path) for path in files]


def grant(approvals_dir: Path, digest: str, *, by: str = "", at: float | None = None) -> Approval:
    """The approval of the waiting plan whose digest begins so (≥ 12 characters), good for 30 minutes.

    Raises UsageError when no waiting plan, or more than one, has that digest.
    """
    waiting = [plan for plan in pending(approvals_dir) if len(digest) >= 12 and plan.digest.startswith(digest)]
    if len(waiting) != 1:
        known = ", ".join(plan.digest[:12] for plan in pending(approvals_dir)) or "none"
        raise UsageError(f"approve {digest}", "no waiting plan has this digest", f"waiting: {known}")
    moment = time.time() if at is None else at
    given = Approval(waiting[0].digest, by or _user(), moment, moment + APPROVAL_SECONDS)
    _write(_granted_file(approvals_dir, given.digest), to_dict(given))
    return given


def spend(approvals_dir: Path, digest: str) -> None:
    """Nothing; a plan that was carried out waits no longer, and its approval is good for nothing else."""
    for path in (_pending_file(approvals_dir, digest), _granted_file(approvals_dir, digest)):
        path.unlink(missing_ok=True)


def check_budget(plan: Plan, budget: Any) -> None:
    """Nothing when the plan is within the site's budget (`vms`, `gib`, `minutes`); BudgetExceeded names what is not."""
    if budget is None:
        return
    wanted = cost(plan.changes)
    for name, unit in (("vms", "VMs"), ("gib", "GiB"), ("minutes", "minutes")):
        allowed = budget.get(name) if isinstance(budget, Mapping) else getattr(budget, name, None)
        if allowed is not None and wanted[name] > allowed:
            raise BudgetExceeded(
                f"{len(plan.changes)} change(s) on {plan.site}",
                f"they need {wanted[name]:g} {unit}, the site's budget is {allowed:g}; nothing was sent",
                f"plan less, or raise `budget.{name}` in parameters/{plan.site}.yaml",
            )


def cost(changes: Iterable[Change]) -> dict[str, float]:
    """What the changes use of the budget: `vms`, `gib` of disk, `minutes`, as each request states under `cost`."""
    total = {"vms": 0.0, "gib": 0.0, "minutes": 0.0}
    for change in changes:
        for name, amount in (change.request.get("cost") or {}).items():
            total[name] += amount
    return total


def apply(
    plan: Plan,
    approval: Approval,
    journal: Journal,
    executors: Mapping[str, Executor],
    *,
    on_change: Callable[[Change, str], None] = lambda change, result: None,
    at: float | None = None,
    only: str = "",
) -> Applied:
    """What was done of the plan. Stops at the first change that fails, with the journal telling how far it came.

    `only` sends the changes of that action; the approval is still of the whole plan.

    The intent is on disk before each request, the outcome after it; whatever happens in between, the clean-up knows.
    """
    if not approval.covers(plan, at=at):
        raise ReadOnly(
            f"{len(plan.changes)} change(s) on {plan.site}",
            "the approval is of another plan, or has run out; nothing was sent",
            "plan again and approve what it says now",
        )
    answers: dict[str, Mapping[str, Any]] = {}
    chosen = part(plan, only)
    for change in chosen:
        answers[change.id] = _send(change, journal, executors[change.system])
        on_change(change, "ok")
    return Applied(plan, chosen, answers)


def _send(change: Change, journal: Journal, executor: Executor) -> Mapping[str, Any]:
    key = journal.intent(change)
    try:
        answer = executor.send(change)
    except RunbookError as error:
        left = may_have_happened(error)
        journal.outcome(key, "unknown" if left else "failed", {"error": str(error)}, left_behind=left)
        log.info("change %s %s %s: %s", change.id, change.action, change.target, error)
        raise
    # Anything else that ends this (a kill, Ctrl-C, a broken library) leaves the intent without an outcome on purpose:
    # the clean-up then asks the server.
    journal.outcome(key, "ok", answer)
    log.info("change %s %s %s: ok", change.id, change.action, change.target)
    return answer


def may_have_happened(error: RunbookError) -> bool:
    """Whether a request that ended so may nevertheless have changed something.

    A 4xx came before anything was done: the thing, if there is one, is somebody else's. So is one that "already
    exists". Any other 5xx, a failed task, a lost connection or an unreadable answer tells nothing.
    """
    if isinstance(error, Conflict | TlsError | ReadOnly) or "already exists" in str(error):
        return False
    if isinstance(error, TaskFailed | Unavailable | NodeUnreachable | BadAnswer):
        return True
    return not isinstance(error, ApiError) or not 400 <= error.status < 500


def _differences(change: Change) -> list[DiffRow]:
    before, after = (flat(side) if side else {} for side in (change.before, change.after))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if change.after is None and change.before is not None:
        names = list(before)

    def row(name: str) -> DiffRow:
        return DiffRow(
            change.id,
            change.action,
            str(change.kind),
            change.target,
            name,
            before.get(name, ""),
            after.get(name, ""),
        )

    return [row(name) for name in names] or [row("")]


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested data as `a.b[0]` → text, in the order of the data."""
    if isinstance(value, Mapping) and value:
        pairs = [(f"{prefix}.{key}" if prefix else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list | tuple) and value:
        pairs = [(f"{prefix}[{index}]", entry) for index, entry in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str) else json.dumps(to_dict(value), ensure_ascii=False)}
    return {name: text for key, entry in pairs for name, text in flat(entry, key).items()}


def _sign(row: DiffRow) -> str:
    return "~" if row.before and row.after else "+" if row.after else "-"


def _arrow(row: DiffRow) -> str:
    return " → ".join(text for text in (row.before, row.after) if text)


def _pending_file(approvals_dir: Path, digest: str) -> Path:
    return approvals_dir / f"{digest[:12]}.plan.json"


def _granted_file(approvals_dir: Path, digest: str) -> Path:
    return approvals_dir / f"{digest[:12]}.approved.json"


def _granted(approvals_dir: Path, digest: str) -> Approval | None:
    path = _granted_file(approvals_dir, digest)
    return Approval(**json.loads(path.read_text())) if path.exists() else None


def _read_plan(path: Path) -> Plan:
    data = json.loads(path.read_text())["plan"]
    return Plan(
        data["site"],
        tuple(change_from_dict(entry) for entry in data["changes"]),
        data["run"],
        tuple(data["unchanged"]),
    )


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all, and for the owner alone: whoever can write here can approve."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(data, ensure_ascii=False, indent=1))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return str(os.getuid())


def part(plan: Plan, action: str = "") -> tuple[Change, ...]:
    """The changes of one action, or all of them."""
    return tuple(change for change in plan.changes if not action or change.action == action)


def borrowed(changes: Iterable[Change]) -> list[Change]:
    """The changes whose things are to be taken away at the end."""
    return [change for change in changes if change.kind is ChangeKind.BORROW]
