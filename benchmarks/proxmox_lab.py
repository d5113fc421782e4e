"""The emulated Proxmox VE under load: a client in a process of its own, over TLS, on connections that stay open.

`python -m benchmarks.proxmox_lab` measures once and prints it; `… client FOLDER` is the client's process.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmarks.homes import ROOT, environment
from benchmarks.measure import Broken, Case, Contender, Sample, command, middle
from runbook_lib.lab import control

NODES, GUESTS = 32, 10_000
REQUESTS, READS, CLONES, CONNECTIONS = 6_000, 20, 100, 4
CROWD = f"""title: many guests
extends: healthy
proxmox:
  crowd: {{nodes: {NODES}, guests: {GUESTS}, first: 10000}}
kubernetes: {{nodes: []}}
"""
COLUMNS = {
    "start": "start s",
    "versions": "/version per s",
    "resources": "/cluster/resources ms",
    "clones": "clones per s",
    "megabytes": "MB resident",
}


def case() -> Case:
    """The measurement as a case; fakepve stands beside it only where it is installed and can do the work."""
    beside = "fakepve is installed, but holds no such site." if find_spec("fakepve") else "fakepve is not installed."
    return Case(
        name="proxmox_lab",
        title=f"The emulated Proxmox VE with {GUESTS} guests on {NODES} nodes",
        contenders=(Contender("runbook lab", f"TLS, API token, {CONNECTIONS} open connections", _once, True),),
        target="3,000 GET /version a second, /cluster/resources within 60 ms, start within 3 s, 250 MB",
        met=lambda samples: all(_good(samples["runbook lab"], key) for key in LIMITS),
        columns=COLUMNS,
        notes=(beside,),
        repeats=3,
    )


LIMITS: dict[str, Callable[[float], bool]] = {
    "versions": lambda value: value >= 3_000,
    "resources": lambda value: value <= 60,
    "start": lambda value: value <= 3,
    "megabytes": lambda value: value <= 250,
}


def _good(samples: object, key: str) -> bool:
    return LIMITS[key](middle(list(samples), key))  # type: ignore[call-overload]


def measure(repeats: int = 3) -> list[Sample]:
    """As many samples."""
    return [_once() for _ in range(repeats)]


def _once() -> Sample:
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as name:
        folder = Path(name)
        (folder / "crowd.yaml").write_text(CROWD.replace("healthy", str(_healthy())), encoding="utf-8")
        began = time.perf_counter()
        control.up(folder / "lab", scenario=str(folder / "crowd.yaml"), scale=1)
        start = time.perf_counter() - began
        try:
            taken = command(
                [sys.executable, "-m", "benchmarks.proxmox_lab", "client", name], cwd=folder, env=environment(folder)
            )
            seen = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
        finally:
            control.down(folder / "lab")
    return Sample(taken.wall, taken.cpu, {"start": start, **seen})


def _healthy() -> Path:
    return ROOT / "runbook_lib" / "lab" / "scenarios" / "healthy.yaml"


# ---------------------------------------------------------------------------------------------- the client


class Connection:
    """One open connection; as little client as possible, so that the server is what is measured."""

    def __init__(self, folder: Path) -> None:
        where = control.connection(folder).proxmox
        host, _, port = where.url.removeprefix("https://").rpartition(":")
        plain = socket.create_connection((host, int(port)))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = ssl.create_default_context(cafile=where.ca_file).wrap_socket(plain, server_hostname=host)
        self._head = f"Host: {host}\r\nAuthorization: PVEAPIToken={where.token_id}={where.token_secret}\r\n"

    def ask(self, method: str, path: str, form: str = "") -> bytes:
        """The body of a good answer."""
        kind = f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n" if form else ""
        self._socket.sendall(f"{method} /api2/json{path} HTTP/1.1\r\n{self._head}{kind}\r\n{form}".encode())
        seen = self._socket.recv(65_536)
        while b"\r\n\r\n" not in seen:
            seen += self._socket.recv(65_536)
        head, _, body = seen.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise Broken(f"{method} {path}: {head[:200]!r}")
        left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
        parts = [body]
        while left > 0:
            parts.append(self._socket.recv(min(left, 1 << 20)))
            left -= len(parts[-1])
        return b"".join(parts)


def client(folder: Path) -> dict[str, float]:
    """What one client saw: requests and clones a second, milliseconds for the long list, the server's memory."""
    lab = folder / "lab"
    open_ones = [Connection(lab) for _ in range(CONNECTIONS)]
    share = REQUESTS // CONNECTIONS

    def hammer(connection: Connection) -> None:
        for _ in range(share):
            connection.ask("GET", "/version")

    threads = [threading.Thread(target=hammer, args=(connection,)) for connection in open_ones]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = REQUESTS / (time.perf_counter() - began)
    reads = [_timed(lambda: open_ones[0].ask("GET", "/cluster/resources")) for _ in range(READS)]
    control.request(lab, "POST", "/clock/scale", {"scale": 100_000})
    clones = CLONES / _timed(lambda: _clone(open_ones[0]))
    return {
        "versions": versions,
        "resources": median(reads) * 1000,
        "clones": clones,
        "megabytes": _resident(int(control.request(lab, "GET", "/status")["pid"])),
    }


def _clone(connection: Connection) -> None:
    for number in range(CLONES):
        upid = json.loads(connection.ask("POST", "/nodes/pve1/qemu/9000/clone", f"newid={50_000 + number}&full=0"))
        path = f"/nodes/pve1/tasks/{upid['data']}/status"
        while json.loads(connection.ask("GET", path))["data"]["status"] == "running":
            time.sleep(0.001)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> int:
    """0."""
    if sys.argv[1:2] == ["client"]:
        folder = Path(sys.argv[2])
        (folder / "seen.json").write_text(json.dumps(client(folder)), encoding="utf-8")
        return 0
    for sample in measure(1):
        print("  ".join(f"{COLUMNS[key]} {value:,.1f}" for key, value in sample.seen.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
