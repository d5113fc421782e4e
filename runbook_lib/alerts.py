"""Alert rules about Proxmox VE as data: a VMRule or PrometheusRule of them, and the file that promtool checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

Object = dict[str, Any]

JOB, NODE_JOB, OWN_JOB, TLS_JOB = "proxmox", "proxmox-node", "proxmox-exporter", "proxmox-tls"
"""What the exporter's series are called by: of the cluster, of each node, of itself, and of the certificates."""

STORAGE = 'id=~"storage/.*"'


@dataclass(frozen=True)
class Rule:
    """One alert. `asks` are the selectors without which it can never fire."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    description: str
    asks: tuple[str, ...]
    component: str = "proxmox"  # | "csi" | "capmox"


def rules(
    *,
    storage_fail: float = 0.9,
    memory_fail: float = 0.95,
    certificate_warn_days: int = 30,
    csi_namespace: str = "csi-proxmox",
    capmox_namespace: str = "capmox-system",
    components: Iterable[str] = ("proxmox", "csi", "capmox"),
) -> list[Rule]:
    """The alerts of these components, with the site's thresholds."""
    wanted = set(components)
    used = f'pve_disk_usage_bytes{{job="{JOB}",{STORAGE}}}'
    size = f'pve_disk_size_bytes{{job="{JOB}",{STORAGE}}}'
    everything = (
        Rule(
            "ProxmoxExporterDown",
            f'up{{job=~"{JOB}|{NODE_JOB}|{OWN_JOB}|{TLS_JOB}"}} == 0',
            "5m",
            "critical",
            "Proxmox VE is not measured: {{ $labels.job }} of {{ $labels.instance }}",
            "The exporter does not answer, or Proxmox VE does not answer the exporter: an expired token or "
            "certificate ends here too. Read the exporter's log.",
            (f'up{{job="{JOB}"}}',),
        ),
        Rule(
            "ProxmoxSeriesMissing",
            f'absent(pve_up{{job="{JOB}",id=~"node/.*"}})',
            "10m",
            "critical",
            "No series of Proxmox VE arrive",
            "Nothing below this alert can fire while this one does: look at the exporter, then at the collector's "
            "targets.",
            (f'pve_up{{job="{JOB}",id=~"node/.*"}}',),
        ),
        Rule(
            "ProxmoxNodeDown",
            f'pve_up{{job="{JOB}",id=~"node/.*"}} == 0',
            "3m",
            "critical",
            "Proxmox VE: {{ $labels.id }} is down",
            "The cluster does not see this node. Its guests stand still unless HA moves them.",
            (f'pve_up{{job="{JOB}",id=~"node/.*"}}',),
        ),
        Rule(
            "ProxmoxQuorumLost",
            f'pve_up{{job="{JOB}",id=~"cluster/.*"}} == 0',
            "1m",
            "critical",
            "Proxmox VE: {{ $labels.id }} has no quorum",
            "Nothing can be changed until a majority of the nodes sees each other again: `pvecm status`.",
            (f'pve_up{{job="{JOB}",id=~"cluster/.*"}}',),
        ),
        Rule(
            "ProxmoxStorageUnavailable",
            f'pve_up{{job="{JOB}",{STORAGE}}} == 0',
            "5m",
            "critical",
            "Proxmox VE: {{ $labels.id }} is not available",
            "Guests on it hang or cannot start: `pvesm status` on the node.",
            (f'pve_up{{job="{JOB}",{STORAGE}}}',),
        ),
        Rule(
            "ProxmoxStorageFull",
            f"{used} / {size} > {storage_fail:g}",
            "10m",
            "critical",
            "Proxmox VE: {{ $labels.id }} is {{ $value | humanizePercentage }} full",
            "A full thin pool pauses every guest on it. Free space or add a disk.",
            (used, size),
        ),
        Rule(
            "ProxmoxStorageFillsUp",
            f"predict_linear({used}[6h], 259200) > {size} and {used} / {size} > 0.5",
            "1h",
            "warning",
            "Proxmox VE: {{ $labels.id }} is full within three days if it goes on like this",
            "Reckoned from the last six hours.",
            (used, size),
        ),
        Rule(
            "ProxmoxNodeMemory",
            f'pve_memory_usage_bytes{{job="{JOB}",id=~"node/.*"}} / '
            f'pve_memory_size_bytes{{job="{JOB}",id=~"node/.*"}} > {memory_fail:g}',
            "15m",
            "warning",
            "Proxmox VE: {{ $labels.id }} uses {{ $value | humanizePercentage }} of its memory",
            "The kernel ends processes when nothing is left, and a guest's is the largest.",
            (f'pve_memory_usage_bytes{{job="{JOB}",id=~"node/.*"}}',),
        ),
        Rule(
            "ProxmoxGuestsNotBackedUp",
            f'pve_not_backed_up_total{{job="{JOB}"}} > 0',
            "1d",
            "warning",
            "Proxmox VE: {{ $value }} guests are in no backup job",
            "pve_not_backed_up_info names them.",
            (f'pve_not_backed_up_total{{job="{JOB}"}}',),
        ),
        Rule(
            "ProxmoxCertificateEnds",
            f'probe_ssl_earliest_cert_expiry{{job="{TLS_JOB}"}} - time() < {certificate_warn_days * 86400}',
            "1h",
            "warning",
            "Proxmox VE: the certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}",
            "`pvecm updatecerts` renews the cluster's own; ACME certificates renew themselves, or should have.",
            (f'probe_ssl_earliest_cert_expiry{{job="{TLS_JOB}"}}',),
        ),
        Rule(
            "ProxmoxApiUnreachable",
            f'probe_success{{job="{TLS_JOB}"}} == 0',
            "3m",
            "critical",
            "Proxmox VE: nobody answers at {{ $labels.instance }}",
            "Seen from a pod of the cluster: the node, its pveproxy, or the way there.",
            (f'probe_success{{job="{TLS_JOB}"}}',),
        ),
        Rule(
            "ProxmoxCsiPodNotReady",
            f'kube_pod_container_status_ready{{namespace="{csi_namespace}"}} == 0',
            "10m",
            "critical",
            "Storage driver: {{ $labels.container }} of {{ $labels.pod }} is not ready",
            "New volumes are not made, or not mounted on this pod's node.",
            (f'kube_pod_container_status_ready{{namespace="{csi_namespace}"}}',),
            "csi",
        ),
        Rule(
            "ProxmoxCsiRestarts",
            f'increase(kube_pod_container_status_restarts_total{{namespace="{csi_namespace}"}}[1h]) > 3',
            "5m",
            "warning",
            "Storage driver: {{ $labels.container }} of {{ $labels.pod }} restarts again and again",
            "Its log of before the restart tells why: `kubectl logs --previous`.",
            (f'kube_pod_container_status_restarts_total{{namespace="{csi_namespace}"}}',),
            "csi",
        ),
        Rule(
            "ProxmoxCapmoxUnavailable",
            f'kube_deployment_status_replicas_unavailable{{namespace="{capmox_namespace}"}} > 0',
            "10m",
            "critical",
            "Cluster API provider: {{ $labels.deployment }} is not available",
            "Machines are neither made nor replaced nor removed meanwhile.",
            (f'kube_deployment_status_replicas_unavailable{{namespace="{capmox_namespace}"}}',),
            "capmox",
        ),
        Rule(
            "ProxmoxCapmoxRestarts",
            f'increase(kube_pod_container_status_restarts_total{{namespace="{capmox_namespace}"}}[1h]) > 3',
            "5m",
            "warning",
            "Cluster API provider: {{ $labels.pod }} restarts again and again",
            "Its log of before the restart tells why: `kubectl logs --previous`.",
            (f'kube_pod_container_status_restarts_total{{namespace="{capmox_namespace}"}}',),
            "capmox",
        ),
    )
    return [rule for rule in everything if rule.component in wanted]


def of_site(site: Any, components: Iterable[str]) -> list[Rule]:
    """The alerts with the thresholds and namespaces of a site."""
    return rules(
        storage_fail=site.thresholds.storage_fail,
        memory_fail=site.thresholds.memory_fail,
        certificate_warn_days=site.thresholds.certificate_warn_days,
        csi_namespace=site.csi.namespace,
        capmox_namespace=site.capi.namespace,
        components=components,
    )


def groups(given: Iterable[Rule]) -> list[Object]:
    """The rules in their groups, as both operators and Prometheus itself read them."""
    found: dict[str, list[Object]] = {}
    for rule in given:
        found.setdefault(rule.component, []).append(
            {
                "alert": rule.name,
                "expr": rule.expression,
                "for": rule.lasts,
                "labels": {"severity": rule.severity},
                "annotations": {"summary": rule.summary, "description": rule.description},
            }
        )
    prefix = "proxmox"
    return [
        {"name": name if name == prefix else f"{prefix}-{name}", "rules": entries} for name, entries in found.items()
    ]


def manifest(given: Iterable[Rule], *, name: str, namespace: str, api_version: str, kind: str) -> Object:
    """The rules as one VMRule or PrometheusRule."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": {"groups": groups(given)}}


def file(given: Iterable[Rule]) -> str:
    """The rules as the file that `promtool check rules` reads."""
    return str(yaml.safe_dump({"groups": groups(given)}, sort_keys=False, width=1000))
