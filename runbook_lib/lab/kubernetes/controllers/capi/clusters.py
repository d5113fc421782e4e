"""Clusters: their infrastructure and control plane, readiness and phase, and the deletion of all that is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..client import Key, Object
from ..reconcile import reconcile
from . import conditions
from .conditions import Conditions, aggregate
from .manager import Manager, children
from .objects import (
    CLUSTER_NAME,
    CONTROL_PLANE,
    ContractUnknown,
    Target,
    cluster_key,
    control_plane_initialized,
    is_paused,
    owned,
    owner,
    provisioned,
)

FINALIZER = "cluster.cluster.x-k8s.io"
SOURCE = "cluster-controller"
WAIT = 30.0
CHILDREN = ("machinedeployments", "machinesets", "machines")


async def run(manager: Manager) -> None:
    """Works until cancelled."""
    cache = manager.cache("clusters")

    def theirs(item: Object) -> list[Key]:
        return [cluster_key(item)]

    def outside(item: Object) -> list[Key]:
        if item["kind"] == "Remote":
            return [(item["metadata"]["namespace"], item["metadata"]["name"])]
        return children("Cluster")(item) if item["kind"] != "RemoteNode" else []

    crowds = [(manager.cache(plural), theirs) for plural in CHILDREN]

    async def work(key: Key, item: Object | None) -> float | None:
        return await _work(manager, key, item)

    await reconcile(manager.context, cache, work, also=[(manager.outside, outside)], crowds=crowds)


async def _work(manager: Manager, key: Key, item: Object | None) -> float | None:
    if item is None:
        return None
    cache = manager.cache("clusters")
    if is_paused(item, item):
        await _paused(manager, item)
        return None
    metadata = item["metadata"]
    if FINALIZER not in metadata.get("finalizers", ()) and "deletionTimestamp" not in metadata:
        finalizers = [*metadata.get("finalizers", ()), FINALIZER]
        item = await manager.save(cache, item, {**item, "metadata": {**metadata, "finalizers": finalizers}})
    infra, infra_target, trouble = await _referenced(manager, item, "infrastructureRef")
    plane, plane_target, more = await _referenced(manager, item, "controlPlaneRef")
    trouble = trouble or more
    if "deletionTimestamp" in item["metadata"]:
        return await _delete(manager, item, infra, infra_target, plane, plane_target)
    for found, target in ((infra, infra_target), (plane, plane_target)):
        if found is not None and target is not None:
            await _adopt(manager, item, found, target)
    item = await _take_endpoint(manager, item, infra, infra_target, plane)
    before = (item.get("status") or {}).get("phase")
    members = {plural: _members(manager, key, plural) for plural in CHILDREN}
    remote = manager.remotes.get(key) if plane is not None or infra is not None else None
    status, judged = judge(
        item, infra, infra_target, plane, plane_target, members,
        now=manager.context.stamp(), connected=bool(remote and remote.connected),
    )  # fmt: skip
    ready = bool(
        (status.get("initialization") or status).get("infrastructureProvisioned") or status.get("infrastructureReady")
    )
    item = await manager.report(cache, item, status, judged)
    name = key[1]
    if status["phase"] != before:
        await manager.event(item, status["phase"], f"Cluster {name} is {status['phase']}", source=SOURCE)
        if ready and status["phase"] == "Provisioned":
            said = "InfrastructureProvisioned" if manager.version == "v1beta2" else "InfrastructureReady"
            await manager.event(item, "InfrastructureReady", f"Cluster {name} {said} is now True", source=SOURCE)
    if trouble:
        manager.log("cluster_controller", "Reconciler error", Cluster=f"{key[0]}/{name}", err=trouble)
    missing = (infra_target and infra is None) or (plane_target and plane is None)
    return WAIT if missing or trouble else None


async def _paused(manager: Manager, item: Object) -> None:
    judged = conditions.read(item, manager.context.stamp())
    judged.put("Paused", True, "Paused", "Cluster spec.paused is set to true")
    await manager.report(manager.cache("clusters"), item, dict(item.get("status") or {}), judged)


async def _referenced(manager: Manager, item: Object, name: str) -> tuple[Object | None, Target | None, str]:
    reference = item["spec"].get(name)
    if not reference:
        return None, None, ""
    try:
        found, target = await manager.external(reference, item["metadata"]["namespace"])
    except ContractUnknown as error:
        return None, None, str(error)
    return found, target, ""


async def _adopt(manager: Manager, item: Object, found: Object, target: Target) -> None:
    """The referenced object belongs to the cluster: owner and label."""
    name = item["metadata"]["name"]
    labels = {**(found["metadata"].get("labels") or {}), CLUSTER_NAME: name}
    wish = {**found, "metadata": {**found["metadata"], "labels": labels}}
    wish["metadata"]["ownerReferences"] = owned(found, owner(item))
    await manager.save(manager.context.cache(target.path), found, wish)


async def _take_endpoint(
    manager: Manager, item: Object, infra: Object | None, target: Target | None, plane: Object | None
) -> Object:
    """The cluster with the endpoint that its infrastructure, else its control plane, tells."""
    known = item["spec"].get("controlPlaneEndpoint") or {}
    if known.get("host"):
        return item
    ready = infra is not None and target is not None and provisioned(infra, target.contract)
    for found in ((infra if ready else None), plane):
        endpoint = ((found or {}).get("spec") or {}).get("controlPlaneEndpoint") or {}
        if endpoint.get("host") and endpoint.get("port"):
            given = {"host": endpoint["host"], "port": endpoint["port"]}
            wish = {**item, "spec": {**item["spec"], "controlPlaneEndpoint": given}}
            return await manager.save(manager.cache("clusters"), item, wish)
    return item


def _members(manager: Manager, key: Key, plural: str) -> list[Object]:
    return [item for at, item in sorted(manager.cache(plural).items.items()) if cluster_key(item) == key]


def judge(
    item: Object,
    infra: Object | None,
    infra_target: Target | None,
    plane: Object | None,
    plane_target: Target | None,
    members: Mapping[str, Sequence[Object]],
    *,
    now: str,
    connected: bool,
) -> tuple[Object, Conditions]:
    """The status of a cluster and its conditions, by what its references say now."""
    status: Object = dict(item.get("status") or {})
    raised = item["apiVersion"].endswith("/v1beta2")
    known = dict(status.get("initialization") or {})
    was_ready = bool(known.get("infrastructureProvisioned") or status.get("infrastructureReady"))
    was_initialized = bool(known.get("controlPlaneInitialized")) or _true(item, "ControlPlaneInitialized")
    infra_ready = was_ready or (
        provisioned(infra, infra_target.contract)
        if infra is not None and infra_target
        else "infrastructureRef" not in item["spec"]
    )
    initialized = was_initialized or (
        plane is not None and plane_target is not None and control_plane_initialized(plane, plane_target.contract)
    )
    plane_ready = bool(plane and (plane.get("status") or {}).get("ready")) or (raised and initialized)
    judged = conditions.read(item, now)
    _judge_old(judged, item, infra, infra_ready, plane, plane_ready, initialized)
    _judge_new(judged, item, infra, infra_ready, plane, plane_ready, initialized, members, connected)
    endpoint = (item["spec"].get("controlPlaneEndpoint") or {}).get("host")
    if raised:
        status["initialization"] = {"infrastructureProvisioned": infra_ready} | (
            {"controlPlaneInitialized": True} if initialized else {}
        )
        status["controlPlane"] = _replicas_of_plane(plane)
        status["workers"] = _workers(members)
    else:
        status["infrastructureReady"] = bool(infra_ready)
        status["controlPlaneReady"] = plane_ready
    domains = ((infra or {}).get("status") or {}).get("failureDomains")
    if domains:
        status["failureDomains"] = domains
    status["observedGeneration"] = item["metadata"].get("generation", 1)
    failed = status.get("failureReason") or status.get("failureMessage")
    for found in (infra, plane):
        said = (found or {}).get("status") or {}
        if not raised and said.get("failureReason"):
            failed = status["failureReason"] = said["failureReason"]
        if not raised and said.get("failureMessage"):
            kind = f"{(found or {})['apiVersion']}, Kind={(found or {})['kind']}"
            status["failureMessage"] = (
                f'Failure detected from referenced resource {kind} with name "{(found or {})["metadata"]["name"]}": '
                f"{said['failureMessage']}"
            )
    status["phase"] = (
        "Failed" if failed
        else "Provisioned" if infra_ready and endpoint
        else "Provisioning" if infra is not None or infra_target is not None or plane is not None
        else "Pending"
    )  # fmt: skip
    return status, judged


def _true(item: Object, kind: str) -> bool:
    return conditions.old_of(item).get(kind, {}).get("status") == "True"


def _judge_old(
    judged: Conditions, item: Object, infra: Object | None, infra_ready: bool, plane: Object | None,
    plane_ready: bool, initialized: bool,
) -> None:  # fmt: skip
    if infra is not None:
        judged.mirror("InfrastructureReady", infra, infra_ready, "WaitingForInfrastructure")
    if item["spec"].get("controlPlaneRef"):
        if plane is not None:
            judged.mirror("ControlPlaneReady", plane, plane_ready, "WaitingForControlPlane")
        if initialized:
            judged.mark("ControlPlaneInitialized")
        else:
            judged.mark(
                "ControlPlaneInitialized",
                "WaitingForControlPlaneProviderInitialized",
                "Waiting for control plane provider to indicate the control plane has been initialized",
                severity="Info",
            )  # fmt: skip
    elif initialized:
        judged.mark("ControlPlaneInitialized")
    else:
        judged.mark(
            "ControlPlaneInitialized", "MissingNodeRef",
            "Waiting for the first control plane machine to have its status.nodeRef set", severity="Info",
        )  # fmt: skip
    judged.summarize("ControlPlaneReady", "InfrastructureReady")


def _judge_new(
    judged: Conditions, item: Object, infra: Object | None, infra_ready: bool, plane: Object | None,
    plane_ready: bool, initialized: bool, members: Mapping[str, Sequence[Object]], connected: bool,
) -> None:  # fmt: skip
    raised = item["apiVersion"].endswith("/v1beta2")
    path = "status.initialization.provisioned" if raised else "status.ready"
    for kind, found, ready, name in (
        ("InfrastructureReady", infra, infra_ready, "infrastructureRef"),
        ("ControlPlaneAvailable", plane, plane_ready, "controlPlaneRef"),
    ):
        reference = item["spec"].get(name)
        if not reference:
            continue
        if found is not None:
            judged.mirror_new(kind, found, ready, reference["kind"], path)
            if kind == "ControlPlaneAvailable":
                word = {"True": "Available", "False": "NotAvailable"}.get(judged.of(kind)["status"], "AvailableUnknown")
                judged.put(kind, judged.of(kind)["status"], word, judged.of(kind)["message"])
        else:
            judged.put(kind, False, "DoesNotExist", f"{reference['kind']} does not exist")
    if initialized:
        judged.put("ControlPlaneInitialized", True, "Initialized")
    else:
        said = (
            "Control plane not yet initialized"
            if item["spec"].get("controlPlaneRef")
            else ("Waiting for the first control plane machine to have status.nodeRef set")
        )
        judged.put("ControlPlaneInitialized", False, "NotInitialized", said)
    if connected:
        judged.put("RemoteConnectionProbe", True, "ProbeSucceeded")
    else:
        judged.put("RemoteConnectionProbe", False, "ProbeFailed", "Remote connection not established yet")
    deployments = members["machinedeployments"]
    lagging = []
    for deployment in deployments:
        entry = conditions.new_of(deployment).get("Available", {})
        if entry.get("status") != "True":
            said = entry.get("message") or "Condition Available not yet reported"
            lagging.append(f"* MachineDeployment {deployment['metadata']['name']}: {said}")
    if not deployments:
        judged.put("WorkersAvailable", True, "NoWorkers")
    else:
        judged.put("WorkersAvailable", not lagging, "NotAvailable" if lagging else "Available", "\n".join(lagging))
    for kind in ("RollingOut", "Remediating", "ScalingDown", "ScalingUp"):
        active = [d for d in deployments if conditions.new_of(d).get(kind, {}).get("status") == "True"]
        said = "\n".join(
            f"* MachineDeployment {d['metadata']['name']}: {conditions.new_of(d)[kind]['message']}" for d in active
        )
        judged.put(kind, bool(active), kind if active else f"Not{kind}", said)
    workers = [m for m in members["machines"] if CONTROL_PLANE not in (m["metadata"].get("labels") or {})]
    leaders = [m for m in members["machines"] if m not in workers]
    for kind, of, words in (
        ("Ready", "MachinesReady", ("Ready", "NotReady", "ReadyUnknown")),
        ("UpToDate", "MachinesUpToDate", ("UpToDate", "NotUpToDate", "UpToDateUnknown")),
    ):
        for head, group in (("ControlPlane", leaders), ("Worker", workers)):
            state, said = aggregate(group, kind)
            reason = words[("True", "False", "Unknown").index(state)] if group else "NoReplicas"
            judged.put(head + of, state, reason, said)
    judged.put("Paused", False, "NotPaused")
    judged.put("Deleting", False, "NotDeleting")
    judged.summarize_new(
        ("Deleting", "RemoteConnectionProbe", "InfrastructureReady", "ControlPlaneAvailable", "WorkersAvailable"),
        target="Available",
        reasons=("Available", "NotAvailable", "AvailableUnknown"),
        optional=("InfrastructureReady", "ControlPlaneAvailable"),
    )


def _replicas_of_plane(plane: Object | None) -> Object:
    status = (plane or {}).get("status") or {}
    rows = {"replicas": "replicas", "readyReplicas": "readyReplicas", "upToDateReplicas": "updatedReplicas"}
    found = {name: status[given] for name, given in rows.items() if isinstance(status.get(given), int)}
    if "upToDateReplicas" in status:
        found["upToDateReplicas"] = status["upToDateReplicas"]
    if "availableReplicas" in status:
        found["availableReplicas"] = status["availableReplicas"]
    desired = ((plane or {}).get("spec") or {}).get("replicas")
    return found | ({"desiredReplicas": desired} if isinstance(desired, int) else {})


def _workers(members: Mapping[str, Sequence[Object]]) -> Object:
    found = dict.fromkeys(("availableReplicas", "desiredReplicas", "readyReplicas", "replicas", "upToDateReplicas"), 0)
    for deployment in members["machinedeployments"]:
        found["desiredReplicas"] += deployment["spec"].get("replicas", 0)
        for name in ("availableReplicas", "readyReplicas", "replicas", "upToDateReplicas"):
            found[name] += (deployment.get("status") or {}).get(name) or 0
    return found


async def _delete(
    manager: Manager, item: Object, infra: Object | None, infra_target: Target | None, plane: Object | None,
    plane_target: Target | None,
) -> float | None:  # fmt: skip
    """Workers first, then the control plane, then the infrastructure, then the cluster itself."""
    cache = manager.cache("clusters")
    key = (item["metadata"]["namespace"], item["metadata"]["name"])
    left: dict[str, list[str]] = {}
    for plural in CHILDREN:
        for child in _members(manager, key, plural):
            if CONTROL_PLANE in (child["metadata"].get("labels") or {}):
                continue
            left.setdefault(child["kind"] + "s", []).append(child["metadata"]["name"])
            controlled = any(entry.get("controller") for entry in child["metadata"].get("ownerReferences") or ())
            if not controlled:
                await manager.delete(manager.cache(plural), child)
    told = conditions.read(item, manager.context.stamp())
    before: Any = (item.get("status") or {}).get("phase")
    status = {**(item.get("status") or {}), "phase": "Deleting"}
    if left:
        lines = "\n".join(f"* {kind}: {', '.join(names[:3])}" for kind, names in sorted(left.items()))
        told.put("Deleting", True, "WaitingForWorkersDeletion", lines)
    elif plane is not None and plane_target is not None:
        await manager.delete(manager.context.cache(plane_target.path), plane)
        told.put("Deleting", True, "WaitingForControlPlaneDeletion", f"Waiting for {plane['kind']} to be deleted")
        told.mark("ControlPlaneReady", "Deleting", severity="Info")
    elif infra is not None and infra_target is not None:
        await manager.delete(manager.context.cache(infra_target.path), infra)
        told.put("Deleting", True, "WaitingForInfrastructureDeletion", f"Waiting for {infra['kind']} to be deleted")
        told.mark("InfrastructureReady", "Deleting", severity="Info")
    else:
        if FINALIZER in item["metadata"].get("finalizers", ()):
            finalizers = [name for name in item["metadata"]["finalizers"] if name != FINALIZER]
            await manager.save(cache, item, {**item, "metadata": {**item["metadata"], "finalizers": finalizers}})
            manager.remotes.forget(key)
        return None
    await manager.report(cache, item, status, told)
    if before != "Deleting":
        await manager.event(item, "Deleting", f"Cluster {key[1]} is Deleting", source=SOURCE)
    return 5.0


__all__ = ["judge", "run"]
