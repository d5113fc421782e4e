"""What nodes tell of their guests: rows made quickly are the rows made slowly, and a node that returns has booted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import outage, system, told
from runbook_lib.lab.proxmox.qemu.guest import GuestState, power_off, power_on
from runbook_lib.lab.proxmox.state import PveState

START = 1_790_000_000.0


def site(flavour: str = "9.2") -> PveState:
    """A healthy cluster at a stopped clock."""
    return PveState.from_scenario({**scenario.load("healthy").proxmox, "flavour": flavour}, clock=Clock(0, start=START))


def slowly(state: PveState) -> list[dict[str, Any]]:
    """Every guest's row, made from nothing."""
    ages = told.Ages(state)
    rows = [
        told.guest_row(state, guest, ages.of(guest)) | told.known_at_once(state, guest, None)
        for guest in state.guests.values()
    ]
    return [dict(json.loads(json.dumps(row))) for row in rows]


def quickly(state: PveState) -> list[dict[str, Any]]:
    """Every guest's row, as the list of resources makes it."""
    return [dict(json.loads(text)) for text in told.guest_texts(state, state.guests.values(), {})]


def restart(state: PveState, guest: GuestState) -> None:
    """Off and on again."""
    power_off(state, guest)
    power_on(state, guest)


def freeze(state: PveState, guest: GuestState) -> None:
    """A template out of it."""
    power_off(state, guest)
    guest.config["template"] = 1


CHANGES: dict[str, Callable[[PveState, GuestState], object]] = {
    "nothing": lambda state, guest: None,
    "a name": lambda state, guest: guest.config.update(name='quo"ted'),
    "cores and memory": lambda state, guest: guest.config.update(cores=3, memory=777),
    "tags": lambda state, guest: guest.config.update(tags="a;b"),
    "a lock": lambda state, guest: guest.config.update(lock="backup"),
    "a stop": power_off,
    "a restart": restart,
    "a pause": lambda state, guest: setattr(guest, "paused", True),
    "another node": lambda state, guest: setattr(guest, "node", "pve3"),
    "a template": freeze,
}


@pytest.mark.parametrize("flavour", ["8.4", "9.2"])
@pytest.mark.parametrize("change", CHANGES)
def test_rows_made_quickly_are_the_same(change: str, flavour: str) -> None:
    """After any change, and once the next broadcast has told of it; the first rows are there already by then."""
    state = site(flavour)
    quickly(state)
    CHANGES[change](state, state.guests[101])
    state.clock.advance(25)
    assert quickly(state) == slowly(state)
    state.clock.advance(1000)
    assert quickly(state) == slowly(state)


def test_a_stop_shows_with_the_next_broadcast() -> None:
    """Until then the list shows a running guest, as a real one does; a tag shows at once."""
    state = site()
    state.clock.advance(10 - (told.broadcast_at(state, state.nodes["pve1"]) - state.clock.now()) % 10)
    quickly(state)
    power_off(state, state.guests[101])
    state.guests[101].config["tags"] = "new"
    row = next(row for row in quickly(state) if row["vmid"] == 101)
    assert (row["status"], row["tags"]) == ("running", "new")
    state.clock.advance(10)
    assert next(row for row in quickly(state) if row["vmid"] == 101)["status"] == "stopped"


def test_one_broadcast_is_one_moment() -> None:
    """However often it is asked for while it lasts, to the last bit; the next is one interval later."""
    state = site()
    node = state.nodes["pve2"]
    seen = set()
    for _ in range(1000):
        state.clock.advance(0.0137)
        seen.add(told.broadcast_at(state, node))
    assert len(seen) in (2, 3)
    assert all(abs(moment - min(seen)) % 10 < 1e-3 for moment in seen)


def lost(state: PveState) -> None:
    """A node that is lost and given back."""
    outage.lose(state, "pve3")
    state.clock.advance(100)
    outage.give_back(state, "pve3")


def rebooted(state: PveState) -> None:
    """A node that was asked to reboot, and has."""
    plan = system.power(state)["pve3"] = {"command": "reboot", "down": 0.0}
    for _ in range(2):
        system.step(state, state.nodes["pve3"], plan)
        state.clock.advance(200)
    system.step(state, state.nodes["pve3"], plan)


@pytest.mark.parametrize("way", [lost, rebooted])
def test_a_node_that_returns_has_booted(way: Callable[[PveState], None]) -> None:
    """Whichever way it went, its guests are off, and only those start that start with it."""

    async def told_by() -> tuple[list[int], list[int]]:
        state = site()
        mine = [guest for guest in state.guests.values() if guest.node == "pve3" and guest.running]
        for guest in mine:
            guest.config["onboot"] = int(guest is mine[0])
        way(state)
        before = [guest.vmid for guest in mine if guest.running]
        for _ in range(40):
            state.clock.advance(5)
            await asyncio.sleep(0)
        await state.tasks.cancel()
        assert state.nodes["pve3"].booted > START
        return before, [mine.index(guest) for guest in mine if guest.running]

    assert asyncio.run(told_by()) == ([], [0])
