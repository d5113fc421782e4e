"""Relabeling: labels in, labels out or nothing, by the rules of a scrape object."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=512)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def relabel(labels: Mapping[str, str], rules: Iterable[Mapping[str, Any]]) -> dict[str, str] | None:
    """The labels after the rules; None when a rule drops them. Keys in snake or camel case."""
    found = dict(labels)
    for rule in rules:
        kept = _apply(found, rule)
        if kept is None:
            return None
        found = kept
    return {key: value for key, value in found.items() if value != ""}


def _get(rule: Mapping[str, Any], snake: str, camel: str, otherwise: Any = None) -> Any:
    return rule[snake] if snake in rule else rule.get(camel, otherwise)


def _apply(labels: dict[str, str], rule: Mapping[str, Any]) -> dict[str, str] | None:
    action = str(rule.get("action") or "replace").lower()
    given = rule.get("regex")
    text = "|".join(map(str, given)) if isinstance(given, list) else "(.*)" if given is None else str(given)
    pattern = _pattern(text)
    sources = _get(rule, "source_labels", "sourceLabels") or []
    value = str(rule.get("separator", ";")).join(labels.get(name, "") for name in sources)
    target = str(_get(rule, "target_label", "targetLabel", "") or "")
    replacement = str(rule.get("replacement", "$1"))
    match = pattern.fullmatch(value)
    if action == "replace":
        return labels if match is None else {**labels, _filled(target, match): _filled(replacement, match)}
    if action in {"keep", "drop"}:
        return labels if (match is not None) == (action == "keep") else None
    if action in {"keepequal", "keep_if_equal", "dropequal", "drop_if_equal"}:
        wanted = sources if action.endswith("_if_equal") else [*sources, target]
        equal = len({labels.get(name, "") for name in wanted}) < 2
        return labels if equal == action.startswith("keep") else None
    if action in {"labeldrop", "labelkeep"}:
        wanted = action == "labelkeep"
        return {
            k: v for k, v in labels.items() if bool(pattern.fullmatch(k)) == wanted or (k.startswith("__") and wanted)
        }
    if action == "labelmap":
        mapped = {_filled(replacement, m): v for k, v in labels.items() if (m := pattern.fullmatch(k))}
        return labels | mapped
    if action in {"lowercase", "uppercase"}:
        return {**labels, target: value.lower() if action == "lowercase" else value.upper()}
    if action == "hashmod":
        digest = int.from_bytes(hashlib.md5(value.encode(), usedforsecurity=False).digest()[8:], "big")
        return {**labels, target: str(digest % int(rule.get("modulus") or 1))}
    if action == "replace_all":
        return {**labels, target: pattern.sub(re.sub(r"\$(\d)", r"\\\1", replacement), value)}
    return labels


def _filled(template: str, match: re.Match[str]) -> str:
    def put(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        try:
            return match[int(name) if name.isdigit() else name] or ""
        except (IndexError, KeyError):
            return ""

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", put, template)
