"""What the API server fills in for built-in kinds, and conversion between their versions."""

from __future__ import annotations

import ipaddress
import random
from typing import TYPE_CHECKING, Any

from .schema import Kind
from .status import invalid, invalid_value

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]


def bootstrap_objects(services: str = "10.96.0.0/16") -> list[Json]:
    """Namespaces, priority classes and the kubernetes Service of an empty cluster."""
    own = str(ipaddress.ip_network(services)[1])
    found: list[Json] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in ("default", "kube-system", "kube-public", "kube-node-lease")
    ]
    moved = "run in the cluster, but can be moved to another node if necessary"
    stays = "not be moved from their current node"
    for name, value, what in (
        ("system-cluster-critical", 2000000000, moved),
        ("system-node-critical", 2000001000, stays),
    ):
        found.append(
            {
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                "value": value, "preemptionPolicy": "PreemptLowerPriority",
                "description": f"Used for system critical pods that must {what}.",
            }
        )  # fmt: skip
    found.append(
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": own, "clusterIPs": [own], "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
            },
        }
    )  # fmt: skip
    return found


def component_status(name: str) -> Json:
    """One of the deprecated ComponentStatuses, healthy."""
    row = {"type": "Healthy", "status": "True", "message": "ok"}
    return {"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [row]}


def status_metadata(kind: Kind, before: Json, wanted: Json) -> Json:
    """The metadata a write to /status may change."""
    if kind.custom is None and kind.plural in ("deployments", "replicasets", "nodes", "pods", "services"):
        return wanted | {"labels": before["labels"]} if "labels" in before else _without(wanted, "labels")
    return before | {k: wanted[k] for k in ("managedFields",) if k in wanted}


def _without(meta: Json, name: str) -> Json:
    return {key: value for key, value in meta.items() if key != name}


def reset_status(kind: Kind, obj: Json) -> Json:
    """The object as a create keeps it: without a status of the client's."""
    if "status" in kind.subresources and kind.plural not in ("nodes", "namespaces", "apiservices"):
        return {key: value for key, value in obj.items() if key != "status"}
    return obj


def apply(kind: Kind, obj: Json, old: Json | None, cluster: Cluster) -> Json:
    """The object with the defaults of its kind."""
    function = _BY_KIND.get(kind.kind)
    obj = function(dict(obj), old, cluster) if function else obj
    times = _CONDITION_TIMES.get(kind.kind)
    conditions = (obj.get("status") or {}).get("conditions") if times else None
    if not times or not conditions:
        return obj
    blank = dict.fromkeys(times)
    return obj | {"status": obj["status"] | {"conditions": [blank | row for row in conditions]}}


# Times a condition shows as null when they are not given.
_CONDITION_TIMES = {
    "Pod": ("lastProbeTime", "lastTransitionTime"), "Node": ("lastHeartbeatTime", "lastTransitionTime"),
    "Deployment": ("lastUpdateTime", "lastTransitionTime"), "Job": ("lastProbeTime", "lastTransitionTime"),
}  # fmt: skip


def _spec(obj: Json) -> Json:
    spec = obj["spec"] = dict(obj.get("spec") or {})
    return spec


def _fill(target: Json, **values: Any) -> None:
    for key, value in values.items():
        target.setdefault(key, value)


# -- pods -------------------------------------------------------------------------------------------------------------


def _pod(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    obj["spec"] = pod_spec(obj.get("spec") or {})
    for container in obj["spec"].get("containers") or []:
        resources = container.get("resources") or {}
        limits = resources.get("limits") or {}
        if limits:
            requests = dict(resources.get("requests") or {})
            for name, value in limits.items():
                requests.setdefault(name, value)
            container["resources"] = resources | {"requests": requests}
    if "enableServiceLinks" not in obj["spec"]:
        obj["spec"]["enableServiceLinks"] = True
    _fill(obj, status={})
    if not obj["status"].get("phase"):
        obj["status"] = {"phase": "Pending"} | obj["status"]
    obj["status"].setdefault("qosClass", qos_class(obj["spec"]))
    for name in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        if obj["status"].get(name):
            blank: Json = {"state": {}, "lastState": {}, "ready": False, "restartCount": 0, "image": "", "imageID": ""}
            obj["status"] = obj["status"] | {name: [_container_status(blank | row) for row in obj["status"][name]]}
    return obj


def _container_status(row: Json) -> Json:
    for part in ("state", "lastState"):
        for name, times in (("running", ("startedAt",)), ("terminated", ("startedAt", "finishedAt"))):
            if name in row[part]:
                zero = {"exitCode": 0} if name == "terminated" else {}
                row = row | {part: row[part] | {name: zero | dict.fromkeys(times) | row[part][name]}}
    return row


def qos_class(spec: Json) -> str:
    """Guaranteed, Burstable or BestEffort."""
    requests, limits, equal = False, True, True
    for container in spec.get("containers") or []:
        resources = container.get("resources") or {}
        asked, most = resources.get("requests") or {}, resources.get("limits") or {}
        requests = requests or bool(asked) or bool(most)
        limits = limits and {"cpu", "memory"} <= set(most)
        equal = equal and all(asked.get(name) == most.get(name) for name in ("cpu", "memory"))
    if not requests:
        return "BestEffort"
    return "Guaranteed" if limits and equal else "Burstable"


def pod_spec(given: Json) -> Json:
    """A pod specification with its defaults."""
    spec = dict(given)
    for key in ("containers", "initContainers", "ephemeralContainers"):
        if key in spec:
            spec[key] = [_container(item, host_network=bool(spec.get("hostNetwork"))) for item in spec[key]]
    if "volumes" in spec:
        spec["volumes"] = [_volume(item) for item in spec["volumes"]]
    _fill(
        spec, restartPolicy="Always", terminationGracePeriodSeconds=30, dnsPolicy="ClusterFirst", securityContext={},
        schedulerName="default-scheduler",
    )  # fmt: skip
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    return spec


def _container(given: Json, *, host_network: bool) -> Json:
    container = dict(given)
    image = container.get("image", "")
    tag = image.rsplit("/", 1)[-1]
    fresh = "@" not in image and (":" not in tag or tag.endswith(":latest"))
    _fill(
        container, resources={}, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File",
        imagePullPolicy="Always" if fresh else "IfNotPresent",
    )  # fmt: skip
    if "ports" in container:
        ports = []
        for port in container["ports"]:
            port = {**port, "protocol": port.get("protocol", "TCP")}
            if host_network and "containerPort" in port:
                port.setdefault("hostPort", port["containerPort"])
            ports.append(port)
        container["ports"] = ports
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            container[name] = _probe(container[name])
    if "env" in container:
        container["env"] = [_variable(item) for item in container["env"]]
    return container


def _variable(item: Json) -> Json:
    source = item.get("valueFrom") or {}
    if "fieldRef" in source:
        reference = {"apiVersion": "v1"} | source["fieldRef"]
        return item | {"valueFrom": source | {"fieldRef": reference}}
    return item


def _probe(given: Json) -> Json:
    probe = dict(given)
    _fill(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
    if "httpGet" in probe:
        probe["httpGet"] = {"path": "/", "scheme": "HTTP"} | probe["httpGet"]
    return probe


def _volume(given: Json) -> Json:
    volume = dict(given)
    for name in ("secret", "configMap", "projected", "downwardAPI"):
        if name in volume:
            volume[name] = {"defaultMode": 420} | volume[name]
    if "hostPath" in volume:
        volume["hostPath"] = {"type": ""} | volume["hostPath"]
    if set(volume) == {"name"}:
        volume["emptyDir"] = {}
    return volume


def _template(spec: Json) -> None:
    template = dict(spec.get("template") or {})
    template["metadata"] = dict(template.get("metadata") or {})
    template["spec"] = pod_spec(template.get("spec") or {})
    spec["template"] = template


def _deployment(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _template(spec)
    _fill(spec, replicas=1, strategy={}, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec["strategy"] = {"type": "RollingUpdate"} | spec["strategy"]
    if strategy["type"] == "RollingUpdate":
        rolling = {"maxUnavailable": "25%", "maxSurge": "25%"} | (strategy.get("rollingUpdate") or {})
        spec["strategy"] = strategy | {"rollingUpdate": rolling}
    _fill(obj, status={})
    return obj


def _daemon_set(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _template(spec)
    _fill(spec, updateStrategy={}, revisionHistoryLimit=10)
    strategy = spec["updateStrategy"] = {"type": "RollingUpdate"} | spec["updateStrategy"]
    if strategy["type"] == "RollingUpdate":
        rolling = {"maxUnavailable": 1, "maxSurge": 0} | (strategy.get("rollingUpdate") or {})
        spec["updateStrategy"] = strategy | {"rollingUpdate": rolling}
    notes = obj["metadata"].get("annotations") or {}
    if "deprecated.daemonset.template.generation" not in notes:
        notes = {"deprecated.daemonset.template.generation": "1"} | notes
        obj["metadata"] = obj["metadata"] | {"annotations": notes}
    zero = {"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}
    obj["status"] = zero | (obj.get("status") or {})
    return obj


def _stateful_set(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _template(spec)
    _fill(spec, replicas=1, podManagementPolicy="OrderedReady", updateStrategy={}, revisionHistoryLimit=10)
    _fill(spec, persistentVolumeClaimRetentionPolicy={"whenDeleted": "Retain", "whenScaled": "Retain"})
    strategy = spec["updateStrategy"] = {"type": "RollingUpdate"} | spec["updateStrategy"]
    if strategy["type"] == "RollingUpdate":
        spec["updateStrategy"] = strategy | {"rollingUpdate": {"partition": 0} | (strategy.get("rollingUpdate") or {})}
    if "volumeClaimTemplates" in spec:
        spec["volumeClaimTemplates"] = [
            {"kind": "PersistentVolumeClaim", "apiVersion": "v1"} | _claim(dict(claim), None, cluster)
            for claim in spec["volumeClaimTemplates"]
        ]
    obj["status"] = {"replicas": 0, "availableReplicas": 0} | (obj.get("status") or {})
    return obj


def _replica_set(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    if "template" in spec:
        _template(spec)
    _fill(spec, replicas=1)
    obj["status"] = {"replicas": 0} | (obj.get("status") or {})
    return obj


def _job(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _template(spec)
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    _fill(spec, parallelism=1, backoffLimit=6, completionMode="NonIndexed", suspend=False)
    _fill(spec, podReplacementPolicy="TerminatingOrFailed", manualSelector=False)
    uid, name = obj["metadata"].get("uid", ""), obj["metadata"].get("name", "")
    if old is None and uid and not spec.get("manualSelector") and "selector" not in spec:
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
        labels = {
            "batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name,
            "controller-uid": uid, "job-name": name,
        }  # fmt: skip
        meta = spec["template"]["metadata"]
        meta["labels"] = (meta.get("labels") or {}) | labels
        if not obj["metadata"].get("labels"):
            obj["metadata"] = obj["metadata"] | {"labels": meta["labels"]}
    _fill(obj, status={})
    return obj


def _cron_job(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(spec, concurrencyPolicy="Allow", suspend=False, successfulJobsHistoryLimit=3, failedJobsHistoryLimit=1)
    job = dict(spec.get("jobTemplate") or {})
    job["metadata"] = dict(job.get("metadata") or {})
    inner = job["spec"] = dict(job.get("spec") or {})
    _template(inner)
    spec["jobTemplate"] = job
    _fill(obj, status={})
    return obj


# -- services ---------------------------------------------------------------------------------------------------------


def _service(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(spec, type="ClusterIP", sessionAffinity="None")
    if "ports" in spec:
        ports = []
        for given in spec["ports"]:
            port = {"protocol": "TCP"} | given
            if not port.get("targetPort") and "port" in port:
                port["targetPort"] = port["port"]
            ports.append(port)
        spec["ports"] = ports
    if spec["type"] == "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            spec.pop(name, None)
    else:
        _addresses(obj, spec, old, cluster)
        _node_ports(obj, spec, old, cluster)
    obj["status"] = {"loadBalancer": {}} | (obj.get("status") or {})
    for address in obj["status"]["loadBalancer"].get("ingress") or []:
        if "ip" in address:
            address.setdefault("ipMode", "VIP")
    return obj


def _addresses(obj: Json, spec: Json, old: Json | None, cluster: Cluster) -> None:
    before = (old or {}).get("spec") or {}
    if "clusterIP" not in spec and before.get("clusterIP"):
        spec["clusterIP"] = before["clusterIP"]
    if "clusterIP" not in spec and spec.get("clusterIPs"):
        spec["clusterIP"] = spec["clusterIPs"][0]
    if not spec.get("clusterIP"):
        spec["clusterIP"] = _free_address(cluster)
    elif spec["clusterIP"] != "None" and spec["clusterIP"] != before.get("clusterIP"):
        _claim_address(obj, spec["clusterIP"], cluster)
    spec["clusterIPs"] = spec.get("clusterIPs") if before.get("clusterIP") == spec["clusterIP"] else None
    spec["clusterIPs"] = spec["clusterIPs"] or [spec["clusterIP"]]
    _fill(spec, ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack", internalTrafficPolicy="Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        _fill(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _fill(spec, allocateLoadBalancerNodePorts=True)


def _taken(cluster: Cluster, but: Json) -> tuple[set[str], set[int]]:
    addresses: set[str] = set()
    ports: set[int] = set()
    me = (but["metadata"].get("namespace"), but["metadata"].get("name"))
    for other in cluster.each("/services"):
        if (other["metadata"].get("namespace"), other["metadata"]["name"]) == me:
            continue
        addresses.update(other["spec"].get("clusterIPs") or [])
        ports.update(p["nodePort"] for p in other["spec"].get("ports") or [] if p.get("nodePort"))
    return addresses, ports


def _free_address(cluster: Cluster) -> str:
    network = ipaddress.ip_network(cluster.service_range)
    taken, _ = _taken(cluster, {"metadata": {}})
    while True:
        address = str(network[random.randrange(10, network.num_addresses - 1)])
        if address not in taken:
            return address


def _claim_address(obj: Json, address: str, cluster: Cluster) -> None:
    if cluster.store.rv <= 200 or not obj["metadata"].get("uid"):
        return
    taken, _ = _taken(cluster, obj)
    reason = ""
    try:
        if ipaddress.ip_address(address) not in ipaddress.ip_network(cluster.service_range):
            reason = "the provided network does not match the current range"
        elif address in taken:
            reason = "provided IP is already allocated"
    except ValueError:
        return
    if reason and not getattr(cluster, "_loading", False):
        detail = f"failed to allocate IP {address}: {reason}"
        raise invalid(
            "", "Service", obj["metadata"].get("name", ""), [invalid_value("spec.clusterIPs", [address], detail)]
        )


def _node_ports(obj: Json, spec: Json, old: Json | None, cluster: Cluster) -> None:
    if spec["type"] not in ("NodePort", "LoadBalancer"):
        if old is not None and old["spec"].get("type") in ("NodePort", "LoadBalancer"):
            for port in spec.get("ports") or []:
                port.pop("nodePort", None)
        return
    if spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False:
        return
    _, taken = _taken(cluster, obj)
    before = {p.get("port"): p.get("nodePort") for p in ((old or {}).get("spec") or {}).get("ports") or []}
    low, high = cluster.node_ports
    for number, port in enumerate(spec.get("ports") or []):
        if not port.get("nodePort"):
            known = before.get(port.get("port"))
            port["nodePort"] = known or next(p for p in iter(lambda: random.randint(low, high), None) if p not in taken)
            taken.add(port["nodePort"])
            continue
        place, value = f"spec.ports[{number}].nodePort", port["nodePort"]
        detail = ""
        if not low <= value <= high:
            detail = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
        elif value in taken:
            detail = "provided port is already allocated"
        if detail:
            raise invalid("", "Service", obj["metadata"].get("name", ""), [invalid_value(place, value, detail)])


# -- the rest ---------------------------------------------------------------------------------------------------------


def _namespace(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    meta = dict(obj["metadata"])
    meta["labels"] = (meta.get("labels") or {}) | {"kubernetes.io/metadata.name": meta.get("name", "")}
    obj["metadata"] = meta
    spec = _spec(obj)
    if old is None or "finalizers" not in (old.get("spec") or {}):
        spec.setdefault("finalizers", ["kubernetes"])
    elif "finalizers" not in spec:
        spec["finalizers"] = old["spec"]["finalizers"]
    obj["status"] = {"phase": "Active"} | (obj.get("status") or {})
    return obj


def _node(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    if spec.get("podCIDR") and not spec.get("podCIDRs"):
        spec["podCIDRs"] = [spec["podCIDR"]]
    blank = dict.fromkeys(
        [
            "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion",
            "kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture",
        ], "",
    )  # fmt: skip
    status = obj["status"] = dict(obj.get("status") or {})
    _fill(status, daemonEndpoints={"kubeletEndpoint": {"Port": 0}})
    status["nodeInfo"] = blank | (status.get("nodeInfo") or {})
    if "capacity" in status:
        status.setdefault("allocatable", status["capacity"])
    return obj


def _claim(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(spec, volumeMode="Filesystem")
    obj["status"] = {"phase": "Pending"} | (obj.get("status") or {})
    return obj


def _volume_object(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(spec, persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    obj["status"] = {"phase": "Pending"} | (obj.get("status") or {})
    return obj


def _secret(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    import base64

    if "stringData" in obj:
        plain = obj.pop("stringData")
        data = dict(obj.get("data") or {})
        data |= {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        obj["data"] = data
    _fill(obj, type="Opaque")
    return obj


def _storage_class(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    _fill(obj, reclaimPolicy="Delete", volumeBindingMode="Immediate")
    return obj


def _binding(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    group = "rbac.authorization.k8s.io"
    if "roleRef" in obj:
        obj["roleRef"] = {"apiGroup": group} | obj["roleRef"]
    subjects = []
    for subject in obj.get("subjects") or []:
        subjects.append(({"apiGroup": group} if subject.get("kind") in ("User", "Group") else {}) | subject)
    if subjects:
        obj["subjects"] = subjects
    return obj


def _cluster_role(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    obj.setdefault("rules", None)
    return obj


def _priority_class(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    _fill(obj, value=0, preemptionPolicy="PreemptLowerPriority")
    return obj


def _network_policy(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(spec, podSelector={})
    if "policyTypes" not in spec:
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for rule in [*(spec.get("ingress") or []), *(spec.get("egress") or [])]:
        for port in rule.get("ports") or []:
            port.setdefault("protocol", "TCP")
    return obj


def _autoscaler(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(spec, minReplicas=1)
    if not spec.get("metrics") and "targetCPUUtilizationPercentage" not in spec:
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    obj["status"] = {"desiredReplicas": 0, "currentMetrics": None} | (obj.get("status") or {})
    return obj


def _budget(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    zero = {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}
    obj["status"] = zero | (obj.get("status") or {})
    return obj


def _csi_driver(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    _fill(
        spec, attachRequired=True, podInfoOnMount=False, volumeLifecycleModes=["Persistent"], storageCapacity=False,
        fsGroupPolicy="ReadWriteOnceWithFSType", requiresRepublish=False, seLinuxMount=False,
    )  # fmt: skip
    return obj


def _csi_node(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    spec = _spec(obj)
    spec["drivers"] = [{"topologyKeys": None} | driver for driver in spec.get("drivers") or []] or None
    return obj


def _attachment(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    obj["status"] = {"attached": False} | (obj.get("status") or {})
    return obj


def _event(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    if obj.get("apiVersion") == "events.k8s.io/v1":
        _fill(obj, eventTime=None, deprecatedSource={}, deprecatedFirstTimestamp=None, deprecatedLastTimestamp=None)
        return obj
    _fill(obj, firstTimestamp=None, lastTimestamp=None, eventTime=None, reportingComponent="", reportingInstance="")
    _fill(obj, source={})
    return obj


def _empty_status(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    _fill(obj, status={})
    return obj


def _ingress(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    obj["status"] = {"loadBalancer": {}} | (obj.get("status") or {})
    return obj


def _webhooks(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    hooks = []
    for given in obj.get("webhooks") or []:
        hook = dict(given)
        _fill(
            hook,
            failurePolicy="Fail",
            matchPolicy="Equivalent",
            namespaceSelector={},
            objectSelector={},
            timeoutSeconds=10,
        )
        if obj.get("kind") == "MutatingWebhookConfiguration":
            _fill(hook, reinvocationPolicy="Never")
        if "rules" in hook:
            hook["rules"] = [rule | {"scope": rule.get("scope", "*")} for rule in hook["rules"]]
        config = hook.get("clientConfig") or {}
        if "service" in config:
            hook["clientConfig"] = config | {"service": {"port": 443} | config["service"]}
        hooks.append(hook)
    if hooks:
        obj["webhooks"] = hooks
    return obj


def _definition(obj: Json, old: Json | None, cluster: Cluster) -> Json:
    from .crd import normalise

    return normalise(obj) if isinstance(obj.get("spec"), dict) else obj


_BY_KIND = {
    "Pod": _pod, "Deployment": _deployment, "DaemonSet": _daemon_set, "StatefulSet": _stateful_set,
    "ReplicaSet": _replica_set, "Job": _job, "CronJob": _cron_job, "Service": _service, "Namespace": _namespace,
    "Node": _node, "PersistentVolumeClaim": _claim, "PersistentVolume": _volume_object, "Secret": _secret,
    "StorageClass": _storage_class, "RoleBinding": _binding, "ClusterRoleBinding": _binding,
    "Role": _cluster_role, "ClusterRole": _cluster_role, "PriorityClass": _priority_class,
    "NetworkPolicy": _network_policy, "HorizontalPodAutoscaler": _autoscaler, "PodDisruptionBudget": _budget,
    "CSIDriver": _csi_driver, "CSINode": _csi_node, "VolumeAttachment": _attachment, "Event": _event,
    "ResourceQuota": _empty_status, "APIService": _empty_status, "Ingress": _ingress,
    "ValidatingWebhookConfiguration": _webhooks, "MutatingWebhookConfiguration": _webhooks,
    "CustomResourceDefinition": _definition,
}  # fmt: skip


# -- conversion -------------------------------------------------------------------------------------------------------

_EVENT_FIELDS = {
    "involvedObject": "regarding", "message": "note", "source": "deprecatedSource", "count": "deprecatedCount",
    "firstTimestamp": "deprecatedFirstTimestamp", "lastTimestamp": "deprecatedLastTimestamp",
    "reportingComponent": "reportingController",
}  # fmt: skip


def convert(obj: Json, kind: Kind) -> Json:
    """The object in another version of its kind."""
    result = {"kind": kind.kind, "apiVersion": kind.api_version}
    rest = {key: value for key, value in obj.items() if key not in result}
    if kind.kind == "Event" and kind.custom is None:
        fields = _EVENT_FIELDS if kind.group else {new: old for old, new in _EVENT_FIELDS.items()}
        rest = {fields.get(key, key): value for key, value in rest.items()}
        if kind.group:
            rest = {k: v for k, v in rest.items() if v != "" or k not in ("reportingController", "reportingInstance")}
    elif kind.kind == "HorizontalPodAutoscaler" and kind.custom is None:
        rest = _autoscaler_version(rest, kind.version)
    return result | rest


def _autoscaler_version(obj: Json, version: str) -> Json:
    spec = dict(obj.get("spec") or {})
    if version == "v1":
        metrics = spec.pop("metrics", None) or []
        for metric in metrics:
            target = (metric.get("resource") or {}).get("target") or {}
            if (metric.get("resource") or {}).get("name") == "cpu" and "averageUtilization" in target:
                spec["targetCPUUtilizationPercentage"] = target["averageUtilization"]
        status = {"currentReplicas": 0} | {k: v for k, v in (obj.get("status") or {}).items() if k != "currentMetrics"}
        return obj | {"spec": spec, "status": status}
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    return obj | {"spec": spec}
