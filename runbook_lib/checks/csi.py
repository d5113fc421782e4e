"""Judgement of Proxmox storage in Kubernetes: what the driver needs, what was tried, what is left over, what stands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from runbook_lib.checks import check, verdict
from runbook_lib.facts import (
    Ability,
    Attachment,
    Claim,
    ClaimDisk,
    ClassCase,
    Cluster,
    DriverPart,
    NodeMachine,
    PersistentVolume,
    PodTrouble,
    Release,
    Seen,
    Spoken,
)
from runbook_lib.model import Finding, Measurement, Status

DRIVER = "csi.proxmox.sinextra.dev"
CONTROLLERS = frozenset({"virtio-scsi-single", "virtio-scsi-pci"})
OWNER = 9999
SLOTS = 30
"""SCSI drives that a VM takes; the first is its own."""
USUAL_LIMIT = 24
STUCK_SECONDS = 600
GIB = 1024**3


# --- before anything ---------------------------------------------------------------------------------


@check(
    title="Proxmox VE is a cluster",
    remedy="Make one with `pvecm create <name>`, also of a single server: the driver takes the name as region.",
    source="proxmox-csi-plugin, install guide; GET /cluster/status",
)
def proxmox_is_a_cluster(cluster: Cluster) -> Iterator[Finding]:
    """One finding: the cluster's name, which the driver calls the region."""
    told = f"cluster {cluster.name}" if cluster.name else "a single server without a cluster"
    yield verdict(cluster.name is not None, cluster.name or "Proxmox VE", f"Proxmox VE is {told}")


@check(
    title="Every node is told with its machine",
    remedy="A host that is a worker itself cannot have volumes: give the pods with volumes VMs. Two VMs with one uuid "
    "are copies of each other: give one a new `smbios1` uuid.",
    source="proxmox-csi-plugin: the disk is plugged into the VM that is the node; SystemUUID and smbios1",
)
def nodes_are_machines(machines: Iterable[NodeMachine]) -> Iterator[Finding]:
    """One finding per node: the VM with its uuid. A Proxmox server as a worker is left out, and a warning."""
    for row in machines:
        if row.twins:
            others = ", ".join(str(vmid) for vmid in row.twins)
            yield verdict(False, row.node, f"{row.node} is VM {row.vmid} as well as {others}: one uuid, several VMs")
        elif row.vmid is not None:
            yield verdict(True, row.node, f"{row.node} is VM {row.vmid} ({row.vm_name}) on {row.host}")
        elif row.is_host:
            told = f"{row.node} is the Proxmox server {row.host} itself: no volume can ever be mounted there"
            yield verdict(Status.WARN, row.node, f"{told}, and it is left out")
        else:
            yield verdict(Status.WARN, row.node, f"{row.node} is no VM of this Proxmox cluster, and is left out")


@check(
    title="Nodes carry the labels of their place",
    remedy="Label the node with the region of the driver's configuration and the Proxmox node of its VM as zone; after "
    "a migration the zone changes. Volumes on local storages do not move with it.",
    source="proxmox-csi-plugin README, topology; Node labels topology.kubernetes.io/region and /zone",
)
def topology_is_right(machines: Iterable[NodeMachine], *, region: str = "") -> Iterator[Finding]:
    """One finding per node that is a VM: both labels as Proxmox VE has it; none yet is a skip, the plan adds them."""
    for row in machines:
        if row.vmid is None:
            continue
        if not row.region and not row.zone:
            yield verdict(None, row.node, f"{row.node} has no labels yet; they are planned")
            continue
        good = row.zone == row.host and row.region == region
        told = f"{row.region or 'no region'}/{row.zone or 'no zone'}"
        wanted = "" if good else f", its VM is in {region}/{row.host}"
        yield verdict(good, row.node, f"{row.node} is labelled {told}{wanted}")


@check(
    title="Machines have the right SCSI controller",
    remedy="Set `scsihw` to virtio-scsi-single and restart the VM: with another the disk never shows by its wwn.",
    source="proxmox-csi-plugin issues 605, 585, 106; GET /nodes/{node}/qemu/{vmid}/config",
)
def scsi_controller_is_virtio(machines: Iterable[NodeMachine]) -> Iterator[Finding]:
    """One finding per VM: VirtIO SCSI, single or not."""
    for row in machines:
        if row.vmid is not None:
            have = row.scsi_controller or "lsi, the default"
            yield verdict(row.scsi_controller in CONTROLLERS, row.node, f"VM {row.vmid} ({row.node}) has {have}")


@check(
    title="Machines have slots for volumes",
    remedy="Detach what is not needed, add workers, or lower the label "
    "csi.proxmox.sinextra.dev/max-volume-attachments to what is really free, so that the scheduler knows.",
    source="proxmox-csi-plugin: 24 volumes a node unless labelled, 30 SCSI drives a VM",
)
def slots_are_free(machines: Iterable[NodeMachine]) -> Iterator[Finding]:
    """One finding per VM: drives in use against what a VM takes and the driver promises."""
    for row in machines:
        if row.vmid is None:
            continue
        free = SLOTS - 1 - sum(1 for slot in row.slots if 1 <= slot < SLOTS)
        limit = row.max_volumes if row.max_volumes is not None else USUAL_LIMIT
        status = Status.FAIL if not free else Status.WARN if free < min(limit, USUAL_LIMIT) // 4 else Status.PASS
        yield verdict(status, row.node, f"VM {row.vmid} ({row.node}): {free} of {SLOTS - 1} slots are free", free=free)


@check(
    title="Node identities agree",
    remedy="A providerID cannot be changed: use `provider: capmox` in the driver and the cloud controller where "
    "CAPMOX made the nodes, and replace nodes of the other kind.",
    source="proxmox-csi-plugin issue 303; Node spec.providerID",
)
def provider_ids_agree(machines: Iterable[NodeMachine], *, provider: str = "default") -> Iterator[Finding]:
    """One finding per VM: a providerID, if any, of the form that the chosen provider understands."""
    for row in machines:
        if row.vmid is None:
            continue
        uuid = re.fullmatch(r"proxmox://[0-9a-fA-F-]{36}", row.provider_id)
        number = re.fullmatch(r"proxmox://[^/]+/\d+", row.provider_id)
        if not row.provider_id:
            good = provider == "capmox" or row.vm_name == row.node
            how = "by its uuid" if provider == "capmox" else f"by its name, VM {row.vm_name}"
            yield verdict(good, row.node, f"{row.node} has no providerID and is found {how}")
        else:
            good = bool(uuid) if provider == "capmox" else bool(number)
            yield verdict(good, row.node, f"{row.node}: {row.provider_id}, and provider is {provider}")


@check(
    title="Storage classes can work",
    remedy="Correct the class in `csi.classes`; a class that exists cannot be changed, only deleted and made anew.",
    source="proxmox-csi-plugin README, StorageClass parameters; GET /nodes/{node}/storage",
)
def classes_can_work(classes: Iterable[ClassCase], *, hosts: Sequence[str] = ()) -> Iterator[Finding]:
    """One finding per class: its parameters fit its storage, every zone sees it, and it is not the default."""
    for case in classes:
        lacking = sorted(set(hosts) - set(case.zones))
        where = "shared" if case.shared else "local"
        if case.problems:
            yield verdict(False, case.name, f"{case.name} on {case.storage}: {'; '.join(case.problems)}")
        elif case.differences:
            yield verdict(Status.WARN, case.name, f"{case.name} is there, otherwise: {'; '.join(case.differences)}")
        elif case.default:
            yield verdict(
                Status.WARN, case.name, f"{case.name} is the default class: claims that name none would land there"
            )
        elif lacking:
            told = f"{case.name} on {case.storage} ({where} {case.type}) is not seen on {', '.join(lacking)}"
            yield verdict(Status.WARN, case.name, told)
        else:
            yield verdict(True, case.name, f"{case.name} on {case.storage} ({where} {case.type}), in every zone")


@check(
    title="The driver verifies whom it talks to",
    remedy="Give the site's `proxmox.ca_file`: it is mounted into the driver. A pinned fingerprint is not enough for "
    "it, it knows authorities alone.",
    source="proxmox-csi-plugin config.yaml: insecure; Helm values extraVolumes",
)
def driver_verifies_tls(verifies: bool) -> Iterator[Finding]:
    """One finding: the certificate is verified, or the driver's configuration has to say insecure."""
    told = "verifies Proxmox VE's certificate" if verifies else "is told not to look at Proxmox VE's certificate"
    yield verdict(Status.PASS if verifies else Status.WARN, "config.yaml", f"the driver {told}")


@check(
    title="Nothing is in the way of the driver",
    remedy="See the reason; nothing was sent.",
    source="Sprint 3.2",
)
def driver_may_be_installed(problems: Sequence[str], planned: int) -> Iterator[Finding]:
    """One finding per reason against it, and one for what is planned."""
    for problem in problems:
        yield verdict(False, problem.partition(":")[0], problem)
    if not problems:
        told = f"{planned} changes are planned" if planned else "driver and cloud controller are there as wanted"
        yield verdict(True, "plan", told)


# --- installed ---------------------------------------------------------------------------------------


@check(
    title="The releases are installed",
    remedy="Read the message; `flux logs` and the chart's source tell the rest.",
    source="HelmRelease status; charts of proxmox-csi-plugin and proxmox-cloud-controller-manager",
)
def releases_are_installed(releases: Iterable[Release]) -> Iterator[Finding]:
    """One finding per release: Ready."""
    for row in releases:
        told = f"{row.name} {row.chart_version or ''} is {row.reason or 'not looked at yet'}"
        yield verdict(row.ready == "True", row.name, told if row.ready == "True" else f"{told}: {row.message}")


@check(
    title="The driver's pods run",
    remedy="See what its cause says.",
    source="Incident 7: a driver counts as installed when its pods run, not when its CSIDriver is registered",
)
def driver_pods_run(parts: Iterable[DriverPart]) -> Iterator[Finding]:
    """One finding per pod of driver and cloud controller: ready, or the cause and the first safe step."""
    for row in parts:
        subject = f"{row.namespace}/{row.name}"
        if row.ready:
            yield verdict(True, subject, f"{row.component} on {row.node}: ready, {row.restarts} restarts")
            continue
        words = " ".join((*row.reasons, row.message, row.log))
        cause = cause_of(words)
        told = f"{row.component} on {row.node or 'no node'}: {', '.join(row.reasons) or row.phase}"
        yield _with_cause(False, subject, told, words, cause)


@check(
    title="Every worker has the driver",
    remedy="Look at the node's driver pod: without region and zone labels the plugin does not register "
    "(issues 116, 349); with a nodeSelector that matches nothing there is no pod (issue 93).",
    source="CSINode spec.drivers; proxmox-csi-plugin issue 152: without topology keys nothing is scheduled",
)
def driver_is_registered(machines: Iterable[NodeMachine], parts: Sequence[DriverPart]) -> Iterator[Finding]:
    """One finding per schedulable node that is a VM: the driver is in its CSINode, with both topology keys.

    A skip where no pod of the driver is there at all.
    """
    for row in machines if parts else ():
        if row.vmid is None or not row.schedulable:
            continue
        if row.max_volumes is None and not row.topology_keys:
            yield verdict(False, row.node, f"{row.node} does not know the driver")
        else:
            keys = {key.rpartition("/")[2] for key in row.topology_keys}
            good = {"region", "zone"} <= keys
            told = f"{row.node}: up to {row.max_volumes} volumes, topology {', '.join(sorted(keys)) or 'none'}"
            yield verdict(good, row.node, told)


@check(
    title="The scheduler knows what is free",
    remedy="An empty list means that the driver may not read the storage: Datastore.Audit on /storage/<storage> "
    "(issues 350 and 93).",
    source="CSIStorageCapacity; proxmox-csi-plugin GetCapacity",
)
def capacity_is_told(room: Iterable[Mapping[str, object]], classes: Iterable[ClassCase]) -> Iterator[Finding]:
    """One finding per class that is there: a capacity above zero somewhere."""
    told: dict[str, list[int]] = defaultdict(list)
    for row in room:
        free = row.get("free_bytes")
        told[str(row["class"])].append(free if isinstance(free, int) else 0)
    for case in classes:
        if case.problems or not case.made:
            continue
        best = max(told.get(case.name, [0]))
        message = f"{case.name}: {len(told.get(case.name, []))} places, up to {best / GIB:.0f} GiB"
        yield verdict(Status.PASS if best else Status.WARN, case.name, message)


# --- what was tried ----------------------------------------------------------------------------------

WHAT = {
    "waits": "the claim waits for its first consumer",
    "bound": "claim and disk",
    "attached": "the disk is in the VM that is the node",
    "running": "the pod runs",
    "grown": "claim and disk have grown",
    "detached": "the disk left the VM",
    "gone": "volume and disk are gone with the claim",
    "kept": "the disk outlived its claim",
    "spread": "a volume each, on two nodes",
    "copied": "the snapshot is ready",
    "silent": "the node is known to be dead",
}


@check(
    title="The volumes did what they should",
    remedy="The cause stands in the finding; look at the claim's and the pod's events first, then at the driver's log.",
    source="Sprint 3.2; claims and pods on one side, VM configs and storage lists on the other",
)
def volumes_did_as_wanted(seen: Iterable[Seen]) -> Iterator[Finding]:
    """One finding per class, trial and state: reached, as both sides tell it. What was only asked for is no proof."""
    groups: dict[tuple[str, str, str], list[Seen]] = defaultdict(list)
    for row in seen:
        if row.stage != "refused":
            groups[row.storage_class, row.trial, row.stage].append(row)
    for (kind, trial, stage), rows in groups.items():
        bad = [row for row in rows if not row.reached]
        subject = f"{kind} {trial}: {WHAT[stage]}"
        if bad:
            yield _with_cause(False, subject, f"{bad[0].subject}: {bad[0].told}", bad[0].told, cause_of(bad[0].told))
        else:
            several = f" ({len(rows)} times)" if len(rows) > 1 else ""
            yield verdict(True, subject, f"{rows[-1].told}{several}", seconds=[row.seconds for row in rows])


@check(
    title="What was written is what is read",
    remedy="Stop: a volume that gives back something else must not be used. Look at the storage and the cache mode.",
    source="Sprint 3.2; SHA-256 of a pattern, written and read in pods",
)
def contents_are_intact(said: Iterable[Spoken]) -> Iterator[Finding]:
    """One finding per volume and reading: the checksum is the one that was written."""
    written: dict[tuple[str, str], str] = {}
    for row in said:
        key = row.trial, row.storage_class
        sums = re.findall(r"\b[0-9a-f]{64}\b", row.output)
        if row.what == "write":
            written[key] = sums[-1] if row.code == 0 and sums else ""
            yield verdict(
                bool(written[key]), f"{row.storage_class} {row.trial} write", _said(row, "written with its checksum")
            )
        elif row.what == "block":
            good = row.code == 0 and len(sums) >= 2 and len(set(sums)) == 1
            yield verdict(good, f"{row.storage_class} block", _said(row, "a device gives back what was put on it"))
        elif row.what in {"read", "moved", "again", "restored", "cloned", "survived"}:
            good = row.code == 0 and bool(sums) and sums[-1] == written.get(key)
            yield verdict(good, f"{row.storage_class} {row.trial} {row.what}", _said(row, READ_AS[row.what]))


READ_AS = {
    "read": "the checksum is equal",
    "moved": "the checksum is equal on the other node",
    "again": "the checksum is equal after it was attached again; its zone has no other worker to move to",
    "restored": "the restored copy has the same checksum",
    "cloned": "the clone has the same checksum",
    "survived": "the checksum is equal after the node died",
}


def _said(row: Spoken, well: str) -> str:
    if row.code == 0:
        return f"{row.pod}: {well}"
    return f"{row.pod}: {row.what} ended with {row.code}: {row.output.strip()[-200:]}"


@check(
    title="The pod sees what was given",
    remedy="The file system is grown by the node's plugin when it is mounted; see its log, and the condition "
    "FileSystemResizePending of the claim.",
    source="Sprint 3.2; df and blockdev in pods",
)
def pods_see_the_size(said: Iterable[Spoken], *, size_gib: float = 1) -> Iterator[Finding]:
    """One finding per volume: after it has grown the file system is larger than it was, the device is as asked for."""
    for row in said:
        if row.what == "size":
            found = re.search(r"(?:^|\s)(\d+)\s+\d+\s+\d+\s+\d+%", row.output)
            size = int(found[1]) / 1024**2 if found else 0.0
            told = f"the pod's file system has {size:.2f} GiB of {2 * size_gib:g}"
            yield verdict(row.code == 0 and size > size_gib * 1.2, f"{row.storage_class} file system", told)
        elif row.what == "block size":
            size = int(row.output.strip() or 0) / GIB if row.output.strip().isdigit() else 0.0
            told = f"the pod's device has {size:g} GiB of {size_gib:g}"
            yield verdict(row.code == 0 and size >= size_gib, f"{row.storage_class} device", told)


@check(
    title="A volume for several nodes is refused",
    remedy="A pod that really runs with ReadWriteMany here would let two nodes write one disk: look at the driver.",
    source="proxmox-csi-plugin: access modes; a disk is plugged into one VM",
)
def many_writers_are_refused(seen: Iterable[Seen]) -> Iterator[Finding]:
    """One finding per trial with ReadWriteMany: refused, in the driver's words."""
    for row in seen:
        if row.stage == "refused":
            told = f"ReadWriteMany is refused, because a disk is in one VM: {row.told}" if row.reached else row.told
            yield verdict(row.reached, f"{row.storage_class} ReadWriteMany", told)


@check(
    title="Copies are possible",
    remedy="See what it would take; without it volumes are copied by backups.",
    source="proxmox-csi-plugin 0.16: snapshots and clones as full copies, by an endpoint for root@pam alone",
)
def copies_are_possible(abilities: Iterable[Ability]) -> Iterator[Finding]:
    """One finding per class: snapshots and clones, or a skip that says what would make them possible."""
    for row in abilities:
        yield verdict(True if row.possible else None, row.storage_class, f"{row.name}: {row.why}")


@check(
    title="The trials of storage may begin",
    remedy="See the reason; a worker needs a VM, the driver and a storage that its zone has.",
    source="Sprint 3.2",
)
def trials_may_begin(problems: Sequence[str], planned: int) -> Iterator[Finding]:
    """One finding per class that cannot be tried, a skip, and one for what is planned."""
    for problem in problems:
        yield verdict(None, problem.partition(":")[0], f"not tried; {problem}")
    if planned:
        yield verdict(True, "trials", f"{planned} requests, each for a thing of its own name")


# --- how long it took --------------------------------------------------------------------------------


@check(
    title="Volumes and pods are there in time",
    remedy="Look at the readings: a slow bind is the storage, a slow attach is Proxmox VE's tasks, a slow start the "
    "image.",
    source="The sprint's targets: volume in 30 s, pod in 2 minutes",
)
def volumes_are_quick(measured: Iterable[Measurement]) -> Iterator[Finding]:
    """One finding per measurement with a limit: its p95; readings that never came count against it."""
    for row in measured:
        if row.threshold is None:
            continue
        worst, subject = row.percentile(95), f"{row.subject} {row.name}"
        if worst is None:
            yield verdict(False, subject, f"{subject}: it never came, {row.errors} times")
            continue
        good = worst <= row.threshold and not row.errors
        missed = f", {row.errors} never came" if row.errors else ""
        told = f"{subject}: p95 {worst:.1f} s of {row.threshold:g} s, {len(row.values)} readings{missed}"
        yield verdict(good, subject, told)


@check(
    title="It is as quick as in the run before",
    remedy="Compare the two runs' pages; something between them changed the storage, the network or the load.",
    source="The step's own measurements, this run against the last",
)
def no_slower_than_before(
    measured: Iterable[Measurement], before: Iterable[Measurement], *, slower_warn: float = 1.5
) -> Iterator[Finding]:
    """One finding per measurement that the last run has too: its median against the median then."""
    earlier = {(row.name, row.subject): row for row in before}
    for row in measured:
        then = earlier.get((row.name, row.subject))
        now, old = row.percentile(50), then.percentile(50) if then else None
        if now is None or not old:
            continue
        better = row.unit != "s"  # operations and bytes a second: more is better
        factor = (old / now if now else float("inf")) if better else now / old
        # Far below a second the readings are noise.
        slow = factor > slower_warn and (better or now - old > 1.0)
        told = f"{row.subject} {row.name}: median {now:.4g} {row.unit}, before {old:.4g}"
        yield verdict(Status.WARN if slow else Status.PASS, f"{row.subject} {row.name}", told)


# --- what belongs to nobody --------------------------------------------------------------------------


@check(
    title="No volume is orphaned on either side",
    remedy="A disk without a volume: look whose it was, then `pvesm free`. A volume without a disk: its data are gone; "
    "delete claim and volume. A dead attachment: see that the VM is really off, then delete the VolumeAttachment.",
    source="PersistentVolumes and VolumeAttachments against storage lists and VM configs",
)
def nothing_is_orphaned(
    volumes: Sequence[PersistentVolume],
    disks: Sequence[ClaimDisk],
    attachments: Iterable[Attachment],
    machines: Iterable[NodeMachine],
    *,
    at: float = 0.0,
) -> Iterator[Finding]:
    """One finding per orphan: disk, volume, drive or attachment; one that all agree when there is none."""
    own = [row for row in volumes if row.driver == DRIVER]
    orphans = list(_orphans(own, disks, [row for row in attachments if row.driver == DRIVER], list(machines), at))
    yield from orphans
    if not orphans and (own or disks):
        yield verdict(True, "volumes", f"{len(own)} volumes and {len(disks)} disks agree")


def _orphans(
    volumes: Sequence[PersistentVolume],
    disks: Sequence[ClaimDisk],
    attachments: Sequence[Attachment],
    machines: Sequence[NodeMachine],
    at: float,
) -> Iterator[Finding]:
    known, listed = {row.volid: row for row in volumes}, {row.volid for row in disks}
    by_node, by_name = {row.node: row for row in machines}, {row.name: row for row in volumes}
    at_nodes: dict[str, set[int | None]] = defaultdict(set)
    for row in attachments:
        machine = by_node.get(row.node)
        at_nodes[row.volume].add(machine.vmid if machine else None)
    for disk in disks:
        volume = known.get(disk.volid)
        if volume is None:
            used = f", and VM {disk.vms[0]} has it" if disk.vms else ""
            told = f"{disk.volid} ({disk.size_bytes / GIB:g} GiB) belongs to no PersistentVolume{used}"
            # Snapshots of the driver are disks without a volume too.
            status = Status.WARN if disk.volume.startswith("snapshot-") else Status.FAIL
            yield verdict(status, disk.volid, told)
            continue
        if len(disk.vms) > 1:
            told = f"{disk.volid} is in VMs {', '.join(map(str, disk.vms))} at once: two writers destroy it"
            yield verdict(False, disk.volid, told)
        elif disk.vms and disk.vms[0] not in at_nodes[volume.name]:
            told = f"VM {disk.vms[0]} has {disk.volid}, but nothing says that it is attached there"
            yield verdict(False, disk.volid, told)
    for volume in volumes:
        if volume.volid not in listed:
            told = f"{volume.name} ({volume.claim or 'no claim'}) has no disk: {volume.volid} is in no storage's list"
            yield verdict(False, volume.name, told)
        elif volume.phase == "Released" and volume.reclaim_policy == "Retain":
            told = f"{volume.name} is kept after its claim {volume.claim} went; nobody uses it"
            yield verdict(Status.WARN, volume.name, told)
        elif volume.phase == "Failed":
            told = f"{volume.name} could not be freed: {volume.message}"
            yield _with_cause(False, volume.name, told, volume.message, cause_of(volume.message))
    for row in attachments:
        machine, old = by_node.get(row.node), at and row.deleted and at - row.deleted > STUCK_SECONDS
        if row.volume not in by_name:
            yield verdict(False, row.name, f"attachment of {row.volume} to {row.node}: there is no such volume")
        elif machine is None or machine.vmid is None:
            yield verdict(False, row.name, f"{row.volume} is attached to {row.node}, which is no VM any more")
        elif row.deleting and (old or row.detach_error):
            told = f"{row.volume} does not come off {row.node}: {row.detach_error or 'its deletion does not end'}"
            yield _with_cause(
                False, row.name, told, row.detach_error, cause_of(row.detach_error or "VolumeAttachment stuck")
            )
        elif row.attach_error and not row.attached:
            told = f"{row.volume} does not come to {row.node}: {row.attach_error}"
            yield _with_cause(False, row.name, told, row.attach_error, cause_of(row.attach_error))


# --- what is wrong, and what to do first -------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """What words of a cluster mean, and the first safe step."""

    name: str
    words: re.Pattern[str]
    why: str
    first: str


def _cause(name: str, words: str, why: str, first: str) -> Cause:
    return Cause(name, re.compile(words, re.IGNORECASE | re.DOTALL), why, first)


CAUSES: tuple[Cause, ...] = (
    _cause("image", r"ImagePullBackOff|ErrImagePull|InvalidImageName",
           "the image cannot be pulled", "pull it on the node itself: if that works, it is the pod network"),
    _cause("token", r"401|authentication failure|invalid token|no such token|token .*expired",
           "Proxmox VE refuses the token", "compare the Secret's token id with `pveum user token list`"),
    _cause("privilege", r"403|permission check failed|Permission denied|not authorized",
           "the token lacks a privilege", "compare its rights with the role of step 13: `pveum user permissions`"),
    _cause("root only", r"only root can|user != root@pam",
           "Proxmox VE copies volumes for root@pam with a password alone", "give `csi.root_password`, or do without"),
    _cause("certificate", r"x509|certificate signed by unknown|failed to verify certificate",
           "the driver does not trust Proxmox VE's certificate", "give `proxmox.ca_file` and install again"),
    _cause("unreachable", r"no route to host|i/o timeout|connection refused|context deadline exceeded.*api2|"
           r"unreachable|dial tcp|59[56]",
           "Proxmox VE does not answer the driver", "ask from a pod on the controller's node; is the host on?"),
    _cause("config", r"Failed to create controller service|failed to read config|no such file or directory.*config|"
           r"no Proxmox clusters found|invalid cloud config",
           "the driver cannot read its configuration", "look at the Secret's keys and at the log's last line"),
    _cause("secret missing", r"secret .*not found|references non-existent secret key",
           "the Secret with the configuration is missing", "install again: the plan has it"),
    _cause("topology", r"failed to get (region|zone)|cannot find best region|no topology key|topology.*not found",
           "the node has no region or zone label", "label the node; the plan of this step does"),
    _cause("region unknown", r"proxmox cluster .* not found|region .* not found",
           "the region of the label is not in the driver's configuration", "compare both; they must be equal"),
    _cause("vm not found", r"virtual machine not found|vm '.*' not found|vm with uuid|nodes \".*\" not found",
           "the driver cannot tell which VM the node is",
           "compare the node's SystemUUID with the VM's smbios1, and its name; beside CAPMOX use provider: capmox"),
    _cause("storage missing", r"storage .* does not exist|No such storage|failed to get proxmox storage config|"
           r"storage .*not (available|online)",
           "the storage is not there, or not active on that node", "`pvesm status` on the node"),
    _cause("storage full", r"no space left|not enough free space|out of space|insufficient free space|"
           r"did not have enough free storage|thin pool.*full",
           "the storage is full", "free space first; do not delete volumes in a hurry"),
    _cause("storage refused", r"storage type .* (are|is) not supported|not zfs in replication|shared storage does not",
           "the driver does not work with this type of storage", "choose another storage for the class"),
    _cause("parameters", r"parameter .* must be|invalid parameter|parse parameters",
           "a parameter of the class is not what the driver reads", "correct the class; it has to be made anew"),
    _cause("no slot", r"no free lun found|exceed max volume count|max volume count",
           "the VM has no free drive left", "move pods away, or add a worker"),
    _cause("device missing", r"device .* (is )?not (found|exist|ready)|wwn-.*not|failed to find device|"
           r"/dev/disk/by-id.*not",
           "the drive was plugged, and the guest does not see it", "`scsihw` must be virtio-scsi; then look at dmesg"),
    _cause("locked", r"VM is locked|is locked \(|can't lock file|got timeout.*lock",
           "the VM is locked by another task", "wait for its backup or migration; `qm unlock` only when none runs"),
    _cause("unplug", r"still attached to VM|failed to unlink|unplug|detach.*time(d)? ?out",
           "the drive does not come out of the VM", "see the VM's task log; is the pod's mount gone on the node?"),
    _cause("multi attach", r"Multi-Attach error",
           "another node still has the volume", "is the old pod gone? Of a dead node: switch the VM off, and wait six "
           "minutes, or taint the node node.kubernetes.io/out-of-service"),
    _cause("many writers", r"VolumeCapability not supported|MULTI_NODE|ReadWriteMany",
           "the driver gives a volume to one node at a time", "use ReadWriteOnce, or another storage for shared files"),
    _cause("expand", r"cannot resize unpublished|unable to resize",
           "a volume grows only while it is attached", "start a pod that uses it"),
    _cause("waits for consumer", r"WaitForFirstConsumer|waiting for first consumer|waiting for pod",
           "the claim waits for its first pod", "that is as it should be: make the pod"),
    _cause("nowhere to run", r"volume node affinity conflict|node\(s\) had volume node affinity|"
           r"no nodes available|didn't match Pod's node affinity|didn't find available persistent volumes",
           "no node that may have the volume can take the pod", "a local volume stays in its zone: is there a worker?"),
    _cause("no class", r"storageclass.*not found|no persistent volumes available.*no storage class",
           "there is no such StorageClass", "compare the claim's class with `kubectl get storageclass`"),
    _cause("driver absent", r"driver name .* not found in the list|CSINode .* does not contain driver|"
           r"not registered",
           "the node does not know the driver", "look at the driver's pod on that node"),
    _cause("nobody provisions", r"ExternalProvisioning|waiting for (a volume to be created|the external provisioner)",
           "the driver's controller has not answered", "look at the controller's pod and its log"),
    _cause("file system", r"mount failed|wrong fs type|bad superblock|fsck|mkfs",
           "the file system on the volume cannot be mounted", "do not format it; attach it and look with `fsck -n`"),
    _cause("attach", r"failed to attach|AttachVolume.Attach failed|unable to attach",
           "Proxmox VE did not plug the drive", "see the VM's last qmconfig task"),
    _cause("stuck", r"VolumeAttachment stuck|does not end",
           "the attachment's deletion does not end", "see that the VM has no such drive, then take the finalizer off"),
    _cause("crash", r"CrashLoopBackOff|RunContainerError|Error", "the container ends again and again", "read its log"),
    _cause("unschedulable", r"Unschedulable|FailedScheduling|Insufficient",
           "no node can take the pod", "read the scheduler's message node by node"),
)  # fmt: skip
"""Words of claims, attachments, pods and logs, the more telling ones first."""


def cause_of(words: str) -> Cause | None:
    """The first cause whose words are there; None of words that nobody knows."""
    return next((cause for cause in CAUSES if cause.words.search(words or "")), None)


def _with_cause(status: Status | bool, subject: str, message: str, words: str, cause: Cause | None) -> Finding:
    if cause is None:
        return verdict(status, subject, message, said=words[-500:])
    told = f"{message}; {cause.why}"
    return verdict(status, subject, told, remedy=f"First: {cause.first}.", cause=cause.name, said=words[-500:])


@check(
    title="No claim waits in vain",
    remedy="Read the events of claim and pod.",
    source="PersistentVolumeClaims of the driver's classes with their events",
)
def no_claim_waits(claims: Iterable[Claim], *, classes: Sequence[str] = ()) -> Iterator[Finding]:
    """One finding per claim of the driver: bound; one that waits for its first consumer is a skip, as it should be."""
    for row in claims:
        if row.storage_class not in classes:
            continue
        subject = f"{row.namespace}/{row.name}"
        words = f"{row.reason} {row.message}"
        if row.phase == "Bound":
            yield verdict(True, subject, f"{subject} is bound to {row.volume}")
        elif row.phase == "Lost":
            yield verdict(False, subject, f"{subject} has lost its volume {row.volume}", remedy="First: look whether "
                          "the disk is still there before anything is deleted.")  # fmt: skip
        elif row.reason == "WaitForFirstConsumer" or (not row.reason and row.binding_mode == "WaitForFirstConsumer"):
            yield verdict(None, subject, f"{subject} waits for its first consumer, as it should")
        else:
            yield _with_cause(False, subject, f"{subject} is {row.phase}: {row.message}", words, cause_of(words))


@check(
    title="No pod waits for its volume",
    remedy="Read the pod's events, then the attachment's, then the driver's log.",
    source="Pods with claims and their events",
)
def no_pod_waits_for_a_volume(pods: Iterable[PodTrouble]) -> Iterator[Finding]:
    """One finding per pod with a claim that does not run: its cause and the first safe step."""
    for row in pods:
        subject = f"{row.namespace}/{row.name}"
        words = f"{row.reason} {row.message}"
        if not row.message:
            yield verdict(None, subject, f"{subject} has only just begun to wait for {', '.join(row.claims)}")
            continue
        yield _with_cause(False, subject, f"{subject} waits: {row.message}", words, cause_of(words))


@check(
    title="Nothing of the trials is left",
    remedy="Run `runbook sweep`, then look again; a disk whose volume is gone is freed with `pvesm free`.",
    source="Sprint 3.2; PersistentVolumes and storage lists after the clean-up",
)
def trials_left_nothing(
    seen: Iterable[Seen],
    volumes: Iterable[PersistentVolume],
    disks: Iterable[ClaimDisk],
    attachments: Iterable[Attachment],
    *,
    home: str = "",
) -> Iterator[Finding]:
    """One finding per side: no volume, attachment or disk of this run's claims is there; a skip without trials."""
    rows, seen = list(volumes), list(seen)
    if not seen:
        return
    left = [row for row in rows if row.claim.partition("/")[0] == home]
    held = {row.name for row in left}
    known = {row.volid for row in rows}
    tried = {found[0] for row in seen for found in re.finditer(r"\S+:\S*vm-9999-pvc-[0-9a-f-]{36}\S*", row.told)}
    disks_left = sorted(row.volid for row in disks if row.volid in tried and (row.volid not in known or left))
    stuck = [row for row in attachments if row.volume in held]
    for what, found in (
        ("volumes", sorted(held)),
        ("attachments", sorted(row.name for row in stuck)),
        ("disks", disks_left),
    ):
        told = f"left over: {', '.join(found)}" if found else f"no {what} of this run"
        yield verdict(not found, what, told)
