"""Storage of a Kubernetes cluster as rows: claims, volumes, attachments, drivers, and what their events say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from runbook_lib import errors
from runbook_lib.facts import (
    Attachment,
    Claim,
    CsiCapacity,
    CsiDriver,
    DriverPart,
    KubeNode,
    PersistentVolume,
    PodTrouble,
)
from runbook_lib.kubernetes_nodes import pods, quantity
from runbook_lib.kubernetes_reading import Reader

DRIVER = "csi.proxmox.sinextra.dev"
LIFECYCLE = "csi.proxmox.sinextra.dev/lifecycle"
ZONE = "topology.kubernetes.io/zone"
STORAGE = "/apis/storage.k8s.io/v1"
SNAPSHOTS = "snapshot.storage.k8s.io"

COMPONENTS = {
    "proxmox-csi-controller": "controller",
    "proxmox-csi-node": "node",
    "proxmox-cloud-controller-manager": "ccm",
}
"""The images of the driver and of the cloud controller, by the end of their repositories' names."""

LOG_LINES = 20


def claims(k8s: Reader, namespace: str = "") -> list[Claim]:
    """Every claim by namespace and name, each with the last warning about it, or else the last event."""
    inside = f"/namespaces/{namespace}" if namespace else ""
    said = last_events(k8s, "PersistentVolumeClaim", namespace)
    modes = {entry["metadata"]["name"]: entry.get("volumeBindingMode") or "Immediate" for entry in _classes(k8s)}
    rows = []
    for entry in k8s.list(f"/api/v1{inside}/persistentvolumeclaims"):
        metadata, spec, status = entry["metadata"], entry["spec"], entry.get("status") or {}
        reason, message = said.get((metadata["namespace"], metadata["name"]), ("", ""))
        rows.append(
            Claim(
                namespace=metadata["namespace"],
                name=metadata["name"],
                phase=status.get("phase", ""),
                storage_class=spec.get("storageClassName") or "",
                volume=spec.get("volumeName") or "",
                modes=tuple(spec.get("accessModes") or ()),
                volume_mode=spec.get("volumeMode") or "Filesystem",
                requested_bytes=_bytes((spec.get("resources") or {}).get("requests")),
                capacity_bytes=_bytes(status.get("capacity")),
                created=epoch(metadata.get("creationTimestamp")),
                deleting=bool(metadata.get("deletionTimestamp")),
                conditions=tuple(row["type"] for row in status.get("conditions") or () if row.get("status") == "True"),
                reason=reason,
                message=message,
                binding_mode=modes.get(spec.get("storageClassName") or "", ""),
            )
        )
    return sorted(rows, key=lambda row: (row.namespace, row.name))


def persistent_volumes(k8s: Reader) -> list[PersistentVolume]:
    """Every PersistentVolume by name, with the last event about it."""
    said = last_events(k8s, "PersistentVolume")
    rows = []
    for entry in k8s.list("/api/v1/persistentvolumes"):
        metadata, spec, status = entry["metadata"], entry["spec"], entry.get("status") or {}
        csi, claim = spec.get("csi") or {}, spec.get("claimRef") or {}
        reason, message = said.get(("", metadata["name"]), ("", ""))
        rows.append(
            PersistentVolume(
                name=metadata["name"],
                phase=status.get("phase", ""),
                driver=csi.get("driver", ""),
                handle=csi.get("volumeHandle", ""),
                storage_class=spec.get("storageClassName") or "",
                claim=f"{claim['namespace']}/{claim['name']}" if claim else "",
                reclaim_policy=spec.get("persistentVolumeReclaimPolicy") or "Retain",
                capacity_bytes=_bytes(spec.get("capacity")),
                modes=tuple(spec.get("accessModes") or ()),
                zones=tuple(_zones(spec)),
                deleting=bool(metadata.get("deletionTimestamp")),
                kept=(metadata.get("annotations") or {}).get(LIFECYCLE) == "keep",
                reason=reason,
                message=message or status.get("message", ""),
            )
        )
    return sorted(rows, key=lambda row: row.name)


def attachments(k8s: Reader) -> list[Attachment]:
    """Every VolumeAttachment by node and volume."""
    rows = []
    for entry in k8s.list(f"{STORAGE}/volumeattachments"):
        metadata, spec, status = entry["metadata"], entry["spec"], entry.get("status") or {}
        rows.append(
            Attachment(
                name=metadata["name"],
                driver=spec["attacher"],
                node=spec["nodeName"],
                volume=(spec.get("source") or {}).get("persistentVolumeName") or "",
                attached=bool(status.get("attached")),
                deleting=bool(metadata.get("deletionTimestamp")),
                attach_error=(status.get("attachError") or {}).get("message", ""),
                detach_error=(status.get("detachError") or {}).get("message", ""),
                created=epoch(metadata.get("creationTimestamp")),
                deleted=epoch(metadata.get("deletionTimestamp")),
            )
        )
    return sorted(rows, key=lambda row: (row.node, row.volume))


def csi_drivers(k8s: Reader) -> list[CsiDriver]:
    """Every CSIDriver by name."""
    return sorted(
        (
            CsiDriver(
                entry["metadata"]["name"],
                entry["spec"].get("attachRequired", True) is not False,
                bool(entry["spec"].get("storageCapacity")),
            )
            for entry in k8s.list(f"{STORAGE}/csidrivers")
        ),
        key=lambda row: row.name,
    )


def registered(k8s: Reader, driver: str = DRIVER) -> dict[str, tuple[int | None, tuple[str, ...]]]:
    """Node → (most volumes, topology keys) where the node's kubelet knows the driver."""
    found = {}
    for entry in k8s.list(f"{STORAGE}/csinodes"):
        for row in (entry.get("spec") or {}).get("drivers") or ():
            if row["name"] == driver:
                count = (row.get("allocatable") or {}).get("count")
                found[entry["metadata"]["name"]] = (count, tuple(row.get("topologyKeys") or ()))
    return found


def capacities(k8s: Reader) -> list[CsiCapacity]:
    """Every CSIStorageCapacity by class."""
    rows = []
    for entry in k8s.list(f"{STORAGE}/csistoragecapacities"):
        labels = dict((entry.get("nodeTopology") or {}).get("matchLabels") or {})
        free = int(quantity(entry["capacity"])) if entry.get("capacity") is not None else None
        rows.append(CsiCapacity(entry["storageClassName"], labels, free))
    return sorted(rows, key=lambda row: (row.storage_class, sorted(row.topology.items())))


def class_parameters(k8s: Reader, driver: str = DRIVER) -> dict[str, Mapping[str, Any]]:
    """The StorageClasses of a driver as they are, by name."""
    return {entry["metadata"]["name"]: entry for entry in _classes(k8s) if entry["provisioner"] == driver}


def snapshots_served(k8s: Reader) -> bool:
    """Whether the cluster serves VolumeSnapshot."""
    return any(entry["kind"] == "VolumeSnapshot" for entry in k8s.resources(f"/apis/{SNAPSHOTS}/v1"))


def driver_parts(k8s: Reader) -> list[DriverPart]:
    """Every pod of the driver and of the cloud controller; of an unwell one also the end of its log."""
    images: dict[tuple[str, str], tuple[str, ...]] = {}
    parts: dict[tuple[str, str], str] = {}
    for entry in k8s.list("/api/v1/pods"):
        key = entry["metadata"]["namespace"], entry["metadata"]["name"]
        held = tuple(str(row.get("image", "")) for row in entry["spec"].get("containers") or ())
        for image in held:
            name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
            if name in COMPONENTS:
                images[key], parts[key] = held, COMPONENTS[name]
    if not parts:
        return []
    return [
        DriverPart(
            namespace=row.namespace,
            name=row.name,
            node=row.node,
            component=parts[row.namespace, row.name],
            images=images[row.namespace, row.name],
            phase=row.phase,
            ready=row.ready,
            restarts=row.restarts,
            reasons=row.reasons,
            message=row.message,
            log="" if row.ready else _log(k8s, row.namespace, row.name, parts[row.namespace, row.name]),
        )
        for row in pods(k8s)
        if (row.namespace, row.name) in parts
    ]


def _log(k8s: Any, namespace: str, name: str, component: str) -> str:
    """The end of the log of whatever container of the pod wrote why it ended."""
    pod = k8s.find(f"/api/v1/namespaces/{namespace}/pods/{name}") or {}
    found = []
    for row in (pod.get("status") or {}).get("containerStatuses") or ():
        for previous in (True, False):
            try:
                text = k8s.logs(namespace, name, container=row["name"], tail=LOG_LINES, previous=previous or None)
            except errors.ApiError:
                continue
            if text.strip():
                found.append(text.strip())
                break
    return "\n".join(found)


def pods_waiting(k8s: Reader, nodes: Iterable[KubeNode] = ()) -> list[PodTrouble]:
    """Every pod that has a claim and does not run, with the last warning about it."""
    rows = []
    said: Mapping[tuple[str, str], tuple[str, str]] | None = None
    for entry in k8s.list("/api/v1/pods"):
        metadata, spec, status = entry["metadata"], entry["spec"], entry.get("status") or {}
        held = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in spec.get("volumes") or ()
            if "persistentVolumeClaim" in volume
        ]
        if not held or status.get("phase") != "Pending":
            continue
        said = last_events(k8s, "Pod") if said is None else said
        reason, message = said.get((metadata["namespace"], metadata["name"]), ("", ""))
        rows.append(
            PodTrouble(
                metadata["namespace"],
                metadata["name"],
                spec.get("nodeName") or "",
                status.get("phase", ""),
                tuple(held),
                reason,
                message,
            )
        )
    return sorted(rows, key=lambda row: (row.namespace, row.name))


def last_events(k8s: Reader, kind: str, namespace: str = "") -> dict[tuple[str, str], tuple[str, str]]:
    """(namespace, name) → (reason, message) of the last warning about each object of a kind, or its last event.

    Events of cluster-wide objects lie in `default`; here they are known by an empty namespace.
    """
    inside = f"/namespaces/{namespace}" if namespace else ""
    found: dict[tuple[str, str], tuple[bool, str, str, str]] = {}
    for event in k8s.list(f"/api/v1{inside}/events", fieldSelector=f"involvedObject.kind={kind}"):
        about = event["involvedObject"]
        key = about.get("namespace") or "", about["name"]
        time = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
        row = (event.get("type") == "Warning", time, event.get("reason", ""), event.get("message", ""))
        if key not in found or row[:2] >= found[key][:2]:
            found[key] = row
    return {key: (reason, message) for key, (_, _, reason, message) in found.items()}


def epoch(text: Any) -> int | None:
    """Seconds since the epoch of a Kubernetes time; None of nothing."""
    return int(datetime.fromisoformat(str(text)).timestamp()) if text else None


def _classes(k8s: Reader) -> list[dict[str, Any]]:
    return k8s.list(f"{STORAGE}/storageclasses")


def _bytes(amounts: Mapping[str, Any] | None) -> int:
    return int(quantity((amounts or {}).get("storage")))


def _zones(spec: Mapping[str, Any]) -> Iterable[str]:
    required = (spec.get("nodeAffinity") or {}).get("required") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for row in term.get("matchExpressions") or ():
            if row["key"] == ZONE:
                yield from row.get("values") or ()
