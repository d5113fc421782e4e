"""Kubernetes and CozyStack: facts as rows, and verbs. This module is the one door to the files beside it.

An API group the cluster does not serve gives no rows; one we may not read raises NotAllowed, which says what is
missing. Verbs (`Kubernetes.apply`, `delete`, `exec`) send nothing outside an approved plan: see `wire.permit`.
"""

from __future__ import annotations

import re
from collections import defaultdict

from runbook_lib.facts import KubeVersion, Permissions, StorageClass
from runbook_lib.kubernetes_network import network_ranges, probe_manifest, probe_outcome, reach, reach_endpoints
from runbook_lib.kubernetes_nodes import nodes, pods, quantity, requests_of, workloads
from runbook_lib.kubernetes_platform import cozystack, crds, monitoring, namespace, packages, providers, releases
from runbook_lib.kubernetes_reading import Reader
from runbook_lib.kubernetes_session import Kubernetes, connect, skips_verification
from runbook_lib.kubernetes_storage import (
    attachments,
    capacities,
    claims,
    class_parameters,
    csi_drivers,
    driver_parts,
    persistent_volumes,
    pods_waiting,
    registered,
    snapshots_served,
)
from runbook_lib.kubernetes_webhooks import api_services, webhooks

__all__ = [
    "Kubernetes",
    "Reader",
    "api_services",
    "attachments",
    "capacities",
    "claims",
    "class_parameters",
    "connect",
    "cozystack",
    "crds",
    "csi_drivers",
    "driver_parts",
    "monitoring",
    "namespace",
    "network_ranges",
    "nodes",
    "packages",
    "permissions",
    "persistent_volumes",
    "pods",
    "pods_waiting",
    "probe_manifest",
    "probe_outcome",
    "providers",
    "quantity",
    "reach",
    "reach_endpoints",
    "registered",
    "releases",
    "requests_of",
    "skips_verification",
    "snapshots_served",
    "storage_classes",
    "version",
    "webhooks",
    "workloads",
]

DEFAULT_CLASS = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")


def version(k8s: Reader) -> KubeVersion:
    """The release the API server runs."""
    found = k8s.get("/version")
    numbers = [int(re.match(r"\d+", found[key])[0]) for key in ("major", "minor")]  # type: ignore[index]  # "33+"
    return KubeVersion(found["gitVersion"], (numbers[0], numbers[1]))


def storage_classes(k8s: Reader) -> list[StorageClass]:
    """Every StorageClass by name."""
    rows = []
    for entry in k8s.list("/apis/storage.k8s.io/v1/storageclasses"):
        annotations = entry["metadata"].get("annotations") or {}
        rows.append(
            StorageClass(
                name=entry["metadata"]["name"],
                provisioner=entry["provisioner"],
                default=any(annotations.get(key) == "true" for key in DEFAULT_CLASS),
                binding_mode=entry.get("volumeBindingMode") or "Immediate",
                expandable=bool(entry.get("allowVolumeExpansion")),
                reclaim_policy=entry.get("reclaimPolicy") or "Delete",
            )
        )
    return sorted(rows, key=lambda row: row.name)


def permissions(k8s: Kubernetes, namespace: str = "default") -> Permissions:
    """What we may do in a namespace, as the API server sums it up: "group/resource" → verb → True.

    Rules for single names are left out: they do not let us list.
    """
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    found = k8s.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body=review)
    paths: dict[str, dict[str, bool]] = defaultdict(dict)
    for rule in (found.get("status") or {}).get("resourceRules") or []:
        if rule.get("resourceNames"):
            continue
        for group in rule.get("apiGroups") or []:
            for resource in rule.get("resources") or []:
                paths[f"{group}/{resource}" if group else resource] |= dict.fromkeys(rule["verbs"], True)
    return Permissions(k8s.identity, {key: dict(sorted(paths[key].items())) for key in sorted(paths)})
