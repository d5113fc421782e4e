"""CozyStack, Flux, Cluster API and monitoring as rows: by what the objects are, never by what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from runbook_lib.facts import CapiProvider, Cozystack, Crd, MonitoringPart, Namespace, Package, Quota, Release
from runbook_lib.kubernetes_reading import Reader

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SYSTEM = "cozy-system"
PLATFORM_PACKAGE = "cozystack.cozystack-platform"
PROVIDERS_GROUP = "operator.cluster.x-k8s.io"
CONTRACT = re.compile(r"cluster\.x-k8s\.io/(v\d\w*)")
RELEASE = re.compile(r"v?(\d+\.\d+\.\d+(?:[-+][\w.+-]+)?)")
MONITORING = {
    "operator.victoriametrics.com": {"VMCluster", "VMSingle", "VMAgent", "VMAlert", "VLCluster", "VLSingle"},
    "grafana.integreatly.org": {"Grafana"},
    "monitoring.coreos.com": {"Prometheus"},
}


def condition(thing: Mapping[str, Any], kind: str = "Ready") -> tuple[str, str, str]:
    """Status, reason and message of a condition; "Unknown" where it is missing or speaks of an older generation."""
    generation = (thing.get("metadata") or {}).get("generation") or 0
    for entry in (thing.get("status") or {}).get("conditions") or []:
        if entry["type"] != kind:
            continue
        seen = entry.get("observedGeneration")
        if seen is not None and 0 <= seen < generation:
            return "Unknown", "Outdated", f"told of generation {seen}, not of {generation}: {entry.get('message', '')}"
        return entry["status"], entry.get("reason", ""), entry.get("message", "")
    return "Unknown", "", ""


def cozystack(k8s: Reader) -> Cozystack:
    """Which CozyStack this is: its Package API served means v1, its old ConfigMap with a bundle means v0, both means a
    migration that has not ended. The release comes from the image that installs it; `migration` is not a version."""
    evidence = []
    crd = k8s.find(f"{CRDS}/packages.cozystack.io")
    packaged = crd is not None and any(version.get("served") for version in crd["spec"]["versions"])
    if packaged:
        evidence.append("CRD packages.cozystack.io is served")
    config = (k8s.find(f"/api/v1/namespaces/{SYSTEM}/configmaps/cozystack") or {}).get("data") or {}
    bundle = config.get("bundle-name")
    if bundle:
        evidence.append(f"ConfigMap {SYSTEM}/cozystack has bundle-name {bundle}")
    generation = {(True, True): "half migrated", (True, False): "v1", (False, True): "v0"}.get(
        (packaged, bool(bundle)), "none"
    )
    release = variant = None
    if generation != "none":
        release, told = _release(k8s)
        evidence += [told] if told else []
    if packaged:
        package = k8s.find(f"/apis/cozystack.io/v1alpha1/packages/{PLATFORM_PACKAGE}") or {}
        variant = (package.get("spec") or {}).get("variant")
    counter = (k8s.find(f"/api/v1/namespaces/{SYSTEM}/configmaps/cozystack-version") or {}).get("data") or {}
    number = str(counter.get("version", ""))
    return Cozystack(generation, release, int(number) if number.isdigit() else None, variant or bundle, tuple(evidence))


def _release(k8s: Reader) -> tuple[str | None, str]:
    for name in ("cozystack-operator", "cozystack"):
        deployment = k8s.find(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{name}")
        if deployment is None:
            continue
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            told = {entry["name"]: entry.get("value") or "" for entry in container.get("env") or []}
            image = container.get("image", "")
            for source, text in (("COZYSTACK_VERSION", told.get("COZYSTACK_VERSION", "")), ("image", _tag(image))):
                found = RELEASE.fullmatch(text)
                if found:
                    return found[1], f"Deployment {SYSTEM}/{name}: {source} {text}"
    return None, ""


def _tag(image: str) -> str:
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2]


def namespace(k8s: Reader, name: str) -> Namespace | None:
    """One namespace with its quotas; None where there is none."""
    found = k8s.find(f"/api/v1/namespaces/{name}")
    if found is None:
        return None
    quotas = [
        Quota(
            entry["metadata"]["name"],
            dict((entry.get("status") or {}).get("hard") or (entry.get("spec") or {}).get("hard") or {}),
            dict((entry.get("status") or {}).get("used") or {}),
        )
        for entry in k8s.list(f"/api/v1/namespaces/{name}/resourcequotas")
    ]
    phase = (found.get("status") or {}).get("phase", "Unknown")
    return Namespace(name, phase, dict(found["metadata"].get("labels") or {}), tuple(quotas))


def releases(k8s: Reader) -> list[Release]:
    """Every Flux HelmRelease by namespace and name."""
    base = k8s.group("helm.toolkit.fluxcd.io")
    found = k8s.list(f"{base}/helmreleases") if base else []
    return sorted((_helm_release(entry) for entry in found), key=lambda row: (row.namespace, row.name))


def _helm_release(entry: Mapping[str, Any]) -> Release:
    metadata, spec, status = entry["metadata"], entry.get("spec") or {}, entry.get("status") or {}
    ready, reason, message = condition(entry)
    history = status.get("history") or []
    chart = ((spec.get("chart") or {}).get("spec") or {}).get("version")
    return Release(
        namespace=metadata["namespace"],
        name=metadata["name"],
        ready=ready,
        reason=reason,
        message=message,
        suspended=bool(spec.get("suspend")),
        depends_on=tuple(
            f"{other.get('namespace') or metadata['namespace']}/{other['name']}"
            for other in spec.get("dependsOn") or []
        ),
        chart_version=history[0].get("chartVersion") if history else status.get("lastAppliedRevision") or chart,
        package=(metadata.get("labels") or {}).get("cozystack.io/package", ""),
    )


def packages(k8s: Reader) -> list[Package]:
    """Every CozyStack v1 Package by name; none on v0."""
    rows = []
    for entry in k8s.list("/apis/cozystack.io/v1alpha1/packages"):
        ready, reason, message = condition(entry)
        waits = (entry.get("status") or {}).get("dependencies") or {}
        rows.append(
            Package(
                name=entry["metadata"]["name"],
                variant=(entry.get("spec") or {}).get("variant", ""),
                ready=ready,
                reason=reason,
                message=message,
                dependencies=tuple(sorted(_names(waits))),
            )
        )
    return sorted(rows, key=lambda row: row.name)


def _names(found: Mapping[str, Any] | Iterable[Any]) -> list[str]:
    if isinstance(found, Mapping):
        return list(found)
    return [entry["name"] if isinstance(entry, Mapping) else str(entry) for entry in found]


def providers(k8s: Reader) -> list[CapiProvider]:
    """Every provider object of the Cluster API operator, by kind, namespace and name."""
    base = k8s.group(PROVIDERS_GROUP)
    rows = [
        _provider(kind["kind"], entry)
        for kind in (k8s.resources(base) if base else [])
        for entry in k8s.list(f"{base}/{kind['name']}")
    ]
    return sorted(rows, key=lambda row: (row.kind, row.namespace, row.name))


def _provider(kind: str, entry: Mapping[str, Any]) -> CapiProvider:
    metadata, status = entry["metadata"], entry.get("status") or {}
    ready, reason, message = condition(entry)
    if ready != "True":  # Ready only sums up: what failed before it tells why
        for earlier in ("PreflightCheckPassed", "ProviderInstalled", "ProviderUpgraded"):
            state, why, text = condition(entry, earlier)
            if state == "False" and why:
                reason, message = why, text or message
                break
    return CapiProvider(
        kind=kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        version=(entry.get("spec") or {}).get("version", ""),
        installed_version=status.get("installedVersion") or "",
        contract=status.get("contract") or "",
        ready=ready,
        reason=reason,
        message=message,
    )


def crds(k8s: Reader) -> list[Crd]:
    """Every CustomResourceDefinition by name."""
    return sorted((_crd(entry) for entry in k8s.list(CRDS)), key=lambda row: row.name)


def _crd(entry: Mapping[str, Any]) -> Crd:
    metadata, spec = entry["metadata"], entry["spec"]
    labels = metadata.get("labels") or {}
    contracts = {
        found[1]: tuple(part for part in str(value).split("_") if part)
        for label, value in labels.items()
        if (found := CONTRACT.fullmatch(label))
    }
    return Crd(
        name=metadata["name"],
        group=spec["group"],
        kind=spec["names"]["kind"],
        served=tuple(version["name"] for version in spec["versions"] if version.get("served")),
        storage_version=next((version["name"] for version in spec["versions"] if version.get("storage")), ""),
        established=condition(entry, "Established")[0] == "True",
        contracts=contracts,
    )


def monitoring(k8s: Reader) -> list[MonitoringPart]:
    """Every object of a monitoring stack that the cluster knows a kind of, by kind, namespace and name."""
    rows = []
    for group, kinds in MONITORING.items():
        found = k8s.find(f"/apis/{group}") or {}
        listed: set[str] = set()
        for version in found.get("versions") or []:  # kinds of one group may live in versions of their own
            base = f"/apis/{version['groupVersion']}"
            for kind in k8s.resources(base):
                if kind["kind"] in kinds - listed:
                    listed.add(kind["kind"])
                    rows += [_part(kind["kind"], entry) for entry in k8s.list(f"{base}/{kind['name']}")]
    return sorted(rows, key=lambda row: (row.kind, row.namespace, row.name))


def _part(kind: str, entry: Mapping[str, Any]) -> MonitoringPart:
    metadata, status = entry["metadata"], entry.get("status") or {}
    operational: bool | None = None
    detail = ""
    if "updateStatus" in status or "clusterStatus" in status:  # VictoriaMetrics operator, new and old
        detail = str(status.get("updateStatus") or status.get("clusterStatus"))
        operational = detail == "operational"
        detail = f"{detail}: {status['reason']}" if status.get("reason") else detail
    elif "stage" in status:  # Grafana operator
        detail = f"{status['stage']} {status.get('stageStatus', '')}".strip()
        operational = status["stage"] == "complete" and status.get("stageStatus") == "success"
    elif kind == "Prometheus" and status.get("conditions"):
        state, reason, message = condition(entry, "Available")
        operational, detail = state == "True", ": ".join(filter(None, (reason, message)))
    return MonitoringPart(kind, metadata.get("namespace", ""), metadata["name"], operational, detail)
