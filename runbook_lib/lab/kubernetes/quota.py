"""ResourceQuota: what a namespace uses, and the refusal when a new object would use too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schema import Kind, format_quantity, quantity
from .status import forbidden

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
COMPUTE = ("cpu", "memory", "ephemeral-storage")
COUNTED = {
    "pods": "pods", "services": "services", "configmaps": "configmaps", "secrets": "secrets",
    "persistentvolumeclaims": "persistentvolumeclaims", "replicationcontrollers": "replicationcontrollers",
    "resourcequotas": "resourcequotas",
}  # fmt: skip


def usage(kind: Kind, obj: Json) -> dict[str, float]:
    """What one object counts against a quota, by resource name."""
    found: dict[str, float] = {f"count/{kind.plural}" + (f".{kind.group}" if kind.group else ""): 1.0}
    if not kind.group and kind.plural in COUNTED:
        found[COUNTED[kind.plural]] = 1.0
    spec = obj.get("spec") or {}
    if kind.plural == "pods" and not kind.group:
        if (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return {"count/pods": 1.0}
        found |= _pod(spec)
    elif kind.plural == "persistentvolumeclaims" and not kind.group:
        size = quantity(((spec.get("resources") or {}).get("requests") or {}).get("storage", 0))
        found["requests.storage"] = size
        if spec.get("storageClassName"):
            prefix = f"{spec['storageClassName']}.storageclass.storage.k8s.io"
            found[f"{prefix}/requests.storage"] = size
            found[f"{prefix}/persistentvolumeclaims"] = 1.0
    elif kind.plural == "services" and not kind.group:
        ports = len(spec.get("ports") or [])
        found["services.nodeports"] = float(ports if spec.get("type") in ("NodePort", "LoadBalancer") else 0)
        found["services.loadbalancers"] = float(spec.get("type") == "LoadBalancer")
    return found


def _pod(spec: Json) -> dict[str, float]:
    found: dict[str, float] = {}
    for part, prefix in (("requests", "requests."), ("limits", "limits.")):
        total: dict[str, float] = {}
        for container in spec.get("containers") or []:
            for name, value in ((container.get("resources") or {}).get(part) or {}).items():
                total[name] = total.get(name, 0.0) + quantity(value)
        for container in spec.get("initContainers") or []:
            for name, value in ((container.get("resources") or {}).get(part) or {}).items():
                total[name] = max(total.get(name, 0.0), quantity(value))
        for name, value in total.items():
            found[prefix + name] = value
            if part == "requests" and name in COMPUTE:
                found[name] = value
    return found


def _in_scope(spec: Json, kind: Kind, obj: Json) -> bool:
    for scope in spec.get("scopes") or []:
        if kind.plural != "pods":
            return False
        ends = "activeDeadlineSeconds" in (obj.get("spec") or {})
        best = (obj.get("status") or {}).get("qosClass") == "BestEffort"
        if {"Terminating": not ends, "NotTerminating": ends, "BestEffort": not best, "NotBestEffort": best}.get(scope):
            return False
    return True


def used(cluster: Cluster, namespace: str, spec: Json) -> dict[str, float]:
    """The sum over the namespace, of the resources a quota limits."""
    total = dict.fromkeys(spec.get("hard") or {}, 0.0)
    for bucket in list(cluster.store.buckets):
        kind = cluster.registry.of_bucket(bucket)
        if kind is None or not kind.namespaced:
            continue
        for obj in cluster.each(bucket, namespace):
            for name, value in usage(kind, obj).items():
                if name in total and _in_scope(spec, kind, obj):
                    total[name] += value
    return total


def refresh(cluster: Cluster, namespace: str) -> None:
    """Writes status.hard and status.used of the namespace's quotas where they changed."""
    for obj in list(cluster.each("/resourcequotas", namespace)):
        hard = (obj.get("spec") or {}).get("hard") or {}
        total = used(cluster, namespace, obj.get("spec") or {})
        status = {"hard": hard, "used": {name: format_quantity(total[name], str(hard[name])) for name in hard}}
        if status != obj.get("status"):
            cluster.store.put("/resourcequotas", (namespace, obj["metadata"]["name"]), obj | {"status": status})
            cluster.dirty.discard(("quota", namespace))


def enforce(cluster: Cluster, kind: Kind, obj: Json, old: Json | None) -> None:
    """Refuses with 403 what would exceed a quota of the object's namespace."""
    namespace = obj["metadata"].get("namespace", "")
    wanted = usage(kind, obj)
    before = usage(kind, old) if old else {}
    name = obj["metadata"].get("name", "")
    for item in cluster.each("/resourcequotas", namespace):
        spec = item.get("spec") or {}
        hard = spec.get("hard") or {}
        if not _in_scope(spec, kind, obj):
            continue
        label = item["metadata"]["name"]
        if kind.plural == "pods" and not kind.group and old is None:
            missing = _unstated(hard, obj)
            if missing:
                text = f"failed quota: {label}: must specify {missing}"
                raise forbidden(kind.group, kind.plural, name, text)
        delta = {n: wanted.get(n, 0.0) - before.get(n, 0.0) for n in hard}
        grown = {n: value for n, value in delta.items() if value > 0}
        if not grown:
            continue
        total = used(cluster, namespace, spec)
        over = [n for n in grown if total[n] + grown[n] > quantity(hard[n])]
        if over:
            shown = sorted(over)

            def total_of(values: dict[str, Any], shown: list[str] = shown, hard: Json = hard) -> str:
                return ",".join(f"{n}={_show(values[n], str(hard[n]))}" for n in shown)

            raise forbidden(
                kind.group, kind.plural, name,
                f"exceeded quota: {label}, requested: {total_of(grown)}, used: {total_of(total)}, "
                f"limited: {total_of(hard)}",
            )  # fmt: skip


def _show(value: Any, like: str) -> str:
    return value if isinstance(value, str) else format_quantity(value, like)


def _unstated(hard: Json, pod: Json) -> str:
    rows: list[str] = []
    for name in sorted(hard):
        part, _, resource = name.rpartition(".")
        if part not in ("requests", "limits") and resource not in COMPUTE:
            continue
        section = part or "requests"
        if resource not in COMPUTE:
            continue
        lacking = [
            container["name"]
            for container in (pod.get("spec") or {}).get("containers") or []
            if resource not in ((container.get("resources") or {}).get(section) or {})
        ]
        if lacking:
            rows.append(f"{name} for: {','.join(lacking)}")
    return "; ".join(rows)
