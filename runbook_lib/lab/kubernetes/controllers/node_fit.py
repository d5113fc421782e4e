"""Whether a kubelet takes a pod that was bound to its node, and why not. Pure judgement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .quantities import number, requests_of

Object = dict[str, Any]


def rejection(pod: Object, node: Object, others: Iterable[Object]) -> tuple[str, str]:
    """(reason, message) of a pod that the kubelet refuses; two empty texts for one that it takes.

    A pod goes to the kubelet without the scheduler's judgement when its nodeName was written by hand.
    """
    allocatable = node["status"].get("allocatable") or {}
    there = [item for item in others if item.get("status", {}).get("phase") not in {"Succeeded", "Failed"}]
    labels = node["metadata"].get("labels", {})
    if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return (
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        )
    most = number(allocatable.get("pods", "110"))
    if len(there) + 1 > most:
        return "OutOfpods", _said("pods", 1, len(there), int(most))
    for name, wanted in requests_of(pod).items():
        have = number(allocatable.get(name, "0")) if allocatable else float("inf")
        used = sum(requests_of(item).get(name, 0.0) for item in there)
        if wanted and used + wanted > have + 1e-9:
            factor = 1000 if name == "cpu" else 1
            return f"OutOf{name}", _said(name, *(round(value * factor) for value in (wanted, used, have)))
    return "", ""


def _said(name: str, wanted: int, used: int, have: int) -> str:
    return (
        f"Pod was rejected: Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, "
        f"capacity: {have}"
    )
