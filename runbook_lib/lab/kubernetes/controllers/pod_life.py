"""One pod on one node, from the day it is bound to its end: volumes, sandbox, images, containers, probes, restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from . import images, network_plugins, node_fit, pod_status, probes, volumes
from .client import Object, key_of
from .network import ready_nodes_of
from .pod_status import digest
from .programs import Ended, Runs, heeds_signals

if TYPE_CHECKING:
    from .kubelet import Kubelets

log = logging.getLogger(__name__)

SANDBOX_SECONDS, PULL_SECONDS, START_SECONDS, STOP_SECONDS = 0.5, 1.5, 0.3, 1.0
BACK_OFF_FIRST, BACK_OFF_MOST, BACK_OFF_FORGOTTEN = 10.0, 300.0, 600.0
MOUNT_WAIT_SECONDS = 123.0
REFUSAL_SECONDS = 12.0
SPIN = 0.02
"""Real seconds below which nothing is tried again, however fast the lab's clock runs."""


def spoken(seconds: float) -> str:
    """Seconds as Go writes a duration: 10s, 2m40s, 5m0s."""
    whole = int(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"


class PodLife:
    """The containers of one pod. `run` brings them up and keeps them up, `end` takes them down.

    A class because what containers do, and what was reported of it, belongs together.
    """

    def __init__(self, kubelets: Kubelets, pod: Object) -> None:
        self.kubelets, self.context, self.pod = kubelets, kubelets.context, pod
        self.node: str = pod["spec"]["nodeName"]
        self.uid: str = pod["metadata"]["uid"]
        self.key = key_of(pod)
        self.poked = asyncio.Event()
        status = pod.get("status", {})
        self.started = status.get("startTime") or ""
        self.sandbox = False
        self.address = status.get("podIP", "")
        held = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
        self.restarts = {entry["name"]: entry.get("restartCount", 0) for entry in held}
        self.statuses: dict[str, Object] = {}
        self.conditions: list[Object] = list(status.get("conditions") or ())
        self.rooted: dict[str, Any] = {}
        self.final: Object = {}
        self._kills: dict[str, asyncio.Future[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sidecars: list[asyncio.Task[None]] = []
        self._told: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._dirty = False
        self._sent: Object = {}

    # -- events and status -----------------------------------------------------------------------

    def tell(self, reason: str, message: str, kind: str = "Normal", component: str = "kubelet") -> None:
        """Nothing; the event is written after those told before it. The pod does not wait for it."""
        before = self._told

        async def write() -> None:
            if before is not None:
                await asyncio.gather(before, return_exceptions=True)
            await self.context.event(self.pod, reason, message, kind=kind, component=component, host=self.node)

        self._told = asyncio.get_running_loop().create_task(write())

    def warn(self, reason: str, message: str, component: str = "kubelet") -> None:
        """Nothing; a Warning is written."""
        self.tell(reason, message, "Warning", component)

    def update(self, pod: Object) -> None:
        """Nothing; the pod's newest form is known."""
        gates = self.pod["spec"].get("readinessGates") or ()
        before, self.pod = self.pod, pod
        theirs = {entry["conditionType"] for entry in gates}
        rows = [entry for entry in pod.get("status", {}).get("conditions") or () if entry["type"] in theirs]
        known = [entry for entry in self.conditions if entry["type"] in theirs]
        if rows != known:
            self.conditions = [entry for entry in self.conditions if entry["type"] not in theirs] + rows
            self._spawn(self.report())
        if self._sent and _ready(pod["status"]) != _ready(self._sent):  # somebody else wrote it: a kubelet insists
            self._sent = {}
            self._spawn(self.report())
        if (before["metadata"].get("annotations") or {}) != (pod["metadata"].get("annotations") or {}):
            self.poke()

    def strike(self, name: str) -> None:
        """Nothing; the container's process has ended, and starts again as its restart policy says."""
        kill = self._kills.get(name)
        if kill is not None and not kill.done():
            kill.set_result("restart")

    def poke(self) -> None:
        """Nothing; whoever waits for something looks again."""
        self.poked.set()
        self.poked = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Returns after so many seconds of the lab, or when something that may matter has changed."""
        poked = self.poked
        waits = [asyncio.ensure_future(poked.wait()), asyncio.ensure_future(self._rest(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _rest(self, seconds: float, *, least: float = SPIN) -> None:
        await asyncio.gather(self.context.clock.sleep(seconds), asyncio.sleep(least))

    async def report(self) -> None:
        """Returns once the server was told how the pod is now; what changes meanwhile goes into one write."""
        self._dirty = True
        async with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            status = self._status()
            if status == self._sent:
                return
            if status["phase"] in {"Succeeded", "Failed"} and self._told is not None:
                await asyncio.gather(self._told, return_exceptions=True)
            self._sent = status
            await self.kubelets.report(self.pod, status)

    def _status(self) -> Object:
        spec = self.pod["spec"]
        inits = {
            entry["name"]: self.statuses.get(entry["name"]) or pod_status.waiting(entry, "PodInitializing")
            for entry in spec.get("initContainers") or ()
        }
        reason = "PodInitializing" if inits else "ContainerCreating"
        rows = [
            self.statuses.get(entry["name"])
            or pod_status.waiting(entry, reason, before={"restartCount": self.restarts.get(entry["name"], 0)})
            for entry in spec["containers"]
        ]
        phase = self.final.get("phase") or pod_status.phase(self.pod, rows, inits)
        ended = phase if phase in {"Succeeded", "Failed"} else ""
        self.conditions = [
            entry for entry in self.conditions if entry["type"] not in _OWN
        ] + pod_status.conditions(
            self.pod, self.context.stamp(), sandbox=self.sandbox and not ended, containers=rows, inits=inits,
            before=self.conditions, ended=ended,
        )  # fmt: skip
        host = self.kubelets.address_of(self.node)
        where = {"hostIP": host, "hostIPs": [{"ip": host}]} if host else {}
        if self.address:
            where |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        own = [{k: v for k, v in entry.items() if v is not None or k == "lastProbeTime"} for entry in self.conditions]
        sent = {
            "phase": phase,
            **where,
            "startTime": self.started,
            "conditions": [entry for entry in self.conditions if entry["type"] in _OWN],
            "containerStatuses": rows,
            **({"initContainerStatuses": list(inits.values())} if inits else {}),
            **{key: value for key, value in self.final.items() if key != "phase"},
        }
        self.conditions = own
        return sent

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole life. Returns when no container will run again."""
        try:
            await self._live()
        finally:
            for task in (*self._tasks, *self._sidecars):
                task.cancel()

    async def _live(self) -> None:
        self.started = self.started or self.context.stamp()
        if rejected := self._rejection():
            if self.kubelets.refusals(self.pod):  # its owner makes another at once: real kubelets are in no hurry
                await self._rest(REFUSAL_SECONDS, least=0.15)
            self.final = {"phase": "Failed", "reason": rejected[0], "message": rejected[1]}
            self.warn(*rejected)
            await self.kubelets.report(self.pod, {**self.final, "startTime": self.started})
            return
        if limit := self.pod["spec"].get("activeDeadlineSeconds"):
            self._spawn(self._deadline(limit))
        await self.report()
        await self._mount()
        await self._make_sandbox()
        if not await self._initialize():
            return
        containers = self.pod["spec"]["containers"]
        await asyncio.gather(*(self._keep(container) for container in containers))
        for sidecar in self._sidecars:
            sidecar.cancel()
        await self.report()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _rejection(self) -> tuple[str, str] | None:
        node = self.context.nodes.items.get(("", self.node))
        if node is None or self.restarts:
            return None
        others = [item for item in self.kubelets.pods_on(self.node) if item["metadata"]["uid"] != self.uid]
        reason, message = node_fit.rejection(self.pod, node, others)
        return (reason, message) if reason else None

    async def _deadline(self, seconds: float) -> None:
        await asyncio.gather(self.context.clock.sleep(seconds), asyncio.sleep(self.kubelets.shortest_deadline))
        words = "Pod was active on the node longer than the specified deadline"
        self.kubelets.fail(self, "DeadlineExceeded", words)

    async def fail(self, reason: str, message: str, conditions: list[Object] | None = None) -> None:
        """Returns once the pod has Failed as a whole: past its deadline, or evicted."""
        now = self.context.stamp()
        for name, entry in list(self.statuses.items()):
            if "running" in entry["state"]:
                began = entry["state"]["running"]["startedAt"]
                ended = pod_status.ending(137, began, now, entry.get("containerID", ""))
                self.statuses[name] = {**entry, "ready": False, "started": False, "state": {"terminated": ended}}
        self.final = {"phase": "Failed", "reason": reason, "message": message}
        self.conditions += conditions or []
        self.warn(reason, message)
        await self.report()
        if conditions:
            await self.kubelets.report(self.pod, {"conditions": conditions})

    async def _mount(self) -> None:
        """Returns once every volume is there."""
        if not self._wants():
            self.kubelets.mounted(self.pod)
            return
        complaint = self._spawn(self._complain())
        pause = 0.5
        while wants := self._wants():
            at_once = [want for want in wants if want.now]
            for want in at_once:
                if want.component != "kubelet":
                    continue  # the attach-detach controller tells it itself
                self.warn(want.reason, want.words, want.component)
            await self.pause(pause if at_once else 10.0)
            pause = min(pause * 2, 122.0)
        complaint.cancel()
        self.kubelets.mounted(self.pod)

    def _wants(self) -> list[volumes.Want]:
        return volumes.lacking(self.pod, self.kubelets.find, self.kubelets.attachments)

    async def _complain(self) -> None:
        """Says what the volumes lack, each time the kubelet has waited for them in vain."""
        while True:
            await self._rest(MOUNT_WAIT_SECONDS, least=0.3)
            if wants := self._wants():
                self.warn("FailedMount", volumes.long_wait(wants))

    async def _make_sandbox(self) -> None:
        await self.context.clock.sleep(SANDBOX_SECONDS)
        told, pause = "", 15.0
        await self._network()
        while trouble := self._sandbox_trouble():
            if trouble != told:  # a real kubelet repeats it and the event only counts up
                told = trouble
                self.warn("FailedCreatePodSandBox", trouble)
            await asyncio.gather(self.pause(pause), asyncio.sleep(0.05))
        self.sandbox = True
        host = self.pod["spec"].get("hostNetwork")
        self.address = self.kubelets.address_of(self.node) if host else self.kubelets.new_address(self.pod)

    async def _network(self) -> None:
        """Returns once the node has a network, if the pod is to have an address of its own."""
        told = False
        while self.node in self.context.machines.unplugged and not self.pod["spec"].get("hostNetwork"):
            if not told:
                self.warn("NetworkNotReady", f"network is not ready: {network_plugins.MESSAGE}")
            told = True
            await asyncio.gather(self.pause(5.0), asyncio.sleep(0.05))

    def _sandbox_trouble(self) -> str:
        """Why no sandbox can be made on that node right now; empty when one can."""
        fault = self.context.world.node_faults.get(self.node)
        head = "Failed to create pod sandbox: rpc error: code = Unknown desc = "
        if fault == "runtime":
            return (
                head
                + "failed to create containerd task: failed to create shim task: container.Runtime.Name must be set"
            )
        if self.pod["spec"].get("hostNetwork"):
            return ""
        pods = self.context.pods.items.values()
        ovn, cilium = ready_nodes_of(pods, "app", "kube-ovn-cni"), ready_nodes_of(pods, "k8s-app", "cilium")
        head += f'failed to setup network for sandbox "{digest(self.uid)}": plugin type='
        if fault == "network" or (ovn is not None and self.node not in ovn):
            return head + (
                '"kube-ovn" failed (add): RPC failed; request ip return 502 dial unix '
                "/run/openvswitch/kube-ovn-daemon.sock: connect: no such file or directory"
            )
        held = (self.pod["metadata"].get("annotations") or {}).get("ovn.kubernetes.io/allocated") == "true"
        if ovn is not None and not held and not ready_nodes_of(pods, "app", "kube-ovn-controller"):
            # nobody hands out addresses
            return head + '"kube-ovn" failed (add): RPC failed; request ip return 500 no address allocated to pod'
        if cilium is not None and self.node not in cilium:
            return head + (
                '"cilium-cni" failed (add): unable to connect to Cilium agent: dial unix '
                "/var/run/cilium/cilium.sock: connect: no such file or directory"
            )
        return ""

    async def _initialize(self) -> bool:
        """Whether every init container succeeded; sidecars have started by then."""
        for container in self.pod["spec"].get("initContainers") or ():
            if pod_status.is_sidecar(container):
                self._sidecars.append(self._spawn(self._keep(container)))
                while not self.statuses.get(container["name"], {}).get("started"):
                    await self.pause(1.0)
                continue
            await self._keep(container, policy=_init_policy(self.pod))
            ended = self.statuses[container["name"]]["state"].get("terminated", {})
            if ended.get("exitCode") != 0:
                await self.report()
                return False
        return True

    def _prepares(self, name: str) -> bool:
        """Whether it is an init container that others wait for."""
        inits = self.pod["spec"].get("initContainers") or ()
        return any(entry["name"] == name and not pod_status.is_sidecar(entry) for entry in inits)

    # -- one container ---------------------------------------------------------------------------

    async def _keep(self, container: Object, *, policy: str = "") -> None:
        """One container's processes, restarted as the policy says."""
        name = container["name"]
        policy = policy or container.get("restartPolicy") or self.pod["spec"].get("restartPolicy", "Always")
        known = name in self.restarts
        restarts = self.restarts.get(name, -1) + 1
        last: Object = self._last(name) if known else {}
        pause = 0.0
        while True:
            await self._prepare(container, restarts, last)
            self.restarts[name] = restarts
            began, at = self.context.stamp(), self.context.clock.now()
            identity = "containerd://" + digest(f"{self.uid}/{name}/{restarts}")
            await self.context.clock.sleep(START_SECONDS)
            self.tell("Created", f"Created container: {name}")
            self.tell("Started", f"Started container {name}")
            log_key = (*self.key, name)
            self.kubelets.logs.turn(log_key)
            self.statuses[name] = pod_status.running(container, began, restarts, last, identity)
            result, reason = await self._process(container)
            code, why = (result.code, result.reason) if isinstance(result, Ended) else (0, "")
            if reason:
                code, why = (0 if heeds_signals(container) else 137), ""
            message = self._last_words(container, code)
            ended = pod_status.ending(code, began, self.context.stamp(), identity, reason=why, message=message)
            if (policy == "Never" or (policy == "OnFailure" and code == 0)) and reason != "restart":
                self.statuses[name] = pod_status.terminated(container, ended, restarts, last)
                if code == 0 and self._prepares(name):
                    self._spawn(self.report())  # the next one need not wait for it, and both may go into one write
                else:
                    await self.report()
                return
            last = {"terminated": ended}
            if pause and self.context.clock.now() - at > BACK_OFF_FORGOTTEN:
                pause = 0.0
            await self._back_off(container, restarts, ended, last, pause)
            restarts, pause = restarts + 1, min(max(pause * 2, BACK_OFF_FIRST), BACK_OFF_MOST)

    def _last(self, name: str) -> Object:
        """How a container ended that was cut off with its machine."""
        status = self.pod.get("status", {})
        held = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
        for entry in held:
            if entry["name"] == name and "running" in entry.get("state", {}):
                began = entry["state"]["running"].get("startedAt", self.context.stamp())
                now, identity = self.context.stamp(), entry.get("containerID", "")
                return {"terminated": pod_status.ending(255, began, now, identity, reason="Unknown")}
            if entry["name"] == name:
                return dict(entry.get("lastState") or {})
        return {}

    async def _back_off(self, container: Object, restarts: int, ended: Object, last: Object, pause: float) -> None:
        name = container["name"]
        whole = f"{self.key[1]}_{self.key[0]}({self.uid})"
        if not pause:
            self.statuses[name] = pod_status.terminated(container, ended, restarts, last) | {"ready": False}
            await self.report()
            await self._rest(1.0)
            return
        said = f"back-off {spoken(pause)} restarting failed container={name} pod={whole}"
        before = {"restartCount": restarts, "lastState": last}
        self.statuses[name] = pod_status.waiting(container, "CrashLoopBackOff", said, before=before)
        await self.report()
        self.warn("BackOff", f"Back-off restarting failed container {name} in pod {whole}")
        await self._rest(pause, least=min(SPIN * pause / BACK_OFF_FIRST * 5, 2.0))

    def _last_words(self, container: Object, code: int) -> str:
        place = self.rooted.get(container["name"])
        path = container.get("terminationMessagePath", "/dev/termination-log")
        words = place.text(path) if place is not None else ""
        if words or not code or container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return str(words)[:4096]
        return self.kubelets.logs.tail((*self.key, container["name"]))

    async def _prepare(self, container: Object, restarts: int, last: Object) -> None:
        """Returns once the image is there and the container's environment can be made."""
        before = {"restartCount": max(restarts - 1, 0) if last else restarts, "lastState": last}
        await self._pull(container, before)
        told = ""
        while trouble := volumes.config_error(self.pod, container, self.kubelets.find):
            self.statuses[container["name"]] = pod_status.waiting(
                container, "CreateContainerConfigError", trouble, before=before
            )
            await self.report()
            if trouble != told:
                told = trouble
                self.warn("Failed", f"Error: {trouble}")
            await self.pause(10.0)

    async def _pull(self, container: Object, before: Object) -> None:
        image, policy = container["image"], images.pull_policy(container)
        present = self.kubelets.has_image(self.node, image)
        if present and policy != "Always":
            self.tell("Pulled", f'Container image "{image}" already present on machine')
            return
        if policy == "Never":
            said = f'Container image "{image}" is not present with pull policy of Never'
            self.statuses[container["name"]] = pod_status.waiting(container, "ErrImageNeverPull", said, before=before)
            await self.report()
            self.warn("ErrImageNeverPull", said)
            while not self.kubelets.has_image(self.node, image):
                await self.pause(10.0)
            return
        pause = BACK_OFF_FIRST
        while True:
            self.tell("Pulling", f'Pulling image "{image}"')
            await self.context.clock.sleep(0.4 if present else PULL_SECONDS)
            failure = images.pull_failure(image, self.context.world.registries)
            if not failure:
                self.kubelets.keep_image(self.node, image)
                took = "412ms (412ms including waiting)" if present else "1.5s (1.5s including waiting)"
                size = images.bytes_of(image)
                self.tell("Pulled", f'Successfully pulled image "{image}" in {took}. Image size: {size} bytes.')
                return
            self.warn("Failed", f'Failed to pull image "{image}": {failure}')
            self.warn("Failed", "Error: ErrImagePull")
            self.statuses[container["name"]] = pod_status.waiting(container, "ErrImagePull", failure, before=before)
            await self.report()
            await self._rest(1.0)
            said = f'Back-off pulling image "{image}": ErrImagePull: {failure}'
            self.tell("BackOff", f'Back-off pulling image "{image}"')
            self.warn("Failed", "Error: ImagePullBackOff")
            self.statuses[container["name"]] = pod_status.waiting(container, "ImagePullBackOff", said, before=before)
            await self.report()
            await self._rest(pause, least=0.1)
            pause = min(pause * 2, BACK_OFF_MOST)

    async def _process(self, container: Object) -> tuple[Ended | Runs, str]:
        """(how the process ended, who ended it: "" itself, "restart" its probes, "stop" the pod's end)."""
        name = container["name"]
        kill: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._kills[name] = kill
        work = asyncio.get_running_loop().create_task(self._serve(container))
        watchers = [asyncio.ensure_future(self._probe(container, kind)) for kind in probes.KINDS if kind in container]
        ends = cast("list[asyncio.Future[Any]]", [work, kill])
        try:
            if self._prepares(name):  # one that ends at once was never seen running
                await asyncio.wait(ends, timeout=SPIN, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self.report()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not kill.done() and isinstance(result := work.result(), Runs):
                return result, await kill
            return (work.result() if work.done() else Runs()), (kill.result() if kill.done() else "")
        finally:
            self._kills.pop(name, None)
            for task in (work, *watchers):
                task.cancel()
            await asyncio.gather(work, *watchers, return_exceptions=True)

    async def _serve(self, container: Object) -> Ended | Runs:
        result = await self.kubelets.run_container(self, container)
        if isinstance(result, Ended) and result.seconds:
            await self.context.clock.sleep(result.seconds)
        return result

    # -- probes ----------------------------------------------------------------------------------

    async def _probe(self, container: Object, kind: str) -> None:
        """Keeps asking; turns ready, started, or has the container restarted."""
        probe, name = container[kind], container["name"]
        while kind != "startupProbe" and not self.statuses.get(name, {}).get("started", True):
            await self.pause(1.0)
        await self.context.clock.sleep(probe.get("initialDelaySeconds", 0))
        tally = probes.Tally(result=None if kind == "startupProbe" else kind == "livenessProbe")
        while True:
            ok, words, may_change = await probes.ask(
                self.kubelets.newest(self.pod), container, probe, lambda words: self._execute(container, words)
            )
            before, tally = tally, tally.after(ok, probe)
            if not ok:
                self.warn("Unhealthy", f"{probes.KINDS[kind]} probe failed: {words}")
            if tally.result is not before.result:
                await self._judged(container, kind, bool(tally.result))
            if kind == "startupProbe" and tally.result:
                return
            if may_change or tally.result is not ok:
                await self._rest(probe.get("periodSeconds", 10), least=0.1 if may_change else SPIN)
            else:
                await self.poked.wait()

    async def _judged(self, container: Object, kind: str, good: bool) -> None:
        name = container["name"]
        entry = self.statuses.get(name, {})
        if "running" not in entry.get("state", {}):
            return
        if kind == "readinessProbe":
            self.statuses[name] = {**entry, "ready": good}
            await self.report()
        elif kind == "startupProbe" and good:
            ready = "readinessProbe" not in container
            self.statuses[name] = {**entry, "started": True, "ready": ready}
            self.poke()
            await self.report()
        elif not good:
            kind = probes.KINDS[kind].lower()
            self.tell("Killing", f"Container {name} failed {kind} probe, will be restarted")
            kill = self._kills.get(name)
            if kill is not None and not kill.done():
                kill.set_result("restart")

    async def _execute(self, container: Object, words: list[str]) -> tuple[int, str]:
        code, out, err = await self.kubelets.execute(self, container, words)
        return code, out + err

    # -- end -------------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """Returns when every container has stopped, by itself or because the grace period is over."""
        spec = self.pod["spec"]
        alive = {name for name, entry in self.statuses.items() if "running" in entry["state"]}
        everything = [*spec["containers"], *(spec.get("initContainers") or ())]
        stopping = [entry for entry in everything if entry["name"] in alive]
        for container in stopping:
            self.tell("Killing", f"Stopping container {container['name']}")
        slow = any(not heeds_signals(container) for container in stopping)
        hook = max((_pre_stop(container) for container in stopping), default=0.0)
        await self.context.clock.sleep(min(grace, max(hook + STOP_SECONDS, grace if slow else 0.0)))
        now = self.context.stamp()
        for container in stopping:
            entry = self.statuses[container["name"]]
            code = 0 if heeds_signals(container) else 137
            began = entry["state"].get("running", {}).get("startedAt", now)
            ended = pod_status.ending(code, began, now, entry.get("containerID", ""))
            self.statuses[container["name"]] = {
                **entry, "ready": False, "started": False, "state": {"terminated": ended}
            }  # fmt: skip


_OWN = {"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"}


def _init_policy(pod: Object) -> str:
    return "Never" if pod["spec"].get("restartPolicy") == "Never" else "OnFailure"


def _pre_stop(container: Object) -> float:
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    if "sleep" in hook:
        return float(hook["sleep"].get("seconds", 0))
    words = (hook.get("exec") or {}).get("command") or []
    numbers = [word for text in words for word in str(text).split() if word.isdigit()]
    return float(numbers[0]) if numbers and any("sleep" in str(word) for word in words) else 0.0


def _ready(status: Object) -> str:
    """What a status says of the pod's Ready."""
    return next((row["status"] for row in status.get("conditions") or () if row["type"] == "Ready"), "")
