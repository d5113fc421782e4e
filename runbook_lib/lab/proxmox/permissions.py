"""Users, groups, roles, ACL and tokens, and what somebody may do on a path.

The rules are those of PVE::AccessControl and PVE::RPCEnvironment as the recordings show them: the ACL entry
nearest to the path wins, a user's own entry beats those of their groups, NoAccess beats every other role, a
pool lends its roles to its members, and a token with privilege separation has at most what its user has.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .routing import AuthId

if TYPE_CHECKING:
    from .state import PveState

_COMMON = [
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
]
_AGENT = ["VM.GuestAgent.Audit", "VM.GuestAgent.FileRead", "VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.FileWrite"]

PRIVILEGES: dict[str, frozenset[str]] = {
    "8.4": frozenset([*_COMMON, "VM.Monitor"]),
    # 9.0 took VM.Monitor away and split it into the guest agent's privileges.
    "9.2": frozenset([*_COMMON, *_AGENT, "VM.GuestAgent.Unrestricted", "VM.Replicate"]),
}

_NOT_FOR_ADMIN = {
    "Mapping.Modify",
    "Permissions.Modify",
    "Realm.Allocate",
    "Sys.AccessNetwork",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
}
"""What PVEAdmin lacks beside Administrator."""


def builtin_roles(flavour: str) -> dict[str, frozenset[str]]:
    """The roles a fresh server of this flavour has, by name."""
    every = PRIVILEGES[flavour]
    agent = [*_AGENT] if flavour.startswith("9") else []
    vm = {p for p in every if p.startswith("VM.")}

    def role(*privs: str) -> frozenset[str]:
        return frozenset(privs)

    return {
        "Administrator": every,
        "NoAccess": role(),
        "PVEAdmin": every - _NOT_FOR_ADMIN,
        "PVEAuditor": role(
            "Datastore.Audit", "Mapping.Audit", "Pool.Audit", "SDN.Audit", "Sys.Audit", "VM.Audit", *agent[:1]
        ),
        "PVEDatastoreAdmin": role(*(p for p in every if p.startswith("Datastore."))),
        "PVEDatastoreUser": role("Datastore.AllocateSpace", "Datastore.Audit"),
        "PVEMappingAdmin": role("Mapping.Audit", "Mapping.Modify", "Mapping.Use"),
        "PVEMappingUser": role("Mapping.Audit", "Mapping.Use"),
        "PVEPoolAdmin": role("Pool.Allocate", "Pool.Audit"),
        "PVEPoolUser": role("Pool.Audit"),
        "PVESDNAdmin": role("SDN.Allocate", "SDN.Audit", "SDN.Use"),
        "PVESDNUser": role("SDN.Audit", "SDN.Use"),
        "PVESysAdmin": role("Sys.Audit", "Sys.Console", "Sys.Syslog"),
        "PVETemplateUser": role("VM.Audit", "VM.Clone"),
        "PVEUserAdmin": role("Group.Allocate", "Realm.AllocateUser", "User.Modify"),
        "PVEVMAdmin": frozenset(vm),
        "PVEVMUser": role(
            "VM.Audit",
            "VM.Backup",
            "VM.Config.CDROM",
            "VM.Config.Cloudinit",
            "VM.Console",
            "VM.PowerMgmt",
            *agent,
        ),
    }


@dataclass
class Token:
    """An API token of a user; `expire` 0 is never. A hidden one works and is in no list: the lab's own."""

    secret: str
    privsep: bool = True
    expire: int = 0
    comment: str = ""
    hidden: bool = False


@dataclass
class User:
    """A user; the password is kept as a salted hash, as a server would."""

    userid: str
    enable: bool = True
    expire: int = 0
    comment: str = ""
    email: str = ""
    firstname: str = ""
    lastname: str = ""
    keys: str = ""
    password: tuple[bytes, bytes] | None = None
    tfa: bool | str = False  # of the scenario: whether there is a second factor, or its secret
    tokens: dict[str, Token] = field(default_factory=dict)

    @property
    def realm(self) -> str:
        """The realm after the last @."""
        return self.userid.rpartition("@")[2]

    @property
    def listed(self) -> dict[str, Token]:
        """The tokens that lists show."""
        return {tokenid: token for tokenid, token in self.tokens.items() if not token.hidden}


@dataclass
class Group:
    """A group of users."""

    comment: str = ""
    members: set[str] = field(default_factory=set)


@dataclass
class Realm:
    """A realm users log in to; only pam and pve can check passwords here."""

    type: str
    comment: str = ""
    options: dict[str, str] = field(default_factory=dict)


Entries = dict[str, dict[str, dict[str, bool]]]
"""kind ("user", "group", "token") → who → role → propagate."""


def hash_password(password: str) -> tuple[bytes, bytes]:
    """Salt and hash of a password. One cheap round: these guard a rehearsal, and logins are counted in hundreds."""
    salt = secrets.token_bytes(8)
    return salt, hashlib.sha256(salt + password.encode()).digest()


TOP_PATHS = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")
"""Paths that /access/permissions always looks at."""

_CAPABILITIES = {
    "vms": ("VM.", "Permissions.Modify"),
    "access": ("User.", "Group.", "Permissions.Modify"),
    "storage": ("Datastore.", "Permissions.Modify"),
    "nodes": ("Sys.", "Permissions.Modify"),
    "sdn": ("SDN.", "Permissions.Modify"),
    "dc": ("Sys.Audit", "Sys.Modify", "SDN."),
    "mapping": ("Mapping.", "Permissions.Modify"),
}


class Access:
    """Who there is and what they may do."""

    def __init__(self, state: PveState) -> None:
        self._state = state
        self.users: dict[str, User] = {"root@pam": User("root@pam")}
        self.groups: dict[str, Group] = {}
        self.builtin = builtin_roles(state.flavour)
        self.custom: dict[str, frozenset[str]] = {}
        self.acl: dict[str, Entries] = {}
        self.realms: dict[str, Realm] = {
            "pam": Realm("pam", "Linux PAM standard authentication"),
            "pve": Realm("pve", "Proxmox VE authentication server"),
        }

    # ------------------------------------------------------------------------------------- identities

    @property
    def privileges(self) -> frozenset[str]:
        """Every privilege this flavour knows."""
        return PRIVILEGES[self._state.flavour]

    def role(self, roleid: str) -> frozenset[str] | None:
        """The privileges of a role, None when there is no such role."""
        return self.builtin.get(roleid, self.custom.get(roleid))

    def is_enabled(self, userid: str) -> bool:
        """Whether the user exists, is enabled and has not expired."""
        user = self.users.get(userid)
        return bool(user and user.enable and not self._expired(user.expire))

    def _expired(self, expire: int) -> bool:
        return bool(expire) and expire < self._state.clock.now()

    def password_fits(self, userid: str, password: str) -> bool:
        """Whether an enabled user of a realm that checks passwords has this one."""
        user = self.users.get(userid)
        if user is None or user.password is None or user.realm not in self.realms or not self.is_enabled(userid):
            return False
        salt, digest = user.password
        return hmac.compare_digest(hashlib.sha256(salt + password.encode()).digest(), digest)

    def by_token(self, text: str) -> AuthId | None:
        """Who `user@realm!token=secret` is; None when wrong, expired, or its user may not log in."""
        name, _, secret = text.partition("=")
        userid, _, tokenid = name.partition("!")
        user = self.users.get(userid)
        token = user.tokens.get(tokenid) if user else None
        if token is None or not hmac.compare_digest(token.secret.encode(), secret.encode()):
            return None
        if not self.is_enabled(userid) or self._expired(token.expire):
            return None
        return AuthId(userid, tokenid)

    def groups_of(self, userid: str) -> list[str]:
        """The groups the user is in, sorted."""
        return sorted(name for name, group in self.groups.items() if userid in group.members)

    # ------------------------------------------------------------------------------------- evaluation

    def roles(self, auth: AuthId, path: str) -> dict[str, bool]:
        """Roles on the path → whether they propagate; pools are not looked at."""
        if auth.user == "root@pam" and auth.token is None:
            return {"Administrator": True}
        if auth.token is not None:
            user = self.users.get(auth.user)
            token = user.tokens.get(auth.token) if user else None
            if token is None:
                return {}
            if not token.privsep:
                return self.roles(AuthId(auth.user), path)
        roles: dict[str, bool] = {}
        for prefix in _prefixes(path):
            entries = self.acl.get(prefix)
            if entries is not None and (here := self._roles_at(entries, auth, final=prefix == path)) is not None:
                roles = here
        return {"NoAccess": roles["NoAccess"]} if "NoAccess" in roles else roles

    def _roles_at(self, entries: Entries, auth: AuthId, *, final: bool) -> dict[str, bool] | None:
        def applying(given: dict[str, bool]) -> dict[str, bool]:
            return {role: propagate for role, propagate in given.items() if final or propagate}

        if auth.token is not None:
            return applying(entries.get("token", {}).get(str(auth), {})) or None
        if own := applying(entries.get("user", {}).get(auth.user, {})):
            return own
        merged: dict[str, bool] = {}
        for groupid, given in entries.get("group", {}).items():
            group = self.groups.get(groupid)
            if group and auth.user in group.members:
                merged |= applying(given)
        return merged or None

    def permissions(self, auth: AuthId, path: str) -> dict[str, int]:
        """Privileges on the path → 1 when they propagate, 0 when not."""
        path = normalise(path)
        if auth.user == "root@pam" and not self._separated(auth):
            return dict.fromkeys(sorted(self.privileges), 1)
        if not self.is_enabled(auth.user):
            return {}
        roles = dict(self.roles(auth, path))
        if "NoAccess" not in roles:
            lent = self._pool_roles(auth, path)
            roles = (
                {"NoAccess": True}
                if "NoAccess" in lent
                else roles | {r: roles.get(r, False) or p for r, p in lent.items()}
            )
        privs: dict[str, int] = {}
        for role, propagate in roles.items():
            for priv in self.role(role) or ():
                privs[priv] = max(privs.get(priv, 0), int(propagate))
        if self._separated(auth) and auth.user != "root@pam":
            held = self.permissions(AuthId(auth.user), path)
            privs = {priv: held[priv] & flag for priv, flag in privs.items() if priv in held}
        return privs

    def _separated(self, auth: AuthId) -> bool:
        if auth.token is None:
            return False
        user = self.users.get(auth.user)
        token = user.tokens.get(auth.token) if user else None
        return token is None or token.privsep

    def _pool_roles(self, auth: AuthId, path: str) -> dict[str, bool]:
        lent: dict[str, bool] = {}
        for poolid, pool in self._state.pools.items():
            if path in _pool_paths(pool):
                # Roles of a pool hold on its members as if given there.
                lent |= dict.fromkeys(self.roles(auth, f"/pool/{poolid}"), True)
        return lent

    def paths(self) -> list[str]:
        """Every path something can be said about: the top ones, those in the ACL, and members of pools."""
        known = dict.fromkeys([*TOP_PATHS, *self.acl])
        for pool in self._state.pools.values():
            known |= dict.fromkeys(_pool_paths(pool))
        return list(known)

    def effective(self, auth: AuthId) -> dict[str, dict[str, int]]:
        """Privileges by path, without the paths where there are none."""
        return {path: held for path in self.paths() if (held := self.permissions(auth, path))}

    def capabilities(self, auth: AuthId) -> dict[str, dict[str, int]]:
        """What a login's `cap` tells the web interface to show."""
        caps: dict[str, dict[str, int]] = {name: {} for name in _CAPABILITIES}
        for path in dict.fromkeys(["/", "/nodes", "/access/groups", "/vms", "/storage", "/sdn", "/mapping", *self.acl]):
            top = path.split("/")[1] or "dc"
            for priv in self.permissions(auth, path):
                if top == "pool":
                    if priv.startswith("VM."):
                        caps["vms"][priv] = 1
                    elif priv.startswith("Datastore."):
                        caps["storage"][priv] = 1
                elif top in _CAPABILITIES and priv.startswith(_CAPABILITIES[top]):
                    caps[top][priv] = 1
        return caps


def _pool_paths(pool: object) -> Iterator[str]:
    yield from (f"/vms/{vmid}" for vmid in getattr(pool, "vms", ()))
    yield from (f"/storage/{storage}" for storage in getattr(pool, "storages", ()))


def normalise(path: str) -> str:
    """The path with single slashes and none at its end, `/` for the root."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _prefixes(path: str) -> Iterator[str]:
    yield "/"
    parts = [part for part in path.split("/") if part]
    for count in range(1, len(parts) + 1):
        yield "/" + "/".join(parts[:count])
