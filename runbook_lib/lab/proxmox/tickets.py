"""Login tickets and CSRF prevention tokens, in the shape real ones have."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

LIFETIME_SECONDS = 7200
_EARLY_SECONDS = 300  # a cluster's clocks may differ this much
_TICKET = re.compile(r"PVE:(\S+):([0-9A-F]{8})::(\S+)")
TFA_MARK = "!tfa!"


def _sign(secret: bytes, text: str) -> str:
    # A real signature is 256 bytes of RSA; clients with narrow buffers should notice here, too.
    stretched = b"".join(hmac.digest(secret, f"{n}{text}".encode(), hashlib.sha512) for n in range(4))
    return base64.b64encode(stretched).decode()


def ticket(secret: bytes, user: str, now: float) -> str:
    """A ticket for the user; with a user of `!tfa!name` one that only waits for the second factor."""
    plain = f"PVE:{user}:{int(now):08X}"
    return f"{plain}::{_sign(secret, plain)}"


def user_of(secret: bytes, text: str, now: float) -> str | None:
    """Who the ticket was made for; None when it is forged, too old or from the future."""
    match = _TICKET.fullmatch(text)
    if not match or not hmac.compare_digest(_sign(secret, text.rpartition("::")[0]), match[3]):
        return None
    age = now - int(match[2], 16)
    return match[1] if -_EARLY_SECONDS <= age <= LIFETIME_SECONDS else None


def csrf_token(secret: bytes, user: str, now: float) -> str:
    """The CSRF prevention token that goes with a login."""
    stamp = f"{int(now):08X}"
    digest = base64.b64encode(hmac.digest(secret, f"csrf:{stamp}:{user}".encode(), hashlib.sha256)).decode()
    return f"{stamp}:{digest.rstrip('=')}"


def csrf_fits(secret: bytes, user: str, text: str, now: float) -> bool:
    """Whether the token was made for the user and is not too old."""
    stamp, _, _ = text.partition(":")
    if not re.fullmatch(r"[0-9A-F]{8}", stamp):
        return False
    made = int(stamp, 16)
    if not hmac.compare_digest(csrf_token(secret, user, made).encode(), text.encode()):
        return False
    return -_EARLY_SECONDS <= now - made <= LIFETIME_SECONDS


def challenge(secret: bytes, user: str, asked: str, now: float) -> str:
    """A ticket that only waits for the user's second factor; `asked` says which would do, URL-encoded."""
    plain = f"PVE:{TFA_MARK}{asked}:{int(now):08X}"
    return f"{plain}::{_sign(secret, f'{plain}:{user}')}"


def challenge_fits(secret: bytes, user: str, text: str, now: float) -> bool:
    """Whether the ticket is such a one, was made for this user and is not too old."""
    match = _TICKET.fullmatch(text)
    if not match or not match[1].startswith(TFA_MARK):
        return False
    signed = _sign(secret, f"{text.rpartition('::')[0]}:{user}")
    return hmac.compare_digest(signed, match[3]) and -_EARLY_SECONDS <= now - int(match[2], 16) <= LIFETIME_SECONDS
