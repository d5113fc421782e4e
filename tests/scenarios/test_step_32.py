"""Step 32 where something is wrong: each failure is found by its own check and told with its cause."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import homes
import pytest
import yaml

from runbook_lib.lab import control
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-32")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
QUICK = {"wait_seconds": 5, "parallel": 1}
BEFORE = {"csi.scsi_controller_is_virtio", "csi.nodes_are_machines", "csi.topology_is_right", "csi.slots_are_free",
          "csi.provider_ids_agree", "csi.classes_can_work", "csi.driver_may_be_installed",
          "csi.proxmox_is_a_cluster"}  # fmt: skip
slow = pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab begins anew with each case."""
    place = homes.make(tmp_path_factory.mktemp("step32"), scale=600, images={})
    place.up()
    yield place
    control.down(place.lab)


def play(home: homes.Home, given: Mapping[str, Any], **parameters: Any) -> StepResult:
    """The result of the step on a lab that is so, with these parameters."""
    case = home.root / "case.yaml"
    case.write_text(yaml.safe_dump({"title": "A case", "extends": "healthy", **given}), encoding="utf-8")
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    site["lab"]["scenario"] = str(case)
    site |= {"csi": QUICK, "changes": "allow", **parameters}
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    control.scenario(str(case), home.lab)
    told = home.runbook("run", "--step", "32")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    return result


def found(result: StepResult, *statuses: Status) -> dict[str, str]:
    """Check → messages and remedies of the findings with one of the statuses."""
    told: dict[str, str] = {}
    for entry in result.findings:
        if entry.status in statuses:
            told[entry.check] = f"{told.get(entry.check, '')}{entry.message} | {entry.remedy}\n"
    return told


def guest(vmid: int, **config: Any) -> dict[str, Any]:
    """A VM whose config is otherwise."""
    return {"proxmox": {"guests": {vmid: {"config": config}}}}


def node(name: str, **metadata: Any) -> dict[str, Any]:
    """A node whose metadata or spec is otherwise."""
    return {"kubernetes": {"edits": [{"objects": {"kind": "Node", "name": name}, "merge": metadata}]}}


REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "lsi": (guest(112, scsihw="lsi"), {}, {"csi.scsi_controller_is_virtio"}),
    "zone": (
        node("worker-1", metadata={"labels": {REGION: "lab", ZONE: "pve3"}}), {}, {"csi.topology_is_right"},
    ),
    "provider-id": (
        node("worker-1", spec={"providerID": "proxmox://lab/111"}),
        {"csi": {**QUICK, "provider": "capmox"}},
        {"csi.provider_ids_agree"},
    ),
    "slots": (
        guest(112, **{f"scsi{slot}": f"local-lvm:vm-112-disk-{slot},size=1G" for slot in range(1, 30)}),
        {},
        {"csi.slots_are_free"},
    ),
    "class": (
        {}, {"csi": {**QUICK, "classes": [{"storage": "local-lvm", "format": "qcow2"}]}},
        {"csi.classes_can_work", "csi.driver_may_be_installed"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "class" else slow) for name in CASES])
def test_what_would_not_work_is_found_before_it_is_tried(home: homes.Home, name: str):
    """The preflight fails in exactly its own checks, though what can be tried is tried."""
    given, parameters, wanted = CASES[name]
    result = play(home, given, **parameters)
    assert BEFORE & set(found(result, Status.FAIL)) == wanted
    assert all(entry.remedy for entry in result.findings if entry.status is Status.FAIL)


FAULTS = {
    "full": ("POST", r"/content(\?|$)", 500, "unable to create image: no space left on device", "storage is full"),
    "forbidden": ("POST", r"/content(\?|$)", 403, "Permission check failed (/storage/nas, Datastore.AllocateSpace)",
                  "lacks a privilege"),
    "locked": ("POST", r"/qemu/\d+/config", 500, "VM is locked (backup)", "locked by another task"),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "full" else slow) for name in FAULTS])
def test_a_volume_that_does_not_come_is_told_with_its_cause(home: homes.Home, name: str):
    """What Proxmox VE answers the driver becomes the cause and a first safe step, and nothing is left of the trial."""
    method, path, status, words, cause = FAULTS[name]
    rule = {"system": "proxmox", "method": method, "path": path, "status": status, "reason": words}
    result = play(home, {"faults": [rule]}, csi={**QUICK, "wait_seconds": 2, "classes": [{"storage": "nas"}]})
    failed = found(result, Status.FAIL)
    assert cause in failed["csi.volumes_did_as_wanted"] and "First: " in failed["csi.volumes_did_as_wanted"]
    assert "csi.trials_left_nothing" not in failed and "preparation.nothing_borrowed_remains" not in failed


@slow
def test_a_driver_without_its_images_does_not_count_as_installed(home: homes.Home):
    """Incident 7: the CSIDriver is registered, and no pod of it runs."""
    result = play(home, {"kubernetes": {"registries": {"ghcr.io/sergelogvinov": "denied"}}})
    failed = found(result, Status.FAIL)
    assert "csi.driver_pods_run" in failed or "csi.releases_are_installed" in failed
    assert not [
        entry for entry in result.findings if entry.check == "csi.contents_are_intact" and entry.status == "pass"
    ]


ORPHAN = "vm-9999-pvc-00000000-0000-4000-8000-000000000001"


def test_a_disk_that_nobody_knows_is_found(home: homes.Home):
    """A disk of the driver without a volume is named with its storage; it is not touched."""
    volume = {"name": ORPHAN, "content": "images", "size": "1G", "vmid": 9999}
    result = play(home, {"proxmox": {"storages": {"local-lvm": {"volumes": [volume]}}}}, changes="forbid")
    assert f"local-lvm:{ORPHAN}" in found(result, Status.FAIL)["csi.nothing_is_orphaned"]
    assert result.changes == ()


@slow
@pytest.mark.parametrize("generation", ["healthy", "cozystack-v0", "capi-v1beta2"])
def test_every_generation_of_the_platform_has_storage(home: homes.Home, generation: str):
    """All of step 32 passes; copies and a dead worker too, where the site allows them."""
    password = "file:.lab/secrets.json#proxmox_password"
    given = {**QUICK, "wait_seconds": 60, "root_password": password, "power_off": "worker-2"}
    result = play(home, {"extends": generation}, csi=given)
    assert found(result, Status.FAIL, Status.ERROR) == {}
    told = {entry.subject for entry in result.findings if entry.check == "csi.contents_are_intact"}
    assert {"proxmox-local-lvm copy restored", "proxmox-local-lvm copy cloned", "proxmox-nas dead survived"} <= told


@slow
def test_a_second_run_changes_nothing_that_stays(home: homes.Home):
    """Everything is as wanted already: only borrowed things are made."""
    play(home, {})
    told = home.runbook("run", "--step", "32")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    assert [change.target for change in result.changes if change.kind == "install"] == []
    assert found(result, Status.FAIL, Status.ERROR) == {}


@slow
def test_no_secret_is_written_anywhere(home: homes.Home):
    """Neither tokens nor the password lie in plan, journal, notebook or events."""
    play(home, {}, csi={**QUICK, "root_password": "file:.lab/secrets.json#proxmox_password"})
    texts = [path.read_bytes() for path in homes.files(home.root / "outputs")]
    values = [value.encode() for value in homes.secrets(home).values() if len(value) > 7]
    assert values and not [value for value in values for text in texts if value in text]


def test_case_files_are_scenarios(tmp_path: Path):
    """Each case is one that the lab can read."""
    from runbook_lib.lab import scenario

    for name, (given, _, _) in CASES.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"title": name, "extends": "healthy", **given}), encoding="utf-8")
        assert scenario.load(path).proxmox
