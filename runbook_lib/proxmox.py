"""Proxmox VE: facts as rows, and verbs. This module is the one door; logins and verbs have a file of their own.

Facts over nodes leave a node out that does not answer and remember why in `pve.unread`, unless the row can say it.
Verbs send nothing outside an approved plan: see `wire.permit`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from runbook_lib import errors
from runbook_lib.facts import (
    Certificate,
    Clock,
    Cluster,
    ClusterMember,
    Guest,
    Interface,
    Node,
    PendingNetwork,
    Permissions,
    PveVersion,
    Storage,
    Task,
    Template,
    ThinPool,
    Update,
    Volume,
)
from runbook_lib.proxmox_access import login_attempts, served_certificate, ticket_renewal
from runbook_lib.proxmox_session import Proxmox, Reader, Unread, connect, pages, quoted
from runbook_lib.proxmox_verbs import (
    Progress,
    allocate_volume,
    create_pool,
    create_role,
    create_token,
    create_user,
    delete_pool,
    delete_role,
    delete_token,
    delete_user,
    free_volume,
    set_acl,
    upload,
    wait_task,
)

__all__ = [
    "Progress",
    "Proxmox",
    "Reader",
    "Unread",
    "allocate_volume",
    "certificates",
    "clocks",
    "cluster",
    "connect",
    "create_pool",
    "create_role",
    "create_token",
    "create_user",
    "delete_pool",
    "delete_role",
    "delete_token",
    "delete_user",
    "failed_tasks",
    "free_volume",
    "guests",
    "interfaces",
    "login_attempts",
    "nodes",
    "pending_network",
    "permissions",
    "quoted",
    "served_certificate",
    "set_acl",
    "storages",
    "templates",
    "thin_pools",
    "ticket_renewal",
    "updates",
    "upload",
    "version",
    "volumes",
    "wait_task",
]

DISK_SLOT = re.compile(r"(?:scsi|virtio|sata|ide)\d+")
SERIAL_SLOT = re.compile(r"serial\d+")
NETWORK_SLOT = re.compile(r"net\d+")
STABLE_UPDATE = re.compile(r"[+~]deb\d+u\d+")
TRUE_WORDS = {"1", "true", "yes", "on"}  # what PVE::JSONSchema::parse_boolean takes for true


def version(pve: Reader) -> PveVersion:
    """The release the answering node runs."""
    found = pve.get("/version")
    return PveVersion(found["version"], found.get("release", ""), found.get("repoid", ""))


def cluster(pve: Reader) -> Cluster:
    """The cluster and its members by name. A standalone node has no name and no quorum. Needs Sys.Audit on /."""
    name, quorate, members = None, None, []
    for row in pve.get("/cluster/status") or []:
        if row["type"] == "cluster":
            name, quorate = row["name"], _true(row.get("quorate"))
        elif row["type"] == "node":
            members.append(
                ClusterMember(
                    row["name"],
                    int(row.get("nodeid", 0)),
                    row.get("ip") or None,
                    _true(row.get("online")),
                    _true(row.get("local")),
                )
            )
    return Cluster(name, quorate, tuple(sorted(members, key=lambda member: member.name)))


def nodes(pve: Reader) -> list[Node]:
    """Every node, by name; one that is offline or refuses its status says so in `error`."""
    listed = sorted(pve.get("/nodes") or [], key=lambda row: row["node"])
    asked = [row["node"] for row in listed if row.get("status") != "offline"]
    states = dict(pve.each("nodes", asked, lambda reader, node: reader.get(f"/nodes/{node}/status")))
    reasons = {unread.node: unread.reason for unread in pve.unread if unread.fact == "nodes"}
    return [_node(row, states.get(row["node"]), reasons.get(row["node"], "")) for row in listed]


def _node(row: Mapping[str, Any], state: Mapping[str, Any] | None, reason: str) -> Node:
    online = row.get("status") != "offline"
    state = state or {}
    memory, root = state.get("memory", {}), state.get("rootfs", {})
    return Node(
        name=row["node"],
        online=online,
        cpus=_int(state.get("cpuinfo", {}).get("cpus", row.get("maxcpu"))),
        cpu_fraction=_float(state.get("cpu", row.get("cpu"))),
        memory_bytes=_int(memory.get("total", row.get("maxmem"))),
        memory_used_bytes=_int(memory.get("used", row.get("mem"))),
        root_bytes=_int(root.get("total", row.get("maxdisk"))),
        root_used_bytes=_int(root.get("used", row.get("disk"))),
        uptime_seconds=_int(state.get("uptime", row.get("uptime"))),
        pve_version=state.get("pveversion"),
        kernel=state.get("current-kernel", {}).get("release") or state.get("kversion"),
        error=reason if online else "the node is offline",
    )


def guests(pve: Reader) -> list[Guest]:
    """Every VM and container of the cluster by vmid. PVE gathers them every ten seconds or so, so a guest may be
    nameless just after its creation."""
    rows = [
        Guest(
            vmid=int(row["vmid"]),
            name=row.get("name", ""),
            node=row.get("node", ""),
            kind=row["type"],
            status=row.get("status", "unknown"),
            template=_true(row.get("template")),
            cpus=float(row.get("maxcpu") or 0),
            memory_bytes=int(row.get("maxmem") or 0),
            disk_bytes=int(row.get("maxdisk") or 0),
            tags=_words(row.get("tags")),
            pool=row.get("pool", ""),
            lock=row.get("lock", ""),
        )
        for row in pve.get("/cluster/resources", type="vm") or []
        if row.get("type") in {"qemu", "lxc"}
    ]
    return sorted(rows, key=lambda guest: guest.vmid)


def storages(pve: Reader) -> list[Storage]:
    """Every storage on every node, by node and name; a shared one comes once per node."""
    return [
        _storage(node, row)
        for node, rows in pve.each_node("storages", lambda reader, node: reader.get(f"/nodes/{node}/storage"))
        for row in sorted(rows or [], key=lambda row: row["storage"])
    ]


def _storage(node: str, row: Mapping[str, Any]) -> Storage:
    active = _true(row.get("active"))
    sizes = row if active else {}
    return Storage(
        node=node,
        name=row["storage"],
        type=row["type"],
        content=tuple(sorted(_words(row.get("content")))),
        active=active,
        enabled=_true(row.get("enabled", 1)),
        shared=_true(row.get("shared")),
        total_bytes=_int(sizes.get("total")),
        used_bytes=_int(sizes.get("used")),
        available_bytes=_int(sizes.get("avail")),
    )


def thin_pools(pve: Reader) -> list[ThinPool]:
    """Every LVM thin pool, by node, volume group and name. Needs Sys.Audit on /."""
    rows = pve.each_node("thin_pools", lambda reader, node: reader.get(f"/nodes/{node}/disks/lvmthin"))
    return [
        ThinPool(
            node=node,
            volume_group=row.get("vg", ""),
            name=row["lv"],
            size_bytes=int(row["lv_size"]),
            used_bytes=int(row["used"]),
            metadata_bytes=int(row["metadata_size"]),
            metadata_used_bytes=int(row["metadata_used"]),
        )
        for node, found in rows
        for row in sorted(found or [], key=lambda row: (row.get("vg", ""), row["lv"]))
    ]


def volumes(pve: Reader, node: str, storage: str, content: str | None = None) -> list[Volume]:
    """What one storage of one node holds, by volid; of one content type if named."""
    asked = {"content": content} if content else {}
    rows = pve.get(f"/nodes/{node}/storage/{storage}/content", **asked) or []
    return [
        Volume(
            node=node,
            storage=storage,
            volid=row["volid"],
            content=row.get("content", ""),
            format=row.get("format", ""),
            size_bytes=int(row.get("size") or 0),
            vmid=_int(row.get("vmid")),
        )
        for row in sorted(rows, key=lambda row: row["volid"])
    ]


def interfaces(pve: Reader) -> list[Interface]:
    """Every interface of every node that /etc/network/interfaces knows, by node and name."""
    return [
        _interface(node, row)
        for node, rows in pve.each_node("interfaces", lambda reader, node: reader.get(f"/nodes/{node}/network"))
        for row in sorted(rows or [], key=lambda row: row["iface"])
    ]


def _interface(node: str, row: Mapping[str, Any]) -> Interface:
    ports = next((row[key] for key in ("bridge_ports", "slaves", "ovs_bonds", "ovs_ports") if row.get(key)), "")
    return Interface(
        node=node,
        name=row["iface"],
        type=row["type"],
        active=_true(row.get("active")),
        autostart=_true(row.get("autostart")),
        vlan_aware=_true(row.get("bridge_vlan_aware")),
        mtu=_int(row.get("mtu")),
        ports=tuple(port for port in _words(ports) if port != "none"),
        cidr=row.get("cidr") or None,
        cidr6=row.get("cidr6") or None,
        gateway=row.get("gateway") or None,
        gateway6=row.get("gateway6") or None,
    )


def pending_network(pve: Reader) -> list[PendingNetwork]:
    """Network changes that wait on each node, as a diff; one row a node, an empty diff where nothing waits."""
    rows = pve.each_node("pending_network", lambda reader, node: reader.answer(f"/nodes/{node}/network"))
    return [PendingNetwork(node, found.get("changes") or "") for node, found in rows]


def certificates(pve: Reader) -> list[Certificate]:
    """Every certificate file of every node, by node and file name. What the API serves is `served_certificate`."""
    rows = pve.each_node("certificates", lambda reader, node: reader.get(f"/nodes/{node}/certificates/info"))
    return [
        Certificate(
            node=node,
            filename=row["filename"],
            subject=row.get("subject", ""),
            issuer=row.get("issuer", ""),
            san=tuple(row.get("san") or ()),
            not_before=int(row.get("notbefore") or 0),
            not_after=int(row.get("notafter") or 0),
            fingerprint=row.get("fingerprint", ""),
        )
        for node, found in rows
        for row in sorted(found or [], key=lambda row: row["filename"])
    ]


def clocks(pve: Reader, *, clock: Callable[[], float] = time.time) -> list[Clock]:
    """Every node's clock against ours, which is read in the middle of the round trip.

    PVE tells whole seconds, so half a second of uncertainty comes to half the round trip. The answer for another
    node passes through the node we talk to; the better of two tries counts.
    """

    def measure(reader: Reader, node: str) -> Clock:
        tries = []
        for _ in range(2):
            asked = clock()
            found = reader.get(f"/nodes/{node}/time")
            came = clock()
            offset = float(found["time"]) + 0.5 - (asked + came) / 2
            tries.append(Clock(node, offset, 0.5 + (came - asked) / 2, found.get("timezone", "")))
        return min(tries, key=lambda one: one.uncertainty_seconds)

    return [row for _, row in pve.each_node("clocks", measure)]


def failed_tasks(pve: Reader, hours: float = 24, *, clock: Callable[[], float] = time.time) -> list[Task]:
    """Tasks of the last hours that ended in an error, newest first. A task that only warned did not fail."""
    since = int(clock() - hours * 3600)

    def ask(reader: Reader, node: str) -> list[Task]:
        rows = pages(reader, f"/nodes/{node}/tasks", errors=1, since=since)
        tasks = [_task(node, row) for row in rows]
        return [task for task in tasks if _failed(task.status) and task.started >= since]

    found = [task for _, tasks in pve.each_node("failed_tasks", ask) for task in tasks]
    return sorted(found, key=lambda task: (-task.started, task.upid))


def _task(node: str, row: Mapping[str, Any]) -> Task:
    return Task(
        node=row.get("node", node),
        upid=row["upid"],
        type=row.get("type", ""),
        id=str(row.get("id") or ""),
        user=row.get("user", ""),
        started=int(row.get("starttime") or 0),
        finished=_int(row.get("endtime")),
        status=row.get("status"),
    )


def _failed(status: str | None) -> bool:
    return status is not None and status != "OK" and not status.startswith("WARNINGS")


def updates(pve: Reader) -> list[Update]:
    """Packages that wait for an upgrade, by node and name, as of the node's last `apt update`.

    Needs Sys.Modify on /nodes/{node}, which a token that only reads does not have: see `pve.unread`.
    """
    rows = pve.each_node("updates", lambda reader, node: reader.get(f"/nodes/{node}/apt/update"))
    return [
        Update(
            node=node,
            package=row["Package"],
            old_version=row.get("OldVersion") or None,
            version=row.get("Version", ""),
            origin=row.get("Origin", ""),
            security=_security(row),
        )
        for node, found in rows
        for row in sorted(found or [], key=lambda row: row["Package"])
    ]


def _security(row: Mapping[str, Any]) -> bool:
    origin = row.get("Origin", "").lower()
    return "security" in origin or (origin.startswith("debian") and bool(STABLE_UPDATE.search(row.get("Version", ""))))


def templates(pve: Reader) -> list[Template]:
    """Every VM template by vmid, as its config has it."""
    found = [guest for guest in guests(pve) if guest.template and guest.kind == "qemu"]
    rows = pve.each(
        "templates",
        found,
        lambda reader, guest: reader.get(f"/nodes/{guest.node}/qemu/{guest.vmid}/config"),
        name=lambda guest: f"{guest.node}/{guest.vmid}",
    )
    return [_template(guest, config) for guest, config in rows]


def _template(guest: Guest, config: Mapping[str, Any]) -> Template:
    slots = {key: str(value) for key, value in config.items() if DISK_SLOT.fullmatch(key)}
    cloudinit = sorted(key for key, value in slots.items() if "cloudinit" in value.partition(",")[0])
    disks = (key for key, value in slots.items() if key not in cloudinit and "media=cdrom" not in value.split(","))
    return Template(
        vmid=guest.vmid,
        name=config.get("name", guest.name),
        node=guest.node,
        agent=_agent(config.get("agent")),
        cloudinit_slot=cloudinit[0] if cloudinit else None,
        scsi_controller=config.get("scsihw"),
        boot=config.get("boot"),
        serial=any(SERIAL_SLOT.fullmatch(key) for key in config),
        disks=tuple(sorted(disks)),
        networks=tuple(sorted(key for key in config if NETWORK_SLOT.fullmatch(key))),
        os_type=config.get("ostype"),
        tags=_words(config.get("tags")) or guest.tags,
    )


def _agent(value: Any) -> bool:
    """ "1", "enabled=1,fstrim_cloned_disks=1" … : `enabled` is the property that may stand without its name."""
    for part in str(value if value is not None else "").split(","):
        key, _, worth = part.rpartition("=")
        if key in {"", "enabled"}:
            return worth.strip().lower() in TRUE_WORDS
    return False


def permissions(pve: Reader, identity: str | None = None) -> Permissions:
    """What one identity may do, by path; ourselves unless named. Naming another needs Sys.Audit on /access."""
    asked = {"userid": identity} if identity else {}
    paths = pve.get("/access/permissions", **asked) or {}
    return Permissions(
        identity or pve.identity,
        {path: {name: _true(spreads) for name, spreads in privileges.items()} for path, privileges in paths.items()},
    )


def _true(value: Any) -> bool:
    """PVE writes booleans as 0, 1, "0", "1", true, or not at all."""
    return value is True or str(value).lower() in TRUE_WORDS if value is not None else False


def _int(value: Any) -> int | None:
    try:
        return int(value) if value not in (None, "") else None
    except (TypeError, ValueError) as error:
        raise errors.BadAnswer("Proxmox VE gave something else where a number belongs", repr(value)) from error


def _float(value: Any) -> float | None:
    return float(value) if value not in (None, "") else None


def _words(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Parts of a list as PVE writes them: by comma, semicolon or blank."""
    text = value if isinstance(value, str) else " ".join(value or ())
    return tuple(part for part in re.split(r"[,;\s]+", text) if part)
