"""CozyStack's operator: a Package becomes HelmReleases, a PackageSource the artifacts that they take.

Before v1 the installer does so from a ConfigMap: its `values-<component>` become values of the releases.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from . import klog
from .client import Cache, Key, Object, Refused
from .context import Context
from .flux_sources import GENERATORS
from .installing import condition, is_true, row_of, with_conditions
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "/apis/cozystack.io/v1alpha1"
RELEASES = "/apis/helm.toolkit.fluxcd.io/v2"
LABEL = "cozystack.io/package"
SYSTEM = "cozy-system"
VALUES = "cozystack-values"
SKIP = "operator.cozystack.io/skip-cozystack-values"


# -- pure judgement ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a package comes to: its Ready condition in parts, its dependencies, and the releases it asks for.

    `releases` is None while none may be made.
    """

    status: str
    reason: str
    message: str
    dependencies: Mapping[str, Object] = field(default_factory=dict)
    releases: tuple[Object, ...] | None = None


def variant_of(package: Object, source: Object) -> Object | None:
    """The variant that the package chose, or None."""
    name = (package.get("spec") or {}).get("variant") or "default"
    return next((row for row in (source.get("spec") or {}).get("variants") or () if row["name"] == name), None)


def installed(package: Object, variant: Object) -> list[Object]:
    """The variant's components that are to be installed."""
    chosen = (package.get("spec") or {}).get("components") or {}
    return [
        row
        for row in variant.get("components") or ()
        if "install" in row and (chosen.get(row["name"]) or {}).get("enabled", True) is not False
    ]


def decide(
    package: Object, source: Object | None, packages: Mapping[str, Object], sources: Mapping[str, Object]
) -> Verdict:
    """What the operator makes of a package, given its source and all the others."""
    name = package["metadata"]["name"]
    if source is None:
        return Verdict("False", "PackageSourceNotFound", f"PackageSource {name} not found")
    variant = variant_of(package, source)
    if variant is None:
        wanted = (package.get("spec") or {}).get("variant") or "default"
        return Verdict("False", "VariantNotFound", f"Variant {wanted} not found in PackageSource {name}")
    ignored = set((package.get("spec") or {}).get("ignoreDependencies") or ())
    needs = [need for need in variant.get("dependsOn") or () if need not in ignored]
    dependencies = {need: {"ready": is_true(packages.get(need))} for need in needs}
    if not all(row["ready"] for row in dependencies.values()):
        words = "One or more dependencies are not ready"
        return Verdict("False", "DependenciesNotReady", words, dependencies)
    rows = installed(package, variant)
    for row in rows:
        if not row["install"].get("namespace"):
            words = f"Component {row['name']} has empty namespace in Install section"
            return Verdict("False", "InvalidConfiguration", words, dependencies)
    made = []
    for row in rows:
        try:
            needed = _needs(row, rows, needs, packages, sources)
        except LookupError as missing:
            words = f"Failed to build DependsOn for component {row['name']}: {missing.args[0]}"
            return Verdict("False", "DependsOnFailed", words, dependencies)
        made.append(_release(package, source, variant, row, needed))
    words = f"reconciliation succeeded, generated {len(made)} helmrelease(s)"
    return Verdict("True", "ReconciliationSucceeded", words, dependencies, tuple(made))


def _place(row: Object) -> Object:
    install = row["install"]
    return {"name": install.get("releaseName") or row["name"], "namespace": install.get("namespace", "")}


def _needs(
    row: Object, rows: list[Object], needs: list[str], packages: Mapping[str, Object], sources: Mapping[str, Object]
) -> list[Object]:
    """What a component's release depends on: components beside it, and all of the packages below."""
    beside = {other["name"]: other for other in rows}
    found = []
    for name in row["install"].get("dependsOn") or ():
        if name not in beside:
            raise LookupError(f"component {name} not found in variant for dependency {row['name']}")
        found.append(_place(beside[name]))
    for need in needs:
        package, source = packages[need], sources.get(need)
        if source is None:
            raise LookupError(f"failed to get variant for dependent Package {need}: PackageSource {need} not found")
        variant = variant_of(package, source)
        found += [_place(other) for other in installed(package, variant or {})]
    return found


def _release(package: Object, source: Object, variant: Object, row: Object, needed: list[Object]) -> Object:
    """The HelmRelease of one component."""
    name, install = package["metadata"]["name"], row["install"]
    place = _place(row)
    artifact = "-".join(text.replace(".", "-") for text in (source["metadata"]["name"], variant["name"], row["name"]))
    labels = {LABEL: name, **({"cozystack.io/privileged": "true"} if install.get("privileged") else {})}
    spec: Object = {
        "interval": "5m0s", "timeout": "10m0s",
        "chartRef": {"kind": "ExternalArtifact", "name": artifact, "namespace": SYSTEM},
        "install": {"crds": "CreateReplace", "remediation": {"retries": -1}},
        "upgrade": {"crds": install.get("upgradeCRDs") or "CreateReplace", "remediation": {"retries": -1}},
    }  # fmt: skip
    if (source["metadata"].get("annotations") or {}).get(SKIP) != "true":
        spec["valuesFrom"] = [{"kind": "Secret", "name": VALUES}]
    values = (((package.get("spec") or {}).get("components") or {}).get(row["name"]) or {}).get("values")
    if values is not None:
        spec["values"] = values
    if needed:
        spec["dependsOn"] = needed
    owner = {"apiVersion": "cozystack.io/v1alpha1", "kind": "Package", "name": name,
             "uid": package["metadata"].get("uid", ""), "controller": True}  # fmt: skip
    meta = {**place, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease", "metadata": meta, "spec": spec}


def generator(source: Object) -> Object | None:
    """The ArtifactGenerator of a PackageSource, or None when it names no source or no part."""
    meta, spec = source["metadata"], source.get("spec") or {}
    reference = spec.get("sourceRef")
    base = str((reference or {}).get("path", "")).strip("/")
    parts = []
    for variant in spec.get("variants") or ():
        for row in variant.get("components") or ():
            if row.get("path"):
                names = (meta["name"], variant["name"], row["name"])
                folder = "/".join(filter(None, (base, row["path"].strip("/"))))
                copied = {"from": f"@{(reference or {}).get('name')}/{folder}/**",
                          "to": f"@artifact/{row['path'].rpartition('/')[2]}/"}  # fmt: skip
                parts.append({"name": "-".join(text.replace(".", "-") for text in names), "copy": [copied]})
    if not reference or not parts:
        return None
    owner = {"apiVersion": "cozystack.io/v1alpha1", "kind": "PackageSource", "name": meta["name"],
             "uid": meta.get("uid", ""), "controller": True}  # fmt: skip
    source_row = {"alias": reference["name"], **{key: reference[key] for key in ("kind", "name", "namespace")}}
    return {
        "apiVersion": "source.extensions.fluxcd.io/v1beta1", "kind": "ArtifactGenerator",
        "metadata": {"name": meta["name"], "namespace": SYSTEM, "ownerReferences": [owner],
                     "labels": {"cozystack.io/packagesource": meta["name"]}},
        "spec": {"sources": [source_row], "artifacts": parts},
    }  # fmt: skip


# -- the operator -----------------------------------------------------------------------------------------------------


@dataclass
class Operator:
    """A running cozystack-operator."""

    context: Context
    process: Process
    packages: Cache
    sources: Cache
    generators: Cache
    releases: Cache
    done: dict[str, str] = field(default_factory=dict)

    def say(self, message: str, **values: str) -> None:
        """A line of the log."""
        self.process.write(klog.line(self.context.clock.now(), "I", "package_reconciler.go:312", message, **values))

    def by_name(self, cache: Cache) -> dict[str, Object]:
        """The objects of a cluster-wide kind."""
        return {key[1]: item for key, item in cache.items.items()}

    async def package(self, key: Key, item: Object | None) -> float | None:
        """A package gets its namespaces and releases, and says how that went."""
        name = key[1]
        if item is None or item["metadata"].get("deletionTimestamp"):
            if item is None and self.done.pop(name, None) is not None:
                await self.forget(name, set())
            return None
        source = self.sources.get("", name)
        verdict = decide(item, source, self.by_name(self.packages), self.by_name(self.sources))
        parts = [item.get("spec"), (source or {}).get("spec"), verdict.reason, verdict.dependencies]
        mark = json.dumps(parts, sort_keys=True)
        before = self.done.get(name)
        self.done[name] = mark
        if before == mark or (before is None and row_of(item, "Ready")):
            await self.recover(item, verdict)  # settled before this operator began
            return None
        if verdict.releases is not None and source is not None:
            await self.install(item, source, verdict.releases)
        await self.tell(item, verdict)
        return None

    async def recover(self, item: Object, verdict: Verdict) -> None:
        """Nothing; a package that only its releases kept from being ready is so once they are."""
        if row_of(item, "Ready").get("reason") != "HelmReleaseFailed" or verdict.releases is None:
            return
        name, rows = item["metadata"]["name"], self.releases.items.values()
        mine = [row for row in rows if (row["metadata"].get("labels") or {}).get(LABEL) == name]
        if mine and all(is_true(row) for row in mine):
            await self.tell(item, verdict)

    async def install(self, package: Object, source: Object, wanted: tuple[Object, ...]) -> None:
        """Nothing; namespaces and releases are as the package wants them, and no others carry its label."""
        name, client = package["metadata"]["name"], self.context.client
        variant = variant_of(package, source) or {}
        rows = installed(package, variant)
        for space in sorted({row["install"]["namespace"] for row in rows}):
            privileged = any(row["install"].get("privileged") for row in rows if row["install"]["namespace"] == space)
            await self.namespace(space, privileged=privileged)
        for release in wanted:
            meta = release["metadata"]
            path = f"{RELEASES}/namespaces/{meta['namespace']}/helmreleases"
            known = self.releases.get(meta["namespace"], meta["name"])
            if known is None:
                made = await client.create(path, release)
            else:
                spec = {part: release["spec"].get(part) for part in ("chartRef", "dependsOn", "values", "valuesFrom")}
                same = all(known["spec"].get(part) == value for part, value in spec.items())
                if same and (known["metadata"].get("labels") or {}).get(LABEL) == name:
                    continue
                body = {"metadata": {key: meta[key] for key in ("labels", "ownerReferences")}, "spec": spec}
                made = await client.patch(f"{path}/{meta['name']}", body)
            await self.releases.caught_up(made)
            self.say("reconciled HelmRelease", package=name, releaseName=meta["name"], namespace=meta["namespace"])
        await self.forget(name, {(row["metadata"]["namespace"], row["metadata"]["name"]) for row in wanted})

    async def namespace(self, space: str, *, privileged: bool) -> None:
        """Nothing; the namespace is there with CozyStack's labels, and with the platform's values."""
        labels = {} if space.startswith("tenant-") else {"cozystack.io/system": "true"}
        if privileged:
            labels["pod-security.kubernetes.io/enforce"] = "privileged"
        meta = {"name": space, "labels": labels, "annotations": {"helm.sh/resource-policy": "keep"}}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
        client = self.context.client
        await client.apply(f"/api/v1/namespaces/{space}", body, manager="cozystack-package-controller")
        path = f"/api/v1/namespaces/{space}/secrets"
        if await client.find(f"{path}/{VALUES}") is None:
            model = await client.find(f"/api/v1/namespaces/{SYSTEM}/secrets/{VALUES}")
            if model is not None:
                copied = {"metadata": {"name": VALUES}, "type": "Opaque", "data": model.get("data") or {}}
                await client.create(path, copied)

    async def forget(self, name: str, kept: set[Key]) -> None:
        """Nothing; releases that carry the package's label but are not wanted any more are deleted."""
        for key, row in list(self.releases.items.items()):
            if (row["metadata"].get("labels") or {}).get(LABEL) == name and key not in kept:
                try:
                    await self.context.client.delete(f"{RELEASES}/namespaces/{key[0]}/helmreleases/{key[1]}")
                except Refused as error:
                    if error.code != 404:
                        raise

    async def tell(self, package: Object, verdict: Verdict) -> None:
        """Nothing; the package says what it came to."""
        name, status = package["metadata"]["name"], package.get("status") or {}
        row = condition("Ready", verdict.status, verdict.reason, verdict.message, at=self.context.stamp())
        wanted: Object = {"conditions": with_conditions(status.get("conditions") or (), row)}
        gone = dict.fromkeys(set(status.get("dependencies") or ()) - set(verdict.dependencies))
        wanted["dependencies"] = {**gone, **verdict.dependencies}
        made = await self.context.client.patch(f"{GROUP}/packages/{name}/status", {"status": wanted})
        await self.packages.caught_up(made)
        self.say("reconciled Package", name=name, reason=verdict.reason)

    async def source(self, key: Key, item: Object | None) -> float | None:
        """A PackageSource gets its generator, and says what that says."""
        if item is None or item["metadata"].get("deletionTimestamp"):
            return None
        name, mark = f"source/{key[1]}", json.dumps(item.get("spec"), sort_keys=True)
        before = self.done.get(name)
        self.done[name] = mark
        known = self.generators.get(SYSTEM, key[1])
        if before is None and row_of(item, "Ready") and known is None:
            return None  # settled before this operator began
        wanted = generator(item)
        if wanted is not None and (known is None or known["spec"].get("artifacts") != wanted["spec"]["artifacts"]):
            path = f"/apis/source.extensions.fluxcd.io/v1beta1/namespaces/{SYSTEM}/artifactgenerators/{key[1]}"
            made = await self.context.client.apply(path, wanted, manager="cozystack-packagesource-controller")
            await self.generators.caught_up(made)
            known = self.generators.get(SYSTEM, key[1])
        row = source_ready(item, known, at=self.context.stamp())
        status = item.get("status") or {}
        rows = with_conditions(status.get("conditions") or (), row)
        variants = ",".join(entry["name"] for entry in (item.get("spec") or {}).get("variants") or ())
        if rows != status.get("conditions") or variants != status.get("variants"):
            body = {"status": {"conditions": rows, "variants": variants}}
            path = f"{GROUP}/packagesources/{key[1]}/status"
            await self.sources.caught_up(await self.context.client.patch(path, body))
        return None


def source_ready(source: Object, made: Object | None, *, at: str) -> Object:
    """The Ready condition of a PackageSource, from that of its generator."""
    generation = source["metadata"].get("generation", 1)
    if not (source.get("spec") or {}).get("sourceRef"):
        words = "SourceRef is not configured"
        return condition("Ready", "Unknown", "SourceRefNotSet", words, at=at, generation=generation)
    if made is None:
        words = "ArtifactGenerator not found"
        return condition("Ready", "Unknown", "ArtifactGeneratorNotFound", words, at=at, generation=generation)
    row = row_of(made, "Ready")
    if not row:
        words = "ArtifactGenerator is not ready yet"
        return condition("Ready", "Unknown", "ArtifactGeneratorNotReady", words, at=at, generation=generation)
    return condition("Ready", row["status"], row["reason"], row["message"], at=at, generation=generation)


async def run(context: Context, process: Process) -> None:
    """cozystack-operator: packages and their sources."""
    packages, sources = context.cache(f"{GROUP}/packages"), context.cache(f"{GROUP}/packagesources")
    generators, releases = context.cache(GENERATORS), context.cache(f"{RELEASES}/helmreleases")
    operator = Operator(context, process, packages, sources, generators, releases)
    await context.synced(packages, sources, generators, releases)

    def same(item: Object) -> list[Key]:
        return [("", item["metadata"]["name"])]

    def dependents(item: Object) -> list[Key]:
        name = item["metadata"]["name"]
        found = [("", name)]
        for key, row in packages.items.items():
            source = sources.get("", key[1])
            if source and name in ((variant_of(row, source) or {}).get("dependsOn") or ()):
                found.append(key)
        return found

    def of_release(item: Object) -> list[Key]:
        name = (item["metadata"].get("labels") or {}).get(LABEL)
        return [("", name)] if name else []

    async with asyncio.TaskGroup() as group:
        group.create_task(reconcile(context, sources, operator.source, also=[(generators, same)], workers=2))
        also = [(sources, same), (packages, dependents), (releases, of_release)]
        group.create_task(reconcile(context, packages, operator.package, also=also, workers=1))


# -- before v1 --------------------------------------------------------------------------------------------------------


def wished_values(config: Object) -> dict[str, Object]:
    """The values that the installer's ConfigMap gives to components. What is no map counts as nothing."""
    found = {}
    for name, text in (config.get("data") or {}).items():
        if name.startswith("values-"):
            try:
                given = yaml.safe_load(text)
            except yaml.YAMLError:
                continue
            if isinstance(given, dict):
                found[name.removeprefix("values-")] = given
    return found


async def run_installer(context: Context, process: Process) -> None:
    """The installer of v0: what the ConfigMap says of a component becomes values of its release."""
    maps, releases = context.cache("/api/v1/configmaps"), context.cache(f"{RELEASES}/helmreleases")
    await context.synced(maps, releases)
    process.write("Waiting for changes of the configuration")

    async def work(key: Key, item: Object | None) -> float | None:
        if key != (SYSTEM, "cozystack") or item is None or "bundle-name" not in (item.get("data") or {}):
            return None
        wished = wished_values(item)
        for place, row in list(releases.items.items()):
            labels = row["metadata"].get("labels") or {}
            if labels.get("cozystack.io/system-app") != "true" or place[1] not in wished:
                continue
            if row["spec"].get("values") != wished[place[1]]:
                path = f"{RELEASES}/namespaces/{place[0]}/helmreleases/{place[1]}"
                made = await context.client.patch(path, {"spec": {"values": wished[place[1]]}})
                await releases.caught_up(made)
                process.write(f"helmrelease.helm.toolkit.fluxcd.io/{place[1]} configured")
        return None

    await reconcile(context, maps, work, workers=1)


PROGRAMS = (Program("cozystack-operator", run), Program("installer", run_installer))
