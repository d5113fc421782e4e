"""The whole chain on the other generations of the platform: it ends well, and breaks nothing for good."""

from __future__ import annotations

import os
from pathlib import Path

import homes
import pytest

from runbook_lib.model import Status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("RUNBOOK_COMPLETE"), reason="complete matrix; run with `make test-all` or `make test-chains`"
    ),
]


@pytest.mark.parametrize("flavour", ["cozystack-v0", "capi-v1beta2"])
def test_the_whole_chain_ends_well(flavour: str, tmp_path: Path) -> None:
    """Every step has a result and none failed; afterwards the assessment still finds nothing broken."""
    home = homes.make(tmp_path, scenario=flavour, scale=600)
    home.up()
    try:
        told = home.runbook("run", "--pages")
        assert told.returncode == 0, told.stderr[-3000:]
        (run,) = home.runs()
        notebooks = {path.name[:2] for path in (homes.ROOT / "notebooks").glob("*.ipynb")}
        assert {record.step for record in run.steps if record.result} == notebooks
        assert not [found for found in run.findings if found.status in {Status.FAIL, Status.ERROR}]
        assert (home.root / "outputs" / "public" / "en" / "lab" / "documents" / "plan.html").is_file()
        again = home.runbook("run", "--step", "12")
        assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    finally:
        home.down()
