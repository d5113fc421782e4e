"""MachineDeployments: a machine set per template, rolled from the old to the new one as the strategy allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..client import Key, Object
from ..reconcile import reconcile
from . import conditions
from .conditions import Conditions, aggregate
from .manager import Manager, at_turns, children
from .objects import (
    CLUSTER_NAME,
    DEPLOYMENT_NAME,
    DESIRED,
    MAXIMUM,
    REVISION,
    TEMPLATE_HASH,
    ContractUnknown,
    cluster_key,
    is_paused,
    owned,
    owner,
    rolled,
    suffix,
    template_hash,
)

FINALIZER = "cluster.x-k8s.io/machinedeployment"
SOURCE = "machinedeployment-controller"
HISTORY = f"{REVISION}-history"
NO_CREATE = "cluster.x-k8s.io/disable-machine-create"
AUTOSCALER_MIN = "cluster.x-k8s.io/cluster-api-autoscaler-node-group-min-size"
AUTOSCALER_MAX = "cluster.x-k8s.io/cluster-api-autoscaler-node-group-max-size"


async def run(manager: Manager) -> None:
    """Works until cancelled."""
    cache = manager.cache("machinedeployments")

    def of_machine(item: Object) -> list[Key]:
        name = (item["metadata"].get("labels") or {}).get(DEPLOYMENT_NAME)
        return [(item["metadata"]["namespace"], name)] if name else []

    def of_cluster(item: Object) -> list[Key]:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        return [at for at, deployment in cache.items.items() if cluster_key(deployment) == key]

    async def work(key: Key, item: Object | None) -> float | None:
        return await _work(manager, item)

    await reconcile(
        manager.context, cache, work,
        also=[
            (manager.cache("machinesets"), children("MachineDeployment")),
            (manager.cache("clusters"), at_turns(of_cluster)),
        ],
        crowds=[(manager.cache("machines"), of_machine)],
    )  # fmt: skip


async def _work(manager: Manager, item: Object | None) -> float | None:
    if item is None:
        return None
    cache, sets = manager.cache("machinedeployments"), manager.cache("machinesets")
    metadata, cluster = item["metadata"], manager.cluster_of(item)
    if "deletionTimestamp" in metadata:
        await _delete(manager, item)
        return None
    if cluster is None:
        return None
    if is_paused(item, cluster):
        judged = conditions.read(item, manager.context.stamp())
        judged.put("Paused", True, "Paused", "Cluster spec.paused is set to true")
        await manager.report(cache, item, dict(item.get("status") or {}), judged)
        return None
    item = await manager.save(cache, item, defaulted(item, cluster))
    for name in ("infrastructureRef", "bootstrap"):
        await own_template(manager, item, cluster, name)
    mine = sets.owned_by(item)
    current = newest(item, mine)
    if current is None and not item["spec"].get("paused"):
        current = await _new_set(manager, item, mine)
        mine = [*mine, current]
    if current is not None:
        mine = [entry for entry in mine if entry["metadata"]["uid"] != current["metadata"]["uid"]] + [current]
        item = await _mark_revision(manager, item, current)
    wish = replicas(item, current, mine)
    for number, entry in enumerate(mine):
        mine[number] = await _scale(manager, item, entry, wish.get(entry["metadata"]["name"]), entry is current)
    await _forget_history(manager, item, current, mine)
    machines = [m for m in manager.cache("machines").items.values() if _is_of(m, item)]
    status, judged = judge(item, current, mine, machines, now=manager.context.stamp())
    await manager.report(cache, item, status, judged)
    return None


def _is_of(machine: Object, item: Object) -> bool:
    return machine["metadata"]["namespace"] == item["metadata"]["namespace"] and (
        (machine["metadata"].get("labels") or {}).get(DEPLOYMENT_NAME) == item["metadata"]["name"]
    )


def defaulted(item: Object, cluster: Object) -> Object:
    """The deployment with finalizer, owner, labels and what its webhook would have filled in."""
    name, cluster_name = item["metadata"]["name"], cluster["metadata"]["name"]
    spec = dict(item["spec"])
    labels = {CLUSTER_NAME: cluster_name, DEPLOYMENT_NAME: name}
    selector = {**(spec.get("selector") or {})}
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        selector["matchLabels"] = {}
    if "matchLabels" in selector:
        selector["matchLabels"] = {**selector["matchLabels"], **labels}
    spec["selector"] = selector
    template = spec["template"]
    inner = dict(template.get("metadata") or {})
    inner["labels"] = {**(inner.get("labels") or {}), **labels}
    spec["template"] = {**template, "metadata": inner, "spec": dict(template["spec"])}
    version = spec["template"]["spec"].get("version")
    if version and not version.startswith("v"):
        spec["template"]["spec"]["version"] = f"v{version}"
    annotations = item["metadata"].get("annotations") or {}
    if "replicas" not in spec:
        spec["replicas"] = wanted_by_default(item, annotations)
    _default_strategy(spec, raised=item["apiVersion"].endswith("/v1beta2"))
    metadata = {**item["metadata"], "labels": {**(item["metadata"].get("labels") or {}), CLUSTER_NAME: cluster_name}}
    finalizers = metadata.get("finalizers") or []
    metadata["finalizers"] = finalizers if FINALIZER in finalizers else [*finalizers, FINALIZER]
    metadata["ownerReferences"] = owned(item, owner(cluster, controller=False))
    return {**item, "metadata": metadata, "spec": spec}


def wanted_by_default(item: Object, annotations: Mapping[str, str]) -> int:
    """The replicas of a deployment that says none: within the autoscaler's bounds when it has them, else 1."""
    low, high = annotations.get(AUTOSCALER_MIN, ""), annotations.get(AUTOSCALER_MAX, "")
    if not (low.isdigit() and high.isdigit()):
        return 1
    known = (item.get("status") or {}).get("replicas")
    return int(low) if known is None else min(max(int(known), int(low)), int(high))


def _default_strategy(spec: Object, *, raised: bool) -> None:
    bounds = {"maxSurge": 1, "maxUnavailable": 0}
    holder = dict(spec.get("rollout") or {}) if raised else spec
    strategy = {"type": "RollingUpdate", **(holder.get("strategy") or {})}
    if strategy["type"] == "RollingUpdate":
        strategy["rollingUpdate"] = {**bounds, **(strategy.get("rollingUpdate") or {})}
    holder["strategy"] = strategy
    if raised:
        spec["rollout"] = holder
        return
    for name, value in (("minReadySeconds", 0), ("revisionHistoryLimit", 1), ("progressDeadlineSeconds", 600)):
        spec.setdefault(name, value)


def strategy_of(item: Object) -> Object:
    """The rollout strategy, in either version."""
    spec = item["spec"]
    return dict((spec.get("rollout") or spec).get("strategy") or {"type": "RollingUpdate"})


def bounds(item: Object) -> tuple[int, int]:
    """(surge, unavailable): how many machines there may be too many and too few."""
    rolling = strategy_of(item).get("rollingUpdate") or {}
    count = item["spec"].get("replicas", 1)
    surge = _share(rolling.get("maxSurge", 1), count, up=True)
    short = _share(rolling.get("maxUnavailable", 0), count, up=False)
    if strategy_of(item)["type"] != "RollingUpdate":
        return 0, 0
    return surge, 1 if surge == 0 and short == 0 else min(short, count)


def _share(value: Any, count: int, *, up: bool) -> int:
    if isinstance(value, str) and value.endswith("%"):
        part = int(value[:-1]) * count / 100
        return math.ceil(part) if up else math.floor(part)
    return int(value)


def newest(item: Object, sets: Sequence[Object]) -> Object | None:
    """The machine set with the deployment's present template, the oldest if several have it."""
    wish = rolled(item["spec"]["template"])
    same = [entry for entry in sets if rolled(entry["spec"]["template"]) == wish]
    after = (item["spec"].get("rollout") or {}).get("after") or item["spec"].get("rolloutAfter")
    if after:
        same = [entry for entry in same if entry["metadata"]["creationTimestamp"] >= after] or same[:0]
    alive = [entry for entry in same if "deletionTimestamp" not in entry["metadata"]]
    return min(
        alive, key=lambda entry: (entry["metadata"]["creationTimestamp"], entry["metadata"]["name"]), default=None
    )


def replicas(item: Object, current: Object | None, sets: Sequence[Object]) -> dict[str, int]:
    """How many machines each machine set shall have now, by its name."""
    if current is None:
        return {}
    count = item["spec"].get("replicas", 1)
    others = [entry for entry in sets if entry is not current]
    if item["spec"].get("paused"):
        return {current["metadata"]["name"]: count} if not any(_wants(entry) for entry in others) else {}
    kind = strategy_of(item)["type"]
    if kind == "OnDelete":
        return _on_delete(count, current, others)
    return _rolling(item, count, current, others)


def _wants(entry: Object) -> int:
    return int(entry["spec"].get("replicas", 0))


def _has(entry: Object, name: str) -> int:
    return int((entry.get("status") or {}).get(name) or 0)


def _on_delete(count: int, current: Object, others: Sequence[Object]) -> dict[str, int]:
    """Old machines stay until someone deletes them; what they leave free goes to the new set."""
    wish = {entry["metadata"]["name"]: min(_wants(entry), _has(entry, "replicas")) for entry in others}
    spare = sum(wish.values()) - count
    for entry in others:
        cut = min(max(spare, 0), wish[entry["metadata"]["name"]])
        wish[entry["metadata"]["name"]] -= cut
        spare -= cut
    wish[current["metadata"]["name"]] = max(count - sum(wish.values()), 0)
    return wish


def _rolling(item: Object, count: int, current: Object, others: Sequence[Object]) -> dict[str, int]:
    surge, short = bounds(item)
    name = current["metadata"]["name"]
    total = _wants(current) + sum(_wants(entry) for entry in others)
    grown = _wants(current)
    if grown > count or not any(_wants(entry) for entry in others):
        grown = count
    elif grown < count and total < count + surge:
        grown += min(count + surge - total, count - grown)
    wish = {name: grown}
    available = sum(_has(entry, "availableReplicas") for entry in (*others, current))
    room = (
        sum(_wants(entry) for entry in others)
        + grown
        - (count - short)
        - max(grown - _has(current, "availableReplicas"), 0)
    )
    healthy_room = available - (count - short)
    for entry in sorted(others, key=lambda one: one["metadata"]["creationTimestamp"]):
        wanted, there = _wants(entry), _has(entry, "availableReplicas")
        cut = min(max(wanted - there, 0), max(room, 0))  # what is not available is no loss
        more = min(wanted - cut, max(room - cut, 0), max(healthy_room, 0))
        wish[entry["metadata"]["name"]] = wanted - cut - more
        room, healthy_room = room - cut - more, healthy_room - more
    return wish


async def own_template(manager: Manager, item: Object, cluster: Object, name: str) -> None:
    """The template that machines are cloned from belongs to the cluster."""
    spec = item["spec"]["template"]["spec"]
    reference = (
        spec.get("infrastructureRef") if name == "infrastructureRef" else (spec.get("bootstrap") or {}).get("configRef")
    )
    if not reference or not str(reference.get("kind", "")).endswith("Template"):
        return
    try:
        found, target = await manager.external(reference, item["metadata"]["namespace"])
    except ContractUnknown:
        return
    if found is None:
        return
    labels = {**(found["metadata"].get("labels") or {}), CLUSTER_NAME: cluster["metadata"]["name"]}
    metadata = {
        **found["metadata"],
        "ownerReferences": owned(found, owner(cluster, controller=False)),
        "labels": labels,
    }
    if "labels" not in found["metadata"]:
        del metadata["labels"]
    await manager.save(manager.context.cache(target.path), found, {**found, "metadata": metadata})


async def _new_set(manager: Manager, item: Object, known: Sequence[Object]) -> Object:
    name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
    taken = {entry["metadata"]["name"] for entry in known}
    tail = suffix(manager.context.seed, namespace, name, _revision(known) + 1, taken=taken, head=f"{name}-")
    template = item["spec"]["template"]
    label = {TEMPLATE_HASH: f"{template_hash(template)}-{tail}"}
    inner = template.get("metadata") or {}
    labels = {**(inner.get("labels") or {}), **label}
    count = replicas(item, fresh := {"metadata": {"name": f"{name}-{tail}"}, "spec": {"replicas": 0}}, [*known, fresh])
    raised = item["apiVersion"].endswith("/v1beta2")
    deletion: Object = {}
    if raised and (item["spec"].get("deletion") or {}).get("order"):
        deletion = {"deletion": {"order": item["spec"]["deletion"]["order"]}}
    elif not raised:
        policy = (strategy_of(item).get("rollingUpdate") or {}).get("deletePolicy")
        deletion = {"minReadySeconds": item["spec"].get("minReadySeconds", 0)} | (
            {"deletePolicy": policy} if policy else {}
        )
    body = {
        "apiVersion": item["apiVersion"],
        "kind": "MachineSet",
        "metadata": {
            "name": f"{name}-{tail}",
            "namespace": namespace,
            "labels": labels,
            "annotations": {**_carried(item), **_counts(item), REVISION: str(_revision(known) + 1)},
            "finalizers": ["cluster.x-k8s.io/machineset"],
            "ownerReferences": [owner(item)],
        },
        "spec": {
            "clusterName": item["spec"]["clusterName"],
            "replicas": count[f"{name}-{tail}"],
            "selector": {"matchLabels": {**(item["spec"]["selector"].get("matchLabels") or {}), **label}},
            "template": {**template, "metadata": {**inner, "labels": labels}},
            **deletion,
        },
    }
    cache = manager.cache("machinesets")
    made = await manager.context.client.create(
        cache.path.replace("/machinesets", f"/namespaces/{namespace}/machinesets"), body
    )
    await cache.caught_up(made)
    said = f"Created MachineSet {namespace}/{made['metadata']['name']} with {made['spec']['replicas']} replicas"
    if manager.version == "v1beta1":
        said = f'Created MachineSet "{namespace}/{made["metadata"]["name"]}"'
    await manager.event(item, "SuccessfulCreate", said, source=SOURCE)
    manager.log("machinedeployment_sync", said, MachineDeployment=f"{namespace}/{name}")
    return made


def _revision(sets: Sequence[Object]) -> int:
    return max((int((e["metadata"].get("annotations") or {}).get(REVISION, "0") or 0) for e in sets), default=0)


def _carried(item: Object) -> dict[str, str]:
    left_out = {REVISION, HISTORY, DESIRED, MAXIMUM, "kubectl.kubernetes.io/last-applied-configuration"}
    return {key: value for key, value in (item["metadata"].get("annotations") or {}).items() if key not in left_out}


def _counts(item: Object) -> dict[str, str]:
    count = item["spec"].get("replicas", 1)
    return {
        DESIRED: str(count),
        MAXIMUM: str(count + bounds(item)[0]),
        NO_CREATE: "false",
    }


async def _mark_revision(manager: Manager, item: Object, current: Object) -> Object:
    revision = (current["metadata"].get("annotations") or {}).get(REVISION, "1")
    annotations = {**(item["metadata"].get("annotations") or {}), REVISION: revision}
    wish = {**item, "metadata": {**item["metadata"], "annotations": annotations}}
    return await manager.save(manager.cache("machinedeployments"), item, wish)


async def _scale(manager: Manager, item: Object, entry: Object, count: int | None, current: bool) -> Object:
    """The machine set with its number of machines and what of the template is changed in place."""
    wish = {**entry, "metadata": dict(entry["metadata"]), "spec": dict(entry["spec"])}
    annotations = {**(entry["metadata"].get("annotations") or {}), **_counts(item)}
    if not current and strategy_of(item)["type"] == "OnDelete":
        annotations[NO_CREATE] = "true"
    if current:
        annotations |= _carried(item)
        template, mine = item["spec"]["template"], entry["spec"]["template"]
        inner = dict(template.get("metadata") or {})
        label = {TEMPLATE_HASH: (entry["metadata"].get("labels") or {}).get(TEMPLATE_HASH, "")}
        inner["labels"] = {**(inner.get("labels") or {}), **(label if label[TEMPLATE_HASH] else {})}
        wish["spec"]["template"] = {**template, "metadata": inner}
        if template["spec"] != mine["spec"]:
            manager.log("machinedeployment_sync", "Updating MachineSet in place", MachineSet=entry["metadata"]["name"])
    wish["metadata"]["annotations"] = annotations
    before = _wants(entry)
    if count is not None:
        wish["spec"]["replicas"] = count
    fresh = await manager.save(manager.cache("machinesets"), entry, wish)
    if count is not None and count != before:
        way = "up" if count > before else "down"
        namespace, name = entry["metadata"]["namespace"], entry["metadata"]["name"]
        said = f"Scaled {way} MachineSet {namespace}/{name}: {before} -> {count}"
        await manager.event(item, "SuccessfulScale", said, source=SOURCE)
        manager.log("machinedeployment_sync", said, MachineDeployment=item["metadata"]["name"])
    return fresh


async def _forget_history(manager: Manager, item: Object, current: Object | None, sets: Sequence[Object]) -> None:
    """Old machine sets without machines go, all but as many as the history keeps."""
    if current is None:
        return
    keep = item["spec"].get("revisionHistoryLimit", 1) if manager.version == "v1beta1" else 0
    name = current["metadata"]["name"]
    old = [
        e for e in sets
        if e["metadata"]["name"] != name and not _wants(e) and not _has(e, "replicas")
        and (e.get("status") or {}).get("observedGeneration", 0) >= e["metadata"].get("generation", 1)
        and "deletionTimestamp" not in e["metadata"]
    ]  # fmt: skip
    if _wants(current) != item["spec"].get("replicas", 1) or any(
        _wants(e) for e in sets if e["metadata"]["name"] != name
    ):
        return
    old.sort(key=lambda e: _revision([e]))
    for entry in old[: max(len(old) - keep, 0)]:
        await manager.delete(manager.cache("machinesets"), entry)
        said = f'Deleted MachineSet "{entry["metadata"]["name"]}"'
        await manager.event(item, "SuccessfulDelete", said, source=SOURCE)


def judge(
    item: Object, current: Object | None, sets: Sequence[Object], machines: Sequence[Object], *, now: str
) -> tuple[Object, Conditions]:
    """The status of a deployment and its conditions, by its machine sets."""
    count = item["spec"].get("replicas", 1)
    ready, available = sum(_has(e, "readyReplicas") for e in sets), sum(_has(e, "availableReplicas") for e in sets)
    total, updated = sum(_has(e, "replicas") for e in sets), _has(current or {}, "replicas")
    labels = (item["spec"]["selector"].get("matchLabels") or {}).items()
    raised = item["apiVersion"].endswith("/v1beta2")
    status: Object = dict(item.get("status") or {})
    status |= {
        "observedGeneration": item["metadata"].get("generation", 1),
        "selector": ",".join(f"{key}={value}" for key, value in sorted(labels)),
        "replicas": total, "readyReplicas": ready, "availableReplicas": available,
    }  # fmt: skip
    missing = max(count - available, 0)
    if raised:
        status["upToDateReplicas"] = updated
        old = {
            "availableReplicas": available,
            "readyReplicas": ready,
            "unavailableReplicas": missing,
            "updatedReplicas": updated,
        }
        status["deprecated"] = {"v1beta1": {**((status.get("deprecated") or {}).get("v1beta1") or {}), **old}}
    else:
        status |= {"updatedReplicas": updated, "unavailableReplicas": missing}
        status["v1beta2"] = {**(status.get("v1beta2") or {}), "readyReplicas": ready, "availableReplicas": available,
                             "upToDateReplicas": updated}  # fmt: skip
    if "deletionTimestamp" in item["metadata"]:
        phase = "ScalingDown"
    elif total < count or (current is not None and _has(current, "replicas") < _wants(current)):
        phase = "ScalingUp"
    elif total > count:
        phase = "ScalingDown"
    elif missing:
        phase = "Running" if raised else "ScalingUp"
    else:
        phase = "Running"
    status["phase"] = phase
    judged = conditions.read(item, now)
    short = bounds(item)[1]
    minimum = count - short
    if available >= minimum:
        judged.mark("Available")
    else:
        said = f"Minimum availability requires {minimum} replicas, current {available} available"
        judged.mark("Available", "WaitingForAvailableMachines", said, severity="Warning")
    if current is not None:
        judged.mirror("MachineSetReady", _as_source(current), False, "WaitingForMachineSet")
    else:
        judged.mark("MachineSetReady", "WaitingForMachineSet", "MachineSet not found", severity="Info")
    judged.summarize("Available", "MachineSetReady")
    _judge_new(judged, item, sets, machines, count, total, available, short, raised=raised)
    return status, judged


def _as_source(entry: Object) -> Object:
    found = conditions.old_of(entry).get("Ready")
    return {"status": {"conditions": [found] if found else []}}


def _judge_new(
    judged: Conditions, item: Object, sets: Sequence[Object], machines: Sequence[Object], count: int, total: int,
    available: int, short: int, *, raised: bool,
) -> None:  # fmt: skip
    if available >= count - short:
        judged.put("Available", True, "Available")
    else:
        where = "spec.strategy.rollout.maxUnavailable"
        said = f"{available} available replicas, at least {count - short} required"
        judged.put("Available", False, "NotAvailable", f"{said} ({where} is {short}, spec.replicas is {count})")
    stale = [m for m in machines if conditions.new_of(m).get("UpToDate", {}).get("status") == "False"]
    judged.put(
        "RollingOut", bool(stale), "RollingOut" if stale else "NotRollingOut",
        f"Rolling out {len(stale)} not up-to-date replicas" if stale else "",
    )  # fmt: skip
    sick = [m for m in machines if conditions.new_of(m).get("OwnerRemediated", {}).get("status") == "False"]
    judged.put("Remediating", bool(sick), "Remediating" if sick else "NotRemediating")
    deleting = "deletionTimestamp" in item["metadata"]
    wanted = 0 if deleting else count
    up, down = wanted > total, wanted < total
    judged.put(
        "ScalingUp",
        up,
        "ScalingUp" if up else "NotScalingUp",
        f"Scaling up from {total} to {wanted} replicas" if up else "",
    )
    judged.put(
        "ScalingDown", down, "ScalingDown" if down else "NotScalingDown",
        f"Scaling down from {total} to {wanted} replicas" if down else "",
    )  # fmt: skip
    machine_conditions(judged, machines)
    judged.put("Paused", False, "NotPaused")
    judged.put("Deleting", deleting, "Deleting" if deleting else "NotDeleting")


def machine_conditions(judged: Conditions, machines: Sequence[Object]) -> None:
    """Nothing; MachinesReady and MachinesUpToDate are judged by the machines."""
    for kind, target, words in (
        ("Ready", "MachinesReady", ("Ready", "NotReady", "ReadyUnknown")),
        ("UpToDate", "MachinesUpToDate", ("UpToDate", "NotUpToDate", "UpToDateUnknown")),
    ):
        state, said = aggregate(machines, kind)
        reason = words[("True", "False", "Unknown").index(state)] if machines else "NoReplicas"
        judged.put(target, state, reason, said)


async def _delete(manager: Manager, item: Object) -> None:
    sets, cache = manager.cache("machinesets"), manager.cache("machinedeployments")
    mine = sets.owned_by(item)
    for entry in mine:
        await manager.delete(sets, entry)
    if mine:
        judged = conditions.read(item, manager.context.stamp())
        judged.put("Deleting", True, "Deleting", f"Deleting {sum(_has(e, 'replicas') for e in mine)} Machines")
        await manager.report(cache, item, {**(item.get("status") or {}), "phase": "ScalingDown"}, judged)
    elif FINALIZER in item["metadata"].get("finalizers", ()):
        finalizers = [name for name in item["metadata"]["finalizers"] if name != FINALIZER]
        await manager.save(cache, item, {**item, "metadata": {**item["metadata"], "finalizers": finalizers}})


__all__ = ["bounds", "defaulted", "judge", "newest", "replicas", "run"]
