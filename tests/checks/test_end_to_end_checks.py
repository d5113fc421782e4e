"""Judgement of a workload's life: stages, turned-away requests, checksums, and what is left."""

from __future__ import annotations

import pytest

from runbook_lib.checks import end_to_end
from runbook_lib.facts import ClaimDisk, PersistentVolume, Spoken, Stage, Window
from runbook_lib.model import Status
from runbook_lib.prepare import Wanted

SUM, OTHER = "a" * 64, "b" * 64


def said(what: str, pod: str = "data-0", output: str = f"{SUM}  /data/pattern\n", code: int | None = 0) -> Spoken:
    """What a command in a pod said."""
    return Spoken("restart", "", what, pod, code, output)


def test_what_a_site_cannot_have_is_a_skip_and_not_a_pass():
    """Each problem is a skip that says what is missing."""
    [found] = end_to_end.workload_can_be_tried(Wanted(problems=("ingress: the site has no IngressClass",)))
    assert (found.status, found.subject) == (Status.SKIP, "ingress")


def test_stage_that_was_not_reached_fails_with_its_cause():
    """The first state that did not come is named, with the cause known from storage and a first safe step."""
    rows = [
        Stage(
            "volumes", "pods of data", False, 300.0, "0 of 2 pods are ready; FailedAttachVolume: VM is locked (backup)"
        ),
        Stage("volumes", "disk of data-data-0", False, 0.0, "not waited for"),
    ]
    [found] = end_to_end.workload_did_as_wanted(rows)
    assert found.status is Status.FAIL
    assert "pods of data did not come" in found.message and "locked by another task" in found.message
    assert found.remedy.startswith("First: ")


def test_reached_stage_passes_and_tells_what_was_seen():
    """The words of each state stand in the message, with the seconds of the longest."""
    [found] = end_to_end.workload_did_as_wanted(
        [Stage("deploy", "roll-out of web", True, 12.5, "3 of 3 pods are ready")]
    )
    assert (found.status, found.message) == (Status.PASS, "deploy: 3 of 3 pods are ready (12.5 s)")


def test_nothing_tried_is_a_skip():
    """Without stages there is nothing to look at."""
    [found] = end_to_end.workload_did_as_wanted([])
    assert found.status is Status.SKIP


@pytest.mark.parametrize(
    ("window", "status"),
    [
        (Window("rolling update", 20, 0, 0), Status.PASS),
        (Window("rolling update", 20, 1, 1, (0,)), Status.FAIL),
        (Window("rolling update", 0, 0, 0), Status.SKIP),
    ],
)
def test_one_failed_request_is_one_too_many(window: Window, status: Status):
    """In stages that interrupt nothing, none may fail; a stage that nobody saw proves nothing."""
    [found] = end_to_end.nobody_was_turned_away([window])
    assert found.status is status


def test_failures_tell_how_many_came_in_a_row():
    """A burst is another trouble than a trickle."""
    [found] = end_to_end.nobody_was_turned_away([Window("configuration", 40, 6, 5, (0, 503))])
    assert "6 of 40 requests failed (no answer, HTTP 503), 5 in a row" in found.message


def test_deploying_turns_nobody_away():
    """Before the client there is nobody who could be."""
    [found] = end_to_end.nobody_was_turned_away([Window("deploy", 0, 0, 0)])
    assert found.status is Status.SKIP


def test_equal_checksum_is_no_loss():
    """What is read after its pod was replaced is what was written."""
    [found] = end_to_end.no_data_is_lost(
        [said("write"), said("read", output=f"/data/pattern: OK\n{SUM}  /data/pattern\n")]
    )
    assert found.status is Status.PASS


@pytest.mark.parametrize("reading", [said("read", output=f"{OTHER}  /data/pattern\n"), said("read", output="", code=1)])
def test_other_or_missing_contents_are_lost_data(reading: Spoken):
    """Another checksum fails, and so does a file that is gone."""
    [found] = end_to_end.no_data_is_lost([said("write"), reading])
    assert found.status is Status.FAIL


def test_restored_volume_is_compared_with_its_source():
    """The reader's pod is another than the writer's."""
    [found] = end_to_end.no_data_is_lost([said("write"), said("restored", pod="reader")])
    assert (found.status, found.subject) == (Status.PASS, "reader restart")


def test_reading_without_a_writing_proves_nothing():
    """There is nothing to compare with, so it is a skip."""
    [found] = end_to_end.no_data_is_lost([said("read")])
    assert found.status is Status.SKIP


def test_pattern_that_was_not_written_fails():
    """A full disk shows here first."""
    [found] = end_to_end.no_data_is_lost([said("write", output="No space left on device", code=1)])
    assert found.status is Status.FAIL and "No space left" in found.message


VOLID = "nas:9999/vm-9999-pvc-1.raw"


def test_disk_that_outlives_its_workload_is_found():
    """The volume is gone and its disk is not: the room that nobody gets back."""
    disk = ClaimDisk("pve1", "nas", VOLID, "pvc-1", 1 << 30)
    found = {row.subject: row.status for row in end_to_end.workload_left_nothing([VOLID], [], [disk], home="e2e")}
    assert found == {"volumes": Status.PASS, "disks": Status.FAIL}


def test_volumes_of_others_are_not_ours():
    """A claim of another namespace stays where it is."""
    other = PersistentVolume("pvc-9", "Bound", "csi", "h", "c", "tenant/data", "Delete", 1, (), ())
    assert {row.status for row in end_to_end.workload_left_nothing([VOLID], [other], [], home="e2e")} == {Status.PASS}
