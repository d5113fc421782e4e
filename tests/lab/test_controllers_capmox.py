"""CAPMOX and the in-cluster IPAM provider between both of the lab's APIs, in both generations."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab.kubernetes.controllers import capmox, ipam

sys.path.insert(0, str(Path(__file__).parent))
from two_worlds import Worlds, ready, worlds  # lies beside this file

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
