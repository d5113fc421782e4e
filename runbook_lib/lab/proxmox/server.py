"""The wire of the Proxmox VE API: from an HTTP request to a `Call` and from its outcome to the answer.

Rules as pveproxy has them: authentication first (401 with an empty body, late), then the body's limits, then the
route (501), permission (403), the node it belongs to (500, 595), and only then the parameters (400). The reason
phrase carries the first line of the message, and the connection is closed after any code of 400 or more.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import inspect
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import BodyPartReader, web

from ..quiet import calm
from . import tickets
from .consoles import quiet
from .routing import REASONS, ROUTER, AuthId, Call, Encoded, PveError, Route, Upload, encode, param_error
from .state import PveState, areas

log = logging.getLogger(__name__)

JSON = "application/json;charset=UTF-8"
MAX_BODY = 512 * 1024
FORMATTERS = ("json", "extjs", "html", "text")
METHODS = ("GET", "POST", "PUT", "DELETE")
_OPEN = {
    ("GET", "/access/domains"),
    ("GET", "/access/ticket"),
    ("POST", "/access/ticket"),
    ("POST", "/access/openid/auth-url"),
    ("POST", "/access/openid/login"),
}
_UPLOAD_PATH = re.compile(r"/nodes/[^/]+/storage/([^/]+)/upload")

STATE = web.AppKey("state", PveState)


class ServerError(Exception):
    """An answer of the HTTP server itself, before any formatter: a reason and perhaps the same as plain text."""

    def __init__(self, status: int, reason: str, *, text: bool = False, delay: float = 0.0) -> None:
        self.status, self.reason, self.text, self.delay = status, reason, text, delay
        super().__init__(reason)


def create_app(state: PveState, middlewares: Any = ()) -> web.Application:
    """The application that answers for this cluster; `middlewares` are faults and the like."""
    calm()
    app = web.Application(client_max_size=MAX_BODY, middlewares=(_elsewhere, *middlewares))
    app[STATE] = state
    for area in areas():
        if hasattr(area, "live"):
            app.cleanup_ctx.append(_alongside(area.live, state))
    app.router.add_route("*", r"/{tail:[\s\S]*}", _handle)
    return app


@web.middleware
async def _elsewhere(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """The answer; what names no path at all, as a proxy is asked, is an unknown method or not found here."""
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        if request.method not in METHODS:
            return _response(501, f"method '{request.method}' not available", b"", None)
        return _response(400, "bad request", b"bad request\n", None)
    return answer


def _alongside(live: Callable[[PveState], Coroutine[Any, Any, None]], state: PveState) -> Any:
    """What keeps an area's own work going for as long as the application answers."""

    async def context(_: web.Application) -> AsyncIterator[None]:
        work = asyncio.get_running_loop().create_task(live(state))
        yield
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    return context


async def _handle(request: web.Request) -> web.Response:
    state = request.app[STATE]
    try:
        return await _answer(state, request)
    except ServerError as error:
        await state.clock.sleep(error.delay)
        body = f"{error.reason}\n".encode() if error.text else b""
        return _response(error.status, error.reason, body, None)


async def _answer(state: PveState, request: web.Request) -> web.Response:
    method = request.method
    raw_path, _, query = request.raw_path.partition("?")
    path = unquote(raw_path)
    if method not in METHODS:
        raise ServerError(501, f"method '{method}' not available")
    match = re.fullmatch(r"/api2/([a-z]+)(/.*)?", path)
    if not match:
        if path == "/":
            return _response(200, "OK", b"<!DOCTYPE html><title>pve - Proxmox Virtual Environment</title>", "text/html")
        raise ServerError(500, f"no such file '{path}'", text=True)
    formatter, uri = match[1], re.sub("/+", "/", match[2] or "/")
    if formatter not in FORMATTERS:
        raise ServerError(501, f"no such uri {path}")
    uri = uri.rstrip("/") or "/"
    auth = _authenticate(state, request, method, uri)
    spooled: list[Path] = []
    try:
        raw, upload = await _parameters(state, request, method, uri, query, spooled)
        answer = await _dispatch(state, method, uri, raw, auth, upload, formatter, _host(request))
        if answer.status == 200 and uri.endswith("/vncwebsocket") and "Upgrade" in request.headers:
            return await _console(state, request, uri, raw)
        return answer
    finally:
        for file in spooled:
            file.unlink(missing_ok=True)


async def _console(state: PveState, request: web.Request, uri: str, raw: Mapping[str, Any]) -> Any:
    """The websocket of a console, once its ticket was found to be right."""
    socket = web.WebSocketResponse(protocols=("binary",))
    await socket.prepare(request)
    node = uri.split("/")[2]
    await quiet(state, state.local_node if node == "localhost" else node, int(raw["port"]), socket)
    return socket


# ---------------------------------------------------------------------------------------------- authentication


def _value_of(header: str | None, name: str) -> str | None:
    if not header:
        return None
    match = _VALUES[name].search(header)
    return unquote(match[1]) if match else None


_VALUES = {name: re.compile(rf"(?:^|\s){name}(?:=| )([^;]*)") for name in ("PVEAuthCookie", "PVEAPIToken")}


def _authenticate(state: PveState, request: web.Request, method: str, uri: str) -> AuthId | None:
    """Who calls, by cookie, then by header; None on the few paths that need nobody."""
    if (method, uri) in _OPEN:
        return None
    now, header = state.clock.now(), request.headers.get("Authorization")
    ticket = _value_of(request.headers.get("Cookie"), "PVEAuthCookie") or _value_of(header, "PVEAuthCookie")
    if not ticket and (token := _value_of(header, "PVEAPIToken")):
        identity = state.access.by_token(token)
        if identity is None:
            raise ServerError(401, "Authentication failed!", delay=state.auth_delay_seconds)
        return identity
    if not ticket:
        raise ServerError(401, "No ticket", delay=state.auth_delay_seconds)
    user = tickets.user_of(state.secret, ticket, now)
    if user and user.startswith(tickets.TFA_MARK):
        raise ServerError(401, "No ticket", delay=state.auth_delay_seconds)
    if user is None or not state.access.is_enabled(user):
        raise ServerError(401, "Authentication failed!", delay=state.auth_delay_seconds)
    if (
        method != "GET"
        and not (method == "POST" and _UPLOAD_PATH.fullmatch(uri))
        and not tickets.csrf_fits(state.secret, user, request.headers.get("CSRFPreventionToken", ""), now)
    ):
        raise ServerError(401, "Permission denied - invalid csrf token", delay=state.auth_delay_seconds)
    return AuthId(user)


# ---------------------------------------------------------------------------------------------- parameters


async def _parameters(
    state: PveState, request: web.Request, method: str, uri: str, query: str, spooled: list[Path]
) -> tuple[dict[str, Any], Upload | None]:
    raw: dict[str, Any] = {}
    upload: Upload | None = None
    if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
        raise ServerError(501, "chunked transfer encoding not supported", text=True)
    length = request.content_length or 0
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if length and method not in ("POST", "PUT"):
        raise ServerError(501, f"Unexpected content for method '{method}'", text=True)
    if kind == "multipart/form-data" and _UPLOAD_PATH.fullmatch(uri):
        raw, upload = await _multipart(state, request, spooled)
    elif length:
        if length > MAX_BODY:
            raise ServerError(501, "for data too large", text=True)
        if kind not in ("", "application/x-www-form-urlencoded", "application/json"):
            raise ServerError(506, f"upload 'Content-Type '{kind}' not implemented", text=True)
        body = await request.read()
        raw = parse_json(body) if kind == "application/json" else parse_form(body.decode("latin-1"))
    return raw | parse_form(query), upload


def parse_form(text: str) -> dict[str, Any]:
    """The pairs of a form or query as the server splits them.

    `;` separates like `&`, whatever follows a second unescaped `=` is lost, and a repeated key is an array.
    """
    result: dict[str, Any] = {}
    for pair in filter(None, re.split("[&;]", text)):
        name, *rest = pair.split("=")
        name = unquote(name.replace("+", " "))
        if not rest:
            result.setdefault(name, None)
            continue
        value = unquote(rest[0].replace("+", " "), errors="replace")
        old = result.get(name)
        if old is None:
            result[name] = value
        elif isinstance(old, list):
            old.append(value)
        else:
            result[name] = [old, value]
    return result


def parse_json(body: bytes) -> dict[str, Any]:
    """The object of a JSON body; raises the 500 of the real parser, which names its own source line."""
    where = "at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 917."
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        offset = getattr(error, "pos", 0)
        rest = body.decode(errors="replace")[offset:].strip()[:40] or "(end of string)"
        text = "malformed JSON string, neither tag, array, object, number, string or atom, "
        text += f'at character offset {offset} (before "{rest}") {where}'
        raise ServerError(500, text, text=True) from error
    if not isinstance(parsed, dict):
        raise ServerError(500, f"Not a HASH reference {where}", text=True)
    return parsed


async def _multipart(
    state: PveState, request: web.Request, spooled: list[Path]
) -> tuple[dict[str, Any], Upload | None]:
    try:
        return await _parts(state, request, spooled)
    except (ValueError, AssertionError) as error:  # what aiohttp raises for a body that is no multipart
        raise ServerError(500, "unable to parse multipart body", text=True) from error


async def _parts(state: PveState, request: web.Request, spooled: list[Path]) -> tuple[dict[str, Any], Upload | None]:
    fields: dict[str, Any] = {}
    upload: Upload | None = None
    reader = await request.multipart()
    async for part in reader:
        if not isinstance(part, BodyPartReader):
            raise ServerError(500, "unable to parse nested multipart body", text=True)
        if part.filename is None:
            fields[part.name or ""] = (await part.read(decode=True)).decode(errors="replace")
            continue
        if state.spool:
            state.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=state.spool, prefix="pveupload-", delete=False) as file:
            spooled.append(Path(file.name))
            size = 0
            while chunk := await part.read_chunk(1 << 18):
                size += len(chunk)
                file.write(chunk)
        fields[part.name or "filename"] = part.filename
        upload = Upload(part.filename, spooled[-1], size)
    return fields, upload


# ---------------------------------------------------------------------------------------------- dispatch


def _host(request: web.Request) -> str:
    """The host that was asked, without its port."""
    return str(request.host).rpartition(":")[0].strip("[]") if ":" in request.host else str(request.host)


async def _dispatch(
    state: PveState,
    method: str,
    uri: str,
    raw: dict[str, Any],
    auth: AuthId | None,
    upload: Upload | None,
    formatter: str,
    asked: str,
) -> web.Response:
    call = Call(state, method, uri, raw, auth, upload=upload, asked=asked)
    try:
        found = ROUTER.find(method, uri)
        if found is None:
            raise PveError(501, f"Method '{method} {uri}' not implemented", newline=False)
        matched, arguments = found
        call.raw = _merged(arguments, raw)
        matched.authorise(call)
        if matched.node:
            _reach(state, call)
        call.params = matched.verified(call)
        data = matched.handler(call)
        if inspect.isawaitable(data):
            data = await data
    except PveError as error:
        await state.clock.sleep(error.delay)
        return _failure(error, formatter)
    except Exception as error:  # the lab must answer, and say that the fault is its own
        log.exception("%s %s failed", method, uri)
        return _failure(PveError(500, f"internal error of the lab: {type(error).__name__}: {error}"), formatter)
    return _success(data, call.extra, formatter)


def _merged(arguments: Mapping[str, str], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Path arguments and parameters as one; the same name may not say two things."""
    for name, value in arguments.items():
        if name in raw and raw[name] is not None and str(raw[name]) != value:
            raise param_error({name: "duplicate parameter (already defined in URI) with conflicting values!"})
    return {**raw, **arguments}


def _reach(state: PveState, call: Call) -> None:
    """Nothing when the node in the path answers; else what pveproxy says when it cannot pass the request on."""
    name = call.node
    node = state.nodes.get(name)
    if node is None:
        valid = re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9.\-]*[a-zA-Z0-9])?", name)
        why = "Temporary failure in name resolution" if valid else "Name or service not known"
        raise PveError(500, f"hostname lookup '{name}' failed - failed to get address info for: {name}: {why}")
    if not node.online and name != state.local_node:
        raise PveError(595, node.unreachable, bare=True)


def _success(data: Any, extra: Mapping[str, Any], formatter: str) -> web.Response:
    beside = {name: value for name, value in extra.items() if value}
    if isinstance(data, Encoded):
        if formatter == "json" and not beside:
            return _response(200, "OK", f'{{"data":{data.text}}}'.encode(errors="replace"), JSON)
        data = data.data
    if formatter == "extjs":
        return _json({"data": data, "success": 1} | beside)
    if formatter == "json":
        return _json({"data": data} | beside)
    return _page(data, formatter)


def _failure(error: PveError, formatter: str) -> web.Response:
    reason = error.message.strip().split("\n", 1)[0] or REASONS.get(error.status, "Error")
    if error.bare:
        return _response(error.status, reason, b"", None)
    message = error.message if error.message.endswith("\n") or not error.newline else error.message + "\n"
    body: dict[str, Any] = {"data": None, "message": message}
    if error.errors:
        body["errors"] = error.errors
    if formatter == "extjs":
        return _json(body | {"success": 0, "status": error.status})
    if formatter == "json":
        return _json(body, error.status, reason)
    return _response(error.status, reason, html.escape(reason).encode(), "text/html;charset=UTF-8")


def _page(data: Any, formatter: str) -> web.Response:
    text = json.dumps(data, indent=3, ensure_ascii=False)
    if formatter == "text":
        return _response(200, "OK", text.encode(), "text/plain;charset=UTF-8")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n  <head>\n    <meta charset="utf-8">\n'
        f"    <title>Proxmox VE API</title>\n  </head>\n  <body><pre>{html.escape(text)}</pre></body>\n</html>\n"
    )
    return _response(200, "OK", page.encode(), "text/html;charset=UTF-8")


def _json(body: Mapping[str, Any], status: int = 200, reason: str = "OK") -> web.Response:
    return _response(status, reason, encode(body).encode(errors="replace"), JSON)


def _response(status: int, reason: str, body: bytes, content_type: str | None) -> web.Response:
    headers = {"Cache-Control": "max-age=0", "Pragma": "no-cache", "Server": "pve-api-daemon/3.0"}
    if content_type:
        headers["Content-Type"] = content_type
    # Control characters and line ends cannot stand in a status line.
    clean = re.sub(r"[\x00-\x1f\x7f]+", " ", reason)
    response = web.Response(status=status, reason=clean, body=body or None, headers=headers)
    if not content_type:
        response.headers.popall("Content-Type", None)
    if status >= 400:
        response.force_close()
    return response


__all__ = ["STATE", "Route", "create_app", "parse_form", "parse_json"]
