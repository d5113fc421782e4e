"""Faults: rules that make either API misbehave, as data."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from aiohttp import web

from .clock import Clock
from .dice import SEED, Dice

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CERTIFICATES = ("expired", "wrong-host")
HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"


@dataclass(frozen=True)
class Fault:
    """One rule. It fits a request by system, method and path (a regular expression searched in path and query).

    What it does: `slow` waits that many lab seconds first; then one of `status` (with `reason`, `body`, `headers`),
    `reset` (the connection breaks without an answer), `truncate` (half of the true body, then the connection
    breaks) or `html` (a proxy's error page); with none of them the request goes on. Of Kubernetes, `watch` lets a watch
    begin and then breaks it ("drop") or sends an ERROR event of `status` in it ("error", 410 unless told), and `stale`
    is how many changes the answer to a list lags behind. `frozen` answers again what was answered first.
    `after` lets that many fitting requests pass first, `times` is how many it then hits (None: all), `probability`
    how likely each of those is hit; the same seed hits the same ones, counted rule by rule.

    A rule with `task`, a regular expression on a Proxmox VE task's type, hits tasks instead of requests: the task
    fails with `text`, or is `stuck` until somebody stops it. A rule with `certificate` makes the API of its system
    show an `expired` certificate or one for another host (`wrong-host`) until the rules are cleared.
    """

    system: str = "any"
    method: str = "*"
    path: str = ""
    status: int | None = None
    reason: str | None = None
    body: Any = None
    headers: Mapping[str, str] | None = None
    slow: float = 0.0
    reset: bool = False
    truncate: bool = False
    html: bool = False
    watch: str | None = None
    stale: int = 0
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    frozen: bool = False
    task: str | None = None
    text: str = "injected fault"
    stuck: bool = False
    certificate: str | None = None

    def fits(self, system: str, method: str, path: str) -> bool:
        """Whether the rule speaks of this request."""
        if self.task is not None or self.certificate is not None:
            return False
        return (
            self.system in ("any", system)
            and self.method.upper() in ("*", method)
            and re.search(self.path, path) is not None
        )


_KINDS: Mapping[str, tuple[Any, str]] = {
    "system": (str, "a word"),
    "method": (str, "a word"),
    "path": (str, "a text"),
    "status": (int, "a whole number"),
    "slow": ((int, float), "a number of seconds"),
    "reset": (bool, "true or false"),
    "truncate": (bool, "true or false"),
    "html": (bool, "true or false"),
    "watch": (str, "drop or error"),
    "stale": (int, "a whole number"),
    "after": (int, "a whole number"),
    "times": (int, "a whole number"),
    "probability": ((int, float), "a number from 0 to 1"),
    "frozen": (bool, "true or false"),
    "task": (str, "a regular expression"),
    "text": (str, "a text"),
    "stuck": (bool, "true or false"),
    "certificate": (str, "a word"),
}


def fault_from(entry: Mapping[str, Any]) -> Fault:
    """The rule a scenario or a request describes; raises ValueError for what it cannot mean."""
    known = {each.name for each in fields(Fault)}
    for key in entry:
        if key not in known:
            raise ValueError(f"fault: no such key: {key}; known are {', '.join(sorted(known))}")
    fault = Fault(**dict(entry))
    for key, (kind, told) in _KINDS.items():
        value = getattr(fault, key)
        if value is not None and (isinstance(value, bool) != (kind is bool) or not isinstance(value, kind)):
            raise ValueError(f"fault: {key} is {told}, not {value!r}")
    if fault.status is not None and not 100 <= fault.status <= 599:
        raise ValueError(f"fault: status is a number from 100 to 599, not {fault.status}")
    if fault.certificate not in (None, *CERTIFICATES):
        raise ValueError(f"fault: certificate is {' or '.join(CERTIFICATES)}, not {fault.certificate}")
    if not 0 <= fault.probability <= 1:
        raise ValueError(f"fault: probability is from 0 to 1, not {fault.probability}")
    if fault.watch not in (None, "drop", "error"):
        raise ValueError(f"fault: watch is drop or error, not {fault.watch}")
    if fault.system not in ("any", "proxmox", "kubernetes"):
        raise ValueError(f"fault: system is any, proxmox or kubernetes, not {fault.system}")
    for name, pattern in (("path", fault.path), ("task", fault.task or "")):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"fault: {name} is no regular expression: {error}") from error
    return fault


FAULT: web.RequestKey[Fault] = web.RequestKey("fault", Fault)
"""Where a request carries the fault that its handler has to act out."""


class Faults:
    """The rules in force, in order; the first that fits a request decides."""

    def __init__(self, clock: Clock, rules: Iterable[Fault] = (), *, seed: int = SEED) -> None:
        self.clock = clock
        self._rules = list(rules)
        self._dice = Dice(seed)
        self._first: dict[tuple[str, str], web.Response] = {}

    def add(self, fault: Fault) -> None:
        """Take one more rule in, before those that are there."""
        self._rules.insert(0, fault)

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()
        self._first.clear()
        self._dice = Dice(self._dice.seed)

    def rules(self) -> list[dict[str, Any]]:
        """The rules as data."""
        return [asdict(rule) for rule in self._rules]

    def take(self, system: str, method: str, path: str) -> Fault | None:
        """The rule that hits this request, counted; None lets it pass."""
        return self._hit(lambda rule: rule.fits(system, method, path))

    def task(self, kind: str) -> Fault | None:
        """The rule that hits a new task of this type, counted; None lets it work."""
        return self._hit(lambda rule: rule.task is not None and re.search(rule.task, kind) is not None)

    def certificate(self, system: str) -> str | None:
        """What is wrong with the certificate of this API; None when nothing is."""
        found = (rule.certificate for rule in self._rules if rule.certificate and rule.system in ("any", system))
        return next(found, None)

    def _hit(self, fits: Callable[[Fault], bool]) -> Fault | None:
        for index, rule in enumerate(self._rules):
            if rule.times == 0 or not fits(rule):
                continue
            if rule.probability < 1 and self._dice.fraction(_name(rule)) >= rule.probability:
                continue
            if rule.after:
                self._rules[index] = replace(rule, after=rule.after - 1)
                continue
            if rule.times is not None:
                self._rules[index] = replace(rule, times=rule.times - 1)
            return rule
        return None

    def middleware(self, system: str) -> Any:
        """An aiohttp middleware that applies the rules to one of the APIs."""

        @web.middleware
        async def apply(request: web.Request, handler: Handler) -> web.StreamResponse:
            fault = self.take(system, request.method, request.raw_path) if self._rules else None
            if fault is None:
                return await handler(request)
            if fault.slow:
                await self.clock.sleep(fault.slow)
            if fault.frozen:
                return await self._again(request, handler)
            return await _strike(fault, system, request, handler)

        return apply

    async def _again(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What the first such request was answered; the first one goes through."""
        key = (request.method, request.raw_path)
        if key not in self._first:
            answer = await handler(request)
            if not isinstance(answer, web.Response):
                return answer
            self._first[key] = answer
        first = self._first[key]
        return web.Response(status=first.status, reason=first.reason, body=first.body, headers=first.headers)


def _name(rule: Fault) -> str:
    """A rule's own dice, so that what others meet does not change what it hits; its counters are no part of it."""
    return repr(replace(rule, after=0, times=None))


async def _strike(fault: Fault, system: str, request: web.Request, handler: Handler) -> web.StreamResponse:
    if fault.reset:
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError
    if fault.html:
        return web.Response(status=fault.status or 502, body=HTML, headers={"Content-Type": "text/html"})
    if fault.watch or fault.stale:
        request[FAULT] = fault
    elif fault.status is not None:
        return _refusal(fault, system)
    response = await handler(request)
    if fault.truncate:
        return await _half(request, response)
    return response


def _refusal(fault: Fault, system: str) -> web.Response:
    status = fault.status or 500
    body, reason = fault.body, fault.reason or f"injected fault {status}"
    if body is None and system == "kubernetes":
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body |= {"message": reason, "reason": _KUBERNETES_REASONS.get(status, "InternalError"), "code": status}
    elif body is None and status not in (401, 595, 596, 599):
        body = {"data": None, "message": f"{reason}\n"}
    text = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
    headers = {"Content-Type": "application/json", **(fault.headers or {})}
    response = web.Response(status=status, reason=reason, body=text.encode(), headers=headers)
    response.force_close()
    return response


_KUBERNETES_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
    504: "Timeout",
}


async def _half(request: web.Request, whole: web.StreamResponse) -> web.StreamResponse:
    body = whole.body if isinstance(whole, web.Response) and isinstance(whole.body, bytes) else b""
    part = web.StreamResponse(status=whole.status, reason=whole.reason, headers=whole.headers)
    part.content_length = max(len(body), 2)
    await part.prepare(request)
    await part.write(body[: len(body) // 2] or b"{")
    if request.transport is not None:
        request.transport.close()
    return part
