"""What lies behind the cluster's way out: whether a host of the internet answers, by what the scenario says."""

from __future__ import annotations

from fnmatch import fnmatchcase

from .network import World

KNOWN = frozenset(
    {
        "github.com", "api.github.com", "raw.githubusercontent.com", "proxy.golang.org", "ghcr.io", "docker.io",
        "registry-1.docker.io", "quay.io", "registry.k8s.io", "gcr.io", "sergelogvinov.github.io",
        "kubernetes-sigs.github.io", "charts.christianhuth.de", "charts.jetstack.io", "prometheus-community.github.io",
        "acme-v02.api.letsencrypt.org", "acme-staging-v02.api.letsencrypt.org",
    }
)  # fmt: skip
"""Hosts that answer unless the scenario says otherwise."""


def unreachable(world: World, host: str, port: int = 443) -> str:
    """Why the host does not answer, in the words of Go's dialer; empty when it does."""
    state = world.registries.get(host, "ok" if host in KNOWN or host in world.names else "unknown")
    if state == "unknown":
        return f"dial tcp: lookup {host}: no such host"
    if state == "timeout" or any(fnmatchcase(f"{host}:{port}", pattern) for pattern in world.blocked):
        return f"dial tcp: lookup {host}: i/o timeout"
    return ""
