"""The operating systems inside the lab's VMs: what they read, whom they join, and how they fail."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runbook_lib.lab import control, joining, machines
from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.controllers import bootstrap_tokens, capmox, ipam
from runbook_lib.lab.kubernetes.controllers.capmox import bootstrap
from runbook_lib.lab.kubernetes.controllers.client import KubeClient, Refused

sys.path.insert(0, str(Path(__file__).parent))
from two_worlds import KINDS, Worlds, ready, reason, secret, worlds  # lies beside this file

Object = dict[str, Any]
TOKEN = "abcdef.0123456789abcdef"
ENDPOINT = "10.0.0.140:6443"
AUTHORITY = trustme.CA()
PEM = AUTHORITY.cert_pem.bytes()
SPKI = x509.load_pem_x509_certificate(PEM).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
HASH = "sha256:" + hashlib.sha256(SPKI).hexdigest()


def join_document(*, token: str = TOKEN, pinned: str = HASH, endpoint: str = ENDPOINT) -> str:
    """User-data as the kubeadm bootstrap provider writes them."""
    config = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {"apiServerEndpoint": endpoint, "caCertHashes": [pinned], "token": token}},
        "nodeRegistration": {
            "kubeletExtraArgs": [
                {"name": "provider-id", "value": "proxmox://{{ ds.meta_data.instance_id }}"},
                {"name": "node-labels", "value": "role=worker"},
            ],
            "taints": [{"key": "gpu", "value": "no", "effect": "NoSchedule"}],
        },
    }
    path = "/run/kubeadm/kubeadm-join-config.yaml"
    cloud = {
        "write_files": [{"path": path, "content": yaml.safe_dump(config, width=1000)}],
        "runcmd": [f"kubeadm join --config {path}  && echo success > /run/cluster-api/bootstrap-success.complete"],
    }
    return "## template: jinja\n#cloud-config\n\n" + yaml.safe_dump(cloud, width=1000)


async def prepare(made: Worlds) -> None:
    """A cluster that can be joined: cluster-info, signed for the token, which is known."""
    authority = base64.b64encode(PEM).decode()
    config = yaml.safe_dump({"clusters": [{"name": "", "cluster": {"certificate-authority-data": authority}}]})
    for name in ("kube-public", "kube-system"):
        if await made.client.find(f"/api/v1/namespaces/{name}") is None:
            await made.client.create("/api/v1/namespaces", {"metadata": {"name": name}})
    await made.client.create("/api/v1/namespaces/kube-public/configmaps", {
        "metadata": {"name": "cluster-info"}, "data": {"kubeconfig": config}})  # fmt: skip
    rules = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-public"
    name = {"metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo"}}
    await made.client.create(f"{rules}/roles", {
        **name, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"],
                           "verbs": ["get"]}]})  # fmt: skip
    await made.client.create(f"{rules}/rolebindings", {
        **name, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", **name["metadata"]},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"}],
    })  # fmt: skip
    identifier, key = TOKEN.split(".")
    usages = {"usage-bootstrap-signing": "true", "usage-bootstrap-authentication": "true"}
    token = secret(f"bootstrap-token-{identifier}", {"token-id": identifier, "token-secret": key, **usages})
    kind = "bootstrap.kubernetes.io/token"
    await made.client.create("/api/v1/namespaces/kube-system/secrets", {**token, "type": kind})
    made.context.spawn(bootstrap_tokens.run(made.context), name="signer")
    signed = f"jws-kubeconfig-{identifier}"
    await made.until("/api/v1/namespaces/kube-public/configmaps/cluster-info", lambda item: signed in item["data"])


@asynccontextmanager
async def joined_worlds(old: bool) -> AsyncIterator[Worlds]:
    """Both worlds with CAPMOX, IPAM, and machines that boot."""
    tags = ("v0.7.7", "v1.0.3") if old else ("v0.9.0", "v1.1.0")
    async with worlds((capmox.PROGRAMS[0], tags[0]), (ipam.PROGRAMS[0], tags[1]), old=old) as made:
        await prepare(made)
        await made.context.synced()
        inside = machines.Machines(made.state, made.context.clock)
        inside.add(machines.Home(made.client.base_url, made.context), ENDPOINT)
        task = asyncio.create_task(inside.run())
        await made.cluster_of_machines()
        await made.infrastructure_ready()
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("old", [True, False], ids=["v0.7", "v0.9"])
def test_machine_becomes_a_node(old: bool) -> None:
    """From ProxmoxMachine to a Node that names its VM and waits for its network, as its join document says."""

    async def story() -> None:
        async with joined_worlds(old) as made:
            await made.machine("demo-1", data=join_document())
            item = await made.until(made.own("proxmoxmachines", "demo-1"), ready)
            node = await made.until("/api/v1/nodes/demo-1", lambda node: reason_of(node) == "KubeletNotReady")
            assert node["spec"]["providerID"] == item["spec"]["providerID"]
            assert node["metadata"]["labels"]["role"] == "worker"
            assert {"key": "gpu", "value": "no", "effect": "NoSchedule"} in node["spec"]["taints"]
            assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.34.3"
            assert {"type": "InternalIP", "address": "10.0.0.150"} in node["status"]["addresses"]
            assert node["status"]["capacity"]["cpu"] == "4"

    asyncio.run(story())


def reason_of(node: Object) -> str:
    """The reason of a node's Ready."""
    rows = (node.get("status") or {}).get("conditions") or ()
    return next((row["reason"] for row in rows if row["type"] == "Ready"), "")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"token": "aaaaaa.0123456789abcdef"}, 'a JWS signature in the cluster-info ConfigMap for token ID "aaaaaa"'),
        ({"token": "abcdef.fedcba9876543210"}, "failed to verify JWS signature of received cluster info object"),
        ({"pinned": "sha256:" + "0" * 64}, "none of the public keys"),
        ({"endpoint": "10.0.0.199:6443"}, "dial tcp 10.0.0.199:6443: connect: no route to host"),
    ],
)  # fmt: skip
def test_wrong_join_ends_in_cloud_inits_log(wrong: Object, words: str) -> None:
    """cloud-init ends with an error that CAPMOX makes final, and the reason stands in the guest's log."""

    async def story() -> None:
        async with joined_worlds(True) as made:
            await made.machine("demo-1", data=join_document(**wrong))
            item = await made.until(
                made.own("proxmoxmachines", "demo-1"), lambda item: (item.get("status") or {}).get("failureReason")
            )
            guest = made.state.guests[item["spec"]["virtualMachineID"]]
            assert item["status"]["failureReason"] == "BootstrapFailed"
            assert reason(item) == "VMProvisionFailed"
            assert words in guest.files["/var/log/cloud-init-output.log"]
            with pytest.raises(Refused, match="404"):
                await made.client.get("/api/v1/nodes/demo-1")

    asyncio.run(story())


class Seam:
    """Whoever drives kubelets."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def set(self, node: str, alive: bool) -> None:
        """Remembers."""
        self.told.append((node, alive))


def test_a_vm_drives_its_nodes_life() -> None:
    """A stopped VM's kubelet is dead; started again it is back after its boot; a lost Proxmox node takes it along."""

    async def story() -> None:
        async with worlds(old=True) as made:
            seam = made.context.machines = Seam()  # type: ignore[attr-defined]
            uuid = "6F1D2A10-0C5E-4C52-9A3E-0000000C0112"
            await made.client.create("/api/v1/nodes", {"metadata": {"name": "worker-2"}})
            await made.client.patch("/api/v1/nodes/worker-2/status", {"status": {"nodeInfo": {"systemUUID": uuid}}})
            await made.context.synced()
            await made.context.nodes.until(lambda: bool(made.context.nodes.items))
            inside = machines.Machines(made.state, made.context.clock)
            inside.add(machines.Home(made.client.base_url, made.context), ENDPOINT)
            inside.look()
            guest = made.state.guests[112]
            guest.running = False
            inside.look()
            assert seam.told == [("worker-2", False)]
            guest.running, guest.started_lab = True, made.context.clock.elapsed()
            inside.look()
            await made.eventually(lambda: seam.told[-1] == ("worker-2", True))
            made.state.nodes["pve2"].online = False
            inside.look()
            assert seam.told[-1] == ("worker-2", False)

    asyncio.run(story())


def test_image_comes_back_as_it_was_written() -> None:
    """What CAPMOX puts on the image the guest reads from it."""
    files = {"user-data": b"#cloud-config\n", "meta-data": b"instance-id: x\n", "network-config": b"version: 2\n"}
    assert machines.read_image(bootstrap.image(files)) == {name: data.decode() for name, data in files.items()}


def test_another_image_is_no_bootstrap_data() -> None:
    """An image that is none, or that is not labelled cidata, tells nothing."""
    assert machines.read_image(b"no image at all" * 200) == {}


def test_talos_config_names_cluster_labels_and_taints() -> None:
    """A machine config of Talos is a join, too."""
    config = {
        "version": "v1alpha1",
        "machine": {"type": "worker", "nodeLabels": {"role": "edge"}, "nodeTaints": {"gpu": "no:NoSchedule"}},
        "cluster": {"controlPlane": {"endpoint": "https://10.0.0.140:6443"}, "token": "t"},
    }
    join = joining.join_of(yaml.safe_dump(config), {})
    assert join is not None
    assert (join.talos, join.endpoint, join.kubelet["node-labels"]) == (True, ENDPOINT, "role=edge")
    assert join.taints == ({"key": "gpu", "value": "no", "effect": "NoSchedule"},)


def test_plain_cloud_config_joins_nothing() -> None:
    """User-data without kubeadm make a machine that only runs."""
    assert joining.join_of("#cloud-config\npackages: [htop]\n", {}) is None


def test_broken_yaml_is_said_so() -> None:
    """What is no YAML ends cloud-init."""
    with pytest.raises(joining.NotJoined, match="Failed loading yaml blob"):
        joining.join_of("#cloud-config\nruncmd: [unclosed\n", {})


def test_expired_token_goes_and_with_it_its_signature() -> None:
    """A token whose time has come is deleted; nobody can join by it any more."""

    async def story() -> None:
        async with worlds(old=True) as made:
            await prepare(made)
            data = base64.b64encode(b"2020-01-01T00:00:00Z").decode()
            path = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef"
            await made.client.patch(path, {"data": {"expiration": data}})
            await made.gone(path)
            info = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
            await made.until(info, lambda item: list(item["data"]) == ["kubeconfig"])

    asyncio.run(story())


MANAGED = "/api/v1/namespaces/capmox-system"


async def installed(made: Worlds, where: control.ProxmoxConnection) -> None:
    """CAPMOX 0.7 and the IPAM provider as pods of a healthy lab, whose API server can be joined."""
    for group, kind, plural in KINDS:
        versions = ["v1alpha1"] if group.startswith("infra") else ["v1alpha2"]
        if kind.startswith(("Proxmox", "InCluster", "Global")):
            body = strict.definition(group, kind, plural, versions, cluster=kind.startswith("Global"))
            await made.client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body)
    await made.client.create("/api/v1/namespaces", {"metadata": {"name": "capmox-system"}})
    given = {"url": where.url, "token": where.token_id, "secret": where.token_secret}
    await made.client.create(f"{MANAGED}/secrets", secret("capmox-manager-credentials", given))
    reference = {"name": "capmox-manager-credentials"}
    env = [
        {"name": f"PROXMOX_{key.upper()}", "valueFrom": {"secretKeyRef": {**reference, "key": key}}} for key in given
    ]
    images = {
        "capmox": "ghcr.io/ionos-cloud/cluster-api-provider-proxmox:v0.7.7",
        "ipam": "registry.k8s.io/capi-ipam-ic/cluster-api-ipam-in-cluster-controller:v1.0.3",
    }
    for name, image in images.items():
        spec = {"containers": [{"name": "manager", "image": image, "env": env if name == "capmox" else []}]}
        await made.client.create(f"{MANAGED}/pods", {"metadata": {"name": name}, "spec": spec})


def test_lab_makes_vms_and_takes_them_away(tmp_path: Path) -> None:
    """In a healthy lab the pods of both providers make a VM over TLS, and leave nothing of it."""
    connection = control.up(tmp_path / "lab", scale=600.0)

    async def story() -> None:
        there = connection.kubernetes
        async with KubeClient(there.url, there.token, there.ca_file) as client:
            made = Worlds(client, None, None, None, connection.proxmox.url, True)  # type: ignore[arg-type]
            await installed(made, connection.proxmox)
            await made.cluster_of_machines(credentials=False)
            await made.infrastructure_ready()
            await made.machine("demo-1")
            path = made.own("proxmoxmachines", "demo-1")
            assert (await made.until(path, ready))["status"]["proxmoxNode"] == "pve1"
            await client.delete(path)
            await made.gone(path)
            async with asyncio.timeout(15):  # the address goes when its claim has gone
                while (await client.list(made.ipam("ipaddresses")))["items"]:
                    await asyncio.sleep(0.01)

    try:
        asyncio.run(story())
    finally:
        control.down(tmp_path / "lab")


def talos_document(*, token: str = TOKEN, authority: bytes = PEM) -> str:
    """User-data as the Talos bootstrap provider writes them."""
    config = {
        "version": "v1alpha1",
        "machine": {"type": "worker", "kubelet": {"image": "ghcr.io/siderolabs/kubelet:v1.33.5"},
                    "install": {"image": "ghcr.io/siderolabs/installer:v1.11.6"}},
        "cluster": {"controlPlane": {"endpoint": f"https://{ENDPOINT}"}, "token": token,
                    "ca": {"crt": base64.b64encode(authority).decode(), "key": ""}},
    }  # fmt: skip
    return yaml.safe_dump(config, width=1000)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (talos_document(), ""),
        (talos_document(token="abcdef.fedcba9876543210"), "Unauthorized"),
        (talos_document(authority=b""), "cluster.ca.crt of the machine config holds no certificate"),
    ],
)
def test_talos_is_taken_by_its_token_alone(document: str, said: str) -> None:
    """A machine whose bootstrap token the cluster knows is a node with Talos' own words; any other is none."""

    async def story() -> None:
        async with joined_worlds(True) as made:
            checks = {"skipCloudInitStatus": True, "skipQemuGuestAgent": True}
            await made.machine("demo-1", data=document, checks=checks)
            item = await made.until(made.own("proxmoxmachines", "demo-1"), ready)
            guest = made.state.guests[item["spec"]["virtualMachineID"]]
            if said:
                await made.eventually(lambda: said in guest.files.get("/var/log/cloud-init-output.log", ""))
                assert await made.client.find("/api/v1/nodes/demo-1") is None
                return
            info = (await made.until("/api/v1/nodes/demo-1", reason_of))["status"]["nodeInfo"]
            assert (info["osImage"], info["kubeletVersion"]) == ("Talos (v1.11.6)", "v1.33.5")

    asyncio.run(story())
