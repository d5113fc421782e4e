"""Aggregated APIs of the lab: what nodes and pods use, and HelmReleases seen as applications."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.cluster import Cluster, Options
from runbook_lib.lab.kubernetes.selectors import parse_labels
from runbook_lib.lab.kubernetes.status import ApiError

from .kubernetes_server import serve

Json = dict[str, Any]
APPS = "apps.cozystack.io/v1alpha1"
SDN = "sdn.cozystack.io/v1alpha1"


def definition(group: str, kind: str, plural: str, version: str, scope: str = "Namespaced") -> Json:
    """A CRD without a strict schema."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group, "scope": scope, "names": {"kind": kind, "plural": plural},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    }  # fmt: skip


def api_service(group: str, version: str, available: str = "True") -> Json:
    """An APIService that is (or is not) answered."""
    return {
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{version}.{group}"},
        "spec": {"group": group, "version": version, "service": {"namespace": "s", "name": "s"}},
        "status": {"conditions": [{"type": "Available", "status": available}]},
    }  # fmt: skip


@pytest.fixture
def cluster() -> Cluster:
    """A CozyStack in miniature: one application kind, a Ready node with a running pod, and the metrics API."""
    found = Cluster()
    schema = '{"type":"object","properties":{"replicas":{"type":"integer","minimum":1,"default":2}}}'
    found.load(
        [
            definition("helm.toolkit.fluxcd.io", "HelmRelease", "helmreleases", "v2"),
            definition("cozystack.io", "ApplicationDefinition", "applicationdefinitions", "v1alpha1", "Cluster"),
            {
                "apiVersion": "cozystack.io/v1alpha1", "kind": "ApplicationDefinition",
                "metadata": {"name": "postgres"},
                "spec": {
                    "application": {
                        "kind": "Postgres", "singular": "postgres", "plural": "postgreses", "openAPISchema": schema,
                    },
                    "release": {"prefix": "postgres-"},
                },
            },
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant-root"}},
            api_service("apps.cozystack.io", "v1alpha1"), api_service("core.cozystack.io", "v1alpha1"),
            api_service("metrics.k8s.io", "v1beta1"),
            {
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}], "capacity": {"cpu": "8", "memory": "32Gi"},
                },
            },
            {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "tenant-root"},
                "spec": {
                    "nodeName": "n1",
                    "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}],
                },
                "status": {"phase": "Running"},
            },
        ]
    )  # fmt: skip
    return found


def test_an_application_is_a_release(cluster: Cluster) -> None:
    """Creating an application stores a HelmRelease with its values; deleting it takes the release away."""
    kind = cluster.registry.by_gvk[(APPS, "Postgres")]
    made = cluster.create(kind, "tenant-root", {"metadata": {"name": "orders"}, "spec": {}}, Options())
    assert made["spec"] == {"replicas": 2} and made["metadata"]["name"] == "orders"
    release = cluster.find("helm.toolkit.fluxcd.io/v2", "HelmRelease", "tenant-root", "postgres-orders")
    assert release and release["metadata"]["labels"]["apps.cozystack.io/application.kind"] == "Postgres"
    form = "application/merge-patch+json"
    changed, _ = cluster.patch(kind, "tenant-root", "orders", form, {"spec": {"replicas": 3}}, Options())
    assert changed["spec"]["replicas"] == 3
    cluster.delete(kind, "tenant-root", "orders", {}, Options())
    assert cluster.find("helm.toolkit.fluxcd.io/v2", "HelmRelease", "tenant-root", "postgres-orders") is None


def test_an_application_is_held_to_its_schema(cluster: Cluster) -> None:
    """Values the ApplicationDefinition forbids are refused with 422."""
    kind = cluster.registry.by_gvk[(APPS, "Postgres")]
    with pytest.raises(ApiError, match="should be greater than or equal to 1") as refused:
        cluster.create(kind, "tenant-root", {"metadata": {"name": "x"}, "spec": {"replicas": 0}}, Options())
    assert refused.value.code == 422


def test_only_tenants_namespaces_are_tenants(cluster: Cluster) -> None:
    """TenantNamespace shows the namespaces of tenants and no others."""
    kind = cluster.registry.by_gvk[("core.cozystack.io/v1alpha1", "TenantNamespace")]
    page = cluster.page(kind, "", parse_labels(""), [])
    assert [item.obj["metadata"]["name"] for item in page.items] == ["tenant-root"]
    with pytest.raises(ApiError, match='"default" not found'):
        cluster.get(kind, "", "default")


def test_an_area_ends_with_its_api_service(cluster: Cluster) -> None:
    """Without its APIService an aggregated kind is not served."""
    services = cluster.registry.by_gvk[("apiregistration.k8s.io/v1", "APIService")]
    cluster.delete(services, "", "v1beta1.metrics.k8s.io", {}, Options())
    assert ("metrics.k8s.io/v1beta1", "NodeMetrics") not in cluster.registry.by_gvk


def test_kubectl_top_shows_what_is_used(cluster: Cluster, tmp_path: Path) -> None:
    """`kubectl top` reads the metrics API of the lab."""
    beside = Path(sys.executable).parent / "kubectl"
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    with serve(tmp_path, cluster) as server:
        for words, said in ((["nodes"], "n1"), (["pods", "-n", "tenant-root"], "Mi")):
            done = subprocess.run(
                [kubectl, "--kubeconfig", str(server.kubeconfig), "top", *words],
                capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}, timeout=30, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert said in done.stdout


@pytest.fixture
def firewall() -> Cluster:
    """A cluster that serves SecurityGroups, with a policy of the platform."""
    found = Cluster()
    platform = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "isolation"}}
    found.load(
        [strict.definition("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies", ["v2"]), platform,
         api_service("sdn.cozystack.io", "v1alpha1")]
    )  # fmt: skip
    return found


def group(name: str, **spec: Any) -> Json:
    """A SecurityGroup."""
    return {"apiVersion": SDN, "kind": "SecurityGroup", "metadata": {"name": name}, "spec": spec}


def test_a_security_group_is_a_policy_seen_by_its_tenant(firewall: Cluster) -> None:
    """Applications and groups become selectors behind it and come back as they were given."""
    kind = firewall.registry.by_gvk[(SDN, "SecurityGroup")]
    rule = {
        "fromApp": [{"kind": "VMInstance", "name": "web"}], "fromSG": ["admins"], "fromCIDR": ["10.0.0.0/8"],
        "toPorts": [{"ports": [{"port": "5432", "protocol": "TCP"}]}],
    }  # fmt: skip
    database = {"kind": "Postgres", "name": "db"}
    made = firewall.create(kind, "default", group("db", attachments=[database], ingress=[rule]), Options())
    assert made["spec"]["attachments"] == [{"apiGroup": "apps.cozystack.io"} | database]
    web = {"apiGroup": "apps.cozystack.io", "kind": "VMInstance", "name": "web"}
    assert made["spec"]["ingress"] == [rule | {"fromApp": [web]}]
    assert "labels" not in made["metadata"] and "annotations" not in made["metadata"]
    stored = firewall.store.get("cilium.io/ciliumnetworkpolicies", ("default", "db"))
    assert stored is not None
    assert stored.obj["spec"]["endpointSelector"] == {"matchLabels": {"securitygroup.sdn.cozystack.io/db": ""}}
    assert stored.obj["spec"]["ingress"][0]["fromEndpoints"][1] == {
        "matchLabels": {"securitygroup.sdn.cozystack.io/admins": ""}
    }


def test_a_security_group_is_changed_and_deleted_alone(firewall: Cluster) -> None:
    """The tenant's verbs reach marked policies only, and cannot take the marker or the finalizer away."""
    kind = firewall.registry.by_gvk[(SDN, "SecurityGroup")]
    firewall.create(kind, "default", group("db", egress=[{"toCIDR": ["10.0.0.0/8"]}]), Options())
    body = {"metadata": {"labels": {"sdn.cozystack.io/securitygroup": "false"}}, "spec": {"egress": []}}
    changed, _ = firewall.patch(kind, "default", "db", "application/merge-patch+json", body, Options())
    assert changed["spec"] == {"egress": []}
    assert [row.obj["metadata"]["name"] for row in firewall.page(kind, "", [], []).items] == ["db"]
    with pytest.raises(ApiError, match='"isolation" not found'):
        firewall.delete(kind, "default", "isolation", {}, Options())
    firewall.delete(kind, "default", "db", {}, Options())
    assert firewall.store.get("cilium.io/ciliumnetworkpolicies", ("default", "db")) is None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"attachments": [{"kind": "Postgres"}]}, "spec.attachments[0].name: Required value"),
        ({"ingress": [{"fromCIDR": ["10.0.0/8"]}]}, "must be a valid CIDR or IP address"),
        ({"ingress": [{"fromSG": ["world"]}]}, "must not name a reserved Cilium entity"),
        ({"egress": [{"toPorts": [{"ports": [{"port": "70000"}]}]}]}, "port number must be between 1 and 65535"),
        ({"egress": [{"toPorts": [{"ports": [{"port": "1", "protocol": "X"}]}]}]}, "Unsupported value"),
    ],
)
def test_a_group_that_would_enforce_nothing_is_refused(firewall: Cluster, spec: Json, said: str) -> None:
    """422, since Cilium would drop the rule without a word."""
    with pytest.raises(ApiError) as refused:
        firewall.create(firewall.registry.by_gvk[(SDN, "SecurityGroup")], "default", group("a", **spec), Options())
    assert refused.value.code == 422
    assert said in refused.value.message
