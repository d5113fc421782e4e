"""VMs of a node: the list, creation, configuration, removal."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..network import bridge_path
from ..nodes import HISTORY, TIMEFRAME, moments
from ..quorum import quorate
from ..routing import Boolean, Call, Integer, PveError, Rule, String, only_9, param_error, perm, route, split_list
from ..storage import find_volume, remove_volume, volumes_on
from ..tasks import finished_within
from ..worker import TaskContext, TaskError
from .drives import (
    DRIVE,
    add_unused,
    base_in_use,
    check_drive,
    create_drive,
    default_boot,
    detach,
    drives,
    free_volumes,
    is_cdrom,
    is_owner,
    parse_options,
    volumes_of,
)
from .guest import (
    QEMU,
    GuestState,
    boot_order,
    check_lock,
    check_skiplock,
    digest,
    identity,
    merged,
    new_mac,
    newborn,
    parse_net,
    print_net,
    shown,
    this,
)
from .options import OPTIONS

if TYPE_CHECKING:
    from ..state import PveState

# --- the options ----------------------------------------------------------------------------------

NUMBERED = {name.removesuffix("[n]") for name in OPTIONS if name.endswith("[n]")}
FAST = {
    "autostart", "cicustom", "cipassword", "citype", "ciupgrade", "ciuser", "description", "hookscript", "lock",
    "name", "nameserver", "onboot", "protection", "searchdomain", "shares", "sshkeys", "startup", "tags",
    "vmstatestorage",
}  # fmt: skip
"""What takes effect in a running VM at once; drives and network devices are hot-plugged besides."""

NEEDS = {
    "VM.Config.CPU": ["affinity", "cores", "cpu", "cpulimit", "cpuunits", "numa", "smp", "sockets", "vcpus"],
    "VM.Config.Memory": ["allow-ksm", "balloon", "hugepages", "keephugepages", "memory", "shares"],
    "VM.Config.Network": [],
    "VM.Config.Cloudinit": [
        "cicustom",
        "cipassword",
        "citype",
        "ciupgrade",
        "ciuser",
        "nameserver",
        "searchdomain",
        "sshkeys",
    ],
    "VM.Config.HWType": [
        "acpi",
        "arch",
        "audio0",
        "bios",
        "ivshmem",
        "kvm",
        "machine",
        "rng0",
        "scsihw",
        "smbios1",
        "spice_enhancements",
        "tablet",
        "vga",
        "vmgenid",
        "watchdog",
    ],
}
PRIVILEGE = {option: privilege for privilege, options in NEEDS.items() for option in options}


def privilege(option: str, value: str = "") -> str:
    """The privilege that changing the option takes."""
    base = re.sub(r"\d+$", "", option)
    if base == "net":
        return "VM.Config.Network"
    if base == "ipconfig":
        return "VM.Config.Network"
    if base in ("unused", "efidisk", "tpmstate", "vmstate"):
        return "VM.Config.Disk"
    if DRIVE.match(option):
        cdrom = "media=cdrom" in value and "cloudinit" not in value
        return "VM.Config.CDROM" if cdrom else "VM.Config.Disk"
    if base in ("usb", "hostpci", "serial", "parallel", "virtiofs"):
        return "VM.Config.HWType"
    if option == "cdrom":
        return "VM.Config.CDROM"
    return PRIVILEGE.get(option, PRIVILEGE.get(base, "VM.Config.Options"))


def known_option(name: str) -> bool:
    """Whether a VM config may hold the key."""
    base = re.sub(r"\d+$", "", name)
    return name in OPTIONS or (base in NUMBERED and base != name) or name in ("parent", "meta")


def stored(option: str, value: Any) -> Any:
    """A verified value as configs hold it: 0/1 for truth values, ordered tags, everything else as given."""
    if isinstance(value, bool):
        return int(value)
    if option == "tags":
        return ";".join(sorted({tag.lower() for tag in split_list(value)}))
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if option == "cipassword" and not str(value).startswith("$5$"):
        from .agent import crypt  # agent.py needs this module

        return crypt(value)
    return value


def check_options(call: Call, vmid: int, options: Mapping[str, Any], pool: str | None = None) -> None:
    """Nothing, or the refusal of an option the caller may not set, or that names what is not there."""
    for option, value in options.items():
        if option in ("args", "lock") or (option.startswith("hostpci") and "mapping=" not in str(value)):
            root = call.auth is not None and call.auth.is_root
            if not root:
                kind = " for non-mapped devices" if option.startswith("hostpci") else ""
                raise PveError(500, f"only root can set '{option}' config{kind}")
            continue
        needed = privilege(option, str(value))
        if not (pool and call.allowed(f"/pool/{pool}", needed)):
            call.check(f"/vms/{vmid}", needed)
        if re.fullmatch(r"net\d+", option):
            net = parse_net(str(value))
            if "model" not in net:
                raise param_error(
                    {option: "invalid format - format error\nmodel: property is missing and it is not optional\n"}
                )
            if bridge := net.get("bridge"):
                path = bridge_path(call.state, bridge) + (f"/{net['tag']}" if "tag" in net else "")
                call.check(path, "SDN.Use")
        elif DRIVE.match(option):
            check_drive(call, vmid, option, str(value))


def check_boot(config: Mapping[str, Any], boot: str) -> None:
    """Nothing, or the 400 of a boot order that names a device the VM has not."""
    for device in boot_order({"boot": boot}):
        if device not in config:
            raise param_error({"boot": f"invalid bootorder: device '{device}' does not exist'"})


# --- lists ----------------------------------------------------------------------------------------


def status_row(state: PveState, guest: GuestState) -> dict[str, Any]:
    """A VM's state and figures, as the list of a node shows them."""
    moment = state.clock.now()
    counters = guest.counters(moment)
    row: dict[str, Any] = {
        "vmid": guest.vmid,
        "name": guest.name,
        "status": "running" if guest.running else "stopped",
        "cpus": guest.cpus,
        "cpu": guest.cpu_fraction(moment),
        "mem": guest.memory_used(moment),
        "maxmem": guest.maxmem,
        "disk": 0,
        "maxdisk": guest.maxdisk,
        "netin": counters["netin"],
        "netout": counters["netout"],
        "uptime": guest.uptime(moment),
    }
    if guest.running:
        row["pid"] = guest.pid
    if guest.template:
        row["template"] = 1
    if guest.tags:
        row["tags"] = guest.tags
    if guest.lock:
        row["lock"] = guest.lock
    if any(key.startswith("serial") for key in guest.config):
        row["serial"] = 1
    if state.flavour != "8.4" and guest.running:
        row["memhost"] = int(row["mem"] * 1.08)
    return row


@route("GET", "/nodes/{node}/qemu", params={"full": Boolean(optional=True)}, permission="any")
def list_vms(call: Call) -> list[dict[str, Any]]:
    """The VMs of a node that the caller may audit."""
    rows = []
    for guest in call.state.guests.values():
        if guest.node != call.node or guest.kind != "qemu" or not call.allowed(f"/vms/{guest.vmid}", "VM.Audit"):
            continue
        row = status_row(call.state, guest)
        if call.params.get("full") and guest.running:
            row["qmpstatus"] = "paused" if guest.paused else "running"
        rows.append(row)
    return rows


INDEX = [
    "config",
    "cloudinit",
    "pending",
    "status",
    "unlink",
    "vncproxy",
    "termproxy",
    "migrate",
    "resize",
    "move",
    "rrd",
    "rrddata",
    "monitor",
    "agent",
    "snapshot",
    "spiceproxy",
    "sendkey",
    "firewall",
    "mtunnel",
    "remote_migrate",
]


@route("GET", "/nodes/{node}/qemu/{vmid}", permission="any")
def vm_index(call: Call) -> list[dict[str, str]]:
    """The names below one VM."""
    return [{"subdir": name} for name in INDEX]


AUDIT = perm("/vms/{vmid}", "VM.Audit")


@route("GET", "/nodes/{node}/qemu/{vmid}/status", permission="any")
def status_index(call: Call) -> list[dict[str, str]]:
    """The names below status."""
    this(call)
    return [{"subdir": n} for n in ["current", "start", "stop", "reset", "shutdown", "suspend", "reboot"]]


@route("GET", "/nodes/{node}/qemu/{vmid}/status/current", permission=AUDIT)
def current_status(call: Call) -> dict[str, Any]:
    """One VM's state and figures."""
    guest = this(call)
    row = status_row(call.state, guest)
    ha = call.state.areas.get("ha", {}).get("resources", {}).get(f"vm:{guest.vmid}")
    row["ha"] = {"managed": 1, **ha} if ha else {"managed": 0}
    row["qmpstatus"] = ("paused" if guest.paused else "running") if guest.running else "stopped"
    if guest.agent_enabled():
        row["agent"] = 1
    if guest.running:
        row["nics"] = {
            f"tap{guest.vmid}i{key[3:]}": {"netin": row["netin"], "netout": row["netout"]} for key in guest.nets()
        }
    return row


@route("GET", "/nodes/{node}/qemu/{vmid}/rrddata", params=TIMEFRAME, permission=AUDIT)
def vm_history(call: Call) -> list[dict[str, Any]]:
    """A VM's figures over time; rows from before it started have their time alone."""
    guest = call.state.guests.get(call.params["vmid"])
    rows: list[dict[str, Any]] = []
    for moment in moments(call)[-HISTORY:]:
        if guest is None or not guest.running or moment < guest.started:
            rows.append({"time": moment})
            continue
        rows.append(
            {
                "time": moment,
                "cpu": guest.cpu_fraction(moment),
                "maxcpu": guest.cpus,
                "mem": guest.memory_used(moment),
                "maxmem": guest.maxmem,
                "disk": 0,
                "maxdisk": guest.maxdisk,
                "netin": 24_000 * (1 + guest.vmid % 5),
                "netout": 16_000 * (1 + guest.vmid % 5),
                "diskread": 40_000,
                "diskwrite": 90_000,
            }
        )
    return rows


# --- creation -------------------------------------------------------------------------------------


def may_create(call: Call) -> None:
    """Nothing, or the 403 of a caller who may not make this VM."""
    if call.allowed(f"/vms/{call.params['vmid']}", "VM.Allocate"):
        return
    pool = call.params.get("pool")
    if pool and call.allowed(f"/pool/{pool}", "VM.Allocate"):
        return
    raise PveError(403, "Permission check failed")


def check_pool(call: Call) -> None:
    """Nothing, or the 403 of a pool that is not there."""
    pool = call.params.get("pool")
    if pool and pool not in call.state.pools:
        raise PveError(403, f"Permission check failed (pool '{pool}' does not exist)")


def join_pool(state: PveState, vmid: int, pool: str | None) -> None:
    """Make the guest a member of the pool."""
    if pool and pool in state.pools and vmid not in state.pools[pool].vms:
        state.pools[pool].vms.append(vmid)


@route(
    "POST",
    "/nodes/{node}/qemu",
    params={
        **OPTIONS,
        "vmid": Integer(format="pve-vmid", minimum=100, maximum=999999999),
        "archive": String(optional=True, max_length=255),
        "bwlimit": Integer(optional=True, minimum=0),
        "force": Boolean(optional=True, requires="archive"),
        "ha-managed": only_9(Boolean(optional=True)),
        "import-working-storage": String(optional=True, format="pve-storage-id"),
        "live-restore": Boolean(optional=True),
        "pool": String(optional=True, format="pve-poolid"),
        "start": Boolean(optional=True),
        "storage": String(optional=True, format="pve-storage-id"),
        "unique": Boolean(optional=True, requires="archive"),
    },
    permission="any",
)
def create_vm(call: Call) -> str:
    """The UPID of a VM's creation."""
    state, node, vmid = call.state, call.node, call.params["vmid"]
    if not quorate(state):
        raise PveError(500, "cluster not ready - no quorum?")
    check_pool(call)
    may_create(call)
    options = {key: value for key, value in call.params.items() if known_option(key)}
    check_options(call, vmid, options, call.params.get("pool"))
    if "archive" in call.params:
        from ..backup import restore_vm  # backups need this module

        return restore_vm(call, options)
    if vmid in state.guests:
        raise PveError(
            500, f"unable to create VM {vmid} - VM {vmid} already exists on node '{state.guests[vmid].node}'"
        )
    guest = newborn(state, vmid, node, lock="create")
    state.guests[vmid] = guest
    pool, start = call.params.get("pool"), call.params.get("start")

    async def work(task: TaskContext) -> None:
        made: list[str] = []
        try:
            config = {key: stored(key, value) for key, value in options.items()}
            for key, drive in [(key, str(config[key])) for key, _ in drives(config)]:
                config[key] = await create_drive(state, guest, key, drive, task, made)
            for key in [key for key in config if re.fullmatch(r"net\d+", key)]:
                config[key] = with_mac(state, guest, key, str(config[key]))
            if "boot" in config:
                check_boot(config, str(config["boot"]))
            elif boot := default_boot(config):
                config["boot"] = boot
            config |= {"meta": f"creation-qemu={QEMU[state.flavour]},ctime={int(state.clock.now())}"}
            config = identity(state, vmid) | config
            await task.sleep(1)
        except (PveError, TaskError) as error:
            free_volumes(state, node, made)
            del state.guests[vmid]
            raise TaskError(f"unable to create VM {vmid} - {error}") from error
        guest.config = config
        join_pool(state, vmid, pool)
        if start:
            from .power import boot as power_up  # power.py needs this module

            await power_up(state, guest, task)

    return call.task("qmcreate", vmid, work)


def with_mac(state: PveState, guest: GuestState, key: str, text: str) -> str:
    """The network device with a MAC address, its own or a fresh one."""
    net = parse_net(text)
    net.setdefault("macaddr", new_mac(state, f"{guest.vmid}/{key}"))
    net["macaddr"] = net["macaddr"].upper()
    return print_net(net)


# --- configuration --------------------------------------------------------------------------------


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/config",
    params={
        "current": Boolean(optional=True),
        "snapshot": String(optional=True, format="pve-configid", max_length=40),
    },
    permission=AUDIT,
)
def get_config(call: Call) -> dict[str, Any]:
    """The VM's config with what is pending in it; `current` leaves that out, `snapshot` asks for an older one."""
    guest = this(call)
    if name := call.params.get("snapshot"):
        if call.params.get("current"):
            raise param_error({"snapshot": "cannot use 'snapshot' parameter with 'current'"})
        if name not in guest.snapshots:
            raise PveError(500, f"snapshot '{name}' does not exist")
        return shown(snapshot_config(guest, name)) | {"digest": digest(guest)}
    config = guest.config if call.params.get("current") else merged(guest)
    return shown(config) | ({"parent": guest.parent} if guest.parent else {}) | {"digest": digest(guest)}


def snapshot_config(guest: GuestState, name: str) -> dict[str, Any]:
    """The config a snapshot holds, with what describes the snapshot."""
    snapshot = guest.snapshots[name]
    config = dict(snapshot.config) | {"snaptime": snapshot.snaptime}
    if snapshot.description:
        config["description"] = snapshot.description
    if snapshot.parent:
        config["parent"] = snapshot.parent
    return config


@route("GET", "/nodes/{node}/qemu/{vmid}/pending", permission=AUDIT)
def get_pending(call: Call) -> list[dict[str, Any]]:
    """Each key with its value in force and the one that waits for the next start."""
    guest = this(call)
    rows: list[dict[str, Any]] = []
    for key, value in shown(guest.config).items():
        row = {"key": key, "value": value}
        if key in guest.pending:
            row["pending"] = guest.pending[key]
        if key in guest.pending_delete:
            row["delete"] = 1
        rows.append(row)
    rows += [{"key": key, "pending": value} for key, value in guest.pending.items() if key not in guest.config]
    if guest.parent:
        rows.append({"key": "parent", "value": guest.parent})
    rows.append({"key": "digest", "value": digest(guest)})
    return rows


UPDATE: dict[str, Any] = {
    **OPTIONS,
    "delete": String(optional=True, format="pve-configid-list"),
    "revert": String(optional=True, format="pve-configid-list"),
    "digest": String(optional=True, max_length=40),
    "force": Boolean(optional=True, requires="delete"),
    "skiplock": Boolean(optional=True),
}
CHANGE = perm(
    "/vms/{vmid}",
    "VM.Config.Disk",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.HWType",
    "VM.Config.Options",
    "VM.Config.Cloudinit",
    any_of=True,
)


class Edit:
    """A verified edit of a config, ready to be carried out."""

    def __init__(self, call: Call) -> None:
        params = call.params
        self.state, self.guest = call.state, this(call)
        self.values = {key: value for key, value in params.items() if known_option(key)}
        self.deleted = split_list(params.get("delete", ""))
        self.reverted = split_list(params.get("revert", ""))
        self.force = bool(params.get("force"))
        if "cdrom" in self.values:
            self.values["ide2"] = f"{self.values.pop('cdrom')},media=cdrom"
        if not self.values and not self.deleted and not self.reverted:
            raise PveError(500, "no options specified")
        for key in self.deleted:
            if key in self.values:
                raise param_error({"delete": f"you can't use '-{key}' and -delete {key}' at the same time"})
            if not known_option(key):
                raise param_error({"delete": f"unknown option '{key}'"})
        for key in self.reverted:
            if not known_option(key):
                raise param_error({"revert": f"unknown option '{key}'"})
        check_options(call, self.guest.vmid, self.values)
        for key in self.deleted:
            call.check(f"/vms/{self.guest.vmid}", privilege(key, str(self.guest.config.get(key, ""))))
        if "tags" in self.values:
            self.values["tags"] = stored("tags", self.values["tags"])
        given = params.get("digest")
        if given and given != digest(self.guest):
            raise PveError(500, "detected modified configuration - file changed by other user? Try again.")
        self.skiplock = check_skiplock(call)
        if "boot" in self.values:
            check_boot(merged(self.guest) | self.values, str(self.values["boot"]))

    def check(self) -> None:
        """Nothing, or the refusal of a locked or protected VM."""
        if not self.skiplock:
            check_lock(self.guest)
        if self.guest.config.get("protection") and any(DRIVE.match(k) or k.startswith("unused") for k in self.deleted):
            raise PveError(500, f"can't remove drive - protection mode enabled for VM {self.guest.vmid}")

    async def apply(self, task: TaskContext | None) -> None:
        """Carry it out; in a running VM what cannot be changed under way waits for the next start."""
        guest = self.guest
        made: list[str] = []
        for key in self.reverted:
            guest.pending.pop(key, None)
            guest.pending_delete = [name for name in guest.pending_delete if name != key]
        for key in self.deleted:
            self._delete(key)
        try:
            for key, value in self.values.items():
                await self._set(key, value, task, made)
        except (PveError, TaskError):
            free_volumes(self.state, guest.node, made)
            raise

    def _delete(self, key: str) -> None:
        guest = self.guest
        guest.pending.pop(key, None)
        if key not in guest.config:
            return
        if DRIVE.match(key):
            volid = parse_options(str(guest.config[key])).get("file", "")
            detach(self.state, guest, guest.config, key)
            if self.force and ":" in volid:
                remove_volume(self.state, guest.node, volid)
                for unused in [k for k, v in guest.config.items() if k.startswith("unused") and v == volid]:
                    del guest.config[unused]
        elif key.startswith("unused"):
            remove_volume(self.state, guest.node, str(guest.config.pop(key)))
        elif guest.running and key not in FAST and not key.startswith(("net", "usb", "ipconfig")):
            guest.pending_delete.append(key)
        else:
            del guest.config[key]

    async def _set(self, key: str, value: Any, task: TaskContext | None, made: list[str]) -> None:
        guest = self.guest
        if DRIVE.match(key):
            old = str(guest.config.get(key, ""))
            text = await create_drive(self.state, guest, key, str(value), task, made)
            if old and parse_options(old).get("file") != parse_options(text).get("file"):
                options = parse_options(old)
                volid = options.get("file", "")
                if not is_cdrom(options) and ":" in volid and is_owner(self.state, guest, volid):
                    add_unused(guest.config, options["file"])
            volid = parse_options(text)["file"]
            for unused in [k for k, v in guest.config.items() if k.startswith("unused") and v == volid]:
                del guest.config[unused]
            guest.config[key] = text
            if task is not None and str(value).partition(",")[0].endswith(":cloudinit"):
                task.log("generating cloud-init ISO")
            return
        if re.fullmatch(r"net\d+", key):
            net = parse_net(str(value))
            guest.config[key] = with_mac(self.state, guest, key, print_net(net))
            return
        value = stored(key, value)
        if guest.running and key not in FAST and not key.startswith(("usb", "ipconfig")):
            if guest.config.get(key) == value:
                guest.pending.pop(key, None)
            else:
                guest.pending[key] = value
            return
        guest.config[key] = value


@route("PUT", "/nodes/{node}/qemu/{vmid}/config", params=UPDATE, permission=CHANGE)
async def set_config(call: Call) -> None:
    """Nothing; the config is changed when the answer comes."""
    edit = Edit(call)
    edit.check()
    try:
        await edit.apply(None)
    except TaskError as error:
        raise PveError(500, str(error)) from error


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/config",
    params={
        **UPDATE,
        "background_delay": Integer(optional=True, minimum=1, maximum=30),
        "import-working-storage": String(optional=True, format="pve-storage-id"),
    },
    permission=CHANGE,
)
async def set_config_in_background(call: Call) -> str | None:
    """The UPID of the change, or None when it was over within `background_delay` seconds."""
    edit = Edit(call)
    skipped = ("node", "vmid", "background_delay")
    words = [
        f"-{key} {'<hidden>' if key == 'cipassword' else int(value) if isinstance(value, bool) else value}"
        for key, value in sorted(call.params.items())
        if key not in skipped
    ]

    async def work(task: TaskContext) -> None:
        task.log(f"update VM {edit.guest.vmid}: {' '.join(words)}")
        edit.check()
        await edit.apply(task)

    upid = call.task("qmconfig", edit.guest.vmid, work)
    if delay := call.params.get("background_delay"):
        outcome = await finished_within(call.state, upid, delay)
        if outcome == "OK":
            return None
        if outcome is not None:
            raise PveError(500, outcome)
    return upid


# --- removal --------------------------------------------------------------------------------------


def forget(state: PveState, guest: GuestState) -> None:
    """Take the guest out of everything that names it: pools, ACL, HA."""
    for pool in state.pools.values():
        if guest.vmid in pool.vms:
            pool.vms.remove(guest.vmid)
    state.access.acl.pop(f"/vms/{guest.vmid}", None)
    state.guests.pop(guest.vmid, None)


@route(
    "DELETE",
    "/nodes/{node}/qemu/{vmid}",
    params={
        "purge": Boolean(optional=True),
        "destroy-unreferenced-disks": Boolean(optional=True),
        "skiplock": Boolean(optional=True),
    },
    permission=perm("/vms/{vmid}", "VM.Allocate"),
)
def destroy_vm(call: Call) -> str:
    """The UPID of a VM's removal with its disks."""
    state, guest = call.state, this(call)
    skiplock = check_skiplock(call)
    if guest.config.get("protection"):
        raise PveError(500, f"can't remove VM {guest.vmid} - protection mode enabled")
    resources = state.areas.get("ha", {}).get("resources", {})
    if f"vm:{guest.vmid}" in resources and not call.params.get("purge"):
        raise PveError(500, f"unable to remove VM {guest.vmid} - used in HA resources and purge parameter not set.")
    if guest.running:
        raise PveError(500, f"VM {guest.vmid} is running - destroy failed")
    purge, unreferenced = call.params.get("purge"), call.params.get("destroy-unreferenced-disks")

    async def work(task: TaskContext) -> None:
        if guest.running:
            raise TaskError(f"VM {guest.vmid} is running - destroy failed")
        if not skiplock:
            check_lock(guest)
        owned = set(volumes_of(guest.config))
        for snapshot in guest.snapshots.values():
            owned |= set(volumes_of(snapshot.config))
        # a disk of another owner, such as one that a CSI driver attached, outlives the VM
        there = {volid: find_volume(state, guest.node, volid) for volid in owned}
        owned = {volid for volid, volume in there.items() if volume is None or volume.vmid in {None, guest.vmid}}
        if unreferenced:
            for storage in state.storages.values():
                if storage.active(guest.node):
                    owned |= {v.volid for v in volumes_on(state, storage, guest.node) if v.vmid == guest.vmid}
        if base := base_in_use(state, owned):
            raise TaskError(f"base volume '{base}' is still in use by linked cloned")
        await task.sleep(1 + 0.2 * len(owned))
        free_volumes(state, guest.node, owned)
        forget(state, guest)
        if purge:
            task.log(f"purging VM {guest.vmid} from related configurations..")
            resources.pop(f"vm:{guest.vmid}", None)

    return call.task("qmdestroy", guest.vmid, work)


# --- features -------------------------------------------------------------------------------------


def has_feature(state: PveState, guest: GuestState, feature: str) -> bool:
    """Whether every disk of the VM can do it: snapshots need qcow2, thin or distributed storage."""
    for _, options in drives(guest.config):
        volid = options.get("file", "")
        if is_cdrom(options) or ":" not in volid:
            continue
        storage = state.storages.get(volid.partition(":")[0])
        if storage is None:
            return False
        thin = storage.type in ("lvmthin", "rbd", "zfspool", "btrfs") or volid.endswith(".qcow2")
        if feature in ("snapshot", "clone") and not thin:
            return False
    return True


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/feature",
    params={
        "feature": String(enum=("snapshot", "clone", "copy")),
        "snapname": String(optional=True, format="pve-configid", max_length=40),
    },
    permission=AUDIT,
)
def feature(call: Call) -> dict[str, Any]:
    """Whether the VM can be snapshotted, cloned or copied, and on which nodes."""
    vmid, state = call.params["vmid"], call.state
    guest = state.guests.get(vmid)
    if guest is None or guest.node != call.node:
        raise PveError(500, f"unable to find configuration file for VM {vmid} on node '{call.node}'")
    nodes = list(state.nodes) if all_shared(state, guest.config) else [guest.node]
    return {"hasFeature": int(has_feature(state, guest, call.params["feature"])), "nodes": nodes}


def all_shared(state: PveState, config: Mapping[str, Any]) -> bool:
    """Whether no drive of the config lies on one node's own storage."""
    for _, options in drives(config):
        volid = options.get("file", "")
        if ":" in volid:
            storage = state.storages.get(volid.partition(":")[0])
            if storage is None or not storage.shared:
                return False
    return True


def agent_rule(*privileges: str) -> Rule:
    """The rule of an agent endpoint: VM.Monitor on 8, one of the given privileges or Unrestricted on 9."""

    def rule(call: Call) -> None:
        path = f"/vms/{call.raw.get('vmid', '')}"
        if call.flavour == "8.4":
            call.check(path, "VM.Monitor")
        else:
            call.check(path, *privileges, "VM.GuestAgent.Unrestricted", any_of=True)

    return rule


def unquote(text: str) -> str:
    """SSH keys as they were before they were URL-encoded."""
    return urllib.parse.unquote(text)
