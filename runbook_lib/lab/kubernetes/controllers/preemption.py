"""Which pods of lower priority make way for one that fits nowhere. Pure judgement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .fitting import Board, Judge, Refusal
from .matching import matches

Object = dict[str, Any]

PRIORITY_OFFSET = 2**31
"""What the scheduler adds to each victim's priority, so that of two sums the one of fewer victims is the smaller."""


def priority(pod: Object) -> int:
    """The pod's priority as admission wrote it."""
    return int(pod["spec"].get("priority") or 0)


def victims(
    pod: Object, board: Board, refusals: Sequence[tuple[Object, Refusal]], budgets: Iterable[Object] = ()
) -> tuple[str, list[Object]]:
    """(node, the pods that have to leave it), or two empty values where that helps nowhere.

    Disruption budgets are preferred to be kept, not promised: where no node does without breaking one, it is broken.
    Source: kube-scheduler's default preemption, pickOneNodeForPreemption.
    """
    if pod["spec"].get("preemptionPolicy") == "Never":
        return "", []
    known, options = list(budgets), []
    for node, refusal in refusals:
        if not refusal.curable:
            continue
        chosen, broken = _on_node(pod, board, node, known)
        if chosen:
            ranks = [priority(item) for item in chosen]
            total = sum(rank + PRIORITY_OFFSET for rank in ranks)
            # of equals, the node whose most important victims have run for the shortest time
            first = min(_started(item) for item in chosen if priority(item) == max(ranks))
            options.append(((broken, max(ranks), total, len(chosen)), first, node["metadata"]["name"], chosen))
    if not options:
        return "", []
    lowest = min(option[0] for option in options)
    equals = sorted((option for option in options if option[0] == lowest), key=lambda option: option[2])
    _, _, best, chosen = max(equals, key=lambda option: option[1])
    return best, chosen


def _started(pod: Object) -> str:
    return str((pod.get("status") or {}).get("startTime") or pod["metadata"].get("creationTimestamp", ""))


def _on_node(pod: Object, board: Board, node: Object, budgets: Sequence[Object]) -> tuple[list[Object], int]:
    """(the fewest pods that have to leave the node, how many of them break a budget); none where that does not help."""
    name = node["metadata"]["name"]
    lower = [item for item in board.pods.get(name, ()) if priority(item) < priority(pod)]
    lower.sort(key=lambda item: (-priority(item), _started(item)))
    gone = {item["metadata"].get("uid") for item in lower}
    if not lower or Judge(pod, board.without(name, gone)).refusal(node) is not None:
        return [], 0
    breaking = breaking_budgets(lower, budgets)
    rest = [item for item in lower if item not in breaking]
    for item in (*breaking, *rest):  # those that a budget protects are spared first, then the most important
        spared = gone - {item["metadata"].get("uid")}
        if Judge(pod, board.without(name, spared)).refusal(node) is None:
            gone = spared
    return (
        [item for item in lower if item["metadata"].get("uid") in gone],
        sum(1 for item in breaking if item["metadata"].get("uid") in gone),
    )


def breaking_budgets(pods: Iterable[Object], budgets: Iterable[Object]) -> list[Object]:
    """Those of the pods, the most important first, whose going breaks a budget once those before them have gone."""
    rows = list(budgets)
    left = [int((row.get("status") or {}).get("disruptionsAllowed") or 0) for row in rows]
    found = []
    for pod in pods:
        labels, space = pod["metadata"].get("labels") or {}, pod["metadata"].get("namespace", "")
        breaks = False
        for number, row in enumerate(rows):
            if not labels or row["metadata"].get("namespace", "") != space:
                continue
            selector = row["spec"].get("selector")
            if not selector or not matches(selector, labels):
                continue
            if pod["metadata"]["name"] in ((row.get("status") or {}).get("disruptedPods") or {}):
                continue  # its going is counted already
            left[number] -= 1
            breaks = breaks or left[number] < 0
        if breaks:
            found.append(pod)
    return found
