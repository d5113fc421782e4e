"""The metric families that the emulated programs of a cluster serve, each a function of the cluster's objects."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .targets import Target, clean, condition_of

if TYPE_CHECKING:
    from ..kubernetes.cluster import Cluster

Object = dict[str, Any]
Value = float | Callable[[float], float]
Row = tuple[dict[str, str], Value, float]
Make = Callable[["Scene", Target], Iterable[Row]]

_FACTORS = {
    "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30,
    "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def quantity(text: object) -> float:
    """ "250m" → 0.25."""
    word = str(text)
    digits = word.rstrip("mkKMGTPEi")
    return float(digits or 0) * _FACTORS.get(word[len(digits) :], 1.0)


def moment(text: str | None) -> float:
    """Seconds since the epoch of a time as Kubernetes writes it."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def dice(text: str) -> float:
    """A number from 0 to 1 that is always the same for the same text."""
    return (zlib.crc32(text.encode()) % 10_000) / 10_000


def wave(text: str, middle: float, swing: float = 0.15, period: float = 900.0) -> Callable[[float], float]:
    """A gauge that swings around a middle."""
    phase = dice(text) * math.tau
    return lambda at: middle * (1 + swing * math.sin(at / period * math.tau + phase))


def growing(text: str, pace: float, born: float, swing: float = 0.3, period: float = 900.0) -> Callable[[float], float]:
    """A counter whose pace swings around a middle; it never falls."""
    phase, turn = dice(text) * math.tau, math.tau / period
    start = swing / turn * math.cos(phase + born * turn)
    return lambda at: max(0.0, pace * (at - born - swing / turn * math.cos(at * turn + phase) + start))


class Scene:
    """The cluster's objects at one moment, read once."""

    def __init__(self, cluster: Cluster, now: float) -> None:
        self.cluster, self.now = cluster, now

    def each(self, bucket: str) -> list[Object]:
        """The objects of one resource."""
        return list(self.cluster.each(bucket))

    @cached_property
    def pods(self) -> list[Object]:
        """Every pod."""
        return self.each("/pods")

    @cached_property
    def nodes(self) -> list[Object]:
        """Every node."""
        return self.each("/nodes")

    def node(self, name: str) -> Object:
        """A node by its name."""
        return next((node for node in self.nodes if node["metadata"]["name"] == name), {"metadata": {"name": name}})

    def on(self, node: str) -> list[Object]:
        """The pods that run on a node."""
        return [
            pod
            for pod in self.pods
            if pod["spec"].get("nodeName") == node and (pod.get("status") or {}).get("phase") == "Running"
        ]


def born(item: Object) -> float:
    """When an object was made."""
    return moment(item["metadata"].get("creationTimestamp"))


class _Families:
    """Families by what serves them and under which path."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], dict[str, Make]] = {}

    def of(self, kind: str, path: str) -> dict[str, Make]:
        """The families of a program; of one that is not known, those of any program."""
        if not kind:
            return {}
        own = self.known.get((kind, path))
        if kind == "kubelet" and path != "/metrics":
            return own or {}
        more = {**self.known[("", "/metrics")], **(own or {})}
        if kind in CONTROLLERS or kind.endswith(("-controller", "-manager", "-operator", "operator")):
            more |= self.known[("controller", "/metrics")]
        return more

    def add(self, name: str, *kinds: str, path: str = "/metrics") -> Callable[[Make], Make]:
        """A function that makes the rows of a family."""

        def keep(make: Make) -> Make:
            for kind in kinds:
                self.known.setdefault((kind, path), {})[name] = make
            return make

        return keep


FAMILIES = _Families()
add = FAMILIES.add
CONTROLLERS = {"cluster-api-provider-proxmox", "cluster-api-controller", "kamaji", "helm-controller", "manager"}


# -- any program -----------------------------------------------------------------------------------


@add("process_start_time_seconds", "")
def _started(scene: Scene, target: Target) -> Iterator[Row]:
    yield {}, _start_of(scene, target), 0.0


@add("process_resident_memory_bytes", "")
def _resident(scene: Scene, target: Target) -> Iterator[Row]:
    yield {}, wave(target.url, 40e6 + 80e6 * dice(target.url), 0.05), _start_of(scene, target)


@add("process_cpu_seconds_total", "")
def _process_cpu(scene: Scene, target: Target) -> Iterator[Row]:
    begun = _start_of(scene, target)
    yield {}, growing(target.url, 0.01 + 0.03 * dice(target.url), begun), begun


@add("go_goroutines", "")
def _goroutines(scene: Scene, target: Target) -> Iterator[Row]:
    yield {}, float(30 + int(dice(target.url) * 200)), _start_of(scene, target)


@add("go_info", "")
def _go(scene: Scene, target: Target) -> Iterator[Row]:
    yield {"version": "go1.25.1"}, 1.0, _start_of(scene, target)


def _start_of(scene: Scene, target: Target) -> float:
    if target.pod is not None:
        for row in (target.pod.get("status") or {}).get("containerStatuses") or ():
            if running := (row.get("state") or {}).get("running"):
                return moment(running.get("startedAt"))
        return born(target.pod)
    return born(scene.node(target.node)) if target.node else 0.0


_RECONCILED = {
    "cluster-api-provider-proxmox": ("proxmoxcluster", "proxmoxmachine", "proxmoxmachinetemplate"),
    "cluster-api-controller": ("cluster", "machine", "machineset", "machinedeployment"),
    "helm-controller": ("helmrelease",),
    "cozystack-operator": ("package", "packagesource"),
}


@add("controller_runtime_reconcile_errors_total", "controller")
def _errors(scene: Scene, target: Target) -> Iterator[Row]:
    begun = _start_of(scene, target)
    for name in _RECONCILED.get(target.kind, ("controller",)):
        yield {"controller": name}, 0.0, begun


@add("controller_runtime_reconcile_total", "controller")
def _reconciled(scene: Scene, target: Target) -> Iterator[Row]:
    begun = _start_of(scene, target)
    for name in _RECONCILED.get(target.kind, ("controller",)):
        pace = growing(f"{target.url}{name}", 0.05, begun)
        yield {"controller": name, "result": "success"}, lambda at, pace=pace: float(int(pace(at))), begun  # type: ignore[misc]
        for result in ("error", "requeue", "requeue_after"):
            yield {"controller": name, "result": result}, 0.0, begun


@add("workqueue_depth", "controller")
def _depth(scene: Scene, target: Target) -> Iterator[Row]:
    for name in _RECONCILED.get(target.kind, ("controller",)):
        yield {"name": name, "controller": name}, 0.0, _start_of(scene, target)


# -- node exporter ---------------------------------------------------------------------------------


def _load(scene: Scene, node: str) -> tuple[float, float, float]:
    """Processors, those in use, and bytes in use of a node, from what its pods ask for."""
    status = scene.node(node).get("status") or {}
    cpus = quantity((status.get("capacity") or {}).get("cpu", 4))
    memory = quantity((status.get("capacity") or {}).get("memory", "8Gi"))
    asked_cpu = asked_memory = 0.0
    for pod in scene.on(node):
        for container in pod["spec"]["containers"]:
            asked = (container.get("resources") or {}).get("requests") or {}
            asked_cpu += quantity(asked.get("cpu", 0))
            asked_memory += quantity(asked.get("memory", 0))
    return cpus, min(cpus * 0.95, 0.15 + 0.4 * asked_cpu), min(memory * 0.95, 0.8e9 + 0.7 * asked_memory)


def _node_rows(name: str) -> Callable[[Callable[[Scene, str, float], Iterable[tuple[dict[str, str], Value]]]], object]:
    """A family of the node exporter from a function of (scene, node, boot time)."""

    def keep(work: Callable[[Scene, str, float], Iterable[tuple[dict[str, str], Value]]]) -> object:
        def make(scene: Scene, target: Target) -> Iterator[Row]:
            boot = born(scene.node(target.node))
            for labels, value in work(scene, target.node, boot):
                yield labels, value, boot

        add(name, "node-exporter")(make)
        return work

    return keep


_MODES = {"user": 0.55, "system": 0.3, "iowait": 0.05, "softirq": 0.05, "nice": 0.0, "irq": 0.0, "steal": 0.05}


@_node_rows("node_cpu_seconds_total")
def _cpu(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    cpus, used, _ = _load(scene, node)
    for number in range(int(cpus)):
        share = used / cpus
        busy = {m: growing(f"{node}{number}{m}", share * part, boot) for m, part in _MODES.items()}
        for mode, counter in busy.items():
            yield {"cpu": str(number), "mode": mode}, counter

        def idle(at: float, counters: Mapping[str, Callable[[float], float]] = busy) -> float:
            return max(0.0, at - boot - sum(counter(at) for counter in counters.values()))

        yield {"cpu": str(number), "mode": "idle"}, idle


def _memory(name: str, work: Callable[[float, float], float]) -> None:
    def make(scene: Scene, target: Target) -> Iterator[Row]:
        total = quantity(((scene.node(target.node).get("status") or {}).get("capacity") or {}).get("memory", "8Gi"))
        used = wave(target.node, _load(scene, target.node)[2], 0.03)
        still = work(total, 0.0) == work(total, 1.0)
        boot = born(scene.node(target.node))
        yield {}, (work(total, 0.0) if still else lambda at: work(total, used(at))), boot

    add(name, "node-exporter")(make)


_memory("node_memory_MemTotal_bytes", lambda total, used: total)
_memory("node_memory_MemAvailable_bytes", lambda total, used: total - used)
_memory("node_memory_MemFree_bytes", lambda total, used: max(0.0, (total - used) * 0.6))
_memory("node_memory_Cached_bytes", lambda total, used: (total - used) * 0.3)
_memory("node_memory_Buffers_bytes", lambda total, used: (total - used) * 0.05)
_memory("node_memory_SwapTotal_bytes", lambda total, used: 0.0)


def _disk(scene: Scene, node: str) -> tuple[float, float]:
    size = quantity(((scene.node(node).get("status") or {}).get("capacity") or {}).get("ephemeral-storage", "50Gi"))
    return size, size * (0.2 + 0.15 * dice(node))


_MOUNT = {"device": "/dev/vda6", "fstype": "xfs", "mountpoint": "/var"}


@_node_rows("node_filesystem_size_bytes")
def _filesystem_size(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield dict(_MOUNT), _disk(scene, node)[0]


@_node_rows("node_filesystem_avail_bytes")
def _filesystem_free(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    size, used = _disk(scene, node)
    yield dict(_MOUNT), size - used


FAMILIES.known[("node-exporter", "/metrics")]["node_filesystem_free_bytes"] = FAMILIES.known[
    ("node-exporter", "/metrics")
]["node_filesystem_avail_bytes"]


@_node_rows("node_load1")
def _load1(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {}, wave(node, _load(scene, node)[1] * 1.1, 0.3, 300.0)


@_node_rows("node_load5")
def _load5(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {}, wave(node, _load(scene, node)[1] * 1.1, 0.2, 300.0)


@_node_rows("node_boot_time_seconds")
def _boot(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {}, boot


@_node_rows("node_time_seconds")
def _time(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {}, lambda at: at


@_node_rows("node_uname_info")
def _uname(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    release = ((scene.node(node).get("status") or {}).get("nodeInfo") or {}).get("kernelVersion", "")
    yield {"nodename": node, "release": release, "sysname": "Linux", "machine": "x86_64", "domainname": "(none)"}, 1.0


@_node_rows("node_network_receive_bytes_total")
def _received(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {"device": "eth0"}, growing(f"{node}rx", 2e5 + 8e5 * dice(node), boot)


@_node_rows("node_network_transmit_bytes_total")
def _sent(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {"device": "eth0"}, growing(f"{node}tx", 2e5 + 8e5 * dice(node + "t"), boot)


@_node_rows("node_disk_read_bytes_total")
def _read(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {"device": "vda"}, growing(f"{node}r", 1e5, boot)


@_node_rows("node_disk_written_bytes_total")
def _written(scene: Scene, node: str, boot: float) -> Iterator[tuple[dict[str, str], Value]]:
    yield {"device": "vda"}, growing(f"{node}w", 6e5, boot)


# -- kubelet and cAdvisor --------------------------------------------------------------------------


def _containers(name: str, work: Callable[[str, Object, Object, float], Value]) -> None:
    """A family of cAdvisor from a function of (what tells it from others, pod, container, start)."""

    def make(scene: Scene, target: Target) -> Iterator[Row]:
        for pod in scene.on(target.node):
            meta = pod["metadata"]
            begun = moment((pod.get("status") or {}).get("startTime")) or born(pod)
            for container in pod["spec"]["containers"]:
                labels = {
                    "namespace": meta["namespace"], "pod": meta["name"], "container": container["name"],
                    "image": container["image"],
                }  # fmt: skip
                yield (
                    labels,
                    work(f"{meta['namespace']}/{meta['name']}/{container['name']}", pod, container, begun),
                    begun,
                )

    add(name, "kubelet", path="/metrics/cadvisor")(make)


def _asked(container: Object, kind: str, name: str) -> float:
    return quantity(((container.get("resources") or {}).get(kind) or {}).get(name, 0))


def _used_memory(text: str, container: Object) -> float:
    asked = _asked(container, "requests", "memory") or 32e6
    return asked * (0.5 + 0.4 * dice(text))


_containers(
    "container_cpu_usage_seconds_total",
    lambda text, pod, c, begun: growing(text, 0.4 * (_asked(c, "requests", "cpu") or 0.005), begun),
)
_containers("container_memory_working_set_bytes", lambda text, pod, c, begun: wave(text, _used_memory(text, c), 0.05))
_containers("container_memory_rss", lambda text, pod, c, begun: wave(text, _used_memory(text, c) * 0.9, 0.05))
_containers("container_memory_usage_bytes", lambda text, pod, c, begun: wave(text, _used_memory(text, c) * 1.1, 0.05))
_containers("container_spec_memory_limit_bytes", lambda text, pod, c, begun: _asked(c, "limits", "memory"))
_containers("container_start_time_seconds", lambda text, pod, c, begun: begun)
_containers("container_cpu_cfs_throttled_periods_total", lambda text, pod, c, begun: 0.0)
_containers("container_fs_writes_bytes_total", lambda text, pod, c, begun: growing(text + "w", 2e3 * dice(text), begun))


def _traffic(name: str, way: str) -> None:
    def make(scene: Scene, target: Target) -> Iterator[Row]:
        for pod in scene.on(target.node):
            meta = pod["metadata"]
            begun = moment((pod.get("status") or {}).get("startTime")) or born(pod)
            if not pod["spec"].get("hostNetwork"):
                labels = {"namespace": meta["namespace"], "pod": meta["name"], "interface": "eth0"}
                yield labels, growing(f"{meta['name']}{way}", 500 + 20_000 * dice(meta["name"] + way), begun), begun

    add(name, "kubelet", path="/metrics/cadvisor")(make)


_traffic("container_network_receive_bytes_total", "rx")
_traffic("container_network_transmit_bytes_total", "tx")


def _volumes(name: str, work: Callable[[str, float], float]) -> None:
    def make(scene: Scene, target: Target) -> Iterator[Row]:
        claims = {(c["metadata"]["namespace"], c["metadata"]["name"]): c for c in scene.each("/persistentvolumeclaims")}
        for pod in scene.on(target.node):
            space = pod["metadata"]["namespace"]
            for volume in pod["spec"].get("volumes") or ():
                claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
                held = claims.get((space, claim or ""))
                if claim and held is not None:
                    size = quantity(((held.get("status") or {}).get("capacity") or {}).get("storage", 0))
                    if size:
                        labels = {"namespace": space, "persistentvolumeclaim": claim}
                        yield labels, work(f"{space}/{claim}", size), born(held)

    add(name, "kubelet")(make)


def _filled(text: str, size: float) -> float:
    return size * (0.1 + 0.3 * dice(text))


_volumes("kubelet_volume_stats_capacity_bytes", lambda text, size: size * 0.97)
_volumes("kubelet_volume_stats_used_bytes", _filled)
_volumes("kubelet_volume_stats_available_bytes", lambda text, size: size * 0.97 - _filled(text, size))
_volumes("kubelet_volume_stats_inodes", lambda text, size: float(int(size / 16384)))
_volumes("kubelet_volume_stats_inodes_used", lambda text, size: float(int(size / 16384 * 0.02)))


@add("kubelet_running_pods", "kubelet")
def _running_pods(scene: Scene, target: Target) -> Iterator[Row]:
    yield {}, float(len(scene.on(target.node))), 0.0


@add("kubelet_running_containers", "kubelet")
def _running_containers(scene: Scene, target: Target) -> Iterator[Row]:
    yield {"container_state": "running"}, float(sum(len(p["spec"]["containers"]) for p in scene.on(target.node))), 0.0


@add("kubelet_node_name", "kubelet")
def _node_name(scene: Scene, target: Target) -> Iterator[Row]:
    yield {"node": target.node}, 1.0, 0.0


# -- API server, etcd, CoreDNS, Cilium --------------------------------------------------------------


@add("apiserver_request_total", "kube-apiserver")
def _requests(scene: Scene, target: Target) -> Iterator[Row]:
    begun = _start_of(scene, target)
    for verb, resource, code, pace in (
        ("GET", "pods", "200", 6.0), ("LIST", "pods", "200", 0.8), ("WATCH", "pods", "200", 0.2),
        ("PATCH", "pods", "200", 0.5), ("PUT", "leases", "200", 4.0), ("GET", "configmaps", "200", 1.0),
        ("GET", "secrets", "404", 0.02), ("POST", "events", "201", 0.3),
    ):  # fmt: skip
        labels = {"verb": verb, "resource": resource, "code": code, "version": "v1", "component": "apiserver"}
        yield labels, growing(f"{target.url}{verb}{resource}", pace, begun), begun


_BUCKETS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0)


@add("apiserver_request_duration_seconds_bucket", "kube-apiserver")
def _durations(scene: Scene, target: Target) -> Iterator[Row]:
    begun = _start_of(scene, target)
    for verb, pace in (("GET", 7.0), ("LIST", 0.8), ("PATCH", 0.5), ("PUT", 4.0), ("POST", 0.3)):
        counter = growing(f"{target.url}{verb}d", pace, begun)
        for bound in (*_BUCKETS, math.inf):
            share = 1.0 if bound == math.inf else 1 - math.exp(-bound / 0.012)
            text = "+Inf" if bound == math.inf else f"{bound:g}"
            yield {"verb": verb, "le": text}, lambda at, s=share, c=counter: s * c(at), begun  # type: ignore[misc]


@add("etcd_server_has_leader", "etcd")
def _leader(scene: Scene, target: Target) -> Iterator[Row]:
    yield {}, 1.0, _start_of(scene, target)


@add("etcd_server_is_leader", "etcd")
def _leads(scene: Scene, target: Target) -> Iterator[Row]:
    name = target.pod["metadata"]["name"] if target.pod else ""
    yield {}, float(name.endswith("-0")), _start_of(scene, target)


@add("etcd_mvcc_db_total_size_in_bytes", "etcd")
def _etcd_size(scene: Scene, target: Target) -> Iterator[Row]:
    yield {}, wave(target.url, 180e6, 0.02), _start_of(scene, target)


@add("coredns_dns_requests_total", "coredns")
def _dns(scene: Scene, target: Target) -> Iterator[Row]:
    begun = _start_of(scene, target)
    for kind in ("A", "AAAA"):
        labels = {"server": "dns://:53", "zone": ".", "proto": "udp", "type": kind}
        yield labels, growing(target.url + kind, 12.0, begun), begun


@add("cilium_endpoint_state", "cilium")
def _cilium(scene: Scene, target: Target) -> Iterator[Row]:
    count = sum(not pod["spec"].get("hostNetwork") for pod in scene.on(target.node))
    yield {"endpoint_state": "ready"}, float(count), _start_of(scene, target)


# -- kube-state-metrics ----------------------------------------------------------------------------

Told = Iterator[tuple[dict[str, str], Value]]


def _state(name: str, bucket: str) -> Callable[[Callable[[Object], Told]], Callable[[Object], Told]]:
    """A family of kube-state-metrics from a function of one object."""

    def keep(work: Callable[[Object], Told]) -> Callable[[Object], Told]:
        def make(scene: Scene, target: Target) -> Iterator[Row]:
            known = {"/pods": "pods", "/nodes": "nodes"}.get(bucket)
            for item in getattr(scene, known) if known else scene.each(bucket):
                since = born(item)
                for labels, value in work(item):
                    yield labels, value, since

        add(name, "kube-state-metrics")(make)
        return work

    return keep


def _of(item: Object, kind: str) -> dict[str, str]:
    meta = item["metadata"]
    return {"namespace": meta["namespace"], kind: meta["name"]} if "namespace" in meta else {kind: meta["name"]}


@_state("kube_node_info", "/nodes")
def _node_info(node: Object) -> Told:
    info = (node.get("status") or {}).get("nodeInfo") or {}
    rows = (node.get("status") or {}).get("addresses") or ()
    yield {
        "node": node["metadata"]["name"], "kernel_version": info.get("kernelVersion", ""),
        "os_image": info.get("osImage", ""), "container_runtime_version": info.get("containerRuntimeVersion", ""),
        "kubelet_version": info.get("kubeletVersion", ""), "system_uuid": info.get("systemUUID", ""),
        "provider_id": (node.get("spec") or {}).get("providerID", ""),
        "internal_ip": next((row["address"] for row in rows if row["type"] == "InternalIP"), ""),
    }, 1.0  # fmt: skip


@_state("kube_node_status_condition", "/nodes")
def _node_condition(node: Object) -> Told:
    for row in (node.get("status") or {}).get("conditions") or ():
        changed = moment(row.get("lastTransitionTime"))
        for status in ("true", "false", "unknown"):
            holds = row["status"].lower() == status
            value: Value = float(holds)
            if row["type"] == "Ready" and changed:
                # before the change it was the other way round
                before = "true" if row["status"] != "True" else "unknown"

                def value(
                    at: float, holds: bool = holds, was: bool = status == before, since: float = changed
                ) -> float:
                    return float(holds if at >= since else was)

            yield {"node": node["metadata"]["name"], "condition": row["type"], "status": status}, value


@_state("kube_node_spec_unschedulable", "/nodes")
def _unschedulable(node: Object) -> Told:
    yield _of(node, "node"), float(bool((node.get("spec") or {}).get("unschedulable")))


@_state("kube_node_spec_taint", "/nodes")
def _taints(node: Object) -> Told:
    for row in (node.get("spec") or {}).get("taints") or ():
        labels = {"key": row["key"], "value": row.get("value", ""), "effect": row["effect"]}
        yield {**_of(node, "node"), **labels}, 1.0


@_state("kube_node_role", "/nodes")
def _roles(node: Object) -> Told:
    for label in node["metadata"].get("labels") or {}:
        if label.startswith("node-role.kubernetes.io/"):
            yield {**_of(node, "node"), "role": label.partition("/")[2]}, 1.0


@_state("kube_node_labels", "/nodes")
def _node_labels(node: Object) -> Told:
    labels = node["metadata"].get("labels") or {}
    yield {**_of(node, "node"), **{f"label_{clean(k)}": v for k, v in labels.items()}}, 1.0


@_state("kube_node_created", "/nodes")
def _node_created(node: Object) -> Told:
    yield _of(node, "node"), born(node)


def _resources(item: Object, node: str, rows: Mapping[str, Any]) -> Told:
    for name, text in rows.items():
        unit = "core" if name == "cpu" else "integer" if name == "pods" else "byte"
        yield {"node": node, "resource": name.replace("-", "_"), "unit": unit}, quantity(text)


@_state("kube_node_status_capacity", "/nodes")
def _capacity(node: Object) -> Told:
    yield from _resources(node, node["metadata"]["name"], (node.get("status") or {}).get("capacity") or {})


@_state("kube_node_status_allocatable", "/nodes")
def _allocatable(node: Object) -> Told:
    yield from _resources(node, node["metadata"]["name"], (node.get("status") or {}).get("allocatable") or {})


def _pod(pod: Object) -> dict[str, str]:
    return {**_of(pod, "pod"), "uid": pod["metadata"].get("uid", "")}


@_state("kube_pod_info", "/pods")
def _pod_info(pod: Object) -> Told:
    owner: Object = next(iter(pod["metadata"].get("ownerReferences") or ()), {})
    status = pod.get("status") or {}
    yield {
        **_pod(pod), "node": pod["spec"].get("nodeName", ""), "host_ip": status.get("hostIP", ""),
        "pod_ip": status.get("podIP", ""), "created_by_kind": owner.get("kind", ""),
        "created_by_name": owner.get("name", ""), "host_network": str(bool(pod["spec"].get("hostNetwork"))).lower(),
        "priority_class": pod["spec"].get("priorityClassName", ""),
    }, 1.0  # fmt: skip


@_state("kube_pod_status_phase", "/pods")
def _pod_phase(pod: Object) -> Told:
    phase = (pod.get("status") or {}).get("phase", "Unknown")
    for name in ("Pending", "Succeeded", "Failed", "Unknown", "Running"):
        yield {**_pod(pod), "phase": name}, float(name == phase)


@_state("kube_pod_status_ready", "/pods")
def _pod_ready(pod: Object) -> Told:
    ready = condition_of(pod, "Ready")[0]
    for name in ("true", "false", "unknown"):
        yield {**_pod(pod), "condition": name}, float(name == str(ready).lower())


@_state("kube_pod_status_reason", "/pods")
def _pod_reason(pod: Object) -> Told:
    reason = (pod.get("status") or {}).get("reason", "")
    for name in ("Evicted", "NodeLost", "NodeAffinity", "Shutdown", "UnexpectedAdmissionError"):
        yield {**_pod(pod), "reason": name}, float(name == reason)


@_state("kube_pod_owner", "/pods")
def _pod_owner(pod: Object) -> Told:
    for row in pod["metadata"].get("ownerReferences") or ():
        owner = {"owner_kind": row["kind"], "owner_name": row["name"]}
        yield {**_of(pod, "pod"), **owner, "owner_is_controller": str(bool(row.get("controller"))).lower()}, 1.0


@_state("kube_pod_created", "/pods")
def _pod_created(pod: Object) -> Told:
    yield _pod(pod), born(pod)


@_state("kube_pod_labels", "/pods")
def _pod_labels(pod: Object) -> Told:
    labels = pod["metadata"].get("labels") or {}
    yield {**_pod(pod), **{f"label_{clean(k)}": v for k, v in labels.items()}}, 1.0


def _statuses(pod: Object) -> Iterator[tuple[dict[str, str], Object]]:
    for row in (pod.get("status") or {}).get("containerStatuses") or ():
        yield {**_pod(pod), "container": row["name"]}, row


@_state("kube_pod_container_info", "/pods")
def _container_info(pod: Object) -> Told:
    for labels, row in _statuses(pod):
        yield {**labels, "image": row.get("image", ""), "image_id": row.get("imageID", "")}, 1.0


@_state("kube_pod_container_status_restarts_total", "/pods")
def _restarts(pod: Object) -> Told:
    for labels, row in _statuses(pod):
        count = float(row.get("restartCount") or 0)
        ended = ((row.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        since, begun = moment(ended), born(pod)

        def value(at: float, count: float = count, since: float = since, begun: float = begun) -> float:
            # the restarts before the last one are spread over the life before it
            if not count or at >= since:
                return count
            return float(int((count - 1) * max(0.0, min(1.0, (at - begun) / max(1.0, since - begun)))))

        yield labels, (value if count else 0.0)


@_state("kube_pod_container_status_ready", "/pods")
def _container_ready(pod: Object) -> Told:
    for labels, row in _statuses(pod):
        yield labels, float(bool(row.get("ready")))


@_state("kube_pod_container_status_running", "/pods")
def _container_running(pod: Object) -> Told:
    for labels, row in _statuses(pod):
        yield labels, float("running" in (row.get("state") or {}))


@_state("kube_pod_container_status_waiting_reason", "/pods")
def _waiting(pod: Object) -> Told:
    for labels, row in _statuses(pod):
        if reason := ((row.get("state") or {}).get("waiting") or {}).get("reason"):
            yield {**labels, "reason": reason}, 1.0


@_state("kube_pod_container_status_last_terminated_reason", "/pods")
def _last_end(pod: Object) -> Told:
    for labels, row in _statuses(pod):
        if reason := ((row.get("lastState") or {}).get("terminated") or {}).get("reason"):
            yield {**labels, "reason": reason}, 1.0


def _container_resources(kind: str) -> Callable[[Object], Told]:
    def work(pod: Object) -> Told:
        for container in pod["spec"]["containers"]:
            for name, text in ((container.get("resources") or {}).get(kind) or {}).items():
                unit = "core" if name == "cpu" else "byte"
                labels = {"container": container["name"], "node": pod["spec"].get("nodeName", "")}
                yield {**_pod(pod), **labels, "resource": name.replace("-", "_"), "unit": unit}, quantity(text)

    return work


_state("kube_pod_container_resource_requests", "/pods")(_container_resources("requests"))
_state("kube_pod_container_resource_limits", "/pods")(_container_resources("limits"))


def _numbers(bucket: str, kind: str, names: Mapping[str, tuple[str, str]]) -> None:
    """Families that show one number of an object each: name → (spec, status or metadata; field)."""
    for name, (part, key) in names.items():

        def work(item: Object, part: str = part, key: str = key) -> Told:
            yield _of(item, kind), float((item.get(part) or {}).get(key) or 0)

        _state(name, bucket)(work)


_numbers("apps/deployments", "deployment", {
    "kube_deployment_spec_replicas": ("spec", "replicas"),
    "kube_deployment_status_replicas": ("status", "replicas"),
    "kube_deployment_status_replicas_available": ("status", "availableReplicas"),
    "kube_deployment_status_replicas_ready": ("status", "readyReplicas"),
    "kube_deployment_status_replicas_unavailable": ("status", "unavailableReplicas"),
    "kube_deployment_status_replicas_updated": ("status", "updatedReplicas"),
    "kube_deployment_status_observed_generation": ("status", "observedGeneration"),
    "kube_deployment_metadata_generation": ("metadata", "generation"),
})  # fmt: skip
_numbers("apps/statefulsets", "statefulset", {
    "kube_statefulset_replicas": ("spec", "replicas"),
    "kube_statefulset_status_replicas": ("status", "replicas"),
    "kube_statefulset_status_replicas_ready": ("status", "readyReplicas"),
    "kube_statefulset_status_replicas_available": ("status", "availableReplicas"),
    "kube_statefulset_status_replicas_updated": ("status", "updatedReplicas"),
})  # fmt: skip
_numbers("apps/daemonsets", "daemonset", {
    "kube_daemonset_status_desired_number_scheduled": ("status", "desiredNumberScheduled"),
    "kube_daemonset_status_current_number_scheduled": ("status", "currentNumberScheduled"),
    "kube_daemonset_status_number_ready": ("status", "numberReady"),
    "kube_daemonset_status_number_available": ("status", "numberAvailable"),
    "kube_daemonset_status_number_unavailable": ("status", "numberUnavailable"),
    "kube_daemonset_status_number_misscheduled": ("status", "numberMisscheduled"),
})  # fmt: skip
_numbers("batch/jobs", "job_name", {
    "kube_job_status_active": ("status", "active"),
    "kube_job_status_succeeded": ("status", "succeeded"),
    "kube_job_status_failed": ("status", "failed"),
})  # fmt: skip


@_state("kube_namespace_status_phase", "/namespaces")
def _namespace(item: Object) -> Told:
    phase = (item.get("status") or {}).get("phase", "Active")
    for name in ("Active", "Terminating"):
        yield {"namespace": item["metadata"]["name"], "phase": name}, float(name == phase)


@_state("kube_service_info", "/services")
def _service(item: Object) -> Told:
    yield {**_of(item, "service"), "cluster_ip": item["spec"].get("clusterIP", "")}, 1.0


@_state("kube_persistentvolumeclaim_info", "/persistentvolumeclaims")
def _claim(item: Object) -> Told:
    spec = item["spec"]
    more = {"storageclass": spec.get("storageClassName", ""), "volumename": spec.get("volumeName", "")}
    yield {**_of(item, "persistentvolumeclaim"), **more, "volumemode": spec.get("volumeMode", "Filesystem")}, 1.0


@_state("kube_persistentvolumeclaim_status_phase", "/persistentvolumeclaims")
def _claim_phase(item: Object) -> Told:
    phase = (item.get("status") or {}).get("phase", "Pending")
    for name in ("Pending", "Bound", "Lost"):
        yield {**_of(item, "persistentvolumeclaim"), "phase": name}, float(name == phase)


@_state("kube_persistentvolumeclaim_resource_requests_storage_bytes", "/persistentvolumeclaims")
def _claim_size(item: Object) -> Told:
    asked = ((item["spec"].get("resources") or {}).get("requests") or {}).get("storage", 0)
    yield _of(item, "persistentvolumeclaim"), quantity(asked)


@_state("kube_persistentvolumeclaim_access_mode", "/persistentvolumeclaims")
def _claim_mode(item: Object) -> Told:
    for mode in item["spec"].get("accessModes") or ():
        yield {**_of(item, "persistentvolumeclaim"), "access_mode": mode}, 1.0


@_state("kube_persistentvolume_status_phase", "/persistentvolumes")
def _volume_phase(item: Object) -> Told:
    phase = (item.get("status") or {}).get("phase", "Pending")
    for name in ("Pending", "Available", "Bound", "Released", "Failed"):
        yield {**_of(item, "persistentvolume"), "phase": name}, float(name == phase)


@_state("kube_persistentvolume_capacity_bytes", "/persistentvolumes")
def _volume_size(item: Object) -> Told:
    yield _of(item, "persistentvolume"), quantity((item["spec"].get("capacity") or {}).get("storage", 0))


@_state("kube_persistentvolume_info", "/persistentvolumes")
def _volume(item: Object) -> Told:
    csi, claim = item["spec"].get("csi") or {}, item["spec"].get("claimRef") or {}
    yield {
        **_of(item, "persistentvolume"), "storageclass": item["spec"].get("storageClassName", ""),
        "csi_driver": csi.get("driver", ""), "csi_volume_handle": csi.get("volumeHandle", ""),
        "claim_namespace": claim.get("namespace", ""), "claim_name": claim.get("name", ""),
    }, 1.0  # fmt: skip


@_state("kube_storageclass_info", "storage.k8s.io/storageclasses")
def _class(item: Object) -> Told:
    more = {"provisioner": item.get("provisioner", ""), "reclaim_policy": item.get("reclaimPolicy", "")}
    yield {**_of(item, "storageclass"), **more, "volume_binding_mode": item.get("volumeBindingMode", "")}, 1.0


_FLUX = {
    "HelmRelease": ("helm.toolkit.fluxcd.io/helmreleases", "helm.toolkit.fluxcd.io", "v2"),
    "HelmRepository": ("source.toolkit.fluxcd.io/helmrepositories", "source.toolkit.fluxcd.io", "v1"),
    "OCIRepository": ("source.toolkit.fluxcd.io/ocirepositories", "source.toolkit.fluxcd.io", "v1beta2"),
}


@add("gotk_resource_info", "kube-state-metrics")
def _flux(scene: Scene, target: Target) -> Iterator[Row]:
    for kind, (bucket, group, version) in _FLUX.items():
        for item in scene.each(bucket):
            rows = {row["type"]: row for row in (item.get("status") or {}).get("conditions") or ()}
            ready = rows.get("Ready") or {}
            labels = {
                "name": item["metadata"]["name"], "exported_namespace": item["metadata"]["namespace"],
                "customresource_kind": kind, "customresource_group": group, "customresource_version": version,
                "ready": str(ready.get("status", "")),
            }  # fmt: skip
            if "suspend" in item["spec"]:
                labels["suspended"] = str(item["spec"]["suspend"]).lower()
            history = (item.get("status") or {}).get("history") or [{}]
            if history[0].get("chartName"):
                labels |= {"chart_name": history[0]["chartName"], "revision": history[0].get("chartVersion", "")}
            yield labels, 1.0, moment(ready.get("lastTransitionTime")) or born(item)
