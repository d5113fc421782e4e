"""Start, find and stop the lab: `up`, `ensure`, `down`, `status`, `reset`, and what a client needs to connect.

A lab lives in a folder: ca.pem, kubeconfig, secrets.json, state.json, lab.log, all readable by their owner only.
Several labs run side by side in several folders. Whether one is alive is told by its control socket, never by a
process id that somebody else may have by now.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import LabError

START_SECONDS, REAL_START_SECONDS = 30.0, 120.0
STOP_SECONDS = 10.0
_LONGEST_SOCKET = 100  # the kernel's limit is 108 bytes, 104 elsewhere


@dataclass(frozen=True)
class ProxmoxConnection:
    """How a client reaches the lab's Proxmox VE API, as root@pam by password or by token."""

    url: str
    ca_file: str
    username: str
    password: str
    token_id: str
    token_secret: str


@dataclass(frozen=True)
class KubernetesConnection:
    """How a client reaches the lab's Kubernetes API as cluster-admin."""

    url: str
    ca_file: str
    kubeconfig: str
    token: str


@dataclass(frozen=True)
class Connection:
    """Both APIs of one lab."""

    proxmox: ProxmoxConnection
    kubernetes: KubernetesConnection

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Plain data, as `runbook lab up --json` prints it."""
        return asdict(self)


def default_folder() -> Path:
    """Where the lab of the current project lies."""
    home = os.environ.get("RUNBOOK_HOME")
    return (Path(home) if home else Path.cwd()) / ".lab"


def socket_path(folder: Path) -> Path:
    """The control socket of the folder: in it, or under the temporary folder when that path is too long for one."""
    path = folder.resolve() / "control.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"runbook-lab-{os.getuid()}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise LabError(f"open the control socket of {folder}", f"{short} belongs to somebody else")
    return short / f"{digest}.sock"


class _Control(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("lab", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(folder: str | Path, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The lab's answer to one control request; raises LabError when it is not up, or says no."""
    folder = Path(folder)
    control = _Control(socket_path(folder), timeout=START_SECONDS)
    try:
        text = json.dumps(dict(body or {})) if method != "GET" else None
        control.request(method, path, body=text, headers={"Content-Type": "application/json"} if text else {})
        response = control.getresponse()
        answer = json.loads(response.read() or b"{}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LabError(f"ask the lab in {folder}", "it is not up", "start it with `runbook lab up`") from error
    finally:
        control.close()
    if response.status >= 400:
        raise LabError(*(str(answer.get(key, "")) for key in ("asked", "came", "hint")))
    return dict(answer)


def status(folder: str | Path | None = None) -> dict[str, Any] | None:
    """What the lab in the folder says of itself; None when it is not up, whatever its files say."""
    folder = Path(folder) if folder else default_folder()
    if not socket_path(folder).exists():
        return None
    try:
        return request(folder, "GET", "/status")
    except LabError:
        return None


def connection(folder: str | Path | None = None) -> Connection:
    """How to reach the lab in the folder; raises LabError when it is not up."""
    folder = (Path(folder) if folder else default_folder()).resolve()
    told = request(folder, "GET", "/status")
    secrets = json.loads((folder / "secrets.json").read_text(encoding="utf-8"))
    ca_file = str(folder / "ca.pem")
    real = told.get("apiserver") == "real"
    return Connection(
        ProxmoxConnection(
            url=told["proxmox_url"],
            ca_file=ca_file,
            username="root@pam",
            password=secrets["proxmox_password"],
            token_id="root@pam!rehearsal",
            token_secret=secrets["proxmox_token_secret"],
        ),
        KubernetesConnection(
            url=told["kubernetes_url"],
            ca_file=str(folder / "kubernetes-ca.pem") if real else ca_file,
            kubeconfig=str(folder / "kubeconfig"),
            token=secrets.get("kubernetes_real_token", "") if real else secrets["kubernetes_token"],
        ),
    )


def up(
    folder: str | Path | None = None,
    *,
    scenario: str | None = None,
    scale: float | None = None,
    proxmox_port: int = 0,
    kubernetes_port: int = 0,
    seed: int | None = None,
    crds: str | Path | None = None,
    apiserver: str | None = None,
    kubeconfig: str | Path | None = None,
) -> Connection:
    """The lab in the folder: started, or as it is when it is up with the same scenario.

    A running lab asked for another scenario begins anew with that one; its ports and credentials stay. Ports are
    only chosen at the start, and so is `seed`, from which all chance comes; the scenario's unless told.
    `scale` is how many times faster than life tasks and boots go; 60 unless told.
    `crds` is a folder of CustomResourceDefinitions that the lab serves beside its own, from now on.
    `apiserver` "real" puts the cluster into an API server that is not the lab's own: one that it starts from the
    binaries in `KUBEBUILDER_ASSETS`, or the one of `kubeconfig`, where nothing else may be at work.
    Two calls at once start one lab. Raises LabError with the end of lab.log when it does not start.
    """
    folder = (Path(folder) if folder else default_folder()).resolve()
    from filelock import FileLock, Timeout  # only starting needs it

    _prepare(folder)
    try:
        with FileLock(folder / "up.lock", timeout=START_SECONDS):
            running = status(folder)
            real = _real(apiserver, kubeconfig, running)
            if running is None:
                wanted = scenario or "healthy"
                told = ["--scale", str(60.0 if scale is None else scale)]
                told += ["--proxmox-port", str(proxmox_port), "--kubernetes-port", str(kubernetes_port)]
                told += ["--seed", str(seed)] if seed is not None else []
                told += real
                _start(folder, _named(wanted), told)
                running = request(folder, "GET", "/status")
            if scenario is not None and running["scenario"] != _named(scenario):
                request(folder, "POST", "/scenario", {"name": _named(scenario)})
            if scale is not None and float(running["scale"]) != scale:
                request(folder, "POST", "/clock/scale", {"scale": scale})
            if crds is not None:
                _define(folder, Path(crds).resolve())
    except Timeout as error:
        raise LabError(f"start the lab in {folder}", "somebody else has been starting it for too long") from error
    return connection(folder)


def ensure(folder: str | Path | None = None, *, scenario: str, scale: float) -> tuple[Connection, str]:
    """The lab in the folder, started on demand, and the name of its scenario.

    A running lab is left as it is, whatever its scenario: somebody chose it, and a run is to meet it.
    """
    running = status(folder)
    if running is not None:
        return connection(folder), str(running["scenario"])
    return up(folder, scenario=scenario, scale=scale), scenario


def _real(apiserver: str | None, kubeconfig: str | Path | None, running: Mapping[str, Any] | None) -> list[str]:
    """What a lab that is to be started is told of its API server. Raises LabError before a process is."""
    wanted = apiserver or ("real" if kubeconfig else None)
    if wanted not in {None, "own", "real"}:
        raise LabError("start the lab", f"there is no API server {wanted!r}", "own or real")
    if running is not None:
        if wanted is not None and wanted != running.get("apiserver", "own"):
            came = f"it is up with {'a real' if running.get('apiserver') == 'real' else 'its own'} API server"
            raise LabError("change the lab's API server", came, "take it down first: `runbook lab down`")
        return []
    if wanted != "real":
        if kubeconfig:
            raise LabError("start the lab", "--kubeconfig names an API server that --apiserver own does not use")
        return []
    from . import apiserver as real  # fails early and clearly, before a process is started

    if kubeconfig is None:
        real.assets(os.environ)
        return ["--apiserver", "real"]
    path = Path(kubeconfig).expanduser().resolve()
    real.read_kubeconfig(path)
    return ["--apiserver", "real", "--kubeconfig", str(path)]


def _named(scenario: str) -> str:
    """A file's path made absolute, since the lab has its own working folder; a name stays as it is."""
    return str(Path(scenario).resolve()) if scenario.endswith((".yaml", ".yml")) else scenario


def _define(folder: Path, crds: Path) -> None:
    if not crds.is_dir():
        raise LabError(f"load definitions from {crds}", "no such folder", "name a folder with CRD YAML in it")
    request(folder, "POST", "/crds", {"folder": str(crds)})


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise LabError(
            f"use {folder} for the lab", error.strerror or str(error), "choose another with --dir"
        ) from error


def _start(folder: Path, scenario: str, told: list[str]) -> None:
    from .scenario import load  # fails early and clearly, before a process is started

    load(scenario)
    # What a dead lab left behind says nothing about this one.
    socket_path(folder).unlink(missing_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "runbook_lib.lab.server", "--dir", str(folder), "--scenario", scenario]
    command += ["--ready-fd", str(theirs), *told]
    descriptor = os.open(folder / "lab.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        began = os.fstat(descriptor).st_size
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            pass_fds=(theirs,),
            start_new_session=True,  # a Ctrl-C in the terminal is not meant for the lab
            cwd=folder,
            env=_environment(),
        )
    finally:
        os.close(descriptor)
        os.close(theirs)
    seconds = REAL_START_SECONDS if "real" in told else START_SECONDS
    try:
        _await_ready(folder, process, ours, began, seconds)
    except BaseException:
        process.terminate()  # it may have started an API server, which is to end with it
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        os.close(ours)


def _environment() -> dict[str, str]:
    """The environment, with the folder this package is imported from findable from anywhere."""
    package_home = str(Path(__file__).resolve().parents[2])
    paths = [package_home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _await_ready(
    folder: Path, process: subprocess.Popen[bytes], pipe: int, began: int, seconds: float = START_SECONDS
) -> None:
    readable, _, _ = select.select([pipe], [], [], seconds)
    if readable and os.read(pipe, 16).startswith(b"ready"):
        return
    asked = f"start the lab in {folder}"
    if not readable:
        raise LabError(asked, f"not ready within {seconds:.0f} s", f"see {folder / 'lab.log'}")
    process.wait()
    said = (folder / "lab.log").read_bytes()[began:].decode(errors="replace").strip().splitlines()
    raise LabError(asked, said[-1] if said else f"exit code {process.returncode}", f"see {folder / 'lab.log'}")


def down(folder: str | Path | None = None, *, keep: bool = False) -> bool:
    """Whether there was a lab to stop; when this returns its process is gone. With `keep` the next one goes on."""
    folder = (Path(folder) if folder else default_folder()).resolve()
    running = status(folder)
    if running is None:
        return False
    request(folder, "POST", "/shutdown", {"keep": keep})
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if not _alive(int(running["pid"])):
            return True
        time.sleep(0.01)
    raise LabError(f"stop the lab in {folder}", f"process {running['pid']} is still there", f"see {folder / 'lab.log'}")


def _alive(pid: int) -> bool:
    """Whether the process runs; one of our own children that has ended is collected, else it would linger."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and only waits to be collected, which PID 1 of a container may do late or never."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # no such folder on this system: what kill said stands
    return told.rpartition(")")[2].split()[:1] == ["Z"]


def reset(folder: str | Path | None = None) -> dict[str, Any]:
    """The lab's status after it began anew with its scenario."""
    return request(folder or default_folder(), "POST", "/reset")


def scenario(name: str, folder: str | Path | None = None, *, grow: bool = False) -> dict[str, Any]:
    """The lab's status after it began anew with another scenario.

    With `grow` it begins with what the scenario builds on, and the scenario's incident happens from then on.
    """
    return request(folder or default_folder(), "POST", "/scenario", {"name": _named(name), "grow": grow})


def cure(folder: str | Path | None = None) -> dict[str, Any]:
    """The lab's status; what the scenario tells as its incident's cure is done from now on."""
    return request(folder or default_folder(), "POST", "/cure", {})


def fault(rule: Mapping[str, Any] | None, folder: str | Path | None = None) -> dict[str, Any]:
    """The faults in force after this rule was added; None takes all of them away. See `faults.Fault`."""
    return request(folder or default_folder(), "POST", "/fault", rule if rule is not None else {"clear": True})


def node(name: str, *, online: bool, folder: str | Path | None = None) -> dict[str, Any]:
    """Which Proxmox nodes are online, after this one was lost or has returned."""
    return request(folder or default_folder(), "POST", "/node", {"name": name, "online": online})


def snapshot(file: str | Path, folder: str | Path | None = None) -> dict[str, Any]:
    """Where the lab's whole state lies now, and how long it is; only its owner can read it."""
    return request(folder or default_folder(), "POST", "/snapshot", {"file": str(Path(file).resolve())})


def restore(file: str | Path, folder: str | Path | None = None) -> dict[str, Any]:
    """The lab's status after it took the state of that file in the place of its own."""
    return request(folder or default_folder(), "POST", "/restore", {"file": str(Path(file).resolve())})


def advance(seconds: float, folder: str | Path | None = None) -> dict[str, Any]:
    """The lab's offset from real time after it was moved forward by hand."""
    return request(folder or default_folder(), "POST", "/clock/advance", {"seconds": seconds})
