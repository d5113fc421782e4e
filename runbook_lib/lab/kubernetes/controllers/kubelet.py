"""The kubelets of all nodes: pods from Pending to their end, image pulls, logs, deletion, heartbeats.

A pod that a scenario seeded with a status of its own is left as it is until someone deletes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from .client import MERGE, STRATEGIC, Key, Object, Refused, key_of
from .context import Context
from .network import Outcome, connect, ready_nodes_of
from .processes import Processes
from .programs import Ended, Place, Runs, execute
from .programs import run as run_program

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
PULL_SECONDS = 1.5
SANDBOX_SECONDS = 0.5
BACK_OFF_FIRST, BACK_OFF_MOST = 10.0, 300.0
KNOWN_REGISTRIES = frozenset(
    {"docker.io", "registry.k8s.io", "ghcr.io", "quay.io", "gcr.io", "public.ecr.aws", "mirror.gcr.io"}
)
_PULL_FAILURES = {
    "timeout": "dial tcp: i/o timeout",
    "denied": (
        "pull access denied, repository does not exist or may require authorization: "
        "authorization failed: no basic auth credentials"
    ),
    "missing": "not found",
    "unknown": "dial tcp: lookup {host}: no such host",
}


@dataclass
class Kubelets:
    """Every node's kubelet. `logs` holds what containers wrote, by (namespace, pod, container).

    `shortest_deadline` is in real seconds: requests take real time, however fast the lab's clock runs.
    """

    context: Context
    processes: Processes
    logs: dict[tuple[str, str, str], list[tuple[str, str]]] = field(default_factory=dict)
    shortest_deadline: float = 5.0
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _images: set[tuple[str, str]] = field(default_factory=set)
    _next_address: int = 0

    # -- what the API server asks its kubelets ---------------------------------------------------

    def pod_log(self, namespace: str, name: str, options: Mapping[str, str]) -> str | None:
        """The log of one container as the log endpoint answers; None for a pod that never ran here."""
        pod = self.context.pods.items.get((namespace, name))
        container = options.get("container") or (pod["spec"]["containers"][0]["name"] if pod else "")
        lines = self.logs.get((namespace, name, container))
        if lines is None:
            return _seeded_log(pod, container) if pod else None
        if options.get("previous") in {"true", "1"}:
            return ""
        chosen = lines[-int(options["tailLines"]) :] if options.get("tailLines", "").isdigit() else lines
        stamped = options.get("timestamps") in {"true", "1"}
        text = "".join(f"{when} {line}\n" if stamped else f"{line}\n" for when, line in chosen)
        limit = options.get("limitBytes", "")
        return text[: int(limit)] if limit.isdigit() else text

    async def pod_exec(
        self, namespace: str, name: str, command: list[str], container: str = ""
    ) -> tuple[str, str, int]:
        """(standard output, standard error, exit code) of a command in a running pod."""
        try:  # asked of the server: the cache may be a moment behind the client that saw the pod run
            pod = await self.context.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        except Refused as error:
            return "", error.message, 1
        if pod["status"].get("phase") != "Running":
            return "", f"cannot exec into a container of {namespace}/{name}: it is not running", 1
        names = {entry["name"]: entry for entry in pod["spec"]["containers"]}
        chosen = names.get(container) or pod["spec"]["containers"][0]
        result = await execute(command, self._place(pod, chosen))
        if isinstance(result, Runs):
            return result.output, "", 0
        return (result.output, "", 0) if result.code == 0 else ("", result.output, result.code)

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves pods until cancelled."""
        context = self.context
        await context.synced()
        for pod in list(context.pods.items.values()):
            self._changed("ADDED", pod)
        context.pods.handlers.append(self._changed)
        try:
            await self._heartbeats()
        finally:
            for task in self._tasks.values():
                task.cancel()

    def serves(self, node: str) -> bool:
        """Whether a kubelet is alive there: the node exists and did not stop reporting."""
        item = self.context.nodes.items.get(("", node))
        if item is None or self.context.world.node_faults.get(node) == "dead":
            return False
        return all(
            entry["status"] != "Unknown" for entry in item["status"].get("conditions") or () if entry["type"] == "Ready"
        )

    def _changed(self, kind: str, pod: Object) -> None:
        uid, node = pod["metadata"].get("uid", ""), pod["spec"].get("nodeName", "")
        if kind == "DELETED":
            self._stop(uid)
            namespace, name = key_of(pod)
            for key in [key for key in self.logs if key[:2] == (namespace, name)]:
                del self.logs[key]
            return
        if not node or not self.serves(node):
            return
        if "deletionTimestamp" in pod["metadata"]:
            if f"{uid}/ending" not in self._tasks:
                self._stop(uid)
                self._start(f"{uid}/ending", self._end(pod))
        elif uid not in self._tasks and _is_new(pod):
            self._start(uid, self._live(pod))
            if pod["spec"].get("activeDeadlineSeconds"):
                self._start(f"{uid}/deadline", self._deadline(pod))
        elif uid not in self._tasks and (running := self._running_programs(pod)):
            self._start(uid, self._adopt(pod, running))

    def _start(self, key: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: str, task: asyncio.Task[None]) -> None:
        if key.endswith(("/ending", "/deadline")):
            self._tasks.pop(key, None)
        if not task.cancelled() and task.exception():
            log.warning("kubelet: %s", task.exception())

    def _stop(self, uid: str) -> None:
        for key in (uid, f"{uid}/deadline"):
            if (task := self._tasks.pop(key, None)) and task is not asyncio.current_task():
                task.cancel()

    async def _deadline(self, pod: Object) -> None:
        """Fails a pod that is still active when its deadline has passed."""
        await asyncio.gather(
            self.context.clock.sleep(pod["spec"]["activeDeadlineSeconds"]), asyncio.sleep(self.shortest_deadline)
        )
        now = self.context.pods.items.get(key_of(pod))
        if now is None or now["status"].get("phase") not in {"Pending", "Running"}:
            return
        self._stop(pod["metadata"]["uid"])
        words = "Pod was active on the node longer than the specified deadline"
        statuses = now["status"].get("containerStatuses") or []
        conditions = _conditions(
            now["status"].get("startTime") or self.context.stamp(), initialized=True, sandbox=False
        )
        status = {"phase": "Failed", "reason": "DeadlineExceeded", "message": words, "conditions": conditions}
        await self._report(pod, {**status, "containerStatuses": statuses})
        await self.context.event(
            pod, "DeadlineExceeded", words, kind="Warning", component="kubelet", host=pod["spec"]["nodeName"]
        )

    async def _end(self, pod: Object) -> None:
        """Stops the containers and confirms the deletion, as only a kubelet may."""
        namespace, name = key_of(pod)
        await self.context.clock.sleep(min(1.0, pod["metadata"].get("deletionGracePeriodSeconds", 1)))
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod["metadata"]["uid"]},
        }
        try:
            await self.context.client.delete(path, body)
        except Refused as error:
            log.debug("deleting %s/%s: %s", namespace, name, error)

    async def _live(self, pod: Object) -> None:
        """One pod from its binding to its end."""
        context = self.context
        node = pod["spec"]["nodeName"]
        started = context.stamp()
        base = self._base_status(pod, started)
        waiting = [_waiting(container, "ContainerCreating") for container in pod["spec"]["containers"]]
        await self._report(pod, {**base, "phase": "Pending", "containerStatuses": waiting})
        await context.clock.sleep(SANDBOX_SECONDS)
        told = ""
        while trouble := self._sandbox_trouble(pod):
            if trouble != told:  # a real kubelet repeats it and the event only counts up
                await context.event(
                    pod, "FailedCreatePodSandBox", trouble, kind="Warning", component="kubelet", host=node
                )
                told = trouble
            await asyncio.gather(context.clock.sleep(15), asyncio.sleep(0.05))
        address = {"podIP": self._address(pod)}
        base |= {**address, "podIPs": [{"ip": address["podIP"]}]}
        base["conditions"] = _conditions(started, initialized=True, sandbox=True)
        for container in pod["spec"].get("initContainers") or ():
            if not await self._pull(pod, container, base):
                return
            await run_program(container, self._place(pod, container))
        for container in pod["spec"]["containers"]:
            if not await self._pull(pod, container, base):
                return
        await asyncio.gather(*(self._contain(pod, container, base) for container in pod["spec"]["containers"]))

    def _base_status(self, pod: Object, started: str) -> Object:
        node = self.context.nodes.items[("", pod["spec"]["nodeName"])]
        address = next((e["address"] for e in node["status"]["addresses"] if e["type"] == "InternalIP"), "")
        return {
            "hostIP": address,
            "hostIPs": [{"ip": address}],
            "startTime": started,
            "conditions": _conditions(started, initialized=True, sandbox=False),
        }

    def _sandbox_trouble(self, pod: Object) -> str:
        """Why no sandbox can be made on that node right now; empty when one can."""
        node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
        fault = self.context.world.node_faults.get(node)
        head = "Failed to create pod sandbox: rpc error: code = Unknown desc = "
        if fault == "runtime":
            return (
                head
                + "failed to create containerd task: failed to create shim task: container.Runtime.Name must be set"
            )
        if pod["spec"].get("hostNetwork"):
            return ""
        pods = self.context.pods.items.values()
        ovn, cilium = ready_nodes_of(pods, "app", "kube-ovn-cni"), ready_nodes_of(pods, "k8s-app", "cilium")
        head += f'failed to setup network for sandbox "{_digest(uid)}": plugin type='
        if fault == "network" or (ovn is not None and node not in ovn):
            return head + (
                '"kube-ovn" failed (add): RPC failed; request ip return 502 dial unix '
                "/run/openvswitch/kube-ovn-daemon.sock: connect: no such file or directory"
            )
        if ready_nodes_of(pods, "app", "kube-ovn-controller") == set():  # nobody hands out addresses
            return head + '"kube-ovn" failed (add): RPC failed; request ip return 500 no address allocated to pod'
        if cilium is not None and node not in cilium:
            return head + (
                '"cilium-cni" failed (add): unable to connect to Cilium agent: dial unix '
                "/var/run/cilium/cilium.sock: connect: no such file or directory"
            )
        return ""

    def _address(self, pod: Object) -> str:
        if pod["spec"].get("hostNetwork"):
            return str(self._base_status(pod, "")["hostIP"])
        taken = {item.get("status", {}).get("podIP") for item in self.context.pods.items.values()}
        while True:
            self._next_address += 1
            number = 128 * 254 + self._next_address
            address = f"10.244.{number // 254 % 256}.{number % 254 + 1}"
            if address not in taken:
                return address

    async def _pull(self, pod: Object, container: Object, base: Object) -> bool:
        """Whether the image came. A failing pull is tried again with growing pauses, until the pod is deleted."""
        context, image, node = self.context, container["image"], pod["spec"]["nodeName"]
        present = (node, image) in self._images
        if present and container.get("imagePullPolicy") != "Always":
            said = f'Container image "{image}" already present on machine'
            await context.event(pod, "Pulled", said, component="kubelet", host=node)
            return True
        pause = BACK_OFF_FIRST
        while True:
            await context.event(pod, "Pulling", f'Pulling image "{image}"', component="kubelet", host=node)
            await context.clock.sleep(PULL_SECONDS)
            failure = pull_failure(image, context.world.registries)
            if not failure:
                self._images.add((node, image))
                said = (
                    f'Successfully pulled image "{image}" in 1.5s (1.5s including waiting). Image size: 51105200 bytes.'
                )
                await context.event(pod, "Pulled", said, component="kubelet", host=node)
                return True
            if container.get("imagePullPolicy") == "Never":
                failure = f'Container image "{image}" is not present with pull policy of Never'
            await self._pull_failed(pod, container, base, "ErrImagePull", failure)
            await context.event(pod, "Failed", f'Failed to pull image "{image}": {failure}', kind="Warning",
                                component="kubelet", host=node)  # fmt: skip
            await context.clock.sleep(1.0)
            said = f'Back-off pulling image "{image}": ErrImagePull: {failure}'
            await self._pull_failed(pod, container, base, "ImagePullBackOff", said)
            await context.clock.sleep(pause)
            pause = min(pause * 2, BACK_OFF_MOST)

    async def _pull_failed(self, pod: Object, container: Object, base: Object, reason: str, message: str) -> None:
        statuses = [
            _waiting(entry, reason, message) if entry is container else _waiting(entry, "ContainerCreating")
            for entry in pod["spec"]["containers"]
        ]
        await self._report(pod, {**base, "phase": "Pending", "containerStatuses": statuses})

    async def _contain(self, pod: Object, container: Object, base: Object) -> None:
        """One container's processes, restarted as the policy says."""
        context, node = self.context, pod["spec"]["nodeName"]
        policy = pod["spec"].get("restartPolicy", "Always")
        restarts, pause = 0, BACK_OFF_FIRST
        last: Object = {}
        while True:
            begun = context.stamp()
            await context.event(
                pod, "Created", f"Created container: {container['name']}", component="kubelet", host=node
            )
            await context.event(
                pod, "Started", f"Started container {container['name']}", component="kubelet", host=node
            )
            identity = "containerd://" + _digest(f"{pod['metadata']['uid']}/{container['name']}/{restarts}")
            seen = {"containerID": identity, "restartCount": restarts, "lastState": last}
            await self._set(pod, container, base, {**seen, "state": {"running": {"startedAt": begun}}}, running=True)
            result = await self._run_container(pod, container)
            self._write(pod, container, result.output)
            if isinstance(result, Runs):
                return
            await context.clock.sleep(result.seconds)
            ended = _terminated(result, begun, context.stamp(), identity)
            if policy == "Never" or (policy == "OnFailure" and result.code == 0):
                await self._set(pod, container, base, {**seen, "state": {"terminated": ended}}, running=False)
                return
            last = {"terminated": ended}
            said = (
                f"back-off {int(pause)}s restarting failed container={container['name']} "
                f"pod={pod['metadata']['name']}_{pod['metadata']['namespace']}({pod['metadata']['uid']})"
            )
            crash = {"waiting": {"reason": "CrashLoopBackOff", "message": said}}
            await self._set(pod, container, base, {**seen, "lastState": last, "state": crash}, running=False)
            await context.event(pod, "BackOff", f"Back-off restarting failed container {container['name']}",
                                kind="Warning", component="kubelet", host=node)  # fmt: skip
            await context.clock.sleep(pause)
            restarts, pause = restarts + 1, min(pause * 2, BACK_OFF_MOST)

    async def _run_container(self, pod: Object, container: Object) -> Ended | Runs:
        program = self.processes.knows(container)
        if program is None:
            return await run_program(container, self._place(pod, container))
        return await self.processes.serve(program, pod, container, lambda said: self._write(pod, container, said))

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
        results = await asyncio.gather(*(self._run_container(pod, container) for container in containers))
        for container, result in zip(containers, results, strict=True):
            self._write(pod, container, result.output)

    async def _set(self, pod: Object, container: Object, base: Object, seen: Object, *, running: bool) -> None:
        """Reports one container's new state together with what the others were last seen doing."""
        statuses: dict[str, Object] = base.setdefault("_containers", {})
        delay = (container.get("readinessProbe") or {}).get("initialDelaySeconds", 0) if running else 0
        statuses[container["name"]] = _status(container, seen, ready=running and not delay)
        await self._report_all(pod, base)
        if delay:
            await self.context.clock.sleep(delay)
            statuses[container["name"]] = _status(container, seen, ready=True)
            await self._report_all(pod, base)

    async def _report_all(self, pod: Object, base: Object) -> None:
        known: dict[str, Object] = base["_containers"]
        ordered = [
            known.get(entry["name"]) or _waiting(entry, "ContainerCreating") for entry in pod["spec"]["containers"]
        ]
        phase = _phase(ordered, pod["spec"].get("restartPolicy", "Always"))
        ready = all(entry["ready"] for entry in ordered)
        conditions = _conditions(
            base["startTime"], initialized=True, sandbox=phase == "Running", ready=ready, at=self.context.stamp(),
            done=phase == "Succeeded",
        )  # fmt: skip
        body = {key: value for key, value in base.items() if not key.startswith("_")}
        await self._report(pod, {**body, "phase": phase, "conditions": conditions, "containerStatuses": ordered})

    async def _report(self, pod: Object, status: Object) -> None:
        namespace, name = key_of(pod)
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {k: v for k, v in status.items() if k[0] != "_"}}
        try:
            await self.context.client.patch(
                f"/api/v1/namespaces/{namespace}/pods/{name}/status", body, content_type=STRATEGIC
            )
        except Refused as error:
            if error.code not in {404, 409}:
                raise

    def _place(self, pod: Object, container: Object) -> Place:
        context = self.context

        async def connects(host: str, port: int, timeout: float) -> Outcome:
            return connect(await context.view(), context.world, pod, host, port, timeout=timeout)

        environment = {entry["name"]: entry.get("value", "") for entry in container.get("env") or ()}
        environment.setdefault("HOSTNAME", pod["metadata"]["name"])
        return Place(pod, environment, connects, context.clock.now)

    def _write(self, pod: Object, container: Object, text: str) -> None:
        namespace, name = key_of(pod)
        when = self.context.stamp(micro=True)
        self.logs.setdefault((namespace, name, container["name"]), []).extend(
            (when, line) for line in text.splitlines()
        )

    async def _heartbeats(self) -> None:
        """Renews the leases every ten real seconds: a client compares them with its own clock."""
        beat = 0
        while True:
            for _, node in list(self.context.nodes.items):
                if self.serves(node):
                    await self._beat(node, full=beat % 30 == 0)
            beat += 1
            await asyncio.sleep(LEASE_SECONDS)

    async def _beat(self, node: str, *, full: bool) -> None:
        client = self.context.client
        path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}"
        try:
            await client.patch(path, {"spec": {"renewTime": self.context.stamp(micro=True)}}, content_type=MERGE)
            if full:
                item = self.context.nodes.items[("", node)]
                now = self.context.stamp()
                conditions = [
                    {"type": entry["type"], "status": entry["status"], "lastHeartbeatTime": now}
                    for entry in item["status"].get("conditions") or ()
                ]
                body = {"status": {"conditions": conditions}}
                await client.patch(f"/api/v1/nodes/{node}/status", body, content_type=STRATEGIC)
        except (Refused, aiohttp.ClientError, OSError) as error:
            log.debug("heartbeat of %s: %s", node, error)


def pull_failure(image: str, registries: Mapping[str, str]) -> str:
    """Why the image cannot be pulled, in containerd's words; empty when it can."""
    first, slash, _ = image.partition("/")
    host = first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"
    state = registries.get(host, "ok" if host in KNOWN_REGISTRIES else "unknown")
    if state == "ok":
        return ""
    reference = image if slash else f"docker.io/library/{image}"
    why = _PULL_FAILURES[state].format(host=host)
    head = f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}": '
    if state in {"timeout", "unknown"}:
        return head + f'failed to do request: Head "https://{host}/v2/": {why}'
    return head + (f"{reference}: {why}" if state == "missing" else why)


def _is_new(pod: Object) -> bool:
    status = pod.get("status", {})
    return status.get("phase", "Pending") == "Pending" and not status.get("startTime")


def _waiting(container: Object, reason: str, message: str = "") -> Object:
    waiting = {"reason": reason, **({"message": message} if message else {})}
    return _status(container, {"restartCount": 0, "lastState": {}, "state": {"waiting": waiting}}, ready=False)


def _status(container: Object, seen: Object, *, ready: bool) -> Object:
    running = "running" in seen["state"]
    image = container["image"]
    return {
        "name": container["name"],
        "image": image,
        "imageID": f"{image.rpartition(':')[0] or image}@sha256:{_digest(image)}"
        if "waiting" not in seen["state"]
        else "",
        "ready": ready,
        "started": running,
        **seen,
    }


def _terminated(result: Ended, begun: str, ended: str, identity: str) -> Object:
    return {
        "exitCode": result.code,
        "reason": "Completed" if result.code == 0 else "Error",
        "startedAt": begun,
        "finishedAt": ended,
        "containerID": identity,
    }


def _phase(statuses: list[Object], policy: str) -> str:
    states = [entry["state"] for entry in statuses]
    if all("waiting" in state and state["waiting"]["reason"] == "ContainerCreating" for state in states):
        return "Pending"
    ended = [state["terminated"]["exitCode"] for state in states if "terminated" in state]
    if policy != "Always" and len(ended) == len(states):
        return "Failed" if any(ended) else "Succeeded"
    return "Running"


def _conditions(
    started: str, *, initialized: bool, sandbox: bool, ready: bool = False, at: str = "", done: bool = False
) -> list[Object]:
    now = at or started
    reason = {} if ready else {"reason": "PodCompleted" if done else "ContainersNotReady"}
    rows: list[tuple[str, bool, str, Object]] = [
        ("PodReadyToStartContainers", sandbox, now, {}),
        ("Initialized", initialized, started, {"reason": "PodCompleted"} if done else {}),
        ("Ready", ready, now, reason),
        ("ContainersReady", ready, now, reason),
        ("PodScheduled", True, started, {}),
    ]
    return [
        {"type": kind, "status": str(state), "lastProbeTime": None, "lastTransitionTime": when, **why}
        for kind, state, when, why in rows
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seeded_log(pod: Object | None, container: str) -> str:
    """What little a seeded container is known to have written: the message of its last end."""
    for entry in (pod or {}).get("status", {}).get("containerStatuses") or ():
        if entry["name"] == container:
            ended = entry.get("lastState", {}).get("terminated") or entry.get("state", {}).get("terminated") or {}
            return f"{ended['message']}\n" if ended.get("message") else ""
    return ""


__all__ = ["Key", "Kubelets", "pull_failure"]
