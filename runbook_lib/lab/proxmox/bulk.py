"""Actions on many guests at once: one task that starts, shuts down, suspends or moves each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .declared import declared
from .declared.bulk import TABLE
from .qemu.guest import GuestState, check_lock, power_off
from .qemu.power import SHUTDOWN_SECONDS
from .qemu.power import boot as boot_vm
from .routing import Call, PveError, split_list
from .worker import TaskContext, TaskError

endpoint = declared(TABLE)

Act = Callable[[GuestState, TaskContext], Awaitable[None]]


def chosen(call: Call, *privs: str) -> list[GuestState]:
    """The guests that are named, or all the caller may act on; a named one they may not is refused."""
    named = call.params.get("vms")
    if named is None:
        return [guest for guest in call.state.guests.values() if call.allowed(f"/vms/{guest.vmid}", *privs)]
    found = []
    for text in named if isinstance(named, list) else split_list(str(named)):
        vmid = int(text) if str(text).isdigit() else 0
        call.check(f"/vms/{vmid}", *privs)
        if vmid not in call.state.guests:
            raise PveError(500, f"unable to find guest with ID '{text}'")
        found.append(call.state.guests[vmid])
    return found


def each_in_turn(call: Call, word: str, guests: list[GuestState], act: Act) -> str:
    """The UPID of the task that does it to one guest after another; one that fails does not keep the rest."""

    async def work(task: TaskContext) -> None:
        failed = 0
        for guest in sorted(guests, key=lambda each: each.vmid):
            name = "VM" if guest.kind == "qemu" else "CT"
            try:
                check_lock(guest)
                await act(guest, task)
                task.log(f"{name} {guest.vmid}: {word} done")
            except (PveError, TaskError) as error:
                failed += 1
                task.log(f"{name} {guest.vmid}: {word} failed - {str(error).strip()}")
        if failed:
            raise TaskError(f"{failed} of {len(guests)} guests failed")

    return call.task(f"bulk{word}", "", work)


@endpoint("GET /cluster/bulk-action")
def index(call: Call) -> list[dict[str, str]]:
    """What there are actions on."""
    return [{"name": "guest"}]


@endpoint("GET /cluster/bulk-action/guest")
def guest_index(call: Call) -> list[dict[str, str]]:
    """The actions on guests."""
    return [{"name": name} for name in ("start", "shutdown", "migrate", "suspend")]


@endpoint("POST /cluster/bulk-action/guest/start")
def start_all(call: Call) -> str:
    """The UPID of the start of many guests; those that run stay as they are."""
    from .containers import boot as boot_container  # containers need much that comes after

    async def act(guest: GuestState, task: TaskContext) -> None:
        if guest.running:
            return
        if guest.template:
            raise TaskError("is a template")
        await (boot_vm if guest.kind == "qemu" else boot_container)(call.state, guest, task)

    return each_in_turn(call, "start", chosen(call, "VM.PowerMgmt"), act)


@endpoint("POST /cluster/bulk-action/guest/shutdown")
def shutdown_all(call: Call) -> str:
    """The UPID of the shutdown of many guests."""
    timeout, force = call.params.get("timeout", 180), call.params.get("force-stop", True)

    async def act(guest: GuestState, task: TaskContext) -> None:
        if not guest.running:
            return
        deaf = not guest.bootable or timeout < SHUTDOWN_SECONDS
        await task.sleep(min(timeout, SHUTDOWN_SECONDS) if not deaf else timeout)
        if deaf and not force:
            raise TaskError("got timeout")
        power_off(call.state, guest)

    return each_in_turn(call, "shutdown", chosen(call, "VM.PowerMgmt"), act)


@endpoint("POST /cluster/bulk-action/guest/suspend")
def suspend_all(call: Call) -> str:
    """The UPID of the suspension of many VMs; containers cannot be suspended."""
    to_disk = call.params.get("to-disk")

    async def act(guest: GuestState, task: TaskContext) -> None:
        if guest.kind != "qemu":
            raise TaskError("suspend is not supported for containers")
        if not guest.running:
            return
        await task.sleep(2)
        if to_disk:
            power_off(call.state, guest)
            guest.config["lock"] = "suspended"
        else:
            guest.paused = True

    return each_in_turn(call, "suspend", chosen(call, "VM.PowerMgmt"), act)


@endpoint("POST /cluster/bulk-action/guest/migrate")
def migrate_all(call: Call) -> str:
    """The UPID of the move of many guests to one node; those on local storage only with their disks."""
    state, target = call.state, call.params["target"]
    if target not in state.nodes:
        raise PveError(500, f"no such cluster node '{target}'")

    async def act(guest: GuestState, task: TaskContext) -> None:
        if guest.node == target:
            return
        path = f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}/migrate"
        await asked(call, "POST", path, {"target": target, **_words(call, guest)}, task)

    return each_in_turn(call, "migrate", chosen(call, "VM.Migrate"), act)


def _words(call: Call, guest: GuestState) -> dict[str, Any]:
    words: dict[str, Any] = {"online": "1"} if call.params.get("online") and guest.running else {}
    if guest.kind == "lxc" and guest.running:
        return {"restart": "1"}
    return words | ({"with-local-disks": "1"} if call.params.get("with-local-disks") else {})


async def asked(call: Call, method: str, path: str, params: dict[str, Any], task: TaskContext) -> None:
    """Ask the API for the same for one guest, and wait until its own task has ended."""
    from .routing import ROUTER

    found = ROUTER.find(method, path)
    if found is None:
        raise TaskError(f"no such method {method} {path}")
    route, arguments = found
    inner = Call(call.state, method, path, {**params, **arguments}, call.auth)
    inner.params = route.verified(inner)
    upid = route.handler(inner)
    if not isinstance(upid, str):
        return
    while (one := call.state.tasks.get(upid)) is not None and one.running:
        await task.sleep(1)
    if one is not None and one.exitstatus not in (None, "OK") and not str(one.exitstatus).startswith("WARNINGS"):
        raise TaskError(str(one.exitstatus))
