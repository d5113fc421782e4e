"""The two generations of CAPMOX: 0.7 with v1alpha1 and Cluster API v1beta1, 0.8 and later with v1alpha2 and v1beta2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

GROUP = "infrastructure.cluster.x-k8s.io"
CLUSTER_FINALIZER = "proxmoxcluster.infrastructure.cluster.x-k8s.io"
MACHINE_FINALIZER = "proxmoxmachine.infrastructure.cluster.x-k8s.io"
SECRET_FINALIZER = "proxmoxcluster.infrastructure.cluster.x-k8s.io/secret"
CLUSTER_LABEL = "cluster.x-k8s.io/cluster-name"
ZONE_LABEL = "topology.kubernetes.io/proxmox-zone"
ANNOTATION = "ipam.capmox.cluster.x-k8s.io"


@dataclass(frozen=True)
class Era:
    """One generation: its API versions and how it tells the state of its objects."""

    old: bool
    version: str
    contract: str
    machine: str  # the machine's one condition
    cluster: str  # the cluster's one condition

    def path(self, plural: str, namespace: str = "", name: str = "") -> str:
        """Where the provider's own objects are."""
        return _path(f"/apis/{GROUP}/{self.version}", plural, namespace, name)

    def core(self, plural: str, namespace: str = "", name: str = "") -> str:
        """Where the objects of Cluster API are."""
        return _path(f"/apis/cluster.x-k8s.io/{self.contract}", plural, namespace, name)

    def ipam(self, plural: str, namespace: str = "", name: str = "") -> str:
        """Where claims and addresses are."""
        return _path(f"/apis/ipam.cluster.x-k8s.io/{self.contract}", plural, namespace, name)


OLD = Era(True, "v1alpha1", "v1beta1", "VMProvisioned", "ClusterReady")
NEW = Era(False, "v1alpha2", "v1beta2", "VirtualMachineProvisioned", "ProxmoxAvailable")


def era_of(tag: str) -> Era:
    """The generation of an image tag; one that is no version is taken for the newest."""
    match = re.match(r"v?(\d+)\.(\d+)", tag)
    return OLD if match and (int(match[1]), int(match[2])) < (0, 8) else NEW


def _path(head: str, plural: str, namespace: str, name: str) -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{head}{where}/{plural}" + (f"/{name}" if name else "")


def pools(namespace: str = "", name: str = "", *, plural: str = "inclusterippools") -> str:
    """Where pools of addresses are."""
    return _path("/apis/ipam.cluster.x-k8s.io/v1alpha2", plural, namespace, name)


# -- conditions ---------------------------------------------------------------------------------------


def condition(item: Mapping[str, Any], kind: str) -> Json:
    """The condition of that type; empty when there is none."""
    return next((dict(row) for row in item.get("status", {}).get("conditions") or () if row["type"] == kind), {})


def mark(
    era: Era, item: Json, kind: str, state: bool, reason: str, at: str, *, severity: str = "", message: str = ""
) -> None:
    """Nothing; the object has the condition, and Ready sums it up. The time moves only when the state does."""
    for name in (kind, "Ready"):
        _set(era, item, name, state, reason, at, severity, message)


def _set(era: Era, item: Json, kind: str, state: bool, reason: str, at: str, severity: str, message: str) -> None:
    rows = item.setdefault("status", {}).setdefault("conditions", [])
    old = condition(item, kind)
    row: Json = {"type": kind, "status": str(state)}
    if era.old:
        if not state:
            row |= {"reason": reason, "severity": severity or "Info"}
        if message:
            row["message"] = message
        same = {key: value for key, value in old.items() if key != "lastTransitionTime"} == row
    else:
        row |= {"reason": reason, "message": message}
        row["observedGeneration"] = item["metadata"].get("generation", 1)
        same = old.get("status") == row["status"]
    row["lastTransitionTime"] = old["lastTransitionTime"] if same and old else at
    rest = [entry for entry in rows if entry["type"] != kind]
    item["status"]["conditions"] = sorted([*rest, row], key=lambda entry: (entry["type"] != "Ready", entry["type"]))


def reason_of(era: Era, item: Mapping[str, Any]) -> str:
    """The reason of the machine's condition: for 0.8 and later the variable of its state machine."""
    return str(condition(item, era.machine).get("reason", ""))


# -- readiness of Cluster API's objects ----------------------------------------------------------------


def infrastructure_ready(era: Era, cluster: Mapping[str, Any]) -> bool:
    """Whether Cluster API has seen the cluster's infrastructure."""
    status = cluster.get("status") or {}
    if era.old:
        return bool(status.get("infrastructureReady"))
    return bool((status.get("initialization") or {}).get("infrastructureProvisioned"))


def may_unmount(era: Era, machine: Mapping[str, Any]) -> bool:
    """Whether the machine is so far that its bootstrap image is not needed any more."""
    status = machine.get("status") or {}
    if not (status.get("nodeRef") or {}).get("name"):
        return False
    if era.old:
        return bool(status.get("bootstrapReady"))
    return condition(machine, "Available").get("status") == "True"


def is_ready(era: Era, item: Mapping[str, Any]) -> bool:
    """Whether the object was once told to be provisioned."""
    status = item.get("status") or {}
    return bool(status.get("ready") if era.old else (status.get("initialization") or {}).get("provisioned"))


def set_ready(era: Era, item: Json) -> None:
    """Nothing; the object says that it is provisioned."""
    status = item.setdefault("status", {})
    if era.old:
        status["ready"] = True
    else:
        status.setdefault("initialization", {})["provisioned"] = True


def has_failed(era: Era, machine: Mapping[str, Any]) -> bool:
    """Whether the machine is given up for good."""
    if era.old:
        status = machine.get("status") or {}
        return bool(status.get("failureReason") or status.get("failureMessage"))
    return reason_of(era, machine) == "VMProvisionFailed"


def paused(cluster: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Whether nobody may touch the object."""
    if (cluster.get("spec") or {}).get("paused"):
        return True
    return "cluster.x-k8s.io/paused" in (item["metadata"].get("annotations") or {})


def is_control_plane(machine: Mapping[str, Any]) -> bool:
    """Whether the machine is to be part of a control plane."""
    return "cluster.x-k8s.io/control-plane" in (machine["metadata"].get("labels") or {})


# -- networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nic:
    """A network device as either generation describes it."""

    name: str
    model: str = "virtio"
    bridge: str = ""
    mtu: int | None = None
    vlan: int | None = None
    queues: int | None = None
    default4: bool = False
    default6: bool = False
    pools: tuple[tuple[str, str, str], ...] = ()  # kind, name, family or ""
    dns: tuple[str, ...] = ()
    routes: tuple[Json, ...] = ()
    rules: tuple[Json, ...] = ()
    link_mtu: int | None = None
    wanted: bool = True  # whether the VM's own device is to be changed

    @property
    def value(self) -> str:
        """The device as a config wants it."""
        parts = [self.model, f"bridge={self.bridge}"]
        parts += [f"mtu={self.mtu}"] if self.mtu is not None else []
        parts += [f"queues={self.queues}"] if self.queues is not None else []
        parts += [f"tag={self.vlan}"] if self.vlan is not None else []
        return ",".join(parts)

    def fits(self, config: str) -> bool:
        """Whether the VM's device is like that already."""
        if not config:
            return False
        options = dict(part.partition("=")[::2] for part in config.split(","))
        model = config.partition("=")[0]
        wanted = {"bridge": self.bridge, "mtu": self.mtu, "tag": self.vlan}
        return model == self.model and all(
            value is None or options.get(key) == str(value) for key, value in wanted.items()
        )


def nics(era: Era, spec: Mapping[str, Any]) -> list[Nic]:
    """The network devices of a machine, the first one being net0."""
    network = spec.get("network") or {}
    if era.old:
        first = network.get("default")
        found = [_nic_old("net0", first or {}, default=True, wanted=bool(first))]
        return found + [_nic_old(row["name"], row) for row in network.get("additionalDevices") or ()]
    rows = list(network.get("networkDevices") or ())
    if not rows:
        return [Nic("net0", default4=True, default6=True, wanted=False)]
    told = any("defaultIPv4" in row or "defaultIPv6" in row for row in rows)
    return [_nic_new(row, first=number == 0 and not told) for number, row in enumerate(rows)]


def _nic_old(name: str, row: Mapping[str, Any], *, default: bool = False, wanted: bool = True) -> Nic:
    refs = tuple(
        (row[key].get("kind", "InClusterIPPool"), row[key]["name"], family)
        for key, family in (("ipv4PoolRef", "4"), ("ipv6PoolRef", "6"))
        if row.get(key)
    )
    return Nic(
        name,
        row.get("model", "virtio"),
        row.get("bridge", ""),
        row.get("mtu"),
        row.get("vlan"),
        default4=default,
        default6=default,
        pools=refs,
        wanted=wanted,
        **_common(row),
    )


def _nic_new(row: Mapping[str, Any], *, first: bool) -> Nic:
    return Nic(
        row.get("name", "net0"),
        row.get("model", "virtio"),
        row.get("bridge", ""),
        row.get("mtu"),
        row.get("vlan"),
        row.get("queues"),
        default4=row.get("defaultIPv4", first),
        default6=row.get("defaultIPv6", first),
        pools=tuple((ref["kind"], ref["name"], "") for ref in row.get("ipPoolRef") or ()),
        wanted="bridge" in row,
        **_common(row),
    )


def _common(row: Mapping[str, Any]) -> Json:
    return {
        "dns": tuple(row.get("dnsServers") or ()),
        "routes": tuple(row.get("routes") or ()),
        "rules": tuple(row.get("routingPolicy") or ()),
        "link_mtu": row.get("linkMtu"),
    }


@dataclass(frozen=True)
class Claim:
    """An address a machine needs: the claim's name, the device it is for and the pool it comes from."""

    name: str
    device: str
    kind: str
    pool: str
    offset: int = 0
    default: bool = False


def claims(era: Era, machine: str, devices: list[Nic], default4: str, default6: str) -> list[Claim]:
    """The claims of a machine; the names of the cluster's own pools are empty when it has none."""
    found: list[Claim] = []
    for nic in devices:
        own: list[tuple[str, str, str, bool]] = []
        own += [("InClusterIPPool", default4, "4", True)] if nic.default4 and default4 else []
        own += [("InClusterIPPool", default6, "6", True)] if nic.default6 and default6 else []
        if era.old:
            # 0.7 names a claim by device and family, so a pool of one's own stands in for the cluster's.
            given = {family for _, _, family in nic.pools}
            own = [row for row in own if row[2] not in given]
        own += [(kind, name, family, False) for kind, name, family in nic.pools]
        for number, (kind, pool, family, default) in enumerate(own):
            suffix = "inet6" if family == "6" and era.old else "inet"
            middle = nic.name if era.old else f"{nic.name}-{number:02d}"
            first = default or (era.old and nic.name == "net0")
            found.append(Claim(f"{machine}-{middle}-{suffix}", nic.name, kind, pool, number, first))
    return found
