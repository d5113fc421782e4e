"""One real `runbook run` on the lab, looked at from every side: results, reports, pages, both systems, the disk."""

from __future__ import annotations

import json
import re
import stat
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import homes
import pytest
from homes import Story

from runbook_lib.model import ChangeKind, Status, to_dict
from runbook_lib.results import read_run

pytestmark = pytest.mark.xdist_group("whole")


# --- results ---------------------------------------------------------------------------------------------


def test_it_ends_well(story: Story):
    """Nothing failed and nothing could not be told: exit code 0, and nothing like a traceback anywhere."""
    assert (story.first.returncode, story.second.returncode) == (0, 0), story.first.stderr[-3000:]
    assert "Traceback" not in story.first.stderr + story.first.stdout + story.second.stderr


def test_every_step_has_a_result(story: Story):
    """Each notebook gave its scrap; the assessments pass on a healthy lab."""
    notebooks = {path.name[:2] for path in (homes.ROOT / "notebooks").glob("*.ipynb")}
    assert {record.step for record in story.run.steps} == notebooks
    assert not [record.step for record in story.run.steps if record.result is None]
    told = {record.step: record.status for record in story.run.steps}
    assert [told[step] for step in ("11", "12", "13")] == [Status.PASS] * 3
    assert all(record.result.run == story.run.id for record in story.run.steps if record.result)


def test_nothing_was_left_out_of_judgement(story: Story):
    """Every finding names a check of the catalogue and says something; nothing is an error."""
    from runbook_lib import checks

    known = {entry.id for entry in checks.catalogue()}
    assert len(story.run.findings) > 200
    assert not [found for found in story.run.findings if found.check not in known or not found.message]
    assert not [found for found in story.run.findings if found.status is Status.ERROR]


def test_scrapbook_reads_the_same_data_from_the_outputs(story: Story):
    """`scrapbook.read_notebooks` on the run's folder gives what the runner recorded."""
    import scrapbook

    book = scrapbook.read_notebooks(str(story.folder))
    read = {name[:2]: notebook.scraps["step"].data for name, notebook in book.items()}
    recorded = {record.step: to_dict(record.result) for record in read_run(story.folder).steps}
    assert read.keys() == recorded.keys()
    for step, data in read.items():
        assert recorded[step] | {"run": ""} == to_dict(data) | {"run": ""}


def test_a_folder_without_run_json_is_put_together_from_the_notebooks(story: Story, tmp_path: Path):
    """The notebooks alone carry the findings."""
    for path in story.folder.glob("*.ipynb"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    findings = [(found.check, found.subject, found.status) for found in read_run(tmp_path).findings]
    assert findings == [(found.check, found.subject, found.status) for found in story.run.findings]


def test_fork_and_spawn_give_equal_findings(story: Story):
    """A prepared kernel and a fresh one judge alike."""
    assert story.third.returncode == 0, story.third.stderr[-2000:]
    steps = {record.step: judged(record) for record in story.forked.steps}
    assert {record.step: judged(record) for record in story.again.steps} == steps


def judged(record: Any) -> list[tuple[str, str, str]]:
    """Check, subject and status of every finding that does not tell what a first time did."""
    found = record.result.findings if record.result else ()
    # names made for one run
    made = re.compile(r"runbook-probe-\w+|" + record.result.run.lower())
    named = [(each.check, made.sub("…", each.subject), str(each.status)) for each in found]
    return sorted(entry for entry in named if not entry[0].startswith("preparation.environment"))


# --- changes ---------------------------------------------------------------------------------------------


def test_what_is_new_was_installed_and_nothing_borrowed_remains(story: Story):
    """Asked by other clients, both systems hold what the journal calls installed, and not a thing more."""
    new, gone = story.between - story.before, story.before - story.between
    assert not gone
    changes = [change for record in story.run.steps if record.result for change in record.result.changes]
    installed = {change.target for change in changes if change.kind is ChangeKind.INSTALL}
    assert {change.kind for change in changes} == {ChangeKind.INSTALL, ChangeKind.BORROW}
    assert {entry for entry in new if not homes.explained(entry, installed)} == set()
    kinds = {entry.split()[0] for entry in new}
    assert kinds == {"pool", "role", "user", "token", "acl", "namespace", "quota", "pod", "service"}


def test_the_second_time_nothing_is_changed(story: Story):
    """Preparing a prepared site plans nothing that stays, and leaves both systems as they were."""
    changes = [change for record in story.again.steps if record.result for change in record.result.changes]
    assert {change.kind for change in changes} == {ChangeKind.BORROW}
    assert story.after == story.between


def test_every_change_stands_in_the_journal_before_its_outcome(story: Story):
    """One intent a change, its outcome after it, and every borrowed thing is proved gone."""
    rows = [json.loads(line) for line in (story.folder / "changes.jsonl").read_text(encoding="utf-8").splitlines()]
    intents = {row["key"]: number for number, row in enumerate(rows) if row["event"] == "intent"}
    outcomes = {row["key"]: number for number, row in enumerate(rows) if row["event"] == "outcome"}
    borrowed = {row["key"] for row in rows if row.get("change", {}).get("kind") == "borrow"}
    undone = {row["key"]: row["proof"] for row in rows if row["event"] == "undone"}
    assert intents.keys() == outcomes.keys() and all(intents[key] < outcomes[key] for key in intents)
    assert undone.keys() == borrowed and all(undone.values())
    ids = [row["change"]["id"] for row in rows if row["event"] == "intent"]
    assert len(set(ids)) == len(ids)


# --- reports and pages -----------------------------------------------------------------------------------


def test_junit_counts_what_was_found(story: Story):
    """The report parses; each finding is a case, a skip a skipped one."""
    suites = ElementTree.parse(story.folder / "report.junit.xml").getroot()
    assert len(list(suites.iter("testcase"))) >= len(story.run.findings)
    assert not list(suites.iter("failure")) and not list(suites.iter("error"))


def test_json_report_is_the_run(story: Story):
    """Machines get what people see."""
    told = json.loads((story.folder / "report.json").read_text(encoding="utf-8"))
    assert (told["id"], told["emulated"], len(told["steps"])) == (story.run.id, True, len(story.run.steps))
    printed = json.loads(story.second.stdout)
    assert printed["id"] == story.again.id


def test_a_rehearsal_is_marked_as_one_everywhere(story: Story):
    """Terminal, Markdown, JUnit, events, results, measurements and every page say that this was the lab."""
    assert "rehearsal" in story.first.stdout.lower()
    assert "rehearsal" in (story.folder / "report.md").read_text(encoding="utf-8").lower()
    assert "rehearsal" in ElementTree.parse(story.folder / "report.junit.xml").getroot().get("name", "")
    assert story.run.emulated and all(record.result.emulated for record in story.run.steps if record.result)
    measured = [each for record in story.run.steps if record.result for each in record.result.measurements]
    assert measured and all(each.emulated for each in measured)
    pages = [path for path in homes.files(story.public) if path.suffix == ".html"]
    assert len(pages) > len(story.run.steps)
    unmarked = [path.name for path in pages if 'class="rehearsal"' not in path.read_text(encoding="utf-8")]
    assert unmarked == []


def test_pages_ask_nothing_of_the_network(story: Story):
    """No page loads anything from elsewhere, and no link of the site leads nowhere."""
    for page in (path for path in homes.files(story.public) if path.suffix == ".html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"([^\"]*)\"", html)
        assert not [link for link in loaded if re.match(r"(?:https?:)?//", link)], page.name
        links = [link.split("#")[0].split("?")[0] for link in re.findall(r"href=\"([^\"]+)\"", html)]
        local = [link for link in links if link and not re.match(r"[a-z]+:|//", link)]
        assert not [link for link in local if not (page.parent / link).exists()], page.name


def test_every_step_has_its_page(story: Story):
    """A reader finds each executed notebook."""
    text = "".join(path.name for path in homes.files(story.public))
    assert not [record.step for record in story.run.steps if Path(record.notebook).stem not in text]


# --- the disk --------------------------------------------------------------------------------------------


def test_results_are_for_their_owner_alone(story: Story):
    """Folders 0700, files 0600: what a cluster looks like is nobody else's business."""
    for path in [story.home.root / "outputs" / "lab", *(story.home.root / "outputs" / "lab").rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path.name
    for path in homes.files(story.home.root / ".secrets"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_nothing_half_written_is_left(story: Story):
    """The run's folder holds its results and nothing else."""
    names = {path.name for path in story.folder.iterdir()}
    notebooks = {record.notebook for record in story.run.steps}
    reports = {"report.json", "report.junit.xml", "report.md"}
    assert names == notebooks | reports | {"run.json", "events.jsonl", "changes.jsonl", "manifests"}


def test_events_are_lines_of_json_in_order(story: Story):
    """From run-started to run-finished, times ascending, each step started before it finished."""
    lines = (story.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert (events[0]["event"], events[-1]["event"]) == ("run-started", "run-finished")
    assert [each["time"] for each in events] == sorted(each["time"] for each in events)
    for record in story.run.steps:
        seen = [each["event"] for each in events if each.get("step") == record.step]
        assert seen.index("step-started") < seen.index("step-finished")
    # one that is judged at two moments is told twice, and the later judgement stays
    told = {(each["step"], each["check"], each["subject"]) for each in events if each["event"] == "finding"}
    kept = {(r.step, f.check, f.subject) for r in story.run.steps if r.result for f in r.result.findings}
    assert told == kept
    assert events == [json.loads(line) for line in story.first.stderr.splitlines() if line.startswith("{")]


def test_results_name_no_machine(story: Story):
    """The folder of this project is written nowhere into results and pages: they may be handed on."""
    home = str(story.home.root).encode()
    told = [path for path in homes.files(story.folder, story.public) if home in path.read_bytes()]
    assert [path.name for path in told] == []
