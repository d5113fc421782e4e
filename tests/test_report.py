"""Reports: harmless whatever the site is called, and honest in every format."""

from __future__ import annotations

import io
import json
from typing import Any
from xml.etree import ElementTree

import pytest

from runbook_lib import report, results
from runbook_lib.errors import UsageError
from runbook_lib.model import Finding, Run, Status, StepRecord, StepResult
from runbook_lib.progress import TreeView, progress, sentence

P, W, F, S, N, E = Status.PASS, Status.WARN, Status.FAIL, Status.SKIP, Status.NOT_RUN, Status.ERROR

HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07name",
    "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "a\x00b\x08c\x7fd\x9b31me",
    "]]> & \" ' </testcase>",
    "| cell | break |\nnew line\r\n# head",
    "[link](javascript:alert(1)) ![img](http://evil/x.png) https://evil",
    "\u202eexe.fdp\u2066",
    "\ud800 lone surrogate \ufffe",
    "[bold red]markup[/bold red] [/]",
]


def _run(*findings: Finding, status: Status = F, reason: str = "", title: str = "Assess") -> Run:
    result = StepResult("11", title, "unit", "r", status, "", "", 1.0, findings)
    record = StepRecord("11", title, "11_t.ipynb", status, reason=reason, seconds=1.25, result=result)
    return Run("20261123T100000Z-0001", "unit", "2026-11-23T10:00:00.000Z", (record,), status=status, emulated=True)


def _hostile(text: str) -> Run:
    finding = Finding("a.b", F, text, text, title=text, remedy=text)
    return _run(finding, reason=text, title=text)


def _terminal(renderable: Any) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=200, force_terminal=False).print(renderable)
    return stream.getvalue()


# ---------------------------------------------------------------- hostile strings


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_does_nothing_to_a_terminal(text: str) -> None:
    """No escape, control character or direction override is printed; rich markup stays text."""
    shown = _terminal(report.terminal(_hostile(text), verbose=True))
    assert not [
        character for character in shown if character != "\n" and (ord(character) < 32 or character in "\x7f\x9b")
    ]
    assert "\u202e" not in shown
    if "markup" in text:
        assert "[bold red]markup[/bold red]" in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_keeps_junit_well_formed(text: str) -> None:
    """The XML parses, and no element comes from the text."""
    suites = ElementTree.fromstring(report.to_junit(_hostile(text)))
    assert {element.tag for element in suites.iter()} == {"testsuites", "testsuite", "testcase", "failure"}
    assert suites.get("failures") == "2"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_markup_in_markdown(text: str) -> None:
    """It ends no table row, opens no tag, and makes neither link nor picture."""
    shown = report.to_markdown(_hostile(text))
    rows = [line for line in shown.splitlines() if line.startswith("| 11")]
    assert len(rows) == 1
    assert "<" not in shown
    assert "](" not in shown
    assert "\n# head" not in shown
    assert "://" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_hostile_text_is_escaped_in_progress_lines(text: str) -> None:
    """JSON lines are ASCII, plain lines are one line without escapes."""
    event = {"event": "finding", "step": "11", "status": "fail", "subject": text, "message": text}
    stream = io.StringIO()
    with progress("json", stream=stream) as listener:
        listener(event)
    assert stream.getvalue().isascii()
    assert json.loads(stream.getvalue()) == event
    assert "\n" not in sentence(event)
    assert "\x1b" not in sentence(event)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]0;title\x1b\\x", "x"),
        ("\x9b2Jx", "x"),
        ("a\tb\nc", "a b c"),
        ("bell\x07", "bell\ufffd"),
        ("прапор 🇺🇦", "прапор 🇺🇦"),
    ],
)
def test_plain_text_keeps_words_and_loses_commands(given: str, shown: str) -> None:
    """Letters of any language stay; what steers a terminal goes."""
    assert report.plain(given) == shown


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("statuses", "reason", "code"),
    [
        ([P, W, S], "", 0),
        ([P, F], "", 1),
        ([F, E], "", 3),
        ([P, N], "", 3),
        ([F, N], "", 1),
        ([F, N], f"{results.WAITS_FOR_APPROVAL}: x", 4),
        ([E, N], f"{results.WAITS_FOR_APPROVAL}: x", 3),
        ([], "", 3),
    ],
)
def test_the_exit_code_is_the_gravest_thing(statuses: list[Status], reason: str, code: int) -> None:
    """0 pass or warn, 1 failed, 3 could not tell, 4 waiting; an empty run proves nothing."""
    records = tuple(StepRecord("1", "t", "n", status, reason=reason if status is N else "") for status in statuses)
    assert report.exit_code(Run("r", "unit", "", records)) == code


# ---------------------------------------------------------------- formats


def test_json_is_the_run_with_its_counts() -> None:
    """A reader gets the run back from it."""
    from runbook_lib.model import run_from_dict

    run = _run(Finding("a.b", F, "x", "m"), Finding("a.c", S, "y", "m"))
    data = json.loads(report.to_json(run))
    assert (data.pop("counts")["skip"], data.pop("exit_code")) == (1, 1)
    assert run_from_dict(data) == run


def test_junit_has_a_case_for_every_finding_and_every_silent_step() -> None:
    """Skips and steps not run are skipped, never passed; a warning passes with its text."""
    run = _run(*(Finding("a.b", status, status.value, "m") for status in (P, W, F, S, E)))
    silent = StepRecord("12", "T", "n", N, reason="interrupted")
    run = Run(run.id, run.site, run.started, (*run.steps, silent))
    suites = ElementTree.fromstring(report.to_junit(run))
    assert [suites.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["6", "1", "1", "2"]
    warning = suites.find(".//testcase[@name='warn']/system-out")
    assert warning is not None
    assert warning.text == "warn: m"


def test_markdown_and_terminal_say_what_to_do() -> None:
    """Problems come with their remedy, and a rehearsal says so."""
    run = _run(Finding("a.b", W, "pve1/local", "82 % full", remedy="Free space."), Finding("a.c", P, "y", "fine"))
    shown = report.to_markdown(run)
    assert "**Rehearsal:**" in shown
    assert "*What to do:* Free space." in shown
    assert "fine" not in shown
    text = _terminal(report.terminal(run))
    assert "pve1/local: 82 % full" in text
    assert "rehearsal" in text
    assert "fine" in _terminal(report.terminal(run, verbose=True))


def test_comparison_and_timeline_are_shown() -> None:
    """The groups with their numbers; a row a run, day, week and phase."""
    one, two = _run(Finding("a.b", F, "x", "broken"), status=F), _run(Finding("a.b", P, "x", "fine"), status=P)
    text = _terminal(report.comparison(results.compare(one, two)))
    assert "fixed: 1" in text
    assert "fail → pass" in text
    shown = _terminal(report.timeline(results.history([one])))
    assert "2026-W48" in shown
    assert "0/1 steps" in shown


# ---------------------------------------------------------------- progress


def test_the_tree_shows_a_bar_the_time_and_the_problems() -> None:
    """Built from events alone: steps, the running cell, findings so far, and how each ended."""
    moment = [0.0]
    view = TreeView(clock=lambda: moment[0])
    steps = [{"step": "11", "title": "Assess", "needs": []}, {"step": "12", "title": "More", "needs": ["11"]}]
    view.listen({"event": "run-started", "site": "unit", "run": "r", "steps": steps})
    view.listen({"event": "step-started", "step": "11"})
    view.listen({"event": "cell", "step": "11", "cell": 2, "cells": 8})
    view.listen({"event": "finding", "step": "11", "status": "fail", "subject": "pve1", "message": "full"})
    moment[0] = 65.0
    shown = _terminal(view)
    assert "0/2 steps 1:05" in shown
    assert "▸ 11 Assess  cell 3/8  1 fail  1:05" in shown
    assert "pve1: full" in shown
    done = {
        "event": "step-finished",
        "step": "11",
        "status": "fail",
        "reason": "",
        "seconds": 2.0,
        "findings": {"fail": 1},
    }
    view.listen(done)
    assert "✗ 11 Assess  1 fail  2.0 s" in _terminal(view)


def test_progress_is_json_where_there_is_no_terminal() -> None:
    """`auto` on a pipe gives one JSON line an event; `none` gives nothing; a wrong style is refused."""
    for style, lines in (("auto", 1), ("none", 0), ("plain", 1)):
        stream = io.StringIO()
        with progress(style, stream=stream) as listener:
            listener({"event": "step-started", "step": "11", "title": "T"})
        assert len(stream.getvalue().splitlines()) == lines
    with pytest.raises(UsageError, match="progress is 'loud'"), progress("loud"):
        pass
