"""Where the versions of the Cluster API differ: references, contracts, timeouts, ownership. Pure."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..client import Key

Object = dict[str, Any]

GROUP = "cluster.x-k8s.io"
CLUSTER_NAME = f"{GROUP}/cluster-name"
DEPLOYMENT_NAME = f"{GROUP}/deployment-name"
SET_NAME = f"{GROUP}/set-name"
CONTROL_PLANE = f"{GROUP}/control-plane"
TEMPLATE_HASH = "machine-template-hash"
PAUSED = f"{GROUP}/paused"
REVISION = "machinedeployment.clusters.x-k8s.io/revision"
DESIRED = "machinedeployment.clusters.x-k8s.io/desired-replicas"
MAXIMUM = "machinedeployment.clusters.x-k8s.io/max-replicas"
CLONED_NAME = f"{GROUP}/cloned-from-name"
CLONED_KIND = f"{GROUP}/cloned-from-groupkind"
DELETE_MACHINE = f"{GROUP}/delete-machine"
SKIP_PREFLIGHT = f"machineset.{GROUP}/skip-preflight-checks"
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class ContractUnknown(Exception):
    """No version of the referenced kind fits a contract that this manager understands."""


@dataclass(frozen=True)
class Target:
    """What a reference points at: its API version as the contract says, its plural, and that contract."""

    api_version: str
    kind: str
    plural: str
    contract: str

    @property
    def path(self) -> str:
        """The list path over all namespaces."""
        return f"/apis/{self.api_version}/{self.plural}"


def group_of(reference: Mapping[str, Any]) -> str:
    """The API group a reference names, whichever shape it has."""
    return str(reference.get("apiGroup") or reference.get("apiVersion", "").rpartition("/")[0])


def resolve(reference: Mapping[str, Any], definitions: Iterable[Object], contracts: Iterable[str]) -> Target:
    """What the reference points at, by the contract labels of its definition. Raises ContractUnknown."""
    group, kind = group_of(reference), reference["kind"]
    for definition in definitions:
        spec = definition["spec"]
        if spec["group"] != group or spec["names"]["kind"] != kind:
            continue
        labels = definition["metadata"].get("labels") or {}
        for contract in contracts:
            versions = [part for part in labels.get(f"{GROUP}/{contract}", "").split("_") if part]
            if versions:
                newest = max(versions, key=_age)
                return Target(f"{group}/{newest}", kind, spec["names"]["plural"], contract)
        name, wanted = definition["metadata"]["name"], ", ".join(contracts)
        raise ContractUnknown(
            f'cannot find any versions matching contract versions "{wanted}" for CRD {name} as contract version '
            "label(s) are either missing or empty "
            "(see https://cluster-api.sigs.k8s.io/developer/providers/contracts.html#api-version-labels)"
        )
    plural = kind.lower() + "s"
    raise ContractUnknown(
        f"failed to get CustomResourceDefinition {plural}.{group}: "
        f'customresourcedefinitions.apiextensions.k8s.io "{plural}.{group}" not found'
    )


def _age(version: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not found:
        return 0, 0, 0
    return int(found[1]), {"alpha": 0, "beta": 1}.get(found[2] or "", 2), int(found[3] or 0)


def provisioned(item: Mapping[str, Any], contract: str) -> bool:
    """Whether an infrastructure object says that it is there."""
    status = item.get("status") or {}
    if contract == "v1beta1":
        return bool(status.get("ready"))
    return bool((status.get("initialization") or {}).get("provisioned"))


def data_secret_created(item: Mapping[str, Any], contract: str) -> bool:
    """Whether a bootstrap config says that its Secret is there."""
    status = item.get("status") or {}
    if contract == "v1beta1":
        return bool(status.get("ready"))
    return bool((status.get("initialization") or {}).get("dataSecretCreated"))


def control_plane_initialized(item: Mapping[str, Any], contract: str) -> bool:
    """Whether a control plane object says that its API server can be asked."""
    status = item.get("status") or {}
    if contract == "v1beta1":
        return bool(status.get("initialized"))
    return bool((status.get("initialization") or {}).get("controlPlaneInitialized"))


def seconds(text: Any) -> float | None:
    """A Go duration ("10m0s") or a number as seconds; None for nothing."""
    if text in (None, ""):
        return None
    if isinstance(text, int | float):
        return float(text)
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", str(text))
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit] for number, unit in parts)


def go_duration(value: float) -> str:
    """Seconds as Go writes them: "10m0s"."""
    whole = int(value)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


def timeout(spec: Mapping[str, Any], name: str) -> float | None:
    """A Machine's `nodeDrain`, `nodeVolumeDetach` or `nodeDeletion` timeout in seconds, in either version."""
    if "deletion" in spec:
        return seconds(spec["deletion"].get(f"{name}TimeoutSeconds"))
    return seconds(spec.get(f"{name}Timeout"))


def is_paused(item: Mapping[str, Any], cluster: Mapping[str, Any] | None) -> bool:
    """Whether the object or its cluster is paused."""
    return bool((cluster or {}).get("spec", {}).get("paused")) or PAUSED in (item["metadata"].get("annotations") or {})


def owner(item: Mapping[str, Any], *, controller: bool = True) -> Object:
    """A reference to an owner of Cluster API."""
    body: Object = {
        "apiVersion": item["apiVersion"],
        "kind": item["kind"],
        "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"],
    }
    return body | ({"controller": True, "blockOwnerDeletion": True} if controller else {})


def owned(item: Mapping[str, Any], reference: Object, *, without: Iterable[str] = ()) -> list[Object]:
    """The object's owners with this one among them, and without those of the kinds in `without`."""
    rest = [
        entry
        for entry in item["metadata"].get("ownerReferences") or ()
        if entry["kind"] not in without and entry["uid"] != reference["uid"]
    ]
    known = next(
        (entry for entry in item["metadata"].get("ownerReferences") or () if entry["uid"] == reference["uid"]), None
    )
    if (
        known is not None
        and {**known, **reference} == known
        and len(rest) + 1 == len(item["metadata"].get("ownerReferences") or ())
    ):
        return list(item["metadata"]["ownerReferences"])
    return [*rest, reference]


def cluster_key(item: Mapping[str, Any]) -> Key:
    """The key of the Cluster an object belongs to; the name is empty when it says none."""
    name = item.get("spec", {}).get("clusterName") or (item["metadata"].get("labels") or {}).get(CLUSTER_NAME, "")
    return item["metadata"].get("namespace", ""), str(name)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy a LabelSelector; an empty one matches nothing here, as Cluster API has it."""
    wanted, rules = selector.get("matchLabels") or {}, selector.get("matchExpressions") or ()
    if not wanted and not rules:
        return False
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for rule in rules:
        key, values = rule["key"], rule.get("values") or ()
        has = key in labels
        allowed = {
            "In": has and labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": has,
            "DoesNotExist": not has,
        }
        if not allowed.get(rule["operator"], False):
            return False
    return True


def clone(
    template: Object, target: Target, name: str, namespace: str, cluster: str, labels: Mapping[str, str]
) -> Object:
    """A new object as a template wants it, named by Cluster API, with the annotations that tell where it is from."""
    inner = template["spec"]["template"]
    metadata = inner.get("metadata") or {}
    group = target.api_version.partition("/")[0]
    return {
        "apiVersion": target.api_version,
        "kind": target.kind.removesuffix("Template"),
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**(metadata.get("labels") or {}), **labels, CLUSTER_NAME: cluster},
            "annotations": {
                **(metadata.get("annotations") or {}),
                CLONED_NAME: template["metadata"]["name"],
                CLONED_KIND: f"{target.kind}.{group}",
            },
        },
        "spec": json.loads(json.dumps(inner.get("spec") or {})),
    }


def reference_to(item: Object, api_version: str) -> Object:
    """A reference to an object in the shape of that version of the Cluster API."""
    name = item["metadata"]["name"]
    if api_version.endswith("/v1beta2"):
        return {"apiGroup": item["apiVersion"].partition("/")[0], "kind": item["kind"], "name": name}
    namespace = item["metadata"]["namespace"]
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], "name": name, "namespace": namespace}


def suffix(seed: object, *words: object, length: int = 5, taken: Iterable[str] = (), head: str = "") -> str:
    """Letters as generateName would give, the same for the same words, such that head-letters is not taken."""
    dice = random.Random(f"{seed}/{'/'.join(map(str, words))}")
    used = set(taken)
    while True:
        letters = "".join(dice.choice(ALPHABET) for _ in range(length))
        if head + letters not in used:
            return letters


def template_hash(template: Mapping[str, Any]) -> str:
    """A number that stands for a machine template, as the label of its machine set carries it."""
    text = json.dumps(rolled(template), sort_keys=True)
    return str(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))


_IN_PLACE = ("nodeDrainTimeout", "nodeVolumeDetachTimeout", "nodeDeletionTimeout", "deletion", "minReadySeconds",
             "readinessGates", "taints")  # fmt: skip


def rolled(template: Mapping[str, Any]) -> Object:
    """What of a machine template makes new machines when it changes; labels and timeouts are changed in place."""
    spec = {key: value for key, value in (template.get("spec") or {}).items() if key not in _IN_PLACE}
    for path in (("infrastructureRef",), ("bootstrap", "configRef")):
        holder = spec
        for part in path[:-1]:
            holder[part] = dict(holder.get(part) or {})
            holder = holder[part]
        reference = holder.get(path[-1])
        if reference:
            holder[path[-1]] = {
                "group": group_of(reference), "kind": reference.get("kind"), "name": reference.get("name"),
            }  # fmt: skip
    return spec


def moment(text: str | None) -> float:
    """A time of the API as seconds since the epoch; 0 for none."""
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp() if text else 0.0
