"""A seeded cluster behind its API server with every controller at work, and what tests ask of it."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import Handles, start_all
from runbook_lib.lab.kubernetes.controllers.client import KubeClient, Refused
from runbook_lib.lab.kubernetes.server import create_app

Object = dict[str, Any]
TOKEN, NAMESPACE = "a-token-of-the-test", "runbook-test"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@asynccontextmanager
async def living(
    section: Object, scale: float = math.inf, objects: Iterable[Object] = (), *, tls: Path | None = None
) -> AsyncIterator[tuple[KubeClient, Handles]]:
    """The cluster and a client of it; time does not wait unless a scale is given.

    With `tls`, a folder for its CA, it is served over TLS: kubectl keeps its token to itself otherwise.
    """
    cluster = Cluster(version=seeds.kubernetes_version(section))
    cluster.load([*seeds.cozystack(section), *objects])
    cluster.tokens[TOKEN] = User("lab-controllers", ("system:masters",))
    runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    context, ca_file = _certified(tls) if tls else (None, None)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    handles = await start_all(url, TOKEN, ca_file, Clock(scale), section)
    cluster.pod_log, cluster.pod_exec = handles.kubelets.pod_log, handles.kubelets.pod_exec  # type: ignore[assignment]
    client = KubeClient(url, TOKEN, ca_file)
    try:
        await handles.ready()
        await client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        yield client, handles
    finally:
        await client.close()
        await handles.stop()
        await runner.cleanup()


def _certified(folder: Path) -> tuple[ssl.SSLContext, str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, str(folder / "ca.pem")


async def until(client: KubeClient, path: str, wanted: Callable[[Object], bool], seconds: float = 10.0) -> Object:
    """The object once it is as wanted."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                item = await client.get(path)
                if wanted(item):
                    return item
            except Refused as error:
                if error.code != 404:
                    raise
            await asyncio.sleep(0.01)


async def gone(client: KubeClient, path: str, seconds: float = 10.0) -> None:
    """Returns once there is no such object."""
    async with asyncio.timeout(seconds):
        while await client.find(path) is not None:
            await asyncio.sleep(0.01)


def condition(kind: str, status: str = "True") -> Callable[[Object], bool]:
    """Whether an object has the condition."""
    return lambda item: any(
        row["type"] == kind and row["status"] == status for row in item.get("status", {}).get("conditions") or ()
    )


def phase(*names: str) -> Callable[[Object], bool]:
    """Whether a pod is in one of the phases."""
    return lambda item: item.get("status", {}).get("phase") in names


def pod(name: str, *words: str, image: str = "busybox:1.37", container: Object | None = None, **spec: Any) -> Object:
    """A pod of one container that runs a script, or serves when there is none."""
    command = {"command": ["sh", "-c", *words]} if words else {}
    row = {"name": "c", "image": image if words else "nginx:1.29", **command, **(container or {})}
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [row], **spec}}


async def reasons(client: KubeClient, namespace: str = NAMESPACE) -> dict[str, str]:
    """The reasons of a namespace's events, each with its last message."""
    events = await client.list(f"/api/v1/namespaces/{namespace}/events")
    return {event["reason"]: event["message"] for event in events["items"]}
