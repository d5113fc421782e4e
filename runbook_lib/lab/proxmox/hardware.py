"""What a node is made of: PCI and USB devices, disks and their health, and what its QEMU can emulate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import disks
from .declared import declared
from .declared.hardware import TABLE
from .nodes import this as this_node
from .routing import Call, PveError, param_error
from .schema import FORMATS, format_check
from .storage import parse_size
from .worker import TaskContext

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

PCI = [
    ("0000:00:00.0", "0x060000", "0x8086", "0x09a2", "Intel Corporation", "Ice Lake Memory Map/VT-d"),
    ("0000:00:1f.0", "0x060100", "0x8086", "0xa1cb", "Intel Corporation", "C627 Series Chipset LPC/eSPI Controller"),
    ("0000:02:00.0", "0x030000", "0x1a03", "0x2000", "ASPEED Technology, Inc.", "ASPEED Graphics Family"),
    ("0000:3b:00.0", "0x020000", "0x8086", "0x1563", "Intel Corporation", "Ethernet Controller 10G X550T"),
    ("0000:3b:00.1", "0x020000", "0x8086", "0x1563", "Intel Corporation", "Ethernet Controller 10G X550T"),
    ("0000:5e:00.0", "0x010802", "0x144d", "0xa80a", "Samsung Electronics Co Ltd", "NVMe SSD Controller PM9A1/980PRO"),
]
"""What a node has unless the scenario says otherwise: bridge, graphics, two ports, a disk."""
HIDDEN = ("05", "06", "0b")
"""Classes a listing leaves out unless asked: memory controllers, bridges, processors."""
MODELS = {
    "GenuineIntel": (
        "486 Broadwell Broadwell-IBRS Broadwell-noTSX Cascadelake-Server Cascadelake-Server-v2 Conroe Cooperlake "
        "GraniteRapids Haswell Haswell-IBRS Haswell-noTSX Icelake-Server Icelake-Server-noTSX IvyBridge IvyBridge-IBRS "
        "KnightsMill Nehalem Nehalem-IBRS Penryn SandyBridge SandyBridge-IBRS SapphireRapids Skylake-Client "
        "Skylake-Server Skylake-Server-IBRS Westmere Westmere-IBRS core2duo coreduo pentium pentium2 pentium3"
    ),
    "AuthenticAMD": (
        "EPYC EPYC-Genoa EPYC-IBPB EPYC-Milan EPYC-Milan-v2 EPYC-Rome EPYC-Rome-v2 EPYC-v3 Opteron_G1 Opteron_G2 "
        "Opteron_G3 Opteron_G4 Opteron_G5 athlon phenom"
    ),
    "default": "host kvm32 kvm64 max qemu32 qemu64 x86-64-v2 x86-64-v2-AES x86-64-v3 x86-64-v4",
}
FLAGS = {
    "nested-virt": "Controls nested virtualization, namely 'svm' for AMD CPUs and 'vmx' for Intel CPUs.",
    "aes": "Activate AES instruction set for HW acceleration.",
    "amd-no-ssb": "Notifies guest OS that host is not vulnerable for Spectre on AMD CPUs.",
    "amd-ssbd": "Improves Spectre mitigation performance with AMD CPUs, best used with 'virt-ssbd'.",
    "hv-evmcs": "Improve performance for nested virtualization. Only supported on Intel CPUs.",
    "hv-tlbflush": "Improve performance in overcommitted Windows guests.",
    "ibpb": "Allows improved Spectre mitigation with AMD CPUs.",
    "md-clear": "Required to let the guest OS know if MDS is mitigated correctly.",
    "pcid": "Meltdown fix cost reduction on Westmere, Sandy-, and IvyBridge Intel CPUs.",
    "pdpe1gb": "Allow guest OS to use 1GB size pages, if host HW supports it.",
    "spec-ctrl": "Allows improved Spectre mitigation with Intel CPUs.",
    "ssbd": "Protection for 'Speculative Store Bypass' for Intel models.",
    "virt-ssbd": "Basis for 'Speculative Store Bypass' protection for AMD models.",
}
MACHINES = {
    "8.4": ["9.2+pve1", "9.1", "9.0", "8.2", "8.1", "8.0", "7.2", "7.1", "7.0", "6.2", "6.1", "6.0", "5.2", "4.2"],
    "9.2": ["11.0", "10.1", "10.0+pve1", "10.0", "9.2+pve1", "9.1", "9.0", "8.2", "8.1", "8.0", "7.2", "7.1", "6.2"],
}
CHANGES = {
    "10.0+pve1": "Set host_mtu vNIC option even with default value for migration compat.",
    "9.2+pve1": "Disable S3/S4 power states by default.",
}


@format_check("pve-storage-id-9")
def _storage_id(value: str) -> None:
    if len(value) < 2:
        raise ValueError(f"storage ID '{value}' cannot be shorter than 2 characters\n")
    FORMATS["pve-storage-id"](value)


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the devices from a scenario's `hardware:`, node → {pci: [...], usb: [...]}, rows as the API shows them."""
    state.areas["hardware"] = {name: dict(entry or {}) for name, entry in (section.get("hardware") or {}).items()}


def devices(call: Call, kind: str) -> list[dict[str, Any]]:
    """The node's devices of one kind."""
    given = call.state.areas.get("hardware", {}).get(call.node, {})
    if kind in given:
        return [dict(row) for row in given[kind]]
    if kind == "usb":
        return []
    return [
        {
            "id": where,
            "class": code,
            "vendor": vendor,
            "device": device,
            "vendor_name": maker,
            "device_name": name,
            "subsystem_vendor": vendor,
            "subsystem_device": "0x0001",
            "subsystem_vendor_name": maker,
            "iommugroup": number,
        }
        for number, (where, code, vendor, device, maker, name) in enumerate(PCI)
    ]


@endpoint("GET /nodes/{node}/hardware")
def index(call: Call) -> list[dict[str, str]]:
    """The kinds of hardware that can be listed."""
    return [{"type": "pci"}, {"type": "usb"}]


@endpoint("GET /nodes/{node}/hardware/pci")
def list_pci(call: Call) -> list[dict[str, Any]]:
    """The PCI devices, without bridges, memory controllers and processors unless asked for."""
    hidden = call.params.get("pci-class-blacklist")
    classes = HIDDEN if hidden is None else [part for part in re.split(r"[,;\s]+", hidden) if part]
    rows = [row for row in devices(call, "pci") if not row["class"][2:].startswith(tuple(classes))]
    if call.params.get("verbose", True):
        return rows
    return [{"id": row["id"]} for row in rows]


@endpoint("GET /nodes/{node}/hardware/pci/{pci-id-or-mapping}")
def pci_index(call: Call) -> list[dict[str, str]]:
    """The names below one PCI device."""
    return [{"method": "mdev"}]


@endpoint("GET /nodes/{node}/hardware/pci/{pci-id-or-mapping}/mdev")
def list_mediated(call: Call) -> list[dict[str, Any]]:
    """The mediated device types of a PCI device."""
    name = call.params["pci-id-or-mapping"]
    for row in devices(call, "pci"):
        if row["id"] in (name, f"0000:{name}"):
            return list(row.get("mdev_types", []))
    return []


@endpoint("GET /nodes/{node}/hardware/usb")
def list_usb(call: Call) -> list[dict[str, Any]]:
    """The USB devices."""
    return devices(call, "usb")


# --- disks ----------------------------------------------------------------------------------------


def disk_at(call: Call, path: str) -> dict[str, Any]:
    """The disk of that path, or the 500 that there is none."""
    for disk in this_node(call).disks:
        if disk["devpath"] == path:
            return dict(disk)
    raise PveError(500, "not a valid block device")


@endpoint("GET /nodes/{node}/disks/smart")
def smart(call: Call) -> dict[str, Any]:
    """What a disk says of its health."""
    disk = disk_at(call, call.params["disk"])
    health = {"health": disk.get("health", "PASSED")}
    if call.params.get("healthonly"):
        return health
    wear = int(disk.get("wearout", 97))
    if disk.get("type") == "nvme":
        lines = [
            "",
            "SMART/Health Information (NVMe Log 0x02)",
            "Critical Warning:                   0x00",
            "Temperature:                        34 Celsius",
            "Available Spare:                    100%",
            f"Percentage Used:                    {100 - wear}%",
            "Power On Hours:                     8,512",
            "Media and Data Integrity Errors:    0",
        ]
        return {**health, "type": "text", "text": "\n".join(lines) + "\n", "wearout": wear}
    attributes = [
        smart_row("5", "Reallocated_Sector_Ct", 100, 10, "0"),
        smart_row("9", "Power_On_Hours", 98, 0, "8512"),
        smart_row("194", "Temperature_Celsius", 66, 0, "34"),
        smart_row("233", "Media_Wearout_Indicator", wear, 1, str(100 - wear)),
    ]
    return {**health, "type": "ata", "attributes": attributes, "wearout": wear}


def smart_row(number: str, name: str, value: int, threshold: int, raw: str) -> dict[str, Any]:
    """One S.M.A.R.T. attribute."""
    return {
        "id": number.rjust(3),
        "name": name,
        "flags": "-O--CK",
        "value": value,
        "normalized": value,
        "worst": value,
        "threshold": threshold,
        "fail": "-",
        "raw": raw,
    }


@endpoint("POST /nodes/{node}/disks/initgpt")
def init_gpt(call: Call) -> str:
    """The UPID of the writing of a partition table."""
    disk = disk_at(call, call.params["disk"])
    if disk.get("used", "LVM"):
        raise PveError(500, f"disk {call.params['disk']} is already in use")

    async def work(task: TaskContext) -> None:
        await task.sleep(1)

    return call.task("diskinit", call.params["disk"].removeprefix("/dev/"), work)


@endpoint("PUT /nodes/{node}/disks/wipedisk")
def wipe_disk(call: Call) -> str:
    """The UPID of a disk's wiping; afterwards nothing uses it."""
    node, path = this_node(call), call.params["disk"]
    used = disk_at(call, path).get("used", "LVM")
    if used in ("LVM", "ZFS"):
        raise PveError(500, f"disk/partition '{path}' has a holder")
    if used == "mounted":
        raise PveError(500, f"disk/partition '{path}' is mounted")

    async def work(task: TaskContext) -> None:
        task.log(f"wiping block device {path}")
        await task.sleep(2)
        for disk in node.disks:
            if disk["devpath"] == path:
                disk["used"] = ""

    return call.task("wipedisk", path.removeprefix("/dev/"), work)


# --- what QEMU can emulate ------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/capabilities")
def capabilities(call: Call) -> list[dict[str, str]]:
    """The names below capabilities."""
    return [{"name": "qemu"}]


@endpoint("GET /nodes/{node}/capabilities/qemu")
def qemu_index(call: Call) -> list[dict[str, str]]:
    """The names below QEMU's capabilities."""
    names = ["cpu", "machines"] if call.flavour == "8.4" else ["cpu", "cpu-flags", "machines", "migration"]
    return [{"name": name} for name in names]


@endpoint("GET /nodes/{node}/capabilities/qemu/cpu")
def cpu_models(call: Call) -> list[dict[str, Any]]:
    """The CPU models a VM may have."""
    return [{"name": name, "vendor": vendor, "custom": 0} for vendor, names in MODELS.items() for name in names.split()]


@endpoint("GET /nodes/{node}/capabilities/qemu/cpu-flags")
def cpu_flags(call: Call) -> list[dict[str, Any]]:
    """The CPU flags a VM may have, and the nodes whose CPUs have them."""
    nodes = [node.name for node in call.state.nodes.values() if node.online]
    return [{"name": name, "description": text, "supported-on": nodes} for name, text in FLAGS.items()]


def machine_rows(flavour: str) -> Iterator[dict[str, Any]]:
    """The machine versions of this flavour's QEMU."""
    for version in MACHINES[flavour]:
        for kind, word in (("i440fx", "i440fx"), ("q35", "q35")):
            row = {"id": f"pc-{word}-{version}", "type": kind, "version": version}
            yield row | ({"changes": CHANGES[version]} if version in CHANGES else {})


@endpoint("GET /nodes/{node}/capabilities/qemu/machines")
def machines(call: Call) -> list[dict[str, Any]]:
    """The machine types a VM may have."""
    return list(machine_rows(call.flavour))


@endpoint("GET /nodes/{node}/capabilities/qemu/migration")
def migration(call: Call) -> dict[str, Any]:
    """What the node can do when VMs migrate."""
    return {"has-dbus-vmstate": False}


# --- scans ----------------------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/scan")
def scan_index(call: Call) -> list[dict[str, str]]:
    """What can be scanned for."""
    names = ["cifs", "glusterfs", "iscsi", "lvm", "nfs", "pbs", "zfs"]
    return [{"method": name} for name in names if call.flavour == "8.4" or name != "glusterfs"]


@endpoint("GET /nodes/{node}/scan/nfs")
def scan_nfs(call: Call) -> list[dict[str, str]]:
    """The exports of an NFS server the scenario knows."""
    server = call.params["server"]
    found = [
        {"path": str(storage.options.get("export", "")), "options": "*"}
        for storage in call.state.storages.values()
        if storage.type == "nfs" and storage.options.get("server") == server
    ]
    if not found and server not in call.state.areas.get("servers", ()):
        raise PveError(500, f"command '/sbin/showmount --no-headers --exports {server}' failed: exit code 1")
    return found


@endpoint("GET /nodes/{node}/scan/lvm")
def scan_lvm(call: Call) -> list[dict[str, str]]:
    """The volume groups of the node."""
    return [{"vg": name} for name in sorted(disks.taken_groups(call.state, this_node(call)))]


@endpoint("GET /nodes/{node}/scan/lvmthin")
def scan_thin(call: Call) -> list[dict[str, Any]]:
    """The thin pools of a volume group."""
    return [
        {"lv": pool["lv"], "vg": pool["vg"], "lv_size": parse_size(pool["size"])}
        for pool in this_node(call).thin_pools
        if pool["vg"] == call.params["vg"]
    ]


@endpoint("GET /nodes/{node}/scan/cifs")
def scan_cifs(call: Call) -> list[dict[str, str]]:
    """The shares of a CIFS server."""
    if call.params.get("password") and not call.params.get("username"):
        raise param_error({"username": "missing property - 'password' requires this property"})
    return []


@endpoint("GET /nodes/{node}/scan/pbs")
def scan_pbs(call: Call) -> list[dict[str, str]]:
    """The datastores of a backup server the scenario knows."""
    server, port = call.params["server"], call.params.get("port", 8007)
    found = [
        {"store": str(storage.options.get("datastore", ""))}
        for storage in call.state.storages.values()
        if storage.type == "pbs" and storage.options.get("server") == server
    ]
    if not found:
        why = f"500 Can't connect to {server}:{port} (Connection refused)"
        raise PveError(500, f"error fetching datastores - {why}")
    return found


@endpoint("GET /nodes/{node}/scan/iscsi")
def scan_iscsi(call: Call) -> list[dict[str, str]]:
    """The targets of an iSCSI portal; the lab's nodes have no iSCSI tools."""
    raise PveError(500, "error: no iscsi support - please install open-iscsi")
