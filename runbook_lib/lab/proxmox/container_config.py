"""Containers' configuration, disks and snapshots: what may change, what waits for a restart, what is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.lxc import OPTIONS, TABLE
from .lxc import feature_available
from .network import bridge_path
from .qemu.drives import add_unused, base_in_use, copy_progress, free_volumes
from .qemu.guest import (
    GuestState,
    Snapshot,
    check_lock,
    digest,
    new_mac,
    parse_options,
    power_off,
    power_on,
    print_options,
    this,
)
from .routing import Call, PveError, param_error, permission_error, split_list
from .sections import CHANGED
from .storage import (
    GIB,
    allocate,
    check_volume_access,
    creation_log,
    find_volume,
    format_size,
    next_disk_name,
    parse_size,
    remove_volume,
    require_active,
    require_storage,
    usage,
)
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

NEW_VOLUME = re.compile(r"([^/:\s]+):(\d+(?:\.\d+)?)")
AT_ONCE = re.compile(
    r"description|onboot|startup|protection|hostname|hookscript|cores|cpulimit|cpuunits|memory|swap|tags|lock"
    r"|nameserver|searchdomain|timezone|net\d+|mp\d+|unused\d+"
)
"""What takes effect in a running container; everything else waits for its restart."""
NUMBERED = {name.removesuffix("[n]") for name in OPTIONS if name.endswith("[n]")}
NEEDS = {
    "VM.Config.CPU": ("cores", "cpulimit", "cpuunits"),
    "VM.Config.Memory": ("memory", "swap"),
    "VM.Config.Network": ("net", "nameserver", "searchdomain", "hostname"),
    "VM.Config.Disk": ("rootfs", "mp", "unused"),
}
PRIVILEGE = {option: privilege for privilege, options in NEEDS.items() for option in options}


def is_mount(key: str) -> bool:
    """Whether the option is the root file system or a mount point."""
    return key == "rootfs" or bool(re.fullmatch(r"mp\d+", key))


def mounts(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The mount points of a config with their options, the root file system first."""
    for key in sorted(filter(is_mount, config), key=lambda key: -1 if key == "rootfs" else int(key[2:])):
        yield key, parse_options(str(config[key]), "volume")


def volumes_of(config: Mapping[str, Any]) -> list[str]:
    """The volumes a container owns, unused ones too."""
    found = [options["volume"] for _, options in mounts(config)]
    found += [str(value) for key, value in config.items() if re.fullmatch(r"unused\d+", key)]
    return [volid for volid in found if ":" in volid]


def stored_option(key: str, value: Any) -> Any:
    """A verified value as configs hold it."""
    if isinstance(value, bool):
        return int(value)
    if key == "tags":
        return ";".join(sorted({tag.lower() for tag in split_list(value)}))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_options(call: Call, vmid: int, options: Mapping[str, Any], pool: str | None = None) -> None:
    """Nothing, or the refusal of an option the caller may not set."""
    root = call.auth is not None and call.auth.is_root
    for key, value in options.items():
        base = re.sub(r"\d+$", "", key)
        needed = PRIVILEGE.get(base, PRIVILEGE.get(key, "VM.Config.Options"))
        if base == "dev" and not root:
            raise permission_error("only root@pam is allowed to change device passthrough")
        if key == "hookscript" and not root:
            raise permission_error("only root@pam can set hookscript")
        if key == "features" and not root:
            if set(parse_options(str(value))) - {"nesting"}:
                raise permission_error("changing feature flags (except nesting) is only allowed for root@pam")
            needed = "VM.Allocate"
        if not (pool and call.allowed(f"/pool/{pool}", needed)):
            call.check(f"/vms/{vmid}", needed)
        if is_mount(key):
            _check_mount(call, vmid, key, parse_options(str(value), "volume").get("volume", ""), root=root)
        if base == "net" and (bridge := parse_options(str(value)).get("bridge")):
            tag = parse_options(str(value)).get("tag")
            call.check(bridge_path(call.state, bridge) + (f"/{tag}" if tag else ""), "SDN.Use")


def _check_mount(call: Call, vmid: int, key: str, volid: str, *, root: bool) -> None:
    if volid.startswith("/"):
        if not root:
            raise permission_error("Only root can pass arbitrary filesystem paths.")
        if key == "rootfs":
            raise PveError(500, "unable to use bind mount as root file system")
        return
    if ":" not in volid:
        return  # a size alone: the default storage is added later
    name = volid.partition(":")[0]
    storage = require_storage(call.state, name)
    if NEW_VOLUME.fullmatch(volid):
        call.check(f"/storage/{name}", "Datastore.AllocateSpace")
        if "rootdir" not in storage.content:
            raise param_error({"storage": f"storage '{name}' does not support container directories"})
    elif volume := find_volume(call.state, call.node, volid):
        check_volume_access(call, volume, vmid=vmid)


async def create_mount(
    state: PveState, guest: GuestState, key: str, text: str, task: TaskContext | None, made: list[str]
) -> str:
    """The mount point's text once its volume is there; what was made is added to `made`."""
    options = parse_options(text, "volume")
    volid = options["volume"]
    if match := NEW_VOLUME.fullmatch(volid):
        storage = require_active(state, match[1], guest.node)
        size = int(float(match[2]) * GIB)
        if size <= 0:
            raise TaskError(f"{key}: invalid size 0")
        if storage.type == "zfspool":
            name = next_disk_name(state, storage, guest.node, guest.vmid, "raw", kind="subvol")
        else:
            name = next_disk_name(state, storage, guest.node, guest.vmid, "raw")
        volume = allocate(state, guest.node, storage, guest.vmid, size, name=name, content="rootdir")
        made.append(volume.volid)
        if task is not None:
            task.log(creation_log(storage, volume))
            task.log(f"Creating filesystem with {size // 4096} 4k blocks and {size // 16384} inodes")
        return print_options({**options, "volume": volume.volid, "size": format_size(size)}, "volume")
    if volid.startswith("/"):
        return text
    existing = find_volume(state, guest.node, volid)
    if existing is None:
        raise TaskError(f"volume '{volid}' does not exist")
    return print_options({**options, "size": format_size(existing.size)}, "volume")


def with_hwaddr(state: PveState, guest: GuestState, key: str, text: str, *, fresh: bool = False) -> str:
    """The network device as configs hold it: with a hardware address and its type."""
    net = parse_options(text)
    if fresh:
        net.pop("hwaddr", None)
    net["hwaddr"] = net.get("hwaddr", new_mac(state, f"{guest.vmid}/{key}")).upper()
    return ",".join(f"{name}={value}" for name, value in sorted({"type": "veth", **net}.items()))


# --- changes --------------------------------------------------------------------------------------


@endpoint("PUT /nodes/{node}/lxc/{vmid}/config")
async def set_config(call: Call) -> None:
    """Nothing; the config is changed, or what a running container cannot change waits for its restart."""
    state, guest = call.state, this(call, "lxc")
    given = {k: v for k, v in call.params.items() if k not in ("node", "vmid", "digest", "delete", "revert")}
    deleted, reverted = split_list(call.params.get("delete", "")), split_list(call.params.get("revert", ""))
    if not (given or deleted or reverted):
        raise PveError(500, "no options specified")
    for key in deleted:
        if key in given:
            raise param_error({"delete": f"you can't use '-{key}' and -delete {key}' at the same time"})
        if key in ("rootfs", "memory", "swap") and key == "rootfs":
            raise param_error({"delete": f"unable to delete required option '{key}'"})
        if key not in OPTIONS and re.sub(r"\d+$", "", key) not in NUMBERED:
            raise param_error({"delete": f"unknown option '{key}'"})
    if "unprivileged" in given and bool(guest.config.get("unprivileged")) != given["unprivileged"]:
        raise PveError(500, "unable to modify read-only option: 'unprivileged'")
    check_options(call, guest.vmid, given)
    check_options(call, guest.vmid, dict.fromkeys(deleted, ""))
    if call.params.get("digest") not in (None, digest(guest)):
        raise PveError(500, CHANGED)
    check_lock(guest)
    for key in reverted:
        guest.pending.pop(key, None)
        guest.pending_delete = [each for each in guest.pending_delete if each != key]
    for key in deleted:
        _delete(state, guest, key)
    for key, value in given.items():
        await _set(state, guest, key, value)


def _delete(state: PveState, guest: GuestState, key: str) -> None:
    if key not in guest.config:
        guest.pending.pop(key, None)
    elif is_mount(key) and guest.running:
        guest.pending_delete = sorted({*guest.pending_delete, key})
    elif is_mount(key):
        volid = parse_options(str(guest.config.pop(key)), "volume")["volume"]
        if ":" in volid:
            add_unused(guest.config, volid)
    elif key.startswith("unused"):
        volid = str(guest.config[key])
        if base_in_use(state, [volid]):
            raise PveError(500, f"base volume '{volid}' is still in use by linked cloned")
        remove_volume(state, guest.node, volid)
        del guest.config[key]
    elif guest.running and not AT_ONCE.fullmatch(key):
        guest.pending_delete = sorted({*guest.pending_delete, key})
    else:
        del guest.config[key]


async def _set(state: PveState, guest: GuestState, key: str, value: Any) -> None:
    value = stored_option(key, value)
    if is_mount(key):
        made: list[str] = []
        try:
            value = await create_mount(state, guest, key, str(value), None, made)
        except TaskError as error:
            free_volumes(state, guest.node, made)
            raise PveError(500, str(error)) from error
        old = parse_options(str(guest.config[key]), "volume")["volume"] if key in guest.config else None
        if old and ":" in old and old != parse_options(value, "volume")["volume"]:
            add_unused(guest.config, old)
        for unused in [k for k, v in guest.config.items() if k.startswith("unused") and str(v) in value]:
            del guest.config[unused]
    elif re.fullmatch(r"net\d+", key):
        value = with_hwaddr(state, guest, key, str(value))
    if guest.running and not AT_ONCE.fullmatch(key):
        guest.pending[key] = value
        return
    guest.pending.pop(key, None)
    guest.config[key] = value


@endpoint("PUT /nodes/{node}/lxc/{vmid}/resize")
def resize(call: Call) -> str:
    """The UPID of a disk's growth."""
    state, guest, key = call.state, this(call, "lxc"), call.params["disk"]
    if call.params.get("digest") not in (None, digest(guest)):
        raise PveError(500, CHANGED)
    check_lock(guest)
    if guest.template:
        raise PveError(500, "CT is a template")  # a base never changes
    if key not in guest.config:
        raise PveError(500, f"no such mount point '{key}'")
    options = parse_options(str(guest.config[key]), "volume")
    volume = find_volume(state, guest.node, options["volume"])
    if volume is None:
        raise PveError(500, f"can't resize mount point owned by another container: '{options['volume']}'")
    storage = require_active(state, volume.storage, guest.node)
    text = call.params["size"]
    wanted = parse_size(text.removeprefix("+")) + (volume.size if text.startswith("+") else 0)
    if wanted < volume.size:
        raise PveError(500, "unable to shrink disk size")

    async def work(task: TaskContext) -> None:
        if storage.type == "lvm" and wanted - volume.size > usage(state, storage, guest.node)[2]:
            raise TaskError("lvextend failed: Insufficient free space")
        await task.sleep(1)
        volume.size = wanted
        guest.config[key] = print_options({**options, "size": format_size(wanted)}, "volume")
        task.log("Image resized.")
        task.log(f"The filesystem on {volume.volid} is now {wanted // 4096} (4k) blocks long.")

    return call.task("resize", guest.vmid, work)


@endpoint("POST /nodes/{node}/lxc/{vmid}/move_volume")
def move_volume(call: Call) -> str:
    """The UPID of a volume's move to another storage; the old one stays as unusedN unless `delete`."""
    state, guest, params = call.state, this(call, "lxc"), call.params
    key, name = params["volume"], params.get("storage")
    if (name is None) == (params.get("target-vmid") is None):
        raise param_error({"storage": "either target storage or target-vmid needs to be specified"})
    if key not in guest.config:
        raise PveError(500, f"volume '{key}' for container '{guest.vmid}' does not exist")
    if params.get("digest") not in (None, digest(guest)):
        raise PveError(500, CHANGED)
    check_lock(guest)
    if guest.running:
        raise PveError(500, "cannot move volumes of a running container")
    volid = parse_options(str(guest.config[key]), "volume")["volume"]
    volume = find_volume(state, guest.node, volid)
    if volume is None:
        raise PveError(500, f"volume '{volid}' does not exist")
    if name is None:
        return _hand_over(call, guest, key, volid)
    call.check(f"/storage/{name}", "Datastore.AllocateSpace")
    goal = require_active(state, name, guest.node)
    if "rootdir" not in goal.content:
        raise PveError(500, f"storage '{name}' does not support content-type 'rootdir'")
    if volume.storage == name:
        raise PveError(500, "you can't move to the same storage")

    async def work(task: TaskContext) -> None:
        new_name = next_disk_name(state, goal, guest.node, guest.vmid, "raw")
        new = allocate(
            state, guest.node, goal, guest.vmid, volume.size, name=new_name, content="rootdir", used=volume.used
        )
        task.log(creation_log(goal, new))
        await copy_progress(task, volume.used)
        options = parse_options(str(guest.config[key]), "volume")
        if key.startswith("unused"):
            guest.config[key] = new.volid
        else:
            guest.config[key] = print_options({**options, "volume": new.volid}, "volume")
        if params.get("delete"):
            remove_volume(state, guest.node, volid)
        elif not key.startswith("unused"):
            add_unused(guest.config, volid)

    return call.task("move_volume", guest.vmid, work)


def _hand_over(call: Call, guest: GuestState, key: str, volid: str) -> str:
    """The UPID of a volume's change of owner."""
    state, target, goal = call.state, call.params["target-vmid"], call.params.get("target-volume", key)
    other = state.guests.get(target)
    if target == guest.vmid:
        raise PveError(500, f"must be different than source VMID to move disk to another container {target}")
    if other is None or other.kind != "lxc" or other.node != guest.node:
        raise PveError(500, f"Configuration file 'nodes/{guest.node}/lxc/{target}.conf' does not exist")
    call.check(f"/vms/{target}", "VM.Config.Disk")
    if key == "rootfs":
        raise PveError(500, "cannot move volume 'rootfs', it is the root file system")
    if goal in other.config:
        raise PveError(500, f"target volume key '{goal}' is already in use for container '{target}'")

    def work(task: TaskContext) -> None:
        volume = find_volume(state, guest.node, volid)
        if volume is None:
            raise TaskError(f"volume '{volid}' does not exist")
        storage = require_storage(state, volume.storage)
        options = parse_options(str(guest.config.pop(key)), "volume")
        name = next_disk_name(state, storage, guest.node, target, "raw")
        remove_volume(state, guest.node, volid)
        new = allocate(state, guest.node, storage, target, volume.size, name=name, content="rootdir", used=volume.used)
        text = new.volid if goal.startswith("unused") else print_options({**options, "volume": new.volid}, "volume")
        other.config[goal] = text
        task.log(f"target container: {target}, target volume: {goal}")

    return call.task("move_volume", guest.vmid, work)


# --- snapshots ------------------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/lxc/{vmid}/feature")
def has_feature(call: Call) -> dict[str, int]:
    """Whether the container can be snapshotted, cloned or copied."""
    guest = this(call, "lxc")
    if name := call.params.get("snapname"):
        snapshot_of(guest, name)
    return {"hasFeature": int(call.params["feature"] == "copy" or _all_available(call.state, guest))}


def _all_available(state: PveState, guest: GuestState) -> bool:
    return all(feature_available(state, options["volume"]) for _, options in mounts(guest.config))


def snapshot_of(guest: GuestState, name: str) -> Snapshot:
    """The snapshot, or the 500 that there is none of that name."""
    if name not in guest.snapshots:
        raise PveError(500, f"snapshot '{name}' does not exist")
    return guest.snapshots[name]


@endpoint("POST /nodes/{node}/lxc/{vmid}/snapshot")
def take_snapshot(call: Call) -> str:
    """The UPID of a snapshot."""
    state, guest, name = call.state, this(call, "lxc"), call.params["snapname"]
    if name in ("current", "vzdump"):
        raise PveError(500, f"unable to use snapshot name '{name}' (reserved name)")

    async def work(task: TaskContext) -> None:
        check_lock(guest)
        if guest.template:
            raise TaskError("you can't take a snapshot if it's a template")
        if name in guest.snapshots:
            raise TaskError(f"snapshot name '{name}' already used")
        if not _all_available(state, guest):
            raise TaskError("snapshot feature is not available")
        guest.config["lock"] = "snapshot"
        try:
            await task.sleep(1)
        finally:
            guest.config.pop("lock", None)
        config = {key: value for key, value in guest.config.items() if not key.startswith("unused")}
        moment = int(state.clock.now())
        guest.snapshots[name] = Snapshot(config, moment, call.params.get("description", ""), parent=guest.parent)
        guest.parent = name

    return call.task("vzsnapshot", guest.vmid, work)


@endpoint("GET /nodes/{node}/lxc/{vmid}/snapshot/{snapname}")
def snapshot_index(call: Call) -> list[dict[str, str]]:
    """The names below one snapshot."""
    return [{"cmd": "rollback"}, {"cmd": "config"}]


@endpoint("GET /nodes/{node}/lxc/{vmid}/snapshot/{snapname}/config")
def snapshot_config(call: Call) -> dict[str, Any]:
    """The config as it was, with when and why it was kept."""
    found = snapshot_of(this(call, "lxc"), call.params["snapname"])
    row = {**found.config, "snaptime": found.snaptime, "description": found.description}
    return row | ({"parent": found.parent} if found.parent else {})


@endpoint("PUT /nodes/{node}/lxc/{vmid}/snapshot/{snapname}/config")
def describe_snapshot(call: Call) -> None:
    """Nothing; the description is changed."""
    guest = this(call, "lxc")
    check_lock(guest)
    found = snapshot_of(guest, call.params["snapname"])
    if "description" in call.params:
        found.description = call.params["description"]


@endpoint("POST /nodes/{node}/lxc/{vmid}/snapshot/{snapname}/rollback")
def rollback(call: Call) -> str:
    """The UPID of a return to a snapshot; the container is stopped by it, and started again when asked."""
    state, guest, name = call.state, this(call, "lxc"), call.params["snapname"]

    async def work(task: TaskContext) -> None:
        found = snapshot_of(guest, name)
        check_lock(guest)
        if guest.config.get("protection"):
            raise TaskError("unable to rollback CT - protection mode enabled")
        if guest.running:
            power_off(state, guest)
        await task.sleep(1)
        unused = {key: value for key, value in guest.config.items() if key.startswith("unused")}
        guest.config, guest.parent = {**copy.deepcopy(found.config), **unused}, name
        guest.pending, guest.pending_delete = {}, []
        if call.params.get("start"):
            power_on(state, guest)

    return call.task("vzrollback", guest.vmid, work)


@endpoint("DELETE /nodes/{node}/lxc/{vmid}/snapshot/{snapname}")
def delete_snapshot(call: Call) -> str:
    """The UPID of a snapshot's removal; those that stood on it stand on its parent then."""
    guest, name = this(call, "lxc"), call.params["snapname"]

    async def work(task: TaskContext) -> None:
        found = snapshot_of(guest, name)
        check_lock(guest)
        await task.sleep(1)
        for other in guest.snapshots.values():
            if other.parent == name:
                other.parent = found.parent
        if guest.parent == name:
            guest.parent = found.parent
        del guest.snapshots[name]

    return call.task("vzdelsnapshot", guest.vmid, work)
