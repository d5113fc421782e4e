"""The cloud controller manager: nodes get what their VM tells, and go with it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook_lib.lab.kubernetes.controllers import ccm
from runbook_lib.lab.kubernetes.controllers.capmox.server import Vm
from runbook_lib.lab.kubernetes.controllers.processes import Exit

sys.path.insert(0, str(Path(__file__).parent))
from two_worlds import SECRET, Worlds, secret, worlds  # lies beside this file

Object = dict[str, Any]
UUID = "6f1d2a10-0c5e-4c52-9a3e-0000000c0112"
POD: Object = {
    "metadata": {"namespace": "kube-system", "name": "ccm"},
    "spec": {"volumes": [{"name": "config", "secret": {"secretName": "proxmox-cloud-controller-manager"}}]},
}
CONTAINER: Object = {"volumeMounts": [{"name": "config", "mountPath": "/etc/proxmox"}]}


def cluster(**more: Any) -> Object:
    """One entry of `clusters`."""
    entry = {"url": "https://pve:8006/api2/json", "token_id": "a@pve!b", "token_secret": "c", "region": "lab"}
    return entry | more


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (cluster(token_secret=""), "cluster #1: user or token credentials are required"),
        (cluster(username="u", password="p"), "must specify one of user or token credentials, not both"),
        (cluster(region=""), "cluster #1: missing PVE region in cloud config"),
        (cluster(url="pve:8006"), "cluster #1: missing PVE API URL in cloud config"),
    ],
)
def test_configuration_is_refused_in_its_own_words(entry: Object, words: str) -> None:
    """What the real manager says before it ends."""
    with pytest.raises(ccm.Unusable, match=words):
        ccm.config_of(yaml.safe_dump({"clusters": [entry]}))


def test_network_mode_must_be_known() -> None:
    """A mode that does not exist ends it, too."""
    text = yaml.safe_dump({"clusters": [cluster()], "features": {"network": {"mode": "agent"}}})
    with pytest.raises(ccm.Unusable, match="invalid network mode"):
        ccm.config_of(text)


VM = Vm("pve2", 112, {"name": "worker-2", "cpus": 8, "maxmem": 32 * 2**30}, {"smbios1": f"uuid={UUID}"})
NODE: Object = {"metadata": {"name": "worker-2"}, "status": {"nodeInfo": {"systemUUID": UUID.upper()}}}


def test_vm_is_the_node_by_uuid_and_name() -> None:
    """The uuid counts in either case, and the VM's name begins with the node's."""
    assert ccm.is_node(NODE, VM)
    assert not ccm.is_node({**NODE, "metadata": {"name": "worker-3"}}, VM)
    assert not ccm.is_node({**NODE, "status": {"nodeInfo": {"systemUUID": "x"}}}, VM)


@pytest.mark.parametrize(("provider", "wanted"), [("default", "proxmox://lab/112"), ("capmox", f"proxmox://{UUID}")])
def test_provider_id_has_two_forms(provider: str, wanted: str) -> None:
    """By region and number, or as CAPMOX writes it."""
    assert ccm.provider_id(ccm.Config(provider=provider), "lab", VM) == wanted


@pytest.mark.parametrize(
    ("smbios", "kind"),
    [(f"uuid={UUID}", "8VCPU-32GB"), (f"uuid={UUID},base64=1,sku=bTEubGFyZ2U=", "m1.large")],
)
def test_instance_type_is_the_sku_or_the_size(smbios: str, kind: str) -> None:
    """A SKU of the SMBIOS is preferred."""
    assert ccm.kind_of(Vm("pve2", 112, VM.status, {"smbios1": smbios})) == kind


def test_ignored_and_external_addresses() -> None:
    """The agent's addresses are sorted out by the configuration."""
    config = ccm.Config(mode="auto", external=("203.0.113.0/24",), order=("!172.17.0.0/16",))
    seen = [{"ip-address": text} for text in ("10.0.0.52", "203.0.113.7", "172.17.0.1")]
    nics = [{"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]}, {"name": "eth0", "ip-addresses": seen}]
    assert ccm.addresses_of(config, NODE, nics) == [
        {"type": "Hostname", "address": "worker-2"},
        {"type": "InternalIP", "address": "10.0.0.52"},
        {"type": "ExternalIP", "address": "203.0.113.7"},
    ]


async def started(made: Worlds, **features: Any) -> asyncio.Task[None]:
    """The manager at work in a cluster whose worker-2 is new."""
    entry = cluster(url=f"{made.proxmox_url}/api2/json", token_id="root@pam!capmox", token_secret=SECRET)
    text = yaml.safe_dump({"clusters": [entry], "features": features})
    if await made.client.find("/api/v1/namespaces/kube-system") is None:
        await made.client.create("/api/v1/namespaces", {"metadata": {"name": "kube-system"}})
    await made.client.create(
        "/api/v1/namespaces/kube-system/secrets", secret("proxmox-cloud-controller-manager", {"config.yaml": text})
    )
    taint = {"key": ccm.UNINITIALIZED, "value": "true", "effect": "NoSchedule"}
    await made.client.create("/api/v1/nodes", {"metadata": {"name": "worker-2"}, "spec": {"taints": [taint]}})
    await made.client.patch("/api/v1/nodes/worker-2/status", {"status": {"nodeInfo": {"systemUUID": UUID}}})
    process = made.process(POD, CONTAINER)
    return asyncio.create_task(ccm.run(made.context, process))


def test_new_node_is_initialized() -> None:
    """providerID, region, zone, type and addresses; the taint is gone."""

    async def story() -> None:
        async with worlds(old=True) as made:
            task = await started(made, network={"mode": "auto"})
            node = await made.until("/api/v1/nodes/worker-2", lambda node: node["spec"].get("providerID"))
            task.cancel()
            assert node["spec"]["providerID"] == "proxmox://lab/112"
            assert ccm.UNINITIALIZED not in [row["key"] for row in node["spec"].get("taints", ())]
            labels = node["metadata"]["labels"]
            assert labels["topology.kubernetes.io/region"] == "lab"
            assert labels["topology.kubernetes.io/zone"] == "pve2"
            assert labels["node.kubernetes.io/instance-type"] == "8VCPU-32GB"
            assert {"type": "InternalIP", "address": "10.0.0.52"} in node["status"]["addresses"]

    asyncio.run(story())


def test_node_goes_with_its_vm() -> None:
    """A node that is not ready and whose VM is gone is deleted; one that is only off is tainted."""

    async def story() -> None:
        async with worlds(old=True) as made:
            task = await started(made)
            await made.until("/api/v1/nodes/worker-2", lambda node: node["spec"].get("providerID"))
            made.state.guests[112].running = False
            await made.client.patch("/api/v1/nodes/worker-2/status", {"status": {"conditions": [
                {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": ""}]}})  # fmt: skip
            await made.until("/api/v1/nodes/worker-2", lambda node: ccm.SHUTDOWN in node["spec"].get("taints", ()))
            del made.state.guests[112]
            await made.gone("/api/v1/nodes/worker-2")
            task.cancel()

    asyncio.run(story())


def test_without_configuration_it_ends() -> None:
    """A missing Secret is a crash with the real words."""

    async def story() -> None:
        async with worlds(old=True) as made:
            with pytest.raises(Exit, match="Cloud provider could not be initialized"):
                await ccm.run(made.context, made.process(POD, CONTAINER))

    asyncio.run(story())
