"""Copies of VMs: clones and templates."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from ..drift import phase
from ..network import bridge_path
from ..routing import Boolean, Call, Integer, PveError, String, all_of, perm, route
from ..storage import (
    StorageState,
    add_volume,
    allocate,
    creation_log,
    fill,
    find_volume,
    format_size,
    next_disk_name,
    remove_volume,
    require_active,
    require_storage,
    volume_path,
)
from ..worker import TaskContext, TaskError
from .config import all_shared, check_pool, join_pool, with_mac
from .drives import copy_progress, drives, free_volumes, is_cdrom, is_cloud_init
from .guest import (
    GuestState,
    check_lock,
    identity,
    merged,
    newborn,
    parse_net,
    print_net,
    print_options,
    this,
)
from .options import DISKS

if TYPE_CHECKING:
    from ..state import PveState


# --- clone ----------------------------------------------------------------------------------------


def newid_rule(call: Call) -> None:
    """Nothing, or the 403 of a caller who may not make the new VM."""
    if call.allowed(f"/vms/{call.raw.get('newid', '')}", "VM.Allocate"):
        return
    pool = call.raw.get("pool")
    if not (pool and call.allowed(f"/pool/{pool}", "VM.Allocate")):
        raise PveError(403, "Permission check failed")


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/clone",
    params={
        "newid": Integer(format="pve-vmid", minimum=100, maximum=999999999),
        "name": String(optional=True, format="dns-name"),
        "description": String(optional=True),
        "full": Boolean(optional=True),
        "target": String(optional=True, format="pve-node"),
        "storage": String(optional=True, format="pve-storage-id"),
        "format": String(optional=True, enum=("raw", "qcow2", "vmdk")),
        "pool": String(optional=True, format="pve-poolid"),
        "snapname": String(optional=True, format="pve-configid", max_length=40),
        "bwlimit": Integer(optional=True, minimum=0),
    },
    permission=all_of(perm("/vms/{vmid}", "VM.Clone"), newid_rule),
)
def clone(call: Call) -> str:
    """The UPID of a clone. The new config is there at once, holding nothing but its lock."""
    state, node, params = call.state, call.node, call.params
    vmid, newid, target = params["vmid"], params["newid"], params.get("target")
    check_pool(call)
    if target and target != node and target not in state.nodes:
        raise PveError(500, f"no such cluster node '{target}'")
    if name := params.get("storage"):
        require_storage(state, name)
        require_active(state, name, target or node)
    source = state.guests.get(vmid)
    if source is None or source.node != node or source.kind != "qemu":
        raise PveError(500, f"unable to find configuration file for VM {vmid} on node '{node}'")
    check_lock(source)
    config = merged(source)
    if snapname := params.get("snapname"):
        if snapname not in source.snapshots:
            raise PveError(500, f"snapshot '{snapname}' does not exist")
        config = dict(source.snapshots[snapname].config)
    full = params.get("full", not source.template)
    if not full:
        for option in ("storage", "format"):
            if option in params:
                raise PveError(500, f"parameter '{option}' not allowed for linked clones")
    if newid in state.guests:
        raise PveError(500, f"unable to create VM {newid}: config file already exists")
    plan = clone_plan(call, config, full=full)
    if target and target != node and not all_shared(state, config):
        raise PveError(500, f"can't clone VM to node '{target}' (VM uses local storage)")
    for _, net in ((key, parse_net(str(value))) for key, value in config.items() if re.fullmatch(r"net\d+", key)):
        if net.get("bridge"):
            tag = f"/{net['tag']}" if "tag" in net else ""
            call.check(bridge_path(state, net["bridge"]) + tag, "SDN.Use")
    guest = newborn(state, newid, target or node, lock="clone")
    guest.bootable, guest.os = source.bootable, dict(source.os)
    guest.cpu_level = 0.03 + 0.1 * phase(f"{guest.salt}guest/{newid}")
    state.guests[newid] = guest
    description, title, pool = params.get("description"), params.get("name"), params.get("pool")

    async def work(task: TaskContext) -> None:
        made: list[str] = []
        new = {
            key: value
            for key, value in config.items()
            if not re.fullmatch(r"(template|lock|parent|vmstate|snaptime|unused\d+)", key)
        }
        try:
            for key, options, how in plan:
                new[key] = await copy_drive(state, guest, source, key, options, how, params, task, made)
            for key in [key for key in new if re.fullmatch(r"net\d+", key)]:
                net = parse_net(str(new[key]))
                net.pop("macaddr", None)
                new[key] = with_mac(state, guest, key, print_net(net))
        except (PveError, TaskError, asyncio.CancelledError) as error:
            free_volumes(state, guest.node, made)
            state.guests.pop(newid, None)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TaskError(f"clone failed: {error}") from error
        new |= identity(state, newid)
        new["name"] = title or (f"Copy-of-VM-{config['name']}" if "name" in config else f"Copy-of-VM-{vmid}")
        if description is not None:
            new["description"] = description
        # the tree of pools and the config change at the end, together
        guest.config = new
        guest.changed = guest.created = state.clock.now()
        join_pool(state, newid, pool)

    return call.task("qmclone", vmid, work)


def clone_plan(call: Call, config: dict[str, Any], *, full: bool) -> list[tuple[str, dict[str, str], str]]:
    """What happens to each drive: "keep" it (a CD-ROM), copy it "full", or make a "linked" clone of it."""
    plan = []
    for key, options in drives(config):
        volid = options.get("file", "")
        if ":" not in volid or (is_cdrom(options) and not is_cloud_init(options)):
            plan.append((key, options, "keep"))
            continue
        how = "full" if full or is_cloud_init(options) else "linked"
        storage = require_storage(call.state, volid.partition(":")[0])
        if how == "linked" and not (re.search(r"[:/]base-\d+-", volid) and can_link(storage, volid)):
            raise PveError(500, f"Linked clone feature is not supported for '{volid}' ({key})")
        goal = call.params.get("storage", storage.storage) if how == "full" else storage.storage
        call.check(f"/storage/{goal}", "Datastore.AllocateSpace")
        plan.append((key, options, how))
    return plan


def can_link(storage: StorageState, volid: str) -> bool:
    """Whether volumes of this storage can stand on a base."""
    return storage.type in ("lvmthin", "rbd", "zfspool", "btrfs") or volid.endswith(".qcow2")


async def copy_drive(
    state: PveState,
    guest: GuestState,
    source: GuestState,
    key: str,
    options: dict[str, str],
    how: str,
    params: dict[str, Any],
    task: TaskContext,
    allocated: list[str],
) -> str:
    """The drive's config text in the clone, once its volume is there; what was allocated is added to `allocated`."""
    if how == "keep":
        return print_options(options)
    volid = options["file"]
    volume = find_volume(state, source.node, volid)
    if volume is None:
        raise TaskError(f"volume '{volid}' does not exist")
    storage = state.storages[volid.partition(":")[0]]
    if how == "linked":
        task.log(f"create linked clone of drive {key} ({volid})")
        name = next_disk_name(state, storage, guest.node, guest.vmid, volume.format)
        made = allocate(state, guest.node, storage, guest.vmid, volume.size, fmt=volume.format, name=name, parent=volid)
        allocated.append(made.volid)
        if storage.file_based:
            path = volid.partition(":")[2]
            task.log(f"clone {path}: images, {name}, {guest.vmid} to {name} (base=../{path})")
            task.log(
                f"Formatting '{volume_path(storage, made.volid)}', fmt=qcow2 cluster_size=65536 extended_l2=off "
                f"compression_type=zlib size={volume.size} backing_file=../{path} backing_fmt=qcow2 "
                "lazy_refcounts=off refcount_bits=16"
            )
        else:
            task.log(creation_log(storage, made))
        await task.sleep(1)
    else:
        goal = require_active(state, params.get("storage", storage.storage), guest.node)
        default = volume.format if storage.storage == goal.storage or goal.file_based else "raw"
        fmt = params.get("format", default) if goal.file_based else "raw"
        task.log(f"create full clone of drive {key} ({volid})")
        cloud_init = is_cloud_init(options)
        extension = f".{fmt}" if goal.file_based else ""
        own_name = f"vm-{guest.vmid}-cloudinit{extension}" if cloud_init else None
        made = allocate(state, guest.node, goal, guest.vmid, volume.size, fmt=fmt, name=own_name)
        allocated.append(made.volid)
        task.log(creation_log(goal, made))
        fill(state, task, guest.node, made, volume.used, volume)
        if not cloud_init:
            await copy_progress(task, volume.size)
    made.bootable = volume.bootable
    rest = {k: v for k, v in options.items() if k not in ("file", "size", "format")}
    return print_options({"file": made.volid, **rest, "size": format_size(made.size)})


# --- template -------------------------------------------------------------------------------------


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/template",
    params={"disk": String(optional=True, enum=(*DISKS, "efidisk0", "tpmstate0"))},
    permission=perm("/vms/{vmid}", "VM.Allocate"),
)
def template(call: Call) -> str:
    """The UPID of the conversion into a template: disks become bases."""
    state, guest = call.state, this(call)
    check_lock(guest)
    if guest.snapshots:
        raise PveError(500, "unable to create template, because VM contains snapshots")
    disk = call.params.get("disk")
    if guest.template and not disk:
        raise PveError(500, "you can't convert a template to a template")
    if guest.running:
        raise PveError(500, "you can't convert a VM to template if VM is running vm")

    async def work(task: TaskContext) -> None:
        for key, options in list(drives(guest.config)):
            volid = options.get("file", "")
            if (disk and key != disk) or ":" not in volid or is_cdrom(options):
                continue
            volume, storage = find_volume(state, guest.node, volid), state.storages[volid.partition(":")[0]]
            if volume is None or (storage.file_based and volume.format == "vmdk"):
                continue
            new = re.sub(r"([:/])vm-", r"\1base-", volid)
            if new == volid:
                continue
            remove_volume(state, guest.node, volid)
            volume.volid = new
            add_volume(state, storage.at(guest.node), volume)
            guest.config[key] = print_options({**options, "file": new})
            await task.sleep(0.5)
            if storage.type in ("lvm", "lvmthin"):
                vg = storage.options.get("vgname", "pve")
                old_name, new_name = volid.partition(":")[2], new.partition(":")[2]
                task.log(f'Renamed "{old_name}" to "{new_name}" in volume group "{vg}"')
        guest.config["template"] = 1
        guest.changed = guest.created = state.clock.now()

    return call.task("qmtemplate", guest.vmid, work)
