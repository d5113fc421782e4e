"""CozyStack's own objects: releases, packages, sources, configuration, providers of Cluster API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from .components import FLUX_V0, FLUX_V1, Part, Release
from .objects import Object, Times, condition, set_condition, thing
from .workloads import Body

NETWORKING = {
    "podCIDR": "10.244.0.0/16",
    "podGateway": "10.244.0.1",
    "serviceCIDR": "10.96.0.0/16",
    "joinCIDR": "100.64.0.0/16",
    "clusterDomain": "cozy.local",
}
"""CozyStack's defaults."""

_APPLICATIONS = (
    ("Tenant", "tenant", "tenants"),
    ("Kubernetes", "kubernetes", "kuberneteses"),
    ("VMInstance", "vm-instance", "vminstances"),
    ("VMDisk", "vm-disk", "vmdisks"),
    ("Postgres", "postgres", "postgreses"),
    ("Bucket", "bucket", "buckets"),
    ("Etcd", "etcd", "etcds"),
    ("Ingress", "ingress", "ingresses"),
    ("Monitoring", "monitoring", "monitorings"),
)


def digest(text: str) -> str:
    """A believable sha256 digest of a text."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# --- Flux ----------------------------------------------------------------------------------------


def helm_release(
    name: str,
    namespace: str,
    times: Times,
    *,
    chart: str,
    needs: Iterable[tuple[str, str]] = (),
    package: str = "",
    labels: Mapping[str, str] | None = None,
    version: str,
) -> Object:
    """A reconciled HelmRelease; v1 releases name their package and take an ExternalArtifact."""
    revision = f"0.0.0+{hashlib.sha256(chart.encode()).hexdigest()[:12]}"
    spec: Object = {
        "interval": "5m0s",
        "timeout": "10m0s",
        "install": {"crds": "CreateReplace", "remediation": {"retries": -1}},
        "upgrade": {"crds": "CreateReplace", "remediation": {"retries": -1}},
        "valuesFrom": [{"kind": "Secret", "name": "cozystack-values"}],
    }
    depends = [{"name": other, "namespace": space} for space, other in needs]
    if depends:
        spec["dependsOn"] = depends
    if package:
        artifact = (
            f"{package.replace('.', '-')}-{'kubeovn-cilium' if package.endswith('networking') else 'default'}-{name}"
        )
        spec["chartRef"] = {"kind": "ExternalArtifact", "name": artifact, "namespace": "cozy-system"}
    else:
        source = {"kind": "HelmRepository", "name": "cozystack-system", "namespace": "cozy-system"}
        spec["chart"] = {
            "spec": {"chart": chart, "version": ">= 0.0.0-0", "reconcileStrategy": "Revision", "sourceRef": source}
        }
    message = f"Helm install succeeded for release {namespace}/{name}.v1 with chart {chart}@{revision}"
    return thing(
        "helm.toolkit.fluxcd.io/v2",
        "HelmRelease",
        name,
        namespace,
        created=times.born,
        labels=labels,
        finalizers=("finalizers.fluxcd.io",),
        generation=1,
        spec=spec,
        status={
            "conditions": [
                condition("Ready", True, "InstallSucceeded", message, at=times.settled, generation=1),
                condition("Released", True, "InstallSucceeded", message, at=times.settled, generation=1),
            ],
            "helmChart": "" if package else f"cozy-system/{namespace}-{name}",
            "history": [
                {
                    "appVersion": version,
                    "chartName": chart,
                    "chartVersion": revision,
                    "configDigest": digest(f"{namespace}/{name}/values"),
                    "digest": digest(f"{namespace}/{name}/manifest"),
                    "firstDeployed": times.born,
                    "lastDeployed": times.born,
                    "name": name,
                    "namespace": namespace,
                    "status": "deployed",
                    "version": 1,
                }
            ],
            "lastAttemptedConfigDigest": digest(f"{namespace}/{name}/values"),
            "lastAttemptedGeneration": 1,
            "lastAttemptedReleaseAction": "install",
            "lastAttemptedRevision": revision,
            "observedGeneration": 1,
            "storageNamespace": namespace,
        },
    )


def releases(rows: Sequence[Release], times: Times, versions: Mapping[str, str], *, v1: bool) -> list[Object]:
    """The HelmRelease of each platform release, its dependencies by namespace and name."""
    spaces = {row.name: row.namespace for row in rows}
    items = []
    for row in rows:
        needs = [(spaces[other], other) for other in row.needs]
        labels = {"cozystack.io/package": f"cozystack.{row.package}"} if v1 else {}
        if not v1:
            labels = {"cozystack.io/repository": "system", "cozystack.io/system-app": "true"}
        items.append(
            helm_release(
                row.name,
                row.namespace,
                times,
                chart=f"cozy-{row.name}",
                needs=needs,
                package=f"cozystack.{row.package}" if v1 else "",
                labels=labels,
                version=versions["cozystack"],
            )
        )
    return items


def spread_unready(objects: Sequence[Object], times: Times) -> None:
    """What Flux and the operator make of a broken release: its dependents and its packages are not ready either.

    Mutates statuses. A release that is suspended keeps the state it had.
    """
    releases_by_name = {
        f"{item['metadata']['namespace']}/{item['metadata']['name']}": item
        for item in objects
        if item["kind"] == "HelmRelease"
    }
    changed = True
    while changed:
        changed = False
        for item in releases_by_name.values():
            if not _ready(item) or item["spec"].get("suspend"):
                continue
            for dependency in item["spec"].get("dependsOn", ()):
                other = f"{dependency.get('namespace', item['metadata']['namespace'])}/{dependency['name']}"
                if other in releases_by_name and not _ready(releases_by_name[other]):
                    words = f"dependency '{other}' is not ready"
                    set_condition(item, condition("Ready", False, "DependencyNotReady", words, at=times.ago(1700)))
                    changed = True
                    break
    _spread_to_packages(objects, releases_by_name, times)


def _spread_to_packages(objects: Sequence[Object], by_name: Mapping[str, Object], times: Times) -> None:
    packages = {item["metadata"]["name"]: item for item in objects if item["kind"] == "Package"}
    broken = {
        item["metadata"].get("labels", {}).get("cozystack.io/package"): name
        for name, item in by_name.items()
        if not _ready(item)
    }
    for name, item in packages.items():
        if name in broken:
            words = f"HelmRelease {broken[name]} is not ready"
            set_condition(item, condition("Ready", False, "HelmReleaseFailed", words, at=times.ago(1700)))
    for item in packages.values():
        dependencies = item["status"].get("dependencies", {})
        for other in dependencies:
            if other in packages and not _ready(packages[other]):
                dependencies[other] = {"ready": False}
        waiting = [other for other, state in dependencies.items() if not state["ready"]]
        if waiting and _ready(item):
            words = f"One or more dependencies are not ready: {', '.join(waiting)}"
            set_condition(item, condition("Ready", False, "DependenciesNotReady", words, at=times.ago(1700)))


def _ready(item: Object) -> bool:
    return any(
        entry["type"] == "Ready" and entry["status"] == "True" for entry in item.get("status", {}).get("conditions", ())
    )


# --- v1: packages --------------------------------------------------------------------------------


def packages(rows: Sequence[Release], times: Times, release: str, host: str) -> list[Object]:
    """Packages and their sources, and the OCI repositories they come from."""
    by_package: dict[str, list[Release]] = {}
    for row in rows:
        by_package.setdefault(row.package, []).append(row)
    owner_of = {row.name: row.package for row in rows}
    items = [_platform_package(times, host), _source("cozystack-platform", [], times)]
    for name, members in by_package.items():
        needs = sorted({owner_of[need] for row in members for need in row.needs} - {name})
        items += [_package(name, needs, times), _source(name, members, times, needs)]
    return items + [_oci(name, times, release) for name in ("cozystack-platform", "cozystack-packages")]


def _platform_package(times: Times, host: str) -> Object:
    values = {
        "bundles": {
            "system": {"enabled": True, "variant": "isp-full"},
            "iaas": {"enabled": True},
            "paas": {"enabled": True},
            "naas": {"enabled": True},
            "enabledPackages": [],
            "disabledPackages": [],
        },
        "networking": NETWORKING,
        "publishing": {
            "host": "cozy.example.org",
            "apiServerEndpoint": f"https://{host}:6443",
            "externalIPs": [],
            "exposedServices": ["dashboard", "api"],
            "ingressName": "tenant-root",
            "certificates": {"solver": "http01", "issuerName": "letsencrypt-prod"},
        },
        "authentication": {"oidc": {"enabled": False}},
        "scheduling": {},
        "registries": {},
        "resources": {},
    }
    return _package("cozystack-platform", [], times, variant="isp-full", components={"platform": {"values": values}})


def _package(
    name: str, needs: Sequence[str], times: Times, *, variant: str = "", components: Object | None = None
) -> Object:
    chosen = variant or ("kubeovn-cilium" if name == "networking" else "default")
    item = thing(
        "cozystack.io/v1alpha1",
        "Package",
        f"cozystack.{name}",
        created=times.born,
        annotations={"helm.sh/resource-policy": "keep"},
        labels={"platform.cozystack.io/no-delete": "true"} if variant else None,
        generation=1,
        spec={"variant": chosen, **({"components": components} if components else {})},
        status={
            "conditions": [
                condition(
                    "Ready", True, "ReconciliationSucceeded", "All components are ready", at=times.settled, generation=1
                )
            ]
        },
    )
    if needs:
        item["status"]["dependencies"] = {f"cozystack.{need}": {"ready": True} for need in needs}
    return item


def _source(name: str, members: Sequence[Release], times: Times, needs: Sequence[str] = ()) -> Object:
    variant = {"networking": "kubeovn-cilium", "cozystack-platform": "isp-full"}.get(name, "default")
    components = [
        {
            "name": row.name,
            "path": f"system/{row.name}",
            "install": {"namespace": row.namespace, "releaseName": row.name, "privileged": row.privileged},
        }
        for row in members
    ] or [
        {
            "name": "platform",
            "path": "core/platform",
            "install": {"namespace": "cozy-system", "releaseName": "cozystack-platform"},
        }
    ]
    repository = "cozystack-platform" if name == "cozystack-platform" else "cozystack-packages"
    return thing(
        "cozystack.io/v1alpha1",
        "PackageSource",
        f"cozystack.{name}",
        created=times.born,
        generation=1,
        spec={
            "sourceRef": {"kind": "OCIRepository", "name": repository, "namespace": "cozy-system", "path": "/"},
            "variants": [
                {
                    "name": variant,
                    "components": components,
                    **({"dependsOn": [f"cozystack.{need}" for need in needs]} if needs else {}),
                }
            ],
        },
        status={
            "variants": variant,
            "conditions": [
                condition("Ready", True, "Succeeded", "ArtifactGenerator is ready", at=times.settled, generation=1)
            ],
        },
    )


def _oci(name: str, times: Times, release: str) -> Object:
    url = f"oci://ghcr.io/cozystack/cozystack/{name}"
    revision = f"{release}@{digest(name + release)}"
    return thing(
        "source.toolkit.fluxcd.io/v1",
        "OCIRepository",
        name,
        "cozy-system",
        created=times.born,
        generation=1,
        spec={"interval": "5m0s", "url": url, "ref": {"digest": digest(name + release)}},
        status={
            "observedGeneration": 1,
            "artifact": {"revision": revision, "digest": digest(url), "lastUpdateTime": times.settled},
            "conditions": [
                condition("Ready", True, "Succeeded", f"stored artifact for digest '{revision}'", at=times.settled),
                condition(
                    "ArtifactInStorage", True, "Succeeded", f"stored artifact for digest '{revision}'", at=times.settled
                ),
            ],
        },
    )


def application_definitions(times: Times, *, v1: bool) -> list[Object]:
    """The catalogue of applications: ApplicationDefinition, or its v0 name."""
    kind = "ApplicationDefinition" if v1 else "CozystackResourceDefinition"
    return [
        thing(
            "cozystack.io/v1alpha1",
            kind,
            singular,
            created=times.born,
            generation=1,
            spec={
                "application": {
                    "kind": application,
                    "singular": singular.replace("-", ""),
                    "plural": plural,
                    "openAPISchema": "{}",
                },
                "release": {"prefix": "" if singular in {"etcd", "ingress", "monitoring"} else f"{singular}-"},
            },
        )
        for application, singular, plural in _APPLICATIONS
    ]


# --- the installer and its configuration ---------------------------------------------------------


def installer(body: Body, *, v1: bool) -> None:
    """The operator with its embedded Flux (v1), or the installer with a Flux of its own (v0)."""
    version = body.versions["cozystack"]
    if v1:
        part = Part(
            "Deployment",
            "cozystack-operator",
            f"ghcr.io/cozystack/cozystack/cozystack-operator:{version}",
            cpu="100m",
            memory="128Mi",
            labels={"app": "cozystack-operator"},
            nodes="control-plane",
            host=True,
            env={"COZYSTACK_VERSION": version},
        )
        body.workload("cozy-system", part)
        body.workload("cozy-fluxcd", FLUX_V1)
        return
    for name, image in (("cozystack", "installer"), ("cozystack-assets", "installer")):
        part = Part(
            "Deployment",
            name,
            f"ghcr.io/cozystack/cozystack/{image}:{version}",
            cpu="50m",
            memory="128Mi",
            labels={"app": name},
            host=name == "cozystack",
            services=(("cozystack", 80),) if name == "cozystack-assets" else (),
        )
        body.workload("cozy-system", part)
    for part in FLUX_V0:
        body.workload("cozy-fluxcd", part)


def version_map(times: Times, migration: str) -> Object:
    """ConfigMap cozystack-version: the number of the last migration, which is not a version."""
    return thing("v1", "ConfigMap", "cozystack-version", "cozy-system", created=times.born, data={"version": migration})


def bundle_map(times: Times, host: str) -> Object:
    """The v0 ConfigMap that chooses the bundle."""
    return thing(
        "v1",
        "ConfigMap",
        "cozystack",
        "cozy-system",
        created=times.born,
        data={
            "bundle-name": "paas-full",
            "root-host": "cozy.example.org",
            "api-server-endpoint": f"https://{host}:6443",
            "ipv4-pod-cidr": NETWORKING["podCIDR"],
            "ipv4-pod-gateway": NETWORKING["podGateway"],
            "ipv4-svc-cidr": NETWORKING["serviceCIDR"],
            "ipv4-join-cidr": NETWORKING["joinCIDR"],
            "cluster-domain": NETWORKING["clusterDomain"],
            "expose-services": "dashboard,api",
            "telemetry-enabled": "true",
        },
    )


def v0_repository(times: Times) -> Object:
    """The HelmRepository that the v0 installer serves."""
    return thing(
        "source.toolkit.fluxcd.io/v1",
        "HelmRepository",
        "cozystack-system",
        "cozy-system",
        created=times.born,
        generation=1,
        labels={"cozystack.io/repository": "system"},
        spec={"interval": "5m0s", "url": "http://cozystack.cozy-system.svc/repos/system"},
        status={
            "observedGeneration": 1,
            "conditions": [
                condition("Ready", True, "Succeeded", "stored artifact: revision 'sha256'", at=times.settled)
            ],
        },
    )


# --- Cluster API providers -----------------------------------------------------------------------


def providers(times: Times, flavour: str, versions: Mapping[str, str]) -> list[Object]:
    """What the Cluster API operator was asked to install, and its word that it did. CozyStack ships no IPAM."""
    raised = flavour == "capi-v1beta2"
    contract = "v1beta2" if raised else "v1beta1"
    kamaji = versions["kamaji-provider"]
    rows = [
        ("CoreProvider", "cluster-api", f"{versions['capi-core']}-core", contract, "core-components"),
        ("BootstrapProvider", "kubeadm", f"{versions['capi-core']}-bootstrap", contract, "bootstrap-components"),
        ("ControlPlaneProvider", "kamaji", kamaji, contract, "cp-components"),
        ("InfrastructureProvider", "kubevirt", "v0.1.10-infraprovider", "v1beta1", "infraprovider-components"),
    ]
    if versions.get("cabpt"):
        rows.append(
            ("BootstrapProvider", "talos", f"{versions['cabpt']}-bootstrap-talos", "v1beta1", "bootstrap-components")
        )
    items = [provider(kind, name, version, held, label, times) for kind, name, version, held, label in rows]
    return items + [_components(kind, name, version, label, times) for kind, name, version, _, label in rows]


def provider(kind: str, name: str, version: str, contract: str, label: str, times: Times) -> Object:
    """One installed provider."""
    true = {"status": "True", "lastTransitionTime": times.settled}
    return thing(
        "operator.cluster.x-k8s.io/v1alpha2",
        kind,
        name,
        "cozy-cluster-api",
        created=times.born,
        generation=1,
        finalizers=("provider.cluster.x-k8s.io",),
        spec={"version": version, "fetchConfig": {"selector": {"matchLabels": {label: "cozy"}}}},
        status={
            "contract": contract,
            "installedVersion": version,
            "observedGeneration": 1,
            "conditions": [
                {"type": "Ready", **true},
                {"type": "PreflightCheckPassed", **true, "message": "All preflight checks passed"},
                {"type": "ProviderInstalled", **true, "message": "Provider installed successfully"},
            ],
        },
    )


def _components(kind: str, name: str, version: str, label: str, times: Times) -> Object:
    return thing(
        "v1",
        "ConfigMap",
        version,
        "cozy-cluster-api",
        created=times.born,
        labels={label: "cozy"},
        annotations={"provider.cluster.x-k8s.io/compressed": "true"},
        data={"metadata": f"apiVersion: clusterctl.cluster.x-k8s.io/v1alpha3\nkind: Metadata\n# {kind} {name}\n"},
    )
