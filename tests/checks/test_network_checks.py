"""Judgement of networks."""

from __future__ import annotations

import pytest

from runbook_lib import checks
from runbook_lib.facts import Interface, NetworkRange, PendingNetwork, Reach


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


def bridge(node="pve1", name="vmbr0", **given):
    """An active, VLAN-aware Linux bridge."""
    return Interface(node, name, **{"type": "bridge", "active": True, "autostart": True, "vlan_aware": True, **given})


def test_bridge_is_wanted_on_every_node():
    """Missing and inactive both fail, and the message names what is there instead."""
    rows = [bridge(), bridge("pve2", "vmbr1"), bridge("pve3", active=False)]
    found = checks.network.bridge_is_on_every_node(rows)
    assert statuses(found) == ["pass", "fail", "fail"]
    assert "it has vmbr1" in found[1].message


def test_ovs_bridges_count_as_bridges_and_are_vlan_aware():
    """Open vSwitch needs no switch for tags."""
    ovs = bridge(type="OVSBridge", vlan_aware=False)
    assert statuses(checks.network.bridge_is_on_every_node([ovs])) == ["pass"]
    assert statuses(checks.network.bridges_are_vlan_aware([ovs, bridge(name="vmbr1", vlan_aware=False)])) == [
        "pass",
        "warn",
    ]


@pytest.mark.parametrize(("mtu", "expected"), [(None, ["pass"]), (1500, ["pass"]), (9000, ["fail"])])
def test_mtu_is_one_along_a_bridge(mtu, expected):
    """The default counts as 1500."""
    assert statuses(checks.network.mtu_agrees([bridge(), bridge("pve2", mtu=mtu)])) == expected


def test_bridge_larger_than_its_port_fails():
    """A jumbo bridge on an ordinary port drops large packets silently."""
    port = Interface("pve1", "eno1", "eth", True, True)
    found = checks.network.mtu_agrees([bridge(mtu=9000, ports=("eno1",)), port])
    assert statuses(found) == ["fail", "pass"]
    assert "its port eno1 1500" in found[0].message


def test_waiting_network_change_warns_with_the_diff():
    """Headers of the diff are not counted as lines."""
    diff = "--- /etc/network/interfaces\n+++ /etc/network/interfaces.new\n@@ -1 +1,2 @@\n+auto vmbr9\n"
    found = checks.network.no_network_change_waits([PendingNetwork("pve1", diff), PendingNetwork("pve2", "")])
    assert statuses(found) == ["warn", "pass"]
    assert "1 lines wait: +auto vmbr9" in found[0].message


@pytest.mark.parametrize(
    ("one", "other", "meets"),
    [
        ("10.244.0.0/16", "10.244.5.0/24", True),
        ("10.0.0.150-10.0.0.180", "10.0.0.180-10.0.0.200", True),
        ("10.0.0.150-10.0.0.180", "10.0.0.181-10.0.0.200", False),
        ("10.96.0.0/16", "10.97.0.0/16", False),
        ("fd00::/64", "10.0.0.0/8", False),
        ("fd00::/64", "fd00::5", True),
    ],
)
def test_ranges_meet_by_addresses_and_family(one, other, meets):
    """CIDR, first-last and single addresses are compared; two families never meet."""
    found = checks.network.ranges_do_not_meet([NetworkRange("pods", one, "a"), NetworkRange("services", other, "b")])
    assert statuses(found) == (["fail"] if meets else ["pass", "pass"])


def test_machine_pool_lies_inside_the_lan_by_design():
    """That pair may meet; the pool inside the pod range may not."""
    lan = NetworkRange("Proxmox LAN", "10.0.0.0/24", "vmbr0", "lan")
    pool = NetworkRange("machine pool", "10.0.0.150-10.0.0.180", "parameters")
    assert statuses(checks.network.ranges_do_not_meet([lan, pool])) == ["pass", "pass"]
    pods = NetworkRange("pods", "10.0.0.128/25", "Package")
    assert statuses(checks.network.ranges_do_not_meet([pool, pods])) == ["fail"]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [("connected", "pass"), ("refused", "fail"), ("timeout", "fail"), ("dns", "fail"), ("not tried", "skip")],
)
def test_reach_is_judged_by_its_outcome(outcome, expected):
    """Not tried is a skip with its reason."""
    reach = Reach("pod on cp-1", "10.0.0.1:8006", outcome, 0.01, "changes are forbidden")
    assert statuses(checks.network.pods_reach_proxmox([reach])) == [expected]
    assert statuses(checks.network.runner_reaches([reach])) == [expected]
