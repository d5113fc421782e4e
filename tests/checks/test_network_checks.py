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


def card(node="pve1", name="eno1", **given):
    """An active network card."""
    return Interface(node, name, **{"type": "eth", "active": True, "autostart": False, **given})


def test_bridges_are_wanted_on_every_node_of_the_site():
    """Missing on one and of two kinds both warn; a node the site does not use is not asked."""
    rows = [
        bridge(),
        bridge(name="vmbr1"),
        bridge("pve2"),
        bridge("pve2", "vmbr1", type="OVSBridge"),
        bridge("pve2", "vmbr2"),
    ]
    found = checks.network.bridges_agree(rows)
    assert [(str(f.status), f.subject) for f in found] == [("pass", "vmbr0"), ("warn", "vmbr1"), ("warn", "vmbr2")]
    assert found[2].message == "vmbr2 is on pve2, not on pve1"
    assert statuses(checks.network.bridges_agree(rows, nodes=["pve2"])) == ["pass"] * 3


@pytest.mark.parametrize(
    ("ports", "cards", "expected"),
    [
        (("eno1",), [card()], "pass"),
        (("eno1",), [card(active=False)], "fail"),
        (("eno1",), [], "fail"),
        (("eno1.20",), [card()], "pass"),
        ((), [], "warn"),
    ],
)
def test_a_bridge_has_its_ports_up(ports, cards, expected):
    """A VLAN of a card that is up counts as up; the site's bridge without any leads nowhere."""
    assert statuses(checks.network.bridges_have_their_ports([bridge(ports=ports), *cards])) == [expected]


def test_another_bridge_without_ports_is_private_on_purpose():
    """Only the site's own bridge must lead out."""
    assert statuses(checks.network.bridges_have_their_ports([bridge(name="vmbr9")], bridge="vmbr0")) == ["skip"]


@pytest.mark.parametrize(("card_mtu", "expected"), [(9000, "pass"), (1500, "fail"), (None, "fail")])
def test_mtu_is_followed_through_vlan_and_bond(card_mtu, expected):
    """The smallest one on the way out counts, however far down."""
    rows = [
        bridge(mtu=9000, ports=("bond0.20",)),
        Interface("pve1", "bond0.20", "vlan", True, True, mtu=9000, raw_device="bond0"),
        Interface("pve1", "bond0", "bond", True, True, mtu=9000, ports=("eno1",)),
        card(mtu=card_mtu),
    ]
    assert statuses(checks.network.mtu_holds_to_the_wire(rows)) == [expected]


def test_mtu_of_an_ovs_port_that_ends_at_the_node_does_not_count():
    """An OVSIntPort is an address of the node, and on nobody's way out."""
    rows = [
        bridge(type="OVSBridge", mtu=9000, ports=("eno1", "mgmt")),
        card(mtu=9000),
        Interface("pve1", "mgmt", "OVSIntPort", True, True, mtu=1500),
    ]
    assert statuses(checks.network.mtu_holds_to_the_wire(rows)) == ["pass"]


def test_an_address_has_one_owner():
    """IPv4 and IPv6; link-local ones may repeat."""
    rows = [
        bridge(cidr="10.0.0.1/24", cidr6="fe80::1/64"),
        bridge("pve2", cidr="10.0.0.2/24", cidr6="fe80::1/64"),
        Interface("pve3", "vlan20", "vlan", True, True, cidr="10.0.0.2/16"),
    ]
    found = checks.network.addresses_are_unique(rows)
    assert [(str(f.status), f.subject) for f in found] == [("pass", "10.0.0.1"), ("fail", "10.0.0.2")]
    assert "pve2/vmbr0 and on pve3/vlan20" in found[1].message


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("10.0.0.150-10.0.0.180", "pass"),
        ("10.0.0.1-10.0.0.9", "fail"),
        ("10.0.0.254", "fail"),
        ("fd00::/64", "pass"),
    ],
)
def test_the_pool_holds_neither_node_nor_gateway(pool, expected):
    """IPAM would give them away."""
    rows = [bridge(cidr="10.0.0.1/24", gateway="10.0.0.254")]
    assert statuses(checks.network.machine_pool_is_clear(rows, [pool])) == [expected]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([bridge(cidr="10.0.0.1/24", gateway="10.0.0.254")], ["pass"]),
        ([bridge(cidr="10.0.0.1/24", gateway="10.0.9.254")], ["fail"]),
        ([bridge(cidr="198.51.100.7/32", gateway="198.51.100.1")], ["pass"]),
        ([bridge(cidr="10.0.0.1/24")], ["warn"]),
        ([bridge(cidr="10.0.0.1/24", gateway="10.0.0.254"), card(gateway="10.0.0.253")], ["fail"]),
        (
            [
                bridge(cidr="10.0.0.1/24", gateway="10.0.0.254"),
                bridge("pve2", cidr="10.0.0.2/24", gateway="10.0.0.253"),
            ],
            ["warn", "warn"],
        ),
    ],
)
def test_a_node_has_one_gateway_within_reach(rows, expected):
    """A /32 is a point-to-point link, whose gateway lies outside by design."""
    assert statuses(checks.network.gateway_is_right(rows)) == expected
