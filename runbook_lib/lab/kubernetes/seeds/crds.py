"""CustomResourceDefinitions of a CozyStack cluster: names, versions, Cluster API contract labels.

Schemas are permissive here; a strict one comes from `schemas/` where the runbook applies objects of the kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .objects import Object, Times, condition, thing


@dataclass(frozen=True)
class Row:
    """One CRD. `versions` in order of preference; the first is the stored one, one with a `-` is not served."""

    group: str
    kind: str
    plural: str
    versions: tuple[str, ...]
    cluster: bool = False
    short: tuple[str, ...] = ()
    conversion: str = ""  # service behind the conversion webhook: "namespace/name"
    contracts: Mapping[str, str] | None = None


def _rows(text: str) -> list[Row]:
    """Rows of a table: group, kind, plural, versions (comma), scope, short names (comma)."""
    rows = []
    for line in text.strip().splitlines():
        group, kind, plural, versions, scope, *short = line.split()
        names = tuple(short[0].split(",")) if short else ()
        rows.append(Row(group, kind, plural, tuple(versions.split(",")), scope == "cluster", names))
    return rows


_COMMON = """
helm.toolkit.fluxcd.io HelmRelease helmreleases v2 namespaced hr
source.toolkit.fluxcd.io HelmRepository helmrepositories v1 namespaced helmrepo
source.toolkit.fluxcd.io HelmChart helmcharts v1 namespaced hc
source.toolkit.fluxcd.io OCIRepository ocirepositories v1 namespaced ocirepo
source.toolkit.fluxcd.io GitRepository gitrepositories v1 namespaced gitrepo
source.toolkit.fluxcd.io ExternalArtifact externalartifacts v1 namespaced
source.extensions.fluxcd.io ArtifactGenerator artifactgenerators v1beta1 namespaced ag
kustomize.toolkit.fluxcd.io Kustomization kustomizations v1 namespaced ks
operator.cluster.x-k8s.io CoreProvider coreproviders v1alpha2 namespaced cacp
operator.cluster.x-k8s.io BootstrapProvider bootstrapproviders v1alpha2 namespaced cabp
operator.cluster.x-k8s.io ControlPlaneProvider controlplaneproviders v1alpha2 namespaced cacpp
operator.cluster.x-k8s.io InfrastructureProvider infrastructureproviders v1alpha2 namespaced caip
operator.cluster.x-k8s.io IPAMProvider ipamproviders v1alpha2 namespaced caipamp
operator.cluster.x-k8s.io AddonProvider addonproviders v1alpha2 namespaced caap
operator.cluster.x-k8s.io RuntimeExtensionProvider runtimeextensionproviders v1alpha2 namespaced carep
cilium.io CiliumNetworkPolicy ciliumnetworkpolicies v2 namespaced cnp,ciliumnp
cilium.io CiliumClusterwideNetworkPolicy ciliumclusterwidenetworkpolicies v2 cluster ccnp
cilium.io CiliumNode ciliumnodes v2 cluster cn
cilium.io CiliumEndpoint ciliumendpoints v2 namespaced cep
cilium.io CiliumIdentity ciliumidentities v2 cluster ciliumid
kubeovn.io Subnet subnets v1 cluster subnet
kubeovn.io IP ips v1 cluster
kubeovn.io Vpc vpcs v1 cluster
kubeovn.io Vlan vlans v1 cluster vlan
kubeovn.io ProviderNetwork provider-networks v1 cluster
piraeus.io LinstorCluster linstorclusters v1 cluster
piraeus.io LinstorSatelliteConfiguration linstorsatelliteconfigurations v1 cluster
piraeus.io LinstorSatellite linstorsatellites v1 cluster
piraeus.io LinstorNodeConnection linstornodeconnections v1 cluster
cert-manager.io Certificate certificates v1 namespaced cert,certs
cert-manager.io CertificateRequest certificaterequests v1 namespaced cr,crs
cert-manager.io Issuer issuers v1 namespaced
cert-manager.io ClusterIssuer clusterissuers v1 cluster
metallb.io IPAddressPool ipaddresspools v1beta1 namespaced
metallb.io L2Advertisement l2advertisements v1beta1 namespaced
operator.victoriametrics.com VMCluster vmclusters v1beta1 namespaced
operator.victoriametrics.com VMSingle vmsingles v1beta1 namespaced
operator.victoriametrics.com VMAgent vmagents v1beta1 namespaced
operator.victoriametrics.com VMAlert vmalerts v1beta1 namespaced
operator.victoriametrics.com VMAlertmanager vmalertmanagers v1beta1 namespaced vma
operator.victoriametrics.com VMRule vmrules v1beta1 namespaced
operator.victoriametrics.com VMServiceScrape vmservicescrapes v1beta1 namespaced
operator.victoriametrics.com VMPodScrape vmpodscrapes v1beta1 namespaced
operator.victoriametrics.com VMNodeScrape vmnodescrapes v1beta1 namespaced
operator.victoriametrics.com VMStaticScrape vmstaticscrapes v1beta1 namespaced
operator.victoriametrics.com VLCluster vlclusters v1 namespaced
operator.victoriametrics.com VLogs vlogs v1beta1 namespaced
monitoring.coreos.com ServiceMonitor servicemonitors v1 namespaced smon
monitoring.coreos.com PrometheusRule prometheusrules v1 namespaced promrule
grafana.integreatly.org Grafana grafanas v1beta1 namespaced
grafana.integreatly.org GrafanaDashboard grafanadashboards v1beta1 namespaced
grafana.integreatly.org GrafanaDatasource grafanadatasources v1beta1 namespaced
grafana.integreatly.org GrafanaFolder grafanafolders v1beta1 namespaced
kubevirt.io KubeVirt kubevirts v1,v1alpha3 namespaced kv,kvs
kubevirt.io VirtualMachine virtualmachines v1,v1alpha3 namespaced vm,vms
kubevirt.io VirtualMachineInstance virtualmachineinstances v1,v1alpha3 namespaced vmi,vmis
cdi.kubevirt.io CDI cdis v1beta1 cluster
cdi.kubevirt.io DataVolume datavolumes v1beta1 namespaced dv,dvs
kamaji.clastix.io TenantControlPlane tenantcontrolplanes v1alpha1 namespaced tcp
kamaji.clastix.io DataStore datastores v1alpha1 cluster
postgresql.cnpg.io Cluster clusters v1 namespaced
k8s.cni.cncf.io NetworkAttachmentDefinition network-attachment-definitions v1 namespaced net-attach-def
autoscaling.k8s.io VerticalPodAutoscaler verticalpodautoscalers v1 namespaced vpa
"""

_V1 = """
cozystack.io Package packages v1alpha1 cluster pkg,pkgs
cozystack.io PackageSource packagesources v1alpha1 cluster pks
cozystack.io ApplicationDefinition applicationdefinitions v1alpha1 cluster
cozystack.io Workload workloads v1alpha1 namespaced
cozystack.io WorkloadMonitor workloadmonitors v1alpha1 namespaced
backups.cozystack.io Plan plans v1alpha1 namespaced
backups.cozystack.io BackupJob backupjobs v1alpha1 namespaced
backups.cozystack.io Backup backups v1alpha1 namespaced
backups.cozystack.io BackupClass backupclasses v1alpha1 cluster
backups.cozystack.io RestoreJob restorejobs v1alpha1 namespaced
etcd-operator.cozystack.io EtcdCluster etcdclusters v1alpha2 namespaced
gateway.networking.k8s.io Gateway gateways v1 namespaced gtw
gateway.networking.k8s.io GatewayClass gatewayclasses v1 cluster gc
"""

_V0 = """
cozystack.io CozystackResourceDefinition cozystackresourcedefinitions v1alpha1 cluster
cozystack.io Workload workloads v1alpha1 namespaced
cozystack.io WorkloadMonitor workloadmonitors v1alpha1 namespaced
etcd.aenix.io EtcdCluster etcdclusters v1alpha1 namespaced
"""

_SNAPSHOTS = (
    Row("snapshot.storage.k8s.io", "VolumeSnapshot", "volumesnapshots", ("v1",), short=("vs",)),
    Row("snapshot.storage.k8s.io", "VolumeSnapshotClass", "volumesnapshotclasses", ("v1",), cluster=True),
    Row("snapshot.storage.k8s.io", "VolumeSnapshotContent", "volumesnapshotcontents", ("v1",), cluster=True),
)


def _cluster_api(flavour: str) -> list[Row]:
    """The CRDs that the Cluster API providers bring, with the contracts they declare."""
    raised = flavour == "capi-v1beta2"
    core = ("v1beta2", "v1beta1") if raised else ("v1beta1", "-v1alpha4", "-v1alpha3")
    contracts = {"v1beta1": "v1beta1"} | ({"v1beta2": "v1beta2"} if raised else {})
    service = "cozy-cluster-api/capi-webhook-service"
    group = "cluster.x-k8s.io"
    rows = [
        Row(group, kind, plural, core, cluster, short, service, contracts)
        for kind, plural, cluster, short in (
            ("Cluster", "clusters", False, ("cl",)),
            ("ClusterClass", "clusterclasses", False, ("cc",)),
            ("Machine", "machines", False, ("ma",)),
            ("MachineSet", "machinesets", False, ("ms",)),
            ("MachineDeployment", "machinedeployments", False, ("md",)),
            ("MachineHealthCheck", "machinehealthchecks", False, ("mhc", "mhcs")),
            ("MachinePool", "machinepools", False, ("mp",)),
        )
    ]
    claims = ("v1beta2", "v1beta1") if raised else ("v1beta1", "v1alpha1")
    rows += [
        Row("ipam." + group, "IPAddressClaim", "ipaddressclaims", claims, contracts=contracts, conversion=service),
        Row("ipam." + group, "IPAddress", "ipaddresses", claims, contracts=contracts, conversion=service),
    ]
    kubeadm = "cozy-cluster-api/capi-kubeadm-bootstrap-webhook-service"
    rows += [
        Row("bootstrap." + group, kind, plural, core, conversion=kubeadm, contracts=contracts)
        for kind, plural in (("KubeadmConfig", "kubeadmconfigs"), ("KubeadmConfigTemplate", "kubeadmconfigtemplates"))
    ]
    if flavour != "cozystack-0.41":
        rows += [
            Row("bootstrap." + group, kind, plural, ("v1alpha3",), contracts={"v1beta1": "v1alpha3"})
            for kind, plural in (("TalosConfig", "talosconfigs"), ("TalosConfigTemplate", "talosconfigtemplates"))
        ]
    kamaji = "v1alpha2" if raised else "v1alpha1"
    kamaji_contracts = {"v1beta2": kamaji} if raised else {"v1beta1": kamaji}
    rows += [
        Row("controlplane." + group, kind, plural, (kamaji,), short=short, contracts=kamaji_contracts)
        for kind, plural, short in (
            ("KamajiControlPlane", "kamajicontrolplanes", ("ktcp",)),
            ("KamajiControlPlaneTemplate", "kamajicontrolplanetemplates", ("ktcpt",)),
        )
    ]
    rows += [
        Row("infrastructure." + group, kind, plural, ("v1alpha1",), contracts={"v1beta1": "v1alpha1"})
        for kind, plural in (
            ("KubevirtCluster", "kubevirtclusters"),
            ("KubevirtMachine", "kubevirtmachines"),
            ("KubevirtMachineTemplate", "kubevirtmachinetemplates"),
        )
    ]
    return rows


_PROVIDERS = {
    "cluster.x-k8s.io": "cluster-api",
    "ipam.cluster.x-k8s.io": "cluster-api",
    "bootstrap.cluster.x-k8s.io": "bootstrap-kubeadm",
    "controlplane.cluster.x-k8s.io": "control-plane-kamaji",
    "infrastructure.cluster.x-k8s.io": "infrastructure-kubevirt",
}


def definitions(flavour: str, times: Times, ca_bundles: Mapping[str, str]) -> list[Object]:
    """Every CRD of the flavour, established. `ca_bundles`: base64 by "namespace/service" of a conversion webhook."""
    rows = (
        _rows(_COMMON) + _rows(_V0 if flavour == "cozystack-0.41" else _V1) + list(_SNAPSHOTS) + _cluster_api(flavour)
    )
    return [crd(row, times, ca_bundles) for row in rows]


def crd(row: Row, times: Times, ca_bundles: Mapping[str, str]) -> Object:
    """One established CRD with a permissive schema."""
    names = {
        "kind": row.kind,
        "listKind": f"{row.kind}List",
        "plural": row.plural,
        "singular": row.kind.lower(),
        **({"shortNames": list(row.short)} if row.short else {}),
    }
    labels = {f"cluster.x-k8s.io/{contract}": version for contract, version in (row.contracts or {}).items()}
    if row.group in _PROVIDERS:
        labels["cluster.x-k8s.io/provider"] = _PROVIDERS[row.group]
        if row.plural.startswith("talos"):
            labels["cluster.x-k8s.io/provider"] = "bootstrap-talos"
    annotations = {"api-approved.kubernetes.io": "unapproved"} if row.group.endswith(".k8s.io") else None
    if row.group == "snapshot.storage.k8s.io":
        annotations = {"api-approved.kubernetes.io": "https://github.com/kubernetes-csi/external-snapshotter/pull/814"}
    return thing(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        f"{row.plural}.{row.group}",
        created=times.born,
        labels=labels,
        annotations=annotations,
        generation=1,
        spec={
            "group": row.group,
            "names": names,
            "scope": "Cluster" if row.cluster else "Namespaced",
            "versions": [_version(version, first=position == 0) for position, version in enumerate(row.versions)],
            "conversion": _conversion(row.conversion, ca_bundles),
        },
        status={
            "acceptedNames": names,
            "conditions": [
                condition("NamesAccepted", True, "NoConflicts", "no conflicts found", at=times.born),
                condition(
                    "Established", True, "InitialNamesAccepted", "the initial names have been accepted", at=times.born
                ),
            ],
            "storedVersions": [row.versions[0]],
        },
    )


def _version(version: str, *, first: bool) -> Object:
    open_schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    ready = '.status.conditions[?(@.type=="Ready")]'
    return {
        "name": version.lstrip("-"),
        "served": not version.startswith("-"),
        "storage": first,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {"spec": open_schema, "status": open_schema},
            }
        },
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {"name": "Ready", "type": "string", "jsonPath": f"{ready}.status"},
            {"name": "Status", "type": "string", "jsonPath": f"{ready}.message"},
        ],
    }


def _conversion(service: str, ca_bundles: Mapping[str, str]) -> Object:
    if not service:
        return {"strategy": "None"}
    namespace, name = service.split("/")
    client = {"service": {"namespace": namespace, "name": name, "path": "/convert", "port": 443}}
    if service in ca_bundles:
        client["caBundle"] = ca_bundles[service]  # type: ignore[assignment]
    return {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1", "v1beta1"]}}
