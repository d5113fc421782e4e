"""A node's operating system: services, hosts, journal, power, its subscription, and all its guests at once."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.system import TABLE
from .ha import act, managed
from .nodes import NodeState, hosts
from .nodes import this as this_node
from .qemu.guest import GuestState, power_off
from .routing import Call, PveError, param_error, split_list
from .sections import CHANGED
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

ESSENTIAL = ("pve-cluster", "pvedaemon", "pveproxy")
"""Services the API cannot do without; they can only be restarted."""
DOWN_SECONDS = 20.0
"""How long a node takes to stop its guests and itself."""
BOOT_SECONDS = 120.0
"""How long a node takes from power-on until it answers."""


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Begin with no node on its way down or up, and with /etc/hosts as the installer wrote it."""
    del section
    state.areas["power"] = {}
    state.areas["hosts"] = {}


# --- services -------------------------------------------------------------------------------------


def _service(word: str, kind: str) -> None:
    def handler(call: Call) -> str:
        node, name = this_node(call), call.params["service"]

        async def work(task: TaskContext) -> None:
            if name in ESSENTIAL and word != "restart" and word != "reload":
                raise TaskError(f"invalid service cmd '{name} {word}': ERROR")
            if name == "corosync" and word in ("start", "restart") and call.state.cluster_name is None:
                raise TaskError(f"command 'systemctl {word} corosync' failed: exit code 1")
            await task.sleep(1)
            if word == "stop" and name not in node.stopped_services:
                node.stopped_services.append(name)
            elif word in ("start", "restart") and name in node.stopped_services:
                node.stopped_services.remove(name)
            elif word == "reload" and name in node.stopped_services:
                raise TaskError(f"command 'systemctl reload {name}' failed: exit code 1")

        return call.task(kind, name, work)

    handler.__doc__ = f"The UPID of a service's {word}."
    endpoint(f"POST /nodes/{{node}}/services/{{service}}/{word}")(handler)


for _word, _kind in (("start", "srvstart"), ("stop", "srvstop"), ("restart", "srvrestart"), ("reload", "srvreload")):
    _service(_word, _kind)


# --- hosts, journal, counters ---------------------------------------------------------------------


@endpoint("POST /nodes/{node}/hosts")
def write_hosts(call: Call) -> None:
    """Nothing; /etc/hosts is written."""
    if call.params.get("digest") not in (None, hosts(call)["digest"]):
        raise PveError(500, CHANGED)
    call.state.areas.setdefault("hosts", {})[call.node] = call.params["data"]


def journal_lines(call: Call) -> list[str]:
    """What the node's services wrote: the beginning and end of each task."""
    entries: list[tuple[float, str]] = [(this_node(call).booted, f"{call.node} systemd[1]: Startup finished.")]
    for task in call.state.tasks:
        if task.node != call.node:
            continue
        head = f"{call.node} pvedaemon[{task.pid}]: <{task.user}>"
        entries.append((task.starttime, f"{head} starting task {task.upid}"))
        if task.endtime is not None:
            entries.append((task.endtime, f"{head} end task {task.upid} {task.exitstatus}"))
    return [
        f"{dt.datetime.fromtimestamp(moment, dt.UTC):%b %d %H:%M:%S} {text}"
        for moment, text in sorted(entries, key=lambda e: e[0])
    ]


@endpoint("GET /nodes/{node}/journal")
def journal(call: Call) -> list[str]:
    """The journal between two cursors: they frame the lines."""
    lines = journal_lines(call)
    if "lastentries" in call.params:
        lines = lines[-call.params["lastentries"] :] if call.params["lastentries"] else []
    boot = hashlib.md5(call.node.encode()).hexdigest()
    return [f"s={boot};i=1;b={boot}", *lines, f"s={boot};i={len(lines) + 1:x};b={boot}"]


@endpoint("GET /nodes/{node}/syslog")
def syslog(call: Call) -> list[dict[str, Any]]:
    """A page of the system log; `total` is the number of lines."""
    lines = journal_lines(call)
    if name := call.params.get("service"):
        known = "pvedaemon" if name == "pvedaemon" else name
        lines = [line for line in lines if f" {known}[" in line]
    call.extra["total"] = len(lines)
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    return [{"n": start + n, "t": line} for n, line in enumerate(lines[start : start + limit], 1)]


@endpoint("GET /nodes/{node}/netstat")
def netstat(call: Call) -> list[dict[str, Any]]:
    """What each network device of the running guests has sent and received."""
    rows, now = [], call.clock.now()
    for guest in call.state.guests.values():
        if guest.node == call.node and guest.running:
            counters = guest.counters(now)
            for key in guest.nets():
                # the tap device counts what it gives and takes, which is the guest's other way round
                rows.append({"vmid": str(guest.vmid), "dev": key, "in": counters["netout"], "out": counters["netin"]})
    return rows


# --- power ----------------------------------------------------------------------------------------


@endpoint("POST /nodes/{node}/status")
def node_command(call: Call) -> None:
    """Nothing; the node goes down, and after a reboot comes back."""
    call.state.areas["power"][call.node] = {
        "command": call.params["command"],
        "down": call.clock.elapsed() + DOWN_SECONDS,
    }


@endpoint("POST /nodes/{node}/wakeonlan")
def wake(call: Call) -> str:
    """The MAC address that was woken; a node that is down comes up."""
    if call.node not in call.state.nodes:
        raise PveError(500, f"no such cluster node '{call.node}'")
    node = this_node(call)
    options = dict(part.partition("=")[::2] for part in str(node.config.get("wakeonlan", "")).split(","))
    mac = options.get("mac") or next((key for key, value in options.items() if key and not value), None)
    if not mac:
        raise param_error({"wakeonlan": f"no wake on LAN MAC address defined for '{call.node}'"})
    if not node.online:
        power(call.state)[call.node] = {"command": "boot", "up": call.clock.elapsed() + BOOT_SECONDS}
    return mac


def power(state: PveState) -> dict[str, dict[str, Any]]:
    """The nodes on their way down or up."""
    found: dict[str, dict[str, Any]] = state.areas.setdefault("power", {})
    return found


async def live(state: PveState) -> None:
    """Let nodes go down and come up in the lab's time."""
    while True:
        for name in list(power(state)):
            step(state, state.nodes[name], power(state)[name])
        if math.isinf(state.clock.scale):
            await asyncio.sleep(0.02)
        else:
            await state.clock.sleep(max(5.0, 0.02 * state.clock.scale))


def step(state: PveState, node: NodeState, plan: dict[str, Any]) -> None:
    """Bring one node a step further: its guests stop, it goes silent, it boots."""
    now = state.clock.elapsed()
    if node.online and now >= plan.get("down", math.inf):
        go_down(state, node)
        plan.pop("down")
        if plan["command"] == "reboot":
            plan["up"] = now + BOOT_SECONDS
        else:
            del power(state)[node.name]
    elif not node.online and now >= plan.get("up", math.inf):
        come_up(state, node)


def go_down(state: PveState, node: NodeState) -> None:
    """Stop the node's guests and then the node itself."""
    for guest in state.guests.values():
        if guest.node == node.name and guest.running:
            power_off(state, guest)
    node.online, node.lost_at = False, state.clock.now()
    state.tasks.die(node.name)


def come_up(state: PveState, node: NodeState) -> None:
    """Let the node answer again: what ran on it when it was lost does not, and what starts with it is started."""
    node.online, node.booted, node.told = True, state.clock.now(), None
    state.tasks.die(node.name)  # what was begun in its name while it was away
    power(state).pop(node.name, None)
    for guest in state.guests.values():
        if guest.node == node.name and guest.running:
            power_off(state, guest)
    for guest in boot_sequence(state, node.name):
        if guest.config.get("onboot") and not guest.lock:
            act(state, guest, "status/start")


# --- all guests -----------------------------------------------------------------------------------


def boot_sequence(state: PveState, node: str) -> list[GuestState]:
    """The node's guests in the order in which they start: by `startup: order=`, then by id."""

    def rank(guest: GuestState) -> tuple[int, int]:
        for part in str(guest.config.get("startup", "")).split(","):
            key, _, value = part.partition("=")
            if key == "order" and value.isdigit():
                return int(value), guest.vmid
            if key.isdigit():
                return int(key), guest.vmid
        return 10**6, guest.vmid

    mine = [guest for guest in state.guests.values() if guest.node == node and not guest.template]
    return sorted((g for g in mine if not under_ha(state, g)), key=rank)


def under_ha(state: PveState, guest: GuestState) -> bool:
    """Whether HA starts and stops the guest."""
    return managed(state, f"{'vm' if guest.kind == 'qemu' else 'ct'}:{guest.vmid}")


def chosen(call: Call, *privs: str) -> list[GuestState]:
    """The guests a request is about, each of which the caller must be allowed to handle."""
    wanted = {int(text) for text in split_list(str(call.params.get("vms", "")))}
    if wanted:
        for vmid in sorted(wanted):
            call.check(f"/vms/{vmid}", *privs)
    elif not call.allowed("/", *privs):
        raise PveError(403, f"Permission check failed (/, {', '.join(privs)})")
    return [g for g in boot_sequence(call.state, call.node) if not wanted or g.vmid in wanted]


def each_in_turn(call: Call, kind: str, guests: list[GuestState], word: str, **params: Any) -> str:
    """The UPID of a task that does one thing to each guest, one after the other."""
    state = call.state

    async def work(task: TaskContext) -> None:
        for guest in guests:
            name = "VM" if guest.kind == "qemu" else "CT"
            task.log(f"{word.rpartition('/')[2].capitalize()} {name} {guest.vmid}")
            act(state, guest, word, **params)
            while any(each.running and each.id == str(guest.vmid) for each in state.tasks):
                await task.sleep(1)

    return call.task(kind, "", work)


@endpoint("POST /nodes/{node}/startall")
def start_all(call: Call) -> str:
    """The UPID of the start of all guests that start at boot, or of the chosen ones."""
    guests = [g for g in chosen(call, "VM.PowerMgmt") if not g.running]
    if not call.params.get("vms") and not call.params.get("force"):
        guests = [g for g in guests if g.config.get("onboot")]
    return each_in_turn(call, "startall", guests, "status/start")


@endpoint("POST /nodes/{node}/stopall")
def stop_all(call: Call) -> str:
    """The UPID of the shutdown of all guests, or of the chosen ones; whoever takes too long is stopped."""
    guests = [g for g in reversed(chosen(call, "VM.PowerMgmt")) if g.running]
    force, timeout = call.params.get("force-stop", True), call.params.get("timeout", 180)
    return each_in_turn(call, "stopall", guests, "status/shutdown", forceStop=force, timeout=timeout)


@endpoint("POST /nodes/{node}/suspendall")
def suspend_all(call: Call) -> str:
    """The UPID of the suspension of all running VMs, or of the chosen ones."""
    guests = [g for g in chosen(call, "VM.PowerMgmt") if g.running and g.kind == "qemu"]
    return each_in_turn(call, "suspendall", guests, "status/suspend")


@endpoint("POST /nodes/{node}/migrateall")
def migrate_all(call: Call) -> str:
    """The UPID of the migration of all guests, or of the chosen ones, to another node."""
    target = call.params["target"]
    if target not in call.state.nodes:
        raise PveError(500, f"no such cluster node '{target}'")
    if target == call.node:
        raise param_error({"target": "target is local node."})
    guests = chosen(call, "VM.Migrate")
    local = bool(call.params.get("with-local-disks"))
    state = call.state

    async def work(task: TaskContext) -> None:
        for guest in guests:
            task.log(f"Migrating {'VM' if guest.kind == 'qemu' else 'CT'} {guest.vmid}")
            params = {"online": True} if guest.running else {}
            act(state, guest, "migrate", target=target, **params, **({"with-local-disks": True} if local else {}))
            while any(each.running and each.id == str(guest.vmid) for each in state.tasks):
                await task.sleep(1)

    return call.task("migrateall", "", work)


# --- subscription ---------------------------------------------------------------------------------


@endpoint("PUT /nodes/{node}/subscription")
def set_subscription(call: Call) -> None:
    """Nothing; the key is stored, and its level shows."""
    node, key = this_node(call), call.params["key"].strip()
    levels = {"c": "c", "b": "b", "s": "s", "p": "p"}
    level = levels[key.split("-")[0][-1]]
    names = {"c": "Community", "b": "Basic", "s": "Standard", "p": "Premium"}
    if int(key.split("-")[0][3]) < node.sockets:
        raise PveError(500, "wrong number of sockets")
    now = int(call.clock.now())
    node.subscription = {
        "status": "active",
        "key": key,
        "level": level,
        "productname": f"Proxmox VE {names[level]} Subscription {key[3]} CPU/year",
        "checktime": now,
        "sockets": node.sockets,
        "regdate": f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y-%m-%d %H:%M:%S}",
        "nextduedate": f"{dt.datetime.fromtimestamp(now + 86400 * 365, dt.UTC):%Y-%m-%d}",
    }


@endpoint("POST /nodes/{node}/subscription")
def refresh_subscription(call: Call) -> None:
    """Nothing; the subscription was checked just now."""
    node = this_node(call)
    if node.subscription:
        node.subscription["checktime"] = int(call.clock.now())


@endpoint("DELETE /nodes/{node}/subscription")
def delete_subscription(call: Call) -> None:
    """Nothing; there is no subscription any more."""
    this_node(call).subscription = {}
