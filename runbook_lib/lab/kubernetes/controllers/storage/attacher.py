"""The external-attacher sidecar: what a VolumeAttachment wishes, the driver does."""

from __future__ import annotations

from ..alarms import Alarms
from ..client import Key, Object
from ..context import Context
from ..klog import line
from ..processes import Process
from ..reconcile import reconcile
from .attach_detach import ATTACHMENTS
from .binder import VOLUMES, at, volume_path
from .csi import CsiError, Driver, finalizer, sidecar
from .provisioner import CSI_NODES

NODE_ID = "csi.alpha.kubernetes.io/node-id"
FIRST_RETRY, LAST_RETRY = 1.0, 300.0


def node_id(csi_node: Object | None, node: str, driver: str) -> str:
    """The driver's name for the node. Raises CsiError with the attacher's words."""
    if csi_node is None:
        raise NotThere(f'csinode.storage.k8s.io "{node}" not found')
    for entry in (csi_node.get("spec") or {}).get("drivers") or ():
        if entry["name"] == driver:
            return str(entry["nodeID"])
    raise NotThere(f"CSINode {node} does not contain driver {driver}")


class NotThere(Exception):
    """The driver is not on the node."""


async def run(context: Context, process: Process) -> None:
    """Attaches for the pod's driver until cancelled."""

    async def work(driver: Driver) -> None:
        attacher = _Attacher(context, process, driver)
        try:
            await attacher.run()
        finally:
            attacher.alarms.close()

    await sidecar(context, process, work)


class _Attacher:
    """What one attacher sees."""

    def __init__(self, context: Context, process: Process, driver: Driver) -> None:
        self.context, self.process, self.driver, self.client = context, process, driver, context.client
        self.attachments, self.volumes = context.cache(ATTACHMENTS), context.cache(VOLUMES)
        self.csi_nodes, self.alarms = context.cache(CSI_NODES), Alarms(context)
        self.finalizer = finalizer(driver.name)
        self._tries: dict[str, int] = {}

    async def run(self) -> None:
        await self.context.synced(self.csi_nodes)
        also = [
            (self.alarms, Alarms.keys),
            (self.volumes, lambda volume: [("", row["metadata"]["name"]) for row in self._own(volume)]),
        ]
        volumes = reconcile(self.context, self.volumes, self._volume, also=[(self.attachments, _volume_key)], workers=1)
        task = self.context.spawn(volumes, name="lab-attacher-volumes")
        try:
            await reconcile(self.context, self.attachments, self._attachment, also=also)
        finally:
            task.cancel()

    def _own(self, volume: Object) -> list[Object]:
        name = volume["metadata"]["name"]
        return [row for row in self.attachments.items.values() if _volume_name(row) == name]

    def _say(self, level: str, message: str, **values: object) -> None:
        self.process.write(line(self.context.clock.now(), level, "csi_handler.go:251", message, **values))

    async def _attachment(self, key: Key, item: Object | None) -> None:
        if item is None or item["spec"]["attacher"] != self.driver.name:
            return
        name = item["metadata"]["name"]
        try:
            if "deletionTimestamp" in item["metadata"]:
                await self._detach(item)
            elif not (item.get("status") or {}).get("attached"):
                await self._attach(item)
        except (CsiError, NotThere) as error:
            gone = "deletionTimestamp" in item["metadata"]
            self._say(
                "E", "Error processing", VolumeAttachment=name, err=f"failed to {'de' if gone else 'at'}tach: {error}"
            )
            words = {"message": str(error), "time": self.context.stamp()}
            fresh = self.attachments.get("", name) or item
            field = "detachError" if gone else "attachError"
            if ((fresh.get("status") or {}).get(field) or {}).get("message") != str(error):
                body = {"status": {"attached": bool((fresh.get("status") or {}).get("attached")), field: words}}
                await self.attachments.caught_up(await self.client.patch(f"{ATTACHMENTS}/{name}/status", body))
            count = self._tries[name] = self._tries.get(name, 0) + 1
            self.alarms.set(key, min(FIRST_RETRY * 2 ** min(count - 1, 12), LAST_RETRY))
        else:
            self._tries.pop(name, None)
            self.alarms.moved(key)

    async def _attach(self, item: Object) -> None:
        name, node = item["metadata"]["name"], item["spec"]["nodeName"]
        volume_name = _volume_name(item)
        volume = self.volumes.get("", volume_name) or await self.client.find(f"{VOLUMES}/{volume_name}")
        if volume is None:
            raise NotThere(f'persistentvolume "{volume_name}" not found')
        whom = node_id(self.csi_nodes.get("", node), node, self.driver.name)
        held = item["metadata"].get("finalizers") or []
        if self.finalizer not in held or (item["metadata"].get("annotations") or {}).get(NODE_ID) != whom:
            mine = [*(entry for entry in held if entry != self.finalizer), self.finalizer]
            item = await self.client.patch(
                f"{ATTACHMENTS}/{name}", at(item, finalizers=mine, annotations={NODE_ID: whom})
            )
            await self.attachments.caught_up(item)
        held = volume["metadata"].get("finalizers") or []
        if self.finalizer not in held:
            volume = await self.client.patch(volume_path(volume), at(volume, finalizers=[*held, self.finalizer]))
            await self.volumes.caught_up(volume)
        csi = volume["spec"]["csi"]
        told = await self.driver.publish(
            csi["volumeHandle"], whom, csi.get("volumeAttributes") or {}, readonly=bool(csi.get("readOnly"))
        )
        body = {"status": {"attached": True, "attachmentMetadata": told or None, "attachError": None}}
        await self.attachments.caught_up(await self.client.patch(f"{ATTACHMENTS}/{name}/status", body))
        self._say("I", "Attached", VolumeAttachment=name)

    async def _detach(self, item: Object) -> None:
        held = item["metadata"].get("finalizers") or []
        if self.finalizer not in held:
            return
        volume_name, node = _volume_name(item), item["spec"]["nodeName"]
        volume = self.volumes.get("", volume_name) or await self.client.find(f"{VOLUMES}/{volume_name}")
        whom = (item["metadata"].get("annotations") or {}).get(NODE_ID) or node
        if volume is not None:
            await self.driver.unpublish(volume["spec"]["csi"]["volumeHandle"], whom)
        name = item["metadata"]["name"]
        fresh = await self.client.patch(f"{ATTACHMENTS}/{name}/status", {
            "status": {"attached": False, "detachError": None, "attachmentMetadata": None}})  # fmt: skip
        rest = [entry for entry in held if entry != self.finalizer]
        await self.client.patch(f"{ATTACHMENTS}/{name}", at(fresh, finalizers=rest))
        self._say("I", "Detached", VolumeAttachment=name)

    async def _volume(self, _key: Key, volume: Object | None) -> None:
        """A volume that goes is let go once nothing is attached any more."""
        if volume is None or "deletionTimestamp" not in volume["metadata"]:
            return
        held = volume["metadata"].get("finalizers") or []
        if self.finalizer in held and not self._own(volume):
            rest = [entry for entry in held if entry != self.finalizer]
            await self.client.patch(volume_path(volume), at(volume, finalizers=rest))


def _volume_name(item: Object) -> str:
    return str(((item.get("spec") or {}).get("source") or {}).get("persistentVolumeName", ""))


def _volume_key(item: Object) -> list[Key]:
    return [("", _volume_name(item))] if _volume_name(item) else []
