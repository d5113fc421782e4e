"""A run as people and machines read it: terminal, JSON, JUnit XML, Markdown; and as a process exit code.

Names of VMs, labels and error texts come from the sites and may hold anything. `plain` makes them harmless for a
terminal and for XML; each format escapes on top of it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from runbook_lib.model import Finding, Run, Status, StepRecord, to_dict
from runbook_lib.results import WAITS_FOR_APPROVAL, is_problem, write_atomically

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runbook_lib.results import Comparison, History

MOST_ALIKE = 3
"""Problems of one check that a terminal shows before it only counts them."""

FORMATS = ("json", "junit", "markdown")
FILES = {"report.json": "json", "report.junit.xml": "junit", "report.md": "markdown"}
MARKS = {
    Status.PASS: ("✓", "green"),
    Status.WARN: ("!", "yellow"),
    Status.FAIL: ("✗", "red"),
    Status.ERROR: ("?", "bold magenta"),
    Status.SKIP: ("-", "dim"),
    Status.NOT_RUN: ("·", "dim"),
}
# ESC sequences (CSI, OSC up to BEL or ST, two-character ones), before the lone control characters
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]"
)
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_STEERING = re.compile(f"[\x7f-\x9f{''.join(sorted(_BIDI))}]")  # JSON itself escapes those below a space


def plain(text: object, *, lines: bool = False) -> str:
    """`text` without terminal escapes, control characters, direction overrides and lone surrogates.

    Line breaks and tabs become spaces unless `lines`, which keeps them.
    """
    stripped = _ESCAPES.sub("", str(text))
    kept = []
    for character in stripped:
        if character in "\n\t\r":
            kept.append(character if lines and character != "\r" else " ")
        elif character in _BIDI or unicodedata.category(character) in {"Cc", "Cs"} or character in "\ufffe\uffff":
            kept.append("\ufffd")
        else:
            kept.append(character)
    return "".join(kept)


def exit_code(run: Run) -> int:
    """0 pass or warn, 1 a finding failed, 3 could not tell, 4 waiting for approval; the gravest of the steps.

    A step that waits for approval is no error, and outranks a failed finding: the run is to be resumed.
    """
    statuses = {record.status for record in run.steps}
    if Status.ERROR in statuses:
        return 3
    if any(waits_for_approval(record) for record in run.steps):
        return 4
    if Status.FAIL in statuses:
        return 1
    return 3 if Status.NOT_RUN in statuses or not statuses else 0


def waits_for_approval(record: StepRecord) -> bool:
    """True when the step stopped because its plan is not approved yet."""
    return record.status is Status.NOT_RUN and record.reason.startswith(WAITS_FOR_APPROVAL)


def counts(run: Run) -> dict[str, int]:
    """Findings by status, every status named; skips are counted in sight."""
    tally = Counter(finding.status for finding in run.findings)
    return {status.value: tally.get(status, 0) for status in Status}


def headline(run: Run) -> str:
    """One sentence: how the run ended, and the figures."""
    tally = counts(run)
    figures = ", ".join(f"{number} {name}" for name, number in tally.items() if number) or "no findings"
    return f"{run.site}: {run.status.value} — {figures} in {len(run.steps)} step(s)"


# ---------------------------------------------------------------- terminal


def terminal(run: Run, *, verbose: bool = False) -> RenderableType:
    """The run for a terminal: a row a step, then every problem with its remedy (`verbose`: every finding)."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "step", "title", "findings", "time", "note"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for record in run.steps:
        mark, style = MARKS[record.status]
        table.add_row(
            Text(mark, style=style),
            Text(plain(record.step)),
            Text(plain(record.title)),
            _figures(record),
            f"{record.seconds:.1f} s" if record.seconds is not None else "",
            Text(plain(record.reason), style=style),
        )
    shown: list[RenderableType] = [Text(headline_plain(run), style="bold"), table]
    for record in run.steps:
        findings = record.result.findings if record.result else ()
        shown += map(partial(_finding_text, record), findings) if verbose else _problems(record, findings)
    return Group(*shown)


def headline_plain(run: Run) -> str:
    """The headline, made harmless, with the word that marks a rehearsal."""
    return plain(headline(run)) + (" (rehearsal in the lab)" if run.emulated else "")


def _figures(record: StepRecord) -> str:
    if not record.result:
        return record.status.value
    tally = Counter(finding.status for finding in record.result.findings)
    return " ".join(f"{tally[status]} {status.value}" for status in Status if tally.get(status)) or record.status.value


def _problems(record: StepRecord, findings: Iterable[Finding]) -> Iterator[RenderableType]:
    """The step's problems, check by check: the first few of each, how many more, and the remedy once."""
    from rich.text import Text

    by_check: dict[tuple[str, Status, str], list[Finding]] = {}
    for finding in findings:
        if is_problem(finding):
            by_check.setdefault((finding.check, finding.status, finding.remedy), []).append(finding)
    for (_, _, remedy), alike in by_check.items():
        for finding in alike[:MOST_ALIKE]:
            yield _finding_text(record, replace(finding, remedy=""))
        if len(alike) > MOST_ALIKE:
            yield Text(f"     and {len(alike) - MOST_ALIKE} more; all: runbook report --verbose", style="dim")
        if remedy:
            yield Text(f"     → {plain(remedy)}", style="dim")


def _finding_text(record: StepRecord, finding: Finding) -> RenderableType:
    from rich.text import Text

    mark, style = MARKS[finding.status]
    text = Text(f"{mark} {record.step} ", style=style)
    named = finding.subject or finding.check
    if not finding.message.startswith(named):
        text.append(f"{plain(named)}: ", style="bold")
    text.append(plain(finding.message), style="default")
    if finding.remedy:
        text.append(f"\n     → {plain(finding.remedy)}", style="dim")
    return text


def comparison(difference: Comparison) -> RenderableType:
    """Two runs side by side: steps that changed, then problems that appeared, were fixed, remain or were lost."""
    from rich.console import Group
    from rich.text import Text

    before, after = difference.before, difference.after
    shown: list[RenderableType] = [
        Text(plain(f"{before.id} → {after.id}: {before.status} → {after.status}"), style="bold")
    ]
    for step in difference.steps:
        shown.append(Text(plain(f"{step.step} {step.title}: {step.before or 'absent'} → {step.after or 'absent'}")))
    groups = (
        ("appeared", difference.appeared, "red"),
        ("fixed", difference.fixed, "green"),
        ("remaining", difference.remaining, "yellow"),
        ("not looked at again", difference.lost, "magenta"),
    )
    for name, changes, style in groups:
        shown.append(Text(f"{name}: {len(changes)}", style=f"bold {style}" if changes else "dim"))
        for change in changes:
            finding = change.after or change.before
            message = finding.message if finding else ""
            shown.append(Text(plain(f"  {change.check} {change.subject}: {message}")))
    for timing in difference.timings:
        line = f"  {timing.name} {timing.subject}: {timing.before:.3g} → {timing.after:.3g} {timing.unit} (median)"
        shown.append(Text(plain(line), style="dim"))
    return Group(*shown)


def timeline(found: History) -> RenderableType:
    """A site's runs, days, weeks and phases as tables."""
    from rich.console import Group

    runs = [
        (
            entry.run,
            entry.status.value,
            str(entry.checks),
            _percent(entry.share_passed),
            str(entry.problems),
            f"+{entry.found} −{entry.fixed}",
            f"{entry.seconds:.1f} s" if entry.seconds is not None else "",
        )
        for entry in found.runs
    ]
    columns = ("status", "checks", "passed", "problems", "since", "time")
    tables = [_grid(("run", *columns), runs)]
    for name, periods in (("day", found.daily), ("week", found.weekly)):
        rows = [
            (
                entry.period,
                entry.last.value,
                str(entry.checks),
                _percent(entry.share_passed),
                str(entry.problems),
                f"+{entry.found} −{entry.fixed}",
                f"{entry.seconds:.1f} s",
            )
            for entry in periods
        ]
        tables.append(_grid((name, *columns), rows))
    phases = [(entry.phase, entry.status.value, f"{entry.done}/{entry.steps} steps") for entry in found.phases]
    return Group(*tables, _grid(("phase", "status", "done"), phases))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _grid(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


# ---------------------------------------------------------------- machines


def to_json(run: Run) -> str:
    """The run as JSON: everything `model.Run` holds, with the counts and the exit code beside it."""
    data = {**to_dict(run), "counts": counts(run), "exit_code": exit_code(run)}
    return json_text(data) + "\n"


def json_text(data: object) -> str:
    """The data as JSON for people's eyes too: what could steer a terminal is written as its \\u escape."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_junit(run: Run) -> str:
    """The run as JUnit XML: a suite a step, a case a finding; warnings are passes with their text in system-out.

    A step without result is one case, so that what was not run shows as skipped and never as passed.
    """
    suites = ElementTree.Element(
        "testsuites", name=_xml(f"runbook {run.site}{' (rehearsal in the lab)' if run.emulated else ''}")
    )
    totals: Counter[str] = Counter()
    for record in run.steps:
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=_xml(f"{record.step} {record.title}"),
            timestamp=_xml((record.started or run.started).removesuffix("Z")),
            time=f"{record.seconds or 0:.3f}",
            hostname=_xml(run.site),
        )
        tally: Counter[str] = Counter()
        for kind in _cases(suite, record):
            tally[kind] += 1
        _count(suite, tally)
        totals += tally
    _count(suites, totals)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _count(element: ElementTree.Element, tally: Counter[str]) -> None:
    element.set("tests", str(sum(tally.values())))
    element.set("failures", str(tally["failure"]))
    element.set("errors", str(tally["error"]))
    element.set("skipped", str(tally["skipped"]))


def _cases(suite: ElementTree.Element, record: StepRecord) -> Iterator[str]:
    for finding in record.result.findings if record.result else ():
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_xml(f"{record.step}.{finding.check}"),
            name=_xml(finding.subject or finding.title or finding.check),
            time="0",
        )
        yield _outcome(case, finding.status, finding.message, finding.remedy)
    if record.reason or not record.result or not record.result.findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_xml(f"{record.step}.step"), name=_xml(record.title), time="0"
        )
        yield _outcome(case, record.status, record.reason, "")


def _outcome(case: ElementTree.Element, status: Status, message: str, remedy: str) -> str:
    kind = {
        Status.FAIL: "failure",
        Status.ERROR: "error",
        Status.SKIP: "skipped",
        Status.NOT_RUN: "skipped",
    }.get(status)
    if kind is None:
        ElementTree.SubElement(case, "system-out").text = _xml(f"{status.value}: {message}")
        return "passed"
    entry = ElementTree.SubElement(case, kind, message=_xml(message or status.value))
    if kind != "skipped":
        entry.set("type", status.value)
        entry.text = _xml(remedy)
    return kind


def _xml(text: str) -> str:
    return plain(text)


# ---------------------------------------------------------------- Markdown


def to_markdown(run: Run) -> str:
    """The run as Markdown: the headline, a table of steps, and the problems with their remedies."""
    lines = [
        f"# Runbook: {_md(run.site)} — {run.status.value}",
        "",
        f"Run `{_code(run.id)}`, started {_md(run.started)}"
        + (f", finished {_md(run.finished)}." if run.finished else "."),
        "",
        f"{_md(headline(run))}.",
        "",
    ]
    if run.emulated:
        lines += ["**Rehearsal:** this run talked to the lab, not to a real site.", ""]
    lines += ["| step | title | status | findings | time | note |", "|---|---|---|---|---|---|"]
    for record in run.steps:
        time = f"{record.seconds:.1f} s" if record.seconds is not None else ""
        cells = (record.step, record.title, record.status.value, _figures(record), time, record.reason)
        lines.append("| " + " | ".join(_md(cell) for cell in cells) + " |")
    problems = [
        (record, finding)
        for record in run.steps
        if record.result
        for finding in record.result.findings
        if is_problem(finding)
    ]
    lines += ["", "## Problems", ""]
    lines += [_problem(record, finding) for record, finding in problems] or ["None."]
    return "\n".join(lines) + "\n"


def _problem(record: StepRecord, finding: Finding) -> str:
    where = f" **{_md(finding.subject)}**:" if finding.subject else ""
    fix = f" *What to do:* {_md(finding.remedy)}" if finding.remedy else ""
    return (
        f"- {finding.status.value} · {_md(record.step)} · `{_code(finding.check)}`:{where} {_md(finding.message)}{fix}"
    )


def _md(text: str) -> str:
    """Text that Markdown shows as it is: no markup of its own, no HTML, no end of a table cell, no link."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", plain(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")


def _code(text: str) -> str:
    return plain(text).replace("`", "'").replace("|", "¦")


# ---------------------------------------------------------------- all of them


WRITERS: dict[str, Callable[[Run], str]] = {"json": to_json, "junit": to_junit, "markdown": to_markdown}


def write_reports(run: Run, folder: Path) -> list[Path]:
    """report.json, report.junit.xml and report.md in the run's folder; their paths."""
    from runbook_lib.secrets import redact

    written = []
    for name, kind in FILES.items():
        write_atomically(folder / name, redact(WRITERS[kind](run)))
        written.append(folder / name)
    return written
