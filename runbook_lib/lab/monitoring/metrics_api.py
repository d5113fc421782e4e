"""The HTTP of vmselect, vminsert, vmagent, vmalert and the alert manager."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aiohttp import web

from .alerting import rfc3339
from .evaluation import instant, matrix, ranged, shown, written
from .exposition import BadLine, Row, influx, page, rows
from .families import FAMILIES, Make
from .promql import BadQuery, Expr, Rollup, Selector, duration, parse, quoted
from .targets import Target

if TYPE_CHECKING:
    from .hub import Hub

Object = dict[str, Any]
MOST_SERIES = 20_000


class Refused(Exception):
    """What is answered with an error: a status and VictoriaMetrics' words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def error(status: int, words: str) -> web.Response:
    """An error as the query API answers it."""
    return web.json_response({"status": "error", "errorType": str(status), "error": words}, status=status)


def unsupported(path: str) -> web.Response:
    """400 for a path that nobody serves."""
    return web.Response(status=400, text=f'unsupported path requested: "{path}"\n')


async def form(request: web.Request) -> dict[str, list[str]]:
    """The parameters of the URL and of a form, in their order."""
    pairs = list(request.query.items())
    if request.method == "POST" and request.content_type == "application/x-www-form-urlencoded":
        pairs += parse_qsl((await request.read()).decode(errors="replace"), keep_blank_values=True)
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def when(given: Mapping[str, list[str]], name: str, otherwise: float, now: float) -> float:
    """A time: seconds, milliseconds, RFC 3339, or "now-1h"."""
    text = (given.get(name) or [""])[0]
    if not text:
        return otherwise
    if text.startswith(("now", "-")):
        rest = text.removeprefix("now").lstrip("-")
        return now - (duration(rest).seconds if rest else 0.0)
    try:
        value = float(text)
        return value / 1000 if value > 1e11 else value
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Refused(422, f"cannot parse {name}={text}: cannot parse {quoted(text)}") from None


def length(given: Mapping[str, list[str]], name: str, otherwise: float) -> float:
    """A duration: "30s", "1m" or seconds."""
    text = (given.get(name) or [""])[0]
    try:
        found = duration(text).seconds if text else otherwise
    except ValueError:
        raise Refused(422, f"cannot parse {name}={text}: cannot parse duration {quoted(text)}") from None
    if found <= 0:
        raise Refused(422, f"duration {name}={text} must be positive")
    return found


# -- vmselect --------------------------------------------------------------------------------------


async def select(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """vmselect."""
    if path in {"/health", "/-/healthy", "/-/ready"}:
        return web.Response(text="OK")
    parts = path.split("/")
    if len(parts) < 5 or parts[1] != "select" or parts[3] != "prometheus":
        return unsupported(path)
    if not parts[2].replace(":", "").isdigit():
        return web.Response(status=400, text=f'auth error: cannot parse accountID from "{parts[2]}"\n')
    hub.wake()
    route = "/" + "/".join(parts[4:])
    given = await form(request)
    try:
        return _answer(hub, route, given, parts[2])
    except Refused as refused:
        return error(refused.status, str(refused))
    except BadQuery as bad:
        return error(422, str(bad))


def _answer(hub: Hub, route: str, given: Mapping[str, list[str]], account: str) -> web.Response:
    # only the first account has the cluster's data; another tenant's is empty
    empty = account.partition(":")[0] != "0"
    if route == "/api/v1/query":
        return _query(hub, given, empty=empty)
    if route == "/api/v1/query_range":
        return _query_range(hub, given, empty=empty)
    if route == "/api/v1/series":
        found = [] if empty else _matching(hub, given)
        return _listed([dict(labels) for labels in found])
    if route == "/api/v1/labels":
        return _listed(sorted({key for labels in ([] if empty else _matching(hub, given)) for key in labels}))
    if route.startswith("/api/v1/label/") and route.endswith("/values"):
        name = route.removeprefix("/api/v1/label/").removesuffix("/values")
        values = {labels[name] for labels in ([] if empty else _matching(hub, given)) if labels.get(name)}
        return _listed(sorted(values))
    if route == "/api/v1/status/tsdb":
        count = len(_matching(hub, given))
        return web.json_response({"status": "success", "data": {"totalSeries": count, "totalLabelValuePairs": 0}})
    if route == "/api/v1/status/buildinfo":
        return web.json_response({"status": "success", "data": {"version": "2.24.0"}})
    if route in {"/api/v1/metadata", "/api/v1/rules", "/api/v1/alerts", "/api/v1/query_exemplars"}:
        return web.json_response({"status": "success", "data": {}})
    if route == "/federate":
        return web.Response(text=_federated(hub, given))
    return unsupported(route)


def _listed(found: list[Any]) -> web.Response:
    return web.json_response({"status": "success", "isPartial": False, "data": found})


def _selectors(given: Mapping[str, list[str]]) -> list[Selector]:
    found = []
    for text in given.get("match[]") or given.get("match") or ['{__name__!=""}']:
        expr = parse(text)
        if not isinstance(expr, Selector):
            raise Refused(422, f"cannot parse matches: expecting metricSelector; got {quoted(text)}")
        found.append(expr)
    return found


def _matching(hub: Hub, given: Mapping[str, list[str]]) -> list[Mapping[str, str]]:
    now = hub.clock.now()
    start, end = when(given, "start", now - 300.0, now), when(given, "end", now, now)
    limit = int((given.get("limit") or ["0"])[0] or 0) or MOST_SERIES
    found: dict[Any, Mapping[str, str]] = {}
    for selector in _selectors(given):
        for series in hub.select(selector, start, end):
            found.setdefault(tuple(sorted(series.labels.items())), series.labels)
    return list(found.values())[:limit]


def _federated(hub: Hub, given: Mapping[str, list[str]]) -> str:
    now = hub.clock.now()
    lines = []
    for selector in _selectors(given):
        for sample in instant(selector, hub, now):
            lines.append(f"{shown(sample.labels)} {written(sample.value)} {int(now * 1000)}")
    return "\n".join(lines) + "\n"


class _Nothing:
    """A source without series."""

    def select(self, selector: Selector, start: float, end: float) -> list[Any]:
        """None."""
        return []


def _text(given: Mapping[str, list[str]]) -> str:
    text = (given.get("query") or [""])[0]
    if not text:
        raise Refused(422, "missing `query` arg")
    return text


def _query(hub: Hub, given: Mapping[str, list[str]], *, empty: bool) -> web.Response:
    begun, now = time.monotonic(), hub.clock.now()
    text = _text(given)
    at, step = when(given, "time", now, now), length(given, "step", 300.0)
    source: Any = _Nothing() if empty else hub
    try:
        expr: Expr = parse(text)
        raw = matrix(expr, source, at)
        if raw is not None:
            rows_ = [
                {"metric": dict(labels), "values": [[round(t, 3), written(v)] for t, v in points]}
                for labels, points in raw
            ]
            return _result("matrix", rows_, begun)
        window = expr.window.value(step) if isinstance(expr, Rollup) and expr.subquery and expr.window else 0.0
        if window and isinstance(expr, Rollup):
            inner = expr.step.value(step) if expr.step else step
            return _result("matrix", _points(ranged(expr.inner, source, at - window, at, inner)), begun)
        found = instant(expr, source, at, step)
    except BadQuery as bad:
        words = f"error when executing query={quoted(text)} for (time={int(at * 1000)}, step={int(step * 1000)}): {bad}"
        return error(422, words)
    result = [{"metric": dict(s.labels), "value": [round(at, 3), written(s.value)]} for s in found]
    return _result("vector", result, begun)


def _query_range(hub: Hub, given: Mapping[str, list[str]], *, empty: bool) -> web.Response:
    begun, now = time.monotonic(), hub.clock.now()
    text = _text(given)
    start, end = when(given, "start", now - 300.0, now), when(given, "end", now, now)
    step = length(given, "step", 300.0)
    source: Any = _Nothing() if empty else hub
    try:
        found = ranged(parse(text), source, start, max(start, end), step)
    except BadQuery as bad:
        words = (
            f"error when executing query={quoted(text)} on the time range "
            f"(start={int(start * 1000)}, end={int(end * 1000)}, step={int(step * 1000)}): {bad}"
        )
        return error(422, words)
    return _result("matrix", _points(found), begun)


def _points(found: Iterable[tuple[Mapping[str, str], list[tuple[float, float]]]]) -> list[Object]:
    rows_ = [
        {"metric": dict(labels), "values": [[round(t, 3), written(v)] for t, v in points]} for labels, points in found
    ]
    return sorted(rows_, key=lambda row: sorted(row["metric"].items()))


def _result(kind: str, result: list[Any], begun: float) -> web.Response:
    stats = {"seriesFetched": str(len(result)), "executionTimeMsec": int((time.monotonic() - begun) * 1000)}
    data = {"resultType": kind, "result": result}
    return web.json_response({"status": "success", "isPartial": False, "data": data, "stats": stats})


# -- vminsert --------------------------------------------------------------------------------------


async def insert(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """vminsert: Prometheus' text format, JSON lines, InfluxDB lines. Remote write is refused: it needs snappy."""
    if path == "/health":
        return web.Response(text="OK")
    parts = path.split("/")
    if len(parts) < 4 or parts[1] != "insert":
        return unsupported(path)
    route = "/" + "/".join(parts[3:])
    if route.endswith("/query") and "influx" in route:
        return web.json_response({"results": [{"series": [{"values": []}]}]})
    body = await request.read()
    if request.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    text = body.decode(errors="replace")
    now = hub.clock.now()
    more = {
        key: value for key, _, value in (row.partition("=") for row in request.query.getall("extra_label", [])) if value
    }
    try:
        if route.startswith("/prometheus/api/v1/import/prometheus"):
            found: list[Row] = rows(text)
        elif route in {"/influx/write", "/influx/api/v2/write"}:
            found = influx(text, request.query.get("precision", "ns"))
            if database := request.query.get("db") or request.query.get("bucket"):
                found = [({"db": database, **labels}, value, at) for labels, value, at in found]
        elif route == "/prometheus/api/v1/import":
            found = list(_lines(text))
        else:
            return unsupported(path)
    except (BadLine, ValueError, KeyError) as bad:
        return web.Response(status=400, text=f"error in {quoted(request.path)}: {bad}\n")
    for labels, value, at in found:
        hub.store.append({**labels, **more}, value, now if at is None else at)
    return web.Response(status=204)


def _lines(text: str) -> Iterable[Row]:
    for line in text.splitlines():
        if line.strip():
            row = json.loads(line)
            for value, at in zip(row["values"], row["timestamps"], strict=True):
                yield row["metric"], float(value), at / 1000


# -- vmagent ---------------------------------------------------------------------------------------


async def agent(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """vmagent: its targets, and the call that makes it read its configuration again."""
    if path in {"/health", "/-/healthy", "/-/ready"}:
        return web.Response(text="OK")
    hub.wake()
    if path == "/-/reload":
        return web.Response(status=204)
    if path == "/api/v1/targets":
        state = request.query.get("state", "")
        data: Object = {"activeTargets": [], "droppedTargets": []}
        if state in {"", "any", "active"}:
            data["activeTargets"] = [_target(hub, target) for target in hub.targets()]
        if state in {"", "any", "dropped"}:
            data["droppedTargets"] = [{"discoveredLabels": dict(row.discovered)} for row in hub.dropped()]
        return web.json_response({"status": "success", "data": data})
    if path == "/targets":
        return web.Response(text=_targets_page(hub))
    if path == "/metrics":
        up = sum(hub.health_of(target).up for target in hub.targets())
        rows_ = [({"status": "up"}, float(up)), ({"status": "down"}, float(len(hub.targets()) - up))]
        return web.Response(text=page([("vm_promscrape_targets", rows_)]))
    return unsupported(path)


def _target(hub: Hub, target: Target) -> Object:
    health = hub.health_of(target)
    return {
        "discoveredLabels": dict(target.discovered),
        "labels": dict(target.labels),
        "scrapePool": target.pool,
        "scrapeUrl": target.url,
        "lastError": health.error,
        "lastScrape": rfc3339(health.at),
        "lastScrapeDuration": health.seconds,
        "lastSamplesScraped": health.samples,
        "health": "up" if health.up else "unknown" if target.dial and not health.scraped else "down",
    }


def _targets_page(hub: Hub) -> str:
    pools: dict[str, list[Target]] = {}
    for target in hub.targets():
        pools.setdefault(target.pool, []).append(target)
    lines = []
    now = hub.clock.now()
    for pool, members in sorted(pools.items()):
        up = sum(hub.health_of(target).up for target in members)
        lines.append(f'job="{pool}" ({up}/{len(members)} up)')
        for target in members:
            health = hub.health_of(target)
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(target.labels.items()))
            lines.append(
                f"\tstate={'up' if health.up else 'down'}, endpoint={target.url}, labels={{{labels}}}, "
                f"last_scrape={max(0.0, now - health.at):.3f}s ago, scrape_duration={health.seconds * 1000:.0f}ms, "
                f'samples_scraped={health.samples}, error="{health.error}"'
            )
    return "\n".join(lines) + "\n"


# -- vmalert and the alert manager -----------------------------------------------------------------


async def alert(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """vmalert."""
    if path in {"/health", "/-/healthy", "/-/ready"}:
        return web.Response(text="OK")
    hub.wake()
    hub.rules.refresh()
    route = path.removeprefix("/vmalert")
    if route == "/-/reload":
        return web.Response(status=204)
    if route == "/api/v1/rules":
        return web.json_response({"status": "success", "data": {"groups": hub.rules.groups()}})
    if route == "/api/v1/alerts":
        return web.json_response({"status": "success", "data": {"alerts": hub.rules.alerts()}})
    return unsupported(path)


async def manager(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """The alert manager: alerts that fire, from the rules or written by a client."""
    if path in {"/-/healthy", "/-/ready"}:
        return web.Response(text="OK")
    hub.wake()
    now = hub.clock.now()
    if path == "/api/v2/alerts" and request.method == "POST":
        for row in await request.json():
            labels = row["labels"]
            given = {"annotations": {}, "startsAt": rfc3339(now), "endsAt": rfc3339(now + 300), **row}
            status = {"inhibitedBy": [], "mutedBy": [], "silencedBy": [], "state": "active"}
            more = {"fingerprint": f"{hash(str(labels)) & 0xFFFFFFFFFFFFFFFF:016x}", "updatedAt": rfc3339(now)}
            hub.rules.sent[tuple(sorted(labels.items()))] = {
                **given, **more, "status": status, "receivers": [{"name": "blackhole"}],
            }  # fmt: skip
        return web.Response(status=200)
    if path == "/api/v2/alerts":
        found = [row for row in hub.rules.sent.values() if datetime.fromisoformat(row["endsAt"]).timestamp() > now]
        return web.json_response(found)
    if path == "/api/v2/status":
        body = {
            "cluster": {"status": "ready", "peers": []},
            "versionInfo": {"version": "0.28.1"},
            "uptime": rfc3339(now),
        }
        return web.json_response(body)
    if path in {"/api/v2/silences", "/api/v2/alerts/groups"}:
        return web.json_response([])
    if path == "/api/v2/receivers":
        return web.json_response([{"name": "blackhole"}])
    return web.Response(status=404, text="404 page not found\n")


async def exporter(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """The page of kube-state-metrics, or of the first node's exporter."""
    if path != "/metrics":
        return web.Response(text="OK") if path in {"/", "/healthz", "/livez", "/readyz"} else web.Response(status=404)
    kind = "kube-state-metrics" if "kube-state-metrics" in request.path else "node-exporter"
    target = next((t for t in hub.targets() if t.kind == kind), None)
    if target is None:
        return web.Response(status=503, text="no such program\n")
    scene, now = hub.emulated.scene(), hub.clock.now()

    def told(make: Make) -> list[tuple[dict[str, str], float]]:
        return [(labels, v if isinstance(v, int | float) else v(now)) for labels, v, _ in make(scene, target)]

    return web.Response(text=page((name, told(make)) for name, make in FAMILIES.of(kind, "/metrics").items()))
