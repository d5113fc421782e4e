"""Kamaji: the operator that runs tenant control planes, and the Cluster API provider that asks it for them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from . import kamaji_objects
from .capi import conditions
from .capi.manager import Manager, at_turns
from .capi.objects import CLUSTER_NAME, ContractUnknown, is_paused
from .client import Key, Object, Refused
from .context import Context
from .processes import Process, Program
from .reconcile import reconcile

SECRETS, SERVICES, DEPLOYMENTS = "/api/v1/secrets", "/api/v1/services", "/apis/apps/v1/deployments"
TENANTS = "/apis/kamaji.clastix.io/v1alpha1/tenantcontrolplanes"
FINALIZER = "finalizer.kamaji.clastix.io"
KUBECONFIG_KEY = "kamaji.clastix.io/kubeconfig-secret-key"
COUNTS = ("replicas", "readyReplicas", "updatedReplicas", "unavailableReplicas")
NOBODY_SERVES = "nothing here can serve a control plane: this API server is not the lab's own"


# --- the operator -------------------------------------------------------------------------------------------------


async def run_operator(context: Context, process: Process) -> None:
    """Serves every TenantControlPlane until cancelled."""
    cache = context.cache(TENANTS)
    process.write("INFO setup starting manager")

    async def work(key: Key, item: Object | None) -> float | None:
        return await _serve(context, process, key, item)

    def owner(item: Object) -> list[Key]:
        rows = item["metadata"].get("ownerReferences") or ()
        return [(item["metadata"]["namespace"], row["name"]) for row in rows if row["kind"] == "TenantControlPlane"]

    # Secrets too: those of a former control plane of the name may only be about to go.
    also = [(context.cache(path), owner) for path in (DEPLOYMENTS, SERVICES, SECRETS)]
    await reconcile(context, cache, work, also=also)


async def _serve(context: Context, process: Process, key: Key, item: Object | None) -> float | None:
    planes = context.control_planes
    path = f"/apis/kamaji.clastix.io/v1alpha1/namespaces/{key[0]}/tenantcontrolplanes/{key[1]}"
    if item is None:
        if planes is not None:
            await planes.stop(*key)
        return None
    metadata, cache = item["metadata"], context.cache(TENANTS)
    finalizers = metadata.get("finalizers") or []
    if "deletionTimestamp" in metadata:
        if planes is not None:
            await planes.stop(*key)
        if FINALIZER in finalizers:
            rest = [name for name in finalizers if name != FINALIZER]
            await context.client.patch(path, {"metadata": {"finalizers": rest}})
        return None
    if planes is None:
        process.write(
            f'ERROR Reconciler error {{"TenantControlPlane": "{key[0]}/{key[1]}", "error": "{NOBODY_SERVES}"}}'
        )
        status = {"kubernetesResources": {"version": {"status": "Provisioning"}}}
        if (item.get("status") or {}) != status:
            await cache.caught_up(await context.client.patch(f"{path}/status", {"status": status}))
            await context.event(item, "FailedToServe", NOBODY_SERVES, kind="Warning", component="kamaji")
        return None
    if FINALIZER not in finalizers:
        item = await context.client.patch(path, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
        await cache.caught_up(item)
    before = await _put(context, SERVICES, kamaji_objects.service(item))
    running = await _put(context, DEPLOYMENTS, kamaji_objects.deployment(item))
    told = running.get("status") or {}
    now = kamaji_objects.state(item, told, running["metadata"].get("generation", 1))
    if now in {"Sleeping", "NotReady"}:  # nobody is there to answer; what was written stays in its data store
        await planes.stop(*key, forget=False)
        await _report(context, path, item, kamaji_objects.status(item, None, running, before, context.stamp()))
        return None
    authority = await _known_authority(context, key)
    version = str((item["spec"].get("kubernetes") or {}).get("version", "v1.33.0"))
    endpoint = await planes.start(*key, version, authority=authority)
    missing = {tail for tail in kamaji_objects.SECRETS if await _secret(context, key[0], f"{key[1]}-{tail}") is None}
    for tail, (component, data) in kamaji_objects.secrets(item, endpoint, missing).items():
        await _keep(context, item, f"{key[1]}-{tail}", data, label=kamaji_objects.labels(key[1], component))
    if "admin-kubeconfig" not in missing:  # where it answers may have changed since
        kinds = ("admin.conf", "admin.svc", "super-admin.conf", "super-admin.svc")
        await _follow(context, key, dict.fromkeys(kinds, endpoint.admin_kubeconfig), f"{endpoint.host}:{endpoint.port}")
    await _report(context, path, item, kamaji_objects.status(item, endpoint, running, before, context.stamp()))
    return None


async def _follow(context: Context, key: Key, data: Mapping[str, str], place: str) -> None:
    """Nothing; the administrator's kubeconfig names the place where the control plane answers."""
    name = f"{key[1]}-admin-kubeconfig"
    held = (await _secret(context, key[0], name) or {}).get("data") or {}
    if f"https://{place}" in base64.b64decode(held.get("admin.conf", "")).decode():
        return
    packed = {kind: base64.b64encode(text.encode()).decode() for kind, text in data.items()}
    path = f"/api/v1/namespaces/{key[0]}/secrets/{name}"
    await context.cache(SECRETS).caught_up(await context.client.patch(path, {"data": packed}))


async def _put(context: Context, listing: str, wanted: Object) -> Object:
    """The object as it is, made or brought to what is wanted of it."""
    cache, meta = context.cache(listing), wanted["metadata"]
    await cache.synced.wait()
    known = cache.get(meta["namespace"], meta["name"])
    head, _, plural = listing.rpartition("/")
    path = f"{head}/namespaces/{meta['namespace']}/{plural}"
    if known is None:
        made = await context.client.create(path, wanted)
        await cache.caught_up(made)
        return made
    if all(row["uid"] != meta["ownerReferences"][0]["uid"] for row in known["metadata"].get("ownerReferences") or ()):
        return known  # of a control plane before, on its way out
    spec, held = wanted["spec"], known["spec"]
    same = held.get("type", "") == spec.get("type", "") if plural == "services" else (
        held["replicas"] == spec["replicas"] and _images(held) == _images(spec))  # fmt: skip
    if same:
        return known
    fresh = {"type": spec["type"]} if plural == "services" else {
        "replicas": spec["replicas"], "template": spec["template"]}  # fmt: skip
    made = await context.client.patch(f"{path}/{meta['name']}", {"spec": fresh})
    await cache.caught_up(made)
    return made


def _images(spec: Object) -> list[str]:
    return [row["image"] for row in spec["template"]["spec"]["containers"]]


async def _report(context: Context, path: str, item: Object, status: Object) -> None:
    if (item.get("status") or {}) != status:
        await context.cache(TENANTS).caught_up(await context.client.patch(f"{path}/status", {"status": status}))


async def _known_authority(context: Context, key: Key) -> tuple[str, str] | None:
    data = (await _secret(context, key[0], f"{key[1]}-ca") or {}).get("data") or {}
    if not {"ca.crt", "ca.key"} <= data.keys():
        return None
    return base64.b64decode(data["ca.crt"]).decode(), base64.b64decode(data["ca.key"]).decode()


async def _keep(
    context: Context,
    owner: Object,
    name: str,
    data: Mapping[str, str],
    *,
    kind: str = "Opaque",
    label: Object | None = None,
) -> None:
    """The Secret holds this; one that has other certificates of the same authority is left as it is."""
    space = owner["metadata"]["namespace"]
    path = f"/api/v1/namespaces/{space}/secrets"
    wish = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    known = await _secret(context, space, name)
    reference = {
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    body = {
        "metadata": {"name": name, "labels": label or {}, "ownerReferences": [reference]},
        "type": kind,
        "data": wish,
    }
    if known is None:
        await context.cache(SECRETS).caught_up(await context.client.create(path, body))
    elif not wish.items() <= (known.get("data") or {}).items():
        await context.cache(SECRETS).caught_up(await context.client.patch(f"{path}/{name}", {"data": wish}))


async def _secret(context: Context, namespace: str, name: str) -> Object | None:
    """The Secret as the manager's cache has it, or None: a pass that changes nothing asks nothing."""
    cache = context.cache(SECRETS)
    await cache.synced.wait()
    return cache.get(namespace, name)


# --- the provider -------------------------------------------------------------------------------------------------


async def run_provider(context: Context, process: Process) -> None:
    """Serves every KamajiControlPlane until cancelled."""
    found = process.version.lstrip("v").split(".")[:2]
    raised = [int(part) if part.isdigit() else 0 for part in found] >= [0, 20]
    core = "v1beta2" if raised else "v1beta1"
    manager = Manager(context, process, core, ("v1beta2", "v1beta1") if raised else ("v1beta1",))
    version = "v1alpha2" if raised else "v1alpha1"
    cache = context.cache(f"/apis/controlplane.cluster.x-k8s.io/{version}/kamajicontrolplanes")

    def owners(item: Object) -> list[Key]:
        return [
            (item["metadata"]["namespace"], entry["name"])
            for entry in item["metadata"].get("ownerReferences") or () if entry["kind"] == "KamajiControlPlane"
        ]  # fmt: skip

    def of_cluster(item: Object) -> list[Key]:
        reference = item.get("spec", {}).get("controlPlaneRef") or {}
        return (
            [(item["metadata"]["namespace"], reference["name"])]
            if reference.get("kind") == "KamajiControlPlane"
            else []
        )

    async def work(key: Key, item: Object | None) -> float | None:
        return await _provide(manager, key, item, version)

    also = [
        (context.cache(TENANTS), owners), (context.cache(SECRETS), owners),
        (manager.cache("clusters"), at_turns(of_cluster)),
    ]  # fmt: skip
    await reconcile(context, cache, work, also=also)


async def _provide(manager: Manager, key: Key, item: Object | None, version: str) -> float | None:
    if item is None or "deletionTimestamp" in item["metadata"]:
        return None
    context = manager.context
    cache = context.cache(f"/apis/controlplane.cluster.x-k8s.io/{version}/kamajicontrolplanes")
    name = next((e["name"] for e in item["metadata"].get("ownerReferences") or () if e["kind"] == "Cluster"), "")
    cluster = manager.cache("clusters").get(key[0], name)
    if cluster is None:
        manager.log(
            "kamajicontrolplane_controller", "missing OwnerReference from the Cluster controller, waiting for it"
        )
        return None
    if is_paused(item, cluster):
        return None
    tenant = await _tenant(context, item, cluster)
    status: Object = dict(item.get("status") or {})
    rows = conditions.Conditions(context.stamp(), item["metadata"].get("generation", 1), {}, {
        entry["type"]: entry for entry in status.get("conditions") or ()})  # fmt: skip
    rows.put("TenantControlPlaneCreated", True, "TenantControlPlaneCreated", "TenantControlPlane has been created")
    told = tenant.get("status") or {}
    endpoint = told.get("controlPlaneEndpoint", "")
    kubernetes = (told.get("kubernetesResources") or {}).get("version") or {}
    status["externalManagedControlPlane"] = True
    if not endpoint:
        said = "Control Plane Endpoint is not yet available since unprocessed by Kamaji"
        rows.put("TenantControlPlaneAddressReady", False, "TenantControlPlaneAddressReadyFailed", said)
        status |= {"initialized": False, "ready": False}
        await _write(manager, cache, item, status, rows, version)
        return None
    rows.put("TenantControlPlaneAddressReady", True, "TenantControlPlaneAddressReady")
    trouble = await _patch_infrastructure(manager, cluster, endpoint)
    rows.put(
        "InfrastructureClusterPatched",
        not trouble,
        "InfrastructureClusterPatched" if not trouble else "InfrastructureClusterPatchedFailed",
        trouble,
    )
    if trouble:
        manager.log("kamajicontrolplane_controller", "cannot patch cluster", error=trouble)
        await _write(manager, cache, item, status, rows, version)
        return 5.0
    state = cluster.get("status") or {}
    there = state.get("infrastructureReady") or (state.get("initialization") or {}).get("infrastructureProvisioned")
    if not (cluster["spec"].get("controlPlaneEndpoint") or {}).get("host") or not there:
        await _write(manager, cache, item, status, rows, version)
        return None
    deployment = (told.get("kubernetesResources") or {}).get("deployment") or {}
    ready = kubernetes.get("status") in {"Ready", "Upgrading"}
    await _required(manager, item, cluster, tenant)
    status |= {
        "initialized": True, "ready": ready, "version": kubernetes.get("version", ""),
        **{part: deployment.get(part, 0) for part in COUNTS},
        "selector": "",
    }  # fmt: skip
    if version == "v1alpha2":
        status["initialization"] = {"controlPlaneInitialized": True}
    for kind in ("KamajiControlPlaneInitialized", "KubeadmResourcesCreated", "KamajiControlPlaneReady"):
        rows.put(kind, ready or kind != "KamajiControlPlaneReady", kind)
    await _write(manager, cache, item, status, rows, version)
    return None


async def _write(
    manager: Manager, cache: Any, item: Object, status: Object, rows: conditions.Conditions, version: str
) -> None:
    found = rows.lists()[1]
    await manager.report(
        cache,
        item,
        {**status, "conditions": found, "observedGeneration": rows.generation}
        if version == "v1alpha2"
        else {**status, "conditions": found},
    )


async def _tenant(context: Context, item: Object, cluster: Object) -> Object:
    """The TenantControlPlane of a KamajiControlPlane, made or brought to its version and size."""
    space, name, spec = item["metadata"]["namespace"], item["metadata"]["name"], item["spec"]
    network = cluster["spec"].get("clusterNetwork") or {}
    ranges = {kind: ((network.get(kind) or {}).get("cidrBlocks") or [None])[0] for kind in ("pods", "services")}
    wish: Object = {
        "dataStore": spec.get("dataStoreName", "default"),
        "controlPlane": {
            "deployment": {"replicas": spec.get("replicas", 2), **(spec.get("deployment") or {})},
            "service": {"serviceType": (spec.get("network") or {}).get("serviceType", "LoadBalancer")},
        },
        "kubernetes": {"version": spec["version"], "kubelet": spec.get("kubelet") or {"cgroupfs": "systemd"}},
        "networkProfile": {
            "port": 6443,
            **({"podCidr": ranges["pods"]} if ranges["pods"] else {}),
            **({"serviceCidr": ranges["services"]} if ranges["services"] else {}),
        },
        "addons": spec.get("addons") or {},
    }
    cache = context.cache(TENANTS)
    await cache.synced.wait()
    known = cache.get(space, name)
    path = f"/apis/kamaji.clastix.io/v1alpha1/namespaces/{space}/tenantcontrolplanes"
    if known is None:
        reference = {
            "apiVersion": item["apiVersion"], "kind": item["kind"], "name": name, "uid": item["metadata"]["uid"],
            "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        label = {CLUSTER_NAME: cluster["metadata"]["name"]}
        made = await context.client.create(path, {
            "apiVersion": "kamaji.clastix.io/v1alpha1", "kind": "TenantControlPlane",
            "metadata": {"name": name, "labels": label, "ownerReferences": [reference]}, "spec": wish})  # fmt: skip
        await cache.caught_up(made)
        return made
    replicas = known["spec"].get("controlPlane", {}).get("deployment", {}).get("replicas")
    version = known["spec"].get("kubernetes", {}).get("version")
    if (replicas, version) != (wish["controlPlane"]["deployment"]["replicas"], spec["version"]):
        body = {
            "kubernetes": {"version": spec["version"]},
            "controlPlane": {"deployment": wish["controlPlane"]["deployment"]},
        }
        known = await context.client.patch(f"{path}/{name}", {"spec": body})
        await cache.caught_up(known)
    return known


async def _patch_infrastructure(manager: Manager, cluster: Object, endpoint: str) -> str:
    """Why the infrastructure cluster does not have the endpoint; empty when it has."""
    reference = cluster["spec"].get("infrastructureRef")
    if not reference:
        return ""
    host, _, port = endpoint.rpartition(":")
    if manager.version == "v1beta1" and int(port) > 32767:
        return f'cannot parse Control Plane endpoint: strconv.ParseInt: parsing "{port}": value out of range'
    try:
        found, target = await manager.external(reference, cluster["metadata"]["namespace"])
    except ContractUnknown as error:
        return str(error)
    if found is None:
        return f'{reference["kind"]} "{reference["name"]}" not found'
    known = (found.get("spec") or {}).get("controlPlaneEndpoint") or {}
    if known.get("host"):
        if known["host"] != host or str(known.get("port")) != port:
            head = f"the {reference['kind']} has been already set with a different Control Plane endpoint"
            return f"{head} ({known['host']})"
        return ""
    spec = {**(found.get("spec") or {}), "controlPlaneEndpoint": {"host": host, "port": int(port)}}
    cache = manager.context.cache(target.path)
    fresh = await manager.save(cache, found, {**found, "spec": spec})
    if reference["kind"] == "KubevirtCluster":
        await manager.report(cache, fresh, {**(fresh.get("status") or {}), "ready": True})
    return ""


async def _required(manager: Manager, item: Object, cluster: Object, tenant: Object) -> None:
    """The Secrets that Cluster API's other controllers look for."""
    context, space, name = manager.context, item["metadata"]["namespace"], cluster["metadata"]["name"]
    base = tenant["metadata"]["name"]
    found = [await _secret(context, space, f"{base}-{tail}") for tail in ("ca", "admin-kubeconfig", "sa-certificate")]
    if not all(found):
        raise Refused(404, "NotFound", f'secrets "{base}-ca" or "{base}-admin-kubeconfig" not found')
    authority, config, pair = ((row or {}).get("data") or {} for row in found)
    chosen = ({**(item["metadata"].get("annotations") or {}), **(tenant["metadata"].get("annotations") or {})}).get(
        KUBECONFIG_KEY, "admin.conf"
    )

    def plain(text: str) -> str:
        return base64.b64decode(text).decode()

    label = {CLUSTER_NAME: name}
    kind = "cluster.x-k8s.io/secret"
    data = {"tls.crt": plain(authority["ca.crt"]), "tls.key": plain(authority["ca.key"])}
    value = plain(config.get(chosen) or config["admin.conf"])
    # A control plane of its cluster's name shares `<name>-ca` with Kamaji, which keeps ca.crt and ca.key in it.
    signing = {"tls.crt": plain(pair["sa.pub"]), "tls.key": plain(pair["sa.key"])}
    for tail, rows in (("ca", data), ("sa", signing), ("kubeconfig", {"value": value})):
        await _keep(context, item, f"{name}-{tail}", rows, kind=kind, label=label)


PROGRAMS = (
    Program("kamaji", run_operator),
    Program("cluster-api-control-plane-provider-kamaji", run_provider),
)
