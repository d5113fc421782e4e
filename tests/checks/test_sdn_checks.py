"""Judgement of software-defined networks."""

from __future__ import annotations

import pytest

from runbook_lib import checks
from runbook_lib.facts import Interface, SdnObject, SdnStatus


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


@pytest.mark.parametrize(
    ("status", "expected"), [("available", "pass"), ("pending", "warn"), ("error", "fail"), ("", "fail")]
)
def test_each_node_says_whether_it_has_a_zone(status, expected):
    """The node's message is kept, because it names what is missing."""
    found = checks.sdn.sdn_is_available([SdnStatus("pve1", "vnet", "workers", status, "missing vmbr7")])
    assert statuses(found) == [expected]
    assert "missing vmbr7" in found[0].message


def test_waiting_sdn_changes_warn():
    """New, changed and deleted alike."""
    rows = [SdnObject("zone", "lab", "vlan"), SdnObject("vnet", "later", "vnet", waits="new")]
    assert statuses(checks.sdn.no_sdn_change_waits(rows)) == ["pass", "warn"]


@pytest.mark.parametrize(
    ("kind", "mtu", "carrier", "expected"),
    [
        ("vxlan", 1450, None, "pass"),
        ("vxlan", 1451, None, "fail"),
        ("evpn", 8950, 9000, "pass"),
        ("vxlan", None, None, "pass"),
        ("vlan", 1500, None, "skip"),
    ],
)
def test_an_overlay_needs_fifty_bytes(kind, mtu, carrier, expected):
    """The default leaves them free; a VLAN zone has no such header."""
    node = Interface("pve1", "vmbr0", "bridge", True, True, mtu=carrier, cidr="10.0.0.1/24")
    assert statuses(checks.sdn.overlay_mtu_fits([SdnObject("zone", "wide", kind, mtu=mtu)], [node])) == [expected]


def test_without_sdn_there_is_nothing_to_look_at():
    """Not using it is no fault."""
    found = [checks.sdn.sdn_is_available([]), checks.sdn.no_sdn_change_waits([]), checks.sdn.overlay_mtu_fits([], [])]
    assert [statuses(each) for each in found] == [["skip"]] * 3
