"""Scheduled jobs: what the nodes' schedulers start when their lab's clock reaches a job's time."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import scheduler
from runbook_lib.lab.proxmox.backup import analyze, jobs
from runbook_lib.lab.proxmox.calendar import next_run
from runbook_lib.lab.proxmox.replication import schedule_now
from runbook_lib.lab.proxmox.routing import AuthId, Call, PveError
from runbook_lib.lab.proxmox.state import PveState

NIGHTLY = {"all": 1, "storage": "nas", "schedule": "01:00", "compress": "zstd"}


def site(**backup_jobs: Mapping[str, Any]) -> PveState:
    """The healthy cluster with these backup jobs alone, at a moment that nothing passes but by hand."""
    given = {**scenario.load("healthy").proxmox, "backup_jobs": backup_jobs}
    return PveState.from_scenario(given, clock=Clock(float("inf")))


def until(state: PveState, schedule: str) -> float:
    """Seconds until the schedule comes round."""
    return (next_run(schedule, state.clock.now()) or 0) - state.clock.now() + 1


def backups(state: PveState) -> list[Any]:
    """The backup tasks of root's scheduler."""
    return [task for task in state.tasks if task.type == "vzdump" and task.starttime > state.clock.now() - 3600]


async def passed(state: PveState, seconds: float, seen: set[str] | None = None) -> set[str]:
    """The nodes that looked, before and after that many seconds, once all they started has ended."""
    seen = scheduler.look(state, set(state.nodes) if seen is None else seen)
    state.clock.advance(seconds)
    seen = scheduler.look(state, seen)
    await state.tasks.idle()
    return seen


@pytest.mark.parametrize("schedule", ["01:00", "*/15", "sat 02:00", "mon..fri 22:30", "*-*-1 00:00"])
def test_a_backup_job_starts_on_every_node_at_its_time(schedule: str) -> None:
    """Each node writes backups of its own guests, as root, in a task of its own."""
    state = site(nightly={**NIGHTLY, "schedule": schedule})
    asyncio.run(passed(state, until(state, schedule)))
    assert {(task.node, task.user, task.exitstatus) for task in backups(state)} == {
        (node, "root@pam", "OK") for node in state.nodes
    }


def test_nothing_starts_before_its_time() -> None:
    """A minute early is early."""
    state = site(nightly=NIGHTLY)
    asyncio.run(passed(state, until(state, "01:00") - 60))
    assert not backups(state)


@pytest.mark.parametrize("job", [{"enabled": 0}, {"node": "pve2"}, {"all": 0, "vmid": "101"}])
def test_a_job_runs_only_where_it_should(job: dict[str, Any]) -> None:
    """A disabled one nowhere, one of a node there, one of a single guest where that guest is."""
    state = site(nightly={**NIGHTLY, **job})
    asyncio.run(passed(state, until(state, "01:00")))
    assert [task.node for task in backups(state)] == ([] if "enabled" in job else [job.get("node", "pve1")])


def test_a_long_jump_runs_a_job_once() -> None:
    """Whoever skips a week finds one backup, not seven: the next time follows from the last run."""
    state = site(nightly={**NIGHTLY, "all": 0, "vmid": "101"})
    asyncio.run(passed(state, 7 * 86400))
    assert len(backups(state)) == 1


def test_the_runs_of_a_job_keep_to_its_retention() -> None:
    """After four nights and keep-last=2 two backups are left."""
    state = site(nightly={**NIGHTLY, "all": 0, "vmid": "101", "prune-backups": "keep-last=2"})

    async def nights() -> None:
        for _ in range(4):
            await passed(state, until(state, "01:00"))

    asyncio.run(nights())
    assert len([v for v in state.volumes.values() if v.content == "backup" and v.vmid == 101]) == 2


@pytest.mark.parametrize("repeat", [0, 1])
def test_what_a_node_missed_runs_at_its_return_only_when_asked(repeat: int) -> None:
    """`repeat-missed` makes up for a night in which the node was down."""
    state = site(nightly={**NIGHTLY, "all": 0, "vmid": "102", "repeat-missed": repeat})

    async def away_and_back() -> None:
        seen = scheduler.look(state, set(state.nodes))
        state.nodes["pve2"].online = False
        seen = await passed(state, until(state, "01:00"), seen)
        state.nodes["pve2"].online = True
        await passed(state, 60, seen)

    asyncio.run(away_and_back())
    assert len(backups(state)) == repeat


def test_a_new_schedule_counts_from_now() -> None:
    """A job moved to an earlier hour of the day does not start for the hour that has passed."""
    state = site(nightly=NIGHTLY)

    async def changed() -> None:
        await passed(state, 60)
        hour = dt.datetime.fromtimestamp(state.clock.now() - 7200, dt.UTC)
        jobs(state)["nightly"]["schedule"] = f"{hour:%H}:00"
        await passed(state, 60)

    asyncio.run(changed())
    assert not backups(state)


def test_the_analysis_of_a_schedule_names_the_time_the_job_starts() -> None:
    """schedule-analyze, next-run and the scheduler agree."""
    state = site(nightly={**NIGHTLY, "schedule": "sun 03:30"})
    call = Call(state, "GET", "/", {}, params={"schedule": "sun 03:30", "iterations": 1})
    (row,) = analyze(call)
    scheduler.look(state, set())
    assert scheduler.runs(state)["pve1/vzdump/nightly"]["next"] == row["timestamp"]


@pytest.mark.parametrize("starttime", [0, 253_402_300_799, 10**14, 67_768_036_191_600_000])
def test_a_schedule_is_analysed_from_any_year(starttime: int) -> None:
    """Far years have the weekdays of near ones, and are written with all their digits."""
    call = Call(site(), "GET", "/", {}, params={"schedule": "sun 03:30", "iterations": 2, "starttime": starttime})
    first, second = analyze(call)
    assert starttime < first["timestamp"] <= starttime + 7 * 86400
    assert second["timestamp"] - first["timestamp"] == 7 * 86400
    assert first["utc"].startswith("Sun ") and first["utc"].endswith(" 03:30:00 UTC")


def test_a_year_that_no_library_holds_is_refused() -> None:
    """500 with the library's complaint, and no traceback."""
    call = Call(site(), "GET", "/", {}, params={"schedule": "sun 03:30", "starttime": 10**18})
    with pytest.raises(PveError, match="libc::localtime failed for '1000000000000000000'"):
        analyze(call)


def test_a_replication_run_makes_no_task() -> None:
    """What ran is seen in the job's status alone."""
    given = {**scenario.load("healthy").proxmox, "replication": {"101-0": {"target": "pve2"}}}
    state = PveState.from_scenario(given, clock=Clock(float("inf")))
    before = len(state.tasks)
    call = Call(state, "POST", "/", {}, AuthId("root@pam"), params={"id": "101-0", "node": "pve1"})
    schedule_now(call)
    assert len(state.tasks) == before and state.areas["replication_runs"]["101-0"]["last_sync"]


def test_replication_runs_on_schedule_and_counts_its_failures() -> None:
    """A run leaves when it was; a target that is away leaves an error and a count."""
    given = scenario.load("healthy").proxmox
    given = {**given, "replication": {"101-0": {"target": "pve2", "schedule": "*/15"}}}
    state = PveState.from_scenario(given, clock=Clock(float("inf")))

    async def quarters() -> None:
        await passed(state, 16 * 60)
        state.nodes["pve2"].online = False
        await passed(state, 16 * 60)
        await passed(state, 16 * 60)

    asyncio.run(quarters())
    row = state.areas["replication_runs"]["101-0"]
    assert row["fail_count"] == 2 and "BatchMode=yes" in row["error"] and row["last_sync"] < row["last_try"]


def test_a_node_without_quorum_starts_nothing() -> None:
    """Without a majority no job begins."""
    state = site(nightly=NIGHTLY)

    async def alone() -> None:
        scheduler.look(state, set(state.nodes))
        for name in ("pve2", "pve3"):
            state.nodes[name].online = False
        await passed(state, until(state, "01:00"))

    asyncio.run(alone())
    assert not backups(state)
