"""Outputs become runs, a history and a comparison."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runbook_lib import results
from runbook_lib.errors import UsageError
from runbook_lib.model import Finding, Measurement, Run, Status, StepRecord, StepResult, to_dict

P, W, F, S = Status.PASS, Status.WARN, Status.FAIL, Status.SKIP


def _run(identity: str, *findings: tuple[str, str, Status], step: str = "11", **changes: Any) -> Run:
    found = tuple(Finding(check, status, subject, "m") for check, subject, status in findings)
    result = StepResult(step, "T", "unit", identity, P, "", "", 1.0, found, requests={"proxmox": 3})
    start = f"{identity[:4]}-{identity[4:6]}-{identity[6:8]}T10:00:00.000Z"
    run = Run(
        id=identity,
        site="unit",
        started=start,
        finished=start.replace("10:00:00", "10:00:30"),
        status=P,
        steps=(StepRecord(step, "T", f"{step}_t.ipynb", P, result=result),),
        path=f"unit/{identity}",
    )
    return replace(run, **changes)


def _store(root: Path, run: Run) -> Path:
    folder = root / "outputs" / run.site / run.id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(to_dict(run)))
    return folder


def _notebook(path: Path, data: dict[str, Any] | None) -> None:
    payload = {"name": "step", "data": data, "encoder": "json", "version": 1}
    output = {
        "output_type": "display_data",
        "data": {results.SCRAP_MIMETYPE: payload},
        "metadata": {"scrapbook": {"name": "step", "data": True, "display": False}},
    }
    cell = {
        "cell_type": "code",
        "source": "",
        "metadata": {},
        "execution_count": 1,
        "outputs": [output] if data else [],
    }
    meta = {"runbook": {"step": "11", "title": "T"}}
    path.write_text(json.dumps({"cells": [cell], "metadata": meta, "nbformat": 4, "nbformat_minor": 4}))


RESULT = to_dict(
    StepResult(
        "11", "Assess", "unit", "r", W, "2026-11-23T10:00:00.000Z", "2026-11-23T10:00:05.000Z", 5.0,
        (Finding("a.b", W, "pve1", "82 % full"),), (Measurement("m", "ms", (1.0, float("nan"), 2.0)),),
    )
)  # fmt: skip


def test_scrapbook_gives_the_same_data(tmp_path: Path) -> None:
    """`scrapbook.read_notebooks` on a folder reads what `read_notebook_result` reads."""
    _notebook(tmp_path / "11_t.ipynb", RESULT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scrapbook

        book = scrapbook.read_notebooks(str(tmp_path))
    ours = results.read_scraps(json.loads((tmp_path / "11_t.ipynb").read_text()))
    assert book["11_t"].scraps["step"].data == ours["step"] == RESULT
    result, reason = results.read_notebook_result(tmp_path / "11_t.ipynb")
    assert (result and result.status, reason) == (W, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no notebook was written"),
        ('{"cells": []}', results.NO_RESULT),
        ("{", "cannot be read"),
    ],
)
def test_a_notebook_without_result_says_why(tmp_path: Path, text: str | None, reason: str) -> None:
    """Missing, unfinished and truncated notebooks are told apart."""
    path = tmp_path / "11_t.ipynb"
    if text is not None:
        path.write_text(text)
    assert results.read_notebook_result(path)[0] is None
    assert reason in results.read_notebook_result(path)[1]


@pytest.mark.parametrize("data", [{"schema": 99}, {"status": "splendid"}, {"step": "11"}])
def test_a_result_of_another_make_is_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    """A newer schema or a malformed result is an error of that step, not a crash."""
    _notebook(tmp_path / "11_t.ipynb", data)
    assert "cannot be read" in results.read_notebook_result(tmp_path / "11_t.ipynb")[1]


def test_a_folder_of_plain_papermill_is_a_run(tmp_path: Path) -> None:
    """Without run.json the run is put together from the notebooks."""
    folder = tmp_path / "unit" / "by-hand"
    folder.mkdir(parents=True)
    _notebook(folder / "11_t.ipynb", RESULT)
    _notebook(folder / "12_t.ipynb", None)
    run = results.read_run(folder)
    assert [(record.step, record.status) for record in run.steps] == [("11", W), ("11", Status.ERROR)]
    assert (run.site, run.status, run.path) == ("unit", Status.ERROR, "unit/by-hand")


def test_a_notebook_finished_after_run_json_counts(tmp_path: Path) -> None:
    """A kill between the two writes loses no result."""
    run = _run("20261123T100000Z-0001")
    blank = replace(run.steps[0], result=None, status=Status.NOT_RUN)
    folder = _store(tmp_path, replace(run, steps=(blank,)))
    _notebook(folder / "11_t.ipynb", RESULT)
    assert results.read_run(folder).steps[0].status is W


def test_an_unreadable_run_is_refused_and_left_out(tmp_path: Path) -> None:
    """One broken folder does not hide the others."""
    _store(tmp_path, _run("20261123T100000Z-0001"))
    broken = _store(tmp_path, _run("20261123T110000Z-0002"))
    (broken / "run.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        results.read_run(broken)
    assert [run.id for run in results.runs("unit", tmp_path)] == ["20261123T100000Z-0001"]


def test_runs_are_newest_first_and_found_by_their_end(tmp_path: Path) -> None:
    """`last`, the whole id, and the four digits at its end all work; anything else is refused."""
    for name in ("20261123T100000Z-000a", "20261124T100000Z-000b"):
        _store(tmp_path, _run(name))
    assert [run.id[-4:] for run in results.runs("unit", tmp_path)] == ["000b", "000a"]
    assert results.sites(tmp_path) == ["unit"]
    for name in ("last", "000b", "20261124T100000Z-000b", "20261124"):
        assert results.find_run(name, tmp_path).name.endswith("b")
    for name in ("2026", "ffff", "../unit", "", ".."):
        with pytest.raises(UsageError):
            results.find_run(name, tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """Either all of the new text or all of the old; no temporary file stays."""
    path = tmp_path / "run.json"
    results.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        results.write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    assert path.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- two runs


@pytest.mark.parametrize(
    ("before", "after", "group"),
    [
        (P, F, "appeared"),
        (None, W, "appeared"),
        (S, F, "appeared"),
        (F, P, "fixed"),
        (W, F, "remaining"),
        (F, None, "lost"),
        (F, S, "lost"),
        (P, None, "lost"),
        (P, P, None),
        (None, P, None),
        (S, None, None),
    ],
)
def test_a_problem_nobody_looked_at_again_is_not_fixed(
    before: Status | None, after: Status | None, group: str | None
) -> None:
    """The four groups of a comparison, by what both runs said of one subject."""
    one = _run("20261123T100000Z-0001", *([("a.b", "x", before)] if before else []))
    two = _run("20261123T110000Z-0002", *([("a.b", "x", after)] if after else []))
    difference = results.compare(one, two)
    filled = [name for name in ("appeared", "fixed", "remaining", "lost") if getattr(difference, name)]
    assert filled == ([group] if group else [])


def test_the_gravest_finding_of_a_subject_is_compared() -> None:
    """Two findings of one check on one subject count by the worse one."""
    one = _run("20261123T100000Z-0001", ("a.b", "x", P))
    two = _run("20261123T110000Z-0002", ("a.b", "x", F), ("a.b", "x", P))
    assert results.compare(one, two).appeared[0].after is two.findings[0]


def test_steps_and_timings_are_compared() -> None:
    """A changed status and the medians of measurements in both runs."""
    one, two = _run("20261123T100000Z-0001"), _run("20261123T110000Z-0002")

    def measured(run: Run, *values: float, status: Status = P) -> Run:
        record = run.steps[0]
        assert record.result
        result = replace(record.result, measurements=(Measurement("GET /version", "ms", values),))
        return replace(run, steps=(replace(record, result=result, status=status),))

    difference = results.compare(measured(one, 1.0, 2.0, 3.0), measured(two, 4.0, status=F))
    assert [(entry.before, entry.after) for entry in difference.steps] == [(P, F)]
    assert difference.timings[0].ratio == 2.0


# ---------------------------------------------------------------- history


def test_daily_and_weekly_figures_come_from_the_runs() -> None:
    """Checks and problems found and fixed add up; what is still true comes from the last run of the period."""
    runs = [
        _run("20261122T100000Z-0001", ("a.b", "x", F), ("a.c", "y", P)),
        _run("20261123T100000Z-0002", ("a.b", "x", P), ("a.c", "y", P), ("a.d", "z", S)),
        _run("20261123T110000Z-0003", ("a.b", "x", W), ("a.c", "y", P)),
    ]
    found = results.history(reversed(runs))
    assert [entry.run[-1] for entry in found.runs] == ["3", "2", "1"]
    assert [(entry.found, entry.fixed, entry.problems) for entry in found.runs] == [(1, 0, 1), (0, 1, 0), (1, 0, 1)]
    today, yesterday = found.daily
    assert (today.period, today.runs, today.checks, today.share_passed) == ("2026-11-23", 2, 4, 0.5)
    assert (today.found, today.fixed, today.problems, today.seconds) == (1, 1, 1, 60.0)
    assert yesterday.problems == 1
    assert [(week.period, week.runs) for week in found.weekly] == [("2026-W48", 2), ("2026-W47", 1)]
    assert found.runs[1].skipped == 1
    assert found.runs[0].requests == 3


def test_a_problem_has_one_life_until_it_passes() -> None:
    """Found once, fixed once; coming back it is found anew, and what nobody looked at still stands."""
    runs = [
        _run("20261121T100000Z-0001", ("a.b", "x", F), ("a.c", "y", W)),
        _run("20261122T100000Z-0002", ("a.b", "x", W), ("a.c", "y", P)),
        _run("20261123T100000Z-0003", ("a.b", "x", P)),
        _run("20261124T100000Z-0004", ("a.d", "z", F), ("a.c", "y", W)),
        _run("20261125T100000Z-0005", ("a.e", "v", P)),
    ]
    told = [(row.check, row.status, row.found, row.fixed) for row in results.problems(reversed(runs))]
    days = [run.started for run in runs]
    assert told == [("a.d", F, days[3], None), ("a.c", W, days[3], None), ("a.b", P, days[0], days[2])]


def test_progress_counts_only_what_passed() -> None:
    """A phase's step is done with pass or warn; fail, skip and not run are not."""
    steps = [("11", P), ("12", W), ("13", F), ("21", Status.NOT_RUN), ("22", S)]
    run = Run("r", "unit", "", tuple(StepRecord(step, "t", "n", status) for step, status in steps))
    progress = results.phase_progress(run)
    assert [(entry.phase, entry.done, entry.steps, entry.status) for entry in progress] == [
        ("1", 2, 3, F),
        ("2", 0, 2, Status.NOT_RUN),
    ]
    assert results.history([]).phases == ()


# ---------------------------------------------------------------- the site's state


def _of(number: int, **statuses: str) -> Run:
    steps = tuple(
        StepRecord(step[1:], step, f"{step[1:]}_x.ipynb", Status(status)) for step, status in statuses.items()
    )
    name = f"2026112{number}T100000Z-0000"
    return Run(name, "lab", f"2026-11-2{number}T10:00:00Z", steps, path=f"lab/{name}")


def test_a_run_of_one_step_leaves_what_is_known_of_the_others() -> None:
    """Each record says which run it is from."""
    state = results.state_of_site([_of(1, s11="pass", s12="fail"), _of(2, s12="pass")])
    assert state is not None
    assert [(record.step, record.status, record.run[:8]) for record in state.steps] == [
        ("11", Status.PASS, "20261121"),
        ("12", Status.PASS, "20261122"),
    ]
    assert (state.id[:8], state.status) == ("20261122", Status.PASS)


def test_a_step_that_was_skipped_now_is_not_shown_as_it_was_before() -> None:
    """The newest word on a step counts, also when it is a skip."""
    state = results.state_of_site([_of(1, s13="pass"), _of(2, s12="fail", s13="skip")])
    assert state is not None
    assert [record.status for record in state.steps] == [Status.FAIL, Status.SKIP]


def test_no_runs_are_no_state() -> None:
    """There is nothing to say about a site that never ran."""
    assert results.state_of_site([]) is None
