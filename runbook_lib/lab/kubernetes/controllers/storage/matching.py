"""Which volume a claim gets, and what is said while it gets none. Pure judgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..quantities import number

Object = dict[str, Any]

BIND_COMPLETED, BOUND_BY = "pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
OLD_PROVISIONER = "volume.beta.kubernetes.io/storage-provisioner"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
IN_TREE = "kubernetes.io/"


@dataclass(frozen=True)
class Verdict:
    """What to do about a claim: bind it to `volume`, ask `provisioner`, or only say something."""

    volume: Object | None = None
    provisioner: str = ""
    reason: str = ""
    message: str = ""
    warning: bool = False
    phase: str = "Pending"


def notes(item: Mapping[str, Any]) -> Mapping[str, str]:
    """The annotations."""
    return item["metadata"].get("annotations") or {}


def class_of(item: Mapping[str, Any]) -> str:
    """The class a claim or volume names; empty when none."""
    return str(item["spec"].get("storageClassName") or "")


def size_of(claim: Mapping[str, Any]) -> float:
    """The bytes a claim asks for."""
    return number(((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0"))


def mismatch(claim: Object, volume: Object) -> str:
    """Why the volume cannot be the claim's, in the controller's words; empty when it can."""
    if number(volume["spec"].get("capacity", {}).get("storage", "0")) < size_of(claim):
        return "requested PV is too small"
    if class_of(claim) != class_of(volume):
        return "storageClassName does not match"
    if claim["spec"].get("volumeMode", "Filesystem") != volume["spec"].get("volumeMode", "Filesystem"):
        return "incompatible volumeMode"
    if not set(claim["spec"].get("accessModes") or ()) <= set(volume["spec"].get("accessModes") or ()):
        return "incompatible accessMode"
    return ""


def refers_to(volume: Object, claim: Object) -> bool:
    """Whether the volume is reserved for this claim."""
    reference = volume["spec"].get("claimRef")
    if not reference:
        return False
    meta = claim["metadata"]
    named = reference.get("namespace") == meta["namespace"] and reference.get("name") == meta["name"]
    return named and reference.get("uid") in (None, "", meta["uid"])


def fits_node(volume: Object, node: Object | None) -> bool:
    """Whether the volume can be reached from the node; a volume without affinity can from any."""
    required = (volume["spec"].get("nodeAffinity") or {}).get("required")
    if not required:
        return True
    labels = ((node or {}).get("metadata") or {}).get("labels") or {}
    return any(
        all(_holds(entry, labels) for entry in term.get("matchExpressions") or ())
        for term in required.get("nodeSelectorTerms") or ()
    )


def _holds(entry: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    here, values = labels.get(entry["key"]), entry.get("values") or ()
    told = {"In": here in values, "NotIn": here not in values, "Exists": here is not None}
    return told.get(entry["operator"], here is None)


def _selects(claim: Object, volume: Object) -> bool:
    selector = claim["spec"].get("selector") or {}
    labels = volume["metadata"].get("labels") or {}
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(entry, labels) for entry in selector.get("matchExpressions") or ()
    )


def best(claim: Object, volumes: Iterable[Object], *, delayed: bool, node: Object | None = None) -> Object | None:
    """The volume for the claim: one reserved for it, else the smallest that is free, fits and is large enough."""
    found: list[tuple[float, str, Object]] = []
    for volume in volumes:
        if refers_to(volume, claim):
            if "deletionTimestamp" not in volume["metadata"]:
                return volume
            continue
        phase = volume.get("status", {}).get("phase")
        if volume["spec"].get("claimRef") or phase not in {"Available", None} or delayed:
            continue
        if "deletionTimestamp" in volume["metadata"] or mismatch(claim, volume) or not _selects(claim, volume):
            continue
        if node is not None and not fits_node(volume, node):
            continue
        size = number(volume["spec"]["capacity"]["storage"])
        found.append((size, volume["metadata"]["name"], volume))
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def judge(
    claim: Object,
    volumes: Sequence[Object],
    classes: Mapping[str, Object],
    users: Sequence[Object],
    node: Object | None = None,
) -> Verdict:
    """What becomes of a claim that is not bound. `users` are the pods that name it, `node` the selected one."""
    wanted = claim["spec"].get("volumeName")
    if wanted:
        volume = next((item for item in volumes if item["metadata"]["name"] == wanted), None)
        if volume is None:
            return Verdict()
        if volume["spec"].get("claimRef") and not refers_to(volume, claim):
            said = f'volume "{wanted}" already bound to a different claim.'
            return Verdict(reason="FailedBinding", message=said, warning=True)
        if not volume["spec"].get("claimRef") and (why := mismatch(claim, volume)):
            said = f'Cannot bind to requested volume "{wanted}": {why}'
            return Verdict(reason="VolumeMismatch", message=said, warning=True)
        return Verdict(volume=volume)
    name = class_of(claim)
    kind = classes.get(name)
    waits = bool(kind and kind.get("volumeBindingMode") == "WaitForFirstConsumer") and SELECTED_NODE not in notes(claim)
    volume = best(claim, volumes, delayed=waits, node=node)
    if volume is not None:
        return Verdict(volume=volume)
    if waits:
        pending = [pod for pod in users if not pod["spec"].get("nodeName")]
        if pending:
            said = f"waiting for pod {pending[0]['metadata']['name']} to be scheduled"
            return Verdict(reason="WaitForPodScheduled", message=said)
        said = "waiting for first consumer to be created before binding"
        return Verdict(reason="WaitForFirstConsumer", message=said)
    if not name:
        said = "no persistent volumes available for this claim and no storage class is set"
        return Verdict(reason="FailedBinding", message=said)
    if kind is None:
        said = f'storageclass.storage.k8s.io "{name}" not found'
        return Verdict(reason="ProvisioningFailed", message=said, warning=True)
    provisioner = str(kind["provisioner"])
    if provisioner.startswith(IN_TREE):
        said = f"no volume plugin matched name: {provisioner}"
        return Verdict(reason="ProvisioningFailed", message=said, warning=True)
    said = (
        f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the "
        "system administrator. If volume creation is delayed, please verify that the provisioner is running and "
        "correctly registered."
    )
    return Verdict(provisioner=provisioner, reason="ExternalProvisioning", message=said)


def default_class(classes: Iterable[Object]) -> str:
    """The default class; of several the youngest. Empty when there is none."""
    rows = [item for item in classes if notes(item).get(DEFAULT_CLASS) == "true"]
    rows.sort(key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]))
    return str(rows[-1]["metadata"]["name"]) if rows else ""


def claims_of(pod: Object) -> list[str]:
    """The claims a pod names, its ephemeral ones among them."""
    found = []
    for volume in pod["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            found.append(str(volume["persistentVolumeClaim"]["claimName"]))
        elif "ephemeral" in volume:
            found.append(f"{pod['metadata']['name']}-{volume['name']}")
    return found


def finished(pod: Object) -> bool:
    """Whether the pod has come to its end and holds nothing any more."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
