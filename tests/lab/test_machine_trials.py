"""Machines as step 24 orders them, on the lab of both generations: made with kubectl, stuck on purpose, swept away."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import homes
import pytest

from benchmarks.machines import NEW, OLD, SPACE, Era
from benchmarks.machines import Site as Lab
from runbook_lib import evidence, kubernetes, lifecycle, machines, proxmox, sweep
from runbook_lib.checks import machines as checks
from runbook_lib.evidence import Scene
from runbook_lib.executors import labelled
from runbook_lib.lifecycle import Ordered, View
from runbook_lib.machines import Order
from runbook_lib.model import Finding, Status
from runbook_lib.parameters import load_site

pytestmark = pytest.mark.xdist_group("machine-trials")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
KUBECTL = Path(sys.executable).with_name("kubectl")
LONGEST_SECONDS = 40.0
WISH = {"namespace": SPACE, "credentials": "proxmox-credentials", "unhealthy_seconds": 60, "wait_minutes": 1}


@dataclass
class Place:
    """A project, its lab with CAPMOX installed, and this library's clients of both sides."""

    home: homes.Home
    lab: Lab
    site: Any
    pve: Any
    k8s: Any
    turn: int = 0

    def order(self, **more: Any) -> tuple[str, Ordered]:
        """A fresh run's id, and the order it makes with these changes."""
        self.turn += 1
        run = f"20261124T0800{self.turn:02d}Z-{self.turn:04x}"
        served = lifecycle.apis(self.k8s)
        chosen = lifecycle.with_storages(self.site, proxmox.storages(self.pve))
        ordered = lifecycle.order(self.pve, self.k8s, chosen, run, served)
        assert ordered.problems == ()
        return run, replace(ordered, order=replace(ordered.order, network_chart={}, **more))

    def sweep(self, run: str) -> sweep.SweepReport:
        """What a sweep without any journal comes to."""
        clients = {"proxmox": self.pve, "kubernetes": self.k8s}
        return sweep.sweep(self.site, run, clients, root=self.home.root)


@pytest.fixture(scope="module", params=[OLD, NEW], ids=["v0.7", "v0.9"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A lab of one generation with the provider installed."""
    era: Era = request.param
    scenario = "healthy" if era is OLD else "capi-v1beta2"
    home = homes.make(tmp_path_factory.mktemp("trials"), scenario=scenario, scale=600, machines=WISH)
    home.up()
    try:
        lab = Lab(home.lab, era)
        lab.install()
        site = load_site("lab", root=home.root)
        yield Place(home, lab, site, proxmox.connect(site), kubernetes.connect(site))
    finally:
        home.down()


def until(seen: View, good: Callable[[Scene], Any]) -> Scene:
    """The scene as soon as it is good."""
    end = time.monotonic() + LONGEST_SECONDS
    while not good(scene := seen.scene(logs=True)):
        told = [(row.reason, row.message) for row in scene.proxmox_machines]
        assert time.monotonic() < end, f"it never came to that: {told} {[row.phase for row in scene.machines]}"
        time.sleep(0.05)
    return scene


def apply(path: Path, place: Place) -> None:
    """Nothing; the real kubectl has made what the file says."""
    told = subprocess.run(
        [str(KUBECTL), "apply", "--server-side", "--field-manager=runbook", "-f", str(path)],
        env={**os.environ, "KUBECONFIG": str(place.home.lab / "kubeconfig")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr


@pytest.mark.skipif(not KUBECTL.exists(), reason="kubectl is not installed beside python")
def test_kubectl_makes_the_same_machine_and_a_sweep_without_a_journal_leaves_nothing(place: Place, tmp_path: Path):
    """The file is all it takes; what bears the run's mark goes on both sides, machines before what they need."""
    before = homes.inventory(place.home)
    run, ordered = place.order()
    path = tmp_path / "cluster.yaml"
    path.write_text(machines.yaml_of(lifecycle.manifests(ordered, run)), encoding="utf-8")
    apply(path, place)
    seen = lifecycle.view(place.pve, place.k8s, ordered)
    late = {"provisioned", "Node"}
    scene = until(seen, lambda scene: [row for row in evidence.chains(scene) if late <= set(row.reached)])
    assert set(evidence.STAGES) - set(evidence.chains(scene)[0].reached) <= {"Node Ready"}
    report = place.sweep(run)
    assert report.clean, (report.failed, report.remaining)
    assert homes.inventory(place.home) == before
    assert [entry.status for entry in checks.nothing_is_left(seen.scene(logs=True))] == [Status.PASS]


def test_schema_that_is_served_refuses_the_first_attempts_fields(place: Place):
    """`spec.server` and `nodeName` never were fields of any release; the server's words are the finding."""
    run, ordered = place.order()
    objects = lifecycle.manifests(ordered, run)
    wrong = [{**objects[0], "spec": {**objects[0]["spec"], "server": "10.0.0.1", "nodeName": "pve"}}]
    said = [*lifecycle.dry_run(place.k8s, wrong), *lifecycle.dry_run(place.k8s, objects)]
    found = checks.manifests_are_accepted(said)
    assert [entry.status for entry in found] == [Status.FAIL] + [Status.PASS] * len(objects)
    assert "spec.server" in found[0].message
    assert lifecycle.life(ordered, place.site, run, refused=said).changes == ()


# --- stuck on purpose --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trap:
    """What is wrong with an order, and the words that the finding must have for it."""

    name: str
    cause: str
    change: dict[str, Any] = dataclasses.field(default_factory=dict)
    without: str = ""  # a kind that is left out
    proxmox: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = ()  # path, as it is to be, as it was
    count: int = 1

    def __str__(self) -> str:
        return self.name


NO_ISO = (
    ("/storage/local", {"content": "vztmpl,backup,snippets,import"}, {"content": "iso,vztmpl,backup,snippets,import"}),
    ("/storage/nas", {"content": "images,backup"}, {"content": "images,iso,backup"}),
)
TRAPS = (
    Trap("no-template", "no template has the tags asked for", {"template_tags": ("nobody-has-this",)}),
    Trap("no-memory", "the scheduler counts no free memory",
         {"allowed_nodes": ("pve1",), "memory_mib": 1048576, "storage": "nas"}),
    Trap("no-ids", "the vmIDRange is used up", {"vmids": (101, 103)}),
    Trap("no-control-plane", "MissingControlPlaneEndpoint", without="KamajiControlPlane"),
    Trap("no-bootstrap", "Bootstrap", without="KubeadmConfigTemplate"),
    Trap("no-address", "no address was given", {"addresses": ("10.0.0.150",)}, count=2),
    Trap("no-iso", "no storage of the VM's node takes ISO images", proxmox=NO_ISO),
    Trap("no-agent", "the guest agent does not answer",
         proxmox=(("/nodes/pve1/qemu/9000/config", {"agent": "0"}, {"agent": "1"}),)),
)  # fmt: skip
SAMPLE = {"no-template", "no-iso"}
every_trap = pytest.mark.parametrize(
    "trap",
    [
        pytest.param(
            trap,
            marks=()
            if trap.name in SAMPLE
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for trap in TRAPS
    ],
    ids=str,
)


def findings(scene: Scene) -> list[Finding]:
    """What is said of machines that do not go on, without any patience."""
    return checks.no_machine_is_stuck(scene, at=time.time() + 3600)


@every_trap
def test_stuck_machine_is_explained(place: Place, trap: Trap):
    """The finding names the cause that was set and a first step; afterwards everything can be taken away."""
    before = homes.inventory(place.home)
    run, ordered = place.order(**trap.change, count=trap.count)
    for path, bad, _ in trap.proxmox:
        place.lab.pve("PUT", path, **bad)
    try:
        for entry in lifecycle.manifests(ordered, run):
            if entry["kind"] != trap.without:
                with place.k8s.wire.permit("test"):
                    place.k8s.apply(entry)
        seen = lifecycle.view(place.pve, place.k8s, ordered)

        def caught(scene: Scene) -> bool:
            rows = [entry for entry in findings(scene) if entry.status in {Status.FAIL, Status.WARN}]
            told = [entry.message for entry in rows] + _waits(scene, trap)
            return any(trap.cause in text for text in told)

        scene = until(seen, caught)
        assert all(entry.remedy for entry in findings(scene) if entry.status in {Status.FAIL, Status.WARN})
    finally:
        for path, _, good in trap.proxmox:
            place.lab.pve("PUT", path, **good)
        report = place.sweep(run)
    assert report.clean, (report.failed, report.remaining)
    assert homes.inventory(place.home) == before


def _waits(scene: Scene, trap: Trap) -> list[str]:
    """Of a machine that cannot even be begun there is no ProxmoxMachine: what its group says stands for it."""
    if trap.without != "KubeadmConfigTemplate":
        return []
    return ["Bootstrap"] if scene.groups and scene.groups[0].ready == 0 else []


def test_bare_proxmox_machine_is_diagnosed(place: Place):
    """The mistake of the first attempt: accepted by the API, worked on by nobody."""
    run, ordered = place.order()
    template = machines.machine_template(ordered.order)
    bare = {
        **template,
        "kind": "ProxmoxMachine",
        "metadata": {**template["metadata"], "name": f"{ordered.order.name}-bare"},
        "spec": template["spec"]["template"]["spec"],
    }
    with place.k8s.wire.permit("test"):
        place.k8s.apply(labelled(bare, run, "borrow"))
    scene = lifecycle.everything(place.pve, place.k8s, ordered.order.apis)
    assert [entry.status for entry in checks.owners_are_set(scene)] == [Status.FAIL]
    assert "no Machine refers to it" in findings(scene)[0].message
    assert place.sweep(run).clean


def test_vm_that_lost_its_machine_is_swept_by_its_name(place: Place):
    """A clone bears the mark before anybody could tag it; a running one is stopped first."""
    before = homes.inventory(place.home)
    run, ordered = place.order()
    name = f"{ordered.order.deployment}-abcde-fghij"
    upid = place.lab.pve("POST", "/nodes/pve1/qemu/9000/clone", newid=9150, name=name, full=0)
    place.lab.done("pve1", upid)
    place.lab.done("pve1", place.lab.pve("POST", "/nodes/pve1/qemu/9150/status/start"))
    assert [entry.status for entry in checks.every_vm_has_a_machine(orphans(place, ordered))] == [Status.FAIL]
    report = place.sweep(run)
    assert report.clean and [entry.target for entry in report.undone] == ["/nodes/pve1/qemu/9150"]
    assert homes.inventory(place.home) == before


def orphans(place: Place, ordered: Ordered) -> Scene:
    """The scene as the cluster's group would know it."""
    from runbook_lib.facts import MachineGroup

    scene = lifecycle.view(place.pve, place.k8s, ordered).scene(logs=True)
    wanted: Order = ordered.order
    return replace(scene, groups=(MachineGroup(SPACE, wanted.deployment, wanted.name, 1, 0, 0, 0, ""),))


def test_stopped_vm_that_is_called_provisioned_is_found(place: Place):
    """A template that already equals the wish: 0.8 and later pass over every later step; 0.7 starts the VM anyway."""
    run, ordered = place.order(memory_mib=2048, cores=2)
    config = place.lab.pve("GET", "/nodes/pve1/qemu/9000/config")
    objects = lifecycle.manifests(ordered, run)
    for entry in objects:
        if entry["kind"] == "ProxmoxMachineTemplate":
            spec = entry["spec"]["template"]["spec"]
            spec["tags"] = str(config.get("tags") or "none").split(";")
            spec["numCores"], spec["memoryMiB"] = int(config["cores"]), int(config["memory"])
        with place.k8s.wire.permit("test"):
            place.k8s.apply(entry)
    seen = lifecycle.view(place.pve, place.k8s, ordered)
    scene = until(seen, lambda scene: [row for row in scene.proxmox_machines if row.ready])
    found = [entry.status for entry in checks.provisioned_machines_run(scene)]
    assert found == [Status.PASS if place.lab.era is OLD else Status.FAIL]
    assert place.sweep(run).clean
