"""Create a virtual environment and install the project into it; needs nothing but the standard library.

Usage: python3 scripts/setup_venv.py [FOLDER]      (the Makefile calls it; FOLDER is .venv)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM = (3, 11)


def main() -> int:
    """0 when the environment is ready; otherwise one clear message and 1."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv")
    if sys.version_info < MINIMUM:
        return fail(
            f"this Python is {sys.version.split()[0]}, the runbook needs {'.'.join(map(str, MINIMUM))} or newer",
            "name a newer one: make PYTHON=python3.12 setup",
        )
    started = time.monotonic()
    python = folder / "bin" / "python"
    if not works(python):
        say(f"Creating {folder} with Python {sys.version.split()[0]} …")
        if not create(folder):
            return 1
    say("Installing the pinned dependencies (about a minute the first time) …")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f"{ROOT}[dev]"]
    if subprocess.call(install) != 0:
        return fail(
            "pip could not install the dependencies", "its own words are above; check the package index, then retry"
        )
    say(f"Ready in {time.monotonic() - started:.0f} s.")
    return 0


def create(folder: Path) -> bool:
    """Whether an environment with pip stands in the folder afterwards: by venv, else by virtualenv."""
    tried = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True, check=False
    )
    if tried.returncode == 0 and works(folder / "bin" / "python"):
        return True
    say("This Python has no complete venv module; trying virtualenv …")
    home = ROOT / ".bootstrap"
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(home), "virtualenv"],
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode == 0:
        environment = {**os.environ, "PYTHONPATH": str(home)}
        made = subprocess.run(
            [sys.executable, "-m", "virtualenv", "--clear", "--quiet", str(folder)], env=environment, check=False
        )
        if made.returncode == 0 and works(folder / "bin" / "python"):
            return True
    fail(
        "this Python has neither venv nor pip to fetch virtualenv with",
        "Debian and Ubuntu: apt install python3-venv; or name another one: make PYTHON=/path/to/python3 setup",
    )
    return False


def works(python: Path) -> bool:
    """Whether an interpreter is there, new enough, and has pip."""
    if not python.exists():
        return False
    probe = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM})"
    return subprocess.run([str(python), "-c", probe], capture_output=True, check=False).returncode == 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def fail(what: str, hint: str) -> int:
    say(f"setup: {what}\n       {hint}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
