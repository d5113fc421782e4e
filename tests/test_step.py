"""What a notebook holds: displays, the scrap, changes, and a clean-up that outlives the cell."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from two_sides import FakeKube, FakePve, World

from runbook_lib import figures, prepare, secrets, step, sweep
from runbook_lib.display import MOST_ROWS, spelled, table
from runbook_lib.errors import ApprovalNeeded, ParameterError, UsageError
from runbook_lib.executors import KubernetesExecutor, ProxmoxExecutor
from runbook_lib.facts import Storage
from runbook_lib.model import Finding, Measurement, Status, StepRecord, step_result_from_dict
from runbook_lib.plan import grant, mark, pending
from runbook_lib.step import FINDINGS, SCRAP, Step, open_step

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202egnp.exe\x00$x^2$"


def site_of(**fields: Any) -> Any:
    """A site as far as a step asks; nothing is started or read."""
    return SimpleNamespace(**{"name": "lab", "emulated": True, "changes": "allow", "budget": None, **fields})


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    """A step of the lab with both systems in memory."""
    return make(tmp_path, monkeypatch)


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Step:
    """A step whose hands work on a world in memory, kept as `.world`."""
    monkeypatch.setattr(step, "_project_root", lambda: tmp_path)
    monkeypatch.setattr(sweep, "GRACE_SECONDS", 0.0)
    made = Step("13", site=site_of(**fields))
    world = World()
    world.state["objects"]["/api/v1/namespaces/default"] = {"metadata": {"name": "default"}}
    pve, kube = FakePve(world), FakeKube(world)
    vars(made)["executors"] = {
        "proxmox": ProxmoxExecutor(lambda: pve, root=tmp_path),
        "kubernetes": KubernetesExecutor(lambda: kube),
    }
    vars(made)["world"] = world
    return made


def finding(status: Status = Status.PASS, subject: str = "pve1", **fields: Any) -> Finding:
    """A finding of one check."""
    return Finding(**{"check": "proxmox.x", "status": status, "subject": subject, "message": "m", **fields})


def config_map(name: str = "probe") -> dict[str, Any]:
    """Something to borrow."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}


# --- opening -----------------------------------------------------------------------------------------


def test_opening_a_step_connects_to_nothing(tmp_path: Path) -> None:
    """A site that cannot be reached is found out by the first question, not by the first line."""
    made = Step("11", site=site_of())
    assert "proxmox" not in vars(made) and "kubernetes" not in vars(made)
    assert made.run_dir is None and list(tmp_path.iterdir()) == []


def test_an_unknown_site_is_refused_at_once() -> None:
    """Before any cell has asked anything."""
    with pytest.raises(ParameterError):
        open_step("11", site="no-such-site")


@pytest.mark.parametrize("name", ["", "../x", "a b", "11\n"])
def test_a_step_is_named_by_a_plain_word(name: str) -> None:
    """The name finds the notebook; a path or a line break does not."""
    with pytest.raises(UsageError):
        Step(name, site=site_of())


def test_the_run_is_the_folders_name(tmp_path: Path) -> None:
    """The runner gives the folder, the step knows its run."""
    made = Step("11", site=site_of(), run_dir=str(tmp_path / "20261123T190312Z-4f2a"))
    assert made.run == "20261123T190312Z-4f2a"


def test_title_and_task_come_from_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written once, in its metadata."""
    notebook = {"metadata": {"runbook": {"title": "Assess Proxmox VE", "task": "1.1"}}}
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "11_assess.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(step, "_project_root", lambda: tmp_path)
    step._notebook_of.cache_clear()
    result = Step("11", site=site_of()).finish()
    step._notebook_of.cache_clear()
    assert (result.title, result.task) == ("Assess Proxmox VE", "1.1")


# --- what the reader sees ------------------------------------------------------------------------------


def test_hostile_text_is_shown_and_does_nothing(opened: Step) -> None:
    """Markup is escaped, control characters and text that runs backwards are marked."""
    opened.record([finding(subject=HOSTILE, message=HOSTILE)])
    opened.show([{"name": HOSTILE}], title=HOSTILE)
    opened.note(HOSTILE)
    for data in opened.displayed:
        assert "<script" not in data["text/html"]
        assert not any(sign in data["text/html"] + data["text/plain"] for sign in "\x1b\x00\u202e")


def test_hostile_text_is_no_formula_in_a_figure(opened: Step) -> None:
    """A `$` in a name would be set as mathematics, and a wrong formula would raise."""
    opened.figure(figures.histogram([Measurement("$\\frac{$ " + HOSTILE, "ms", (1.0, 2.0))]))
    opened.figure(figures.dag([StepRecord("11", "$\\bad{", "11.ipynb", Status.PASS)]))
    assert all(data["image/png"] for data in opened.displayed)


def test_nothing_displayed_holds_a_secret(opened: Step) -> None:
    """In tables, findings for the runner, notes, alternative texts and the scrap."""
    secrets.register("opensesame-42")
    opened.record([finding(message="got opensesame-42", evidence={"header": "opensesame-42"})])
    opened.show([{"password": "opensesame-42"}], title="opensesame-42")
    opened.note("opensesame-42")
    opened.figure(figures.histogram([Measurement("opensesame-42", "ms", (1.0,))]))
    opened.measure(Measurement("opensesame-42", "ms", (1.0,)))
    opened.finish()
    shown = json.dumps([{k: v for k, v in data.items() if k != "image/png"} for data in opened.displayed])
    assert "opensesame" not in shown


def test_findings_leave_as_they_are_made(opened: Step) -> None:
    """The runner sees them before the step ends."""
    opened.record([finding(Status.WARN)])
    (data,) = opened.displayed
    assert data[FINDINGS]["step"] == "13" and data[FINDINGS]["findings"][0]["status"] == "warn"


def test_a_cell_that_runs_again_replaces_its_findings(opened: Step) -> None:
    """As in JupyterLab, after something was put right."""
    opened.record([finding(Status.FAIL), finding(subject="pve2")])
    opened.record([finding(Status.PASS)])
    assert [(entry.subject, entry.status) for entry in opened.finish().findings] == [
        ("pve2", Status.PASS),
        ("pve1", Status.PASS),
    ]


def test_record_takes_several_checks_and_a_generator(opened: Step) -> None:
    """One table of the findings of two checks."""
    given = opened.record(entry for entry in (finding(), finding(check="proxmox.y")))
    assert [entry.check for entry in given] == ["proxmox.x", "proxmox.y"]


@dataclass
class Row:
    """A fact."""

    name: str
    used_bytes: int | None


def frame() -> Any:
    """A DataFrame with holes, dates and an index that means something."""
    import pandas as pd

    columns = {"used_bytes": [1024.0, None], "seen": [pd.Timestamp("2026-11-23", tz="UTC"), pd.NaT]}
    return pd.DataFrame(columns, index=pd.Index(["a", "b"], name="disk"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Row("a", 2048), Row("b", None)], ["2.0 KiB", "–"]),
        ({"cpu_fraction": 0.5}, ["50 %", "cpu"]),
        (Storage("pve1", "local", "dir", ("iso",), True, True, False), ["local", "yes", "iso"]),
        (["one", "two"], ["one", "two"]),
        (frame(), ["1.0 KiB", "–", "disk"]),
        ([], ["nothing to show"]),
        (7, ["7"]),
    ],
)
def test_rows_of_every_kind_become_a_table(rows: Any, expected: list[str]) -> None:
    """Dataclasses, a mapping, a DataFrame, plain values; HTML and text say the same."""
    data = table(rows)
    for text in expected:
        assert text in data["text/html"] and text in data["text/plain"]


def test_a_long_table_is_cut_and_counted() -> None:
    """A page is not a database."""
    data = table([{"n": number} for number in range(MOST_ROWS + 5)])
    assert data["text/html"].count("<tr>") == MOST_ROWS + 1
    assert "… and 5 more rows" in data["text/plain"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("memory_bytes", 0, "0 B"),
        ("memory_bytes", 64 * 2**30, "64.0 GiB"),
        ("used_fraction", 0.845, "84 %"),
        ("not_after", 0, "1970-01-01"),
        ("x", math.nan, "–"),
        ("x", True, "yes"),
        ("x", (), "–"),
        ("x", {"a": 1}, "a: 1"),
        ("x", 1234567.0, "1,234,567"),
        ("x", 0.12345, "0.1235"),
    ],
)
def test_values_are_spelled_with_their_unit(name: str, value: Any, text: str) -> None:
    """Bytes and fractions by the field's ending; None is what the API did not tell."""
    assert spelled(name, value) == text


def test_a_figure_says_in_words_what_it_shows(opened: Step) -> None:
    """For those who cannot see it: its own words, or those given."""
    drawn = figures.histogram([Measurement("GET /version", "ms", tuple(float(value) for value in range(1, 101)))])
    opened.figure(drawn)
    opened.figure(drawn, alt="Answer times")
    assert "GET /version: p50 50.5, p95 95.0" in opened.displayed[0]["text/plain"]
    assert opened.displayed[1]["text/plain"] == "Answer times"


def test_a_histogram_of_nothing_is_drawn(opened: Step) -> None:
    """An endpoint that never answered has no readings."""
    opened.figure(figures.histogram([Measurement("GET /x", "ms", ()), Measurement("GET /y", "ms", (1.0,))]))
    assert opened.displayed[0]["image/png"]


def test_measurements_of_a_rehearsal_are_marked(opened: Step) -> None:
    """They say nothing about real hardware."""
    (given,) = opened.measure(Measurement("GET /version", "ms", (1.0, 3.0)))
    assert given.emulated and "emulated" in opened.displayed[0]["text/plain"]


# --- the result ----------------------------------------------------------------------------------------


def test_finishing_twice_keeps_one_scrap(opened: Step) -> None:
    """A cell run again does not add another result."""
    opened.record([finding()])
    assert opened.finish() is opened.finish()
    assert len([data for data in opened.displayed if SCRAP in data]) == 1


def test_a_step_that_looked_at_nothing_is_a_skip(opened: Step) -> None:
    """Looking at nothing is not passing."""
    assert opened.finish().status is Status.SKIP


@pytest.mark.parametrize("odd", ["numpy", "pandas", "plain"])
def test_values_of_every_library_survive_the_scrap(opened: Step, odd: str) -> None:
    """numpy and pandas types become plain JSON, and what is no number becomes null."""
    import numpy as np
    import pandas as pd

    values: dict[str, Any] = {
        "numpy": {"a": np.int64(3), "b": np.float32(math.nan), "c": np.array([1, 2]), "d": np.bool_(True)},
        "pandas": {"a": pd.Timestamp("2026-11-23", tz="UTC"), "b": pd.NA, "c": pd.Series([1])},
        "plain": {"a": {1, 2}, "b": math.inf, "c": (1,), "d": datetime(2026, 11, 23, tzinfo=UTC)},
    }
    opened.record([finding(evidence=values[odd])])
    opened.finish()
    (scrap,) = [data[SCRAP] for data in opened.displayed if SCRAP in data]
    kept = json.loads(json.dumps(scrap["data"], allow_nan=False))["findings"][0]["evidence"]
    assert kept["b"] is None
    assert step_result_from_dict(scrap["data"]).step == "13"


# --- changes -------------------------------------------------------------------------------------------


def test_what_is_borrowed_is_gone_when_the_step_ends(opened: Step) -> None:
    """And both the things and the search for marks are findings."""
    opened.borrow(prepare.borrow_object(config_map(), opened.run, summary="probe"))
    world = vars(opened)["world"]
    assert "/api/v1/namespaces/default/configmaps/probe" in world.state["objects"]
    result = opened.finish()
    assert "/api/v1/namespaces/default/configmaps/probe" not in world.state["objects"]
    assert result.status is Status.PASS and len(result.findings) == 2
    assert [change.target for change in result.changes] == ["v1/ConfigMap/default/probe"]


def test_only_changes_make_a_run_folder(opened: Step, tmp_path: Path) -> None:
    """Reading leaves nothing behind; what is journalled lies in a folder of the run, for the owner alone."""
    opened.record([finding()])
    assert not (tmp_path / "outputs").exists()
    opened.borrow(prepare.borrow_object(config_map(), opened.run, summary="probe"))
    assert (tmp_path / "outputs" / "lab" / opened.run / "changes.jsonl").exists()


def test_a_forbidden_change_is_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is shown, nothing is sent, and the reason is a finding."""
    made = make(tmp_path, monkeypatch, changes="forbid")
    applied = made.apply(made.plan(prepare.borrow_object(config_map(), made.run, summary="probe")))
    assert applied.done == () and "changes: forbid" in applied.refused
    assert made.finish().status is Status.SKIP
    assert vars(made)["world"].sent == []


def test_a_change_to_be_asked_for_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Approved by its digest, the same plan is sent by a later run."""
    made = make(tmp_path, monkeypatch, changes="ask")
    with pytest.raises(ApprovalNeeded, match="runbook approve"):
        made.apply(prepare.borrow_object(config_map(), made.run, summary="probe"))
    later = make(tmp_path, monkeypatch, changes="ask")
    plan = later.plan(prepare.borrow_object(config_map(), later.run, summary="probe"))
    grant(tmp_path / "outputs" / "lab" / "approvals", plan.digest[:12])
    assert len(later.apply(plan).done) == 1
    later.clean_up()


def test_a_person_may_approve_in_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By typing the digest that the plan shows; another digest is no leave."""
    made = make(tmp_path, monkeypatch, changes="ask")
    plan = made.plan(prepare.borrow_object(config_map(), made.run, summary="probe"))
    with pytest.raises(ApprovalNeeded):
        made.apply(plan, approved="0" * 12)
    assert len(made.apply(plan, approved=plan.digest[:12]).done) == 1
    made.clean_up()


def test_a_plan_that_was_carried_out_waits_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runbook approve` lists what waits, and a used approval approves nothing more."""
    made = make(tmp_path, monkeypatch, changes="ask")
    plan = made.plan(prepare.borrow_object(config_map(), made.run, summary="probe"))
    approvals = made._outputs() / "approvals"
    with pytest.raises(ApprovalNeeded):
        made.apply(plan)
    grant(approvals, plan.digest)
    made.apply(plan)
    assert pending(approvals) == []
    made.clean_up()


def test_ids_go_on_over_the_plans_of_a_step(opened: Step) -> None:
    """Each names one change; planning again before applying takes none."""
    first = opened.plan(prepare.borrow_object(config_map("a"), opened.run, summary="a"))
    opened.apply(opened.plan(first))
    second = opened.plan(prepare.borrow_object(config_map("b"), opened.run, summary="b"))
    assert [change.id for change in (*first.changes, *second.changes)] == ["13-01", "13-02"]
    opened.clean_up()


def test_a_plan_of_nothing_says_so(opened: Step) -> None:
    """Preparing a prepared site."""
    plan = opened.plan(prepare.Wanted(unchanged=("pool runbook",)))
    assert "Nothing to change" in opened.displayed[0]["text/plain"] and plan.unchanged == ("pool runbook",)
    assert opened.apply(plan).done == ()


# --- in a real kernel ----------------------------------------------------------------------------------

OPEN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from two_sides import FakeKube, FakePve, World
from runbook_lib import figures, step as module, prepare, sweep
from runbook_lib.executors import KubernetesExecutor, ProxmoxExecutor
from runbook_lib.model import Finding, Measurement, Status
module._project_root = lambda: Path("ROOT")
sweep.GRACE_SECONDS = 0.0
site = SimpleNamespace(name="lab", emulated=True, changes="allow", budget=None)
step = module.Step("13", site=site, run_dir="ROOT/outputs/lab/20261123T190312Z-4f2a")
world = World(Path("ROOT/world.json"))
world.state["objects"]["/api/v1/namespaces/default"] = {{"metadata": {{"name": "default"}}}}
world.save()
vars(step)["executors"] = {{"proxmox": ProxmoxExecutor(lambda: FakePve(world), root=Path("ROOT")),
                            "kubernetes": KubernetesExecutor(lambda: FakeKube(world))}}
thing = {{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "probe", "namespace": "default"}}}}
"""

RECORD = """
step.record([Finding("proxmox.x", Status.WARN, "pve1", "m", evidence={"n": np.int64(4), "nan": float("nan")})])
step.measure(Measurement("GET /version", "ms", (1.0, float("nan"), 2.0)))
step.figure(figures.histogram([Measurement("GET /version", "ms", (1.0, 2.0))]))
"""

BORROW = """
step.borrow(prepare.borrow_object(thing, step.run, summary="probe"))
assert "/api/v1/namespaces/default/configmaps/probe" in world.state["objects"]
"""


def execute(root: Path, *cells: str, fails: bool = False) -> Path:
    """The executed notebook, by papermill's stock engine and the python3 kernel."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.replace("ROOT", str(root))) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    source, target = root / "in.ipynb", root / "out.ipynb"
    nbformat.write(book, source)
    options: dict[str, Any] = {"progress_bar": False, "kernel_name": "python3", "log_output": False}
    if fails:
        with pytest.raises(PapermillExecutionError):
            papermill.execute_notebook(str(source), str(target), **options)
    else:
        papermill.execute_notebook(str(source), str(target), **options)
    return target


def test_scrapbook_reads_the_scrap_back(tmp_path: Path) -> None:
    """As if scrapbook had glued it: name, data and schema, no number that is not one."""
    import scrapbook

    book = scrapbook.read_notebook(str(execute(tmp_path, OPEN, RECORD, "step.finish();")))
    scrap = book.scraps["step"]
    result = step_result_from_dict(scrap.data)
    assert scrap.encoder == "json" and scrap.data["schema"] == 1
    assert result.status is Status.WARN and result.findings[0].evidence == {"n": 4, "nan": None}
    assert result.measurements[0].values == (1.0, 2.0) and result.measurements[0].errors == 1


def test_the_scrap_is_what_scrapbook_would_have_glued(tmp_path: Path) -> None:
    """Payload and metadata, key by key."""
    glued = """
import scrapbook
scrapbook.glue("step", {"a": 1})
"""
    book = nbformat.read(execute(tmp_path, OPEN, RECORD, "step.finish();", glued), as_version=4)
    ours, theirs = (
        next(out for out in cell.outputs if out.get("data", {}).get(SCRAP)) for cell in (book.cells[2], book.cells[3])
    )
    assert set(ours.data) == set(theirs.data) == {SCRAP}
    assert set(ours.data[SCRAP]) == set(theirs.data[SCRAP])
    assert {k: v for k, v in ours.data[SCRAP].items() if k != "data"} == {
        k: v for k, v in theirs.data[SCRAP].items() if k != "data"
    }
    assert ours.metadata == theirs.metadata and ours.output_type == theirs.output_type


def test_a_figure_reaches_the_notebook_with_its_words(tmp_path: Path) -> None:
    """The alternative text is kept where pages find it."""
    book = nbformat.read(execute(tmp_path, OPEN, RECORD), as_version=4)
    (picture,) = [out for out in book.cells[1].outputs if "image/png" in out.get("data", {})]
    assert picture.metadata["image/png"]["alt"].startswith("GET /version: p50")


def test_a_cell_that_raises_leaves_nothing_borrowed(tmp_path: Path) -> None:
    """finish() was never reached; the kernel's end takes back what was borrowed."""
    target = execute(tmp_path, OPEN, BORROW, "raise RuntimeError('broken runbook')", "step.finish()", fails=True)
    assert SCRAP not in target.read_text()
    assert gone(tmp_path / "world.json")


def gone(state: Path, *, seconds: float = 20.0) -> bool:
    """Whether the borrowed object goes while the process that held it ends."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        text = state.read_text()
        if text and "configmaps/probe" not in text:
            return True
        time.sleep(0.02)
    return False


SCRIPT = OPEN + BORROW + "\nprint('held', flush=True)\nimport time\nEND\n"


@pytest.mark.parametrize("end", ["time.sleep(60)", "while True: pass"])
def test_sigterm_takes_back_what_is_borrowed(tmp_path: Path, end: str) -> None:
    """Asleep or busy; and the process still dies of the signal."""
    code = SCRIPT.replace("ROOT", str(tmp_path)).replace("END", end)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
    assert "configmaps/probe" not in (tmp_path / "world.json").read_text()


@pytest.mark.parametrize("end", ["sys.exit(0)", "raise KeyboardInterrupt", "1 / 0"])
def test_every_early_end_takes_back_what_is_borrowed(tmp_path: Path, end: str) -> None:
    """An exit, Ctrl-C, an exception."""
    code = SCRIPT.replace("ROOT", str(tmp_path)).replace("END", end)
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60)
    assert "configmaps/probe" not in (tmp_path / "world.json").read_text()


def test_a_fork_does_not_take_back_what_its_parent_borrowed(tmp_path: Path) -> None:
    """A child that ends, as multiprocessing's do, leaves the parent's things where they are."""
    end = """
child = __import__("os").fork()
if not child:
    sys.exit(0)
__import__("os").waitpid(child, 0)
world = World(Path("ROOT/world.json"))
print("there" if "/api/v1/namespaces/default/configmaps/probe" in world.state["objects"] else "gone", flush=True)
"""
    code = SCRIPT.replace("END", end).replace("ROOT", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert done.stdout.split() == [b"held", b"there"]


def test_importing_the_package_is_quick() -> None:
    """`import runbook_lib` and its names cost nothing until they are used."""
    code = (
        "import sys, runbook_lib; dir(runbook_lib); print(len([m for m in sys.modules if m.startswith('runbook_lib')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ})
    assert done.stdout.strip() == b"1"


def test_opening_a_step_loads_no_heavy_library() -> None:
    """pandas, matplotlib, scrapbook and the clients come when they are asked for."""
    heavy = ("pandas", "matplotlib", "scrapbook", "kubernetes", "proxmoxer", "IPython")
    code = f"import sys; from runbook_lib import open_step; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout.strip() == b"[]"


def test_every_public_name_can_be_imported() -> None:
    """The list and the modules agree."""
    import runbook_lib

    assert all(getattr(runbook_lib, name) is not None for name in runbook_lib.__all__)
    with pytest.raises(AttributeError):
        _ = runbook_lib.no_such_name


def test_marks_are_as_proxmox_stores_them() -> None:
    """Tags are stored in lower case."""
    assert mark("20261123T190312Z-4f2a") == "runbook-20261123t190312z-4f2a"


# --- a plan in parts ----------------------------------------------------------------------------------


def parts() -> Any:
    """Two objects to borrow, each a part of its own."""
    from dataclasses import replace

    first, second = (prepare.borrow_object(config_map(name), "run", summary="").changes[0] for name in ("a", "b"))
    return [first, replace(second, action="later")]


def test_a_plan_is_carried_out_in_parts_under_one_approval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Approved once as a whole; what was begun in time may be ended, though the approval is spent."""
    made = make(tmp_path, monkeypatch, changes="ask")
    plan = made.plan(parts())
    with pytest.raises(ApprovalNeeded):
        made.apply(plan, only="create")
    grant(tmp_path / "outputs" / "lab" / "approvals", plan.digest)
    done = [len(made.apply(plan, only=name).done) for name in ("create", "later")]
    assert done == [1, 1] and not pending(tmp_path / "outputs" / "lab" / "approvals")
    report = made.clean_up()
    assert report is not None and len(report.undone) == 2 and not report.failed


def test_a_part_that_was_never_begun_needs_approval_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An approval of one plan is none of another."""
    made = make(tmp_path, monkeypatch, changes="ask")
    plan, other = made.plan(parts()), made.plan(parts()[:1])
    grant_all = tmp_path / "outputs" / "lab" / "approvals"
    with pytest.raises(ApprovalNeeded):
        made.apply(plan, only="create")
    grant(grant_all, plan.digest)
    made.apply(plan, only="create")
    with pytest.raises(ApprovalNeeded):
        made.apply(other, only="create")
    made.clean_up()


def test_what_is_kept_for_other_tools_is_redacted_and_private(opened: Step) -> None:
    """A file in the run's `manifests/`, readable by its owner alone."""
    secrets.register("s3cret-canary-value")
    path = opened.keep("cluster.yaml", "token: s3cret-canary-value\n")
    assert path.parent.name == "manifests" and path.name == "13-cluster.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in path.read_text(encoding="utf-8")


def test_one_check_at_two_moments_keeps_both_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word about the moment the later finding would take the place of the earlier."""
    from runbook_lib.checks import machines
    from runbook_lib.evidence import Scene

    opened = make(tmp_path, monkeypatch, thresholds=None, requires=None, names=None)
    for moment in ("created", "scaled up"):
        opened.check(machines.machines_came_up, Scene(), count=1, about=moment)
    result = opened.finish()
    assert [entry.subject for entry in result.findings] == ["created: machines", "scaled up: machines"]
