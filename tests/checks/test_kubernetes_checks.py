"""Judgement of Kubernetes and CozyStack."""

from __future__ import annotations

import pytest

from runbook_lib import checks
from runbook_lib.facts import (
    ApiService,
    CapiProvider,
    Cozystack,
    Crd,
    KubeNode,
    KubeVersion,
    MonitoringPart,
    Package,
    Pod,
    Release,
    StorageClass,
    Taint,
    Webhook,
    Workload,
)
from runbook_lib.versions import Verdict

DAY = 86400


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


def node(name="cp-1", **given):
    """A Ready control plane of 4 CPUs and 8 GiB with nothing on it."""
    usual = {
        "ready": "True",
        "conditions": {},
        "roles": ("control-plane",),
        "kubelet_version": "v1.34.1",
        "runtime": "containerd://2.1.4",
        "os_image": "Talos",
        "internal_ip": "10.0.0.11",
        "provider_id": "",
        "system_uuid": "",
        "unschedulable": False,
        "taints": (),
        "labels": {},
        "allocatable_cpus": 4.0,
        "allocatable_memory_bytes": 8 * 2**30,
        "allocatable_pods": 110,
        "requested_cpus": 0.0,
        "requested_memory_bytes": 0,
        "pods": 0,
    }
    return KubeNode(name, **{**usual, **given})


def pod(name="cilium-x", **given):
    """A ready pod on cp-1."""
    usual = {
        "namespace": "cozy-cilium",
        "node": "cp-1",
        "phase": "Running",
        "ready": True,
        "restarts": 0,
        "reasons": (),
    }
    return Pod(name=name, **{**usual, **given})


def release(name, ready="True", **given):
    """A Flux release in cozy-system."""
    usual = {"reason": "", "message": "", "suspended": False, "depends_on": ()}
    return Release("cozy-system", name, ready, **{**usual, **given})


@pytest.mark.parametrize(
    ("version", "minor", "cozy", "expected"),
    [
        ("v1.25.9", (1, 25), None, "fail"),
        ("v1.26.0", (1, 26), None, "pass"),
        ("v1.32.3", (1, 32), "1.4.0", "pass"),
        ("v1.32.3", (1, 32), "1.5.0", "fail"),
        ("v1.33.0", (1, 33), "1.6.2", "pass"),
    ],
)
def test_kubernetes_floor_rises_with_cozystack(version, minor, cozy, expected):
    """1.26 by the sprint, 1.33 from CozyStack 1.5 on."""
    found = checks.kubernetes.version_is_supported(KubeVersion(version, minor), Cozystack("v1", cozy, 54, "isp-full"))
    assert statuses(found) == [expected]


@pytest.mark.parametrize(
    ("kubelet", "expected"),
    [
        ("v1.34.9", "pass"),
        ("v1.33.0", "warn"),
        ("v1.31.0", "warn"),
        ("v1.30.0", "fail"),
        ("v1.35.0", "fail"),
        ("?", "skip"),
    ],
)
def test_kubelet_may_be_three_minors_older_and_never_newer(kubelet, expected):
    """The Kubernetes version skew policy."""
    found = checks.kubernetes.kubelet_skew_is_supported(
        KubeVersion("v1.34.1", (1, 34)), [node(kubelet_version=kubelet)]
    )
    assert statuses(found) == [expected]


def test_not_ready_fails_and_cordoned_warns():
    """Unknown is not Ready."""
    rows = [node(), node("cp-2", ready="Unknown"), node("cp-3", unschedulable=True)]
    assert statuses(checks.kubernetes.nodes_are_ready(rows)) == ["pass", "fail", "warn"]


def test_pressure_is_named():
    """The condition's own name is in the message."""
    found = checks.kubernetes.no_node_is_under_pressure(
        [node(conditions={"DiskPressure": "True", "PIDPressure": "False"})]
    )
    assert statuses(found) == ["fail"]
    assert found[0].message == "cp-1: DiskPressure"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("node-role.kubernetes.io/control-plane", "pass"),
        ("dedicated", "warn"),
        ("node.cilium.io/agent-not-ready", "fail"),
        ("node.kubernetes.io/unreachable", "fail"),
    ],
)
def test_taints_are_told_apart(key, expected):
    """Ordinary, unknown and telltale taints."""
    assert statuses(checks.kubernetes.taints_are_ordinary([node(taints=(Taint(key, "", "NoSchedule"),))])) == [expected]


@pytest.mark.parametrize(("cpus", "expected"), [(3.36, "pass"), (3.4, "warn"), (3.76, "warn"), (3.8, "fail")])
def test_requests_are_graded(cpus, expected):
    """85 % and 95 % of what can be allocated."""
    assert statuses(checks.kubernetes.requests_leave_room([node(requested_cpus=cpus)]))[0] == expected


@pytest.mark.parametrize(
    ("generation", "expected"), [("v1", "pass"), ("v0", "warn"), ("half migrated", "fail"), ("none", "fail")]
)
def test_cozystack_generation_decides(generation, expected):
    """Half migrated is a failure, not a mixture of two passes."""
    assert statuses(checks.kubernetes.cozystack_is_recognised(Cozystack(generation, "1.6.2", 54, None))) == [expected]


def test_first_broken_dependency_is_named():
    """Of a chain of three, the deepest broken one is the root for all."""
    rows = [
        release("cilium", "False", reason="InstallFailed", message="timeout"),
        release("coredns", "False", reason="DependencyNotReady", depends_on=("cozy-system/cilium",)),
        release("monitoring", "False", reason="DependencyNotReady", depends_on=("cozy-system/coredns",)),
        release("cert-manager"),
    ]
    found = checks.kubernetes.releases_are_ready(rows)
    assert statuses(found) == ["fail", "fail", "fail", "pass"]
    assert found[2].message.endswith("first broken: cozy-system/cilium")
    assert "first broken" not in found[0].message


def test_missing_dependency_is_a_root():
    """A release that waits for one nobody made says so."""
    found = checks.kubernetes.releases_are_ready([release("csi", "False", depends_on=("cozy-system/ccm",))])
    assert "cozy-system/ccm (absent)" in found[0].message


def test_dependency_cycle_ends():
    """Two releases that wait for each other are both reported."""
    rows = [release("a", "False", depends_on=("cozy-system/b",)), release("b", "False", depends_on=("cozy-system/a",))]
    assert statuses(checks.kubernetes.releases_are_ready(rows)) == ["fail", "fail"]


def test_suspended_release_warns():
    """Somebody suspended it: not broken, not well."""
    assert statuses(checks.kubernetes.releases_are_ready([release("a", "Unknown", suspended=True)])) == ["warn"]


def test_broken_package_names_what_it_waits_for():
    """One pass for the rest."""
    rows = [
        Package("a", "default", "True", "", ""),
        Package("b", "x", "False", "DependenciesNotReady", "waiting", ("a", "c")),
    ]
    found = checks.kubernetes.packages_are_ready(rows)
    assert statuses(found) == ["fail", "pass"]
    assert "(waits for a, c)" in found[0].message


def test_capi_operator_must_be_there_and_ready():
    """No Deployment is a failure, not nothing to look at."""
    deployment = Workload("Deployment", "cozy-cluster-api", "capi-operator-cluster-api-operator", 1, 0)
    assert statuses(checks.kubernetes.capi_operator_runs([])) == ["fail"]
    assert statuses(checks.kubernetes.capi_operator_runs([deployment])) == ["fail"]


@pytest.mark.parametrize(("installed", "expected"), [("v1.10.1", "pass"), ("v1.9.5", "fail"), ("", "fail")])
def test_provider_is_done_only_when_the_wanted_version_is_installed(installed, expected):
    """Ready is a claim; the installed version is the fact."""
    provider = CapiProvider("CoreProvider", "ns", "cluster-api", "v1.10.1", installed, "v1beta1", "True", "", "")
    machines = Crd("machines.cluster.x-k8s.io", "cluster.x-k8s.io", "Machine", ("v1beta1",), "v1beta1", True)
    found = checks.kubernetes.providers_are_installed([provider], [machines])
    assert statuses(found) == [expected, "pass"]


def test_agents_are_found_by_label_on_every_node():
    """A ready agent elsewhere does not help the node without one."""
    rows = [
        pod(labels={"k8s-app": "cilium"}),
        pod("cilium-y", node="w-1", ready=False, reasons=("Init:0/5",), labels={"k8s-app": "cilium"}),
        pod("kube-ovn-cni-x", labels={"app": "kube-ovn-cni"}),
        pod("kube-ovn-cni-y", node="w-1", labels={"app": "kube-ovn-cni"}),
    ]
    found = checks.kubernetes.agents_run_on_every_node([node(), node("w-1")], rows)
    assert statuses(found) == ["fail", "pass", "fail"]
    assert "not ready on w-1 (Init:0/5)" in found[0].message


@pytest.mark.parametrize(
    ("ready", "nodes", "expected"), [(0, 1, "fail"), (1, 1, "warn"), (2, 1, "warn"), (2, 2, "pass")]
)
def test_dns_needs_two_places(ready, nodes, expected):
    """No CoreDNS fails; one, or two on one node, warns."""
    rows = [
        pod(f"coredns-{n}", node=f"cp-{n % nodes}", ready=n < ready, labels={"k8s-app": "kube-dns"}) for n in range(2)
    ]
    assert statuses(checks.kubernetes.dns_is_ready(rows)) == [expected]


def test_no_dns_pod_at_all_fails():
    """An absent CoreDNS is not nothing to look at."""
    assert statuses(checks.kubernetes.dns_is_ready([])) == ["fail"]


@pytest.mark.parametrize(("restarts", "expected"), [(4, "pass"), (5, "warn"), (49, "warn"), (50, "fail")])
def test_restarts_are_graded(restarts, expected):
    """5 and 50 are the thresholds."""
    assert statuses(checks.kubernetes.restarts_are_few([pod(restarts=restarts)])) == [expected]


def test_stuck_pods_are_grouped_by_reason():
    """Two hundred pods with one reason are one finding; finished pods are fine."""
    rows = [pod(f"p-{n}", phase="Pending", ready=False, reasons=("ImagePullBackOff",)) for n in range(200)]
    found = checks.kubernetes.no_pod_is_stuck([*rows, pod(phase="Succeeded", ready=False)])
    assert statuses(found) == ["fail", "pass"]
    assert found[0].message.startswith("200 pods on cp-1: ImagePullBackOff")


@pytest.mark.parametrize(
    ("endpoints", "policy", "expected"),
    [(1, "Fail", "pass"), (0, "Fail", "fail"), (0, "Ignore", "warn"), (None, "Fail", "skip")],
)
def test_webhook_needs_endpoints(endpoints, policy, expected):
    """failurePolicy Ignore makes an absent endpoint a warning; a URL cannot be judged."""
    hook = Webhook("capmox", "validating", "v.capmox", "ns/svc:443", policy, endpoints, None)
    assert statuses(checks.kubernetes.webhooks_are_reachable([hook])) == [expected]


@pytest.mark.parametrize(("days", "expected"), [(31, "pass"), (29, "warn"), (-1, "fail")])
def test_webhook_ca_is_judged_by_its_end(days, expected):
    """Thirty days ahead is early enough to be told."""
    hook = Webhook("capmox", "validating", "v.capmox", "ns/svc:443", "Fail", 1, int(1000 + days * DAY))
    assert statuses(checks.kubernetes.webhook_ca_is_valid([hook], now_epoch=1000)) == [expected]


def test_unusable_ca_bundle_fails():
    """A bundle that does not parse is said as such."""
    hook = Webhook("capmox", "validating", "v", "ns/svc:443", "Fail", 1, None, "caBundle is not a certificate")
    assert statuses(checks.kubernetes.webhook_ca_is_valid([hook], now_epoch=0)) == ["fail"]


def test_unavailable_api_service_fails_with_its_reason():
    """The reason of the condition is in the message."""
    row = ApiService(
        "v1alpha1.apps.cozystack.io", "False", "MissingEndpoints", "no endpoints", "cozy-system/cozystack-api"
    )
    found = checks.kubernetes.api_services_are_available([row])
    assert statuses(found) == ["fail"]
    assert "MissingEndpoints" in found[0].message


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [([], ["fail"]), ([True], ["pass"]), ([False], ["pass", "warn"]), ([True, True], ["pass", "warn"])],
)
def test_exactly_one_default_storage_class(defaults, expected):
    """None at all fails; no default or two of them warn."""
    rows = [
        StorageClass(f"c{n}", "linstor", default, "Immediate", True, "Delete") for n, default in enumerate(defaults)
    ]
    assert statuses(checks.kubernetes.storage_class_exists(rows)) == expected


def test_monitoring_is_told_by_kind():
    """A Grafana alone is no monitoring: the store and the collector are missing."""
    grafana = MonitoringPart("Grafana", "tenant-root", "grafana", True, "")
    assert statuses(checks.kubernetes.monitoring_is_present([grafana])) == ["fail", "fail", "pass"]
    stack = [MonitoringPart("VMCluster", "t", "s", True, ""), MonitoringPart("VMAgent", "t", "a", None, "")]
    assert statuses(checks.kubernetes.monitoring_is_present(stack)) == ["pass", "warn"]


def test_versions_that_cannot_be_told_are_skipped():
    """Unknown is neither can nor cannot."""
    rows = [Verdict("CAPMOX", True, "why", "v0.7.x"), Verdict("CSI", False, "why"), Verdict("CCM", None, "why")]
    assert statuses(checks.kubernetes.versions_fit(rows)) == ["pass", "fail", "skip"]
