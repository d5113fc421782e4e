"""The Cluster API operator: providers are asked for as objects, and their components are fetched and put in place."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import yaml

from ..charts import cluster_api
from . import klog
from .capi_operator_rules import (
    COMPRESSED,
    INSTALLED,
    KINDS,
    PREFIX,
    PREFLIGHT,
    READY,
    TYPES,
    UPGRADED,
    Era,
    Failed,
    Repository,
    components,
    contract_of,
    era,
    from_config_maps,
    label_of,
    name_of,
    parsed,
    preflight,
    settled,
    told,
)
from .client import Cache, Key, Object, Refused
from .context import Context
from .installing import NoMatch, Pace, Places, is_true, key_in, put, row_of, selected, take_away
from .internet import unreachable
from .processes import Process, Program
from .reconcile import Mapped, reconcile

GROUP = "/apis/operator.cluster.x-k8s.io/v1alpha2"
FINALIZER = "provider.cluster.x-k8s.io"
APPLIED = "operator.cluster.x-k8s.io/applied-spec-hash"
MANAGER = "capi-operator"
LIMIT = 1024 * 1024  # bytes of a ConfigMap; above it the components are packed
FIRST_PAUSE, LAST_PAUSE = 1.0, 1000.0  # lab seconds


@dataclass
class Operator:
    """One running operator."""

    context: Context
    process: Process
    era: Era
    places: Places
    caches: dict[str, Cache]
    deployments: Cache
    maps: Cache
    secrets: Cache
    failures: dict[tuple[str, Key], int] = field(default_factory=dict)
    seen: dict[tuple[str, Key], str] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)

    def say(self, message: str, provider: Object, *, error: str = "") -> None:
        """A line of the log."""
        meta = provider["metadata"]
        place = "controller.go:316" if error else "genericprovider_controller.go:128"
        values = {"controller": provider["kind"].lower(), "namespace": meta["namespace"], "name": meta["name"]}
        more = {"err": error} if error else {}
        self.process.write(klog.line(self.context.clock.now(), "E" if error else "I", place, message, **more, **values))

    def everyone(self) -> list[Object]:
        """Every provider of the cluster."""
        return [item for cache in self.caches.values() for item in cache.items.values()]

    # -- one provider -------------------------------------------------------------------------------------------------

    async def work(self, kind: str, key: Key, provider: Object | None) -> float | None:
        """Brings one provider nearer to its wish."""
        if provider is None:
            self.failures.pop((kind, key), None)
            return None
        provider = {"kind": kind, **provider}
        meta = provider["metadata"]
        if meta.get("deletionTimestamp"):
            return await self.remove(provider)
        if FINALIZER not in (meta.get("finalizers") or ()):
            await self.wrote(kind, await self.patch(provider, {
                "metadata": {"finalizers": [*(meta.get("finalizers") or ()), FINALIZER]}}))  # fmt: skip
            return None
        if settled(provider) and not await self.changed(provider):
            return await self.health(provider)
        self.say("Reconciling provider", provider)
        try:
            await self.install(provider)
        except Failed as failed:
            return await self.fail(provider, failed)
        self.failures.pop((kind, key), None)
        return 0.5  # the deployment's turn

    async def changed(self, provider: Object) -> bool:
        """Whether the values or files it was installed with are others now. One of before the operator never is."""
        noted = (provider["metadata"].get("annotations") or {}).get(APPLIED)
        return noted is not None and noted != await self.hash_of(provider)

    async def hash_of(self, provider: Object) -> str:
        """A digest of the wish and all it refers to."""
        secret = await self.secret_of(provider)
        maps = [
            (item["metadata"]["name"], item.get("data"), item.get("binaryData")) for item in self.chosen_maps(provider)
        ]
        text = json.dumps([provider.get("spec"), (secret or {}).get("data"), sorted(maps, key=str)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def chosen_maps(self, provider: Object) -> list[Object]:
        """The ConfigMaps that hold the provider's files."""
        labels = self.labels_of(provider)
        space = provider["metadata"]["namespace"]
        return [
            item
            for (where, _), item in self.maps.items.items()
            if where == space and selected(item["metadata"].get("labels"), labels)
        ]

    def labels_of(self, provider: Object) -> dict[str, str]:
        """What the ConfigMaps carry: the wish's own selector, or the operator's labels."""
        fetch = (provider.get("spec") or {}).get("fetchConfig") or {}
        if fetch.get("selector"):
            return dict(fetch["selector"].get("matchLabels") or {})
        labels = {
            PREFIX + "version": str(provider["spec"].get("version", "")), PREFIX + "type": TYPES[provider["kind"]],
            PREFIX + "name": provider["metadata"]["name"], "managed-by.operator.cluster.x-k8s.io": "true",
        }  # fmt: skip
        return labels | ({PREFIX + "source": "oci"} if fetch.get("oci") else {})

    async def secret_of(self, provider: Object) -> Object | None:
        """The Secret with the variables."""
        reference = (provider.get("spec") or {}).get("configSecret")
        if not reference:
            return None
        space, name = key_in(provider["metadata"]["namespace"], reference)
        return await self.context.client.find(f"/api/v1/namespaces/{space}/secrets/{name}")

    async def install(self, provider: Object) -> None:
        """Nothing; the components are in place. Raises Failed."""
        secret = await self.secret_of(provider)
        asked = bool((provider.get("spec") or {}).get("configSecret"))
        self.say("Performing preflight checks", provider)
        preflight(provider, self.everyone(), secret, asked_secret=asked)
        self.say("Preflight checks passed", provider)
        provider, repository = await self.load(provider)
        version = provider["spec"]["version"]
        contract = contract_of(provider, repository, version, self.era.contracts)
        values = {
            k: base64.b64decode(v).decode(errors="replace") for k, v in ((secret or {}).get("data") or {}).items()
        }
        items = components(provider, repository.files[version][1], values)
        before = (provider.get("status") or {}).get("installedVersion")
        upgrade = before is not None and before != version
        self.say(
            "Version changes detected, updating existing components" if upgrade else "Installing provider", provider
        )
        try:
            await put(self.places, items, manager=MANAGER, namespace=provider["metadata"]["namespace"])
        except (NoMatch, Refused) as error:
            reason = "InstallFailed" if self.era.raised else "Install failed"
            raise Failed(
                UPGRADED if upgrade else INSTALLED, "ComponentsUpgradeError" if upgrade else reason, str(error)
            ) from None
        self.say("Provider successfully upgraded" if upgrade else "Provider successfully installed", provider)
        await self.report(provider, contract, upgrade=upgrade)

    async def load(self, provider: Object) -> tuple[Object, Repository]:
        """The provider with a version, and the files there are. Raises Failed."""
        fetch = (provider.get("spec") or {}).get("fetchConfig") or {}
        if not fetch.get("selector"):
            provider = await self.download(provider)
        repository = from_config_maps(provider, self.maps.items.values(), self.labels_of(provider))
        if not provider["spec"].get("version"):
            provider = await self.with_version(provider, repository.latest)
        return provider, repository

    async def with_version(self, provider: Object, version: str) -> Object:
        """The provider after the version that was found was written into its wish."""
        made = await self.patch(provider, {"spec": {"version": version}})
        await self.wrote(provider["kind"], made)
        return {"kind": provider["kind"], **made}

    async def download(self, provider: Object) -> Object:
        """The provider; a ConfigMap holds its files, fetched when it was not there. Raises Failed."""
        if provider["spec"].get("version") and self.chosen_maps(provider):
            return provider
        self.say("Downloading provider manifests", provider)
        await self.context.clock.sleep(2)
        name, fetch = provider["metadata"]["name"], provider["spec"].get("fetchConfig") or {}
        row = self.published(provider)
        if not provider["spec"].get("version"):
            newest = max(row.versions, key=lambda version: (parsed(version) or (0, 0, 0, ""))[:3])
            provider = await self.with_version(provider, newest)
        version = str(provider["spec"]["version"])
        if version not in row.versions:
            words = f'failed to create config map for provider "{name}": failed to read metadata.yaml from the '
            words += f'repository for provider "{name}": failed to get GitHub release {version}: release not found for '
            words += f'version {version}, please retry later or set "GOPROXY=off" to get the current stable release'
            if fetch.get("oci"):
                words = f"{fetch['oci']}:{version}: not found"
            raise Failed(INSTALLED, "ComponentsFetchError", words)
        text = yaml.dump_all(cluster_api.release(row, version), sort_keys=False)
        metadata = yaml.safe_dump(cluster_api.metadata(row), sort_keys=False)
        body: Object = {
            "metadata": {
                "name": f"{TYPES[provider['kind']]}-{name}-{version}", "labels": self.labels_of(provider),
                "ownerReferences": [{
                    "apiVersion": provider["apiVersion"], "kind": provider["kind"], "name": name,
                    "uid": provider["metadata"]["uid"],
                }],
            },
            "data": {"metadata": metadata},
        }  # fmt: skip
        if len(text) + len(metadata) > LIMIT:
            body["metadata"]["annotations"] = {COMPRESSED: "true"}
            body["binaryData"] = {"components": base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()}
        else:
            body["data"]["components"] = text
        space = provider["metadata"]["namespace"]
        try:
            await self.maps.caught_up(await self.context.client.create(f"/api/v1/namespaces/{space}/configmaps", body))
        except Refused as error:
            if error.code != 409:
                raise
        return provider

    def published(self, provider: Object) -> cluster_api.Project:
        """Where the provider's releases are, once the place answers. Raises Failed."""
        name, fetch = provider["metadata"]["name"], (provider.get("spec") or {}).get("fetchConfig") or {}

        def failed(words: str) -> Failed:
            return Failed(INSTALLED, "ComponentsFetchError", words)

        if fetch.get("oci"):
            host, _, path = str(fetch["oci"]).removeprefix("oci://").partition("/")
            if why := unreachable(self.context.world, host):
                raise failed(f'failed to fetch provider from OCI: Get "https://{host}/v2/": {why}')
            found = next(
                (row for row in cluster_api.PROJECTS if row.name in path and row.kind in provider["kind"]), None
            )
            if found is None:
                raise failed(f"{fetch['oci']}: not found")
            return found
        row = cluster_api.project(provider["kind"].removesuffix("Provider"), name_of(provider))
        url = str(fetch.get("url") or (row.url if row else ""))
        parts = urlsplit(url)
        words = f'failed to create repo from provider url for provider "{name}": error creating the GitHub repository '
        proxy = "proxy.golang.org" if parts.netloc == "github.com" else parts.netloc
        if why := unreachable(self.context.world, proxy):
            module = f"github.com/{'/'.join(parts.path.strip('/').split('/')[:2])}/@v/list"
            raise failed(f'{words}client: failed to get latest release: Get "https://{proxy}/{module}": {why}')
        found_at = re.match(r"/([^/]+/[^/]+)/releases/[^/]+(?:/[^/]+)?/([^/]+\.yaml)$", parts.path)
        known = cluster_api.published(found_at[1], found_at[2]) if found_at else row if not fetch.get("url") else None
        if known is None:
            place = "/".join(parts.path.strip("/").split("/")[:2])
            raise failed(f'{words}client: failed to get repository "{place}": 404 Not Found')
        return known

    # -- what is told

    async def report(self, provider: Object, contract: str, *, upgrade: bool) -> None:
        """Nothing; the provider says what is installed, under which wish."""
        rows = [
            (PREFLIGHT, "True", "PreflightChecksPassed", "All preflight checks passed" if self.era.raised else "", ""),
            (INSTALLED, "True", "ProviderInstalled", "Provider installed successfully" if self.era.raised else "", ""),
        ]
        if upgrade:
            rows.append(
                (UPGRADED, "True", "ProviderUpgraded", "Provider upgraded successfully" if self.era.raised else "", "")
            )
        noted = {"metadata": {"annotations": {APPLIED: await self.hash_of(provider)}}}
        made = await self.patch(provider, noted)
        status = {
            "contract": contract, "installedVersion": provider["spec"]["version"],
            "observedGeneration": made["metadata"].get("generation", 1),
            "conditions": told(provider, rows, now=self.context.stamp(), raised=self.era.raised),
        }  # fmt: skip
        await self.wrote(provider["kind"], await self.status(provider, status))

    async def fail(self, provider: Object, failed: Failed) -> float | None:
        """Seconds until the next try; the provider says what is wrong."""
        key = (provider["kind"], (provider["metadata"]["namespace"], provider["metadata"]["name"]))
        if failed.quiet:
            self.say(failed.message, provider)
        else:
            self.say("Reconciler error", provider, error=failed.message)
        rows: list[tuple[str, str, str, str, str]] = []
        if failed.kind:
            rows.append((failed.kind, "False", failed.reason, failed.message, failed.severity))
        if failed.kind in {INSTALLED, UPGRADED}:
            passed = "All preflight checks passed" if self.era.raised else ""
            rows.insert(0, (PREFLIGHT, "True", "PreflightChecksPassed", passed, ""))
        status: Object = {}
        if rows:
            status["conditions"] = told(provider, rows, now=self.context.stamp(), raised=self.era.raised)
        if failed.quiet:
            status["observedGeneration"] = provider["metadata"].get("generation", 1)
        known = provider.get("status") or {}
        if any(known.get(name) != value for name, value in status.items()):
            await self.wrote(provider["kind"], await self.status(provider, status))
        if failed.quiet:
            return None
        count = self.failures[key] = self.failures.get(key, 0) + 1
        return self.pace.again(key, min(FIRST_PAUSE * 2 ** min(count, 12), LAST_PAUSE))

    async def health(self, provider: Object) -> float | None:
        """Nothing, or seconds until the next look; Ready follows the manager's Deployment from its first change on."""
        space, label = provider["metadata"]["namespace"], label_of(provider)
        mine = [
            item
            for (where, _), item in self.deployments.items.items()
            if where == space
            and (item["metadata"].get("labels") or {}).get("cluster.x-k8s.io/provider", "") == label
        ]  # fmt: skip
        if not mine:
            return None
        state = ",".join(sorted(str(item["metadata"]["resourceVersion"]) for item in mine))
        key = (provider["kind"], (space, provider["metadata"]["name"]))
        known, self.seen[key] = self.seen.get(key), state
        if row_of(provider, READY) and known in {None, state}:
            return None  # as the real one hears updates only
        worst = next((item for item in mine if not is_true(item, "Available")), mine[0])
        available = row_of(worst, "Available")
        status, reason = available.get("status", "False"), available.get("reason", "NoDeploymentAvailable")
        if row_of(provider, READY).get("status") != status:
            rows = told(provider, [(READY, status, reason, "", "")], now=self.context.stamp(), raised=self.era.raised)
            await self.wrote(provider["kind"], await self.status(provider, {"conditions": rows}))
        return None

    async def remove(self, provider: Object) -> float | None:
        """Nothing; the components are gone, but for definitions and the namespace, and so is the provider."""
        meta = provider["metadata"]
        if FINALIZER not in (meta.get("finalizers") or ()):
            return None
        self.say("Deleting provider", provider)
        for wanted in await self.parts_of(provider):
            await take_away(self.places, [wanted], namespace=meta["namespace"])
        rest = [name for name in meta["finalizers"] if name != FINALIZER]
        await self.patch(provider, {"metadata": {"finalizers": rest or None}})
        return None

    async def parts_of(self, provider: Object) -> list[Object]:
        """What carries the provider's label: in its namespace, and what lies in none, but no definitions."""
        label, space = f"cluster.x-k8s.io/provider={label_of(provider)}", provider["metadata"]["namespace"]
        found: list[Object] = []
        for api, kind in PARTS:
            place = await self.places.find(api, kind)
            if place is None:
                continue
            root = f"/apis/{api}" if "/" in api else f"/api/{api}"
            inside = f"/namespaces/{space}" if place[1] else ""
            listed = await self.context.client.list(f"{root}{inside}/{place[0]}", labelSelector=label)
            found += [{**item, "apiVersion": api, "kind": kind} for item in listed.get("items") or ()]
        return found

    # -- writing

    def path(self, provider: Object) -> str:
        """Where the provider lies."""
        meta = provider["metadata"]
        return f"{GROUP}/namespaces/{meta['namespace']}/{KINDS[provider['kind']]}/{meta['name']}"

    async def patch(self, provider: Object, body: Object) -> Object:
        """The provider as patched."""
        return await self.context.client.patch(self.path(provider), body)

    async def status(self, provider: Object, body: Object) -> Object:
        """The provider with this in its status."""
        return await self.context.client.patch(f"{self.path(provider)}/status", {"status": body})

    async def wrote(self, kind: str, made: Object) -> None:
        """Returns once the cache has what was written."""
        await self.caches[kind].caught_up(made)


PARTS = (
    ("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "ServiceAccount"), ("v1", "Secret"),
    ("rbac.authorization.k8s.io/v1", "Role"), ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"), ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("cert-manager.io/v1", "Certificate"), ("cert-manager.io/v1", "Issuer"),
)  # fmt: skip
"""The kinds that a provider's components are made of."""


async def run(context: Context, process: Process) -> None:
    """Works on every provider until cancelled."""
    caches = {kind: context.cache(f"{GROUP}/{plural}") for kind, plural in KINDS.items()}
    deployments = context.cache("/apis/apps/v1/deployments")
    maps, secrets = context.cache("/api/v1/configmaps"), context.cache("/api/v1/secrets")
    operator = Operator(
        context, process, era(process.version), Places(context.client), caches, deployments, maps, secrets
    )
    process.write(klog.line(context.clock.now(), "I", "main.go:183", "Version", version=process.version))
    process.write(klog.line(context.clock.now(), "I", "main.go:208", "starting manager"))

    async def one(kind: str, cache: Cache) -> None:
        def beside(item: Object) -> list[Key]:
            """Providers of this kind that a ConfigMap, Secret or Deployment of their namespace may matter to."""
            space = item["metadata"].get("namespace", "")
            return [key for key in cache.items if key[0] == space]

        def by_label(item: Object) -> list[Key]:
            label = (item["metadata"].get("labels") or {}).get("cluster.x-k8s.io/provider")
            rows = ((key, {"kind": kind, **row}) for key, row in cache.items.items())
            return [key for key, row in rows if label is not None and label_of(row) == label]

        def by_secret(item: Object) -> list[Key]:
            own = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
            rows = [(key, (row.get("spec") or {}).get("configSecret")) for key, row in cache.items.items()]
            return [key for key, reference in rows if reference and key_in(key[0], reference) == own]

        def on_core(_: Object) -> list[Key]:
            return [key for key, row in cache.items.items() if not settled({"kind": kind, **row})]

        also: list[Mapped] = [(deployments, by_label), (maps, beside), (secrets, by_secret)]
        if kind != "CoreProvider":
            also.append((caches["CoreProvider"], on_core))
        await reconcile(
            context, cache, lambda key, item: operator.work(kind, key, item), also=also, workers=1
        )  # fmt: skip

    async with asyncio.TaskGroup() as group:
        for kind, cache in caches.items():
            group.create_task(one(kind, cache))


PROGRAMS = (Program("cluster-api-operator", run),)
