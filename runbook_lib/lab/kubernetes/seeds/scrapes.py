"""What the cluster's collector is told to scrape: nodes, containers, objects, the control plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .objects import Object, Times, thing

_GROUP = "operator.victoriametrics.com/v1beta1"
_SPACE = "cozy-monitoring"
_CREDENTIALS = {
    "bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "tlsConfig": {"caFile": "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "insecureSkipVerify": True},
}
_NODE = {"scheme": "https", "honorLabels": True, "interval": "30s", "scrapeTimeout": "5s", **_CREDENTIALS}
_PATH = {"sourceLabels": ["__metrics_path__"], "targetLabel": "metrics_path"}


def _node_scrape(job: str, path: str) -> dict[str, Any]:
    return {**_NODE, "path": path, "relabelConfigs": [_PATH, {"replacement": job, "targetLabel": "job"}]}


_NODES: Mapping[str, Mapping[str, Any]] = {
    "victoria-metrics-operator-kubelet": _node_scrape("kubelet", "/metrics"),
    "victoria-metrics-operator-cadvisor": _node_scrape("cadvisor", "/metrics/cadvisor"),
}


def _service_scrape(job: str, space: str, selector: Mapping[str, Any], port: str, **more: Any) -> dict[str, Any]:
    rules = [{"replacement": job, "targetLabel": "job"}]
    endpoint = {"port": port, "relabelConfigs": [*more.pop("rules", ()), *rules], **more}
    return {
        "namespaceSelector": {"matchNames": [space]},
        "selector": {"matchLabels": dict(selector)},
        "endpoints": [endpoint],
    }


_TO_NODE = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}
_NAME = "app.kubernetes.io/name"
_SERVICES: Mapping[str, Mapping[str, Any]] = {
    "kube-state-metrics": _service_scrape(
        "kube-state-metrics", _SPACE, {_NAME: "kube-state-metrics"}, "http", honorLabels=True
    ),
    "node-exporter": _service_scrape(
        "node-exporter", _SPACE, {_NAME: "prometheus-node-exporter"}, "http", rules=[_TO_NODE]
    ),
    "kube-apiserver": _service_scrape("apiserver", "default", {"component": "apiserver"}, "https", scheme="https"),
    "etcd": _service_scrape("etcd", "tenant-root", {_NAME: "etcd"}, "http", targetPort=2379),
}


def scrapes(times: Times) -> list[Object]:
    """VMNodeScrape and VMServiceScrape objects as their operator has settled them."""
    rows = [("VMNodeScrape", name, spec) for name, spec in _NODES.items()]
    rows += [("VMServiceScrape", name, spec) for name, spec in _SERVICES.items()]
    return [
        thing(
            _GROUP,
            kind,
            name,
            _SPACE,
            created=times.born,
            generation=1,
            spec=dict(spec),
            status={"updateStatus": "operational", "observedGeneration": 1},
        )
        for kind, name, spec in rows
    ]
