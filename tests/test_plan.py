"""Plans, their diff, approval and budget, and the way they are sent."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runbook_lib.errors import (
    ApprovalNeeded,
    BudgetExceeded,
    Conflict,
    NotAllowed,
    ReadOnly,
    Refused,
    TaskFailed,
    Unavailable,
    UsageError,
)
from runbook_lib.journal import Journal
from runbook_lib.model import Change
from runbook_lib.plan import Plan, apply, approve, grant, may_have_happened, pending

RUN = "20261123T190312Z-4f2a"


def change(identity: str = "13-01", **fields: Any) -> Change:
    """A pool to be made."""
    usual = {"system": "proxmox", "action": "create", "target": "/pools/x", "summary": "Pool", "after": {"poolid": "x"}}
    return Change(identity, **{**usual, **fields})


class Hands:
    """An executor that keeps what it was sent, and fails as it is told."""

    def __init__(self, failing: BaseException | None = None, on: str = "") -> None:
        self.sent: list[str] = []
        self.failing, self.on = failing, on

    def send(self, change: Change) -> dict[str, Any]:
        if self.failing is not None and change.id == self.on:
            raise self.failing
        self.sent.append(change.id)
        return {"data": None}


def test_the_digest_is_of_what_is_changed() -> None:
    """The same changes have one digest, another request has another."""
    plan = Plan("lab", (change(),))
    assert plan.digest == Plan("lab", (change(),)).digest
    assert plan.digest != Plan("lab", (change(request={"params": {"comment": "y"}}),)).digest
    assert plan.digest != Plan("other", (change(),)).digest


def test_the_digest_outlives_the_run() -> None:
    """A plan that was approved is the same plan when the run is begun anew with another id and mark."""

    def made(run: str) -> Plan:
        return Plan("lab", (change(after={"comment": f"runbook-{run.lower()}", "label": run}),), run)

    assert made(RUN).digest == made("20270101T000000Z-0001").digest


def test_two_changes_of_one_id_are_refused() -> None:
    """An id names one change in the journal."""
    with pytest.raises(UsageError, match="two changes have one id"):
        Plan("lab", (change(), change()))


def test_the_diff_names_what_changes_and_nothing_else() -> None:
    """Nested fields are compared one by one."""
    before = {"spec": {"hard": {"pods": "10", "cpu": "4"}}}
    after = {"spec": {"hard": {"pods": "20", "cpu": "4"}}}
    rows = Plan("lab", (change(action="update", before=before, after=after),)).diff()
    assert [(row.field, row.before, row.after) for row in rows] == [("spec.hard.pods", "10", "20")]


def test_the_text_of_a_plan_shows_signs() -> None:
    """+ added, ~ changed, - removed, and what is as wanted already."""
    plan = Plan(
        "lab",
        (
            change("1", after={"a": 1}),
            change("2", action="update", before={"privs": "A"}, after={"privs": "A,B"}),
            change("3", action="delete", before={"token": "t"}, after=None),
        ),
        unchanged=("pool x",),
    )
    text = plan.text()
    assert "+ a: 1" in text and "~ privs: A → A,B" in text and "- token: t" in text
    assert text.endswith("as wanted already: pool x")


def test_forbid_refuses_and_says_what_to_write(tmp_path: Path) -> None:
    """The refusal names the file and the key."""
    with pytest.raises(ReadOnly, match=r"changes: ask.*parameters/prod\.yaml"):
        approve(Plan("prod", (change(),)), "forbid", tmp_path)


def test_nothing_to_change_needs_no_leave(tmp_path: Path) -> None:
    """A site that forbids changes may still be found as wanted."""
    plan = Plan("prod", ())
    assert approve(plan, "forbid", tmp_path).covers(plan)


def test_ask_tells_the_command_and_keeps_the_plan(tmp_path: Path) -> None:
    """The plan waits on disk, for the owner alone, until it is approved."""
    plan = Plan("prod", (change(),), RUN)
    with pytest.raises(ApprovalNeeded, match=f"runbook approve {plan.digest[:12]}") as caught:
        approve(plan, "ask", tmp_path / "approvals")
    assert caught.value.exit_code == 4
    assert [waiting.digest for waiting in pending(tmp_path / "approvals")] == [plan.digest]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "approvals").iterdir())


def test_a_granted_plan_may_be_sent_for_thirty_minutes(tmp_path: Path) -> None:
    """Then it has to be read again."""
    plan = Plan("prod", (change(),))
    with pytest.raises(ApprovalNeeded):
        approve(plan, "ask", tmp_path, at=0)
    grant(tmp_path, plan.digest[:12], by="olena", at=1000)
    assert approve(plan, "ask", tmp_path, at=1000 + 1799).by == "olena"
    with pytest.raises(ApprovalNeeded, match="run out"):
        approve(plan, "ask", tmp_path, at=1000 + 1800)


def test_an_approval_is_of_one_plan_only(tmp_path: Path) -> None:
    """A plan that differs in one value needs its own."""
    plan, other = Plan("prod", (change(),)), Plan("prod", (change(after={"poolid": "y"}),))
    with pytest.raises(ApprovalNeeded):
        approve(plan, "ask", tmp_path)
    given = grant(tmp_path, plan.digest)
    assert not given.covers(other)
    with pytest.raises(ReadOnly, match="of another plan"):
        apply(other, given, Journal(tmp_path / "changes.jsonl"), {"proxmox": Hands()})  # type: ignore[dict-item]


@pytest.mark.parametrize("digest", ["000000000000", "0", ""])
def test_only_a_waiting_plan_can_be_granted(tmp_path: Path, digest: str) -> None:
    """A digest that is short or of nothing is a mistake of the person who types it."""
    with pytest.raises(UsageError, match="no waiting plan"):
        grant(tmp_path, digest)


@pytest.mark.parametrize(
    ("cost", "what"),
    [({"vms": 3}, "3 VMs, the site's budget is 2"), ({"gib": 65}, "65 GiB"), ({"minutes": 31}, "31 minutes")],
)
def test_a_plan_beyond_the_budget_is_not_sent(tmp_path: Path, cost: dict[str, float], what: str) -> None:
    """Also where the policy allows everything."""
    budget = SimpleNamespace(vms=2, gib=64, minutes=30)
    with pytest.raises(BudgetExceeded, match=what):
        approve(Plan("lab", (change(request={"cost": cost}),)), "allow", tmp_path, budget=budget)


def test_a_plan_at_the_budget_may_be_sent(tmp_path: Path) -> None:
    """The budget is what may be used up."""
    two = tuple(change(str(number), request={"cost": {"vms": 1, "gib": 32}}) for number in range(2))
    plan = Plan("lab", two)
    assert approve(plan, "allow", tmp_path, budget={"vms": 2, "gib": 64}).covers(plan)


def test_changes_are_sent_in_order_and_journalled(tmp_path: Path) -> None:
    """Intent before, outcome after, for each."""
    plan, hands, journal = Plan("lab", (change("1"), change("2"))), Hands(), Journal(tmp_path / "changes.jsonl")
    applied = apply(plan, approve(plan, "allow", tmp_path), journal, {"proxmox": hands})  # type: ignore[dict-item]
    events = [json.loads(line)["event"] for line in journal.path.read_text().splitlines()]
    assert hands.sent == ["1", "2"] and [entry.id for entry in applied.done] == ["1", "2"]
    assert events == ["intent", "outcome", "intent", "outcome"]


def test_a_refusal_stops_the_plan_and_is_closed(tmp_path: Path) -> None:
    """What the server refused needs no undo; what comes after it is not sent."""
    plan, journal = Plan("lab", (change("1"), change("2"), change("3"))), Journal(tmp_path / "changes.jsonl")
    hands = Hands(NotAllowed("POST /pools", "403", status=403), on="2")
    with pytest.raises(NotAllowed):
        apply(plan, approve(plan, "allow", tmp_path), journal, {"proxmox": hands})  # type: ignore[dict-item]
    assert hands.sent == ["1"]
    assert [entry.id for entry in journal.open_changes()] == ["1"]


def test_a_kill_leaves_an_intent_without_an_outcome(tmp_path: Path) -> None:
    """The clean-up asks the server then."""
    plan, journal = Plan("lab", (change("1"),)), Journal(tmp_path / "changes.jsonl")
    with pytest.raises(KeyboardInterrupt):
        apply(plan, approve(plan, "allow", tmp_path), journal, {"proxmox": Hands(KeyboardInterrupt(), on="1")})  # type: ignore[dict-item]
    assert journal.entries()[0].result is None and journal.open_changes()


@pytest.mark.parametrize(
    ("error", "maybe"),
    [
        (Refused("POST", "parameters", status=400), False),
        (NotAllowed("POST", "", status=403), False),
        (Conflict("POST", "", status=409), False),
        (Refused("POST", "pool 'x' already exists", status=500), False),
        (Refused("POST", "something broke halfway", status=500), True),
        (Unavailable("POST", "no answer in time"), True),
        (TaskFailed("qmcreate", "disk full"), True),
    ],
)
def test_what_may_have_happened_is_told_from_what_did_not(error: Any, maybe: bool) -> None:
    """ "already exists" means that the thing is somebody else's; a lost answer means nothing."""
    assert may_have_happened(error) is maybe
