"""Cluster API's core manager: clusters, machine deployments, machine sets, machines and their health checks."""

from __future__ import annotations

from .manager import PROGRAMS

__all__ = ["PROGRAMS"]
