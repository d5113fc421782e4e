"""Snapshots of volumes: the cluster's snapshot-controller, and the external-snapshotter beside a driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ..alarms import Alarms
from ..client import Key, Object, Refused, key_of
from ..context import Context
from ..klog import line
from ..processes import Exit, Process, Program
from ..reconcile import reconcile
from .binder import CLAIMS, VOLUMES, at, claim_path
from .csi import CsiError, Driver, sidecar
from .told import Told

GROUP = "snapshot.storage.k8s.io"
API = f"/apis/{GROUP}/v1"
SNAPSHOTS, CONTENTS, CLASSES = (f"{API}/{plural}" for plural in (
    "volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"))  # fmt: skip
AS_SOURCE = f"{GROUP.replace('k8s.io', 'kubernetes.io')}/volumesnapshot-as-source-protection"
BOUND = f"{GROUP.replace('k8s.io', 'kubernetes.io')}/volumesnapshot-bound-protection"
CONTENT_BOUND = f"{GROUP.replace('k8s.io', 'kubernetes.io')}/volumesnapshotcontent-bound-protection"
PVC_SOURCE = f"{GROUP.replace('k8s.io', 'kubernetes.io')}/pvc-as-source-protection"
BEING_DELETED = f"{GROUP.replace('k8s.io', 'kubernetes.io')}/volumesnapshot-being-deleted"
DEFAULT = f"{GROUP.replace('k8s.io', 'kubernetes.io')}/is-default-class"
FIRST_RETRY, LAST_RETRY = 1.0, 300.0


def snapshot_path(snapshot: Object) -> str:
    """Where the snapshot is."""
    space, name = key_of(snapshot)
    return f"{API}/namespaces/{space}/volumesnapshots/{name}"


def default_class(classes: Iterable[Object], driver: str) -> str:
    """The default class of the driver; empty when there is none. Raises ValueError when there are several."""
    rows = [
        item["metadata"]["name"]
        for item in classes
        if item["driver"] == driver and (item["metadata"].get("annotations") or {}).get(DEFAULT) == "true"
    ]
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} default snapshot classes were found")
    return str(rows[0]) if rows else ""


def content_of(snapshot: Object, kind: Object, volume: Object) -> Object:
    """The content of a snapshot that is to be taken of the volume."""
    meta = snapshot["metadata"]
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": f"snapcontent-{meta['uid']}", "finalizers": [CONTENT_BOUND]},
        "spec": {
            "deletionPolicy": kind["deletionPolicy"],
            "driver": kind["driver"],
            "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
            "sourceVolumeMode": volume["spec"].get("volumeMode", "Filesystem"),
            "volumeSnapshotClassName": kind["metadata"]["name"],
            "volumeSnapshotRef": {
                "apiVersion": f"{GROUP}/v1", "kind": "VolumeSnapshot", "name": meta["name"],
                "namespace": meta["namespace"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"],
            },
        },
    }  # fmt: skip


def status_of(content: Object) -> Object:
    """What the snapshot's status tells of its content."""
    told = content.get("status") or {}
    found: Object = {"boundVolumeSnapshotContentName": content["metadata"]["name"],
                     "readyToUse": bool(told.get("readyToUse"))}  # fmt: skip
    if told.get("creationTime"):
        found["creationTime"] = _moment(int(told["creationTime"]) / 1e9)
    if told.get("restoreSize") is not None:
        found["restoreSize"] = _size(int(told["restoreSize"]))
    if told.get("error"):
        found["error"] = told["error"]
    return found


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _size(size: int) -> str:
    if size and size % 2**30 == 0:
        return f"{size // 2**30}Gi"
    return f"{size // 2**20}Mi" if size and size % 2**20 == 0 else str(size)


# -- the snapshot controller ---------------------------------------------------------------------------


class _NotYet(Exception):
    """A snapshot cannot be taken now; the event's reason and text."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


async def controller(context: Context, process: Process) -> None:
    """Binds snapshots to contents until cancelled."""
    work = _Controller(context, process)
    try:
        await reconcile(context, work.snapshots, work.snapshot, also=[
            (work.contents, _snapshot_of), (work.claims, work.of_claim), (work.alarms, Alarms.keys)])  # fmt: skip
    finally:
        work.alarms.close()


class _Controller:
    """What the snapshot controller sees."""

    def __init__(self, context: Context, process: Process) -> None:
        self.context, self.process, self.client = context, process, context.client
        self.snapshots, self.contents = context.cache(SNAPSHOTS), context.cache(CONTENTS)
        self.classes, self.claims, self.volumes = context.cache(CLASSES), context.cache(CLAIMS), context.cache(VOLUMES)
        self.alarms, self.told = Alarms(context), Told(context, "snapshot-controller")

    def of_claim(self, claim: Object) -> list[Key]:
        space, name = key_of(claim)
        return [
            key
            for key, item in self.snapshots.items.items()
            if key[0] == space and item["spec"]["source"].get("persistentVolumeClaimName") == name
        ]

    async def snapshot(self, key: Key, snapshot: Object | None) -> None:
        if snapshot is None:
            return
        if "deletionTimestamp" in snapshot["metadata"]:
            await self._gone(snapshot)
            return
        try:
            content = await self._content(snapshot)
        except _NotYet as error:
            await self._failed(snapshot, error)
            self.alarms.set(key, 5.0)
            return
        self.alarms.moved(key)
        if content is None:
            return
        await self._protect(snapshot)
        await self._tell(snapshot, content)

    async def _failed(self, snapshot: Object, error: _NotYet) -> None:
        said = str(error)
        if ((snapshot.get("status") or {}).get("error") or {}).get("message") != said:
            row = {"message": said, "time": self.context.stamp()}
            body = {"status": {"readyToUse": False, "error": row}}
            await self.snapshots.caught_up(await self.client.patch(f"{snapshot_path(snapshot)}/status", body))
        await self.told.say(snapshot, error.reason, said, warning=True)

    async def _content(self, snapshot: Object) -> Object | None:
        meta, source = snapshot["metadata"], snapshot["spec"]["source"]
        if given := source.get("volumeSnapshotContentName"):
            content = self.contents.get("", given)
            if content is None:
                raise _NotYet("SnapshotContentMissing", "VolumeSnapshotContent is missing")
            reference = content["spec"]["volumeSnapshotRef"]
            if (reference.get("namespace"), reference.get("name")) != (meta["namespace"], meta["name"]):
                raise _NotYet("SnapshotContentMisbound", "VolumeSnapshotContent is bound to a different snapshot")
            if not reference.get("uid"):
                body = {**at(content), "spec": {"volumeSnapshotRef": {"uid": meta["uid"]}}}
                content = await self.client.patch(f"{CONTENTS}/{given}", body)
                await self.contents.caught_up(content)
            return content
        name = f"snapcontent-{meta['uid']}"
        content = self.contents.get("", name)
        if content is not None:
            return content
        if (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName"):
            raise _NotYet("SnapshotContentMissing", "VolumeSnapshotContent is missing")
        return await self._create(snapshot, str(source.get("persistentVolumeClaimName")))

    async def _create(self, snapshot: Object, claim_name: str) -> Object | None:
        meta = snapshot["metadata"]
        failed = "Failed to create snapshot content with error "
        claim = self.claims.get(meta["namespace"], claim_name)
        if claim is None:
            said = f"snapshot controller failed to update {meta['name']} on API server: cannot get claim from snapshot"
            raise _NotYet("SnapshotContentCreationFailed", failed + said)
        volume = self.volumes.get("", claim["spec"].get("volumeName") or "")
        if claim.get("status", {}).get("phase") != "Bound" or volume is None:
            said = f"the PVC {claim_name} is not yet bound to a PV, will not attempt to take a snapshot"
            said = f'failed to get input parameters to create snapshot {meta["name"]}: "{said}"'
            raise _NotYet("SnapshotContentCreationFailed", failed + said)
        driver = (volume["spec"].get("csi") or {}).get("driver", "")
        kind = await self._class(snapshot, driver)
        if kind is None:
            return None
        if kind["driver"] != driver:
            said = (
                f'failed to get input parameters to create snapshot {meta["name"]}: "error finding CSI PersistentVolume'
            )
            raise _NotYet("SnapshotContentCreationFailed", f'{failed}{said} for claim {claim_name}"')
        held = claim["metadata"].get("finalizers") or []
        if PVC_SOURCE not in held:
            await self.claims.caught_up(
                await self.client.patch(claim_path(claim), at(claim, finalizers=[*held, PVC_SOURCE]))
            )
        try:
            content = await self.client.create(CONTENTS, content_of(snapshot, kind, volume))
        except Refused as error:
            if error.code != 409:
                raise
            return None
        await self.contents.caught_up(content)
        whom = f"{meta['namespace']}/{meta['name']}"
        await self.told.say(
            snapshot, "CreatingSnapshot", f"Waiting for a snapshot {whom} to be created by the CSI driver."
        )
        return content

    async def _class(self, snapshot: Object, driver: str) -> Object | None:
        name = snapshot["spec"].get("volumeSnapshotClassName")
        if name:
            kind = self.classes.get("", name)
            if kind is None:
                said = f'volumesnapshotclass.{GROUP} "{name}" not found'
                said = f'failed to get input parameters to create snapshot {snapshot["metadata"]["name"]}: "{said}"'
                raise _NotYet("SnapshotContentCreationFailed", f"Failed to create snapshot content with error {said}")
            return kind
        try:
            name = default_class(self.classes.items.values(), driver)
            if not name:
                raise ValueError("cannot find default snapshot class")
        except ValueError as error:
            said = f"Failed to set default snapshot class with error {error}"
            raise _NotYet("SetDefaultSnapshotClassFailed", said) from error
        body = {**at(snapshot), "spec": {"volumeSnapshotClassName": name}}
        await self.snapshots.caught_up(await self.client.patch(snapshot_path(snapshot), body))
        return None

    async def _protect(self, snapshot: Object) -> None:
        held = snapshot["metadata"].get("finalizers") or []
        missing = [entry for entry in (AS_SOURCE, BOUND) if entry not in held]
        if missing:
            made = await self.client.patch(snapshot_path(snapshot), {"metadata": {"finalizers": [*held, *missing]}})
            await self.snapshots.caught_up(made)

    async def _tell(self, snapshot: Object, content: Object) -> None:
        wanted, known = status_of(content), snapshot.get("status") or {}
        if any(known.get(key) != value for key, value in wanted.items()) or (
            "error" in known and "error" not in wanted
        ):
            body = {**({"error": None} if "error" in known else {}), **wanted}
            made = await self.client.patch(f"{snapshot_path(snapshot)}/status", {"status": body})
            await self.snapshots.caught_up(made)
        space, name = key_of(snapshot)
        if wanted.get("creationTime") and not known.get("creationTime"):
            said = f"Snapshot {space}/{name} was successfully created by the CSI driver."
            await self.told.say(snapshot, "SnapshotCreated", said)
        if wanted["readyToUse"] and not known.get("readyToUse"):
            await self.told.say(snapshot, "SnapshotReady", f"Snapshot {space}/{name} is ready to use.")
            await self._release_claim(snapshot)

    async def _release_claim(self, snapshot: Object) -> None:
        """The source is let go once no snapshot of it is being taken any more."""
        space, name = snapshot["metadata"]["namespace"], snapshot["spec"]["source"].get("persistentVolumeClaimName")
        claim = await self.client.find(f"/api/v1/namespaces/{space}/persistentvolumeclaims/{name}") if name else None
        held = (claim or {"metadata": {}})["metadata"].get("finalizers") or []
        busy = [
            item
            for item in self.snapshots.items.values()
            if item["metadata"]["namespace"] == space and item["metadata"]["uid"] != snapshot["metadata"]["uid"]
            and item["spec"]["source"].get("persistentVolumeClaimName") == name
            and not (item.get("status") or {}).get("readyToUse") and "deletionTimestamp" not in item["metadata"]
        ]  # fmt: skip
        if claim is not None and PVC_SOURCE in held and not busy:
            rest = [entry for entry in held if entry != PVC_SOURCE]
            await self.client.patch(claim_path(claim), at(claim, finalizers=rest))

    async def _gone(self, snapshot: Object) -> None:
        meta = snapshot["metadata"]
        own = [entry for entry in meta.get("finalizers") or () if entry in {AS_SOURCE, BOUND}]
        if not own:
            await self._release_claim(snapshot)
            return
        name = (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName") or f"snapcontent-{meta['uid']}"
        content = self.contents.get("", name)
        if content is not None and content["spec"]["volumeSnapshotRef"].get("uid") == meta["uid"]:
            if BEING_DELETED not in (content["metadata"].get("annotations") or {}):
                body = {"metadata": {"annotations": {BEING_DELETED: "yes"}}}
                content = await self.client.patch(f"{CONTENTS}/{name}", body)
                await self.contents.caught_up(content)
            if content["spec"]["deletionPolicy"] == "Delete":
                if "deletionTimestamp" not in content["metadata"]:
                    await self.client.delete(f"{CONTENTS}/{name}")
                return
        await self._release_claim(snapshot)
        rest = [entry for entry in meta["finalizers"] if entry not in own]
        await self.client.patch(snapshot_path(snapshot), at(snapshot, finalizers=rest))


def _snapshot_of(content: Object) -> list[Key]:
    reference = (content.get("spec") or {}).get("volumeSnapshotRef") or {}
    return [(reference.get("namespace", ""), reference["name"])] if reference.get("name") else []


# -- the sidecar ---------------------------------------------------------------------------------------


async def snapshotter(context: Context, process: Process) -> None:
    """Takes snapshots with the pod's driver until cancelled."""

    async def work(driver: Driver) -> None:
        if "snapshot" not in driver.capabilities:
            said = f"CSI driver {driver.name} does not support ControllerCreateSnapshot"
            raise Exit(1, line(context.clock.now(), "E", "main.go:245", said))
        taker = _Taker(context, process, driver)
        try:
            await reconcile(context, taker.contents, taker.content, also=[(taker.alarms, Alarms.keys)])
        finally:
            taker.alarms.close()

    await sidecar(context, process, work)


class _Taker:
    """What one snapshotter sees."""

    def __init__(self, context: Context, process: Process, driver: Driver) -> None:
        self.context, self.process, self.driver, self.client = context, process, driver, context.client
        self.contents, self.classes, self.alarms = context.cache(CONTENTS), context.cache(CLASSES), Alarms(context)
        self.told = Told(context, f"csi-snapshotter {driver.name}")
        self._tries: dict[str, int] = {}

    async def content(self, key: Key, content: Object | None) -> None:
        if content is None or content["spec"]["driver"] != self.driver.name:
            return
        try:
            if "deletionTimestamp" in content["metadata"]:
                await self._delete(content)
            elif not (content.get("status") or {}).get("readyToUse"):
                await self._take(content)
        except CsiError as error:
            await self._failed(key, content, error)
        else:
            self._tries.pop(key[1], None)
            self.alarms.moved(key)

    async def _failed(self, key: Key, content: Object, error: CsiError) -> None:
        count = self._tries[key[1]] = self._tries.get(key[1], 0) + 1
        self.alarms.set(key, min(FIRST_RETRY * 2 ** min(count - 1, 12), LAST_RETRY))
        handle = content["spec"]["source"].get("volumeHandle", "")
        if "deletionTimestamp" in content["metadata"]:
            said = "Failed to delete snapshot"
            await self.told.say(content, "SnapshotDeleteError", said, warning=True)
            words = f"{said} content, err: {error}"
        else:
            first = not (content.get("status") or {}).get("error")
            words = f'failed to take snapshot of the volume {handle}: "{error}"'
            reason = "SnapshotCreationFailed" if first else "SnapshotContentCheckandUpdateFailed"
            words = f"Failed to {'create snapshot' if first else 'check and update snapshot content'}: {words}"
            await self.told.say(content, reason, words, warning=True)
        self.process.write(line(self.context.clock.now(), "E", "snapshot_controller.go:124", words, content=key[1]))
        if ((content.get("status") or {}).get("error") or {}).get("message") != words:
            row = {"message": words, "time": self.context.stamp()}
            await self._status(content, {"readyToUse": False, "error": row})

    async def _take(self, content: Object) -> None:
        source, name = content["spec"]["source"], content["metadata"]["name"]
        now = int(self.context.clock.now() * 1e9)
        if handle := source.get("snapshotHandle"):
            await self._status(content, {"snapshotHandle": handle, "creationTime": now, "restoreSize": 0,
                                         "readyToUse": True, "error": None})  # fmt: skip
            return
        kind = self.classes.get("", content["spec"].get("volumeSnapshotClassName") or "")
        parameters: Mapping[str, Any] = (kind or {}).get("parameters") or {}
        uid = str(content["spec"]["volumeSnapshotRef"].get("uid") or name)
        made = await self.driver.create_snapshot(source["volumeHandle"], f"snapshot-{uid}", parameters)
        await self._status(content, {"snapshotHandle": made.handle, "creationTime": now, "restoreSize": made.size,
                                     "readyToUse": made.ready, "error": None})  # fmt: skip

    async def _status(self, content: Object, status: Object) -> None:
        path = f"{CONTENTS}/{content['metadata']['name']}"
        await self.contents.caught_up(await self.client.patch(f"{path}/status", {"status": status}))

    async def _delete(self, content: Object) -> None:
        held = content["metadata"].get("finalizers") or []
        if CONTENT_BOUND not in held:
            return
        if content["spec"]["deletionPolicy"] == "Delete":
            if BEING_DELETED not in (content["metadata"].get("annotations") or {}):
                return  # bound to a snapshot that nobody deletes
            if handle := (content.get("status") or {}).get("snapshotHandle"):
                await self.driver.delete_snapshot(handle)
        rest = [entry for entry in held if entry != CONTENT_BOUND]
        path = f"{CONTENTS}/{content['metadata']['name']}"
        await self.client.patch(path, {"metadata": {"finalizers": rest}})


PROGRAMS = (Program("snapshot-controller", controller), Program("csi-snapshotter", snapshotter))
