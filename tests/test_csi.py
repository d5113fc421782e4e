"""Step 32 before anything is sent: classes against their storages, who is which VM, rights, and no secret anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from runbook_lib import csi, volumes
from runbook_lib.facts import Ability, ClassCase, Cluster, NodeMachine, Seen, Spoken, Storage
from runbook_lib.model import ChangeKind, to_dict
from runbook_lib.plan import Plan
from runbook_lib.site import ClassWish, Site

RUN, LATER = "20261123T190312Z-4f2a", "20261124T080000Z-0001"
UUID = "6f1d2a10-0c5e-4c52-9a3e-0000000c0111"


def site(**given: Any) -> Site:
    """A site as it comes."""
    return Site(name="lab", lab={}, emulated=True, changes="allow", csi=given)


def machine(node: str = "worker-1", vmid: int | None = 111, host: str = "pve1", **given: Any) -> NodeMachine:
    """A worker that is a VM with the driver."""
    return NodeMachine(node, "True", True, UUID, "", "lab", host, vmid=vmid, vm_name=node, host=host,
                       scsi_controller="virtio-scsi-single", max_volumes=24, **given)  # fmt: skip


MACHINES = (machine(), machine("worker-2", 112, "pve2"))


def storage(name: str = "local-lvm", kind: str = "lvmthin", node: str = "pve1", **given: Any) -> Storage:
    """A storage on one node."""
    return Storage(node, name, kind, ("images",), **{"active": True, "enabled": True, "shared": False, **given})


STORAGES = [
    *(storage(node=node) for node in ("pve1", "pve2")),
    *(storage("nas", "nfs", node, shared=True) for node in ("pve1", "pve2")),
    *(storage("tank", "zfspool", node) for node in ("pve1", "pve2")),
]


def setting(own: Site | None = None, **given: Any) -> csi.Setting:
    """The site as step 32 sees it."""
    cluster = Cluster("lab", True, ())
    return replace(csi.setting(own or site(), cluster, MACHINES, STORAGES), **given)


def test_each_storage_with_images_gets_a_class_that_is_never_default():
    """By default one class a storage, bound with its first consumer, expandable, not the default."""
    cases = csi.class_cases(site(), STORAGES, MACHINES)
    assert [case.name for case in cases] == ["proxmox-local-lvm", "proxmox-nas", "proxmox-tank"]
    made = csi.storage_class(cases[0])
    assert made["volumeBindingMode"] == "WaitForFirstConsumer" and made["allowVolumeExpansion"] is True
    assert made["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "false"


def test_every_parameter_is_written_as_the_driver_reads_it():
    """All values are texts; what is the driver's default is left out."""
    wish = ClassWish(
        storage="tank", fstype="xfs", cache="none", aio="native", ssd=True, iothread=False, backup=True, iops=400,
        mbps=50, block_size=4096, inode_size=512, replicate=True, replicate_schedule="*/5",
        replicate_zones=("pve1", "pve2"),
    )  # fmt: skip
    assert csi.class_parameters(wish) == {
        "csi.storage.k8s.io/fstype": "xfs", "storage": "tank", "cache": "none", "aio": "native", "ssd": "true",
        "iothread": "false", "backup": "true", "diskIOPS": "400", "diskMBps": "50", "blockSize": "4096",
        "inodeSize": "512", "replicate": "true", "replicateSchedule": "*/5", "replicateZones": "pve1,pve2",
    }  # fmt: skip
    assert csi.class_parameters(ClassWish(storage="nas")) == {"csi.storage.k8s.io/fstype": "ext4", "storage": "nas"}


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"storage": "gone"}, "there is no storage gone"),
        ({"storage": "local-lvm", "format": "qcow2"}, "storageFormat is for storages whose disks are files"),
        ({"storage": "local-lvm", "replicate": True}, "replicate is for ZFS pools, this is lvmthin"),
        ({"storage": "tank", "replicate": True, "replicate_zones": ("pve1",)}, "replicateZones wants two nodes"),
        ({"storage": "tank", "replicate": True, "replicate_zones": ("pve1", "pve9")}, "names pve9"),
        ({"storage": "nas", "aio": "native", "cache": "writeback"}, "aio native wants cache none or directsync"),
        ({"storage": "nas", "fstype": "xfs", "block_size": 65536}, "no block size larger than a page"),
        ({"storage": "nas", "block_size": 1024, "inode_size": 2048}, "an inode must fit into a block"),
    ],
)
def test_a_class_that_its_storage_cannot_be_is_refused_before_anything_is_sent(wish: Mapping[str, Any], words: str):
    """The driver would say so only when the first pod waits."""
    [case] = csi.class_cases(site(classes=({**wish},)), STORAGES, MACHINES)
    assert words in "; ".join(case.problems)


def test_a_class_that_exists_otherwise_is_told_field_by_field():
    """Parameters cannot be changed, so a difference is a finding and never a change."""
    there = {"metadata": {"name": "proxmox-nas"}, "parameters": {"storage": "old"}, "reclaimPolicy": "Retain",
             "volumeBindingMode": "Immediate"}  # fmt: skip
    cases = csi.class_cases(site(), STORAGES, MACHINES, existing={"proxmox-nas": there})
    told = {case.name: case.differences for case in cases}
    assert told["proxmox-tank"] == ()
    assert "reclaimPolicy: Retain there, Delete wanted" in told["proxmox-nas"]


@pytest.mark.parametrize(
    ("row", "provider"),
    [
        ({}, "default"),
        ({"provider_id": f"proxmox://{UUID}"}, "capmox"),
        ({"provider_id": "proxmox://lab/111"}, "default"),
        ({"vm_name": "another-name"}, "capmox"),
        ({"vm_name": "another-name", "provider_id": "proxmox://lab/111"}, "default"),
    ],
)
def test_the_provider_follows_what_nodes_already_have(row: Mapping[str, Any], provider: str):
    """A providerID cannot be changed; without one, a node is found by name or, beside CAPMOX, by uuid."""
    assert csi.provider_of([replace(MACHINES[0], **row)]) == provider


def test_rights_cover_the_nodes_machines_and_no_other():
    """A pool only where all its VMs are nodes, else each VM by itself."""

    class Pve:
        def get(self, path: str, **_: Any) -> Any:
            return [{"vmid": 111, "pool": "kube"}, {"vmid": 112, "pool": "mixed"}, {"vmid": 120, "pool": "mixed"}]

    rows = [replace(MACHINES[0], pool="kube"), replace(MACHINES[1], pool="mixed")]
    assert csi.machine_paths(Pve(), rows) == ["/pool/kube", "/vms/112"]


def test_configuration_has_a_place_for_the_secret_and_values_have_none():
    """The text names region, provider and the API's path; no value of Helm holds anything of it."""
    what = setting(provider="capmox")
    text = csi.config(what, insecure=False, token_id="runbook-csi@pve!csi")
    assert "provider: capmox" in text and 'token_secret: "{secret}"' in text and "region: lab" in text
    assert what.url.endswith("/api2/json")
    values = json.dumps([csi.plugin_values(what, trust=True), csi.ccm_values(what, trust=True)])
    assert "token" not in values and "password" not in values and "system-cluster-critical" in values
    assert csi.ccm_values(what, trust=False)["enabledControllers"] == ["cloud-node"]


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("proxmox-local-lvm", {}, ""),
        ("proxmox-nas", {}, "copies nothing on shared nfs"),
        ("proxmox-local-lvm", {"driver": "0.11.0"}, "driver 0.16 or newer (this is 0.11.0)"),
        ("proxmox-local-lvm", {"snapshots": False}, "root@pam's password"),
        ("proxmox-local-lvm", {"served": False}, "snapshot.storage.k8s.io"),
    ],
)
def test_copies_are_gated_by_what_the_site_can(case: str, change: dict[str, Any], words: str):
    """A skip says what would make it possible."""
    served = change.pop("served", True) if "served" in change else True
    what = setting(snapshots=True)
    what = replace(what, **change)
    found = csi.ability(next(each for each in what.classes if each.name == case), what, served=served)
    assert found.possible is (not words) and words in found.why


def test_driver_release_follows_its_chart():
    """The newest known release at or below the chart's version; nothing of an unknown older one."""
    assert [csi.driver_release(text) for text in ("0.5.9", "0.5.1", "0.3.5", "0.1.0")] == [
        "0.19.1", "0.16.0", "0.11.0", ""]  # fmt: skip


# --- trials ------------------------------------------------------------------------------------------


def trials(run: str = RUN, own: Site | None = None, abilities: tuple[Ability, ...] = ()) -> Any:
    """Everything that step 32 tries."""
    own = own or site()
    return volumes.all_trials(own, run, setting(own), abilities)


def test_one_approval_covers_every_run_of_the_trials():
    """Everything is borrowed with a way back, and a later run plans the same digest."""
    first, later = (Plan("lab", trials(run).changes, run) for run in (RUN, LATER))
    assert first.digest == later.digest
    assert all(change.kind is ChangeKind.BORROW and change.undo for change in first.changes)
    assert json.dumps(to_dict(first))


def test_names_are_what_kubernetes_takes():
    """At most 63 characters of a DNS label, each object once."""
    wanted = trials(own=site(classes=({"storage": "nas", "name": "a" * 63},)))
    made = [change.target for change in wanted.changes if change.action == "create"]
    assert len(made) == len(set(made)) > 10
    assert all(len(target.rpartition("/")[2]) <= 63 for target in made)


def test_a_shared_volume_moves_to_another_host_and_a_local_one_within_its_zone():
    """Where the zone has no second worker, the pod comes back to the first."""
    shared, local = (next(c for c in setting().classes if c.name == f"proxmox-{n}") for n in ("nas", "local-lvm"))
    assert [row.node for row in volumes.pair(shared, MACHINES) if row] == ["worker-1", "worker-2"]
    assert volumes.pair(local, MACHINES)[1] is None
    near = machine("worker-3", 113, "pve1")
    assert volumes.pair(local, (*MACHINES, near))[1] == near


@pytest.mark.parametrize(
    "row", [{"vmid": None, "is_host": True}, {"ready": "False"}, {"schedulable": False}, {"max_volumes": None}]
)
def test_no_pod_is_sent_where_no_volume_can_be_mounted(row: Mapping[str, Any]):
    """A host that is a worker, an unready or closed node, one without the driver."""
    assert volumes.workers([replace(MACHINES[0], **row), MACHINES[1]]) == [MACHINES[1]]


def test_a_worker_is_switched_off_only_by_name():
    """Without consent no VM is touched; with it the plan says so in capitals, and starts it again."""
    assert not [change for change in trials().changes if change.system == "proxmox"]
    [stop] = [change for change in trials(own=site(power_off="worker-2")).changes if change.system == "proxmox"]
    assert stop.target == "/nodes/pve2/qemu/112" and "SWITCHES OFF VM 112" in stop.summary
    assert stop.undo is not None and stop.undo["path"].endswith("/112/status/start")


def test_copies_are_tried_only_where_they_can_be():
    """The gate decides, class by class."""
    able = (Ability("snapshots and clones", True, "", "proxmox-tank"),)
    kinds = [change.target for change in trials(abilities=able).changes if "/VolumeSnapshot/" in change.target]
    assert len(kinds) == 1 and "proxmox-tank" in kinds[0]
    assert not [change for change in trials().changes if "VolumeSnapshot" in change.target]


def test_readings_come_by_class_and_what_never_came_is_an_error():
    """Attaching counts from the claim's binding, a pod's start from its creation."""
    seen = [
        Seen("follow", "a", "bound", "c", True, 2.0, change="1"),
        Seen("follow", "a", "attached", "c", True, 5.0, change="1"),
        Seen("follow", "a", "running", "p", True, 9.0, change="1"),
        Seen("follow", "a", "detached", "c", False, 300.0, change="2"),
    ]
    found = {row.name: row for row in volumes.timings(seen)}
    assert (found["attach"].values, found["pod start"].values) == ((3.0,), (9.0,))
    assert (found["detach"].values, found["detach"].errors) == ((), 1)
    assert found["claim to bound"].threshold == 30


def test_fio_is_read_by_section_and_broken_reports_are_left_out():
    """Small blocks in operations a second, large ones in MiB/s."""
    side = {"iops": 1000.0, "bw_bytes": 4 * 1024**2}
    report = "fio: warming up\n" + json.dumps({"jobs": [{"read": side, "write": {"iops": 0, "bw_bytes": 0}}]})
    said = [
        Spoken("speed", "a", "fio randread-4k", "p", 0, report),
        Spoken("speed", "a", "fio read-1m", "p", 0, report),
        Spoken("speed", "a", "fio read-1m", "p", 0, "{broken"),
        Spoken("speed", "a", "fio read-1m", "p", 1, report),
    ]
    assert [(row.name, row.unit, row.values) for row in volumes.throughput(said)] == [
        ("fio randread-4k", "IOPS", (1000.0,)),
        ("fio read-1m", "MiB/s", (4.0,)),
    ]


def test_what_the_job_file_says_is_what_is_run():
    """Every section named in the plan is one of the file that the reader is shown."""
    assert all(f"[{section}]" in volumes.FIO_JOB for section in volumes.FIO_SECTIONS)


def test_a_class_with_problems_is_neither_made_nor_tried():
    """Its problems stand in the findings instead."""
    own = site(classes=({"storage": "gone"},))
    assert trials(own=own).changes == ()
    assert isinstance(setting(own).classes[0], ClassCase) and setting(own).classes[0].problems
