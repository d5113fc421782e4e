"""Faults: what a rule may say."""

from __future__ import annotations

from typing import Any

import pytest

from runbook_lib.lab.faults import fault_from


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"code": 500}, "no such key: code"),
        ({"system": "pve"}, "system is any, proxmox or kubernetes, not pve"),
        ({"path": "("}, "path is no regular expression"),
        ({"status": 9000}, "status is a number from 100 to 599, not 9000"),
        ({"status": "500"}, "status is a whole number, not '500'"),
        ({"times": "twice"}, "times is a whole number, not 'twice'"),
        ({"times": True}, "times is a whole number, not True"),
        ({"reset": 1}, "reset is true or false, not 1"),
        ({"slow": "2s"}, "slow is a number of seconds, not '2s'"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(entry: dict[str, Any], message: str) -> None:
    """The key and what was expected of it are told, before any request is hit."""
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        fault_from(entry)


@pytest.mark.parametrize("entry", [{"status": 595}, {"slow": 1.5}, {"slow": 2, "times": 1}, {"reset": True}, {}])
def test_a_rule_that_means_something_is_kept(entry: dict[str, Any]) -> None:
    """What was given is what the rule says."""
    fault = fault_from(entry)
    assert {key: getattr(fault, key) for key in entry} == entry
