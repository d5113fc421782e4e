"""Grafana as its operator fills it: health, dashboards by uid, search, data sources, and queries through them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .evaluation import ranged
from .promql import BadQuery, duration, parse
from .targets import selected

if TYPE_CHECKING:
    from .hub import Hub

Object = dict[str, Any]
GROUP = "grafana.integreatly.org"


def matched(hub: Hub, plural: str) -> Iterator[Object]:
    """The objects of one kind that an instance takes."""
    instances = list(hub.cluster.each(f"{GROUP}/grafanas"))
    for item in hub.cluster.each(f"{GROUP}/{plural}"):
        for instance in instances:
            near = item["metadata"]["namespace"] == instance["metadata"]["namespace"]
            if not near and not item["spec"].get("allowCrossNamespaceImport"):
                continue
            if selected(instance["metadata"].get("labels") or {}, item["spec"].get("instanceSelector")):
                yield item
                break


def model_of(hub: Hub, item: Object) -> Object | None:
    """The dashboard's JSON, None where it comes from elsewhere or is none."""
    spec = item["spec"]
    text = spec.get("json") or ""
    try:
        if spec.get("gzipJson"):
            text = gzip.decompress(base64.b64decode(spec["gzipJson"])).decode()
        elif reference := spec.get("configMapRef"):
            found = hub.cluster.find("v1", "ConfigMap", item["metadata"]["namespace"], reference["name"]) or {}
            text = (found.get("data") or {}).get(reference["key"], "")
        model = json.loads(text) if text else None
    except (ValueError, OSError):
        return None
    if isinstance(model, dict):
        for row in spec.get("datasources") or ():
            text = json.dumps(model).replace("${" + row["inputName"] + "}", row["datasourceName"])
            model = json.loads(text)
        return dict(model)
    return None


def dashboards(hub: Hub) -> dict[str, tuple[Object, Object]]:
    """Objects and models by uid."""
    found: dict[str, tuple[Object, Object]] = {}
    for item in matched(hub, "grafanadashboards"):
        model = model_of(hub, item)
        if model is None and item["spec"].get("url"):
            model = {"title": item["metadata"]["name"], "panels": [], "schemaVersion": 39}
        if model is not None:
            uid = str(item["spec"].get("uid") or model.get("uid") or item["metadata"].get("uid", ""))
            found[uid] = (item, model)
    return found


def datasources(hub: Hub) -> list[Object]:
    """The data sources as the API lists them."""
    rows = []
    for number, item in enumerate(matched(hub, "grafanadatasources"), 1):
        given = item["spec"].get("datasource") or {}
        uid = item["spec"].get("uid") or given.get("uid") or item["metadata"].get("uid", "")
        rows.append({"id": number, "orgId": 1, "access": "proxy", "isDefault": False, **given, "uid": uid})
    return rows


async def answer(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """Grafana's HTTP API. Reading needs no password here; the service proxy has asked for a token already."""
    if path == "/api/health":
        return web.json_response({"database": "ok", "version": "11.6.15", "commit": "unknown"})
    if path == "/api/search":
        return web.json_response(_search(hub, request.query.get("query", "").lower()))
    if path.startswith("/api/dashboards/uid/"):
        return _dashboard(hub, path.rpartition("/")[2])
    if path == "/api/datasources":
        return web.json_response(datasources(hub))
    if path.startswith("/api/datasources/uid/"):
        return _datasource(hub, path.removeprefix("/api/datasources/uid/"))
    if path == "/api/folders":
        titles = sorted(
            {item["spec"].get("folder") or item["metadata"]["namespace"] for item, _ in dashboards(hub).values()}
        )
        return web.json_response([{"id": n, "uid": t, "title": t} for n, t in enumerate(titles, 1)])
    if path == "/api/ds/query" and request.method == "POST":
        return _query(hub, await request.json())
    if path in {"/api/org", "/api/org/"}:
        return web.json_response({"id": 1, "name": "Main Org."})
    if path == "/" or path.startswith("/login"):
        return web.Response(text="<!DOCTYPE html><html><title>Grafana</title></html>", content_type="text/html")
    return web.json_response({"message": "Not found", "statusCode": 404}, status=404)


def _search(hub: Hub, wanted: str) -> list[Object]:
    rows = []
    for number, (uid, (item, model)) in enumerate(dashboards(hub).items(), 1):
        title = str(model.get("title", ""))
        if wanted in title.lower():
            folder = item["spec"].get("folder") or item["metadata"]["namespace"]
            slug = re.sub(r"\W+", "-", title.lower()).strip("-")
            rows.append(
                {
                    "id": number, "uid": uid, "title": title, "uri": f"db/{slug}", "url": f"/d/{uid}/{slug}",
                    "type": "dash-db", "tags": model.get("tags") or [], "isStarred": False, "folderTitle": folder,
                    "folderUid": folder,
                }
            )  # fmt: skip
    return rows


def _dashboard(hub: Hub, uid: str) -> web.Response:
    found = dashboards(hub).get(uid)
    if found is None:
        return web.json_response({"message": "Dashboard not found", "status": "not-found"}, status=404)
    item, model = found
    slug = re.sub(r"\W+", "-", str(model.get("title", "")).lower()).strip("-")
    meta = {
        "type": "db", "canSave": True, "canEdit": True, "slug": slug, "url": f"/d/{uid}/{slug}", "version": 1,
        "folderTitle": item["spec"].get("folder") or item["metadata"]["namespace"], "provisioned": False,
        "created": item["metadata"].get("creationTimestamp", ""), "isFolder": False,
    }  # fmt: skip
    return web.json_response({"meta": meta, "dashboard": {"id": 1, "version": 1, **model, "uid": uid}})


def _datasource(hub: Hub, rest: str) -> web.Response:
    uid, _, action = rest.partition("/")
    found = next((row for row in datasources(hub) if row["uid"] == uid), None)
    if found is None:
        return web.json_response({"message": "Data source not found"}, status=404)
    if action == "health":
        return web.json_response({"message": "Successfully queried the Prometheus API.", "status": "OK"})
    return web.json_response(found)


def _query(hub: Hub, body: Object) -> web.Response:
    hub.wake()
    now = hub.clock.now()
    known = {row["uid"] for row in datasources(hub)} | {row.get("name", "") for row in datasources(hub)}
    results: dict[str, Object] = {}
    status = 200
    for query in body.get("queries") or ():
        name = query.get("refId", "A")
        uid = (query.get("datasource") or {}).get("uid", "")
        if uid not in known:
            return web.json_response(
                {"message": "Data source not found", "messageId": "datasource.notFound"}, status=404
            )
        start, end = _moment(body.get("from", "now-1h"), now), _moment(body.get("to", "now"), now)
        step = float(query.get("intervalMs") or 15_000) / 1000
        step = max(step, (end - start) / 1000)
        text = _filled(str(query.get("expr", "")), step, end - start)
        try:
            if query.get("instant"):
                start, step = end, 300.0
            found = ranged(parse(text), hub, start, end, step)
        except BadQuery as error:
            status = 400
            results[name] = {"error": f"bad_data: {error}", "status": 400, "frames": []}
            continue
        results[name] = {"status": 200, "frames": [_frame(name, labels, points) for labels, points in found]}
    return web.json_response({"results": results}, status=status)


def _filled(text: str, step: float, span: float) -> str:
    """A panel's query with Grafana's own variables put in."""
    given = {
        "__interval": f"{max(1, int(step))}s", "__rate_interval": f"{max(60, int(step * 4))}s",
        "__range": f"{int(span)}s", "__interval_ms": str(int(step * 1000)), "__range_s": str(int(span)),
    }  # fmt: skip
    for key in sorted(given, key=len, reverse=True):
        text = text.replace("${" + key + "}", given[key]).replace("$" + key, given[key])
    return text


def _moment(text: object, now: float) -> float:
    word = str(text)
    if word.startswith("now"):
        rest = word.removeprefix("now").lstrip("-")
        return now - (duration(rest).seconds if rest else 0.0)
    return float(word) / 1000


def _frame(name: str, labels: Any, points: list[tuple[float, float]]) -> Object:
    shown = {key: value for key, value in labels.items() if key != "__name__"}
    fields = [
        {"name": "Time", "type": "time", "typeInfo": {"frame": "time.Time"}},
        {"name": "Value", "type": "number", "typeInfo": {"frame": "float64"}, "labels": shown},
    ]
    values = [[int(at * 1000) for at, _ in points], [value if value == value else None for _, value in points]]
    return {"schema": {"refId": name, "name": labels.get("__name__", ""), "fields": fields}, "data": {"values": values}}
