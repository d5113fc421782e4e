"""A workload of the end-to-end proof as rows: its roll-out, who stands behind its Service, what its client was told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runbook_lib.errors import ApiError, NotFound
from runbook_lib.facts import Request, Window
from runbook_lib.kubernetes_reading import Reader

Object = dict[str, Any]


@dataclass(frozen=True)
class Doors:
    """What leads into the cluster from outside. Empty where the site has none."""

    pools: tuple[str, ...] = ()  # of addresses for Services of type LoadBalancer
    ingress_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """How far a Deployment or StatefulSet has come."""

    name: str
    wanted: int
    updated: int
    available: int
    total: int
    seen: bool  # the controller has seen the newest spec
    message: str = ""

    @property
    def done(self) -> bool:
        """Whether every pod is of the newest spec and ready, and no other is left."""
        return self.seen and self.wanted == self.updated == self.available == self.total


def doors(k8s: Reader) -> Doors:
    """MetalLB's pools and the classes of ingress controllers; a group that is not served gives none."""
    pools = [row["metadata"]["name"] for row in k8s.list("/apis/metallb.io/v1beta1/ipaddresspools")]
    classes = [row["metadata"]["name"] for row in k8s.list("/apis/networking.k8s.io/v1/ingressclasses")]
    return Doors(tuple(sorted(pools)), tuple(sorted(classes)))


def rollout(thing: Object) -> Rollout:
    """How far a Deployment or StatefulSet has come, from the object itself."""
    spec, status = thing["spec"], thing.get("status") or {}
    is_set = thing.get("kind") == "StatefulSet" or "serviceName" in spec
    wanted = int(spec.get("replicas", 1))
    updated = int(status.get("updatedReplicas") or 0)
    if is_set and status.get("currentRevision") == status.get("updateRevision"):
        updated = int(status.get("currentReplicas") or status.get("updatedReplicas") or 0)
    rows = [row for row in status.get("conditions") or () if row["status"] != "True" or row["type"] == "Progressing"]
    ready = status.get("readyReplicas") if is_set else status.get("availableReplicas")
    return Rollout(
        name=thing["metadata"]["name"],
        wanted=wanted,
        updated=updated,
        available=int(ready or 0),
        total=int(status.get("replicas") or 0),
        seen=int(status.get("observedGeneration") or 0) >= int(thing["metadata"].get("generation") or 0),
        message="; ".join(str(row.get("message", "")) for row in rows if row.get("message")),
    )


def endpoints(k8s: Reader, namespace: str, service: str) -> list[str]:
    """The addresses of the ready endpoints of a Service, in order."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    rows = k8s.list(path, labelSelector=f"kubernetes.io/service-name={service}")
    return sorted(
        str(endpoint["addresses"][0])
        for row in rows
        for endpoint in row.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready", True)
    )


def pods_of(k8s: Reader, namespace: str, app: str) -> list[Object]:
    """The pods of an app as they are, by name."""
    found = k8s.list(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"app={app}")
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def is_ready(pod: Object) -> bool:
    """Whether the pod is ready and stays."""
    rows = (pod.get("status") or {}).get("conditions") or ()
    there = "deletionTimestamp" not in pod["metadata"]
    return there and any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def unready_on(k8s: Reader, node: str) -> list[str]:
    """The pods of a node that should be ready and are not, as namespace/name; those that are done or leave not."""
    pods = k8s.list("/api/v1/pods", fieldSelector=f"spec.nodeName={node}")
    ended = {"Succeeded", "Failed"}
    return sorted(
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in pods
        if (pod.get("status") or {}).get("phase") not in ended
        and "deletionTimestamp" not in pod["metadata"]
        and not is_ready(pod)
    )


def job_log(k8s: Any, namespace: str, job: str) -> list[str]:
    """The lines that the pods of a Job wrote; none where there is none."""
    lines: list[str] = []
    try:
        pods = k8s.list(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"job-name={job}")
    except NotFound:
        return []
    for pod in pods:
        try:
            lines += str(k8s.logs(namespace, pod["metadata"]["name"])).splitlines()
        except ApiError:
            continue
    return lines


_LINE = re.compile(r"^(\d+) (\d{3}) ([\d.]+)\s*$")


def requests(text: str) -> list[Request]:
    """The client's requests by number, out of its log: "17 200 0.0021"; other lines are no requests."""
    found = []
    for line in text.splitlines():
        if told := _LINE.match(line.strip()):
            found.append(Request(int(told[1]), int(told[2]), round(float(told[3]) * 1000, 4)))
    return found


def window(stage: str, rows: Iterable[Request], after: int, last: int) -> Window:
    """What the client saw in the requests with numbers above `after`, up to `last`."""
    mine = sorted((row for row in rows if after < row.number <= last), key=lambda row: row.number)
    failed = [row for row in mine if row.failed]
    return Window(stage, len(mine), len(failed), _longest(mine), tuple(sorted({row.code for row in failed})))


def _longest(rows: Sequence[Request]) -> int:
    longest = current = 0
    for row in rows:
        current = current + 1 if row.failed else 0
        longest = max(longest, current)
    return longest
