"""What both reconcilers of CAPMOX share: caches, clients of Proxmox VE, patches, log lines."""

from __future__ import annotations

import asyncio
import base64
import copy
import random
from collections.abc import Mapping
from typing import Any

from ..alarms import Alarms
from ..client import Cache, Key, Object
from ..context import Context
from ..klog import line
from ..processes import Process
from ..proxmox import ProxmoxClient
from .era import Era
from .server import Failure, Server

TRUE = {"1", "on", "true", "yes", "y"}
REQUEUE = 10.0
RESYNC = 600.0


class Shared:
    """One running manager."""

    def __init__(self, context: Context, process: Process, era: Era) -> None:
        self.context, self.process, self.era = context, process, era
        self.machines = context.cache(era.path("proxmoxmachines"))
        self.clusters = context.cache(era.path("proxmoxclusters"))
        self.owners = context.cache(era.core("machines"))
        self.homes = context.cache(era.core("clusters"))
        self.claims = context.cache(era.ipam("ipaddressclaims"))
        self.addresses = context.cache(era.ipam("ipaddresses"))
        self.pools = context.cache("/apis/ipam.cluster.x-k8s.io/v1alpha2/inclusterippools")
        self.secrets = context.cache("/api/v1/secrets")
        self.server: Server | None = None
        self.locating = asyncio.Lock()
        self._clients: dict[tuple[str, ...], ProxmoxClient] = {}
        self._dice = random.Random(f"{context.seed}/capmox/{process.pod['metadata'].get('uid', '')}")

    async def synced(self) -> None:
        """Returns once what everything depends on is known."""
        await self.context.synced(
            self.machines,
            self.clusters,
            self.owners,
            self.homes,
            self.claims,
            self.addresses,
            self.pools,
            self.secrets,
        )

    async def close(self) -> None:
        """Ends the connections to Proxmox VE."""
        for client in self._clients.values():
            await client.close()

    # -- the way to Proxmox VE --------------------------------------------------------------------

    def client(self, url: str, token: str, secret: str, *, insecure: bool, ca: str = "") -> Server:
        """The server behind these credentials."""
        key = (url, token, secret, str(insecure), ca)
        if key not in self._clients:
            try:
                self._clients[key] = ProxmoxClient(
                    url,
                    token,
                    secret,
                    insecure=insecure,
                    ca=ca,
                    agent="Go-http-client/2.0",
                    outside=self.context.outside,
                )
            except ValueError as error:
                raise Failure(f"loading cert pool: {error}") from error
        return Server(self._clients[key], self.context.clock)

    async def from_environment(self) -> Server | None:
        """The server of the manager's environment, asked for its version; None when the environment names none."""
        env = self.process.env
        url, token, secret = (env.get(f"PROXMOX_{name}", "") for name in ("URL", "TOKEN", "SECRET"))
        if not (url and token and secret):
            return None
        insecure = env.get("PROXMOX_INSECURE", "true").lower() in TRUE
        server = self.client(url, token, secret, insecure=insecure)
        release = await server.version()
        self.log("api_client.go:62", "Proxmox client initialized")
        self.log("api_client.go:63", "Proxmox server", version=release)
        return server

    async def server_for(self, home: Object) -> Server:
        """The server of a ProxmoxCluster: the manager's own, else the one its credentialsRef names."""
        if self.server is not None:
            return self.server
        reference = home["spec"].get("credentialsRef")
        if not reference:
            raise Missing("No credentials found, ProxmoxCluster missing credentialsRef")
        space = reference.get("namespace") or home["metadata"]["namespace"]
        secret = self.secrets.get(space, reference["name"])
        if secret is None:
            text = f'failed to get credentials secret: Secret "{reference["name"]}" not found'
            raise Missing("credentials secret not found", text)
        data = decoded(secret)
        insecure = "insecure" not in data or data["insecure"].lower() in TRUE
        server = self.client(data.get("url", ""), data.get("token", ""), data.get("secret", ""), insecure=insecure,
                             ca="" if insecure else data.get("root_ca", ""))  # fmt: skip
        await server.version()
        return server

    # -- objects ----------------------------------------------------------------------------------

    def cluster_of(self, item: Object) -> Object | None:
        """The Cluster a machine's label names."""
        name = (item["metadata"].get("labels") or {}).get("cluster.x-k8s.io/cluster-name", "")
        return self.homes.get(item["metadata"].get("namespace", ""), name)

    def home_of(self, cluster: Object) -> Object | None:
        """The ProxmoxCluster behind a Cluster."""
        reference = (cluster.get("spec") or {}).get("infrastructureRef") or {}
        return self.clusters.get(cluster["metadata"]["namespace"], reference.get("name", ""))

    async def save(self, cache: Cache, path: str, before: Object, after: Object) -> bool:
        """Whether anything was to be written: the spec before the status, so that a VMID is never lost."""
        client, wrote = self.context.client, False
        body: dict[str, Any] = {}
        if meta := difference(own(before), own(after)):
            body["metadata"] = meta
        if spec := difference(before.get("spec") or {}, after.get("spec") or {}):
            body["spec"] = spec
        status = difference(before.get("status") or {}, after.get("status") or {})
        parts = [(path, body), (f"{path}/status", {"status": status} if status else {})]
        if "deletionTimestamp" in after["metadata"]:
            parts.reverse()  # what goes away with its last finalizer has no status any more
        for where, part in parts:
            if part:
                answer = await client.patch(where, part)
                wrote = True
                if answer.get("metadata", {}).get("resourceVersion"):
                    await cache.caught_up(answer)
        return wrote

    def log(self, place: str, message: str, about: Object | None = None, *, level: str = "I", **values: Any) -> None:
        """Nothing; a line of the manager's log."""
        pairs: dict[str, Any] = {}
        if about is not None:
            kind, meta = about.get("kind", "ProxmoxMachine"), about["metadata"]
            full = f"{meta['namespace']}/{meta['name']}"
            pairs = {
                "controller": kind.lower(), "controllerGroup": "infrastructure.cluster.x-k8s.io",
                "controllerKind": kind, kind: full, "namespace": meta["namespace"], "name": meta["name"],
                "reconcileID": self._uuid(),
            }  # fmt: skip
        self.process.write(line(self.context.clock.now(), level, place, message, **pairs, **values))

    def error(self, place: str, text: str, about: Object, error: object, **values: Any) -> None:
        """Nothing; an error in the manager's log."""
        self.log(place, text, about, level="E", err=str(error), **values)

    def _uuid(self) -> str:
        text = f"{self._dice.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


class Missing(Failure):
    """There are no credentials: `status` is what the object says, the text what the log does."""

    def __init__(self, status: str, text: str = "") -> None:
        super().__init__(text or status)
        self.status = status


class Retries:
    """How long to wait after an error, as controller-runtime does: 5 ms, doubled each time, at most 1000 s."""

    def __init__(self, alarms: Alarms) -> None:
        self.alarms = alarms
        self.counts: dict[Key, int] = {}

    def failed(self, key: Key) -> None:
        """Nothing; the key is due again."""
        count = self.counts[key] = self.counts.get(key, 0) + 1
        self.alarms.set(key, min(0.005 * 2 ** min(count, 20), 1000.0))

    def worked(self, key: Key) -> None:
        """Nothing; the next error is the first one again."""
        self.counts.pop(key, None)


def decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    """A Secret's data as text."""
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in (secret.get("data") or {}).items()}


def own(item: Object) -> Object:
    """What of an object's metadata a controller writes."""
    return {key: item["metadata"][key] for key in ("finalizers", "labels", "annotations") if key in item["metadata"]}


def difference(before: Any, after: Any) -> Any:
    """The JSON merge patch that makes `after` of `before`; empty when they are equal."""
    patch: dict[str, Any] = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if key not in after:
            patch[key] = None
        elif isinstance(old, dict) and isinstance(new, dict):
            if inner := difference(old, new):
                patch[key] = inner
        elif old != new:
            patch[key] = copy.deepcopy(new)
    return patch
