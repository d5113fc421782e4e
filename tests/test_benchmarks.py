"""The benchmarks' tables: medians with spread, ratios that say where we lose, and a page that keeps its words."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import page, peers, proxmox_lab
from benchmarks.__main__ import CASES
from benchmarks.measure import Broken, Case, Contender, Sample, command, take_turns

SAMPLES = {"ours": [Sample(2.0, 1.0), Sample(1.0, 1.0), Sample(9.0, 1.0)], "theirs": [Sample(1.0, float("nan"))] * 3}


def _case() -> Case:
    return Case(
        name="x",
        title="X",
        contenders=[
            Contender("ours", "as it comes", lambda: Sample(2.0, 1.0), ours=True),
            Contender("theirs", "tuned", lambda: Sample(1.0, 1.0)),
        ],
    )


def test_a_table_shows_median_and_spread() -> None:
    """Three turns become the middle one with the smallest and largest; what was not measured is a dash."""
    text = "\n".join(page.rows(_case(), SAMPLES))
    assert "| `ours` | as it comes | 2 (1–9) | 1 |" in text
    assert "| theirs | tuned | 1 | – |" in text


def test_a_loss_is_told() -> None:
    """The slower side is called slower, also when it is ours."""
    assert page.verdict(_case(), SAMPLES) == ["`ours` is 2.0 times as slow as theirs."]


def test_a_case_may_compare_more_than_time() -> None:
    """Every column is told by itself, also where the peer is ahead."""
    samples = {
        "ours": [Sample(1.0, 1.0, {"rate": 10.0, "memory": 30.0})],
        "theirs": [Sample(9.0, 1.0, {"rate": 5.0, "memory": 10.0})],
    }
    case = replace(_case(), columns={"rate": "per s", "memory": "MB"}, better={"rate": "more", "memory": "less"})
    assert page.verdict(case, samples) == [
        "per s: `ours` is 2.0 times as good as theirs.",
        "MB: `ours` is 3.0 times as bad as theirs.",
    ]


@pytest.mark.parametrize("found", [True, False])
def test_a_peer_stands_beside_where_it_can_be_installed(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot, the case says so and measures ours alone."""
    monkeypatch.setattr(proxmox_lab, "python_with", lambda package: Path(sys.executable) if found else None)
    case = proxmox_lab.completed(proxmox_lab.case())
    assert [contender.name for contender in case.contenders] == ["runbook lab", *(["fakepve"] if found else [])]
    assert any("could not be installed" in note for note in case.notes) is not found


def test_a_peer_that_cannot_be_installed_is_none(tmp_path: Path) -> None:
    """And leaves nothing behind that would pass for it the next time."""
    (tmp_path / "nowhere").write_text("a file where a folder is wanted")
    assert peers.python_with("fakepve", folder=tmp_path / "nowhere") is None


def test_contenders_take_turns() -> None:
    """Every contender is measured once before any is measured again."""
    told: list[str] = []
    samples = take_turns(_case(), 2, told.append)
    assert [line.split()[2] for line in told] == ["ours", "theirs", "ours", "theirs"]
    assert {name: len(taken) for name, taken in samples.items()} == {"ours": 2, "theirs": 2}


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    """Its exit code and the end of its output are told."""
    with pytest.raises(Broken, match="exit code 3\nno luck"):
        command([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], cwd=tmp_path)


def test_the_page_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    """Only the part between the markers is written anew."""
    target = tmp_path / "page.md"
    target.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.replace_between(target, "new")
    assert target.read_text(encoding="utf-8") == f"before\n{page.BEGIN}\n\nnew\n{page.END}\nafter\n"


def test_the_machine_has_no_name() -> None:
    """Cores, system and versions, but not whose machine it is."""
    import socket

    assert socket.gethostname() not in page.machine()
    assert "Python 3." in page.machine()


@pytest.mark.parametrize("name", CASES)
def test_every_comparison_has_ours_first(name: str) -> None:
    """And a title, and its configuration in words."""
    case = CASES[name]()
    assert case.name == name
    assert case.contenders[0].ours
    assert all(contender.how for contender in case.contenders)
