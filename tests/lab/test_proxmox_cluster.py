"""Two emulated 9.2 nodes against recordings of two real ones: proxied calls, migration, loss of a node and quorum."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox.permissions import hash_password
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

sys.path.insert(0, str(Path(__file__).parent))
from test_proxmox_oracle import PASSWORDS, Driver, Replay, difference, rows_of  # lies beside this file

SITE: dict[str, Any] = {
    "flavour": "9.2",
    "cluster_name": "labcluster",
    "hide_lab_token": True,
    "access": {"users": {"root@pam": {}}},
    "nodes": {
        name: {
            "ip": address,
            "cpus": 2,
            "memory": "25276063744",
            "interfaces": {
                "eth0": {"type": "eth"},
                "vmbr0": {
                    "type": "bridge",
                    "cidr": f"{address}/24",
                    "bridge_ports": "eth0",
                    "autostart": 1,
                    "gateway": "198.51.100.1",
                },
            },
        }
        for name, address in (("n1", "198.51.100.21"), ("n2", "198.51.100.22"))
    },
    "storages": {
        "local": {
            "type": "dir",
            "content": ["iso", "rootdir", "images", "vztmpl", "backup", "snippets"],
            "options": {"path": "/var/lib/vz", "prune-backups": "keep-all=1"},
            "total": "270553174016",
            "used": "36G",
        }
    },
}

HAPPENS: dict[int, tuple[bool, str]] = {
    28: (False, "Connection refused"),
    38: (False, "No route to host"),
    40: (True, ""),
}
"""Before which call n2 goes or comes, and what a request to it hears."""

DIFFERS: dict[str, str] = {
    "19 migrate-offline-task-log": "the programs that copy a disk say more than the lab repeats",
    "23 migrate-online-task-log": "the programs that copy a disk and memory say more than the lab repeats",
}
"""Calls whose answer is known to differ, by name, with what differs."""


async def replay(calls: list[dict[str, Any]], spool: Path) -> Replay:
    """What became of each call after the join, by `n name`."""
    state = PveState.from_scenario(SITE, clock=Clock(float("inf")), spool=spool)
    state.access.users["root@pam"].password = hash_password(PASSWORDS["root@pam"])
    result = Replay()
    async with (
        test_utils.TestServer(create_app(state)) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        driver = Driver(state, server.make_url("").origin(), session)
        for call in calls:
            if call["n"] in HAPPENS:
                node = state.nodes["n2"]
                node.online, node.unreachable = HAPPENS[call["n"]]
                node.lost_at = state.clock.now()
            answer = await driver.send(call)
            await state.tasks.idle()
            driver.learn(call, json.loads(answer[2]) if answer[2].startswith(b"{") else None)
            label = f"{call['n']} {call['name']}"
            if found := difference(call, answer, driver):
                result.different[label] = found
            else:
                result.matched.append(label)
        await state.tasks.cancel()
    return result


@pytest.fixture(scope="module")
def outcome(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """The recordings, replayed once; the join itself is the scenario's."""
    calls = rows_of(oracle / "proxmox/recordings-9.2.11-cluster.jsonl")
    return asyncio.run(replay([call for call in calls if call["n"] > 2], tmp_path_factory.mktemp("spool")))


def test_a_cluster_answers_like_the_real_one(outcome: Replay) -> None:
    """Every recorded call is answered with the same status, reason, errors and shape, but for the listed ones."""
    surprises = {call: why for call, why in outcome.different.items() if call not in DIFFERS}
    assert not surprises, "\n".join(f"{call}: {why}" for call, why in surprises.items())


def test_the_list_of_differences_is_current(outcome: Replay) -> None:
    """A call that matches by now is taken off the list."""
    assert not DIFFERS.keys() & set(outcome.matched)
