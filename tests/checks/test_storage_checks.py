"""Judgement of storage, at and around every threshold."""

from __future__ import annotations

import pytest

from runbook_lib import checks
from runbook_lib.facts import Storage, TestVolume, ThinPool, Volume

GIB = 2**30


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


def storage(name="local-lvm", **given):
    """An active local storage for images, half full of 100 GiB."""
    usual = {
        "node": "pve1",
        "type": "lvmthin",
        "content": ("images",),
        "active": True,
        "enabled": True,
        "shared": False,
    }
    sizes = {"total_bytes": 100 * GIB, "used_bytes": 50 * GIB, "available_bytes": 50 * GIB}
    return Storage(name=name, **{**usual, **sizes, **given})


@pytest.mark.parametrize(("used", "expected"), [(79, "pass"), (80, "warn"), (89, "warn"), (90, "fail")])
def test_fill_is_graded(used, expected):
    """80 % and 90 % are the thresholds."""
    assert statuses(checks.storage.storage_has_room([storage(used_bytes=used * GIB)])) == [expected]


def test_shared_storage_is_judged_once():
    """Three nodes that see one share give one finding."""
    rows = [storage("nfs", node=f"pve{n}", shared=True) for n in (1, 2, 3)]
    assert len(checks.storage.storage_has_room(rows)) == 1


def test_storage_without_figures_is_a_skip():
    """An inactive storage gave no sizes; that is not room."""
    assert statuses(checks.storage.storage_has_room([storage(active=False, total_bytes=None)])) == ["skip"]


def test_inactive_fails_and_disabled_is_skipped():
    """A storage somebody disabled is not a fault."""
    rows = [storage(), storage("nfs", active=False), storage("old", enabled=False, active=False)]
    assert statuses(checks.storage.storage_is_active(rows)) == ["pass", "fail", "skip"]


@pytest.mark.parametrize(
    ("data", "metadata", "expected"),
    [(50, 50, ["pass", "pass"]), (50, 90, ["pass", "fail"]), (80, 50, ["warn", "pass"])],
)
def test_thin_pool_fills_twice(data, metadata, expected):
    """Data and metadata are judged apart."""
    pool = ThinPool("pve1", "pve", "data", 100, data, 100, metadata)
    assert statuses(checks.storage.thin_pool_has_room([pool])) == expected


def test_content_types_are_wanted_on_every_node():
    """images on pve1 does not help pve2."""
    rows = [storage(content=("images", "iso")), storage("local", node="pve2", content=("iso",))]
    found = checks.storage.content_types_are_served(rows)
    assert statuses(found) == ["pass", "pass", "fail", "pass"]
    assert found[2].message == "pve2: no storage holds images"


@pytest.mark.parametrize(("wanted", "expected"), [(50, "pass"), (51, "fail")])
def test_room_for_volumes_looks_at_the_largest_free_space(wanted, expected):
    """One volume lives on one storage: free spaces are not added up."""
    rows = [storage(), storage("small", available_bytes=10 * GIB)]
    assert statuses(checks.storage.room_for_volumes(rows, storage_free_gib=wanted)) == [expected]


def test_room_for_volumes_ignores_storages_without_images():
    """Free space for backups is no room for volumes: nothing to look at."""
    assert statuses(checks.storage.room_for_volumes([storage(content=("backup",))])) == ["skip"]


@pytest.mark.parametrize(
    ("size", "listed", "gone"), [(GIB, "pass", "fail"), (0, "fail", "fail"), (None, "fail", "pass")]
)
def test_test_volume_must_be_listed_and_then_gone(size, listed, gone):
    """Allocation and removal are both proved by the storage's own list; None: not in it."""
    volid = "local-lvm:vm-1-disk-0"
    found = None if size is None else Volume("pve1", "local-lvm", volid, "images", "raw", size, 1)
    volume = TestVolume("pve1", "local-lvm", volid, found)
    assert statuses(checks.storage.test_volumes_are_listed([volume])) == [listed]
    assert statuses(checks.storage.test_volumes_are_gone([volume])) == [gone]


def everywhere(name="local-lvm", nodes=("pve1", "pve2"), **given):
    """The storage on each of the nodes."""
    return [storage(name, node=node, **given) for node in nodes]


def test_a_storage_that_a_node_lacks_is_named():
    """Storages for backups alone are nobody's concern here; a node the site does not use is not asked."""
    rows = [*everywhere(), storage("fast"), storage("dump", content=("backup",))]
    found = checks.storage.storages_agree(rows)
    assert [(f.subject, str(f.status)) for f in found] == [("fast", "warn"), ("local-lvm", "pass")]
    assert "not on pve2" in found[0].message
    assert statuses(checks.storage.storages_agree(rows, nodes=["pve1"])) == ["pass", "pass"]


@pytest.mark.parametrize(("shared", "expected"), [(False, ["pass", "fail"]), (True, ["pass"])])
def test_room_on_the_chosen_storage_counts_on_each_node(shared, expected):
    """Local room on one node does not help another; shared room is one."""
    rows = [storage(shared=shared), storage(node="pve2", shared=shared, available_bytes=GIB)]
    found = checks.storage.chosen_storage_has_room(rows, disk_storage="local-lvm", storage_free_gib=50)
    assert statuses(found) == expected


@pytest.mark.parametrize(
    ("kind", "expected"), [("lvmthin", "pass"), ("rbd", "pass"), ("nfs", "pass"), ("lvm", "warn"), ("iscsi", "warn")]
)
def test_snapshots_are_a_matter_of_the_type(kind, expected):
    """Plain LVM and foreign LUNs have none."""
    assert statuses(checks.storage.snapshots_are_possible([storage(type=kind)])) == [expected]


def test_fit_for_csi_tells_shared_from_zonal():
    """Both are fit, for different pods."""
    rows = [*everywhere(), *everywhere("nas", type="nfs", shared=True)]
    found = checks.storage.fit_for_csi(rows, disk_storage="nas")
    assert statuses(found) == ["pass", "pass"]
    assert "zonal" in found[0].message and "follows its pod" in found[1].message


@pytest.mark.parametrize(
    ("rows", "chosen", "expected"),
    [
        ([*everywhere(), storage("fast")], "local-lvm", ["warn", "pass"]),
        ([storage(), storage(node="pve2", active=False)], "local-lvm", ["warn"]),
        (everywhere(active=False), "local-lvm", ["fail"]),
        (everywhere(type="iscsi"), "local-lvm", ["fail"]),
        ([*everywhere(), *everywhere("lun", type="iscsi")], "local-lvm", ["pass", "skip"]),
        (everywhere(content=("iso",)), None, ["fail"]),
        (everywhere(), "nowhere", ["pass", "fail"]),
    ],
)
def test_what_is_not_fit_for_csi(rows, chosen, expected):
    """A node without it warns; only the chosen storage, or none at all, can fail."""
    assert statuses(checks.storage.fit_for_csi(rows, disk_storage=chosen)) == expected


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("lvmthin", ["linked", "leave `format` out", "the node that"]),
        ("nfs", ["linked", "raw or qcow2"]),
        ("lvm", ["full clones only", "leave `format` out"]),
    ],
)
def test_fit_for_capmox_says_how_it_clones(kind, words):
    """Type decides on clones and on whether a format may be named."""
    rows = everywhere(type=kind, content=("images", "iso"))
    found = checks.storage.fit_for_capmox(rows, disk_storage="local-lvm")
    assert statuses(found) == ["pass"] * 3
    assert not [word for word in words if word not in found[2].message]


@pytest.mark.parametrize(
    ("rows", "chosen", "expected"),
    [
        (everywhere(), "local-lvm", ["fail", "fail", "pass"]),
        ([*everywhere(), storage("local", content=("iso",))], "local-lvm", ["pass", "fail", "pass"]),
        ([storage(content=("images", "iso")), storage("local", node="pve2", content=("iso",))], "local-lvm",
         ["pass", "pass", "fail"]),
        (everywhere(content=("iso",)), None, ["pass", "pass", "fail"]),
    ],
)  # fmt: skip
def test_what_is_not_fit_for_capmox(rows, chosen, expected):
    """No place for the ISO on one node, no disk storage on one node, none at all."""
    assert statuses(checks.storage.fit_for_capmox(rows, disk_storage=chosen)) == expected


def test_nodes_the_site_does_not_use_do_not_count():
    """A site that allows one node asks nothing of the other."""
    rows = [storage(content=("images", "iso")), storage("old", node="pve2", content=("backup",))]
    assert statuses(checks.storage.fit_for_capmox(rows, disk_storage="local-lvm", nodes=["pve1"])) == ["pass"] * 2
    assert statuses(checks.storage.fit_for_csi(rows, disk_storage="local-lvm", nodes=["pve1"])) == ["pass"]
