"""The external-provisioner sidecar: volumes for claims, their end, and what capacity is left where."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..alarms import Alarms
from ..client import Key, Object, Refused, key_of
from ..context import Context
from ..klog import line
from ..processes import Process
from ..reconcile import reconcile
from . import matching
from .attach_detach import ATTACHMENTS
from .binder import CLAIMS, CLASSES, VOLUMES, at, claim_path, volume_path
from .csi import CsiError, Driver, Made, Source, Wanted, sidecar
from .told import Told

CSI_NODES = "/apis/storage.k8s.io/v1/csinodes"
CAPACITIES = "/apis/storage.k8s.io/v1/csistoragecapacities"
FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
SNAPSHOTS = "/apis/snapshot.storage.k8s.io/v1"
SECRET_NOTES = "volume.kubernetes.io/provisioner-deletion-secret"
PREFIX = "csi.storage.k8s.io/"
FIRST_RETRY, LAST_RETRY, CAPACITY_SECONDS = 1.0, 300.0, 60.0


class NotPossible(Exception):
    """A claim cannot be provisioned; the text is the event's."""


# -- judgement -----------------------------------------------------------------------------------------


def topology_keys(csi_node: Object | None, driver: str) -> list[str]:
    """The labels that place a volume of the driver, as the node's plugin registered them."""
    for entry in ((csi_node or {}).get("spec") or {}).get("drivers") or ():
        if entry["name"] == driver:
            return list(entry.get("topologyKeys") or ())
    return []


def segments_of(node: Object, keys: Iterable[str]) -> dict[str, str] | None:
    """The node's place, or None where a label is missing."""
    labels = node["metadata"].get("labels") or {}
    found = {key: labels[key] for key in keys if key in labels}
    return found if len(found) == len(list(keys)) else None


def places(nodes: Iterable[Object], csi_nodes: Mapping[str, Object], driver: str) -> list[dict[str, str]]:
    """Every place where the driver has a node, in order, once each."""
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for node in nodes:
        keys = topology_keys(csi_nodes.get(node["metadata"]["name"]), driver)
        segments = segments_of(node, keys) if keys else None
        if segments:
            found[tuple(sorted(segments.items()))] = segments
    return [found[key] for key in sorted(found)]


def requirement(
    name: str, selected: str, nodes: Mapping[str, Object], csi_nodes: Mapping[str, Object], kind: Object, driver: str
) -> list[dict[str, str]]:
    """Where a claim's volume may be, best first. Raises NotPossible."""
    everywhere = places(nodes.values(), csi_nodes, driver)
    allowed = kind.get("allowedTopologies")
    if allowed:
        everywhere = [place for place in everywhere if _allowed(place, allowed)]
    if selected:
        csi_node = csi_nodes.get(selected)
        if csi_node is None:
            raise NotPossible(
                f'error generating accessibility requirements: error getting CSINode for selected node "{selected}": '
                f'csinode.storage.k8s.io "{selected}" not found'
            )
        keys = topology_keys(csi_node, driver)
        if not keys:
            raise NotPossible(
                f"error generating accessibility requirements: no topology key found on CSINode {selected}"
            )
        here = segments_of(nodes[selected], keys)
        if here is None:
            labels = nodes[selected]["metadata"].get("labels") or {}
            shown = " ".join(f"{key}:{labels[key]}" for key in sorted(labels))
            raise NotPossible(
                f"error generating accessibility requirements: topology labels from selected node map[{shown}] "
                f"does not match topology keys from CSINode [{' '.join(keys)}]"
            )
        return [here, *(place for place in everywhere if place != here)]
    if not everywhere:
        raise NotPossible("error generating accessibility requirements: no available topology found")
    first = zlib.crc32(name.encode()) % len(everywhere)
    return everywhere[first:] + everywhere[:first]


def _allowed(place: Mapping[str, str], terms: Sequence[Object]) -> bool:
    return any(
        all(place.get(entry["key"]) in entry["values"] for entry in term.get("matchLabelExpressions") or ())
        for term in terms
    )


def volume_of(claim: Object, kind: Object, driver: str, made: Made, identity: str) -> Object:
    """The PersistentVolume of a volume that was just made."""
    meta, parameters = claim["metadata"], kind.get("parameters") or {}
    size = f"{made.size // 2**30}Gi" if made.size % 2**30 == 0 else f"{made.size // 2**20}Mi"
    block = claim["spec"].get("volumeMode") == "Block"
    csi: Object = {
        "driver": driver,
        "volumeHandle": made.handle,
        "volumeAttributes": {**made.context, "storage.kubernetes.io/csiProvisionerIdentity": identity},
    }
    if not block:
        csi["fsType"] = parameters.get(f"{PREFIX}fstype") or "ext4"
    spec: Object = {
        "accessModes": list(claim["spec"].get("accessModes") or ()),
        "capacity": {"storage": size},
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta["namespace"],
                     "name": meta["name"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        "csi": csi,
        "persistentVolumeReclaimPolicy": kind.get("reclaimPolicy") or "Delete",
        "storageClassName": kind["metadata"]["name"],
        "volumeMode": claim["spec"].get("volumeMode") or "Filesystem",
    }  # fmt: skip
    if kind.get("mountOptions"):
        spec["mountOptions"] = list(kind["mountOptions"])
    if made.places:
        terms = [
            {"matchExpressions": [{"key": key, "operator": "In", "values": [place[key]]} for key in sorted(place)]}
            for place in made.places
        ]
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
    notes = {matching.PROVISIONED_BY: driver, f"{SECRET_NOTES}-name": "", f"{SECRET_NOTES}-namespace": ""}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{meta['uid']}", "annotations": notes, "finalizers": [FINALIZER]},
        "spec": spec,
    }


def option(container: Object, name: str) -> str | None:
    """The value of an option among the container's words: "" for one without a value, None where it is not."""
    for word in (*(container.get("command") or ()), *(container.get("args") or ())):
        key, _, value = str(word).partition("=")
        if key == name:
            return value
    return None


OWNERS = {kind: f"{kind.lower()}s" for kind in ("ReplicaSet", "Deployment", "StatefulSet", "DaemonSet")}
"""What may be above a pod, in apps/v1."""


# -- the sidecar ---------------------------------------------------------------------------------------


async def run(context: Context, process: Process) -> None:
    """Provisions for the pod's driver until cancelled."""

    async def work(driver: Driver) -> None:
        provisioner = _Provisioner(context, process, driver)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(provisioner.claims_run())
                group.create_task(provisioner.volumes_run())
                asked = option(process.container, "--enable-capacity") not in {None, "false"}
                if asked and "capacity" in driver.capabilities:
                    group.create_task(provisioner.capacities_run())
        finally:
            provisioner.alarms.close()
            provisioner.ends.close()

    await sidecar(context, process, work)


class _Provisioner:
    """What one provisioner sees, and which claims it tries again later."""

    def __init__(self, context: Context, process: Process, driver: Driver) -> None:
        self.context, self.process, self.driver, self.client = context, process, driver, context.client
        self.claims, self.classes = context.cache(CLAIMS), context.cache(CLASSES)
        self.volumes, self.csi_nodes = context.cache(VOLUMES), context.cache(CSI_NODES)
        self.attachments, self.nodes = context.cache(ATTACHMENTS), context.nodes
        self.alarms, self.ends = Alarms(context), Alarms(context)
        pod = process.pod["metadata"]
        self.identity = f"{driver.name}_{pod.get('name', '')}_{pod.get('uid', '')}"
        self.told = Told(context, self.identity)
        self._tries: dict[str, int] = {}
        self._owner: Object | None = None

    def say(self, level: str, message: str, **values: Any) -> None:
        self.process.write(line(self.context.clock.now(), level, "controller.go:1366", message, **values))

    def _retry(self, alarms: Alarms, key: Key, uid: str) -> None:
        count = self._tries[uid] = self._tries.get(uid, 0) + 1
        alarms.set(key, min(FIRST_RETRY * 2 ** min(count - 1, 12), LAST_RETRY))

    # -- claims ------------------------------------------------------------------------------------

    async def claims_run(self) -> None:
        await self.context.synced(self.volumes, self.csi_nodes, self.nodes)
        also = [(self.classes, self._of_class), (self.alarms, Alarms.keys)]
        await reconcile(self.context, self.claims, self._claim, also=also)

    def _of_class(self, kind: Object) -> Iterable[Key]:
        name = kind["metadata"]["name"]
        return [key for key, claim in self.claims.items.items() if matching.class_of(claim) == name and _open(claim)]

    async def _claim(self, key: Key, claim: Object | None) -> None:
        if claim is None or not _open(claim) or "deletionTimestamp" in claim["metadata"]:
            return
        notes = matching.notes(claim)
        if notes.get(matching.PROVISIONER) != self.driver.name:
            return
        kind = self.classes.get("", matching.class_of(claim))
        if kind is None or kind["provisioner"] != self.driver.name:
            return
        selected = notes.get(matching.SELECTED_NODE, "")
        if kind.get("volumeBindingMode") == "WaitForFirstConsumer" and not selected:
            return
        meta = claim["metadata"]
        name = f"pvc-{meta['uid']}"
        if self.volumes.get("", name) is not None:
            return
        said = f'External provisioner is provisioning volume for claim "{meta["namespace"]}/{meta["name"]}"'
        await self.told.say(claim, "Provisioning", said)
        try:
            made = await self._provision(claim, kind, selected)
        except (CsiError, NotPossible) as error:
            said = f'failed to provision volume with StorageClass "{kind["metadata"]["name"]}": {error}'
            self.say("W", f"Retrying syncing claim {meta['uid']!r}", failures=self._tries.get(meta["uid"], 0))
            self.say("E", "error syncing claim", claim=meta["uid"], err=said)
            await self.told.say(claim, "ProvisioningFailed", said, warning=True)
            if selected and isinstance(error, CsiError) and error.code == "ResourceExhausted":
                body = at(claim, annotations={matching.SELECTED_NODE: None})
                await self.claims.caught_up(await self.client.patch(claim_path(claim), body))
            self._retry(self.alarms, key, meta["uid"])
            return
        self._tries.pop(meta["uid"], None)
        self.alarms.moved(key)
        body = volume_of(claim, kind, self.driver.name, made, self.identity)
        try:
            await self.volumes.caught_up(await self.client.create(VOLUMES, body))
        except Refused as error:
            if error.code != 409:
                raise
        self.say("I", "successfully created PV for PVC", PV=name, PVC=meta["name"])
        await self.told.say(claim, "ProvisioningSucceeded", f"Successfully provisioned volume {name}")

    async def _provision(self, claim: Object, kind: Object, selected: str) -> Made:
        preferred = None
        if "topology" in self.driver.capabilities:
            nodes = {name: item for (_, name), item in self.nodes.items.items()}
            csi_nodes = {name: item for (_, name), item in self.csi_nodes.items.items()}
            if selected and selected not in nodes:
                raise NotPossible(f'failed to get target node: node "{selected}" not found')
            name = claim["metadata"]["name"]
            preferred = requirement(name, selected, nodes, csi_nodes, kind, self.driver.name)
        given = kind.get("parameters") or {}
        parameters = {key: value for key, value in given.items() if not key.startswith(PREFIX)}
        return await self.driver.create_volume(
            Wanted(
                name=f"pvc-{claim['metadata']['uid']}",
                size=int(matching.size_of(claim)),
                parameters=parameters,
                preferred=preferred,
                modes=tuple(claim["spec"].get("accessModes") or ()),
                block=claim["spec"].get("volumeMode") == "Block",
                source=await self._source(claim),
            )
        )

    async def _source(self, claim: Object) -> Source | None:
        source = claim["spec"].get("dataSource") or claim["spec"].get("dataSourceRef")
        if not source:
            return None
        space, name = claim["metadata"]["namespace"], source["name"]
        if source["kind"] == "PersistentVolumeClaim":
            self._must("clone", "CSI driver does not support clone operations: controller CLONE_VOLUME capability is "
                                "not reported")  # fmt: skip
            other = self.claims.get(space, name)
            if other is None:
                raise NotPossible(
                    f"error getting handle for DataSource Type PersistentVolumeClaim by Name {name}: error getting PVC "
                    f'{name} (namespace "{space}") from api server: persistentvolumeclaims "{name}" not found'
                )
            volume = self.volumes.get("", other["spec"].get("volumeName") or "")
            if other.get("status", {}).get("phase") != "Bound" or volume is None:
                phase = other.get("status", {}).get("phase")
                raise NotPossible(
                    f"error getting handle for DataSource Type PersistentVolumeClaim by Name {name}: "
                    f"the PVC DataSource {name} must have a status of Bound.  Got {phase}"
                )
            return Source("volume", str(volume["spec"]["csi"]["volumeHandle"]))
        if source["kind"] != "VolumeSnapshot":
            return None
        self._must("snapshot", "CSI driver does not support snapshot restore: controller CREATE_DELETE_SNAPSHOT "
                               "capability is not reported")  # fmt: skip
        failed = f"error getting handle for DataSource Type VolumeSnapshot by Name {name}: "
        snapshot = await self.client.find(f"{SNAPSHOTS}/namespaces/{space}/volumesnapshots/{name}")
        if snapshot is None:
            raise NotPossible(
                f"{failed}error getting snapshot {name} from api server: volumesnapshots.snapshot.storage.k8s.io "
                f'"{name}" not found'
            )
        status = snapshot.get("status") or {}
        content = await self.client.find(
            f"{SNAPSHOTS}/volumesnapshotcontents/{status.get('boundVolumeSnapshotContentName')}"
        )
        if content is None:
            raise NotPossible(f"{failed}snapshot {name} not bound")
        if not status.get("readyToUse"):
            raise NotPossible(f"{failed}snapshot {name} is not Ready")
        return Source("snapshot", str((content.get("status") or {}).get("snapshotHandle", "")))

    def _must(self, capability: str, otherwise: str) -> None:
        if capability not in self.driver.capabilities:
            raise NotPossible(otherwise)

    # -- volumes -----------------------------------------------------------------------------------

    async def volumes_run(self) -> None:
        also = [(self.attachments, _of_attachment), (self.ends, Alarms.keys)]
        await reconcile(self.context, self.volumes, self._volume, also=also)

    async def _volume(self, key: Key, volume: Object | None) -> None:
        if volume is None or matching.notes(volume).get(matching.PROVISIONED_BY) != self.driver.name:
            return
        meta, spec = volume["metadata"], volume["spec"]
        finalizers = meta.get("finalizers") or []
        if volume.get("status", {}).get("phase") != "Released" or spec.get("persistentVolumeReclaimPolicy") != "Delete":
            if (
                "deletionTimestamp" in meta
                and FINALIZER in finalizers
                and spec.get("persistentVolumeReclaimPolicy") != "Delete"
            ):
                await self._let_go(volume)
            return
        if "deletionTimestamp" in meta and FINALIZER not in finalizers:
            return
        name = meta["name"]
        for row in self.attachments.items.values():
            if row["spec"]["source"].get("persistentVolumeName") == name:
                said = f"persistentvolume {name} is still attached to node {row['spec']['nodeName']}"
                await self.told.say(volume, "VolumeFailedDelete", said, warning=True)
                return
        try:
            await self.driver.delete_volume(spec["csi"]["volumeHandle"])
        except CsiError as error:
            self.say("E", f'delete "{name}": volume deletion failed: {error}')
            await self.told.say(volume, "VolumeFailedDelete", str(error), warning=True)
            self._retry(self.ends, key, meta["uid"])
            return
        self._tries.pop(meta["uid"], None)
        self.say("I", "volume deleted", PV=name)
        try:
            if "deletionTimestamp" not in meta:
                answer = await self.client.delete(volume_path(volume))
                volume = answer if answer.get("kind") == "PersistentVolume" else None
            if volume is not None:
                await self._let_go(volume)
        except Refused as error:
            if error.code != 404:
                raise

    async def _let_go(self, volume: Object) -> None:
        finalizers = volume["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            rest = [entry for entry in finalizers if entry != FINALIZER]
            await self.client.patch(volume_path(volume), at(volume, finalizers=rest))

    # -- capacity ----------------------------------------------------------------------------------

    async def capacities_run(self) -> None:
        """CSIStorageCapacity objects: one for each class of the driver and each place, looked at every minute."""
        cache = self.context.cache(CAPACITIES)
        await self.context.synced(cache, self.classes, self.csi_nodes, self.nodes)
        level = option(self.process.container, "--capacity-ownerref-level") or "1"
        self._owner = await self._above(int(level) if level.isdigit() else 1)
        while True:
            await self._capacities(cache.items)
            await asyncio.gather(self.context.clock.sleep(CAPACITY_SECONDS), asyncio.sleep(2.0))

    async def _above(self, level: int) -> Object | None:
        """The reference to what owns the capacities: the pod, or what is so many levels above it."""
        item: Object | None = {"apiVersion": "v1", "kind": "Pod", **self.process.pod}
        for _ in range(level):
            owners = (item or {}).get("metadata", {}).get("ownerReferences") or ()
            above = next((entry for entry in owners if entry.get("controller") and entry["kind"] in OWNERS), None)
            if above is None:
                break
            item = await self.client.find(
                f"/apis/apps/v1/namespaces/{self.process.namespace}/{OWNERS[above['kind']]}/{above['name']}"
            )
        if item is None or "uid" not in item["metadata"]:
            return None
        meta = item["metadata"]
        return {"apiVersion": item["apiVersion"], "kind": item["kind"], "name": meta["name"], "uid": meta["uid"],
                "controller": True}  # fmt: skip

    async def _capacities(self, known: Mapping[Key, Object]) -> None:
        space = self.process.namespace
        mine = {
            _capacity_key(item): item
            for item in known.values()
            if (item["metadata"].get("labels") or {}).get(f"{PREFIX}drivername") == self.driver.name
        }
        csi_nodes = {name: item for (_, name), item in self.csi_nodes.items.items()}
        for kind in list(self.classes.items.values()):
            if kind["provisioner"] != self.driver.name:
                continue
            for place in places(self.nodes.items.values(), csi_nodes, self.driver.name):
                wanted = (kind["metadata"]["name"], tuple(sorted(place.items())))
                item = mine.pop(wanted, None)
                try:
                    left = await self.driver.capacity(kind.get("parameters") or {}, place)
                except CsiError as error:
                    self.say("E", "failed to get capacity", storageClass=wanted[0], err=str(error))
                    continue
                await self._record(space, item, wanted[0], place, f"{left // 1024}Ki")
        for item in mine.values():
            await self.client.delete(f"{_capacity_path(item)}")

    async def _record(self, space: str, item: Object | None, kind: str, place: Mapping[str, str], left: str) -> None:
        if item is None:
            body: Object = {
                "apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity",
                "metadata": {"generateName": "csisc-", "namespace": space, "labels": {
                    f"{PREFIX}drivername": self.driver.name, f"{PREFIX}managed-by": "external-provisioner"}},
                "storageClassName": kind, "nodeTopology": {"matchLabels": dict(place)}, "capacity": left,
            }  # fmt: skip
            if self._owner:
                body["metadata"]["ownerReferences"] = [self._owner]
            await self.client.create(f"/apis/storage.k8s.io/v1/namespaces/{space}/csistoragecapacities", body)
        elif item.get("capacity") != left:
            await self.client.patch(_capacity_path(item), {"capacity": left})


def _capacity_key(item: Object) -> tuple[str, tuple[tuple[str, str], ...]]:
    place = (item.get("nodeTopology") or {}).get("matchLabels") or {}
    return item["storageClassName"], tuple(sorted(place.items()))


def _capacity_path(item: Object) -> str:
    space, name = key_of(item)
    return f"/apis/storage.k8s.io/v1/namespaces/{space}/csistoragecapacities/{name}"


def _open(claim: Object) -> bool:
    return not claim["spec"].get("volumeName") and claim.get("status", {}).get("phase") in {None, "Pending"}


def _of_attachment(item: Object) -> Iterable[Key]:
    if name := ((item.get("spec") or {}).get("source") or {}).get("persistentVolumeName"):
        yield "", name
