"""A VM's monitor and keys, and the rarer calls of its agent."""

from __future__ import annotations

from typing import Any

from .declared import declared
from .declared.monitors import TABLE
from .qemu.agent import answering, told
from .qemu.config import agent_rule
from .qemu.guest import check_skiplock, power_off, this
from .routing import Call, PveError, Rule, perm
from .worker import TaskContext, TaskError

endpoint = declared(TABLE)

PLAIN = agent_rule()
POWER = agent_rule("VM.PowerMgmt")
COMMANDS = {
    "info status": "VM status: {status}",
    "info version": "11.0.1pve-qemu-kvm_11.0.1",
    "info name": "{name}",
    "info kvm": "kvm support: enabled",
    "help": "info [subcommand] -- show various information about the system state",
}


def monitor_rule(eight: Rule, nine: Rule) -> Rule:
    """The rule of the monitor: a privilege of its own on 8, those of the system on 9."""

    def rule(call: Call) -> None:
        (eight if call.flavour == "8.4" else nine)(call)

    return rule


@endpoint(
    "POST /nodes/{node}/qemu/{vmid}/monitor",
    monitor_rule(perm("/vms/{vmid}", "VM.Monitor"), perm("/vms/{vmid}", "Sys.Audit", "Sys.Modify", any_of=True)),
)
def monitor(call: Call) -> str:
    """What the machine's monitor answers; the lab's knows a few words."""
    guest = this(call)
    if not guest.running:
        raise PveError(500, f"VM {guest.vmid} not running")
    command = call.params["command"].strip()
    text = COMMANDS.get(command, f"unknown command: '{command}'")
    return text.format(status="paused" if guest.paused else "running", name=guest.name)


@endpoint("PUT /nodes/{node}/qemu/{vmid}/sendkey")
def send_key(call: Call) -> None:
    """Nothing; the key was pressed."""
    check_skiplock(call)
    guest = this(call)
    if not guest.running:
        raise PveError(500, f"VM {guest.vmid} not running")


@endpoint("POST /nodes/{node}/qemu/{vmid}/dbus-vmstate")
def dbus_state(call: Call) -> None:
    """Refused: the helper runs only while a VM migrates."""
    guest = this(call)
    raise PveError(500, f"dbus-vmstate helper for VM {guest.vmid} is not installed")


@endpoint("POST /nodes/{node}/qemu/{vmid}/remote_migrate")
def migrate_far(call: Call) -> str:
    """The UPID of a move to another cluster, which is not reached: the lab knows no other."""
    guest = this(call)
    if guest.running and not call.params.get("online"):
        raise PveError(500, "can't migrate running VM without --online")

    def work(task: TaskContext) -> None:
        raise TaskError("remote: unable to connect - Connection refused")

    return call.task("qmigrate", guest.vmid, work)


@endpoint("POST /nodes/{node}/qemu/{vmid}/agent", PLAIN)
def command(call: Call) -> dict[str, Any]:
    """What the agent answers to a command, as its own path does."""
    word = call.params["command"]
    answering(call)
    if word.startswith(("get-", "info", "network-")):
        return {"result": told(call, word)}
    if word.startswith("suspend-"):
        suspended(call, word)
    if word == "shutdown":
        power_off(call.state, this(call))
    return {"result": {"fsfreeze-status": "thawed", "fsfreeze-freeze": 2, "fsfreeze-thaw": 2}.get(word, {})}


@endpoint("POST /nodes/{node}/qemu/{vmid}/agent/set-user-password", PLAIN)
def set_password(call: Call) -> dict[str, Any]:
    """An empty result; the user of the guest has the password."""
    guest = answering(call)
    guest.files["/etc/shadow"] = f"{call.params['username']}:*:20000:0:99999:7:::\n"
    return {"result": {}}


def suspended(call: Call, word: str) -> None:
    """Nothing; the guest sleeps, in memory or, switched off, on its disk."""
    guest = answering(call)
    if word == "suspend-ram":
        guest.paused = True
    else:
        power_off(call.state, guest)


def _sleeping(word: str) -> None:
    def handler(call: Call) -> dict[str, Any]:
        suspended(call, word)
        return {"result": {}}

    handler.__doc__ = f"An empty result; the guest did a {word}."
    endpoint(f"POST /nodes/{{node}}/qemu/{{vmid}}/agent/{word}", POWER)(handler)


for _word in ("suspend-ram", "suspend-disk", "suspend-hybrid"):
    _sleeping(_word)
