"""Aggregated APIs: kinds that have no storage of their own but are a view onto other objects.

`metrics.k8s.io` shows what nodes and running pods use, `apps.cozystack.io` shows HelmReleases as applications,
`core.cozystack.io` shows the tenants' namespaces, modules and secrets. An area is served while its APIService is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import crd, patch, security_groups
from .schema import Kind, quantity
from .status import ApiError, bad_request, invalid
from .store import Key

if TYPE_CHECKING:
    from .cluster import Cluster, Options

Json = dict[str, Any]
RELEASES = "helm.toolkit.fluxcd.io/helmreleases"
SERVICES = "apiregistration.k8s.io/apiservices"
CATALOGUES = ("cozystack.io/applicationdefinitions", "cozystack.io/cozystackresourcedefinitions")
LABEL = "apps.cozystack.io/application."
MODULE, RESOURCE = "internal.cozystack.io/tenantmodule", "internal.cozystack.io/tenantresource"
READ = ("get", "list", "watch")
GIB = 1 << 30


@dataclass(frozen=True)
class View:
    """How objects of one bucket look as another kind. `select` sees the stored object, `show` makes the shown one."""

    select: Callable[[Json], bool]
    show: Callable[[Json, Cluster], Json]
    prefix: str = ""  # the stored name is this and the shown name
    writable: bool = False
    schema: str = ""

    def key(self, namespace: str, name: str) -> Key:
        """Where the object behind a shown one is stored."""
        return namespace, self.prefix + name


def view_of(kind: Kind) -> View | None:
    """The view a kind is, or None for a kind with objects of its own."""
    found: View | None = kind.extras.get("view")
    return found


def note(cluster: Cluster, bucket: str) -> None:
    """Marks that the set of aggregated kinds may have changed."""
    if bucket == SERVICES or bucket in CATALOGUES:
        cluster.dirty.add(("aggregated", ""))


def refresh(cluster: Cluster, _: str = "") -> None:
    """Serves the kinds of every area whose APIService is there, and no others."""
    wanted: dict[tuple[str, str, str], Kind] = {}
    for service in cluster.each(SERVICES):
        spec = service.get("spec") or {}
        area = AREAS.get((spec.get("group", ""), spec.get("version", ""))) if spec.get("service") else None
        for kind in area(cluster) if area else ():
            wanted[(kind.group, kind.version, kind.plural)] = kind
    for kind in [kind for kind in cluster.registry.order if view_of(kind)]:
        if (kind.group, kind.version, kind.plural) not in wanted:
            cluster.registry.remove(kind)
    for place, kind in wanted.items():
        present = cluster.registry.by_url.get(place)
        if present is None or present.extras.get("stamp") != kind.extras.get("stamp"):
            cluster.registry.add(kind)


def check_available(cluster: Cluster, group: str, version: str) -> None:
    """Raises 503 when the APIService says that nobody answers behind it."""
    stored = cluster.store.get(SERVICES, ("", f"{version}.{group}"))
    if stored is None or not (stored.obj.get("spec") or {}).get("service"):
        return
    rows = (stored.obj.get("status") or {}).get("conditions") or []
    if any(row.get("type") == "Available" and row.get("status") == "False" for row in rows):
        raise ApiError(503, "ServiceUnavailable", "the server is currently unable to handle the request", {})


# -- metrics.k8s.io ---------------------------------------------------------------------------------------------------


def usage(pod: Json) -> dict[str, tuple[float, float]]:
    """CPU cores and bytes each container of a pod uses: steady invented numbers around what it asked for."""
    found = {}
    uid = pod["metadata"].get("uid", "")
    for container in (pod.get("spec") or {}).get("containers") or []:
        seed = hashlib.sha256(f"{uid}/{container.get('name')}".encode()).digest()
        asked = (container.get("resources") or {}).get("requests") or {}
        cores, size = quantity(asked.get("cpu", "20m")), quantity(asked.get("memory", "96Mi"))
        share = (0.15 + 0.6 * seed[0] / 255, 0.4 + 0.5 * seed[1] / 255)
        found[str(container.get("name", ""))] = (cores * share[0], size * share[1])
    return found


def _shown(cores: float, size: float) -> Json:
    return {"cpu": f"{round(cores * 1e9)}n", "memory": f"{round(size / 1024)}Ki"}


def _meta(obj: Json, cluster: Cluster) -> Json:
    meta = {key: obj["metadata"][key] for key in ("name", "namespace", "labels") if key in obj["metadata"]}
    return meta | {"creationTimestamp": cluster.now()}


def _pod_metrics(pod: Json, cluster: Cluster) -> Json:
    rows = [{"name": name, "usage": _shown(*used)} for name, used in cluster.usage(pod).items()]
    head = {"kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": _meta(pod, cluster)}
    return head | {"timestamp": cluster.now(), "window": "15s", "containers": rows}


def _node_metrics(node: Json, cluster: Cluster) -> Json:
    cores, size = _by_node(cluster).get(node["metadata"]["name"], (0.0, 0.0))
    head = {"kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": _meta(node, cluster)}
    return head | {"timestamp": cluster.now(), "window": "15s", "usage": _shown(cores + 0.12, size + 0.9 * GIB)}


def _by_node(cluster: Cluster) -> dict[str, tuple[float, float]]:
    known: tuple[int, dict[str, tuple[float, float]]] | None = getattr(cluster, "_used", None)
    if known is not None and known[0] == cluster.store.rv:
        return known[1]
    found: dict[str, tuple[float, float]] = {}
    for pod in cluster.each("/pods"):
        if _runs(pod):
            name = pod["spec"].get("nodeName", "")
            cores, size = found.get(name, (0.0, 0.0))
            rows = cluster.usage(pod).values()
            found[name] = (cores + sum(row[0] for row in rows), size + sum(row[1] for row in rows))
    cluster._used = (cluster.store.rv, found)
    return found


def _runs(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running"


def _is_ready(node: Json) -> bool:
    rows = (node.get("status") or {}).get("conditions") or []
    return any(row.get("type") == "Ready" and row.get("status") == "True" for row in rows)


def _metrics(cluster: Cluster) -> list[Kind]:
    def kind(name: str, plural: str, bucket: str, view: View, *, namespaced: bool) -> Kind:
        return Kind(
            "metrics.k8s.io", "v1beta1", name, plural, namespaced, bucket, verbs=("get", "list"),
            extras={"view": view, "stamp": ""},
        )  # fmt: skip

    return [
        kind("NodeMetrics", "nodes", "/nodes", View(_is_ready, _node_metrics), namespaced=False),
        kind("PodMetrics", "pods", "/pods", View(_runs, _pod_metrics), namespaced=True),
    ]


# -- core.cozystack.io ------------------------------------------------------------------------------------------------


def _renamed(kind: str, **fields: str) -> Callable[[Json, Cluster], Json]:
    def show(obj: Json, cluster: Cluster) -> Json:
        meta = {k: v for k, v in obj["metadata"].items() if k not in ("managedFields", "ownerReferences", "finalizers")}
        head = {"kind": kind, "apiVersion": "core.cozystack.io/v1alpha1", "metadata": meta}
        return head | {name: obj[field] for name, field in fields.items() if field in obj}

    return show


def _module(obj: Json, cluster: Cluster) -> Json:
    shown = _renamed("TenantModule")(obj, cluster)
    version = ((obj.get("status") or {}).get("history") or [{}])[0].get("chartVersion", "")
    return shown | {"appVersion": version, "status": _status(obj)}


def _labelled(label: str, value: str = "true") -> Callable[[Json], bool]:
    return lambda obj: (obj["metadata"].get("labels") or {}).get(label) == value


def _core(cluster: Cluster) -> list[Kind]:
    def kind(name: str, bucket: str, view: View, *, namespaced: bool) -> Kind:
        return Kind(
            "core.cozystack.io", "v1alpha1", name, name.lower() + "s", namespaced, bucket, singular=name.lower(),
            verbs=READ, extras={"view": view, "stamp": ""},
        )  # fmt: skip

    tenant = View(lambda obj: obj["metadata"]["name"].startswith("tenant-"), _renamed("TenantNamespace"))
    secret = View(_labelled(RESOURCE), _renamed("TenantSecret", data="data", type="type"))
    return [
        kind("TenantNamespace", "/namespaces", tenant, namespaced=False),
        kind("TenantModule", RELEASES, View(_labelled(MODULE), _module), namespaced=True),
        kind("TenantSecret", "/secrets", secret, namespaced=True),
    ]


# -- apps.cozystack.io ------------------------------------------------------------------------------------------------


def _status(release: Json) -> Json:
    status = release.get("status") or {}
    keys = ("type", "status", "lastTransitionTime", "reason", "message")
    rows = [{key: row[key] for key in keys if key in row} for row in status.get("conditions") or []]
    version = (status.get("history") or [{}])[0].get("chartVersion") or status.get("lastAttemptedRevision", "")
    return {"conditions": rows} | ({"version": version} if version else {})


def _application(name: str) -> Callable[[Json, Cluster], Json]:
    def show(release: Json, cluster: Cluster) -> Json:
        meta = {k: v for k, v in release["metadata"].items() if k not in ("managedFields", "ownerReferences")}
        labels = meta.get("labels") or {}
        meta["name"] = labels.get(f"{LABEL}name", meta["name"])
        meta["labels"] = {k: v for k, v in labels.items() if not k.startswith((LABEL, "internal.cozystack.io/"))}
        if not meta["labels"]:
            del meta["labels"]
        head = {"kind": name, "apiVersion": "apps.cozystack.io/v1alpha1", "appVersion": "*", "metadata": meta}
        return head | {"spec": (release.get("spec") or {}).get("values") or {}, "status": _status(release)}

    return show


def _apps(cluster: Cluster) -> list[Kind]:
    found = []
    for bucket in CATALOGUES:
        for definition in cluster.each(bucket):
            spec = definition.get("spec") or {}
            naming, release = spec.get("application") or {}, spec.get("release") or {}
            name, plural = naming.get("kind", ""), naming.get("plural", "")
            if not name or not plural:
                continue
            view = View(
                _labelled(f"{LABEL}kind", name), _application(name), prefix=release.get("prefix", ""), writable=True,
                schema=naming.get("openAPISchema", ""),
            )  # fmt: skip
            found.append(
                Kind(
                    "apps.cozystack.io", "v1alpha1", name, plural, True, RELEASES, node={"m": "*"},
                    singular=naming.get("singular", name.lower()),
                    extras={"view": view, "stamp": json.dumps(spec, sort_keys=True), "release": release},
                )
            )  # fmt: skip
    return found


def _sdn(cluster: Cluster) -> list[Kind]:
    if cluster.registry.of_bucket(security_groups.BUCKET) is None:
        return []
    return [
        Kind(
            "sdn.cozystack.io", "v1alpha1", "SecurityGroup", "securitygroups", True, security_groups.BUCKET,
            node={"m": "*"}, singular="securitygroup", short=("sg",),
            extras={
                "view": View(security_groups.is_group, security_groups.show, writable=True), "stamp": "",
                "behind": security_groups.policy, "errors": security_groups.errors,
            },
        )
    ]  # fmt: skip


AREAS: dict[tuple[str, str], Callable[[Cluster], list[Kind]]] = {
    ("metrics.k8s.io", "v1beta1"): _metrics,
    ("core.cozystack.io", "v1alpha1"): _core,
    ("apps.cozystack.io", "v1alpha1"): _apps,
    ("sdn.cozystack.io", "v1alpha1"): _sdn,
}


# -- writes of applications -------------------------------------------------------------------------------------------


def _stored_kind(cluster: Cluster, bucket: str) -> Kind:
    kind = cluster.registry.of_bucket(bucket)
    if kind is None:
        raise ApiError(500, "InternalError", f"no matches for {bucket}", {})
    return kind


def _release_kind(cluster: Cluster) -> Kind:
    return _stored_kind(cluster, RELEASES)


def _projected(kind: Kind, body: Json, old: Json | None) -> Json:
    """What is stored for a kind that is another one seen differently; ApiError 422 where its own rules refuse it."""
    errors = kind.extras["errors"](body)
    if errors:
        raise invalid(kind.group, kind.kind, str((body.get("metadata") or {}).get("name", "")), errors)
    found: Json = kind.extras["behind"](body, old)
    return found


def _checked(kind: Kind, view: View, name: str, spec: Any) -> Json:
    if not isinstance(spec, dict):
        raise bad_request("spec must be an object")
    try:
        schema = json.loads(view.schema or "{}")
    except ValueError:
        schema = {}
    if schema.get("properties"):
        wrapped = {"type": "object", "properties": {"spec": schema}}
        shape = Kind(kind.group, kind.version, kind.kind, kind.plural, True, "", custom={
            "schema": {"openAPIV3Schema": wrapped},
        })  # fmt: skip
        found = crd.default(shape, {"spec": spec})
        errors = crd.validate(shape, found)
        if errors:
            raise invalid(kind.group, kind.kind, name, errors)
        spec = found["spec"]
    return dict(spec)


def create(cluster: Cluster, kind: Kind, namespace: str, body: Json, options: Options) -> Json:
    """The new application; its HelmRelease is what is stored."""
    view = view_of(kind)
    assert view is not None
    given = body.get("metadata") or {}
    name = str(given.get("name") or "")
    if not name:
        raise bad_request("metadata.name is required")
    if "behind" in kind.extras:
        made = cluster.create(_stored_kind(cluster, kind.bucket), namespace, _projected(kind, body, None), options)
        return view.show(made, cluster)
    labels = (given.get("labels") or {}) | {
        f"{LABEL}group": kind.group, f"{LABEL}kind": kind.kind, f"{LABEL}name": name,
    }  # fmt: skip
    meta = {"name": view.prefix + name, "labels": labels}
    meta |= {key: given[key] for key in ("annotations", "finalizers") if key in given}
    reference = (kind.extras.get("release") or {}).get("chartRef") or {
        "kind": "ExternalArtifact", "name": f"cozystack-{kind.singular}-application-default-{kind.singular}",
        "namespace": "cozy-system",
    }  # fmt: skip
    spec: Json = {
        "chartRef": reference, "interval": "5m0s", "install": {"remediation": {"retries": -1}},
        "upgrade": {"remediation": {"retries": -1}}, "values": _checked(kind, view, name, body.get("spec") or {}),
        "valuesFrom": [{"kind": "Secret", "name": "cozystack-values"}],
    }  # fmt: skip
    release = _release_kind(cluster)
    head = {"apiVersion": release.api_version, "kind": "HelmRelease", "metadata": meta}
    return view.show(cluster.create(release, namespace, head | {"spec": spec}, options), cluster)


def write(cluster: Cluster, kind: Kind, namespace: str, name: str, wanted: Json, options: Options) -> Json:
    """The application after its values, labels or annotations were replaced."""
    view = view_of(kind)
    assert view is not None
    stored = cluster.stored(kind, namespace, name)
    if "behind" in kind.extras:
        wanted = wanted | {"metadata": {"name": name} | (wanted.get("metadata") or {})}
        projected = _projected(kind, wanted, stored.obj)
        return view.show(cluster.write(_stored_kind(cluster, kind.bucket), stored, projected, options), cluster)
    meta = stored.obj["metadata"]
    given = wanted.get("metadata") or {}
    inner = {k: v for k, v in (meta.get("labels") or {}).items() if k.startswith((LABEL, "internal.cozystack.io/"))}
    meta = meta | {"labels": (given.get("labels") or {}) | inner}
    for key in ("annotations", "finalizers"):
        meta = {k: v for k, v in meta.items() if k != key} | ({key: given[key]} if given.get(key) else {})
    if given.get("resourceVersion"):
        meta["resourceVersion"] = given["resourceVersion"]
    values = _checked(kind, view, name, wanted.get("spec") or {})
    obj = stored.obj | {"metadata": meta, "spec": stored.obj["spec"] | {"values": values}}
    return view.show(cluster.write(_release_kind(cluster), stored, obj, options), cluster)


def change(
    cluster: Cluster, kind: Kind, namespace: str, name: str, content_type: str, body: Any, options: Options
) -> tuple[Json, bool]:  # fmt: skip
    """The patched application, and whether an apply created it. Applications have no field owners of their own."""
    applying = content_type.startswith("application/apply-patch")
    view = view_of(kind)
    assert view is not None
    if applying and cluster.store.get(kind.bucket, view.key(namespace, name)) is None:
        meta = (body.get("metadata") or {}) | {"name": name}
        return create(cluster, kind, namespace, body | {"metadata": meta}, options), True
    old = view.show(cluster.stored(kind, namespace, name).obj, cluster)
    json_patch = content_type == "application/json-patch+json"
    new = patch.json_patch(old, body) if json_patch else patch.merge(old, body)
    if not isinstance(new, dict):
        raise bad_request("the patched object is not an object")
    return write(cluster, kind, namespace, name, new, options), False


def delete(cluster: Cluster, kind: Kind, namespace: str, name: str, wish: Json, options: Options) -> Json:
    """What a DELETE of an application answers."""
    view = view_of(kind)
    assert view is not None
    stored = cluster.stored(kind, namespace, name)
    shown = view.show(stored.obj, cluster)
    cluster.delete(_stored_kind(cluster, kind.bucket), namespace, view.prefix + name, wish, options)
    return shown
