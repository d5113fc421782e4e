"""Flux's helm-controller: a HelmRelease is installed, upgraded, rolled back and uninstalled, and says so."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml

from ..charts import book
from .client import Cache, Key, Object, Refused
from .context import Context
from .flux_sources import GROUP as SOURCES
from .flux_sources import REQUESTED, digest, handled, line
from .flux_targets import SECRETS, Target, Targets, Unknown
from .installing import (
    NoMatch,
    Pace,
    Places,
    condition,
    is_true,
    put,
    row_of,
    seconds_of,
    spoken,
    take_away,
    with_conditions,
    without,
)
from .processes import Process, Program
from .reconcile import reconcile

RELEASES = "/apis/helm.toolkit.fluxcd.io/v2"
FINALIZER = "finalizers.fluxcd.io"
COMPONENT = "helm-controller"
DEPENDENCY, TIMEOUT, RETRY, CLEANING = 30.0, 300.0, 15.0, 5.0  # lab seconds
LEAST = 4.0  # real seconds that a release may take to become ready, however fast the lab's time runs
WORKLOADS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


WAITING = frozenset({"SourceNotReady", "ArtifactFailed", "ValuesError", "RESTClientError", "StateError"})
"""Reasons of a release that something outside it can heal."""


class NotReady(Exception):
    """What the release needs is not there: reason and message of its Ready condition."""

    def __init__(self, reason: str, message: str, *, event: bool = False) -> None:
        super().__init__(message)
        self.reason, self.message, self.event = reason, message, event


# -- pure judgement ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A chart that was fetched: what the book knows of it, its name and its revision."""

    chart: book.Chart | None
    name: str
    version: str

    @property
    def full(self) -> str:
        """Name and version, as messages say them."""
        return f"{self.name}@{self.version}"


def waits_for(item: Object, releases: Cache) -> str:
    """Why a dependency keeps the release waiting; empty when none does."""
    for wanted in (item.get("spec") or {}).get("dependsOn") or ():
        space = wanted.get("namespace") or item["metadata"]["namespace"]
        place, other = f"{space}/{wanted['name']}", releases.get(space, wanted["name"])
        if other is None:
            missing = f'helmreleases.helm.toolkit.fluxcd.io "{wanted["name"]}" not found'
            return f"unable to get '{place}' dependency: {missing}"
        seen = (other.get("status") or {}).get("observedGeneration")
        if seen != other["metadata"].get("generation") or not is_true(other):
            return f"dependency '{place}' is not ready"
    return ""


def name_of(item: Object) -> tuple[str, str]:
    """The Helm release's namespace and name."""
    spec, meta = item["spec"], item["metadata"]
    target = spec.get("targetNamespace")
    default = f"{target}-{meta['name']}" if target else meta["name"]
    return str(target or meta["namespace"]), str(spec.get("releaseName") or default)[:53]


def unready(item: Object) -> bool:
    """Whether a workload has not yet all it wants, as Helm's wait sees it."""
    status, spec = item.get("status") or {}, item.get("spec") or {}
    if status.get("observedGeneration", 0) < item["metadata"].get("generation", 1):
        return True
    if item["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        return bool(status.get("updatedNumberScheduled", 0) < wanted or status.get("numberReady", 0) < wanted)
    wanted = spec.get("replicas", 1)
    if item["kind"] == "Deployment":
        updated = status.get("updatedReplicas", 0)
        return bool(updated < wanted or status.get("replicas", 0) > updated or status.get("readyReplicas", 0) < wanted)
    return bool(status.get("readyReplicas", 0) < wanted)


def snapshots(history: Sequence[Object], latest: Object) -> list[Object]:
    """The history with a new release on top: what it replaces is superseded; the last that went well is kept."""
    rest = [
        {**row, "status": "superseded"} if row.get("status") == "deployed" and latest["status"] == "deployed" else row
        for row in history
        if row["version"] != latest["version"]
    ]
    good = [row for row in rest if row.get("status") in {"deployed", "superseded"}]
    return [latest, *good[:1]]


# -- the controller ---------------------------------------------------------------------------------------------------


@dataclass
class Helm:
    """A running helm-controller."""

    context: Context
    process: Process
    targets: Targets
    releases: Cache
    charts: Cache
    artifacts: Cache
    images: Cache
    workloads: dict[str, Cache]
    revisions: dict[Key, str] = field(default_factory=dict)
    begun: set[Key] = field(default_factory=set)
    troubled: set[Key] = field(default_factory=set)
    pace: Pace = field(default_factory=Pace)

    def say(self, message: str, item: Object, *, level: str = "info") -> None:
        """A line of the log."""
        self.process.write(line(self.context, "HelmRelease", level, message, item))

    def mine(self, namespace: str, name: str) -> list[Object]:
        """The workloads of a release."""
        found = []
        for kind, cache in self.workloads.items():
            for item in cache.items.values():
                labels = item["metadata"].get("labels") or {}
                own = [labels.get(f"helm.toolkit.fluxcd.io/{part}") for part in ("namespace", "name")]
                if own == [namespace, name]:
                    found.append({"apiVersion": "apps/v1", "kind": kind, **item})
        return found

    async def work(self, key: Key, item: Object | None) -> float | None:
        """Brings one release nearer to its wish."""
        if item is None:
            for known in (self.revisions, self.begun, self.troubled):
                known.pop(key, None) if isinstance(known, dict) else known.discard(key)
            return None
        item = {"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease", **item}
        meta, spec = item["metadata"], item["spec"]
        if meta.get("deletionTimestamp"):
            return await self.delete(key, item)
        if FINALIZER not in (meta.get("finalizers") or ()):
            names = [*(meta.get("finalizers") or ()), FINALIZER]
            await self.wrote(await self.context.client.patch(self.path(key), {"metadata": {"finalizers": names}}))
            return None
        first = key not in self.begun
        self.begun.add(key)
        if spec.get("suspend") or (handled(item) and not self.again(key, item, first)):
            return None
        words = waits_for(item, self.releases)
        if words:
            if row_of(item, "Ready").get("message") != words:
                await self.unready(key, item, NotReady("DependencyNotReady", words, event=True))
            return self.pace.again(key, DEPENDENCY)
        try:
            return await self.release(key, item)
        except NotReady as missing:
            await self.unready(key, item, missing)
            return self.pace.again(key, RETRY)
        except Unknown as unknown:
            await self.unready(key, item, NotReady(unknown.reason, unknown.message, event=True))
            return self.pace.again(key, RETRY)

    def again(self, key: Key, item: Object, first: bool) -> bool:
        """Whether a release that was worked on is to be looked at again."""
        ready = row_of(item, "Ready")
        if ready.get("reason") == "DependencyNotReady":
            return True
        if ready.get("status") == "True":
            known = self.revisions.get(key)
            return known is not None and known != self.revision_now(item)
        if first:
            return False  # it was broken before this controller began; only a change may heal it
        if key in self.troubled:
            return not any(unready(row) for row in self.mine(*key))
        if any(unready(row) for row in self.mine(*key)):
            self.troubled.add(key)
        return ready.get("reason") in WAITING or not ready

    # -- what the release is made of

    def source_of(self, item: Object) -> Object | None:
        """The object that the chart comes from."""
        spec, space = item["spec"], item["metadata"]["namespace"]
        if "chartRef" in spec:
            reference = spec["chartRef"]
            where = (reference.get("namespace") or space, reference["name"])
            caches = {"HelmChart": self.charts, "OCIRepository": self.images, "ExternalArtifact": self.artifacts}
            found = caches[reference["kind"]].get(*where)
            return {"kind": reference["kind"], **found} if found else None
        home = spec["chart"]["spec"]["sourceRef"].get("namespace") or space
        found = self.charts.get(home, f"{space}-{item['metadata']['name']}")
        return {"kind": "HelmChart", **found} if found else None

    def revision_now(self, item: Object) -> str:
        """The revision of the source's artifact; empty when there is none."""
        return str((((self.source_of(item) or {}).get("status") or {}).get("artifact") or {}).get("revision", ""))

    async def load(self, key: Key, item: Object) -> Loaded:
        """The chart. Raises NotReady."""
        spec = item["spec"]
        if "chart" in spec:
            await self.chart_object(key, item)
        source = self.source_of(item)
        if source is None:
            return self.built_in(item)
        meta = source["metadata"]
        head = f"{source['kind']} '{meta['namespace']}/{meta['name']}' is not ready: "
        status = source.get("status") or {}
        if source["kind"] != "ExternalArtifact" and status.get("observedGeneration") != meta.get("generation"):
            words = row_of(source, "Ready").get("message")
            raise NotReady("SourceNotReady", head + (words or "latest generation of object has not been reconciled"))
        if not is_true(source):
            raise NotReady("SourceNotReady", head + str(row_of(source, "Ready").get("message", "")))
        revision = str((status.get("artifact") or {}).get("revision", ""))
        if not revision:
            raise NotReady("SourceNotReady", f"{head}does not have an artifact")
        if source["kind"] == "ExternalArtifact":
            return self.built_in(item, revision)
        if source["kind"] == "OCIRepository":
            url = str(source["spec"]["url"])
            chart = book.at(url)
            return Loaded(chart, url.rpartition("/")[2], revision.partition("@")[0])
        chart = next((row for row in book.CHARTS if row.name == status.get("observedChartName")), None)
        return Loaded(chart, str(status.get("observedChartName", "")), revision)

    def built_in(self, item: Object, revision: str = "") -> Loaded:
        """A chart of CozyStack's own repository, which holds what its packages name. Raises NotReady."""
        reference = item["spec"].get("chartRef") or {}
        name = str(reference.get("name", ""))
        ours = reference.get("namespace") == "cozy-system" and name.startswith("cozystack-")
        if reference.get("kind") != "ExternalArtifact" or not (revision or ours):
            plurals = {"HelmChart": "helmcharts", "OCIRepository": "ocirepositories"}
            plural = plurals.get(str(reference.get("kind", "HelmChart")), "externalartifacts")
            words = f'could not get Source object: {plural}.source.toolkit.fluxcd.io "{name}" not found'
            raise NotReady("ArtifactFailed", words)
        chart = next((row for row in book.PLATFORM if name.endswith(f"-{row.name}")), None)
        history = (item.get("status") or {}).get("history") or []
        if chart is None and not history:
            words = f'Could not load chart: failed to download archive: no chart of the artifact "{name}"'
            raise NotReady("ArtifactFailed", words, event=True)
        if chart is None:
            return Loaded(None, str(history[0]["chartName"]), str(history[0]["chartVersion"]))
        version = f"{next(iter(chart.versions))}+{digest(revision or name)[7:19]}"
        return Loaded(chart, chart.title or chart.name, version)

    async def chart_object(self, key: Key, item: Object) -> None:
        """Nothing; the HelmChart that the release's template asks for is there."""
        template = item["spec"]["chart"]["spec"]
        space = template["sourceRef"].get("namespace") or key[0]
        name = f"{key[0]}-{key[1]}"
        wanted: Object = {
            "chart": template["chart"], "version": template.get("version") or "*",
            "interval": template.get("interval") or item["spec"]["interval"],
            "reconcileStrategy": template.get("reconcileStrategy") or "ChartVersion",
            "sourceRef": {key: template["sourceRef"][key] for key in ("kind", "name")},
        }  # fmt: skip
        known = self.charts.get(space, name)
        if known is not None and all(known["spec"].get(part) == value for part, value in wanted.items()):
            return
        labels = {"helm.toolkit.fluxcd.io/name": key[1], "helm.toolkit.fluxcd.io/namespace": key[0]}
        body = {
            "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmChart", "spec": wanted,
            "metadata": {"name": name, "namespace": space, "labels": labels},
        }  # fmt: skip
        path = f"{SOURCES}/namespaces/{space}/helmcharts/{name}"
        await self.charts.caught_up(await self.context.client.apply(path, body, manager=COMPONENT))
        made = await self.context.client.patch(f"{self.path(key)}/status", {"status": {"helmChart": f"{space}/{name}"}})
        await self.wrote(made)

    async def values(self, item: Object) -> Object:
        """The values of all references, and the release's own over them. Raises NotReady."""
        space = item["metadata"]["namespace"]
        found: Object = {}
        for wanted in item["spec"].get("valuesFrom") or ():
            plural = "secrets" if wanted["kind"] == "Secret" else "configmaps"
            field_name = wanted.get("valuesKey") or "values.yaml"
            held = await self.context.client.find(f"/api/v1/namespaces/{space}/{plural}/{wanted['name']}")
            text = ((held or {}).get("data") or {}).get(field_name)
            if text is None:
                if wanted.get("optional"):
                    continue
                why = f"missing key '{field_name}'" if held else f'{plural} "{wanted["name"]}" not found'
                head = f"could not resolve {wanted['kind']} chart values reference '{space}/{wanted['name']}' "
                raise NotReady("ValuesError", f"{head}with key '{field_name}': {why}", event=True)
            if wanted["kind"] == "Secret":
                text = base64.b64decode(text).decode()
            if path := wanted.get("targetPath"):
                given: Any = text
                for part in reversed(path.split(".")):
                    given = {part: given}
            else:
                given = yaml.safe_load(text) or {}
            found = book.merged(found, given)
        return book.merged(found, item["spec"].get("values") or {})

    # -- actions

    async def release(self, key: Key, item: Object) -> float | None:
        """Seconds until the next look; the release is in sync, or an action was taken. Raises NotReady."""
        loaded = await self.load(key, item)
        values = await self.values(item)
        self.revisions[key] = self.revision_now(item)
        target = await self.targets.of(item)
        status, generation = item.get("status") or {}, item["metadata"].get("generation", 1)
        config = digest(json.dumps(values, sort_keys=True))
        history = list(status.get("history") or ())
        latest = history[0] if history else None
        asked = (item["metadata"].get("annotations") or {}).get(REQUESTED)
        changed = status.get("lastAttemptedGeneration") != generation or (
            status.get("lastAttemptedRevision") not in {None, loaded.version}
        )
        if latest is not None and latest["status"] == "deployed" and not changed:
            return await self.in_sync(key, item, latest, asked)
        action = "install" if latest is None else "upgrade"
        failures = 0 if changed else int(status.get(f"{action}Failures", 0))
        settings = item["spec"].get(action) or {}
        retries = int((settings.get("remediation") or {}).get("retries", 0))
        if failures and retries >= 0 and failures > retries:
            await self.stalled(key, item, action, failures)
            return None
        timeout = seconds_of(settings.get("timeout") or item["spec"].get("timeout"), TIMEOUT)
        progress = f"Running '{action}' action with timeout of {spoken(timeout)}"
        self.say(progress[0].lower() + progress[1:], item)
        at = self.context.stamp()
        rows = with_conditions(
            without(status.get("conditions") or (), "Stalled", *(("Remediated",) if changed else ())),
            condition("Ready", "Unknown", "Progressing", progress, at=at, generation=generation),
            condition("Reconciling", "True", "Progressing", progress, at=at, generation=generation),
        )
        attempted = {
            "conditions": rows, "lastAttemptedGeneration": generation, "lastAttemptedRevision": loaded.version,
            "lastAttemptedConfigDigest": config, "lastAttemptedReleaseAction": action,
            "storageNamespace": item["spec"].get("storageNamespace") or key[0],
        }  # fmt: skip
        item = {**item, **await self.status(key, attempted)}
        wait = not settings.get("disableWait")
        try:
            why, items = await self.act(target, key, item, loaded, values, timeout, wait=wait)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not target.far:
                raise
            why, items = f"Kubernetes cluster unreachable: {error}", None
        number = max([row["version"] for row in history], default=0) + 1
        snapshot = self.snapshot(item, loaded, config, items, number, "failed" if why else "deployed", latest)
        if items is not None or latest is not None:
            await self.store(target, item, loaded, snapshot, items or [], values)
        history = snapshots(history, snapshot)
        if why:
            return await self.failed(key, item, action, loaded, why, history, failures + 1, retries)
        await self.succeeded(key, item, action, loaded, snapshot, history, asked)
        return None

    async def act(
        self, target: Target, key: Key, item: Object, loaded: Loaded, values: Object, timeout: float, *, wait: bool
    ) -> tuple[str, list[Object] | None]:
        """Why the action failed (empty: it did not), and what it put in place (None: nothing was stored)."""
        namespace, name = name_of(item)
        if item["spec"].get("install", {}).get("createNamespace"):
            body: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            await target.client.apply(f"/api/v1/namespaces/{namespace}", body, manager=COMPONENT)
        space = await target.client.find(f"/api/v1/namespaces/{namespace}")
        if space is None:
            return f'create: failed to create: namespaces "{namespace}" not found', None
        if loaded.chart is None:
            return "", []
        app = loaded.chart.versions.get(loaded.version.partition("+")[0], "")
        laid = book.merged(loaded.chart.values, values)
        given = book.Given(name, namespace, laid, loaded.name, loaded.version, app, space)
        try:
            items = book.rendered(loaded.chart, given)
        except book.Broken as broken:
            return str(broken), None
        for thing in items:
            thing["metadata"].setdefault("labels", {}).update(
                {"helm.toolkit.fluxcd.io/name": key[1], "helm.toolkit.fluxcd.io/namespace": key[0]}
            )
            if await target.places.namespaced(thing):
                thing["metadata"].setdefault("namespace", namespace)
        before = await self.stored(target, item)
        try:
            made = await put(target.places, items, manager=COMPONENT, namespace=namespace)
        except NoMatch as missing:
            head = f'resource mapping not found for name: "{name}" namespace: "{namespace}" from "": '
            words = f"unable to build kubernetes objects from release manifest: {head}{missing}"
            return f"{words}\nensure CRDs are installed first", None
        except Refused as refused:
            return refused.message, items
        kept = {(thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"]) for thing in items}
        gone = [
            row for row in before
            if (row["kind"], row["metadata"].get("namespace"), row["metadata"]["name"]) not in kept
        ]  # fmt: skip
        await take_away(target.places, gone, namespace=namespace)
        waited = [thing for thing in made if thing.get("kind") in WORKLOADS] if wait else []
        if waited and not await self.become_ready(target, waited, timeout):
            return "context deadline exceeded", items
        return "", items

    async def become_ready(self, target: Target, items: list[Object], timeout: float) -> bool:
        """Whether the workloads had all they want before the time was over."""
        if target.far:
            return await self.become_ready_far(target, items, timeout)

        def done() -> bool:
            for item in items:
                cache = self.workloads[item["kind"]]
                now = cache.get(item["metadata"]["namespace"], item["metadata"]["name"])
                if now is None or now["metadata"].get("generation", 1) < item["metadata"].get("generation", 1):
                    return False
                if unready({"kind": item["kind"], **now}):
                    return False
            return True

        async def over() -> None:
            await asyncio.gather(self.context.clock.sleep(timeout), asyncio.sleep(LEAST))

        limit = asyncio.create_task(over())
        try:
            while not done():
                if limit.done():
                    return False
                await asyncio.sleep(0.02)
        finally:
            limit.cancel()
        return True

    async def become_ready_far(self, target: Target, items: list[Object], timeout: float) -> bool:
        """The same of another cluster, whose workloads nobody watches for us."""

        async def done() -> bool:
            found = [(item["kind"], await target.now(item)) for item in items]
            return all(now is not None and not unready({"kind": kind, **now}) for kind, now in found)

        async def end() -> None:
            await asyncio.gather(self.context.clock.sleep(timeout), asyncio.sleep(LEAST))

        seeking, over = asyncio.create_task(target.until(done)), asyncio.create_task(end())
        try:
            await asyncio.wait([seeking, over], return_when=asyncio.FIRST_COMPLETED)
            if not seeking.done():
                return False
            await seeking  # a cluster that does not answer any more is told to the caller
            return True
        finally:
            seeking.cancel()
            over.cancel()

    def snapshot(
        self, item: Object, loaded: Loaded, config: str, items: list[Object] | None, number: int, state: str,
        before: Object | None,
    ) -> Object:  # fmt: skip
        """The history's row of a release."""
        namespace, name = name_of(item)
        now = self.context.stamp()
        app = loaded.chart.versions.get(loaded.version.partition("+")[0], "") if loaded.chart else ""
        return {
            "name": name, "namespace": namespace, "version": number, "status": state, "chartName": loaded.name,
            "chartVersion": loaded.version, "configDigest": config, "lastDeployed": now,
            "appVersion": app or (before or {}).get("appVersion", ""),
            "digest": digest(json.dumps(items or [], sort_keys=True) + str(number)),
            "firstDeployed": (before or {}).get("firstDeployed", now),
        }  # fmt: skip

    async def in_sync(self, key: Key, item: Object, latest: Object, asked: str | None) -> float | None:
        """Nothing; the release says again what it said when it went well."""
        status, generation = item.get("status") or {}, item["metadata"].get("generation", 1)
        released = row_of(item, "Released")
        words = str(released.get("message") or f"Helm install succeeded for release {full(latest)}")
        reason = str(released.get("reason") or "InstallSucceeded")
        true = condition("Ready", "True", reason, words, at=self.context.stamp(), generation=generation)
        rows = with_conditions(without(status.get("conditions") or (), "Reconciling", "Stalled"), true)
        wanted: Object = {"conditions": rows, "observedGeneration": generation}
        if asked:
            wanted["lastHandledReconcileAt"] = asked
        if any(status.get(name) != value for name, value in wanted.items()):
            self.say("release in-sync with desired state", item)
            await self.status(key, wanted)
        self.troubled.discard(key)
        return None

    async def succeeded(
        self, key: Key, item: Object, action: str, loaded: Loaded, latest: Object, history: list[Object],
        asked: str | None,
    ) -> None:  # fmt: skip
        """Nothing; the release says that it was installed or upgraded."""
        generation, at = item["metadata"].get("generation", 1), self.context.stamp()
        reason = f"{action.capitalize()}Succeeded"
        words = f"Helm {action} succeeded for release {full(latest)} with chart {loaded.full}"
        rows = with_conditions(
            without((item.get("status") or {}).get("conditions") or (), "Reconciling", "Stalled", "Remediated"),
            condition("Ready", "True", reason, words, at=at, generation=generation),
            condition("Released", "True", reason, words, at=at, generation=generation),
        )
        if (item["spec"].get("test") or {}).get("enable"):
            tested = f"Helm test succeeded for release {full(latest)} with chart {loaded.full}: no test hooks"
            rows = with_conditions(
                rows, condition("TestSuccess", "True", "TestSucceeded", tested, at=at, generation=generation)
            )
        wanted: Object = {
            "conditions": rows, "history": history, "observedGeneration": generation, "failures": None,
            "installFailures": None, "upgradeFailures": None, "lastAppliedRevision": loaded.version,
        }  # fmt: skip
        if asked:
            wanted["lastHandledReconcileAt"] = asked
        await self.status(key, wanted)
        await self.context.event(item, reason, words, component=COMPONENT)
        self.say("release in-sync with desired state", item)

    async def failed(
        self, key: Key, item: Object, action: str, loaded: Loaded, why: str, history: list[Object], failures: int,
        retries: int,
    ) -> float | None:  # fmt: skip
        """Seconds until the next try; the failure is told, and mended as the release wishes."""
        generation, at = item["metadata"].get("generation", 1), self.context.stamp()
        namespace, name = name_of(item)
        reason = f"{action.capitalize()}Failed"
        words = f"Helm {action} failed for release {namespace}/{name} with chart {loaded.full}: {why}"
        self.say(words, item, level="error")
        await self.context.event(item, reason, words, kind="Warning", component=COMPONENT)
        settings = (item["spec"].get(action) or {}).get("remediation") or {}
        last = retries >= 0 and failures > retries
        rows = with_conditions(
            without((item.get("status") or {}).get("conditions") or (), "Reconciling"),
            condition("Ready", "False", reason, words, at=at, generation=generation),
            condition("Released", "False", reason, words, at=at, generation=generation),
        )
        mend = retries != 0 and (not last or settings.get("remediateLastFailure", action == "upgrade"))
        if mend:
            rows, history = await self.mend(item, action, settings, history, rows, at)
        if last:
            stalled = f"Failed to {action} after {failures} attempt(s)"
            rows = with_conditions(
                rows, condition("Stalled", "True", "RetriesExceeded", stalled, at=at, generation=generation)
            )
        else:
            rows = with_conditions(
                rows, condition("Reconciling", "True", "ProgressingWithRetry", words, at=at, generation=generation)
            )
        wanted: Object = {
            "conditions": rows, "history": history or None, f"{action}Failures": failures, "failures": failures,
        }  # fmt: skip
        if last:
            wanted["observedGeneration"] = generation
        await self.status(key, wanted)
        return None if last else self.pace.again(key, min(2.0**failures, 900.0))

    async def mend(
        self, item: Object, action: str, settings: Object, history: list[Object], rows: list[Object], at: str
    ) -> tuple[list[Object], list[Object]]:
        """Conditions and history after a rollback, or an uninstallation."""
        generation, before = item["metadata"].get("generation", 1), history[1:2]
        if action == "upgrade" and before and settings.get("strategy", "rollback") == "rollback":
            good, failed = before[0], history[0]
            target = await self.targets.of(item)
            objects = await self.stored(target, item, good["version"])
            await put(target.places, objects, manager=COMPONENT, namespace=good["namespace"])
            chart = f"{good['chartName']}@{good['chartVersion']}"
            words = f"Helm rollback to previous release {full(good)} with chart {chart} succeeded"
            made = {**good, "version": failed["version"] + 1, "status": "deployed", "lastDeployed": at}
            history, reason = [made, failed, {**good, "status": "superseded"}], "RollbackSucceeded"
        else:
            latest = history[0]
            await self.uninstall(await self.targets.of(item), item)
            chart = f"{latest['chartName']}@{latest['chartVersion']}"
            words = f"Helm uninstall remediation for release {full(latest)} with chart {chart} succeeded"
            history, reason = [], "UninstallSucceeded"
        await self.context.event(item, reason, words, component=COMPONENT)
        rows = with_conditions(rows, condition("Remediated", "True", reason, words, at=at, generation=generation))
        if reason == "RollbackSucceeded":
            rows = with_conditions(rows, condition("Ready", "False", reason, words, at=at, generation=generation))
        return rows, history

    async def stalled(self, key: Key, item: Object, action: str, failures: int) -> None:
        """Nothing; no try is left until the wish changes."""
        if row_of(item, "Stalled").get("status") != "True":
            words, at = f"Failed to {action} after {failures} attempt(s)", self.context.stamp()
            row = condition("Stalled", "True", "RetriesExceeded", words, at=at)
            rows = with_conditions((item.get("status") or {}).get("conditions") or (), row)
            await self.status(key, {"conditions": rows, "observedGeneration": item["metadata"].get("generation", 1)})

    async def unready(self, key: Key, item: Object, missing: NotReady) -> None:
        """Nothing; the release says what it waits for."""
        status, generation = item.get("status") or {}, item["metadata"].get("generation", 1)
        before = row_of(item, "Ready")
        told = (before.get("reason"), before.get("message"), status.get("observedGeneration"))
        if told == (missing.reason, missing.message, generation):
            return
        row = condition(
            "Ready", "False", missing.reason, missing.message, at=self.context.stamp(), generation=generation
        )
        rows = with_conditions(status.get("conditions") or (), row)
        body: Object = {"conditions": rows, "observedGeneration": generation}
        await self.status(key, body)
        self.say(missing.message, item)
        if missing.event:
            kind = "Normal" if missing.reason == "DependencyNotReady" else "Warning"
            await self.context.event(item, missing.reason, missing.message, kind=kind, component=COMPONENT)

    # -- Helm's storage

    async def store(
        self, target: Target, item: Object, loaded: Loaded, latest: Object, items: list[Object], values: Object
    ) -> None:
        """Nothing; Helm's Secret of the release is there, as `helm list` reads it."""
        space = item["spec"].get("storageNamespace") or item["metadata"]["namespace"]
        manifest = "---\n".join(yaml.safe_dump(thing, sort_keys=False) for thing in items)
        body = {
            "name": latest["name"], "namespace": latest["namespace"], "version": latest["version"], "config": values,
            "info": {"status": latest["status"], "last_deployed": latest["lastDeployed"],
                     "first_deployed": latest["firstDeployed"]},
            "chart": {"metadata": {"name": loaded.name, "version": loaded.version, "appVersion": latest["appVersion"]}},
            "manifest": manifest,
        }  # fmt: skip
        packed = base64.b64encode(gzip.compress(json.dumps(body).encode(), mtime=0))
        name = f"sh.helm.release.v1.{latest['name']}.v{latest['version']}"
        labels = {
            "name": latest["name"],
            "owner": "helm",
            "status": latest["status"],
            "version": str(latest["version"]),
        }
        secret = {
            "apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1",
            "metadata": {"name": name, "namespace": space, "labels": labels},
            "data": {"release": base64.b64encode(packed).decode()},
        }  # fmt: skip
        await target.client.apply(f"/api/v1/namespaces/{space}/secrets/{name}", secret, manager=COMPONENT)
        for old in await self.secrets_of(target, item):
            state = old["metadata"]["labels"].get("status")
            if old["metadata"]["name"] != name and state == "deployed" and latest["status"] == "deployed":
                path = f"/api/v1/namespaces/{space}/secrets/{old['metadata']['name']}"
                await target.client.patch(path, {"metadata": {"labels": {"status": "superseded"}}})

    async def secrets_of(self, target: Target, item: Object) -> list[Object]:
        """Helm's Secrets of the release."""
        space = item["spec"].get("storageNamespace") or item["metadata"]["namespace"]
        selector = f"owner=helm,name={name_of(item)[1]}"
        return list((await target.client.list(f"/api/v1/namespaces/{space}/secrets", labelSelector=selector))["items"])

    async def stored(self, target: Target, item: Object, version: int = 0) -> list[Object]:
        """The objects that a version of the release put in place; of the newest when none is named."""
        secrets = await self.secrets_of(target, item)
        rows = {int(row["metadata"]["labels"]["version"]): row for row in secrets}
        wanted = rows.get(version or max(rows, default=0))
        if wanted is None:
            return []
        packed = base64.b64decode(base64.b64decode(wanted["data"]["release"]))
        manifest = json.loads(gzip.decompress(packed))["manifest"]
        return [thing for thing in yaml.safe_load_all(manifest) if thing]

    async def uninstall(self, target: Target, item: Object) -> None:
        """Nothing; what the release put in place is on its way out, and so is Helm's memory of it."""
        namespace, _ = name_of(item)
        meta = item["metadata"]
        here = [] if target.far else self.mine(meta["namespace"], meta["name"])
        objects = await self.stored(target, item) or here
        await take_away(target.places, reversed(objects), namespace=namespace)
        for secret in await self.secrets_of(target, item):
            await take_away(target.places, [{**secret, "apiVersion": "v1", "kind": "Secret"}])

    async def clean_tenant(self, item: Object) -> bool:
        """Whether releases remain in the tenant's namespace: its chart's pre-delete hook takes them away first."""
        namespace, name = name_of(item)
        inner = book.tenant_name(name, namespace)
        inside = [row for (space, _), row in self.releases.items.items() if space == inner]
        for row in inside:
            if not row["metadata"].get("deletionTimestamp"):
                kind = {"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease"}
                await take_away(self.targets.home.places, [{**row, **kind}])
        return bool(inside)

    async def delete(self, key: Key, item: Object) -> float | None:
        """Nothing; the release is uninstalled, unless it is suspended, and lets go of its object."""
        names = item["metadata"].get("finalizers") or []
        if FINALIZER not in names:
            return None
        history = (item.get("status") or {}).get("history") or []
        if not item["spec"].get("suspend"):
            if history and history[0]["chartName"] == "tenant" and await self.clean_tenant(item):
                return CLEANING
            try:
                await self.uninstall(await self.targets.of(item), item)
            except Unknown as unknown:
                if not unknown.missing:  # what is installed there cannot be taken away: the object stays
                    words = f"failed to uninstall: {unknown.message}"
                    await self.unready(key, item, NotReady("UninstallFailed", words, event=True))
                    return self.pace.again(key, RETRY)
                history = []
            if history:
                chart = f"{history[0]['chartName']}@{history[0]['chartVersion']}"
                words = f"Helm uninstall succeeded for release {full(history[0])} with chart {chart}"
                await self.context.event(item, "UninstallSucceeded", words, component=COMPONENT)
                self.say("uninstalled Helm release for deleted resource", item)
            if "chart" in item["spec"]:
                space = item["spec"]["chart"]["spec"]["sourceRef"].get("namespace") or key[0]
                chart_object = {
                    "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmChart",
                    "metadata": {"name": f"{key[0]}-{key[1]}", "namespace": space},
                }  # fmt: skip
                await take_away(self.targets.home.places, [chart_object])
        rest = [name for name in names if name != FINALIZER]
        try:
            await self.context.client.patch(self.path(key), {"metadata": {"finalizers": rest or None}})
        except Refused as error:
            if error.code != 404:
                raise
        return None

    # -- writing

    def path(self, key: Key) -> str:
        """Where the release's object lies."""
        return f"{RELEASES}/namespaces/{key[0]}/helmreleases/{key[1]}"

    async def status(self, key: Key, body: Object) -> Object:
        """The release with this in its status."""
        made = await self.context.client.patch(f"{self.path(key)}/status", {"status": body})
        await self.wrote(made)
        return made

    async def wrote(self, made: Object) -> None:
        """Returns once the cache has what was written."""
        await self.releases.caught_up(made)


def full(row: Object) -> str:
    """A release as messages name it: "namespace/name.v1"."""
    return f"{row['namespace']}/{row['name']}.v{row['version']}"


async def run(context: Context, process: Process) -> None:
    """helm-controller: works on every HelmRelease until cancelled."""
    releases = context.cache(f"{RELEASES}/helmreleases")
    charts, images = context.cache(f"{SOURCES}/helmcharts"), context.cache(f"{SOURCES}/ocirepositories")
    artifacts = context.cache(f"{SOURCES}/externalartifacts")
    workloads = {kind: context.cache(f"/apis/apps/v1/{plural}") for kind, plural in WORKLOADS.items()}
    targets = Targets(context, Target(context.client, Places(context.client)))
    helm = Helm(context, process, targets, releases, charts, artifacts, images, workloads)

    def dependents(item: Object) -> list[Key]:
        own = (item["metadata"]["namespace"], item["metadata"]["name"])
        return [
            key for key, row in releases.items.items()
            if row_of(row, "Ready").get("reason") == "DependencyNotReady"
            and any(
                (entry.get("namespace") or key[0], entry["name"]) == own for entry in row["spec"].get("dependsOn") or ()
            )
        ]  # fmt: skip

    def of_source(item: Object) -> list[Key]:
        name = item["metadata"]["name"]
        found = []
        for key, row in releases.items.items():
            reference = row["spec"].get("chartRef") or {}
            if reference.get("name") == name or ("chart" in row["spec"] and name == f"{key[0]}-{key[1]}"):
                found.append(key)
        return found

    def of_workload(item: Object) -> list[Key]:
        labels = item["metadata"].get("labels") or {}
        key = (labels.get("helm.toolkit.fluxcd.io/namespace", ""), labels.get("helm.toolkit.fluxcd.io/name", ""))
        return [key] if key in releases.items and not is_true(releases.items[key]) else []

    def of_secret(item: Object) -> list[Key]:
        name, space = item["metadata"]["name"], item["metadata"]["namespace"]
        if "kubeconfig" not in name:
            return []
        return [
            key for key, row in releases.items.items()
            if key[0] == space and ((row["spec"].get("kubeConfig") or {}).get("secretRef") or {}).get("name") == name
            and not is_true(row)
        ]  # fmt: skip

    also = [(releases, dependents), *((cache, of_source) for cache in (charts, images, artifacts))]
    also += [(cache, of_workload) for cache in workloads.values()]
    also += [(context.cache(SECRETS), of_secret)]
    try:
        await reconcile(context, releases, helm.work, also=also, workers=8)
    finally:
        await targets.close()


PROGRAMS = (Program("helm-controller", run),)
