"""Which service of the cluster is answered by what; the rest of the package is imported when one is first asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from ..kubernetes.cluster import Cluster
    from .hub import Clock, Hub

_ROOT, _AGENTS = "tenant-root", "cozy-monitoring"
SERVICES = {
    (_ROOT, "vmselect-shortterm", 8481): "metrics_api.select",
    (_ROOT, "vmselect-longterm", 8481): "metrics_api.select",
    (_ROOT, "vminsert-shortterm", 8480): "metrics_api.insert",
    (_ROOT, "vminsert-longterm", 8480): "metrics_api.insert",
    (_AGENTS, "vmagent-vmagent", 8429): "metrics_api.agent",
    (_ROOT, "vmalert-vmalert-shortterm", 8080): "metrics_api.alert",
    (_ROOT, "vmalertmanager-alertmanager", 9093): "metrics_api.manager",
    (_AGENTS, "monitoring-agents-kube-state-metrics", 8080): "metrics_api.exporter",
    (_AGENTS, "monitoring-agents-prometheus-node-exporter", 9100): "metrics_api.exporter",
    (_ROOT, "grafana-service", 3000): "grafana.answer",
    (_ROOT, "vlselect-generic", 9471): "logs_api.select",
    (_ROOT, "vlinsert-generic", 9481): "logs_api.insert",
}
"""(namespace, service, port) → the function that answers."""


class Monitoring:
    """The monitoring of one cluster, not yet begun. `logs` are the containers' logs as the kubelets keep them."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self.cluster, self.clock = cluster, clock
        self.logs: Any = None
        self.world: Any = None
        self._hub: Hub | None = None

    def plug(self) -> None:
        """Nothing; the services answer from now on."""
        for key, name in SERVICES.items():
            self.cluster.backends[key] = self._handler(name)

    def _handler(self, name: str) -> Callable[[web.Request, str], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request, path: str) -> web.StreamResponse:
            module, _, function = name.partition(".")
            work = getattr(import_module(f"{__package__}.{module}"), function)
            found: web.StreamResponse = await work(self.hub(), request, path)
            return found

        return answer

    def hub(self) -> Hub:
        """What holds the data, made when first asked for."""
        if self._hub is None:
            from .hub import Hub

            self._hub = Hub(self.cluster, self.clock)
            self._hub.logs = self.logs
        return self._hub

    async def stop(self) -> None:
        """Ends what goes on."""
        if self._hub is not None:
            await self._hub.stop()
