"""The Proxmox cloud controller manager: nodes learn which VM they are, and go when their VM has gone."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml

from .alarms import Alarms
from .capmox.server import Failure, Server, Vm
from .client import Key, Object, Refused
from .context import Context
from .klog import line
from .processes import Exit, Process, Program
from .proxmox import ProxmoxClient
from .reconcile import reconcile
from .trust import authority

UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
SHUTDOWN = {"key": "node.cloudprovider.kubernetes.io/shutdown", "effect": "NoSchedule"}
INSTANCE_ID = "proxmox.sinextra.dev/instance-id"
PROVIDED = "alpha.kubernetes.io/provided-node-ip"
TOPOLOGY = "topology.proxmox.sinextra.dev"
GROUP_LABEL = "group.topology.proxmox.sinextra.dev"
MODES = ("default", "qemu", "auto")
PERIOD = 5.0
SKU = re.compile(r"^[a-zA-Z0-9_.-]+$")


class Unusable(Exception):
    """The configuration is none; the text says why."""


class NotFound(Exception):
    """No VM is this node."""


class Unreachable(Exception):
    """The Proxmox node of the VM does not answer, so nobody knows."""


@dataclass(frozen=True)
class Region:
    """One Proxmox VE of the configuration."""

    name: str
    url: str
    token: str
    secret: str
    insecure: bool = False


@dataclass(frozen=True)
class Config:
    """What config.yaml says."""

    regions: tuple[Region, ...] = ()
    provider: str = "default"
    mode: str = "default"
    ha_group: bool = False
    force_labels: bool = False
    external: tuple[str, ...] = ()
    no_ipv6: bool = False
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instance:
    """The VM behind a node."""

    region: str
    vm: Vm
    kind: str
    addresses: tuple[Object, ...] = ()
    group: str = ""


def config_of(text: str) -> Config:
    """The configuration. Raises Unusable in the manager's own words."""
    try:
        given = yaml.safe_load(text) or {}
        if not isinstance(given, dict):
            raise Unusable(f"invalid cloud config\nyaml: unmarshal errors: cannot unmarshal {type(given).__name__}")
    except yaml.YAMLError as error:
        raise Unusable(f"invalid cloud config\nyaml: {' '.join(str(error).split())}") from error
    regions = []
    for number, row in enumerate(given.get("clusters") or (), 1):
        if row.get("username") and row.get("password"):
            if row.get("token_id") or row.get("token_secret"):
                raise Unusable(f"cluster #{number}: must specify one of user or token credentials, not both")
        elif not (row.get("token_id") and row.get("token_secret")):
            raise Unusable(f"cluster #{number}: user or token credentials are required")
        if not row.get("region"):
            raise Unusable(f"cluster #{number}: missing PVE region in cloud config")
        if not str(row.get("url", "")).startswith("http"):
            raise Unusable(f"cluster #{number}: missing PVE API URL in cloud config")
        url = re.sub(r"/api2/json/?$", "", str(row["url"]))
        regions.append(
            Region(str(row["region"]), url, str(row.get("token_id", "")), str(row.get("token_secret", "")),
                   bool(row.get("insecure")))
        )  # fmt: skip
    features = given.get("features") or {}
    network = features.get("network") or {}
    if network.get("mode", "default") not in MODES:
        raise Unusable("invalid network mode, valid modes are [default qemu auto]")
    if not regions:
        raise Unusable("clusters not found")
    return Config(
        tuple(regions),
        str(features.get("provider") or "default"),
        str(network.get("mode") or "default"),
        bool(features.get("ha_group")),
        bool(features.get("force_update_labels")),
        _list(network.get("external_ip_cidrs")),
        bool(network.get("ipv6_support_disabled")),
        _list(network.get("ip_sort_order")),
    )


def _list(text: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in str(text or "").split(",") if part.strip())


def provider_id(config: Config, region: str, vm: Vm) -> str:
    """The node's providerID, by region and number or, beside CAPMOX, by uuid."""
    return f"proxmox://{vm.uuid}" if config.provider == "capmox" else f"proxmox://{region}/{vm.vmid}"


def parsed_id(text: str) -> tuple[str, int]:
    """Region and number of a providerID; ("", 0) for one that has none."""
    match = re.fullmatch(r"proxmox://([^/]*)/(\d+)", text)
    return (match[1], int(match[2])) if match else ("", 0)


def is_node(node: Object, vm: Vm) -> bool:
    """Whether the VM is this node: its uuid is the same, and its name begins with the node's."""
    uuid = str(((node.get("status") or {}).get("nodeInfo") or {}).get("systemUUID", "")).lower()
    return bool(uuid) and vm.uuid == uuid and vm.name.startswith(node["metadata"]["name"])


def kind_of(vm: Vm) -> str:
    """The instance type: the SKU of the SMBIOS, else the VM's size."""
    match = re.search(r"(?:^|,)sku=([^,]+)", str(vm.config.get("smbios1", "")))
    if match:
        try:
            sku = base64.b64decode(match[1]).decode()
        except ValueError:
            sku = ""
        if SKU.match(sku):
            return sku
    cpus = int(vm.status.get("cpus", 0))
    return f"{cpus}VCPU-{int(vm.status.get('maxmem', 0)) // 2**30}GB"


def labels_of(config: Config, instance: Instance) -> dict[str, str]:
    """The labels a node gets."""
    zone = instance.group if config.ha_group else instance.vm.node
    labels = {
        "topology.kubernetes.io/region": instance.region,
        "topology.kubernetes.io/zone": zone,
        "failure-domain.beta.kubernetes.io/region": instance.region,
        "failure-domain.beta.kubernetes.io/zone": zone,
        "node.kubernetes.io/instance-type": instance.kind,
        "beta.kubernetes.io/instance-type": instance.kind,
        f"{TOPOLOGY}/region": instance.region,
        f"{TOPOLOGY}/zone": instance.vm.node,
    }
    if instance.group:
        labels[f"{GROUP_LABEL}/{instance.group}"] = ""
    return labels


def addresses_of(config: Config, node: Object, nics: list[Object]) -> list[Object]:
    """The node's addresses: what its kubelet was given, and what the guest agent knows when that is asked for."""
    meta = node["metadata"]
    found = [{"type": "Hostname", "address": meta["name"]}]
    for text in str((meta.get("annotations") or {}).get(PROVIDED, "")).split(","):
        if text.strip():
            found.append({"type": "InternalIP", "address": text.strip()})
    for nic in nics:
        if nic["name"] in ("lo", "cilium_net", "cilium_host") or nic["name"].startswith("dummy"):
            continue
        for row in nic.get("ip-addresses") or ():
            address = ipaddress.ip_address(row["ip-address"])
            if address.is_loopback or (address.version == 6 and (config.no_ipv6 or address.is_private)):
                continue
            outside = any(address in ipaddress.ip_network(cidr, strict=False) for cidr in config.external)
            entry = {"type": "ExternalIP" if outside else "InternalIP", "address": str(address)}
            if entry not in found:
                found.append(entry)
    ignored = [cidr[1:] for cidr in config.order if cidr.startswith("!")]
    return [found[0]] + [row for row in found[1:] if not _within(row["address"], ignored)]


def _within(address: str, networks: list[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(cidr, strict=False) for cidr in networks)


@dataclass
class Manager:
    """One running manager."""

    context: Context
    process: Process
    config: Config
    servers: dict[str, Server] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.context)
        self._said: dict[Key, str] = {}

    def say(self, place: str, message: str, *, level: str = "I", **values: Any) -> None:
        """Nothing; a line of the log."""
        self.process.write(line(self.context.clock.now(), level, place, message, **values))

    async def run(self) -> None:
        """Works until cancelled."""
        clients, trusted = {}, await authority(self.context, self.process)
        for region in self.config.regions:
            client = ProxmoxClient(
                region.url,
                region.token,
                region.secret,
                ca=trusted,
                insecure=region.insecure,
                agent="ProxmoxCCM/1.0",
                outside=self.context.outside,
            )
            clients[region.name], self.servers[region.name] = client, Server(client, self.context.clock)
        try:
            self.say("cloud.go:91", "clientset initialized")
            await self._check()
            self.say("cloud.go:107", "proxmox initialized")
            await reconcile(self.context, self.context.nodes, self.work, also=((self.alarms, Alarms.keys),), workers=1)
        finally:
            self.alarms.close()
            for client in clients.values():
                await client.close()

    async def _check(self) -> None:
        for region, server in self.servers.items():
            steps = (
                ("/version", "failed to initialized proxmox client in region {}, error: {}"),
                ("/cluster/status", "failed to get cluster info in region {}, error: {}"),
            )
            try:
                for path, words in steps:
                    try:
                        await server.ask("GET", path)
                    except Failure as error:
                        raise Failure(words.format(region, error)) from error
                try:
                    rows = await server.ask("GET", "/cluster/resources", type="vm")
                except Failure as error:
                    raise Failure(f"failed to get list of VMs in region {region}, error: {error}") from error
                if not rows:
                    text = "Proxmox cluster has no VMs, or check the account permission"
                    self.say("pool.go:155", text, region=region)
            except Failure as error:
                self.say("cloud.go:95", "failed to check proxmox cluster", level="E", err=str(error))

    # -- one node ---------------------------------------------------------------------------------

    async def work(self, key: Key, node: Object | None) -> None:
        """One pass over one node."""
        if node is None:
            self.alarms.cancel(key)
            self._said.pop(key, None)
            return
        try:
            if any(row["key"] == UNINITIALIZED for row in node["spec"].get("taints") or ()):
                await self._initialize(node)
            elif _ready(node) != "True" and node["spec"].get("providerID", "").startswith("proxmox://"):
                await self._look(key, node)
            else:
                self._said.pop(key, None)
                self.alarms.moved(key)
        except (Failure, Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
            text = str(error) or type(error).__name__
            if self._said.get(key) != text:
                self._said[key] = text
                said = "instances.InstanceMetadata() failed to get instance info"
                self.say("instances.go:262", said, level="E", err=text, node=key[1])
            self.alarms.set(key, PERIOD)

    async def _initialize(self, node: Object) -> None:
        name = node["metadata"]["name"]
        try:
            instance = await self._instance(node)
        except NotFound:
            text = "instance not found"
            if self._said.get(("", name)) != text:
                self._said["", name] = text
                said = "instances.InstanceMetadata() failed to get instance info"
                self.say("instances.go:262", said, level="E", err=text, node=name)
                self.say("node_controller.go:244", f"error syncing '{name}': failed to get provider ID for node {name} "
                         f"at cloudprovider: failed to get instance ID from cloud provider: {text}, requeuing",
                         level="E")  # fmt: skip
            self.alarms.set(("", name), PERIOD)
            return
        except Unreachable:
            self.alarms.set(("", name), PERIOD)
            return
        rest = [row for row in node["spec"].get("taints") or () if row["key"] != UNINITIALIZED]
        spec: Object = {"taints": rest or None}
        if not node["spec"].get("providerID"):
            spec["providerID"] = provider_id(self.config, instance.region, instance.vm)
        meta: Object = {"labels": labels_of(self.config, instance)}
        if self.config.provider == "capmox":
            meta["annotations"] = {INSTANCE_ID: str(instance.vm.vmid)}
        path = f"/api/v1/nodes/{name}"
        if len(instance.addresses) > 1:
            await self.context.client.patch(f"{path}/status", {"status": {"addresses": list(instance.addresses)}})
        answer = await self.context.client.patch(path, {"metadata": meta, "spec": spec})
        await self.context.nodes.caught_up(answer)
        self.say("node_controller.go:502", f"Successfully initialized node {name} with cloud provider")
        await self.context.event({"kind": "Node", **node}, "Synced", "Node synced successfully",
                                 component="cloud-node-controller")  # fmt: skip

    async def _look(self, key: Key, node: Object) -> None:
        """What has become of the VM of a node that is not ready."""
        name, path = key[1], f"/api/v1/nodes/{key[1]}"
        taints = list(node["spec"].get("taints") or ())
        tainted = any(row["key"] == SHUTDOWN["key"] for row in taints)
        self.alarms.set(key, PERIOD)
        try:
            instance = await self._instance(node)
        except NotFound:
            said = "deleting node since it is no longer present in cloud provider"
            self.say("node_lifecycle_controller.go:172", said, node=name)
            said = f"Deleting node {name} because it does not exist in the cloud provider"
            await self.context.event({"kind": "Node", **node}, "DeletingNode", said,
                                     component="cloud-node-lifecycle-controller")  # fmt: skip
            await self.context.client.delete(path)
            return
        except Unreachable:
            return
        if instance.vm.stopped and not tainted:
            await self.context.client.patch(path, {"spec": {"taints": [*taints, SHUTDOWN]}})
        elif tainted and not instance.vm.stopped:
            rest = [row for row in taints if row["key"] != SHUTDOWN["key"]]
            await self.context.client.patch(path, {"spec": {"taints": rest or None}})

    # -- its VM -----------------------------------------------------------------------------------

    async def _instance(self, node: Object) -> Instance:
        region, vmid = parsed_id(node["spec"].get("providerID", ""))
        meta = node["metadata"]
        if not vmid and (noted := (meta.get("annotations") or {}).get(INSTANCE_ID, "")).isdigit():
            region = (meta.get("labels") or {}).get(f"{TOPOLOGY}/region", "")
            vmid = int(noted)
        if region and vmid:
            if region not in self.servers:
                raise Failure("region not found")
            found = await self._known(region, vmid)
        else:
            found = await self._search(node)
        if not is_node(node, found[1]):
            raise NotFound
        return await self._described(node, *found)

    async def _known(self, region: str, vmid: int) -> tuple[str, Vm]:
        server = self.servers[region]
        row = next((row for row in await server.resources() if row.get("vmid") == vmid), None)
        if row is None:
            raise NotFound
        return region, await self._read(server, str(row["node"]), vmid)

    async def _search(self, node: Object) -> tuple[str, Vm]:
        name = node["metadata"]["name"]
        for region, server in self.servers.items():
            for row in await server.resources():
                if row.get("type") == "qemu" and str(row.get("name", "")).startswith(name):
                    vm = await self._read(server, str(row["node"]), int(row["vmid"]))
                    if is_node(node, vm):
                        return region, vm
        raise NotFound

    @staticmethod
    async def _read(server: Server, node: str, vmid: int) -> Vm:
        vm = Vm(node, vmid)
        try:
            vm.status = dict(await server.ask("GET", f"{vm.path}/status/current") or {})
            vm.config = dict(await server.ask("GET", f"{vm.path}/config") or {})
        except Failure as error:
            if "does not exist" in str(error):
                raise NotFound from error
            raise
        if not vm.config:
            raise Unreachable
        return vm

    async def _described(self, node: Object, region: str, vm: Vm) -> Instance:
        server, nics = self.servers[region], []
        if self.config.mode != "default":
            try:
                answer = await server.ask("GET", f"{vm.path}/agent/network-get-interfaces")
                nics = list((answer or {}).get("result") or ())
            except Failure as error:
                self.say("instances_addresses.go:85", "Failed to retrieve host addresses", level="E", err=str(error))
        elif PROVIDED not in (node["metadata"].get("annotations") or {}):
            text = (
                f"instances.InstanceMetadata() called: annotation {PROVIDED} missing from node. Was kubelet started "
                "without --cloud-provider=external or --node-ip?"
            )
            self.say("instances_addresses.go:46", text, level="E", node=node["metadata"]["name"])
        group = ""
        if self.config.ha_group:
            try:
                rows = await server.ask("GET", "/cluster/ha/groups") or ()
            except Failure as error:
                raise Failure(f"error get ha-groups {error}") from error
            group = group_of(rows, vm.node)
            if not group:
                raise Failure("ha-group not found")
        rows = addresses_of(self.config, node, nics)
        return Instance(region, vm, kind_of(vm), tuple(rows), group)


def group_of(rows: Any, node: str) -> str:
    """The first HA group that a node is in, or nothing."""
    for row in rows:
        if node in [part.partition(":")[0] for part in str(row.get("nodes", "")).split(",")]:
            return str(row.get("group", ""))
    return ""


def _ready(node: Mapping[str, Any]) -> str:
    rows = (node.get("status") or {}).get("conditions") or ()
    return next((row["status"] for row in rows if row["type"] == "Ready"), "True")


async def _configuration(context: Context, process: Process) -> str:
    """The text of the file that --cloud-config names, from the Secret that is mounted there."""
    volumes = {row["name"]: row for row in process.pod.get("spec", {}).get("volumes") or ()}
    for mount in process.container.get("volumeMounts") or ():
        name = (volumes.get(mount["name"], {}).get("secret") or {}).get("secretName")
        if not name:
            continue
        secret = await context.client.find(f"/api/v1/namespaces/{process.namespace}/secrets/{name}")
        if text := ((secret or {}).get("data") or {}).get("config.yaml"):
            return base64.b64decode(text).decode(errors="replace")
    raise Unusable("open /etc/proxmox/config.yaml: no such file or directory")


async def run(context: Context, process: Process) -> None:
    """The manager. A configuration that cannot be used ends it."""
    now = context.clock.now()
    try:
        config = config_of(await _configuration(context, process))
    except Unusable as error:
        process.write(line(now, "E", "cloud.go:62", "failed to read config", err=str(error)))
        text = f'Cloud provider could not be initialized: could not init cloud provider "proxmox": {error}'
        raise Exit(1, line(now, "F", "main.go:103", text)) from error
    await Manager(context, process, config).run()


PROGRAMS = (Program("proxmox-cloud-controller-manager", run),)
