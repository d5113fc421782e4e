"""Judgement of what was tried out on Proxmox VE: the test bridge, the disk that was made larger, what is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from runbook_lib.checks import check, verdict
from runbook_lib.checks.preparation import Wanted
from runbook_lib.facts import GrownDisk, NetworkConfig, TriedBridge
from runbook_lib.model import Finding

GIB = 1024**3


@check(
    title="The trials may begin",
    remedy="Apply or revert what waits on the node; a bridge wants Sys.Modify on /nodes/<node> and a free name.",
    source="Sprint 2.1; GET /nodes/{node}/network, /access/permissions and /cluster/status",
)
def trials_may_begin(wanted: Wanted) -> Iterator[Finding]:
    """One finding per node and kind of trial: planned, or skipped with its reason; nothing is sent either way."""
    for problem in wanted.problems:
        yield verdict(None, problem.partition(":")[0], f"not tried; {problem}")
    bridges, others = {}, 0
    for change in wanted.changes:
        _, _, node, area, *rest = change.target.split("/")
        if area == "network":
            bridges[node] = rest[0]
        else:
            others += 1
    for node, name in sorted(bridges.items()):
        yield verdict(True, node, f"{node}: {name} is free, nothing waits, and nothing that exists is touched")
    if others:
        yield verdict(True, "storage", f"{others} requests on storages, each for a thing of its own name")


@check(
    title="The test bridge came up",
    remedy="Read the reload's task log on the node (`srvreload`); ifupdown2 must be installed.",
    source="Sprint 2.1; POST and PUT /nodes/{node}/network, then GET",
)
def bridges_came_up(bridges: Iterable[TriedBridge]) -> Iterator[Finding]:
    """One finding per bridge that was asked for: active on its node, and nothing waits there any more."""
    for row in bridges:
        subject = f"{row.node}/{row.name}"
        if row.found is None:
            yield verdict(False, subject, f"{row.node} does not list {row.name}")
        elif row.waits or not row.found.active:
            state = "still waits to be applied" if row.waits else "is not active"
            yield verdict(False, subject, f"{subject} {state}")
        else:
            yield verdict(True, subject, f"{subject} is active, and nothing waits on {row.node}")


@check(
    title="The network is as it was",
    remedy="Compare /etc/network/interfaces with its backup; `runbook sweep` takes away what the run left.",
    source="Sprint 2.1; GET /nodes/{node}/network before and after",
)
def network_is_as_before(before: Sequence[NetworkConfig], after: Sequence[NetworkConfig]) -> Iterator[Finding]:
    """One finding per node: every interface has the settings it had; a node that answered only once is a skip."""
    now = {row.node: row.interfaces for row in after}
    for row in before:
        if row.node not in now:
            yield verdict(None, row.node, f"{row.node} did not answer afterwards")
            continue
        differences = sorted(_differences(row.interfaces, now[row.node]))
        told = f"{'; '.join(differences[:5])}" if differences else f"{len(row.interfaces)} interfaces, all as before"
        yield verdict(not differences, row.node, f"{row.node}: {told}", differences=differences)


@check(
    title="A disk grows where it lies",
    remedy="See the resize's task log; the storage must have room, and the token VM.Config.Disk.",
    source="Sprint 2.1; PUT /nodes/{node}/qemu/{vmid}/resize, then config and content",
)
def disks_have_grown(disks: Iterable[GrownDisk]) -> Iterator[Finding]:
    """One finding per disk: the VM's config and the storage's own list both tell the new size."""
    for row in disks:
        sizes = {"config": row.config_bytes, "storage": row.listed_bytes}
        # LVM and ZFS round up to their extents, so the storage may tell a little more
        good = all(size is not None and size >= row.wanted_bytes for size in sizes.values())
        listing = ", ".join(
            f"{who} {'nothing' if size is None else f'{size / GIB:g} GiB'}" for who, size in sizes.items()
        )
        message = f"{row.volid} was made {row.wanted_bytes / GIB:g} GiB: {listing}"
        yield verdict(good, row.volid, message)


def _differences(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for name in before.keys() | after.keys():
        if name not in after:
            yield f"{name} is gone"
        elif name not in before:
            yield f"{name} is new"
        else:
            old, new = before[name], after[name]
            yield from (
                f"{name} {key}: {old.get(key, 'unset')} → {new.get(key, 'unset')}"
                for key in old.keys() | new.keys()
                if old.get(key) != new.get(key)
            )
