"""What pvescheduler does on every node: backups, replication and realm syncs start when their schedule comes round.

A job's next time follows from when it ran last, or from when its schedule or its being enabled changed. What a node
missed while it was down runs at its return only when the job says `repeat-missed`.
Source: the vendor's PVE/Jobs.pm and ReplicationState.pm.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .calendar import next_run
from .quorum import quorate
from .sections import Section

if TYPE_CHECKING:
    from .state import PveState

TICK_SECONDS = 10.0
Start = Callable[["PveState", str, str, Section], None]
"""Starts a job: the state, the node, the job's id and what it says."""


async def live(state: PveState) -> None:
    """Let the nodes look after their jobs for as long as the lab answers."""
    seen: set[str] = set()
    while True:
        seen = look(state, seen)
        if math.isinf(state.clock.scale):
            await asyncio.sleep(0.02)
        else:
            await state.clock.sleep(max(TICK_SECONDS, 0.02 * state.clock.scale))


def look(state: PveState, seen: set[str]) -> set[str]:
    """The nodes that looked; everything due was started. `seen` are those that looked the last time."""
    online = {node.name for node in state.nodes.values() if node.online}
    if not quorate(state):
        return online & seen
    known: set[str] = set()
    for kind, name, job, start in all_jobs(state):
        for node in online if job.get("node") is None else online & {job["node"]}:
            key = f"{node}/{kind}/{name}"
            known.add(key)
            if due(state, key, job, first=node not in seen):
                runs(state)[key] |= {"time": state.clock.now(), "updated": None}
                runs(state)[key]["next"] = following(job, state.clock.now())
                start(state, node, name, job)
    for key in [key for key in runs(state) if key not in known and key.partition("/")[0] in online]:
        del runs(state)[key]
    return online


def all_jobs(state: PveState) -> Iterator[tuple[str, str, Section, Start]]:
    """Every job there is: its kind, id, what it says, and how it is started."""
    from .backup import jobs, run_job, syncs  # both areas know this module
    from .replication import jobs as replications
    from .replication import run_scheduled

    for name, job in list(jobs(state).items()):
        yield "vzdump", name, job, run_job
    for name, job in list(syncs(state).items()):
        yield "realm-sync", name, {"node": state.local_node, **job}, run_sync
    for name, job in list(replications(state).items()):
        guest = state.guests.get(job["guest"])
        if guest is not None:
            where = {"node": guest.node, "schedule": "*/15", "repeat-missed": 1, "enabled": int(not job.get("disable"))}
            yield "replication", name, {**where, **job}, run_scheduled


def run_sync(state: PveState, node: str, name: str, job: Section) -> None:
    """Start the synchronisation of a realm, as its job asks for it."""
    from .realms import begin_sync

    del name
    begin_sync(state, node, str(job.get("realm", "")), user="root@pam")


def runs(state: PveState) -> dict[str, Section]:
    """What each node keeps of each of its jobs, by node/kind/id."""
    found: dict[str, Section] = state.areas.setdefault("job_runs", {})
    return found


def following(job: Section, moment: float) -> float:
    """When the job comes round after that moment; never, when its schedule does not."""
    try:
        return float(next_run(str(job.get("schedule", "")), moment) or math.inf)
    except ValueError:
        return math.inf


def due(state: PveState, key: str, job: Section, *, first: bool) -> bool:
    """Whether the job's turn has come on a node; `first` is the node's first look since it came up."""
    now = state.clock.now()
    wanted = {"schedule": job.get("schedule"), "enabled": int(job.get("enabled", 1))}
    row = runs(state).get(key)
    if row is None or row["config"] != wanted or (first and not job.get("repeat-missed")):
        begun = None if row is None else row.get("time")
        row = runs(state)[key] = {"config": wanted, "time": begun, "updated": now, "next": following(job, now)}
    return bool(wanted["enabled"]) and now >= row["next"]


def last_run(state: PveState, node: str, kind: str, name: str) -> Any:
    """When the job ran last on the node; None before its first time."""
    return runs(state).get(f"{node}/{kind}/{name}", {}).get("time")
