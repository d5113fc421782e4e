"""Both emulated APIs in this process, over plain HTTP, and controllers of one's choice between them; no kubelets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.faults import Faults
from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers.client import KubeClient, Refused
from runbook_lib.lab.kubernetes.controllers.context import Context
from runbook_lib.lab.kubernetes.controllers.network import World
from runbook_lib.lab.kubernetes.controllers.processes import Process, Program
from runbook_lib.lab.kubernetes.server import create_app
from runbook_lib.lab.proxmox.permissions import Token
from runbook_lib.lab.proxmox.server import create_app as create_proxmox
from runbook_lib.lab.proxmox.state import PveState

Object = dict[str, Any]
TOKEN = "a-token-of-the-test"
SECRET = "00000000-0000-4000-8000-00000000c0de"
SPACE = "tenant-root"

KINDS = (
    ("infrastructure.cluster.x-k8s.io", "ProxmoxCluster", "proxmoxclusters"),
    ("infrastructure.cluster.x-k8s.io", "ProxmoxMachine", "proxmoxmachines"),
    ("infrastructure.cluster.x-k8s.io", "ProxmoxMachineTemplate", "proxmoxmachinetemplates"),
    ("cluster.x-k8s.io", "Cluster", "clusters"),
    ("cluster.x-k8s.io", "Machine", "machines"),
    ("ipam.cluster.x-k8s.io", "IPAddressClaim", "ipaddressclaims"),
    ("ipam.cluster.x-k8s.io", "IPAddress", "ipaddresses"),
    ("ipam.cluster.x-k8s.io", "InClusterIPPool", "inclusterippools"),
    ("ipam.cluster.x-k8s.io", "GlobalInClusterIPPool", "globalinclusterippools"),
)


@dataclass
class Worlds:
    """The two APIs, and what the programs wrote."""

    client: KubeClient
    context: Context
    state: PveState
    cluster: Cluster
    proxmox_url: str
    old: bool
    lines: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=lambda: Faults(Clock()))

    @property
    def contract(self) -> str:
        """Cluster API's version."""
        return "v1beta1" if self.old else "v1beta2"

    def own(self, plural: str, name: str = "") -> str:
        """The path of an object of CAPMOX."""
        version = "v1alpha1" if self.old else "v1alpha2"
        return f"/apis/infrastructure.cluster.x-k8s.io/{version}/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    def core(self, plural: str, name: str = "") -> str:
        """The path of an object of Cluster API."""
        return f"/apis/cluster.x-k8s.io/{self.contract}/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    def ipam(self, plural: str, name: str = "") -> str:
        """The path of a claim or an address."""
        return f"/apis/ipam.cluster.x-k8s.io/{self.contract}/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    def pool(self, name: str) -> str:
        """The path of a pool."""
        return f"/apis/ipam.cluster.x-k8s.io/v1alpha2/namespaces/{SPACE}/inclusterippools/{name}"

    async def until(self, path: str, wanted: Callable[[Object], Any], seconds: float = 15.0) -> Object:
        """The object once it is as wanted."""
        item: Object = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    item = await self.client.find(path) or {}
                    if item and wanted(item):
                        return item
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(
                f"{path} never became so: {item.get('status')}\n" + "\n".join(self.lines[-15:])
            ) from None

    async def gone(self, path: str, seconds: float = 15.0) -> None:
        """Returns once there is nothing at the path."""
        try:
            async with asyncio.timeout(seconds):
                while await self.client.find(path) is not None:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{path} stays\n" + "\n".join(self.lines[-15:])) from None

    async def eventually(self, wanted: Callable[[], Any], seconds: float = 15.0) -> Any:
        """What `wanted` gives once it gives something."""
        try:
            async with asyncio.timeout(seconds):
                while not (found := wanted()):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError("never became so\n" + "\n".join(self.lines[-15:])) from None
        return found

    async def status(self, path: str, body: Object) -> Object:
        """The object with this in its status."""
        return await self.client.patch(f"{path}/status", {"status": body})

    async def create(self, path: str, kind: str, body: Object) -> Object:
        """The custom object as created."""
        return await self.client.create(path, {"apiVersion": "/".join(path.split("/")[2:4]), "kind": kind, **body})

    def process(self, pod: Object, container: Object, **env: str) -> Process:
        """A container of that pod, which writes to `lines`."""
        return Process(pod, container, env, self.lines.append)

    # -- what Cluster API would have made ---------------------------------------------------------

    async def cluster_of_machines(self, *, credentials: bool = True, **spec: Any) -> None:
        """A Cluster with its ProxmoxCluster, once CAPMOX says that the infrastructure is there."""
        if credentials:
            data = {"url": self.proxmox_url, "token": "root@pam!capmox", "secret": SECRET}
            await self.client.create(f"/api/v1/namespaces/{SPACE}/secrets", secret("proxmox-credentials", data))
            spec = {"credentialsRef": {"name": "proxmox-credentials"}, **spec}
        reference: Object = {"kind": "ProxmoxCluster", "name": "demo"}
        group = "infrastructure.cluster.x-k8s.io"
        reference |= {"apiVersion": f"{group}/v1alpha1"} if self.old else {"apiGroup": group}
        made = await self.create(self.core("clusters"), "Cluster", {
            "metadata": {"name": "demo"}, "spec": {"infrastructureRef": reference}})  # fmt: skip
        await self.create(self.own("proxmoxclusters"), "ProxmoxCluster", {
            "metadata": {"name": "demo", "labels": LABELS, "ownerReferences": [owner(made, "Cluster", self.contract)]},
            "spec": {
                "externalManagedControlPlane": True, "dnsServers": ["10.0.0.254"],
                "controlPlaneEndpoint": {"host": "10.0.0.140", "port": 6443},
                "ipv4Config": {"addresses": ["10.0.0.150-10.0.0.155"], "prefix": 24, "gateway": "10.0.0.254"},
                **spec,
            },
        })  # fmt: skip

    async def infrastructure_ready(self) -> None:
        """Returns once the Cluster knows that its infrastructure is there."""
        await self.until(self.own("proxmoxclusters", "demo"), ready)
        told = {"infrastructureReady": True} if self.old else {"initialization": {"infrastructureProvisioned": True}}
        await self.status(self.core("clusters", "demo"), told)

    async def machine(self, name: str, *, data: str = "#cloud-config\n", **spec: Any) -> None:
        """A Machine with bootstrap data, and its ProxmoxMachine."""
        await self.client.create(f"/api/v1/namespaces/{SPACE}/secrets", secret(f"{name}-data", {"value": data}))
        group = "infrastructure.cluster.x-k8s.io"
        reference: Object = {"kind": "ProxmoxMachine", "name": name}
        reference |= {"apiVersion": f"{group}/v1alpha1"} if self.old else {"apiGroup": group}
        made = await self.create(self.core("machines"), "Machine", {
            "metadata": {"name": name, "labels": LABELS},
            "spec": {"clusterName": "demo", "version": "v1.34.3", "infrastructureRef": reference,
                     "bootstrap": {"dataSecretName": f"{name}-data"}},
        })  # fmt: skip
        network: Object = {"default": {"bridge": "vmbr0", "model": "virtio"}}
        if not self.old:
            network = {"networkDevices": [{"name": "net0", "bridge": "vmbr0", "defaultIPv4": True}]}
        wanted: Object = {
            "sourceNode": "pve1", "templateID": 9000, "numCores": 4, "memoryMiB": 4096,
            "disks": {"bootVolume": {"disk": "scsi0", "sizeGb": 40}}, "network": network, "tags": ["demo"], **spec,
        }  # fmt: skip
        await self.create(self.own("proxmoxmachines"), "ProxmoxMachine", {
            "metadata": {"name": name, "labels": LABELS, "ownerReferences": [owner(made, "Machine", self.contract)]},
            "spec": {key: value for key, value in wanted.items() if value is not None},
        })  # fmt: skip

    async def node_joined(self, name: str) -> None:
        """The Machine has its Node, as Cluster API would tell."""
        told: Object = {"nodeRef": {"name": name}, "bootstrapReady": True}
        if not self.old:
            row = {
                "type": "Available",
                "status": "True",
                "reason": "Available",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            told = {"nodeRef": {"name": name}, "conditions": [row]}
        await self.status(self.core("machines", name), told)


LABELS = {"cluster.x-k8s.io/cluster-name": "demo"}


def ready(item: Object) -> bool:
    """Whether the infrastructure object is provisioned, in either generation."""
    status = item.get("status") or {}
    return bool(status.get("ready") or (status.get("initialization") or {}).get("provisioned"))


def reason(item: Object, kind: str = "") -> str:
    """The reason of the condition that matters."""
    kinds = {kind} if kind else {"VMProvisioned", "VirtualMachineProvisioned", "ClusterReady", "ProxmoxAvailable"}
    rows = (item.get("status") or {}).get("conditions") or ()
    return next((row.get("reason", "") for row in rows if row["type"] in kinds), "")


def secret(name: str, data: Mapping[str, str]) -> Object:
    """A Secret."""
    return {"metadata": {"name": name}, "data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}}


def owner(item: Object, kind: str, contract: str) -> Object:
    """A controlling reference."""
    meta = item["metadata"]
    return {"apiVersion": f"cluster.x-k8s.io/{contract}", "kind": kind, "name": meta["name"], "uid": meta["uid"],
            "controller": True}  # fmt: skip


async def _served(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@asynccontextmanager
async def worlds(
    *programs: tuple[Program, str],
    old: bool,
    scale: float = 2000,
    proxmox: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    beside: Callable[[Worlds], Awaitable[None]] | None = None,
) -> AsyncIterator[Worlds]:
    """Both APIs with these programs, each with its image tag; what they wrote is in `lines`."""
    clock = Clock(scale)
    given = scenario.load("healthy").proxmox | dict(proxmox or {})
    state = PveState.from_scenario(given, clock=clock)
    state.access.users["root@pam"].tokens["capmox"] = Token(SECRET, privsep=False)
    state.auth_delay_seconds = 0.0
    requests: list[str] = []

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        requests.append(f"{request.method} {request.path_qs.removeprefix('/api2/json')}")
        return await handler(request)  # type: ignore[no-any-return]

    faults = Faults(clock)
    pve, url = await _served(create_proxmox(state, [note, faults.middleware("proxmox")]))
    cluster = Cluster(clock)
    cluster.tokens[TOKEN] = User("lab", ("system:masters", "system:authenticated"))
    app = create_app(cluster)
    app.middlewares.insert(0, faults.middleware("kubernetes"))
    kube, api = await _served(app)
    client = KubeClient(api, TOKEN)
    context = Context(KubeClient(api, TOKEN), clock, World())
    made = Worlds(client, context, state, cluster, url, old, requests=requests, faults=faults)
    tasks = []
    state.tasks.fault = faults.task
    try:
        await install(made)
        for program, tag in programs:
            pod = {"metadata": {"namespace": "capmox-system", "name": "manager", "uid": "u"}}
            container = {"name": "manager", "image": f"ghcr.io/x/{program.image}:{tag}"}
            process = Process(pod, container, dict(env or {}), made.lines.append)
            tasks.append(asyncio.create_task(program.run(context, process)))  # type: ignore[arg-type]
        if beside is not None:
            await beside(made)
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await context.stop()
        await context.client.close()
        await client.close()
        await state.tasks.cancel()
        await kube.cleanup()
        await pve.cleanup()


async def install(made: Worlds) -> None:
    """The definitions of the generation, and a namespace."""
    for group, kind, plural in KINDS:
        versions = [made.contract]
        if group.startswith("infra"):
            versions = ["v1alpha1" if made.old else "v1alpha2"]
        elif plural.endswith("pools"):
            versions = ["v1alpha2"]
        definition = strict.definition(group, kind, plural, versions, cluster=kind.startswith("Global"))
        await made.client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    await made.client.create("/api/v1/namespaces", {"metadata": {"name": SPACE}})
    async with asyncio.timeout(5):
        while True:
            try:
                await made.client.list(made.own("proxmoxmachines"))
                await made.client.list(made.pool("").rstrip("/"))
                return
            except Refused:
                await asyncio.sleep(0.01)
