"""The life of a cluster of machines, from the order to nothing left: what is asked for, and what both sides show of it.

Nothing here decides whether what is seen is good; it reads, waits and keeps the times. `evidence` joins, `checks`
judge.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from runbook_lib import evidence, kubernetes, machines, prepare, proofs, proxmox, trials
from runbook_lib import kubernetes_machines as told
from runbook_lib import proxmox_machines as made
from runbook_lib.errors import ApiError, NotFound, RunbookError
from runbook_lib.evidence import Chain, Moment, Scene
from runbook_lib.executors import (
    BORROWED,
    KIND_LABEL,
    RUN_LABEL,
    guest_undo,
    labelled,
    reference,
    target_of,
)
from runbook_lib.facts import (
    Accepted,
    AddressPool,
    Guest,
    Held,
    Interface,
    MachineApis,
    MachineVm,
    Node,
    Storage,
    Template,
    TenantNode,
)
from runbook_lib.machines import Manifest, Order
from runbook_lib.model import Change, ChangeKind, Measurement
from runbook_lib.plan import Applied, mark
from runbook_lib.prepare import Wanted

CREATE, SCALE_UP, SCALE_DOWN, ROLL, LOSE, CLONE, UNCLONE = (
    "create",
    "scale up",
    "scale down",
    "roll",
    "lose",
    "clone",
    "take back",
)
"""The parts of the plan, each an action: `step.apply(plan, only=lifecycle.ROLL)`."""

ALONE_SECONDS = 60
"""How long Cluster API and CAPMOX are left to it before their VMs, which are ours, are taken away for them."""

SLOW_TO_GO_SECONDS = 900
"""How long a cluster with its machines may take to disappear: each VM is stopped and destroyed in turn."""

CLONE_IDS = 10
"""Ids at the end of names.vmid_range that the timed clones take; the machines get those before."""

ROLLED_MIB = 512
"""By how much the rolled template differs, so that the VMs show which one they come from."""

NETWORK_ARTIFACT = {"name": "cozystack-kubernetes-application-kubevirt-kubernetes-cilium", "namespace": "cozy-system"}
"""What CozyStack v1 calls the network chart of its tenant clusters (packages/apps/kubernetes, cilium.yaml)."""

LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.15, 5.0
LINKED = frozenset({"lvmthin", "zfspool", "rbd"})
"""Storage types whose templates can be cloned linked; of files only qcow2 can."""


# --- what is there already -----------------------------------------------------------------------------


def apis(k8s: Any) -> MachineApis:
    """Which versions of each kind the cluster serves."""
    return told.machine_apis(k8s)


def everything(pve: Any, k8s: Any, served: MachineApis, storages: Iterable[Storage] = ()) -> Scene:
    """Every machine of the site as both sides show it, with the Nodes of every cluster that can be asked."""
    scene = _objects(k8s, served, "")
    clusters = sorted({(row.namespace, row.cluster) for row in scene.machines if row.cluster})
    nodes: list[TenantNode] = []
    untold: dict[str, str] = {}
    for space, cluster in clusters:
        try:
            nodes += told.tenant_nodes(told.tenant(k8s, space, cluster, timeout=10.0), f"{space}/{cluster}")
        except RunbookError as error:
            untold[f"{space}/{cluster}"] = str(error)
    return _both_sides(pve, replace(scene, nodes=tuple(nodes), untold=untold), storages)


def _objects(k8s: Any, served: MachineApis, namespace: str) -> Scene:
    pools = told.address_pools(k8s, served)
    return Scene(
        machines=tuple(told.machines(k8s, served, namespace)),
        proxmox_machines=tuple(told.proxmox_machines(k8s, served, namespace)),
        homes=tuple(told.proxmox_homes(k8s, served, namespace)),
        groups=tuple(told.machine_groups(k8s, served, namespace)),
        claims=tuple(told.address_claims(k8s, served, namespace)),
        pools=tuple(row for row in pools if not namespace or row.namespace == namespace),
    )


def _both_sides(
    pve: Any,
    scene: Scene,
    storages: Iterable[Storage],
    *,
    logs: bool = True,
    also: str = "",
    upids: Mapping[str, int] | None = None,
) -> Scene:
    names = {row.name for row in scene.machines} | {row.name for row in scene.proxmox_machines}
    numbers = {row.vmid for row in scene.proxmox_machines if row.vmid}
    begins = tuple({f"{row.name}-" for row in scene.groups} | ({also} if also else set()))

    def chosen(row: Mapping[str, Any]) -> bool:
        name, tags = str(row.get("name") or ""), re.split(r"[;, ]", str(row.get("tags") or ""))
        ours = name in names or int(row["vmid"]) in numbers or bool(begins and name.startswith(begins))
        return ours or any(tag == evidence.CAPMOX_TAG or tag.startswith(evidence.ADDRESS_TAG) for tag in tags)

    vms = made.machine_vms(pve, chosen=chosen)
    # of a VM that is not there (any more) the node it was to be on still has the tasks
    lost = [MachineVm(row.vmid, row.name, row.node, "") for row in scene.proxmox_machines
            if row.vmid and row.node and row.vmid not in {vm.vmid for vm in vms}]  # fmt: skip
    return replace(
        scene,
        vms=tuple(vms),
        tasks=tuple(made.machine_tasks(pve, [*vms, *lost], {**_upids(scene), **(upids or {})})) if logs else (),
        isos=tuple(made.bootstrap_isos(pve, storages)),
    )


def _upids(scene: Scene) -> dict[str, int]:
    """The tasks that machines wait for, with the VM each is about: a clone's own number is its template's."""
    return {row.task: row.vmid for row in scene.proxmox_machines if row.task and row.vmid}


# --- the order -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ordered:
    """A cluster as it is to be asked for, what it was derived from, and what stands in its way."""

    order: Order
    problems: tuple[str, ...] = ()
    templates: tuple[Template, ...] = ()
    guests: tuple[Guest, ...] = ()
    nodes: tuple[Node, ...] = ()
    storages: tuple[Storage, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    count: int = 1  # machines at most
    own_namespace: bool = True
    template_disk: str = ""  # volid of the disk that is cloned
    linked: bool = False  # whether it can be cloned linked

    @property
    def where(self) -> tuple[str, ...]:
        """The Proxmox nodes machines may be on."""
        return self.order.allowed_nodes or tuple(filter(None, (self.order.template_node,)))

    def table(self) -> dict[str, Any]:
        """What a reader wants to know of it."""
        order = self.order
        return {
            "cluster": f"{order.namespace}/{order.name}",
            "CAPMOX": order.apis.generation or "not served",
            "Cluster API": order.apis.core or "not served",
            "Kubernetes": order.version,
            "control plane": order.control_plane,
            "machines": f"1, then {self.count}, then 1",
            "each": f"{order.cores} cores, {order.memory_mib} MiB, {order.disk_gib} GiB",
            "template": f"{order.template_vmid or order.template_tags} on {order.template_node or 'no node'}",
            "where": ", ".join(self.where) or "nowhere",
            "VM ids": "{}-{}".format(*order.vmids) if order.vmids else "the next free ones",
            "addresses": ", ".join(order.addresses) or "none",
            "gateway": f"{order.gateway or 'none'}/{order.prefix}",
        }


def order(pve: Any, k8s: Any, site: Any, run: str, served: MachineApis) -> Ordered:
    """The order of this site: what its parameters say, and what they leave open by what both sides tell.

    The cluster's name is the run's mark, so everything made for it bears the mark from its first moment on.
    """
    wish, names, name = site.machines, site.names, mark(run)
    guests, templates, storages = proxmox.guests(pve), proxmox.templates(pve), proxmox.storages(pve)
    interfaces, nodes = proxmox.interfaces(pve), proxmox.nodes(pve)
    problems = [f"{kind} is not served" for kind in _kinds(wish) if not served.version(kind)]
    template = _template_of(templates, wish.template_tags, names.template_vmid)
    if template is None:
        problems.append("the template is not there, or there are several")
    volid = _disk_of(pve, template)
    linked = _can_link(volid, storages, template)
    network = _network_of(interfaces, names.bridge, template.node if template else "")
    gateway = wish.gateway or (network.gateway if network else None) or ""
    prefix = wish.prefix or (ip_interface(network.cidr).network.prefixlen if network and network.cidr else 24)
    if not gateway:
        problems.append(f"{names.bridge} has no gateway; name one in machines.gateway")
    if not site.networks.machine_pool:
        problems.append("networks.machine_pool names no addresses")
    if wish.control_plane == "kubeadm" and not site.networks.api_vip:
        problems.append("a control plane on machines wants networks.api_vip")
    pools = {row["poolid"] for row in pve.get("/pools") or []}
    first, last = names.vmid_range.start, names.vmid_range.end
    machine_ids = (first, max(first, last - CLONE_IDS))
    placed = Order(
        name=name,
        namespace=wish.namespace or name,
        apis=served,
        version=wish.kubernetes_version or _version(k8s),
        template_vmid=None if wish.template_tags else names.template_vmid,
        template_node=template.node if template else "",
        template_tags=wish.template_tags,
        disk=template.disks[0] if template and template.disks else "scsi0",
        cores=wish.cores,
        memory_mib=wish.memory_mib,
        disk_gib=wish.disk_gib,
        full_clone=wish.full_clone,
        storage=names.disk_storage or "",
        bridge=names.bridge,
        addresses=tuple(site.networks.machine_pool),
        prefix=prefix,
        gateway=gateway,
        dns_servers=wish.dns_servers or ((gateway,) if gateway else ()),
        allowed_nodes=_allowed(volid, storages, names, template),
        memory_adjustment=wish.memory_adjustment,
        vmids=machine_ids,
        pool=names.pool if names.pool in pools else "",
        tags=(name, BORROWED),
        bootstrap=wish.bootstrap,
        control_plane=wish.control_plane,
        endpoint=site.networks.api_vip or "",
        datastore=_datastore(k8s, wish),
        credentials=wish.credentials or "",
        pods=wish.pods,
        services=wish.services,
        skip_agent=wish.skip_agent,
        network_chart=_network_chart(k8s) if wish.network == "cozystack" else {},
        unhealthy_seconds=wish.unhealthy_seconds,
        startup_seconds=int(wish.wait_minutes * 60),
        labels={RUN_LABEL: run, KIND_LABEL: "borrow"},
    )
    return Ordered(
        placed,
        tuple(problems),
        tuple(templates),
        tuple(guests),
        tuple(nodes),
        tuple(storages),
        tuple(interfaces),
        max(1, min(wish.count, site.budget.vms - 1 if site.budget.vms > 1 else 1)),
        wish.namespace is None,
        volid,
        linked,
    )


def _kinds(wish: Any) -> tuple[str, ...]:
    plane = "KamajiControlPlane" if wish.control_plane == "kamaji" else "KubeadmControlPlane"
    data = "TalosConfigTemplate" if wish.bootstrap == "talos" else "KubeadmConfigTemplate"
    return ("Cluster", "MachineDeployment", "ProxmoxCluster", "ProxmoxMachineTemplate", "InClusterIPPool", plane, data)


def control_plane_kind(site: Any) -> str:
    """The kind of the site's control plane."""
    return _kinds(site.machines)[-2]


def bootstrap_kind(site: Any) -> str:
    """The kind of the site's bootstrap template."""
    return _kinds(site.machines)[-1]


def _template_of(templates: Sequence[Template], tags: Sequence[str], vmid: int | None) -> Template | None:
    asked = {tag.lower() for tag in tags}
    found = [row for row in templates if ({t.lower() for t in row.tags} == asked if asked else row.vmid == vmid)]
    return found[0] if len(found) == 1 else None


def _disk_of(pve: Any, template: Template | None) -> str:
    if template is None or not template.disks:
        return ""
    config = pve.get(f"/nodes/{template.node}/qemu/{template.vmid}/config") or {}
    return str(config.get(template.disks[0]) or "").partition(",")[0]


def _can_link(volid: str, storages: Iterable[Storage], template: Template | None) -> bool:
    name = volid.partition(":")[0]
    kinds = {row.type for row in storages if row.name == name and template and row.node == template.node}
    return volid.endswith(".qcow2") or bool(kinds & LINKED)


def _allowed(volid: str, storages: Iterable[Storage], names: Any, template: Template | None) -> tuple[str, ...]:
    """The nodes a clone may go to: all of the site's where the template's disk is shared, else only the template's.

    PVE refuses a clone to another node from local storage. One node alone is not named: then CAPMOX asks no
    scheduler.
    """
    rows = [row for row in storages if row.name == volid.partition(":")[0] and row.active]
    if template is None or not any(row.shared for row in rows):
        return ()
    targets = {
        row.node for row in storages if row.active and row.name == names.disk_storage and "images" in row.content
    }
    usable = targets & {row.node for row in rows}
    return tuple(sorted(node for node in usable if not names.nodes or node in names.nodes))


def _network_of(interfaces: Iterable[Interface], bridge: str, node: str) -> Interface | None:
    rows = [row for row in interfaces if row.name == bridge and (not node or row.node == node)]
    return next(iter(sorted(rows, key=lambda row: (row.gateway is None, row.node))), None)


def _version(k8s: Any) -> str:
    found = re.match(r"v\d+\.\d+\.\d+", str(k8s.get("/version")["gitVersion"]))
    return found[0] if found else "v1.33.0"


def _datastore(k8s: Any, wish: Any) -> str:
    if wish.datastore or wish.control_plane != "kamaji":
        return wish.datastore or ""
    rows = [row["metadata"]["name"] for row in k8s.list("/apis/kamaji.clastix.io/v1alpha1/datastores")]
    return "default" if "default" in rows or not rows else sorted(rows)[0]


def _network_chart(k8s: Any) -> dict[str, Any]:
    """Where CozyStack keeps the network chart of its own tenant clusters; nothing where it keeps none.

    Since v1 an ExternalArtifact per component of the application `kubernetes`, before a chart of the repository
    `cozystack-system`.
    """
    source = "/apis/source.toolkit.fluxcd.io/v1"
    if any(entry["kind"] == "ExternalArtifact" for entry in k8s.resources(source)):
        rows = [item["metadata"] for item in k8s.list(f"{source}/externalartifacts")]
        fitting = [meta for meta in rows if str(meta["name"]).endswith("kubernetes-cilium")]
        meta = fitting[0] if fitting else NETWORK_ARTIFACT if not rows else None
        if meta:
            return {"chartRef": {"kind": "ExternalArtifact", "name": meta["name"], "namespace": meta["namespace"]}}
    for item in k8s.list(f"{source}/helmrepositories"):
        meta = item["metadata"]
        if meta["name"] == "cozystack-system":
            where = {"kind": "HelmRepository", "name": meta["name"], "namespace": meta["namespace"]}
            return {"chart": {"spec": {"chart": "cozy-cilium", "reconcileStrategy": "Revision", "sourceRef": where}}}
    return {}


def pools_of_others(k8s: Any, served: MachineApis) -> list[AddressPool]:
    """The address pools that other clusters take from."""
    return told.address_pools(k8s, served)


# --- what is asked of both sides -----------------------------------------------------------------------


def manifests(ordered: Ordered, run: str) -> list[Manifest]:
    """Every object of the first order as it is applied, with the run's label; the namespace first, where it is new."""
    space = [machines.namespace(ordered.order)] if ordered.own_namespace else []
    return [labelled(entry, run, "borrow") for entry in (*space, *machines.manifests(ordered.order))]


def dry_run(k8s: Any, objects: Iterable[Manifest]) -> list[Accepted]:
    """What the API server says to each of the manifests when nothing is kept.

    Objects of a namespace that is only to be made are tried in `default`: the schema and the webhooks are the same.
    """
    given, rows = list(objects), []
    fresh = {entry["metadata"]["name"] for entry in given if entry["kind"] == "Namespace"}
    for entry in given:
        tried = entry
        if entry["metadata"].get("namespace") in fresh:
            tried = {**entry, "metadata": {**entry["metadata"], "namespace": "default"}}
        try:
            k8s.apply(tried, dry_run=True)
            rows.append(Accepted(target_of(entry)))
        except NotFound as error:
            rows.append(Accepted(target_of(entry), untried=str(error)))
        except ApiError as error:
            rows.append(Accepted(target_of(entry), refusal=error.came or str(error)))
    return rows


def life(ordered: Ordered, site: Any, run: str, *, refused: Iterable[Accepted] = (), step: str = "24") -> Wanted:
    """The whole life as one plan, so that one approval covers it: its parts are sent one after the other.

    With anything in the way there is no plan at all: half a cluster teaches nothing.
    """
    problems = [*ordered.problems, *(f"{row.target}: {row.refusal or row.untried}" for row in refused
                                     if row.refusal or row.untried)]  # fmt: skip
    if problems:
        return Wanted(problems=tuple(f"machines: {text}" for text in problems))
    first = manifests(ordered, run)
    many = ordered.order.scaled(ordered.count)
    next_order = ordered.order.rolled(memory_mib=ordered.order.memory_mib + ROLLED_MIB)
    changes = [_apply(entry, CREATE, _why(entry)) for entry in first]
    changes[0] = replace(changes[0], request={**changes[0].request, "cost": _cost(ordered)})
    if ordered.count > 1:
        changes.append(_replicas(many, run, SCALE_UP, before=1))
        changes.append(_replicas(ordered.order, run, SCALE_DOWN, before=ordered.count))
    changes.append(
        _apply(labelled(machines.machine_template(next_order), run, "borrow"), ROLL, "A template of other memory")
    )
    summary = "The MachineDeployment takes the new template: every machine is replaced"
    changes.append(_apply(labelled(machines.machine_deployment(next_order), run, "borrow"), ROLL, summary))
    changes.append(_lose(ordered.order))
    changes += _clones(ordered, site, run)
    return Wanted(tuple(changes)).numbered(step)


def _cost(ordered: Ordered) -> dict[str, float]:
    most = max(ordered.count, 2)  # while it is rolled there is one more
    return {"vms": most, "gib": most * ordered.order.disk_gib, "minutes": 20}


def _why(manifest: Manifest) -> str:
    words = {
        "Namespace": "Namespace of the test cluster",
        "ProxmoxCluster": "Where machines may be, and their addresses; CAPMOX makes a pool of them",
        "KamajiControlPlane": "Control plane in pods of this cluster",
        "KubeadmControlPlane": "Control plane on a machine",
        "ProxmoxMachineTemplate": "What each VM is cloned from and made into",
        "Cluster": "Joins control plane and machines",
        "MachineDeployment": "One machine: A VM IS CLONED AND STARTED",
        "MachineHealthCheck": "Replaces a machine whose Node falls silent",
        "HelmRelease": "The network of the new cluster, as CozyStack installs it; without it no Node is Ready",
    }
    return words.get(manifest["kind"], "How a machine joins")


def _apply(manifest: Manifest, action: str, summary: str) -> Change:
    undo: dict[str, Any] = {"delete": reference(manifest)}
    if manifest["kind"] in {"Cluster", "MachineDeployment", "HelmRelease"}:
        undo |= {"seconds": ALONE_SECONDS, "patience": SLOW_TO_GO_SECONDS}
    plain = {key: value for key, value in manifest.items() if key != "status"}
    return Change("", "kubernetes", action, target_of(manifest), summary, ChangeKind.BORROW, {"manifest": manifest},
                  None, plain, undo)  # fmt: skip


def _replicas(wanted: Order, run: str, action: str, *, before: int) -> Change:
    manifest = labelled(machines.machine_deployment(wanted), run, "borrow")
    change = _apply(manifest, action, f"{before} → {wanted.count} machines")
    return replace(change, before={"replicas": before}, after={"replicas": wanted.count})


def _lose(wanted: Order) -> Change:
    name = f"{wanted.deployment}-"
    return Change(
        "",
        "proxmox",
        LOSE,
        f"/cluster/resources/{name}*",
        "ONE VM OF THIS CLUSTER IS STOPPED AND DESTROYED behind the back of Cluster API, to be replaced",
        ChangeKind.BORROW,
        {"lose": {"name": name}},
        {"VM": f"the first of {name}*"},
        None,
        {"nothing": "a lost VM is made anew by Cluster API"},
    )


def _clones(ordered: Ordered, site: Any, run: str) -> list[Change]:
    """Timed clones of the template, one after the other, each taken away before the next."""
    wanted, count = ordered.order, site.machines.clone_samples
    vmid, last = site.names.vmid_range.end - CLONE_IDS + 1, site.names.vmid_range.end
    taken = {guest.vmid for guest in ordered.guests}
    free = [number for number in range(max(vmid, site.names.vmid_range.start), last + 1) if number not in taken]
    template = _template_of(ordered.templates, wanted.template_tags, wanted.template_vmid)
    if not count or not free or template is None:
        return []
    changes: list[Change] = []
    for kind in ("full", "linked") if ordered.linked else ("full",):
        for number in range(1, count + 1):
            changes += _clone(template, wanted, free[0], f"{kind}-{number}", run, full=kind == "full")
    return changes


def _clone(template: Template, wanted: Order, vmid: int, what: str, run: str, *, full: bool) -> list[Change]:
    name = f"clone-{what}-{mark(run)}"
    params: dict[str, Any] = {"newid": vmid, "name": name, "full": int(full)}
    if full and wanted.storage:
        params["storage"] = wanted.storage
    if wanted.pool:
        params["pool"] = wanted.pool
    undo = guest_undo(template.node, vmid, run, field="name")
    undo["look"]["match"] = {"vmid": vmid, "name": name}
    path = f"/nodes/{template.node}/qemu"
    target = f"{path}/{vmid}"
    made_of = {"method": "POST", "path": f"{path}/{template.vmid}/clone", "params": params, "timeout_seconds": 1800}
    return [
        Change("", "proxmox", CLONE, target, f"Timed clone, {what}; never started", ChangeKind.BORROW, made_of, None,
               params, undo),
        Change("", "proxmox", CLONE, target, f"Clone {what} is taken away again", ChangeKind.BORROW,
               {"take_back": undo}, params, None, undo),
    ]  # fmt: skip


# --- following -----------------------------------------------------------------------------------------


@dataclass
class View:
    """Both sides of one cluster, to be looked at again and again. The tenant's API is found once and kept."""

    pve: Any
    k8s: Any
    ordered: Ordered
    tenant: Any = None
    untold: str = ""
    upids: dict[str, int] = field(default_factory=dict)  # every task seen so far, with the VM it is about

    @property
    def place(self) -> tuple[str, str]:
        """Namespace and name of the cluster."""
        return self.ordered.order.namespace, self.ordered.order.name

    def scene(self, *, logs: bool = False) -> Scene:
        """What both sides say now; with `logs` the VMs' tasks and the storages too, which is worth reading once."""
        space, name = self.place
        objects = _objects(self.k8s, self.ordered.order.apis, space)
        storages = self.ordered.storages if logs else ()
        self.upids |= _upids(objects)
        whole = _both_sides(self.pve, objects, storages, logs=logs, also=f"{name}-", upids=self.upids)
        nodes, untold = self._nodes(space, name) if objects.machines else ((), {})
        return replace(whole, nodes=nodes, untold=untold).of(space, name)

    def _nodes(self, space: str, name: str) -> tuple[tuple[TenantNode, ...], dict[str, str]]:
        try:
            self.tenant = self.tenant or told.tenant(self.k8s, space, name, timeout=5.0)
            return tuple(told.tenant_nodes(self.tenant, f"{space}/{name}")), {}
        except RunbookError as error:
            self.untold = str(error)
            return (), {f"{space}/{name}": self.untold}


@dataclass(frozen=True)
class Followed:
    """What was seen between a request and its end. `refused` tells why there was nothing to follow."""

    scene: Scene
    moments: tuple[Moment, ...] = ()
    gone: Mapping[str, float] = field(default_factory=dict)  # machine → seconds until neither side had it
    seconds: float = 0.0
    refused: str = ""
    late: bool = False


def view(pve: Any, k8s: Any, ordered: Ordered) -> View:
    """Both sides of the ordered cluster."""
    return View(pve, k8s, ordered)


def follow(
    seen: View,
    applied: Applied,
    *,
    count: int,
    without: Iterable[str] = (),
    memory_mib: int | None = None,
    minutes: float = 20,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Followed:
    """What both sides show until exactly so many machines run and are Nodes, and those of `without` are gone.

    With `memory_mib` only machines whose VM has that memory count. It ends early where a machine was given up, and
    late when the minutes are over: what was seen until then is what there is to judge.
    """
    if applied.refused or not applied.done:
        return Followed(Scene(), refused=applied.refused or "nothing was asked for")
    begun, pause = clock(), LOOK_SECONDS
    moments: list[Moment] = []
    leaving, gone, late = set(without), dict[str, float](), False
    first: set[str] | None = None
    while True:
        scene = seen.scene()
        seconds = clock() - begun
        moments = evidence.moments(moments, scene, seconds)
        here = {row.name for row in scene.machines} | {row.name for row in scene.proxmox_machines}
        here |= {vm.name for vm in scene.vms}
        first = here if first is None else first | here
        gone |= {name: seconds for name in sorted((first | leaving) - here) if name not in gone}
        if _has_come(seen, scene, count, leaving & here, memory_mib) or _is_hopeless(scene):
            break
        if seconds > minutes * 60:
            late = True
            break
        sleep(pause)
        pause = min(LONGEST_LOOK_SECONDS, pause * 1.1)
    last = seen.scene(logs=True)
    return Followed(last, tuple(moments), gone, clock() - begun, late=late)


def _has_come(seen: View, scene: Scene, count: int, left: set[str], memory_mib: int | None) -> bool:
    rows, network = evidence.chains(scene), bool(seen.ordered.order.network_chart)
    wanted = [row for row in rows if memory_mib in {None, row.vm.memory_mib if row.vm else 0}]
    good = [row for row in wanted if _is_there(row, network=network)]
    return not left and len(good) == len(rows) == count == len(scene.vms)


def _is_there(chain: Chain, *, network: bool) -> bool:
    """Whether the machine is as far as it will get: a Node that lacks a network nobody installs gets no further."""
    claims = chain.machine is not None and not chain.machine.deleting and chain.proxmox and chain.proxmox.ready
    if not (claims and chain.runs and chain.registered):
        return False
    node = chain.node
    lacks_network = node is not None and re.search(r"cni|network plugin|NetworkPluginNotReady", node.message, re.I)
    return evidence.is_node_ready(chain) or bool(lacks_network and not network)


def _is_hopeless(scene: Scene) -> bool:
    return any(row.failure for row in scene.proxmox_machines if not row.deleting)


def names(scene: Scene) -> list[str]:
    """The machines of the scene, by name."""
    return sorted(row.name for row in scene.machines)


# --- what it took --------------------------------------------------------------------------------------


def measurements(*came: Followed, left: Iterable[Followed] = (), vm_seconds: float = 300) -> list[Measurement]:
    """A sample a machine: from the order to a running VM, to a Node, to a Ready one; from the deletion to nothing.

    `came` are where machines came up, `left` where they were deleted and nothing else was waited for.
    """
    seen = [_fresh(each) for each in came]
    every = [row for rows in seen for row in rows]
    gone = tuple(seconds for each in left for _, seconds in sorted(each.gone.items()))
    storms = [rows for rows in seen if len({row.machine for row in rows}) > 1]
    last = tuple(max(found) for rows in storms if (found := evidence.spans(rows, "Machine", "running")))
    rows = [
        Measurement("machine: ordered to running", "s", tuple(evidence.spans(every, "Machine", "running")),
                    threshold=vm_seconds),
        Measurement("machine: clone, by CAPMOX", "s", tuple(evidence.spans(every, "clone begun", "cloned"))),
        Measurement("machine: running to Node", "s", tuple(evidence.spans(every, "running", "Node"))),
        Measurement("machine: running to Node Ready", "s", tuple(evidence.spans(every, "running", "Node Ready"))),
        Measurement("machine: deleted to gone", "s", gone),
        Measurement("several machines: ordered to the last one running", "s", last, threshold=vm_seconds),
    ]  # fmt: skip
    return [row for row in rows if row.values or row.threshold]


def _fresh(followed: Followed) -> list[Moment]:
    """The moments of machines that came meanwhile: of one that ran at the first look nothing is known."""
    begun = {row.machine: row.seconds for row in followed.moments if row.stage == "Machine"}
    late = {"running", "provisioned", "Node"}
    old = {row.machine for row in followed.moments if row.stage in late and row.seconds == begun.get(row.machine)}
    return [row for row in followed.moments if row.machine not in old]


def clone_timings(exchanges: Iterable[Any], *applied: Applied) -> list[Measurement]:
    """What a full and a linked clone took, from the request until its task was seen to have ended."""
    seen = list(exchanges)
    kinds = {
        change.id: "full" if "clone-full" in str(change.request.get("params", {}).get("name")) else "linked"
        for each in applied
        for change in (() if each.refused else each.done)
        if change.action == CLONE and str(change.request.get("path", "")).endswith("/clone")
    }
    values: dict[str, list[float]] = {}
    for index, exchange in enumerate(seen):
        if exchange.change in kinds and exchange.method == "POST" and 200 <= exchange.status < 300:
            values.setdefault(kinds[exchange.change], []).append(trials.until_ended(seen, index))
    return [Measurement(f"clone, {kind}", "s", tuple(found)) for kind, found in sorted(values.items())]


def with_storages(site: Any, storages: Iterable[Storage]) -> Any:
    """The site with its storages chosen."""
    return prepare.with_storages(site, storages)


# --- small words of the notebook -----------------------------------------------------------------------


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def rolled_memory_mib(ordered: Ordered) -> int:
    """The memory that the rolled template gives its VMs."""
    return ordered.order.memory_mib + ROLLED_MIB


def shown_path(path: Path) -> str:
    """The path as somebody at the project's root would type it."""
    from runbook_lib.parameters import project_root

    root = project_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def tasks(scene: Scene) -> list[dict[str, Any]]:
    """The tasks of the scene's VMs, the oldest first, with the last line of those that failed."""
    return [
        {
            "vmid": row.about,
            "task": row.task.type,
            "node": row.task.node,
            "status": row.task.status or "running",
            "took_seconds": row.task.finished - row.task.started if row.task.finished else None,
            "last line": row.lines[-1] if row.lines else "",
            "UPID": row.task.upid,
        }
        for row in scene.tasks
    ]


def neighbours(pve: Any, k8s: Any, site: Any, ordered: Ordered, there: Scene) -> dict[str, Any]:
    """What the address pool must not meet, as `address_pool_is_free` wants it."""
    mine = {(ordered.order.namespace, f"{ordered.order.name}-v4-icip")}
    return {
        "interfaces": ordered.interfaces,
        "pools": [row for row in there.pools if (row.namespace, row.name) not in mine],
        "vms": made.machine_vms(pve),
        "ranges": kubernetes.network_ranges(k8s, site, ordered.interfaces),
        "api_vip": site.networks.api_vip,
        "gateway": ordered.order.gateway,
        "count": ordered.count + 1,
    }


def held(pve: Any, site: Any) -> list[Held]:
    """What CAPMOX' own identity may do beside what it needs; nothing where step 13 made none."""
    return [row for row in proofs.held(pve, site) if row.component == "capmox"]
