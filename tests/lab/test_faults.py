"""Faults of the lab: what each rule does to a client of the emulated Proxmox VE."""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from proxmoxer import ResourceException

sys.path.insert(0, str(Path(__file__).parent))

from proxmox_site import eventually, finished, login, refusal, start  # lies beside this file

from runbook_lib.lab import control
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.faults import Fault, Faults, fault_from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab of this module's own."""
    lab = start(tmp_path_factory.mktemp("faults"))
    yield lab
    control.down(lab)


@pytest.fixture
def pve(folder: Path) -> Iterator[Any]:
    """A client of a lab without faults."""
    control.fault(None, folder)
    yield login(folder)
    control.fault(None, folder)


def test_a_task_fails_with_the_text_that_was_asked_for(folder: Path, pve: Any) -> None:
    """And the VM is as it was: the task met its end before it changed anything."""
    control.fault({"task": "^qmstart$", "text": "start failed: QEMU exited with code 1", "times": 1}, folder)
    vm = pve.nodes("pve3").qemu(121)
    assert finished(pve, vm.status.start.post()) == "start failed: QEMU exited with code 1"
    assert vm.status.current.get()["status"] == "stopped"
    assert finished(pve, vm.status.start.post()) == "OK"
    assert finished(pve, vm.status.stop.post()) == "OK"


def test_a_failed_clone_leaves_nothing_behind(folder: Path, pve: Any) -> None:
    """The clone's config and disks go with its task."""
    control.fault({"task": "^qmclone$", "text": "no space left"}, folder)
    upid = pve.nodes("pve1").qemu(9000).clone.post(newid=4001, full=1)
    assert finished(pve, upid) == "clone failed: no space left"
    assert pve.cluster.nextid.get(vmid=4001) == "4001"
    assert not [row for row in pve.nodes("pve1").storage("local-lvm").content.get() if "4001" in row["volid"]]


def test_a_stuck_task_runs_until_somebody_stops_it(folder: Path, pve: Any) -> None:
    """It never ends by itself, and its end is an interruption."""
    control.fault({"task": "qmstart", "stuck": True, "times": 1}, folder)
    upid = pve.nodes("pve3").qemu(121).status.start.post()
    task = pve.nodes("pve3").tasks(upid)
    control.advance(3600, folder)
    assert task.status.get()["status"] == "running"
    task.delete()
    assert eventually(lambda: task.status.get().get("exitstatus")) == "received interrupt"


def test_frozen_resources_tell_yesterday_s_news(folder: Path, pve: Any) -> None:
    """What was answered first is answered again, whatever happens meanwhile."""
    control.fault({"path": "/cluster/resources", "frozen": True}, folder)
    before = pve.cluster.resources.get(type="vm")
    pve.nodes("pve3").qemu(121).config.put(tags="changed")
    assert pve.cluster.resources.get(type="vm") == before
    control.fault(None, folder)
    assert any(row.get("tags") == "changed" for row in pve.cluster.resources.get(type="vm"))


@pytest.mark.parametrize(
    ("kind", "words"), [("expired", "certificate has expired"), ("wrong-host", "IP address mismatch")]
)
def test_a_bad_certificate_is_shown_until_it_is_taken_away(folder: Path, pve: Any, kind: str, words: str) -> None:
    """New connections see it; when the rules are cleared they see a good one."""
    del pve
    where = control.connection(folder).proxmox
    context = ssl.create_default_context(cafile=where.ca_file)
    control.fault({"system": "proxmox", "certificate": kind}, folder)
    with pytest.raises(OSError, match=words):
        urllib.request.urlopen(where.url, context=context, timeout=5)
    control.fault(None, folder)
    assert urllib.request.urlopen(where.url, context=context, timeout=5).status == 200


def test_a_status_comes_with_the_body_of_a_real_server(folder: Path, pve: Any) -> None:
    """An API error has data, message and a reason phrase; 595 has no body."""
    control.fault({"path": "/version$", "status": 500, "reason": "got timeout", "times": 1}, folder)
    assert refusal(pve.version.get).content == "got timeout"
    control.fault({"path": "/version$", "status": 595, "times": 1}, folder)
    assert refusal(pve.version.get).status_code == 595


def test_the_dice_fall_the_same_at_every_start() -> None:
    """A probability hits some requests, and the same ones again."""

    def hits() -> list[bool]:
        faults = Faults(Clock(), [Fault(path="/x", status=500, probability=0.3)])
        return [faults.take("proxmox", "GET", "/x") is not None for _ in range(200)]

    assert hits() == hits()
    assert 30 < sum(hits()) < 90


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"certificate": "bad"}, "expired or wrong-host"),
        ({"probability": 2}, "from 0 to 1"),
        ({"task": "("}, "no regular expression"),
        ({"stuck": 1}, "true or false"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(entry: dict[str, Any], complaint: str) -> None:
    """With what it should be."""
    with pytest.raises(ValueError, match=complaint):
        fault_from(entry)


def test_a_rule_is_plain_data() -> None:
    """What the control plane shows can be written to a scenario."""
    faults = Faults(Clock(), [Fault(task="qmclone")])
    assert fault_from(json.loads(json.dumps(faults.rules()[0]))) == Fault(task="qmclone")


def test_a_fault_hits_one_method_and_so_many_requests(folder: Path, pve: Any) -> None:
    """The first of its kind passes, two are hit, the rest and other methods never were."""
    control.fault({"path": "/pools$", "method": "POST", "status": 503, "after": 1, "times": 2}, folder)
    got = []
    for name in "abcd":
        try:
            pve.pools.post(poolid=f"pool-{name}")
            got.append(200)
        except ResourceException as refused:
            got.append(refused.status_code)
    assert got == [200, 503, 503, 200]
    assert {row["poolid"] for row in pve.pools.get()} >= {"pool-a", "pool-d"}
    for name in "ad":
        pve.pools.delete(poolid=f"pool-{name}")


@pytest.mark.parametrize(
    ("status", "reason", "body"),
    [
        (500, "got timeout", {"data": None, "message": "got timeout\n"}),
        (403, "Permission check failed (/vms/100, VM.Audit)", None),
        (401, "Authentication failed!", ""),
        (595, "No route to host", ""),
        (596, "Connection timed out", ""),
        (599, "Too many redirections", ""),
    ],
)
def test_each_status_has_the_body_it_has_in_life(
    folder: Path, pve: Any, status: int, reason: str, body: dict[str, Any] | str | None
) -> None:
    """An API error tells its message in JSON; what the proxy or the login refuses has no body."""
    control.fault({"path": "/version$", "status": status, "reason": reason, "times": 1}, folder)
    answer = pve._store["session"].request("GET", f"{pve._store['base_url']}/version")
    assert (answer.status_code, answer.reason) == (status, reason)
    if body is None:
        body = {"data": None, "message": f"{reason}\n"}
    assert (answer.text and json.loads(answer.text)) == body


def test_a_delay_passes_in_lab_time(folder: Path, pve: Any) -> None:
    """The answer is the true one, and comes when the lab's clock says so."""
    control.fault({"path": "/version$", "slow": 24, "times": 1}, folder)
    assert pve.version.get()["release"] == "9.2"
    control.fault({"path": "/version$", "slow": 86400, "times": 1}, folder)
    session = pve._store["session"]
    with pytest.raises(requests.exceptions.ReadTimeout):
        session.request("GET", f"{pve._store['base_url']}/version", timeout=0.2)


def test_a_reset_breaks_the_connection_before_an_answer(folder: Path, pve: Any) -> None:
    """A client hears of the connection, not of a status; what was asked for was not done."""
    control.fault({"path": "/pools$", "method": "POST", "reset": True, "times": 1}, folder)
    with pytest.raises(requests.exceptions.ConnectionError):
        pve.pools.post(poolid="never")
    assert "never" not in {row["poolid"] for row in pve.pools.get()}


def test_a_truncated_answer_ends_inside_its_json(folder: Path, pve: Any) -> None:
    """The length promises more than comes: the body breaks off, and the change was made all the same."""
    control.fault({"path": "/cluster/resources", "truncate": True, "times": 1}, folder)
    with pytest.raises(requests.exceptions.RequestException):
        pve.cluster.resources.get()
    assert pve.cluster.resources.get()


def test_half_a_json_document_may_come_whole(folder: Path, pve: Any) -> None:
    """A body that is cut but closed in good order is no JSON; proxmoxer hands the bytes back as they are."""
    control.fault({"path": "/version$", "status": 200, "reason": "OK", "body": '{"data":{"rel', "times": 1}, folder)
    told = pve.version.get()
    assert b'{"data":{"rel' in told["errors"]


@pytest.mark.parametrize(("rule", "status"), [({}, 502), ({"status": 200}, 200), ({"status": 503}, 503)])
def test_a_proxy_s_error_page_is_html(folder: Path, pve: Any, rule: dict[str, Any], status: int) -> None:
    """Whatever its status, the body is a page and says so."""
    control.fault({"path": "/version$", "html": True, "times": 1, **rule}, folder)
    answer = pve._store["session"].request("GET", f"{pve._store['base_url']}/version")
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.text.startswith("<!DOCTYPE html>")


def test_a_probability_hits_a_share_of_the_requests(folder: Path, pve: Any) -> None:
    """About as many as it says, of real requests; without the rule none."""

    def refused() -> int:
        session, url = pve._store["session"], f"{pve._store['base_url']}/version"
        return sum(session.request("GET", url).status_code == 500 for _ in range(60))

    control.fault({"path": "/version$", "status": 500, "probability": 0.5}, folder)
    assert 15 < refused() < 45
    control.fault(None, folder)
    assert refused() == 0
