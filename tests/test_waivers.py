"""Findings that somebody answers for: never a pass, and a failure once the waiver has ended."""

from __future__ import annotations

from datetime import date

import pytest

from runbook_lib import checks, waivers
from runbook_lib.errors import ParameterError
from runbook_lib.model import Finding, Status
from runbook_lib.parameters import load_site
from runbook_lib.site import Waiver

TODAY = date(2026, 11, 24)


def waiver(**given):
    """A waiver of the nightly backup that holds for a month."""
    usual = {"check": "audit.backups_are_encrypted", "subject": "nightly", "owner": "storage team"}
    return Waiver(**{**usual, "reason": "the store lies on an encrypted volume", "expires": "2026-12-24", **given})


def finding(status=Status.FAIL, subject="nightly"):
    """A finding that the waiver is about."""
    return Finding("audit.backups_are_encrypted", status, subject, f"{subject} writes in the clear")


def after(found, *given):
    """The finding once the waivers were looked at."""
    return waivers.applied([found], given, today=TODAY)[0]


@pytest.mark.parametrize(
    ("before", "ends", "comes_to"),
    [
        (Status.FAIL, "2026-12-24", Status.WARN),
        (Status.FAIL, "2026-11-24", Status.WARN),
        (Status.FAIL, "2026-11-23", Status.FAIL),
        (Status.WARN, "2026-12-24", Status.WARN),
        (Status.WARN, "2026-11-23", Status.FAIL),
        (Status.PASS, "2026-11-23", Status.PASS),
        (Status.SKIP, "2026-12-24", Status.SKIP),
        (Status.ERROR, "2026-12-24", Status.ERROR),
    ],
)
def test_a_waiver_makes_a_warning_until_its_last_day_and_a_failure_after(before, ends, comes_to):
    """Nothing that is waived passes, and an error is not for anyone to accept."""
    assert after(finding(before), waiver(expires=ends)).status is comes_to


def test_a_waived_finding_names_who_answers_for_it():
    """Owner, day and reason stand in the message and in the evidence."""
    found = after(finding(), waiver())
    assert "accepted by storage team until 2026-12-24: the store lies on an encrypted volume" in found.message
    assert found.evidence["waiver"]["owner"] == "storage team"
    assert found.evidence["before_waiver"] == "fail"


@pytest.mark.parametrize(
    ("given", "covered"),
    [
        ({}, True),
        ({"subject": "*"}, True),
        ({"subject": "night*"}, True),
        ({"check": "audit.*"}, True),
        ({"subject": "weekly"}, False),
        ({"check": "audit.tokens_expire"}, False),
        ({"check": "security.*"}, False),
    ],
)
def test_a_waiver_covers_what_it_names(given, covered):
    """Check and subject both have to fit."""
    assert (after(finding(), waiver(**given)).status is Status.WARN) is covered


def test_the_longer_of_two_waivers_counts():
    """A renewal beside the old one is enough."""
    assert after(finding(), waiver(expires="2026-01-01"), waiver(expires="2027-01-01")).status is Status.WARN


def test_a_dressed_check_keeps_its_thresholds():
    """Step.check reads keywords from the signature, and still finds them."""
    import inspect

    dressed = waivers.under([waiver()], today=TODAY)(checks.audit.tokens_expire)
    assert "token_days" in inspect.signature(dressed).parameters


@pytest.mark.parametrize(
    ("given", "findings", "comes_to", "word"),
    [
        ({}, [finding()], "pass", "30 days left"),
        ({"expires": "2026-11-23"}, [finding()], "fail", "ended 1 days ago"),
        ({"expires": "2026-12-01"}, [finding()], "warn", "7 days left"),
        ({"expires": "2028-01-01"}, [finding()], "warn", "longer than a year"),
        ({}, [], "warn", "covers nothing"),
        ({}, [finding(Status.PASS)], "warn", "covers nothing"),
        ({"expires": "2026-11-23"}, [], "fail", "ended"),
    ],
)
def test_waivers_are_judged_themselves(given, findings, comes_to, word):
    """An ended waiver fails whether or not it covers anything."""
    rows = waivers.states(findings, [waiver(**given)], today=TODAY)
    (judged,) = checks.audit.waivers_hold(rows)
    assert (str(judged.status), word in judged.message) == (comes_to, True), judged.message


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("owner: x", "owner"),
        ("reason: because", "reason"),
        ('expires: "next week"', "is not a day"),
        ('expires: "2026-13-01"', "is not a day"),
        ("check: everything", "check"),
        ("until: 2027-01-01", "unknown key"),
    ],
)
def test_parameters_refuse_a_waiver_that_nobody_could_check(tmp_path, line, word):
    """No owner, no reason, no day: no waiver."""
    fields = {
        "check": "audit.tokens_expire",
        "owner": "platform team",
        "reason": "rotated by hand each month",
        "expires": '"2027-01-01"',
    }
    key, _, value = line.partition(": ")
    fields[key] = value
    body = "".join(f"    {name}: {text}\n" for name, text in fields.items()).replace("    ", "  - ", 1)
    path = tmp_path / "here.yaml"
    path.write_text(f"emulated: true\nlab: {{}}\nwaivers:\n{body}", encoding="utf-8")
    with pytest.raises(ParameterError, match=word):
        load_site(path, root=tmp_path, start_lab=False)
