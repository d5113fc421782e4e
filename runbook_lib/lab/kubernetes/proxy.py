"""The way from the API server to what listens in the cluster: the proxy subresource of services, pods and nodes.

`Cluster.backends` is the seam. Whoever runs a process that plays a Service registers it:

    cluster.backends[("tenant-root", "vmselect-shortterm", 8481)] = ("127.0.0.1", port)  # any process that speaks HTTP
    cluster.backends[("tenant-root", "grafana-service", 3000)] = answer  # async def answer(request, path)
    cluster.backends[("default", "pod/probe", 8080)] = ("127.0.0.1", port)  # one pod by its name

The key is (namespace, Service name, the Service's own port number). A pair is asked over plain HTTP with method, query,
headers and body as they came; a handler gets the aiohttp request and the path below the Service ("/api/v1/query") and
returns the response. A pod is reached through any Service that selects it, or by its own key;
a Service without a backend of its own is answered by that of a ready pod behind it. Only pairs can be
port-forwarded to, since a handler has no socket. A backend is asked only while the Service has a ready endpoint: what
EndpointSlices say about its pods decides, and a Service without any slice counts as ready.
"""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp
from aiohttp import web
from yarl import URL

from .status import ApiError, bad_request

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
Handler = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
Backend = tuple[str, int] | Handler
SESSION: web.AppKey[list[aiohttp.ClientSession]] = web.AppKey("proxy", list)
SLICES = "discovery.k8s.io/endpointslices"
# What belongs to one connection, and what the API server keeps to itself.
DROPPED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "authorization", "host", "content-length",
}  # fmt: skip
PIECE = 1 << 16


def unavailable(text: str) -> ApiError:
    """503."""
    return ApiError(503, "ServiceUnavailable", text)


def unreachable(address: str) -> ApiError:
    """503 in the words of a dial that found nobody."""
    return unavailable(f"error trying to reach service: dial tcp {address}: connect: connection refused")


def split(name: str) -> tuple[str, str, str]:
    """Scheme, name and port of `name`, `name:port` or `scheme:name:port`."""
    parts = name.split(":")
    if len(parts) == 1:
        return "", name, ""
    if len(parts) == 2:
        return "", parts[0], parts[1]
    if len(parts) == 3 and parts[0] in ("", "http", "https"):
        return parts[0], parts[1], parts[2]
    raise bad_request(f'invalid service request "{name}"')


def service_backend(cluster: Cluster, namespace: str, given: str, service: Json) -> Backend:
    """What answers for a Service under the port asked for; ApiError 503 when nothing does."""
    _, name, port = split(given)
    row = _service_port(service, port, given, name)
    slices = [obj for obj in cluster.each(SLICES, namespace) if _of_service(obj, name)]
    addresses = _ready(slices)
    if slices and not addresses:
        raise unavailable(f'no endpoints available for service "{given}"')
    found = cluster.backends.get((namespace, name, int(row["port"])))
    if found is None:
        found = _listening(cluster, namespace, row, slices)
    if found is not None:
        return found
    if not addresses:
        raise unavailable(f'no endpoints available for service "{given}"')
    raise unreachable(f"{addresses[0]}:{row.get('targetPort', row['port'])}")


def _listening(cluster: Cluster, namespace: str, row: Json, slices: list[Json]) -> Backend | None:
    """What a ready pod of the Service has registered for itself."""
    for item in slices:
        for entry in item.get("endpoints") or []:
            name = (entry.get("targetRef") or {}).get("name", "")
            pod = cluster.find("v1", "Pod", namespace, name)
            if pod is not None and (entry.get("conditions") or {}).get("ready", True):
                found = cluster.backends.get((namespace, f"pod/{name}", _target(row, pod)))
                if found is not None:
                    return found
    return None


def _service_port(service: Json, port: str, given: str, name: str) -> Json:
    rows: list[Json] = (service.get("spec") or {}).get("ports") or []
    if port.isdigit():
        for row in rows:
            if row["port"] == int(port):
                return row
        raise unavailable(f'no service port {port} found for service "{name}"')
    for row in rows:
        if row.get("name", "") == port:
            return row
    raise unavailable(f'no endpoints available for service "{given}"')


def _of_service(obj: Json, name: str) -> bool:
    return bool((obj["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == name)


def _ready(slices: Iterable[Json]) -> list[str]:
    return [
        address
        for obj in slices
        for row in obj.get("endpoints") or []
        if (row.get("conditions") or {}).get("ready", True)
        for address in row.get("addresses") or []
    ]


def pod_backend(cluster: Cluster, pod: Json, port: int) -> Backend | None:
    """What answers for a pod's port: its own backend, else that of a Service which selects the pod."""
    meta = pod["metadata"]
    own = cluster.backends.get((meta["namespace"], f"pod/{meta['name']}", port))
    if own is not None:
        return own
    labels = meta.get("labels") or {}
    for service in cluster.each("/services", meta["namespace"]):
        spec = service.get("spec") or {}
        selector = spec.get("selector")
        if not selector or any(labels.get(key) != value for key, value in selector.items()):
            continue
        for row in spec.get("ports") or []:
            if _target(row, pod) == port:
                found = cluster.backends.get((meta["namespace"], service["metadata"]["name"], row["port"]))
                if found is not None:
                    return found
    return None


def _target(row: Json, pod: Json) -> int:
    wanted = row.get("targetPort", row["port"])
    if isinstance(wanted, int):
        return wanted
    for container in (pod.get("spec") or {}).get("containers") or []:
        for named in container.get("ports") or []:
            if named.get("name") == wanted:
                return int(named["containerPort"])
    return 0


def _first_port(pod: Json) -> int:
    for container in (pod.get("spec") or {}).get("containers") or []:
        for row in container.get("ports") or []:
            return int(row["containerPort"])
    return 80


def backend(cluster: Cluster, bucket: str, namespace: str, given: str, obj: Json) -> Backend:
    """What answers behind `services/NAME/proxy`, `pods/NAME/proxy` or `nodes/NAME/proxy`."""
    if bucket == "/services":
        return service_backend(cluster, namespace, given, obj)
    port = split(given)[2]
    if bucket == "/pods":
        number = int(port) if port.isdigit() else _first_port(obj)
        found = pod_backend(cluster, obj, number)
        if found is None:
            address = (obj.get("status") or {}).get("podIP", "")
            if not address:
                raise bad_request("address not allowed")
            raise unreachable(f"{address}:{number}")
        return found
    rows = (obj.get("status") or {}).get("addresses") or []
    address = next((row["address"] for row in rows if row.get("type") == "InternalIP"), "")
    number = int(port) if port.isdigit() else 10250
    found = cluster.backends.get(("", f"node/{obj['metadata']['name']}", number))
    if found is None:
        raise unreachable(f"{address}:{number}")
    return found


def decoded(path: str) -> str:
    """A path as the API server sends it on: clients that write `/` as %2F mean a slash."""
    return quote(unquote(path), safe="/$&+,:;=@~")


async def forward(request: web.Request, found: Backend, prefix: str, path: str) -> web.StreamResponse:
    """The backend's answer. `prefix` is what of the URL's path names the backend: redirects are led back below it."""
    if not isinstance(found, tuple):
        return await found(request, path)
    host, port = found
    url = URL(f"http://{host}:{port}{path}", encoded=True)
    if request.rel_url.raw_query_string:
        url = URL(f"{url}?{request.rel_url.raw_query_string}", encoded=True)
    try:
        async with _session(request).request(
            request.method, url, headers=_headers(request, prefix + path), data=_body(request), allow_redirects=False,
        ) as answer:  # fmt: skip
            return await _relay(request, answer, prefix)
    except aiohttp.ClientConnectorError as error:
        raise unreachable(f"{host}:{port}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise unavailable(f"error trying to reach service: {error or 'EOF'}") from error


def _session(request: web.Request) -> aiohttp.ClientSession:
    kept = request.app[SESSION]
    if not kept:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        kept.append(aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False))
    return kept[0]


async def close(app: web.Application) -> None:
    """Ends the connections to backends when the API server goes."""
    for session in app[SESSION]:
        await session.close()
    app[SESSION].clear()


def _headers(request: web.Request, uri: str) -> list[tuple[str, str]]:
    rows = [
        (name, value)
        for name, value in request.headers.items()
        if name.lower() not in DROPPED and not name.lower().startswith("impersonate-")
    ]
    if request.content_length is not None and request.can_read_body:
        rows.append(("Content-Length", str(request.content_length)))
    rows += [
        ("X-Forwarded-Uri", uri), ("X-Forwarded-Host", request.host), ("X-Forwarded-Proto", request.scheme),
        ("X-Forwarded-For", request.remote or ""),
    ]  # fmt: skip
    return rows


def _body(request: web.Request) -> Any:
    return request.content if request.can_read_body else None


async def _relay(request: web.Request, answer: aiohttp.ClientResponse, prefix: str) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() in DROPPED or name.lower().startswith("access-control-"):
            continue
        response.headers.add(name, _led_back(value, request, prefix) if name.lower() == "location" else value)
    plain = answer.headers.get("Content-Encoding", "identity") == "identity"
    if answer.content_type == "text/html" and plain and answer.status == 200:
        page = _links(await answer.text(), request, prefix).encode()
        response.content_length = len(page)
        await response.prepare(request)
        await response.write(page)
    else:
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for piece in answer.content.iter_chunked(PIECE):
            await response.write(piece)
    await response.write_eof()
    return response


def _led_back(target: str, request: web.Request, prefix: str) -> str:
    """A link of the backend as the client can follow it: below the proxy's own path."""
    parts = urlsplit(target)
    foreign = parts.netloc and parts.netloc != request.host and not parts.netloc.startswith("127.0.0.1:")
    if foreign or not parts.path.startswith("/") or parts.path.startswith(prefix):
        return target
    return parts._replace(scheme="", netloc="", path=prefix + parts.path).geturl()


def _links(page: str, request: web.Request, prefix: str) -> str:
    def put(match: re.Match[str]) -> str:
        link = _led_back(html.unescape(match[3]), request, prefix)
        return f"{match[1]}{match[2]}{html.escape(link)}{match[2]}"

    return re.sub(r"""(\s(?:href|src|action)=)(["'])(.*?)\2""", put, page, flags=re.S)
