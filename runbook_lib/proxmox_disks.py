"""Kubernetes nodes as VMs of Proxmox VE, and the disks of claims: where they lie and which VMs have them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from runbook_lib.facts import ClaimDisk, Cluster, KubeNode, NodeMachine, Storage, Volume
from runbook_lib.proxmox_guests import guests
from runbook_lib.proxmox_reading import Reader
from runbook_lib.proxmox_storage import volumes

OWNER = 9999
"""The VM id that the driver gives its disks; no VM may have it."""

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"

_SLOT = re.compile(r"scsi(\d+)")
_DISK = re.compile(rf"(?:^|[:/])vm-{OWNER}-([^/]+?)(?:\.(?:raw|qcow2))?$")


def node_machines(
    pve: Reader,
    nodes: Iterable[KubeNode],
    cluster: Cluster,
    registered: Mapping[str, tuple[int | None, tuple[str, ...]]] | None = None,
) -> list[NodeMachine]:
    """Every Kubernetes node beside the VM with its uuid, by name. A node that is a Proxmox server is told as one."""
    configs = vm_configs(pve)
    by_uuid: dict[str, list[int]] = defaultdict(list)
    for vmid, (_, config) in configs.items():
        if not config.get("template") and (uuid := uuid_of(config)):
            by_uuid[uuid].append(vmid)
    pools = {guest.vmid: guest.pool for guest in guests(pve)}
    hosts = {member.name: member.name for member in cluster.members}
    hosts |= {member.ip: member.name for member in cluster.members if member.ip}
    rows = []
    for node in nodes:
        found = by_uuid.get(node.system_uuid.lower(), [])
        own = found[0] if found else None
        where, config = configs[own] if own is not None else ("", {})
        host = hosts.get(node.internal_ip or "") or hosts.get(node.name)
        most, keys = (registered or {}).get(node.name, (None, ()))
        rows.append(
            NodeMachine(
                node=node.name,
                ready=node.ready,
                schedulable=not node.unschedulable
                and not any(taint.effect in {"NoSchedule", "NoExecute"} for taint in node.taints),
                system_uuid=node.system_uuid,
                provider_id=node.provider_id,
                region=node.labels.get(REGION, ""),
                zone=node.labels.get(ZONE, ""),
                address=node.internal_ip or "",
                vmid=own,
                vm_name=str(config.get("name", "")),
                host=where or (host or ""),
                pool=pools.get(own, "") if own is not None else "",
                scsi_controller=str(config.get("scsihw", "")) if own is not None else "",
                slots=tuple(sorted(_slots(config))),
                is_host=own is None and host is not None,
                control_plane=CONTROL_PLANE in node.labels,
                max_volumes=most,
                topology_keys=keys,
                twins=tuple(found[1:]),
            )
        )
    return sorted(rows, key=lambda row: row.node)


def vm_configs(pve: Reader) -> dict[int, tuple[str, dict[str, Any]]]:
    """VM id → (its Proxmox node, its config) of every VM; one that cannot be read is left out and remembered."""
    vms = [guest for guest in guests(pve) if guest.kind == "qemu"]
    rows = pve.each(
        "vm configs",
        vms,
        lambda reader, guest: dict(reader.get(f"/nodes/{guest.node}/qemu/{guest.vmid}/config") or {}),
        name=lambda guest: f"{guest.node}/{guest.vmid}",
    )
    return {guest.vmid: (guest.node, config) for guest, config in rows}


def uuid_of(config: Mapping[str, Any]) -> str:
    """The machine's SMBIOS uuid in lower case, as Kubernetes knows it; empty where the config names none."""
    found = re.search(r"(?:^|,)uuid=([0-9a-fA-F-]{36})", str(config.get("smbios1", "")))
    return found[1].lower() if found else ""


def holders(pve: Reader, volid: str) -> list[tuple[int, str]]:
    """(VM id, slot) of every VM whose config names the disk."""
    return [
        (vmid, slot)
        for vmid, (_, config) in sorted(vm_configs(pve).items())
        for slot, value in config.items()
        if _SLOT.fullmatch(slot) and str(value).split(",")[0] == volid
    ]


def slot_in(pve: Reader, host: str, vmid: int, volid: str) -> str:
    """The slot in which one VM has the disk, by its config; empty where it has it not."""
    config = pve.get(f"/nodes/{host}/qemu/{vmid}/config") or {}
    return next((key for key, value in config.items() if _SLOT.fullmatch(key) and value.split(",")[0] == volid), "")


def claim_disks(pve: Reader, storages: Iterable[Storage]) -> list[ClaimDisk]:
    """Every disk of the driver on every storage that holds images, by volid, with the VMs that have it."""
    having: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for vmid, (_, config) in sorted(vm_configs(pve).items()):
        for slot, value in config.items():
            if _SLOT.fullmatch(slot):
                having[str(value).split(",")[0]].append((vmid, slot))
    places = [row for row in storages if row.active and "images" in row.content]
    seen: set[str] = set()
    asked = []
    for place in places:
        if not (place.shared and place.name in seen):
            asked.append(place)
        seen.add(place.name)
    rows = pve.each(
        "disks of claims",
        asked,
        lambda reader, place: volumes(reader, place.node, place.name, "images"),
        name=lambda place: f"{place.node}/{place.name}",
    )
    local = {place.name for place in asked if not place.shared}
    found = []
    for place, listed in rows:
        for volume in listed:
            if name := disk_of(volume):
                owners = [(vmid, slot) for vmid, slot in having.get(volume.volid, ())]
                found.append(
                    ClaimDisk(
                        node=place.node if place.name in local else "",
                        storage=place.name,
                        volid=volume.volid,
                        size_bytes=volume.size_bytes,
                        volume=name,
                        vms=tuple(vmid for vmid, _ in owners),
                        slots=tuple(slot for _, slot in owners),
                    )
                )
    return sorted(found, key=lambda row: (row.volid, row.node))


def disk_of(volume: Volume) -> str:
    """The PersistentVolume that the disk is of, by its name; empty for other disks."""
    found = _DISK.search(volume.volid)
    return found[1] if found else ""


def _slots(config: Mapping[str, Any]) -> Iterable[int]:
    return (int(found[1]) for key in config if (found := _SLOT.fullmatch(key)))
