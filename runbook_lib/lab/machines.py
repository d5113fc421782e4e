"""The operating systems inside the lab's VMs: they boot, read their bootstrap data, join clusters, and die with the VM.

A VM that starts reads the NoCloud volume in its drive. A kubeadm join document makes it a node of the cluster it
names, a Talos machine config too. What happened inside is kept in the guest's files, so a restarted VM is a node again.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from .clock import Clock
from .joining import LOADER, Doors, Join, Node, NotJoined, follow, join_of
from .kubernetes.controllers.context import Context
from .kubernetes.controllers.control_planes import ControlPlanes
from .planes import Planes
from .proxmox.qemu.agent import CLOUD_INIT_STATUS
from .proxmox.qemu.drives import drives, is_cdrom
from .proxmox.qemu.guest import AGENT_SECONDS, GuestState, parse_net, up_for
from .proxmox.state import PveState
from .proxmox.storage import find_volume

log = logging.getLogger(__name__)

LOOK_SECONDS, LOOK_SECONDS_MANY, MANY = 0.05, 0.25, 500
CLOUD_INIT_SECONDS, KUBEADM_SECONDS, KUBELET_SECONDS = 12.0, 18.0, 8.0
STATUS, RESULT = CLOUD_INIT_STATUS, "/run/cluster-api/bootstrap-success.complete"
OUTPUT = "/var/log/cloud-init-output.log"
INSTANCE = "/var/lib/cloud/data/instance-id"
KUBELET = "/etc/kubernetes/kubelet.conf"
FILES = {"user-data", "meta-data", "network-config"}


@dataclass(frozen=True)
class Home:
    """A cluster that machines may join: where its API really answers, and what runs its controllers."""

    url: str
    context: Context


@dataclass
class _Seen:
    """A guest as it was at the last look."""

    mark: tuple[bool, float]
    uuid: str
    task: asyncio.Task[None] | None = None


@dataclass
class Machines:
    """All VMs of one emulated Proxmox VE. `homes` are the clusters by the "host:port" a join document names.

    `routes` tell the managers of the cluster where the API servers on these machines really answer.
    """

    state: PveState
    clock: Clock
    homes: dict[str, Home] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _first: bool = True
    _doors: Doors = field(default_factory=Doors)
    _kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.planes = Planes(self.clock, self._machines, contexts=self._context, tell=self._tell)

    def serve(self, planes: ControlPlanes, kept: Iterable[str] = ()) -> None:
        """Nothing; machines may be control planes from now on. Those `kept` answer again once the machines are run."""
        self.planes.serving, self._kept = planes, list(kept)

    def _machines(self) -> tuple[set[str], set[str]]:
        there = {uuid_of(guest) for guest in self.state.guests.values()}
        return there, {seen.uuid for seen in self._seen.values() if seen.mark[0]}

    def _context(self, place: str) -> Context | None:
        home = self.homes.get(place)
        return home.context if home else None

    def _tell(self, place: str, url: str | None) -> None:
        if url is None:
            self.routes.pop(place, None)
            return
        self.routes[place] = url
        self.homes[place] = self.homes[url.removeprefix("https://")]

    def add(self, home: Home, *endpoints: str) -> None:
        """Nothing; the cluster can be joined at these endpoints from now on."""
        self.homes |= dict.fromkeys(endpoints, home)

    async def run(self) -> None:
        """Looks after the VMs until cancelled."""
        try:
            await self.planes.resume(self._kept)
            while True:
                self.look()
                await asyncio.sleep(LOOK_SECONDS if len(self.state.guests) < MANY else LOOK_SECONDS_MANY)
        finally:
            for seen in self._seen.values():
                if seen.task:
                    seen.task.cancel()
            await self.planes.close()
            await self._doors.close()

    def look(self) -> None:
        """Nothing; machines that started or stopped since the last look do what follows from it."""
        guests, nodes = self.state.guests, self.state.nodes
        for vmid in [vmid for vmid in self._seen if vmid not in guests]:
            self._stopped(self._seen.pop(vmid))
        for vmid, guest in list(guests.items()):
            if guest.kind != "qemu":
                continue
            runs = guest.running and not guest.paused and nodes[guest.node].online
            mark = (runs, guest.started_lab if runs else 0.0)
            known = self._seen.get(vmid)
            if known is not None and known.mark == mark:
                continue
            if known is not None:
                self._stopped(known)
            seen = self._seen[vmid] = _Seen(mark, uuid_of(guest))
            # what ran when the lab began is as the scenario says
            if runs and not self._first:
                seen.task = asyncio.get_running_loop().create_task(self._boot(guest))
                seen.task.add_done_callback(_ended)
        self._first = False

    def _stopped(self, seen: _Seen) -> None:
        if seen.task:
            seen.task.cancel()
        if not seen.mark[0]:
            return
        for home, name in self._nodes(seen.uuid):
            _drive(home, name, alive=False)
        self.planes.changed(self.planes.of(seen.uuid))

    def _nodes(self, uuid: str) -> list[tuple[Home, str]]:
        """The nodes of any cluster that are this machine."""
        found = []
        for home in {id(home): home for home in self.homes.values()}.values():
            for (_, name), node in home.context.nodes.items.items():
                if uuid and str((node.get("status") or {}).get("nodeInfo", {}).get("systemUUID", "")).lower() == uuid:
                    found.append((home, name))
        return found

    # -- one machine ------------------------------------------------------------------------------

    async def _boot(self, guest: GuestState) -> None:
        """From power to what the machine is for."""
        for name in [name for name in guest.files if name.startswith("/run/")]:
            del guest.files[name]
        if not guest.bootable:
            return
        volume = cidata(self.state, guest)
        if volume:
            guest.files[STATUS] = "running"
        await self._sleep(AGENT_SECONDS - up_for(self.state, guest))
        if volume and identity(volume) != guest.files.get(INSTANCE):
            await self._first_boot(guest, volume)
        else:
            if volume:
                guest.files[STATUS] = "done"
            await self._sleep(KUBELET_SECONDS)
        for plane in self.planes.of(uuid_of(guest)):
            await self.planes.settle(plane)
        for home, name in self._nodes(uuid_of(guest)):
            _drive(home, name, alive=True)

    async def _sleep(self, seconds: float) -> None:
        await self.clock.sleep(max(0.0, seconds))

    async def _first_boot(self, guest: GuestState, volume: Mapping[str, str]) -> None:
        """cloud-init, or Talos, does what the volume says."""
        guest.files[INSTANCE] = identity(volume)
        set_addresses(guest, volume.get("network-config", ""))
        try:
            meta = mapping(volume.get("meta-data", ""))
            join = join_of(volume.get("user-data", ""), meta)
        except NotJoined as error:
            await self._sleep(CLOUD_INIT_SECONDS)
            self._finish(guest, "error", str(error))
            return
        if join is not None and join.talos:
            guest.agent_broken = True  # Talos has no shell, and its agent is an extension
            guest.files.pop(STATUS, None)
        await self._sleep(CLOUD_INIT_SECONDS)
        if join is None:
            self._finish(guest, "done", "")
            return
        for path, content in join.files.items():
            guest.files[path] = content
        await self._sleep(KUBEADM_SECONDS)
        node = self._node(guest, join, meta)
        try:
            if join.initial is not None:
                await self.planes.begin(join, node)
            home = self.homes.get(join.endpoint)
            if join.initial is None:
                await follow(join, node, home.url if home else "", home.context if home else None, self._doors)
        except NotJoined as error:
            self._finish(guest, "error", str(error), join)
            return
        guest.files[KUBELET] = f"server: https://{join.endpoint}\n"
        self._finish(guest, "done", "", join)
        if home is not None:
            _drive(home, node.name, alive=True)

    def _finish(self, guest: GuestState, status: str, error: str, join: Join | None = None) -> None:
        """Nothing; cloud-init has ended so."""
        lines = ["Cloud-init v. 25.1.4 running 'modules:final'"]
        if join is not None:
            lines.append("[preflight] Running pre-flight checks")
        if join is not None and not error:
            first = join.initial is not None
            said = "Your Kubernetes control-plane has initialized successfully!" if first else (
                "This node has joined the cluster:")  # fmt: skip
            lines.append(said)
            guest.files[RESULT] = "success\n"
        if error:
            lines += [error]
            if join is not None:
                lines.append("To see the stack trace of this error execute with --v=5 or higher")
                lines.append("cc_scripts_user.py[WARNING]: Failed to run module scripts_user (scripts in "
                             "/var/lib/cloud/instance/scripts)")  # fmt: skip
        guest.files[OUTPUT] = guest.files.get(OUTPUT, "") + "\n".join(lines) + "\n"
        if not guest.agent_broken:
            guest.files[STATUS] = status

    def _node(self, guest: GuestState, join: Join, meta: Mapping[str, Any]) -> Node:
        host = str(meta.get("local-hostname") or meta.get("hostname") or guest.name)
        rows = [row.partition("/")[0] for net in guest.addresses.values() for row in net]
        return Node(
            name=join.name or host,
            hostname=host,
            uuid=uuid_of(guest),
            cpus=guest.cpus,
            memory=guest.maxmem,
            disk=guest.maxdisk,
            addresses=tuple(rows),
            version=join.version or str(guest.os.get("kubelet") or meta.get("kubernetes-version") or ""),
            image=join.system if join.talos else str(guest.os.get("pretty-name", "Ubuntu 24.04.3 LTS")),
        )


def endpoints(section: Mapping[str, Any]) -> list[str]:
    """Where the API server of a scenario's cluster says it is: its virtual address and its control-plane nodes."""
    nodes = [row for row in section.get("nodes") or () if row.get("role") == "control-plane"]
    addresses = [str(section.get("api_vip", "10.0.0.40")), *(str(row.get("address", "")) for row in nodes)]
    return [f"{address}:6443" for address in addresses if address]


def _drive(home: Home, node: str, *, alive: bool) -> None:
    if seam := getattr(home.context, "machines", None):
        seam.set(node, alive)


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.warning("a machine's inside ended: %r", error)


def uuid_of(guest: GuestState) -> str:
    """The machine's SMBIOS uuid in lower case, as its operating system sees it."""
    match = re.search(r"(?:^|,)uuid=([0-9a-fA-F-]{36})", str(guest.config.get("smbios1", "")))
    return match[1].lower() if match else ""


def cidata(state: PveState, guest: GuestState) -> dict[str, str]:
    """The files of the NoCloud volume in one of the VM's drives; empty when there is none."""
    for _, options in drives(guest.config):
        if not is_cdrom(options):
            continue
        volume = find_volume(state, guest.node, options.get("file", ""))
        if volume is not None and volume.data and (found := read_image(volume.data)):
            return found
    return {}


def read_image(data: bytes) -> dict[str, str]:
    """The documents on an ISO image that is labelled cidata; empty for anything else."""
    import pycdlib  # only a machine that boots needs it
    from pycdlib.pycdlibexception import PyCdlibException

    iso = pycdlib.PyCdlib()
    found: dict[str, str] = {}
    try:
        iso.open_fp(io.BytesIO(data))
    except (PyCdlibException, ValueError):
        return {}
    try:
        if iso.pvd.volume_identifier.decode(errors="replace").strip().lower() != "cidata":
            return {}
        for child in iso.list_children(rr_path="/") if iso.has_rock_ridge() else iso.list_children(iso_path="/"):
            if child.is_dir():
                continue
            raw = child.rock_ridge.name() if iso.has_rock_ridge() else child.file_identifier()
            name = raw.decode(errors="replace").lower().partition(";")[0].rstrip(".")
            if name in FILES:
                out = io.BytesIO()
                iso.get_file_from_iso_fp(out, **{"rr_path" if iso.has_rock_ridge() else "iso_path": "/" + raw.decode()})
                found[name] = out.getvalue().decode(errors="replace")
    except PyCdlibException:
        return {}
    finally:
        iso.close()
    return found


def identity(volume: Mapping[str, str]) -> str:
    """The instance-id of the meta-data."""
    return str(mapping(volume.get("meta-data", "")).get("instance-id", "nocloud"))


def mapping(text: str) -> dict[str, Any]:
    """A YAML document as a mapping; empty when it is none."""
    try:
        found = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def set_addresses(guest: GuestState, text: str) -> None:
    """Nothing; the guest's interfaces have the addresses that its network-config gives to their MAC addresses."""
    config = mapping(text)
    links = (config.get("network") or config).get("ethernets") or {}
    by_mac = {parse_net(str(value)).get("macaddr", "").lower(): key for key, value in guest.config.items()
              if re.fullmatch(r"net\d+", key)}  # fmt: skip
    for link in links.values() if isinstance(links, dict) else ():
        key = by_mac.get(str((link.get("match") or {}).get("macaddress", "")).lower())
        if key and link.get("addresses"):
            guest.addresses[key] = [str(address) for address in link["addresses"]]
