"""The lab's controllers on an API server that is not the lab's own: one of a kubeconfig, or processes it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from typer.testing import CliRunner

from runbook_lib import cli
from runbook_lib.errors import LabError
from runbook_lib.lab import apiserver, control, furnishing, scenario
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.tls import authority

Object = dict[str, Any]

ETCD = """\
#!{python}
import http.server, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
port = int(given["listen-client-urls"].rpartition(":")[2])
http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler).serve_forever()
"""

SERVER = """\
#!{python}
import asyncio, ssl, sys
sys.path.insert(0, {home!r})
from aiohttp import web
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.server import create_app

given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
assert given["etcd-servers"].startswith("http://127.0.0.1:"), given
cluster = Cluster(version="v1.34.3")
token, user = open(given["token-auth-file"]).read().split(",")[:2]
cluster.tokens[token] = User(user, ("system:masters", "system:authenticated"))
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(given["tls-cert-file"], given["tls-private-key-file"])
asked = []

@web.middleware
async def slow_to_be_ready(request, handler):
    if request.path == "/readyz" and len(asked) < 2:
        asked.append(request)
        return web.Response(status=500, text="[-]etcd failed")
    return await handler(request)

app = create_app(cluster)
app.middlewares.insert(0, slow_to_be_ready)
web.run_app(app, host="127.0.0.1", port=int(given["secure-port"]), ssl_context=context, print=None)
"""

BROKEN = """\
#!{python}
import sys
sys.exit("Error: unknown flag: --unsafe-no-fsync")
"""


def write(folder: Path, name: str, text: str) -> None:
    """An executable stand-in of a control plane's binary."""
    home = str(Path(control.__file__).resolve().parents[2])
    path = folder / name
    path.write_text(text.format(python=sys.executable, home=home))
    path.chmod(0o755)


@pytest.fixture
def binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins of etcd and kube-apiserver, named by the environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write(folder, "etcd", ETCD)
    write(folder, "kube-apiserver", SERVER)
    monkeypatch.setenv(apiserver.ASSETS, str(folder))
    return folder


def until(done: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `done` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "never became so"
        time.sleep(0.05)
    return found


class Api:
    """A Kubernetes API, asked by its administrator."""

    def __init__(self, where: control.KubernetesConnection) -> None:
        self.url, self.session = where.url, requests.Session()
        self.session.trust_env, self.session.verify = False, where.ca_file
        self.session.headers["Authorization"] = f"Bearer {where.token}"

    def items(self, path: str) -> list[Object]:
        """The items of a list."""
        return list(self.session.get(self.url + path, timeout=30).json().get("items") or ())

    def post(self, path: str, body: Object) -> int:
        """The status of a creation."""
        return self.session.post(self.url + path, json=body, timeout=30).status_code


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of an API server where no controller runs."""
    folder = tmp_path_factory.mktemp("bare") / "lab"
    control.up(folder, scenario="fresh-node")
    yield folder / "kubeconfig"
    control.down(folder)


# -- a kubeconfig ---------------------------------------------------------------------------------------------------


def test_controllers_live_on_the_server_of_a_kubeconfig(bare: Path, tmp_path: Path) -> None:
    """CozyStack comes up there by the API alone, new workloads run, and the lab's end leaves the server as it is."""
    connection = control.up(tmp_path / "lab", kubeconfig=bare, scale=600)
    try:
        told, api = control.status(tmp_path / "lab") or {}, Api(connection.kubernetes)
        assert (told["apiserver"], told["kubernetes_url"]) == ("real", server_of(bare))
        until(lambda: len(pods := api.items("/api/v1/pods")) > 150 and all(map(settled, pods)))
        assert {row["metadata"]["labels"][apiserver.EMULATED] for row in api.items("/api/v1/nodes")} == {"true"}
        api.post("/api/v1/namespaces/default/pods", {
            "metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "nginx:1.29"}]}})  # fmt: skip
        until(lambda: any(map(settled, api.items("/api/v1/namespaces/default/pods"))))
        with pytest.raises(LabError, match="the API server is not the lab's own"):
            control.reset(tmp_path / "lab")
        with pytest.raises(LabError, match="it is up with a real API server"):
            control.up(tmp_path / "lab", apiserver="own")
    finally:
        control.down(tmp_path / "lab")
    assert api.items("/apis/helm.toolkit.fluxcd.io/v2/helmreleases")


def server_of(kubeconfig: Path) -> str:
    """The address that a kubeconfig names."""
    return str(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def settled(pod: Object) -> bool:
    """Whether a pod runs, or has run."""
    return pod.get("status", {}).get("phase") in {"Running", "Succeeded"}


def test_cluster_of_somebody_is_left_alone(bare: Path, tmp_path: Path) -> None:
    """Where nodes are that the lab does not play, nothing is written and nothing is started."""
    api = Api(control.connection(bare.parent).kubernetes)
    api.post("/api/v1/nodes", {"metadata": {"name": "theirs"}})
    try:
        with pytest.raises(LabError, match=r"it has nodes of its own \(theirs\)"):
            control.up(tmp_path / "lab", kubeconfig=bare)
    finally:
        api.session.delete(f"{api.url}/api/v1/nodes/theirs", timeout=30)
    assert control.status(tmp_path / "lab") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "no kubeconfig with a current context"),
        ("[", "no kubeconfig with a current context"),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: c}}], "
            "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]}",
            "its server is http://127.0.0.1:1",
        ),
    ],
)
def test_kubeconfig_that_cannot_be_used_is_told_at_once(text: str, said: str, tmp_path: Path) -> None:
    """Before a process is started."""
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(LabError, match=said):
        control.up(tmp_path / "lab", kubeconfig=tmp_path / "kubeconfig")


# -- processes ------------------------------------------------------------------------------------------------------


def test_server_is_started_waited_for_and_ended(binaries: Path, tmp_path: Path) -> None:
    """The lab asks until it is ready, lives on it, and its end is the end of both processes."""
    connection = control.up(tmp_path / "lab", apiserver="real", scale=600)
    try:
        api = Api(connection.kubernetes)
        until(lambda: len(pods := api.items("/api/v1/pods")) > 150 and sum(map(settled, pods)) > 100)
        assert len(mine(tmp_path)) == 2
    finally:
        control.down(tmp_path / "lab")
    until(lambda: not mine(tmp_path), 10)


def mine(folder: Path) -> list[int]:
    """The processes that work for labs under this folder, by the files their command lines name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder / "lab" / "apiserver") in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_server_ends_with_the_lab_however_it_ends(how: signal.Signals, binaries: Path, tmp_path: Path) -> None:
    """Ctrl-C, a polite end and a kill all leave no process behind."""
    command = [sys.executable, "-m", "runbook_lib.lab.server", "--dir", str(tmp_path / "lab"), "--apiserver", "real"]
    process = subprocess.Popen([*command, "--scenario", "fresh-node"], stderr=subprocess.DEVNULL)
    until(lambda: len(mine(tmp_path)) == 2)
    process.send_signal(how)
    process.wait(20)
    until(lambda: not mine(tmp_path), 10)


def test_server_that_ends_tells_why(binaries: Path, tmp_path: Path) -> None:
    """Its last words are the lab's, and the other process is ended."""
    write(binaries, "etcd", BROKEN)
    with pytest.raises(LabError, match="it ended with exit code 1: Error: unknown flag: --unsafe-no-fsync"):
        asyncio.run(start(tmp_path, binaries))
    until(lambda: not mine(tmp_path), 10)


async def start(folder: Path, binaries: Path) -> None:
    """Starts both processes for a lab under the folder."""
    (folder / "lab").mkdir()
    found = apiserver.Processes(folder / "lab" / "apiserver", binaries / "etcd", binaries / "kube-apiserver")
    await found.start(authority(folder / "lab"), "a-token")


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (None, "KUBEBUILDER_ASSETS is not set"),
        ((), "there is no etcd in"),
        (("etcd",), "there is no kube-apiserver in"),
    ],
)
def test_missing_binaries_are_told_with_where_to_get_them(
    left: tuple[str, ...] | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, before anything is started, as a usage error of the command."""
    monkeypatch.delenv(apiserver.ASSETS, raising=False)
    if left is not None:
        monkeypatch.setenv(apiserver.ASSETS, str(tmp_path))
        for name in left:
            write(tmp_path, name, ETCD)
    with pytest.raises(LabError, match=said) as error:
        control.up(tmp_path / "lab", apiserver="real")
    assert "setup-envtest" in error.value.hint


def test_command_refuses_an_unknown_api_server(tmp_path: Path) -> None:
    """`--apiserver` is own or real."""
    answer = CliRunner().invoke(cli.app, ["lab", "up", "--dir", str(tmp_path / "lab"), "--apiserver", "kind"])
    assert isinstance(answer.exception, LabError) or answer.exit_code != 0
    assert not (tmp_path / "lab" / "state.json").exists()


# -- what is put there ----------------------------------------------------------------------------------------------


def test_only_what_people_and_charts_make_is_put_there() -> None:
    """No object of a controller, none that names an owner, no webhook: a real server would ask it."""
    made = furnishing.chosen(seeds.cozystack(scenario.load("healthy").kubernetes))
    kinds = {item["kind"] for item in made}
    assert not kinds & (furnishing.MADE_BY_CONTROLLERS | furnishing.ASKED_BY_THE_SERVER)
    assert {"Deployment", "HelmRelease", "Node", "CustomResourceDefinition"} <= kinds
    assert not any(item["metadata"].keys() & set(furnishing.SERVERS_OWN) for item in made)
