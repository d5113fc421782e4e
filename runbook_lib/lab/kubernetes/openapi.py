"""OpenAPI documents made from the kinds' shapes: enough for `kubectl explain`, `apply` and validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schema import Kind, definitions, descriptions

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
SCALARS: dict[str, Json] = {
    "s": {"type": "string"}, "i": {"type": "integer", "format": "int32"}, "n": {"type": "number"},
    "b": {"type": "boolean"}, "t": {"type": "string", "format": "date-time"},
    "m": {"type": "string", "format": "date-time"}, "B": {"type": "string", "format": "byte"}, "*": {"type": "object"},
}  # fmt: skip


def _schema(node: Any, base: str, text: str = "") -> Json:
    extra = {"description": text} if text else {}
    if isinstance(node, str):
        if node == "q":
            return {"type": "string"} | extra
        if node == "x":
            return {"type": "string", "format": "int-or-string"} | extra
        return SCALARS[node] | extra
    if "r" in node:
        reference = {"$ref": f"#/{base}/io.k8s.{node['r']}"}
        return ({"allOf": [reference], "default": {}} if base.startswith("comp") else reference) | extra
    if "a" in node:
        row: Json = {"type": "array", "items": _schema(node["a"], base)} | extra
        for short, long in (("t", "list-type"), ("k", "list-map-keys"), ("mk", "patch-merge-key")):
            if short in node:
                row[f"x-kubernetes-{long}"] = node[short]
        if "ps" in node:
            row["x-kubernetes-patch-strategy"] = node["ps"]
        return row
    return {"type": "object", "additionalProperties": _schema(node.get("m", "*"), base)} | extra


def _definition(name: str, base: str) -> Json:
    entry, texts = definitions()[name], descriptions().get(name, {})
    if entry == "*":
        return {"type": "object"}
    fields = {field: _schema(node, base, texts.get(field, "")) for field, node in entry["p"].items()}
    row: Json = {"type": "object", "description": texts.get("", ""), "properties": fields}
    if entry.get("q"):
        row["required"] = entry["q"]
    return row


def _reach(node: Any, found: set[str]) -> None:
    if isinstance(node, dict):
        if "r" in node:
            name = node["r"]
            if name not in found:
                found.add(name)
                entry = definitions()[name]
                for sub in entry["p"].values() if isinstance(entry, dict) else ():
                    _reach(sub, found)
        else:
            _reach(node.get("a") or node.get("m"), found)


def _name(kind: Kind) -> str:
    if kind.custom is None and isinstance(kind.node, dict) and "r" in kind.node:
        return "io.k8s." + str(kind.node["r"])
    return ".".join(reversed(kind.group.split("."))) + f".{kind.version}.{kind.kind}"


def _gvk(kind: Kind) -> Json:
    return {"group": kind.group, "kind": kind.kind, "version": kind.version}


META_REF = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def _custom(kind: Kind, base: str) -> Json:
    schema = dict(((kind.custom or {}).get("schema") or {}).get("openAPIV3Schema") or {"type": "object"})
    schema.setdefault("type", "object")
    fields = dict(schema.get("properties") or {})
    fields["apiVersion"], fields["kind"] = {"type": "string"}, {"type": "string"}
    reference = {"$ref": f"#/{base}/{META_REF}"}
    fields["metadata"] = {"allOf": [reference]} if base.startswith("comp") else reference
    return schema | {"properties": fields}


def schemas(kinds: list[Kind], base: str) -> Json:
    """The definitions of kinds and everything they refer to."""
    found: Json = {}
    names: set[str] = set()
    _reach({"r": META_REF.removeprefix("io.k8s.")}, names)
    for kind in kinds:
        if kind.custom is not None or not (isinstance(kind.node, dict) and "r" in kind.node):
            found[_name(kind)] = _custom(kind, base) | {"x-kubernetes-group-version-kind": [_gvk(kind)]}
        else:
            _reach(kind.node, names)
    for name in sorted(names):
        found.setdefault(f"io.k8s.{name}", _definition(name, base))
    for kind in kinds:
        found[_name(kind)] = found[_name(kind)] | {"x-kubernetes-group-version-kind": [_gvk(kind)]}
    return found


def _root(kind: Kind) -> str:
    prefix = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    scope = "/namespaces/{namespace}" if kind.namespaced else ""
    return f"{prefix}{scope}/{kind.plural}"


def _parameters() -> list[Json]:
    return [
        {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
        for name in ("dryRun", "fieldManager", "fieldValidation", "force")
    ]


def _operation(kind: Kind, verb: str, action: str, base: str) -> Json:
    reference = {"$ref": f"#/{base}/{_name(kind)}"}
    row: Json = {"x-kubernetes-action": action, "x-kubernetes-group-version-kind": _gvk(kind)}
    row["parameters"] = _parameters() if verb in ("post", "put", "patch") else []
    row["responses"] = {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}}
    return row


def version3(cluster: Cluster, group: str, version: str) -> Json | None:
    """GET /openapi/v3/apis/GROUP/VERSION, or None when it is not served."""
    kinds = cluster.registry.of(group, version)
    if not kinds:
        return None
    base = "components/schemas"
    routes: Json = {}
    for kind in kinds:
        routes[_root(kind)] = {
            verb: _operation(kind, verb, action, base) for verb, action in (("get", "list"), ("post", "post"))
        }
        routes[_root(kind) + "/{name}"] = {
            verb: _operation(kind, verb, action, base)
            for verb, action in (("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete"))
        }
    info = {"title": "Kubernetes", "version": cluster.version}
    return {"openapi": "3.0.0", "info": info, "paths": routes, "components": {"schemas": schemas(kinds, base)}}


def index3(cluster: Cluster) -> Json:
    """GET /openapi/v3."""
    stamp = cluster.registry.generation
    rows = {"api/v1": {"serverRelativeURL": f"/openapi/v3/api/v1?hash={stamp}"}}
    for name, names in cluster.registry.groups():
        for version in names:
            path = f"apis/{name}/{version}"
            rows[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={stamp}"}
    return {"paths": rows}


def version2(cluster: Cluster) -> Json:
    """GET /openapi/v2."""
    kinds = [kind for kind in cluster.registry.order if "get" in kind.verbs or "create" in kind.verbs]
    routes = {_root(kind): {"get": {"x-kubernetes-group-version-kind": _gvk(kind)}} for kind in kinds}
    info = {"title": "Kubernetes", "version": cluster.version}
    return {"swagger": "2.0", "info": info, "paths": routes, "definitions": schemas(kinds, "definitions")}
