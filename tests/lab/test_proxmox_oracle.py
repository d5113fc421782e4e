"""The emulated Proxmox VE against recordings of a real 8.4 server, call by call, in the order they were made."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest
from aiohttp import test_utils
from yarl import URL

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox.permissions import builtin_roles, hash_password
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

RECORDINGS = "proxmox/recordings-8.4.21.jsonl"

NOT_EMULATED: dict[str, str] = {}
"""Calls of areas that later work adds, by name, with the area. They are counted, not passed over in silence."""

DIFFERS: dict[str, str] = {
    "251 cluster-tasks": "the console task was still waiting in the recording; time does not wait here",
    "373 as-root-token-_nodes_pve1_tasks": "the same console task ended later in the recording",
    "376 as-root-token-_cluster_tasks": "the same console task ended later in the recording",
    "426 agent-fsinfo": "the recorded guest ran from memory and had no file system to tell of",
}
"""Calls whose answer is known to differ, by name, with what differs."""

AGENT_VM = {
    "vmid": "400",
    "name": "agentvm",
    "memory": "256",
    "agent": "1",
    "scsi0": "local:1",
    "net0": "virtio,bridge=vmbr0",
    "ostype": "l26",
    "serial0": "socket",
    "ipconfig0": "ip=10.9.0.5/24,gw=10.9.0.1",
}
"""The VM whose agent was recorded; what its image said of itself is taken from the recording."""

LEFT_OUT: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "60 vm-unknown-status": [("DELETE", "/nodes/pve1/qemu/191", {})],
    "231 delete": [("PUT", "/nodes/pve1/qemu/101/config", {"protection": "0"})],
    "406 snapshot-live": [("POST", "/nodes/pve1/qemu/102/status/start", {})],
    "421 agent-ping": [
        ("POST", "/nodes/pve1/qemu", AGENT_VM),
        ("POST", "/nodes/pve1/qemu/400/status/start", {}),
    ],
}
"""Calls the recordings lack, by the one before which they belong: later answers show that they were made."""

PASSWORDS = {"root@pam": "rootpass1", "alice@pve": "alicepw12"}

VOLATILE = {
    "cpu", "mem", "uptime", "disk", "diskread", "diskwrite", "netin", "netout", "loadavg", "wait", "idle", "used",
    "avail", "free", "total", "used_fraction", "maxcpu", "pid", "pstart", "starttime", "endtime", "upid", "digest",
    "vmgenid", "smbios1", "ctime", "snaptime", "ssl_fingerprint", "cpuinfo", "kversion", "current-kernel", "memory",
    "rootfs", "swap", "ksm", "value", "ticket", "CSRFPreventionToken", "meta", "runningmachine", "runningcpu",
    "running-machine", "running-qemu", "port", "cert", "password", "boot-info", "cgroup-mode",
    "statistics",
}  # fmt: skip
"""Fields that no two servers share; their presence and type are compared, not their value."""

UNORDERED = {"content", "privs", "groups"}
"""Comma separated text in no particular order."""

IDENTITY = (
    "upid",
    "volid",
    "vmid",
    "storage",
    "iface",
    "userid",
    "roleid",
    "tokenid",
    "key",
    "subdir",
    "realm",
    "poolid",
    "name",
    "id",
    "n",
    "node",
)


@dataclass
class Replay:
    """One pass over the recordings: what matched, and how the rest differed."""

    matched: list[str] = field(default_factory=list)
    different: dict[str, str] = field(default_factory=dict)


class Driver:
    """Sends recorded calls to a fresh lab, with this lab's own tickets, tokens and UPIDs in place of the recorded."""

    def __init__(self, state: PveState, base: URL, session: aiohttp.ClientSession) -> None:
        self.state, self.base, self.session = state, base, session
        self.tickets: dict[str, tuple[str, str]] = {}
        self.tokens: dict[str, str] = {}
        self.upids: dict[str, str] = {}
        self.pids: dict[str, str] = {}

    async def send(self, call: Mapping[str, Any]) -> tuple[int, str, bytes, str]:
        """Status, reason, body and content type of our answer."""
        headers = await self.headers(call)
        url = URL(f"{self.base}{self.path(call)}", encoded=True)
        data: Any = None
        if call["body"] == "<multipart>":
            data = self.multipart(call)
        elif call["content_type"]:
            headers["Content-Type"] = call["content_type"]
            body = call["body"]
            # a list is a repeated key; a text is sent as it was
            data = body if isinstance(body, str) else urlencode(body, doseq=True, quote_via=quote)
        async with self.session.request(call["method"], url, data=data, headers=headers) as response:
            body = await response.read()
            return response.status, response.reason or "", body, response.headers.get("Content-Type", "")

    async def make_up_for(self, method: str, path: str, form: Mapping[str, str]) -> None:
        """Send, as root, what the recordings lack."""
        ticket, csrf = await self.login("root@pam")
        headers = {"Cookie": f"PVEAuthCookie={quote(ticket)}", "CSRFPreventionToken": csrf}
        url = f"{self.base}/api2/json{path}"
        async with self.session.request(method, url, data=form or None, headers=headers) as response:
            assert response.status == 200, await response.text()

    def path(self, call: Mapping[str, Any]) -> str:
        path = call["path"]
        for recorded, ours in self.upids.items():
            path = path.replace(quote(recorded, safe=""), quote(ours, safe=""))
        path = quote(path, safe="/%:@!")
        query = {name: self.pids.get(value, value) if name == "pid" else value for name, value in call["query"].items()}
        return f"{path}?{urlencode(query, doseq=True)}" if query else path

    async def headers(self, call: Mapping[str, Any]) -> dict[str, str]:
        kind, _, who = (call["auth"] or "").partition(":")
        headers = {"Accept-Encoding": "identity"}
        if kind == "ticket":
            ticket, csrf = await self.login(who)
            if call["name"] == "version-bad-ticket":
                ticket = ticket[:-8] + "AAAAAAA="
            headers["Cookie"] = f"PVEAuthCookie={quote(ticket)}"
            if call["csrf"]:
                headers["CSRFPreventionToken"] = csrf if call["name"] != "csrf-wrong" else f"{csrf[:-4]}AAAA"
        elif kind == "token":
            secret = self.tokens.get(who, "00000000-0000-0000-0000-000000000000")
            headers["Authorization"] = f"PVEAPIToken={who}={secret}"
        elif kind == "header":
            headers["Authorization"] = who
        return headers

    async def login(self, user: str) -> tuple[str, str]:
        if user not in PASSWORDS:
            return "garbage", ""
        if user not in self.tickets:
            form = {"username": user, "password": PASSWORDS[user]}
            async with self.session.post(f"{self.base}/api2/json/access/ticket", data=form) as response:
                data = (await response.json(content_type=None))["data"]
                self.tickets[user] = data["ticket"], data["CSRFPreventionToken"]
        return self.tickets[user]

    def multipart(self, call: Mapping[str, Any]) -> aiohttp.FormData:
        name, image = call["name"], bytes(376832)
        form = aiohttp.FormData()
        form.add_field("content", "vztmpl" if name == "upload-wrong-content" else "iso")
        if name in ("upload-iso", "upload-iso-badsum"):
            right = hashlib.sha256(image).hexdigest()
            form.add_field("checksum", right if name == "upload-iso" else "0" * 64)
            form.add_field("checksum-algorithm", "sha256")
        filename = {
            "upload-iso-badname": "tiny.txt",
            "upload-wrong-content": "tiny.tar.gz",
            "upload-iso-badsum": "bad.iso",
        }
        form.add_field(
            "filename",
            image,
            filename=filename.get(name, "tiny.iso"),
            content_type="application/octet-stream",
        )
        return form

    def learn(self, call: Mapping[str, Any], ours: Any) -> None:
        """Remember which of our UPIDs and secrets stand for the recorded ones."""
        recorded = (call.get("json") or {}).get("data")
        data = ours.get("data") if isinstance(ours, dict) else None
        for theirs, mine in ((recorded, data), (_upid(recorded), _upid(data))):
            if isinstance(theirs, str) and theirs.startswith("UPID:") and isinstance(mine, str):
                self.upids[theirs] = mine
        if call["name"] == "agent-exec" and isinstance(data, dict):
            self.pids[str(recorded["pid"])] = str(data["pid"])
        if isinstance(data, dict) and "full-tokenid" in data:
            self.tokens[data["full-tokenid"]] = data["value"]


def _upid(data: Any) -> Any:
    return data.get("upid") if isinstance(data, dict) else None


def difference(call: Mapping[str, Any], answer: tuple[int, str, bytes, str], driver: Driver) -> str:
    """How our answer differs from the recorded one; empty when it does not."""
    status, reason, body, content_type = answer
    if status != call["status"]:
        return f"status {status} {reason}, recorded {call['status']} {call['reason']}"
    if neutral(reason, driver) != neutral(call["reason"], driver):
        return f"reason {reason!r}, recorded {call['reason']!r}"
    if bool(call["empty_body"]) != (not body):
        return f"body {body[:80]!r}, recorded empty: {call['empty_body']}"
    if call["response_type"] and content_type != call["response_type"]:
        return f"content type {content_type}, recorded {call['response_type']}"
    if call.get("json") is None:
        return (
            "" if call["name"] == "html-version" or body.decode() == (call.get("text") or "") else f"text {body[:80]!r}"
        )
    return compare(json.loads(body), call["json"], "", driver)


def neutral(value: str, driver: Driver) -> str:
    """A text without what no two servers share."""
    for recorded, ours in driver.upids.items():
        value = value.replace(recorded, "<upid>").replace(ours, "<upid>")
    value = re.sub(r"UPID:\S+:", "<upid>", value)
    value = re.sub(r"BC:24:11(:[0-9A-F]{2}){3}", "<mac>", value, flags=re.I)
    value = re.sub(r"\bfe80::be24:11ff:fe[0-9a-f:]+", "<from mac>", value)
    value = re.sub(r"\bfe80::[0-9a-f:]+", "<link-local>", value)
    value = re.sub(r"\$5\$\S+", "<crypt>", value)
    value = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", "<time>", value)
    # the recorded server had its upload folder moved
    value = re.sub(r"/var/(tmp/pve|x)upload-", "/var/tmp/pveupload-", value)
    value = re.sub(r"\bin \d+s\b", "in <n>s", value)
    value = re.sub(r"saved [\d.]+ .?i?B", "saved <n>", value)
    value = re.sub(r"\b[0-9a-f]{32,}\b|(?<=-)[0-9a-f]{32}\b", "<hash>", value)
    return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>", value)


def compare(ours: Any, theirs: Any, where: str, driver: Driver) -> str:
    """The first difference of two JSON values, with the path to it."""
    key = where.rpartition(".")[2]
    if key in VOLATILE:
        same = _kind(ours) == _kind(theirs)
        return "" if same else f"{where}: {_kind(ours)}, recorded {_kind(theirs)}"
    if isinstance(theirs, dict) and isinstance(ours, dict):
        missing, more = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
        if missing or more:
            return f"{where}: lacks {missing}, has more {more}"
        for name in theirs:
            if found := compare(ours[name], theirs[name], f"{where}.{name}", driver):
                return found
        return ""
    if isinstance(theirs, list) and isinstance(ours, list):
        ours, theirs = _told(ours), _told(theirs)
        if len(ours) != len(theirs):
            return f"{where}: {len(ours)} items, recorded {len(theirs)}: {ours!r:.300}"
        for one, other in zip(sorted(ours, key=_identity), sorted(theirs, key=_identity), strict=True):
            if found := compare(one, other, f"{where}[]", driver):
                return found
        return ""
    if isinstance(theirs, str) and isinstance(ours, str):
        mine, recorded = neutral(ours, driver), neutral(theirs, driver)
        if key in UNORDERED:
            mine, recorded = (",".join(sorted(text.split(","))) for text in (mine, recorded))
        return "" if mine == recorded else f"{where}: {mine!r}, recorded {recorded!r}"
    return "" if ours == theirs and type(ours) is type(theirs) else f"{where}: {ours!r}, recorded {theirs!r}"


NOISE = re.compile(r"kvm: warning: |QEMU Guest Agent is not running|[\d.]+ .?i?B in \d+s$|(transferred|drive-\w+:) ")
"""Lines of a task's log that come from the machine it ran on, or tell progress."""


def _told(rows: list[Any]) -> list[Any]:
    """The rows; those of a task's log without noise, and numbered anew."""
    if not rows or not all(isinstance(row, dict) and row.keys() == {"n", "t"} for row in rows):
        return rows
    lines = [row["t"] for row in sorted(rows, key=lambda row: row["n"]) if not NOISE.match(row["t"])]
    return [{"n": number, "t": line} for number, line in enumerate(lines, 1)]


def _kind(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _identity(row: Any) -> str:
    if isinstance(row, dict):
        return "|".join(f"{row[name]:>12}" for name in IDENTITY if name in row and name != "upid")
    return str(row)


async def replay(calls: list[dict[str, Any]], spool: Path) -> Replay:
    """What became of each call, by `n name`."""
    state = PveState.from_scenario(scenario.load("fresh-node").proxmox, clock=Clock(float("inf")), spool=spool)
    state.access.users["root@pam"].password = hash_password(PASSWORDS["root@pam"])
    result = Replay()
    async with (
        test_utils.TestServer(create_app(state)) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        driver = Driver(state, server.make_url("").origin(), session)
        for call in calls:
            label = f"{call['n']} {call['name']}"
            for missing in LEFT_OUT.get(label, ()):
                await driver.make_up_for(*missing)
                await state.tasks.idle()
                if missing[2] is AGENT_VM:
                    # its image held a system with a running agent
                    told = next(row for row in calls if row["name"] == "agent-osinfo")
                    state.guests[400].bootable, state.guests[400].os = True, told["json"]["data"]["result"]
            if label == "421 agent-ping":
                state.clock.advance(60)
            answer = await driver.send(call)
            await state.tasks.idle()
            ours = json.loads(answer[2]) if answer[2].startswith(b"{") else None
            driver.learn(call, ours)
            if found := difference(call, answer, driver):
                result.different[label] = found
            else:
                result.matched.append(label)
        await state.tasks.cancel()
    return result


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; some hold characters that `splitlines` would split at."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def outcome(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """The recordings, replayed once."""
    return asyncio.run(replay(rows_of(oracle / RECORDINGS), tmp_path_factory.mktemp("spool")))


def test_every_recorded_call_is_answered_like_the_real_server(outcome: Replay) -> None:
    """Status, reason, errors and the shape of the answer are the real server's, but for the listed calls."""
    known = NOT_EMULATED.keys() | DIFFERS.keys()
    surprises = {call: why for call, why in outcome.different.items() if call not in known}
    assert not surprises, "\n".join(f"{call}: {why}" for call, why in surprises.items())


def test_the_list_of_differences_is_current(outcome: Replay) -> None:
    """A call that matches by now is taken off the list."""
    assert not (NOT_EMULATED.keys() | DIFFERS.keys()) & set(outcome.matched)


@pytest.mark.parametrize(("flavour", "sweep"), [("8.4", "8.4.21"), ("9.2", "9.2.11-cluster")])
def test_builtin_roles_are_the_real_ones(oracle: Path, flavour: str, sweep: str) -> None:
    """Each flavour's roles hold exactly the privileges that a real server lists."""
    rows = rows_of(oracle / f"proxmox/sweep-{sweep}.jsonl")
    listed = next(row["json"]["data"] for row in rows if row["template"] == "/access/roles")
    real = {row["roleid"]: frozenset(filter(None, row["privs"].split(","))) for row in listed if row["special"]}
    assert builtin_roles(flavour) == real
