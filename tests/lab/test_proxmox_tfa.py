"""Second factors: login in two steps, wrong codes that lock, changes that want the password again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox.factors import MAX_TOTP_FAILURES, totp
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

SECRET = "JBSWY3DPEHPK3PXP"
URI = f"otpauth://totp/lab:eve@pve?secret={SECRET}&digits=6&period=30&algorithm=SHA1"
USERS = {
    "root@pam": {"password": "root-pass-1"},
    "eve@pve": {"password": "eve-pass-1", "tfa": SECRET},
    "bob@pve": {"password": "bob-pass-1"},
}


class Site:
    """One standalone node, asked over HTTP."""

    def __init__(self, state: PveState, base: Any, session: aiohttp.ClientSession) -> None:
        self.state, self.base, self.session = state, base, session

    async def ask(self, method: str, path: str, login: Any = None, **form: str) -> tuple[int, str, Any]:
        """Status, reason and data (or errors) of an answer."""
        headers = {}
        if login:
            headers = {
                "Cookie": f"PVEAuthCookie={login['ticket']}",
                "CSRFPreventionToken": login["CSRFPreventionToken"],
            }
        sent = {"params" if method in ("GET", "DELETE") else "data": form}
        async with self.session.request(method, f"{self.base}api2/json{path}", headers=headers, **sent) as response:
            body = await response.json(content_type=None) if await response.read() else {}
            return response.status, str(response.reason), body.get("errors") or body.get("data")

    async def login(self, user: str, password: str, **more: str) -> tuple[int, Any]:
        """Status and data of a login."""
        status, _, data = await self.ask("POST", "/access/ticket", username=user, password=password, **more)
        return status, data

    def code(self) -> str:
        """What the authenticator shows now."""
        return totp(SECRET, self.state.clock.now())


def on_site(story: Callable[[Site], Awaitable[Any]]) -> Any:
    """What the story returns, told on a fresh node."""

    async def told() -> Any:
        nodes = {"pve1": {"ip": "10.0.0.1"}}
        given = {"flavour": "9.2", "nodes": nodes, "access": {"users": USERS}, "auth_delay_seconds": 0}
        state = PveState.from_scenario(given, clock=Clock(float("inf")))
        async with (
            test_utils.TestServer(create_app(state)) as server,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            return await story(Site(state, server.make_url("/"), session))

    return asyncio.run(told())


def test_the_code_is_the_one_of_the_standard() -> None:
    """A vector of RFC 6238, shortened to six digits."""
    assert totp("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", 59) == "287082"


def test_a_login_takes_password_and_code() -> None:
    """The password gets a ticket that opens nothing; with the code it becomes a real one."""

    async def story(site: Site) -> Any:
        _, first = await site.login("eve@pve", "eve-pass-1")
        refused = await site.ask("GET", "/version", first)
        status, second = await site.login("eve@pve", f"totp:{site.code()}", **{"tfa-challenge": first["ticket"]})
        return first, refused[0], status, (await site.ask("GET", "/version", second))[0]

    first, early, status, opened = on_site(story)
    assert first["NeedTFA"] == 1 and first["ticket"].startswith("PVE:!tfa!%7B%22totp%22%3Atrue%7D:")
    assert (early, status, opened) == (401, 200, 200)


@pytest.mark.parametrize("answer", ["totp:000000", "recovery:aaaa-bbbb", "000000", "yubico:x"])
def test_a_wrong_answer_is_no_login(answer: str) -> None:
    """401, whatever was answered wrongly."""

    async def story(site: Site) -> Any:
        _, first = await site.login("eve@pve", "eve-pass-1")
        return await site.login("eve@pve", answer, **{"tfa-challenge": first["ticket"]})

    assert on_site(story)[0] == 401


def test_a_challenge_is_its_users_alone() -> None:
    """Somebody else's challenge does not help, however right the code."""

    async def story(site: Site) -> Any:
        _, first = await site.login("eve@pve", "eve-pass-1")
        return await site.login("bob@pve", f"totp:{site.code()}", **{"tfa-challenge": first["ticket"]})

    assert on_site(story)[0] == 401


def test_wrong_codes_lock_until_an_administrator_unlocks() -> None:
    """After eight of them even the right one is refused; unlocking says that there was a lock."""

    async def story(site: Site) -> Any:
        _, first = await site.login("eve@pve", "eve-pass-1")
        for _ in range(MAX_TOTP_FAILURES):
            await site.login("eve@pve", "totp:000000", **{"tfa-challenge": first["ticket"]})
        locked = (await site.login("eve@pve", f"totp:{site.code()}", **{"tfa-challenge": first["ticket"]}))[0]
        _, root = await site.login("root@pam", "root-pass-1")
        row = (await site.ask("GET", "/access/tfa", root))[2][0]
        was = [(await site.ask("PUT", "/access/users/eve@pve/unlock-tfa", root))[2] for _ in range(2)]
        free = (await site.login("eve@pve", f"totp:{site.code()}", **{"tfa-challenge": first["ticket"]}))[0]
        return locked, row["totp-locked"], was, free

    assert on_site(story) == (401, 1, [1, 0], 200)


def test_a_user_adds_a_factor_with_their_password_and_a_code() -> None:
    """Without the password 400, with a wrong code 500; then login asks for it, and after its removal no more."""

    async def story(site: Site) -> Any:
        _, bob = await site.login("bob@pve", "bob-pass-1")
        new = {"type": "totp", "description": "phone", "totp": URI}
        path = "/access/tfa/bob@pve"
        nothing = (await site.ask("POST", path, bob, **new, value=site.code()))[2]
        wrong = (await site.ask("POST", path, bob, **new, value="000000", password="bob-pass-1"))[1]
        added = (await site.ask("POST", path, bob, **new, value=site.code(), password="bob-pass-1"))[2]
        asked = (await site.login("bob@pve", "bob-pass-1"))[1]
        entry = (await site.ask("GET", f"{path}/{added['id']}", bob))[2]
        await site.ask("DELETE", f"{path}/{added['id']}", bob, password="bob-pass-1")
        return (
            nothing,
            wrong,
            asked.get("NeedTFA"),
            entry,
            (await site.login("bob@pve", "bob-pass-1"))[1].get("NeedTFA"),
        )

    nothing, wrong, asked, entry, after = on_site(story)
    assert nothing == {"password": "password is required to modify user"}
    assert wrong == "failed to verify TOTP challenge"
    assert (asked, after, entry["description"]) == (1, None, "phone") and "secret" not in entry


def test_a_recovery_code_does_once() -> None:
    """Ten codes; one that was used opens nothing any more."""

    async def story(site: Site) -> Any:
        _, root = await site.login("root@pam", "root-pass-1")
        codes = (await site.ask("POST", "/access/tfa/bob@pve", root, type="recovery"))[2]["recovery"]
        again = (await site.ask("POST", "/access/tfa/bob@pve", root, type="recovery"))[1]
        statuses = []
        for _ in range(2):
            _, first = await site.login("bob@pve", "bob-pass-1")
            answer = await site.login("bob@pve", f"recovery:{codes[3]}", **{"tfa-challenge": first["ticket"]})
            statuses.append(answer[0])
        return len(codes), again, statuses

    assert on_site(story) == (10, "user already has recovery keys", [200, 401])


def test_a_disabled_factor_is_not_asked_for() -> None:
    """An administrator may switch it off; one that is not there cannot be changed."""

    async def story(site: Site) -> Any:
        _, root = await site.login("root@pam", "root-pass-1")
        await site.ask("PUT", "/access/tfa/eve@pve/totp", root, enable="0")
        missing = await site.ask("PUT", "/access/tfa/eve@pve/other", root, enable="0")
        return (await site.login("eve@pve", "eve-pass-1"))[1].get("NeedTFA"), missing[1]

    assert on_site(story) == (None, "no such entry")


def test_nobody_else_changes_factors() -> None:
    """A user without User.Modify meets 403 at another's, and nobody but root changes root's."""

    async def story(site: Site) -> Any:
        _, bob = await site.login("bob@pve", "bob-pass-1")
        return [(await site.ask("DELETE", f"/access/tfa/{who}/totp", bob, password="bob-pass-1"))[0]
                for who in ("eve@pve", "root@pam")]  # fmt: skip

    assert on_site(story) == [403, 403]


def test_openid_answers_without_a_provider() -> None:
    """A realm of another type is refused by name, an unknown login is none."""

    async def story(site: Site) -> Any:
        url = {"redirect-url": "https://pve1:8006"}
        _, root = await site.login("root@pam", "root-pass-1")
        realm = {"realm": "sso", "type": "openid", "issuer-url": "https://sso.example", "client-id": "pve"}
        await site.ask("POST", "/access/domains", root, **realm)
        kind = (await site.ask("POST", "/access/openid/auth-url", realm="pve", **url))[1]
        there = (await site.ask("POST", "/access/openid/auth-url", realm="sso", **url))[1]
        return kind, there, (await site.ask("POST", "/access/openid/login", code="x", state="y", **url))[0]

    kind, there, status = on_site(story)
    assert kind == "wrong realm type (pve != openid)" and "https://sso.example/.well-known" in there and status == 401
