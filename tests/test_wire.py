"""One wire under both clients: what is sent, retried, refused and told, against a loopback server that misbehaves."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import trustme
from kubernetes import client as kube_client

from runbook_lib import errors, secrets
from runbook_lib.answers import colons, error_for
from runbook_lib.wire import Exchange, Trust, Wire, attach_kubernetes, mutates, proxmox_adapter

Play = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the server's script: one play a request, then OK for ever."""

    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(SimpleNamespace(method=self.command, path=self.path, headers=self.headers, body=body))
        play = self.server.script.popleft() if self.server.script else status(200)
        play(self)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = answer

    def send(
        self, code: int, reason: str | None, headers: dict[str, str], body: bytes, *, length: int | None = None
    ) -> None:
        self.send_response(code, reason)
        for name, value in {"Content-Type": "application/json;charset=UTF-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def reset(self) -> None:
        """Break the connection off with RST."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        socket.socket(fileno=self.connection.detach()).close()


class Server(ThreadingHTTPServer):
    """A TLS server on loopback; `script` holds plays, `seen` the requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, certificate: trustme.LeafCert | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: deque[Play] = deque()
        self.seen: list[Any] = []
        self.released = threading.Event()
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silence: broken connections are what these tests are about."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_port}"


def status(code: int, reason: str | None = None, body: Any = None, **headers: str) -> Play:
    """An answer with this status."""
    data = body if isinstance(body, bytes) else json.dumps({"data": body}).encode()
    return lambda handler: handler.send(code, reason, {k.replace("_", "-"): v for k, v in headers.items()}, data)


def html(code: int) -> Play:
    """A page where JSON belongs."""
    return status(code, None, b"<!DOCTYPE html><h1>Sign in</h1>", Content_Type="text/html")


def truncated(handler: Handler) -> None:
    """Half of a body, then the end."""
    handler.send(200, None, {}, b'{"data": [1, 2', length=500)
    handler.close_connection = True


def reset(handler: Handler) -> None:
    """No answer but RST."""
    handler.reset()


def reset_in_body(handler: Handler) -> None:
    """Half of a body, then RST."""
    handler.send(200, None, {}, b'{"data": [1, 2', length=500)
    handler.reset()


def silent(handler: Handler) -> None:
    """Nothing at all."""
    handler.close_connection = True
    handler.server.released.wait(5)


def dripping(handler: Handler) -> None:
    """A body that comes one byte at a time and never ends."""
    handler.send(200, None, {}, b"{", length=10_000)
    handler.close_connection = True
    while not handler.server.released.wait(0.02):
        handler.wfile.write(b" ")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """An authority of our own."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="module")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its certificate in a file."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def serve(ca: trustme.CA) -> Iterator[Callable[..., Server]]:
    """Servers with a certificate for the given names."""
    servers = []

    def start(*names: str, **issue: Any) -> Server:
        servers.append(Server(ca.issue_cert(*(names or ("127.0.0.1", "localhost")), **issue)))
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """One server with a good certificate."""
    return serve()


class Client:
    """A real client library on a wire, with the same small face for both."""

    def __init__(self, system: str, server: Server, trust: Trust, **options: Any) -> None:
        self.system = system
        self.slept: list[float] = []
        self.wire = Wire(system, sleep=self.slept.append, jitter=lambda: 0.5, **options)
        self.url = server.url
        if system == "proxmox":
            self.session = requests.Session()
            self.session.mount("https://", proxmox_adapter(self.wire, trust))
        else:
            configuration = kube_client.Configuration()
            configuration.host, configuration.ssl_ca_cert = server.url, trust.ca_file
            configuration.verify_ssl = trust.verify
            self.api = kube_client.ApiClient(configuration)
            attach_kubernetes(self.wire, self.api)

    def ask(self, method: str, path: str, body: Any = None) -> int:
        """The status of the answer, read whole."""
        if self.system == "proxmox":
            return self.session.request(method, f"{self.url}/api2/json{path}", json=body).status_code
        answer = self.api.rest_client.request(method, self.url + path, body=body, headers={})
        answer.read()
        return answer.status


@pytest.fixture(params=["proxmox", "kubernetes"])
def client(request: pytest.FixtureRequest, server: Server, ca_file: str) -> Client:
    """Each client library in turn."""
    return Client(request.param, server, Trust(ca_file=ca_file), timeout=2)


def refusal(client: Client, method: str = "GET", path: str = "/version") -> errors.ApiError:
    with pytest.raises(errors.ApiError) as caught:
        client.ask(method, path)
    told = str(caught.value)
    assert "\n" not in told
    return caught.value


# --- observers ---------------------------------------------------------------------------------------------------


def test_observers_hear_of_every_exchange(client: Client) -> None:
    """Both clients tell the same observer: system, method, path without query, status, time."""
    heard: list[Exchange] = []
    client.wire.observe(heard.append)
    assert client.ask("GET", "/version?a=1") == 200
    assert [(e.system, e.method, e.path, e.status, e.attempt) for e in heard] == [
        (client.system, "GET", "/version", 200, 1)
    ]
    assert 0 < heard[0].seconds < 2
    assert list(client.wire.exchanges) == heard
    assert client.wire.count == 1


def test_a_refused_request_is_an_exchange_too(client: Client, server: Server) -> None:
    """A 403 reaches the client library as it is, with its reason, and is observed."""
    server.script.append(status(403, "Permission check failed (/, Sys.Audit)"))
    assert client.ask("GET", "/x") == 403
    assert client.wire.exchanges[-1].reason == "Permission check failed (/, Sys.Audit)"


def test_a_secret_in_a_path_is_redacted_before_anyone_hears(client: Client) -> None:
    """What observers get is fit for a journal."""
    secrets.register("hunter2-in-path")
    client.ask("GET", "/x/hunter2-in-path")
    secrets.forget(["hunter2-in-path"])
    assert client.wire.exchanges[-1].path == "/x/‹redacted›"


def test_a_hundred_thousand_exchanges_do_not_fill_the_memory() -> None:
    """The last 10 000 are kept, all are counted."""
    wire = Wire("proxmox")
    for _ in range(10_050):
        with wire.record("GET", "/x"):
            pass
    assert (len(wire.exchanges), wire.count) == (10_000, 10_050)


def test_threads_share_a_wire(client: Client) -> None:
    """Sixteen threads count right."""
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: client.ask("GET", "/version"), range(64))) == {200}
    assert client.wire.count == 64


def test_compressed_answers_are_read(client: Client, server: Server) -> None:
    """gzip is undone once, for both clients."""
    server.script.append(status(200, None, gzip.compress(b'{"data": 7}'), Content_Encoding="gzip"))
    assert client.ask("GET", "/version") == 200


# --- retries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("play", [status(503), status(502), status(504), status(429), reset, reset_in_body, truncated])
def test_a_read_is_retried(client: Client, server: Server, play: Play) -> None:
    """What may pass is tried again, after a pause with jitter."""
    server.script += [play, play]
    assert client.ask("GET", "/version") == 200
    assert [exchange.attempt for exchange in client.wire.exchanges] == [1, 2, 3]
    assert client.slept == [0.2, 0.4]


@pytest.mark.parametrize("play", [status(503), status(429), reset, reset_in_body])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_change_is_never_retried(client: Client, server: Server, play: Play, method: str) -> None:
    """A mutating request is sent once, whatever comes."""
    server.script += [play]
    with client.wire.permit("13-01"):
        try:
            client.ask(method, "/things", {})
        except errors.Unavailable as error:
            assert "whether the change happened is not known" in str(error)
    assert len(server.seen) == 1
    assert client.slept == []


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 500, 501])
def test_a_clear_answer_is_not_asked_for_again(client: Client, server: Server, code: int) -> None:
    """Only what says "not now" is retried."""
    server.script.append(status(code))
    assert client.ask("GET", "/version") == code
    assert len(server.seen) == 1


@pytest.mark.parametrize("code", [595, 596, 599])
def test_an_unreachable_node_is_tried_once_more(server: Server, ca_file: str, code: int) -> None:
    """pveproxy has waited 30 s for the node already, so there is one retry only."""
    client = Client("proxmox", server, Trust(ca_file=ca_file))
    server.script += [status(code, "No route to host", b"")] * 3
    assert client.ask("GET", "/nodes/pve2/status") == code
    assert len(server.seen) == 2


def test_retries_end(client: Client, server: Server) -> None:
    """After three retries the last answer is the answer."""
    server.script += [status(503)] * 10
    assert client.ask("GET", "/version") == 503
    assert len(server.seen) == 4


def test_retry_after_is_honoured(client: Client, server: Server) -> None:
    """The server's own wish goes before our pauses."""
    server.script.append(status(429, None, Retry_After="3"))
    client.wire.total = 60
    assert client.ask("GET", "/version") == 200
    assert client.slept == [pytest.approx(3.05)]


def test_retry_after_may_be_a_date(client: Client, server: Server) -> None:
    """Both forms of Retry-After are understood."""
    server.script.append(status(503, None, Retry_After=formatdate(time.time() + 20, usegmt=True)))
    client.wire.total = 60
    assert client.ask("GET", "/version") == 200
    assert 17 < client.slept[0] < 21


def test_retry_after_is_capped(client: Client, server: Server) -> None:
    """A server that asks for an hour gets thirty seconds, or its answer is final."""
    server.script.append(status(429, None, Retry_After="3600"))
    client.wire.total = 60
    assert client.ask("GET", "/version") == 200
    assert client.slept == [pytest.approx(30.05)]
    server.script.append(status(429, None, Retry_After="3600"))
    client.wire.total = 20
    assert client.ask("GET", "/version") == 429


def test_jitter_spreads_the_pauses(server: Server, ca_file: str) -> None:
    """With the generator at its ends the pause lies between nothing and the whole."""
    for draw, pause in ((0.0, 0.0), (0.999, 0.3996)):
        client = Client("proxmox", server, Trust(ca_file=ca_file))
        client.wire._jitter = lambda draw=draw: draw  # type: ignore[misc]
        server.script.append(status(503))
        client.ask("GET", "/version")
        assert client.slept == [pytest.approx(pause)]


# --- bounded time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("play", [silent, dripping])
@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
def test_a_slow_server_ends_in_bounded_time(system: str, play: Play, server: Server, ca_file: str) -> None:
    """Silence and dripping end in a clear error within the wire's total."""
    client = Client(system, server, Trust(ca_file=ca_file), timeout=0.15, total=0.3)
    server.script += [play] * 9
    began = time.monotonic()
    error = refusal(client)
    assert time.monotonic() - began < 2
    assert isinstance(error, errors.Unavailable)
    expected = "nothing came for 0.1" if play is silent else "so slowly that its end was not awaited"
    assert expected in str(error)


def test_a_closed_port_is_told(server: Server, ca_file: str) -> None:
    """Nobody listening: refused, retried, told with the ports one expects."""
    client = Client("proxmox", server, Trust(ca_file=ca_file))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client.url = f"https://127.0.0.1:{free.getsockname()[1]}"
        error = refusal(client)
    assert "the connection was refused, 4 times; is the service running and the port right (PVE 8006" in str(error)
    assert isinstance(error, errors.Unavailable)
    assert error.status == 0


def test_an_unknown_host_is_told(server: Server, ca_file: str) -> None:
    """A name that does not resolve is told as that."""
    client = Client("proxmox", server, Trust(ca_file=ca_file), retries=0)
    client.url = "https://no-such-host.invalid:8006"
    assert "gave no answer to GET /version: the name does not resolve; check the url's host" in str(refusal(client))


# --- answers that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("play", "expected"),
    [
        (html(200), "an HTML page; check url"),
        (status(200, None, b'{"data": [1,', Content_Type="application/json"), "JSON that ends or breaks within its 12"),
    ],
)
def test_an_answer_that_is_none_is_a_bad_answer(client: Client, server: Server, play: Play, expected: str) -> None:
    """A login page or broken JSON with status 200 is no success."""
    server.script.append(play)
    error = refusal(client)
    assert isinstance(error, errors.BadAnswer)
    assert expected in str(error)


@pytest.mark.parametrize(
    ("play", "expected"),
    [
        (status(200, None, b"hello", Content_Type="text/plain"), "content type text/plain instead of JSON"),
        (status(200, None, b"", Content_Type="application/json"), "an empty body"),
        (status(200, None, b"[1]", Content_Type="application/json"), "JSON without `data`"),
    ],
)
def test_pve_answers_json_with_data(server: Server, ca_file: str, play: Play, expected: str) -> None:
    """proxmoxer would hand on whatever comes; the wire does not."""
    server.script.append(play)
    assert expected in str(refusal(Client("proxmox", server, Trust(ca_file=ca_file))))


def test_kubernetes_may_answer_text(server: Server, ca_file: str) -> None:
    """Logs and health are not JSON."""
    server.script.append(status(200, None, b"ok", Content_Type="text/plain"))
    assert Client("kubernetes", server, Trust(ca_file=ca_file)).ask("GET", "/readyz") == 200


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/x", "https://elsewhere.example/x", "/other"])
def test_redirects_are_not_followed(client: Client, server: Server, target: str) -> None:
    """A redirect is refused, above all one to http: it would carry the credentials along."""
    server.script.append(status(302, None, Location=target))
    error = refusal(client)
    assert isinstance(error, errors.Refused)
    assert f"a redirect (302) to {target}, which is not followed" in str(error)
    assert len(server.seen) == 1


# --- trust -------------------------------------------------------------------------------------------------------


def fingerprint(server: Server) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", server.server_port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
def test_an_unknown_authority_is_refused_by_default(system: str, server: Server) -> None:
    """Without a CA file a certificate of one's own is not believed, and what to give is told."""
    client = Client(system, server, Trust())
    error = refusal(client)
    assert isinstance(error, errors.TlsError)
    assert "signed by an authority that is not trusted here; " in str(error)
    assert client.slept == []
    assert server.seen == []


def test_the_first_contact_shows_the_fingerprint_to_compare(server: Server) -> None:
    """Where PVE's own CA is not known yet, the message carries what one would pin, and where to compare it."""
    told = str(refusal(Client("proxmox", server, Trust())))
    assert f"give ca_file (/etc/pve/pve-root-ca.pem), or fingerprint: {colons(fingerprint(server))}" in told
    assert "once `pvenode cert info` on the node shows the same" in told


@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
def test_an_expired_certificate_is_refused(system: str, serve: Callable[..., Server], ca_file: str) -> None:
    """A certificate past its end is named as that."""
    past = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
    server = serve("127.0.0.1", not_before=past - datetime.timedelta(days=9), not_after=past)
    error = refusal(Client(system, server, Trust(ca_file=ca_file)))
    assert isinstance(error, errors.TlsError)
    assert "its certificate has expired" in str(error)


@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
@pytest.mark.parametrize("name", ["pve9.example", "10.9.9.9"])
def test_another_hosts_certificate_is_refused(
    system: str, name: str, serve: Callable[..., Server], ca_file: str
) -> None:
    """A good certificate for somebody else is not believed."""
    error = refusal(Client(system, serve(name), Trust(ca_file=ca_file)))
    assert isinstance(error, errors.TlsError)
    assert "its certificate is not for this address" in str(error)


@pytest.mark.parametrize("form", [str, colons])
def test_a_pinned_certificate_is_believed(server: Server, form: Callable[[str], str]) -> None:
    """A fingerprint alone is enough, with or without colons."""
    assert Client("proxmox", server, Trust(fingerprint=form(fingerprint(server)))).ask("GET", "/version") == 200


def test_a_pin_replaces_the_host_name(serve: Callable[..., Server]) -> None:
    """PVE's own certificate seldom carries the name one comes by."""
    server = serve("pve9.example")
    assert Client("proxmox", server, Trust(fingerprint=fingerprint(server))).ask("GET", "/version") == 200


def test_a_wrong_pin_shows_both_fingerprints(server: Server) -> None:
    """Another certificate than the pinned one is refused before anything is sent, and both are shown as PVE does."""
    error = refusal(Client("proxmox", server, Trust(fingerprint="ab" * 32)))
    assert isinstance(error, errors.TlsError)
    assert f"its SHA-256 fingerprint is {colons(fingerprint(server))}, the parameters pin {colons('ab' * 32)}" in str(
        error
    )
    assert server.seen == []


def test_the_sessions_own_verify_has_no_say(server: Server, monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    """Neither verify=False of a caller nor REQUESTS_CA_BUNDLE opens what the site has closed."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ca_file)
    client = Client("proxmox", server, Trust())
    with pytest.raises(errors.TlsError):
        client.session.get(f"{server.url}/api2/json/version", verify=False)


@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
def test_no_verification_is_an_opt_in_without_noise(system: str, server: Server) -> None:
    """verify: false connects, and warns of nothing that the site has said itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Client(system, server, Trust(verify=False)).ask("GET", "/version") == 200


def test_nobody_elses_warnings_are_silenced() -> None:
    """After the Proxmox VE session is imported, urllib3 still warns others of unverified requests."""
    code = (
        "import warnings, runbook_lib.proxmox_session, urllib3\n"
        "raise SystemExit(any(f[0] == 'ignore' and f[2] is urllib3.exceptions.HTTPWarning for f in warnings.filters))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_server_without_tls_is_told(ca_file: str) -> None:
    """A port that speaks plain HTTP is named as that."""
    plain = Server(None)
    error = refusal(Client("proxmox", plain, Trust(ca_file=ca_file)))
    plain.shutdown()
    plain.server_close()
    assert isinstance(error, errors.TlsError)
    assert "it does not speak TLS; check the port" in str(error)


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "No such file or directory"), ("no pem", "it holds no certificate in PEM")]
)
def test_a_bad_ca_file_is_a_parameter_error(tmp_path: Path, content: str | None, expected: str) -> None:
    """A CA file that is not there or is none ends with exit code 2 before anything is sent."""
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(errors.ParameterError, match=expected):
        proxmox_adapter(Wire("proxmox"), Trust(ca_file=str(path)))


def test_a_bad_fingerprint_is_a_parameter_error() -> None:
    """SHA-1 and typing errors are refused."""
    with pytest.raises(errors.ParameterError, match="not a SHA-256 fingerprint"):
        Trust(fingerprint="AA:BB")


# --- proxies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
def test_loopback_goes_past_any_proxy(
    system: str, server: Server, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab answers also where HTTPS_PROXY is set and NO_PROXY forgot it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Client(system, server, Trust(ca_file=ca_file)).ask("GET", "/version") == 200


@pytest.mark.parametrize("system", ["proxmox", "kubernetes"])
def test_a_proxy_of_the_environment_is_used(system: str, serve: Callable[..., Server], ca_file: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """HTTPS_PROXY carries what is not loopback, through the same wire; a proxy that is away is named."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    elsewhere = SimpleNamespace(url="https://pve1.example:8006")
    client = Client(system, elsewhere, Trust(ca_file=ca_file), retries=0)  # type: ignore[arg-type]
    error = refusal(client)
    assert isinstance(error, errors.Unavailable)
    assert "the proxy gave no connection" in str(error)
    assert client.wire.count == 1


# --- the guard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_change_outside_of_a_plan_is_not_sent(client: Client, server: Server, method: str) -> None:
    """Read-only is the default, whichever client library asks."""
    with pytest.raises(errors.ReadOnly, match="was not sent: it changes something and belongs to no approved plan"):
        client.ask(method, "/things", {})
    assert server.seen == []
    assert client.wire.count == 0


def test_a_permit_names_its_change(client: Client) -> None:
    """Within a permit a change passes, and its exchange carries the id."""
    with client.wire.permit("13-04"):
        assert client.ask("POST", "/things", {"a": 1}) == 200
    assert client.wire.exchanges[-1].change == "13-04"
    with pytest.raises(errors.ReadOnly):
        client.ask("POST", "/things", {})


def test_a_permit_does_not_reach_the_other_system(client: Client) -> None:
    """A change to one system opens nothing towards the other."""
    with Wire("proxmox").permit("13-04"), pytest.raises(errors.ReadOnly):
        client.ask("POST", "/things", {})


def test_a_permit_does_not_reach_other_threads(client: Client) -> None:
    """What one thread may do, another may not."""
    with client.wire.permit("13-04"), ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.ask, "POST", "/things", {})
        assert isinstance(future.exception(), errors.ReadOnly)


@pytest.mark.parametrize(
    ("system", "method", "path", "expected"),
    [
        ("proxmox", "GET", "/api2/json/nodes", False),
        ("proxmox", "POST", "/api2/json/access/ticket", False),
        ("proxmox", "POST", "/access/ticket", False),
        ("proxmox", "POST", "/api2/json/access/users", True),
        ("proxmox", "PUT", "/api2/json/access/ticket", True),
        ("proxmox", "DELETE", "/api2/json/nodes/pve1/qemu/100", True),
        ("proxmox", "POST", "/api2/json/nodes/pve1/qemu/100/status/start?dryRun=All", True),
        ("proxmox", "GET", "/api2/json/nodes/pve1/qemu/100/vncwebsocket", True),
        ("kubernetes", "GET", "/api/v1/pods", False),
        ("kubernetes", "POST", "/api/v1/namespaces", True),
        ("kubernetes", "POST", "/api/v1/namespaces?dryRun=All", False),
        ("kubernetes", "PATCH", "/api/v1/namespaces/x?fieldManager=runbook&dryRun=All&force=true", False),
        ("kubernetes", "DELETE", "/api/v1/namespaces/x?dryRun=none", True),
        ("kubernetes", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", False),
        ("kubernetes", "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", False),
        ("kubernetes", "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", False),
        ("kubernetes", "POST", "/apis/authorization.k8s.io/v1/namespaces/x/localsubjectaccessreviews", False),
        ("kubernetes", "POST", "/apis/authentication.k8s.io/v1/tokenreviews", False),
        ("kubernetes", "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", False),
        ("kubernetes", "DELETE", "/apis/authentication.k8s.io/v1/tokenreviews", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/pods/p/exec?command=id", True),
        ("kubernetes", "POST", "/api/v1/namespaces/x/pods/p/exec?dryRun=All", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/pods/p/portforward", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/pods/p/log", False),
        ("kubernetes", "POST", "/api/v1/namespaces/x/serviceaccounts/s/token", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/api/v1/query?query=up", False),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/select/0/prometheus/api/v1/query", False),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/select/logsql/query?query=a", False),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/-/healthy", False),
        ("kubernetes", "POST", "/api/v1/namespaces/x/services/s:1/proxy/api/v1/query", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/-/reload", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/delete/api/v1/query/x", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/services/s:1/proxy/admin/health", True),
        ("kubernetes", "GET", "/api/v1/namespaces/x/pods/p/proxy/health", True),
    ],
)
def test_what_mutates(system: str, method: str, path: str, expected: bool) -> None:
    """Not the method alone decides: reviews and dry runs are reads, exec is not."""
    assert mutates(system, method, path) is expected


def test_a_websocket_is_guarded_and_recorded() -> None:
    """What leaves the pool passes the same guard and is told to the same observers."""
    wire = Wire("kubernetes")
    with pytest.raises(errors.ReadOnly), wire.record("GET", "/api/v1/namespaces/x/pods/p/exec"):
        raise AssertionError("not reached")
    with wire.permit("31-02"), wire.record("GET", "/api/v1/namespaces/x/pods/p/exec"):
        pass
    assert [(exchange.status, exchange.change) for exchange in wire.exchanges] == [(101, "31-02")]


# --- streams -----------------------------------------------------------------------------------------------------


def test_a_watch_comes_as_it_is_sent(server: Server, ca_file: str) -> None:
    """Events of a watch arrive one by one, before the server is done."""

    def events(handler: Handler) -> None:
        handler.send(200, None, {}, b'{"type":"ADDED"}\n', length=10_000)
        handler.close_connection = True
        handler.server.released.wait(5)

    server.script.append(events)
    client = Client("kubernetes", server, Trust(ca_file=ca_file), timeout=1)
    url = f"{server.url}/api/v1/pods?watch=true&timeoutSeconds=30"
    answer = client.api.rest_client.request("GET", url, headers={})
    assert next(answer.response.stream(17)) == b'{"type":"ADDED"}\n'
    server.released.set()
    answer.response.close()


def test_a_streamed_download_is_not_held_in_memory(server: Server, ca_file: str) -> None:
    """stream=True of requests stays a stream."""
    client = Client("proxmox", server, Trust(ca_file=ca_file))
    answer = client.session.get(f"{server.url}/api2/json/big", stream=True)
    assert not hasattr(answer.raw, "wire_body")
    assert answer.json() == {"data": None}


# --- the error tree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "code", "reason", "body", "kind", "expected"),
    [
        (
            "proxmox",
            401,
            "No ticket",
            b"",
            errors.NotAuthenticated,
            "PVE refused GET /nodes/pve1/qemu (401): No",
        ),
        (
            "proxmox",
            403,
            "Permission check failed (/vms/100, VM.Audit)",
            b'{"data":null}',
            errors.NotAllowed,
            "VM.Audit is missing on /vms/100: `pveum acl modify /vms/100 --tokens",
        ),
        (
            "proxmox",
            403,
            "Permission check failed (/storage/local, Datastore.Audit|Datastore.AllocateSpace)",
            b"",
            errors.NotAllowed,
            "Datastore.Audit or Datastore.AllocateSpace is missing on /storage/local",
        ),
        (
            "proxmox",
            400,
            "Parameter verification failed.",
            b'{"errors":{"vmid":"type check (\'integer\') failed - got \'x\'\\n"},"data":null}',
            errors.Refused,
            "vmid: type check ('integer') failed - got 'x'; correct vmid",
        ),
        ("proxmox", 500, "storage 's' does not exist", b"", errors.NotFound, "storage 's' does not exist"),
        ("proxmox", 500, "VM is locked (clone)", b"", errors.Conflict, "VM is locked (clone); somebody else holds"),
        ("proxmox", 500, "unable to create VM 100: config file already exists", b"", errors.Conflict, "already exists"),
        ("proxmox", 500, "shrinking disks is not supported", b"", errors.Refused, "shrinking disks is not supported"),
        ("proxmox", 501, "Method 'GET /x' not implemented", b"", errors.Refused, "see its API viewer"),
        ("proxmox", 595, "No route to host", b"", errors.NodeUnreachable, "is pve1 up? `pvecm status`"),
        ("proxmox", 596, "", b"", errors.NodeUnreachable, "the node broke off"),
        ("proxmox", 599, "", b"", errors.NodeUnreachable, "the node gave no answer"),
        (
            "proxmox",
            503,
            "",
            b"<html>",
            errors.Unavailable,
            "could not answer GET /nodes/pve1/qemu (503): Service",
        ),
        (
            "kubernetes",
            401,
            "Unauthorized",
            b'{"message":"Unauthorized"}',
            errors.NotAuthenticated,
            "renew the kubeconfig",
        ),
        (
            "kubernetes",
            403,
            "Forbidden",
            b'{"kind":"Status","message":"pods is forbidden: User \\"x\\" cannot list"}',
            errors.NotAllowed,
            'pods is forbidden: User "x" cannot list; grant it by a Role or ClusterRole',
        ),
        (
            "kubernetes",
            404,
            "Not Found",
            b'{"message":"pods \\"x\\" not found"}',
            errors.NotFound,
            'pods "x" not found',
        ),
        ("kubernetes", 409, "Conflict", b"", errors.Conflict, "read it again, then repeat"),
        ("kubernetes", 410, "Gone", b"", errors.Conflict, "(410)"),
        (
            "kubernetes",
            422,
            "Unprocessable Entity",
            b'{"message":"Namespace is invalid","details":{"causes":[{"field":"metadata.name","message":"bad"}]}}',
            errors.Refused,
            "correct metadata.name",
        ),
        ("kubernetes", 429, "Too Many Requests", b"", errors.Throttled, "fewer requests at a time"),
        ("kubernetes", 500, "Internal Server Error", b"", errors.Unavailable, "look at the server's health"),
        ("kubernetes", 503, "", b"{broken", errors.Unavailable, "Service Unavailable"),
        ("kubernetes", 418, "", b"[]", errors.Refused, "(418)"),
        ("kubernetes", 499, "", b"", errors.Refused, "no reason given"),
    ],
)
def test_each_status_has_its_error(
    system: str, code: int, reason: str, body: bytes, kind: type[errors.ApiError], expected: str
) -> None:
    """One line says what was asked, what came and what to try, and the class tells the rest apart."""
    error = error_for(system, "GET", "/api2/json/nodes/pve1/qemu?x=1", code, reason, body)
    assert type(error) is kind
    assert expected in str(error)
    assert "\n" not in str(error)
    assert (error.system, error.method, error.status) == (system, "GET", code)


def test_a_refused_login_says_what_to_check() -> None:
    """401 of the login itself is about user, realm and password, not about tokens."""
    error = error_for("proxmox", "POST", "/api2/json/access/ticket", 401, "authentication failure", b'{"data":null}')
    assert "check user, realm (user@pam or user@pve) and password" in str(error)


def test_hostile_answers_stay_in_one_line() -> None:
    """Control characters, terminal escapes, length and secrets of a server's text do not reach the message."""
    secrets.register("hunter2-in-error")
    body = json.dumps({"message": "a\x1b[31m\nb\x00hunter2-in-error" + "x" * 5000}).encode()
    told = str(error_for("kubernetes", "GET", "/x", 400, "", body))
    secrets.forget(["hunter2-in-error"])
    assert "\x1b" not in told
    assert "\n" not in told
    assert "hunter2" not in told
    assert len(told) < 700


# --- the Proxmox VE session on it --------------------------------------------------------------------------------


def test_a_login_by_password_passes_the_wire(server: Server, ca_file: str) -> None:
    """proxmoxer's own login would go around its session; ours is observed, and its ticket is redacted."""
    from runbook_lib.proxmox_session import as_user

    ticket = "PVE:root@pam:65F2A0B1::" + "q" * 60
    server.script.append(status(200, None, {"ticket": ticket, "CSRFPreventionToken": "65F2A0B1:csrf", "username": "x"}))
    endpoint = SimpleNamespace(url=server.url, ca_file=ca_file, fingerprint=None, verify=True, timeout_seconds=2.0)
    pve = as_user(endpoint, "root@pam", "hunter2!")
    pve.api.version.get()
    assert [(exchange.method, exchange.path) for exchange in pve.wire.exchanges] == [
        ("POST", "/access/ticket"),
        ("GET", "/version"),
    ]
    assert "q" * 60 in server.seen[1].headers["Cookie"]
    assert secrets.redact(ticket) == secrets.REDACTED
