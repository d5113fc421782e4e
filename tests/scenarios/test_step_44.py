"""Step 44: a healthy site fails in nothing, each scenario in what it names, and an ended waiver fails too."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
import yaml

from runbook_lib.lab import control, scenario
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-44")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
TROUBLED = [
    name for name in scenario.names() if any(check.startswith("audit.") for check in scenario.load(name).must_fail)
]
SAMPLE = {"token-of-root", "tenant-with-the-keys"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab goes from scenario to scenario."""
    place = homes.make(tmp_path_factory.mktemp("step44"))
    place.up()
    yield place
    control.down(place.lab)


def run(home: homes.Home, name: str = "healthy", **parameters: object) -> StepResult:
    """The result of the step in a scenario begun anew, with these parameters on top."""
    path = home.root / "parameters" / "lab.yaml"
    site = yaml.safe_load(path.read_text(encoding="utf-8"))
    site["lab"]["scenario"] = name
    path.write_text(yaml.safe_dump(site | parameters), encoding="utf-8")
    control.scenario(name, home.lab)
    told = home.runbook("run", "--step", "44")
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stderr[-2000:]
    return result


def by_status(result: StepResult, status: Status) -> set[str]:
    """The checks with a finding of that status."""
    return {finding.check for finding in result.findings if finding.status is status}


STOCK = {
    "audit.administrators_have_a_second_factor",
    "audit.backups_are_encrypted",
    "audit.firewall_is_on",
    "audit.guests_have_a_firewall",
    "audit.guests_live_apart",
    "audit.images_are_pinned",
    "audit.management_is_not_exposed",
    "audit.powers_are_needed",
    "audit.privileged_pods_are_refused",
    "audit.runbook_is_not_root",
    "audit.strangers_learn_nothing",
    "audit.tokens_are_mounted_where_needed",
    "audit.tokens_are_separated",
    "audit.tokens_expire",
    "audit.waivers_hold",
    "security.privileges_are_least",
}
"""What every stock installation, and the lab's own way in, is to be asked about."""


def test_a_healthy_site_is_warned_of_what_is_stock_and_nothing_fails(home: homes.Home) -> None:
    """Nothing is changed on either side either."""
    control.scenario("healthy", home.lab)
    before = homes.inventory(home)
    result = run(home)
    assert not by_status(result, Status.FAIL) | by_status(result, Status.ERROR)
    assert by_status(result, Status.WARN) == STOCK
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
def test_the_audit_finds_what_the_scenario_hides(home: homes.Home, name: str) -> None:
    """The checks that fail are those that the scenario names, and no others."""
    result = run(home, name)
    wanted = {check for check in scenario.load(name).must_fail if check.startswith("audit.")}
    assert by_status(result, Status.FAIL) == wanted, [f for f in result.findings if f.status is Status.FAIL]
    assert not by_status(result, Status.ERROR)


def test_an_ended_waiver_fails_with_what_it_covered(home: homes.Home) -> None:
    """The finding was a warning without it; with a waiver that has ended it fails."""
    ended = {
        "check": "audit.backups_are_encrypted",
        "owner": "storage team",
        "reason": "until the new store comes",
        "expires": "2020-01-01",
    }
    lab = yaml.safe_load((home.root / "parameters" / "lab.yaml").read_text(encoding="utf-8"))["waivers"]
    result = run(home, waivers=[*lab, ended])
    assert by_status(result, Status.FAIL) == {"audit.backups_are_encrypted", "audit.waivers_hold"}


def test_no_secret_of_a_scenario_is_ever_shown(home: homes.Home) -> None:
    """Places of secrets are named in results and notebooks, the secrets are not."""
    run(home, "secret-in-values")
    texts = [path.read_bytes() for path in homes.files(home.folders()[-1])]
    assert any(b"values.proxmox.password" in text for text in texts)
    assert not any(b"nine-Lives-7" in text or b"bm90IGEga2V5" in text for text in texts)
