"""A connection to another cluster by the kubeconfig that a Secret holds, as managers reach their tenants."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml

from .client import Cache, Key, KubeClient, Object, Refused
from .context import Context

PROBE_SECONDS = 10.0
SHORTEST_PROBE = 2.0  # real seconds between questions whether a tenant answers


class RemoteClient(KubeClient):
    """One identity at one API server, by a kubeconfig: a client certificate or a token. Raises ValueError."""

    def __init__(self, kubeconfig: str, *, name: str = "manager", routes: Mapping[str, str] | None = None) -> None:
        try:
            config = yaml.safe_load(kubeconfig)
            chosen = {entry["name"]: entry["context"] for entry in config["contexts"]}[config["current-context"]]
            cluster = {entry["name"]: entry["cluster"] for entry in config["clusters"]}[chosen["cluster"]]
            user = {entry["name"]: entry["user"] for entry in config["users"]}[chosen["user"]]
            self._routes, self._server = routes if routes is not None else {}, cluster["server"].rstrip("/")
            super().__init__(cluster["server"], user.get("token", ""), name=name, ssl_context=_trust(cluster, user))
        except (KeyError, TypeError, yaml.YAMLError) as error:
            raise ValueError(f"invalid kubeconfig: {error}") from error

    def _find(self) -> None:
        """Nothing; requests go where the server really is. Addresses of the lab's networks are nobody's outside it."""
        place = urlsplit(self._server)
        self.base_url = self._routes.get(place.netloc, self._server)
        if self.base_url == self._server and not (place.hostname or "").startswith(("127.", "localhost")):
            raise aiohttp.ClientConnectionError(f"dial tcp {place.netloc}: connect: no route to host")

    async def request(self, method: str, path: str, body: Any = None, **given: Any) -> Object:
        """The decoded answer. Raises Refused for a status of 400 and above."""
        self._find()
        return await super().request(method, path, body, **given)

    async def watch(self, path: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """Events after a resourceVersion until the server ends the stream. Raises Refused for an ERROR event."""
        self._find()
        async for event in super().watch(path, version):
            yield event


def _trust(cluster: Object, user: Object) -> ssl.SSLContext:
    authority = base64.b64decode(cluster.get("certificate-authority-data", "")).decode()
    context = ssl.create_default_context(cadata=authority or None)
    context.check_hostname = False  # a tenant is reached by an address that its certificate may not name
    if "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as file:  # ssl reads a key from files alone
            file.write(base64.b64decode(user["client-certificate-data"]) + b"\n")
            file.write(base64.b64decode(user["client-key-data"]))
            file.flush()
            context.load_cert_chain(file.name)
    return context


@dataclass
class Remote:
    """One other cluster: its client, a cache of its nodes, and when it answered last (0: never)."""

    text: str
    client: RemoteClient
    nodes: Cache
    answered: float = 0.0
    failed: str = ""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def connected(self) -> bool:
        """Whether the last question was answered and the nodes are known."""
        return self.answered > 0 and not self.failed and self.nodes.synced.is_set()

    async def close(self) -> None:
        """Ends the connection."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.close()


class Remotes:
    """The other clusters that a manager is connected to, by the key of their Cluster."""

    def __init__(self, context: Context, told: Callable[[Key, Object | None], None]) -> None:
        # Told with a node when that node changed, with None when the cluster began or ceased to answer.
        self.context, self.told = context, told
        self._known: dict[Key, Remote] = {}

    def get(self, key: Key) -> Remote | None:
        """The cluster behind `<name>-kubeconfig`, or None while there is no such Secret or it is unreadable."""
        secret = self.context.cache("/api/v1/secrets").get(key[0], f"{key[1]}-kubeconfig")
        text = base64.b64decode(((secret or {}).get("data") or {}).get("value", "")).decode(errors="replace")
        known = self._known.get(key)
        if known is not None and known.text == text:
            return known
        if known is not None:
            del self._known[key]
            self.context.spawn(known.close(), name="lab-remote ended")
        if not text:
            return None
        try:
            client = RemoteClient(text, routes=self.context.routes)
        except ValueError:
            return None
        remote = self._known[key] = Remote(text, client, Cache(client, "/api/v1/nodes"))
        remote.nodes.handlers.append(lambda _kind, node: self.told(key, node))
        remote.tasks = [
            self.context.spawn(self._probe(key, remote), name=f"lab-probe {key[1]}"),
        ]
        return remote

    async def _probe(self, key: Key, remote: Remote) -> None:
        """Asks whether the cluster answers; begins to watch its nodes with the first answer."""
        while True:
            before = remote.connected
            try:
                await remote.client.get("/version")
                remote.answered, remote.failed = self.context.clock.now(), ""
                if len(remote.tasks) < 2:
                    remote.tasks.append(self.context.spawn(remote.nodes.run(), name=f"lab-cache nodes {key[1]}"))
                    await remote.nodes.synced.wait()
            except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
                remote.failed = str(error) or type(error).__name__
            if remote.connected != before:
                self.told(key, None)
            pause = SHORTEST_PROBE if remote.connected else SHORTEST_PROBE / 10
            await asyncio.gather(
                self.context.clock.sleep(PROBE_SECONDS if remote.connected else 1), asyncio.sleep(pause)
            )

    def forget(self, key: Key) -> None:
        """Ends the connection to one cluster."""
        if known := self._known.pop(key, None):
            self.context.spawn(known.close(), name="lab-remote ended")

    async def close(self) -> None:
        """Ends every connection."""
        for remote in list(self._known.values()):
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await remote.close()
        self._known.clear()
