"""Hardware, disks and capabilities: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, String, one_of, only_9, perm
from . import Endpoint, Params

PCI_ID_OR_MAPPING = String(
    pattern=r"^(?:(?:[0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F])|([a-zA-Z][a-zA-Z0-9_-]+)$"
)
SERVER = String(format="pve-storage-server")
NAME = Either(String(format="pve-storage-id"), String(format="pve-storage-id-9"))

DELETE_NAME: Params = {"cleanup-config": Boolean(optional=True), "cleanup-disks": Boolean(optional=True), "name": NAME}
CREATE_LVM: Params = {"add_storage": Boolean(optional=True), "device": String(), "name": NAME}

TABLE: dict[str, Endpoint] = {
    "GET /nodes/{node}/capabilities": Endpoint("any"),
    "GET /nodes/{node}/capabilities/qemu": Endpoint("any"),
    "GET /nodes/{node}/capabilities/qemu/cpu": Endpoint(
        "any", {"arch": only_9(String(optional=True, enum=("x86_64", "aarch64")))}, node=False
    ),
    "GET /nodes/{node}/capabilities/qemu/cpu-flags": Endpoint(
        "any",
        {
            "accel": String(optional=True, enum=("kvm", "tcg")),
            "arch": String(optional=True, enum=("x86_64", "aarch64")),
        },
        only="9.2",
        node=False,
    ),
    "GET /nodes/{node}/capabilities/qemu/machines": Endpoint(
        "any", {"arch": only_9(String(optional=True, enum=("x86_64", "aarch64")))}
    ),
    "GET /nodes/{node}/capabilities/qemu/migration": Endpoint(perm("/nodes/{node}", "Sys.Audit"), only="9.2"),
    "GET /nodes/{node}/disks": Endpoint("any"),
    "GET /nodes/{node}/disks/directory": Endpoint(perm("/", "Sys.Audit")),
    "POST /nodes/{node}/disks/directory": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "add_storage": Boolean(optional=True),
            "device": String(),
            "filesystem": String(optional=True, enum=("ext4", "xfs")),
            "name": NAME,
        },
    ),
    "DELETE /nodes/{node}/disks/directory/{name}": Endpoint(perm("/", "Sys.Modify"), DELETE_NAME),
    "POST /nodes/{node}/disks/initgpt": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "disk": String(pattern=r"^/dev/[a-zA-Z0-9\/]+$"),
            "uuid": String(optional=True, pattern=r"^[a-fA-F0-9\-]+$", max_length=36),
        },
    ),
    "GET /nodes/{node}/disks/list": Endpoint(
        one_of(perm("/", "Sys.Audit"), perm("/nodes/{node}", "Sys.Audit")),
        {
            "include-partitions": Boolean(optional=True),
            "skipsmart": Boolean(optional=True),
            "type": String(optional=True, enum=("unused", "journal_disks")),
        },
    ),
    "GET /nodes/{node}/disks/lvm": Endpoint(perm("/", "Sys.Audit")),
    "POST /nodes/{node}/disks/lvm": Endpoint(perm("/", "Sys.Modify"), CREATE_LVM),
    "DELETE /nodes/{node}/disks/lvm/{name}": Endpoint(perm("/", "Sys.Modify"), DELETE_NAME),
    "GET /nodes/{node}/disks/lvmthin": Endpoint(perm("/", "Sys.Audit")),
    "POST /nodes/{node}/disks/lvmthin": Endpoint(perm("/", "Sys.Modify"), CREATE_LVM),
    "DELETE /nodes/{node}/disks/lvmthin/{name}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "cleanup-config": Boolean(optional=True),
            "cleanup-disks": Boolean(optional=True),
            "name": NAME,
            "volume-group": NAME,
        },
    ),
    "GET /nodes/{node}/disks/smart": Endpoint(
        perm("/", "Sys.Audit"), {"disk": String(pattern=r"^/dev/[a-zA-Z0-9\/]+$"), "healthonly": Boolean(optional=True)}
    ),
    "PUT /nodes/{node}/disks/wipedisk": Endpoint("root-only", {"disk": String(pattern=r"^/dev/[a-zA-Z0-9\/]+$")}),
    "GET /nodes/{node}/disks/zfs": Endpoint(perm("/", "Sys.Audit")),
    "POST /nodes/{node}/disks/zfs": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "add_storage": Boolean(optional=True),
            "ashift": Integer(optional=True, minimum=9, maximum=16),
            "compression": String(optional=True, enum=("on", "off", "gzip", "lz4", "lzjb", "zle", "zstd")),
            "devices": String(format="string-list"),
            "draid-config": String(optional=True, format={"data": Integer(minimum=1), "spares": Integer(minimum=0)}),
            "name": NAME,
            "raidlevel": String(
                enum=("single", "mirror", "raid10", "raidz", "raidz2", "raidz3", "draid", "draid2", "draid3")
            ),
        },
    ),
    "DELETE /nodes/{node}/disks/zfs/{name}": Endpoint(perm("/", "Sys.Modify"), DELETE_NAME),
    "GET /nodes/{node}/disks/zfs/{name}": Endpoint(perm("/", "Sys.Audit"), {"name": NAME}),
    "GET /nodes/{node}/hardware": Endpoint("any", node=False),
    "GET /nodes/{node}/hardware/pci": Endpoint(
        perm("/", "Sys.Audit", "Sys.Modify", any_of=True),
        {"pci-class-blacklist": String(optional=True, format="string-list"), "verbose": Boolean(optional=True)},
    ),
    "GET /nodes/{node}/hardware/pci/{pci-id-or-mapping}": Endpoint(
        "any", {"pci-id-or-mapping": PCI_ID_OR_MAPPING}, node=False
    ),
    "GET /nodes/{node}/hardware/pci/{pci-id-or-mapping}/mdev": Endpoint(
        perm("/", "Sys.Audit", "Sys.Modify", any_of=True), {"pci-id-or-mapping": PCI_ID_OR_MAPPING}
    ),
    "GET /nodes/{node}/hardware/usb": Endpoint(perm("/", "Sys.Modify")),
    "GET /nodes/{node}/scan": Endpoint("any", node=False),
    "GET /nodes/{node}/scan/cifs": Endpoint(
        perm("/storage", "Datastore.Allocate"),
        {
            "domain": String(optional=True),
            "password": String(optional=True),
            "server": SERVER,
            "username": String(optional=True),
        },
    ),
    "GET /nodes/{node}/scan/glusterfs": Endpoint(
        perm("/storage", "Datastore.Allocate"), {"server": SERVER}, only="8.4"
    ),
    "GET /nodes/{node}/scan/iscsi": Endpoint(
        perm("/storage", "Datastore.Allocate"), {"portal": String(format="pve-storage-portal-dns")}
    ),
    "GET /nodes/{node}/scan/lvm": Endpoint(perm("/storage", "Datastore.Allocate")),
    "GET /nodes/{node}/scan/lvmthin": Endpoint(
        perm("/storage", "Datastore.Allocate"),
        {"vg": String(pattern=r"^[a-zA-Z0-9\.\+\_][a-zA-Z0-9\.\+\_\-]+$", max_length=100)},
    ),
    "GET /nodes/{node}/scan/nfs": Endpoint(perm("/storage", "Datastore.Allocate"), {"server": SERVER}),
    "GET /nodes/{node}/scan/pbs": Endpoint(
        perm("/storage", "Datastore.Allocate"),
        {
            "fingerprint": String(optional=True, pattern="^([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}$"),
            "password": String(),
            "port": Integer(optional=True, minimum=1, maximum=65535),
            "server": SERVER,
            "username": String(),
        },
    ),
    "GET /nodes/{node}/scan/zfs": Endpoint(perm("/storage", "Datastore.Allocate")),
}
