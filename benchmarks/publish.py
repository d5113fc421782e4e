"""Pages of an executed run: ours against nbconvert's."""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
from pathlib import Path

from benchmarks.homes import environment, home
from benchmarks.measure import BIN, Case, Contender, Sample, command

FETCHED = re.compile(r"""<(?:script|link|img)\b[^>]*\b(?:src|href)=["']https?://""")


def case() -> Case:
    """The comparison; one run is made for it, and every turn publishes that."""
    kept = contextlib.ExitStack()
    atexit.register(kept.close)

    @functools.cache
    def executed() -> Path:
        folder = kept.enter_context(home())
        command([BIN / "runbook", "run", "--progress", "none"], cwd=folder, env=environment(folder))
        return folder

    def ours() -> Sample:
        folder = executed()
        taken = command([BIN / "runbook", "pages", "--out", "pages"], cwd=folder, env=environment(folder))
        return _looked_at(taken, folder / "pages")

    def nbconvert() -> Sample:
        folder = executed()
        steps = sorted((folder / "outputs" / "lab").glob("*/[0-9][0-9]_*.ipynb"))
        convert: list[str | Path] = [BIN / "jupyter-nbconvert", "--to", "html", "--output-dir", "converted", *steps]
        return _looked_at(command(convert, cwd=folder, env=environment(folder)), folder / "converted")

    return Case(
        name="pages",
        title="Publishing a run",
        contenders=(
            Contender("runbook pages", "steps, findings, history, catalogue, pictures of the steps", ours, True),
            Contender("nbconvert CLI", "`--to html`, all notebooks in one call, the notebooks alone", nbconvert),
        ),
        columns={"pages": "pages", "megabytes": "MB", "fetched": "things fetched from elsewhere"},
        notes=("Both start a process; the run they publish is the same.",),
    )


def _looked_at(taken: Sample, folder: Path) -> Sample:
    pages = sorted(folder.rglob("*.html"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    fetched = sum(len(FETCHED.findall(page.read_text(encoding="utf-8"))) for page in pages)
    seen = {"pages": float(len(pages)), "megabytes": size / 1e6, "fetched": float(fetched)}
    return Sample(taken.wall, taken.cpu, seen)
