"""Who we are to Proxmox VE: token and ticket identities for requests, and proxmoxer built on the wire."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.auth import AuthBase
from requests.cookies import RequestsCookieJar

from runbook_lib.answers import error_for
from runbook_lib.errors import ApiError, BadAnswer, NotAuthenticated
from runbook_lib.secrets import register
from runbook_lib.wire import Trust, Wire, proxmox_adapter

RENEW_AFTER_SECONDS = 3600
"""Half of a ticket's life."""

TICKET_LIFE_SECONDS = 7200


class _Identity(AuthBase):
    """What proxmoxer's session asks of its auth object. `verify_ssl` has no say: the adapter's trust decides."""

    verify_ssl = True

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def get_cookies(self) -> RequestsCookieJar:
        """No cookies: the ticket is put on each request when it is sent, after a renewal and not before."""
        return RequestsCookieJar()

    def get_tokens(self) -> tuple[str | None, str | None]:
        """Ticket and CSRF token; nothing for an API token."""
        return None, None


class TokenAuth(_Identity):
    """An API token, `user@realm!name` and its secret."""

    def __init__(self, token_id: str, secret: str, *, timeout: float = 30.0) -> None:
        super().__init__(timeout)
        register(secret)
        self._header = f"PVEAPIToken={token_id}={secret}"

    def __call__(self, request: Any) -> Any:
        """`request` with the token on it."""
        request.headers["Authorization"] = self._header
        return request


class TicketAuth(_Identity):
    """A login by password: tickets are fetched, renewed at half their life and refetched through `session`.

    Nothing is sent before the first request or `login()`. After two idle hours the ticket is worth nothing any more,
    so then the password is used again. Raises NotAuthenticated when the server refuses either.
    """

    def __init__(
        self,
        session: requests.Session,
        url: str,
        user: str,
        password: str,
        *,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(timeout)
        register(password)
        self.user = user
        self._session, self._url, self._password, self._clock = (
            session,
            f"{api_base(url)}/access/ticket",
            password,
            clock,
        )
        self._ticket, self._csrf, self._born = "", "", 0.0
        self._lock = threading.RLock()

    def __call__(self, request: Any) -> Any:
        """`request` with a fresh ticket on it, and the CSRF token where it may change something."""
        with self._lock:
            self._keep_fresh()
            request.headers["Cookie"] = f"PVEAuthCookie={self._ticket}"
            if request.method not in {"GET", "HEAD", "OPTIONS"}:
                request.headers["CSRFPreventionToken"] = self._csrf
        return request

    def get_tokens(self) -> tuple[str | None, str | None]:
        """Ticket and CSRF token, logging in when there is none yet."""
        with self._lock:
            self._keep_fresh()
            return self._ticket, self._csrf

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the ticket was given; None before the first login."""
        return self._clock() - self._born if self._ticket else None

    def login(self) -> None:
        """None, after a login with the password."""
        with self._lock:
            self._fetch(self._password)

    def renew(self) -> None:
        """None, after the ticket was exchanged for a fresh one (by itself: PVE takes a valid ticket as password)."""
        with self._lock:
            self._fetch(self._ticket or self._password)

    def _keep_fresh(self) -> None:
        age = self.age_seconds
        if age is None or age >= TICKET_LIFE_SECONDS - 60:
            self.login()
        elif age >= RENEW_AFTER_SECONDS:
            try:
                self.renew()
            except NotAuthenticated:  # the server's key was renewed, or it restarted with another clock
                self.login()

    def _fetch(self, password: str) -> None:
        answer = self._session.post(
            self._url,
            data={"username": self.user, "password": password},
            auth=_as_it_is,  # else requests looks into ~/.netrc
            timeout=self.timeout,
            allow_redirects=False,
        )
        data = _login_data(answer, self._url)
        if data.get("NeedTFA"):
            raise NotAuthenticated(
                f"PVE wants a second factor of {self.user}",
                hint="use an API token: a runbook cannot answer a challenge",
                system="proxmox",
                method="POST",
                path="/access/ticket",
                status=401,
            )
        self._ticket, self._csrf = str(data["ticket"]), str(data.get("CSRFPreventionToken", ""))
        self._born = self._clock()
        register(self._ticket)
        register(self._csrf)


def _as_it_is(request: Any) -> Any:
    return request


def _login_data(answer: requests.Response, url: str) -> dict[str, Any]:
    path = urlsplit(url).path
    if answer.status_code >= 400:
        raise error_for("proxmox", "POST", path, answer.status_code, answer.reason, answer.content)
    data = json.loads(answer.content)["data"]  # the wire has seen to it that it is JSON with data
    if not isinstance(data, dict) or "ticket" not in data:
        kind: type[ApiError] = NotAuthenticated if data is None else BadAnswer
        raise kind(
            "PVE answered POST /access/ticket (200) without a ticket",
            hint="check user, realm and password",
            system="proxmox",
            method="POST",
            path="/access/ticket",
            status=answer.status_code,
        )
    return data


def api_base(url: str) -> str:
    """The address of the JSON API at `url` (https://host[:8006][/prefix])."""
    parts = urlsplit(url if "//" in url else f"https://{url}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    prefix = parts.path.rstrip("/").removesuffix("/api2/json")
    return f"https://{host}:{parts.port or 8006}{prefix}/api2/json"


def proxmox_session(wire: Wire, trust: Trust) -> requests.Session:
    """A requests session that can reach nothing but through `wire`; it has no identity yet."""
    session = requests.Session()
    _mount(session, wire, trust)
    return session


def _mount(session: requests.Session, wire: Wire, trust: Trust) -> None:
    adapter = proxmox_adapter(wire, trust)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)


def proxmoxer_api(
    wire: Wire,
    url: str,
    *,
    trust: Trust,
    token_id: str | None = None,
    token_secret: str | None = None,
    user: str | None = None,
    password: str | None = None,
) -> Any:
    """A proxmoxer.ProxmoxAPI whose every request, logins and renewals too, goes through `wire` and `trust`.

    With a token (`token_id`, `token_secret`) or by password (`user`, `password`). Sends nothing yet; the auth object
    is `api._store["session"].auth` (TokenAuth or TicketAuth).
    """
    from proxmoxer import ProxmoxAPI  # late: its import silences warnings for the whole process

    _unsilence()
    parts = urlsplit(api_base(url))
    # proxmoxer's own password login is a plain requests.post outside its session; a token makes no request,
    # so it is built with a stand-in and given our identity.
    api = ProxmoxAPI(
        parts.hostname,
        port=parts.port,
        path_prefix=parts.path.removesuffix("/api2/json").strip("/") or None,
        user="nobody@pve",
        token_name="none",
        token_value="none",
        timeout=wire.timeout,
    )
    session = api._store["session"]
    _mount(session, wire, trust)
    session.auth = (
        TokenAuth(token_id, token_secret or "", timeout=wire.timeout)
        if token_id
        else TicketAuth(proxmox_session(wire, trust), url, user or "", password or "", timeout=wire.timeout)
    )
    api._backend.auth = session.auth
    return api


def _unsilence() -> None:
    """Take back what importing proxmoxer did: `urllib3.disable_warnings()` for everybody."""
    for entry in list(warnings.filters):
        if entry[0] == "ignore" and entry[2] is urllib3.exceptions.HTTPWarning:
            warnings.filters.remove(entry)  # type: ignore[attr-defined]
