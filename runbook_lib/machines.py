"""The objects that a cluster of machines is made of, for both generations, from typed parameters. No I/O.

CAPMOX 0.7 speaks v1alpha1 and Cluster API v1beta1, 0.8 and later v1alpha2 and v1beta2. Each builder gives what the
generation's own schema takes and nothing else; whether the cluster agrees is told by a dry run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runbook_lib.facts import MachineApis

Manifest = dict[str, Any]

INFRASTRUCTURE = "infrastructure.cluster.x-k8s.io"
BOOTSTRAP = "bootstrap.cluster.x-k8s.io"
CONTROL_PLANE = "controlplane.cluster.x-k8s.io"
CORE = "cluster.x-k8s.io"
CLUSTER_LABEL, DEPLOYMENT_LABEL = "cluster.x-k8s.io/cluster-name", "cluster.x-k8s.io/deployment-name"
PROVIDER_ID = "proxmox://{{ ds.meta_data.instance_id }}"
"""What cloud-init fills in on the machine. Without it the Node never gets its providerID, and no Machine its Node."""

DRAIN_SECONDS = 60


@dataclass(frozen=True)
class Order:
    """A cluster of machines as it is asked for: everything the manifests depend on, and nothing that changes later."""

    name: str
    namespace: str
    apis: MachineApis
    version: str  # of Kubernetes: "v1.34.3"
    template_vmid: int | None = None
    template_node: str = ""
    template_tags: tuple[str, ...] = ()
    disk: str = "scsi0"
    count: int = 1
    cores: int = 2
    memory_mib: int = 4096
    disk_gib: int = 20
    full_clone: bool = True
    storage: str = ""
    bridge: str = "vmbr0"
    addresses: tuple[str, ...] = ()
    prefix: int = 24
    gateway: str = ""
    dns_servers: tuple[str, ...] = ()
    allowed_nodes: tuple[str, ...] = ()
    memory_adjustment: int | None = None
    vmids: tuple[int, int] | None = None
    pool: str = ""
    tags: tuple[str, ...] = ()
    bootstrap: str = "kubeadm"  # "kubeadm" | "talos"
    control_plane: str = "kamaji"  # "kamaji" | "kubeadm"
    endpoint: str = ""  # of a control plane on machines
    datastore: str = ""
    credentials: str = ""
    pods: str = "10.243.0.0/16"
    services: str = "10.95.0.0/16"
    network_chart: Mapping[str, Any] = field(default_factory=dict)  # `chart` or `chartRef` of a HelmRelease
    skip_agent: bool = False
    unhealthy_seconds: int = 120
    startup_seconds: int = 900
    labels: Mapping[str, str] = field(default_factory=dict)
    generation: int = 1  # of the machine template: a rolled one is the second

    @property
    def deployment(self) -> str:
        """The name of its MachineDeployment, which the names of all machines begin with."""
        return f"{self.name}-md"

    @property
    def template(self) -> str:
        """The name of its ProxmoxMachineTemplate; a template never changes, so a new one gets a new name."""
        return f"{self.name}-v{self.generation}"

    @property
    def old(self) -> bool:
        """Whether this is the older generation: v1alpha1 of CAPMOX with v1beta1 of Cluster API."""
        return self.apis.generation == "v1alpha1"

    def scaled(self, count: int) -> Order:
        """The same order of so many machines."""
        return replace(self, count=count)

    def rolled(self, *, memory_mib: int) -> Order:
        """The same order with a new template of other memory, which shows in every VM made from it."""
        return replace(self, memory_mib=memory_mib, generation=self.generation + 1)


def manifests(order: Order) -> list[Manifest]:
    """Every object of the order, in the order in which they can be applied, and deleted backwards.

    The Cluster comes after what it refers to: deleted before them it takes them along, as CAPMOX demands.
    """
    return [
        proxmox_cluster(order),
        control_plane(order),
        machine_template(order),
        bootstrap_template(order),
        cluster(order),
        machine_deployment(order),
        health_check(order),
        *([network(order)] if order.network_chart and order.control_plane == "kamaji" else []),
    ]


def cluster(order: Order) -> Manifest:
    """The Cluster, which joins the infrastructure with the control plane."""
    plane = "KamajiControlPlane" if order.control_plane == "kamaji" else "KubeadmControlPlane"
    spec = {
        "clusterNetwork": {"pods": {"cidrBlocks": [order.pods]}, "services": {"cidrBlocks": [order.services]}},
        "infrastructureRef": _refer(order, INFRASTRUCTURE, "ProxmoxCluster", order.name),
        "controlPlaneRef": _refer(order, CONTROL_PLANE, plane, order.name),
    }
    return _object(order, CORE, "Cluster", order.name, spec)


def proxmox_cluster(order: Order) -> Manifest:
    """The ProxmoxCluster: where machines may be, and the addresses they get."""
    spec: Manifest = {
        "dnsServers": list(order.dns_servers),
        "ipv4Config": {"addresses": list(order.addresses), "prefix": order.prefix, "gateway": order.gateway},
    }
    if order.control_plane == "kamaji":
        # the endpoint is filled in by Kamaji's provider, which refuses one that somebody else wrote
        spec["externalManagedControlPlane"] = True
    elif order.endpoint:
        spec["controlPlaneEndpoint"] = {"host": order.endpoint, "port": 6443}
    if order.allowed_nodes:
        spec["allowedNodes"] = list(order.allowed_nodes)
    if order.memory_adjustment is not None:
        spec["schedulerHints"] = {"memoryAdjustment": order.memory_adjustment}
    if order.credentials:
        spec["credentialsRef"] = {"name": order.credentials}
    return _object(order, INFRASTRUCTURE, "ProxmoxCluster", order.name, spec)


def control_plane(order: Order) -> Manifest:
    """The control plane: pods of the management cluster (Kamaji), or machines (kubeadm)."""
    return _kamaji(order) if order.control_plane == "kamaji" else _kubeadm_plane(order)


def _kamaji(order: Order) -> Manifest:
    spec: Manifest = {
        "version": order.version,
        "replicas": 2,
        "addons": {"coreDNS": {}, "kubeProxy": {}},
        "kubelet": {"cgroupfs": "systemd"},
        "network": {"serviceType": "LoadBalancer"},
    }
    if order.datastore:
        spec["dataStoreName"] = order.datastore
    return _object(order, CONTROL_PLANE, "KamajiControlPlane", order.name, spec)


def _kubeadm_plane(order: Order) -> Manifest:
    refer = _refer(order, INFRASTRUCTURE, "ProxmoxMachineTemplate", order.template)
    template = {"infrastructureRef": refer} if order.old else {"spec": {"infrastructureRef": refer}}
    join = _registration(order)
    config = {"initConfiguration": {"nodeRegistration": join}, "joinConfiguration": {"nodeRegistration": join}}
    spec = {"version": order.version, "replicas": 1, "machineTemplate": template, "kubeadmConfigSpec": config}
    return _object(order, CONTROL_PLANE, "KubeadmControlPlane", order.name, spec)


def machine_template(order: Order) -> Manifest:
    """The ProxmoxMachineTemplate: what each VM is cloned from and made into.

    It always tags the VM, so that a config change follows the clone: where nothing differs CAPMOX 0.8 and 0.9 pass
    over every later step and call the stopped VM provisioned (#848).
    """
    network: Manifest = {"default": {"bridge": order.bridge, "model": "virtio"}}
    if not order.old:
        network = {"networkDevices": [{"name": "net0", "bridge": order.bridge, "defaultIPv4": True}]}
    spec: Manifest = {
        "numCores": order.cores,
        "memoryMiB": order.memory_mib,
        "disks": {"bootVolume": {"disk": order.disk, "sizeGb": order.disk_gib}},
        "network": network,
        "tags": list(order.tags or (order.name,)),
        "full": order.full_clone,
    }
    if order.template_tags:
        spec["templateSelector"] = {"matchTags": list(order.template_tags)}
    else:
        spec |= {"sourceNode": order.template_node, "templateID": order.template_vmid}
    if order.storage and order.full_clone:
        spec["storage"] = order.storage
    if order.pool:
        spec["pool"] = order.pool
    if order.vmids:
        spec["vmIDRange"] = {"start": order.vmids[0], "end": order.vmids[1]}
    if order.skip_agent or order.bootstrap == "talos":
        # Talos runs neither the guest agent's shell nor cloud-init's status command
        spec["checks"] = {"skipCloudInitStatus": True, "skipQemuGuestAgent": True}
    inner = {"metadata": {"labels": dict(order.labels)}, "spec": spec} if order.labels else {"spec": spec}
    return _object(order, INFRASTRUCTURE, "ProxmoxMachineTemplate", order.template, {"template": inner})


def bootstrap_template(order: Order) -> Manifest:
    """The template of the bootstrap data: how a machine joins."""
    if order.bootstrap == "talos":
        spec = {"generateType": "worker", "talosVersion": "v1.10"}
        return _object(order, BOOTSTRAP, "TalosConfigTemplate", order.name, {"template": {"spec": spec}})
    join = {"joinConfiguration": {"nodeRegistration": _registration(order)}}
    return _object(order, BOOTSTRAP, "KubeadmConfigTemplate", order.name, {"template": {"spec": join}})


def _registration(order: Order) -> Manifest:
    extra: Any = {"provider-id": PROVIDER_ID}
    if not order.old:
        extra = [{"name": "provider-id", "value": PROVIDER_ID}]
    return {"name": "{{ ds.meta_data.local_hostname }}", "kubeletExtraArgs": extra}


def machine_deployment(order: Order) -> Manifest:
    """The MachineDeployment: how many machines, of which template, and how they are replaced."""
    labels = {CLUSTER_LABEL: order.name, DEPLOYMENT_LABEL: order.deployment}
    kind = "TalosConfigTemplate" if order.bootstrap == "talos" else "KubeadmConfigTemplate"
    inner: Manifest = {
        "clusterName": order.name,
        "version": order.version,
        "bootstrap": {"configRef": _refer(order, BOOTSTRAP, kind, order.name)},
        "infrastructureRef": _refer(order, INFRASTRUCTURE, "ProxmoxMachineTemplate", order.template),
    }
    # One may be away: without a network in the tenant no Node becomes Ready, and a roll would wait for ever.
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    spec: Manifest = {
        "clusterName": order.name,
        "replicas": order.count,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": {**order.labels, **labels}}, "spec": inner},
    }
    if order.old:
        inner |= {"nodeDrainTimeout": f"{DRAIN_SECONDS}s", "nodeVolumeDetachTimeout": f"{DRAIN_SECONDS}s"}
        spec["strategy"] = strategy
    else:
        inner["deletion"] = {"nodeDrainTimeoutSeconds": DRAIN_SECONDS, "nodeVolumeDetachTimeoutSeconds": DRAIN_SECONDS}
        spec["rollout"] = {"strategy": strategy}
    return _object(order, CORE, "MachineDeployment", order.deployment, spec)


def health_check(order: Order) -> Manifest:
    """The MachineHealthCheck: a machine whose Node falls silent is replaced.

    Only silence (Unknown) counts. A Node that says itself that it is not Ready lacks a network in most cases, and
    replacing it would go on for ever.
    """
    chosen = {"matchLabels": {DEPLOYMENT_LABEL: order.deployment}}
    if order.old:
        rows = [{"type": "Ready", "status": "Unknown", "timeout": f"{order.unhealthy_seconds}s"}]
        spec: Manifest = {
            "maxUnhealthy": "100%",
            "nodeStartupTimeout": f"{order.startup_seconds}s",
            "unhealthyConditions": rows,
        }
    else:
        rows = [{"type": "Ready", "status": "Unknown", "timeoutSeconds": order.unhealthy_seconds}]  # type: ignore[dict-item]
        spec = {
            "checks": {"nodeStartupTimeoutSeconds": order.startup_seconds, "unhealthyNodeConditions": rows},
            "remediation": {"triggerIf": {"unhealthyLessThanOrEqualTo": "100%"}},
        }
    return _object(
        order, CORE, "MachineHealthCheck", order.name, {"clusterName": order.name, "selector": chosen} | spec
    )


def network(order: Order) -> Manifest:
    """The HelmRelease that installs Cilium in the new cluster through the kubeconfig Kamaji keeps for it.

    It comes last, so that it goes first: while the new cluster still answers. kube-proxy stays, for the machines are
    outside of this cluster's pod network and reach their API server through its Service only.
    """
    spec: Manifest = {
        **order.network_chart,
        "releaseName": "cilium",
        "targetNamespace": "cozy-cilium",
        "storageNamespace": "cozy-cilium",
        "interval": "5m",
        "timeout": "10m",
        "kubeConfig": {"secretRef": {"name": f"{order.name}-admin-kubeconfig", "key": "super-admin.svc"}},
        "install": {"createNamespace": True, "disableWait": True, "remediation": {"retries": -1}},
        "upgrade": {"remediation": {"retries": -1}},
        "values": {"cilium": {"kubeProxyReplacement": False, "k8sServiceHost": "", "routingMode": "tunnel"}},
    }
    return {
        "apiVersion": "helm.toolkit.fluxcd.io/v2",
        "kind": "HelmRelease",
        "metadata": {"name": f"{order.name}-cilium", "namespace": order.namespace},
        "spec": spec,
    }


def namespace(order: Order) -> Manifest:
    """The namespace of the order; the pods of a Kamaji control plane run in it, so it is not restricted."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": order.namespace}}


def yaml_of(objects: Iterable[Mapping[str, Any]]) -> str:
    """The objects as one YAML text, such as `kubectl apply --server-side -f` takes."""
    import yaml

    plain = [copy.deepcopy(dict(entry)) for entry in objects]  # no anchors for what two of them share
    return "---\n".join(yaml.safe_dump(_unshared(entry), sort_keys=False, allow_unicode=True) for entry in plain)


def _unshared(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _unshared(entry) for key, entry in value.items()}
    return [_unshared(entry) for entry in value] if isinstance(value, list | tuple) else value


def _version(order: Order, group: str, kind: str) -> str:
    """The version to write an object in: contract and generation for Cluster API's and CAPMOX' own, else the newest."""
    if group == CORE:
        return order.apis.core
    if group == BOOTSTRAP and order.apis.core in order.apis.served.get(kind, ()):
        return order.apis.core
    if kind == "KubeadmControlPlane" and order.apis.core in order.apis.served.get(kind, ()):
        return order.apis.core
    return order.apis.version(kind) or order.apis.generation


def _object(order: Order, group: str, kind: str, name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": f"{group}/{_version(order, group, kind)}",
        "kind": kind,
        "metadata": {"name": name, "namespace": order.namespace},
        "spec": spec,
    }


def _refer(order: Order, group: str, kind: str, name: str) -> Manifest:
    """A reference in the shape of the generation: with its version before, by its group alone since."""
    if order.old:
        return {"apiVersion": f"{group}/{_version(order, group, kind)}", "kind": kind, "name": name}
    return {"apiGroup": group, "kind": kind, "name": name}
