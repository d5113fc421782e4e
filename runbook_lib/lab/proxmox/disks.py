"""What a node's unused disks become: directories, volume groups, thin pools and ZFS pools, and the storages on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.hardware import TABLE
from .nodes import NodeState
from .nodes import this as this_node
from .quorum import require_quorum
from .routing import Call, PveError, param_error, split_list
from .storage import DEFAULT_CONTENT, StorageState, parse_size, volumes_on
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

MADE_AT_LEAST = {
    "single": 1, "mirror": 2, "raid10": 4, "raidz": 3, "raidz2": 4, "raidz3": 5, "draid": 3, "draid2": 4, "draid3": 5,
}  # fmt: skip
PARITY = {"raidz": 1, "raidz2": 2, "raidz3": 3, "draid": 1, "draid2": 2, "draid3": 3}
USED_AS = {"directory": "mounted", "lvm": "LVM", "lvmthin": "LVM", "zfs": "ZFS"}
WORDS = {"directory": "dir", "lvm": "lvm", "lvmthin": "lvmthin", "zfs": "zfs"}
METADATA_SHARE = 0.01


def made(state: PveState, node: str, kind: str) -> dict[str, dict[str, Any]]:
    """What of that kind was made of the node's disks, by name: {devices, size …}."""
    every: dict[str, Any] = state.areas.setdefault("made_of_disks", {})
    found: dict[str, dict[str, Any]] = every.setdefault(node, {}).setdefault(kind, {})
    return found


def disk_row(node: NodeState, path: str) -> dict[str, Any]:
    """The node's disk at that path. Raises the 500 of a path without one."""
    for disk in node.disks:
        if disk["devpath"] == path:
            return disk
    raise PveError(500, f"not a valid block device: '{path}'" if path.startswith("/dev/") else "invalid device path")


def unused_disk(node: NodeState, path: str) -> dict[str, Any]:
    """The node's disk at that path, which nothing uses yet. A disk of which nothing is said holds the system."""
    disk = disk_row(node, path)
    if disk.get("used", "LVM"):
        raise PveError(500, f"device '{path}' is already in use")
    return disk


def taken_groups(state: PveState, node: NodeState) -> set[str]:
    """The volume groups there are on the node."""
    return {pool["vg"] for pool in node.thin_pools} | set(made(state, node.name, "lvm"))


def _begin(
    call: Call, kind: str, paths: list[str], size: Callable[[list[int]], int], options: Mapping[str, Any]
) -> str:
    """The UPID of the making of something of unused disks, with a storage on it when asked."""
    state, node, name = call.state, this_node(call), str(call.params["name"])
    add = call.params.get("add_storage")
    if add:
        call.check("/storage", "Datastore.Allocate")
        require_quorum(state, "cluster not ready - no quorum?")
        if name in state.storages and node.name in (state.storages[name].nodes or state.nodes):
            raise PveError(500, f"storage ID '{name}' already defined")
    for path in paths:
        unused_disk(node, path)

    async def work(task: TaskContext) -> None:
        rows = [disk_row(node, path) for path in paths]
        if any(row.get("used", "LVM") for row in rows):
            raise TaskError(f"device '{paths[0]}' is already in use")
        for line in _lines(kind, name, paths):
            task.log(line)
        await task.sleep(3)
        total = size([parse_size(row["size"]) for row in rows])
        for row in rows:
            row["used"] = USED_AS[kind]
        made(state, node.name, kind)[name] = {"devices": paths, "size": total, **options}
        if kind == "lvmthin":
            metadata = int(total * METADATA_SHARE)
            node.thin_pools.append({"vg": name, "lv": name, "size": total - 2 * metadata, "metadata": metadata})
        if add:
            add_storage(state, node.name, kind, name, total)

    return call.task(f"{WORDS[kind]}create", name, work)


def _lines(kind: str, name: str, paths: list[str]) -> list[str]:
    device = " ".join(paths)
    return {
        "directory": [
            f"# /sbin/sgdisk -n1 -t1:8300 {device}",
            "The operation has completed successfully.",
            f"# /sbin/mkfs -t ext4 {device}1",
            f"Created symlink /etc/systemd/system/multi-user.target.wants/mnt-pve-{name}.mount",
        ],
        "lvm": [
            f'  Physical volume "{device}" successfully created.',
            f'  Volume group "{name}" successfully created',
        ],
        "lvmthin": [
            f'  Physical volume "{device}" successfully created.',
            f'  Volume group "{name}" successfully created',
            f'  Logical volume "{name}" created.',
        ],
        "zfs": [f"# /sbin/zpool create -o ashift=12 {name} {device}", f"# /sbin/zfs set compression=on {name}"],
    }[kind]


def add_storage(state: PveState, node: str, kind: str, name: str, size: int) -> None:
    """Offer what was made as a storage; one of that name on other nodes gets this node, too."""
    kind_of = {"directory": "dir", "zfs": "zfspool"}.get(kind, kind)
    options = {
        "directory": {"path": f"/mnt/pve/{name}", "is_mountpoint": "1"},
        "lvm": {"vgname": name},
        "lvmthin": {"vgname": name, "thinpool": name},
        "zfs": {"pool": name},
    }[kind]
    storage = state.storages.get(name)
    if storage is None:
        content = DEFAULT_CONTENT[kind_of].split(",")
        storage = state.storages[name] = StorageState(name, kind_of, content, dict(options), nodes=[])
    if storage.nodes is not None and node not in storage.nodes:
        storage.nodes.append(node)
    usable = int(size * (1 - 2 * METADATA_SHARE)) if kind == "lvmthin" else size
    storage.total[node], storage.occupied[node] = usable, 0


def _remove(call: Call, kind: str, name: str, missing: str) -> str:
    """The UPID of the removal of something made of disks; with `cleanup-config` the storage goes, too."""
    state, node, params = call.state, this_node(call), call.params
    if params.get("cleanup-config"):
        call.check("/storage", "Datastore.Allocate")
    if name not in made(state, node.name, kind):
        raise PveError(500, missing)

    async def work(task: TaskContext) -> None:
        entry = made(state, node.name, kind).get(name)
        if entry is None:
            raise TaskError(missing)
        storage = state.storages.get(name)
        if kind != "directory" and storage is not None and volumes_on(state, storage, node.name):
            raise TaskError(f"{kind} '{name}' is still in use")
        await task.sleep(2)
        del made(state, node.name, kind)[name]
        node.thin_pools[:] = [pool for pool in node.thin_pools if (kind, pool["vg"]) != ("lvmthin", name)]
        for path in entry["devices"]:
            if params.get("cleanup-disks"):
                disk_row(node, path)["used"] = ""
                task.log(f"wiping block device {path}")
            elif kind != "directory":
                disk_row(node, path)["used"] = "partitions" if kind == "zfs" else ""
        if storage is None:
            return
        if params.get("cleanup-config"):
            _forget(state, storage, node.name)
        else:
            storage.inactive_on.add(node.name)

    return call.task(f"{WORDS[kind]}remove", name, work)


def _forget(state: PveState, storage: StorageState, node: str) -> None:
    """Take the node off the storage; one that is left without nodes is gone."""
    for volume in volumes_on(state, storage, node):
        state.volumes.take((storage.at(node), volume.volid))
    storage.total.pop(node, None)
    storage.nodes = [name for name in storage.nodes or state.nodes if name != node]
    if not storage.nodes:
        del state.storages[storage.storage]


# --- endpoints ------------------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/disks/directory")
def list_directories(call: Call) -> list[dict[str, Any]]:
    """The disks that are mounted as directories below /mnt/pve."""
    return [
        {
            "unitfile": f"/etc/systemd/system/mnt-pve-{name}.mount",
            "path": f"/mnt/pve/{name}",
            "device": f"{entry['devices'][0]}1",
            "type": entry["filesystem"],
            "options": "defaults",
        }
        for name, entry in made(call.state, call.node, "directory").items()
    ]


@endpoint("POST /nodes/{node}/disks/directory")
def create_directory(call: Call) -> str:
    """The UPID of a file system's making on an unused disk."""
    name, filesystem = call.params["name"], call.params.get("filesystem", "ext4")
    if name in made(call.state, call.node, "directory"):
        raise PveError(500, f"a systemd mount unit already exists: mnt-pve-{name}.mount")
    return _begin(call, "directory", [call.params["device"]], sum, {"filesystem": filesystem})


@endpoint("DELETE /nodes/{node}/disks/directory/{name}")
def remove_directory(call: Call) -> str:
    """The UPID of a directory's unmounting."""
    name = call.params["name"]
    return _remove(call, "directory", name, f"can't find device for mount unit mnt-pve-{name}.mount")


@endpoint("POST /nodes/{node}/disks/lvm")
def create_group(call: Call) -> str:
    """The UPID of a volume group's making."""
    _no_group(call)
    return _begin(call, "lvm", [call.params["device"]], sum, {})


def _no_group(call: Call) -> None:
    name, node = call.params["name"], this_node(call)
    if name in taken_groups(call.state, node):
        raise PveError(500, f"volume group with name '{name}' already exists on node '{node.name}'")


@endpoint("DELETE /nodes/{node}/disks/lvm/{name}")
def remove_group(call: Call) -> str:
    """The UPID of a volume group's removal."""
    name = call.params["name"]
    return _remove(call, "lvm", name, f"no such volume group '{name}'")


@endpoint("POST /nodes/{node}/disks/lvmthin")
def create_thin_pool(call: Call) -> str:
    """The UPID of a thin pool's making, in a volume group of its own."""
    _no_group(call)
    return _begin(call, "lvmthin", [call.params["device"]], sum, {})


@endpoint("DELETE /nodes/{node}/disks/lvmthin/{name}")
def remove_thin_pool(call: Call) -> str:
    """The UPID of a thin pool's removal."""
    name, group = call.params["name"], call.params["volume-group"]
    return _remove(call, "lvmthin", name if group == name else f"{group}/{name}", f"no such thin pool {group}/{name}")


@endpoint("GET /nodes/{node}/disks/zfs")
def list_pools(call: Call) -> list[dict[str, Any]]:
    """The ZFS pools made of the node's disks."""
    rows = []
    for name, entry in made(call.state, call.node, "zfs").items():
        storage = call.state.storages.get(name)
        used = sum(v.used for v in volumes_on(call.state, storage, call.node)) if storage else 0
        rows.append(
            {
                "name": name,
                "size": entry["size"],
                "alloc": used,
                "free": entry["size"] - used,
                "frag": 0,
                "dedup": 1.0,
                "health": "ONLINE",
            }
        )
    return rows


@endpoint("GET /nodes/{node}/disks/zfs/{name}")
def pool_detail(call: Call) -> dict[str, Any]:
    """One ZFS pool with its devices as a tree."""
    name = call.params["name"]
    entry = made(call.state, call.node, "zfs").get(name)
    if entry is None:
        raise PveError(500, f"command '/sbin/zpool status -P {name}' failed: exit code 1")
    state = {"state": "ONLINE", "read": 0, "write": 0, "cksum": 0, "msg": ""}
    leaves: list[dict[str, Any]] = [{"name": f"{path}1", "leaf": 1, **state} for path in entry["devices"]]
    level = entry["raidlevel"]
    if level != "single":
        word = "mirror" if level == "raid10" else level
        step = 2 if level == "raid10" else len(leaves)
        groups = [leaves[start : start + step] for start in range(0, len(leaves), step)]
        leaves = [{"name": f"{word}-{n}", "leaf": 0, **state, "children": each} for n, each in enumerate(groups)]
    root = {"name": name, "leaf": 0, **state, "children": leaves}
    return {
        "name": name,
        "state": "ONLINE",
        "leaf": 0,
        "scan": "none requested",
        "errors": "No known data errors",
        "children": [root],
    }


@endpoint("POST /nodes/{node}/disks/zfs")
def create_pool(call: Call) -> str:
    """The UPID of a ZFS pool's making."""
    name, level, paths = call.params["name"], call.params["raidlevel"], split_list(call.params["devices"])
    if name in made(call.state, call.node, "zfs"):
        raise PveError(500, f"pool '{name}' already exists on node '{call.node}'")
    if "draid-config" in call.params and not level.startswith("draid"):
        raise param_error({"draid-config": "draid-config set without using dRAID level"})
    if level == "single" and len(paths) > 1:
        raise PveError(500, "raidlevel 'single' can only be used with one disk")
    if level == "raid10" and len(paths) % 2:
        raise PveError(500, "raid10 needs an even number of disks")
    if len(paths) < MADE_AT_LEAST[level]:
        raise PveError(500, f"{level} needs at least {MADE_AT_LEAST[level]} disks")

    def usable(sizes: list[int]) -> int:
        if level in ("mirror", "raid10"):
            return min(sizes) * (len(sizes) // 2 if level == "raid10" else 1)
        return min(sizes) * (len(sizes) - PARITY.get(level, 0))

    return _begin(call, "zfs", paths, usable, {"raidlevel": level})


@endpoint("DELETE /nodes/{node}/disks/zfs/{name}")
def remove_pool(call: Call) -> str:
    """The UPID of a ZFS pool's destruction."""
    name = call.params["name"]
    return _remove(call, "zfs", name, f"no such zpool '{name}'")


@endpoint("GET /nodes/{node}/scan/zfs")
def scan_pools(call: Call) -> list[dict[str, str]]:
    """The ZFS pools and file systems of the node, as a new storage may name them."""
    names = set(made(call.state, call.node, "zfs"))
    for storage in call.state.storages.values():
        if storage.type == "zfspool" and storage.on(call.node):
            names.add(str(storage.options.get("pool", "rpool")))
    return [{"pool": name} for name in sorted(names)]


@endpoint("GET /nodes/{node}/scan/glusterfs")
def scan_gluster(call: Call) -> list[dict[str, str]]:
    """Refused: no server of that kind answers."""
    server = call.params["server"]
    require = f"command '/sbin/showmount --no-headers --exports {server}' failed: exit code 1"
    raise PveError(500, require)


def groups(state: PveState, node: str) -> dict[str, int]:
    """The volume groups made of whole disks, with their sizes."""
    return {name: int(entry["size"]) for name, entry in made(state, node, "lvm").items()}
