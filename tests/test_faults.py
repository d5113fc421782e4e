"""Each way in which an API can misbehave, met by 11 and 12: one clear message, the right status, bounded time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import homes
import pytest
import yaml

from runbook_lib.lab import control, scenario
from runbook_lib.model import Run, Status, StepRecord

pytestmark = pytest.mark.xdist_group("faults")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
LONGEST_SECONDS = 60.0
SCALE = 600
TIMEOUT = 3


@dataclass(frozen=True)
class Case:
    """A fault, and what must come of it."""

    name: str
    rule: Mapping[str, Any]
    step: str = "11"
    status: Status = Status.ERROR
    says: tuple[str, ...] = ()
    sampled: bool = False
    faults: int | None = None  # how often it strikes; None: always

    def __str__(self) -> str:
        return self.name


def pve(path: str, **what: Any) -> dict[str, Any]:
    """A fault of the Proxmox VE API."""
    return {"system": "proxmox", "path": path, **what}


def kube(path: str, **what: Any) -> dict[str, Any]:
    """A fault of the Kubernetes API."""
    return {"system": "kubernetes", "path": path, **what}


RETRY = {"headers": {"Retry-After": "1"}}
PASSES = {"status": Status.PASS}
CASES = (
    # what ends the step: nothing can be told without it
    Case("proxmox-401", pve("", status=401), says=("401", "token")),
    Case("proxmox-version-403", pve("/version", status=403), says=("403", "/version"), sampled=True),
    Case("proxmox-version-500", pve("/version", status=500), says=("500", "/version")),
    Case("proxmox-reset", pve("/version", reset=True), says=("/version",)),
    Case("proxmox-truncated", pve("/version", truncate=True), says=("/version",), sampled=True),
    Case("proxmox-html", pve("/version", html=True, status=200), says=("/version",)),
    Case("proxmox-bad-gateway", pve("/version", html=True), says=("502", "/version")),
    Case("proxmox-503", pve("/version", status=503), says=("503", "/version")),
    Case("proxmox-redirect", pve("/version", status=302, headers={"Location": "http://127.0.0.1:9/"}), says=("302",)),
    Case("kubernetes-401", kube("", status=401), "12", says=("401",)),
    Case("kubernetes-nodes-403", kube("/api/v1/nodes", status=403), "12", says=("403", "nodes"), sampled=True),
    Case("kubernetes-500", kube("/version", status=500), "12", says=("500", "/version")),
    Case("kubernetes-reset", kube("/api/v1/nodes", reset=True), "12", says=("nodes",)),
    Case("kubernetes-truncated", kube("/api/v1/nodes", truncate=True), "12", says=("nodes",)),
    Case("kubernetes-html", kube("/api/v1/nodes", html=True, status=200), "12", says=("HTML page", "proxy")),
    Case("kubernetes-always-429", kube("/api/v1/nodes", status=429, **RETRY), "12", says=("429", "nodes")),
    Case("proxmox-version-404", pve("/version", status=404), says=("404", "/version")),
    Case("kubernetes-nodes-404", kube("/api/v1/nodes", status=404), "12", says=("404", "nodes")),
    Case("kubernetes-409", kube("/api/v1/nodes", status=409), "12", says=("409", "nodes")),
    Case("proxmox-hangs", pve("/version", slow=SCALE * 30.0), says=("/version", "nothing came")),
    Case("kubernetes-hangs", kube("/api/v1/nodes", slow=SCALE * 30.0), "12", says=("nodes", "nothing came")),
    # what passes by itself: reads are asked again
    Case("proxmox-503-twice", pve("/nodes", status=503), faults=2, **PASSES),
    Case("proxmox-reset-once", pve("/cluster", reset=True), faults=1, **PASSES),
    Case("proxmox-slow", pve("/version", slow=SCALE * 2.0), **PASSES),
    Case("kubernetes-429-twice", kube("/api/v1/pods", status=429, **RETRY), "12", faults=2, sampled=True, **PASSES),
    Case("kubernetes-503-once", kube("/apis/helm", status=503), "12", faults=1, **PASSES),
    Case("kubernetes-reset-once", kube("/api/v1/nodes", reset=True), "12", faults=1, **PASSES),
    # what leaves one fact out: the rest is judged, and the gap is a finding
    Case("proxmox-tasks-403", pve("/nodes/[^/]+/tasks", status=403), status=Status.WARN, says=("tasks",)),
    Case("proxmox-node-595", pve("/nodes/pve2/", status=595), status=Status.FAIL, says=("pve2",), sampled=True),
)
every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=()
            if case.sampled
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for case in CASES
    ],
    ids=str,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab is given one fault after the other."""
    limits = {side: {"timeout_seconds": TIMEOUT} for side in ("proxmox", "kubernetes")}
    place = homes.make(tmp_path_factory.mktemp("faults"), scale=SCALE, **limits)
    place.up()
    yield place
    place.down()


@pytest.fixture(autouse=True)
def mended(home: homes.Home) -> Iterator[None]:
    """No fault outlives its test."""
    control.fault(None, home.lab)
    yield
    control.fault(None, home.lab)


def told_of(record: StepRecord) -> str:
    """All that the record says of what went wrong."""
    findings = record.result.findings if record.result else ()
    bad = [f"{each.subject}: {each.message}" for each in findings if each.status in {"warn", "fail", "error"}]
    return "\n".join([record.reason, *bad])


def met(home: homes.Home, case: Case) -> tuple[Run, str, int]:
    """The run that met the fault, what it printed, and its exit code."""
    control.fault({**case.rule, "times": case.faults}, home.lab)
    told = home.runbook("run", "--step", case.step, "--progress", "none")
    return home.runs()[-1], told.stdout + told.stderr, told.returncode


@every_case
def test_a_fault_is_met_with_one_clear_message(home: homes.Home, case: Case):
    """The status tells unfit from could-not-tell; the message names what was asked and what came."""
    began = time.monotonic()
    run, printed, code = met(home, case)
    assert time.monotonic() - began < LONGEST_SECONDS
    record = run.steps[0]
    assert record.status is case.status, told_of(record)
    assert code == {Status.ERROR: 3, Status.FAIL: 1}.get(case.status, 0)
    missing = [word for word in case.says if word.lower() not in told_of(record).lower()]
    assert missing == [], told_of(record)
    assert "Traceback" not in printed and "<html" not in told_of(record).lower()
    assert "\n" not in record.reason and len(record.reason) < 600, record.reason


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
def test_a_broken_side_does_not_hold_up_the_other(home: homes.Home):
    """With Proxmox VE out of order CozyStack is still assessed, and what needs both is skipped with the reason."""
    control.fault(pve("/version", status=500), home.lab)
    told = home.runbook("run", "--progress", "none")
    steps = {record.step: record for record in home.runs()[-1].steps}
    assert told.returncode == 3
    assert steps["11"].status is Status.ERROR
    assert steps["13"].status is Status.SKIP and "11" in steps["13"].reason
    assert steps["99"].result is not None, "the summary is always written"
    assert steps["12"].status in {Status.PASS, Status.ERROR}
    assert "/version" in steps["12"].reason or steps["12"].result is not None


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
def test_a_change_is_never_sent_twice(home: homes.Home):
    """A write whose answer is lost is not repeated: the step could not tell, and what it borrowed is taken back."""
    rule = {"system": "proxmox", "method": "POST", "path": r"/storage/\w+/content", "reset": True, "times": 1}
    before = homes.inventory(home)
    control.fault(rule, home.lab)
    told = home.runbook("run", "--step", "13", "--progress", "none")
    assert told.returncode == 3
    assert "volume" not in {entry.split()[0] for entry in homes.inventory(home) - before}


@pytest.mark.parametrize(
    ("side", "step", "tls", "says"),
    [
        pytest.param("proxmox", "11", {"days_left": -1}, "expired", id="expired"),
        pytest.param("kubernetes", "12", {"days_left": -1}, "expired", id="kubernetes-expired"),
        pytest.param("proxmox", "11", {"loopback": False}, "127.0.0.1", id="another-name"),
    ],
)
def test_a_bad_certificate_is_refused_before_anything_is_said(
    tmp_path: Path, side: str, step: str, tls: Mapping[str, Any], says: str
):
    """No request is sent over TLS that does not verify: the step could not tell, and says why."""
    file = tmp_path / "tls.yaml"
    given = {"extends": str(scenario.FOLDER / "healthy.yaml"), side: {"tls": dict(tls)}}
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    place = homes.make(tmp_path / "home", scenario=str(file), scale=SCALE)
    try:
        told = place.runbook("run", "--step", step, "--progress", "none")
        record = place.runs()[-1].steps[0]
        assert (told.returncode, record.status) in {(3, Status.ERROR), (1, Status.FAIL)}, told_of(record)
        assert says in told_of(record)
    finally:
        place.down()
