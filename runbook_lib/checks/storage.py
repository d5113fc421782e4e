"""Judgement of Proxmox VE storage: active, roomy, thin pools, the content types Kubernetes needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, graded, verdict
from runbook_lib.facts import Storage, TestVolume, ThinPool
from runbook_lib.model import Finding

MIB, GIB = 1024**2, 1024**3


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


def _active(storage: Storage) -> str:
    return "active" if storage.active else "not active"
