"""What a person or a program sees of a run while it runs: a live tree, plain lines, or JSON lines. Always on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from runbook_lib.errors import UsageError
from runbook_lib.model import Status
from runbook_lib.report import MARKS, plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

Event = dict[str, Any]
STYLES = ("auto", "tree", "plain", "json", "none")
_SHOWN_FINDINGS = 3
"""Problems shown under a step in the live tree; the report has them all."""


@contextmanager
def progress(style: str = "auto", *, stream: TextIO | None = None) -> Iterator[Callable[[Event], None]]:
    """The listener to give to `runner.run`. `auto` is the tree on a terminal, JSON lines otherwise."""
    if style not in STYLES:
        raise UsageError(f"progress is {style!r}", "", f"it is one of {', '.join(STYLES)}")
    stream = stream or sys.stderr
    chosen = ("tree" if stream.isatty() else "json") if style == "auto" else style
    if chosen == "tree":
        with _live(stream) as listener:
            yield listener
        return
    yield {"json": _json_lines, "plain": _plain_lines, "none": _nothing}[chosen](stream)


def _nothing(stream: TextIO) -> Callable[[Event], None]:
    return lambda event: None


def _json_lines(stream: TextIO) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        stream.write(json.dumps(event) + "\n")  # ASCII: no control character of a site reaches the terminal
        stream.flush()

    return listen


def _plain_lines(stream: TextIO) -> Callable[[Event], None]:
    begin = monotonic()

    def listen(event: Event) -> None:
        line = sentence(event)
        if line:
            stream.write(f"{monotonic() - begin:6.1f} s  {line}\n")
            stream.flush()

    return listen


def sentence(event: Event) -> str:
    """One line about an event, "" for those too small to mention."""
    kind = event.get("event")
    if kind in {"run-started", "run-resumed"}:
        return plain(f"{event['site']}: {kind.replace('-', ' ')} as {event['run']}, {len(event['steps'])} step(s)")
    if kind == "step-started":
        return plain(f"{event['step']} {event['title']} …")
    if kind == "finding" and event.get("status") != Status.PASS:
        return plain(f"{event['step']} {event['status']}: {_about(event)}: {event['message']}")
    if kind == "step-finished":
        seconds = f" in {event['seconds']:.1f} s" if event.get("seconds") is not None else ""
        reason = f" — {event['reason']}" if event.get("reason") else ""
        return plain(f"{event['step']} {event['status']}{seconds}{reason}")
    if kind == "sweep":
        return plain(f"sweep: {event['message']}")
    if kind == "run-finished":
        return plain(f"{event['site']}: {event['status']}" + (" (interrupted)" if event.get("interrupted") else ""))
    return ""


def _about(event: Event) -> str:
    """What a finding is about: its subject, or its check when it is about the whole site."""
    return str(event.get("subject") or event.get("check") or "")


@dataclass
class StepView:
    """What the tree knows of one step."""

    step: str
    title: str
    needs: tuple[str, ...] = ()
    status: str = ""
    reason: str = ""
    cell: int = 0
    cells: int = 0
    since: float | None = None
    seconds: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class TreeView:
    """The live tree: a branch a step under a bar of the whole run. Renders from events alone."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.begin = clock()
        self.site = ""
        self.run = ""
        self.steps: dict[str, StepView] = {}

    def listen(self, event: Event) -> None:
        """Take one event in."""
        kind = event.get("event")
        if kind in {"run-started", "run-resumed"}:
            self.site, self.run = event["site"], event["run"]
            self.steps = {
                entry["step"]: StepView(entry["step"], entry["title"], tuple(entry["needs"]))
                for entry in event["steps"]
            }
            return
        view = self.steps.get(event.get("step", ""))
        if view is None:
            return
        if kind == "step-started":
            view.since = self._clock()
        elif kind == "cell":
            view.cell, view.cells = event["cell"], event["cells"]
        elif kind == "finding":
            status = event["status"]
            view.counts[status] = view.counts.get(status, 0) + 1
            if status in {Status.WARN, Status.FAIL, Status.ERROR}:
                view.problems.append(plain(f"{_about(event)}: {event['message']}"))
        elif kind == "step-finished":
            view.status, view.reason, view.seconds = event["status"], event["reason"], event["seconds"]
            view.counts = event["findings"] or view.counts

    @property
    def done(self) -> int:
        """Steps that have ended."""
        return sum(bool(view.status) for view in self.steps.values())

    def __rich__(self) -> RenderableType:
        """The tree as it is now; rich asks several times a second."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text
        from rich.tree import Tree

        head = Table.grid(padding=(0, 1))
        elapsed = self._clock() - self.begin
        bar = ProgressBar(total=max(len(self.steps), 1), completed=self._completed(), width=30)
        head.add_row(Text(plain(self.site)), bar, f"{self.done}/{len(self.steps)} steps", _clock_text(elapsed))
        tree = Tree(head, guide_style="dim")
        for view in self.steps.values():
            self._branch(tree, view)
        return tree

    def _completed(self) -> float:
        running = [view for view in self.steps.values() if not view.status and view.cells]
        return self.done + sum(view.cell / view.cells for view in running)

    def _branch(self, tree: Tree, view: StepView) -> None:
        from rich.text import Text

        mark, style = MARKS[Status(view.status)] if view.status else ("▸" if view.since is not None else " ", "cyan")
        line = Text(f"{mark} {plain(view.step)} {plain(view.title)}", style=style if view.status != "pass" else "")
        line.append(f"  {self._note(view)}", style="dim")
        branch = tree.add(line)
        for problem in view.problems[:_SHOWN_FINDINGS]:
            branch.add(Text(problem, style="yellow", overflow="ellipsis", no_wrap=True))
        if len(view.problems) > _SHOWN_FINDINGS:
            branch.add(Text(f"and {len(view.problems) - _SHOWN_FINDINGS} more", style="dim"))

    def _note(self, view: StepView) -> str:
        figures = ", ".join(f"{number} {name}" for name, number in view.counts.items() if number)
        if view.status:
            seconds = f"{view.seconds:.1f} s" if view.seconds is not None else ""
            return "  ".join(part for part in (figures, seconds, plain(view.reason)) if part)
        if view.since is None:
            return ""
        cells = f"cell {view.cell + 1}/{view.cells}" if view.cells else "starting"
        return "  ".join(part for part in (cells, figures, _clock_text(self._clock() - view.since)) if part)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


@contextmanager
def _live(stream: TextIO) -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.live import Live

    view = TreeView()
    console = Console(file=stream)
    with Live(view, console=console, refresh_per_second=8, vertical_overflow="ellipsis"):
        yield view.listen
