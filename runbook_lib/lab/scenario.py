"""Scenarios: YAML files that say how the lab starts, what goes wrong in it, and which checks must notice.

title: what this rehearses
extends: healthy            # optional; maps are merged, everything else is replaced
seed: 1                     # optional; identities, figures and faults by chance follow it
proxmox: {…}                # see the `load` of each area in lab/proxmox
kubernetes: {…}             # see lab/kubernetes/seeds
faults: [{system, method, path, status|slow|reset|truncate|html, times}]
must_fail: [check ids]
must_warn: [check ids]
incident: {causes, cures, follows}   # optional; how it came about, played in a lab that is told to let it grow
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import LabError
from .dice import SEED
from .incident import Incident, incident_from

FOLDER = Path(__file__).parent / "scenarios"
_KEYS = {"title", "extends", "seed", "proxmox", "kubernetes", "faults", "must_fail", "must_warn", "incident"}


@dataclass(frozen=True)
class Scenario:
    """One starting state. `name` is the file's stem, or its path when it is not one of the project's."""

    name: str
    title: str = ""
    base: str = ""
    seed: int = SEED
    proxmox: dict[str, Any] = field(default_factory=dict)
    kubernetes: dict[str, Any] = field(default_factory=dict)
    faults: tuple[dict[str, Any], ...] = ()
    must_fail: tuple[str, ...] = ()
    must_warn: tuple[str, ...] = ()
    incident: Incident = field(default_factory=Incident)

    def beginning(self) -> Scenario:
        """The scenario this one builds on, with the same incident still to come. Raises LabError without causes."""
        if not self.incident.causes:
            raise LabError(f"scenario {self.name}", "tells no causes, so nothing can grow from a beginning")
        below = load(self.base or "healthy")
        return replace(below, name=self.name, title=self.title, seed=self.seed, incident=self.incident, base=self.base)


def names() -> list[str]:
    """The scenarios that come with the project, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str | Path) -> Scenario:
    """The scenario of that name, or of that file when it ends in .yaml; raises LabError with the nearest name."""
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise LabError(f"scenario {name}", "no such scenario", hint)
    merged = _read(path, ())
    seed = merged.get("seed", SEED)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise LabError(f"scenario {path.name}", f"seed: a whole number, not {seed!r}")
    try:
        incident = incident_from(merged.get("incident") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"scenario {path.name}", str(error)) from error
    lists = {key: tuple(merged.get(key) or ()) for key in ("faults", "must_fail", "must_warn")}
    return Scenario(
        name=path.stem if path.parent == FOLDER else str(path.resolve()),
        title=str(merged.get("title", "")),
        seed=seed,
        proxmox=dict(merged.get("proxmox") or {}),
        kubernetes=dict(merged.get("kubernetes") or {}),
        base=str(merged.get("extends", "")),
        incident=incident,
        **lists,
    )


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise LabError(f"scenario {path.name}", "extends itself")
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        given = yaml.load(path.read_text(encoding="utf-8"), Loader=loader) or {}
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"scenario {path.name}", " ".join(str(error).split())) from error
    if not isinstance(given, dict):
        raise LabError(f"scenario {path.name}", "not a map")
    for key in given:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise LabError(f"scenario {path.name}", f"{key}: unknown key", f"did you mean {near[0]}?" if near else "")
    if base := given.pop("extends", None):
        inner = Path(base) if str(base).endswith((".yaml", ".yml")) else FOLDER / f"{base}.yaml"
        inner = inner if inner.is_absolute() else path.parent / inner
        below = _read(inner, (*seen, path))
        below.pop("incident", None)  # each has its own
        return _merge(below, given) | {"extends": str(inner) if base.endswith((".yaml", ".yml")) else base}
    return given


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
