"""A run that dies, whenever it dies: `runbook sweep` leaves nothing borrowed, `runbook resume` comes to the same end.

A fault of the lab holds one request back, so that the kill comes while it is under way: the intent is in the journal,
the outcome is not, and the request still arrives after the runner is dead.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import homes
import pytest

from runbook_lib.lab import control
from runbook_lib.model import Status

pytestmark = pytest.mark.xdist_group("kill")

HELD_SECONDS = 1.0
LONGEST_SECONDS = 30.0
SCALE = 60
COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))


@dataclass(frozen=True)
class Point:
    """A place in a run: the request that is held back there, and the change it belongs to."""

    name: str
    step: str
    system: str
    method: str
    path: str  # of the request, a regular expression
    target: str  # of the change, as the journal names it: its beginning

    def __str__(self) -> str:
        return self.name


POINTS = (
    Point("volume-asked-for", "13", "proxmox", "POST", r"/storage/\w+/content", "/nodes/"),
    Point("token-asked-for", "13", "proxmox", "POST", r"/token/capmox", "/access/users/runbook-capmox@pve/token"),
    Point("first-install", "13", "proxmox", "POST", r"/pools", "/pools/runbook"),
    Point("access-granted", "13", "proxmox", "PUT", r"/access/acl", "/access/acl"),
    Point("quota-applied", "13", "kubernetes", "PATCH", r"/resourcequotas/(?!.*dryRun)", "v1/ResourceQuota/"),
    Point("volume-freed", "13", "proxmox", "DELETE", r"/content/", "/nodes/"),
    Point("probe-namespace", "12", "kubernetes", "*", r"/namespaces/runbook-probe-[0-9a-f]+(\?|$)", "v1/Namespace/"),
    Point("probe-pod", "12", "kubernetes", "*", r"/pods/runbook-probe", "v1/Pod/"),
    Point("bridge-asked-for", "22", "proxmox", "POST", r"/network(\?|$)", "/nodes/pve1/network/vmbr1000"),
    Point("bridge-applied", "22", "proxmox", "PUT", r"/network(\?|$)", "/nodes/pve1/network/vmbr1000"),
    Point("bridge-removed", "22", "proxmox", "DELETE", r"/network/vmbr", "/nodes/pve1/network/vmbr1000"),
    Point("iso-uploaded", "22", "proxmox", "POST", r"/upload", "/nodes/pve1/storage/local/content/runbook-"),
    Point("volume-allocated", "22", "proxmox", "POST", r"/storage/nas/content", "/nodes/pve1/storage/nas/content/vm-"),
    Point("disk-resized", "22", "proxmox", "PUT", r"/qemu/\d+/resize", "/nodes/pve1/qemu/"),
    Point("refused-user", "21", "proxmox", "POST", r"/access/users(\?|$)", "/access/users/runbook-expired"),
    Point("refused-token", "21", "proxmox", "POST", r"/token/refused", "/access/users/runbook-expired"),
    Point(
        "tenant-asked-for", "41", "kubernetes", "POST", r"/tenants", "apps.cozystack.io/v1alpha1/Tenant/tenant-root/"
    ),
    Point("tenants-pod", "41", "kubernetes", "PATCH", r"/pods/server-", "v1/Pod/tenant-"),
    Point("tenants-job", "41", "kubernetes", "PATCH", r"/jobs/from-", "batch/v1/Job/tenant-"),
    Point(
        "policy-applied",
        "41",
        "kubernetes",
        "PATCH",
        r"/ciliumnetworkpolicies/deny",
        "cilium.io/v2/CiliumNetworkPolicy/",
    ),
)
SAMPLE = {"volume-asked-for", "token-asked-for", "bridge-applied"}
every_point = pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point,
            marks=()
            if point.name in SAMPLE
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for point in POINTS
    ],
    ids=str,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project and its lab, used by one test after the other."""
    place = homes.make(tmp_path_factory.mktemp("kill"), scale=SCALE)
    place.up()
    yield place
    place.down()


@pytest.fixture(scope="module")
def untouched(home: homes.Home) -> set[str]:
    """What is there before any run."""
    return homes.inventory(home)


@pytest.fixture(scope="module")
def undisturbed(home: homes.Home, untouched: set[str]) -> dict[str, set[str]]:
    """What a run without a kill leaves behind, by step."""
    told = home.runbook("run", "--step", "13")
    assert told.returncode == 0, told.stderr[-2000:]
    return {"13": homes.inventory(home) - untouched, "12": set(), "21": set(), "22": set(), "41": set()}


@pytest.fixture
def fresh(home: homes.Home, undisturbed: dict[str, set[str]]) -> Iterator[homes.Home]:
    """The project as on its first day."""
    begin_anew(home)
    yield home
    control.fault(None, home.lab)
    await_until(lambda: not processes(home))


def begin_anew(home: homes.Home) -> None:
    """Forget runs, secrets and everything the lab has seen."""
    for folder in ("outputs", ".secrets"):
        shutil.rmtree(home.root / folder, ignore_errors=True)
    control.reset(home.lab)


def await_until(reached: Callable[[], Any]) -> Any:
    """What `reached` says as soon as it says something."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (found := reached()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
    return found


def journal(home: homes.Home) -> list[dict[str, Any]]:
    """The rows of the run's journal so far."""
    rows = []
    for path in home.root.glob("outputs/lab/*/changes.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def is_held(home: homes.Home) -> bool:
    """Whether the lab has taken the one request that it holds back."""
    return any(rule["times"] == 0 for rule in control.request(home.lab, "GET", "/status").get("faults", ()))


def processes(home: homes.Home) -> list[int]:
    """The project's processes that live, without the lab's."""
    mark, found = f"RUNBOOK_HOME={home.root}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            ours = mark in told and b"runbook_lib.lab.server" not in told
            if ours and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(process.name))
    return found


def run_until(home: homes.Home, point: Point, *, held: float = HELD_SECONDS) -> subprocess.Popen[bytes]:
    """A run that waits at the point for the answer of the request that is held back."""
    rule = {"system": point.system, "method": point.method, "path": point.path, "times": 1, "slow": held * SCALE}
    control.fault(rule, home.lab)
    running = home.start("run", "--step", point.step)
    await_until(lambda: is_held(home) or running.poll() is not None)
    assert running.poll() is None, "the run ended before the point was reached"
    return running


def end(running: subprocess.Popen[bytes], home: homes.Home, *, kernels: bool) -> None:
    """kill -9 of the runner's process group, and with `kernels` of all that it had started."""
    os.killpg(running.pid, signal.SIGKILL)
    for pid in processes(home) if kernels else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.wait()


def borrowed(home: homes.Home, untouched: set[str]) -> set[str]:
    """What is new on either side and no install of the journal, asked by clients that are not ours."""
    installed = {row["change"]["target"] for row in journal(home) if row.get("change", {}).get("kind") == "install"}
    return {entry for entry in homes.inventory(home) - untouched if not homes.explained(entry, installed)}


@every_point
def test_a_killed_run_leaves_nothing_behind_and_can_be_resumed(
    fresh: homes.Home, untouched: set[str], undisturbed: dict[str, set[str]], point: Point
):
    """At once after the kill a sweep proves both sides clean; resumed, the run ends as if nothing had happened."""
    running = run_until(fresh, point)
    assert any(row["change"]["target"].startswith(point.target) for row in journal(fresh) if row["event"] == "intent")
    end(running, fresh, kernels=len(point.name) % 2 == 0)
    swept = fresh.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "clean: nothing borrowed remains" in swept.stdout
    await_until(lambda: not processes(fresh))
    assert borrowed(fresh, untouched) == set()
    resumed = fresh.runbook("resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert len(fresh.folders()) == 1, "it is the same run"
    assert homes.inventory(fresh) - untouched == undisturbed[point.step]
    assert untouched - homes.inventory(fresh) == set()


def test_an_interrupted_run_cleans_up_after_itself(fresh: homes.Home, untouched: set[str]):
    """One Ctrl-C lets the step take back what it had borrowed; the run says what was not run, and can be resumed."""
    running = run_until(fresh, POINTS[0], held=0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(LONGEST_SECONDS) == 3
    assert borrowed(fresh, untouched) == set()
    await_until(lambda: not processes(fresh))
    run = fresh.runs()[0]
    assert run.finished is not None
    assert {record.step: record.status for record in run.steps} == {"13": Status.NOT_RUN}
    assert fresh.runbook("resume").returncode == 0
    assert fresh.runs()[0].status is Status.PASS


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
def test_a_second_interrupt_ends_at_once_and_a_sweep_mends_it(fresh: homes.Home, untouched: set[str]):
    """Two Ctrl-C do not wait for anything; what they left is known to the journal."""
    running = run_until(fresh, POINTS[0], held=5)
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGINT)
    began = time.monotonic()
    running.wait(LONGEST_SECONDS)
    assert time.monotonic() - began < 5
    assert fresh.runbook("sweep").returncode == 0
    assert borrowed(fresh, untouched) == set()


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
@pytest.mark.parametrize("hundredth", range(0, 250, 25))
def test_a_kill_at_any_moment_can_be_mended(
    fresh: homes.Home, untouched: set[str], undisturbed: dict[str, set[str]], hundredth: int
):
    """Without any request held back: at so many hundredths of a second after the first intent."""
    running = fresh.start("run", "--step", "1x")
    await_until(lambda: journal(fresh) or running.poll() is not None)
    with suppress(subprocess.TimeoutExpired):
        running.wait(hundredth / 100)
    with suppress(ProcessLookupError):
        end(running, fresh, kernels=hundredth % 50 == 0)
    swept = fresh.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    await_until(lambda: not processes(fresh))
    assert borrowed(fresh, untouched) == set()
    assert fresh.runbook("resume").returncode == 0
    assert homes.inventory(fresh) - untouched == undisturbed["13"]


def test_a_dead_owner_does_not_hold_the_site(fresh: homes.Home):
    """While a run lives the site is locked (exit 5); the moment it is killed another may begin."""
    running = run_until(fresh, POINTS[2], held=0.5)
    told = fresh.runbook("run", "--step", "11")
    assert (told.returncode, told.stderr.count("\n")) == (5, 1)
    assert f"process {running.pid} " in told.stderr
    end(running, fresh, kernels=True)
    assert fresh.runbook("run", "--step", "00").returncode == 0
