"""How the runbook talks to Proxmox VE: proxmoxer's session through the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import requests

from runbook_lib import errors, secrets, wire
from runbook_lib import proxmox_login as login
from runbook_lib.proxmox_reading import Reader


class Proxmox(Reader):
    """One Proxmox VE as one identity. `.api` is proxmoxer's own object on the same session."""

    def __init__(self, api: Any, pve_wire: wire.Wire, identity: str) -> None:
        super().__init__()
        self.api, self.wire, self.identity = api, pve_wire, identity
        self._session: requests.Session = api._store["session"]
        self._base: str = api._store["base_url"]

    def answer(self, path: str, /, **params: Any) -> Mapping[str, Any]:
        """The whole JSON answer of a GET, with `changes` and `total` beside `data`."""
        return self._send("GET", path, params=_form(params))

    def request(self, method: str, path: str, /, **params: Any) -> Any:
        """The `data` of any request; writes pass only inside `wire.permit`.

        What has a slash within one part of the path is given `quoted`. Of `params`, None is dropped, booleans become
        0 and 1, and lists repeat their key.
        """
        where = "params" if method in {"GET", "HEAD", "DELETE"} else "data"
        return self._send(method, path, **{where: _form(params)}).get("data")  # type: ignore[arg-type]

    def send_file(self, path: str, /, body: Any, content_type: str) -> Any:
        """The `data` of a POST whose body is read while it is sent, however long that takes."""
        return self._send("POST", path, data=body, headers={"Content-Type": content_type}, stream=True).get("data")

    def for_thread(self) -> Proxmox:
        """The same identity and connections with a session of its own."""
        return self.clone_for_thread()

    def clone_for_thread(self) -> Proxmox:
        """The same identity and connections with a session of its own."""
        session = type(self._session)()
        session.auth = self._session.auth
        session.headers.update(self._session.headers)
        session.mount("https://", self._session.get_adapter(self._base))
        api = copy(self.api)
        api._store = {**self.api._store, "session": session}
        return Proxmox(api, self.wire, self.identity)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> Mapping[str, Any]:
        response = requests.Session.request(  # proxmoxer's override splits `command` and reads files into memory
            self._session,
            method,
            self._base + quote(path, safe="/%:@!=+,;~"),
            params=params,
            data=data,
            headers=headers,
            timeout=self.wire.timeout,
            stream=stream,
            allow_redirects=False,
        )
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise wire.error_for("proxmox", method, path, response.status_code, response.reason or "", response.content)
        return response.json()  # the wire has seen to it that this is JSON with `data`


def connect(
    site: Any,
    *,
    identity: Literal["token", "password"] | None = None,
    observers: Iterable[wire.Observer] = (),
    kube: secrets.KubeSecret | None = None,
) -> Proxmox:
    """A Proxmox VE to ask: as the site's token where it has one (default), or by password.

    Takes a Site or its `proxmox` part, and in `kube` who reads `k8s:` references. Nothing is sent before the first
    request. Raises ParameterError and SecretError, later the ApiError tree.
    """
    endpoint = getattr(site, "proxmox", site)
    kind = identity or ("token" if endpoint.token_id else "password")
    if kind == "token":
        if not endpoint.token_id or not endpoint.token_secret:
            raise errors.ParameterError("proxmox", "no token", "give token_id and token_secret")
        secret = secrets.resolve(endpoint.token_secret, kube=kube)
        return as_token(endpoint, endpoint.token_id, secret, observers=observers)
    found = password_of(endpoint, kube=kube)
    if found is None:
        raise errors.ParameterError("proxmox", "no password", "give user and password, or password_login")
    return as_user(endpoint, *found, observers=observers)


def as_token(
    endpoint: Any, token_id: str, secret: str, *, observers: Iterable[wire.Observer] = (), retries: int = 3
) -> Proxmox:
    """The endpoint as `user@realm!name`."""
    if "!" not in token_id:
        raise errors.ParameterError(f"proxmox.token_id: {token_id!r}", "is not of the form user@realm!name")
    pve_wire = wire_of(endpoint, observers=observers, retries=retries)
    api = login.proxmoxer_api(pve_wire, endpoint.url, trust=trust_of(endpoint), token_id=token_id, token_secret=secret)
    return Proxmox(api, pve_wire, token_id)


def as_user(
    endpoint: Any, user: str, password: str, *, observers: Iterable[wire.Observer] = (), retries: int = 3
) -> Proxmox:
    """The endpoint as `user@realm` by password; the login happens with the first request."""
    pve_wire = wire_of(endpoint, observers=observers, retries=retries)
    api = login.proxmoxer_api(pve_wire, endpoint.url, trust=trust_of(endpoint), user=user, password=password)
    return Proxmox(api, pve_wire, user)


def password_of(endpoint: Any, *, kube: secrets.KubeSecret | None = None) -> tuple[str, str] | None:
    """User and password the site logs in with, None where it names none."""
    found = endpoint if endpoint.password else endpoint.password_login
    if found is None or not found.user or not found.password:
        return None
    return found.user, secrets.resolve(found.password, kube=kube)


def wire_of(endpoint: Any, *, observers: Iterable[wire.Observer] = (), retries: int = 3) -> wire.Wire:
    """A wire to the endpoint."""
    return wire.Wire("proxmox", observers=observers, retries=retries, timeout=float(endpoint.timeout_seconds))


def trust_of(endpoint: Any) -> wire.Trust:
    """How the endpoint's certificate is to be believed."""
    ca_file = str(Path(endpoint.ca_file).expanduser()) if endpoint.ca_file else None
    return wire.Trust(ca_file=ca_file, fingerprint=endpoint.fingerprint or None, verify=bool(endpoint.verify))


def quoted(part: str) -> str:
    """One part of a path with everything quoted that has a meaning there: a volid, a UPID."""
    return quote(part, safe="")


def _form(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in params.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value
