"""Many guests at once, custom CPU models, joining a cluster, batches of calls: through proxmoxer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab."""
    folder = start(tmp_path_factory.mktemp("bulk"))
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


def states(pve: Any, *vmids: int) -> list[str]:
    """Whether each of the VMs runs."""
    return [pve.nodes("pve1").qemu(vmid).status.current.get()["status"] for vmid in vmids]


def test_many_guests_start_and_stop_in_one_task(pve: Any) -> None:
    """One that is locked is named in the log, and the others start nevertheless."""
    for vmid in (985, 986):
        finished(pve, pve.nodes("pve1").qemu.post(vmid=vmid, memory=64))
    pve.nodes("pve1").qemu(986).config.put(lock="backup")
    action = pve.cluster("bulk-action").guest
    upid = action.start.post(vms=[985, 986])
    assert finished(pve, upid) == "1 of 2 guests failed"
    log = [line["t"] for line in pve.nodes("pve1").tasks(upid).log.get(limit=0)]
    assert "VM 986: start failed - VM is locked (backup)" in log and states(pve, 985, 986) == ["running", "stopped"]
    assert finished(pve, action.shutdown.post(vms=[985], timeout=5)) == "OK"
    assert states(pve, 985) == ["stopped"]


def test_a_guest_that_is_not_there_is_refused(pve: Any) -> None:
    """Before any task begins."""
    action = pve.cluster("bulk-action").guest
    assert "unable to find guest with ID '999'" in str(refusal(lambda: action.start.post(vms=[999])))
    assert "no such cluster node 'pve9'" in str(refusal(lambda: action.migrate.post(vms=[101], target="pve9")))


def test_a_custom_cpu_model_lives_while_a_vm_has_it(pve: Any) -> None:
    """Made, changed, used, refused to go, gone."""
    models = pve.cluster.qemu("custom-cpu-models")
    models.post(cputype="big", **{"reported-model": "EPYC-Milan"})
    models("big").put(hidden=1)
    assert models("custom-big").get()["hidden"] == 1
    assert "already exists" in str(refusal(lambda: models.post(cputype="big", **{"reported-model": "host"})))
    finished(pve, pve.nodes("pve1").qemu.post(vmid=987, memory=64, cpu="custom-big"))
    assert "still in use by VM 987" in str(refusal(models("big").delete))
    finished(pve, pve.nodes("pve1").qemu(987).delete())
    models("big").delete()
    assert models.get() == [] and "Custom cputype 'big' not found" in str(refusal(models("big").get))


def test_a_cluster_tells_how_to_join_and_joins_no_other(pve: Any) -> None:
    """Its nodes with their fingerprints; itself it is neither made anew nor does it join."""
    told = pve.cluster.config.join.get()
    assert [row["name"] for row in told["nodelist"]] == ["pve1", "pve2", "pve3"]
    assert told["nodelist"][0]["pve_fp"].count(":") == 31 and told["totem"]["cluster_name"] == "lab"
    assert "already exists" in str(refusal(lambda: pve.cluster.config.post(clustername="other")))
    join = {"hostname": "192.0.2.1", "password": "secret-1", "fingerprint": ":".join(["AA"] * 32)}
    assert finished(pve, pve.cluster.config.join.post(**join)) == "Check if node may join a cluster failed!"
    assert "still online" in str(refusal(pve.cluster.config.nodes("pve3").delete)) or "has guests" in str(
        refusal(pve.cluster.config.nodes("pve3").delete)
    )
    assert "Cannot delete myself" in str(refusal(pve.cluster.config.nodes("pve1").delete))


def test_a_batch_answers_each_of_its_calls(pve: Any) -> None:
    """A refused one stands among the others."""
    commands = [{"method": "GET", "path": "version"}, {"method": "GET", "path": "qemu/999/config"},
                {"method": "POST", "path": "no/such"}]  # fmt: skip
    rows = pve.nodes("pve1").execute.post(commands=json.dumps(commands))
    assert [row["status"] for row in rows] == [200, 500, 501]


def test_a_template_is_fetched_and_makes_a_container(pve: Any) -> None:
    """What a node offers comes to its storage."""
    node = pve.nodes("pve1")
    name = next(row["template"] for row in node.aplinfo.get() if row["os"] == "alpine")
    assert finished(pve, node.aplinfo.post(storage="local", template=name)) == "OK"
    upid = node.lxc.post(vmid=988, ostemplate=f"local:vztmpl/{name}", rootfs="local-lvm:1")
    assert finished(pve, upid) == "OK" and node.lxc(988).config.get()["ostype"] == "alpine"
    assert refusal(lambda: node.aplinfo.post(storage="local", template="no.tar.gz")).errors == {
        "template": "no such template"
    }


def test_the_monitor_answers_for_a_running_vm(pve: Any) -> None:
    """Its state in words; a stopped one has none."""
    assert pve.nodes("pve1").qemu(101).monitor.post(command="info status") == "VM status: running"
    assert "not running" in str(refusal(lambda: pve.nodes("pve1").qemu(985).monitor.post(command="info status")))
