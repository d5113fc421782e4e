"""MachineHealthChecks: machines whose node is unhealthy for too long are given to their owner, unless too many are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from ..client import Key, Object
from ..reconcile import Mapped, reconcile
from ..timers import Timers
from . import conditions
from .manager import Manager, at_turns
from .objects import CLUSTER_NAME, cluster_key, go_duration, is_paused, matches, moment, owned, owner, seconds

SOURCE = "machinehealthcheck-controller"
REMEDIATE = "cluster.x-k8s.io/remediate-machine"
SKIP = "cluster.x-k8s.io/skip-remediation"
START_TIMEOUT = 600.0
SHORTEST = 5.0  # real seconds: a VM and its requests take real time, however fast the lab's clock runs


async def run(manager: Manager) -> None:
    """Works until cancelled."""
    cache = manager.cache("machinehealthchecks")

    def near(item: Object) -> list[Key]:
        key = (
            (item["metadata"]["namespace"], item["metadata"]["name"])
            if item["kind"] in {"Remote", "RemoteNode", "Cluster"} else cluster_key(item)
        )  # fmt: skip
        return [at for at, check in cache.items.items() if cluster_key(check) == key]

    def outside(item: Object) -> list[Key]:
        return near(item) if item["kind"] in {"Remote", "RemoteNode"} else []

    async def work(key: Key, item: Object | None) -> float | None:
        return await _work(manager, timers, item)

    also: list[Mapped] = [
        (manager.cache("clusters"), at_turns(near)),
    ]
    crowds: list[Mapped] = [(manager.cache("machines"), near), (manager.outside, outside)]
    timers = Timers(manager.context)
    also.append((timers, Timers.keys))
    await reconcile(manager.context, cache, work, also=also, crowds=crowds)


def rules(item: Object) -> list[tuple[str, str, float]]:
    """(type, status, seconds) of the node conditions that are unhealthy, in either version."""
    spec = item["spec"]
    rows = spec.get("unhealthyConditions") or (spec.get("checks") or {}).get("unhealthyNodeConditions") or ()
    return [(row["type"], row["status"], seconds(row.get("timeout", row.get("timeoutSeconds"))) or 0.0) for row in rows]


def start_timeout(item: Object) -> float:
    """Seconds a machine may take until it has a node; 0 for ever."""
    spec = item["spec"]
    found = seconds(spec.get("nodeStartupTimeout", (spec.get("checks") or {}).get("nodeStartupTimeoutSeconds")))
    return START_TIMEOUT if found is None else found


Passed = Callable[[str, float, float], bool]
"""Whether so many seconds have gone since a moment; the first argument names what is waited for."""


def diagnose(item: Object, machine: Object, node: Object | None, cluster: Object, passed: Passed) -> tuple[str, str]:
    """(reason, message) of one machine; no reason when it is healthy."""
    if REMEDIATE in (machine["metadata"].get("annotations") or {}):
        return "HasRemediateMachineAnnotation", "Marked for remediation via remediate-machine annotation"
    status = machine.get("status") or {}
    for name in ("failureReason", "failureMessage"):
        if status.get(name):
            return (
                "MachineHasFailure",
                f"{'FailureReason' if name == 'failureReason' else 'FailureMessage'}: {status[name]}",
            )
    entry = conditions.old_of(cluster)
    for kind in ("ControlPlaneInitialized", "InfrastructureReady"):
        if entry.get(kind, {}).get("status") != "True":
            return "", ""  # a machine's time begins when it can begin
    if node is None:
        if status.get("nodeRef"):
            return "NodeNotFound", "Failed to find the node"
        limit = start_timeout(item)
        if not limit:
            return "", ""
        begun = max(
            moment(entry["ControlPlaneInitialized"]["lastTransitionTime"]),
            moment(entry["InfrastructureReady"]["lastTransitionTime"]),
            moment(machine["metadata"]["creationTimestamp"]),
        )
        if passed("startup", begun, limit):
            return "NodeStartupTimeout", f"Node failed to report startup in {go_duration(limit)}"
        return "", ""
    rows = {row["type"]: row for row in node["status"].get("conditions") or ()}
    for kind, state, limit in rules(item):
        row = rows.get(kind)
        if row is None or row["status"] != state:
            continue
        if passed(f"{kind} {state}", moment(row.get("lastTransitionTime")), limit):
            said = f"Condition {kind} on node is reporting status {state} for more than {go_duration(limit)}"
            return "UnhealthyNode", said
    return "", ""


def allowed(item: Object, expected: int, unhealthy: int) -> tuple[bool, int, str]:
    """(may be remediated, how many still may, why not) by maxUnhealthy or the range."""
    spec = item["spec"]
    trigger = (spec.get("remediation") or {}).get("triggerIf") or {}
    bounds = spec.get("unhealthyRange") or trigger.get("unhealthyInRange")
    if bounds and (found := re.fullmatch(r"\[(\d+)-(\d+)\]", bounds)):
        low, high = int(found[1]), int(found[2])
        said = (
            "Remediation is not allowed, the number of not started or unhealthy machines does not fall within the "
            f"range (total: {expected}, unhealthy: {unhealthy}, unhealthyRange: {bounds})"
        )
        return low <= unhealthy <= high, max(high - unhealthy, 0), said
    most = spec.get("maxUnhealthy", trigger.get("unhealthyLessThanOrEqualTo", "100%"))
    text = str(most)
    limit = math.floor(int(text[:-1]) * expected / 100) if text.endswith("%") else int(text)
    said = (
        "Remediation is not allowed, the number of not started or unhealthy machines exceeds maxUnhealthy "
        f"(total: {expected}, unhealthy: {unhealthy}, maxUnhealthy: {text})"
    )
    return unhealthy <= limit, max(limit - unhealthy, 0), said


async def _work(manager: Manager, timers: Timers, item: Object | None) -> float | None:
    if item is None or "deletionTimestamp" in item["metadata"]:
        return None
    cache, machines, cluster = manager.cache("machinehealthchecks"), manager.cache("machines"), manager.cluster_of(item)
    if cluster is None or is_paused(item, cluster):
        return None
    metadata = {**item["metadata"], "ownerReferences": owned(item, owner(cluster, controller=False))}
    metadata["labels"] = {**(metadata.get("labels") or {}), CLUSTER_NAME: cluster["metadata"]["name"]}
    item = await manager.save(cache, item, {**item, "metadata": metadata})
    remote = manager.remotes.get(cluster_key(item))
    if remote is None or not remote.connected:
        return 5.0
    targets = [
        machine for at, machine in sorted(machines.items.items())
        if cluster_key(machine) == cluster_key(item)
        and matches(item["spec"]["selector"], machine["metadata"].get("labels") or {})
    ]  # fmt: skip
    sick: list[tuple[Object, str, str]] = []
    healthy: list[Object] = []
    for machine in targets:
        name = ((machine.get("status") or {}).get("nodeRef") or {}).get("name")
        node = remote.nodes.get("", name) if name else None
        check = (metadata["namespace"], metadata["name"])
        at = machine["metadata"]["name"]

        def passed(what: str, since: float, limit: float, check: Key = check, at: str = at) -> bool:
            return timers.passed(check, f"{at} {what}", since, limit, real=SHORTEST)

        reason, said = diagnose(item, machine, node, cluster, passed)
        if reason:
            sick.append((machine, reason, said))
        elif node is not None:
            healthy.append(machine)
    expected = len(targets)
    may, left_over, why = allowed(item, expected, len(sick))
    for machine in healthy:
        await _mark_healthy(manager, machine)
    for machine, reason, said in sick:
        await _mark_sick(manager, machine, reason, said, remediate=may)
    judged = conditions.read(item, manager.context.stamp())
    if may:
        judged.mark("RemediationAllowed")
        judged.put("RemediationAllowed", True, "RemediationAllowed")
    else:
        judged.mark("RemediationAllowed", "TooManyUnhealthy", why, severity="Warning")
        judged.put("RemediationAllowed", False, "TooManyUnhealthy", why)
    judged.put("Paused", False, "NotPaused")
    status = {
        **(item.get("status") or {}),
        "expectedMachines": expected, "currentHealthy": len(healthy), "remediationsAllowed": left_over if may else 0,
        "observedGeneration": item["metadata"].get("generation", 1),
        "targets": sorted(machine["metadata"]["name"] for machine in targets),
    }  # fmt: skip
    was = conditions.old_of(item).get("RemediationAllowed", {}).get("status")
    item = await manager.report(cache, item, status, judged)
    if not may and was != "False":
        await manager.event(item, "RemediationRestricted", why, kind="Warning", source=SOURCE)
    return None


async def _mark_healthy(manager: Manager, machine: Object) -> None:
    judged = conditions.read(machine, manager.context.stamp())
    judged.mark("HealthCheckSucceeded")
    judged.put("HealthCheckSucceeded", True, "HealthCheckSucceeded")
    if "deletionTimestamp" not in machine["metadata"]:
        judged.drop("OwnerRemediated")
    await manager.report(manager.cache("machines"), machine, dict(machine.get("status") or {}), judged)


async def _mark_sick(manager: Manager, machine: Object, reason: str, said: str, *, remediate: bool) -> None:
    metadata = machine["metadata"]
    fresh = conditions.old_of(machine).get("HealthCheckSucceeded", {}).get("status") != "False"
    judged = conditions.read(machine, manager.context.stamp())
    judged.mark("HealthCheckSucceeded", reason, said, severity="Warning")
    judged.put("HealthCheckSucceeded", False, reason, f"Health check failed: {said}")
    handed = remediate and SKIP not in (metadata.get("annotations") or {}) and "deletionTimestamp" not in metadata
    new = handed and "OwnerRemediated" not in judged.old
    if new:
        judged.mark("OwnerRemediated", "WaitingForRemediation", severity="Warning")
        judged.put("OwnerRemediated", False, "WaitingForRemediation", "Waiting for remediation")
    machine = await manager.report(manager.cache("machines"), machine, dict(machine.get("status") or {}), judged)
    if fresh:
        name = ((machine.get("status") or {}).get("nodeRef") or {}).get("name", "")
        at = f"{metadata['namespace']}/{metadata['name']}"
        shown = f"Machine has failed health check, marking for remediation: {said}"
        manager.log("machinehealthcheck_controller", shown, Machine=at, reason=reason)
        text = f"Machine {at} has been marked as unhealthy by {at}/{name}"
        await manager.event(machine, "MachineMarkedUnhealthy", text, source=SOURCE)
