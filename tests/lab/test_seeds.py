"""The seeded cluster against the facts about CozyStack, and against the runbook's own reading of it."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from runbook_lib import kubernetes, versions
from runbook_lib.checks import kubernetes as judge
from runbook_lib.checks import network as judge_network
from runbook_lib.facts import Interface, PveVersion
from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.seeds.edits import UnknownEdit
from runbook_lib.model import Finding, Status

sys.path.insert(0, str(Path(__file__).parent))
from objects import Objects  # lies beside this file

Object = dict[str, Any]

WITH_CLUSTER = [name for name in scenario.names() if scenario.load(name).kubernetes]
NEEDS_CONNECTIONS = {"network.pods_reach_proxmox", "network.runner_reaches"}


@pytest.fixture(scope="module")
def section() -> Object:
    """The healthy cluster's section."""
    return scenario.load("healthy").kubernetes


@pytest.fixture(scope="module")
def healthy(section: Object) -> list[Object]:
    """Every object of the healthy cluster."""
    return seeds.cozystack(section)


def named(objects: list[Object], kind: str, namespace: str = "") -> dict[str, Object]:
    """Objects of a kind by name."""
    return {
        item["metadata"]["name"]: item
        for item in objects
        if item["kind"] == kind and item["metadata"].get("namespace", "") == namespace
    }


def findings(section: Object, *, lan: str = "10.0.0.1/24") -> list[Finding]:
    """What the Kubernetes checks of the assessment say of the seeded cluster."""
    k8s = Objects(seeds.cozystack(section), seeds.kubernetes_version(section))
    nodes, pods, crds = kubernetes.nodes(k8s), kubernetes.pods(k8s), kubernetes.crds(k8s)
    version, cozystack, workloads = kubernetes.version(k8s), kubernetes.cozystack(k8s), kubernetes.workloads(k8s)
    providers, webhooks = kubernetes.providers(k8s), kubernetes.webhooks(k8s)
    operator = next(row.images[0].rpartition(":")[2] for row in workloads if "cluster-api-operator" in row.name)
    verdicts = versions.assess(
        pve=PveVersion("9.2.11", "9.2", ""),
        kubernetes=version,
        cozystack=cozystack,
        crds=crds,
        providers=providers,
        operator_version=operator,
    )
    networks = SimpleNamespace(
        machine_pool=["10.0.0.150-10.0.0.180"], proxmox_lan=None, pods=None, services=None, join=None, api_vip=None
    )
    bridge = Interface(node="pve1", name="vmbr0", type="bridge", active=True, autostart=True, cidr=lan)
    ranges = kubernetes.network_ranges(k8s, SimpleNamespace(networks=networks), [bridge])
    return [
        *judge.version_is_supported(version, cozystack),
        *judge.kubelet_skew_is_supported(version, nodes),
        *judge.nodes_are_ready(nodes),
        *judge.no_node_is_under_pressure(nodes),
        *judge.taints_are_ordinary(nodes),
        *judge.requests_leave_room(nodes),
        *judge.cozystack_is_recognised(cozystack),
        *judge.releases_are_ready(kubernetes.releases(k8s)),
        *judge.packages_are_ready(kubernetes.packages(k8s)),
        *judge.capi_operator_runs(workloads),
        *judge.providers_are_installed(providers, crds),
        *judge.agents_run_on_every_node(nodes, pods),
        *judge.dns_is_ready(pods),
        *judge.restarts_are_few(pods),
        *judge.no_pod_is_stuck(pods),
        *judge.webhooks_are_reachable(webhooks),
        *judge.webhook_ca_is_valid(webhooks),
        *judge.api_services_are_available(kubernetes.api_services(k8s)),
        *judge.storage_class_exists(kubernetes.storage_classes(k8s)),
        *judge.monitoring_is_present(kubernetes.monitoring(k8s)),
        *judge.versions_fit(verdicts),
        *judge_network.ranges_do_not_meet(ranges),
    ]


def by_status(found: list[Finding], status: Status) -> set[str]:
    """The checks with a finding of that status."""
    return {finding.check for finding in found if finding.status is status}


AT_FIRST = {"node-not-ready": {"kubernetes.webhooks_are_reachable"}}
"""What a scenario breaks only until its controllers have moved pods away: no pod is moved in a seed."""


@pytest.mark.parametrize("name", WITH_CLUSTER)
def test_scenario_fails_exactly_the_checks_it_names(name: str) -> None:
    """The Kubernetes checks a scenario names fail or warn in it, and no others do."""
    given = scenario.load(name)
    found = findings(given.kubernetes)
    judged = {finding.check for finding in found}
    first = AT_FIRST.get(name, set())
    assert by_status(found, Status.FAIL) == first | {check for check in given.must_fail if check in judged}
    assert by_status(found, Status.WARN) == first | {check for check in given.must_warn if check in judged}
    assert by_status(found, Status.ERROR) == set()


@pytest.mark.parametrize("flavour", seeds.FLAVOURS)
def test_every_flavour_is_healthy(section: Object, flavour: str) -> None:
    """A cluster nobody broke has no failing check, whatever its flavour."""
    found = findings({**section, "flavour": flavour})
    assert [finding.message for finding in found if finding.status in {Status.FAIL, Status.ERROR}] == []


def test_generations_are_told_apart(section: Object) -> None:
    """v1 by its Packages, v0 by its bundle, and neither for the other's reasons."""
    told = {
        flavour: kubernetes.cozystack(Objects(seeds.cozystack({**section, "flavour": flavour})))
        for flavour in seeds.FLAVOURS
    }
    assert {flavour: (row.generation, row.release, row.variant) for flavour, row in told.items()} == {
        "cozystack-1.6": ("v1", "1.6.2", "isp-full"),
        "cozystack-0.41": ("v0", "0.41.9", "paas-full"),
        "capi-v1beta2": ("v1", "1.6.2", "isp-full"),
    }
    assert told["cozystack-1.6"].migration == 54


def test_stock_cluster_serves_only_v1beta1(section: Object) -> None:
    """CozyStack's core is 1.10.1, so CAPMOX 0.7 fits; the raised flavour takes 0.9."""
    choice = {}
    for flavour in ("cozystack-1.6", "capi-v1beta2"):
        found = findings({**section, "flavour": flavour})
        choice[flavour] = next(
            f.message for f in found if f.check == "kubernetes.versions_fit" and f.subject == "CAPMOX"
        )
    assert "v0.7.x can work" in choice["cozystack-1.6"]
    assert "v0.9.x can work" in choice["capi-v1beta2"]


def test_nodes_carry_the_uuid_of_their_virtual_machine(healthy: list[Object]) -> None:
    """systemUUID is the smbios uuid of the machine of that name: the link between the two worlds."""
    guests = scenario.load("healthy").proxmox["guests"]
    nodes = named(healthy, "Node")
    uuids = {name: node["status"]["nodeInfo"]["systemUUID"] for name, node in nodes.items()}
    assert {"cp-1", "cp-2", "cp-3"} < set(nodes)
    assert all(uuid in json.dumps(guests) for uuid in uuids.values())


@pytest.mark.parametrize(
    ("namespace", "kind", "names"),
    [
        ("cozy-system", "Deployment", {"cozystack-operator", "cozystack-api", "cozystack-controller"}),
        ("cozy-cluster-api", "Deployment",
         {"capi-operator-cluster-api-operator", "capi-controller-manager", "capi-kubeadm-bootstrap-controller-manager",
          "capi-kamaji-controller-manager", "capk-controller-manager"}),
        ("cozy-cilium", "DaemonSet", {"cilium", "cilium-envoy"}),
        ("cozy-kubeovn", "DaemonSet", {"kube-ovn-cni", "ovs-ovn", "kube-ovn-pinger"}),
        ("cozy-kubeovn", "Deployment", {"kube-ovn-controller", "ovn-central", "kube-ovn-monitor"}),
        ("cozy-linstor", "Deployment", {"linstor-controller"}),
        ("cozy-snapshot-controller", "Deployment", {"snapshot-controller"}),
        ("cozy-kamaji", "Deployment", {"kamaji"}),
        ("tenant-root", "Deployment", {"root-ingress-controller", "grafana-deployment"}),
    ],
)  # fmt: skip
def test_names_are_cozystacks_own(healthy: list[Object], namespace: str, kind: str, names: set[str]) -> None:
    """The health checks of a real cluster find here what they look for."""
    assert names <= set(named(healthy, kind, namespace))


def test_cozystack_ships_no_ipam_provider(healthy: list[Object]) -> None:
    """Neither an IPAMProvider object nor the CRD of its pools: without them a machine waits for ever."""
    assert named(healthy, "IPAMProvider", "cozy-cluster-api") == {}
    assert "inclusterippools.ipam.cluster.x-k8s.io" not in named(healthy, "CustomResourceDefinition")


def test_monitoring_is_not_prometheus(healthy: list[Object]) -> None:
    """VictoriaMetrics is there; only an exporter has "prometheus" in its name."""
    workloads = [
        item["metadata"]["name"] for item in healthy if item["kind"] in {"Deployment", "DaemonSet", "StatefulSet"}
    ]
    assert [name for name in workloads if "prometheus" in name] == ["monitoring-agents-prometheus-node-exporter"]
    assert set(named(healthy, "VMCluster", "tenant-root")) == {"shortterm", "longterm"}


def test_child_tenant_carries_its_ancestors(healthy: list[Object]) -> None:
    """A tenant's namespace is labelled with itself and everything above it; its policies are there."""
    labels = named(healthy, "Namespace")["tenant-shop"]["metadata"]["labels"]
    assert {"tenant.cozystack.io/tenant-root", "tenant.cozystack.io/tenant-shop"} <= set(labels)
    assert {"allow-internal-communication", "allow-to-apiserver", "allow-to-dns"} <= set(
        named(healthy, "CiliumNetworkPolicy", "tenant-shop")
    )
    assert "tenant-shop-egress" in named(healthy, "CiliumClusterwideNetworkPolicy")


@pytest.mark.parametrize("flavour", seeds.FLAVOURS)
def test_every_dependency_of_a_release_exists(section: Object, flavour: str) -> None:
    """No HelmRelease waits for a release that is not there, and none waits for itself in a circle."""
    objects = seeds.cozystack({**section, "flavour": flavour})
    needs = {
        f"{item['metadata']['namespace']}/{item['metadata']['name']}": {
            f"{other['namespace']}/{other['name']}" for other in item["spec"].get("dependsOn", ())
        }
        for item in objects
        if item["kind"] == "HelmRelease"
    }
    assert {other for others in needs.values() for other in others} <= set(needs)
    settled: set[str] = set()
    while ready := {name for name, others in needs.items() if name not in settled and others <= settled}:
        settled |= ready
    assert settled == set(needs)


def test_every_package_has_a_source(healthy: list[Object]) -> None:
    """Each Package stands for a PackageSource with its variant, and its dependencies are Packages."""
    packages, sources = named(healthy, "Package"), named(healthy, "PackageSource")
    for name, package in packages.items():
        variants = {variant["name"] for variant in sources[name]["spec"]["variants"]}
        assert package["spec"]["variant"] in variants
        assert set(package["status"].get("dependencies", ())) <= set(packages)


def test_names_and_uids_are_unique(healthy: list[Object]) -> None:
    """No two objects share a key or a uid, and no two pods an address of the pod network."""
    keys = Counter((i["apiVersion"], i["kind"], i["metadata"].get("namespace"), i["metadata"]["name"]) for i in healthy)
    uids = Counter(item["metadata"]["uid"] for item in healthy)
    pods = [item for item in healthy if item["kind"] == "Pod" and not item["spec"].get("hostNetwork")]
    addresses = Counter(item["status"]["podIP"] for item in pods)
    services = Counter(
        item["spec"]["clusterIP"]
        for item in healthy
        if item["kind"] == "Service" and item["spec"]["clusterIP"] != "None"
    )
    assert max(keys.values()) == max(uids.values()) == max(addresses.values()) == max(services.values()) == 1


def test_owners_exist(healthy: list[Object]) -> None:
    """Every owner reference points at an object that is there, so that garbage collection takes nothing away."""
    uids = {item["metadata"]["uid"] for item in healthy}
    owners = {owner["uid"] for item in healthy for owner in item["metadata"].get("ownerReferences", ())}
    assert owners <= uids


def test_requests_fit_the_nodes(healthy: list[Object]) -> None:
    """Every pod is bound to a node that exists, and no node is asked for more than half of its CPUs."""
    k8s = Objects(healthy)
    for node in kubernetes.nodes(k8s):
        assert 0 < node.requested_cpus < 0.6 * node.allocatable_cpus
        assert node.requested_memory_bytes < 0.6 * node.allocatable_memory_bytes


def test_webhook_certificates_are_real(healthy: list[Object]) -> None:
    """Each CA bundle is the CA that signed what the service presents."""
    for item in healthy:
        if item["kind"] != "ValidatingWebhookConfiguration":
            continue
        client = item["webhooks"][0]["clientConfig"]
        authority = x509.load_pem_x509_certificate(base64.b64decode(client["caBundle"]))
        secret = named(healthy, "Secret", client["service"]["namespace"])[f"{client['service']['name']}-cert"]
        served = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
        served.verify_directly_issued_by(authority)


def test_seeds_repeat_exactly(section: Object) -> None:
    """Two clusters of one section and one moment differ only in keys and certificates."""

    def plain(now: float) -> str:
        objects = seeds.cozystack(section, now=now)
        kept = [
            item for item in objects if not item["kind"].endswith("WebhookConfiguration") and item["kind"] != "Secret"
        ]
        return json.dumps([item for item in kept if "caBundle" not in json.dumps(item)])

    assert plain(1_790_000_000.0) == plain(1_790_000_000.0)


def test_seeding_is_quick(section: Object) -> None:
    """The whole cluster is built in well under the time a start may take."""
    seeds.cozystack(section)
    began = time.perf_counter()
    seeds.cozystack(section)
    assert time.perf_counter() - began < 0.5


def test_unknown_flavour_is_refused(section: Object) -> None:
    """A flavour nobody made is told with those that exist."""
    with pytest.raises(ValueError, match="no such Kubernetes flavour: cozystack-9; known are cozystack-1"):
        seeds.cozystack({**section, "flavour": "cozystack-9"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"pods": {"namespace": "nowhere"}, "state": "creating"}, "matches nothing"),
        ({"expolde": {"kind": "Pod"}}, "no such edit: expolde; known are pods"),
    ],
)
def test_edit_without_effect_is_refused(section: Object, edit: Object, message: str) -> None:
    """An incident that changes nothing would rehearse nothing."""
    with pytest.raises(UnknownEdit, match=message):
        seeds.cozystack({**section, "edits": [edit]})


def test_broken_release_spreads_to_its_dependents(section: Object) -> None:
    """What waits for a broken release says so, and what does not stays ready."""
    given = scenario.load("broken-release-chain").kubernetes
    rows = {f"{row.namespace}/{row.name}": row for row in kubernetes.releases(Objects(seeds.cozystack(given)))}
    assert rows["cozy-cert-manager/cert-manager"].reason == "DependencyNotReady"
    assert (
        rows["cozy-cert-manager/cert-manager"].message
        == "dependency 'cozy-cert-manager/cert-manager-crds' is not ready"
    )
    assert rows["cozy-kubeovn/kubeovn"].ready == "True"


def test_cascade_leaves_hundreds_of_dead_pods() -> None:
    """The incident shows as it did: no controller, no addresses, no names, 230 dead webhook pods."""
    pods = kubernetes.pods(Objects(seeds.cozystack(scenario.load("kube-ovn-cascade").kubernetes)))
    assert sum(pod.phase == "Failed" for pod in pods if pod.name.startswith("kube-ovn-webhook")) == 230
    assert [pod.ready for pod in pods if pod.labels.get("k8s-app") == "kube-dns"] == [False, False]
