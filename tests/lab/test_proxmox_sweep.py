"""Every emulated GET against one real answer of it: the same refusals, the same keys, the same types."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox.permissions import hash_password
from runbook_lib.lab.proxmox.routing import ROUTER
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

sys.path.insert(0, str(Path(__file__).parent))
from test_proxmox_cluster import SITE
from test_proxmox_oracle import LEFT_OUT, PASSWORDS, Driver, rows_of  # lie beside this file

NO_ACME = "the recorded host had no ACME client; the lab's hosts have one and reach no directory"
NO_ZFS = "the recorded host had no ZFS tools; the lab's hosts have them and no pool"
DIFFERS: dict[str, dict[str, str]] = {
    "8.4": {
        "/cluster/acme/meta": NO_ACME,
        "/cluster/acme/tos": NO_ACME,
        "/nodes/{node}/disks/zfs": NO_ZFS,
        "/nodes/{node}/scan/zfs": NO_ZFS,
    },
    "9.2": {
        "/cluster/acme/meta": NO_ACME,
        "/cluster/acme/tos": NO_ACME,
        "/nodes/{node}/disks/zfs": NO_ZFS,
        "/nodes/{node}/scan/zfs": NO_ZFS,
        "/nodes/{node}/subscription": "the recorded host had no server id",
        "/nodes/{node}/time": "the recorded host had no timedatectl",
    },
}
"""GETs whose answer is known to differ in shape, by template and query, with the reason."""

OPTIONAL: dict[str, set[str]] = {
    "/access/users": {"expire"},
    "/access/users/{userid}": {"expire"},
    "/nodes/{node}/apt/versions": {"RunningKernel", "ManagerVersion"},
    "/nodes/{node}/status": {"secureboot"},
}
"""Keys that a real server gives only in some cases, which the recorded one was not in, by template."""


def emulated(template: str, path: str) -> bool:
    """Whether the lab has the endpoint that was asked."""
    del template
    return ROUTER.find("GET", path) is not None


def kind(value: Any) -> str:
    """The type of a JSON value; whole and broken numbers count as one."""
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__


def mismatch(ours: Any, theirs: Any, extra: set[str], where: str = "data") -> str:
    """How the shape of our value differs from the recorded one; empty when it does not."""
    if kind(ours) != kind(theirs):
        return f"{where}: {kind(ours)}, recorded {kind(theirs)}"
    if isinstance(theirs, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            if key not in ours:
                return f"{where}: lacks {key}"
            if key not in theirs:
                if key not in extra:
                    return f"{where}: has {key}, which the recorded one has not"
                continue
            if found := mismatch(ours[key], theirs[key], extra, f"{where}.{key}"):
                return found
    if isinstance(theirs, list) and theirs and ours and isinstance(theirs[0], dict):
        always = set.intersection(*(set(row) for row in theirs))
        ever = set.union(*(set(row) for row in theirs))
        samples = {key: row[key] for row in theirs for key in row}
        for row in ours:
            if lacking := always - row.keys():
                return f"{where}[]: lacks {sorted(lacking)}"
            if more := row.keys() - ever - extra:
                return f"{where}[]: has {sorted(more)}, which the recorded one has not"
            for key in row.keys() & samples.keys():
                if key == "value" or None in (row[key], samples[key]):
                    continue  # a config's values are of any type
                if kind(row[key]) != kind(samples[key]):
                    return f"{where}[].{key}: {kind(row[key])}, recorded {kind(samples[key])}"
    return ""


def label(row: Mapping[str, Any]) -> str:
    """How a question is named here."""
    query = "&".join(f"{key}={value}" for key, value in (row["query"] or {}).items())
    return f"{row['template']}?{query}" if query else row["template"]


async def used_8(oracle: Path, driver: Driver) -> None:
    """Bring a fresh 8.4 node to where the recorded one was, by the calls that changed it."""
    for call in rows_of(oracle / "proxmox/recordings-8.4.21.jsonl"):
        name = f"{call['n']} {call['name']}"
        if name == "421 agent-ping":
            break
        if name != "60 vm-unknown-status":
            for missing in LEFT_OUT.get(name, ()):
                await driver.make_up_for(*missing)
                await driver.state.tasks.idle()
        answer = await driver.send(call)
        await driver.state.tasks.idle()
        driver.learn(call, json.loads(answer[2]) if answer[2].startswith(b"{") else None)
    await driver.make_up_for("POST", "/nodes/pve1/qemu/102/status/stop", {})
    await driver.state.tasks.idle()


async def used_9(oracle: Path, driver: Driver) -> None:
    """Bring two fresh 9.2 nodes to where the recorded ones were: a VM on the second, a few tasks on the first."""
    del oracle
    disk = {"scsi0": "local:1,format=qcow2", "net0": "virtio,bridge=vmbr0"}
    await driver.make_up_for("POST", "/nodes/n1/qemu", {"vmid": "100", "name": "on-n2", "memory": "64", **disk})
    await driver.state.tasks.idle()
    await driver.make_up_for("POST", "/nodes/n1/qemu/100/migrate", {"target": "n2"})
    await driver.state.tasks.idle()


async def sweep(oracle: Path, flavour: str, spool: Path) -> dict[str, str]:
    """What is wrong with each GET the lab emulates, by name; an empty text where nothing is."""
    given = scenario.load("fresh-node").proxmox if flavour == "8.4" else SITE
    state = PveState.from_scenario(given, clock=Clock(float("inf")), spool=spool)
    state.access.users["root@pam"].password = hash_password(PASSWORDS["root@pam"])
    file = "sweep-8.4.21.jsonl" if flavour == "8.4" else "sweep-9.2.11-cluster.jsonl"
    found: dict[str, str] = {}
    async with (
        test_utils.TestServer(create_app(state)) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        driver = Driver(state, server.make_url("").origin(), session)
        await (used_8 if flavour == "8.4" else used_9)(oracle, driver)
        last = next(iter(reversed([t for t in state.tasks if t.node == state.local_node])))
        for row in rows_of(oracle / "proxmox" / file):
            path = last_task(row["path"], last.upid)
            if not emulated(row["template"], path):
                continue
            call = {"auth": "ticket:root@pam", "csrf": False, "method": "GET", "path": f"/api2/json{path}"}
            status, reason, body, _ = await driver.send(
                {**call, "query": row["query"], "content_type": None, "body": None, "name": ""}
            )
            found[label(row)] = judged(row, status, reason, body)
    return found


def last_task(path: str, upid: str) -> str:
    """The path with a task of ours in place of the recorded one."""
    head, slash, rest = path.partition("/UPID")
    return f"{head}/{upid}{rest.partition('/')[1]}{rest.partition('/')[2]}" if slash else path


def judged(row: Mapping[str, Any], status: int, reason: str, body: bytes) -> str:
    """How our answer differs from the recorded one."""
    if (status, reason) != (row["status"], row["reason"]):
        return f"{status} {reason}, recorded {row['status']} {row['reason']}"
    theirs = row.get("json")
    if theirs is None or "too_long" in theirs:
        return ""
    ours = json.loads(body)
    if status != 200:
        same = ours.get("errors") == theirs.get("errors")
        return "" if same else f"errors {ours.get('errors')}, recorded {theirs.get('errors')}"
    return mismatch(ours["data"], theirs["data"], OPTIONAL.get(row["template"], set()))


@pytest.fixture(scope="module", params=["8.4", "9.2"])
def swept(request: pytest.FixtureRequest, oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One flavour and what its sweep found."""
    return request.param, asyncio.run(sweep(oracle, request.param, tmp_path_factory.mktemp("spool")))


def test_every_emulated_get_has_the_shape_of_a_real_answer(swept: tuple[str, dict[str, str]]) -> None:
    """Refusals are the real server's to the letter; rows carry the same keys with the same types."""
    flavour, found = swept
    wrong = {name: why for name, why in found.items() if why and name not in DIFFERS[flavour]}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())


def test_the_sweep_meets_most_of_what_the_runbook_reads(swept: tuple[str, dict[str, str]]) -> None:
    """The comparison is not empty, and a GET that matches by now is off the list of differences."""
    flavour, found = swept
    assert len(found) > 90
    assert not [name for name in DIFFERS[flavour] if not found.get(name)]
