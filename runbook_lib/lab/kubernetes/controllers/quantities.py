"""Resource quantities as numbers."""

from __future__ import annotations

from typing import Any

_FACTORS = {
    "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def number(quantity: Any) -> float:
    """ "250m" → 0.25, "1Gi" → 1073741824."""
    text = str(quantity)
    digits = text.rstrip("mkKMGTPEi")
    return float(digits) * _FACTORS[text[len(digits) :]] if digits else 0.0


def requests_of(pod: dict[str, Any]) -> dict[str, float]:
    """What a pod asks for: the containers together, or its largest init container where that is more."""
    total: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        for name, value in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = total.get(name, 0.0) + number(value)
    for container in pod["spec"].get("initContainers") or ():
        for name, value in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = max(total.get(name, 0.0), number(value))
    for name, value in (pod["spec"].get("overhead") or {}).items():
        total[name] = total.get(name, 0.0) + number(value)
    return total
