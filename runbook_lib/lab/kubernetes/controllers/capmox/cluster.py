"""The reconciler of ProxmoxClusters: credentials, pools of addresses, and the word that the infrastructure is there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import aiohttp

from ..alarms import Alarms
from ..capi.manager import at_turns
from ..client import Key, Object, Refused
from ..reconcile import reconcile
from .era import (
    ANNOTATION,
    CLUSTER_FINALIZER,
    CLUSTER_LABEL,
    SECRET_FINALIZER,
    Era,
    condition,
    is_ready,
    mark,
    paused,
    pools,
    set_ready,
)
from .machine import owner_of
from .scope import REQUEUE, RESYNC, Missing, Retries, Shared
from .server import Failure

SOURCE = "proxmoxcluster_controller.go"
WORKERS = 2
GRACE_SECONDS = 60


class Clusters:
    """The controller of clusters."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self.era, self.context = shared, shared.era, shared.context
        self.alarms = Alarms(shared.context)
        self.retries = Retries(self.alarms)

    async def run(self) -> None:
        """Works until cancelled."""
        shared = self.shared
        try:
            await reconcile(
                self.context,
                shared.clusters,
                self.work,
                also=((self.alarms, Alarms.keys), (shared.homes, at_turns(self._of_cluster))),
                workers=WORKERS,
            )
        finally:
            self.alarms.close()

    @staticmethod
    def _of_cluster(cluster: Object) -> list[Key]:
        reference = (cluster.get("spec") or {}).get("infrastructureRef") or {}
        if reference.get("kind") != "ProxmoxCluster":
            return []
        return [(cluster["metadata"]["namespace"], reference.get("name", ""))]

    async def work(self, key: Key, known: Object | None) -> None:
        """One pass over one cluster."""
        if known is None:
            self.alarms.cancel(key)
            self.retries.worked(key)
            return
        owner = next(
            (row["name"] for row in known["metadata"].get("ownerReferences") or () if row["kind"] == "Cluster"), ""
        )
        cluster = self.shared.homes.get(key[0], owner) if owner else None
        if cluster is None:
            self.shared.log(f"{SOURCE}:93", "Waiting for Cluster Controller to set OwnerRef on ProxmoxCluster", known)
            return
        if paused(cluster, known):
            text = "ProxmoxCluster or owning Cluster is marked as paused, not reconciling"
            self.shared.log(f"{SOURCE}:101", text, known)
            return
        item = copy.deepcopy(known)
        after: float | None = None
        failure: Exception | None = None
        try:
            deleting = "deletionTimestamp" in item["metadata"]
            after = await (self._delete(item, cluster) if deleting else self._normal(item))
        except (Failure, Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = error
        try:
            # machines write where they are into the same status: what this pass did not change stays theirs
            path = self.era.path("proxmoxclusters", *key)
            if await self.shared.save(self.shared.clusters, path, known, item):
                self.alarms.moved(key)
        except Refused as error:
            if error.code == 404:
                return
            failure = failure or error
        if failure is not None:
            self.shared.error("controller.go:474", "Reconciler error", item, failure)
            self.retries.failed(key)
            return
        self.retries.worked(key)
        if after == RESYNC:
            self.alarms.rest(key, after)
        elif after is not None:
            self.alarms.set(key, after)

    # -- life -------------------------------------------------------------------------------------

    async def _normal(self, item: Object) -> float | None:
        era, stamp = self.era, self.context.stamp()
        try:
            await self.shared.server_for(item)
        except Missing as error:
            self._fail(item, error.status)
            if not era.old:
                mark(era, item, era.cluster, False, "CredentialsNotFound", stamp, message=error.status)
            raise Failure(f"failed to create scope: {error}") from error
        except Failure as error:
            self._unreachable(item, f"Unable to initialize ProxmoxClient: {error}")
            raise Failure(f"failed to create scope: Unable to initialize ProxmoxClient: {error}") from error
        if not condition(item, era.cluster) or not is_ready(era, item):
            self.shared.log(f"{SOURCE}:178", "Reconciling ProxmoxCluster", item)
        finalizers = item["metadata"].setdefault("finalizers", [])
        if CLUSTER_FINALIZER not in finalizers:
            finalizers.append(CLUSTER_FINALIZER)
        if missing := missing_endpoint(item["spec"]):
            text = f"The ProxmoxCluster is missing or waiting for a ControlPlaneEndpoint {missing}"
            said = f"ProxmoxCluster is not ready, missing or waiting for a ControlPlaneEndpoint {missing}"
            self.shared.log(f"{SOURCE}:186", said, item)
            mark(era, item, era.cluster, False, "MissingControlPlaneEndpoint", stamp, severity="Info", message=text)
            return REQUEUE
        if (item.get("status") or {}).get("failureMessage", "").startswith(("No credentials", "credentials secret")):
            for key in ("failureMessage", "failureReason"):
                item["status"].pop(key, None)
        if not await self._pools(item):
            return REQUEUE
        await self._claim_secret(item)
        mark(era, item, era.cluster, True, "Provisioned", stamp)
        set_ready(era, item)
        return RESYNC

    def _fail(self, item: Object, message: str) -> None:
        if self.era.old:
            status = item.setdefault("status", {})
            status.update(failureReason="InvalidConfiguration", failureMessage=message)

    def _unreachable(self, item: Object, message: str) -> None:
        stamp = self.context.stamp()
        mark(self.era, item, self.era.cluster, False, "ProxmoxUnreachable", stamp, severity="Error", message=message)

    async def _pools(self, item: Object) -> bool:
        """Whether every pool of addresses is there."""
        space, references = item["metadata"]["namespace"], []
        zones: dict[str, Object] = {}
        for wanted, zone, family in pools_of(self.era, item):
            name = wanted["metadata"]["name"]
            known = self.shared.pools.get(space, name)
            if known is None:
                try:
                    known = await self.context.client.create(pools(space), wanted)
                except Refused as error:
                    if error.reason != "AlreadyExists":
                        raise
                    known = await self.context.client.get(pools(space, name))
                await self.shared.pools.caught_up(known)
            elif drifted(known, wanted):
                body = {"metadata": {"annotations": wanted["metadata"].get("annotations")}, "spec": wanted["spec"]}
                await self.shared.pools.caught_up(await self.context.client.patch(pools(space, name), body))
            references.append({"name": name})
            zones.setdefault(zone, {"zone": zone})[f"inClusterIPPoolRef{family.upper()}"] = {"name": name}
        status = item.setdefault("status", {})
        if self.era.old:
            status["inClusterIpPoolRef"] = references
        else:
            status["inClusterIPPoolRef"] = references
            status["inClusterZoneRef"] = [zones[name] for name in sorted(zones)]
        return True

    async def _claim_secret(self, item: Object) -> None:
        """Nothing; the Secret of the credentials cannot go before the cluster."""
        reference = item["spec"].get("credentialsRef")
        if not reference:
            return
        path = self._secret_path(item, reference)
        space = reference.get("namespace") or item["metadata"]["namespace"]
        secret = self.shared.secrets.get(space, reference["name"])
        if secret is None:
            self._unreachable(item, f'Secret "{reference["name"]}" not found')
            raise Failure(f'Secret "{reference["name"]}" not found')
        meta = secret["metadata"]
        owners, finalizers = list(meta.get("ownerReferences") or ()), list(meta.get("finalizers") or ())
        uid = item["metadata"]["uid"]
        if not any(row["uid"] == uid for row in owners):
            row = {
                key: value for key, value in owner_of(item).items() if key not in ("controller", "blockOwnerDeletion")
            }
            owners.append(row)
        if SECRET_FINALIZER not in finalizers:
            finalizers.append(SECRET_FINALIZER)
        if owners != (meta.get("ownerReferences") or []) or finalizers != (meta.get("finalizers") or []):
            body = {"metadata": {"ownerReferences": owners, "finalizers": finalizers}}
            await self.shared.secrets.caught_up(await self.context.client.patch(path, body))

    @staticmethod
    def _secret_path(item: Object, reference: Mapping[str, Any]) -> str:
        space = reference.get("namespace") or item["metadata"]["namespace"]
        return f"/api/v1/namespaces/{space}/secrets/{reference['name']}"

    async def _delete(self, item: Object, cluster: Object) -> float | None:
        finalizers = item["metadata"].get("finalizers") or []
        if CLUSTER_FINALIZER not in finalizers:
            return None
        if "deletionTimestamp" not in cluster["metadata"]:
            said = "deletion was requested but owning cluster wasn't deleted"
            self.shared.error(f"{SOURCE}:142", "Unable to delete ProxmoxCluster", item, said)
            return None
        mark(self.era, item, self.era.cluster, False, "Deleting", self.context.stamp())
        name = cluster["metadata"]["name"]
        left = [
            key
            for key, machine in self.shared.machines.items.items()
            if key[0] == item["metadata"]["namespace"]
            and (machine["metadata"].get("labels") or {}).get(CLUSTER_LABEL) == name
        ]
        if left:
            self.shared.log(f"{SOURCE}:160", "waiting for machines to be deleted", item, remaining=len(left))
            return REQUEUE
        if reference := item["spec"].get("credentialsRef"):
            await self._free_secret(item, reference)
        self.shared.log(f"{SOURCE}:168", "cluster deleted successfully", item)
        item["metadata"]["finalizers"] = [entry for entry in finalizers if entry != CLUSTER_FINALIZER]
        return None

    async def _free_secret(self, item: Object, reference: Mapping[str, Any]) -> None:
        path = self._secret_path(item, reference)
        secret = await self.context.client.find(path)
        if secret is None:
            return
        meta, uid = secret["metadata"], item["metadata"]["uid"]
        owners = [row for row in meta.get("ownerReferences") or () if row["uid"] != uid]
        body: Object = {"metadata": {"ownerReferences": owners}}
        if not any(row["kind"] == "ProxmoxCluster" for row in owners):
            body["metadata"]["finalizers"] = [e for e in meta.get("finalizers") or () if e != SECRET_FINALIZER]
        await self.context.client.patch(path, body)


def missing_endpoint(spec: Mapping[str, Any]) -> str:
    """What a cluster whose control plane somebody else runs still lacks: "host", "port" or nothing."""
    if not spec.get("externalManagedControlPlane"):
        return ""
    endpoint = spec.get("controlPlaneEndpoint") or {}
    return "host" if not endpoint.get("host") else "port" if not endpoint.get("port") else ""


def pools_of(era: Era, item: Object) -> list[tuple[Object, str, str]]:
    """The pools a cluster is to have, each with its zone and family, "v4" or "v6"."""
    name, found = item["metadata"]["name"], []
    configs: list[tuple[str, Mapping[str, Any]]] = [("default", item["spec"])]
    if not era.old:
        configs += [(row["zone"], row) for row in item["spec"].get("zoneConfig") or ()]
    for zone, config in configs:
        for family, key in (("v4", "ipv4Config"), ("v6", "ipv6Config")):
            if given := config.get(key):
                middle = f"{family}" if zone == "default" else f"{zone}-{family}"
                found.append((_pool(era, item, f"{name}-{middle}-icip", given, zone, family), zone, family))
    return found


def _pool(era: Era, item: Object, name: str, given: Mapping[str, Any], zone: str, family: str) -> Object:
    spec = {"addresses": list(given["addresses"]), "prefix": given["prefix"]}
    if given.get("gateway"):
        spec["gateway"] = given["gateway"]
    notes: dict[str, str] = {}
    labels: dict[str, str] = {}
    if era.old:
        if given.get("metric") is not None:
            notes["metric"] = str(given["metric"])
    else:
        spec["addressReuseGracePeriodSeconds"] = GRACE_SECONDS
        notes = {f"{ANNOTATION}/ip-family": f"ip{family}"}
        if given.get("metric") is not None:
            notes[f"{ANNOTATION}/gateway-metric"] = str(given["metric"])
        labels["topology.kubernetes.io/proxmox-zone"] = zone
    meta: Object = {
        "name": name, "namespace": item["metadata"]["namespace"], "ownerReferences": [owner_of(item)],
        **({"annotations": notes} if notes else {}), **({"labels": labels} if labels else {}),
    }  # fmt: skip
    return {"apiVersion": "ipam.cluster.x-k8s.io/v1alpha2", "kind": "InClusterIPPool", "metadata": meta, "spec": spec}


def drifted(known: Object, wanted: Object) -> bool:
    """Whether the pool is not as the cluster wishes it."""
    notes, have = wanted["metadata"].get("annotations") or {}, known["metadata"].get("annotations") or {}
    return any(known["spec"].get(key) != value for key, value in wanted["spec"].items()) or any(
        have.get(key) != value for key, value in notes.items()
    )
