"""Software-defined networks through proxmoxer: what waits, what runs, who holds the lock."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file


@pytest.fixture(scope="module", params=["8.4", "9.2"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab of either flavour."""
    folder = start(tmp_path_factory.mktemp("sdn"), {"flavour": request.param})
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


def posted(pve: Any, path: str, **data: Any) -> tuple[int, str]:
    """Status and message of a POST: the client keeps only the message's first line."""
    answer = pve._store["session"].request("POST", f"{pve._store['base_url']}/{path}", data=data)
    return answer.status_code, answer.json().get("message", "")


def test_a_network_waits_until_it_is_applied(pve: Any) -> None:
    """New, then running after the reload of every node, then changed, then deleted."""
    sdn = pve.cluster.sdn
    sdn.zones.post(type="simple", zone="lan", ipam="pve", nodes="pve1,pve2")
    sdn.vnets.post(vnet="apps", zone="lan", alias="applications")
    ranges = ["start-address=10.7.0.10,end-address=10.7.0.99"]
    sdn.vnets("apps").subnets.post(subnet="10.7.0.0/24", type="subnet", gateway="10.7.0.1", **{"dhcp-range": ranges})
    waiting = {row["vnet"]: row for row in sdn.vnets.get(pending=1)}["apps"]
    assert (waiting["state"], waiting["pending"]["zone"]) == ("new", "lan")
    assert sdn.vnets.get(running=1) == [] and pve.nodes("pve1").sdn.zones.get() == []

    upid = sdn.put()
    assert ":reloadnetworkall::" in upid and finished(pve, upid) == "OK"
    assert "state" not in sdn.vnets.get(pending=1)[0]
    assert pve.nodes("pve1").sdn.zones.get() == [{"zone": "lan", "status": "available"}]
    assert pve.nodes("pve3").sdn.zones.get() == []
    assert pve.nodes("pve1").sdn.zones("lan").content.get() == [{"vnet": "apps", "status": "available"}]
    subnet = sdn.vnets("apps").subnets("lan-10.7.0.0-24").get()
    assert subnet["dhcp-range"] == [{"start-address": "10.7.0.10", "end-address": "10.7.0.99"}]
    assert {"ip": "10.7.0.1", "gateway": 1}.items() <= sdn.ipams("pve").status.get()[0].items()

    sdn.vnets("apps").put(delete="alias")
    changed = sdn.vnets.get(pending=1)[0]
    assert (changed["state"], changed["pending"]) == ("changed", {"alias": "deleted"})
    sdn.vnets("apps").subnets("lan-10.7.0.0-24").delete()
    sdn.vnets("apps").delete()
    sdn.zones("lan").delete()
    assert sdn.zones.get(pending=1)[0]["state"] == "deleted"
    finished(pve, sdn.put())
    assert sdn.zones.get(pending=1) == []


def test_a_vm_starts_on_an_applied_vnet(pve: Any) -> None:
    """Before the application the bridge is not there."""
    sdn, vm = pve.cluster.sdn, pve.nodes("pve1").qemu(990)
    sdn.zones.post(type="simple", zone="z9")
    sdn.vnets.post(vnet="net9", zone="z9")
    finished(pve, pve.nodes("pve1").qemu.post(vmid=990, memory=64, net0="virtio,bridge=net9"))
    assert "start failed" in finished(pve, vm.status.start.post())
    finished(pve, sdn.put())
    assert finished(pve, vm.status.start.post()) == "OK"
    assert "net9" in [row["iface"] for row in pve.nodes("pve1").network.get(type="any_bridge")]


@pytest.mark.parametrize(
    ("zone", "vnet", "says"),
    [
        ({"type": "vlan", "bridge": "vmbr0"}, {}, "tag: missing vlan tag"),
        ({"type": "vlan", "bridge": "vmbr0"}, {"tag": 5000}, "tag: vlan tag max value is 4096"),
        ({"type": "simple"}, {"tag": 5}, "tag: vlan tag is not allowed on simple zone"),
        ({"type": "vxlan", "peers": "10.0.0.1,10.0.0.2"}, {}, "tag: missing vxlan tag"),
    ],
)
def test_a_tag_that_does_not_fit_its_zone_is_refused(pve: Any, zone: Any, vnet: Any, says: str) -> None:
    """Raised under the lock, it is a 500 whose text holds the parameter's error."""
    pve.cluster.sdn.zones.post(zone="tagz", **zone)
    status, message = posted(pve, "cluster/sdn/vnets", vnet="tagv", zone="tagz", **vnet)
    pve.cluster.sdn.zones("tagz").delete()
    assert status == 500
    assert message == f"create sdn vnet object failed: 400 Parameter verification failed.\n{says}\n"


def test_zones_and_controllers_refuse_what_does_not_belong(pve: Any) -> None:
    """A missing option, a stranger, a double, one in use."""
    zones = pve.cluster.sdn.zones
    assert "missing value for required option 'bridge'" in str(refusal(lambda: zones.post(type="vlan", zone="zz")))
    assert "unexpected property 'bridge'" in str(refusal(lambda: zones.post(type="simple", zone="zz", bridge="vmbr0")))
    missing = refusal(lambda: zones.post(type="evpn", zone="zz", controller="c1", **{"vrf-vxlan": 9}))
    assert "controller c1 don't exist" in str(missing)
    zones.post(type="simple", zone="zz")
    assert "sdn zone object ID 'zz' already defined" in str(refusal(lambda: zones.post(type="simple", zone="zz")))
    pve.cluster.sdn.vnets.post(vnet="vv", zone="zz")
    assert "zone zz is used by vnet vv" in str(refusal(zones("zz").delete))
    subnets = "cluster/sdn/vnets/vv/subnets"
    _, outside = posted(pve, subnets, subnet="10.9.0.0/24", type="subnet", gateway="10.8.0.1")
    assert "10.8.0.1 is not in subnet 10.9.0.0/24" in outside
    pve.cluster.sdn.vnets("vv").delete()
    zones("zz").delete()


def test_a_lock_keeps_others_out_on_9(pve: Any) -> None:
    """Only the token's holder may write; 8.4 knows no such path."""
    sdn = pve.cluster.sdn
    if pve.version.get()["version"].startswith("8"):
        assert refusal(sdn.lock.post).status_code == 501
        return
    finished(pve, sdn.put())
    token = sdn.lock.post()
    assert "already been locked" in str(refusal(sdn.lock.post))
    refused = refusal(lambda: sdn.zones.post(type="simple", zone="held"))
    assert "create sdn zone object failed: invalid lock token provided!" in str(refused)
    sdn.zones.post(type="simple", zone="held", **{"lock-token": token})
    sdn.rollback.post(**{"lock-token": token, "release-lock": 1})
    assert "held" not in [row["zone"] for row in sdn.zones.get()]
    sdn.lock.post()
    sdn.lock.delete(force=1)
    sdn.zones.post(type="simple", zone="free")
    sdn.zones("free").delete()
