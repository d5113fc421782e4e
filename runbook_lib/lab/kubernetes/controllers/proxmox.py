"""A small client of the Proxmox VE API, as a controller in the cluster uses it: a token from a Secret, over TLS."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .context import Context
from .network import connect
from .processes import Process


class ProxmoxRefused(Exception):
    """Proxmox VE answered with an error: `status`, the reason phrase and the body's text."""

    def __init__(self, status: int, reason: str, body: str = "") -> None:
        super().__init__(f"{status} {reason}")
        self.status, self.reason, self.body = status, reason, body


class Dropped(TimeoutError):
    """No packet came through: a policy, or a firewall, swallows them."""


Outside = Callable[[str], tuple[str, int] | None]
"""Where the "host:port" of a Proxmox VE node really answers; None where nobody does."""
Gate = Callable[[], Awaitable[bool]]
"""Whether packets of the controller's pod get to Proxmox VE at this moment."""


PORT = ":8006"


def gate(context: Context, process: Process) -> Gate:
    """Whether policies let the process's pod through to Proxmox VE, whose address in the lab's world stands for it.

    The lab's own servers answer on loopback, where no policy would ever keep anyone from them.
    """
    host = next((entry.removesuffix(PORT) for entry in context.world.reachable if entry.endswith(PORT)), "")

    async def passes() -> bool:
        if not host:
            return True
        found = connect(await context.view(), context.world, process.pod, host, int(PORT[1:]))
        return found.result != "timeout"

    return passes


def dial_failure(url: str, error: BaseException) -> str:
    """A connection that failed, in the words of Go's http client."""
    place = urlsplit(url).netloc
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    if isinstance(error, Dropped):
        return f"dial tcp {place}: i/o timeout"
    if isinstance(error, TimeoutError):
        return "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {place.rpartition(':')[0]}: no such host"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    if isinstance(error, ConnectionRefusedError | aiohttp.ClientConnectorError):
        inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        if isinstance(inner, ConnectionRefusedError):
            return f"dial tcp {place}: connect: connection refused"
        return f"dial tcp {place}: i/o timeout"
    return f"read tcp {place}: connection reset by peer"


class ProxmoxClient:
    """One token at one server. `url` is the base, with or without /api2/json. Close it when done.

    `ca` is a PEM text to trust; without it and with `insecure` the certificate is not looked at.
    """

    def __init__(
        self,
        url: str,
        token: str,
        secret: str,
        *,
        ca: str = "",
        insecure: bool = False,
        agent: str = "Go-http-client/1.1",
        gate: Gate | None = None,
        outside: Outside | None = None,
    ) -> None:
        parts = urlsplit(url if "//" in url else f"https://{url}")
        self._gate, self._outside = gate, outside
        self.base_url = f"{parts.scheme}://{parts.netloc}/api2/json"
        context: ssl.SSLContext | bool = ssl.create_default_context(cadata=ca) if ca else True
        headers = {"Authorization": f"PVEAPIToken={token}={secret}", "User-Agent": agent}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False if insecure and not ca else context, limit=8),
            headers=headers,
            timeout=aiohttp.ClientTimeout(60),
            cookie_jar=aiohttp.DummyCookieJar(),  # a token needs none, and looking for them takes time
        )

    async def __aenter__(self) -> ProxmoxClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every connection."""
        await self._session.close()

    async def get(self, path: str, **query: Any) -> Any:
        """The `data` of the answer. Raises ProxmoxRefused, aiohttp.ClientError, TimeoutError."""
        return await self._request("GET", path, params={key: str(value) for key, value in query.items()})

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The `data` of the answer to a JSON body."""
        return await self._request("POST", path, json=dict(body or {}))

    async def put(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The `data` of the answer to a JSON body."""
        return await self._request("PUT", path, json=dict(body or {}))

    async def delete(self, path: str, **query: Any) -> Any:
        """The `data` of the answer; a DELETE has no body."""
        return await self._request("DELETE", path, params={key: str(value) for key, value in query.items()})

    async def upload(self, path: str, filename: str, file: bytes, /, **fields: str) -> Any:
        """The UPID of an upload: multipart, the fields before the file."""
        form = aiohttp.FormData()
        for key, value in fields.items():
            form.add_field(key, value)
        form.add_field("filename", file, filename=filename, content_type="application/octet-stream")
        return await self._request("POST", path, data=form)

    def _place(self, path: str) -> str:
        """The URL where a path is really asked for: an address of the lab's world is one of the lab's own ports."""
        parts = urlsplit(self.base_url)
        if self._outside is None or not parts.hostname:
            return self.base_url + path
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = self._outside(f"{parts.hostname}:{port}")
        if found is None:
            raise Dropped(f"{parts.hostname}:{port}")
        host = f"[{found[0]}]" if ":" in found[0] else found[0]
        return f"{parts.scheme}://{host}:{found[1]}{parts.path}{path}"

    async def _request(self, method: str, path: str, **given: Any) -> Any:
        if self._gate is not None and not await self._gate():
            raise Dropped(f"{method} {path}")
        async with self._session.request(method, self._place(path), **given) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise ProxmoxRefused(answer.status, answer.reason or "", text)
            return json.loads(text).get("data") if text else None
