"""High availability through proxmoxer: resources, rules and groups, and guests that move when their node dies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import ha
from runbook_lib.lab.proxmox.state import PveState, areas

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import eventually, finished, login, refusal, start  # lies beside this file

HOME = {"nodes": {f"pve{n}": {"ip": f"10.0.0.{n}"} for n in (1, 2, 3)}}
SHARED = {"nas": {"type": "nfs", "content": ["images"], "options": {"server": "10.0.0.9", "export": "/x"}}}


def guest(node: str, **more: Any) -> dict[str, Any]:
    """A small VM on a shared storage."""
    return {
        "node": node,
        "config": {"name": "vm", "memory": 512, "scsi0": "nas:100/vm-100-disk-0.qcow2,size=1G"},
        **more,
    }


def cluster(flavour: str = "9.2", **section: Any) -> PveState:
    """Three nodes whose manager is called by hand, in time that stands still."""
    areas()
    given = {"flavour": flavour, "cluster_name": "lab", **HOME, "storages": SHARED, **section}
    return PveState.from_scenario(given, clock=Clock(0))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab of three nodes on 9.2."""
    from runbook_lib.lab import control

    folder = start(tmp_path_factory.mktemp("ha"))
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


def test_a_resource_is_made_shown_and_taken_away(pve: Any) -> None:
    """By number or by sid; twice is refused in the server's words."""
    pve.cluster.ha.resources.post(sid="120", state="ignored", comment="by hand")
    row = pve.cluster.ha.resources("vm:120").get()
    assert (row["type"], row["state"], row["comment"]) == ("vm", "ignored", "by hand")
    again = refusal(lambda: pve.cluster.ha.resources.post(sid="vm:120"))
    assert "resource ID 'vm:120' already defined" in str(again)
    pve.cluster.ha.resources("vm:120").put(state="started", max_restart=3, digest=row["digest"])
    stale = refusal(lambda: pve.cluster.ha.resources("vm:120").put(comment="x", digest=row["digest"]))
    assert "detected modified configuration" in str(stale)
    pve.cluster.ha.resources("vm:120").delete()
    assert "is not HA managed" in str(refusal(lambda: pve.cluster.ha.resources("vm:120").delete()))


def test_a_managed_guest_is_started_and_stopped_by_the_manager(pve: Any) -> None:
    """The API only changes what is asked; the manager's own task does it."""
    vm = pve.nodes("pve3").qemu(120)
    pve.cluster.ha.resources.post(sid="vm:120", state="started")
    upid = vm.status.stop.post()
    assert ":hastop:" in upid and finished(pve, upid) == "OK"
    eventually(lambda: vm.status.current.get()["status"] == "stopped")
    assert ":hastart:" in vm.status.start.post()
    eventually(lambda: vm.status.current.get()["status"] == "running")
    states = {row["id"]: row for row in pve.cluster.ha.status.current.get()}
    assert states["service:vm:120"]["request_state"] == "started"
    assert states["fencing"]["armed-state"] == "armed"
    assert "active" in states["lrm:pve3"]["status"]
    pve.cluster.ha.resources("vm:120").delete()


def test_groups_have_become_rules_on_9(pve: Any) -> None:
    """Each endpoint of groups says so; a rule wants resources that are under HA and nodes that are there."""
    assert "cannot index groups: ha groups have been migrated to rules" in str(refusal(pve.cluster.ha.groups.get))
    create = pve.cluster.ha.groups.post
    assert "ha groups have been migrated" in str(refusal(lambda: create(group="g1", nodes="pve1")))
    rule = {"rule": "home", "type": "node-affinity", "resources": "vm:120", "nodes": "pve3:2,pve2"}
    unmanaged = refusal(lambda: pve.cluster.ha.rules.post(**rule))
    assert "cannot use unmanaged resource(s) vm:120." in str(unmanaged)
    pve.cluster.ha.resources.post(sid="vm:120")
    pve.cluster.ha.rules.post(**rule)
    row = pve.cluster.ha.rules("home").get()
    assert (row["strict"], row["nodes"], row["order"]) == (0, "pve3:2,pve2", 1)
    again = refusal(lambda: pve.cluster.ha.rules.post(**{**rule, "rule": "other"}))
    assert again.status_code == 400 and "resources" in again.errors
    pve.cluster.ha.resources("vm:120").delete()
    assert pve.cluster.ha.rules.get() == []


def test_a_guest_moves_when_its_node_dies() -> None:
    """Silent for a minute is fenced; after two its guest belongs to another node, and is started there."""
    state = cluster(guests={100: guest("pve3", running=True)}, ha={"resources": {"vm:100": {"state": "started"}}})
    ha.manage(state)
    state.nodes["pve3"].online = False
    ha.manage(state)
    assert ha.node_words(state)["pve3"] == "unknown"
    state.clock.advance(61)
    ha.manage(state)
    assert (ha.node_words(state)["pve3"], ha.verbose_state(state, "vm:100")) == ("fence", "fence")
    assert state.guests[100].node == "pve3"
    state.clock.advance(60)
    ha.manage(state)
    assert (state.guests[100].node, state.guests[100].running) == ("pve1", False)
    assert ha.verbose_state(state, "vm:100") == "starting"


def test_without_quorum_nothing_moves() -> None:
    """One of three nodes alone decides nothing."""
    state = cluster(guests={100: guest("pve3", running=True)}, ha={"resources": {"vm:100": {}}})
    ha.manage(state)
    state.nodes["pve3"].online = state.nodes["pve2"].online = False
    for _ in range(3):
        state.clock.advance(100)
        ha.manage(state)
    assert state.guests[100].node == "pve3"


@pytest.mark.parametrize(
    ("flavour", "section", "best"),
    [
        ("8.4", {"groups": {"g": {"nodes": "pve2:1,pve3"}}, "resources": {"vm:100": {"group": "g"}}}, ["pve2"]),
        ("8.4", {"resources": {"vm:100": {}}}, ["pve2", "pve3", "pve1"]),
        (
            "9.2",
            {
                "resources": {"vm:100": {}},
                "rules": {"r": {"type": "node-affinity", "resources": "vm:100", "nodes": "pve3:5,pve1"}},
            },
            ["pve3"],
        ),
        (
            "9.2",
            {
                "resources": {"vm:100": {}, "vm:101": {}},
                "rules": {"r": {"type": "resource-affinity", "affinity": "negative", "resources": "vm:100,vm:101"}},
            },
            ["pve3", "pve1"],
        ),
    ],
)
def test_where_a_guest_may_go(flavour: str, section: dict[str, Any], best: list[str]) -> None:
    """Priorities of a group or rule first, then apart from or together with others, then the emptiest node."""
    guests = {100: guest("pve1"), 101: guest("pve2")} if "vm:101" in section["resources"] else {100: guest("pve1")}
    state = cluster(flavour, guests=guests, ha=section)
    assert ha.candidates(state, "vm:100") == best
