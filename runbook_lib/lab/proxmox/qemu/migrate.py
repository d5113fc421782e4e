"""Migration of VMs to another node: what must hold before, what is copied, what a refusal says.

Source of rules and texts: PVE/API2/Qemu.pm, PVE/QemuMigrate.pm and PVE/QemuMigrate/Helpers.pm of qemu-server.
"""

from __future__ import annotations

import copy
import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..network import networks
from ..nodes import memory_used
from ..quorum import require_quorum
from ..routing import Boolean, Call, Integer, PveError, String, only_9, param_error, perm, route, split_list
from ..storage import (
    StorageState,
    VolumeState,
    add_volume,
    creation_log,
    disk_volid,
    find_volume,
    human,
    next_disk_name,
    no_space,
    remove_volume,
    require_active,
    require_storage,
    thick,
    usage,
)
from ..worker import TaskContext, TaskError
from .drives import COPY_RATE, DRIVE, drives, is_cdrom, is_cloud_init
from .guest import GuestState, check_lock, find_guest, parse_net, parse_options, this

if TYPE_CHECKING:
    from ..state import PveState

MIGRATE = perm("/vms/{vmid}", "VM.Migrate")
NO_QUORUM = "cluster not ready - no quorum?"
COPIED = ("dir", "btrfs", "zfspool", "lvmthin", "lvm")
"""Types of storage whose volumes can be sent to another node."""
ROOT_ONLY = ("force", "migration_type", "migration_network")


# --- what ties a VM to its node -------------------------------------------------------------------


@dataclass
class Devices:
    """What a VM uses of its host: what blocks a migration, what is mapped, and where a mapping is missing."""

    blocking: list[str] = field(default_factory=list)
    mapped: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)


def local_devices(state: PveState, guest: GuestState) -> Devices:
    """The host devices in a config. A serial port that is a socket is none: it is made anew on the other side."""
    found = Devices(missing={node: [] for node in state.nodes})
    if guest.running and "amd-sev" in guest.config:
        found.blocking.append("amd-sev")
    if "ivshmem" in guest.config:
        found.blocking.append("ivshmem")
    for key, value in guest.config.items():
        base = re.sub(r"\d+$", "", key)
        if base not in ("usb", "hostpci", "serial", "parallel", "virtiofs") or base == key:
            continue
        options = parse_options(str(value), "dirid" if base == "virtiofs" else "host")
        if (base == "serial" and value == "socket") or (base == "usb" and options.get("host", "").lower() == "spice"):
            continue
        name = options.get("dirid" if base == "virtiofs" else "mapping")
        if name and base in _MAPPINGS:
            moves = _map(state, found, key, _MAPPINGS[base], name)
            if base == "hostpci" and (moves or not guest.running):
                continue
        found.blocking.append(key)
    return found


_MAPPINGS = {"hostpci": "pci", "usb": "usb", "virtiofs": "dir"}


def _map(state: PveState, found: Devices, key: str, kind: str, name: str) -> bool:
    """Whether the mapped device can go along with a running VM; what the nodes lack is noted in `found`."""
    section = state.areas.get("mapping", {}).get(kind, {}).get(name, {})
    entries = [parse_options(str(text)) for text in section.get("map", ())]
    having = {entry.get("node") for entry in entries}
    for node in state.nodes:
        if node not in having:
            found.missing[node].append(key)
    moves = kind == "pci" and bool(int(section.get("live-migration-capable", 0) or 0))
    found.mapped[key] = {"name": name, **({"live-migration": 1} if moves else {})}
    return moves


def unavailable(state: PveState, guest: GuestState, node: str) -> list[str]:
    """The storages the VM's drives lie on that the configuration does not offer to the node."""
    names = {options.get("file", "").partition(":")[0] for _, options in drives(guest.config)}
    return sorted(n for n in names if (s := state.storages.get(n)) and (s.disable or not s.on(node)))


def local_disks(state: PveState, guest: GuestState) -> list[dict[str, Any]]:
    """The volumes that are not on shared storage, as the preconditions show them; those of snapshots too."""
    rows: dict[str, dict[str, Any]] = {}

    def note(key: str, options: Mapping[str, str], **more: Any) -> None:
        volid = options.get("file", "")
        storage = state.storages.get(volid.partition(":")[0])
        shared_by_hand = options.get("shared") == "1"
        if volid in ("", "none") or shared_by_hand or (storage is not None and storage.shared):
            return
        if storage is None and not volid.startswith("/") and volid != "cdrom":
            return
        row = rows.setdefault(
            volid,
            {
                "volid": volid,
                "drivename": key,
                "cdrom": int(is_cdrom(options)),
                "is_attached": 0,
                "is_unused": 0,
                "is_vmstate": 0,
                "is_tpmstate": int(key.startswith("tpmstate")),
                "shared": 0,
                "replicate": int(options.get("replicate", "1")),
            },
        )
        if state.flavour != "8.4":
            row["is_cloudinit"] = int(is_cloud_init(options))
        if (volume := find_volume(state, guest.node, volid)) is not None:
            row["size"] = volume.size
        row.update(more)

    for key, options in drives(guest.config):
        note(key, options, is_attached=1)
    for key, value in guest.config.items():
        if re.fullmatch(r"unused\d+", key):
            note(key, {"file": str(value)}, is_unused=1)
    for key, value in guest.pending.items():
        if DRIVE.match(key):
            note(key, parse_options(str(value)), referenced_in_pending=1)
    for name, snapshot in guest.snapshots.items():
        for key, options in drives(snapshot.config):
            volid = options.get("file", "")
            held = {**rows.get(volid, {}).get("referenced_in_snapshot", {}), name: 1}
            note(key, options, referenced_in_snapshot=held)
        if volid := str(snapshot.config.get("vmstate", "")):
            note("vmstate", {"file": volid}, is_vmstate=1, referenced_in_snapshot={name: 1})
    return list(rows.values())


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/migrate",
    params={"target": String(optional=True, format="pve-node")},
    permission=MIGRATE,
)
def migration_preconditions(call: Call) -> dict[str, Any]:
    """Which nodes the VM can go to, and what would have to be copied. Whether a node is online is not asked."""
    state = call.state
    require_quorum(state, NO_QUORUM)
    guest = this(call)
    check_lock(guest)
    devices = local_devices(state, guest)
    allowed: list[str] = []
    refused: dict[str, dict[str, Any]] = {}
    for node in state.nodes:
        if node == guest.node:
            continue
        # a node that nothing speaks against stands in both
        refused[node] = {}
        if names := unavailable(state, guest, node):
            refused[node]["unavailable_storages"] = names
        if keys := devices.missing[node]:
            refused[node]["unavailable-resources"] = keys
        if not refused[node]:
            allowed.append(node)
    result: dict[str, Any] = {
        "running": int(guest.running),
        "local_disks": local_disks(state, guest),
        "local_resources": devices.blocking,
        "mapped-resources": sorted(devices.mapped),
        "mapped-resource-info": devices.mapped,
        "allowed_nodes": allowed,
        "not_allowed_nodes": refused,
    }
    if state.flavour != "8.4":
        result["has-dbus-vmstate"] = 1
    return result


# --- the request ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StorageMap:
    """Which storage of the target takes the place of which: by name, for all the rest, or each itself."""

    entries: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    identity: bool = False

    def __getitem__(self, name: str) -> str:
        return self.entries.get(name) or self.default or name


def parse_storage_map(text: str) -> StorageMap:
    """The map that `targetstorage` spells: "1", one storage, or pairs `from:to`. Raises the 400 of a contradiction."""
    entries: dict[str, str] = {}
    default, identity = None, False
    for entry in split_list(text):
        source, colon, target = entry.partition(":")
        if entry == "1":
            identity = True
        elif colon and source in entries:
            raise _bad_map(f"duplicate mapping for source '{source}'")
        elif colon:
            entries[source] = target
        elif default is not None:
            raise _bad_map("default target ID can only be provided once")
        else:
            default = entry
    if identity and (entries or default):
        raise _bad_map("identity mapping cannot be combined with other mappings")
    return StorageMap(entries, default, identity)


def _bad_map(why: str) -> PveError:
    return param_error({"targetstorage": f"failed to parse storage map: {why}\n"})


def check_targets(call: Call, guest: GuestState, target: str, wanted: str | None) -> StorageMap:
    """The storage map of the request, once the target offers every storage that it needs."""
    state = call.state
    if wanted is not None:
        storages = parse_storage_map(wanted)
        if not storages.identity:
            call.check(f"/vms/{guest.vmid}", "VM.Config.Disk")
        for name in [*storages.entries.values(), *([storages.default] if storages.default else [])]:
            enabled_on(state, name, target)
            call.check(f"/storage/{name}", "Datastore.AllocateSpace")
            if "images" not in state.storages[name].content:
                raise PveError(500, f"storage '{name}' does not support vm images")
        if not storages.identity:
            return storages
    for _, options in drives(guest.config):
        volid = options.get("file", "")
        name = volid.partition(":")[0]
        if ":" not in volid:
            continue
        enabled_on(state, name, guest.node)
        kind = content_of(volid)
        if kind not in enabled_on(state, name, target).content:
            raise PveError(500, f"{volid}: content type '{kind}' is not available on storage '{name}'")
    return StorageMap()


def enabled_on(state: PveState, name: str, node: str) -> StorageState:
    """The storage as the configuration offers it to the node, or PVE's 500; whether it answers is not asked."""
    storage = require_storage(state, name)
    if storage.disable:
        raise PveError(500, f"storage '{name}' is disabled")
    if not storage.on(node):
        raise PveError(500, f"storage '{name}' is not available on node '{node}'")
    return storage


def content_of(volid: str) -> str:
    """The content type that a volume's name tells."""
    folder = volid.partition(":")[2].partition("/")[0]
    return folder if folder in ("iso", "vztmpl", "backup", "snippets", "import") else "images"


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/migrate",
    params={
        "target": String(format="pve-node"),
        "online": Boolean(optional=True),
        "force": Boolean(optional=True),
        "with-local-disks": Boolean(optional=True),
        "with-conntrack-state": only_9(Boolean(optional=True)),
        "targetstorage": String(optional=True, format="storage-pair-list"),
        "migration_type": String(optional=True, enum=("secure", "insecure")),
        "migration_network": String(optional=True, format="CIDR"),
        "bwlimit": Integer(optional=True, minimum=0),
    },
    permission=MIGRATE,
)
def migrate(call: Call) -> str:
    """The UPID of a migration; its log carries the time of each line. What HA looks after, HA is asked to move."""
    state, params, target = call.state, call.params, call.params["target"]
    if target == call.node:
        raise param_error({"target": "target is local node."})
    require_quorum(state, NO_QUORUM)
    if target not in state.nodes:
        raise PveError(500, f"no such cluster node '{target}'")
    for name in ROOT_ONLY:
        if params.get(name) and (call.auth is None or not call.auth.is_root):
            raise param_error({name: "Only root may use this option."})
    guest = find_guest(state, call.node, params["vmid"])
    check_lock(guest)
    if guest.running and not params.get("online"):
        raise PveError(500, "can't migrate running VM without --online")
    storages = check_targets(call, guest, target, params.get("targetstorage"))
    from ..ha import request_move  # HA needs the guests

    if upid := request_move(call, target):
        return upid
    move = Move(state, guest, target, storages, params)
    return call.task("qmigrate", guest.vmid, move.run)


# --- the task -------------------------------------------------------------------------------------


class Aborted(Exception):
    """What ends a migration; the text stands in its log, the task itself ends with "migration aborted"."""


class Move:
    """One migration under way."""

    def __init__(
        self, state: PveState, guest: GuestState, target: str, storages: StorageMap, params: Mapping[str, Any]
    ) -> None:
        self.state, self.guest, self.target, self.storages = state, guest, target, storages
        self.source, self.online = guest.node, bool(params.get("online")) and guest.running
        self.with_disks, self.force = bool(params.get("with-local-disks")), bool(params.get("force"))
        self.conntrack = bool(params.get("with-conntrack-state"))
        self.task: TaskContext

    def say(self, line: str) -> None:
        """Write a line with the time before it."""
        moment = dt.datetime.fromtimestamp(self.state.clock.now(), dt.UTC)
        self.task.log(f"{moment:%Y-%m-%d %H:%M:%S} {line}")

    def took(self) -> str:
        """How long it has taken, as the last line tells it."""
        seconds = int(self.state.clock.elapsed() - self.began)
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    async def run(self, task: TaskContext) -> None:
        """Carry it out; whatever stops it leaves the VM where it was."""
        self.task, self.began = task, self.state.clock.elapsed()
        try:
            await self.prepare()
            self.say(f"starting migration of VM {self.guest.vmid} to node '{self.target}' ({self.address})")
            self.guest.config["lock"] = "migrate"
            try:
                rows = self.scan()
                await self.copy_disks([row for row in rows if not (self.online and row["ref"] == "attached")])
                if self.online:
                    await self.go_alive([row for row in rows if row["ref"] == "attached"])
            except Aborted as error:
                self.say(f"ERROR: {error}")
                self.say("aborting phase 1 - cleanup resources")
                raise
            finally:
                self.guest.config.pop("lock", None)
        except Aborted as error:
            self.say(f"ERROR: migration aborted (duration {self.took()}): {error}")
            raise TaskError("migration aborted") from error
        self.guest.node = self.target
        self.guest.changed = self.state.clock.now()
        self.say(f"migration finished successfully (duration {self.took()})")

    @property
    def address(self) -> str:
        """The target's address."""
        return self.state.nodes[self.target].ip

    async def prepare(self) -> None:
        """Nothing, or Aborted: devices of the host, a target that does not answer."""
        state, guest = self.state, self.guest
        if guest.lock:
            raise Aborted(f"VM is locked ({guest.lock})")
        if guest.running and not self.online:
            raise Aborted("can't migrate running VM without --online")
        if self.online and not self.conntrack and state.flavour != "8.4":
            self.say("conntrack state migration not supported or disabled, active connections might get dropped")
        devices = local_devices(state, guest)
        blocking = [key for key in devices.blocking if key not in devices.mapped]
        if blocking and (guest.running or not self.force):
            raise Aborted(f"can't migrate VM which uses local devices: {', '.join(blocking)}")
        if blocking:
            self.say("migrating VM which uses local devices")
        if devices.mapped:
            fixed = [f"{k}:{row['name']}" for k, row in sorted(devices.mapped.items()) if "live-migration" not in row]
            if missing := devices.missing[self.target]:
                raise Aborted(f"can't migrate to '{self.target}': missing mapped devices {', '.join(missing)}")
            if guest.running and fixed:
                text = ", ".join(fixed)
                raise Aborted(f"can't live migrate running VM which uses following mapped devices: {text}")
            self.say("migrating VM which uses mapped local devices")
        node = state.nodes[self.target]
        if not node.online:
            await self.task.sleep(3)
            self.say(f"# /usr/bin/ssh -e none -o 'BatchMode=yes' -o 'HostKeyAlias={self.target}' "
                     f"root@{self.address} /bin/true")  # fmt: skip
            self.say(f"ssh: connect to host {self.address} port 22: {node.unreachable}")
            raise Aborted("Can't connect to destination address using public key")

    def scan(self) -> list[dict[str, Any]]:
        """The volumes to take along, each with how it is referred to; Aborted when one of them cannot go."""
        refused: dict[str, str] = {}
        rows = []
        for row in local_disks(self.state, self.guest):
            row["ref"] = (
                "generated"
                if row["is_tpmstate"] or row.get("is_cloudinit") or _generated(row["volid"])
                else "attached"
                if row["is_attached"]
                else "unused"
                if row["is_unused"]
                else "pending"
                if row.get("referenced_in_pending")
                else "snapshot"
            )
            try:
                self.check_volume(row)
            except (Aborted, PveError) as error:
                refused[row["volid"]] = str(error)
            if row["volid"] != "cdrom":
                rows.append(row)
        rows.sort(key=lambda row: str(row["volid"]))
        for row in rows:
            if row["ref"] == "attached" and self.online and not self.with_disks:
                refused.setdefault(
                    row["volid"], "can't live migrate attached local disks without with-local-disks option"
                )
            self.say(_found(row["volid"], row["ref"]))
        for volid, why in sorted(refused.items()):
            self.say(why if volid == "cdrom" else f"can't migrate local disk '{volid}': {why}")
        if refused:
            raise Aborted("Problem found while scanning volumes - can't migrate VM - check log")
        for row in rows:
            self.check_storage(row["volid"])
        return rows

    def check_volume(self, row: Mapping[str, Any]) -> None:
        """Nothing, or what stands against taking this volume along."""
        volid, state = str(row["volid"]), self.state
        if volid == "cdrom":
            raise Aborted("can't migrate local cdrom drive")
        if volid.startswith("/"):
            raise Aborted("local file/device")
        goal = enabled_on(state, self.storages[volid.partition(":")[0]], self.target)
        if content_of(volid) not in goal.content:
            kind = content_of(volid)
            raise Aborted(f"{volid}: content type '{kind}' is not available on storage '{goal.storage}'")
        if row["cdrom"]:
            if _generated(volid):
                return
            raise Aborted("local cdrom image")
        volume = find_volume(state, self.source, volid)
        if volume is not None and volume.vmid != self.guest.vmid:
            raise Aborted(f"owned by other VM (owner = VM {volume.vmid})")
        if row.get("is_vmstate"):
            return
        if row.get("referenced_in_snapshot"):
            if self.guest.running:
                raise Aborted("online storage migration not possible if non-replicated snapshot exists")
            kind = state.storages[volid.partition(":")[0]].type
            if not (kind in ("zfspool", "btrfs") or (volume is not None and volume.format == "qcow2")):
                raise Aborted("non-migratable snapshot exists")
        if any(other.parent == volid for other in state.volumes.values()):
            raise Aborted("referenced by linked clone(s)")

    def check_storage(self, volid: str) -> None:
        """Nothing, or Aborted when volumes of this storage do not travel."""
        storage = self.state.storages[volid.partition(":")[0]]
        where = "Problem found while scanning volumes - can't migrate"
        if storage.type not in COPIED:
            raise Aborted(f"{where} '{volid}' - storage type '{storage.type}' not supported")
        volume = find_volume(self.state, self.source, volid)
        if volume is not None and volume.parent and "/base-" in f"/{volid.partition(':')[2]}":
            base = volume.parent.rpartition("/")[2].rpartition(":")[2]
            line = "at /usr/share/perl5/PVE/QemuMigrate.pm line 566."
            raise Aborted(f"{where} '{volid}' as it's a clone of '{base}' {line}")

    async def copy_disks(self, rows: list[dict[str, Any]]) -> None:
        """Send the volumes that nobody writes to; what arrived goes again when a later one does not."""
        if rows:
            self.say("copying local disk images")
        sent: list[tuple[VolumeState, VolumeState]] = []
        try:
            for row in rows:
                volume = find_volume(self.state, self.source, row["volid"])
                if volume is None:
                    raise Aborted(f"volume '{row['volid']}' does not exist")
                goal = self.goal_of(volume)
                self.check_transfer(volume, goal)
                new = self.arrive(volume, goal)
                sent.append((volume, new))
                self.say(creation_log(goal, new))
                await self.task.sleep(1 + volume.size / COPY_RATE)
                self.say(
                    f"{volume.size} bytes ({human(volume.size)}) copied, {volume.size / COPY_RATE:.3f} s, 419 MB/s"
                )
                self.say(f"successfully imported '{new.volid}'")
                self.say(f"volume '{volume.volid}' is '{new.volid}' on the target")
        except BaseException:
            for _, new in sent:
                remove_volume(self.state, self.target, new.volid)
            raise
        for volume, new in sent:
            self.settle(volume, new)

    def goal_of(self, volume: VolumeState) -> StorageState:
        """The storage of the target that takes the volume."""
        try:
            return require_active(self.state, self.storages[volume.storage], self.target)
        except PveError as error:
            raise Aborted(self.failure(volume, self.storages[volume.storage], error.message)) from error

    @staticmethod
    def failure(volume: VolumeState, goal: str, why: str) -> str:
        """The line of a copy that failed."""
        return f"storage migration for '{volume.volid}' to storage '{goal}' failed - {why}"

    def check_transfer(self, volume: VolumeState, goal: StorageState) -> None:
        """Nothing, or Aborted: ZFS speaks to ZFS alone, a qcow2 file with its snapshots goes to files alone."""
        origin = self.state.storages[volume.storage]
        zfs = (origin.type == "zfspool") != (goal.type == "zfspool")
        layered = volume.format in ("qcow2", "vmdk") and not goal.file_based
        if zfs or layered:
            why = f"cannot migrate from storage type '{origin.type}' to '{goal.type}'"
            raise Aborted(self.failure(volume, goal.storage, why))

    def arrive(self, volume: VolumeState, goal: StorageState) -> VolumeState:
        """The volume's copy on the target, renamed when its name is taken there."""
        free = usage(self.state, goal, self.target)[2]
        if volume.size > free if thick(goal) else volume.used > free:
            flags = f"-with-snapshots {int(volume.format == 'qcow2')}"
            command = (
                f"set -o pipefail && pvesm export {volume.volid} {volume.format}+size - {flags} | /usr/bin/ssh -e none "
                f"-o 'BatchMode=yes' -o 'HostKeyAlias={self.target}' root@{self.address} -- pvesm import "
                f"{volume.volid} {volume.format}+size - {flags} -allow-rename 1"
            )
            if why := no_space(self.state, goal, self.target, volume.size, volume.volid):
                self.say(f"[{self.target}] {why}")
            raise Aborted(self.failure(volume, goal.storage, f"command '{command}' failed: exit code 255"))
        name = volume.name.rpartition("/")[2]
        fmt = volume.format if goal.file_based else "raw"
        if goal.file_based != ("." in name) or goal.file_based != self.state.storages[volume.storage].file_based:
            name = f"{name.partition('.')[0]}.{fmt}" if goal.file_based else name.partition(".")[0]
        volid = disk_volid(goal, self.guest.vmid, name)
        if (goal.at(self.target), volid) in self.state.volumes:
            volid = disk_volid(
                goal, self.guest.vmid, next_disk_name(self.state, goal, self.target, self.guest.vmid, fmt)
            )
        new: VolumeState = copy.copy(volume)
        new.volid, new.format, new.parent = volid, fmt, None
        return add_volume(self.state, goal.at(self.target), new)

    def settle(self, volume: VolumeState, new: VolumeState) -> None:
        """Let the config name the copy, and the original go."""
        if (self.source, volume.volid) != (self.target, new.volid):
            remove_volume(self.state, self.source, volume.volid)
        if new.volid == volume.volid:
            return
        for config in (self.guest.config, *(snapshot.config for snapshot in self.guest.snapshots.values())):
            for key in referring(config, volume.volid):
                config[key] = str(config[key]).replace(volume.volid, new.volid)

    async def go_alive(self, rows: list[dict[str, Any]]) -> None:
        """Start the VM on the target, mirror its disks and move its memory."""
        state, guest = self.state, self.guest
        self.say(f"starting VM {guest.vmid} on remote node '{self.target}'")
        await self.task.sleep(2)
        if trouble := self.cannot_start():
            for line in trouble:
                self.say(f"[{self.target}] {line}")
            self.say("ERROR: online migrate failure - remote command failed with exit code 255")
            self.say("aborting phase 2 - cleanup resources")
            self.say("migrate_cancel")
            self.say(f"ERROR: migration finished with problems (duration {self.took()})")
            raise TaskError("migration problems")
        sent = []
        for row in rows:
            volume = find_volume(state, self.source, row["volid"])
            if volume is None:
                raise Aborted(f"volume '{row['volid']}' does not exist")
            sent.append((row["drivename"], volume, self.arrive(volume, self.goal_of(volume))))
            self.say(f"volume '{volume.volid}' is '{sent[-1][2].volid}' on the target")
        socket = f"/run/qemu-server/{guest.vmid}"
        self.say("start remote tunnel")
        self.say("ssh tunnel ver 1")
        try:
            if sent:
                await self.mirror(sent, socket)
            for line in (
                f"starting online/live migration on unix:{socket}.migrate",
                "set migration capabilities",
                "migration downtime limit: 100 ms",
                f"migration cachesize: {human(max(8 * 2**20, 2 ** (guest.maxmem // 10).bit_length()))}",
                "set migration parameters",
                f"start migrate command to unix:{socket}.migrate",
            ):
                self.say(line)
            memory = guest.memory_used(state.clock.now())
            await self.task.sleep(2 + memory / 2**30)
        except BaseException:
            for _, _, new in sent:
                remove_volume(state, self.target, new.volid)
            raise
        self.say("average migration speed: 1.1 GiB/s - downtime 38 ms")
        self.say(f"migration completed, transferred {human(memory)} VM-state")
        self.say("migration status: completed")
        if sent:
            self.task.log("all 'mirror' jobs are ready")
        for key, volume, new in sent:
            self.task.log(f"drive-{key}: Completing block job...")
            self.task.log(f"drive-{key}: Completed successfully.")
            self.task.log(f"drive-{key}: mirror-job finished")
            self.settle(volume, new)
        if sent:
            self.say("stopping NBD storage migration server on target.")

    async def mirror(self, sent: list[tuple[str, VolumeState, VolumeState]], socket: str) -> None:
        """Copy the disks while the VM writes to them."""
        self.say("starting storage migration")
        for key, volume, _ in sent:
            self.say(f"{key}: start migration to nbd:unix:{socket}_nbd.migrate:exportname=drive-{key}")
            self.task.log(f"drive mirror is starting for drive-{key}")
            whole = human(volume.size)
            self.task.log(f"drive-{key}: transferred 0.0 B of {whole} (0.00%) in 0s")
            await self.task.sleep(1 + volume.size / COPY_RATE)
            self.task.log(f"drive-{key}: transferred {whole} of {whole} (100.00%) in 1s, ready")
        self.task.log("all 'mirror' jobs are ready")

    def cannot_start(self) -> list[str]:
        """What the target says when the VM cannot be started there; nothing when it can."""
        state, guest = self.state, self.guest
        known = {name for name, row in networks(state)[self.target].current.items() if "ridge" in row["type"]}
        for key, value in guest.config.items():
            bridge = parse_net(str(value)).get("bridge") if re.fullmatch(r"net\d+", key) else None
            if bridge and bridge not in known and bridge not in state.areas.get("vnets", ()):
                return [
                    f"bridge '{bridge}' does not exist",
                    f"kvm: -netdev type=tap,id={key},ifname=tap{guest.vmid}i{key[3:]},script=/usr/libexec/qemu-server/"
                    "pve-bridge,downscript=/usr/libexec/qemu-server/pve-bridgedown,vhost=on: network script "
                    "/usr/libexec/qemu-server/pve-bridge failed with status 512",
                    "start failed: QEMU exited with code 1",
                ]
        node = state.nodes[self.target]
        if guest.maxmem > node.memory or memory_used(state, node) + 0.25 * guest.maxmem > node.memory:
            return [
                "kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory",
                "start failed: QEMU exited with code 1",
            ]
        return []


def _generated(volid: str) -> bool:
    return re.search(r"vm-\d+-cloudinit", volid) is not None


_REFERRED = {"attached": " (attached)", "unused": " (unused)", "snapshot": " (referenced by snapshot(s))"}
_REFERRED["pending"] = " (pending change)"


def _found(volid: str, ref: str) -> str:
    if ref == "generated":
        return f"found generated disk '{volid}' (in current VM config)"
    return f"found local disk '{volid}'{_REFERRED[ref]}"


def referring(config: Mapping[str, Any], volid: str) -> Iterable[str]:
    """The keys of a config that name a volume."""
    return [
        key
        for key, value in config.items()
        if (DRIVE.match(key) or re.fullmatch(r"unused\d+|vmstate", key)) and str(value).partition(",")[0] == volid
    ]
