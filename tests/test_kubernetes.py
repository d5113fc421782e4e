"""Facts of Kubernetes and CozyStack from recorded answers; each case in recorded/kubernetes is one JSON file."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from runbook_lib import errors, kubernetes
from runbook_lib.answers import error_for
from runbook_lib.facts import Interface
from runbook_lib.kubernetes_webhooks import authority
from runbook_lib.model import to_dict

RECORDED = Path(__file__).parent / "recorded" / "kubernetes"
CASES = sorted(RECORDED.glob("*/*.json"))
SITE = SimpleNamespace(
    networks=SimpleNamespace(machine_pool=[], proxmox_lan=None, pods=None, services=None, join=None, api_vip=None),
    names=SimpleNamespace(prefix="runbook", namespace="runbook-test"),
    images=SimpleNamespace(probe="registry.k8s.io/e2e-test-images/agnhost:2.53", pull_policy=None),
)


class Recorded(kubernetes.Reader):
    """A Kubernetes API that knows a few answers by path; a path with its query goes before the bare one."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        """The recorded answer, a list where a list is recorded, 404 where nothing is."""
        text = "&".join(f"{key}={value}" for key, value in sorted(query.items()))
        self.asked.append(f"{path}?{text}" if text else path)
        found = self.answers.get(self.asked[-1], self.answers.get(path))
        if found is None:
            found = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"}
        if isinstance(found, list):
            return {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": found}
        if found.get("kind") == "Status":
            raise error_for("kubernetes", "GET", path, found["code"], found["reason"], json.dumps(found))
        return found


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fact_reads_recorded_answers(path: Path) -> None:
    """A fact gives exactly the rows its recorded answers stand for."""
    case = json.loads(path.read_text(encoding="utf-8"))
    arguments: list[Any] = [Recorded(case["answers"])]
    if path.parent.name == "network_ranges":
        given = {**vars(SITE.networks), **case.get("networks", {})}
        interfaces = [Interface(**row) for row in case.get("interfaces", [])]
        arguments += [SimpleNamespace(networks=SimpleNamespace(**given)), interfaces]
    rows = getattr(kubernetes, path.parent.name)(*arguments, **case.get("arguments", {}))
    expected = case["rows"]
    found = to_dict(rows)
    if case.get("partly"):  # the case is about these fields alone
        found = [{key: row[key] for key in wanted} for row, wanted in zip(found, expected, strict=True)]
    assert found == expected


def test_every_fact_has_a_recorded_case() -> None:
    """A fact without a recorded case would be a guess."""
    assert {path.parent.name for path in CASES} == {
        "version", "nodes", "pods", "workloads", "cozystack", "releases", "packages", "providers", "crds", "webhooks",
        "api_services", "storage_classes", "monitoring", "network_ranges",
    }  # fmt: skip


LISTS = [name for name in kubernetes.__all__ if name in {path.parent.name for path in CASES} - {"version", "cozystack"}]


CORE = {"nodes", "pods", "network_ranges"}
"""Facts of the group that every API server has."""


@pytest.mark.parametrize("fact", sorted(set(LISTS) - CORE))
def test_missing_api_group_gives_no_rows(fact: str) -> None:
    """A cluster that does not serve a group simply has none of its objects."""
    assert getattr(kubernetes, fact)(Recorded({})) == []


@pytest.mark.parametrize("fact", sorted(CORE))
def test_missing_core_group_is_told(fact: str) -> None:
    """What has no nodes and no pods to ask for is no Kubernetes API, and must not look like an empty one."""
    arguments = [SITE] if fact == "network_ranges" else []
    with pytest.raises(errors.NotFound, match="404"):
        getattr(kubernetes, fact)(Recorded({}), *arguments)


def test_forbidden_list_is_told() -> None:
    """What we may not read is not the same as nothing: the error says which permission is missing."""
    said = 'pods is forbidden: User "alice" cannot list resource "pods" in API group "" at the cluster scope'
    k8s = Recorded({"/api/v1/pods": {"kind": "Status", "code": 403, "reason": "Forbidden", "message": said}})
    with pytest.raises(errors.NotAllowed, match='cannot list resource "pods"'):
        kubernetes.pods(k8s)


def test_list_follows_every_page() -> None:
    """A long list comes in pages of 500 and is put together."""
    pages = {
        "/api/v1/things?limit=500": {"metadata": {"continue": "abc"}, "items": [{"n": 1}]},
        "/api/v1/things?continue=abc&limit=500": {"metadata": {}, "items": [{"n": 2}]},
    }
    assert Recorded(pages).list("/api/v1/things") == [{"n": 1}, {"n": 2}]


def test_list_starts_again_when_its_pages_have_expired() -> None:
    """A continue token that is too old gives the whole list in one answer instead of half of one."""
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "The provided continue parameter is too old"}
    pages = {
        "/api/v1/things?limit=500": {"metadata": {"continue": "abc"}, "items": [{"n": 1}]},
        "/api/v1/things?continue=abc&limit=500": gone,
        "/api/v1/things": {"metadata": {}, "items": [{"n": 1}, {"n": 2}]},
    }
    assert Recorded(pages).list("/api/v1/things") == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250m", "0.25"), ("1", "1"), ("1.5", "1.5"), (".5", "0.5"), ("2", "2"), (3, "3"), (None, "0"), ("0", "0"),
        ("100n", "1e-7"), ("5u", "5e-6"), ("1k", "1000"), ("1M", "1e6"), ("1G", "1e9"), ("1T", "1e12"), ("1P", "1e15"),
        ("1E", "1e18"), ("1Ki", "1024"), ("64Mi", "67108864"), ("1Gi", "1073741824"), ("1Ti", "1099511627776"),
        ("1Pi", "1125899906842624"), ("1Ei", "1152921504606846976"), ("1e3", "1000"), ("12E2", "1200"),
        ("1.5e-2", "0.015"), ("-1", "-1"), ("128974848", "128974848"),
    ],
)  # fmt: skip
def test_quantity_knows_every_suffix(text: Any, value: str) -> None:
    """CPU and memory are written with SI, binary and exponent suffixes."""
    assert kubernetes.quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1KB", "one", "1 Gi", "1mi", "0x10", "1e"])
def test_quantity_refuses_what_is_none(text: str) -> None:
    """Something else where a quantity belongs is told and not taken for zero."""
    with pytest.raises(errors.BadAnswer):
        kubernetes.quantity(text)


def requesting(**spec: Any) -> tuple[Decimal, Decimal]:
    """The requests of a pod with this spec."""
    found = kubernetes.requests_of({"spec": spec})
    return found.cpus, found.memory


def container(cpu: str = "0", memory: str = "0", **extra: Any) -> dict[str, Any]:
    """A container that asks for this much."""
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}}, **extra}


@pytest.mark.parametrize(
    ("spec", "cpus", "memory"),
    [
        ({"containers": [container("1"), container("500m")]}, "1.5", "0"),
        ({"containers": [{}]}, "0", "0"),
        (
            {"containers": [container("1", "1k")], "initContainers": [container("2"), container("100m", "5k")]},
            "2",
            "5000",
        ),
        ({"containers": [container("1")], "initContainers": [container("300m", restartPolicy="Always")]}, "1.3", "0"),
        (
            {
                "containers": [container("100m")],
                "initContainers": [container("300m", restartPolicy="Always"), container("1")],
            },
            "1.3",
            "0",
        ),
        (
            {
                "containers": [container("100m")],
                "initContainers": [container("1"), container("300m", restartPolicy="Always")],
            },
            "1",
            "0",
        ),
        ({"containers": [container("1", "1Ki")], "overhead": {"cpu": "250m", "memory": "1Ki"}}, "1.25", "2048"),
        ({"containers": [container("1", "1Ki")], "resources": {"requests": {"cpu": "4"}}}, "4", "1024"),
    ],
)  # fmt: skip
def test_requests_are_counted_as_the_scheduler_does(spec: Any, cpus: str, memory: str) -> None:
    """The larger of the containers together and of each init container, sidecars with both, overhead on top."""
    assert requesting(**spec) == (Decimal(cpus), Decimal(memory))


def bundle(*authorities: trustme.CA) -> str:
    """A caBundle as a webhook configuration holds it."""
    return base64.b64encode(b"".join(ca.cert_pem.bytes() for ca in authorities)).decode()


def timed(start: timedelta, end: timedelta) -> str:
    """A caBundle of one authority that is valid between two times from now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now + start, now + end)
    return base64.b64encode(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)).decode()


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda: bundle(trustme.CA()), ""),
        (lambda: "", "the CA bundle is empty"),
        (lambda: "Cg==", "the CA bundle is empty"),
        (lambda: "not base64!", "the CA bundle is not base64"),
        (lambda: base64.b64encode(b"hello").decode(), "the CA bundle holds no certificate that can be read"),
        (lambda: timed(-10 * DAY, -2 * DAY), "the CA expired on"),
        (lambda: timed(2 * DAY, 9 * DAY), "the CA is not valid before"),
    ],
    ids=["good", "none", "placeholder", "base64", "text", "expired", "future"],
)
def test_authority_says_why_a_bundle_cannot_be_used(made: Callable[[], str], error: str) -> None:
    """A CA bundle that is empty, broken, expired or not valid yet is told apart."""
    _, found = authority(made(), datetime.now(UTC).timestamp())
    assert found.startswith(error)
    assert bool(found) == bool(error)


def test_one_current_authority_of_a_bundle_is_enough() -> None:
    """During a rotation the bundle holds the old authority beside the new one."""
    both = base64.b64encode(base64.b64decode(timed(-10 * DAY, -2 * DAY)) + base64.b64decode(bundle(trustme.CA())))
    assert authority(both.decode(), datetime.now(UTC).timestamp())[1] == ""


def test_webhook_by_url_may_leave_its_bundle_empty() -> None:
    """A public authority may have signed what a URL serves."""
    assert authority(None, 0.0, needed=False) == (None, "")


def test_reach_connects_to_an_open_port() -> None:
    """An open port on this machine is reached, a closed one refuses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = kubernetes.reach("127.0.0.1", port)
    assert (found.source, found.target, found.outcome) == ("this machine", f"127.0.0.1:{port}", "connected")
    assert found.seconds is not None
    assert kubernetes.reach("127.0.0.1", port).outcome == "refused"


def test_reach_names_a_host_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address is a DNS problem, not a closed port."""

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    assert kubernetes.reach("pve.invalid", 8006).outcome == "dns"


def test_probe_passes_the_restricted_level() -> None:
    """The probe may run in a namespace that enforces the restricted Pod Security level and a quota."""
    pod = kubernetes.probe_manifest(SITE, "20261123T190312Z-4f2a", "cp-1", "10.0.0.11", 8006)
    one = pod["spec"]["containers"][0]
    assert pod["spec"]["nodeName"] == "cp-1"
    assert pod["metadata"]["labels"]["runbook.cozystack.io/run"] == "20261123T190312Z-4f2a"
    assert one["args"][:2] == ["connect", "10.0.0.11:8006"]
    assert one["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert {"requests", "limits"} <= one["resources"].keys()


def test_probe_names_differ_by_node_and_target() -> None:
    """Probes of one run from several nodes live side by side."""
    names = {
        kubernetes.probe_manifest(SITE, "r", node, host, 8006)["metadata"]["name"]
        for node in ("cp-1", "cp-2")
        for host in ("10.0.0.11", "fd00::11")
    }
    assert len(names) == 4


NO_IMAGE = {"waiting": {"reason": "ErrImagePull"}}


@pytest.mark.parametrize(
    ("status", "log", "outcome"),
    [
        ({"phase": "Succeeded"}, "", "connected"),
        ({"phase": "Failed"}, "TIMEOUT\n", "timeout"),
        ({"phase": "Failed"}, "REFUSED\n", "refused"),
        ({"phase": "Failed"}, "DNS: lookup pve1 on 10.96.0.10:53: no such host\n", "dns"),
        ({"phase": "Failed"}, "OTHER: dial tcp: no route to host\n", "timeout"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "", "not tried"),
        ({"phase": "Pending", "containerStatuses": [{"state": NO_IMAGE}]}, "", "not tried"),
        ({"phase": "Succeeded"}, "something else", "not tried"),
    ],
)  # fmt: skip
def test_probe_outcome_is_told_by_its_log(status: dict[str, Any], log: str, outcome: str) -> None:
    """What the probe printed is the outcome; a pod that has not run proves nothing."""
    pod = {**kubernetes.probe_manifest(SITE, "r", "cp-1", "fd00::11", 8006), "status": status}
    found = kubernetes.probe_outcome(pod, log)
    assert (found.source, found.target, found.outcome) == ("pod on cp-1", "[fd00::11]:8006", outcome)
    assert bool(found.note) == (outcome == "not tried" or "OTHER" in log)


class Changing(kubernetes.Kubernetes):
    """A Kubernetes whose one object changes by script: lists and watches are handed out in order."""

    def __init__(self, lists: list[list[dict[str, Any]]], watches: list[Any]) -> None:
        self.lists, self.watches, self.versions = lists, watches, []  # type: ignore[var-annotated]

    def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        """The next list."""
        items = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return {"metadata": {"resourceVersion": str(40 + len(self.lists))}, "items": items}

    def watch(self, path: str, /, *, timeout_seconds: float = 60, **query: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The next watch: events, or the error it breaks with."""
        self.versions.append(query["resourceVersion"])
        for event in self.watches.pop(0) if self.watches else []:
            if isinstance(event, Exception):
                raise event
            yield event


def ready(thing: Mapping[str, Any] | None) -> bool:
    """Whether the object says it is ready."""
    return thing is not None and thing["status"]["phase"] == "Running"


PENDING, RUNNING = {"status": {"phase": "Pending"}}, {"status": {"phase": "Running"}}


def test_wait_sees_the_change_in_the_watch() -> None:
    """The watch starts where the list ended, so nothing between them is missed."""
    k8s = Changing([[PENDING]], [[("MODIFIED", PENDING), ("MODIFIED", RUNNING)]])
    assert k8s.wait("/api/v1/namespaces/x/pods/y", ready) == RUNNING
    assert k8s.versions == ["41"]


def test_wait_lists_again_when_the_watch_is_refused() -> None:
    """A server with an old etcd refuses watches with an ERROR event of code 500; listing again still gets there."""
    said = json.dumps({"kind": "Status", "code": 500, "message": "RequestWatchProgress is disabled"})
    refused = error_for("kubernetes", "WATCH", "/api/v1/namespaces/x/pods", 500, "InternalError", said)
    k8s = Changing([[PENDING], [PENDING], [RUNNING]], [[refused], [refused]])
    pauses: list[float] = []
    assert k8s.wait("/api/v1/namespaces/x/pods/y", ready, sleep=pauses.append) == RUNNING
    assert len(pauses) == 2


def test_wait_for_the_end_of_an_object() -> None:
    """An object that is deleted while we watch counts as gone."""
    k8s = Changing([[RUNNING]], [[("DELETED", RUNNING)]])
    assert k8s.wait("/api/v1/namespaces/x/pods/y", lambda thing: thing is None) is None


def test_wait_tells_what_it_saw_last() -> None:
    """A wait in vain says in which state the object stayed."""
    now = iter(range(0, 1000, 20))
    k8s = Changing([[PENDING]], [])
    with pytest.raises(errors.WaitTimeout, match="last seen: Pending"):
        k8s.wait("/api/v1/namespaces/x/pods/y", ready, 60, sleep=lambda _: None, clock=lambda: next(now))


def test_path_of_a_manifest_comes_from_discovery() -> None:
    """Plural and scope of a kind are asked for, never guessed."""
    k8s = Recorded(
        {
            "/apis/cluster.x-k8s.io/v1beta1": {
                "resources": [
                    {"name": "clusters", "kind": "Cluster", "namespaced": True},
                    {"name": "clusters/status", "kind": "Cluster", "namespaced": True},
                ]
            },
            "/api/v1": {"resources": [{"name": "namespaces", "kind": "Namespace", "namespaced": False}]},
        }
    )
    cluster = {"apiVersion": "cluster.x-k8s.io/v1beta1", "kind": "Cluster", "metadata": {"name": "a"}}
    assert k8s.path_of(cluster) == "/apis/cluster.x-k8s.io/v1beta1/namespaces/default/clusters/a"
    assert k8s.path_of({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}) == "/api/v1/namespaces/b"
    with pytest.raises(errors.NotFound, match="does not serve Pod of v1"):
        k8s.path_of({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}})


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: good
contexts:
- {name: good, context: {cluster: safe, user: me}}
- {name: bad, context: {cluster: open, user: me}}
clusters:
- {name: safe, cluster: {server: "https://127.0.0.1:1"}}
- {name: open, cluster: {server: "https://127.0.0.1:1", insecure-skip-tls-verify: true}}
users:
- {name: me, user: {token: abcdefgh}}
"""


def endpoint(**given: Any) -> SimpleNamespace:
    """A site's `kubernetes` part."""
    plain = {"kubeconfig": None, "context": None, "url": None, "ca_file": None, "token": None, "verify": True}
    return SimpleNamespace(**{**plain, "timeout_seconds": 1, **given})


def test_kubeconfig_that_skips_verification_is_refused(tmp_path: Path) -> None:
    """The official client would obey insecure-skip-tls-verify without a word; the site has to say so itself."""
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    assert not kubernetes.skips_verification(path)
    assert kubernetes.skips_verification(path, "bad")
    assert kubernetes.connect(endpoint(kubeconfig=path)).api_client.configuration.verify_ssl
    with pytest.raises(errors.ParameterError, match="insecure-skip-tls-verify"):
        kubernetes.connect(endpoint(kubeconfig=path, context="bad"))
    opted = kubernetes.connect(endpoint(kubeconfig=path, context="bad", verify=False))
    assert not opted.api_client.configuration.verify_ssl


def test_api_server_without_tls_is_refused() -> None:
    """A token is never sent in the clear."""
    with pytest.raises(errors.ParameterError, match="https"):
        kubernetes.connect(endpoint(url="http://127.0.0.1:1"))


def test_write_outside_a_plan_is_not_sent() -> None:
    """A verb that no approved plan permits raises before anything leaves the machine."""
    k8s = kubernetes.connect(endpoint(url="https://127.0.0.1:1"))
    with pytest.raises(errors.ReadOnly):
        k8s.delete("/api/v1/namespaces/x")
    assert k8s.wire.count == 0
