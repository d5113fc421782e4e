"""Drives of a VM: made, attached, detached, copied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..routing import Call, PveError, param_error
from ..storage import (
    GIB,
    MIB,
    StorageState,
    VolumeState,
    allocate,
    check_volume_access,
    creation_log,
    fill,
    find_volume,
    format_size,
    human,
    parse_size,
    remove_volume,
    require_active,
    require_storage,
)
from ..worker import TaskContext, TaskError
from .guest import GuestState, boot_order, parse_options, print_options

if TYPE_CHECKING:
    from ..state import PveState

DRIVE = re.compile(r"^(ide|sata|scsi|virtio)\d+$|^(efidisk0|tpmstate0)$")
NEW_DISK = re.compile(r"^([^/:\s]+):(\d+(?:\.\d+)?)$")
CLOUD_INIT = re.compile(r"^([^/:\s]+):cloudinit$")
CLOUD_INIT_SIZE = 4 * MIB
COPY_RATE = 400 * MIB
"""Bytes a second of the lab that a full copy moves."""


def drives(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The drives of a config with their options, by name."""
    found = [key for key in config if DRIVE.match(key)]
    for key in sorted(found, key=lambda k: (re.sub(r"\d", "", k), int(re.sub(r"\D", "", k)))):
        yield key, parse_options(str(config[key]))


def is_cdrom(options: Mapping[str, str]) -> bool:
    """Whether the drive is a CD-ROM, a cloud-init one included."""
    return options.get("media") == "cdrom"


def is_cloud_init(options: Mapping[str, str]) -> bool:
    """Whether the drive is a cloud-init one."""
    return bool(re.search(r"[:/]vm-\d+-cloudinit(\.\w+)?$", options.get("file", "")))


def volumes_of(config: Mapping[str, Any]) -> list[str]:
    """The volids a config uses for itself: disks, unused ones and cloud-init drives, no ISO images."""
    found = []
    for key, value in config.items():
        if not (DRIVE.match(key) or re.match(r"^(unused\d+|vmstate|rootfs|mp\d+)$", key)):
            continue
        options = parse_options(str(value))
        volid = options.get("file", "")
        if ":" in volid and (not is_cdrom(options) or is_cloud_init(options)):
            found.append(volid)
    return found


def check_drive(call: Call, guest_id: int, key: str, text: str) -> None:
    """Nothing, or the refusal of a drive's storage, source or path, before any task begins."""
    options = parse_options(text)
    volid = options.get("file", "")
    if not volid:
        raise param_error({key: "invalid format - format error\nfile: property is missing and it is not optional\n"})
    if volid in ("none", "cdrom"):
        return
    if source := options.get("import-from"):
        check_source(call, key, source)
    new = NEW_DISK.match(volid) or CLOUD_INIT.match(volid)
    if new:
        storage = require_storage(call.state, new[1])
        call.check(f"/storage/{new[1]}", "Datastore.AllocateSpace")
        if "images" not in storage.content:
            raise (
                param_error({"storage": f"storage '{new[1]}' does not support vm images"})
                if key == "storage"
                else PveError(500, f"storage '{new[1]}' does not support content-type 'images'")
            )
        return
    if volid.startswith("/"):
        if call.auth is None or not call.auth.is_root:
            raise PveError(500, f"{key}: only root may use absolute paths")
        return
    storage = require_storage(call.state, volid.partition(":")[0])
    volume = find_volume(call.state, call.node, volid)
    if volume is not None:
        check_volume_access(call, volume, vmid=guest_id)
    else:
        call.check(f"/storage/{storage.storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)


def check_source(call: Call, key: str, source: str) -> None:
    """Nothing, or the refusal of what a disk is to be imported from."""
    if source.startswith("/"):
        if call.auth is None or not call.auth.is_root:
            raise PveError(500, f"{key}: import-from: only root may use absolute paths")
        return
    require_storage(call.state, source.partition(":")[0])
    volume = find_volume(call.state, call.node, source)
    if volume is None:
        raise PveError(500, f"volume '{source}' does not exist")
    if volume.content not in ("images", "import"):
        raise param_error({key: f"{source} has wrong type '{volume.content}' - needs to be 'images' or 'import'"})
    check_volume_access(call, volume)


async def create_drive(
    state: PveState, guest: GuestState, key: str, text: str, task: TaskContext | None, made: list[str]
) -> str:
    """The drive's config text once its volume is there. Volids made on the way are added to `made`."""
    options = parse_options(text)
    volid = options["file"]

    def say(line: str) -> None:
        if task is not None:
            task.log(line)

    if volid in ("none", "cdrom") or volid.startswith("/"):
        return print_options(options)
    if match := CLOUD_INIT.match(volid):
        storage = require_active(state, match[1], guest.node)
        fmt = options.pop("format", "qcow2" if storage.file_based else "raw")
        name = f"vm-{guest.vmid}-cloudinit" + (f".{fmt}" if storage.file_based else "")
        volume = allocate(state, guest.node, storage, guest.vmid, CLOUD_INIT_SIZE, fmt=fmt, name=name)
        made.append(volume.volid)
        say(creation_log(storage, volume))
        text = print_options({**options, "file": volume.volid, "media": "cdrom"})
        say(f"{key}: successfully created disk '{text}'")
        return text
    if match := NEW_DISK.match(volid):
        storage = require_active(state, match[1], guest.node)
        fmt = options.pop("format", "raw")
        source = options.pop("import-from", None)
        size = int(float(match[2]) * GIB)
        if source:
            volume = await import_disk(state, guest, storage, source, fmt, task)
        else:
            size = 4 * MIB if key in ("efidisk0", "tpmstate0") else size
            if size <= 0:
                raise TaskError(f"{key}: disk size must be greater than 0")
            volume = allocate(state, guest.node, storage, guest.vmid, size, fmt=fmt)
            say(creation_log(storage, volume))
        made.append(volume.volid)
        options |= {"file": volume.volid, "size": format_size(volume.size)}
        text = print_options(options)
        say(f"{key}: successfully created disk '{text}'")
        return text
    # an existing volume: it must be there, and the config learns its size
    existing = find_volume(state, guest.node, volid)
    if existing is None:
        raise TaskError(f"volume '{volid}' does not exist")
    options.pop("format", None)
    return print_options({**options, "size": format_size(existing.size)})


async def import_disk(
    state: PveState,
    guest: GuestState,
    storage: StorageState,
    source: str,
    fmt: str,
    task: TaskContext | None,
) -> VolumeState:
    """A new volume with the content of an image."""
    image = find_volume(state, guest.node, source)
    if image is None:
        raise TaskError(f"volume '{source}' does not exist")
    size = image.virtual or image.size
    # lvmthin and friends allocate in whole MiB
    size = -(-size // MIB) * MIB
    volume = allocate(state, guest.node, storage, guest.vmid, size, fmt=fmt, used=0)
    volume.bootable = True
    if task is not None:
        task.log(creation_log(storage, volume))
    try:
        fill(state, task, guest.node, volume, min(size, max(image.used, image.size)), image)
    except TaskError:
        remove_volume(state, guest.node, volume.volid)
        raise
    if task is not None:
        await copy_progress(task, size)
    guest.bootable = True
    return volume


async def copy_progress(task: TaskContext, size: int) -> None:
    """Write the progress of a copy, and take the time it takes."""
    task.log(f"transferred 0.0 B of {human(size)} (0.00%)")
    parts = 4 if size > 4 * COPY_RATE else 1
    for part in range(1, parts + 1):
        await task.sleep(size / COPY_RATE / parts)
        done = size * part / parts
        task.log(f"transferred {human(done)} of {human(size)} ({100 * part / parts:.2f}%)")
    task.log(f"transferred {human(size)} of {human(size)} (100.00%)")


def detach(state: PveState, guest: GuestState, config: dict[str, Any], key: str) -> None:
    """Take a drive out of a config: a disk becomes unused, a cloud-init drive goes, a CD-ROM is forgotten."""
    options = parse_options(str(config.pop(key)))
    volid = options.get("file", "")
    order = [device for device in boot_order(config) if device != key]
    if "order=" in str(config.get("boot", "")):
        config["boot"] = f"order={';'.join(order)}" if order else ""
        if not order:
            del config["boot"]
    if is_cloud_init(options):
        remove_volume(state, guest.node, volid)
    elif ":" in volid and not is_cdrom(options) and is_owner(state, guest, volid):
        add_unused(config, volid)


def is_owner(state: PveState, guest: GuestState, volid: str) -> bool:
    """Whether the volume is the guest's own; one that a CSI driver attached is forgotten when it is detached."""
    volume = find_volume(state, guest.node, volid)
    if volume is not None and volume.vmid:
        return volume.vmid == guest.vmid
    named = re.search(r"(?:^|[:/])(?:vm|base|subvol)-(\d+)-", volid)
    return named is None or int(named[1]) == guest.vmid


def add_unused(config: dict[str, Any], volid: str) -> str:
    """The unusedN key under which the config now keeps the volume."""
    for key, value in config.items():
        if re.fullmatch(r"unused\d+", key) and value == volid:
            return key
    key = next(f"unused{n}" for n in range(256) if f"unused{n}" not in config)
    config[key] = volid
    return key


def default_boot(config: Mapping[str, Any]) -> str | None:
    """The boot order of a new VM: its first disk, its CD-ROMs, its network devices."""
    disks: list[str] = []
    cdroms: list[str] = []
    for key, options in drives(config):
        if key in ("efidisk0", "tpmstate0") or is_cloud_init(options):
            continue
        (cdroms if is_cdrom(options) else disks).append(key)
    rank = {"ide": 0, "scsi": 1, "virtio": 2, "sata": 3}
    disks.sort(key=lambda key: rank[re.sub(r"\d", "", key)])
    nets = sorted(key for key in config if re.fullmatch(r"net\d+", key))
    order = disks[:1] + cdroms[:1] + nets[:1]
    return f"order={';'.join(order)}" if order else None


def free_volumes(state: PveState, node: str, volids: Iterable[str]) -> None:
    """Remove volumes, children before the bases they grew from."""
    for volid in sorted(volids, key=len, reverse=True):
        remove_volume(state, node, volid)


def base_in_use(state: PveState, volids: Iterable[str]) -> str | None:
    """The first of the volumes that a linked clone still stands on."""
    for volid in volids:
        if any(other.parent == volid for other in state.volumes.values()):
            return volid
    return None


def size_of(text: str) -> int:
    """Bytes a drive's config text claims."""
    return parse_size(parse_options(text).get("size", "0"))
