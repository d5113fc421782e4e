"""prometheus-pve-exporter on Kubernetes: its objects, and who scrapes it how.

The token is in the Secret alone, which is filled when it is sent, from a reference. One job asks one node about the
cluster; another asks each node about itself: asked of every node, the cluster's series would come once a node. Until
when the certificates hold is told by a blackbox exporter beside it, for this one does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from runbook_lib.alerts import JOB, NODE_JOB, OWN_JOB, TLS_JOB
from runbook_lib.facts import Cluster

Object = dict[str, Any]

NAME = "prometheus-pve-exporter"
PORT, PROBE_PORT = 9221, 9115
PROBES, PROBE_FOLDER, PROBE_KEY, PROBE = "blackbox", "/etc/blackbox_exporter", "config.yml", "proxmox_tls"
CONFIG_KEY = "pve.yml"
CONFIG_FOLDER, TRUST_FOLDER = "/etc/prometheus", "/etc/proxmox-ca"
AUTHORITY = "proxmox-ca"
LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "runbook"}
USER = 101
"""Who the image runs as."""


def config(token_id: str, *, verify: bool) -> str:
    """The text of pve.yml with {secret} in the place of the token's value."""
    user, _, token = token_id.partition("!")
    return (
        f'default:\n  user: "{user}"\n  token_name: "{token}"\n  token_value: "{{secret}}"\n'
        f"  verify_ssl: {'true' if verify else 'false'}\n  timeout: 20\n"
    )


def address(url: str) -> str:
    """What the exporter calls the API's address: host, with the port where it is not the usual one."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port or 8006
    return host if port == 8006 else f"{host}:{port}"


def node_addresses(site: Any, cluster: Cluster) -> tuple[str, ...]:
    """Where each node is asked about itself: at the members' own addresses, where pveproxy listens on 8006 alone.

    Where the cluster tells no addresses, the site's URL is all that is known.
    """
    if site.monitoring.targets:
        return tuple(site.monitoring.targets)
    members = tuple(str(row.ip) for row in cluster.members if row.ip)
    return members or (address(str(site.proxmox.url)),)


def namespace(name: str) -> Object:
    """The namespace; what runs in it needs no rights on the node."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": levels}}


def secret(space: str) -> Object:
    """The Secret without its data, which is filled in when it is sent."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": NAME, "namespace": space, "labels": LABELS},
        "type": "Opaque",
    }


def authority(space: str, pem: str) -> Object:
    """The site's CA, so that the exporter verifies whom it gives the token to."""
    metadata = {"name": AUTHORITY, "namespace": space, "labels": LABELS}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": pem}}


def probes(space: str) -> Object:
    """How the blackbox exporter knocks: by TLS, whoever signed, so that it tells of bad certificates too."""
    module = (
        f"modules:\n  {PROBE}:\n    prober: tcp\n    timeout: 5s\n    tcp:\n      tls: true\n"
        "      tls_config:\n        insecure_skip_verify: true\n"
    )
    metadata = {"name": PROBES, "namespace": space, "labels": LABELS}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {PROBE_KEY: module}}


def deployment(space: str, image: str, blackbox: str, *, trust: bool, pull_policy: str = "IfNotPresent") -> Object:
    """The exporter: one pod without any right, on the node or in the cluster."""
    mounts: list[Object] = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # gunicorn's heartbeat
    ]
    volumes: list[Object] = [
        {"name": "config", "secret": {"secretName": NAME, "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {}},
        {"name": PROBES, "configMap": {"name": PROBES}},
    ]
    container: Object = {
        "name": "exporter",
        "image": image,
        "imagePullPolicy": pull_policy,
        "args": [f"--config.file={CONFIG_FOLDER}/{CONFIG_KEY}"],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if trust:
        container["env"] = [{"name": "REQUESTS_CA_BUNDLE", "value": f"{TRUST_FOLDER}/ca.crt"}]
        mounts.append({"name": "ca", "mountPath": TRUST_FOLDER, "readOnly": True})
        volumes.append({"name": "ca", "configMap": {"name": AUTHORITY}})
    knocks: Object = {
        "name": PROBES,
        "image": blackbox,
        "imagePullPolicy": pull_policy,
        "args": [f"--config.file={PROBE_FOLDER}/{PROBE_KEY}"],
        "ports": [{"name": "probe", "containerPort": PROBE_PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"path": "/-/healthy", "port": "probe"}, "periodSeconds": 10},
        "securityContext": container["securityContext"],
        "volumeMounts": [{"name": PROBES, "mountPath": PROBE_FOLDER, "readOnly": True}],
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        "containers": [container, knocks],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": space, "labels": LABELS},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": pod},
        },
    }


def service(space: str) -> Object:
    """What the collector finds the exporter by."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": space, "labels": LABELS},
        "spec": {
            "selector": LABELS,
            "ports": [
                {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"},
                {"name": "probe", "port": PROBE_PORT, "targetPort": "probe", "protocol": "TCP"},
            ],
        },
    }


def scrape(
    space: str, cluster_target: str, node_targets: Sequence[str], *, api_version: str, kind: str, interval: int = 30
) -> Object:
    """Who is asked for what: a VMServiceScrape, or a ServiceMonitor, which spells its rules otherwise."""
    rules = "relabelConfigs" if kind == "VMServiceScrape" else "relabelings"
    often = {"interval": f"{interval}s", "scrapeTimeout": f"{max(5, interval - 5)}s"}

    def endpoint(job: str, target: str, *, cluster: bool) -> Object:
        asked = {"module": ["default"], "target": [target]}
        asked |= {"cluster": [str(int(cluster))], "node": [str(int(not cluster))]}
        relabelled = [
            {"sourceLabels": ["__param_target"], "targetLabel": "instance"},
            {"targetLabel": "job", "replacement": job},
        ]
        return {"port": "http", "path": "/pve", "params": asked, **often, rules: relabelled}

    endpoints = [endpoint(JOB, cluster_target, cluster=True)]
    endpoints += [endpoint(NODE_JOB, target, cluster=False) for target in node_targets]
    to_instance = {"sourceLabels": ["__param_target"], "targetLabel": "instance"}
    for target in node_targets:
        asked = {"module": [PROBE], "target": [target if ":" in target else f"{target}:8006"]}
        relabelled = [to_instance, {"targetLabel": "job", "replacement": TLS_JOB}]
        endpoints.append({"port": "probe", "path": "/probe", "params": asked, **often, rules: relabelled})
    own = [{"targetLabel": "job", "replacement": OWN_JOB}]
    endpoints.append({"port": "http", "path": "/metrics", **often, rules: own})
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": NAME, "namespace": space, "labels": LABELS},
        "spec": {"selector": {"matchLabels": LABELS}, "endpoints": endpoints},
    }
