"""Judgement of Proxmox VE, at and around every threshold."""

from __future__ import annotations

from datetime import date

import pytest

from runbook_lib import checks
from runbook_lib.facts import Clock, Cluster, ClusterMember, Guest, Node, PveVersion, Task, Template, Update
from runbook_lib.model import Measurement

GIB = 2**30
MEMBERS = tuple(ClusterMember(f"pve{n}", n, f"10.0.0.{n}", True, n == 1) for n in (1, 2, 3))


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


def node(name="pve1", **given):
    """A healthy node of 10 CPUs and 100 GiB."""
    usual = {"online": True, "cpus": 10, "cpu_fraction": 0.1, "memory_bytes": 100 * GIB, "memory_used_bytes": 10 * GIB}
    return Node(name, **{**usual, **given})


def guest(vmid=100, **given):
    """A running guest of 1 CPU and 1 GiB on pve1."""
    usual = {"node": "pve1", "kind": "qemu", "status": "running", "template": False, "cpus": 1}
    return Guest(vmid, f"vm-{vmid}", **{**usual, "memory_bytes": GIB, "disk_bytes": 0, **given})


def template(**given):
    """A template that is fit for use."""
    usual = {
        "agent": True,
        "cloudinit_slot": "ide2",
        "scsi_controller": "virtio-scsi-single",
        "boot": "order=scsi0",
        "serial": True,
        "disks": ("scsi0",),
        "networks": ("net0",),
        "os_type": "l26",
    }
    return Template(9000, "ubuntu", "pve1", **{**usual, **given})


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("6.4-15", ["fail", "warn"]),
        ("7.0-1", ["pass", "warn"]),
        ("8.4.21", ["pass", "warn"]),
        ("9.2.11", ["pass", "pass"]),
    ],
)
def test_version_is_judged_by_floor_and_end_of_life(version, expected):
    """Below 7.0 fails; an ended major warns; a supported one passes."""
    found = checks.proxmox.version_is_supported(PveVersion(version, version[:3], "x"), today=date(2026, 11, 23))
    assert statuses(found) == expected


@pytest.mark.parametrize(
    ("today", "expected"), [(date(2026, 5, 1), "pass"), (date(2026, 6, 3), "warn"), (date(2026, 9, 1), "warn")]
)
def test_end_of_life_warns_ninety_days_ahead(today, expected):
    """Proxmox VE 8 ends on 2026-08-31: quiet before June, a warning from then on."""
    found = checks.proxmox.version_is_supported(PveVersion("8.4.1", "8.4", "x"), today=today)
    assert statuses(found)[1] == expected


@pytest.mark.parametrize("quorate", [True, False])
def test_quorum_decides(quorate):
    """A cluster passes with quorum and fails without."""
    found = checks.proxmox.cluster_is_quorate(Cluster("lab", quorate, MEMBERS))
    assert statuses(found) == ["pass" if quorate else "fail"]
    assert ("has lost quorum" in found[0].message) is not quorate


def test_standalone_node_needs_no_quorum():
    """A node without a cluster passes, and the message says what that means."""
    found = checks.proxmox.cluster_is_quorate(Cluster(None, None, MEMBERS[:1]))
    assert statuses(found) == ["pass"]
    assert "standalone" in found[0].message


def test_node_that_does_not_answer_fails_though_it_counts_as_online():
    """Online in the cluster's view is not enough."""
    found = checks.proxmox.every_node_is_online([node(), node("pve2", error="595 no route"), Node("pve3", False)])
    assert statuses(found) == ["pass", "fail", "fail"]


def test_mixed_releases_warn():
    """One finding that names who runs what."""
    rows = [node(pve_version="pve-manager/9.2.11/abc"), node("pve2", pve_version="pve-manager/9.2.4/def")]
    found = checks.proxmox.releases_agree(rows)
    assert statuses(found) == ["warn"]
    assert "pve-manager/9.2.4: pve2" in found[0].message


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [(39, "pass"), (40, "warn"), (79, "warn"), (80, "fail")],
    ids=["below", "warn", "high", "fail"],
)
def test_cpu_overcommit_is_graded(cpus, expected):
    """4 and 8 virtual CPUs a real one are the thresholds."""
    assert statuses(checks.proxmox.cpu_has_headroom([node()], [guest(cpus=cpus)]))[1] == expected


@pytest.mark.parametrize(("used", "expected"), [(84, "pass"), (85, "warn"), (94, "warn"), (95, "fail")])
def test_memory_use_is_graded(used, expected):
    """85 % and 95 % are the thresholds."""
    found = checks.proxmox.memory_has_headroom([node(memory_used_bytes=used * GIB)], [])
    assert statuses(found)[0] == expected


@pytest.mark.parametrize(("promised", "expected"), [(100, "pass"), (101, "warn")])
def test_promising_more_memory_than_there_is_warns(promised, expected):
    """Exactly what is there may be promised; stopped guests and templates do not count."""
    rows = [guest(memory_bytes=promised * GIB), guest(101, memory_bytes=50 * GIB, status="stopped")]
    assert statuses(checks.proxmox.memory_has_headroom([node()], rows))[1] == expected


def test_figures_that_are_missing_are_skipped_not_passed():
    """Without Sys.Audit the API gives no figures: nothing was looked at."""
    blind = node(cpus=None, memory_bytes=None)
    assert statuses(checks.proxmox.cpu_has_headroom([blind], [])) == ["skip"]
    assert statuses(checks.proxmox.memory_has_headroom([blind], [])) == ["skip"]


@pytest.mark.parametrize(("needed", "expected"), [(100, "pass"), (101, "warn")])
def test_loss_of_the_largest_node_is_weighed(needed, expected):
    """Two nodes of 100 GiB: what runs must fit in one of them."""
    found = checks.proxmox.largest_node_may_fail([node(), node("pve2")], [guest(memory_bytes=needed * GIB)])
    assert statuses(found) == [expected]


def test_a_lone_node_cannot_be_lost():
    """A single node is a warning whatever its size."""
    assert statuses(checks.proxmox.largest_node_may_fail([node()], [])) == ["warn"]


@pytest.mark.parametrize(
    ("cpus_free", "memory_free", "expected"), [(9, 90, ["pass", "pass"]), (9.1, 90.1, ["fail", "fail"])]
)
def test_room_is_measured_against_what_the_site_requires(cpus_free, memory_free, expected):
    """Nine idle CPUs and 90 GiB are there; asking for more fails."""
    found = checks.proxmox.room_for_the_plan([node()], cpus_free=cpus_free, memory_free_gib=memory_free)
    assert statuses(found) == expected


@pytest.mark.parametrize(("offset", "expected"), [(0.5, "pass"), (1.5, "warn"), (-5.4, "warn"), (-5.5, "fail")])
def test_clock_skew_is_judged_beyond_the_uncertainty(offset, expected):
    """With ± 0.5 s, skew counts from 1.5 s as a warning and from 5.5 s as a failure."""
    assert statuses(checks.proxmox.clocks_agree([Clock("pve1", offset, 0.5, "UTC")])) == [expected]


def test_failed_task_warns_and_names_its_end():
    """The node with the failed task has no pass beside it."""
    task = Task("pve1", "UPID:x", "vzdump", "100", "root@pam", 1, 2, "job errors")
    found = checks.proxmox.no_task_failed([task], [node(), node("pve2")])
    assert statuses(found) == ["warn", "pass"]
    assert "job errors" in found[0].message


def test_only_security_updates_warn():
    """Other updates are counted, not complained about."""
    rows = [Update("pve1", "vim", "1", "2", "Debian", False), Update("pve2", "openssl", "1", "2", "Debian", True)]
    found = checks.proxmox.no_security_update_waits(rows, [node(), node("pve2")])
    assert statuses(found) == ["pass", "warn"]
    assert "openssl" in found[1].message


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        ({}, "pass", "order=scsi0"),
        ({"agent": False}, "fail", "agent is off"),
        ({"scsi_controller": "lsi"}, "fail", "VirtIO SCSI"),
        ({"scsi_controller": None}, "fail", "default lsi"),
        ({"boot": "cdn"}, "fail", "wants order="),
        ({"boot": None}, "fail", "not set"),
        ({"boot": "order=ide0"}, "fail", "names none of its disks"),
        ({"networks": ()}, "fail", "no network device"),
        ({"cloudinit_slot": None}, "warn", "no cloud-init drive"),
        ({"serial": False}, "warn", "serial0"),
    ],
)
def test_template_faults_are_told_apart(fault, expected, words):
    """What breaks a machine fails; what only hinders it warns."""
    found = checks.proxmox.templates_are_fit([template(**fault)])
    assert statuses(found) == [expected]
    assert words in found[0].message


@pytest.mark.parametrize(("slowest", "errors", "expected"), [(2000, 0, "pass"), (2001, 0, "fail"), (10, 1, "fail")])
def test_response_time_is_judged_by_p95_and_failures(slowest, errors, expected):
    """p95 at the limit passes, above fails, and one failed request fails."""
    measurement = Measurement("GET /version", "ms", (float(slowest),) * 20, errors=errors)
    assert statuses(checks.proxmox.api_is_quick([measurement])) == [expected]


@pytest.mark.parametrize(
    "nothing",
    [
        checks.proxmox.every_node_is_online([]),
        checks.proxmox.templates_are_fit([]),
        checks.proxmox.clocks_agree([]),
        checks.proxmox.api_is_quick([]),
        checks.proxmox.largest_node_may_fail([], []),
    ],
)
def test_looking_at_nothing_is_a_skip(nothing):
    """No rows give one skip, never a pass."""
    assert statuses(nothing) == ["skip"]
    assert nothing[0].message == "nothing to look at"
