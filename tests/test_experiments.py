"""Reliability experiments as plans and figures, and measurements beside those of earlier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_workload import RUN, case, node, setting, site

from runbook_lib import baseline, experiments, workload
from runbook_lib.checks import end_to_end
from runbook_lib.facts import Cluster, Stage
from runbook_lib.model import Measurement, Status

IMAGE = "ghcr.io/sergelogvinov/proxmox-csi-controller:v0.19.1"
CONTROLLER: dict[str, Any] = {
    "metadata": {"name": "csi-controller"},
    "spec": {
        "selector": {"matchLabels": {"app": "csi"}},
        "template": {"spec": {"containers": [{"name": "main", "image": IMAGE}]}},
    },
}


class Both:
    """Either side: reads are answered by the end of their path."""

    def get(self, path: str, **_: Any) -> Any:
        return {"expire": 1_900_000_000} if "/token/" in path else {"avail": 10 * 2**30}

    def find(self, path: str) -> Any:
        return {"metadata": {"name": path}}

    def list(self, path: str, **_: Any) -> list[Any]:
        return [{"metadata": {"name": "pod-1", "namespace": "x"}, "spec": {"nodeName": "w2"}}]


def scene(*allow: str, **given: Any) -> experiments.Scene:
    """A site with two workers that consents to these."""
    storage = case("c", shared=True)
    at = experiments.Scene(
        Both(), Both(), site(experiments={"allow": allow}), RUN, setting(storage), Cluster("lab", True, ()),
        storage, node("w2", "pve2", vmid=112), CONTROLLER,
    )  # fmt: skip
    return replace(at, **given)


def test_nothing_is_broken_without_consent():
    """A site that names no experiment gets a preview with what each could hit, and no request."""
    rows = experiments.preview(scene())
    assert [row.name for row in rows] == list(experiments.NAMES)
    assert experiments.trials(scene(), rows).changes == ()
    assert all(row.reason for row in rows)


def test_what_is_broken_has_its_way_back_before_it_is_sent():
    """Each request that takes something away knows how to give it back, or that somebody else does."""
    at = scene("token-expired", "api-unreachable", "node-drained", "worker-killed", "controller-restarted")
    wanted = experiments.trials(at, experiments.preview(at))
    undo = {change.summary.split()[0]: change.undo or {} for change in wanted.changes if change.summary[:4].isupper()}
    assert undo["LETS"]["params"] == {"expire": 1_900_000_000}
    assert undo["SWITCHES"]["path"].endswith("/qemu/112/status/start")
    assert undo["KEEPS"]["delete"]["kind"] == "CiliumNetworkPolicy"


def test_what_no_api_brings_back_is_not_tried():
    """A lost Proxmox node and a thin storage are told with what would make them possible, though they are allowed."""
    at = scene("proxmox-node-lost", "storage-full")
    told = {row.name: row.reason for row in experiments.preview(at)}
    assert "power switch" in told["proxmox-node-lost"]
    assert "would make it possible" in told["storage-full"]
    assert not experiments.trials(at, experiments.preview(at)).changes


def test_a_storage_that_reserves_is_filled_up_to_its_limit():
    """The volume takes all but a little of the room that is free, and bears the run's mark."""
    storage = replace(case("c"), type="lvm")
    at = scene("storage-full", case=storage)
    first = experiments.trials(at, experiments.preview(at)).changes[0]
    assert first.request["params"]["size"] == str(10 * 2**20 - experiments.LEFT_FREE_KIB)  # KiB, as PVE reads it
    assert (first.undo or {})["look"]["mark"] == "volid"


def test_one_worker_alone_is_never_taken_away():
    """With no second worker the pods had nowhere to go."""
    assert experiments.worker(site(), setting(machines=(node("w1", "pve1"),))) is None


def test_a_slow_recovery_fails_and_a_missing_one_too():
    """The longest recovery is judged by the window; one that did not come fails whatever the others took."""
    words = workload.RECOVERED + "pods"
    rows = [Stage("worker-killed", words, True, 700.0), Stage("token-expired", words, False, 3.0)]
    found = list(end_to_end.it_recovers(experiments.recoveries(rows, window=600)))
    assert [row.status for row in found] == [Status.FAIL, Status.FAIL]


def test_what_is_not_as_before_fails():
    """A node that is still cordoned is named with what it was."""
    [row] = end_to_end.all_is_as_before({"node w2": "schedulable"}, {"node w2": "cordoned"})
    assert row.status is Status.FAIL
    assert "before schedulable" in row.message


@pytest.mark.parametrize(
    ("now", "unit", "verdict"),
    [(50.0, "ms", "same"), (100.0, "ms", "worse"), (20.0, "ms", "better"), (100.0, "IOPS", "better"),
     (51.0, "ms", "same")],
)  # fmt: skip
def test_two_medians_differ_when_their_intervals_do_not_meet(now: float, unit: str, verdict: str):
    """More is worse but for rates; what nobody feels is the same."""
    then = Measurement("a", unit, tuple(50 + step / 10 for step in range(10)))
    mine = Measurement("a", unit, tuple(now + step / 10 for step in range(10)))
    assert baseline.compare([mine], [then])[0].verdict == verdict


def test_a_baseline_is_read_as_it_was_written(tmp_path: Any):
    """Every reading is kept, so that intervals can be made anew."""
    path = tmp_path / "baseline.json"
    rows = [Measurement("a", "ms", (1.0, 2.0), subject="x")]
    path.write_text(baseline.text(rows, site="s", run="r"), encoding="utf-8")
    found, run = baseline.read(path)
    assert ([row.values for row in found], run) == ([(1.0, 2.0)], "r")
