"""The lab's whole state as one file: taken, given back, and kept over a restart."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.errors import LabError
from runbook_lib.lab import control, scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import kept
from runbook_lib.lab.proxmox.state import PveState

sys.path.insert(0, str(Path(__file__).parent))

from proxmox_site import finished, login, start  # lies beside this file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab of this module's own."""
    lab = start(tmp_path_factory.mktemp("snapshot"))
    yield lab
    control.down(lab)


def names(folder: Path) -> list[str]:
    """The names of the VMs of pve1."""
    return sorted(row["name"] for row in login(folder).nodes("pve1").qemu.get())


def test_a_snapshot_brings_everything_back(folder: Path, tmp_path: Path) -> None:
    """A clone made after it is gone, its disk too, and the file is for its owner's eyes."""
    pve, before = login(folder), names(folder)
    control.snapshot(tmp_path / "kept.json", folder)
    assert finished(pve, pve.nodes("pve1").qemu(9000).clone.post(newid=4100, name="later", full=1)) == "OK"
    assert names(folder) == sorted([*before, "later"])
    control.restore(tmp_path / "kept.json", folder)
    assert names(folder) == before
    content = login(folder).nodes("pve1").storage("local-lvm").content.get()
    assert not [row for row in content if "4100" in row["volid"]]
    assert stat.S_IMODE((tmp_path / "kept.json").stat().st_mode) == 0o600


def test_a_lab_goes_on_after_a_restart_when_asked(folder: Path) -> None:
    """`down --keep`, `up`: the VM that was made is still there, and tokens made before still work."""
    pve = login(folder)
    assert finished(pve, pve.nodes("pve1").qemu(9000).clone.post(newid=4200, name="survivor", full=0)) == "OK"
    scenario_file = str(control.status(folder)["scenario"])  # type: ignore[index]
    assert control.down(folder, keep=True)
    control.up(folder, scenario=scenario_file, scale=1200)
    assert "survivor" in names(folder)
    control.down(folder)
    control.up(folder, scenario=scenario_file, scale=1200)
    assert "survivor" not in names(folder)


def test_rubbish_is_no_snapshot(folder: Path, tmp_path: Path) -> None:
    """It is refused, and the lab stays as it was."""
    before = names(folder)
    (tmp_path / "x.json").write_text('{"scenario": "healthy"}')
    with pytest.raises(LabError, match="lacks"):
        control.restore(tmp_path / "x.json", folder)
    with pytest.raises(LabError):
        control.restore(tmp_path / "none.json", folder)
    assert names(folder) == before


Damage = Callable[[dict[str, Any]], object]

DAMAGES: dict[str, Damage] = {
    "a number for the guests": lambda kept: kept["proxmox"].update(guests=5),
    "a list for the nodes": lambda kept: kept["proxmox"].update(nodes=[]),
    "a node among the guests": lambda kept: kept["proxmox"]["guests"]["of"].append(
        [9999, kept["proxmox"]["nodes"]["of"][0][1]]
    ),
    "a config that is a word": lambda kept: kept["proxmox"]["guests"]["of"][0][1]["of"].update(config="x"),
    "a field too many": lambda kept: kept["proxmox"]["guests"]["of"][0][1]["of"].update(colour="red"),
    "no people": lambda kept: kept["proxmox"].pop("people"),
    "no flavour": lambda kept: kept["proxmox"].update(flavour="7.4"),
    "half a volume": lambda kept: kept["proxmox"]["volumes"].append(["pve1"]),
    "a task without its id": lambda kept: kept["proxmox"]["tasks"][0]["of"].pop("upid"),
    "a fault nobody knows": lambda kept: kept["faults"].append({"explode": True}),
    "faults that are none": lambda kept: kept.update(faults=7),
    "an object without a name": lambda kept: next(iter(kept["kubernetes"]["buckets"].values()))[0]["metadata"].clear(),
    "no such scenario": lambda kept: kept.update(scenario="nowhere"),
}
"""What can be wrong with a file whose top-level keys are right."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_changes_nothing(folder: Path, tmp_path: Path, damage: str) -> None:
    """It is refused in one line while the lab still has its state, down to the running processes of its guests."""
    control.snapshot(tmp_path / "kept.json", folder)
    spoiled = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    DAMAGES[damage](spoiled)
    (tmp_path / "kept.json").write_text(json.dumps(spoiled), encoding="utf-8")
    pve = login(folder)
    upid = pve.nodes("pve1").qemu(9000).clone.post(newid=4300, name="witness", full=0)
    assert finished(pve, upid) == "OK"
    with pytest.raises(LabError) as refused:
        control.restore(tmp_path / "kept.json", folder)
    assert "\n" not in str(refused.value)
    assert "witness" in names(folder)
    assert finished(pve, pve.nodes("pve1").qemu(4300).delete()) == "OK"


def test_a_half_written_snapshot_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """A file that ends too early is no JSON, and says so."""
    control.snapshot(tmp_path / "kept.json", folder)
    whole = (tmp_path / "kept.json").read_bytes()
    (tmp_path / "kept.json").write_bytes(whole[: len(whole) // 2])
    before = names(folder)
    with pytest.raises(LabError, match="read the lab's state"):
        control.restore(tmp_path / "kept.json", folder)
    assert names(folder) == before


def test_only_parts_of_the_lab_are_made_from_a_file() -> None:
    """A file cannot name a class from elsewhere."""
    state = PveState.from_scenario(scenario.load("fresh-node").proxmox, clock=Clock(1))
    saved = kept.taken(state)
    saved["nodes"] = {"$": "subprocess:Popen", "of": {}}
    with pytest.raises(ValueError, match="not a part of Proxmox VE"):
        kept.given_back(state, saved)
