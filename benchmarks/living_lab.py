"""The lab's living cluster: how soon it is settled, how fast its controllers work, what it costs when nothing happens.

`python -m benchmarks.living_lab` measures once and prints it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from benchmarks.homes import ROOT
from benchmarks.machines import Site
from benchmarks.measure import Broken, Case, Contender, Sample, middle
from runbook_lib.lab import control

NODES, PODS, REPLICAS, MACHINES = 10, 300, 200, 50
IDLE_SECONDS = 10.0
PATIENCE = 60.0
COLUMNS = {
    "settled": f"{NODES} nodes and {PODS} pods settled s",
    "megabytes": "MB settled",
    "idle": "idle, % of a core",
    "deployment": f"{REPLICAS} replicas ready s",
    "machines": f"{MACHINES} Machines Ready s",
}
LIMITS: dict[str, Callable[[float], bool]] = {
    "settled": lambda value: value <= 4,
    "megabytes": lambda value: value <= 300,
    "idle": lambda value: value <= 3,
    "deployment": lambda value: value <= 5,
    "machines": lambda value: value <= 10,
}


def case() -> Case:
    """The measurement as a case; each turn is a lab of its own."""
    return Case(
        name="living_lab",
        title=f"The lab's CozyStack of {NODES} nodes and {PODS} pods, alive",
        contenders=(Contender("runbook lab", "controllers over TLS against the lab's own API server", _once, True),),
        target=f"settled within 4 s and 300 MB, idle at 3 % of a core, {REPLICAS} replicas ready within 5 s, "
        f"{MACHINES} Machines within 10 s",
        met=lambda samples: all(fits(middle(samples["runbook lab"], key)) for key, fits in LIMITS.items()),
        columns=COLUMNS,
        notes=(
            "There is no peer to measure: nothing else emulates such a cluster.",
            "Settled counts from the start of the lab until every pod runs; those beyond the stock ones come from a "
            "Deployment made at once.",
            f"Idle is the processor time of the lab's process over {IDLE_SECONDS:g} seconds, after it was settled.",
            "The replicas and the Machines are timed with the lab's clock not waiting at all.",
            "The Machines are VMs that CAPMOX makes in the lab's Proxmox VE and that join a tenant's control plane; a "
            "DaemonSet of Cilium's agent makes their nodes Ready.",
        ),
        repeats=3,
    )


class Client:
    """A plain reader and writer of one API server."""

    def __init__(self, folder: Path) -> None:
        where = control.connection(folder).kubernetes
        self.url = where.url
        self.session = requests.Session()
        self.session.trust_env = False  # a bundle named there would win over the lab's authority
        self.session.verify = where.ca_file
        self.session.headers["Authorization"] = f"Bearer {where.token}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer; raises Broken for a refusal."""
        answer = self.session.request(method, self.url + path, json=body, timeout=30)
        if answer.status_code >= 400:
            raise Broken(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def unready(self) -> list[str]:
        """The pods that neither run with all their containers ready nor have succeeded."""
        return [
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            for pod in self.ask("GET", "/api/v1/pods")["items"]
            if pod["status"].get("phase") != "Succeeded"
            and not all(entry["ready"] for entry in pod["status"].get("containerStatuses") or [{"ready": False}])
        ]

    def deploy(self, name: str, replicas: int) -> None:
        """Makes a Deployment of pods that do nothing."""
        labels = {"app": name}
        container = {"name": "pause", "image": "registry.k8s.io/pause:3.10"}
        self.ask("POST", "/apis/apps/v1/namespaces/default/deployments", {
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        })  # fmt: skip

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Returns once `done`; raises Broken when it never comes."""
        end = time.perf_counter() + PATIENCE
        while not done():
            if time.perf_counter() > end:
                raise Broken(f"{what}: not within {PATIENCE:g} s; not ready: {self.unready()[:5]}")
            time.sleep(0.05)


def scenario(folder: Path) -> Path:
    """A scenario file: the healthy site with ten Kubernetes nodes."""
    healthy = ROOT / "runbook_lib" / "lab" / "scenarios" / "healthy.yaml"
    rows = [
        f"    - {{name: node-{number}, role: {'control-plane' if number < 3 else 'worker'},"
        f" address: 10.0.0.{60 + number}, cpus: 16, memory_gib: 64, uuid: 6f1d2a10-0c5e-4c52-9a3e-0000000d{number:04}}}"
        for number in range(NODES)
    ]
    path = folder / "ten.yaml"
    lines = ["title: ten nodes", f"extends: {healthy}", "kubernetes:", "  nodes:", *rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident(pid: int) -> float:
    """Megabytes of a process that are in memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def _once() -> Sample:
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as name:
        folder = Path(name)
        lab = folder / "lab"
        began = time.perf_counter()
        control.up(lab, scenario=str(scenario(folder)), scale=60)
        try:
            client = Client(lab)
            stock = len(client.ask("GET", "/api/v1/pods")["items"])
            client.deploy("filler", max(PODS - stock, 0))
            client.until("the first pods", lambda: len(client.ask("GET", "/api/v1/pods")["items"]) >= PODS)
            client.until("every pod", lambda: not client.unready())
            settled = time.perf_counter() - began
            pid = int(control.request(lab, "GET", "/status")["pid"])
            megabytes = resident(pid)
            used = processor(pid)
            time.sleep(IDLE_SECONDS)
            idle = (processor(pid) - used) / IDLE_SECONDS * 100
            control.request(lab, "POST", "/clock/scale", {"scale": "inf"})
            begun = time.perf_counter()
            client.deploy("many", REPLICAS)
            path = "/apis/apps/v1/namespaces/default/deployments/many"
            client.until("the replicas", lambda: client.ask("GET", path)["status"].get("readyReplicas") == REPLICAS)
            deployment = time.perf_counter() - begun
            client.ask("DELETE", path)
            machines = _machines(lab)
            seen = {"settled": settled, "megabytes": megabytes, "idle": idle, "deployment": deployment}
            seen["machines"] = machines
            return Sample(time.perf_counter() - began, processor(pid), seen)
        finally:
            control.down(lab)


def _machines(lab: Path) -> float:
    """Seconds from asking for the machines until all run as Ready nodes; the providers are there by then."""
    site = Site(lab, patience=120)
    site.install()
    begun = time.perf_counter()
    # small ones: all are cloned on one Proxmox node, whose memory has to hold them however long this takes
    site.cluster(MACHINES, addresses="10.0.4.1-10.0.4.200", by_hand=True, memoryMiB=2048)
    site.running(MACHINES)
    return time.perf_counter() - begun


def main() -> int:
    """0; the figures of one turn are printed."""
    for key, value in _once().seen.items():
        sys.stdout.write(f"{COLUMNS[key]:40} {value:10.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
