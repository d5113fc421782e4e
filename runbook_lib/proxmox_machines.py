"""The VMs behind machines as Proxmox VE tells them: config, agent, tasks with their logs, bootstrap images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from runbook_lib import errors
from runbook_lib.facts import MachineVm, Storage, Task, TaskTail, Volume
from runbook_lib.proxmox_nodes import task_row
from runbook_lib.proxmox_reading import Reader, integer, true, words
from runbook_lib.proxmox_session import quoted
from runbook_lib.proxmox_storage import volumes

BOOTSTRAP_ISO = re.compile(r"user-data-(\d+)\.iso$")
TASKS_PER_VM = 40
LINES = 8
_UUID = re.compile(r"(?:^|,)uuid=([0-9a-fA-F-]{36})")
_VOLUME = re.compile(r"\bvm-(\d+)-")
_DRIVE = re.compile(r"(?:ide|sata|scsi)\d+$")


def machine_vms(
    pve: Reader, *, chosen: Callable[[Mapping[str, Any]], bool] = lambda row: True, agent: bool = True
) -> list[MachineVm]:
    """The VMs of the nodes' own lists that are `chosen`, by vmid, each with its config and, where it runs, what its
    agent tells of addresses.

    The nodes' lists and not the cluster's: that one is up to ten seconds old. Templates are left out.
    """
    rows = pve.each_node("machine_vms", lambda reader, node: reader.get(f"/nodes/{node}/qemu") or [])
    found = [(node, row) for node, listed in rows for row in listed if not true(row.get("template")) and chosen(row)]

    def whole(reader: Reader, item: tuple[str, Mapping[str, Any]]) -> MachineVm | None:
        return _vm(reader, *item, agent=agent)

    answers = pve.each("machine_vms", found, whole, name=lambda item: f"{item[0]}/{item[1]['vmid']}")
    return sorted((vm for _, vm in answers if vm is not None), key=lambda vm: vm.vmid)


def _vm(reader: Reader, node: str, row: Mapping[str, Any], *, agent: bool) -> MachineVm | None:
    path = f"/nodes/{node}/qemu/{row['vmid']}"
    try:
        config = reader.get(f"{path}/config") or {}
    except errors.NotFound:  # it went while we were looking
        return None
    told = None
    if agent and row.get("status") == "running":
        try:
            told = _addresses(reader.get(f"{path}/agent/network-get-interfaces") or {})
        except errors.ApiError:  # no agent, or it is not up yet: the row says so by None
            told = None
    uuid = _UUID.search(str(config.get("smbios1") or ""))
    drives = (str(value).partition(",")[0] for key, value in config.items() if _DRIVE.match(key))
    return MachineVm(
        int(row["vmid"]),
        str(config.get("name") or row.get("name") or ""),
        node,
        str(row.get("status") or ""),
        uuid[1].lower() if uuid else "",
        words(config.get("tags") or row.get("tags")),
        lock=str(config.get("lock") or row.get("lock") or ""),
        cores=integer(config.get("cores")),
        memory_mib=integer(config.get("memory")),
        iso=next((volid for volid in drives if BOOTSTRAP_ISO.search(volid)), ""),
        agent_addresses=told,
    )


def _addresses(answer: Mapping[str, Any]) -> tuple[str, ...]:
    links = answer.get("result") or ()
    return tuple(
        row["ip-address"]
        for link in links
        if link.get("name") != "lo"
        for row in link.get("ip-addresses") or ()
        if not str(row["ip-address"]).startswith(("fe80:", "169.254."))
    )


def machine_tasks(pve: Reader, vms: Iterable[MachineVm], upids: Mapping[str, int] | None = None) -> list[TaskTail]:
    """The tasks of these VMs, the oldest first; of those that failed the log's last lines.

    A clone's task has its template's number, so clones are known by the UPIDs that machines waited for (`upids`, with
    the VM of each), and else by the volumes that their logs name.
    """
    given, wanted = dict(upids or {}), {(vm.node, vm.vmid) for vm in vms}

    def ask(reader: Reader, item: tuple[str, int]) -> list[TaskTail]:
        node, vmid = item
        rows = reader.get(f"/nodes/{node}/tasks", vmid=vmid, limit=TASKS_PER_VM, source="all") or []
        return [_tail(reader, task_row(node, row), vmid) for row in rows if row.get("type") != "qmclone"]

    found = [row for _, rows in pve.each("machine_tasks", sorted(wanted), ask, name=_place) for row in rows]
    found += tasks_by_upid(pve, given)
    told = {row.about for row in found if row.task.type == "qmclone"}
    lost = {vmid: node for node, vmid in wanted if vmid not in told}
    found += _clones(pve, lost, set(given))
    unique = {row.task.upid: row for row in found}
    return sorted(unique.values(), key=lambda row: (row.task.started, row.task.upid))


def _place(item: tuple[str, int]) -> str:
    return f"{item[0]}/{item[1]}"


def _clones(pve: Reader, lost: Mapping[int, str], known: set[str]) -> list[TaskTail]:
    """The clones of these VMs by the volumes that the logs of recent clones name; the newest of each."""

    def ask(reader: Reader, node: str) -> list[TaskTail]:
        rows = reader.get(f"/nodes/{node}/tasks", typefilter="qmclone", limit=TASKS_PER_VM, source="all") or []
        found: dict[int, TaskTail] = {}
        for row in rows:
            if row["upid"] in known:
                continue
            task = task_row(node, row)
            lines = _log(reader, task)
            numbers = {int(number) for line in lines for number in _VOLUME.findall(line)} & set(lost)
            for vmid in numbers - set(found):
                found[vmid] = TaskTail(task, lines[-LINES:] if _has_failed(task) else (), vmid)
        return list(found.values())

    if not lost:
        return []
    answers = pve.each("machine_tasks", sorted(set(lost.values())), ask)
    return [row for _, rows in answers for row in rows]


def tasks_by_upid(pve: Reader, upids: Mapping[str, int]) -> list[TaskTail]:
    """The tasks of these UPIDs, each about the VM it is given with; one that no node knows any more is left out."""
    found = []
    for upid, vmid in upids.items():
        parts = upid.split(":")
        if len(parts) < 8:
            continue
        try:
            row = pve.get(f"/nodes/{parts[1]}/tasks/{quoted(upid)}/status")
        except errors.ApiError:
            continue
        running = row.get("status") == "running"
        task = Task(parts[1], upid, parts[5], parts[6], row.get("user", ""), int(row.get("starttime") or 0), None,
                    None if running else str(row.get("exitstatus") or ""))  # fmt: skip
        found.append(_tail(pve, task, vmid))
    return found


def _has_failed(task: Task) -> bool:
    return task.status is not None and task.status != "OK" and not task.status.startswith("WARNINGS")


def _tail(reader: Reader, task: Task, vmid: int) -> TaskTail:
    return TaskTail(task, _log(reader, task)[-LINES:] if _has_failed(task) else (), vmid)


def _log(reader: Reader, task: Task) -> tuple[str, ...]:
    try:
        rows = reader.get(f"/nodes/{task.node}/tasks/{quoted(task.upid)}/log", start=0, limit=500) or []
    except errors.ApiError:
        return ()
    return tuple(str(row.get("t") or "") for row in rows)


def bootstrap_isos(pve: Reader, storages: Iterable[Storage]) -> list[Volume]:
    """The ISO images with bootstrap data that lie on the storages; of a shared storage each once.

    They hold join tokens, so one that is left behind is a secret left behind.
    """
    places: dict[tuple[str, str], Storage] = {}
    for row in storages:
        if row.active and "iso" in row.content:
            places.setdefault(("" if row.shared else row.node, row.name), row)

    def ask(reader: Reader, row: Storage) -> list[Volume]:
        return [volume for volume in volumes(reader, row.node, row.name, "iso") if BOOTSTRAP_ISO.search(volume.volid)]

    answers = pve.each("bootstrap_isos", places.values(), ask, name=lambda row: f"{row.node}/{row.name}")
    return [volume for _, found in answers for volume in found]


def vmid_of(volid: str) -> int | None:
    """The VM that a bootstrap image was made for, by its name."""
    found = BOOTSTRAP_ISO.search(volid)
    return int(found[1]) if found else None
