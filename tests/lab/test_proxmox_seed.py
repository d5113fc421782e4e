"""One seed, one run: the same calls at a stopped clock get the same answers, to the last byte."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.dice import Dice
from runbook_lib.lab.faults import Fault, Faults
from runbook_lib.lab.proxmox import kept
from runbook_lib.lab.proxmox.permissions import Token
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

START = 1_790_000_000.0
SECRET = "00000000-0000-4000-8000-000000000001"
DISK = {"scsi0": "local-lvm:4", "net0": "virtio,bridge=vmbr0", "scsihw": "virtio-scsi-single", "boot": "order=scsi0"}
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/version", {}),
    ("GET", "/cluster/resources", {}),
    ("POST", "/nodes/pve1/qemu/9000/clone", {"newid": 700, "name": "one", "full": 1}),
    ("POST", "/nodes/pve1/qemu", {"vmid": 701, "memory": 1024, "name": "two", **DISK}),
    ("GET", "/cluster/tasks", {}),
    ("ADVANCE", "600", {}),
    ("GET", "/nodes/pve1/qemu/700/config", {}),
    ("GET", "/nodes/pve1/qemu/701/config", {}),
    ("POST", "/nodes/pve1/qemu/700/status/start", {}),
    ("POST", "/nodes/pve1/qemu/701/snapshot", {"snapname": "before"}),
    ("ADVANCE", "60", {}),
    ("GET", "/nodes/pve1/qemu/700/status/current", {}),
    ("GET", "/nodes/pve1/qemu/700/agent/network-get-interfaces", {}),
    ("POST", "/nodes/pve1/vzdump", {"vmid": 701, "storage": "nas", "mode": "snapshot"}),
    ("ADVANCE", "3600", {}),
    ("GET", "/nodes/pve1/storage/nas/content", {}),
    ("DELETE", "/nodes/pve1/qemu/701?purge=1", {}),
    ("ADVANCE", "60", {}),
    ("POST", "/nodes/pve1/qemu", {"vmid": 701, **DISK}),
    ("ADVANCE", "60", {}),
    ("GET", "/nodes/pve1/qemu/701/config", {}),
    ("POST", "/cluster/sdn/lock", {}),
    ("DELETE", "/cluster/sdn/lock?force=1", {}),
    ("POST", "/cluster/backup", {"schedule": "daily", "storage": "nas", "vmid": "700"}),
    ("GET", "/cluster/backup", {}),
    ("GET", "/access/permissions", {}),
    ("GET", "/access/roles", {}),
    ("GET", "/access/acl", {}),
    ("GET", "/nodes", {}),
    ("GET", "/nodes/pve1/status", {}),
    ("GET", "/nodes/pve2/tasks", {}),
    ("GET", "/nodes/pve1/rrddata?timeframe=hour", {}),
    ("GET", "/nodes/pve1/qemu/700/rrddata?timeframe=hour", {}),
    ("GET", "/nodes/pve1/storage/local-lvm/rrddata?timeframe=day", {}),
    ("GET", "/nodes/pve1/network", {}),
    ("GET", "/nodes/pve1/apt/versions", {}),
    ("GET", "/nodes/pve1/disks/list", {}),
    ("GET", "/nodes/pve1/syslog", {}),
    ("GET", "/nodes/pve1/report", {}),
    ("GET", "/cluster/ha/status/current", {}),
    ("GET", "/cluster/status", {}),
    ("GET", "/cluster/log", {}),
    ("GET", "/cluster/tasks", {}),
    ("GET", "/cluster/resources", {}),
]
"""Reads of every kind and changes that need an identity, an address or a name; ADVANCE moves the lab's clock."""


def by_chance(seed: int) -> Faults:
    """A rule that hits about a third of the answers."""
    return Faults(Clock(0), [Fault(path="permissions|rrddata", status=503, probability=0.35)], seed=seed)


async def answers(seed: int, faults: Faults | None = None) -> list[str]:
    """What a lab of this seed says to each of the calls."""
    state = PveState.from_scenario(scenario.load("healthy").proxmox, clock=Clock(0, start=START), seed=seed)
    state.access.users["root@pam"].tokens["t"] = Token(SECRET, privsep=False)
    told: list[str] = []
    headers = {"Authorization": f"PVEAPIToken=root@pam!t={SECRET}"}
    middlewares = [faults.middleware("proxmox")] if faults else []
    async with (
        test_utils.TestServer(create_app(state, middlewares)) as server,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        for method, path, form in CALLS:
            if method == "ADVANCE":
                await passing(state, float(path))
                continue
            url = f"{server.make_url('').origin()}/api2/json{path}"
            async with session.request(method, url, data=form or None) as answer:
                told.append(f"{method} {path} {answer.status} {answer.reason} {await answer.text()}")
        await state.tasks.cancel()
    return told


async def passing(state: PveState, seconds: float) -> None:
    """Let the lab's time pass in steps, so that what sleeps may sleep again."""
    for _ in range(30):
        state.clock.advance(seconds / 30)
        for _ in range(5):
            await asyncio.sleep(0)


def apart(seed: int, hashes: int) -> list[str]:
    """The answers of a lab in a process of its own, in which words hash differently."""
    code = f"import asyncio, json, test_proxmox_seed as t; print(json.dumps(asyncio.run(t.answers({seed}))))"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONHASHSEED": str(hashes), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def first() -> list[str]:
    """The answers of a lab of the usual seed."""
    return asyncio.run(answers(1))


def test_every_call_of_the_list_does_something(first: list[str]) -> None:
    """A list of refusals would repeat as well."""
    assert not [told[:200] for told in first if " 200 " not in told[:120]]


@pytest.mark.parametrize("hashes", [1, 2])
def test_the_same_seed_gives_the_same_answers(first: list[str], hashes: int) -> None:
    """In another process too: every status, every reason, every byte; nothing is masked."""
    again = apart(1, hashes)
    assert [pair for pair in zip(first, again, strict=True) if pair[0] != pair[1]] == []


def test_another_seed_gives_other_answers(first: list[str]) -> None:
    """Identities, addresses and figures differ, and what is no chance does not."""
    other = asyncio.run(answers(2))
    differs = {CALLS_MADE[n] for n, pair in enumerate(zip(first, other, strict=True)) if pair[0] != pair[1]}
    chance = {
        "/cluster/resources",
        "/nodes/pve1/qemu/700/config",
        "/cluster/backup",
        "/cluster/sdn/lock",
        "/nodes/pve1/rrddata?timeframe=hour",
        "/nodes/pve1/qemu/700/rrddata?timeframe=hour",
    }
    assert chance <= differs
    assert not {"/version", "/access/roles", "/access/acl", "/nodes/pve1/network", "/cluster/status"} & differs


CALLS_MADE = [path for method, path, _ in CALLS if method != "ADVANCE"]


def test_faults_by_chance_repeat() -> None:
    """The same requests are hit in the second run, and others with another seed."""
    hit = [
        {n for n, told in enumerate(asyncio.run(answers(1, by_chance(seed)))) if " 503 " in told} for seed in (5, 5, 8)
    ]
    assert hit[0] == hit[1]
    assert hit[0] != hit[2]


def test_a_rule_has_dice_of_its_own() -> None:
    """What another rule is asked meanwhile does not change what it hits."""
    rule, other = Fault(path="/a", status=500, probability=0.5), Fault(path="/b", status=500, probability=0.5)
    alone, beside = Faults(Clock(0), [rule]), Faults(Clock(0), [other, rule])
    wanted = [alone.take("proxmox", "GET", "/a") is not None for _ in range(50)]
    found = []
    for _ in range(50):
        beside.take("proxmox", "GET", "/b")
        found.append(beside.take("proxmox", "GET", "/a") is not None)
    assert found == wanted
    assert {True, False} == set(found)


def test_dice_do_not_depend_on_what_else_is_thrown() -> None:
    """The second UUID of a name is the same, whoever threw in between, and is not the first."""
    dice, other = Dice(3), Dice(3)
    both = [dice.uuid("a"), dice.uuid("a")]
    assert [other.uuid("a"), other.uuid("b") and other.uuid("a")] == both
    assert both[0] != both[1]


def test_dice_go_on_after_a_restore() -> None:
    """What is made next gets the identity it would have got without the snapshot."""
    state = PveState.from_scenario(scenario.load("fresh-node").proxmox, clock=Clock(0, start=START), seed=9)
    state.dice.uuid("vm/100/smbios1")
    saved = json.loads(json.dumps(kept.taken(state)))
    assert kept.given_back(state, saved).dice.uuid("vm/100/smbios1") == state.dice.uuid("vm/100/smbios1")


def test_secrets_do_not_follow_the_seed() -> None:
    """Who knows the seed cannot sign a ticket: the lab's ports are open to everybody on the machine."""
    section = scenario.load("fresh-node").proxmox
    one, two = (PveState.from_scenario(section, clock=Clock(0, start=START), seed=1) for _ in range(2))
    assert one.secret != two.secret


def test_chance_has_one_source() -> None:
    """No area throws dice of its own; token values are secrets, and those of access alone are UUIDs."""
    package = Path(kept.__file__).parent
    own = re.compile(r"uuid\.uuid[14]|uuid[14]\(|^import random|^from random|os\.urandom", re.MULTILINE)
    found = {path.name for path in package.rglob("*.py") if own.search(path.read_text(encoding="utf-8"))}
    assert found == {"access.py"}
