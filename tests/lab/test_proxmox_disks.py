"""Disks of a node through proxmoxer: what is made of unused ones, what that holds, and how they become free again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control, scenario

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file

GIB = 2**30
FREE = [f"/dev/sd{letter}" for letter in "bcdefg"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab whose first node has six unused disks of 100 GiB."""
    nodes = dict(scenario.load("healthy").proxmox["nodes"])
    system = {"devpath": "/dev/sda", "size": "480G"}
    own = [system, *({"devpath": path, "size": "100G", "used": ""} for path in FREE)]
    nodes["pve1"] = {**nodes["pve1"], "disks": own}
    folder = start(tmp_path_factory.mktemp("disks"), {"nodes": nodes})
    yield folder
    control.down(folder)


@pytest.fixture
def node(lab: Path) -> Any:
    """The node with the disks, asked by root."""
    return login(lab).nodes("pve1")


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


def unused(node: Any) -> list[str]:
    """The disks nothing uses."""
    return [row["devpath"] for row in node.disks.list.get(type="unused")]


KINDS = [
    ("directory", "slow", {"device": "/dev/sdb"}, "dir", 100 * GIB),
    ("lvm", "thick", {"device": "/dev/sdb"}, "lvm", 100 * GIB),
    ("lvmthin", "thin", {"device": "/dev/sdb"}, "lvmthin", int(98 * GIB)),
    ("zfs", "tank", {"devices": "/dev/sdb,/dev/sdc", "raidlevel": "mirror"}, "zfspool", 100 * GIB),
]


@pytest.mark.parametrize(("kind", "name", "given", "storage", "size"), KINDS)
def test_an_unused_disk_becomes_a_storage_and_free_again(
    pve: Any, node: Any, kind: str, name: str, given: dict[str, Any], storage: str, size: int
) -> None:
    """The storage is there on this node alone, holds a VM's disk, and goes with its configuration."""
    before = unused(node)
    assert finished(pve, node.disks(kind).post(name=name, add_storage=1, **given)) == "OK"
    assert "/dev/sdb" not in unused(node)
    row = next(row for row in node.storage.get() if row["storage"] == name)
    assert (row["type"], row["active"], row["total"]) == (storage, 1, size)
    assert name not in [row["storage"] for row in pve.nodes("pve2").storage.get()]
    assert finished(pve, node.qemu.post(vmid=970, memory=64, scsi0=f"{name}:2")) == "OK"
    assert finished(pve, node.qemu(970).delete()) == "OK"
    more = {"volume-group": name} if kind == "lvmthin" else {}
    gone = node.disks(kind)(name).delete(**{"cleanup-config": 1, "cleanup-disks": 1, **more})
    assert finished(pve, gone) == "OK"
    assert unused(node) == before and name not in [row["storage"] for row in pve.storage.get()]


def test_what_was_made_is_listed(pve: Any, node: Any) -> None:
    """Each kind in its own list, with its devices."""
    finished(pve, node.disks.directory.post(name="listed-dir", device="/dev/sdb", filesystem="xfs"))
    finished(pve, node.disks.lvm.post(name="listed-vg", device="/dev/sdc"))
    finished(pve, node.disks.zfs.post(name="listed-pool", devices="/dev/sdd,/dev/sde", raidlevel="mirror"))
    (row,) = node.disks.directory.get()
    assert (row["path"], row["device"], row["type"]) == ("/mnt/pve/listed-dir", "/dev/sdb1", "xfs")
    group = next(each for each in node.disks.lvm.get()["children"] if each["name"] == "listed-vg")
    assert (group["size"], group["children"][0]["name"]) == (100 * GIB, "/dev/sdc")
    (mirror,) = node.disks.zfs("listed-pool").get()["children"][0]["children"]
    assert [leaf["name"] for leaf in mirror["children"]] == ["/dev/sdd1", "/dev/sde1"]
    assert {"vg": "listed-vg"} in node.scan.lvm.get() and {"pool": "listed-pool"} in node.scan.zfs.get()
    for path, name in (("directory", "listed-dir"), ("lvm", "listed-vg"), ("zfs", "listed-pool")):
        finished(pve, node.disks(path)(name).delete(**{"cleanup-disks": 1}))
    assert node.disks.directory.get() == node.disks.zfs.get() == []


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        ("directory", {"device": "/dev/sda"}, "device '/dev/sda' is already in use"),
        ("directory", {"device": "/dev/sdz"}, "not a valid block device"),
        ("lvm", {"device": "/dev/sdb", "name": "pve"}, "volume group with name 'pve' already exists on node 'pve1'"),
        ("lvmthin", {"device": "/dev/sdb", "name": "local-lvm", "add_storage": 1}, "storage ID 'local-lvm' already"),
        ("zfs", {"devices": "/dev/sdb", "raidlevel": "mirror"}, "mirror needs at least 2 disks"),
        ("zfs", {"devices": "/dev/sdb,/dev/sdc", "raidlevel": "single"}, "can only be used with one disk"),
        ("zfs", {"devices": ",".join(FREE[:5]), "raidlevel": "raid10"}, "raid10 needs an even number of disks"),
    ],
)
def test_what_cannot_be_made_is_refused(node: Any, kind: str, given: dict[str, Any], says: str) -> None:
    """Before any task begins, and the disks stay unused."""
    before = unused(node)
    assert says in str(refusal(lambda: node.disks(kind).post(**{"name": "new", **given})))
    assert unused(node) == before


def test_a_raid_takes_parity_from_the_room(pve: Any, node: Any) -> None:
    """Four disks of 100 GiB as raidz2 hold two."""
    finished(pve, node.disks.zfs.post(name="safe", devices=",".join(FREE[:4]), raidlevel="raidz2"))
    assert node.disks.zfs.get()[0]["size"] == 200 * GIB
    finished(pve, node.disks.zfs("safe").delete(**{"cleanup-disks": 1}))


def test_a_disk_in_use_is_not_wiped(pve: Any, node: Any) -> None:
    """The system's and a mounted one stay; an unused one gets a partition table and loses it again."""
    assert "has a holder" in str(refusal(lambda: node.disks.wipedisk.put(disk="/dev/sda")))
    finished(pve, node.disks.directory.post(name="mounted", device="/dev/sdb"))
    assert "is mounted" in str(refusal(lambda: node.disks.wipedisk.put(disk="/dev/sdb")))
    finished(pve, node.disks.directory("mounted").delete(**{"cleanup-disks": 1}))
    assert finished(pve, node.disks.initgpt.post(disk="/dev/sdb")) == "OK"
    assert finished(pve, node.disks.wipedisk.put(disk="/dev/sdb")) == "OK"


def test_nothing_is_removed_that_is_not_there(node: Any) -> None:
    """The refusal names it."""
    assert "no such zpool 'none'" in str(refusal(node.disks.zfs("none").delete))
    assert "no such volume group 'none'" in str(refusal(node.disks.lvm("none").delete))
