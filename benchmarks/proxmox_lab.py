"""The emulated Proxmox VE under load, beside the package fakepve: same client, same questions, same machine.

The client is a process of its own, over TLS, on connections that stay open, logged in by ticket.
`python -m benchmarks.proxmox_lab` measures ours once and prints it; `… client FOLDER` is the client's process.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from urllib.parse import quote, urlencode

from benchmarks.homes import ROOT, environment
from benchmarks.measure import Broken, Case, Contender, Sample, command, middle
from benchmarks.peers import python_with
from runbook_lib.lab import control
from runbook_lib.lab.proxmox.crowd import DEFAULTS

PEER = "fakepve[crypto]==0.5.0"
NODES, GUESTS, FIRST = 32, 10_000, 10_000
REQUESTS, READS, CLONES, CONNECTIONS = 6_000, 20, 100, 4
INSTANT = 100_000
"""How much faster than life the tasks of a clone go: the server is measured, and not the time a disk would take."""
CROWD = f"""title: many guests
extends: healthy
proxmox:
  crowd: {{nodes: {NODES}, guests: {GUESTS}, first: {FIRST}}}
kubernetes: {{nodes: []}}
"""
COLUMNS = {
    "start": "start s",
    "versions": "/version per s",
    "version_cpu": "CPU µs each",
    "first": "first /cluster/resources ms",
    "resources": "/cluster/resources ms",
    "resources_cpu": "CPU ms each",
    "size": "MB each",
    "clones": "clones per s",
    "megabytes": "MB resident",
}
BETTER = {
    "start": "less", "versions": "more", "version_cpu": "less", "resources": "less", "resources_cpu": "less",
    "clones": "more", "megabytes": "less",
}  # fmt: skip
LIMITS: dict[str, Callable[[float], bool]] = {
    "versions": lambda value: value >= 3_000,
    "resources": lambda value: value <= 60,
    "start": lambda value: value <= 3,
    "megabytes": lambda value: value <= 250,
}


def case() -> Case:
    """The measurement as a case; `completed` puts fakepve beside it where that can be installed."""
    return Case(
        name="proxmox_lab",
        title=f"The emulated Proxmox VE with {GUESTS:,} guests on {NODES} nodes",
        contenders=(Contender("runbook lab", "as it comes, time 60 times faster than life", _ours, True),),
        target="3,000 GET /version a second, /cluster/resources within 60 ms, start within 3 s, 250 MB",
        met=_met,
        columns=COLUMNS,
        better=BETTER,
        notes=(
            f"Both are asked by the same client, logged in by ticket, on {CONNECTIONS} open TLS connections.",
            "CPU is the server's own; wall and CPU s on the left are the client's, which reads and clones beside.",
            "At this pace every list of ours finds new figures of every guest; a figure of theirs never moves.",
            "Both verify parameters; a clone of ours also copies volumes, takes space, and is locked meanwhile.",
        ),
        repeats=3,
        complete=completed,
    )


def completed(mine: Case) -> Case:
    """The case with its peer, or with the word that it could not be installed."""
    python = python_with(PEER)
    if python is None:
        return replace(mine, notes=(*mine.notes, f"{PEER} could not be installed, so nothing stands beside."))
    peer = Contender("fakepve", "the same guests from its file, tasks that end at once", lambda: _theirs(python))
    return replace(mine, contenders=(*mine.contenders, peer))


def _met(samples: Mapping[str, Sequence[Sample]]) -> bool:
    return all(fits(middle(samples["runbook lab"], key)) for key, fits in LIMITS.items())


def _ours() -> Sample:
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as name:
        folder = Path(name)
        healthy = ROOT / "runbook_lib" / "lab" / "scenarios" / "healthy.yaml"
        (folder / "crowd.yaml").write_text(CROWD.replace("healthy", str(healthy)), encoding="utf-8")
        began = time.perf_counter()
        control.up(folder / "lab", scenario=str(folder / "crowd.yaml"), scale=60)
        start = time.perf_counter() - began
        try:
            where = control.connection(folder / "lab").proxmox
            port = int(where.url.rpartition(":")[2])
            pid = int(control.request(folder / "lab", "GET", "/status")["pid"])
            return _asked(folder, start, port=port, ca=where.ca_file, password=where.password, pid=pid, lab=True)
        finally:
            control.down(folder / "lab")


def _theirs(python: Path) -> Sample:
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as name:
        folder = Path(name)
        port = _prepared(folder)
        began = time.perf_counter()
        with _served(python, folder, port) as pid:
            start = time.perf_counter() - began
            return _asked(folder, start, port=port, ca=str(folder / "ca.pem"), password="secret", pid=pid, lab=False)


def _prepared(folder: Path) -> int:
    """A free port; certificate, key and the same guests as ours lie in the folder."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    mine = authority.issue_cert("127.0.0.1", "localhost")
    mine.private_key_pem.write_to_path(str(folder / "key.pem"))
    for number, pem in enumerate(mine.cert_chain_pems):
        pem.write_to_path(str(folder / "cert.pem"), append=number > 0)
    template = {"scsi0": "local-lvm:base-9000-disk-0,size=20G", "memory": 4096, "cores": 2, "boot": "order=scsi0"}
    guests = [{"vmid": 9000, "name": "template", "node": "pve1", "template": True, "config": template}]
    for vmid in range(FIRST, FIRST + GUESTS):
        status = "running" if (vmid - FIRST) * 0.618 % 1.0 < 0.6 else "stopped"
        config = {**DEFAULTS, "scsi0": f"local-lvm:vm-{vmid}-disk-0,size=8G"}
        row = {"vmid": vmid, "name": f"crowd-{vmid}", "node": f"pve{vmid % NODES + 1}", "status": status}
        guests.append({**row, "config": config})
    (folder / "guests.json").write_text(json.dumps({"guests": guests}), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def _served(python: Path, folder: Path, port: int) -> Iterator[int]:
    """The process id of a fakepve that answers by now."""
    words = [str(python), "-m", "fakepve", "guests.json", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--time-scale", "0", "--cert", "cert.pem", "--key", "key.pem"]
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        if b"listening" not in process.stdout.readline():
            raise Broken(f"fakepve does not start: {(folder / 'peer.log').read_text(errors='replace')[-1000:]}")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _asked(folder: Path, start: float, **where: object) -> Sample:
    """What the client's process saw of the server."""
    (folder / "where.json").write_text(json.dumps(where), encoding="utf-8")
    taken = command(
        [sys.executable, "-m", "benchmarks.proxmox_lab", "client", str(folder)], cwd=folder, env=environment(folder)
    )
    seen = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    return Sample(taken.wall, taken.cpu, {"start": start, **seen})


# ---------------------------------------------------------------------------------------------- the client


class Connection:
    """One open connection; as little client as possible, so that the server is what is measured."""

    def __init__(self, port: int, ca: str, head: str = "") -> None:
        plain = socket.create_connection(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname="localhost")
        self._head = f"Host: localhost\r\n{head}"

    def ask(self, method: str, path: str, form: str = "") -> bytes:
        """The body of a good answer."""
        kind = f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n" if form else ""
        self._socket.sendall(f"{method} /api2/json{path} HTTP/1.1\r\n{self._head}{kind}\r\n{form}".encode())
        seen = self._socket.recv(65_536)
        while b"\r\n\r\n" not in seen:
            more = self._socket.recv(65_536)
            if not more:
                raise Broken(f"{method} {path}: the connection ended")
            seen += more
        head, _, body = seen.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise Broken(f"{method} {path}: {(head + body)[:400]!r}")
        left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
        parts = [body]
        while left > 0:
            parts.append(self._socket.recv(min(left, 1 << 20)))
            left -= len(parts[-1])
        return b"".join(parts)


def login(port: int, ca: str, password: str) -> str:
    """The header lines of root's session."""
    form = urlencode({"username": "root@pam", "password": password})
    told = json.loads(Connection(port, ca).ask("POST", "/access/ticket", form))["data"]
    return f"Cookie: PVEAuthCookie={told['ticket']}\r\nCSRFPreventionToken: {told['CSRFPreventionToken']}\r\n"


def client(folder: Path) -> dict[str, float]:
    """What one client saw: requests and clones a second, milliseconds for the long list, the server's memory."""
    where = json.loads((folder / "where.json").read_text(encoding="utf-8"))
    port, ca, pid = where["port"], where["ca"], where["pid"]
    head = login(port, ca, where["password"])
    open_ones = [Connection(port, ca, head) for _ in range(CONNECTIONS)]
    first = _timed(lambda: open_ones[0].ask("GET", "/cluster/resources"))
    share = REQUESTS // CONNECTIONS

    def hammer(connection: Connection) -> None:
        for _ in range(share):
            connection.ask("GET", "/version")

    threads = [threading.Thread(target=hammer, args=(connection,)) for connection in open_ones]
    spent, began = _processor(pid), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = REQUESTS / (time.perf_counter() - began)
    version_cpu, spent = _processor(pid) - spent, _processor(pid)
    sizes: list[int] = []
    reads = [_timed(lambda: sizes.append(len(open_ones[0].ask("GET", "/cluster/resources")))) for _ in range(READS)]
    resources_cpu = _processor(pid) - spent
    if where["lab"]:
        control.request(folder / "lab", "POST", "/clock/scale", {"scale": INSTANT})
    clones = CLONES / _timed(lambda: _clone(open_ones[0]))
    return {
        "versions": versions,
        "version_cpu": version_cpu / REQUESTS * 1e6,
        "first": first * 1000,
        "resources": median(reads) * 1000,
        "resources_cpu": resources_cpu / READS * 1000,
        "size": median(sizes) / 1e6,
        "clones": clones,
        "megabytes": _resident(pid),
    }


def _clone(connection: Connection) -> None:
    for number in range(CLONES):
        upid = json.loads(connection.ask("POST", "/nodes/pve1/qemu/9000/clone", f"newid={50_000 + number}&full=0"))
        path = f"/nodes/pve1/tasks/{quote(upid['data'])}/status"
        while (told := json.loads(connection.ask("GET", path))["data"])["status"] == "running":
            time.sleep(0.001)
        if told["exitstatus"] != "OK":
            raise Broken(f"clone {number}: {told['exitstatus']}")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _processor(pid: int) -> float:
    """Seconds of processor time the process has used."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> int:
    """0."""
    if sys.argv[1:2] == ["client"]:
        folder = Path(sys.argv[2])
        (folder / "seen.json").write_text(json.dumps(client(folder)), encoding="utf-8")
        return 0
    sys.stdout.write("  ".join(f"{COLUMNS[key]} {value:,.1f}" for key, value in _ours().seen.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
