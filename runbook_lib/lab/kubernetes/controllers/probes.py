"""Probes of containers: what one try says, and when enough tries of a kind make a result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

Object = dict[str, Any]
UNHEALTHY = "lab.runbook.cozystack.io/unhealthy"
"""Annotation of a pod whose probes fail: "container[,container]" or "*", with a text after a colon if wanted."""

Execute = Callable[[list[str]], Awaitable[tuple[int, str]]]
KINDS = {"startupProbe": "Startup", "readinessProbe": "Readiness", "livenessProbe": "Liveness"}


@dataclass(frozen=True)
class Tally:
    """Tries in a row with the same end, and the result they made: True, False, or None before there is one."""

    result: bool | None = None
    last: bool | None = None
    count: int = 0

    def after(self, ok: bool, probe: Object) -> Tally:
        """The tally after one more try."""
        count = self.count + 1 if ok is self.last else 1
        needed = probe.get("successThreshold", 1) if ok else probe.get("failureThreshold", 3)
        return replace(self, last=ok, count=count, result=ok if count >= needed else self.result)


def declared_ports(container: Object) -> dict[str, int]:
    """The container's ports, by name and by number as text."""
    found = {}
    for entry in container.get("ports") or ():
        found[str(entry["containerPort"])] = entry["containerPort"]
        if entry.get("name"):
            found[entry["name"]] = entry["containerPort"]
    return found


def fault(pod: Object, container: Object) -> str:
    """What the pod's annotation makes every probe of the container say; empty when it makes them fail in nothing."""
    told = (pod["metadata"].get("annotations") or {}).get(UNHEALTHY, "")
    names, _, words = told.partition(":")
    if names != "*" and container["name"] not in names.split(","):
        return ""
    return words.strip() or "HTTP probe failed with statuscode: 500"


async def ask(pod: Object, container: Object, probe: Object, execute: Execute) -> tuple[bool, str, bool]:
    """(whether it succeeded, what a failure says, whether the next try may say something else by itself)."""
    if words := fault(pod, container):
        return False, words, False
    address = pod.get("status", {}).get("podIP", "")
    if "exec" in probe:
        code, output = await execute(list(probe["exec"].get("command") or ()))
        return code == 0, output.strip() or f"command failed with exit code {code}", True
    action = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
    port = action.get("port", 0)
    ports = declared_ports(container)
    # A port that nobody declared may still be served; only a name that stands for nothing cannot be asked.
    if isinstance(port, str) and not port.isdigit() and port not in ports:
        return False, f"couldn't find port: {port}", False
    if ports or container.get("image", "").rpartition("/")[2].partition(":")[0] not in {"busybox", "alpine"}:
        return True, "", False
    number = ports.get(str(port), port)
    if "httpGet" in probe:
        url = f"http://{address}:{number}{action.get('path', '/')}"
        return False, f'Get "{url}": dial tcp {address}:{number}: connect: connection refused', False
    return False, f"dial tcp {address}:{number}: connect: connection refused", False
