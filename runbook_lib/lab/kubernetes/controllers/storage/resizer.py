"""The external-resizer sidecar: claims that ask for more than their volumes have."""

from __future__ import annotations

from typing import Any

from ..alarms import Alarms
from ..client import Key, Object
from ..context import Context
from ..klog import line
from ..processes import Exit, Process
from ..quantities import number
from ..reconcile import reconcile
from . import matching
from .binder import CLAIMS, VOLUMES, at, claim_path, volume_path
from .csi import CsiError, Driver, sidecar
from .told import Told

PENDING = "Waiting for user to (re-)start a pod to finish file system resize of volume on node."
FIRST_RETRY, LAST_RETRY = 1.0, 300.0


def wants_more(claim: Object, volume: Object) -> bool:
    """Whether the disk behind the claim has to grow."""
    wanted = matching.size_of(claim)
    return wanted > number(volume["spec"].get("capacity", {}).get("storage", "0"))


def conditions(claim: Object, kind: str, message: str, now: str) -> list[Object]:
    """The claim's conditions with this one in place of what was said of resizing before."""
    rows = claim.get("status", {}).get("conditions") or []
    rest = [row for row in rows if row["type"] not in {"Resizing", "FileSystemResizePending"}]
    row: Object = {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    return [*rest, {**row, "message": message} if message else row]


async def run(context: Context, process: Process) -> None:
    """Grows volumes of the pod's driver until cancelled."""

    async def work(driver: Driver) -> None:
        if "expand" not in driver.capabilities:
            raise Exit(1, "CSI driver neither supports controller resize nor node resize")
        resizer = _Resizer(context, process, driver)
        try:
            await reconcile(context, resizer.claims, resizer.claim, also=[
                (resizer.alarms, Alarms.keys), (resizer.volumes, _claim_of)])  # fmt: skip
        finally:
            resizer.alarms.close()

    await sidecar(context, process, work)


class _Resizer:
    """What one resizer sees."""

    def __init__(self, context: Context, process: Process, driver: Driver) -> None:
        self.context, self.process, self.driver, self.client = context, process, driver, context.client
        self.claims, self.volumes, self.alarms = context.cache(CLAIMS), context.cache(VOLUMES), Alarms(context)
        pod = process.pod["metadata"].get("name", "")
        self.told = Told(
            context, f"external-resizer {driver.name}" if not pod else f"external-resizer {driver.name} {pod}"
        )
        self._tries: dict[str, int] = {}

    async def claim(self, key: Key, claim: Object | None) -> None:
        if claim is None or claim.get("status", {}).get("phase") != "Bound":
            return
        volume = self.volumes.get("", claim["spec"].get("volumeName") or "")
        if volume is None or (volume["spec"].get("csi") or {}).get("driver") != self.driver.name:
            return
        if not wants_more(claim, volume):
            await self._finish(claim, volume)
            return
        name, uid = volume["metadata"]["name"], claim["metadata"]["uid"]
        wanted = claim["spec"]["resources"]["requests"]["storage"]
        status: Object = {"conditions": conditions(claim, "Resizing", "", self.context.stamp()),
                          "allocatedResources": {"storage": wanted},
                          "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"}}  # fmt: skip
        held = {row["type"] for row in claim["status"].get("conditions") or ()}
        if "Resizing" not in held or claim["status"].get("allocatedResources", {}).get("storage") != wanted:
            claim = await self._status(claim, status)
        await self.told.say(claim, "Resizing", f"External resizer is resizing volume {name}")
        try:
            size, node = await self.driver.expand(volume["spec"]["csi"]["volumeHandle"], int(matching.size_of(claim)))
        except CsiError as error:
            said = f'resize volume "{name}" by resizer "{self.driver.name}" failed: {error}'
            self._say("E", "Error syncing PVC", err=said, PVC="/".join(key))
            await self.told.say(claim, "VolumeResizeFailed", said, warning=True)
            count = self._tries[uid] = self._tries.get(uid, 0) + 1
            self.alarms.set(key, min(FIRST_RETRY * 2 ** min(count - 1, 12), LAST_RETRY))
            return
        self._tries.pop(uid, None)
        self.alarms.moved(key)
        shown = f"{size // 2**30}Gi" if size % 2**30 == 0 else f"{size // 2**20}Mi"
        body = {**at(volume), "spec": {"capacity": {"storage": shown}}}
        volume = await self.client.patch(volume_path(volume), body)
        await self.volumes.caught_up(volume)
        self._say("I", "Update capacity of PV succeeded", PV=name, capacity=shown)
        await self._finish(claim, volume, node=node)

    async def _finish(self, claim: Object, volume: Object, *, node: bool = True) -> None:
        """The disk is as large as it shall be: the node's file system is next, where there is one."""
        held = {row["type"] for row in claim["status"].get("conditions") or ()}
        if "Resizing" not in held:
            return
        uid = claim["metadata"]["uid"]
        if node and claim["spec"].get("volumeMode", "Filesystem") == "Filesystem":
            rows = conditions(claim, "FileSystemResizePending", PENDING, self.context.stamp())
            claim = await self._status(claim, {
                "conditions": rows, "allocatedResourceStatuses": {"storage": "NodeResizePending"}})  # fmt: skip
            said = "Require file system resize of volume on node"
            await self.told.say(claim, "FileSystemResizeRequired", said)
        else:
            rest = [row for row in claim["status"].get("conditions") or () if row["type"] != "Resizing"]
            capacity = {**claim["status"].get("capacity", {}), "storage": volume["spec"]["capacity"]["storage"]}
            await self._status(claim, {"conditions": rest, "capacity": capacity, "allocatedResourceStatuses": None})
            await self.told.say(claim, "VolumeResizeSuccessful", "Resize volume succeeded")
        self._tries.pop(uid, None)
        self.told.forget(claim)

    async def _status(self, claim: Object, status: Object) -> Object:
        made = await self.client.patch(f"{claim_path(claim)}/status", {"status": status})
        await self.claims.caught_up(made)
        return made

    def _say(self, level: str, message: str, **values: Any) -> None:
        self.process.write(line(self.context.clock.now(), level, "controller.go:303", message, **values))


def _claim_of(volume: Object) -> list[Key]:
    reference = (volume.get("spec") or {}).get("claimRef") or {}
    return [(reference.get("namespace", ""), reference["name"])] if reference.get("name") else []
