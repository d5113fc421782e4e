"""Ceph changed through proxmoxer: OSDs, daemons, pools and file systems, and a node that never had any."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control, scenario

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab with Ceph on three nodes and an unused disk on the first."""
    nodes = dict(scenario.load("healthy").proxmox["nodes"])
    nodes["pve1"] = {**nodes["pve1"], "disks": [{"devpath": "/dev/sdb", "size": "1T", "used": ""}]}
    folder = start(tmp_path_factory.mktemp("ceph"), {"nodes": nodes, "ceph": {"size": "12T", "used": "3T"}})
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


@pytest.fixture
def ceph(pve: Any) -> Any:
    """Ceph as the first node tells it."""
    return pve.nodes("pve1").ceph


def test_an_osd_is_made_of_a_disk_and_destroyed_again(pve: Any, ceph: Any) -> None:
    """It is up and in at once; to go it must be out and stopped, and its disk is free then."""
    assert finished(pve, ceph.osd.post(dev="/dev/sdb")) == "OK"
    assert pve.cluster.ceph.status.get()["osdmap"]["num_osds"] == 7
    assert "already in use" in str(refusal(lambda: ceph.osd.post(dev="/dev/sdb")))
    assert "osd is in use (in == 1)" in str(refusal(ceph.osd(6).delete))
    ceph.osd(6).out.post()
    assert "osd is still running" in str(refusal(ceph.osd(6).delete))
    assert finished(pve, ceph.stop.post(service="osd.6")) == "OK"
    assert "OSD_DOWN" in pve.cluster.ceph.status.get()["health"]["checks"]
    assert finished(pve, ceph.osd(6).delete(cleanup=1)) == "OK"
    status = pve.cluster.ceph.status.get()
    assert (status["osdmap"]["num_osds"], status["health"]["status"]) == (6, "HEALTH_OK")
    assert pve.nodes("pve1").disks.list.get(type="unused")[0]["devpath"] == "/dev/sdb"


def test_an_osd_taken_out_counts_as_out(pve: Any, ceph: Any) -> None:
    """The tree and the map agree, until it is taken in again."""
    ceph.osd(0).out.post()
    assert pve.cluster.ceph.status.get()["osdmap"]["num_in_osds"] == 5
    assert ceph.osd.get()["root"]["children"][0]["children"][0]["children"][0]["in"] == 0
    ceph.osd(0)("in").post()
    assert pve.cluster.ceph.status.get()["osdmap"]["num_in_osds"] == 6
    assert ceph.osd(0).metadata.get()["osd"]["hostname"] == "pve1"
    assert "no such OSD '99'" in str(refusal(ceph.osd(99).metadata.get))


def test_the_last_monitor_stays(pve: Any, ceph: Any) -> None:
    """Two may go; one that is there is not made twice."""
    assert "monitor 'pve1' already exists" in str(refusal(ceph.mon("pve1").post))
    for name in ("pve3", "pve2"):
        assert finished(pve, ceph.mon(name).delete()) == "OK"
    assert "can't remove last monitor" in str(refusal(ceph.mon("pve1").delete))
    assert ceph("cmd-safety").get(service="mon", action="destroy", id="pve1")["safe"] == 0
    for name in ("pve2", "pve3"):
        assert finished(pve, pve.nodes(name).ceph.mon(name).post()) == "OK"
    assert [row["name"] for row in ceph.mon.get()] == ["pve1", "pve2", "pve3"]


def test_a_pool_gets_a_storage_and_stays_while_that_is_in_use(pve: Any, ceph: Any) -> None:
    """Its size is a third of what is free; a disk on it keeps it, `force` does not ask."""
    assert finished(pve, ceph.pool.post(name="fast", add_storages=1, pg_num=64)) == "OK"
    assert finished(pve, ceph.pool("fast").put(size=2)) == "OK"
    row = next(row for row in ceph.pool.get() if row["pool_name"] == "fast")
    assert (row["size"], row["pg_num"]) == (2, 64)
    assert finished(pve, pve.nodes("pve1").qemu.post(vmid=980, memory=64, scsi0="fast:2")) == "OK"
    assert "ceph pool 'fast' still in use by storage 'fast'" in str(refusal(ceph.pool("fast").delete))
    finished(pve, pve.nodes("pve1").qemu(980).delete())
    assert finished(pve, ceph.pool("fast").delete(remove_storages=1)) == "OK"
    assert "fast" not in [row["storage"] for row in pve.storage.get()]
    assert "pool 'fast' does not exist" in str(refusal(lambda: ceph.pool("fast").put(size=2)))


def test_a_file_system_needs_a_metadata_server(pve: Any, ceph: Any) -> None:
    """With one it gets two pools and a storage."""
    assert "no running Metadata Server" in str(refusal(lambda: ceph.fs("shared").post()))
    assert finished(pve, ceph.mds("pve1").post()) == "OK"
    assert finished(pve, ceph.fs("shared").post(**{"add-storage": 1})) == "OK"
    assert ceph.fs.get()[0]["metadata_pool"] == "shared_metadata"
    assert ceph.mds.get()[0]["state"] == "up:active"
    assert {"shared_data", "shared_metadata"} <= {row["pool_name"] for row in ceph.pool.get()}
    assert "shared" in [row["storage"] for row in pve.storage.get(type="cephfs")]


def test_flags_are_set_together(pve: Any) -> None:
    """Those named change, and the health speaks of them."""
    assert finished(pve, pve.cluster.ceph.flags.put(noout=1, noscrub=1)) == "OK"
    assert "noout,noscrub flag(s) set" in str(pve.cluster.ceph.status.get()["health"]["checks"]["OSDMAP_FLAGS"])
    finished(pve, pve.cluster.ceph.flags.put(noout=0, noscrub=0))
    assert "OSDMAP_FLAGS" not in pve.cluster.ceph.status.get()["health"]["checks"]


def test_configured_values_are_read_by_key(ceph: Any) -> None:
    """What nobody set is left out."""
    found = ceph.cfg.value.get(**{"config-keys": "global:osd_pool_default_size;global:nothing"})
    assert found == {"global": {"osd_pool_default_size": "3"}}


def test_a_node_without_ceph_says_so(tmp_path: Path) -> None:
    """Whatever is asked, the text is the one clients know."""
    folder = start(tmp_path)
    try:
        ceph = login(folder).nodes("pve1").ceph
        calls = [ceph.status.get, ceph.osd(0).out.post, ceph.init.post, lambda: ceph.pool.post(name="new"),
                 ceph.mon("pve1").delete, ceph.start.post]  # fmt: skip
        assert {refusal(call).content for call in calls} == {"binary not installed: /usr/bin/ceph-mon"}
    finally:
        control.down(folder)
