"""Judgement of logins, privileges and TLS."""

from __future__ import annotations

import pytest

from runbook_lib import checks
from runbook_lib.checks.security import effective
from runbook_lib.facts import Certificate, Held, LoginAttempt, Permissions, ServedCertificate

DAY = 86400


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


def served(**given):
    """A certificate that is trusted by the CA file."""
    usual = {"host": "10.0.0.1", "subject": "CN=pve1", "issuer": "CN=PVE", "san": ("10.0.0.1", "pve1"), "not_after": 0}
    return ServedCertificate("pve1:8006", **{**usual, "fingerprint": "AA:BB", "verified_by": "ca_file", **given})


@pytest.mark.parametrize(
    ("status", "accepted", "refused"), [(200, "pass", "fail"), (401, "fail", "pass"), (500, "fail", "fail")]
)
def test_login_is_judged_by_what_was_expected(status, accepted, refused):
    """A 500 is neither an acceptance nor the right refusal."""
    good = LoginAttempt("password", "accepted", status, "OK", 0.1)
    bad = LoginAttempt("wrong password", "refused", status, "authentication failure", 0.1)
    assert statuses(checks.security.logins_are_accepted([good, bad])) == [accepted]
    assert statuses(checks.security.logins_are_refused([good, bad])) == [refused]


def test_login_that_was_not_tried_is_skipped_with_its_reason():
    """The reason stands in the finding."""
    found = checks.security.logins_are_refused(
        [LoginAttempt("expired token", "refused", 0, "", 0, "changes are forbidden")]
    )
    assert statuses(found) == ["skip"]
    assert "changes are forbidden" in found[0].message


def test_privileges_follow_the_nearest_path_and_propagation():
    """An entry on the path hides its parent; what does not propagate stays where it is."""
    held = Permissions("a@pve", {"/": {"Sys.Audit": False, "VM.Audit": True}, "/vms/100": {"VM.Clone": True}})
    assert effective(held, "/") == {"Sys.Audit", "VM.Audit"}
    assert effective(held, "/nodes/pve1") == {"VM.Audit"}
    assert effective(held, "/vms/100") == {"VM.Clone"}


def test_missing_privileges_are_named_by_path():
    """One finding a path."""
    held = Permissions("a@pve!t", {"/vms": {"VM.Audit": True}})
    needs = {"/vms": ("VM.Audit", "VM.Config.Disk"), "/storage": ()}
    found = checks.security.privileges_suffice([Held("CSI", held, needs)])
    assert statuses(found) == ["fail", "pass"]
    assert "missing VM.Config.Disk" in found[0].message


def test_excess_privileges_warn():
    """More than needed works, and is a risk."""
    held = Permissions("root@pam", {"/": {"VM.Audit": True, "Sys.PowerMgmt": True}})
    found = checks.security.privileges_are_least([Held("exporter", held, {"/": ("VM.Audit",)})])
    assert statuses(found) == ["warn"]
    assert "Sys.PowerMgmt" in found[0].message


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "pass"), ({"verified_by": "nothing"}, "warn"), ({"chain_error": "certificate has expired"}, "fail")],
)
def test_tls_is_judged_by_what_it_rests_on(given, expected):
    """Switched off is a warning the site asked for; not trusted is a failure."""
    assert statuses(checks.security.tls_is_verified([served(**given)])) == [expected]


def test_stranger_must_have_been_refused():
    """An accepted connection with the wrong trust fails."""
    refused = LoginAttempt("another CA", "refused", 0, "self-signed certificate in chain", 0.1)
    accepted = LoginAttempt("another CA", "refused", 200, "", 0.1)
    assert statuses(checks.security.tls_refuses_a_stranger([refused, accepted])) == ["pass", "fail"]


@pytest.mark.parametrize(
    ("days", "expected"), [(31, "pass"), (30, "warn"), (8, "warn"), (7, "fail"), (0, "fail"), (-3, "fail")]
)
def test_certificate_days_are_graded(days, expected):
    """30 and 7 days are the thresholds."""
    row = Certificate("pve1", "pve-ssl.pem", "CN=pve1", "CN=PVE", ("pve1",), 0, 1000 + days * DAY, "AA")
    assert statuses(checks.security.certificates_are_current([row], now_epoch=1000)) == [expected]


def test_certificate_of_tomorrow_fails():
    """Not valid yet is as bad as expired."""
    row = Certificate("pve1", "x.pem", "", "", (), 5000, 10**9, "AA")
    assert statuses(checks.security.certificates_are_current([row], now_epoch=1000)) == ["fail"]


@pytest.mark.parametrize(
    ("host", "san", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1",), "pass"),
        ("PVE1.example.org", ("pve1.example.org",), "pass"),
        ("pve1.example.org", ("*.example.org",), "pass"),
        ("a.pve1.example.org", ("*.example.org",), "fail"),
        ("::1", ("0:0:0:0:0:0:0:1",), "pass"),
        ("10.0.0.2", ("10.0.0.1",), "fail"),
    ],
)
def test_host_is_looked_for_among_the_names(host, san, expected):
    """Addresses, letter case and one level of wildcard."""
    assert statuses(checks.security.certificate_names_host([served(host=host, san=san)])) == [expected]


def test_missing_name_matters_less_where_a_fingerprint_is_pinned():
    """The pin already says who it is."""
    row = served(host="other", verified_by="fingerprint")
    assert statuses(checks.security.certificate_names_host([row])) == ["warn"]


def test_unknown_fingerprint_means_somebody_in_between():
    """What is presented must be what some node says it has."""
    known = Certificate("pve1", "pve-ssl.pem", "", "", (), 0, 0, "aa:bb")
    assert statuses(checks.security.fingerprint_agrees([served()], [known])) == ["pass"]
    assert statuses(checks.security.fingerprint_agrees([served(fingerprint="CC:DD")], [known])) == ["fail"]
