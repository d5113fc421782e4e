"""The one place that proxmoxer's session and the Kubernetes client pass through.

Both ride on urllib3, so the seam is a connection pool whose `urlopen` times, guards, retries reads and tells the
observers. `proxmox_adapter` puts it under requests, `attach_kubernetes` under the Kubernetes REST client.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3
import urllib3.exceptions as u3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from runbook_lib.answers import Dripping, error_for, one_line, shown_path, system_name, transport_error
from runbook_lib.errors import BadAnswer, ParameterError, ReadOnly, Refused
from runbook_lib.model import now
from runbook_lib.secrets import redact

__all__ = ["Exchange", "Trust", "Wire", "attach_kubernetes", "error_for", "mutates", "proxmox_adapter"]

Sender = Callable[[urllib3.Timeout], urllib3.BaseHTTPResponse]

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_RETRIED = frozenset({"GET", "HEAD"})
_RETRIED_STATUS = frozenset({429, 502, 503, 504})
_RETRIED_ONCE = frozenset({595, 596, 599})  # pveproxy could not reach the node
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LINES_OF_JSON = frozenset({"application/stream+json", "application/x-ndjson"})
_LARGEST_BODY = 256 * 1024 * 1024

_streaming: ContextVar[bool] = ContextVar("streaming", default=False)


@dataclass(frozen=True)
class Exchange:
    """One request as it went over the wire; a retried one gives several, told apart by `attempt` (from 1)."""

    system: str  # "proxmox" | "kubernetes"
    method: str
    path: str  # without query, without /api2/json
    status: int  # 0 = no answer
    reason: str
    seconds: float
    attempt: int
    started: str
    error: str = ""
    change: str = ""  # id of the change that permitted it


Observer = Callable[[Exchange], None]


@dataclass(frozen=True)
class Trust:
    """Whom to believe: a CA file, a pinned SHA-256 certificate fingerprint, the system's CAs (default), or anyone."""

    ca_file: str | None = None
    fingerprint: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.fingerprint and not re.fullmatch(r"[0-9a-fA-F]{64}", self.fingerprint.replace(":", "")):
            raise ParameterError("fingerprint", "not a SHA-256 fingerprint", "64 hex digits, as in `pvenode cert info`")

    @classmethod
    def of(cls, endpoint: Any) -> Trust:
        """What the `proxmox` part of a site says about trust."""
        return cls(endpoint.ca_file, endpoint.fingerprint, endpoint.verify)

    def pool_arguments(self) -> dict[str, Any]:
        """What urllib3's pools want to hear."""
        if not self.verify:
            return {"cert_reqs": "CERT_NONE", "assert_hostname": False}
        if self.fingerprint:  # the pin replaces chain and host name: PVE's own certificate has neither here
            return {"cert_reqs": "CERT_NONE", "assert_hostname": False, "assert_fingerprint": self.fingerprint}
        return {"cert_reqs": "CERT_REQUIRED", "ssl_context": self.context()}

    def context(self) -> ssl.SSLContext:
        """A context that verifies chain and host name against `ca_file`, or the system's CAs."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            came = error.strerror if isinstance(error, FileNotFoundError) else "it holds no certificate in PEM"
            raise ParameterError(
                f"ca_file {self.ca_file}", str(came), "PVE's own is /etc/pve/pve-root-ca.pem"
            ) from error
        if self.ca_file is None and not _system_has_authorities():
            import certifi

            context.load_verify_locations(certifi.where())
        # Python 3.13 turns this on; CAs made by older PVE releases lack the extensions it asks for
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def _system_has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    return any(place and Path(place).exists() for place in (paths.cafile, paths.capath))


class Wire:
    """One system under one identity: what is sent, how often, and who hears of it.

    `exchanges` are the last 10 000 attempts, `count` all of them. `timeout` bounds one wait for the server, `total`
    (default twice that) a request with all its retries, in seconds.
    """

    def __init__(
        self,
        system: str,
        *,
        observers: Iterable[Observer] = (),
        retries: int = 3,
        timeout: float = 30.0,
        total: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.system, self.retries, self.timeout = system, retries, timeout
        self.total = 2 * timeout if total is None else total
        self.exchanges: deque[Exchange] = deque(maxlen=10_000)
        self.count = 0
        self._observers = list(observers)
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._lock = threading.Lock()
        self._change: ContextVar[str] = ContextVar("change", default="")

    def observe(self, callback: Observer) -> None:
        """None; from now on `callback` hears of every exchange, right after it and in the thread that made it."""
        self._observers.append(callback)

    @contextmanager
    def permit(self, change_id: str) -> Iterator[None]:
        """A context in which this thread may mutate through this wire; `change_id` is written on every exchange."""
        if not change_id:
            raise ValueError("a permit names its change")
        token = self._change.set(change_id)
        try:
            yield
        finally:
            self._change.reset(token)

    def guard(self, method: str, path: str) -> None:
        """None, when `method path` may be sent now. Raises ReadOnly for a mutation outside `permit`."""
        if mutates(self.system, method, path) and not self._change.get():
            raise ReadOnly(
                f"{method} {shown_path(self.system, path)} on {system_name(self.system)} was not sent",
                "it changes something and belongs to no approved plan",
                "put it into a plan: step.plan, then step.apply",
            )

    @contextmanager
    def record(self, method: str, path: str) -> Iterator[None]:
        """A context for what cannot pass a pool (a websocket): guarded, timed and told to the observers."""
        self.guard(method, path)
        started, at = now(), self._clock()
        try:
            yield
        except BaseException as error:
            self._tell(method, path, 0, "", at, started, 1, error=type(error).__name__)
            raise
        self._tell(method, path, 101, "Switching Protocols", at, started, 1)

    def exchange(self, method: str, path: str, where: str, send: Sender, timeout: Any) -> urllib3.BaseHTTPResponse:
        """The answer to one guarded request, reads retried; `send` makes one attempt and fails as urllib3 does."""
        self.guard(method, path)
        began, attempt = self._clock(), 0
        while True:
            attempt += 1
            left = max(0.1, began + self.total - self._clock())
            limits = _limits(timeout, self.timeout, path, left=left if attempt > 1 else None)
            patience = limits.read_timeout if isinstance(limits.read_timeout, float) else self.timeout
            deadline = began + max(self.total, patience)
            response, error = self._attempt(method, path, send, limits, attempt, deadline=deadline)
            wait = self._wait_before_next(method, response, error, attempt, left=began + self.total - self._clock())
            if wait is not None:
                self._sleep(wait)
            elif error is not None:
                raise transport_error(
                    self.system, method, path, where, error, timeout=patience, attempts=attempt
                ) from error
            elif response is not None:
                return self._checked(method, path, where, response)

    def _attempt(
        self, method: str, path: str, send: Sender, limits: urllib3.Timeout, attempt: int, *, deadline: float
    ) -> tuple[urllib3.BaseHTTPResponse | None, u3.HTTPError | OSError | None]:
        started, at = now(), self._clock()
        try:
            response = send(limits)
            if not is_stream(path):
                response = _read_whole(response, lambda: self._clock() > deadline)
        except (u3.HTTPError, OSError) as error:
            self._tell(method, path, 0, "", at, started, attempt, error=f"{type(error).__name__}: {error}")
            return None, error
        self._tell(method, path, response.status, response.reason or "", at, started, attempt)
        return response, None

    def _wait_before_next(
        self,
        method: str,
        response: urllib3.BaseHTTPResponse | None,
        error: Exception | None,
        attempt: int,
        *,
        left: float,
    ) -> float | None:
        """Seconds until the next attempt; None when there is to be none."""
        if method not in _RETRIED or attempt > self.retries:
            return None
        if error is not None and not _may_pass(error):
            return None
        if response is not None:
            again = response.status in _RETRIED_STATUS or (response.status in _RETRIED_ONCE and attempt == 1)
            if not again:
                return None
        asked = _retry_after(response) if response is not None else None
        # full jitter: clients that failed together must not come back together
        wait = self._jitter() * min(5.0, 0.2 * 2**attempt) if asked is None else asked + 0.1 * self._jitter()
        return wait if wait < left else None

    def _checked(
        self, method: str, path: str, where: str, response: urllib3.BaseHTTPResponse
    ) -> urllib3.BaseHTTPResponse:
        if response.status in _REDIRECTS:
            target = one_line(response.headers.get("Location", "nowhere").partition("?")[0], 160)
            raise Refused(
                f"{system_name(self.system)} at {where} sent {method} {shown_path(self.system, path)} elsewhere",
                f"a redirect ({response.status}) to {target}, which is not followed",
                "an API does not redirect: check url, and any proxy in between",
                system=self.system,
                method=method,
                path=shown_path(self.system, path),
                status=response.status,
                reason=response.reason or "",
            )
        if 200 <= response.status < 300 and method != "HEAD" and not is_stream(path):
            self._refuse_what_is_no_answer(method, path, where, response)
        return response

    def _refuse_what_is_no_answer(self, method: str, path: str, where: str, response: urllib3.BaseHTTPResponse) -> None:
        came = _flaw(self.system, response)
        if came:
            raise BadAnswer(
                f"{system_name(self.system)} at {where} answered {method} {shown_path(self.system, path)}"
                f" ({response.status}) with something else than its API promises",
                came,
                "check url (PVE: https://host:8006), and any proxy or login page in between",
                system=self.system,
                method=method,
                path=shown_path(self.system, path),
                status=response.status,
                reason=response.reason or "",
            )

    def _tell(
        self,
        method: str,
        path: str,
        status: int,
        reason: str,
        at: float,
        started: str,
        attempt: int,
        *,
        error: str = "",
    ) -> None:
        seconds = self._clock() - at
        shown = shown_path(self.system, path)
        exchange = Exchange(
            self.system,
            method,
            shown,
            status,
            redact(reason),
            seconds,
            attempt,
            started,
            redact(error),
            self._change.get(),
        )
        with self._lock:
            self.count += 1
        self.exchanges.append(exchange)
        for callback in tuple(self._observers):
            callback(exchange)


# --- what mutates ------------------------------------------------------------------------------------------------

# Reads that need a body, and so come as POST.
_DISGUISED = re.compile(
    r"/(?:self)?subject(?:accessreviews|rulesreviews|reviews)$|/localsubjectaccessreviews$|/tokenreviews$"
)
_INSIDE = re.compile(r"/pods/[^/]+/(?:exec|attach|portforward)$|/(?:pods|services|nodes)/[^/]+/proxy(?:/|$)")
# What programs of monitoring answer without doing anything; whatever else is behind a proxy may do anything.
_QUESTIONS = re.compile(
    r"/services/[^/]+/proxy(?:/select/[0-9:]+/prometheus)?"
    r"/(?:api/v1/(?:query|query_range|series|labels|targets|rules|alerts)|api/v2/alerts|api/health"
    r"|select/logsql/query|health|-/healthy)$"
)
_CONSOLES = re.compile(r"/(?:vncwebsocket|termproxy|vncproxy|spiceproxy)$")


def mutates(system: str, method: str, path: str) -> bool:
    """True when the request may change something; `path` with its query, as it is sent.

    Not by the method alone: reviews, dry runs and logins are POSTs that change nothing, and a GET of pods/…/exec runs
    a command.
    """
    parts = urlsplit(path)
    bare = parts.path.rstrip("/")
    if system == "kubernetes":
        if _INSIDE.search(bare):
            return method not in {"GET", "HEAD"} or not _QUESTIONS.search(bare)
        if method in _READS or "All" in parse_qs(parts.query).get("dryRun", ()):
            return False
        return not (method == "POST" and _DISGUISED.search(bare))
    if method in _READS:
        return _CONSOLES.search(bare) is not None
    return not (method == "POST" and shown_path(system, bare) == "/access/ticket")


def is_stream(path: str) -> bool:
    """True when the answer of `path` has no end to wait for, or the caller of the adapter asked for a stream."""
    query = parse_qs(urlsplit(path).query)
    return _streaming.get() or any(query.get(name, [""])[-1] in {"true", "1"} for name in ("watch", "follow"))


# --- one attempt -------------------------------------------------------------------------------------------------


def _limits(given: Any, ours: float, path: str, *, left: float | None) -> urllib3.Timeout:
    """The caller's limits where it has any, `ours` else; a retry gets no more than is `left` of the whole.

    A stream may be silent as long as it was asked to last.
    """
    connect, read = given, given
    if isinstance(given, urllib3.Timeout):
        connect, read = given.connect_timeout, given._read if _is_number(given._read) else given.total
    if is_stream(path) and not _is_number(read):
        asked = parse_qs(urlsplit(path).query).get("timeoutSeconds", [""])[-1]
        return urllib3.Timeout(connect=ours, read=float(asked) + ours if asked.isdigit() else None)
    limits = [float(value) if _is_number(value) else ours for value in (connect, read)]
    if left is not None:
        limits = [min(limit, left) for limit in limits]
    return urllib3.Timeout(connect=limits[0], read=limits[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, Enum) and value >= 0


def _read_whole(response: urllib3.BaseHTTPResponse, late: Callable[[], bool]) -> urllib3.BaseHTTPResponse:
    """The same answer with its body in memory, decoded, so that a connection that breaks in it can be retried."""
    raw = bytearray()
    try:
        while chunk := response.read1(65536, decode_content=False):
            raw += chunk
            if late():
                raise Dripping
            if len(raw) > _LARGEST_BODY:
                raise u3.DecodeError("the answer is larger than 256 MiB")
    except http.client.HTTPException as error:
        raise u3.ProtocolError(str(error), error) from error
    except BaseException:
        response.close()
        raise
    finally:
        response.release_conn()
    headers = urllib3.HTTPHeaderDict(response.headers)
    for name in ("Transfer-Encoding", "Content-Length"):
        headers.pop(name, None)
    if "Content-Encoding" in headers:
        body = urllib3.HTTPResponse(BytesIO(bytes(raw)), headers=headers, status=response.status).data
        headers.pop("Content-Encoding", None)
    else:
        body = bytes(raw)
    whole = urllib3.HTTPResponse(
        BytesIO(body),
        headers=headers,
        status=response.status,
        reason=response.reason,
        version=response.version,
        preload_content=False,
        request_url=response._request_url if isinstance(response, urllib3.HTTPResponse) else None,
    )
    whole.wire_body = body  # type: ignore[attr-defined]  # for the check of its form, without reading it away
    return whole


def _may_pass(error: Exception) -> bool:
    """True for what another attempt may mend: not a certificate, not a header that breaks the rules."""
    original = error.original_error if isinstance(error, u3.ProxyError) else error
    return not isinstance(original, u3.SSLError | u3.DecodeError | u3.InvalidHeader | u3.LocationValueError)


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds the server asked for, by number or by date; at most 30."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return min(30.0, float(text[:6]))
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return min(30.0, max(0.0, when.timestamp() - time.time()))


def _flaw(system: str, response: urllib3.BaseHTTPResponse) -> str:
    """What is wrong with the form of a successful answer; empty when nothing is."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    body: bytes = getattr(response, "wire_body", b"")
    if "html" in kind or body.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if system != "proxmox" and (not (kind.endswith("json") and body) or kind in _LINES_OF_JSON):
        return ""
    if "json" not in kind:
        return f"content type {kind or 'not given'} instead of JSON"
    try:
        data = json.loads(body)
    except ValueError:
        return f"JSON that ends or breaks within its {len(body)} bytes" if body else "an empty body"
    if system == "proxmox" and not (isinstance(data, dict) and "data" in data):
        return "JSON without `data`"
    return ""


# --- the seam ----------------------------------------------------------------------------------------------------


def _pool_classes(wire: Wire, *, unverified: bool) -> Mapping[str, type[HTTPConnectionPool]]:
    """urllib3 pools that send through `wire`; `unverified` ones do not warn, because the site opted in."""

    class Plain(HTTPConnectionPool):
        def urlopen(self, method: str, url: str, **kw: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
            timeout = kw.pop("timeout", None)
            kw |= {"retries": False, "redirect": False, "preload_content": False}

            def send(limits: urllib3.Timeout) -> urllib3.BaseHTTPResponse:
                return super(Plain, self).urlopen(method, url, timeout=limits, **kw)

            return wire.exchange(method.upper(), url, f"{self.host}:{self.port}", send, timeout)

    class Secure(Plain, HTTPSConnectionPool):
        def _validate_conn(self, conn: Any) -> None:
            if not unverified:
                return super()._validate_conn(conn)
            if conn.is_closed:
                conn.connect()
            return None

    return {"http": Plain, "https": Secure}


class _WireAdapter(HTTPAdapter):
    """requests' way to urllib3, with our pools and our trust; the session's `verify` has no say."""

    def __init__(self, wire: Wire, trust: Trust) -> None:
        self._classes = _pool_classes(wire, unverified=not trust.verify)
        self._pool_arguments = trust.pool_arguments()
        super().__init__(pool_maxsize=32)

    def init_poolmanager(self, *args: Any, **kw: Any) -> None:
        super().init_poolmanager(*args, **kw)
        self.poolmanager.pool_classes_by_scheme = self._classes

    def proxy_manager_for(self, proxy: str, **kw: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kw)
        manager.pool_classes_by_scheme = self._classes
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, True, cert)
        return host, dict(self._pool_arguments) if host["scheme"] == "https" else {}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """None; the pool was made with our trust already, and requests would overwrite it here."""

    def send(self, request: Any, stream: bool = False, **kw: Any) -> Any:  # type: ignore[override]
        token = _streaming.set(bool(stream))
        # a session that must not read ~/.netrc has trust_env off, which would switch proxies off as well
        kw["proxies"] = {} if _is_loopback(request.url) else kw.get("proxies") or get_environ_proxies(request.url)
        try:
            return super().send(request, stream=stream, **kw)
        finally:
            _streaming.reset(token)


def _is_loopback(url: str) -> bool:
    """True for the lab and for tunnels, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def proxmox_adapter(wire: Wire, trust: Trust) -> HTTPAdapter:
    """An adapter to mount on a requests session for https://; every request of it passes `wire` and `trust`.

    HTTPS_PROXY and NO_PROXY work as requests has them; REQUESTS_CA_BUNDLE has no say.
    Raises ParameterError for a CA file that cannot be read.
    """
    return _WireAdapter(wire, trust)


def attach_kubernetes(wire: Wire, api_client: Any) -> None:
    """None; from now on every request of `api_client` passes `wire`. TLS and proxy stay as its configuration says.

    Exec, attach and port-forward leave the pool for a websocket: put them into `wire.record("GET", path)`.
    """
    configuration = api_client.configuration
    if configuration.proxy and _is_loopback(configuration.host):
        configuration.proxy = None
        api_client.rest_client = type(api_client.rest_client)(configuration)
    manager = api_client.rest_client.pool_manager
    manager.clear()
    manager.pool_classes_by_scheme = _pool_classes(wire, unverified=not configuration.verify_ssl)
