"""The command line: quick help, one line of error, the right exit code, the right stream."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from runbook_lib import cli, results, scaffold
from runbook_lib.errors import UsageError
from runbook_lib.model import Finding, Run, Status, StepRecord, StepResult, to_dict

HEAVY = (
    "papermill",
    "pandas",
    "kubernetes",
    "requests",
    "proxmoxer",
    "pydantic",
    "matplotlib",
    "nbformat",
    "aiohttp",
    "jinja2",
)


def _commands() -> list[tuple[str, Any]]:
    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, child in sorted(getattr(command, "commands", {}).items()):
            yield from walk(child, f"{path} {name}".strip())
        if not getattr(command, "commands", None):
            yield path, command

    return list(walk(typer.main.get_command(cli.app), ""))


def _runbook(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runbook_lib.cli", *arguments],
        cwd=home,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "RUNBOOK_HOME": str(home), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def home(project: Any, root: Path) -> Path:
    """A project with the lab's and the example's parameters."""
    for name in ("lab", "example"):
        shutil.copy(root / "parameters" / f"{name}.yaml", project.root / "parameters")
    return project.root


def _store(home: Path, identity: str, status: Status) -> None:
    finding = Finding("a.b", status, "pve1", "as it is", remedy="Mend it.")
    result = StepResult("11", "Assess", "lab", identity, status, "", "", 1.0, (finding,))
    record = StepRecord("11", "Assess", "11_t.ipynb", status, result=result)
    run = Run(identity, "lab", "2026-11-23T10:00:00.000Z", (record,), status=status)
    folder = home / "outputs" / "lab" / identity
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(to_dict(run)))


# ---------------------------------------------------------------- help


def test_help_loads_nothing_heavy() -> None:
    """`runbook --help` imports typer and the errors; everything else waits inside the commands."""
    code = (
        "import sys\nfrom runbook_lib import cli\nsys.argv = ['runbook', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n"
        f"    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage: runbook" in done.stdout


@pytest.mark.parametrize(("path", "command"), _commands(), ids=[path for path, _ in _commands()])
def test_every_command_explains_itself_by_example(path: str, command: Any) -> None:
    """Help says what comes back, and shows a command line that begins with the command itself."""
    assert command.help
    assert f"`runbook {path}" in command.help


def test_every_option_is_explained() -> None:
    """No option of any command lacks its help."""
    silent = [
        f"{path} {option.name}"
        for path, command in _commands()
        for option in command.params
        if not getattr(option, "help", None)
    ]
    assert silent == []


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"], "there is no parameters/nope.yaml"),
        (["run"], "notebooks/ holds no steps"),
        (["run", "--format", "xml"], "format is 'xml'"),
        (["run", "-p", "x"], "write it as name=value"),
        (["report"], "there is no run 'last'"),
        (["resume", "../x"], "there is no run"),
        (["rum"], "No such command 'rum'"),
        (["run", "--parallel", "many"], "Invalid value for '--parallel'"),
        (["new", "Bad Name"], "write two digits and words"),
        (["approve", "3f9c2ab41d07"], "no waiting plan has this digest"),
        (["history"], "site lab has no runs yet"),
        (["lab", "fault"], "give fields as name=value, or --clear"),
    ],
)
def test_an_error_is_one_line_on_stderr(home: Path, arguments: list[str], message: str) -> None:
    """Exit 2, nothing on stdout, nothing written, no traceback."""
    done = _runbook(home, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
    assert done.stderr.startswith("runbook: ")
    assert not (home / "outputs").exists()


def test_hostile_input_does_not_reach_the_terminal(home: Path) -> None:
    """An escape in an argument is not echoed as one."""
    done = _runbook(home, "run", "\x1b[2Jnope")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr


# ---------------------------------------------------------------- results


def test_a_stored_run_is_shown_with_its_exit_code(home: Path) -> None:
    """Results on stdout in every format; the exit code is the run's."""
    _store(home, "20261123T100000Z-0001", Status.FAIL)
    shown = _runbook(home, "report")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "✗ 11 pve1: as it is" in shown.stdout
    assert json.loads(_runbook(home, "report", "0001", "--format", "json").stdout)["counts"]["fail"] == 1
    assert _runbook(home, "report", "--format", "junit").stdout.startswith("<?xml")
    assert _runbook(home, "report", "--format", "markdown").stdout.startswith("# Runbook: lab")


def test_two_runs_are_compared_and_listed(home: Path) -> None:
    """`compare` names what was fixed; `history` has the figures."""
    _store(home, "20261123T100000Z-0001", Status.FAIL)
    _store(home, "20261124T100000Z-0002", Status.PASS)
    assert "fixed: 1" in _runbook(home, "compare", "0001").stdout
    difference = json.loads(_runbook(home, "compare", "0001", "0002", "--format", "json").stdout)
    assert difference["fixed"][0]["subject"] == "pve1"
    metrics = json.loads(_runbook(home, "history", "--format", "json").stdout)
    assert [entry["fixed"] for entry in metrics["runs"]] == [1, 0]


def test_sites_are_listed_checked_and_shown(home: Path) -> None:
    """A broken parameters file is one row of the list, and exit 2 when it is checked."""
    (home / "parameters" / "broken.yaml").write_text("name: broken\ntitel: x\n")
    rows = {row["site"]: row["state"] for row in json.loads(_runbook(home, "sites", "list", "--format", "json").stdout)}
    assert rows["lab"] == "ok"
    assert "did you mean title?" in rows["broken"]
    assert _runbook(home, "sites", "check", "lab").stdout == "lab: ok\n"
    assert _runbook(home, "sites", "check", "broken").returncode == 2
    assert json.loads(_runbook(home, "sites", "show", "example").stdout)["name"] == "example"
    assert json.loads(_runbook(home, "sites", "schema").stdout)["type"] == "object"


def test_checks_are_listed_and_searched(home: Path) -> None:
    """The catalogue as JSON has title, remedy and source of each check."""
    found = json.loads(_runbook(home, "checks", "--format", "json", "storage").stdout)
    assert found
    assert all(entry["title"] and entry["remedy"] and entry["source"] for entry in found)


# ---------------------------------------------------------------- scaffold


def test_a_new_step_has_the_projects_form(home: Path) -> None:
    """H1, three lines, parameters, open_step, finish; the runner knows it at once; its number is then taken."""
    path = scaffold.new_step("45_check_backups", home)
    cells = json.loads(path.read_text())["cells"]
    assert "".join(cells[0]["source"]).startswith("# 45 · Check backups\n\n**Proves:**")
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    assert cells[-2]["source"] == ["step.finish()"]
    from runbook_lib import runner

    assert [spec.title for spec in runner.discover(home)] == ["Check backups"]
    with pytest.raises(UsageError, match="step 45 exists already"):
        scaffold.new_step("45_other", home)


@pytest.mark.parametrize("name", ["../45_x", "4_x", "45", "45_X", "45_x/../y", "45_x y"])
def test_a_new_step_stays_in_its_folder(home: Path, name: str) -> None:
    """Names with anything but two digits and small words are refused."""
    with pytest.raises(UsageError, match="is no name for a step"):
        scaffold.new_step(name, home)


# ---------------------------------------------------------------- all of it, against the lab


def test_a_new_step_runs_against_the_lab_and_under_nbval(home: Path) -> None:
    """`new`, `run` (which starts the lab), the reports, `lab down`; the same notebook passes nbval."""
    assert _runbook(home, "new", "45_check_backups").returncode == 0
    try:
        done = _runbook(home, "run", "--progress", "json")
        assert done.returncode == 0, done.stderr
        told = [json.loads(line)["event"] for line in done.stderr.splitlines() if line.startswith("{")]
        assert (told[0], told[-1]) == ("run-started", "run-finished")
        assert "rehearsal in the lab" in done.stdout
        folder = results.find_run("last", home)
        assert {path.name for path in folder.iterdir()} >= {"run.json", "report.json", "report.junit.xml", "report.md"}
        assert "proxmox_url" in _runbook(home, "lab", "status").stdout
        connection = json.loads(_runbook(home, "lab", "status", "--json").stdout)
        assert connection["proxmox"].keys() == {"url", "ca_file", "username", "password", "token_id", "token_secret"}
        assert connection["kubernetes"].keys() == {"url", "ca_file", "kubeconfig", "token"}
        for path in folder.iterdir():
            assert connection["proxmox"]["password"] not in path.read_text()
        book = home / "notebooks" / "45_check_backups.ipynb"
        options = ["-q", "-p", "no:cacheprovider", "--nbval-lax", "--rootdir", str(home)]
        env = {**os.environ, "RUNBOOK_HOME": str(home)}
        nbval = subprocess.run([sys.executable, "-m", "pytest", *options, str(book)], cwd=home, env=env, check=False)
        assert nbval.returncode == 0
    finally:
        _runbook(home, "lab", "down")
    assert _runbook(home, "lab", "status").returncode == 3


def test_the_command_table_is_whole() -> None:
    """The walk above saw the commands of the groups too."""
    assert {"run", "lab up", "sites check"} <= {path for path, _ in _commands()}
