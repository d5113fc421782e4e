"""VMs: their state (`guest`), drives, configuration, power, clones, snapshots, disks and agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..storage import DEFAULT_CONTENT, GIB, VolumeState, add_volume, format_size, parse_size
from . import agent, clone, config, disks, migrate, power, snapshots
from .drives import CLOUD_INIT_SIZE, drives, is_cdrom, is_cloud_init
from .guest import QEMU, GuestState, Snapshot, identity, new_mac, parse_net, parse_options, print_net, print_options

if TYPE_CHECKING:
    from ..state import PveState

__all__ = ["GuestState", "Snapshot", "agent", "clone", "config", "disks", "load", "migrate", "power", "snapshots"]


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the guests from a scenario's `guests:`, vmid → {node, config, running …}; their disks are made to fit."""
    now, macs = state.clock.now(), _given_macs(section)
    for vmid, entry in (section.get("guests") or {}).items():
        given = dict(entry)
        kind = given.pop("kind", "qemu")
        guest = GuestState(
            vmid=int(vmid),
            node=given.pop("node"),
            kind=kind,
            config=dict(given.pop("config", {})),
            created=0.0,
            changed=0.0,
            salt=state.dice.salt,
        )
        running = bool(given.pop("running", False))
        uptime = 86400 * float(given.pop("uptime_days", 20))
        used = given.pop("disk_used", 0.25)
        for name, snapshot in (given.pop("snapshots", None) or {}).items():
            taken = int(now - float(snapshot.get("ago", 86400)))
            guest.snapshots[name] = Snapshot(dict(guest.config), taken, snapshot.get("description", ""))
            guest.parent = name
        for key, value in given.items():
            if not hasattr(guest, key):
                raise ValueError(f"scenario: guest {vmid}: no such key: {key}")
            setattr(guest, key, value)
        if kind == "qemu":
            complete(state, guest, now - uptime, macs)
        else:
            complete_container(guest)
        make_disks(state, guest, used, int(now - uptime))
        if running:
            guest.running, guest.started, guest.was_running = True, now - uptime, True
            guest.started_lab = state.clock.elapsed() - uptime
            guest.pid = 20_000 + guest.vmid
        state.guests[guest.vmid] = guest


def _given_macs(section: Mapping[str, Any]) -> set[str]:
    configs = (entry.get("config") or {} for entry in (section.get("guests") or {}).values())
    nets = (str(value) for config in configs for key, value in config.items() if key[:3] == "net")
    return {mac.upper() for net in nets if (mac := parse_net(net).get("macaddr"))}


def complete(state: PveState, guest: GuestState, born: float, macs: set[str]) -> None:
    """Give the config what every real one has: identities and MAC addresses, the same at every start."""
    if guest.lock == "clone":
        return
    if not {"smbios1", "vmgenid"} <= guest.config.keys():
        guest.config = {**guest.config, **identity(state, guest.vmid), **guest.config}
    guest.config.setdefault("meta", f"creation-qemu={QEMU[state.flavour]},ctime={int(born)}")
    for key in list(guest.config):
        if key.startswith("net") and key[3:].isdigit():
            net = parse_net(str(guest.config[key]))
            if "macaddr" not in net:
                net["macaddr"] = new_mac(state, f"{guest.vmid}/{key}", macs)
                macs.add(net["macaddr"])
            guest.config[key] = print_net(net)


def complete_container(guest: GuestState) -> None:
    """Give a container's config what every real one has."""
    guest.config.setdefault("arch", "amd64")
    guest.config.setdefault("ostype", "debian")


def make_disks(state: PveState, guest: GuestState, used: float, born: int) -> None:
    """Put the volumes a config names onto their storages, `used` being the share of a disk that is written."""
    named = [(key, parse_options(str(guest.config[key]))) for key, _ in drives(guest.config)]
    named += [(k, parse_options(str(v))) for k, v in guest.config.items() if k == "rootfs" or k.startswith("mp")]
    for key, options in named:
        volid = options.get("file", "")
        storage = state.storages.get(volid.partition(":")[0])
        if storage is None or (is_cdrom(options) and not is_cloud_init(options)):
            continue
        size = CLOUD_INIT_SIZE if is_cloud_init(options) else parse_size(options.get("size", str(GIB)))
        content = "rootdir" if guest.kind == "lxc" and "rootdir" in DEFAULT_CONTENT.get(storage.type, "") else "images"
        add_volume(
            state,
            storage.at(guest.node),
            VolumeState(
                volid=volid,
                content=content,
                format="qcow2" if volid.endswith(".qcow2") else "raw",
                size=size,
                used=int(size * used),
                ctime=born,
                vmid=guest.vmid,
                bootable=guest.bootable,
            ),
        )
        if key != "rootfs" and not is_cdrom(options):
            guest.config[key] = print_options({**options, "size": format_size(size)})
