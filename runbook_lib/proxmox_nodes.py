"""Nodes of Proxmox VE as rows: their state, network, certificates, clocks, tasks and updates."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from runbook_lib.facts import Certificate, Clock, Interface, NetworkConfig, Node, PendingNetwork, Task, Update
from runbook_lib.proxmox_reading import Reader, decimal, integer, pages, true, words

PASSING = frozenset({"iface", "active", "exists", "priority"})
"""Fields of an interface that are no settings: its name, its link, its place in the file."""

STABLE_UPDATE = re.compile(r"[+~]deb\d+u\d+")


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
        cpus=integer(state.get("cpuinfo", {}).get("cpus", row.get("maxcpu"))),
        cpu_fraction=decimal(state.get("cpu", row.get("cpu"))),
        memory_bytes=integer(memory.get("total", row.get("maxmem"))),
        memory_used_bytes=integer(memory.get("used", row.get("mem"))),
        root_bytes=integer(root.get("total", row.get("maxdisk"))),
        root_used_bytes=integer(root.get("used", row.get("disk"))),
        uptime_seconds=integer(state.get("uptime", row.get("uptime"))),
        pve_version=state.get("pveversion"),
        kernel=state.get("current-kernel", {}).get("release") or state.get("kversion"),
        error=reason if online else "the node is offline",
    )


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
        active=true(row.get("active")),
        autostart=true(row.get("autostart")),
        vlan_aware=true(row.get("bridge_vlan_aware")),
        mtu=integer(row.get("mtu")),
        ports=tuple(port for port in words(ports) if port != "none"),
        cidr=row.get("cidr") or None,
        cidr6=row.get("cidr6") or None,
        gateway=row.get("gateway") or None,
        gateway6=row.get("gateway6") or None,
        raw_device=row.get("vlan-raw-device") or None,
        comments=(row.get("comments") or "").strip(),
    )


def network_config(pve: Reader) -> list[NetworkConfig]:
    """What every node's interfaces are set to, by node; two of these are compared to prove that nothing changed."""
    rows = pve.each_node("network_config", lambda reader, node: reader.get(f"/nodes/{node}/network"))
    return [
        NetworkConfig(node, {row["iface"]: settings(row) for row in sorted(found or [], key=lambda row: row["iface"])})
        for node, found in rows
    ]


def settings(row: Mapping[str, Any]) -> dict[str, str]:
    """An interface's options as texts, without its name and without what comes and goes by itself."""
    return {
        key: " ".join(map(str, value)) if isinstance(value, list) else str(value).strip()
        for key, value in sorted(row.items())
        if key not in PASSING
    }


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
        tasks = [task_row(node, row) for row in rows]
        return [task for task in tasks if _failed(task.status) and task.started >= since]

    found = [task for _, tasks in pve.each_node("failed_tasks", ask) for task in tasks]
    return sorted(found, key=lambda task: (-task.started, task.upid))


def task_row(node: str, row: Mapping[str, Any]) -> Task:
    """One row of GET /nodes/{node}/tasks."""
    return Task(
        node=row.get("node", node),
        upid=row["upid"],
        type=row.get("type", ""),
        id=str(row.get("id") or ""),
        user=row.get("user", ""),
        started=int(row.get("starttime") or 0),
        finished=integer(row.get("endtime")),
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
