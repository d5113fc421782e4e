"""What step 32 tries with real pods and volumes, all of it borrowed, and what it sees of that on both sides.

One plan, so that one approval covers it. A witness looks after each change, at the cluster and at Proxmox VE, and only
then is the next one sent: an attachment that is told is believed when the VM's config names the disk.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runbook_lib import kubernetes_storage, proxmox_disks
from runbook_lib.csi import DRIVER, Setting
from runbook_lib.errors import NotFound, RunbookError
from runbook_lib.executors import labelled, reference, target_of
from runbook_lib.facts import Ability, ClassCase, NodeMachine, Seen, Spoken
from runbook_lib.kubernetes_nodes import quantity
from runbook_lib.model import Change, ChangeKind, Measurement
from runbook_lib.plan import Applied
from runbook_lib.prepare import Wanted

Object = dict[str, Any]

GIB = 1024**3
PATTERN_MIB = 16
FIO_RUNS = 3
DEAD_SECONDS = 900.0
"""A disk of a node that fell silent is given free after six minutes; the node is silent after one."""

FIO_JOB = """\
[global]
ioengine=libaio
direct=1
directory=/data
size=512m
time_based=1
ramp_time=2
runtime=10
group_reporting=1

[randread-4k]
rw=randread
bs=4k
iodepth=32

[randwrite-4k]
rw=randwrite
bs=4k
iodepth=32

[read-1m]
rw=read
bs=1m
iodepth=4

[write-1m]
rw=write
bs=1m
iodepth=4
"""
"""The job file: each section runs ten seconds after two of warm-up, several times over."""

FIO_SECTIONS = ("randread-4k", "randwrite-4k", "read-1m", "write-1m")

WRITE = (
    f"dd if=/dev/urandom of=/data/pattern bs=1M count={PATTERN_MIB} 2>/dev/null && sync && "
    "sha256sum /data/pattern > /data/pattern.sha256 && cat /data/pattern.sha256"
)
READ = "sha256sum -c /data/pattern.sha256 && sha256sum /data/pattern"
SIZE = "df -k -P /data | tail -n 1"
WRITE_BLOCK = (
    f"dd if=/dev/urandom of=/tmp/pattern bs=1M count={PATTERN_MIB} 2>/dev/null && "
    "dd if=/tmp/pattern of=/dev/volume bs=1M 2>/dev/null && sync && "
    f"dd if=/dev/volume of=/tmp/back bs=1M count={PATTERN_MIB} 2>/dev/null && sha256sum /tmp/pattern /tmp/back"
)
SIZE_BLOCK = "blockdev --getsize64 /dev/volume"


# --- where pods may run ------------------------------------------------------------------------------


def workers(machines: Iterable[NodeMachine]) -> list[NodeMachine]:
    """The nodes on which a volume can be mounted: VMs, ready, schedulable, with the driver registered."""
    fit = [
        row
        for row in machines
        if row.vmid is not None and row.ready == "True" and row.schedulable and row.max_volumes is not None
    ]
    return sorted(fit, key=lambda row: (row.control_plane, row.node))  # control planes only where nothing else is


def pair(case: ClassCase, machines: Iterable[NodeMachine]) -> tuple[NodeMachine | None, NodeMachine | None]:
    """The first and the second node of a class's trials: on another Proxmox node where the storage is shared."""
    fit = [row for row in workers(machines) if row.host in case.zones]
    if not fit:
        return None, None
    first = fit[0]
    others = [row for row in fit if row.node != first.node and (case.shared or row.host == first.host)]
    others.sort(key=lambda row: row.host == first.host)
    return first, (others[0] if others else None)


# --- the plan ----------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """One trial's changes in the making."""

    site: Any
    run: str
    home: str
    trial: str
    case: ClassCase
    changes: list[Change] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of a volume."""
        return int(self.site.csi.size_gib) * GIB

    def named(self, name: str) -> str:
        """The object's name, which begins with the trial's and the class's."""
        return f"{self.trial}-{self.case.name}"[: 60 - len(name)].rstrip("-") + (f"-{name}" if name else "")

    def claim(self, name: str, *see: Object, **spec: Any) -> str:
        """The name of a claim that is asked for."""
        claim = self.named(name)
        body = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": self.case.name,
            "resources": {"requests": {"storage": f"{self.site.csi.size_gib}Gi"}},
            **spec,
        }
        manifest = self._thing("v1", "PersistentVolumeClaim", claim, spec=body)
        self._make(manifest, "Claim", *see, cost={"gib": self.site.csi.size_gib}, claims=[claim])
        return claim

    def pod(self, name: str, claim: str, node: str, *see: Object, block: bool = False, image: str = "") -> str:
        """The name of a pod with the claim on that node, which waits to be told what to do."""
        pod = self.named(name)
        manifest = self._thing("v1", "Pod", pod, spec=self._pod_spec(claim, node, block=block, image=image))
        self._make(manifest, f"Pod with the volume{f' on {node}' if node else ''}", *see)
        return pod

    def _pod_spec(self, claim: str, node: str = "", *, block: bool = False, image: str = "") -> Object:
        container: Object = {
            "name": "main",
            "image": image or self.site.images.probe,
            "imagePullPolicy": self.site.images.pull_policy,
            "command": ["sleep", "86400"],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        if block:
            container["volumeDevices"] = [{"name": "data", "devicePath": "/dev/volume"}]
        else:
            container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        return {
            "containers": [container],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}] if claim else [],
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        }

    def grow(self, claim: str, *see: Object) -> None:
        """Nothing; the claim asks for twice its size."""
        path = f"/api/v1/namespaces/{self.home}/persistentvolumeclaims/{claim}"
        size = f"{2 * self.site.csi.size_gib}Gi"
        body = {"spec": {"resources": {"requests": {"storage": size}}}}
        request = {"method": "PATCH", "path": path, "body": body, "content_type": "application/merge-patch+json"}
        whole = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}}
        undo = {"nothing": "it goes with its claim"}
        self._add(
            "resize", whole, f"The claim asks for {size}", request, undo, *see, cost={"gib": self.site.csi.size_gib}
        )

    def say(self, pod: str, what: str, script: str | Sequence[str], *, seconds: float = 120) -> None:
        """Nothing; a command is run in the pod, and what it says is kept."""
        words = ["sh", "-c", script] if isinstance(script, str) else list(script)
        command = {"namespace": self.home, "pod": pod, "words": words, "seconds": seconds}
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}}
        undo = {"nothing": "a command leaves nothing outside of its pod and volume"}
        self._add("run", whole, f"{what.capitalize()}, in the pod", {"exec": command, "what": what}, undo)

    def drop(self, kind: str, name: str, *see: Object) -> None:
        """Nothing; an object of the trial goes before the end."""
        whole = self._thing("v1", kind, name)
        marked = labelled(whole, self.run, "borrow")
        self._add("delete", whole, f"{kind} goes", {"delete": reference(marked)}, {"delete": reference(marked)}, *see)

    def thing(self, manifest: Object, summary: str, *see: Object, claims: Sequence[str] = ()) -> None:
        """Nothing; any other object is asked for."""
        self._make(manifest, summary, *see, claims=claims)

    def _thing(self, api_version: str, kind: str, name: str, **body: Any) -> Object:
        metadata = {"name": name, "namespace": self.home}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}

    def _make(self, manifest: Object, summary: str, *see: Object, claims: Sequence[str] = (), **more: Any) -> None:
        whole = labelled(manifest, self.run, "borrow")
        undo: Object = {"delete": reference(whole)}
        if claims:
            undo["claims"] = list(claims)
        self._add("create", whole, summary, {"manifest": whole}, undo, *see, **more)

    def _add(
        self, action: str, whole: Object, summary: str, request: Object, undo: Object, *see: Object, **more: Any
    ) -> None:
        metadata = {**whole["metadata"]}
        if whole["kind"] not in CLUSTER_WIDE:
            metadata.setdefault("namespace", self.home)
        target = target_of({**whole, "metadata": metadata})
        trial = {"name": self.trial, "class": self.case.name, "see": list(see)}
        after = {"spec": whole["spec"]} if "spec" in whole else request.get("body")
        told = f"{summary} ({self.trial}, {self.case.name})"
        given = {**request, "trial": trial, **more}
        self.changes.append(Change("", "kubernetes", action, target, told, ChangeKind.BORROW, given, None, after, undo))


CLUSTER_WIDE = frozenset({"StorageClass", "VolumeSnapshotClass", "Namespace"})


def home_of(site: Any, run: str) -> str:
    """The namespace of a run's trials; volumes are known by it when nothing else is left of them."""
    return f"{site.names.prefix}-csi-{run.lower()}"


def all_trials(site: Any, run: str, what: Setting, abilities: Iterable[Ability] = (), *, step: str = "32") -> Wanted:
    """Every trial of every class as one plan, with what cannot be tried and why."""
    able = {row.storage_class for row in abilities if row.possible}
    usable = [case for case in what.classes if not case.problems]
    problems: list[str] = []
    changes = [_home(site, run)]
    shared_first = sorted(usable, key=lambda case: not case.shared)
    for case in usable:
        first, second = pair(case, what.machines)
        if first is None:
            zones = ", ".join(case.zones) or "no Proxmox node"
            problems.append(f"{case.name}: no worker with the driver is on {zones}")
            continue
        once = case is next((each for each in shared_first if pair(each, what.machines)[0]), None)
        draft = (site, run, home_of(site, run))
        changes += follow(_Draft(*draft, "follow", case), first, second)
        changes += block(_Draft(*draft, "block", case), first)
        changes += retain(_Draft(*draft, "retain", case), first)
        changes += parallel(_Draft(*draft, "parallel", case), first)
        if once:
            changes += many(_Draft(*draft, "many", case), first)
            if second is not None and case.shared:
                changes += spread(_Draft(*draft, "set", case))
        if site.images.fio:
            changes += speed(_Draft(*draft, "speed", case), first)
        if case.name in able:
            changes += copies(_Draft(*draft, "copy", case), first, what)
        if once and site.csi.power_off:
            made, problem = _dead(_Draft(*draft, "dead", case), site.csi.power_off, what)
            changes += made
            problems += [problem] if problem else []
    if len(changes) == 1:
        return Wanted(problems=tuple(problems) or ("classes: there is none to try",))
    return Wanted(tuple(changes), problems=tuple(problems)).numbered(step)


def _home(site: Any, run: str) -> Change:
    labels = {f"pod-security.kubernetes.io/{mode}": "baseline" for mode in ("enforce", "audit", "warn")}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home_of(site, run), "labels": labels}}
    whole = labelled(manifest, run, "borrow")
    request, undo = {"manifest": whole, "cost": {"minutes": 10}}, {"delete": reference(whole)}
    why = "Namespace of the trials"
    return Change("", "kubernetes", "create", target_of(whole), why, ChangeKind.BORROW, request, None, {}, undo)


def follow(draft: _Draft, first: NodeMachine, second: NodeMachine | None) -> list[Change]:
    """A volume's whole life: it waits, is bound, written, read, grown, moved, read again, and freed with its claim."""
    claim = draft.claim("", {"stage": "waits", "claim": draft.named("")})
    one = draft.pod("one", claim, first.node, *_up(claim, draft.named("one"), first))
    draft.say(one, "write", WRITE)
    draft.say(one, "read", READ)
    draft.grow(claim, {"stage": "grown", "claim": claim, "bytes": 2 * draft.size, "node": first.node})
    draft.say(one, "size", SIZE)
    draft.drop("Pod", one, {"stage": "detached", "claim": claim, "node": first.node})
    to = second or first
    two = draft.pod("two", claim, to.node, *_up(claim, draft.named("two"), to)[1:])
    draft.say(two, "moved" if second else "again", READ)
    draft.drop("Pod", two, {"stage": "detached", "claim": claim, "node": to.node})
    draft.drop("PersistentVolumeClaim", claim, {"stage": "gone", "claim": claim})
    return draft.changes


def _up(claim: str, pod: str, node: NodeMachine) -> tuple[Object, Object, Object]:
    return (
        {"stage": "bound", "claim": claim, "node": node.node},
        {"stage": "attached", "claim": claim, "node": node.node},
        {"stage": "running", "pod": pod, "claim": claim, "node": node.node},
    )


def block(draft: _Draft, node: NodeMachine) -> list[Change]:
    """A volume as a device, without a file system."""
    claim = draft.claim("", volumeMode="Block")
    pod = draft.pod("one", claim, node.node, *_up(claim, draft.named("one"), node), block=True)
    draft.say(pod, "block", WRITE_BLOCK)
    draft.say(pod, "block size", SIZE_BLOCK)
    return draft.changes


def retain(draft: _Draft, node: NodeMachine) -> list[Change]:
    """A class that keeps disks: the claim goes, the disk stays, and goes when the volume is given back."""
    name = f"{draft.home}-{draft.case.name}"[:63].rstrip("-")
    manifest = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "parameters": dict(draft.case.parameters),
        "reclaimPolicy": "Retain",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
    draft.thing(manifest, "Class whose disks outlive their claims")
    claim = draft.claim("", storageClassName=name)
    pod = draft.pod("one", claim, node.node, *_up(claim, draft.named("one"), node))
    draft.drop("Pod", pod, {"stage": "detached", "claim": claim, "node": node.node})
    draft.drop("PersistentVolumeClaim", claim, {"stage": "kept", "claim": claim})
    return draft.changes


def parallel(draft: _Draft, node: NodeMachine) -> list[Change]:
    """Several claims and pods at once."""
    names = [draft.claim(f"{number}") for number in range(1, draft.site.csi.parallel + 1)]
    pods = []
    for number, claim in enumerate(names, start=1):
        last = number == len(names)
        pods.append(draft.named(f"pod-{number}"))
        wait = [see for c, p in zip(names, pods, strict=True) for see in _up(c, p, node)] if last else []
        draft.pod(f"pod-{number}", claim, "" if draft.case.shared else node.node, *(_loose(see) for see in wait))
    return draft.changes


def _loose(see: Object) -> Object:
    """The same without a node: wherever the scheduler has put it."""
    return {key: value for key, value in see.items() if key != "node"}


def many(draft: _Draft, node: NodeMachine) -> list[Change]:
    """A volume for several nodes at once, which this driver does not give."""
    claim = draft.claim("", accessModes=["ReadWriteMany"])
    draft.pod("one", claim, node.node, {"stage": "refused", "pod": draft.named("one"), "claim": claim})
    return draft.changes


def spread(draft: _Draft) -> list[Change]:
    """A StatefulSet whose pods keep apart: a volume each, on two nodes."""
    name, size = draft.named(""), f"{draft.site.csi.size_gib}Gi"
    labels = {"app": name, "runbook.cozystack.io/run": draft.run}
    spec = draft._pod_spec("")
    spec.pop("volumes")
    rule = {"labelSelector": {"matchLabels": {"app": name}}, "topologyKey": "kubernetes.io/hostname"}
    spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}}
    template = {
        "metadata": {"name": "data", "labels": labels},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": draft.case.name,
            "resources": {"requests": {"storage": size}},
        },
    }
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": draft.home},
        "spec": {
            "serviceName": name,
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "volumeClaimTemplates": [template],
        },
    }
    claims = [f"data-{name}-{number}" for number in range(2)]
    draft.thing(manifest, "Two pods that keep apart, a volume each", {"stage": "spread", "set": name}, claims=claims)
    return draft.changes


def speed(draft: _Draft, node: NodeMachine) -> list[Change]:
    """fio in a pod, each section of the job file several times."""
    jobs = draft.named("jobs")
    metadata = {"name": jobs, "namespace": draft.home}
    draft.thing(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"storage.fio": FIO_JOB}}, "Jobs"
    )
    claim, pod = draft.claim(""), draft.named("fio")
    spec = draft._pod_spec(claim, node.node, image=draft.site.images.fio)
    spec["volumes"].append({"name": "jobs", "configMap": {"name": jobs}})
    spec["containers"][0]["volumeMounts"].append({"name": "jobs", "mountPath": "/jobs"})
    spec["containers"][0]["resources"]["limits"]["memory"] = "1Gi"
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": draft.home}, "spec": spec}
    draft.thing(made, f"Pod with fio on {node.node}", *_up(claim, pod, node))
    for _ in range(FIO_RUNS):
        for section in FIO_SECTIONS:
            words = ["fio", "--output-format=json", f"--section={section}", "/jobs/storage.fio"]
            draft.say(pod, f"fio {section}", words, seconds=180)
    return draft.changes


def copies(draft: _Draft, node: NodeMachine, what: Setting) -> list[Change]:
    """A snapshot, a volume restored from it, and a clone: full copies, each with the pattern in it."""
    group = f"{kubernetes_storage.SNAPSHOTS}/v1"
    kind = f"{draft.home}-{draft.case.name}"[:63].rstrip("-")
    claim = draft.claim("")
    pod = draft.pod("one", claim, node.node, *_up(claim, draft.named("one"), node))
    draft.say(pod, "write", WRITE)
    manifest = {"apiVersion": group, "kind": "VolumeSnapshotClass", "metadata": {"name": kind}, "driver": DRIVER,
                "deletionPolicy": "Delete"}  # fmt: skip
    draft.thing(manifest, "Class of snapshots")
    shot = draft.named("shot")
    spec = {"volumeSnapshotClassName": kind, "source": {"persistentVolumeClaimName": claim}}
    metadata = {"name": shot, "namespace": draft.home}
    draft.thing({"apiVersion": group, "kind": "VolumeSnapshot", "metadata": metadata, "spec": spec},
                "Snapshot: a full copy of the disk", {"stage": "copied", "snapshot": shot})  # fmt: skip
    sources = {
        "restored": {"apiGroup": kubernetes_storage.SNAPSHOTS, "kind": "VolumeSnapshot", "name": shot},
        "cloned": {"kind": "PersistentVolumeClaim", "name": claim},
    }
    for name, origin in sources.items():
        copy = draft.claim(name, dataSource=origin)
        reader = draft.pod(f"{name}-pod", copy, node.node, *_up(copy, draft.named(f"{name}-pod"), node))
        draft.say(reader, name, READ)
    return draft.changes


def _dead(draft: _Draft, name: str, what: Setting) -> tuple[list[Change], str]:
    """A worker's VM is switched off with a volume attached; the volume is wanted elsewhere."""
    rows = {row.node: row for row in workers(what.machines)}
    dying = rows.get(name)
    others = [row for row in rows.values() if row.node != name and row.host in draft.case.zones]
    if dying is None or not others or not draft.case.shared or dying.control_plane:
        return [], f"{name}: not switched off; it must be a worker with the driver, another must have the same storage"
    claim = draft.claim("")
    one = draft.pod("one", claim, name, *_up(claim, draft.named("one"), dying))
    draft.say(one, "write", WRITE)
    path = f"/nodes/{dying.host}/qemu/{dying.vmid}"
    listed = {"path": f"/nodes/{dying.host}/qemu", "match": {"vmid": dying.vmid, "status": "stopped"}}
    undo = {"method": "POST", "path": f"{path}/status/start", "look": listed}
    see = [{"stage": "silent", "node": name, "seconds": DEAD_SECONDS}]
    request = {"method": "POST", "path": f"{path}/status/stop", "cost": {"minutes": 10},
               "trial": {"name": draft.trial, "class": draft.case.name, "see": see}}  # fmt: skip
    told = f"SWITCHES OFF VM {dying.vmid}, the node {name}, with a volume attached; started again at the end"
    after = {"status": "stopped"}
    draft.changes.append(
        Change("", "proxmox", "stop", path, told, ChangeKind.BORROW, request, {"status": "running"}, after, undo)
    )
    gone = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    force = {"method": "DELETE", "path": f"/api/v1/namespaces/{draft.home}/pods/{one}", "body": gone}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": one}}
    draft._add("delete", whole, "Pod on the dead node is given up", force, {"nothing": "it is gone"})
    to = others[0]
    see_up = [{**each, "seconds": DEAD_SECONDS} for each in _up(claim, draft.named("two"), to)[1:]]
    two = draft.pod("two", claim, to.node, *see_up)
    draft.say(two, "survived", READ)
    return draft.changes, ""


# --- the witness -------------------------------------------------------------------------------------


@dataclass
class Witness:
    """Looks after each change of a trial until what it is for is there, or the patience ends."""

    pve: Any
    k8s: Any
    what: Setting
    home: str
    seconds: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    seen: list[Seen] = field(default_factory=list)
    volumes: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # claim → (volume, volid, zone)
    _broken: set[str] = field(default_factory=set)

    def __call__(self, change: Change) -> None:
        """Nothing; what came of the change is among `seen`."""
        trial = change.request.get("trial") or {}
        began = self.clock()
        for see in trial.get("see") or ():
            subject = str(see.get("claim") or see.get("pod") or see.get("set") or see.get("node") or see["snapshot"])
            key = f"{trial['name']}/{trial['class']}/{see.get('claim', '')}"
            told, reached, vmid = "not waited for: an earlier state was not reached", False, None
            if key not in self._broken:
                reached, told, vmid = self._patiently(see, began)
                if not reached:
                    self._broken.add(key)
            self.seen.append(
                Seen(
                    trial=trial["name"],
                    storage_class=trial["class"],
                    stage=see["stage"],
                    subject=subject,
                    reached=reached,
                    seconds=round(self.clock() - began, 3),
                    told=told,
                    node=str(see.get("node", "")),
                    vmid=vmid,
                    change=change.id,
                )
            )

    def _patiently(self, see: Object, began: float) -> tuple[bool, str, int | None]:
        pause, limit = 0.02, began + float(see.get("seconds", self.seconds))
        look = getattr(self, f"_{see['stage']}")
        while True:
            try:
                reached, told, vmid = look(see)
            except RunbookError as error:
                reached, told, vmid = False, str(error), None
            if reached or self.clock() > limit:
                return reached, told if reached else self._why(see, told), vmid
            self.sleep(pause)
            pause = min(1.0, pause * 1.5)

    def _why(self, see: Object, told: str) -> str:
        """What the cluster says of a thing that did not come."""
        try:
            for kind, name in (("Pod", see.get("pod")), ("PersistentVolumeClaim", see.get("claim"))):
                events = kubernetes_storage.last_events(self.k8s, kind, self.home) if name else {}
                if found := events.get((self.home, str(name))):
                    return f"{told}; {found[0]}: {found[1]}"
        except RunbookError as error:
            return f"{told}; {error}"
        return told

    # -- one look each: (whether it is so, what was seen, the VM) ------------------------------------

    def _waits(self, see: Object) -> tuple[bool, str, int | None]:
        status = self._claim(see["claim"]).get("status") or {}
        return status.get("phase") == "Pending", f"{status.get('phase')} without a consumer", None

    def _bound(self, see: Object) -> tuple[bool, str, int | None]:
        claim = self._claim(see["claim"])
        if (claim.get("status") or {}).get("phase") != "Bound":
            return False, f"the claim is {(claim.get('status') or {}).get('phase')}", None
        volume = self.k8s.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        handle = (volume["spec"].get("csi") or {}).get("volumeHandle", "")
        _, zone, storage, disk = ([*handle.split("/", 3), "", "", "", ""])[:4]
        volid = f"{storage}:{disk}"
        self.volumes[see["claim"]] = (volume["metadata"]["name"], volid, zone)
        there = self._is_listed(volid, zone)
        return there, f"{volid} {'is' if there else 'is not'} in the storage's list", None

    def _attached(self, see: Object) -> tuple[bool, str, int | None]:
        name, volid, _ = self._volume(see)
        row = next((row for row in kubernetes_storage.attachments(self.k8s) if row.volume == name), None)
        if row is None or not row.attached:
            return False, (row.attach_error if row else "") or "the attachment is not made", None
        machine = self._machine(row.node)
        if see.get("node") and row.node != see["node"]:
            return False, f"it is attached to {row.node}", None
        slot = proxmox_disks.slot_in(self.pve, machine.host, int(machine.vmid or 0), volid)
        told = f"VM {machine.vmid} ({row.node}) has {volid} as {slot}" if slot else f"VM {machine.vmid} lacks {volid}"
        return bool(slot), told, machine.vmid

    def _running(self, see: Object) -> tuple[bool, str, int | None]:
        pod = self.k8s.find(f"/api/v1/namespaces/{self.home}/pods/{see['pod']}") or {}
        status = pod.get("status") or {}
        ready = any(row["type"] == "Ready" and row["status"] == "True" for row in status.get("conditions") or ())
        node = (pod.get("spec") or {}).get("nodeName", "")
        return status.get("phase") == "Running" and ready, f"{status.get('phase')} on {node or 'no node'}", None

    def _grown(self, see: Object) -> tuple[bool, str, int | None]:
        claim = self._claim(see["claim"])
        size = int(quantity(((claim.get("status") or {}).get("capacity") or {}).get("storage")))
        _, volid, zone = self._volume(see)
        listed = self._listed(volid, zone)
        reached = size >= see["bytes"] and (listed or 0) >= see["bytes"]
        return reached, f"claim {size / GIB:g} GiB, disk {(listed or 0) / GIB:g} GiB", None

    def _detached(self, see: Object) -> tuple[bool, str, int | None]:
        name, volid, _ = self._volume(see)
        rows = [row for row in kubernetes_storage.attachments(self.k8s) if row.volume == name]
        mine = [row for row in rows if not see.get("node") or row.node == see["node"]]
        if mine:
            return False, mine[0].detach_error or f"it is still attached to {mine[0].node}", None
        machine = self._machine(see["node"])
        slot = proxmox_disks.slot_in(self.pve, machine.host, int(machine.vmid or 0), volid)
        told = f"VM {machine.vmid} still has it as {slot}" if slot else f"VM {machine.vmid} no longer names {volid}"
        return not slot, told, machine.vmid

    def _gone(self, see: Object) -> tuple[bool, str, int | None]:
        name, volid, zone = self._volume(see)
        if self.k8s.find(f"/api/v1/persistentvolumes/{name}") is not None:
            return False, f"{name} is still there", None
        listed = self._is_listed(volid, zone)
        return not listed, f"{volid} is {'still' if listed else 'no longer'} in the storage's list", None

    def _kept(self, see: Object) -> tuple[bool, str, int | None]:
        name, volid, zone = self._volume(see)
        volume = self.k8s.find(f"/api/v1/persistentvolumes/{name}") or {}
        phase = (volume.get("status") or {}).get("phase", "gone")
        listed = self._is_listed(volid, zone)
        told = f"{name} is {phase}, {volid} is {'still' if listed else 'no longer'} there"
        return phase == "Released" and listed, told, None

    def _refused(self, see: Object) -> tuple[bool, str, int | None]:
        for kind, name in (("Pod", see["pod"]), ("PersistentVolumeClaim", see["claim"])):
            said = kubernetes_storage.last_events(self.k8s, kind, self.home).get((self.home, name), ("", ""))
            if REFUSED.search(said[1]):
                return True, f"{said[0]}: {said[1]}", None
        pod = self.k8s.find(f"/api/v1/namespaces/{self.home}/pods/{see['pod']}") or {}
        return False, f"the pod is {(pod.get('status') or {}).get('phase')}, and nobody refused it", None

    def _spread(self, see: Object) -> tuple[bool, str, int | None]:
        pods = self.k8s.list(f"/api/v1/namespaces/{self.home}/pods", labelSelector=f"app={see['set']}")
        up = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
        nodes = sorted({pod["spec"]["nodeName"] for pod in up})
        return len(up) == 2 and len(nodes) == 2, f"{len(up)} pods run on {', '.join(nodes) or 'no node'}", None

    def _copied(self, see: Object) -> tuple[bool, str, int | None]:
        path = f"/apis/{kubernetes_storage.SNAPSHOTS}/v1/namespaces/{self.home}/volumesnapshots/{see['snapshot']}"
        status = (self.k8s.find(path) or {}).get("status") or {}
        trouble = (status.get("error") or {}).get("message", "")
        return bool(status.get("readyToUse")), trouble or f"readyToUse {status.get('readyToUse')}", None

    def _silent(self, see: Object) -> tuple[bool, str, int | None]:
        node = self.k8s.get(f"/api/v1/nodes/{see['node']}")
        rows = (node.get("status") or {}).get("conditions") or ()
        ready = next((row["status"] for row in rows if row["type"] == "Ready"), "Unknown")
        return ready != "True", f"{see['node']} is Ready={ready}", None

    # -- parts ---------------------------------------------------------------------------------------

    def _claim(self, name: str) -> Object:
        found: Object = self.k8s.get(f"/api/v1/namespaces/{self.home}/persistentvolumeclaims/{name}")
        return found

    def _volume(self, see: Object) -> tuple[str, str, str]:
        if see["claim"] not in self.volumes:
            raise NotFound(f"the volume of {see['claim']}", "it was never bound")
        return self.volumes[see["claim"]]

    def _machine(self, node: str) -> NodeMachine:
        found = next((row for row in self.what.machines if row.node == node), None)
        if found is None or found.vmid is None:
            raise NotFound(f"the VM of {node}", "no VM has its uuid")
        return found

    def _listed(self, volid: str, zone: str) -> int | None:
        """The disk's size in its storage's list; None where it is not listed."""
        storage = volid.partition(":")[0]
        case = next((case for case in self.what.classes if case.storage == storage), None)
        node = zone or (case.zones[0] if case and case.zones else "")
        rows = self.pve.get(f"/nodes/{node}/storage/{storage}/content", content="images") or []
        return next((int(row.get("size") or 0) for row in rows if row["volid"] == volid), None)

    def _is_listed(self, volid: str, zone: str) -> bool:
        return self._listed(volid, zone) is not None


REFUSED = re.compile(r"VolumeCapability not supported|access mode|ReadWriteMany|MULTI_NODE|multi-?node", re.IGNORECASE)


def witness(pve: Any, k8s: Any, site: Any, run: str, what: Setting) -> Witness:
    """Who looks after each change of this run's trials."""
    return Witness(pve, k8s, what, home_of(site, run), float(site.csi.wait_seconds))


# --- what came of it ---------------------------------------------------------------------------------


def spoken(applied: Applied) -> list[Spoken]:
    """What each command in a pod said; nothing where nothing was sent."""
    rows = []
    for change in () if applied.refused else applied.plan.changes:
        if "exec" not in change.request:
            continue
        answer, trial = applied.answers.get(change.id) or {}, change.request["trial"]
        told = str(answer.get("output") or "") or str(answer.get("error") or "")
        pod = change.request["exec"]["pod"]
        rows.append(Spoken(trial["name"], trial["class"], change.request["what"], pod, answer.get("exit"), told))
    return rows


STAGES = {"bound": "claim to bound", "running": "pod start", "detached": "detach", "grown": "expand", "gone": "free"}


def timings(seen: Iterable[Seen], *, volume_seconds: float = 30, pod_seconds: float = 120) -> list[Measurement]:
    """How long each state took, by class, with every reading; those of states that were not reached count as errors.

    A pod's start is from its creation, so it holds the provisioning where the volume was new.
    """
    limits = {"claim to bound": volume_seconds, "pod start": pod_seconds}
    values: dict[tuple[str, str], list[float]] = {}
    errors: dict[tuple[str, str], int] = {}
    before: dict[str, Seen] = {}
    for row in seen:
        if row.trial in {"dead", "copy", "many"}:
            continue
        name, seconds = STAGES.get(row.stage, ""), row.seconds
        earlier = before.get(row.change)
        if row.stage == "attached":
            name, seconds = "attach", seconds - (earlier.seconds if earlier else 0.0)
        before[row.change] = row
        if not name or (row.trial == "parallel" and name != "pod start"):
            continue
        if row.trial == "parallel":
            name = "pod start, several at once"
        key = (name, row.storage_class)
        if row.reached:
            values.setdefault(key, []).append(max(seconds, 0.0))
        else:
            errors[key] = errors.get(key, 0) + 1
    return [
        Measurement(
            name,
            "s",
            tuple(values.get((name, kind), ())),
            subject=kind,
            threshold=limits.get(name),
            errors=errors.get((name, kind), 0),
        )
        for name, kind in dict.fromkeys((*values, *errors))
    ]


def throughput(said: Iterable[Spoken]) -> list[Measurement]:
    """What fio measured, by class and section: operations a second of small blocks, MiB/s of large ones."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in said:
        if row.trial != "speed" or row.code != 0:
            continue
        for name, unit, value in _fio(row):
            values.setdefault((name, unit, row.storage_class), []).append(value)
    return [Measurement(name, unit, tuple(found), subject=kind) for (name, unit, kind), found in values.items()]


def _fio(row: Spoken) -> Iterator[tuple[str, str, float]]:
    section = row.what.removeprefix("fio ")
    try:
        report = json.loads(row.output[row.output.index("{") :])
        job = report["jobs"][0]
        side = job["write" if "write" in section else "read"]
        rate, width = float(side["iops"]), float(side["bw_bytes"])
    except (ValueError, LookupError, TypeError):
        return
    if section.endswith("4k"):
        yield f"fio {section}", "IOPS", rate
    else:
        yield f"fio {section}", "MiB/s", width / 1024**2


def before(runs: Iterable[Any], step: str = "32") -> list[Measurement]:
    """What the last finished run of the step measured; nothing where there was none."""
    for run in runs:
        for record in run.steps:
            if record.step == step and record.result and record.result.measurements:
                return list(record.result.measurements)
    return []
