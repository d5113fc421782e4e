"""Machines: bootstrap data and infrastructure awaited, the node found by its providerID, drained before the end."""

from __future__ import annotations

from collections.abc import Iterable

from ..client import Key, Object, Refused
from ..reconcile import Mapped, reconcile
from ..remote import Remote
from ..timers import Timers
from . import conditions
from .conditions import Conditions
from .manager import Manager, at_turns, children
from .objects import (
    CLUSTER_NAME,
    CONTROL_PLANE,
    ContractUnknown,
    Target,
    cluster_key,
    data_secret_created,
    is_paused,
    moment,
    owned,
    owner,
    provisioned,
    timeout,
)

FINALIZER = "machine.cluster.x-k8s.io"
SOURCE = "machine-controller"
PRE_DRAIN, PRE_TERMINATE = "pre-drain.delete.hook.machine", "pre-terminate.delete.hook.machine"
MANAGED_DOMAINS = ("node-role.kubernetes.io", "node-restriction.kubernetes.io", "node.cluster.x-k8s.io")
UNINITIALIZED = {"key": "node.cluster.x-k8s.io/uninitialized", "effect": "NoSchedule"}
WAIT, DRAIN_WAIT = 30.0, 20.0
NODE_DELETION = 10.0


async def run(manager: Manager) -> None:
    """Works until cancelled."""
    cache = manager.cache("machines")

    def outside(item: Object) -> list[Key]:
        if item["kind"] == "Remote":
            return of_cluster(item)
        if item["kind"] == "RemoteNode":
            return of_node(item)
        return children("Machine")(item)

    def of_node(item: Object) -> list[Key]:
        node = item["node"]
        identity, name = (node.get("spec") or {}).get("providerID"), node["metadata"]["name"]
        return [
            at
            for at in of_cluster(item)
            if (identity and cache.items[at]["spec"].get("providerID") == identity)
            or ((cache.items[at].get("status") or {}).get("nodeRef") or {}).get("name") == name
        ]

    def of_cluster(item: Object) -> list[Key]:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        return [at for at, machine in cache.items.items() if cluster_key(machine) == key]

    async def work(key: Key, item: Object | None) -> float | None:
        return await _work(manager, item)

    manager.timers = Timers(manager.context)
    also: list[Mapped] = [
        (manager.outside, outside), (manager.cache("clusters"), at_turns(of_cluster)), (manager.timers, Timers.keys),
    ]  # fmt: skip
    await reconcile(manager.context, cache, work, also=also, workers=8)


async def _work(manager: Manager, item: Object | None) -> float | None:
    if item is None:
        return None
    cache, cluster = manager.cache("machines"), manager.cluster_of(item)
    if cluster is None or is_paused(item, cluster):
        return None
    deleting = "deletionTimestamp" in item["metadata"]
    if not deleting:
        item = await manager.save(cache, item, _named(item, cluster))
    namespace, spec = item["metadata"]["namespace"], item["spec"]
    config_reference = (spec.get("bootstrap") or {}).get("configRef")
    try:
        config, config_target = (
            await manager.external(config_reference, namespace) if config_reference else (None, None)
        )
        infra, infra_target = await manager.external(spec["infrastructureRef"], namespace)
    except ContractUnknown as error:
        manager.log("machine_controller", "Reconciler error", Machine=item["metadata"]["name"], err=error)
        return WAIT
    remote = manager.remotes.get(cluster_key(item))
    if deleting:
        return await _delete(manager, item, cluster, config, config_target, infra, infra_target, remote)
    for found, target in ((config, config_target), (infra, infra_target)):
        if found is not None and target is not None:
            await _take(manager, item, found, target)
    wish = _specified(item, config, config_target, infra, infra_target)
    item = await manager.save(cache, item, wish)
    node = await _node(manager, item, remote)
    had = (item.get("status") or {}).get("nodeRef")
    status, judged = judge(
        item, cluster, config, config_target, infra, infra_target, node,
        now=manager.context.stamp(), connected=bool(remote and remote.connected),
    )  # fmt: skip
    item = await manager.report(cache, item, status, judged)
    if not had and node is not None:
        name = node["metadata"]["name"]
        await manager.event(item, "SuccessfulSetNodeRef", name, source=SOURCE)
        said = "Infrastructure provider reporting spec.providerID, matching Kubernetes node is now available"
        manager.log("machine_controller_noderef", said, Machine=item["metadata"]["name"], Node=name)
    return WAIT if infra is None or (config_target and config is None) else None


def _named(item: Object, cluster: Object) -> Object:
    metadata = {**item["metadata"]}
    metadata["labels"] = {**(metadata.get("labels") or {}), CLUSTER_NAME: cluster["metadata"]["name"]}
    if FINALIZER not in metadata.get("finalizers", ()):
        metadata["finalizers"] = [*metadata.get("finalizers", ()), FINALIZER]
    if not any(entry.get("controller") for entry in metadata.get("ownerReferences") or ()):
        metadata["ownerReferences"] = owned(item, owner(cluster, controller=False))
    return {**item, "metadata": metadata}


async def _take(manager: Manager, item: Object, found: Object, target: Target) -> None:
    """The referenced object is the machine's alone: owner and label."""
    if "deletionTimestamp" in found["metadata"]:
        return
    labels = {**(found["metadata"].get("labels") or {}), CLUSTER_NAME: item["spec"]["clusterName"]}
    owners = owned(found, owner(item), without=("MachineSet", "KubeadmControlPlane"))
    wish = {**found, "metadata": {**found["metadata"], "labels": labels, "ownerReferences": owners}}
    await manager.save(manager.context.cache(target.path), found, wish)


def _specified(
    item: Object, config: Object | None, config_target: Target | None, infra: Object | None, infra_target: Target | None
) -> Object:
    """The machine with what its bootstrap config and its infrastructure tell about it."""
    spec = {**item["spec"], "bootstrap": dict(item["spec"].get("bootstrap") or {})}
    if config is not None and config_target is not None and not spec["bootstrap"].get("dataSecretName"):
        name = (config.get("status") or {}).get("dataSecretName")
        if data_secret_created(config, config_target.contract) and name:
            spec["bootstrap"]["dataSecretName"] = name
    if infra is not None and infra_target is not None and provisioned(infra, infra_target.contract):
        identity = (infra.get("spec") or {}).get("providerID")
        if identity:
            spec["providerID"] = identity
        if (infra.get("spec") or {}).get("failureDomain"):
            spec["failureDomain"] = infra["spec"]["failureDomain"]
    return {**item, "spec": spec}


async def _node(manager: Manager, item: Object, remote: Remote | None) -> Object | None:
    """The node with the machine's providerID, with the machine's labels and annotations put on it."""
    identity = item["spec"].get("providerID")
    if remote is None or not remote.connected or not identity:
        return None
    found = next((node for node in remote.nodes.items.values() if node["spec"].get("providerID") == identity), None)
    if found is None:
        return None
    labels, annotations = found["metadata"].get("labels") or {}, found["metadata"].get("annotations") or {}
    metadata, cluster = item["metadata"], cluster_key(item)
    owners = [entry for entry in metadata.get("ownerReferences") or () if entry.get("controller")]
    wish = {
        "cluster.x-k8s.io/cluster-name": cluster[1],
        "cluster.x-k8s.io/cluster-namespace": cluster[0],
        "cluster.x-k8s.io/machine": metadata["name"],
        **{f"cluster.x-k8s.io/owner-{part}": entry[part] for entry in owners for part in ("kind", "name")},
        "cluster.x-k8s.io/labels-from-machine": ",".join(sorted(managed_labels(metadata.get("labels") or {}))),
    }
    patch: Object = {}
    if wish.items() - annotations.items():
        patch["annotations"] = wish
    given = managed_labels(metadata.get("labels") or {})
    before = [name for name in annotations.get("cluster.x-k8s.io/labels-from-machine", "").split(",") if name]
    changed: Object = {name: None for name in before if name not in given and name in labels}
    changed |= {name: value for name, value in given.items() if labels.get(name) != value}
    if changed:
        patch["labels"] = changed
    body: Object = {"metadata": patch} if patch else {}
    taints = found["spec"].get("taints") or []
    if any(taint["key"] == UNINITIALIZED["key"] for taint in taints):
        body["spec"] = {"taints": [taint for taint in taints if taint["key"] != UNINITIALIZED["key"]]}
    if body:
        found = await remote.client.patch(f"/api/v1/nodes/{found['metadata']['name']}", body)
        await remote.nodes.caught_up(found)
    return found


def managed_labels(labels: dict[str, str]) -> dict[str, str]:
    """The labels of a machine that its node gets too."""
    return {
        name: value
        for name, value in labels.items()
        if any(
            name.partition("/")[0] == domain or name.partition("/")[0].endswith(f".{domain}")
            for domain in MANAGED_DOMAINS
        )
    }


def judge(
    item: Object,
    cluster: Object,
    config: Object | None,
    config_target: Target | None,
    infra: Object | None,
    infra_target: Target | None,
    node: Object | None,
    *,
    now: str,
    connected: bool,
) -> tuple[Object, Conditions]:
    """The status of a machine that is not being deleted, and its conditions."""
    raised = item["apiVersion"].endswith("/v1beta2")
    status: Object = dict(item.get("status") or {})
    known = dict(status.get("initialization") or {})
    reference = (item["spec"].get("bootstrap") or {}).get("configRef")
    data_ready = bool((item["spec"].get("bootstrap") or {}).get("dataSecretName"))
    was_there = bool(known.get("infrastructureProvisioned") or status.get("infrastructureReady"))
    says = infra is not None and infra_target is not None and provisioned(infra, infra_target.contract)
    there = was_there or (says and bool(item["spec"].get("providerID")))
    if raised:
        status["initialization"] = (
            known | ({"bootstrapDataSecretCreated": True} if data_ready and reference else {})
            | ({"infrastructureProvisioned": True} if there else {})
        )  # fmt: skip
    else:
        status["bootstrapReady"], status["infrastructureReady"] = data_ready, there
    if infra is not None and (infra.get("status") or {}).get("addresses"):
        status["addresses"] = infra["status"]["addresses"]
    status["observedGeneration"] = item["metadata"].get("generation", 1)
    for found in (config, infra):
        _take_failure(status, found, raised=raised)
    if infra is None and was_there and not raised:
        reference_ = item["spec"]["infrastructureRef"]
        status["failureReason"] = "InvalidConfiguration"
        status["failureMessage"] = (
            f"Machine infrastructure resource {reference_.get('apiVersion')}, Kind={reference_['kind']} with name "
            f'"{reference_["name"]}" has been deleted after being ready'
        )
    if node is not None:
        status["nodeRef"] = _node_reference(node, raised=raised)
        status["nodeInfo"] = node["status"].get("nodeInfo") or {}
    judged = conditions.read(item, now)
    _judge_old(judged, item, status, cluster, config, infra, node, data_ready, says or there)
    _judge_new(judged, item, status, cluster, config, infra, node, data_ready, there, connected)
    failed = status.get("failureReason") or status.get("failureMessage")
    phase = (
        "Failed" if failed
        else "Running" if status.get("nodeRef") and there
        else "Provisioned" if item["spec"].get("providerID") and there
        else "Provisioning" if data_ready
        else "Pending"
    )  # fmt: skip
    if phase != status.get("phase"):
        status["lastUpdated"] = now
    status["phase"] = phase
    return status, judged


def _take_failure(status: Object, found: Object | None, *, raised: bool) -> None:
    said = (found or {}).get("status") or {}
    if raised or not (said.get("failureReason") or said.get("failureMessage")):
        return
    if said.get("failureReason"):
        status["failureReason"] = said["failureReason"]
    if said.get("failureMessage") and found is not None:
        status["failureMessage"] = (
            f"Failure detected from referenced resource {found['apiVersion']}, Kind={found['kind']} with name "
            f'"{found["metadata"]["name"]}": {said["failureMessage"]}'
        )


def _judge_old(
    judged: Conditions, item: Object, status: Object, cluster: Object, config: Object | None, infra: Object | None,
    node: Object | None, data_ready: bool, infra_ready: bool,
) -> None:  # fmt: skip
    if config is not None:
        if data_ready:
            judged.mark("BootstrapReady")
        else:
            judged.mirror("BootstrapReady", config, data_ready, "WaitingForDataSecret")
    if infra is not None:
        judged.mirror("InfrastructureReady", infra, infra_ready, "WaitingForInfrastructure")
    if not item["spec"].get("providerID"):
        if conditions.old_of(cluster).get("InfrastructureReady", {}).get("status") == "True":
            judged.mark("NodeHealthy", "WaitingForNodeRef", severity="Info")
    elif node is None:
        if status.get("nodeRef"):
            name = status["nodeRef"]["name"]
            judged.mark("NodeHealthy", "NodeNotFound", f"Node {name} not found", severity="Error")
        else:
            said = "Waiting for a node with matching ProviderID to exist"
            judged.mark("NodeHealthy", "NodeProvisioning", said, severity="Warning")
    else:
        bad = [f"Node condition {kind} is {state}" for kind, state, _ in _complaints(node)]
        unknown = bool(bad) and all(state == "Unknown" for _, state, _ in _complaints(node))
        if not bad:
            judged.mark("NodeHealthy")
        else:
            reason = "NodeConditionsFailed"
            judged.mark("NodeHealthy", reason, ". ".join(bad), severity="" if unknown else "Warning")
            if unknown:
                judged.old["NodeHealthy"] = {**judged.old["NodeHealthy"], "status": "Unknown"}
    judged.summarize(
        "BootstrapReady", "InfrastructureReady", "HealthCheckSucceeded", "OwnerRemediated",
        steps=0 if _healthy_so_far(judged) else 2,
    )  # fmt: skip


def _healthy_so_far(judged: Conditions) -> bool:
    """Whether what is wrong is not a step of provisioning, so that steps are not counted."""
    return any(
        judged.old.get(kind, {}).get("status") == "False" for kind in ("HealthCheckSucceeded", "OwnerRemediated")
    )


def _complaints(node: Object) -> Iterable[tuple[str, str, str]]:
    rows = {entry["type"]: entry for entry in node["status"].get("conditions") or ()}
    for kind, good in (
        ("Ready", "True"),
        ("MemoryPressure", "False"),
        ("DiskPressure", "False"),
        ("PIDPressure", "False"),
    ):
        entry = rows.get(kind)
        if entry is not None and entry["status"] != good:
            yield kind, entry["status"], entry.get("message") or f"Condition is {entry['status']}"


def _judge_new(
    judged: Conditions, item: Object, status: Object, cluster: Object, config: Object | None, infra: Object | None,
    node: Object | None, data_ready: bool, there: bool, connected: bool,
) -> None:  # fmt: skip
    raised = item["apiVersion"].endswith("/v1beta2")
    reference = (item["spec"].get("bootstrap") or {}).get("configRef")
    if not reference:
        judged.put("BootstrapConfigReady", True, "DataSecretProvided")
    elif config is not None:
        path = "status.initialization.dataSecretCreated" if raised else "status.ready"
        judged.mirror_new("BootstrapConfigReady", config, data_ready, reference["kind"], path)
    else:
        judged.put("BootstrapConfigReady", False, "DoesNotExist", f"{reference['kind']} does not exist")
    kind = item["spec"]["infrastructureRef"]["kind"]
    if infra is not None:
        path = "status.initialization.provisioned" if raised else "status.ready"
        judged.mirror_new("InfrastructureReady", infra, there, kind, path)
    elif there:
        judged.put("InfrastructureReady", False, "Deleted", f"{kind} has been deleted while the Machine still exists")
    else:
        judged.put("InfrastructureReady", False, "DoesNotExist", f"{kind} does not exist")
    _judge_node(judged, item, status, cluster, node, connected)
    if "UpToDate" not in judged.new:
        judged.put("UpToDate", True, "UpToDate")
    judged.put("Paused", False, "NotPaused")
    judged.put("Deleting", False, "NotDeleting")
    judged.summarize_new(
        ("Deleting", "BootstrapConfigReady", "InfrastructureReady", "NodeHealthy", "HealthCheckSucceeded"),
        optional=("HealthCheckSucceeded",),
    )
    ready = judged.of("Ready")["status"] == "True"
    judged.put("Available", ready, "Available" if ready else "NotReady")


def _judge_node(
    judged: Conditions, item: Object, status: Object, cluster: Object, node: Object | None, connected: bool
) -> None:
    def both(state: str, reason: str, message: str) -> None:
        judged.put("NodeHealthy", state, reason, message)
        judged.put("NodeReady", state, reason, message)

    started = cluster.get("status") or {}
    path = (
        "initialization.infrastructureProvisioned"
        if cluster["apiVersion"].endswith("/v1beta2")
        else "infrastructureReady"
    )
    done = started.get("infrastructureReady") or (started.get("initialization") or {}).get("infrastructureProvisioned")
    if not done:
        return both("Unknown", "InspectionFailed", f"Waiting for Cluster status.{path} to be true")
    if conditions.new_of(cluster).get("ControlPlaneInitialized", {}).get("status") != "True":
        return both("Unknown", "InspectionFailed", "Waiting for Cluster control plane to be initialized")
    if not connected:
        if "NodeHealthy" not in judged.new:
            both("Unknown", "ConnectionDown", "")
        return None
    if node is not None:
        entry = next((e for e in node["status"].get("conditions") or () if e["type"] == "Ready"), None)
        state = entry["status"] if entry else "Unknown"
        said = (
            "" if state == "True" else f"* Node.Ready: {(entry or {}).get('message') or 'Condition not yet reported'}"
        )
        word = {"True": "NodeReady", "False": "NodeNotReady"}.get(state, "NodeReadyUnknown")
        judged.put("NodeReady", state, word, said)
        bad = list(_complaints(node))
        worst = "True" if not bad else "Unknown" if all(state == "Unknown" for _, state, _ in bad) else "False"
        word = {"True": "NodeHealthy", "False": "NodeNotHealthy"}.get(worst, "NodeHealthUnknown")
        judged.put("NodeHealthy", worst, word, "\n".join(f"* Node.{kind}: {said}" for kind, _, said in bad))
        return None
    if status.get("nodeRef"):
        name = status["nodeRef"]["name"]
        return both("False", "NodeDeleted", f"Node {name} has been deleted while the Machine still exists")
    identity = item["spec"].get("providerID")
    if identity:
        return both("Unknown", "InspectionFailed", f"Waiting for a Node with spec.providerID {identity} to exist")
    kind = item["spec"]["infrastructureRef"]["kind"]
    return both("Unknown", "InspectionFailed", f"Waiting for {kind} to report spec.providerID")


# --- the end ------------------------------------------------------------------------------------------------------


async def _delete(
    manager: Manager, item: Object, cluster: Object, config: Object | None, config_target: Target | None,
    infra: Object | None, infra_target: Target | None, remote: Remote | None,
) -> float | None:  # fmt: skip
    """Hooks, drain, hooks, infrastructure, bootstrap config, node, and then the machine itself."""
    cache = manager.cache("machines")
    name = item["metadata"]["name"]
    judged = conditions.read(item, manager.context.stamp())
    status: Object = {**(item.get("status") or {}), "phase": "Deleting"}
    deletion = status["deletion"] = dict(status.get("deletion") or {})
    annotations = item["metadata"].get("annotations") or {}
    wait: float | None = None
    if not status.get("nodeRef") and (late := _joined(item, infra, remote)) is not None:
        status["nodeRef"] = _node_reference(late, raised=item["apiVersion"].endswith("/v1beta2"))
    node_name = (status.get("nodeRef") or {}).get("name", "")
    drains = bool(node_name) and "deletionTimestamp" not in cluster["metadata"] and bool(remote)

    def hooks(prefix: str) -> str:
        return ", ".join(sorted(key for key in annotations if key.startswith(prefix)))

    reason, message = "DeletionCompleted", ""
    if said := hooks(f"{PRE_DRAIN}.cluster.x-k8s.io"):
        reason, message = "WaitingForPreDrainHook", f"Waiting for pre-drain hooks to succeed (hooks: {said})"
        judged.mark("PreDrainDeleteHookSucceeded", "WaitingExternalHook", severity="Info")
    elif (
        drains
        and "machine.cluster.x-k8s.io/exclude-node-draining" not in annotations
        and not _drained(judged)
        and (blocked := await _drain(manager, item, remote, node_name, deletion))
    ):
        reason, message, wait = "DrainingNode", blocked, DRAIN_WAIT
        said = f"Draining the node before deletion, {blocked}" if blocked else "Draining the node before deletion"
        judged.mark("DrainingSucceeded", "Draining", said, severity="Info")
    elif said := hooks(f"{PRE_TERMINATE}.cluster.x-k8s.io"):
        reason, message = "WaitingForPreTerminateHook", f"Waiting for pre-terminate hooks to succeed (hooks: {said})"
        judged.mark("PreTerminateDeleteHookSucceeded", "WaitingExternalHook", severity="Info")
    else:
        if drains and not _drained(judged):
            judged.mark("DrainingSucceeded")
            said = f'success draining Machine\'s node "{node_name}"'
            await manager.event(item, "SuccessfulDrainNode", said, source=SOURCE)
        if infra is not None and infra_target is not None:
            await manager.delete(manager.context.cache(infra_target.path), infra)
            reason, message = "WaitingForInfrastructureDeletion", f"Waiting for {infra['kind']} to be deleted"
            judged.mirror("InfrastructureReady", infra, False, "Deleting")
        elif config is not None and config_target is not None:
            await manager.delete(manager.context.cache(config_target.path), config)
            reason, message = "WaitingForBootstrapDeletion", f"Waiting for {config['kind']} to be deleted"
            judged.mark("BootstrapReady", "Deleting", severity="Info")
        else:
            if drains and remote is not None and not await _delete_node(manager, item, remote, node_name):
                reason, message, wait = "DeletingNode", f"Deleting Node {node_name}", 2.0
            elif FINALIZER in item["metadata"].get("finalizers", ()):
                rest = [entry for entry in item["metadata"]["finalizers"] if entry != FINALIZER]
                await manager.save(cache, item, {**item, "metadata": {**item["metadata"], "finalizers": rest}})
                manager.log("machine_controller", "Machine deletion completed", Machine=name)
                return None
    if not deletion:
        status.pop("deletion")
    before = judged.of("Deleting")
    if before.get("status") == "True" and before.get("reason") == reason and not message:
        message = before.get("message", "")
    judged.put("Deleting", True, reason, message)
    judged.summarize("BootstrapReady", "InfrastructureReady", "HealthCheckSucceeded", "OwnerRemediated")
    told = {"Deleting": f"Machine deletion in progress, stage: {reason}"}
    judged.summarize_new(
        ("Deleting", "BootstrapConfigReady", "InfrastructureReady", "NodeHealthy", "HealthCheckSucceeded"),
        optional=("HealthCheckSucceeded",), told=told,
    )  # fmt: skip
    judged.put("Available", False, "NotReady")
    await manager.report(cache, item, status, judged)
    return wait


def _joined(item: Object, infra: Object | None, remote: Remote | None) -> Object | None:
    """The node that joined too late for the machine to name it, found by its providerID (isDeleteNodeAllowed)."""
    identity = item["spec"].get("providerID") or ((infra or {}).get("spec") or {}).get("providerID")
    if remote is None or not remote.connected or not identity:
        return None
    return next((node for node in remote.nodes.items.values() if node["spec"].get("providerID") == identity), None)


def _node_reference(node: Object, *, raised: bool) -> Object:
    """How a machine's status names its node; `raised` tells of contract v1beta2."""
    metadata = node["metadata"]
    if raised:
        return {"name": metadata["name"]}
    return {"apiVersion": "v1", "kind": "Node", "name": metadata["name"], "uid": metadata["uid"]}


def _drained(judged: Conditions) -> bool:
    return judged.old.get("DrainingSucceeded", {}).get("status") == "True"


async def _drain(manager: Manager, item: Object, remote: Remote | None, node: str, deletion: Object) -> str:
    """What still keeps the node from being drained; empty when nothing does or its time is over."""
    limit = timeout(item["spec"], "nodeDrain")
    deletion.setdefault("nodeDrainStartTime", manager.context.stamp())
    at = (item["metadata"]["namespace"], item["metadata"]["name"])
    if limit and manager.timers.passed(at, "drain", moment(deletion["nodeDrainStartTime"]), limit, real=1.0):
        return ""
    if remote is None or not remote.connected:
        return f"Remote connection to {cluster_key(item)[1]} is down"
    found = remote.nodes.get("", node)
    if found is None:
        return ""
    if not found["spec"].get("unschedulable"):
        await remote.client.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
        manager.log("drain", "Cordoning Node", Machine=item["metadata"]["name"], Node=node)
    gone = any(
        entry["type"] == "Ready" and entry["status"] == "Unknown" for entry in found["status"].get("conditions") or ()
    )
    pods = await remote.client.list("/api/v1/pods", fieldSelector=f"spec.nodeName={node}")
    terminating, refused = [], []
    for pod in pods["items"]:
        if not evictable(pod):
            continue
        shown = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        if "deletionTimestamp" in pod["metadata"]:
            if not gone:  # nobody confirms the end of a pod on a node that does not report
                terminating.append(shown)
            continue
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {
            "name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}}  # fmt: skip
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/eviction"
        try:
            await remote.client.create(path, body)
            terminating.append(shown)
        except Refused as error:
            if error.code == 404:
                continue
            refused.append(f"{shown}: {error.message}")
    if not terminating and not refused:
        return ""
    lines = []
    if refused:
        names = ", ".join(entry.partition(":")[0] for entry in refused[:3])
        lines.append(f"* Pod{'s' if len(refused) > 1 else ''} {names}: cannot evict pod as it would violate the pod's "
                     "disruption budget.")  # fmt: skip
    if terminating:
        lines.append(f"* Pod{'s' if len(terminating) > 1 else ''} {', '.join(terminating[:3])}: deletionTimestamp set, "
                     "but still not removed from the Node")  # fmt: skip
    since = deletion["nodeDrainStartTime"]
    return f"Drain not completed yet (started at {since}):\n" + "\n".join(lines)


def evictable(pod: Object) -> bool:
    """Whether a drain takes the pod away: neither a daemon's nor static nor finished."""
    metadata = pod["metadata"]
    if "kubernetes.io/config.mirror" in (metadata.get("annotations") or {}):
        return False
    if any(entry["kind"] == "DaemonSet" and entry.get("controller") for entry in metadata.get("ownerReferences") or ()):
        return False
    return (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}


async def _delete_node(manager: Manager, item: Object, remote: Remote, node: str) -> bool:
    """Whether the node is gone, or was tried for long enough."""
    limit = timeout(item["spec"], "nodeDeletion")
    limit = NODE_DELETION if limit is None else limit
    try:
        await remote.client.delete(f"/api/v1/nodes/{node}")
    except Refused as error:
        if error.code == 404:
            return True
        at = (item["metadata"]["namespace"], item["metadata"]["name"])
        since = moment(item["metadata"]["deletionTimestamp"])
        return bool(limit) and manager.timers.passed(at, "node deletion", since, limit, real=1.0)
    manager.log("machine_controller", "Deleting Node", Machine=item["metadata"]["name"], Node=node)
    return True


__all__ = ["CONTROL_PLANE", "evictable", "judge", "managed_labels", "run"]
