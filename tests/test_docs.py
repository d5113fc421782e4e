"""Words that must not lag behind the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def test_environment_yml_brings_python_and_leaves_the_pins_to_pyproject():
    """One Python range, pip, and the project itself: nothing that could drift apart."""
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python = next(entry for entry in wanted if isinstance(entry, str) and entry.startswith("python"))
    assert python.startswith("python" + PROJECT["requires-python"])
    assert [entry for entry in wanted if entry != python] == ["pip", {"pip": ["-e .[dev]"]}]


def test_every_package_of_the_card_is_a_pinned_dependency():
    """The user's design card, and requests, which proxmoxer does not declare."""
    pinned = {re.split(r"[=\[]", entry)[0] for entry in PROJECT["dependencies"] if "==" in entry}
    card = {"jupyterlab", "papermill", "proxmoxer", "kubernetes", "pandas", "matplotlib", "scrapbook", "requests"}
    assert card <= pinned
    assert any(entry.startswith("nbval==") for entry in PROJECT["optional-dependencies"]["dev"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    """Relative links and pictures exist."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_named_in_a_page_exist(page):
    """A reader who types what is written gets somewhere."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = set(re.findall(r"(?:^|[`$ ])make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), flags=re.M))
    assert named - {"sure"} <= targets


def test_repository_names_no_machine():
    """No absolute home or work path stands in anything that is tracked as text."""
    tracked = [
        path for folder in ("runbook_lib", "notebooks", "docs", "parameters") for path in (ROOT / folder).rglob("*")
    ]
    bad = re.compile(r"/(?:work|home/[a-z]+|Users)/")
    texts = [path for path in tracked if path.suffix in {".py", ".md", ".ipynb", ".yaml", ".json", ".j2"}]
    assert texts
    assert not [str(path) for path in texts if bad.search(path.read_text(encoding="utf-8"))]


def test_the_levels_of_readiness_are_defined():
    """Every level stands in the table of docs/readiness.md, by number and name."""
    from runbook_lib import criteria

    told = (ROOT / "docs" / "readiness.md").read_text(encoding="utf-8")
    assert len(criteria.LEVELS) == 6
    assert not [level for level in criteria.LEVELS if f"| {level.number} | {level.name} |" not in told]
