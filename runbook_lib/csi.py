"""The Proxmox CSI driver and the cloud controller beside it, as changes: access, configuration, releases, classes.

Tokens reach the cluster in Secrets that are filled when they are sent, from a reference; no value of Helm holds one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from runbook_lib import kubernetes_storage, prepare, privileges
from runbook_lib.errors import NotFound, SecretError, WaitTimeout
from runbook_lib.executors import labelled, reference
from runbook_lib.facts import Ability, ClassCase, Cluster, CsiCapacity, NodeMachine, Release, Storage
from runbook_lib.model import Change, ChangeKind
from runbook_lib.prepare import FILE_STORAGES, Wanted
from runbook_lib.proxmox_disks import REGION, ZONE
from runbook_lib.site import Chart, ClassWish
from runbook_lib.versions import numbers

Object = dict[str, Any]

DRIVER = kubernetes_storage.DRIVER
PLUGIN, CCM = "proxmox-csi-plugin", "proxmox-cloud-controller-manager"
CONFIG_KEY = "config.yaml"
CHARTS = {
    PLUGIN: Chart(oci=f"oci://ghcr.io/sergelogvinov/charts/{PLUGIN}", version="0.5.9"),
    CCM: Chart(oci=f"oci://ghcr.io/sergelogvinov/charts/{CCM}", version="0.2.13"),
}
"""Where the charts come from unless the site says otherwise."""

DRIVERS = (("0.5.9", "0.19.1"), ("0.5.0", "0.16.0"), ("0.3.5", "0.11.0"))
"""The driver's release in a chart of at least that version, newest first."""

SNAPSHOTS_SINCE = (0, 16)
PRIORITY = "system-cluster-critical"
AUTHORITY = "proxmox-ca"
TRUST = "/etc/ssl/certs/ca-certificates.crt"
"""Where the driver's image looks for authorities; a system-wide bundle is replaced by the site's own CA."""

NO_ALLOCATION = frozenset({"iscsi", "iscsidirect", "esxi", "pbs"})
NEVER = {
    "cifs": "the driver refuses CIFS",
    "pbs": "a backup server holds no disks",
    **dict.fromkeys(("iscsi", "iscsidirect", "esxi"), "volumes cannot be allocated on it"),
}
NO_SNAPSHOTS = frozenset({"rbd", "cifs", "pbs"})
FLAGS = {True: "true", False: "false"}
READY_SECONDS = 300.0


# --- what is asked for -------------------------------------------------------------------------------


class Placed(Protocol):
    """Anything that names a namespace."""

    @property
    def namespace(self) -> str: ...


@dataclass(frozen=True)
class Setting:
    """What is known of the site before anything is planned."""

    namespace: str
    region: str
    provider: str  # "default" | "capmox"
    machines: tuple[NodeMachine, ...]
    classes: tuple[ClassCase, ...]
    url: str
    driver: str  # the driver's release in the chart: "0.19.1"
    snapshots: bool  # root's password is referred to

    @property
    def hosts(self) -> tuple[str, ...]:
        """The Proxmox nodes that Kubernetes nodes are on."""
        return tuple(sorted({row.host for row in self.machines if row.vmid is not None}))


def setting(
    site: Any,
    cluster: Cluster,
    machines: Sequence[NodeMachine],
    storages: Sequence[Storage],
    *,
    existing: Mapping[str, Mapping[str, Any]] | None = None,
) -> Setting:
    """The site as step 32 sees it. `existing` are the driver's StorageClasses that the cluster has already."""
    return Setting(
        namespace=site.csi.namespace,
        region=site.csi.region or label_of(cluster.name or ""),
        provider=provider_of(machines) if site.csi.provider == "auto" else site.csi.provider,
        machines=tuple(machines),
        classes=tuple(class_cases(site, storages, machines, existing=existing)),
        url=f"{str(site.proxmox.url).rstrip('/')}/api2/json",
        driver=driver_release(chart_of(site, PLUGIN).version),
        snapshots=site.csi.root_password is not None,
    )


def look(pve: Any, k8s: Any, site: Any) -> Setting:
    """The site as it is now, read from both sides."""
    from runbook_lib import kubernetes, proxmox

    cluster, storages = proxmox.cluster(pve), proxmox.storages(pve)
    machines = proxmox.node_machines(pve, kubernetes.nodes(k8s), cluster, kubernetes.registered(k8s))
    return setting(site, cluster, machines, storages, existing=kubernetes.class_parameters(k8s))


def label_of(text: str) -> str:
    """The text as a label's value."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")[:63]


def provider_of(machines: Iterable[NodeMachine]) -> str:
    """ "capmox" where nodes have the providerID that CAPMOX gives, or a name that is not their VM's; else "default".

    The driver finds the VM of a node by providerID, else by name; with capmox by uuid alone. A providerID cannot be
    changed, so what is there decides.
    """
    vms = [row for row in machines if row.vmid is not None]
    by_uuid = any(re.fullmatch(r"proxmox://[0-9a-fA-F-]{36}", row.provider_id) for row in vms)
    nameless = any(not row.provider_id and row.vm_name != row.node for row in vms)
    return "capmox" if by_uuid or nameless else "default"


def chart_of(site: Any, name: str) -> Chart:
    """Where the chart comes from on this site."""
    return dict(site.charts).get(name) or CHARTS[name]


def driver_release(chart: str) -> str:
    """The driver's release in a version of its chart; empty of one older than any known."""
    return next((release for floor, release in DRIVERS if numbers(chart) >= numbers(floor)), "")


# --- storage classes ---------------------------------------------------------------------------------


def class_cases(
    site: Any,
    storages: Sequence[Storage],
    machines: Iterable[NodeMachine] = (),
    *,
    existing: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ClassCase]:
    """Every class that is wanted, typed and judged against what its storage can; by default one a storage."""
    hosts = {row.host for row in machines if row.vmid is not None}
    wishes = site.csi.classes if site.csi.classes is not None else _usual(storages)
    return [_case(wish, storages, hosts, (existing or {}).get(wish.class_name)) for wish in wishes]


def _usual(storages: Iterable[Storage]) -> list[ClassWish]:
    names = {row.name for row in storages if row.enabled and "images" in row.content and row.type not in NEVER}
    return [ClassWish(storage=name) for name in sorted(names)]


def _case(
    wish: ClassWish, storages: Iterable[Storage], hosts: set[str], existing: Mapping[str, Any] | None
) -> ClassCase:
    rows = [row for row in storages if row.name == wish.storage]
    kind, shared = (rows[0].type, rows[0].shared) if rows else ("", False)
    active = {row.node for row in rows if row.active and row.enabled}
    parameters = class_parameters(wish)
    found = ClassCase(
        name=wish.class_name,
        storage=wish.storage,
        type=kind,
        shared=shared,
        zones=tuple(sorted(active & hosts)) if hosts else tuple(sorted(active)),
        parameters=parameters,
        reclaim_policy=wish.reclaim,
        problems=tuple(_problems(wish, rows, hosts)),
        made=existing is not None,
    )
    if existing is None:
        return found
    annotations = existing["metadata"].get("annotations") or {}
    default = annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
    return replace(found, default=default, differences=tuple(_class_differences(found, existing)))


def class_parameters(wish: ClassWish) -> dict[str, str]:
    """The class's parameters as the driver reads them: every value is text."""
    given: dict[str, Any] = {
        "csi.storage.k8s.io/fstype": wish.fstype,
        "storage": wish.storage,
        "storageFormat": wish.format,
        "cache": wish.cache,
        "aio": wish.aio,
        "ssd": wish.ssd or None,
        "iothread": None if wish.iothread else False,
        "backup": wish.backup or None,
        "diskIOPS": wish.iops,
        "diskMBps": wish.mbps,
        "blockSize": wish.block_size,
        "inodeSize": wish.inode_size,
        "replicate": wish.replicate or None,
        "replicateSchedule": wish.replicate_schedule,
        "replicateZones": ",".join(wish.replicate_zones) or None,
    }
    texts = {key: FLAGS[value] if isinstance(value, bool) else value for key, value in given.items()}
    return {key: str(value) for key, value in texts.items() if value is not None}


def _problems(wish: ClassWish, rows: Sequence[Storage], hosts: set[str]) -> Iterable[str]:
    if not rows:
        yield f"there is no storage {wish.storage}"
        return
    row, kind = rows[0], rows[0].type
    if kind in NEVER:
        yield NEVER[kind]
    if "images" not in row.content:
        yield f"its content types ({', '.join(row.content)}) lack images"
    there = {each.node for each in rows if each.active and each.enabled}
    if hosts and not there & hosts:
        yield f"it is active on none of the Proxmox nodes that workers are on ({', '.join(sorted(hosts))})"
    if wish.format and kind not in FILE_STORAGES:
        yield f"storageFormat is for storages whose disks are files; on {kind} they are raw"
    if wish.replicate and kind != "zfspool":
        yield f"replicate is for ZFS pools, this is {kind}"
    if len(wish.replicate_zones) == 1:
        yield "replicateZones wants two nodes"
    for zone in wish.replicate_zones:
        if zone not in {each.node for each in rows}:
            yield f"replicateZones names {zone}, which does not have the storage"
    if wish.aio == "native" and wish.cache in {"writeback", "writethrough", "unsafe"}:
        yield f"aio native wants cache none or directsync, not {wish.cache}"
    if wish.fstype == "xfs" and wish.block_size and wish.block_size > 4096:
        yield "xfs mounts no block size larger than a page, 4096"
    if wish.fstype == "ext4" and wish.inode_size and wish.inode_size > (wish.block_size or 4096):
        yield "an inode must fit into a block"


def _class_differences(case: ClassCase, existing: Mapping[str, Any]) -> Iterable[str]:
    held = {**dict(existing.get("parameters") or {})}
    for key in sorted(held.keys() | dict(case.parameters).keys()):
        if held.get(key) != dict(case.parameters).get(key):
            yield f"{key}: {held.get(key, 'unset')} there, {dict(case.parameters).get(key, 'unset')} wanted"
    for key, wanted in (("reclaimPolicy", case.reclaim_policy), ("volumeBindingMode", "WaitForFirstConsumer")):
        if existing.get(key) != wanted:
            yield f"{key}: {existing.get(key)} there, {wanted} wanted"


def storage_class(case: ClassCase) -> Object:
    """The StorageClass: never the default, bound with its first consumer, expandable."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": case.name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "false"},
        },
        "provisioner": DRIVER,
        "parameters": dict(case.parameters),
        "reclaimPolicy": case.reclaim_policy,
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }


# --- objects -----------------------------------------------------------------------------------------


def namespace(name: str) -> Object:
    """The driver's namespace: its node pods mount the host's devices, so it cannot be less than privileged."""
    levels = {"enforce": "privileged", "audit": "baseline", "warn": "baseline"}
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode, level in levels.items()}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def config(what: Setting, *, insecure: bool, user: str = "", token_id: str = "") -> str:
    """The text of config.yaml with {secret} in the place of the token's or the password's value."""
    who = (
        f'    username: "{user}"\n    password: "{{secret}}"\n'
        if user
        else f'    token_id: "{token_id}"\n    token_secret: "{{secret}}"\n'
    )
    return (
        f"features:\n  provider: {what.provider}\n"
        f"clusters:\n  - url: {what.url}\n    insecure: {FLAGS[insecure]}\n{who}    region: {what.region}\n"
    )


def config_secret(name: str, what: Setting) -> Object:
    """The Secret without its data, which is filled in when it is sent."""
    metadata = {"name": name, "namespace": what.namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque"}


def authority(what: Setting, pem: str) -> Object:
    """The site's CA for the driver's trust."""
    metadata = {"name": AUTHORITY, "namespace": what.namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": pem}}


def source(name: str, chart: Chart, what: Placed, api_version: str) -> Object:
    """Where Flux takes the chart from: an OCIRepository, or a HelmRepository where the site names one."""
    metadata = {"name": name, "namespace": what.namespace}
    spec: Object
    if chart.oci:
        kind, spec = "OCIRepository", {"interval": "1h", "url": chart.oci, "ref": {"tag": chart.version}}
    else:
        kind, spec = "HelmRepository", {"interval": "1h", "url": chart.repo}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def release(name: str, chart: Chart, what: Placed, values: Object, api_version: str, *, after: str = "") -> Object:
    """The HelmRelease of a chart, retried three times."""
    where: Object = {"chartRef": {"kind": "OCIRepository", "name": name}}
    if not chart.oci:
        origin = {"kind": "HelmRepository", "name": name}
        where = {"chart": {"spec": {"chart": name, "version": chart.version, "sourceRef": origin}}}
    return {
        "apiVersion": api_version,
        "kind": "HelmRelease",
        "metadata": {"name": name, "namespace": what.namespace},
        "spec": {
            "interval": "10m",
            "releaseName": name,
            **where,
            "install": {"remediation": {"retries": 3}},
            "upgrade": {"remediation": {"retries": 3}},
            **({"dependsOn": [{"name": after}]} if after else {}),
            "values": values,
        },
    }


def plugin_values(what: Setting, *, trust: bool) -> Object:
    """The driver's values: the config by name of its Secret, node pods on VMs only, and no secret at all."""
    values: Object = {
        "existingConfigSecret": PLUGIN,
        "existingConfigSecretKey": CONFIG_KEY,
        "priorityClassName": PRIORITY,
        "options": {"enableCapacity": True},
        # Only nodes that are VMs have the region: a Proxmox server that is a worker has no drive to plug.
        "node": {"nodeSelector": {REGION: what.region}},
    }
    if what.snapshots and numbers(what.driver)[:2] >= SNAPSHOTS_SINCE:
        values["controller"] = {"snapshotter": {"enabled": True}}
    return values | (_trusted() if trust else {})


def ccm_values(what: Setting, *, trust: bool) -> Object:
    """The cloud controller's values. Its life-cycle controller stays out: it deletes Nodes whose VM it cannot find."""
    values: Object = {
        "existingConfigSecret": CCM,
        "existingConfigSecretKey": CONFIG_KEY,
        "priorityClassName": PRIORITY,
        "enabledControllers": ["cloud-node"],
    }
    return values | (_trusted() if trust else {})


def _trusted() -> Object:
    return {
        "extraVolumes": [{"name": "ca", "configMap": {"name": AUTHORITY}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": TRUST, "subPath": "ca.crt", "readOnly": True}],
    }


# --- the plan ----------------------------------------------------------------------------------------


def installation(
    pve: Any, k8s: Any, site: Any, run: str, what: Setting, *, root: Path | None = None, step: str = "32"
) -> Wanted:
    """Everything that is still to be done for the driver and the cloud controller to run; it stays.

    Access first, then the namespace and the configuration, the nodes' labels, the releases, and the classes.
    """
    root = root or prepare.project_folder()
    if problems := tuple(_in_the_way(k8s, what)):
        return Wanted(problems=problems)
    flux = {group: k8s.group(group).removeprefix("/apis/") for group in (_SOURCES, _RELEASES)}
    granted = prepare.access(pve, site, run, accounts=accounts(pve, site, what), root=root)
    plain: list[tuple[Object, str]] = [(namespace(what.namespace), "Namespace of the storage driver")]
    pem = _authority_of(site)
    if pem:
        plain.append((authority(what, pem), "The CA of Proxmox VE, so that the driver verifies whom it talks to"))
    parts = [granted, *(prepare.install_object(k8s, thing, run, summary=why) for thing, why in plain)]
    parts += [_secret(k8s, site, run, what, name, component, root, insecure=not verifies(site))
              for name, component in ((CCM, "ccm"), (PLUGIN, "csi"))]  # fmt: skip
    parts += [_labels(row, what) for row in what.machines]
    for name, values in ((CCM, ccm_values(what, trust=bool(pem))), (PLUGIN, plugin_values(what, trust=bool(pem)))):
        chart = chart_of(site, name)
        taken = source(name, chart, what, flux[_SOURCES])
        wanted = release(name, chart, what, values, flux[_RELEASES])
        parts.append(prepare.install_object(k8s, taken, run, summary=f"Chart {name} {chart.version}"))
        parts.append(prepare.install_object(k8s, wanted, run, summary=f"Release of {name}; no secret in its values"))
    parts += [_class(k8s, case, run) for case in what.classes]
    return Wanted(
        tuple(change for part in parts for change in part.changes),
        tuple(name for part in parts for name in part.unchanged),
        tuple(dict.fromkeys(problem for part in parts for problem in part.problems)),
    ).numbered(step)


_SOURCES, _RELEASES = "source.toolkit.fluxcd.io", "helm.toolkit.fluxcd.io"


def _in_the_way(k8s: Any, what: Setting) -> Iterable[str]:
    if not what.region:
        yield "Proxmox VE: it is no cluster, and the driver works with clusters alone; `pvecm create` makes one of one"
    for group in (_SOURCES, _RELEASES):
        if k8s.group(group) is None:
            yield f"Flux: the cluster does not serve {group}"
    if not any(row.vmid is not None for row in what.machines):
        yield "nodes: none of them is a VM of this Proxmox cluster"
    if not any(not case.problems for case in what.classes):
        yield "classes: no storage can hold volumes"


def accounts(pve: Any, site: Any, what: Setting) -> list[privileges.Account]:
    """The driver's and the cloud controller's accounts, with their rights on the VMs and storages of this site.

    Rights on VMs are given on a pool where every VM of it is a node, and else on the VM itself.
    """
    site = prepare.with_storages(site, pve_storages(pve))
    version = str(pve.get("/version")["version"])
    places = machine_paths(pve, what.machines)
    stores = sorted({case.storage for case in what.classes if not case.problems})
    found = []
    for name in ("ccm", "csi"):
        entry = privileges.account(name, site, version)
        grants: list[privileges.Grant] = []
        for grant in entry.grants:
            if grant.path.startswith("/pool/"):
                grants += [replace(grant, path=path) for path in places]
            elif grant.path.startswith("/storage/"):
                grants += [replace(grant, path=f"/storage/{store}") for store in stores]
            else:
                grants.append(grant)
        found.append(replace(entry, grants=tuple(grants)))
    return found


def pve_storages(pve: Any) -> list[Storage]:
    """The storages, read here so that the notebook need not hand them on."""
    from runbook_lib import proxmox

    return proxmox.storages(pve)


def machine_paths(pve: Any, machines: Iterable[NodeMachine]) -> list[str]:
    """The paths on which rights cover the nodes' VMs and no other VM."""
    wanted = {row.vmid: row.pool for row in machines if row.vmid is not None}
    members: dict[str, set[int]] = {}
    for guest in pve.get("/cluster/resources", type="vm") or []:
        if guest.get("pool"):
            members.setdefault(str(guest["pool"]), set()).add(int(guest["vmid"]))
    whole = {pool for pool, vms in members.items() if vms <= wanted.keys()}
    paths = {f"/pool/{pool}" if pool in whole else f"/vms/{vmid}" for vmid, pool in wanted.items()}
    return sorted(paths)


def verifies(site: Any) -> bool:
    """Whether the driver can verify the certificate: by the site's CA, or by an authority of the system."""
    return bool(site.proxmox.verify and not site.proxmox.fingerprint)


def _authority_of(site: Any) -> str:
    return Path(site.proxmox.ca_file).expanduser().read_text() if verifies(site) and site.proxmox.ca_file else ""


def _secret(
    k8s: Any,
    site: Any,
    run: str,
    what: Setting,
    name: str,
    component: str,
    root: Path,
    *,
    insecure: bool,
) -> Wanted:
    """The configuration as a Secret. Its value is compared and filled where it is sent, and written down nowhere."""
    from runbook_lib.secrets import resolve

    kept = prepare.secret_reference(site, component)
    text = config(
        what,
        insecure=insecure,
        token_id=f"{privileges.user_of(component, site)}!{component}",
    )
    if component == "csi" and what.snapshots:
        kept = site.csi.root_password
        text = config(what, insecure=insecure, user="root@pam")
    manifest = labelled(config_secret(name, what), run, "install")
    path = f"/api/v1/namespaces/{what.namespace}/secrets/{name}"
    held = (k8s.find(path) or {}).get("data") or {}
    if held.get(CONFIG_KEY):
        try:
            wanted = text.replace("{secret}", resolve(kept, base=root))
        except SecretError:  # the token is made by this very plan
            wanted = ""
        if base64.b64decode(held[CONFIG_KEY]).decode() == wanted:
            return Wanted(unchanged=(f"v1/Secret/{what.namespace}/{name}",))
    after = {CONFIG_KEY: text.replace("{secret}", f"value of {kept}")}
    return Wanted(
        (
            Change(
                "",
                "kubernetes",
                "update" if held else "create",
                f"v1/Secret/{what.namespace}/{name}",
                f"Configuration of {name}, filled from a reference when it is sent",
                ChangeKind.INSTALL,
                {"manifest": manifest, "secret_data": {CONFIG_KEY: {"text": text, "secret": kept}}},
                None,
                after,
                None if held else {"delete": reference(manifest)},
            ),
        )
    )


def _labels(row: NodeMachine, what: Setting) -> Wanted:
    """The place of a node's VM as the node's labels, where nobody has told it yet. A wrong one is a finding."""
    if row.vmid is None or row.twins:
        return Wanted()
    wanted = {REGION: what.region, ZONE: row.host}
    held = {REGION: row.region, ZONE: row.zone}
    missing = {key: value for key, value in wanted.items() if not held[key]}
    if not missing:
        return Wanted(unchanged=(f"v1/Node/{row.node}",))
    path = f"/api/v1/nodes/{row.node}"
    merge = "application/merge-patch+json"
    request = {"method": "PATCH", "path": path, "body": {"metadata": {"labels": missing}}, "content_type": merge}
    back = {**request, "body": {"metadata": {"labels": dict.fromkeys(missing)}}}
    summary = f"The node is VM {row.vmid} on {row.host}: the driver's topology"
    return Wanted(
        (
            Change(
                "",
                "kubernetes",
                "update",
                f"v1/Node/{row.node}",
                summary,
                ChangeKind.INSTALL,
                request,
                {key: held[key] for key in missing},
                missing,
                back,
            ),
        )
    )


def _class(k8s: Any, case: ClassCase, run: str) -> Wanted:
    if case.problems:
        return Wanted(problems=tuple(f"{case.name}: {problem}" for problem in case.problems))
    if case.differences:
        told = "; ".join(case.differences)
        return Wanted(problems=(f"{case.name}: a class cannot be changed ({told}); take another name, or delete it",))
    if case.made:
        return Wanted(unchanged=(f"storage.k8s.io/v1/StorageClass/{case.name}",))
    where = "shared, so a volume follows its pod" if case.shared else "a volume stays on its Proxmox node"
    return prepare.install_object(k8s, storage_class(case), run, summary=f"Class on {case.storage}: {where}")


# --- what became of it -------------------------------------------------------------------------------


def settled(k8s: Any, what: Setting, applied: Any, *, timeout_seconds: float = READY_SECONDS) -> list[Release]:
    """Both releases, once they are Ready, the node pods registered, or the time is up."""
    from runbook_lib import kubernetes

    base = k8s.group(_RELEASES)
    if base is None or applied.refused:
        return []
    for name in (CCM, PLUGIN):
        path = f"{base}/namespaces/{what.namespace}/helmreleases/{name}"
        if k8s.find(path) is not None:
            _wait(k8s, path, _is_decided, timeout_seconds)
    if not _is_ready(k8s.find(f"{base}/namespaces/{what.namespace}/helmreleases/{PLUGIN}")):
        timeout_seconds = 0.0
    for row in what.machines if timeout_seconds else ():
        if row.vmid is not None and row.schedulable and row.ready == "True":
            _wait(k8s, f"{kubernetes_storage.STORAGE}/csinodes/{row.node}", _has_driver, timeout_seconds / 5)
    return [row for row in kubernetes.releases(k8s) if row.namespace == what.namespace]


def _wait(k8s: Any, path: str, predicate: Any, seconds: float) -> None:
    try:
        k8s.wait(path, predicate, seconds)
    except (WaitTimeout, NotFound):
        return  # the check names what it is like


def _is_ready(thing: Mapping[str, Any] | None) -> bool:
    status = (thing or {}).get("status") or {}
    fresh = status.get("observedGeneration") == ((thing or {}).get("metadata") or {}).get("generation")
    rows = status.get("conditions") or ()
    return fresh and any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def _is_decided(thing: Mapping[str, Any] | None) -> bool:
    """Whether the release is there, or Flux has given it up."""
    rows = ((thing or {}).get("status") or {}).get("conditions") or ()
    return _is_ready(thing) or any(row["type"] == "Stalled" and row["status"] == "True" for row in rows)


def _has_driver(thing: Mapping[str, Any] | None) -> bool:
    return any(row["name"] == DRIVER for row in ((thing or {}).get("spec") or {}).get("drivers") or ())


def abilities(k8s: Any, what: Setting) -> list[Ability]:
    """What not every site can, by class: snapshots, restoring them, clones."""
    served = kubernetes_storage.snapshots_served(k8s)
    return [ability(case, what, served=served) for case in what.classes if not case.problems]


def ability(case: ClassCase, what: Setting, *, served: bool) -> Ability:
    """Whether the driver can copy volumes of a class, in full and not as a storage snapshot, and what it would take."""
    lacking = []
    if numbers(what.driver)[:2] < SNAPSHOTS_SINCE:
        lacking.append(f"driver 0.16 or newer (this is {what.driver or 'older'}): chart 0.5.0 or newer")
    if case.shared or case.type in NO_SNAPSHOTS:
        lacking.append(f"a local storage: the driver copies nothing on {'shared ' if case.shared else ''}{case.type}")
    if dict(case.parameters).get("storageFormat") == "qcow2":
        lacking.append("raw disks: it copies no qcow2")
    if not what.snapshots:
        lacking.append("root@pam's password (`csi.root_password`): Proxmox VE lets no token copy a volume")
    if not served:
        lacking.append("the CRDs of snapshot.storage.k8s.io with their controller")
    why = f"it would take {'; '.join(lacking)}" if lacking else "by full copies, as root@pam"
    return Ability("snapshots and clones", not lacking, why, case.name)


def room(capacities: Iterable[CsiCapacity], what: Setting) -> list[dict[str, Any]]:
    """What the driver tells the scheduler is free, by class and place."""
    names = {case.name for case in what.classes}
    return [
        {"class": row.storage_class, "place": "/".join(row.topology.values()), "free_bytes": row.capacity_bytes}
        for row in capacities
        if row.storage_class in names
    ]
