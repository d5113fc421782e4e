"""Pods as kubelets report them: one builder, and the states an incident leaves them in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .components import Part
from .objects import Object, Times, condition, set_condition, suffix, thing


def image_id(image: str) -> str:
    """A digest reference for an image; the same for the same image."""
    repository = image.rpartition(":")[0] or image
    return f"{repository}@sha256:{_hex(image, 64)}"


def pod(
    part: Part,
    name: str,
    namespace: str,
    owner: Object,
    times: Times,
    *,
    node: str,
    node_ip: str,
    pod_ip: str,
    extra_labels: Mapping[str, str],
    claims: Iterable[Object] = (),
) -> Object:
    """A running, ready pod of the part on that node."""
    return thing(
        "v1",
        "Pod",
        name,
        namespace,
        created=times.born,
        labels={**part.selector, **extra_labels},
        annotations=None if part.host else _ovn_annotations(pod_ip),
        owner=owner,
        spec={**pod_spec(part), "nodeName": node, **_volumes(claims)},
        status=_running(
            part, times, node_ip=node_ip, pod_ip=node_ip if part.host else pod_ip, seed=f"{namespace}/{name}"
        ),
    )


def pod_spec(part: Part) -> Object:
    """A pod's spec, defaults filled in as the API server does."""
    spec: Object = {
        "containers": [
            _container(part.name, part.image, part),
            *(_container(name, image, None) for name, image in part.sidecars),
        ],
        "dnsPolicy": "ClusterFirstWithHostNet" if part.host else "ClusterFirst",
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 2000001000 if part.critical else 0,
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "serviceAccount": "default",
        "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
        "tolerations": _tolerations(part),
    }
    if part.critical:
        spec["priorityClassName"] = "system-node-critical"
    if part.host:
        spec["hostNetwork"] = True
    if part.init:
        spec["initContainers"] = [_container(name, part.image, None) for name in part.init]
    if part.nodes == "control-plane":
        spec["nodeSelector"] = {"node-role.kubernetes.io/control-plane": ""}
    return spec


def template_spec(part: Part) -> Object:
    """The pod template's spec of a part: what the API server adds to pods alone is not in it."""
    spec = {key: value for key, value in pod_spec(part).items() if key not in _OF_PODS}
    if not _tolerates_all(part):
        del spec["tolerations"]
    return spec


_OF_PODS = frozenset({"enableServiceLinks", "preemptionPolicy", "priority", "serviceAccount", "serviceAccountName"})


def _container(name: str, image: str, part: Part | None) -> Object:
    container: Object = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }
    if part is None:
        return container
    requests = {key: value for key, value in (("cpu", part.cpu), ("memory", part.memory)) if value}
    if requests:
        container["resources"] = {"requests": requests}
    if part.args:
        container["args"] = list(part.args)
    if part.env:
        container["env"] = [{"name": key, "value": value} for key, value in part.env.items()]
    if part.privileged:
        container["securityContext"] = {"privileged": True}
    if part.services:
        container["ports"] = [
            {"containerPort": port, "name": f"port-{port}", "protocol": "TCP"}
            for port in sorted({abs(port) for _, port in part.services})
        ]
        if any(port == 53 for _, port in part.services):
            container["ports"].append({"containerPort": 53, "name": "dns", "protocol": "UDP"})
    return container


def _tolerations(part: Part) -> list[Object]:
    if _tolerates_all(part):
        return [{"operator": "Exists"}]
    return [
        {"effect": "NoExecute", "key": f"node.kubernetes.io/{key}", "operator": "Exists", "tolerationSeconds": 300}
        for key in ("not-ready", "unreachable")
    ]


def _tolerates_all(part: Part) -> bool:
    return part.kind == "DaemonSet" or part.host


def _volumes(claims: Iterable[Object]) -> Object:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} for claim in claims]
    return {"volumes": volumes} if volumes else {}


def _ovn_annotations(pod_ip: str) -> dict[str, str]:
    return {
        "ovn.kubernetes.io/allocated": "true",
        "ovn.kubernetes.io/cidr": "10.244.0.0/16",
        "ovn.kubernetes.io/gateway": "10.244.0.1",
        "ovn.kubernetes.io/ip_address": pod_ip,
        "ovn.kubernetes.io/logical_switch": "ovn-default",
        "ovn.kubernetes.io/routed": "true",
    }


def _running(part: Part, times: Times, *, node_ip: str, pod_ip: str, seed: str) -> Object:
    started = times.settled
    containers = [(part.name, part.image), *part.sidecars]
    status: Object = {
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": started}
            for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
        ],
        "hostIP": node_ip,
        "hostIPs": [{"ip": node_ip}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "startTime": times.born,
        "containerStatuses": [
            {
                "name": name,
                "image": image,
                "imageID": image_id(image),
                "containerID": f"containerd://{_hex(f'{seed}/{name}', 64)}",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": started}},
                "lastState": {},
            }
            for name, image in containers
        ],
        "qosClass": "Burstable" if part.cpu or part.memory else "BestEffort",
    }
    if part.init:
        status["initContainerStatuses"] = [
            {
                "name": name,
                "image": part.image,
                "imageID": image_id(part.image),
                "containerID": f"containerd://{_hex(f'{seed}/{name}', 64)}",
                "ready": True,
                "started": False,
                "restartCount": 0,
                "state": {
                    "terminated": {"exitCode": 0, "reason": "Completed", "startedAt": times.born, "finishedAt": started}
                },
                "lastState": {},
            }
            for name in part.init
        ]
    return status


# --- states an incident leaves -------------------------------------------------------------------


def put_in_state(item: Object, state: str, times: Times, **details: Any) -> None:
    """Puts a pod in the named state: see STATES. `details`: message, reason, restarts, code, done (init)."""
    STATES[state](item, times, details)


def is_ready(item: Object) -> bool:
    """Whether the pod's Ready condition is True."""
    return any(
        entry.get("type") == "Ready" and entry.get("status") == "True"
        for entry in item.get("status", {}).get("conditions", ())
    )


def _not_ready(item: Object, times: Times, reason: str = "ContainersNotReady") -> None:
    names = " ".join(entry["name"] for entry in item["spec"]["containers"])
    for kind in ("Ready", "ContainersReady"):
        set_condition(
            item, condition(kind, False, reason, f"containers with unready status: [{names}]", at=times.ago(2400))
        )


def _waiting(item: Object, times: Times, details: Mapping[str, Any], reason: str, message: str) -> None:
    item["status"]["phase"] = "Pending"
    _not_ready(item, times)
    for entry in item["status"].get("containerStatuses", ()):
        waiting = {"reason": reason, **({"message": message} if message else {})}
        entry.update(ready=False, started=False, state={"waiting": waiting}, restartCount=details.get("restarts", 0))
        entry.pop("containerID", None)
        entry["imageID"] = ""


def _creating(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    _waiting(item, times, details, "ContainerCreating", details.get("message", ""))
    _without_address(item)


def _image_pull(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    image = item["spec"]["containers"][0]["image"]
    said = details.get("message") or f'Back-off pulling image "{image}"'
    _waiting(item, times, details, details.get("reason", "ImagePullBackOff"), said)


def _crash_loop(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    item["status"]["phase"] = "Running"
    _not_ready(item, times)
    namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
    for entry in item["status"]["containerStatuses"]:
        ended = {
            "exitCode": details.get("code", 1),
            "reason": "Error",
            "startedAt": times.ago(200),
            "finishedAt": times.ago(180),
            "containerID": entry.get("containerID", ""),
        }
        if details.get("message"):
            ended["message"] = details["message"]
        back_off = (
            f"back-off 5m0s restarting failed container={entry['name']} "
            f"pod={name}_{namespace}({item['metadata']['uid']})"
        )
        entry.update(
            ready=False,
            started=False,
            restartCount=details.get("restarts", 12),
            state={"waiting": {"reason": "CrashLoopBackOff", "message": back_off}},
            lastState={"terminated": ended},
        )


def _init(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    _waiting(item, times, {}, "PodInitializing", "")
    set_condition(
        item,
        condition("Initialized", False, "ContainersNotInitialized", "containers with incomplete status", at=times.born),
    )
    for position, entry in enumerate(item["status"].get("initContainerStatuses", ())):
        if position < details.get("done", 0):
            continue
        entry.update(
            ready=False, restartCount=details.get("restarts", 0), state={"waiting": {"reason": "PodInitializing"}}
        )
        entry.pop("containerID", None)


def _unscheduled(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    item["spec"].pop("nodeName", None)
    message = details.get("message", "0/5 nodes are available: 5 Insufficient cpu.")
    item["status"] = {
        "phase": "Pending",
        "qosClass": item["status"].get("qosClass", "BestEffort"),
        "conditions": [condition("PodScheduled", False, "Unschedulable", message, at=times.ago(1800))],
    }


def _failed(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    """A pod that was refused or evicted: no containers ever reported, only a reason."""
    item["status"] = {
        "phase": "Failed",
        "reason": details.get("reason", "Error"),
        "message": details.get("message", ""),
        "startTime": times.ago(2400),
        "qosClass": item["status"].get("qosClass", "BestEffort"),
    }


def _restarted(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    for entry in item["status"]["containerStatuses"]:
        entry["restartCount"] = details.get("restarts", 10)
        entry["lastState"] = {
            "terminated": {
                "exitCode": details.get("code", 1),
                "reason": "Error",
                "startedAt": times.ago(9000),
                "finishedAt": times.ago(7200),
            }
        }


def _not_passing(item: Object, times: Times, details: Mapping[str, Any]) -> None:
    """Running, but its readiness probe fails."""
    _not_ready(item, times)
    for entry in item["status"]["containerStatuses"]:
        entry["ready"] = False
    if details.get("restarts"):
        _restarted(item, times, details)


def _lost(item: Object, times: Times, _details: Mapping[str, Any]) -> None:
    """Its node stopped reporting three minutes ago: not ready, and not evicted yet (that takes five)."""
    set_condition(item, condition("Ready", False, "NodeNotReady", at=times.ago(180)))


def _without_address(item: Object) -> None:
    if not item["spec"].get("hostNetwork"):
        item["status"].pop("podIP", None)
        item["status"].pop("podIPs", None)
        item["metadata"].pop("annotations", None)
        set_condition(item, {"type": "PodReadyToStartContainers", "status": "False"})


STATES: Mapping[str, Callable[[Object, Times, Mapping[str, Any]], None]] = {
    "creating": _creating,
    "image-pull": _image_pull,
    "crash-loop": _crash_loop,
    "init": _init,
    "unscheduled": _unscheduled,
    "failed": _failed,
    "restarted": _restarted,
    "not-ready": _not_passing,
    "lost": _lost,
}
"""What a scenario may do to a pod."""


def _hex(seed: str, length: int) -> str:
    text = suffix(seed, 8)
    return (text.encode().hex() * 8)[:length]
