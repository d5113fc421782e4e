"""Storages and what lies on them: /storage, /nodes/{node}/storage and their volumes."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .quorum import require_quorum
from .routing import (
    Boolean,
    Call,
    Either,
    Integer,
    Number,
    PveError,
    String,
    only_8,
    only_9,
    param_error,
    perm,
    route,
    split_list,
)
from .tasks import finished_within
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

KIB, MIB, GIB = 2**10, 2**20, 2**30
KEPT_BYTES = 4 * MIB
"""An upload up to this size is kept whole; of a larger one only its size and hash remain."""

FILE_BASED = frozenset({"dir", "nfs", "cifs", "cephfs", "btrfs"})
SHARED_TYPES = frozenset({"nfs", "cifs", "cephfs", "rbd", "pbs", "iscsi", "iscsidirect", "glusterfs", "zfs", "esxi"})
TYPES = [
    "btrfs",
    "cephfs",
    "cifs",
    "dir",
    "esxi",
    "glusterfs",
    "iscsi",
    "iscsidirect",
    "lvm",
    "lvmthin",
    "nfs",
    "pbs",
    "rbd",
    "zfs",
    "zfspool",
]
TYPES_9 = [name for name in TYPES if name != "glusterfs"]
REQUIRED = {
    "dir": ("path",),
    "nfs": ("server", "export"),
    "cifs": ("server", "share"),
    "lvm": ("vgname",),
    "lvmthin": ("thinpool", "vgname"),
    "zfspool": ("pool",),
    "pbs": ("server", "datastore"),
    "btrfs": ("path",),
    "iscsi": ("portal", "target"),
}
DEFAULT_CONTENT = {
    "dir": "images,rootdir,vztmpl,iso,backup,snippets",
    "nfs": "images",
    "cifs": "images",
    "lvm": "images,rootdir",
    "lvmthin": "images,rootdir",
    "zfspool": "images,rootdir",
    "rbd": "images",
    "cephfs": "backup",
    "pbs": "backup",
}
_FILES = "images rootdir vztmpl iso backup snippets import none"
HOLDS = {
    **dict.fromkeys(("dir", "btrfs", "nfs", "cifs"), _FILES),
    **dict.fromkeys(("lvm", "lvmthin", "zfspool", "rbd"), "images rootdir none"),
    "cephfs": "vztmpl iso backup snippets import none",
    "glusterfs": "images vztmpl iso backup snippets import none",
    "iscsi": "images none",
    "iscsidirect": "images none",
    "zfs": "images none",
    "pbs": "backup none",
    "esxi": "import none",
}
"""What each type of storage can hold; of anything else the real parser warns, and leaves it out."""

EXTENSIONS = {
    "iso": r"\.(iso|img)$",
    "vztmpl": r"\.tar\.(gz|xz|zst|bz2)$",
    "import": r"\.(ova|qcow2|raw|vmdk)$",
}
FOLDERS = {
    "iso": "template/iso",
    "vztmpl": "template/cache",
    "backup": "dump",
    "snippets": "snippets",
    "import": "import",
    "images": "images",
    "rootdir": "images",
}


# --- state ----------------------------------------------------------------------------------------


@dataclass
class StorageState:
    """One entry of storage.cfg, with the room it has on each node ("" when shared)."""

    storage: str
    type: str
    content: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    nodes: list[str] | None = None
    shared: bool = False
    disable: bool = False
    total: dict[str, int] = field(default_factory=dict)
    occupied: dict[str, int] = field(default_factory=dict)  # by things that are no volumes
    inactive_on: set[str] = field(default_factory=set)  # enabled, but not reachable there

    @property
    def file_based(self) -> bool:
        """Whether its volumes are files in folders."""
        return self.type in FILE_BASED

    def at(self, node: str) -> str:
        """The key of what lies on `node`: its name, or "" where all nodes see the same."""
        return "" if self.shared else node

    def on(self, node: str) -> bool:
        """Whether the configuration offers it to `node`."""
        return self.nodes is None or node in self.nodes

    def active(self, node: str) -> bool:
        """Whether `node` can use it now."""
        return self.on(node) and not self.disable and node not in self.inactive_on

    def path(self) -> str:
        """Where a file storage is mounted."""
        return str(self.options.get("path") or f"/mnt/pve/{self.storage}")


@dataclass
class VolumeState:
    """One volume. `data` holds an upload's bytes while it is small enough to keep."""

    volid: str
    content: str
    format: str
    size: int
    used: int
    ctime: int
    vmid: int | None = None
    parent: str | None = None
    notes: str | None = None
    protected: bool = False
    sha256: str | None = None
    data: bytes | None = None
    virtual: int | None = None  # the size a disk made from this image gets
    bootable: bool = False  # an operating system is on it

    @property
    def storage(self) -> str:
        """The storage's name."""
        return self.volid.partition(":")[0]

    @property
    def name(self) -> str:
        """The volume's name within the storage."""
        return self.volid.partition(":")[2]


@functools.lru_cache(maxsize=4096)
def parse_size(text: str | int, *, unit: str = "") -> int:
    """Bytes of "4G", "512M", "376832" (in `unit` when it names none)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])?i?B?\s*", str(text))
    if not match:
        raise ValueError(f"not a size: {text!r}")
    factor = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}[match[2] or unit]
    return int(float(match[1]) * factor)


def format_size(size: int) -> str:
    """A size as a drive's `size=` writes it: the largest unit that divides it."""
    for unit, factor in (("T", 1024 * GIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def human(size: float) -> str:
    """A size as task logs write it: "2.0 GiB"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    index = 0
    while size >= 1024 and index < len(units) - 1:
        size /= 1024
        index += 1
    return f"{size:.1f} {units[index]}"


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the storages and volumes from a scenario's `storages:` (see scenarios/healthy.yaml)."""
    now = int(state.clock.now())
    for name, entry in (section.get("storages") or {}).items():
        kind = entry["type"]
        shared = bool(entry.get("shared", kind in SHARED_TYPES))
        storage = StorageState(
            storage=name,
            type=kind,
            content=list(entry.get("content") or DEFAULT_CONTENT.get(kind, "images").split(",")),
            options=dict(entry.get("options") or {}),
            nodes=entry.get("nodes"),
            shared=shared,
            disable=bool(entry.get("disable", False)),
            inactive_on=set(entry.get("inactive_on") or ()),
        )
        for node in [""] if shared else (storage.nodes or list(state.nodes)):
            storage.total[node] = parse_size(entry.get("total", "100G"))
            storage.occupied[node] = parse_size(entry.get("used", 0))
        # a node may have its own sizes: {pve2: {used: 95G}}
        for node, own in (entry.get("on") or {}).items():
            for key, table in (("total", storage.total), ("used", storage.occupied)):
                if key in own:
                    table[node] = parse_size(own[key])
        state.storages[name] = storage
        for volume in entry.get("volumes") or ():
            where = [""] if shared else ([volume["node"]] if "node" in volume else list(storage.total))
            size = parse_size(volume["size"])
            for node in where:
                add_volume(
                    state,
                    node,
                    VolumeState(
                        volid=f"{name}:{volume['name']}",
                        content=volume["content"],
                        format=volume.get("format") or volume_format(volume["name"]),
                        size=size,
                        used=parse_size(volume.get("used", size)),
                        ctime=now - int(volume.get("age_seconds", 86400 * 30)),
                        vmid=volume.get("vmid"),
                        notes=volume.get("notes"),
                        protected=bool(volume.get("protected", False)),
                        virtual=parse_size(volume["virtual"]) if "virtual" in volume else None,
                        bootable=bool(volume.get("bootable", True)),
                    ),
                )
    state.areas["downloads"] = dict(section.get("downloads") or {})
    state.areas["servers"] = list(section.get("servers") or ())


# --- volumes --------------------------------------------------------------------------------------


def volume_format(name: str) -> str:
    """The format a volume's name tells: its extension, "iso" below iso/, else "raw"."""
    if name.startswith("iso/"):
        return "iso"
    match = re.search(r"\.(raw|qcow2|vmdk|ova|subvol)$", name)
    if match:
        return match[1]
    match = re.search(r"\.(tar\.\w+|vma\.\w+|tgz|txz|tzst|yaml|yml)$", name)
    return {"tar.gz": "tgz", "tar.xz": "txz", "tar.zst": "tzst"}.get(match[1], match[1]) if match else "raw"


def add_volume(state: PveState, node: str, volume: VolumeState) -> VolumeState:
    """The volume, now lying on `node` ("" for a shared storage)."""
    state.volumes[(node, volume.volid)] = volume
    return volume


def find_volume(state: PveState, node: str, volid: str) -> VolumeState | None:
    """The volume as `node` sees it, or None."""
    storage = state.storages.get(volid.partition(":")[0])
    return state.volumes.get((storage.at(node), volid)) if storage else None


def remove_volume(state: PveState, node: str, volid: str) -> bool:
    """Whether there was such a volume; now it is gone."""
    storage = state.storages.get(volid.partition(":")[0])
    return storage is not None and state.volumes.take((storage.at(node), volid)) is not None


def volumes_on(state: PveState, storage: StorageState, node: str) -> list[VolumeState]:
    """The storage's volumes as `node` sees them, by name."""
    return state.volumes.on(storage.at(node), storage.storage)


def thick(storage: StorageState) -> bool:
    """Whether a volume takes at once all that it may ever need: LVM, and ZFS that is not told to be sparse."""
    return storage.type == "lvm" or (storage.type == "zfspool" and not storage.options.get("sparse"))


def usage(state: PveState, storage: StorageState, node: str) -> tuple[int, int, int]:
    """Total, used and available bytes on `node`; zeros where it is not active."""
    if not storage.active(node):
        return 0, 0, 0
    where = storage.at(node)
    total = storage.total.get(where, 0)
    if thick(storage):
        written = sum(volume.size for volume in state.volumes.on(where, storage.storage))
    else:
        written = state.volumes.used(where, storage.storage)
    used = storage.occupied.get(where, 0) + written
    return total, min(used, total), max(total - used, 0)


def volume_path(storage: StorageState, volid: str) -> str:
    """Where the volume lies on the node."""
    name = volid.partition(":")[2]
    if storage.file_based:
        folder, _, rest = name.partition("/")
        if folder in FOLDERS:
            return f"{storage.path()}/{FOLDERS[folder]}/{rest}"
        return f"{storage.path()}/images/{name.rsplit('/', 2)[-2]}/{name.rsplit('/', 1)[-1]}"
    if storage.type in ("lvm", "lvmthin"):
        return f"/dev/{storage.options.get('vgname', 'pve')}/{name}"
    if storage.type == "zfspool":
        return f"/dev/zvol/{storage.options.get('pool', 'rpool')}/{name}"
    return f"rbd:{storage.options.get('pool', 'rbd')}/{name}"


def disk_volid(storage: StorageState, vmid: int, name: str) -> str:
    """The volid of a guest's disk on this kind of storage."""
    return f"{storage.storage}:{vmid}/{name}" if storage.file_based else f"{storage.storage}:{name}"


def next_disk_name(state: PveState, storage: StorageState, node: str, vmid: int, fmt: str, *, kind: str = "vm") -> str:
    """The first free `vm-<vmid>-disk-N` name."""
    taken = {
        match[1]
        for v in volumes_on(state, storage, node)
        if v.vmid == vmid and (match := re.search(r"(?:vm|base)-\d+-disk-(\d+)", v.name.rsplit("/", 1)[-1]))
    }
    number = next(n for n in range(1000) if str(n) not in taken)
    return f"{kind}-{vmid}-disk-{number}" + (f".{fmt}" if storage.file_based else "")


def allocate(
    state: PveState,
    node: str,
    storage: StorageState,
    vmid: int,
    size: int,
    *,
    fmt: str = "raw",
    name: str | None = None,
    content: str = "images",
    parent: str | None = None,
    used: int = 0,
) -> VolumeState:
    """A new volume for a guest. Raises PveError when there is no room for it."""
    if not storage.active(node):
        raise PveError(500, f"storage '{storage.storage}' is not available on node '{node}'")
    fmt = fmt if storage.file_based else "raw"
    name = name or next_disk_name(state, storage, node, vmid, fmt)
    volid = disk_volid(storage, vmid, name)
    if parent and storage.file_based:
        volid = f"{parent}/{vmid}/{name}"
    elif parent and storage.type in ("rbd", "zfspool"):
        volid = f"{parent}/{name}"
    if (storage.at(node), volid) in state.volumes:
        raise PveError(500, f"disk image '{volume_path(storage, volid)}' already exists")
    if why := no_space(state, storage, node, size, volid):
        raise PveError(500, why)
    if used > usage(state, storage, node)[2]:
        raise PveError(500, f"unable to create image: no space left on storage '{storage.storage}'")
    return add_volume(
        state,
        storage.at(node),
        VolumeState(volid, content, fmt, size, used, int(state.clock.now()), vmid=vmid, parent=parent),
    )


EXTENT = 4 * MIB
"""What LVM hands out at a time."""


def no_space(state: PveState, storage: StorageState, node: str, size: int, volid: str) -> str:
    """What the storage's own tool says when a volume of that size cannot be made; empty when it can.

    Thin storage promises anything until it is full; a raw file takes no room before it is written to.
    """
    free, name = usage(state, storage, node)[2], volid.rpartition("/")[2].rpartition(":")[2]
    room = size <= free if thick(storage) else free > 0
    if room or not (storage.total.get(storage.at(node)) or thick(storage)):
        return ""
    pool, group = storage.options.get("pool", "rpool"), storage.options.get("vgname", "pve")
    match storage.type:
        case "lvm":
            needed, left = -(-size // EXTENT), free // EXTENT
            text = f'Volume group "{group}" has insufficient free space ({left} extents): {needed} required.'
            return f"lvcreate '{group}/{name}' error:   {text}"
        case "lvmthin":
            thin = f"{group}/{storage.options.get('thinpool', 'data')}"
            text = f"Cannot create new thin volume, free space in thin pool {thin} reached threshold."
            return f"lvcreate '{group}/{name}' error:   {text}"
        case "zfspool":
            return f"zfs error: cannot create '{pool}/{name}': out of space"
        case "rbd":
            return f"rbd create '{name}' error: rbd: create error: (28) No space left on device"
        case _:
            return f"unable to create image: qemu-img: {volume_path(storage, volid)}: No space left on device"


def no_growth(state: PveState, storage: StorageState, node: str, volume: VolumeState, more: int) -> str:
    """What the storage's own tool says when a volume cannot grow by `more` bytes; empty when it can."""
    free = usage(state, storage, node)[2]
    if not thick(storage) or more <= free:
        return ""
    if storage.type == "lvm":
        text = f"Insufficient free space: {-(-more // EXTENT)} extents needed, but only {free // EXTENT} available"
        return f"error resizing volume '{volume_path(storage, volume.volid)}':   {text}"
    name = f"{storage.options.get('pool', 'rpool')}/{volume.name.rpartition('/')[2]}"
    return f"zfs error: cannot set property for '{name}': size is greater than available space"


def fill(
    state: PveState, task: TaskContext | None, node: str, volume: VolumeState, used: int, source: VolumeState
) -> None:
    """Let `used` bytes of `source` take their room in the new volume. Raises TaskError when there is too little.

    The bytes count from the beginning, so that of two copies that do not fit together the second one fails.
    """
    storage = state.storages[volume.storage]
    free = usage(state, storage, node)[2]
    if thick(storage) or used <= free:
        volume.used = used
        return
    if task is not None:
        task.log(f"qemu-img: error while writing at byte {free // 512 * 512}: No space left on device")
    origin, goal = volume_path(state.storages[source.storage], source.volid), volume_path(storage, volume.volid)
    command = f"/usr/bin/qemu-img convert -p -n -f {source.format} -O {volume.format} {origin} {goal}"
    raise TaskError(f"copy failed: command '{command}' failed: exit code 1")


def creation_log(storage: StorageState, volume: VolumeState) -> str:
    """The line a task writes when it makes a disk."""
    if storage.file_based:
        path = volume_path(storage, volume.volid)
        if volume.format == "qcow2":
            return (
                f"Formatting '{path}', fmt=qcow2 cluster_size=65536 extended_l2=off preallocation=metadata "
                f"compression_type=zlib size={volume.size} lazy_refcounts=off refcount_bits=16"
            )
        return f"Formatting '{path}', fmt={volume.format} size={volume.size} preallocation=off"
    if storage.type in ("lvm", "lvmthin"):
        return f'Logical volume "{volume.name}" created.'
    return f"created volume '{volume.volid}'"


def volume_row(storage: StorageState, volume: VolumeState) -> dict[str, Any]:
    """One row of a content listing, with the keys this kind of storage has."""
    row: dict[str, Any] = {
        "volid": volume.volid,
        "content": volume.content,
        "format": volume.format,
        "size": volume.size,
        "ctime": volume.ctime,
    }
    if volume.vmid is not None:
        row["vmid"] = volume.vmid
    if volume.content in ("images", "rootdir") and storage.file_based:
        row["used"] = volume.used
        parent = volume.parent
        row["parent"] = f"../{parent.partition(':')[2]}" if parent else None
    if volume.content == "backup":
        row["subtype"] = "lxc" if "vzdump-lxc" in volume.volid else "qemu"
    if volume.notes is not None:
        row["notes"] = volume.notes
    if volume.protected:
        row["protected"] = 1
    return row


# --- permissions of volumes -----------------------------------------------------------------------


def check_volume_access(call: Call, volume: VolumeState, *, vmid: int | None = None) -> None:
    """Nothing, or 403 when the caller may not read the volume."""
    path = f"/storage/{volume.storage}"
    if volume.content in ("iso", "vztmpl", "import", "snippets"):
        call.check(path, "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
        return
    if (vmid is not None and volume.vmid == vmid) or call.allowed(path, "Datastore.Allocate"):
        return
    if volume.content == "backup" and volume.vmid:
        call.check(path, "Datastore.AllocateSpace")
        call.check(f"/vms/{volume.vmid}", "VM.Backup")
    elif volume.vmid:
        call.check(path, "Datastore.Audit")
        call.check(f"/vms/{volume.vmid}", "VM.Config.Disk")
    else:
        raise PveError(403, f"Permission check failed ({path}, Datastore.Allocate)")


def readable(call: Call, volumes: Iterable[VolumeState]) -> Iterator[VolumeState]:
    """Those of the volumes that the caller may see."""
    for volume in volumes:
        try:
            check_volume_access(call, volume)
        except PveError:
            continue
        yield volume


# --- /storage ------------------------------------------------------------------------------------

CONTENT_WORDS = ("images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import", "none")


def storage_digest(state: PveState) -> str:
    """The digest of storage.cfg: it changes with every edit."""
    text = json.dumps([configuration(s, digest=None) for s in state.storages.values()], sort_keys=True)
    return hashlib.sha1(text.encode()).hexdigest()


def configuration(storage: StorageState, *, digest: str | None, flavour: str = "8.4") -> dict[str, Any]:
    """One entry of GET /storage."""
    row: dict[str, Any] = {"storage": storage.storage, "type": storage.type, "content": ",".join(storage.content)}
    if flavour != "8.4":
        row["priority"] = 0
    row.update(storage.options)
    if storage.nodes is not None:
        row["nodes"] = ",".join(storage.nodes)
    if storage.disable:
        row["disable"] = 1
    if storage.shared and storage.type not in SHARED_TYPES:
        row["shared"] = 1
    if digest is not None:
        row["digest"] = digest
    return row


def require_storage(state: PveState, name: str) -> StorageState:
    """The storage, or PVE's 500."""
    if name not in state.storages:
        raise PveError(500, f"storage '{name}' does not exist")
    return state.storages[name]


def require_active(state: PveState, name: str, node: str) -> StorageState:
    """The storage as usable on `node`, or PVE's 500."""
    storage = require_storage(state, name)
    if storage.disable:
        raise PveError(500, f"storage '{name}' is disabled")
    if not storage.on(node):
        raise PveError(500, f"storage '{name}' is not available on node '{node}'")
    if not storage.active(node):
        raise PveError(500, f"storage '{name}' is not online")
    return storage


TYPE = Either(String(optional=True, enum=TYPES), String(optional=True, enum=TYPES_9))
BANDWIDTH = {name: Number(optional=True, minimum=0) for name in ("clone", "default", "migration", "move", "restore")}
OPTION_PARAMETERS: dict[str, Any] = {
    "content": String(optional=True, format="pve-storage-content-list"),
    "nodes": String(optional=True, format="pve-node-list"),
    "disable": Boolean(optional=True),
    "shared": Boolean(optional=True),
    "server": String(optional=True, format="pve-storage-server"),
    "server2": only_8(String(optional=True, format="pve-storage-server", requires="server")),
    "options": String(optional=True, format="pve-storage-options"),
    "pool": String(optional=True),
    "monhost": String(optional=True, format="pve-storage-portal-dns-list"),
    "username": String(optional=True),
    "krbd": Boolean(optional=True),
    "sparse": Boolean(optional=True),
    "blocksize": Either(String(optional=True), String(optional=True, format="pve-storage-zfs-blocksize")),
    "mkdir": Boolean(optional=True),
    "create-base-path": Boolean(optional=True),
    "create-subdirs": Boolean(optional=True),
    "is_mountpoint": String(optional=True),
    "prune-backups": String(optional=True, format="prune-backups"),
    "preallocation": String(optional=True, enum=("off", "metadata", "falloc", "full")),
    "format": String(optional=True, enum=("raw", "qcow2", "subvol", "vmdk")),
    "bwlimit": String(optional=True, format=BANDWIDTH),
    "fingerprint": String(optional=True, pattern=r"^([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}$"),
    "password": String(optional=True, max_length=256),
    "max-protected-backups": Integer(optional=True, minimum=-1),
    "saferemove": Boolean(optional=True),
    "tagged_only": Boolean(optional=True),
    "subdir": String(optional=True, format="pve-storage-path"),
    "fs-name": String(optional=True, format="pve-configid"),
    "port": Integer(optional=True, minimum=1, maximum=65535),
    "namespace": String(optional=True),
    "keyring": String(optional=True),
    "data-pool": String(optional=True),
    "comstar_hg": String(optional=True),
    "comstar_tg": String(optional=True),
    "content-dirs": String(optional=True, format="pve-dir-override-list"),
    "domain": String(optional=True, max_length=256),
    "encryption-key": String(optional=True),
    "fuse": Boolean(optional=True),
    "lio_tpg": String(optional=True),
    "master-pubkey": String(optional=True),
    "maxfiles": only_8(Integer(optional=True, minimum=0)),
    "mountpoint": String(optional=True, format="pve-storage-path"),
    "nocow": Boolean(optional=True),
    "nowritecache": Boolean(optional=True),
    "saferemove-stepsize": only_9(Integer(optional=True, enum=("1", "2", "4", "8", "16", "32"))),
    "saferemove_throughput": String(optional=True),
    "skip-cert-verification": Boolean(optional=True),
    "smbversion": String(optional=True, enum=("default", "2.0", "2.1", "3", "3.0", "3.11")),
    "snapshot-as-volume-chain": only_9(Boolean(optional=True)),
    "transport": only_8(String(optional=True, enum=("tcp", "rdma", "unix"))),
    "zfs-base-path": String(optional=True, format="pve-storage-path"),
}
CREATION_PARAMETERS: dict[str, Any] = {
    "path": String(optional=True, format="pve-storage-path"),
    "export": String(optional=True, format="pve-storage-path"),
    "share": String(optional=True),
    "vgname": String(optional=True, format="pve-storage-vgname"),
    "thinpool": String(optional=True, format="pve-storage-vgname"),
    "portal": String(optional=True, format="pve-storage-portal-dns"),
    "authsupported": String(optional=True),
    "iscsiprovider": String(optional=True),
    "volume": only_8(String(optional=True)),
    "target": String(optional=True),
    "datastore": String(optional=True),
    "base": String(optional=True, format="pve-volume-id"),
}


def apply_options(storage: StorageState, params: Mapping[str, Any]) -> None:
    """Write the given options into the entry."""
    for key, value in params.items():
        if key == "content":
            storage.content = [kind for kind in split_list(value) if kind in HOLDS[storage.type].split()]
        elif key == "nodes":
            storage.nodes = split_list(value) or None
        elif key == "disable":
            storage.disable = bool(value)
        elif key == "shared":
            storage.shared = bool(value)
        else:
            storage.options[key] = int(value) if isinstance(value, bool) else value


@route(
    "GET",
    "/storage",
    params={"type": TYPE},
    permission="any",
)
def list_configuration(call: Call) -> list[dict[str, Any]]:
    """The entries of storage.cfg that the caller may see."""
    digest = storage_digest(call.state)
    return [
        configuration(s, digest=digest, flavour=call.flavour)
        for s in call.state.storages.values()
        if call.params.get("type") in (None, s.type)
        and call.allowed(f"/storage/{s.storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
    ]


@route(
    "POST",
    "/storage",
    params={
        "storage": String(format="pve-storage-id"),
        "type": Either(String(enum=TYPES), String(enum=TYPES_9)),
        **CREATION_PARAMETERS,
        **OPTION_PARAMETERS,
    },
    permission=perm("/storage", "Datastore.Allocate"),
)
def create_storage(call: Call) -> dict[str, Any]:
    """The new entry's name and type."""
    params = dict(call.params)
    name, kind = params.pop("storage"), params.pop("type")
    for key in REQUIRED.get(kind, ()):
        if key not in params:
            raise PveError(500, f"missing value for required option '{key}'")
    require_quorum(call.state, "create storage failed: cfs-lock 'file-storage_cfg' error: no quorum!")
    if name in call.state.storages:
        raise PveError(500, f"create storage failed: storage ID '{name}' already defined")
    storage = StorageState(
        storage=name,
        type=kind,
        content=DEFAULT_CONTENT.get(kind, "images").split(","),
        shared=kind in SHARED_TYPES,
    )
    apply_options(storage, params)
    if kind in ("nfs", "cifs", "iscsi", "pbs") and params.get(
        "server", params.get("portal")
    ) not in call.state.areas.setdefault("servers", []):
        # the real one looks for the server before it writes the entry
        raise PveError(500, f"create storage failed: storage '{name}' is not online")
    local = call.state.storages.get("local")
    for node in [""] if storage.shared else list(call.state.nodes):
        # a directory lies on the root file system, as `local` does
        storage.total[node] = local.total.get(node, 100 * GIB) if local and kind == "dir" else 100 * GIB
        storage.occupied[node] = local.occupied.get(node, 0) if local and kind == "dir" else 0
    call.state.storages[name] = storage
    return {"storage": name, "type": kind}


@route(
    "GET",
    "/storage/{storage}",
    permission=perm("/storage/{storage}", "Datastore.Allocate"),
)
def get_configuration(call: Call) -> dict[str, Any]:
    """One entry of storage.cfg."""
    storage = require_storage(call.state, call.params["storage"])
    return configuration(storage, digest=storage_digest(call.state), flavour=call.flavour)


@route(
    "PUT",
    "/storage/{storage}",
    params={
        "delete": String(optional=True, format="pve-configid-list", max_length=4096),
        "digest": String(optional=True, max_length=64),
        **OPTION_PARAMETERS,
    },
    permission=perm("/storage", "Datastore.Allocate"),
)
def update_storage(call: Call) -> dict[str, Any]:
    """The changed entry's name and type."""
    params = dict(call.params)
    name = params.pop("storage")
    require_quorum(call.state, "update storage failed: cfs-lock 'file-storage_cfg' error: no quorum!")
    if name not in call.state.storages:
        raise PveError(500, f"update storage failed: storage '{name}' does not exist")
    storage = call.state.storages[name]
    digest = params.pop("digest", None)
    if digest and digest != storage_digest(call.state):
        raise PveError(
            500, "update storage failed: detected modified configuration - file changed by other user? Try again."
        )
    for key in split_list(params.pop("delete", "")):
        if key == "nodes":
            storage.nodes = None
        elif key == "disable":
            storage.disable = False
        elif key == "content":
            storage.content = DEFAULT_CONTENT.get(storage.type, "images").split(",")
        elif key:
            storage.options.pop(key, None)
    apply_options(storage, params)
    return {"storage": name, "type": storage.type}


@route(
    "DELETE",
    "/storage/{storage}",
    permission=perm("/storage", "Datastore.Allocate"),
)
def delete_storage(call: Call) -> None:
    """Nothing; the entry is gone, its volumes stay where they are."""
    name = call.params["storage"]
    require_quorum(call.state, "delete storage failed: cfs-lock 'file-storage_cfg' error: no quorum!")
    if name not in call.state.storages:
        raise PveError(500, f"delete storage failed: storage '{name}' does not exist")
    del call.state.storages[name]
    for key in [key for key, volume in call.state.volumes.items() if volume.storage == name]:
        del call.state.volumes[key]


# --- /nodes/{node}/storage -----------------------------------------------------------------------

AUDIT = perm("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)


def status_row(state: PveState, storage: StorageState, node: str) -> dict[str, Any]:
    """What a storage is worth on a node."""
    total, used, available = usage(state, storage, node)
    return {
        "type": storage.type,
        "content": ",".join(storage.content),
        "active": int(storage.active(node)),
        "enabled": int(not storage.disable),
        "shared": int(storage.shared),
        "total": total,
        "used": used,
        "avail": available,
    }


@route(
    "GET",
    "/nodes/{node}/storage",
    params={
        "content": String(optional=True, format="pve-storage-content-list"),
        "enabled": Boolean(optional=True),
        "format": Boolean(optional=True),
        "storage": String(optional=True, format="pve-storage-id"),
        "target": String(optional=True, format="pve-node"),
    },
    permission="any",
)
def list_storage(call: Call) -> list[dict[str, Any]]:
    """The storages of a node, with what they hold; those the caller may not see are left out."""
    node, params = call.node, call.params
    wanted = set(split_list(params.get("content") or ""))
    rows = []
    for storage in call.state.storages.values():
        if params.get("storage") not in (None, storage.storage) or not storage.on(node):
            continue
        if wanted and not wanted & set(storage.content):
            continue
        if params.get("enabled") and storage.disable:
            continue
        if (target := params.get("target")) and not (storage.shared and storage.on(target)):
            continue
        if not call.allowed(f"/storage/{storage.storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True):
            continue
        row = {"storage": storage.storage, **status_row(call.state, storage, node)}
        if row["total"]:
            row["used_fraction"] = row["used"] / row["total"]
        rows.append(row)
    return rows


@route("GET", "/nodes/{node}/storage/{storage}", permission=AUDIT)
def storage_index(call: Call) -> list[dict[str, str]]:
    """The names below one storage."""
    names = [
        "content",
        "download-url",
        "file-restore",
        "import-metadata",
        "prunebackups",
        "rrd",
        "rrddata",
        "status",
        "upload",
    ]
    if call.flavour.startswith("9"):
        names = sorted([*names, "identity", "oci-registry-pull"])
    return [{"subdir": name} for name in names]


@route("GET", "/nodes/{node}/storage/{storage}/status", permission=AUDIT)
def storage_status(call: Call) -> dict[str, Any]:
    """What one storage is worth on a node."""
    storage = call.state.storages.get(call.params["storage"])
    if storage is None or not storage.on(call.node):
        raise param_error({"storage": "No such storage."})
    return status_row(call.state, storage, call.node)


@route(
    "GET",
    "/nodes/{node}/storage/{storage}/content",
    params={
        "content": String(optional=True, format="pve-storage-content"),
        "vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
    },
    permission=AUDIT,
)
def list_content(call: Call) -> list[dict[str, Any]]:
    """The volumes of a storage that the caller may see."""
    storage = require_active(call.state, call.params["storage"], call.node)
    return [
        volume_row(storage, volume)
        for volume in readable(call, volumes_on(call.state, storage, call.node))
        if call.params.get("content") in (None, volume.content) and call.params.get("vmid") in (None, volume.vmid)
    ]


@route(
    "POST",
    "/nodes/{node}/storage/{storage}/content",
    params={
        "filename": String(),
        "size": String(pattern=r"^\d+[MG]?$"),
        "vmid": Integer(format="pve-vmid", minimum=100, maximum=999999999),
        "format": String(optional=True, enum=("raw", "qcow2", "subvol", "vmdk"), requires="size"),
    },
    permission=perm("/storage/{storage}", "Datastore.AllocateSpace"),
)
def allocate_volume(call: Call) -> str:
    """The new volume's volid; it is there when the answer comes."""
    params, node = call.params, call.node
    storage = require_active(call.state, params["storage"], node)
    name, vmid = params["filename"], params["vmid"]
    fmt = params.get("format")
    extension = re.search(r"\.(raw|qcow2|vmdk)$", name)
    if extension:
        if fmt and fmt != extension[1]:
            raise param_error({"format": f"different storage formats ({fmt} != {extension[1]})"})
        fmt = extension[1]
    if not re.match(rf"(vm|base|subvol)-{vmid}-", name):
        raise PveError(500, f"illegal name '{name}' - should be 'vm-{vmid}-*'")
    if storage.file_based and not extension:
        raise PveError(500, f"unable to parse volume filename '{name}'")
    if not storage.file_based and (fmt or "raw") not in ("raw", "subvol"):
        raise PveError(500, f"unsupported format '{fmt}'")
    size = parse_size(params["size"], unit="K")
    return allocate(call.state, node, storage, vmid, size, fmt=fmt or "raw", name=name).volid


def volume_of(call: Call) -> tuple[StorageState, str]:
    """The storage and the volid a path names; the storage's name may stand in the volume or in the path."""
    volume, name = urllib.parse.unquote(call.params["volume"]), call.params.get("storage")
    if ":" in volume:
        named = volume.partition(":")[0]
        if name and named != name:
            raise param_error({"storage": f"storage ID missmatch ({name} != {named})"})
        name, volid = named, volume
    else:
        volid = f"{name}:{volume}"
    storage = require_active(call.state, str(name), call.node)
    rest = volid.partition(":")[2]
    if storage.file_based and "/" not in rest:
        raise PveError(500, f"unable to parse directory volume name '{rest}'")
    return storage, volid


@route("GET", "/nodes/{node}/storage/{storage}/content/{volume:rest}", permission="any")
def volume_attributes(call: Call) -> dict[str, Any]:
    """Path, size, format and used bytes of one volume."""
    storage, volid = volume_of(call)
    volume = find_volume(call.state, call.node, volid)
    if volume is None:
        call.check(f"/storage/{storage.storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
        raise PveError(500, f"volume_size_info on '{volid}' failed - no format")
    check_volume_access(call, volume)
    # qemu-img reads an ISO as a raw image
    fmt = "raw" if volume.format == "iso" else volume.format
    row: dict[str, Any] = {
        "path": volume_path(storage, volid),
        "size": volume.size,
        "used": volume.used,
        "format": fmt,
    }
    if volume.notes is not None:
        row["notes"] = volume.notes
    if volume.protected:
        row["protected"] = 1
    return row


@route(
    "PUT",
    "/nodes/{node}/storage/{storage}/content/{volume:rest}",
    params={"notes": String(optional=True), "protected": Boolean(optional=True)},
    permission="any",
)
def update_volume(call: Call) -> None:
    """Nothing; notes and protection of a volume are changed."""
    _, volid = volume_of(call)
    volume = find_volume(call.state, call.node, volid)
    if volume is None:
        raise PveError(500, f"volume '{volid}' does not exist")
    check_volume_access(call, volume)
    if "notes" in call.params:
        volume.notes = call.params["notes"]
    if "protected" in call.params:
        volume.protected = bool(call.params["protected"])


@route(
    "DELETE",
    "/nodes/{node}/storage/{storage}/content/{volume:rest}",
    params={"delay": Integer(optional=True, minimum=1, maximum=30)},
    permission="any",
)
async def delete_volume(call: Call) -> str | None:
    """The UPID of the removal, or None when it was over within `delay` seconds."""
    node = call.node
    storage, volid = volume_of(call)
    volume = find_volume(call.state, node, volid)
    if volume is not None:
        check_volume_access(call, volume)
    if volume is not None and volume.content == "backup" and volume.vmid:
        call.check(f"/storage/{storage.storage}", "Datastore.AllocateSpace")
        call.check(f"/vms/{volume.vmid}", "VM.Backup")
    else:
        call.check(f"/storage/{storage.storage}", "Datastore.Allocate")

    async def work(task: TaskContext) -> None:
        if volume is not None and volume.protected:
            raise TaskError(f"cannot remove protected volume '{volid}' on '{storage.storage}'")
        for guest in call.state.guests.values():
            template = guest.config.get("template")
            if template and any(str(value).startswith(volid) for value in guest.config.values()):
                raise TaskError(f"cannot remove volume '{volid}', it is used by template {guest.vmid}")
        if any(other.parent == volid for other in call.state.volumes.values()):
            raise TaskError(f"base volume '{volid}' is still in use by linked cloned")
        await task.sleep(1)
        if not remove_volume(call.state, node, volid):
            if storage.file_based and not volid.partition(":")[2].startswith(tuple(FOLDERS)):
                task.log(f"disk image '{volume_path(storage, volid)}' does not exist")
            elif not storage.file_based:
                raise TaskError(f"failed to remove '{volid}': no such volume")
        task.log(f"Removed volume '{volid}'")

    owner = f"{volume.vmid}@" if volume is not None and volume.vmid else ""
    upid = call.task("imgdel", f"{owner}{storage.storage}", work)
    if delay := call.params.get("delay"):
        status = await finished_within(call.state, upid, delay)
        if status == "OK":
            return None
        if status is not None:
            raise PveError(500, status)
    return upid


@route(
    "POST",
    "/nodes/{node}/storage/{storage}/content/{volume:rest}",
    params={"target": String(), "target_node": String(optional=True, format="pve-node")},
    permission="root-only",
)
def copy_volume(call: Call) -> str:
    """The UPID of a copy to another volume name or node."""
    node, target = call.node, call.params["target"]
    storage, volid = volume_of(call)
    other = target if ":" in target else f"{storage.storage}:{target}"
    where = call.params.get("target_node") or node

    async def work(task: TaskContext) -> None:
        volume = find_volume(call.state, node, volid)
        if volume is None:
            raise TaskError(f"volume '{volid}' does not exist")
        task.log(f"copying volume '{volid}' to '{other}' on '{where}'")
        await task.sleep(2 + volume.size / (500 * MIB))
        goal = require_active(call.state, other.partition(":")[0], where)
        if why := no_space(call.state, goal, where, volume.size, other):
            raise TaskError(why)
        vmid = re.search(r"(?:vm|base)-(\d+)-", other)
        add_volume(
            call.state,
            goal.at(where),
            VolumeState(
                other,
                volume.content,
                volume.format,
                volume.size,
                volume.used,
                int(call.clock.now()),
                vmid=int(vmid[1]) if vmid else None,
            ),
        )

    return call.task("imgcopy", volid.partition(":")[2], work)


def hexdigest(path: Path, algorithm: str) -> str:
    """The file's checksum."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def virtual_size(path: Path) -> int | None:
    """The size a qcow2 image's header claims; None for other files."""
    with path.open("rb") as stream:
        head = stream.read(32)
    return int.from_bytes(head[24:32]) if head[:4] == b"QFI\xfb" and len(head) == 32 else None


def safe_filename(content: str, filename: str) -> str:
    """The name a file gets on the storage. Raises 400 when its extension does not fit the content."""
    name = re.sub(r"[^-a-zA-Z0-9_.]", "_", re.sub(r"^.*[/\\]", "", filename))
    if not re.search(EXTENSIONS[content], name, re.IGNORECASE):
        raise param_error({"filename": "wrong file extension"})
    return name


UPLOADED = ("iso", "vztmpl", "import")
CHECKSUMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")


def receiving(call: Call) -> tuple[StorageState, str]:
    """The storage and volume name a new file goes to, once they fit each other."""
    params, node = call.params, call.node
    storage = require_active(call.state, params["storage"], node)
    content = params["content"]
    name = safe_filename(content, params["filename"])
    if not storage.file_based:
        raise PveError(500, f"can't upload to storage type '{storage.type}', not a file based storage!")
    if content not in storage.content:
        raise PveError(500, f"storage '{storage.storage}' does not support '{content}' content")
    return storage, f"{content}/{name}"


@route(
    "POST",
    "/nodes/{node}/storage/{storage}/upload",
    params={
        "content": String(enum=UPLOADED, format="pve-storage-content"),
        "filename": String(max_length=255),
        "checksum": String(optional=True, requires="checksum-algorithm"),
        "checksum-algorithm": String(optional=True, enum=CHECKSUMS, requires="checksum"),
        "tmpfilename": String(optional=True, pattern=r"^/var/tmp/pveupload-[0-9a-f]+$"),
    },
    permission=perm("/storage/{storage}", "Datastore.AllocateTemplate"),
    upload=True,
)
async def upload(call: Call) -> str:
    """The UPID of the copy of an uploaded file to its place."""
    params, node = call.params, call.node
    storage, name = receiving(call)
    file = call.upload
    if file is None:
        raise PveError(500, "unable to read uploaded file: no file part in the request")
    # the spooled file goes away with the request, so all that is kept of it is read here
    sha256 = await asyncio.to_thread(hexdigest, file.path, "sha256")
    algorithm = params.get("checksum-algorithm", "sha256")
    digest = sha256 if algorithm == "sha256" else await asyncio.to_thread(hexdigest, file.path, algorithm)
    data = file.path.read_bytes() if file.size <= KEPT_BYTES else None
    virtual = virtual_size(file.path)
    source = f"/var/tmp/pveupload-{sha256[:32]}"
    path = volume_path(storage, f"{storage.storage}:{name}")

    async def work(task: TaskContext) -> None:
        task.log(f"starting file import from: {source}")
        if "checksum" in params:
            if digest.lower() != params["checksum"].lower():
                task.log("calculating checksum...")
                raise TaskError(f"checksum mismatch: got '{digest}' != expect '{params['checksum']}'")
            task.log("calculating checksum...OK, checksum verified")
        task.log(f"target node: {node}")
        task.log(f"target file: {path}")
        task.log(f"file size is: {file.size}")
        task.log(f"command: cp -- {source} {path}")
        if file.size > usage(call.state, storage, node)[2]:
            raise TaskError(f"import failed: cp: error writing '{path}': No space left on device")
        await task.sleep(1 + file.size / (200 * MIB))
        volume = VolumeState(
            f"{storage.storage}:{name}",
            params["content"],
            volume_format(name),
            file.size,
            file.size,
            int(call.clock.now()),
            sha256=sha256,
            data=data,
            virtual=virtual,
            bootable=params["content"] == "import",
        )
        add_volume(call.state, storage.at(node), volume)
        task.log("finished file import successfully")

    return call.task("imgcopy", "", work)


@route(
    "POST",
    "/nodes/{node}/storage/{storage}/download-url",
    params={
        "content": String(enum=UPLOADED, format="pve-storage-content"),
        "filename": String(max_length=255),
        "url": String(pattern=r"^https?://.*$"),
        "checksum": String(optional=True, requires="checksum-algorithm"),
        "checksum-algorithm": String(optional=True, enum=CHECKSUMS, requires="checksum"),
        "compression": String(optional=True),
        "verify-certificates": Boolean(optional=True),
    },
    permission=perm("/storage/{storage}", "Datastore.AllocateTemplate"),
)
def download_url(call: Call) -> str:
    """The UPID of a download. The lab fetches nothing: sizes and hashes come from the scenario's `downloads`."""
    params, node = call.params, call.node
    if not call.allowed("/", "Sys.Audit", "Sys.Modify"):
        call.check(f"/nodes/{node}", "Sys.AccessNetwork")
    storage, name = receiving(call)
    url, path = params["url"], volume_path(storage, f"{storage.storage}:{name}")
    volid = f"{storage.storage}:{name}"
    if find_volume(call.state, node, volid):
        raise PveError(500, f"refusing to override existing file '{path}'")
    known = call.state.areas.get("downloads", {}).get(url, {})

    async def work(task: TaskContext) -> None:
        task.log(f"downloading {url} to {path}")
        if known.get("error"):
            raise TaskError(f"download failed: {known['error']}")
        size = parse_size(known.get("size", "350M"))
        expected = known.get("checksum")
        if size > usage(call.state, storage, node)[2]:
            command = f"/usr/bin/wget --progress=dot:giga -O {path}.tmp_dwnl {url}"
            task.log(f"{path}.tmp_dwnl: No space left on device")
            raise TaskError(f"download failed: command '{command}' failed: exit code 3")
        await task.sleep(2 + size / (100 * MIB))
        if params.get("checksum") and expected and params["checksum"].lower() != expected.lower():
            task.log("calculating checksum...")
            raise TaskError(f"checksum mismatch: got '{expected}' != expect '{params['checksum']}'")
        if params.get("checksum"):
            task.log("calculating checksum...OK, checksum verified")
        add_volume(
            call.state,
            storage.at(node),
            VolumeState(
                volid,
                params["content"],
                volume_format(name),
                size,
                size,
                int(call.clock.now()),
                virtual=parse_size(known.get("virtual", "3G")),
                bootable=True,
            ),
        )
        task.log(f"download of '{url}' to '{path}' finished")

    return call.task("download", name.partition("/")[2], work)
