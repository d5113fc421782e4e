"""Step 42: on a healthy site, where monitoring is not as it should be, and where changes are forbidden."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
import yaml

from runbook_lib.lab import control, scenario
from runbook_lib.model import ChangeKind, Status, StepResult

pytestmark = pytest.mark.xdist_group("step-42")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
TROUBLED = [
    name for name in scenario.names() if any(check.startswith("monitoring.") for check in scenario.load(name).must_fail)
]
SAMPLE = {"no-monitoring"}
SLOW = (
    pytest.mark.slow,
    pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab goes from scenario to scenario."""
    settings = {"wait_seconds": 8, "interval_seconds": 10}
    place = homes.make(tmp_path_factory.mktemp("step42"), monitoring=settings)
    place.up()
    yield place
    control.down(place.lab)


def run(home: homes.Home, name: str = "healthy", *, changes: str = "allow", anew: bool = True) -> StepResult:
    """The result of the step in a scenario begun anew, under that policy."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    site["lab"]["scenario"], site["changes"] = name, changes
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    if anew:
        control.scenario(name, home.lab)
    told = home.runbook("run", "--step", "42")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    return result


def by_status(result: StepResult, status: Status) -> set[str]:
    """The checks of monitoring with a finding of that status."""
    return {f.check for f in result.findings if f.status is status and f.check.startswith("monitoring.")}


def test_a_healthy_site_is_watched_and_a_second_run_installs_nothing(home: homes.Home) -> None:
    """Every proof passes, nothing borrowed stays, and what was installed is found again."""
    control.scenario("healthy", home.lab)
    before = homes.inventory(home)
    first = run(home, anew=False)
    others = by_status(first, Status.FAIL) | by_status(first, Status.ERROR) | by_status(first, Status.SKIP)
    assert not others | by_status(first, Status.WARN), [f.message for f in first.findings if f.status is Status.FAIL]
    installed = {change.target for change in first.changes if change.kind is ChangeKind.INSTALL}
    between = homes.inventory(home)
    assert {entry for entry in between - before if not homes.explained(entry, installed)} == set()
    again = run(home, anew=False)
    assert not [change.target for change in again.changes if change.kind is ChangeKind.INSTALL]
    assert homes.inventory(home) == between
    assert not by_status(again, Status.FAIL)


def test_no_value_of_the_token_is_written_anywhere(home: homes.Home) -> None:
    """The notebook, the journal and the kept manifests know the reference alone."""
    values = {value.encode() for value in homes.secrets(home).values()}
    assert values
    files = [path for path in home.root.glob("outputs/**/*") if path.is_file()]
    assert files and not [path for path in files if any(value in path.read_bytes() for value in values)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in SAMPLE else SLOW) for name in TROUBLED])
def test_what_is_wrong_with_monitoring_is_found(home: homes.Home, name: str) -> None:
    """The checks that fail are those that the scenario names, and no others."""
    result = run(home, name)
    wanted = {check for check in scenario.load(name).must_fail if check.startswith("monitoring.")}
    told = [f"{f.check}: {f.message}" for f in result.findings if f.status is Status.FAIL]
    assert by_status(result, Status.FAIL) == wanted, told
    assert not by_status(result, Status.ERROR)


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
@pytest.mark.parametrize("generation", ["cozystack-v0", "capi-v1beta2"])
def test_every_generation_of_the_platform_is_watched(home: homes.Home, generation: str) -> None:
    """The objects differ, the proofs do not."""
    result = run(home, generation)
    told = [f"{f.check}: {f.message}" for f in result.findings if f.status is Status.FAIL]
    assert not by_status(result, Status.FAIL) | by_status(result, Status.ERROR), told
    assert "monitoring.series_agree" in by_status(result, Status.PASS)


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
def test_series_that_came_once_are_found_stale(home: homes.Home) -> None:
    """The collector collects, and nobody stores: what was stored is still seen, and no longer believed."""
    from kubernetes import client

    path = home.root / "parameters" / "lab.yaml"
    assert not by_status(run(home), Status.FAIL)
    before = path.read_text(encoding="utf-8")
    site = yaml.safe_load(before)
    site["thresholds"] = {"series_seconds": 2}
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    api = client.AppsV1Api(homes.kubernetes(home).api_client)
    for name in ("vminsert-shortterm", "vminsert-longterm"):
        api.delete_namespaced_deployment(name, "tenant-root")
    told = home.runbook("run", "--step", "42")
    path.write_text(before, encoding="utf-8")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    assert "monitoring.series_are_fresh" in by_status(result, Status.FAIL)
    assert "monitoring.targets_are_up" in by_status(result, Status.PASS) - by_status(result, Status.FAIL)


def test_with_changes_forbidden_only_the_plan_is_shown(home: homes.Home) -> None:
    """Who watches is judged, all that wants the exporter is skipped, and nothing is sent."""
    result = run(home, changes="forbid")
    assert result.changes == ()
    assert "monitoring.every_part_answers" in by_status(result, Status.PASS)
    assert {"monitoring.exporter_runs", "monitoring.alert_comes_and_goes"} <= by_status(result, Status.SKIP)
    assert not by_status(result, Status.FAIL) | by_status(result, Status.ERROR)
