"""Run the whole test suite: the tests in parallel, then nbval over every notebook; one summary each.

Usage: python scripts/run_tests.py [pytest options and paths]     (the Makefile calls it)
With options or paths only those tests are run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """The worst exit code of the parts."""
    given = sys.argv[1:]
    jobs = os.environ.get("JOBS", "2")
    parallel = ["-n", jobs, "--dist", "loadgroup"] if jobs != "1" else []
    pytest = [sys.executable, "-m", "pytest", "-q"]
    if given:
        return subprocess.call([*pytest, *parallel, *given], cwd=ROOT)
    return subprocess.call([*pytest, *parallel, "tests"], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
