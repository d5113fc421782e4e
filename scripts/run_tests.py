"""Run the whole test suite: the tests in parallel, then nbval over every notebook; one summary each.

Usage: python scripts/run_tests.py [pytest options and paths]     (the Makefile calls it)
With options or paths only those tests are run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q"]


def main() -> int:
    """The worst exit code of the parts."""
    given = sys.argv[1:]
    jobs = os.environ.get("JOBS", "2")
    parallel = ["-n", jobs, "--dist", "loadgroup"] if jobs != "1" else []
    if given:
        return subprocess.call([*PYTEST, *parallel, *given], cwd=ROOT)
    tests = subprocess.call([*PYTEST, *parallel, "tests"], cwd=ROOT)
    return max(tests, validate_notebooks(jobs), key=abs)


def validate_notebooks(jobs: str) -> int:
    """The exit code of nbval over every notebook, against a fresh lab that is stopped at the end."""
    print("notebooks, validated by nbval", flush=True)
    parallel = ["-n", jobs, "--dist", "loadfile"] if jobs != "1" else []
    with own_home() as home:
        environment = {**os.environ, "RUNBOOK_HOME": str(home)}
        command = [*PYTEST, *parallel, "-p", "no:cacheprovider", "--nbval-lax", "notebooks"]
        return subprocess.call(command, cwd=ROOT, env=environment)


@contextmanager
def own_home() -> Iterator[Path]:
    """A project folder of its own: these notebooks and parameters, no earlier runs, a lab that nobody else uses."""
    from runbook_lib.lab import control

    with tempfile.TemporaryDirectory(prefix="runbook-nbval-") as name:
        home = Path(name)
        for part in ("notebooks", "parameters"):
            shutil.copytree(ROOT / part, home / part)
        try:
            control.up(home / ".lab")  # before the first kernels ask for it both at once
            yield home
        finally:
            control.down(home / ".lab")


if __name__ == "__main__":
    sys.exit(main())
