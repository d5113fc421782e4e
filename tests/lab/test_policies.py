"""Network policies in the lab: who reaches whom, as Cilium and CozyStack's tenants would have it."""

from __future__ import annotations

from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.charts import tenant
from runbook_lib.lab.kubernetes.controllers.network import Outcome, View, World, connect, world
from runbook_lib.lab.kubernetes.controllers.policies import Policies

Object = dict[str, Any]
LISTS = {
    "kubernetes": "NetworkPolicy",
    "cilium": "CiliumNetworkPolicy",
    "clusterwide": "CiliumClusterwideNetworkPolicy",
    "subnets": "Subnet",
}


@pytest.fixture(scope="module")
def seeded() -> list[Object]:
    """Every object of the healthy cluster."""
    return seeds.cozystack(scenario.load("healthy").kubernetes)


@pytest.fixture(scope="module")
def outside() -> World:
    """What the healthy scenario has outside the cluster."""
    return world(scenario.load("healthy").kubernetes)


def _view(objects: list[Object], *more: Object) -> View:
    def of(kind: str) -> list[Object]:
        return [item for item in (*objects, *more) if item["kind"] == kind]

    policies = Policies(**{name: of(kind) for name, kind in LISTS.items()})
    return View(of("Pod"), of("Node"), of("Service"), of("EndpointSlice"), of("Namespace"), policies)


def _pod(
    space: str, name: str, address: str, *, labels: Object | None = None, port: int = 8080, node: str = "worker-1"
) -> Object:
    ports = [{"containerPort": port, "name": "http"}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": labels or {}, "uid": f"{space}/{name}"},
        "spec": {"nodeName": node, "containers": [{"name": "probe", "image": "agnhost", "ports": ports}]},
        "status": {"podIP": address, "phase": "Running"},
    }


def _space(name: str, **labels: str) -> Object:
    return {"kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}}}


def _of_tenants(name: str, *above: str) -> Object:
    labels = {f"tenant.cozystack.io/{each}": "" for each in (*above, name)}
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


ALICE = _pod("tenant-alice", "probe", "10.244.90.1")
TENANTS = (
    _of_tenants("tenant-alice", "tenant-root"),
    _of_tenants("tenant-alice-dev", "tenant-root", "tenant-alice"),
    _of_tenants("tenant-bob", "tenant-root"),
    _space("default"),
    *tenant.policies("tenant-alice"),
    *tenant.policies("tenant-alice-dev"),
    *tenant.policies("tenant-bob"),
    ALICE,
    _pod("tenant-alice", "other", "10.244.90.2", node="worker-2"),
    _pod("tenant-alice-dev", "probe", "10.244.91.1"),
    _pod("tenant-bob", "probe", "10.244.92.1"),
    _pod("default", "probe", "10.244.93.1"),
)


@pytest.mark.parametrize(
    ("source", "host", "port", "result"),
    [
        ("tenant-alice", "10.244.90.2", 8080, "connected"),
        ("tenant-alice", "10.244.92.1", 8080, "timeout"),
        ("tenant-alice", "10.244.91.1", 8080, "connected"),
        ("tenant-alice-dev", "10.244.90.1", 8080, "timeout"),
        ("tenant-alice", "kubernetes.default.svc", 443, "timeout"),
        ("tenant-alice", "10.0.0.1", 8006, "connected"),
        ("tenant-alice", "10.244.90.2", 9, "refused"),
        ("default", "10.244.92.1", 8080, "connected"),
        ("tenant-alice", "nothing.of.that.name", 443, "dns"),
    ],
)
def test_a_tenant_reaches_what_cozystack_lets_it(
    seeded: list[Object], outside: World, source: str, host: str, port: int, result: str
) -> None:
    """Siblings and the API server are closed, tenants below and the world are open, a pod of no tenant is let in."""
    view = _view(seeded, *TENANTS)
    pod = next(item for item in view.pods if item["metadata"]["uid"] == f"{source}/probe")
    assert connect(view, outside, pod, host, port).result == result


def test_the_api_server_opens_with_the_label(seeded: list[Object], outside: World) -> None:
    """A pod that carries the label of the policy gets through to the API server."""
    pod = _pod("tenant-alice", "marked", "10.244.90.9", labels={"policy.cozystack.io/allow-to-apiserver": "true"})
    found = connect(_view(seeded, *TENANTS, pod), outside, pod, "kubernetes.default.svc", 443)
    assert (found.result, found.address) == ("connected", "10.96.0.1")


def test_a_node_whose_agent_is_broken_lets_everything_out(seeded: list[Object], outside: World) -> None:
    """Isolation of siblings is the sender's: one node that does not enforce opens them."""
    broken = World(outside.reachable, node_faults={"worker-1": "policy"})
    assert connect(_view(seeded, *TENANTS), broken, ALICE, "10.244.92.1", 8080).result == "connected"


def _rules(kind: str, spec: Object, space: str = "app") -> Object:
    metadata = {"name": "under-test", **({"namespace": space} if space else {})}
    return {"kind": kind, "metadata": metadata, "spec": spec}


WEB = _pod("app", "web", "10.244.80.1", labels={"app": "web"})
CLIENT = _pod("app", "client", "10.244.80.2", labels={"app": "client"})
STRANGER = _pod("elsewhere", "client", "10.244.81.1", labels={"app": "client"})
PLACES = (_space("app"), _space("elsewhere", team="blue"), WEB, CLIENT, STRANGER)
NODE_PORTS = [{"ports": [{"port": "10250", "protocol": "TCP"}]}]


def _web(ingress: list[Object], **more: Any) -> Object:
    return {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress, **more}


@pytest.mark.parametrize(
    ("policy", "near", "far"),
    [
        ({"podSelector": {}, "policyTypes": ["Ingress"]}, "timeout", "timeout"),
        ({"podSelector": {"matchLabels": {"app": "other"}}, "policyTypes": ["Ingress"]}, "connected", "connected"),
        ({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}, "connected", "timeout"),
        (
            {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]}]},
            "timeout",
            "connected",
        ),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}, "connected", "connected"),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": 8000, "endPort": 8090}]}]}, "connected", "connected"),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": 8080, "protocol": "UDP"}]}]}, "timeout", "timeout"),
        ({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}]}, "timeout", "timeout"),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, "timeout", "connected"),
    ],
)
def test_a_network_policy_opens_what_it_names(policy: Object, near: str, far: str) -> None:
    """From its own namespace and from another one; a block of addresses never means a pod under Cilium."""
    view = _view([*PLACES, _rules("NetworkPolicy", policy)])
    found = [connect(view, World(), pod, "10.244.80.1", 8080).result for pod in (CLIENT, STRANGER)]
    assert found == [near, far]


@pytest.mark.parametrize(
    ("spec", "near", "far"),
    [
        (_web([{}]), "timeout", "timeout"),
        (_web([]), "connected", "connected"),
        (_web([{"fromEndpoints": [{}]}]), "connected", "timeout"),
        (_web([{"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "elsewhere"}}]}]),
         "timeout", "connected"),
        (_web([{"fromEndpoints": [{"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.team": "blue"}}]}]),
         "timeout", "connected"),
        (_web([{"fromEntities": ["cluster"]}]), "connected", "connected"),
        (_web([{"fromEntities": ["world"]}]), "timeout", "timeout"),
        (_web([{"toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}]}]), "connected", "connected"),
        (_web([{"fromEndpoints": []}]), "timeout", "timeout"),
        (_web([{"fromEntities": ["all"]}], ingressDeny=[{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]),
         "timeout", "connected"),
        (_web([{"fromEndpoints": [{}]}], enableDefaultDeny={"ingress": False}), "connected", "connected"),
    ],
)  # fmt: skip
def test_a_cilium_policy_opens_what_it_names(spec: Object, near: str, far: str) -> None:
    """An empty rule closes, an empty list of rules does not, ports alone open to all, a denial wins."""
    view = _view([*PLACES, _rules("CiliumNetworkPolicy", spec)])
    found = [connect(view, World(), pod, "10.244.80.1", 8080).result for pod in (CLIENT, STRANGER)]
    assert found == [near, far]


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ({"toCIDR": ["192.0.2.0/24"]}, "connected"),
        ({"toCIDRSet": [{"cidr": "192.0.2.0/24", "except": ["192.0.2.7/32"]}]}, "timeout"),
        ({"toFQDNs": [{"matchPattern": "*.example.org"}]}, "connected"),
        ({"toFQDNs": [{"matchName": "www.example.com"}]}, "timeout"),
        ({"toEntities": ["world"]}, "connected"),
        ({"toEntities": ["cluster"]}, "timeout"),
    ],
)
def test_an_egress_rule_opens_the_world_by_address_and_name(rule: Object, result: str) -> None:
    """A name is matched against what the pod asked its resolver for."""
    dns = _pod("kube-system", "dns", "10.244.70.1", labels={"k8s-app": "kube-dns"}, port=53)
    slice_ = {
        "kind": "EndpointSlice",
        "metadata": {"namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "endpoints": [{"addresses": ["10.244.70.1"], "conditions": {"ready": True}}],
    }
    to_dns = {"toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system"}}]}
    policy = _rules("CiliumNetworkPolicy", {"endpointSelector": {}, "egress": [to_dns, rule]})
    view = _view([*PLACES, _space("kube-system"), dns, slice_, policy])
    there = World(("192.0.2.7:443",), names={"www.example.org": "192.0.2.7"})
    assert connect(view, there, CLIENT, "www.example.org", 443).result == result


def test_a_pod_that_may_not_ask_dns_resolves_nothing(seeded: list[Object], outside: World) -> None:
    """A default-deny of egress takes the names away first."""
    closed = _rules("NetworkPolicy", {"podSelector": {}, "policyTypes": ["Egress"]}, "app")
    found = connect(_view(seeded, *PLACES, closed), outside, CLIENT, "kubernetes.default.svc", 443)
    assert found == Outcome("dns", 0.02)


def test_a_host_policy_closes_a_node_to_the_pods_it_denies(seeded: list[Object], outside: World) -> None:
    """A clusterwide policy with a nodeSelector judges what arrives at the node itself."""
    deny = {"nodeSelector": {}, "ingressDeny": [{"fromEntities": ["cluster"], "toPorts": NODE_PORTS}]}
    view = _view(seeded, *PLACES, _rules("CiliumClusterwideNetworkPolicy", deny, ""))
    before = connect(_view(seeded, *PLACES), outside, CLIENT, "10.0.0.41", 10250)
    assert (before.result, connect(view, outside, CLIENT, "10.0.0.41", 10250).result) == ("connected", "timeout")


def test_a_private_subnet_is_closed_to_those_it_does_not_name() -> None:
    """Kube-OVN drops between subnets before any policy is asked."""
    spec = {"cidrBlock": "10.244.80.0/24", "private": True}
    here: Object = {"kind": "Subnet", "metadata": {"name": "app"}, "spec": spec}
    there = {"kind": "Subnet", "metadata": {"name": "rest"}, "spec": {"cidrBlock": "10.244.81.0/24"}}
    opened = {**here, "spec": {**spec, "allowSubnets": ["10.244.81.0/24"]}}
    found = [
        connect(_view([*PLACES, subnet, there]), World(), STRANGER, "10.244.80.1", 8080).result
        for subnet in (here, opened)
    ]
    assert found == ["timeout", "connected"]
