"""Why an object is refused with 422: names, labels, and the rules of each kind users meet."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import certificates, crd
from .schema import Kind, quantity
from .selectors import from_selector
from .status import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    too_long,
    unsupported,
)

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
Errors = list[FieldError]
QUALIFIED = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
DNS_LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_NAMED = {"Namespace", "Service"}
FREE_NAMED = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
STANDARD_FINALIZERS = {"orphan", "foregroundDeletion", "kubernetes"}


def create(cluster: Cluster, kind: Kind, obj: Json) -> Errors:
    """The causes that refuse a new object."""
    own = certificates.errors(obj) if certificates.is_request(kind) else []
    return _meta(kind, obj) + _spec(cluster, kind, obj, None) + own


def update(cluster: Cluster, kind: Kind, obj: Json, old: Json, subresource: str = "") -> Errors:
    """The causes that refuse a changed object."""
    errors = _meta(kind, obj)
    before = set(old["metadata"].get("finalizers") or [])
    fresh = [name for name in obj["metadata"].get("finalizers") or [] if name not in before]
    if old["metadata"].get("deletionTimestamp") and fresh:
        names = ", ".join(f'"{name}"' for name in fresh)
        errors.append(
            forbidden_field(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted, found new finalizers "
                f"[]string{{{names}}}",
            )
        )
    if subresource.split("/")[0] in ("status", "ephemeralcontainers") and kind.custom is None:
        return errors
    errors += _spec(cluster, kind, obj, old)
    rules = _CHANGES.get(kind.kind) if kind.custom is None else None
    return errors + (rules(obj, old) if rules else [])


# -- metadata ---------------------------------------------------------------------------------------------------------


def qualified_errors(key: str) -> list[str]:
    """What is wrong with a label or annotation key."""
    prefix, slash, name = key.rpartition("/")
    found = []
    if slash and not prefix:
        found.append("prefix part must be non-empty")
    elif slash and not _subdomain(prefix):
        found.append("prefix part " + SUBDOMAIN)
    if not name:
        found.append("name part must be non-empty")
    elif len(name) > 63:
        found.append("name part must be no more than 63 bytes")
    if not re.fullmatch(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", name):
        found.append(QUALIFIED)
    return found


def _subdomain(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name))


def label_errors(labels: Json, place: str) -> Errors:
    """What is wrong with labels."""
    errors: Errors = []
    for key, value in sorted(labels.items()):
        errors += [invalid_value(place, key, text) for text in qualified_errors(key)]
        if not re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", str(value)):
            errors.append(invalid_value(place, value, LABEL_VALUE))
        elif len(value) > 63:
            errors.append(invalid_value(place, value, "must be no more than 63 bytes"))
    return errors


def name_errors(kind: Kind, name: str) -> list[str]:
    """What is wrong with an object's name."""
    if kind.kind in FREE_NAMED or kind.group == "rbac.authorization.k8s.io":
        if name in (".", ".."):
            return [f"may not be '{name}'"]
        bad = [c for c in "/%" if c in name]
        return [f"may not contain '{c}'" for c in bad]
    if kind.kind in LABEL_NAMED and kind.custom is None:
        found = []
        if len(name) > 63:
            found.append("must be no more than 63 characters")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
            found.append(DNS_LABEL)
        return found
    found = []
    if len(name) > 253:
        found.append("must be no more than 253 characters")
    if not _subdomain(name):
        found.append(SUBDOMAIN)
    return found


def _meta(kind: Kind, obj: Json) -> Errors:
    meta = obj["metadata"]
    errors: Errors = []
    if not meta.get("name"):
        errors.append(required("metadata.name", "name or generateName is required"))
    else:
        errors += [invalid_value("metadata.name", meta["name"], text) for text in name_errors(kind, meta["name"])]
    errors += label_errors(meta.get("labels") or {}, "metadata.labels")
    annotations = meta.get("annotations") or {}
    for key in sorted(annotations):
        errors += [invalid_value("metadata.annotations", key, text) for text in qualified_errors(key.lower())]
    if sum(len(k) + len(v) for k, v in annotations.items()) > 262144:
        errors.append(too_long("metadata.annotations", 262144))
    for number, name in enumerate(meta.get("finalizers") or []):
        # of a custom resource a real server only asks that it is a qualified name
        if "/" not in name and name not in STANDARD_FINALIZERS and kind.custom is None:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            errors.append(invalid_value(f"metadata.finalizers[{number}]", name, text))
    return errors + _owner_errors(meta.get("ownerReferences") or [])


def _owner_errors(references: list[Json]) -> Errors:
    errors: Errors = []
    for reference in references:
        for name in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(name):
                text = "version must not be empty" if name == "apiVersion" else "must not be empty"
                errors.append(invalid_value(f"metadata.ownerReferences.{name}", "", text))
    controllers = [r for r in references if r.get("controller")]
    if len(controllers) > 1:
        first, second = controllers[:2]
        text = (
            'Only one reference can have Controller set to true. Found "true" in references for '
            f"{first.get('kind')}/{first.get('name')} and {second.get('kind')}/{second.get('name')}"
        )
        errors.append(invalid_value("metadata.ownerReferences", references, text))
    return errors


# -- kinds ------------------------------------------------------------------------------------------------------------


def _spec(cluster: Cluster, kind: Kind, obj: Json, old: Json | None) -> Errors:
    if kind.custom is not None:
        return crd.validate(kind, obj, old)
    rules = _RULES.get(kind.kind)
    return rules(obj) if rules else []


def _data_keys(obj: Json) -> Errors:
    text = (
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
        "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
    )
    return [
        invalid_value(f"{part}[{key}]", key, text)
        for part in ("data", "binaryData")
        for key in obj.get(part) or {}
        if not re.fullmatch(r"[-._a-zA-Z0-9]+", key)
    ]


def _size(obj: Json, place: str) -> Errors:
    total = sum(len(v) for v in (obj.get("data") or {}).values())
    total += sum(len(v) for v in (obj.get("binaryData") or {}).values())
    return [too_long(place, 1048576)] if total > 1048576 else []


def _config_map(obj: Json) -> Errors:
    return _data_keys(obj) + _size(obj, "[]")


def _secret(obj: Json) -> Errors:
    errors = _data_keys(obj) + _size(obj, "data")
    needs = {
        "kubernetes.io/tls": ["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson": [".dockerconfigjson"],
        "kubernetes.io/ssh-auth": ["ssh-privatekey"],
    }
    for key in needs.get(obj.get("type", ""), []):
        if key not in (obj.get("data") or {}):
            errors.append(required(f"data[{key}]"))
    return errors


def _namespace(obj: Json) -> Errors:
    errors: Errors = []
    for mode in ("audit", "enforce", "warn"):
        label = f"pod-security.kubernetes.io/{mode}"
        value = (obj["metadata"].get("labels") or {}).get(label)
        if value is not None and value not in ("privileged", "baseline", "restricted"):
            place = f"metadata.labels[{label}]"
            errors.append(invalid_value(place, value, "must be one of privileged, baseline, restricted"))
    return errors


def pod_spec_errors(spec: Json, place: str, claims: Iterable[str] = ()) -> Errors:
    """The causes in a pod specification; `claims` are volumes that come from claim templates."""
    errors: Errors = []
    if not spec.get("containers"):
        errors.append(required(f"{place}.containers"))
    volumes = set(claims)
    for number, volume in enumerate(spec.get("volumes") or []):
        here = f"{place}.volumes[{number}]"
        if not volume.get("name"):
            errors.append(required(f"{here}.name"))
        elif volume["name"] in volumes:
            errors.append(duplicate(f"{here}.name", volume["name"]))
        volumes.add(volume.get("name", ""))
    seen: set[str] = set()
    for part in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(part) or []):
            here = f"{place}.{part}[{number}]"
            errors += _container_errors(container, here, seen, volumes)
    policy = spec.get("restartPolicy")
    if policy not in ("Always", "OnFailure", "Never"):
        errors.append(unsupported(f"{place}.restartPolicy", policy, ["Always", "OnFailure", "Never"]))
    if spec.get("dnsPolicy") not in ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"):
        choices = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]
        errors.append(unsupported(f"{place}.dnsPolicy", spec.get("dnsPolicy"), choices))
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        value = spec["terminationGracePeriodSeconds"]
        errors.append(
            invalid_value(f"{place}.terminationGracePeriodSeconds", value, "must be greater than or equal to 0")
        )
    return errors


def _container_errors(container: Json, here: str, seen: set[str], volumes: set[str]) -> Errors:
    errors: Errors = []
    name = container.get("name", "")
    if not name:
        errors.append(required(f"{here}.name"))
    elif not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        errors.append(invalid_value(f"{here}.name", name, DNS_LABEL))
    elif name in seen:
        errors.append(duplicate(f"{here}.name", name))
    seen.add(name)
    if not container.get("image"):
        errors.append(required(f"{here}.image"))
    for number, port in enumerate(container.get("ports") or []):
        value = port.get("containerPort", 0)
        if value == 0:
            errors.append(required(f"{here}.ports[{number}].containerPort"))
        elif not 0 < value < 65536:
            text = "must be between 1 and 65535, inclusive"
            errors.append(invalid_value(f"{here}.ports[{number}].containerPort", value, text))
    for number, mount in enumerate(container.get("volumeMounts") or []):
        if mount.get("name") not in volumes:
            place = f"{here}.volumeMounts[{number}].name"
            errors.append(FieldError("FieldValueNotFound", place, f'Not found: "{mount.get("name", "")}"'))
        if not mount.get("mountPath"):
            errors.append(required(f"{here}.volumeMounts[{number}].mountPath"))
    return errors + _resource_errors(container.get("resources") or {}, f"{here}.resources")


def _resource_errors(resources: Json, here: str) -> Errors:
    errors: Errors = []
    limits = resources.get("limits") or {}
    for name, value in (resources.get("requests") or {}).items():
        if quantity(value) < 0:
            errors.append(invalid_value(f"{here}.requests[{name}]", value, "must be greater than or equal to 0"))
        if name in limits and quantity(value) > quantity(limits[name]):
            text = f"must be less than or equal to {name} limit of {limits[name]}"
            errors.append(invalid_value(f"{here}.requests", value, text))
    return errors


def _pod(obj: Json) -> Errors:
    return pod_spec_errors(obj.get("spec") or {}, "spec")


def _workload(obj: Json) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if spec.get("replicas", 0) < 0:
        errors.append(invalid_value("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    selector = spec.get("selector")
    if selector is None:
        errors.append(required("spec.selector"))
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        errors.append(invalid_value("spec.selector", {}, f"empty selector is invalid for {_plural_word(obj)}"))
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels")
    if not from_selector(selector)(labels or {}):
        text = "`selector` does not match template `labels`"
        errors.append(invalid_value("spec.template.metadata.labels", labels, text))
    claims = [claim["metadata"].get("name", "") for claim in spec.get("volumeClaimTemplates") or []]
    errors += pod_spec_errors(template.get("spec") or {}, "spec.template.spec", claims)
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy in ("OnFailure", "Never"):
        errors.append(unsupported("spec.template.spec.restartPolicy", policy, ["Always"]))
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    if rolling.get("maxUnavailable") in (0, "0%") and rolling.get("maxSurge") in (0, "0%"):
        place = "spec.strategy.rollingUpdate.maxUnavailable"
        errors.append(invalid_value(place, rolling["maxUnavailable"], "may not be 0 when `maxSurge` is 0"))
    return errors


def _plural_word(obj: Json) -> str:
    return {"Deployment": "deployment", "DaemonSet": "daemonset", "StatefulSet": "statefulset"}.get(
        obj["kind"], "object"
    )


def _job(obj: Json) -> Errors:
    spec = (obj.get("spec") or {}).get("template", {}).get("spec") or {}
    errors = pod_spec_errors(spec, "spec.template.spec")
    if spec.get("restartPolicy") == "Always":
        place = "spec.template.spec.restartPolicy"
        errors.append(required(place, 'valid values: "OnFailure", "Never"'))
    return errors


def _cron_job(obj: Json) -> Errors:
    spec = obj.get("spec") or {}
    schedule = spec.get("schedule", "")
    errors: Errors = []
    fields = schedule.split()
    if not schedule:
        errors.append(required("spec.schedule"))
    elif not schedule.startswith("@") and len(fields) != 5:
        text = f"expected exactly 5 fields, found {len(fields)}: [{' '.join(fields)}]"
        errors.append(invalid_value("spec.schedule", schedule, text))
    inner = ((spec.get("jobTemplate") or {}).get("spec") or {}).get("template", {}).get("spec") or {}
    place = "spec.jobTemplate.spec.template.spec"
    errors += pod_spec_errors(inner, place)
    if inner.get("restartPolicy") == "Always":
        errors.append(required(f"{place}.restartPolicy", 'valid values: "OnFailure", "Never"'))
    return errors


def _service(obj: Json) -> Errors:
    spec = obj.get("spec") or {}
    ports = spec.get("ports") or []
    errors: Errors = []
    if not ports and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        errors.append(required("spec.ports"))
    seen: set[tuple[str, int]] = set()
    for number, port in enumerate(ports):
        here = f"spec.ports[{number}]"
        if len(ports) > 1 and not port.get("name"):
            errors.append(required(f"{here}.name"))
        value = port.get("port", 0)
        if not 0 < value < 65536:
            errors.append(invalid_value(f"{here}.port", value, "must be between 1 and 65535, inclusive"))
        key = (port.get("protocol", "TCP"), value)
        if key in seen:
            shown = {"Name": "", "Protocol": key[0], "AppProtocol": None, "Port": value, "TargetPort": 0, "NodePort": 0}
            errors.append(duplicate(here, shown))
        seen.add(key)
    choices = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]
    if spec.get("type") not in choices:
        errors.append(unsupported("spec.type", spec.get("type"), choices))
    if spec.get("type") == "ExternalName" and not spec.get("externalName"):
        errors.append(required("spec.externalName"))
    return errors


def _claim(obj: Json) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("accessModes"):
        errors.append(required("spec.accessModes", "at least 1 access mode is required"))
    modes = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]
    for number, mode in enumerate(spec.get("accessModes") or []):
        if mode not in modes:
            errors.append(unsupported(f"spec.accessModes[{number}]", mode, modes))
    storage = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if storage is None:
        errors.append(required("spec.resources[storage]"))
    elif quantity(storage) <= 0:
        errors.append(invalid_value("spec.resources[storage]", storage, "must be greater than zero"))
    return errors


def _binding(obj: Json) -> Errors:
    errors: Errors = []
    role = obj.get("roleRef") or {}
    if not role.get("name"):
        errors.append(required("roleRef.name"))
    if role.get("kind") not in ("Role", "ClusterRole"):
        errors.append(unsupported("roleRef.kind", role.get("kind", ""), ["Role", "ClusterRole"]))
    for number, subject in enumerate(obj.get("subjects") or []):
        here = f"subjects[{number}]"
        if subject.get("kind") not in ("ServiceAccount", "User", "Group"):
            errors.append(unsupported(f"{here}.kind", subject.get("kind", ""), ["ServiceAccount", "User", "Group"]))
        elif (
            subject["kind"] == "ServiceAccount" and not subject.get("namespace") and obj["kind"] == "ClusterRoleBinding"
        ):
            errors.append(required(f"{here}.namespace"))
        if not subject.get("name"):
            errors.append(required(f"{here}.name"))
    return errors


def _role(obj: Json) -> Errors:
    errors: Errors = []
    for number, rule in enumerate(obj.get("rules") or []):
        here = f"rules[{number}]"
        if not rule.get("verbs"):
            errors.append(required(f"{here}.verbs", "verbs must contain at least one value"))
        if not rule.get("nonResourceURLs"):
            if "apiGroups" not in rule:
                errors.append(required(f"{here}.apiGroups", "resource rules must supply at least one api group"))
            if not rule.get("resources"):
                errors.append(required(f"{here}.resources", "resource rules must supply at least one resource"))
    return errors


def _lease(obj: Json) -> Errors:
    value = (obj.get("spec") or {}).get("leaseDurationSeconds")
    if value is not None and value <= 0:
        return [invalid_value("spec.leaseDurationSeconds", value, "must be greater than 0")]
    return []


def _event(obj: Json) -> Errors:
    if obj["apiVersion"] == "events.k8s.io/v1":
        errors: Errors = []
        if not obj.get("eventTime"):
            errors.append(required("eventTime"))
        if obj.get("type") not in ("Normal", "Warning"):
            errors.append(invalid_value("type", obj.get("type", ""), f"has invalid value: {obj.get('type', '')}"))
        return errors
    given = (obj.get("involvedObject") or {}).get("namespace", "")
    if given != obj["metadata"].get("namespace", "") and not (not given and obj["metadata"]["namespace"] == "default"):
        return [invalid_value("involvedObject.namespace", given, "does not match event.namespace")]
    return []


def _priority(obj: Json) -> Errors:
    if obj.get("value", 0) > 1000000000 and not obj["metadata"].get("name", "").startswith("system-"):
        return [forbidden_field("value", "maximum allowed value of a user defined priority is 1000000000")]
    return []


def _slice(obj: Json) -> Errors:
    errors: Errors = []
    for number, endpoint in enumerate(obj.get("endpoints") or []):
        for place, address in enumerate(endpoint.get("addresses") or []):
            try:
                if obj.get("addressType") in ("IPv4", "IPv6"):
                    ipaddress.ip_address(address)
            except ValueError:
                text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                errors.append(invalid_value(f"endpoints[{number}].addresses[{place}]", address, text))
    return errors


def _storage_class(obj: Json) -> Errors:
    errors: Errors = []
    if not obj.get("provisioner"):
        errors.append(required("provisioner"))
    if obj.get("volumeBindingMode") not in ("Immediate", "WaitForFirstConsumer"):
        choices = ["Immediate", "WaitForFirstConsumer"]
        errors.append(unsupported("volumeBindingMode", obj.get("volumeBindingMode"), choices))
    return errors


def _autoscaler(obj: Json) -> Errors:
    spec = obj.get("spec") or {}
    if spec.get("maxReplicas", 0) < spec.get("minReplicas", 1):
        text = "must be greater than or equal to `minReplicas`"
        return [invalid_value("spec.maxReplicas", spec.get("maxReplicas", 0), text)]
    return []


def _budget(obj: Json) -> Errors:
    spec = obj.get("spec") or {}
    if "minAvailable" in spec and "maxUnavailable" in spec:
        shown = {
            "MinAvailable": spec["minAvailable"], "Selector": spec.get("selector"),
            "MaxUnavailable": spec["maxUnavailable"], "UnhealthyPodEvictionPolicy": None,
        }  # fmt: skip
        return [invalid_value("spec", shown, "minAvailable and maxUnavailable cannot be both set")]
    return []


_RULES: dict[str, Callable[[Json], Errors]] = {
    "ConfigMap": _config_map, "Secret": _secret, "Namespace": _namespace, "Pod": _pod, "Deployment": _workload,
    "StatefulSet": _workload, "DaemonSet": _workload, "ReplicaSet": _workload, "Job": _job, "Service": _service,
    "CronJob": _cron_job,
    "PersistentVolumeClaim": _claim, "RoleBinding": _binding, "ClusterRoleBinding": _binding, "Role": _role,
    "ClusterRole": _role, "Lease": _lease, "Event": _event, "PriorityClass": _priority, "EndpointSlice": _slice,
    "StorageClass": _storage_class, "HorizontalPodAutoscaler": _autoscaler, "PodDisruptionBudget": _budget,
    "CustomResourceDefinition": crd.definition_errors,
}  # fmt: skip


# -- changes ----------------------------------------------------------------------------------------------------------


def _fixed(obj: Json, old: Json, *fields: str) -> Errors:
    return [
        invalid_value(name, obj.get(name), "field is immutable") for name in fields if obj.get(name) != old.get(name)
    ]


def _immutable_data(obj: Json, old: Json) -> Errors:
    errors: Errors = []
    if obj["kind"] == "Secret":
        errors += _fixed(obj, old, "type")
    if not old.get("immutable"):
        return errors
    if not obj.get("immutable"):
        errors.append(forbidden_field("immutable", "field is immutable when `immutable` is set"))
    for name in ("data", "binaryData"):
        if obj.get(name) != old.get(name):
            errors.append(forbidden_field(name, "field is immutable when `immutable` is set"))
    return errors


def _selector_fixed(obj: Json, old: Json) -> Errors:
    new, before = obj["spec"].get("selector"), old["spec"].get("selector")
    return [] if new == before else [invalid_value("spec.selector", new, "field is immutable")]


def _stateful_fixed(obj: Json, old: Json) -> Errors:
    free = ("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "minReadySeconds",
            "persistentVolumeClaimRetentionPolicy")  # fmt: skip
    kept = {k: v for k, v in obj["spec"].items() if k not in free}
    if kept == {k: v for k, v in old["spec"].items() if k not in free}:
        return []
    text = (
        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
        "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
    )
    return [forbidden_field("spec", text)]


def _node_fixed(obj: Json, old: Json) -> Errors:
    errors: Errors = []
    before, after = old.get("spec") or {}, obj.get("spec") or {}
    if before.get("podCIDR") and before["podCIDR"] != after.get("podCIDR"):
        text = 'node updates may not change podCIDR except from "" to valid'
        errors.append(forbidden_field("spec.podCIDRs", text))
    if before.get("providerID") and before["providerID"] != after.get("providerID"):
        text = 'node updates may not change providerID except from "" to valid'
        errors.append(forbidden_field("spec.providerID", text))
    return errors


def _role_fixed(obj: Json, old: Json) -> Errors:
    new, before = obj.get("roleRef") or {}, old.get("roleRef") or {}
    if new == before:
        return []
    shown = {"APIGroup": new.get("apiGroup", ""), "Kind": new.get("kind", ""), "Name": new.get("name", "")}
    return [invalid_value("roleRef", shown, "cannot change roleRef")]


def _class_fixed(obj: Json, old: Json) -> Errors:
    errors = _fixed(obj, old, "parameters")
    for name in ("provisioner", "reclaimPolicy"):
        if obj.get(name) != old.get(name):
            errors.append(forbidden_field(name, f"updates to {name} are forbidden."))
    return errors + _fixed(obj, old, "volumeBindingMode")


def _claim_fixed(obj: Json, old: Json) -> Errors:
    def rest(spec: Json) -> Json:
        return {k: v for k, v in spec.items() if k not in ("resources", "volumeName", "volumeAttributesClassName")}

    before, after = old["spec"], obj["spec"]
    sizes = [(s.get("resources") or {}).get("requests", {}).get("storage", "0") for s in (before, after)]
    bound = (old.get("status") or {}).get("phase") == "Bound"
    fixed = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
    renamed = before.get("volumeName") and before.get("volumeName") != after.get("volumeName")
    if rest(before) != rest(after) or renamed or (sizes[0] != sizes[1] and not bound):
        diff = ""
        if sizes[0] != sizes[1]:
            diff = (
                '\n@@ -6,7 +6,7 @@\n  "Resources": {\n   "Limits": null,\n   "Requests": {\n-   "storage": '
                f'"{sizes[0]}"\n+   "storage": "{sizes[1]}"\n   }}\n  }},\n  '
                f'"VolumeName": "{before.get("volumeName", "")}",\n'
            )
        return [forbidden_field("spec", fixed + diff)]
    if quantity(sizes[1]) < quantity(sizes[0]):
        text = "field can not be less than status.capacity"
        return [forbidden_field("spec.resources.requests.storage", text)]
    return []


def _pod_fixed(obj: Json, old: Json) -> Errors:
    def frozen(spec: Json) -> Json:
        kept = {
            k: v for k, v in spec.items()
            if k not in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
        }  # fmt: skip
        for part in ("containers", "initContainers"):
            if part in kept:
                kept[part] = [{k: v for k, v in c.items() if k != "image"} for c in kept[part]]
        if not old["spec"].get("nodeName"):
            kept.pop("nodeName", None)
        return kept

    if frozen(obj["spec"]) == frozen(old["spec"]):
        return []
    text = (
        "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
        "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
        "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
    )
    return [forbidden_field("spec", text)]


def _attachment_fixed(obj: Json, old: Json) -> Errors:
    if obj.get("spec") == old.get("spec"):
        return []
    spec = obj.get("spec") or {}
    source = spec.get("source") or {}
    shown = {
        "Attacher": spec.get("attacher", ""),
        "Source": {"PersistentVolumeName": source.get("persistentVolumeName"), "InlineVolumeSpec": None},
        "NodeName": spec.get("nodeName", ""),
    }
    return [invalid_value("spec", shown, "field is immutable")]


def _job_fixed(obj: Json, old: Json) -> Errors:
    errors = _selector_fixed(obj, old)
    if obj["spec"].get("template") != old["spec"].get("template") and not old["spec"].get("suspend"):
        errors.append(invalid_value("spec.template", obj["spec"].get("template"), "field is immutable"))
    return errors


_CHANGES: dict[str, Callable[[Json, Json], Errors]] = {
    "ConfigMap": _immutable_data, "Secret": _immutable_data, "Deployment": _selector_fixed,
    "DaemonSet": _selector_fixed, "ReplicaSet": _selector_fixed, "StatefulSet": _stateful_fixed, "Node": _node_fixed,
    "RoleBinding": _role_fixed, "ClusterRoleBinding": _role_fixed, "StorageClass": _class_fixed,
    "PersistentVolumeClaim": _claim_fixed, "Pod": _pod_fixed, "VolumeAttachment": _attachment_fixed,
    "EndpointSlice": lambda obj, old: _fixed(obj, old, "addressType"), "Job": _job_fixed,
}  # fmt: skip
