"""Which node of the emulated cluster answers: the one that was asked by its address."""

from __future__ import annotations

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.proxmox.routing import Call
from runbook_lib.lab.proxmox.state import PveState


@pytest.mark.parametrize(
    ("name", "asked", "node"),
    [
        ("healthy", "10.0.0.2", "pve2"),
        ("healthy", "pve3", "pve3"),
        ("healthy", "127.0.0.1", "pve1"),
        ("healthy", "", "pve1"),
        ("node-offline", "10.0.0.3", "pve1"),
    ],
)
def test_the_node_that_was_asked_is_the_local_one(name: str, asked: str, node: str) -> None:
    """`local` in /cluster/status, and `localhost` in a path; on loopback the first answers."""
    state = PveState.from_scenario(scenario.load(name).proxmox)
    call = Call(state, "GET", "/cluster/status", {"node": "localhost"}, asked=asked)
    assert (call.answering, call.node) == (node, node)
