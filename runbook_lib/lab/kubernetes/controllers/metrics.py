"""What metrics.k8s.io says: believable figures of what containers use, steady around what they asked for."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

from .quantities import number

Object = dict[str, Any]
WINDOW_SECONDS = 15.0
CORES, BYTES = 0.004, 40 << 20
"""What a container uses that asked for nothing."""


def usage(now: Callable[[], float] = time.time) -> Callable[[Object], dict[str, tuple[float, float]]]:
    """A function that tells cores and bytes of each running container of a pod, moving a little with time."""

    def used(pod: Object) -> dict[str, tuple[float, float]]:
        uid = pod["metadata"].get("uid", "")
        step = int(now() // WINDOW_SECONDS)
        rows = {row["name"]: row for row in pod.get("status", {}).get("containerStatuses") or ()}
        found = {}
        for container in pod["spec"]["containers"]:
            name = str(container["name"])
            if rows and "running" not in rows.get(name, {}).get("state", {}):
                continue
            found[name] = of_container(uid, container, step)
        return found

    return used


def of_container(uid: str, container: Object, step: int) -> tuple[float, float]:
    """Cores and bytes of one container in one window; never above its limits."""
    seed = hashlib.sha256(f"{uid}/{container['name']}".encode()).digest()
    resources = container.get("resources") or {}
    asked, limits = resources.get("requests") or {}, resources.get("limits") or {}
    wave = math.sin(step / 9 + seed[2] / 41) * 0.12 + math.sin(step / 2.3 + seed[3] / 41) * 0.05
    cores = number(asked["cpu"]) * (0.12 + 0.55 * seed[0] / 255) if "cpu" in asked else CORES * (0.3 + seed[0] / 64)
    size = number(asked["memory"]) * (0.4 + 0.45 * seed[1] / 255) if "memory" in asked else BYTES * (0.4 + seed[1] / 90)
    cores, size = cores * (1 + wave), size * (1 + wave / 6)
    if "cpu" in limits:
        cores = min(cores, number(limits["cpu"]))
    if "memory" in limits:
        size = min(size, number(limits["memory"]) * 0.95)
    return cores, size
