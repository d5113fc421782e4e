"""Each type of storage with its own abilities and refusals; nodes that die and return; what runs out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.errors import LabError
from runbook_lib.lab import control
from runbook_lib.lab.proxmox.crowd import expanded

sys.path.insert(0, str(Path(__file__).parent))

from proxmox_site import eventually, finished, login, refusal, start  # lies beside this file

STORAGES: dict[str, Any] = {
    "local": {"type": "dir", "content": ["iso", "images", "import"], "options": {"path": "/x"}, "total": "94G"},
    "local-lvm": {"type": "lvmthin", "content": ["images"], "options": {"thinpool": "d", "vgname": "p"}, "total": "4T"},
    "tank": {"type": "zfspool", "content": ["images", "rootdir"], "options": {"pool": "tank"}, "total": "1T"},
    "ceph": {"type": "rbd", "content": ["images"], "options": {"pool": "rbd"}, "total": "10T"},
    "nas": {"type": "nfs", "content": ["images", "iso"], "options": {"server": "nas", "export": "/x"}, "total": "4T"},
    "small": {"type": "lvm", "content": ["images"], "options": {"vgname": "small"}, "total": "10G"},
}  # fmt: skip


def vm(vmid: int, disk: str, **more: Any) -> dict[str, Any]:
    """A stopped VM of pve1 with one disk."""
    config = {"name": f"vm-{vmid}", "memory": 1024, "scsi0": f"{disk},size=4G", "boot": "order=scsi0", **more}
    return {"node": "pve1", "config": config}


GUESTS = {
    201: vm(201, "local:201/vm-201-disk-0.raw"),
    202: vm(202, "local:202/vm-202-disk-0.qcow2"),
    203: vm(203, "local-lvm:vm-203-disk-0"),
    204: vm(204, "tank:vm-204-disk-0"),
    205: vm(205, "ceph:vm-205-disk-0"),
    206: vm(206, "small:vm-206-disk-0"),
    301: vm(301, "tank:base-301-disk-0", template=1),
    302: vm(302, "ceph:base-302-disk-0", template=1),
    303: vm(303, "local:303/base-303-disk-0.qcow2", template=1),
    304: vm(304, "local:304/base-304-disk-0.raw", template=1),
    401: vm(401, "ceph:vm-401-disk-0", memory=90 * 1024),
    402: vm(402, "ceph:vm-402-disk-0", memory=90 * 1024),
    403: {**vm(403, "ceph:vm-403-disk-0", onboot=1), "node": "pve3", "running": True},
    404: {**vm(404, "ceph:vm-404-disk-0"), "node": "pve3", "running": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab with every type of storage."""
    lab = start(tmp_path_factory.mktemp("storages"), {"storages": STORAGES, "guests": GUESTS, "pools": {}, "tasks": []})
    yield lab
    control.down(lab)


@pytest.fixture
def pve(folder: Path) -> Any:
    """A client of it."""
    return login(folder)


@pytest.mark.parametrize(
    ("vmid", "able"), [(201, False), (202, True), (203, True), (204, True), (205, True), (206, False)]
)
def test_only_some_storages_take_snapshots(pve: Any, vmid: int, able: bool) -> None:
    """qcow2, thin volumes, ZFS and RBD do; raw files and thick volumes do not."""
    machine = pve.nodes("pve1").qemu(vmid)
    assert bool(machine.feature.get(feature="snapshot")["hasFeature"]) is able
    status = finished(pve, machine.snapshot.post(snapname="first"))
    assert status == ("OK" if able else "snapshot feature is not available")


def test_zfs_goes_back_one_step_only(pve: Any) -> None:
    """Older snapshots have to wait until the newer ones are gone."""
    machine = pve.nodes("pve1").qemu(204)
    for name in ("one", "two"):
        assert finished(pve, machine.snapshot.post(snapname=name)) == "OK"
    assert "is not most recent snapshot" in finished(pve, machine.snapshot("one").rollback.post())
    assert finished(pve, machine.snapshot("two").delete()) == "OK"
    assert finished(pve, machine.snapshot("one").rollback.post()) == "OK"


@pytest.mark.parametrize(
    ("template", "volume"),
    [
        (301, "tank:base-301-disk-0/vm-{}-disk-0"),
        (302, "ceph:base-302-disk-0/vm-{}-disk-0"),
        (303, "local:303/base-303-disk-0.qcow2/{0}/vm-{0}-disk-0.qcow2"),
    ],
)
def test_a_linked_clone_names_its_base(pve: Any, template: int, volume: str) -> None:
    """As each storage writes it; the base cannot go while the clone stands on it."""
    clone = template + 200
    assert finished(pve, pve.nodes("pve1").qemu(template).clone.post(newid=clone, full=0)) == "OK"
    assert pve.nodes("pve1").qemu(clone).config.get()["scsi0"].startswith(volume.format(clone))
    assert "linked clone" in finished(pve, pve.nodes("pve1").qemu(template).delete())


def test_a_raw_file_cannot_be_linked(pve: Any) -> None:
    """The refusal names the volume and the drive."""
    refused = refusal(lambda: pve.nodes("pve1").qemu(304).clone.post(newid=999, full=0))
    assert "Linked clone feature is not supported for 'local:304/base-304-disk-0.raw' (scsi0)" in refused.content


@pytest.mark.parametrize(("storage", "fmt"), [("tank", "qcow2"), ("ceph", "qcow2"), ("local-lvm", "vmdk")])
def test_block_storages_know_raw_alone(pve: Any, storage: str, fmt: str) -> None:
    """Formats are for files."""
    content = pve.nodes("pve1").storage(storage).content
    refused = refusal(lambda: content.post(vmid=900, filename="vm-900-disk-0", size="1G", format=fmt))
    assert refused.content == f"unsupported format '{fmt}'"


def test_a_storage_holds_what_its_type_can(pve: Any) -> None:
    """Of the rest the parser warns, and leaves it out."""
    pve.storage.post(storage="more", type="zfspool", pool="tank/more", content="images,iso,rootdir")
    assert set(pve.storage("more").get()["content"].split(",")) == {"images", "rootdir"}
    pve.storage("more").delete()


def test_thick_storage_runs_out(pve: Any) -> None:
    """What is allocated is gone, and comes back when it is freed."""
    content = pve.nodes("pve1").storage("small").content
    refused = refusal(lambda: content.post(vmid=900, filename="vm-900-disk-0", size="9G"))
    assert refused.content == (
        "lvcreate 'small/vm-900-disk-0' error:   Volume group \"small\" has insufficient free space "
        "(1536 extents): 2304 required."
    )


def test_memory_runs_out_and_comes_back(pve: Any) -> None:
    """Two machines that fit alone do not fit together, and the second does when the first has stopped."""
    first, second = (pve.nodes("pve1").qemu(vmid) for vmid in (401, 402))
    huge = {"memory": 200 * 1024}
    first.config.put(**huge)
    assert finished(pve, first.status.start.post()) == "start failed: QEMU exited with code 1"
    first.config.put(memory=1024)
    assert finished(pve, first.status.start.post()) == "OK"
    assert finished(pve, first.status.stop.post()) == "OK"
    assert finished(pve, second.status.start.post()) == "OK"
    assert finished(pve, second.status.stop.post()) == "OK"


def test_ids_run_out_within_their_bounds(pve: Any) -> None:
    """The datacenter's bounds are kept, and said."""
    pve.cluster.options.put(**{"next-id": "lower=201,upper=204"})
    refused = refusal(pve.cluster.nextid.get)
    assert refused.content == "unable to get any free VMID in range [201, 203]"
    pve.cluster.options.put(delete="next-id")


def test_two_takers_of_one_id_cannot_both_have_it(pve: Any) -> None:
    """nextid promises nothing: the second clone hears that the id is taken."""
    free = pve.cluster.nextid.get()
    assert free == pve.cluster.nextid.get()
    upid = pve.nodes("pve1").qemu(302).clone.post(newid=free, full=0)
    refused = refusal(lambda: pve.nodes("pve1").qemu(302).clone.post(newid=free, full=0))
    assert refused.content == f"unable to create VM {free}: config file already exists"
    assert finished(pve, upid) == "OK"


def test_a_node_dies_and_returns(folder: Path, pve: Any) -> None:
    """595 while it is gone; what had `onboot` runs again afterwards, the rest does not."""
    control.node("pve3", online=False, folder=folder)
    assert refusal(pve.nodes("pve3").status.get).status_code == 595
    assert {row["name"]: row["online"] for row in pve.cluster.status.get() if row["type"] == "node"}["pve3"] == 0
    control.node("pve2", online=False, folder=folder)
    assert next(row["quorate"] for row in pve.cluster.status.get() if row["type"] == "cluster") == 0
    assert "quorum" in refusal(lambda: pve.nodes("pve1").qemu.post(vmid=990)).content
    for name in ("pve2", "pve3"):
        control.node(name, online=True, folder=folder)
    assert eventually(lambda: pve.nodes("pve3").status.get())["uptime"] < 60
    states = {row["vmid"]: row["status"] for row in pve.nodes("pve3").qemu.get()}
    assert (states[403], states[404]) == ("running", "stopped")


def test_the_node_that_answers_cannot_be_lost(folder: Path) -> None:
    """And one that is not there is named with those that are."""
    with pytest.raises(LabError, match="the node that answers"):
        control.node("pve1", online=False, folder=folder)
    with pytest.raises(LabError, match="there are pve1"):
        control.node("pve9", online=False, folder=folder)


def test_a_crowd_is_spread_over_its_nodes() -> None:
    """Guests in turn over all nodes, none in the place of one that the scenario names."""
    site = expanded({"nodes": {"pve1": {}}, "guests": {1001: {"node": "pve1"}}, "crowd": {"nodes": 32, "guests": 64}})
    assert len(site["nodes"]) == 32
    assert site["guests"][1001] == {"node": "pve1"}
    assert {guest["node"] for guest in site["guests"].values()} == set(site["nodes"])


@pytest.mark.parametrize("count", [0, 33])
def test_a_cluster_has_one_to_thirty_two_nodes(count: int) -> None:
    """More than corosync carries is refused."""
    with pytest.raises(ValueError, match="1 to 32"):
        expanded({"nodes": {"pve1": {}}, "crowd": {"nodes": count}})
