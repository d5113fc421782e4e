"""Address ranges and connections: which ranges are in use, and what can be reached from where."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from runbook_lib.facts import Interface, NetworkRange, Reach
from runbook_lib.kubernetes_platform import PLATFORM_PACKAGE, SYSTEM
from runbook_lib.kubernetes_reading import Object, Reader

RUN_LABEL = "runbook.cozystack.io/run"
LAN = "lan"
DEFAULT_VPC = {"", "ovn-cluster"}
PROBE_SECONDS = 3
OUTCOMES = {"TIMEOUT": "timeout", "REFUSED": "refused", "DNS": "dns"}


def network_ranges(k8s: Reader, site: Any, interfaces: Iterable[Interface] = ()) -> list[NetworkRange]:
    """Every range that must not meet one of another kind: pods, services, join, Proxmox LAN, machine pool.

    What the site's parameters say goes before what the cluster says. Of the cluster every witness counts: the
    platform's Package, the ConfigMap of v0, Kube-OVN's Subnets, ServiceCIDRs, and the nodes' own pod ranges, of which
    only what lies outside of the others is told. The machine pool lies in the LAN on purpose, so both are of one kind.
    """
    networks = site.networks
    told: list[NetworkRange] = []
    for name in ("pods", "services", "join"):
        given = _listed(getattr(networks, name, None))
        told += [NetworkRange(name, cidr, "parameters", name) for cidr in given]
    settled = {entry.name for entry in told}
    told += [entry for entry in _cluster_ranges(k8s) if entry.name not in settled]
    if "pods" not in settled:
        told += [entry for entry in _node_ranges(k8s) if not _inside(entry.cidr, told)]
    lan = _listed(networks.proxmox_lan)
    told += [NetworkRange("Proxmox LAN", cidr, "parameters", LAN) for cidr in lan]
    if not lan:
        told += _lan(interfaces)
    told += [NetworkRange("machine pool", entry, "parameters", LAN) for entry in _listed(networks.machine_pool)]
    return _merged(told)


def _listed(value: Any) -> list[str]:
    if not value:
        return []
    return [str(value)] if isinstance(value, str) else [str(entry) for entry in value]


def _cluster_ranges(k8s: Reader) -> Iterator[NetworkRange]:
    package = k8s.find(f"/apis/cozystack.io/v1alpha1/packages/{PLATFORM_PACKAGE}") or {}
    platform = ((package.get("spec") or {}).get("components") or {}).get("platform") or {}
    networking = (platform.get("values") or {}).get("networking") or {}
    config = (k8s.find(f"/api/v1/namespaces/{SYSTEM}/configmaps/cozystack") or {}).get("data") or {}
    for name, key, old in (
        ("pods", "podCIDR", "ipv4-pod-cidr"),
        ("services", "serviceCIDR", "ipv4-svc-cidr"),
        ("join", "joinCIDR", "ipv4-join-cidr"),
    ):
        for cidr in _split(networking.get(key)):
            yield NetworkRange(name, cidr, f"Package {PLATFORM_PACKAGE}", name)
        for cidr in _split(config.get(old)):
            yield NetworkRange(name, cidr, f"ConfigMap {SYSTEM}/cozystack", name)
    for entry in k8s.list("/apis/kubeovn.io/v1/subnets"):
        spec, name = entry.get("spec") or {}, entry["metadata"]["name"]
        if (spec.get("vpc") or "") in DEFAULT_VPC:
            kind = "join" if name == "join" else "pods"
            for cidr in _split(spec.get("cidrBlock")):
                yield NetworkRange(kind, cidr, f"Subnet {name}", kind)
    for entry in k8s.list("/apis/networking.k8s.io/v1/servicecidrs"):
        for cidr in (entry.get("spec") or {}).get("cidrs") or []:
            yield NetworkRange("services", cidr, f"ServiceCIDR {entry['metadata']['name']}", "services")


def _node_ranges(k8s: Reader) -> Iterator[NetworkRange]:
    for entry in k8s.list("/api/v1/nodes"):
        spec, name = entry.get("spec") or {}, entry["metadata"]["name"]
        for cidr in spec.get("podCIDRs") or _split(spec.get("podCIDR")):
            yield NetworkRange("pods", cidr, f"Node {name}", "pods")


def _lan(interfaces: Iterable[Interface]) -> Iterator[NetworkRange]:
    for entry in interfaces:
        for cidr in filter(None, (entry.cidr, entry.cidr6)):
            network = ipaddress.ip_interface(cidr).network
            if not network.is_link_local and not network.is_loopback:
                yield NetworkRange("Proxmox LAN", str(network), f"{entry.node}/{entry.name}", LAN)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _inside(cidr: str, ranges: Iterable[NetworkRange]) -> bool:
    network: Any = ipaddress.ip_network(cidr, strict=False)
    known = (ipaddress.ip_network(entry.cidr, strict=False) for entry in ranges if entry.name == "pods")
    return any(network.version == other.version and network.subnet_of(other) for other in known)


def _merged(ranges: Iterable[NetworkRange]) -> list[NetworkRange]:
    """One row per name and range, its owners together, in the order they were met."""
    owners: dict[tuple[str, str, str], list[str]] = {}
    for entry in ranges:
        owners.setdefault((entry.name, entry.cidr, entry.kind), []).append(entry.owner)
    return [
        NetworkRange(name, cidr, ", ".join(dict.fromkeys(found)), kind) for (name, cidr, kind), found in owners.items()
    ]


def reach(host: str, port: int, timeout: float = 3.0) -> Reach:
    """How a TCP connection from this machine to host and port ends."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    started = time.perf_counter()
    outcome, note = "connected", ""
    try:
        socket.create_connection((host, port), timeout=timeout).close()
    except TimeoutError as error:
        outcome, note = "timeout", str(error)
    except ConnectionRefusedError as error:
        outcome, note = "refused", str(error)
    except socket.gaierror as error:
        outcome, note = "dns", str(error)
    except OSError as error:  # no route, network unreachable: nothing will come back
        outcome, note = "timeout", str(error)
    return Reach("this machine", target, outcome, time.perf_counter() - started, note)


def reach_endpoints(site: Any, timeout: float = 3.0) -> list[Reach]:
    """How a TCP connection from this machine to each of the site's two APIs ends."""
    rows = []
    for name, url in (("Proxmox VE", site.proxmox.url), ("Kubernetes", _api_server(site))):
        parts = urlsplit(url)
        if not parts.hostname:
            rows.append(Reach("this machine", name, "not tried", note=f"the site names no address of {name}"))
            continue
        found = reach(parts.hostname, parts.port or 443, timeout)
        rows.append(replace(found, target=f"{name} {found.target}"))
    return rows


def _api_server(site: Any) -> str:
    """The API server's address: the site's own word, else its kubeconfig's."""
    if site.kubernetes.url or not site.kubernetes.kubeconfig:
        return site.kubernetes.url or ""
    from kubernetes import client
    from kubernetes.config import load_kube_config

    configuration = client.Configuration()
    load_kube_config(
        site.kubernetes.kubeconfig,
        site.kubernetes.context,
        client_configuration=configuration,
        persist_config=False,
    )
    return str(configuration.host)


def probe_manifest(site: Any, run: str, node: str, target_host: str, target_port: int) -> Object:
    """A pod that tries one TCP connection from one node and ends; it passes the `restricted` Pod Security level."""
    target = f"[{target_host}]:{target_port}" if ":" in target_host else f"{target_host}:{target_port}"
    tail = hashlib.sha256(f"{run} {node} {target}".encode()).hexdigest()[:10]
    small = {"cpu": "10m", "memory": "16Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{_name(site.names.prefix)}-probe-{tail}",
            "namespace": site.names.namespace,
            "labels": {RUN_LABEL: run, "app.kubernetes.io/name": "runbook-probe"},
            "annotations": {"runbook.cozystack.io/target": target},
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 180,  # pulling the image counts
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": site.images.probe,
                    "imagePullPolicy": site.images.pull_policy or "IfNotPresent",
                    "args": ["connect", target, f"--timeout={PROBE_SECONDS}s", "--protocol=tcp"],
                    "resources": {"requests": dict(small), "limits": {"cpu": "100m", "memory": "64Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-") or "runbook"


def probe_outcome(pod: Mapping[str, Any], log: str) -> Reach:
    """How the connection of a probe pod ended, by its log; "not tried" with the reason while it has not run."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    source = f"pod on {spec.get('nodeName', 'no node')}"
    args = spec["containers"][0].get("args") or ["", ""]
    target, phase = args[1], status.get("phase", "Unknown")
    word = log.strip().partition("\n")[0].partition(" ")[0].rstrip(":")
    if phase == "Succeeded" and not word:
        return Reach(source, target, "connected")
    if phase in {"Succeeded", "Failed"} and word in OUTCOMES:
        return Reach(source, target, OUTCOMES[word])
    if phase in {"Succeeded", "Failed"} and word == "OTHER":  # no route and its like: nothing comes back
        return Reach(source, target, "timeout", note=log.strip())
    waiting = [(entry.get("state") or {}).get("waiting") or {} for entry in status.get("containerStatuses") or []]
    reasons = [entry.get("reason", "") for entry in waiting] + [status.get("reason", ""), log.strip()]
    return Reach(source, target, "not tried", note=next(filter(None, reasons), f"the pod is {phase}"))
