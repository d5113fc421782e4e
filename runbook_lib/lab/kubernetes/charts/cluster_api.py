"""The releases of Cluster API's providers: what their repositories hold for a version, with variables unfilled.

`release(kind, name, version)` gives metadata.yaml as a mapping and the objects of the components file. Names, labels,
arguments and variables are the projects' own; schemas come from the lab's strict ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .. import strict

Object = dict[str, Any]
CONTRACTS = "cluster.x-k8s.io/"
CORE = "cluster.x-k8s.io"


@dataclass(frozen=True)
class Project:
    """One provider: where it is published, what its objects are called, which series follow which contract."""

    kind: str  # of the operator's resource, without "Provider"
    name: str
    repository: str
    image: str
    prefix: str
    series: tuple[tuple[str, str], ...]  # (minor series, contract)
    versions: tuple[str, ...]
    file: str
    args: tuple[str, ...] = ("--leader-elect",)

    @property
    def label(self) -> str:
        """The value of cluster.x-k8s.io/provider."""
        words = {"Core": "", "ControlPlane": "control-plane-", "IPAM": "ipam-"}
        return words.get(self.kind, f"{self.kind.lower()}-") + self.name

    @property
    def url(self) -> str:
        """Where clusterctl looks when nobody tells it another place."""
        return f"https://github.com/{self.repository}/releases/latest/{self.file}"


def _numbers(series: str, last: int, first: int = 0) -> tuple[str, ...]:
    return tuple(f"v{series}.{number}" for number in range(first, last + 1))


_CORE_SERIES = (("1.8", "v1beta1"), ("1.9", "v1beta1"), ("1.10", "v1beta1"), ("1.11", "v1beta2"), ("1.12", "v1beta2"))
_CORE_VERSIONS = (*_numbers("1.10", 10), *_numbers("1.11", 10), *_numbers("1.12", 10))
_GATES = "--feature-gates=ClusterTopology=${CLUSTER_TOPOLOGY:=false},MachinePool=${EXP_MACHINE_POOL:=true}"

PROJECTS = (
    Project(
        "Infrastructure", "proxmox", "ionos-cloud/cluster-api-provider-proxmox",
        "ghcr.io/ionos-cloud/cluster-api-provider-proxmox", "capmox",
        (*((f"0.{minor}", "v1beta1") for minor in range(1, 8)), ("0.8", "v1beta2"), ("0.9", "v1beta2")),
        (*_numbers("0.6", 3), *_numbers("0.7", 7), *_numbers("0.8", 2), "v0.9.0"), "infrastructure-components.yaml",
        ("--leader-elect", "--feature-gates=ClusterTopology=${CLUSTER_TOPOLOGY:=false}",
         "--metrics-bind-address=localhost:8080", "--v=${CAPMOX_LOGLEVEL:=0}"),
    ),
    Project(
        "IPAM", "in-cluster", "kubernetes-sigs/cluster-api-ipam-provider-in-cluster",
        "registry.k8s.io/capi-ipam-ic/cluster-api-ipam-in-cluster-controller", "capi-ipam-in-cluster",
        (("0.1", "v1beta1"), ("1.0", "v1beta1"), ("1.1", "v1beta2")),
        (*_numbers("1.0", 3), "v1.1.0"), "ipam-components.yaml",
    ),
    Project(
        "Core", "cluster-api", "kubernetes-sigs/cluster-api", "registry.k8s.io/cluster-api/cluster-api-controller",
        "capi", _CORE_SERIES, _CORE_VERSIONS, "core-components.yaml",
        ("--leader-elect", "--diagnostics-address=${CAPI_DIAGNOSTICS_ADDRESS:=:8443}",
         "--insecure-diagnostics=${CAPI_INSECURE_DIAGNOSTICS:=false}", _GATES),
    ),
    Project(
        "Bootstrap", "kubeadm", "kubernetes-sigs/cluster-api",
        "registry.k8s.io/cluster-api/kubeadm-bootstrap-controller",
        "capi-kubeadm-bootstrap", _CORE_SERIES, _CORE_VERSIONS, "bootstrap-components.yaml",
        ("--leader-elect", _GATES, "--bootstrap-token-ttl=${KUBEADM_BOOTSTRAP_TOKEN_TTL:=15m}"),
    ),
    Project(
        "ControlPlane", "kubeadm", "kubernetes-sigs/cluster-api",
        "registry.k8s.io/cluster-api/kubeadm-control-plane-controller", "capi-kubeadm-control-plane", _CORE_SERIES,
        _CORE_VERSIONS, "control-plane-components.yaml", ("--leader-elect", _GATES),
    ),
    Project(
        "Bootstrap", "talos", "siderolabs/cluster-api-bootstrap-provider-talos",
        "ghcr.io/siderolabs/cluster-api-talos-controller", "cabpt",
        (("0.5", "v1beta1"), ("0.6", "v1beta1")), _numbers("0.6", 12), "bootstrap-components.yaml",
    ),
    Project(
        "ControlPlane", "kamaji", "clastix/cluster-api-control-plane-provider-kamaji",
        "ghcr.io/clastix/cluster-api-control-plane-provider-kamaji", "capi-kamaji",
        (*((f"0.{minor}", "v1beta1") for minor in range(10, 20)), ("0.20", "v1beta2")),
        ("v0.15.1", "v0.16.0", "v0.19.0", "v0.20.0"), "control-plane-components.yaml",
    ),
)  # fmt: skip

PREDEFINED = frozenset({(row.kind, row.name) for row in PROJECTS}) | {("Infrastructure", "kubevirt")}
"""Providers that clusterctl knows without being told where they are."""


def project(kind: str, name: str) -> Project | None:
    """The provider of that kind and name, or None."""
    return next((row for row in PROJECTS if (row.kind, row.name) == (kind, name)), None)


def published(repository: str, file: str) -> Project | None:
    """The provider whose releases lie in that repository under that file name, or None."""
    return next((row for row in PROJECTS if (row.repository, row.file) == (repository, file)), None)


def metadata(row: Project) -> Object:
    """metadata.yaml of a release."""
    series = [
        {"major": int(number.partition(".")[0]), "minor": int(number.partition(".")[2]), "contract": contract}
        for number, contract in row.series
    ]
    return {"apiVersion": "clusterctl.cluster.x-k8s.io/v1alpha3", "kind": "Metadata", "releaseSeries": series}


def contract(row: Project, version: str) -> str:
    """The contract that a version follows, or nothing."""
    found = re.match(r"v?(\d+\.\d+)\.", version)
    return dict(row.series).get(found[1] if found else "", "")


def release(row: Project, version: str) -> list[Object]:
    """The objects of a version's components file, as published: in the namespace of the project itself."""
    followed = contract(row, version)
    space = f"{row.prefix}-system"
    items = [
        _thing("v1", "Namespace", space, labels={"control-plane": "controller-manager"}),
        *_definitions(row, followed, space),
        *_identity(row, space),
        *_manager(row, version, space),
        *_certificates(row, space),
        *_webhooks(row, followed, space),
    ]
    for item in items:
        item["metadata"].setdefault("labels", {})["cluster.x-k8s.io/provider"] = row.label
    return items


def _thing(api: str, kind: str, name: str, space: str = "", *, labels: Object | None = None, **body: Any) -> Object:
    meta: Object = {"name": name, **({"namespace": space} if space else {}), **({"labels": labels} if labels else {})}
    return {"apiVersion": api, "kind": kind, "metadata": meta, **body}


# -- what each defines ------------------------------------------------------------------------------------------------


def _kinds(row: Project, followed: str) -> list[tuple[str, str, str, list[str], str, tuple[str, ...]]]:
    """Group, kind, plural, versions (the stored one first), the version that serves the contract, short names."""
    both = ["v1beta2", "v1beta1"] if followed == "v1beta2" else ["v1beta1"]
    old = followed == "v1beta1"
    infra, ipam = f"infrastructure.{CORE}", f"ipam.{CORE}"
    boot, control = f"bootstrap.{CORE}", f"controlplane.{CORE}"
    if row.name == "proxmox":
        served = ["v1alpha1"] if old else ["v1alpha2", "v1alpha1"]
        rows = [
            ("ProxmoxCluster", "proxmoxclusters", ()), ("ProxmoxClusterTemplate", "proxmoxclustertemplates", ("pct",)),
            ("ProxmoxMachine", "proxmoxmachines", ("moxm",)),
            ("ProxmoxMachineTemplate", "proxmoxmachinetemplates", ("pmt",)),
        ]  # fmt: skip
        return [(infra, kind, plural, served, served[0], short) for kind, plural, short in rows]
    if row.name == "in-cluster":
        return [
            (ipam, "InClusterIPPool", "inclusterippools", ["v1alpha2"], "v1alpha2", ()),
            (ipam, "GlobalInClusterIPPool", "globalinclusterippools", ["v1alpha2"], "v1alpha2", ()),
        ]
    if row.name == "cluster-api":
        rows = [
            ("Cluster", "clusters", ("cl",)), ("ClusterClass", "clusterclasses", ("cc",)),
            ("Machine", "machines", ("ma",)), ("MachineSet", "machinesets", ("ms",)),
            ("MachineDeployment", "machinedeployments", ("md",)), ("MachinePool", "machinepools", ("mp",)),
            ("MachineHealthCheck", "machinehealthchecks", ("mhc", "mhcs")),
        ]  # fmt: skip
        return [(CORE, kind, plural, both, both[0], short) for kind, plural, short in rows] + [
            (ipam, "IPAddressClaim", "ipaddressclaims", both, both[0], ()),
            (ipam, "IPAddress", "ipaddresses", both, both[0], ()),
        ]
    if row.name == "talos":
        rows = [("TalosConfig", "talosconfigs", ()), ("TalosConfigTemplate", "talosconfigtemplates", ())]
        return [(boot, kind, plural, ["v1alpha3"], "v1alpha3", short) for kind, plural, short in rows]
    if row.name == "kamaji":
        version = "v1alpha1" if old else "v1alpha2"
        rows = [
            ("KamajiControlPlane", "kamajicontrolplanes", ("ktcp",)),
            ("KamajiControlPlaneTemplate", "kamajicontrolplanetemplates", ("ktcpt",)),
        ]  # fmt: skip
        return [(control, kind, plural, [version], version, short) for kind, plural, short in rows]
    if row.kind == "Bootstrap":
        rows = [("KubeadmConfig", "kubeadmconfigs", ()), ("KubeadmConfigTemplate", "kubeadmconfigtemplates", ())]
        return [(boot, kind, plural, both, both[0], short) for kind, plural, short in rows]
    return [(control, "KubeadmControlPlane", "kubeadmcontrolplanes", both, both[0], ("kcp",))]


def _definitions(row: Project, followed: str, space: str) -> list[Object]:
    items = []
    for group, kind, plural, versions, serving, short in _kinds(row, followed):
        labels = {CONTRACTS + "v1beta1": "v1beta1" if "v1beta1" in versions else serving}
        if followed == "v1beta2":
            labels[CONTRACTS + "v1beta2"] = serving
        wide = kind.startswith("Global")
        item = strict.definition(group, kind, plural, versions, cluster=wide, short=short, labels=labels)
        item["metadata"]["annotations"] = {
            "cert-manager.io/inject-ca-from": f"{space}/{row.prefix}-serving-cert",
            "controller-gen.kubebuilder.io/version": "v0.17.3",
        }
        if len(versions) > 1:
            service = {"name": f"{row.prefix}-webhook-service", "namespace": space, "path": "/convert"}
            hook = {"clientConfig": {"service": service}, "conversionReviewVersions": ["v1", "v1beta1"]}
            item["spec"]["conversion"] = {"strategy": "Webhook", "webhook": hook}
        items.append(item)
    return items


def _identity(row: Project, space: str) -> list[Object]:
    """The manager's account and what it may do."""
    account, group = f"{row.prefix}-manager", "rbac.authorization.k8s.io"
    groups = ["cluster.x-k8s.io", "infrastructure.cluster.x-k8s.io", "bootstrap.cluster.x-k8s.io",
              "controlplane.cluster.x-k8s.io", "ipam.cluster.x-k8s.io"]  # fmt: skip
    subject = [{"kind": "ServiceAccount", "name": account, "namespace": space}]
    many = ["create", "delete", "get", "list", "patch", "update", "watch"]
    leader = [
        {"apiGroups": [""], "resources": ["configmaps", "events"], "verbs": many},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": many},
    ]
    rules = [
        {"apiGroups": groups, "resources": ["*"], "verbs": many},
        {"apiGroups": [""], "resources": ["secrets", "events", "nodes", "namespaces"], "verbs": many},
        {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": many[2:4]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]  # fmt: skip
    election, manager = f"{row.prefix}-leader-election-role", f"{row.prefix}-manager-role"
    return [
        _thing("v1", "ServiceAccount", account, space),
        _thing(f"{group}/v1", "Role", election, space, rules=leader),
        _thing(f"{group}/v1", "ClusterRole", manager, rules=rules),
        _thing(f"{group}/v1", "RoleBinding", f"{row.prefix}-leader-election-rolebinding", space,
               roleRef={"apiGroup": group, "kind": "Role", "name": election}, subjects=subject),
        _thing(f"{group}/v1", "ClusterRoleBinding", f"{row.prefix}-manager-rolebinding",
               roleRef={"apiGroup": group, "kind": "ClusterRole", "name": manager}, subjects=subject),
    ]  # fmt: skip


def _manager(row: Project, version: str, space: str) -> list[Object]:
    """The Deployment, its webhook Service, and the credentials where there are some."""
    labels = {"cluster.x-k8s.io/provider": row.label, "control-plane": "controller-manager"}
    tag = re.sub(r"-(core|bootstrap|bootstrap-talos|cp|infraprovider|ipam)$", "", version)
    certificate = f"{row.prefix}-webhook-service-cert"
    container: Object = {
        "name": "manager", "image": f"{row.image}:{tag}", "imagePullPolicy": "IfNotPresent",
        "args": list(row.args), "command": ["/manager"],
        "ports": [
            {"containerPort": 9443, "name": "webhook-server", "protocol": "TCP"},
            {"containerPort": 9440, "name": "healthz", "protocol": "TCP"},
        ],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "healthz"}},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "healthz"}},
        "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"mountPath": "/tmp/k8s-webhook-server/serving-certs", "name": "cert", "readOnly": True}],
    }  # fmt: skip
    more: list[Object] = []
    if row.name == "proxmox":
        name = "capmox-manager-credentials"
        container["env"] = [
            {"name": f"PROXMOX_{key.upper()}",
             "valueFrom": {"secretKeyRef": {"name": name, "key": key, "optional": True}}}
            for key in ("url", "token", "secret")
        ]  # fmt: skip
        values = {key: f'${{PROXMOX_{key.upper()}:=""}}' for key in ("secret", "token", "url")}
        more.append(_thing("v1", "Secret", name, space, type="Opaque", stringData=values))
    pod = {
        "serviceAccountName": f"{row.prefix}-manager", "terminationGracePeriodSeconds": 10,
        "securityContext": {"runAsNonRoot": True}, "containers": [container],
        "tolerations": [
            {"effect": "NoSchedule", "key": f"node-role.kubernetes.io/{role}"} for role in ("master", "control-plane")
        ],
        "volumes": [{"name": "cert", "secret": {"secretName": certificate, "defaultMode": 420}}],
    }  # fmt: skip
    spec = {
        "replicas": 1, "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels, "annotations": {"kubectl.kubernetes.io/default-container": "manager"}},
            "spec": pod,
        },
    }  # fmt: skip
    port = {"port": 443, "protocol": "TCP", "targetPort": "webhook-server"}
    return [
        *more,
        _thing("v1", "Service", f"{row.prefix}-webhook-service", space, spec={"ports": [port], "selector": labels}),
        _thing("apps/v1", "Deployment", f"{row.prefix}-controller-manager", space, labels=dict(labels), spec=spec),
    ]


def _certificates(row: Project, space: str) -> list[Object]:
    service, issuer = f"{row.prefix}-webhook-service.{space}.svc", f"{row.prefix}-selfsigned-issuer"
    spec = {
        "dnsNames": [service, f"{service}.cluster.local"], "issuerRef": {"kind": "Issuer", "name": issuer},
        "secretName": f"{row.prefix}-webhook-service-cert", "subject": {"organizations": ["k8s-sig-cluster-lifecycle"]},
    }  # fmt: skip
    return [
        _thing("cert-manager.io/v1", "Issuer", issuer, space, spec={"selfSigned": {}}),
        _thing("cert-manager.io/v1", "Certificate", f"{row.prefix}-serving-cert", space, spec=spec),
    ]


def _webhooks(row: Project, followed: str, space: str) -> list[Object]:
    """What is asked before an object of the provider's kinds is written."""
    items = []
    for word, verb in (("Mutating", "mutate"), ("Validating", "validate")):
        hooks = []
        service = {"name": f"{row.prefix}-webhook-service", "namespace": space}
        for group, kind, plural, versions, _, _ in _kinds(row, followed):
            if kind.endswith(("IPAddress", "ClusterTemplate")) and verb == "mutate":
                continue
            path = f"/{verb}-{group.replace('.', '-')}-{versions[0]}-{kind.lower()}"
            start = "default" if verb == "mutate" else "validation"
            hooks.append({
                "name": f"{start}.{kind.lower()}.{group}", "admissionReviewVersions": ["v1", "v1beta1"],
                "clientConfig": {"service": {**service, "path": path}},
                "failurePolicy": "Fail", "matchPolicy": "Equivalent", "sideEffects": "None",
                "rules": [{"apiGroups": [group], "apiVersions": [versions[0]], "operations": ["CREATE", "UPDATE"],
                           "resources": [plural]}],
            })  # fmt: skip
        if row.name == "proxmox" and verb == "mutate" and followed == "v1beta1":
            continue  # CAPMOX 0.7 sets no defaults by webhook
        name = f"{row.prefix}-{word.lower()}-webhook-configuration"
        item = _thing("admissionregistration.k8s.io/v1", f"{word}WebhookConfiguration", name, webhooks=hooks)
        item["metadata"]["annotations"] = {"cert-manager.io/inject-ca-from": f"{space}/{row.prefix}-serving-cert"}
        items.append(item)
    return items
