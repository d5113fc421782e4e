"""The seam by which Kamaji's program asks its surroundings to serve a tenant's control plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Endpoint:
    """A control plane that answers: where, its authority with its key, and its administrator's kubeconfig."""

    host: str
    port: int
    ca_pem: str
    ca_key: str
    admin_kubeconfig: str


class ControlPlanes(Protocol):
    """Who can serve control planes; a Context has none where nobody can, as on a real API server."""

    async def start(
        self,
        namespace: str,
        name: str,
        version: str,
        *,
        authority: tuple[str, str] | None = None,
        place: str = "",
        configuration: Mapping[str, Any] | None = None,
    ) -> Endpoint:
        """Where it answers; started if it does not yet, with this authority (certificate, key) or a new one.

        `place` is the "host:port" its clients know, where that is not for whoever serves it to choose.
        """
        ...

    async def stop(self, namespace: str, name: str, *, forget: bool = True) -> None:
        """Nothing answers there any more; what it knew is forgotten unless it is only down."""
        ...
