"""MachineSets: as many machines as wished, each cloned from its templates, and the right one deleted first."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..client import Cache, Key, Object
from ..reconcile import reconcile
from . import conditions
from .conditions import Conditions
from .machinedeployments import machine_conditions, own_template
from .manager import Manager, at_turns, children
from .objects import (
    CLUSTER_NAME,
    DELETE_MACHINE,
    SET_NAME,
    SKIP_PREFLIGHT,
    ContractUnknown,
    clone,
    cluster_key,
    is_paused,
    matches,
    moment,
    owned,
    owner,
    reference_to,
    rolled,
    suffix,
)

FINALIZER = "cluster.x-k8s.io/machineset"
SOURCE = "machineset-controller"
PREFLIGHT_WAIT = 15.0


async def run(manager: Manager) -> None:
    """Works until cancelled."""
    cache = manager.cache("machinesets")

    def of_cluster(item: Object) -> list[Key]:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        return [at for at, entry in cache.items.items() if cluster_key(entry) == key]

    async def work(key: Key, item: Object | None) -> float | None:
        return await _work(manager, item)

    crowds = [(manager.cache("machines"), children("MachineSet"))]
    also = [(manager.cache("clusters"), at_turns(of_cluster))]
    await reconcile(manager.context, cache, work, also=also, crowds=crowds)


async def _work(manager: Manager, item: Object | None) -> float | None:
    if item is None:
        return None
    cache, machines = manager.cache("machinesets"), manager.cache("machines")
    cluster = manager.cluster_of(item)
    if "deletionTimestamp" in item["metadata"]:
        mine = machines.owned_by(item)
        for machine in mine:
            await manager.delete(machines, machine)
        if not mine and FINALIZER in item["metadata"].get("finalizers", ()):
            finalizers = [name for name in item["metadata"]["finalizers"] if name != FINALIZER]
            await manager.save(cache, item, {**item, "metadata": {**item["metadata"], "finalizers": finalizers}})
        return None
    if cluster is None or is_paused(item, cluster):
        return None
    metadata = {**item["metadata"]}
    metadata["labels"] = {**(metadata.get("labels") or {}), CLUSTER_NAME: cluster["metadata"]["name"]}
    if FINALIZER not in metadata.get("finalizers", ()):
        metadata["finalizers"] = [*metadata.get("finalizers", ()), FINALIZER]
    if not any(entry.get("controller") for entry in metadata.get("ownerReferences") or ()):
        metadata["ownerReferences"] = owned(item, owner(cluster, controller=False))
        for name in ("infrastructureRef", "bootstrap"):
            await own_template(manager, item, cluster, name)
    item = await manager.save(cache, item, {**item, "metadata": metadata})
    await _adopt_orphans(manager, item)
    mine = machines.owned_by(item)
    await _remediate(manager, mine)
    alive = [machine for machine in mine if "deletionTimestamp" not in machine["metadata"]]
    for machine in alive:
        await _sync_in_place(manager, item, machine)
    wanted, trouble, failed = item["spec"].get("replicas", 1), "", False
    if len(alive) < wanted:
        trouble = preflight(item, cluster, await _control_plane(manager, cluster))
        failed = bool(trouble)
        if not trouble:
            trouble = await _grow(manager, item, cluster, alive, wanted)
    elif len(alive) > wanted:
        await _shrink(manager, item, alive, wanted)
    mine = machines.owned_by(item)
    status, judged = judge(item, mine, now=manager.context.stamp(), trouble=trouble, preflight_failed=failed)
    await manager.report(cache, item, status, judged)
    return PREFLIGHT_WAIT if trouble else None


async def _control_plane(manager: Manager, cluster: Object) -> Object | None:
    reference = cluster["spec"].get("controlPlaneRef")
    if not reference:
        return None
    try:
        return (await manager.external(reference, cluster["metadata"]["namespace"]))[0]
    except ContractUnknown:
        return None


def preflight(item: Object, cluster: Object, plane: Object | None) -> str:
    """Why no machine may be made now: the control plane is being upgraded, or is too far from the machines' version."""
    skipped = (item["metadata"].get("annotations") or {}).get(SKIP_PREFLIGHT, "")
    if plane is None or "All" in skipped.split(","):
        return ""
    spec, status = plane.get("spec") or {}, plane.get("status") or {}
    wish, has = spec.get("version", ""), status.get("version", "")
    kind, name = plane["kind"], plane["metadata"]["name"]
    if wish and has and _version(wish) != _version(has) and "ControlPlaneIsStable" not in skipped:
        at = f"{plane['metadata']['namespace']}/{name}"
        return f'{kind} {at} is upgrading ("ControlPlaneIsStable" preflight check failed)'
    own = item["spec"]["template"]["spec"].get("version", "")
    if wish and own and "KubernetesVersionSkew" not in skipped:
        mine, theirs = _version(own), _version(wish)
        both = f"MachineSet version ({own.lstrip('v')}) and ControlPlane version ({wish.lstrip('v')})"
        head = f"{both} do not conform to the "
        if mine[:2] > theirs[:2]:
            return head + (
                "kubernetes version skew policy as MachineSet version is higher than ControlPlane version "
                '("KubernetesVersionSkew" preflight check failed)'
            )
        if theirs[1] - mine[1] > 3:
            return head + (
                "kubernetes version skew policy as MachineSet version is more than 3 minor versions older than the "
                'ControlPlane version ("KubernetesVersionSkew" preflight check failed)'
            )
    return ""


def _version(text: str) -> tuple[int, int, int]:
    found = re.match(r"v?(\d+)\.(\d+)\.?(\d+)?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


async def _adopt_orphans(manager: Manager, item: Object) -> None:
    """Machines that the selector meets and nobody controls become this set's."""
    machines = manager.cache("machines")
    for machine in list(machines.items.values()):
        metadata = machine["metadata"]
        if metadata["namespace"] != item["metadata"]["namespace"] or "deletionTimestamp" in metadata:
            continue
        if any(entry.get("controller") for entry in metadata.get("ownerReferences") or ()):
            continue
        if matches(item["spec"].get("selector") or {}, metadata.get("labels") or {}):
            wish = {**machine, "metadata": {**metadata, "ownerReferences": owned(machine, owner(item))}}
            await manager.save(machines, machine, wish)
            await manager.event(item, "SuccessfulAdopt", f'Adopted Machine "{metadata["name"]}"', source=SOURCE)


async def _remediate(manager: Manager, machines: Sequence[Object]) -> None:
    """Machines that a health check gave to their owner are deleted; others take their place."""
    for machine in machines:
        handed = conditions.old_of(machine).get("OwnerRemediated", {}).get("status") == "False"
        if handed and "deletionTimestamp" not in machine["metadata"]:
            manager.log("machineset_controller", "Deleting unhealthy Machine", Machine=machine["metadata"]["name"])
            judged = conditions.read(machine, manager.context.stamp())
            judged.mark("OwnerRemediated")
            judged.put(
                "OwnerRemediated", False, "RemediationMachineDeleted", "Machine deletionTimestamp set",
            )  # fmt: skip
            cache = manager.cache("machines")
            fresh = await manager.report(cache, machine, dict(machine.get("status") or {}), judged)
            await manager.delete(cache, fresh)


async def _sync_in_place(manager: Manager, item: Object, machine: Object) -> None:
    template, spec = item["spec"]["template"], dict(machine["spec"])
    inner = template.get("metadata") or {}
    metadata = {**machine["metadata"]}
    metadata["labels"] = {**(metadata.get("labels") or {}), **(inner.get("labels") or {}), SET_NAME: _set_name(item)}
    if inner.get("annotations"):
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **inner["annotations"]}
    for name in ("nodeDrainTimeout", "nodeVolumeDetachTimeout", "nodeDeletionTimeout", "deletion", "minReadySeconds"):
        if name in template["spec"]:
            spec[name] = template["spec"][name]
    await manager.save(manager.cache("machines"), machine, {**machine, "metadata": metadata, "spec": spec})


def _set_name(item: Object) -> str:
    return str(item["metadata"]["name"])


async def _grow(manager: Manager, item: Object, cluster: Object, alive: Sequence[Object], wanted: int) -> str:
    """What kept machines from being made; empty when all were."""
    namespace, machines = item["metadata"]["namespace"], manager.cache("machines")
    manager.log("machineset_controller", "MachineSet is scaling up", MachineSet=_set_name(item), replicas=wanted)
    names = {key[1] for key in machines.items if key[0] == namespace}
    made = len(names)
    for _ in range(wanted - len(alive)):
        head = f"{_set_name(item)}-"
        name = head + suffix(manager.context.seed, namespace, head, made, taken=names, head=head)
        while name in names or await manager.context.client.find(manager.path("machines", (namespace, name))):
            made += 1
            name = head + suffix(manager.context.seed, namespace, head, made)
        names.add(name)
        made += 1
        trouble = await _make(manager, item, cluster, name)
        if trouble:
            await manager.event(
                item, "FailedCreate", f'Failed to create Machine "{name}": {trouble}', kind="Warning", source=SOURCE
            )
            return trouble
        await manager.event(item, "SuccessfulCreate", f'Created Machine "{name}"', source=SOURCE)
    return ""


async def _make(manager: Manager, item: Object, cluster: Object, name: str) -> str:
    template, namespace = item["spec"]["template"], item["metadata"]["namespace"]
    inner = template.get("metadata") or {}
    labels = {**(inner.get("labels") or {}), SET_NAME: _set_name(item), CLUSTER_NAME: cluster["metadata"]["name"]}
    spec = {**template["spec"], "bootstrap": dict(template["spec"].get("bootstrap") or {})}
    for place in ("bootstrap", "infrastructure"):
        reference = spec["bootstrap"].get("configRef") if place == "bootstrap" else spec["infrastructureRef"]
        if not reference:
            continue
        try:
            source, target = await manager.external(reference, namespace)
            own = manager.find_target({**reference, "kind": reference["kind"].removesuffix("Template")})
        except ContractUnknown as error:
            return str(error)
        if source is None:
            return f'{target.plural}.{target.api_version.partition("/")[0]} "{reference["name"]}" not found'
        body = clone(source, target, name, namespace, cluster["metadata"]["name"], labels)
        body["apiVersion"] = own.api_version
        body["metadata"]["ownerReferences"] = [owner(item, controller=False)]
        made = await _create(manager, own.path, body)
        await manager.external(reference_to(made, item["apiVersion"]), namespace)
        if place == "bootstrap":
            spec["bootstrap"]["configRef"] = reference_to(made, item["apiVersion"])
        else:
            spec["infrastructureRef"] = reference_to(made, item["apiVersion"])
    body = {
        "apiVersion": item["apiVersion"],
        "kind": "Machine",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            **({"annotations": inner["annotations"]} if inner.get("annotations") else {}),
            "finalizers": ["machine.cluster.x-k8s.io"],
            "ownerReferences": [owner(item)],
        },
        "spec": spec,
    }
    made = await _create(manager, manager.path("machines"), body)
    await manager.cache("machines").caught_up(made)
    return ""


async def _create(manager: Manager, path: str, body: Object) -> Object:
    base, _, plural = path.rpartition("/")
    made = await manager.context.client.create(f"{base}/namespaces/{body['metadata']['namespace']}/{plural}", body)
    if plural != "machines":
        await manager.context.cache(path).caught_up(made)
    return made


def order_of_deletion(item: Object, machines: Sequence[Object]) -> list[Object]:
    """The machines, the one to be deleted first at the front."""
    policy = item["spec"].get("deletePolicy") or (item["spec"].get("deletion") or {}).get("order") or "Random"

    def rank(machine: Object) -> tuple[float, str]:
        metadata, born = machine["metadata"], moment(machine["metadata"].get("creationTimestamp"))
        if "deletionTimestamp" in metadata or DELETE_MACHINE in (metadata.get("annotations") or {}):
            return -3, metadata["name"]
        old, status = conditions.old_of(machine), machine.get("status") or {}
        sick = {old.get(kind, {}).get("status") for kind in ("NodeHealthy", "HealthCheckSucceeded")}
        if not status.get("nodeRef") or "False" in sick or "Unknown" in sick or status.get("failureReason"):
            return -2, metadata["name"]
        return {"Newest": -born, "Oldest": born}.get(policy, 0) / 1e12, metadata["name"]

    return sorted(machines, key=rank)


async def _shrink(manager: Manager, item: Object, alive: Sequence[Object], wanted: int) -> None:
    for machine in order_of_deletion(item, alive)[: len(alive) - wanted]:
        await manager.delete(manager.cache("machines"), machine)
        name = machine["metadata"]["name"]
        await manager.event(item, "SuccessfulDelete", f'Deleted Machine "{name}"', source=SOURCE)
        await _seen_leaving(manager.cache("machines"), (machine["metadata"]["namespace"], name))


async def _seen_leaving(machines: Cache, key: Key) -> None:
    """Returns once the cache knows that the machine goes."""
    await machines.until(
        lambda: "deletionTimestamp" in machines.items.get(key, {"metadata": {"deletionTimestamp": ""}})["metadata"]
    )


def judge(
    item: Object, machines: Sequence[Object], *, now: str, trouble: str = "", preflight_failed: bool = False
) -> tuple[Object, Conditions]:
    """The status of a machine set and its conditions, by its machines."""
    wanted, raised = item["spec"].get("replicas", 1), item["apiVersion"].endswith("/v1beta2")
    ready = [m for m in machines if _is_ready(m)]
    labels = (item["spec"]["selector"].get("matchLabels") or {}).items()
    inner = ((item["spec"]["template"].get("metadata") or {}).get("labels") or {}).items()
    labelled = sum(inner <= (m["metadata"].get("labels") or {}).items() for m in machines)
    status: Object = {
        **(item.get("status") or {}),
        "observedGeneration": item["metadata"].get("generation", 1),
        "selector": ",".join(f"{key}={value}" for key, value in sorted(labels)),
        "replicas": len(machines), "readyReplicas": len(ready), "availableReplicas": len(ready),
    }  # fmt: skip
    fresh = sum(
        rolled({"spec": {**m["spec"]}}).get("version") == item["spec"]["template"]["spec"].get("version")
        for m in machines
    )
    if raised:
        status["upToDateReplicas"] = fresh
        old = {"availableReplicas": len(ready), "readyReplicas": len(ready), "fullyLabeledReplicas": labelled}
        status["deprecated"] = {"v1beta1": {**((status.get("deprecated") or {}).get("v1beta1") or {}), **old}}
    else:
        status["fullyLabeledReplicas"] = labelled
    judged = conditions.read(item, now)
    count = len([m for m in machines if "deletionTimestamp" not in m["metadata"]])
    if trouble:
        reason = "PreflightCheckFailed" if preflight_failed else "BootstrapTemplateCloningFailed"
        judged.mark("MachinesCreated", reason, trouble, severity="Error")
    else:
        judged.mark("MachinesCreated")
    if count < wanted:
        judged.mark(
            "Resized", "ScalingUp", f"Scaling up MachineSet to {wanted} replicas (actual {count})", severity="Warning"
        )
    elif len(machines) > wanted:
        said = f"Scaling down MachineSet to {wanted} replicas (actual {len(machines)})"
        judged.mark("Resized", "ScalingDown", said, severity="Warning")
    elif len(ready) == wanted:
        judged.mark("Resized")
    bad = [m for m in machines if conditions.old_of(m).get("Ready", {}).get("status") != "True"]
    if bad:
        found = conditions.old_of(bad[0]).get("Ready", {})
        reason = f"{found.get('reason', 'NotReady')} @ Machine/{bad[0]['metadata']['name']}"
        judged.mark("MachinesReady", reason, found.get("message", ""), severity=found.get("severity", "Info"))
    else:
        judged.mark("MachinesReady")
    judged.summarize("MachinesCreated", "Resized", "MachinesReady")
    up, down = count < wanted, len(machines) > wanted
    said = f"Scaling up from {count} to {wanted} replicas" + (f" is blocked because:\n* {trouble}" if trouble else "")
    judged.put("ScalingUp", up, "ScalingUp" if up else "NotScalingUp", said if up else "")
    said = f"Scaling down from {len(machines)} to {wanted} replicas"
    judged.put("ScalingDown", down, "ScalingDown" if down else "NotScalingDown", said if down else "")
    judged.put("Remediating", False, "NotRemediating")
    machine_conditions(judged, machines)
    judged.put("Paused", False, "NotPaused")
    judged.put("Deleting", False, "NotDeleting")
    return status, judged


def _is_ready(machine: Object) -> bool:
    healthy = conditions.old_of(machine).get("NodeHealthy", {}).get("status") == "True"
    return (
        healthy
        and bool((machine.get("status") or {}).get("nodeRef"))
        and "deletionTimestamp" not in machine["metadata"]
    )
