"""Consoles: tickets that fit one user and one place, and a websocket that answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import tickets
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState


class Site:
    """The healthy cluster at a standstill, asked by users that are logged in."""

    def __init__(self, state: PveState, base: str, session: aiohttp.ClientSession) -> None:
        self.state, self.base, self.session = state, base, session

    def headers(self, user: str) -> dict[str, str]:
        """What a browser of that user sends."""
        now = self.state.clock.now()
        return {
            "Cookie": f"PVEAuthCookie={quote(tickets.ticket(self.state.secret, user, now))}",
            "CSRFPreventionToken": tickets.csrf_token(self.state.secret, user, now),
        }

    async def post(self, where: str, user: str = "root@pam", **form: str) -> tuple[int, str, Any]:
        """Status, reason and data of an answer."""
        url = f"{self.base}api2/json{where}"
        async with self.session.post(url, headers=self.headers(user), data=form) as answer:
            return answer.status, str(answer.reason), (await answer.json())["data"]

    async def socket(self, path: str, console: dict[str, Any], user: str = "root@pam") -> Any:
        """The websocket of a console."""
        query = {"port": str(console["port"]), "vncticket": console["ticket"]}
        url = f"{self.base}api2/json{path}/vncwebsocket"
        return await self.session.ws_connect(url, headers=self.headers(user), params=query, protocols=("binary",))


def on_site(story: Callable[[Site], Awaitable[Any]]) -> Any:
    """What the story returns."""

    async def told() -> Any:
        given = dict(scenario.load("healthy").proxmox)
        users = {**given.get("access", {}).get("users", {}), "eve@pve": {"password": "eve-pass-1"}}
        given["access"] = {**given.get("access", {}), "users": users}
        state = PveState.from_scenario(given, clock=Clock(0))
        state.auth_delay_seconds = 0
        async with (
            test_utils.TestServer(create_app(state)) as server,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            try:
                return await story(Site(state, str(server.make_url("/")), session))
            finally:
                await state.tasks.cancel()

    return asyncio.run(told())


@pytest.mark.parametrize("path", ["/nodes/pve1/termproxy", "/nodes/pve1/vncshell", "/nodes/pve1/qemu/101/vncproxy"])
def test_a_console_has_a_port_a_ticket_and_a_task(path: str) -> None:
    """The next one gets another port while the first one waits."""

    async def story(site: Site) -> Any:
        return (await site.post(path))[2], (await site.post(path))[2]

    first, second = on_site(story)
    assert int(first["port"]) == 5900 and int(second["port"]) == 5901
    assert "PVEVNC:" in first["ticket"] and first["upid"].startswith("UPID:pve1:") and first["user"] == "root@pam"


def test_the_websocket_of_a_terminal_answers_its_login() -> None:
    """The handshake, the user and ticket, OK, and silence."""

    async def story(site: Site) -> Any:
        console = (await site.post("/nodes/pve1/termproxy"))[2]
        socket = await site.socket("/nodes/pve1", console)
        await socket.send_str(f"{console['user']}:{console['ticket']}\n")
        said = await socket.receive_bytes(timeout=5)
        await socket.close()
        return socket.protocol, said

    assert on_site(story) == ("binary", b"OK")


@pytest.mark.parametrize("wrong", ["forged", "elsewhere", "somebody", "old"])
def test_a_ticket_opens_one_place_for_one_user_for_a_while(wrong: str) -> None:
    """Anything else is refused before the handshake."""

    async def story(site: Site) -> int:
        console = (await site.post("/nodes/pve1/qemu/101/vncproxy"))[2]
        path, user = "/nodes/pve1/qemu/101", "root@pam"
        if wrong == "forged":
            console["ticket"] = console["ticket"][:-4] + "0000"
        if wrong == "elsewhere":
            path = "/nodes/pve1/qemu/111"
        if wrong == "somebody":
            site.state.access.acl["/"] = {"user": {"eve@pve": {"Administrator": True}}}
            user = "eve@pve"
        if wrong == "old":
            site.state.clock.advance(60)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await site.socket(path, console, user)
        return refused.value.status

    assert on_site(story) == 401


def test_a_console_takes_the_privilege() -> None:
    """VM.Console on the guest, Sys.Console on the node."""

    async def story(site: Site) -> Any:
        paths = ("/nodes/pve1/qemu/101/vncproxy", "/nodes/pve1/termproxy")
        return [(await site.post(path, "eve@pve"))[1] for path in paths]

    assert on_site(story) == [
        "Permission check failed (/vms/101, VM.Console)",
        "Permission check failed (/nodes/pve1, Sys.Console)",
    ]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nodes/pve1/qemu/101/termproxy", "unable to find a serial interface"),
        ("/nodes/pve1/qemu/101/spiceproxy", "no spice port"),
        ("/nodes/pve3/qemu/121/spiceproxy", "VM 121 not running"),
        ("/nodes/pve1/lxc/999/vncproxy", "Configuration file 'nodes/pve1/lxc/999.conf' does not exist"),
    ],
)
def test_a_guest_without_such_a_console_says_why(path: str, says: str) -> None:
    """The server's own words."""
    assert on_site(lambda site: site.post(path))[1] == says


def test_a_ticket_is_verified_for_others() -> None:
    """The VNC server asks whether the ticket in its hands is right."""

    async def story(site: Site) -> Any:
        console = (await site.post("/nodes/pve1/termproxy"))[2]
        asked = {"authid": "root@pam", "vncticket": console["ticket"], "privs": "Sys.Console"}
        right = await site.post("/access/vncticket", path="/nodes/pve1", **asked)
        wrong = await site.post("/access/vncticket", path="/nodes/pve2", **asked)
        return right[0], wrong[0]

    assert on_site(story) == (200, 401)


def test_a_console_nobody_comes_to_times_out() -> None:
    """After ten seconds its task has failed, and its port is free again."""

    async def story(site: Site) -> Any:
        console = (await site.post("/nodes/pve1/termproxy"))[2]
        site.state.clock.advance(11)
        await site.state.tasks.idle()
        task = site.state.tasks.get(console["upid"])
        return task and task.exitstatus, (await site.post("/nodes/pve1/termproxy"))[2]["port"]

    assert on_site(story) == ("connection timed out", 5900)
