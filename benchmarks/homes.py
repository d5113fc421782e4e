"""Projects of their own in a temporary folder, each with its lab: no contender sees what another left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runbook_lib.lab import control

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def home(*, lab: bool = True) -> Iterator[Path]:
    """A project with the notebooks and parameters of this one, no runs, and its lab up or not yet."""
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as name:
        folder = Path(name)
        for part in ("notebooks", "parameters"):
            shutil.copytree(ROOT / part, folder / part)
        try:
            if lab:
                control.up(folder / ".lab")
            yield folder
        finally:
            control.down(folder / ".lab")


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to take `folder` for its project, and this checkout for the library."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"RUNBOOK_HOME": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def notebooks(folder: Path) -> list[Path]:
    """The steps in the order of their numbers, which is an order their needs allow."""
    return sorted((folder / "notebooks").glob("[0-9][0-9]_*.ipynb"))
