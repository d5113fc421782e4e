"""What a KubeadmControlPlane says of its machines, and which of them it replaces: pure judgement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .capi import conditions
from .capi.conditions import Conditions, aggregate
from .capi.objects import CLONED_KIND, CLONED_NAME, CLUSTER_NAME, CONTROL_PLANE, DELETE_MACHINE, group_of, is_paused

Object = dict[str, Any]
CONFIGURATION = "controlplane.cluster.x-k8s.io/kubeadm-cluster-configuration"
REMOVED = "etcd.lab.test/member"
"""Put on a member's pod once it was taken out of etcd: stands for MemberRemove, which goes through a port-forward."""
COMPONENTS = {
    "APIServerPodHealthy": "kube-apiserver",
    "ControllerManagerPodHealthy": "kube-controller-manager",
    "SchedulerPodHealthy": "kube-scheduler",
    "EtcdPodHealthy": "etcd",
}
MEMBER = "EtcdMemberHealthy"
HEALTH = (*COMPONENTS, MEMBER)
SPEC = ("files", "users", "preKubeadmCommands", "postKubeadmCommands", "bootCommands", "ntp", "format", "mounts",
        "diskSetup", "ignition", "verbosity")  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What was seen of the cluster that the machines make: its control plane's nodes and their pods."""

    reached: bool = False
    configured: bool = False
    nodes: Mapping[str, Object] = field(default_factory=dict)
    pods: Mapping[str, Object] = field(default_factory=dict)

    def members(self) -> list[str]:
        """The names of etcd's members."""
        return sorted(
            name
            for name in self.nodes
            if (pod := self.pods.get(f"etcd-{name}")) is not None
            and (pod["metadata"].get("annotations") or {}).get(REMOVED) is None
        )


def template_of(item: Mapping[str, Any]) -> Object:
    """The reference to the machines' infrastructure template, wherever the version keeps it."""
    template = item["spec"]["machineTemplate"]
    return dict((template.get("spec") or template).get("infrastructureRef") or {})


def timeouts_of(item: Mapping[str, Any]) -> Object:
    """What of the machines' spec is about their end, in the words of the version."""
    template = item["spec"]["machineTemplate"]
    inner = template.get("spec") or template
    names = ("nodeDrainTimeout", "nodeVolumeDetachTimeout", "nodeDeletionTimeout", "deletion")
    return {name: inner[name] for name in names if name in inner}


def surge_of(item: Mapping[str, Any]) -> int:
    """How many machines more than wished there may be while they are replaced."""
    spec = item["spec"]
    strategy = spec.get("rolloutStrategy") or (spec.get("rollout") or {}).get("strategy") or {}
    return int((strategy.get("rollingUpdate") or {}).get("maxSurge", 1))


def outdated(
    item: Mapping[str, Any], machine: Mapping[str, Any], config: Mapping[str, Any] | None, infra: Object | None
) -> list[str]:
    """Why the machine is not as the control plane wishes, in the words of the condition; empty when it is."""
    found, spec = [], item["spec"]
    has = str(machine["spec"].get("version") or "")
    if has != spec["version"]:
        found.append(f"* Version {has}, {spec['version']} required")
    annotations = machine["metadata"].get("annotations") or {}
    wanted = (spec.get("kubeadmConfigSpec") or {}).get("clusterConfiguration")
    other = CONFIGURATION in annotations and json.loads(annotations[CONFIGURATION]) != wanted
    if config is not None:
        other = other or _own(config["spec"]) != _own(spec.get("kubeadmConfigSpec") or {}, config["spec"])
    if other:
        found.append("* KubeadmConfig is not up-to-date")
    reference = template_of(item)
    if infra is not None:
        cloned = infra["metadata"].get("annotations") or {}
        kind = f"{reference.get('kind')}.{group_of(reference)}"
        if CLONED_NAME in cloned and (cloned[CLONED_NAME], cloned.get(CLONED_KIND)) != (reference.get("name"), kind):
            found.append(f"* {infra['kind']} is not up-to-date")
    return found


def _own(spec: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> Object:
    """What of a config makes new machines: all but what the machines of a control plane do not have in common."""
    found = {name: spec[name] for name in SPEC if spec.get(name)}
    joins = bool((like or spec).get("joinConfiguration"))
    part = spec.get("joinConfiguration" if joins else "initConfiguration") or {}
    return found | {"nodeRegistration": part.get("nodeRegistration") or {}}


def config_spec(item: Mapping[str, Any], *, joins: bool) -> Object:
    """The KubeadmConfig of a new machine: the first one initializes the cluster, the others join it."""
    spec: Object = dict(json.loads(json.dumps(item["spec"].get("kubeadmConfigSpec") or {})))
    if joins:
        spec.pop("initConfiguration", None)
        spec["joinConfiguration"] = {**(spec.get("joinConfiguration") or {}), "controlPlane": {}}
    else:
        spec.pop("joinConfiguration", None)
        spec.setdefault("initConfiguration", {})
    spec.setdefault("clusterConfiguration", {})
    return spec


def choose(machines: Sequence[Object], old: Iterable[Object]) -> Object | None:
    """The machine that goes first: one that was named for it, an outdated one, an ailing one, the oldest."""
    names = {machine["metadata"]["name"] for machine in old}

    def rank(machine: Object) -> tuple[bool, bool, bool, str, str]:
        metadata = machine["metadata"]
        marked = DELETE_MACHINE in (metadata.get("annotations") or {})
        ails = any(conditions.new_of(machine).get(kind, {}).get("status") == "False" for kind in HEALTH)
        outdated_ = metadata["name"] in names
        born = str(metadata.get("creationTimestamp", ""))
        return not (outdated_ and marked), not (outdated_ or marked), not ails, born, metadata["name"]

    return min(machines, key=rank, default=None)


def blockers(machines: Iterable[Object], *, without: str = "") -> list[str]:
    """Why no machine may be made or taken away now, in the words of the event."""
    found = []
    for machine in machines:
        name = machine["metadata"]["name"]
        if name == without:
            continue
        if not (machine.get("status") or {}).get("nodeRef"):
            found.append(f"Machine {name} does not have a corresponding Node yet (Machine.status.nodeRef not set)")
            continue
        rows = conditions.old_of(machine)
        for kind in HEALTH:
            entry = rows.get(kind)
            if entry is None:
                found.append(f"Machine {name} does not have {kind} condition")
            elif entry["status"] == "False":
                said = f"{entry.get('severity', '')}, {entry.get('message', '')}"
                found.append(f"Machine {name} reports {kind} condition is false ({said})")
            elif entry["status"] == "Unknown":
                found.append(f"Machine {name} reports {kind} condition is unknown ({entry.get('message', '')})")
    return found


def deleting(machines: Iterable[Object]) -> list[str]:
    """The names of the machines that are going."""
    return sorted(machine["metadata"]["name"] for machine in machines if "deletionTimestamp" in machine["metadata"])


# --- conditions of a machine ----------------------------------------------------------------------


def judge_machine(judged: Conditions, machine: Mapping[str, Any], workload: Workload, reasons: Sequence[str]) -> None:
    """Nothing; the machine's conditions tell of its control plane pods, its etcd member and whether it is outdated."""
    judged.put("UpToDate", not reasons, "NotUpToDate" if reasons else "UpToDate", "\n".join(reasons))
    node = ((machine.get("status") or {}).get("nodeRef") or {}).get("name", "")
    if "deletionTimestamp" in machine["metadata"]:
        for kind in HEALTH:
            judged.mark(kind, "Deleting", severity="Info")
            judged.put(kind, False, "Deleting", "Machine is deleting")
        return
    if not node:
        identity, kind_ = machine["spec"].get("providerID"), machine["spec"]["infrastructureRef"]["kind"]
        said = (
            f"Waiting for a Node with spec.providerID {identity} to exist"
            if identity
            else f"Waiting for {kind_} to report spec.providerID"
        )
        for kind in HEALTH:
            judged.put(kind, "Unknown", "InspectionFailed", said)
        return
    if not workload.reached:
        for kind in HEALTH:
            _unknown(judged, kind, "Remote connection down")
        return
    silent = node not in workload.nodes or any(
        taint["key"] == "node.kubernetes.io/unreachable" for taint in workload.nodes[node]["spec"].get("taints") or ()
    )
    for kind, component in COMPONENTS.items():
        if silent:
            _unknown(judged, kind, f"Node {node} is unreachable")
        else:
            _judge_pod(judged, kind, f"{component}-{node}", workload.pods.get(f"{component}-{node}"))
    members = workload.members()
    if node in members and judged.of("EtcdPodHealthy").get("status") == "True":
        judged.mark(MEMBER)
        judged.put(MEMBER, True, "Healthy")
    elif node in members:
        _unknown(judged, MEMBER, f"Failed to connect to etcd: etcd-{node} does not answer")
    else:
        head = f"Etcd reports the cluster is composed by {', '.join(members)}"
        said = f"{head}, but the etcd member hosted on this Machine is not included"
        judged.mark(MEMBER, "EtcdMemberUnhealthy", said, severity="Error")
        judged.put(MEMBER, False, "NotHealthy", said)


def _unknown(judged: Conditions, kind: str, said: str) -> None:
    reason = "EtcdMemberInspectionFailed" if kind == MEMBER else "PodInspectionFailed"
    known = judged.old.get(kind, {})
    row = {"type": kind, "status": "Unknown", "reason": reason, "message": said}
    since = known.get("lastTransitionTime") if known.get("status") == "Unknown" else None
    judged.old[kind] = {**row, "lastTransitionTime": since or judged.now}
    judged.put(kind, "Unknown", "InspectionFailed", said)


def _judge_pod(judged: Conditions, kind: str, name: str, pod: Object | None) -> None:
    if pod is None:
        judged.mark(kind, "PodMissing", f"Pod {name} is missing", severity="Error")
        judged.put(kind, False, "DoesNotExist", "Pod does not exist")
        return
    status = pod.get("status") or {}
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in status.get("conditions") or ())
    if status.get("phase") == "Running" and ready:
        judged.mark(kind)
        judged.put(kind, True, "Running")
        return
    for row in status.get("containerStatuses") or ():
        state = row.get("state") or {}
        waits, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if ended or waits.get("reason") in {"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull"}:
            said = waits.get("message") or waits.get("reason") or ended.get("reason") or ended.get("message") or ""
            judged.mark(kind, "PodFailed", said, severity="Error")
            judged.put(kind, False, "Failed", said)
            return
    judged.mark(kind, "PodProvisioning", "Waiting for startup or readiness probes", severity="Info")
    judged.put(kind, False, "Provisioning", "Waiting for startup or readiness probes")


# --- the control plane itself ---------------------------------------------------------------------


def selector_of(cluster: str) -> str:
    """The selector of a cluster's control plane machines as text."""
    return f"{CLUSTER_NAME}={cluster},{CONTROL_PLANE}"


def judge(
    item: Object, cluster: Object, machines: Sequence[Object], workload: Workload, judged: Conditions,
    *, blocked: Sequence[str] = (), template_missing: bool = False,
) -> Object:  # fmt: skip
    """The status of a control plane whose machines are these; `judged` are its conditions, which are brought up."""
    status: Object = dict(item.get("status") or {})
    raised = item["apiVersion"].endswith("/v1beta2")
    wanted = 0 if "deletionTimestamp" in item["metadata"] else item["spec"].get("replicas", 1)
    count = len(machines)
    known = (status.get("initialization") or {}).get("controlPlaneInitialized") or status.get("initialized")
    initialized = bool(known) or (workload.reached and workload.configured)
    alive = [row for row in machines if conditions.new_of(row).get("Ready", {}).get("status") == "True"]
    available = [row for row in machines if conditions.new_of(row).get("Available", {}).get("status") == "True"]
    current = [row for row in machines if conditions.new_of(row).get("UpToDate", {}).get("status") == "True"]
    nodes = [node for node in workload.nodes.values() if _ready(node)]
    versions = sorted({str(row["spec"].get("version")) for row in machines if row["spec"].get("version")}, key=_number)
    older = {
        "readyReplicas": len(nodes), "unavailableReplicas": max(count - len(nodes), 0), "updatedReplicas": len(current),
    }  # fmt: skip
    newer = {"readyReplicas": len(alive), "availableReplicas": len(available), "upToDateReplicas": len(current)}
    status |= {"replicas": count, "selector": selector_of(cluster["metadata"]["name"])}
    if versions:
        status["version"] = versions[0]
    if raised:
        status |= newer
        status["deprecated"] = {"v1beta1": {**((status.get("deprecated") or {}).get("v1beta1") or {}), **older}}
        if initialized:
            status["initialization"] = {"controlPlaneInitialized": True}
    else:
        status |= older | {"initialized": initialized, "ready": bool(status.get("ready")) or bool(nodes)}
        status["v1beta2"] = {**(status.get("v1beta2") or {}), **newer}
    _judge_size(judged, wanted, count, machines, blocked, template_missing, item)
    if initialized and workload.configured:
        judged.mark("Available")
    elif not initialized and not count:
        judged.mark("Available", "WaitingForKubeadmInit", severity="Info")
    judged.put("Initialized", initialized, "Initialized" if initialized else "NotInitialized")
    _judge_health(judged, machines, workload, initialized)
    _judge_available(judged, item, machines, workload, initialized)
    judged.put("Paused", False, "NotPaused")
    if "deletionTimestamp" not in item["metadata"]:
        judged.put("Deleting", False, "NotDeleting")
    judged.summarize(
        "MachinesCreated", "MachinesSpecUpToDate", "Resized", "MachinesReady", "Available", "CertificatesAvailable"
    )
    status["observedGeneration"] = item["metadata"].get("generation", 1)
    return status


def _ready(node: Mapping[str, Any]) -> bool:
    rows = (node.get("status") or {}).get("conditions") or ()
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.lstrip("v").split("+")[0].split("-")[0].split(".") if part.isdigit())


def _judge_size(
    judged: Conditions, wanted: int, count: int, machines: Sequence[Object], blocked: Sequence[str],
    template_missing: bool, item: Mapping[str, Any],
) -> None:  # fmt: skip
    if count < wanted:
        said = f"Scaling up control plane to {wanted} replicas (actual {count})"
        judged.mark("Resized", "ScalingUp", said, severity="Warning")
    elif count > wanted:
        said = f"Scaling down control plane to {wanted} replicas (actual {count})"
        judged.mark("Resized", "ScalingDown", said, severity="Warning")
        judged.mark("MachinesCreated")
    else:
        if all(conditions.old_of(row).get("Ready", {}).get("status") == "True" for row in machines):
            judged.mark("Resized")
        judged.mark("MachinesCreated")
    missing = f"{template_of(item).get('kind')} does not exist" if template_missing else ""
    more = [*blocked, *([f"* {missing}"] if missing else [])]
    tail = " is blocked because:\n" + "\n".join(more) if more else ""
    if count < wanted:
        judged.put("ScalingUp", True, "ScalingUp", f"Scaling up from {count} to {wanted} replicas{tail}")
    else:
        said = f"Scaling up would be blocked because {missing}" if missing else ""
        judged.put("ScalingUp", False, "NotScalingUp", said)
    tail = " is blocked because:\n" + "\n".join(blocked) if blocked else ""
    if count > wanted:
        judged.put("ScalingDown", True, "ScalingDown", f"Scaling down from {count} to {wanted} replicas{tail}")
    else:
        judged.put("ScalingDown", False, "NotScalingDown")
    old = [row for row in machines if conditions.new_of(row).get("UpToDate", {}).get("status") == "False"]
    why = {line for row in old for line in conditions.new_of(row)["UpToDate"].get("message", "").splitlines()}
    lines = sorted(why, key=lambda line: (not line.startswith("* Version"), line))
    said = "\n".join([f"Rolling out {len(old)} not up-to-date replicas", *lines]) if old else ""
    judged.put("RollingOut", bool(old), "RollingOut" if old else "NotRollingOut", said)
    if old:
        said = f"Rolling {len(old)} replicas with outdated spec ({count - len(old)} replicas up to date)"
        judged.mark("MachinesSpecUpToDate", "RollingUpdateInProgress", said, severity="Warning")
    elif "MachinesSpecUpToDate" in judged.old:
        judged.mark("MachinesSpecUpToDate")
    for kind, of, words in (
        ("Ready", "MachinesReady", ("Ready", "NotReady", "ReadyUnknown")),
        ("UpToDate", "MachinesUpToDate", ("UpToDate", "NotUpToDate", "UpToDateUnknown")),
    ):
        state, text = aggregate(machines, kind)
        reason = words[("True", "False", "Unknown").index(state)] if machines else "NoReplicas"
        judged.put(of, state, reason, text)
    waiting = [row for row in machines if conditions.old_of(row).get("Ready", {}).get("status") != "True"]
    if waiting:
        first = conditions.old_of(waiting[0]).get("Ready", {})
        name = waiting[0]["metadata"]["name"]
        reason = f"{first.get('reason', 'NotReady')} @ Machine/{name}"
        judged.mark("MachinesReady", reason, first.get("message", ""), severity=first.get("severity", "Info"))
    elif machines:
        judged.mark("MachinesReady")
    due = [row for row in machines if conditions.old_of(row).get("OwnerRemediated", {}).get("status") == "False"]
    said = "\n".join(
        f"* Machine {row['metadata']['name']}: {conditions.new_of(row).get('OwnerRemediated', {}).get('message', '')}"
        for row in due
    )
    judged.put("Remediating", bool(due), "Remediating" if due else "NotRemediating", said)


def _judge_health(judged: Conditions, machines: Sequence[Object], workload: Workload, initialized: bool) -> None:
    groups = (
        ("EtcdClusterHealthy", (MEMBER,), "EtcdCluster", "etcd member"),
        ("ControlPlaneComponentsHealthy", tuple(COMPONENTS), "ControlPlaneComponents", "control plane"),
    )
    for kind, parts, word, note in groups:
        if not initialized:
            judged.put(kind, "Unknown", "InspectionFailed", "Waiting for remote connection")
            continue
        joined = [row for row in machines if (row.get("status") or {}).get("nodeRef")]
        bad, vague, lines = [], [], []
        for machine in joined:
            rows = conditions.new_of(machine)
            states = {part: rows.get(part, {"status": "Unknown"}) for part in parts}
            name = machine["metadata"]["name"]
            wrong = {part: row for part, row in states.items() if row["status"] != "True"}
            if any(row["status"] == "False" for row in wrong.values()):
                bad.append(name)
            elif wrong:
                vague.append(name)
            if wrong:
                lines.append(f"* Machine {name}:")
                lines += [
                    f"  * {part}: {row.get('message') or 'Condition not yet reported'}" for part, row in wrong.items()
                ]
        said = "\n".join(lines)
        if bad:
            shown = f"Following Machines are reporting {note} errors: {', '.join(sorted(bad))}"
            judged.mark(kind, f"{word}Unhealthy", shown, severity="Error")
            judged.put(kind, False, "NotHealthy", said)
        elif vague or not joined:
            judged.put(kind, "Unknown", "HealthUnknown", said or f"No Machines reporting {note} status")
            shown = f"Following Machines are reporting unknown {note} status: {', '.join(sorted(vague))}"
            since = judged.old.get(kind, {})
            at = since["lastTransitionTime"] if since.get("status") == "Unknown" else judged.now
            judged.old[kind] = {"type": kind, "status": "Unknown", "reason": f"{word}Unknown", "message": shown,
                                "lastTransitionTime": at}  # fmt: skip
        else:
            judged.mark(kind)
            judged.put(kind, True, "Healthy")


def _judge_available(
    judged: Conditions, item: Mapping[str, Any], machines: Sequence[Object], workload: Workload, initialized: bool
) -> None:
    if not initialized:
        judged.put("Available", False, "NotAvailable", "Control plane not yet initialized")
        return
    members = workload.members()
    healthy = [
        row for row in machines if all(conditions.new_of(row).get(kind, {}).get("status") == "True" for kind in HEALTH)
    ]
    good = [row for row in machines if conditions.new_of(row).get(MEMBER, {}).get("status") == "True"]
    quorum = len(members) // 2 + 1
    if not members:
        judged.put("Available", False, "NotAvailable", "Waiting for etcd to report the list of members")
        return
    lines = []
    if "deletionTimestamp" in item["metadata"]:
        lines.append("* Control plane metadata.deletionTimestamp is set")
    if judged.of("CertificatesAvailable").get("status") != "True":
        lines.append("* Control plane certificates are not available")
    if len(good) < quorum:
        has = {0: "There are no healthy etcd member", 1: f"1 of {len(members)} etcd members is healthy"}.get(
            len(good), f"{len(good)} of {len(members)} etcd members are healthy"
        )
        lines.append(f"* {has}, at least {quorum} healthy member required for etcd quorum")
    if not healthy:
        lines.append("* There are no Machines with healthy control plane components, at least 1 required")
    judged.put("Available", not lines, "NotAvailable" if lines else "Available", "\n".join(lines))


def preflight_messages(machines: Sequence[Object], *, without: str = "") -> list[str]:
    """Why scaling waits, in the words of the conditions."""
    if not machines:
        return []
    if deleting(machines):
        return ["* waiting for a control plane Machine to complete deletion"]
    found = []
    rows = blockers(machines, without=without)
    unjoined = any("nodeRef" in row for row in rows)
    if unjoined or any(MEMBER not in row for row in rows):
        found.append("* waiting for control plane components to become healthy")
    if unjoined or any(MEMBER in row for row in rows):
        found.append("* waiting for etcd cluster to become healthy")
    return found


__all__ = ["CONFIGURATION", "HEALTH", "REMOVED", "Workload", "blockers", "choose", "config_spec", "is_paused", "judge",
           "judge_machine", "outdated", "preflight_messages", "surge_of", "template_of", "timeouts_of"]  # fmt: skip
