"""The Kubernetes half of the lab: a seeded cluster, its API, and the controllers that live in it."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from aiohttp import web

from .apiserver import Reached
from .clock import Clock
from .furnishing import furnish
from .kubernetes import crd, seeds
from .kubernetes.cluster import Cluster, User
from .kubernetes.controllers import Handles, metrics, start_all, start_with
from .kubernetes.server import create_app
from .monitoring.plug import Monitoring
from .tenants import Tenants, first_objects

NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "lab")
"""What the API server's certificate is valid for, beside loopback."""

PUBLIC = "kube-public"
MASTERS = ("system:masters", "system:authenticated")


@dataclass
class Platform:
    """One cluster with its application; `controllers` is None until they were started."""

    cluster: Cluster
    app: web.Application
    section: Mapping[str, Any]
    token: str
    controllers: Handles | None = None
    tenants: Tenants = field(default_factory=lambda: Tenants(Clock()))
    monitoring: Monitoring | None = None
    seeded: list[dict[str, Any]] = field(default_factory=list)

    async def start(self, url: str, ca_file: str, clock: Clock) -> None:
        """Start the controllers against the API, which answers by now. A cluster without nodes has none."""
        if not self.section.get("nodes"):
            return
        self.controllers = await start_all(url, self.token, ca_file, clock, self.section, self.tenants)
        self.cluster.usage = metrics.usage(clock.now)
        self.cluster.pod_log = self.controllers.kubelets.pod_log
        self.controllers.context.listeners = cast(Any, self.cluster.backends)
        self.monitoring = Monitoring(self.cluster, clock)
        self.monitoring.logs = self.controllers.kubelets.logs
        self.monitoring.plug()
        # The server awaits what a hook leaves to await.
        self.cluster.pod_exec = cast(Any, self.controllers.kubelets.pod_exec)

    async def start_on(self, reached: Reached, clock: Clock) -> None:
        """Put the cluster into another API server and start the controllers there.

        What an API server asks of kubelets, logs and exec, is not answered: it would ask at the nodes' addresses.
        """
        await furnish(reached.client, self.seeded)
        self.controllers = await start_with(reached.client, clock, self.section, self.tenants)

    async def stop(self) -> None:
        """End the controllers."""
        if self.monitoring is not None:
            await self.monitoring.stop()
            self.monitoring = None
        if self.controllers is not None:
            await self.controllers.stop()
            self.controllers = None
        await self.tenants.close()


def build(
    section: Mapping[str, Any], *, clock: Clock, admin_token: str, ca_pem: str, elsewhere: bool = False
) -> Platform:
    """The cluster that the `kubernetes:` section of a scenario describes, not yet served.

    Without nodes it is a bare API server: namespaces, RBAC defaults and nothing else. One that is to live `elsewhere`,
    on another API server, is kept as the objects it is made of.
    """
    flavour = str(section.get("flavour", "cozystack-1.6"))
    if flavour not in seeds.FLAVOURS:
        raise ValueError(f"no such Kubernetes flavour: {flavour}; known are {', '.join(seeds.FLAVOURS)}")
    version = seeds.kubernetes_version(section)
    cluster = Cluster(clock, version=version)
    cluster.ca_pem = ca_pem
    seeded: list[dict[str, Any]] = []
    if section.get("nodes"):
        seeded += [*seeds.cozystack(section, now=clock.now()), *_discovery(section, ca_pem, version)]
    if section.get("crds"):
        seeded += crd.read_folder(Path(str(section["crds"])))
    if not elsewhere:
        cluster.load(seeded)
        seeded = []
    inner = secrets.token_urlsafe(24)
    cluster.tokens[admin_token] = User("lab-admin", MASTERS)
    cluster.tokens[inner] = User("system:kube-controller-manager", MASTERS)
    return Platform(cluster, create_app(cluster), section, inner, tenants=Tenants(clock, section), seeded=seeded)


def _discovery(section: Mapping[str, Any], ca_pem: str, version: str) -> list[dict[str, Any]]:
    """What `kubeadm join` reads before it is known: cluster-info with the authority, and who may read it."""
    url = f"https://{section.get('api_vip', '10.0.0.40')}:6443"
    found = [item for item in first_objects("", url, ca_pem, version) if item["metadata"].get("namespace") == PUBLIC]
    for item in found:
        if item["kind"] == "ConfigMap":
            item["data"]["api-server-endpoint"] = url
    return found


def kubeconfig(url: str, ca_pem: str, token: str) -> str:
    """The text of a kubeconfig that holds all it needs."""
    authority = base64.b64encode(ca_pem.encode()).decode()
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": url, "certificate-authority-data": authority}}],
            "users": [{"name": "lab-admin", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab-admin"}}],
        },
        sort_keys=False,
    )
