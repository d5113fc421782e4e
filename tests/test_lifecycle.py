"""The life of machines without machines: what is ordered, planned, followed and measured."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_evidence import NAME, machine, own, scene, vm
from test_machine_orders import apis, ordered
from two_sides import FakePve, World

from runbook_lib import benchmark, lifecycle, sweep
from runbook_lib.evidence import Moment, Scene
from runbook_lib.executors import ProxmoxExecutor, guest_undo
from runbook_lib.facts import Accepted, Interface, Storage, Template
from runbook_lib.lifecycle import Followed, Ordered
from runbook_lib.model import Change, ChangeKind, Measurement, Run, Status, StepRecord, StepResult
from runbook_lib.plan import Applied, Plan, Search, apply, approve, cost, part
from runbook_lib.site import Site
from runbook_lib.wire import Exchange

RUN = "20261124T080000Z-4f2a"


def site(**machines: Any) -> Site:
    """A site as it comes, with room for three machines and one more."""
    given = {"machines": machines, "budget": {"vms": 4, "gib": 128, "minutes": 30}}
    return Site(name="lab", lab={}, emulated=True, changes="allow", **given)


def template() -> Template:
    """The template that the order names."""
    return Template(9000, "debian", "pve1", True, "ide2", "virtio-scsi-single", "order=scsi0", True, ("scsi0",),
                    ("net0",), "l26")  # fmt: skip


def order(generation: str = "v1alpha1", **more: Any) -> Ordered:
    """An order with everything in place."""
    given: dict[str, Any] = {"templates": (template(),), "count": 3, "linked": True} | more
    return Ordered(ordered(generation), **given)


def test_life_is_one_plan_in_parts():
    """Created before it is scaled, rolled before it is robbed; each part is sent by its name."""
    wanted = lifecycle.life(order(), site(), RUN)
    plan = Plan("lab", wanted.changes, RUN)
    parts = list(dict.fromkeys(change.action for change in wanted.changes))
    assert parts == ["create", "scale up", "scale down", "roll", "lose", "clone"]
    assert [change.action for change in part(plan, lifecycle.ROLL)] == ["roll", "roll"]
    assert all(change.kind is ChangeKind.BORROW and change.undo for change in wanted.changes)


def test_budget_counts_the_machine_that_replaces_another():
    """Three at most, two while one is rolled; the clones come and go one at a time."""
    assert cost(lifecycle.life(order(), site(), RUN).changes)["vms"] == 3
    assert cost(lifecycle.life(order(count=1), site(), RUN).changes)["vms"] == 2


def test_nothing_is_planned_where_anything_is_in_the_way():
    """Half a cluster teaches nothing; the reason stands where the plan would."""
    broken = lifecycle.life(replace(order(), problems=("vmbr0 has no gateway",)), site(), RUN)
    refused = lifecycle.life(order(), site(), RUN, refused=[Accepted("Cluster", refusal="unknown field")])
    assert broken.changes == refused.changes == ()
    assert broken.problems == ("machines: vmbr0 has no gateway",)
    assert refused.problems == ("machines: Cluster: unknown field",)


def test_everything_that_is_made_bears_the_mark_from_the_first_moment():
    """The run's id is in the label of each object and in the name of each clone."""
    for change in lifecycle.life(order(), site(), RUN).changes:
        if change.system == "kubernetes":
            assert change.request["manifest"]["metadata"]["labels"]["runbook.cozystack.io/run"] == RUN
        elif change.action == lifecycle.CLONE and "params" in change.request:
            assert change.request["params"]["name"].endswith("runbook-20261124t080000z-4f2a")


def test_linked_clones_are_tried_where_they_can_be():
    """Of raw files and thick volumes Proxmox VE clones none linked."""
    names = [
        change.request["params"]["name"]
        for linked in (True, False)
        for change in lifecycle.life(order(linked=linked), site(clone_samples=1), RUN).changes
        if "params" in change.request
    ]
    assert [name.split("-")[1] for name in names] == ["full", "linked", "full"]
    assert not [c for c in lifecycle.life(order(), site(clone_samples=0), RUN).changes if c.action == "clone"]


@pytest.mark.parametrize(("shared", "nodes"), [(True, ("pve1", "pve2")), (False, ())])
def test_machines_leave_the_templates_node_only_from_shared_storage(shared: bool, nodes: tuple[str, ...]):
    """Proxmox VE refuses a clone to another node from local storage."""
    rows = [
        Storage(node, name, kind, ("images",), True, True, common)
        for node in ("pve1", "pve2")
        for name, kind, common in (("nas", "nfs", True), ("local-lvm", "lvmthin", False))
    ]
    names = site().names.model_copy(update={"disk_storage": "nas"})
    volid = "nas:9000/base.qcow2" if shared else "local-lvm:base-9000-disk-0"
    assert lifecycle._allowed(volid, rows, names, template()) == nodes


def test_bridge_of_the_templates_node_tells_the_network():
    """One with a gateway goes before one without."""
    rows = [
        Interface("pve1", "vmbr0", "bridge", True, True, cidr="10.0.0.1/24"),
        Interface("pve2", "vmbr0", "bridge", True, True, cidr="10.0.0.2/24", gateway="10.0.0.254"),
    ]
    assert lifecycle._network_of(rows, "vmbr0", "pve2").gateway == "10.0.0.254"  # type: ignore[union-attr]
    assert lifecycle._network_of(rows, "vmbr0", "").node == "pve2"  # type: ignore[union-attr]
    assert lifecycle._network_of(rows, "vmbr9", "") is None


# --- following -----------------------------------------------------------------------------------------


class Reel:
    """A view that shows one scene after the other, the last one for ever."""

    def __init__(self, *scenes: Scene, network: bool = False) -> None:
        self.scenes = list(scenes)
        chart = {"chartRef": {"name": "x"}} if network else {}
        self.ordered = replace(order(), order=replace(order().order, network_chart=chart))

    def scene(self, *, logs: bool = False) -> Scene:
        return self.scenes.pop(0) if len(self.scenes) > 1 else self.scenes[0]


def sent() -> Applied:
    """A part of a plan that was sent."""
    changes = lifecycle.life(order(), site(), RUN).changes
    return Applied(Plan("lab", changes, RUN), changes[:1])


def follow(reel: Reel, applied: Applied | None = None, **more: Any) -> Followed:
    """What is followed on a clock that counts the looks."""
    ticks = itertools.count()
    return lifecycle.follow(
        reel,  # type: ignore[arg-type]
        applied or sent(),
        **{"count": 1, "minutes": 0.1, **more},
        clock=lambda: float(next(ticks)),
        sleep=lambda seconds: None,
    )


def test_following_ends_when_the_machine_is_there():
    """Each stage is kept with the time of the first look that showed it."""
    found = follow(Reel(Scene(machines=(machine(node=""),)), scene()))
    at = {row.stage: row.seconds for row in found.moments}
    assert (at["Machine"], at["running"], found.late) == (1.0, 2.0, False)


def test_following_ends_late_with_what_was_seen():
    """A machine that never comes costs the minutes and no more."""
    found = follow(Reel(scene(proxmox_machines=(own(ready=False),))))
    assert found.late and [row.name for row in found.scene.machines] == [NAME]


def test_following_ends_early_where_a_machine_was_given_up():
    """A terminal failure never heals."""
    found = follow(Reel(scene(proxmox_machines=(own(ready=False, failure="InsufficientResources: x"),))))
    assert not found.late and found.seconds < 5


@pytest.mark.parametrize("network", [False, True])
def test_node_without_a_network_is_waited_for_only_where_one_is_installed(network: bool):
    """Without anybody to install one it would never be Ready."""
    waiting = scene(nodes=(replace(scene().nodes[0], ready="False", message="cni plugin not initialized"),))
    assert follow(Reel(waiting, network=network)).late is network


def test_machines_that_leave_are_timed_when_neither_side_has_them():
    """A Machine that is gone while its VM is not is not gone."""
    both = scene(machines=(machine(), machine("demo-md-old-x")), vms=(vm(), vm(101, "demo-md-old-x")))
    half = scene(vms=(vm(), vm(101, "demo-md-old-x")))
    found = follow(Reel(both, half, scene()))
    assert found.gone == {"demo-md-old-x": 3.0}


def test_old_machines_must_be_gone_and_new_ones_of_the_new_memory():
    """A roll is over when no VM of the old template is left."""
    stale = scene()
    fresh = scene(machines=(machine("demo-md-new-x"),), proxmox_machines=(own("demo-md-new-x"),),
                  vms=(vm(name="demo-md-new-x", memory_mib=4608),), claims=(), nodes=scene().nodes)  # fmt: skip
    found = follow(Reel(stale, fresh), without=[NAME], memory_mib=4608)
    assert [row.name for row in found.scene.machines] == ["demo-md-new-x"] and not found.late


def test_nothing_is_followed_where_nothing_was_sent():
    """A site that forbids changes gives a reason instead of a scene."""
    forbidden = follow(Reel(scene()), Applied(sent().plan, refused="the site says forbid"))
    empty = follow(Reel(scene()), Applied(Plan("lab", ())))
    assert (forbidden.refused, empty.refused) == ("the site says forbid", "nothing was asked for")
    assert forbidden.moments == empty.moments == ()


# --- measuring -----------------------------------------------------------------------------------------


def test_samples_are_of_machines_that_came_meanwhile():
    """One that ran at the first look tells nothing of how long that took."""
    old = [Moment("old", stage, 0.0, "") for stage in ("Machine", "running", "Node")]
    new = [Moment("new", "Machine", 0.0, ""), Moment("new", "running", 4.0, ""), Moment("new", "Node", 6.0, "")]
    rows = lifecycle.measurements(Followed(Scene(), (*old, *new)), left=[Followed(Scene(), gone={"old": 2.5})])
    found = {row.name: row.values for row in rows}
    assert found["machine: ordered to running"] == (4.0,)
    assert found["machine: running to Node"] == (2.0,)
    assert found["machine: deleted to gone"] == (2.5,)


def test_several_at_a_time_are_one_sample_of_the_last():
    """What a clone storm costs is when the last machine runs."""
    rows = [Moment(name, "Machine", 0.0, "") for name in "ab"] + [Moment("a", "running", 3.0, ""),
                                                                 Moment("b", "running", 9.0, "")]  # fmt: skip
    found = {row.name: row.values for row in lifecycle.measurements(Followed(Scene(), tuple(rows)))}
    assert found["several machines: ordered to the last one running"] == (9.0,)


def test_clone_counts_until_its_task_has_ended():
    """Full and linked apart; a refused one is no sample."""
    changes = [
        change for change in lifecycle.life(order(), site(clone_samples=1), RUN).changes if change.action == "clone"
    ]
    plan = Plan("lab", tuple(changes), RUN)
    full, linked = (change.id for change in changes if "params" in change.request)

    def sent_at(second: int, method: str, path: str, change: str = "", status: int = 200) -> Exchange:
        stamp = f"2026-11-24T08:00:{second:02d}+00:00"
        return Exchange("proxmox", method, path, status, "", 0.5, 1, stamp, change=change)

    seen = [
        sent_at(0, "POST", "/nodes/pve1/qemu/9000/clone", full),
        sent_at(7, "GET", "/nodes/pve1/tasks/UPID/status"),
        sent_at(10, "POST", "/nodes/pve1/qemu/9000/clone", linked, 500),
    ]
    found = {row.name: row.values for row in lifecycle.clone_timings(seen, Applied(plan, plan.changes))}
    assert found == {"clone, full": (7.5,)}


def test_last_run_stands_beside_this_one():
    """The newest earlier run counts, and this one is none of them."""

    def run(name: str, value: float) -> Run:
        measured = (Measurement("clone, full", "s", (value,)),)
        result = StepResult("24", "", "lab", name, Status.PASS, "", "", 1.0, measurements=measured)
        return Run(name, "lab", "", (StepRecord("24", "", "", Status.PASS, result=result),))

    runs = [run("1", 9.0), run("2", 4.0), run("3", 6.0)]
    rows = benchmark.against_last([Measurement("clone, full", "s", (6.0,))], runs, this="3")
    assert (rows[0]["last run"], rows[0]["last median"], rows[0]["ratio"]) == ("2", 4.0, 1.5)
    assert benchmark.against_last([Measurement("new", "s", (1.0,))], [run("1", 9.0)])[0]["ratio"] is None


# --- hands ---------------------------------------------------------------------------------------------


class Running(FakePve):
    """A Proxmox VE whose VM 9100 runs until it is stopped, and has a bootstrap image."""

    def __init__(self, name: str) -> None:
        super().__init__(World())
        self.world.state["guests"]["9100"] = {"name": name, "status": "running"}
        iso = {"volid": "local:iso/user-data-9100.iso", "content": "iso", "size": 1, "format": "iso"}
        self.world.state["volumes"]["local"].append(iso)

    def get(self, path: str, /, **params: Any) -> Any:
        if path == "/nodes/pve1/qemu":
            return [{"vmid": int(vmid), **row} for vmid, row in self.world.state["guests"].items()]
        if path.endswith("/status/current"):
            return self.world.state["guests"][path.split("/")[4]]
        return super().get(path, **params)

    def _write(self, method: str, path: str, params: dict[str, Any]) -> Any:
        guests = self.world.state["guests"]
        if path.endswith("/status/stop"):
            guests["9100"]["status"] = "stopped"
            return self._upid("qmstop")
        if method == "DELETE" and path == "/nodes/pve1/qemu/9100" and guests["9100"]["status"] == "running":
            self._fails(method, path, "VM 9100 is running - destroy failed")
        return super()._write(method, path, params)


MARKED = "runbook-20261124t080000z-4f2a"


def test_running_vm_is_stopped_and_its_image_removed_before_it_goes(tmp_path: Path):
    """The image holds a join token; a VM that runs cannot be destroyed."""
    pve = Running(f"{MARKED}-md-abcde-x")
    undo = guest_undo("pve1", 9100, RUN, field="name")
    change = Change("24-01", "proxmox", "create", "/nodes/pve1/qemu/9100", "", undo=undo)
    proof = ProxmoxExecutor(lambda: pve, root=tmp_path).undo(change)
    assert "no longer lists it" in proof
    assert pve.world.state["guests"] == {} and pve.world.state["volumes"]["local"] == []


def test_vm_of_somebody_else_is_left_alone(tmp_path: Path):
    """Not even stopped, and its image stays."""
    pve = Running("gitlab")
    change = Change("24-01", "proxmox", "create", "", "", undo=guest_undo("pve1", 9100, RUN, field="name"))
    proof = ProxmoxExecutor(lambda: pve, root=tmp_path).undo(change)
    assert "left alone" in proof and pve.world.state["guests"]["9100"]["status"] == "running"
    assert len(pve.world.state["volumes"]["local"]) == 1


def test_vm_is_lost_on_purpose_only_by_the_mark_in_its_name(tmp_path: Path):
    """The first of this cluster's VMs; where there is none that is an error and nothing is touched."""
    pve, stranger = Running(f"{MARKED}-md-abcde-x"), Running("gitlab")
    lose = next(change for change in lifecycle.life(_marked(), site(), RUN).changes if change.action == "lose")
    plan = Plan("lab", (lose,), RUN)
    approval = approve(plan, "allow", tmp_path)
    from runbook_lib.errors import NotFound
    from runbook_lib.journal import Journal

    hands = {"proxmox": ProxmoxExecutor(lambda: pve, root=tmp_path, sleep=lambda seconds: None)}
    answer = apply(plan, approval, Journal(tmp_path / "changes.jsonl"), hands).answers[lose.id]
    assert answer["vmid"] == 9100 and pve.world.state["guests"] == {}
    with pytest.raises(NotFound):
        ProxmoxExecutor(lambda: stranger, root=tmp_path).send(lose)
    assert stranger.world.state["guests"]["9100"]["status"] == "running"


def _marked() -> Ordered:
    return replace(order(), order=replace(order().order, name=MARKED))


def test_vm_is_found_by_the_mark_in_its_name(tmp_path: Path):
    """A clone bears its name long before its tags."""
    found: Search = ProxmoxExecutor(lambda: Running(f"{MARKED}-md-abcde-x"), root=tmp_path).marked(RUN)
    assert [(thing.target, thing.kept) for thing in found.things] == [("/nodes/pve1/qemu/9100", False)]


def test_strays_go_in_the_order_their_controllers_demand():
    """A Cluster before its infrastructure, VMs after the controllers that may take them along."""
    from runbook_lib.plan import Marked

    names = ("v1/Namespace/x", "i/v1/ProxmoxCluster/ns/x", "c/v1/Cluster/ns/x", "c/v1/MachineDeployment/ns/x-md",
             "h/v2/HelmRelease/ns/x-cilium")  # fmt: skip
    things = [Marked("proxmox", "/nodes/pve1/qemu/9100", RUN, False)]
    things += [Marked("kubernetes", name, RUN, False) for name in names]
    turns = [thing.target.split("/")[-3:][0] for thing in sorted(things, key=sweep._turn)]
    assert [thing.target for thing in sorted(things, key=sweep._turn)][-1] == "/nodes/pve1/qemu/9100"
    assert turns[:3] == ["HelmRelease", "MachineDeployment", "Cluster"]


def test_order_of_the_new_generation_uses_its_own_versions():
    """Where both are served the newer one is asked for."""
    assert (apis("v1alpha2").generation, apis("v1alpha2").core) == ("v1alpha2", "v1beta2")


def test_stuck_deletion_is_helped_by_taking_the_vms_away():
    """CAPMOX never gets over a bootstrap image that is gone already; once nobody has the VM's number, it lets go."""
    from runbook_lib.errors import UnfinishedChange
    from runbook_lib.plan import Marked

    seen: list[tuple[str, Any]] = []

    class Cluster:
        """Deletes its machines only when their VM is gone."""

        def undo(self, change: Change) -> str:
            seen.append(("cluster", (change.undo or {})["seconds"]))
            if ("vm", "/nodes/pve1/qemu/9100") not in seen:
                raise UnfinishedChange("take back", "it is still being deleted")
            return "gone"

    class Guests:
        """Has one VM of the run and one thing that is none."""

        def marked(self, run: str | None, targets: Any = ()) -> Search:
            return Search(
                (Marked("proxmox", "/nodes/pve1/qemu/9100", RUN, False), Marked("proxmox", "/pools/x", RUN, False))
            )

        def undo(self, change: Change) -> str:
            seen.append(("vm", change.target))
            return "gone"

    change = next(c for c in lifecycle.life(order(), site(), RUN).changes if c.target.endswith("/demo-md"))
    proof = sweep._taken_back(change, {"kubernetes": Cluster(), "proxmox": Guests()}, RUN)  # type: ignore[dict-item]
    assert proof == "gone"
    assert seen == [("cluster", 60), ("vm", "/nodes/pve1/qemu/9100"), ("cluster", 900)]
