"""Volumes: claims, disks in Proxmox VE, and the machines they are attached to, over both APIs."""

from __future__ import annotations

import asyncio
import base64
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.controllers import daemonsets, deployments, replicasets, scheduler, storage
from runbook_lib.lab.kubernetes.controllers.kubelet import Kubelets
from runbook_lib.lab.kubernetes.controllers.processes import Processes
from runbook_lib.lab.kubernetes.controllers.proxmox import ProxmoxClient
from runbook_lib.lab.kubernetes.controllers.storage import (
    attach_detach,
    matching,
    provisioner,
    proxmox_driver,
    snapshots,
)
from runbook_lib.lab.kubernetes.controllers.storage.csi import CsiError
from runbook_lib.lab.kubernetes.controllers.storage.proxmox_api import BadConfig, read_config
from runbook_lib.lab.proxmox.permissions import hash_password

sys.path.insert(0, str(Path(__file__).parent))
from test_controllers_workloads import NAMESPACE, living, until
from two_worlds import SECRET, Worlds, worlds  # lies beside this file

Object = dict[str, Any]
SPACE, SYSTEM = "tenant-root", "csi-proxmox"
DRIVER = "csi.proxmox.sinextra.dev"
CLAIMS = f"/api/v1/namespaces/{SPACE}/persistentvolumeclaims"
PODS = f"/api/v1/namespaces/{SPACE}/pods"
VOLUMES = "/api/v1/persistentvolumes"
UUID = "6f1d2a10-0c5e-4c52-9a3e-0000000c0"
MACHINES = {"worker-1": ("pve1", 111), "worker-2": ("pve2", 112), "cp-1": ("pve1", 101)}


@dataclass
class Lab:
    """Both worlds with storage."""

    made: Worlds
    kubelets: Kubelets

    @property
    def client(self) -> Any:
        return self.made.client

    def drives(self, vmid: int) -> dict[str, str]:
        """The drives of a VM that hold disks of claims."""
        config = self.made.state.guests[vmid].config
        return {key: str(value) for key, value in config.items() if "vm-9999-" in str(value) and key.startswith("scsi")}

    def disks(self, storage_name: str = "") -> list[str]:
        """The disks of claims that there are in Proxmox VE."""
        return [
            volume.volid
            for volume in self.made.state.volumes.values()
            if "vm-9999-" in volume.volid and volume.volid.startswith(storage_name)
        ]

    async def storage_class(self, name: str = "proxmox", *, store: str = "local-lvm", **given: Any) -> None:
        """A class of the driver; parameters beside."""
        parameters = {"csi.storage.k8s.io/fstype": "ext4", "storage": store, **given.pop("parameters", {})}
        body = {"metadata": {"name": name}, "provisioner": DRIVER, "parameters": parameters,
                "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": True, "reclaimPolicy": "Delete",
                **given}  # fmt: skip
        await self.client.create("/apis/storage.k8s.io/v1/storageclasses", body)

    async def claim(self, name: str = "data", *, kind: str = "proxmox", size: str = "1Gi", **spec: Any) -> Object:
        """A claim."""
        given = {"accessModes": ["ReadWriteOnce"], "storageClassName": kind,
                 "resources": {"requests": {"storage": size}}, **spec}  # fmt: skip
        return dict(await self.client.create(CLAIMS, {"metadata": {"name": name}, "spec": given}))

    async def pod(self, name: str, claim: str = "data", *, node: str = "") -> None:
        """A pod that mounts the claim."""
        spec: Object = {
            "containers": [{"name": "main", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": ["pause"],
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
            "terminationGracePeriodSeconds": 1,
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        }  # fmt: skip
        await self.client.create(PODS, {"metadata": {"name": name}, "spec": spec})

    async def running(self, name: str) -> Object:
        """The pod once it runs."""
        try:
            return await self.made.until(f"{PODS}/{name}", lambda pod: pod["status"].get("phase") == "Running")
        except AssertionError as error:
            told = [(event["reason"], event["message"]) for event in await self.events()]
            raise AssertionError(f"{error}\n{told}") from None

    async def events(self, name: str = "", reason: str = "") -> list[Object]:
        """The events about an object of the tenant, or a cluster-wide one."""
        rows = (await self.client.list("/api/v1/events"))["items"]
        return [row for row in rows if name in {"", row["involvedObject"]["name"]} and reason in {"", row["reason"]}]

    async def told(self, name: str, reason: str) -> str:
        """The message of the first such event, once there is one."""
        async with asyncio.timeout(15):
            while not (rows := await self.events(name, reason)):
                await asyncio.sleep(0.02)
        return str(rows[-1]["message"])

    async def bound(self, name: str = "data") -> Object:
        """The claim's volume once it is bound."""
        claim = await self.made.until(f"{CLAIMS}/{name}", lambda item: item["status"].get("phase") == "Bound")
        return dict(await self.client.get(f"{VOLUMES}/{claim['spec']['volumeName']}"))


def config_of(url: str, **given: Any) -> Object:
    """The plugin's config with a token of root's, unless something else is given."""
    who = {} if "username" in given else {"token_id": "root@pam!capmox", "token_secret": SECRET}
    return {"clusters": [{"url": f"{url}/api2/json", "insecure": True, "region": "lab", **who, **given}]}


SIDECARS = {
    "csi-provisioner": "v5.3.0", "csi-attacher": "v4.10.0", "csi-resizer": "v1.14.0", "csi-snapshotter": "v8.3.0",
}  # fmt: skip


@asynccontextmanager
async def lab(
    *,
    tag: str = "v0.19.1",
    labelled: bool = True,
    installed: bool = True,
    snapshotter: bool = False,
    password: bool = False,
    proxmox: Mapping[str, Any] | None = None,
    scale: float = 500,
) -> AsyncIterator[Lab]:
    """Two workers with the driver's pods, run by kubelets."""
    async with worlds(old=True, scale=scale, proxmox=proxmox) as made:
        client = made.client
        await client.create("/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
        for name, (zone, vmid) in MACHINES.items():
            await node(made, name, zone if labelled else "", vmid)
        if not installed:
            yield await started(made)
            return
        await client.create("/apis/storage.k8s.io/v1/csidrivers", {"metadata": {"name": DRIVER}, "spec": {
            "attachRequired": True, "podInfoOnMount": True, "storageCapacity": True}})  # fmt: skip
        given = {"username": "root@pam", "password": "root-of-the-test"} if password else {}
        if password:
            made.state.access.users["root@pam"].password = hash_password("root-of-the-test")
        text = yaml.safe_dump(config_of(made.proxmox_url, **given))
        data = {"config.yaml": base64.b64encode(text.encode()).decode()}
        await client.create(f"/api/v1/namespaces/{SYSTEM}/secrets", {
            "metadata": {"name": "proxmox-csi-plugin"}, "data": data})  # fmt: skip
        for kind, plural in (
            ("VolumeSnapshot", "volumesnapshots"),
            ("VolumeSnapshotContent", "volumesnapshotcontents"),
            ("VolumeSnapshotClass", "volumesnapshotclasses"),
        ):
            definition = strict.definition(
                "snapshot.storage.k8s.io", kind, plural, ["v1"], cluster=kind != "VolumeSnapshot"
            )
            notes = {"api-approved.kubernetes.io": "https://github.com/kubernetes-csi/external-snapshotter/pull/814"}
            definition["metadata"].setdefault("annotations", {}).update(notes)
            await client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        found = await started(made)
        sidecars = {name: version for name, version in SIDECARS.items() if snapshotter or name != "csi-snapshotter"}
        images = {"plugin": f"ghcr.io/sergelogvinov/proxmox-csi-controller:{tag}"}
        images |= {name: f"registry.k8s.io/sig-storage/{name}:{version}" for name, version in sidecars.items()}
        await system_pod(made, "csi-controller", "cp-1", images)
        if snapshotter:
            image = "registry.k8s.io/sig-storage/snapshot-controller:v8.0.1"
            await system_pod(made, "snapshot-controller", "cp-1", {"main": image})
        for name in ("worker-1", "worker-2"):
            await system_pod(made, f"csi-node-{name}", name, {"plugin": f"x/proxmox-csi-node:{tag}"})
        if labelled:
            for name in ("worker-1", "worker-2"):
                await made.until(f"/apis/storage.k8s.io/v1/csinodes/{name}", lambda item: item["spec"]["drivers"])
        yield found


async def started(made: Worlds) -> Lab:
    """The lab with kubelets, a scheduler and what the controller manager does about volumes."""
    context = made.context
    kubelets = Kubelets(context, Processes(context, storage.PROGRAMS))
    context.spawn(scheduler.run(context), name="scheduler")
    context.spawn(kubelets.run(), name="kubelets")
    for manager in storage.MANAGERS:
        context.spawn(manager(context), name=manager.__module__)
    return Lab(made, kubelets)


async def node(made: Worlds, name: str, zone: str, vmid: int) -> None:
    """A node that is the VM; without a zone its labels tell nothing of Proxmox VE."""
    labels = {"kubernetes.io/hostname": name}
    if zone:
        labels |= {"topology.kubernetes.io/region": "lab", "topology.kubernetes.io/zone": zone}
    await made.client.create("/api/v1/nodes", {"metadata": {"name": name, "labels": labels}, "spec": {}})
    taints = [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}] if name == "cp-1" else None
    await made.client.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": taints}})
    room = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    await made.status(f"/api/v1/nodes/{name}", {
        "capacity": room, "allocatable": room, "nodeInfo": node_info(f"{UUID}{vmid}"),
        "addresses": [{"type": "InternalIP", "address": f"10.0.0.{vmid}"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    })  # fmt: skip


def node_info(uuid: str) -> Object:
    """What a kubelet tells of its machine."""
    keys = ("architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "kubeletVersion",
            "machineID", "operatingSystem", "osImage")  # fmt: skip
    return {**dict.fromkeys(keys, "x"), "systemUUID": uuid}


async def system_pod(made: Worlds, name: str, where: str, images: Mapping[str, str]) -> None:
    """A pod of the system on that node."""
    containers: list[Object] = [{"name": key, "image": image} for key, image in images.items()]
    for entry in containers:
        if entry["name"] == "csi-provisioner":
            entry["args"] = ["--enable-capacity", "--capacity-ownerref-level=2"]
    await made.client.create(f"/api/v1/namespaces/{SYSTEM}/pods", {
        "metadata": {"name": name}, "spec": {"nodeName": where, "containers": containers}})  # fmt: skip


def test_claim_becomes_a_disk_of_the_vm_that_runs_the_pod() -> None:
    """Claim, consumer, disk in Proxmox VE, drive of the node's VM, and only then the pod runs."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class(parameters={"ssd": "true", "cache": "writethrough", "diskIOPS": "400"})
            await here.claim()
            await here.pod("one", node="worker-2")
            await here.running("one")
            volume = await here.bound()
            uid = volume["spec"]["claimRef"]["uid"]
            assert volume["spec"]["csi"]["volumeHandle"] == f"lab/pve2/local-lvm/vm-9999-pvc-{uid}"
            [(slot, value)] = here.drives(112).items()
            assert slot == "scsi1"
            assert value.startswith(f"local-lvm:vm-9999-pvc-{uid},")
            for word in ("backup=0", "iothread=1", "ssd=1", "discard=on", "iops_rd=400", "wwn=0x5056432d49443031"):
                assert word in value

    asyncio.run(story())


def test_disk_follows_the_pod_to_another_vm() -> None:
    """On shared storage a pod that moves has its disk detached from the one VM and attached to the other."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class(store="nas")
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            volume = await here.bound()
            assert volume["spec"]["csi"]["volumeHandle"].startswith("lab//nas/9999/vm-9999-pvc-")
            assert here.drives(111)
            await here.client.delete(f"{PODS}/one")
            await here.made.gone(f"{PODS}/one")
            await here.pod("two", node="worker-2")
            await here.running("two")
            assert (here.drives(111), len(here.drives(112))) == ({}, 1)
            told = await here.told("two", "SuccessfulAttachVolume")
            assert told == f'AttachVolume.Attach succeeded for volume "{volume["metadata"]["name"]}" '

    asyncio.run(story())


def test_two_pods_on_two_nodes_share_no_disk() -> None:
    """The second pod waits with a multi-attach error until the first is gone; never do two VMs have the disk."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class(store="nas")
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            name = (await here.bound())["metadata"]["name"]
            await here.pod("two", node="worker-2")
            told = await here.told("two", "FailedAttachVolume")
            assert told == f'Multi-Attach error for volume "{name}" Volume is already used by pod(s) one'
            assert (len(here.drives(111)), here.drives(112)) == (1, {})
            await here.client.delete(f"{PODS}/one")
            await here.running("two")
            assert (here.drives(111), len(here.drives(112))) == ({}, 1)

    asyncio.run(story())


def test_claim_that_grows_grows_its_disk() -> None:
    """The disk in Proxmox VE grows, then the file system on the node, then the claim has the new size."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class()
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            body = {"spec": {"resources": {"requests": {"storage": "3Gi"}}}}
            await here.client.patch(f"{CLAIMS}/data", body)
            claim = await here.made.until(f"{CLAIMS}/data", lambda item: item["status"]["capacity"]["storage"] == "3Gi")
            assert not claim["status"].get("conditions")
            assert "size=3G" in here.drives(111)["scsi1"]
            order = ["ExternalExpanding", "Resizing", "FileSystemResizeRequired", "FileSystemResizeSuccessful"]
            async with asyncio.timeout(15):  # the last one follows the new size
                while order[-1] not in (reasons := [event["reason"] for event in await here.events("data")]):
                    await asyncio.sleep(0.01)
            assert [reason for reason in reasons if reason in order] == order

    asyncio.run(story())


def test_volume_without_a_vm_cannot_grow() -> None:
    """The driver resizes drives of VMs alone: a claim nobody uses stays small, and its event says why."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class(volumeBindingMode="Immediate")
            await here.claim()
            name = (await here.bound())["metadata"]["name"]
            await here.client.patch(f"{CLAIMS}/data", {"spec": {"resources": {"requests": {"storage": "3Gi"}}}})
            told = await here.told("data", "VolumeResizeFailed")
            assert told == (
                f'resize volume "{name}" by resizer "{DRIVER}" failed: '
                "rpc error: code = Internal desc = cannot resize unpublished"
            )

    asyncio.run(story())


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_policy_decides_what_is_left_of_a_claim(policy: str) -> None:
    """Delete takes volume and disk with the claim; Retain leaves both."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class(reclaimPolicy=policy)
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            volume = await here.bound()
            path = f"{VOLUMES}/{volume['metadata']['name']}"
            await here.client.delete(f"{CLAIMS}/data")
            assert (await here.client.get(f"{CLAIMS}/data"))["metadata"]["deletionTimestamp"]
            await here.client.delete(f"{PODS}/one")
            await here.made.gone(f"{CLAIMS}/data")
            if policy == "Delete":
                await here.made.gone(path)
                assert here.disks() == []
            else:
                await here.made.until(path, lambda item: item["status"]["phase"] == "Released")
                assert len(here.disks()) == 1
            await here.made.eventually(lambda: here.drives(111) == {})

    asyncio.run(story())


def test_revoked_token_stops_the_driver_with_its_words() -> None:
    """New claims tell that the driver is not let in; with the token back they go on by themselves."""

    async def story() -> None:
        async with lab(scale=2000) as here:
            tokens = here.made.state.access.users["root@pam"].tokens
            token = tokens.pop("capmox")
            await here.storage_class()
            await here.claim()
            await here.pod("one", node="worker-1")
            told = await here.told("data", "ProvisioningFailed")
            assert told == (
                'failed to provision volume with StorageClass "proxmox": rpc error: code = Internal desc = '
                "failed to get proxmox storage config: not authorized to access endpoint"
            )
            tokens["capmox"] = token
            await here.running("one")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("tag", "given", "words"),
    [
        ("v0.19.1", {"parameters": {"blockSize": "big"}}, "desc = parameters blockSize must be a number"),
        ("v0.19.1", {"store": ""}, "code = InvalidArgument desc = parameter storage must be provided"),
        ("v0.19.1", {"store": "gone"}, "code = Internal desc = failed to get proxmox storage config: not found"),
        ("v0.19.1", {"parameters": {"replicate": "true"}}, "desc = error: storage type is not zfs in replication mode"),
        ("v0.11.0", {"store": "nas"}, "desc = error: shared storage type nfs,cifs,pbs are not supported"),
    ],
)  # fmt: skip
def test_class_that_cannot_be_is_refused(tag: str, given: Object, words: str) -> None:
    """The claim's event has the driver's words, and there is no disk."""

    async def story() -> None:
        async with lab(tag=tag) as here:
            await here.storage_class(volumeBindingMode="Immediate", **given)
            await here.claim()
            assert words in await here.told("data", "ProvisioningFailed")
            assert here.disks() == []

    asyncio.run(story())


def test_unlabelled_nodes_have_no_driver() -> None:
    """Without region and zone the plugin does not register, its container ends, and claims find no place."""

    async def story() -> None:
        async with lab(labelled=False) as here:
            await here.storage_class()
            await here.claim()
            await here.pod("one", node="worker-1")
            said = await here.told("data", "ProvisioningFailed")
            assert 'csinode.storage.k8s.io "worker-1" not found' in said or "no topology key found" in said
            pod = await here.made.until(
                f"/api/v1/namespaces/{SYSTEM}/pods/csi-node-worker-1",
                lambda item: any(row["restartCount"] for row in item["status"].get("containerStatuses") or ()),
            )
            log = here.kubelets.pod_log(SYSTEM, pod["metadata"]["name"], {"previous": "true"}) or ""
            log += here.kubelets.pod_log(SYSTEM, pod["metadata"]["name"], {}) or ""
            assert "failed to get region for node worker-1" in log

    asyncio.run(story())


def test_capacity_is_told_for_each_place() -> None:
    """One CSIStorageCapacity for the class and each zone with a node of the driver."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class()
            path = f"/apis/storage.k8s.io/v1/namespaces/{SYSTEM}/csistoragecapacities"

            async with asyncio.timeout(15):
                while len(rows := (await here.client.list(path))["items"]) < 2:
                    await asyncio.sleep(0.05)
            zones = [row["nodeTopology"]["matchLabels"]["topology.kubernetes.io/zone"] for row in rows]
            assert sorted(zones) == ["pve1", "pve2"]
            assert all(matching.number(row["capacity"]) > 2**30 for row in rows)

    asyncio.run(story())


async def take_snapshot(here: Lab) -> None:
    """A claim in use, and a snapshot of it."""
    await here.storage_class()
    await here.client.create("/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses", {
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
        "metadata": {"name": "proxmox"}, "driver": DRIVER, "deletionPolicy": "Delete"})  # fmt: skip
    await here.claim()
    await here.pod("one", node="worker-1")
    await here.running("one")
    await here.client.create(SNAPSHOTS, {
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "snap"},
        "spec": {"volumeSnapshotClassName": "proxmox", "source": {"persistentVolumeClaimName": "data"}}})  # fmt: skip


SNAPSHOTS = f"/apis/snapshot.storage.k8s.io/v1/namespaces/{SPACE}/volumesnapshots"


def test_snapshot_with_a_password_is_a_copy() -> None:
    """root's password may copy: the snapshot is ready, can become a claim, and goes with its object."""

    async def story() -> None:
        async with lab(snapshotter=True, password=True) as here:
            await take_snapshot(here)
            item = await here.made.until(f"{SNAPSHOTS}/snap", lambda item: (item.get("status") or {}).get("readyToUse"))
            assert item["status"]["restoreSize"] == "1Gi"
            source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "snap"}
            await here.claim("copy", size="2Gi", dataSource=source)
            await here.pod("two", "copy", node="worker-1")
            await here.running("two")
            assert any("size=2G" in value for value in here.drives(111).values())
            assert len(here.disks()) == 3
            await here.client.delete(f"{SNAPSHOTS}/snap")
            await here.made.gone(f"{SNAPSHOTS}/snap")
            assert len(here.disks()) == 2

    asyncio.run(story())


def test_snapshot_with_a_token_is_refused() -> None:
    """Proxmox VE keeps the copy for root's password: the snapshot's error and event say so."""

    async def story() -> None:
        async with lab(snapshotter=True) as here:
            await take_snapshot(here)
            item = await here.made.until(f"{SNAPSHOTS}/snap", lambda item: (item.get("status") or {}).get("error"))
            said = item["status"]["error"]["message"]
            assert "failed to take snapshot of the volume lab/pve1/local-lvm/vm-9999-pvc-" in said
            assert (
                "desc = failed to copy pvc: not authorized to access endpoint, params=map[target:vm-9999-snapshot-"
                in said
            )
            assert len(here.disks()) == 1

    asyncio.run(story())


def test_old_driver_ends_its_snapshotter() -> None:
    """Before 0.16 the driver cannot: the sidecar's container ends and says why."""

    async def story() -> None:
        async with lab(tag="v0.11.0", snapshotter=True) as here:
            path = f"/api/v1/namespaces/{SYSTEM}/pods/csi-controller"
            await here.made.until(path, lambda pod: any(
                row["name"] == "csi-snapshotter" and row["restartCount"]
                for row in pod["status"].get("containerStatuses") or ()))  # fmt: skip
            options = {"container": "csi-snapshotter", "previous": "true"}
            log = here.kubelets.pod_log(SYSTEM, "csi-controller", options) or ""
            assert f"CSI driver {DRIVER} does not support ControllerCreateSnapshot" in log

    asyncio.run(story())


def test_node_that_fell_silent_keeps_its_disk_for_six_minutes() -> None:
    """The disk stays at the VM of a dead node until the force detach, or until an administrator vouches for it."""

    async def story() -> None:
        async with lab(scale=200) as here:
            await here.storage_class(store="nas")
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            here.made.context.machines.set("worker-1", False)
            down = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
            await here.made.status("/api/v1/nodes/worker-1", {"conditions": [down]})
            await here.client.request("DELETE", f"{PODS}/one", {"gracePeriodSeconds": 0})
            await here.pod("two", node="worker-2")
            said = await here.told("two", "FailedAttachVolume")
            assert said.endswith("Volume is already exclusively attached to one node and can't be attached to another")
            assert (len(here.drives(111)), here.drives(112)) == (1, {})
            taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
            await here.client.patch("/api/v1/nodes/worker-1", {"spec": {"taints": [taint]}})
            await here.running("two")
            assert (here.drives(111), len(here.drives(112))) == ({}, 1)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clusters: []", "no Proxmox clusters found"),
        ("clusters: [{url: 'https://a', region: r}]", "cluster #1: either username and password or token_id and"),
        ("clusters: [{url: 'https://a', token_id: a, token_secret: b}]", "cluster #1: region is required"),
        ("clusters: [{url: pve1, region: r, token_id: a, token_secret: b}]", "cluster #1: url is required"),
    ],
)
def test_bad_config_stops_the_plugin(text: str, words: str) -> None:
    """The plugin's last words name the fault."""
    with pytest.raises(BadConfig, match=words):
        read_config(text)


def volume_named(name: str, size: str, **spec: Any) -> Object:
    """A free volume."""
    given = {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual", **spec}
    return {"metadata": {"name": name}, "spec": given, "status": {"phase": "Available"}}


def claim_of(size: str = "1Gi", **spec: Any) -> Object:
    """A claim."""
    given = {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
             "resources": {"requests": {"storage": size}}, **spec}  # fmt: skip
    return {"metadata": {"name": "data", "namespace": "n", "uid": "u"}, "spec": given, "status": {"phase": "Pending"}}


def test_smallest_volume_that_fits_is_taken() -> None:
    """Of several free volumes the least is wasted."""
    rows = [volume_named("big", "9Gi"), volume_named("small", "512Mi"), volume_named("right", "2Gi")]
    verdict = matching.judge(claim_of(), rows, {}, [])
    assert verdict.volume is rows[2]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"capacity": {"storage": "1Mi"}}, "requested PV is too small"),
        ({"storageClassName": "other"}, "storageClassName does not match"),
        ({"volumeMode": "Block"}, "incompatible volumeMode"),
        ({"accessModes": ["ReadOnlyMany"]}, "incompatible accessMode"),
    ],
)
def test_requested_volume_that_does_not_fit_is_refused(spec: Object, why: str) -> None:
    """The claim names the volume, and hears what is wrong with it."""
    volume = volume_named("pv", "1Gi") | {}
    volume["spec"] |= spec
    verdict = matching.judge(claim_of(volumeName="pv"), [volume], {}, [])
    assert verdict.message == f'Cannot bind to requested volume "pv": {why}'


@pytest.mark.parametrize(
    ("kind", "reason", "words"),
    [
        (None, "ProvisioningFailed", 'storageclass.storage.k8s.io "manual" not found'),
        ({"volumeBindingMode": "WaitForFirstConsumer"}, "WaitForFirstConsumer", "waiting for first consumer"),
        ({}, "ExternalProvisioning", "Waiting for a volume to be created either by the external provisioner 'd.io'"),
        ({"provisioner": "kubernetes.io/no-provisioner"}, "ProvisioningFailed", "no volume plugin matched name"),
    ],
)
def test_claim_without_a_volume_says_what_it_waits_for(kind: Object | None, reason: str, words: str) -> None:
    """Each way of waiting has its own event."""
    classes = {} if kind is None else {"manual": {"provisioner": "d.io", **kind}}
    verdict = matching.judge(claim_of(), [], classes, [])
    assert (verdict.reason, words in verdict.message) == (reason, True)


def test_multi_attach_names_no_pods_of_other_namespaces() -> None:
    """Rivals in the pod's own namespace are named, others are only counted."""
    near = {"metadata": {"name": "a", "namespace": "n"}}
    far = {"metadata": {"name": "b", "namespace": "m"}}
    said = attach_detach.multi_attach("pv", {"metadata": {"name": "c", "namespace": "n"}}, [near, far])
    assert said.endswith("Volume is already used by pod(s) a and 1 pod(s) in different namespaces")


def test_attachments_have_kubernetes_names() -> None:
    """The name is the hash of handle, driver and node, as other tools compute it too."""
    assert attach_detach.attachment_name("h", "d", "n") == (
        "csi-9072ed11cc1acb5fa433a877ff339b6311d013f33bddd1d0092711a8ace5b16d"
    )


@pytest.mark.parametrize("full", [range(1, 30), range(31)])
def test_vm_with_every_slot_taken_has_no_free_one(full: range) -> None:
    """Slots 1 to 29 are the driver's; slot 0 is the system's and never given."""
    assert proxmox_driver.free_slot({f"scsi{slot}": "x" for slot in full}) is None


def test_first_free_slot_is_taken() -> None:
    """A gap is filled."""
    assert proxmox_driver.free_slot({"scsi0": "x", "scsi1": "x", "scsi3": "x"}) == 2


def test_handle_without_parts_is_refused() -> None:
    """What is no handle of this driver is an invalid argument."""
    with pytest.raises(CsiError, match="VolumeID must be in the format"):
        proxmox_driver.parse_handle("pvc-1")


def test_selected_node_comes_first() -> None:
    """The place of the node that the scheduler chose is preferred, and all others follow."""
    labels = {"a": {"zone": "1"}, "b": {"zone": "2"}}
    nodes = {name: {"metadata": {"name": name, "labels": given}} for name, given in labels.items()}
    rows = {name: {"spec": {"drivers": [{"name": "d", "topologyKeys": ["zone"]}]}} for name in nodes}
    assert provisioner.requirement("data", "b", nodes, rows, {}, "d") == [{"zone": "2"}, {"zone": "1"}]


def test_two_default_snapshot_classes_are_one_too_many() -> None:
    """Which one is meant nobody can say."""
    notes = {"annotations": {snapshots.DEFAULT: "true"}}
    rows = [{"metadata": {"name": name, **notes}, "driver": "d"} for name in "ab"]
    with pytest.raises(ValueError, match="2 default snapshot classes were found"):
        snapshots.default_class(rows, "d")


STORED = ("/persistentvolumeclaims", "/persistentvolumes", "storage.k8s.io/volumeattachments",
          "storage.k8s.io/csinodes", "storage.k8s.io/csistoragecapacities", "storage.k8s.io/storageclasses",
          "snapshot.storage.k8s.io/volumesnapshots")  # fmt: skip


@pytest.mark.parametrize("name", ["healthy", "cozystack-v0", "no-storage-class"])
def test_seeded_volumes_are_left_alone(name: str) -> None:
    """What is seeded is settled: nothing about volumes is written when the controllers start."""

    async def story() -> None:
        async with living(name, scale=60) as (client, cluster, _):

            def versions() -> dict[Any, Any]:
                return {
                    (bucket, key): row.obj["metadata"]["resourceVersion"]
                    for bucket in STORED
                    for key, row in cluster.store.scan(bucket, "")
                }

            before = versions()
            assert any("persistentvolumeclaims" in bucket for bucket, _ in before)
            spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}
            body = {"metadata": {"name": "mark"}, "spec": spec}
            await client.create(VOLUMES, body)
            await until(client, f"{VOLUMES}/mark", lambda item: item["status"].get("phase") == "Available")
            after = versions()
            assert {key: after.get(key) for key in before} == before
            assert len(after) == len(before) + 1

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["replicated", "local"])
def test_linstors_claims_serve_pods(kind: str) -> None:
    """On a healthy CozyStack a claim of either class binds and its pod runs; deletion leaves nothing."""

    async def story() -> None:
        async with living(scale=500) as (client, _, _clock):
            claims, pods = (f"/api/v1/namespaces/{NAMESPACE}/{plural}" for plural in ("persistentvolumeclaims", "pods"))
            spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": kind,
                    "resources": {"requests": {"storage": "1Gi"}}}  # fmt: skip
            await client.create(claims, {"metadata": {"name": "data"}, "spec": spec})
            await client.create(pods, {"metadata": {"name": "one"}, "spec": {
                "containers": [{"name": "main", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53",
                                "args": ["pause"], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}})  # fmt: skip
            await until(client, f"{pods}/one", lambda item: item["status"].get("phase") == "Running")
            claim = await until(client, f"{claims}/data", lambda item: item["status"].get("phase") == "Bound")
            await client.request("DELETE", f"{pods}/one", {"gracePeriodSeconds": 0})
            await client.delete(f"{claims}/data")
            async with asyncio.timeout(15):
                while await client.find(f"{VOLUMES}/{claim['spec']['volumeName']}") is not None:
                    await asyncio.sleep(0.02)

    asyncio.run(story())


@pytest.mark.parametrize("seed", [1, 2])
def test_no_disk_is_ever_at_two_vms(seed: int) -> None:
    """Pods that come and go at random on two nodes: each disk is at one VM at most, and in the end nothing is left."""
    dice = random.Random(seed)

    async def story() -> None:
        async with lab(scale=2000) as here:
            twice: list[str] = []

            async def look() -> None:
                while True:
                    held = [value.split(",")[0] for vmid in (111, 112) for value in here.drives(vmid).values()]
                    twice.extend(disk for disk in held if held.count(disk) > 1)
                    await asyncio.sleep(0)

            watching = asyncio.create_task(look())
            await here.storage_class(store="nas")
            for number in range(3):
                await here.claim(f"data-{number}")
            alive: list[str] = []
            for step in range(14):
                if alive and dice.random() < 0.45:
                    gone = alive.pop(dice.randrange(len(alive)))
                    await here.client.delete(f"{PODS}/{gone}")
                else:
                    alive.append(f"pod-{step}")
                    where = dice.choice(["worker-1", "worker-2"])
                    await here.pod(alive[-1], f"data-{dice.randrange(3)}", node=where)
                await asyncio.sleep(dice.random() * 0.1)
            for name in alive:
                await here.client.delete(f"{PODS}/{name}")
            for number in range(3):
                await here.client.delete(f"{CLAIMS}/data-{number}")
            async with asyncio.timeout(15):
                while (await here.client.list(VOLUMES))["items"]:
                    await asyncio.sleep(0.02)
            watching.cancel()
            assert twice == []
            assert (here.drives(111), here.drives(112), here.disks()) == ({}, {}, [])
            assert (await here.client.list(attach_detach.ATTACHMENTS))["items"] == []

    asyncio.run(story())


def test_deleted_node_is_forgiven_by_new_drivers_only() -> None:
    """A node that is gone while a disk is attached: 0.19 lets go, 0.16 keeps the VolumeAttachment for ever."""

    async def story(tag: str) -> bool:
        async with lab(tag=tag, scale=5000) as here:
            await here.storage_class(store="nas")
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            [row] = (await here.client.list(attach_detach.ATTACHMENTS))["items"]
            here.made.context.machines.set("worker-1", False)
            await here.client.delete("/api/v1/nodes/worker-1")
            await here.client.request("DELETE", f"{PODS}/one", {"gracePeriodSeconds": 0})
            path = f"{attach_detach.ATTACHMENTS}/{row['metadata']['name']}"
            async with asyncio.timeout(15):
                while item := await here.client.find(path):
                    if error := (item.get("status") or {}).get("detachError"):
                        assert error["message"] == 'rpc error: code = InvalidArgument desc = nodes "worker-1" not found'
                        return False
                    await asyncio.sleep(0.02)
            return True

    assert asyncio.run(story("v0.19.1"))
    assert not asyncio.run(story("v0.16.0"))


def test_full_storage_refuses_in_proxmox_words() -> None:
    """A disk larger than the storage: the claim's event carries what Proxmox VE said."""

    async def story() -> None:
        thick = {"type": "lvm", "content": ["images"], "options": {"vgname": "data"}, "total": "20G"}
        storages = {**scenario.load("healthy").proxmox["storages"], "thick": thick}
        async with lab(proxmox={"storages": storages}) as here:
            await here.storage_class(volumeBindingMode="Immediate", store="thick")
            await here.claim(size="900Gi")
            said = await here.told("data", "ProvisioningFailed")
            assert "desc = failed to create vm disk: unable to create disk for virtual machine: 500 " in said

    asyncio.run(story())


def test_static_volume_is_bound_and_released() -> None:
    """A volume made by hand is bound to the claim that fits, and stays Released when the claim is gone."""

    async def story() -> None:
        async with lab() as here:
            spec = {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
                    "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain"}  # fmt: skip
            await here.client.create(VOLUMES, {"metadata": {"name": "by-hand"}, "spec": spec})
            await here.claim(kind="")
            volume = await here.bound()
            claim = await here.client.get(f"{CLAIMS}/data")
            assert (volume["metadata"]["name"], claim["status"]["capacity"]) == ("by-hand", {"storage": "2Gi"})
            await here.client.delete(f"{CLAIMS}/data")
            await here.made.until(f"{VOLUMES}/by-hand", lambda item: item["status"]["phase"] == "Released")

    asyncio.run(story())


def test_volume_for_many_nodes_is_not_mounted() -> None:
    """The driver makes and attaches the disk of a ReadWriteMany claim, and refuses it only on the node."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class()
            await here.claim(accessModes=["ReadWriteMany"])
            await here.pod("one", node="worker-1")
            said = await here.told("one", "FailedMount")
            name = (await here.bound())["metadata"]["name"]
            why = "rpc error: code = InvalidArgument desc = VolumeCapability not supported"
            assert said == f'MountVolume.MountDevice failed for volume "{name}" : {why}'
            assert (await here.client.get(f"{PODS}/one"))["status"]["phase"] == "Pending"

    asyncio.run(story())


def test_uninstalled_plugin_leaves_the_csi_node() -> None:
    """With its plugin's pod a node loses the driver, and claims for it say so."""

    async def story() -> None:
        async with lab() as here:
            await here.client.delete(f"/api/v1/namespaces/{SYSTEM}/pods/csi-node-worker-1")
            await here.made.until(
                "/apis/storage.k8s.io/v1/csinodes/worker-1", lambda item: not item["spec"].get("drivers")
            )
            await here.storage_class()
            await here.claim()
            await here.pod("one", node="worker-1")
            said = await here.told("data", "ProvisioningFailed")
            assert said.endswith("requirements: no topology key found on CSINode worker-1")

    asyncio.run(story())


@pytest.mark.parametrize("position", [0, -1], ids=["oldest", "newest"])
def test_chart_of_the_driver_serves_claims(position: int) -> None:
    """What the driver's chart renders makes disks, with its own Secret, options and registrars."""
    book = pytest.importorskip("runbook_lib.lab.kubernetes.charts.book", reason="the charts are not there")
    chart = next(entry for entry in book.CHARTS if entry.name == "proxmox-csi-plugin")
    version = list(chart.versions)[position]

    async def story() -> None:
        async with lab(installed=False) as here:
            for manager in (deployments, replicasets, daemonsets):
                here.made.context.spawn(manager.run(here.made.context), name=manager.__name__)
            values = book.merged(chart.values, {
                "config": config_of(here.made.proxmox_url),
                "storageClass": [{"name": "proxmox", "storage": "local-lvm", "reclaimPolicy": "Delete", "ssd": True}],
                "nodeSelector": {"kubernetes.io/hostname": "worker-2"},
            })  # fmt: skip
            given = book.Given("csi", SYSTEM, values, chart.name, version, chart.versions[version])
            for item in book.rendered(chart, given):
                await here.client.create(collection_of(item), item)
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            assert [value.split(":")[0] for value in here.drives(111).values()] == ["local-lvm"]
            path = f"/apis/storage.k8s.io/v1/namespaces/{SYSTEM}/csistoragecapacities"
            async with asyncio.timeout(15):
                while not (rows := (await here.client.list(path))["items"]):
                    await asyncio.sleep(0.05)
            assert rows[0]["metadata"]["ownerReferences"][0]["kind"] == "Deployment"

    asyncio.run(story())


def collection_of(item: Object) -> str:
    """Where an object of a chart is created."""
    version, kind = item["apiVersion"], item["kind"]
    plural = {"StorageClass": "storageclasses"}.get(kind, f"{kind.lower()}s")
    space = item["metadata"].get("namespace")
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    return f"{base}/namespaces/{space}/{plural}" if space else f"{base}/{plural}"


async def ended(proxmox: ProxmoxClient, upid: str) -> str:
    """How a task of pve1 ended."""
    async with asyncio.timeout(15):
        while (row := await proxmox.get(f"/nodes/pve1/tasks/{upid}/status"))["status"] == "running":
            await asyncio.sleep(0.02)
    return str(row["exitstatus"])


def test_disk_outlives_the_vm_it_is_attached_to() -> None:
    """A VM destroyed in Proxmox VE leaves the claim's disk, which is VM 9999's, and the next VM gets it."""

    async def story() -> None:
        async with lab(scale=5000) as here:
            await here.storage_class(store="nas")
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            [disk] = here.disks()
            async with ProxmoxClient(here.made.proxmox_url, "root@pam!capmox", SECRET) as proxmox:
                assert await ended(proxmox, await proxmox.post("/nodes/pve1/qemu/111/status/stop")) == "OK"
                assert await ended(proxmox, await proxmox.delete("/nodes/pve1/qemu/111")) == "OK"
            assert 111 not in here.made.state.guests
            assert here.disks() == [disk]
            here.made.context.machines.set("worker-1", False)
            await here.client.delete("/api/v1/nodes/worker-1")
            await here.client.request("DELETE", f"{PODS}/one", {"gracePeriodSeconds": 0})
            await here.pod("two", node="worker-2")
            await here.running("two")
            assert [value.split(",")[0] for value in here.drives(112).values()] == [disk]

    asyncio.run(story())


def test_disk_removed_by_hand_lets_the_claim_go() -> None:
    """A disk that is gone in Proxmox VE keeps neither pod, claim nor volume from being deleted."""

    async def story() -> None:
        async with lab() as here:
            await here.storage_class()
            await here.claim()
            await here.pod("one", node="worker-1")
            await here.running("one")
            name = (await here.bound())["metadata"]["name"]
            for key in [key for key, row in here.made.state.volumes.items() if "vm-9999-" in row.volid]:
                del here.made.state.volumes[key]
            await here.client.delete(f"{PODS}/one")
            await here.client.delete(f"{CLAIMS}/data")
            await here.made.gone(f"{VOLUMES}/{name}")
            assert here.drives(111)  # the dead line stays in the VM's config: nobody looks at it any more

    asyncio.run(story())


def test_vm_without_a_free_slot_refuses_the_disk() -> None:
    """Twenty-nine drives are all that a VM takes; the pod hears why the thirtieth is not attached."""

    async def story() -> None:
        async with lab() as here:
            config = here.made.state.guests[111].config
            config.update({f"scsi{slot}": f"local-lvm:vm-111-disk-{slot},size=1G" for slot in range(1, 30)})
            await here.storage_class()
            await here.claim()
            await here.pod("one", node="worker-1")
            said = await here.told("one", "FailedAttachVolume")
            assert said.endswith(" : rpc error: code = Internal desc = no free lun found")

    asyncio.run(story())
