"""The parts of a CozyStack as data: which release installs which workload where, and what it waits for.

Names, namespaces and labels are CozyStack's own (its bundles and package sources, v0.41 and v1.6).
Requests are rounded from its charts; what a chart leaves out counts as nothing, as it does in the scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Part:
    """One workload. `nodes` says where its pods may be: any, all, control-plane."""

    kind: str  # "Deployment" | "DaemonSet" | "StatefulSet"
    name: str
    image: str
    replicas: int = 1
    cpu: str = ""
    memory: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    nodes: str = "any"
    host: bool = False  # shares the node's network
    privileged: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    sidecars: tuple[tuple[str, str], ...] = ()  # (container, image)
    init: tuple[str, ...] = ()  # init containers, of the same image
    args: tuple[str, ...] = ()
    services: tuple[tuple[str, int], ...] = ()  # (name, port); a port below zero makes the Service headless
    volume_gib: int = 0  # a StatefulSet's claim per replica
    critical: bool = False  # system-node-critical
    rolling: Mapping[str, str] = field(default_factory=dict)  # maxSurge and maxUnavailable other than the defaults

    @property
    def selector(self) -> dict[str, str]:
        """The labels that pods and selector share."""
        return dict(self.labels) or {"app.kubernetes.io/name": self.name}


@dataclass(frozen=True)
class Release:
    """One HelmRelease with its workloads. `needs` are release names; `package` is the v1 package without prefix."""

    name: str
    namespace: str
    package: str
    needs: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    privileged: bool = False


_NET = ("cilium", "kubeovn", "multus")
_COZY = "ghcr.io/cozystack/cozystack"


def _deployment(name: str, image: str, **more: object) -> Part:
    return replace(Part("Deployment", name, image), **more)  # type: ignore[arg-type]


def _daemonset(name: str, image: str, **more: object) -> Part:
    return replace(Part("DaemonSet", name, image, nodes="all"), **more)  # type: ignore[arg-type]


def _statefulset(name: str, image: str, **more: object) -> Part:
    return replace(Part("StatefulSet", name, image), **more)  # type: ignore[arg-type]


def _capi_manager(name: str, image: str, provider: str, *, service: str) -> Part:
    return _deployment(
        name,
        image,
        cpu="10m",
        memory="64Mi",
        labels={"cluster.x-k8s.io/provider": provider, "control-plane": "controller-manager"},
        services=((service, 443),),
    )


def releases(versions: Mapping[str, str]) -> list[Release]:
    """Every platform release of a cluster whose component versions are `versions`."""
    v = versions
    return [
        *_network(v),
        *_platform(v),
        *_certificates(v),
        *_monitoring(v),
        *_storage(v),
        *_machines(v),
        *_operators(v),
    ]


def _network(v: Mapping[str, str]) -> list[Release]:
    cilium = f"quay.io/cilium/cilium:{v['cilium']}"
    ovn = f"{_COZY}/kubeovn:{v['kubeovn']}"
    return [
        Release(
            "cilium",
            "cozy-cilium",
            "networking",
            privileged=True,
            parts=(
                _daemonset(
                    "cilium",
                    cilium,
                    cpu="100m",
                    memory="512Mi",
                    labels={"k8s-app": "cilium"},
                    host=True,
                    privileged=True,
                    critical=True,
                    init=(
                        "config",
                        "mount-cgroup",
                        "apply-sysctl-overwrites",
                        "clean-cilium-state",
                        "install-cni-binaries",
                    ),
                ),
                _daemonset(
                    "cilium-envoy",
                    "quay.io/cilium/cilium-envoy:v1.35.9",
                    cpu="20m",
                    memory="64Mi",
                    labels={"k8s-app": "cilium-envoy"},
                    host=True,
                    critical=True,
                ),
                _deployment(
                    "cilium-operator",
                    f"quay.io/cilium/operator-generic:{v['cilium']}",
                    replicas=2,
                    cpu="20m",
                    memory="128Mi",
                    labels={"io.cilium/app": "operator", "name": "cilium-operator"},
                    host=True,
                    critical=True,
                ),
            ),
        ),
        Release("cilium-networkpolicy", "cozy-cilium", "networking", ("cilium",), privileged=True),
        Release(
            "kubeovn",
            "cozy-kubeovn",
            "networking",
            ("cilium",),
            privileged=True,
            parts=(
                _deployment(
                    "ovn-central",
                    ovn,
                    replicas=3,
                    cpu="300m",
                    memory="300Mi",
                    labels={"app": "ovn-central"},
                    nodes="control-plane",
                    host=True,
                    critical=True,
                    services=(("ovn-nb", 6641), ("ovn-sb", 6642), ("ovn-northd", 6643)),
                ),
                _deployment(
                    "kube-ovn-controller",
                    ovn,
                    replicas=3,
                    cpu="200m",
                    memory="200Mi",
                    labels={"app": "kube-ovn-controller"},
                    nodes="control-plane",
                    host=True,
                    critical=True,
                    rolling={"maxSurge": "0%", "maxUnavailable": "100%"},
                    services=(("kube-ovn-controller", 10660),),
                    args=(
                        "/kube-ovn/start-controller.sh",
                        "--default-ls=ovn-default",
                        "--enable-np=false",
                        "--enable-lb=false",
                        "--enable-lb-svc=false",
                        "--enable-external-vpc=false",
                        "--network-type=geneve",
                        "--gc-interval=360",
                    ),
                ),
                _deployment(
                    "kube-ovn-monitor",
                    ovn,
                    cpu="200m",
                    memory="200Mi",
                    labels={"app": "kube-ovn-monitor"},
                    nodes="control-plane",
                    host=True,
                    services=(("kube-ovn-monitor", 10661),),
                ),
                _daemonset(
                    "ovs-ovn",
                    ovn,
                    cpu="200m",
                    memory="200Mi",
                    labels={"app": "ovs"},
                    host=True,
                    privileged=True,
                    critical=True,
                ),
                _daemonset(
                    "kube-ovn-cni",
                    ovn,
                    cpu="100m",
                    memory="100Mi",
                    labels={"app": "kube-ovn-cni"},
                    host=True,
                    privileged=True,
                    critical=True,
                    init=("install-cni",),
                    services=(("kube-ovn-cni", 10665),),
                    args=(
                        "--enable-mirror=false",
                        "--encap-checksum=true",
                        "--service-cluster-ip-range=10.96.0.0/16",
                        "--network-type=geneve",
                    ),
                ),
                _daemonset(
                    "kube-ovn-pinger",
                    ovn,
                    cpu="100m",
                    memory="100Mi",
                    labels={"app": "kube-ovn-pinger"},
                    services=(("kube-ovn-pinger", 8080),),
                ),
            ),
        ),
        Release(
            "kubeovn-webhook",
            "cozy-kubeovn",
            "kubeovn-webhook",
            (*_NET, "cert-manager"),
            parts=(
                _deployment(
                    "kube-ovn-webhook",
                    f"{_COZY}/kubeovn-webhook:{v['cozystack']}",
                    cpu="10m",
                    memory="64Mi",
                    labels={"app": "kube-ovn-webhook"},
                    services=(("kube-ovn-webhook", 443),),
                ),
            ),
        ),
        Release(
            "kubeovn-plunger",
            "cozy-kubeovn",
            "kubeovn-plunger",
            (*_NET, "victoria-metrics-operator"),
            parts=(_deployment("kube-ovn-plunger", f"{_COZY}/kubeovn-plunger:{v['cozystack']}", cpu="10m"),),
        ),
        Release(
            "multus",
            "cozy-multus",
            "multus",
            ("cilium", "kubeovn"),
            privileged=True,
            parts=(
                _daemonset(
                    "cozy-multus",
                    f"{_COZY}/multus-cni:v4.2.3",
                    cpu="100m",
                    memory="50Mi",
                    labels={"app": "multus", "name": "multus"},
                    host=True,
                    privileged=True,
                    init=("install-multus-binary",),
                ),
            ),
        ),
        Release(
            "coredns",
            "kube-system",
            "coredns",
            ("cilium", "kubeovn"),
            parts=(
                _deployment(
                    "coredns",
                    "registry.k8s.io/coredns/coredns:v1.12.4",
                    replicas=2,
                    cpu="100m",
                    memory="128Mi",
                    labels={"app.kubernetes.io/name": "coredns", "k8s-app": "kube-dns"},
                    services=(("kube-dns", 53),),
                    critical=True,
                ),
            ),
        ),
        Release(
            "metallb",
            "cozy-metallb",
            "metallb",
            _NET,
            privileged=True,
            parts=(
                _deployment(
                    "metallb-controller",
                    f"quay.io/metallb/controller:{v['metallb']}",
                    cpu="20m",
                    memory="64Mi",
                    labels={"app.kubernetes.io/name": "metallb", "app.kubernetes.io/component": "controller"},
                    services=(("metallb-webhook-service", 443),),
                ),
                _daemonset(
                    "metallb-speaker",
                    f"quay.io/metallb/speaker:{v['metallb']}",
                    cpu="20m",
                    memory="64Mi",
                    labels={"app.kubernetes.io/name": "metallb", "app.kubernetes.io/component": "speaker"},
                    host=True,
                ),
            ),
        ),
    ]


def _platform(v: Mapping[str, str]) -> list[Release]:
    tag = v["cozystack"]
    return [
        Release(
            "cozystack-controller",
            "cozy-system",
            "cozystack-engine",
            _NET,
            parts=(
                _deployment(
                    "cozystack-controller",
                    f"{_COZY}/cozystack-controller:{tag}",
                    cpu="20m",
                    memory="64Mi",
                    labels={"app": "cozystack-controller"},
                ),
            ),
        ),
        Release(
            "cozystack-api",
            "cozy-system",
            "cozystack-engine",
            (*_NET, "cozystack-controller"),
            parts=(
                _deployment(
                    "cozystack-api",
                    f"{_COZY}/cozystack-api:{tag}",
                    replicas=2,
                    cpu="50m",
                    memory="128Mi",
                    labels={"app": "cozystack-api"},
                    nodes="control-plane",
                    services=(("cozystack-api", 443),),
                ),
            ),
        ),
        Release(
            "lineage-controller-webhook",
            "cozy-system",
            "cozystack-engine",
            (*_NET, "cert-manager", "cozystack-controller"),
            parts=(
                _daemonset(
                    "lineage-controller-webhook",
                    f"{_COZY}/lineage-controller-webhook:{tag}",
                    cpu="10m",
                    memory="64Mi",
                    labels={"app": "lineage-controller-webhook"},
                    nodes="control-plane",
                    services=(("lineage-controller-webhook", 443),),
                ),
            ),
        ),
        Release(
            "cozy-proxy",
            "cozy-system",
            "cozy-proxy",
            _NET,
            parts=(
                _daemonset(
                    "cozy-proxy",
                    "ghcr.io/cozystack/cozystack/cozy-proxy:v0.2.1",
                    cpu="10m",
                    memory="32Mi",
                    host=True,
                    privileged=True,
                ),
            ),
        ),
        Release(
            "dashboard",
            "cozy-dashboard",
            "dashboard",
            (*_NET, "cozystack-api"),
            parts=(
                _deployment(
                    "incloud-web-web",
                    f"{_COZY}/openapi-ui:{tag}",
                    cpu="50m",
                    memory="128Mi",
                    services=(("incloud-web-web", 8080),),
                ),
                _deployment(
                    "incloud-web-gatekeeper",
                    f"{_COZY}/token-proxy:{tag}",
                    cpu="20m",
                    memory="64Mi",
                    services=(("incloud-web-gatekeeper", 8000),),
                ),
            ),
        ),
        Release(
            "reloader",
            "cozy-reloader",
            "reloader",
            _NET,
            parts=(_deployment("reloader-reloader", "ghcr.io/stakater/reloader:v1.4.5", cpu="10m", memory="128Mi"),),
        ),
    ]


def _certificates(v: Mapping[str, str]) -> list[Release]:
    repository = "quay.io/jetstack"
    names = {"app.kubernetes.io/instance": "cert-manager"}
    return [
        Release("cert-manager-crds", "cozy-cert-manager", "cert-manager", _NET),
        Release(
            "cert-manager",
            "cozy-cert-manager",
            "cert-manager",
            (*_NET, "cert-manager-crds"),
            parts=(
                _deployment(
                    "cert-manager",
                    f"{repository}/cert-manager-controller:{v['cert-manager']}",
                    cpu="20m",
                    memory="128Mi",
                    labels={**names, "app.kubernetes.io/name": "cert-manager", "app": "cert-manager"},
                ),
                _deployment(
                    "cert-manager-cainjector",
                    f"{repository}/cert-manager-cainjector:{v['cert-manager']}",
                    cpu="20m",
                    memory="128Mi",
                    labels={**names, "app.kubernetes.io/name": "cainjector", "app": "cainjector"},
                ),
                _deployment(
                    "cert-manager-webhook",
                    f"{repository}/cert-manager-webhook:{v['cert-manager']}",
                    cpu="10m",
                    memory="64Mi",
                    labels={**names, "app.kubernetes.io/name": "webhook", "app": "webhook"},
                    services=(("cert-manager-webhook", 443),),
                ),
            ),
        ),
        Release("cert-manager-issuers", "cozy-cert-manager", "cert-manager", (*_NET, "cert-manager")),
    ]


def _monitoring(v: Mapping[str, str]) -> list[Release]:
    return [
        Release("prometheus-operator-crds", "cozy-victoria-metrics-operator", "prometheus-operator-crds"),
        Release(
            "metrics-server",
            "cozy-monitoring",
            "metrics-server",
            (*_NET, "prometheus-operator-crds"),
            parts=(
                _deployment(
                    "metrics-server",
                    "registry.k8s.io/metrics-server/metrics-server:v0.8.1",
                    cpu="100m",
                    memory="200Mi",
                    services=(("metrics-server", 443),),
                ),
            ),
        ),
        Release(
            "victoria-metrics-operator",
            "cozy-victoria-metrics-operator",
            "victoria-metrics-operator",
            (*_NET, "cert-manager", "prometheus-operator-crds"),
            parts=(
                _deployment(
                    "victoria-metrics-operator",
                    f"victoriametrics/operator:{v['victoria-metrics-operator']}",
                    cpu="80m",
                    memory="120Mi",
                    services=(("victoria-metrics-operator", 9443),),
                ),
            ),
        ),
        Release(
            "grafana-operator",
            "cozy-grafana-operator",
            "grafana-operator",
            _NET,
            parts=(
                _deployment(
                    "grafana-operator",
                    f"ghcr.io/grafana/grafana-operator:{v['grafana-operator']}",
                    cpu="50m",
                    memory="128Mi",
                ),
            ),
        ),
        Release(
            "monitoring-agents",
            "cozy-monitoring",
            "monitoring-agents",
            ("victoria-metrics-operator", "metrics-server"),
            privileged=True,
            parts=(
                _deployment(
                    "vmagent-vmagent",
                    "victoriametrics/vmagent:v1.140.0",
                    cpu="200m",
                    memory="512Mi",
                    labels={
                        "app.kubernetes.io/name": "vmagent",
                        "app.kubernetes.io/instance": "vmagent",
                        "managed-by": "vm-operator",
                    },
                    services=(("vmagent-vmagent", 8429),),
                ),
                _deployment(
                    "monitoring-agents-kube-state-metrics",
                    "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.17.0",
                    cpu="50m",
                    memory="256Mi",
                    labels={"app.kubernetes.io/name": "kube-state-metrics"},
                    services=(("monitoring-agents-kube-state-metrics", 8080),),
                ),
                _daemonset(
                    # the name that fools a search for "prometheus": there is none here
                    "monitoring-agents-prometheus-node-exporter",
                    "quay.io/prometheus/node-exporter:v1.9.1",
                    cpu="20m",
                    memory="32Mi",
                    labels={"app.kubernetes.io/name": "prometheus-node-exporter"},
                    host=True,
                    services=(("monitoring-agents-prometheus-node-exporter", 9100),),
                ),
                _daemonset(
                    "monitoring-agents-fluent-bit",
                    "cr.fluentbit.io/fluent/fluent-bit:4.1.1",
                    cpu="50m",
                    memory="64Mi",
                    labels={"app.kubernetes.io/name": "fluent-bit"},
                ),
            ),
        ),
        Release(
            "vertical-pod-autoscaler",
            "cozy-vertical-pod-autoscaler",
            "vertical-pod-autoscaler",
            ("monitoring-agents",),
            parts=(
                _deployment(
                    "vertical-pod-autoscaler-vpa-recommender",
                    "registry.k8s.io/autoscaling/vpa-recommender:1.4.2",
                    cpu="50m",
                    memory="256Mi",
                ),
            ),
        ),
    ]


def _storage(v: Mapping[str, str]) -> list[Release]:
    linstor = f"{_COZY}/piraeus-server:1.32.3"
    return [
        Release(
            "snapshot-controller",
            "cozy-snapshot-controller",
            "linstor",
            (*_NET, "cert-manager-issuers"),
            parts=(
                _deployment(
                    "snapshot-controller",
                    "registry.k8s.io/sig-storage/snapshot-controller:v8.0.1",
                    replicas=2,
                    cpu="10m",
                    memory="64Mi",
                ),
                _deployment(
                    "snapshot-conversion-webhook",
                    "registry.k8s.io/sig-storage/snapshot-conversion-webhook:v8.0.1",
                    cpu="10m",
                    memory="32Mi",
                    services=(("snapshot-conversion-webhook", 443),),
                ),
            ),
        ),
        Release(
            "piraeus-operator",
            "cozy-linstor",
            "linstor",
            (*_NET, "cert-manager", "victoria-metrics-operator"),
            parts=(
                _deployment(
                    "piraeus-operator-controller-manager",
                    f"quay.io/piraeusdatastore/piraeus-operator:{v['piraeus-operator']}",
                    cpu="30m",
                    memory="128Mi",
                    labels={
                        "app.kubernetes.io/component": "piraeus-operator",
                        "app.kubernetes.io/name": "piraeus-datastore",
                    },
                    services=(("piraeus-operator-webhook-service", 443),),
                ),
            ),
        ),
        Release(
            "linstor",
            "cozy-linstor",
            "linstor",
            ("piraeus-operator", *_NET, "cert-manager", "snapshot-controller"),
            privileged=True,
            parts=(
                _deployment(
                    "linstor-controller",
                    linstor,
                    cpu="100m",
                    memory="512Mi",
                    labels={"app.kubernetes.io/component": "linstor-controller"},
                    services=(("linstor-controller", 3371),),
                ),
                _deployment(
                    "linstor-csi-controller",
                    f"{_COZY}/linstor-csi:v1.10.1",
                    cpu="50m",
                    memory="128Mi",
                    labels={"app.kubernetes.io/component": "linstor-csi-controller"},
                    sidecars=(
                        ("csi-provisioner", "registry.k8s.io/sig-storage/csi-provisioner:v5.3.0"),
                        ("csi-attacher", "registry.k8s.io/sig-storage/csi-attacher:v4.10.0"),
                        ("csi-snapshotter", "registry.k8s.io/sig-storage/csi-snapshotter:v8.3.0"),
                        ("csi-resizer", "registry.k8s.io/sig-storage/csi-resizer:v1.14.0"),
                    ),
                ),
                _daemonset(
                    "linstor-csi-node",
                    f"{_COZY}/linstor-csi:v1.10.1",
                    cpu="20m",
                    memory="64Mi",
                    labels={"app.kubernetes.io/component": "linstor-csi-node"},
                    privileged=True,
                ),
                _daemonset(
                    "linstor-satellite",
                    linstor,
                    cpu="100m",
                    memory="256Mi",
                    labels={"app.kubernetes.io/component": "linstor-satellite"},
                    privileged=True,
                    host=True,
                ),
            ),
        ),
    ]


def _machines(v: Mapping[str, str]) -> list[Release]:
    capi = "registry.k8s.io/cluster-api"
    core, operator = v["capi-core"], v["capi-operator"]
    operator_labels = {"app.kubernetes.io/name": "cluster-api-operator", "control-plane": "controller-manager"}
    return [
        Release(
            "kamaji",
            "cozy-kamaji",
            "kamaji",
            (*_NET, "cert-manager"),
            parts=(
                _deployment(
                    "kamaji",
                    f"{_COZY}/kamaji:{v['cozystack']}",
                    cpu="50m",
                    memory="128Mi",
                    services=(("kamaji-webhook-service", 443),),
                ),
            ),
        ),
        Release(
            "capi-operator",
            "cozy-cluster-api",
            "capi-operator",
            (*_NET, "cert-manager"),
            privileged=True,
            parts=(
                _deployment(
                    "capi-operator-cluster-api-operator",
                    f"registry.k8s.io/capi-operator/cluster-api-operator:{operator}",
                    cpu="50m",
                    memory="128Mi",
                    labels=operator_labels,
                    services=(("capi-operator-webhook-service", 443),),
                ),
            ),
        ),
        Release(
            "capi-providers-core",
            "cozy-cluster-api",
            "capi-provider-core",
            (*_NET, "capi-operator"),
            privileged=True,
            parts=(
                _capi_manager(
                    "capi-controller-manager",
                    f"{capi}/cluster-api-controller:{core}",
                    "cluster-api",
                    service="capi-webhook-service",
                ),
            ),
        ),
        Release(
            "capi-providers-bootstrap",
            "cozy-cluster-api",
            "capi-provider-bootstrap-kubeadm",
            (*_NET, "capi-operator", "capi-providers-core"),
            privileged=True,
            parts=(
                _capi_manager(
                    "capi-kubeadm-bootstrap-controller-manager",
                    f"{capi}/kubeadm-bootstrap-controller:{core}",
                    "bootstrap-kubeadm",
                    service="capi-kubeadm-bootstrap-webhook-service",
                ),
                *(
                    (
                        _capi_manager(
                            "cabpt-controller-manager",
                            "ghcr.io/siderolabs/cluster-api-talos-controller:v0.6.12",
                            "bootstrap-talos",
                            service="cabpt-webhook-service",
                        ),
                    )
                    if v.get("cabpt")
                    else ()
                ),
            ),
        ),
        Release(
            "capi-providers-cpprovider",
            "cozy-cluster-api",
            "capi-provider-cp-kamaji",
            (*_NET, "capi-operator", "capi-providers-core"),
            privileged=True,
            parts=(
                _capi_manager(
                    "capi-kamaji-controller-manager",
                    f"{_COZY}/cluster-api-control-plane-provider-kamaji:{v['kamaji-provider']}",
                    "control-plane-kamaji",
                    service="capi-kamaji-webhook-service",
                ),
            ),
        ),
        Release(
            "capi-providers-infraprovider",
            "cozy-cluster-api",
            "capi-provider-infra-kubevirt",
            (*_NET, "capi-operator", "capi-providers-core"),
            privileged=True,
            parts=(
                _capi_manager(
                    "capk-controller-manager",
                    "quay.io/capk/capk-manager:v0.1.10",
                    "infrastructure-kubevirt",
                    service="capk-webhook-service",
                ),
            ),
        ),
        Release(
            "kubevirt-operator",
            "cozy-kubevirt",
            "kubevirt",
            (*_NET, "victoria-metrics-operator"),
            parts=(
                _deployment(
                    "virt-operator",
                    f"quay.io/kubevirt/virt-operator:{v['kubevirt']}",
                    replicas=2,
                    cpu="10m",
                    memory="450Mi",
                    labels={"kubevirt.io": "virt-operator"},
                    services=(("kubevirt-operator-webhook", 443),),
                ),
            ),
        ),
        Release(
            "kubevirt",
            "cozy-kubevirt",
            "kubevirt",
            (*_NET, "kubevirt-operator"),
            privileged=True,
            parts=(
                _deployment(
                    "virt-api",
                    f"quay.io/kubevirt/virt-api:{v['kubevirt']}",
                    replicas=2,
                    cpu="5m",
                    memory="500Mi",
                    labels={"kubevirt.io": "virt-api"},
                    services=(("virt-api", 443),),
                ),
                _deployment(
                    "virt-controller",
                    f"quay.io/kubevirt/virt-controller:{v['kubevirt']}",
                    replicas=2,
                    cpu="10m",
                    memory="275Mi",
                    labels={"kubevirt.io": "virt-controller"},
                ),
                _daemonset(
                    "virt-handler",
                    f"quay.io/kubevirt/virt-handler:{v['kubevirt']}",
                    cpu="10m",
                    memory="325Mi",
                    labels={"kubevirt.io": "virt-handler"},
                    privileged=True,
                ),
            ),
        ),
        Release(
            "kubevirt-cdi-operator",
            "cozy-kubevirt-cdi",
            "kubevirt-cdi",
            _NET,
            parts=(_deployment("cdi-operator", "quay.io/kubevirt/cdi-operator:v1.62.0", cpu="100m", memory="150Mi"),),
        ),
        Release(
            "kubevirt-cdi",
            "cozy-kubevirt-cdi",
            "kubevirt-cdi",
            (*_NET, "kubevirt-cdi-operator"),
            parts=(
                _deployment("cdi-deployment", "quay.io/kubevirt/cdi-controller:v1.62.0", cpu="100m", memory="150Mi"),
                _deployment(
                    "cdi-apiserver",
                    "quay.io/kubevirt/cdi-apiserver:v1.62.0",
                    cpu="100m",
                    memory="150Mi",
                    services=(("cdi-api", 443),),
                ),
            ),
        ),
    ]


def _operators(v: Mapping[str, str]) -> list[Release]:
    return [
        Release(
            "etcd-operator",
            "cozy-etcd-operator",
            "etcd-operator",
            (*_NET, "cert-manager"),
            parts=(
                _deployment(
                    "etcd-operator-controller-manager",
                    "ghcr.io/cozystack/etcd-operator:v0.5.0",
                    cpu="100m",
                    memory="64Mi",
                    services=(("etcd-operator-webhook-service", 443),),
                ),
            ),
        ),
        Release(
            "postgres-operator",
            "cozy-postgres-operator",
            "postgres-operator",
            (*_NET, "cert-manager"),
            parts=(
                _deployment(
                    "postgres-operator-cloudnative-pg",
                    "ghcr.io/cloudnative-pg/cloudnative-pg:1.27.0",
                    cpu="50m",
                    memory="128Mi",
                    services=(("cnpg-webhook-service", 443),),
                ),
            ),
        ),
        Release(
            "mariadb-operator",
            "cozy-mariadb-operator",
            "mariadb-operator",
            (*_NET, "cert-manager", "victoria-metrics-operator"),
            parts=(
                _deployment(
                    "mariadb-operator",
                    "docker-registry3.mariadb.com/mariadb-operator/mariadb-operator:0.38.1",
                    cpu="10m",
                    memory="64Mi",
                ),
            ),
        ),
        Release(
            "rabbitmq-operator",
            "cozy-rabbitmq-operator",
            "rabbitmq-operator",
            _NET,
            parts=(
                _deployment(
                    "rabbitmq-cluster-operator",
                    "rabbitmqoperator/cluster-operator:2.16.0",
                    cpu="100m",
                    memory="128Mi",
                ),
            ),
        ),
        Release(
            "redis-operator",
            "cozy-redis-operator",
            "redis-operator",
            _NET,
            parts=(_deployment("redis-operator", f"{_COZY}/redis-operator:v1.3.0", cpu="50m", memory="64Mi"),),
        ),
    ]


FLUX_V1 = _deployment(
    "flux",
    "ghcr.io/fluxcd/helm-controller:v1.4.4",
    cpu="100m",
    memory="256Mi",
    labels={"app.kubernetes.io/name": "flux"},
    nodes="control-plane",
    host=True,
    sidecars=(
        ("source-controller", "ghcr.io/fluxcd/source-controller:v1.7.4"),
        ("source-watcher", "ghcr.io/fluxcd/source-watcher:v2.0.3"),
        ("kustomize-controller", "ghcr.io/fluxcd/kustomize-controller:v1.7.3"),
        ("notification-controller", "ghcr.io/fluxcd/notification-controller:v1.7.5"),
    ),
    services=(("source-controller", 80), ("notification-controller", 80)),
)
"""Flux as the v1 operator embeds it: all controllers in one pod, started before there is a pod network."""

FLUX_V0 = tuple(
    _deployment(
        name, f"ghcr.io/fluxcd/{name}:{tag}", cpu="100m", memory="128Mi", labels={"app": name}, services=services
    )
    for name, tag, services in (
        ("helm-controller", "v1.4.4", ()),
        ("kustomize-controller", "v1.7.3", ()),
        ("notification-controller", "v1.7.5", (("notification-controller", 80),)),
        ("source-controller", "v1.7.4", (("source-controller", 80),)),
        ("flux-operator", "v0.33.0", ()),
    )
)

ROOT_TENANT = (
    Part(
        "StatefulSet",
        "etcd",
        "gcr.io/etcd-development/etcd:v3.6.8",
        replicas=3,
        cpu="100m",
        memory="256Mi",
        labels={"app.kubernetes.io/name": "etcd", "app.kubernetes.io/instance": "etcd", "cozystack.io/service": "etcd"},
        services=(("etcd", 2379), ("etcd-headless", -2380)),
        volume_gib=4,
    ),
    _deployment(
        "root-ingress-controller",
        "registry.k8s.io/ingress-nginx/controller:v1.13.3",
        replicas=2,
        cpu="100m",
        memory="128Mi",
        labels={"app.kubernetes.io/name": "ingress-nginx", "cozystack.io/service": "ingress"},
        services=(("root-ingress-controller", 443), ("root-ingress-controller-admission", 443)),
    ),
    *(
        part
        for name in ("shortterm", "longterm")
        for part in (
            _statefulset(
                f"vmstorage-{name}",
                "victoriametrics/vmstorage:v1.140.0-cluster",
                replicas=2,
                cpu="100m",
                memory="512Mi",
                labels={"app.kubernetes.io/name": "vmstorage", "app.kubernetes.io/instance": name},
                services=((f"vmstorage-{name}", -8482),),
                volume_gib=10,
            ),
            _statefulset(
                f"vmselect-{name}",
                "victoriametrics/vmselect:v1.140.0-cluster",
                replicas=2,
                cpu="50m",
                memory="256Mi",
                labels={"app.kubernetes.io/name": "vmselect", "app.kubernetes.io/instance": name},
                services=((f"vmselect-{name}", 8481),),
            ),
            _deployment(
                f"vminsert-{name}",
                "victoriametrics/vminsert:v1.140.0-cluster",
                replicas=2,
                cpu="50m",
                memory="256Mi",
                labels={"app.kubernetes.io/name": "vminsert", "app.kubernetes.io/instance": name},
                services=((f"vminsert-{name}", 8480),),
            ),
        )
    ),
    _deployment(
        "vlinsert-generic",
        "victoriametrics/victoria-logs:v1.42.0",
        cpu="50m",
        memory="128Mi",
        labels={"app.kubernetes.io/name": "vlinsert", "app.kubernetes.io/instance": "generic"},
        services=(("vlinsert-generic", 9481),),
    ),
    _statefulset(
        "vlstorage-generic",
        "victoriametrics/victoria-logs:v1.42.0",
        cpu="100m",
        memory="256Mi",
        labels={"app.kubernetes.io/name": "vlstorage", "app.kubernetes.io/instance": "generic"},
        services=(("vlstorage-generic", -9491),),
        volume_gib=10,
    ),
    _deployment(
        "vlselect-generic",
        "victoriametrics/victoria-logs:v1.42.0",
        cpu="50m",
        memory="128Mi",
        labels={"app.kubernetes.io/name": "vlselect", "app.kubernetes.io/instance": "generic"},
        services=(("vlselect-generic", 9471),),
    ),
    _deployment(
        "vmalert-vmalert-shortterm",
        "victoriametrics/vmalert:v1.140.0",
        cpu="50m",
        memory="128Mi",
        labels={"app.kubernetes.io/name": "vmalert", "app.kubernetes.io/instance": "vmalert-shortterm"},
        services=(("vmalert-vmalert-shortterm", 8080),),
    ),
    _statefulset(
        "vmalertmanager-alertmanager",
        "prom/alertmanager:v0.28.1",
        replicas=2,
        cpu="20m",
        memory="64Mi",
        labels={"app.kubernetes.io/name": "vmalertmanager", "app.kubernetes.io/instance": "alertmanager"},
        services=(("vmalertmanager-alertmanager", 9093),),
    ),
    _deployment(
        "grafana-deployment",
        "docker.io/grafana/grafana:11.6.15",
        replicas=2,
        cpu="100m",
        memory="256Mi",
        labels={"app": "grafana"},
        services=(("grafana-service", 3000),),
    ),
    _statefulset(
        "grafana-db",
        "ghcr.io/cloudnative-pg/postgresql:17.6",
        replicas=2,
        cpu="50m",
        memory="256Mi",
        labels={"cnpg.io/cluster": "grafana-db", "cnpg.io/podRole": "instance"},
        services=(("grafana-db-rw", 5432),),
        volume_gib=10,
    ),
)
"""What runs in the namespace tenant-root. The v0 monitoring hub lacks clustered logs; nothing judges that."""

CHILD_TENANT = (
    _statefulset(
        "postgres-orders",
        "ghcr.io/cloudnative-pg/postgresql:17.6",
        replicas=2,
        cpu="100m",
        memory="256Mi",
        labels={"cnpg.io/cluster": "postgres-orders", "cnpg.io/podRole": "instance"},
        services=(("postgres-orders-rw", 5432),),
        volume_gib=5,
    ),
)

VERSIONS: Mapping[str, Mapping[str, str]] = {
    "cozystack-1.6": {
        "cozystack": "v1.6.2",
        "migration": "54",
        "kubernetes": "v1.34.3",
        "talos": "v1.13.6",
        "containerd": "2.1.6",
        "kernel": "6.18.9-talos",
        "cilium": "v1.19.5",
        "kubeovn": "v1.15.10",
        "capi-core": "v1.10.1",
        "capi-operator": "v0.19.0",
        "kamaji-provider": "v0.19.0-cozystack.0",
        "cabpt": "v0.6.12",
        "metallb": "v0.16.1",
        "cert-manager": "v1.20.2",
        "victoria-metrics-operator": "v0.68.4",
        "grafana-operator": "v5.13.0",
        "piraeus-operator": "v2.10.2",
        "kubevirt": "v1.8.1",
    },
    "cozystack-0.41": {
        "cozystack": "v0.41.9",
        "migration": "23",
        "kubernetes": "v1.32.3",
        "talos": "v1.11.6",
        "containerd": "2.1.5",
        "kernel": "6.12.57-talos",
        "cilium": "v1.18.6",
        "kubeovn": "v1.15.3",
        "capi-core": "v1.10.1",
        "capi-operator": "v0.19.0",
        "kamaji-provider": "v0.15.1-cp",
        "metallb": "v0.15.2",
        "cert-manager": "v1.17.2",
        "victoria-metrics-operator": "v0.55.0",
        "grafana-operator": "v5.13.0",
        "piraeus-operator": "v2.10.2",
        "kubevirt": "v1.6.3",
    },
}
"""Component versions of each flavour. `capi-v1beta2` is a CozyStack 1.6 whose Cluster API was raised by hand."""

VERSIONS = {
    **VERSIONS,
    "capi-v1beta2": {
        **VERSIONS["cozystack-1.6"],
        "capi-core": "v1.12.10",
        "capi-operator": "v0.28.0",
        "kamaji-provider": "v0.20.0",
    },
}
