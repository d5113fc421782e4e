"""A guest's state: its config, what waits in it, its snapshots, and how it feels while it runs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..drift import Waves
from ..routing import Call, PveError
from ..storage import parse_size

if TYPE_CHECKING:
    from ..state import PveState
    from ..told import Told

MIB = 2**20
QEMU = {"8.4": "9.2.0", "9.2": "11.0.1"}
AGENT_SECONDS = 12.0
"""Lab seconds from start until the guest agent answers."""
CLOUD_INIT_SECONDS = 30.0
"""Lab seconds from start until cloud-init is done."""
OPTION_WORDS = re.compile(r"^(ide|sata|scsi|virtio|efidisk|tpmstate)\d+$")
BOOT_WORDS = re.compile(r"^(ide|sata|scsi|virtio)\d+$")


@dataclass
class Snapshot:
    """A config as it was, and where the snapshot hangs in the tree."""

    config: dict[str, Any]
    snaptime: int
    description: str = ""
    vmstate: bool = False
    parent: str | None = None


@dataclass
class GuestState:
    """A VM or a container. `bootable` says whether an operating system is on its disks: only then does it react."""

    vmid: int
    node: str
    kind: str = "qemu"
    config: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)
    pending_delete: list[str] = field(default_factory=list)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    parent: str | None = None
    running: bool = False
    paused: bool = False
    bootable: bool = True
    started: float = 0.0  # epoch
    started_lab: float = 0.0  # the lab's elapsed seconds
    pid: int | None = None
    created: float = 0.0  # epoch: what the rest of the cluster learns with the next broadcast
    changed: float = 0.0
    was_running: bool = False
    cpu_level: float = 0.08
    memory_level: float = 0.55
    addresses: dict[str, list[str]] = field(default_factory=dict)  # net0 → ["10.0.0.11/24"]
    agent_broken: bool = False
    os: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    processes: dict[int, dict[str, Any]] = field(default_factory=dict)
    next_process: int = 700
    salt: str = ""  # the lab's, see dice.Dice.salt
    told: Told | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The guest's name; one without a name is "VM 100"."""
        default = f"VM {self.vmid}" if self.kind == "qemu" else f"CT{self.vmid}"
        return str(self.config.get("name" if self.kind == "qemu" else "hostname", default))

    @property
    def template(self) -> bool:
        """Whether it is a template."""
        return bool(self.config.get("template"))

    @property
    def lock(self) -> str:
        """What holds its config locked; empty when nothing does."""
        return str(self.config.get("lock", ""))

    @property
    def cpus(self) -> int:
        """Virtual CPUs."""
        if self.kind == "lxc":
            return int(self.config.get("cores", 1))
        return int(self.config.get("vcpus") or int(self.config.get("sockets", 1)) * int(self.config.get("cores", 1)))

    @property
    def maxmem(self) -> int:
        """Bytes of memory it may use."""
        text = str(self.config.get("memory", 512)).removeprefix("current=")
        return int(text) * MIB

    @property
    def maxdisk(self) -> int:
        """Bytes of the disk it boots from; 0 when it boots from none."""
        if self.kind == "lxc":
            return _size_of(str(self.config.get("rootfs", "")))
        for device in boot_order(self.config):
            value = str(self.config.get(device, ""))
            if BOOT_WORDS.match(device) and "media=cdrom" not in value and value:
                return _size_of(value)
        return 0

    @property
    def tags(self) -> str:
        """The tags as they are stored."""
        return str(self.config.get("tags", ""))

    @cached_property
    def waves(self) -> Waves:
        """How its figures drift."""
        return Waves(f"{self.salt}guest/{self.vmid}", 1 + self.vmid % 5)

    def cpu_fraction(self, moment: float) -> float:
        """How busy its CPUs are."""
        return self.waves.cpu(self.cpu_level, moment) if self.running and not self.paused else 0.0

    def memory_used(self, moment: float) -> int:
        """Bytes of memory in use: a guest that just booted has touched little of it."""
        if not self.running:
            return 0
        return int(self.waves.memory(self.memory_level, moment, moment - self.started) * self.maxmem)

    def counters(self, moment: float) -> dict[str, int]:
        """What it has sent, received, read and written since it started."""
        counted = self.waves.counters(moment - self.started) if self.running else (0, 0, 0, 0)
        return dict(zip(("netin", "netout", "diskread", "diskwrite"), counted, strict=True))

    def uptime(self, moment: float) -> int:
        """Seconds since it started; 0 while it is stopped."""
        return max(1, int(moment - self.started)) if self.running else 0

    def agent_enabled(self) -> bool:
        """Whether its config asks for the guest agent."""
        words = str(self.config.get("agent", "0")).split(",")
        return any(word in ("1", "enabled=1") for word in words)

    def nets(self) -> dict[str, dict[str, str]]:
        """Its network devices: net0 → {model, macaddr, bridge, tag …}."""
        return {key: parse_net(str(value)) for key, value in self.config.items() if re.fullmatch(r"net\d+", key)}


def _size_of(drive: str) -> int:
    match = re.search(r"(?:^|,)size=([^,]+)", drive)
    return parse_size(match[1]) if match else 0


def boot_order(config: Mapping[str, Any]) -> list[str]:
    """The devices a VM boots from, in order."""
    boot = str(config.get("boot", ""))
    match = re.search(r"(?:^|,)order=([^,]*)", boot)
    if match:
        return [device for device in match[1].split(";") if device]
    return [str(config["bootdisk"])] if "bootdisk" in config else []


def digest(guest: GuestState) -> str:
    """The digest of the guest's config file."""
    content = (sorted(guest.config.items()), sorted(guest.pending.items()), guest.pending_delete, guest.parent)
    snapshots = [(name, sorted(snap.config.items())) for name, snap in guest.snapshots.items()]
    return hashlib.sha1(repr((content, snapshots)).encode()).hexdigest()


def shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as lists show it: without the password."""
    return {key: "**********" if key == "cipassword" else value for key, value in config.items()}


def merged(guest: GuestState) -> dict[str, Any]:
    """The config with what waits in it."""
    config = {key: value for key, value in guest.config.items() if key not in guest.pending_delete}
    return config | guest.pending


# --- property strings -----------------------------------------------------------------------------


def parse_options(text: str, default_key: str = "file") -> dict[str, str]:
    """A property string as a mapping; the part without a key is `default_key`."""
    options: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals:
            options[key.strip()] = value
        elif part:
            options[default_key] = part
    return options


def print_options(options: Mapping[str, str], default_key: str = "file") -> str:
    """The property string: the default key's value first, the rest by name."""
    parts = [options[default_key]] if default_key in options else []
    parts += [f"{key}={value}" for key, value in sorted(options.items()) if key != default_key]
    return ",".join(parts)


MODELS = [
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "vmxnet3",
]


def parse_net(text: str) -> dict[str, str]:
    """A network device: model and macaddr apart, whichever way they were written."""
    options = parse_options(text, "model")
    for model in MODELS:
        if model in options:
            options["macaddr"] = options.pop(model)
            options["model"] = model
    return options


def print_net(options: Mapping[str, str]) -> str:
    """A network device as configs hold it: `virtio=MAC,bridge=…`."""
    rest = {key: value for key, value in options.items() if key not in ("model", "macaddr")}
    head = f"{options.get('model', 'virtio')}={options['macaddr']}" if "macaddr" in options else options["model"]
    return ",".join([head, *(f"{key}={value}" for key, value in sorted(rest.items()))])


def new_mac(state: PveState, seed: str, taken: Container[str] | None = None) -> str:
    """A MAC address with the datacenter's prefix that no guest has, or that is not `taken`."""
    prefix = str(state.datacenter.get("mac_prefix", "BC:24:11"))
    taken = known_macs(state) if taken is None else taken
    for attempt in range(10_000):
        raw = hashlib.sha256(f"{state.dice.salt}{seed}/{attempt}".encode()).hexdigest().upper()
        missing = 6 - len(prefix.split(":"))
        mac = ":".join([prefix, *(raw[2 * n : 2 * n + 2] for n in range(missing))])
        if mac not in taken:
            return mac
    raise PveError(500, "unable to generate a MAC address")


def newborn(state: PveState, vmid: int, node: str, *, lock: str) -> GuestState:
    """A guest that is only being made: locked, and with nothing on its disks to boot from."""
    now = state.clock.now()
    config = {"lock": lock}
    return GuestState(vmid, node, config=config, bootable=False, created=now, changed=now, salt=state.dice.salt)


def known_macs(state: PveState) -> str:
    """A text in which every MAC address of a guest stands."""
    return "\n".join(
        str(value).upper() for guest in state.guests.values() for key, value in guest.config.items() if key[:3] == "net"
    )


def identity(state: PveState, vmid: int) -> dict[str, str]:
    """Fresh `smbios1` and `vmgenid`: a clone made twice under the same id is two machines."""
    return {
        "smbios1": f"uuid={state.dice.uuid(f'vm/{vmid}/smbios1')}",
        "vmgenid": state.dice.uuid(f"vm/{vmid}/vmgenid"),
    }


# --- finding, locking, starting -------------------------------------------------------------------


def find_guest(state: PveState, node: str, vmid: int, kind: str = "qemu") -> GuestState:
    """The guest as `node` knows it. Raises the 500 of a missing config file."""
    guest = state.guests.get(vmid)
    if guest is None or guest.node != node or guest.kind != kind:
        folder = "qemu-server" if kind == "qemu" else "lxc"
        raise PveError(500, f"Configuration file 'nodes/{node}/{folder}/{vmid}.conf' does not exist")
    return guest


def this(call: Call, kind: str = "qemu") -> GuestState:
    """The guest a path names."""
    return find_guest(call.state, call.node, call.params["vmid"], kind)


def check_lock(guest: GuestState) -> None:
    """Nothing, or the 500 of a locked config."""
    if guest.lock:
        kind = "VM" if guest.kind == "qemu" else "CT"
        raise PveError(500, f"{kind} is locked ({guest.lock})")


def check_skiplock(call: Call) -> bool:
    """Whether locks are to be ignored, which only root may ask for."""
    if not call.params.get("skiplock"):
        return False
    if call.auth is None or not call.auth.is_root:
        raise PveError(400, "Parameter verification failed.", {"skiplock": "Only root may use this option."})
    return True


def power_on(state: PveState, guest: GuestState) -> None:
    """Make the guest run from now on, with everything that waited in its config in force."""
    now = state.clock.now()
    guest.config = merged(guest)
    guest.pending, guest.pending_delete = {}, []
    guest.was_running, guest.changed = guest.running, now
    guest.running, guest.paused = True, False
    guest.started, guest.started_lab = now, state.clock.elapsed()
    guest.pid = 20_000 + guest.vmid


def power_off(state: PveState, guest: GuestState) -> None:
    """Make the guest stopped from now on; a stopped guest has nothing pending."""
    guest.was_running, guest.changed = guest.running, state.clock.now()
    guest.running, guest.paused, guest.pid = False, False, None
    guest.config = merged(guest)
    guest.pending, guest.pending_delete = {}, []


def up_for(state: PveState, guest: GuestState) -> float:
    """Seconds of the lab since the guest started."""
    if guest.running and math.isinf(state.clock.scale):
        return math.inf  # nothing takes any time
    return state.clock.elapsed() - guest.started_lab if guest.running else 0.0


def agent_answers(state: PveState, guest: GuestState) -> bool:
    """Whether the guest agent is up by now."""
    return (
        guest.running
        and not guest.paused
        and guest.bootable
        and not guest.agent_broken
        and up_for(state, guest) >= AGENT_SECONDS
    )
