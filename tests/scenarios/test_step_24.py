"""Step 24 through its notebook: the whole life where it may, only the plan where it must not, a skip without CAPMOX."""

from __future__ import annotations

from collections.abc import Iterator

import homes
import pytest
import yaml

from benchmarks.machines import NEW, OLD, SPACE, Era
from benchmarks.machines import Site as Lab
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-24")

WISH = {"namespace": SPACE, "credentials": "proxmox-credentials", "unhealthy_seconds": 60, "wait_minutes": 1}
LIFE = {
    "machines.machines_came_up",
    "machines.roll_reached_the_vms",
    "machines.lost_machine_was_replaced",
    "machines.nothing_is_left",
    "machines.every_vm_has_a_machine",
    "machines.provisioned_machines_run",
    "machines.manifests_are_accepted",
}


@pytest.fixture(scope="module", params=[OLD, NEW], ids=["v0.7", "v0.9"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab has the provider of one generation installed."""
    era: Era = request.param
    scenario = "healthy" if era is OLD else "capi-v1beta2"
    place = homes.make(tmp_path_factory.mktemp("step24"), scenario=scenario, scale=600, machines=WISH)
    place.up()
    Lab(place.lab, era).install()
    yield place
    place.down()


def run(home: homes.Home, changes: str) -> StepResult:
    """The result of the step under that policy."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**site, "changes": changes}), encoding="utf-8")
    told = home.runbook("run", "--step", "24")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stdout[-2000:] + told.stderr[-2000:]
    return result


def test_with_changes_forbidden_only_the_plan_is_shown(home: homes.Home):
    """Nothing is sent and nothing journalled; what was not done is a skip, and kubectl's file is there all the same."""
    before = homes.inventory(home)
    result = run(home, "forbid")
    statuses = {entry.check: entry.status for entry in result.findings}
    assert result.changes == () and homes.inventory(home) == before
    assert statuses["machines.machines_came_up"] is statuses["machines.nothing_is_left"] is Status.SKIP
    assert statuses["machines.manifests_are_accepted"] is Status.PASS
    folder = home.folders()[-1]
    assert not list(folder.glob("changes.jsonl"))
    kinds = [entry["kind"] for entry in yaml.safe_load_all((folder / "manifests" / "24-cluster.yaml").read_text())]
    assert {"Cluster", "MachineDeployment", "ProxmoxMachineTemplate"} <= set(kinds)


def test_a_whole_life_passes_and_leaves_nothing(home: homes.Home):
    """Created, scaled, rolled, robbed of a VM, deleted: every check of it passes, and both sides are as they were."""
    before = homes.inventory(home)
    result = run(home, "allow")
    bad = [(entry.check, entry.message) for entry in result.findings if entry.status in {Status.FAIL, Status.ERROR}]
    assert bad == []
    assert {entry.check for entry in result.findings if entry.status is Status.PASS} >= LIFE
    assert homes.inventory(home) == before
    samples = {entry.name: len(entry.values) for entry in result.measurements}
    assert samples["machine: ordered to running"] >= 3 and samples["clone, full"] == samples["clone, linked"] == 3


def test_without_a_provider_the_step_proves_nothing(tmp_path_factory: pytest.TempPathFactory):
    """It is a skip that names the step to run first, and no error."""
    place = homes.make(tmp_path_factory.mktemp("bare24"), scale=600)
    place.up()
    try:
        result = run(place, "allow")
        assert result.changes == ()
        told = {entry.check: (entry.status, entry.message) for entry in result.findings}
        assert told["machines.apis_are_served"][0] is Status.SKIP and "step 23" in told["machines.apis_are_served"][1]
        assert not [entry for entry in result.findings if entry.status in {Status.FAIL, Status.ERROR}]
    finally:
        place.down()


@pytest.mark.parametrize(
    ("scenario", "check", "status", "words"),
    [
        ("machine-without-owner", "machines.owners_are_set", Status.FAIL, "no Machine owns tenant-root/test-vm"),
        ("many-vms", "machines.one_vm_a_machine", Status.WARN, "3 VMs are called demo-md-0-x7k2p"),
    ],
)
def test_what_is_wrong_already_is_found_before_anything_is_made(
    tmp_path_factory: pytest.TempPathFactory, scenario: str, check: str, status: Status, words: str
):
    """The incidents of the first attempt, judged by what both sides show, on a site that forbids changes."""
    place = homes.make(tmp_path_factory.mktemp("wrong24"), scenario=scenario, scale=600, changes="forbid")
    place.up()
    try:
        found = [entry for entry in run(place, "forbid").findings if entry.check == check and entry.status is status]
        assert len(found) == 1 and words in found[0].message and found[0].remedy
    finally:
        place.down()
