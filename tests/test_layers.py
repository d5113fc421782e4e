"""Who may import whom: the layers of the design, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "runbook_lib"

FAMILIES = {"proxmox", "kubernetes", "pages", "cli"}
"""Modules whose name begins like this are one area, split over files."""

CLIENTS = {"proxmox", "kubernetes"}

PURE = {"model", "errors", "facts", "versions", "criteria", "evidence", "audit", "waivers"}
"""Values and judgement: they import each other and the standard library, nothing else."""

NO_IO = {
    "asyncio", "http", "multiprocessing", "os", "pathlib", "shutil", "socket", "ssl", "subprocess", "tempfile",
    "urllib", "aiohttp", "kubernetes", "proxmoxer", "requests", "urllib3", "papermill", "nbclient",
}  # fmt: skip
"""What a module that only judges has no business with."""


def modules() -> list[Path]:
    """Every module of the library."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`runbook_lib.checks.proxmox` of its file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The full dotted names a module imports, wherever in it; type-only imports are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """The first names below `runbook_lib` that a module imports: `wire`, `checks`, `lab`."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("runbook_lib.")}


def family(name: str) -> str:
    """`proxmox_session` belongs to `proxmox`."""
    head = name.partition("_")[0]
    return head if head in FAMILIES else name


def area(path: Path) -> str:
    """The name below `runbook_lib` that a file belongs to."""
    return family(path.relative_to(PACKAGE).with_suffix("").parts[0])


def of(*areas: str) -> list[Path]:
    """The files of these areas."""
    found = [path for path in modules() if area(path) in areas]
    assert found, f"no module belongs to {areas}"
    return found


def assert_only(paths: list[Path], allowed: set[str]) -> None:
    """Fail with the file and the name that reaches too far."""
    for path in paths:
        strays = {family(name) for name in ours(path)} - allowed - {area(path)}
        assert not strays, f"{path.relative_to(PACKAGE.parent)} imports {', '.join(sorted(strays))}"


def test_pure_modules_import_only_each_other():
    """Results, errors, rows and the matrix depend on nothing that can fail."""
    assert_only(of(*PURE), PURE)


def test_checks_judge_and_read_nothing():
    """Checks know values only: no client, no file, no network."""
    assert_only(of("checks"), PURE)
    for path in of("checks", *PURE):
        reads = {name for name in imports(path) if name.split(".")[0] in NO_IO}
        assert not reads, f"{path.name} imports {', '.join(sorted(reads))}"


def test_clients_stand_on_wire():
    """Proxmox VE and Kubernetes do not know each other, the steps, or the runner."""
    assert_only(of(*CLIENTS), PURE | {"wire", "secrets", "answers"})


def test_results_know_only_values_and_secrets():
    """What reads outputs needs no client."""
    assert_only(of("results"), PURE | {"secrets"})


def test_reports_and_pages_read_results():
    """Reports never ask an API."""
    allowed = PURE | {"results", "checks", "secrets", "display", "figures", "runner", "locale", "privileges"}
    assert_only([path for path in modules() if area(path) in {"report", "pages"}], allowed)


def test_the_lab_shares_no_code_with_its_clients():
    """The lab and what is tested with it share the specification, never code."""
    assert_only(of("lab"), {"lab", "errors"})


def test_only_the_command_line_and_the_parameters_know_the_lab():
    """A notebook or a check that called the lab would not be right on a real site."""
    knowing = {area(path) for path in modules() if "lab" in ours(path)} - {"lab"}
    assert knowing <= {"cli", "parameters"}


def test_lab_controllers_speak_http_only():
    """They must run unchanged on a real API server: no store, no state, no server."""
    folder = PACKAGE / "lab" / "kubernetes" / "controllers"
    paths = sorted(folder.glob("*.py"))
    assert paths
    for path in paths:
        inside = {name for name in imports(path) if name.startswith("runbook_lib.")}
        strays = {
            name
            for name in inside
            if not name.startswith(("runbook_lib.lab.kubernetes.controllers", "runbook_lib.lab.clock"))
        }
        assert not strays, f"{path.name} imports {', '.join(sorted(strays))}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_blind_except_stands_only_in_the_named_places(path):
    """The check decorator, the runner's guard, and the lab's server."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blind = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
    ]
    named = area(path) == "lab" or path.name in {"runner.py"} or name_of(path) == "runbook_lib.checks"
    assert named or not blind, f"{path.name} catches everything on line {blind}"
