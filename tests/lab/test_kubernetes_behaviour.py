"""What any API server does, on the lab's and, where one is named, on a real one.

`RUNBOOK_VERIFY_KUBECONFIG` names a kubeconfig; the tests make and remove a namespace of their own there.
`KUBEBUILDER_ASSETS` (a folder with kube-apiserver and etcd, the convention of envtest) starts a real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from kubernetes import client, config

from runbook_lib.lab.kubernetes.cluster import Cluster
from tests.lab.kubernetes_server import serve

Json = dict[str, Any]
Ask = Callable[..., tuple[int, Json]]
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def real_server(assets: Path, folder: Path) -> Iterator[Path]:
    """The kubeconfig of a real kube-apiserver started from a folder of binaries."""
    lacking = [name for name in ("kube-apiserver", "etcd") if not (assets / name).is_file()]
    if lacking:
        pytest.fail(f"KUBEBUILDER_ASSETS is {assets}, which lacks {' and '.join(lacking)}")
    ports = [_free_port() for _ in range(3)]
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    key = folder / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    store = f"http://127.0.0.1:{ports[0]}"
    etcd = [
        str(assets / "etcd"), "--data-dir", str(folder / "etcd"), "--listen-client-urls", store,
        "--advertise-client-urls", store, "--listen-peer-urls", f"http://127.0.0.1:{ports[1]}", "--log-level", "error",
    ]  # fmt: skip
    server = [
        str(assets / "kube-apiserver"), "--etcd-servers", store, "--secure-port", str(ports[2]), "--bind-address",
        "127.0.0.1", "--cert-dir", str(folder / "pki"), "--token-auth-file", str(folder / "tokens.csv"),
        "--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16", "--service-account-issuer",
        "https://kubernetes.default.svc", "--service-account-key-file", str(key),
        "--service-account-signing-key-file", str(key), "--disable-admission-plugins", "ServiceAccount",
    ]  # fmt: skip
    running = [subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for each in (etcd, server)]
    cluster = {"server": f"https://127.0.0.1:{ports[2]}", "insecure-skip-tls-verify": True}
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "real",
                "contexts": [{"name": "real", "context": {"cluster": "real", "user": "admin"}}],
                "clusters": [{"name": "real", "cluster": cluster}],
                "users": [{"name": "admin", "user": {"token": token}}],
            }
        )
    )  # fmt: skip
    try:
        yield path
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module", params=["lab", "real"])
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks one API server: status and JSON of a request below a namespace of these tests' own."""
    folder = tmp_path_factory.mktemp("behaviour")
    named, assets = os.environ.get("RUNBOOK_VERIFY_KUBECONFIG"), os.environ.get("KUBEBUILDER_ASSETS")
    with contextlib.ExitStack() as stack:
        if request.param == "lab":
            kubeconfig = stack.enter_context(serve(folder, Cluster())).kubeconfig
        elif named:
            kubeconfig = Path(named)
            if not kubeconfig.is_file():
                pytest.fail(f"RUNBOOK_VERIFY_KUBECONFIG is {named}, and there is no such file")
        elif assets:
            kubeconfig = stack.enter_context(real_server(Path(assets), folder))
        else:
            pytest.skip("no real API server: neither RUNBOOK_VERIFY_KUBECONFIG nor KUBEBUILDER_ASSETS is set")
        session, host = _session(kubeconfig)
        _until_ready(session, host)
        space = f"runbook-behaviour-{secrets.token_hex(3)}"

        def request_(method: str, path: str, body: Any = None, form: str = "application/json") -> tuple[int, Json]:
            url = host + (path if path.startswith("/") else f"/api/v1/namespaces/{space}/{path}")
            data = None if body is None else json.dumps(body)
            answer = session.request(method, url, data=data, headers={"Content-Type": form}, timeout=30)
            return answer.status_code, answer.json()

        assert request_("POST", "/api/v1/namespaces", {"metadata": {"name": space}})[0] == 201
        yield request_
        request_("DELETE", f"/api/v1/namespaces/{space}")


def _session(kubeconfig: Path) -> tuple[requests.Session, str]:
    """A session with the identity of a kubeconfig, and where its server is."""
    found = client.Configuration()
    config.load_kube_config(str(kubeconfig), client_configuration=found)
    session = requests.Session()
    session.trust_env = False
    session.verify = (found.ssl_ca_cert or True) if found.verify_ssl else False
    if found.cert_file and found.key_file:
        session.cert = (found.cert_file, found.key_file)
    token = found.api_key.get("authorization") or found.api_key.get("BearerToken")
    if token:
        session.headers["Authorization"] = token
    return session, str(found.host)


def _until_ready(session: requests.Session, host: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(requests.ConnectionError):
            if session.get(f"{host}/api/v1/namespaces/default", timeout=10).status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"{host} did not become ready")


def config_map(name: str, **rest: Any) -> Json:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}} | rest


def test_a_second_create_conflicts(ask: Ask) -> None:
    """The same name twice is 409 AlreadyExists in the known words."""
    assert ask("POST", "configmaps", config_map("twice"))[0] == 201
    status, answer = ask("POST", "configmaps", config_map("twice"))
    assert (status, answer["reason"]) == (409, "AlreadyExists")
    assert answer["message"] == 'configmaps "twice" already exists'


def test_a_stale_write_conflicts(ask: Ask) -> None:
    """A PUT with an old resourceVersion is 409 Conflict."""
    _, made = ask("POST", "configmaps", config_map("stale"))
    ask("PATCH", "configmaps/stale", {"data": {"a": "1"}}, MERGE)
    status, answer = ask("PUT", "configmaps/stale", made)
    assert (status, answer["reason"]) == (409, "Conflict")
    assert "please apply your changes to the latest version and try again" in answer["message"]


def test_owners_of_fields_conflict_until_forced(ask: Ask) -> None:
    """Server-side apply names the owner of a field; force takes it over; what nobody says any more goes."""
    path = "configmaps/owned?fieldManager="
    assert ask("PATCH", path + "one", config_map("owned", data={"a": "1", "b": "1"}), APPLY)[0] == 201
    status, answer = ask("PATCH", path + "two", config_map("owned", data={"a": "2"}), APPLY)
    assert status == 409
    assert answer["message"] == 'Apply failed with 1 conflict: conflict with "one": .data.a'
    assert ask("PATCH", path + "two&force=true", config_map("owned", data={"a": "2"}), APPLY)[0] == 200
    _, left = ask("PATCH", path + "one", config_map("owned", data={}), APPLY)
    assert left["data"] == {"a": "2"}


def test_a_dry_run_leaves_nothing(ask: Ask) -> None:
    """dryRun=All answers as if it had happened, and nothing did."""
    assert ask("POST", "configmaps?dryRun=All", config_map("dry"))[0] == 201
    assert ask("GET", "configmaps/dry")[0] == 404


def test_unknown_fields_are_refused_when_asked(ask: Ask) -> None:
    """fieldValidation=Strict makes an unknown field a 400."""
    status, answer = ask("POST", "configmaps?fieldValidation=Strict", config_map("odd", bogus=1))
    assert status == 400
    assert 'strict decoding error: unknown field "bogus"' in answer["message"]


def test_a_finalizer_holds_an_object(ask: Ask) -> None:
    """A deleted object stays, marked, until its finalizers are gone."""
    body = config_map("held")
    body["metadata"]["finalizers"] = ["runbook.test/hold"]
    ask("POST", "configmaps", body)
    _, held = ask("DELETE", "configmaps/held")
    assert ask("GET", "configmaps/held")[1]["metadata"]["deletionTimestamp"]
    assert ask("PATCH", "configmaps/held", {"metadata": {"finalizers": None}}, MERGE)[0] == 200, held
    assert ask("GET", "configmaps/held")[0] == 404


def test_a_page_goes_on_where_the_last_one_ended(ask: Ask) -> None:
    """limit and continue walk through a list without gap or repetition."""
    for number in range(5):
        body = config_map(f"page-{number}")
        body["metadata"]["labels"] = {"page": "1"}
        ask("POST", "configmaps", body)
    names: list[str] = []
    token = ""
    while True:
        _, page = ask("GET", "configmaps?labelSelector=page%3D1&limit=2" + (f"&continue={token}" if token else ""))
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue", "")
        if not token:
            break
    assert names == [f"page-{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (config_map("Bad_Name"), "metadata.name"),
        (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "l", "labels": {"a": "b c"}}},
            "metadata.labels",
        ),
        (config_map("k", data={"a/b": "c"}), "data[a/b]"),
    ],
)
def test_bad_objects_are_refused_with_their_field(ask: Ask, body: Json, cause: str) -> None:
    """422 Invalid names the field in its causes."""
    status, answer = ask("POST", "configmaps", body)
    assert (status, answer["reason"]) == (422, "Invalid")
    assert answer["details"]["causes"][0]["field"] == cause


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("RUNBOOK_VERIFY_KUBECONFIG", "there is no such file"),
        ("KUBEBUILDER_ASSETS", "which lacks kube-apiserver and etcd"),
    ],
)
def test_a_wrong_address_of_a_real_server_is_told(tmp_path: Path, name: str, said: str) -> None:
    """Who names a real API server that is not there gets one line about it, not a skipped suite."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RUNBOOK_VERIFY_KUBECONFIG", "KUBEBUILDER_ASSETS")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    command += ["-k", "test_a_dry_run_leaves_nothing and real"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | {name: str(tmp_path / "gone")}
    )
    assert done.returncode == 1
    assert said in done.stdout
