"""The heartbeats of nodes: leases, and the conditions a kubelet reports of its node."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from . import network_plugins
from .client import MERGE, STRATEGIC, Object, Refused
from .context import Context

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
STATUS_SECONDS = 300.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_CONDITIONS = {
    "MemoryPressure": ("KubeletHasSufficientMemory", "kubelet has sufficient memory available",
                       "KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    "DiskPressure": ("KubeletHasNoDiskPressure", "kubelet has no disk pressure",
                     "KubeletHasDiskPressure", "kubelet has disk pressure"),
    "PIDPressure": ("KubeletHasSufficientPID", "kubelet has sufficient PID available",
                    "KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    "Ready": ("KubeletReady", "kubelet is posting ready status", "KubeletNotReady", "container runtime is down"),
}  # fmt: skip
PRESSURE = {"memory": "MemoryPressure", "disk": "DiskPressure", "pids": "PIDPressure"}


def is_ailing(node: Object) -> bool:
    """Whether a node's own kubelet says that something is wrong with it."""
    rows = node.get("status", {}).get("conditions") or ()
    return any(
        row["status"] == ("False" if row["type"] == "Ready" else "True") for row in rows if row["type"] in _CONDITIONS
    )


def conditions(node: Object, now: str, pressure: str, *, ailing: bool = False, plugged: bool = True) -> list[Object]:
    """What the kubelet of a running machine says of its node; the time of a condition that did not change stays.

    A node that is not `plugged` has no network plugin yet.
    """
    held = {entry["type"]: entry for entry in node.get("status", {}).get("conditions") or ()}
    rows = []
    for kind, (good_reason, good, bad_reason, bad) in _CONDITIONS.items():
        pressed = PRESSURE.get(pressure) == kind
        missing = kind == "Ready" and not plugged
        wanted = str((kind == "Ready") is not pressed and not missing)
        before = held.get(kind, {})
        if before.get("status") == wanted or (before and ailing):
            wanted = before["status"]
            rows.append({"type": kind, "status": wanted, "lastHeartbeatTime": now})
            continue
        reason, words = (bad_reason, bad) if pressed or missing else (good_reason, good)
        words = network_plugins.MESSAGE if missing else words
        row = {"type": kind, "status": wanted, "reason": reason, "message": words}
        rows.append({**row, "lastHeartbeatTime": now, "lastTransitionTime": now})
    return rows


async def renew(context: Context, node: str) -> None:
    """Nothing; the node's lease is renewed, or made where there is none."""
    now = context.stamp(micro=True)
    try:
        await context.client.patch(f"{LEASES}/{node}", {"spec": {"renewTime": now}}, content_type=MERGE)
    except Refused as error:
        if error.code != 404:
            raise
        item = context.nodes.items.get(("", node))
        uid = item["metadata"]["uid"] if item else ""
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
        body: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": node, "namespace": "kube-node-lease", "ownerReferences": [owner] if uid else []},
            "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now},
        }
        await context.client.create(LEASES, body)


async def post_status(context: Context, node: str, *others: Object) -> None:
    """Nothing; the node's conditions are as its kubelet sees them, and `others` with them."""
    item = context.nodes.items.get(("", node))
    if item is None:
        return
    machines = context.machines
    rows = conditions(
        item, context.stamp(), machines.pressure.get(node, ""),
        ailing=node in machines.ailing, plugged=node not in machines.unplugged,
    )  # fmt: skip
    body = {"status": {"conditions": [*rows, *others]}}
    await context.client.patch(f"/api/v1/nodes/{node}/status", body, content_type=STRATEGIC)


async def beat(context: Context, node: str, *, full: bool) -> None:
    """Nothing; the lease is renewed and, if `full`, the status posted. A server that is gone is tried again later."""
    try:
        await renew(context, node)
        if full:
            await post_status(context, node)
    except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
        log.debug("heartbeat of %s: %s", node, error)


async def run(context: Context, serves: Any) -> None:
    """Beats for every node whose kubelet `serves`, until cancelled.

    Every ten real seconds, as a client compares leases with its own clock; sooner when time was moved by hand.
    """
    moved, posted = 0.0, 0.0
    while True:
        now = context.clock.now()
        full = now - posted >= STATUS_SECONDS
        if now - moved >= LEASE_SECONDS:
            moved, posted = now, (now if full else posted)
            for _, node in list(context.nodes.items):
                if serves(node):
                    await beat(context, node, full=full)
        await asyncio.sleep(1.0)
