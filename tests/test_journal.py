"""The write-ahead journal."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from runbook_lib import secrets
from runbook_lib.errors import SecretError
from runbook_lib.journal import Journal
from runbook_lib.model import Change, ChangeKind


def change(identity: str = "13-01", kind: ChangeKind = ChangeKind.BORROW, **fields: object) -> Change:
    """A small borrowed change."""
    undo = {"method": "DELETE", "path": f"/pools/{identity}"}
    return Change(**{"id": identity, "system": "proxmox", "action": "create", "target": "/pools/x", "summary": "s",
                     "kind": kind, "undo": undo, **fields})  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal that does not exist yet, in a folder that does not either."""
    return Journal(tmp_path / "run" / "changes.jsonl")


def test_an_absent_journal_is_empty(journal: Journal) -> None:
    """Asking does not make the file."""
    assert journal.entries() == [] and journal.open_changes() == []
    assert not journal.path.exists()


def test_an_intent_without_outcome_is_open(journal: Journal) -> None:
    """What may have happened counts as happened."""
    journal.intent(change())
    assert journal.open_changes() == [change()]
    assert journal.entries()[0].result is None


def test_open_changes_come_in_reverse_order(journal: Journal) -> None:
    """What was made last is taken away first."""
    for number in ("1", "2", "3"):
        journal.outcome(journal.intent(change(number)), "ok")
    assert [entry.id for entry in journal.open_changes()] == ["3", "2", "1"]


@pytest.mark.parametrize(
    ("result", "left_behind", "opened"),
    [("ok", None, True), ("unknown", None, True), ("failed", None, False), ("failed", True, True)],
)
def test_a_refused_change_is_closed(journal: Journal, result: str, left_behind: bool | None, opened: bool) -> None:
    """Only a request that certainly did nothing needs no undo."""
    journal.outcome(journal.intent(change()), result, {"error": "403"}, left_behind=left_behind)  # type: ignore[arg-type]
    assert bool(journal.open_changes()) is opened


def test_an_installed_change_is_never_open(journal: Journal) -> None:
    """What is installed stays."""
    journal.outcome(journal.intent(change(kind=ChangeKind.INSTALL)), "ok")
    assert journal.open_changes() == []


def test_undone_closes_every_entry_of_a_change_id(journal: Journal) -> None:
    """A step that ran twice in one run has two intents of one id; the thing is one."""
    journal.intent(change())
    journal.intent(change())
    journal.undone("13-01", "GET /pools does not list it")
    assert journal.open_changes() == []
    assert {entry.proof for entry in journal.entries()} == {"GET /pools does not list it"}


def test_an_outcome_by_id_is_that_of_the_latest_intent(journal: Journal) -> None:
    """The earlier intent, of a killed process, stays without an outcome."""
    journal.intent(change())
    journal.intent(change())
    journal.outcome("13-01", "failed")
    assert [entry.result for entry in journal.entries()] == [None, "failed"]


def test_a_torn_last_line_is_passed_over_and_not_grown_into(journal: Journal) -> None:
    """After a kill in the middle of a write both the lines before and those after are read."""
    journal.intent(change("1"))
    with journal.path.open("ab") as file:
        file.write(b'{"event":"intent","key":"2~x","cha')
    journal.intent(change("3"))
    assert [entry.change.id for entry in journal.entries()] == ["1", "3"]


def test_every_length_of_the_last_line_can_be_read(journal: Journal) -> None:
    """Whatever byte a kill cut at, the entries before it are there."""
    journal.outcome(journal.intent(change("1")), "ok")
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):
        journal.path.write_bytes(whole[:cut])
        assert [(entry.change.id, entry.result) for entry in journal.entries()] == [("1", None)]


def test_the_journal_is_for_the_owner_alone(journal: Journal) -> None:
    """0600, whatever the umask."""
    journal.intent(change())
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_a_secret_never_reaches_the_journal(journal: Journal) -> None:
    """Requests and answers are redacted, plain and encoded."""
    secrets.register("hunter2-and-more")
    request = {"params": {"password": "hunter2-and-more"}}
    journal.outcome(journal.intent(change(request=request)), "ok", {"value": "hunter2-and-more"})
    assert "hunter2" not in journal.path.read_text()


def test_a_secret_in_an_undo_is_refused_before_anything_is_sent(journal: Journal) -> None:
    """A redacted undo would undo something else, so there is no change at all."""
    secrets.register("swordfish-77")
    with pytest.raises(SecretError, match="part of its name or of its undo"):
        journal.intent(change(undo={"path": "/pools/swordfish-77"}))
    assert journal.entries() == []


def test_several_writers_keep_their_lines_apart(journal: Journal) -> None:
    """Steps of one run journal at the same time."""
    journal.intent(change("0"))

    def write(number: int) -> None:
        for turn in range(10):
            journal.outcome(journal.intent(change(f"{number}-{turn}")), "ok")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The lock is the process's: a thread may take another's unfinished line for a torn one, and leaves an empty line.
    assert all(json.loads(line) for line in journal.path.read_text().splitlines() if line)
    assert len(journal.open_changes()) == 41
