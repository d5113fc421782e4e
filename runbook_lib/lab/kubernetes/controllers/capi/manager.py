"""The manager of Cluster API's core: one program that runs every controller of the group cluster.x-k8s.io."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..client import Cache, Key, Object, key_of
from ..context import DEFINITIONS, Context
from ..processes import Process, Program
from ..remote import Remotes
from ..timers import Timers
from .conditions import Conditions, new_of, old_of
from .conditions import write as with_conditions
from .objects import GROUP, Target, cluster_key, resolve


class Bell(Cache):
    """A cache of nothing whose handlers hear when something outside the cluster's own caches changed."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.client, "")
        self.synced.set()

    def ring(self, item: Object) -> None:
        """Nothing; every handler is told about the object."""
        for handler in self.handlers:
            handler("MODIFIED", item)


@dataclass
class Manager:
    """What the controllers of one manager share. `version` is the API version they write."""

    context: Context
    process: Process
    version: str = "v1beta1"
    contracts: tuple[str, ...] = ("v1beta1",)
    group: str = GROUP
    _watched: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.outside = Bell(self.context)
        self.timers = Timers(self.context)
        self.remotes = Remotes(self.context, self._remote_changed)

    def _remote_changed(self, key: Key, node: Object | None) -> None:
        about = {"namespace": key[0], "name": key[1]}
        if node is None:
            self.outside.ring({"kind": "Remote", "metadata": about})
        else:
            self.outside.ring({"kind": "RemoteNode", "metadata": about, "node": node})

    def log(self, controller: str, message: str, **values: object) -> None:
        """Nothing; one line in the container's log as klog writes it."""
        at = datetime.fromtimestamp(self.context.clock.now(), UTC)
        tail = "".join(f" {key}={json.dumps(str(value))}" for key, value in values.items())
        self.process.write(f'I{at:%m%d %H:%M:%S.%f}       1 {controller}.go:1] "{message}"{tail}')

    def path(self, plural: str, item: Object | Key | None = None, *, sub: str = "") -> str:
        """The path of a resource of the core group, of all objects or of one."""
        base = f"/apis/{self.group}/{self.version}"
        if item is None:
            return f"{base}/{plural}"
        namespace, name = item if isinstance(item, tuple) else (item["metadata"]["namespace"], item["metadata"]["name"])
        return f"{base}/namespaces/{namespace}/{plural}/{name}{sub}"

    def version_of(self) -> str:
        """The API version of the group's objects, as they are written."""
        return f"{self.group}/{self.version}"

    def cache(self, plural: str) -> Cache:
        """The cache of a resource of the core group."""
        return self.context.cache(self.path(plural))

    def cluster_of(self, item: Object) -> Object | None:
        """The Cluster an object names."""
        return self.cache("clusters").get(*cluster_key(item))

    async def save(self, cache: Cache, item: Object, wish: Object) -> Object:
        """The object after what differs in metadata and spec was written; nothing is sent when nothing does."""
        patch: Object = {}
        for part in ("metadata", "spec"):
            changed = _difference(item.get(part) or {}, wish.get(part) or {})
            if changed:
                patch[part] = changed
        if not patch:
            return item
        patch.setdefault("metadata", {})["resourceVersion"] = item["metadata"].get("resourceVersion")
        fresh = await self.context.client.patch(path_of(cache, item), patch)
        await cache.caught_up(fresh)
        return fresh

    async def report(self, cache: Cache, item: Object, status: Object, conditions: Conditions | None = None) -> Object:
        """The object after what differs in its status was written; nothing is sent when nothing does."""
        if conditions is not None:
            status = with_conditions(item, status, conditions)
        changed = _difference(item.get("status") or {}, status)
        if not changed:
            return item
        body = {"metadata": {"resourceVersion": item["metadata"]["resourceVersion"]}, "status": changed}
        fresh = await self.context.client.patch(path_of(cache, item) + "/status", body)
        await cache.caught_up(fresh)
        return fresh

    def find_target(self, reference: Object) -> Target:
        """What a reference points at by the contracts in force. Raises ContractUnknown."""
        return resolve(reference, self.context.cache(DEFINITIONS).items.values(), self.contracts)

    async def external(self, reference: Object, namespace: str) -> tuple[Object | None, Target]:
        """The referenced object as its cache has it, or None; changes of its kind are heard from now on."""
        await self.context.synced(self.context.cache(DEFINITIONS))
        target = self.find_target(reference)
        cache = self.context.cache(target.path)
        if target.path not in self._watched:
            self._watched.add(target.path)
            cache.handlers.append(lambda _kind, item: self.outside.ring(item))
        await cache.synced.wait()
        return cache.get(namespace, reference["name"]), target

    async def delete(self, cache: Cache, item: Object) -> None:
        """Nothing; the deletion was asked for, once."""
        if "deletionTimestamp" not in item["metadata"]:
            await self.context.client.delete(
                path_of(cache, item),
                {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": item["metadata"]["uid"]}},
            )

    async def event(self, about: Object, reason: str, message: str, *, kind: str = "Normal", source: str) -> None:
        """Nothing; an event about the object was written."""
        await self.context.event(about, reason, message, kind=kind, component=source)


def path_of(cache: Cache, item: Object) -> str:
    """The path of one namespaced object of a cache over all namespaces."""
    base, _, plural = cache.path.rpartition("/")
    return f"{base}/namespaces/{item['metadata']['namespace']}/{plural}/{item['metadata']['name']}"


def _difference(old: Object, new: Object) -> Object:
    """The JSON merge patch that turns one object into the other; what is only in the old one goes away."""
    patch: Object = {key: None for key in old if key not in new}
    for key, value in new.items():
        known = old.get(key)
        if known == value and key in old:
            continue
        patch[key] = _difference(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return patch


def at_turns(keys_of: Callable[[Object], Iterable[Key]]) -> Callable[[Object], Iterable[Key]]:
    """What maps a Cluster to the keys of its members, but only when it took a turn that they wait for.

    A Cluster sums up its members in its status; were they all called for that, n of them would make n² passes.
    The real managers filter with predicates: paused, infrastructure ready, control plane initialized.
    """
    seen: dict[Key, tuple[Any, ...]] = {}

    def keys(cluster: Object) -> Iterable[Key]:
        at, mark = key_of(cluster), turns(cluster)
        if seen.get(at) == mark:
            return ()
        seen[at] = mark
        return keys_of(cluster)

    return keys


def turns(cluster: Object) -> tuple[Any, ...]:
    """What of a Cluster its members depend on: its wish, and what it has reached for good."""
    metadata, status = cluster["metadata"], cluster.get("status") or {}
    reached = [
        rows.get(kind, {}).get("status")
        for rows in (old_of(cluster), new_of(cluster))
        for kind in ("InfrastructureReady", "ControlPlaneInitialized")
    ]
    return (
        metadata.get("uid"), metadata.get("deletionTimestamp"), metadata.get("annotations"), metadata.get("labels"),
        cluster.get("spec"), status.get("infrastructureReady"), status.get("controlPlaneReady"),
        status.get("initialization"), *reached,
    )  # fmt: skip


def children(kind: str, *, names: Callable[[Object], str] = lambda item: "") -> Callable[[Object], list[Key]]:
    """What maps an object to the key of its owner of that kind."""

    def keys(item: Object) -> list[Key]:
        metadata = item["metadata"]
        found = [
            (metadata.get("namespace", ""), entry["name"])
            for entry in metadata.get("ownerReferences") or ()
            if entry["kind"] == kind
        ]
        name = names(item)
        return [*found, (metadata.get("namespace", ""), name)] if name else found

    return keys


def api_of(tag: str) -> tuple[str, tuple[str, ...]]:
    """The API version a core of that image tag writes, and the contracts it understands, best first."""
    found = re.match(r"v?(\d+)\.(\d+)", tag)
    if found and (int(found[1]), int(found[2])) >= (1, 11):
        return "v1beta2", ("v1beta2", "v1beta1")
    return "v1beta1", ("v1beta1",)


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    from . import clusters, health_checks, machinedeployments, machines, machinesets

    version, contracts = api_of(process.version)
    manager = Manager(context, process, version, contracts)
    manager.log("main", "Starting manager", version=process.version)
    try:
        async with asyncio.TaskGroup() as group:
            for module in (clusters, machinedeployments, machinesets, machines, health_checks):
                work: Any = module.run(manager)
                group.create_task(work)
    finally:
        await manager.remotes.close()


PROGRAMS = (Program("cluster-api-controller", run),)
