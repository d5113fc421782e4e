"""What the cluster's monitoring says, asked through the API server's service proxy: series, targets, rules, logs.

Each program is found by the object it was made of, never by a word in its name: a node exporter is called
"prometheus" in a platform that has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from runbook_lib.errors import ApiError, NotFound
from runbook_lib.facts import DashboardState, MonitoringService, ScrapeTarget
from runbook_lib.kubernetes_reading import Object

VM, COREOS, GRAFANA = "operator.victoriametrics.com", "monitoring.coreos.com", "grafana.integreatly.org"
ROLES = ("metrics", "collector", "rules", "alerts", "logs", "dashboards")


@dataclass(frozen=True)
class Program:
    """Where the programs of a kind listen, and how they say that they are well."""

    role: str
    group: str
    kind: str
    service: str  # with the object's name put in
    port: int
    path: str = ""
    health: str = "/health"


PROGRAMS = (
    Program("metrics", VM, "VMCluster", "vmselect-{name}", 8481, "/select/0/prometheus", "/api/v1/query?query=1"),
    Program("metrics", VM, "VMSingle", "vmsingle-{name}", 8428, "", "/api/v1/query?query=1"),
    Program("metrics", COREOS, "Prometheus", "prometheus-operated", 9090, "", "/api/v1/query?query=1"),
    Program("collector", VM, "VMAgent", "vmagent-{name}", 8429),
    Program("collector", COREOS, "Prometheus", "prometheus-operated", 9090, "", "/-/healthy"),
    Program("rules", VM, "VMAlert", "vmalert-{name}", 8080),
    Program("rules", COREOS, "Prometheus", "prometheus-operated", 9090, "", "/-/healthy"),
    Program("alerts", VM, "VMAlertmanager", "vmalertmanager-{name}", 9093, "", "/-/healthy"),
    Program("alerts", COREOS, "Alertmanager", "alertmanager-operated", 9093, "", "/-/healthy"),
    Program("logs", VM, "VLCluster", "vlselect-{name}", 9471),
    Program("logs", VM, "VLSingle", "vlsingle-{name}", 9428),
    Program("logs", VM, "VLogs", "vlogs-{name}", 9428),  # as CozyStack 0.x has it
    Program("dashboards", GRAFANA, "Grafana", "{name}-service", 3000, "", "/api/health"),
)
"""Names and ports as the operators give them."""


@dataclass(frozen=True)
class Sample:
    """One series of an instant query: its labels, its value, and when the query was answered for."""

    labels: Mapping[str, str]
    value: float
    at: float


# --- what there is -----------------------------------------------------------------------------------


def stack(k8s: Any) -> list[MonitoringService]:
    """One row per role: the program that plays it here, and whether it answers."""
    listed = {group: dict(_objects(k8s, group)) for group in (VM, COREOS, GRAFANA)}
    return [_asked(k8s, _chosen(role, listed)) for role in ROLES]


def _objects(k8s: Any, group: str) -> Iterator[tuple[str, list[Object]]]:
    """Objects by kind, of the kinds that are served: those of one group may live in versions of their own."""
    wanted = {program.kind for program in PROGRAMS if program.group == group}
    found = k8s.find(f"/apis/{group}") or {}
    for version in found.get("versions") or []:
        base = f"/apis/{version['groupVersion']}"
        for entry in k8s.resources(base):
            if entry["kind"] in wanted:
                wanted.discard(entry["kind"])
                yield entry["kind"], k8s.list(f"{base}/{entry['name']}")


def _chosen(role: str, listed: Mapping[str, Mapping[str, Sequence[Object]]]) -> MonitoringService:
    home, stores = _home(listed)
    for program in PROGRAMS:
        items = list(listed[program.group].get(program.kind) or ())
        if program.role == role and items:
            item = min(items, key=lambda each: _distance(each, program, home, stores, listed))
            return MonitoringService(
                role,
                program.kind,
                item["metadata"]["namespace"],
                program.service.format(name=item["metadata"]["name"]),
                program.port,
                program.path,
            )
    return MonitoringService(role, "", told="no object of a kind that plays this role")


def _home(listed: Mapping[str, Mapping[str, Sequence[Object]]]) -> tuple[str, set[str]]:
    """(namespace, stores) that the collector of the whole cluster writes to: tenants have monitoring of their own."""
    agents = sorted(listed[VM].get("VMAgent") or (), key=_selects_all, reverse=True)
    for agent in agents:
        hosts = [_host(row.get("url")) for row in (agent.get("spec") or {}).get("remoteWrite") or ()]
        parts = [host.split(".") for host in hosts if host]
        if parts:
            space = next((part[1] for part in parts if len(part) > 1), agent["metadata"]["namespace"])
            return space, {part[0].partition("-")[2] for part in parts}
    return "", set()


def _selects_all(agent: Object) -> bool:
    return bool((agent.get("spec") or {}).get("selectAllByDefault"))


def _host(url: Any) -> str:
    return urlsplit(str(url or "")).hostname or ""


def _distance(
    item: Object, program: Program, home: str, stores: set[str], listed: Mapping[str, Mapping[str, Sequence[Object]]]
) -> tuple[bool, ...]:
    """How far an object is from what the cluster's collector fills: of several the nearest plays the role."""
    name, space = item["metadata"]["name"], item["metadata"]["namespace"]
    if program.role == "collector":
        return (not _selects_all(item),)
    away = bool(home) and space != home
    if program.role != "metrics":
        return (away,)
    # of several stores the one that alerts are made from has the finest samples
    asked = {
        _host(((row.get("spec") or {}).get("datasource") or {}).get("url")) for row in listed[VM].get("VMAlert") or ()
    }
    alerting = any(host.split(".")[:2] == [f"vmselect-{name}", space] for host in asked)
    return (away, bool(stores) and name not in stores, not alerting)


def _asked(k8s: Any, row: MonitoringService) -> MonitoringService:
    if not row.kind:
        return row
    health = next(p.health for p in PROGRAMS if (p.role, p.kind) == (row.role, row.kind))
    path, _, query = health.partition("?")
    try:
        k8s.text(proxied(row, path), **dict([query.split("=")] if query else []))
    except ApiError as error:
        return replace(row, told=str(error.came or error))
    return replace(row, answers=True)


def proxied(row: MonitoringService, path: str) -> str:
    """The path of a program behind its service."""
    base = f"/api/v1/namespaces/{row.namespace}/services/{row.service}:{row.port}/proxy"
    return base + (row.path + path if path.startswith("/api/") else path)


def playing(rows: Iterable[MonitoringService], role: str) -> MonitoringService | None:
    """The program that plays the role and answers; None where there is none."""
    return next((row for row in rows if row.role == role and row.answers), None)


# --- series ------------------------------------------------------------------------------------------


def query(k8s: Any, rows: Iterable[MonitoringService], expression: str) -> list[Sample]:
    """The series of an instant query; none where nobody can be asked. Raises Refused for a bad expression."""
    row = playing(rows, "metrics")
    if row is None:
        return []
    found = k8s.get(proxied(row, "/api/v1/query"), query=expression)
    data = found.get("data") or {}
    if data.get("resultType") == "scalar":
        at, value = data["result"]
        return [Sample({}, float(value), float(at))]
    return [
        Sample(dict(entry["metric"]), float(entry["value"][1]), float(entry["value"][0]))
        for entry in data.get("result") or []
    ]


def targets(k8s: Any, rows: Iterable[MonitoringService], jobs: Iterable[str]) -> list[ScrapeTarget]:
    """The collector's targets of these jobs, by job and instance."""
    row, wanted = playing(rows, "collector"), set(jobs)
    if row is None:
        return []
    found = k8s.get(proxied(row, "/api/v1/targets"), state="active")
    health: Mapping[str, bool | None] = {"up": True, "down": False}
    mine = [
        ScrapeTarget(
            job=entry["labels"].get("job", ""),
            instance=entry["labels"].get("instance", ""),
            url=entry.get("scrapeUrl", ""),
            up=health.get(entry.get("health", "")),
            samples=int(entry.get("lastSamplesScraped") or 0),
            error=entry.get("lastError") or "",
        )
        for entry in (found.get("data") or {}).get("activeTargets") or []
        if entry["labels"].get("job") in wanted
    ]
    return sorted(mine, key=lambda target: (target.job, target.instance))


# --- rules and alerts --------------------------------------------------------------------------------


def rules(k8s: Any, rows: Iterable[MonitoringService]) -> dict[str, str]:
    """The rules that the alerter evaluates, by name: its error, empty where it has none."""
    row = playing(rows, "rules")
    if row is None:
        return {}
    found = k8s.get(proxied(row, "/api/v1/rules"))
    groups = (found.get("data") or {}).get("groups") or []
    return {rule["name"]: rule.get("lastError") or "" for group in groups for rule in group.get("rules") or []}


def alert_state(k8s: Any, rows: Iterable[MonitoringService], name: str) -> str:
    """How the alert stands with the alerter: "firing", "pending", or "inactive"."""
    row = playing(rows, "rules")
    if row is None:
        return "inactive"
    found = k8s.get(proxied(row, "/api/v1/alerts"))
    states = {
        alert.get("state")
        for alert in (found.get("data") or {}).get("alerts") or []
        if (alert.get("labels") or {}).get("alertname", alert.get("name")) == name
    }
    return next((state for state in ("firing", "pending") if state in states), "inactive")


def is_notified(k8s: Any, rows: Iterable[MonitoringService], name: str) -> bool:
    """Whether the alert manager has the alert among those that are active."""
    row = playing(rows, "alerts")
    if row is None:
        return False
    found = json.loads(k8s.text(proxied(row, "/api/v2/alerts")) or "[]")
    return any((alert.get("labels") or {}).get("alertname") == name for alert in found)


# --- logs --------------------------------------------------------------------------------------------


def log_lines(k8s: Any, rows: Iterable[MonitoringService], logsql: str, *, limit: int = 10) -> list[dict[str, Any]]:
    """The entries of the central store that a LogsQL query finds."""
    row = playing(rows, "logs")
    if row is None:
        return []
    text = k8s.text(proxied(row, "/select/logsql/query"), query=logsql, limit=limit)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


# --- objects of the operators ------------------------------------------------------------------------


def served(k8s: Any, group: str, kind: str) -> str:
    """The apiVersion that the cluster serves the kind in; empty where it does not."""
    for version in (k8s.find(f"/apis/{group}") or {}).get("versions") or []:
        if any(entry["kind"] == kind for entry in k8s.resources(f"/apis/{version['groupVersion']}")):
            return str(version["groupVersion"])
    return ""


def rule_problem(k8s: Any, manifest: Mapping[str, Any]) -> str | None:
    """Why the operator refuses the rules; None where the object is not there, empty where it takes them."""
    try:
        found = k8s.find(k8s.path_of(manifest))
    except NotFound:
        return None
    if found is None:
        return None
    status = found.get("status") or {}
    if status.get("updateStatus") == "failed":
        return str(status.get("reason") or "failed")
    return ""


def dashboards(k8s: Any, namespace: str) -> list[DashboardState]:
    """The GrafanaDashboards of a namespace as their operator left them, by name."""
    version = served(k8s, GRAFANA, "GrafanaDashboard")
    if not version:
        return []
    found = k8s.list(f"/apis/{version}/namespaces/{namespace}/grafanadashboards")
    return sorted((_dashboard(entry) for entry in found), key=lambda row: row.name)


def _dashboard(entry: Object) -> DashboardState:
    metadata = entry["metadata"]
    rows = {row["type"]: row for row in (entry.get("status") or {}).get("conditions") or []}
    good = rows.get("DashboardSynchronized")
    bad = next((rows[name] for name in ("InvalidSpec", "NoMatchingInstance") if name in rows), None)
    if bad and bad["status"] == "True":
        return DashboardState(metadata["name"], metadata["namespace"], False, f"{bad['reason']}: {bad['message']}")
    if good is None:
        return DashboardState(metadata["name"], metadata["namespace"], None)
    told = "" if good["status"] == "True" else f"{good.get('reason', '')}: {good.get('message', '')}"
    return DashboardState(metadata["name"], metadata["namespace"], good["status"] == "True", told)
