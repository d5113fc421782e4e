"""Every notebook keeps the project's form, runs under the stock tools too, and gives them the same data."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import homes
import pytest

import runbook_lib
from runbook_lib import runner
from runbook_lib.results import read_notebook_result

FOLDER = homes.ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LONGEST_CELL = 10
KEYS = {"title", "task", "step", "needs", "changes", "timeout", "critical"}
SECRET = re.compile(r"(?i)(-----BEGIN|eyJ[\w-]{10,}\.|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|password\s*=\s*[\"'])")
ABSOLUTE = re.compile(r"[\"'](/(?:root|home|tmp|srv|etc|var|work|Users|opt)/|[A-Za-z]:\\|~/)")


@cache
def book(name: str) -> dict[str, Any]:
    """The notebook as JSON."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def text(cell: dict[str, Any]) -> str:
    """A cell's source in one piece."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def code(name: str) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    return [cell for cell in book(name)["cells"] if cell["cell_type"] == "code"]


def tree(name: str) -> ast.Module:
    """All code of a notebook, parsed."""
    return ast.parse("\n".join(text(cell) for cell in code(name)))


every_notebook = pytest.mark.parametrize("name", NAMES)


# --- form ------------------------------------------------------------------------------------------------


def test_there_are_the_notebooks_of_the_first_phase_and_steps():
    """The overview, two assessments, the preparation, steps 1 and 2 and the summary are there."""
    assert {"00", "11", "12", "13", "21", "22", "99"} <= {name[:2] for name in NAMES}


@every_notebook
def test_metadata_tells_the_runner_all_it_asks(name: str):
    """Title, task, step, needs, changes, timeout and critical are given, each of its type, and the number agrees."""
    meta = book(name)["metadata"]["runbook"]
    assert set(meta) >= KEYS and set(meta) <= KEYS | {"always", "after"}
    assert meta["step"] == name[:2]
    assert isinstance(meta["needs"], list) and isinstance(meta["changes"], bool) and isinstance(meta["critical"], bool)
    assert 0 < meta["timeout"] <= 7200 and meta["title"]


@every_notebook
def test_opening_says_what_is_proved_changed_and_undone(name: str):
    """The first cell is an H1 with the step's number and title, then the three lines."""
    first = book(name)["cells"][0]
    lines = [line for line in text(first).splitlines() if line.strip()]
    assert first["cell_type"] == "markdown"
    assert re.match(rf"# {name[:2]} · \S", lines[0])
    assert [line.split()[0].strip("*") for line in lines[1:4]] == ["Proves", "Changes", "Undo"]
    assert len(lines) == 4


@every_notebook
def test_there_is_one_first_heading(name: str):
    """One H1 a notebook; a page has one title."""
    heads = [
        line
        for cell in book(name)["cells"]
        if cell["cell_type"] == "markdown"
        for line in text(cell).splitlines()
        if line.startswith("# ")
    ]
    assert len(heads) == 1


@every_notebook
def test_parameters_are_tagged_annotated_and_default_to_the_lab(name: str):
    """One cell is tagged, every name in it has a type, and without any choice the lab is used."""
    tagged = [cell for cell in code(name) if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1 and tagged[0] is code(name)[0]
    declared = runner.declared_parameters(book(name))
    assert declared["site"] == declared["run_dir"] == "str"
    assert all(declared.values()), "a parameter has no annotation"
    values = {node.target.id: node.value.value for node in ast.parse(text(tagged[0])).body}  # type: ignore[attr-defined]
    assert (values["site"], values["run_dir"]) == ("lab", "")


@every_notebook
def test_nothing_executed_is_committed(name: str):
    """No outputs, no execution counts, every cell with an id."""
    assert not [cell for cell in code(name) if cell["outputs"] or cell["execution_count"] is not None]
    ids = [cell["id"] for cell in book(name)["cells"]]
    assert len(set(ids)) == len(ids) and all(ids)


@every_notebook
def test_code_is_short_and_plain(name: str):
    """No definitions, loops or handlers; at most ten lines a cell."""
    forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.Try, ast.With)
    assert not [type(node).__name__ for node in ast.walk(tree(name)) if isinstance(node, forbidden)]
    assert [cell["id"] for cell in code(name) if len(text(cell).splitlines()) > LONGEST_CELL] == []
    assert not [cell["id"] for cell in code(name) if re.search(r"^\s*[%!]", text(cell), flags=re.M)]


@every_notebook
def test_no_secret_and_no_absolute_path_stands_in_it(name: str):
    """Neither in code nor in prose."""
    cells = [text(cell) for cell in book(name)["cells"]]
    assert not [found for source in cells for found in (SECRET.search(source), ABSOLUTE.search(source)) if found]


@every_notebook
def test_prose_comes_before_code(name: str):
    """The first code follows prose, and never do more than four cells of code stand together."""
    kinds = [cell["cell_type"] for cell in book(name)["cells"]]
    assert kinds[:3] == ["markdown", "markdown", "code"]
    assert "code code code code code" not in " ".join(kinds)


@every_notebook
def test_finish_stands_alone_at_the_end(name: str):
    """The last cell is code and says `step.finish()`, which is said nowhere else."""
    assert book(name)["cells"][-1]["cell_type"] == "code"
    assert text(book(name)["cells"][-1]).rstrip(";") == "step.finish()"
    assert sum("finish(" in text(cell) for cell in code(name)) == 1


@every_notebook
def test_step_is_opened_once_under_its_own_number(name: str):
    """`open_step` is given the notebook's number and both parameters."""
    calls = [
        node for node in ast.walk(tree(name)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "open_step"
    ]
    assert [ast.unparse(call) for call in calls] == [f"open_step('{name[:2]}', site=site, run_dir=run_dir)"]


@every_notebook
def test_links_lead_somewhere(name: str):
    """Every relative link is a file beside the notebook."""
    prose = " ".join(text(cell) for cell in book(name)["cells"] if cell["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if "://" not in link]
    assert not [link for link in links if not (FOLDER / link).exists()]


def test_the_way_through_the_notebooks_is_linked():
    """From the overview a reader gets to every notebook of the phase by following links, one after the other."""
    seen, following = set(), [NAMES[0]]
    while following:
        here = following.pop()
        seen.add(here)
        prose = " ".join(text(cell) for cell in book(here)["cells"])
        following += [link for link in re.findall(r"\]\((\w+\.ipynb)\)", prose) if link not in seen]
    assert {name for name in NAMES if name[0] in "012"} <= seen


@every_notebook
def test_only_public_names_are_used(name: str):
    """What a notebook imports is in `runbook_lib.__all__`, and what it reaches in them exists and is public."""
    imported: set[str] = set()
    for node in ast.walk(tree(name)):
        assert not isinstance(node, ast.Import)
        if isinstance(node, ast.ImportFrom):
            assert node.module == "runbook_lib"
            imported |= {alias.name for alias in node.names}
    assert imported <= set(runbook_lib.__all__)
    assert list(_lost(tree(name), imported)) == []
    used = {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}
    assert imported <= used, "imported and not used"


def _lost(module: ast.Module, imported: set[str]) -> Iterator[str]:
    for node in ast.walk(module):
        if not isinstance(node, ast.Attribute):
            continue
        path = ast.unparse(node).split(".")
        if path[0] not in imported or not all(part.isidentifier() for part in path):
            if node.attr.startswith("_"):
                yield ast.unparse(node)
            continue
        found: Any = getattr(runbook_lib, path[0])
        for part in path[1:]:
            found = None if part.startswith("_") else getattr(found, part, None)
        if found is None:
            yield ast.unparse(node)


@every_notebook
def test_every_check_named_exists(name: str):
    """`step.check` is given a check of the catalogue."""
    checks = importlib.import_module("runbook_lib.checks")
    known = {entry.id for entry in checks.catalogue()}
    calls = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    given = {ast.unparse(_judge(node.args[0])) for node in calls if ast.unparse(node.func) == "step.check"}
    assert {entry.removeprefix("checks.") for entry in given} <= known


def _judge(node: ast.expr) -> ast.expr:
    """The check within what dresses it, as in `waived(checks.audit.tokens_expire)`."""
    return node.args[0] if isinstance(node, ast.Call) else node


PAPERMILL = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "-p", "site", "lab"]


# --- the stock tools -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project with its own lab."""
    place = homes.make(tmp_path_factory.mktemp("stock"))
    yield place
    place.down()


@pytest.mark.xdist_group("stock")
def test_stock_papermill_runs_a_notebook_and_scrapbook_reads_it(home: homes.Home, tmp_path: Path):
    """Without the runner's engine a step gives a whole result, readable by scrapbook as it is."""
    import scrapbook

    out = tmp_path / "11_assess_proxmox.ipynb"
    source = str(home.root / "notebooks" / out.name)
    subprocess.run([*PAPERMILL, source, str(out)], cwd=home.root, env=home.environment, check=True, timeout=120)
    result, why = read_notebook_result(out)
    assert result is not None, why
    assert (result.step, result.status, result.emulated) == ("11", "pass", True)
    scraps = scrapbook.read_notebook(str(out)).scraps
    assert [(scrap.name, scrap.encoder) for scrap in scraps.values()] == [("step", "json")]
    assert [entry["check"] for entry in scraps["step"].data["findings"]] == [each.check for each in result.findings]


@pytest.mark.xdist_group("stock")
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("RUNBOOK_COMPLETE"), reason="complete matrix; run with `make test-all`")
@every_notebook
def test_stock_papermill_runs_every_notebook(home: homes.Home, tmp_path: Path, name: str):
    """The command line of papermill, as a pipeline of anybody's would call it."""
    told = subprocess.run(
        [*PAPERMILL, str(home.root / "notebooks" / name), str(tmp_path / name)],
        cwd=home.root,
        env=home.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    result, why = read_notebook_result(tmp_path / name)
    assert result is not None and result.status not in {"fail", "error"}, why
