"""Scenario files: what they may say, and how a mistake in one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbook_lib.errors import LabError
from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.faults import fault_from
from runbook_lib.lab.platform import build
from runbook_lib.lab.proxmox.state import PveState


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_of_the_project_loads(name: str) -> None:
    """With a title, and with faults that mean something."""
    loaded = scenario.load(name)
    assert loaded.title
    assert loaded.name == name
    for entry in loaded.faults:
        fault_from(entry)


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_of_the_project_can_be_built(name: str) -> None:
    """Both halves accept their sections; whatever a file names exists."""
    loaded, clock = scenario.load(name), Clock(0)
    state = PveState.from_scenario(loaded.proxmox, clock=clock)
    assert state.local_node in state.nodes
    platform = build(loaded.kubernetes, clock=clock, admin_token="x", ca_pem="")
    assert platform.cluster.version.startswith("v1.")


def test_a_scenario_builds_on_another(tmp_path: Path) -> None:
    """Maps are merged, everything else is replaced."""
    path = tmp_path / "mine.yaml"
    path.write_text("extends: fresh-node\nproxmox: {nodes: {pve1: {cpus: 2}}}\nmust_fail: [proxmox.x]\n")
    loaded = scenario.load(path)
    assert loaded.proxmox["nodes"]["pve1"]["cpus"] == 2
    assert loaded.proxmox["nodes"]["pve1"]["ip"] == scenario.load("fresh-node").proxmox["nodes"]["pve1"]["ip"]
    assert loaded.must_fail == ("proxmox.x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x\n", "titel: unknown key; did you mean title?"),
        ("extends: mine.yaml\n", "extends itself"),
        ("- a\n", "not a map"),
        ("a: [\n", "while parsing"),
        ("title: !!python/object/apply:os.system [x]\n", "could not determine a constructor"),
    ],
)
def test_a_mistake_in_a_scenario_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    """The file and the mistake, without a traceback."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(LabError) as refused:
        scenario.load(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
