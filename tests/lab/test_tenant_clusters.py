"""Tenant clusters: a control plane of Kamaji's, machines in Proxmox, and what makes their nodes Ready."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization

from benchmarks.machines import AGENT, NAME, RELEASES, SPACE, Site, Tenant, condition
from runbook_lib.lab import control
from runbook_lib.lab.kubernetes.controllers import network_plugins

Object = dict[str, Any]
NETWORK_LESS = network_plugins.MESSAGE
DAEMONS = "/apis/apps/v1/namespaces/kube-system/daemonsets"

PLANES = f"/apis/kamaji.clastix.io/v1alpha1/namespaces/{SPACE}/tenantcontrolplanes/{NAME}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab where the operator has installed CAPMOX and the IPAM provider."""
    folder = tmp_path_factory.mktemp("tenants") / "lab"
    control.up(folder, scenario="healthy", scale=600)
    try:
        site = Site(folder)
        site.install()
        yield site
    finally:
        control.down(folder)


@pytest.fixture
def site(lab: Site) -> Iterator[Site]:
    """The same without clusters, before and after."""
    yield lab
    if lab.find(lab.core("clusters", NAME)):
        lab.remove()
    # its control plane and kubeconfig are collected after it, and the next cluster has the same name
    held = f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-kubeconfig"
    lab.until("the end of its control plane", lambda: not lab.find(PLANES) and not lab.find(held))


def joined(site: Site) -> Object:
    """The node of the tenant's only machine, once it is one."""
    tenant = reached(site)
    found = site.until("a node", lambda: [row for row in tenant.nodes() if condition(row, "Ready")], said=site.told)
    return dict(found[0])


def reached(site: Site) -> Tenant:
    """The tenant once it can be asked."""
    return site.until("its answer", lambda: answering(site), said=site.told)


def answering(site: Site) -> Tenant | None:
    """The tenant by its newest kubeconfig: one of a former cluster of the name may be about to go."""
    if not site.find(f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-kubeconfig"):
        return None
    tenant = site.tenant()
    try:
        tenant.ask("GET", "/version")
    except requests.ConnectionError:
        return None
    return tenant


def test_node_waits_for_its_network(site: Site) -> None:
    """Without a network plugin a node is not Ready, nor is its Machine; an agent put there by hand makes both so."""
    site.cluster(1, by_hand=False)
    site.ask("DELETE", f"{RELEASES}/{SPACE}/helmreleases/{NAME}-cilium")
    node, tenant = joined(site), site.tenant()
    assert condition(node, "Ready")["message"] == NETWORK_LESS
    site.until("taints", lambda: taints(tenant) >= {("node.kubernetes.io/not-ready", "NoExecute")}, said=site.told)
    tenant.ask("POST", "/api/v1/namespaces/default/pods", pod("waits", tolerations=[{"operator": "Exists"}]))
    site.until("its event", lambda: "NetworkNotReady" in {row["reason"] for row in events(tenant)}, said=site.told)
    assert condition(site.machines()[0], "NodeHealthy").get("status") != "True"
    tenant.ask("POST", DAEMONS, AGENT)
    site.running(1)
    said = condition(tenant.nodes()[0], "NetworkUnavailable")
    assert (said["status"], said["reason"]) == ("False", "CiliumIsUp")
    site.until("the pod", lambda: tenant.ask("GET", "/api/v1/namespaces/default/pods/waits")["status"]["phase"] ==
               "Running")  # fmt: skip
    site.until("no taints", lambda: not taints(tenant))


def taints(tenant: Any) -> set[tuple[str, str]]:
    """Keys and effects of the taints of the tenant's only node."""
    return {(row["key"], row["effect"]) for row in tenant.nodes()[0]["spec"].get("taints") or ()}


def events(tenant: Any) -> list[Object]:
    """What happened in the tenant."""
    return list(tenant.ask("GET", "/api/v1/events")["items"])


def pod(name: str, **spec: Any) -> Object:
    """A pod that serves."""
    container = {"name": "c", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": ["pause"]}
    return {"metadata": {"name": name}, "spec": {"containers": [container], **spec}}


def test_flux_brings_network_and_names_into_the_tenant(site: Site) -> None:
    """Releases beside the Cluster install into it by its kubeconfig, and take away what they installed."""
    site.cluster(1)
    site.release("coredns", "kube-system", dependsOn=[{"name": f"{NAME}-cilium"}])
    site.running(1)
    tenant = site.tenant()
    path = f"{RELEASES}/{SPACE}/helmreleases/{NAME}-coredns"
    item = site.until("the release", lambda: ready(site.find(path)), said=lambda: site.find(path))
    assert item["status"]["history"][0]["chartName"] == "cozy-coredns"
    service = tenant.ask("GET", "/api/v1/namespaces/kube-system/services/kube-dns")
    assert service["spec"]["clusterIP"] == "10.95.0.10"
    secrets = tenant.ask("GET", "/api/v1/namespaces/kube-system/secrets?labelSelector=owner%3Dhelm")["items"]
    assert [row["metadata"]["name"] for row in secrets] == ["sh.helm.release.v1.coredns.v1"]
    kinds = tenant.ask("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    assert "ciliumnetworkpolicies.cilium.io" in {row["metadata"]["name"] for row in kinds}
    site.ask("DELETE", path)
    site.until("its end", lambda: not site.find(path), said=lambda: site.find(path))
    assert not tenant.ask("GET", "/apis/apps/v1/namespaces/kube-system/deployments")["items"]


def ready(item: Object | None) -> Object | None:
    """The object if it is Ready."""
    return item if item and condition(item, "Ready").get("status") == "True" else None


def test_release_says_that_its_cluster_is_unknown(site: Site) -> None:
    """A release whose kubeconfig is in no Secret waits for it and says so; it can be deleted all the same."""
    held = f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-admin-kubeconfig"
    site.until("the end of one before", lambda: not site.find(held))
    site.release("coredns", "kube-system")
    path = f"{RELEASES}/{SPACE}/helmreleases/{NAME}-coredns"
    row = site.until("its word", lambda: condition(site.find(path) or {}, "Ready"))
    assert row["reason"] == "RESTClientError"
    assert row["message"] == (
        f"could not get KubeConfig secret '{SPACE}/{NAME}-admin-kubeconfig': "
        f'Secret "{NAME}-admin-kubeconfig" not found'
    )
    site.ask("DELETE", path)
    site.until("its end", lambda: not site.find(path))


# -- Kamaji ---------------------------------------------------------------------------------------------------------


def test_control_plane_is_a_deployment_with_its_secrets(site: Site) -> None:
    """Names, labels, owners and status are Kamaji's; the service accounts' keys are a pair."""
    site.cluster(0)
    item = site.until("a Ready control plane", lambda: plane(site, "Ready"), said=lambda: site.find(PLANES))
    resources, base = item["status"]["kubernetesResources"], f"/apis/apps/v1/namespaces/{SPACE}/deployments/{NAME}"
    workload, service = site.ask("GET", base), site.ask("GET", f"/api/v1/namespaces/{SPACE}/services/{NAME}")
    for made in (workload, service):
        assert made["metadata"]["ownerReferences"][0]["kind"] == "TenantControlPlane"
        assert made["metadata"]["labels"]["kamaji.clastix.io/name"] == NAME
    names = [row["name"] for row in workload["spec"]["template"]["spec"]["containers"]]
    assert names == ["kube-apiserver", "kube-scheduler", "kube-controller-manager"]
    assert (service["spec"]["type"], service["spec"]["ports"][0]["name"]) == ("LoadBalancer", "kube-apiserver")
    assert (resources["deployment"]["readyReplicas"], resources["service"]["port"]) == (2, 6443)
    for row in (*item["status"]["certificates"].values(), *item["status"]["kubeconfig"].values()):
        assert site.find(f"/api/v1/namespaces/{SPACE}/secrets/{row['secretName']}"), row
    pair = site.ask("GET", f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-sa-certificate")["data"]
    private = serialization.load_pem_private_key(base64.b64decode(pair["sa.key"]), None)
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert private.public_key().public_bytes(*form) == base64.b64decode(pair["sa.pub"])


def plane(site: Site, state: str) -> Object | None:
    """The control plane once its state is this one."""
    item = site.find(PLANES) or {}
    found = ((item.get("status") or {}).get("kubernetesResources") or {}).get("version") or {}
    return item if found.get("status") == state else None


def test_control_plane_without_pods_does_not_answer(site: Site) -> None:
    """It is NotReady, its port is closed; with its pods it comes back as it was."""
    site.cluster(0)
    site.until("a Ready control plane", lambda: plane(site, "Ready"))
    tenant = reached(site)
    tenant.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "stays"}})
    nodes = [row["metadata"]["name"] for row in site.items("/api/v1/nodes")]
    try:
        hold(site, nodes, "true")
        site.ask("DELETE", f"/api/v1/namespaces/{SPACE}/pods?labelSelector=kamaji.clastix.io/name={NAME}")
        site.until("NotReady", lambda: plane(site, "NotReady"), said=lambda: site.find(PLANES))
        with pytest.raises(requests.ConnectionError):
            tenant.ask("GET", "/version")
    finally:
        hold(site, nodes, None)
    site.until("Ready again", lambda: plane(site, "Ready"), said=lambda: site.find(PLANES))
    assert tenant.ask("GET", "/api/v1/namespaces/stays")["metadata"]["name"] == "stays"


def hold(site: Site, nodes: list[str], value: str | None) -> None:
    """Nothing; no pod is scheduled to the nodes, or any again."""
    for name in nodes:
        site.ask("PATCH", f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True if value else None}})


# -- Talos ----------------------------------------------------------------------------------------------------------

TALOS = {
    "generateType": "worker", "talosVersion": "v1.13", "hostname": {"source": "MachineName"},
    "strategicPatches": ["machine: {nodeLabels: {role: edge}}"],
}  # fmt: skip


def test_talos_machine_joins_by_its_config(site: Site) -> None:
    """The provider's machine config makes a VM a node of the tenant, with Talos' name, kubelet and labels."""
    site.cluster(1, talos=TALOS, checks={"skipCloudInitStatus": True, "skipQemuGuestAgent": True})
    node = joined(site)
    assert node["status"]["nodeInfo"]["osImage"].startswith("Talos (v1.")
    assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.34.3"
    assert node["metadata"]["labels"]["role"] == "edge"
    site.until("Ready", lambda: condition(site.tenant().nodes()[0], "Ready")["status"] == "True", said=site.told)
    # What a cloud controller manager would tell: Talos' kubelet is not given it.
    provider = site.machines()[0]["spec"]["providerID"]
    tenant = site.tenant()
    tenant.ask("PATCH", f"/api/v1/nodes/{node['metadata']['name']}", {"spec": {"providerID": provider}})
    assert site.running(1)[0]["status"]["nodeRef"]["name"] == node["metadata"]["name"]
