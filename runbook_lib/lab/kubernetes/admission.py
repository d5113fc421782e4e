"""The default admission plug-ins: namespace life cycle, service accounts, limits, Pod Security, quota, node taints."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from . import quota
from .schema import Kind, quantity
from .status import bad_request, forbidden, not_found

if TYPE_CHECKING:
    from .cluster import Cluster, Options

Json = dict[str, Any]
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
ANNOTATION = "kubernetes.io/limit-ranger"


def mutate(cluster: Cluster, kind: Kind, obj: Json, old: Json | None, options: Options) -> Json:
    """The object after the plug-ins that change it; refusals of the namespace come here too."""
    if old is None and kind.namespaced:
        _namespace_lives(cluster, kind, obj)
    if kind.custom is not None or kind.group not in ("", "storage.k8s.io"):
        return obj
    if old is None and kind.plural == "pods":
        return _pod(cluster, kind, obj)
    if old is None and kind.plural == "nodes":
        return _taint(obj)
    if old is None and kind.plural == "persistentvolumeclaims":
        obj = _default_class(cluster, obj)
        return _finalizer(obj, "kubernetes.io/pvc-protection")
    if old is None and kind.plural == "persistentvolumes":
        obj["status"] = obj["status"] | {"lastPhaseTransitionTime": cluster.now()}
        return _finalizer(obj, "kubernetes.io/pv-protection")
    return obj


def validate(cluster: Cluster, kind: Kind, obj: Json, old: Json | None, options: Options) -> None:
    """Refuses with 403 what the plug-ins that only judge do not allow."""
    if kind.custom is None and kind.plural == "pods" and not kind.group:
        if old is None:
            _limits(cluster, kind, obj)
        if old is None or old.get("spec") != obj.get("spec"):
            _pod_security(cluster, kind, obj["spec"], obj, options, enforce=True)
    elif kind.custom is None and kind.plural in _TEMPLATED and (old is None or old.get("spec") != obj.get("spec")):
        _pod_security(cluster, kind, _template_spec(obj), obj, options, enforce=False)
    if kind.custom is None and kind.plural == "persistentvolumeclaims" and old is None:
        _limits(cluster, kind, obj)
    if kind.group == "rbac.authorization.k8s.io":
        cluster.rbac.escalation(kind, obj, options.user)
    if kind.namespaced and (old is None or kind.plural in ("pods", "persistentvolumeclaims", "services")):
        quota.enforce(cluster, kind, obj, old)


_TEMPLATED = {"deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs", "replicationcontrollers"}


def _template_spec(obj: Json) -> Json:
    spec = obj.get("spec") or {}
    if "jobTemplate" in spec:
        spec = spec["jobTemplate"].get("spec") or {}
    return (spec.get("template") or {}).get("spec") or {}


def _namespace_lives(cluster: Cluster, kind: Kind, obj: Json) -> None:
    name = obj["metadata"].get("namespace", "")
    stored = cluster.store.get("/namespaces", ("", name))
    if kind.plural in ("localsubjectaccessreviews",):
        return
    if stored is None:
        raise not_found("", "namespaces", name)
    if stored.obj["metadata"].get("deletionTimestamp"):
        cause = {"reason": "NamespaceTerminating", "message": f"namespace {name} is being terminated"}
        text = f"unable to create new content in namespace {name} because it is being terminated"
        causes = [cause | {"field": "metadata.namespace"}]
        raise forbidden(kind.group, kind.plural, obj["metadata"].get("name", ""), text, causes)


def _finalizer(obj: Json, name: str) -> Json:
    found = obj["metadata"].get("finalizers") or []
    return obj if name in found else obj | {"metadata": obj["metadata"] | {"finalizers": [*found, name]}}


def _taint(obj: Json) -> Json:
    taints = (obj.get("spec") or {}).get("taints") or []
    key = "node.kubernetes.io/not-ready"
    if any(taint.get("key") == key for taint in taints):
        return obj
    return obj | {"spec": obj["spec"] | {"taints": [*taints, {"key": key, "effect": "NoSchedule"}]}}


def _default_class(cluster: Cluster, obj: Json) -> Json:
    if "storageClassName" in obj["spec"]:
        return obj
    for item in cluster.each("storage.k8s.io/storageclasses"):
        notes = item["metadata"].get("annotations") or {}
        if notes.get("storageclass.kubernetes.io/is-default-class") == "true":
            return obj | {"spec": obj["spec"] | {"storageClassName": item["metadata"]["name"]}}
    return obj


# -- pods -------------------------------------------------------------------------------------------------------------


def _pod(cluster: Cluster, kind: Kind, obj: Json) -> Json:
    spec = dict(obj["spec"])
    obj = obj | {"spec": spec}
    _priority(cluster, kind, obj, spec)
    _runtime_class(cluster, kind, obj, spec)
    _service_account(cluster, kind, obj, spec)
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        tolerations = spec.get("tolerations") or []
        if not any(t.get("key") in (key, None) and t.get("effect") in ("NoExecute", None) for t in tolerations):
            extra = {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            spec["tolerations"] = [*tolerations, extra]
    return _limit_defaults(cluster, obj)


def _runtime_class(cluster: Cluster, kind: Kind, obj: Json, spec: Json) -> None:
    name = spec.get("runtimeClassName")
    if not name:
        return
    found = cluster.store.get("node.k8s.io/runtimeclasses", ("", name))
    if found is None:
        text = f'pod rejected: RuntimeClass "{name}" not found'
        raise forbidden(kind.group, kind.plural, obj["metadata"].get("name", ""), text)
    if overhead := (found.obj.get("overhead") or {}).get("podFixed"):
        spec["overhead"] = overhead
    scheduling = found.obj.get("scheduling") or {}
    if scheduling.get("nodeSelector"):
        spec["nodeSelector"] = (spec.get("nodeSelector") or {}) | scheduling["nodeSelector"]
    if scheduling.get("tolerations"):
        spec["tolerations"] = [*(spec.get("tolerations") or []), *scheduling["tolerations"]]


def _priority(cluster: Cluster, kind: Kind, obj: Json, spec: Json) -> None:
    name = spec.get("priorityClassName")
    if name:
        found = cluster.store.get("scheduling.k8s.io/priorityclasses", ("", name))
        if found is None:
            text = f"no PriorityClass with name {name} was found"
            raise forbidden(kind.group, kind.plural, obj["metadata"].get("name", ""), text)
        spec["priority"] = found.obj.get("value", 0)
        spec.setdefault("preemptionPolicy", found.obj.get("preemptionPolicy", "PreemptLowerPriority"))
        return
    for item in cluster.each("scheduling.k8s.io/priorityclasses"):
        if item.get("globalDefault"):
            spec |= {"priorityClassName": item["metadata"]["name"], "priority": item.get("value", 0)}
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")


def _service_account(cluster: Cluster, kind: Kind, obj: Json, spec: Json) -> None:
    name = spec.get("serviceAccountName") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = name
    namespace = obj["metadata"]["namespace"]
    found = cluster.store.get("/serviceaccounts", (namespace, name))
    if found is None:
        text = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
        raise forbidden(kind.group, kind.plural, obj["metadata"].get("name", ""), text)
    wanted = spec.get("automountServiceAccountToken", found.obj.get("automountServiceAccountToken", True))
    if not spec.get("imagePullSecrets") and found.obj.get("imagePullSecrets"):
        spec["imagePullSecrets"] = found.obj["imagePullSecrets"]
    where = "/var/run/secrets/kubernetes.io/serviceaccount"
    if not wanted:
        return
    volume = "kube-api-access-" + "".join(secrets.choice(ALPHABET) for _ in range(5))
    used = False
    for part in ("initContainers", "containers"):
        containers = []
        for container in spec.get(part) or []:
            mounts = container.get("volumeMounts") or []
            if not any(mount.get("mountPath") == where for mount in mounts):
                used = True
                mounts = [*mounts, {"name": volume, "readOnly": True, "mountPath": where}]
                container = container | {"volumeMounts": mounts}
            containers.append(container)
        if containers:
            spec[part] = containers
    if used:
        spec["volumes"] = [*(spec.get("volumes") or []), _token_volume(volume)]


def _token_volume(name: str) -> Json:
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
    return {"name": name, "projected": {"sources": sources, "defaultMode": 420}}


def _ranges(cluster: Cluster, namespace: str, what: str) -> list[Json]:
    return [
        limit
        for item in cluster.each("/limitranges", namespace)
        for limit in (item.get("spec") or {}).get("limits") or []
        if limit.get("type") == what
    ]


def _limit_defaults(cluster: Cluster, obj: Json) -> Json:
    from .defaults import qos_class

    notes: list[str] = []
    spec = obj["spec"]
    for limit in _ranges(cluster, obj["metadata"]["namespace"], "Container"):
        containers = []
        for container in spec.get("containers") or []:
            resources = dict(container.get("resources") or {})
            for part, source, word in (("requests", "defaultRequest", "request"), ("limits", "default", "limit")):
                values = dict(resources.get(part) or {})
                fallback = limit.get(source) or {}
                if part == "requests":
                    fallback = (limit.get("default") or {}) | fallback
                for name, value in fallback.items():
                    if name not in values:
                        values[name] = value
                        notes.append(f"{name} {word} for container {container.get('name', '')}")
                if values:
                    resources[part] = values
            containers.append(container | {"resources": resources})
        spec = spec | {"containers": containers}
    if not notes:
        return obj
    annotations = (obj["metadata"].get("annotations") or {}) | {
        ANNOTATION: "LimitRanger plugin set: " + "; ".join(notes)
    }
    meta = obj["metadata"] | {"annotations": annotations}
    status = obj["status"] | {"qosClass": qos_class(spec)}
    return obj | {"metadata": meta, "spec": spec, "status": status}


def _limits(cluster: Cluster, kind: Kind, obj: Json) -> None:
    namespace, name = obj["metadata"]["namespace"], obj["metadata"].get("name", "")
    if kind.plural == "persistentvolumeclaims":
        asked = ((obj["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0")
        for limit in _ranges(cluster, namespace, "PersistentVolumeClaim"):
            most, least = (limit.get("max") or {}).get("storage"), (limit.get("min") or {}).get("storage")
            if most and quantity(asked) > quantity(most):
                text = f"maximum storage usage per PersistentVolumeClaim is {most}, but request is {asked}"
                raise forbidden(kind.group, kind.plural, name, text)
            if least and quantity(asked) < quantity(least):
                text = f"minimum storage usage per PersistentVolumeClaim is {least}, but request is {asked}"
                raise forbidden(kind.group, kind.plural, name, text)
        return
    for limit in _ranges(cluster, namespace, "Container"):
        for container in obj["spec"].get("containers") or []:
            resources = container.get("resources") or {}
            for resource, least in (limit.get("min") or {}).items():
                value = (resources.get("requests") or {}).get(resource)
                if value is not None and quantity(value) < quantity(least):
                    text = f"minimum {resource} usage per Container is {least}, but request is {value}"
                    raise forbidden(kind.group, kind.plural, name, text)
            for resource, most in (limit.get("max") or {}).items():
                value = (resources.get("limits") or {}).get(resource)
                if value is not None and quantity(value) > quantity(most):
                    text = f"maximum {resource} usage per Container is {most}, but limit is {value}"
                    raise forbidden(kind.group, kind.plural, name, text)


# -- Pod Security -----------------------------------------------------------------------------------------------------


def _pod_security(
    cluster: Cluster, kind: Kind, spec: Json, obj: Json, options: Options, *, enforce: bool
) -> None:  # fmt: skip
    namespace = cluster.store.get("/namespaces", ("", obj["metadata"].get("namespace", "")))
    labels = (namespace.obj["metadata"].get("labels") or {}) if namespace else {}
    for mode in ("enforce", "warn") if enforce else ("warn",):
        level = labels.get(f"pod-security.kubernetes.io/{mode}", "privileged")
        found = violations(spec, level)
        if not found:
            continue
        version = labels.get(f"pod-security.kubernetes.io/{mode}-version", "latest")
        text = f'"{level}:{version}": ' + ", ".join(found)
        if mode == "enforce":
            raise forbidden(kind.group, kind.plural, obj["metadata"].get("name", ""), "violates PodSecurity " + text)
        options.warnings.append("would violate PodSecurity " + text)


def _quoted(names: list[str], word: str) -> str:
    shown = ", ".join(f'"{name}"' for name in names)
    return f"{word} {shown}" if len(names) == 1 else f"{word}s {shown}"


def violations(spec: Json, level: str) -> list[str]:
    """What a pod specification breaks of a Pod Security level, in the words of its refusal."""
    if level not in ("baseline", "restricted"):
        return []
    every = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    found: list[tuple[str, str]] = []
    _baseline(spec, every, found)
    if level == "restricted":
        _restricted(spec, every, found)
    return [text for _, text in sorted(found)]


def _context(container: Json) -> Json:
    return container.get("securityContext") or {}


_ALLOWED = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip


def _baseline(spec: Json, every: list[Json], found: list[tuple[str, str]]) -> None:
    shared = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if shared:
        text = "host namespaces (" + ", ".join(f"{name}=true" for name in sorted(shared)) + ")"
        found.append(("hostNamespaces", text))
    paths = [v["name"] for v in spec.get("volumes") or [] if "hostPath" in v]
    if paths:
        found.append(("hostPathVolumes", f"hostPath volumes ({_quoted(paths, 'volume')})"))
    ports = [c["name"] for c in every if any(p.get("hostPort") for p in c.get("ports") or [])]
    if ports:
        values = sorted({str(p["hostPort"]) for c in every for p in c.get("ports") or [] if p.get("hostPort")})
        word = "hostPort" if len(values) == 1 else "hostPorts"
        verb = "uses" if len(ports) == 1 else "use"
        found.append(("hostPorts", f"hostPort ({_quoted(ports, 'container')} {verb} {word} {', '.join(values)})"))
    privileged = [c["name"] for c in every if _context(c).get("privileged")]
    if privileged:
        text = f"privileged ({_quoted(privileged, 'container')} must not set securityContext.privileged=true)"
        found.append(("privileged", text))
    adding, added = [], set()
    for container in every:
        extra = set((_context(container).get("capabilities") or {}).get("add") or []) - _ALLOWED
        if extra:
            adding.append(container["name"])
            added |= extra
    if adding:
        names = ", ".join(f'"{name}"' for name in sorted(added))
        text = f"{_quoted(adding, 'container')} must not include {names} in securityContext.capabilities.add"
        found.append(("capabilities_baseline", f"non-default capabilities ({text})"))


_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def _restricted(spec: Json, every: list[Json], found: list[tuple[str, str]]) -> None:
    pod = spec.get("securityContext") or {}
    escalating = [c["name"] for c in every if _context(c).get("allowPrivilegeEscalation") is not False]
    if escalating:
        text = f"{_quoted(escalating, 'container')} must set securityContext.allowPrivilegeEscalation=false"
        found.append(("allowPrivilegeEscalation", f"allowPrivilegeEscalation != false ({text})"))
    loose = [c["name"] for c in every if "ALL" not in ((_context(c).get("capabilities") or {}).get("drop") or [])]
    if loose:
        text = f'{_quoted(loose, "container")} must set securityContext.capabilities.drop=["ALL"]'
        found.append(("capabilities_restricted", f"unrestricted capabilities ({text})"))
    kinds = [(v["name"], next(iter(set(v) - {"name"}), "emptyDir")) for v in spec.get("volumes") or []]
    bad = [(name, kind) for name, kind in kinds if kind not in _VOLUMES]
    if bad:
        shown = ", ".join(f'"{kind}"' for kind in sorted({kind for _, kind in bad}))
        verb = "uses" if len(bad) == 1 else "use"
        word = "type" if len({kind for _, kind in bad}) == 1 else "types"
        text = f"{_quoted([n for n, _ in bad], 'volume')} {verb} restricted volume {word} {shown}"
        found.append(("restrictedVolumes", f"restricted volume types ({text})"))
    rooted = [c["name"] for c in every if not _context(c).get("runAsNonRoot", pod.get("runAsNonRoot", False))]
    if rooted:
        who = f"pod or {_quoted(rooted, 'container')}"
        found.append(("runAsNonRoot", f"runAsNonRoot != true ({who} must set securityContext.runAsNonRoot=true)"))
    zero = [c["name"] for c in every if _context(c).get("runAsUser") == 0]
    if zero or pod.get("runAsUser") == 0:
        who = _quoted(zero, "container") if zero else "pod"
        found.append(("runAsUser", f"runAsUser=0 ({who} must not set runAsUser=0)"))
    profile = (pod.get("seccompProfile") or {}).get("type")
    open_ = [
        c["name"]
        for c in every
        if (_context(c).get("seccompProfile") or {}).get("type", profile) not in ("RuntimeDefault", "Localhost")
    ]
    if open_:
        who = f"pod or {_quoted(open_, 'container')}"
        text = f'{who} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
        found.append(("seccompProfile", f"seccompProfile ({text})"))


def dry_run_option(values: list[str]) -> bool:
    """True for dryRun=All; ApiError 400 for anything else is left to the caller."""
    if any(value != "All" for value in values):
        raise bad_request("dryRun must be All")
    return bool(values)
