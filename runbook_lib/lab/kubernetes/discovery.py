"""What the server says it serves: APIVersions, groups, resource lists and the aggregated format."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .schema import ALL, Kind

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
RW = ["get", "patch", "update"]
PROXY = ["create", "delete", "get", "patch", "update"]
# resource/subresource → (verbs, kind, group, version); a missing row means the parent's kind with get, patch, update
_PARTS: dict[str, tuple[list[str], str, str, str]] = {
    "finalize": (["update"], "", "", ""), "approval": (RW, "", "", ""),
    "nodes/proxy": (PROXY, "NodeProxyOptions", "", ""), "pods/proxy": (PROXY, "PodProxyOptions", "", ""),
    "services/proxy": (PROXY, "ServiceProxyOptions", "", ""),
    "attach": (["create", "get"], "PodAttachOptions", "", ""), "exec": (["create", "get"], "PodExecOptions", "", ""),
    "portforward": (["create", "get"], "PodPortForwardOptions", "", ""), "binding": (["create"], "Binding", "", ""),
    "eviction": (["create"], "Eviction", "policy", "v1"), "log": (["get"], "", "", ""),
    "scale": (RW, "Scale", "autoscaling", "v1"), "token": (["create"], "TokenRequest", "authentication.k8s.io", "v1"),
}  # fmt: skip


def part(kind: Kind, name: str) -> tuple[list[str], str, str, str]:
    """Verbs, kind, group and version of a subresource."""
    verbs, other, group, version = _PARTS.get(f"{kind.plural}/{name}") or _PARTS.get(name) or (RW, "", "", "")
    return verbs, other or kind.kind, group, version


def versions(address: str) -> Json:
    """GET /api."""
    return {
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }  # fmt: skip


def _group(name: str, found: list[str]) -> Json:
    rows = [{"groupVersion": f"{name}/{version}", "version": version} for version in found]
    return {"name": name, "versions": rows, "preferredVersion": rows[0]}


def groups(cluster: Cluster) -> Json:
    """GET /apis."""
    rows = [_group(name, found) for name, found in cluster.registry.groups()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": rows}


def group(cluster: Cluster, name: str) -> Json | None:
    """GET /apis/GROUP, or None for an unknown one."""
    found = dict(cluster.registry.groups()).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1"} | _group(name, found) if found else None


def _hash(kind: Kind) -> str:
    import base64

    text = f"{kind.storage or kind.api_version}/{kind.kind}".encode()
    return base64.b64encode(hashlib.sha256(text).digest()[:8]).decode()


def resources(cluster: Cluster, group_name: str, version: str) -> Json | None:
    """GET /apis/GROUP/VERSION, or None when it is not served."""
    kinds = cluster.registry.of(group_name, version)
    if not kinds:
        return None
    rows: list[Json] = []
    for kind in kinds:
        row: Json = {
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": list(kind.verbs),
        }  # fmt: skip
        if kind.short:
            row["shortNames"] = list(kind.short)
        if kind.categories:
            row["categories"] = list(kind.categories)
        if "watch" in kind.verbs:
            row["storageVersionHash"] = _hash(kind)
        rows.append(row)
        for name in kind.subresources:
            verbs, other, other_group, other_version = part(kind, name)
            sub: Json = {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": kind.namespaced}
            if other_group:
                sub |= {"group": other_group, "version": other_version}
            rows.append(sub | {"kind": other, "verbs": verbs})
    label = f"{group_name}/{version}" if group_name else version
    head: Json = {"kind": "APIResourceList"} | ({"apiVersion": "v1"} if group_name else {})
    return head | {"groupVersion": label, "resources": rows}


def aggregated(cluster: Cluster, *, core: bool) -> Json:
    """GET /api or /apis in the aggregated format (apidiscovery.k8s.io/v2)."""
    found = [("", ["v1"])] if core else cluster.registry.groups()
    items: list[Json] = []
    for name, names in found:
        rows = [{"version": v, "resources": _aggregated(cluster, name, v), "freshness": "Current"} for v in names]
        items.append({"metadata": {"name": name} if name else {}, "versions": rows})
    head = {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}}
    return head | {"items": items}


def _aggregated(cluster: Cluster, name: str, version: str) -> list[Json]:
    rows = []
    for kind in cluster.registry.of(name, version):
        response = {"group": "", "version": "", "kind": kind.kind}
        row: Json = {
            "resource": kind.plural, "responseKind": response if kind.custom is None else {
                "group": kind.group, "version": kind.version, "kind": kind.kind,
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster", "singularResource": kind.singular,
            "verbs": sorted(kind.verbs) if kind.verbs != ALL else list(ALL),
        }  # fmt: skip
        if kind.short:
            row["shortNames"] = list(kind.short)
        if kind.categories:
            row["categories"] = list(kind.categories)
        if kind.subresources:
            row["subresources"] = []
        for sub in kind.subresources:
            verbs, other, group_name, other_version = part(kind, sub)
            shown = {"group": group_name, "version": other_version, "kind": other}
            if kind.custom is not None and not group_name:
                shown = {"group": kind.group, "version": kind.version, "kind": other}
            row["subresources"].append({"subresource": sub, "responseKind": shown, "verbs": verbs})
        rows.append(row)
    return rows


def paths(cluster: Cluster) -> list[str]:
    """GET /: every path the server answers."""
    found = ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/apis/"]
    for name, names in sorted(cluster.registry.groups()):
        found += [f"/apis/{name}", *(f"/apis/{name}/{version}" for version in names)]
    found += ["/healthz", "/healthz/etcd", "/healthz/ping", "/livez", "/livez/etcd", "/livez/ping", "/metrics"]
    return [*found, "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/readyz/etcd", "/version"]
