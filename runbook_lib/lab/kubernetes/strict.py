"""Strict schemas of custom resources, unfolded from the short notation of `schemas/custom.yaml`.

`schema(group, version, kind)` is what a CRD carries; `definition(...)` is a whole CRD for kinds the lab installs later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from .schema import FOLDER

Json = dict[str, Any]
TYPES: dict[str, Json] = {
    "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
    "x": {"x-kubernetes-int-or-string": True}, "t": {"type": "string", "format": "date-time"},
    "d": {"type": "string", "pattern": r"^(-?[0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$"},
    "any": {"x-kubernetes-preserve-unknown-fields": True},
}  # fmt: skip
OPEN: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
OPTIONS = {"min": "minItems", "max": "maxItems"}


@cache
def _notation() -> Json:
    import yaml

    text = (FOLDER / "custom.yaml").read_text(encoding="utf-8")
    found: Json = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


@cache
def _shared(name: str) -> Json:
    return unfold(_notation()["shared"][name])


def unfold(note: Any) -> Json:
    """The OpenAPI schema a note stands for."""
    if isinstance(note, str):
        return _shared(note[1:]) if note.startswith("@") else _scalar(note)
    if isinstance(note, list):
        return _list(note)
    if "$type" in note:
        return unfold(note["$type"]) | {"x-kubernetes-validations": _rules(note)}
    return _object(note)


def _scalar(note: str) -> Json:
    letter, *words = note.split()
    row = dict(TYPES[letter])
    text = letter == "s"
    for word in words:
        if word.startswith("="):
            row["default"] = _value(letter, word[1:])
        elif word.startswith("/"):
            row["pattern"] = word[1:-1]
        elif word.startswith("%"):
            row["multipleOf"] = int(word[1:])
        elif bounds := re.fullmatch(r"(-?\d+)?\.\.(-?\d+)?", word):
            names = ("minLength", "maxLength") if text else ("minimum", "maximum")
            row |= {name: int(bound) for name, bound in zip(names, bounds.groups(), strict=True) if bound}
        else:
            row["enum"] = word.replace("~", " ").split("|")
    return row


def _value(letter: str, text: str) -> Any:
    if letter == "b":
        return text == "true"
    return int(text) if letter == "i" else text


def _list(note: list[Any]) -> Json:
    options: Json = note[1] if len(note) > 1 else {}
    row: Json = {"type": "array", "items": unfold(note[0])}
    row |= {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
    if options.get("set"):
        row["x-kubernetes-list-type"] = "set"
    if options.get("key"):
        row |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": options["key"]}
    return row


def _object(note: Mapping[str, Any]) -> Json:
    row: Json = {"type": "object"}
    fields = {name: sub for name, sub in note.items() if not name.startswith("$")}
    if fields:
        row["properties"] = {name.rstrip("*"): unfold(sub) for name, sub in fields.items()}
    if needed := [name.rstrip("*") for name in fields if name.endswith("*")]:
        row["required"] = needed
    if "$of" in note:
        row["additionalProperties"] = unfold(note["$of"])
    if note.get("$keep"):
        row["x-kubernetes-preserve-unknown-fields"] = True
    if note.get("$null"):
        row["nullable"] = True
    rules = _rules(note)
    if chosen := note.get("$xor"):
        test = ", ".join(f"has(self.{name})" for name in chosen)
        text = f"exactly one of {' or '.join(chosen)} must be set"
        rules.append({"rule": f"[{test}].exists_one(given, given)", "message": text})
    if rules:
        row["x-kubernetes-validations"] = rules
    return row


def _rules(note: Mapping[str, Any]) -> list[Json]:
    return [{"rule": rule, "message": text} for rule, text in (note.get("$rules") or {}).items()]


@cache
def schema(group: str, version: str, kind: str) -> Json | None:
    """The strict schema of a kind, or None when the lab has none; its status stays open."""
    note = (_notation().get(f"{group}/{version}") or {}).get(kind)
    if note is None:
        return None
    row = unfold(note)
    common: Json = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    row["properties"] = common | row.get("properties", {})
    row["properties"].setdefault("status", OPEN)
    return row


def kinds() -> list[tuple[str, str, str]]:
    """Group, version and kind of every strict schema."""
    found = []
    for place, rows in _notation().items():
        group, _, version = place.partition("/")
        found += [(group, version, kind) for kind in rows if version]
    return found


def tighten(definition: Json) -> Json:
    """A CRD whose wide open versions got the strict schema of their kind, where there is one."""
    spec = definition["spec"]
    versions = []
    for version in spec.get("versions") or []:
        given = (version.get("schema") or {}).get("openAPIV3Schema") or {}
        strict = schema(spec["group"], version["name"], spec["names"]["kind"])
        if strict is not None and given.get("x-kubernetes-preserve-unknown-fields"):
            version = version | {"schema": {"openAPIV3Schema": strict}}
        versions.append(version)
    return definition | {"spec": spec | {"versions": versions}}


def definition(
    group: str, kind: str, plural: str, versions: list[str], *, cluster: bool = False,
    short: tuple[str, ...] = (), labels: Mapping[str, str] | None = None,
) -> Json:  # fmt: skip
    """A CRD with strict schemas; the first version is the stored one."""
    names: Json = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    if short:
        names["shortNames"] = list(short)
    rows = [
        {
            "name": version, "served": True, "storage": number == 0, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": schema(group, version, kind) or OPEN},
            "additionalPrinterColumns": [
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ],
        }
        for number, version in enumerate(versions)
    ]  # fmt: skip
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "labels": dict(labels or {})},
        "spec": {
            "group": group, "names": names, "scope": "Cluster" if cluster else "Namespaced", "versions": rows,
            "conversion": {"strategy": "None"},
        },
    }  # fmt: skip
