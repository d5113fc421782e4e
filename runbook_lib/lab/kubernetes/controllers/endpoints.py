"""Endpoints and EndpointSlices: the pods behind each Service, and which of them are ready."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .reconcile import reconcile

SERVICES = "/api/v1/services"
ENDPOINTS = "/api/v1/endpoints"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
SERVICE_LABEL, MANAGED_BY = "kubernetes.io/service-name", "endpointslice.kubernetes.io/managed-by"
SLICE_MANAGER = "endpointslice-controller.k8s.io"
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
HEADLESS = "service.kubernetes.io/headless"
MOST_IN_A_SLICE = 100


# -- judgement --------------------------------------------------------------------------------------


def backing(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods that the service selects and that have an address, by name."""
    selector, space = service["spec"].get("selector") or {}, service["metadata"]["namespace"]
    found = [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == space
        and selector.items() <= (pod["metadata"].get("labels") or {}).items()
        and pod.get("status", {}).get("podIP")
        and pod["status"].get("phase") not in {"Succeeded", "Failed"}
    ]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def is_ready(pod: Object) -> bool:
    """Whether the pod says that it is ready."""
    rows = pod.get("status", {}).get("conditions") or ()
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def ports_of(service: Object, pod: Object) -> tuple[tuple[str, int | None, str], ...]:
    """(name, port, protocol) of the service's ports on this pod; a named port that the pod lacks is left out."""
    named = {
        (entry.get("name"), entry.get("protocol", "TCP")): entry["containerPort"]
        for container in pod["spec"]["containers"]
        for entry in container.get("ports") or ()
    }
    found = []
    for entry in service["spec"].get("ports") or ():
        protocol = entry.get("protocol", "TCP")
        target = entry.get("targetPort") or entry["port"]
        number = named.get((target, protocol)) if isinstance(target, str) and not target.isdigit() else int(target)
        if number is not None:
            found.append((entry.get("name", ""), number, protocol))
    return tuple(found)


def endpoint(service: Object, pod: Object, zone: str = "") -> Object:
    """A pod as an endpoint of a slice."""
    leaving = "deletionTimestamp" in pod["metadata"]
    serving = is_ready(pod)
    open_ = bool(service["spec"].get("publishNotReadyAddresses"))
    made: Object = {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": open_ or (serving and not leaving), "serving": serving, "terminating": leaving},
        "nodeName": pod["spec"].get("nodeName"),
        "targetRef": _target(pod),
    }
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        made["hostname"] = pod["spec"]["hostname"]
    if zone:
        made["zone"] = zone
    return made


def slices_of(
    service: Object, pods: Sequence[Object], zones: dict[str, str]
) -> list[tuple[list[Object], list[Object]]]:
    """(ports, endpoints) of each slice that the service should have."""
    groups: dict[tuple[tuple[str, int | None, str], ...], list[Object]] = {}
    for pod in pods:
        made = endpoint(service, pod, zones.get(pod["spec"].get("nodeName", ""), ""))
        groups.setdefault(ports_of(service, pod), []).append(made)
    if not groups:
        groups[()] = []
    found = []
    for ports, endpoints in groups.items():
        rows = [{"name": name, "port": port, "protocol": protocol} for name, port, protocol in ports]
        for start in range(0, max(len(endpoints), 1), MOST_IN_A_SLICE):
            found.append((rows, endpoints[start : start + MOST_IN_A_SLICE]))
    return found


def subsets_of(service: Object, pods: Sequence[Object]) -> list[Object]:
    """The subsets of the service's Endpoints object."""
    groups: dict[tuple[tuple[str, int | None, str], ...], Object] = {}
    open_ = bool(service["spec"].get("publishNotReadyAddresses"))
    for pod in pods:
        if "deletionTimestamp" in pod["metadata"] and not open_:
            continue
        ports = ports_of(service, pod)
        if not ports and service["spec"].get("ports"):
            continue
        rows = [
            {**({"name": name} if name else {}), "port": port, "protocol": protocol} for name, port, protocol in ports
        ]
        subset = groups.setdefault(ports, {"ports": rows})
        row = {"ip": pod["status"]["podIP"], "nodeName": pod["spec"].get("nodeName"), "targetRef": _target(pod)}
        if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
            row["hostname"] = pod["spec"]["hostname"]
        subset.setdefault("addresses" if open_ or is_ready(pod) else "notReadyAddresses", []).append(row)
    return list(groups.values())


def _target(pod: Object) -> Object:
    metadata = pod["metadata"]
    return {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}


def same_slice(held: Object, ports: Sequence[Object], endpoints: Sequence[Object]) -> bool:
    """Whether a slice says this already, in whatever order; ports without endpoints do not count."""
    mine, theirs = _shape(held.get("endpoints") or ()), _shape(endpoints)
    return mine == theirs and (not endpoints or _ports(held.get("ports") or ()) == _ports(ports))


def same_subsets(held: Sequence[Object], wanted: Sequence[Object]) -> bool:
    """Whether an Endpoints object says this already, in whatever order."""

    def shape(subsets: Sequence[Object]) -> list[str]:
        return sorted(
            str((_ports(entry.get("ports") or ()), *(sorted(row["ip"] for row in entry.get(key) or ()) for key in
                                                     ("addresses", "notReadyAddresses"))))
            for entry in subsets
        )  # fmt: skip

    return shape(held) == shape(wanted)


def _ports(rows: Iterable[Object]) -> list[tuple[str, Any, str]]:
    return sorted((row.get("name") or "", row.get("port"), row.get("protocol", "TCP")) for row in rows)


def _shape(rows: Iterable[Object]) -> list[tuple[str, ...]]:
    shapes = []
    for row in rows:
        said = row.get("conditions") or {}
        flags = tuple(str(bool(said.get(key, key != "terminating"))) for key in ("ready", "serving", "terminating"))
        who = (row.get("targetRef") or {}).get("uid", "")
        shapes.append((row["addresses"][0], who, row.get("hostname", ""), *flags))
    return sorted(shapes)


# -- the controller ---------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """Keeps Endpoints and EndpointSlices of every Service with a selector until cancelled."""
    services, slices, endpoints = (context.cache(path) for path in (SERVICES, SLICES, ENDPOINTS))
    by_space: dict[str, set[Key]] = {}

    def placed(kind: str, service: Object) -> None:
        key = key_of(service)
        (by_space.setdefault(key[0], set()).discard if kind == "DELETED" else by_space.setdefault(key[0], set()).add)(
            key
        )

    services.handlers.append(placed)
    await context.synced(services, slices, endpoints, context.pods)
    for key in services.items:
        by_space.setdefault(key[0], set()).add(key)
    labels: dict[str, dict[str, str]] = {}

    def of_pod(pod: Object) -> list[Key]:
        metadata = pod["metadata"]
        now = metadata.get("labels") or {}
        before = labels.get(metadata.get("uid", ""), now)
        labels[metadata.get("uid", "")] = now
        return [
            key for key in by_space.get(metadata.get("namespace", ""), ())
            if (selector := (services.items.get(key) or {"spec": {}})["spec"].get("selector"))
            and (selector.items() <= now.items() or selector.items() <= before.items())
        ]  # fmt: skip

    def of_slice(item: Object) -> list[Key]:
        name = (item["metadata"].get("labels") or {}).get(SERVICE_LABEL)
        return [(item["metadata"]["namespace"], name)] if name else []

    def of_endpoints(item: Object) -> list[Key]:
        return [key_of(item)]

    async def work(key: Key, service: Object | None) -> float | None:
        if service is None or not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            if service is None:
                await _forget(context, key, endpoints)
            return None
        pods = backing(service, context.pods.items.values())
        await _write_endpoints(context, key, service, pods, endpoints)
        await _write_slices(context, key, service, pods, slices)
        return None

    also = [(context.pods, of_pod), (slices, of_slice), (endpoints, of_endpoints)]
    await reconcile(context, services, work, also=also)


async def _forget(context: Context, key: Key, endpoints: Cache) -> None:
    """The Endpoints of a deleted service go with it; slices are collected by their owner."""
    if key in endpoints.items:
        try:
            await context.client.delete(f"/api/v1/namespaces/{key[0]}/endpoints/{key[1]}")
        except Refused as error:
            if error.code != 404:
                raise


async def _write_endpoints(context: Context, key: Key, service: Object, pods: Sequence[Object], cache: Cache) -> None:
    wanted = subsets_of(service, pods)
    held = cache.items.get(key)
    if held is not None and same_subsets(held.get("subsets") or (), wanted):
        return
    path = f"/api/v1/namespaces/{key[0]}/endpoints"
    labels = {**(service["metadata"].get("labels") or {}), "endpoints.kubernetes.io/managed-by": "endpoint-controller"}
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    annotations = {TRIGGER: context.stamp()}
    if held is None:
        metadata = {"name": key[1], "namespace": key[0], "labels": labels, "annotations": annotations}
        body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": wanted}
        await cache.caught_up(await context.client.create(path, body))
        return
    metadata = {
        **held["metadata"],
        "labels": labels,
        "annotations": {**(held["metadata"].get("annotations") or {}), **annotations},
    }
    await cache.caught_up(
        await context.client.update(f"{path}/{key[1]}", {**held, "metadata": metadata, "subsets": wanted})
    )


async def _write_slices(context: Context, key: Key, service: Object, pods: Sequence[Object], cache: Cache) -> None:
    zones = {
        name: str((node["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone", ""))
        for (_, name), node in context.nodes.items.items()
    }
    wanted = slices_of(service, pods, zones)
    held = [
        item for item in cache.items.values()
        if item["metadata"]["namespace"] == key[0]
        and (item["metadata"].get("labels") or {}).get(SERVICE_LABEL) == key[1]
        and item["metadata"]["labels"].get(MANAGED_BY) == SLICE_MANAGER and "deletionTimestamp" not in item["metadata"]
    ]  # fmt: skip
    free = sorted(held, key=lambda item: str(item["metadata"]["name"]))
    left = []
    for ports, endpoints in wanted:
        match = next((item for item in free if same_slice(item, ports, endpoints)), None)
        if match is not None:
            free.remove(match)
        else:
            left.append((ports, endpoints))
    path = f"/apis/discovery.k8s.io/v1/namespaces/{key[0]}/endpointslices"
    for ports, endpoints in left:
        if free:
            item = free.pop(0)
            body = {**item, "ports": ports, "endpoints": endpoints}
            await cache.caught_up(await context.client.update(f"{path}/{item['metadata']['name']}", body))
        else:
            await cache.caught_up(await context.client.create(path, _new_slice(service, ports, endpoints, len(held))))
    for item in free:
        await cache.caught_up(await context.client.delete(f"{path}/{item['metadata']['name']}"))


def _new_slice(service: Object, ports: Sequence[Object], endpoints: Sequence[Object], place: int) -> Object:
    metadata = service["metadata"]
    # Services outlive restarts of the lab: the same service gets slices of the same names.
    letters = "bcdfghjklmnpqrstvwxz2456789"
    digest = hashlib.sha256(f"{metadata['uid']}/{place}/{ports}".encode()).digest()
    owner = {"apiVersion": "v1", "kind": "Service", "name": metadata["name"], "uid": metadata["uid"],
             "controller": True, "blockOwnerDeletion": True}  # fmt: skip
    labels = {**(metadata.get("labels") or {}), SERVICE_LABEL: metadata["name"], MANAGED_BY: SLICE_MANAGER}
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{metadata['name']}-{''.join(letters[byte % len(letters)] for byte in digest[:5])}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner],
        },
        "addressType": "IPv4",
        "ports": list(ports),
        "endpoints": list(endpoints),
    }
