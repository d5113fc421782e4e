"""Tables as `kubectl get` asks for them, and PartialObjectMetadata."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import crd
from .schema import Kind, canonical_quantity, descriptions

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
Cell = Callable[[Json, "Cluster"], Any]
NAME_TEXT = (
    "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a "
    "client to request the generation of an appropriate name automatically. Name is primarily intended for creation "
    "idempotence and configuration definition. Cannot be updated. More info: "
    "https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"
)
AGE_TEXT = (
    "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed "
    "to be set in happens-before order across separate operations. Clients may not set this value. It is represented "
    "in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: "
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
)


def seconds_since(text: str | None, cluster: Cluster) -> float | None:
    """Seconds from a time stamp to now; None when there is none."""
    if not text:
        return None
    return max(0.0, cluster.clock.now() - datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def age(text: str | None, cluster: Cluster) -> str:
    """`5m50s`, as kubectl shows how long ago something was."""
    value = seconds_since(text, cluster)
    return "<unknown>" if value is None else duration(int(value))


def duration(value: int) -> str:
    """A human duration: `90s`, `5m50s`, `3h`, `2d3h`."""
    if value < 120:
        return f"{value}s"
    minutes, hours, days = value // 60, value // 3600, value // 86400
    if minutes < 10:
        return f"{minutes}m{value % 60}s" if value % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    years = days // 365
    if years < 2:
        return f"{days}d"
    return f"{years}y{days % 365}d" if years < 8 and days % 365 else f"{years}y"


def _at(path: str, fallback: Any = "") -> Cell:
    def cell(obj: Json, cluster: Cluster) -> Any:
        value = crd.at(obj, path)
        return fallback if value is None else value

    return cell


def _count(path: str) -> Cell:
    return lambda obj, cluster: len(crd.at(obj, path) or ())


def _age(obj: Json, cluster: Cluster) -> str:
    return age(obj["metadata"].get("creationTimestamp"), cluster)


def _selector(path: str) -> Cell:
    def cell(obj: Json, cluster: Cluster) -> str:
        found = crd.at(obj, path) or {}
        labels = found.get(
            "matchLabels", found if path.endswith("selector") and "matchExpressions" not in found else {}
        )
        return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or "<none>"

    return cell


def _containers(what: str) -> Cell:
    def cell(obj: Json, cluster: Cluster) -> str:
        spec = obj.get("spec") or {}
        job: Json = (spec.get("jobTemplate") or {}).get("spec") or spec
        template = job.get("template") or {}
        return ",".join(c.get(what, "") for c in (template.get("spec") or {}).get("containers") or [])

    return cell


def _ready(obj: Json, cluster: Cluster) -> str:
    status = obj.get("status") or {}
    return f"{status.get('readyReplicas', 0)}/{(obj.get('spec') or {}).get('replicas', 0)}"


def _last_schedule(obj: Json, cluster: Cluster) -> str:
    stamp = (obj.get("status") or {}).get("lastScheduleTime")
    return age(stamp, cluster) if stamp else "<none>"


# -- pods -------------------------------------------------------------------------------------------------------------


def _pod_ready(obj: Json, cluster: Cluster) -> str:
    states = (obj.get("status") or {}).get("containerStatuses") or []
    return f"{sum(bool(s.get('ready')) for s in states)}/{len((obj.get('spec') or {}).get('containers') or [])}"


def _pod_status(obj: Json, cluster: Cluster) -> str:
    status = obj.get("status") or {}
    reason = status.get("reason") or status.get("phase", "")
    for item in status.get("conditions") or []:
        if item.get("type") == "PodScheduled" and item.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    for item in status.get("initContainerStatuses") or []:
        state = item.get("state") or {}
        ended = state.get("terminated")
        if ended and ended.get("exitCode") == 0:
            continue
        if ended:
            return "Init:" + (ended.get("reason") or f"ExitCode:{ended.get('exitCode')}")
        waiting = (state.get("waiting") or {}).get("reason", "")
        if waiting and waiting != "PodInitializing":
            return "Init:" + waiting
        total = len((obj.get("spec") or {}).get("initContainers") or [])
        done = sum(
            1
            for s in status["initContainerStatuses"]
            if ((s.get("state") or {}).get("terminated") or {}).get("exitCode") == 0
        )
        return f"Init:{done}/{total}"
    for item in reversed(status.get("containerStatuses") or []):
        state = item.get("state") or {}
        if (state.get("waiting") or {}).get("reason"):
            reason = state["waiting"]["reason"]
        elif "terminated" in state:
            ended = state["terminated"]
            reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode')}"
    if obj["metadata"].get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return str(reason)


def _pod_restarts(obj: Json, cluster: Cluster) -> str:
    states = (obj.get("status") or {}).get("containerStatuses") or []
    total = sum(int(s.get("restartCount", 0)) for s in states)
    last = [((s.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for s in states]
    found = max((t for t in last if t), default=None)
    return f"{total} ({age(found, cluster)} ago)" if total and found else str(total)


# -- nodes, services, the rest ----------------------------------------------------------------------------------------


def _node_status(obj: Json, cluster: Cluster) -> str:
    ready = [c for c in (obj.get("status") or {}).get("conditions") or [] if c.get("type") == "Ready"]
    words = ["Ready" if ready[0].get("status") == "True" else "NotReady"] if ready else ["Unknown"]
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _roles(obj: Json, cluster: Cluster) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    return ",".join(sorted(k[len(prefix) :] for k in labels if k.startswith(prefix))) or "<none>"


def _address(kind: str) -> Cell:
    def cell(obj: Json, cluster: Cluster) -> str:
        rows = (obj.get("status") or {}).get("addresses") or []
        return next((r["address"] for r in rows if r.get("type") == kind), "<none>")

    return cell


def _external(obj: Json, cluster: Cluster) -> str:
    spec = obj.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", ""))
    found = list(spec.get("externalIPs") or [])
    for row in ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []:
        found.append(row.get("ip") or row.get("hostname", ""))
    return ",".join(found) or ("<pending>" if spec.get("type") == "LoadBalancer" else "<none>")


def _ports(obj: Json, cluster: Cluster) -> str:
    rows = []
    for port in (obj.get("spec") or {}).get("ports") or []:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        rows.append(f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(rows) or "<none>"


MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _modes(obj: Json, cluster: Cluster) -> str:
    found = (obj.get("status") or {}).get("accessModes") or (obj.get("spec") or {}).get("accessModes") or []
    return ",".join(MODES.get(mode, mode) for mode in found)


def _phase(obj: Json, cluster: Cluster) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return str((obj.get("status") or {}).get("phase", ""))


def _claim_modes(obj: Json, cluster: Cluster) -> str:
    found = (obj.get("status") or {}).get("accessModes") or []
    return ",".join(MODES.get(mode, mode) for mode in found)


def _claim(obj: Json, cluster: Cluster) -> str:
    reference = (obj.get("spec") or {}).get("claimRef")
    return f"{reference.get('namespace', '')}/{reference.get('name', '')}" if reference else ""


def _class_name(obj: Json, cluster: Cluster) -> str:
    notes = obj["metadata"].get("annotations") or {}
    name = str(obj["metadata"]["name"])
    return name + (" (default)" if notes.get("storageclass.kubernetes.io/is-default-class") == "true" else "")


def _flag(path: str, fallback: bool = False) -> Cell:
    return lambda obj, cluster: "true" if _at(path, fallback)(obj, cluster) else "false"


def _seen(which: str) -> Cell:
    def cell(obj: Json, cluster: Cluster) -> str:
        stamp = obj.get(which) or obj.get("eventTime") or obj["metadata"].get("creationTimestamp")
        return age(stamp, cluster)

    return cell


def _about(obj: Json, cluster: Cluster) -> str:
    found = obj.get("involvedObject") or {}
    return f"{str(found.get('kind', '')).lower()}/{found.get('name', '')}"


def _source(obj: Json, cluster: Cluster) -> str:
    found = obj.get("source") or {}
    name = found.get("component") or obj.get("reportingComponent", "")
    return f"{name}, {found['host']}" if found.get("host") else name


def _job_status(obj: Json, cluster: Cluster) -> str:
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed", "Suspended"):
            return str(condition["type"])
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else "Running"


def _job_duration(obj: Json, cluster: Cluster) -> str:
    status = obj.get("status") or {}
    start = seconds_since(status.get("startTime"), cluster)
    if start is None:
        return ""
    return duration(int(start - (seconds_since(status.get("completionTime"), cluster) or 0.0)))


def _job_done(obj: Json, cluster: Cluster) -> str:
    return f"{(obj.get('status') or {}).get('succeeded', 0)}/{(obj.get('spec') or {}).get('completions', 1)}"


def _quota(prefix: tuple[str, ...]) -> Cell:
    def cell(obj: Json, cluster: Cluster) -> str:
        status = obj.get("status") or {}
        rows = []
        for name, hard in sorted((status.get("hard") or {}).items()):
            if name.startswith("limits.") == (prefix == ("limits",)):
                rows.append(f"{name}: {(status.get('used') or {}).get(name, '0')}/{hard}")
        return ", ".join(rows)

    return cell


def _role_ref(obj: Json, cluster: Cluster) -> str:
    found = obj.get("roleRef") or {}
    return f"{found.get('kind', '')}/{found.get('name', '')}"


def _hosts(obj: Json, cluster: Cluster) -> str:
    return ",".join(r.get("host", "*") for r in (obj.get("spec") or {}).get("rules") or []) or "*"


def _service(obj: Json, cluster: Cluster) -> str:
    found = (obj.get("spec") or {}).get("service")
    return f"{found.get('namespace')}/{found.get('name')}" if found else "Local"


def _available(obj: Json, cluster: Cluster) -> str:
    rows = (obj.get("status") or {}).get("conditions") or []
    found = next((c for c in rows if c.get("type") == "Available"), None)
    if found is None:
        return "Unknown"
    return "True" if found.get("status") == "True" else f"{found.get('status')} ({found.get('reason', '')})"


_AGE = ("Age", _age)
# kind → columns; a name that begins with "+" shows with -o wide only
COLUMNS: dict[str, list[tuple[str, Cell]]] = {
    "ConfigMap": [("Data", lambda o, c: len(o.get("data") or ()) + len(o.get("binaryData") or ())), _AGE],
    "Secret": [("Type", _at(".type")), ("Data", _count(".data")), _AGE],
    "Namespace": [("Status", _at(".status.phase")), _AGE],
    "Node": [
        ("Status", _node_status), ("Roles", _roles), _AGE, ("Version", _at(".status.nodeInfo.kubeletVersion")),
        ("+Internal-IP", _address("InternalIP")), ("+External-IP", _address("ExternalIP")),
        ("+OS-Image", _at(".status.nodeInfo.osImage", "<unknown>")),
        ("+Kernel-Version", _at(".status.nodeInfo.kernelVersion", "<unknown>")),
        ("+Container-Runtime", _at(".status.nodeInfo.containerRuntimeVersion", "<unknown>")),
    ],
    "Pod": [
        ("Ready", _pod_ready), ("Status", _pod_status), ("Restarts", _pod_restarts), _AGE,
        ("+IP", _at(".status.podIP", "<none>")), ("+Node", _at(".spec.nodeName", "<none>")),
        ("+Nominated Node", _at(".status.nominatedNodeName", "<none>")), ("+Readiness Gates", lambda o, c: "<none>"),
    ],
    "Service": [
        ("Type", _at(".spec.type")), ("Cluster-IP", _at(".spec.clusterIP", "<none>")), ("External-IP", _external),
        ("Port(s)", _ports), _AGE, ("+Selector", _selector(".spec.selector")),
    ],
    "Deployment": [
        ("Ready", _ready), ("Up-to-date", _at(".status.updatedReplicas", 0)),
        ("Available", _at(".status.availableReplicas", 0)), _AGE, ("+Containers", _containers("name")),
        ("+Images", _containers("image")), ("+Selector", _selector(".spec.selector")),
    ],
    "ReplicaSet": [
        ("Desired", _at(".spec.replicas", 0)), ("Current", _at(".status.replicas", 0)),
        ("Ready", _at(".status.readyReplicas", 0)), _AGE, ("+Containers", _containers("name")),
        ("+Images", _containers("image")), ("+Selector", _selector(".spec.selector")),
    ],
    "StatefulSet": [
        ("Ready", _ready), _AGE, ("+Containers", _containers("name")), ("+Images", _containers("image")),
    ],
    "DaemonSet": [
        ("Desired", _at(".status.desiredNumberScheduled", 0)), ("Current", _at(".status.currentNumberScheduled", 0)),
        ("Ready", _at(".status.numberReady", 0)), ("Up-to-date", _at(".status.updatedNumberScheduled", 0)),
        ("Available", _at(".status.numberAvailable", 0)),
        ("Node Selector", _selector(".spec.template.spec.nodeSelector.selector")), _AGE,
        ("+Containers", _containers("name")), ("+Images", _containers("image")),
        ("+Selector", _selector(".spec.selector")),
    ],
    "Job": [
        ("Status", _job_status), ("Completions", _job_done), ("Duration", _job_duration), _AGE,
        ("+Containers", _containers("name")), ("+Images", _containers("image")),
        ("+Selector", _selector(".spec.selector")),
    ],
    "CronJob": [
        ("Schedule", _at(".spec.schedule")), ("Timezone", _at(".spec.timeZone", "<none>")),
        ("Suspend", lambda o, c: str(bool((o.get("spec") or {}).get("suspend")))), ("Active", _count(".status.active")),
        ("Last Schedule", _last_schedule),
        _AGE, ("+Containers", _containers("name")), ("+Images", _containers("image")),
    ],
    "PersistentVolumeClaim": [
        ("Status", _phase), ("Volume", _at(".spec.volumeName")), ("Capacity", _at(".status.capacity.storage")),
        ("Access Modes", _claim_modes), ("StorageClass", _at(".spec.storageClassName")),
        ("VolumeAttributesClass", _at(".spec.volumeAttributesClassName", "<unset>")), _AGE,
        ("+VolumeMode", _at(".spec.volumeMode", "Filesystem")),
    ],
    "PersistentVolume": [
        ("Capacity", _at(".spec.capacity.storage")), ("Access Modes", _modes),
        ("Reclaim Policy", _at(".spec.persistentVolumeReclaimPolicy")), ("Status", _phase), ("Claim", _claim),
        ("StorageClass", _at(".spec.storageClassName")),
        ("VolumeAttributesClass", _at(".spec.volumeAttributesClassName", "<unset>")),
        ("Reason", _at(".status.reason")), _AGE, ("+VolumeMode", _at(".spec.volumeMode", "Filesystem")),
    ],
    "StorageClass": [
        ("Provisioner", _at(".provisioner")), ("ReclaimPolicy", _at(".reclaimPolicy")),
        ("VolumeBindingMode", _at(".volumeBindingMode")),
        ("AllowVolumeExpansion", _flag(".allowVolumeExpansion")), _AGE,
    ],
    "Event": [
        ("Type", _at(".type")), ("Reason", _at(".reason")), ("Object", _about),
        ("+Subobject", _at(".involvedObject.fieldPath")), ("+Source", _source), ("Message", _at(".message")),
        ("+First Seen", _seen("firstTimestamp")), ("+Count", _at(".count", 1)), ("+Name", _at(".metadata.name")),
    ],
    "ServiceAccount": [("Secrets", _count(".secrets")), _AGE],
    "Role": [("Created At", _at(".metadata.creationTimestamp"))],
    "ClusterRole": [("Created At", _at(".metadata.creationTimestamp"))],
    "RoleBinding": [("Role", _role_ref), _AGE],
    "ClusterRoleBinding": [("Role", _role_ref), _AGE],
    "ResourceQuota": [("Request", _quota(("requests",))), ("Limit", _quota(("limits",))), _AGE],
    "LimitRange": [("Created At", _at(".metadata.creationTimestamp"))],
    "Ingress": [
        ("Class", _at(".spec.ingressClassName", "<none>")), ("Hosts", _hosts),
        ("Address", lambda o, c: "" if _external(o, c) == "<none>" else _external(o, c)),
        ("Ports", lambda o, c: "80, 443" if (o.get("spec") or {}).get("tls") else "80"), _AGE,
    ],
    "NetworkPolicy": [("Pod-Selector", _selector(".spec.podSelector")), _AGE],
    "PodDisruptionBudget": [
        ("Min Available", _at(".spec.minAvailable", "N/A")), ("Max Unavailable", _at(".spec.maxUnavailable", "N/A")),
        ("Allowed Disruptions", _at(".status.disruptionsAllowed", 0)), _AGE,
    ],
    "PriorityClass": [
        ("Value", _at(".value", 0)), ("Global-Default", _flag(".globalDefault")), _AGE,
        ("PreemptionPolicy", _at(".preemptionPolicy")),
    ],
    "Lease": [("Holder", _at(".spec.holderIdentity")), _AGE],
    "CustomResourceDefinition": [("Created At", _at(".metadata.creationTimestamp"))],
    "APIService": [("Service", _service), ("Available", _available), _AGE],
    "CSINode": [("Drivers", _count(".spec.drivers")), _AGE],
    "EndpointSlice": [("AddressType", _at(".addressType")), _AGE],
    "ValidatingWebhookConfiguration": [("Webhooks", _count(".webhooks")), _AGE],
    "MutatingWebhookConfiguration": [("Webhooks", _count(".webhooks")), _AGE],
    "VolumeAttachment": [
        ("Attacher", _at(".spec.attacher")), ("PV", _at(".spec.source.persistentVolumeName")),
        ("Node", _at(".spec.nodeName")), ("Attached", _flag(".status.attached")), _AGE,
    ],
}  # fmt: skip
NUMBERS = {"Desired", "Current", "Up-to-date", "Available", "Data", "Secrets", "Count", "Active", "Value", "Webhooks"}


def _columns(kind: Kind) -> list[tuple[Json, Cell]]:
    if kind.custom is not None:
        return _printer_columns(kind)
    rows = COLUMNS.get(kind.kind, [_AGE])
    if kind.group == "apps.cozystack.io":
        ready = _at('.status.conditions[?(@.type=="Ready")].status', "Unknown")
        rows = [("Ready", ready), _AGE, ("Version", _at(".status.version"))]
    texts = descriptions().get(str(kind.node.get("r")) if isinstance(kind.node, dict) else "", {})
    name: tuple[Json, Cell] = (_column("Name", "string", "name", NAME_TEXT, 0), _at(".metadata.name"))
    found: list[tuple[Json, Cell]] = [] if kind.kind == "Event" else [name]
    if kind.kind == "StorageClass":
        found = [(name[0], _class_name)]
    if kind.kind == "Event":
        found.append((_column("Last Seen", "string", "", "", 0), _seen("lastTimestamp")))
    for label, cell in rows:
        title = label.lstrip("+")
        number = title in NUMBERS and kind.kind not in ("ConfigMap", "APIService", "Event")
        number = number or (title == "Ready" and kind.kind in ("ReplicaSet", "DaemonSet"))
        form = "integer" if number else "string"
        text = AGE_TEXT if title == "Age" else texts.get(title.lower(), "")
        style = "name" if title == "Name" else ""
        found.append((_column(title, form, style, text, int(label.startswith("+"))), cell))
    return found


def _column(name: str, form: str, style: str, text: str, priority: int) -> Json:
    return {"name": name, "type": form, "format": style, "description": text, "priority": priority}


def _printer_columns(kind: Kind) -> list[tuple[Json, Cell]]:
    found: list[tuple[Json, Cell]] = [
        (_column("Name", "string", "name", NAME_TEXT, 0), _at(".metadata.name")),
    ]
    rows = (kind.custom or {}).get("additionalPrinterColumns") or [
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    ]
    for row in rows:
        text = row.get("description") or f"Custom resource definition column (in JSONPath format): {row['jsonPath']}"
        if row["jsonPath"] == ".metadata.creationTimestamp":
            text = row.get("description") or AGE_TEXT
        column = _column(row["name"], row["type"], row.get("format", ""), text, row.get("priority", 0))
        found.append((column, _printed(row)))
    return found


def _printed(row: Json) -> Cell:
    def cell(obj: Json, cluster: Cluster) -> Any:
        value = crd.at(obj, row["jsonPath"])
        if value is None:
            return None
        if row["type"] == "date":
            return age(str(value), cluster)
        if row["type"] == "string" and not isinstance(value, str):
            return canonical_quantity(str(value)) if not isinstance(value, bool) else str(value).lower()
        return value

    return cell


def partial(obj: Json) -> Json:
    """The PartialObjectMetadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def table(kind: Kind, objects: list[Json], meta: Json, include: str, cluster: Cluster, *, head: bool = True) -> Json:
    """The Table of objects; `include` is Object, Metadata or None."""
    columns = _columns(kind)
    rows = []
    for obj in objects:
        row: Json = {"cells": [cell(obj, cluster) for _, cell in columns]}
        if kind.kind == "Pod" and (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            phase = obj["status"]["phase"]
            text = "The pod has completed successfully." if phase == "Succeeded" else "The pod failed."
            row["conditions"] = [{"type": "Completed", "status": "True", "reason": phase, "message": text}]
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = partial(obj)
        elif kind.custom is not None:
            row["object"] = None
        rows.append(row)
    body: Json = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta}
    return body | {"columnDefinitions": [c for c, _ in columns] if head else None, "rows": rows}
