"""The network policies of CozyStack's tenant chart (packages/apps/tenant/templates/networkpolicy.yaml of v1.6).

A tenant is closed to its siblings on the sender's side: its pods may send to the world, to their own namespace and to
tenants below, and to a few services of the tenants above; they accept from the whole cluster and the world.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

SPACE = "k8s:io.kubernetes.pod.namespace"
SPACE_LABELS = "k8s:io.cilium.k8s.namespace.labels."
ROOT = "tenant-root"
_NEIGHBOURS = (
    ("allow-to-dns", {SPACE: "kube-system", "k8s-app": "kube-dns"}),
    ("allow-to-dashboard", {SPACE: "cozy-dashboard"}),
    ("allow-to-linstor-gui", {SPACE: "cozy-linstor"}),
    ("allow-to-keycloak", {SPACE: "cozy-keycloak"}),
    ("allow-to-grafana-dashboards", {SPACE: "cozy-grafana-operator"}),
    ("allow-to-cdi-upload-proxy", {SPACE: "cozy-kubevirt-cdi"}),
    ("allow-to-ingress", {"cozystack.io/service": "ingress"}),
)
"""Policies that let every pod of a tenant reach one shared service, and that service's labels."""


def policies(tenant: str, *, etcd: bool = False, ingress: bool = False, monitoring: bool = False) -> list[Object]:
    """The policies of one tenant's namespace, without metadata that a server adds.

    The flags say which services the tenant runs itself.
    """
    everywhere: Object = {"endpointSelector": {}}
    items = [
        _own(tenant, "allow-internal-communication", {
            **everywhere, "ingress": [{"fromEndpoints": [{}]}], "egress": [{"toEndpoints": [{}]}],
        }),
        _own(tenant, "allow-external-communication", {
            **everywhere,
            "ingress": [{"fromEntities": ["world", "cluster"]}],
            "egress": [{"toEntities": ["world"]}],
        }),
        _own(tenant, "allow-to-apiserver", {
            "endpointSelector": {"matchLabels": {"policy.cozystack.io/allow-to-apiserver": "true"}},
            "egress": [
                {"toEntities": ["kube-apiserver"]},
                {"toPorts": [{"ports": [{"port": "6443", "protocol": "TCP"}]}]},
            ],
        }),
        *(
            _own(tenant, name, {**everywhere, "egress": [{"toEndpoints": [{"matchLabels": labels}]}]})
            for name, labels in _NEIGHBOURS
        ),
        _wide(f"{tenant}-egress", {SPACE: tenant}, egress=_upwards(tenant)),
        _wide(f"{tenant}-ingress", {SPACE: tenant}, ingress=_inwards(tenant)),
    ]  # fmt: skip
    if ingress:
        labels = {SPACE: tenant, "cozystack.io/service": "ingress"}
        items.append(_wide(f"{tenant}-ingress-ingress", labels, ingress=[{"fromEndpoints": [{}]}]))
    if etcd:
        users = {f"{SPACE_LABELS}namespace.cozystack.io/etcd": tenant, "policy.cozystack.io/allow-to-etcd": "true"}
        labels = {SPACE: tenant, "cozystack.io/service": "etcd"}
        items.append(_wide(f"{tenant}-ingress-etcd", labels, ingress=[{"fromEndpoints": [{"matchLabels": users}]}]))
    if monitoring:
        handler = {"k8s:kubevirt.io": "virt-handler", SPACE: "cozy-kubevirt"}
        ports = [{"ports": [{"port": "8443", "protocol": "TCP"}]}]
        labels = {SPACE: tenant, "k8s:app.kubernetes.io/name": "vmagent"}
        rule = {"toEndpoints": [{"matchLabels": handler}], "toPorts": ports}
        items.append(_wide(f"{tenant}-egress-virt-handler", labels, egress=[rule]))
    return items


def above(tenant: str) -> list[str]:
    """The namespaces of the tenants that a tenant lies in, outermost first: tenant-a-b lies in root and tenant-a."""
    parts = tenant.removeprefix("tenant-").split("-")
    return [] if tenant == ROOT else [ROOT, *("tenant-" + "-".join(parts[:end]) for end in range(1, len(parts)))]


def _upwards(tenant: str) -> list[Object]:
    rules: list[Object] = [{"toEndpoints": [{"matchLabels": {f"{SPACE_LABELS}tenant.cozystack.io/{tenant}": ""}}]}]
    for label, value in (
        ("k8s:app.kubernetes.io/name", "vminsert"),
        ("k8s:app.kubernetes.io/name", "vlinsert"),
        ("k8s:app.kubernetes.io/instance", "etcd"),
        ("cozystack.io/service", "ingress"),
    ):
        if tenant != ROOT:
            rules.append({"toEndpoints": [{"matchLabels": {label: value, SPACE: space}} for space in above(tenant)]})
    return rules


def _inwards(tenant: str) -> list[Object]:
    rules: list[Object] = [
        {"fromEntities": ["kube-apiserver"]},
        {"fromEndpoints": [{"matchLabels": {f"{SPACE_LABELS}cozystack.io/system": "true"}}]},
        {"fromEndpoints": [{"matchLabels": {SPACE: "kube-system"}}]},
    ]
    if tenant != ROOT:
        rules.append({"fromEndpoints": [{"matchLabels": {SPACE: space}} for space in above(tenant)]})
    return rules


def _own(tenant: str, name: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": tenant}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}


def _wide(name: str, selector: dict[str, str], **rules: list[Object]) -> Object:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": {"matchLabels": selector}, **rules},
    }
