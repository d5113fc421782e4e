"""CAPMOX and the in-cluster IPAM provider between both of the lab's APIs, in both generations."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes.controllers import capmox, ipam
from runbook_lib.lab.kubernetes.controllers.processes import Exit

sys.path.insert(0, str(Path(__file__).parent))
from two_worlds import SPACE, Worlds, ready, reason, worlds  # lies beside this file

Object = dict[str, Any]
MANAGER, ADDRESSES = capmox.PROGRAMS[0], ipam.PROGRAMS[0]
ERAS = [True, False]
TAGS = {True: ("v0.7.7", "v1.0.3"), False: ("v0.9.0", "v1.1.0")}
both = pytest.mark.parametrize("old", ERAS, ids=["v0.7", "v0.9"])


def lab(old: bool, **more: Any) -> Any:
    """Both worlds with CAPMOX and IPAM of one generation."""
    tags = TAGS[old]
    return worlds((MANAGER, tags[0]), (ADDRESSES, tags[1]), old=old, **more)


async def provisioned(made: Worlds, name: str = "demo-1", **spec: Any) -> Object:
    """A machine that CAPMOX calls ready."""
    await made.cluster_of_machines()
    await made.infrastructure_ready()
    await made.machine(name, **spec)
    return await made.until(made.own("proxmoxmachines", name), ready)


@both
def test_machine_becomes_a_running_vm(old: bool) -> None:
    """Clone, config, disk, address, image, start: the VM is what the machine asked for, and says who it is."""

    async def story() -> None:
        async with lab(old) as made:
            item = await provisioned(made)
            guest = made.state.guests[item["spec"]["virtualMachineID"]]
            assert (guest.running, guest.config["cores"], guest.config["memory"]) == (True, 4, 4096)
            assert guest.name == "demo-1"
            assert "size=40G" in guest.config["scsi0"]
            assert "ip_net0_10.0.0.150" in guest.tags
            assert item["spec"]["providerID"].removeprefix("proxmox://") in guest.config["smbios1"]
            assert {"type": "InternalIP", "address": "10.0.0.150"} in item["status"]["addresses"]
            assert guest.config["ide0"].startswith("local:iso/user-data-100.iso,media=cdrom")

    asyncio.run(story())


@both
def test_deletion_leaves_nothing(old: bool) -> None:
    """After the deletion there is no VM, no image, no claim, no address, and the pool is whole."""

    async def story() -> None:
        async with lab(old) as made:
            item = await provisioned(made)
            await made.client.delete(made.own("proxmoxmachines", "demo-1"))
            await made.gone(made.own("proxmoxmachines", "demo-1"))
            assert item["spec"]["virtualMachineID"] not in made.state.guests
            await made.eventually(lambda: not [key for key in made.state.volumes if "vm-100-" in key[1]])
            assert not [key for key in made.state.volumes if "user-data" in key[1]]
            pool = await made.until(made.pool("demo-v4-icip"), lambda pool: pool["status"]["ipAddresses"]["used"] == 0)
            assert pool["status"]["ipAddresses"]["free"] == 6
            assert (await made.client.list(made.ipam("ipaddressclaims")))["items"] == []

    asyncio.run(story())


# --- what goes wrong, and where it is seen ------------------------------------------------------------


def noted(made: Worlds, words: str) -> Any:
    """Whether the log has these words."""
    return lambda: [text for text in made.lines if words in text]


@both
def test_revoked_token_is_not_authorized(old: bool) -> None:
    """A token that is gone: the cluster is unreachable, in the client's own words."""

    async def story() -> None:
        async with lab(old) as made:
            del made.state.access.users["root@pam"].tokens["capmox"]
            await made.cluster_of_machines()
            item = await made.until(
                made.own("proxmoxclusters", "demo"), lambda item: reason(item) == "ProxmoxUnreachable"
            )
            words = "unable to initialize proxmox api client: not authorized to access endpoint"
            assert words in next(row["message"] for row in item["status"]["conditions"] if row["type"] != "Ready")
            await made.eventually(noted(made, words))

    asyncio.run(story())


@both
def test_manager_ends_when_proxmox_does_not_answer(old: bool) -> None:
    """With all three variables set and nobody there, the container crashes."""

    async def story() -> None:
        async with worlds(old=old) as made:
            env = {"PROXMOX_URL": "http://127.0.0.1:9", "PROXMOX_TOKEN": "a@pve!b", "PROXMOX_SECRET": "c"}
            container = {"name": "manager", "image": f"ghcr.io/x/cluster-api-provider-proxmox:{TAGS[old][0]}"}
            pod = {"metadata": {"namespace": "capmox-system", "name": "manager"}}
            with pytest.raises(Exit, match=r"unable to setup proxmox API client.*connection refused"):
                await capmox.run(made.context, made.process(pod, container, **env))

    asyncio.run(story())


@both
def test_without_ipam_the_machine_waits(old: bool) -> None:
    """Nobody gives addresses: the machine stays where it waits for one, and the VM stays off."""

    async def story() -> None:
        async with worlds((MANAGER, TAGS[old][0]), old=old) as made:
            await made.cluster_of_machines()
            await made.infrastructure_ready()
            await made.machine("demo-1")
            path = made.own("proxmoxmachines", "demo-1")
            item = await made.until(path, lambda item: reason(item) == "WaitingForStaticIPAllocation")
            claim = "demo-1-net0-inet" if old else "demo-1-net0-00-inet"
            await made.until(made.ipam("ipaddressclaims", claim), bool)
            assert not made.state.guests[item["spec"]["virtualMachineID"]].running

    asyncio.run(story())


def test_equal_template_is_called_ready_while_it_is_off() -> None:
    """0.8 and later (#848): nothing to configure, so every later step is passed over."""

    async def story() -> None:
        async with lab(False) as made:
            await made.cluster_of_machines()
            await made.infrastructure_ready()
            await made.machine("demo-1", numCores=2, memoryMiB=4096, tags=["template"])
            item = await made.until(made.own("proxmoxmachines", "demo-1"), ready)
            guest = made.state.guests[item["spec"]["virtualMachineID"]]
            assert not guest.running
            assert "ipAddresses" not in item["status"]

    asyncio.run(story())


def test_failed_clone_keeps_its_vmid() -> None:
    """0.8 and later (#856): TaskFailed is the end, and the number of a VM that never was stays in the spec."""

    async def story() -> None:
        async with lab(False) as made:
            del made.state.volumes["pve1", "local-lvm:base-9000-disk-0"]
            await made.cluster_of_machines()
            await made.infrastructure_ready()
            await made.machine("demo-1")
            path = made.own("proxmoxmachines", "demo-1")
            item = await made.until(path, lambda item: reason(item) == "TaskFailed")
            said = next(row["message"] for row in item["status"]["conditions"] if row["type"] != "Ready")
            assert "clone failed" in said
            assert item["spec"]["virtualMachineID"] not in made.state.guests
            await made.eventually(noted(made, "unable to find VM with ID"))

    asyncio.run(story())


def test_old_machine_without_a_template_is_given_up() -> None:
    """0.7: no template with those tags is terminal, by failureReason."""

    async def story() -> None:
        async with lab(True) as made:
            await made.cluster_of_machines()
            await made.infrastructure_ready()
            spec = {"sourceNode": None, "templateID": None, "templateSelector": {"matchTags": ["none", "such"]}}
            await made.machine("demo-1", **spec)
            path = made.own("proxmoxmachines", "demo-1")
            item = await made.until(path, lambda item: (item.get("status") or {}).get("failureReason"))
            assert item["status"]["failureReason"] == "VMTemplateNotFound"
            assert 'found 0 VM templates with tags "none;such"' in item["status"]["failureMessage"]
            assert reason(item) == "VMProvisionFailed"

    asyncio.run(story())


def test_old_machine_without_room_is_given_up() -> None:
    """0.7: no allowed node has the memory left; stopped VMs count, too."""

    async def story() -> None:
        async with lab(True) as made:
            await made.cluster_of_machines(allowedNodes=["pve1", "pve2"])
            await made.infrastructure_ready()
            await made.machine("demo-1", memoryMiB=1024 * 1024)
            path = made.own("proxmoxmachines", "demo-1")
            item = await made.until(path, lambda item: (item.get("status") or {}).get("failureReason"))
            assert item["status"]["failureReason"] == "InsufficientResources"
            assert "cannot reserve 1099511627776B of memory" in item["status"]["failureMessage"]

    asyncio.run(story())


@both
def test_machines_spread_and_take_numbers_of_their_range(old: bool) -> None:
    """Of the allowed nodes the one with the fewest machines; numbers from the range, none twice."""

    async def story() -> None:
        shared = {**scenario.load("healthy").proxmox}
        shared["guests"][9000]["config"]["scsi0"] = "nas:9000/base-9000-disk-0.qcow2,size=20G"
        shared["guests"][9000]["config"].pop("ide2", None)
        async with lab(old, proxmox=shared) as made:
            await made.cluster_of_machines(allowedNodes=["pve1", "pve2", "pve3"])
            await made.infrastructure_ready()
            names = ["demo-1", "demo-2", "demo-3"]
            for name in names:
                await made.machine(name, vmIDRange={"start": 500, "end": 502}, storage="nas")
            found = [await made.until(made.own("proxmoxmachines", name), ready) for name in names]
            assert sorted(item["spec"]["virtualMachineID"] for item in found) == [500, 501, 502]
            assert sorted(item["status"]["proxmoxNode"] for item in found) == ["pve1", "pve2", "pve3"]

    asyncio.run(story())


@both
def test_vm_deleted_behind_its_back_is_only_missed(old: bool) -> None:
    """The log says so; the machine can still be deleted, and leaves nothing."""

    async def story() -> None:
        async with lab(old) as made:
            item = await provisioned(made)
            del made.state.guests[item["spec"]["virtualMachineID"]]
            path = made.own("proxmoxmachines", "demo-1")
            await made.client.patch(path, {"metadata": {"annotations": {"look": "again"}}})
            await made.eventually(noted(made, "error trying to locate vm: unable to find VM with ID"))
            await made.client.delete(path)
            await made.gone(path)

    asyncio.run(story())


@both
def test_bootstrap_image_goes_once_the_node_is_there(old: bool) -> None:
    """Drive empty, image deleted, tag gone."""

    async def story() -> None:
        async with lab(old) as made:
            item = await provisioned(made)
            guest = made.state.guests[item["spec"]["virtualMachineID"]]
            assert "go-proxmox+cloud-init" in guest.tags
            await made.node_joined("demo-1")
            await made.eventually(lambda: "go-proxmox+cloud-init" not in guest.tags)
            assert guest.config["ide0"] == "none,media=cdrom"
            assert not [key for key in made.state.volumes if "user-data" in key[1]]

    asyncio.run(story())


@both
def test_secret_of_the_credentials_is_held(old: bool) -> None:
    """The Secret gets the cluster's finalizer and reference, so it cannot go first."""

    async def story() -> None:
        async with lab(old) as made:
            await made.cluster_of_machines()
            await made.infrastructure_ready()
            meta = (await made.client.get(f"/api/v1/namespaces/{SPACE}/secrets/proxmox-credentials"))["metadata"]
            assert meta["finalizers"] == ["proxmoxcluster.infrastructure.cluster.x-k8s.io/secret"]
            assert [row["kind"] for row in meta["ownerReferences"]] == ["ProxmoxCluster"]

    asyncio.run(story())


# --- addresses -----------------------------------------------------------------------------------------

POOL = {"addresses": ["10.0.0.8-10.0.0.11", "10.0.0.20"], "prefix": 24, "gateway": "10.0.0.9"}


def test_pool_gives_the_lowest_free_address() -> None:
    """Neither the gateway nor what is taken or excluded."""
    assert ipam.free_address(POOL, ["10.0.0.8"]) == "10.0.0.10"
    assert ipam.free_address({**POOL, "excludedAddresses": ["10.0.0.8/30"]}, []) == "10.0.0.20"


def test_reserved_addresses_need_a_word() -> None:
    """A subnet's first and last address are given only when that is allowed."""
    pool = {"addresses": ["10.0.0.0/30"], "prefix": 30}
    assert ipam.free_address(pool, []) == "10.0.0.1"
    assert ipam.free_address({**pool, "allocateReservedIPAddresses": True}, []) == "10.0.0.0"


def test_pool_counts_what_it_has() -> None:
    """Total without the gateway, and what was given but lies outside by now."""
    wanted = {"total": 4, "used": 2, "free": 2, "outOfRange": 1}
    assert ipam.counts(POOL, ["10.0.0.8", "10.0.0.99"]) == wanted


def test_empty_pool_refuses() -> None:
    """There is nothing to give."""
    with pytest.raises(ipam.NoAddress, match="no address available"):
        ipam.free_address({"addresses": ["10.0.0.9"], "prefix": 24, "gateway": "10.0.0.9"}, [])


@both
def test_no_address_is_given_twice_and_the_last_claim_waits(old: bool) -> None:
    """Seven claims on six addresses: six different ones, and a line in the log; a deletion frees the last."""

    async def story() -> None:
        async with worlds((ADDRESSES, TAGS[old][1]), old=old) as made:
            group = "ipam.cluster.x-k8s.io"
            spec = {"addresses": ["10.0.0.150-10.0.0.155"], "prefix": 24}
            await made.create(made.pool("").rstrip("/"), "InClusterIPPool", {"metadata": {"name": "p"}, "spec": spec})
            for number in range(7):
                body = {"metadata": {"name": f"c{number}"},
                        "spec": {"poolRef": {"apiGroup": group, "kind": "InClusterIPPool", "name": "p"}}}  # fmt: skip
                await made.create(made.ipam("ipaddressclaims"), "IPAddressClaim", body)
            await made.until(
                made.pool("p"), lambda pool: (pool.get("status") or {}).get("ipAddresses", {}).get("used") == 6
            )
            await made.eventually(noted(made, "no address available"))
            given = (await made.client.list(made.ipam("ipaddresses")))["items"]
            assert len({row["spec"]["address"] for row in given}) == 6
            await made.client.delete(made.ipam("ipaddressclaims", given[0]["metadata"]["name"]))

            async def all_but_one() -> bool:
                rows = (await made.client.list(made.ipam("ipaddressclaims")))["items"]
                return all(row.get("status", {}).get("addressRef") for row in rows)

            async with asyncio.timeout(10):
                while not await all_but_one():
                    await asyncio.sleep(0.02)

    asyncio.run(story())
