"""Realms: made, changed, taken away and synchronised; and one second factor read by its id.

The lab checks passwords of pam and pve alone; users of other realms cannot log in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import factors  # also registers the endpoints of second factors
from .declared import declared
from .declared.realms import TABLE
from .permissions import Realm
from .quorum import require_quorum
from .routing import Call, PveError, String, one_of, perm, route, split_list
from .schema import format_check
from .sections import check_digest, digest_of, stored
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

REQUIRED = {
    "ldap": ("server1", "base_dn", "user_attr"),
    "ad": ("server1", "domain"),
    "openid": ("issuer-url", "client-id"),
    "pam": (),
    "pve": (),
}
SECRET = ("password",)


@format_check("ldap-simple-attr")
def _attribute(value: str) -> None:
    if not value.replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"value '{value}' does not look like a simple ldap attribute name\n")


def _property_string(name: str, keys: tuple[str, ...]) -> None:
    @format_check(name)
    def check(value: str) -> None:
        for part in value.split(","):
            key, equals, _ = part.partition("=")
            if not equals:
                raise ValueError("value without key, but schema does not define a default key\n")
            if key not in keys:
                raise ValueError(f"invalid key in comma-separated list property: {key}\n")


_property_string("pve-tfa-config", ("type", "id", "key", "url", "digits", "step"))
_property_string("realm-sync-options", ("scope", "full", "enable-new", "purge", "remove-vanished"))


def written(call: Call) -> dict[str, Any]:
    """What domains.cfg holds, for its digest: the realms as made; a fresh server's is empty."""
    return {
        name: {"type": realm.type, "comment": realm.comment, **realm.options}
        for name, realm in call.state.access.realms.items()
        if name not in ("pam", "pve") or realm.options
    }


def realm_of(call: Call) -> Realm:
    """The realm a path names, or the 500 that there is none."""
    name = call.params["realm"]
    if name not in call.state.access.realms:
        raise PveError(500, f"domain '{name}' does not exist")
    return call.state.access.realms[name]


@endpoint("GET /access/domains")
def list_realms(call: Call) -> list[dict[str, Any]]:
    """The realms one can log in to; the login page asks before anybody is known."""
    rows = []
    for name, realm in call.state.access.realms.items():
        row: dict[str, Any] = {"realm": name, "type": realm.type}
        if realm.comment:
            row["comment"] = realm.comment
        if realm.options.get("default"):
            row["default"] = 1
        if realm.options.get("tfa"):
            row["tfa"] = str(realm.options["tfa"]).partition("type=")[2].partition(",")[0]
        rows.append(row)
    return rows


@endpoint("GET /access/domains/{realm}")
def read_realm(call: Call) -> dict[str, Any]:
    """One realm's configuration, without its password."""
    realm = realm_of(call)
    names = {"pam": "PAM", "pve": "PVE", "ldap": "LDAP", "ad": "AD", "openid": "OpenId"}
    row: dict[str, Any] = {"type": realm.type, "plugin": f"PVE::Auth::{names[realm.type]}"}
    if realm.comment:
        row["comment"] = realm.comment
    options = {key: value for key, value in realm.options.items() if key not in SECRET}
    return {**row, **options, "digest": digest_of(written(call))}


def only_default(call: Call, name: str) -> None:
    """Nothing; no other realm is the default any more."""
    for other, realm in call.state.access.realms.items():
        if other != name:
            realm.options.pop("default", None)


@endpoint("POST /access/domains")
def create_realm(call: Call) -> None:
    """Nothing; the realm is there."""
    failed, params = "add auth server failed", call.params
    require_quorum(call.state, f"{failed}: cfs-lock 'file-domains_cfg' error: no quorum!")
    name, kind = params["realm"], params["type"]
    if name in call.state.access.realms:
        raise PveError(500, f"{failed}: domain '{name}' already exists")
    if kind in ("pam", "pve"):
        raise PveError(500, f"{failed}: unable to create builtin type '{kind}'")
    given = stored(params, without=("realm", "type", "comment", "check-connection"))
    for key in REQUIRED[kind]:
        if key not in given:
            raise PveError(500, f"missing value for required option '{key}'")
    if given.get("default"):
        only_default(call, name)
    call.state.access.realms[name] = Realm(kind, params.get("comment", ""), given)


@endpoint("PUT /access/domains/{realm}")
def update_realm(call: Call) -> None:
    """Nothing; the realm is as asked."""
    failed, params = "update auth server failed", call.params
    require_quorum(call.state, f"{failed}: cfs-lock 'file-domains_cfg' error: no quorum!")
    check_digest(params.get("digest"), written(call))
    realm = realm_of(call)
    for key in split_list(params.get("delete", "")):
        if key in REQUIRED[realm.type]:
            raise PveError(500, f"{failed}: unable to delete required option '{key}'")
        if key == "comment":
            realm.comment = ""
        realm.options.pop(key, None)
    if "comment" in params:
        realm.comment = params["comment"]
    given = stored(params, without=("realm", "type", "comment", "check-connection"))
    if given.get("default"):
        only_default(call, params["realm"])
    realm.options.update(given)


@endpoint("DELETE /access/domains/{realm}")
def delete_realm(call: Call) -> None:
    """Nothing; the realm is gone, its users stay and cannot log in."""
    failed = "delete auth server failed"
    require_quorum(call.state, f"{failed}: cfs-lock 'file-domains_cfg' error: no quorum!")
    name = call.params["realm"]
    if name not in call.state.access.realms:
        raise PveError(500, f"{failed}: authentication domain '{name}' does not exist")
    if call.state.access.realms[name].type in ("pam", "pve"):
        raise PveError(500, f"{failed}: you can't delete builtin realm '{name}'")
    del call.state.access.realms[name]


@endpoint("POST /access/domains/{realm}/sync")
def sync_realm(call: Call) -> str:
    """The UPID of a synchronisation, which fails: the lab reaches no directory."""
    name, realm = call.params["realm"], realm_of(call)
    if realm.type not in ("ldap", "ad"):
        raise PveError(500, f"Cannot sync realm type: {realm.type}! Only LDAP/AD realms can be synced.")

    return begin_sync(call.state, call.node, name, user=call.authid)


def begin_sync(state: PveState, node: str, name: str, *, user: str) -> str:
    """The UPID of the synchronisation of a realm with the directory, which is not there."""
    realm = state.access.realms.get(name)

    def work(task: TaskContext) -> None:
        task.log("starting sync for realm " + name)
        if realm is None:
            raise TaskError(f"domain '{name}' does not exist")
        raise TaskError(f"Can't connect to {realm.options.get('server1', 'the directory')}: Connection refused")

    return state.tasks.start("auth-realm-sync", name, work, node=node, user=user)


def own(call: Call) -> None:
    """Nothing when the caller asks about themselves, else 403."""
    if call.auth is None or call.auth.user != call.raw.get("userid"):
        raise PveError(403, "Permission check failed")


@route(
    "GET",
    "/access/tfa/{userid}/{id}",
    params={"userid": String(format="pve-userid", max_length=64)},
    permission=one_of(own, perm("/access/groups", "User.Modify"), perm("/access/groups", "Sys.Audit")),
)
def read_factor(call: Call) -> dict[str, Any]:
    """One second factor of a user; 404 when there is none of that id."""
    user = call.state.access.users.get(call.params["userid"])
    for entry in factors.listed(call.state, user) if user else []:
        if entry["id"] == call.params["id"]:
            return entry
    raise PveError(404, f"No such tfa entry '{call.params['id']}'", newline=False)
