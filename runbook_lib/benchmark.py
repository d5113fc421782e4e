"""Repeated timed reads of an API, as Measurements. Reads only; a failed request is counted, not hidden."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from runbook_lib.errors import RunbookError
from runbook_lib.model import Measurement, Run

WARM_UP = 3


class Client(Protocol):
    """What is timed: `proxmox.Proxmox` and `kubernetes.Kubernetes` both are one."""

    def get(self, path: str) -> Any: ...

    def clone_for_thread(self) -> Any: ...


def latency(
    client: Client,
    endpoints: Mapping[str, str] | Iterable[str],
    *,
    requests: int = 100,
    concurrency: int = 1,
    emulated: bool = False,
    threshold: float | None = None,
    label: str = "",
) -> list[Measurement]:
    """One Measurement in milliseconds per endpoint class: `requests` timed GETs after a short warm-up.

    `endpoints` maps a class's name to its path, or is the paths alone. With `concurrency` above 1 the requests are
    shared by that many threads, each with a session of its own; a reading is still one request from call to answer.
    `label` is put before the name, to tell two systems apart.
    """
    named = endpoints if isinstance(endpoints, Mapping) else {path: path for path in endpoints}
    return [
        _measure(client, f"{label} {name}".strip(), path, requests, concurrency, emulated, threshold)
        for name, path in named.items()
    ]


def proxmox_endpoints(node: str) -> dict[str, str]:
    """The classes of requests that the components make again and again, with a path of each."""
    return {
        "version": "/version",
        "cluster status": "/cluster/status",
        "cluster resources": "/cluster/resources",
        "node status": f"/nodes/{node}/status",
        "VM list": f"/nodes/{node}/qemu",
        "storage list": f"/nodes/{node}/storage",
    }


def under_load(
    client: Client, path: str, concurrency: Iterable[int], *, requests: int = 100, emulated: bool = False
) -> list[Measurement]:
    """One Measurement per number of simultaneous requests of one path; a reading is still one request."""
    return [
        measured
        for count in concurrency
        for measured in latency(
            client, {f"{path}, {count} at a time": path}, requests=requests, concurrency=count, emulated=emulated
        )
    ]


def against_last(measurements: Iterable[Measurement], runs: Iterable[Run], *, this: str = "") -> list[dict[str, Any]]:
    """Each measurement beside what the newest earlier run has of it: both medians, their ratio, both spreads."""
    earlier: dict[tuple[str, str], tuple[str, Measurement]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        if run.id == this:
            continue
        for record in run.steps:
            for entry in record.result.measurements if record.result else ():
                if entry.values:
                    earlier[entry.name, entry.subject] = (run.id, entry)
    rows = []
    for entry in measurements:
        when, before = earlier.get((entry.name, entry.subject), ("", None))
        now, then = entry.percentile(50), before.percentile(50) if before else None
        rows.append(
            {
                "measurement": entry.name,
                "n": len(entry.values),
                "median": now and round(now, 3),
                "spread": _spread(entry),
                "unit": entry.unit,
                "last median": then and round(then, 3),
                "last spread": _spread(before) if before else "",
                "ratio": round(now / then, 2) if now and then else None,
                "last run": when,
            }
        )
    return rows


def _spread(entry: Measurement) -> str:
    return f"{min(entry.values):.3g}–{max(entry.values):.3g}" if entry.values else ""


def _measure(
    client: Client,
    name: str,
    path: str,
    requests: int,
    concurrency: int,
    emulated: bool,
    threshold: float | None,
) -> Measurement:
    clients = [client] + [client.clone_for_thread() for _ in range(concurrency - 1)]
    for each in clients:
        for _ in range(WARM_UP):
            _timed(each, path)
    local = threading.local()
    spare = list(clients)
    lock = threading.Lock()

    def one(_: int) -> float | None:
        if not hasattr(local, "client"):
            with lock:
                local.client = spare.pop()
        return _timed(local.client, path)

    if concurrency == 1:
        readings = [_timed(client, path) for _ in range(requests)]
    else:
        with ThreadPoolExecutor(concurrency) as pool:
            readings = list(pool.map(one, range(requests)))
    good = tuple(reading for reading in readings if reading is not None)
    return Measurement(
        name,
        "ms",
        good,
        emulated=emulated,
        subject=path,
        threshold=threshold,
        errors=len(readings) - len(good),
    )


def _timed(client: Client, path: str) -> float | None:
    started = time.perf_counter()
    try:
        client.get(path)
    except RunbookError:
        return None
    return (time.perf_counter() - started) * 1000
