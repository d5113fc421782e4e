"""What is inside a VM: the guest agent and cloud-init."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

from ..drift import phase
from ..routing import Array, Boolean, Call, Integer, PveError, String, only_9, param_error, perm, route
from .config import agent_rule
from .drives import drives, is_cloud_init
from .guest import (
    CLOUD_INIT_SECONDS,
    GuestState,
    agent_answers,
    merged,
    parse_options,
    power_off,
    this,
    up_for,
)

if TYPE_CHECKING:
    from ..state import PveState

OS = {
    "id": "debian",
    "name": "Debian GNU/Linux",
    "pretty-name": "Debian GNU/Linux 12 (bookworm)",
    "version": "12 (bookworm)",
    "version-id": "12",
    "kernel-release": "6.1.0-40-cloud-amd64",
    "kernel-version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.153-1 (2025-09-20)",
    "machine": "x86_64",
}
COMMANDS = [
    "get-cpustats",
    "get-diskstats",
    "ssh-remove-authorized-keys",
    "ssh-add-authorized-keys",
    "ssh-get-authorized-keys",
    "get-devices",
    "get-osinfo",
    "get-timezone",
    "get-users",
    "get-host-name",
    "exec",
    "exec-status",
    "get-memory-block-info",
    "set-memory-blocks",
    "get-memory-blocks",
    "set-user-password",
    "get-fsinfo",
    "get-disks",
    "set-vcpus",
    "get-vcpus",
    "network-get-interfaces",
    "suspend-hybrid",
    "suspend-ram",
    "suspend-disk",
    "fstrim",
    "fsfreeze-thaw",
    "fsfreeze-freeze-list",
    "fsfreeze-freeze",
    "fsfreeze-status",
    "file-flush",
    "file-seek",
    "file-write",
    "file-read",
    "file-close",
    "file-open",
    "shutdown",
    "info",
    "set-time",
    "get-time",
    "ping",
    "sync",
    "sync-delimited",
]
CLOUD_INIT_STATUS = "/run/cloud-init/status"
"""Where whoever plays the guest's inside says how far cloud-init is; without it, time tells."""
SILENT = ("suspend-hybrid", "suspend-ram", "suspend-disk", "shutdown")
"""Commands that answer nothing when they succeed."""


def answering(call: Call) -> GuestState:
    """The guest a path names, whose agent answers. Raises the 500 that says why none does."""
    guest = this(call)
    if not guest.agent_enabled():
        raise PveError(500, "No QEMU guest agent configured")
    if not guest.running:
        raise PveError(500, f"VM {guest.vmid} is not running")
    if not agent_answers(call.state, guest):
        raise PveError(500, "QEMU guest agent is not running")
    return guest


# --- what the guest says --------------------------------------------------------------------------


def addresses(state: PveState, guest: GuestState) -> dict[str, list[str]]:
    """The addresses of each network device: the scenario's, cloud-init's, a tag's, or one from DHCP."""
    found: dict[str, list[str]] = {}
    for number, (key, net) in enumerate(guest.nets().items()):
        fixed = guest.addresses.get(key)
        ipconfig = parse_options(str(guest.config.get(f"ipconfig{key[3:]}", "")), "ip")
        tagged = re.findall(rf"ip_{key}_([0-9a-fA-F.:]+)", guest.tags)
        if fixed:
            found[key] = list(fixed)
        elif "/" in ipconfig.get("ip", ""):
            found[key] = [ipconfig["ip"]]
        elif tagged:
            found[key] = [f"{address}/24" for address in tagged]
        else:
            host = 100 + int(phase(net.get("macaddr", key)) * 100)
            found[key] = [f"10.0.{number}.{host}/24"]
        if net.get("macaddr"):
            found[key].append(f"{_link_local(net['macaddr'])}/64")
    return found


def _link_local(mac: str) -> str:
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    words = [*octets[:3], 0xFF, 0xFE, *octets[3:]]
    text = ":".join(f"{words[n] << 8 | words[n + 1]:x}" for n in range(0, 8, 2))
    return str(ipaddress.ip_address(f"fe80::{text}"))


def host_name(guest: GuestState) -> str:
    """The guest's host name."""
    return guest.name.partition(".")[0]


def interfaces(call: Call, guest: GuestState) -> list[dict[str, Any]]:
    """The guest's interfaces as its agent tells them."""

    def row(name: str, mac: str, given: list[str], traffic: int) -> dict[str, Any]:
        statistics = dict.fromkeys(
            ("rx-bytes", "rx-packets", "rx-errs", "rx-dropped", "tx-bytes", "tx-packets", "tx-errs", "tx-dropped"), 0
        )
        statistics |= {"rx-bytes": traffic, "rx-packets": traffic // 900}
        listed = []
        for text in given:
            address, _, prefix = text.partition("/")
            kind = "ipv6" if ":" in address else "ipv4"
            listed.append({"ip-address": address, "ip-address-type": kind, "prefix": int(prefix)})
        return {"name": name, "hardware-address": mac.lower(), "ip-addresses": listed, "statistics": statistics}

    rows = [row("lo", "00:00:00:00:00:00", ["127.0.0.1/8", "::1/128"], 0)]
    nets = guest.nets()
    traffic = guest.counters(call.clock.now())["netin"]
    for number, (key, given) in enumerate(addresses(call.state, guest).items()):
        rows.append(row(f"eth{number}", nets[key].get("macaddr", ""), given, traffic))
    return rows


def run(call: Call, guest: GuestState, command: list[str], stdin: str) -> dict[str, Any]:
    """How a command ends inside the guest: the few that provisioning asks for, and the usual small ones."""
    words = (command[0].split() if len(command) == 1 else command) or [""]
    program, rest = words[0].rsplit("/", 1)[-1], words[1:]
    if program in ("sh", "bash") and rest[:1] == ["-c"]:
        words = " ".join(rest[1:]).split() or [""]
        program, rest = words[0].rsplit("/", 1)[-1], words[1:]
    system = OS | guest.os
    done = up_for(call.state, guest) >= CLOUD_INIT_SECONDS
    cloud_init = guest.files.get(CLOUD_INIT_STATUS) or ("done" if done else "running")
    output = {
        "true": "",
        "echo": " ".join(rest) + "\n",
        "hostname": host_name(guest) + "\n",
        "uname": system["kernel-release"] + "\n",
        "uptime": "up\n",
        "cat": guest.files.get(rest[0] if rest else "", stdin),
        "cloud-init": f"status: {cloud_init}\n",
        "systemctl": "running\n",
    }
    if program == "false":
        return {"exited": 1, "exitcode": 1}
    if program == "cat" and rest and rest[0] not in guest.files:
        text = f"cat: {rest[0]}: No such file or directory\n"
        return {"exited": 1, "exitcode": 1, "err-data": text}
    if program not in output:
        raise PveError(
            500,
            "Agent error: Guest agent command failed, error was 'Failed to execute child process "
            f"“{command[0]}” (No such file or directory)'",
        )
    result: dict[str, Any] = {"exited": 1, "exitcode": int(program == "cloud-init" and cloud_init == "error")}
    if output[program]:
        result |= {"out-data": output[program], "out-truncated": 0}
    return result


# --- agent endpoints ------------------------------------------------------------------------------

INDEX = [
    "exec",
    "exec-status",
    "file-read",
    "file-write",
    "fsfreeze-freeze",
    "fsfreeze-status",
    "fsfreeze-thaw",
    "fstrim",
    "get-fsinfo",
    "get-host-name",
    "get-memory-block-info",
    "get-memory-blocks",
    "get-osinfo",
    "get-time",
    "get-timezone",
    "get-users",
    "get-vcpus",
    "info",
    "network-get-interfaces",
    "ping",
    "set-user-password",
    "shutdown",
    "suspend-disk",
    "suspend-hybrid",
    "suspend-ram",
]
READ = agent_rule("VM.GuestAgent.Audit")
UNRESTRICTED = agent_rule()


@route("GET", "/nodes/{node}/qemu/{vmid}/agent", permission="any")
def agent_index(call: Call) -> list[dict[str, str]]:
    """The names below agent."""
    return [{"name": name} for name in INDEX]


def told(call: Call, what: str) -> Any:
    """What the agent answers to one of its commands without arguments."""
    guest = answering(call)
    system = OS | guest.os
    if what == "get-osinfo":
        return system
    if what == "network-get-interfaces":
        return interfaces(call, guest)
    if what == "get-host-name":
        return {"host-name": host_name(guest)}
    if what == "get-time":
        return int(call.clock.now() * 1e9)
    if what == "get-timezone":
        return {"zone": "UTC", "offset": 0}
    if what == "get-users":
        return []
    if what == "get-vcpus":
        return [{"logical-id": n, "online": True, "can-offline": n > 0} for n in range(guest.cpus)]
    if what == "get-fsinfo":
        total = guest.maxdisk
        return [
            {
                "name": "sda1",
                "mountpoint": "/",
                "type": "ext4",
                "total-bytes": int(total * 0.97),
                "used-bytes": int(total * 0.2),
                "disk": [],
            }
        ]
    if what == "get-memory-block-info":
        return {"size": 134217728}
    if what == "get-memory-blocks":
        return []
    if what == "info":
        commands = [
            {"name": f"guest-{name}", "enabled": name != "get-devices", "success-response": name not in SILENT}
            for name in COMMANDS
        ]
        return {"version": "7.2.22", "supported_commands": commands}
    if what == "fsfreeze-status":
        return "thawed"
    if what in ("fsfreeze-freeze", "fsfreeze-thaw"):
        return 1
    if what == "fstrim":
        return {"paths": []}
    return {}


def _reading(what: str) -> None:
    @route("GET", f"/nodes/{{node}}/qemu/{{vmid}}/agent/{what}", permission=READ)
    def read(call: Call) -> dict[str, Any]:
        return {"result": told(call, what)}

    read.__name__ = f"agent_{what.replace('-', '_')}"
    read.__doc__ = f"What the agent answers to {what}."


for _what in INDEX:
    if _what.startswith(("get-", "info", "network-")):
        _reading(_what)


def _acting(what: str, *privileges: str) -> None:
    @route("POST", f"/nodes/{{node}}/qemu/{{vmid}}/agent/{what}", permission=agent_rule(*privileges))
    def act(call: Call) -> dict[str, Any]:
        result = told(call, what)
        if what == "shutdown":
            power_off(call.state, this(call))
        return {"result": result}

    act.__name__ = f"agent_{what.replace('-', '_')}"
    act.__doc__ = f"What the agent answers to {what}."


for _what in ("fsfreeze-freeze", "fsfreeze-thaw", "fstrim"):
    _acting(_what, "VM.GuestAgent.FileSystemMgmt")
_acting("fsfreeze-status", "VM.GuestAgent.Audit", "VM.GuestAgent.FileSystemMgmt")
_acting("ping", "VM.GuestAgent.Audit")
_acting("shutdown", "VM.PowerMgmt")


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/agent/exec",
    params={"command": Array(), "input-data": String(optional=True, max_length=65536)},
    permission=UNRESTRICTED,
)
def execute(call: Call) -> dict[str, int]:
    """The process id of a command that runs inside the guest."""
    guest = answering(call)
    command = [str(word) for word in call.params["command"]]
    result = run(call, guest, command, call.params.get("input-data", ""))
    pid, guest.next_process = guest.next_process, guest.next_process + 1
    guest.processes[pid] = result
    return {"pid": pid}


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/agent/exec-status",
    params={"pid": Integer()},
    permission=UNRESTRICTED,
)
def execution_status(call: Call) -> dict[str, Any]:
    """How the command ended; an answer is given once, as by the real agent."""
    guest = answering(call)
    result = guest.processes.pop(call.params["pid"], None)
    if result is None:
        raise PveError(500, f"Agent error: Invalid parameter 'pid': PID {call.params['pid']} does not exist")
    return result


@route(
    "POST",
    "/nodes/{node}/qemu/{vmid}/agent/file-write",
    params={"file": String(), "content": String(max_length=61440), "encode": Boolean(optional=True)},
    permission=agent_rule("VM.GuestAgent.FileWrite"),
)
def write_file(call: Call) -> None:
    """Nothing; the file is inside the guest."""
    answering(call).files[call.params["file"]] = call.params["content"]


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/agent/file-read",
    params={
        "file": String(),
        "count": only_9(Integer(optional=True, minimum=1, maximum=16777216)),
        "decode": only_9(Boolean(optional=True)),
        "offset": only_9(Integer(optional=True, minimum=0)),
    },
    permission=agent_rule("VM.GuestAgent.FileRead"),
)
def read_file(call: Call) -> dict[str, Any]:
    """A file's content inside the guest."""
    guest, name = answering(call), call.params["file"]
    if name not in guest.files:
        raise PveError(500, f"Agent error: failed to open file '{name}' (mode: 'r'): No such file or directory")
    return {"content": guest.files[name]}


# --- cloud-init -----------------------------------------------------------------------------------

CLOUD_INIT_KEYS = re.compile(r"^(cicustom|cipassword|citype|ciupgrade|ciuser|nameserver|searchdomain|sshkeys)$")


def crypt(password: str) -> str:
    """Something of the shape of a SHA-256 crypt hash; the lab never checks a guest's password."""
    salt = hashlib.sha256(password.encode()).hexdigest()[:8]
    return f"$5${salt}${hashlib.sha256((salt + password).encode()).hexdigest()[:43]}"


@route("GET", "/nodes/{node}/qemu/{vmid}/cloudinit", permission=perm("/vms/{vmid}", "VM.Audit"))
def cloud_init_options(call: Call) -> list[dict[str, Any]]:
    """The cloud-init options of a VM."""
    config = merged(this(call))
    return [
        {"key": key, "value": "**********" if key == "cipassword" else config[key]}
        for key in sorted(config)
        if CLOUD_INIT_KEYS.match(key)
    ]


@route("PUT", "/nodes/{node}/qemu/{vmid}/cloudinit", permission=perm("/vms/{vmid}", "VM.Config.Cloudinit"))
def regenerate(call: Call) -> None:
    """Nothing; the cloud-init image is made anew."""
    guest = this(call)
    if not any(is_cloud_init(options) for _, options in drives(guest.config)):
        raise PveError(500, "no cloudinit config drive found")


@route(
    "GET",
    "/nodes/{node}/qemu/{vmid}/cloudinit/dump",
    params={"type": String(enum=("user", "network", "meta"))},
    permission=perm("/vms/{vmid}", "VM.Audit"),
)
def dump(call: Call) -> str:
    """The generated cloud-init document."""
    guest = this(call)
    kind = call.params["type"]
    if kind == "user":
        return user_data(guest)
    if kind == "network":
        return network_config(guest)
    return f"instance-id: {hashlib.sha1((user_data(guest) + network_config(guest)).encode()).hexdigest()}\n"


def user_data(guest: GuestState) -> str:
    """The generated user-data."""
    config = merged(guest)
    lines = ["#cloud-config", f"hostname: {host_name(guest)}", "manage_etc_hosts: true"]
    if domain := config.get("searchdomain"):
        lines.append(f"fqdn: {host_name(guest)}.{domain}")
    if user := config.get("ciuser"):
        lines.append(f"user: {user}")
    else:
        lines.append("disable_root: False")
    if password := config.get("cipassword"):
        lines.append(f"password: {password}")
    if keys := config.get("sshkeys"):
        lines.append("ssh_authorized_keys:")
        lines += [f"  - {line}" for line in urllib.parse.unquote(str(keys)).splitlines() if line]
    lines += ["chpasswd:", "  expire: False", "users:", "  - default"]
    if config.get("ciupgrade", 1):
        lines.append("package_upgrade: true")
    return "\n".join(lines) + "\n"


def network_config(guest: GuestState) -> str:
    """The generated network-config (version 1)."""
    config = merged(guest)
    lines = ["version: 1", "config:"]
    for number, (key, net) in enumerate(guest.nets().items()):
        lines += [
            "    - type: physical",
            f"      name: eth{number}",
            f"      mac_address: '{net.get('macaddr', '').lower()}'",
            "      subnets:",
        ]
        options = parse_options(str(config.get(f"ipconfig{key[3:]}", "ip=dhcp")), "ip")
        address = options.get("ip", "dhcp")
        if address == "dhcp":
            lines.append("      - type: dhcp4")
        else:
            try:
                network = ipaddress.ip_interface(address)
            except ValueError:
                raise param_error({f"ipconfig{key[3:]}": "invalid format - invalid ip\n"}) from None
            lines += [
                "      - type: static",
                f"        address: '{network.ip}'",
                f"        netmask: '{network.netmask}'",
            ]
            if gateway := options.get("gw"):
                lines.append(f"        gateway: '{gateway}'")
    lines += ["    - type: nameserver", "      address:"]
    lines += [f"      - '{server}'" for server in str(config.get("nameserver", "10.0.0.1")).split()]
    lines += ["      search:", f"      - '{config.get('searchdomain', 'lab.test')}'"]
    return "\n".join(lines) + "\n"
