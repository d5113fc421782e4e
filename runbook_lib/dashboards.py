"""Grafana dashboards of Proxmox VE: what they show, as data; their JSON, made with Grafana's own SDK; their objects.

The JSON lies beside the package, so that using it needs no SDK: `python -m runbook_lib.dashboards` makes it anew, with
grafana-foundation-sdk for the Grafana that CozyStack ships.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook_lib.alerts import JOB, TLS_JOB

Object = dict[str, Any]

FOLDER = Path(__file__).parent / "templates" / "grafana"
GRAFANA_FOLDER = "Proxmox VE"
SOURCE = "ds_prometheus"
"""The variable that names the data source, as CozyStack's own dashboards have it."""

CSI_DRIVER = "csi.proxmox.sinextra.dev"
VARIABLES = {"csi": "csi-proxmox", "capmox": "capmox-system"}
"""Namespaces that stand in the queries as `$namespace`, with where components mostly are."""

_J = f'job="{JOB}"'


@dataclass(frozen=True)
class Chart:
    """One panel: a number, or lines over time."""

    title: str
    expression: str
    unit: str = "short"
    legend: str = "{{id}}"
    number: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    name: str  # "proxmox-cluster"
    title: str
    component: str
    charts: tuple[Chart, ...]


BOARDS = (
    Board(
        "proxmox-cluster",
        "Proxmox VE: cluster",
        "proxmox",
        (
            Chart("Quorum", f'pve_up{{{_J},id=~"cluster/.*"}}', "bool_yes_no", number=True),
            Chart("Nodes online", f'sum(pve_up{{{_J},id=~"node/.*"}})', legend="nodes", number=True),
            Chart("Guests running", f'sum(pve_up{{{_J},id=~"qemu/.*|lxc/.*"}})', legend="guests", number=True),
            Chart("Guests in no backup job", f"pve_not_backed_up_total{{{_J}}}", number=True),
            Chart("Certificate holds for", f'probe_ssl_earliest_cert_expiry{{job="{TLS_JOB}"}} - time()', "s",
                  "{{instance}}", number=True),
            Chart("CPU by node", f'pve_cpu_usage_ratio{{{_J},id=~"node/.*"}}', "percentunit"),
            Chart(
                "Memory by node",
                f'pve_memory_usage_bytes{{{_J},id=~"node/.*"}} / pve_memory_size_bytes{{{_J},id=~"node/.*"}}',
                "percentunit",
            ),
            Chart("Scrapes that succeed", f'up{{job=~"{JOB}.*"}}', legend="{{job}} {{instance}}"),
            Chart("Duration of a scrape", f'scrape_duration_seconds{{job=~"{JOB}.*"}}', "s", "{{job}} {{instance}}"),
        ),
    ),
    Board(
        "proxmox-node",
        "Proxmox VE: nodes",
        "proxmox",
        (
            Chart("Online", f'pve_up{{{_J},id=~"node/.*"}}', "bool_on_off", number=True),
            Chart("CPU", f'pve_cpu_usage_ratio{{{_J},id=~"node/.*"}}', "percentunit"),
            Chart("CPU threads", f'pve_cpu_usage_limit{{{_J},id=~"node/.*"}}'),
            Chart("Memory in use", f'pve_memory_usage_bytes{{{_J},id=~"node/.*"}}', "bytes"),
            Chart("Memory there is", f'pve_memory_size_bytes{{{_J},id=~"node/.*"}}', "bytes"),
            Chart("Root file system in use", f'pve_disk_usage_bytes{{{_J},id=~"node/.*"}}', "bytes"),
            Chart("Up for", f'pve_uptime_seconds{{{_J},id=~"node/.*"}}', "s"),
        ),
    ),
    Board(
        "proxmox-guest",
        "Proxmox VE: guests",
        "proxmox",
        (
            Chart("Running", f'sum by (node) (pve_up{{{_J}}} * on (id) group_left(node) pve_guest_info{{{_J}}})',
                  legend="{{node}}", number=True),
            Chart("CPU", f'pve_cpu_usage_ratio{{{_J},id=~"qemu/.*|lxc/.*"}}', "percentunit"),
            Chart("Memory in use", f'pve_memory_usage_bytes{{{_J},id=~"qemu/.*|lxc/.*"}}', "bytes"),
            Chart("Written to disk", f'rate(pve_disk_written_bytes_total{{{_J}}}[5m])', "Bps"),
            Chart("Read from disk", f'rate(pve_disk_read_bytes_total{{{_J}}}[5m])', "Bps"),
            Chart("Sent", f'rate(pve_network_transmit_bytes_total{{{_J}}}[5m])', "Bps"),
            Chart("Received", f'rate(pve_network_receive_bytes_total{{{_J}}}[5m])', "Bps"),
            Chart("Up for", f'pve_uptime_seconds{{{_J},id=~"qemu/.*|lxc/.*"}}', "s"),
        ),
    ),
    Board(
        "proxmox-storage",
        "Proxmox VE: storage",
        "proxmox",
        (
            Chart("Available", f'pve_up{{{_J},id=~"storage/.*"}}', "bool_yes_no", number=True),
            Chart(
                "Used part",
                f'pve_disk_usage_bytes{{{_J},id=~"storage/.*"}} / pve_disk_size_bytes{{{_J},id=~"storage/.*"}}',
                "percentunit",
            ),
            Chart("Used", f'pve_disk_usage_bytes{{{_J},id=~"storage/.*"}}', "bytes"),
            Chart("Size", f'pve_disk_size_bytes{{{_J},id=~"storage/.*"}}', "bytes"),
            Chart("In three days, as it goes", f'predict_linear(pve_disk_usage_bytes{{{_J},id=~"storage/.*"}}[6h], '
                  "259200)", "bytes"),
        ),
    ),
    Board(
        "proxmox-csi",
        "Proxmox VE: volumes of pods",
        "csi",
        (
            Chart("Driver's containers ready", 'sum(kube_pod_container_status_ready{namespace="$namespace"})',
                  legend="ready", number=True),
            Chart("Volumes", f'count(kube_persistentvolume_info{{csi_driver="{CSI_DRIVER}"}}) or vector(0)',
                  legend="volumes", number=True),
            Chart("Claims that wait", 'sum(kube_persistentvolumeclaim_status_phase{phase="Pending"}) or vector(0)',
                  legend="claims", number=True),
            Chart("Room promised", f'sum(kube_persistentvolume_capacity_bytes * on (persistentvolume) group_left() '
                  f'kube_persistentvolume_info{{csi_driver="{CSI_DRIVER}"}}) or vector(0)', "bytes", "promised"),
            Chart("Restarts", 'sum by (pod) (kube_pod_container_status_restarts_total{namespace="$namespace"})',
                  legend="{{pod}}"),
        ),
    ),
    Board(
        "proxmox-capmox",
        "Proxmox VE: Cluster API provider",
        "capmox",
        (
            Chart("Available", 'kube_deployment_status_replicas_available{namespace="$namespace"}',
                  legend="{{deployment}}", number=True),
            Chart("Machines made by it", f'count(pve_guest_info{{{_J},tags=~".*capmox.*"}}) or vector(0)',
                  legend="machines", number=True),
            Chart("Restarts", 'sum by (pod) (kube_pod_container_status_restarts_total{namespace="$namespace"})',
                  legend="{{pod}}"),
            Chart("Memory", 'sum by (pod) (container_memory_working_set_bytes{namespace="$namespace",container!=""})',
                  "bytes", "{{pod}}"),
        ),
    ),
)  # fmt: skip


def built(board: Board) -> str:
    """The dashboard's JSON, made by grafana-foundation-sdk. Raises ModuleNotFoundError where that is not installed."""
    from grafana_foundation_sdk.builders import dashboard as made
    from grafana_foundation_sdk.builders import prometheus, stat, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    source = DataSourceRef(type_val="prometheus", uid="${" + SOURCE + "}")
    draft = made.Dashboard(board.title).uid(board.name).tags(["proxmox", "runbook"]).refresh("1m").time("now-6h", "now")
    draft = draft.with_variable(made.DatasourceVariable(SOURCE).label("Data source").type("prometheus"))
    if board.component in VARIABLES:
        draft = draft.with_variable(made.ConstantVariable("namespace").value(VARIABLES[board.component]))
    for chart in board.charts:
        asked = prometheus.Dataquery().expr(chart.expression).legend_format(chart.legend).ref_id("A")
        panel = stat.Panel().height(4).span(6) if chart.number else timeseries.Panel().height(8).span(12)
        panel = panel.title(chart.title).unit(chart.unit).datasource(source).with_target(asked)
        draft = draft.with_panel(panel)
    return json.dumps(json.loads(JSONEncoder(sort_keys=True, indent=1).encode(draft.build())), indent=1) + "\n"


def text(board: Board, *, namespaces: Mapping[str, str] | None = None) -> str:
    """The dashboard's JSON, with the component's namespace on this site."""
    found = json.loads((FOLDER / f"{board.name}.json").read_text(encoding="utf-8"))
    space = (namespaces or {}).get(board.component)
    for variable in (found.get("templating") or {}).get("list") or []:
        if variable["type"] == "constant" and space:
            variable["query"] = space
    return json.dumps(found, sort_keys=True)


def manifest(board: Board, *, namespace: str, api_version: str, namespaces: Mapping[str, str] | None = None) -> Object:
    """The dashboard as the Grafana operator takes it, for the Grafana of the namespace and for no tenant's own."""
    return {
        "apiVersion": api_version,
        "kind": "GrafanaDashboard",
        "metadata": {"name": board.name, "namespace": namespace},
        "spec": {
            "instanceSelector": {"matchLabels": {"dashboards": "grafana"}},
            "folder": GRAFANA_FOLDER,
            "json": text(board, namespaces=namespaces),
        },
    }


def queries(dashboard: str, *, namespaces: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """(panel, query) of a dashboard's JSON, as Grafana would ask: variables and its own words put in."""
    found = json.loads(dashboard)
    constants = {
        row["name"]: str(row.get("query", ""))
        for row in (found.get("templating") or {}).get("list") or []
        if row["type"] == "constant"
    }
    rows = []
    for panel in found.get("panels") or []:
        for target in panel.get("targets") or []:
            asked = str(target["expr"])
            for name, value in {**constants, "__rate_interval": "2m", "__interval": "30s", "__range": "6h"}.items():
                asked = asked.replace("${" + name + "}", value).replace(f"${name}", value)
            rows.append((str(panel.get("title", "")), asked))
    return rows


def of(components: Iterable[str]) -> list[Board]:
    """The dashboards of these components."""
    wanted = set(components)
    return [board for board in BOARDS if board.component in wanted]


def main() -> None:
    """Nothing; every dashboard's JSON is as the SDK makes it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.name}.json").write_text(built(board), encoding="utf-8")


if __name__ == "__main__":
    main()
