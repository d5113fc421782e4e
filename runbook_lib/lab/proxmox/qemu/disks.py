"""Disks of a VM that exist already: grown, moved, taken away."""

from __future__ import annotations

import asyncio

from ..routing import Boolean, Call, Integer, PveError, String, perm, route, split_list
from ..storage import (
    allocate,
    creation_log,
    fill,
    find_volume,
    format_size,
    no_growth,
    parse_size,
    remove_volume,
    require_active,
)
from ..worker import TaskContext, TaskError
from .drives import add_unused, copy_progress, detach, is_cdrom, is_cloud_init
from .guest import (
    OPTION_WORDS,
    check_lock,
    check_skiplock,
    digest,
    parse_options,
    print_options,
    this,
)
from .options import DISKS, UNUSED
from .power import found

DISK = String(enum=(*DISKS, "efidisk0", "tpmstate0"))
MOVABLE = String(enum=(*DISKS, "efidisk0", "tpmstate0", *UNUSED))
CONFIG_DISK = perm("/vms/{vmid}", "VM.Config.Disk")


@route(
    "PUT",
    "/nodes/{node}/qemu/{vmid}/resize",
    params={
        "disk": DISK,
        "size": String(pattern=r"^\+?\d+(\.\d+)?[KMGT]?$"),
        "digest": String(optional=True, max_length=40),
        "skiplock": Boolean(optional=True),
    },
    permission=CONFIG_DISK,
)
def resize(call: Call) -> str:
    """The UPID of a disk's growth: by "+10G", or to "100G"."""
    state, guest_of, key = call.state, found(call), call.params["disk"]
    skiplock, given, size = check_skiplock(call), call.params.get("digest"), call.params["size"]

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        if given and given != digest(guest):
            raise TaskError("detected modified configuration - file changed by other user? Try again.")
        if not skiplock:
            check_lock(guest)
        if key not in guest.config:
            raise TaskError(f"disk '{key}' does not exist")
        options = parse_options(str(guest.config[key]))
        if is_cdrom(options):
            raise TaskError("you can't resize a cdrom")
        volume = find_volume(state, guest.node, options.get("file", ""))
        if volume is None:
            raise TaskError(f"volume '{options.get('file')}' does not exist")
        wanted = parse_size(size.removeprefix("+")) + (volume.size if size.startswith("+") else 0)
        wanted = -(-wanted // 1024) * 1024
        if wanted < volume.size:
            raise TaskError("shrinking disks is not supported")
        storage = state.storages[volume.storage]
        if why := no_growth(state, storage, guest.node, volume, wanted - volume.size):
            raise TaskError(why)
        await task.sleep(1)
        if storage.type in ("lvm", "lvmthin"):
            name = f"{storage.options.get('vgname', 'pve')}/{volume.name}"
            task.log(
                f"Size of logical volume {name} changed from {volume.size / 2**30:.2f} GiB "
                f"({volume.size // 2**22} extents) to {wanted / 2**30:.2f} GiB ({wanted // 2**22} extents)."
            )
            task.log(f"Logical volume {name} successfully resized.")
        else:
            task.log("Image resized.")
        volume.size = wanted
        guest.config[key] = print_options({**options, "size": format_size(wanted)})

    return call.task("resize", call.params["vmid"], work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/move_disk",
    params={
        "disk": MOVABLE,
        "storage": String(optional=True, format="pve-storage-id"),
        "format": String(optional=True, enum=("raw", "qcow2", "vmdk")),
        "delete": Boolean(optional=True),
        "digest": String(optional=True, max_length=40),
        "bwlimit": Integer(optional=True, minimum=0),
        "target-vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
        "target-disk": String(optional=True, enum=MOVABLE.enum),
        "target-digest": String(optional=True, max_length=40),
    },
    permission=CONFIG_DISK,
)
def move_disk(call: Call) -> str:
    """The UPID of a disk's move to another storage; the old volume stays as unusedN unless `delete`."""
    state, guest, params = call.state, this(call), call.params
    key, name = params["disk"], params.get("storage")
    if name is None:
        raise PveError(400, "Parameter verification failed.", {"storage": "requires 'storage' or 'target-vmid'"})
    call.check(f"/storage/{name}", "Datastore.AllocateSpace")
    goal = require_active(state, name, guest.node)
    check_lock(guest)
    if key not in guest.config:
        raise PveError(500, f"disk '{key}' does not exist")
    options = parse_options(str(guest.config[key]))
    if is_cdrom(options):
        raise PveError(500, "you can't move a cdrom")
    volume = find_volume(state, guest.node, options.get("file", ""))
    if volume is None:
        raise PveError(500, f"disk '{key}' has no associated volume")
    fmt = params.get("format", volume.format) if goal.file_based else "raw"
    if volume.storage == name and fmt == volume.format:
        raise PveError(500, "you can't move to the same storage with same format")
    delete = params.get("delete")

    async def work(task: TaskContext) -> None:
        task.log(f"create full clone of drive {key} ({volume.volid})")
        try:
            new = allocate(state, guest.node, goal, guest.vmid, volume.size, fmt=fmt)
        except PveError as error:
            raise TaskError(f"storage migration failed: {error}") from error
        task.log(creation_log(goal, new))
        try:
            fill(state, task, guest.node, new, volume.used, volume)
            await copy_progress(task, volume.size)
        except (TaskError, asyncio.CancelledError) as error:
            remove_volume(state, guest.node, new.volid)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TaskError(f"storage migration failed: {error}") from error
        new.bootable = volume.bootable
        guest.config[key] = print_options({**options, "file": new.volid, "size": format_size(new.size)})
        if delete:
            if any(other.parent == volume.volid for other in state.volumes.values()):
                raise TaskError(f"base volume '{volume.volid}' is still in use by linked cloned")
            remove_volume(state, guest.node, volume.volid)
        else:
            add_unused(guest.config, volume.volid)

    return call.task("qmmove", guest.vmid, work)


@route(
    "PUT",
    "/nodes/{node}/qemu/{vmid}/unlink",
    params={"idlist": String(format="pve-configid-list"), "force": Boolean(optional=True)},
    permission=CONFIG_DISK,
)
def unlink(call: Call) -> None:
    """Nothing; the drives are detached, and with `force` (or when they were unused already) removed."""
    state, guest = call.state, this(call)
    check_lock(guest)
    for key in split_list(call.params["idlist"]):
        if key not in guest.config:
            continue
        if key.startswith("unused"):
            remove_volume(state, guest.node, str(guest.config.pop(key)))
        elif OPTION_WORDS.match(key):
            options = parse_options(str(guest.config[key]))
            volid = options.get("file", "")
            detach(state, guest, guest.config, key)
            if call.params.get("force") and ":" in volid and (not is_cdrom(options) or is_cloud_init(options)):
                remove_volume(state, guest.node, volid)
                for unused in [k for k, v in guest.config.items() if k.startswith("unused") and v == volid]:
                    del guest.config[unused]
