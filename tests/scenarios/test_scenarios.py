"""Every scenario of the lab through the real notebooks: the checks it names fail or warn, and no others do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import date

import homes
import pytest
import yaml

from runbook_lib.lab import control, scenario
from runbook_lib.model import Status

pytestmark = pytest.mark.xdist_group("scenarios")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
NAMES = [name for name in scenario.names() if not name.startswith("fresh-node")]
SAMPLED = 4
STEPS = ("11", "12", "22")
LATER = ("policies.", "audit.", "monitoring.")
"""Areas of checks that other steps look at; those have tests of their own."""


def sample(names: list[str], size: int, turn: int) -> set[str]:
    """Some of the names, others each week, the same ones for everybody in that week."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {ordered[(turn * size + number) % len(ordered)] for number in range(size)}


CHOSEN = sample(NAMES, SAMPLED, date.today().toordinal() // 7)
every_scenario = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=()
            if name in CHOSEN
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for name in NAMES
    ],
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab goes from scenario to scenario."""
    place = homes.make(tmp_path_factory.mktemp("scenarios"), scale=600)
    place.up()
    yield place
    place.down()


def play(home: homes.Home, name: str) -> None:
    """Let the site's lab begin anew with the scenario."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    site["lab"]["scenario"] = name
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    control.scenario(name, home.lab)


@every_scenario
def test_the_runbook_finds_exactly_what_the_scenario_hides(home: homes.Home, name: str):
    """Steps 11, 12 and 22 name every check of must_fail and must_warn and no others; a failure is exit code 1."""
    play(home, name)
    given = scenario.load(name)
    # in a run of its own, because a failure of 11 keeps 22 from being run
    told = [home.runbook("run", "--step", "11,12"), home.runbook("run", "--step", "22")]
    steps = [record for run in home.runs()[-2:] for record in run.steps]
    assert {record.step: record.reason for record in steps} == dict.fromkeys(STEPS, ""), told[-1].stderr[-2000:]
    findings = [entry for record in steps if record.result for entry in record.result.findings]
    for status, wanted in ((Status.FAIL, given.must_fail), (Status.WARN, given.must_warn), (Status.ERROR, ())):
        found = {entry.check: f"{entry.subject}: {entry.message}" for entry in findings if entry.status is status}
        assert set(found) == {check for check in wanted if not check.startswith(LATER)}, found
    fails = [check for check in given.must_fail if not check.startswith(LATER)]
    assert max(each.returncode for each in told) == (1 if fails else 0)
    lacking = [entry.check for entry in findings if entry.status is Status.FAIL and not entry.remedy]
    assert lacking == [], "a failure without a remedy helps nobody"


@pytest.mark.parametrize("turn", range(20))
def test_the_sample_comes_round(turn: int):
    """Four scenarios each week, and all of them in as many weeks as that takes."""
    assert len(sample(NAMES, SAMPLED, turn)) == SAMPLED
    weeks = range(turn, turn + -(-len(NAMES) // SAMPLED))
    assert set().union(*(sample(NAMES, SAMPLED, week) for week in weeks)) == set(NAMES)
