"""Judgement of access: logins, privileges, TLS."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, verdict
from runbook_lib.facts import Certificate, Held, LoginAttempt, Permissions, ServedCertificate
from runbook_lib.model import Finding, Status

DAY = 86400


@check(
    title="Good logins are accepted",
    remedy="Check user, realm, password or token; `pveum user list`, `pveum user token list <user>`.",
    source="Sprint 2.1 (authentication by password and by token); POST /access/ticket, GET /version",
)
def logins_are_accepted(attempts: Iterable[LoginAttempt]) -> Iterator[Finding]:
    """One finding per login that should succeed."""
    for attempt in attempts:
        if attempt.expected == "accepted":
            yield _attempted(attempt, attempt.status == 200)


@check(
    title="Bad logins are refused, for the right reason",
    remedy="A login that should fail and does not is an open door; one refused for another reason proves nothing.",
    source="Sprint 2.1; POST /access/ticket and token headers answer 401 with PVE's own phrase",
)
def logins_are_refused(attempts: Iterable[LoginAttempt]) -> Iterator[Finding]:
    """One finding per login that should fail: refused with 401, neither accepted nor failed otherwise."""
    for attempt in attempts:
        if attempt.expected == "refused":
            yield _attempted(attempt, attempt.status == 401)


@check(
    title="The identity may do what the component needs",
    remedy="Grant the missing privileges with the `pveum` lines that notebook 13 shows for this component.",
    source="Sprint 2.1 (permissions); GET /access/permissions; vendor documentation of each component",
)
def privileges_suffice(held: Iterable[Held]) -> Iterator[Finding]:
    """One finding per component and path that it needs: privileges missing there, propagation considered."""
    for entry in held:
        who = entry.permissions.identity
        for path, wanted in entry.needs.items():
            missing = sorted(set(wanted) - effective(entry.permissions, path))
            message = f"{who} on {path}: "
            message += (
                f"missing {', '.join(missing)}" if missing else f"has all {len(wanted)} that {entry.component} needs"
            )
            yield verdict(not missing, f"{entry.component} {path}", message, missing=missing)


@check(
    title="The identity may do no more than the component needs",
    remedy="Give the component its own user and role; a token with privilege separation needs its own ACL entries.",
    source="Least privilege; GET /access/permissions",
)
def privileges_are_least(held: Iterable[Held]) -> Iterator[Finding]:
    """One finding per component: privileges that it holds somewhere and never uses; never worse than a warning."""
    for entry in held:
        wanted = {privilege for names in entry.needs.values() for privilege in names}
        has = {name for privileges in entry.permissions.paths.values() for name in privileges}
        excess = sorted(has - wanted)
        who = entry.permissions.identity
        if excess:
            shown = ", ".join(excess[:6]) + (f" and {len(excess) - 6} more" if len(excess) > 6 else "")
            message = f"{who} holds {len(excess)} privileges that {entry.component} does not use: {shown}"
            yield verdict(Status.WARN, entry.component, message, excess=excess)
        else:
            yield verdict(True, entry.component, f"{who} holds nothing that {entry.component} does not use")


@check(
    title="TLS is verified",
    remedy="Give the site a `ca_file` (pve-root-ca.pem) or a `fingerprint`; never leave `verify: false`.",
    source="Sprint 1.1 and 2.1 (TLS); the certificate the endpoint presents",
)
def tls_is_verified(served: Iterable[ServedCertificate]) -> Iterator[Finding]:
    """One finding per endpoint: by what its certificate is trusted; not at all is a warning the site opted into."""
    for row in served:
        if row.chain_error:
            yield verdict(False, row.endpoint, f"{row.endpoint}: not trusted: {row.chain_error}")
        elif row.verified_by == "nothing":
            yield verdict(Status.WARN, row.endpoint, f"{row.endpoint}: verification is off by this site's parameters")
        else:
            message = f"{row.endpoint}: trusted by {row.verified_by.replace('_', ' ')}, {row.fingerprint[:23]}…"
            yield verdict(True, row.endpoint, message, fingerprint=row.fingerprint)


@check(
    title="TLS refuses a stranger",
    remedy="The client accepted a certificate it must not trust: check proxies and `verify` in the site's parameters.",
    source="Sprint 2.1 (TLS setup): verification is proved by a refusal, not by a success",
)
def tls_refuses_a_stranger(attempts: Iterable[LoginAttempt]) -> Iterator[Finding]:
    """One finding per connection made with a trust that does not fit: it must have been refused."""
    for attempt in attempts:
        if attempt.status == 0 and not attempt.reason:
            yield verdict(None, attempt.case, f"{attempt.case}: not tried; {attempt.note}")
        else:
            message = f"{attempt.case}: {attempt.reason or 'accepted'}"
            yield verdict(attempt.status == 0, attempt.case, message)


@check(
    title="Certificates are current",
    remedy="Renew with `pvecm updatecerts --force` or ACME on the node.",
    source="Sprint 1.1 (TLS certificates); GET /nodes/{node}/certificates/info",
)
def certificates_are_current(
    certificates: Iterable[Certificate],
    *,
    now_epoch: float | None = None,
    certificate_warn_days: int = 30,
    certificate_fail_days: int = 7,
) -> Iterator[Finding]:
    """One finding per certificate: days left."""
    now_epoch = time.time() if now_epoch is None else now_epoch
    for row in certificates:
        subject = f"{row.node}/{row.filename}"
        days = (row.not_after - now_epoch) / DAY
        if row.not_before > now_epoch:
            yield verdict(False, subject, f"{subject} is not valid yet")
            continue
        words = f"expired {-days:.0f} days ago" if days <= 0 else f"is valid for {days:.0f} more days"
        low, high = certificate_fail_days, certificate_warn_days
        status = Status.FAIL if days <= low else Status.WARN if days <= high else Status.PASS
        yield verdict(status, subject, f"{subject} {words}", days=days)


@check(
    title="The certificate names the host",
    remedy="Connect by a name in the certificate, or renew it with this name (`pvecm updatecerts`).",
    source="Sprint 1.1 (TLS certificates); RFC 9110 on host names in certificates",
)
def certificate_names_host(served: Iterable[ServedCertificate]) -> Iterator[Finding]:
    """One finding per endpoint; where trust is by fingerprint a missing name is only a warning."""
    for row in served:
        named = any(_names(entry, row.host) for entry in row.san)
        message = f"{row.endpoint}: {row.host} is {'' if named else 'not '}among {', '.join(row.san) or 'no names'}"
        weak = Status.WARN if row.verified_by == "fingerprint" else Status.FAIL
        yield verdict(Status.PASS if named else weak, row.endpoint, message)


@check(
    title="The API's certificate is the node's own",
    remedy="Something in between presents its own certificate: find the proxy, or update the fingerprint.",
    source="GET /nodes/{node}/certificates/info against the certificate presented",
)
def fingerprint_agrees(served: Iterable[ServedCertificate], certificates: Sequence[Certificate]) -> Iterator[Finding]:
    """One finding per endpoint: what is presented is what some node says it has."""
    known = {row.fingerprint.upper(): row for row in certificates}
    if not known:
        return
    for row in served:
        owner = known.get(row.fingerprint.upper())
        message = f"{row.endpoint} presents {row.fingerprint[:23]}…, "
        message += f"which is {owner.node}'s {owner.filename}" if owner else "which no node knows"
        yield verdict(owner is not None, row.endpoint, message)


def effective(permissions: Permissions, path: str) -> set[str]:
    """The privileges held on a path: its own entry, else what the nearest parent propagates.

    GET /access/permissions lists only paths that are named by some ACL, with inherited privileges already merged in.
    """
    current = path
    while True:
        if current in permissions.paths:
            entry = permissions.paths[current]
            return {name for name, propagates in entry.items() if propagates or current == path}
        if current == "/":
            return set()
        current = current.rpartition("/")[0] or "/"


def _attempted(attempt: LoginAttempt, good: bool) -> Finding:
    if attempt.status == 0 and attempt.note:
        return verdict(None, attempt.case, f"{attempt.case}: not tried; {attempt.note}")
    message = f"{attempt.case}: {attempt.status} {attempt.reason} in {attempt.seconds * 1000:.0f} ms"
    return verdict(good, attempt.case, message)


def _names(pattern: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(pattern) == ipaddress.ip_address(host)
    except ValueError:
        pass
    pattern, host = pattern.lower(), host.lower()
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:]
    return pattern == host
