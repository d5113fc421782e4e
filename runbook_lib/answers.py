"""What came back over the wire, as one error of the tree: what was asked, what came, what to try."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from collections.abc import Mapping
from http import HTTPStatus

import urllib3.exceptions as u3

from runbook_lib import errors
from runbook_lib.secrets import redact

_NAMES = {"proxmox": "PVE", "kubernetes": "Kubernetes"}

_BY_STATUS: Mapping[int, type[errors.ApiError]] = {
    401: errors.NotAuthenticated,
    403: errors.NotAllowed,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Conflict,  # an expired watch or continue token: read again
    412: errors.Conflict,
    429: errors.Throttled,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
    595: errors.NodeUnreachable,
    596: errors.NodeUnreachable,
    599: errors.NodeUnreachable,
}

# PVE answers 500 to most of what goes wrong in a handler; only the text tells more (facts, section 6.3).
_PVE_MISSING = re.compile(r"does not exist|no such|not found|unable to find", re.IGNORECASE)
_PVE_CONFLICT = re.compile(
    r"is locked|can't lock file|already exists|already defined|already running|detected modified configuration"
    r"|got timeout|is running - destroy failed|file changed by other user",
    re.IGNORECASE,
)


def system_name(system: str) -> str:
    """The system as messages call it: PVE, Kubernetes."""
    return _NAMES.get(system, system)


def shown_path(system: str, path: str) -> str:
    """`path` as the vendor's documentation writes it: without query and without /api2/json."""
    bare = path.partition("?")[0]
    if system == "proxmox":
        bare = re.sub(r"^(?:https?://[^/]+)?/(?:[^/]+/)?api2/(?:json|extjs)(?=/|$)", "", bare) or "/"
    return redact(bare)


def error_for(
    system: str, method: str, path: str, status: int, reason: str = "", body: str | bytes = ""
) -> errors.ApiError:
    """The error that an answer with `status` stands for; to be raised by the caller."""
    shown = shown_path(system, path)
    said, fields = _said(system, status, reason, body)
    verb = "refused" if status < 500 or status == 501 or status == 500 else "could not answer"
    kind = _kind(system, status, said)
    if kind is errors.NodeUnreachable:
        verb = "could not reach the node for"
    return kind(
        f"{system_name(system)} {verb} {method} {shown} ({status})",
        said,
        _hint(system, shown, status, kind, said, fields),
        system=system,
        method=method,
        path=shown,
        status=status,
        reason=redact(reason),
        errors=fields,
    )


def _kind(system: str, status: int, said: str) -> type[errors.ApiError]:
    if system == "proxmox" and status in {400, 500}:
        if _PVE_CONFLICT.search(said):
            return errors.Conflict
        if _PVE_MISSING.search(said):
            return errors.NotFound
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if system == "kubernetes" and status >= 500:
        return errors.Unavailable
    return errors.Refused


def _said(system: str, status: int, reason: str, body: str | bytes) -> tuple[str, dict[str, str]]:
    """The server's own words in one line, and its words per parameter."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body or ""
    data = _json(text)
    message = str(data.get("message") or "").strip()
    fields = data.get("errors")
    named = {str(key): one_line(str(value)) for key, value in fields.items()} if isinstance(fields, Mapping) else {}
    if system == "kubernetes":
        details = data.get("details")
        causes = details.get("causes") if isinstance(details, Mapping) else None
        named = {
            str(cause.get("field") or "object"): one_line(str(cause.get("message", "")))
            for cause in causes or ()
            if isinstance(cause, Mapping)
        }
    # PVE ≤ 7 sends no message in JSON; the reason phrase is its first line
    line = one_line(message or reason or _standard_phrase(status))
    if system == "proxmox" and named:
        line += " " + ", ".join(f"{key}: {value}" for key, value in sorted(named.items()))
    return line, named


def _json(text: str) -> Mapping[str, object]:
    try:
        data = json.loads(text) if text[:1] == "{" else {}
    except ValueError:
        return {}
    return data if isinstance(data, Mapping) else {}


def one_line(text: str, longest: int = 400) -> str:
    """`text` in one redacted line without control characters."""
    flat = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", redact(text)).split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def _standard_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return {595: "no connection to the node", 596: "the node broke off", 599: "the node gave no answer"}.get(
            status, "no reason given"
        )


def _hint(
    system: str, path: str, status: int, kind: type[errors.ApiError], said: str, fields: Mapping[str, str]
) -> str:
    if system == "proxmox" and status == 403:
        return _pve_permission_hint(said)
    if system == "proxmox" and status == 401:
        if "csrf" in said.lower():
            return "log in again: the CSRF token belongs to another ticket"
        if path.endswith("/access/ticket"):
            return "check user, realm (user@pam or user@pve) and password, and that the user is enabled and not expired"
        return "check the token id (user@realm!name), its secret and its expiry: `pveum user token list USER`"
    if kind is errors.NodeUnreachable:
        node = re.search(r"/nodes/([^/]+)", path)
        name = node[1] if node else "the node"
        return f"is {name} up? `pvecm status`, and `systemctl status pveproxy pvedaemon` on {name}"
    if system == "proxmox" and status == 501:
        return "this release does not know the path or method; see its API viewer"
    if kind is errors.Refused and fields:
        return "correct " + ", ".join(sorted(fields))
    hints = {
        errors.NotAuthenticated: "the token or client certificate is not accepted any more; renew the kubeconfig",
        errors.NotAllowed: "grant it by a Role or ClusterRole: `kubectl auth can-i --list`",
        errors.NotFound: "",
        errors.Conflict: "somebody else holds or changed it; wait, read it again, then repeat",
        errors.Throttled: "fewer requests at a time, or try again later",
        errors.Unavailable: "look at the server's health, then repeat",
        errors.Refused: "",
    }
    return hints.get(kind, "")


def _pve_permission_hint(said: str) -> str:
    found = re.search(r"\((/[^,)]*),\s*([^)]+)\)", said)
    if "proper ticket" in said or "API token" in said:
        return "this path wants a login by password, not a token"
    if not found:
        return "compare `pveum user permissions USER@REALM` with what this path needs in the API viewer"
    path, privileges = found[1], found[2].replace("|", " or ")
    return f"{privileges} is missing on {path}: `pveum acl modify {path} --tokens 'USER@REALM!NAME' --roles ROLE`"


# --- no answer at all --------------------------------------------------------------------------------------------


class Dripping(u3.HTTPError):
    """The answer came so slowly that its end was not awaited."""

    def __init__(self) -> None:
        super().__init__("the answer dripped")


_DISCONNECTED = "the connection was closed before the whole answer came"


def transport_error(
    system: str, method: str, path: str, where: str, error: Exception, *, timeout: float, attempts: int = 1
) -> errors.ApiError:
    """The error that a request without a usable answer stands for; `where` is host:port, `timeout` in seconds.

    At an unknown authority this asks the Proxmox VE server for its certificate once more, to show its fingerprint.
    """
    shown = shown_path(system, path)
    asked = f"{system_name(system)} at {where} gave no answer to {method} {shown}"
    kind: type[errors.ApiError] = errors.Unavailable
    if _is_tls(error):
        kind, came, hint = errors.TlsError, *_tls_words(system, where, error)
        asked = f"{system_name(system)} at {where} was not trusted for {method} {shown}"
    elif isinstance(error, u3.ProxyError):
        came, hint = (
            f"the proxy gave no connection: {one_line(str(error.original_error))}",
            "see HTTPS_PROXY and NO_PROXY",
        )
    elif isinstance(error, u3.NameResolutionError):
        came, hint = "the name does not resolve", "check the url's host, and DNS"
    elif isinstance(error, u3.ConnectTimeoutError) and not isinstance(error, u3.NewConnectionError):
        came, hint = f"no connection within {timeout:.1f} s", "is a firewall or a missing route between here and there?"
    elif isinstance(error, u3.NewConnectionError):
        came, hint = _connect_words(error), "is the service running and the port right (PVE 8006, Kubernetes 6443)?"
    elif isinstance(error, Dripping):
        came, hint = "the answer came so slowly that its end was not awaited", "look at the server's load and the link"
    elif isinstance(error, u3.TimeoutError):
        came, hint = f"nothing came for {timeout:.1f} s", "raise timeout_seconds if this server is known to be slow"
    elif isinstance(error, u3.DecodeError | u3.InvalidHeader | u3.LocationValueError):
        kind, came, hint = (
            errors.BadAnswer,
            f"the answer cannot be read: {one_line(str(error), 160)}",
            "is a proxy in between?",
        )
    else:
        came, hint = _DISCONNECTED, "see the server's log (pveproxy, kube-apiserver), and any proxy in between"
    if kind is errors.Unavailable and attempts > 1:
        came += f", {attempts} times"
    if kind is errors.Unavailable and method not in {"GET", "HEAD", "OPTIONS"}:
        hint += "; whether the change happened is not known"
    return kind(asked, came, hint, system=system, method=method, path=shown)


def _is_tls(error: BaseException) -> bool:
    if isinstance(error, u3.ProxyError):
        return isinstance(error.original_error, u3.SSLError)
    return isinstance(error, u3.SSLError)


def _tls_words(system: str, where: str, error: Exception) -> tuple[str, str]:
    text = str(error)
    pinned = re.search(r'Expected "([0-9a-f]+)", got "([0-9a-f]+)"', text)
    if pinned:
        want, got = (colons(digest) for digest in pinned.groups())
        hint = (
            "compare with `pvenode cert info` on the node; only if it was renewed, put the new one into the parameters"
        )
        return f"its SHA-256 fingerprint is {got}, the parameters pin {want}", hint
    words = {
        "certificate has expired": ("its certificate has expired", "renew it: `pvecm updatecerts --force` or ACME"),
        "not yet valid": ("its certificate is not valid yet", "check the clocks of both machines"),
        "Hostname mismatch": ("its certificate is for another host name", "use a name of the certificate in url"),
        "IP address mismatch": ("its certificate is not for this address", "use a name of the certificate in url"),
        "WRONG_VERSION_NUMBER": ("it does not speak TLS", "check the port"),
    }
    for sign, (came, hint) in words.items():
        if sign.lower() in text.lower():
            return came, hint
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is signed by an authority that is not trusted here", _trust_hint(system, where)
    return f"the TLS handshake failed: {one_line(text, 200)}", "check url, ca_file and fingerprint in the parameters"


def _trust_hint(system: str, where: str) -> str:
    if system != "proxmox":
        return "give the cluster's CA: certificate-authority-data in the kubeconfig, or ca_file"
    host, _, port = where.rpartition(":")
    try:
        pem = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=5)
    except (OSError, ValueError):
        return "give ca_file (/etc/pve/pve-root-ca.pem), or fingerprint (`pvenode cert info` on the node)"
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    return (
        f"give ca_file (/etc/pve/pve-root-ca.pem), or fingerprint: {colons(digest)}"
        " once `pvenode cert info` on the node shows the same"
    )


def colons(digest: str) -> str:
    """A fingerprint as Proxmox VE shows it: upper-case pairs with colons."""
    bare = digest.replace(":", "").upper()
    return ":".join(bare[at : at + 2] for at in range(0, len(bare), 2))


def _connect_words(error: Exception) -> str:
    text = str(error)
    if "refused" in text:
        return "the connection was refused"
    if "unreachable" in text or "No route" in text:
        return "the network has no route to it"
    return f"no connection: {one_line(text.rpartition(': ')[2], 160)}"
