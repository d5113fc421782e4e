"""Containers made, restored, copied, moved to another node, turned into templates and removed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .backup import find_volume, unpacked
from .container_config import (
    check_options,
    create_mount,
    is_mount,
    mounts,
    stored_option,
    volumes_of,
    with_hwaddr,
)
from .declared import declared
from .declared.lxc import TABLE
from .lxc import feature_available
from .nodes import memory_used
from .qemu.clone import newid_rule
from .qemu.config import check_pool, forget, join_pool, may_create
from .qemu.drives import base_in_use, copy_progress, free_volumes
from .qemu.guest import (
    GuestState,
    check_lock,
    find_guest,
    merged,
    newborn,
    parse_options,
    power_off,
    power_on,
    print_options,
    this,
)
from .quorum import require_quorum
from .routing import Call, Integer, PveError, String, all_of, param_error, perm
from .schema import format_check, parse_property_string
from .storage import (
    GIB,
    VolumeState,
    add_volume,
    allocate,
    check_volume_access,
    creation_log,
    format_size,
    next_disk_name,
    remove_volume,
    require_active,
    require_storage,
    volume_path,
    volumes_on,
)
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

EXPANSION = 4
"""How much larger a system is than the archive it came from."""
SYSTEMS = ("debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos")
DEFAULT_GIB = 4
BESIDE = {
    "force", "ignore-unpack-errors", "ostemplate", "password", "pool", "restore", "ssh-public-keys", "start",
    "storage", "unique", "vmid", "node", "bwlimit", "ha-managed",
}  # fmt: skip
"""What a creation is told that is no option of the container."""


REMOTE = {
    "host": String(format="address"),
    "port": Integer(optional=True),
    "apitoken": String(),
    "fingerprint": String(optional=True, pattern=r"^[A-Fa-f0-9]{2}(:[A-Fa-f0-9]{2}){31}$"),
}
"""What one cluster has to know of another one to send it a guest."""


@format_check("proxmox-remote")
def _remote(value: str) -> None:
    parse_property_string(REMOTE, value)


def unused(state: PveState, vmid: int) -> None:
    """Nothing, or the 500 of an id that a guest has already."""
    if vmid in state.guests:
        other = state.guests[vmid]
        kind = "VM" if other.kind == "qemu" else "CT"
        raise PveError(500, f"{kind} {vmid} already exists on node '{other.node}'")


@endpoint("POST /nodes/{node}/lxc")
def create_container(call: Call) -> str:
    """The UPID of a container's creation from a template, or of its restore from a backup."""
    state, node, vmid, params = call.state, call.node, call.params["vmid"], call.params
    require_quorum(state, "cluster not ready - no quorum?")
    restore, force, old = params.get("restore"), params.get("force"), state.guests.get(vmid)
    if not (restore and force and old is not None and old.kind == "lxc" and old.node == node):
        unused(state, vmid)
        old = None
    elif old.running:
        raise PveError(500, "can't overwrite running container")
    elif old.config.get("protection"):
        raise PveError(500, f"unable to restore CT {vmid} - protection mode enabled")
    check_pool(call)
    if not (old is not None and call.allowed(f"/vms/{vmid}", "VM.Backup")):
        may_create(call)
    options = {key: value for key, value in params.items() if key not in BESIDE}
    check_options(call, vmid, options, params.get("pool"))
    default, source = params.get("storage", "local"), params["ostemplate"]
    if source == "-":
        raise PveError(500, "pipe requires cli environment")
    require_storage(state, source.partition(":")[0])
    volume = find_volume(state, node, source)
    if volume is not None:
        check_volume_access(call, volume, vmid=vmid)
    for key in [key for key in options if is_mount(key)]:
        if re.fullmatch(r"\d+(\.\d+)?", str(options[key])):
            options[key] = f"{default}:{options[key]}"
    if "rootfs" not in options and any(is_mount(key) for key in options):
        raise PveError(500, "mount points configured, but 'rootfs' not set - aborting")
    wanted = [parse_options(str(options[key]), "volume")["volume"] for key in options if is_mount(key)]
    for name in {volid.partition(":")[0] for volid in wanted if ":" in volid} or {default}:
        check_rootdir(call, name)
    return call.task(
        "vzrestore" if restore else "vzcreate", vmid, _creation(call, options, old, source, volume, default)
    )


def check_rootdir(call: Call, name: str) -> None:
    """Nothing, or the refusal of a storage that cannot hold the disks of containers."""
    storage = require_storage(call.state, name)
    if not storage.on(call.node):
        raise PveError(500, f"storage '{name}' is not available on node '{call.node}'")
    if "rootdir" not in storage.content:
        raise param_error({"storage": f"storage '{name}' does not support container directories"})
    call.check(f"/storage/{name}", "Datastore.AllocateSpace")
    require_active(call.state, name, call.node)


def _creation(
    call: Call,
    options: Mapping[str, Any],
    old: GuestState | None,
    source: str,
    volume: VolumeState | None,
    default: str,
) -> Any:
    """What a creation's worker does."""
    state, node, vmid, params = call.state, call.node, call.params["vmid"], call.params
    restore = bool(params.get("restore"))
    refused = f"unable to {'restore' if restore else 'create'} CT {vmid} -"
    before = None if old is None else dict(old.config)
    guest = old or newborn(state, vmid, node, lock="create")
    guest.kind, guest.config = "lxc", {**guest.config, "lock": "create"}
    state.guests[vmid] = guest

    async def work(task: TaskContext) -> None:
        made: list[str] = []
        try:
            if volume is None:
                raise TaskError(f"volume '{source}' does not exist")
            config = {key: stored_option(key, value) for key, value in options.items()}
            archive: dict[str, Any] = {"config": {}, "disks": {}}
            if restore:
                archive = unpacked(state, volume)
                if archive["kind"] != "lxc":
                    raise TaskError("archive is no container backup")
                task.log(f"recovering backed-up configuration from '{source}'")
                config = recovered(archive, config, default)
            config.setdefault("rootfs", f"{default}:{DEFAULT_GIB}")
            for key, _ in list(mounts(config)):
                config[key] = await create_mount(state, guest, key, str(config[key]), task, made)
            path = volume_path(require_storage(state, volume.storage), source)
            if restore:
                task.log(f"restoring '{source}' now..")
            task.log(f"extracting archive '{path}'")
            fill(state, guest, config, volume, archive)
            await task.sleep(1 + volume.size / (100 * 2**20))
            task.log(f"Total bytes read: {volume.size * EXPANSION}")
            if restore:
                task.log("merging backed-up and given configuration..")
            else:
                task.log("Detected container architecture: amd64")
                task.log("Creating SSH host key 'ssh_host_ed25519_key' - this may take some time ...")
            for key in [key for key in config if re.fullmatch(r"net\d+", key)]:
                config[key] = with_hwaddr(state, guest, key, str(config[key]), fresh=bool(params.get("unique")))
        except (PveError, TaskError) as error:
            free_volumes(state, node, made)
            if before is None:
                state.guests.pop(vmid, None)
            else:
                guest.config = before
            raise TaskError(f"{refused} {str(error).strip()}") from error
        if before is not None:
            free_volumes(state, node, [each for each in volumes_of(before) if each not in made])
            guest.snapshots, guest.parent = {}, None
        config.setdefault("ostype", next((word for word in SYSTEMS if word in source), "unmanaged"))
        rest = {"arch": "amd64", "hostname": f"CT{vmid}", "memory": 512, "swap": 512}
        guest.config, guest.bootable, guest.pending = rest | config, True, {}
        join_pool(state, vmid, params.get("pool"))
        if params.get("start"):
            await boot(state, guest, task)

    return work


def recovered(archive: Mapping[str, Any], given: Mapping[str, Any], storage: str) -> dict[str, Any]:
    """The configuration a backup holds under the given one; its disks are to be made on the storage."""
    config = {key: value for key, value in archive["config"].items() if not key.startswith("unused")}
    own = any(is_mount(key) for key in given)
    for key, options in list(mounts(config)):
        if own or key not in archive["disks"]:
            del config[key]
            continue
        size = int(archive["disks"][key]["size"]) / GIB
        rest = {name: value for name, value in options.items() if name not in ("volume", "size")}
        config[key] = print_options({"volume": f"{storage}:{size:g}", **rest}, "volume")
    return {**config, **given}


def fill(
    state: PveState, guest: GuestState, config: Mapping[str, Any], source: VolumeState, archive: Mapping[str, Any]
) -> None:
    """Let the disks hold what was unpacked; raises the error of one that is too small."""
    for key, options in mounts(config):
        volume = find_volume(state, guest.node, options.get("volume", ""))
        if volume is None:
            continue
        kept = archive["disks"].get(key, {}).get("used")
        used = kept if kept is not None else source.size * EXPANSION if key == "rootfs" else 0
        if used > volume.size:
            raise TaskError("tar: write error: No space left on device")
        volume.used = int(used)


async def boot(state: PveState, guest: GuestState, task: TaskContext) -> None:
    """Start the container, or raise what it dies of."""
    if guest.template:
        raise TaskError("you can't start a CT if it's a template")
    for _, options in mounts(merged(guest)):
        volid = options.get("volume", "")
        if ":" in volid and find_volume(state, guest.node, volid) is None:
            raise TaskError(f"volume '{volid}' does not exist")
    node = state.nodes[guest.node]
    if memory_used(state, node) + guest.maxmem * 0.1 > node.memory:
        raise TaskError(f"startup for container '{guest.vmid}' failed")
    await task.sleep(2.0)
    power_on(state, guest)


# --- removal --------------------------------------------------------------------------------------


@endpoint("DELETE /nodes/{node}/lxc/{vmid}")
def destroy_container(call: Call) -> str:
    """The UPID of a container's removal with its disks."""
    state, params = call.state, call.params
    guest = this(call, "lxc")
    if guest.config.get("protection"):
        raise PveError(500, f"can't remove CT {guest.vmid} - protection mode enabled")
    resources = state.areas.get("ha", {}).get("resources", {})
    if f"ct:{guest.vmid}" in resources and not params.get("purge"):
        raise PveError(500, f"unable to remove CT {guest.vmid} - used in HA resources and purge parameter not set.")
    running = f"unable to destroy CT {guest.vmid} - container is running"
    if guest.running and not params.get("force"):
        raise PveError(500, running)

    async def work(task: TaskContext) -> None:
        check_lock(guest)
        if guest.running:
            if not params.get("force"):
                raise TaskError(running)
            task.log(f"forced to stop CT {guest.vmid} before destroying!")
            power_off(state, guest)
        owned = set(volumes_of(guest.config)).union(*(volumes_of(each.config) for each in guest.snapshots.values()))
        if params.get("destroy-unreferenced-disks", True):
            for storage in state.storages.values():
                if storage.active(guest.node):
                    found = volumes_on(state, storage, guest.node)
                    owned |= {v.volid for v in found if v.vmid == guest.vmid and v.content in ("images", "rootdir")}
        if base := base_in_use(state, owned):
            raise TaskError(f"base volume '{base}' is still in use by linked cloned")
        await task.sleep(1)
        free_volumes(state, guest.node, owned)
        forget(state, guest)
        if params.get("purge"):
            task.log(f"purging CT {guest.vmid} from related configurations..")
            resources.pop(f"ct:{guest.vmid}", None)

    return call.task("vzdestroy", guest.vmid, work)


# --- clone and template ---------------------------------------------------------------------------


@endpoint("POST /nodes/{node}/lxc/{vmid}/clone", all_of(perm("/vms/{vmid}", "VM.Clone"), newid_rule))
def clone_container(call: Call) -> str:
    """The UPID of a container's copy; of a template a linked one unless `full`."""
    state, params, newid = call.state, call.params, call.params["newid"]
    check_pool(call)
    if params.get("storage"):
        check_rootdir(call, params["storage"])
    require_quorum(state, "cluster not ready - no quorum?")
    source = find_guest(state, call.node, params["vmid"], "lxc")
    check_lock(source)
    config, snapname = merged(source), params.get("snapname")
    if snapname:
        if snapname not in source.snapshots:
            raise PveError(500, f"snapshot '{snapname}' does not exist")
        config = dict(source.snapshots[snapname].config)
    full = params.get("full", not source.template)
    if full and source.running and not snapname:
        raise PveError(500, "Cannot do full clones on a running container without snapshots")
    unused(state, newid)
    target = params.get("target") or call.node
    if target not in state.nodes:
        raise PveError(500, f"no such cluster node '{target}'")
    for key, options in mounts(config):
        volid = options["volume"]
        if ":" not in volid:
            raise PveError(500, f"unable to clone mountpoint '{key}' (type bind)")
        storage = require_storage(state, volid.partition(":")[0])
        if target != call.node and not storage.shared:
            raise PveError(500, f"can't clone to node '{target}' (uses local storage)")
        if not full and not re.search(r"[:/](base|basevol)-\d+-", volid):
            raise PveError(500, f"Linked clone feature is not available for '{volid}'")
        goal = params.get("storage", storage.storage) if full else storage.storage
        call.check(f"/storage/{goal}", "Datastore.AllocateSpace")
    guest = newborn(state, newid, target, lock="create")
    guest.kind = "lxc"
    state.guests[newid] = guest

    async def work(task: TaskContext) -> None:
        made: list[str] = []
        dropped = r"template|lock|parent|snaptime|unused\d+"
        new = {key: value for key, value in config.items() if not re.fullmatch(dropped, key)}
        try:
            for key, options in list(mounts(new)):
                new[key] = await copy_mount(state, guest, source, key, options, params, task, made, full=full)
        except (PveError, TaskError) as error:
            free_volumes(state, target, made)
            state.guests.pop(newid, None)
            raise TaskError(f"clone failed: {error}") from error
        for key in [key for key in new if re.fullmatch(r"net\d+", key)]:
            new[key] = with_hwaddr(state, guest, key, str(new[key]), fresh=True)
        new["hostname"] = params.get("hostname") or new.get("hostname", f"CT{newid}")
        if "description" in params:
            new["description"] = params["description"]
        guest.config, guest.bootable = new, source.bootable
        guest.changed = guest.created = state.clock.now()
        join_pool(state, newid, params.get("pool"))

    return call.task("vzclone", source.vmid, work)


async def copy_mount(
    state: PveState,
    guest: GuestState,
    source: GuestState,
    key: str,
    options: dict[str, str],
    params: Mapping[str, Any],
    task: TaskContext,
    made: list[str],
    *,
    full: bool,
) -> str:
    """The mount point's text in the copy, once its volume is there."""
    volid = options["volume"]
    volume = find_volume(state, source.node, volid)
    if volume is None:
        raise TaskError(f"volume '{volid}' does not exist")
    own = require_storage(state, volume.storage)
    goal = require_active(state, params.get("storage", own.storage), guest.node) if full else own
    task.log(f"create {'full' if full else 'linked'} clone of mountpoint {key} ({volid})")
    name = next_disk_name(state, goal, guest.node, guest.vmid, "raw", kind="vm")
    new = allocate(
        state, guest.node, goal, guest.vmid, volume.size, name=name, content="rootdir",
        parent=None if full else volid, used=volume.used if full else 0,
    )  # fmt: skip
    made.append(new.volid)
    task.log(creation_log(goal, new))
    if full:
        await copy_progress(task, volume.used)
    rest = {name: value for name, value in options.items() if name not in ("volume", "size")}
    return print_options({"volume": new.volid, **rest, "size": format_size(volume.size)}, "volume")


@endpoint("POST /nodes/{node}/lxc/{vmid}/template")
def make_template(call: Call) -> None:
    """Nothing; the container is a template, its disks become bases in a task of their own."""
    state, guest = call.state, this(call, "lxc")
    check_lock(guest)
    if guest.snapshots:
        raise PveError(500, "unable to create template, because CT contains snapshots")
    if guest.template:
        raise PveError(500, "you can't convert a template to a template")
    if guest.running:
        raise PveError(500, "you can't convert a CT to template if the CT is running")
    for _, options in mounts(guest.config):
        volid = options["volume"]
        if ":" not in volid or not feature_available(state, volid):
            raise PveError(500, f"template feature is not available for '{volid}'")
    guest.config["template"] = 1

    def work(task: TaskContext) -> None:
        for key, options in list(mounts(guest.config)):
            volume = find_volume(state, guest.node, options["volume"])
            if volume is None:
                raise TaskError(f"volume '{options['volume']}' does not exist")
            new = re.sub(r"([:/])vm-", r"\1base-", volume.volid)
            remove_volume(state, guest.node, volume.volid)
            volume.volid = new
            add_volume(state, require_storage(state, volume.storage).at(guest.node), volume)
            guest.config[key] = print_options({**options, "volume": new}, "volume")

    call.task("vztemplate", guest.vmid, work)


# --- migration ------------------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/lxc/{vmid}/migrate")
def migration_preconditions(call: Call) -> dict[str, Any]:
    """Which nodes the container can go to."""
    state, guest = call.state, this(call, "lxc")
    needed = {options["volume"].partition(":")[0] for _, options in mounts(guest.config)}
    allowed, refused = [], {}
    for node in state.nodes.values():
        if node.name == guest.node or not node.online:
            continue
        missing = sorted(name for name in needed if name in state.storages and not state.storages[name].on(node.name))
        if missing:
            refused[node.name] = {"unavailable-storages": missing}
        else:
            allowed.append(node.name)
    return {
        "running": int(guest.running),
        "allowed-nodes": allowed,
        "not-allowed-nodes": refused,
        "dependent-ha-resources": [],
    }


@endpoint("POST /nodes/{node}/lxc/{vmid}/migrate")
def migrate_container(call: Call) -> str:
    """The UPID of a move to another node; a running container is stopped there and started here with `restart`."""
    state, params, target = call.state, call.params, call.params["target"]
    if target == call.node:
        raise param_error({"target": "target is local node."})
    require_quorum(state, "cluster not ready - no quorum?")
    if target not in state.nodes:
        raise PveError(500, f"no such cluster node '{target}'")
    guest = this(call, "lxc")
    if guest.running and not (params.get("online") or params.get("restart")):
        raise PveError(500, "can't migrate running container without --online or --restart")

    async def work(task: TaskContext) -> None:
        check_lock(guest)
        running = guest.running
        if running and not params.get("restart"):
            raise TaskError("migration aborted")
        if not state.nodes[target].online:
            raise TaskError(f"Can't connect to destination address using public key (node '{target}')")
        moves = planned(state, guest, target, params.get("target-storage"))
        if running:
            task.log(f"shutdown CT {guest.vmid}")
            await task.sleep(4)
            power_off(state, guest)
        task.log(f"starting migration of CT {guest.vmid} to node '{target}' ({state.nodes[target].ip})")
        for key, options, volume, goal in moves:
            task.log(f"found local volume '{volume.volid}' (in current VM config)")
            name = next_disk_name(state, goal, target, guest.vmid, "raw")
            new = allocate(state, target, goal, guest.vmid, volume.size, name=name, content="rootdir", used=volume.used)
            await copy_progress(task, volume.used)
            remove_volume(state, call.node, volume.volid)
            guest.config[key] = print_options({**options, "volume": new.volid}, "volume")
        guest.node, guest.changed = target, state.clock.now()
        task.log("start final cleanup")
        if running:
            task.log("start container on target node")
            await boot(state, guest, task)
        task.log("migration finished successfully (duration 00:00:03)")

    return call.task("vzmigrate", guest.vmid, work)


def planned(state: PveState, guest: GuestState, target: str, wanted: str | None) -> list[Any]:
    """The volumes a move has to copy and where to; raises the error of one that has no place there."""
    moves = []
    mapped = dict(pair.partition(":")[::2] for pair in (wanted or "").split(",") if ":" in pair)
    for key, options in mounts(guest.config):
        volid = options["volume"]
        if ":" not in volid:
            if not options.get("shared"):
                raise TaskError(f"cannot migrate local bind mount point '{key}'")
            continue
        storage = require_storage(state, volid.partition(":")[0])
        if storage.shared:
            continue
        if guest.snapshots:
            raise TaskError("can't migrate snapshot of local volume '" + volid + "'")
        volume = find_volume(state, guest.node, volid)
        if volume is None:
            raise TaskError(f"volume '{volid}' does not exist")
        single = wanted if wanted and ":" not in wanted and wanted != "1" else storage.storage
        goal = require_active(state, mapped.get(storage.storage, single), target)
        moves.append((key, options, volume, goal))
    return moves


@endpoint("POST /nodes/{node}/lxc/{vmid}/remote_migrate")
def migrate_far(call: Call) -> str:
    """The UPID of a move to another cluster, which is not reached: the lab knows no other."""
    guest = this(call, "lxc")
    if guest.running and not (call.params.get("online") or call.params.get("restart")):
        raise PveError(500, "can't migrate running container without --online or --restart")

    def work(task: TaskContext) -> None:
        raise TaskError("remote: unable to connect - Connection refused")

    return call.task("vzmigrate", guest.vmid, work)
