"""Writes the compact tables of built-in Kubernetes kinds the lab serves.

Source: the OpenAPI definitions of Kubernetes (Apache-2.0) as packaged by kubernetes-validate.
Run after changing the version: `python scripts/kubernetes_schemas.py`.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import kubernetes_validate

VERSION = "v1.36.0-local"
TARGET = Path(__file__).resolve().parent.parent / "runbook_lib" / "lab" / "kubernetes" / "schemas"
GROUPS = [
    "core.v1", "apps.v1", "batch.v1", "autoscaling.v1", "autoscaling.v2", "policy.v1", "networking.v1",
    "storage.v1", "scheduling.v1", "rbac.v1", "coordination.v1", "events.v1", "discovery.v1", "node.v1",
    "authentication.v1", "authorization.v1", "admissionregistration.v1", "certificates.v1", "flowcontrol.v1",
    "resource.v1",
]  # fmt: skip
SCALARS = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "x",
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "t",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "m",
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "*",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "*",
}
EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
for name in ("JSON", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrStringArray"):
    SCALARS[EXTENSIONS + name] = "*"
PLAIN = {"string": "s", "integer": "i", "number": "n", "boolean": "b"}


def short(name: str) -> str:
    return name.removeprefix("io.k8s.")


def first_sentence(text: str) -> str:
    head = text.split("\n\n")[0].replace("\n", " ")
    cut = head.find(". ", 40)
    return head if cut < 0 else head[: cut + 1]


class Table:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self.all = definitions
        self.definitions: dict[str, Any] = {}
        self.descriptions: dict[str, dict[str, str]] = {}

    def node(self, schema: dict[str, Any]) -> Any:
        extra: dict[str, Any] = {}
        if schema.get("x-kubernetes-map-type") == "atomic":
            extra["atomic"] = 1
        reference = schema.get("$ref") or next((s["$ref"] for s in schema.get("allOf", []) if "$ref" in s), None)
        if reference:
            name = reference.split("/")[-1]
            if name in SCALARS:
                return SCALARS[name]
            if name == EXTENSIONS + "JSONSchemaProps":
                return "*"
            self.add(name)
            if self.definitions.get(short(name)) == "*":
                return "*"
            return {"r": short(name), **extra}
        kinds = schema.get("type")
        kind = next((k for k in kinds if k != "null"), None) if isinstance(kinds, list) else kinds
        if kind == "array":
            node: dict[str, Any] = {"a": self.node(schema.get("items", {}))}
            if schema.get("x-kubernetes-list-type"):
                node["t"] = schema["x-kubernetes-list-type"]
            if schema.get("x-kubernetes-list-map-keys"):
                node["k"] = schema["x-kubernetes-list-map-keys"]
            if schema.get("x-kubernetes-patch-merge-key"):
                node["mk"] = schema["x-kubernetes-patch-merge-key"]
            if schema.get("x-kubernetes-patch-strategy"):
                node["ps"] = schema["x-kubernetes-patch-strategy"]
            return node
        if kind == "object":
            if isinstance(schema.get("additionalProperties"), dict):
                return {"m": self.node(schema["additionalProperties"]), **extra}
            return {"m": "*", **extra}
        if kind == "string" and schema.get("format") == "byte":
            return "B"
        if kind == "string" and schema.get("format") == "date-time":
            return "t"
        return PLAIN.get(kind or "", "*")

    def add(self, name: str) -> None:
        key = short(name)
        if key in self.definitions:
            return
        schema = self.all[name]
        properties = schema.get("properties")
        if properties is None:
            self.definitions[key] = "*"
            return
        entry: dict[str, Any] = {}
        self.definitions[key] = entry
        entry["p"] = {field: self.node(sub) for field, sub in properties.items()}
        if schema.get("required"):
            entry["q"] = schema["required"]
        if schema.get("x-kubernetes-map-type") == "atomic":
            entry["atomic"] = 1
        unions = schema.get("x-kubernetes-patch-strategy")
        if unions:
            entry["ps"] = unions
        self.descriptions[key] = {"": first_sentence(schema.get("description", ""))}
        for field, sub in properties.items():
            if sub.get("description"):
                self.descriptions[key][field] = first_sentence(sub["description"])
            strategy = sub.get("x-kubernetes-patch-strategy")
            if strategy and isinstance(entry["p"][field], dict) and "a" not in entry["p"][field]:
                entry["p"][field]["ps"] = strategy


def main() -> None:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / VERSION
    table = Table(json.loads((folder / "_definitions.json").read_text())["$defs"])
    kinds: dict[str, str] = {}
    for name, schema in table.all.items():
        served = any(name.startswith(f"io.k8s.api.{group}.") for group in GROUPS)
        served = served or name.endswith((".v1.CustomResourceDefinition", ".v1.APIService"))
        for gvk in schema.get("x-kubernetes-group-version-kind", []) if served else []:
            if gvk["kind"].endswith("List") and "items" in schema.get("properties", {}):
                continue
            table.add(name)
            kinds[f"{gvk['group']}/{gvk['version']}/{gvk['kind']}"] = short(name)
    TARGET.mkdir(exist_ok=True)
    lines = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in sorted(table.definitions.items())]
    head = json.dumps(dict(sorted(kinds.items())), separators=(",", ":"))
    version, rows = VERSION.split("-")[0], ",\n".join(lines)
    body = f'{{"version":"{version}",\n"kinds":{head},\n"definitions":{{\n{rows}\n}}}}\n'
    (TARGET / "builtin.json").write_text(body)
    text = json.dumps(dict(sorted(table.descriptions.items())), separators=(",", ":")).encode()
    (TARGET / "descriptions.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    print(len(kinds), "kinds", len(table.definitions), "definitions")


if __name__ == "__main__":
    main()
