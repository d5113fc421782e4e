"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
