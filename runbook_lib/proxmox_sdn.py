"""Software-defined networks of Proxmox VE as rows: what is configured, and how each node has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook_lib.facts import SdnObject, SdnStatus
from runbook_lib.proxmox_reading import Reader, integer, words


def sdn_objects(pve: Reader) -> list[SdnObject]:
    """Zones, then vnets, by name, with what waits to be applied; none where SDN is not used.

    A release without SDN, or an identity that may not see it, is remembered in `pve.unread`.
    """
    asked = ("zone", "vnet")
    found = pve.each("sdn_objects", asked, lambda reader, kind: reader.get(f"/cluster/sdn/{kind}s", pending=1))
    return [
        _object(kind, row) for kind, rows in found for row in sorted(rows or [], key=lambda row: str(row.get(kind)))
    ]


def _object(kind: str, row: Mapping[str, Any]) -> SdnObject:
    # a new or changed object has its coming values under `pending`
    pending = row.get("pending")
    whole = {**row, **(pending if isinstance(pending, Mapping) else {})}
    return SdnObject(
        kind=kind,
        name=str(row[kind]),
        type=str(whole.get("type") or kind),
        zone=str(whole.get("zone") or "") if kind == "vnet" else "",
        nodes=words(whole.get("nodes")),
        bridge=whole.get("bridge") or None,
        tag=_number(whole.get("tag")),
        mtu=_number(whole.get("mtu")),
        waits=str(row.get("state") or ""),
    )


def _number(value: Any) -> int | None:
    return None if value == "deleted" else integer(value)  # what PVE writes of an option that is to go


def sdn_status(pve: Reader) -> list[SdnStatus]:
    """How each running zone and vnet is on each node, by node; the zone that stands for plain bridges is left out."""

    def ask(reader: Reader, node: str) -> list[SdnStatus]:
        rows = []
        for zone in sorted(reader.get(f"/nodes/{node}/sdn/zones") or [], key=lambda row: row["zone"]):
            name = zone["zone"]
            if name == "localnetwork":
                continue
            rows.append(SdnStatus(node, "zone", name, zone.get("status", "")))
            content = reader.get(f"/nodes/{node}/sdn/zones/{name}/content") or []
            rows += [
                SdnStatus(node, "vnet", row["vnet"], row.get("status", ""), row.get("statusmsg") or "")
                for row in sorted(content, key=lambda row: row["vnet"])
            ]
        return rows

    return [row for _, rows in pve.each_node("sdn_status", ask) for row in rows]
