"""Nodes, networks, storages, pools, tasks and the cluster of the emulated site, through proxmoxer over real TLS."""

from __future__ import annotations

import hashlib
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
import proxmox_site
from proxmox_site import refusal  # lies beside this file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The healthy site."""
    place = proxmox_site.start(tmp_path_factory.mktemp("areas"))
    yield place
    control.down(place)


@pytest.fixture
def pve(folder: Path) -> Iterator[Any]:
    """The cluster as the scenario left it."""
    yield proxmox_site.login(folder)
    control.reset(folder)


# --- nodes ----------------------------------------------------------------------------------------


def test_nodes_tell_figures_that_move_and_fit(pve: Any) -> None:
    """What is used is within what there is, and a figure read twice is not frozen."""
    first = {row["node"]: row for row in pve.nodes.get()}
    assert list(first) == ["pve1", "pve2", "pve3"]
    for row in first.values():
        assert row["status"] == "online"
        assert 0 < row["cpu"] < 0.8
        assert 0 < row["mem"] < 0.85 * row["maxmem"]
        assert 0 < row["disk"] < row["maxdisk"]
    time.sleep(0.05)
    again = {row["node"]: row for row in pve.nodes.get()}
    assert any(again[name]["mem"] != first[name]["mem"] for name in first)


def test_the_listed_certificate_is_the_one_that_is_served(pve: Any, folder: Path) -> None:
    """The fingerprint in the API is that of the TLS handshake."""
    where = control.connection(folder).proxmox
    host, _, port = where.url.removeprefix("https://").partition(":")
    served = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))
    fingerprint = hashlib.sha256(served).hexdigest().upper()
    listed = {row["filename"]: row for row in pve.nodes("pve1").certificates.info.get()}
    assert listed["pve-ssl.pem"]["fingerprint"].replace(":", "") == fingerprint
    assert listed["pve-ssl.pem"]["notafter"] > time.time() + 30 * 86400
    assert "pve-root-ca.pem" in listed


def test_a_node_s_clock_is_ours(pve: Any) -> None:
    """Durations are scaled; the time of day is not."""
    assert abs(pve.nodes("pve2").time.get()["time"] - time.time()) < 2


def test_updates_of_the_healthy_site_are_harmless(pve: Any) -> None:
    """Nothing in them is from Debian's security archive."""
    updates = pve.nodes("pve1").apt.update.get()
    assert updates
    assert {row["Origin"] for row in updates} == {"Proxmox"}


def test_the_thin_pool_is_as_full_as_its_storage(pve: Any) -> None:
    """Two views of one pool agree."""
    (pool,) = pve.nodes("pve2").disks.lvmthin.get()
    status = pve.nodes("pve2").storage("local-lvm").status.get()
    assert (pool["lv_size"], pool["used"]) == (status["total"], status["used"])
    assert pool["metadata_used"] < 0.5 * pool["metadata_size"]


def test_an_unknown_node_is_a_failed_lookup(pve: Any) -> None:
    """500 with the resolver's words, as from a real node."""
    assert refusal(pve.nodes("pve9").status.get).status_code == 500


def test_history_has_rows_up_to_now(pve: Any) -> None:
    """Seventy minutes of figures, the last of this minute."""
    rows = pve.nodes("pve1").rrddata.get(timeframe="hour")
    assert len(rows) == 70
    assert time.time() - rows[-1]["time"] < 120
    assert {"cpu", "memused", "roottotal"} <= rows[-1].keys()


# --- network --------------------------------------------------------------------------------------


def test_a_network_change_waits_until_it_is_applied(pve: Any, folder: Path) -> None:
    """A new bridge shows in the diff, is not active, and is after the reload."""
    node = pve.nodes("pve1")
    node.network.post(iface="vmbr5", type="bridge", autostart=1, bridge_vlan_aware=1, mtu=1400)
    row = next(row for row in node.network.get() if row["iface"] == "vmbr5")
    assert "active" not in row
    assert proxmox_site.finished(pve, node.network.put()) == "OK"
    row = next(row for row in node.network.get() if row["iface"] == "vmbr5")
    assert (row["active"], row["mtu"], row["bridge_vids"]) == (1, "1400", "2-4094")


def test_the_diff_of_pending_changes_is_beside_the_data(pve: Any) -> None:
    """`changes` is a unified diff; a revert takes it away."""
    import requests

    def changes() -> str:
        session = pve._store["session"]
        answer: requests.Response = session.request("GET", f"{pve._store['base_url']}/nodes/pve2/network")
        return answer.json().get("changes", "")

    assert changes() == ""
    pve.nodes("pve2").network("vmbr0").put(type="bridge", bridge_ports="eno1", cidr="10.0.0.2/24", mtu=9000)
    assert "+\tmtu 9000" in changes()
    pve.nodes("pve2").network.delete()
    assert changes() == ""


def test_bridges_are_filtered_by_type(pve: Any) -> None:
    """`type` asks for a kind of interface."""
    assert [row["iface"] for row in pve.nodes("pve1").network.get(type="any_bridge")] == ["vmbr0"]
    assert [row["iface"] for row in pve.nodes("pve1").network.get(type="eth")] == ["eno1"]


# --- storage --------------------------------------------------------------------------------------


def test_storages_say_what_they_are_for(pve: Any) -> None:
    """The filter by content finds those that hold it."""
    holders = {row["storage"] for row in pve.nodes("pve1").storage.get(content="iso", enabled=1)}
    assert holders == {"local", "nas"}
    for row in pve.nodes("pve1").storage.get():
        assert row["active"] == row["enabled"] == 1
        assert row["used"] + row["avail"] == row["total"]
        assert row["used_fraction"] < 0.8


def test_a_storage_can_be_added_changed_and_removed(pve: Any) -> None:
    """Its definition is guarded by a digest; a second of the same name is refused."""
    pve.storage.post(storage="isos", type="dir", path="/srv/isos", content="iso")
    assert "already defined" in refusal(lambda: pve.storage.post(storage="isos", type="dir", path="/x")).content
    digest = pve.storage("isos").get()["digest"]
    pve.storage("isos").put(content="iso,vztmpl", digest=digest)
    assert "modified configuration" in refusal(lambda: pve.storage("isos").put(content="iso", digest=digest)).content
    assert pve.nodes("pve3").storage("isos").status.get()["content"] == "iso,vztmpl"
    pve.storage("isos").delete()
    assert refusal(pve.storage("isos").get).content == "storage 'isos' does not exist"


def test_a_thin_volume_takes_no_room_until_it_is_written(pve: Any) -> None:
    """Allocation on a thin pool leaves its usage as it was."""
    storage = pve.nodes("pve1").storage("local-lvm")
    before = storage.status.get()["used"]
    storage.content.post(filename="vm-998-disk-0", size="300G", vmid=998)
    assert storage.status.get()["used"] == before


# --- pools ----------------------------------------------------------------------------------------


def test_a_pool_must_be_empty_to_go(pve: Any) -> None:
    """Members come and go by PUT; a full pool is refused by the name of a member."""
    pve.pools.post(poolid="runbook", comment="borrowed")
    pve.pools.put(poolid="runbook", storage="local")
    assert [row["id"] for row in pve.pools("runbook").get()["members"]] == [
        f"storage/{node}/local" for node in ("pve1", "pve2", "pve3")
    ]
    refused = refusal(pve.pools("runbook").delete).content
    assert refused == "delete pool failed: pool 'runbook' is not empty (contains storage 'local')"
    pve.pools.put(poolid="runbook", storage="local", delete=1)
    pve.pools("runbook").delete()
    assert "runbook" not in [row["poolid"] for row in pve.pools.get()]


# --- tasks ----------------------------------------------------------------------------------------


def test_the_history_of_the_healthy_site_has_no_failure(pve: Any) -> None:
    """There are tasks, and none of them failed."""
    for node in ("pve1", "pve2", "pve3"):
        assert pve.nodes(node).tasks.get()
        assert pve.nodes(node).tasks.get(errors=1) == []


def test_tasks_are_filtered_and_paged(pve: Any) -> None:
    """By type, by guest, and a page at a time, newest first."""
    node = pve.nodes("pve3")
    for _ in range(3):
        proxmox_site.finished(pve, node.qemu(121).status.stop.post())
    stops = node.tasks.get(typefilter="qmstop")
    assert len(stops) == 3
    assert node.tasks.get(vmid=121, limit=2) == stops[:2]
    assert node.tasks.get(vmid=121, limit=2, start=2) == stops[2:]
    log = node.tasks(stops[0]["upid"]).log.get()
    assert log == [{"n": 1, "t": "TASK OK"}]


def test_a_running_task_can_be_stopped(pve: Any) -> None:
    """An interrupted worker ends with the interrupt."""
    upid = pve.nodes("pve1").qemu(9000).clone.post(newid=190, full=1)
    assert pve.nodes("pve1").tasks(upid).status.get()["status"] == "running"
    pve.nodes("pve1").tasks(upid).delete()
    assert proxmox_site.finished(pve, upid) in ("received interrupt", "OK")


# --- cluster --------------------------------------------------------------------------------------


def test_the_cluster_is_whole(pve: Any) -> None:
    """Quorum, three members, and the one that answers marked as local."""
    head, *members = pve.cluster.status.get()
    assert (head["name"], head["quorate"], head["nodes"]) == ("lab", 1, 3)
    assert [row["name"] for row in members if row["local"]] == ["pve1"]
    assert [row["ring0_addr"] for row in pve.cluster.config.nodes.get()] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_the_next_id_is_the_first_free_one(pve: Any) -> None:
    """As text; a taken one is refused in the errors map."""
    assert pve.cluster.nextid.get() == "100"
    assert refusal(lambda: pve.cluster.nextid.get(vmid=101)).errors == {"vmid": "VM 101 already exists"}


def test_guests_without_a_backup_are_known(pve: Any) -> None:
    """Everything but what the nightly job takes."""
    missing = {row["vmid"] for row in pve.cluster("backup-info")("not-backed-up").get()}
    assert missing == {101, 102, 103, 111, 112, 121, 9000}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The site with one node gone."""
    nodes = {f"pve{n}": {"ip": f"10.0.0.{n}", "online": n != 3} for n in (1, 2, 3)}
    place = proxmox_site.start(tmp_path_factory.mktemp("broken"), {"nodes": nodes, "tasks": []})
    yield place
    control.down(place)


def test_a_lost_node_answers_595_and_its_guests_are_unknown(broken: Path) -> None:
    """The cluster still answers for itself; what goes through to the node does not."""
    pve = proxmox_site.login(broken)
    refused = refusal(pve.nodes("pve3").qemu.get)
    assert refused.status_code == 595
    assert {row["node"]: row["status"] for row in pve.nodes.get()}["pve3"] == "offline"
    rows = {row["vmid"]: row for row in pve.cluster.resources.get(type="vm")}
    assert rows[103]["status"] == "unknown"
    assert rows[101]["status"] == "running"
    stores = {row["id"]: row for row in pve.cluster.resources.get(type="storage")}
    assert stores["storage/pve3/local"]["status"] == "unknown"
    assert pve.cluster.status.get()[0]["quorate"] == 1
