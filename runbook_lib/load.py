"""What step 43 measures beside the workload's life: pods, VMs, storage, the pod network, and many clients at once.

All of it is borrowed, in the workload's namespace; only the empty VM that is started again and again is in Proxmox VE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from runbook_lib import benchmark, kubernetes_workload, reachability, trials, volumes, workload
from runbook_lib.csi import Setting
from runbook_lib.executors import BORROWED, guest_undo
from runbook_lib.facts import Cluster, KubeNode, PairSpeed, Spoken, Stage
from runbook_lib.model import Measurement
from runbook_lib.plan import Applied, mark
from runbook_lib.prepare import Wanted

Object = dict[str, Any]

PORT = 5201
CLIENTS, ASKED_BY_EACH = 8, 40
PODS, BURST, MANY, NETWORK, STORAGE, VM = "pods", "burst", "many clients", "network", "storage", "vm"

SMALL_FIO = ("randread-4k", "randwrite-4k", "read-1m", "write-1m")


def kubernetes_endpoints() -> dict[str, str]:
    """The classes of requests that controllers make again and again, with a path of each."""
    return {
        "version": "/version",
        "one object": "/api/v1/namespaces/kube-system",
        "nodes": "/api/v1/nodes",
        "pods of a namespace": "/api/v1/namespaces/kube-system/pods",
        "discovery": "/apis",
    }


def apis(pve: Any, k8s: Any, site: Any, *, node: str, emulated: bool = False) -> list[Measurement]:
    """Both APIs: each class of requests one after the other, and the lightest under load. Reads only."""
    given: Object = {"requests": site.benchmarks.requests, "emulated": emulated}
    limit = site.thresholds.api_p95_ms
    endpoints = benchmark.proxmox_endpoints(node)
    found = benchmark.latency(pve, endpoints, threshold=limit, label="Proxmox VE", **given)
    found += benchmark.latency(k8s, kubernetes_endpoints(), threshold=limit, label="Kubernetes", **given)
    several = [count for count in site.benchmarks.concurrency if count > 1]
    for label, client, path in (("Proxmox VE", pve, "/version"), ("Kubernetes", k8s, "/version")):
        loaded = benchmark.under_load(client, path, several, **given)
        found += [_named(row, f"{label} {row.name}") for row in loaded]
    return found


def _named(row: Measurement, name: str) -> Measurement:
    return Measurement(name, row.unit, row.values, row.emulated, row.subject, row.threshold, row.errors, row.time)


# --- the plan ----------------------------------------------------------------------------------------


def measures(
    pve: Any,
    site: Any,
    run: str,
    what: Setting,
    *,
    nodes: Sequence[KubeNode],
    cluster: Cluster,
    step: str = "43",
) -> Wanted:
    """Everything that is measured with things of its own, as changes that follow those of the workload's life."""
    draft = workload.Draft(site, run, workload.home_of(site, run))
    problems = []
    _pods(draft)
    _many(draft)
    if site.images.iperf3:
        _network(draft, [node.name for node in reachability.chosen_nodes(nodes, cluster)])
    else:
        problems.append("network: no image with iperf3 is named (`images.iperf3`)")
    problems += _storage(draft, what)
    problems += _machine(draft, pve, what)
    return Wanted(tuple(draft.changes), problems=tuple(problems)).numbered(step)


def _pods(draft: workload.Draft) -> None:
    site, count = draft.site, draft.site.benchmarks.pods
    draft.stage = PODS
    for number in range(1, count + 1):
        name = f"pod-{number}"
        body = {"containers": [workload.container(site, "main", args=["pause"])], "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False}  # fmt: skip
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}
        draft.make(manifest, f"Pod {number} of {count}, one after the other", {"stage": "running", "pod": name})
    draft.stage = BURST
    template = {"metadata": {"labels": {"app": BURST}}, "spec": body}
    spec = {"replicas": 2 * count, "selector": {"matchLabels": {"app": BURST}}, "template": template}
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": BURST}, "spec": spec}
    draft.make(manifest, f"{2 * count} pods at once", {"stage": "rolled", "deployment": BURST})


def _many(draft: workload.Draft) -> None:
    draft.stage = MANY
    script = (
        f"n=0; while [ $n -lt {ASKED_BY_EACH} ]; do n=$((n+1)); "
        f'echo "$n $({workload.ASK} http://{workload.WEB}:{workload.PORT}/)"; done'
    )
    job = workload.job(draft.site, "many", script, role=workload.CLIENT, parallelism=CLIENTS)
    draft.make(job, f"{CLIENTS} clients at once, {ASKED_BY_EACH} requests each", {"stage": "ended", "job": "many"})


def name_on(node: str) -> str:
    """The name of the pod that measures the network on a node, and of its Service."""
    return f"net-{re.sub(r'[^a-z0-9-]+', '-', node.lower()).strip('-')}"[:60].rstrip("-")


def _network(draft: workload.Draft, nodes: Sequence[str]) -> None:
    site = draft.site
    draft.stage = NETWORK
    for node in nodes:
        name = name_on(node)
        box = workload.container(site, "iperf3", ports=[{"name": "iperf3", "containerPort": PORT, "protocol": "TCP"}])
        box |= {"image": site.images.iperf3, "command": ["iperf3", "-s"]}
        body = {"containers": [box], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
                "nodeSelector": {"kubernetes.io/hostname": node}, "tolerations": [{"operator": "Exists"}]}  # fmt: skip
        spec = {"selector": {"app": name}, "ports": [{"name": "iperf3", "port": PORT, "protocol": "TCP"}]}
        draft.make({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}, f"Name of {name}")
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": body}
        draft.make(made, f"iperf3 on {node}", {"stage": "running", "pod": name})
    seconds = site.benchmarks.network_seconds
    for source in nodes:
        for target in nodes:
            if source == target:
                continue
            for _ in range(site.benchmarks.network_samples):
                words = ["iperf3", "-J", "-c", name_on(target), "-p", str(PORT), "-t", str(seconds), "-O", "1"]
                draft.say(name_on(source), f"iperf3 {source} {target}", words, seconds=30 + 2 * seconds)


def _storage(draft: workload.Draft, what: Setting) -> list[str]:
    site = draft.site
    case, problem = workload.storage_for(what)
    if not site.images.fio:
        return ["storage: no image with fio is named (`images.fio`)"]
    if case is None:
        return [problem.replace("volumes:", "storage:", 1)]
    draft.stage = STORAGE
    jobs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "fio"},
        "data": {"storage.fio": volumes.FIO_JOB},
    }
    draft.make(jobs, "Jobs of fio")
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": case.name,
            "resources": {"requests": {"storage": f"{site.csi.size_gib}Gi"}}}  # fmt: skip
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "fio"}, "spec": spec}
    draft.make(claim, f"Volume of {case.name} for fio", claims=["fio"], cost={"gib": site.csi.size_gib})
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "jobs", "mountPath": "/jobs"}]
    box = workload.container(site, "fio", volumeMounts=mounts) | {
        "image": site.images.fio,
        "command": ["sleep", "86400"],
    }
    box["resources"] = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}
    held = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "fio"}},
        {"name": "jobs", "configMap": {"name": "fio"}},
    ]
    body = {
        "containers": [box],
        "volumes": held,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
    }
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fio"}, "spec": body}
    draft.make(made, "Pod with fio", {"stage": "running", "pod": "fio"})
    for _ in range(volumes.FIO_RUNS):
        for section in SMALL_FIO:
            words = ["fio", "--output-format=json", f"--section={section}", "/jobs/storage.fio"]
            draft.say("fio", f"fio {section}", words, seconds=180)
    return []


def _machine(draft: workload.Draft, pve: Any, what: Setting) -> list[str]:
    site = draft.site
    if not site.benchmarks.vm_starts:
        return ["vm: `benchmarks.vm_starts` is 0"]
    taken = {int(row["vmid"]) for row in pve.get("/cluster/resources", type="vm") or []}
    first, last = site.names.vmid_range.start, site.names.vmid_range.end
    vmid = next((number for number in range(last - 2, first - 1, -1) if number not in taken), None)
    online = [str(row["node"]) for row in pve.get("/nodes") if row.get("status") == "online"]
    usable = sorted(node for node in online if site.names.nodes is None or node in site.names.nodes)
    if vmid is None or not usable:
        return [f"vm: {'no Proxmox node may be used' if vmid else f'every id from {first} to {last} is taken'}"]
    draft.stage = VM
    pools = {row["poolid"] for row in pve.get("/pools") or []}
    params = {
        "vmid": vmid, "name": f"{site.names.prefix}-start", "memory": 128, "cores": 1, "ostype": "l26",
        "tags": f"{mark(draft.run)};{BORROWED}", **({"pool": site.names.pool} if site.names.pool in pools else {}),
    }  # fmt: skip
    path, undo = f"/nodes/{usable[0]}/qemu", guest_undo(usable[0], vmid, draft.run)
    made = {"method": "POST", "path": path, "params": params, "cost": {"vms": 1}}
    draft.add("proxmox", "create", f"{path}/{vmid}", "Empty VM, to be started", made, params, undo)
    own = {"nothing": "it goes with its VM"}
    for number in range(1, site.benchmarks.vm_starts + 1):
        for word in ("start", "stop"):
            request = {"method": "POST", "path": f"{path}/{vmid}/status/{word}"}
            told = f"{word.capitalize()} {number} of {site.benchmarks.vm_starts}"
            draft.add("proxmox", word, f"{path}/{vmid}", told, request, {"status": word}, own)
    return []


# --- what was measured -------------------------------------------------------------------------------


def readings(
    pve: Any,
    k8s: Any,
    site: Any,
    applied: Applied,
    stages: Iterable[Stage],
    said: Iterable[Spoken],
    *,
    home: str = "",
) -> list[Measurement]:
    """Every measurement of the plan; nothing where nothing was sent."""
    if applied.refused:
        return []
    rows, told = list(stages), list(said)
    return [
        *_starts(rows, site),
        *_clients(k8s, home),
        *speeds_measured(speeds(told)),
        *_throughput(told),
        *_vm(pve, applied),
    ]


def _starts(stages: Iterable[Stage], site: Any) -> Iterator[Measurement]:
    for stage, name in ((PODS, "pod start, alone"), (BURST, f"{2 * site.benchmarks.pods} pods at once")):
        mine = [row for row in stages if row.stage == stage]
        if mine:
            values = tuple(row.seconds for row in mine if row.reached)
            missed = sum(not row.reached for row in mine)
            yield Measurement(name, "s", values, subject="pods", threshold=site.thresholds.pod_seconds, errors=missed)


def _clients(k8s: Any, home: str) -> Iterator[Measurement]:
    rows = kubernetes_workload.requests("\n".join(kubernetes_workload.job_log(k8s, home, "many")))
    if rows:
        good = tuple(row.milliseconds for row in rows if not row.failed)
        name = f"request, {CLIENTS} clients at once"
        yield Measurement(name, "ms", good, subject="workload", errors=len(rows) - len(good))


def speeds(said: Iterable[Spoken]) -> list[PairSpeed]:
    """What iperf3 told of each pair of nodes, every reading; a pair that could not be measured has the reason."""
    values: dict[tuple[str, str], list[float]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for row in said:
        if not row.what.startswith("iperf3 "):
            continue
        _, source, target = row.what.split(" ")
        found, why = _speed(row)
        values.setdefault((source, target), [])
        if found is None:
            reasons[source, target] = why
        else:
            values[source, target].append(found)
    return [PairSpeed(source, target, tuple(rates), reasons.get((source, target), ""))
            for (source, target), rates in values.items()]  # fmt: skip


def _speed(row: Spoken) -> tuple[float | None, str]:
    try:
        report = json.loads(row.output[row.output.index("{") :])
    except ValueError:
        return None, row.output.strip()[-200:] or f"iperf3 ended with {row.code}"
    if report.get("error"):
        return None, str(report["error"])
    try:
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9, ""
    except (LookupError, TypeError, ValueError):
        return None, "iperf3 told no speed"


def speeds_measured(pairs: Iterable[PairSpeed]) -> list[Measurement]:
    """The pod network's speed by pair of nodes."""
    return [
        Measurement("pod network", "Gbit/s", row.gbits, subject=f"{row.source} → {row.target}", errors=bool(row.note))
        for row in pairs
    ]


def _throughput(said: Iterable[Spoken]) -> Iterator[Measurement]:
    rows = [Spoken("speed", "workload", row.what, row.pod, row.code, row.output) for row in said if
            row.what.startswith("fio ")]  # fmt: skip
    yield from volumes.throughput(rows)


def _vm(pve: Any, applied: Applied) -> Iterator[Measurement]:
    changes: Mapping[str, str] = {
        change.id: change.action
        for change in applied.plan.changes
        if change.system == "proxmox" and change.request.get("trial", {}).get("name") == VM
    }
    seen = list(pve.wire.exchanges)
    values: dict[str, list[float]] = {}
    for index, exchange in enumerate(seen):
        action = changes.get(exchange.change)
        if action in {"start", "stop"} and exchange.method == "POST" and 200 <= exchange.status < 300:
            values.setdefault(action, []).append(trials.until_ended(seen, index))
    for action, found in values.items():
        yield Measurement(f"VM {action}", "s", tuple(found), subject="empty VM")
