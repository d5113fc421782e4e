"""A run of step 42 that dies in its drills: `runbook sweep` leaves no VM, alert, pod or namespace on either side."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
from test_kill import Point, await_until, end, journal, processes, run_until

from runbook_lib.lab import control

pytestmark = pytest.mark.xdist_group("kill-monitoring")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
SPACE = "v1/Namespace/runbook-monitoring-"
POINTS = (
    Point("namespace", "42", "kubernetes", "PATCH", r"/namespaces/runbook-monitoring-[^/?]+(\?|$)", SPACE),
    Point("log-probe", "42", "kubernetes", "PATCH", r"/pods/log-probe", "v1/Pod/runbook-monitoring-"),
    Point("empty-vm", "42", "proxmox", "POST", r"/nodes/pve1/qemu(\?|$)", "/nodes/pve1/qemu/"),
    Point("alert", "42", "kubernetes", "PATCH", r"/vmrules/drill", "operator.victoriametrics.com/v1beta1/VMRule/"),
    Point("vm-that-goes", "42", "proxmox", "DELETE", r"/qemu/\d+", "/nodes/pve1/qemu/"),
)
SAMPLE = {"alert"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose Proxmox VE is watched already, by a run that was not killed."""
    settings = {"wait_seconds": 15, "interval_seconds": 10}
    place = homes.make(tmp_path_factory.mktemp("kill-monitoring"), monitoring=settings)
    place.up()
    told = place.runbook("run", "--step", "42")
    assert told.returncode == 0, told.stderr[-3000:]
    yield place
    place.down()


@pytest.fixture(scope="module")
def installed(home: homes.Home) -> set[str]:
    """What is there while nothing is tried."""
    return everything(home)


def everything(home: homes.Home) -> set[str]:
    """Both sides, alerts too, by clients that are not ours."""
    from kubernetes import client

    core = homes.kubernetes(home)
    rules = client.CustomObjectsApi(core.api_client).list_cluster_custom_object(
        "operator.victoriametrics.com", "v1beta1", "vmrules"
    )
    return homes.inventory(home) | {
        f"rule {row['metadata']['namespace']}/{row['metadata']['name']}" for row in rules["items"]
    }


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
def test_a_killed_drill_leaves_nothing(home: homes.Home, installed: set[str], point: Point):
    """Whatever was under way, a sweep proves both sides clean, and the exporter still runs."""
    try:
        running = run_until(home, point)
    finally:
        control.fault(None, home.lab)
    assert any(row["change"]["target"].startswith(point.target) for row in journal(home) if row["event"] == "intent")
    end(running, home, kernels=len(point.name) % 2 == 0)
    swept = home.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "clean: nothing borrowed remains" in swept.stdout
    await_until(lambda: not processes(home))
    assert everything(home) == installed
