"""Every flavour of CozyStack at every Kubernetes version starts, is settled, works, and has the real names.

A sample of the versions runs everywhere, all of them with RUNBOOK_COMPLETE.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes.controllers.client import KubeClient

sys.path.insert(0, str(Path(__file__).parent))
from living import NAMESPACE, living, until  # lies beside this file

Object = dict[str, Any]
COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
VERSIONS = tuple(f"v1.{minor}.{patch}" for minor, patch in zip(
    range(26, 37), (15, 16, 15, 15, 14, 13, 9, 5, 3, 1, 0), strict=True))  # fmt: skip
FLAVOURS = {
    "cozystack-1.6": "healthy", "cozystack-0.41": "cozystack-v0", "capi-v1beta2": "capi-v1beta2",
    "half migrated": "half-migrated",
}  # fmt: skip
SAMPLED = (("cozystack-1.6", 10), ("cozystack-0.41", 0), ("capi-v1beta2", 7), ("half migrated", 4))
CASES = [(flavour, version) for flavour in FLAVOURS for version in VERSIONS] if COMPLETE else [
    (flavour, VERSIONS[number]) for flavour, number in SAMPLED
]  # fmt: skip

EVERYWHERE = {
    "cozy-cluster-api": {"capi-operator-cluster-api-operator", "capi-controller-manager",
                         "capi-kubeadm-bootstrap-controller-manager", "capi-kamaji-controller-manager",
                         "capk-controller-manager"},
    "cozy-cilium": {"cilium", "cilium-operator"},
    "cozy-kubeovn": {"kube-ovn-controller", "kube-ovn-cni", "ovs-ovn", "ovn-central", "kube-ovn-monitor",
                     "kube-ovn-pinger"},
    "cozy-linstor": {"linstor-controller"}, "cozy-snapshot-controller": {"snapshot-controller"},
    "cozy-kamaji": {"kamaji"}, "cozy-kubevirt": {"virt-operator"}, "cozy-victoria-metrics-operator": set(),
    "cozy-metallb": {"metallb-controller", "metallb-speaker"}, "cozy-cert-manager": {"cert-manager"},
    "tenant-root": {"root-ingress-controller", "grafana-deployment"},
}  # fmt: skip
INSTALLERS = {"cozystack-0.41": {"cozystack"}}
"""What installs the platform; cozystack-operator where nothing else is named."""


def section(flavour: str, version: str) -> Object:
    """The `kubernetes:` of the flavour's scenario, at that version."""
    return {**scenario.load(FLAVOURS[flavour]).kubernetes, "version": version}


async def listed(client: KubeClient, path: str) -> list[Object]:
    """The items of a list."""
    return list((await client.list(path))["items"])


async def names(client: KubeClient) -> dict[str, set[str]]:
    """The workloads there are, by namespace."""
    found: dict[str, set[str]] = {}
    for plural in ("deployments", "daemonsets", "statefulsets"):
        for item in await listed(client, f"/apis/apps/v1/{plural}"):
            found.setdefault(item["metadata"]["namespace"], set()).add(item["metadata"]["name"])
    return found


def true(item: Object, kind: str = "Ready") -> bool:
    """Whether the object's condition holds."""
    rows = (item.get("status") or {}).get("conditions") or ()
    return any(row["type"] == kind and row["status"] == "True" for row in rows)


@pytest.mark.parametrize(("flavour", "version"), CASES, ids=lambda value: str(value).replace(" ", "-"))
def test_flavour_starts_settled_and_works(flavour: str, version: str) -> None:
    """The version is the chosen one everywhere, nothing waits, and a new workload runs."""

    async def story() -> None:
        async with living(section(flavour, version)) as (client, _):
            assert (await client.get("/version"))["gitVersion"] == version
            nodes = await listed(client, "/api/v1/nodes")
            assert all(true(node) for node in nodes)
            assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {version}
            releases = await listed(client, "/apis/helm.toolkit.fluxcd.io/v2/helmreleases")
            assert [item["metadata"]["name"] for item in releases if not true(item)] == []
            pods = await listed(client, "/api/v1/pods")
            assert {pod["status"]["phase"] for pod in pods} <= {"Running", "Succeeded"}
            labels, container = {"app": "probe"}, {"name": "c", "image": "nginx:1.29"}
            await client.create(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", {
                "metadata": {"name": "probe"}, "spec": {
                    "replicas": 2, "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}})  # fmt: skip
            path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/probe"
            await until(client, path, lambda item: item.get("status", {}).get("readyReplicas") == 2)

    asyncio.run(story())


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda value: str(value).replace(" ", "-"))
def test_flavour_has_the_real_names(flavour: str) -> None:
    """Workloads, kinds and the configuration that tells the flavours apart."""
    version = "v1.34.3"

    async def story() -> None:
        async with living(section(flavour, version)) as (client, _):
            found = await names(client)
            for space, wanted in EVERYWHERE.items():
                assert wanted <= found.get(space, set()), space
            assert INSTALLERS.get(flavour, {"cozystack-operator"}) <= found["cozy-system"]
            kinds = await listed(client, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
            served = {
                item["metadata"]["name"]: {row["name"] for row in item["spec"]["versions"] if row["served"]}
                for item in kinds
            }
            assert ("packages.cozystack.io" in served) == (flavour != "cozystack-0.41")
            raised = flavour == "capi-v1beta2"
            assert ("v1beta2" in served["machines.cluster.x-k8s.io"]) == raised
            plane = "v1alpha2" if raised else "v1alpha1"
            assert served["kamajicontrolplanes.controlplane.cluster.x-k8s.io"] == {plane}
            bundle = await client.find("/api/v1/namespaces/cozy-system/configmaps/cozystack")
            assert (bundle is not None) == (flavour in {"cozystack-0.41", "half migrated"})

    asyncio.run(story())
