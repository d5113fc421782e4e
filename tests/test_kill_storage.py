"""A run of step 32 that dies with volumes attached: `runbook sweep` leaves no object, disk or drive on either side."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
from test_kill import Point, await_until, end, journal, processes, run_until

from runbook_lib.lab import control

pytestmark = pytest.mark.xdist_group("kill-storage")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
SPACE = "v1/Namespace/runbook-csi-"
CLAIM, POD = "v1/PersistentVolumeClaim/runbook-csi-", "v1/Pod/runbook-csi-"
POINTS = (
    Point("namespace", "32", "kubernetes", "PATCH", r"/namespaces/runbook-csi-[^/?]+(\?|$)", SPACE),
    Point("claim-asked-for", "32", "kubernetes", "PATCH", r"/persistentvolumeclaims/follow-[^?]*\?", CLAIM),
    Point("disk-being-made", "32", "proxmox", "POST", r"/storage/[\w-]+/content", POD),
    Point("drive-being-plugged", "32", "proxmox", "POST", r"/qemu/\d+/config", POD),
    Point("pod-asked-for", "32", "kubernetes", "PATCH", r"/pods/block-", POD),
    Point("volume-written", "32", "kubernetes", "GET", r"/pods/follow-[^/]+/exec", POD),
    Point("drive-coming-out", "32", "proxmox", "PUT", r"/qemu/\d+/unlink", POD),
    Point("disk-growing", "32", "proxmox", "PUT", r"/qemu/\d+/resize", CLAIM),
    Point("disk-being-freed", "32", "proxmox", "DELETE", r"/content/vm-9999", CLAIM),
    Point("disk-that-is-kept", "32", "kubernetes", "DELETE", r"/persistentvolumeclaims/retain-", CLAIM),
    Point("statefulset", "32", "kubernetes", "PATCH", r"/statefulsets/set-", "apps/v1/StatefulSet/runbook-csi-"),
)
SAMPLE = {"drive-being-plugged", "disk-that-is-kept"}


OTHERS = [
    pytest.param(
        name,
        marks=(
            pytest.mark.slow,
            pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
        ),
    )
    for name in ("cozystack-v0", "capi-v1beta2")
]


@pytest.fixture(scope="module", params=["healthy", *OTHERS])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project on each generation, whose driver is installed already, by a run that was not killed."""
    csi = {"parallel": 1, "wait_seconds": 20}
    folder = tmp_path_factory.mktemp("kill-storage")
    place = homes.make(folder, scenario=request.param, scale=60, images={}, csi=csi)
    place.up()
    told = place.runbook("run", "--step", "32")
    assert told.returncode == 0, told.stderr[-3000:]
    yield place
    place.down()


@pytest.fixture(scope="module")
def installed(home: homes.Home) -> set[str]:
    """What is there while the driver runs and nobody uses it."""
    return everything(home)


def everything(home: homes.Home) -> set[str]:
    """Both sides, drives of VMs and cluster-wide storage objects too, by clients that are not ours."""
    from kubernetes import client

    pve, core = homes.proxmox(home), homes.kubernetes(home)
    found = homes.inventory(home)
    found |= {f"pv {row.metadata.name}" for row in core.list_persistent_volume().items}
    storage = client.StorageV1Api(core.api_client)
    found |= {f"attachment {row.metadata.name}" for row in storage.list_volume_attachment().items}
    found |= {f"class {row.metadata.name}" for row in storage.list_storage_class().items}
    for row in pve.cluster.resources.get(type="vm"):
        if row["type"] == "qemu":
            config = pve.nodes(row["node"]).qemu(row["vmid"]).config.get()
            found |= {f"drive {row['vmid']} {key}" for key, value in config.items() if "vm-9999-" in str(value)}
    return found


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
def test_a_killed_trial_leaves_no_volume_disk_or_drive(home: homes.Home, installed: set[str], point: Point):
    """Whatever was under way, a sweep proves both sides clean, and what was installed still runs."""
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


def test_a_lost_journal_is_made_up_for_by_marks(home: homes.Home, installed: set[str]):
    """Labels, and the namespace that volumes were claimed from, are enough to find everything."""
    try:
        running = run_until(home, POINTS[9])
    finally:
        control.fault(None, home.lab)
    end(running, home, kernels=True)
    for path in home.root.glob("outputs/lab/*/changes.jsonl"):
        path.unlink()
    swept = home.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert everything(home) == installed
