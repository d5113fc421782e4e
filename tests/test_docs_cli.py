"""The pages that the code writes of itself are current, and what they show can be typed."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from runbook_lib import cli

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "docs" / "benchmarks.md"  # its code is the names of contenders
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page != MEASURED)]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commands_shown() -> list[tuple[str, str]]:
    """Every `runbook …` in a code block or in code within a line, with its page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.M | re.S))
        spans = re.findall(r"`((?:\.venv/bin/)?runbook [^`\n]+)`", text)
        lines = re.findall(r"^(?:\.venv/bin/)?runbook .*$", blocks, flags=re.M)
        found += [(page.name, line.removeprefix(".venv/bin/")) for line in [*lines, *spans]]
    return sorted(set(found))


def _find(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(cli.app)
    while words and words[0] in (getattr(command, "commands", None) or {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", ["cli.md", "lab.md"])
def test_a_generated_page_is_current(page: str) -> None:
    """When this fails, run `python scripts/write_docs.py`."""
    wanted = {path.name: text for path, text in _script("write_docs").pages().items()}
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == wanted[page]


@pytest.mark.parametrize(("page", "line"), _commands_shown())
def test_a_command_shown_exists_with_its_options(page: str, line: str) -> None:
    """A reader who types a line of the docs is not told that there is no such command, option or argument."""
    words = shlex.split(re.split(r" [|>&]|\$\(", line)[0], comments=True)
    if "…" in line or "[OPTIONS]" in line or any(word.isupper() and len(word) > 2 for word in words):
        pytest.skip("a pattern, not a command")
    command, rest = _find(words[1:])
    if getattr(command, "commands", None):
        assert rest in ([], ["--help"])
        return
    if not rest or rest[-1] == "--help":
        return  # spoken of, not shown
    command.make_context("runbook", list(rest))


def test_every_page_of_the_docs_is_on_the_map() -> None:
    """docs/index.md leads to each of them."""
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in text] == ["index.md"]


def test_the_fields_of_a_fault_are_explained() -> None:
    """docs/lab.md names every field that a fault has."""
    from runbook_lib.lab.faults import Fault

    text = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert [name for name in vars(Fault()) if f"`{name}`" not in text] == []


def test_the_connection_is_shown_with_its_fields() -> None:
    """What docs/lab.md shows of `lab up --json` has the fields that it prints."""
    from runbook_lib.lab.control import KubernetesConnection, ProxmoxConnection

    text = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    shown = json.loads(re.search(r"```json\n(.*?)```", text, flags=re.S)[1])  # type: ignore[index]
    assert list(shown["proxmox"]) == list(ProxmoxConnection.__dataclass_fields__)
    assert list(shown["kubernetes"]) == list(KubernetesConnection.__dataclass_fields__)


def test_the_place_of_the_measurements_is_kept() -> None:
    """docs/benchmarks.md has both markers, or `make bench` would lose what it measured."""
    text = MEASURED.read_text(encoding="utf-8")
    assert re.search(r"<!-- measured: begin -->.*<!-- measured: end -->", text, flags=re.S)
