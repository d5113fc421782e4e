"""What is measured, and how: samples, contenders that take turns, medians with their spread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

BIN = Path(sys.executable).parent
"""Where the commands of this environment lie: runbook, papermill, jupyter."""


@dataclass(frozen=True)
class Sample:
    """One measurement: seconds on the wall, seconds of processor time, and what else was seen."""

    wall: float
    cpu: float
    seen: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One side of a comparison, and how it was configured, in words a reader can repeat."""

    name: str
    how: str
    measure: Callable[[], Sample]
    ours: bool = False


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    title: str
    contenders: Sequence[Contender]
    target: str = ""
    met: Callable[[Mapping[str, Sequence[Sample]]], bool] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # key of Sample.seen → heading
    notes: Sequence[str] = ()
    repeats: int = 7
    better: Mapping[str, str] = field(default_factory=dict)  # column → "more" or "less": what is compared, if not time
    complete: Callable[[Case], Case] | None = None  # adds what takes long to prepare, like a peer's environment


class Broken(RuntimeError):
    """A contender did not do its work, so its time says nothing."""


def take_turns(case: Case, repeats: int, told: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Every contender's samples; they take turns, so that a busy moment of the machine hits all of them."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in case.contenders}
    for turn in range(repeats):
        for contender in case.contenders:
            sample = contender.measure()
            samples[contender.name].append(sample)
            told(f"{case.name} {turn + 1}/{repeats}  {contender.name}  {sample.wall:.2f} s")
    return samples


def command(
    arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None, codes: Sequence[int] = (0,)
) -> Sample:
    """How long a command took, with the processor time of all its descendants that were waited for."""
    log = cwd / "measured.log"
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        words = " ".join(Path(part).name if Path(part).is_absolute() else str(part) for part in arguments)
        raise Broken(f"{words}: exit code {process.returncode}\n{log.read_text(errors='replace')[-2000:]}")
    return Sample(wall, used.ru_utime + used.ru_stime)


def together(samples: Sequence[Sample]) -> Sample:
    """Several commands, one after the other, as one."""
    return Sample(sum(sample.wall for sample in samples), sum(sample.cpu for sample in samples))


def middle(samples: Sequence[Sample], key: str = "wall") -> float:
    """The median of one quantity."""
    return median(values(samples, key))


def values(samples: Sequence[Sample], key: str) -> list[float]:
    """One quantity of every sample."""
    if key in {"wall", "cpu"}:
        return [getattr(sample, key) for sample in samples]
    return [sample.seen[key] for sample in samples if key in sample.seen]
