"""The reconciler of ProxmoxMachines: from a Machine's bootstrap data to a VM that runs, and back to nothing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

from ..alarms import Alarms
from ..capi.manager import at_turns
from ..client import Key, Object, Refused
from ..reconcile import reconcile
from . import bootstrap
from .era import (
    ANNOTATION,
    CLUSTER_LABEL,
    MACHINE_FINALIZER,
    ZONE_LABEL,
    Claim,
    Nic,
    claims,
    condition,
    has_failed,
    infrastructure_ready,
    is_control_plane,
    is_ready,
    mark,
    may_unmount,
    nics,
    paused,
    reason_of,
    set_ready,
)
from .scope import REQUEUE, RESYNC, Missing, Retries, Shared
from .server import AgentSilent, CloudInitFailed, Failure, Free, Server, TemplateMissing, Vm, choose_node, matching

WORKERS = 10
RETRY_SECONDS = 60.0
SOURCE = "proxmoxmachine_controller.go"


class Again(Exception):
    """To be called again after so many seconds of the lab."""

    def __init__(self, seconds: float, text: str) -> None:
        super().__init__(text)
        self.seconds = seconds


@dataclass
class Scope:
    """One pass over one machine. `item` is changed and written back at the end."""

    item: Object
    machine: Object
    cluster: Object
    home: Object
    server: Server
    vm: Vm = field(default_factory=lambda: Vm("", 0))

    @property
    def name(self) -> str:
        """The machine's name, which is the VM's too."""
        return str(self.item["metadata"]["name"])

    @property
    def spec(self) -> Object:
        """What is wished."""
        return dict(self.item["spec"])

    @property
    def status(self) -> Object:
        """What is told; to be changed."""
        found: Object = self.item.setdefault("status", {})
        return found

    @property
    def vmid(self) -> int:
        """The VM's number, -1 while there is none."""
        return int(self.item["spec"].get("virtualMachineID") or -1)

    def node(self) -> str:
        """The Proxmox node the VM is believed to be on."""
        if known := self.status.get("proxmoxNode"):
            return str(known)
        locations = (self.home.get("status") or {}).get("nodeLocations") or {}
        for row in [*(locations.get("workers") or ()), *(locations.get("controlPlane") or ())]:
            if row["machine"]["name"] == self.name:
                return str(row["node"])
        return str(self.spec.get("sourceNode", ""))


class Machines:
    """The controller of machines."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self.era, self.context = shared, shared.era, shared.context
        self.alarms = Alarms(shared.context)
        self.retries = Retries(self.alarms)
        # the lab's clock runs faster than the one of the stamps, so a retry's pause is held here
        self._pauses: dict[Key, asyncio.Future[None]] = {}
        # One manager never gives the same free VMID to two of its machines, nor the last room of a node.
        self.creating, self.numbering = asyncio.Lock(), asyncio.Lock()

    async def run(self) -> None:
        """Works until cancelled."""
        shared = self.shared
        try:
            await reconcile(
                self.context,
                shared.machines,
                self.work,
                also=(
                    (self.alarms, Alarms.keys),
                    (shared.homes, at_turns(self._of_cluster)),
                ),
                crowds=((shared.owners, self._of_owner),),
                workers=WORKERS,
            )
        finally:
            self.alarms.close()
            for pause in self._pauses.values():
                pause.cancel()

    def _of_owner(self, machine: Object) -> list[Key]:
        reference = (machine.get("spec") or {}).get("infrastructureRef") or {}
        if reference.get("kind") != "ProxmoxMachine":
            return []
        return [(machine["metadata"]["namespace"], reference.get("name", ""))]

    def _of_cluster(self, cluster: Object) -> list[Key]:
        space, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        return [
            key
            for key, item in self.shared.machines.items.items()
            if key[0] == space and (item["metadata"].get("labels") or {}).get(CLUSTER_LABEL) == name
        ]

    # -- one pass ---------------------------------------------------------------------------------

    async def work(self, key: Key, known: Object | None) -> None:
        """One pass over one machine."""
        if known is None:
            self.alarms.cancel(key)
            self.retries.worked(key)
            if pause := self._pauses.pop(key, None):
                pause.cancel()
            return
        scope = await self._scope(key, known)
        if scope is None:
            return
        before = copy.deepcopy(scope.item)
        path = self.era.path("proxmoxmachines", *key)
        after: float | None = None
        failure: Exception | None = None
        try:
            deleting = "deletionTimestamp" in scope.item["metadata"]
            after = await (self._delete(scope) if deleting else self._normal(scope))
        except Again as again:
            self.shared.error(f"{SOURCE}:227", "Requeue requested", scope.item, again)
            after = again.seconds
        except (Failure, Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = error
        try:
            if await self.shared.save(self.shared.machines, path, before, scope.item):
                self.alarms.moved(key)
        except Refused as error:
            if error.code == 404:
                return
            failure = failure or error
        if failure is not None:
            self.shared.error("controller.go:474", "Reconciler error", scope.item,
                              f"failed to reconcile VM: {failure}")  # fmt: skip
            self.retries.failed(key)
            return
        self.retries.worked(key)
        if after == RESYNC:
            self.alarms.rest(key, after)
        elif after is not None:
            self.alarms.set(key, after)

    async def _scope(self, key: Key, known: Object) -> Scope | None:
        shared, log = self.shared, self.shared.log
        owner = next(
            (
                row
                for row in known["metadata"].get("ownerReferences") or ()
                if row["kind"] == "Machine" and row["apiVersion"].startswith("cluster.x-k8s.io/")
            ),
            None,
        )
        machine = shared.owners.get(key[0], owner["name"]) if owner else None
        if machine is None:
            log(f"{SOURCE}:106", "Machine Controller has not yet set OwnerRef", known)
            return None
        cluster = shared.cluster_of(machine)
        if cluster is None:
            log(f"{SOURCE}:115", "Machine is missing cluster label or cluster does not exist", known)
            return None
        if paused(cluster, known):
            log(f"{SOURCE}:120", "ProxmoxMachine or linked Cluster is marked as paused, not reconciling", known)
            return None
        home = shared.home_of(cluster)
        if home is None:
            log(f"{SOURCE}:131", "ProxmoxCluster is not ready yet", known)
            return None
        try:
            server = await shared.server_for(home)
        except Failure as error:
            text = f"error getting infra provider cluster or control plane object: {error}"
            if not isinstance(error, Missing):
                text = text.replace("object: ", "object: Unable to initialize ProxmoxClient: ")
            shared.error("controller.go:474", "Reconciler error", known, text)
            self.retries.failed(key)
            return None
        return Scope(copy.deepcopy(known), machine, cluster, home, server)

    async def _normal(self, scope: Scope) -> float | None:
        era, item, log = self.era, scope.item, self.shared.log
        if has_failed(era, item):
            log(f"{SOURCE}:187", "Error state detected, skipping reconciliation", item)
            return None
        if not infrastructure_ready(era, scope.cluster):
            log(f"{SOURCE}:192", "Cluster infrastructure is not ready yet", item)
            reason = "WaitingForClusterInfrastructure" + ("" if era.old else "Ready")
            self._mark(scope, reason)
            return None
        if not (scope.machine["spec"].get("bootstrap") or {}).get("dataSecretName"):
            log(f"{SOURCE}:199", "Bootstrap data secret reference is not yet available", item)
            self._mark(scope, "WaitingForBootstrapData")
            return None
        if MACHINE_FINALIZER not in item["metadata"].get("finalizers", ()):
            path = era.path("proxmoxmachines", item["metadata"]["namespace"], scope.name)
            finalizers = [*item["metadata"].get("finalizers", ()), MACHINE_FINALIZER]
            body = {"metadata": {"finalizers": finalizers, "resourceVersion": item["metadata"]["resourceVersion"]}}
            answer = await self.context.client.patch(path, body)
            await self.shared.machines.caught_up(answer)
            item["metadata"] = answer["metadata"]
        if not await self._provision(scope):
            scope.status["vmStatus"] = "pending"
            log(f"{SOURCE}:235", "VM state is not reconciled", item, expectedVMState="ready", actualVMState="pending")
            return REQUEUE
        scope.status["vmStatus"] = "ready"
        if not era.old:
            labels = item["metadata"].setdefault("labels", {})
            labels[ZONE_LABEL] = (item["spec"].get("network") or {}).get("zone", "default")
        set_ready(era, item)
        mark(era, item, era.machine, True, "Provisioned", self.context.stamp())
        log(f"{SOURCE}:250", "ProxmoxMachine is ready", item)
        return RESYNC

    async def _provision(self, scope: Scope) -> bool:
        """Whether the VM is ready; each step goes on where the last pass left off."""
        if await self._task_runs(scope):
            return False
        if await self._ensure(scope) or await self._configure(scope):
            return False
        await self._disks(scope)
        for step in (self._addresses, self._bootstrap, self._power):
            if await step(scope):
                return False
        self._tell_addresses(scope)
        if await self._cloud_init(scope):
            return False
        if not self.era.old and reason_of(self.era, scope.item) == "TaskFailed":
            return False
        if may_unmount(self.era, scope.machine):
            try:
                await scope.server.unmount(scope.vm)
            except Failure as error:
                raise Failure(f"failed to unmount cloud-init iso for vm {scope.name}: {error}") from error
        return True

    def _mark(self, scope: Scope, reason: str, *, severity: str = "Info", message: str = "") -> None:
        stamp = self.context.stamp()
        mark(self.era, scope.item, self.era.machine, False, reason, stamp, severity=severity, message=message)

    def _give_up(self, scope: Scope, reason: str, message: str) -> None:
        """Nothing; the machine is terminally failed: 0.7 says so in two fields, 0.8 and later in its condition."""
        if self.era.old:
            scope.status.update(failureReason=reason, failureMessage=message)
        else:
            self._mark(scope, "VMProvisionFailed", severity="Error", message=message)

    def _at(self, scope: Scope, *reasons: str) -> bool:
        """Whether it is this step's turn; 0.7 has no turns, each of its passes makes every step."""
        return self.era.old or reason_of(self.era, scope.item) in reasons

    # -- tasks ------------------------------------------------------------------------------------

    async def _task_runs(self, scope: Scope) -> bool:
        status, upid = scope.status, scope.status.get("taskRef")
        if not upid:
            return False
        task = await scope.server.task(upid)
        key = (scope.item["metadata"]["namespace"], scope.name)
        pause = self._pauses.get(key)
        if status.get("retryAfter") and pause is not None and not pause.done():
            raise Again(RETRY_SECONDS, "last task failed")
        values = {"taskType": task.get("type", "")}
        self.shared.log("task.go:98", "task found", scope.item, **values, state=task.get("status", ""),
                        description=task.get("type", ""))  # fmt: skip
        if task.get("status") == "running":
            self.shared.log("task.go:102", "task is still pending", scope.item, **values)
            return True
        said = str(task.get("exitstatus", ""))
        if said == "OK" or said.startswith("WARNINGS"):
            self.shared.log("task.go:105", "task is a success", scope.item, **values)
            status.pop("taskRef", None)
            status.pop("retryAfter", None)
            return False
        self.shared.log("task.go:109", "task failed", scope.item, **values)
        if self.era.old:
            self._mark(scope, "TaskFailure", message=said)
        elif task.get("type") != "qmstart":
            self._mark(scope, "TaskFailed", message=said)
        if not status.get("retryAfter"):
            status["retryAfter"] = _stamp(self.context.clock.now() + RETRY_SECONDS)
            self._pauses[key] = asyncio.ensure_future(self.context.clock.sleep(RETRY_SECONDS))
            raise Again(RETRY_SECONDS, f"task failed: {said}")
        self._pauses.pop(key, None)
        status.pop("taskRef", None)
        status.pop("retryAfter", None)
        return True

    # -- the VM -----------------------------------------------------------------------------------

    async def _ensure(self, scope: Scope) -> bool:
        era, item = self.era, scope.item
        fresh = {
            "",
            "WaitingForClusterInfrastructure",
            "WaitingForClusterInfrastructureReady",
            "WaitingForBootstrapData",
        }
        if (not condition(item, era.machine) or reason_of(era, item) in fresh) and not is_ready(era, item):
            self._mark(scope, "Cloning")
        if scope.vmid > 0:
            try:
                vm = await scope.server.vm(scope.node(), scope.vmid)
            except Failure as error:
                self.shared.error("find.go:58", "unable to find vm", item, error)
                await self._relocate(scope)
                raise Failure("vm not found") from error
            if vm.name != scope.name:
                self.shared.log("find.go:62", "vm is not initialized yet", item, level="E")
                raise Failure("vm not initialized")
            scope.vm = vm
            item["spec"]["providerID"] = f"proxmox://{vm.uuid}"
            return False
        self.shared.log("find.go:69", "vmid doesn't exist yet", item)
        try:
            chooses = (
                scope.spec.get("vmIDRange") or scope.spec.get("allowedNodes") or scope.home["spec"].get("allowedNodes")
            )
            async with self.creating if chooses else contextlib.nullcontext():
                vmid, upid, node = await self._create(scope)
        except Failure as error:
            if not has_failed(era, item) or era.old:
                reason = "VMProvisionFailed" if isinstance(error, TemplateMissing) and era.old else "CloningFailed"
                self._mark(
                    scope, reason, severity="Error" if reason == "VMProvisionFailed" else "Warning", message=str(error)
                )
            raise
        scope.status.update(taskRef=upid, proxmoxNode=node)
        item["spec"]["virtualMachineID"] = vmid
        await self._locate(scope, node)
        return True

    async def _relocate(self, scope: Scope) -> None:
        try:
            node = await scope.server.locate(scope.vmid)
            vm = await scope.server.vm(node, scope.vmid)
        except Failure as error:
            raise Failure(f"error trying to locate vm: {error}") from error
        if not vm.name:
            raise Failure("error trying to locate vm: vm exists but does not have a name yet")
        if vm.name != scope.name:
            said = f'expected VM name to match "{scope.name}" but it was "{vm.name}"'
            self._give_up(scope, "UnkownMachine", said)
            raise Failure(f"error trying to locate vm: {said}")
        scope.status["proxmoxNode"] = node
        await self._locate(scope, node)

    async def _create(self, scope: Scope) -> tuple[int, str, str]:
        """VMID, task and node of a clone that has begun."""
        spec, server = scope.spec, scope.server
        wanted: dict[str, Any] = {"newid": await self._free_vmid(scope), "name": scope.name, "full": 1}
        if spec.get("full") is False:
            wanted["full"] = 0
        for key, name in (("description", "description"), ("format", "format"), ("pool", "pool"),
                          ("snapName", "snapname"), ("storage", "storage"), ("target", "target")):  # fmt: skip
            if spec.get(key):
                wanted[name] = spec[key]
        allowed = list(spec.get("allowedNodes") or scope.home["spec"].get("allowedNodes") or ())
        if "target" not in wanted and allowed:
            wanted["target"] = await self._schedule(scope, allowed)
        source, template = spec.get("sourceNode", ""), spec.get("templateID")
        if template is None:
            selector = spec.get("templateSelector") or {}
            try:
                source, template = matching(
                    await server.resources(), selector.get("matchTags") or (), selector.get("matchPolicy", "exact")
                )
            except TemplateMissing as error:
                self._give_up(scope, "VMTemplateNotFound", str(error))
                raise
        vmid, upid = await server.clone(source, template, wanted, self.numbering)
        self.shared.log("vm.go:232", "Task created", scope.item, taskID=upid)
        return vmid, upid, wanted.get("target") or source

    async def _free_vmid(self, scope: Scope) -> int:
        span = scope.spec.get("vmIDRange")
        if not span:
            return 0
        name = scope.cluster["metadata"]["name"]
        used = {
            item["spec"].get("virtualMachineID")
            for item in self.shared.machines.items.values()
            if (item["metadata"].get("labels") or {}).get(CLUSTER_LABEL) == name
        }
        for vmid in range(span["start"], span["end"] + 1):
            if vmid not in used and await scope.server.is_free(vmid):
                return vmid
        self._give_up(scope, "InsufficientResources", "No free vmid found in vmIDRange")
        raise Failure("No free vmid found in vmIDRange")

    async def _schedule(self, scope: Scope, allowed: list[str]) -> str:
        percent = int((scope.home["spec"].get("schedulerHints") or {}).get("memoryAdjustment", 100))
        requested = int(scope.spec.get("memoryMiB") or 0) * 2**20
        free = {node: await scope.server.reservable_memory(node, percent) for node in allowed}
        home = self.shared.clusters.get(scope.home["metadata"]["namespace"], scope.home["metadata"]["name"])
        locations = ((home or scope.home).get("status") or {}).get("nodeLocations") or {}
        rows = locations.get("controlPlane" if is_control_plane(scope.machine) else "workers") or ()
        node = choose_node(free, rows, requested, unchecked=percent == 0)
        if node is None:
            most = max(free.values(), default=0)
            said = f"cannot reserve {requested}B of memory on node {', '.join(allowed)}: {most}B available memory left"
            self._give_up(scope, "InsufficientResources", said)
            raise Failure(said)
        return node

    async def _locate(self, scope: Scope, node: str | None) -> None:
        """Nothing; the ProxmoxCluster says where the machine is, or no longer does."""
        shared, space, name = self.shared, scope.home["metadata"]["namespace"], scope.home["metadata"]["name"]
        part = "controlPlane" if is_control_plane(scope.machine) else "workers"
        path = self.era.path("proxmoxclusters", space, name)
        async with shared.locating:
            home = await self.context.client.find(path)
            if home is None:
                return
            locations = dict((home.get("status") or {}).get("nodeLocations") or {})
            old = list(locations.get(part) or ())
            rows = [row for row in old if row["machine"]["name"] != scope.name]
            if node is not None:
                zone = (scope.item["spec"].get("network") or {}).get("zone")
                extra = {} if self.era.old or not zone else {"zone": zone}
                rows.append({"machine": {"name": scope.name}, "node": node, **extra})
            if rows == old:
                return
            body = {"status": {"nodeLocations": {**locations, part: rows}}}
            await shared.clusters.caught_up(await self.context.client.patch(f"{path}/status", body))

    # -- what it is like --------------------------------------------------------------------------

    async def _configure(self, scope: Scope) -> bool:
        if not self._at(scope, "Cloning") or scope.vm.running or is_ready(self.era, scope.item):
            return False
        options = wanted_options(scope.spec, nics(self.era, scope.spec), scope.vm)
        if not options:
            # 0.8 and later stay where they are then, and every later step is passed over
            return False
        try:
            upid = await scope.server.configure(scope.vm, options)
        except Failure as error:
            raise Failure(f"failed to configure VM {scope.name}: {error}") from error
        scope.status["taskRef"] = upid
        if not self.era.old:
            self._mark(scope, "WaitingForDiskReconciliation")
        return True

    async def _disks(self, scope: Scope) -> None:
        if not self._at(scope, "WaitingForDiskReconciliation"):
            return
        volume = (scope.spec.get("disks") or {}).get("bootVolume")
        if scope.vm.running or is_ready(self.era, scope.item):
            return
        if volume:
            try:
                await scope.server.resize(scope.vm, volume["disk"], f"{volume['sizeGb']}G")
            except Failure as error:
                self.shared.error("vm.go:271", "unable to set disk size", scope.item, error, vm=scope.vmid)
                raise
        if not self.era.old:
            self._mark(scope, "WaitingForStaticIPAllocation")

    # -- addresses --------------------------------------------------------------------------------

    def _claims(self, scope: Scope) -> list[Claim]:
        zone = (scope.item["spec"].get("network") or {}).get("zone", "default")
        middle = "" if self.era.old or zone == "default" else f"{zone}-"
        config: Object = scope.home["spec"]
        if middle:
            config = next((row for row in config.get("zoneConfig") or () if row["zone"] == zone), {})
        name = scope.home["metadata"]["name"]
        four = f"{name}-{middle}v4-icip" if config.get("ipv4Config") else ""
        six = f"{name}-{middle}v6-icip" if config.get("ipv6Config") else ""
        return claims(self.era, scope.name, nics(self.era, scope.spec), four, six)

    def _address(self, scope: Scope, claim: Claim) -> Object | None:
        return self.shared.addresses.get(scope.item["metadata"]["namespace"], claim.name)

    async def _addresses(self, scope: Scope) -> bool:
        if self.era.old:
            if scope.status.get("ipAddresses"):
                return False
        elif reason_of(self.era, scope.item) != "WaitingForStaticIPAllocation":
            return False
        wanted = self._claims(scope)
        missing = [claim for claim in wanted if self._address(scope, claim) is None]
        for claim in missing:
            await self._claim(scope, claim)
        if missing:
            if self.era.old:
                self._mark(scope, "WaitingForStaticIPAllocation")
                return True
            raise Failure("requeuing network reconcillation")
        found = [(claim, (self._address(scope, claim) or {})["spec"]["address"]) for claim in wanted]
        first = next((address for claim, address in found if claim.default and ":" not in address), "")
        tag = f"ip_net0_{first}"
        if first and tag not in scope.vm.tags:
            self.shared.log("ip.go:129", "adding virtual machine ip tag.", scope.item, ip=first)
            try:
                scope.status["taskRef"] = await scope.server.tag(scope.vm, tag)
            except Failure as error:
                raise Failure(f"unable to add IP tag to VirtualMachine {scope.name}: {error}") from error
        scope.status["ipAddresses"] = told_addresses(self.era.old, found)
        if not self.era.old:
            self._mark(scope, "WaitingForBootstrapDataReconciliation")
        return True

    async def _claim(self, scope: Scope, claim: Claim) -> None:
        space = scope.item["metadata"]["namespace"]
        if self.shared.claims.get(space, claim.name) is not None:
            return
        if claim.kind == "InClusterIPPool" and self.shared.pools.get(space, claim.pool) is None:
            text = f'InClusterIPPool.ipam.cluster.x-k8s.io "{claim.pool}" not found'
            raise Failure(
                f"unable to create IP address claim for machine {scope.name}: "
                f"unable to find inclusterpool for cluster {scope.home['metadata']['name']}: {text}"
            )
        self.shared.log("ip.go:190", "IPAddress not found, creating it.", scope.item, device=claim.device)
        meta: Object = {
            "name": claim.name,
            "namespace": space,
            "labels": {CLUSTER_LABEL: scope.cluster["metadata"]["name"]},
            "ownerReferences": [owner_of(scope.item)],
        }
        if not self.era.old:
            meta["annotations"] = {f"{ANNOTATION}/pool-ref-counter": str(claim.offset)}
            if claim.default:
                meta["annotations"][f"{ANNOTATION}/default-gateway"] = "true"
        reference = {"apiGroup": "ipam.cluster.x-k8s.io", "kind": claim.kind, "name": claim.pool}
        version = f"ipam.cluster.x-k8s.io/{self.era.contract}"
        body = {"apiVersion": version, "kind": "IPAddressClaim", "metadata": meta, "spec": {"poolRef": reference}}
        try:
            answer = await self.context.client.create(self.era.ipam("ipaddressclaims", space), body)
        except Refused as error:
            if error.reason != "AlreadyExists":
                raise Failure(f"unable to create IP address claim for machine {scope.name}: {error.message}") from error
            return
        await self.shared.claims.caught_up(answer)

    # -- bootstrap data ---------------------------------------------------------------------------

    async def _bootstrap(self, scope: Scope) -> bool:
        status = scope.status
        if not self._at(scope, "WaitingForBootstrapDataReconciliation") or status.get("bootstrapDataProvided"):
            return False
        if self.era.old and not status.get("ipAddresses"):
            self._mark(scope, "WaitingForStaticIPAllocation", severity="Warning", message="no ip address")
            return True
        devices = nics(self.era, scope.spec)
        if not all(scope.vm.mac(nic.name) for nic in devices):
            return True
        try:
            data, kind = await self._data(scope)
        except Failure as error:
            self._mark(scope, "CloningFailed", severity="Warning", message=str(error))
            raise
        image = self._image(scope, devices, data, kind)
        try:
            await scope.server.mount(scope.vm, image)
        except Failure as error:
            said = f"{kind if kind == 'ignition' else 'cloud-init'} iso inject failed: {error}"
            self._mark(scope, "VMProvisionFailed" if self.era.old else "WaitingForBootstrapDataReconciliation",
                       severity="Warning", message=str(error))  # fmt: skip
            raise Failure(f"failed to inject bootstrap data: {said}") from error
        status["bootstrapDataProvided"] = True
        if not self.era.old:
            self._mark(scope, "WaitingForVMPowerUp")
        return False

    async def _data(self, scope: Scope) -> tuple[bytes, str]:
        name = scope.machine["spec"]["bootstrap"]["dataSecretName"]
        space = scope.machine["metadata"]["namespace"]
        secret = await self.context.client.find(f"/api/v1/namespaces/{space}/secrets/{name}")
        if secret is None:
            raise Failure(f'failed to retrieve bootstrap data secret: secrets "{name}" not found')
        data = secret.get("data") or {}
        if "value" not in data:
            raise Failure("error retrieving bootstrap data: secret `value` key is missing")
        return base64.b64decode(data["value"]), base64.b64decode(data.get("format", "")).decode() or "cloud-config"

    def _image(self, scope: Scope, devices: list[Nic], data: bytes, kind: str) -> bytes:
        settings = scope.spec.get("metadataSettings") or {}
        identity = bootstrap.Identity(
            scope.vm.uuid,
            scope.name,
            str(scope.machine["spec"].get("version") or ""),
            bool(settings.get("providerIDInjection")),
        )
        links = [self._link(scope, number, nic) for number, nic in enumerate(devices)]
        vrfs = [
            bootstrap.Vrf(row["name"], row["table"], tuple(row.get("interfaces") or ()), row.get("routes") or ())
            for row in (scope.spec.get("network") or {}).get("vrfs") or ()
        ]
        files = {"user-data": data, "meta-data": bootstrap.meta_data(identity).encode()}
        if kind != "ignition":
            files["network-config"] = bootstrap.network_config(links, vrfs).encode()
        return bootstrap.image(files)

    def _link(self, scope: Scope, number: int, nic: Nic) -> bootstrap.Link:
        addresses: list[str] = []
        gateways: list[tuple[str, int | None]] = []
        for claim in self._claims(scope):
            address = self._address(scope, claim) if claim.device == nic.name else None
            if address is None:
                continue
            spec = address["spec"]
            addresses.append(f"{spec['address']}/{spec['prefix']}")
            if spec.get("gateway") and (self.era.old or claim.default or not gateways):
                pool = self.shared.pools.get(scope.item["metadata"]["namespace"], claim.pool) or {"metadata": {}}
                notes = pool["metadata"].get("annotations") or {}
                metric = notes.get(f"{ANNOTATION}/gateway-metric", notes.get("metric"))
                gateways.append((spec["gateway"], int(metric) if metric else None))
        dns = nic.dns or tuple(scope.home["spec"].get("dnsServers") or ())
        return bootstrap.Link(f"eth{number}", scope.vm.mac(nic.name), tuple(addresses), tuple(gateways), dns,
                              nic.routes, nic.rules, nic.link_mtu)  # fmt: skip

    # -- power and what follows -------------------------------------------------------------------

    async def _power(self, scope: Scope) -> bool:
        if not self._at(scope, "WaitingForVMPowerUp", "PoweringOnFailed"):
            return False
        if self.era.old:
            if not scope.status.get("ipAddresses"):
                return True
            if not is_ready(self.era, scope.item):
                self._mark(scope, "PoweringOn")
        vm, upid, verb = scope.vm, "", "start"
        try:
            if vm.paused:
                verb = "resume"
                upid = await scope.server.resume(vm)
            elif vm.stopped:
                upid = await scope.server.start(vm)
        except Failure as error:
            said = f"unable to {verb} the virtual machine {vm.vmid}: {error}"
            self._mark(scope, "PoweringOnFailed", message=said)
            raise Failure(said) from error
        if upid:
            scope.status["taskRef"] = upid
            return True
        if not self.era.old:
            self._mark(scope, "WaitingForClusterAPIMachineAddresses")
        return False

    def _tell_addresses(self, scope: Scope) -> None:
        if not self._at(scope, "WaitingForClusterAPIMachineAddresses"):
            return
        if not scope.vm.running:
            said = "unable to apply configuration as long as the virtual machine is not running"
            if self.era.old:
                self._mark(scope, "WaitingForNetworkAddresses", message=said)
            raise Failure(said)
        given = scope.status.get("ipAddresses")
        if isinstance(given, dict):
            first = given.get("net0") or {}
            rows = [first.get("ipv4"), first.get("ipv6")]
        else:
            found = next((row for row in given or () if row["net"] == "default"), None)
            if found is None:
                raise Failure("Machine has no default IPAddresses")
            rows = [*(found.get("ipv4") or ()), *(found.get("ipv6") or ())]
        scope.status["addresses"] = [{"type": "Hostname", "address": scope.name}] + [
            {"type": "InternalIP", "address": address} for address in rows if address
        ]
        if not self.era.old:
            self._mark(scope, "WaitingForCloudInit")

    async def _cloud_init(self, scope: Scope) -> bool:
        if not self._at(scope, "WaitingForCloudInit"):
            return False
        checks = scope.spec.get("checks") or {}
        no_agent = bool(checks.get("skipQemuGuestAgent"))
        try:
            if not no_agent:
                await scope.server.wait_for_agent(scope.vm)
            if not (no_agent or checks.get("skipCloudInitStatus")) and await scope.server.cloud_init_runs(scope.vm):
                return True
        except AgentSilent as error:
            raise Failure(f"error waiting for agent: {error}") from error
        except CloudInitFailed as error:
            self._mark(scope, "VMProvisionFailed", severity="Error", message=str(error))
            if self.era.old:
                scope.status.update(failureReason="BootstrapFailed", failureMessage=str(error))
            raise
        if not self.era.old:
            self._mark(scope, "WaitingForBootstrapReady")
        return False

    # -- the end ----------------------------------------------------------------------------------

    async def _delete(self, scope: Scope) -> float | None:
        item = scope.item
        if MACHINE_FINALIZER not in item["metadata"].get("finalizers", ()):
            return None
        self.shared.log(f"{SOURCE}:168", "Handling deleted ProxmoxMachine", item)
        self._mark(scope, "Deleting")
        try:
            await scope.server.destroy(scope.node(), scope.vmid)
            return REQUEUE
        except Free:
            pass
        except Failure as error:
            if "does not exist" not in str(error):
                if not self.era.old:
                    self._mark(scope, "DeletionFailed", message=str(error))
                raise
            if scope.vmid > 0 and not self.era.old and not await scope.server.is_free(scope.vmid):
                self._mark(scope, "DeletionFailed", message=str(error))
                return REQUEUE
        await self._locate(scope, None)
        item["metadata"]["finalizers"] = [name for name in item["metadata"]["finalizers"] if name != MACHINE_FINALIZER]
        return None


def wanted_options(spec: Object, devices: list[Nic], vm: Vm) -> dict[str, Any]:
    """What of the VM's config is not yet as the machine wishes."""
    options: dict[str, Any] = {}
    for key, name, usual in (("numSockets", "sockets", 1), ("numCores", "cores", 1), ("memoryMiB", "memory", 512)):
        if spec.get(key) and int(vm.config.get(name, usual)) != spec[key]:
            options[name] = spec[key]
    if spec.get("description") is not None and vm.config.get("description", "") != spec["description"]:
        options["description"] = spec["description"]
    ours = [nic for nic in devices if nic.wanted]
    if any(not nic.fits(str(vm.config.get(nic.name, ""))) for nic in ours):
        options |= {nic.name: nic.value for nic in ours}
    new = [tag for tag in spec.get("tags") or () if tag not in vm.tags]
    if new:
        options["tags"] = ";".join([*vm.tags, *new])
    return options


def told_addresses(old: bool, found: list[tuple[Claim, str]]) -> Any:
    """The addresses as the status tells them: a map in 0.7, a list with a net "default" of its own since."""
    if old:
        known: dict[str, dict[str, str]] = {}
        for claim, address in found:
            known.setdefault(claim.device, {})["ipv6" if ":" in address else "ipv4"] = address
        return known
    rows: dict[str, dict[str, Any]] = {}
    for claim, address in found:
        for net in (claim.device, "default") if claim.default else (claim.device,):
            row = rows.setdefault(net, {"net": net})
            row.setdefault("ipv6" if ":" in address else "ipv4", []).append(address)
    return [rows[net] for net in sorted(rows)]


def owner_of(item: Object) -> Object:
    """The owner reference of what belongs to the object."""
    return {
        "apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
