"""An API server that is not the lab's own: kube-apiserver with its etcd as processes, or one that a kubeconfig names.

With `KUBEBUILDER_ASSETS` naming a folder with both binaries the lab starts and stops them; nothing else of a control
plane runs there, so the lab's controllers meet no others.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ..errors import LabError
from .kubernetes.controllers.client import KubeClient, Refused
from .kubernetes.controllers.remote import RemoteClient
from .tls import LOOPBACK, write_private

ASSETS = "KUBEBUILDER_ASSETS"
BINARIES = ("etcd", "kube-apiserver")
READY_SECONDS, END_SECONDS, LOOK_SECONDS = 60.0, 5.0, 0.1  # real seconds: the processes are real
LEASE_SECONDS = 60.0
GET_THEM = (
    f"name the folder of etcd and kube-apiserver in {ASSETS} (`setup-envtest use -p path` prints one), "
    "or give --kubeconfig"
)
LONGEST = 2000


@dataclass(frozen=True)
class Reached:
    """An API server that answers: where, who signs for it, and how its administrator is known."""

    url: str
    ca_pem: str
    token: str
    kubeconfig: str
    client: KubeClient


def assets(environment: Mapping[str, str]) -> tuple[Path, Path]:
    """The files of etcd and of kube-apiserver. Raises LabError with what is missing and where to get it."""
    asked = "start a real API server"
    folder = environment.get(ASSETS, "")
    if not folder:
        raise LabError(asked, f"{ASSETS} is not set", GET_THEM)
    found = [Path(folder).expanduser() / name for name in BINARIES]
    for path in found:
        if not path.is_file():
            raise LabError(asked, f"there is no {path.name} in {folder}", GET_THEM)
        if not os.access(path, os.X_OK):
            raise LabError(asked, f"{path} cannot be executed", f"chmod +x {path}")
    return found[0], found[1]


def read_kubeconfig(path: Path) -> str:
    """The text of a kubeconfig that names a server. Raises LabError."""
    asked = f"use the API server of {path}"
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        chosen = {row["name"]: row["context"] for row in config["contexts"]}[config["current-context"]]
        server = {row["name"]: row["cluster"] for row in config["clusters"]}[chosen["cluster"]]["server"]
    except OSError as error:
        raise LabError(asked, error.strerror or str(error)) from error
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise LabError(asked, f"no kubeconfig with a current context: {error}") from error
    if not str(server).startswith("https://"):
        raise LabError(asked, f"its server is {server}", "a server over https is needed")
    return text


# -- one that is there --------------------------------------------------------------------------------------------


async def reach(path: Path) -> Reached:
    """The API server of a kubeconfig, where nobody else is at work. Raises LabError."""
    text = read_kubeconfig(path)
    asked = f"use the API server of {path}"
    config = _embedded(yaml.safe_load(text), path.parent)
    try:
        client = RemoteClient(yaml.safe_dump(config), name="lab-controllers")
    except (ValueError, ssl.SSLError) as error:
        raise LabError(asked, str(error)) from error
    try:
        await client.get("/version")
        await _refuse_others(client, asked)
    except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
        await client.close()
        raise LabError(asked, str(error) or type(error).__name__, "is it up, and may its user list nodes?") from error
    except LabError:
        await client.close()
        raise
    chosen = {row["name"]: row["context"] for row in config["contexts"]}[config["current-context"]]
    cluster = {row["name"]: row["cluster"] for row in config["clusters"]}[chosen["cluster"]]
    user = {row["name"]: row["user"] for row in config["users"]}[chosen["user"]]
    authority = base64.b64decode(cluster.get("certificate-authority-data", "")).decode()
    return Reached(client.base_url, authority, str(user.get("token", "")), yaml.safe_dump(config), client)


def _embedded(config: dict[str, Any], home: Path) -> dict[str, Any]:
    """The kubeconfig with the files it names inside it."""
    pairs = [("certificate-authority", "cluster"), ("client-certificate", "user"), ("client-key", "user")]
    for name, part in pairs:
        for row in config.get(f"{part}s") or ():
            held = row.get(part) or {}
            if name in held and f"{name}-data" not in held:
                held[f"{name}-data"] = base64.b64encode((home / str(held.pop(name))).read_bytes()).decode()
    return config


EMULATED = "lab.runbook.cozystack.io/emulated"
"""The label of nodes that the lab plays."""


async def _refuse_others(client: KubeClient, asked: str) -> None:
    """Nothing; raises LabError where nodes or a controller manager are at work that are not the lab's."""
    hint = "the lab's controllers would fight it: give a bare API server"
    foreign = [
        row["metadata"]["name"] for row in (await client.list("/api/v1/nodes"))["items"]
        if EMULATED not in (row["metadata"].get("labels") or {})
    ]  # fmt: skip
    if foreign:
        raise LabError(asked, f"it has nodes of its own ({', '.join(foreign[:3])})", hint)
    lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager"
    held = ((await client.find(lease)) or {}).get("spec") or {}
    if held.get("renewTime") and held.get("holderIdentity"):
        age = (datetime.now(UTC) - datetime.fromisoformat(str(held["renewTime"]))).total_seconds()
        if age < LEASE_SECONDS:
            raise LabError(asked, f"a controller manager is at work there ({held['holderIdentity']})", hint)


# -- one of our own ------------------------------------------------------------------------------------------------


@dataclass
class Processes:
    """etcd and kube-apiserver in a folder; what they write lies beside their data."""

    folder: Path
    etcd: Path
    server: Path
    _running: list[tuple[str, Process]] = field(default_factory=list)

    async def start(self, ca: trustme.CA, token: str) -> Reached:
        """The API server once it is ready, with an empty store. Raises LabError with what it said last."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)
        try:
            place = f"http://127.0.0.1:{free_port()}"
            await self._run("etcd", self.etcd, self.etcd_arguments(place, f"http://127.0.0.1:{free_port()}"))
            port = free_port()
            self._write_identity(ca, token)
            await self._run("kube-apiserver", self.server, self.server_arguments(place, port))
            url, ca_pem = f"https://127.0.0.1:{port}", ca.cert_pem.bytes().decode()
            await self._await_ready(url, ca_pem, token)
        except BaseException:
            await self.stop()
            raise
        client = KubeClient(url, token, name="lab-controllers", ssl_context=_trusting(ca_pem))
        return Reached(url, ca_pem, token, "", client)

    def etcd_arguments(self, place: str, peers: str) -> list[str]:
        """etcd's command line: one member, on loopback, which need not survive a power cut."""
        return [
            f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={place}", f"--advertise-client-urls={place}",
            f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}", "--unsafe-no-fsync=true", "--log-level=warn",
        ]  # fmt: skip

    def server_arguments(self, place: str, port: int) -> list[str]:
        """kube-apiserver's command line: RBAC, one static token, and no plug-in that waits for other controllers."""
        here = self.folder
        return [
            f"--etcd-servers={place}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--cert-dir={here}", f"--tls-cert-file={here / 'server.pem'}",
            f"--tls-private-key-file={here / 'server.key'}", f"--client-ca-file={here / 'ca.pem'}",
            f"--token-auth-file={here / 'tokens.csv'}", "--authorization-mode=Node,RBAC",
            f"--service-account-issuer=https://127.0.0.1:{port}", f"--service-account-key-file={here / 'sa.key'}",
            f"--service-account-signing-key-file={here / 'sa.key'}", "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount", "--allow-privileged=true",
            "--enable-bootstrap-token-auth=true",
        ]  # fmt: skip

    def _write_identity(self, ca: trustme.CA, token: str) -> None:
        leaf = ca.issue_cert(*LOOPBACK, "kubernetes.default.svc", common_name="kube-apiserver")
        write_private(self.folder / "server.pem", leaf.cert_chain_pems[0].bytes().decode())
        write_private(self.folder / "server.key", leaf.private_key_pem.bytes().decode())
        write_private(self.folder / "ca.pem", ca.cert_pem.bytes().decode())
        write_private(self.folder / "tokens.csv", f'{token},lab-admin,lab-admin,"system:masters"\n')
        key = rsa.generate_private_key(65537, 2048)
        form, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        write_private(self.folder / "sa.key", key.private_bytes(serialization.Encoding.PEM, form, none).decode())

    async def _run(self, name: str, binary: Path, arguments: Sequence[str]) -> None:
        descriptor = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                str(binary), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=descriptor, stderr=descriptor,
                cwd=self.folder, preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,  # a Ctrl-C in a terminal is the lab's to hear: it ends them in order
            )  # fmt: skip
        except OSError as error:
            raise LabError(f"start {binary}", error.strerror or str(error), GET_THEM) from error
        finally:
            os.close(descriptor)
        self._running.append((name, process))

    async def _await_ready(self, url: str, ca_pem: str, token: str) -> None:
        said = "no answer"
        try:
            connector = aiohttp.TCPConnector(ssl=_trusting(ca_pem))
            headers = {"Authorization": f"Bearer {token}"}
            async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession(connector=connector) as session:
                while True:
                    for name, process in self._running:
                        if process.returncode is not None:
                            raise LabError(f"start {name}", self._ended(name, process.returncode), self._see(name))
                    try:
                        async with session.get(f"{url}/readyz", headers=headers) as answer:
                            if answer.status == 200:
                                return
                            said = f"/readyz answers {answer.status}"
                    except (aiohttp.ClientError, OSError) as error:
                        said = str(error)
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            words = f"not ready within {READY_SECONDS:.0f} s: {said}"
            raise LabError("start kube-apiserver", words, self._see("kube-apiserver")) from error

    def _ended(self, name: str, code: int) -> str:
        lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"it ended with exit code {code}" + (f": {lines[-1][:LONGEST]}" if lines else "")

    def _see(self, name: str) -> str:
        return f"see {self.folder / name}.log"

    async def stop(self) -> None:
        """Nothing; both have ended, the server first; one that does not is killed."""
        for _, process in reversed(self._running):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                try:
                    async with asyncio.timeout(END_SECONDS):
                        await process.wait()
                except TimeoutError:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        self._running.clear()


def _die_with_parent() -> None:
    """Has the kernel end this process with the lab, even with one that was killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _trusting(ca_pem: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca_pem)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


# -- either ----------------------------------------------------------------------------------------------------------


@dataclass
class Real:
    """The API server that a lab was asked to use in the place of its own. `kubeconfig` empty: processes of its own."""

    folder: Path
    kubeconfig: Path | None = None
    reached: Reached | None = None
    _processes: Processes | None = None

    async def start(self, ca: trustme.CA) -> Reached:
        """The API server, ready. Raises LabError."""
        if self.kubeconfig is not None:
            self.reached = await reach(self.kubeconfig)
        else:
            self._processes = Processes(self.folder / "apiserver", *assets(os.environ))
            self.reached = await self._processes.start(ca, secrets.token_urlsafe(24))
        return self.reached

    def write_authority(self) -> Path:
        """The file of who signs for the server's certificate."""
        assert self.reached is not None
        path = self.folder / "kubernetes-ca.pem"
        write_private(path, self.reached.ca_pem)
        return path

    async def stop(self) -> None:
        """Nothing; connections have ended, and processes of its own too."""
        if self.reached is not None:
            await self.reached.client.close()
            self.reached = None
        if self._processes is not None:
            await self._processes.stop()
            self._processes = None
