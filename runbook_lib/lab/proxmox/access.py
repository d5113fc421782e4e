"""Who may do what: /access, and the version every client asks for first."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from . import tickets
from .permissions import TOP_PATHS, Access, Group, Token, User, hash_password, normalise
from .quorum import require_quorum
from .routing import (
    AuthId,
    Boolean,
    Call,
    Integer,
    PveError,
    Rule,
    String,
    all_of,
    one_of,
    only_9,
    param_error,
    perm,
    permission_error,
    route,
    split_list,
)
from .state import VERSIONS, PveState

USERID = String(format="pve-userid", max_length=64)
TOKENID = String(pattern=r"^[A-Za-z][A-Za-z0-9.\-_]+$")
GROUPID = String(format="pve-groupid")
ROLEID = String(format="pve-roleid")

_ACL_PATH = re.compile(
    r"/|/access(/groups(/[A-Za-z0-9.\-_]+)?|/realm(/[A-Za-z0-9.\-_]+)?)?|/nodes(/[A-Za-z0-9.\-]+)?"
    r"|/pool(/[A-Za-z0-9.\-_]+){0,3}|/sdn(/zones(/[A-Za-z0-9]+(/[A-Za-z0-9]+(/\d+)?)?)?|/[a-z]+(/[A-Za-z0-9]+)?)?"
    r"|/storage(/[A-Za-z0-9.\-_]+)?|/vms(/[1-9]\d{2,})?|/mapping(/(dir|hwrng|pci|usb|notifications)(/[^/]+)?)?"
    r"|/mapping/notifications(/[^/]+)?"
)


# ---------------------------------------------------------------------------------------------- scenario


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Users, tokens, groups, roles and ACL of the scenario's `access:`.

    {users: {"root@pam": {password, tokens: {lab: {secret, privsep}}}}, groups: {g1: [users]},
    roles: {LabRole: "VM.Audit,…"}, acl: [{path, role, user|group|token, propagate}]}
    """
    access, given = state.access, section.get("access") or {}
    state.auth_delay_seconds = float(section.get("auth_delay_seconds", state.auth_delay_seconds))
    for userid, entry in (given.get("users") or {}).items():
        access.users[userid] = _user_from(userid, entry or {})
    for groupid, members in (given.get("groups") or {}).items():
        access.groups[groupid] = Group(members=set(members or ()))
    for roleid, privs in (given.get("roles") or {}).items():
        access.custom[roleid] = frozenset(split_list(privs) if isinstance(privs, str) else privs)
    for entry in given.get("acl") or ():
        kind = next(name for name in ("user", "group", "token") if name in entry)
        _grant(access, entry["path"], kind, entry[kind], entry["role"], propagate=bool(entry.get("propagate", True)))


def _user_from(userid: str, entry: Mapping[str, Any]) -> User:
    plain = {name: entry[name] for name in ("enable", "expire", "comment", "email", "tfa") if name in entry}
    user = User(userid, **plain)
    if entry.get("password"):
        user.password = hash_password(str(entry["password"]))
    for tokenid, token in (entry.get("tokens") or {}).items():
        token = token or {}
        user.tokens[tokenid] = Token(
            secret=str(token.get("secret") or uuid.uuid4()),
            privsep=bool(token.get("privsep", True)),
            expire=int(token.get("expire", 0)),
            comment=str(token.get("comment", "")),
        )
    return user


# ---------------------------------------------------------------------------------------------- rules


def myself(call: Call) -> None:
    """The rule that the user in the path is the caller; tokens are not their user."""
    if call.auth is None or str(call.auth) != str(call.raw.get("userid", "")):
        raise permission_error()


def _realm_of_user(call: Call) -> None:
    realm = str(call.raw.get("userid", "")).rpartition("@")[2]
    call.check(f"/access/realm/{realm}", "Realm.AllocateUser")


def user_group(*privs: str, groups_param: str = "") -> Rule:
    """The rule that the caller has the privileges on /access/groups or on a group of the user.

    groups_param "create": on every group the new user is to be in, when there are some; "update": also on those.
    """

    def rule(call: Call) -> None:
        wanted = split_list(str(call.raw.get("groups") or "")) if groups_param else []
        if call.allowed("/access/groups", *privs, any_of=True):
            return
        own = [] if groups_param == "create" else call.state.access.groups_of(str(call.raw.get("userid", "")))
        if groups_param == "create" and not wanted:
            raise permission_error(f"/access/groups, {'|'.join(privs)}")
        for group in wanted:
            call.check(f"/access/groups/{group}", *privs, any_of=True)
        if groups_param != "create" and not any(call.allowed(f"/access/groups/{g}", *privs, any_of=True) for g in own):
            raise permission_error(f"/access/groups, {'|'.join(privs)}")

    return rule


def _modify_acl(call: Call) -> None:
    """The rule of PUT /access/acl: Permissions.Modify, or the area's own Allocate privilege."""
    path = normalise(str(call.raw.get("path", "/")))
    own = {"storage": "Datastore.Allocate", "vms": "VM.Allocate", "pool": "Pool.Allocate"}.get(path.split("/")[1])
    privs = ["Permissions.Modify", *([own] if own and path.count("/") > 1 else [])]
    call.check(path, *privs, any_of=True)


# ---------------------------------------------------------------------------------------------- version, ticket


@route("GET", "/", permission="any")
def index(call: Call) -> list[dict[str, str]]:
    """The areas of the API."""
    return [{"subdir": name} for name in ("cluster", "nodes", "storage", "access", "pools", "version")]


@route("GET", "/version", permission="any")
def version(call: Call) -> dict[str, str]:
    """Version, release and repository id."""
    return dict(VERSIONS[call.flavour])


@route("GET", "/access", permission="any")
def access_index(call: Call) -> list[dict[str, str]]:
    """The areas below /access."""
    names = ("users", "groups", "roles", "acl", "domains", "openid", "tfa", "ticket", "password")
    return [{"subdir": name} for name in names]


@route("GET", "/access/ticket", permission="world")
def ticket_dummy(call: Call) -> None:
    """Nothing; the web interface only wants to see that it may ask."""


@route(
    "POST",
    "/access/ticket",
    permission="world",
    tokens=False,
    params={
        "username": String(max_length=64),
        "password": String(),
        "realm": String(optional=True, format="pve-realm", max_length=32),
        "otp": String(optional=True),
        "path": String(optional=True, max_length=64, requires="privs"),
        "privs": String(optional=True, format="pve-priv-list", max_length=64, requires="path"),
        "tfa-challenge": String(optional=True),
        "new-format": Boolean(optional=True),
    },
)
def create_ticket(call: Call) -> dict[str, Any]:
    """A login: ticket, CSRF prevention token and what the web interface may show.

    The password may be an unexpired ticket of the same user, which is how tickets are renewed.
    """
    state, params = call.state, call.params
    username, password = params["username"], params["password"]
    if params.get("realm") and not username.endswith(f"@{params['realm']}"):
        username = f"{username}@{params['realm']}"
    now = state.clock.now()
    refused = PveError(401, "authentication failure", delay=state.auth_delay_seconds)
    user = state.access.users.get(username)
    if user is None or not state.access.is_enabled(username):
        raise refused
    from . import factors  # second factors need the rules of this module

    if params.get("tfa-challenge"):
        if not factors.passed(state, user, params["tfa-challenge"], password):
            raise refused
    elif tickets.user_of(state.secret, password, now) == username:
        if not state.access.is_enabled(username):
            raise refused
        if params.get("path"):
            _require_held(state, username, params["path"], params["privs"], refused)
    elif not state.access.password_fits(username, password):
        raise refused
    elif waiting := factors.challenge(state, user):
        return {
            "username": username,
            "ticket": waiting,
            "CSRFPreventionToken": tickets.csrf_token(state.secret, username, now),
            "NeedTFA": 1,
        }
    answer = {
        "username": username,
        "ticket": tickets.ticket(state.secret, username, now),
        "CSRFPreventionToken": tickets.csrf_token(state.secret, username, now),
        "cap": state.access.capabilities(AuthId(username)),
    }
    if state.cluster_name:
        answer["clustername"] = state.cluster_name
    return answer


def _require_held(state: PveState, username: str, path: str, privs: str, refused: PveError) -> None:
    """Nothing when the user holds the privileges on the path; else the refusal."""
    held = state.access.permissions(AuthId(username), path)
    if not all(priv in held for priv in split_list(privs)):
        raise refused


@route(
    "PUT",
    "/access/password",
    tokens=False,
    permission=one_of(myself, all_of(_realm_of_user, user_group("User.Modify"))),
    params={
        "userid": USERID,
        "password": String(min_length=8, max_length=64),
        "confirmation-password": String(optional=True, min_length=5, max_length=64),
    },
)
def change_password(call: Call) -> None:
    """Nothing; whoever is not root confirms with their own current password."""
    userid = call.params["userid"]
    if call.auth and not call.auth.is_root:
        confirmation = call.params.get("confirmation-password")
        if confirmation is None:
            raise param_error({"confirmation-password": "password is required to modify user"})
        if not call.state.access.password_fits(call.auth.user, confirmation):
            raise PveError(401, "authentication failure", delay=call.state.auth_delay_seconds)
    _existing_user(call, userid).password = hash_password(call.params["password"])


# ---------------------------------------------------------------------------------------------- permissions


@route(
    "GET",
    "/access/permissions",
    permission="any",
    params={
        "userid": String(optional=True, pattern=r"^[^\s:/@!]+@[A-Za-z0-9.\-_]+(![A-Za-z][A-Za-z0-9.\-_]+)?$"),
        "path": String(optional=True),
    },
)
def permissions(call: Call) -> dict[str, dict[str, int]]:
    """Path → privilege → 1 when it propagates, 0 when not; of oneself, or with Sys.Audit on /access of others."""
    access = call.state.access
    asked = call.params.get("userid")
    who = call.auth or AuthId("nobody@pam")
    if asked and asked != call.authid:
        # One may always look at one's own tokens.
        if asked.partition("!")[0] != call.authid and not call.allowed("/access", "Sys.Audit"):
            raise permission_error("/access, Sys.Audit")
        userid, _, tokenid = asked.partition("!")
        if userid not in access.users:
            raise PveError(500, f"no such user ('{userid}')")
        if tokenid and tokenid not in access.users[userid].tokens:
            raise param_error({"userid": f"no such token '{tokenid}' for user '{userid}'"})
        who = AuthId(userid, tokenid or None)
    if path := call.params.get("path"):
        held = access.permissions(who, path)
        return {path: held} if held else {}
    return access.effective(who)


# ---------------------------------------------------------------------------------------------- users


def _existing_user(call: Call, userid: str) -> User:
    user = call.state.access.users.get(userid)
    if user is None:
        raise PveError(500, f"no such user ('{userid}')")
    return user


def _write(call: Call, what: str) -> None:
    """Nothing while user.cfg can be written; the file system is read-only without quorum."""
    require_quorum(call.state, f"{what} failed: cfs-lock 'file-user_cfg' error: no quorum!")


def _user_row(user: User, *, tokens: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"enable": int(user.enable), "expire": user.expire}
    for name in ("comment", "email", "firstname", "lastname", "keys"):
        if value := getattr(user, name):
            row[name] = value
    if tokens:
        row["tokens"] = {tokenid: _token_row(token) for tokenid, token in user.listed.items()} or None
    return row


def _token_row(token: Token) -> dict[str, Any]:
    row: dict[str, Any] = {"privsep": int(token.privsep), "expire": token.expire}
    if token.comment:
        row["comment"] = token.comment
    return row


@route(
    "GET",
    "/access/users",
    permission="any",
    params={"enabled": Boolean(optional=True), "full": Boolean(optional=True)},
)
def list_users(call: Call) -> list[dict[str, Any]]:
    """The users the caller may see: all of them with User.Modify or Sys.Audit, else their groups' and oneself."""
    access, full, rows = call.state.access, call.params.get("full"), []
    see_all = call.allowed("/access/groups", "User.Modify", "Sys.Audit", any_of=True)
    visible = {
        member
        for groupid, group in access.groups.items()
        if call.allowed(f"/access/groups/{groupid}", "User.Modify", "Sys.Audit", any_of=True)
        for member in group.members
    }
    for userid, user in access.users.items():
        if not (see_all or userid in visible or userid == call.authid):
            continue
        if "enabled" in call.params and call.params["enabled"] != user.enable:
            continue
        row = {"userid": userid} | _user_row(user, tokens=False)
        if user.realm in access.realms:
            row["realm-type"] = access.realms[user.realm].type
        if full:
            row["groups"] = ",".join(access.groups_of(userid))
            row["tokens"] = [{"tokenid": name} | _token_row(t) for name, t in user.listed.items()] or None
        rows.append(row)
    return rows


_USER_FIELDS = {
    "enable": Boolean(optional=True),
    "expire": Integer(optional=True, minimum=0),
    "comment": String(optional=True, max_length=2048),
    "email": String(optional=True, format="email-opt", max_length=254),
    "firstname": String(optional=True, max_length=1024),
    "lastname": String(optional=True, max_length=1024),
    "keys": String(optional=True, pattern=r"^[0-9a-zA-Z!=]{0,4096}$"),
    "groups": String(optional=True, format="pve-groupid-list"),
}


@route(
    "POST",
    "/access/users",
    permission=all_of(_realm_of_user, user_group("User.Modify", groups_param="create")),
    params={"userid": USERID, "password": String(optional=True, min_length=8, max_length=64), **_USER_FIELDS},
)
def create_user(call: Call) -> None:
    """Nothing; a password is only kept for the realm pve."""
    access, params = call.state.access, call.params
    userid = params["userid"]
    _write(call, "create user")
    if userid in access.users:
        raise PveError(500, f"create user failed: user '{userid}' already exists")
    groups = split_list(params.get("groups", ""))
    _require_groups(access, groups, "create user failed: ")
    fields = {name: params[name] for name in _USER_FIELDS if name in params and name != "groups"}
    user = User(userid, **fields)
    if params.get("password") and user.realm == "pve":
        user.password = hash_password(params["password"])
    access.users[userid] = user
    for group in groups:
        access.groups[group].members.add(userid)


def _require_groups(access: Access, groups: Iterable[str], prefix: str) -> None:
    for group in groups:
        if group not in access.groups:
            raise PveError(500, f"{prefix}no such group '{group}'")


@route(
    "GET",
    "/access/users/{userid}",
    permission=user_group("User.Modify", "Sys.Audit"),
    params={"userid": USERID},
)
def read_user(call: Call) -> dict[str, Any]:
    """One user with groups and tokens."""
    user = _existing_user(call, call.params["userid"])
    return _user_row(user, tokens=True) | {"groups": call.state.access.groups_of(user.userid)}


@route(
    "PUT",
    "/access/users/{userid}",
    permission=user_group("User.Modify", groups_param="update"),
    params={"userid": USERID, "append": Boolean(optional=True, requires="groups"), **_USER_FIELDS},
)
def update_user(call: Call) -> None:
    """Nothing; `groups` replaces the memberships unless `append`."""
    access, params = call.state.access, call.params
    _write(call, "update user")
    userid = params["userid"]
    if userid not in access.users:
        raise PveError(500, f"update user failed: user '{userid}' does not exist")
    user = access.users[userid]
    groups = split_list(params.get("groups", ""))
    _require_groups(access, groups, "update user failed: ")
    for name in _USER_FIELDS:
        if name in params and name != "groups":
            setattr(user, name, params[name])
    if "groups" in params:
        for groupid, group in access.groups.items():
            if groupid in groups:
                group.members.add(userid)
            elif not params.get("append"):
                group.members.discard(userid)


@route(
    "DELETE",
    "/access/users/{userid}",
    permission=all_of(_realm_of_user, user_group("User.Modify")),
    params={"userid": USERID},
)
def delete_user(call: Call) -> None:
    """Nothing, also when there is no such user; ACL entries and memberships go with it."""
    access, userid = call.state.access, call.params["userid"]
    _write(call, "delete user")
    access.users.pop(userid, None)
    for group in access.groups.values():
        group.members.discard(userid)
    _forget(access, "user", lambda who: who == userid)
    _forget(access, "token", lambda who: who.startswith(f"{userid}!"))


def _forget(access: Access, kind: str, matches: Any) -> None:
    for entries in access.acl.values():
        for who in [who for who in entries.get(kind, {}) if matches(who)]:
            del entries[kind][who]
    _prune(access)


@route(
    "GET",
    "/access/users/{userid}/tfa",
    permission=one_of(myself, user_group("User.Modify", "Sys.Audit")),
    params={"userid": USERID, "multiple": Boolean(optional=True)},
)
def user_tfa(call: Call) -> dict[str, Any]:
    """The second factors of a user by kind."""
    user = _existing_user(call, call.params["userid"])
    from .factors import listed  # second factors need the rules of this module

    types = sorted({entry["type"] for entry in listed(call.state, user) if entry["enable"]})
    if not types:
        return {}
    row: dict[str, Any] = {"types": types}
    if call.params.get("multiple"):
        return row
    return {"realm": user.realm, "user": types[0], **row}


@route("GET", "/access/tfa", permission="any")
def list_tfa(call: Call) -> list[dict[str, Any]]:
    """Users with second factors."""
    from .factors import overview  # second factors need the rules of this module

    state = call.state
    everybody = call.allowed("/access/groups", "User.Modify", "Sys.Audit", any_of=True)
    groups = state.access.groups.items()
    audited = [
        g for name, g in groups if call.allowed(f"/access/groups/{name}", "User.Modify", "Sys.Audit", any_of=True)
    ]
    visible = {member for group in audited for member in group.members} | {call.authid}
    rows = [overview(state, u) for u in state.access.users.values() if everybody or u.userid in visible]
    return [row for row in rows if row["entries"]]


@route(
    "GET",
    "/access/tfa/{userid}",
    permission=one_of(myself, user_group("User.Modify", "Sys.Audit")),
    params={"userid": USERID},
)
def read_tfa(call: Call) -> list[dict[str, Any]]:
    """The second factors of one user."""
    user = call.state.access.users.get(call.params["userid"])
    from .factors import listed  # second factors need the rules of this module

    return listed(call.state, user) if user else []


# ---------------------------------------------------------------------------------------------- tokens

_TOKEN_FIELDS = {
    "comment": String(optional=True),
    "expire": Integer(optional=True, minimum=0),
    "privsep": Boolean(optional=True),
}
_OWN_OR_GROUP = one_of(myself, user_group("User.Modify"))


def _existing_token(call: Call) -> Token:
    user, tokenid = _existing_user(call, call.params["userid"]), call.params["tokenid"]
    if tokenid not in user.tokens:
        raise PveError(500, f"no such token '{tokenid}' for user '{user.userid}'")
    return user.tokens[tokenid]


@route("GET", "/access/users/{userid}/token", permission=_OWN_OR_GROUP, params={"userid": USERID})
def list_tokens(call: Call) -> list[dict[str, Any]]:
    """The user's tokens, never their secrets."""
    user = _existing_user(call, call.params["userid"])
    return [{"tokenid": name} | _token_row(token) for name, token in user.listed.items()]


@route(
    "GET",
    "/access/users/{userid}/token/{tokenid}",
    permission=_OWN_OR_GROUP,
    params={"userid": USERID, "tokenid": TOKENID},
)
def read_token(call: Call) -> dict[str, Any]:
    """One token without its secret."""
    return _token_row(_existing_token(call))


@route(
    "POST",
    "/access/users/{userid}/token/{tokenid}",
    permission=_OWN_OR_GROUP,
    params={"userid": USERID, "tokenid": TOKENID, **_TOKEN_FIELDS},
)
def create_token(call: Call) -> dict[str, Any]:
    """The new token with its secret, which is shown only here."""
    user, tokenid = _existing_user(call, call.params["userid"]), call.params["tokenid"]
    if tokenid in user.tokens:
        raise param_error({"tokenid": "Token already exists."})
    token = Token(
        secret=str(uuid.uuid4()),
        privsep=call.params.get("privsep", True),
        expire=call.params.get("expire", user.expire),
        comment=call.params.get("comment", ""),
    )
    user.tokens[tokenid] = token
    info: dict[str, Any] = {"privsep": "1"} if "privsep" not in call.raw else {}
    info |= {name: str(call.raw[name]) for name in _TOKEN_FIELDS if call.raw.get(name) is not None}
    return {"full-tokenid": f"{user.userid}!{tokenid}", "info": info, "value": token.secret}


@route(
    "PUT",
    "/access/users/{userid}/token/{tokenid}",
    permission=_OWN_OR_GROUP,
    params={
        "userid": USERID,
        "tokenid": TOKENID,
        **_TOKEN_FIELDS,
        "regenerate": only_9(Boolean(optional=True)),
        "delete": only_9(String(optional=True, format="pve-configid-list")),
    },
)
def update_token(call: Call) -> dict[str, Any]:
    """The token as it is now."""
    token = _existing_token(call)
    for name in split_list(call.params.get("delete", "")):
        if name not in _TOKEN_FIELDS:
            raise param_error({"delete": f"unknown property '{name}'"})
        setattr(token, name, type(getattr(Token("", privsep=False), name))())
    for name in _TOKEN_FIELDS:
        if name in call.params:
            setattr(token, name, call.params[name])
    if call.params.get("regenerate"):
        token.secret = str(uuid.uuid4())
        return _token_row(token) | {"value": token.secret}
    return _token_row(token)


@route(
    "DELETE",
    "/access/users/{userid}/token/{tokenid}",
    permission=_OWN_OR_GROUP,
    params={"userid": USERID, "tokenid": TOKENID},
)
def delete_token(call: Call) -> None:
    """Nothing; the token's ACL entries go with it."""
    _existing_token(call)
    userid, tokenid = call.params["userid"], call.params["tokenid"]
    del call.state.access.users[userid].tokens[tokenid]
    _forget(call.state.access, "token", lambda who: who == f"{userid}!{tokenid}")


# ---------------------------------------------------------------------------------------------- groups


@route("GET", "/access/groups", permission="any")
def list_groups(call: Call) -> list[dict[str, Any]]:
    """The groups the caller may see."""
    privs = ("User.Modify", "Sys.Audit", "Group.Allocate")
    rows = []
    for groupid, group in call.state.access.groups.items():
        if call.allowed(f"/access/groups/{groupid}", *privs, any_of=True):
            row = {"groupid": groupid, "users": ",".join(sorted(group.members))}
            rows.append(row | ({"comment": group.comment} if group.comment else {}))
    return rows


@route(
    "POST",
    "/access/groups",
    permission=perm("/access/groups", "Group.Allocate"),
    params={"groupid": GROUPID, "comment": String(optional=True)},
)
def create_group(call: Call) -> None:
    """Nothing."""
    groupid = call.params["groupid"]
    _write(call, "create group")
    if groupid in call.state.access.groups:
        raise PveError(500, f"create group failed: group '{groupid}' already exists")
    call.state.access.groups[groupid] = Group(call.params.get("comment", ""))


def _existing_group(call: Call, prefix: str = "") -> Group:
    group = call.state.access.groups.get(call.params["groupid"])
    if group is None:
        raise PveError(500, f"{prefix}group '{call.params['groupid']}' does not exist")
    return group


@route(
    "GET",
    "/access/groups/{groupid}",
    permission=perm("/access/groups", "Sys.Audit", "Group.Allocate", any_of=True),
    params={"groupid": GROUPID},
)
def read_group(call: Call) -> dict[str, Any]:
    """Members and comment."""
    group = _existing_group(call)
    return {"members": sorted(group.members)} | ({"comment": group.comment} if group.comment else {})


@route(
    "PUT",
    "/access/groups/{groupid}",
    permission=perm("/access/groups", "Group.Allocate"),
    params={"groupid": GROUPID, "comment": String(optional=True)},
)
def update_group(call: Call) -> None:
    """Nothing."""
    _write(call, "update group")
    _existing_group(call, "update group failed: ").comment = call.params.get("comment", "")


@route(
    "DELETE",
    "/access/groups/{groupid}",
    permission=perm("/access/groups", "Group.Allocate"),
    params={"groupid": GROUPID},
)
def delete_group(call: Call) -> None:
    """Nothing; the group's ACL entries go with it."""
    _write(call, "delete group")
    _existing_group(call, "delete group failed: ")
    groupid = call.params["groupid"]
    del call.state.access.groups[groupid]
    _forget(call.state.access, "group", lambda who: who == groupid)


# ---------------------------------------------------------------------------------------------- roles


def _known_privileges(call: Call, prefix: str) -> frozenset[str]:
    privs = split_list(call.params.get("privs", ""))
    for priv in privs:
        if priv not in call.state.access.privileges:
            raise param_error({"privs": f"invalid format - invalid privilege '{priv}'\n"})
    return frozenset(privs)


@route("GET", "/access/roles", permission="any")
def list_roles(call: Call) -> list[dict[str, Any]]:
    """Every role with its privileges; `special` ones are built in."""
    access = call.state.access
    rows = [(name, 1, privs) for name, privs in access.builtin.items()]
    rows += [(name, 0, privs) for name, privs in access.custom.items()]
    return [{"roleid": name, "special": special, "privs": ",".join(sorted(privs))} for name, special, privs in rows]


@route("GET", "/access/roles/{roleid}", permission="any", params={"roleid": ROLEID})
def read_role(call: Call) -> dict[str, int]:
    """The role's privileges, each 1."""
    privs = call.state.access.role(call.params["roleid"])
    if privs is None:
        raise PveError(500, f"role '{call.params['roleid']}' does not exist")
    return dict.fromkeys(sorted(privs), 1)


@route(
    "POST",
    "/access/roles",
    permission=perm("/access", "Sys.Modify"),
    params={"roleid": ROLEID, "privs": String(optional=True, format="pve-priv-list")},
)
def create_role(call: Call) -> None:
    """Nothing; names that start with PVE are the server's own."""
    access, roleid = call.state.access, call.params["roleid"]
    privs = _known_privileges(call, "create role")
    if roleid.upper().startswith("PVE"):
        raise param_error({"roleid": "cannot use role ID starting with the (case-insensitive) 'PVE' namespace"})
    _write(call, "create role")
    if access.role(roleid) is not None:
        raise PveError(500, f"create role failed: role '{roleid}' already exists")
    access.custom[roleid] = privs


@route(
    "PUT",
    "/access/roles/{roleid}",
    permission=perm("/access", "Sys.Modify"),
    params={
        "roleid": ROLEID,
        "privs": String(optional=True, format="pve-priv-list"),
        "append": Boolean(optional=True, requires="privs"),
    },
)
def update_role(call: Call) -> None:
    """Nothing."""
    access, roleid = call.state.access, call.params["roleid"]
    privs = _known_privileges(call, "update role")
    if roleid in access.builtin:
        raise PveError(500, f"auto-generated role '{roleid}' cannot be modified")
    _write(call, "update role")
    if roleid not in access.custom:
        raise PveError(500, f"update role failed: role '{roleid}' does not exist")
    access.custom[roleid] = privs | (access.custom[roleid] if call.params.get("append") else frozenset())


@route(
    "DELETE",
    "/access/roles/{roleid}",
    permission=perm("/access", "Sys.Modify"),
    params={"roleid": ROLEID},
)
def delete_role(call: Call) -> None:
    """Nothing; ACL entries with the role go with it."""
    access, roleid = call.state.access, call.params["roleid"]
    if roleid in access.builtin:
        raise PveError(500, f"auto-generated role '{roleid}' cannot be deleted")
    _write(call, "delete role")
    if roleid not in access.custom:
        raise PveError(500, f"delete role failed: role '{roleid}' does not exist")
    del access.custom[roleid]
    for entries in access.acl.values():
        for given in entries.values():
            for roles in given.values():
                roles.pop(roleid, None)
    _prune(access)


# ---------------------------------------------------------------------------------------------- acl


def _grant(access: Access, path: str, kind: str, who: str, roleid: str, *, propagate: bool) -> None:
    access.acl.setdefault(normalise(path), {}).setdefault(kind, {}).setdefault(who, {})[roleid] = propagate


def _prune(access: Access) -> None:
    """Drop empty branches, so that a path is only there while something is said about it."""
    for path in list(access.acl):
        kinds = {
            kind: {who: roles for who, roles in given.items() if roles} for kind, given in access.acl[path].items()
        }
        kinds = {kind: given for kind, given in kinds.items() if given}
        if kinds:
            access.acl[path] = kinds
        else:
            del access.acl[path]


@route("GET", "/access/acl", permission="any")
def list_acl(call: Call) -> list[dict[str, Any]]:
    """The entries of the paths on which the caller may change or audit permissions."""
    rows = []
    for path, entries in call.state.access.acl.items():
        if not (call.allowed(path, "Permissions.Modify") or call.allowed("/access", "Sys.Audit")):
            continue
        for kind, given in entries.items():
            for who, roles in given.items():
                rows += [
                    {"path": path, "type": kind, "ugid": who, "roleid": role, "propagate": int(propagate)}
                    for role, propagate in roles.items()
                ]
    return rows


@route(
    "PUT",
    "/access/acl",
    permission=_modify_acl,
    params={
        "path": String(),
        "roles": String(format="pve-roleid-list"),
        "users": String(optional=True, format="pve-userid-list"),
        "groups": String(optional=True, format="pve-groupid-list"),
        "tokens": String(optional=True, format="pve-tokenid-list"),
        "propagate": Boolean(optional=True),
        "delete": Boolean(optional=True),
    },
)
def update_acl(call: Call) -> None:
    """Nothing; every subject gets, or with `delete` loses, every role on the path."""
    access, params = call.state.access, call.params
    given = {kind: split_list(params.get(f"{kind}s", "")) for kind in ("user", "group", "token")}
    if not any(given.values()):
        raise param_error(
            dict.fromkeys(("users", "groups", "tokens"), "either 'users', 'groups' or 'tokens' is required.")
        )
    path = normalise(params["path"])
    if not _ACL_PATH.fullmatch(path):
        raise param_error({"path": f"invalid ACL path '{params['path']}'"})
    _write(call, "ACL update")
    roles = split_list(params["roles"])
    if call.auth and not params.get("delete") and not call.allowed(path, "Permissions.Modify"):
        _only_held(call, path, roles)
    for role in roles:
        if not params.get("delete") and access.role(role) is None:
            raise PveError(500, f"ACL update failed: role '{role}' does not exist")
    for kind, subjects in given.items():
        for who in subjects:
            _require_subject(access, kind, who)
            for role in roles:
                if params.get("delete"):
                    access.acl.get(path, {}).get(kind, {}).get(who, {}).pop(role, None)
                else:
                    _grant(access, path, kind, who, role, propagate=params.get("propagate", True))
    _prune(access)


def _only_held(call: Call, path: str, roles: Iterable[str]) -> None:
    """Nobody hands on what they do not hold: without Permissions.Modify a role must lie within one's own."""
    for role in roles:
        for priv in sorted(call.state.access.role(role) or ()):
            if not call.allowed(path, priv):
                raise permission_error(f"{path}, {priv}")


def _require_subject(access: Access, kind: str, who: str) -> None:
    if kind == "user" and who not in access.users:
        raise PveError(500, f"ACL update failed: user '{who}' does not exist")
    if kind == "group" and who not in access.groups:
        raise PveError(500, f"ACL update failed: group '{who}' does not exist")
    if kind == "token":
        userid, _, tokenid = who.partition("!")
        if userid not in access.users or tokenid not in access.users[userid].tokens:
            raise PveError(500, f"ACL update failed: no such token '{tokenid}' for user '{userid}'")


# ---------------------------------------------------------------------------------------------- openid


@route("GET", "/access/openid", permission="any")
def openid_index(call: Call) -> list[dict[str, str]]:
    """The calls of an OpenID login, which the lab does not offer."""
    return [{"subdir": "auth-url"}, {"subdir": "login"}]


__all__ = ["TOP_PATHS", "load"]
