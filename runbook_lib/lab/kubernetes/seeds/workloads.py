"""Nodes, namespaces, workloads with their pods, services and endpoints: a cluster's body, whatever runs in it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import defaults
from ..controllers import daemonsets, deployments, replicasets, revisions, statefulsets
from ..controllers.pods_of import controller_of, is_active
from .components import Part
from .objects import Object, Times, condition, stamp, suffix, thing, uid
from .pods import is_ready, pod, template_spec

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True)
class Machine:
    """One node as the scenario names it. `uuid` is the smbios uuid of its virtual machine."""

    name: str
    address: str
    uuid: str
    role: str = "worker"
    cpus: int = 8
    memory_gib: int = 32
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()


def milli(quantity: str) -> int:
    """A CPU quantity in thousandths of a core."""
    if not quantity:
        return 0
    return int(quantity[:-1]) if quantity.endswith("m") else int(float(quantity) * 1000)


class Body:
    """A cluster under construction: hands out nodes and addresses, collects objects.

    A class because placement remembers what was placed before.
    """

    def __init__(self, machines: Iterable[Machine], times: Times, versions: Mapping[str, str]) -> None:
        self.machines = list(machines)
        self.times = times
        self.versions = versions
        self.objects: list[Object] = []
        self._load: dict[str, int] = {machine.name: 0 for machine in self.machines}
        self._next_pod = 9  # 10.244.0.2–9 belong to Kube-OVN's gateways and joins
        self._service_ips: set[str] = set()

    def add(self, *items: Object) -> None:
        """Takes finished objects."""
        self.objects.extend(items)

    def candidates(self, part: Part) -> list[Machine]:
        """The machines a part may run on."""
        if part.nodes == "control-plane":
            return [machine for machine in self.machines if machine.role == "control-plane"]
        if part.kind == "DaemonSet":  # it tolerates every taint
            return self.machines
        if part.nodes == "any":  # a pod without tolerations keeps off tainted nodes
            return [m for m in self.machines if not any(t.get("effect") in _REPELS for t in m.taints)] or self.machines
        return self.machines

    def workload(self, namespace: str, part: Part, *, labels: Mapping[str, str] | None = None) -> None:
        """Adds one workload with its pods and services."""
        places = self.candidates(part)
        every = part.kind == "DaemonSet"
        owner, pod_owner, pod_labels, items = _workload_objects(namespace, part, self.times, labels or {})
        self.add(*items)
        chosen = places if every else self._least_loaded(part, places)
        for position, machine in enumerate(chosen):
            self._load[machine.name] += milli(part.cpu)
            claims = _claims(namespace, part, position, self.times) if part.volume_gib else []
            self.add(*claims)
            self.add(
                pod(
                    part,
                    _pod_name(part, pod_owner, machine, position),
                    namespace,
                    pod_owner,
                    self.times,
                    node=machine.name,
                    node_ip=machine.address,
                    pod_ip=self._pod_ip(),
                    extra_labels={**pod_labels, **_per_pod_labels(part, position)},
                    claims=[item for item in claims if item["kind"] == "PersistentVolumeClaim"],
                )
            )
        for name, port in part.services:
            self.service(namespace, name, port, part.selector, owner)

    def service(self, namespace: str, name: str, port: int, selector: Mapping[str, str], owner: Object) -> None:
        """Adds a Service; a negative port makes it headless."""
        headless = port < 0
        address = "None" if headless else self._service_ip(namespace, name)
        ports = (
            [_service_port("dns", 53, "UDP"), _service_port("dns-tcp", 53)]
            if port == 53
            else [_service_port("https" if abs(port) == 443 else "http", abs(port))]
        )
        self.add(
            thing(
                "v1",
                "Service",
                name,
                namespace,
                created=self.times.born,
                labels=owner["metadata"].get("labels"),
                spec={
                    "clusterIP": address,
                    "clusterIPs": [address],
                    "internalTrafficPolicy": "Cluster",
                    "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack",
                    "ports": ports,
                    "selector": dict(selector),
                    "sessionAffinity": "None",
                    "type": "ClusterIP",
                },
                status={"loadBalancer": {}},
            )
        )

    def _least_loaded(self, part: Part, places: list[Machine]) -> list[Machine]:
        """One machine per replica, the emptiest first, none twice before each has one."""
        order = sorted(places, key=lambda machine: (self._load[machine.name] / machine.cpus, machine.name))
        return [order[position % len(order)] for position in range(part.replicas)]

    def _pod_ip(self) -> str:
        self._next_pod += 1
        return f"10.244.{self._next_pod // 254}.{self._next_pod % 254 + 1}"

    def _service_ip(self, namespace: str, name: str) -> str:
        if (namespace, name) == ("kube-system", "kube-dns"):
            return "10.96.0.10"
        digest = hashlib.sha256(f"{namespace}/{name}".encode()).digest()
        second = 1 + digest[0] % 250
        third = digest[1]
        while (address := f"10.96.{second}.{third}") in self._service_ips:
            third = (third + 1) % 256
        self._service_ips.add(address)
        return address


_REPELS = {"NoSchedule", "NoExecute"}


def _service_port(name: str, port: int, protocol: str = "TCP") -> Object:
    return {"name": name, "port": port, "protocol": protocol, "targetPort": port}


def _per_pod_labels(part: Part, position: int) -> dict[str, str]:
    if part.kind != "StatefulSet":
        return {}
    return {
        "apps.kubernetes.io/pod-index": str(position),
        "statefulset.kubernetes.io/pod-name": f"{part.name}-{position}",
    }


def _pod_name(part: Part, owner: Object, machine: Machine, position: int) -> str:
    if part.kind == "StatefulSet":
        return f"{part.name}-{position}"
    return f"{owner['metadata']['name']}-{suffix(f'{part.name}/{machine.name}/{position}')}"


def _workload_objects(
    namespace: str, part: Part, times: Times, labels: Mapping[str, str]
) -> tuple[Object, Object, dict[str, str], list[Object]]:
    """(the workload, the owner of its pods, labels its pods get besides, the objects to add)."""
    common: dict[str, Any] = {"created": times.born, "labels": {**part.selector, **labels}, "generation": 1}
    # With every default, as the API server keeps it: revisions hold the template word for word.
    template = {"metadata": {"labels": part.selector}, "spec": defaults.pod_spec(template_spec(part))}
    selector = {"matchLabels": part.selector}
    if part.kind == "Deployment":
        deployment = thing(
            "apps/v1",
            "Deployment",
            part.name,
            namespace,
            **common,
            annotations={deployments.REVISION: "1"},
            spec={
                "replicas": part.replicas,
                "selector": selector,
                "template": template,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {**_ROLLING, **part.rolling}},
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
            },
        )
        replica_set = _completed(deployments.made_set(deployment, (), 1), times.born)
        hashed = {deployments.HASH: replica_set["metadata"]["labels"][deployments.HASH]}
        return deployment, replica_set, hashed, [deployment, replica_set]
    spec: Object = {"selector": selector, "template": template, "revisionHistoryLimit": 10}
    if part.kind == "DaemonSet":
        spec["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
        common["annotations"] = {daemonsets.GENERATION: "1"}
    else:
        spec |= {
            "replicas": part.replicas,
            "serviceName": part.services[0][0] if part.services else part.name,
            "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        }
        if part.volume_gib:
            spec["volumeClaimTemplates"] = [_claim_template(part)]
    item = thing("apps/v1", part.kind, part.name, namespace, **common, spec=spec)
    revision = _completed(revisions.made_revision(item, 1), times.born)
    if part.kind == "DaemonSet":
        hashed = {revisions.LABEL: revisions.hash_of(revision), daemonsets.GENERATION_LABEL: "1"}
    else:  # a set's pods carry the revision's whole name
        hashed = {revisions.LABEL: revision["metadata"]["name"]}
    return item, item, hashed, [item, revision]


_ROLLING = {"maxSurge": "25%", "maxUnavailable": "25%"}


def _completed(item: Object, created: str) -> Object:
    """What a controller would create, as the API server keeps it."""
    metadata = item["metadata"]
    known = uid(item["kind"], metadata["namespace"], metadata["name"])
    generation = {} if item["kind"] == "ControllerRevision" else {"generation": 1}
    return {**item, "metadata": {**metadata, "uid": known, "creationTimestamp": created, **generation}}


def follow(item: Object, objects: Iterable[Object], times: Times) -> list[Object]:
    """The ReplicaSet that an edited Deployment got long ago, when it has none of its template; sizes others.

    It never had a pod: whoever edits a template in a scenario says what became of it.
    """
    sets = [
        entry for entry in objects if entry["kind"] == "ReplicaSet" and _owner_uid(entry) == item["metadata"]["uid"]
    ]
    if item["kind"] != "Deployment" or deployments.new_set(item, sets) is not None:
        return []
    revision = max((deployments.revision_of(entry) for entry in sets), default=0) + 1
    made = _completed(deployments.made_set(item, sets, revision), times.ago(2700))
    made["status"] = {"replicas": 0, "observedGeneration": 1}
    sets.append(made)
    item["metadata"]["annotations"][deployments.REVISION] = str(revision)
    while True:
        sizes = deployments.shrink_old(item, sets, made)
        size = deployments.size_of_new(item, sets, made)
        if not sizes and size == made["spec"]["replicas"]:
            return [made]
        for entry in sets:
            if entry["metadata"]["name"] in sizes:
                entry["spec"]["replicas"] = sizes[entry["metadata"]["name"]]
                entry["metadata"]["generation"] = entry["metadata"].get("generation", 1) + 1
        made["spec"]["replicas"] = deployments.size_of_new(item, sets, made)


def _owner_uid(item: Object) -> str:
    return str((controller_of(item) or {}).get("uid", ""))


def _claim_template(part: Part) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{part.volume_gib}Gi"}},
            "storageClassName": "replicated",
            "volumeMode": "Filesystem",
        },
        "status": {"phase": "Pending"},
    }


def _claims(namespace: str, part: Part, position: int, times: Times) -> list[Object]:
    """A bound claim with its volume on the replicated class."""
    name = f"data-{part.name}-{position}"
    claim = thing("v1", "PersistentVolumeClaim", name, namespace, created=times.born, labels=part.selector)
    volume = f"pvc-{claim['metadata']['uid']}"
    size = {"storage": f"{part.volume_gib}Gi"}
    shared = {"accessModes": ["ReadWriteOnce"], "storageClassName": "replicated", "volumeMode": "Filesystem"}
    driver = "linstor.csi.linbit.com"
    claim["metadata"]["annotations"] = {
        "pv.kubernetes.io/bind-completed": "yes",
        "pv.kubernetes.io/bound-by-controller": "yes",
        "volume.kubernetes.io/storage-provisioner": driver,
    }
    claim["metadata"]["finalizers"] = ["kubernetes.io/pvc-protection"]
    claim["spec"] = {**shared, "resources": {"requests": size}, "volumeName": volume}
    claim["status"] = {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": size}
    persistent = thing(
        "v1",
        "PersistentVolume",
        volume,
        created=times.born,
        annotations={"pv.kubernetes.io/provisioned-by": driver},
        finalizers=("kubernetes.io/pv-protection", f"external-attacher/{driver.replace('.', '-')}"),
        spec={
            **shared,
            "capacity": size,
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": name,
                "namespace": namespace,
                "uid": claim["metadata"]["uid"],
            },
            "csi": {"driver": driver, "volumeHandle": volume, "fsType": "ext4"},
            "persistentVolumeReclaimPolicy": "Delete",
        },
        status={"phase": "Bound", "lastPhaseTransitionTime": times.settled},
    )
    return [claim, persistent]


# --- nodes ---------------------------------------------------------------------------------------


def nodes(machines: Iterable[Machine], times: Times, versions: Mapping[str, str]) -> list[Object]:
    """Node, Lease and CSINode of each machine, as a Talos kubelet reports them."""
    items: list[Object] = []
    for position, machine in enumerate(machines):
        node = _node(machine, position, times, versions)
        items += [node, _lease(machine, node, times), _csi_node(machine, node, times)]
    return items


def _node(machine: Machine, position: int, times: Times, versions: Mapping[str, str]) -> Object:
    control_plane = machine.role == "control-plane"
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": machine.name,
        "kubernetes.io/os": "linux",
        "kube-ovn/role": "master" if control_plane else "worker",
        **machine.labels,
    }
    if control_plane:
        labels[CONTROL_PLANE] = ""
    capacity = {
        "cpu": str(machine.cpus),
        "ephemeral-storage": "50620216Ki",
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
        "memory": f"{machine.memory_gib * 1024 * 1024 - 398_000}Ki",
        "pods": "110",
    }
    allocatable = {
        **capacity,
        "cpu": f"{machine.cpus * 1000 - 50}m",
        "ephemeral-storage": "46383523942",
        "memory": f"{machine.memory_gib * 1024 * 1024 - 398_000 - 720_896}Ki",
    }
    spec: Object = {"podCIDR": f"10.244.{position}.0/24", "podCIDRs": [f"10.244.{position}.0/24"]}
    if machine.taints:
        spec["taints"] = [dict(taint) for taint in machine.taints]
    return thing(
        "v1",
        "Node",
        machine.name,
        created=times.born,
        labels=labels,
        annotations={
            "node.alpha.kubernetes.io/ttl": "0",
            "ovn.kubernetes.io/allocated": "true",
            "ovn.kubernetes.io/chassis": machine.uuid,
            "ovn.kubernetes.io/cidr": "100.64.0.0/16",
            "ovn.kubernetes.io/gateway": "100.64.0.1",
            "ovn.kubernetes.io/ip_address": f"100.64.0.{position + 2}",
            "ovn.kubernetes.io/logical_switch": "join",
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        },
        spec=spec,
        status={
            "addresses": [
                {"address": machine.address, "type": "InternalIP"},
                {"address": machine.name, "type": "Hostname"},
            ],
            "allocatable": allocatable,
            "capacity": capacity,
            "conditions": node_conditions(times),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "images": [],
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": machine.uuid[::-1].replace("-", "")[:8] + "-b007-4000-8000-" + machine.uuid[-12:],
                "containerRuntimeVersion": f"containerd://{versions['containerd']}",
                "kernelVersion": versions["kernel"],
                "kubeProxyVersion": "",
                "kubeletVersion": versions["kubernetes"],
                "machineID": machine.uuid.replace("-", ""),
                "operatingSystem": "linux",
                "osImage": f"Talos ({versions['talos']})",
                "systemUUID": machine.uuid,
            },
            "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": True, "userNamespaces": True}}],
        },
    )


def node_conditions(times: Times) -> list[Object]:
    """The conditions of a healthy node."""
    rows = (
        ("NetworkUnavailable", "False", "CiliumIsUp", "Cilium is running on this node"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    )
    return [
        {**condition(kind, status, reason, message, at=times.settled), "lastHeartbeatTime": times.recent}
        for kind, status, reason, message in rows
    ]


def _lease(machine: Machine, node: Object, times: Times) -> Object:
    item = thing(
        "coordination.k8s.io/v1",
        "Lease",
        machine.name,
        "kube-node-lease",
        created=times.born,
        spec={
            "holderIdentity": machine.name,
            "leaseDurationSeconds": 40,
            "renewTime": stamp(times.now - 4, micro=True),
        },
    )
    reference = {"apiVersion": "v1", "kind": "Node", "name": machine.name, "uid": node["metadata"]["uid"]}
    item["metadata"]["ownerReferences"] = [reference]
    return item


def _csi_node(machine: Machine, node: Object, times: Times) -> Object:
    driver = {
        "name": "linstor.csi.linbit.com",
        "nodeID": machine.name,
        "topologyKeys": ["kubernetes.io/hostname", "linbit.com/hostname"],
    }
    item = thing("storage.k8s.io/v1", "CSINode", machine.name, created=times.born, spec={"drivers": [driver]})
    reference = {"apiVersion": "v1", "kind": "Node", "name": machine.name, "uid": node["metadata"]["uid"]}
    item["metadata"]["ownerReferences"] = [reference]
    return item


def static_pods(body: Body) -> None:
    """The control plane's own pods, one set a control-plane node. etcd is a Talos service, not a pod."""
    version = body.versions["kubernetes"]
    rows = (
        ("kube-apiserver", "200m", "512Mi"),
        ("kube-controller-manager", "50m", "256Mi"),
        ("kube-scheduler", "10m", "64Mi"),
    )
    for machine in body.machines:
        if machine.role != "control-plane":
            continue
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": machine.name, "uid": uid("Node", "", machine.name)},
        }
        for name, cpu, memory in rows:
            part = Part(
                "Static",
                name,
                f"registry.k8s.io/{name}:{version}",
                cpu=cpu,
                memory=memory,
                labels={"tier": "control-plane", "k8s-app": name},
                host=True,
                critical=True,
            )
            body.add(
                pod(
                    part,
                    f"{name}-{machine.name}",
                    "kube-system",
                    node,
                    body.times,
                    node=machine.name,
                    node_ip=machine.address,
                    pod_ip=machine.address,
                    extra_labels={},
                )
            )


def namespace(name: str, times: Times, labels: Mapping[str, str] | None = None) -> Object:
    """An active Namespace."""
    return thing(
        "v1",
        "Namespace",
        name,
        created=times.born,
        labels={"kubernetes.io/metadata.name": name, **(labels or {})},
        spec={"finalizers": ["kubernetes"]},
        status={"phase": "Active"},
    )


# --- what follows from the pods ------------------------------------------------------------------


def derive(objects: list[Object], times: Times) -> list[Object]:
    """The objects with every status that follows from the pods: workloads' counts, endpoints. Mutates statuses.

    Run after a scenario's edits, so that a Deployment never claims pods that are not ready.
    """
    pods = [item for item in objects if item["kind"] == "Pod"]
    owned: dict[str, list[Object]] = defaultdict(list)
    sets: dict[str, list[Object]] = defaultdict(list)
    revised: dict[str, Object] = {}
    for item in objects:
        if item["kind"] == "Pod":
            owned[_owner_uid(item)].append(item)
        elif item["kind"] == "ReplicaSet":
            sets[_owner_uid(item)].append(item)
        elif item["kind"] == "ControllerRevision":
            revised[_owner_uid(item)] = item
    machines = [item for item in objects if item["kind"] == "Node"]
    failures = {
        item["involvedObject"]["uid"]: item["message"]
        for item in objects
        if item["kind"] == "Event" and item["reason"] == "FailedCreate"
    }
    for item in objects:
        key = item["metadata"].get("uid", "")
        if item["kind"] == "ReplicaSet":
            alive = [entry for entry in owned[key] if is_active(entry)]
            said = failures.get(key, "").removeprefix("Error creating: ")
            ready = sum(1 for entry in alive if is_ready(entry))
            item["status"] = replicasets.status_of(
                item, alive, ready, stamp=times.ago(2400), refusal=said, why="FailedCreate"
            )
        elif item["kind"] == "DaemonSet":
            fine = {entry["metadata"]["uid"] for entry in owned[key]}
            letters = revisions.hash_of(revised[key])
            item["status"] = daemonsets.status_of(item, machines, owned[key], letters, fine)
        elif item["kind"] == "StatefulSet":
            name = revised[key]["metadata"]["name"]
            ready = sum(1 for entry in owned[key] if is_ready(entry))
            item["status"] = statefulsets.status_of(item, owned[key], ready, current=name, update=name)
    for item in objects:
        if item["kind"] == "Deployment":
            _roll_up(item, sets[item["metadata"]["uid"]], times)
    by_namespace: dict[str, list[Object]] = defaultdict(list)
    for item in pods:
        by_namespace[item["metadata"]["namespace"]].append(item)
    services = [item for item in objects if item["kind"] == "Service"]
    endpoints = [made for service in services for made in _endpoints(service, by_namespace, times)]
    return objects + endpoints


def _alive(items: Iterable[Object]) -> list[Object]:
    return [item for item in items if item["status"].get("phase") not in {"Failed", "Succeeded"}]


def _roll_up(item: Object, sets: list[Object], times: Times) -> None:
    new = deployments.new_set(item, sets)
    item["status"] = {}
    status = deployments.status_of(item, sets, new, stamp=times.settled)
    if status["conditions"][0]["status"] == "False":
        status = deployments.status_of(item, sets, new, stamp=times.ago(2400))
    rolled = new is None or len(sets) == 1
    name = (new or item)["metadata"]["name"]
    words = (
        ("True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.')
        if rolled
        else ("False", "ProgressDeadlineExceeded", f'ReplicaSet "{name}" has timed out progressing.')
    )
    at = times.settled if rolled else times.ago(1800)
    status["conditions"].append(deployments.condition("Progressing", *words, stamp=at))
    item["status"] = deployments.failure_of(status, sets, new)


def _endpoints(service: Object, pods: Mapping[str, list[Object]], times: Times) -> Iterator[Object]:
    """Endpoints and EndpointSlice of a Service with a selector."""
    selector = service["spec"].get("selector")
    if not selector:
        return
    name, space = service["metadata"]["name"], service["metadata"]["namespace"]
    chosen = [
        item
        for item in _alive(pods[space])
        if item["status"].get("podIP") and selector.items() <= item["metadata"].get("labels", {}).items()
    ]
    ports = [
        {"name": entry["name"], "port": entry["targetPort"], "protocol": entry["protocol"]}
        for entry in service["spec"]["ports"]
    ]
    slice_ = thing(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"{name}-{suffix(f'{space}/{name}/slice')}",
        space,
        created=times.born,
        labels={
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            "kubernetes.io/service-name": name,
        },
        owner=service,
        generation=1,
    )
    slice_ |= {"addressType": "IPv4", "ports": ports, "endpoints": [_endpoint(item) for item in chosen]}
    yield slice_
    ready = [_address(item) for item in chosen if is_ready(item)]
    waiting = [_address(item) for item in chosen if not is_ready(item)]
    subset: Object = {"ports": ports}
    if ready:
        subset["addresses"] = ready
    if waiting:
        subset["notReadyAddresses"] = waiting
    yield thing(
        "v1",
        "Endpoints",
        name,
        space,
        created=times.born,
        labels={"endpoints.kubernetes.io/managed-by": "endpoint-controller"},
        subsets=[subset] if chosen else [],
    )


def _endpoint(item: Object) -> Object:
    ready = is_ready(item)
    return {
        "addresses": [item["status"]["podIP"]],
        "conditions": {"ready": ready, "serving": ready, "terminating": "deletionTimestamp" in item["metadata"]},
        "nodeName": item["spec"].get("nodeName"),
        "targetRef": _target(item),
    }


def _address(item: Object) -> Object:
    return {"ip": item["status"]["podIP"], "nodeName": item["spec"].get("nodeName"), "targetRef": _target(item)}


def _target(item: Object) -> Object:
    metadata = item["metadata"]
    return {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
