"""VictoriaLogs: container logs as fluent-bit ships them, what clients write, and the HTTP of both ends."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from . import logsql
from .metrics_api import Refused, form, when

if TYPE_CHECKING:
    from .hub import Hub

MOST_WRITTEN = 100_000
SHIPPED_AFTER_SECONDS = 1.0
"""Real seconds that a line takes from the container to the store: fluent-bit flushes each second."""
STREAM = ("log_source", "stream", "kubernetes_pod_name", "kubernetes_container_name", "kubernetes_namespace_name")

Entry = dict[str, str]


class Kept:
    """The lines that were shipped or written. Those of containers are read where the kubelets keep them."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.written: deque[tuple[float, Entry]] = deque(maxlen=MOST_WRITTEN)
        self.gone: deque[tuple[float, Entry]] = deque(maxlen=MOST_WRITTEN)

    def shipping(self, node: str) -> bool:
        """Whether a ready fluent-bit runs on the node."""
        return any(
            pod["spec"].get("nodeName") == node
            and "fluent-bit" in pod["spec"]["containers"][0]["image"]
            and any(r["type"] == "Ready" and r["status"] == "True" for r in pod["status"].get("conditions") or ())
            for pod in self.hub.cluster.each("/pods", "cozy-monitoring")
        )

    def entries(self, since: float, until: float) -> Iterator[tuple[float, Entry]]:
        """What lies in this time, with its time."""
        for at, entry in self.written:
            if since <= at <= until:
                yield at, entry
        last = min(until, self.hub.clock.now() - SHIPPED_AFTER_SECONDS)
        logs = self.hub.logs
        pods = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in self.hub.cluster.each("/pods")}
        ships: dict[str, bool] = {}
        for held in (logs.previous, logs.present) if logs is not None else ():
            for (space, name, container), lines in list(held.items()):
                pod = pods.get((space, name))
                node = pod["spec"].get("nodeName", "") if pod else ""
                if pod is None or not ships.setdefault(node, self.shipping(node)):
                    continue
                about = described(pod, container)
                for stamp, line in lines:
                    at = datetime.fromisoformat(stamp).timestamp()
                    if since <= at <= last:
                        yield at, {"_time": stamp, "_msg": line, **about, **merged(line)}

    def select(self, query: logsql.Query, start: float, end: float) -> list[tuple[float, Entry]]:
        """The entries that pass, the newest last."""
        since, until = max(start, query.since), min(end, query.until)
        found = [(at, entry) for at, entry in self.entries(since, until) if query.passes(entry, at)]
        found.sort(key=lambda row: row[0])
        return found


def described(pod: Mapping[str, Any], container: str) -> Entry:
    """The fields that fluent-bit adds to the lines of a container."""
    meta = pod["metadata"]
    image = next((c["image"] for c in pod["spec"]["containers"] if c["name"] == container), "")
    found = {
        "log_source": "container_log",
        "stream": "stdout",
        "kubernetes_namespace_name": meta["namespace"],
        "kubernetes_pod_name": meta["name"],
        "kubernetes_container_name": container,
        "kubernetes_container_image": image,
        "kubernetes_pod_id": meta.get("uid", ""),
        "kubernetes_pod_ip": (pod.get("status") or {}).get("podIP", ""),
        "kubernetes_host": pod["spec"].get("nodeName", ""),
        "tenant": "tenant-root",
        "cluster": "root-cluster",
    }
    found |= {f"kubernetes_labels.{key}": value for key, value in (meta.get("labels") or {}).items()}
    return stamped(found, STREAM)


def merged(line: str) -> Entry:
    """The fields of a line that is JSON, as `Merge_Log` lifts them."""
    if not line.startswith("{"):
        return {}
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return flat(found) if isinstance(found, dict) else {}


def flat(found: Mapping[str, Any], prefix: str = "") -> Entry:
    """Fields of fields joined with points, as the store keeps them."""
    rows: Entry = {}
    for key, value in found.items():
        if isinstance(value, dict):
            rows |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return rows


def stamped(entry: Entry, fields: tuple[str, ...]) -> Entry:
    """The entry with the stream it belongs to."""
    inner = ",".join(f'{name}="{entry[name]}"' for name in sorted(fields) if entry.get(name))
    digest = hashlib.sha256(inner.encode()).hexdigest()
    return {**entry, "_stream": "{" + inner + "}", "_stream_id": digest[:48]}


def kept(hub: Hub) -> Kept:
    """The log store of the cluster."""
    if hub.log_store is None:
        hub.log_store = Kept(hub)
    found: Kept = hub.log_store
    return found


async def select(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """vlselect."""
    if path in {"/health", "/-/healthy"}:
        return web.Response(text="OK")
    given = await form(request)
    now = hub.clock.now()
    text = (given.get("query") or [""])[0]
    try:
        if not text:
            raise logsql.BadQuery("missing `query` arg")
        query = logsql.parse(text, now)
        start, end = when(given, "start", 0.0, now), when(given, "end", float("inf"), now)
        found = kept(hub).select(query, start, end)
    except (logsql.BadQuery, Refused) as error:
        return web.Response(status=400, text=f"{error}\n")
    route = path.removeprefix("/select/logsql/")
    entries: list[Mapping[str, str]] = [entry for _, entry in found]
    if route == "hits":
        return _hits(found, given, now)
    for pipe in query.pipes:
        entries = pipe(entries)
    if route == "query":
        limit = int((given.get("limit") or ["0"])[0] or 0)
        if limit and not query.pipes:
            entries = entries[-limit:]
        elif limit:
            entries = entries[:limit]
        body = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        return web.Response(text=body, content_type="application/stream+json")
    if route in {"field_names", "streams", "field_values", "stream_field_names"}:
        return _counted(route, entries, given)
    return web.Response(status=400, text=f'unsupported path requested: "{path}"\n')


def _counted(route: str, entries: list[Mapping[str, str]], given: Mapping[str, list[str]]) -> web.Response:
    name = "_stream" if route == "streams" else (given.get("field") or [""])[0]
    counts: dict[str, int] = {}
    for entry in entries:
        for value in entry if route.endswith("names") else filter(None, (entry.get(name),)):
            counts[value] = counts.get(value, 0) + 1
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return web.json_response({"values": [{"value": value, "hits": count} for value, count in rows]})


def _hits(found: list[tuple[float, Entry]], given: Mapping[str, list[str]], now: float) -> web.Response:
    from .metrics_api import length

    step = length(given, "step", 86400.0)
    groups: dict[tuple[tuple[str, str], ...], dict[float, int]] = {}
    for at, entry in found:
        key = tuple((name, entry.get(name, "")) for name in given.get("field") or ())
        bucket = at - at % step
        row = groups.setdefault(key, {})
        row[bucket] = row.get(bucket, 0) + 1
    rows = [
        {
            "fields": dict(key),
            "timestamps": [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in sorted(row)],
            "values": [row[at] for at in sorted(row)],
            "total": sum(row.values()),
        }
        for key, row in groups.items()
    ]
    return web.json_response({"hits": rows})


async def insert(hub: Hub, request: web.Request, path: str) -> web.StreamResponse:
    """vlinsert: JSON lines."""
    if path in {"/health", "/-/healthy"}:
        return web.Response(text="OK")
    if path != "/insert/jsonline":
        return web.Response(status=400, text=f'unsupported path requested: "{path}"\n')
    body = await request.read()
    if request.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    query, now = request.query, hub.clock.now()
    message, at_field = query.get("_msg_field", "_msg"), query.get("_time_field", "_time")
    fields = tuple(name for name in query.get("_stream_fields", "").split(",") if name)
    for line in body.decode(errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = flat(json.loads(line))
        except (ValueError, AttributeError) as error:
            return web.Response(status=400, text=f"cannot parse json-encoded log entry: {error}\n")
        at = read_time(row.pop(at_field, ""), now)
        text = row.pop(message, "")
        stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kept(hub).written.append((at, stamped({"_time": stamp, "_msg": text, **row}, fields)))
    return web.Response(status=200)


def read_time(text: str, now: float) -> float:
    """A time in seconds, milliseconds, nanoseconds or RFC 3339; the present for nothing or "0"."""
    if text in {"", "0"}:
        return now
    try:
        value = float(text)
        return value / 1e9 if value > 1e17 else value / 1e6 if value > 1e14 else value / 1e3 if value > 1e11 else value
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        return now
