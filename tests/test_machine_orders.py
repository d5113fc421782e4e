"""The objects of a cluster of machines: what each generation wants, and what must be in them whoever orders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from runbook_lib import machines
from runbook_lib.facts import MachineApis
from runbook_lib.machines import Order

KINDS = ("Cluster", "Machine", "MachineDeployment", "MachineHealthCheck")


def apis(generation: str) -> MachineApis:
    """What a cluster of that generation serves."""
    old = generation == "v1alpha1"
    core = ("v1beta1",) if old else ("v1beta2", "v1beta1")
    own = ("v1alpha1",) if old else ("v1alpha2", "v1alpha1")
    served: dict[str, tuple[str, ...]] = dict.fromkeys(KINDS, core)
    served |= dict.fromkeys(("ProxmoxCluster", "ProxmoxMachine", "ProxmoxMachineTemplate"), own)
    served |= {"KubeadmConfigTemplate": core, "KamajiControlPlane": ("v1alpha1",) if old else ("v1alpha2",)}
    served |= {"KubeadmControlPlane": core, "TalosConfigTemplate": ("v1alpha3",)}
    return MachineApis(served)


def ordered(generation: str = "v1alpha1", **more: Any) -> Order:
    """An order as the lab's site gives it."""
    given: dict[str, Any] = {
        "template_vmid": 9000, "template_node": "pve1", "addresses": ("10.0.0.150-10.0.0.160",),
        "gateway": "10.0.0.254", "dns_servers": ("10.0.0.254",), "vmids": (9100, 9150), "tags": ("runbook-x",),
    }  # fmt: skip
    return Order("demo", "tenant-root", apis(generation), "v1.34.3", **{**given, **more})


def by_kind(order: Order) -> dict[str, dict[str, Any]]:
    """The manifests by kind."""
    return {entry["kind"]: entry for entry in machines.manifests(order)}


both = pytest.mark.parametrize("generation", ["v1alpha1", "v1alpha2"])


@pytest.mark.parametrize(
    ("generation", "kind", "version"),
    [
        ("v1alpha1", "Cluster", "cluster.x-k8s.io/v1beta1"),
        ("v1alpha2", "Cluster", "cluster.x-k8s.io/v1beta2"),
        ("v1alpha1", "ProxmoxCluster", "infrastructure.cluster.x-k8s.io/v1alpha1"),
        ("v1alpha2", "ProxmoxMachineTemplate", "infrastructure.cluster.x-k8s.io/v1alpha2"),
        ("v1alpha1", "KamajiControlPlane", "controlplane.cluster.x-k8s.io/v1alpha1"),
        ("v1alpha2", "KamajiControlPlane", "controlplane.cluster.x-k8s.io/v1alpha2"),
        ("v1alpha2", "KubeadmConfigTemplate", "bootstrap.cluster.x-k8s.io/v1beta2"),
    ],
)
def test_each_object_is_written_in_the_version_of_its_generation(generation: str, kind: str, version: str):
    """The old CAPMOX goes with the old contract, the new with the new, also where both are served."""
    assert by_kind(ordered(generation))[kind]["apiVersion"] == version


def test_old_provider_keeps_to_the_old_contract_where_both_are_served():
    """CAPMOX 0.7 beside a core that serves v1beta2 as well still reads v1beta1 objects."""
    served = {**apis("v1alpha1").served, "Machine": ("v1beta2", "v1beta1")}
    assert MachineApis(served).core == "v1beta1"


def test_references_have_the_shape_of_the_contract():
    """v1beta1 names the version in a reference, v1beta2 the group alone."""
    old, new = (by_kind(ordered(name))["Cluster"]["spec"]["infrastructureRef"] for name in ("v1alpha1", "v1alpha2"))
    assert old == {
        "apiVersion": "infrastructure.cluster.x-k8s.io/v1alpha1", "kind": "ProxmoxCluster", "name": "demo",
    }  # fmt: skip
    assert new == {"apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "ProxmoxCluster", "name": "demo"}


def test_network_and_extra_arguments_differ_between_the_generations():
    """A default device and a map before, a list of devices and a list of names and values since."""
    old, new = by_kind(ordered("v1alpha1")), by_kind(ordered("v1alpha2"))
    spec = [found["ProxmoxMachineTemplate"]["spec"]["template"]["spec"]["network"] for found in (old, new)]
    assert spec[0] == {"default": {"bridge": "vmbr0", "model": "virtio"}}
    assert spec[1] == {"networkDevices": [{"name": "net0", "bridge": "vmbr0", "defaultIPv4": True}]}
    extra = [
        found["KubeadmConfigTemplate"]["spec"]["template"]["spec"]["joinConfiguration"]["nodeRegistration"]
        for found in (old, new)
    ]
    assert extra[0]["kubeletExtraArgs"] == {"provider-id": machines.PROVIDER_ID}
    assert extra[1]["kubeletExtraArgs"] == [{"name": "provider-id", "value": machines.PROVIDER_ID}]


@both
def test_every_template_tags_its_vms(generation: str):
    """Without a difference from the template no config task follows the clone, and a stopped VM is called ready."""
    spec = by_kind(ordered(generation, tags=()))["ProxmoxMachineTemplate"]["spec"]["template"]["spec"]
    assert spec["tags"] == ["demo"]


@both
def test_storage_is_named_for_full_clones_alone(generation: str):
    """The schema refuses a storage or a format of a linked clone."""
    full, linked = (
        by_kind(ordered(generation, storage="nas", full_clone=kind))["ProxmoxMachineTemplate"]["spec"]["template"]
        for kind in (True, False)
    )
    assert full["spec"]["storage"] == "nas"
    assert "storage" not in linked["spec"] and linked["spec"]["full"] is False


def test_kamaji_fills_the_endpoint_in_and_machines_bring_their_own():
    """An endpoint that somebody else wrote is refused by Kamaji's provider; a control plane on machines needs one."""
    pods = by_kind(ordered())["ProxmoxCluster"]["spec"]
    own = by_kind(ordered(control_plane="kubeadm", endpoint="10.0.0.140"))
    assert pods["externalManagedControlPlane"] is True and "controlPlaneEndpoint" not in pods
    assert own["ProxmoxCluster"]["spec"]["controlPlaneEndpoint"] == {"host": "10.0.0.140", "port": 6443}
    assert own["Cluster"]["spec"]["controlPlaneRef"]["kind"] == "KubeadmControlPlane"


@both
def test_only_silence_is_unhealthy(generation: str):
    """A Node that says itself that it is not Ready may lack a network, and replacing it would never end."""
    spec = by_kind(ordered(generation))["MachineHealthCheck"]["spec"]
    rows = spec.get("unhealthyConditions") or spec["checks"]["unhealthyNodeConditions"]
    assert [(row["type"], row["status"]) for row in rows] == [("Ready", "Unknown")]


@both
def test_cluster_comes_after_what_it_refers_to(generation: str):
    """Deleted backwards the Cluster goes before its infrastructure, which CAPMOX demands."""
    kinds = [entry["kind"] for entry in machines.manifests(ordered(generation))]
    assert kinds.index("ProxmoxCluster") < kinds.index("KamajiControlPlane") < kinds.index("Cluster")
    assert kinds.index("Cluster") < kinds.index("MachineDeployment")


def test_network_comes_last_and_goes_first():
    """Helm takes the network away through the new cluster's API, which has to be there still."""
    chart = {"chartRef": {"kind": "ExternalArtifact", "name": "cilium", "namespace": "cozy-system"}}
    last = machines.manifests(ordered(network_chart=chart))[-1]
    assert (last["kind"], last["spec"]["chartRef"]) == ("HelmRelease", chart["chartRef"])
    assert last["spec"]["kubeConfig"]["secretRef"] == {"name": "demo-admin-kubeconfig", "key": "super-admin.svc"}


def test_rolled_template_has_another_name():
    """A template never changes; the deployment names the new one."""
    rolled = ordered().rolled(memory_mib=4608)
    spec = by_kind(rolled)["MachineDeployment"]["spec"]["template"]["spec"]
    assert (ordered().template, rolled.template) == ("demo-v1", "demo-v2")
    assert spec["infrastructureRef"]["name"] == "demo-v2"


def test_talos_machines_are_asked_neither_agent_nor_cloud_init():
    """Talos answers to neither, and its bootstrap data comes from its own provider."""
    found = by_kind(ordered(bootstrap="talos"))
    checks = found["ProxmoxMachineTemplate"]["spec"]["template"]["spec"]["checks"]
    assert checks == {"skipCloudInitStatus": True, "skipQemuGuestAgent": True}
    assert found["TalosConfigTemplate"]["apiVersion"] == "bootstrap.cluster.x-k8s.io/v1alpha3"


@both
def test_yaml_says_the_same_without_anchors(generation: str):
    """What is written for kubectl is what is applied."""
    objects = machines.manifests(replace(ordered(generation), labels={"a": "b"}))
    text = machines.yaml_of(objects)
    assert list(yaml.safe_load_all(text)) == objects
    assert "&id" not in text
