"""Both clients over real TLS against a small server on loopback that answers what a test tells it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme

from runbook_lib import errors, kubernetes, proxmox
from runbook_lib.kubernetes_session import _exit_code
from runbook_lib.proxmox_login import TicketAuth, proxmox_session
from runbook_lib.proxmox_session import trust_of, wire_of


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, list[str]]:
        """The body as a form."""
        return parse_qs(self.body.decode())


@dataclass
class Loopback:
    """The server: `answers` maps "METHOD path" to a value (200, JSON), (status, reason, body), or a callable."""

    url: str = ""
    ca_file: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def answer(self, asked: Asked) -> tuple[int, str, bytes]:
        """Status, reason and body of one request."""
        self.asked.append(asked)
        found = self.answers.get(f"{asked.method} {asked.path}", (404, "Not Found", b'{"message": "not found"}'))
        if callable(found):
            found = found(asked)
        return found if isinstance(found, tuple) else (200, "OK", json.dumps(found).encode())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority of this module's servers."""
    return trustme.CA()


@pytest.fixture
def loopback(authority: trustme.CA, tmp_path: Path) -> Iterator[Loopback]:
    """A server of its own for each test."""
    told = Loopback()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, path, parse_qs(query), headers, self.rfile.read(length))
            status, reason, body = told.answer(asked)
            self.send_response(status, reason)
            self.send_header(
                "Content-Type", "text/plain" if path.endswith("/log") else "application/json;charset=UTF-8"
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = respond

        def log_message(self, *_: Any) -> None:
            """Nothing: a test's server is quiet."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    told.url = f"https://127.0.0.1:{server.server_address[1]}"
    told.ca_file = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(told.ca_file)
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture
def endpoint(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A site's `proxmox` part for the server."""
    monkeypatch.setenv("TEST_TOKEN_SECRET", "0f0e0d0c-aaaa-bbbb-cccc-0123456789ab")
    monkeypatch.setenv("TEST_PASSWORD", "correct horse")
    return SimpleNamespace(
        url=loopback.url,
        user=None,
        password=None,
        token_id="runbook@pve!runbook",
        token_secret="env:TEST_TOKEN_SECRET",
        ca_file=loopback.ca_file,
        fingerprint=None,
        verify=True,
        timeout_seconds=5,
        password_login=SimpleNamespace(user="root@pam", password="env:TEST_PASSWORD"),
    )


def data(value: Any, **beside: Any) -> dict[str, Any]:
    """An answer as Proxmox VE wraps it."""
    return {"data": value, **beside}


API = "/api2/json"


# --- Proxmox VE ---------------------------------------------------------------------------------------------------


def test_token_is_sent_and_query_is_plain(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """A read carries the token; None is left out and booleans are 0 and 1."""
    loopback.answers["GET " + API + "/nodes"] = data([])
    pve = proxmox.connect(endpoint)
    assert pve.get("/nodes", full=True, type=None) == []
    asked = loopback.asked[0]
    assert asked.headers["authorization"] == "PVEAPIToken=runbook@pve!runbook=0f0e0d0c-aaaa-bbbb-cccc-0123456789ab"
    assert asked.query == {"full": ["1"]}


def test_write_is_form_encoded_and_needs_a_permit(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """Lists repeat their key, a semicolon is quoted, a `path` parameter does not clash with ours."""
    loopback.answers["PUT " + API + "/access/acl"] = data(None)
    loopback.answers["POST " + API + "/nodes/pve1/qemu/100/agent/exec"] = data({"pid": 7})
    pve = proxmox.connect(endpoint)
    with pytest.raises(errors.ReadOnly):
        proxmox.set_acl(pve, "/vms", ["PVEVMUser"], users=["a@pve", "b@pve"])
    assert loopback.asked == []
    with pve.wire.permit("13-01"):
        proxmox.set_acl(pve, "/vms", ["PVEVMUser"], users=["a@pve", "b@pve"])
        command = ["sh", "-c", "echo a; echo 'b c'"]
        assert pve.request("POST", "/nodes/pve1/qemu/100/agent/exec", command=command) == {"pid": 7}
    acl, run = loopback.asked
    assert acl.form == {"path": ["/vms"], "roles": ["PVEVMUser"], "users": ["a@pve,b@pve"], "propagate": ["1"]}
    assert b";" not in run.body
    assert run.form == {"command": command}


def test_login_by_password_happens_once_for_all_threads(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """Reads over many nodes share one ticket; the cookie and, on a write, the CSRF token go along."""
    ticket = {
        "ticket": "PVE:root@pam:6B048540::c2lnbmVk",
        "CSRFPreventionToken": "6B048540:abc",
        "username": "root@pam",
    }
    loopback.answers["POST " + API + "/access/ticket"] = data(ticket)
    names = [f"pve{n}" for n in range(12)]
    loopback.answers["GET " + API + "/nodes"] = data([{"node": name, "status": "online"} for name in names])
    for name in names:
        loopback.answers[f"GET {API}/nodes/{name}/storage"] = data([])
    loopback.answers["POST " + API + "/pools"] = data(None)
    pve = proxmox.connect(endpoint, identity="password")
    assert proxmox.storages(pve) == []
    assert pve.unread == []
    with pve.wire.permit("13-02"):
        proxmox.create_pool(pve, "runbook", comment="runbook-r1")
    assert [asked.path for asked in loopback.asked].count(API + "/access/ticket") == 1
    assert loopback.asked[0].form == {"username": ["root@pam"], "password": ["correct horse"]}
    assert all("PVEAuthCookie=PVE" in asked.headers["cookie"] for asked in loopback.asked[1:])
    assert loopback.asked[-1].headers["csrfpreventiontoken"] == "6B048540:abc"
    assert "csrfpreventiontoken" not in loopback.asked[1].headers


def test_refusal_keeps_the_servers_own_words(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """The reason phrase of a refusal, and what each parameter lacks, reach the reader."""
    said = {"data": None, "message": "Parameter verification failed.\n", "errors": {"vmid": "type check failed"}}
    body = json.dumps(said).encode()
    loopback.answers["GET " + API + "/cluster/nextid"] = (400, "Parameter verification failed.", body)
    with pytest.raises(errors.Refused, match="vmid: type check failed") as caught:
        proxmox.connect(endpoint).get("/cluster/nextid", vmid="x")
    assert caught.value.errors == {"vmid": "type check failed"}


def test_upload_streams_with_a_length(loopback: Loopback, endpoint: SimpleNamespace, tmp_path: Path) -> None:
    """A file is sent in one part with its length known, fields first; the answer is the task."""
    path = f"{API}/nodes/pve1/storage/local/upload"
    loopback.answers["POST " + path] = data("UPID:pve1:0000AAAA:0000BBBB:6B048540:imgcopy::root@pam:")
    iso = tmp_path / "tiny.iso"
    iso.write_bytes(b"CD001" * 100_000)
    pve = proxmox.connect(endpoint)
    with pve.wire.permit("13-03"):
        upid = proxmox.upload(pve, "pve1", "local", iso, sha256="ab" * 32)
    assert upid.startswith("UPID:pve1:")
    asked = loopback.asked[0]
    assert int(asked.headers["content-length"]) == len(asked.body)
    assert "transfer-encoding" not in asked.headers
    head = asked.body[:1000]
    assert head.index(b"sha256") < head.index(b'filename="tiny.iso"')
    assert iso.read_bytes() in asked.body


def test_volume_path_is_quoted(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """The slash of a volid stays within its part of the path; a volume that is gone is no error."""
    path = API + "/nodes/pve1/storage/local/content/local%3Aiso%2Ftiny.iso"
    loopback.answers["DELETE " + path] = data(None)
    pve = proxmox.connect(endpoint)
    with pve.wire.permit("13-04"):
        proxmox.free_volume(pve, "pve1", "local:iso/tiny.iso")
        gone = (500, "volume 'local:iso/tiny.iso' does not exist", b"")
        loopback.answers["DELETE " + path] = gone
        proxmox.free_volume(pve, "pve1", "local:iso/tiny.iso")
    assert [asked.path for asked in loopback.asked] == [path, path]


def test_secret_of_a_new_token_is_redacted_at_once(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """The one time PVE shows a token's secret, the redactor learns it before the caller does."""
    from runbook_lib import secrets

    answer = {"full-tokenid": "capmox@pve!capi", "info": {"privsep": "1"}, "value": "5ecre7-5ecre7-5ecre7"}
    loopback.answers["POST " + API + "/access/users/capmox%40pve/token/capi"] = data(answer)
    pve = proxmox.connect(endpoint)
    with pve.wire.permit("13-05"):
        assert proxmox.create_token(pve, "capmox@pve", "capi") == ("capmox@pve!capi", "5ecre7-5ecre7-5ecre7")
    assert "5ecre7" not in secrets.redact("value=5ecre7-5ecre7-5ecre7")


def test_logins_are_tried_exactly_once(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """No refused login is repeated, whatever the server says, and the server's reason is kept."""

    def login(asked: Asked) -> Any:
        if asked.form["password"] == ["correct horse"]:
            return data({"ticket": "PVE:root@pam:1::x" * 2, "CSRFPreventionToken": "1:abcdef", "username": "root@pam"})
        return 401, "authentication failure", b'{"data": null, "message": "authentication failure\\n"}'

    def version(asked: Asked) -> Any:
        old = "old" in asked.headers["authorization"]
        return (401, "Authentication failed!", b"") if old else data({"version": "9.2.3"})

    loopback.answers |= {"POST " + API + "/access/ticket": login, "GET " + API + "/version": version}
    rows = proxmox.login_attempts(endpoint, expired=("runbook@pve!old", "0000-1111"))
    told = {row.case: (row.expected, row.status, row.reason) for row in rows}
    assert told == {
        "wrong password": ("refused", 401, "authentication failure"),
        "unknown user": ("refused", 401, "authentication failure"),
        "wrong realm": ("refused", 401, "authentication failure"),
        "expired token": ("refused", 401, "Authentication failed!"),
        "disabled token": ("refused", 0, ""),
        "token": ("accepted", 200, "OK"),
        "password": ("accepted", 200, "OK"),
    }
    assert len(loopback.asked) == 6
    users = [asked.form["username"][0] for asked in loopback.asked if asked.method == "POST"]
    assert users[0] == users[3] == "root@pam"
    assert users[1].endswith("@pam")
    assert users[2].startswith("root@runbook-")


def test_ticket_renews_itself_without_the_password(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """The second login sends the first ticket where the password stood."""
    tickets = iter(["PVE:root@pam:1::first", "PVE:root@pam:2::second"])
    loopback.answers["POST " + API + "/access/ticket"] = lambda _: data(
        {"ticket": next(tickets), "CSRFPreventionToken": "1:abcdef", "username": "root@pam"}
    )
    assert proxmox.ticket_renewal(endpoint).status == 200
    assert [asked.form["password"][0] for asked in loopback.asked] == ["correct horse", "PVE:root@pam:1::first"]


def test_ticket_older_than_its_life_wants_the_password_again(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """A ticket is renewed by itself after an hour; after two idle hours only the password helps."""
    loopback.answers["POST " + API + "/access/ticket"] = lambda _: data(
        {"ticket": f"PVE:root@pam:{len(loopback.asked)}::sig", "CSRFPreventionToken": "1:abcdef"}
    )
    wire = wire_of(endpoint)
    times = [0.0]
    auth = TicketAuth(
        proxmox_session(wire, trust_of(endpoint)), endpoint.url, "root@pam", "correct horse", clock=lambda: times[0]
    )
    for times[0] in (0.0, 1800.0, 3700.0, 20_000.0):
        auth.get_tokens()
    sent = [asked.form["password"][0] for asked in loopback.asked]
    assert sent == ["correct horse", "PVE:root@pam:1::sig", "correct horse"]


def test_second_factor_is_told(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """A user with a second factor cannot run a runbook; the error says to use a token."""
    answer = {"ticket": "PVE:!tfa!x", "CSRFPreventionToken": "1:abcdef", "NeedTFA": 1}
    loopback.answers["POST " + API + "/access/ticket"] = data(answer)
    with pytest.raises(errors.NotAuthenticated, match="API token"):
        proxmox.connect(endpoint, identity="password").get("/version")


def test_served_certificate_tells_how_it_is_trusted(loopback: Loopback, endpoint: SimpleNamespace) -> None:
    """What the endpoint presents is read whether or not we trust it, and why not is said."""
    found = proxmox.served_certificate(endpoint)
    assert (found.verified_by, found.chain_error, found.san) == ("ca_file", "", ("127.0.0.1",))
    endpoint.fingerprint = found.fingerprint.lower()
    assert (proxmox.served_certificate(endpoint).verified_by, proxmox.connect(endpoint).identity) == (
        "fingerprint",
        "runbook@pve!runbook",
    )
    endpoint.fingerprint = ":".join(["AB"] * 32)
    assert "not the certificate that is pinned" in proxmox.served_certificate(endpoint).chain_error
    endpoint.fingerprint = endpoint.ca_file = None
    stranger = proxmox.served_certificate(endpoint)
    assert stranger.verified_by == "system"
    assert stranger.chain_error
    endpoint.verify = False
    assert proxmox.served_certificate(endpoint).verified_by == "nothing"


# --- Kubernetes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def k8s(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> kubernetes.Kubernetes:
    """The official client's connections to the server."""
    monkeypatch.setenv("TEST_TOKEN", "abcdefgh")
    part = SimpleNamespace(
        kubeconfig=None,
        context=None,
        url=loopback.url,
        ca_file=loopback.ca_file,
        token="env:TEST_TOKEN",
        verify=True,
        timeout_seconds=5,
    )
    return kubernetes.connect(part)


def lines(*events: Any) -> Callable[[Asked], tuple[int, str, bytes]]:
    """A watch that tells these events and ends."""
    return lambda _: (200, "OK", b"".join(json.dumps(event).encode() + b"\n" for event in events))


PODS = "/api/v1/namespaces/x/pods"


def pod(phase: str) -> dict[str, Any]:
    """A pod in a phase."""
    return {"kind": "Pod", "metadata": {"name": "y", "resourceVersion": "8"}, "status": {"phase": phase}}


def test_apply_is_one_strict_patch(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """Server-side apply names its manager and lets the server refuse unknown fields; a dry run needs no permit."""
    resources = [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True}]
    loopback.answers["GET /api/v1"] = {"kind": "APIResourceList", "resources": resources}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "x"}}
    loopback.answers["PATCH /api/v1/namespaces/x/configmaps/a"] = manifest
    assert k8s.apply(manifest, dry_run=True) == manifest
    asked = loopback.asked[-1]
    assert asked.headers["content-type"] == "application/apply-patch+yaml"
    assert asked.headers["authorization"] == "Bearer abcdefgh"
    assert {name: value[0] for name, value in asked.query.items()} == {
        "fieldManager": "runbook",
        "force": "false",
        "fieldValidation": "Strict",
        "dryRun": "All",
    }
    with pytest.raises(errors.ReadOnly):
        k8s.apply(manifest)


def test_delete_of_what_is_gone_is_no_error(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """Taking away twice is fine; a UID keeps a newcomer of the same name safe."""
    with k8s.wire.permit("13-06"):
        assert k8s.delete(PODS + "/y", uid="u-1") is None
    sent = json.loads(loopback.asked[-1].body)
    assert sent["preconditions"] == {"uid": "u-1"}
    assert sent["propagationPolicy"] == "Background"


def test_wait_lists_and_then_watches(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """The watch begins at the list's version, tells bookmarks from objects, and ends when the state is there."""
    events = lines(
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}},
        {"type": "MODIFIED", "object": pod("Running")},
    )

    def answer(asked: Asked) -> Any:
        listed = {"kind": "PodList", "metadata": {"resourceVersion": "5"}, "items": [pod("Pending")]}
        return events(asked) if "watch" in asked.query else listed

    loopback.answers["GET " + PODS] = answer
    found = k8s.wait(PODS + "/y", lambda thing: thing and thing["status"]["phase"] == "Running", 5)
    assert found == pod("Running")
    listed, watched = loopback.asked
    assert listed.query["fieldSelector"] == ["metadata.name=y"]
    assert watched.query["resourceVersion"] == ["5"]


def test_watch_raises_what_an_error_event_says(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """An ERROR event within a good answer is an error and no object."""
    status = {"kind": "Status", "code": 500, "message": "RequestWatchProgress is disabled", "reason": "InternalError"}
    loopback.answers["GET " + PODS] = lines({"type": "ERROR", "object": status})
    with pytest.raises(errors.ApiError, match="RequestWatchProgress is disabled"):
        list(k8s.watch(PODS))


def test_logs_are_text(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """A log is handed on as it is, only its end if asked so."""
    loopback.answers["GET " + PODS + "/y/log"] = (200, "OK", "TIMEOUT\nдва\n".encode())
    assert k8s.logs("x", "y", tail=2) == "TIMEOUT\nдва\n"
    assert loopback.asked[-1].query == {"tailLines": ["2"]}


def test_exec_needs_a_permit(k8s: kubernetes.Kubernetes, loopback: Loopback) -> None:
    """A command in a pod is a change although it is asked for by GET."""
    with pytest.raises(errors.ReadOnly):
        k8s.exec("x", "y", ["id"])
    assert loopback.asked == []


def test_exit_code_is_read_from_the_last_channel() -> None:
    """Success is 0, a failed command tells its code, and a command that could not start is an error."""
    failed = {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}}
    assert _exit_code(json.dumps({"status": "Success"}), "run x", {}) == 0
    assert _exit_code(json.dumps(failed), "run x", {}) == 3
    with pytest.raises(errors.Refused, match="no such file"):
        _exit_code(json.dumps({"status": "Failure", "message": "exec: no such file"}), "run x", {})
    with pytest.raises(errors.BadAnswer):
        _exit_code("", "run x", {})


def test_secret_is_decoded(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """A `k8s:` reference is read from the Secret's key; a missing key is told without the others' values."""
    loopback.answers["GET /api/v1/namespaces/x/secrets/s"] = {"kind": "Secret", "data": {"token": "aHVudGVyMg=="}}
    assert k8s.secret("x", "s", "token") == "hunter2"
    with pytest.raises(errors.SecretError, match="no such key"):
        k8s.secret("x", "s", "password")


def test_permissions_sum_up_the_rules(loopback: Loopback, k8s: kubernetes.Kubernetes) -> None:
    """Asking what we may do is a read although it is a POST; rules for single names do not count."""
    rules = [
        {"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods"]},
        {"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["only"]},
    ]
    path = "POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    loopback.answers[path] = {"kind": "SelfSubjectRulesReview", "status": {"resourceRules": rules}}
    found = kubernetes.permissions(k8s)
    assert found.paths == {"apps/pods": {"get": True, "list": True}, "pods": {"get": True, "list": True}}
