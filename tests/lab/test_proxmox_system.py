"""A node's system through proxmoxer: services, hosts, power, hardware, certificates, mappings, Ceph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from runbook_lib.lab import control
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import system
from runbook_lib.lab.proxmox.state import PveState, areas

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import eventually, finished, login, refusal, start  # lies beside this file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab with Ceph."""
    folder = start(tmp_path_factory.mktemp("system"), {"ceph": {"size": "30T", "used": "3T", "osds_per_node": 2}})
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


def test_a_service_stops_and_starts(pve: Any) -> None:
    """Its state follows the task; what the API lives on cannot be stopped."""
    service = pve.nodes("pve2").services("chrony")
    assert finished(pve, service.stop.post()) == "OK"
    assert service.state.get()["state"] == "dead"
    assert "failed" in finished(pve, service.reload.post())
    assert finished(pve, service.restart.post()) == "OK"
    assert service.state.get()["state"] == "running"
    assert "invalid service cmd 'pveproxy stop'" in finished(pve, pve.nodes("pve2").services("pveproxy").stop.post())
    unknown = refusal(pve.nodes("pve2").services("telnetd").start.post)
    assert "does not have a value in the enumeration" in unknown.errors["service"]


def test_hosts_time_and_dns_are_written(pve: Any) -> None:
    """What was written is read back; an older digest is refused."""
    node = pve.nodes("pve2")
    old = node.hosts.get()
    node.hosts.post(data=old["data"] + "192.0.2.5 registry\n", digest=old["digest"])
    assert node.hosts.get()["data"].endswith("192.0.2.5 registry\n")
    assert "detected modified" in str(refusal(lambda: node.hosts.post(data="x", digest=old["digest"])))
    node.dns.put(search="example.test", dns1="192.0.2.53")
    assert node.dns.get() == {"search": "example.test", "dns1": "192.0.2.53"}
    node.time.put(timezone="Europe/Kyiv")
    assert node.time.get()["timezone"] == "Europe/Kyiv"


def test_a_node_that_reboots_is_away_for_a_while() -> None:
    """Its guests stop, it goes silent, it comes back with the guests that start with it."""
    areas()
    given = {
        "cluster_name": "lab",
        "nodes": {"a": {}, "b": {}, "c": {}},
        "guests": {100: {"node": "b", "running": True, "config": {"memory": 64}}},
    }
    state = PveState.from_scenario(given, clock=Clock(0))
    system.power(state)["b"] = {"command": "reboot", "down": state.clock.elapsed() + system.DOWN_SECONDS}
    node = state.nodes["b"]
    state.clock.advance(system.DOWN_SECONDS + 1)
    system.step(state, node, system.power(state)["b"])
    assert (node.online, state.guests[100].running) == (False, False)
    state.clock.advance(system.BOOT_SECONDS)
    system.step(state, node, system.power(state)["b"])
    assert node.online and not system.power(state)


def test_all_guests_of_a_node_stop_and_start(pve: Any) -> None:
    """By choice of ids, one after the other."""
    node = pve.nodes("pve3")
    assert finished(pve, node.stopall.post(vms="120")) == "OK"
    assert node.qemu(120).status.current.get()["status"] == "stopped"
    assert finished(pve, node.startall.post(vms="120", force=1)) == "OK"
    assert node.qemu(120).status.current.get()["status"] == "running"
    assert "target is local node." in str(refusal(lambda: node.migrateall.post(target="pve3")).errors)


def test_disks_and_devices_are_listed(pve: Any) -> None:
    """S.M.A.R.T. of a disk that is there; the refusal of one that is not."""
    node = pve.nodes("pve1")
    assert node.disks.smart.get(disk="/dev/nvme0n1")["health"] == "PASSED"
    assert "not a valid block device" in str(refusal(lambda: node.disks.smart.get(disk="/dev/sdz")))
    ids = [row["id"] for row in node.hardware.pci.get()]
    assert "0000:5e:00.0" in ids and "0000:00:00.0" not in ids
    assert "0000:00:00.0" in [row["id"] for row in node.hardware.pci.get(**{"pci-class-blacklist": ""})]
    assert {"id": "pc-q35-9.0", "type": "q35", "version": "9.0"} in node.capabilities.qemu.machines.get()
    assert "x86-64-v2-AES" in [row["name"] for row in node.capabilities.qemu.cpu.get()]


def test_a_certificate_of_ones_own_is_served(pve: Any) -> None:
    """It must fit its key; a second one needs force; without it the cluster's own is back."""
    leaf, other = (trustme.CA().issue_cert("pve1.example.test") for _ in range(2))
    chain, key = leaf.cert_chain_pems[0].bytes().decode(), leaf.private_key_pem.bytes().decode()
    custom = pve.nodes("pve1").certificates.custom
    wrong = refusal(lambda: custom.post(certificates=chain, key=other.private_key_pem.bytes().decode()))
    assert "do not match" in str(wrong)
    row = custom.post(certificates=chain, key=key)
    assert (row["filename"], row["san"]) == ("pveproxy-ssl.pem", ["pve1.example.test"])
    assert "force" in str(refusal(lambda: custom.post(certificates=chain, key=key)).errors)
    custom.delete()
    names = [row["filename"] for row in pve.nodes("pve1").certificates.info.get()]
    assert "pveproxy-ssl.pem" not in names
    assert "certificate" in refusal(lambda: custom.post(certificates="no", key="no")).errors["certificates"]


def test_a_mapping_names_a_device_on_each_node(pve: Any) -> None:
    """A node without an entry is warned of; an entry without its parts is refused."""
    mapping = pve.cluster.mapping.pci
    mapping.post(id="gpu", map=["node=pve1,path=0000:5e:00.0,id=144d:a80a"], description="one")
    (row,) = mapping.get(**{"check-node": "pve2"})
    assert row["checks"] == [{"severity": "warning", "message": "No mapping for node pve2."}]
    assert "map" in refusal(lambda: mapping.post(id="bad", map=["node=pve1"])).errors
    mapping("gpu").put(description="the fast one")
    assert mapping("gpu").get()["description"] == "the fast one"
    mapping("gpu").delete()
    assert mapping.get() == []


def test_ceph_tells_its_health(pve: Any, lab: Path) -> None:
    """Healthy at first; a flag that is set is a warning."""
    assert pve.cluster.ceph.status.get()["health"]["status"] == "HEALTH_OK"
    pve.cluster.ceph.flags("noout").put(value=1)
    health = pve.nodes("pve1").ceph.status.get()["health"]
    assert (health["status"], list(health["checks"])) == ("HEALTH_WARN", ["OSDMAP_FLAGS"])
    pve.cluster.ceph.flags("noout").put(value=0)
    tree = pve.nodes("pve1").ceph.osd.get()["root"]["children"][0]
    assert [host["name"] for host in tree["children"]] == ["pve1", "pve2", "pve3"]
    assert len(pve.nodes("pve1").ceph.mon.get()) == 3


def test_the_journal_tells_of_tasks(pve: Any) -> None:
    """Begun and ended, between two cursors."""
    upid = pve.nodes("pve1").services("postfix").restart.post()
    finished(pve, upid)
    lines = eventually(lambda: [line for line in pve.nodes("pve1").journal.get() if upid in line])
    assert len(lines) == 2 and lines[1].endswith("OK")


def test_realms_are_made_changed_and_taken_away(pve: Any) -> None:
    """The two built-in ones stay."""
    pve.access.domains.post(realm="corp", type="ldap", server1="ldap.example.test", base_dn="dc=x", user_attr="uid")
    row = pve.access.domains("corp").get()
    assert (row["type"], row["server1"]) == ("ldap", "ldap.example.test")
    pve.access.domains("corp").put(comment="the company")
    assert {"realm": "corp", "type": "ldap", "comment": "the company"} in pve.access.domains.get()
    assert "already exists" in str(
        refusal(lambda: pve.access.domains.post(realm="corp", type="ldap", server1="x", base_dn="x", user_attr="uid"))
    )
    pve.access.domains("corp").delete()
    assert "domain 'corp' does not exist" in str(refusal(pve.access.domains("corp").get))
    assert refusal(pve.access.domains("pam").delete).status_code == 500
    assert refusal(pve.access.tfa("root@pam")("x").get).status_code == 404


def test_notifications_are_as_a_fresh_server_has_them(pve: Any) -> None:
    """One target, one matcher; another target can be added."""
    notifications = pve.cluster.notifications
    assert [row["name"] for row in notifications.targets.get()] == ["mail-to-root"]
    assert notifications.matchers("default-matcher").get()["target"] == ["mail-to-root"]
    notifications.endpoints.webhook.post(name="chat", url="https://chat.example.test/hook", method="post")
    assert {row["name"] for row in notifications.targets.get()} == {"mail-to-root", "chat"}
    notifications.endpoints.webhook("chat").delete()
