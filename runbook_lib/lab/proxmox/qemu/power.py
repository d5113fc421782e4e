"""Starting, stopping and pausing VMs."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..network import networks
from ..nodes import memory_used
from ..routing import Boolean, Call, Integer, PveError, String, only_9, perm, route
from ..storage import find_volume
from ..worker import TaskContext, TaskError
from .drives import drives, is_cloud_init
from .guest import (
    GuestState,
    agent_answers,
    check_lock,
    check_skiplock,
    find_guest,
    merged,
    parse_net,
    power_off,
    power_on,
)
from .options import MACHINE

if TYPE_CHECKING:
    from ..state import PveState

POWER = perm("/vms/{vmid}", "VM.PowerMgmt")
START_SECONDS = 2.0
SHUTDOWN_SECONDS = 8.0
"""Lab seconds a guest's operating system takes to shut down."""


async def boot(state: PveState, guest: GuestState, task: TaskContext) -> None:
    """Start the VM, or raise what QEMU would die of."""
    config = merged(guest)
    bridges = {
        iface for iface, row in networks(state)[guest.node].current.items() if row["type"] in ("bridge", "OVSBridge")
    }
    missing = []
    for key, options in drives(config):
        volid = options.get("file", "")
        if ":" in volid and find_volume(state, guest.node, volid) is None:
            missing.append((key, volid))
    if any(is_cloud_init(options) for _, options in drives(config)):
        task.log("generating cloud-init ISO")
    if missing:
        storage, _, name = missing[0][1].partition(":")
        if storage not in state.storages:
            raise TaskError(f"storage '{storage}' does not exist")
        raise TaskError(f"volume '{storage}:{name}' does not exist")
    await task.sleep(START_SECONDS)
    for key, value in config.items():
        bridge = parse_net(str(value)).get("bridge") if key.startswith("net") else None
        if bridge and bridge not in bridges and bridge not in state.areas.get("vnets", ()):
            task.log(f"bridge '{bridge}' does not exist")
            number = key.removeprefix("net")
            task.log(
                f"kvm: -netdev type=tap,id={key},ifname=tap{guest.vmid}i{number},script=/usr/libexec/qemu-server/"
                "pve-bridge,downscript=/usr/libexec/qemu-server/pve-bridgedown,vhost=on: network script "
                "/usr/libexec/qemu-server/pve-bridge failed with status 512"
            )
            raise TaskError("start failed: QEMU exited with code 1")
    node = state.nodes[guest.node]
    if memory_used(state, node) + 0.25 * guest.maxmem > node.memory or guest.maxmem > node.memory:
        task.log("kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory")
        raise TaskError("start failed: QEMU exited with code 1")
    if guest.cpus > node.cpus:
        raise TaskError(f"MAX {node.cpus} vcpus allowed per VM on this node")
    power_on(state, guest)


def found(call: Call) -> Callable[[], GuestState]:
    """A function that gives the guest when the task runs: a missing one is the task's error, not the request's."""
    state, node, vmid = call.state, call.node, call.params["vmid"]
    return lambda: find_guest(state, node, vmid)


def ha_request(call: Call, wanted: str) -> str | None:
    """The UPID of what HA is asked instead, when it looks after the guest."""
    from ..ha import request  # HA needs the guests

    return request(call, wanted)


SKIPLOCK = {"skiplock": Boolean(optional=True)}


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/start",
    params={
        **SKIPLOCK,
        "timeout": Integer(optional=True, minimum=0),
        "force-cpu": String(optional=True),
        "machine": MACHINE,
        "migratedfrom": String(optional=True, format="pve-node"),
        "migration_network": String(optional=True, format="CIDR"),
        "migration_type": String(optional=True, enum=("secure", "insecure")),
        "stateuri": String(optional=True, max_length=128),
        "targetstorage": String(optional=True, format="storage-pair-list"),
        "nets-host-mtu": String(optional=True, pattern=r"^net\d+=\d+(,net\d+=\d+)*$"),
        "with-conntrack-state": only_9(Boolean(optional=True)),
    },
    permission=POWER,
)
def start(call: Call) -> str:
    """The UPID of a start."""
    if upid := ha_request(call, "started"):
        return upid
    skiplock, guest_of, state = check_skiplock(call), found(call), call.state

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        if guest.template:
            raise TaskError("you can't start a vm if it's a template")
        if not skiplock:
            check_lock(guest)
        if guest.running:
            raise TaskError(f"VM {guest.vmid} already running")
        await boot(state, guest, task)

    return call.task("qmstart", call.params["vmid"], work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/stop",
    params={
        **SKIPLOCK,
        "timeout": Integer(optional=True, minimum=0),
        "keepActive": Boolean(optional=True),
        "migratedfrom": String(optional=True, format="pve-node"),
        "overrule-shutdown": Boolean(optional=True),
    },
    permission=POWER,
)
def stop(call: Call) -> str:
    """The UPID of a hard stop; a stopped VM stays stopped, which is no error."""
    if upid := ha_request(call, "stopped"):
        return upid
    skiplock, guest_of, state = check_skiplock(call), found(call), call.state

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        if not guest.running:
            return
        if not skiplock:
            check_lock(guest)
        await task.sleep(1)
        power_off(state, guest)

    return call.task("qmstop", call.params["vmid"], work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/shutdown",
    params={
        **SKIPLOCK,
        "timeout": Integer(optional=True, minimum=0),
        "forceStop": Boolean(optional=True),
        "keepActive": Boolean(optional=True),
    },
    permission=POWER,
)
def shutdown(call: Call) -> str:
    """The UPID of an orderly shutdown; a guest without an operating system never reacts to one."""
    if upid := ha_request(call, "stopped"):
        return upid
    skiplock, guest_of, state = check_skiplock(call), found(call), call.state
    timeout, force = call.params.get("timeout", 180), call.params.get("forceStop")

    async def work(task: TaskContext) -> None:
        guest = guest_of()
        if not guest.running:
            return
        if not skiplock:
            check_lock(guest)
        if guest.agent_enabled() and not agent_answers(state, guest):
            task.log(f"QEMU Guest Agent is not running - VM {guest.vmid} qmp command 'guest-ping' failed - got timeout")
        if guest.bootable and not guest.paused and timeout >= SHUTDOWN_SECONDS:
            await task.sleep(SHUTDOWN_SECONDS)
        else:
            await task.sleep(timeout)
            if not force:
                raise TaskError("VM quit/powerdown failed - got timeout")
            task.log("VM still running - terminating now with SIGTERM")
        power_off(state, guest)

    return call.task("qmshutdown", call.params["vmid"], work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/reboot",
    params={"timeout": Integer(optional=True, minimum=0)},
    permission=POWER,
)
def reboot(call: Call) -> str:
    """The UPID of a reboot, which also puts pending changes in force."""
    state, guest = call.state, find_guest(call.state, call.node, call.params["vmid"])
    if not guest.running:
        raise PveError(500, f"VM {guest.vmid} not running")

    async def work(task: TaskContext) -> None:
        check_lock(guest)
        if not guest.bootable:
            await task.sleep(call.params.get("timeout", 180))
            raise TaskError("VM quit/powerdown failed - got timeout")
        task.log(f"requesting reboot of VM {guest.vmid}")
        await task.sleep(SHUTDOWN_SECONDS)
        power_off(state, guest)
        await boot(state, guest, task)

    return call.task("qmreboot", guest.vmid, work)


def running_guest(call: Call) -> GuestState:
    """The guest a path names, which must run."""
    guest = find_guest(call.state, call.node, call.params["vmid"])
    if not guest.running:
        raise PveError(500, f"VM {guest.vmid} not running")
    return guest


@route("POST", "/nodes/{node}/qemu/{vmid}/status/reset", params=SKIPLOCK, permission=POWER)
def reset(call: Call) -> str:
    """The UPID of a reset: the power button held down, without leaving QEMU."""
    skiplock, guest = check_skiplock(call), running_guest(call)

    def work(task: TaskContext) -> None:
        if not skiplock:
            check_lock(guest)
        guest.started_lab = call.clock.elapsed()

    return call.task("qmreset", guest.vmid, work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/suspend",
    params={
        **SKIPLOCK,
        "todisk": Boolean(optional=True),
        "statestorage": String(optional=True, format="pve-storage-id", requires="todisk"),
    },
    permission=POWER,
)
def suspend(call: Call) -> str:
    """The UPID of a pause, or of a suspend to disk."""
    skiplock, guest, state = check_skiplock(call), running_guest(call), call.state
    to_disk = call.params.get("todisk")

    async def work(task: TaskContext) -> None:
        if not skiplock:
            check_lock(guest)
        if not to_disk:
            guest.paused = True
            return
        await task.sleep(2 + guest.memory_used(state.clock.now()) / (500 * 2**20))
        power_off(state, guest)
        guest.config["lock"] = "suspended"

    return call.task("qmsuspend" if to_disk else "qmpause", guest.vmid, work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/status/resume",
    params={**SKIPLOCK, "nocheck": Boolean(optional=True)},
    permission=POWER,
)
def resume(call: Call) -> str:
    """The UPID of a resume."""
    state = call.state
    guest = find_guest(state, call.node, call.params["vmid"])
    if not guest.running and guest.lock != "suspended":
        raise PveError(500, f"VM {guest.vmid} not running")

    async def work(task: TaskContext) -> None:
        if guest.lock == "suspended":
            del guest.config["lock"]
            await boot(state, guest, task)
        guest.paused = False

    return call.task("qmresume", guest.vmid, work)


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/vncproxy",
    params={"websocket": Boolean(optional=True), "generate-password": Boolean(optional=True)},
    permission=perm("/vms/{vmid}", "VM.Console"),
)
def console(call: Call) -> dict[str, Any]:
    """A port and a ticket for a console; without a websocket that comes to it, its task times out."""
    from ..consoles import opened  # consoles need the guests

    guest = find_guest(call.state, call.node, call.params["vmid"])
    row = opened(call, "vncproxy", str(guest.vmid), f"/vms/{guest.vmid}")
    password = secrets.token_urlsafe(6)
    return {
        **row,
        "port": str(row["port"]),
        "cert": call.state.certificate_pem,
        "password": password,
        "ticket": f"{password}:{row['ticket']}",
    }


def runtime(state: PveState, guest: GuestState) -> dict[str, Any]:
    """What the lab's control plane shows of a guest."""
    return {"running": guest.running, "paused": guest.paused, "agent": agent_answers(state, guest)}
