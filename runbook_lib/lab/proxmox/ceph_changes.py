"""Ceph changed: OSDs made, taken in and out, destroyed; monitors, managers and metadata servers; pools, file systems.

Source: the vendor's PVE/API2/Ceph and below. A node without Ceph refuses everything with one and the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .ceph import FLAGS, VERSIONS, ceph, daemons, osds
from .declared import declared
from .declared.ceph import TABLE
from .nodes import this as this_node
from .routing import Call, PveError, param_error
from .storage import StorageState, volumes_on
from .worker import TaskContext, TaskError

endpoint = declared(TABLE)

NAMES = {"mon": "monitor", "mgr": "manager", "mds": "MDS"}
DATA_SECONDS = 3.0


def osd_of(call: Call) -> dict[str, Any]:
    """The OSD a path names. Raises the 500 that there is none."""
    for row in osds(call.state):
        if row["id"] == call.params["osdid"]:
            return row
    raise PveError(500, f"no such OSD '{call.params['osdid']}'")


# --- OSDs -----------------------------------------------------------------------------------------


@endpoint("POST /nodes/{node}/ceph/osd")
def create_osd(call: Call) -> str:
    """The UPID of an OSD's making on an unused disk."""
    area, node, path = ceph(call.state), this_node(call), call.params["dev"]
    disk = next((disk for disk in node.disks if disk["devpath"] == path), None)
    if disk is None:
        raise PveError(500, f"unable to get device info for '{path}'")
    if disk.get("used", "LVM"):
        raise PveError(500, f"device '{path}' is already in use")
    count = call.params.get("osds-per-device", 1)

    async def work(task: TaskContext) -> None:
        task.log(f"create OSD on {path} (bluestore)")
        await task.sleep(DATA_SECONDS)
        disk["used"] = "LVM"
        for _ in range(count):
            taken = {row["id"] for row in osds(call.state)}
            number = next(each for each in range(len(taken) + 1) if each not in taken)
            area["added"].append({"id": number, "host": node.name, "device": path})
            task.log(f"--> ceph-volume lvm create successful for: {path}")

    return call.task("cephcreateosd", path.rpartition("/")[2], work)


@endpoint("DELETE /nodes/{node}/ceph/osd/{osdid}")
def destroy_osd(call: Call) -> str:
    """The UPID of an OSD's removal; one that is in or up stays."""
    area, row, number = ceph(call.state), osd_of(call), call.params["osdid"]
    if row["host"] != call.node:
        raise PveError(500, f"osd.{number} is not on node '{call.node}'")
    if row["in"]:
        raise PveError(500, "osd is in use (in == 1)")
    if row["up"]:
        raise PveError(500, "osd is still running (up == 1)")

    async def work(task: TaskContext) -> None:
        task.log(f"destroy OSD osd.{number}")
        await task.sleep(DATA_SECONDS)
        mine = [each for each in area["added"] if each["id"] == number]
        area["added"] = [each for each in area["added"] if each["id"] != number]
        area["gone"] = [*area["gone"], number] if not mine else area["gone"]
        for disk in this_node(call).disks:
            if mine and call.params.get("cleanup") and disk["devpath"] == mine[0]["device"]:
                disk["used"] = ""
                task.log(f"wiping block device {disk['devpath']}")
        for word in ("down", "out"):
            area[word] = [each for each in area[word] if each != number]

    return call.task("cephdestroyosd", f"osd.{number}", work)


@endpoint("POST /nodes/{node}/ceph/osd/{osdid}/in")
def take_in(call: Call) -> None:
    """Nothing; data goes to the OSD again."""
    area, row = ceph(call.state), osd_of(call)
    area["out"] = [each for each in area["out"] if each != row["id"]]


@endpoint("POST /nodes/{node}/ceph/osd/{osdid}/out")
def take_out(call: Call) -> None:
    """Nothing; data leaves the OSD."""
    area, row = ceph(call.state), osd_of(call)
    if row["id"] not in area["out"]:
        area["out"].append(row["id"])


@endpoint("POST /nodes/{node}/ceph/osd/{osdid}/scrub")
def scrub(call: Call) -> None:
    """Nothing; the OSD looks through its data."""
    osd_of(call)


@endpoint("GET /nodes/{node}/ceph/osd/{osdid}/metadata")
def osd_metadata(call: Call) -> dict[str, Any]:
    """Where an OSD runs and on what."""
    ceph(call.state)
    row = osd_of(call)
    node = call.state.nodes[row["host"]]
    ports = {"front": 6802, "back": 6803, "hb_front": 6804, "hb_back": 6805}
    return {
        "osd": {
            "hostname": node.name,
            "id": row["id"],
            "mem_usage": 2 * 2**30,
            "osd_data": f"/var/lib/ceph/osd/ceph-{row['id']}",
            "osd_objectstore": "bluestore",
            "pid": 4000 + row["id"],
            "version": f"ceph version {VERSIONS[call.flavour]}",
            **{f"{word}_addr": f"v2:{node.ip}:{port + 8 * row['id']}/0" for word, port in ports.items()},
        },
        "devices": [
            {"dev_node": f"dm-{row['id']}", "device": "block", "devices": "sdb", "size": row["size"],
             "support_discard": 1, "type": "ssd", "physical_device": row.get("device", "/dev/sdb")}
        ],
    }  # fmt: skip


@endpoint("GET /nodes/{node}/ceph/osd/{osdid}/lv-info")
def osd_volume(call: Call) -> dict[str, Any]:
    """The logical volume an OSD lies on."""
    ceph(call.state)
    row, kind = osd_of(call), call.params.get("type", "block")
    if kind != "block":
        raise PveError(500, f"OSD '{row['id']}' has no {kind} device")
    return {
        "creation_time": "2025-01-15 10:00:00 +0000",
        "lv_name": f"osd-block-{row['id']}",
        "lv_path": f"/dev/ceph-{row['id']}/osd-block-{row['id']}",
        "lv_size": row["size"],
        "lv_uuid": f"osd{row['id']}",
        "vg_name": f"ceph-{row['id']}",
    }


# --- daemons --------------------------------------------------------------------------------------


def _made(kind: str, word: str, key: str) -> None:
    def create(call: Call) -> str:
        held, node, name = daemons(call.state, kind), this_node(call), call.params.get(word) or call.node
        if any(row["name"] == name for row in held):
            raise PveError(500, f"{NAMES[kind]} '{name}' already exists")
        if kind == "mon" and any(row["host"] == node.name for row in held):
            raise PveError(500, f"monitor address '{node.ip}' already in use")

        async def work(task: TaskContext) -> None:
            task.log(f"creating {NAMES[kind]} '{name}'")
            await task.sleep(DATA_SECONDS)
            held.append({"name": name, "host": node.name})

        return call.task(f"cephcreate{kind}", f"{kind}.{name}", work)

    def destroy(call: Call) -> str:
        held, name = daemons(call.state, kind), call.params[word]
        if all(row["name"] != name for row in held):
            raise PveError(500, f"no such {NAMES[kind]} id '{name}'" if kind == "mon" else f"no such {kind} '{name}'")
        if kind == "mon" and len(held) <= 1:
            raise PveError(500, "can't remove last monitor")

        async def work(task: TaskContext) -> None:
            await task.sleep(DATA_SECONDS)
            held[:] = [row for row in held if row["name"] != name]

        return call.task(f"cephdestroy{kind}", f"{kind}.{name}", work)

    create.__doc__, destroy.__doc__ = (
        f"The UPID of a {NAMES[kind]}'s making.",
        f"The UPID of a {NAMES[kind]}'s removal.",
    )
    endpoint(f"POST {key}")(create)
    endpoint(f"DELETE {key}")(destroy)


_made("mon", "monid", "/nodes/{node}/ceph/mon/{monid}")
_made("mgr", "id", "/nodes/{node}/ceph/mgr/{id}")
_made("mds", "name", "/nodes/{node}/ceph/mds/{name}")


def _service(word: str, act: Callable[[dict[str, Any], int], None]) -> None:
    def handler(call: Call) -> str:
        area, service = ceph(call.state), call.params.get("service", "ceph.target")
        kind, _, name = service.partition(".")

        def work(task: TaskContext) -> None:
            for row in osds(call.state):
                if (
                    row["host"] == call.node
                    and kind in ("osd", "ceph", "ceph.target")
                    and name in ("", "target", str(row["id"]))
                ):
                    act(area, row["id"])
            if kind in NAMES and name and all(row["name"] != name for row in daemons(call.state, kind)):
                raise TaskError(f"ceph service '{kind}.{name}' does not exist")

        return call.task(f"srv{word}", service, work)

    handler.__doc__ = f"The UPID of a {word} of the node's Ceph services."
    endpoint(f"POST /nodes/{{node}}/ceph/{word}")(handler)


def _down(area: dict[str, Any], number: int) -> None:
    if number not in area["down"]:
        area["down"].append(number)


def _up(area: dict[str, Any], number: int) -> None:
    area["down"] = [each for each in area["down"] if each != number]


_service("start", _up)
_service("stop", _down)
_service("restart", _up)


@endpoint("POST /cluster/ceph/restart-bulk")
@endpoint("POST /nodes/{node}/ceph/restart-bulk")
def restart_all(call: Call) -> str:
    """The UPID of a restart of OSDs one after another."""
    ceph(call.state)
    rows = [row for row in osds(call.state) if "node" not in call.raw or row["host"] == call.node]

    async def work(task: TaskContext) -> None:
        for row in rows:
            task.log(f"restarting osd.{row['id']}" + (" (dry run)" if call.params.get("dry-run") else ""))
            await task.sleep(2)

    return call.task("cephrestartbulk", call.params["service-type"], work)


@endpoint("POST /nodes/{node}/ceph/init")
def initialise(call: Call) -> None:
    """Nothing; an initial configuration that is there already stays as it is."""
    ceph(call.state)


@endpoint("GET /nodes/{node}/ceph/cmd-safety")
def safety(call: Call) -> dict[str, Any]:
    """Whether a daemon can be stopped or destroyed without harm."""
    area, kind, name = ceph(call.state), call.params["service"], call.params["id"]
    if kind == "osd":
        rows = osds(call.state)
        if not name.isdigit() or int(name) not in [row["id"] for row in rows]:
            raise PveError(500, f"no such OSD '{name}'")
        risky = [row for row in rows if not row["up"]] or (
            call.params["action"] == "destroy" and int(name) not in area["out"]
        )
        why = f"OSD(s) {name} have objects that would be degraded" if risky else ""
    else:
        why = "" if len(daemons(call.state, kind)) > 2 else f"not enough {kind}s would be available"
    return {"safe": int(not why), "status": why}


@endpoint("GET /nodes/{node}/ceph/cfg/value")
def config_value(call: Call) -> dict[str, dict[str, str]]:
    """The values of the asked keys, by section; those nobody set are left out."""
    area = ceph(call.state)
    known = {"global": {"fsid": area["fsid"], "osd_pool_default_size": "3", "osd_pool_default_min_size": "2",
                        "mon_host": " ".join(node.ip for node in call.state.nodes.values())}}  # fmt: skip
    found: dict[str, dict[str, str]] = {}
    for pair in re.split(r"[;, ]+", call.params["config-keys"]):
        section, _, key = pair.partition(":")
        value = known.get(section, {}).get(key.replace("-", "_"))
        if value is not None:
            found.setdefault(section, {})[key] = value
    return found


@endpoint("PUT /cluster/ceph/flags")
def set_flags(call: Call) -> str:
    """The UPID of the setting of flags, all that are named at once."""
    area = ceph(call.state)
    given = {name: value for name, value in call.params.items() if name in FLAGS}

    def work(task: TaskContext) -> None:
        for name, value in given.items():
            task.log(f"{'set' if value else 'unset'} {name}")
            if value and name not in area["flags"]:
                area["flags"].append(name)
            elif not value and name in area["flags"]:
                area["flags"].remove(name)

    return call.task("cephsetflags", "", work)


# --- pools and file systems -----------------------------------------------------------------------


def _options(call: Call) -> dict[str, Any]:
    kept = ("size", "min_size", "pg_num", "pg_autoscale_mode", "crush_rule", "application", "target_size_ratio")
    return {key: call.params[key] for key in kept if key in call.params}


def check_rule(call: Call) -> None:
    """Nothing, or the 500 of a CRUSH rule that is not there."""
    rule = call.params.get("crush_rule")
    if rule not in (None, "replicated_rule"):
        raise PveError(500, f"rule '{rule}' does not exist")


@endpoint("POST /nodes/{node}/ceph/pool")
def create_pool(call: Call) -> str:
    """The UPID of a pool's making, with a storage on it when asked."""
    area, name, state = ceph(call.state), call.params["name"], call.state
    add = call.params.get("add_storages", bool(call.params.get("erasure-coding")))
    if add:
        if call.params.get("application", "rbd") != "rbd":
            raise param_error({"add_storages": "cannot add storages when application is not 'rbd'"})
        call.check("/storage", "Datastore.Allocate")
        if name in state.storages:
            raise PveError(500, f"storage ID '{name}' already defined")
    if name in area["pools"]:
        raise PveError(500, f"pool '{name}' already exists")
    check_rule(call)

    async def work(task: TaskContext) -> None:
        await task.sleep(2)
        task.log(f"pool {name}: applying size = {call.params.get('size', 3)}")
        area["pools"][name] = _options(call)
        if add:
            rows = osds(state)
            room = int((area["size"] - area["used"]) / max(1, len(rows)) * len(rows) / 3)
            content = ["images", "rootdir"]
            storage = StorageState(name, "rbd", content, {"pool": name, "krbd": 0}, shared=True)
            storage.total[""], storage.occupied[""] = room, 0
            state.storages[name] = storage

    return call.task("cephcreatepool", name, work)


def pool_of(call: Call) -> dict[str, Any]:
    """The pool a path names. Raises the 500 that there is none."""
    area, name = ceph(call.state), call.params["name"]
    if name not in area["pools"]:
        raise PveError(500, f"error with 'osd pool get': pool '{name}' does not exist")
    area["pools"][name] = area["pools"][name] or {}
    found: dict[str, Any] = area["pools"][name]
    return found


@endpoint("PUT /nodes/{node}/ceph/pool/{name}")
def change_pool(call: Call) -> str:
    """The UPID of a pool's change."""
    pool, given = pool_of(call), _options(call)
    check_rule(call)

    def work(task: TaskContext) -> None:
        for key, value in given.items():
            task.log(f"pool {call.params['name']}: applying {key} = {value}")
        pool.update(given)

    return call.task("cephsetpool", call.params["name"], work)


@endpoint("DELETE /nodes/{node}/ceph/pool/{name}")
def destroy_pool(call: Call) -> str:
    """The UPID of a pool's removal; one in which guests have disks stays unless forced."""
    state, name = call.state, call.params["name"]
    pool_of(call)
    using = [s for s in state.storages.values() if s.type == "rbd" and s.options.get("pool", "rbd") == name]
    if call.params.get("remove_storages"):
        call.check("/storage", "Datastore.Allocate")
    for storage in using:
        if not call.params.get("force") and volumes_on(state, storage, call.node):
            raise PveError(500, f"ceph pool '{name}' still in use by storage '{storage.storage}'")

    async def work(task: TaskContext) -> None:
        await task.sleep(2)
        del ceph(state)["pools"][name]
        for storage in using:
            for volume in volumes_on(state, storage, call.node):
                state.volumes.take((storage.at(call.node), volume.volid))
            if call.params.get("remove_storages"):
                state.storages.pop(storage.storage, None)

    return call.task("cephdestroypool", name, work)


@endpoint("POST /nodes/{node}/ceph/fs/{name}")
def create_filesystem(call: Call) -> str:
    """The UPID of a file system's making, which needs a metadata server."""
    area, name = ceph(call.state), call.params.get("name") or "cephfs"
    if name in area["fs"]:
        raise PveError(500, f"ceph fs '{name}' already exists")
    if not daemons(call.state, "mds"):
        raise PveError(500, "no running Metadata Server (MDS) found!")
    for pool in (f"{name}_data", f"{name}_metadata"):
        if pool in area["pools"]:
            raise PveError(500, f"ceph pools '{name}_data' and/or '{name}_metadata' already exist")

    async def work(task: TaskContext) -> None:
        for pool in (f"{name}_data", f"{name}_metadata"):
            task.log(f"creating {pool.rpartition('_')[2]} pool '{pool}'...")
            await task.sleep(1)
            area["pools"][pool] = {"application": "cephfs", "pg_num": call.params.get("pg_num", 128)}
        area["fs"].append(name)
        if call.params.get("add-storage"):
            storage = StorageState(name, "cephfs", ["vztmpl", "iso", "backup"], {"fs-name": name}, shared=True)
            storage.total[""], storage.occupied[""] = (area["size"] - area["used"]) // 3, 0
            call.state.storages[name] = storage

    return call.task("cephfscreate", name, work)


@endpoint("DELETE /nodes/{node}/ceph/fs/{name}")
def destroy_filesystem(call: Call) -> str:
    """The UPID of a file system's removal."""
    area, name, state = ceph(call.state), call.params["name"], call.state
    if name not in area["fs"]:
        raise PveError(500, f"no cephfs with name '{name}' found")
    storage = state.storages.get(name)
    if storage is not None and not storage.disable and not call.params.get("remove-storages"):
        raise PveError(500, f"storage '{name}' is not disabled, make sure to disable and unmount the storage first")

    def work(task: TaskContext) -> None:
        area["fs"].remove(name)
        if call.params.get("remove-storages"):
            state.storages.pop(name, None)
        if call.params.get("remove-pools"):
            for pool in (f"{name}_data", f"{name}_metadata"):
                task.log(f"removing pool '{pool}'")
                area["pools"].pop(pool, None)

    return call.task("cephfsdestroy", name, work)
