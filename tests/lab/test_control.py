"""The lab's life cycle: start, reuse, reset, stop, and what is left on disk."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from runbook_lib.errors import LabError
from runbook_lib.lab import control


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a lab that is stopped at the end."""
    yield tmp_path / "lab"
    control.down(tmp_path / "lab")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab that several tests look at."""
    folder = tmp_path_factory.mktemp("shared") / "lab"
    control.up(folder, scenario="fresh-node")
    yield folder
    control.down(folder)


def version(connection: control.Connection) -> str:
    pve = connection.proxmox
    answer = requests.get(
        f"{pve.url}/api2/json/version",
        headers={"Authorization": f"PVEAPIToken={pve.token_id}={pve.token_secret}"},
        verify=pve.ca_file,
        timeout=5,
    )
    return str(answer.json()["data"]["version"])


def test_a_started_lab_answers_both_apis_over_verified_tls(shared: Path) -> None:
    """The connection names all a client needs, and both ports speak TLS with the lab's own authority."""
    connection = control.connection(shared)
    assert version(connection) == "8.4.21"
    answer = requests.get(f"{connection.kubernetes.url}/version", verify=connection.kubernetes.ca_file, timeout=5)
    assert answer.headers["Content-Type"].startswith("application/json")


def test_the_kubeconfig_is_all_the_official_client_needs(folder: Path) -> None:
    """Server, authority and token lie in it; the healthy scenario shows its five nodes and runs a pod."""
    from kubernetes import client, config

    connection = control.up(folder, scenario="healthy", scale=600)
    api = client.CoreV1Api(config.new_client_from_config(connection.kubernetes.kubeconfig))
    assert sorted(node.metadata.name for node in api.list_node().items) == [
        "cp-1",
        "cp-2",
        "cp-3",
        "worker-1",
        "worker-2",
    ]
    api.create_namespace({"metadata": {"name": "hello"}})
    probe = {"name": "c", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": ["pause"]}
    api.create_namespaced_pod("hello", {"metadata": {"name": "p"}, "spec": {"containers": [probe]}})
    deadline = time.monotonic() + 10
    while api.read_namespaced_pod("p", "hello").status.phase != "Running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert api.read_namespaced_pod("p", "hello").status.phase == "Running"


def test_the_printed_connection_has_the_promised_keys(shared: Path) -> None:
    """`lab up --json` prints what any client of anyone's needs."""
    told = control.connection(shared).to_dict()
    assert list(told["proxmox"]) == ["url", "ca_file", "username", "password", "token_id", "token_secret"]
    assert list(told["kubernetes"]) == ["url", "ca_file", "kubeconfig", "token"]
    assert all(told["proxmox"].values())
    assert all(told["kubernetes"].values())


def test_only_the_owner_can_read_a_labs_files(shared: Path) -> None:
    """Secrets, keys, kubeconfig and the control socket are closed to others."""
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700
    for name in ("ca.key", "secrets.json", "state.json", "kubeconfig", "lab.log", "control.sock"):
        assert stat.S_IMODE((shared / name).stat().st_mode) == 0o600, name


def test_a_lab_stays_small(folder: Path) -> None:
    """A whole CozyStack with its controllers fits into 120 MB; how soon it is up is for the benchmarks."""
    control.up(folder, scenario="healthy")
    told = control.status(folder)
    assert told is not None
    kilobytes = int(Path(f"/proc/{told['pid']}/status").read_text().split("VmRSS:")[1].split()[0])
    assert kilobytes < 120 * 1024


def test_a_second_up_reuses_the_running_lab(shared: Path) -> None:
    """The same process, port and password."""
    before = control.status(shared)
    connection = control.up(shared, scenario="fresh-node")
    after = control.status(shared)
    assert before is not None
    assert after is not None
    assert (before["pid"], before["proxmox_url"]) == (after["pid"], after["proxmox_url"])
    assert connection == control.connection(shared)


def test_another_scenario_begins_anew_in_the_same_place(shared: Path) -> None:
    """The version changes; port, authority and credentials do not."""
    before = control.connection(shared)
    try:
        after = control.up(shared, scenario="fresh-node-9")
        assert after == before
        assert version(after) == "9.2.11"
    finally:
        control.scenario("fresh-node", shared)


def test_a_run_meets_the_scenario_that_somebody_chose(folder: Path) -> None:
    """What a site asks for is only how a lab begins: a running one is left as it is."""
    control.up(folder, scenario="fresh-node-9")
    connection, scenario = control.ensure(folder, scenario="healthy", scale=60)
    assert (scenario, version(connection)) == ("fresh-node-9", "9.2.11")


def test_reset_forgets_what_was_changed(shared: Path) -> None:
    """A user made after the start is gone after the reset."""
    pve = control.connection(shared).proxmox
    headers = {"Authorization": f"PVEAPIToken={pve.token_id}={pve.token_secret}"}
    users = f"{pve.url}/api2/json/access/users"
    requests.post(users, data={"userid": "guest@pve"}, headers=headers, verify=pve.ca_file, timeout=5)
    assert "guest@pve" in requests.get(users, headers=headers, verify=pve.ca_file, timeout=5).text
    control.reset(shared)
    assert "guest@pve" not in requests.get(users, headers=headers, verify=pve.ca_file, timeout=5).text


def test_an_unknown_scenario_is_refused_with_the_nearest_name(shared: Path) -> None:
    """And the running lab stays as it was."""
    with pytest.raises(LabError, match="did you mean fresh-node"):
        control.scenario("fresh-nod", shared)
    assert version(control.connection(shared)) == "8.4.21"


def test_two_labs_run_side_by_side(shared: Path, folder: Path) -> None:
    """Each has its own ports, authority and passwords."""
    one, two = control.connection(shared), control.up(folder, scenario="fresh-node-9")
    assert (version(one), version(two)) == ("8.4.21", "9.2.11")
    assert one.proxmox.password != two.proxmox.password
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(two.proxmox.url, verify=one.proxmox.ca_file, timeout=5)


def test_down_ends_the_process_and_can_be_repeated(folder: Path) -> None:
    """The process is gone when it returns; a second call says that there was nothing."""
    control.up(folder, scenario="fresh-node")
    told = control.status(folder)
    assert told is not None
    assert control.down(folder) is True
    with pytest.raises(ProcessLookupError):
        os.kill(told["pid"], 0)
    assert control.down(folder) is False
    assert control.status(folder) is None


def test_a_restart_keeps_authority_secrets_and_ports(folder: Path) -> None:
    """A client that is pointed at the lab today finds and trusts it tomorrow."""
    first = control.up(folder, scenario="fresh-node")
    authority = (folder / "ca.pem").read_bytes()
    control.down(folder)
    second = control.up(folder, scenario="fresh-node")
    assert (folder / "ca.pem").read_bytes() == authority
    assert second == first
    assert version(second) == "8.4.21"


def test_a_killed_lab_is_seen_as_dead_and_replaced(folder: Path) -> None:
    """Its socket and state file stay behind and mislead nobody."""
    control.up(folder, scenario="fresh-node")
    told = control.status(folder)
    assert told is not None
    os.kill(told["pid"], signal.SIGKILL)
    os.waitpid(told["pid"], 0)
    assert (folder / "state.json").exists()
    assert control.status(folder) is None
    with pytest.raises(LabError, match="runbook lab up"):
        control.connection(folder)
    assert version(control.up(folder, scenario="fresh-node")) == "8.4.21"


def test_a_process_id_of_somebody_else_is_left_alone(folder: Path) -> None:
    """A stale state.json that names a living stranger neither counts as a lab nor gets it stopped."""
    folder.mkdir()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (folder / "state.json").write_text(json.dumps({"pid": stranger.pid}))
        assert control.status(folder) is None
        assert control.down(folder) is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_starts_at_once_make_one_lab(folder: Path) -> None:
    """Both callers get the same lab."""
    found: list[control.Connection] = []
    threads = [
        threading.Thread(target=lambda: found.append(control.up(folder, scenario="fresh-node"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_taken_port_is_named(folder: Path, shared: Path) -> None:
    """The message says which port, and the failed process is gone."""
    port = int(control.connection(shared).proxmox.url.rpartition(":")[2])
    with pytest.raises(LabError, match=f"127.0.0.1:{port}"):
        control.up(folder, scenario="fresh-node", proxmox_port=port)
    assert control.status(folder) is None


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file where the folder should be gives one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match=r"use .*file for the lab"):
        control.up(tmp_path / "file")


def test_a_very_long_folder_still_has_a_control_socket(tmp_path: Path) -> None:
    """A socket's path is limited by the kernel; the lab finds a shorter one."""
    folder = tmp_path / ("long" * 30)
    try:
        assert version(control.up(folder, scenario="fresh-node")) == "8.4.21"
    finally:
        assert control.down(folder) is True


def test_a_fault_is_injected_and_taken_away(shared: Path) -> None:
    """A rule with `times` hits that often; clearing forgets it."""
    pve = control.connection(shared).proxmox
    control.fault({"system": "proxmox", "path": "/version$", "status": 503, "times": 1}, shared)
    url = f"{pve.url}/api2/json/version"
    headers = {"Authorization": f"PVEAPIToken={pve.token_id}={pve.token_secret}"}
    seen = [requests.get(url, headers=headers, verify=pve.ca_file, timeout=5).status_code for _ in range(2)]
    assert seen == [503, 200]
    control.fault({"path": "/version", "reset": True}, shared)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url, headers=headers, verify=pve.ca_file, timeout=5)
    assert control.fault(None, shared)["faults"] == []


def test_a_fault_that_means_nothing_is_refused(shared: Path) -> None:
    """An unknown key names the known ones."""
    with pytest.raises(LabError, match="no such key: code"):
        control.fault({"code": 500}, shared)


def test_time_is_moved_by_hand(shared: Path) -> None:
    """The lab's wall clock goes ahead of the real one by what was asked."""
    control.advance(90, shared)
    assert control.advance(30, shared)["offset_seconds"] >= 120


def test_an_interrupted_start_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the lab starts ends the lab, too."""
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(folder: Path, process: subprocess.Popen[bytes], pipe: int, began: int, seconds: float) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "_await_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        control.up(folder, scenario="fresh-node")
    assert started[0].poll() is not None
    assert control.status(folder) is None


def test_definitions_of_a_folder_are_served_and_outlive_a_reset(folder: Path, tmp_path: Path) -> None:
    """`crds` serves what a folder defines beside the lab's own kinds, from the start and after a reset."""
    names = {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.lab.test"},
        "spec": {"group": "lab.test", "scope": "Namespaced", "names": names, "versions": [version]},
    }  # fmt: skip
    (tmp_path / "crds").mkdir()
    (tmp_path / "crds" / "gadgets.yaml").write_text(json.dumps(definition))
    kubernetes = control.up(folder, scenario="fresh-node", crds=tmp_path / "crds").kubernetes

    def served() -> int:
        headers = {"Authorization": f"Bearer {kubernetes.token}"}
        path = f"{kubernetes.url}/apis/lab.test/v1/gadgets"
        return requests.get(path, headers=headers, verify=kubernetes.ca_file, timeout=5).status_code

    assert served() == 200
    control.reset(folder)
    assert served() == 200


def test_a_folder_without_definitions_is_named(shared: Path, tmp_path: Path) -> None:
    """Neither a missing folder nor one without CRDs is passed over in silence."""
    with pytest.raises(LabError, match="no such folder"):
        control.up(shared, crds=tmp_path / "missing")
    with pytest.raises(LabError, match="no YAML or JSON file there holds one"):
        control.up(shared, crds=tmp_path)
