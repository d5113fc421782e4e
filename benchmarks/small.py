"""Help, lab start, first finding: what a person waits for."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.homes import environment, home, notebooks
from benchmarks.measure import BIN, Broken, Case, Contender, Sample, command, middle

FINDING = b"application/x.runbook.finding+json"
WAIT_SECONDS = 120.0


def help_case() -> Case:
    """The time to the first page of help."""
    return Case(
        name="help",
        title="The command line answers",
        contenders=(
            Contender("runbook --help", "as it comes", lambda: _help("runbook"), True),
            Contender("papermill --help", "as it comes", lambda: _help("papermill")),
        ),
        target="`runbook --help` within 0.3 s",
        met=lambda samples: middle(samples["runbook --help"]) <= 0.3,
    )


def _help(name: str) -> Sample:
    with TemporaryDirectory() as folder:
        return command([BIN / name, "--help"], cwd=Path(folder), env=environment(Path(folder)))


def lab_case() -> Case:
    """The start of the lab, and the memory it takes."""
    return Case(
        name="lab",
        title="The lab starts",
        contenders=(
            Contender("runbook lab up", "`--scenario healthy`, an empty folder", lambda: _lab("healthy"), True),
            Contender("runbook lab up, fresh-node", "`--scenario fresh-node`", lambda: _lab("fresh-node"), True),
        ),
        columns={"memory": "memory MB", "cpu_lab": "CPU s of the lab"},
        target="up within 1.5 s and 120 MB",
        met=lambda samples: (
            middle(samples["runbook lab up"]) <= 1.5 and middle(samples["runbook lab up"], "memory") <= 120
        ),
        notes=(
            "There is no peer to measure: a Proxmox VE or CozyStack to compare with needs hardware.",
            "The clock stops when the command returns, and then both APIs answer over TLS.",
            "Memory is the resident set of the lab's process right after the start.",
        ),
    )


def _lab(scenario: str) -> Sample:
    with home(lab=False) as folder:
        taken = command([BIN / "runbook", "lab", "up", "--scenario", scenario], cwd=folder, env=environment(folder))
        process = psutil.Process(json.loads((folder / ".lab" / "state.json").read_text(encoding="utf-8"))["pid"])
        used = process.cpu_times()
        seen = {"memory": process.memory_info().rss / 1e6, "cpu_lab": used.user + used.system}
        return Sample(taken.wall, taken.cpu, seen)


def finding_case() -> Case:
    """The time from the command to the first finding a person can see."""
    return Case(
        name="finding",
        title="The first finding on screen",
        contenders=(
            Contender("runbook run, lab cold", "the lab has to start first", lambda: _first_event(lab=False), True),
            Contender("runbook run, lab warm", "the lab is up", lambda: _first_event(lab=True), True),
            Contender("papermill CLI, lab warm", "the first finding in the file it saves", _first_saved),
        ),
        target="within 5 s",
        met=lambda samples: all(middle(samples[f"runbook run, lab {state}"]) <= 5 for state in ("cold", "warm")),
        notes=(
            "papermill shows no outputs by itself; it saves the notebook after every cell, and that file is watched.",
            "Processor time is left out: the runs are stopped once the finding is there.",
        ),
    )


def _first_event(*, lab: bool) -> Sample:
    with home(lab=lab) as folder:
        began = time.perf_counter()
        process = _start(["runbook", "run", "--progress", "json"], folder, stderr=subprocess.PIPE)
        killer = threading.Timer(WAIT_SECONDS, process.kill)
        killer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(b"{") and json.loads(line)["event"] == "finding":
                    return Sample(time.perf_counter() - began, float("nan"))
            raise Broken("the run ended without a finding")
        finally:
            killer.cancel()
            process.terminate()
            process.communicate()


def _first_saved() -> Sample:
    with home() as folder:
        began = time.perf_counter()
        for source in notebooks(folder):
            saved = folder / f"out-{source.name}"
            process = _start(["papermill", str(source), str(saved), "-p", "site", "lab"], folder)
            try:
                if _appears(saved, process, began):
                    return Sample(time.perf_counter() - began, float("nan"))
            finally:
                process.terminate()
                process.wait()
        raise Broken("no notebook had a finding")


def _start(words: list[str], folder: Path, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def _appears(saved: Path, process: subprocess.Popen[bytes], began: float) -> bool:
    while True:
        ended = process.poll() is not None
        if saved.exists() and FINDING in saved.read_bytes():
            return True
        if ended:
            return False
        if time.perf_counter() - began > WAIT_SECONDS:
            raise Broken("papermill took too long")
        time.sleep(0.02)
