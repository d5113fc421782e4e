"""Cilium's operator, as far as nodes show it: a node whose agent is not ready is tainted until it is."""

from __future__ import annotations

from collections.abc import Iterable

from ..charts.tenant_cluster import definitions
from .client import Key, Object, Refused
from .context import DEFINITIONS, Context
from .processes import Process, Program
from .reconcile import reconcile

TAINT = "node.cilium.io/agent-not-ready"
AGENT = ("k8s-app", "cilium")


def agents_ready(pods: Iterable[Object], node: str) -> bool | None:
    """Whether the node's agent is ready; None where no agent was ever put."""
    mine = [
        pod
        for pod in pods
        if pod["spec"].get("nodeName") == node and (pod["metadata"].get("labels") or {}).get(AGENT[0]) == AGENT[1]
    ]
    if not mine:
        return None
    return any(
        row["type"] == "Ready" and row["status"] == "True"
        for pod in mine
        for row in pod.get("status", {}).get("conditions") or ()
    )


def taints(node: Object, ready: bool | None) -> list[Object]:
    """The node's taints as its agent's state asks for."""
    before = list(node.get("spec", {}).get("taints") or ())
    there = any(taint["key"] == TAINT for taint in before)
    if ready is None or there is not ready:
        return before
    return [taint for taint in before if taint["key"] != TAINT] if ready else [
        *before, {"key": TAINT, "value": "true", "effect": "NoSchedule"}
    ]  # fmt: skip


async def define(context: Context, process: Process) -> None:
    """Returns once Cilium's kinds are defined; those that are there stay as they are."""
    known = context.cache(DEFINITIONS)
    await known.synced.wait()
    for item in definitions():
        name = item["metadata"]["name"]
        if known.get("", name) is not None:
            continue
        process.write(f'level=info msg="Creating CRD (CustomResourceDefinition)..." name={name} subsys=k8s')
        try:
            await context.client.create(DEFINITIONS, item)
        except Refused as error:
            if error.code != 409:
                raise


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    await define(context, process)

    async def work(key: Key, node: Object | None) -> float | None:
        if node is None:
            return None
        wanted = taints(node, agents_ready(context.pods.items.values(), key[1]))
        if wanted != list(node.get("spec", {}).get("taints") or ()):
            body = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": wanted}}
            await context.nodes.caught_up(await context.client.patch(f"/api/v1/nodes/{key[1]}", body))
            verb = "Added" if len(wanted) > len(node.get("spec", {}).get("taints") or ()) else "Removed"
            process.write(
                f'level=info msg="{verb} taint on node" nodeName={key[1]} subsys=cilium-operator taint={TAINT}'
            )
        return None

    def node_of(pod: Object) -> list[Key]:
        labels = pod["metadata"].get("labels") or {}
        mine = labels.get(AGENT[0]) == AGENT[1] and "spec" in pod
        return [("", pod["spec"]["nodeName"])] if mine and pod["spec"].get("nodeName") else []

    await reconcile(context, context.nodes, work, also=[(context.pods, node_of)])


PROGRAMS = (Program("cilium/operator-generic", run),)
