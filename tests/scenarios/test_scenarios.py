"""Every scenario of the lab through the real notebooks: the checks it names fail or warn, and no others do."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date

import homes
import pytest
import yaml
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from runbook_lib.lab import control, scenario
from runbook_lib.model import Status

pytestmark = pytest.mark.xdist_group("scenarios")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
NAMES = [name for name in scenario.names() if not name.startswith("fresh-node")]
SAMPLED = 4
LOOKS, LIKE, PAUSE = 20, 5, 0.4  # looks at most, looks that agree, real seconds between them
STEPS = ("11", "12", "22")
LATER = ("policies.", "audit.", "monitoring.", "machines.", "csi.")
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
    settle(home)


def settle(home: homes.Home) -> None:
    """Returns once the pods stand still: what the scenario begins with has had its consequences, as evictions."""
    core, before, alike = homes.kubernetes(home), None, 0
    for _ in range(LOOKS):
        seen = None
        with suppress(ApiException, HTTPError):
            answer = core.list_pod_for_all_namespaces(_request_timeout=10, _preload_content=False)
            seen = sorted(
                (each["metadata"]["uid"], each["status"].get("phase"), "deletionTimestamp" in each["metadata"])
                for each in json.loads(answer.data)["items"]
            )
        alike = alike + 1 if seen == before else 0
        if alike == LIKE:
            return
        before = seen
        time.sleep(PAUSE)


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


NAMELESS = {
    # a site as it should be, one of them with a newer Cluster API
    "capi-v1beta2", "healthy",
    # what nothing finds without changing the site: step 24 or 32 meets it when it makes a machine or a volume
    "claims-pending", "daemonset-nowhere", "false-readiness", "token-without-privileges",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_names_a_check_that_finds_it(name: str):
    """An incident that no check finds is only a story; those that cannot be found by reading are told apart."""
    given = scenario.load(name)
    assert bool(given.must_fail or given.must_warn) is (name not in NAMELESS)


def about_machines(name: str) -> bool:
    """Whether the scenario names a check of machines."""
    given = scenario.load(name)
    return any(check.startswith("machines.") for check in (*given.must_fail, *given.must_warn))


MACHINES = [name for name in NAMES if about_machines(name)]


@pytest.mark.parametrize("name", MACHINES)
def test_step_24_finds_what_is_wrong_with_machines(tmp_path_factory: pytest.TempPathFactory, name: str):
    """Read on a site that forbids changes, it names the checks of machines the scenario names and no others."""
    place = homes.make(tmp_path_factory.mktemp("machines"), scenario=name, scale=600, changes="forbid")
    place.up()
    try:
        settle(place)
        told = place.runbook("run", "--step", "24")
        (record,) = place.runs()[-1].steps
    finally:
        place.down()
    assert record.result is not None, told.stderr[-2000:]
    given = scenario.load(name)
    for status, wanted in ((Status.FAIL, given.must_fail), (Status.WARN, given.must_warn)):
        found = {row.check: row.message for row in record.result.findings if row.status is status}
        assert set(found) == {check for check in wanted if check.startswith("machines.")}, found


@pytest.mark.parametrize("turn", range(20))
def test_the_sample_comes_round(turn: int):
    """Four scenarios each week, and all of them in as many weeks as that takes."""
    assert len(sample(NAMES, SAMPLED, turn)) == SAMPLED
    weeks = range(turn, turn + -(-len(NAMES) // SAMPLED))
    assert set().union(*(sample(NAMES, SAMPLED, week) for week in weeks)) == set(NAMES)
