"""The Grafana operator: which instance takes a dashboard or a data source, and whether it can be read."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
from datetime import datetime

from .client import Cache, Key, Object
from .context import Context
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "grafana.integreatly.org/v1beta1"
NOUNS = {"grafanadashboards": "Dashboard", "grafanadatasources": "Datasource", "grafanafolders": "Folder"}
OLD_SECONDS = 3600.0


def matches(item: Object, instance: Object) -> bool:
    """Whether the object's selector takes the instance, in its own namespace unless told otherwise."""
    near = item["metadata"]["namespace"] == instance["metadata"]["namespace"]
    wanted = item["spec"].get("instanceSelector") or {}
    labels = instance["metadata"].get("labels") or {}
    fits = all(labels.get(key) == value for key, value in (wanted.get("matchLabels") or {}).items())
    return fits and (near or bool(item["spec"].get("allowCrossNamespaceImport")))


def model(item: Object, config: str = "") -> tuple[str, str]:
    """The dashboard's text and why it cannot be read; a dashboard from elsewhere has neither."""
    spec = item["spec"]
    if spec.get("gzipJson"):
        try:
            text = gzip.decompress(base64.b64decode(spec["gzipJson"])).decode()
        except (ValueError, OSError, EOFError) as error:
            return "", f"gzip: {error}"
    else:
        text = spec.get("json") or config
    if not text:
        return "", "" if spec.get("url") or spec.get("grafanaCom") else "no source"
    try:
        found = json.loads(text)
    except ValueError as error:
        return text, f"invalid dashboard json: {error}"
    return text, "" if isinstance(
        found, dict
    ) else "json: cannot unmarshal into Go value of type map[string]interface {}"


def condition(item: Object, kind: str, status: str, reason: str, message: str, now: str) -> Object:
    """One condition; it keeps the time of its last change."""
    before = next((row for row in (item.get("status") or {}).get("conditions") or () if row["type"] == kind), None)
    since = before["lastTransitionTime"] if before and before["status"] == status else now
    row = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
    return row | {"observedGeneration": item["metadata"].get("generation", 1)}


def judged(plural: str, item: Object, instances: list[Object], now: str, config: str = "") -> Object:
    """The status of an object."""
    noun, spec = NOUNS[plural], item["spec"]
    text, problem = model(item, config) if plural == "grafanadashboards" else (json.dumps(spec, sort_keys=True), "")
    digest = hashlib.sha256((text or json.dumps(spec, sort_keys=True)).encode()).hexdigest()
    if not any(matches(item, instance) for instance in instances):
        words = "None of the available Grafana instances matched the selector, skipping reconciliation"
        row = condition(item, "NoMatchingInstance", "True", "EmptyAPIReply", words, now)
        return {"NoMatchingInstances": True, "conditions": [row]}
    if problem:
        row = condition(item, "InvalidSpec", "True", "InvalidModelResolution", problem, now)
        return {"NoMatchingInstances": None, "conditions": [row], "hash": None}
    count = sum(matches(item, instance) for instance in instances)
    words = f"{noun} was successfully applied to {count} instances"
    uid = spec.get("uid") or item["metadata"].get("uid", "")
    if plural == "grafanadashboards" and text and not spec.get("uid"):
        uid = json.loads(text).get("uid") or uid
    if plural == "grafanadatasources":
        uid = spec.get("uid") or (spec.get("datasource") or {}).get("uid") or uid
    row = condition(item, f"{noun}Synchronized", "True", "ApplySuccessful", words, now)
    return {"NoMatchingInstances": None, "conditions": [row], "hash": digest, "uid": uid}


def same(item: Object, status: Object) -> bool:
    """Whether the object says all this already."""
    held = item.get("status") or {}
    return all(held.get(key) == value for key, value in status.items())


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    process.write('{"level":"info","logger":"setup","msg":"starting manager"}')
    instances = context.cache(f"/apis/{GROUP}/grafanas")
    async with asyncio.TaskGroup() as group:
        for plural in NOUNS:
            group.create_task(_serve(context, process, plural, instances))


async def _serve(context: Context, process: Process, plural: str, instances: Cache) -> None:
    cache = context.cache(f"/apis/{GROUP}/{plural}")

    async def work(key: Key, item: Object | None) -> float | None:
        if item is None:
            return None
        made = datetime.fromisoformat(item["metadata"]["creationTimestamp"]).timestamp()
        if item["metadata"].get("generation", 1) == 1 and context.clock.now() - made > OLD_SECONDS:
            return None  # what was there before the lab began is as its operator left it
        config = ""
        if reference := item["spec"].get("configMapRef"):
            found = await context.client.find(f"/api/v1/namespaces/{key[0]}/configmaps/{reference['name']}")
            config = ((found or {}).get("data") or {}).get(reference["key"], "")
        status = judged(plural, item, list(instances.items.values()), context.stamp(), config)
        if same(item, status):
            return None
        bad = next((row["message"] for row in status["conditions"] if row["type"] == "InvalidSpec"), "")
        if bad:
            process.write(json.dumps({"level": "error", "logger": f"Grafana{NOUNS[plural]}Reconciler", "error": bad}))
        path = f"/apis/{GROUP}/namespaces/{key[0]}/{plural}/{key[1]}/status"
        answer = await context.client.patch(path, {"status": {**status, "lastResync": context.stamp()}})
        await cache.caught_up(answer)
        return None

    await reconcile(context, cache, work, also=[(instances, lambda _: list(cache.items))], workers=1)


PROGRAMS = (Program("grafana-operator", run),)
