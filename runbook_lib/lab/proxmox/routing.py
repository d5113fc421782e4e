"""The table of Proxmox VE endpoints, and the call a handler is given.

One file an API area registers its endpoints with `@route`. A handler returns the value of `data`; what goes
beside it (`total`, `changes`) it puts into `call.extra`. Permission rules run before parameters are verified,
as on a real server, so they read `call.raw`; handlers read the typed `call.params`.

    @route("GET", "/nodes/{node}/storage", params={"content": String(optional=True)}, permission="any", node=True)
    def list_storage(call: Call) -> list[dict[str, Any]]: ...

`{volume:rest}` takes the rest of the path, slashes included: the server decodes %2F before it routes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .schema import Array, Boolean, Either, Integer, Number, Param, String, only_8, only_9, split_list, verify

if TYPE_CHECKING:
    from ..clock import Clock
    from .state import PveState
    from .worker import Work

__all__ = [
    "VMID",
    "Array",
    "AuthId",
    "Boolean",
    "Call",
    "Either",
    "Encoded",
    "Integer",
    "Number",
    "Param",
    "PveError",
    "Route",
    "Rule",
    "String",
    "Upload",
    "all_of",
    "audited",
    "encode",
    "one_of",
    "only_8",
    "only_9",
    "param_error",
    "perm",
    "permission_error",
    "route",
    "split_list",
]

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    500: "Internal Server Error",
    501: "Not Implemented",
    595: "Connection refused",
    596: "Connection timed out",
    599: "Too many redirections",
}


class PveError(Exception):
    """An answer with a code ≥ 400: message (its first line becomes the reason phrase) and errors by parameter.

    `PveError(500, "storage 'x' does not exist")`; the newline at the end of a real message is added on the wire.
    `bare` answers carry no body at all (401 of the authentication phase, 595 of an unreachable node).
    """

    def __init__(
        self,
        status: int,
        message: str,
        errors: Mapping[str, str] | None = None,
        *,
        bare: bool = False,
        newline: bool = True,
        delay: float = 0.0,
    ) -> None:
        self.status, self.message, self.errors = status, message, dict(errors) if errors else None
        self.bare, self.newline, self.delay = bare, newline, delay
        super().__init__(message)


def param_error(errors: Mapping[str, str]) -> PveError:
    """The 400 "Parameter verification failed." that names each parameter."""
    return PveError(400, "Parameter verification failed.", errors)


def permission_error(what: str = "") -> PveError:
    """The 403 a refused permission check answers with."""
    return PveError(403, f"Permission check failed ({what})" if what else "Permission check failed")


@dataclass(frozen=True)
class AuthId:
    """Who calls: a user, perhaps through one of their tokens; `str()` is `user@realm` or `user@realm!token`."""

    user: str
    token: str | None = None

    def __str__(self) -> str:
        return f"{self.user}!{self.token}" if self.token else self.user

    @property
    def is_root(self) -> bool:
        """Root in person; a token of root's is not."""
        return self.user == "root@pam" and self.token is None


@dataclass(frozen=True)
class Upload:
    """The file part of a multipart request, spooled to `path`; whoever wants to keep it moves it away."""

    filename: str
    path: Path
    size: int


@dataclass
class Call:
    """One request on its way through a handler."""

    state: PveState
    method: str
    path: str
    raw: dict[str, Any]
    auth: AuthId | None = None
    params: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    upload: Upload | None = None
    asked: str = ""  # the host that the client asked, by name or address

    @property
    def answering(self) -> str:
        """The node that answers: the one whose address was asked, else the first."""
        online = (row for row in self.state.nodes.values() if row.online)
        return next((row.name for row in online if self.asked in (row.ip, row.name)), self.state.local_node)

    @property
    def flavour(self) -> str:
        """The version's two numbers that decide behaviour: "8.4" or "9.2"."""
        return self.state.flavour

    @property
    def clock(self) -> Clock:
        """The lab's clock."""
        return self.state.clock

    @property
    def node(self) -> str:
        """The node in the path; `localhost` is the node that answers."""
        node = str(self.raw.get("node", ""))
        return self.answering if node in ("", "localhost") else node

    @property
    def authid(self) -> str:
        """`user@realm` or `user@realm!token`; raises 403 when nobody is logged in."""
        if self.auth is None:
            raise permission_error("user != null")
        return str(self.auth)

    def allowed(self, path: str, *privs: str, any_of: bool = False) -> bool:
        """Whether the caller has all (or any) of the privileges on the path."""
        if self.auth is None:
            return False
        held = self.state.access.permissions(self.auth, path)
        return any(p in held for p in privs) if any_of else all(p in held for p in privs)

    def check(self, path: str, *privs: str, any_of: bool = False) -> None:
        """Nothing when the caller has the privileges; else the 403 with a real server's words."""
        if self.auth is None:
            raise permission_error("user != null")
        held = self.state.access.permissions(self.auth, path)
        if any_of:
            if not any(p in held for p in privs):
                raise permission_error(f"{path}, {'|'.join(privs)}")
            return
        for priv in privs:
            if priv not in held:
                raise permission_error(f"{path}, {priv}")

    def task(self, kind: str, id: str | int, work: Work, node: str | None = None) -> str:
        """The UPID of a new task that does `work(TaskContext)`; an error raised in it is its exit status."""
        return self.state.tasks.start(kind, str(id), work, node=node or self.node, user=self.authid)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode(value: Any) -> str:
    """The value as compact JSON."""
    return _ENCODER.encode(value)


@dataclass(frozen=True)
class Encoded:
    """An answer that is JSON already, for lists too long to be made anew for every call."""

    text: str

    @classmethod
    def rows(cls, rows: Iterable[str]) -> Encoded:
        """The list of rows that are JSON each."""
        return cls(f"[{','.join(rows)}]")

    @property
    def data(self) -> Any:
        """The value."""
        return json.loads(self.text)


class _Guest(Protocol):
    @property
    def vmid(self) -> int: ...


G = TypeVar("G", bound=_Guest)


def audited(call: Call, guests: Iterable[G], *privs: str) -> Iterator[G]:
    """Those of the guests on which the caller has the privileges.

    Guests that no ACL entry names and no pool holds all have what /vms gives, which is looked up once.
    """
    ordinary = call.allowed("/vms/0", *privs)
    if call.auth is not None and call.auth.is_root and ordinary:
        yield from guests
        return
    named = (path[5:] for path in call.state.access.acl if path.startswith("/vms/"))
    special = {int(vmid) for vmid in named if vmid.isdecimal()}
    special.update(vmid for pool in call.state.pools.values() for vmid in pool.vms)
    otherwise = {vmid for vmid in special if call.allowed(f"/vms/{vmid}", *privs) != ordinary}
    if not otherwise and ordinary:
        yield from guests
        return
    for guest in guests:
        if (guest.vmid in otherwise) != ordinary:
            yield guest


# ---------------------------------------------------------------------------------------------- permissions

Rule = Callable[[Call], None]
"""A permission rule: returns, or raises the 403. It sees `call.raw` only: parameters are not verified yet."""


def _fill(template: str, raw: Mapping[str, Any]) -> str:
    return re.sub(r"\{([^}]+)\}", lambda match: str(raw.get(match[1], "")), template)


def perm(path: str, *privs: str, any_of: bool = False) -> Rule:
    """The rule that the caller holds the privileges on `path`, in which `{name}` is a parameter."""

    def rule(call: Call) -> None:
        call.check(_fill(path, call.raw), *privs, any_of=any_of)

    return rule


def all_of(*rules: Rule) -> Rule:
    """The rule that every one of the rules holds; the first that does not names the reason."""

    def rule(call: Call) -> None:
        for each in rules:
            each(call)

    return rule


def one_of(*rules: Rule) -> Rule:
    """The rule that one of the rules holds; a real server then gives no reason."""

    def rule(call: Call) -> None:
        for each in rules:
            try:
                each(call)
            except PveError:
                continue
            return
        raise permission_error()

    return rule


# ---------------------------------------------------------------------------------------------- routes

Handler = Callable[[Call], Any | Awaitable[Any]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True)
class Route:
    """One endpoint: method, path template, and what a request must satisfy before the handler sees it."""

    method: str
    template: str
    handler: Handler
    params: Mapping[str, Param | Either]
    permission: str | Rule
    node: bool = False
    tokens: bool = True
    protected: bool = False
    upload: bool = False
    only: str | None = None
    _resolved: dict[str, Mapping[str, Param]] = field(default_factory=dict, compare=False, repr=False)

    def authorise(self, call: Call) -> None:
        """Nothing, or the 403 of a real server: world, any user, a rule, or root@pam in person.

        An endpoint the flavour does not have answers 501, as every unknown path does.
        """
        if self.only not in (None, call.flavour):
            raise PveError(501, f"Method '{call.method} {call.path}' not implemented", newline=False)
        if self.permission == "world":
            return
        if call.auth is None:
            raise permission_error("user != null")
        if call.auth.token and not self.tokens:
            # The missing parenthesis is the server's own.
            raise permission_error(f"URI '{call.path}' not available with API token, need proper ticket.\n")
        if call.auth.is_root or self.permission == "any":
            return
        if self.permission == "root-only":
            raise permission_error("user != root@pam")
        if callable(self.permission):
            self.permission(call)

    def specs(self, flavour: str) -> Mapping[str, Param]:
        """The parameters this flavour knows, in the form it knows them."""
        if flavour not in self._resolved:
            found = {n: spec.of(flavour) if isinstance(spec, Either) else spec for n, spec in self.params.items()}
            self._resolved[flavour] = {name: spec for name, spec in found.items() if spec is not None}
        return self._resolved[flavour]

    def verified(self, call: Call) -> dict[str, Any]:
        """The typed parameters, path arguments included; raises the 400 that names what is wrong."""
        typed, errors = verify(self.specs(call.flavour), call.raw)
        if errors:
            raise param_error(errors)
        return typed


VMID = Integer(format="pve-vmid", minimum=100, maximum=999999999)

PATH_PARAMS: dict[str, Param] = {
    "node": String(format="pve-node"),
    "vmid": VMID,
    "storage": String(format="pve-storage-id"),
}
"""Path arguments every area means the same by; an endpoint may name its own in `params`."""


@dataclass
class _Branch:
    children: dict[str, _Branch] = field(default_factory=dict)
    argument: _Branch | None = None
    methods: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)
    rest: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)


class Router:
    """Routes by path: a literal segment wins over an argument, as in the server's own tree."""

    def __init__(self) -> None:
        self._root = _Branch()
        self.routes: list[Route] = []

    def add(self, new: Route) -> None:
        """Take the route in; a second one for the same method and path replaces the first."""
        branch, names = self._root, []
        for segment in filter(None, new.template.split("/")):
            if segment.endswith(":rest}"):
                names.append(segment[1:-6])
                branch.rest[new.method] = (new, tuple(names))
                break
            if segment.startswith("{"):
                names.append(segment[1:-1])
                branch.argument = branch.argument or _Branch()
                branch = branch.argument
            else:
                branch = branch.children.setdefault(segment, _Branch())
        else:
            branch.methods[new.method] = (new, tuple(names))
        self.routes = [r for r in self.routes if (r.method, r.template) != (new.method, new.template)] + [new]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route and its path arguments; None where a real server answers 501."""
        segments = [segment for segment in path.split("/") if segment]
        found = self._walk(self._root, method, segments, ())
        if found is None:
            return None
        (matched, names), values = found
        return matched, dict(zip(names, values, strict=True))

    def _walk(
        self, branch: _Branch, method: str, segments: list[str], values: tuple[str, ...]
    ) -> tuple[tuple[Route, tuple[str, ...]], tuple[str, ...]] | None:
        if not segments:
            return (branch.methods[method], values) if method in branch.methods else None
        head, tail = segments[0], segments[1:]
        if head in branch.children and (found := self._walk(branch.children[head], method, tail, values)):
            return found
        if branch.argument and (found := self._walk(branch.argument, method, tail, (*values, head))):
            return found
        if method in branch.rest:
            return branch.rest[method], (*values, "/".join(segments))
        return None


ROUTER = Router()
"""Every endpoint of every area that was imported."""


def route(
    method: str,
    template: str,
    *,
    params: Mapping[str, Param | Either] | None = None,
    permission: str | Rule = "root-only",
    node: bool | None = None,
    tokens: bool = True,
    protected: bool = False,
    upload: bool = False,
    only: str | None = None,
) -> Callable[[H], H]:
    """A decorator that makes the function the endpoint.

    permission: "world" (no login), "any" (any login), "root-only", or a rule made by `perm`, `all_of`, `one_of`
    or by hand. node: the request belongs to the node in the path, so an unknown node answers 500 and an offline
    one 595; the default is True for every path under /nodes/{node}. tokens=False: only a ticket will do.
    only: the one flavour that has the endpoint.
    """
    arguments = [name.removesuffix(":rest") for name in re.findall(r"\{([^}]+)\}", template)]
    specs: dict[str, Param | Either] = {name: PATH_PARAMS.get(name, String()) for name in arguments}
    specs.update(params or {})

    def register(handler: H) -> H:
        proxied = template.startswith("/nodes/{node}") if node is None else node
        ROUTER.add(Route(method, template, handler, specs, permission, proxied, tokens, protected, upload, only))
        return handler

    return register


def endpoints() -> Iterator[tuple[str, str]]:
    """Method and path template of every endpoint, sorted by path: the coverage of the emulator."""
    yield from sorted(((each.method, each.template) for each in ROUTER.routes), key=lambda pair: (pair[1], pair[0]))
