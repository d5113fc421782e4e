"""The two worlds joined: machines asked of Kubernetes are VMs in Proxmox and nodes of a tenant, in both generations."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import yaml

from benchmarks.machines import NAME, NEW, OLD, SPACE, Era, Site, condition
from runbook_lib.lab import control

Object = dict[str, Any]
SCENARIOS = {OLD: "healthy", NEW: "capi-v1beta2"}


@pytest.fixture(scope="module", params=[OLD, NEW], ids=["v0.7", "v0.9"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab of one generation where the operator has installed CAPMOX and the IPAM provider."""
    era: Era = request.param
    folder = tmp_path_factory.mktemp("joined") / "lab"
    control.up(folder, scenario=SCENARIOS[era], scale=600)
    try:
        site = Site(folder, era)
        site.install()
        yield site
    finally:
        control.down(folder)


@pytest.fixture
def site(lab: Site) -> Iterator[Site]:
    """The lab with a cluster of one machine, which is taken away afterwards."""
    lab.cluster(1)
    lab.running(1)
    yield lab
    lab.remove()


def test_machine_is_a_vm_and_a_node(site: Site) -> None:
    """What was asked for is what Proxmox runs, what its agent tells, and what the tenant has as a Ready node."""
    machine = site.running(1)[0]
    vm = site.vms()[0]
    config = site.pve("GET", f"/nodes/{vm['node']}/qemu/{vm['vmid']}/config")
    inside = site.pve("GET", f"/nodes/{vm['node']}/qemu/{vm['vmid']}/agent/network-get-interfaces")["result"]
    node = site.tenant().nodes()[0]
    assert (vm["name"], vm["status"], config["cores"], int(config["memory"])) == (
        node["metadata"]["name"],
        "running",
        4,
        8192,
    )
    assert "10.0.0.150" in [row["ip-address"] for link in inside for row in link.get("ip-addresses", ())]
    assert {"type": "InternalIP", "address": "10.0.0.150"} in node["status"]["addresses"]
    assert machine["spec"]["providerID"] == node["spec"]["providerID"]
    assert node["spec"]["providerID"].removeprefix("proxmox://") in config["smbios1"]
    assert condition(node, "Ready")["status"] == "True"


def leftovers(site: Site) -> dict[str, list[str]]:
    """What of the cluster is still there, on either side."""
    found = {"vms": [row["name"] for row in site.vms()]}
    for storage in ("local", "local-lvm"):
        rows = site.pve("GET", f"/nodes/pve1/storage/{storage}/content")
        made = {row["volid"] for row in rows if "user-data" in row["volid"] or row.get("vmid") in range(100, 101)}
        found[storage] = sorted(made)
    found |= {plural: _names(site.items(site.core(plural))) for plural in ("machines", "machinesets", "clusters")}
    found |= {plural: _names(site.items(site.ipam(plural))) for plural in ("ipaddresses", "ipaddressclaims")}
    found["own"] = _names(site.items(site.own("proxmoxmachines")) + site.items(site.own("proxmoxclusters")))
    plane = f"/apis/kamaji.clastix.io/v1alpha1/namespaces/{SPACE}/tenantcontrolplanes"
    found["planes"] = _names(site.items(plane))
    found["secrets"] = [
        name for name in _names(site.items(f"/api/v1/namespaces/{SPACE}/secrets")) if name.startswith(NAME)
    ]
    return {what: rows for what, rows in found.items() if rows}


def _names(rows: list[Object]) -> list[str]:
    return [row["metadata"]["name"] for row in rows]


def test_machines_come_and_go_and_leave_nothing(lab: Site) -> None:
    """Three machines, then one, then no cluster: VMs and nodes follow, and neither side keeps anything."""
    lab.cluster(3)
    lab.running(3)
    assert len({row["vmid"] for row in lab.vms()}) == len(lab.tenant().nodes()) == 3
    lab.scale(1)
    lab.running(1)
    lab.until("one VM and one node", lambda: (len(lab.vms()), len(lab.tenant().nodes())) == (1, 1))
    lab.remove()
    lab.until("nothing left", lambda: not leftovers(lab), said=lambda: leftovers(lab))


def test_stopped_vm_is_started_again_or_replaced(site: Site) -> None:
    """0.7 starts it with its next pass; since 0.8 nobody does, its node falls silent, and the health check acts."""
    old, vm, tenant = site.running(1)[0], site.vms()[0], site.tenant()
    site.check_health()
    before = len(starts(site, vm))
    site.done(vm["node"], site.pve("POST", f"/nodes/{vm['node']}/qemu/{vm['vmid']}/status/stop"))
    if site.era is OLD:
        site.until("a second start", lambda: len(starts(site, vm)) > before, said=site.told)
        assert site.running(1)[0]["metadata"]["uid"] == old["metadata"]["uid"]
        return
    said = site.until("an unknown node", lambda: [row for row in tenant.nodes() if ready(row) == "Unknown"])
    assert condition(said[0], "Ready")["reason"] == "NodeStatusUnknown"
    assert replaced(site, old) == [row["name"] for row in site.vms()]


def starts(site: Site, vm: Object) -> list[Object]:
    """The tasks that started a VM."""
    return list(site.pve("GET", f"/nodes/{vm['node']}/tasks", typefilter="qmstart", vmid=vm["vmid"]))


def ready(node: Object) -> str:
    """The status of a node's Ready."""
    return str(condition(node, "Ready").get("status"))


def replaced(site: Site, old: Object) -> list[str]:
    """The names of the machines once another one runs in the place of this one."""
    name = old["metadata"]["name"]
    site.until("its end", lambda: name not in _names(site.machines()), said=site.told)
    return _names(site.running(1))


def test_vm_deleted_behind_its_back_is_replaced(site: Site) -> None:
    """CAPMOX only misses it; the node falls silent, and the health check replaces the machine."""
    old, vm = site.running(1)[0], site.vms()[0]
    site.check_health()
    site.lose(vm)
    assert replaced(site, old) == [row["name"] for row in site.vms()]


def test_revoked_token_is_told_and_a_new_one_heals(site: Site) -> None:
    """A machine that is asked for meanwhile waits; the refusal stands in conditions and in the log."""
    site.revoke()
    site.scale(2)
    words = "not authorized to access endpoint"
    try:
        site.until("the refusal in the log", lambda: words in site.log(), said=site.told)
        item = site.until("an unreachable cluster", lambda: unreachable(site), said=site.told)
        assert words in item["message"]
        assert len(site.vms()) == 1
    finally:
        site.give(site.credentials())
    assert len(site.running(2)) == len(site.vms()) == 2


def unreachable(site: Site) -> Object | None:
    """The condition of the ProxmoxCluster that says it, or None."""
    item = site.ask("GET", site.own("proxmoxclusters", NAME))
    row = condition(item, "ClusterReady" if site.era is OLD else "ProxmoxAvailable")
    return row if row.get("reason") == "ProxmoxUnreachable" else None


def test_management_cluster_tells_strangers_its_authority(lab: Site) -> None:
    """What `kubeadm join` reads first, without any credentials, names the API server and who signs for it."""
    where = lab.where.kubernetes
    path = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
    answer = requests.get(where.url + path, verify=where.ca_file, timeout=30)
    cluster = yaml.safe_load(answer.json()["data"]["kubeconfig"])["clusters"][0]["cluster"]
    assert cluster["server"].endswith(":6443")
    assert b"BEGIN CERTIFICATE" in base64.b64decode(cluster["certificate-authority-data"])
