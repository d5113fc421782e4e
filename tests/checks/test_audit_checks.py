"""Judgement of the security audit, one row at a time, and its checklist."""

from __future__ import annotations

import re

import pytest

from runbook_lib import audit, checks
from runbook_lib.audit import (
    Account,
    AclEntry,
    AnonymousAnswer,
    ApiToken,
    BackupTarget,
    CanaryNote,
    Denial,
    Firewall,
    FirewallRule,
    GuestFence,
    ImageUse,
    KeptFile,
    PlainSecret,
    Power,
    Refusal,
    ServerFlags,
    Space,
    TrustUsed,
)
from runbook_lib.facts import Interface, Webhook
from runbook_lib.model import Finding, Status

NOW = 1_764_000_000
DAY = 86400


def statuses(findings):
    """The statuses alone, in order."""
    return [str(finding.status) for finding in findings]


@pytest.mark.parametrize(
    ("token", "separated", "comes_to"),
    [
        ("root@pam!tool", False, "fail"),
        ("root@pam!tool", True, "pass"),
        ("olena@pve!tool", False, "warn"),
        ("olena@pve!tool", True, "pass"),
    ],
)
def test_a_token_of_root_without_separation_fails(token, separated, comes_to):
    """Another user's is a warning: it is as mighty as that user."""
    row = ApiToken(token, token.partition("!")[0], separated, 0)
    assert statuses(checks.audit.tokens_are_separated([row])) == [comes_to]


@pytest.mark.parametrize(
    ("days", "comes_to"), [(None, "warn"), (-1, "warn"), (1, "pass"), (400, "pass"), (401, "warn")]
)
def test_a_token_ends_within_a_year_or_so(days, comes_to):
    """Never, long ago and in many years are all warnings."""
    row = ApiToken("a@pve!b", "a@pve", True, 0 if days is None else NOW + days * DAY)
    assert statuses(checks.audit.tokens_expire([row], now_epoch=NOW)) == [comes_to]


ADMINS = AclEntry("/", "group", "admins", "Administrator", True, ("Permissions.Modify", "Sys.Audit"))


@pytest.mark.parametrize(
    ("given", "comes_to"),
    [
        ({"userid": "root@pam"}, ["warn"]),
        ({"userid": "root@pam", "factors": ("totp",)}, ["pass"]),
        ({"userid": "olena@pve", "groups": ("admins",)}, ["fail"]),
        ({"userid": "olena@pve", "groups": ("admins",), "factors": ("webauthn",)}, ["pass"]),
        ({"userid": "olena@pve", "groups": ("admins",), "realm_factor": "oath"}, ["pass"]),
        ({"userid": "olena@pve", "groups": ("admins",), "enabled": False}, ["pass"]),
        ({"userid": "olena@pve"}, ["skip"]),
    ],
)
def test_administrators_enter_with_two_factors(given, comes_to):
    """Root is one by name, others by what a role on / gives them or their group."""
    row = Account(**{"enabled": True, "expires": 0, **given})
    assert statuses(checks.audit.administrators_have_a_second_factor([row], [ADMINS])) == comes_to


@pytest.mark.parametrize(
    ("path", "kind", "privileges", "propagates", "comes_to"),
    [
        ("/", "token", ("VM.Allocate",), True, "fail"),
        ("/", "user", ("VM.Allocate",), True, "warn"),
        ("/", "group", ("VM.Allocate",), True, "warn"),
        ("/", "token", ("VM.Audit", "Sys.Audit"), True, "pass"),
        ("/", "token", ("VM.Allocate",), False, "pass"),
        ("/pool/a", "token", ("VM.Allocate",), True, "skip"),
    ],
)
def test_the_root_of_the_tree_is_not_given_to_tokens(path, kind, privileges, propagates, comes_to):
    """Reading everything is fine, and so is a role that spreads no further."""
    row = AclEntry(path, kind, "x@pve", "Role", propagates, privileges)
    assert statuses(checks.audit.root_path_is_kept([row])) == [comes_to]


def wall(enabled=True, policy="DROP", *rules):
    """The datacenter's firewall."""
    return Firewall("datacenter", enabled, policy, rules)


@pytest.mark.parametrize(
    ("walls", "comes_to"),
    [
        ([wall(enabled=False), Firewall("pve1", True)], ["warn"]),
        ([wall(), Firewall("pve1", True)], ["pass", "pass"]),
        ([wall(), Firewall("pve1", False)], ["pass", "warn"]),
        ([wall(policy="ACCEPT"), Firewall("pve1", True)], ["fail", "pass"]),
    ],
)
def test_a_firewall_that_lets_everything_in_is_worse_than_none(walls, comes_to):
    """While the datacenter's is off, those of the nodes do nothing and are not judged."""
    assert statuses(checks.audit.firewall_is_on(walls)) == comes_to


@pytest.mark.parametrize(
    ("rule", "open_ports"),
    [
        (FirewallRule("ACCEPT", ports="8006"), {"8006"}),
        (FirewallRule("ACCEPT", ports="8000:8100,22", protocol="tcp"), {"8006", "22"}),
        (FirewallRule("ACCEPT", macro="SSH"), {"22"}),
        (FirewallRule("ACCEPT", macro="Web"), set()),
        (FirewallRule("ACCEPT"), {"8006", "22", "3128"}),
        (FirewallRule("ACCEPT", ports="8006", protocol="udp"), set()),
        (FirewallRule("ACCEPT", ports="8006", source="10.0.0.0/24"), set()),
        (FirewallRule("ACCEPT", ports="8006", source="0.0.0.0/0"), {"8006"}),
        (FirewallRule("DROP", ports="8006"), set()),
    ],
)
def test_a_rule_without_a_source_opens_what_it_names(rule, open_ports):
    """Ranges, lists and macros are read as the firewall reads them."""
    found = checks.audit.management_is_not_exposed([wall(True, "DROP", rule)], [])
    assert {row.subject for row in found if row.status is Status.FAIL} == open_ports


@pytest.mark.parametrize(
    ("cidr", "comes_to"), [("10.0.0.1/24", "warn"), ("8.8.8.8/24", "fail"), ("2a01:4f8::1/64", "fail"), (None, "warn")]
)
def test_a_public_address_behind_no_firewall_fails(cidr, comes_to):
    """In a private network it is for the network to close."""
    card = Interface("pve1", "vmbr0", "bridge", True, True, cidr=cidr)
    found = checks.audit.management_is_not_exposed([wall(enabled=False)], [card])
    assert set(statuses(found)) == {comes_to}


def fence(**given):
    """A guest that is fenced in."""
    usual = {"vmid": 101, "name": "web", "node": "pve1", "kind": "qemu", "firewalled": True}
    return GuestFence(**{**usual, **given})


def test_a_privileged_container_fails_and_hardware_warns():
    """Contained guests are counted, not listed."""
    rows = [fence(kind="lxc", privileged=True), fence(vmid=102, hardware=("hostpci0",)), fence(vmid=103)]
    assert statuses(checks.audit.guests_are_contained(rows)) == ["fail", "warn", "pass"]


def test_guests_beside_management_are_counted_by_node():
    """A tag takes a guest off the segment; its bridge without an address is nobody's segment."""
    card = Interface("pve1", "vmbr0", "bridge", True, True, cidr="10.0.0.1/24")
    rows = [fence(untagged_bridges=("vmbr0",)), fence(vmid=102), fence(vmid=103, untagged_bridges=("vmbr9",))]
    (found,) = checks.audit.guests_live_apart(rows, [card])
    assert (str(found.status), found.evidence["beside"]) == ("warn", ["101 web"])


@pytest.mark.parametrize(("firewalled", "comes_to"), [(True, "pass"), (False, "warn")])
def test_a_guest_without_a_firewall_is_a_warning(firewalled, comes_to):
    """One finding a node."""
    assert statuses(checks.audit.guests_have_a_firewall([fence(firewalled=firewalled)])) == [comes_to]


@pytest.mark.parametrize(
    ("kind", "encrypted", "comes_to"), [("pbs", True, "pass"), ("pbs", False, "warn"), ("", False, "warn")]
)
def test_backups_in_the_clear_are_a_warning(kind, encrypted, comes_to):
    """Also where the store is not known."""
    assert statuses(checks.audit.backups_are_encrypted([BackupTarget("j", "s", kind, encrypted)])) == [comes_to]


def test_a_plain_secret_fails_and_is_never_told():
    """The finding says where to look, and how to look."""
    row = PlainSecret("HelmRelease", "cozy-monitoring", "exporter", "values.password", "a value named password")
    (found,) = checks.audit.secrets_are_in_secrets([row])
    assert found.status is Status.FAIL
    assert found.evidence["seen"] == "kubectl get helmrelease -n cozy-monitoring exporter -o yaml"
    assert statuses(checks.audit.secrets_are_in_secrets([])) == ["pass"]


@pytest.mark.parametrize(
    ("kind", "name", "powers", "place", "comes_to"),
    [
        ("ServiceAccount", "cozystack", ("everything",), "platform", "warn"),
        ("ServiceAccount", "deployer", ("reads every Secret",), "tenant", "fail"),
        ("ServiceAccount", "deployer", ("everything",), "other", "fail"),
        ("ServiceAccount", "deployer", ("reads every Secret",), "other", "warn"),
        ("Group", "admins", ("everything",), "outside", "warn"),
        ("Group", "system:unauthenticated", ("holds a role",), "outside", "fail"),
    ],
)
def test_power_is_judged_by_who_has_it(kind, name, powers, place, comes_to):
    """A tenant's and everybody's fail."""
    row = Power(kind, "ns" if kind == "ServiceAccount" else "", name, "binding", "role", powers, place)
    assert statuses(checks.audit.powers_are_needed([row])) == [comes_to]


@pytest.mark.parametrize(
    ("level", "refused", "comes_to"),
    [
        ("", True, "pass"),
        ("", False, "warn"),
        ("", None, "skip"),
        ("baseline", True, "pass"),
        ("privileged", False, "fail"),
        ("privileged", None, "fail"),
    ],
)
def test_a_tenant_that_is_labelled_privileged_fails(level, refused, comes_to):
    """What is not known is skipped, never passed."""
    row = Space("tenant-a", "tenant", level, refused)
    assert statuses(checks.audit.privileged_pods_are_refused([row])) == [comes_to]


@pytest.mark.parametrize(
    ("given", "comes_to"),
    [
        ({}, "pass"),
        ({"privileged": ("p",)}, "fail"),
        ({"host_namespaces": ("p",)}, "fail"),
        ({"host_paths": ("p: /etc/kubernetes",)}, "fail"),
        ({"host_paths": ("p: /",)}, "fail"),
        ({"host_paths": ("p: /srv/data",)}, "warn"),
    ],
)
def test_a_pod_with_a_hand_on_the_host_fails_outside_of_the_platform(given, comes_to):
    """The platform's own are counted and pass."""
    own = Space("cozy-cilium", "platform", "privileged", pods=1, privileged=("cilium",))
    found = checks.audit.only_the_platform_touches_the_host([Space("a", "tenant", "", pods=1, **given), own])
    assert statuses(found) == [comes_to, "pass"]


@pytest.mark.parametrize(
    ("tag", "pinned", "comes_to"),
    [("latest", False, ["fail", "warn"]), ("latest", True, ["pass"]), ("v1", False, ["warn"]), ("", True, ["pass"])],
)
def test_latest_fails_and_a_tag_alone_warns(tag, pinned, comes_to):
    """A digest makes any tag harmless."""
    assert statuses(checks.audit.images_are_pinned([ImageUse("image", tag, pinned, 1, "tenant")])) == comes_to


@pytest.mark.parametrize(
    ("ingress", "egress", "comes_to"), [(("a",), ("b",), "pass"), (("a",), (), "fail"), ((), ("b",), "fail")]
)
def test_a_tenant_is_closed_both_ways(ingress, egress, comes_to):
    """One direction is not enough."""
    assert statuses(checks.audit.tenants_deny_by_default([Denial("tenant-a", ingress, egress)])) == [comes_to]


@pytest.mark.parametrize(
    ("status", "public", "comes_to"),
    [(200, True, "warn"), (200, False, "fail"), (401, False, "pass"), (403, True, "pass"), (500, False, "skip")],
)
def test_a_stranger_is_told_nothing_but_health(status, public, comes_to):
    """An answer that is neither yes nor no proves nothing."""
    assert statuses(checks.audit.strangers_learn_nothing([AnonymousAnswer("/x", status, public)])) == [comes_to]


@pytest.mark.parametrize(("policy", "comes_to"), [("Fail", "pass"), ("Ignore", "warn")])
def test_a_webhook_that_can_be_silenced_is_a_warning(policy, comes_to):
    """Mutating and conversion webhooks are not looked at: they refuse nothing."""
    rows = [Webhook("c", kind, "w", "a/b:443", policy, 1, None) for kind in ("validating", "mutating")]
    assert statuses(checks.audit.webhooks_fail_closed(rows)) == [comes_to]


@pytest.mark.parametrize(
    ("flags", "comes_to"),
    [
        ({"authorization-mode": "AlwaysAllow", "audit-log-path": "x", "encryption-provider-config": "y"}, "fail"),
        ({"authorization-mode": "Node,RBAC"}, "warn"),
        ({"authorization-mode": "Node,RBAC", "audit-log-path": "x", "encryption-provider-config": "y"}, "pass"),
    ],
)
def test_an_api_server_that_allows_everything_fails(flags, comes_to):
    """No audit log and no encryption at rest are warnings."""
    assert statuses(checks.audit.api_server_is_careful([ServerFlags("kube-apiserver-1", flags)])) == [comes_to]


@pytest.mark.parametrize(("refused", "sent", "comes_to"), [(True, 0, "pass"), (True, 1, "fail"), (False, 1, "fail")])
def test_a_change_that_left_this_process_fails(refused, sent, comes_to):
    """Refused afterwards is not refused."""
    row = Refusal("Kubernetes", "DELETE", refused, sent, "")
    assert statuses(checks.audit.nothing_is_changed_unasked([row])) == [comes_to]


def test_one_spelling_of_the_canary_is_enough_to_fail():
    """The finding names the spelling."""
    rows = [CanaryNote("log", "hex", True), CanaryNote("log", "as it is", False), CanaryNote("text", "hex", False)]
    found = checks.audit.redaction_holds(rows)
    assert statuses(found) == ["fail", "pass"]
    assert "hex" in found[0].message


@pytest.mark.parametrize(
    ("row", "comes_to"),
    [
        (KeptFile("token", 0o600, True), ["pass"]),
        (KeptFile("token", 0o640, True), ["fail"]),
        (KeptFile("outputs/a", 0o644, False), ["warn", "pass"]),
        (KeptFile("outputs/a", 0o600, False), ["pass", "pass"]),
        (KeptFile("outputs/a", 0o600, False, holds_known_secret=True), ["pass", "fail"]),
    ],
)
def test_credentials_that_others_may_read_fail(row, comes_to):
    """Results are a warning, and a secret within them a failure."""
    assert statuses(checks.audit.files_are_private([row])) == comes_to


def test_what_the_site_chose_is_a_warning():
    """Believing anyone, and changing a real site unasked."""
    assert statuses(checks.audit.verification_is_on([TrustUsed("Proxmox VE", False, "nothing")])) == ["warn"]
    assert statuses(checks.audit.changes_are_asked_for("allow", False)) == ["warn"]
    assert statuses(checks.audit.changes_are_asked_for("allow", True)) == ["pass"]
    assert statuses(checks.audit.runbook_is_not_root("root@pam!x")) == ["warn"]
    assert statuses(checks.audit.runbook_is_not_root("runbook@pve!runbook")) == ["pass"]


def test_tokens_of_the_account_default_are_counted():
    """Pods with an account of their own are meant to ask the API server."""
    rows = [Space("a", "tenant", "", pods=3, with_token=3, with_default_account=1), Space("b", "tenant", "", pods=1)]
    assert statuses(checks.audit.tokens_are_mounted_where_needed(rows)) == ["warn", "pass"]


# --- the checklist -----------------------------------------------------------------------------------


def line(check, status, severity, *benchmarks, **evidence):
    """A finding of the audit."""
    about = {"severity": severity, "benchmarks": list(benchmarks), **evidence}
    return Finding(check, status, check, "message", title=check, source="GET /x", evidence=about)


def test_the_checklist_begins_with_the_gravest():
    """First by verdict, then by severity; of one seen twice the later counts."""
    rows = [
        line("a", Status.PASS, "critical"),
        line("b", Status.WARN, "low"),
        line("c", Status.WARN, "high"),
        line("d", Status.FAIL, "low"),
        line("a", Status.FAIL, "critical"),
    ]
    assert [row.item for row in audit.checklist(rows)] == ["a", "d", "c", "b"]


def test_a_finding_of_another_step_has_a_severity_too():
    """Its source says where it was seen."""
    (row,) = audit.checklist([Finding("security.x", Status.WARN, "s", "m", source="GET /x")])
    assert (row.severity, row.seen, row.waiver) == ("medium", "GET /x", "")


def test_checks_of_other_steps_answer_numbered_controls_too():
    """Each is a check that there is."""
    known = {info.id for info in checks.catalogue()}
    assert set(audit.OF_OTHER_STEPS) <= known
    (row,) = audit.coverage([Finding("proxmox.no_security_update_waits", Status.WARN, "pve1", "m")])
    assert row.benchmark == "Proxmox VE Hardening Guide 1.1.3"


def test_the_document_tells_what_is_open_before_what_holds():
    """Text of the systems cannot break its tables."""
    given = {"owner": "o", "expires": "2027-01-01", "reason": "r"}
    rows = [line("held", Status.PASS, "low"), line("o|pen<b>", Status.WARN, "high", waiver=given)]
    text = audit.document(rows, site="here", run="20261124T080000Z-aaaa")
    assert text.index("## Open") < text.index("## Holds")
    assert "| warn | high | o\\|pen&lt;b> | message |" in text
    assert "o, until 2027-01-01: r" in text


def test_many_accounts_of_the_platform_are_one_finding():
    """One that may do everything still stands alone."""
    rows = [
        Power("ServiceAccount", f"cozy-{n}", "operator", "b", "r", ("reads every Secret",), "platform")
        for n in range(9)
    ]
    rows.append(Power("ServiceAccount", "cozy-system", "cozystack", "b", "r", ("everything",), "platform"))
    found = checks.audit.powers_are_needed(rows)
    assert [row.subject for row in found] == ["platform reads every Secret", "ServiceAccount cozy-system/cozystack b"]
    assert len(found[0].evidence["accounts"]) == 9


def test_a_benchmark_number_has_the_worst_verdict_of_its_findings():
    """Numbers are sorted as numbers."""
    rows = [
        line("a", Status.PASS, "low", "CIS Kubernetes Benchmark 5.1.10", "CIS Kubernetes Benchmark 5.1.2"),
        line("b", Status.FAIL, "low", "CIS Kubernetes Benchmark 5.1.2"),
    ]
    found = audit.coverage(rows)
    assert [(row.benchmark[-6:].strip("k "), str(row.verdict), row.findings) for row in found] == [
        ("5.1.2", "fail", 2),
        ("5.1.10", "pass", 1),
    ]


def test_the_tally_counts_waived_lines():
    """A waived line is a warning and is counted as waived beside it."""
    given = {"owner": "o", "expires": "2027-01-01", "reason": "r"}
    rows = audit.tally([line("a", Status.WARN, "high", waiver=given), line("b", Status.PASS, "high")])
    high = next(row for row in rows if row["severity"] == "high")
    assert (high["warn"], high["pass"], high["waived"]) == (1, 1, 1)


def test_every_control_tells_severity_and_where_it_is_seen():
    """Also when there is nothing to look at; numbers are spelled as the benchmarks spell them."""
    own = [info for info in checks.catalogue() if info.area == "audit"]
    assert len(own) >= 25
    for info in own:
        name = info.id.partition(".")[2]
        judge = getattr(checks.audit, name)
        arguments = {"runbook_is_not_root": ("a@pve!b",), "changes_are_asked_for": ("ask", False)}.get(name)
        if arguments is None:
            import inspect

            positional = [p for p in inspect.signature(judge).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            arguments = tuple([] for _ in positional)
        for finding in judge(*arguments):
            assert finding.evidence["severity"] in set(audit.Severity), info.id
            assert finding.evidence["seen"], info.id
            for number in finding.evidence["benchmarks"]:
                assert re.search(r"(Benchmark|Guide) \d+(\.\d+){1,3}\Z|Standards baseline\Z", number), number
