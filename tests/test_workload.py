"""The workload of step 43: its plan, what the client's log tells, and the witness."""

from __future__ import annotations

from typing import Any

import pytest

from runbook_lib import kubernetes_workload, staging, workload
from runbook_lib.csi import Setting
from runbook_lib.errors import NotFound
from runbook_lib.facts import Ability, ClassCase, NodeMachine, Request, Stage
from runbook_lib.kubernetes_workload import Doors
from runbook_lib.model import ChangeKind
from runbook_lib.plan import cost
from runbook_lib.site import Site

RUN = "20261124T065823Z-03ea"
HOME = "runbook-e2e-20261124t065823z-03ea"


def site(**given: Any) -> Site:
    """A site as far as a plan asks."""
    return Site(name="s", emulated=True, lab={"scenario": "healthy"}, **given)  # type: ignore[arg-type]


def node(name: str, host: str, **given: Any) -> NodeMachine:
    """A worker with the driver on that Proxmox node."""
    known = {"vmid": 111, "host": host, "max_volumes": 24}
    return NodeMachine(name, "True", True, "u", "", "lab", host, **(known | given))


def case(name: str, *, shared: bool = False, **given: Any) -> ClassCase:
    """A class that the cluster has."""
    return ClassCase(name, name, "nfs" if shared else "lvmthin", shared, ("pve1", "pve2"), {}, made=True, **given)


def setting(*classes: ClassCase, machines: tuple[NodeMachine, ...] | None = None) -> Setting:
    """Two workers, and these classes."""
    held = (node("w1", "pve1"), node("w2", "pve2")) if machines is None else machines
    return Setting("csi-proxmox", "lab", "default", held, classes, "https://pve1:8006", "0.19.1", False)


# --- the plan ----------------------------------------------------------------------------------------


def test_everything_lies_in_the_namespace_of_the_run():
    """Nothing of the site's own is touched."""
    wanted = workload.life(site(), RUN, setting(case("c")), doors=Doors(("pool",)))
    assert wanted.changes[0].target == f"v1/Namespace/{HOME}"
    assert all(f"/{HOME}" in change.target for change in wanted.changes)
    assert {change.kind for change in wanted.changes} == {ChangeKind.BORROW}


def test_every_change_can_be_taken_back():
    """Each has an undo; what is created is deleted by its mark, and claims with their disks."""
    wanted = workload.life(site(), RUN, setting(case("c")))
    assert all(change.undo for change in wanted.changes)
    [data] = [change for change in wanted.changes if "/StatefulSet/" in change.target]
    assert (data.undo or {})["claims"] == ["data-data-0", "data-data-1"]


def test_shared_storage_is_taken_before_local():
    """A volume that can move is what a workload wants."""
    found, problem = workload.storage_for(setting(case("a"), case("b", shared=True)))
    assert found is not None and (found.name, problem) == ("b", "")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (setting(), "step 32 makes them"),
        (setting(case("c", problems=("there is no storage c",))), "step 32 makes them"),
        (setting(case("c"), machines=(node("w1", "pve3"),)), "no worker with the driver"),
    ],
)
def test_without_storage_the_rest_is_tried_all_the_same(what: Setting, words: str):
    """A site whose driver is missing learns why, and still sees its Deployment live."""
    wanted = workload.life(site(), RUN, what)
    assert any(words in problem for problem in wanted.problems)
    assert not [change for change in wanted.changes if "StatefulSet" in change.target]
    assert [change for change in wanted.changes if "/Deployment/" in change.target]


def test_without_a_ready_node_nothing_is_planned():
    """There is nowhere to run."""
    wanted = workload.life(site(), RUN, setting(machines=(NodeMachine("w1", "False", True, "u", "", "", ""),)))
    assert wanted.changes == () and wanted.problems == ("nodes: none is ready and schedulable",)


def test_backup_is_planned_where_the_class_can_copy():
    """A snapshot, spoiled contents, a volume restored of it, and a pod that reads it."""
    able = Ability("snapshots and clones", True, "by full copies", "c")
    wanted = workload.life(site(), RUN, setting(case("c")), abilities=[able])
    stages = [change.request.get("what") for change in wanted.changes if change.request["trial"]["name"] == "backup"]
    assert stages[-1] == "restored" and "spoil" in stages
    assert cost(wanted.changes)["gib"] == 3


def test_missing_backup_says_what_it_would_take():
    """The ability's own words stand in the problem."""
    unable = Ability("snapshots and clones", False, "it would take raw disks", "c")
    wanted = workload.life(site(), RUN, setting(case("c")), abilities=[unable])
    assert "backup: c copies no volume; it would take raw disks" in wanted.problems


def test_ingress_is_asked_with_its_host_name():
    """An address alone says nothing of a host rule."""
    wanted = workload.life(site(), RUN, setting(), doors=Doors((), ("tenant-root",)))
    [knock] = [change for change in wanted.changes if change.target.endswith("/knock-ingress")]
    script = knock.request["manifest"]["spec"]["template"]["spec"]["containers"][0]["command"][2]
    assert f"Host: {HOME}.example.org" in script and "http://<address>:80/" in script


def test_client_keeps_off_nodes_that_go():
    """An experiment that takes the client away would measure nothing."""
    machines = (node("w1", "pve1"), node("w2", "pve2"), node("cp", "pve3", control_plane=True))
    assert workload.client_node(machines) == "cp"
    assert workload.client_node(machines, {"cp", "w1"}) == "w2"


# --- what the client saw -----------------------------------------------------------------------------


def test_log_of_the_client_is_read_by_number():
    """Lines that are no requests are left out; 000 is no answer."""
    rows = kubernetes_workload.requests("1 200 0.0021\nsh: oops\n2 000 2.0004\n3 503 0.01\n")
    assert rows == [Request(1, 200, 2.1), Request(2, 0, 2000.4), Request(3, 503, 10.0)]
    assert [row.failed for row in rows] == [False, True, True]


def test_each_request_belongs_to_one_stage():
    """A stage goes from the end of the one before to its own, however many changes it had."""
    rows = [Request(number, 0 if number in {4, 5, 9} else 200, 1.0) for number in range(1, 11)]
    found = workload.windows(rows, [("a", 3), ("b", 5), ("b", 6), ("c", 10)])
    assert [(w.stage, w.requests, w.failed, w.longest_row) for w in found] == [
        ("a", 3, 0, 0),
        ("b", 3, 2, 2),
        ("c", 4, 1, 1),
    ]


def test_failures_count_against_the_clients_measurement():
    """Only answers have a time that means anything."""
    found = workload.timings([], [Request(1, 200, 2.0), Request(2, 503, 1.0)])
    assert [(row.name, row.values, row.errors) for row in found] == [("request of the client", (2.0,), 1)]


def test_stage_that_never_came_counts_as_an_error():
    """A limit that was missed altogether must not look like no reading."""
    [found] = workload.timings([Stage("client", "pod client", False, 300.0)], [])
    assert (found.name, found.values, found.errors, found.threshold) == ("pod start", (), 1, 120)


# --- rows --------------------------------------------------------------------------------------------


def deployment(**status: Any) -> dict[str, Any]:
    """A Deployment of three pods in its second generation."""
    return {
        "kind": "Deployment",
        "metadata": {"name": "web", "generation": 2},
        "spec": {"replicas": 3},
        "status": status,
    }


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}, True),
        ({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}, False),
        ({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "availableReplicas": 3}, False),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}, False),
        ({}, False),
    ],
)
def test_roll_out_is_done_when_only_new_pods_are_there(status: dict[str, Any], done: bool):
    """An old status, an old pod and a pod too many are not done."""
    assert kubernetes_workload.rollout(deployment(**status)).done is done


class Kube:
    """An API that knows a few objects and logs."""

    def __init__(self, things: dict[str, Any] | None = None, logs: list[str] | None = None) -> None:
        self.things, self.said = things or {}, logs or []

    def get(self, path: str) -> Any:
        """The thing, or NotFound."""
        if path not in self.things:
            raise NotFound(f"GET {path}", "not found")
        return self.things[path]

    find = get

    def list(self, path: str, **_: Any) -> list[Any]:
        """Nothing."""
        return []

    def logs(self, *_: Any, **__: Any) -> str:
        """The next text."""
        return self.said.pop(0) if len(self.said) > 1 else (self.said or [""])[0]


def watcher(kube: Kube) -> workload.Witness:
    """A witness whose clock runs when it sleeps."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return workload.Witness(None, kube, setting(), HOME, 5.0, sleep=sleep, clock=lambda: now[0])


def change(stage: str, *see: dict[str, Any]) -> Any:
    """A change of a stage with these things to see."""
    draft = workload.Draft(site(), RUN, HOME, stage)
    draft.make(workload.config_map("x"), "A thing", *see)
    return draft.changes[0]


def test_stage_that_fails_is_waited_for_once():
    """What builds on a state that never came is not waited for, and says so."""
    found = watcher(Kube())
    found(change("deploy", {"stage": "rolled", "deployment": "web"}, {"stage": "behind", "service": "web", "count": 3}))
    assert [row.reached for row in found.stages] == [False, False]
    assert found.stages[1].told.startswith("not waited for") and found.stages[1].seconds == 0.0


def test_each_stage_is_seen_by_a_few_requests():
    """The witness waits until the client has asked at least three times more."""
    found = watcher(Kube(logs=["1 200 0.1", "1 200 0.1", "2 200 0.1", "4 200 0.1"]))
    found(change("a"))
    found(change("b"))
    assert found.marks == [("a", 1), ("b", 4)]


def test_address_of_a_balancer_is_filled_in_when_it_is_there():
    """A request knows it only when it is sent."""
    path = "/api/v1/namespaces/n/services/s"
    kube = Kube({path: {"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.200"}]}}, "spec": {}}})
    request = {"manifest": {"word": "http://<address>:80/"}, "fill": {"address": [path, "ingress"]}}
    assert staging.prepared(kube, request)["manifest"] == {"word": "http://10.0.0.200:80/"}
