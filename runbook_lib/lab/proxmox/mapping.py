"""Resource mappings: names for PCI devices, USB devices and directories that differ from node to node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.mapping import TABLE
from .quorum import require_quorum
from .routing import Call, PveError
from .sections import Section, Sections, check_digest, digest_of, edit, stored

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

KINDS = {
    "dir": ("map", "description"),
    "pci": ("map", "description", "mdev", "live-migration-capable"),
    "usb": ("map", "description"),
}
CALLED = {"dir": "directory", "pci": "PCI", "usb": "USB"}
NEEDED = {"dir": ("node", "path"), "pci": ("node", "path", "id"), "usb": ("node", "id")}


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the mappings from a scenario's `mappings:`, kind → id → {map: [...], description}."""
    given = section.get("mappings") or {}
    state.areas["mapping"] = {kind: {n: dict(e) for n, e in (given.get(kind) or {}).items()} for kind in KINDS}


def sections(state: PveState, kind: str) -> Sections:
    """The mappings of one kind, by id."""
    found: Sections = state.areas.setdefault("mapping", {}).setdefault(kind, {})
    return found


def parts(entry: str) -> dict[str, str]:
    """One node's entry of a mapping, as its options."""
    return dict(part.partition("=")[::2] for part in entry.split(","))


def checks(state: PveState, kind: str, section: Section, node: str) -> list[dict[str, str]]:
    """What is wrong with a mapping on a node."""
    entries = [parts(text) for text in section.get("map", ())]
    mine = [entry for entry in entries if entry.get("node") == node]
    if not mine:
        return [{"severity": "warning", "message": f"No mapping for node {node}."}]
    if kind == "usb":
        return []
    devices = state.areas.get("hardware", {}).get(node, {}).get(kind)
    if kind == "pci" and devices is not None:
        known = {row["id"] for row in devices}
        lost = [entry["path"] for entry in mine if entry["path"] not in known]
        return [
            {"severity": "error", "message": f"Invalid PCI mapping: pci device '{path}' not found"} for path in lost
        ]
    return []


def check_map(kind: str, section: Section) -> None:
    """Nothing, or the 400 of an entry that lacks a part."""
    for text in section.get("map", ()):
        given = parts(text)
        for key in NEEDED[kind]:
            if key not in given:
                text = f"invalid format - format error\n{key}: property is missing and it is not optional\n"
                raise PveError(400, "Parameter verification failed.", {"map": text})
        if kind != "dir" and not re.fullmatch(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{4}", given["id"]):
            text = "invalid format - format error\nid: value does not match the regex pattern\n"
            raise PveError(400, "Parameter verification failed.", {"map": text})


@endpoint("GET /cluster/mapping")
def index(call: Call) -> list[dict[str, str]]:
    """The kinds of mappings."""
    return [{"name": kind} for kind in KINDS]


def endpoints_of(kind: str) -> None:
    """Nothing; the five endpoints of one kind of mapping are registered."""
    base = f"/cluster/mapping/{kind}"

    @endpoint(f"GET {base}")
    def read_all(call: Call) -> list[Section]:
        """The mappings the caller may see; with `check-node` what is wrong with each there."""
        rows, node = [], call.params.get("check-node")
        for name, section in sections(call.state, kind).items():
            path = f"/mapping/{kind}/{name}"
            if not call.allowed(path, "Mapping.Modify", "Mapping.Use", "Mapping.Audit", any_of=True):
                continue
            row = {"id": name, **section}
            row["digest"] = digest_of(sections(call.state, kind))
            if node:
                row["error" if kind == "usb" else "checks"] = checks(call.state, kind, section, node)
            rows.append(row)
        return rows

    @endpoint(f"GET {base}/{{id}}")
    def read(call: Call) -> Section:
        """One mapping."""
        section = existing(call)
        return {**section, "digest": digest_of(sections(call.state, kind))}

    def existing(call: Call) -> Section:
        name = call.params["id"]
        if name not in sections(call.state, kind):
            raise PveError(500, f"mapping '{name}' not found")
        return sections(call.state, kind)[name]

    @endpoint(f"POST {base}")
    def create(call: Call) -> None:
        """Nothing; the mapping is there."""
        failed, name = f"create {CALLED[kind]} mapping failed", call.params["id"]
        require_quorum(call.state, f"{failed}: cfs-lock 'file-mapping_{kind}_cfg' error: no quorum!")
        section = stored(call.params, without=("id",))
        check_map(kind, section)
        if name in sections(call.state, kind):
            raise PveError(500, f"{failed}: {CALLED[kind]} ID '{name}' already defined")
        sections(call.state, kind)[name] = section

    @endpoint(f"PUT {base}/{{id}}")
    def update(call: Call) -> None:
        """Nothing; the mapping is as asked."""
        check_digest(call.params.get("digest"), sections(call.state, kind))
        section = dict(existing(call))
        edit(section, call.params, options=KINDS[kind], required=("map",), without=("id",))
        check_map(kind, section)
        sections(call.state, kind)[call.params["id"]] = section

    @endpoint(f"DELETE {base}/{{id}}")
    def delete(call: Call) -> None:
        """Nothing; the mapping is gone, if there was one."""
        sections(call.state, kind).pop(call.params["id"], None)


for _kind in KINDS:
    endpoints_of(_kind)
