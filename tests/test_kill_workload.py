"""A run of step 43 that dies in the middle of an experiment: `runbook sweep` brings back what was broken."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
from test_kill import Point, await_until, end, journal, processes, run_until
from test_kill_storage import everything

from runbook_lib.lab import control

pytestmark = pytest.mark.xdist_group("kill-workload")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
POINTS = (
    Point("worker-switched-off", "43", "proxmox", "POST", r"/qemu/112/status/stop", "/nodes/"),
    Point("node-cordoned", "43", "kubernetes", "PATCH", r"/api/v1/nodes/worker-", "v1/Node/"),
    Point("token-expired", "43", "proxmox", "PUT", r"/access/users/[^/]+/token/csi", "/access/users/"),
    Point("api-cut-off", "43", "kubernetes", "PATCH", r"/ciliumnetworkpolicies/", "cilium.io/v2/CiliumNetworkPolicy/"),
    Point("workload-made", "43", "kubernetes", "PATCH", r"/statefulsets/data", "apps/v1/StatefulSet/"),
)
SAMPLE = {"worker-switched-off"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose driver is installed, and whose site consents to experiments."""
    given = {"allow": ["token-expired", "api-unreachable", "node-drained", "worker-killed"], "outage_seconds": 1}
    quick = {"requests": 5, "pods": 1, "vm_starts": 0}
    csi = {"parallel": 1, "wait_seconds": 20}
    folder = tmp_path_factory.mktemp("kill-workload")
    place = homes.make(folder, scale=600, images={}, csi=csi, benchmarks=quick, experiments=given)
    place.up()
    told = place.runbook("run", "--step", "32")
    assert told.returncode == 0, told.stderr[-3000:]
    yield place
    place.down()


def state(home: homes.Home) -> set[str]:
    """Everything on both sides, and what experiments change: guests, tokens, nodes."""
    pve, core = homes.proxmox(home), homes.kubernetes(home)
    found = everything(home)
    found |= {f"guest {row['vmid']} {row['status']}" for row in pve.cluster.resources.get(type="vm")}
    for user in pve.access.users.get():
        tokens = pve.access.users(user["userid"]).token.get()
        found |= {f"token {user['userid']}!{row['tokenid']} until {row.get('expire', 0)}" for row in tokens}
    found |= {f"node {row.metadata.name} {bool(row.spec.unschedulable)}" for row in core.list_node().items}
    return {entry for entry in found if not entry.startswith("pod ")}  # evicted and restarted ones have other names


@pytest.fixture(scope="module")
def installed(home: homes.Home) -> set[str]:
    """What is there while nobody does anything."""
    return state(home)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point,
            marks=()
            if point.name in SAMPLE
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for point in POINTS
    ],
    ids=str,
)
def test_a_killed_experiment_is_ended_by_a_sweep(home: homes.Home, installed: set[str], point: Point):
    """The machine runs, the node takes pods, the token is valid, the policy is gone, and so is the workload."""
    try:
        running = run_until(home, point)
    finally:
        control.fault(None, home.lab)
    assert any(row["change"]["target"].startswith(point.target) for row in journal(home) if row["event"] == "intent")
    end(running, home, kernels=len(point.name) % 2 == 0)
    swept = home.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    await_until(lambda: not processes(home))
    assert state(home) == installed
