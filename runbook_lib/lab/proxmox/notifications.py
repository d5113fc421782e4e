"""Notifications: where they can go and which go where. The lab sends none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.notifications import TABLE
from .routing import Call, PveError
from .sections import Section, Sections, check_digest, digest_of, stored

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

KINDS = ("gotify", "sendmail", "smtp", "webhook")
EVENTS = ("package-updates", "fencing", "replication", "vzdump", "system-mail")
SECRETS = {"gotify": ("token",), "sendmail": (), "smtp": ("password",), "webhook": ()}
BUILT_IN: dict[str, Section] = {
    "mail-to-root": {
        "type": "sendmail",
        "comment": "Send mails to root@pam's email address",
        "mailto-user": ["root@pam"],
        "origin": "builtin",
    }
}
MATCHER: Section = {
    "comment": "Route all notifications to mail-to-root",
    "mode": "all",
    "target": ["mail-to-root"],
    "origin": "builtin",
}


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Begin with the built-in target and matcher, and what a scenario's `notifications:` adds."""
    given = section.get("notifications") or {}
    targets = {name: {"origin": "user-created", **entry} for name, entry in (given.get("endpoints") or {}).items()}
    matchers = {name: {"origin": "user-created", **entry} for name, entry in (given.get("matchers") or {}).items()}
    state.areas["notifications"] = {
        "endpoints": {name: dict(entry) for name, entry in (BUILT_IN | targets).items()},
        "matchers": {"default-matcher": dict(MATCHER), **matchers},
    }


def area(state: PveState, what: str) -> Sections:
    """The endpoints or matchers, by name."""
    found: Sections = state.areas["notifications"][what]
    return found


@endpoint("GET /cluster/notifications")
def index(call: Call) -> list[dict[str, str]]:
    """The names below notifications."""
    return [{"name": n} for n in ("endpoints", "matchers", "targets", "matcher-fields", "matcher-field-values")]


@endpoint("GET /cluster/notifications/endpoints")
def endpoints_index(call: Call) -> list[dict[str, str]]:
    """The kinds of endpoints."""
    return [{"name": kind} for kind in KINDS]


@endpoint("GET /cluster/notifications/targets")
def list_targets(call: Call) -> list[Section]:
    """Every endpoint as a target."""
    rows = []
    for name, entry in area(call.state, "endpoints").items():
        row = {"name": name, "type": entry["type"], "origin": entry["origin"]}
        rows.append(row | {key: entry[key] for key in ("comment", "disable") if key in entry})
    return rows


@endpoint("POST /cluster/notifications/targets/{name}/test")
def test_target(call: Call) -> None:
    """Nothing when mail could be handed over; other endpoints are not reached from here."""
    entry = area(call.state, "endpoints").get(call.params["name"])
    if entry is None:
        raise PveError(404, f"target '{call.params['name']}' does not exist")
    if entry["type"] != "sendmail":
        raise PveError(500, f"could not notify via target `{call.params['name']}`: connection refused")


@endpoint("GET /cluster/notifications/matcher-fields")
def fields(call: Call) -> list[dict[str, str]]:
    """The fields a matcher can look at."""
    return [{"name": name} for name in ("type", "hostname", "job-id")]


@endpoint("GET /cluster/notifications/matcher-field-values")
def field_values(call: Call) -> list[dict[str, str]]:
    """The values those fields are known to have."""
    rows = [{"field": "type", "value": value} for value in EVENTS]
    rows += [{"field": "hostname", "value": name} for name in call.state.nodes]
    jobs = call.state.areas.get("backup", {})
    return rows + [
        {"field": "job-id", "value": name, "comment": str(job.get("comment", ""))} for name, job in jobs.items()
    ]


def crud(base: str, what: str, kind: str | None) -> None:
    """Nothing; the five endpoints of matchers, or of endpoints of one kind, are registered."""
    word = "matcher" if kind is None else f"{kind} endpoint"

    def shown(state: PveState, name: str, *, digest: bool) -> Section:
        entry = {key: value for key, value in area(state, what)[name].items() if key not in hidden}
        row = {"name": name, **entry}
        return row | ({"digest": digest_of(area(state, what))} if digest else {})

    hidden = ("type", *SECRETS.get(kind or "", ()))

    def existing(call: Call) -> str:
        name = str(call.params["name"])
        entry = area(call.state, what).get(name)
        if entry is None or (kind is not None and entry["type"] != kind):
            raise PveError(404, f"{word} '{name}' does not exist")
        return name

    @endpoint(f"GET {base}")
    def read_all(call: Call) -> list[Section]:
        """All of them."""
        names = [n for n, e in area(call.state, what).items() if kind is None or e["type"] == kind]
        return [shown(call.state, name, digest=False) for name in names]

    @endpoint(f"GET {base}/{{name}}")
    def read(call: Call) -> Section:
        """One of them."""
        return shown(call.state, existing(call), digest=True)

    @endpoint(f"POST {base}")
    def create(call: Call) -> None:
        """Nothing; it is there."""
        name = call.params["name"]
        if name in area(call.state, "endpoints") or name in area(call.state, "matchers"):
            raise PveError(400, f"'{name}' already exists")
        check_targets(call)
        entry = {"origin": "user-created", **stored(call.params, without=("name",))}
        area(call.state, what)[name] = entry | ({"type": kind} if kind else {"mode": entry.get("mode", "all")})

    @endpoint(f"PUT {base}/{{name}}")
    def update(call: Call) -> None:
        """Nothing; it is as asked."""
        name = existing(call)
        check_digest(call.params.get("digest"), area(call.state, what))
        check_targets(call)
        entry = area(call.state, what)[name]
        for key in call.params.get("delete") or ():
            entry.pop(key, None)
        entry.update(stored(call.params, without=("name",)))
        if entry["origin"] == "builtin":
            entry["origin"] = "modified-builtin"

    @endpoint(f"DELETE {base}/{{name}}")
    def delete(call: Call) -> None:
        """Nothing; it is gone, or as it was built in."""
        name = existing(call)
        users = [m for m, each in area(call.state, "matchers").items() if name in each.get("target", ())]
        if kind is not None and users:
            raise PveError(400, f"cannot delete '{name}', referenced by: {', '.join(users)}")
        built_in = BUILT_IN.get(name) if kind else ({"default-matcher": MATCHER}.get(name))
        if built_in:
            area(call.state, what)[name] = dict(built_in)
        else:
            del area(call.state, what)[name]

    def check_targets(call: Call) -> None:
        for target in (call.params.get("target") or ()) if kind is None else ():
            if target not in area(call.state, "endpoints"):
                raise PveError(404, f"target '{target}' does not exist")


for _kind in KINDS:
    crud(f"/cluster/notifications/endpoints/{_kind}", "endpoints", _kind)
crud("/cluster/notifications/matchers", "matchers", None)
