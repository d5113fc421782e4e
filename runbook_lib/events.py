"""What a run leaves beside its results: who holds the site, and what happened when."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runbook_lib.errors import Locked, UsageError
from runbook_lib.model import now, to_dict
from runbook_lib.results import write_atomically

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


def make_private(folder: Path) -> Path:
    """The folder, made where missing, for its owner alone. Raises UsageError where it cannot be, or is a link."""
    if folder.is_symlink() and folder.name != "outputs":  # outputs/ itself may lie on another disk
        raise UsageError(f"{folder.name}/ is a symbolic link", "", "results are written to true folders only")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as problem:
        raise UsageError(f"cannot write {folder.name}/", problem.strerror or str(problem)) from problem
    return folder


@contextlib.contextmanager
def site_lock(folder: Path, site: str) -> Iterator[None]:
    """Held by one run of a site at a time. Raises Locked (exit 5) at once, naming the owner.

    The lock is the kernel's: it ends with its owner, however that one dies, so nothing has to be deleted by hand.
    """
    from filelock import FileLock, Timeout

    owner_file = folder / ".lock.json"
    lock = FileLock(folder / ".lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout as busy:
        raise _locked(site, owner_file) from busy
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        write_atomically(owner_file, json.dumps(owner))
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()


def _locked(site: str, owner_file: Path) -> Locked:
    try:
        owner = json.loads(owner_file.read_text(encoding="utf-8"))
        holder = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError):
        holder = "another process"  # it has the lock and has not yet written who it is
    return Locked(f"site {site} is held by {holder}", "", "wait for that run, or interrupt it")


class EventLog:
    """events.jsonl of a run; every event also goes to the listener. Safe from several threads."""

    def __init__(self, path: Path, listener: OnEvent | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._listener = listener

    def emit(self, event: str, **data: Any) -> None:
        """Write one line and tell the listener; redacted."""
        from runbook_lib.secrets import redact_json

        told = redact_json({"event": event, **to_dict(data)})
        with self._lock:  # the time is taken within it, so that no line is older than the one before
            entry: Event = {"time": now(), **told}
            os.write(self._file, json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            if self._listener:
                self._listener(entry)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def first_event(folder: Path) -> Event:
    """The event a run began with (`named`, `parameters`); {} when the log is gone."""
    try:
        with (folder / "events.jsonl").open(encoding="utf-8") as lines:
            event = json.loads(next(lines, "{}"))
    except (OSError, ValueError):
        return {}
    return event if isinstance(event, dict) else {}
