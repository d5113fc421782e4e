"""Bad input of every kind gets a real server's answer: never a traceback, never a dead process."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import tickets
from runbook_lib.lab.proxmox.routing import ROUTER
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

SEED, ROUNDS = 20261123, 1500
NASTY = (
    "", " ", "\x00", "\x1f\x7f", "\r\nX-Injected: 1", "é\N{SNOWMAN}\U0001f600", "\ud800", "../../../../etc/shadow",
    "local:../../etc/passwd", "local:iso/../../../etc/shadow", "%2e%2e%2f", "a" * 70_000, "-1", "0", "1e400", "NaN",
    "9" * 400, "{}", "[]", "null", "true", "';drop table", "a=b,c", ",,,=", "=", ";", "\\", "(((((", "[n]", "..", ".",
)  # fmt: skip
ODD_JSON = (None, True, -1, 1e308, [], {}, [[]], {"a": {"b": []}}, [None], "x")

Send = Callable[..., Awaitable[tuple[int, str, bytes]]]


def with_server(work: Callable[[Send, aiohttp.ClientSession, Any], Awaitable[None]]) -> PveState:
    """The state of a lab after `work` was done with it, as root; the lab still answers then."""
    given = scenario.load("healthy").proxmox
    state = PveState.from_scenario(given, clock=Clock(float("inf")))
    now = state.clock.now()
    headers = {
        "Cookie": f"PVEAuthCookie={quote(tickets.ticket(state.secret, 'root@pam', now))}",
        "CSRFPreventionToken": tickets.csrf_token(state.secret, "root@pam", now),
    }

    async def run() -> None:
        async with (
            test_utils.TestServer(create_app(state)) as server,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            base = server.make_url("/")

            async def send(method: str, path: str, **options: Any) -> tuple[int, str, bytes]:
                options["headers"] = {**headers, **options.get("headers", {})}
                async with session.request(method, f"{base}api2/json{path}", **options) as response:
                    return response.status, response.reason or "", await response.read()

            await work(send, session, base)
            assert (await send("GET", "/version"))[0] == 200
            await state.tasks.idle()

    asyncio.run(run())
    return state


def test_a_seeded_storm_never_brings_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Random methods with nasty values in path, query, form and JSON; every answer is one a real server could give."""
    dice = random.Random(SEED)
    seen: set[int] = set()
    faults: list[str] = []

    def value() -> str:
        return dice.choice(NASTY)

    def segment(name: str) -> str:
        known = {"{node}": "pve1", "{vmid}": "101", "{storage}": "local", "{snapname}": "s1"}
        chosen = known.get(name, "x") if dice.random() < 0.6 else value()
        return quote(chosen.encode("utf-8", "replace")[:500], safe="") or "%20"

    async def storm(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        for _ in range(ROUNDS):
            route = dice.choice(ROUTER.routes)
            path = "/".join(segment(part) if part.startswith("{") else part for part in route.template.split("/"))
            names = [dice.choice([*route.params, "zz"]).replace("[n]", "0") for _ in range(dice.randint(0, 4))]
            options: dict[str, Any] = {}
            if route.method in ("GET", "DELETE"):
                options["params"] = {name: value().encode("utf-8", "replace")[:500].decode() for name in names}
            elif dice.random() < 0.5:
                options["json"] = {name: dice.choice(ODD_JSON) for name in names}
            else:
                text = "&".join(f"{name}={quote(value().encode('utf-8', 'replace'))}" for name in names)
                options |= {"data": text, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
            status, reason, _ = await send(route.method, path, **options)
            seen.add(status)
            if "internal error of the lab" in reason:
                faults.append(f"{route.method} {path[:200]} {str(options)[:300]}: {reason}")

    state = with_server(storm)
    dead = [task.exitstatus for task in state.tasks if "internal error of the lab" in (task.exitstatus or "")]
    assert not faults, "\n".join(faults[:20])
    assert not dead, dead[:10]
    assert seen <= {200, 400, 401, 403, 404, 500, 501, 595, 596}
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 500),
        (b'{"a": ' + b"[" * 5000, "application/json", 500),
        (b"[]", "application/json", 500),
        (b"\xff\xfe\x00", "application/json", 500),
        (b"<x/>", "application/xml", 506),
        (b"x" * (1 << 20), "application/x-www-form-urlencoded", 501),
        (b"description=" + b"x" * 500_000, "application/x-www-form-urlencoded", 400),
        (b"--b\r\nnonsense", "multipart/form-data; boundary=b", 506),
        (b"%zz=%&&&;;;=", "application/x-www-form-urlencoded", 400),
    ],
)
def test_odd_bodies_get_the_server_s_answer(body: bytes, kind: str, status: int) -> None:
    """Malformed, too large, of the wrong type: each has its code."""
    answers: list[int] = []

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        answer = await send("PUT", "/nodes/pve1/qemu/101/config", data=body, headers={"Content-Type": kind})
        answers.append(answer[0])

    with_server(work)
    assert answers == [status]


@pytest.mark.parametrize(
    "volume", ["../../etc/shadow", "iso/../../../etc/shadow", "/etc/shadow", "iso//x", "iso/..", "%00"]
)
def test_volumes_do_not_climb_out_of_their_storage(volume: str) -> None:
    """A volume id with a path in it finds nothing."""
    answers: list[tuple[int, str, bytes]] = []

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        path = f"/nodes/pve1/storage/local/content/{quote('local:' + volume, safe='')}"
        answers.extend([await send("GET", path), await send("DELETE", path)])

    with_server(work)
    assert answers[0][0] in (400, 500)
    assert all(b"root:" not in body for _, _, body in answers)


def test_half_requests_leave_the_server_alive() -> None:
    """Connections that end in the middle of a line, a header or a body."""

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        for text in (
            b"GE",
            b"GET / HTTP/1.1\r\nHo",
            b"POST /api2/json/x HTTP/1.1\r\nContent-Length: 99\r\n\r\nabc",
            b"\x16\x03\x01",
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", base.port)
            writer.write(text)
            await writer.drain()
            writer.close()

    with_server(work)


def test_a_json_answer_to_control_characters_is_still_json() -> None:
    """What was sent comes back escaped, and no header can be slipped in."""
    answers: list[tuple[int, str, bytes]] = []

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        answers.append(
            await send("POST", "/nodes/pve1/qemu", data={"vmid": "a\r\nX-Injected: 1\x00", "name": "\x1b[31m"})
        )

    with_server(work)
    status, _, body = answers[0]
    assert status == 400
    assert json.loads(body)["errors"]["vmid"].startswith("type check ('integer') failed")
