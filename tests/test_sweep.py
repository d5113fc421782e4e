"""Clean-up after a kill at any point, and the proof that nothing remains on either side."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from two_sides import FakeKube, FakePve, Killed, World, quiet

from runbook_lib import checks, prepare, sweep
from runbook_lib.errors import NodeUnreachable
from runbook_lib.executors import RUN_LABEL, KubernetesExecutor, ProxmoxExecutor
from runbook_lib.journal import Journal
from runbook_lib.model import Change, ChangeKind, Status
from runbook_lib.plan import Plan, apply, approve, mark

RUN = "20261123T190312Z-4f2a"
OTHER = "20261123T200000Z-beef"
SITE = SimpleNamespace(name="lab")


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory nothing is under way."""
    monkeypatch.setattr(sweep, "GRACE_SECONDS", 0.0)


def executors(world: World, root: Path) -> dict[str, object]:
    """The hands of both systems on one world."""
    pve, kube = FakePve(world), FakeKube(world)
    return {
        "proxmox": ProxmoxExecutor(lambda: pve, root=root, sleep=lambda seconds: None),
        "kubernetes": KubernetesExecutor(lambda: kube),
    }


def borrowed(run: str = RUN) -> tuple[Change, ...]:
    """A pool, a user with a token, a volume and a pod: each kind of thing that is borrowed."""
    comment = f"{mark(run)} borrowed"
    user = f"runbook-t-{run[-4:]}@pve"
    name = f"vm-9199-{mark(run)}"
    from runbook_lib.executors import pool_undo, token_undo, user_undo, volume_undo

    def made(number: int, path: str, params: dict[str, object], undo: dict[str, object], target: str) -> Change:
        request = {"method": "POST", "path": path, "params": params}
        return Change(f"13-{number:02d}", "proxmox", "create", target, "s", request=request, undo=undo)

    content = "/nodes/pve1/storage/local-lvm/content"
    pool = f"pool-{run[-4:]}"
    pod = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"probe-{run[-4:].lower()}", "namespace": "default"},
    }
    return (
        made(1, "/pools", {"poolid": pool, "comment": comment}, pool_undo(pool, run), f"/pools/{pool}"),
        made(2, "/access/users", {"userid": user, "comment": comment}, user_undo(user, run), f"/access/users/{user}"),
        made(
            3,
            f"/access/users/{user}/token/t",
            {"comment": comment},
            token_undo(user, "t", run),
            f"/access/users/{user}/token/t",
        ),
        made(
            4,
            content,
            {"vmid": 9199, "filename": name, "size": "128M"},
            volume_undo("pve1", "local-lvm", name, run),
            f"{content}/{name}",
        ),
        *(
            Change(**{**vars(entry), "id": "13-05"})
            for entry in prepare.borrow_object(pod, run, summary="probe").changes
        ),
    )


def world_of(path: Path | None = None) -> World:
    """A world in which the namespace of the probe is there."""
    world = World(path)
    world.state["objects"].setdefault("/api/v1/namespaces/default", {"metadata": {"name": "default"}})
    world.save()
    return world


def run_plan(world: World, root: Path, run: str = RUN) -> Journal:
    """The journal of a run that borrows everything; a kill comes through the world's hook."""
    plan = Plan("lab", borrowed(run), run)
    journal = Journal(root / "outputs" / "lab" / run / "changes.jsonl")
    apply(plan, approve(plan, "allow", root), journal, executors(world, root))  # type: ignore[arg-type]
    return journal


def remains(world: World) -> list[str]:
    """Everything with the mark of any run, as the state itself knows it."""
    state = world.state
    marked = [name for name, row in state["pools"].items() if "runbook-" in row.get("comment", "")]
    marked += [name for name in state["users"] if name != "root@pam"]
    marked += [row["volid"] for rows in state["volumes"].values() for row in rows]
    marked += [path for path, thing in state["objects"].items() if RUN_LABEL in (thing["metadata"].get("labels") or {})]
    return marked


def nth(number: int, point: str, end: Callable[[], None]) -> Callable[[str, str, str], None]:
    """A hook that ends the process around the n-th mutating request."""
    seen = {"before": 0, "after": 0}

    def hook(now: str, method: str, path: str) -> None:
        seen[now] += 1
        if now == point and seen[now] == number:
            end()

    return hook


def killed() -> None:
    """The end of a process, as far as one process can play it."""
    raise Killed


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 6))
def test_a_kill_around_any_request_leaves_nothing(tmp_path: Path, number: int, point: str) -> None:
    """Between intent and request, and between request and outcome, for each change of the plan."""
    world = world_of()
    world.hook = nth(number, point, killed)
    with pytest.raises(Killed):
        run_plan(world, tmp_path)
    world.hook = quiet
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert remains(world) == []
    assert report.clean and len(report.undone) == number
    assert [entry.change for entry in report.undone] == [f"13-{n:02d}" for n in range(number, 0, -1)]


def test_a_kill_before_the_first_intent_leaves_nothing(tmp_path: Path) -> None:
    """There is no journal then, and the marks alone are the proof."""
    report = sweep.sweep(SITE, RUN, executors(world_of(), tmp_path), root=tmp_path)
    assert report.clean and report.undone == () and report.looked_at == ("kubernetes", "proxmox")


@pytest.mark.parametrize("point", ["intent", "outcome"])
@pytest.mark.parametrize("number", range(5))
def test_a_kill_while_the_journal_is_written_leaves_nothing(tmp_path: Path, number: int, point: str) -> None:
    """The last line is torn; what it would have said is found out from the servers."""
    world = world_of()
    journal = run_plan(world, tmp_path)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    cut = 2 * number + (0 if point == "intent" else 1)
    journal.path.write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
    # What the journal no longer tells, the marks do.
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert report.clean and remains(world) == []


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 6))
def test_a_kill_during_the_undo_leaves_nothing(tmp_path: Path, number: int, point: str) -> None:
    """Clean-up is begun again and skips what is gone."""
    world = world_of()
    run_plan(world, tmp_path)
    world.hook = nth(number, point, killed)
    with pytest.raises(Killed):
        sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    world.hook = quiet
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert report.clean and remains(world) == []


def test_a_second_sweep_sends_nothing(tmp_path: Path) -> None:
    """What is undone is known as undone."""
    world = world_of()
    run_plan(world, tmp_path)
    sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    world.sent.clear()
    again = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert world.sent == [] and again.undone == () and again.clean


def test_without_a_journal_the_marks_are_enough(tmp_path: Path) -> None:
    """Somebody removed the outputs folder; both sides still tell what was borrowed."""
    world = world_of()
    run_plan(world, tmp_path).path.unlink()
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert report.clean and remains(world) == []
    assert {entry.system for entry in report.undone} == {"proxmox", "kubernetes"}


def test_a_sweep_of_one_run_leaves_another_alone(tmp_path: Path) -> None:
    """Another run of the same site keeps what it borrowed."""
    world = world_of()
    run_plan(world, tmp_path)
    run_plan(world, tmp_path, OTHER)
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert report.clean and len(remains(world)) == 4  # pool, user with its token, volume, object
    assert all(OTHER[-4:] in name.lower() for name in remains(world))


def test_a_sweep_of_the_site_takes_every_run(tmp_path: Path) -> None:
    """Without a run's name nothing of any is left."""
    world = world_of()
    run_plan(world, tmp_path)
    run_plan(world, tmp_path, OTHER)
    assert sweep.sweep(SITE, None, executors(world, tmp_path), root=tmp_path).clean
    assert remains(world) == []


def test_what_somebody_else_made_is_left_alone(tmp_path: Path) -> None:
    """A pool of the same name without the mark is not ours, whatever the journal believes."""
    world = world_of()
    journal = Journal(tmp_path / "outputs" / "lab" / RUN / "changes.jsonl")
    journal.intent(borrowed()[0])
    world.state["pools"]["pool-4f2a"] = {"comment": "accounting"}
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert "left alone" in report.undone[0].proof
    assert world.state["pools"] == {"pool-4f2a": {"comment": "accounting"}}


def test_an_object_that_took_the_name_is_left_alone(tmp_path: Path) -> None:
    """The label of the run decides, not the name."""
    world = world_of()
    journal = Journal(tmp_path / "outputs" / "lab" / RUN / "changes.jsonl")
    journal.intent(borrowed()[4])
    path = "/api/v1/namespaces/default/configmaps/probe-4f2a"
    world.state["objects"][path] = {"metadata": {"name": "probe-4f2a", "uid": "u", "labels": {}}}
    assert "left alone" in sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path).undone[0].proof
    assert path in world.state["objects"]


def test_what_is_installed_stays_and_is_listed(tmp_path: Path) -> None:
    """A pool that a run made to stay carries the run's mark, and not the word of a borrowed thing."""
    world = world_of()
    world.state["pools"]["runbook"] = {"comment": f"Test environment; {mark(RUN)}"}
    report = sweep.sweep(SITE, None, executors(world, tmp_path), root=tmp_path)
    assert report.clean and [thing.target for thing in report.installed] == ["/pools/runbook"]
    assert "runbook" in world.state["pools"]


def test_an_install_without_an_outcome_is_named(tmp_path: Path) -> None:
    """Preparing again goes on from there; the sweep only says what it sees."""
    journal = Journal(tmp_path / "outputs" / "lab" / RUN / "changes.jsonl")
    journal.intent(Change(**{**vars(borrowed()[0]), "kind": ChangeKind.INSTALL}))
    report = sweep.sweep(SITE, RUN, executors(world_of(), tmp_path), root=tmp_path)
    assert report.unfinished == ("13-01 create /pools/pool-4f2a: is not there",)


class Unreachable(FakePve):
    """A Proxmox VE of which one node does not answer."""

    def get(self, path: str, /, **params: object) -> object:
        if path.endswith("/qemu"):
            raise NodeUnreachable(f"GET {path}", "595 No route to host", status=595)
        return super().get(path, **params)


def test_what_cannot_be_looked_at_is_not_called_clean(tmp_path: Path) -> None:
    """Absence on a node that does not answer is not proved."""
    world = world_of()
    hands = executors(world, tmp_path)
    hands["proxmox"] = ProxmoxExecutor(lambda: Unreachable(world), root=tmp_path)
    report = sweep.sweep(SITE, RUN, hands, root=tmp_path)
    assert not report.clean
    assert report.unseen == ("GET /nodes/pve1/qemu: 595 No route to host",)
    findings = checks.preparation.nothing_borrowed_remains(report)
    assert [finding.status for finding in findings] == [Status.WARN]


def test_one_stuck_thing_does_not_keep_the_others(tmp_path: Path) -> None:
    """What cannot be undone is a failed finding, and open in the journal for the next sweep."""
    world = world_of()
    journal = run_plan(world, tmp_path)

    def refuse(point: str, method: str, path: str) -> None:
        if point == "before" and (method, path) == ("DELETE", "/pools"):
            raise NodeUnreachable("DELETE /pools", "595", status=595)

    world.hook = refuse
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert [entry.target for entry in report.failed[:1]] == ["/pools/pool-4f2a"]
    assert [entry.id for entry in journal.open_changes()] == ["13-01"]
    assert any(finding.status is Status.FAIL for finding in checks.preparation.nothing_borrowed_remains(report))
    assert remains(world) == ["pool-4f2a"]


def test_a_step_takes_back_only_its_own(tmp_path: Path) -> None:
    """Another step of the same run still uses what it borrowed."""
    world = world_of()
    journal = run_plan(world, tmp_path)
    report = sweep.clean_up(journal, executors(world, tmp_path), run=RUN, only={"13-01", "13-04"})  # type: ignore[arg-type]
    assert [entry.change for entry in report.undone] == ["13-04", "13-01"]
    assert [entry.id for entry in journal.open_changes()] == ["13-05", "13-03", "13-02"]


def test_the_proof_is_a_finding_per_thing_and_one_for_the_search(tmp_path: Path) -> None:
    """The reader sees what went and where was looked."""
    world = world_of()
    journal = run_plan(world, tmp_path)
    report = sweep.clean_up(journal, executors(world, tmp_path), run=RUN)  # type: ignore[arg-type]
    findings = checks.preparation.nothing_borrowed_remains(report)
    assert {finding.status for finding in findings} == {Status.PASS} and len(findings) == 6
    assert findings[-1].message == "searched kubernetes and proxmox for the mark of the run: nothing borrowed remains"


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import os, signal
from pathlib import Path
import test_sweep as own
world = own.world_of(Path({state!r}))
world.hook = own.nth({number}, {point!r}, lambda: os.kill(os.getpid(), signal.SIGKILL))
own.run_plan(world, Path({root!r}))
"""


@pytest.mark.parametrize(("number", "point"), [(1, "before"), (4, "after"), (5, "after")])
def test_a_real_kill_9_leaves_nothing(tmp_path: Path, number: int, point: str) -> None:
    """The process is killed by the kernel; another one finds journal and world on disk and cleans up."""
    state = tmp_path / "world.json"
    code = CHILD.format(
        tests=str(Path(__file__).parent), state=str(state), root=str(tmp_path), number=number, point=point
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    world = World(state)
    report = sweep.sweep(SITE, RUN, executors(world, tmp_path), root=tmp_path)
    assert len(report.undone) == number and report.clean
    assert remains(world) == []
