"""Strict schemas: what the real CRDs of the providers refuse, the lab refuses with the real answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes import crd, seeds, strict
from runbook_lib.lab.kubernetes.cluster import Cluster, Options
from runbook_lib.lab.kubernetes.schema import Kind
from runbook_lib.lab.kubernetes.status import ApiError

Json = dict[str, Any]
# Every custom kind that the runbook reads, writes or explains, by group and version.
TOUCHED = {
    "cluster.x-k8s.io/v1beta1": "Cluster Machine MachineSet MachineDeployment MachineHealthCheck",
    "cluster.x-k8s.io/v1beta2": "Cluster Machine MachineSet MachineDeployment MachineHealthCheck",
    "bootstrap.cluster.x-k8s.io/v1beta1": "KubeadmConfig KubeadmConfigTemplate",
    "bootstrap.cluster.x-k8s.io/v1beta2": "KubeadmConfig KubeadmConfigTemplate",
    "bootstrap.cluster.x-k8s.io/v1alpha3": "TalosConfig TalosConfigTemplate",
    "controlplane.cluster.x-k8s.io/v1alpha1": "KamajiControlPlane KamajiControlPlaneTemplate",
    "controlplane.cluster.x-k8s.io/v1alpha2": "KamajiControlPlane KamajiControlPlaneTemplate",
    "controlplane.cluster.x-k8s.io/v1beta1": "KubeadmControlPlane",
    "controlplane.cluster.x-k8s.io/v1beta2": "KubeadmControlPlane",
    "infrastructure.cluster.x-k8s.io/v1alpha1":
        "ProxmoxCluster ProxmoxClusterTemplate ProxmoxMachine ProxmoxMachineTemplate",
    "infrastructure.cluster.x-k8s.io/v1alpha2":
        "ProxmoxCluster ProxmoxClusterTemplate ProxmoxMachine ProxmoxMachineTemplate",
    "operator.cluster.x-k8s.io/v1alpha2":
        "CoreProvider BootstrapProvider ControlPlaneProvider InfrastructureProvider IPAMProvider AddonProvider "
        "RuntimeExtensionProvider",
    "ipam.cluster.x-k8s.io/v1alpha2": "InClusterIPPool GlobalInClusterIPPool",
    "ipam.cluster.x-k8s.io/v1beta1": "IPAddress IPAddressClaim",
    "ipam.cluster.x-k8s.io/v1beta2": "IPAddress IPAddressClaim",
    "kamaji.clastix.io/v1alpha1": "TenantControlPlane DataStore",
    "helm.toolkit.fluxcd.io/v2": "HelmRelease",
    "source.toolkit.fluxcd.io/v1": "HelmRepository OCIRepository GitRepository HelmChart ExternalArtifact",
    "source.extensions.fluxcd.io/v1beta1": "ArtifactGenerator",
    "kustomize.toolkit.fluxcd.io/v1": "Kustomization",
    "cozystack.io/v1alpha1": "Package PackageSource ApplicationDefinition WorkloadMonitor",
    "backups.cozystack.io/v1alpha1": "Plan BackupJob Backup BackupClass RestoreJob",
    "cilium.io/v2": "CiliumNetworkPolicy CiliumClusterwideNetworkPolicy",
    "kubeovn.io/v1": "Subnet IP Vpc Vlan ProviderNetwork",
    "snapshot.storage.k8s.io/v1": "VolumeSnapshot VolumeSnapshotClass VolumeSnapshotContent",
    "operator.victoriametrics.com/v1beta1":
        "VMAgent VMCluster VMSingle VMAlert VMAlertmanager VMRule VMServiceScrape VMPodScrape VMNodeScrape "
        "VMStaticScrape VLogs",
    "operator.victoriametrics.com/v1": "VLCluster",
    "grafana.integreatly.org/v1beta1": "Grafana GrafanaDashboard GrafanaDatasource GrafanaFolder",
    "monitoring.coreos.com/v1": "ServiceMonitor PrometheusRule",
    "cert-manager.io/v1": "Certificate CertificateRequest Issuer ClusterIssuer",
    "metallb.io/v1beta1": "IPAddressPool L2Advertisement",
}  # fmt: skip
INFRA = "infrastructure.cluster.x-k8s.io"
DISKS = {"bootVolume": {"disk": "scsi0", "sizeGb": 20}}
CLUSTER: Json = {
    "ipv4Config": {"addresses": ["10.0.0.150-10.0.0.180"], "prefix": 24, "gateway": "10.0.0.1"},
    "dnsServers": ["10.0.0.1"],
}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """A cluster with the Proxmox provider's CRDs, both versions."""
    found = Cluster()
    versions = ["v1alpha2", "v1alpha1"]
    found.load(
        [
            strict.definition(INFRA, "ProxmoxCluster", "proxmoxclusters", versions),
            strict.definition(INFRA, "ProxmoxMachineTemplate", "proxmoxmachinetemplates", versions),
        ]
    )
    return found


def create(cluster: Cluster, kind: str, version: str, spec: Json, validation: str = "Warn") -> Json:
    """The object as the API server would keep it."""
    shape = cluster.registry.by_gvk[(f"{INFRA}/{version}", kind)]
    body = {"apiVersion": f"{INFRA}/{version}", "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    return cluster.create(shape, "default", body, Options(dry_run=True, validation=validation))


@pytest.mark.parametrize(
    ("kind", "version", "spec", "said"),
    [
        ("ProxmoxCluster", "v1alpha1", {"server": "pve1", "dnsServers": ["1.1.1.1"]}, "at least one ip config"),
        ("ProxmoxCluster", "v1alpha1", {"ipv4Config": CLUSTER["ipv4Config"]}, "spec.dnsServers: Required value"),
        ("ProxmoxCluster", "v1alpha1", CLUSTER | {"dnsServers": []}, "should have at least 1 items"),
        ("ProxmoxCluster", "v1alpha1", CLUSTER | {"controlPlaneEndpoint": {"host": "a", "port": 0}}, "within 1-65535"),
        (
            "ProxmoxCluster", "v1alpha2", CLUSTER | {"ipv4Config": {"addresses": ["10.0.0.1"], "prefix": 24}},
            "spec.ipv4Config.gateway: Required value",
        ),
        ("ProxmoxMachineTemplate", "v1alpha2", {"template": {"spec": {}}}, "template.spec.network: Required value"),
        ("ProxmoxMachineTemplate", "v1alpha2", {"template": {"spec": {"network": {}}}}, "must define either"),
        ("ProxmoxMachineTemplate", "v1alpha1", {"template": {"spec": {"memoryMiB": 4097}}}, "multiple of 8"),
        ("ProxmoxMachineTemplate", "v1alpha1", {"template": {"spec": {"format": "iso"}}}, "supported values"),
        (
            "ProxmoxMachineTemplate", "v1alpha1", {"template": {"spec": {"full": False, "storage": "s"}}},
            "Must set full=true when specifying storage",
        ),
        (
            "ProxmoxMachineTemplate", "v1alpha1",
            {"template": {"spec": {"disks": {"bootVolume": {"disk": "scsi0", "sizeGb": 4}}}}},
            "should be greater than or equal to 5",
        ),
    ],
)  # fmt: skip
def test_wrong_objects_of_the_provider_are_refused(
    cluster: Cluster, kind: str, version: str, spec: Json, said: str
) -> None:  # fmt: skip
    """Each is a 422 that names the field."""
    with pytest.raises(ApiError) as refused:
        create(cluster, kind, version, spec)
    assert refused.value.code == 422
    assert said in refused.value.message


def test_fields_no_release_has_are_refused_when_asked(cluster: Cluster) -> None:
    """`server` and `nodeName` are unknown: a warning, or a 400 with fieldValidation=Strict."""
    with pytest.raises(ApiError, match=r'unknown field "spec\.nodeName", unknown field "spec\.server"|unknown field'):
        create(cluster, "ProxmoxCluster", "v1alpha1", CLUSTER | {"server": "pve1", "nodeName": "n"}, "Strict")
    kept = create(cluster, "ProxmoxCluster", "v1alpha1", CLUSTER | {"server": "pve1"})
    assert "server" not in kept["spec"]


def test_a_version_no_release_has_is_not_served(cluster: Cluster) -> None:
    """`infrastructure.cluster.x-k8s.io/v1beta1` is not there at all."""
    assert (f"{INFRA}/v1beta1", "ProxmoxCluster") not in cluster.registry.by_gvk


def test_right_objects_of_the_provider_are_taken(cluster: Cluster) -> None:
    """What the provider's own templates say passes in both versions, with defaults filled in."""
    made = create(cluster, "ProxmoxCluster", "v1alpha2", CLUSTER | {"externalManagedControlPlane": True})
    assert made["spec"]["ipv4Config"]["metric"] == 100
    network = {"networkDevices": [{"bridge": "vmbr0"}]}
    spec = {"sourceNode": "pve1", "templateID": 9000, "disks": DISKS, "network": network, "memoryMiB": 4096}
    template = create(cluster, "ProxmoxMachineTemplate", "v1alpha2", {"template": {"spec": spec}})
    device = template["spec"]["template"]["spec"]["network"]["networkDevices"][0]
    assert (device["name"], device["model"]) == ("net0", "virtio")


@pytest.mark.parametrize("flavour", seeds.FLAVOURS)
def test_what_the_lab_seeds_fits_its_own_schemas(flavour: str) -> None:
    """No seeded object holds a field or value its CRD would refuse."""
    section = dict(scenario.load("healthy").kubernetes) | {"flavour": flavour}
    for obj in seeds.cozystack(section, now=time.time()):
        group, _, version = obj["apiVersion"].rpartition("/")
        schema = strict.schema(group, version, obj["kind"])
        if schema is not None:
            custom = {"schema": {"openAPIV3Schema": schema}}
            kind = Kind(group, version, obj["kind"], "rows", True, "", custom=custom)
            kept, unknown = crd.prune(kind, obj)
            assert not unknown and not crd.validate(kind, crd.default(kind, kept)), obj["metadata"]["name"]


@pytest.mark.parametrize(("group", "version", "kind"), strict.kinds())
def test_every_schema_is_structural(group: str, version: str, kind: str) -> None:
    """An API server would accept each schema in a CRD."""
    definition = strict.definition(group, kind, f"{kind.lower()}s", [version])
    definition["metadata"]["annotations"] = {"api-approved.kubernetes.io": "unapproved"}
    assert crd.definition_errors(definition) == []


def test_definitions_of_a_folder_are_read(tmp_path: Path) -> None:
    """CRDs of a folder the user names are found in any YAML file, templates and other kinds are passed over."""
    definition = strict.definition("ex.io", "Thing", "things", ["v1"])
    (tmp_path / "crds").mkdir()
    (tmp_path / "crds" / "a.yaml").write_text(yaml.safe_dump_all([{"kind": "Secret"}, definition]))
    (tmp_path / "chart.yaml").write_text("{{- if .Values.x }}\na: b\n{{- end }}\n")
    assert [row["metadata"]["name"] for row in crd.read_folder(tmp_path)] == ["things.ex.io"]


def test_every_kind_the_runbook_touches_has_a_strict_schema() -> None:
    """The list of kinds above is the list of schemas: no more, no fewer."""
    wanted = {(*place.split("/"), kind) for place, kinds in TOUCHED.items() for kind in kinds.split()}
    assert set(strict.kinds()) == wanted


PVC, CONTENT = {"persistentVolumeClaimName": "a"}, {"volumeSnapshotContentName": "b"}
CONTROL_PLANE: Json = {
    "controlPlane": {"service": {"serviceType": "ClusterIP"}}, "kubernetes": {"version": "v1.33.0", "kubelet": {}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "spec", "said"),
    [
        ("cozystack.io/v1alpha1/PackageSource", {"sourceRef": {"kind": "Bucket", "name": "a", "namespace": "b"}},
         "spec.sourceRef.kind: Unsupported value"),
        ("cozystack.io/v1alpha1/PackageSource", {"variants": [{"name": "a", "components": [{"name": "c"}]}]},
         "spec.variants[0].components[0].path: Required value"),
        ("kubeovn.io/v1/Subnet", {"protocol": "IPX"}, "spec.protocol: Unsupported value"),
        ("kubeovn.io/v1/Subnet", {"mtu": 10}, "greater than or equal to 68"),
        ("kubeovn.io/v1/ProviderNetwork", {"defaultInterface": "an interface"}, "spec.defaultInterface in body"),
        ("operator.victoriametrics.com/v1beta1/VMAgent", {}, "spec.remoteWrite: Required value"),
        ("operator.victoriametrics.com/v1beta1/VMAgent", {"remoteWrite": [{}]}, "spec.remoteWrite[0].url: Required"),
        ("operator.victoriametrics.com/v1beta1/VMCluster", {"retentionPeriod": "3 days"}, "spec.retentionPeriod"),
        ("operator.victoriametrics.com/v1beta1/VMCluster", {"vmselect": {"logLevel": "LOUD"}}, "Unsupported value"),
        ("operator.victoriametrics.com/v1beta1/VMAlert", {}, "spec.datasource: Required value"),
        ("operator.victoriametrics.com/v1beta1/VMAlertmanager", {"retention": "x"}, "spec.retention in body"),
        ("operator.victoriametrics.com/v1/VLCluster", {"vlstorage": {"retentionPeriod": "1y1"}}, "retentionPeriod"),
        ("kamaji.clastix.io/v1alpha1/TenantControlPlane", {"kubernetes": {}}, "spec.controlPlane: Required value"),
        ("kamaji.clastix.io/v1alpha1/TenantControlPlane",
         CONTROL_PLANE | {"networkProfile": {"advertiseAddress": "api.example"}}, "must be a valid IP address"),
        ("kamaji.clastix.io/v1alpha1/TenantControlPlane",
         CONTROL_PLANE | {"networkProfile": {"loadBalancerClass": "x"}}, "only with LoadBalancer service type"),
        ("kamaji.clastix.io/v1alpha1/DataStore", {"driver": "etcd", "endpoints": ["e:2379"]},
         "clientCertificate must have secretReference or content when driver is etcd"),
        ("kamaji.clastix.io/v1alpha1/DataStore", {"driver": "MySQL", "endpoints": ["e:3306"]},
         "either tlsConfig or basicAuth must be provided"),
        ("snapshot.storage.k8s.io/v1/VolumeSnapshot", {"source": PVC | CONTENT}, "exactly one of"),
        ("snapshot.storage.k8s.io/v1/VolumeSnapshotContent",
         {"volumeSnapshotRef": {}, "deletionPolicy": "Delete", "driver": "d", "source": {}},
         "exactly one of volumeHandle and snapshotHandle must be set"),
        ("backups.cozystack.io/v1alpha1/BackupJob", {"applicationRef": {"kind": "A", "name": "a"}},
         "spec.backupClassName: Required value"),
        ("backups.cozystack.io/v1alpha1/Plan", {"applicationRef": {"kind": "A"}}, "spec.applicationRef.name: Required"),
        ("cert-manager.io/v1/Certificate", {"secretName": "s", "issuerRef": {"name": "i"}, "usages": ["web"]},
         "spec.usages[0]: Unsupported value"),
        ("cert-manager.io/v1/ClusterIssuer", {"acme": {"server": "https://a"}}, "privateKeySecretRef: Required value"),
        ("grafana.integreatly.org/v1beta1/GrafanaDatasource", {}, "spec.instanceSelector: Required value"),
        ("grafana.integreatly.org/v1beta1/Grafana", {"external": {}}, "spec.external.url: Required value"),
        ("bootstrap.cluster.x-k8s.io/v1alpha3/TalosConfigTemplate", {"template": {"spec": {}}}, "generateType"),
        ("source.toolkit.fluxcd.io/v1/ExternalArtifact", {"sourceRef": {"name": "a"}}, "sourceRef.kind: Required"),
        ("kustomize.toolkit.fluxcd.io/v1/Kustomization", {"interval": "5m"}, "spec.prune: Required value"),
    ],
)  # fmt: skip
def test_wrong_objects_of_every_project_are_refused(place: str, spec: Json, said: str) -> None:
    """What the project's own CRD refuses is refused, and the field named."""
    group, version, kind = place.split("/")
    custom = {"schema": {"openAPIV3Schema": strict.schema(group, version, kind)}}
    shape = Kind(group, version, kind, "rows", True, "", custom=custom)
    given = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    errors = crd.validate(shape, crd.default(shape, given))
    assert said in " ".join(f"{error.field}: {error.message}" for error in errors)
