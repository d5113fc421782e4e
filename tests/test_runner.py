"""The runner: order, gates, locks, timeouts, interrupts, resume."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runbook_lib import runner
from runbook_lib.errors import Locked, ParameterError, UsageError
from runbook_lib.events import first_event, make_private, site_lock
from runbook_lib.model import Run, Status, StepRecord
from runbook_lib.report import exit_code
from runbook_lib.results import read_run


def _statuses(run: Run) -> dict[str, str]:
    return {record.step: record.status.value for record in run.steps}


def _write(root: Path, name: str, meta: dict[str, Any] | None, *cells: str) -> None:
    sources = [{"cell_type": "code", "source": text, "metadata": {"tags": ["parameters"]}} for text in cells]
    notebook = {"cells": sources, "metadata": {"runbook": meta} if meta is not None else {}, "nbformat": 4}
    (root / "notebooks" / name).write_text(json.dumps(notebook))


# ---------------------------------------------------------------- discovery


def test_steps_come_from_metadata_in_the_order_of_their_numbers(project: Any) -> None:
    """A notebook without `runbook` metadata is no step; declared parameters keep their annotations."""
    _write(project.root, "21_b.ipynb", {"title": "B", "step": "21", "needs": ["11"]}, 'site: str = "lab"\nn = 3')
    _write(project.root, "11_a.ipynb", {"title": "A", "step": "11", "critical": True})
    _write(project.root, "50_scratch.ipynb", None)
    first, second = runner.discover(project.root)
    assert (first.step, first.critical, second.needs) == ("11", True, ("11",))
    assert second.parameters == {"site": "str", "n": ""}


@pytest.mark.parametrize(
    ("metas", "message"),
    [
        ([{"step": "11", "needs": ["12"]}, {"step": "12", "needs": ["11"]}], "circle: 11 → 12 → 11"),
        ([{"step": "11", "needs": ["12"]}, {"step": "12", "after": ["11"]}], "circle: 11 → 12 → 11"),
        ([{"step": "11", "needs": ["77"]}], "needs step 77: there is none"),
        ([{"step": "11"}, {"step": "11"}], "step 11 is both"),
    ],
)
def test_impossible_needs_are_refused_by_name(project: Any, metas: list[dict[str, Any]], message: str) -> None:
    """Circles, unknown needs and double numbers end before anything runs."""
    for index, meta in enumerate(metas):
        _write(project.root, f"1{index + 1}_x.ipynb", meta)
    with pytest.raises(UsageError, match=message):
        runner.discover(project.root)


def test_a_broken_notebook_file_is_named(project: Any) -> None:
    """A notebook that is no JSON ends in one line with its name."""
    (project.root / "notebooks" / "11_x.ipynb").write_text("{")
    with pytest.raises(UsageError, match=r"notebooks/11_x\.ipynb is not a notebook"):
        runner.discover(project.root)


@pytest.mark.parametrize(
    ("named", "steps"),
    [
        (["11"], ["11"]),
        (["1x"], ["11", "12"]),
        (["11,21"], ["11", "21"]),
        (["21_c"], ["21"]),
        ([], ["11", "12", "21"]),
        (["21", "1x"], None),
    ],
)
def test_steps_are_chosen_by_number_phase_or_name(project: Any, named: list[str], steps: list[str] | None) -> None:
    """`11`, `1x` and a file's name select; nothing named selects all."""
    for name in ("11_a", "12_b", "21_c"):
        _write(project.root, f"{name}.ipynb", {"step": name[:2]})
    chosen = [spec.step for spec in runner.select(runner.discover(project.root), named)]
    assert chosen == (steps or ["11", "12", "21"])


def test_an_unknown_step_is_refused(project: Any) -> None:
    """The message lists the steps there are."""
    _write(project.root, "11_a.ipynb", {"step": "11"})
    with pytest.raises(UsageError, match="no step '33'; steps are 11"):
        runner.select(runner.discover(project.root), ["33"])


def test_run_ids_sort_by_time_and_are_all_different() -> None:
    """A run's id is its UTC second and four hex digits."""
    ids = {runner.new_run_id() for _ in range(20)}
    assert len(ids) > 15
    assert all(runner.RUN_ID.fullmatch(identity) for identity in ids)


# ---------------------------------------------------------------- one whole run


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, new_project: Any) -> Any:
    """One run with every kind of end, looked at by the tests below."""
    project = new_project(tmp_path_factory.mktemp("mixed"))
    project.notebook(
        "11", "f = finding('a.b', 'pass', 'one', 'fine')", "import time; time.sleep(0.05)", "finish('pass', f)"
    )
    project.notebook("12", "1 / 0", "finish('pass')", critical=True)
    project.notebook("13", "finish('pass')", needs=["12"])
    project.notebook("14", "finish('pass')", needs=["13"])
    project.notebook("21", "finish('fail', finding('a.c', 'fail', 'x'))", needs=["11"], critical=True)
    project.notebook("22", "finish('pass')", needs=["21"])
    project.notebook("23", "finish('fail', finding('a.d', 'fail', 'y'))", needs=["11"])
    project.notebook("24", "print(run_dir, site)\nfinish('pass')", needs=["23"])
    project.notebook("25", "print('no result')")
    count = "import json, pathlib\nprint(len(json.loads((pathlib.Path(run_dir) / 'run.json').read_text())['steps']))"
    project.notebook("99", count, "finish('warn')", needs=["12", "24"], always=True)
    return SimpleNamespace(project=project, run=project.run(parallel=2))


def test_a_broken_step_skips_its_dependents_and_nobody_else(mixed: Any) -> None:
    """An error and a failed critical step gate what needs them; a failed ordinary step does not."""
    assert _statuses(mixed.run) == {
        "11": "pass",
        "12": "error",
        "13": "skip",
        "14": "skip",
        "21": "fail",
        "22": "skip",
        "23": "fail",
        "24": "pass",
        "25": "error",
        "99": "warn",
    }


def test_every_step_without_result_says_why(mixed: Any) -> None:
    """The reason names the exception and its cell, or the step that stood in the way."""
    reasons = {record.step: record.reason for record in mixed.run.steps if record.reason}
    assert reasons == {
        "12": "ZeroDivisionError: division by zero (cell 4)",
        "13": "needs step 12, which could not tell (error)",
        "14": "needs step 13, which was skipped",
        "22": "needs step 21, which failed",
        "25": "the notebook ended without step.finish()",
    }


def test_the_summary_runs_last_whatever_happened(mixed: Any) -> None:
    """`always` waits for every other step, and sees them all in run.json."""
    started = [event["step"] for event in mixed.project.events if event["event"] == "step-started"]
    assert started[-1] == "99"
    assert mixed.project.text(mixed.run, "99").strip() == "10"


@pytest.mark.parametrize(
    ("chosen", "settled", "ready"),
    [(["13", "21"], [], False), (["13", "21"], ["13"], True), (["21"], [], True)],
)
def test_a_step_waits_for_what_it_comes_after(project: Any, chosen: list[str], settled: list[str], ready: bool) -> None:
    """`after` orders two steps that run together; it is no need, so an absent one is not waited for."""
    _write(project.root, "13_a.ipynb", {"step": "13"})
    _write(project.root, "21_b.ipynb", {"step": "21", "after": ["13"]})
    specs = runner.select(runner.discover(project.root), chosen)
    assert runner._is_ready(specs[-1], specs, settled) is ready


def test_findings_are_told_while_the_step_still_runs(mixed: Any) -> None:
    """The first finding is an event before its step has ended."""
    kinds = [(event["event"], event.get("step")) for event in mixed.project.events]
    assert kinds.index(("finding", "11")) < kinds.index(("step-finished", "11"))


def test_events_are_kept_as_they_were_told(mixed: Any) -> None:
    """events.jsonl holds the same lines, from run-started to run-finished."""
    lines = (mixed.project.folder(mixed.run) / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == mixed.project.events
    assert (mixed.project.events[0]["event"], mixed.project.events[-1]["event"]) == ("run-started", "run-finished")
    assert first_event(mixed.project.folder(mixed.run))["named"] == "unit"


def test_outputs_are_for_their_owner_alone(mixed: Any) -> None:
    """Folders are 0700 and files 0600."""
    folder = mixed.project.folder(mixed.run)
    for path in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_outputs_name_no_folder_of_this_machine(mixed: Any) -> None:
    """Paths in executed notebooks and run.json start at the project."""
    folder = mixed.project.folder(mixed.run)
    for path in (folder / "24_step.ipynb", folder / "run.json", folder / "events.jsonl"):
        assert str(mixed.project.root) not in path.read_text()
    assert mixed.project.text(mixed.run, "24") == f"outputs/unit/{mixed.run.id} unit\n"


def test_run_json_is_the_run(mixed: Any) -> None:
    """What was returned is what a reader gets."""
    assert read_run(mixed.project.folder(mixed.run)) == mixed.run
    assert exit_code(mixed.run) == 3


def test_nothing_half_written_remains(mixed: Any) -> None:
    """Temporary files of notebooks and run.json are gone."""
    hidden = [path.name for path in mixed.project.folder(mixed.run).iterdir() if path.name.startswith(".")]
    assert hidden == []


# ---------------------------------------------------------------- refused before anything is written


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parameters": {"sight": "x"}}, ParameterError, "did you mean site"),
        ({"parameters": {"x\nimport os": 1}}, ParameterError, "not a plain identifier"),
        ({"parameters": {"site": {1, 2}}}, ParameterError, "not plain data"),
        ({"steps": ["77"]}, UsageError, "no step '77'"),
        ({"parallel": 0}, UsageError, "parallel is 0"),
        ({"isolation": "warm"}, UsageError, "isolation is 'warm'"),
    ],
)
def test_bad_input_writes_nothing(project: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    """papermill would only warn of an unknown parameter, and paste a hostile name into code."""
    project.notebook("11", "finish('pass')")
    with pytest.raises(error, match=message):
        project.run(**options)
    assert not (project.root / "outputs").exists()


@pytest.mark.parametrize("name", ["../../etc", "20261123T190312Z-zzzz", "20261123T190312Z-0000", ""])
def test_a_run_to_resume_must_exist_and_be_a_run(project: Any, name: str) -> None:
    """No path leads out of the site's folder."""
    project.notebook("11", "finish('pass')")
    with pytest.raises(UsageError):
        runner._earlier(project.root / "outputs" / "unit", name, [])


def test_results_are_not_written_through_a_link(project: Any, tmp_path: Path) -> None:
    """A site's folder that is a symbolic link is refused."""
    project.notebook("11", "finish('pass')")
    (project.root / "outputs").mkdir()
    (project.root / "outputs" / "unit").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="symbolic link"):
        project.run()


# ---------------------------------------------------------------- lock


def test_a_site_has_one_run_at_a_time(project: Any) -> None:
    """The second run ends at once with exit 5 and names the owner."""
    project.notebook("11", "finish('pass')")
    folder = make_private(make_private(project.root / "outputs") / "unit")
    with site_lock(folder, "unit"), pytest.raises(Locked, match=f"held by process {os.getpid()} on") as refused:
        project.run()
    assert refused.value.exit_code == 5


def test_a_dead_owner_holds_nothing(tmp_path: Path) -> None:
    """A lock whose owner was killed needs no manual delete."""
    code = (
        "import sys, os, signal; from pathlib import Path; from runbook_lib.events import site_lock\n"
        "with site_lock(Path(sys.argv[1]), 'unit'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lock.json").exists()
    with site_lock(tmp_path, "unit"):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()


# ---------------------------------------------------------------- time


def test_a_step_that_takes_too_long_is_stopped(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout interrupts; a step that swallows the interrupt is killed; the reason says so."""
    monkeypatch.setattr(runner, "KILL_AFTER_SECONDS", 0.3)
    project.notebook("11", "import time", "time.sleep(60)", timeout=1.5)
    stubborn = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        pass"
    project.notebook("12", "print('kept')", stubborn, timeout=1.5)
    run = project.run()
    assert [record.reason for record in run.steps] == ["took longer than 1.5 s and was stopped"] * 2
    assert project.text(run, "12") == "kept\n"


# ---------------------------------------------------------------- approval


def test_a_plan_without_approval_is_waiting_and_not_an_error(project: Any) -> None:
    """The step is `not run` with the command to approve; the exit code is 4; resume runs it again."""
    gate = (
        "import pathlib\nfrom runbook_lib.errors import ApprovalNeeded\n"
        "if not pathlib.Path('ok').exists():\n    raise ApprovalNeeded('plan', '', 'runbook approve 3f9c2ab41d07')"
    )
    project.notebook("13", gate, "finish('pass')")
    project.notebook("21", "finish('pass')", needs=["13"])
    run = project.run()
    assert _statuses(run) == {"13": "not run", "21": "skip"}
    assert "runbook approve 3f9c2ab41d07" in run.steps[0].reason
    assert exit_code(run) == 4
    (project.root / "ok").touch()
    assert _statuses(project.run(run=run.id)) == {"13": "pass", "21": "pass"}


# ---------------------------------------------------------------- resume


def test_resume_runs_only_what_has_no_result(project: Any) -> None:
    """Finished steps keep their notebooks; the errored one, its dependents and the summary run again."""
    project.notebook("11", "finish('fail')")
    project.notebook("12", "import pathlib\nassert pathlib.Path('mended').exists()", "finish('pass')")
    project.notebook("13", "finish('pass')", needs=["12"])
    project.notebook("99", "finish('pass')", always=True)
    run = project.run()
    assert _statuses(run) == {"11": "fail", "12": "error", "13": "skip", "99": "pass"}
    before = (project.folder(run) / "11_step.ipynb").stat().st_mtime_ns
    (project.root / "mended").touch()
    project.events.clear()
    resumed = project.run(run=run.id)
    assert _statuses(resumed) == {"11": "fail", "12": "pass", "13": "pass", "99": "pass"}
    assert [event["step"] for event in project.events if event["event"] == "step-started"] == ["12", "13", "99"]
    assert (project.folder(run) / "11_step.ipynb").stat().st_mtime_ns == before
    assert resumed.id == run.id


def test_a_finished_run_resumes_to_itself(project: Any) -> None:
    """Nothing is executed again."""
    project.notebook("11", "finish('pass')")
    run = project.run()
    project.events.clear()
    assert _statuses(project.run(run=run.id)) == {"11": "pass"}
    assert [event["event"] for event in project.events] == ["run-resumed", "run-finished"]


# ---------------------------------------------------------------- interrupts and kills, by real signals

_RUN = """
import sys
sys.path.insert(0, sys.argv[2])
import conftest
project = conftest.Project(conftest.Path(sys.argv[1]))
project.run(isolation=sys.argv[3], on_event=lambda event: print(event["event"], event.get("step", ""), flush=True))
"""


def _start(project: Any, isolation: str = "fork") -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(project.root), here, isolation],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(path: Path, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)
    return path.read_text()


def _gone(pid: int, seconds: float = 3) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # a zombie: nobody here is its parent
        except OSError:
            return True
        time.sleep(0.02)
    return False


def _only_run(project: Any) -> Run:
    (folder,) = [path.parent for path in (project.root / "outputs" / "unit").glob("*/run.json")]
    return read_run(folder)


_WAIT = (
    "import atexit, os, pathlib, time\n"
    "atexit.register(lambda: pathlib.Path('cleaned').write_text('yes'))\n"
    "pathlib.Path('pid').write_text(str(os.getpid()))"
)
_STUBBORN = """
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pathlib.Path('first').write_text('x')
"""


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_one_interrupt_stops_gracefully(project: Any, isolation: str) -> None:
    """The running cell is interrupted, the kernel ends in order, later steps are `not run`, and run.json is true."""
    project.notebook("11", _WAIT, "time.sleep(60)", "finish('pass')")
    project.notebook("12", "finish('pass')", needs=["11"])
    process = _start(project, isolation)
    kernel = int(_wait_for(project.root / "pid"))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    run = _only_run(project)
    assert process.returncode == 0
    assert [(record.status, record.reason) for record in run.steps] == [
        (Status.NOT_RUN, "interrupted"),
        (Status.NOT_RUN, "the run was interrupted before it"),
    ]
    assert (project.root / "cleaned").read_text() == "yes"
    assert output.splitlines()[-1].startswith("run-finished")
    assert _gone(kernel)


def test_a_second_interrupt_stops_at_once(project: Any) -> None:
    """A cell that swallows the interrupt is killed by the second one."""
    project.notebook("11", _WAIT + _STUBBORN)
    process = _start(project)
    kernel = int(_wait_for(project.root / "pid"))
    process.send_signal(signal.SIGINT)
    _wait_for(project.root / "first")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert _gone(kernel)
    assert _only_run(project).steps[0].status is Status.NOT_RUN


@pytest.mark.parametrize("isolation", ["fork", "spawn"])
def test_a_killed_runner_leaves_no_kernel_and_no_lie(project: Any, isolation: str) -> None:
    """After kill -9 run.json is valid, the half step is not done, no kernel lives, and resume ends the run."""
    project.notebook("11", "finish('pass')")
    project.notebook(
        "12", _WAIT, "if not pathlib.Path('mended').exists(): time.sleep(60)", "finish('pass')", needs=["11"]
    )
    process = _start(project, isolation)
    kernel = int(_wait_for(project.root / "pid"))
    process.kill()
    process.communicate()
    assert _gone(kernel)
    run = _only_run(project)
    assert _statuses(run) == {"11": "pass", "12": "not run"}
    (project.root / "mended").touch()
    assert _statuses(project.run(run=run.id)) == {"11": "pass", "12": "pass"}


# ---------------------------------------------------------------- the run's status


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], Status.NOT_RUN),
        ([Status.PASS, Status.SKIP], Status.PASS),
        ([Status.PASS, Status.WARN], Status.WARN),
        ([Status.PASS, Status.NOT_RUN], Status.NOT_RUN),
        ([Status.WARN, Status.NOT_RUN], Status.NOT_RUN),
        ([Status.FAIL, Status.NOT_RUN], Status.FAIL),
        ([Status.SKIP], Status.SKIP),
        ([Status.FAIL, Status.ERROR, Status.PASS], Status.ERROR),
    ],
)
def test_not_run_is_never_pass(statuses: list[Status], expected: Status) -> None:
    """A run with a step that never ran is no pass."""
    records = [StepRecord(str(index), "t", "n", status) for index, status in enumerate(statuses)]
    assert runner.run_status(records) is expected
