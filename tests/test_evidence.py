"""The evidence chain: what is joined to what, what belongs to nothing, and when each stage was first seen."""

from __future__ import annotations

from typing import Any

from runbook_lib import evidence, figures
from runbook_lib.evidence import Moment, Scene
from runbook_lib.facts import (
    AddressClaim,
    Condition,
    Guest,
    Machine,
    MachineGroup,
    MachineVm,
    ProxmoxMachine,
    Task,
    TaskTail,
    TenantNode,
    Volume,
)

UUID = "6f1d2a10-0c5e-4c52-9a3e-0000000c0101"
NAME = "demo-md-abcde-fghij"


def machine(name: str = NAME, **more: Any) -> Machine:
    """A Machine that has all it wants."""
    given: dict[str, Any] = {
        "cluster": "demo", "infrastructure": f"ProxmoxMachine/{name}", "data_secret": name, "phase": "Running",
        "provider_id": f"proxmox://{UUID}", "node": name, "bootstrap": f"KubeadmConfig/{name}",
    }  # fmt: skip
    return Machine("ns", name, **{**given, **more})


def own(name: str = NAME, **more: Any) -> ProxmoxMachine:
    """A ProxmoxMachine that is ready."""
    given: dict[str, Any] = {
        "machine": name, "cluster": "demo", "ready": True, "vmid": 100, "provider_id": f"proxmox://{UUID}",
        "node": "pve1", "bootstrap_provided": True, "generation": "v1alpha1",
    }  # fmt: skip
    return ProxmoxMachine("ns", name, **{**given, **more})


def vm(vmid: int = 100, name: str = NAME, **more: Any) -> MachineVm:
    """A VM that runs."""
    given: dict[str, Any] = {"status": "running", "uuid": UUID, "agent_addresses": ("10.0.0.150",), "memory_mib": 4096}
    return MachineVm(vmid, name, "pve1", **{**given, **more})


def claim(name: str = NAME, address: str = "10.0.0.150") -> AddressClaim:
    """The claim of a machine with its address."""
    return AddressClaim("ns", f"{name}-net0-inet", name, "demo-v4-icip", address)


def node(name: str = NAME, ready: str = "True", **more: Any) -> TenantNode:
    """The Node of a machine."""
    return TenantNode("ns/demo", name, more.pop("provider_id", f"proxmox://{UUID}"), ready, **more)


def task(kind: str, status: str | None = "OK", vmid: int = 100, lines: tuple[str, ...] = ()) -> TaskTail:
    """A task about a VM."""
    upid = f"UPID:pve1:00000001:00000002:6B0478DC:{kind}:{vmid}:capmox@pve!lab:"
    return TaskTail(Task("pve1", upid, kind, str(vmid), "capmox@pve!lab", 1, 2, status), lines, vmid)


def scene(**more: Any) -> Scene:
    """One machine that is whole."""
    given: dict[str, Any] = {
        "machines": (machine(),), "proxmox_machines": (own(),), "vms": (vm(),), "claims": (claim(),),
        "nodes": (node(),), "groups": (MachineGroup("ns", "demo-md", "demo", 1, 1, 1, 1, "demo-v1"),),
    }  # fmt: skip
    return Scene(**{**given, **more})


def test_whole_machine_reaches_every_stage():
    """Both sides show everything, from the Machine to a Ready Node."""
    chain = evidence.chains(scene())[0]
    assert chain.reached == evidence.STAGES
    assert (chain.vm.vmid, chain.addresses, chain.registered) == (100, ("10.0.0.150",), NAME)  # type: ignore[union-attr]


def test_vm_of_another_name_is_no_proof():
    """A number that is somebody else's by now shows neither a clone nor a running machine."""
    chain = evidence.chains(scene(vms=(vm(name="gitlab"),)))[0]
    assert {"cloned", "running", "agent"} & set(chain.reached) == set()


def test_machines_of_other_providers_are_left_out():
    """A KubeVirt machine is not our business."""
    alien = machine("kubevirt-1", infrastructure="KubevirtMachine/kubevirt-1")
    assert [row.name for row in evidence.chains(scene(machines=(machine(), alien)))] == [NAME]


def test_bare_proxmox_machine_and_orphan_vm_have_rows_of_their_own():
    """What is on one side only is in the table, not left out of it."""
    rows = evidence.chains(scene(machines=(), vms=(vm(), vm(101, "demo-md-zzzzz-zzzzz"))))
    assert [(row.name, row.machine, row.vm and row.vm.vmid) for row in rows] == [
        (NAME, None, 100), ("demo-md-zzzzz-zzzzz", None, 101),
    ]  # fmt: skip


def test_strange_vm_is_not_a_machines():
    """A VM that neither bears CAPMOX' tags nor a known name belongs to its owner."""
    assert len(evidence.chains(scene(vms=(vm(), vm(101, "gitlab", tags=("web",)))))) == 1


def test_tags_of_capmox_make_a_vm_a_machines():
    """Its address tag stays when everything else is gone."""
    alone = Scene(vms=(vm(120, "left", tags=("ip_net0_10.0.0.155",)),))
    assert [row.name for row in evidence.chains(alone)] == ["left"]


def test_node_is_found_by_provider_id_before_its_name():
    """The identity is the VM's UUID; a Node of the same name may be of an earlier VM."""
    nodes = (node("other", provider_id="proxmox://x"), node("renamed"))
    assert evidence.chains(scene(nodes=nodes))[0].registered == "renamed"


def test_nodes_that_cannot_be_asked_are_told_by_the_machine():
    """Where the tenant's API is out of reach, Machine.status.nodeRef and NodeHealthy are what there is."""
    told = machine(conditions=(Condition("NodeHealthy", "True"),))
    chain = evidence.chains(scene(machines=(told,), nodes=(), untold={"ns/demo": "no route"}))[0]
    assert (chain.registered, evidence.is_node_ready(chain)) == (NAME, True)


def test_scene_of_one_cluster_holds_nothing_of_another():
    """Names that begin alike do not make a cluster."""
    other = machine("demo2-md-a-b", cluster="demo2")
    whole = scene(machines=(machine(), other), vms=(vm(), vm(200, "demo2-md-a-b")))
    part = whole.of("ns", "demo")
    assert ([row.name for row in part.machines], [row.vmid for row in part.vms]) == ([NAME], [100])


def test_tasks_and_images_follow_the_number():
    """A clone has its template's number as its id; what counts is the VM it is about."""
    clone = TaskTail(task("qmclone", vmid=9000).task, (), 100)
    iso = Volume("pve1", "local", "local:iso/user-data-100.iso", "iso", "iso", 1)
    chain = evidence.chains(scene(tasks=(clone, task("qmstart", vmid=999)), isos=(iso,)))[0]
    assert [row.task.type for row in chain.tasks] == ["qmclone"]
    assert chain.isos == (iso,)


def test_moment_is_the_first_sight():
    """A stage that was seen keeps its time, and its evidence is of that moment."""
    first = evidence.moments([], scene(proxmox_machines=(own(ready=False),), nodes=()), 1.0)
    later = evidence.moments(first, scene(), 9.0)
    at = {row.stage: row.seconds for row in later}
    assert (at["running"], at["provisioned"], at["Node Ready"]) == (1.0, 9.0, 9.0)


def test_span_needs_both_ends():
    """A machine that never ran gives no sample."""
    rows = [Moment("a", "Machine", 1, ""), Moment("a", "running", 4, ""), Moment("b", "Machine", 2, "")]
    assert evidence.spans(rows, "Machine", "running") == [3]


def test_table_names_both_sides():
    """One line a machine, what is missing spelled out."""
    row = evidence.table(evidence.chains(scene(vms=(), nodes=())))[0]
    assert (row["Machine"], row["VM"], row["ProxmoxMachine"]) == ("Running", "none", "ready")


def test_same_names_leave_templates_out():
    """A template may be called like a VM; two VMs may not."""
    rows = [
        Guest(1, "a", "n", "qemu", "running", False, 1, 1, 1), Guest(2, "a", "n", "qemu", "stopped", False, 1, 1, 1),
        Guest(3, "b", "n", "qemu", "running", False, 1, 1, 1), Guest(4, "b", "n", "qemu", "stopped", True, 1, 1, 1),
    ]  # fmt: skip
    assert {name: [guest.vmid for guest in found] for name, found in evidence.same_names(rows).items()} == {"a": [1, 2]}


def test_timeline_says_in_words_what_it_shows():
    """Who does not see the figure reads the same times."""
    seen = [Moment("demo-md-a-x", "Machine", 0.5, ""), Moment("demo-md-a-x", "running", 3.25, "")]
    figure = figures.timeline(seen)
    assert figure.alt_text == "Stages by machine. demo-md-a-x: Machine at 0.5 s, running at 3.2 s"  # type: ignore[attr-defined]
    assert "no machine came" in figures.timeline([]).alt_text  # type: ignore[attr-defined]
