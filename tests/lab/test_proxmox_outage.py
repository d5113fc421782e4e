"""What a node takes with it when it dies: its tasks end as a real node finds them at its return."""

from __future__ import annotations

import asyncio

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import outage
from runbook_lib.lab.proxmox.routing import Call, PveError
from runbook_lib.lab.proxmox.server import _reach
from runbook_lib.lab.proxmox.state import PveState
from runbook_lib.lab.proxmox.worker import TaskContext


def site() -> PveState:
    """The healthy cluster, with a clock that nobody moves."""
    return PveState.from_scenario(scenario.load("healthy").proxmox, clock=Clock(0))


async def copying(task: TaskContext) -> None:
    """Work that says that it began and does not end."""
    task.log("transferred 1 of 8 GiB")
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("began", "status"), [(True, "unexpected status"), (False, "unable to read tail (got 0 bytes)")]
)
def test_a_task_ends_with_its_node(began: bool, status: str) -> None:
    """Its log stops in the middle, and how it ended is read from the last line there is."""

    async def life() -> tuple[PveState, str]:
        state = site()
        upid = state.tasks.start("qmclone", "101", copying, node="pve3", user="root@pam")
        if began:
            await asyncio.sleep(0)
        outage.lose(state, "pve3")
        await state.tasks.idle()
        outage.give_back(state, "pve3")
        return state, upid

    state, upid = asyncio.run(life())
    task = state.tasks.get(upid)
    assert task is not None and (task.running, task.exitstatus) == (False, status)
    assert task.log == (["transferred 1 of 8 GiB"] if began else [])


def test_a_task_of_a_lost_node_cannot_be_read() -> None:
    """Its node would have to answer."""
    state = site()
    call = Call(state, "GET", "/nodes/pve3/tasks/x/status", {"node": "pve3"})
    outage.lose(state, "pve3")
    with pytest.raises(PveError) as refused:
        _reach(state, call)
    assert refused.value.status == 595


def test_an_interrupted_task_ends_even_before_its_first_step() -> None:
    """A task that is stopped at once was interrupted, and does not run for ever."""

    async def life() -> str | None:
        state = site()
        upid = state.tasks.start("qmclone", "101", copying, node="pve1", user="root@pam")
        state.tasks.stop(upid)
        await state.tasks.idle()
        await asyncio.sleep(0)
        task = state.tasks.get(upid)
        return task.exitstatus if task else None

    assert asyncio.run(life()) == "received interrupt"
