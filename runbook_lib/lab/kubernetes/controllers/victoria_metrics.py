"""The VictoriaMetrics operator: judges its objects, converts Prometheus' own, and has collectors read them again."""

from __future__ import annotations

import asyncio
from typing import Any

from .client import Key, Object, Refused, key_of
from .context import Context
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "operator.victoriametrics.com"
KINDS = {
    "vmrules": ("VMRule", "v1beta1"),
    "vmservicescrapes": ("VMServiceScrape", "v1beta1"),
    "vmpodscrapes": ("VMPodScrape", "v1beta1"),
    "vmnodescrapes": ("VMNodeScrape", "v1beta1"),
    "vmstaticscrapes": ("VMStaticScrape", "v1beta1"),
    "vmclusters": ("VMCluster", "v1beta1"),
    "vmagents": ("VMAgent", "v1beta1"),
    "vmalerts": ("VMAlert", "v1beta1"),
    "vmalertmanagers": ("VMAlertmanager", "v1beta1"),
    "vlclusters": ("VLCluster", "v1"),
}
CONVERTED = {"servicemonitors": "vmservicescrapes", "prometheusrules": "vmrules"}
CHILDREN = {"vmrules": "vmalert", **dict.fromkeys([name for name in KINDS if name.endswith("scrapes")], "vmagent")}
RELOADS = {
    "vmalert": "/api/v1/namespaces/tenant-root/services/vmalert-vmalert-shortterm:8080/proxy/-/reload",
    "vmagent": "/api/v1/namespaces/cozy-monitoring/services/vmagent-vmagent:8429/proxy/-/reload",
}
_RENAMED = {"relabelings": "relabelConfigs", "metricRelabelings": "metricRelabelConfigs"}


def judged(plural: str, item: Object, now: str) -> Object:
    """The status of an object: operational, or failed with the reason."""
    reason = ""
    if plural == "vmrules":
        from ...monitoring.alerting import problem  # imported when the first rule is judged

        reason = problem(item)
    generation = item["metadata"].get("generation", 1)
    state = "failed" if reason else "operational"
    status: Object = {"updateStatus": state, "observedGeneration": generation, "reason": reason or None}
    if plural in CHILDREN:
        row = {
            "type": f"{CHILDREN[plural]}.victoriametrics.com/Applied",
            "status": "False" if reason else "True",
            "reason": "ConfigParsedAndApplied" if not reason else "ConfigParseError",
            "lastTransitionTime": now,
            "lastUpdateTime": now,
            "observedGeneration": generation,
        }
        status["conditions"] = [row | ({"message": reason} if reason else {})]
    if plural == "vmclusters":
        status["clusterStatus"] = "operational"
    return status


def settled(item: Object) -> bool:
    """Whether the status speaks of the object as it is now."""
    status = item.get("status") or {}
    return bool(status.get("updateStatus")) and status.get("observedGeneration") == item["metadata"].get(
        "generation", 1
    )


def converted(plural: str, item: Object) -> Object:
    """The object of VictoriaMetrics that stands for one of Prometheus' operator."""
    kind, version = KINDS[CONVERTED[plural]]
    meta, spec = item["metadata"], dict(item["spec"])
    if plural == "servicemonitors":
        endpoints = spec.get("endpoints") or ()
        spec["endpoints"] = [{_RENAMED.get(key, key): value for key, value in row.items()} for row in endpoints]
    owner = {"apiVersion": item["apiVersion"], "kind": item["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": f"{GROUP}/{version}",
        "kind": kind,
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": meta.get("labels") or {},
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": spec,
    }


def path_of(plural: str, key: Key) -> str:
    """The path of one object of the operator's own."""
    return f"/apis/{GROUP}/{KINDS[plural][1]}/namespaces/{key[0]}/{plural}/{key[1]}"


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    process.write('{"level":"info","logger":"setup","msg":"starting manager"}')
    async with asyncio.TaskGroup() as group:
        for plural in KINDS:
            group.create_task(_serve(context, process, plural))
        for plural in CONVERTED:
            group.create_task(_convert(context, plural))


async def _serve(context: Context, process: Process, plural: str) -> None:
    cache = context.cache(f"/apis/{GROUP}/{KINDS[plural][1]}/{plural}")
    await context.synced(cache)
    known = {key for key, item in cache.items.items() if settled(item)}

    async def work(key: Key, item: Object | None) -> float | None:
        if item is None:
            known.discard(key)
            await _reload(context, plural)
            return None
        if settled(item):
            if key not in known:
                known.add(key)
                await _reload(context, plural)
            return None
        status = judged(plural, item, context.stamp())
        if status["reason"]:
            process.write(f'{{"level":"error","logger":"controller","msg":"{status["reason"]}"}}'.replace("\n", " "))
        answer = await context.client.patch(path_of(plural, key) + "/status", {"status": status})
        known.discard(key)
        await cache.caught_up(answer)
        return None

    await reconcile(context, cache, work, workers=1)


async def _reload(context: Context, plural: str) -> None:
    """Nothing; what reads these objects has been told to read them again. Nobody there is no failure."""
    if plural in CHILDREN:
        try:
            await context.client.request("GET", RELOADS[CHILDREN[plural]])
        except (Refused, OSError):
            return


async def _convert(context: Context, plural: str) -> None:
    cache = context.cache(f"/apis/monitoring.coreos.com/v1/{plural}")
    twins = context.cache(f"/apis/{GROUP}/v1beta1/{CONVERTED[plural]}")
    await context.synced(cache, twins)

    async def work(key: Key, item: Object | None) -> float | None:
        if item is None or "deletionTimestamp" in item["metadata"]:
            return None
        wanted: dict[str, Any] = converted(plural, item)
        twin = twins.items.get(key_of(wanted))
        if twin is None:
            collection = path_of(CONVERTED[plural], key).rpartition("/")[0]
            await twins.caught_up(await context.client.create(collection, wanted))
        elif twin["spec"] != wanted["spec"] and twin["metadata"].get("ownerReferences"):
            changed = {**twin, "spec": wanted["spec"]}
            await twins.caught_up(await context.client.update(path_of(CONVERTED[plural], key), changed))
        return None

    await reconcile(context, cache, work, workers=1)


PROGRAMS = (Program("operator", run),)
