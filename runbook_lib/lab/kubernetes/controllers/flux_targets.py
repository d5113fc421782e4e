"""The cluster that a HelmRelease installs into: the one it lies in, or another that a kubeconfig in a Secret names."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from .client import Key, KubeClient, Object, Refused
from .context import Context
from .installing import Places
from .remote import RemoteClient

SECRETS = "/api/v1/secrets"
LOOK_SECONDS = 0.1  # real seconds between looks at another cluster's workloads
DEFAULT_KEYS = ("value", "value.yaml")


class Unknown(Exception):
    """No such cluster: reason and message of the release's Ready condition. `missing` when the Secret is."""

    def __init__(self, reason: str, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.reason, self.message, self.missing = reason, message, missing


@dataclass(frozen=True)
class Target:
    """One cluster: its client and where its kinds are served. `far` when it is not the release's own."""

    client: KubeClient
    places: Places
    far: bool = False

    async def now(self, item: Object) -> Object | None:
        """An object that was put in place, as it is now."""
        return await self.client.find(await self.places.path(item))

    async def until(self, done: Callable[[], Awaitable[bool]]) -> None:
        """Returns once that holds, asked again and again."""
        while not await done():
            await asyncio.sleep(LOOK_SECONDS)


@dataclass
class Targets:
    """The clusters that releases install into."""

    context: Context
    home: Target
    _far: dict[tuple[str, str, str], tuple[str, Target]] = field(default_factory=dict)

    async def of(self, item: Object) -> Target:
        """The release's cluster, which answers. Raises Unknown."""
        config = item["spec"].get("kubeConfig")
        if not config:
            return self.home
        reference = config.get("secretRef") or {}
        space, name = item["metadata"]["namespace"], str(reference.get("name", ""))
        cache = self.context.cache(SECRETS)
        await cache.synced.wait()
        secret = cache.get(space, name)
        if secret is None:
            words = f"could not get KubeConfig secret '{space}/{name}': Secret \"{name}\" not found"
            raise Unknown("RESTClientError", words, missing=True)
        text = self._text(secret, str(reference.get("key") or ""))
        key = (space, name, str(reference.get("key") or ""))
        known = self._far.get(key)
        if known is None or known[0] != text:
            if known is not None:
                del self._far[key]
                self.context.spawn(known[1].client.close(), name="lab-flux target ended")
            try:
                client = RemoteClient(text, name="helm-controller", routes=self.context.routes)
            except ValueError as error:
                raise Unknown("RESTClientError", str(error)) from error
            known = self._far[key] = (text, Target(client, Places(client), far=True))
        target = known[1]
        try:
            await target.client.get("/version")
        except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
            where = target.client.base_url
            words = f'Get "{where}/version": dial tcp {where.rpartition("/")[2]}: connect: connection refused'
            if isinstance(error, Refused):
                words = error.message
            raise Unknown(
                "StateError", f"Could not determine release state: Kubernetes cluster unreachable: {words}"
            ) from error
        return target

    @staticmethod
    def _text(secret: Object, key: str) -> str:
        data, meta = secret.get("data") or {}, secret["metadata"]
        place = f"KubeConfig secret '{meta['namespace']}/{meta['name']}'"
        found = data.get(key) if key else next((data[name] for name in DEFAULT_KEYS if data.get(name)), None)
        if not found:
            named = f"a '{key}' key" if key else "a 'value' or 'value.yaml' key"
            raise Unknown("RESTClientError", f"{place} does not contain {named} with a kubeconfig")
        return base64.b64decode(found).decode(errors="replace")

    def forget(self, key: Key) -> None:
        """Nothing; what is known of a Secret that is gone is forgotten."""
        for place in [place for place in self._far if place[:2] == key]:
            self.context.spawn(self._far.pop(place)[1].client.close(), name="lab-flux target ended")

    async def close(self) -> None:
        """Ends every connection to other clusters."""
        for _, target in self._far.values():
            await target.client.close()
        self._far.clear()
