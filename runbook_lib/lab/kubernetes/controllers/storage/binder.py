"""The volume controller: binds claims to volumes, asks for new ones, and lets go of volumes whose claims are gone."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from typing import Any

from ..client import Key, Object, key_of
from ..context import Context
from ..reconcile import reconcile
from . import matching
from .told import Told

CLAIMS, VOLUMES = "/api/v1/persistentvolumeclaims", "/api/v1/persistentvolumes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
DRIVERS = "/apis/storage.k8s.io/v1/csidrivers"
COMPONENT = "persistentvolume-controller"
PVC_PROTECTION, PV_PROTECTION = "kubernetes.io/pvc-protection", "kubernetes.io/pv-protection"
RESIZER = "volume.kubernetes.io/storage-resizer"


def claim_path(claim: Object) -> str:
    """Where the claim is."""
    space, name = key_of(claim)
    return f"/api/v1/namespaces/{space}/persistentvolumeclaims/{name}"


def volume_path(volume: Object) -> str:
    """Where the volume is."""
    return f"{VOLUMES}/{volume['metadata']['name']}"


def at(item: Object, **metadata: Any) -> Object:
    """Metadata of a patch that holds only for the object as it was seen."""
    return {"metadata": {"resourceVersion": item["metadata"]["resourceVersion"], **metadata}}


async def run(context: Context) -> None:
    """Binds until cancelled."""
    binder = _Binder(context)
    async with asyncio.TaskGroup() as group:
        for work in (binder.claims_run(), binder.volumes_run(), binder.ephemeral_run()):
            group.create_task(work)


class _Binder:
    """The caches that claims and volumes are judged by."""

    def __init__(self, context: Context) -> None:
        self.context, self.client = context, context.client
        self.claims, self.volumes = context.cache(CLAIMS), context.cache(VOLUMES)
        self.classes, self.pods, self.nodes = context.cache(CLASSES), context.pods, context.nodes
        self.drivers = context.cache(DRIVERS)
        self.told, self.grown = Told(context, COMPONENT), Told(context, "volume_expand")

    # -- who is looked at when something changes ---------------------------------------------------

    async def claims_run(self) -> None:
        also = [(self.volumes, self._claims_of_volume), (self.classes, self._open_claims), (self.pods, self._of_pod)]
        await reconcile(self.context, self.claims, self._claim, also=also)

    async def volumes_run(self) -> None:
        also = [(self.claims, self._volume_of_claim)]
        await reconcile(self.context, self.volumes, self._volume, also=also)

    async def ephemeral_run(self) -> None:
        await reconcile(self.context, self.pods, self._ephemeral, also=[(self.claims, _owner_pod)], workers=1)

    def _open_claims(self, _item: Object) -> Iterable[Key]:
        return [key for key, claim in self.claims.items.items() if claim.get("status", {}).get("phase") != "Bound"]

    def _claims_of_volume(self, volume: Object) -> Iterable[Key]:
        reference = (volume.get("spec") or {}).get("claimRef")
        if reference:
            return [(reference.get("namespace", ""), reference.get("name", ""))]
        name = volume["metadata"]["name"]
        gone = [key for key, claim in self.claims.items.items() if claim["spec"].get("volumeName") == name]
        return [*gone, *self._open_claims(volume)]

    def _of_pod(self, pod: Object) -> Iterable[Key]:
        if "spec" not in pod:
            return
        for name in matching.claims_of(pod):
            key = (pod["metadata"]["namespace"], name)
            claim = self.claims.items.get(key)
            if claim and ("deletionTimestamp" in claim["metadata"] or claim.get("status", {}).get("phase") != "Bound"):
                yield key

    def _volume_of_claim(self, claim: Object) -> Iterable[Key]:
        name = (claim.get("spec") or {}).get("volumeName")
        if name:
            yield "", name

    def _users(self, claim: Object) -> list[Object]:
        space, name = key_of(claim)
        return [
            pod
            for (where, _), pod in self.pods.items.items()
            if where == space and pod["spec"].get("volumes") and name in matching.claims_of(pod)
        ]

    # -- claims ------------------------------------------------------------------------------------

    async def _claim(self, _key: Key, claim: Object | None) -> None:
        if claim is None:
            return
        if "deletionTimestamp" in claim["metadata"]:
            await self._unprotect_claim(claim)
        status = claim.get("status", {})
        if matching.BIND_COMPLETED in matching.notes(claim) and claim["spec"].get("volumeName"):
            await self._bound(claim)
            return
        if "deletionTimestamp" in claim["metadata"]:
            return
        if claim["spec"].get("storageClassName") is None and not claim["spec"].get("volumeName"):
            name = matching.default_class(self.classes.items.values())
            if name and not _prebound(claim, self.volumes.items.values()):
                made = await self.client.patch(claim_path(claim), {**at(claim), "spec": {"storageClassName": name}})
                await self.claims.caught_up(made)
                return
        classes = {name: item for (_, name), item in self.classes.items.items()}
        node = self.nodes.get("", matching.notes(claim).get(matching.SELECTED_NODE, ""))
        verdict = matching.judge(claim, list(self.volumes.items.values()), classes, self._users(claim), node)
        if verdict.volume is not None:
            await self._bind(claim, verdict.volume)
            return
        if status.get("phase") != "Pending":
            made = await self.client.patch(f"{claim_path(claim)}/status", {"status": {"phase": "Pending"}})
            await self.claims.caught_up(made)
            claim = made
        if verdict.provisioner and matching.notes(claim).get(matching.PROVISIONER) != verdict.provisioner:
            both = dict.fromkeys((matching.PROVISIONER, matching.OLD_PROVISIONER), verdict.provisioner)
            made = await self.client.patch(claim_path(claim), at(claim, annotations=both))
            await self.claims.caught_up(made)
        elif not verdict.provisioner and verdict.reason.startswith("WaitFor"):
            await self._name_provisioner(claim, classes)
        if verdict.reason:
            await self.told.say(claim, verdict.reason, verdict.message, warning=verdict.warning)

    async def _name_provisioner(self, claim: Object, classes: dict[str, Object]) -> None:
        """A claim that waits knows its provisioner already: the scheduler's choice shall start it."""
        kind = classes.get(matching.class_of(claim))
        if kind is None or str(kind["provisioner"]).startswith(matching.IN_TREE):
            return
        if matching.notes(claim).get(matching.PROVISIONER) != kind["provisioner"]:
            both = dict.fromkeys((matching.PROVISIONER, matching.OLD_PROVISIONER), kind["provisioner"])
            await self.claims.caught_up(await self.client.patch(claim_path(claim), at(claim, annotations=both)))

    async def _bind(self, claim: Object, volume: Object) -> None:
        meta = claim["metadata"]
        reference = volume["spec"].get("claimRef")
        if (reference or {}).get("uid") != meta["uid"]:
            whom = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"],
                    "name": meta["name"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}  # fmt: skip
            extra = {} if reference else {"annotations": {matching.BOUND_BY: "yes"}}
            volume = await self.client.patch(volume_path(volume), {**at(volume, **extra), "spec": {"claimRef": whom}})
            await self.volumes.caught_up(volume)
        volume = await self._phase(volume, "Bound")
        marks = {matching.BIND_COMPLETED: "yes"}
        if not claim["spec"].get("volumeName"):
            marks[matching.BOUND_BY] = "yes"
        body = {**at(claim, annotations=marks), "spec": {"volumeName": volume["metadata"]["name"]}}
        claim = await self.client.patch(claim_path(claim), body)
        await self.claims.caught_up(claim)
        await self._claim_bound(claim, volume)

    async def _claim_bound(self, claim: Object, volume: Object) -> None:
        status = claim.get("status", {})
        if status.get("phase") == "Bound" and status.get("capacity"):
            return
        body = {"phase": "Bound", "accessModes": volume["spec"]["accessModes"], "capacity": volume["spec"]["capacity"]}
        made = await self.client.patch(f"{claim_path(claim)}/status", {"status": body})
        await self.claims.caught_up(made)

    async def _bound(self, claim: Object) -> None:
        """A claim that was bound: its volume may be lost, and it may want to be larger."""
        name = claim["spec"]["volumeName"]
        volume = self.volumes.get("", name) or await self.client.find(f"{VOLUMES}/{name}")
        phase = claim.get("status", {}).get("phase")
        if volume is None or not matching.refers_to(volume, claim):
            if phase != "Lost":
                made = await self.client.patch(f"{claim_path(claim)}/status", {"status": {"phase": "Lost"}})
                await self.claims.caught_up(made)
                if volume is None:
                    said = "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
                    await self.told.say(claim, "ClaimLost", said, warning=True)
                else:
                    said = "Two claims are bound to the same volume, this one is bound incorrectly"
                    await self.told.say(claim, "ClaimMisbound", said, warning=True)
            return
        if phase != "Bound":
            await self._bind(claim, volume)
            return
        await self._larger(claim, volume)

    async def _larger(self, claim: Object, volume: Object) -> None:
        held = matching.number(claim["status"].get("capacity", {}).get("storage", "0"))
        driver = (volume["spec"].get("csi") or {}).get("driver", "")
        if matching.size_of(claim) <= held or not driver or matching.notes(claim).get(RESIZER) == driver:
            return
        made = await self.client.patch(claim_path(claim), at(claim, annotations={RESIZER: driver}))
        await self.claims.caught_up(made)
        said = "waiting for an external controller to expand this PVC"
        await self.grown.say(claim, "ExternalExpanding", said)

    async def _unprotect_claim(self, claim: Object) -> None:
        held = claim["metadata"].get("finalizers") or []
        if PVC_PROTECTION not in held or any(not matching.finished(pod) for pod in self._users(claim)):
            return
        space = claim["metadata"]["namespace"]
        # the cache may be behind a pod that was just made: the server is asked before the claim is let go
        fresh = (await self.client.list(f"/api/v1/namespaces/{space}/pods")).get("items") or ()
        name = claim["metadata"]["name"]
        if any(not matching.finished(pod) and name in matching.claims_of(pod) for pod in fresh):
            return
        rest = [entry for entry in held if entry != PVC_PROTECTION]
        await self.client.patch(claim_path(claim), at(claim, finalizers=rest))

    # -- volumes -----------------------------------------------------------------------------------

    async def _phase(self, volume: Object, phase: str, message: str = "") -> Object:
        status = volume.get("status", {})
        if status.get("phase") == phase:
            return volume
        body: Object = {"phase": phase, "lastPhaseTransitionTime": self.context.stamp(), "message": message or None}
        made = await self.client.patch(f"{volume_path(volume)}/status", {"status": body})
        await self.volumes.caught_up(made)
        return made

    async def _volume(self, _key: Key, volume: Object | None) -> None:
        if volume is None:
            return
        meta, reference = volume["metadata"], volume["spec"].get("claimRef")
        phase = volume.get("status", {}).get("phase")
        if "deletionTimestamp" in meta and phase != "Bound" and PV_PROTECTION in (meta.get("finalizers") or ()):
            rest = [entry for entry in meta["finalizers"] if entry != PV_PROTECTION]
            await self.client.patch(volume_path(volume), at(volume, finalizers=rest))
            return
        if not reference or not reference.get("uid"):
            await self._phase(volume, "Available")
            return
        key = (reference.get("namespace", ""), reference.get("name", ""))
        claim = self.claims.items.get(key)
        if claim is None or claim["metadata"]["uid"] != reference["uid"]:
            path = f"/api/v1/namespaces/{key[0]}/persistentvolumeclaims/{key[1]}"
            claim = await self.client.find(path)
        if claim is not None and claim["metadata"]["uid"] == reference["uid"]:
            if claim["spec"].get("volumeName") == meta["name"]:
                await self._phase(volume, "Bound")
            elif claim["spec"].get("volumeName"):
                await self._misplaced(volume)
            return
        if phase != "Failed":
            await self._released(await self._phase(volume, "Released"))

    async def _misplaced(self, volume: Object) -> None:
        """The volume was meant for a claim that has taken another one."""
        if matching.PROVISIONED_BY in matching.notes(volume):
            await self._phase(volume, "Released")
        elif matching.BOUND_BY in matching.notes(volume):
            body = {**at(volume, annotations={matching.BOUND_BY: None}), "spec": {"claimRef": None}}
            await self.volumes.caught_up(await self.client.patch(volume_path(volume), body))

    async def _released(self, volume: Object) -> None:
        policy = volume["spec"].get("persistentVolumeReclaimPolicy", "Retain")
        external = matching.notes(volume).get(matching.PROVISIONED_BY, "")
        if policy == "Retain" or (policy == "Delete" and external and not external.startswith(matching.IN_TREE)):
            return
        name = volume["metadata"]["name"]
        if policy == "Delete":
            said = f'error getting deleter volume plugin for volume "{name}": no deletable volume plugin matched'
            reason = "VolumeFailedDelete"
        else:
            reason, said = "VolumeFailedRecycle", "No recycler plugin found for the volume!"
        await self._phase(volume, "Failed", said)
        await self.told.say(volume, reason, said, warning=True)

    # -- claims that live as long as a pod ---------------------------------------------------------

    async def _ephemeral(self, _key: Key, pod: Object | None) -> None:
        if pod is None or "deletionTimestamp" in pod["metadata"] or matching.finished(pod):
            return
        meta = pod["metadata"]
        for volume in pod["spec"].get("volumes") or ():
            if "ephemeral" not in volume:
                continue
            name = f"{meta['name']}-{volume['name']}"
            if self.claims.get(meta["namespace"], name) is not None:
                continue
            template = copy.deepcopy(volume["ephemeral"]["volumeClaimTemplate"])
            owner = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"], "controller": True,
                     "blockOwnerDeletion": True}  # fmt: skip
            metadata = {**(template.get("metadata") or {}), "name": name, "ownerReferences": [owner]}
            body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template["spec"]}
            path = f"/api/v1/namespaces/{meta['namespace']}/persistentvolumeclaims"
            await self.claims.caught_up(await self.client.create(path, body))


def _prebound(claim: Object, volumes: Iterable[Object]) -> bool:
    return any(matching.refers_to(volume, claim) for volume in volumes)


def _owner_pod(claim: Object) -> Iterable[Key]:
    for owner in claim["metadata"].get("ownerReferences") or ():
        if owner["kind"] == "Pod":
            yield claim["metadata"]["namespace"], owner["name"]
