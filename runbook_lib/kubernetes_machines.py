"""Machines as Cluster API and CAPMOX tell them, in rows that are the same for both generations; the tenant's nodes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import yaml

from runbook_lib import errors, secrets, wire
from runbook_lib.facts import (
    AddressClaim,
    AddressPool,
    Condition,
    Machine,
    MachineApis,
    MachineGroup,
    ProxmoxHome,
    ProxmoxMachine,
    TenantNode,
)
from runbook_lib.kubernetes_reading import Object, Reader
from runbook_lib.kubernetes_session import Kubernetes

CORE, INFRASTRUCTURE = "cluster.x-k8s.io", "infrastructure.cluster.x-k8s.io"
BOOTSTRAP, CONTROL_PLANE = "bootstrap.cluster.x-k8s.io", "controlplane.cluster.x-k8s.io"
IPAM = "ipam.cluster.x-k8s.io"
CLUSTER_LABEL, DEPLOYMENT_LABEL = "cluster.x-k8s.io/cluster-name", "cluster.x-k8s.io/deployment-name"

KINDS: Mapping[str, str] = {
    "Cluster": CORE,
    "Machine": CORE,
    "MachineDeployment": CORE,
    "MachineHealthCheck": CORE,
    "ProxmoxCluster": INFRASTRUCTURE,
    "ProxmoxMachine": INFRASTRUCTURE,
    "ProxmoxMachineTemplate": INFRASTRUCTURE,
    "KubeadmConfigTemplate": BOOTSTRAP,
    "TalosConfigTemplate": BOOTSTRAP,
    "KamajiControlPlane": CONTROL_PLANE,
    "KubeadmControlPlane": CONTROL_PLANE,
    "IPAddressClaim": IPAM,
    "IPAddress": IPAM,
    "InClusterIPPool": IPAM,
    "GlobalInClusterIPPool": IPAM,
}
"""What machines are made of, with the API group each belongs to."""

_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?$")


def machine_apis(k8s: Reader) -> MachineApis:
    """Which versions of each kind the cluster serves, asked of its discovery and not of any version table."""
    served: dict[str, list[str]] = {}
    for group in dict.fromkeys(KINDS.values()):
        found = k8s.find(f"/apis/{group}") or {}
        for version in sorted((row["version"] for row in found.get("versions") or ()), key=_age):
            for entry in k8s.resources(f"/apis/{group}/{version}"):
                if KINDS.get(entry["kind"]) == group:
                    served.setdefault(entry["kind"], []).append(version)
    return MachineApis({kind: tuple(versions) for kind, versions in served.items()})


def _age(version: str) -> tuple[int, int, int]:
    """Sorts the newest first, as the API server itself does: v1 before v1beta2 before v1beta1 before v1alpha1."""
    found = _VERSION.match(version)
    if not found:
        return (3, 0, 0)
    stage = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (stage, -int(found[1]), -int(found[3] or 0))


def machines(k8s: Reader, apis: MachineApis, namespace: str = "") -> list[Machine]:
    """Every Machine, by namespace and name."""
    return [_machine(item) for item in _items(k8s, apis, "Machine", "machines", namespace, apis.core)]


def proxmox_machines(k8s: Reader, apis: MachineApis, namespace: str = "") -> list[ProxmoxMachine]:
    """Every ProxmoxMachine, by namespace and name."""
    rows = _items(k8s, apis, "ProxmoxMachine", "proxmoxmachines", namespace)
    return [_proxmox_machine(item, apis.generation) for item in rows]


def proxmox_homes(k8s: Reader, apis: MachineApis, namespace: str = "") -> list[ProxmoxHome]:
    """Every ProxmoxCluster, by namespace and name."""
    return [_home(item) for item in _items(k8s, apis, "ProxmoxCluster", "proxmoxclusters", namespace)]


def machine_groups(k8s: Reader, apis: MachineApis, namespace: str = "") -> list[MachineGroup]:
    """Every MachineDeployment, by namespace and name."""
    rows = _items(k8s, apis, "MachineDeployment", "machinedeployments", namespace, apis.core)
    return [_group(item) for item in rows]


def address_pools(k8s: Reader, apis: MachineApis) -> list[AddressPool]:
    """Every pool of addresses, those of a namespace and the global ones."""
    found = []
    for kind, plural in (("InClusterIPPool", "inclusterippools"), ("GlobalInClusterIPPool", "globalinclusterippools")):
        found += [_pool(item) for item in _items(k8s, apis, kind, plural, "")]
    return found


def address_claims(k8s: Reader, apis: MachineApis, namespace: str = "") -> list[AddressClaim]:
    """Every claim with the address that answers it; an address without a claim comes with the claim it names."""
    version = apis.core if apis.core in apis.served.get("IPAddressClaim", ()) else apis.version("IPAddressClaim")
    given = {
        (row["metadata"]["namespace"], _named(row["spec"].get("claimRef"))): row
        for row in _items(k8s, apis, "IPAddress", "ipaddresses", namespace, version)
    }
    rows = []
    for item in _items(k8s, apis, "IPAddressClaim", "ipaddressclaims", namespace, version):
        meta = item["metadata"]
        answer = given.pop((meta["namespace"], meta["name"]), None)
        told = [row for row in conditions_of(item) if row.status == "False"]
        rows.append(
            AddressClaim(
                meta["namespace"],
                meta["name"],
                owner_of(item, "ProxmoxMachine"),
                _named((item.get("spec") or {}).get("poolRef")),
                str(((answer or {}).get("spec") or {}).get("address") or ""),
                epoch(meta.get("creationTimestamp")) or 0,
                "; ".join(row.message or row.reason for row in told),
            )
        )
    for (space, claim), item in given.items():
        spec = item["spec"]
        rows.append(AddressClaim(space, claim, "", _named(spec.get("poolRef")), str(spec.get("address") or "")))
    return rows


# --- the cluster that machines join --------------------------------------------------------------------


def tenant(k8s: Reader, namespace: str, cluster: str, *, timeout: float = 30.0) -> Kubernetes:
    """The API of a workload cluster by the kubeconfig that Cluster API keeps in the Secret `<cluster>-kubeconfig`.

    Raises NotFound while there is no such Secret.
    """
    from kubernetes import client, config

    found = k8s.get(f"/api/v1/namespaces/{namespace}/secrets/{cluster}-kubeconfig")
    text = base64.b64decode((found.get("data") or {}).get("value") or "").decode()
    secrets.register_kubeconfig_text(text)
    configuration = client.Configuration()
    try:
        config.load_kube_config_from_dict(
            yaml.safe_load(text) or {}, client_configuration=configuration, persist_config=False
        )
    except (config.ConfigException, ValueError, yaml.YAMLError) as error:
        raise errors.BadAnswer(f"the kubeconfig of {namespace}/{cluster}", str(error).partition("\n")[0]) from error
    configuration.retries = False  # the wire retries, and only reads
    kube_wire = wire.Wire("kubernetes", retries=0, timeout=timeout)
    api_client = client.ApiClient(configuration)
    wire.attach_kubernetes(kube_wire, api_client)
    return Kubernetes(api_client, kube_wire, timeout=timeout, identity=f"{namespace}/{cluster}")


def tenant_nodes(k8s: Reader, cluster: str) -> list[TenantNode]:
    """The Nodes of a workload cluster, whose reader `tenant` gives; `cluster` is "namespace/name"."""
    return [_node(item, cluster) for item in k8s.list("/api/v1/nodes")]


def _node(item: Object, cluster: str) -> TenantNode:
    ready = next((row for row in conditions_of(item) if row.type == "Ready"), Condition("Ready", "Unknown"))
    meta = item["metadata"]
    rows = (item.get("status") or {}).get("addresses") or ()
    return TenantNode(
        cluster,
        meta["name"],
        str((item.get("spec") or {}).get("providerID") or ""),
        ready.status,
        ready.reason,
        ready.message,
        epoch(meta.get("creationTimestamp")) or 0,
        tuple(row["address"] for row in rows if row.get("type") == "InternalIP"),
    )


# --- objects to rows -----------------------------------------------------------------------------------


def _items(k8s: Reader, apis: MachineApis, kind: str, plural: str, namespace: str, version: str = "") -> list[Object]:
    version = version or apis.version(kind)
    if not version or version not in apis.served.get(kind, ()):
        return []
    where = f"/namespaces/{namespace}" if namespace else ""
    found = k8s.list(f"/apis/{KINDS[kind]}/{version}{where}/{plural}")
    return sorted(found, key=lambda item: (item["metadata"].get("namespace", ""), item["metadata"]["name"]))


def conditions_of(item: Mapping[str, Any]) -> list[Condition]:
    """The conditions of an object in whichever block its generation keeps them, each type once, the current first."""
    status = item.get("status") or {}
    blocks = (status, status.get("v1beta2") or {}, (status.get("deprecated") or {}).get("v1beta1") or {})
    found: dict[str, Condition] = {}
    for block in blocks:
        for row in block.get("conditions") or ():
            found.setdefault(
                row["type"],
                Condition(
                    row["type"],
                    str(row.get("status", "Unknown")),
                    str(row.get("reason") or ""),
                    str(row.get("message") or ""),
                    str(row.get("severity") or ""),
                    epoch(row.get("lastTransitionTime")),
                ),
            )
    return list(found.values())


def owner_of(item: Mapping[str, Any], kind: str) -> str:
    """The name of the owner of that kind, empty where there is none."""
    rows = item["metadata"].get("ownerReferences") or ()
    return next((str(row["name"]) for row in rows if row.get("kind") == kind), "")


def epoch(text: Any) -> int | None:
    """Seconds since the epoch of a Kubernetes time."""
    return int(datetime.fromisoformat(str(text)).timestamp()) if text else None


def _named(reference: Any) -> str:
    return str((reference or {}).get("name") or "")


def _kind_and_name(reference: Any) -> str:
    given = reference or {}
    return f"{given['kind']}/{given['name']}" if given.get("name") else ""


def _machine(item: Object) -> Machine:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    labels, bootstrap = meta.get("labels") or {}, spec.get("bootstrap") or {}
    old = (status.get("deprecated") or {}).get("v1beta1") or {}
    failure = [str(block.get(key)) for block in (status, old) for key in ("failureReason", "failureMessage")
               if block.get(key)]  # fmt: skip
    return Machine(
        meta["namespace"],
        meta["name"],
        meta.get("uid", ""),
        str(spec.get("clusterName") or labels.get(CLUSTER_LABEL) or ""),
        str(labels.get(DEPLOYMENT_LABEL) or ""),
        str(status.get("phase") or ""),
        epoch(meta.get("creationTimestamp")) or 0,
        "deletionTimestamp" in meta,
        str(spec.get("version") or ""),
        str(bootstrap.get("dataSecretName") or ""),
        _kind_and_name(bootstrap.get("configRef")),
        _kind_and_name(spec.get("infrastructureRef")),
        str(spec.get("providerID") or ""),
        _named(status.get("nodeRef")),
        ": ".join(failure[:2]),
        tuple(conditions_of(item)),
    )


_PROVISIONED = ("VirtualMachineProvisioned", "VMProvisioned")
_AVAILABLE = ("ProxmoxAvailable", "ClusterReady")


def _own_condition(item: Object, types: Iterable[str]) -> Condition:
    rows = {row.type: row for row in conditions_of(item)}
    return next((rows[name] for name in (*types, "Ready") if name in rows), Condition("", ""))


def _is_ready(status: Mapping[str, Any]) -> bool:
    return bool(status.get("ready") or (status.get("initialization") or {}).get("provisioned"))


def _proxmox_machine(item: Object, generation: str) -> ProxmoxMachine:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    told = _own_condition(item, _PROVISIONED)
    span = spec.get("vmIDRange") or {}
    failure = [str(status[key]) for key in ("failureReason", "failureMessage") if status.get(key)]
    if told.reason == "VMProvisionFailed" and not failure:
        failure = [told.reason, told.message]
    vmid = spec.get("virtualMachineID")
    return ProxmoxMachine(
        meta["namespace"],
        meta["name"],
        meta.get("uid", ""),
        owner_of(item, "Machine"),
        str((meta.get("labels") or {}).get(CLUSTER_LABEL) or ""),
        epoch(meta.get("creationTimestamp")) or 0,
        "deletionTimestamp" in meta,
        generation,
        _is_ready(status),
        int(vmid) if vmid and int(vmid) > 0 else None,
        str(spec.get("providerID") or ""),
        str(status.get("proxmoxNode") or ""),
        str(status.get("taskRef") or ""),
        str(status.get("retryAfter") or ""),
        _addresses(status),
        bool(status.get("bootstrapDataProvided")),
        told.reason,
        told.message,
        told.since,
        ": ".join(part for part in failure if part),
        _template(spec),
        (int(span["start"]), int(span["end"])) if span.get("start") and span.get("end") else None,
        tuple(meta.get("finalizers") or ()),
        bool((spec.get("checks") or {}).get("skipQemuGuestAgent")),
    )


def _addresses(status: Mapping[str, Any]) -> tuple[str, ...]:
    """v1alpha1 keeps a map of networks, v1alpha2 a list with a net "default" besides."""
    given = status.get("ipAddresses") or {}
    rows = given.values() if isinstance(given, Mapping) else given
    found: list[str] = []
    for row in rows:
        for key in ("ipv4", "ipv6"):
            value = row.get(key) or ()
            found += [value] if isinstance(value, str) else list(value)
    return tuple(dict.fromkeys(found))


def _template(spec: Mapping[str, Any]) -> str:
    if spec.get("templateID"):
        return f"{spec['templateID']} on {spec.get('sourceNode') or '?'}"
    tags = (spec.get("templateSelector") or {}).get("matchTags") or ()
    return f"tags {', '.join(tags)}" if tags else ""


def _home(item: Object) -> ProxmoxHome:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    told = _own_condition(item, _AVAILABLE)
    endpoint, credentials = spec.get("controlPlaneEndpoint") or {}, spec.get("credentialsRef") or {}
    configs = [spec.get("ipv4Config"), spec.get("ipv6Config")]
    configs += [row.get(key) for row in spec.get("zoneConfig") or () for key in ("ipv4Config", "ipv6Config")]
    failure = status.get("failureMessage") or ""
    return ProxmoxHome(
        meta["namespace"],
        meta["name"],
        owner_of(item, "Cluster"),
        _is_ready(status),
        told.reason,
        str(failure or told.message),
        tuple(entry for config in configs for entry in (config or {}).get("addresses") or ()),
        tuple(spec.get("allowedNodes") or ()),
        int((spec.get("schedulerHints") or {}).get("memoryAdjustment", 100)),
        f"{endpoint['host']}:{endpoint.get('port')}" if endpoint.get("host") else "",
        _named(credentials) and f"{credentials.get('namespace') or meta['namespace']}/{credentials['name']}",
        bool(spec.get("externalManagedControlPlane")),
    )


def _group(item: Object) -> MachineGroup:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    inner = (spec.get("template") or {}).get("spec") or {}
    return MachineGroup(
        meta["namespace"],
        meta["name"],
        str(spec.get("clusterName") or ""),
        int(spec.get("replicas") or 0),
        int(status.get("replicas") or 0),
        int(status.get("readyReplicas") or 0),
        int(status.get("upToDateReplicas", status.get("updatedReplicas")) or 0),
        _named(inner.get("infrastructureRef")),
        str(status.get("selector") or ""),
    )


def _pool(item: Object) -> AddressPool:
    meta, spec = item["metadata"], item.get("spec") or {}
    counts = (item.get("status") or {}).get("ipAddresses") or {}
    return AddressPool(
        meta.get("namespace", ""),
        meta["name"],
        tuple(spec.get("addresses") or ()),
        owner_of(item, "ProxmoxCluster"),
        counts.get("total"),
        counts.get("used"),
        counts.get("free"),
    )
