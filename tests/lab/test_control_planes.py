"""Control planes of machines: a KubeadmControlPlane on CAPMOX comes up, is scaled, upgraded, heals, and goes."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import yaml

from benchmarks.machines import INFRA, NAME, NEW, OLD, PROVIDERS, SPACE, VERSION, Era, Site, Tenant, condition
from benchmarks.measure import Broken
from runbook_lib.lab import control

Object = dict[str, Any]
SCENARIOS = {OLD: "healthy", NEW: "capi-v1beta2"}
CONTROL = "controlplane.cluster.x-k8s.io"
PLANE_SPACE = "capi-kubeadm-control-plane-system"
PROVIDER = "proxmox://{{ ds.meta_data.instance_id }}"
VIP = "10.0.0.145"


@pytest.fixture(scope="module", params=[OLD, NEW], ids=["v1beta1", "v1beta2"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab of one generation with CAPMOX, the IPAM provider and the kubeadm control plane provider."""
    era: Era = request.param
    folder = tmp_path_factory.mktemp("planes") / "lab"
    control.up(folder, scenario=SCENARIOS[era], scale=600)
    try:
        site = Site(folder, era)
        site.install()
        core = site.items(f"{PROVIDERS}/cozy-cluster-api/coreproviders") or site.items(
            "/apis/operator.cluster.x-k8s.io/v1alpha2/coreproviders"
        )
        version = core[0]["status"]["installedVersion"]
        site.ask("POST", "/api/v1/namespaces", {"metadata": {"name": PLANE_SPACE}})
        path = f"{PROVIDERS}/{PLANE_SPACE}/controlplaneproviders"
        site.create(path, "ControlPlaneProvider", "kubeadm", {"version": version.removesuffix("-core")})
        site.until(
            "the provider",
            lambda: condition(site.ask("GET", f"{path}/kubeadm"), "Ready").get("status") == "True",
            said=lambda: site.ask("GET", f"{path}/kubeadm").get("status"),
        )
        yield site
    finally:
        control.down(folder)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def planes(site: Site, name: str = "") -> str:
    """The path of control planes."""
    return f"/apis/{CONTROL}/{site.era.contract}/namespaces/{SPACE}/kubeadmcontrolplanes/{name}".rstrip("/")


def ask_for(site: Site, replicas: int, host: str, port: int, *, files: list[Object] | None = None) -> None:
    """Nothing; a cluster with a control plane of so many machines is asked for."""
    infra = f"{INFRA}/{site.era.own}"
    site.create(site.own("proxmoxclusters"), "ProxmoxCluster", NAME, {
        "controlPlaneEndpoint": {"host": host, "port": port}, "dnsServers": ["10.0.0.254"],
        "ipv4Config": {"addresses": ["10.0.0.150-10.0.0.180"], "prefix": 16, "gateway": "10.0.0.254"},
        "credentialsRef": {"name": "proxmox-credentials"},
    })  # fmt: skip
    template(site, NAME, 4)
    extra: Any = {"provider-id": PROVIDER} if site.era is OLD else [{"name": "provider-id", "value": PROVIDER}]
    node = {"name": "{{ ds.meta_data.local_hostname }}", "kubeletExtraArgs": extra}
    reference = {"infrastructureRef": site.refer(infra, "ProxmoxMachineTemplate", NAME)}
    spec = {
        "replicas": replicas, "version": VERSION,
        "machineTemplate": reference if site.era is OLD else {"spec": reference},
        "kubeadmConfigSpec": {"initConfiguration": {"nodeRegistration": node}, "files": files or [],
                              "joinConfiguration": {"nodeRegistration": node}},
    }  # fmt: skip
    site.create(planes(site), "KubeadmControlPlane", NAME, spec)
    site.create(site.core("clusters"), "Cluster", NAME, {
        "clusterNetwork": {"pods": {"cidrBlocks": ["10.243.0.0/16"]}, "services": {"cidrBlocks": ["10.95.0.0/16"]}},
        "infrastructureRef": site.refer(infra, "ProxmoxCluster", NAME),
        "controlPlaneRef": site.refer(f"{CONTROL}/{site.era.contract}", "KubeadmControlPlane", NAME),
    })  # fmt: skip


def template(site: Site, name: str, cores: int) -> None:
    """Nothing; there is a template of machines with so many cores."""
    network: Object = {"default": {"bridge": "vmbr0", "model": "virtio"}}
    if site.era is NEW:
        network = {"networkDevices": [{"name": "net0", "bridge": "vmbr0", "defaultIPv4": True}]}
    site.create(site.own("proxmoxmachinetemplates"), "ProxmoxMachineTemplate", name, {"template": {"spec": {
        "sourceNode": "pve1", "templateID": 9000, "numCores": cores, "memoryMiB": 8192, "network": network,
        "disks": {"bootVolume": {"disk": "scsi0", "sizeGb": 40}}, "tags": [NAME],
    }}})  # fmt: skip


def plane(site: Site) -> Object:
    """The control plane as it is."""
    return dict(site.ask("GET", planes(site, NAME)))


def counts(item: Object) -> tuple[int, int]:
    """(machines, those of them that are up to date)."""
    status = item.get("status") or {}
    newer = status.get("v1beta2") or status
    return status.get("replicas") or 0, newer.get("upToDateReplicas") or 0


def steady(site: Site, count: int) -> Object:
    """The control plane once it has exactly so many healthy machines of its present wish."""

    def look() -> Object | None:
        item = plane(site)
        fit = counts(item) == (count, count) and len(site.machines()) == count
        healthy = all(
            condition(item, kind).get("status") == "True"
            for kind in ("EtcdClusterHealthy", "ControlPlaneComponentsHealthy", "CertificatesAvailable", "Resized")
        )
        return item if fit and healthy else None

    def said() -> str:
        rows = [(row["type"], row["status"], row.get("reason"), row.get("message"))
                for row in plane(site).get("status", {}).get("conditions", ())]  # fmt: skip
        return f"{site.told()} {rows} {site.log(PLANE_SPACE)[-3000:]}"

    return dict(site.until(f"{count} machines of the control plane", look, said=said))


def remove(site: Site) -> None:
    """Nothing; the cluster and what it was made of are gone."""
    site.remove()
    for plural in ("proxmoxmachinetemplates",):
        for row in site.items(site.own(plural)):
            site.ask("DELETE", site.own(plural, row["metadata"]["name"]))


@pytest.fixture
def site(lab: Site) -> Iterator[Site]:
    """The lab with a control plane of one machine at an address of this machine."""
    ask_for(lab, 1, "127.0.0.1", free_port())
    steady(lab, 1)
    yield lab
    remove(lab)


def tenant(site: Site) -> Tenant:
    """The cluster that the machines are, by the kubeconfig that Cluster API keeps of it."""
    held = site.ask("GET", f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-kubeconfig")
    return Tenant(yaml.safe_load(base64.b64decode(held["data"]["value"])), site.folder)


def test_a_control_plane_of_machines_is_served(site: Site) -> None:
    """Its API answers at the cluster's endpoint, to the kubeconfig that Cluster API wrote, with its one node."""
    item, there = plane(site), tenant(site)
    node = there.nodes()[0]
    pods = {row["metadata"]["name"] for row in there.ask("GET", "/api/v1/namespaces/kube-system/pods")["items"]}
    machine = site.machines()[0]
    assert there.ask("GET", "/version")["gitVersion"] == VERSION
    assert machine["spec"]["providerID"] == node["spec"]["providerID"]
    assert {"kube-apiserver", "etcd", "kube-scheduler", "kube-controller-manager"} == {
        name.removesuffix(f"-{node['metadata']['name']}") for name in pods
    }
    assert "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"]
    assert condition(item, "Initialized")["status"] == condition(item, "Available")["status"] == "True"
    assert condition(machine, "EtcdMemberHealthy")["status"] == "True"
    assert condition(site.ask("GET", site.core("clusters", NAME)), "ControlPlaneInitialized")["status"] == "True"
    held = there.ask("GET", "/api/v1/namespaces/kube-system/configmaps/kubeadm-config")["data"]["ClusterConfiguration"]
    assert yaml.safe_load(held)["networking"]["podSubnet"] == "10.243.0.0/16"


def test_a_control_plane_grows_is_upgraded_and_shrinks(site: Site) -> None:
    """Three machines one after the other, then each replaced by one of the new version, then one again."""
    site.ask("PATCH", planes(site, NAME), {"spec": {"replicas": 3}})
    steady(site, 3)
    before = {row["metadata"]["name"] for row in site.machines()}
    nodes = {row["metadata"]["name"] for row in tenant(site).nodes()}
    assert before == nodes
    site.ask("PATCH", planes(site, NAME), {"spec": {"version": "v1.34.4"}})
    site.until("the upgrade's begin", lambda: condition(plane(site), "RollingOut").get("status") == "True")
    item = steady(site, 3)
    after = {row["metadata"]["name"]: row["spec"]["version"] for row in site.machines()}
    assert item["status"]["version"] == "v1.34.4"
    assert set(after.values()) == {"v1.34.4"}
    assert not before & set(after)
    site.ask("PATCH", planes(site, NAME), {"spec": {"replicas": 1}})
    steady(site, 1)
    site.until("the nodes' end", lambda: len(tenant(site).nodes()) == 1)
    assert tenant(site).ask("GET", "/version")["gitVersion"]


def test_a_cluster_without_quorum_does_not_answer(site: Site) -> None:
    """When the only machine stops nobody answers; when it runs again what was in the cluster still is."""
    there = tenant(site)
    there.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "kept"}})
    vm, cluster = site.vms()[0], site.core("clusters", NAME)
    path = f"/nodes/{vm['node']}/qemu/{vm['vmid']}/status"
    site.ask("PATCH", cluster, {"spec": {"paused": True}})  # or CAPMOX starts the VM at once
    site.pve("POST", f"{path}/stop")

    def silent() -> bool:
        try:
            there.ask("GET", "/version")
        except requests.ConnectionError:
            return True
        return False

    site.until("silence", silent)
    site.pve("POST", f"{path}/start")
    site.until("an answer", lambda: not silent())
    assert there.ask("GET", "/api/v1/namespaces/kept")["status"]["phase"] == "Active"
    site.ask("PATCH", cluster, {"spec": {"paused": False}})
    steady(site, 1)


def test_nothing_is_left_of_a_control_plane(lab: Site) -> None:
    """After the Cluster's end there are neither VMs nor certificates nor anybody who answers."""
    port = free_port()
    ask_for(lab, 1, "127.0.0.1", port)
    steady(lab, 1)
    remove(lab)
    lab.until("the VMs' end", lambda: not lab.vms())
    secrets = [row["metadata"]["name"] for row in lab.items(f"/api/v1/namespaces/{SPACE}/secrets")]
    assert [name for name in secrets if name.startswith(f"{NAME}-")] == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_an_address_of_the_site_needs_somebody_to_announce_it(lab: Site) -> None:
    """Without kube-vip among its files `kubeadm init` waits in vain; with it managers reach the cluster."""
    ask_for(lab, 1, VIP, 6443)

    def failed() -> bool:
        vms = lab.vms()
        if not vms:
            return False
        path = f"/nodes/{vms[0]['node']}/qemu/{vms[0]['vmid']}/agent/file-read"
        try:
            text = lab.pve("GET", path, file="/var/log/cloud-init-output.log")["content"]
        except Broken:  # the machine is not up yet
            return False
        return "could not initialize a Kubernetes cluster" in text

    lab.until("kubeadm's failure", failed)
    assert condition(plane(lab), "Initialized")["status"] == "False"
    remove(lab)
    manifest = (
        f"kind: Pod\nmetadata: {{name: kube-vip}}\nspec: {{containers: [{{env: [{{name: address, value: {VIP}}}]}}]}}\n"
    )
    vip = {"path": "/etc/kubernetes/manifests/kube-vip.yaml", "owner": "root:root", "content": manifest}
    ask_for(lab, 1, VIP, 6443, files=[vip])
    item = steady(lab, 1)
    held = lab.ask("GET", f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-kubeconfig")["data"]["value"]
    assert yaml.safe_load(base64.b64decode(held))["clusters"][0]["cluster"]["server"] == f"https://{VIP}:6443"
    assert condition(item, "Available")["status"] == "True"
    remove(lab)


def test_the_first_machine_holds_the_lock_until_it_is_done(site: Site) -> None:
    """The lock of `kubeadm init` names no other machine, and its document carries the certificates."""
    machine = site.machines()[0]["metadata"]["name"]
    held = site.ask("GET", f"/api/v1/namespaces/{SPACE}/secrets/{machine}")["data"]["value"]
    text = base64.b64decode(held).decode()
    lock = site.find(f"/api/v1/namespaces/{SPACE}/configmaps/{NAME}-lock")
    paths = [row["path"] for row in yaml.safe_load(text)["write_files"]]
    assert lock is None or json.loads(lock["data"]["lock-information"]) == {"machineName": machine}
    assert "kubeadm init --config /run/kubeadm/kubeadm.yaml" in text
    assert {"/etc/kubernetes/pki/ca.key", "/etc/kubernetes/pki/etcd/ca.crt", "/etc/kubernetes/pki/sa.pub"} <= set(paths)
