"""Every notebook against the lab: through `runbook run`, through papermill's command line, through its API."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.homes import environment, home, notebooks
from benchmarks.measure import BIN, Broken, Case, Contender, Sample, command, together

SCRAP = "application/scrapbook.scrap.json+json"


def case() -> Case:
    """The comparison."""
    return Case(
        name="run",
        title="A whole run on the lab",
        contenders=(
            Contender("runbook run", "as it comes: prepared kernels are forked, two steps at a time", _ours(), True),
            Contender("runbook run -j 1", "one step at a time, like the peers", _ours("--parallel", "1"), True),
            Contender("runbook run --isolation spawn", "a fresh kernel a step", _ours("--isolation", "spawn"), True),
            Contender("papermill API", "one process, papermill's own engine, no save per cell", _papermill_api),
            Contender("papermill CLI", "one command a notebook, as it comes", _papermill_cli),
        ),
        columns={"findings": "findings of 11–13"},
        notes=(
            "Each turn has a fresh project and a fresh lab, which is up before the clock starts.",
            "The time of the lab's own process is not in the processor seconds, on either side.",
        ),
        repeats=5,
    )


def _ours(*options: str) -> Callable[[], Sample]:
    def measure() -> Sample:
        with home() as folder:
            arguments: list[str | Path] = [BIN / "runbook", "run", "--progress", "none", *options]
            taken = command(arguments, cwd=folder, env=environment(folder))
            return _judged(taken, folder, (folder / "outputs" / "lab").glob("*/[0-9][0-9]_*.ipynb"))

    return measure


def _papermill_cli() -> Sample:
    with home() as folder:
        (folder / "out").mkdir()
        taken = [
            command(
                [BIN / "papermill", source, f"out/{source.name}", "-p", "site", "lab"],
                cwd=folder,
                env=environment(folder),
            )
            for source in notebooks(folder)
        ]
        return _judged(together(taken), folder, (folder / "out").glob("*.ipynb"))


LOOP = """
import sys, papermill
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    papermill.execute_notebook(source, target, {"site": "lab"}, progress_bar=False, request_save_on_cell_execute=False)
"""


def _papermill_api() -> Sample:
    with home() as folder:
        (folder / "out").mkdir()
        pairs = [part for source in notebooks(folder) for part in (str(source), f"out/{source.name}")]
        taken = command([sys.executable, "-c", LOOP, *pairs], cwd=folder, env=environment(folder))
        return _judged(taken, folder, (folder / "out").glob("*.ipynb"))


def _judged(taken: Sample, folder: Path, written: Iterable[Path]) -> Sample:
    """The sample with the number of findings of phase 1; all notebooks must have finished."""
    results = {path.name: _step(json.loads(path.read_text(encoding="utf-8"))["cells"]) for path in written}
    missing = [source.name for source in notebooks(folder) if not results.get(source.name)]
    if missing:
        raise Broken(f"no result of {', '.join(missing)}")
    reading = [result for name, result in results.items() if name.startswith("1")]
    return replace(taken, seen={"findings": float(sum(len(result["findings"]) for result in reading))})


def _step(cells: Sequence[dict]) -> dict:
    for cell in cells:
        for output in cell.get("outputs", ()):
            if SCRAP in output.get("data", {}):
                return output["data"][SCRAP]["data"]
    return {}
