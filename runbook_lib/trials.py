"""What step 22 tries out on Proxmox VE, all of it borrowed: bridges, volumes, a growing disk; and what that took."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from runbook_lib import bridges, prepare, proxmox
from runbook_lib.executors import BORROWED, guest_undo, volume_undo
from runbook_lib.facts import GrownDisk, Interface, PendingNetwork, Storage, TriedBridge
from runbook_lib.model import Change, ChangeKind, Measurement
from runbook_lib.plan import Applied, mark
from runbook_lib.prepare import StorageUse, Wanted

MIB, GIB = 1024**2, 1024**3

FIRST_BRIDGE, LAST_BRIDGE = 1000, 4094
"""Numbers of `vmbr` to choose from: every release takes such a name, and nobody counts so far by hand."""

SAMPLES = 5
"""Volumes per place, one after the other: enough for a spread, too few to be felt."""

ISO_MIB = 8
ISO_SAMPLES = 3
DISK_GIB = 1


def all_trials(
    pve: Any,
    site: Any,
    run: str,
    *,
    interfaces: Sequence[Interface],
    pending: Iterable[PendingNetwork],
    storages: Sequence[Storage],
    step: str = "22",
) -> Wanted:
    """Bridges, volumes and the growing disk as one plan, so that one approval covers the step.

    A cluster without quorum refuses writes half-way, so nothing at all is tried on it.
    """
    if proxmox.cluster(pve).quorate is False:
        return Wanted(problems=("cluster: it has no quorum, and would refuse some of the writes",))
    wanted = (
        bridge_trials(pve, site, run, interfaces=interfaces, pending=pending)
        + volume_trials(site, run, storages=storages)
        + disk_trial(pve, site, run, storages=storages)
    )
    return wanted.numbered(step)


# --- a bridge ----------------------------------------------------------------------------------------


def bridge_trials(
    pve: Any,
    site: Any,
    run: str,
    *,
    interfaces: Sequence[Interface],
    pending: Iterable[PendingNetwork],
    step: str = "22",
) -> Wanted:
    """A bridge without ports and addresses on each node of the site: asked for and applied, node after node.

    Applying reloads the node's network, and brings along whatever waits there; so a node with waiting changes is a
    problem and no change, as is one where the identity of this run lacks Sys.Modify.
    """
    waiting = {row.node for row in pending if row.diff}
    read = sorted({row.node for row in interfaces})
    nodes = [node for node in read if site.names.nodes is None or node in site.names.nodes]
    taken = {row.name for row in interfaces} | {row.name for row in proxmox.sdn_objects(pve)}
    name = next((n for n in (f"vmbr{k}" for k in range(FIRST_BRIDGE, LAST_BRIDGE + 1)) if n not in taken), "")
    changes: list[Change] = []
    problems: list[str] = []
    for node in nodes:
        if node in waiting:
            problems.append(f"{node}: network changes wait there, and would be applied with ours")
        elif not name:
            problems.append(f"{node}: every name from vmbr{FIRST_BRIDGE} on is taken")
        elif not _may_modify(pve, node):
            problems.append(f"{node}: {pve.identity or 'the identity of this run'} lacks Sys.Modify on /nodes/{node}")
        else:
            changes += _bridge(pve, node, name, run)
    return Wanted(tuple(changes), problems=tuple(problems)).numbered(step)


def _may_modify(pve: Any, node: str) -> bool:
    path = f"/nodes/{node}"
    held = pve.get("/access/permissions", path=path) or {}
    return "Sys.Modify" in (held.get(path) or {})


def _bridge(pve: Any, node: str, name: str, run: str) -> Iterator[Change]:
    path = f"/nodes/{node}/network"
    params = {"iface": name, "type": "bridge", "autostart": 1, "comments": f"{mark(run)} {BORROWED}"}
    undo = bridges.undo(node, name, run, bridges.rest_of(pve.get(path), name))
    yield _borrow(
        "create",
        f"{path}/{name}",
        f"Bridge without ports and addresses; waits in interfaces.new of {node}",
        {"method": "POST", "path": path, "params": params},
        undo,
        after=params,
    )
    yield _borrow(
        "apply",
        f"{path}/{name}",
        f"RELOADS THE NETWORK of {node} (ifreload -a), with nothing new in it but {name}",
        {"method": "PUT", "path": path, "cost": {"minutes": 1}},
        undo,
        after={"in force": name},
    )


def tried_bridges(pve: Any, applied: Applied) -> list[TriedBridge]:
    """Each bridge of the plan as its node has it now; nothing where nothing was sent."""
    planned = () if applied.refused else applied.plan.changes
    made = [change for change in planned if change.action == "create" and "/network/" in change.target]
    if not made:
        return []
    rows = {(row.node, row.name): row for row in proxmox.interfaces(pve)}
    waits = {row.node for row in proxmox.pending_network(pve) if row.diff}
    places = [(change.target.split("/")[2], change.target.rpartition("/")[2]) for change in made]
    return [TriedBridge(node, name, rows.get((node, name)), node in waits) for node, name in places]


# --- volumes and ISO images --------------------------------------------------------------------------


def volume_trials(site: Any, run: str, *, storages: Iterable[Storage], step: str = "22") -> Wanted:
    """Small volumes on the disk storage and small files on the ISO storage of each node; of a shared one, once."""
    changes: list[Change] = []
    for use in _places(storages, site):
        made = _volume if use.purpose == "disks" else _iso
        count = SAMPLES if use.purpose == "disks" else ISO_SAMPLES
        changes += [made(use, site, run, number) for number in range(1, count + 1)]
    return Wanted(tuple(changes)).numbered(step)


def _places(storages: Iterable[Storage], site: Any) -> list[StorageUse]:
    """One usable place a purpose and node; the nodes share a shared one."""
    found: dict[tuple[str, str, str], StorageUse] = {}
    for use in prepare.storage_uses(storages, site):
        if not use.problem:
            found.setdefault((use.purpose, use.storage, "" if use.shared else use.node), use)
    return list(found.values())


def _volume(use: StorageUse, site: Any, run: str, number: int) -> Change:
    vmid = site.names.vmid_range.end
    suffix = ".raw" if use.type in prepare.FILE_STORAGES else ""
    filename = f"vm-{vmid}-{mark(run)}-{number}{suffix}"
    path = f"/nodes/{use.node}/storage/{use.storage}/content"
    params = {"vmid": vmid, "filename": filename, "size": f"{prepare.VOLUME_MIB}M", "format": "raw"}
    request = {"method": "POST", "path": path, "params": params, "cost": {"gib": prepare.VOLUME_MIB / 1024}}
    undo = volume_undo(use.node, use.storage, filename, run)
    summary = f"Test volume of {prepare.VOLUME_MIB} MiB, freed again"
    return _borrow("create", f"{path}/{filename}", summary, request, undo, after=params)


def _iso(use: StorageUse, site: Any, run: str, number: int) -> Change:
    filename = f"{mark(run)}-{number}.iso"
    path = f"/nodes/{use.node}/storage/{use.storage}/content"
    file = {"node": use.node, "storage": use.storage, "content": "iso", "name": filename, "bytes": ISO_MIB * MIB}
    undo = volume_undo(use.node, use.storage, filename, run)
    summary = f"File of {ISO_MIB} MiB, uploaded as CAPMOX uploads a bootstrap ISO, and removed again"
    request = {"upload": file, "cost": {"gib": ISO_MIB / 1024}}
    return _borrow("upload", f"{path}/{filename}", summary, request, undo, after=file)


# --- a disk that grows -------------------------------------------------------------------------------


def disk_trial(pve: Any, site: Any, run: str, *, storages: Iterable[Storage], step: str = "22") -> Wanted:
    """A VM that is never started, with one disk that is then made larger: the storage API itself resizes nothing."""
    use = next((use for use in _places(storages, site) if use.purpose == "disks"), None)
    if use is None:
        return Wanted(problems=("disks: no storage of this site takes them",))
    taken = {int(row["vmid"]) for row in pve.get("/cluster/resources", type="vm") or []}
    first, last = site.names.vmid_range.start, site.names.vmid_range.end
    vmid = next((vmid for vmid in range(last - 1, first - 1, -1) if vmid not in taken), None)
    if vmid is None:
        return Wanted(problems=(f"disks: every id from {first} to {last} is taken",))
    pools = {row["poolid"] for row in pve.get("/pools") or []}
    params = {
        "vmid": vmid,
        "name": f"{site.names.prefix}-disk",
        "memory": 128,
        "cores": 1,
        "ostype": "l26",
        "scsihw": "virtio-scsi-single",
        "scsi0": f"{use.storage}:{DISK_GIB}",
        "tags": f"{mark(run)};{BORROWED}",
        **({"pool": site.names.pool} if site.names.pool in pools else {}),
    }
    path, undo = f"/nodes/{use.node}/qemu", guest_undo(use.node, vmid, run)
    made = {"method": "POST", "path": path, "params": params, "cost": {"vms": 1, "gib": DISK_GIB}}
    grown = {
        "method": "PUT",
        "path": f"{path}/{vmid}/resize",
        "params": {"disk": "scsi0", "size": f"+{DISK_GIB}G"},
        "cost": {"gib": DISK_GIB},
    }
    target, sizes = f"{path}/{vmid}", ({"scsi0": f"{DISK_GIB} GiB"}, {"scsi0": f"{2 * DISK_GIB} GiB"})
    return Wanted(
        (
            _borrow("create", target, "VM for one disk, never started", made, undo, after=params),
            replace(_borrow("resize", target, "The disk doubles", grown, undo, after=sizes[1]), before=sizes[0]),
        )
    ).numbered(step)


def grown_disks(pve: Any, applied: Applied) -> list[GrownDisk]:
    """The disk of the plan as the VM's config and its storage's list have it; nothing where nothing was sent."""
    rows = []
    for change in () if applied.refused else applied.plan.changes:
        if change.action != "resize":
            continue
        _, _, node, _, number = change.target.split("/")
        config = pve.get(f"/nodes/{node}/qemu/{number}/config")
        volid, _, options = str(config.get("scsi0") or "").partition(",")
        size = re.search(r"(?:^|,)size=(\d+)([MGT]?)", options)
        unit = {"": 1, "M": MIB, "G": GIB, "T": 1024 * GIB}
        held = proxmox.volumes(pve, node, volid.partition(":")[0], "images") if volid else []
        listed = next((volume.size_bytes for volume in held if volume.volid == volid), None)
        told = int(size[1]) * unit[size[2]] if size else None
        rows.append(GrownDisk(node, int(number), "scsi0", volid, 2 * DISK_GIB * GIB, told, listed))
    return rows


# --- what was measured -------------------------------------------------------------------------------


def storage_timings(exchanges: Iterable[Any], *applied: Applied) -> list[Measurement]:
    """What each kind of storage operation took, by place, from the requests of these plans and of their undoing.

    A request that starts a task counts until the task was seen to have ended, so a reading is what a client waits.
    """
    seen = list(exchanges)
    changes = {change.id: change for plan in applied if not plan.refused for change in plan.plan.changes}
    values: dict[tuple[str, str, str], list[float]] = {}
    for index, exchange in enumerate(seen):
        change = changes.get(exchange.change)
        if change is None or exchange.method == "GET" or not 200 <= exchange.status < 300:
            continue
        for name, unit, value in _readings(change, exchange, until_ended(seen, index)):
            values.setdefault((name, unit, _place(change)), []).append(value)
    return [Measurement(name, unit, tuple(found), subject=place) for (name, unit, place), found in values.items()]


def _readings(change: Change, exchange: Any, seconds: float) -> Iterator[tuple[str, str, float]]:
    if change.action == "upload" and exchange.method == "POST":
        yield f"upload {ISO_MIB} MiB", "ms", seconds * 1000
        yield "upload throughput", "MiB/s", ISO_MIB / max(seconds, 1e-6)
    elif change.action == "resize" and exchange.method == "PUT":
        yield "resize a disk", "ms", seconds * 1000
    elif "/content" in change.target and change.action == "create" and exchange.method == "POST":
        yield "allocate a volume", "ms", seconds * 1000
    elif "/content" in change.target and exchange.method == "DELETE":
        yield ("remove a file" if change.action == "upload" else "free a volume"), "ms", seconds * 1000


def until_ended(seen: Sequence[Any], index: int) -> float:
    """Seconds from the begin of a request to its answer, or to the last look at its task that follows."""
    begun, ended = _moment(seen[index]), _moment(seen[index]) + seen[index].seconds
    for later in seen[index + 1 :]:
        if not re.match(r"/nodes/[^/]+/tasks/", later.path):
            break
        ended = _moment(later) + later.seconds
    return max(ended - begun, seen[index].seconds)


def _moment(exchange: Any) -> float:
    return datetime.fromisoformat(exchange.started).timestamp()


def _place(change: Change) -> str:
    """ "pve1/local" of a change that touches a storage, "pve1" of any other."""
    parts = change.target.split("/")
    return f"{parts[2]}/{parts[4]}" if len(parts) > 4 and parts[3] == "storage" else parts[2]


def _borrow(
    action: str, target: str, summary: str, request: dict[str, Any], undo: dict[str, Any], *, after: dict[str, Any]
) -> Change:
    return Change("", "proxmox", action, target, summary, ChangeKind.BORROW, request, None, after, undo)


def read_endpoints(storages: Iterable[Storage]) -> dict[str, str]:
    """The reads that CSI repeats before every volume, by place: status and content; of a shared storage, once."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for row in storages:
        if not row.active or "images" not in row.content or (row.shared and row.name in seen):
            continue
        seen.add(row.name)
        place = row.name if row.shared else f"{row.node}/{row.name}"
        base = f"/nodes/{row.node}/storage/{row.name}"
        found |= {f"{place} status": f"{base}/status", f"{place} content": f"{base}/content"}
    return found
