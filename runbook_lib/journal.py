"""The write-ahead journal of changes: what was meant, what came of it, what was taken back.

One JSON line an entry, appended with fsync. The intent is on disk before its request leaves, so a process that is
killed at any point leaves at worst an intent that nobody finished; `open_entries` gives those to the clean-up.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets as randomness
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runbook_lib.errors import SecretError
from runbook_lib.model import Change, ChangeKind, change_from_dict, now, to_dict

log = logging.getLogger(__name__)

Result = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Entry:
    """One intended change and what is known of it. `result` is None where no outcome was written."""

    key: str
    change: Change
    time: str
    result: Result | None = None
    answer: Mapping[str, Any] | None = None
    left_behind: bool = True  # False: the server refused before it did anything
    undone: bool = False
    proof: str = ""

    @property
    def is_open(self) -> bool:
        """Whether something borrowed may still be there."""
        return self.change.kind is ChangeKind.BORROW and self.left_behind and not self.undone


class Journal:
    """The append-only journal at `path`; the file and its folder are made with the first intent."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def intent(self, change: Change) -> str:
        """The key of the new entry, once the intent is safely on disk. Raises SecretError before anything is sent."""
        key = f"{change.id}~{randomness.token_hex(4)}"
        self._append({"event": "intent", "key": key, "change": _clean(change)})
        return key

    def outcome(
        self, key: str, result: Result, answer: Mapping[str, Any] | None = None, *, left_behind: bool | None = None
    ) -> None:
        """Nothing; afterwards the journal tells what came of the change.

        `left_behind` is False where the server certainly did nothing; by default only of a `failed` change.
        `key` is what `intent` returned, or a change id, which means that change's latest intent.
        """
        left = result != "failed" if left_behind is None else left_behind
        self._append(
            {"event": "outcome", "key": key, "result": result, "answer": _redacted(answer), "left_behind": left}
        )

    def undone(self, key: str, proof: str = "") -> None:
        """Nothing; afterwards the change (a key, or every entry of a change id) counts as taken back."""
        self._append({"event": "undone", "key": key, "proof": _redacted(proof)})

    def entries(self) -> list[Entry]:
        """Every entry in the order of its intent; a torn line (a kill in the middle of a write) is passed over."""
        found: dict[str, Entry] = {}
        for row in self._rows():
            if row["event"] == "intent":
                found[row["key"]] = Entry(row["key"], change_from_dict(row["change"]), row["time"])
                continue
            for key in _keys(found, row):
                found[key] = _advanced(found[key], row)
        return list(found.values())

    def open_entries(self) -> list[Entry]:
        """Entries of borrowed things that may still exist, the latest first: the order of undoing."""
        return [entry for entry in reversed(self.entries()) if entry.is_open]

    def open_changes(self) -> list[Change]:
        """The changes of `open_entries`."""
        return [entry.change for entry in self.open_entries()]

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                usable = isinstance(row, dict) and {"event", "key"} <= row.keys()
            except ValueError:
                usable = False
            if usable:
                yield row
            else:
                log.warning("%s line %d is torn; passed over", self.path.name, number)

    def _append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps({"time": now(), **row}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with self._opened() as handle:
            # A torn last line must not swallow this one.
            start = b"" if _ends_a_line(handle) else b"\n"
            os.write(handle, start + line.encode() + b"\n")
            os.fsync(handle)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fresh = not self.path.exists()
        if fresh:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Steps of one run write into one journal from several kernels. A record lock belongs to the process, so a
            # SIGTERM handler that journals in the middle of a write does not wait for itself, as it would with flock.
            fcntl.lockf(handle, fcntl.LOCK_EX)
            if fresh:
                _sync_folder(self.path.parent)
            yield handle
        finally:
            os.close(handle)


def _keys(found: Mapping[str, Entry], row: Mapping[str, Any]) -> list[str]:
    """The entries a later row speaks of: its own key, or by change id the latest (outcome) or all (undone)."""
    if row["key"] in found:
        return [row["key"]]
    same = [key for key, entry in found.items() if entry.change.id == row["key"]]
    return same if row["event"] == "undone" else same[-1:]


def _advanced(entry: Entry, row: Mapping[str, Any]) -> Entry:
    if row["event"] == "outcome":
        return replace(entry, result=row["result"], answer=row.get("answer"), left_behind=row.get("left_behind", True))
    if row["event"] == "undone":
        return replace(entry, undone=True, proof=row.get("proof", ""))
    return entry


def _clean(change: Change) -> dict[str, Any]:
    """The change as the journal keeps it: redacted, except that what undo needs must be free of secrets."""
    data = to_dict(change)
    redacted = _redacted(data)
    if any(redacted[name] != data[name] for name in ("id", "system", "target", "undo")):
        raise SecretError(
            f"change {change.id} on {_redacted(change.target)}",
            "a secret's value is part of its name or of its undo, so it cannot be journalled; nothing was sent",
            "choose another name in the site's parameters, or another secret",
        )
    return redacted


def _redacted(value: Any) -> Any:
    from runbook_lib.secrets import redact_json

    return redact_json(to_dict(value))


def _ends_a_line(handle: int) -> bool:
    size = os.fstat(handle).st_size
    return size == 0 or os.pread(handle, 1, size - 1) == b"\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
