"""CozyStack's controller: a WorkloadMonitor counts its pods, and each of them is shown as a Workload."""

from __future__ import annotations

from collections.abc import Iterable

from .client import Key, Object, Refused
from .context import Context
from .installing import is_true, selected
from .processes import Process, Program
from .quantities import requests_of
from .reconcile import reconcile

GROUP = "/apis/cozystack.io/v1alpha1"
MONITOR = "workloads.cozystack.io/monitor"


def counted(monitor: Object, pods: Iterable[Object]) -> Object:
    """The status of a monitor that sees these pods."""
    rows = list(pods)
    ready = sum(is_true(pod) for pod in rows)
    return {
        "observedReplicas": len(rows), "availableReplicas": ready,
        "operational": ready >= int((monitor.get("spec") or {}).get("minReplicas") or 0),
    }  # fmt: skip


def seen(monitor: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods that a monitor watches; one without a selector watches none."""
    selector, space = (monitor.get("spec") or {}).get("selector") or {}, monitor["metadata"].get("namespace")
    return [
        pod
        for pod in pods
        if selector
        and pod["metadata"].get("namespace") == space
        and selected(pod["metadata"].get("labels"), selector)
        and not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}
    ]


def shown(monitor: Object, pod: Object) -> Object:
    """The Workload of a pod."""
    spec, meta = monitor.get("spec") or {}, pod["metadata"]
    owners = [
        {"apiVersion": "cozystack.io/v1alpha1", "kind": "WorkloadMonitor", "name": monitor["metadata"]["name"],
         "uid": monitor["metadata"]["uid"], "controller": False, "blockOwnerDeletion": True},
        {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"], "controller": False,
         "blockOwnerDeletion": True},
    ]  # fmt: skip
    asked = requests_of(pod)
    resources = {
        name: f"{round(value * 1000)}m" if name == "cpu" else str(int(value)) for name, value in sorted(asked.items())
    }
    labels = {**(meta.get("labels") or {}), MONITOR: monitor["metadata"]["name"]}
    return {
        "metadata": {"name": f"pod-{meta['name']}", "namespace": meta["namespace"], "labels": labels,
                     "ownerReferences": sorted(owners, key=lambda row: str(row["uid"]))},
        "status": {"kind": spec.get("kind", ""), "type": spec.get("type", ""), "resources": resources,
                   "operational": is_true(pod)},
    }  # fmt: skip


async def run(context: Context, process: Process) -> None:
    """cozystack-controller: works on every WorkloadMonitor until cancelled."""
    monitors, workloads = context.cache(f"{GROUP}/workloadmonitors"), context.cache(f"{GROUP}/workloads")
    pods, client = context.pods, context.client

    async def work(key: Key, item: Object | None) -> float | None:
        if item is None or not (item.get("spec") or {}).get("selector"):
            return None
        mine = seen(item, pods.items.values())
        wanted = {f"pod-{pod['metadata']['name']}": shown(item, pod) for pod in mine}
        path = f"{GROUP}/namespaces/{key[0]}/workloads"
        for name, body in wanted.items():
            known = workloads.get(key[0], name)
            if known is None:
                head = {"apiVersion": "cozystack.io/v1alpha1", "kind": "Workload", "metadata": body["metadata"]}
                known = await client.create(path, head)
                await workloads.caught_up(known)
            if (known.get("status") or {}) != body["status"]:
                made = await client.patch(f"{path}/{name}/status", {"status": body["status"]})
                await workloads.caught_up(made)
        for (space, name), row in list(workloads.items.items()):
            of_this = (row["metadata"].get("labels") or {}).get(MONITOR) == key[1] and space == key[0]
            if of_this and name not in wanted:
                try:
                    await client.delete(f"{path}/{name}")
                except Refused as error:
                    if error.code != 404:
                        raise
        status = counted(item, mine)
        known_status = item.get("status") or {}
        if any(known_status.get(part) != value for part, value in status.items()):
            place = f"{GROUP}/namespaces/{key[0]}/workloadmonitors/{key[1]}/status"
            await monitors.caught_up(await client.patch(place, {"status": status}))
        return None

    def of_pod(pod: Object) -> list[Key]:
        space, labels = pod["metadata"].get("namespace"), pod["metadata"].get("labels")
        rows = [(key, (row.get("spec") or {}).get("selector") or {}) for key, row in monitors.items.items()]
        return [key for key, selector in rows if key[0] == space and selector and selected(labels, selector)]

    await context.synced(monitors, workloads, pods)
    process.write("Starting workers controller=workloadmonitor")
    await reconcile(context, monitors, work, also=[(pods, of_pod)], workers=2)


PROGRAMS = (Program("cozystack-controller", run),)
