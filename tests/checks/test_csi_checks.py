"""Storage of pods as it is judged: machines and places, what was tried, orphans, and the causes of what waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from runbook_lib.checks import csi
from runbook_lib.facts import (
    Attachment,
    Claim,
    ClaimDisk,
    Cluster,
    DriverPart,
    NodeMachine,
    PersistentVolume,
    PodTrouble,
    Seen,
    Spoken,
)
from runbook_lib.model import Measurement, Status

PASS, FAIL, WARN, SKIP = Status.PASS, Status.FAIL, Status.WARN, Status.SKIP
NODE = NodeMachine("w", "True", True, "u", "", "lab", "pve1", vmid=111, vm_name="w", host="pve1",
                   scsi_controller="virtio-scsi-single", slots=(0,), max_volumes=24,
                   topology_keys=("topology.kubernetes.io/region", "topology.kubernetes.io/zone"))  # fmt: skip
SUM, OTHER = "a" * 64, "b" * 64
DISK = "nas:9999/vm-9999-pvc-1.raw"
VOLUME = PersistentVolume("pvc-1", "Bound", csi.DRIVER, "lab//nas/9999/vm-9999-pvc-1.raw", "c", "ns/data", "Delete", 1)
HELD = ClaimDisk("", "nas", DISK, 1 << 30, "pvc-1", (111,), ("scsi1",))
ATTACHED = Attachment("csi-1", csi.DRIVER, "w", "pvc-1", True, False)


def statuses(findings: Any) -> list[Status]:
    """The statuses in order."""
    return [finding.status for finding in findings]


@pytest.mark.parametrize(("name", "status"), [("lab", PASS), (None, FAIL)])
def test_a_single_server_without_a_cluster_is_not_enough(name: str | None, status: Status):
    """The driver takes the cluster's name as region."""
    assert statuses(csi.proxmox_is_a_cluster(Cluster(name, None, ()))) == [status]


@pytest.mark.parametrize(
    ("row", "status", "words"),
    [
        ({}, PASS, "w is VM 111"),
        ({"vmid": None, "is_host": True}, WARN, "no volume can ever be mounted there"),
        ({"vmid": None}, WARN, "is no VM of this Proxmox cluster"),
        ({"twins": (112,)}, FAIL, "one uuid, several VMs"),
    ],
)
def test_a_host_as_worker_is_left_out_with_the_reason(row: Mapping[str, Any], status: Status, words: str):
    """A node is its VM by uuid, and only one VM may have that."""
    [found] = csi.nodes_are_machines([replace(NODE, **row)])
    assert found.status is status and words in found.message


@pytest.mark.parametrize(
    ("row", "status"),
    [({}, PASS), ({"zone": "pve2"}, FAIL), ({"region": "other"}, FAIL), ({"zone": ""}, FAIL),
     ({"region": "", "zone": ""}, SKIP)],
)  # fmt: skip
def test_labels_tell_where_the_machine_really_is(row: Mapping[str, Any], status: Status):
    """None yet is planned; a wrong one is a failure."""
    assert statuses(csi.topology_is_right([replace(NODE, **row)], region="lab")) == [status]


@pytest.mark.parametrize(
    ("kind", "status"), [("virtio-scsi-single", PASS), ("virtio-scsi-pci", PASS), ("lsi", FAIL), ("", FAIL)]
)
def test_only_virtio_scsi_shows_disks_by_their_wwn(kind: str, status: Status):
    """Proxmox VE's own default is not among them."""
    assert statuses(csi.scsi_controller_is_virtio([replace(NODE, scsi_controller=kind)])) == [status]


@pytest.mark.parametrize(("used", "status"), [(1, PASS), (23, PASS), (25, WARN), (30, FAIL)])
def test_slots_are_counted_against_what_a_machine_takes(used: int, status: Status):
    """Thirty drives, of which the first is the machine's own."""
    assert statuses(csi.slots_are_free([replace(NODE, slots=tuple(range(used)))])) == [status]


@pytest.mark.parametrize(
    ("provider_id", "provider", "status"),
    [
        ("", "default", PASS),
        ("proxmox://lab/111", "default", PASS),
        ("proxmox://lab/111", "capmox", FAIL),
        ("proxmox://6f1d2a10-0c5e-4c52-9a3e-0000000c0111", "capmox", PASS),
        ("proxmox://6f1d2a10-0c5e-4c52-9a3e-0000000c0111", "default", FAIL),
    ],
)
def test_two_forms_of_provider_ids_do_not_mix(provider_id: str, provider: str, status: Status):
    """CAPMOX' form is by uuid, the driver's own by region and number."""
    assert statuses(csi.provider_ids_agree([replace(NODE, provider_id=provider_id)], provider=provider)) == [status]


def test_a_driver_that_is_not_there_is_a_skip_and_one_that_does_not_register_a_failure():
    """A registered CSIDriver alone proves nothing."""
    part = DriverPart("csi-proxmox", "p", "w", "node", (), "Running", True, 0, ())
    blind = replace(NODE, max_volumes=None, topology_keys=())
    assert statuses(csi.driver_is_registered([blind], [])) == [SKIP]
    assert statuses(csi.driver_is_registered([blind], [part])) == [FAIL]
    assert statuses(csi.driver_is_registered([replace(NODE, topology_keys=())], [part])) == [FAIL]
    assert statuses(csi.driver_is_registered([NODE], [part])) == [PASS]


def test_a_driver_pod_tells_its_cause_and_the_first_step():
    """What the log says decides, not that the container crashes."""
    part = DriverPart("csi-proxmox", "p", "w", "node", (), "Running", False, 9, ("CrashLoopBackOff",),
                      log="rpc error: code = Internal desc = failed to get region for node w")  # fmt: skip
    [found] = csi.driver_pods_run([part])
    assert found.status is FAIL and "no region or zone label" in found.message
    assert found.remedy.startswith("First: label the node")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("ImagePullBackOff: Back-off pulling image", "image"),
        ("401 authentication failure", "token"),
        ("403 Permission check failed (/storage/nas, Datastore.AllocateSpace)", "privilege"),
        ("failed to copy pvc: only root can do this", "root only"),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", "certificate"),
        ("dial tcp 10.0.0.1:8006: connect: connection refused", "unreachable"),
        ("Failed to create controller service: failed to read config", "config"),
        ("failed to get zone for node worker-1", "topology"),
        ("proxmox cluster east not found", "region unknown"),
        ("vm 'worker-9' not found", "vm not found"),
        ("failed to get proxmox storage config: not found", "storage missing"),
        ("unable to create disk: no space left on device", "storage full"),
        ("error: shared storage type cifs, pbs are not supported", "storage refused"),
        ("rpc error: code = InvalidArgument desc = parameter storage must be provided", "parameters"),
        ("no free lun found", "no slot"),
        ("device /dev/disk/by-id/wwn-0x5056432d49443031 is not found", "device missing"),
        ("VM is locked (backup)", "locked"),
        ("volume is still attached to VM 111", "unplug"),
        ('Multi-Attach error for volume "pvc-1"', "multi attach"),
        ("VolumeCapability not supported", "many writers"),
        ("cannot resize unpublished volumeID", "expand"),
        ("WaitForFirstConsumer waiting for first consumer to be created before binding", "waits for consumer"),
        ("1 node(s) had volume node affinity conflict", "nowhere to run"),
        ('storageclass.storage.k8s.io "proxmox" not found', "no class"),
        ("driver name csi.proxmox.sinextra.dev not found in the list of registered CSI drivers", "driver absent"),
        ("ExternalProvisioning Waiting for a volume to be created", "nobody provisions"),
        ("mount failed: exit status 32", "file system"),
        ("AttachVolume.Attach failed", "attach"),
    ],
)
def test_words_of_the_cluster_have_a_cause(words: str, name: str):
    """Each signature of the driver, its sidecars and the scheduler is known."""
    found = csi.cause_of(words)
    assert found is not None and found.name == name
    assert found.first and found.why


def test_unknown_words_have_no_cause():
    """Nothing is made up; the words themselves are the finding."""
    assert csi.cause_of("the moon is full") is None
    [found] = csi.no_pod_waits_for_a_volume([PodTrouble("n", "p", "w", "Pending", ("c",), "Odd", "the moon is full")])
    assert found.status is FAIL and "the moon is full" in found.message


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"phase": "Bound"}, PASS),
        ({"phase": "Lost"}, FAIL),
        ({"reason": "WaitForFirstConsumer", "message": "waiting"}, SKIP),
        ({"binding_mode": "WaitForFirstConsumer"}, SKIP),
        ({"reason": "ProvisioningFailed", "message": "403 Permission check failed"}, FAIL),
    ],
)
def test_a_claim_without_a_pod_waits_as_it_should(row: Mapping[str, Any], status: Status):
    """Everything else that is not bound is a failure."""
    claim = Claim("n", "c", "Pending", "proxmox", "", (), "Filesystem", 1, 0, None)
    assert statuses(csi.no_claim_waits([replace(claim, **row)], classes=["proxmox"])) == [status]


def test_a_claim_of_another_driver_is_not_ours_to_judge():
    """Only the classes of this driver are looked at."""
    claim = Claim("n", "c", "Pending", "replicated", "", (), "Filesystem", 1, 0, None)
    assert statuses(csi.no_claim_waits([claim], classes=["proxmox"])) == [SKIP]


def test_both_sides_that_agree_are_one_finding():
    """Volume, disk, drive and attachment."""
    [found] = csi.nothing_is_orphaned([VOLUME], [HELD], [ATTACHED], [NODE])
    assert found.status is PASS


@pytest.mark.parametrize(
    ("volumes", "disks", "attachments", "status", "words"),
    [
        ([], [HELD], [], FAIL, "belongs to no PersistentVolume, and VM 111 has it"),
        ([], [replace(HELD, volume="snapshot-1", vms=())], [], WARN, "belongs to no PersistentVolume"),
        ([VOLUME], [], [], FAIL, "has no disk"),
        ([VOLUME], [replace(HELD, vms=(111, 112))], [ATTACHED], FAIL, "two writers destroy it"),
        ([VOLUME], [HELD], [], FAIL, "nothing says that it is attached there"),
        ([VOLUME], [HELD], [ATTACHED, replace(ATTACHED, name="x", volume="pvc-9")], FAIL, "there is no such volume"),
        ([VOLUME], [replace(HELD, vms=())], [replace(ATTACHED, node="dead")], FAIL, "is no VM any more"),
        ([VOLUME], [HELD], [replace(ATTACHED, deleting=True, deleted=100)], FAIL, "its deletion does not end"),
        ([replace(VOLUME, phase="Released", reclaim_policy="Retain")], [replace(HELD, vms=())], [], WARN, "is kept"),
    ],
)
def test_an_orphan_on_either_side_is_found(volumes: Any, disks: Any, attachments: Any, status: Status, words: str):
    """Disk without a volume, volume without a disk, drive nobody asked for, attachment to nobody, one that is stuck."""
    [found] = csi.nothing_is_orphaned(volumes, disks, attachments, [NODE], at=10_000.0)
    assert found.status is status and words in found.message


def spoken(what: str, output: str, code: int | None = 0) -> Spoken:
    """What a command in a pod said."""
    return Spoken("follow", "c", what, "p", code, output)


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (spoken("moved", f"/data/pattern: OK\n{SUM}  /data/pattern"), PASS),
        (spoken("moved", f"/data/pattern: OK\n{OTHER}  /data/pattern"), FAIL),
        (spoken("moved", "sha256sum: FAILED", 1), FAIL),
        (spoken("moved", "", None), FAIL),
        (spoken("block", f"{SUM}  /tmp/pattern\n{SUM}  /tmp/back"), PASS),
        (spoken("block", f"{SUM}  /tmp/pattern\n{OTHER}  /tmp/back"), FAIL),
    ],
)
def test_another_checksum_is_a_failure_however_the_command_ended(row: Spoken, status: Status):
    """What is read is compared with what was written, not with what the command claims."""
    assert statuses(csi.contents_are_intact([spoken("write", f"{SUM}  /data/pattern"), row])) == [PASS, status]


@pytest.mark.parametrize(("kib", "status"), [("2064360", PASS), ("1020000", FAIL)])
def test_growth_counts_in_the_pod(kib: str, status: Status):
    """A claim that says two GiB and a file system of one are not the same."""
    line = f"/dev/sdb {kib} 16412 1000000 1% /data"
    assert statuses(csi.pods_see_the_size([spoken("size", line)], size_gib=1)) == [status]


def test_a_state_that_was_not_reached_has_its_cause():
    """The words of the cluster become the cause and the first step."""
    seen = [Seen("follow", "c", "bound", "data", False, 9.0, "Pending; ProvisioningFailed: no space left on device")]
    [found] = csi.volumes_did_as_wanted(seen)
    assert found.status is FAIL and "the storage is full" in found.message
    assert "free space first" in found.remedy


def test_time_counts_what_never_came():
    """Readings within the limit do not excuse one that is missing."""
    good = Measurement("pod start", "s", (3.0, 4.0), subject="c", threshold=120)
    rows = [good, replace(good, errors=1), replace(good, values=(), errors=2), replace(good, values=(130.0,))]
    assert statuses(csi.volumes_are_quick(rows)) == [PASS, FAIL, FAIL, FAIL]


@pytest.mark.parametrize(
    ("unit", "then", "now", "status"),
    [("s", 10.0, 11.0, PASS), ("s", 10.0, 20.0, WARN), ("s", 0.1, 0.3, PASS), ("IOPS", 1000.0, 500.0, WARN),
     ("IOPS", 500.0, 1000.0, PASS)],
)  # fmt: skip
def test_slower_than_before_is_a_warning(unit: str, then: float, now: float, status: Status):
    """More seconds or fewer operations; what takes no time is noise."""
    rows = [[Measurement("x", unit, (value,), subject="c")] for value in (now, then)]
    assert statuses(csi.no_slower_than_before(*rows)) == [status]


def test_left_overs_are_named_on_each_side():
    """A volume of the run's namespace, its attachment and its disk."""
    seen = [Seen("follow", "c", "attached", "data", True, 1.0, "VM 111 (w) has nas:9999/vm-9999-pvc-"
                 "00000000-0000-4000-8000-000000000001.raw as scsi1")]  # fmt: skip
    mine = replace(VOLUME, claim="home/data")
    disk = replace(HELD, volid="nas:9999/vm-9999-pvc-00000000-0000-4000-8000-000000000001.raw")
    assert statuses(csi.trials_left_nothing(seen, [mine], [disk], [ATTACHED], home="home")) == [FAIL, FAIL, FAIL]
    assert statuses(csi.trials_left_nothing(seen, [], [], [], home="home")) == [PASS, PASS, PASS]
    assert statuses(csi.trials_left_nothing([], [], [], [], home="home")) == [SKIP]
