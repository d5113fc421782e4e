"""Monitoring as it is judged: who answers, both sides beside each other, rules, panels and drills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from runbook_lib.checks import monitoring
from runbook_lib.facts import (
    DashboardState,
    DrillStage,
    MonitoringService,
    Panel,
    RuleState,
    ScrapeTarget,
    Told,
)
from runbook_lib.model import Status

PASS, FAIL, WARN, SKIP = Status.PASS, Status.FAIL, Status.WARN, Status.SKIP
STORE = MonitoringService("metrics", "VMCluster", "tenant-root", "vmselect-shortterm", 8481, "", True)
TARGET = ScrapeTarget("proxmox", "10.0.0.1", "http://e:9221/pve", True, 431)
NODE = Told("node/pve1", "pve_up", 1.0, 1.0, 0.0, 12.0)
RULE = RuleState("ProxmoxNodeDown", "pve_up == 0", True)
PANEL = Panel("proxmox-node", "CPU", "pve_cpu_usage_ratio", 3)
FIRING = DrillStage("alert", "firing", 70.0, True, "", 30.0)
FOUND = DrillStage("log line", "found", 6.0, True, "", 1.0)


def statuses(findings: Any) -> list[Status]:
    """The statuses in order."""
    return [finding.status for finding in findings]


@pytest.mark.parametrize(
    ("row", "status", "words"),
    [
        ({}, PASS, "VMCluster behind tenant-root/vmselect-shortterm:8481 answers"),
        ({"answers": False, "told": "503"}, FAIL, "gives no answer: 503"),
        ({"answers": False, "kind": ""}, FAIL, "store of metrics: none"),
        ({"answers": False, "kind": "", "role": "logs"}, WARN, "store of logs: none"),
    ],
)
def test_a_part_is_there_when_it_answers(row: Mapping[str, Any], status: Status, words: str):
    """An object alone is no monitoring; without logs or dashboards the rest can still be tried."""
    [found] = monitoring.every_part_answers([replace(STORE, **row)])
    assert found.status is status and words in found.message


@pytest.mark.parametrize(
    ("problems", "status", "subject"), [((), PASS, "plan"), (("collector: none",), FAIL, "collector")]
)
def test_what_is_in_the_way_of_the_exporter_is_named(problems: tuple[str, ...], status: Status, subject: str):
    """One finding for each thing."""
    [found] = monitoring.exporter_may_be_installed(problems, 3)
    assert (found.status, found.subject) == (status, subject)


@pytest.mark.parametrize(("verified", "status"), [(True, PASS), (False, WARN)])
def test_an_exporter_that_takes_any_certificate_is_warned_of(verified: bool, status: Status):
    """It hands its token to whoever answers."""
    assert statuses(monitoring.exporter_verifies_tls(verified)) == [status]


@pytest.mark.parametrize(("state", "status"), [(True, PASS), (False, FAIL), (None, SKIP)])
def test_an_exporter_that_is_not_installed_is_no_failure(state: bool | None, status: Status):
    """It was not asked for."""
    assert statuses(monitoring.exporter_runs((state, "told"))) == [status]


@pytest.mark.parametrize(
    ("rows", "wanted", "expected"),
    [
        ([TARGET], 1, [PASS]),
        ([replace(TARGET, up=False, error="500")], 1, [FAIL]),
        ([replace(TARGET, up=None)], 1, [WARN]),
        ([TARGET], 2, [PASS, FAIL]),
        ([], 2, [FAIL]),
        ([], 0, [SKIP]),
    ],
)
def test_a_target_that_is_missing_fails_like_one_that_is_down(
    rows: list[ScrapeTarget], wanted: int, expected: list[Status]
):
    """A collector that never heard of a scrape has no target that is down."""
    assert statuses(monitoring.targets_are_up(rows, wanted=wanted)) == expected


def test_a_target_that_is_down_says_why():
    """The collector's own words."""
    [found] = monitoring.targets_are_up([replace(TARGET, up=False, error="unexpected status code: 500")])
    assert found.message == "proxmox of 10.0.0.1: unexpected status code: 500"


@pytest.mark.parametrize(
    ("row", "expected", "words"),
    [
        ({}, [PASS], "nodes: all 1 have a series"),
        ({"series": None}, [FAIL], "1 of 1 without a series: node/pve1"),
        ({"proxmox": None}, [FAIL], "series of what is not there: node/pve1"),
        ({"thing": "lxc/130"}, [PASS], "guests: all 1"),
        ({"thing": "storage/pve1/local", "series": None}, [FAIL], "storages: 1 of 1 without"),
    ],
)
def test_series_are_complete_and_none_is_left_over(row: Mapping[str, Any], expected: list[Status], words: str):
    """Every thing has its series, and nothing else has."""
    found = monitoring.everything_has_its_series([replace(NODE, **row)])
    assert statuses(found) == expected and words in found[0].message


@pytest.mark.parametrize(("age", "status"), [(119.0, PASS), (121.0, FAIL), (None, SKIP)])
def test_the_oldest_of_the_newest_samples_counts(age: float | None, status: Status):
    """One stale series among fresh ones is enough."""
    rows = [
        replace(NODE, age_seconds=5.0 if age is not None else None),
        replace(NODE, thing="node/pve2", age_seconds=age),
    ]
    found = monitoring.series_are_fresh(rows, series_seconds=120)
    assert statuses(found) == [status]
    assert age is None or "node/pve2" in found[0].message


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"series": 1.0}, PASS),
        ({"series": 0.0}, FAIL),
        ({"proxmox": 100.0, "series": 110.0, "tolerance": 10.0}, PASS),
        ({"proxmox": 100.0, "series": 111.0, "tolerance": 10.0}, FAIL),
        ({"series": None}, SKIP),
    ],
)
def test_a_value_may_differ_by_its_tolerance(given: Mapping[str, Any], status: Status):
    """States not at all, what moves by a part of the whole; what is missing is another check's."""
    assert statuses(monitoring.series_agree([replace(NODE, **given)])) == [status]


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, PASS, "evaluated"),
        ({"loaded": False}, FAIL, "the alerter does not have it"),
        ({"error": "bad MetricsQL"}, FAIL, "bad MetricsQL"),
    ],
)
def test_a_rule_counts_when_it_is_evaluated(given: Mapping[str, Any], status: Status, words: str):
    """An object that the alerter never read watches nothing."""
    [found] = monitoring.rules_are_evaluated([replace(RULE, **given)])
    assert found.status is status and words in found.message


def test_a_rule_about_series_that_nobody_writes_can_never_fire():
    """It would stay silent whatever happens."""
    good, bad = monitoring.rules_can_fire([RULE, replace(RULE, name="Other", without_data=("pve_nothing",))])
    assert (good.status, bad.status) == (PASS, FAIL)
    assert "no series of pve_nothing" in bad.message


@pytest.mark.parametrize(("applied", "status"), [(True, PASS), (False, FAIL), (None, WARN)])
def test_a_dashboard_is_where_its_operator_put_it(applied: bool | None, status: Status):
    """No word of the operator is no proof."""
    assert statuses(monitoring.dashboards_are_applied([DashboardState("d", "n", applied, "told")])) == [status]


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, PASS, "all 1 panels have data"),
        ({"series": 0}, FAIL, "CPU (no series)"),
        ({"series": None, "error": "422"}, FAIL, "CPU (422)"),
    ],
)
def test_an_empty_panel_is_named(given: Mapping[str, Any], status: Status, words: str):
    """Whether it asks for nothing or asks badly."""
    [found] = monitoring.panels_have_data([replace(PANEL, **given)])
    assert found.status is status and words in found.message


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, PASS),
        ({"seconds": 301.0}, WARN),
        ({"reached": False}, FAIL),
        ({"stage": "resolved", "seconds": 900.0}, PASS),
    ],
)
def test_an_alert_has_to_come_in_time_and_go(given: Mapping[str, Any], status: Status):
    """Late is a warning, never is a failure."""
    assert statuses(monitoring.alert_comes_and_goes([replace(FIRING, **given)], alert_seconds=300)) == [status]


@pytest.mark.parametrize(
    ("given", "status"),
    [({}, PASS), ({"seconds": 62.0}, WARN), ({"reached": False}, FAIL), ({"machine": "alert"}, SKIP)],
)
def test_a_line_has_to_reach_the_central_store(given: Mapping[str, Any], status: Status):
    """Counted from when the pod had written it."""
    assert statuses(monitoring.logs_are_central([replace(FOUND, **given)], log_seconds=60)) == [status]
