"""Step 22 where it must keep its hands off: a site that forbids changes, and a node where somebody's edit waits."""

from __future__ import annotations

from collections.abc import Iterator

import homes
import pytest
import yaml

from runbook_lib.lab import control
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-22")

MINE = ("trials.", "storage.test_", "step.")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab has a change waiting on pve2."""
    benchmarks = {"requests": 2, "concurrency": [1]}
    place = homes.make(tmp_path_factory.mktemp("step22"), scenario="pending-network", scale=600, benchmarks=benchmarks)
    place.up()
    yield place
    control.down(place.lab)


def run(home: homes.Home, changes: str) -> StepResult:
    """The result of the step under that policy."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**site, "changes": changes}), encoding="utf-8")
    told = home.runbook("run", "--step", "22")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    return result


def edits(home: homes.Home) -> dict[str, object]:
    """What each node's list of interfaces says, waiting edits included, by a client that is not ours."""
    pve = homes.proxmox(home)
    return {node: pve.nodes(node).network.get() for node in ("pve1", "pve2", "pve3")}


def test_with_changes_forbidden_only_the_plan_is_shown(home: homes.Home):
    """Nothing is sent, nothing is journalled, and what was not tried is a skip."""
    before = edits(home)
    result = run(home, "forbid")
    tried = {entry.check: entry.status for entry in result.findings if entry.check.startswith(MINE)}
    assert result.changes == () and edits(home) == before
    assert not list(home.folders()[-1].glob("changes.jsonl"))
    passed = {check for check, status in tried.items() if status is Status.PASS}
    assert passed == {"trials.trials_may_begin", "trials.network_is_as_before"}


def test_a_waiting_edit_is_neither_applied_nor_dropped(home: homes.Home):
    """The node where it waits is left out; the others are tried and are as they were."""
    before = edits(home)
    result = run(home, "allow")
    assert edits(home) == before
    touched = {change.target.split("/")[2] for change in result.changes if "/network/" in change.target}
    assert touched == {"pve1", "pve3"}
    told = {entry.subject: entry.message for entry in result.findings if entry.status is Status.SKIP}
    assert "network changes wait there" in told["pve2"]
