"""A seeded cluster put into an API server that is not the lab's own, by its API alone.

Only what people and charts make is put there; pods, ReplicaSets, endpoints and the like are made by the controllers.
Webhooks and aggregated APIs are left out: a real server would ask them, and nobody answers at their addresses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from .apiserver import EMULATED
from .kubernetes.controllers.client import KubeClient, Refused
from .kubernetes.controllers.installing import NoMatch, Places

log = logging.getLogger(__name__)

Json = dict[str, Any]

MADE_BY_CONTROLLERS = frozenset(
    {"ReplicaSet", "ControllerRevision", "EndpointSlice", "Endpoints", "Event", "Lease", "ComponentStatus"}
)
ASKED_BY_THE_SERVER = frozenset({"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService"})
COUNTED = frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"})
"""Workloads, whose status their controllers count."""
FIRST = ("CustomResourceDefinition", "Namespace", "PriorityClass", "ServiceAccount", "Node")
SERVERS_OWN = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "deletionTimestamp",
               "deletionGracePeriodSeconds", "ownerReferences")  # fmt: skip
AT_ONCE = 24
SERVED_SECONDS = 20.0


@dataclass(frozen=True)
class Furnished:
    """How many objects were put there, how many were there before, and what was refused with which words."""

    made: int
    known: int
    refused: tuple[str, ...] = ()


def chosen(objects: Iterable[Json]) -> list[Json]:
    """The objects that are put there, as a client would write them: without what servers and controllers add."""
    found = []
    for item in objects:
        owners = item["metadata"].get("ownerReferences") or ()
        if item["kind"] in MADE_BY_CONTROLLERS | ASKED_BY_THE_SERVER:
            continue
        if item["kind"] in {"Pod", "Job"} and any(row.get("controller") and row["kind"] != "Node" for row in owners):
            continue
        metadata = {key: value for key, value in item["metadata"].items() if key not in SERVERS_OWN}
        if item["kind"] == "Node":
            metadata["labels"] = {**(metadata.get("labels") or {}), EMULATED: "true"}
        made = {**item, "metadata": metadata}
        if item["kind"] == "PersistentVolume" and "claimRef" in item["spec"]:
            claim = {key: item["spec"]["claimRef"][key] for key in ("apiVersion", "kind", "name", "namespace")
                     if key in item["spec"]["claimRef"]}  # fmt: skip
            made["spec"] = {**item["spec"], "claimRef": claim}
        found.append(made)
    return found


def waves(objects: Iterable[Json]) -> list[list[Json]]:
    """The objects in the order they can be made: each kind of FIRST by itself, then what names no node, then pods."""
    found: dict[int, list[Json]] = {}
    for item in objects:
        kind = item["kind"]
        found.setdefault(FIRST.index(kind) if kind in FIRST else len(FIRST) + (kind == "Pod"), []).append(item)
    return [found[rank] for rank in sorted(found)]


async def furnish(client: KubeClient, objects: Iterable[Json]) -> Furnished:
    """What became of the objects. One that is there already stays as it is; a refusal ends nothing."""
    places, gate = Places(client), asyncio.Semaphore(AT_ONCE)
    outcome: dict[str, int] = {"made": 0, "known": 0}
    refused: list[str] = []

    async def one(item: Json) -> None:
        async with gate:
            try:
                outcome[await _put(places, item, patient=item["kind"] in defined)] += 1
            except (NoMatch, Refused) as error:
                words = error.message if isinstance(error, Refused) else str(error)
                refused.append(f"{item['kind']} {item['metadata']['name']}: {words}")

    wanted = chosen(objects)
    defined = {item["spec"]["names"]["kind"] for item in wanted if item["kind"] == "CustomResourceDefinition"}
    for wave in waves(wanted):
        await asyncio.gather(*(one(item) for item in wave))
    for line in refused:
        log.warning("not put into the API server: %s", line)
    return Furnished(outcome["made"], outcome["known"], tuple(refused))


async def _put(places: Places, item: Json, *, patient: bool) -> str:
    """What became of the object, as Furnished counts it; a `patient` one waits for its kind to be served."""
    path = await (_served(lambda: places.path(item)) if patient else places.path(item))
    body = {key: value for key, value in item.items() if key != "status"}
    try:
        await places.client.create(path.rpartition("/")[0], body)
    except Refused as error:
        if error.reason == "AlreadyExists":
            return "known"
        if item["kind"] != "Service" or "IP" not in error.message:
            raise
        spec = {key: value for key, value in item["spec"].items() if key not in {"clusterIP", "clusterIPs"}}
        await places.client.create(path.rpartition("/")[0], {**body, "spec": spec})
    if item.get("status") and item["kind"] not in COUNTED:
        try:
            await places.client.patch(f"{path}/status", {"status": item["status"]})
        except Refused as error:
            if error.code not in {404, 405}:  # many kinds have no status of their own
                raise
    return "made"


async def _served(find: Callable[[], Awaitable[str]]) -> str:
    """The path once the kind is served: a definition takes a moment to be. Raises NoMatch."""
    try:
        async with asyncio.timeout(SERVED_SECONDS):
            while True:
                try:
                    return await find()
                except NoMatch as error:
                    missing = error
                except (aiohttp.ClientError, OSError) as error:
                    missing = NoMatch(str(error))
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise missing from None
