"""A Kubernetes API made of a list of objects: what the runbook's facts would read of a seeded cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from runbook_lib import kubernetes
from runbook_lib.answers import error_for

Object = dict[str, Any]

PLURALS = {
    "Endpoints": "endpoints",
    "StorageClass": "storageclasses",
    "PriorityClass": "priorityclasses",
    "APIService": "apiservices",
    "VolumeSnapshotClass": "volumesnapshotclasses",
}


class Objects(kubernetes.Reader):
    """GETs over the objects, discovery included."""

    def __init__(self, objects: Iterable[Object], version: str = "v1.34.3") -> None:
        self.version = version
        self.served: dict[str, set[tuple[str, str]]] = {}  # "group/version" → {(kind, plural)}
        self.items: dict[str, list[Object]] = {}
        plurals: dict[tuple[str, str], str] = {}
        for item in objects:
            if item["kind"] == "CustomResourceDefinition":
                spec = item["spec"]
                plurals[(spec["group"], spec["names"]["kind"])] = spec["names"]["plural"]
                for entry in spec["versions"]:
                    if entry["served"]:
                        base = f"{spec['group']}/{entry['name']}"
                        self.served.setdefault(base, set()).add((spec["names"]["kind"], spec["names"]["plural"]))
        for item in objects:
            group = item["apiVersion"].rpartition("/")[0]
            plural = plurals.get((group, item["kind"])) or PLURALS.get(item["kind"]) or f"{item['kind'].lower()}s"
            self.served.setdefault(item["apiVersion"], set()).add((item["kind"], plural))
            self.items.setdefault(f"{item['apiVersion']}/{plural}", []).append(item)

    def get(self, path: str, /, **query: Any) -> Object:
        """The answer a server with these objects would give; 404 for what is not there."""
        if path == "/version":
            major, minor = self.version.lstrip("v").split(".")[:2]
            return {"gitVersion": self.version, "major": major, "minor": minor}
        parts = path.strip("/").split("/")[1:]
        if path.startswith("/api/"):
            version, rest = parts[0], parts[1:]
        elif len(parts) == 1:
            return self._group(parts[0])
        else:
            version, rest = "/".join(parts[:2]), parts[2:]
        if not rest:
            return self._resources(version)
        return self._objects(version, rest, path)

    def _group(self, group: str) -> Object:
        versions = sorted((base for base in self.served if base.rpartition("/")[0] == group), key=_preference)
        if not versions:
            raise self._missing(group)
        rows = [{"groupVersion": base, "version": base.rpartition("/")[2]} for base in versions]
        return {"kind": "APIGroup", "name": group, "versions": rows, "preferredVersion": rows[0]}

    def _resources(self, version: str) -> Object:
        if version not in self.served:
            raise self._missing(version)
        rows = [{"name": plural, "kind": kind, "namespaced": True} for kind, plural in sorted(self.served[version])]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": rows}

    def _objects(self, version: str, rest: list[str], path: str) -> Object:
        namespace = None
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        if (rest[0]) not in {plural for _, plural in self.served.get(version, ())}:
            raise self._missing(path)
        found = [
            item
            for item in self.items.get(f"{version}/{rest[0]}", [])
            if namespace is None or item["metadata"].get("namespace") == namespace
        ]
        if len(rest) == 1:
            return {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": found}
        for item in found:
            if item["metadata"]["name"] == rest[1]:
                return item
        raise self._missing(path)

    def _missing(self, path: str) -> Exception:
        body = json.dumps({"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"})
        return error_for("kubernetes", "GET", path, 404, "NotFound", body)


def _preference(version: str) -> tuple[int, str]:
    text = version.rpartition("/")[2]
    return (0 if text[1:].isdigit() else 1 if "beta" in text else 2, text)
