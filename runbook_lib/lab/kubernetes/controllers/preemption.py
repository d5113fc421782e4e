"""Which pods of lower priority make way for one that fits nowhere. Pure judgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .fitting import Board, Judge, Refusal

Object = dict[str, Any]


def priority(pod: Object) -> int:
    """The pod's priority as admission wrote it."""
    return int(pod["spec"].get("priority") or 0)


def victims(pod: Object, board: Board, refusals: Sequence[tuple[Object, Refusal]]) -> tuple[str, list[Object]]:
    """(node, the pods that have to leave it), or two empty values where that helps nowhere."""
    if pod["spec"].get("preemptionPolicy") == "Never":
        return "", []
    options = []
    for node, refusal in refusals:
        if refusal.curable and (chosen := _on_node(pod, board, node)):
            ranks = [priority(item) for item in chosen]
            options.append(((max(ranks), sum(ranks), len(chosen), node["metadata"]["name"]), chosen))
    if not options:
        return "", []
    best, chosen = min(options, key=lambda option: option[0])
    return best[3], chosen


def _on_node(pod: Object, board: Board, node: Object) -> list[Object]:
    name = node["metadata"]["name"]
    lower = [item for item in board.pods.get(name, ()) if priority(item) < priority(pod)]
    lower.sort(key=lambda item: (-priority(item), str(item["metadata"].get("creationTimestamp", ""))))
    gone = {item["metadata"].get("uid") for item in lower}
    if not lower or Judge(pod, board.without(name, gone)).refusal(node) is not None:
        return []
    for item in lower:  # the most important are spared first
        spared = gone - {item["metadata"].get("uid")}
        if Judge(pod, board.without(name, spared)).refusal(node) is None:
            gone = spared
    return [item for item in lower if item["metadata"].get("uid") in gone]
