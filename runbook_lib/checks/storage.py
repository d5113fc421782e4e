"""Judgement of Proxmox VE storage: active, roomy, thin pools, the content types Kubernetes needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, graded, verdict
from runbook_lib.facts import Storage, TestVolume, ThinPool
from runbook_lib.model import Finding, Status

MIB, GIB = 1024**2, 1024**3

FILES = frozenset({"dir", "nfs", "cifs", "btrfs", "glusterfs"})
"""Types whose disks are files, with a format."""

LINKED = frozenset({"lvmthin", "zfspool", "rbd", "zfs", *FILES})
"""Types on which a machine may share its template's disk."""

NO_ALLOCATION = frozenset({"iscsi", "iscsidirect", "esxi", "pbs"})
"""Types that hand out what others have made."""

_QCOW2 = "snapshots of qcow2 disks, none of raw ones"
SNAPSHOTS = {
    **dict.fromkeys(("lvmthin", "zfspool", "rbd", "zfs", "btrfs"), "snapshots of every disk"),
    **dict.fromkeys(("dir", "nfs", "cifs", "glusterfs"), _QCOW2),
}
"""What the storage types of Proxmox VE can snapshot; a type that is not named here cannot."""


@check(
    title="Every enabled storage is active",
    remedy="See `pvesm status` on the node; a network storage may have lost its server.",
    source="Sprint 1.1; GET /nodes/{node}/storage",
)
def storage_is_active(storages: Iterable[Storage]) -> Iterator[Finding]:
    """One finding per storage and node; a disabled storage is skipped, by its own word."""
    for storage in storages:
        subject = f"{storage.node}/{storage.name}"
        if not storage.enabled:
            yield verdict(None, subject, f"{subject} is disabled")
        else:
            yield verdict(storage.active, subject, f"{subject} ({storage.type}) is {_active(storage)}")


@check(
    title="No storage is close to full",
    remedy="Free space or add a disk; see `pvesm status` on the node.",
    source="Sprint 1.1; GET /nodes/{node}/storage",
)
def storage_has_room(
    storages: Iterable[Storage], *, storage_warn: float = 0.80, storage_fail: float = 0.90
) -> Iterator[Finding]:
    """One finding per storage: used/total, a fraction in [0, 1]. A shared storage is judged once."""
    seen: set[str] = set()
    for storage in storages:
        if storage.shared and storage.name in seen:
            continue
        subject = storage.name if storage.shared else f"{storage.node}/{storage.name}"
        if not storage.active or not storage.total_bytes or storage.used_bytes is None:
            yield verdict(None, subject, f"{subject} gave no figures")
            continue
        seen.add(storage.name)
        used = storage.used_bytes / storage.total_bytes
        yield graded(
            used,
            subject,
            f"{subject} is {used:.0%} full of {storage.total_bytes / GIB:.1f} GiB",
            warn_at=storage_warn,
            fail_at=storage_fail,
            used=used,
        )


@check(
    title="No thin pool is close to full",
    remedy="Extend with `lvextend` (metadata: `--poolmetadatasize`); a full pool stops every guest on it.",
    source="GET /nodes/{node}/disks/lvmthin",
)
def thin_pool_has_room(
    pools: Iterable[ThinPool], *, storage_warn: float = 0.80, storage_fail: float = 0.90
) -> Iterator[Finding]:
    """Two findings per thin pool: data and metadata."""
    for pool in pools:
        for part, used, size in (
            ("data", pool.used_bytes, pool.size_bytes),
            ("metadata", pool.metadata_used_bytes, pool.metadata_bytes),
        ):
            subject = f"{pool.node}/{pool.volume_group}/{pool.name} {part}"
            fraction = used / size if size else None
            shown = "unknown" if fraction is None else f"{fraction:.0%}"
            yield graded(fraction, subject, f"{subject} is {shown} full", warn_at=storage_warn, fail_at=storage_fail)


@check(
    title="The content types Kubernetes needs are there",
    remedy="Enable the content on a storage: `pvesm set <storage> --content …`, or add a storage that can hold it.",
    source="Sprint 1.1 and 2.1; CAPMOX needs images and iso; GET /nodes/{node}/storage",
)
def content_types_are_served(
    storages: Sequence[Storage], *, wanted: Sequence[str] = ("images", "iso")
) -> Iterator[Finding]:
    """One finding per content type and node: the storages that hold it, active."""
    by_node: dict[str, list[Storage]] = defaultdict(list)
    for storage in storages:
        by_node[storage.node].append(storage)
    for node, rows in sorted(by_node.items()):
        for content in wanted:
            holders = sorted(row.name for row in rows if row.active and content in row.content)
            message = f"{node}: {content} on {', '.join(holders)}" if holders else f"{node}: no storage holds {content}"
            yield verdict(bool(holders), f"{node} {content}", message)


@check(
    title="There is room for the planned volumes",
    remedy="Free space, or lower `budget` and `requires.storage_free_gib` in the site's parameters.",
    source="Sprint 1.1; GET /nodes/{node}/storage",
)
def room_for_volumes(storages: Sequence[Storage], *, storage_free_gib: float = 50) -> Iterator[Finding]:
    """One finding: the largest free space on a storage that holds images."""
    rooms = [row for row in storages if row.active and "images" in row.content and row.available_bytes is not None]
    if not rooms:
        return
    best = max(rooms, key=lambda row: row.available_bytes or 0)
    free = (best.available_bytes or 0) / GIB
    subject = f"{best.node}/{best.name}"
    message = f"{subject} has {free:.1f} GiB free; the site requires {storage_free_gib:g}"
    yield verdict(free >= storage_free_gib, subject, message)


@check(
    title="A test volume was allocated",
    remedy="See the message; the token needs Datastore.AllocateSpace on /storage/<storage>.",
    source="Sprint 1.2; POST and GET /nodes/{node}/storage/{storage}/content",
)
def test_volumes_are_listed(volumes: Iterable[TestVolume]) -> Iterator[Finding]:
    """One finding per volume that was asked for: the storage lists it, with a size."""
    for volume in volumes:
        if volume.found is None:
            yield verdict(False, volume.volid, f"{volume.volid} is not in the list of {volume.node}")
        else:
            size = volume.found.size_bytes
            message = f"{volume.node} lists {volume.volid} with {size / MIB:.0f} MiB as {volume.found.format}"
            yield verdict(size > 0, volume.volid, message)


@check(
    title="The test volume is gone again",
    remedy="Run `runbook sweep`, then look for the volume with `pvesm list <storage>`.",
    source="Sprint 1.2; DELETE and GET /nodes/{node}/storage/{storage}/content",
)
def test_volumes_are_gone(volumes: Iterable[TestVolume]) -> Iterator[Finding]:
    """One finding per volume: the storage no longer lists it."""
    for volume in volumes:
        left = volume.found is not None
        message = f"{volume.volid} is {'still in the list' if left else 'gone from the list'} of {volume.node}"
        yield verdict(not left, volume.volid, message)


@check(
    title="Storages are there on every node",
    remedy="Take the storage's `nodes` restriction away (Datacenter, Storage), or plan for volumes that do not move.",
    source="Sprint 2.1; GET /nodes/{node}/storage",
)
def storages_agree(storages: Sequence[Storage], *, nodes: Sequence[str] | None = None) -> Iterator[Finding]:
    """One finding per enabled storage that holds images or ISO images: on every node of the site, else a warning."""
    storages = _on(nodes, storages)
    nodes = sorted({row.node for row in storages})
    for name, rows in _by_name(row for row in storages if {"images", "iso"} & set(row.content)).items():
        lacking = [node for node in nodes if node not in {row.node for row in rows}]
        told = f"not on {', '.join(lacking)}" if lacking else "on every node"
        yield verdict(Status.WARN if lacking else Status.PASS, name, f"{name} ({rows[0].type}) is {told}")


@check(
    title="The chosen storage has room on each node",
    remedy="Free space there, name another storage in `names.disk_storage`, or lower `requires.storage_free_gib`.",
    source="Sprint 2.1; GET /nodes/{node}/storage",
)
def chosen_storage_has_room(
    storages: Iterable[Storage], *, disk_storage: str | None = None, storage_free_gib: float = 50
) -> Iterator[Finding]:
    """One finding per node: free space on the storage that machines and volumes get; a shared one counts once."""
    rows = [row for row in storages if row.name == disk_storage and row.available_bytes is not None]
    for row in rows[:1] if rows and rows[0].shared else rows:
        free = (row.available_bytes or 0) / GIB
        subject = row.name if row.shared else f"{row.node}/{row.name}"
        message = f"{subject} has {free:.1f} GiB free; the site requires {storage_free_gib:g}"
        yield verdict(free >= storage_free_gib, subject, message)


@check(
    title="Disks can be snapshotted",
    remedy="Use lvmthin, zfspool or rbd, or qcow2 on a file storage; on plain LVM a snapshot is not possible before 9.",
    source="Sprint 2.1; Proxmox VE storage documentation, table of storage types",
)
def snapshots_are_possible(storages: Iterable[Storage]) -> Iterator[Finding]:
    """One finding per storage that holds images, from what its type can do; none at all is a warning."""
    for name, rows in _by_name(row for row in storages if "images" in row.content).items():
        able = SNAPSHOTS.get(rows[0].type, "")
        status = Status.PASS if able else Status.WARN
        yield verdict(status, name, f"{name} ({rows[0].type}): {able or 'no snapshots'}")


@check(
    title="There is a storage fit for CSI",
    remedy="Add a block storage with content `images` to every node and name it in `names.disk_storage`.",
    source="proxmox-csi-plugin documentation: storages, topology, snapshots",
)
def fit_for_csi(
    storages: Sequence[Storage], *, disk_storage: str | None = None, nodes: Sequence[str] | None = None
) -> Iterator[Finding]:
    """One finding per storage that holds images: where its volumes can follow a pod. Only the chosen one must fit."""
    storages = _on(nodes, storages)
    hosts = {row.node for row in storages}
    found = _by_name(row for row in storages if "images" in row.content)
    for name, rows in found.items():
        kind, there = rows[0].type, {row.node for row in rows if row.active}
        lacking = sorted(hosts - there)
        snapshots = "no CSI snapshots" if rows[0].shared else "CSI snapshots as full copies, with root's password"
        if kind in NO_ALLOCATION:
            why, status = "volumes cannot be allocated on it", Status.SKIP
        elif lacking:
            why, status = f"not usable on {', '.join(lacking)}: pods with its volumes stay off them", Status.WARN
        elif rows[0].shared:
            why, status = f"shared: a volume follows its pod to any node; {snapshots}", Status.PASS
        else:
            why, status = f"zonal: a volume stays on its node, and its pods with it; {snapshots}", Status.PASS
        if name == disk_storage and status is not Status.PASS:
            status = Status.FAIL if status is Status.SKIP or not there else status
        yield verdict(status, name, f"{name} ({kind}): {why}")
    if disk_storage not in found:
        told = f"{disk_storage} holds no images" if disk_storage else "no storage that every node has holds images"
        yield verdict(False, disk_storage or "", told)


@check(
    title="There is a storage fit for CAPMOX",
    remedy="Enable `iso` on a storage of every node (`pvesm set <storage> --content …`) and name a disk storage that "
    "every node has.",
    source="CAPMOX documentation and source: bootstrap ISO by upload, clone full or linked",
)
def fit_for_capmox(
    storages: Sequence[Storage], *, disk_storage: str | None = None, nodes: Sequence[str] | None = None
) -> Iterator[Finding]:
    """One finding per node for the bootstrap ISO, and one for the chosen disk storage: how it clones, which format."""
    storages = _on(nodes, storages)
    nodes = sorted({row.node for row in storages})
    for node in nodes:
        isos = [
            row.name for row in storages if row.node == node and row.active and row.enabled and "iso" in row.content
        ]
        told = f"the bootstrap ISO goes to {isos[0]}, the first that takes it" if isos else "no storage takes an ISO"
        yield verdict(bool(isos), f"{node} ISO", f"{node}: {told}")
    rows = [row for row in storages if row.name == disk_storage and "images" in row.content]
    if not rows:
        yield verdict(False, disk_storage or "disks", "no storage for disks that every node has is chosen")
        return
    kind = rows[0].type
    lacking = [node for node in nodes if node not in {row.node for row in rows if row.active}]
    clones = "full and linked clones" if kind in LINKED else "full clones only, each a copy of the whole template"
    formats = "`format` raw or qcow2" if kind in FILES else "leave `format` out, its disks are raw"
    reach = "template on any node" if rows[0].shared else "template on the node that the machine shall run on"
    if kind in NO_ALLOCATION:
        clones = "no clones: volumes cannot be allocated on it"
    away = f"; not usable on {', '.join(lacking)}" if lacking else ""
    good = not lacking and kind not in NO_ALLOCATION
    yield verdict(good, str(disk_storage), f"{disk_storage} ({kind}): {clones}; {formats}; {reach}{away}")


def _on(nodes: Sequence[str] | None, storages: Iterable[Storage]) -> list[Storage]:
    """The rows of the nodes that the site allows; of all when it names none."""
    return [row for row in storages if nodes is None or row.node in nodes]


def _by_name(storages: Iterable[Storage]) -> dict[str, list[Storage]]:
    """The enabled storages by name, the name's rows by node."""
    found: dict[str, list[Storage]] = defaultdict(list)
    for row in storages:
        if row.enabled:
            found[row.name].append(row)
    return dict(sorted(found.items()))


def _active(storage: Storage) -> str:
    return "active" if storage.active else "not active"
