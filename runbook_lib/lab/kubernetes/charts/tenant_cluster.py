"""What CozyStack's application Kubernetes installs into a tenant's cluster: its network and its DNS.

Its releases lie beside the Cluster and reach in by `kubeConfig` (packages/apps/kubernetes/templates/helmreleases).
"""

from __future__ import annotations

from typing import Any

from .. import strict

Object = dict[str, Any]

RBAC = "rbac.authorization.k8s.io"
EVERYWHERE = [{"operator": "Exists"}]
INITS = ("config", "mount-cgroup", "apply-sysctl-overwrites", "mount-bpf-fs", "clean-cilium-state",
         "install-cni-binaries")  # fmt: skip
DNS = "10.95.0.10"


KINDS = (
    ("CiliumNetworkPolicy", "ciliumnetworkpolicies", ("cnp", "ciliumnp")),
    ("CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", ("ccnp",)),
    ("CiliumNode", "ciliumnodes", ("cn", "ciliumn")),
    ("CiliumEndpoint", "ciliumendpoints", ("cep", "ciliumep")),
    ("CiliumIdentity", "ciliumidentities", ("ciliumid",)),
)


def definitions() -> list[Object]:
    """The kinds that Cilium's operator defines when it starts: no chart brings them."""
    near = {"CiliumNetworkPolicy", "CiliumEndpoint"}
    return [
        strict.definition("cilium.io", kind, plural, ["v2"], cluster=kind not in near, short=short,
                          labels={"io.cilium.k8s.crd.schema.version": "1.32.4"})
        for kind, plural, short in KINDS
    ]  # fmt: skip


def cilium(version: str, values: Object) -> list[Object]:
    """Cilium's agent on every node, and its operator."""
    given = values.get("cilium") or {}
    image, space = f"ghcr.io/cozystack/cozystack/cilium:{version}", "cozy-cilium"
    config = {
        "cluster-name": "default", "cluster-id": "0", "ipam": "kubernetes", "kube-proxy-replacement": "true",
        "routing-mode": str(given.get("routingMode", "tunnel")), "mtu": str(given.get("MTU", 1350)),
        "enable-ipv4-masquerade": str(given.get("enableIPv4Masquerade", True)).lower(),
        "cni-exclusive": "false", "agent-not-ready-taint-key": "node.cilium.io/agent-not-ready",
        "operator-api-serve-addr": "127.0.0.1:9234", "enable-hubble": "false",
    }  # fmt: skip
    labels = {"k8s-app": "cilium", "app.kubernetes.io/name": "cilium-agent", "app.kubernetes.io/part-of": "cilium"}
    operator = {"io.cilium/app": "operator", "name": "cilium-operator", "app.kubernetes.io/part-of": "cilium"}
    agent = {
        "name": "cilium-agent", "image": image, "command": ["cilium-agent"],
        "args": ["--config-dir=/tmp/cilium/config-map"], "imagePullPolicy": "IfNotPresent",
        "securityContext": {"privileged": True}, "resources": {"requests": {"cpu": "10m", "memory": "128Mi"}},
    }  # fmt: skip
    server = {
        "name": "cilium-operator", "image": f"quay.io/cilium/operator-generic:v{version}",
        "command": ["cilium-operator-generic"], "imagePullPolicy": "IfNotPresent",
        "args": ["--config-dir=/tmp/cilium/config-map", "--debug=$(CILIUM_DEBUG)"],
        "resources": {"requests": {"cpu": "10m", "memory": "128Mi"}},
    }  # fmt: skip
    watched = ["pods", "nodes", "services", "endpoints", "namespaces", "secrets", "componentstatuses"]
    return [
        *_account("cilium", space, [
            {"apiGroups": ["", "discovery.k8s.io", "networking.k8s.io"], "resources": [*watched, "endpointslices",
             "networkpolicies"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
            {"apiGroups": ["cilium.io"], "resources": ["*"], "verbs": ["*"]},
        ]),
        *_account("cilium-operator", space, [
            {"apiGroups": [""], "resources": watched, "verbs": ["get", "list", "watch", "patch"]},
            {"apiGroups": ["cilium.io"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"],
             "verbs": ["create", "get", "list", "watch", "update"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"]},
        ]),
        _thing("v1", "ConfigMap", "cilium-config", space, data=config),
        _thing("apps/v1", "DaemonSet", "cilium", space, labels=labels, spec={
            "selector": {"matchLabels": {"k8s-app": "cilium"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}},
            "template": {"metadata": {"labels": labels}, "spec": {
                "hostNetwork": True, "priorityClassName": "system-node-critical", "tolerations": EVERYWHERE,
                "serviceAccountName": "cilium", "restartPolicy": "Always",
                "initContainers": [{"name": name, "image": image, "imagePullPolicy": "IfNotPresent"} for name in INITS],
                "containers": [agent],
            }},
        }),
        _thing("apps/v1", "Deployment", "cilium-operator", space, labels=operator, spec={
            "replicas": (given.get("operator") or {}).get("replicas", 1),
            "selector": {"matchLabels": {"io.cilium/app": "operator", "name": "cilium-operator"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "50%"}},
            "template": {"metadata": {"labels": operator}, "spec": {
                "hostNetwork": True, "priorityClassName": "system-cluster-critical", "tolerations": EVERYWHERE,
                "serviceAccountName": "cilium-operator", "containers": [server],
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": {"io.cilium/app": "operator"}},
                     "topologyKey": "kubernetes.io/hostname"}]}},
            }},
        }),
    ]  # fmt: skip


def coredns(version: str, values: Object) -> list[Object]:
    """CoreDNS, at the address that every kubelet of the tenant tells its pods."""
    address = ((values.get("coredns") or {}).get("service") or {}).get("clusterIP") or DNS
    space = "kube-system"
    labels = {"app.kubernetes.io/name": "coredns", "app.kubernetes.io/instance": "coredns", "k8s-app": "kube-dns"}
    corefile = (
        ".:53 {\n    errors\n    health {\n        lameduck 5s\n    }\n    ready\n    kubernetes cluster.local "
        "in-addr.arpa ip6.arpa {\n        pods insecure\n        fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n"
        "    }\n    prometheus 0.0.0.0:9153\n    forward . /etc/resolv.conf\n    cache 30\n    loop\n    reload\n"
        "    loadbalance\n}\n"
    )
    container = {
        "name": "coredns", "image": f"registry.k8s.io/coredns/coredns:{version}", "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"name": f"{kind}-53", "containerPort": 53, "protocol": kind.upper()} for kind in ("udp", "tcp")],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}},
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns"}],
    }  # fmt: skip
    ports = [{"name": f"{kind}-53", "port": 53, "targetPort": 53, "protocol": kind.upper()} for kind in ("udp", "tcp")]
    return [
        *_account("coredns", space, [
            {"apiGroups": ["", "discovery.k8s.io"], "resources": ["endpoints", "services", "pods", "namespaces",
             "endpointslices"], "verbs": ["list", "watch"]},
        ]),
        _thing("v1", "ConfigMap", "coredns", space, labels=labels, data={"Corefile": corefile}),
        _thing("v1", "Service", "kube-dns", space, labels=labels, spec={
            "type": "ClusterIP", "clusterIP": address, "ports": ports,
            "selector": {"app.kubernetes.io/name": "coredns", "k8s-app": "kube-dns"},
        }),
        _thing("apps/v1", "Deployment", "coredns", space, labels=labels, spec={
            "replicas": 2, "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "coredns", "priorityClassName": "system-cluster-critical",
                "dnsPolicy": "Default", "containers": [container],
                "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"},
                                {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists",
                                 "effect": "NoSchedule"}],
                "volumes": [{"name": "config-volume", "configMap": {"name": "coredns"}}],
            }},
        }),
    ]  # fmt: skip


def _thing(api: str, kind: str, name: str, space: str = "", *, labels: Object | None = None, **body: Any) -> Object:
    meta: Object = {"name": name, **({"namespace": space} if space else {})}
    return {"apiVersion": api, "kind": kind, "metadata": meta | ({"labels": dict(labels)} if labels else {}), **body}


def _account(name: str, space: str, rules: list[Object]) -> list[Object]:
    subject = [{"kind": "ServiceAccount", "name": name, "namespace": space}]
    role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}
    return [
        _thing("v1", "ServiceAccount", name, space),
        _thing(f"{RBAC}/v1", "ClusterRole", name, rules=rules),
        _thing(f"{RBAC}/v1", "ClusterRoleBinding", name, roleRef=role, subjects=subject),
    ]
