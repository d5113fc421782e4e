"""Fixtures every test may use."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the helpers beside the tests: homes, two_sides


TOGETHER = {"test_whole_run.py": "whole", "test_canary.py": "whole"}
"""Files that share a session's fixture, so that one worker runs them all."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Whole files to a worker, since the tests of a file share its lab.

    `--dist loadgroup` alone does nothing with pytest 9.2: pytest-dev/pytest-xdist#1386.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        """The tests of one file, or of files that belong together, are one piece of work."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return TOGETHER.get(Path(file).name, file)

    config.option.loadscopereorder = False  # the order is that of the collection, below
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker has nothing to do at the end."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The folder of recorded answers of real servers; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RUNBOOK_ORACLE", ROOT.parent / "shared" / "oracle"))
    if not folder.is_dir():
        pytest.skip("no recordings of real servers here (set RUNBOOK_ORACLE to their folder)")
    return folder


@dataclass
class FakeSite:
    """The few fields of a Site that the runner reads; nothing is reached."""

    name: str = "unit"
    emulated: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        """The site as plain data."""
        return {"name": self.name, **self.parameters}


FINISH = """
from IPython.display import publish_display_data as show
def finish(status, *findings):
    data = {"step": STEP, "title": STEP, "site": site, "run": "", "status": status, "seconds": 1.0, "schema": 1,
            "started": "2026-11-23T10:00:00.000Z", "finished": "2026-11-23T10:00:01.000Z", "findings": list(findings)}
    show({"application/scrapbook.scrap.json+json": {"name": "step", "data": data, "encoder": "json", "version": 1}},
         {"scrapbook": {"name": "step", "data": True, "display": False}})
def finding(check, status, subject="", message=""):
    entry = {"check": check, "status": status, "subject": subject, "message": message}
    show({"application/x.runbook.finding+json": {"findings": [entry]}})
    return entry
"""


@dataclass
class Project:
    """A project of tiny notebooks in a temporary folder, and the runs made of them."""

    root: Path
    site: FakeSite = field(default_factory=FakeSite)
    events: list[dict[str, Any]] = field(default_factory=list)

    def notebook(self, step: str, *cells: str, **meta: Any) -> Path:
        """Write a step; its cells can use `finish(status, *findings)` and `finding(check, status, …)`."""
        import nbformat

        first = nbformat.v4.new_code_cell('site: str = "lab"\nrun_dir: str = ""', metadata={"tags": ["parameters"]})
        sources = (f"STEP = {step!r}\n{FINISH}", *cells)
        book = nbformat.v4.new_notebook(cells=[first, *(nbformat.v4.new_code_cell(source) for source in sources)])
        book.metadata["runbook"] = {"title": f"Step {step}", "step": step, "needs": [], "timeout": 60, **meta}
        path = self.root / "notebooks" / f"{step}_step.ipynb"
        nbformat.write(book, path)
        return path

    def run(self, **options: Any) -> Any:
        """One run in spawned kernels, its events kept."""
        from runbook_lib import runner

        def load(site: Any, **_: Any) -> FakeSite:
            return self.site

        options = {
            "isolation": "spawn",
            "root": self.root,
            "on_event": self.events.append,
            "load_site": load,
            **options,
        }
        return runner.run(self.site.name, **options)

    def folder(self, run: Any) -> Path:
        """Where the run lies."""
        return self.root / "outputs" / run.path

    def executed(self, run: Any, step: str) -> dict[str, Any]:
        """The executed notebook of a step, as JSON."""
        return json.loads((self.folder(run) / f"{step}_step.ipynb").read_text(encoding="utf-8"))

    def text(self, run: Any, step: str) -> str:
        """Everything a step printed."""
        outputs = [output for cell in self.executed(run, step)["cells"] for output in cell.get("outputs", ())]
        return "".join("".join(output.get("text", "")) for output in outputs)


def _new_project(root: Path) -> Project:
    (root / "notebooks").mkdir()
    (root / "parameters").mkdir()
    return Project(root)


@pytest.fixture(scope="session")
def new_project() -> Callable[[Path], Project]:
    """Makes an empty project in an empty folder."""
    return _new_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project to fill with notebooks."""
    return _new_project(tmp_path)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One whole run on a lab of its own; the tests that share it stand in the xdist group "whole"."""
    import homes

    yield from homes.live(tmp_path_factory.mktemp("whole"))
