"""What the runbook does to Proxmox VE. Every function here writes, and passes only inside `wire.permit`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from runbook_lib import errors, secrets
from runbook_lib.facts import Task
from runbook_lib.proxmox_session import Proxmox, quoted

PERCENT = re.compile(r"\((\d+(?:\.\d+)?)%\)|(?:^|\s)(\d+(?:\.\d+)?)%")
POLL_FIRST_SECONDS = 0.05
POLL_LONGEST_SECONDS = 2.0
NODE_PATIENCE_SECONDS = 30.0
UPID = re.compile(r"UPID:(?P<node>[^:]+):[0-9A-F]+:[0-9A-F]+:(?P<start>[0-9A-F]+):(?P<type>[^:]+):(?P<id>[^:]*):")


@dataclass(frozen=True)
class Progress:
    """How far a task is: its last log line, and the fraction it names, where it names one."""

    upid: str
    seconds: float
    line: str
    fraction: float | None


def wait_task(
    pve: Any,
    upid: str,
    *,
    timeout_seconds: float = 600,
    on_progress: Callable[[Progress], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Task:
    """The task once it has stopped with OK or with warnings.

    A node that does not answer for a while (it may be the one that reboots) is waited for. Raises TaskFailed with
    the last lines of the log, WaitTimeout with the last line.
    """
    named = UPID.match(upid)
    if not named:
        raise errors.BadAnswer("Proxmox VE promised a task and gave something else", repr(upid)[:200])
    path = f"/nodes/{named['node']}/tasks/{quoted(upid)}"
    started, pause, seen, line, silent_since = clock(), POLL_FIRST_SECONDS, 0, "", None
    while True:
        try:
            state = pve.get(f"{path}/status")
            silent_since = None
        except (errors.NodeUnreachable, errors.Unavailable):
            silent_since = clock() if silent_since is None else silent_since
            if clock() - silent_since > NODE_PATIENCE_SECONDS:
                raise
            state = {"status": "running"}
        if on_progress and silent_since is None:
            rows = pve.get(f"{path}/log", start=seen, limit=500) or []
            for row in rows:
                if row["n"] > seen and row["t"] != "no content":
                    seen, line = row["n"], row["t"]
                    on_progress(Progress(upid, clock() - started, line, _fraction(line)))
        if state["status"] == "stopped":
            break
        if clock() - started >= timeout_seconds:
            raise errors.WaitTimeout(
                f"task {named['type']} {named['id']} on {named['node']} still runs after {timeout_seconds:g} s",
                line or upid,
                "look at the task's log in Proxmox VE",
            )
        sleep(pause)
        pause = min(pause * 1.5, POLL_LONGEST_SECONDS)
    exit_status = state.get("exitstatus") or "unknown"
    if exit_status != "OK" and not exit_status.startswith("WARNINGS"):
        raise errors.TaskFailed(
            f"task {named['type']} {named['id']} on {named['node']} failed".replace("  ", " "),
            exit_status,
            _last_lines(pve, path),
            upid=upid,
            exit_status=exit_status,
        )
    return Task(
        node=named["node"],
        upid=upid,
        type=state.get("type", named["type"]),
        id=str(state.get("id") or named["id"]),
        user=state.get("user", ""),
        started=int(state.get("starttime") or int(named["start"], 16)),
        finished=None,
        status=exit_status,
    )


def _fraction(line: str) -> float | None:
    found = PERCENT.search(line)
    return min(float(found[1] or found[2]) / 100, 1.0) if found else None


def _last_lines(pve: Any, path: str, count: int = 5) -> str:
    try:
        rows = pve.get(f"{path}/log", start=0, limit=5000) or []
    except errors.ApiError:
        return "its log could not be read"
    lines = [row["t"] for row in rows][-count:]
    return "its log ended: " + " / ".join(lines) if lines else "its log is empty"


class _Multipart:
    """An upload's body, read from the file while it is sent, with its length known: PVE takes no chunks."""

    def __init__(self, fields: Mapping[str, str], filename: str, stream: IO[bytes], size: int) -> None:
        boundary = uuid4().hex
        self.content_type = f"multipart/form-data; boundary={boundary}"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="filename"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        self._head, self._stream, self._tail = "".join(parts).encode(), stream, f"\r\n--{boundary}--\r\n".encode()
        self._length = len(self._head) + size + len(self._tail)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")

    def read(self, size: int = -1) -> bytes:
        want = size if size and size > 0 else 1 << 16
        if self._head:
            found, self._head = self._head[:want], self._head[want:]
        else:
            found = self._stream.read(want)
            if not found:
                found, self._tail = self._tail[:want], self._tail[want:]
        return found


def upload(pve: Proxmox, node: str, storage: str, path: Path | str, content: str = "iso", *, sha256: str = "") -> str:
    """The UPID of the task that puts an uploaded file (`iso`, `vztmpl` or `import`) in place. The file is streamed."""
    path = Path(path)
    if not re.fullmatch(r"[\w.+-]+", path.name):
        raise errors.UsageError(f"{path.name!r} cannot be uploaded", "only letters, digits, and . _ + - are safe names")
    fields = {"content": content}
    if sha256:
        fields |= {"checksum": sha256, "checksum-algorithm": "sha256"}
    with path.open("rb") as stream:
        body = _Multipart(fields, path.name, stream, path.stat().st_size)
        return pve.send_file(f"/nodes/{node}/storage/{storage}/upload", body, body.content_type)


def allocate_volume(
    pve: Proxmox, node: str, storage: str, *, vmid: int, filename: str, size: str, format: str | None = None
) -> str:
    """The volid of a new, empty disk. `filename` must be of the form vm-<vmid>-…; `size` like "1G" or KiB."""
    path = f"/nodes/{node}/storage/{storage}/content"
    return pve.request("POST", path, vmid=vmid, filename=filename, size=size, format=format)


def free_volume(pve: Proxmox, node: str, volid: str, *, timeout_seconds: float = 120) -> None:
    """Nothing, once the volume is gone; also when it was gone before."""
    storage = volid.partition(":")[0]
    try:
        upid = pve.request("DELETE", f"/nodes/{node}/storage/{storage}/content/{quoted(volid)}", delay=5)
    except errors.NotFound:
        return
    if upid:
        wait_task(pve, upid, timeout_seconds=timeout_seconds)


def create_pool(pve: Proxmox, name: str, *, comment: str = "") -> None:
    """Nothing; the pool is there."""
    pve.request("POST", "/pools", poolid=name, comment=comment or None)


def delete_pool(pve: Proxmox, name: str) -> None:
    """Nothing; the pool is gone. PVE refuses while it has members."""
    _delete(pve, f"/pools/{quoted(name)}")


def create_role(pve: Proxmox, name: str, privileges: Iterable[str]) -> None:
    """Nothing; the role is there. A privilege this release does not know is refused (Refused, 400)."""
    pve.request("POST", "/access/roles", roleid=name, privs=",".join(sorted(privileges)))


def delete_role(pve: Proxmox, name: str) -> None:
    """Nothing; the role is gone."""
    _delete(pve, f"/access/roles/{quoted(name)}")


def create_user(pve: Proxmox, userid: str, *, comment: str = "", expire: int | None = None) -> None:
    """Nothing; `user@realm` is there, without a password."""
    pve.request("POST", "/access/users", userid=userid, comment=comment or None, expire=expire)


def delete_user(pve: Proxmox, userid: str) -> None:
    """Nothing; the user, its tokens and its permissions are gone."""
    _delete(pve, f"/access/users/{quoted(userid)}")


def create_token(
    pve: Proxmox, userid: str, name: str, *, privsep: bool = True, expire: int | None = None, comment: str = ""
) -> tuple[str, str]:
    """Token id and secret. PVE shows the secret this once; the redactor knows it before anyone sees it."""
    found = pve.request(
        "POST",
        f"/access/users/{quoted(userid)}/token/{quoted(name)}",
        privsep=privsep,
        expire=expire,
        comment=comment or None,
    )
    secrets.register(found["value"])
    return found["full-tokenid"], found["value"]


def delete_token(pve: Proxmox, userid: str, name: str) -> None:
    """Nothing; the token is gone."""
    _delete(pve, f"/access/users/{quoted(userid)}/token/{quoted(name)}")


def set_acl(
    pve: Proxmox,
    path: str,
    roles: Iterable[str],
    *,
    users: Iterable[str] = (),
    tokens: Iterable[str] = (),
    propagate: bool = True,
    delete: bool = False,
) -> None:
    """Nothing; the roles are granted (or taken away) on the path."""
    pve.request(
        "PUT",
        "/access/acl",
        path=path,
        roles=",".join(roles),
        users=",".join(users) or None,
        tokens=",".join(tokens) or None,
        propagate=propagate,
        delete=True if delete else None,
    )


def _delete(pve: Proxmox, path: str) -> None:
    try:
        pve.request("DELETE", path)
    except errors.NotFound:
        return
