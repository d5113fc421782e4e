"""Guests and VM templates of Proxmox VE as rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runbook_lib.facts import Guest, Template
from runbook_lib.proxmox_reading import TRUE_WORDS, Reader, true, words

DISK_SLOT = re.compile(r"(?:scsi|virtio|sata|ide)\d+")
SERIAL_SLOT = re.compile(r"serial\d+")
NETWORK_SLOT = re.compile(r"net\d+")


def guests(pve: Reader) -> list[Guest]:
    """Every VM and container of the cluster by vmid. PVE gathers them every ten seconds or so, so a guest may be
    nameless just after its creation."""
    rows = [
        Guest(
            vmid=int(row["vmid"]),
            name=row.get("name", ""),
            node=row.get("node", ""),
            kind=row["type"],
            status=row.get("status", "unknown"),
            template=true(row.get("template")),
            cpus=float(row.get("maxcpu") or 0),
            memory_bytes=int(row.get("maxmem") or 0),
            disk_bytes=int(row.get("maxdisk") or 0),
            tags=words(row.get("tags")),
            pool=row.get("pool", ""),
            lock=row.get("lock", ""),
        )
        for row in pve.get("/cluster/resources", type="vm") or []
        if row.get("type") in {"qemu", "lxc"}
    ]
    return sorted(rows, key=lambda guest: guest.vmid)


def templates(pve: Reader) -> list[Template]:
    """Every VM template by vmid, as its config has it."""
    found = [guest for guest in guests(pve) if guest.template and guest.kind == "qemu"]
    rows = pve.each(
        "templates",
        found,
        lambda reader, guest: reader.get(f"/nodes/{guest.node}/qemu/{guest.vmid}/config"),
        name=lambda guest: f"{guest.node}/{guest.vmid}",
    )
    return [_template(guest, config) for guest, config in rows]


def _template(guest: Guest, config: Mapping[str, Any]) -> Template:
    slots = {key: str(value) for key, value in config.items() if DISK_SLOT.fullmatch(key)}
    cloudinit = sorted(key for key, value in slots.items() if "cloudinit" in value.partition(",")[0])
    disks = (key for key, value in slots.items() if key not in cloudinit and "media=cdrom" not in value.split(","))
    return Template(
        vmid=guest.vmid,
        name=config.get("name", guest.name),
        node=guest.node,
        agent=_agent(config.get("agent")),
        cloudinit_slot=cloudinit[0] if cloudinit else None,
        scsi_controller=config.get("scsihw"),
        boot=config.get("boot"),
        serial=any(SERIAL_SLOT.fullmatch(key) for key in config),
        disks=tuple(sorted(disks)),
        networks=tuple(sorted(key for key in config if NETWORK_SLOT.fullmatch(key))),
        os_type=config.get("ostype"),
        tags=words(config.get("tags")) or guest.tags,
    )


def _agent(value: Any) -> bool:
    """ "1", "enabled=1,fstrim_cloned_disks=1" … : `enabled` is the property that may stand without its name."""
    for part in str(value if value is not None else "").split(","):
        key, _, worth = part.rpartition("=")
        if key in {"", "enabled"}:
            return worth.strip().lower() in TRUE_WORDS
    return False
