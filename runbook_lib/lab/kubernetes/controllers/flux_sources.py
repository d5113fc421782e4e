"""Flux's source-controller and source-watcher: repositories, charts and artifacts become ready, or say why not."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..charts import book
from .client import Cache, Key, Object
from .context import Context
from .installing import Pace, condition, is_true, row_of, seconds_of, with_conditions, without
from .internet import unreachable
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "/apis/source.toolkit.fluxcd.io/v1"
GENERATORS = "/apis/source.extensions.fluxcd.io/v1beta1/artifactgenerators"
KINDS = {"HelmRepository": "helmrepositories", "OCIRepository": "ocirepositories", "HelmChart": "helmcharts"}
REQUESTED = "reconcile.fluxcd.io/requestedAt"
RETRY = 30.0  # lab seconds


def digest(text: str) -> str:
    """A sha256 digest as Flux writes it."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def line(context: Context, controller: str, level: str, message: str, item: Object, **more: str) -> str:
    """A log line of a Flux controller."""
    meta = item["metadata"]
    row = {
        "level": level, "ts": context.stamp(micro=True), "msg": message, "controller": controller.lower(),
        "controllerGroup": str(item.get("apiVersion", "")).partition("/")[0], "controllerKind": controller,
        controller: {"name": meta["name"], "namespace": meta.get("namespace", "")},
        "namespace": meta.get("namespace", ""), "name": meta["name"], **more,
    }  # fmt: skip
    return json.dumps(row)


def handled(item: Object) -> bool:
    """Whether this wish, and the last request by annotation, were already worked on."""
    meta, status = item["metadata"], item.get("status") or {}
    asked = (meta.get("annotations") or {}).get(REQUESTED)
    same = status.get("observedGeneration") == meta.get("generation")
    return bool(row_of(item, "Ready")) and same and (asked is None or asked == status.get("lastHandledReconcileAt"))


@dataclass(frozen=True)
class Outcome:
    """What a fetch came to: the artifact's revision, or a reason and a message."""

    revision: str = ""
    reason: str = "Succeeded"
    message: str = ""
    name: str = ""
    failed: str = "FetchFailed"


def judged(item: Object, found: Outcome, *, at: str, url: str = "") -> Object:
    """The status of a source after a fetch that came to this."""
    generation, status = item["metadata"].get("generation", 1), item.get("status") or {}
    rows = without(status.get("conditions") or (), "Reconciling", "FetchFailed", "BuildFailed")
    if not found.revision:
        rows = with_conditions(
            rows,
            condition("Ready", "False", found.reason, found.message, at=at, generation=generation),
            condition(found.failed, "True", found.reason, found.message, at=at, generation=generation),
            condition(
                "Reconciling",
                "True",
                "ProgressingWithRetry",
                "reconciliation in progress",
                at=at,
                generation=generation,
            ),
        )
        done: Object = {"conditions": rows, "observedGeneration": status.get("observedGeneration", -1)}
    else:
        rows = with_conditions(
            rows,
            condition("Ready", "True", found.reason, found.message, at=at, generation=generation),
            condition("ArtifactInStorage", "True", found.reason, found.message, at=at, generation=generation),
        )
        old = status.get("artifact") or {}
        made = {
            "revision": found.revision, "digest": digest(found.revision + url), "lastUpdateTime": at,
            "path": url, "url": f"http://source-controller.cozy-fluxcd.svc.cozy.local./{url}", "size": 4096,
        }  # fmt: skip
        done = {
            "conditions": rows, "observedGeneration": generation,
            "artifact": old if old.get("revision") == found.revision else made, "url": made["url"],
        }  # fmt: skip
        if found.name:
            done["observedChartName"] = found.name
    if asked := (item["metadata"].get("annotations") or {}).get(REQUESTED):
        done["lastHandledReconcileAt"] = asked
    return done


def dial(context: Context, url: str) -> str:
    """Why the host of a URL does not answer; services of the cluster do."""
    host = urlsplit(url).hostname or ""
    if host.endswith((".svc", ".cozy.local", ".cluster.local")):
        return ""
    return unreachable(context.world, host, 80 if url.startswith("http:") else 443)


@dataclass
class Sources:
    """A running source-controller."""

    context: Context
    process: Process
    caches: dict[str, Cache]
    pace: Pace = field(default_factory=Pace)

    async def work(self, kind: str, key: Key, item: Object | None) -> float | None:
        """Fetches what a source names, unless that was done."""
        if item is None:
            return None
        item = {"kind": kind, **item}
        meta = item["metadata"]
        if meta.get("deletionTimestamp"):
            await self.release(kind, key, item)
            return None
        if kind == "HelmRepository" and item["spec"].get("type") == "oci":
            return None  # static: it has no status
        if item["spec"].get("suspend") or (handled(item) and not self.stale(kind, item)):
            return None
        found = await self.fetch(kind, item)
        if found is None:
            return None
        path = f"{KINDS[kind].removesuffix('s') if kind != 'HelmRepository' else 'helmrepository'}/{key[0]}/{key[1]}"
        status = judged(item, found, at=self.context.stamp(), url=f"{path}/{digest(found.revision)[7:19]}.tar.gz")
        known = item.get("status") or {}
        if any(known.get(name) != value for name, value in status.items()):
            made = await self.context.client.patch(f"{self.path(kind, key)}/status", {"status": status})
            await self.caches[kind].caught_up(made)
            word = found.message if not found.revision else f"stored artifact: revision '{found.revision}'"
            await self.context.event(
                item, found.reason if not found.revision else "NewArtifact", word,
                kind="Normal" if found.revision else "Warning", component="source-controller",
            )  # fmt: skip
            self.process.write(line(self.context, kind, "info" if found.revision else "error", word, item))
        if found.revision:
            return None
        return self.pace.again((kind, key), RETRY)

    async def release(self, kind: str, key: Key, item: Object) -> None:
        """Nothing; a source that is deleted loses its finalizer."""
        names = item["metadata"].get("finalizers") or []
        if "finalizers.fluxcd.io" in names:
            rest = [name for name in names if name != "finalizers.fluxcd.io"]
            await self.context.client.patch(self.path(kind, key), {"metadata": {"finalizers": rest or None}})

    def stale(self, kind: str, item: Object) -> bool:
        """Whether a chart failed while its repository was not ready; then it is tried again."""
        return not is_true(item)

    def path(self, kind: str, key: Key) -> str:
        """Where the source lies."""
        return f"{GROUP}/namespaces/{key[0]}/{KINDS[kind]}/{key[1]}"

    async def fetch(self, kind: str, item: Object) -> Outcome | None:
        """What the source holds now. None when it has to wait for another."""
        await self.context.clock.sleep(1)
        if kind == "HelmRepository":
            return self.index(item)
        return self.pull(item) if kind == "OCIRepository" else self.chart(item)

    def index(self, item: Object) -> Outcome:
        """A repository's index."""
        url = str(item["spec"].get("url", ""))
        head = f'failed to fetch Helm repository index: failed to cache index to temporary file: Get "{url}/index.yaml"'
        if why := dial(self.context, url):
            return Outcome("", "Failed", f"{head}: {why}")
        host = urlsplit(url).hostname or ""
        if not book.known_place(url) and not host.endswith(".svc"):
            words = f"failed to fetch Helm repository index: failed to fetch {url}/index.yaml : 404 Not Found"
            return Outcome("", "Failed", words)
        revision = digest(url)
        return Outcome(revision, "Succeeded", f"stored artifact: revision '{revision}'")

    def pull(self, item: Object) -> Outcome:
        """An artifact of a registry."""
        spec, url = item["spec"], str(item["spec"].get("url", ""))
        path, host = url.removeprefix("oci://").partition("/")[2], urlsplit(url).hostname or ""
        wish = spec.get("ref") or {}
        head, reason = "failed to determine artifact digest: ", "OCIArtifactPullFailed"
        if why := dial(self.context, url):
            return Outcome("", reason, f'{head}Get "https://{host}/v2/": {why}')
        chart = book.at(url)
        platform = "/cozystack/" in url
        if chart is None and not platform:
            if wish.get("semver"):
                words = (
                    f"failed to determine the artifact tag for '{url}': GET https://{host}/v2/{path}/tags/list?n=1000: "
                )
                return Outcome("", reason, words + "NAME_UNKNOWN: repository name not known to registry")
            tag = wish.get("tag", "latest")
            words = f"{head}GET https://{host}/v2/{path}/manifests/{tag}: MANIFEST_UNKNOWN: manifest unknown"
            return Outcome("", reason, words)
        version = str(wish.get("tag") or "")
        if chart is not None:
            version = book.newest(chart, str(wish.get("semver") or version or "*"))
            if not version:
                words = f"{head}GET https://{host}/v2/{path}/manifests/{wish.get('tag', '')}: MANIFEST_UNKNOWN: "
                return Outcome("", reason, words + "manifest unknown")
        revision = f"{version or 'latest'}@{wish.get('digest') or digest(url + version)}"
        return Outcome(revision, "Succeeded", f"stored artifact for digest '{revision}'")

    def chart(self, item: Object) -> Outcome | None:
        """A chart of a repository."""
        spec, space = item["spec"], item["metadata"]["namespace"]
        reference = spec["sourceRef"]
        cache = self.caches.get(reference["kind"])
        repository = cache.get(space, reference["name"]) if cache else None
        if repository is None:
            plural = f"{KINDS.get(reference['kind'], reference['kind'].lower())}.source.toolkit.fluxcd.io"
            words = f'failed to get source: {plural} "{reference["name"]}" not found'
            return Outcome("", "SourceUnavailable", words)
        oci, url = repository["spec"].get("type") == "oci", str(repository["spec"].get("url", ""))
        if not oci and not (repository.get("status") or {}).get("artifact") and not url.endswith("/repos/system"):
            words = f"no artifact available for HelmRepository source '{reference['name']}'"
            return Outcome("", "NoSourceArtifact", words)
        name, wish = str(spec["chart"]), str(spec.get("version") or "*")
        invalid = "invalid chart reference: failed to get chart version for remote reference: "
        if why := dial(self.context, url):
            place = f"https://{urlsplit(url).hostname}/v2/"
            pull = "chart pull error: failed to download chart for remote reference: "
            return Outcome("", "ChartPullError", f'{pull}Get "{place}": {why}')
        row = book.at(url, name)
        if row is None and oci:
            words = f'{invalid}could not get tags for "{url}/{name}": could not fetch tags for "{url}/{name}": '
            return Outcome("", "InvalidChartReference", words + "response status code 403: denied: denied")
        if row is None:
            words = f"{invalid}no '{name}' chart with version matching '{wish}' found"
            return Outcome("", "InvalidChartReference", words)
        version = book.newest(row, wish)
        if not version:
            words = f"{invalid}no '{name}' chart with version matching '{wish}' found"
            return Outcome("", "InvalidChartReference", words)
        return Outcome(version, "ChartPullSucceeded", f"pulled '{name}' chart with version '{version}'", name)


async def run(context: Context, process: Process) -> None:
    """source-controller: HelmRepository, OCIRepository, HelmChart."""
    caches = {kind: context.cache(f"{GROUP}/{plural}") for kind, plural in KINDS.items()}
    sources = Sources(context, process, caches)
    seen: set[tuple[str, Key]] = set()

    def charts_of(item: Object) -> list[Key]:
        name, space = item["metadata"]["name"], item["metadata"]["namespace"]
        rows = caches["HelmChart"].items.items()
        return [key for key, row in rows if key[0] == space and row["spec"]["sourceRef"]["name"] == name]

    async def one(kind: str) -> None:
        async def work(key: Key, item: Object | None) -> float | None:
            first = (kind, key) not in seen
            seen.add((kind, key))
            if first and item is not None and handled(item):
                return None  # settled before this controller began, well or not
            return await sources.work(kind, key, item)

        also: Sequence[tuple[Cache, object]] = [(caches["HelmRepository"], charts_of)] if kind == "HelmChart" else []
        await reconcile(context, caches[kind], work, also=also, workers=2)  # type: ignore[arg-type]

    async with asyncio.TaskGroup() as group:
        for kind in KINDS:
            group.create_task(one(kind))


async def run_watcher(context: Context, process: Process) -> None:
    """source-watcher: an ArtifactGenerator makes an ExternalArtifact of each part it names."""
    generators = context.cache(GENERATORS)
    sources = {kind: context.cache(f"{GROUP}/{plural}") for kind, plural in KINDS.items()}

    async def work(key: Key, item: Object | None) -> float | None:
        if item is None or item["metadata"].get("deletionTimestamp") or handled(item):
            return None
        generation, at = item["metadata"].get("generation", 1), context.stamp()
        for reference in item["spec"].get("sources") or ():
            space = reference.get("namespace") or key[0]
            cache = sources.get(reference["kind"])
            if cache is not None and not is_true(cache.get(space, reference["name"])):
                words = f"failed to get source: {reference['kind']} '{space}/{reference['name']}' is not ready"
                rows = [condition("Ready", "False", "SourceFetchFailed", words, at=at, generation=generation)]
                if row_of(item, "Ready").get("message") != words:
                    made = await context.client.patch(f"{_place(key)}/status", {"status": {"conditions": rows}})
                    await generators.caught_up(made)
                return None
        owner = [{"apiVersion": "source.extensions.fluxcd.io/v1beta1", "kind": "ArtifactGenerator", "name": key[1],
                  "uid": item["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}]  # fmt: skip
        inventory = []
        for part in item["spec"].get("artifacts") or item["spec"].get("outputArtifacts") or ():
            revision = f"latest@{digest(part['name'])}"
            reference = {"apiVersion": owner[0]["apiVersion"], "kind": "ArtifactGenerator", "name": key[1],
                         "namespace": key[0]}  # fmt: skip
            body = {
                "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "ExternalArtifact",
                "metadata": {"name": part["name"], "namespace": key[0], "ownerReferences": owner},
                "spec": {"sourceRef": reference},
            }  # fmt: skip
            path = f"{GROUP}/namespaces/{key[0]}/externalartifacts/{part['name']}"
            await context.client.apply(path, body, manager="source-watcher")
            words = f"stored artifact: revision '{revision}'"
            status = {
                "artifact": {"revision": revision, "digest": digest(part["name"]), "lastUpdateTime": at, "path": "",
                             "url": f"http://source-watcher.cozy-fluxcd.svc.cozy.local./{part['name']}.tar.gz"},
                "conditions": [condition("Ready", "True", "Succeeded", words, at=at, generation=1)],
            }  # fmt: skip
            await context.client.patch(f"{path}/status", {"status": status})
            inventory.append(
                {"name": part["name"], "namespace": key[0], "digest": digest(part["name"]), "filename": ""}
            )
        words = f"reconciliation succeeded, generated {len(inventory)} artifact(s)"
        rows = [condition("Ready", "True", "Succeeded", words, at=at, generation=generation)]
        status = {"conditions": rows, "inventory": inventory, "observedSourcesDigest": digest(key[1]),
                  "observedGeneration": generation}  # fmt: skip
        await generators.caught_up(await context.client.patch(f"{_place(key)}/status", {"status": status}))
        process.write(line(context, "ArtifactGenerator", "info", words, item))
        return None

    def of_source(item: Object) -> list[Key]:
        name = item["metadata"]["name"]
        return [
            key for key, row in generators.items.items()
            if any(entry["name"] == name for entry in row["spec"].get("sources") or ())
        ]  # fmt: skip

    await reconcile(context, generators, work, also=[(cache, of_source) for cache in sources.values()], workers=1)


def _place(key: Key) -> str:
    return f"/apis/source.extensions.fluxcd.io/v1beta1/namespaces/{key[0]}/artifactgenerators/{key[1]}"


PROGRAMS = (Program("source-controller", run), Program("source-watcher", run_watcher))

__all__ = ["PROGRAMS", "Outcome", "digest", "handled", "judged", "line", "seconds_of"]
