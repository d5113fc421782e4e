"""The workload of step 43: its whole life as one plan, all of it borrowed, with a client that asks all the while.

A Deployment behind a Service, and a StatefulSet whose volumes are disks in Proxmox VE. A witness looks after each
change until what it is for is there on both sides, and notes how far the client had come. So what the client was told
is known by stage, from its own count, and no two clocks have to agree.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runbook_lib import kubernetes_storage, kubernetes_workload, proxmox_disks, volumes
from runbook_lib.csi import DRIVER, Setting
from runbook_lib.errors import NotFound, RunbookError
from runbook_lib.executors import labelled, reference, target_of
from runbook_lib.facts import Ability, ClassCase, NodeMachine, Request, Spoken, Stage, Window
from runbook_lib.kubernetes_workload import Doors
from runbook_lib.model import Change, ChangeKind, Measurement
from runbook_lib.plan import Applied
from runbook_lib.prepare import Wanted
from runbook_lib.reachability import outcome_of

Object = dict[str, Any]

PORT = 8080
WEB, DATA, CLIENT = "web", "data", "client"
REPLICAS, MORE_REPLICAS, DATA_REPLICAS = 3, 5, 2
DRAIN_SECONDS = 5
"""How long a pod that is to end goes on serving, so that every node has heard that it is no endpoint any more."""

GIVEN_UP_SECONDS = 30
"""How long a pod stays bound to a node that fell silent. Kubernetes' own default is 300."""

STAGE_SECONDS, JOB_SECONDS, SETTLE_SECONDS = 300.0, 180.0, 5
LEAST_REQUESTS = 3
"""Requests that the client makes at least during each stage."""

ASK = "curl -s -o /dev/null -m 2 -w '%{http_code} %{time_total}'"

CLUSTER_WIDE = frozenset({"VolumeSnapshotClass", "Namespace"})
OUTSIDE, ROUTED = "load balancer", "ingress"


def home_of(site: Any, run: str) -> str:
    """The namespace of a run's workload; volumes are known by it when nothing else is left of them."""
    return f"{site.names.prefix}-e2e-{run.lower()}"


# --- what the site can give --------------------------------------------------------------------------


def doors(k8s: Any) -> Doors:
    """What leads into the cluster from outside."""
    return kubernetes_workload.doors(k8s)


def storage_for(what: Setting) -> tuple[ClassCase | None, str]:
    """The class for the StatefulSet, and why there is none. One on a shared storage is taken first: it moves."""
    fit = [case for case in what.classes if not case.problems and case.made]
    if not fit:
        return None, "volumes: no StorageClass of the Proxmox driver is there; step 32 makes them"
    ordered = sorted(fit, key=lambda case: (not case.shared, case.name))
    for case in ordered:
        if any(row.host in case.zones for row in volumes.workers(what.machines)):
            return case, ""
    return None, "volumes: no worker with the driver is in a zone of any class; see step 32"


def client_node(machines: Iterable[NodeMachine], spare: Iterable[str] = ()) -> str:
    """The node that the client runs on: ready, and none of those that an experiment takes away; "" for any."""
    fit = [row for row in machines if row.ready == "True" and row.schedulable]
    away = set(spare)
    ordered = sorted(fit, key=lambda row: (row.node in away, not row.control_plane, row.node))
    return ordered[0].node if ordered else ""


# --- the plan ----------------------------------------------------------------------------------------


@dataclass
class Draft:
    """Changes in the making. A class because every part adds to the same list, with the same run and namespace."""

    site: Any
    run: str
    home: str
    stage: str = ""
    changes: list[Change] = field(default_factory=list)

    def make(
        self, manifest: Object, summary: str, *see: Object, action: str = "create", claims: Iterable[str] = (),
        **request: Any,
    ) -> None:  # fmt: skip
        """Nothing; an object is asked for, or asked to be otherwise, and looked after until `see` is so."""
        metadata = dict(manifest["metadata"])
        if manifest["kind"] not in CLUSTER_WIDE:
            metadata.setdefault("namespace", self.home)
        whole = labelled({**manifest, "metadata": metadata}, self.run, "borrow")
        undo: Object = {"delete": reference(whole)}
        if held := list(claims):
            undo["claims"] = held
        after = {key: value for key, value in whole.items() if key in {"spec", "data"}}
        self.add("kubernetes", action, target_of(whole), summary, {"manifest": whole, **request}, after, undo, *see)

    def drop(self, api_version: str, kind: str, name: str, summary: str, *see: Object) -> None:
        """Nothing; an object goes before the end."""
        metadata: Object = {"name": name} if kind in CLUSTER_WIDE else {"name": name, "namespace": self.home}
        whole = {"apiVersion": api_version, "kind": kind, "metadata": metadata}
        undo = {"nothing": "whoever owns it makes another"}
        self.add("kubernetes", "delete", target_of(whole), summary, {"delete": whole}, {}, undo, *see)

    def say(self, pod: str, what: str, script: str | list[str], *see: Object, seconds: float = 120) -> None:
        """Nothing; a command is run in the pod, and what it says is kept."""
        words = ["sh", "-c", script] if isinstance(script, str) else script
        command = {"namespace": self.home, "pod": pod, "words": words, "seconds": seconds}
        undo = {"nothing": "a command leaves nothing outside of its pod and volume"}
        target = f"v1/Pod/{self.home}/{pod}"
        self.add("kubernetes", "run", target, f"{what.capitalize()}, in the pod", {"exec": command, "what": what},
                 {"command": " ".join(words)[:200]}, undo, *see)  # fmt: skip

    def add(
        self, system: str, action: str, target: str, summary: str, request: Object, after: Object, undo: Object | None,
        *see: Object, before: Object | None = None,
    ) -> None:  # fmt: skip
        """Nothing; one change more, with the stage that it belongs to."""
        trial = {"name": self.stage, "class": "", "see": list(see)}
        self.changes.append(
            Change(
                "", system, action, target, f"{summary} ({self.stage})", ChangeKind.BORROW,
                {**request, "trial": trial}, before, after, undo,
            )
        )  # fmt: skip


def container(site: Any, name: str, script: str = "", args: list[str] | None = None, **more: Any) -> Object:
    """A container of the probe image that passes the `baseline` Pod Security level."""
    found: Object = {
        "name": name,
        "image": site.images.probe,
        "imagePullPolicy": site.images.pull_policy,
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **more,
    }
    if script:
        found["command"] = ["/bin/sh", "-c", script]
    if args:
        found["args"] = args
    return found


def _given_up() -> list[Object]:
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": GIVEN_UP_SECONDS} for key in keys
    ]


def _apart(app: str) -> Object:
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}
    rule = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [rule]}}


def config_map(text: str) -> Object:
    """What the web server is configured with."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": WEB}, "data": {"greeting": text}}


def deployment(site: Any, *, release: str, greeting: str, replicas: int) -> Object:
    """The web server: it says its release and its greeting when it starts, and then serves.

    A pod that is to end goes on serving for a while; no pod ends before another is ready in its place.
    """
    script = f'echo "release $RELEASE"; cat /config/greeting; exec /agnhost netexec --http-port={PORT}'
    box = container(
        site, "web", script,
        env=[{"name": "RELEASE", "value": release}],
        ports=[{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        readinessProbe={"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 2, "failureThreshold": 2},
        lifecycle={"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}},
        volumeMounts=[{"name": "config", "mountPath": "/config"}],
    )  # fmt: skip
    # A roll-out follows a change of the configuration because the template names its digest.
    digest = hashlib.sha256(greeting.encode()).hexdigest()[:12]
    template = {
        "metadata": {"labels": {"app": WEB}, "annotations": {"runbook.cozystack.io/config": digest}},
        "spec": {
            "containers": [box],
            "volumes": [{"name": "config", "configMap": {"name": WEB}}],
            "affinity": _apart(WEB),
            "tolerations": _given_up(),
            "terminationGracePeriodSeconds": 2 * DRAIN_SECONDS,
            "automountServiceAccountToken": False,
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": WEB},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": WEB}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": template,
        },
    }


def service(name: str = WEB, **spec: Any) -> Object:
    """The Service in front of the web server."""
    ports = [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": WEB}, "ports": ports, **spec},
    }


def client(site: Any, node: str) -> Object:
    """The pod that asks twice a second, and writes how each request ended beside its number."""
    script = f'n=0; while true; do n=$((n+1)); echo "$n $({ASK} http://{WEB}:{PORT}/)"; sleep 0.5; done'
    spec: Object = {
        "containers": [container(site, CLIENT, script)],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": CLIENT, "labels": {"app": CLIENT, "role": CLIENT}},
        "spec": spec,
    }


def stateful_set(site: Any, case: ClassCase) -> Object:
    """Two pods, each with a volume of its own in Proxmox VE."""
    box = container(site, DATA, volumeMounts=[{"name": DATA, "mountPath": "/data"}])
    box["command"] = ["sleep", "86400"]
    claim = {
        "metadata": {"name": DATA},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": case.name,
            "resources": {"requests": {"storage": f"{site.csi.size_gib}Gi"}},
        },
    }
    spec = {
        "containers": [box],
        "affinity": _apart(DATA),
        "tolerations": _given_up(),
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": DATA},
        "spec": {
            "serviceName": DATA,
            "replicas": DATA_REPLICAS,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": DATA}},
            "template": {"metadata": {"labels": {"app": DATA}}, "spec": spec},
            "volumeClaimTemplates": [claim],
        },
    }


def claims_of_set() -> list[str]:
    """The names of the StatefulSet's claims."""
    return [f"{DATA}-{DATA}-{number}" for number in range(DATA_REPLICAS)]


def job(site: Any, name: str, script: str, *, role: str, parallelism: int = 1) -> Object:
    """A Job whose log tells how what it tried ended."""
    spec: Object = {
        "containers": [container(site, "try", script)],
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(JOB_SECONDS),
            "parallelism": parallelism,
            "completions": parallelism,
            "template": {"metadata": {"labels": {"role": role}}, "spec": spec},
        },
    }


def policy() -> Object:
    """Only the client may reach the web server."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": WEB},
        "spec": {
            "podSelector": {"matchLabels": {"app": WEB}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"role": CLIENT}}}],
                    "ports": [{"protocol": "TCP", "port": PORT}],
                }
            ],
        },
    }


def life(
    site: Any,
    run: str,
    what: Setting,
    *,
    doors: Doors | None = None,
    abilities: Iterable[Ability] = (),
    spare: Iterable[str] = (),
    step: str = "43",
) -> Wanted:
    """The workload's life but for its end as one plan, with what cannot be tried and why.

    The end is the clean-up, which proves that nothing is left. `spare` are nodes that experiments take away.
    """
    doors = doors or Doors()
    case, problem = storage_for(what)
    problems = [problem] if problem else []
    if not any(row.ready == "True" and row.schedulable for row in what.machines):
        return Wanted(problems=("nodes: none is ready and schedulable",))
    draft = Draft(site, run, home_of(site, run))
    _begin(draft, client_node(what.machines, spare))
    if case is not None:
        _with_data(draft, case)
    problems += _doors(draft, doors)
    _closed(draft)
    _changed(draft)
    if case is not None:
        _again(draft)
        problems += _copied(draft, case, list(abilities))
    return Wanted(tuple(draft.changes), problems=tuple(problems)).numbered(step)


def _begin(draft: Draft, node: str) -> None:
    site = draft.site
    draft.stage = "deploy"
    labels = {f"pod-security.kubernetes.io/{mode}": "baseline" for mode in ("enforce", "audit", "warn")}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": draft.home, "labels": labels}}
    draft.make(space, "Namespace of the workload", cost={"minutes": 10})
    draft.make(config_map("greeting 1\n"), "What the web server is configured with")
    draft.make(service(), "Service in front of it")
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": WEB},
              "spec": {"minAvailable": REPLICAS - 1, "selector": {"matchLabels": {"app": WEB}}}}  # fmt: skip
    draft.make(budget, f"{REPLICAS - 1} of them stay, whatever is evicted")
    whole = deployment(site, release="1", greeting="greeting 1\n", replicas=REPLICAS)
    draft.make(whole, f"Web server, {REPLICAS} pods", _rolled(), _behind(REPLICAS), _speaks("release 1"))
    draft.stage = CLIENT
    see = {"stage": "running", "pod": CLIENT}, {"stage": "answered"}
    draft.make(client(site, node), f"Client that asks twice a second{f', on {node}' if node else ''}", *see)


def _rolled() -> Object:
    return {"stage": "rolled", "deployment": WEB}


def _behind(count: int) -> Object:
    return {"stage": "behind", "service": WEB, "count": count}


def _speaks(words: str) -> Object:
    return {"stage": "speaks", "deployment": WEB, "words": words}


def _with_data(draft: Draft, case: ClassCase) -> None:
    draft.stage = "volumes"
    headless = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": DATA},
                "spec": {"clusterIP": "None", "selector": {"app": DATA}, "ports": [{"port": 80}]}}  # fmt: skip
    draft.make(headless, "Names of the pods with volumes")
    see = [{"stage": "set", "set": DATA}]
    see += [{"stage": stage, "claim": claim} for claim in claims_of_set() for stage in ("bound", "attached")]
    gib = DATA_REPLICAS * draft.site.csi.size_gib
    summary = f"{DATA_REPLICAS} pods, each with a volume of {case.name}"
    draft.make(stateful_set(draft.site, case), summary, *see, claims=claims_of_set(), cost={"gib": gib})
    for number in range(DATA_REPLICAS):
        draft.say(f"{DATA}-{number}", "write", volumes.WRITE)


def _doors(draft: Draft, doors: Doors) -> list[str]:
    problems = []
    draft.stage = OUTSIDE
    path = f"/api/v1/namespaces/{draft.home}/services/{WEB}-outside"
    if doors.pools:
        made = service(f"{WEB}-outside", type="LoadBalancer")
        draft.make(made, "An address of the load balancer", {"stage": "addressed", "path": path})
        _knock(draft, "knock-balancer", "<address>", path)
    else:
        problems.append(f"{OUTSIDE}: the site has no pool of addresses (metallb.io IPAddressPool)")
    draft.stage = ROUTED
    if doors.ingress_classes:
        host = f"{draft.home}.example.org"
        backend = {"service": {"name": WEB, "port": {"name": "http"}}}
        rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
        spec = {"ingressClassName": doors.ingress_classes[0], "rules": [rule]}
        made = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": WEB}, "spec": spec}
        path = f"/apis/networking.k8s.io/v1/namespaces/{draft.home}/ingresses/{WEB}"
        draft.make(made, f"A host name at the ingress {doors.ingress_classes[0]}", {"stage": "addressed", "path": path})
        _knock(draft, "knock-ingress", "<address>", path, port=80, host=host)
    else:
        problems.append(f"{ROUTED}: the site has no IngressClass")
    return problems


def _knock(draft: Draft, name: str, address: str, path: str, *, port: int = PORT, host: str = "") -> None:
    named = f" -H 'Host: {host}'" if host else ""
    script = f'echo "1 $({ASK}{named} http://{address}:{port}/)"'
    draft.make(job(draft.site, name, script, role=CLIENT), "Asks at that address",
               {"stage": "served", "job": name}, fill={"address": [path, "ingress"]})  # fmt: skip


def _stranger(draft: Draft, name: str, hope: str) -> None:
    script = f'sleep {SETTLE_SECONDS}; echo "tried $(/agnhost connect {WEB}:{PORT} --timeout=3s --protocol=tcp 2>&1)"'
    summary = f"A pod that is no client tries to connect; it should be {hope}"
    draft.make(job(draft.site, name, script, role="stranger"), summary, {"stage": "tried", "job": name, "hope": hope})


def _closed(draft: Draft) -> None:
    draft.stage = "policy"
    _stranger(draft, "stranger-before", "open")
    draft.make(policy(), "Only the client may reach the web server")
    _stranger(draft, "stranger-after", "closed")


def _changed(draft: Draft) -> None:
    site, first, second = draft.site, "greeting 1\n", "greeting 2\n"
    see = (_rolled(), _behind(REPLICAS))
    draft.stage = "rolling update"
    whole = deployment(site, release="2", greeting=first, replicas=REPLICAS)
    draft.make(whole, "The next release, pod after pod", *see, _speaks("release 2"), action="update")
    draft.stage = "scale out"
    whole = deployment(site, release="2", greeting=first, replicas=MORE_REPLICAS)
    draft.make(whole, f"{MORE_REPLICAS} pods", _rolled(), _behind(MORE_REPLICAS), action="update")
    draft.stage = "scale in"
    whole = deployment(site, release="2", greeting=first, replicas=REPLICAS)
    draft.make(whole, f"{REPLICAS} pods again", *see, action="update")
    draft.stage = "configuration"
    draft.make(config_map(second), "Another greeting", action="update")
    whole = deployment(site, release="2", greeting=second, replicas=REPLICAS)
    draft.make(whole, "Rolled out, because its digest changed", *see, _speaks("greeting 2"), action="update")


def _again(draft: Draft) -> None:
    draft.stage = "restart"
    see = {"stage": "renewed", "pod": f"{DATA}-0", "set": DATA}
    draft.drop("v1", "Pod", f"{DATA}-0", "A pod with a volume goes; its set makes it again", see)
    draft.say(f"{DATA}-0", "read", volumes.READ)


def _copied(draft: Draft, case: ClassCase, abilities: list[Ability]) -> list[str]:
    draft.stage = "backup"
    able = next((row for row in abilities if row.storage_class == case.name), None)
    if able is None or not able.possible:
        why = able.why if able else "nothing is known of its class"
        return [f"backup: {case.name} copies no volume; {why}"]
    group, kind = f"{kubernetes_storage.SNAPSHOTS}/v1", f"{draft.home}"[:63]
    draft.make({"apiVersion": group, "kind": "VolumeSnapshotClass", "metadata": {"name": kind}, "driver": DRIVER,
                "deletionPolicy": "Delete"}, "Class of snapshots")  # fmt: skip
    source = {"persistentVolumeClaimName": claims_of_set()[0]}
    draft.make({"apiVersion": group, "kind": "VolumeSnapshot", "metadata": {"name": "backup"},
                "spec": {"volumeSnapshotClassName": kind, "source": source}},
               "Backup of the first volume: a full copy", {"stage": "copied", "snapshot": "backup"})  # fmt: skip
    # What is written after the backup must not be in what is restored of it.
    draft.say(f"{DATA}-0", "spoil", "rm /data/pattern /data/pattern.sha256 && sync && ls /data")
    origin = {"apiGroup": kubernetes_storage.SNAPSHOTS, "kind": "VolumeSnapshot", "name": "backup"}
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": case.name, "dataSource": origin,
            "resources": {"requests": {"storage": f"{draft.site.csi.size_gib}Gi"}}}  # fmt: skip
    draft.make({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "restored"}, "spec": spec},
               "A volume restored of it", claims=["restored"], cost={"gib": draft.site.csi.size_gib})  # fmt: skip
    box = container(draft.site, "reader", volumeMounts=[{"name": DATA, "mountPath": "/data"}])
    box["command"] = ["sleep", "86400"]
    body = {"containers": [box], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False,
            "volumes": [{"name": DATA, "persistentVolumeClaim": {"claimName": "restored"}}]}  # fmt: skip
    draft.make({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"}, "spec": body},
               "Pod that reads it", {"stage": "running", "pod": "reader"})  # fmt: skip
    draft.say("reader", "restored", volumes.READ)
    return []


# --- the witness -------------------------------------------------------------------------------------


@dataclass
class Witness:
    """Looks after each change until what it is for is there, or the patience ends, and reads the client's count."""

    pve: Any
    k8s: Any
    what: Setting
    home: str
    seconds: float = STAGE_SECONDS
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    stages: list[Stage] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)  # (stage, the client's number at its end)
    volumes: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # claim → (volume, volid, zone)
    _broken: set[str] = field(default_factory=set)
    _uids: dict[str, str] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)

    def __call__(self, change: Change) -> None:
        """Nothing; what came of the change is among `stages`, and how far the client had come among `marks`."""
        trial = change.request.get("trial") or {}
        began = self.clock()
        for see in trial.get("see") or ():
            self.stages.append(self._stage(change, trial["name"], see, began))
        self._mark(trial.get("name", ""))

    def _stage(self, change: Change, name: str, see: Mapping[str, Any], began: float) -> Stage:
        if name in self._broken:
            return Stage(name, _words(see), False, 0.0, "not waited for: an earlier state was not reached", change.id)
        reached, told = self._patiently(see, began)
        if not reached:
            self._broken.add(name)
        return Stage(name, _words(see), reached, round(self.clock() - began, 3), told, change.id)

    def _patiently(self, see: Mapping[str, Any], began: float) -> tuple[bool, str]:
        pause, limit = 0.05, began + float(see.get("seconds", self.seconds))
        look = getattr(self, f"_{see['stage']}")
        while True:
            try:
                reached, told = look(see)
            except RunbookError as error:
                reached, told = False, str(error)
            if reached or self.clock() > limit:
                return reached, told if reached else self._why(see, told)
            self.sleep(pause)
            pause = min(1.0, pause * 1.5)

    def _why(self, see: Mapping[str, Any], told: str) -> str:
        """What the cluster says of a thing that did not come: the last warning about its pods."""
        try:
            events = kubernetes_storage.last_events(self.k8s, "Pod", self.home)
        except RunbookError as error:
            return f"{told}; {error}"
        wanted = str(see.get("pod") or see.get("deployment") or see.get("set") or see.get("claim") or "")
        said = sorted({f"{reason}: {message}" for (_, name), (reason, message) in events.items()
                       if wanted and name.startswith(wanted) and reason not in USUAL})  # fmt: skip
        return "; ".join([told, *said[:3]])

    def _mark(self, stage: str) -> None:
        """Nothing; the client has made a few requests since the stage began, or does not run yet."""
        began = next((number for other, number in reversed(self.marks) if other != stage), 0)
        until, number = self.clock() + 10.0, self.asked()
        while self.marks and number - began < LEAST_REQUESTS and self.clock() < until:
            self.sleep(0.1)
            number = self.asked()
        if number:
            self.marks.append((stage, number))

    def asked(self) -> int:
        """The number of the client's last request; 0 where it does not run."""
        try:
            rows = kubernetes_workload.requests(self.k8s.logs(self.home, CLIENT, tail=2))
        except RunbookError:
            return 0
        return rows[-1].number if rows else 0

    # -- one look each: (whether it is so, what was seen) ---------------------------------------------

    def _rolled(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        path = f"/apis/apps/v1/namespaces/{self.home}/deployments/{see['deployment']}"
        row = kubernetes_workload.rollout(self.k8s.get(path))
        told = f"{row.available} of {row.wanted} pods are ready, {row.updated} of the newest spec, {row.total} in all"
        return row.done, told

    def _behind(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        found = kubernetes_workload.endpoints(self.k8s, self.home, see["service"])
        return len(found) == see["count"], f"{len(found)} endpoints are ready"

    def _speaks(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        pods = [p for p in kubernetes_workload.pods_of(self.k8s, self.home, see["deployment"]) if
                kubernetes_workload.is_ready(p)]  # fmt: skip
        said = [self.k8s.logs(self.home, pod["metadata"]["name"]) for pod in pods]
        mine = sum(see["words"] in text for text in said)
        return bool(pods) and mine == len(pods), f"{mine} of {len(pods)} pods say {see['words']!r}"

    def _running(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        pod = self.k8s.find(f"/api/v1/namespaces/{self.home}/pods/{see['pod']}") or {"metadata": {}}
        phase = (pod.get("status") or {}).get("phase", "not there")
        return phase == "Running" and kubernetes_workload.is_ready(pod), f"the pod is {phase}"

    def _answered(self, _: Mapping[str, Any]) -> tuple[bool, str]:
        rows = kubernetes_workload.requests(self.k8s.logs(self.home, CLIENT, tail=5))
        good = [row for row in rows if not row.failed]
        return bool(good), f"{len(good)} of the last {len(rows)} requests were answered"

    def _set(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        row = kubernetes_workload.rollout(
            self.k8s.get(f"/apis/apps/v1/namespaces/{self.home}/statefulsets/{see['set']}")
        )
        done = row.seen and row.available == row.wanted
        if done:  # so that another pod of the same name is known as another
            self._uids |= {pod["metadata"]["name"]: pod["metadata"]["uid"]
                           for pod in kubernetes_workload.pods_of(self.k8s, self.home, see["set"])}  # fmt: skip
        return done, f"{row.available} of {row.wanted} pods are ready"

    def _renewed(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        pod = self.k8s.find(f"/api/v1/namespaces/{self.home}/pods/{see['pod']}") or {"metadata": {}}
        if pod["metadata"].get("uid") in {None, self._uids.get(see["pod"])}:
            return False, "the old pod is still there" if pod["metadata"] else "its pod is not there"
        if not kubernetes_workload.is_ready(pod):
            return False, f"the new pod is {(pod.get('status') or {}).get('phase')}"
        return self._set(see)

    def _bound(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        claim = self.k8s.get(f"/api/v1/namespaces/{self.home}/persistentvolumeclaims/{see['claim']}")
        phase = (claim.get("status") or {}).get("phase")
        if phase != "Bound":
            return False, f"the claim is {phase}"
        volume = self.k8s.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        handle = (volume["spec"].get("csi") or {}).get("volumeHandle", "")
        _, zone, storage, disk = ([*handle.split("/", 3), "", "", "", ""])[:4]
        volid = f"{storage}:{disk}"
        self.volumes[see["claim"]] = (volume["metadata"]["name"], volid, zone)
        there = self.is_listed(volid, zone)
        return there, f"{volid} {'is' if there else 'is not'} in the storage's list"

    def _attached(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        name, volid, _ = self._volume(see["claim"])
        row = next((row for row in kubernetes_storage.attachments(self.k8s) if row.volume == name and row.attached),
                   None)  # fmt: skip
        if row is None:
            return False, "the attachment is not made"
        machine = next((each for each in self.what.machines if each.node == row.node), None)
        if machine is None or machine.vmid is None:
            return False, f"{row.node} is no VM"
        slot = proxmox_disks.slot_in(self.pve, machine.host, machine.vmid, volid)
        told = f"VM {machine.vmid} ({row.node}) has {volid} as {slot}" if slot else f"VM {machine.vmid} lacks {volid}"
        return bool(slot), told

    def _addressed(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        status = (self.k8s.get(see["path"]).get("status") or {}).get("loadBalancer") or {}
        rows = [str(row.get("ip") or row.get("hostname") or "") for row in status.get("ingress") or ()]
        return bool(rows), f"its address is {rows[0]}" if rows else "it has no address"

    def _served(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        rows = kubernetes_workload.requests("\n".join(kubernetes_workload.job_log(self.k8s, self.home, see["job"])))
        return any(not row.failed for row in rows), f"answered with {rows[0].code}" if rows else "nothing was said yet"

    def _refused(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        rows = self.k8s.list(f"/api/v1/namespaces/{self.home}/events",
                             fieldSelector=f"involvedObject.name={see['claim']}")  # fmt: skip
        said = [str(row.get("message") or "") for row in rows if row.get("reason") == "ProvisioningFailed"
                or (row.get("reason") == "FailedScheduling" and "free storage" in str(row.get("message")))]  # fmt: skip
        return bool(said), said[-1] if said else "nobody has refused it yet"

    def _held(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        began = self._since.setdefault(see["claim"], self.clock())
        path = f"/api/v1/namespaces/{self.home}/persistentvolumeclaims/{see['claim']}"
        phase = (self.k8s.get(path).get("status") or {}).get("phase")
        over = self.clock() - began >= float(see["for"])
        return over and phase != "Bound", f"the claim is {phase} after {self.clock() - began:.0f} s"

    def _again(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        thing = self.k8s.get(f"/apis/apps/v1/namespaces/{see['namespace']}/deployments/{see['of']}")
        old = [name for name in see["pods"] if self.k8s.find(f"/api/v1/namespaces/{see['namespace']}/pods/{name}")]
        row = kubernetes_workload.rollout(thing)
        told = f"{row.available} of {row.wanted} pods are ready, {len(old)} of the old ones are left"
        return row.done and not old, told

    def _elsewhere(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        pods = kubernetes_workload.pods_of(self.k8s, self.home, see["deployment"])
        away = [pod for pod in pods if kubernetes_workload.is_ready(pod) and pod["spec"].get("nodeName") != see["node"]]
        return len(away) >= see["count"], f"{len(away)} of {see['count']} pods are ready away from {see['node']}"

    def _node(self, name: str) -> str:
        rows = (self.k8s.get(f"/api/v1/nodes/{name}").get("status") or {}).get("conditions") or ()
        return next((str(row["status"]) for row in rows if row["type"] == "Ready"), "")

    def _silent(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        ready = self._node(see["node"])
        return ready != "True", f"the node's Ready is {ready}"

    def _back(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        ready = self._node(see["node"])
        if ready != "True":
            return False, f"the node's Ready is {ready}"
        lost = [name for name in kubernetes_workload.unready_on(self.k8s, see["node"]) if name not in see["spare"]]
        told = f"{len(lost)} of its pods are not ready, {lost[0]} first" if lost else "its pods are ready"
        return not lost, f"the node's Ready is {ready}, and {told}"

    def _ended(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        job = self.k8s.get(f"/apis/batch/v1/namespaces/{self.home}/jobs/{see['job']}")
        status = job.get("status") or {}
        told = f"{status.get('succeeded') or 0} of {job['spec'].get('completions', 1)} pods are done"
        return any(
            row["type"] == "Complete" and row["status"] == "True" for row in status.get("conditions") or ()
        ), told

    def _tried(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        lines = kubernetes_workload.job_log(self.k8s, self.home, see["job"])
        said = next((line for line in lines if line.startswith("tried")), None)
        if said is None:
            return False, "nothing was tried yet"
        outcome = outcome_of(said.removeprefix("tried").strip())[0]
        state = {"connected": "open", "timeout": "closed", "refused": "closed"}.get(outcome, outcome)
        return state == see["hope"], f"it is {state} ({outcome}), and should be {see['hope']}"

    def _copied(self, see: Mapping[str, Any]) -> tuple[bool, str]:
        path = f"/apis/{kubernetes_storage.SNAPSHOTS}/v1/namespaces/{self.home}/volumesnapshots/{see['snapshot']}"
        status = (self.k8s.find(path) or {}).get("status") or {}
        trouble = (status.get("error") or {}).get("message", "")
        return bool(status.get("readyToUse")), trouble or f"readyToUse {status.get('readyToUse')}"

    # -- parts ----------------------------------------------------------------------------------------

    def _volume(self, claim: str) -> tuple[str, str, str]:
        if claim not in self.volumes:
            raise NotFound(f"the volume of {claim}", "it was never bound")
        return self.volumes[claim]

    def is_listed(self, volid: str, zone: str) -> bool:
        """Whether the disk is in its storage's list, asked of a node that has the storage."""
        storage = volid.partition(":")[0]
        case = next((case for case in self.what.classes if case.storage == storage), None)
        node = zone or (case.zones[0] if case and case.zones else "")
        rows = self.pve.get(f"/nodes/{node}/storage/{storage}/content", content="images") or []
        return any(row["volid"] == volid for row in rows)


USUAL = frozenset({"Scheduled", "Pulled", "Pulling", "Created", "Started", "Killing", "SuccessfulAttachVolume"})
"""Events of a pod that goes well."""


RECOVERED = "recovered: "
"""How the states begin that tell that an experiment is over."""


def _words(see: Mapping[str, Any]) -> str:
    told = {
        "refused": "{claim} is refused", "held": "{claim} waits", "again": "other pods of {of}",
        "elsewhere": "{count} pods of {deployment} away from {node}", "silent": "{node} is given up",
        "back": "{node} is ready",
        "rolled": "roll-out of {deployment}", "behind": "{count} endpoints", "speaks": "pods say {words!r}",
        "running": "pod {pod}", "answered": "requests are answered", "set": "pods of {set}",
        "renewed": "another {pod}", "bound": "disk of {claim}", "attached": "disk of {claim} in its VM",
        "addressed": "an address", "served": "an answer there", "tried": "a stranger is {hope}",
        "copied": "snapshot {snapshot}", "ended": "end of {job}",
    }  # fmt: skip
    return (RECOVERED if see.get("recovered") else "") + told.get(see["stage"], see["stage"]).format(**see)


def witness(pve: Any, k8s: Any, site: Any, run: str, what: Setting) -> Witness:
    """Who looks after each change of this run's workload."""
    return Witness(pve, k8s, what, home_of(site, run), float(site.csi.wait_seconds))


# --- what came of it ---------------------------------------------------------------------------------


def spoken(applied: Applied) -> list[Spoken]:
    """What each command in a pod said; nothing where nothing was sent."""
    return volumes.spoken(applied)


def requests(k8s: Any, home: str) -> list[Request]:
    """Every request that the client made so far."""
    try:
        return kubernetes_workload.requests(k8s.logs(home, CLIENT))
    except RunbookError:
        return []


def windows(rows: Iterable[Request], marks: Iterable[tuple[str, int]]) -> list[Window]:
    """What the client saw, stage by stage."""
    held = list(rows)
    spans: dict[str, list[int]] = {}
    last = 0
    for stage, number in marks:
        spans.setdefault(stage, [last, number])[1] = number
        last = number
    return [kubernetes_workload.window(stage, held, first, end) for stage, (first, end) in spans.items()]


def timings(
    stages: Iterable[Stage], rows: Iterable[Request], *, volume_seconds: float = 30, pod_seconds: float = 120
) -> list[Measurement]:
    """How long the stages took, and how long the client waited for an answer."""
    values: dict[tuple[str, float | None], list[float]] = {}
    errors: dict[tuple[str, float | None], int] = {}
    for row in stages:
        name: tuple[str, float | None]
        if row.what == f"pod {CLIENT}":
            name = ("pod start", pod_seconds)
        elif row.what.startswith("roll-out of"):
            name = ("roll-out", pod_seconds)
        elif row.what.startswith("disk of") and not row.what.endswith("in its VM"):
            name = ("claim to disk", volume_seconds)
        else:
            continue
        if row.reached:
            values.setdefault(name, []).append(row.seconds)
        else:
            errors[name] = errors.get(name, 0) + 1
    found = [
        Measurement(name, "s", tuple(values.get((name, limit), ())), subject="workload", threshold=limit,
                    errors=errors.get((name, limit), 0))
        for name, limit in dict.fromkeys((*values, *errors))
    ]  # fmt: skip
    answered = [row for row in rows if row.code]
    if answered:
        good = tuple(row.milliseconds for row in answered if not row.failed)
        found.append(Measurement("request of the client", "ms", good, subject="workload",
                                 errors=sum(row.failed for row in answered)))  # fmt: skip
    return found
