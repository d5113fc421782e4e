"""The published list of what the lab emulates."""

from __future__ import annotations

from pathlib import Path

from runbook_lib.lab.proxmox import coverage
from runbook_lib.lab.proxmox.routing import endpoints


def test_the_coverage_page_is_current(root: Path) -> None:
    """docs/lab-coverage.md is what the table of routes gives; regenerate it when this fails."""
    published = (root / "docs" / "lab-coverage.md").read_text(encoding="utf-8")
    assert published == coverage.page(), "run: python -m runbook_lib.lab.proxmox.coverage > docs/lab-coverage.md"


def test_every_endpoint_is_listed_and_described() -> None:
    """A reader sees each method and path, and what it answers with."""
    page = coverage.page()
    for method, template in endpoints():
        row = next(line for line in page.splitlines() if f"| {method} | `{template.replace(':rest}', '}')}` |" in line)
        assert not row.endswith("|  |"), row
