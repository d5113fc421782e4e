"""Step 41 by packets: on a healthy site, where the network is not as it should be, and where changes are forbidden."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
import yaml

from runbook_lib.lab import control, scenario
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-41")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
TROUBLED = [
    name for name in scenario.names() if any(check.startswith("policies.") for check in scenario.load(name).must_fail)
]
SAMPLE = {"policies-not-enforced"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab goes from scenario to scenario."""
    place = homes.make(tmp_path_factory.mktemp("step41"), benchmarks={"requests": 2, "concurrency": [1]})
    place.up()
    yield place
    control.down(place.lab)


def run(home: homes.Home, name: str = "healthy", *, changes: str = "allow") -> StepResult:
    """The result of the step in a scenario begun anew, under that policy."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    site["lab"]["scenario"], site["changes"] = name, changes
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    control.scenario(name, home.lab)
    told = home.runbook("run", "--step", "41")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    return result


def by_status(result: StepResult, status: Status) -> set[str]:
    """The checks of policies with a finding of that status."""
    return {f.check for f in result.findings if f.status is status and f.check.startswith("policies.")}


def test_a_healthy_site_is_as_the_platform_promises(home: homes.Home) -> None:
    """Only what every stock CozyStack has is warned of, and nothing of the tenants remains on either side."""
    control.scenario("healthy", home.lab)
    before = homes.inventory(home)
    result = run(home)
    assert by_status(result, Status.WARN) == {"policies.proxmox_is_closed", "policies.plain_deny_closes"}
    assert not by_status(result, Status.FAIL) | by_status(result, Status.ERROR) | by_status(result, Status.SKIP)
    assert homes.inventory(home) == before


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=()
            if name in SAMPLE
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for name in TROUBLED
    ],
)
def test_packets_tell_what_the_scenario_hides(home: homes.Home, name: str) -> None:
    """The checks that fail are those that the scenario names, and no others."""
    result = run(home, name)
    wanted = {check for check in scenario.load(name).must_fail if check.startswith("policies.")}
    assert by_status(result, Status.FAIL) == wanted, [f for f in result.findings if f.status is Status.FAIL]
    assert not by_status(result, Status.ERROR)


def test_with_changes_forbidden_the_plan_is_shown_and_nothing_is_tried(home: homes.Home) -> None:
    """Configuration is judged, every packet is a skip, and nothing is sent."""
    result = run(home, changes="forbid")
    assert result.changes == ()
    assert "policies.cilium_enforces" in by_status(result, Status.PASS)
    assert {"policies.siblings_are_apart", "policies.policies_are_enforced"} <= by_status(result, Status.SKIP)
