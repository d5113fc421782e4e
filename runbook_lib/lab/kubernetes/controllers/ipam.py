"""The in-cluster IPAM provider: pools of addresses, and an IPAddress for each IPAddressClaim on one of them."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .alarms import Alarms
from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .klog import line
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "ipam.cluster.x-k8s.io"
POOLS = f"/apis/{GROUP}/v1alpha2"
KINDS = {"InClusterIPPool": "inclusterippools", "GlobalInClusterIPPool": "globalinclusterippools"}
RELEASE, PROTECT, PROTECT_POOL = f"{GROUP}/ReleaseAddress", f"{GROUP}/ProtectAddress", f"{GROUP}/ProtectPool"
CLUSTER_LABEL = "cluster.x-k8s.io/cluster-name"
EXHAUSTED = "no address available"


class NoAddress(Exception):
    """The pool has none to give."""


# -- judgement ----------------------------------------------------------------------------------------

Range = tuple[int, int]


def ranges(spec: Mapping[str, Any]) -> list[Range]:
    """The addresses a pool may give, as ranges of numbers in order; the gateway is among them."""
    found = _merged(_parsed(text) for text in spec.get("addresses") or ())
    gone = [_parsed(text) for text in spec.get("excludedAddresses") or ()]
    if not spec.get("allocateReservedIPAddresses"):
        gone += list(_reserved(spec))
    for low, high in gone:
        found = [piece for first, last in found for piece in _without(first, last, low, high)]
    return found


def _parsed(text: str) -> Range:
    if "-" in text:
        low, _, high = text.partition("-")
        return int(ipaddress.ip_address(low.strip())), int(ipaddress.ip_address(high.strip()))
    if "/" in text:
        network = ipaddress.ip_network(text, strict=False)
        return int(network.network_address), int(network.broadcast_address)
    return int(ipaddress.ip_address(text)), int(ipaddress.ip_address(text))


def _merged(given: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    for low, high in sorted(given):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def _without(first: int, last: int, low: int, high: int) -> Iterator[Range]:
    if high < first or low > last:
        yield first, last
        return
    if first < low:
        yield first, low - 1
    if high < last:
        yield high + 1, last


def _reserved(spec: Mapping[str, Any]) -> Iterator[Range]:
    """A subnet's own address (for IPv6 the anycast one) and, for IPv4, its broadcast address."""
    for text in spec.get("addresses") or ():
        first = ipaddress.ip_address(re.split(r"[-/]", text)[0].strip())
        network = ipaddress.ip_network(f"{first}/{spec['prefix']}", strict=False)
        yield int(network.network_address), int(network.network_address)
        if network.version == 4 and network.prefixlen < 31:
            yield int(network.broadcast_address), int(network.broadcast_address)


def _shown(number: int, spec: Mapping[str, Any]) -> str:
    six = ":" in str((spec.get("addresses") or [""])[0])
    return str(ipaddress.IPv6Address(number) if six else ipaddress.IPv4Address(number))


def free_address(spec: Mapping[str, Any], used: Iterable[str]) -> str:
    """The lowest address of the pool that nobody has. Raises NoAddress."""
    taken = {int(ipaddress.ip_address(text)) for text in used}
    if gateway := spec.get("gateway"):
        taken.add(int(ipaddress.ip_address(gateway)))
    for low, high in ranges(spec):
        for number in range(low, high + 1):
            if number not in taken:
                return _shown(number, spec)
    raise NoAddress(EXHAUSTED)


def counts(spec: Mapping[str, Any], used: Sequence[str]) -> dict[str, int]:
    """What the pool's status says of its addresses."""
    known = ranges(spec)
    total = sum(high - low + 1 for low, high in known)

    def within(text: str) -> bool:
        number = int(ipaddress.ip_address(text))
        return any(low <= number <= high for low, high in known)

    if spec.get("gateway") and within(spec["gateway"]):
        total -= 1
    outside = sum(not within(text) for text in used)
    total = min(total, sys.maxsize)
    return {"total": total, "used": len(used), "free": total - len(used), "outOfRange": outside}


# -- the controllers ----------------------------------------------------------------------------------


@dataclass
class Provider:
    """One running manager."""

    context: Context
    process: Process
    contract: str

    def __post_init__(self) -> None:
        head = f"/apis/{GROUP}/{self.contract}"
        self.claims = self.context.cache(f"{head}/ipaddressclaims")
        self.addresses = self.context.cache(f"{head}/ipaddresses")
        self.clusters = self.context.cache(f"/apis/cluster.x-k8s.io/{self.contract}/clusters")
        self.pools: dict[str, Cache] = {kind: self.context.cache(f"{POOLS}/{plural}") for kind, plural in KINDS.items()}
        self.alarms = Alarms(self.context)
        self._pauses: dict[Key, asyncio.Future[None]] = {}
        self._giving: dict[tuple[str, str, str], asyncio.Lock] = {}

    def path(self, plural: str, namespace: str, name: str = "") -> str:
        """Where claims and addresses are."""
        return f"/apis/{GROUP}/{self.contract}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")

    def pool_path(self, kind: str, namespace: str, name: str) -> str:
        """Where a pool is."""
        where = f"/namespaces/{namespace}" if kind == "InClusterIPPool" else ""
        return f"{POOLS}{where}/{KINDS[kind]}/{name}"

    async def run(self) -> None:
        """Works until cancelled."""
        await self.context.synced(self.addresses, self.clusters)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    reconcile(
                        self.context,
                        self.claims,
                        self.claim,
                        also=(
                            (self.alarms, Alarms.keys),
                            *((cache, self._of_pool(kind)) for kind, cache in self.pools.items()),
                        ),
                    )
                )
                for kind, cache in self.pools.items():
                    work = self._counting(kind)
                    group.create_task(
                        reconcile(self.context, cache, work, also=((self.addresses, self._pool_of(kind)),), workers=1)
                    )
        finally:
            self.alarms.close()
            for pause in self._pauses.values():
                pause.cancel()

    def _of_pool(self, kind: str) -> Any:
        def keys(pool: Object) -> list[Key]:
            space, name = key_of(pool)
            return [
                key
                for key, claim in self.claims.items.items()
                if (claim["spec"]["poolRef"]["kind"], claim["spec"]["poolRef"]["name"]) == (kind, name)
                and (kind != "InClusterIPPool" or key[0] == space)
                and not (claim.get("status") or {}).get("addressRef", {}).get("name")
            ]

        return keys

    def _pool_of(self, kind: str) -> Any:
        def keys(address: Object) -> list[Key]:
            reference = address.get("spec", {}).get("poolRef") or {}
            if reference.get("kind") != kind:
                return []
            return [(address["metadata"]["namespace"] if kind == "InClusterIPPool" else "", reference["name"])]

        return keys

    def used(self, kind: str, namespace: str, name: str) -> list[Object]:
        """The addresses a pool has given."""
        return [
            address
            for key, address in sorted(self.addresses.items.items())
            if (address["spec"]["poolRef"]["kind"], address["spec"]["poolRef"]["name"]) == (kind, name)
            and (kind != "InClusterIPPool" or key[0] == namespace)
        ]

    def say(self, place: str, message: str, claim: Object, *, level: str = "I", **values: Any) -> None:
        """Nothing; a line of the log about a claim."""
        name = "/".join(key_of(claim))
        self.process.write(
            line(self.context.clock.now(), level, place, message, controller="ipaddressclaim",
                 controllerGroup=GROUP, controllerKind="IPAddressClaim", IPAddressClaim=name, **values)
        )  # fmt: skip

    async def claim(self, key: Key, claim: Object | None) -> None:
        """One pass over one claim."""
        if claim is None:
            self.alarms.cancel(key)
            if pause := self._pauses.pop(key, None):
                pause.cancel()
            return
        meta, deleting = claim["metadata"], "deletionTimestamp" in claim["metadata"]
        name = claim["spec"].get("clusterName") or (meta.get("labels") or {}).get(CLUSTER_LABEL, "")
        cluster = self.clusters.get(key[0], name) if name else None
        if name and cluster is None and not deleting:
            text = "IPAddressClaim linked to a cluster that is not found, unable to determine cluster's paused state"
            self.say("reconciler.go:137", f"{text}, skipping reconciliation", claim)
            self.alarms.set(key, 10.0)
            return
        if cluster is not None and cluster.get("spec", {}).get("paused"):
            self.say(
                "reconciler.go:144", "IPAddressClaim linked to a cluster that is paused, skipping reconciliation", claim
            )
            self.alarms.set(key, 10.0)
            return
        if deleting:
            await self._release(key, claim)
            return
        path = self.path("ipaddressclaims", *key)
        if RELEASE not in meta.get("finalizers", ()):
            body = {"metadata": {"finalizers": [*meta.get("finalizers", ()), RELEASE]}}
            await self.claims.caught_up(await self.context.client.patch(path, body))
        reference = claim["spec"]["poolRef"]
        kind = reference["kind"]
        if kind not in self.pools:
            return
        space = key[0] if kind == "InClusterIPPool" else ""
        pool = self.pools[kind].get(space, reference["name"])
        if pool is None:
            text = f'pool not found: failed to fetch pool: {kind}.{GROUP} "{reference["name"]}" not found'
            self.say("reconciler.go:170", "the referenced pool could not be found", claim, level="E", err=text)
            return
        if "cluster.x-k8s.io/paused" in (pool["metadata"].get("annotations") or {}):
            return
        async with self._giving.setdefault((kind, space, reference["name"]), asyncio.Lock()):
            if self.addresses.get(*key) is None and not await self._give(claim, pool, kind):
                return
        if (claim.get("status") or {}).get("addressRef", {}).get("name") != key[1]:
            answer = await self.context.client.patch(f"{path}/status", {"status": {"addressRef": {"name": key[1]}}})
            await self.claims.caught_up(answer)

    async def _give(self, claim: Object, pool: Object, kind: str) -> bool:
        space, name = key_of(claim)
        taken = [row["spec"]["address"] for row in self.used(kind, space, pool["metadata"]["name"])]
        try:
            address = free_address(pool["spec"], taken)
        except NoAddress as error:
            text = f"failed to create or patch address: failed to find free address: {error}"
            self.say("controller.go:474", "Reconciler error", claim, level="E", err=text)
            self.alarms.set((space, name), 30.0)
            return False
        spec = {
            "address": address, "prefix": pool["spec"]["prefix"], "claimRef": {"name": name},
            "poolRef": {"apiGroup": GROUP, "kind": kind, "name": pool["metadata"]["name"]},
        }  # fmt: skip
        if pool["spec"].get("gateway"):
            spec["gateway"] = pool["spec"]["gateway"]
        labels = {key: value for key, value in (claim["metadata"].get("labels") or {}).items() if key == CLUSTER_LABEL}
        owners = [_owner(claim, f"{GROUP}/{self.contract}", "IPAddressClaim", controller=True)]
        owners.append(_owner(pool, f"{GROUP}/v1alpha2", kind, controller=False))
        meta: Object = {
            "name": name, "namespace": space, "finalizers": [PROTECT], "ownerReferences": owners,
            **({"labels": labels} if labels else {}),
            **({"annotations": claim["metadata"]["annotations"]} if claim["metadata"].get("annotations") else {}),
        }  # fmt: skip
        body = {"apiVersion": f"{GROUP}/{self.contract}", "kind": "IPAddress", "metadata": meta, "spec": spec}
        answer = await self.context.client.create(self.path("ipaddresses", space), body)
        await self.addresses.caught_up(answer)
        self.say("reconciler.go:237", f"IPAddress {space}/{name} ({address}) has been created", claim)
        return True

    async def _release(self, key: Key, claim: Object) -> None:
        finalizers = claim["metadata"].get("finalizers") or []
        if RELEASE not in finalizers:
            return
        reference = claim["spec"]["poolRef"]
        cache = self.pools.get(reference["kind"])
        space = key[0] if reference["kind"] == "InClusterIPPool" else ""
        pool = cache.get(space, reference["name"]) if cache else None
        grace = (pool or {"spec": {}})["spec"].get("addressReuseGracePeriodSeconds") or 0
        if pool is not None and "deletionTimestamp" not in pool["metadata"] and grace:
            if key not in self._pauses:
                self._pauses[key] = asyncio.ensure_future(self.context.clock.sleep(grace))
                text = "Address reuse grace period active, delaying IP address release"
                self.say("ipaddressclaim_address.go:187", text, claim, gracePeriodSeconds=grace)
            if not self._pauses[key].done():
                self.alarms.set(key, float(grace))
                return
        address = self.addresses.get(*key)
        if address is not None:
            path = self.path("ipaddresses", *key)
            rest = [entry for entry in address["metadata"].get("finalizers") or () if entry != PROTECT]
            try:
                await self.context.client.patch(path, {"metadata": {"finalizers": rest}})
                await self.context.client.delete(path)
            except Refused as error:
                if error.code != 404:
                    raise
        body = {"metadata": {"finalizers": [entry for entry in finalizers if entry != RELEASE]}}
        try:
            await self.context.client.patch(self.path("ipaddressclaims", *key), body)
        except Refused as error:
            if error.code != 404:
                raise

    def _counting(self, kind: str) -> Any:
        async def count(key: Key, pool: Object | None) -> None:
            if pool is None:
                return
            path = self.pool_path(kind, *key)
            finalizers = pool["metadata"].get("finalizers") or []
            given = [row["spec"]["address"] for row in self.used(kind, *key)]
            if "deletionTimestamp" in pool["metadata"]:
                if not given and PROTECT_POOL in finalizers:
                    rest = [entry for entry in finalizers if entry != PROTECT_POOL]
                    await self.context.client.patch(path, {"metadata": {"finalizers": rest}})
                return
            if PROTECT_POOL not in finalizers:
                body = {"metadata": {"finalizers": [*finalizers, PROTECT_POOL]}}
                await self.pools[kind].caught_up(await self.context.client.patch(path, body))
            wanted = counts(pool["spec"], given)
            if (pool.get("status") or {}).get("ipAddresses") != wanted:
                answer = await self.context.client.patch(f"{path}/status", {"status": {"ipAddresses": wanted}})
                await self.pools[kind].caught_up(answer)

        return count


def _owner(item: Object, version: str, kind: str, *, controller: bool) -> Object:
    meta = item["metadata"]
    return {
        "apiVersion": version, "kind": kind, "name": meta["name"], "uid": meta["uid"],
        "controller": controller, "blockOwnerDeletion": True,
    }  # fmt: skip


async def run(context: Context, process: Process) -> None:
    """The manager: 1.0 speaks Cluster API v1beta1, 1.1 and later v1beta2."""
    match = re.match(r"v?(\d+)\.(\d+)", process.version)
    old = bool(match) and (int(match[1]), int(match[2])) < (1, 1) if match else False
    process.write(line(context.clock.now(), "I", "main.go:212", "starting manager", logger="setup"))
    await Provider(context, process, "v1beta1" if old else "v1beta2").run()


PROGRAMS = (
    Program("cluster-api-ipam-in-cluster-controller", run),
    Program("ipam-controller", run),
)
