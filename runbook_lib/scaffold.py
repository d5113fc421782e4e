"""The notebook of a new step, in the project's form, and already running."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from runbook_lib.errors import UsageError

NAME = re.compile(r"(\d\d)_([a-z0-9]+(?:_[a-z0-9]+)*)")

_INTRODUCTION = """# {step} · {title}

**Proves:** say in one sentence what is true after this notebook.
**Changes:** nothing.
**Undo:** nothing to undo."""

_CELLS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("code", 'site: str = "lab"\nrun_dir: str = ""', ("parameters",)),
    ("code", 'from runbook_lib import open_step\n\nstep = open_step("{step}", site=site, run_dir=run_dir)', ()),
    ("markdown", "## First question\n\nSay what a healthy answer looks like.", ()),
    ("code", 'step.note("Replace this cell by facts, checks and `step.record`.")', ()),
    ("markdown", "Say what to do when the answer is another one.", ()),
    ("code", "step.finish()", ()),
    ("markdown", "You now know … Next: [99 summary](99_summary.ipynb).", ()),
)


def new_step(name: str, root: Path) -> Path:
    """The path of the notebook written. Raises UsageError for a name of another form, or a number already taken."""
    match = NAME.fullmatch(name.removesuffix(".ipynb"))
    if match is None:
        raise UsageError(f"{name!r} is no name for a step", "", "write two digits and words: 23_install_capi_provider")
    step, words = match.groups()
    folder = root / "notebooks"
    if not folder.is_dir():
        raise UsageError("there is no notebooks/ folder here", "", "run it in the project, or set RUNBOOK_HOME")
    taken = sorted(folder.glob(f"{step}_*.ipynb"))
    if taken:
        raise UsageError(f"step {step} exists already", taken[0].name, "choose another number")
    path = folder / f"{step}_{words}.ipynb"
    path.write_text(json.dumps(_notebook(step, words), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _notebook(step: str, words: str) -> dict[str, Any]:
    title = words.replace("_", " ").capitalize()
    sources = (("markdown", _INTRODUCTION, ()), *_CELLS)
    return {
        "cells": [
            _cell(kind, text.format(step=step, title=title), tags, f"{step}-{index:02}")
            for index, (kind, text, tags) in enumerate(sources)
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "runbook": {
                "title": title,
                "task": "",
                "step": step,
                "needs": [],
                "changes": False,
                "timeout": 600,
                "critical": False,
            },
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, text: str, tags: tuple[str, ...], identity: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": kind,
        "id": identity,
        "metadata": {"tags": list(tags)} if tags else {},
        "source": text.splitlines(keepends=True),
    }
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}
