"""What step 22 would borrow: where it keeps its hands off, what it asks for, and what is read off the requests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from two_sides import FakePve, World

from runbook_lib import checks, proofs, proxmox, sweep, trials
from runbook_lib.executors import ProxmoxExecutor
from runbook_lib.facts import Interface, PendingNetwork, Storage
from runbook_lib.journal import Journal
from runbook_lib.model import ChangeKind, Status
from runbook_lib.plan import Applied, Plan, apply, approve, cost
from runbook_lib.site import Site
from runbook_lib.wire import Exchange

RUN = "20261123T190312Z-4f2a"
LATER = "20261124T080000Z-0001"


def site(**names: Any) -> Site:
    """A site as it comes."""
    return Site(name="lab", lab={}, emulated=True, changes="allow", names=names)


class Nodes(FakePve):
    """Three nodes whose networks are as the test says, and an identity that may do what the test says."""

    identity = "runbook@pve!runbook"

    def __init__(self, *, may: str = "pve1 pve2 pve3", vnets: tuple[str, ...] = ()) -> None:
        super().__init__(World())
        self.may, self.vnets, self.quorate = may.split(), vnets, True

    def get(self, path: str, /, **params: Any) -> Any:
        if path == "/access/permissions":
            asked = str(params["path"])
            return {asked: {"Sys.Audit": 1} | ({"Sys.Modify": 1} if asked.rpartition("/")[2] in self.may else {})}
        if path.startswith("/cluster/sdn/"):
            return [{"vnet": name, "zone": "z"} for name in self.vnets] if path.endswith("vnets") else []
        if path == "/cluster/status":
            return [{"type": "cluster", "name": "lab", "quorate": int(self.quorate)}]
        if path == "/cluster/resources":
            return [{"vmid": 9198, "type": "qemu"}]
        return [] if path.endswith("/network") else super().get(path, **params)


def bridge(node: str, name: str = "vmbr0") -> Interface:
    """A bridge on a node."""
    return Interface(node, name, "bridge", True, True)


def planned(pve: Any, *, waits: str = "", own: Any = None, extra: tuple[Interface, ...] = (), run: str = RUN) -> Any:
    """The bridge trial of three nodes, on some of which changes wait."""
    interfaces = [*(bridge(f"pve{n}") for n in (1, 2, 3)), *extra]
    pending = [PendingNetwork(f"pve{n}", "+auto vmbr9" if f"pve{n}" in waits else "") for n in (1, 2, 3)]
    return trials.bridge_trials(pve, own or site(), run, interfaces=interfaces, pending=pending)


def nodes_of(wanted: Any) -> list[str]:
    """The nodes that would be changed, once each, in order."""
    return list(dict.fromkeys(change.target.split("/")[2] for change in wanted.changes))


def test_a_bridge_is_asked_for_and_applied_node_after_node():
    """Every change is borrowed, names the bridge alone, and the second says that the network reloads."""
    changes = planned(Nodes()).changes
    assert [(c.action, c.request["method"]) for c in changes] == [("create", "POST"), ("apply", "PUT")] * 3
    assert {c.kind for c in changes} == {ChangeKind.BORROW}
    assert all("RELOADS THE NETWORK" in c.summary for c in changes[1::2])
    params = changes[0].request["params"]
    assert set(params) == {"iface", "type", "autostart", "comments"} and len(params["iface"]) <= 10


@pytest.mark.parametrize(
    ("given", "nodes", "problem"),
    [
        ({"waits": "pve2"}, ["pve1", "pve3"], "pve2: network changes wait"),
        ({"own": site(nodes=("pve3",))}, ["pve3"], ""),
    ],
)
def test_nothing_is_planned_where_it_must_not_be(given: Mapping[str, Any], nodes: list[str], problem: str):
    """Not beside somebody's waiting edit, and not on a node that the site does not allow."""
    wanted = planned(Nodes(), **given)
    assert nodes_of(wanted) == nodes
    assert len(wanted.problems) == bool(problem) and all(problem in each for each in wanted.problems)


def test_without_sys_modify_nothing_is_planned():
    """The privilege is named with its path, and the check skips."""
    wanted = planned(Nodes(may="pve1"))
    assert nodes_of(wanted) == ["pve1"]
    assert wanted.problems[0] == "pve2: runbook@pve!runbook lacks Sys.Modify on /nodes/pve2"
    found = checks.trials.trials_may_begin(wanted)
    assert [entry.status for entry in found] == [Status.SKIP, Status.SKIP, Status.PASS]


def test_the_name_is_free_on_every_node_and_no_vnet():
    """One name for all nodes; what exists anywhere is not touched."""
    wanted = planned(Nodes(vnets=("vmbr1001",)), extra=(bridge("pve3", "vmbr1000"),))
    assert {change.target.rpartition("/")[2] for change in wanted.changes} == {"vmbr1002"}


def whole(pve: Any, run: str) -> Plan:
    """Everything that step 22 tries."""
    interfaces = [bridge(f"pve{n}") for n in (1, 2, 3)]
    storages = proxmox.storages(pve)
    wanted = trials.all_trials(pve, site(), run, interfaces=interfaces, pending=[], storages=storages)
    return Plan("lab", wanted.changes, run)


def test_a_cluster_without_quorum_is_left_alone():
    """It would take some of the writes and refuse others."""
    pve = Nodes()
    pve.quorate = False
    wanted = trials.all_trials(pve, site(), RUN, interfaces=[bridge("pve1")], pending=[], storages=[])
    assert wanted.changes == () and "no quorum" in wanted.problems[0]


def test_an_approval_is_good_for_the_next_run():
    """The plan of another run has the same digest, so `changes: ask` comes to an end."""
    assert whole(Nodes(), RUN).digest == whole(Nodes(), LATER).digest


def test_the_whole_trial_stays_within_the_usual_budget():
    """One VM, a few GiB, a few minutes."""
    wanted = cost(whole(Nodes(), RUN).changes)
    assert wanted["vms"] == 1 and wanted["gib"] < 10 and wanted["minutes"] == 3


def storage(name: str, content: str, node: str = "pve1", **given: Any) -> Storage:
    """One storage on one node."""
    usual: dict[str, Any] = {"type": "lvmthin", "active": True, "enabled": True, "shared": False, "available_bytes": 9}
    return Storage(node, name, content=tuple(content.split(",")), **{**usual, **given})


def test_a_shared_storage_is_tried_once_and_a_local_one_on_each_node():
    """Each local disk storage is a place of its own."""
    local = [storage("local", "iso", node, type="dir") for node in ("pve1", "pve2")]
    shared = [storage("nas", "images", node, type="nfs", shared=True) for node in ("pve1", "pve2")]
    changes = trials.volume_trials(site(), RUN, storages=[*local, *shared]).changes
    places = [change.target.split("/content/")[0] for change in changes]
    assert places.count("/nodes/pve1/storage/nas") == trials.SAMPLES
    assert places.count("/nodes/pve2/storage/local") == trials.ISO_SAMPLES
    assert "/nodes/pve2/storage/nas" not in places
    assert all(change.request["params"]["filename"].endswith(".raw") for change in changes if "nas" in change.target)


def test_volumes_are_made_listed_and_gone(tmp_path: Path):
    """Each under a name of its own; the clean-up proves them gone."""
    pve = Nodes()
    storages = [row for row in proxmox.storages(pve) if row.name == "local-lvm"]
    wanted = trials.volume_trials(site(), RUN, storages=storages)
    hands = {"proxmox": ProxmoxExecutor(lambda: pve, root=tmp_path, sleep=lambda seconds: None)}
    plan, journal = Plan("lab", wanted.changes, RUN), Journal(tmp_path / "changes.jsonl")
    applied = apply(plan, approve(plan, "allow", tmp_path), journal, hands)
    listed = proofs.listed_volumes(pve, applied)
    assert len({row.volid for row in listed}) == trials.SAMPLES and all(row.found for row in listed)
    assert sweep.clean_up(journal, hands, run=RUN).clean
    assert not any(row.found for row in proofs.listed_volumes(pve, applied))


def test_the_disks_vm_takes_a_free_id_and_never_starts():
    """9199 is of the volumes, 9198 is taken; VM and resize are both taken back by removing the VM."""
    pve = Nodes()
    made, grown = trials.disk_trial(pve, site(), RUN, storages=proxmox.storages(pve)).changes
    assert made.request["params"]["vmid"] == 9197 and "start" not in made.request["params"]
    assert "net0" not in made.request["params"] and "pool" not in made.request["params"]
    assert made.undo == grown.undo and grown.request["params"] == {"disk": "scsi0", "size": "+1G"}


def test_the_disks_vm_needs_a_free_id():
    """None left is a problem, not somebody else's VM."""
    own = site(vmid_range={"start": 9198, "end": 9199})
    wanted = trials.disk_trial(Nodes(), own, RUN, storages=[storage("local-lvm", "images")])
    assert wanted.changes == () and "9198 to 9199" in wanted.problems[0]


def exchange(method: str, path: str, at: float, seconds: float, change: str = "", status: int = 200) -> Exchange:
    """One request, `at` seconds after noon."""
    return Exchange("proxmox", method, path, status, "OK", seconds, 1, f"2026-11-23T12:00:{at:06.3f}Z", change=change)


def test_a_reading_goes_to_the_end_of_the_task():
    """Allocation ends with its answer, freeing with the last look at its task; what failed is no reading."""
    (change, *_) = trials.volume_trials(site(), RUN, storages=[storage("nas", "images")]).changes
    applied = Applied(Plan("lab", (replace(change, id="22-01"),), RUN))
    content = "/nodes/pve1/storage/nas/content"
    seen = [
        exchange("POST", content, 1, 9.0, "22-01", status=500),
        exchange("POST", content, 2, 0.25, "22-01"),
        exchange("GET", content, 3, 0.1),
        exchange("DELETE", f"{content}/x", 4, 0.1, "22-01"),
        exchange("GET", "/nodes/pve1/tasks/UPID/status", 5, 0.1),
        exchange("GET", "/nodes/pve1/tasks/UPID/status", 6, 0.5),
        exchange("GET", content, 9, 0.1),
    ]
    found = {(m.name, m.subject, m.unit): [round(v) for v in m.values] for m in trials.storage_timings(seen, applied)}
    assert found == {
        ("allocate a volume", "pve1/nas", "ms"): [250],
        ("free a volume", "pve1/nas", "ms"): [2500],
    }


def test_what_was_refused_has_no_timings():
    """With `changes: forbid` nothing was sent, so nothing is measured and nothing is listed."""
    wanted = trials.volume_trials(site(), RUN, storages=[storage("nas", "images")])
    applied = Applied(Plan("lab", wanted.changes, RUN), refused="the site's parameters say `changes: forbid`")
    assert trials.storage_timings([exchange("POST", "/x", 1, 1, wanted.changes[0].id)], applied) == []
    assert proofs.listed_volumes(Nodes(), applied) == []
    assert trials.tried_bridges(Nodes(), applied) == [] and trials.grown_disks(Nodes(), applied) == []


def test_reads_are_timed_once_for_a_shared_storage():
    """Status and content of every place."""
    rows = [storage("nas", "images", node, shared=True) for node in ("pve1", "pve2")] + [storage("data", "images")]
    names = list(trials.read_endpoints(rows))
    assert names == ["nas status", "nas content", "pve1/data status", "pve1/data content"]
