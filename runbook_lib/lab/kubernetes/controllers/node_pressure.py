"""What a kubelet does when its node runs short: which pods go first, and in what words. Pure judgement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]

MOST = 5
"""Pods that one shortage costs."""
_SIGNALS = {
    "memory": ("memory", "100Mi", "61204Ki", "EvictionThresholdMet", "Attempting to reclaim memory"),
    "disk": ("ephemeral-storage", "4638352394", "1843712Ki", "EvictionThresholdMet",
             "Attempting to reclaim ephemeral-storage"),
    "pids": ("pids", "6553", "212", "EvictionThresholdMet", "Attempting to reclaim pids"),
}  # fmt: skip


def order(pods: Iterable[Object]) -> list[Object]:
    """The pods that may be evicted, the first to go first: no requests before some, low priority before high."""
    able = [
        pod
        for pod in pods
        if pod.get("status", {}).get("phase") == "Running"
        and (pod["spec"].get("priority") or 0) < 2_000_000_000
        and not any(owner["kind"] == "Node" for owner in pod["metadata"].get("ownerReferences") or ())
    ]
    ranks = {"BestEffort": 0, "Burstable": 1, "Guaranteed": 2}
    return sorted(
        able,
        key=lambda pod: (
            ranks.get(pod["status"].get("qosClass", "BestEffort"), 0),
            pod["spec"].get("priority") or 0,
            pod["metadata"].get("creationTimestamp", ""),
            pod["metadata"]["name"],
        ),
    )


def told(node: str, what: str) -> tuple[str, str]:
    """(reason, message) of the node's event."""
    return _SIGNALS[what][3], _SIGNALS[what][4]


def message(pod: Object, what: str) -> str:
    """Why the pod was evicted, as its status says."""
    resource, threshold, available, *_ = _SIGNALS[what]
    said = f"The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. "
    if what != "pids":
        name = pod["spec"]["containers"][0]["name"]
        asked = (pod["spec"]["containers"][0].get("resources", {}).get("requests") or {}).get(resource, "0")
        said += f"Container {name} was using 412Mi, request is {asked}, has larger consumption of {resource}. "
    return said
