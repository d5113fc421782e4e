"""Volumes: claims, disks in Proxmox VE, and the machines they are attached to, over both APIs."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.controllers import scheduler, storage
from runbook_lib.lab.kubernetes.controllers.client import Refused
from runbook_lib.lab.kubernetes.controllers.kubelet import Kubelets
from runbook_lib.lab.kubernetes.controllers.processes import Processes
from runbook_lib.lab.kubernetes.controllers.storage import (
    attach_detach,
    matching,
    provisioner,
    proxmox_driver,
    snapshots,
)
from runbook_lib.lab.kubernetes.controllers.storage.csi import CsiError
from runbook_lib.lab.kubernetes.controllers.storage.proxmox_api import BadConfig, read_config

sys.path.insert(0, str(Path(__file__).parent))
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
    snapshotter: bool = False,
    password: bool = False,
    proxmox: Mapping[str, Any] | None = None,
    scale: float = 500,
) -> AsyncIterator[Lab]:
    """Two workers with the driver's pods, run by kubelets."""
    async with worlds(old=True, scale=scale, proxmox=proxmox) as made:
        client, context = made.client, made.context
        await client.create("/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
        for name, (zone, vmid) in MACHINES.items():
            await node(made, name, zone if labelled else "", vmid)
        await client.create("/apis/storage.k8s.io/v1/csidrivers", {"metadata": {"name": DRIVER}, "spec": {
            "attachRequired": True, "podInfoOnMount": True, "storageCapacity": True}})  # fmt: skip
        given = {"username": "root@pam", "password": "root-of-the-test"} if password else {}
        if password:
            made.state.access.users["root@pam"].password = "root-of-the-test"
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
        kubelets = Kubelets(context, Processes(context, storage.PROGRAMS))
        context.spawn(scheduler.run(context), name="scheduler")
        context.spawn(kubelets.run(), name="kubelets")
        for manager in storage.MANAGERS:
            context.spawn(manager(context), name=manager.__module__)
        sidecars = {name: version for name, version in SIDECARS.items() if snapshotter or name != "csi-snapshotter"}
        images = {"plugin": f"ghcr.io/sergelogvinov/proxmox-csi-controller:{tag}"}
        images |= {name: f"registry.k8s.io/sig-storage/{name}:{version}" for name, version in sidecars.items()}
        await system_pod(made, "csi-controller", "cp-1", images)
        if snapshotter:
            image = "registry.k8s.io/sig-storage/snapshot-controller:v8.0.1"
            await system_pod(made, "snapshot-controller", "cp-1", {"main": image})
        for name in ("worker-1", "worker-2"):
            await system_pod(made, f"csi-node-{name}", name, {"plugin": f"x/proxmox-csi-node:{tag}"})
        found = Lab(made, kubelets)
        if labelled:
            for name in ("worker-1", "worker-2"):
                await made.until(f"/apis/storage.k8s.io/v1/csinodes/{name}", lambda item: item["spec"]["drivers"])
        yield found


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
    containers = [{"name": key, "image": image} for key, image in images.items()]
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
