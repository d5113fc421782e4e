"""Metrics: external servers (graphite, influxdb, and opentelemetry on 9) and the export a scraper pulls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.metrics import TABLE
from .drift import BROADCAST_SECONDS
from .nodes import cpu_fraction, memory_used, root_usage, uptime
from .quorum import require_quorum
from .routing import Call, PveError
from .schema import format_check
from .sections import Section, Sections, check_digest, digest_of, edit, stored
from .storage import usage

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

COMMON = ("disable", "mtu")
KINDS = {
    "graphite": (*COMMON, "server", "port", "path", "proto", "timeout"),
    "influxdb": (
        *COMMON,
        "server",
        "port",
        "influxdbproto",
        "timeout",
        "organization",
        "bucket",
        "token",
        "max-body-size",
        "api-path-prefix",
        "verify-certificate",
    ),
}
HISTORY_SECONDS = 1800
"""How far back a node remembers what it measured."""


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the metric servers from a scenario's `metric_servers:`, by id."""
    state.areas["metric_servers"] = {name: dict(entry) for name, entry in (section.get("metric_servers") or {}).items()}


def servers(state: PveState) -> Sections:
    """The metric servers, by id."""
    found: Sections = state.areas.setdefault("metric_servers", {})
    return found


@format_check("graphite-path")
def _graphite_path(value: str) -> None:
    if value.startswith(".") or value.endswith(".") or ".." in value:
        raise ValueError("value does not look like a valid graphite path\n")


@endpoint("GET /cluster/metrics")
def index(call: Call) -> list[dict[str, str]]:
    """The names below metrics."""
    return [{"name": "server"}]


@endpoint("GET /cluster/metrics/server")
def list_servers(call: Call) -> list[Section]:
    """The metric servers, in short."""
    rows = []
    for name in sorted(servers(call.state)):
        entry = servers(call.state)[name]
        row = {"id": name, "disable": entry.get("disable", 0)}
        rows.append(row | {key: entry.get(key) for key in ("type", "server", "port")})
    return rows


def server_of(call: Call, missing: str) -> Section:
    """The server a path names, or the 500 that there is none."""
    if call.params["id"] not in servers(call.state):
        raise PveError(500, missing.format(call.params["id"]))
    return servers(call.state)[call.params["id"]]


@endpoint("GET /cluster/metrics/server/{id}")
def get_server(call: Call) -> Section:
    """One metric server; its token stays a secret."""
    entry = server_of(call, "status server entry '{}' does not exist")
    shown = {key: value for key, value in entry.items() if key != "token"}
    return {**shown, "digest": digest_of(servers(call.state))} if call.flavour != "8.4" else shown


def options_of(kind: str, flavour: str) -> tuple[str, ...]:
    """What a server of this type may be given."""
    if kind in KINDS:
        return KINDS[kind]
    if flavour == "8.4":
        return ()
    own = [key for key in TABLE["POST /cluster/metrics/server/{id}"].params if key.startswith("otel-")]
    return (*COMMON, "server", "port", "timeout", "verify-certificate", *own)


def check_server(call: Call, entry: Section) -> None:
    """Nothing, or the 500 of an option of another type, or of a server that does not answer."""
    known = options_of(entry["type"], call.flavour)
    for key in entry:
        if key not in known and key != "type":
            raise PveError(500, f"unexpected property '{key}'")
    for key in ("server", "port"):
        if key not in entry:
            raise PveError(500, f"missing value for required option '{key}'")
    silent = call.state.areas.get("silent_servers", ())
    tcp = entry.get("proto") == "tcp" or entry.get("influxdbproto") in ("http", "https")
    if entry["server"] in silent and tcp and not entry.get("disable"):
        raise PveError(500, f"Can't connect to {entry['server']}:{entry['port']} (Connection refused)")


@endpoint("POST /cluster/metrics/server/{id}")
def create_server(call: Call) -> None:
    """Nothing; every node sends its figures there from now on."""
    require_quorum(call.state, "cfs-lock 'file-status_cfg' error: no quorum!")
    name = call.params["id"]
    if name in servers(call.state):
        raise PveError(500, f"Metric server '{name}' already exists")
    entry = stored(call.params, without=("id",))
    check_server(call, entry)
    servers(call.state)[name] = entry


@endpoint("PUT /cluster/metrics/server/{id}")
def update_server(call: Call) -> None:
    """Nothing; the server is as asked."""
    require_quorum(call.state, "cfs-lock 'file-status_cfg' error: no quorum!")
    check_digest(call.params.get("digest"), servers(call.state))
    entry = dict(server_of(call, "no such server '{}'"))
    known = options_of(entry["type"], call.flavour)
    edit(entry, call.params, options=known, required=("server", "port"), without=("id", "type"))
    check_server(call, entry)
    servers(call.state)[call.params["id"]] = entry


@endpoint("DELETE /cluster/metrics/server/{id}")
def delete_server(call: Call) -> None:
    """Nothing; the server hears nothing any more."""
    require_quorum(call.state, "cfs-lock 'file-status_cfg' error: no quorum!")
    if call.params["id"] not in servers(call.state):
        raise PveError(500, "cannot lookup undefined type!")
    del servers(call.state)[call.params["id"]]


# --- export ---------------------------------------------------------------------------------------

GAUGE, COUNTER, DERIVE = "gauge", "counter", "derive"


def node_metrics(state: PveState, name: str, moment: float) -> Iterator[tuple[str, str, Any, str]]:
    """What a node measures of itself."""
    node = state.nodes[name]
    total, used, free = root_usage(state, node)
    busy, memory = cpu_fraction(state, node), memory_used(state, node)
    where = f"node/{name}"
    yield where, "uptime", uptime(state, node), GAUGE
    for key, value in (("cpu_avg1", busy * node.cpus), ("cpu_avg5", busy * node.cpus), ("cpu_avg15", busy * node.cpus)):
        yield where, key, round(value, 2), GAUGE
    yield where, "cpu_max", node.cpus, GAUGE
    yield where, "cpu_current", busy, GAUGE
    yield where, "cpu_iowait", 0.002, GAUGE
    yield where, "mem_total", node.memory, GAUGE
    yield where, "mem_used", memory, GAUGE
    yield where, "swap_total", node.swap, GAUGE
    yield where, "swap_used", 0, GAUGE
    yield where, "disk_total", total, GAUGE
    yield where, "disk_used", used, GAUGE
    yield where, "disk_available", free, GAUGE
    for direction in ("net_in", "net_out"):
        yield where, direction, int((moment - node.booted) * 100_000), DERIVE


def guest_metrics(state: PveState, name: str, moment: float) -> Iterator[tuple[str, str, Any, str]]:
    """What a node measures of its guests."""
    for guest in state.guests.values():
        if guest.node != name or guest.template:
            continue
        where, counters = f"{guest.kind}/{guest.vmid}", guest.counters(moment)
        yield where, "uptime", guest.uptime(moment), GAUGE
        yield where, "cpu_max", guest.cpus, GAUGE
        yield where, "cpu_current", guest.cpu_fraction(moment), GAUGE
        yield where, "mem_total", guest.maxmem, GAUGE
        yield where, "mem_used", guest.memory_used(moment), GAUGE
        yield where, "disk_total", guest.maxdisk, GAUGE
        for key, source in (
            ("net_in", "netin"),
            ("net_out", "netout"),
            ("disk_read", "diskread"),
            ("disk_write", "diskwrite"),
        ):
            yield where, key, counters[source], DERIVE


def storage_metrics(state: PveState, name: str) -> Iterator[tuple[str, str, Any, str]]:
    """What a node measures of its storages."""
    for storage in state.storages.values():
        if storage.on(name) and storage.active(name):
            total, used, free = usage(state, storage, name)
            where = f"storage/{name}/{storage.storage}"
            for key, value in (("disk_total", total), ("disk_used", used), ("disk_available", free)):
                yield where, key, value, GAUGE


@endpoint("GET /cluster/metrics/export")
def export(call: Call) -> dict[str, Any]:
    """The last figures of every node that answers; with `history` those before, with `start-time` only later ones."""
    state, params, now = call.state, call.params, call.clock.now()
    last = int(now - now % BROADCAST_SECONDS)
    start = params.get("start-time", 0)
    # a node that has not measured yet has nothing to tell
    first_measured = int(state.areas.get("boot", 0))
    moments = [last]
    if params.get("history"):
        moments = list(range(last - HISTORY_SECONDS, last + 1, int(BROADCAST_SECONDS)))
    nodes = [state.local_node] if params.get("local-only") else [n.name for n in state.nodes.values() if n.online]
    rows = []
    for moment in moments:
        if moment <= max(start, first_measured):
            continue
        for name in nodes:
            for where, metric, value, kind in (
                *node_metrics(state, name, moment),
                *guest_metrics(state, name, moment),
                *storage_metrics(state, name),
            ):
                rows.append({"id": where, "metric": metric, "value": value, "type": kind, "timestamp": moment})
    return {"data": rows}
