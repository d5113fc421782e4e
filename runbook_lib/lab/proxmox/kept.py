"""The whole of an emulated Proxmox VE as plain data, and back.

Dataclasses carry the name of their class, so a new field of an area is kept without a word here. What ran when
the state was taken has ended when it comes back, as after a power cut: its locks stay, as they would.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import re
from typing import Any

from .nodes import NodeState
from .permissions import Access
from .pools import PoolState
from .qemu.guest import GuestState
from .state import PveState
from .storage import StorageState
from .worker import TaskState

FORMAT = 1
PARTS = ("nodes", "guests", "storages", "pools", "datacenter", "areas")
MEMBERS: dict[str, type] = {"nodes": NodeState, "guests": GuestState, "storages": StorageState, "pools": PoolState}
PEOPLE = ("users", "groups", "custom", "acl", "realms")
INTERRUPTED = "unexpected status"
_SKIPPED = {"told"}


def taken(state: PveState) -> dict[str, Any]:
    """Everything the cluster knows now, ready for JSON."""
    return {
        "format": FORMAT,
        "flavour": state.flavour,
        "cluster_name": state.cluster_name,
        "elapsed": state.clock.elapsed(),
        "secret": _packed(state.secret),
        "seed": state.dice.seed,
        "thrown": state.dice.thrown,
        "volumes": [[node, _packed(volume)] for (node, _), volume in state.volumes.items()],
        "tasks": [_packed(task) for task in state.tasks],
        "people": {name: _packed(getattr(state.access, name)) for name in PEOPLE},
        **{name: _packed(getattr(state, name)) for name in PARTS},
    }


def given_back(state: PveState, saved: dict[str, Any]) -> PveState:
    """The cluster of `saved`, with the clock, the spool and the certificate of `state`. ValueError for rubbish."""
    if saved.get("format") != FORMAT or "guests" not in saved:
        raise ValueError(f"not a kept Proxmox VE of format {FORMAT}")
    try:
        return _given_back(state, saved)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"not a kept Proxmox VE: {type(error).__name__}: {error}") from error


def _given_back(state: PveState, saved: dict[str, Any]) -> PveState:
    fresh = PveState(
        flavour=saved["flavour"], cluster_name=saved["cluster_name"], clock=state.clock, seed=int(saved["seed"])
    )
    fresh.dice.thrown = {str(name): int(count) for name, count in saved["thrown"].items()}
    fresh.spool, fresh.certificate_pem, fresh.secret = state.spool, state.certificate_pem, _unpacked(saved["secret"])
    for name in PARTS:
        setattr(fresh, name, _unpacked(saved[name]))
    for name, kind in MEMBERS.items():
        if not all(isinstance(each, kind) for each in getattr(fresh, name).values()):
            raise ValueError(f"not a kept Proxmox VE: {name} are more than that")
    if not fresh.nodes:
        raise ValueError("not a kept Proxmox VE: no nodes")
    fresh.access = Access(fresh)
    for name, value in saved["people"].items():
        setattr(fresh.access, name, _unpacked(value))
    for node, value in saved["volumes"]:
        volume = _unpacked(value)
        fresh.volumes[node, volume.volid] = volume
    later = fresh.clock.elapsed() - saved["elapsed"]
    for guest in fresh.guests.values():
        guest.started_lab += later
    for value in saved["tasks"]:
        _remember(fresh, _unpacked(value))
    return fresh


def _remember(state: PveState, task: TaskState) -> None:
    state.tasks.remember(task)
    if task.running:
        state.tasks.finish(task, INTERRUPTED)


# ---------------------------------------------------------------------------------------------- packing


def _packed(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _packed(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in _SKIPPED}
        kind = type(value)
        return {"$": f"{kind.__module__.removeprefix(__package__ or '')}:{kind.__qualname__}", "of": inner}
    if isinstance(value, dict):
        return {"$": "dict", "of": [[_packed(key), _packed(each)] for key, each in value.items()]}
    if isinstance(value, list):
        return [_packed(each) for each in value]
    if isinstance(value, tuple | set | frozenset):
        return {"$": type(value).__name__, "of": [_packed(each) for each in value]}
    if isinstance(value, bytes):
        return {"$": "bytes", "of": base64.b64encode(value).decode()}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(each) for each in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["$"], value["of"]
    if kind == "dict":
        return {_unpacked(key): _unpacked(each) for key, each in inner}
    if kind == "bytes":
        return base64.b64decode(inner)
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](_unpacked(each) for each in inner)
    return _made(kind, {name: _unpacked(each) for name, each in inner.items()})


_COLLECTIONS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def _made(kind: str, fields: dict[str, Any]) -> Any:
    module, _, name = kind.partition(":")
    if not module.startswith(".") or ".." in module:
        raise ValueError(f"not a part of Proxmox VE: {kind}")
    made = getattr(importlib.import_module(module, __package__), name, None)
    if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
        raise ValueError(f"not a part of Proxmox VE: {kind}")
    result = made(**fields)
    for field in dataclasses.fields(made):
        if not _is(getattr(result, field.name), str(field.type)):
            raise ValueError(f"not a part of Proxmox VE: {kind} with {field.name} {getattr(result, field.name)!r:.40}")
    return result


_PLAIN: dict[str, Any] = {
    "str": str, "int": int, "bool": bool, "float": (int, float), "bytes": bytes, "dict": dict, "list": list,
    "tuple": tuple, "set": set, "frozenset": frozenset, "None": type(None),
}  # fmt: skip


def _is(value: Any, annotation: str) -> bool:
    """Whether the value is of the outer type that the annotation names; what is not plain is taken as it is."""
    words = [word.partition("[")[0].strip() for word in re.split(r"\|(?![^\[]*\])", annotation)]
    return any(word not in _PLAIN or isinstance(value, _PLAIN[word]) for word in words)
