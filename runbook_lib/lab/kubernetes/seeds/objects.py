"""Builders of plain Kubernetes objects, as an API server would hand them out. No knowledge of CozyStack."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

_SPACE = uuid.UUID("5b0f7f1e-3b52-4d53-8f5e-6a5c0a4a7a00")
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"  # the alphabet Kubernetes makes generated names of


@dataclass(frozen=True)
class Times:
    """The moments a seeded cluster remembers, in epoch seconds."""

    now: float
    age_seconds: float = 41 * 86400

    @property
    def born(self) -> str:
        """When the cluster was installed."""
        return stamp(self.now - self.age_seconds)

    @property
    def settled(self) -> str:
        """When the last object became ready after the installation."""
        return stamp(self.now - self.age_seconds + 1500)

    @property
    def recent(self) -> str:
        """Half a minute ago: heartbeats, leases."""
        return stamp(self.now - 30)

    def ago(self, seconds: float) -> str:
        """The stamp of so many seconds ago."""
        return stamp(self.now - seconds)


def stamp(epoch: float, *, micro: bool = False) -> str:
    """An epoch second as Kubernetes spells times: `metav1.Time`, or `MicroTime` with `micro`."""
    moment = datetime.fromtimestamp(epoch, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def uid(kind: str, namespace: str, name: str) -> str:
    """A uid that is the same in each lab for the same object, so that owner references can be written ahead."""
    return str(uuid.uuid5(_SPACE, f"{kind}/{namespace}/{name}"))


def suffix(seed: str, length: int = 5) -> str:
    """The random-looking end of a generated name; the same for the same seed."""
    digest = hashlib.sha256(seed.encode()).digest()
    return "".join(_SUFFIX[byte % len(_SUFFIX)] for byte in digest[:length])


def thing(
    api_version: str,
    kind: str,
    name: str,
    namespace: str = "",
    *,
    created: str,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owner: Object | None = None,
    generation: int | None = None,
    finalizers: Iterable[str] = (),
    **body: Any,
) -> Object:
    """One object with metadata in order; `body` are its top-level fields (`spec`, `status`, `data` …)."""
    metadata: Object = {"name": name, "uid": uid(kind, namespace, name), "creationTimestamp": created}
    if namespace:
        metadata["namespace"] = namespace
    if generation is not None:
        metadata["generation"] = generation
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    if finalizers:
        metadata["finalizers"] = list(finalizers)
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def owner_reference(owner: Object) -> Object:
    """The controlling owner reference to `owner`."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def condition(
    kind: str, status: bool | str, reason: str, message: str = "", *, at: str, generation: int | None = None
) -> Object:
    """One metav1 condition."""
    entry: Object = {
        "type": kind,
        "status": status if isinstance(status, str) else str(status),
        "lastTransitionTime": at,
        "reason": reason,
        "message": message,
    }
    if generation is not None:
        entry["observedGeneration"] = generation
    return entry


def find_condition(item: Object, kind: str) -> Object | None:
    """The condition of that type in `status.conditions`, or None."""
    for entry in item.get("status", {}).get("conditions", ()):
        if entry.get("type") == kind:
            return dict(entry)
    return None


def set_condition(item: Object, wanted: Mapping[str, Any]) -> None:
    """Writes one condition into the object, in place of the one of its type."""
    conditions = item.setdefault("status", {}).setdefault("conditions", [])
    for position, entry in enumerate(conditions):
        if entry.get("type") == wanted["type"]:
            conditions[position] = {**entry, **wanted}
            return
    conditions.append(dict(wanted))


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: `target` with the patch merged in; None removes a key."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result
