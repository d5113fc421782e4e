"""Containers of a node: enough to be counted, read, started and stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .nodes import TIMEFRAME, moments
from .qemu.guest import GuestState, check_lock, digest, find_guest, merged, power_off, this
from .routing import Boolean, Call, Integer, Param, PveError, String, perm, route
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

AUDIT = perm("/vms/{vmid}", "VM.Audit")
POWER = perm("/vms/{vmid}", "VM.PowerMgmt")


def status_row(state: PveState, guest: GuestState) -> dict[str, Any]:
    """A container's state and figures."""
    moment = state.clock.now()
    swap = int(guest.config.get("swap", 512)) * 2**20
    row: dict[str, Any] = {
        "vmid": guest.vmid,
        "name": guest.name,
        "type": "lxc",
        "status": "running" if guest.running else "stopped",
        "cpus": guest.cpus,
        "cpu": guest.cpu_fraction(moment),
        "mem": guest.memory_used(moment),
        "maxmem": guest.maxmem,
        "swap": 0,
        "maxswap": swap,
        "disk": int(guest.maxdisk * 0.2) if guest.running else 0,
        "maxdisk": guest.maxdisk,
        "uptime": guest.uptime(moment),
        **guest.counters(moment),
    }
    if guest.running:
        row["pid"] = guest.pid
    if guest.tags:
        row["tags"] = guest.tags
    if guest.lock:
        row["lock"] = guest.lock
    if guest.template:
        row["template"] = 1
    return row


@route("GET", "/nodes/{node}/lxc", permission="any")
def list_containers(call: Call) -> list[dict[str, Any]]:
    """The containers of a node that the caller may audit."""
    return [
        status_row(call.state, guest)
        for guest in call.state.guests.values()
        if guest.node == call.node and guest.kind == "lxc" and call.allowed(f"/vms/{guest.vmid}", "VM.Audit")
    ]


@route("GET", "/nodes/{node}/lxc/{vmid}", permission="any")
def container_index(call: Call) -> list[dict[str, str]]:
    """The names below one container."""
    this(call, "lxc")
    words = "config pending status vncproxy termproxy migrate clone rrd rrddata firewall snapshot resize interfaces"
    return [{"subdir": word} for word in words.split()]


@route(
    "GET",
    "/nodes/{node}/lxc/{vmid}/config",
    params={
        "current": Boolean(optional=True),
        "snapshot": String(optional=True, format="pve-configid", max_length=40),
    },
    permission=AUDIT,
)
def get_config(call: Call) -> dict[str, Any]:
    """A container's config."""
    guest = this(call, "lxc")
    if name := call.params.get("snapshot"):
        if name not in guest.snapshots:
            raise PveError(500, f"snapshot '{name}' does not exist")
        return dict(guest.snapshots[name].config) | {"digest": digest(guest)}
    config = guest.config if call.params.get("current") else merged(guest)
    return dict(config) | ({"parent": guest.parent} if guest.parent else {}) | {"digest": digest(guest)}


@route("GET", "/nodes/{node}/lxc/{vmid}/pending", permission=AUDIT)
def get_pending(call: Call) -> list[dict[str, Any]]:
    """A container's config key by key, and what waits for its restart."""
    guest = this(call, "lxc")
    rows: list[dict[str, Any]] = []
    for key in [*guest.config, *(key for key in guest.pending if key not in guest.config)]:
        row: dict[str, Any] = {"key": key}
        if key in guest.config:
            row["value"] = guest.config[key]
        if key in guest.pending:
            row["pending"] = guest.pending[key]
        if key in guest.pending_delete:
            row["delete"] = 1
        rows.append(row)
    return [*rows, {"key": "digest", "value": digest(guest)}]


@route("GET", "/nodes/{node}/lxc/{vmid}/status", permission="any")
def status_index(call: Call) -> list[dict[str, str]]:
    """The names below status."""
    this(call, "lxc")
    return [{"subdir": n} for n in ["current", "start", "stop", "shutdown", "migrate", "reboot", "suspend", "resume"]]


def ha_row(call: Call) -> dict[str, Any]:
    """Whether HA looks after the container, and how."""
    known = call.state.areas.get("ha", {}).get("resources", {}).get(f"ct:{call.params['vmid']}")
    return {"managed": 1, **known} if known else {"managed": 0}


@route("GET", "/nodes/{node}/lxc/{vmid}/status/current", permission=AUDIT)
def current_status(call: Call) -> dict[str, Any]:
    """One container's state and figures."""
    return status_row(call.state, this(call, "lxc")) | {"ha": ha_row(call)}


@route("GET", "/nodes/{node}/lxc/{vmid}/interfaces", permission=AUDIT)
def interfaces(call: Call) -> list[dict[str, Any]] | None:
    """A running container's interfaces."""
    guest = call.state.guests.get(call.params["vmid"])
    if guest is None or not guest.running:
        return None
    rows = [{"name": "lo", "hwaddr": "00:00:00:00:00:00", "inet": "127.0.0.1/8", "inet6": "::1/128"}]
    for number, (key, given) in enumerate(guest.addresses.items()):
        rows.append({"name": f"eth{number}", "hwaddr": f"bc:24:11:00:00:{int(key[3:]):02x}", "inet": given[0]})
    return list(rows)


@route("GET", "/nodes/{node}/lxc/{vmid}/snapshot", permission=AUDIT)
def list_snapshots(call: Call) -> list[dict[str, Any]]:
    """A container's snapshots, and last the present as `current`."""
    guest = this(call, "lxc")
    rows: list[dict[str, Any]] = []
    for name, found in guest.snapshots.items():
        row: dict[str, Any] = {"name": name, "snaptime": found.snaptime, "description": found.description}
        rows.append(row | ({"parent": found.parent} if found.parent else {}))
    now: dict[str, Any] = {
        "name": "current",
        "digest": digest(guest),
        "running": int(guest.running),
        "description": "You are here!",
    }
    return [*rows, now | ({"parent": guest.parent} if guest.parent else {})]


def feature_available(state: PveState, volid: str) -> bool:
    """Whether the volume's storage can take snapshots of it and stand clones on it."""
    storage = state.storages.get(volid.partition(":")[0])
    return storage is not None and storage.type in ("lvmthin", "rbd", "zfspool", "btrfs")


@route("GET", "/nodes/{node}/lxc/{vmid}/rrddata", params=TIMEFRAME, permission=AUDIT)
def history(call: Call) -> list[dict[str, Any]]:
    """A container's figures over time."""
    guest = call.state.guests.get(call.params["vmid"])
    rows: list[dict[str, Any]] = []
    for moment in moments(call):
        if guest is None or not guest.running or moment < guest.started:
            rows.append({"time": moment})
        else:
            rows.append(
                {
                    "time": moment,
                    "cpu": guest.cpu_fraction(moment),
                    "maxcpu": guest.cpus,
                    "mem": guest.memory_used(moment),
                    "maxmem": guest.maxmem,
                }
            )
    return rows


def _power(word: str, kind: str, seconds: float, params: Mapping[str, Param]) -> None:
    @route(
        "POST",
        f"/nodes/{{node}}/lxc/{{vmid}}/status/{word}",
        params=params,
        permission=POWER,
    )
    def act(call: Call) -> str:
        state, node, vmid = call.state, call.node, call.params["vmid"]
        known = find_guest(state, node, vmid, "lxc")
        if word == "start" and known.running:
            raise PveError(500, f"CT {vmid} already running")
        if word != "start" and not known.running:
            raise PveError(500, f"CT {vmid} not running")
        if word != "reboot":
            from .ha import request  # HA needs the guests

            if upid := request(call, "started" if word == "start" else "stopped"):
                return upid

        async def work(task: TaskContext) -> None:
            guest = find_guest(state, node, vmid, "lxc")
            check_lock(guest)
            if word == "start" and guest.running:
                raise TaskError(f"CT {vmid} already running")
            if word != "start" and not guest.running:
                raise TaskError(f"CT {vmid} not running")
            if word != "start":
                await task.sleep(seconds)
                power_off(state, guest)
            if word in ("start", "reboot"):
                from .containers import boot  # making containers needs this module

                await boot(state, guest, task)

        return call.task(kind, vmid, work)

    act.__name__, act.__doc__ = f"{word}_container", f"The UPID of a container's {word}."


FLAG = Boolean(optional=True)
TIMEOUT = {"timeout": Integer(optional=True, minimum=0)}

for _word, _kind, _seconds, _params in (
    ("start", "vzstart", 2.0, {"skiplock": FLAG, "debug": FLAG}),
    ("stop", "vzstop", 1.0, {"skiplock": FLAG, "overrule-shutdown": FLAG}),
    ("shutdown", "vzshutdown", 4.0, {**TIMEOUT, "forceStop": FLAG}),
    ("reboot", "vzreboot", 5.0, TIMEOUT),
):
    _power(_word, _kind, _seconds, _params)


@route("POST", "/nodes/{node}/lxc/{vmid}/status/suspend", permission=POWER)
def suspend(call: Call) -> str:
    """The UPID of a freeze, which fails: checkpoints of containers are experimental, and this host has no CRIU."""
    guest = this(call, "lxc")
    if not guest.running:
        raise PveError(500, f"CT {guest.vmid} not running")

    def work(task: TaskContext) -> None:
        task.log("lxc-checkpoint: the criu binary is not installed")
        command = f"lxc-checkpoint -n {guest.vmid} -s -D /var/lib/vz/dump"
        raise TaskError(f"command '{command}' failed: exit code 1")

    return call.task("vzsuspend", guest.vmid, work)


@route("POST", "/nodes/{node}/lxc/{vmid}/status/resume", permission=POWER)
def resume(call: Call) -> str:
    """The UPID of the return from a freeze, of which there is none."""
    guest = this(call, "lxc")
    if guest.running:
        raise PveError(500, f"CT {guest.vmid} already running")

    def work(task: TaskContext) -> None:
        raise TaskError(f"command 'lxc-checkpoint -n {guest.vmid} -r -D /var/lib/vz/dump' failed: exit code 1")

    return call.task("vzresume", guest.vmid, work)
