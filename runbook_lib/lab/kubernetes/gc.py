"""What a real cluster does behind the API at once: garbage collection, namespace termination, default service
accounts, quota status, role aggregation. `note` marks what a change touched, `settle` works it off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import aggregated, certificates, crd, quota, rbac
from .schema import Kind
from .store import Change, Key

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
DESCRIPTION = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the "
    "internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
    "clusters."
)


def note(cluster: Cluster, bucket: str, change: Change) -> None:
    """Marks what a change may set in motion."""
    namespace = change.key[0]
    aggregated.note(cluster, bucket)
    if bucket == "/namespaces":
        if change.type == "ADDED":
            cluster.dirty.add(("new-namespace", change.key[1]))
        elif change.new.obj["metadata"].get("deletionTimestamp") and change.type != "DELETED":
            cluster.dirty.add(("namespace", change.key[1]))
        return
    if bucket == crd.BUCKET:
        if change.type == "ADDED" or change.new.obj["metadata"].get("deletionTimestamp"):
            cluster.dirty.add(("definition", change.key[1]))
        return
    if change.type == "DELETED":
        group, _, plural = bucket.partition("/")
        definition = cluster.store.get(crd.BUCKET, ("", f"{plural}.{group}")) if "." in group else None
        if definition is not None and definition.obj["metadata"].get("deletionTimestamp"):
            cluster.dirty.add(("definition", definition.obj["metadata"]["name"]))
    if bucket == certificates.BUCKET and change.type == "MODIFIED":
        cluster.dirty.add(("request", change.key[1]))
    if bucket == "rbac.authorization.k8s.io/clusterroles":
        cluster.dirty.add(("aggregate", ""))
    if namespace:
        cluster.dirty.add(("quota", namespace))
        if change.type == "DELETED":
            cluster.dirty.add(("namespace", namespace))
        elif bucket == "/serviceaccounts" or bucket == "/configmaps":
            pass


def settle(cluster: Cluster) -> None:
    """Works off everything that is marked, until nothing is."""
    if cluster.dirty and getattr(cluster, "_settling", False):
        return
    cluster._settling = True  # type: ignore[attr-defined]
    try:
        for _ in range(10_000):
            if not cluster.dirty:
                return
            what, name = cluster.dirty.pop()
            _WORK[what](cluster, name)
    finally:
        cluster._settling = False  # type: ignore[attr-defined]


def _kind(cluster: Cluster, bucket: str) -> Kind | None:
    return cluster.registry.of_bucket(bucket)


def _delete(cluster: Cluster, bucket: str, key: Key, policy: str = "Background") -> None:
    from .cluster import Options

    kind = _kind(cluster, bucket)
    stored = cluster.store.get(bucket, key)
    if kind is None or stored is None or stored.obj["metadata"].get("deletionTimestamp"):
        return
    cluster.delete(kind, key[0], key[1], {"propagationPolicy": policy}, Options())


def _owner_gone(cluster: Cluster, uid: str) -> None:
    for bucket, key in sorted(cluster.owners.pop(uid, set())):
        stored = cluster.store.get(bucket, key)
        if stored is None:
            continue
        references = stored.obj["metadata"].get("ownerReferences") or []
        left = [r for r in references if r.get("uid") != uid and r.get("uid") in cluster.uids]
        if left:
            _put_meta(cluster, bucket, key, stored.obj, ownerReferences=left)
        elif any(r.get("uid") == uid for r in references):
            _delete(cluster, bucket, key)
        for reference in references:
            owner = cluster.uids.get(reference.get("uid", ""))
            if owner:
                cluster.dirty.add(("deleting", reference["uid"]))


def _put_meta(cluster: Cluster, bucket: str, key: Key, obj: Json, **changes: Any) -> None:
    meta = {k: v for k, v in (obj["metadata"] | changes).items() if v not in ([], None)}
    if meta.get("deletionTimestamp") and not meta.get("finalizers") and not meta.get("deletionGracePeriodSeconds"):
        cluster.store.remove(bucket, key, obj | {"metadata": meta})
        return
    cluster.store.put(bucket, key, obj | {"metadata": meta})


def _deleting(cluster: Cluster, uid: str) -> None:
    place = cluster.uids.get(uid)
    stored = cluster.store.get(*place) if place else None
    if stored is None or place is None:
        return
    bucket, key = place
    finalizers = stored.obj["metadata"].get("finalizers") or []
    if not stored.obj["metadata"].get("deletionTimestamp"):
        return
    dependents = sorted(cluster.owners.get(uid, set()))
    if "orphan" in finalizers:
        for where, name in dependents:
            other = cluster.store.get(where, name)
            if other:
                references = other.obj["metadata"].get("ownerReferences") or []
                _put_meta(cluster, where, name, other.obj, ownerReferences=[r for r in references if r["uid"] != uid])
        _put_meta(cluster, bucket, key, stored.obj, finalizers=[f for f in finalizers if f != "orphan"])
    elif "foregroundDeletion" in finalizers:
        blocking = False
        for where, name in dependents:
            _delete(
                cluster, where, name, "Foreground" if cluster.owners.get(_uid(cluster, where, name)) else "Background"
            )
            other = cluster.store.get(where, name)
            references = other.obj["metadata"].get("ownerReferences") or [] if other else []
            blocking = blocking or any(r["uid"] == uid and r.get("blockOwnerDeletion") for r in references)
        if not blocking:
            stored = cluster.store.get(bucket, key) or stored
            _put_meta(cluster, bucket, key, stored.obj, finalizers=[f for f in finalizers if f != "foregroundDeletion"])


def _uid(cluster: Cluster, bucket: str, key: Key) -> str:
    stored = cluster.store.get(bucket, key)
    return str(stored.obj["metadata"].get("uid", "")) if stored else ""


def _owned(cluster: Cluster, uid: str) -> None:
    place = cluster.uids.get(uid)
    stored = cluster.store.get(*place) if place else None
    if stored is None or place is None or getattr(cluster, "_loading", False):
        return
    references = stored.obj["metadata"].get("ownerReferences") or []
    if references and not any(r.get("uid") in cluster.uids for r in references):
        _delete(cluster, *place)


def _new_namespace(cluster: Cluster, name: str) -> None:
    for kind, obj in (
        ("serviceaccounts", {"kind": "ServiceAccount", "metadata": {"name": "default"}}),
        (
            "configmaps",
            {
                "kind": "ConfigMap",
                "metadata": {"name": "kube-root-ca.crt", "annotations": {"kubernetes.io/description": DESCRIPTION}},
                "data": {"ca.crt": cluster.ca_pem},
            },
        ),
    ):
        meta = obj["metadata"]
        if cluster.store.get("/" + kind, (name, meta["name"])) is None:  # type: ignore[index]
            cluster._load({"apiVersion": "v1"} | obj | {"metadata": meta | {"namespace": name}})  # type: ignore[operator]


def _namespace(cluster: Cluster, name: str) -> None:
    stored = cluster.store.get("/namespaces", ("", name))
    if stored is None or not stored.obj["metadata"].get("deletionTimestamp"):
        return
    left: dict[str, int] = {}
    finalizers: dict[str, int] = {}
    for bucket in list(cluster.store.buckets):
        for key, item in list(cluster.store.scan(bucket, name)):
            _delete(cluster, bucket, key)
            still = cluster.store.get(bucket, key)
            if still is not None:
                kind = _kind(cluster, bucket)
                label = f"{kind.plural}.{kind.group}" if kind else bucket
                left[label] = left.get(label, 0) + 1
                for finalizer in item.obj["metadata"].get("finalizers") or []:
                    finalizers[finalizer] = finalizers.get(finalizer, 0) + 1
    stored = cluster.store.get("/namespaces", ("", name)) or stored
    if not left:
        spec = {k: v for k, v in (stored.obj.get("spec") or {}).items() if k != "finalizers"}
        rest = [f for f in (stored.obj.get("spec") or {}).get("finalizers") or [] if f != "kubernetes"]
        if rest or stored.obj["metadata"].get("finalizers"):
            spec |= {"finalizers": rest} if rest else {}
            if spec != stored.obj.get("spec"):
                cluster.store.put("/namespaces", ("", name), stored.obj | {"spec": spec})
            return
        cluster.store.remove("/namespaces", ("", name), stored.obj | {"spec": spec})
        return
    conditions = _conditions(cluster, stored.obj, left, finalizers)
    if conditions != (stored.obj.get("status") or {}).get("conditions"):
        status = (stored.obj.get("status") or {}) | {"conditions": conditions}
        cluster.store.put("/namespaces", ("", name), stored.obj | {"status": status})
        cluster.dirty.discard(("namespace", name))


def _conditions(cluster: Cluster, obj: Json, left: dict[str, int], finalizers: dict[str, int]) -> list[Json]:
    content = ", ".join(f"{label} has {count} resource instances" for label, count in sorted(left.items()))
    holding = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(finalizers.items()))
    rows = [
        ("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", "All resources successfully discovered"),
        ("NamespaceDeletionGroupVersionParsingFailure", "False", "ParsedGroupVersions",
         "All legacy kube types successfully parsed"),
        ("NamespaceDeletionContentFailure", "False", "ContentDeleted",
         "All content successfully deleted, may be waiting on finalization"),
        ("NamespaceContentRemaining", "True", "SomeResourcesRemain", f"Some resources are remaining: {content}"),
    ]  # fmt: skip
    if finalizers:
        text = f"Some content in the namespace has finalizers remaining: {holding}"
        rows.append(("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", text))
    else:
        text = "All content-preserving finalizers finished"
        rows.append(("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", text))
    before = {c["type"]: c for c in (obj.get("status") or {}).get("conditions") or []}
    found = []
    for name, value, reason, message in rows:
        old = before.get(name)
        stamp = old["lastTransitionTime"] if old and old["status"] == value else cluster.now()
        found.append({"type": name, "status": value, "lastTransitionTime": stamp, "reason": reason, "message": message})
    return found


def _quota(cluster: Cluster, namespace: str) -> None:
    quota.refresh(cluster, namespace)


def _aggregate(cluster: Cluster, _: str) -> None:
    rbac.aggregate(cluster)


_WORK = {
    "deleted": _owner_gone, "deleting": _deleting, "owned": _owned, "new-namespace": _new_namespace,
    "namespace": _namespace, "quota": _quota, "aggregate": _aggregate,
    "definition": crd.finalize, "aggregated": aggregated.refresh, "request": certificates.settle,
}  # fmt: skip
