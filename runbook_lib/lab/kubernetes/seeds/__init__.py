"""The objects of a stock CozyStack cluster as its API server would list them, by flavour.

`cozystack(section)` takes the `kubernetes:` section of a scenario and returns every object with its status:

- `flavour`: cozystack-1.6, cozystack-0.41 or capi-v1beta2
- `version`: Kubernetes version when not the flavour's own
- `age_days`: how long ago it was installed
- `nodes`: rows of name, role, address, uuid, cpus, memory_gib, labels, taints
- `api_vip`: the control plane's address
- `networking`: ranges other than CozyStack's defaults
- `half_migrated`: the v0 configuration was left beside v1
- `webhooks`: namespace/service → expired, soon, stranger, broken, empty
- `edits`: what an incident did (see edits.py)

Everything is a function of the section and the time, so a lab repeats exactly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from . import admission, crds, edits, platform, scrapes, surroundings, workloads
from .components import VERSIONS, Part, Release, releases
from .objects import Object, Times, thing
from .workloads import Body, Machine

__all__ = ["FLAVOURS", "cozystack", "kubernetes_version"]

FLAVOURS = tuple(VERSIONS)
"""Clusters that can be seeded."""


def cozystack(section: Mapping[str, Any], *, now: float | None = None) -> list[Object]:
    """Every object of the cluster that the section describes, owners before what they own.

    Raises ValueError for an unknown flavour, UnknownEdit for an edit that matches nothing.
    """
    flavour = section.get("flavour", "cozystack-1.6")
    if flavour not in VERSIONS:
        raise ValueError(f"no such Kubernetes flavour: {flavour}; known are {', '.join(FLAVOURS)}")
    times = Times(time.time() if now is None else now, section.get("age_days", 41) * 86400)
    versions = {**VERSIONS[flavour], **_wanted(section)}
    v1 = flavour != "cozystack-0.41"
    machines = [_machine(row) for row in section["nodes"]]
    vip = section.get("api_vip", "10.0.0.40")
    body = Body(machines, times, versions)
    rows = releases(versions)
    hooks = section.get("webhooks", {})
    authorities = admission.authorities(times.now, hooks)
    bundles = {service: made.bundle for service, made in authorities.items()}

    body.add(*surroundings.namespaces(_system_namespaces(rows), times))
    body.add(*crds.definitions(flavour, times, bundles))
    body.add(*workloads.nodes(machines, times, versions))
    workloads.static_pods(body)
    platform.installer(body, v1=v1)
    for release in rows:
        for part in release.parts:
            body.workload(release.namespace, part, labels=_helm_labels(release, part))
    surroundings.tenants(body, v1=v1)
    body.add(*platform.releases(rows, times, versions, v1=v1))
    body.add(*_configuration(section, times, versions, rows, vip, v1=v1))
    body.add(*platform.application_definitions(times, v1=v1))
    body.add(*platform.providers(times, flavour, versions))
    body.add(*surroundings.accounts(times))
    body.add(*surroundings.network(machines, times, vip))
    body.add(*surroundings.storage(machines, times))
    body.add(*surroundings.monitoring(times), *scrapes.scrapes(times))
    body.add(*admission.webhooks(times, authorities, hooks))
    body.add(
        *admission.api_services(_api_services(flavour), times, authorities["cozy-system/lineage-controller-webhook"])
    )
    body.add(*_priority_classes(times))
    _renumber(body.objects, section.get("networking", {}))

    objects = edits.apply(body.objects, section.get("edits", ()), times)
    platform.spread_unready(objects, times)
    return workloads.derive(objects, times)


def kubernetes_version(section: Mapping[str, Any]) -> str:
    """The version the API server of that cluster reports: "v1.34.3"."""
    return str(section.get("version") or VERSIONS[section.get("flavour", "cozystack-1.6")]["kubernetes"])


def _wanted(section: Mapping[str, Any]) -> dict[str, str]:
    wanted = dict(section.get("versions", {}))
    if section.get("version"):
        wanted["kubernetes"] = section["version"]
    return wanted


def _machine(row: Mapping[str, Any]) -> Machine:
    return Machine(**{**row, "taints": tuple(row.get("taints", ()))})


def _system_namespaces(rows: list[Release]) -> dict[str, bool]:
    spaces = {"cozy-system": True, "cozy-fluxcd": True, "cozy-public": False}
    for row in rows:
        spaces[row.namespace] = spaces.get(row.namespace, False) or row.privileged
    return spaces


def _helm_labels(release: Release, part: Part) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/managed-by": "Helm",
        "helm.toolkit.fluxcd.io/name": release.name,
        "helm.toolkit.fluxcd.io/namespace": release.namespace,
    }
    return {key: value for key, value in labels.items() if key not in part.labels}


def _configuration(
    section: Mapping[str, Any],
    times: Times,
    versions: Mapping[str, str],
    rows: list[Release],
    vip: str,
    *,
    v1: bool,
) -> list[Object]:
    half = section.get("half_migrated", False)
    items = [platform.version_map(times, versions["migration"])]
    if v1:
        items += platform.packages(rows, times, versions["cozystack"], vip)
    if not v1 or half:
        items += [platform.bundle_map(times, vip), platform.v0_repository(times)]
    secret = {"values.yaml": "X2NsdXN0ZXI6IHt9Cg=="}
    items += [
        thing("v1", "Secret", "cozystack-values", space, created=times.born, type="Opaque", data=secret)
        for space in sorted({row.namespace for row in rows} | {"tenant-root", "tenant-shop"})
    ]
    return items


def _api_services(flavour: str) -> list[tuple[str, str, str, str]]:
    rows = [
        ("v1alpha1", "apps.cozystack.io", "cozy-system", "cozystack-api"),
        ("v1alpha1", "core.cozystack.io", "cozy-system", "cozystack-api"),
        ("v1beta1", "metrics.k8s.io", "cozy-monitoring", "metrics-server"),
        ("v1", "subresources.kubevirt.io", "cozy-kubevirt", "virt-api"),
        ("v1beta1", "upload.cdi.kubevirt.io", "cozy-kubevirt-cdi", "cdi-api"),
    ]
    if flavour != "cozystack-0.41":
        rows.append(("v1alpha1", "sdn.cozystack.io", "cozy-system", "cozystack-api"))
    return rows


def _priority_classes(times: Times) -> list[Object]:
    return [
        thing("scheduling.k8s.io/v1", "PriorityClass", name, created=times.born, value=value, globalDefault=False,
              preemptionPolicy="PreemptLowerPriority")
        for name, value in (("system-node-critical", 2000001000), ("system-cluster-critical", 2000000000))
    ]  # fmt: skip


def _renumber(objects: list[Object], networking: Mapping[str, str]) -> None:
    """Writes ranges other than the defaults wherever CozyStack states them. Pods keep their addresses."""
    if not networking:
        return
    subnets = {"ovn-default": networking.get("podCIDR"), "join": networking.get("joinCIDR")}
    for item in objects:
        name = item["metadata"]["name"]
        if item["kind"] == "Subnet" and subnets.get(name):
            item["spec"]["cidrBlock"] = subnets[name]
        elif item["kind"] == "ServiceCIDR" and networking.get("serviceCIDR"):
            item["spec"]["cidrs"] = [networking["serviceCIDR"]]
        elif item["kind"] == "Package" and name == "cozystack.cozystack-platform":
            values = item["spec"]["components"]["platform"]["values"]
            values["networking"] = {**values["networking"], **networking}
        elif item["kind"] == "ConfigMap" and name == "cozystack":
            keys = {"podCIDR": "ipv4-pod-cidr", "serviceCIDR": "ipv4-svc-cidr", "joinCIDR": "ipv4-join-cidr"}
            item["data"].update({keys[key]: value for key, value in networking.items() if key in keys})
