"""Step 43 on the lab: what is broken comes back, and what does not come back in time, or cannot be read, is found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import homes
import pytest
import yaml

from runbook_lib.lab import control
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-43")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
slow = pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
TRIED = ["controller-restarted", "token-expired", "api-unreachable", "node-drained", "worker-killed"]
QUICK: dict[str, Any] = {
    "images": {},
    "csi": {"wait_seconds": 20, "parallel": 1},
    "benchmarks": {"requests": 5, "pods": 1, "vm_starts": 1},
    "experiments": {"allow": TRIED, "outage_seconds": 1},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose driver is installed."""
    place = homes.make(tmp_path_factory.mktemp("step43"), scale=600, **QUICK)
    place.up()
    told = place.runbook("run", "--step", "32")
    assert told.returncode == 0, told.stderr[-2000:]
    yield place
    control.down(place.lab)


def play(home: homes.Home, **parameters: Any) -> StepResult:
    """The result of the step with these parameters."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8")) | QUICK | parameters
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    told = home.runbook("run", "--step", "43")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    return result


def found(result: StepResult, *statuses: Status) -> dict[str, str]:
    """Check → messages of the findings with one of the statuses."""
    told: dict[str, str] = {}
    for entry in result.findings:
        if entry.status in statuses:
            told[entry.check] = f"{told.get(entry.check, '')}{entry.message}\n"
    return told


def test_what_is_broken_on_purpose_comes_back(home: homes.Home):
    """Each experiment is made: nobody is turned away, no data are lost, and all is as before."""
    result = play(home)
    assert found(result, Status.FAIL, Status.ERROR) == {}
    recovered = found(result, Status.PASS)["end_to_end.it_recovers"]
    assert [name for name in TRIED if name not in recovered] == []


@slow
def test_without_consent_nothing_is_broken(home: homes.Home):
    """The workload lives, the experiments are skipped with what they would take."""
    result = play(home, experiments={"allow": []})
    assert found(result, Status.FAIL, Status.ERROR) == {}
    assert "does not consent" in found(result, Status.SKIP)["end_to_end.workload_can_be_tried"]


@slow
def test_a_recovery_that_takes_too_long_fails(home: homes.Home):
    """The window is the site's."""
    allowed = {"allow": ["controller-restarted"], "window_seconds": 0.001}
    result = play(home, experiments=allowed)
    assert "controller-restarted" in found(result, Status.FAIL)["end_to_end.it_recovers"]


@slow
def test_data_that_cannot_be_read_back_are_lost(home: homes.Home):
    """A pod that does not answer after the experiment is no proof that its data are there."""
    rule = {"system": "kubernetes", "method": "GET", "path": r"/pods/data-1/exec.*sha256sum.*-c", "status": 500}
    control.fault(rule, home.lab)
    try:
        result = play(home, experiments={"allow": ["controller-restarted"]})
    finally:
        control.fault(None, home.lab)
    failed = found(result, Status.FAIL)
    assert "end_to_end.no_data_is_lost" in failed or "end_to_end.workload_did_as_wanted" in failed


@pytest.fixture
def thick(tmp_path: Any) -> Iterator[homes.Home]:
    """A project whose volumes take their room when they are made, and whose driver may copy them."""
    case = tmp_path / "thick.yaml"
    storage = {"type": "lvm", "content": ["images", "rootdir"], "options": {"vgname": "thick"}, "total": "40G",
               "used": "1G"}  # fmt: skip
    case.write_text(
        yaml.safe_dump({"title": "A", "extends": "healthy", "proxmox": {"storages": {"thick": storage}}}), "utf-8"
    )
    (tmp_path / "home").mkdir()
    csi = {"wait_seconds": 60, "parallel": 1, "classes": [{"storage": "thick"}]}
    place = homes.make(tmp_path / "home", scenario=str(case), scale=600, **(QUICK | {"csi": csi}))
    place.up()
    yield place
    control.down(place.lab)


@slow
def test_a_full_storage_refuses_and_then_gives_again(thick: homes.Home):
    """The volume that is asked for is refused in the storage's words, and made once there is room."""
    assert thick.runbook("run", "--step", "32").returncode == 0
    csi = {"wait_seconds": 60, "parallel": 1, "classes": [{"storage": "thick"}]}
    result = play(thick, csi=csi, experiments={"allow": ["storage-full"]})
    assert found(result, Status.FAIL, Status.ERROR) == {}
    told = found(result, Status.PASS)
    assert "insufficient free space" in told["end_to_end.workload_did_as_wanted"]
    assert "storage-full" in told["end_to_end.it_recovers"]


@slow
def test_a_backup_is_restored_where_the_driver_may_copy(thick: homes.Home):
    """The restored volume holds what the backup had."""
    password = "file:.lab/secrets.json#proxmox_password"
    csi = {"wait_seconds": 60, "parallel": 1, "classes": [{"storage": "local-lvm"}], "root_password": password}
    path = thick.root / "parameters" / "lab.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text("utf-8")) | {"csi": csi}), "utf-8")
    assert thick.runbook("run", "--step", "32").returncode == 0
    result = play(thick, csi=csi, experiments={"allow": []})
    assert found(result, Status.FAIL, Status.ERROR) == {}
    assert "what the backup had" in found(result, Status.PASS)["end_to_end.no_data_is_lost"]
