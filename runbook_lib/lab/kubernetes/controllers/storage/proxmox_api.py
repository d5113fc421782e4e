"""What the Proxmox CSI plugin asks of Proxmox VE: its config, its clients by region, its calls, caches and words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml

from ..capmox.server import worded
from ..context import Clock
from ..proxmox import Gate, Outside, ProxmoxClient, ProxmoxRefused, dial_failure

Json = dict[str, Any]

VM_CACHE, STORAGE_CACHE = 5.0, 60.0
GO_PROXMOX = (0, 16)
"""The first release on go-proxmox; before, the driver spoke through Telmate's client, with other words."""


class Failure(Exception):
    """A call failed; the text is what the plugin's client would say."""


class NotFound(Failure):
    """There is no such storage or volume."""


class BadConfig(Exception):
    """The plugin cannot start with this config."""


@dataclass(frozen=True)
class Site:
    """One Proxmox cluster of the config."""

    url: str
    region: str
    insecure: bool = False
    token_id: str = ""
    token_secret: str = ""
    username: str = ""
    password: str = ""


@dataclass(frozen=True)
class Config:
    """The plugin's config.yaml."""

    sites: tuple[Site, ...]
    provider: str = "default"


def read_config(text: str, files: Mapping[str, str] | None = None) -> Config:
    """The config. `files` are what lies beside it, by name. Raises BadConfig with the plugin's words."""
    try:
        given = yaml.safe_load(text) or {}
        rows = given.get("clusters") or []
        provider = (given.get("features") or {}).get("provider") or "default"
        sites = tuple(_site(position, row, files or {}) for position, row in enumerate(rows, start=1))
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise BadConfig(f"failed to read config: {' '.join(str(error).split())}") from error
    if not sites:
        raise BadConfig("failed to create proxmox cluster client: no Proxmox clusters found")
    return Config(sites, str(provider))


def _site(position: int, row: Mapping[str, Any], files: Mapping[str, str]) -> Site:
    def value(key: str) -> str:
        if row.get(key):
            return str(row[key])
        name = str(row.get(f"{key}_file") or "").rpartition("/")[2]
        return files.get(name, "").strip()

    token, secret = value("token_id"), value("token_secret")
    user, password = str(row.get("username") or ""), str(row.get("password") or "")
    where = f"failed to read config: cluster #{position}: "
    if user and password:
        if token or secret:
            raise BadConfig(f"{where}token_id and token_secret are not allowed when username and password are set")
    elif not token or not secret:
        raise BadConfig(f"{where}either username and password or token_id and token_secret are required")
    if not row.get("region"):
        raise BadConfig(f"{where}region is required")
    if not str(row.get("url") or "").startswith("http"):
        raise BadConfig(f"{where}url is required")
    return Site(str(row["url"]), str(row["region"]), bool(row.get("insecure")), token, secret, user, password)


class _TicketClient(ProxmoxClient):
    """A client that logs in with a password; its ticket is renewed when it is refused."""

    def __init__(self, site: Site, *, ca: str, gate: Gate | None = None, outside: Outside | None = None) -> None:
        super().__init__(site.url, "", "", ca=ca, insecure=site.insecure, gate=gate, outside=outside)
        self._session.headers.pop("Authorization", None)
        self._login = {"username": site.username, "password": site.password}

    async def _request(self, method: str, path: str, **given: Any) -> Any:
        try:
            return await super()._request(method, path, **given)
        except ProxmoxRefused as refusal:
            if refusal.status != 401:
                raise
        answer = await super()._request("POST", "/access/ticket", json=self._login)
        headers = {"Cookie": f"PVEAuthCookie={answer['ticket']}", "CSRFPreventionToken": answer["CSRFPreventionToken"]}
        self._session.headers.update(headers)
        return await super()._request(method, path, **given)


@dataclass
class Vm:
    """A VM with its config."""

    node: str
    vmid: int
    config: Json

    @property
    def path(self) -> str:
        """Its path in the API."""
        return f"/nodes/{self.node}/qemu/{self.vmid}"

    @property
    def uuid(self) -> str:
        """Its SMBIOS uuid, in lower case."""
        match = re.search(r"(?:^|,)uuid=([0-9a-fA-F-]{36})", str(self.config.get("smbios1", "")))
        return match[1].lower() if match else ""

    def slot_of(self, disk: str) -> int | None:
        """The number of the scsi drive that holds the disk."""
        for key, value in sorted(self.config.items()):
            if re.fullmatch(r"scsi\d+", key) and disk in str(value):
                return int(key.removeprefix("scsi"))
        return None


@dataclass
class Region:
    """One Proxmox cluster, as the plugin's release speaks to it."""

    client: ProxmoxClient
    clock: Clock
    version: tuple[int, ...]
    _cached: dict[str, list[Json]] = field(default_factory=dict)
    _timers: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """The `data` of an answer. Raises Failure."""
        client = self.client
        try:
            if method == "GET":
                return await client.get(path, **query)
            if method == "DELETE":
                return await client.delete(path, **query)
            return await (client.post if method == "POST" else client.put)(path, body)
        except ProxmoxRefused as refusal:
            said = f"{refusal.status} {refusal.reason}"
            if self.version >= GO_PROXMOX:
                said = worded(refusal) or said
            raise Failure(said) from refusal
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            url = f"{client.base_url}{path}"
            raise Failure(f'{method.capitalize()} "{url}": {dial_failure(url, error)}') from error
        except ValueError as error:
            raise Failure("invalid character '<' looking for beginning of value") from error

    async def resources(self, kind: str, seconds: float) -> list[Json]:
        """Rows of the cluster, as old as `seconds` of the lab at most."""
        known = self._cached.get(kind)
        if known is None:
            known = self._cached[kind] = list(await self.ask("GET", "/cluster/resources", type=kind) or ())
            self._cancel(kind)
            self._timers[kind] = asyncio.get_running_loop().create_task(self._expire(kind, seconds))
        return known

    async def _expire(self, kind: str, seconds: float) -> None:
        await self.clock.sleep(seconds)
        self._cached.pop(kind, None)

    def _cancel(self, kind: str) -> None:
        if timer := self._timers.pop(kind, None):
            timer.cancel()

    async def close(self) -> None:
        """Ends every connection and forgets everything."""
        for kind in list(self._timers):
            self._cancel(kind)
        await self.client.close()

    def forget(self) -> None:
        """Nothing; the next question about VMs is really asked."""
        self._cached.pop("vm", None)

    async def storages(self, name: str) -> list[Json]:
        """The storage's rows, one for each node that has it. Raises NotFound."""
        rows = [row for row in await self.resources("storage", STORAGE_CACHE) if row.get("storage") == name]
        if not rows:
            raise NotFound("not found")
        return rows

    async def storage_nodes(self, name: str) -> list[str]:
        """The nodes where the storage is available. Raises NotFound."""
        nodes = [str(row["node"]) for row in await self.storages(name) if row.get("status") == "available"]
        if not nodes:
            raise NotFound("not found")
        return nodes

    async def nodes(self) -> list[str]:
        """The cluster's nodes."""
        return [str(row["node"]) for row in await self.resources("node", VM_CACHE)]

    async def volume_size(self, node: str, storage: str, disk: str) -> int:
        """The bytes of a volume. Raises NotFound."""
        try:
            await self.ask("GET", f"/nodes/{node}/storage/{storage}/status")
        except Failure as error:
            if "No such storage" in str(error) or "does not exist" in str(error):
                raise NotFound("not found") from error
            raise
        for row in await self.ask("GET", f"/nodes/{node}/storage/{storage}/content") or ():
            if row.get("volid") == f"{storage}:{disk}":
                return int(row.get("size", 0))
        raise NotFound("not found")

    async def vm(self, vmid: int) -> Vm:
        """The VM with its config, wherever it is. Raises Failure."""
        for row in await self.resources("vm", VM_CACHE):
            if row.get("vmid") == vmid and row.get("type") == "qemu":
                if row.get("status") == "unknown":
                    raise Failure("virtual machine unreachable")
                return await self.vm_on(str(row["node"]), vmid)
        self.forget()
        raise Failure("virtual machine not found")

    async def vm_on(self, node: str, vmid: int) -> Vm:
        """The VM of that node with its config. Raises Failure."""
        await self.ask("GET", f"/nodes/{node}/qemu/{vmid}/status/current")
        return Vm(node, vmid, dict(await self.ask("GET", f"/nodes/{node}/qemu/{vmid}/config") or {}))

    async def holder(self, nodes: list[str], disk: str) -> tuple[Vm, int] | None:
        """The VM that has the disk, and in which slot."""
        for node in nodes or await self.nodes():
            for row in sorted(await self.ask("GET", f"/nodes/{node}/qemu") or (), key=lambda row: int(row["vmid"])):
                vm = await self.vm_on(node, int(row["vmid"]))
                slot = vm.slot_of(disk)
                if slot is not None:
                    return vm, slot
        return None

    async def finished(self, upid: Any, seconds: float) -> str:
        """How the task ended. Raises Failure when it takes longer than `seconds` of the lab."""
        if not isinstance(upid, str) or upid.count(":") < 7:
            return "OK"
        node, waited, pause = upid.split(":")[1], 0.0, 0.002
        while True:
            row = dict(await self.ask("GET", f"/nodes/{node}/tasks/{upid}/status") or {})
            if row.get("status") != "running":
                return str(row.get("exitstatus", "OK"))
            # a fast clock must not turn the wait for a slow answer into a failure
            if waited >= seconds and pause >= 0.5:
                raise Failure("the operation has timed out")
            await asyncio.gather(self.clock.sleep(1.0), asyncio.sleep(pause))
            waited, pause = waited + 1.0, min(pause * 1.5, 0.5)


def open_region(
    site: Site,
    clock: Clock,
    version: tuple[int, ...],
    *,
    ca: str = "",
    gate: Gate | None = None,
    outside: Outside | None = None,
) -> Region:
    """The region's client: by token, or by password where the config has one."""
    if site.username and site.password:
        return Region(_TicketClient(site, ca=ca, gate=gate, outside=outside), clock, version)
    client = ProxmoxClient(site.url, site.token_id, site.token_secret, ca=ca, insecure=site.insecure, gate=gate,
                           outside=outside)  # fmt: skip
    return Region(client, clock, version)
