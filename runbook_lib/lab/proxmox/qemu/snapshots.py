"""Snapshots of VMs: taken, listed, returned to, removed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ..routing import Boolean, Call, PveError, String, perm, route
from ..storage import (
    MIB,
    allocate,
    creation_log,
    human,
    no_space,
    remove_volume,
    require_active,
    thick,
    usage,
)
from ..worker import TaskContext, TaskError
from .config import has_feature, snapshot_config
from .drives import drives, is_cdrom, is_cloud_init
from .guest import (
    GuestState,
    Snapshot,
    agent_answers,
    check_lock,
    digest,
    find_guest,
    merged,
    power_off,
    power_on,
    this,
)
from .power import found

if TYPE_CHECKING:
    from ..state import PveState

NAME = {"snapname": String(format="pve-configid", max_length=40)}
AUDIT = perm("/vms/{vmid}", "VM.Audit")
SNAPSHOT = perm("/vms/{vmid}", "VM.Snapshot")


@route("GET", "/nodes/{node}/qemu/{vmid}/snapshot", permission=AUDIT)
def list_snapshots(call: Call) -> list[dict[str, Any]]:
    """The snapshots, and last the present as `current`."""
    guest = this(call)
    rows: list[dict[str, Any]] = []
    for name, snapshot in guest.snapshots.items():
        row: dict[str, Any] = {
            "name": name,
            "snaptime": snapshot.snaptime,
            "vmstate": int(snapshot.vmstate),
            "description": snapshot.description,
        }
        if snapshot.parent:
            row["parent"] = snapshot.parent
        rows.append(row)
    current: dict[str, Any] = {
        "name": "current",
        "digest": digest(guest),
        "running": int(guest.running),
        "description": "You are here!",
    }
    if guest.parent:
        current["parent"] = guest.parent
    return [*rows, current]


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/snapshot",
    params={**NAME, "description": String(optional=True), "vmstate": Boolean(optional=True)},
    permission=SNAPSHOT,
)
def take_snapshot(call: Call) -> str:
    """The UPID of a snapshot."""
    state, guest_of, name = call.state, found(call), call.params["snapname"]
    if name == "current":
        raise PveError(500, "unable to use snapshot name 'current' (reserved name)")
    if name == "pending":
        raise PveError(500, "unable to use snapshot name 'pending' (reserved name)")
    description, vmstate = call.params.get("description", ""), call.params.get("vmstate")

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        check_lock(guest)
        if name in guest.snapshots:
            raise TaskError(f"snapshot name '{name}' already used")
        if not has_feature(state, guest, "snapshot"):
            raise TaskError("snapshot feature is not available")
        for _, options in drives(guest.config):
            if not is_cdrom(options):
                check_snapshot_room(state, guest, options.get("file", ""), name)
        with_state = bool(vmstate) and guest.running
        if guest.running and guest.agent_enabled() and not with_state and not agent_answers(state, guest):
            task.log(f"QEMU Guest Agent is not running - VM {guest.vmid} qmp command 'guest-ping' failed - got timeout")
        config = dict(merged(guest))
        if with_state:
            storage = require_active(state, _state_storage(call), guest.node)
            size = 2 * guest.maxmem + 500 * MIB
            file = f"vm-{guest.vmid}-state-{name}" + (".raw" if storage.file_based else "")
            volume = allocate(state, guest.node, storage, guest.vmid, size, name=file)
            task.log(creation_log(storage, volume))
            memory = guest.memory_used(state.clock.now())
            if not thick(storage) and memory > usage(state, storage, guest.node)[2]:
                remove_volume(state, guest.node, volume.volid)
                raise TaskError("unable to save VM state and RAM - No space left on device")
            volume.used = memory
            task.log(f"saving VM state and RAM using storage '{storage.storage}'")
            await task.sleep(1 + volume.used / (500 * MIB))
            task.log(f"completed saving the VM state in 1s, saved {human(volume.used)}")
            config["vmstate"] = volume.volid
        for key, options in drives(guest.config):
            if not is_cdrom(options) and ":" in options.get("file", ""):
                task.log(f"snapshotting 'drive-{key}' ({options['file']})")
        await task.sleep(1)
        guest.snapshots[name] = Snapshot(config, int(state.clock.now()), description, with_state, guest.parent)
        guest.parent = name

    return call.task("qmsnapshot", call.params["vmid"], work)


def check_snapshot_room(state: PveState, guest: GuestState, volid: str, name: str) -> None:
    """Nothing, or the error of a thin pool that is full: a snapshot is a volume of its own there."""
    storage = state.storages.get(volid.partition(":")[0])
    if storage is None or storage.type != "lvmthin":
        return
    disk = volid.partition(":")[2]
    if why := no_space(state, storage, guest.node, 0, f"{storage.storage}:snap_{disk}_{name}"):
        raise TaskError(why.replace("lvcreate", "lvcreate snapshot", 1))


def _state_storage(call: Call) -> str:
    """Where the memory of a snapshot goes: the VM's own choice, else the storage of its first disk."""
    guest = find_guest(call.state, call.node, call.params["vmid"])
    if chosen := guest.config.get("vmstatestorage"):
        return str(chosen)
    for _, options in drives(guest.config):
        if not is_cdrom(options) and ":" in options.get("file", ""):
            return options["file"].partition(":")[0]
    return "local"


def check_most_recent(state: PveState, guest: GuestState, name: str) -> None:
    """Nothing, or the refusal of ZFS, which can only go back one step."""
    later = [other for other, snapshot in guest.snapshots.items() if snapshot.snaptime > guest.snapshots[name].snaptime]
    newest = list(guest.snapshots)[-1]
    for _, options in drives(guest.snapshots[name].config):
        storage = state.storages.get(options.get("file", "").partition(":")[0])
        if storage is not None and storage.type == "zfspool" and (later or newest != name):
            raise TaskError(f"can't rollback, '{name}' is not most recent snapshot on '{options['file']}'")


@route("GET", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}", params=NAME, permission="any")
def snapshot_index(call: Call) -> list[dict[str, str]]:
    """The names below one snapshot."""
    return [{"cmd": "rollback"}, {"cmd": "config"}]


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config",
    params=NAME,
    permission=perm("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit", any_of=True),
)
def get_snapshot_config(call: Call) -> dict[str, Any]:
    """The config a snapshot holds."""
    guest = this(call)
    if call.params["snapname"] not in guest.snapshots:
        raise PveError(500, f"snapshot '{call.params['snapname']}' does not exist")
    return snapshot_config(guest, call.params["snapname"])


@route(
    "PUT",
    "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config",
    params={**NAME, "description": String(optional=True)},
    permission=SNAPSHOT,
)
def describe_snapshot(call: Call) -> None:
    """Nothing; the snapshot has another description."""
    guest = this(call)
    check_lock(guest)
    if call.params["snapname"] not in guest.snapshots:
        raise PveError(500, f"snapshot '{call.params['snapname']}' does not exist")
    if "description" in call.params:
        guest.snapshots[call.params["snapname"]].description = call.params["description"]


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback",
    params={**NAME, "start": Boolean(optional=True)},
    permission=perm("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", any_of=True),
)
def rollback(call: Call) -> str:
    """The UPID of the return to a snapshot; one with memory runs again afterwards."""
    state, guest_of, name, start = call.state, found(call), call.params["snapname"], call.params.get("start")

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        if guest.template:
            raise TaskError("unable to rollback to snapshot: VM is a template")
        check_lock(guest)
        if name not in guest.snapshots:
            raise TaskError(f"snapshot '{name}' does not exist")
        check_most_recent(state, guest, name)
        snapshot = guest.snapshots[name]
        if guest.running:
            power_off(state, guest)
        await task.sleep(2)
        guest.config = {key: copy.copy(value) for key, value in snapshot.config.items() if key != "vmstate"}
        guest.parent = name
        if snapshot.vmstate or start:
            if any(is_cloud_init(options) for _, options in drives(guest.config)):
                task.log("generating cloud-init ISO")
            power_on(state, guest)

    return call.task("qmrollback", call.params["vmid"], work)


@route(
    "DELETE",
    "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}",
    params={**NAME, "force": Boolean(optional=True)},
    permission=SNAPSHOT,
)
def delete_snapshot(call: Call) -> str:
    """The UPID of a snapshot's removal."""
    state, guest_of, name = call.state, found(call), call.params["snapname"]

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        check_lock(guest)
        if name not in guest.snapshots:
            raise TaskError(f"snapshot '{name}' does not exist")
        await task.sleep(1)
        gone = guest.snapshots.pop(name)
        if volid := gone.config.get("vmstate"):
            remove_volume(state, guest.node, str(volid))
        for other in guest.snapshots.values():
            if other.parent == name:
                other.parent = gone.parent
        if guest.parent == name:
            guest.parent = gone.parent

    return call.task("qmdelsnapshot", call.params["vmid"], work)
