"""The controllers of a cluster. They speak HTTP to an API server and to nothing else, so any API server will do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from . import (
    autoscaler,
    blackbox,
    bootstrap_tokens,
    capi,
    capi_operator,
    capmox,
    ccm,
    cert_manager,
    cilium_operator,
    cozystack_packages,
    cozystack_workloads,
    cronjobs,
    daemonsets,
    deployments,
    disruption,
    endpoints,
    flux_helm,
    flux_sources,
    grafana,
    ipam,
    jobs,
    kamaji,
    kubeadm_bootstrap,
    kubeadm_control_plane,
    metallb,
    node_lifecycle,
    pve_exporter,
    replicasets,
    scheduler,
    statefulsets,
    storage,
    talos_bootstrap,
    victoria_metrics,
)
from .client import KubeClient
from .context import Clock, Context
from .control_planes import ControlPlanes
from .kubelet import Kubelets
from .network import World, world
from .processes import Processes, Program

__all__ = ["Handles", "World", "start_all", "start_with", "world"]

MANAGERS: tuple[Callable[[Context], Coroutine[Any, Any, None]], ...] = (
    bootstrap_tokens.run,
    deployments.run,
    replicasets.run,
    statefulsets.run,
    daemonsets.run,
    jobs.run,
    cronjobs.run,
    endpoints.run,
    disruption.run,
    node_lifecycle.run,
    *storage.MANAGERS,
)
"""What the controller manager runs on every cluster: functions of a Context."""

PROGRAMS: tuple[Program, ...] = (
    *capi.PROGRAMS,
    *capi_operator.PROGRAMS,
    *cert_manager.PROGRAMS,
    *cilium_operator.PROGRAMS,
    *cozystack_packages.PROGRAMS,
    *cozystack_workloads.PROGRAMS,
    *flux_helm.PROGRAMS,
    *flux_sources.PROGRAMS,
    *capmox.PROGRAMS,
    *ccm.PROGRAMS,
    *ipam.PROGRAMS,
    *autoscaler.PROGRAMS,
    *kamaji.PROGRAMS,
    *kubeadm_bootstrap.PROGRAMS,
    *kubeadm_control_plane.PROGRAMS,
    *metallb.PROGRAMS,
    *storage.PROGRAMS,
    *talos_bootstrap.PROGRAMS,
    *victoria_metrics.PROGRAMS,
    *grafana.PROGRAMS,
    *pve_exporter.PROGRAMS,
    *blackbox.PROGRAMS,
)
"""What runs as containers do, by their image."""


@dataclass
class Handles:
    """Running controllers. `pod_log` and `pod_exec` of `kubelets` answer what an API server asks a node."""

    context: Context
    kubelets: Kubelets

    async def ready(self) -> None:
        """Returns once the caches hold what the server has."""
        await self.context.synced()

    async def stop(self) -> None:
        """Ends every controller and its connections."""
        await self.context.stop()
        await self.context.client.close()


async def start_all(
    base_url: str,
    token: str,
    ca_file: str | None,
    clock: Clock,
    section: Mapping[str, Any] | None = None,
    control_planes: ControlPlanes | None = None,
) -> Handles:
    """Every controller, started against the API server at that address, known by that token.

    `section` is the scenario's `kubernetes:` and tells what lies outside the cluster. `control_planes` can serve
    tenants' control planes.
    """
    return await start_with(
        KubeClient(base_url, token, ca_file, name="lab-controllers"), clock, section, control_planes
    )


async def start_with(
    client: KubeClient,
    clock: Clock,
    section: Mapping[str, Any] | None = None,
    control_planes: ControlPlanes | None = None,
) -> Handles:
    """Every controller, started with that client of an API server; it is closed with them."""
    section = section or {}
    context = Context(client, clock, world(section), seed=int(section.get("seed", 1)), control_planes=control_planes)
    kubelets = Kubelets(context, Processes(context, PROGRAMS))
    context.spawn(scheduler.run(context), name="lab-scheduler")
    context.spawn(kubelets.run(), name="lab-kubelets")
    for manager in MANAGERS:
        context.spawn(manager(context), name=f"lab-{manager.__module__.rpartition('.')[2]}")
    return Handles(context, kubelets)
