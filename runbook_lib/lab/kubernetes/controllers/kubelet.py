"""The kubelets of all nodes: which pods live where, what the API server asks of them, and machines that come and go.

A pod that a scenario seeded with a status of its own is left as it is until someone deletes it or its node dies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import afflictions, heartbeats, network_plugins, node_pressure, pod_status, volumes
from .client import STRATEGIC, Cache, Key, Object, Refused, key_of
from .container_logs import Logs, seeded
from .context import Context
from .files import Disks, Files, Keep
from .images import pull_failure
from .network import Outcome, connect
from .pod_life import PodLife
from .processes import Processes
from .programs import Ended, Place, Runs, execute
from .programs import run as run_program

log = logging.getLogger(__name__)

CACHES = {
    "PersistentVolumeClaim": "/api/v1/persistentvolumeclaims",
    "PersistentVolume": "/api/v1/persistentvolumes",
    "Secret": "/api/v1/secrets",
    "ConfigMap": "/api/v1/configmaps",
    "CSIDriver": "/apis/storage.k8s.io/v1/csidrivers",
    "VolumeAttachment": "/apis/storage.k8s.io/v1/volumeattachments",
}
"""What pods wait for."""
SNAPSHOTS = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"
MIRROR = "kubernetes.io/config.mirror"


@dataclass
class Kubelets:
    """Every node's kubelet.

    `shortest_deadline` is in real seconds: requests take real time, however fast the lab's clock runs.
    """

    context: Context
    processes: Processes
    logs: Logs = field(default_factory=Logs)
    disks: Disks = field(default_factory=Disks)
    shortest_deadline: float = 5.0
    lives: dict[str, PodLife] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _images: set[tuple[str, str]] = field(default_factory=set)
    _by_node: dict[str, dict[str, Object]] = field(default_factory=dict)
    _addresses: dict[str, str] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)
    _down: set[str] = field(default_factory=set)
    _waking: set[str] = field(default_factory=set)
    _refused: dict[str, int] = field(default_factory=dict)
    _next_address: int = 0

    # -- what the API server asks its kubelets ---------------------------------------------------

    def pod_log(self, namespace: str, name: str, options: Mapping[str, str]) -> str | None:
        """The log of one container as the log endpoint answers; None for a pod that never ran here."""
        pod = self.context.pods.items.get((namespace, name))
        container = options.get("container") or (pod["spec"]["containers"][0]["name"] if pod else "")
        text = self.logs.read((namespace, name, container), options)
        return seeded(pod, container) if text is None and pod else text

    async def pod_exec(
        self, namespace: str, name: str, command: list[str], container: str = ""
    ) -> tuple[str, str, int]:
        """(standard output, standard error, exit code) of a command in a running pod."""
        try:  # asked of the server: the cache may be a moment behind the client that saw the pod run
            pod = await self.context.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        except Refused as error:
            return "", error.message, 1
        entries = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ())]
        named = {entry["name"]: entry for entry in entries}
        chosen = named.get(container) or entries[0]
        rows = (*(pod["status"].get("containerStatuses") or ()), *(pod["status"].get("initContainerStatuses") or ()))
        alive = any(row["name"] == chosen["name"] and "running" in row["state"] for row in rows)
        if not alive or not self.serves(pod["spec"].get("nodeName", "")):
            return "", f"cannot exec into a container of {namespace}/{name}: it is not running", 1
        life = self.lives.get(pod["metadata"]["uid"]) or PodLife(self, pod)
        code, out, err = await self.execute(life, chosen, command)
        return out, err, code

    async def execute(self, life: PodLife, container: Object, words: list[str]) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of a command beside the container's own process."""
        result = await execute(words, await self.place(life, container))
        if isinstance(result, Runs):
            return 0, result.output, ""
        if result.streams:
            return result.code, result.stdout, result.stderr
        return (0, result.output, "") if result.code == 0 else (result.code, "", result.output)

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves pods until cancelled."""
        context = self.context
        held = {kind: context.cache(path) for kind, path in CACHES.items()}
        await context.synced(context.pods, context.nodes, *held.values())
        for node in context.nodes.items.values():
            if _is_unknown(node):
                self._silent.add(node["metadata"]["name"])
            elif network_plugins.lacks(node) and not self._plugin_on(node["metadata"]["name"]):
                context.machines.unplugged.add(node["metadata"]["name"])
            elif heartbeats.is_ailing(node):
                context.machines.ailing.add(node["metadata"]["name"])
        for pod in list(context.pods.items.values()):
            for row in pod.get("status", {}).get("containerStatuses") or ():
                if row.get("imageID"):
                    self.keep_image(pod["spec"].get("nodeName", ""), row["image"])
            self._changed("ADDED", pod)
        handlers: list[tuple[Cache, Callable[[str, Object], None]]] = [
            (context.pods, self._changed),
            (context.nodes, self._node_changed),
        ]
        handlers += [(cache, self._source_changed) for cache in held.values()]
        handlers += [(held["PersistentVolumeClaim"], self._claim_changed), (held["PersistentVolume"], self._gone)]
        handlers += [(context.cache(SNAPSHOTS), self._snapshot_changed)]
        for cache, handler in handlers:
            cache.handlers.append(handler)
        context.machines.handlers.append(self._machine_changed)
        self._pressed()
        try:
            await heartbeats.run(context, self.serves)
        finally:
            context.machines.handlers.remove(self._machine_changed)
            for cache, handler in handlers:
                cache.handlers.remove(handler)
            for task in self._tasks.values():
                task.cancel()

    def serves(self, node: str) -> bool:
        """Whether a kubelet is alive there: the node exists, its machine runs, and it did not fall silent before."""
        here = ("", node) in self.context.nodes.items
        return here and self.context.machines.alive(node) and node not in self._silent

    def pods_on(self, node: str) -> list[Object]:
        """The pods that are bound to a node."""
        return list(self._by_node.get(node, {}).values())

    def newest(self, pod: Object) -> Object:
        """The pod as the cache has it."""
        found = self.context.pods.items.get(key_of(pod))
        return found if found and found["metadata"]["uid"] == pod["metadata"]["uid"] else pod

    def _changed(self, kind: str, pod: Object) -> None:
        uid, node = pod["metadata"].get("uid", ""), pod["spec"].get("nodeName", "") if "spec" in pod else ""
        if kind == "DELETED":
            self._deleted(pod, uid, node)
            return
        if not node:
            return
        self._by_node.setdefault(node, {})[uid] = pod
        if life := self.lives.get(uid):
            life.update(pod)
        if not self.serves(node):
            return
        if node in self.context.machines.unplugged and (plugin := network_plugins.brought(pod)):
            self._plug(node, plugin)
        if f"{node}/woken" in self._tasks:  # who wakes looks at every pod himself
            return
        if "deletionTimestamp" in pod["metadata"]:
            if f"{uid}/ending" not in self._tasks:
                self._start(f"{uid}/ending", self._end(pod))
        elif uid not in self._tasks and _is_new(pod):
            self._live(pod)
        elif uid not in self._tasks and (programs := self._running_programs(pod)):
            self._start(uid, self._adopt(pod, programs))

    def _deleted(self, pod: Object, uid: str, node: str) -> None:
        self._stop(uid)
        self.lives.pop(uid, None)
        self._addresses.pop(uid, None)
        self._by_node.get(node, {}).pop(uid, None)
        self.logs.forget(*key_of(pod))
        self.disks.forget_pod(uid)
        if "spec" in pod and _is_static(pod) and self.serves(node):
            self._start(f"{uid}/mirror", self._mirror(pod))

    def _live(self, pod: Object) -> None:
        life = self.lives[pod["metadata"]["uid"]] = PodLife(self, pod)
        self._start(life.uid, life.run())

    def _start(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: str, task: asyncio.Task[None]) -> None:
        if "/" in key and self._tasks.get(key) is task:
            del self._tasks[key]
            if key.endswith("/woken"):  # what changed between the last look and now
                for pod in self.pods_on(key.partition("/")[0]):
                    self._changed("MODIFIED", pod)
        if not task.cancelled() and (error := task.exception()):
            log.warning("kubelet: %s", key, exc_info=error)

    def _stop(self, uid: str) -> None:
        if (task := self._tasks.pop(uid, None)) and task is not asyncio.current_task():
            task.cancel()

    def fail(self, life: PodLife, reason: str, message: str, conditions: list[Object] | None = None) -> None:
        """Nothing; a pod that is still active is stopped and has Failed for this reason."""
        phase = self.newest(life.pod).get("status", {}).get("phase")
        if phase in {"Succeeded", "Failed"}:
            return

        async def work() -> None:
            task = self._tasks.get(life.uid)
            if task is not None:
                task.cancel()
            await life.fail(reason, message, conditions)

        self._start(f"{life.uid}/failing", work())

    async def _end(self, pod: Object) -> None:
        """Stops the containers and confirms the deletion, as only a kubelet may."""
        uid, (namespace, name) = pod["metadata"]["uid"], key_of(pod)
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        life = self.lives.get(uid)
        if (task := self._tasks.get(uid)) is not None:
            task.cancel()
        if life is not None:
            await life.end(grace)
            if grace and life.statuses:
                await life.report()
        else:
            await self.context.clock.sleep(min(1.0, grace))
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        }
        while True:
            try:
                await self.context.client.delete(f"/api/v1/namespaces/{namespace}/pods/{name}", body)
                return
            except Refused as error:
                log.debug("deleting %s/%s: %s", namespace, name, error)
                if error.code in {404, 409}:
                    return
            except OSError as error:
                log.debug("deleting %s/%s: %s", namespace, name, error)
            await asyncio.sleep(0.5)

    async def _mirror(self, pod: Object) -> None:
        """Makes the pod of a static manifest again: the file on the node is what counts."""
        namespace, name = key_of(pod)
        kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
        metadata = {key: pod["metadata"][key] for key in kept if key in pod["metadata"]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}
        try:
            made = await self.context.client.create(f"/api/v1/namespaces/{namespace}/pods", body)
            status = {key: value for key, value in pod["status"].items() if key != "qosClass"}
            await self.report(made, status)
        except Refused as error:
            log.debug("mirror pod %s/%s: %s", namespace, name, error)

    async def report(self, pod: Object, status: Object) -> None:
        """Returns once the pod's status is written; a pod that is gone or another one by now is not missed."""
        namespace, name = key_of(pod)
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        for pause in (0.1, 0.5, 2.0, 0.0):
            try:
                await self.context.client.patch(
                    f"/api/v1/namespaces/{namespace}/pods/{name}/status", body, content_type=STRATEGIC
                )
                return
            except Refused as error:
                if error.code in {404, 409}:
                    return
                if error.code < 429 or not pause:
                    log.warning("status of %s/%s: %s", namespace, name, error)
                    return
            except OSError as error:
                log.debug("status of %s/%s: %s", namespace, name, error)
            await asyncio.sleep(pause)

    # -- what a pod's life needs -----------------------------------------------------------------

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object that pods wait for, from the cache."""
        return self.context.cache(CACHES[kind]).items.get((namespace, name))

    def attachments(self, volume: str) -> list[Object]:
        """The VolumeAttachments of a PersistentVolume."""
        rows = self.context.cache(CACHES["VolumeAttachment"]).items.values()
        return [row for row in rows if row["spec"]["source"].get("persistentVolumeName") == volume]

    def address_of(self, node: str) -> str:
        """The node's InternalIP, empty when it has none."""
        status = self.context.nodes.items.get(("", node), {}).get("status", {})
        return next((e["address"] for e in status.get("addresses") or () if e["type"] == "InternalIP"), "")

    def new_address(self, pod: Object) -> str:
        """An address of the pods' network that nobody has; the pod's own if it has one."""
        uid = pod["metadata"]["uid"]
        if uid in self._addresses:
            return self._addresses[uid]
        given = (pod["metadata"].get("annotations") or {}).get("ovn.kubernetes.io/ip_address")
        if given:
            return str(given)
        taken = {item.get("status", {}).get("podIP") for item in self.context.pods.items.values()}
        taken |= set(self._addresses.values())
        while True:
            self._next_address += 1
            number = 128 * 254 + self._next_address
            address = f"10.244.{number // 254 % 256}.{number % 254 + 1}"
            if address not in taken:
                self._addresses[uid] = address
                return address

    def has_image(self, node: str, image: str) -> bool:
        """Whether the node has pulled the image."""
        return (node, image) in self._images

    def keep_image(self, node: str, image: str) -> None:
        """Nothing; the node has the image from now on."""
        self._images.add((node, image))

    async def run_container(self, life: PodLife, container: Object) -> Ended | Runs:
        """How the container's process ended, or that it does not; what it says goes to its log."""
        program = self.processes.knows(container)

        def write(said: str) -> None:
            self.logs.write((*life.key, container["name"]), self.context.stamp(micro=True), said)

        if fate := afflictions.outcome(self.context.world, life.pod, container):
            write(fate.output)
            if isinstance(fate, Ended):
                return fate
            while afflictions.outcome(self.context.world, life.pod, container):  # it hangs as long as the fault lasts
                await life.pause(10.0)
        if program is None:
            result = await run_program(container, await self.place(life, container, write))
            if isinstance(result, Runs) and _prepares(life.pod, container):
                result = Ended(result.output)
        else:
            result = await self.processes.serve(program, self.newest(life.pod), container, write)
        write(result.output)
        return result

    def _running_programs(self, pod: Object) -> list[Object]:
        """Containers of a seeded pod that run a controller."""
        states = {entry["name"]: entry["state"] for entry in pod.get("status", {}).get("containerStatuses") or ()}
        return [
            container
            for container in pod["spec"]["containers"]
            if "running" in states.get(container["name"], {}) and self.processes.knows(container)
        ]

    async def _adopt(self, pod: Object, containers: list[Object]) -> None:
        """Runs the programs of containers that were running when this kubelet began."""
        life = PodLife(self, pod)
        await asyncio.gather(*(self.run_container(life, container) for container in containers))

    async def place(self, life: PodLife, container: Object, write: Any = None) -> Place:
        """Where a program of the container runs."""
        context, pod = self.context, self.newest(life.pod)

        async def connects(host: str, port: int, timeout: float, protocol: str = "TCP") -> Outcome:
            view = await context.view()
            return connect(view, context.world, pod, host, port, protocol=protocol, timeout=timeout)

        environment = await self.processes.environment(pod, container)
        environment.setdefault("HOSTNAME", pod["metadata"]["name"])
        environment.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        files = self.files(life, container, pod)
        return Place(pod, environment, connects, context.clock.now, files, context.clock.sleep, write, container)

    def files(self, life: PodLife, container: Object, pod: Object) -> Files:
        """What the container sees under /: its own layer, and its volumes where they are mounted."""
        name = container["name"]
        root = life.rooted.get(name)
        if root is None:
            root = life.rooted[name] = Files.fresh()
        claims = {entry.name: entry for entry in volumes.claimed(pod, self.find)}
        for volume in pod["spec"].get("volumes") or ():
            keep = self._keep(pod, volume, claims.get(volume["name"]))
            for mount in container.get("volumeMounts") or ():
                if mount["name"] == volume["name"]:
                    root.mount(
                        mount["mountPath"], keep, mount.get("subPath", ""), read_only=mount.get("readOnly", False)
                    )
            for device in container.get("volumeDevices") or ():
                if device["name"] == volume["name"]:
                    root.attach(device["devicePath"], keep)
        return root

    def _keep(self, pod: Object, volume: Object, claim: volumes.Claimed | None) -> Keep:
        uid, space = pod["metadata"]["uid"], pod["metadata"]["namespace"]
        if claim is not None and claim.volume is not None and claim.claim is not None:
            size = claim.claim.get("status", {}).get("capacity", {}).get("storage", "1Gi")
            kind = claim.volume["spec"].get("csi", {}).get("fsType") or "ext4"
            return self.disks.persistent(claim.handle, size, kind, lambda: self._origin(claim.claim or {}))
        for kind, key, field_name in (("Secret", "secret", "secretName"), ("ConfigMap", "configMap", "name")):
            if key in volume:
                item = self.find(kind, space, volume[key].get(field_name, "")) or {}
                return self.disks.filled(f"{uid}/{volume['name']}", kind, item, volume[key].get("items"))
        limit = (volume.get("emptyDir") or {}).get("sizeLimit", "")
        return self.disks.empty(f"{uid}/{volume['name']}", limit)

    def _origin(self, claim: Object) -> str:
        """The handle of the volume that a new claim begins as a copy of; empty for a blank one."""
        source = claim.get("spec", {}).get("dataSource") or {}
        space = claim["metadata"]["namespace"]
        if source.get("kind") == "PersistentVolumeClaim":
            other = self.find("PersistentVolumeClaim", space, source["name"]) or {"spec": {}}
            volume = self.find("PersistentVolume", "", other["spec"].get("volumeName", "")) or {"spec": {}}
            return str(volume["spec"].get("csi", {}).get("volumeHandle", ""))
        if source.get("kind") == "VolumeSnapshot":
            return f"snapshot/{space}/{source['name']}"
        return ""

    def mounted(self, pod: Object) -> None:
        """Nothing; the pod's volumes are in use on its node, and a file system that waits to grow does."""
        for entry in volumes.claimed(pod, self.find):
            if entry.claim is not None:
                self._claim_changed("MODIFIED", entry.claim)

    # -- what changes around pods ----------------------------------------------------------------

    def _source_changed(self, _kind: str, _item: Object) -> None:
        for life in self.lives.values():
            life.poke()

    def _gone(self, kind: str, volume: Object) -> None:
        if kind == "DELETED" and "spec" in volume:
            self.disks.forget(volume["spec"].get("csi", {}).get("volumeHandle") or volume["metadata"]["name"])

    def _snapshot_changed(self, kind: str, item: Object) -> None:
        """Keeps what a volume held when its snapshot was taken."""
        reference = item.get("spec", {}).get("volumeSnapshotRef") or {}
        name = f"snapshot/{reference.get('namespace')}/{reference.get('name')}"
        handle = item.get("spec", {}).get("source", {}).get("volumeHandle", "")
        if kind == "DELETED":
            self.disks.forget(name)
        elif item.get("status", {}).get("snapshotHandle") and handle and name not in self.disks.kept:
            self.disks.snapshot(name, handle)

    def _claim_changed(self, kind: str, claim: Object) -> None:
        """Grows a mounted file system whose disk has grown: the last step of a resize is the kubelet's."""
        rows = claim.get("status", {}).get("conditions") or ()
        if kind == "DELETED" or not any(row["type"] == "FileSystemResizePending" for row in rows):
            return
        for pod in self._users(claim):
            key = f"{claim['metadata']['uid']}/resize"
            if key not in self._tasks:
                self._start(key, self._grow(claim, pod))
            return

    def _users(self, claim: Object) -> Iterator[Object]:
        space, name = key_of(claim)
        for life in list(self.lives.values()):
            pod = life.pod
            if pod["metadata"]["namespace"] == space and self.serves(life.node) and any(
                volumes.claim_name(pod, volume) == name for volume in pod["spec"].get("volumes") or ()
            ):  # fmt: skip
                yield pod

    async def _grow(self, claim: Object, pod: Object) -> None:
        await self.context.clock.sleep(1.0)
        space, name = key_of(claim)
        volume = self.find("PersistentVolume", "", claim["spec"].get("volumeName", ""))
        if volume is None:
            return
        size = volume["spec"]["capacity"]["storage"]
        done = {"FileSystemResizePending", "Resizing", "NodeResizeError", "ControllerResizeError"}
        rows = [row for row in claim["status"].get("conditions") or () if row["type"] not in done]
        status = {"capacity": {**claim["status"].get("capacity", {}), "storage": size}, "conditions": rows,
                  "allocatedResourceStatuses": None}  # fmt: skip
        path = f"/api/v1/namespaces/{space}/persistentvolumeclaims/{name}/status"
        await self.context.client.patch(path, {"status": status})
        where = f'"{volume["metadata"]["name"]}" {pod["spec"]["nodeName"]}'
        said = f"MountVolume.NodeExpandVolume succeeded for volume {where}"
        for about in (pod, claim):
            await self.context.event(
                about, "FileSystemResizeSuccessful", said, component="kubelet", host=pod["spec"]["nodeName"]
            )

    # -- machines --------------------------------------------------------------------------------

    def _node_changed(self, kind: str, node: Object) -> None:
        name = node["metadata"]["name"]
        if kind == "DELETED":
            self._halt(name)
            self._silent.discard(name)
            self.context.machines.unplugged.discard(name)
        elif kind == "ADDED" and self.serves(name):
            if network_plugins.lacks(node) and not self._plugin_on(name):
                self.context.machines.unplugged.add(name)
            self._start(f"{name}/joined", self._wake(name))

    def _plugin_on(self, node: str) -> network_plugins.Plugin | None:
        return network_plugins.on(self.context.pods.items.values(), node)

    def _plug(self, node: str, plugin: network_plugins.Plugin) -> None:
        """Nothing; the node has a network from now on: it says so, and pods that waited for it go on."""
        self.context.machines.unplugged.discard(node)
        self._start(f"{node}/plugged", self._plugged(node, plugin))
        for pod in self.pods_on(node):
            if life := self.lives.get(pod["metadata"]["uid"]):
                life.poke()

    async def _plugged(self, node: str, plugin: network_plugins.Plugin) -> None:
        now = self.context.stamp()
        row = {"type": "NetworkUnavailable", "status": "False", "reason": plugin.reason, "message": plugin.says,
               "lastHeartbeatTime": now, "lastTransitionTime": now}  # fmt: skip
        await heartbeats.post_status(self.context, node, *([row] if plugin.reason else []))

    def _machine_changed(self, node: str, alive: bool) -> None:
        if not alive:
            self._down.add(node)
            self._halt(node)
            return
        if node in self.context.machines.known and node in self._silent:
            self._silent.discard(node)
            self._down.add(node)
        if self.serves(node) and node in self._down:
            self._down.discard(node)
            self._waking.add(node)
            self._start(f"{node}/woken", self._wake(node))
        self._strike(node)
        self._pressed()

    def _strike(self, node: str) -> None:
        """Nothing; containers that a new fault of their node ends have ended, and who waited for its end looks."""
        for pod in self.pods_on(node) if self.serves(node) else ():
            life = self.lives.get(pod["metadata"]["uid"])
            ending = afflictions.stricken(self.context.world, pod)
            if life is not None:
                for name in ending:
                    life.strike(name)
                life.poke()
            elif (
                ending
                and pod.get("status", {}).get("phase") == "Running"
                and "deletionTimestamp" not in pod["metadata"]
            ):
                self._live(pod)

    def refusals(self, pod: Object) -> int:
        """How many pods of the same owner were refused before this one."""
        owner = next((entry["uid"] for entry in pod["metadata"].get("ownerReferences") or ()), "")
        self._refused[owner] = self._refused.get(owner, -1) + 1
        return self._refused[owner] if owner else 0

    def _halt(self, node: str) -> None:
        """Everything on a machine stops at once; nobody reports it."""
        for pod in self.pods_on(node):
            uid = pod["metadata"]["uid"]
            for key in [key for key in self._tasks if key == uid or key.startswith(f"{uid}/")]:
                self._tasks.pop(key).cancel()
            self.lives.pop(uid, None)

    async def _wake(self, node: str) -> None:
        """A machine's kubelet reports its node, and brings up again what is to run there."""
        try:
            await heartbeats.beat(self.context, node, full=True)
        finally:
            self._waking.discard(node)
        if not self.serves(node):  # it went down again meanwhile
            return
        for pod in self.pods_on(node):
            uid, status = pod["metadata"]["uid"], pod.get("status", {})
            if f"{uid}/ending" in self._tasks:
                continue
            if "deletionTimestamp" in pod["metadata"]:
                self._start(f"{uid}/ending", self._end(pod))
            elif uid in self._tasks:
                continue
            elif status.get("phase", "Pending") in {"Pending", "Running"}:  # also one that was just being started
                self._live(pod)

    def _pressed(self) -> None:
        for node, what in self.context.machines.pressure.items():
            if self.serves(node) and f"{node}/pressed" not in self._tasks:
                self._start(f"{node}/pressed", self._relieve(node, what))

    async def _relieve(self, node: str, what: str) -> None:
        """Says that the node runs short, and evicts pods one by one while it does."""
        await heartbeats.post_status(self.context, node)
        await self.context.event(
            {"kind": "Node", **self.context.nodes.items[("", node)]}, *node_pressure.told(node, what),
            component="kubelet", host=node,
        )  # fmt: skip
        for pod in node_pressure.order(self.pods_on(node))[: node_pressure.MOST]:
            await asyncio.gather(self.context.clock.sleep(10), asyncio.sleep(0.1))
            if self.context.machines.pressure.get(node) != what:
                break
            life = self.lives.get(pod["metadata"]["uid"]) or PodLife(self, pod)
            words = node_pressure.message(pod, what)
            row = pod_status.disrupted("TerminationByKubelet", words, self.context.stamp())
            self.fail(life, "Evicted", words, [row])
        while self.context.machines.pressure.get(node) == what:
            await asyncio.sleep(1.0)
        await heartbeats.post_status(self.context, node)


def _prepares(pod: Object, container: Object) -> bool:
    """Whether it is an init container that is told nothing: what its image does then is over soon."""
    inits = [entry["name"] for entry in pod["spec"].get("initContainers") or () if not pod_status.is_sidecar(entry)]
    return container["name"] in inits and not container.get("command") and not container.get("args")


def _is_unknown(node: Object) -> bool:
    rows = node.get("status", {}).get("conditions") or ()
    return any(entry["type"] == "Ready" and entry["status"] == "Unknown" for entry in rows)


def _is_new(pod: Object) -> bool:
    status = pod.get("status", {})
    return status.get("phase", "Pending") == "Pending" and not status.get("startTime")


def _is_static(pod: Object) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner["kind"] == "Node" for owner in owners) or MIRROR in (pod["metadata"].get("annotations") or {})


__all__ = ["Cache", "Key", "Kubelets", "pull_failure"]
