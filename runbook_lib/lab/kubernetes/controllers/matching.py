"""Label selectors as controllers read them. Pure judgement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy a LabelSelector. An empty selector takes everything, none at all nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(expression(entry, labels) for entry in selector.get("matchExpressions") or ())


def expression(entry: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy one requirement of a label or node selector."""
    key, kind, values = entry["key"], entry["operator"], entry.get("values") or []
    here = labels.get(key)
    if kind == "In":
        return here in values
    if kind == "NotIn":
        return here not in values
    if kind == "Exists":
        return here is not None
    if kind == "DoesNotExist":
        return here is None
    if here is None or not here.lstrip("-").isdigit():
        return False
    return int(here) > int(values[0]) if kind == "Gt" else int(here) < int(values[0])
