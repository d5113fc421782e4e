"""A small client of any Kubernetes API server: what the controllers read and write, over HTTP alone."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

log = logging.getLogger(__name__)

Object = dict[str, Any]
Key = tuple[str, str]  # namespace, name

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


class Refused(Exception):
    """The API server answered with a Status: `code`, `reason` and its message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message = code, reason, message


class KubeClient:
    """One identity at one API server. Use as an async context manager, or call `close`."""

    def __init__(
        self,
        base_url: str,
        token: str = "",
        ca_file: str | None = None,
        *,
        name: str = "lab",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        trusted = ssl_context or (ssl.create_default_context(cafile=ca_file) if ca_file else None)
        headers = {"User-Agent": name, **({"Authorization": f"Bearer {token}"} if token else {})}

        def session(limit: int) -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(ssl=trusted or True, limit=limit)
            jar = aiohttp.DummyCookieJar()  # API servers set none, and looking for them takes time
            timeout = aiohttp.ClientTimeout(30)
            return aiohttp.ClientSession(
                connector=connector, headers=headers, timeout=timeout, cookie_jar=jar,
                skip_auto_headers=("Accept-Encoding",),  # a loopback gains nothing from compression
            )  # fmt: skip

        self._session = session(32)
        # Every watch holds a connection as long as it lasts: they must not use up those of the requests.
        self._streams = session(0)

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every connection."""
        await self._session.close()
        await self._streams.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """The decoded answer. Raises Refused for a status of 400 and above."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        async with self._session.request(
            method, self.base_url + path, data=data, headers=headers, params=query
        ) as answer:
            text = (await answer.read()).decode()
            if answer.status >= 400:
                raise _refusal(answer.status, text)
            return dict(json.loads(text)) if text else {}

    async def get(self, path: str) -> Object:
        """One object."""
        return await self.request("GET", path)

    async def find(self, path: str) -> Object | None:
        """One object, or None when there is none."""
        try:
            return await self.get(path)
        except Refused as error:
            if error.code == 404:
                return None
            raise

    async def list(self, path: str, **query: str) -> Object:
        """A list object: `items` and `metadata.resourceVersion`."""
        return await self.request("GET", path, query=query)

    async def create(self, path: str, body: Object) -> Object:
        """The object as created."""
        return await self.request("POST", path, body)

    async def update(self, path: str, body: Object) -> Object:
        """The object as replaced; a resourceVersion in it makes the write conditional."""
        return await self.request("PUT", path, body)

    async def patch(self, path: str, body: Object, *, content_type: str = MERGE) -> Object:
        """The object as patched; a JSON merge patch unless told otherwise."""
        return await self.request("PATCH", path, body, content_type=content_type)

    async def apply(self, path: str, body: Object, *, manager: str, force: bool = True) -> Object:
        """The object after a server-side apply of these fields."""
        query = {"fieldManager": manager, "force": str(force).lower()}
        return await self.request("PATCH", path, body, query=query, content_type=APPLY)

    async def delete(self, path: str, body: Object | None = None) -> Object:
        """The object or Status of the deletion."""
        return await self.request("DELETE", path, body)

    async def watch(self, path: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """Events after a resourceVersion until the server ends the stream. Raises Refused for an ERROR event."""
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "3000"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
        url = self.base_url + path
        async with self._streams.get(url, params=query, timeout=timeout) as answer:
            if answer.status >= 400:
                raise _refusal(answer.status, await answer.text())
            async for line in _lines(answer.content):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise Refused(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                yield event["type"], event["object"]


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: StreamReader.readline gives up at its buffer limit."""
    rest = b""
    async for chunk in stream.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line


def _refusal(code: int, text: str) -> Refused:
    try:
        status = json.loads(text)
        return Refused(code, status.get("reason", ""), status.get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        return Refused(code, "", text[:200])


def key_of(item: Object) -> Key:
    """Namespace and name."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


class Cache:
    """One resource as the API server has it, kept by list and watch; `handlers` hear each change.

    A handler is called with (type, object): ADDED, MODIFIED, DELETED. `known` is False while the server
    does not serve the resource, as before its definition is installed.
    """

    def __init__(self, client: KubeClient, path: str) -> None:
        self.client, self.path = client, path
        self.items: dict[Key, Object] = {}
        self.handlers: list[Callable[[str, Object], None]] = []
        self.synced = asyncio.Event()
        self.known = False
        self.version = 0
        self.definitions: Cache | None = None
        self._owned: dict[str, set[Key]] = {}
        self._moved = asyncio.Event()

    def get(self, namespace: str, name: str) -> Object | None:
        """The object, or None. What comes from a cache is never changed: copy it first."""
        return self.items.get((namespace, name))

    def owned_by(self, owner: Object | str) -> list[Object]:
        """The objects that name this one (or this uid) among their owners."""
        uid = owner if isinstance(owner, str) else owner["metadata"]["uid"]
        return [self.items[key] for key in sorted(self._owned.get(uid, ()))]

    async def caught_up(self, item: Object) -> None:
        """Returns once the cache holds what a write answered, or something newer, or gave up waiting."""
        version = int(item.get("metadata", {}).get("resourceVersion") or 0)
        await self.until(lambda: self.version >= version)

    async def until(self, done: Callable[[], bool], *, seconds: float = 5.0) -> bool:
        """Whether `done` came true within so many real seconds; it is asked again after each change."""
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Lists and watches until cancelled; starts over when history is gone or the server is."""
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
            except Refused as error:
                self.known = self.known and error.code != 404
                if error.code == 404:
                    await self._defined()
                    continue
                log.debug("watch of %s starts over: %s", self.path, error)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("watch of %s starts over: %s", self.path, error)
            await asyncio.sleep(0.2 + random.random() * 0.3)

    async def _defined(self) -> None:
        """Returns when the resource may have begun to be served."""
        for key in list(self.items):
            self._tell("DELETED", self._drop(key))
        self.synced.set()
        if self.definitions is None or self.definitions is self:
            await asyncio.sleep(1.0)
            return
        seen = self.definitions.version
        await self.definitions.until(lambda: bool(self.definitions and self.definitions.version > seen), seconds=10)
        await asyncio.sleep(0.02)

    async def _list(self) -> str:
        answer = await self.client.list(self.path)
        kind, version = answer["kind"].removesuffix("List"), answer["apiVersion"]
        fresh = {key_of(item): {"apiVersion": version, "kind": kind, **item} for item in answer.get("items") or []}
        self.known = True
        at = str(answer["metadata"]["resourceVersion"])
        for key in set(self.items) - set(fresh):
            self._tell("DELETED", self._drop(key))
        for key, item in fresh.items():
            known = self.items.get(key)
            self._keep(key, item)
            if known is None or known["metadata"].get("resourceVersion") != item["metadata"].get("resourceVersion"):
                self._tell("MODIFIED" if known else "ADDED", item)
        self._reach(at)
        self.synced.set()
        return at

    async def _watch(self, version: str) -> str:
        async for kind, item in self.client.watch(self.path, version):
            version = item["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                if kind == "DELETED":
                    self._drop(key_of(item))
                else:
                    self._keep(key_of(item), item)
                self._tell(kind, item)
            self._reach(version)
        return version

    def _keep(self, key: Key, item: Object) -> None:
        self._forget_owners(key)
        self.items[key] = item
        for owner in item["metadata"].get("ownerReferences") or ():
            self._owned.setdefault(owner["uid"], set()).add(key)

    def _drop(self, key: Key) -> Object:
        self._forget_owners(key)
        return self.items.pop(key, {"metadata": {"namespace": key[0], "name": key[1]}})

    def _forget_owners(self, key: Key) -> None:
        for owner in self.items.get(key, {}).get("metadata", {}).get("ownerReferences") or ():
            keys = self._owned.get(owner["uid"], set())
            keys.discard(key)
            if not keys:
                self._owned.pop(owner["uid"], None)

    def _reach(self, version: str) -> None:
        self.version = max(self.version, int(version) if version.isdigit() else 0)
        self._moved.set()
        self._moved = asyncio.Event()

    def _tell(self, kind: str, item: Object) -> None:
        for handler in self.handlers:
            handler(kind, item)
