"""Storages, thin pools and volumes of Proxmox VE as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook_lib.facts import Storage, ThinPool, Volume
from runbook_lib.proxmox_reading import Reader, integer, true, words


def storages(pve: Reader) -> list[Storage]:
    """Every storage on every node, by node and name; a shared one comes once per node."""
    return [
        _storage(node, row)
        for node, rows in pve.each_node("storages", lambda reader, node: reader.get(f"/nodes/{node}/storage"))
        for row in sorted(rows or [], key=lambda row: row["storage"])
    ]


def _storage(node: str, row: Mapping[str, Any]) -> Storage:
    active = true(row.get("active"))
    sizes = row if active else {}
    return Storage(
        node=node,
        name=row["storage"],
        type=row["type"],
        content=tuple(sorted(words(row.get("content")))),
        active=active,
        enabled=true(row.get("enabled", 1)),
        shared=true(row.get("shared")),
        total_bytes=integer(sizes.get("total")),
        used_bytes=integer(sizes.get("used")),
        available_bytes=integer(sizes.get("avail")),
    )


def thin_pools(pve: Reader) -> list[ThinPool]:
    """Every LVM thin pool, by node, volume group and name. Needs Sys.Audit on /."""
    rows = pve.each_node("thin_pools", lambda reader, node: reader.get(f"/nodes/{node}/disks/lvmthin"))
    return [
        ThinPool(
            node=node,
            volume_group=row.get("vg", ""),
            name=row["lv"],
            size_bytes=int(row["lv_size"]),
            used_bytes=int(row["used"]),
            metadata_bytes=int(row["metadata_size"]),
            metadata_used_bytes=int(row["metadata_used"]),
        )
        for node, found in rows
        for row in sorted(found or [], key=lambda row: (row.get("vg", ""), row["lv"]))
    ]


def volumes(pve: Reader, node: str, storage: str, content: str | None = None) -> list[Volume]:
    """What one storage of one node holds, by volid; of one content type if named."""
    asked = {"content": content} if content else {}
    rows = pve.get(f"/nodes/{node}/storage/{storage}/content", **asked) or []
    return [
        Volume(
            node=node,
            storage=storage,
            volid=row["volid"],
            content=row.get("content", ""),
            format=row.get("format", ""),
            size_bytes=int(row.get("size") or 0),
            vmid=integer(row.get("vmid")),
        )
        for row in sorted(rows, key=lambda row: row["volid"])
    ]
