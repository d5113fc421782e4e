"""The status of a pod as its kubelet reports it, from what its containers do. Pure judgement."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Object = dict[str, Any]


def digest(text: str) -> str:
    """64 hexadecimal digits, the same for the same text."""
    return hashlib.sha256(text.encode()).hexdigest()


def image_id(image: str) -> str:
    """The reference by digest that a runtime reports."""
    bare = image.partition("@")[0]
    repository = bare.rpartition(":")[0] if ":" in bare.rpartition("/")[2] else bare
    return f"{repository}@sha256:{digest(image)}"


def waiting(container: Object, reason: str, message: str = "", *, before: Object | None = None) -> Object:
    """The status of a container that does not run yet, or not again yet."""
    before = before or {}
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return _status(container, state, before.get("restartCount", 0), before.get("lastState", {}), "", ready=False)


def running(container: Object, since: str, restarts: int, last: Object, identity: str) -> Object:
    """The status of a container that runs; whether it is ready and started is for its probes to say."""
    state = {"running": {"startedAt": since}}
    ready, started = "readinessProbe" not in container, "startupProbe" not in container
    status = _status(container, state, restarts, last, identity, ready=ready and started)
    return {**status, "started": started}


def terminated(container: Object, ended: Object, restarts: int, last: Object) -> Object:
    """The status of a container that ended for good."""
    identity = ended.get("containerID", "")
    return _status(container, {"terminated": ended}, restarts, last, identity, ready=ended["exitCode"] == 0)


def ending(code: int, begun: str, ended: str, identity: str, *, reason: str = "", message: str = "") -> Object:
    """How a container's process ended."""
    told = {"message": message} if message else {}
    reason = reason or ("Completed" if code == 0 else "Error")
    return {
        "exitCode": code,
        "reason": reason,
        **told,
        "startedAt": begun,
        "finishedAt": ended,
        "containerID": identity,
    }


def _status(
    container: Object, state: Object, restarts: int, last: Object, identity: str, *, ready: bool
) -> Object:  # fmt: skip
    pulled = "waiting" not in state or bool(last)
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": image_id(container["image"]) if pulled else "",
        **({"containerID": identity} if identity else {}),
        "ready": ready,
        "started": "running" in state,
        "restartCount": restarts,
        "state": state,
        "lastState": last,
    }


def is_sidecar(container: Object) -> bool:
    """Whether an init container keeps running beside the others."""
    return container.get("restartPolicy") == "Always"


def phase(pod: Object, containers: Sequence[Object], inits: Mapping[str, Object]) -> str:
    """Pending, Running, Succeeded or Failed, as the kubelet's getPhase judges it."""
    policy = pod["spec"].get("restartPolicy", "Always")
    for container in pod["spec"].get("initContainers") or ():
        state = inits.get(container["name"], {}).get("state", {})
        if is_sidecar(container):
            if not inits.get(container["name"], {}).get("started"):
                return "Pending"
        elif "terminated" not in state:
            return "Pending"
        elif state["terminated"]["exitCode"]:
            return "Failed" if policy == "Never" else "Pending"
    alive = [entry for entry in containers if "running" in entry["state"]]
    ended = [end for entry in containers if (end := _end(entry))]
    if len(alive) + len(ended) < len(containers):
        return "Pending"
    if alive or policy == "Always":
        return "Running"
    if all(end["exitCode"] == 0 for end in ended):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _end(status: Object) -> Object:
    """How a container that stopped ended last; empty for one that never ran or runs."""
    state = status["state"]
    if "terminated" in state:
        return dict(state["terminated"])
    return dict(status.get("lastState", {}).get("terminated") or {}) if "waiting" in state else {}


def conditions(
    pod: Object,
    now: str,
    *,
    sandbox: bool,
    containers: Sequence[Object],
    inits: Mapping[str, Object],
    before: Sequence[Object],
    ended: str = "",
) -> list[Object]:
    """The conditions a kubelet owns; the time of one that did not change stays."""
    lacking = [entry["name"] for entry in containers if not entry["ready"]]
    rest = [
        entry["name"]
        for entry in pod["spec"].get("initContainers") or ()
        if not _initialized(entry, inits.get(entry["name"], {}))
    ]
    names = " ".join(lacking)
    unready = _why("ContainersNotReady", f"containers with unready status: [{names}]") if lacking else {}
    unready = _why("PodCompleted") if ended == "Succeeded" else _why("PodFailed") if ended == "Failed" else unready
    gates = {entry["conditionType"] for entry in pod["spec"].get("readinessGates") or ()}
    held = {entry["type"]: entry for entry in before}
    shut = sorted(gate for gate in gates if held.get(gate, {}).get("status") != "True")
    words = [f'corresponding condition of pod readiness gate "{gate}" does not exist.' for gate in shut]
    gated = _why("ReadinessGatesNotReady", ", ".join(words))
    uninitialized = _why("ContainersNotInitialized", f"containers with incomplete status: [{' '.join(rest)}]")
    if ended == "Succeeded":
        rest, uninitialized = [], _why("PodCompleted")
    rows: list[tuple[str, bool, Object]] = [
        ("PodReadyToStartContainers", sandbox, {}),
        ("Initialized", not rest, uninitialized if rest or ended == "Succeeded" else {}),
        ("Ready", not unready and not shut, unready or (gated if shut else {})),
        ("ContainersReady", not unready, unready),
        ("PodScheduled", True, {}),
    ]
    return [_row(kind, state, why, held.get(kind, {}), now) for kind, state, why in rows]


def _initialized(container: Object, status: Object) -> bool:
    if is_sidecar(container):
        return bool(status.get("started"))
    return status.get("state", {}).get("terminated", {}).get("exitCode") == 0


def _row(kind: str, state: bool, why: Object, before: Object, now: str) -> Object:
    since = before.get("lastTransitionTime") if before.get("status") == str(state) else None
    stale = {key: None for key in ("reason", "message") if before.get(key)}
    return {
        "type": kind,
        "status": str(state),
        "lastProbeTime": None,
        "lastTransitionTime": since or now,
        **stale,
        **why,
    }


def _why(reason: str, message: str = "") -> Object:
    return {"reason": reason, **({"message": message} if message else {})}


def replaced(conditions: Sequence[Object], kind: str, **fields: Any) -> list[Object]:
    """The conditions with one of them changed."""
    return [{**entry, **fields} if entry["type"] == kind else entry for entry in conditions]


def disrupted(reason: str, message: str, now: str) -> Object:
    """The condition DisruptionTarget of a pod that someone takes away."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": now,
    }
