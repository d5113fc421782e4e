"""How Proxmox VE lets us in: the certificate it presents, and logins that are tried on purpose."""

from __future__ import annotations

import secrets as randomness
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from runbook_lib import errors, secrets, wire
from runbook_lib import proxmox_login as login
from runbook_lib.answers import colons
from runbook_lib.facts import LoginAttempt, ServedCertificate
from runbook_lib.proxmox_session import as_token, password_of, trust_of, wire_of

SHORT_NAMES = {NameOID.COMMON_NAME: "CN", NameOID.ORGANIZATION_NAME: "O", NameOID.ORGANIZATIONAL_UNIT_NAME: "OU"}
DAY = timedelta(days=1)
EXPIRED, DISABLED = "expired token", "disabled token"


def served_certificate(site: Any) -> ServedCertificate:
    """The certificate the site's Proxmox VE presents, whether or not the configured trust accepts it.

    Raises Unavailable when nothing answers, TlsError when what answers does not speak TLS.
    """
    endpoint = getattr(site, "proxmox", site)
    parts = urlsplit(login.api_base(endpoint.url))
    host, port = parts.hostname or "", parts.port or 8006
    presented = x509.load_der_x509_certificate(_presented(host, port, endpoint.timeout_seconds))
    fingerprint = colons(presented.fingerprint(SHA256()).hex())
    verified_by, chain_error = _judge(endpoint, host, port, fingerprint)
    try:
        names = presented.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        san = tuple(str(name.value) for name in names)
    except x509.ExtensionNotFound:
        san = ()
    return ServedCertificate(
        endpoint=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        host=host,
        subject=spelled(presented.subject),
        issuer=spelled(presented.issuer),
        san=san,
        not_after=int(presented.not_valid_after_utc.timestamp()),
        fingerprint=fingerprint,
        verified_by=verified_by,
        chain_error=chain_error,
    )


def _presented(host: str, port: int, timeout: float) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # we want to see it, not to talk
    with _handshake(host, port, timeout, context) as channel:
        return channel.getpeercert(binary_form=True) or b""


def _handshake(host: str, port: int, timeout: float, context: ssl.SSLContext) -> ssl.SSLSocket:
    place: dict[str, Any] = {"system": "proxmox", "method": "TLS", "path": f"{host}:{port}"}
    try:
        plain = socket.create_connection((host, port), timeout=timeout)
    except OSError as error:
        raise errors.Unavailable(
            f"no connection to {host}:{port}", str(error), "is the address right?", **place
        ) from error
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except OSError as error:
        plain.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            raise
        raise errors.TlsError(f"{host}:{port} does not speak TLS", str(error), **place) from error


def _judge(endpoint: Any, host: str, port: int, fingerprint: str) -> tuple[str, str]:
    trust = trust_of(endpoint)
    if not trust.verify:
        return "nothing", ""
    if trust.fingerprint:
        same = colons(trust.fingerprint) == fingerprint
        return "fingerprint", "" if same else f"it is not the certificate that is pinned, {colons(trust.fingerprint)}"
    verified_by = "ca_file" if trust.ca_file else "system"
    try:
        _handshake(host, port, endpoint.timeout_seconds, trust.context()).close()
    except ssl.SSLCertVerificationError as error:
        return verified_by, error.verify_message or str(error)
    except errors.RunbookError as error:
        return verified_by, error.came or str(error)
    return verified_by, ""


def spelled(name: x509.Name) -> str:
    """A distinguished name the way Proxmox VE and openssl spell it: /CN=…/O=…"""
    return "".join(f"/{SHORT_NAMES.get(part.oid, part.oid.dotted_string)}={part.value!s}" for part in name)


def login_attempts(
    site: Any,
    *,
    expired: tuple[str, str] | None = None,
    disabled: tuple[str, str] | None = None,
    observers: Iterable[wire.Observer] = (),
    kube: secrets.KubeSecret | None = None,
) -> list[LoginAttempt]:
    """Logins that must be refused, then those that must be accepted, each tried exactly once.

    `expired` and `disabled` are (token id, secret) of tokens the caller has made so; without them these cases say
    in `note` that they were not tried. A refusal takes PVE three seconds by its own design.
    """
    endpoint = getattr(site, "proxmox", site)
    known = password_of(endpoint, kube=kube)
    user = known[0] if known else endpoint.user or (endpoint.token_id or "root@pam").partition("!")[0]
    name, _, realm = user.rpartition("@")
    wrong, stranger = randomness.token_urlsafe(18), f"runbook-{randomness.token_hex(4)}"
    rows = [
        _by_password("wrong password", "refused", endpoint, user, wrong, observers),
        _by_password("unknown user", "refused", endpoint, f"{stranger}@{realm}", wrong, observers),
        _by_password("wrong realm", "refused", endpoint, f"{name}@{stranger}", wrong, observers),
        _by_token("expired token", "refused", endpoint, expired, observers),
        _by_token("disabled token", "refused", endpoint, disabled, observers),
    ]
    own = None
    if endpoint.token_id and endpoint.token_secret:
        own = (endpoint.token_id, secrets.resolve(endpoint.token_secret, kube=kube))
    rows.append(_by_token("token", "accepted", endpoint, own, observers))
    if known:
        rows.append(_by_password("password", "accepted", endpoint, *known, observers))
    else:
        rows.append(_untried("password", "accepted", "the site names no password to log in with"))
    return rows


def ticket_renewal(
    site: Any, *, observers: Iterable[wire.Observer] = (), kube: secrets.KubeSecret | None = None
) -> LoginAttempt:
    """A ticket exchanged for a fresh one without the password, as a long run does it every hour."""
    endpoint = getattr(site, "proxmox", site)
    known = password_of(endpoint, kube=kube)
    if known is None:
        return _untried("ticket renewal", "accepted", "the site names no password to log in with")
    auth = _ticket(endpoint, *known, observers)
    auth.login()
    return _tried("ticket renewal", "accepted", auth.renew)


def stranger_attempts(site: Any) -> list[LoginAttempt]:
    """Connections made with a trust that cannot fit; one that is not refused means that nothing is verified.

    `reason` is the TLS refusal and status 0; an accepted connection has the server's status. No credentials are sent.
    """
    endpoint = getattr(site, "proxmox", site)
    cases = ("another fingerprint", "another authority")
    if not endpoint.verify:
        return [_untried(case, "refused", "verification is off by this site's parameters") for case in cases]
    pinned = endpoint.model_copy(update={"ca_file": None, "fingerprint": "00" * 32})
    with tempfile.TemporaryDirectory() as folder:
        authority = Path(folder) / "authority.pem"
        authority.write_bytes(_foreign_authority())
        foreign = endpoint.model_copy(update={"ca_file": str(authority), "fingerprint": None})
        return [_knock(case, other) for case, other in zip(cases, (pinned, foreign), strict=True)]


def _knock(case: str, endpoint: Any) -> LoginAttempt:
    started = time.perf_counter()
    session = login.proxmox_session(wire_of(endpoint, retries=0), trust_of(endpoint))
    try:
        answer = session.get(
            f"{login.api_base(endpoint.url)}/version", timeout=endpoint.timeout_seconds, allow_redirects=False
        )
    except errors.TlsError as refusal:
        return LoginAttempt(case, "refused", 0, refusal.came or str(refusal), time.perf_counter() - started)
    except errors.ApiError as error:
        return LoginAttempt(case, "refused", 0, "", time.perf_counter() - started, error.came)
    return LoginAttempt(case, "refused", answer.status_code, "", time.perf_counter() - started)


def _foreign_authority() -> bytes:
    """An authority made for this moment, whose key is forgotten at once."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority that signed nothing")])
    at = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), at, at + DAY)
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, SHA256())
    return signed.public_bytes(Encoding.PEM)


def _by_password(
    case: str, expected: str, endpoint: Any, user: str, password: str, observers: Iterable[wire.Observer]
) -> LoginAttempt:
    return _tried(case, expected, _ticket(endpoint, user, password, observers).login)


def _by_token(
    case: str, expected: str, endpoint: Any, token: tuple[str, str] | None, observers: Iterable[wire.Observer]
) -> LoginAttempt:
    if token is None:
        return _untried(case, expected, f"there is no {case} to try")
    pve = as_token(endpoint, *token, observers=observers, retries=0)
    return _tried(case, expected, lambda: pve.get("/version"))


def _ticket(endpoint: Any, user: str, password: str, observers: Iterable[wire.Observer]) -> login.TicketAuth:
    pve_wire = wire_of(endpoint, observers=observers, retries=0)
    session = login.proxmox_session(pve_wire, trust_of(endpoint))
    return login.TicketAuth(session, endpoint.url, user, password, timeout=pve_wire.timeout)


def _untried(case: str, expected: str, why: str) -> LoginAttempt:
    return LoginAttempt(case, expected, 0, "", 0.0, why)


def _tried(case: str, expected: str, attempt: Callable[[], Any]) -> LoginAttempt:
    started = time.perf_counter()
    try:
        attempt()
    except errors.ApiError as error:
        note = "" if error.status else error.came
        return LoginAttempt(case, expected, error.status, error.reason, time.perf_counter() - started, note)
    return LoginAttempt(case, expected, 200, "OK", time.perf_counter() - started)
