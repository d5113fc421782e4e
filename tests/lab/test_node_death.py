"""A worker's VM that joined the management cluster dies and comes back: what Kubernetes makes of it, over both APIs."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks.machines import Site, condition
from runbook_lib.lab import control
from runbook_lib.lab.kubernetes.controllers.capmox import bootstrap

Object = dict[str, Any]
NAME, VMID, NODE = "worker-9", 190, "pve1"
TOKEN = "abcdef.0123456789abcdef"
SPACE = "default"
ON_WORKER = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab, whose clusters are as they were installed."""
    folder = tmp_path_factory.mktemp("death") / "lab"
    control.up(folder, scenario="healthy", scale=600)
    yield Site(folder)
    control.down(folder)


def join_document() -> str:
    """User-data that join the management cluster as its administrator would write them."""
    config = {
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {
            "apiServerEndpoint": "10.0.0.40:6443", "token": TOKEN, "unsafeSkipCAVerification": True}},
        "nodeRegistration": {"name": NAME},
    }  # fmt: skip
    path = "/run/kubeadm/join.yaml"
    files = [{"path": path, "content": yaml.safe_dump(config, width=1000)}]
    return "#cloud-config\n" + yaml.safe_dump({"write_files": files, "runcmd": [f"kubeadm join --config {path}"]})


def make_worker(site: Site) -> None:
    """Nothing; a VM boots from a template with the document on a disc, and is a node of the cluster by and by."""
    identifier, _, secret = TOKEN.partition(".")
    rows = {"token-id": identifier, "token-secret": secret, "usage-bootstrap-signing": "true",
            "usage-bootstrap-authentication": "true"}  # fmt: skip
    site.ask("POST", "/api/v1/namespaces/kube-system/secrets", {
        "metadata": {"name": f"bootstrap-token-{identifier}"}, "type": "bootstrap.kubernetes.io/token",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in rows.items()}})  # fmt: skip
    path = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
    site.until("a signature", lambda: f"jws-kubeconfig-{identifier}" in site.ask("GET", path)["data"])
    meta = f"instance-id: {NAME}\nlocal-hostname: {NAME}\n"
    disc = bootstrap.image({"user-data": join_document().encode(), "meta-data": meta.encode()})
    url = f"{site.where.proxmox.url}/api2/json/nodes/{NODE}/storage/local/upload"
    sent = site.proxmox.post(url, data={"content": "iso"}, files={"filename": (f"{NAME}.iso", disc)}, timeout=30)
    site.done(NODE, sent.json()["data"])
    site.done(NODE, site.pve("POST", f"/nodes/{NODE}/qemu/9000/clone", newid=VMID, name=NAME, full=1))
    site.pve("PUT", f"/nodes/{NODE}/qemu/{VMID}/config", ide2=f"local:iso/{NAME}.iso,media=cdrom")
    start(site)


def start(site: Site) -> None:
    """Nothing; the VM runs."""
    site.done(NODE, site.pve("POST", f"/nodes/{NODE}/qemu/{VMID}/status/start"))


def node(site: Site) -> Object:
    """The worker's node; an empty one while there is none."""
    return site.find(f"/api/v1/nodes/{NAME}") or {}


def is_ready(site: Site, status: str) -> bool:
    """Whether the node's Ready is this."""
    return condition(node(site), "Ready").get("status") == status


def taints(site: Site) -> set[str]:
    """The keys of the node's taints."""
    return {row["key"] for row in node(site)["spec"].get("taints") or ()}


def pods(site: Site) -> list[Object]:
    """The pods of the Deployment."""
    return site.items(f"/api/v1/namespaces/{SPACE}/pods?labelSelector=app=store")


def running(site: Site) -> list[str]:
    """Where the Deployment's pods run that are not on their way out."""
    return [row["spec"]["nodeName"] for row in pods(site)
            if row["status"].get("phase") == "Running" and "deletionTimestamp" not in row["metadata"]]  # fmt: skip


def deploy(site: Site) -> None:
    """Nothing; a pod is to run, and on the worker if that can be."""
    wish = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": ON_WORKER}]}
    container = {"name": "c", "image": "nginx:1.29"}
    spec = {
        "containers": [container], "affinity": {"nodeAffinity": wish}, "terminationGracePeriodSeconds": 1,
    }  # fmt: skip
    labels = {"app": "store"}
    site.ask("POST", f"/apis/apps/v1/namespaces/{SPACE}/deployments", {
        "metadata": {"name": "store"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": labels}, "spec": spec}}})  # fmt: skip


def test_worker_dies_with_its_vm_and_returns(site: Site) -> None:
    """Unknown, tainted, its pods elsewhere; started again it is what it was, and what it lost is gone."""
    make_worker(site)
    site.until("a Ready node", lambda: is_ready(site, "True"), said=lambda: node(site).get("status"))
    deploy(site)
    site.until("the pod there", lambda: running(site) == [NAME], said=lambda: pods(site))

    site.done(NODE, site.pve("POST", f"/nodes/{NODE}/qemu/{VMID}/status/stop"))
    site.until("silence", lambda: is_ready(site, "Unknown"), said=lambda: node(site)["status"])
    assert condition(node(site), "Ready")["reason"] == "NodeStatusUnknown"
    site.until("taints", lambda: "node.kubernetes.io/unreachable" in taints(site))
    site.until("another pod elsewhere", lambda: running(site) not in ([], [NAME]), said=lambda: pods(site))
    told = {row["reason"] for row in site.items(f"/api/v1/namespaces/{SPACE}/events")}
    assert {"NodeNotReady", "TaintManagerEviction"} <= told

    start(site)
    site.until("a Ready node again", lambda: is_ready(site, "True"), said=lambda: node(site)["status"])
    site.until("no taints", lambda: not taints(site), said=lambda: node(site)["spec"])
    site.until("one pod", lambda: len(pods(site)) == 1, said=lambda: pods(site))
    site.until("its daemons", lambda: all(row["status"].get("phase") == "Running" for row in daemons(site)))
    assert "cilium" in {row["metadata"]["labels"].get("k8s-app") for row in daemons(site)}


def daemons(site: Site) -> list[Object]:
    """The pods that are bound to the worker."""
    return site.items(f"/api/v1/pods?fieldSelector=spec.nodeName={NAME}")
