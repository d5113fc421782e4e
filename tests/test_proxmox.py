"""Facts of Proxmox VE from recorded answers, and its verbs; each case in recorded/proxmox is one JSON file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runbook_lib import errors, proxmox
from runbook_lib.answers import error_for
from runbook_lib.model import to_dict
from runbook_lib.proxmox_verbs import _Multipart

RECORDED = Path(__file__).parent / "recorded" / "proxmox"
CASES = sorted(RECORDED.glob("*/*.json"))


class Recorded(proxmox.Reader):
    """A Proxmox VE that knows a few answers by path; a path with its query goes before the bare one."""

    identity = "runbook@pve!runbook"

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[str] = []

    def answer(self, path: str, /, **params: Any) -> Mapping[str, Any]:
        """The recorded answer, or the error the recorded status stands for."""
        query = "&".join(f"{key}={value}" for key, value in sorted(params.items()))
        self.asked.append(f"{path}?{query}" if query else path)
        found = self.answers.get(self.asked[-1], self.answers.get(path))
        if found is None:
            raise AssertionError(f"nothing is recorded for {self.asked[-1]}")
        if isinstance(found, list):  # one after the other
            found = found.pop(0) if len(found) > 1 else found[0]
        if "status" in found:
            body = json.dumps(found["json"]) if "json" in found else ""
            raise error_for("proxmox", "GET", path, found["status"], found.get("reason", ""), body)
        return found


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fact_reads_recorded_answers(path: Path) -> None:
    """A fact gives exactly the rows its recorded answers stand for, and says what it had to leave out."""
    case = json.loads(path.read_text(encoding="utf-8"))
    pve = Recorded(case["answers"])
    arguments = dict(case.get("arguments", {}))
    if "now" in case:
        ticks = iter(case["now"])
        arguments["clock"] = lambda: next(ticks)
    rows = getattr(proxmox, path.parent.name)(pve, **arguments)
    assert to_dict(rows) == case["rows"]
    left_out = {unread.node: unread.reason for unread in pve.unread}
    assert left_out.keys() == case.get("unread", {}).keys()
    for node, reason in case.get("unread", {}).items():
        assert reason in left_out[node]
    for question in case.get("asked", []):
        assert question in pve.asked


def test_every_fact_has_a_recorded_case() -> None:
    """A fact without a recorded case would be a guess."""
    facts = {path.parent.name for path in CASES}
    wanted = {
        "version", "cluster", "nodes", "guests", "storages", "thin_pools", "volumes", "interfaces", "pending_network",
        "certificates", "clocks", "failed_tasks", "updates", "templates", "permissions", "network_config",
        "sdn_objects", "sdn_status",
    }  # fmt: skip
    assert facts == wanted


def test_refused_login_ends_the_read() -> None:
    """A token that is not accepted is told at once, not once per node."""
    pve = Recorded(
        {
            "/nodes": {"data": [{"node": "pve1", "status": "online"}, {"node": "pve2", "status": "online"}]},
            "/nodes/pve1/storage": {"status": 401, "reason": "Authentication failed!"},
            "/nodes/pve2/storage": {"status": 401, "reason": "Authentication failed!"},
        }
    )
    with pytest.raises(errors.NotAuthenticated):
        proxmox.storages(pve)


def test_node_that_answers_again_is_no_longer_left_out() -> None:
    """What a fact had to leave out is forgotten once a later read is complete."""
    good = {"data": [{"storage": "local", "type": "dir", "content": "iso", "active": 1}]}
    pve = Recorded(
        {
            "/nodes": {"data": [{"node": "pve1", "status": "online"}]},
            "/nodes/pve1/storage": [{"status": 595, "reason": "Connection refused"}, good],
        }
    )
    assert proxmox.storages(pve) == []
    assert [unread.node for unread in pve.unread] == ["pve1"]
    assert len(proxmox.storages(pve)) == 1
    assert pve.unread == []


UPID = "UPID:pve1:0000AAAA:0000BBBB:6B048540:qmclone:9000:root@pam:"
TASK = "/nodes/pve1/tasks/" + proxmox.quoted(UPID)


def status(text: str, exit_status: str | None = None) -> dict[str, Any]:
    """A recorded task status."""
    return {"data": {"upid": UPID, "status": text, "type": "qmclone", "id": "9000", "user": "root@pam"}
            | ({"exitstatus": exit_status} if exit_status else {})}  # fmt: skip


def test_wait_task_reports_progress_and_gives_the_task() -> None:
    """Each new log line is told once, with the fraction it names."""
    lines = [{"n": 1, "t": "create full clone"}, {"n": 2, "t": "transferred 1.0 GiB of 4.0 GiB (25.00%)"}]
    pve = Recorded(
        {
            f"{TASK}/status": [status("running"), status("stopped", "OK")],
            f"{TASK}/log": [{"data": lines[:1]}, {"data": lines[1:]}],
        }
    )
    seen: list[proxmox.Progress] = []
    task = proxmox.wait_task(pve, UPID, on_progress=seen.append, sleep=lambda _: None)
    assert (task.status, task.id, task.started) == ("OK", "9000", 0x6B048540)
    assert [(one.line, one.fraction) for one in seen] == [
        ("create full clone", None),
        ("transferred 1.0 GiB of 4.0 GiB (25.00%)", 0.25),
    ]


def test_wait_task_takes_warnings_for_success() -> None:
    """A task that only warned did what it was asked to."""
    pve = Recorded({f"{TASK}/status": status("stopped", "WARNINGS: 1")})
    assert proxmox.wait_task(pve, UPID).status == "WARNINGS: 1"


def test_failed_task_tells_its_last_lines() -> None:
    """The reason of a failed task stands in its log."""
    pve = Recorded(
        {
            f"{TASK}/status": status("stopped", "clone failed: no space left on device"),
            f"{TASK}/log": {"data": [{"n": n, "t": f"line {n}"} for n in range(1, 9)]},
        }
    )
    with pytest.raises(errors.TaskFailed, match=r"no space left.*line 4 / line 5 / line 6 / line 7 / line 8") as caught:
        proxmox.wait_task(pve, UPID)
    assert caught.value.exit_status == "clone failed: no space left on device"


def test_wait_task_outlives_a_node_that_is_silent_for_a_while() -> None:
    """A node that reboots answers 595 and then goes on."""
    silent = {"status": 595, "reason": "No route to host"}
    pve = Recorded({f"{TASK}/status": [silent, silent, status("stopped", "OK")]})
    assert proxmox.wait_task(pve, UPID, sleep=lambda _: None).status == "OK"


def test_wait_task_ends_when_time_is_up() -> None:
    """A task that never stops is given up with its last line."""
    now = iter(range(0, 10_000, 7))
    pve = Recorded({f"{TASK}/status": status("running"), f"{TASK}/log": {"data": [{"n": 1, "t": "still copying"}]}})
    with pytest.raises(errors.WaitTimeout, match="still copying"):
        proxmox.wait_task(
            pve, UPID, timeout_seconds=60, on_progress=lambda _: None, sleep=lambda _: None, clock=lambda: next(now)
        )


def test_multipart_is_as_long_as_it_says() -> None:
    """PVE takes no chunks, so the length is told before the file is read; fields come before the file."""
    content = bytes(range(256)) * 700
    body = _Multipart({"content": "iso"}, "tiny.iso", io.BytesIO(content), len(content))
    sent = b"".join(iter(lambda: body.read(8192), b""))
    assert len(body) == len(sent)
    assert sent.index(b'name="content"') < sent.index(b'name="filename"; filename="tiny.iso"')
    assert content in sent


def test_upload_refuses_names_that_break_the_form(tmp_path: Path) -> None:
    """A quote in a file name would end the header it stands in."""
    bad = tmp_path / 'a".iso'
    bad.write_bytes(b"x")
    with pytest.raises(errors.UsageError):
        proxmox.upload(None, "pve1", "local", bad)  # type: ignore[arg-type]


FACTS = [
    "version", "cluster", "nodes", "guests", "storages", "thin_pools", "interfaces", "pending_network", "certificates",
    "clocks", "failed_tasks", "updates", "templates", "permissions",
]  # fmt: skip


@pytest.mark.parametrize("sweep", ["sweep-8.4.21.jsonl", "sweep-9.2.11-cluster.jsonl"])
@pytest.mark.parametrize("fact", FACTS)
def test_fact_reads_a_real_server(oracle: Path, sweep: str, fact: str) -> None:
    """Each fact understands what a real server of both supported majors answered."""
    answers = {}
    for line in (oracle / "proxmox" / sweep).read_text(encoding="utf-8").rstrip("\n").split("\n"):
        call = json.loads(line)
        good = call["status"] < 400
        answers[call["path"]] = call["json"] if good else {"status": call["status"], "reason": call["reason"]}
    swept = next(path.split("/")[2] for path in answers if path.endswith("/status") and path.startswith("/nodes/"))
    answers["/nodes"]["data"] = [row for row in answers["/nodes"]["data"] if row["node"] == swept]
    mine = [row for row in answers["/cluster/resources"]["data"] if row["id"] == "qemu/100" and row["node"] == swept]
    answers["/cluster/resources"] = {"data": mine}
    pve = Recorded(answers)
    rows = getattr(proxmox, fact)(pve)
    assert rows or fact in {"thin_pools", "updates", "templates", "failed_tasks", "guests"} or pve.unread
