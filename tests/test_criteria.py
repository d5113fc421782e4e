"""The success criteria, computed from evidence."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from runbook_lib import checks, criteria
from runbook_lib.model import Finding, Run, Status, StepRecord, StepResult

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def proofs(step, status):
    """What the criteria want to see judged in this step, all with one verdict."""
    names = {name for criterion in criteria.CRITERIA if step in criterion.steps for name in criterion.proved_by}
    return [Finding(name, status, "", f"{name} {status}", remedy="do it") for name in sorted(names)]


def record(step, status=Status.PASS, day="2026-11-23", findings=None):
    """One step as it ended on a day."""
    time = f"{day}T10:00:00Z"
    findings = proofs(step, status) if findings is None else findings
    result = StepResult(step, f"Step {step}", "lab", "r", status, time, time, 1.0, tuple(findings))
    return StepRecord(step, f"Step {step}", f"{step}.ipynb", status, finished=time, result=result)


def run(*records, day="20261123"):
    """One run of these steps."""
    return Run(f"{day}T100000Z-0000", "lab", f"{day[:4]}-{day[4:6]}-{day[6:]}T10:00:00Z", tuple(records))


def reading(title, runs):
    """The reading of the criterion that begins like this."""
    return next(row for row in criteria.read(runs, at=NOW) if row.title.startswith(title))


def test_nothing_run_is_not_ready():
    """Every criterion says not run, and readiness is no."""
    readings = criteria.read([], at=NOW)
    assert {row.status for row in readings} == {Status.NOT_RUN}
    assert not criteria.is_ready(readings)


@pytest.mark.parametrize("status", list(Status))
def test_a_criterion_takes_the_status_of_its_step_and_skip_is_not_run(status):
    """A skipped step proved nothing."""
    expected = Status.NOT_RUN if status in {Status.SKIP, Status.NOT_RUN} else status
    assert reading("CSI provisioning", [run(record("32", status))]).status is expected


def test_one_missing_step_of_two_is_not_run():
    """Half of the evidence is not a pass."""
    row = reading("Operations are rehearsed", [run(record("61"), record("63"), record("65"))])
    assert (row.status, row.why) == (Status.NOT_RUN, "66 not run")


def test_a_failure_outweighs_a_missing_step():
    """What is disproved is not merely not run."""
    assert reading("Proxmox VMs are created", [run(record("24", Status.FAIL))]).status is Status.FAIL


def test_a_criterion_reads_its_checks_and_not_the_rest_of_the_step():
    """A step that fails for another reason has still proved that volumes work."""
    other = Finding("csi.volumes_are_quick", Status.FAIL, "", "slow")
    row = reading("CSI provisioning", [run(record("32", Status.FAIL, findings=[*proofs("32", Status.PASS), other]))])
    assert (row.status, row.why) == (Status.PASS, "proved")


def test_a_step_that_did_not_judge_what_counts_proves_nothing():
    """Passing on a dry run is not provisioning."""
    row = reading("CSI provisioning", [run(record("32", findings=[Finding("csi.other", Status.PASS, "", "fine")]))])
    assert row.status is Status.NOT_RUN
    assert "csi.contents_are_intact judged nothing" in row.why


def test_every_check_that_proves_a_criterion_exists():
    """A criterion proved by a check which was renamed could never be met."""
    ids = [entry.id for entry in checks.catalogue()]
    named = [name for criterion in criteria.CRITERIA for name in criterion.proved_by]
    assert len(named) > 8
    assert not [name for name in named if not any(i.startswith(name) for i in ids)]


def test_documents_want_every_step_run_and_every_problem_answered():
    """A failed step is documented as well as a passed one, but not a problem without a remedy."""
    mute = Finding("a.b", Status.FAIL, "", "broken")
    records = [record(step, Status.FAIL) for step in criteria.DOCUMENTED]
    assert reading("The documentation", [run(*records)]).status is Status.PASS
    assert reading("The documentation", [run(*records[1:])]).why == "11 not run"
    assert reading("The documentation", [run(*records, record("32", findings=[mute]))]).status is Status.FAIL


def steps_of(*groups):
    """The steps of these groups of criteria."""
    return {step for criterion in criteria.CRITERIA if criterion.group in groups for step in criterion.steps}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (set(), 0),
        ({"11", "12"}, 1),
        ({"21", "22", "13"}, 0),
        ({"11", "12", "13", "21", "22"}, 2),
        ({"11", "12", "13"} | steps_of("technical"), 3),
        ({"11", "12", "13"} | steps_of("technical", "functional"), 4),
        (steps_of("technical", "functional", "closing"), 5),
    ],
)
def test_a_level_holds_only_with_all_below_it(steps, expected):
    """What is proved out of order waits for what is missing below."""
    reached = criteria.level([run(*map(record, sorted(steps)))], at=NOW)
    assert (reached.level, bool(reached.missing)) == (expected, expected < 5)


def test_a_level_names_what_keeps_from_the_next():
    """The step that has not run, and the level it would lead to."""
    reached = criteria.level([run(record("11"), record("12"), record("13"), record("21"))], at=NOW)
    assert (reached.name, reached.next, [*map(str, reached.missing)]) == ("Assessed", "Prepared", ["22 not run"])


def test_old_evidence_no_longer_counts():
    """Eight days are too long for a pass."""
    row = reading("CSI provisioning", [run(record("32", day="2026-11-15"), day="20261115")])
    assert row.status is Status.NOT_RUN
    assert "too old" in row.why


def test_the_newest_evidence_decides():
    """A failure mended since is mended; a pass broken since is broken."""
    older, newer = run(record("32", Status.FAIL), day="20261122"), run(record("32"))
    assert reading("CSI provisioning", [newer, older]).status is Status.PASS


def test_a_later_run_without_the_step_does_not_hide_its_evidence():
    """A run of step 11 alone leaves what was proved about 32."""
    runs = [run(record("32"), day="20261122"), run(record("11"), StepRecord("32", "", "32.ipynb", Status.NOT_RUN))]
    assert reading("CSI provisioning", runs).status is Status.PASS


def test_everything_proved_is_ready():
    """All steps of all criteria passing or warning, lately."""
    steps = sorted({step for criterion in criteria.CRITERIA for step in criterion.steps})
    readings = criteria.read([run(*map(record, steps))], at=NOW)
    assert criteria.is_ready(readings)
    assert {str(finding.status) for finding in checks.readiness.criteria_are_met(readings)} == {"pass"}


def test_not_run_is_a_warning_in_the_summary_step():
    """The summary itself did its work: it tells what is missing."""
    found = checks.readiness.criteria_are_met(criteria.read([], at=NOW))
    assert {str(finding.status) for finding in found} == {"warn"}


def test_risks_are_read_from_the_checks_that_watch_them():
    """No check, no opinion; a failed one is named."""
    bad = Finding("network.mtu_agrees", Status.FAIL, "vmbr0", "vmbr0: pve1 9000, pve2 1500")
    by_risk = {row.risk: row for row in criteria.watch(run(record("11", findings=[bad])))}
    assert (by_risk["Network trouble"].status, by_risk["Network trouble"].problems) == (Status.FAIL, (bad.message,))
    assert by_risk["Slow answers"].status is Status.NOT_RUN


def test_every_watched_check_exists():
    """A risk that watches a check which was renamed would never warn."""
    ids = [entry.id for entry in checks.catalogue()]
    lost = [name for risk in criteria.RISKS for name in risk.watched_by if not any(i.startswith(name) for i in ids)]
    assert not lost


def test_next_actions_put_failures_first_and_group_one_remedy():
    """Three findings with one cure are one action."""
    warn = [Finding("a.b", Status.WARN, str(n), f"warning {n}", remedy="do a") for n in range(3)]
    fail = Finding("c.d", Status.FAIL, "", "failure", remedy="do c")
    actions = criteria.next_actions(run(record("11", findings=[*warn, fail])))
    assert [(action.what, action.where) for action in actions] == [("failure", "11"), ("warning 0", "11 · 3 findings")]


def test_without_a_run_the_next_action_is_to_run():
    """An empty site gets the one command."""
    assert criteria.next_actions(None)[0].remedy == "runbook run"
