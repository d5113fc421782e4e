"""The attach-detach controller: VolumeAttachments for the volumes of pods that have a node, and none for others."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..alarms import Alarms
from ..client import Key, Object, Refused, key_of
from ..context import Context
from ..reconcile import reconcile
from ..volumes import SELF_ATTACHING
from . import matching
from .binder import CLAIMS, DRIVERS, VOLUMES
from .told import Told

ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"
COMPONENT = "attachdetach-controller"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
FORCE_SECONDS = 360.0
"""How long a volume of a silent node may still be mounted there, for all anybody knows."""


def attachment_name(handle: str, driver: str, node: str) -> str:
    """The name of the VolumeAttachment, as Kubernetes derives it."""
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()


@dataclass(frozen=True)
class Steps:
    """What to do about one volume: nodes to attach it to, attachments to delete, pods that are told to wait."""

    attach: tuple[str, ...] = ()
    detach: tuple[str, ...] = ()
    refused: tuple[tuple[Object, str], ...] = ()


def ready(node: Object | None) -> bool:
    """Whether the node's kubelet is there to say that nothing is mounted any more."""
    rows = ((node or {}).get("status") or {}).get("conditions") or ()
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def out_of_service(node: Object | None) -> bool:
    """Whether an administrator vouched that the node is off."""
    taints = ((node or {}).get("spec") or {}).get("taints") or ()
    return any(taint["key"] == OUT_OF_SERVICE for taint in taints)


def shareable(volume: Object) -> bool:
    """Whether several nodes may have the volume at once."""
    modes = set(volume["spec"].get("accessModes") or ())
    return bool(modes & {"ReadWriteMany", "ReadOnlyMany"})


def judge(volume: Object, wanted: Mapping[str, Sequence[Object]], attachments: Sequence[Object]) -> Steps:
    """The steps for a volume that pods want on nodes, in the order of the pods; `attachments` are its own."""
    name = volume["metadata"]["name"]
    there = {row["spec"]["nodeName"]: row for row in attachments}
    detach = tuple(
        node for node, row in there.items() if node not in wanted and "deletionTimestamp" not in row["metadata"]
    )
    attach: list[str] = []
    refused: list[tuple[Object, str]] = []
    taken = list(there)
    for node, pods in wanted.items():
        if node in there:
            continue
        others = [other for other in taken if other != node]
        if others and not shareable(volume):
            rivals = [pod for other in others for pod in wanted.get(other, ())]
            refused += [(pod, multi_attach(name, pod, rivals)) for pod in pods]
        else:
            attach.append(node)
            taken.append(node)
    return Steps(tuple(attach), detach, tuple(refused))


def multi_attach(volume: str, pod: Object, rivals: Sequence[Object]) -> str:
    """The refusal that the pod is told: names of other namespaces are not given away."""
    space = pod["metadata"]["namespace"]
    near = [rival["metadata"]["name"] for rival in rivals if rival["metadata"]["namespace"] == space]
    far = len(rivals) - len(near)
    if not rivals:
        why = "Volume is already exclusively attached to one node and can't be attached to another"
    elif near:
        why = f"Volume is already used by pod(s) {', '.join(near)}"
        why += f" and {far} pod(s) in different namespaces" if far else ""
    else:
        why = f"Volume is already used by {far} pod(s) in different namespaces"
    return f'Multi-Attach error for volume "{volume}" {why}'


async def run(context: Context) -> None:
    """Attaches and detaches until cancelled."""
    work = _AttachDetach(context)
    also = [
        (work.pods, work.of_pod),
        (work.attachments, work.of_attachment),
        (work.nodes, work.of_node),
        (work.claims, work.of_claim),
        (work.alarms, Alarms.keys),
    ]
    await context.synced(work.drivers)
    await reconcile(context, work.volumes, work.volume, also=also)


@dataclass
class _AttachDetach:
    """The caches, and the clocks that run for needless volumes on silent nodes."""

    context: Context
    _needless: dict[tuple[str, str], asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        context = self.context
        self.client, self.pods, self.nodes = context.client, context.pods, context.nodes
        self.claims, self.volumes = context.cache(CLAIMS), context.cache(VOLUMES)
        self.attachments, self.drivers = context.cache(ATTACHMENTS), context.cache(DRIVERS)
        self.told, self.alarms = Told(context, COMPONENT), Alarms(context)

    # -- which volumes are looked at ---------------------------------------------------------------

    def of_pod(self, pod: Object) -> Iterator[Key]:
        """The volumes of the pod's claims."""
        for name in matching.claims_of(pod) if "spec" in pod else ():
            yield from self.of_claim(self.claims.get(pod["metadata"]["namespace"], name) or {})

    def of_claim(self, claim: Object) -> Iterator[Key]:
        """The claim's volume."""
        if name := (claim.get("spec") or {}).get("volumeName"):
            yield "", name

    def of_attachment(self, item: Object) -> Iterator[Key]:
        """The attached volume."""
        if name := ((item.get("spec") or {}).get("source") or {}).get("persistentVolumeName"):
            yield "", name

    def of_node(self, node: Object) -> Iterable[Key]:
        """The volumes on the node whose detaching its state may decide."""
        name = node["metadata"]["name"]
        return [("", volume) for volume, where in self._needless if where == name]

    # -- one volume --------------------------------------------------------------------------------

    def _wanted(self, volume: Object) -> dict[str, list[Object]]:
        reference = volume["spec"].get("claimRef") or {}
        space, name = reference.get("namespace", ""), reference.get("name", "")
        claim = self.claims.get(space, name)
        if claim is None or claim["spec"].get("volumeName") != volume["metadata"]["name"]:
            return {}
        pods = [
            pod
            for (where, _), pod in self.pods.items.items()
            if where == space and pod["spec"].get("nodeName") and pod["spec"].get("volumes")
            and name in matching.claims_of(pod) and not matching.finished(pod)
        ]  # fmt: skip
        found: dict[str, list[Object]] = {}
        for pod in sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), key_of(pod))):
            found.setdefault(pod["spec"]["nodeName"], []).append(pod)
        return found

    def _own(self, name: str) -> list[Object]:
        rows = self.attachments.items.values()
        return [row for row in rows if row["spec"]["source"].get("persistentVolumeName") == name]

    async def volume(self, key: Key, volume: Object | None) -> None:
        """Nothing; the volume is nearer to where its pods are."""
        name = key[1]
        own = self._own(name)
        if volume is None or not (csi := volume["spec"].get("csi")):
            for row in own:
                await self._delete(row)
            return
        driver = self.drivers.get("", csi["driver"])
        if driver is not None and driver["spec"].get("attachRequired", True) is False:
            return
        if csi["driver"] in SELF_ATTACHING and not own:
            return
        wanted = self._wanted(volume)
        steps = judge(volume, wanted, own)
        for node in wanted:
            self._needed(name, node)
        await self._detach(name, steps.detach, own)
        for node in steps.attach:
            await self._attach(volume, node)
        for pod, message in steps.refused:
            await self.told.say(pod, "FailedAttachVolume", message, warning=True)
        await self._tell(name, wanted, own)

    def _needed(self, name: str, node: str) -> None:
        if timer := self._needless.pop((name, node), None):
            timer.cancel()

    async def _wait(self, name: str) -> None:
        await self.context.clock.sleep(FORCE_SECONDS)
        self.alarms.set(("", name), 0.0)

    async def _detach(self, name: str, nodes: Sequence[str], own: Sequence[Object]) -> None:
        """On a node that answers, a pod is only gone once its volumes are unmounted; a silent one gets six minutes."""
        for row in own:
            node = row["spec"]["nodeName"]
            if node not in nodes:
                continue
            here = self.nodes.get("", node)
            timer = self._needless.get((name, node))
            if ready(here) or out_of_service(here) or (timer is not None and timer.done()):
                await self._delete(row)
                self._needed(name, node)
            elif timer is None:
                self._needless[name, node] = self.context.spawn(self._wait(name), name=f"lab-force-detach {name}")

    async def _delete(self, row: Object) -> None:
        if "deletionTimestamp" in row["metadata"]:
            return
        try:
            await self.client.delete(f"{ATTACHMENTS}/{row['metadata']['name']}")
        except Refused as error:
            if error.code != 404:
                raise

    async def _attach(self, volume: Object, node: str) -> None:
        csi = volume["spec"]["csi"]
        name = attachment_name(csi["volumeHandle"], csi["driver"], node)
        body = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
                "spec": {"attacher": csi["driver"], "nodeName": node,
                         "source": {"persistentVolumeName": volume["metadata"]["name"]}}}  # fmt: skip
        await self.attachments.caught_up(await self.client.create(ATTACHMENTS, body))

    async def _tell(self, name: str, wanted: Mapping[str, Sequence[Object]], own: Sequence[Object]) -> None:
        """The pods hear how the attaching went, and the nodes' status what they have."""
        for row in own:
            node, status = row["spec"]["nodeName"], row.get("status") or {}
            trouble = (status.get("attachError") or {}).get("message")
            for pod in wanted.get(node, ()):
                if status.get("attached"):
                    if pod.get("status", {}).get("phase") == "Pending":
                        said = f'AttachVolume.Attach succeeded for volume "{name}" '
                        await self.told.say(pod, "SuccessfulAttachVolume", said)
                elif trouble:
                    said = f'AttachVolume.Attach failed for volume "{name}" : {trouble}'
                    await self.told.say(pod, "FailedAttachVolume", said, warning=True)
        nodes = {row["spec"]["nodeName"] for row in own} | {node for node, held in self._listed(name)}
        for node in sorted(nodes):
            await self._list_on(node)

    def _listed(self, name: str) -> Iterator[tuple[str, Object]]:
        volume = self.volumes.get("", name) or {"spec": {}}
        csi = volume["spec"].get("csi") or {}
        unique = f"kubernetes.io/csi/{csi.get('driver')}^{csi.get('volumeHandle')}"
        for (_, node), item in self.nodes.items.items():
            for row in (item.get("status") or {}).get("volumesAttached") or ():
                if row["name"] == unique:
                    yield node, row

    async def _list_on(self, node: str) -> None:
        """The node's status names what is attached to it, and what its pods use."""
        item = self.nodes.get("", node)
        if item is None:
            return
        attached, used = [], []
        for row in self.attachments.items.values():
            volume = self.volumes.get("", row["spec"]["source"].get("persistentVolumeName", ""))
            if row["spec"]["nodeName"] != node or volume is None or not (row.get("status") or {}).get("attached"):
                continue
            csi = volume["spec"]["csi"]
            unique = f"kubernetes.io/csi/{csi['driver']}^{csi['volumeHandle']}"
            attached.append({"name": unique, "devicePath": ""})
            if node in self._wanted(volume):
                used.append(unique)
        attached.sort(key=lambda entry: entry["name"])
        status = item.get("status") or {}
        if attached == (status.get("volumesAttached") or []) and sorted(used) == (status.get("volumesInUse") or []):
            return
        body = {"status": {"volumesAttached": attached or None, "volumesInUse": sorted(used) or None}}
        made = await self.client.patch(f"/api/v1/nodes/{node}/status", body)
        await self.nodes.caught_up(made)
