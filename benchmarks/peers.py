"""Peers that are no dependency of ours: each in an environment of its own, made when it is first measured."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

from benchmarks.homes import ROOT

SECONDS = 180.0


def python_with(package: str, *, folder: Path = ROOT / "outputs" / "benchmarks" / "peers") -> Path | None:
    """The interpreter of an environment that holds the package; None when it cannot be installed."""
    home = folder / "".join(letter if letter.isalnum() else "-" for letter in package)
    python, done = home / "bin" / "python", home / "installed"
    if done.is_file():
        return python
    try:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", package],
            check=True,
            timeout=SECONDS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    done.touch()
    return python
