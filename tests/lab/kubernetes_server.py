"""A Kubernetes API server of the lab in this process: over TLS in a thread for real clients, in memory for replays."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme
import yaml
from aiohttp import web

from runbook_lib.lab.kubernetes import certificates
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.server import create_app

USERS = {
    "admin-token": User("admin", ("system:masters", "system:authenticated")),
    "alice-token": User("alice", ("dev", "system:authenticated")),
    "bob-token": User("bob", ("system:authenticated",)),
}


@dataclass(frozen=True)
class Server:
    """Where a test's API server listens."""

    url: str
    ca_file: Path
    kubeconfig: Path
    cluster: Cluster
    loop: asyncio.AbstractEventLoop


@contextlib.contextmanager
def serve(folder: Path, cluster: Cluster) -> Iterator[Server]:
    """A TLS server for a cluster, in its own thread, until the block ends."""
    authority = trustme.CA()
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    authority.configure_trust(context)
    cluster.signer = certificates.signer(authority.cert_pem.bytes(), authority.private_key_pem.bytes())
    cluster.tokens |= USERS
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    found: dict[str, int] = {}

    async def main() -> None:
        runner = web.AppRunner(create_app(cluster), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        found["port"] = runner.addresses[0][1]
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    task: list[asyncio.Task[None]] = []

    def work() -> None:
        asyncio.set_event_loop(loop)
        task.append(loop.create_task(main()))
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task[0])
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10), "the server did not start"
    url = f"https://127.0.0.1:{found['port']}"
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "lab",
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
                "clusters": [{"name": "lab", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
                "users": [{"name": "admin", "user": {"token": "admin-token"}}],
            }
        )
    )
    try:
        yield Server(url, ca_file, kubeconfig, cluster, loop)
    finally:
        loop.call_soon_threadsafe(task[0].cancel)
        thread.join(5)
