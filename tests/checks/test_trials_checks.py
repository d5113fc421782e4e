"""Judgement of what was tried out: bridges, the network afterwards, a disk that grows."""

from __future__ import annotations

import pytest

from runbook_lib import checks
from runbook_lib.facts import GrownDisk, Interface, NetworkConfig, TriedBridge
from runbook_lib.model import Change
from runbook_lib.prepare import Wanted

GIB = 2**30
UP = Interface("pve1", "vmbr1000", "bridge", True, True)


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


def test_a_planned_bridge_passes_and_a_problem_is_a_skip_with_its_reason():
    """What is not tried was not found good."""
    paths = ("/nodes/pve1/network/vmbr1000", "/nodes/pve2/storage/nas/content/vm-1-x")
    changes = tuple(Change(path, "proxmox", "create", path, "") for path in paths)
    found = checks.trials.trials_may_begin(Wanted(changes, problems=("pve2: network changes wait there",)))
    assert [(str(f.status), f.subject) for f in found] == [("skip", "pve2"), ("pass", "pve1"), ("pass", "storage")]
    assert "changes wait" in found[0].message


@pytest.mark.parametrize(
    ("interface", "waits", "expected"),
    [
        (UP, False, "pass"),
        (None, False, "fail"),
        (UP, True, "fail"),
        (Interface("pve1", "vmbr1000", "bridge", False, True), False, "fail"),
    ],
)
def test_a_bridge_came_up_when_it_is_active_and_nothing_waits(interface, waits, expected):
    """Listed is not enough: what waits is listed too."""
    assert statuses(checks.trials.bridges_came_up([TriedBridge("pve1", "vmbr1000", interface, waits)])) == [expected]


def test_the_network_is_compared_setting_by_setting():
    """Changed, new and gone are named; a node that does not answer is no proof."""
    before = [NetworkConfig(node, {"vmbr0": {"mtu": "1500"}, "eno1": {}}) for node in ("pve1", "pve2", "pve3")]
    after = [
        NetworkConfig("pve1", {"vmbr0": {"mtu": "1500"}, "eno1": {}}),
        NetworkConfig("pve2", {"vmbr0": {"mtu": "9000"}, "vmbr7": {}}),
    ]
    found = checks.trials.network_is_as_before(before, after)
    assert statuses(found) == ["pass", "fail", "skip"]
    assert found[1].message == "pve2: eno1 is gone; vmbr0 mtu: 1500 → 9000; vmbr7 is new"


@pytest.mark.parametrize(
    ("config", "listed", "expected"),
    [
        (2 * GIB, 2 * GIB, "pass"),
        (2 * GIB, 2 * GIB + 2**22, "pass"),
        (2 * GIB, GIB, "fail"),
        (GIB, 2 * GIB, "fail"),
        (2 * GIB, None, "fail"),
    ],
)
def test_a_disk_has_grown_when_both_sides_say_so(config, listed, expected):
    """The config is a claim, the storage's list the proof."""
    disk = GrownDisk("pve1", 9198, "scsi0", "nas:9198/disk.raw", 2 * GIB, config, listed)
    assert statuses(checks.trials.disks_have_grown([disk])) == [expected]
