"""The documents of control plane machines: what `kubeadm init` and `kubeadm join --control-plane` read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

Object = dict[str, Any]
INIT_FILE = "/run/kubeadm/kubeadm.yaml"
NETWORKING = (("dnsDomain", "serviceDomain", None), ("serviceSubnet", "services", ","), ("podSubnet", "pods", ","))


def is_newer(version: str) -> bool:
    """Whether a Kubernetes reads kubeadm's v1beta4, where arguments are lists."""
    parts = version.lstrip("v").split(".")
    return int(parts[1]) >= 31 if len(parts) > 1 and parts[1].isdigit() else True


def arguments(given: Any, *, newer: bool) -> Any:
    """Extra arguments in the shape of that kubeadm: a list of names and values, or a map."""
    if isinstance(given, Mapping) and newer:
        return [{"name": key, "value": value} for key, value in sorted(given.items())]
    if isinstance(given, list) and not newer:
        return {row["name"]: row["value"] for row in given}
    return given


def cluster_configuration(given: Mapping[str, Any], cluster: Mapping[str, Any], version: str) -> Object:
    """The ClusterConfiguration with what the Cluster says filled in where it says nothing itself."""
    newer, spec = is_newer(version), cluster["spec"]
    network = spec.get("clusterNetwork") or {}
    networking = dict(given.get("networking") or {})
    for name, source, joint in NETWORKING:
        value = network.get(source)
        text = joint.join((value or {}).get("cidrBlocks") or ()) if joint else value
        if text and not networking.get(name):
            networking[name] = text
    endpoint = spec.get("controlPlaneEndpoint") or {}
    rest = {key: value for key, value in given.items() if key not in {"apiVersion", "kind"}}
    for part in ("apiServer", "controllerManager", "scheduler"):
        if isinstance(rest.get(part), Mapping) and "extraArgs" in rest[part]:
            rest[part] = {**rest[part], "extraArgs": arguments(rest[part]["extraArgs"], newer=newer)}
    return {
        **rest,
        "apiVersion": f"kubeadm.k8s.io/{'v1beta4' if newer else 'v1beta3'}",
        "kind": "ClusterConfiguration",
        "clusterName": given.get("clusterName") or cluster["metadata"]["name"],
        "controlPlaneEndpoint": given.get("controlPlaneEndpoint") or "{host}:{port}".format(**endpoint),
        "kubernetesVersion": given.get("kubernetesVersion") or version,
        "networking": networking,
    }


def init_configuration(given: Mapping[str, Any], version: str) -> Object:
    """The InitConfiguration in the API version of that Kubernetes."""
    newer = is_newer(version)
    registration = dict(given.get("nodeRegistration") or {})
    if "kubeletExtraArgs" in registration:
        registration["kubeletExtraArgs"] = arguments(registration["kubeletExtraArgs"], newer=newer)
    return {
        **{key: value for key, value in given.items() if key not in {"apiVersion", "kind"}},
        "apiVersion": f"kubeadm.k8s.io/{'v1beta4' if newer else 'v1beta3'}",
        "kind": "InitConfiguration",
        "localAPIEndpoint": dict(given.get("localAPIEndpoint") or {}),
        "nodeRegistration": {"imagePullPolicy": "IfNotPresent", **registration},
    }


def init_file(spec: Mapping[str, Any], cluster: Mapping[str, Any], version: str) -> Object:
    """The row of `write_files` with what `kubeadm init` reads on the first machine."""
    rows = (
        cluster_configuration(spec.get("clusterConfiguration") or {}, cluster, version),
        init_configuration(spec.get("initConfiguration") or {}, version),
    )
    text = "".join(f"---\n{yaml.safe_dump(row, sort_keys=True)}" for row in rows)
    return {"path": INIT_FILE, "owner": "root:root", "permissions": "0640", "content": text}
