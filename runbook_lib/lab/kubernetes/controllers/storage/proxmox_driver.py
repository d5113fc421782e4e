"""The Proxmox CSI plugin's controller: disks owned by VM 9999, attached to the VM that is the node."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..client import Object
from ..context import Context
from ..klog import line
from ..processes import Exit, Process, Program
from ..proxmox import gate
from ..trust import authority
from .binder import VOLUMES
from .csi import CsiError, Made, Snapshot, Wanted, listening
from .proxmox_api import BadConfig, Config, Failure, NotFound, Region, Vm, open_region, read_config

NAME = "csi.proxmox.sinextra.dev"
OWNER = 9999
FIRST_SLOT, END_SLOT = 1, 30
CHUNK, DEFAULT_SIZE = 512 * 2**20, 10 * 2**30
REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
INSTANCE_ID = "proxmox.sinextra.dev/instance-id"
LIFECYCLE = "csi.proxmox.sinextra.dev/lifecycle"
SNAPSHOTS_SINCE = (0, 16)
FORGIVING_SINCE = (0, 18)
"""The first release that takes a node that is gone for a node without the disk."""
FILE_STORES = frozenset({"dir", "nfs", "cifs", "cephfs", "btrfs", "glusterfs"})

NUMBERS = ("diskIOPS", "diskMBps", "blockSize", "inodeSize")
FLAGS = ("backup", "iothread", "ssd", "replicate")
WORDS = ("storage", "storageFormat", "aio", "cache", "replicateSchedule", "replicateZones")
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})


# -- judgement -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Handle:
    """region/zone/storage/disk; a volume that every node reaches has no zone."""

    region: str
    zone: str
    storage: str
    disk: str

    def __str__(self) -> str:
        return f"{self.region}/{self.zone}/{self.storage}/{self.disk}"

    @property
    def volume(self) -> str:
        """The PersistentVolume the disk is of."""
        return re.sub(r"\.(raw|qcow2)$", "", re.sub(r"^(\d+/)?vm-\d+-", "", self.disk))

    def named(self, name: str) -> Handle:
        """The handle of another disk of the same kind beside this one."""
        return Handle(self.region, self.zone, self.storage, self.disk.replace(f"vm-{OWNER}-{self.volume}", name))


def parse_handle(text: str) -> Handle:
    """The parts of a volume handle. Raises CsiError."""
    parts = text.split("/", 3)
    if len(parts) != 4:
        raise CsiError("InvalidArgument", "VolumeID must be in the format of region/zone/storageName/diskName")
    return Handle(*parts)


def parse_parameters(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters as the driver understands them, defaults among them. Raises CsiError."""
    found = {"backup": "0", "iothread": "1", "replicate": "0"}
    for key in WORDS:
        if given.get(key):
            found[key] = str(given[key])
    for key in FLAGS:
        if given.get(key):
            found[key] = "1" if given[key] in TRUE else "0"
    for key in (*NUMBERS, "resizeSizeBytes"):
        if given.get(key):
            if not re.fullmatch(r"[+-]?\d+", given[key]):
                raise CsiError("InvalidArgument", f"parameters {key} must be a number")
            found[key] = str(int(given[key]))
    if given.get("resizeRequired"):
        found["resizeRequired"] = "1" if given["resizeRequired"] in TRUE else "0"
    return {key: value for key, value in found.items() if not (key in NUMBERS and value == "0")}


def disk_options(parameters: Mapping[str, str], *, readonly: bool = False) -> dict[str, str]:
    """What the drive's line says beside its volume."""
    found = {
        key: parameters[key] for key in ("aio", "backup", "cache", "iothread", "replicate", "ssd") if key in parameters
    }
    if parameters.get("ssd") == "1":
        found["discard"] = "on"
    for key, short in (("diskIOPS", "iops"), ("diskMBps", "mbps")):
        if int(parameters.get(key, "0")) > 0:
            found |= {f"{short}_rd": parameters[key], f"{short}_wr": parameters[key]}
    if readonly:
        found["ro"] = "1"
    return found


def world_wide_name(slot: int) -> str:
    """The name under which the node finds the drive: "PVC-ID" and the slot, in hex."""
    return f"PVC-ID{slot:02d}".encode().hex()


def free_slot(config: Mapping[str, Any]) -> int | None:
    """The first scsi slot without a drive; the first of all is the system's."""
    return next((slot for slot in range(FIRST_SLOT, END_SLOT) if not config.get(f"scsi{slot}")), None)


def rounded(size: int) -> int:
    """The size in whole chunks."""
    return -(-size // CHUNK) * CHUNK if size else DEFAULT_SIZE


def vmid_of(node: Object) -> int | None:
    """The VM a node tells by itself: by annotation, or by providerID proxmox://region/vmid."""
    told = (node["metadata"].get("annotations") or {}).get(INSTANCE_ID, "")
    if told.isdigit():
        return int(told)
    match = re.fullmatch(r"proxmox://[^/]*/(\d+)", node["spec"].get("providerID", ""))
    return int(match[1]) if match else None


def version_of(tag: str) -> tuple[int, ...]:
    """A release tag as numbers: v0.19.1, edge (the newest)."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", tag)
    return tuple(int(part or 0) for part in match.groups()) if match else (99, 0, 0)


# -- the driver ----------------------------------------------------------------------------------------


@dataclass
class ProxmoxDriver:
    """The controller service of one release, with the clients of its config's regions."""

    context: Context
    process: Process
    config: Config
    version: tuple[int, ...]
    regions: dict[str, Region]
    name: str = NAME
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    @property
    def capabilities(self) -> frozenset[str]:
        """What this release can."""
        found = {"topology", "capacity", "expand"}
        return frozenset(found | {"snapshot", "clone"} if self.version >= SNAPSHOTS_SINCE else found)

    def _say(self, level: str, message: str, **values: Any) -> None:
        self.process.write(line(self.context.clock.now(), level, "controller.go:178", message, **values))

    def _refuse(self, call: str, error: CsiError, **values: Any) -> CsiError:
        self._say("E", f"{call}: {values.pop('what', 'failed')}", err=str(error), **values)
        self.process.write(line(self.context.clock.now(), "E", "main.go:119", f"GRPC error: {error}"))
        return error

    def _region(self, name: str) -> Region:
        region = self.regions.get(name)
        if region is None:
            raise CsiError("Internal", f"proxmox cluster {name} not found")
        return region

    async def create_volume(self, wanted: Wanted) -> Made:
        """The disk, made now or before."""
        try:
            return await self._create(wanted)
        except CsiError as error:
            raise self._refuse("CreateVolume", error, what="failed to create volume", volume=wanted.name) from None

    async def _create(self, wanted: Wanted) -> Made:
        parameters = parse_parameters(wanted.parameters)
        storage = parameters.get("storage", "")
        if not storage:
            raise CsiError("InvalidArgument", "parameter storage must be provided")
        size = rounded(wanted.size)
        place = next((entry for entry in wanted.preferred or () if entry.get(REGION) and entry.get(ZONE)), {})
        region, zone = place.get(REGION, ""), place.get(ZONE, "")
        if not region:
            raise CsiError("Internal", "cannot find best region")
        source = parse_handle(wanted.source.handle) if wanted.source else None
        if source is not None:
            if source.region != region:
                raise CsiError("InvalidArgument", "source snapshot region does not match the requested region")
            await self._check(source)
        cluster = self._region(region)
        try:
            row = (await cluster.storages(storage))[0]
        except Failure as error:
            raise CsiError("Internal", f"failed to get proxmox storage config: {error}") from error
        kind, shared = str(row.get("plugintype", "")), bool(row.get("shared"))
        self._check_kind(kind, shared, parameters)
        disk = f"vm-{OWNER}-{wanted.name}"
        if kind in FILE_STORES:
            disk = f"{OWNER}/{disk}.{'qcow2' if parameters.get('storageFormat') == 'qcow2' else 'raw'}"
        handle = Handle(region, zone, storage, disk)
        held = await self._made(cluster, handle, size, source)
        if held < size and source is not None:
            parameters |= {"resizeRequired": "1", "resizeSizeBytes": str(size)}
        told = Handle(region, "", storage, disk) if shared else handle
        self._say("I", "CreateVolume: volume created", cluster=region, volumeID=str(told), size=size)
        places = [{REGION: region}] if shared else [{REGION: region, ZONE: zone}]
        return Made(str(told), size, parameters, places)

    def _check_kind(self, kind: str, shared: bool, parameters: Mapping[str, str]) -> None:
        if shared and self.version < SNAPSHOTS_SINCE and kind in {"nfs", "cifs", "pbs"}:
            raise CsiError("Internal", "error: shared storage type nfs,cifs,pbs are not supported")
        if shared and kind in {"cifs", "pbs"}:
            raise CsiError("Internal", "error: shared storage type cifs, pbs are not supported")
        if parameters.get("replicate") == "1" and kind != "zfspool":
            raise CsiError("Internal", "error: storage type is not zfs in replication mode")

    async def _made(self, cluster: Region, handle: Handle, size: int, source: Handle | None) -> int:
        """The bytes of the disk, which is made when it is not there."""
        try:
            held = await cluster.volume_size(handle.zone, handle.storage, handle.disk)
            if held < size and source is None and self.version < SNAPSHOTS_SINCE:
                raise CsiError("AlreadyExists", "volume already exists with same name and different capacity")
            return held
        except NotFound:
            pass
        except Failure as error:
            raise CsiError("Internal", f"failed to check volume: {error}") from error
        try:
            if source is not None:
                if source.storage != handle.storage:
                    raise CsiError("InvalidArgument", f"storage mismatch: requested storage {handle.storage} does not "
                                                      f"match snapshot storage {source.storage}")  # fmt: skip
                await self._copy(cluster, source, handle)
            else:
                body = {"vmid": OWNER, "node": handle.zone, "storage": handle.storage,
                        "filename": handle.disk.rpartition("/")[2], "size": str(size // 1024)}  # fmt: skip
                try:
                    await cluster.ask("POST", f"/nodes/{handle.zone}/storage/{handle.storage}/content", body)
                except Failure as error:
                    why = f"unable to create disk for virtual machine: {error}"
                    raise Failure(f"failed to create vm disk: {why}") from error
            return await cluster.volume_size(handle.zone, handle.storage, handle.disk)
        except Failure as error:
            raise CsiError("Internal", str(error)) from error

    async def _copy(self, cluster: Region, source: Handle, target: Handle) -> None:
        """A full copy, through an endpoint that Proxmox VE keeps for root@pam with a password."""
        node = source.zone or (await cluster.storage_nodes(source.storage))[0]
        if target.disk.endswith(".qcow2"):
            raise Failure("volume disk must not be qcow2 format")
        body = {"target": target.disk}
        if target.zone and target.zone != node:
            body["target_node"] = target.zone
        try:
            path = f"/nodes/{node}/storage/{source.storage}/content/{source.disk}"
            upid = await cluster.ask("POST", path, body)
        except Failure as error:
            shown = " ".join(f"{key}:{body[key]}" for key in sorted(body))
            raise Failure(f"failed to copy pvc: {error}, params=map[{shown}]") from error
        ended = await cluster.finished(upid, 3600)
        if ended != "OK":
            raise Failure(f"failed to copy disk, exit status: {ended}")

    async def _check(self, handle: Handle) -> tuple[int, str]:
        """(the bytes of the disk, a node that sees it). Raises CsiError: NotFound when there is no such disk."""
        cluster = self._region(handle.region)
        try:
            if handle.zone:
                if handle.zone not in await cluster.nodes():
                    raise CsiError("NotFound", f"zone {handle.zone} not found in cluster {handle.region}")
                return await cluster.volume_size(handle.zone, handle.storage, handle.disk), handle.zone
            for node in await cluster.storage_nodes(handle.storage):
                try:
                    return await cluster.volume_size(node, handle.storage, handle.disk), node
                except NotFound:
                    continue
            said = f"volume {handle} not found in any node for storage {handle.storage}"
            raise CsiError("NotFound", said)
        except NotFound as error:
            raise CsiError("NotFound", f"volume {handle} not found") from error
        except Failure as error:
            raise CsiError("Internal", str(error)) from error

    async def delete_volume(self, handle: str) -> None:
        """Nothing; the disk is gone, or is kept because its PersistentVolume says so."""
        parsed = parse_handle(handle)
        volume = await self.context.client.find(f"{VOLUMES}/{parsed.volume}")
        if volume is None:
            return
        if (volume["metadata"].get("annotations") or {}).get(LIFECYCLE) == "keep":
            self._say("I", "DeleteVolume: volume lifecycle is keep, skipping deletion", volumeID=handle)
            return
        await self._remove("DeleteVolume", parsed, f"failed to delete volume: {handle}, ")
        self._say("I", "DeleteVolume: volume deleted", cluster=parsed.region, volumeID=handle)

    async def _remove(self, call: str, handle: Handle, prefix: str) -> None:
        try:
            _, node = await self._check(handle)
            cluster = self._region(handle.region)
            try:
                path = f"/nodes/{node}/storage/{handle.storage}/content/{handle.disk}"
                ended = await cluster.finished(await cluster.ask("DELETE", path), 30)
                if ended != "OK":
                    raise Failure(f"unable to delete virtual machine disk: {ended}")
            except Failure as error:
                raise CsiError("Internal", f"{prefix}{error}") from error
        except CsiError as error:
            if error.code == "NotFound":
                self._say("E", f"{call}: zone or volume not found", err=str(error), volumeID=str(handle))
                return
            raise self._refuse(call, error, what="failed to delete volume", volumeID=str(handle)) from None

    # -- attaching ---------------------------------------------------------------------------------

    async def publish(self, handle: str, node: str, context: Mapping[str, str], *, readonly: bool) -> dict[str, str]:
        """The path and slot of the drive at the VM that is the node."""
        parsed = parse_handle(handle)
        values = {"cluster": parsed.region, "volumeID": handle, "nodeID": node}
        try:
            parameters = parse_parameters(context)
            vmid = await self._vmid(node)
            if vmid is None:
                raise CsiError("InvalidArgument", f'nodes "{node}" not found')
            size, _ = await self._check(parsed)
            async with self._locks.setdefault(node, asyncio.Lock()):
                try:
                    told = await self._attach(parsed, vmid, disk_options(parameters, readonly=readonly))
                    wanted = int(parameters.get("resizeSizeBytes", "0"))
                    if size < wanted:
                        cluster = self._region(parsed.region)
                        await self._resize(cluster, await cluster.vm(vmid), int(told["lun"]), wanted)
                        told["resizeRequired"] = "true"
                except Failure as error:
                    raise CsiError("Internal", str(error)) from error
        except CsiError as error:
            raise self._refuse("ControllerPublishVolume", error, what="failed to attach volume", **values) from None
        self._say("I", "ControllerPublishVolume: volume published", **values)
        return told

    async def _vmid(self, name: str) -> int | None:
        """The VM that is the node; None when there is no such node. Raises CsiError."""
        node = await self.context.client.find(f"/api/v1/nodes/{name}")
        if node is None:
            return None
        if (told := vmid_of(node)) is not None:
            return told
        uuid = str((node.get("status") or {}).get("nodeInfo", {}).get("systemUUID", "")).lower()
        by_uuid = self.config.provider == "capmox"
        if not by_uuid:
            self._say("I", "failed to get proxmox VMID from ProviderID", nodeID=name,
                      providerID=node["spec"].get("providerID", ""))  # fmt: skip
        for region in self.regions.values():
            try:
                for row in await region.resources("vm", 5.0):
                    if row.get("type") != "qemu" or row.get("template") or (not by_uuid and row.get("name") != name):
                        continue
                    vm = await region.vm_on(str(row["node"]), int(row["vmid"]))
                    if vm.uuid == uuid:
                        return vm.vmid
            except Failure as error:
                raise CsiError("Internal", str(error)) from error
            region.forget()
        raise CsiError("Internal", f"vm with uuid '{uuid}' not found" if by_uuid else f"vm '{name}' not found")

    async def _attach(self, handle: Handle, vmid: int, options: Mapping[str, str]) -> dict[str, str]:
        cluster = self._region(handle.region)
        try:
            vm = await cluster.vm(vmid)
        except Failure as error:
            raise Failure(f"failed to get vm config: {error}") from error
        slot = vm.slot_of(handle.disk)
        if slot is None:
            slot = free_slot(vm.config)
            if slot is None:
                raise Failure("no free lun found")
            given = dict(options) | {"wwn": f"0x{world_wide_name(slot)}"}
            words = ",".join(f"{key}={given[key]}" for key in sorted(given))
            value = f"{handle.storage}:{handle.disk},{words}"
            try:
                upid = await cluster.ask("POST", f"{vm.path}/config", {f"scsi{slot}": value})
            except Failure as error:
                shown = f"{{Name:scsi{slot} Value:{value}}}"
                raise Failure(f"unable to attach disk: {error}, options={shown}") from error
            # how the task ended is not looked at: a drive that could not be plugged counts as published
            await cluster.finished(upid, 300)
        return {"DevicePath": f"/dev/disk/by-id/wwn-0x{world_wide_name(slot)}", "lun": str(slot)}

    async def unpublish(self, handle: str, node: str) -> None:
        """Nothing; the VM that is the node has no such drive."""
        parsed = parse_handle(handle)
        values = {"cluster": parsed.region, "volumeID": handle, "nodeID": node}
        try:
            try:
                await self._check(parsed)
            except CsiError as error:
                if error.code != "NotFound":
                    raise
                self._say("I", "ControllerUnpublishVolume: zone or volume not found", err=str(error), **values)
                return
            vmid = await self._vmid(node)
            if vmid is None:
                if self.version < FORGIVING_SINCE:
                    raise CsiError("InvalidArgument", f'nodes "{node}" not found')
                said = "VM not found for node, assuming volume is already unpublished"
                self._say("I", f"ControllerUnpublishVolume: {said}", nodeID=node)
                return
            async with self._locks.setdefault(node, asyncio.Lock()):
                try:
                    await self._detach(parsed, vmid)
                except Failure as error:
                    raise CsiError("Internal", str(error)) from error
        except CsiError as error:
            raise self._refuse("ControllerUnpublishVolume", error, what="failed to detach volume", **values) from None
        self._say("I", "ControllerUnpublishVolume: volume unpublished", **values)

    async def _detach(self, handle: Handle, vmid: int) -> None:
        cluster = self._region(handle.region)
        try:
            vm = await cluster.vm(vmid)
        except Failure as error:
            raise Failure(f"failed to get vm config: {error}") from error
        slot = vm.slot_of(handle.disk)
        if slot is None:
            return
        try:
            upid = await cluster.ask("PUT", f"{vm.path}/unlink", {"idlist": f"scsi{slot}"})
            await cluster.finished(upid, 300)
        except Failure as error:
            raise Failure(f"failed to unlink disk: {error}") from error
        for look in range(6):
            if (await cluster.vm_on(vm.node, vmid)).slot_of(handle.disk) is None:
                return
            await asyncio.gather(self.context.clock.sleep(5.0), asyncio.sleep(0.01 * look))
        raise Failure(f"volume is still attached to VM {vmid}")

    # -- sizes -------------------------------------------------------------------------------------

    async def expand(self, handle: str, size: int) -> tuple[int, bool]:
        """(the size of the grown disk, True): the node grows the file system."""
        parsed, wanted = parse_handle(handle), rounded(size)
        try:
            await self._check(parsed)
            cluster = self._region(parsed.region)
            try:
                found = await cluster.holder([parsed.zone] if parsed.zone else [], parsed.disk)
                if found is None:
                    words = "cannot resize unpublished"
                    raise CsiError("Internal", words if self.version >= SNAPSHOTS_SINCE else f"{words} volumeID")
                await self._resize(cluster, *found, wanted)
            except Failure as error:
                raise CsiError("Internal", str(error)) from error
        except CsiError as error:
            raise self._refuse(
                "ControllerExpandVolume", error, what="failed to resize vm disk", cluster=parsed.region, volumeID=handle
            ) from None
        self._say("I", "ControllerExpandVolume: volume expanded", cluster=parsed.region, volumeID=handle,
                  vmID=found[0].vmid, size=wanted)  # fmt: skip
        return wanted, True

    async def _resize(self, cluster: Region, vm: Vm, slot: int, size: int) -> None:
        try:
            body = {"disk": f"scsi{slot}", "size": f"{size // 2**20}M"}
            ended = await cluster.finished(await cluster.ask("PUT", f"{vm.path}/resize", body), 300)
            if ended != "OK":
                raise Failure(ended)
        except Failure as error:
            raise Failure(f"unable to resize virtual machine disk: {error}") from error

    async def capacity(self, parameters: Mapping[str, str], segments: Mapping[str, str]) -> int:
        """The bytes left on the class's storage at that place; 0 where it is not."""
        region, zone, storage = segments.get(REGION, ""), segments.get(ZONE, ""), parameters.get("storage", "")
        try:
            if not region or not storage:
                raise CsiError("InvalidArgument", "region and storage must be provided")
            cluster = self._region(region)
            rows = await cluster.storages(storage)
            if not zone:
                if not rows[0].get("shared"):
                    raise CsiError("InvalidArgument", "zone must be provided")
                zone = (await cluster.storage_nodes(storage))[0]
            if zone not in {str(row["node"]) for row in rows}:
                return 0
            status = await cluster.ask("GET", f"/nodes/{zone}/storage/{storage}/status") or {}
            return int(status.get("avail") or 0)
        except Failure as error:
            refusal = CsiError("Internal", str(error))
            raise self._refuse("GetCapacity", refusal, what="failed to get storage status", cluster=region,
                               storageID=storage) from error  # fmt: skip

    # -- snapshots ---------------------------------------------------------------------------------

    async def create_snapshot(self, handle: str, name: str, parameters: Mapping[str, str]) -> Snapshot:
        """A full copy beside the disk, made now or before."""
        parsed = parse_handle(handle)
        try:
            return await self._snapshot(parsed, name, parameters)
        except CsiError as error:
            raise self._refuse(
                "CreateSnapshot", error, what="failed to create snapshot", cluster=parsed.region, volumeID=handle
            ) from None

    async def _snapshot(self, source: Handle, name: str, parameters: Mapping[str, str]) -> Snapshot:
        cluster = self._region(source.region)
        try:
            config = dict(await cluster.ask("GET", f"/storage/{source.storage}") or {})
        except Failure as error:
            raise CsiError("Internal", str(error)) from error
        if config.get("type") in {"cifs", "pbs"}:
            raise CsiError("Internal", "storage type cifs, pbs do not support snapshot")
        if config.get("type") == "rbd":
            raise CsiError("Internal", "storage type rbd(ceph) does not support snapshot")
        if config.get("shared"):
            raise CsiError("Internal", "shared storage does not support snapshot")
        await self._check(source)
        target = source.named(f"vm-{OWNER}-{name}")
        if zone := parameters.get("zone"):
            if config.get("nodes") and zone not in str(config["nodes"]).split(","):
                raise CsiError("InvalidArgument", "zone specified in parameters is not valid for the storage")
            target = Handle(target.region, zone, target.storage, target.disk)
        try:
            try:
                size = await cluster.volume_size(target.zone, target.storage, target.disk)
            except NotFound:
                await self._copy(cluster, source, target)
                size = await cluster.volume_size(target.zone, target.storage, target.disk)
        except Failure as error:
            raise CsiError("Internal", str(error)) from error
        self._say("I", "CreateSnapshot: snapshot created", cluster=source.region, volumeID=str(source),
                  snapshotID=str(target))  # fmt: skip
        return Snapshot(str(target), size, size > 0)

    async def delete_snapshot(self, handle: str) -> None:
        """Nothing; the copy is gone."""
        parsed = parse_handle(handle)
        await self._remove("DeleteSnapshot", parsed, f"failed to delete volume: {parsed.disk}, ")


# -- the container -------------------------------------------------------------------------------------


def config_source(pod: Object, container: Object) -> tuple[str, str]:
    """(the Secret, the key in it) that the container's --cloud-config lies in."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    given = [
        str(word).partition("=")[2] for word in words if str(word).startswith(("--cloud-config=", "-cloud-config="))
    ]
    folder, _, key = (given[0] if given else "/etc/proxmox/config.yaml").rpartition("/")
    for mount in container.get("volumeMounts") or ():
        if folder.startswith(mount["mountPath"].rstrip("/")):
            for volume in (pod.get("spec") or {}).get("volumes") or ():
                if volume["name"] == mount["name"] and "secret" in volume:
                    return str(volume["secret"]["secretName"]), key
    return "proxmox-csi-plugin", key


async def run(context: Context, process: Process) -> None:
    """Serves the pod's sidecars until cancelled. Raises Exit for a config that cannot be used."""
    version = version_of(process.version)
    say = process.write
    now = context.clock.now
    say(line(now(), "I", "main.go:81", f"Driver version 0.5.0, GitVersion {process.version}"))
    say(line(now(), "I", "main.go:82", "Driver CSI Spec version: 1.11.0"))
    name, key = config_source(process.pod, process.container)
    secret = await context.client.find(f"/api/v1/namespaces/{process.namespace}/secrets/{name}")
    data = {
        entry: base64.b64decode(value).decode(errors="replace")
        for entry, value in ((secret or {}).get("data") or {}).items()
    }
    try:
        if key not in data:
            path = f"/etc/proxmox/{key}"
            raise BadConfig(f"failed to read config: error reading {path}: open {path}: no such file or directory")
        config = read_config(data[key], data)
    except BadConfig as error:
        raise Exit(255, line(now(), "F", "main.go:130", f"Failed to create controller service: {error}")) from error
    trusted = process.env.get("PROXMOX_CA", "") or await authority(context, process)
    way = gate(context, process)
    regions = {
        site.region: open_region(site, context.clock, version, ca=trusted, gate=way, outside=context.outside)
        for site in config.sites
    }
    driver = ProxmoxDriver(context, process, config, version, regions)
    try:
        async with listening(context, process, driver):
            say(line(now(), "I", "main.go:141", 'Listening for connection on address: "/csi/csi.sock"'))
            await asyncio.Event().wait()
    finally:
        for region in regions.values():
            await region.close()


PROGRAMS = (Program("proxmox-csi-controller", run, leads=False),)
