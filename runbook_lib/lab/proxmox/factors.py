"""Second factors: added, changed, removed, asked for at login; and OpenID logins, which reach no provider.

Codes of authenticators are real ones (RFC 6238) of the lab's clock. A user whose scenario says only `tfa: true` has a
secret nobody knows.
Source: the vendor's PVE/API2/TFA.pm and proxmox-tfa.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlparse

from . import tickets
from .access import myself, user_group
from .declared import declared
from .declared.logins import TABLE
from .permissions import User
from .quorum import require_quorum
from .routing import Call, PveError, one_of, param_error, permission_error

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

WRITER = one_of(myself, user_group("User.Modify"))
MAX_TOTP_FAILURES = 8
MAX_FAILURES = 100
LOCKED_SECONDS = 3600
RECOVERY_CODES = 10
SHOWN = ("id", "type", "description", "created", "enable")


def factors(state: PveState, user: User) -> dict[str, Any]:
    """A user's second factors and how often they were missed; one of the scenario's is there from the beginning."""
    found: dict[str, dict[str, Any]] = state.areas.setdefault("factors", {})
    if user.userid not in found:
        entries = []
        if user.tfa:
            secret = user.tfa if isinstance(user.tfa, str) else ""
            text = "authenticator"
            entries = [{"id": "totp", "type": "totp", "description": text, "created": 0, "enable": 1, "secret": secret}]
        found[user.userid] = {"entries": entries, "totp_failures": 0, "failures": 0, "until": 0}
    return found[user.userid]


def shown(entry: dict[str, Any]) -> dict[str, Any]:
    """One factor without its secret."""
    return {key: entry[key] for key in SHOWN}


def listed(state: PveState, user: User) -> list[dict[str, Any]]:
    """A user's factors as lists show them."""
    return [shown(entry) for entry in factors(state, user)["entries"]]


def overview(state: PveState, user: User) -> dict[str, Any]:
    """A user's row in the list of all factors."""
    held = factors(state, user)
    row: dict[str, Any] = {"userid": user.userid, "entries": listed(state, user)}
    if held["totp_failures"] >= MAX_TOTP_FAILURES:
        row["totp-locked"] = 1
    if held["until"] > state.clock.now():
        row["tfa-locked-until"] = int(held["until"])
    return row


# --- codes ----------------------------------------------------------------------------------------


def totp(secret: str, moment: float, *, digits: int = 6, step: int = 30, algorithm: str = "sha1") -> str:
    """The code an authenticator shows at that moment."""
    padded = secret.upper() + "=" * (-len(secret) % 8)
    counter = int(moment // step).to_bytes(8, "big")
    digest = hmac.digest(base64.b32decode(padded), counter, algorithm)
    start = digest[-1] & 15
    number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


def read_uri(text: str) -> dict[str, Any]:
    """The secret, digits, step and algorithm of an otpauth URI. Raises the 500 of one that is none."""
    parsed = urlparse(text)
    given = {key: values[-1] for key, values in parse_qs(parsed.query).items()}
    if parsed.scheme != "otpauth" or parsed.netloc != "totp" or not given.get("secret"):
        raise PveError(500, "not an otpauth uri" if parsed.scheme != "otpauth" else "missing secret in otpauth url")
    try:
        entry: dict[str, Any] = {
            "secret": given["secret"],
            "digits": int(given.get("digits", 6)),
            "step": int(given.get("period", 30)),
            "algorithm": given.get("algorithm", "SHA1").lower(),
        }
        totp(entry["secret"], 0, digits=entry["digits"], step=entry["step"], algorithm=entry["algorithm"])
    except (ValueError, ZeroDivisionError) as error:
        raise PveError(500, "error parsing otpauth url") from error
    return entry


def code_fits(entry: dict[str, Any], code: str, moment: float) -> bool:
    """Whether the code is the one of this half minute, or of the one before or after."""
    if not entry["secret"]:
        return False
    kind = {key: entry[key] for key in ("digits", "step", "algorithm") if key in entry}
    step = entry.get("step", 30)
    return any(
        hmac.compare_digest(totp(entry["secret"], moment + off * step, **kind).encode(), code.encode())
        for off in (-1, 0, 1)
    )


# --- login ----------------------------------------------------------------------------------------


def challenge(state: PveState, user: User) -> str:
    """The ticket that only waits for a second factor, with what would do; empty for a user without any."""
    held = [entry for entry in factors(state, user)["entries"] if entry["enable"]]
    if not held:
        return ""
    asked: dict[str, Any] = {}
    if any(entry["type"] == "totp" for entry in held):
        asked["totp"] = True
    if any(entry["type"] == "yubico" for entry in held):
        asked["yubico"] = True
    recovery = next((entry for entry in held if entry["type"] == "recovery"), None)
    if recovery:
        asked["recovery"] = [number for number, code in enumerate(recovery["codes"]) if code]
    text = quote(json.dumps(asked, separators=(",", ":")), safe="")
    return tickets.challenge(state.secret, user.userid, text, state.clock.now())


def passed(state: PveState, user: User, ticket: str, answer: str) -> bool:
    """Whether the answer to a challenge is right; every wrong one counts, and too many lock."""
    now, held = state.clock.now(), factors(state, user)
    if not tickets.challenge_fits(state.secret, user.userid, ticket, now) or held["until"] > now:
        return False
    kind, _, value = answer.partition(":")
    right = _answered(held, kind, value, now)
    if right:
        held["failures"] = 0
        if kind in ("totp", "recovery"):
            held["totp_failures"] = 0
        return True
    held["failures"] += 1
    held["totp_failures"] += kind == "totp"
    if held["failures"] >= MAX_FAILURES:
        held["until"], held["failures"] = int(now) + LOCKED_SECONDS, 0
    return False


def _answered(held: dict[str, Any], kind: str, value: str, now: float) -> bool:
    for entry in held["entries"]:
        if entry["type"] != kind or not entry["enable"]:
            continue
        if kind == "totp" and held["totp_failures"] < MAX_TOTP_FAILURES and code_fits(entry, value, now):
            return True
        if kind == "recovery":
            hashed = _hash(value)
            if hashed in entry["codes"]:
                entry["codes"][entry["codes"].index(hashed)] = None  # each code does once
                return True
    return False


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- changes --------------------------------------------------------------------------------------


def reauthenticated(call: Call) -> User:
    """The user whose factors are changed, once the caller has confirmed with their own password."""
    userid = call.params["userid"]
    user = call.state.access.users.get(userid)
    if user is None:
        raise PveError(500, f"no such user ('{userid}')")
    if call.auth is not None and call.auth.is_root:
        return user
    if userid == "root@pam":
        raise permission_error()
    given = call.params.get("password")
    if given is None:
        raise param_error({"password": "password is required to modify user"})
    if call.auth is None or not call.state.access.password_fits(call.auth.user, given):
        raise PveError(401, "authentication failure", delay=call.state.auth_delay_seconds)
    return user


def entry_of(call: Call, user: User) -> dict[str, Any]:
    """The factor a path names, or the 500 that there is none."""
    for entry in factors(call.state, user)["entries"]:
        if entry["id"] == call.params["id"]:
            found: dict[str, Any] = entry
            return found
    raise PveError(500, "no such entry")


@endpoint("POST /access/tfa/{userid}", WRITER)
def add_factor(call: Call) -> dict[str, Any]:
    """The new factor's id; of recovery codes also the codes, which are shown only here."""
    state, params, kind = call.state, call.params, call.params["type"]
    require_quorum(state, "cfs-lock 'file-priv/tfa_cfg' error: no quorum!")
    user = reauthenticated(call)
    if kind == "yubico":
        raise PveError(500, f"no yubico otp configuration available for realm {user.realm}")
    if kind in ("webauthn", "u2f"):
        raise PveError(500, f"no {kind} configuration available")
    entries = factors(state, user)["entries"]
    entry = {"created": int(state.clock.now()), "enable": 1, "type": kind}
    if kind == "recovery":
        if any(name in params for name in ("totp", "value", "challenge")):
            raise PveError(500, "generating recovery tokens does not allow additional parameters")
        if any(each["type"] == "recovery" for each in entries):
            raise PveError(500, "user already has recovery keys")
        codes = ["-".join(secrets.token_hex(2) for _ in range(4)) for _ in range(RECOVERY_CODES)]
        entries.append({**entry, "id": "recovery", "description": "", "codes": [_hash(code) for code in codes]})
        user.keys = "x"
        return {"id": "recovery", "recovery": codes}
    if "challenge" in params:
        raise PveError(500, "'challenge' parameter is invalid for 'totp' entries")
    if "totp" not in params or "value" not in params:
        raise PveError(500, "missing 'totp' or 'value' parameter")
    if "description" not in params:
        raise PveError(500, "'description' is required for new entries")
    new = {**entry, **read_uri(params["totp"]), "description": params["description"]}
    if not code_fits(new, params["value"], state.clock.now()):
        raise PveError(500, "failed to verify TOTP challenge")
    new["id"] = f"totp-{len(entries)}-{secrets.token_hex(4)}"
    entries.append(new)
    user.keys = "x"
    return {"id": new["id"]}


@endpoint("PUT /access/tfa/{userid}/{id}", WRITER)
def change_factor(call: Call) -> None:
    """Nothing; the factor is described anew, enabled or disabled."""
    entry = entry_of(call, reauthenticated(call))
    if "description" in call.params:
        entry["description"] = call.params["description"]
    if "enable" in call.params:
        entry["enable"] = int(call.params["enable"])


@endpoint("DELETE /access/tfa/{userid}/{id}", WRITER)
def remove_factor(call: Call) -> None:
    """Nothing; with the last factor login asks for none any more."""
    user = reauthenticated(call)
    held = factors(call.state, user)
    held["entries"].remove(entry_of(call, user))
    if not held["entries"]:
        user.keys, user.tfa = "", False


@endpoint("PUT /access/users/{userid}/unlock-tfa", user_group("User.Modify"))
def unlock(call: Call) -> int:
    """Whether the user had been locked out; now they are not."""
    user = call.state.access.users.get(call.params["userid"])
    if user is None:
        raise PveError(500, f"no such user ('{call.params['userid']}')")
    row, held = overview(call.state, user), factors(call.state, user)
    held |= {"totp_failures": 0, "failures": 0, "until": 0}
    return int("totp-locked" in row or "tfa-locked-until" in row)


# --- OpenID ---------------------------------------------------------------------------------------


@endpoint("POST /access/openid/auth-url")
def openid_url(call: Call) -> str:
    """Where to log in; refused, as the provider of no realm is reached."""
    name = call.params["realm"]
    realm = call.state.access.realms.get(name)
    if realm is None:
        raise PveError(500, f"authentication domain '{name}' does not exist")
    if realm.type != "openid":
        raise PveError(500, f"wrong realm type ({realm.type} != openid)")
    issuer = str(realm.options.get("issuer-url", "")).rstrip("/")
    raise PveError(500, f"openid discovery of {issuer}/.well-known/openid-configuration failed: Connection refused")


@endpoint("POST /access/openid/login")
def openid_login(call: Call) -> None:
    """Refused: no login was begun that could be ended."""
    raise PveError(401, "openid authentication failure", delay=call.state.auth_delay_seconds)
