"""What an incident did to the cluster, as data: each edit of a scenario changes the objects it names.

An edit is a mapping with one verb as a key and the verb's arguments beside it:

- `pods: {namespace, name, labels, node}` with `state:` (see pods.STATES) and its details
- `objects: {kind, namespace, name}` with `merge:` (RFC 7386) and `conditions:` (by type)
- `delete: {kind, namespace, name}`
- `add: [objects]`
- `release: namespace/name` with `reason:` and `message:`; what depends on it follows by itself
- `dead_pods: {namespace, name}` with `count:`, `reason:`, `message:`; failed copies of one pod
- `event: {kind, namespace, name}` with `reason:`, `message:`, `count:`
- `load: node` with `fill:`; a pod that raises the CPU requests there to that share

Names are shell patterns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from .objects import Object, Times, condition, merge, set_condition, suffix, thing, uid
from .pods import put_in_state
from .workloads import follow, milli

Edit = Mapping[str, Any]


class UnknownEdit(ValueError):
    """An edit that names no verb, or that matches nothing."""


def apply(objects: list[Object], edits: Iterable[Edit], times: Times) -> list[Object]:
    """The objects after all edits, in order. Raises UnknownEdit for one that says or finds nothing."""
    for edit in edits:
        verb = next((name for name in VERBS if name in edit), None)
        if verb is None:
            raise UnknownEdit(f"no such edit: {', '.join(map(str, edit))}; known are {', '.join(VERBS)}")
        objects = VERBS[verb](objects, edit[verb], edit, times)
    return objects


def matches(item: Object, pattern: Mapping[str, Any]) -> bool:
    """Whether kind, namespace, name, labels and node of the pattern fit the object."""
    metadata = item["metadata"]
    labels = metadata.get("labels", {})
    return (
        fnmatchcase(item["kind"], pattern.get("kind", "*"))
        and fnmatchcase(metadata.get("namespace", ""), pattern.get("namespace", "*"))
        and fnmatchcase(metadata["name"], pattern.get("name", "*"))
        and all(labels.get(key) == value for key, value in pattern.get("labels", {}).items())
        and fnmatchcase(item.get("spec", {}).get("nodeName", "") or "", pattern.get("node", "*"))
    )


def _chosen(objects: Iterable[Object], pattern: Mapping[str, Any]) -> list[Object]:
    found = [item for item in objects if matches(item, pattern)]
    if not found:
        raise UnknownEdit(f"an edit matches nothing: {dict(pattern)}")
    return found


def _pods(objects: list[Object], pattern: Mapping[str, Any], edit: Edit, times: Times) -> list[Object]:
    details = {key: value for key, value in edit.items() if key not in {"pods", "state"}}
    for item in _chosen(objects, {**pattern, "kind": "Pod"}):
        put_in_state(item, edit["state"], times, **details)
    return objects


def _objects(objects: list[Object], pattern: Mapping[str, Any], edit: Edit, times: Times) -> list[Object]:
    for item in _chosen(objects, pattern):
        for key, value in merge(item, edit.get("merge", {})).items():
            item[key] = value
        for entry in edit.get("conditions", ()):
            set_condition(item, {"lastTransitionTime": times.ago(2400), **entry})
        if "template" in edit.get("merge", {}).get("spec", {}):
            objects = objects + follow(item, objects, times)
    return objects


def _delete(objects: list[Object], pattern: Mapping[str, Any], _edit: Edit, _times: Times) -> list[Object]:
    gone = {id(item) for item in _chosen(objects, pattern)}
    return [item for item in objects if id(item) not in gone]


def _add(objects: list[Object], items: Iterable[Object], _edit: Edit, times: Times) -> list[Object]:
    return objects + [_completed(copy.deepcopy(dict(item)), times) for item in items]


def _completed(item: Object, times: Times) -> Object:
    metadata = item["metadata"]
    metadata.setdefault("uid", uid(item["kind"], metadata.get("namespace", ""), metadata["name"]))
    metadata.setdefault("creationTimestamp", times.born)
    return item


def _release(objects: list[Object], name: str, edit: Edit, times: Times) -> list[Object]:
    namespace, _, short = name.partition("/")
    for item in _chosen(objects, {"kind": "HelmRelease", "namespace": namespace, "name": short}):
        reason, message = edit.get("reason", "UpgradeFailed"), edit.get("message", "")
        set_condition(item, condition("Ready", False, reason, message, at=times.ago(1800)))
        set_condition(item, condition("Released", False, reason, message, at=times.ago(1800)))
        item["status"]["history"][0]["status"] = "failed"
        item["status"]["failures"] = edit.get("failures", 7)
        if "suspend" in edit:
            item["spec"]["suspend"] = edit["suspend"]
    return objects


def _dead_pods(objects: list[Object], pattern: Mapping[str, Any], edit: Edit, times: Times) -> list[Object]:
    model = _chosen(objects, {**pattern, "kind": "Pod"})[0]
    base = model["metadata"]["name"].rpartition("-")[0]
    made = []
    for number in range(edit.get("count", 1)):
        item = copy.deepcopy(model)
        item["metadata"]["name"] = f"{base}-{suffix(f'{base}/dead/{number}')}"
        item["metadata"]["uid"] = uid("Pod", item["metadata"]["namespace"], item["metadata"]["name"])
        item["metadata"]["creationTimestamp"] = times.ago(2700 - number)
        put_in_state(item, "failed", times, reason=edit.get("reason", "Error"), message=edit.get("message", ""))
        made.append(item)
    return objects + made


def _event(objects: list[Object], pattern: Mapping[str, Any], edit: Edit, times: Times) -> list[Object]:
    events = []
    for item in _chosen(objects, pattern):
        if item["kind"] == "ReplicaSet" and not item["spec"]["replicas"]:
            continue  # nothing befalls what a roll-out has left
        metadata = item["metadata"]
        about = {
            "apiVersion": item["apiVersion"],
            "kind": item["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            **({"namespace": metadata["namespace"]} if "namespace" in metadata else {}),
        }
        name = f"{metadata['name']}.{suffix(metadata['uid'] + edit['reason'], 16)}"
        event = thing("v1", "Event", name, metadata.get("namespace", "default"), created=times.ago(2400))
        events.append(
            event
            | {
                "involvedObject": about,
                "reason": edit["reason"],
                "message": edit.get("message", ""),
                "type": edit.get("type", "Warning"),
                "count": edit.get("count", 1),
                "firstTimestamp": times.ago(2400),
                "lastTimestamp": times.ago(45),
                "source": {"component": edit.get("source", "kubelet")},
                "reportingComponent": edit.get("source", "kubelet"),
                "reportingInstance": item.get("spec", {}).get("nodeName", "") or "",
                "metadata": {**event["metadata"], "managedFields": []},
            }
        )
    return objects + events


def _load(objects: list[Object], node: str, edit: Edit, times: Times) -> list[Object]:
    """A pod of someone's that fills one node's CPU requests to a share of what it may give."""
    machine = _chosen(objects, {"kind": "Node", "name": node})[0]
    here = [item for item in objects if item["kind"] == "Pod" and item["spec"].get("nodeName") == node]
    asked = sum(
        milli(container.get("resources", {}).get("requests", {}).get("cpu", ""))
        for item in here
        for container in item["spec"]["containers"]
    )
    wanted = int(milli(machine["status"]["allocatable"]["cpu"]) * edit["fill"]) - asked
    requests = {"cpu": f"{max(0, wanted)}m"}
    address = machine["status"]["addresses"][0]["address"]
    name = f"batch-{node}"
    at = times.settled
    item = thing(
        "v1",
        "Pod",
        name,
        edit.get("namespace", "default"),
        created=times.born,
        labels={"app": "batch"},
        spec={
            "nodeName": node,
            "containers": [
                {"name": "batch", "image": "registry.k8s.io/pause:3.10", "resources": {"requests": requests}}
            ],
            "restartPolicy": "Always",
            "tolerations": [{"operator": "Exists"}],
        },
        status={
            "phase": "Running",
            "hostIP": address,
            "podIP": f"10.244.250.{len(objects) % 250 + 2}",
            "startTime": times.born,
            "qosClass": "Burstable",
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": at}
                for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
            "containerStatuses": [
                {
                    "name": "batch",
                    "image": "registry.k8s.io/pause:3.10",
                    "imageID": "",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": at}},
                    "lastState": {},
                }
            ],
        },
    )
    return [*objects, item]


VERBS: Mapping[str, Callable[[list[Object], Any, Edit, Times], list[Object]]] = {
    "pods": _pods,
    "objects": _objects,
    "delete": _delete,
    "add": _add,
    "release": _release,
    "dead_pods": _dead_pods,
    "event": _event,
    "load": _load,
}
"""Everything an edit may do."""
