"""Reliability experiments of step 43: what is broken on purpose, what that can hit, and how it comes back.

Nothing is broken unless the site names it in `experiments.allow`. Everything is done through the two APIs, so that the
same experiment means the same on every site; each request's way back is in the journal before it is sent, so that a
sweep ends an experiment that nobody ended. What no API can bring back is not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runbook_lib import kubernetes_workload, privileges, volumes, workload
from runbook_lib.csi import Setting
from runbook_lib.errors import RunbookError
from runbook_lib.executors import volume_undo
from runbook_lib.facts import ClassCase, Cluster, Experiment, NodeMachine, Stage
from runbook_lib.model import Measurement
from runbook_lib.plan import mark
from runbook_lib.prepare import Wanted

Object = dict[str, Any]

RESTARTED, EXPIRED, UNREACHABLE, FULL = "controller-restarted", "token-expired", "api-unreachable", "storage-full"
DRAINED, KILLED, LOST = "node-drained", "worker-killed", "proxmox-node-lost"
NAMES = (RESTARTED, EXPIRED, UNREACHABLE, FULL, DRAINED, KILLED, LOST)

HYPOTHESES: Mapping[str, str] = {
    RESTARTED: "running pods notice nothing; the driver comes back, and makes a volume",
    EXPIRED: "running pods notice nothing; a new volume waits, and comes once the token is valid",
    UNREACHABLE: "running pods notice nothing; a new volume waits, and comes once the API is in reach",
    FULL: "running pods notice nothing; a new volume waits, and comes once there is room",
    DRAINED: "the pods start elsewhere before too many are gone; no request fails",
    KILLED: "the pods start elsewhere once the node is given up; with the VM its pods and volumes come back",
    LOST: "the cluster keeps its quorum, and the workload moves to the workers on other nodes",
}

RESERVED = frozenset({"lvm", "zfspool"})
"""Types of storage where a volume takes its room when it is made. Elsewhere only what is written takes any."""

CONTROLLER = "proxmox-csi-controller"
"""In the name of the image that makes and attaches volumes."""

REFUSED_SECONDS = 60.0
"""How long it may take until the driver has told that it was refused."""

LEFT_FREE_KIB = 64 * 1024
NEVER = 1
"""A moment that is long over, for a token's expiry; 0 would be "never"."""


@dataclass(frozen=True)
class Scene:
    """What the experiments of a site act on. `worker` is None where none may be taken away."""

    pve: Any
    k8s: Any
    site: Any
    run: str
    what: Setting
    cluster: Cluster
    case: ClassCase | None
    worker: NodeMachine | None
    controller: Object | None  # the driver's Deployment

    @property
    def account(self) -> tuple[str, str]:
        """User and token id of the driver."""
        return privileges.user_of("csi", self.site), "csi"


def scene(pve: Any, k8s: Any, site: Any, run: str, what: Setting, cluster: Cluster) -> Scene:
    """What the experiments act on, by reads only."""
    case, _ = workload.storage_for(what)
    rows = k8s.list(f"/apis/apps/v1/namespaces/{what.namespace}/deployments")
    controllers = [row for row in rows if any(CONTROLLER in box["image"] for box in _containers(row))]
    return Scene(pve, k8s, site, run, what, cluster, case, worker(site, what), controllers[0] if controllers else None)


def _containers(deployment: Object) -> list[Object]:
    return list(deployment["spec"]["template"]["spec"].get("containers") or ())


def worker(site: Any, what: Setting) -> NodeMachine | None:
    """The worker that may be drained and switched off: the named one, or the last of at least two."""
    fit = [row for row in volumes.workers(what.machines) if not (row.control_plane or row.is_host or row.twins)]
    fit = [row for row in fit if row.ready == "True" and row.schedulable and row.vmid is not None]
    if site.experiments.worker:
        return next((row for row in fit if row.node == site.experiments.worker and len(fit) > 1), None)
    return max(fit, key=lambda row: row.node) if len(fit) > 1 else None


def spare(at: Scene) -> list[str]:
    """Nodes that an experiment takes away, where the client should not be."""
    takes = {DRAINED, KILLED} & set(at.site.experiments.allow)
    return [at.worker.node] if at.worker and takes else []


# --- the preview -------------------------------------------------------------------------------------


def preview(at: Scene) -> list[Experiment]:
    """Each experiment: what is expected, what it can hit at most, how it is taken back, and why it is not made."""
    return [_previewed(at, name) for name in NAMES]


def _previewed(at: Scene, name: str) -> Experiment:
    why = _impossible(at, name)
    allowed = name in at.site.experiments.allow
    if not why and not allowed:
        why = "the site does not consent; name it in `experiments.allow` once what it can hit may be hit"
    return Experiment(name, HYPOTHESES[name], _hits(at, name), _way_back(name), allowed and not why, why)


def _hits(at: Scene, name: str) -> str:
    node = at.worker
    if name in {DRAINED, KILLED}:
        if node is None:
            return ""
        held = [pod for pod in at.k8s.list("/api/v1/pods") if (pod["spec"] or {}).get("nodeName") == node.node]
        others = sorted({pod["metadata"]["namespace"] for pod in held if not _of_daemon_set(pod)})
        if name == DRAINED:
            return f"pods of this run on {node.node}; no new pods there meanwhile, whosever they are"
        told = f"; it runs pods of {', '.join(others)}" if others else ""
        return f"VM {node.vmid} ({node.node}) on {node.host} is switched off{told}"
    return {
        RESTARTED: f"volumes of the whole cluster are neither made nor attached while {at.what.namespace} restarts",
        EXPIRED: f"volumes of the whole cluster are neither made nor attached while {'!'.join(at.account)} is expired",
        UNREACHABLE: f"volumes of the whole cluster wait for {at.site.experiments.outage_seconds:g} s",
        FULL: f"nobody can make a volume on {at.case.storage if at.case else 'the storage'} meanwhile, guests of "
        "Proxmox VE that write to thin volumes there included",
        LOST: "every guest of a Proxmox node",
    }[name]


def _of_daemon_set(pod: Object) -> bool:
    return any(owner["kind"] in {"DaemonSet", "Node"} for owner in pod["metadata"].get("ownerReferences") or ())


def _way_back(name: str) -> str:
    return {
        RESTARTED: "its Deployment makes another pod",
        EXPIRED: "the token's expiry is set to what it was",
        UNREACHABLE: "the policy is deleted",
        FULL: "the volume is freed",
        DRAINED: "the node is made schedulable",
        KILLED: "the VM is started",
        LOST: "nothing that a run could send",
    }[name]


def _impossible(at: Scene, name: str) -> str:
    """Why the experiment cannot be made on this site, and what would make it possible; "" where it can."""
    if name == LOST:
        return (
            "Proxmox VE's API can shut a node down but not switch it on again; a power switch that the runbook may "
            "use (IPMI, a switched outlet) would make it possible"
        )
    if name == DRAINED:
        return "" if at.worker else _NO_WORKER
    if name == KILLED:
        return "" if at.worker else _NO_WORKER
    if at.case is None or at.controller is None:
        return "the storage driver is not there; step 32 installs it"
    if name == EXPIRED:
        return _no_token(at)
    if name == UNREACHABLE:
        return _no_policy(at)
    if name == FULL and at.case.type not in RESERVED:
        return (
            f"a volume on {at.case.type} takes no room until it is written to, and its room is shared with guests; "
            "a class on a storage of type lvm or zfspool that nobody else uses would make it possible"
        )
    return ""


_NO_WORKER = "no second worker VM with the driver is ready, so the pods had nowhere to go; step 24 makes workers"


def _no_token(at: Scene) -> str:
    if at.what.snapshots:
        return "the driver logs in with root@pam's password (`csi.root_password`), which has no expiry"
    user, name = at.account
    if _expiry(at) is None:
        return f"{user}!{name} is not there or cannot be read; step 32 makes it"
    return ""


def _expiry(at: Scene) -> int | None:
    user, name = at.account
    try:
        return int((at.pve.get(f"/access/users/{user}/token/{name}") or {}).get("expire") or 0)
    except RunbookError:
        return None


def _no_policy(at: Scene) -> str:
    if (at.controller or {})["spec"]["template"]["spec"].get("hostNetwork"):
        return "the driver's controller is in the host's network, where no policy binds it"
    if any(row.is_host for row in at.what.machines):
        return "a Proxmox server is a Kubernetes node, and no policy by address binds traffic to a node"
    if not at.k8s.find("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumnetworkpolicies.cilium.io"):
        return "the cluster has no CiliumNetworkPolicy, and nothing else keeps one address from one pod"
    return ""


# --- the plan ----------------------------------------------------------------------------------------


def trials(at: Scene, rows: Iterable[Experiment], *, step: str = "43") -> Wanted:
    """The experiments that may be made as changes that follow the workload's life; why the others are not."""
    held = list(rows)
    draft = workload.Draft(at.site, at.run, workload.home_of(at.site, at.run))
    makers: Mapping[str, Callable[[workload.Draft, Scene], None]] = {
        RESTARTED: _restarted, EXPIRED: _expired, UNREACHABLE: _unreachable, FULL: _full, DRAINED: _drained,
        KILLED: _killed,
    }  # fmt: skip
    for row in held:
        if row.planned:
            draft.stage = row.name
            makers[row.name](draft, at)
            if at.case is not None:
                draft.say(f"{workload.DATA}-1", "survived", volumes.READ)
    problems = tuple(f"{row.name}: {row.reason}" for row in held if not row.planned)
    return Wanted(tuple(draft.changes), problems=problems).numbered(step)


def _recovered(**see: Any) -> Object:
    return {**see, "recovered": True}


def _patient(at: Scene, **see: Any) -> Object:
    return _recovered(**see, seconds=float(at.site.experiments.window_seconds))


def _wish(draft: workload.Draft, at: Scene, zone: str = "") -> str:
    """The name of a claim that a pod wants, made now; in this zone where one is named."""
    assert at.case is not None
    name = f"proof-{draft.stage}"
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": at.case.name,
            "resources": {"requests": {"storage": f"{at.site.csi.size_gib}Gi"}}}  # fmt: skip
    made = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
    draft.make(made, "Volume that is asked for meanwhile", claims=[name], cost={"gib": at.site.csi.size_gib})
    box = workload.container(at.site, "main", args=["pause"], volumeMounts=[{"name": "data", "mountPath": "/data"}])
    body = {"containers": [box], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]}  # fmt: skip
    if zone:
        body["nodeSelector"] = {"topology.kubernetes.io/zone": zone}
    draft.make({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}, "Pod that wants it")
    return name


def _restarted(draft: workload.Draft, at: Scene) -> None:
    assert at.controller is not None
    name, space = at.controller["metadata"]["name"], at.what.namespace
    labels = at.controller["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    pods = [pod["metadata"]["name"] for pod in at.k8s.list(f"/api/v1/namespaces/{space}/pods", labelSelector=selector)]
    for pod in pods:
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": space}}
        see = [_patient(at, stage="again", namespace=space, of=name, pods=pods)] if pod == pods[-1] else []
        draft.add("kubernetes", "delete", f"v1/Pod/{space}/{pod}", f"RESTARTS the driver's controller {pod}",
                  {"delete": whole}, {}, {"nothing": "its Deployment makes another"}, *see)  # fmt: skip
    claim = _wish(draft, at)
    draft.changes[-1].request["trial"]["see"].append(_patient(at, stage="bound", claim=claim))


def _expired(draft: workload.Draft, at: Scene) -> None:
    user, name = at.account
    path, before = f"/access/users/{user}/token/{name}", _expiry(at) or 0
    back = {"method": "PUT", "path": path, "params": {"expire": before}}
    draft.add("proxmox", "update", path, f"LETS the driver's token {user}!{name} EXPIRE",
              {"method": "PUT", "path": path, "params": {"expire": NEVER}, "cost": {"minutes": 2}},
              {"expire": NEVER}, back, before={"expire": before})  # fmt: skip
    claim = _wish(draft, at)
    draft.add("proxmox", "update", path, "The token is valid again", back, {"expire": before},
              {"nothing": "it is as before"}, _patient(at, stage="bound", claim=claim))  # fmt: skip
    _seen_before(draft, {"stage": "refused", "claim": claim, "seconds": REFUSED_SECONDS})


def _seen_before(draft: workload.Draft, see: Object) -> None:
    """Nothing; the change before the last is looked after too."""
    draft.changes[-2].request["trial"]["see"].append(see)


def _unreachable(draft: workload.Draft, at: Scene) -> None:
    assert at.controller is not None
    # Everything within the cluster stays in reach; what is outside is Proxmox VE, and nothing else the driver needs.
    spec = {"endpointSelector": {"matchLabels": at.controller["spec"]["selector"]["matchLabels"]},
            "egress": [{"toEntities": ["cluster", "kube-apiserver"]}]}  # fmt: skip
    name = f"{draft.home}-outage"
    made = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": at.what.namespace}, "spec": spec}  # fmt: skip
    draft.make(made, "KEEPS the driver from Proxmox VE's API", cost={"minutes": 2})
    claim = _wish(draft, at)
    gone = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": at.what.namespace}}  # fmt: skip
    draft.add("kubernetes", "delete", f"cilium.io/v2/CiliumNetworkPolicy/{at.what.namespace}/{name}",
              "The API is in reach again", {"delete": gone}, {}, {"nothing": "it is gone"},
              _patient(at, stage="bound", claim=claim))  # fmt: skip
    outage = float(at.site.experiments.outage_seconds)
    _seen_before(draft, {"stage": "held", "claim": claim, "for": outage, "seconds": outage + 10})


def _zone(at: Scene, case: ClassCase) -> str:
    """The Proxmox node whose storage is filled: one on which a worker runs."""
    hosts = [at.worker.host] if at.worker else []
    hosts += [machine.host for machine in at.what.machines]
    return next((host for host in hosts if host in case.zones), case.zones[0])


def _full(draft: workload.Draft, at: Scene) -> None:
    assert at.case is not None
    node, storage = _zone(at, at.case), at.case.storage
    room = int((at.pve.get(f"/nodes/{node}/storage/{storage}/status") or {}).get("avail") or 0) // 1024
    vmid, path = at.site.names.vmid_range.end, f"/nodes/{node}/storage/{storage}/content"
    filename = f"vm-{vmid}-{mark(at.run)}"
    params = {"vmid": vmid, "filename": filename, "size": str(max(room - LEFT_FREE_KIB, 1)), "format": "raw"}
    draft.add("proxmox", "create", f"{path}/{storage}:{filename}", f"FILLS the storage {storage} of {node}",
              {"method": "POST", "path": path, "params": params, "cost": {"minutes": 2},
               "room": {"node": node, "storage": storage, "leave_kib": LEFT_FREE_KIB}}, params,
              volume_undo(node, storage, filename, at.run))  # fmt: skip
    claim = _wish(draft, at, zone="" if at.case.shared else node)
    draft.add("proxmox", "delete", f"{path}/{storage}:{filename}", "There is room again",
              {"method": "DELETE", "path": f"{path}/{storage}:{filename}"}, {}, {"nothing": "it is gone"},
              _patient(at, stage="bound", claim=claim))  # fmt: skip
    _seen_before(draft, {"stage": "refused", "claim": claim, "seconds": REFUSED_SECONDS})


def _drained(draft: workload.Draft, at: Scene) -> None:
    assert at.worker is not None
    node, path = at.worker.node, f"/api/v1/nodes/{at.worker.node}"
    back = _schedulable(path, False)
    draft.add("kubernetes", "update", f"v1/Node/{node}", f"No new pods on {node}",
              {**_schedulable(path, True), "cost": {"minutes": 2}}, {"unschedulable": True}, back,
              before={"unschedulable": False})  # fmt: skip
    see = [_patient(at, stage="elsewhere", deployment=workload.WEB, node=node, count=workload.REPLICAS)]
    if at.case is not None and at.case.shared:
        see.append(_patient(at, stage="set", set=workload.DATA))
    draft.add("kubernetes", "evict", f"v1/Node/{node}", f"EVICTS the pods of this run from {node}",
              {"drain": {"node": node, "namespace": draft.home, "apps": [workload.WEB, workload.DATA],
                         "seconds": at.site.experiments.window_seconds}},
              {}, {"nothing": "whoever owns them makes others"}, *see)  # fmt: skip
    after = [_patient(at, stage="set", set=workload.DATA)] if at.case is not None else []
    draft.add("kubernetes", "update", f"v1/Node/{node}", f"New pods on {node} again", back, {"unschedulable": False},
              {"nothing": "it is as before"}, *after)  # fmt: skip


def _schedulable(path: str, cordoned: bool) -> Object:
    body = {"spec": {"unschedulable": True if cordoned else None}}
    return {"method": "PATCH", "path": path, "body": body, "content_type": "application/merge-patch+json"}


def _killed(draft: workload.Draft, at: Scene) -> None:
    assert at.worker is not None
    node, path = at.worker.node, f"/nodes/{at.worker.host}/qemu/{at.worker.vmid}"
    listed = {"path": f"/nodes/{at.worker.host}/qemu", "match": {"vmid": at.worker.vmid, "status": "stopped"}}
    undo = {"method": "POST", "path": f"{path}/status/start", "look": listed}
    see = [
        {"stage": "silent", "node": node, "seconds": at.site.experiments.window_seconds},
        _patient(at, stage="elsewhere", deployment=workload.WEB, node=node, count=workload.REPLICAS),
    ]
    draft.add("proxmox", "stop", path, f"SWITCHES OFF VM {at.worker.vmid}, the node {node}",
              {"method": "POST", "path": f"{path}/status/stop", "cost": {"minutes": 4}}, {"status": "stopped"}, undo,
              *see, before={"status": "running"})  # fmt: skip
    spare = kubernetes_workload.unready_on(at.k8s, node)  # was not ready before either
    after = [_patient(at, stage="back", node=node, spare=spare)]
    if at.case is not None:
        after.append(_patient(at, stage="set", set=workload.DATA))
    draft.add("proxmox", "start", path, f"VM {at.worker.vmid} is started again",
              {"method": "POST", "path": f"{path}/status/start"}, {"status": "running"},
              {"nothing": "it is as before"}, *after)  # fmt: skip


# --- what came of it ---------------------------------------------------------------------------------


def recoveries(stages: Iterable[Stage], *, window: float = 600) -> list[Measurement]:
    """How long each experiment's recoveries took, from the answer to the request that they follow."""
    values: dict[str, list[float]] = {}
    missed: dict[str, int] = {}
    for row in stages:
        if row.stage in NAMES and row.what.startswith(workload.RECOVERED):
            values.setdefault(row.stage, [])
            if row.reached:
                values[row.stage].append(row.seconds)
            else:
                missed[row.stage] = missed.get(row.stage, 0) + 1
    return [
        Measurement("recovery", "s", tuple(found), subject=name, threshold=window, errors=missed.get(name, 0))
        for name, found in values.items()
    ]


def state(at: Scene, rows: Sequence[Experiment]) -> dict[str, str]:
    """What the planned experiments change, as it is now; to be equal before and after."""
    planned, found = {row.name for row in rows if row.planned}, {}
    if at.worker and planned & {DRAINED, KILLED}:
        node = at.k8s.get(f"/api/v1/nodes/{at.worker.node}")
        ready = next((row["status"] for row in node["status"]["conditions"] if row["type"] == "Ready"), "?")
        cordoned = bool(node["spec"].get("unschedulable"))
        found[f"node {at.worker.node}"] = f"Ready {ready}, {'cordoned' if cordoned else 'schedulable'}"
        guest = at.pve.get(f"/nodes/{at.worker.host}/qemu/{at.worker.vmid}/status/current")
        found[f"VM {at.worker.vmid}"] = str(guest.get("status"))
        lost = kubernetes_workload.unready_on(at.k8s, at.worker.node)
        found[f"pods on {at.worker.node}"] = f"not ready: {', '.join(lost)}" if lost else "all ready"
    if EXPIRED in planned:
        found["token " + "!".join(at.account)] = f"expire {_expiry(at)}"
    if at.controller is not None and planned & {RESTARTED, UNREACHABLE, EXPIRED, FULL}:
        name, space = at.controller["metadata"]["name"], at.what.namespace
        now = at.k8s.get(f"/apis/apps/v1/namespaces/{space}/deployments/{name}")
        ready = (now.get("status") or {}).get("availableReplicas") or 0
        found[f"driver {name}"] = f"{ready} of {now['spec'].get('replicas', 1)} available"
    if UNREACHABLE in planned:
        rules = at.k8s.list(f"/apis/cilium.io/v2/namespaces/{at.what.namespace}/ciliumnetworkpolicies")
        found[f"policies of {at.what.namespace}"] = ", ".join(sorted(r["metadata"]["name"] for r in rules)) or "none"
    if FULL in planned and at.case is not None:
        path = f"/nodes/{_zone(at, at.case)}/storage/{at.case.storage}/content"
        volids = sorted(str(row["volid"]) for row in at.pve.get(path) or [] if mark(at.run) in str(row["volid"]))
        found[f"fillers of {at.case.storage}"] = ", ".join(volids) or "none"
    return found
