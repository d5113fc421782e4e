"""What CAPMOX asks of Proxmox VE, through a client with the habits of go-proxmox: its calls, waits and words."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ..context import Clock
from ..proxmox import ProxmoxClient, ProxmoxRefused, dial_failure

Json = dict[str, Any]

TAG = "go-proxmox+cloud-init"
DEVICE = "ide0"
FEWEST_TRIES = 3


class Failure(Exception):
    """A call failed; the text is what the Go client would say."""


class Free(Exception):
    """The VMID is free."""


class AgentSilent(Failure):
    """The guest agent did not answer in time."""


class CloudInitFailed(Failure):
    """cloud-init ended with an error."""


class TemplateMissing(Failure):
    """No template has the wanted tags, or too many have."""


@dataclass
class Vm:
    """A VM as two calls tell it: `status` from status/current, `config` from config."""

    node: str
    vmid: int
    status: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name; empty while it is only being made."""
        return str(self.status.get("name") or "")

    @property
    def running(self) -> bool:
        """Whether it runs and is not paused."""
        return self.status.get("status") == "running" and self.status.get("qmpstatus", "running") == "running"

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self.status.get("status") == "running" and self.status.get("qmpstatus") == "paused"

    @property
    def stopped(self) -> bool:
        """Whether it is off."""
        return self.status.get("status") == "stopped"

    @property
    def tags(self) -> list[str]:
        """Its tags."""
        return [tag for tag in str(self.config.get("tags", "")).split(";") if tag]

    @property
    def uuid(self) -> str:
        """The SMBIOS uuid, in lower case; empty when there is none."""
        match = re.search(r"(?:^|,)uuid=([0-9a-fA-F-]{36})", str(self.config.get("smbios1", "")))
        return match[1].lower() if match else ""

    @property
    def path(self) -> str:
        """Its path in the API."""
        return f"/nodes/{self.node}/qemu/{self.vmid}"

    def mac(self, device: str) -> str:
        """The MAC address of a network device; empty when it has none yet."""
        match = re.search(r"=([^,]+),bridge", str(self.config.get(device, "")))
        return match[1] if match else ""


def worded(refusal: ProxmoxRefused) -> str | None:
    """What go-proxmox makes of a refusal; None for a status that it does not take for an error."""
    status = f"{refusal.status} {refusal.reason}"
    if refusal.status in (500, 501):
        return status
    if refusal.status in (401, 403):
        return "not authorized to access endpoint"
    if refusal.status == 400:
        try:
            body = json.loads(refusal.body)
        except ValueError:
            return "invalid character 'P' looking for beginning of value"
        shown = body.get("errors", body) if isinstance(body, dict) else body
        return f"bad request: {status} - {json.dumps(shown, separators=(',', ':'), ensure_ascii=False)}"
    if not refusal.body:
        return "unexpected end of JSON input"
    return None


class Server:
    """One Proxmox VE as CAPMOX sees it."""

    def __init__(self, client: ProxmoxClient, clock: Clock) -> None:
        self.client, self.clock = client, clock

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """The `data` of an answer. Raises Failure with the Go client's words."""
        client = self.client
        try:
            if method == "GET":
                return await client.get(path, **query)
            if method == "DELETE":
                return await client.delete(path, **query)
            return await (client.post if method == "POST" else client.put)(path, body)
        except ProxmoxRefused as refusal:
            said = worded(refusal)
            if said is None:
                return None
            raise Failure(said) from refusal
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            url = f"{client.base_url}{path}"
            raise Failure(f'{method.capitalize()} "{url}": {dial_failure(url, error)}') from error
        except ValueError as error:
            raise Failure("invalid character '<' looking for beginning of value") from error

    async def version(self) -> str:
        """The server's release."""
        try:
            return str((await self.ask("GET", "/version") or {}).get("release", ""))
        except Failure as error:
            raise Failure(f"unable to initialize proxmox api client: {error}") from error

    async def _node(self, node: str) -> Json:
        try:
            return dict(await self.ask("GET", f"/nodes/{node}/status") or {})
        except Failure as error:
            if "not authorized" in str(error):
                return {}
            raise Failure(f"cannot find node with name {node}: {error}") from error

    async def _cluster(self) -> None:
        try:
            await self.ask("GET", "/cluster/status")
        except Failure as error:
            if "not authorized" not in str(error):
                raise Failure(f"cannot get cluster status: {error}") from error

    async def _machine(self, node: str, vmid: int) -> Vm:
        vm = Vm(node, vmid)
        vm.status = dict(await self.ask("GET", f"{vm.path}/status/current") or {})
        vm.config = dict(await self.ask("GET", f"{vm.path}/config") or {})
        return vm

    async def vm(self, node: str, vmid: int) -> Vm:
        """The VM of that id on the node."""
        await self._node(node)
        try:
            return await self._machine(node, vmid)
        except Failure as error:
            raise Failure(f"cannot find vm with id {vmid}: {error}") from error

    async def resources(self) -> list[Json]:
        """Every guest of the cluster."""
        await self._cluster()
        try:
            return list(await self.ask("GET", "/cluster/resources", type="vm") or [])
        except Failure as error:
            raise Failure(f"could not list vm resources: {error}") from error

    async def locate(self, vmid: int) -> str:
        """The node a guest is on."""
        for row in await self.resources():
            if row.get("vmid") == vmid:
                return str(row["node"])
        raise Failure(f"unable to find VM with ID {vmid} on any of the nodes")

    async def is_free(self, vmid: int) -> bool:
        """Whether nobody has the VMID."""
        await self._cluster()
        try:
            await self.ask("GET", "/cluster/nextid", vmid=vmid)
        except Failure as error:
            if f"VM {vmid} already exists" in str(error):
                return False
            raise
        return True

    async def clone(self, node: str, template: int, wanted: Mapping[str, Any], alone: asyncio.Lock) -> tuple[int, str]:
        """The new VMID and the UPID of its clone. `alone` is held from asking for a free VMID until it is taken."""
        await self._node(node)
        try:
            source = await self._machine(node, template)
        except Failure as error:
            raise Failure(f"unable to find vm template: {error}") from error
        body = dict(wanted)
        try:
            async with alone:
                if not body.get("newid"):
                    await self._cluster()
                    body["newid"] = int(await self.ask("GET", "/cluster/nextid"))
                upid = await self.ask("POST", f"{source.path}/clone", body)
        except Failure as error:
            raise Failure(f"unable to create new vm: {error}") from error
        return int(body["newid"]), str(upid)

    async def task(self, upid: str) -> Json:
        """The status of a task."""
        node = upid.split(":")[1] if upid.count(":") > 7 else ""
        try:
            return dict(await self.ask("GET", f"/nodes/{node}/tasks/{upid}/status") or {})
        except Failure as error:
            raise Failure("task not found") from error

    async def configure(self, vm: Vm, options: Mapping[str, Any]) -> str:
        """The UPID of a change of the config."""
        try:
            return str(await self.ask("POST", f"{vm.path}/config", options))
        except Failure as error:
            raise Failure(f"unable to configure vm: {error}") from error

    async def resize(self, vm: Vm, disk: str, size: str) -> None:
        """Nothing; nobody waits for the task."""
        await self.ask("PUT", f"{vm.path}/resize", {"disk": disk, "size": size})

    async def tag(self, vm: Vm, tag: str) -> str:
        """The UPID of adding a tag."""
        tags = [*vm.tags, tag]
        upid = await self.ask("POST", f"{vm.path}/config", {"tags": ";".join(tags)})
        vm.config["tags"] = ";".join(tags)
        return str(upid)

    async def start(self, vm: Vm) -> str:
        """The UPID of a start."""
        return str(await self.ask("POST", f"{vm.path}/status/start", {}))

    async def resume(self, vm: Vm) -> str:
        """The UPID of a resume."""
        return str(await self.ask("POST", f"{vm.path}/status/resume", {}))

    # -- the ISO image of the bootstrap data ------------------------------------------------------

    async def _iso_store(self, node: str) -> str:
        await self._node(node)
        for row in await self.ask("GET", f"/nodes/{node}/storage") or ():
            if row.get("enabled") and "iso" in str(row.get("content", "")).split(","):
                return str(row["storage"])
        raise Failure("unable to find the item you are looking for")

    async def mount(self, vm: Vm, image: bytes) -> None:
        """Nothing; the image is uploaded and in the VM's drive."""
        store, name = await self._iso_store(vm.node), f"user-data-{vm.vmid}.iso"
        try:
            upid = await self.client.upload(f"/nodes/{vm.node}/storage/{store}/upload", name, image, content="iso")
        except ProxmoxRefused as refusal:
            raise Failure(worded(refusal) or f"{refusal.status} {refusal.reason}") from refusal
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Failure(str(error) or type(error).__name__) from error
        await self._settled(str(upid), 5)
        await self._settled(await self.tag(vm, TAG), 2)
        boot = str(vm.config.get("boot", ""))
        body = {DEVICE: f"{store}:iso/{name},media=cdrom", "boot": f"{boot};{DEVICE}"}
        await self._settled(str(await self.ask("POST", f"{vm.path}/config", body)), 2)

    async def unmount(self, vm: Vm) -> None:
        """Nothing; the drive is empty and the image gone."""
        if TAG not in vm.tags:
            return
        try:
            body = {DEVICE: "none,media=cdrom"}
            await self._settled(str(await self.ask("POST", f"{vm.path}/config", body)), 2)
            await self.delete_image(vm)
        except Failure as error:
            raise Failure(f"unable to unmount cloud-init iso: {error}") from error
        await self.ask("POST", f"{vm.path}/config", {"tags": ";".join(tag for tag in vm.tags if tag != TAG)})

    async def delete_image(self, vm: Vm) -> None:
        """Nothing; the image is gone from the store."""
        store = await self._iso_store(vm.node)
        path = f"/nodes/{vm.node}/storage/{store}/content/{store}:iso/user-data-{vm.vmid}.iso"
        await self.ask("GET", path)
        await self._settled(str(await self.ask("DELETE", path)), 5)

    async def _settled(self, upid: str, seconds: float) -> None:
        tries = 0
        begun = 0.0
        while (await self.task(upid)).get("status") == "running":
            if begun >= seconds and tries >= FEWEST_TRIES:
                raise Failure("the operation has timed out")
            await asyncio.gather(self.clock.sleep(0.5), asyncio.sleep(0.01 * min(tries, 5)))
            tries, begun = tries + 1, begun + 0.5

    # -- inside the guest -------------------------------------------------------------------------

    async def wait_for_agent(self, vm: Vm) -> None:
        """Nothing; the agent answers. Raises AgentSilent after five seconds of asking."""
        for look in range(6):
            try:
                await self.ask("GET", f"{vm.path}/agent/get-osinfo")
                return
            except Failure as error:
                if "QEMU guest agent is not running" not in str(error):
                    raise Failure(f"error waiting for agent: {error}") from error
            if look < 5:
                await asyncio.gather(self.clock.sleep(1.0), asyncio.sleep(0.01 * (look + 1)))
        raise AgentSilent("error waiting for agent: the operation has timed out")

    async def cloud_init_runs(self, vm: Vm) -> bool:
        """Whether cloud-init is still at work. Raises CloudInitFailed when it ended badly."""
        await self.wait_for_agent(vm)
        try:
            body = {"command": ["cloud-init", "status"], "input-data": ""}
            pid = (await self.ask("POST", f"{vm.path}/agent/exec", body) or {}).get("pid")
        except Failure as error:
            raise Failure(f"unable to get cloud-init status: {error}") from error
        try:
            status = await self.ask("GET", f"{vm.path}/agent/exec-status", pid=pid) or {}
        except Failure as error:
            raise Failure(f"unable to wait for agent exec: {error}") from error
        if status.get("exitcode"):
            raise CloudInitFailed("cloud-init failed execution")
        return "running" in str(status.get("out-data", ""))

    # -- the end ----------------------------------------------------------------------------------

    async def destroy(self, node: str, vmid: int) -> None:
        """Nothing; the VM was told to stop and to go, and nobody waited. Raises Free when it is gone."""
        if vmid < 100:
            raise Failure(f"vm with id {vmid} does not exist")
        await self._node(node)
        if await self.is_free(vmid):
            raise Free
        try:
            vm = await self._machine(node, vmid)
        except Failure as error:
            raise Failure(f"cannot find vm with id {vmid}: {error}") from error
        if vm.running:
            try:
                await self.ask("POST", f"{vm.path}/status/stop", {})
            except Failure as error:
                raise Failure(f"cannot stop vm id {vmid}: {error}") from error
        try:
            if TAG in vm.tags:
                await self.delete_image(vm)
            await self.ask("DELETE", vm.path)
        except Failure as error:
            raise Failure(f"cannot delete vm with id {vmid}: {error}") from error

    # -- choosing ---------------------------------------------------------------------------------

    async def reservable_memory(self, node: str, percent: int) -> int:
        """Bytes that guests of the node have not been promised, of so many percent of its memory."""
        total = int(((await self._node(node)).get("memory") or {}).get("total", 0))
        if percent == 0:
            return total
        left = int(total / 100 * percent)
        for kind, words in (("qemu", "list vms"), ("lxc", "list containers")):
            try:
                rows: Iterable[Json] = await self.ask("GET", f"/nodes/{node}/{kind}") or ()
            except Failure as error:
                raise Failure(f"cannot {words} for node {node}: {error}") from error
            for row in rows:
                if "template" not in row:
                    left = max(0, left - int(row.get("maxmem", 0)))
        return left


def matching(rows: Iterable[Json], wanted: Iterable[str], policy: str = "exact") -> tuple[str, int]:
    """Node and VMID of the template with these tags. Raises TemplateMissing.

    exact: the very same set; uniqueSubset: the only one that has them all; bestSubset: of those that have them all,
    the one with the fewest others.
    """
    tags = list(wanted)
    asked = {tag.lower() for tag in tags}
    templates = [row for row in rows if row.get("template") and row.get("tags")]
    owned = [(row, set(str(row["tags"]).split(";"))) for row in templates]
    if policy == "exact":
        hits = [row for row, own in owned if own == asked]
    else:
        fitting = [(len(own - asked), row) for row, own in owned if asked <= own]
        best = min((extra for extra, _ in fitting), default=0)
        hits = [row for extra, row in fitting if policy == "uniqueSubset" or extra == best]
    if len(hits) != 1:
        shown = json.dumps(";".join(tags))
        raise TemplateMissing(f"VM template not found: found {len(hits)} VM templates with tags {shown}")
    return str(hits[0]["node"]), int(hits[0]["vmid"])


def choose_node(
    free: Mapping[str, int], locations: Iterable[Mapping[str, Any]], requested: int, *, unchecked: bool
) -> str | None:
    """The allowed node with the fewest machines of the cluster among those with room, or None."""
    fitting = [node for node in free if unchecked or free[node] >= requested]
    counts: dict[str, int] = {}
    for location in locations:
        counts[location["node"]] = counts.get(location["node"], 0) + 1
    by_memory = sorted(fitting, key=lambda node: -(requested if unchecked else free[node]))
    return min(by_memory, key=lambda node: counts.get(node, 0), default=None)
