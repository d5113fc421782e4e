"""The way from the API server to what listens in the cluster: proxy and port-forward, by clients of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from aiohttp import web
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward as python_portforward

from runbook_lib.lab.kubernetes import portforward
from runbook_lib.lab.kubernetes.cluster import Cluster
from tests.lab.kubernetes_server import Server, serve

Json = dict[str, Any]
PAGE = b"""<html><a href="/next">on</a> <img src='logo.png'> <form action="https://elsewhere.test/x"></html>"""


class Metrics(BaseHTTPRequestHandler):
    """Answers like a process in the cluster and remembers what it was asked."""

    seen: ClassVar[list[Json]] = []

    def do_GET(self) -> None:
        """What a metrics database or a page answers."""
        body, kind, status = json.dumps({"path": self.path}).encode(), "application/json", 200
        self.seen.append({"path": self.path, "headers": dict(self.headers)})
        if self.path.startswith("/login"):
            self.send_response(302)
            self.send_header("Location", "/home?a=1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/page":
            body, kind = PAGE, "text/html; charset=utf-8"
        if self.path == "/teapot":
            body, kind, status = b"short and stout", "text/plain", 418
        self.answer(body, kind, status)

    def do_POST(self) -> None:
        """The body given, and its type."""
        size = int(self.headers.get("Content-Length") or 0)
        self.answer(self.rfile.read(size), self.headers.get("Content-Type", ""))

    def answer(self, body: bytes, kind: str, status: int = 200) -> None:
        """Sends one answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests are silent."""


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    """The port of a process that plays a Service."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found.server_address[1]
        found.shutdown()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def handler(request: web.Request, path: str) -> web.StreamResponse:
    """A Service that is a function of the lab's own process."""
    return web.json_response({"asked": path, "query": dict(request.query)})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backend: int) -> Iterator[Server]:
    """An API server with Services that a process, a function, nobody and dead pods answer for."""
    cluster = Cluster()
    labels = {"app": "select"}
    status = {"phase": "Running", "podIP": "10.244.0.9"}
    container = {"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8481}]}
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    bare = {"ports": [{"port": 80}]}
    cluster.load(
        [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "select"},
             "spec": {"selector": labels, "ports": ports}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "select-0", "labels": labels},
             "spec": {"nodeName": "n1", "containers": [container]}, "status": status},
            *({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": bare}
              for name in ("function", "nobody", "asleep", "fallen", "deaf")),
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": "asleep-1", "labels": {"kubernetes.io/service-name": "asleep"}},
             "endpoints": [{"addresses": ["10.244.0.7"], "conditions": {"ready": False}}]},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": "deaf-1", "labels": {"kubernetes.io/service-name": "deaf"}},
             "endpoints": [{"addresses": ["10.244.0.8"]}]},
        ]
    )  # fmt: skip
    cluster.backends |= {
        ("default", "select", 80): ("127.0.0.1", backend), ("default", "function", 80): handler,
        ("default", "asleep", 80): ("127.0.0.1", backend), ("default", "fallen", 80): ("127.0.0.1", free_port()),
    }  # fmt: skip
    with serve(tmp_path_factory.mktemp("kubernetes"), cluster) as found:
        yield found


def kubectl() -> str:
    """The path of kubectl."""
    binary = Path(sys.executable).parent / "kubectl"
    found = str(binary) if binary.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl here")
    return str(found)


def raw(server: Server, path: str) -> subprocess.CompletedProcess[str]:
    """What `kubectl get --raw` does."""
    command = [kubectl(), "--kubeconfig", str(server.kubeconfig), "get", "--raw", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def get(server: Server, path: str, data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET, or a POST of data, that follows no redirect."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: Any, **kwargs: Any) -> None:
            return None

    context = ssl.create_default_context(cafile=str(server.ca_file))
    opener = urllib.request.build_opener(
        Stay, urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({})
    )
    request = urllib.request.Request(server.url + path, data, headers={"Authorization": "Bearer admin-token"})
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


SERVICES = "/api/v1/namespaces/default/services/"


@pytest.mark.parametrize("name", ["select:80", "select:http", "http:select:80", "http:select:http"])
def test_kubectl_asks_a_process_behind_a_service(server: Server, name: str) -> None:
    """Path and query arrive as they were given, under every way to write the Service."""
    done = raw(server, f"{SERVICES}{name}/proxy/select/0/prometheus/api/v1/query?query=up%7Bjob%3D%22a%22%7D")
    assert json.loads(done.stdout)["path"] == "/select/0/prometheus/api/v1/query?query=up%7Bjob%3D%22a%22%7D"


def test_the_official_client_asks_with_a_body(server: Server) -> None:
    """POST passes body and content type; the API server keeps the caller's credentials to itself."""
    api = config.new_client_from_config(str(server.kubeconfig))
    said = client.CoreV1Api(api).connect_get_namespaced_service_proxy_with_path("select:80", "default", "api/v1/x")
    assert "/api/v1/x" in said
    headers = Metrics.seen[-1]["headers"]
    assert "Authorization" not in headers
    assert headers["X-Forwarded-Uri"] == SERVICES + "select:80/proxy/api/v1/x"
    status, sent, body = get(server, f"{SERVICES}select:80/proxy/api", b'{"a": 1}')
    assert (status, sent["Content-Type"], body) == (200, "application/x-www-form-urlencoded", b'{"a": 1}')


def test_a_function_can_play_a_service(server: Server) -> None:
    """A handler gets the path below the Service."""
    status, _, body = get(server, f"{SERVICES}function:80/proxy/api/health?full=1")
    assert (status, json.loads(body)) == (200, {"asked": "/api/health", "query": {"full": "1"}})


def test_a_pod_is_asked_like_its_service(server: Server) -> None:
    """The pod's port leads where the Service that selects the pod leads."""
    status, _, body = get(server, "/api/v1/namespaces/default/pods/select-0:8481/proxy/metrics")
    assert (status, json.loads(body)) == (200, {"path": "/metrics"})


def test_redirects_and_links_stay_below_the_proxy(server: Server) -> None:
    """Location and the links of a page are led back through the API server, foreign and relative ones are not."""
    prefix = SERVICES + "select:80/proxy"
    status, headers, _ = get(server, f"{prefix}/login")
    assert (status, headers["Location"]) == (302, f"{prefix}/home?a=1")
    page = get(server, f"{prefix}/page")[2].decode()
    assert f'href="{prefix}/next"' in page
    assert "src='logo.png'" in page and 'action="https://elsewhere.test/x"' in page
    assert get(server, prefix + "?a=1")[1]["Location"] == f"{prefix}/?a=1"


def test_an_error_of_the_process_is_passed_on(server: Server) -> None:
    """A status the process chose reaches the client with its body."""
    status, _, body = get(server, f"{SERVICES}select:80/proxy/teapot")
    assert (status, body) == (418, b"short and stout")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("none:80", 404, 'services "none" not found'),
        ("nobody:80", 503, 'no endpoints available for service "nobody:80"'),
        ("asleep:80", 503, 'no endpoints available for service "asleep:80"'),
        ("nobody:81", 503, 'no service port 81 found for service "nobody"'),
        ("select", 503, 'no endpoints available for service "select"'),
        ("fallen:80", 503, "error trying to reach service: dial tcp 127.0.0.1:"),
        ("deaf:80", 503, "error trying to reach service: dial tcp 10.244.0.8:80: connect: connection refused"),
        ("a:b:c:d", 400, 'invalid service request "a:b:c:d"'),
    ],
)
def test_what_cannot_be_reached_says_why(server: Server, name: str, code: int, said: str) -> None:
    """The Status is the one of a real API server."""
    status, _, body = get(server, f"{SERVICES}{name}/proxy/x")
    answer = json.loads(body)
    assert (status, answer["kind"]) == (code, "Status")
    assert said in answer["message"]


def test_the_proxy_is_a_right_of_its_own(server: Server) -> None:
    """Who may not get services/proxy is told so."""
    settings = client.Configuration(host=server.url)
    settings.ssl_ca_cert, settings.api_key = str(server.ca_file), {"authorization": "Bearer bob-token"}
    with pytest.raises(ApiException) as refused:
        client.CoreV1Api(client.ApiClient(settings)).connect_get_namespaced_service_proxy_with_path(
            "select:80", "default", "x"
        )
    assert 'cannot get resource \\"services/proxy\\"' in str(refused.value.body)


@contextlib.contextmanager
def forwarding(server: Server, *target: str) -> Iterator[int]:
    """The local port of a running `kubectl port-forward`."""
    command = [kubectl(), "--kubeconfig", str(server.kubeconfig), "port-forward", *target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Forwarding from 127.0.0.1:"), line + process.stdout.read()
            yield int(line.split(":")[1].split(" ")[0])
        finally:
            process.terminate()


@pytest.mark.parametrize("target", [("pod/select-0", ":8481"), ("service/select", ":80")])
def test_kubectl_forwards_a_port(server: Server, target: tuple[str, str]) -> None:
    """Several requests, one after the other and at once, go through one tunnel."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with forwarding(server, *target) as port:
        for number in range(3):
            with opener.open(f"http://127.0.0.1:{port}/metrics?{number}", timeout=10) as answer:
                assert json.load(answer) == {"path": f"/metrics?{number}"}
        big = b"x" * 300_000
        with opener.open(urllib.request.Request(f"http://127.0.0.1:{port}/", big), timeout=10) as answer:
            assert answer.read() == big


def test_kubectl_is_told_that_nobody_listens(server: Server) -> None:
    """The connection is closed without an answer, as by a pod that does not listen."""
    with forwarding(server, "pod/select-0", ":9999") as port, pytest.raises(OSError):  # noqa: SIM117
        with socket.create_connection(("127.0.0.1", port), timeout=10) as found:
            found.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if found.recv(10) == b"":
                raise ConnectionResetError


def test_the_official_client_forwards_a_port(server: Server) -> None:
    """The Python client's numbered channels carry an HTTP exchange."""
    api = client.CoreV1Api(config.new_client_from_config(str(server.kubeconfig)))
    found = python_portforward(api.connect_get_namespaced_pod_portforward, "select-0", "default", ports="8481")
    line = found.socket(8481)
    line.sendall(b"GET /metrics HTTP/1.0\r\nHost: a\r\n\r\n")
    text = b""
    while piece := line.recv(4096):
        text += piece
    line.close()
    assert text.startswith(b"HTTP/1.0 200") and b'{"path": "/metrics"}' in text


@pytest.mark.parametrize("number", range(12))
def test_rubbish_in_a_tunnel_ends_that_tunnel_alone(server: Server, number: int) -> None:
    """Broken frames, headers and ports close the WebSocket or are passed over; the server answers on."""

    async def run() -> None:
        dice = random.Random(number)
        context = ssl.create_default_context(cafile=str(server.ca_file))
        url = f"{server.url}/api/v1/namespaces/default/pods/select-0/portforward"
        headers = {"Authorization": "Bearer admin-token"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(url, protocols=[portforward.TUNNEL], ssl=context) as tunnel,
        ):
            packed = zlib.compressobj(zdict=portforward.DICTIONARY)
            block = packed.compress(dice.randbytes(40)) + packed.flush(zlib.Z_SYNC_FLUSH)
            body = bytes(10) + (block if number % 2 else dice.randbytes(60))
            frame = bytes([0x80, 3, 0, dice.choice([1, 3, 6, 9, 200]), 0]) + len(body).to_bytes(3, "big") + body
            for piece in (frame, dice.randbytes(dice.randrange(1, 90)), b"\x80\x03\x00\x01\x00\x00\x00\x00"):
                await tunnel.send_bytes(piece)

    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
        asyncio.run(run())
    assert get(server, "/readyz")[0] == 200
