"""The options of a VM's config, each with what a real server accepts in it; property strings part by part.

Source: the API viewer of both flavours. What stands in one flavour only is marked so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..routing import Boolean, Either, Integer, Number, Param, String, only_9
from ..schema import FORMATS

_VOLUME = re.compile(r"[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]:.+")


def volume_or_path(value: str) -> None:
    """Nothing; raises ValueError for what is neither a volume, a path nor an empty drive."""
    if value not in ("none", "cdrom", "cloudinit") and not value.startswith("/"):
        FORMATS["pve-volume-id"](value)


def source_volume(value: str) -> None:
    """Nothing; raises ValueError for what is neither a volume nor an absolute path."""
    if not value.startswith("/"):
        FORMATS["pve-volume-id"](value)


def _integers(*names: str, **options: Any) -> dict[str, Param]:
    return {name: Integer(optional=True, **options) for name in names}


def _booleans(*names: str) -> dict[str, Param]:
    return {name: Boolean(optional=True) for name in names}


_FILE = {
    "file": String(format=volume_or_path, default_key=True),
    "volume": String(alias="file"),
    "size": String(optional=True, format="disk-size"),
    "import-from": String(optional=True, format=source_volume),
}
_IMAGE = {"format": String(optional=True, enum=("raw", "qcow", "qed", "qcow2", "vmdk", "cloop"))}
_RATES = {
    name: spec
    for kind in ("bps", "iops", "mbps")
    for side in ("", "_rd", "_wr")
    for name, spec in {
        f"{kind}{side}": Number(optional=True) if kind == "mbps" else Integer(optional=True),
        **({f"{kind}{side}_max": (Number if kind == "mbps" else Integer)(optional=True)} if kind != "bps" else {}),
        **({f"{kind}{side}_max_length": Integer(optional=True, minimum=1)} if kind != "mbps" else {}),
        **({f"{kind}{side}_length": Param(alias=f"{kind}{side}_max_length")} if kind != "mbps" and side else {}),
    }.items()
}
_DISK = {
    **_FILE,
    **_IMAGE,
    **_RATES,
    **_booleans("backup", "detect_zeroes", "replicate", "shared", "snapshot"),
    "aio": String(optional=True, enum=("native", "threads", "io_uring")),
    "cache": String(optional=True, enum=("none", "writethrough", "writeback", "unsafe", "directsync")),
    "discard": String(optional=True, enum=("ignore", "on")),
    "media": String(optional=True, enum=("cdrom", "disk")),
    "rerror": String(optional=True, enum=("ignore", "report", "stop")),
    "werror": String(optional=True, enum=("enospc", "ignore", "report", "stop")),
    "serial": String(optional=True, format="urlencoded", max_length=60),
}
_GEOMETRY = {**_integers("cyls", "heads", "secs"), "trans": String(optional=True, enum=("none", "lba", "auto"))}
_WWN = {"wwn": String(optional=True, pattern=r"^(0x)[0-9a-fA-F]{16}$"), "ssd": Boolean(optional=True)}
_BUS = {
    "ide": {**_WWN, "model": String(optional=True, format="urlencoded", max_length=120)},
    "sata": _WWN,
    "virtio": _booleans("iothread", "ro"),
    "scsi": {
        **_WWN,
        **_booleans("iothread", "ro", "scsiblock"),
        "queues": Integer(optional=True, minimum=2),
        "product": String(optional=True, pattern=r"^[A-Za-z0-9\-_\s]{,16}$"),
        "vendor": String(optional=True, pattern=r"^[A-Za-z0-9\-_\s]{,8}$"),
    },
}


def _drive(bus: str, count: int | None) -> Either:
    nine = {**_DISK, **_BUS[bus]}
    return Either(*(String(optional=True, count=count, format=parts) for parts in ({**nine, **_GEOMETRY}, nine)))


MODELS = (
    "e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er",
    "ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3",
)  # fmt: skip
_RANGES = r"^\d+(-\d+)?(;\d+(-\d+)?)*$"
_NET = {
    **{model: Param("key", alias="model") for model in MODELS},
    "model": String(enum=MODELS, default_key=True),
    "macaddr": String(optional=True, format="mac-addr"),
    "bridge": String(optional=True, format="pve-bridge-id"),
    **_booleans("firewall", "link_down"),
    "mtu": Integer(optional=True, minimum=1, maximum=65520),
    "queues": Integer(optional=True, minimum=0, maximum=64),
    "rate": Number(optional=True, minimum=0),
    "tag": Integer(optional=True, minimum=1, maximum=4094),
    "trunks": String(optional=True, pattern=_RANGES),
}
_AGENT = {
    "enabled": Boolean(default_key=True),
    "fstrim_cloned_disks": Boolean(optional=True),
    "type": String(optional=True, enum=("virtio", "isa")),
}
_SCREENS = (
    "cirrus",
    "qxl",
    "qxl2",
    "qxl3",
    "qxl4",
    "none",
    "serial0",
    "serial1",
    "serial2",
    "serial3",
    "std",
    "virtio",
    "virtio-gl",
    "vmware",
)
_MACHINE = {
    "type": String(
        optional=True,
        max_length=40,
        default_key=True,
        pattern=r"^(pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?"
        r"|virt(?:-\d+(\.\d+)+)?(\+pve\d+)?)$",
    ),
    **_booleans("enable-s3", "enable-s4"),
    "viommu": String(optional=True, enum=("intel", "virtio")),
}
MACHINE = Either(
    String(optional=True, format=_MACHINE),
    String(optional=True, format={**_MACHINE, "aw-bits": Number(optional=True, minimum=32, maximum=64)}),
)
_BASE64 = r"^[A-Za-z0-9+/]+={0,2}$"
_HEX = r"^(0x)?[0-9a-fA-F]{4}$"
_PCI = r"(?:[0-9a-f]{4,}:)?[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-9a-f])?"


def _address_or(words: tuple[str, ...], kind: str) -> Callable[[str], None]:
    """A check of a guest's address: one of the words, or a network of that kind."""

    def check(value: str) -> None:
        if value not in words:
            FORMATS[kind](value)

    return check


_BOOT = {
    "legacy": String(optional=True, default_key=True, pattern=r"^[acdn]{1,4}$"),
    "order": String(optional=True, pattern=r"^((ide|sata|scsi|virtio|net|usb|hostpci)\d+([;\s]|$))*$"),
}
_CPU = {
    "cputype": String(optional=True, default_key=True, pattern=r"^[a-zA-Z0-9\-_.+]+$"),
    "reported-model": String(optional=True),
    "hidden": Boolean(optional=True),
    "hv-vendor-id": String(optional=True, pattern=r"^[a-zA-Z0-9]{1,12}$"),
    "flags": String(optional=True, pattern=r"^[+-][a-zA-Z0-9\-_.]+(;[+-][a-zA-Z0-9\-_.]+)*$"),
    "phys-bits": String(optional=True, pattern=r"^(host|\d{1,2})$"),
}
_HOSTPCI = {
    "host": String(optional=True, default_key=True, pattern=rf"^{_PCI}(;{_PCI})*$"),
    "mapping": String(optional=True, format="pve-configid"),
    **_booleans("rombar", "pcie", "x-vga", "legacy-igd"),
    "romfile": String(optional=True, pattern=r"^[^,;]+$"),
    "mdev": String(optional=True, pattern=r"^[^/.:]+$"),
    **{word: String(optional=True, pattern=_HEX) for word in ("vendor-id", "device-id", "sub-vendor-id")},
    "sub-device-id": String(optional=True, pattern=_HEX),
}
_IPCONFIG = {
    "ip": String(optional=True, format=_address_or(("dhcp",), "CIDRv4")),
    "gw": String(optional=True, format="ipv4", requires="ip"),
    "ip6": String(optional=True, format=_address_or(("dhcp", "auto"), "CIDRv6")),
    "gw6": String(optional=True, format="ipv6", requires="ip6"),
}
_RNG = {
    "source": String(default_key=True, enum=("/dev/urandom", "/dev/random", "/dev/hwrng")),
    **_integers("max_bytes", "period"),
}
_SMBIOS = {
    "uuid": String(optional=True, pattern=r"^[a-fA-F0-9]{8}(-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}$"),
    **{
        word: String(optional=True, pattern=_BASE64)
        for word in ("version", "serial", "manufacturer", "product", "sku", "family")
    },
    "base64": Boolean(optional=True),
}
_SEV = {
    "type": String(default_key=True, pattern=r"^(std|es|snp)$"),
    **_booleans("no-debug", "no-key-sharing", "allow-smt", "kernel-hashes"),
}
_TDX = {
    "type": String(default_key=True, pattern=r"^tdx$"),
    **_booleans("attestation"),
    **_integers("vsock-cid", "vsock-port"),
}
_WATCHDOG = {
    "model": String(optional=True, default_key=True, enum=("i6300esb", "ib700")),
    "action": String(optional=True, enum=("reset", "shutdown", "poweroff", "pause", "debug", "none")),
}
_TPM = {**_FILE, "version": String(optional=True, enum=("v1.2", "v2.0"))}
KEYBOARDS = (
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt",
    "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
)  # fmt: skip
BUSES = {"ide": 4, "scsi": 31, "virtio": 16, "sata": 6}
DISKS = tuple(f"{bus}{number}" for bus, count in BUSES.items() for number in range(count))
UNUSED = tuple(f"unused{number}" for number in range(256))

BOOLEANS = [
    "acpi",
    "autostart",
    "ciupgrade",
    "freeze",
    "keephugepages",
    "kvm",
    "localtime",
    "numa",
    "onboot",
    "protection",
    "reboot",
    "tablet",
    "tdf",
    "template",
]
INTEGERS = ["balloon", "migrate_speed"]
LOCKS = ("backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended")
OPTIONS: dict[str, Any] = {
    **{name: Boolean(optional=True) for name in BOOLEANS},
    **{name: Integer(optional=True, minimum=0) for name in INTEGERS},
    "cores": Integer(optional=True, minimum=1),
    "sockets": Integer(optional=True, minimum=1),
    "vcpus": Integer(optional=True, minimum=1),
    "smp": Integer(optional=True, minimum=1),
    "shares": Integer(optional=True, minimum=0, maximum=50000),
    "cpuunits": Integer(optional=True, minimum=1, maximum=262144),
    "allow-ksm": only_9(Boolean(optional=True)),
    "intel-tdx": only_9(String(optional=True, format=_TDX)),
    "affinity": String(optional=True, format="pve-cpuset"),
    "agent": Either(
        String(optional=True, format={**_AGENT, "freeze-fs-on-backup": Boolean(optional=True)}),
        String(
            optional=True,
            format={
                **_AGENT,
                "freeze-fs": Boolean(optional=True),
                "freeze-fs-on-backup": Param(alias="freeze-fs"),
                "guest-fsfreeze": Param(alias="freeze-fs"),
            },
        ),
    ),
    "amd-sev": String(optional=True, format=_SEV),
    "arch": String(optional=True, enum=("x86_64", "aarch64")),
    "args": String(optional=True),
    "audio0": String(
        optional=True,
        format={
            "device": String(enum=("ich9-intel-hda", "intel-hda", "AC97")),
            "driver": String(optional=True, enum=("spice", "none")),
        },
    ),
    "bios": String(optional=True, enum=("seabios", "ovmf")),
    "boot": String(optional=True, format=_BOOT),
    "bootdisk": String(optional=True, format="pve-qm-bootdisk", pattern=r"^(ide|sata|scsi|virtio)\d+$"),
    "cdrom": _drive("ide", None),
    "cicustom": String(
        optional=True,
        format={word: String(optional=True, format="pve-volume-id") for word in ("meta", "network", "user", "vendor")},
    ),
    "cipassword": String(optional=True),
    "citype": String(optional=True, enum=("configdrive2", "nocloud", "opennebula")),
    "ciuser": String(optional=True),
    "cpu": Either(
        String(optional=True, format=_CPU),
        String(optional=True, format={**_CPU, "guest-phys-bits": Integer(optional=True, minimum=32, maximum=64)}),
    ),
    "cpulimit": Number(optional=True, minimum=0, maximum=128),
    "description": String(optional=True, max_length=8192),
    "efidisk0": String(
        optional=True,
        format={
            **_FILE,
            **_IMAGE,
            "efitype": String(optional=True, enum=("2m", "4m")),
            "ms-cert": String(optional=True, enum=("2011", "2023", "2023w", "2023k")),
            "pre-enrolled-keys": Boolean(optional=True),
        },
    ),
    "hookscript": String(optional=True, format="pve-volume-id"),
    "hostpci[n]": String(optional=True, count=16, format=_HOSTPCI),
    "hotplug": String(optional=True, format="pve-hotplug-features"),
    "hugepages": String(optional=True, enum=("any", "2", "1024")),
    "ide[n]": _drive("ide", 4),
    "ipconfig[n]": String(optional=True, count=32, format=_IPCONFIG),
    "ivshmem": String(
        optional=True,
        format={"size": Integer(minimum=1), "name": String(optional=True, pattern=r"^[a-zA-Z0-9\-]+$")},
    ),
    "keyboard": String(optional=True, enum=KEYBOARDS),
    "lock": String(optional=True, enum=LOCKS),
    "machine": MACHINE,
    "memory": String(optional=True, format={"current": Integer(minimum=16, default_key=True)}),
    "migrate_downtime": Number(optional=True, minimum=0),
    "name": String(optional=True, format="dns-name"),
    "nameserver": String(optional=True, format="address-list"),
    "net[n]": Either(
        String(optional=True, count=32, format=_NET),
        String(optional=True, count=32, format={**_NET, "host-tunnel": Boolean(optional=True)}),
    ),
    "numa[n]": String(
        optional=True,
        count=8,
        format={
            "cpus": String(pattern=_RANGES),
            "hostnodes": String(optional=True, pattern=_RANGES),
            "memory": Number(optional=True),
            "policy": String(optional=True, enum=("preferred", "bind", "interleave")),
        },
    ),
    "ostype": String(
        optional=True,
        enum=(
            "other",
            "wxp",
            "w2k",
            "w2k3",
            "w2k8",
            "wvista",
            "win7",
            "win8",
            "win10",
            "win11",
            "l24",
            "l26",
            "solaris",
        ),
    ),
    "parallel[n]": String(optional=True, count=3, pattern=r"^(/dev/parport\d+|/dev/usb/lp\d+)$"),
    "rng0": String(optional=True, format=_RNG),
    "sata[n]": _drive("sata", 6),
    "scsi[n]": _drive("scsi", 31),
    "scsihw": String(
        optional=True,
        enum=("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"),
    ),
    "searchdomain": String(optional=True),
    "serial[n]": String(optional=True, count=4, pattern=r"^(/dev/.+|socket)$"),
    "smbios1": String(optional=True, max_length=512, format=_SMBIOS),
    "spice_enhancements": String(
        optional=True,
        format={
            "foldersharing": Boolean(optional=True),
            "videostreaming": String(optional=True, enum=("off", "all", "filter")),
        },
    ),
    "sshkeys": String(optional=True, format="urlencoded"),
    "startdate": String(optional=True, pattern=r"^(now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?)$"),
    "startup": String(optional=True, format="pve-startup-order"),
    "tags": String(optional=True, format="pve-tag-list"),
    "tpmstate0": Either(
        String(optional=True, format=_TPM),
        String(optional=True, format={**_TPM, "format": String(optional=True, enum=("raw", "qcow2", "vmdk"))}),
    ),
    "unused[n]": String(
        optional=True,
        count=256,
        format={"file": String(format="pve-volume-id", default_key=True), "volume": Param(alias="file")},
    ),
    "usb[n]": String(
        optional=True,
        count=14,
        format={
            "host": String(
                optional=True,
                default_key=True,
                pattern=r"^((0x)?[0-9A-Fa-f]{4}:(0x)?[0-9A-Fa-f]{4}|\d+-\d+(\.\d+)*|[Ss][Pp][Ii][Cc][Ee])$",
            ),
            "mapping": String(optional=True, format="pve-configid"),
            "usb3": Boolean(optional=True),
        },
    ),
    "vga": String(
        optional=True,
        format={
            "type": String(optional=True, enum=_SCREENS, default_key=True),
            "memory": Integer(optional=True, minimum=4, maximum=512),
            "clipboard": String(optional=True, enum=("vnc",)),
        },
    ),
    "virtio[n]": _drive("virtio", 16),
    "virtiofs[n]": String(
        optional=True,
        count=10,
        format={
            "dirid": String(format="pve-configid", default_key=True),
            "cache": String(optional=True, enum=("auto", "always", "metadata", "never")),
            **_booleans("direct-io", "expose-acl", "expose-xattr"),
        },
    ),
    "vmgenid": String(optional=True, pattern=r"^([a-fA-F0-9]{8}(-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}|[01])$"),
    "vmstatestorage": String(optional=True, format="pve-storage-id"),
    "watchdog": String(optional=True, format=_WATCHDOG),
}
