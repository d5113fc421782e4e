"""Tenants, network, storage and monitoring objects of a CozyStack cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..charts import tenant
from .components import CHILD_TENANT, ROOT_TENANT
from .objects import Object, Times, condition, thing
from .platform import NETWORKING, helm_release
from .workloads import Body, Machine, namespace

_PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
_ROOT = "tenant-root"
_CHILD = "tenant-shop"


def namespaces(rows: Mapping[str, bool], times: Times) -> list[Object]:
    """System namespaces (name → privileged) and those every cluster has."""
    plain = [namespace(name, times) for name in ("default", "kube-node-lease", "kube-public", "kube-system")]
    return plain + [
        namespace(name, times, {"cozystack.io/system": "true", **(_PRIVILEGED if privileged else {})})
        for name, privileged in sorted(rows.items())
        if name != "kube-system"
    ]


def tenants(body: Body, *, v1: bool) -> None:
    """The root tenant with its services, and one tenant below it."""
    times, version = body.times, body.versions["cozystack"]
    services = {f"namespace.cozystack.io/{name}": _ROOT for name in ("etcd", "ingress", "monitoring")}
    services["namespace.cozystack.io/host"] = "cozy.example.org"
    body.add(namespace(_ROOT, times, {f"tenant.cozystack.io/{_ROOT}": "", **services}))
    ancestry = {f"tenant.cozystack.io/{_ROOT}": "", f"tenant.cozystack.io/{_CHILD}": ""}
    body.add(namespace(_CHILD, times, {**ancestry, **services}))
    for part in ROOT_TENANT:
        body.workload(_ROOT, part)
    for part in CHILD_TENANT:
        body.workload(_CHILD, part, labels=_application("Postgres", "orders"))
    rows = (
        ("tenant-root", _ROOT, "Tenant", "root", "tenant", ()),
        ("etcd", _ROOT, "Etcd", "etcd", "etcd", (("cozy-etcd-operator", "etcd-operator"), (_ROOT, "tenant-root"))),
        ("ingress", _ROOT, "Ingress", "ingress", "ingress", ((_ROOT, "tenant-root"),)),
        (
            "monitoring",
            _ROOT,
            "Monitoring",
            "monitoring",
            "monitoring",
            (("cozy-victoria-metrics-operator", "victoria-metrics-operator"), (_ROOT, "tenant-root")),
        ),
        ("tenant-shop", _ROOT, "Tenant", "shop", "tenant", ((_ROOT, "tenant-root"),)),
        (
            "postgres-orders",
            _CHILD,
            "Postgres",
            "orders",
            "postgres",
            (("cozy-postgres-operator", "postgres-operator"), (_ROOT, "tenant-shop")),
        ),
    )
    for name, space, kind, application, chart, needs in rows:
        labels = {**_application(kind, application), "internal.cozystack.io/tenantmodule": "true"}
        body.add(
            helm_release(
                name,
                space,
                times,
                chart=chart,
                needs=needs,
                labels=labels,
                version=version,
                package=f"cozystack.{chart}-application" if v1 else "",
            )
        )
    body.add(*_policies(times), *_workload_monitors(times))


def _application(kind: str, name: str) -> dict[str, str]:
    prefix = "apps.cozystack.io/application"
    return {f"{prefix}.group": "apps.cozystack.io", f"{prefix}.kind": kind, f"{prefix}.name": name}


def accounts(times: Times) -> list[Object]:
    """The platform's own account, which may do everything, as its installer's chart has it."""
    group, name, space = "rbac.authorization.k8s.io", "cozystack", "cozy-system"
    return [
        thing("v1", "ServiceAccount", name, space, created=times.born),
        thing(
            f"{group}/v1",
            "ClusterRoleBinding",
            name,
            created=times.born,
            roleRef={"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": space}],
        ),
    ]


def _workload_monitors(times: Times) -> list[Object]:
    return [
        thing(
            "cozystack.io/v1alpha1",
            "WorkloadMonitor",
            name,
            space,
            created=times.born,
            spec={
                "kind": kind,
                "type": kind,
                "minReplicas": minimum,
                "replicas": replicas,
                "selector": {},
                "version": "1",
            },
            status={"operational": True, "availableReplicas": replicas, "observedReplicas": replicas},
        )
        for name, space, kind, replicas, minimum in (
            ("etcd", _ROOT, "etcd", 3, 2),
            ("root-ingress-controller", _ROOT, "controller", 2, 1),
            ("postgres-orders", _CHILD, "postgres", 2, 1),
        )
    ]


def _policies(times: Times) -> list[Object]:
    """CozyStack's tenant policies: who is let in, and where a tenant's pods may go."""
    made = [
        *tenant.policies(_ROOT, etcd=True, ingress=True, monitoring=True),
        *tenant.policies(_CHILD),
    ]
    items = [
        thing(
            item["apiVersion"],
            item["kind"],
            item["metadata"]["name"],
            item["metadata"].get("namespace", ""),
            created=times.born,
            generation=1,
            spec=item["spec"],
        )
        for item in made
    ]
    ports = [{"port": str(port), "protocol": "TCP"} for port in (2379, 2380, 3367, 7946, 10250, 10257, 10259)]
    items.append(
        thing(
            "cilium.io/v2",
            "CiliumClusterwideNetworkPolicy",
            "restrict-system-components",
            created=times.born,
            generation=1,
            spec={
                "nodeSelector": {},
                "ingressDeny": [{"fromEntities": ["world"], "toPorts": [{"ports": ports}]}],
                "ingress": [{"fromEntities": ["world", "host", "cluster"]}],  # a denial alone would close the node
            },
        )
    )
    return items


CILIUM = {
    "auto-direct-node-routes": "false",
    "bpf-lb-algorithm": "maglev",
    "bpf-lb-external-clusterip": "false",
    "cluster-id": "0",
    "cluster-name": "default",
    "cni-chaining-mode": "generic-veth",
    "cni-exclusive": "true",
    "custom-cni-conf": "true",
    "enable-host-firewall": "true",
    "enable-identity-mark": "false",
    "enable-ipv4": "true",
    "enable-ipv4-masquerade": "false",
    "enable-ipv6": "false",
    "enable-l7-proxy": "true",
    "enable-policy": "default",
    "enable-sctp": "true",
    "identity-allocation-mode": "crd",
    "ipam": "kubernetes",
    "kube-proxy-replacement": "true",
    "operator-api-serve-addr": "127.0.0.1:9234",
    "policy-audit-mode": "false",
    "routing-mode": "native",
}
"""What Cilium's chart writes of CozyStack's values. Hubble is off there, and then no key names it."""


def network(machines: Iterable[Machine], times: Times, api_vip: str) -> list[Object]:
    """Kube-OVN's subnets and VPC, Cilium's nodes, MetalLB's pool, the API server's Service."""
    rows = (
        ("ovn-default", NETWORKING["podCIDR"], NETWORKING["podGateway"]),
        ("join", NETWORKING["joinCIDR"], "100.64.0.1"),
    )
    items = [
        thing(
            "kubeovn.io/v1",
            "Subnet",
            name,
            created=times.born,
            generation=1,
            spec={
                "cidrBlock": cidr,
                "gateway": gateway,
                "default": name == "ovn-default",
                "excludeIps": [gateway],
                "gatewayType": "distributed",
                "natOutgoing": name == "ovn-default",
                "protocol": "IPv4",
                "provider": "ovn",
                "vpc": "ovn-cluster",
            },
            status={
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True",
                        "reason": "ResetLogicalSwitchAclSuccess",
                        "lastTransitionTime": times.settled,
                    }
                ]
            },
        )
        for name, cidr, gateway in rows
    ]
    items.append(
        thing(
            "kubeovn.io/v1",
            "Vpc",
            "ovn-cluster",
            created=times.born,
            generation=1,
            spec={},
            status={"default": True, "standby": True, "subnets": [name for name, *_ in rows]},
        )
    )
    for machine in machines:
        addresses = [{"ip": machine.address, "type": "InternalIP"}]
        items.append(
            thing(
                "cilium.io/v2", "CiliumNode", machine.name, created=times.born, spec={"addresses": addresses}, status={}
            )
        )
    ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]
    spec = {
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "type": "ClusterIP",
        "ports": ports,
        "sessionAffinity": "None",
    }
    labels = {"component": "apiserver", "provider": "kubernetes"}
    items.append(
        thing(
            "v1",
            "Service",
            "kubernetes",
            "default",
            created=times.born,
            labels=labels,
            spec=spec,
            status={"loadBalancer": {}},
        )
    )
    items += _api_endpoints(machines, times)
    pool = {"addresses": ["10.0.0.200-10.0.0.220"], "autoAssign": True, "avoidBuggyIPs": False}
    items.append(
        thing(
            "metallb.io/v1beta1",
            "IPAddressPool",
            "cozystack",
            "cozy-metallb",
            created=times.born,
            generation=1,
            spec=pool,
        )
    )
    items.append(thing("v1", "ConfigMap", "cilium-config", "cozy-cilium", created=times.born, data=dict(CILIUM)))
    ranges = [NETWORKING["serviceCIDR"]]
    items.append(
        thing(
            "networking.k8s.io/v1",
            "ServiceCIDR",
            "kubernetes",
            created=times.born,
            spec={"cidrs": ranges},
            status={"conditions": [condition("Ready", True, "", "Kubernetes Service CIDR is ready", at=times.born)]},
        )
    )
    kubeadm = {"api-server-endpoint": f"https://{api_vip}:6443"}
    items.append(thing("v1", "ConfigMap", "cluster-info", "kube-public", created=times.born, data=kubeadm))
    return items


def _api_endpoints(machines: Iterable[Machine], times: Times) -> list[Object]:
    addresses = [machine.address for machine in machines if machine.role == "control-plane"]
    port = {"name": "https", "port": 6443, "protocol": "TCP"}
    slice_ = thing(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        "kubernetes",
        "default",
        created=times.born,
        labels={"kubernetes.io/service-name": "kubernetes"},
    )
    slice_ |= {
        "addressType": "IPv4",
        "ports": [port],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
    }
    subset = {"addresses": [{"ip": address} for address in addresses], "ports": [port]}
    return [slice_, thing("v1", "Endpoints", "kubernetes", "default", created=times.born, subsets=[subset])]


def storage(machines: Iterable[Machine], times: Times) -> list[Object]:
    """The classes CozyStack's documentation prescribes, LINSTOR's objects, the snapshot class."""
    driver = "linstor.csi.linbit.com"
    items = [
        thing(
            "storage.k8s.io/v1",
            "StorageClass",
            name,
            created=times.born,
            annotations={"storageclass.kubernetes.io/is-default-class": "true"} if default else None,
            provisioner=driver,
            parameters={"linstor.csi.linbit.com/storagePool": "data", **parameters},
            reclaimPolicy="Delete",
            volumeBindingMode=binding,
            allowVolumeExpansion=True,
        )
        for name, default, binding, parameters in (
            (
                "local",
                True,
                "WaitForFirstConsumer",
                {f"{driver}/layerList": "storage", f"{driver}/allowRemoteVolumeAccess": "false"},
            ),
            ("replicated", False, "Immediate", {f"{driver}/autoPlace": "3", f"{driver}/layerList": "drbd storage"}),
        )
    ]
    items.append(
        thing(
            "storage.k8s.io/v1",
            "CSIDriver",
            driver,
            created=times.born,
            spec={
                "attachRequired": True,
                "podInfoOnMount": True,
                "storageCapacity": True,
                "fsGroupPolicy": "ReadWriteOnceWithFSType",
                "volumeLifecycleModes": ["Persistent"],
            },
        )
    )
    items.append(
        thing(
            "snapshot.storage.k8s.io/v1",
            "VolumeSnapshotClass",
            "linstor-snapshots",
            created=times.born,
            annotations={"snapshot.storage.kubernetes.io/is-default-class": "true"},
            driver=driver,
            deletionPolicy="Delete",
        )
    )
    available = [condition("Available", True, "AsExpected", "All satellites are online", at=times.settled)]
    items.append(
        thing(
            "piraeus.io/v1",
            "LinstorCluster",
            "linstorcluster",
            created=times.born,
            generation=1,
            spec={},
            status={"conditions": list(available)},
        )
    )
    items += [
        thing(
            "piraeus.io/v1",
            "LinstorSatellite",
            machine.name,
            created=times.born,
            generation=1,
            spec={"clusterRef": {"name": "linstorcluster"}},
            status={"conditions": list(available)},
        )
        for machine in machines
    ]
    return items


def monitoring(times: Times) -> list[Object]:
    """VictoriaMetrics, VictoriaLogs and Grafana as their operators report them. There is no Prometheus."""
    group = "operator.victoriametrics.com"
    operational = {"updateStatus": "operational", "observedGeneration": 1}
    retention = (("shortterm", "3d", "15s"), ("longterm", "14d", "5m"))
    items = [
        thing(
            f"{group}/v1beta1",
            "VMCluster",
            name,
            _ROOT,
            created=times.born,
            generation=1,
            spec={
                "replicationFactor": 2,
                "retentionPeriod": period,
                "vmstorage": {"replicaCount": 2},
                "vmselect": {"replicaCount": 2, "extraArgs": {"dedup.minScrapeInterval": interval}},
                "vminsert": {"replicaCount": 2},
            },
            status={**operational, "clusterStatus": "operational"},
        )
        for name, period, interval in retention
    ]
    writes = [{"url": f"http://vminsert-{name}.{_ROOT}.svc:8480/insert/0/prometheus"} for name, *_ in retention]
    vmagent = {
        "selectAllByDefault": True,
        "scrapeInterval": "30s",
        "remoteWrite": writes,
        "additionalScrapeConfigs": {"name": "additional-scrape-configs", "key": "prometheus-additional.yaml"},
    }
    rows = (
        ("v1beta1", "VMAgent", "vmagent", "cozy-monitoring", vmagent),
        (
            "v1beta1",
            "VMAlert",
            "vmalert-shortterm",
            _ROOT,
            {
                "selectAllByDefault": True,
                "evaluationInterval": "15s",
                "datasource": {"url": "http://vmselect-shortterm.tenant-root.svc:8481/select/0/prometheus"},
            },
        ),
        ("v1beta1", "VMAlertmanager", "alertmanager", _ROOT, {"replicaCount": 2}),
        ("v1", "VLCluster", "generic", _ROOT, {"vlinsert": {"replicaCount": 1}, "vlstorage": {"retentionPeriod": "1"}}),
    )
    items += [
        thing(
            f"{group}/{version}",
            kind,
            name,
            space,
            created=times.born,
            generation=1,
            spec=spec,
            status=dict(operational),
        )
        for version, kind, name, space, spec in rows
    ]
    grafana = "grafana.integreatly.org/v1beta1"
    items.append(
        thing(
            grafana,
            "Grafana",
            "grafana",
            _ROOT,
            created=times.born,
            generation=1,
            labels={"dashboards": "grafana"},
            spec={"version": "11.6.15", "deployment": {"spec": {"replicas": 2}}},
            status={
                "stage": "complete",
                "stageStatus": "success",
                "version": "11.6.15",
                "adminUrl": f"http://grafana-service.{_ROOT}:3000",
            },
        )
    )
    selector = {"instanceSelector": {"matchLabels": {"dashboards": "grafana"}}}
    datasource = {
        "name": "vm-shortterm",
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://vmselect-shortterm.{_ROOT}.svc:8481/select/0/prometheus/",
    }
    items.append(
        thing(
            grafana,
            "GrafanaDatasource",
            "vm-shortterm",
            _ROOT,
            created=times.born,
            generation=1,
            spec={**selector, "datasource": datasource},
            status={},
        )
    )
    items += [
        thing(
            grafana,
            "GrafanaDashboard",
            name,
            "cozy-monitoring",
            created=times.born,
            generation=1,
            spec={
                **selector,
                "folder": folder,
                "url": f"http://grafana-dashboards.cozy-grafana-operator.svc/{folder}/{name}.json",
            },
            status={"hash": name},
        )
        for name, folder in (("nodes", "main"), ("flux-cluster", "flux"), ("kubeovn", "kubevirt"))
    ]
    rule = {
        "alert": "HelmReleaseNotReady",
        "expr": 'gotk_resource_info{customresource_kind="HelmRelease", ready!="True"} == 1',
        "for": "15m",
    }
    items.append(
        thing(
            f"{group}/v1beta1",
            "VMRule",
            "alerts-flux",
            "cozy-monitoring",
            created=times.born,
            generation=1,
            spec={"groups": [{"name": "flux", "rules": [rule]}]},
            status=dict(operational),
        )
    )
    return items
