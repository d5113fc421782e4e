"""A seeded random walk over both worlds: whatever is made, scaled, killed or refused, some things never happen.

Never has a Machine two VMs, an address two owners, a disk two machines; at rest nothing waits for a finalizer; after
everything was deleted nothing is left on either side. A failure tells the seed and the steps that led there.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from runbook_lib.lab import machines, scenario
from runbook_lib.lab.faults import Faults, fault_from
from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.controllers import (
    MANAGERS,
    bootstrap_tokens,
    capi,
    capmox,
    ipam,
    scheduler,
    storage,
)
from runbook_lib.lab.kubernetes.controllers.client import Refused
from runbook_lib.lab.kubernetes.controllers.kubelet import Kubelets
from runbook_lib.lab.kubernetes.controllers.processes import Processes
from runbook_lib.lab.kubernetes.controllers.proxmox import ProxmoxClient, ProxmoxRefused
from runbook_lib.lab.proxmox import outage

sys.path.insert(0, str(Path(__file__).parent))
from test_controllers_storage import DRIVER, SIDECARS, SYSTEM, config_of, node, system_pod  # lies beside this file
from test_machines import ENDPOINT, join_document, prepare  # lies beside this file
from two_worlds import SECRET, SPACE, TOKEN, Worlds, secret, worlds  # lies beside this file

Object = dict[str, Any]
COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
STEPS = 600 if COMPLETE else 80
SEEDS = range(1, 9) if COMPLETE else (2,)
"""The complete walk is not green yet: the node of a machine that joined while it was deleted can outlive both (no
cloud controller runs here to take it away), and a pod of a StatefulSet can stay without a node."""
REST_EVERY, REST_SECONDS, MOST_MACHINES = 20, 30.0, 4
CORE = (("MachineDeployment", "machinedeployments"), ("MachineSet", "machinesets"),
        ("MachineHealthCheck", "machinehealthchecks"))  # fmt: skip
DEPLOYMENTS, SETS, PODS, CLAIMS = (
    f"/apis/apps/v1/namespaces/{SPACE}/deployments",
    f"/apis/apps/v1/namespaces/{SPACE}/statefulsets",
    f"/api/v1/namespaces/{SPACE}/pods",
    f"/api/v1/namespaces/{SPACE}/persistentvolumeclaims",
)
WATCHED = (
    "/api/v1/pods",
    "/api/v1/nodes",
    "/api/v1/persistentvolumes",
    "/api/v1/persistentvolumeclaims",
    "/apis/storage.k8s.io/v1/volumeattachments",
    "/apis/cluster.x-k8s.io/v1beta1/clusters",
    "/apis/cluster.x-k8s.io/v1beta1/machinedeployments",
    "/apis/cluster.x-k8s.io/v1beta1/machinesets",
    "/apis/cluster.x-k8s.io/v1beta1/machines",
    "/apis/infrastructure.cluster.x-k8s.io/v1alpha1/proxmoxclusters",
    "/apis/infrastructure.cluster.x-k8s.io/v1alpha1/proxmoxmachines",
    "/apis/ipam.cluster.x-k8s.io/v1beta1/ipaddressclaims",
    "/apis/ipam.cluster.x-k8s.io/v1beta1/ipaddresses",
)
FAULTS: tuple[Object, ...] = (
    {"system": "proxmox", "method": "POST", "status": 500, "times": 3},
    {"system": "proxmox", "method": "GET", "status": 596, "times": 5},
    {"system": "proxmox", "method": "PUT", "reset": True, "times": 2},
    {"system": "proxmox", "path": "/clone", "reset": True, "times": 1},
    {"system": "proxmox", "task": "qmclone", "text": "clone failed: got timeout", "times": 1},
    {"system": "proxmox", "task": "qmdestroy", "text": "can't lock file - got timeout", "times": 1},
    {"system": "kubernetes", "method": "PATCH", "status": 409, "times": 4},
    {"system": "kubernetes", "method": "POST", "status": 500, "times": 3},
    {"system": "kubernetes", "method": "PUT", "status": 503, "times": 3},
    {"system": "kubernetes", "method": "DELETE", "status": 429, "times": 2},
    {"system": "kubernetes", "method": "GET", "path": "watch=true", "watch": "drop", "times": 3},
)


@dataclass
class Walk:
    """Both worlds, and what was done to them."""

    made: Worlds
    proxmox: ProxmoxClient
    faults: Faults
    seed: int
    dice: random.Random
    at_first: set[int]
    disks_at_first: set[tuple[str, str]]
    story: list[str] = field(default_factory=list)
    replicas: int = 1
    workloads: dict[str, int] = field(default_factory=dict)
    stores: dict[str, int] = field(default_factory=dict)
    missed: Counter[str] = field(default_factory=Counter)

    # -- what there is ------------------------------------------------------------------------------

    async def rows(self, path: str) -> list[Object]:
        """The objects of a list, whatever the faults in force."""
        while True:
            with suppress(Refused, aiohttp.ClientError):
                return list((await self.made.client.list(path))["items"])
            await asyncio.sleep(0.005)

    def guests(self) -> dict[int, Any]:
        """The VMs that came after the beginning."""
        return {vmid: guest for vmid, guest in self.made.state.guests.items() if vmid not in self.at_first}

    def drives(self) -> list[str]:
        """The disks of claims in every VM's drives, one entry for each."""
        return [
            str(value).partition(",")[0]
            for guest in self.made.state.guests.values()
            for key, value in guest.config.items()
            if "vm-9999-" in str(value) and not key.startswith("unused")
        ]

    # -- what never happens ---------------------------------------------------------------------------

    async def invariants(self) -> list[str]:
        """What is wrong, now and at any time."""
        wrong = [f"{count} VMs are called {name}"
                 for name, count in Counter(guest.name for guest in self.guests().values()).items()
                 if count > 1 and name]  # fmt: skip
        addresses = Counter(row["spec"]["address"] for row in await self.rows(WATCHED[-1]))
        wrong += [f"{count} claims have {address}" for address, count in addresses.items() if count > 1]
        inside = Counter(
            rows[0] for guest in self.made.state.guests.values() for rows in guest.addresses.values() if rows
        )
        wrong += [f"{count} VMs have {address}" for address, count in inside.items() if count > 1]
        wrong += [f"{count} VMs have the disk {disk}" for disk, count in Counter(self.drives()).items() if count > 1]
        nodes = Counter(row["spec"].get("providerID") for row in await self.rows("/api/v1/nodes"))
        wrong += [f"{count} nodes are {identity}" for identity, count in nodes.items() if identity and count > 1]
        return wrong

    async def unsettled(self) -> list[str]:
        """What still differs from what was asked for."""
        made, wrong = self.made, []
        for path in WATCHED:
            wrong += [
                f"{path} {row['metadata']['name']} is being deleted: {row['metadata'].get('finalizers')} "
                f"{(row.get('spec') or {}).get('nodeName', '')} {(row.get('status') or {}).get('phase', '')}"
                for row in await self.rows(path)
                if "deletionTimestamp" in row["metadata"]
            ]
        members = await self.rows(made.core("machines"))
        names = sorted(row["metadata"]["name"] for row in members)
        phases = Counter((row.get("status") or {}).get("phase") for row in members)
        if phases != Counter({"Running": self.replicas} if self.replicas else {}):
            wrong.append(f"{self.replicas} machines were asked for, there are {dict(phases)}")
        running = sorted(guest.name for guest in self.guests().values() if guest.running)
        if running != names:
            wrong.append(f"machines {names} but VMs {running}")
        nodes = {row["metadata"]["name"]: row for row in await self.rows("/api/v1/nodes")}
        dead = sorted(self.made.context.machines.dead & set(nodes))
        if dead:
            wrong.append(f"dead machines: {dead}")
        if sorted(nodes) != sorted([*names, "cp-1"]):
            wrong.append(f"machines {names} but nodes {sorted(nodes)}")
        used = len(await self.rows(WATCHED[-1]))
        if used != len(names):
            wrong.append(f"{len(names)} machines have {used} addresses")
        for path, wanted in ((DEPLOYMENTS, self.workloads), (SETS, self.stores)):
            found = {row["metadata"]["name"]: row for row in await self.rows(path)}
            if set(found) != set(wanted):
                wrong.append(f"{path}: {sorted(found)} instead of {sorted(wanted)}")
            for name, count in wanted.items():
                have = (found.get(name, {}).get("status") or {}).get("readyReplicas", 0)
                if have != count:
                    wrong.append(f"{path} {name}: {have} of {count} ready; {await self._unready(name)}")
        pods = [row for row in await self.rows(PODS) if row["status"].get("phase") not in {"Failed", "Succeeded"}]
        total = sum(self.workloads.values()) + sum(self.stores.values())
        if len(pods) != total:
            wrong.append(f"{total} pods were asked for, there are {sorted(row['metadata']['name'] for row in pods)}")
        if len(self.drives()) != sum(self.stores.values()):
            volumes = await self._volumes(pods)
            wrong.append(f"disks in use: {self.drives()} for {self.stores}; {volumes}")
        return wrong

    async def _unready(self, name: str) -> str:
        """The pods of a workload that are not ready, as they tell it, and the last events about them."""
        found = []
        for row in await self.rows(PODS):
            ready = any(e["type"] == "Ready" and e["status"] == "True" for e in row["status"].get("conditions") or ())
            if row["metadata"]["name"].startswith(f"{name}-") and not ready:
                states = [entry["state"] for entry in row["status"].get("containerStatuses") or ()]
                found.append(f"{row['metadata']['name']} on {row['spec'].get('nodeName')}: {states}")
        for row in (await self.rows(f"/api/v1/namespaces/{SPACE}/events"))[-200:]:
            if row["involvedObject"]["name"].startswith(f"{name}-") and row["type"] == "Warning":
                found.append(f"{row['involvedObject']['name']} {row['reason']} {row['message']}"[:200])
        return "\n  ".join(found[-12:])

    async def _volumes(self, pods: list[Object]) -> str:
        """Which pods are where, and what is attached to which node's machine, as each side tells it."""
        where = [f"{row['metadata']['name']} on {row['spec'].get('nodeName')}" for row in pods]
        where += [
            f"{row['spec']['source']['persistentVolumeName']} to {row['spec']['nodeName']}: {row.get('status')}"
            for row in await self.rows("/apis/storage.k8s.io/v1/volumeattachments")
        ]
        where += [f"{vmid} {guest.name} has {key} {value}" for vmid, guest in self.guests().items()
                  for key, value in guest.config.items() if "vm-9999-" in str(value)]  # fmt: skip
        return "\n  ".join(where)

    async def left(self) -> list[str]:
        """What is left of everything that was made."""
        state = self.made.state
        wrong = [f"VM {vmid} {guest.name}" for vmid, guest in self.guests().items()]
        wrong += [f"volume {key[1]}" for key in state.volumes if key not in self.disks_at_first]
        for path in WATCHED:
            wrong += [
                f"{path} {row['metadata']['name']}: {row['metadata'].get('finalizers')}"
                for row in await self.rows(path)
                if row["metadata"]["name"] != "cp-1" and row["metadata"].get("namespace") != SYSTEM
            ]
        wrong += [f"task {task.upid} still runs" for task in state.tasks if task.running]
        return wrong

    # -- how it goes ------------------------------------------------------------------------------------

    def failure(self, what: list[str]) -> str:
        """The story of a failure."""
        lines = "\n  ".join([f"seed {self.seed}, {len(self.story)} steps:", *self.story])
        return "\n".join(
            [*what, lines, "the programs wrote:", *(line[:150] + " … " + line[-250:] for line in self.made.lines[-10:])]
        )

    async def until(self, wrong: Callable[[], Awaitable[list[str]]]) -> None:
        """Returns once nothing is wrong any more."""
        found: list[str] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS):
                while found := await wrong():
                    assert not (bad := await self.invariants()), self.failure(bad)
                    await asyncio.sleep(0.03)
        assert not found, self.failure(found)

    async def step(self) -> None:
        """One thing happens."""
        action = self.dice.choice(ACTIONS)
        place = len(self.story)
        self.story.append(action.__name__)
        for _ in range(200):
            try:
                self.story[place] = f"{action.__name__}: {await action(self)}"
                break
            except (Refused, ProxmoxRefused, aiohttp.ClientError) as error:
                self.story[place] = f"{action.__name__}: refused {error}"
                if isinstance(error, Refused) and error.code in {404, 422}:
                    break
                if isinstance(error, ProxmoxRefused):
                    break
                await asyncio.sleep(0.005)
        await asyncio.sleep(self.dice.choice((0.0, 0.01, 0.05)))
        assert not (wrong := await self.invariants()), self.failure(wrong)

    async def rest(self) -> None:
        """Faults end, nodes return, what was destroyed is given up by hand; then all is as asked for."""
        self.story.append("rest")
        self.faults.clear()
        for name in set(self.made.state.nodes) - {self.made.state.local_node}:
            outage.give_back(self.made.state, name)
        self.replicas = max(self.replicas, 1)
        await scale_to(self, self.replicas)
        await self.until(self._mended)

    async def _mended(self) -> list[str]:
        """What an engineer mends by hand, and what is unsettled then."""
        busy = any(task.running for task in self.made.state.tasks)
        for vmid, guest in self.guests().items():
            if guest.config.get("lock") and not busy:  # a task that died with its node leaves it
                self.story.append(f"  by hand: qm unlock {vmid}")
                guest.config.pop("lock")
        guests = {guest.name: (vmid, guest) for vmid, guest in self.guests().items()}
        for row in await self.rows(self.made.own("proxmoxmachines")):
            name, status = row["metadata"]["name"], row.get("status") or {}
            if "deletionTimestamp" in row["metadata"]:
                continue
            if row["spec"].get("virtualMachineID") and name not in guests:
                self.missed[name] += 1
            if self.missed[name] > 30 or status.get("failureReason"):
                self.story.append(f"  by hand: delete machine {name}")
                self.missed.pop(name, None)
                with suppress(Refused):
                    await self.made.client.delete(self.made.core("machines", owner_name(row)))
            elif status.get("ready") and name in guests and not guests[name][1].running and not guests[name][1].lock:
                vmid, guest = guests[name]
                with suppress(ProxmoxRefused):
                    await self.proxmox.post(f"/nodes/{guest.node}/qemu/{vmid}/status/start")
        return await self.unsettled()

    async def end(self) -> None:
        """Everything is deleted."""
        self.story.append("delete everything")
        for path in (DEPLOYMENTS, SETS):
            for row in await self.rows(path):
                await self.made.client.delete(f"{path}/{row['metadata']['name']}")
        self.workloads, self.stores = {}, {}
        for row in await self.rows(CLAIMS):
            await self.made.client.delete(f"{CLAIMS}/{row['metadata']['name']}")
        await scale_to(self, 0)  # a Cluster that is being deleted leaves its nodes to themselves
        await self.until(self._mended)
        await self.made.client.delete(self.made.core("clusters", "demo"))
        await self.until(self.left)


def owner_name(row: Object) -> str:
    """The Machine of a ProxmoxMachine."""
    owners = row["metadata"].get("ownerReferences") or ()
    return next((entry["name"] for entry in owners if entry["kind"] == "Machine"), row["metadata"]["name"])


# --- what may happen ------------------------------------------------------------------------------------


async def scale_to(walk: Walk, count: int) -> str:
    """A MachineDeployment has another size."""
    await walk.made.client.patch(walk.made.core("machinedeployments", "md"), {"spec": {"replicas": count}})
    walk.replicas = count
    return f"{count} machines"


async def scale_machines(walk: Walk) -> str:
    """More or fewer machines."""
    return await scale_to(walk, walk.dice.randint(0, MOST_MACHINES))


async def delete_machine(walk: Walk) -> str:
    """One machine is deleted by hand."""
    names = sorted(row["metadata"]["name"] for row in await walk.rows(walk.made.core("machines")))
    if not names:
        return "none"
    name = walk.dice.choice(names)
    await walk.made.client.delete(walk.made.core("machines", name))
    return name


async def stop_vm(walk: Walk) -> str:
    """Somebody pulls the plug of a VM."""
    alive = sorted(vmid for vmid, guest in walk.guests().items() if guest.running)
    if not alive:
        return "none"
    vmid = walk.dice.choice(alive)
    await walk.proxmox.post(f"/nodes/{walk.made.state.guests[vmid].node}/qemu/{vmid}/status/stop")
    return str(vmid)


async def destroy_vm(walk: Walk) -> str:
    """Somebody destroys a VM that a Machine still has."""
    stopped = sorted(vmid for vmid, guest in walk.guests().items() if not guest.running and not guest.lock)
    if not stopped:
        return await stop_vm(walk)
    vmid = walk.dice.choice(stopped)
    await walk.proxmox.delete(f"/nodes/{walk.made.state.guests[vmid].node}/qemu/{vmid}")
    return str(vmid)


async def lose_node(walk: Walk) -> str:
    """A Proxmox VE node dies or returns; never the one that answers, and never two at once."""
    state = walk.made.state
    gone = [name for name, each in state.nodes.items() if not each.online]
    if gone:
        outage.give_back(state, gone[0])
        return f"{gone[0]} is back"
    name = walk.dice.choice(sorted(set(state.nodes) - {state.local_node}))
    outage.lose(state, name)
    return f"{name} is gone"


async def deploy(walk: Walk) -> str:
    """A Deployment is made, scaled or deleted."""
    name, count = f"web-{walk.dice.randint(0, 2)}", walk.dice.randint(0, 6)
    if name not in walk.workloads:
        labels = {"app": name}
        spec = {"containers": [{"name": "web", "image": "nginx:1.27"}], "terminationGracePeriodSeconds": 1}
        await walk.made.client.create(DEPLOYMENTS, {"metadata": {"name": name}, "spec": {
            "replicas": count, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec}}})  # fmt: skip
    elif walk.dice.random() < 0.3:
        await walk.made.client.delete(f"{DEPLOYMENTS}/{name}")
        del walk.workloads[name]
        return f"{name} deleted"
    else:
        await walk.made.client.patch(f"{DEPLOYMENTS}/{name}", {"spec": {"replicas": count}})
    walk.workloads[name] = count
    return f"{name} {count}"


async def store(walk: Walk) -> str:
    """A StatefulSet with a disk for each pod is made or deleted; its claims stay or go with it."""
    name = f"db-{walk.dice.randint(0, 1)}"
    if name in walk.stores:
        await walk.made.client.delete(f"{SETS}/{name}")
        del walk.stores[name]
        for row in await walk.rows(CLAIMS) if walk.dice.random() < 0.5 else ():
            if row["metadata"]["name"].startswith(f"data-{name}-"):
                await walk.made.client.delete(f"{CLAIMS}/{row['metadata']['name']}")
        return f"{name} deleted"
    labels, count = {"app": name}, walk.dice.randint(1, 2)
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "proxmox",
             "resources": {"requests": {"storage": "1Gi"}}}}  # fmt: skip
    container = {
        "name": "db",
        "image": "registry.k8s.io/pause:3.10",
        "volumeMounts": [{"name": "data", "mountPath": "/d"}],
    }
    await walk.made.client.create(SETS, {"metadata": {"name": name}, "spec": {
        "replicas": count, "serviceName": name, "selector": {"matchLabels": labels}, "volumeClaimTemplates": [claim],
        "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [container], "terminationGracePeriodSeconds": 1}}}})  # fmt: skip
    walk.stores[name] = count
    return f"{name} {count}"


async def kill_pod(walk: Walk) -> str:
    """A pod is deleted, kindly or by force."""
    names = sorted(row["metadata"]["name"] for row in await walk.rows(PODS))
    if not names:
        return "none"
    name, seconds = walk.dice.choice(names), walk.dice.choice((0, 1, 30))
    await walk.made.client.delete(f"{PODS}/{name}", {
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": seconds})  # fmt: skip
    return f"{name} within {seconds} s"


async def break_api(walk: Walk) -> str:
    """One of the APIs refuses for a while."""
    rule = walk.dice.choice(FAULTS)
    walk.faults.add(fault_from(rule))
    return str(rule)


async def wait(walk: Walk) -> str:
    """Time goes by."""
    seconds = walk.dice.choice((1, 10, 60, 600))
    walk.made.context.clock.advance(seconds)  # type: ignore[attr-defined]
    return f"{seconds} s"


ACTIONS: tuple[Callable[[Walk], Awaitable[str]], ...] = (
    scale_machines, scale_machines, delete_machine, stop_vm, destroy_vm, lose_node, deploy, deploy, store, kill_pod,
    kill_pod, break_api, wait, wait,
)  # fmt: skip


# --- the place ---------------------------------------------------------------------------------------------


def site() -> Object:
    """The healthy Proxmox VE with its template on shared storage, and without guests that nobody asks for."""
    given = scenario.load("healthy").proxmox
    guests = {vmid: given["guests"][vmid] for vmid in (101, 9000)}
    guests[9000]["config"]["scsi0"] = "nas:9000/base-9000-disk-0.qcow2,size=20G"
    guests[9000]["config"].pop("ide2", None)
    return {"guests": guests, "pools": {}, "backup_jobs": {}, "tasks": []}


@asynccontextmanager
async def place(seed: int) -> AsyncIterator[Walk]:
    """A cluster that makes machines for itself, with disks for its pods."""
    programs = ((capi.PROGRAMS[0], "v1.10.1"), (capmox.PROGRAMS[0], "v0.7.7"), (ipam.PROGRAMS[0], "v1.0.3"))
    async with worlds(*programs, old=True, proxmox=site(), beside=definitions) as made:
        await node(made, "cp-1", "pve1", 101)
        await prepare(made)
        context, state = made.context, made.state
        kubelets = Kubelets(context, Processes(context, storage.PROGRAMS))
        context.spawn(scheduler.run(context), name="scheduler")
        context.spawn(kubelets.run(), name="kubelets")
        for manager in MANAGERS:
            if manager is not bootstrap_tokens.run:  # runs already
                context.spawn(manager(context), name=manager.__module__)
        inside = machines.Machines(state, context.clock)  # type: ignore[arg-type]
        inside.add(machines.Home(made.client.base_url, context), ENDPOINT)
        context.spawn(inside.run(), name="machines")
        context.spawn(zones(made), name="zones")
        await disks(made)
        await network(made)
        await group_of_machines(made)
        proxmox = ProxmoxClient(made.proxmox_url, "root@pam!capmox", SECRET)
        walk = Walk(made, proxmox, made.faults, seed, random.Random(seed), set(state.guests), set(state.volumes))
        try:
            yield walk
        finally:
            await proxmox.close()


async def definitions(made: Worlds) -> None:
    """What the walk needs beside the machines themselves."""
    for kind, plural in CORE:
        body = strict.definition("cluster.x-k8s.io", kind, plural, ["v1beta1"])
        await made.client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
    for row in (await made.client.list("/apis/apiextensions.k8s.io/v1/customresourcedefinitions"))["items"]:
        versions = "_".join(entry["name"] for entry in row["spec"]["versions"])
        labels = {"cluster.x-k8s.io/v1beta1": versions}  # the contract that these versions fulfil
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{row['metadata']['name']}"
        await made.client.patch(path, {"metadata": {"labels": labels}})


async def zones(made: Worlds) -> None:
    """Tells Kubernetes on which Proxmox VE node each of its nodes is, as a cloud controller would."""
    context = made.context
    while True:
        for (_, name), row in list(context.nodes.items.items()):
            identity = str((row.get("status") or {}).get("nodeInfo", {}).get("systemUUID", "-")).lower()
            where = next((g.node for g in made.state.guests.values() if identity in str(g.config.get("smbios1"))), "")
            labels = {"topology.kubernetes.io/region": "lab", "topology.kubernetes.io/zone": where}
            if where and row["metadata"]["labels"].get("topology.kubernetes.io/zone") != where:
                with suppress(Refused, aiohttp.ClientError):
                    await context.client.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})
        await asyncio.sleep(0.02)


async def disks(made: Worlds) -> None:
    """The CSI driver: its controller on the control plane, its plugin on every worker."""
    client = made.client
    await client.create("/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
    await client.create("/apis/storage.k8s.io/v1/csidrivers", {"metadata": {"name": DRIVER}, "spec": {
        "attachRequired": True, "podInfoOnMount": True}})  # fmt: skip
    text = yaml.safe_dump(config_of(made.proxmox_url))
    await client.create(f"/api/v1/namespaces/{SYSTEM}/secrets", secret("proxmox-csi-plugin", {"config.yaml": text}))
    images = {"plugin": "ghcr.io/sergelogvinov/proxmox-csi-controller:v0.19.1"}
    images |= {
        name: f"registry.k8s.io/sig-storage/{name}:{tag}" for name, tag in SIDECARS.items() if "snap" not in name
    }
    await system_pod(made, "csi-controller", "cp-1", images)
    labels = {"app": "csi-node"}
    container = {"name": "plugin", "image": "x/proxmox-csi-node:v0.19.1"}
    registry = "ghcr.io/sergelogvinov"
    container["image"] = f"{registry}/proxmox-csi-node:v0.19.1"
    await client.create(f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets", {"metadata": {"name": "csi-node"}, "spec": {
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [container], "nodeSelector": {"role": "worker"},
            "tolerations": [{"operator": "Exists"}]}}}})  # fmt: skip
    await client.create("/apis/storage.k8s.io/v1/storageclasses", {
        "metadata": {"name": "proxmox"}, "provisioner": DRIVER, "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete", "parameters": {"csi.storage.k8s.io/fstype": "ext4", "storage": "nas"}})  # fmt: skip


async def network(made: Worlds) -> None:
    """The agent of a network plugin on every node: without it none becomes Ready."""
    labels = {"k8s-app": "cilium"}
    pod = {"hostNetwork": True, "tolerations": [{"operator": "Exists"}],
           "containers": [{"name": "cilium-agent", "image": "quay.io/cilium/cilium:v1.19.5"}]}  # fmt: skip
    await made.client.create(f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets", {"metadata": {"name": "cilium"}, "spec": {
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}})  # fmt: skip


async def group_of_machines(made: Worlds) -> None:
    """A cluster that is its own tenant, with one MachineDeployment."""
    client, group = made.client, "infrastructure.cluster.x-k8s.io"
    config = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": client.base_url}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
    }  # fmt: skip
    secrets = f"/api/v1/namespaces/{SPACE}/secrets"
    await client.create(secrets, secret("demo-kubeconfig", {"value": yaml.safe_dump(config)}))
    document = join_document().replace("gpu", "walk").replace("NoSchedule", "PreferNoSchedule")
    await client.create(secrets, secret("boot", {"value": document}))
    data = {"url": made.proxmox_url, "token": "root@pam!capmox", "secret": SECRET}
    await client.create(secrets, secret("proxmox-credentials", data))
    await made.create(made.own("proxmoxclusters"), "ProxmoxCluster", {"metadata": {"name": "demo"}, "spec": {
        "externalManagedControlPlane": True, "dnsServers": ["10.0.0.254"], "allowedNodes": ["pve1", "pve2", "pve3"],
        "controlPlaneEndpoint": {"host": "10.0.0.140", "port": 6443},
        "credentialsRef": {"name": "proxmox-credentials"},
        "ipv4Config": {"addresses": ["10.0.0.150-10.0.0.159"], "prefix": 24, "gateway": "10.0.0.254"}}})  # fmt: skip
    template = {"sourceNode": "pve1", "templateID": 9000, "numCores": 4, "memoryMiB": 4096, "storage": "nas",
                "full": True, "format": "qcow2", "disks": {"bootVolume": {"disk": "scsi0", "sizeGb": 40}},
                "network": {"default": {"bridge": "vmbr0", "model": "virtio"}}}  # fmt: skip
    path = made.own("proxmoxmachinetemplates")
    await made.create(path, "ProxmoxMachineTemplate", {
        "metadata": {"name": "t"}, "spec": {"template": {"spec": template}}})  # fmt: skip
    await made.create(made.core("clusters"), "Cluster", {"metadata": {"name": "demo"}, "spec": {
        "infrastructureRef": {
            "apiVersion": f"{group}/v1alpha1", "kind": "ProxmoxCluster", "name": "demo"}}})  # fmt: skip
    inner = {
        "clusterName": "demo",
        "version": "v1.34.3",
        "bootstrap": {"dataSecretName": "boot"},
        "nodeDrainTimeout": "60s",
        "nodeVolumeDetachTimeout": "120s",
        "infrastructureRef": {"apiVersion": f"{group}/v1alpha1", "kind": "ProxmoxMachineTemplate", "name": "t"},
    }
    await made.create(made.core("machinedeployments"), "MachineDeployment", {"metadata": {"name": "md"}, "spec": {
        "clusterName": "demo", "replicas": 1, "selector": {"matchLabels": {}},
        "template": {"spec": inner}}})  # fmt: skip
    await made.until(made.core("clusters", "demo"), lambda c: (c.get("status") or {}).get("phase") == "Provisioned")
    while True:
        item = await client.get(made.core("clusters", "demo"))
        rest = [row for row in item["status"].get("conditions") or () if row["type"] != "ControlPlaneInitialized"]
        row = {"type": "ControlPlaneInitialized", "status": "True", "lastTransitionTime": "2026-08-01T08:00:00Z"}
        body = {
            "metadata": {"resourceVersion": item["metadata"]["resourceVersion"]},
            "status": {"conditions": [*rest, row]},
        }
        with suppress(Refused):
            await client.patch(made.core("clusters", "demo") + "/status", body)
            return


# --- the walk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_walk_breaks_no_invariant_and_leaves_nothing(seed: int) -> None:
    """Machines, VMs, addresses, disks, pods: never doubled, never stuck, and all gone in the end."""

    async def story() -> None:
        async with place(seed) as walk:
            await walk.rest()
            for number in range(1, STEPS + 1):
                await walk.step()
                if number % REST_EVERY == 0:
                    await walk.rest()
            await walk.end()

    asyncio.run(story())


def test_walk_tells_its_seed_and_steps_when_it_fails() -> None:
    """Whoever reads a failure can walk the same way again."""
    made = Worlds(None, None, None, None, "", True)  # type: ignore[arg-type]
    walk = Walk(made, None, None, 7, random.Random(7), set(), set(), ["wait: 10 s"])  # type: ignore[arg-type]
    told = walk.failure(["2 VMs are called demo-1"])
    assert "2 VMs are called demo-1" in told
    assert "seed 7, 1 steps:\n  wait: 10 s" in told
