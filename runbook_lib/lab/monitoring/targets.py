"""Which targets the collector has: its scrape objects judged against the services, pods and nodes of this moment."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml

from .relabel import relabel

if TYPE_CHECKING:
    from ..kubernetes.cluster import Cluster

Object = dict[str, Any]
GROUP = "operator.victoriametrics.com"
KUBELET_PORT = 10250


@dataclass(frozen=True)
class Target:
    """One thing to scrape.

    `kind` says what emulates it: the last part of its image's name, "kubelet", "kube-apiserver", or "" where nothing
    is. `dial` is where a real process listens. `error` is why it cannot be reached at all.
    """

    pool: str
    url: str
    labels: Mapping[str, str]
    discovered: Mapping[str, str]
    interval: float
    timeout: float = 10.0
    kind: str = ""
    path: str = "/metrics"
    node: str = ""
    pod: Object | None = None
    dial: str = ""
    error: str = ""
    since: float = 0.0
    honor_labels: bool = False
    honor_timestamps: bool = True
    metric_rules: tuple[Mapping[str, Any], ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """What makes it this target and no other."""
        return self.pool, self.url, tuple(sorted(self.labels.items()))


@dataclass(frozen=True)
class Dropped:
    """What was found and relabeled away."""

    pool: str
    discovered: Mapping[str, str]


def seconds(text: object, otherwise: float = 30.0) -> float:
    """ "30s", "1m" → seconds."""
    from .promql import duration

    try:
        return duration(str(text)).seconds or otherwise if text else otherwise
    except ValueError:
        return otherwise


def selected(labels: Mapping[str, str], selector: Mapping[str, Any] | None) -> bool:
    """Whether a LabelSelector fits."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for row in selector.get("matchExpressions") or ():
        value, wanted = labels.get(row["key"]), row.get("values") or []
        fits = {
            "In": value in wanted,
            "NotIn": value not in wanted,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not fits.get(row["operator"], False):
            return False
    return True


class Finder:
    """The cluster as a collector's service discovery sees it, at one moment."""

    def __init__(self, cluster: Cluster, agent: Object) -> None:
        self.cluster, self.agent = cluster, agent
        self.spec: Mapping[str, Any] = agent.get("spec") or {}
        self.pods = list(cluster.each("/pods"))
        self.nodes = list(cluster.each("/nodes"))
        self.services = list(cluster.each("/services"))
        self.slices: dict[tuple[str, str], list[Object]] = {}
        for item in cluster.each("discovery.k8s.io/endpointslices"):
            meta = item["metadata"]
            name = (meta.get("labels") or {}).get("kubernetes.io/service-name", "")
            self.slices.setdefault((meta["namespace"], name), []).append(item)
        self.by_name = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in self.pods}
        self.by_ip: dict[str, list[Object]] = {}
        for pod in self.pods:
            if ip := (pod.get("status") or {}).get("podIP"):
                self.by_ip.setdefault(ip, []).append(pod)
        self.by_node_ip = {
            row["address"]: node for node in self.nodes for row in (node.get("status") or {}).get("addresses") or ()
        }
        self.dropped: list[Dropped] = []

    def all(self) -> list[Target]:
        """Every target, by the order of its pools."""
        found: list[Target] = []
        for kind, plural, read in (
            ("serviceScrape", "vmservicescrapes", self.of_service),
            ("podScrape", "vmpodscrapes", self.of_pods),
            ("nodeScrape", "vmnodescrapes", self.of_nodes),
            ("staticScrape", "vmstaticscrapes", self.of_static),
        ):
            for item in self.cluster.each(f"{GROUP}/{plural}"):
                if self.takes(kind, item) and (item.get("status") or {}).get("updateStatus") != "failed":
                    found += read(item)
        return found + list(self.additional())

    def takes(self, kind: str, item: Object) -> bool:
        """Whether the collector selects the object."""
        by_label, by_space = self.spec.get(f"{kind}Selector"), self.spec.get(f"{kind}NamespaceSelector")
        if by_label is None and by_space is None:
            own = item["metadata"]["namespace"] == self.agent["metadata"]["namespace"]
            return bool(self.spec.get("selectAllByDefault")) or (own and False)
        space = self.cluster.find("v1", "Namespace", "", item["metadata"]["namespace"]) or {"metadata": {}}
        labels = item["metadata"].get("labels") or {}
        return selected(labels, by_label) and selected(space["metadata"].get("labels") or {}, by_space)

    # -- one kind of object each ------------------------------------------------------------------

    def spaces(self, item: Object) -> set[str] | None:
        given = (item["spec"].get("namespaceSelector")) or {}
        if given.get("any"):
            return None
        return set(given.get("matchNames") or [item["metadata"]["namespace"]])

    def of_service(self, item: Object) -> Iterator[Target]:
        """A VMServiceScrape: the endpoints of each service that it selects."""
        spec, spaces = item["spec"], self.spaces(item)
        for service in self.services:
            meta = service["metadata"]
            labels = meta.get("labels") or {}
            if (spaces is not None and meta["namespace"] not in spaces) or not selected(labels, spec.get("selector")):
                continue
            for number, endpoint in enumerate(spec.get("endpoints") or ()):
                pool = f"serviceScrape/{item['metadata']['namespace']}/{item['metadata']['name']}/{number}"
                for address, port, name, pod, node in self.endpoints(service, endpoint):
                    meta_labels = self.meta(meta["namespace"], pod, node)
                    meta_labels["__meta_kubernetes_service_name"] = meta["name"]
                    meta_labels |= {f"__meta_kubernetes_service_label_{clean(k)}": v for k, v in labels.items()}
                    job = labels.get(spec.get("jobLabel") or "", "") or meta["name"]
                    given = {"job": job, "namespace": meta["namespace"], "service": meta["name"]}
                    given |= {clean(k): labels[k] for k in spec.get("targetLabels") or () if k in labels}
                    given |= self.of_pod(pod, port, spec.get("podTargetLabels") or ())
                    given["endpoint"] = name or str(port)
                    if node and not pod:
                        given["node"] = node
                    yield from self.made(
                        pool, endpoint, f"{address}:{port}", {**meta_labels, **given}, pod, node, (service, port)
                    )

    def endpoints(
        self, service: Object, endpoint: Mapping[str, Any]
    ) -> Iterator[tuple[str, int, str, Object | None, str]]:
        """Address, port, the port's name, pod and node of each endpoint under the port that is asked for."""
        meta = service["metadata"]
        wanted = endpoint.get("port")
        target = endpoint.get("targetPort", endpoint.get("portNumber"))
        for item in self.slices.get((meta["namespace"], meta["name"]), ()):
            for row in item.get("ports") or ():
                name, port = row.get("name") or "", int(row.get("port") or 0)
                if wanted is not None and wanted not in (name, str(port)):
                    continue
                for entry in item.get("endpoints") or ():
                    reference = entry.get("targetRef") or {}
                    pod = self.by_name.get((meta["namespace"], reference.get("name", "")))
                    if target is not None and not fits_port(pod, target, port):
                        continue
                    for address in entry.get("addresses") or ():
                        node = entry.get("nodeName") or self.node_at(address)
                        yield address, port, name, pod or self.pod_at(address, port), node

    def of_pods(self, item: Object) -> Iterator[Target]:
        """A VMPodScrape: the ports of each pod that it selects."""
        spec, spaces, own = item["spec"], self.spaces(item), item["metadata"]
        for pod in self.pods:
            meta, status = pod["metadata"], pod.get("status") or {}
            if spaces is not None and meta["namespace"] not in spaces:
                continue
            if not selected(meta.get("labels") or {}, spec.get("selector")) or not status.get("podIP"):
                continue
            if status.get("phase") in {"Failed", "Succeeded"}:
                continue
            for number, endpoint in enumerate(spec.get("podMetricsEndpoints") or ()):
                pool = f"podScrape/{own['namespace']}/{own['name']}/{number}"
                for port, name in ports_of(pod, endpoint):
                    given = {"job": f"{own['namespace']}/{own['name']}", "namespace": meta["namespace"]}
                    if spec.get("jobLabel"):
                        given["job"] = (meta.get("labels") or {}).get(spec["jobLabel"]) or given["job"]
                    given |= self.of_pod(pod, port, spec.get("podTargetLabels") or ())
                    given["endpoint"] = name or str(port)
                    node = pod["spec"].get("nodeName", "")
                    labels = {**self.meta(meta["namespace"], pod, node), **given}
                    yield from self.made(pool, endpoint, f"{status['podIP']}:{port}", labels, pod, node)

    def of_nodes(self, item: Object) -> Iterator[Target]:
        """A VMNodeScrape: one port of each node."""
        spec, own = item.get("spec") or {}, item["metadata"]
        for node in self.nodes:
            labels = node["metadata"].get("labels") or {}
            if not selected(labels, spec.get("selector")):
                continue
            name = node["metadata"]["name"]
            address = next(
                (r["address"] for r in (node.get("status") or {}).get("addresses") or () if r["type"] == "InternalIP"),
                "",
            )
            port = int(spec["port"]) if str(spec.get("port", "")).isdigit() else KUBELET_PORT
            given = {"job": f"{own['namespace']}/{own['name']}", "node": name}
            if spec.get("jobLabel"):
                given["job"] = labels.get(spec["jobLabel"]) or given["job"]
            given |= {clean(k): labels[k] for k in spec.get("targetLabels") or () if k in labels}
            meta = self.meta("", None, name)
            meta |= {f"__meta_kubernetes_node_label_{clean(k)}": v for k, v in labels.items()}
            yield from self.made(
                f"nodeScrape/{own['namespace']}/{own['name']}", spec, f"{address}:{port}", {**meta, **given}, None, name
            )

    def of_static(self, item: Object) -> Iterator[Target]:
        """A VMStaticScrape: the addresses it names."""
        own = item["metadata"]
        job = item["spec"].get("jobName") or f"{own['namespace']}/{own['name']}"
        for number, endpoint in enumerate(item["spec"].get("targetEndpoints") or ()):
            pool = f"staticScrape/{own['namespace']}/{own['name']}/{number}"
            for address in endpoint.get("targets") or ():
                labels = {"job": job, **(endpoint.get("labels") or {})}
                yield from self.made(pool, endpoint, str(address), labels, None, "", namespace=own["namespace"])

    def additional(self) -> Iterator[Target]:
        """The static targets of the Secret with more scrape configurations."""
        asked = self.spec.get("additionalScrapeConfigs") or {}
        space = self.agent["metadata"]["namespace"]
        secret = self.cluster.find("v1", "Secret", space, str(asked.get("name", "")))
        text = ((secret or {}).get("data") or {}).get(asked.get("key", ""), "")
        try:
            configs = yaml.safe_load(base64.b64decode(text)) or []
        except (ValueError, yaml.YAMLError):
            return
        for config in configs if isinstance(configs, list) else []:
            endpoint = {
                "path": config.get("metrics_path"), "scheme": config.get("scheme"), "params": config.get("params"),
                "interval": config.get("scrape_interval"), "honorLabels": config.get("honor_labels"),
                "relabelConfigs": config.get("relabel_configs"),
                "metricRelabelConfigs": config.get("metric_relabel_configs"),
            }  # fmt: skip
            job = str(config.get("job_name", ""))
            for group in config.get("static_configs") or ():
                for address in group.get("targets") or ():
                    labels = {"job": job, **{k: str(v) for k, v in (group.get("labels") or {}).items()}}
                    yield from self.made(job, endpoint, str(address), labels, None, "", namespace=space)

    # -- what all have in common ------------------------------------------------------------------

    def made(
        self, pool: str, endpoint: Mapping[str, Any], address: str, labels: Mapping[str, str], pod: Object | None,
        node: str, service: tuple[Object, int] | None = None, *, namespace: str = "",
    ) -> Iterator[Target]:  # fmt: skip
        """The target, unless its rules drop it."""
        params = {f"__param_{key}": str(values[0]) for key, values in (endpoint.get("params") or {}).items() if values}
        start = {
            "__address__": address,
            "__metrics_path__": str(endpoint.get("path") or "/metrics"),
            "__scheme__": str(endpoint.get("scheme") or "http").lower(),
            "__scrape_interval__": str(endpoint.get("interval") or self.spec.get("scrapeInterval") or "30s"),
            **params,
            **labels,
        }
        found = relabel(start, endpoint.get("relabelConfigs") or ())
        if found is None or not found.get("__address__"):
            self.dropped.append(Dropped(pool, start))
            return
        query = {k.removeprefix("__param_"): [v] for k, v in found.items() if k.startswith("__param_")}
        for key, values in (endpoint.get("params") or {}).items():
            query[key] = [query[key][0], *map(str, values[1:])] if key in query else list(map(str, values))
        url = f"{found['__scheme__']}://{found['__address__']}{found['__metrics_path__']}"
        if query:
            url += "?" + urlencode(query, doseq=True)
        kept = {key: value for key, value in found.items() if not key.startswith("__")}
        kept.setdefault("instance", found["__address__"])
        interval = seconds(endpoint.get("scrape_interval") or found["__scrape_interval__"])
        place: dict[str, Any] = (
            {} if found["__address__"] != address else {"pod": pod, "node": node, "service": service}
        )
        yield Target(
            pool, url, kept, start, interval,
            timeout=seconds(endpoint.get("scrapeTimeout"), min(10.0, interval)), path=found["__metrics_path__"],
            honor_labels=bool(endpoint.get("honorLabels")),
            honor_timestamps=endpoint.get("honorTimestamps") is not False,
            metric_rules=tuple(endpoint.get("metricRelabelConfigs") or ()),
            credentials=self.credentials(endpoint, namespace or labels.get("namespace", "")),
            **self.reached(found["__address__"], found["__metrics_path__"], namespace, **place),
        )  # fmt: skip

    def credentials(self, endpoint: Mapping[str, Any], namespace: str) -> dict[str, str]:
        """Headers that a scrape of a real process carries."""
        basic = endpoint.get("basicAuth") or {}
        token = endpoint.get("bearerTokenSecret") or (endpoint.get("authorization") or {}).get("credentials") or {}
        if token:
            return {"Authorization": f"Bearer {self.secret(namespace, token)}"}
        if basic:
            words = ":".join(self.secret(namespace, basic.get(key) or {}) for key in ("username", "password"))
            return {"Authorization": "Basic " + base64.b64encode(words.encode()).decode()}
        return {}

    def secret(self, namespace: str, reference: Mapping[str, Any]) -> str:
        found = self.cluster.find("v1", "Secret", namespace, str(reference.get("name", ""))) or {}
        text = (found.get("data") or {}).get(reference.get("key", ""), "")
        return base64.b64decode(text).decode(errors="replace").strip()

    def reached(
        self, address: str, path: str, namespace: str, pod: Object | None = None, node: str = "",
        service: tuple[Object, int] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What is behind an address: a real process, something emulated, or nothing."""
        host, _, text = address.rpartition(":")
        port = int(text) if text.isdigit() else 80
        host = (host or address).strip("[]")
        if is_loopback(host):
            return {"dial": f"{host}:{port}"}
        if pod is None and service is None and not node:
            named = self.named(host, namespace)
            if named is not None:
                return self.behind(named, port, path)
            if not is_address(host):
                return {"error": f"dial tcp4: lookup {host} on 10.96.0.10:53: no such host"}
            pod, node = self.pod_at(host, port), self.node_at(host)
            by_ip = next((s for s in self.services if (s["spec"] or {}).get("clusterIP") == host), None)
            if by_ip is not None:
                return self.behind(by_ip, port, path)
        if service is not None:
            for row in service[0]["spec"].get("ports") or ():
                meta = service[0]["metadata"]
                listening = self.cluster.backends.get((meta["namespace"], meta["name"], int(row["port"])))
                if isinstance(listening, tuple) and service[1] in (row.get("targetPort"), row["port"], 0):
                    return {"dial": f"{listening[0]}:{listening[1]}", "pod": pod, "node": node}
        return self.emulated(host, port, pod, node)

    def behind(self, service: Object, port: int, path: str) -> dict[str, Any]:
        """What answers for a service that was named by its name or its cluster address."""
        meta = service["metadata"]
        listening = self.cluster.backends.get((meta["namespace"], meta["name"], port))
        if isinstance(listening, tuple):
            return {"dial": f"{listening[0]}:{listening[1]}"}
        row = next((r for r in service["spec"].get("ports") or () if r["port"] == port), None)
        if row is None:
            return {"error": f"dial tcp4 {meta['name']}.{meta['namespace']}:{port}: i/o timeout"}
        for item in self.slices.get((meta["namespace"], meta["name"]), ()):
            number = next(
                (p["port"] for p in item.get("ports") or () if p.get("name", "") == row.get("name", "")), port
            )
            for entry in item.get("endpoints") or ():
                if (entry.get("conditions") or {}).get("ready", True):
                    name = (entry.get("targetRef") or {}).get("name", "")
                    address = entry["addresses"][0]
                    pod = self.by_name.get((meta["namespace"], name)) or self.pod_at(address, number)
                    return self.emulated(address, number, pod, self.node_at(address))
        return {"error": f"dial tcp4 {meta['name']}.{meta['namespace']}:{port}: connect: connection refused"}

    def emulated(self, host: str, port: int, pod: Object | None, node: str) -> dict[str, Any]:
        refused = f"dial tcp4 {host}:{port}: connect: connection refused"
        if pod is not None:
            meta = pod["metadata"]
            listening = self.cluster.backends.get((meta["namespace"], f"pod/{meta['name']}", port))
            if isinstance(listening, tuple):
                return {"dial": f"{listening[0]}:{listening[1]}", "pod": pod, "node": node}
            container = container_of(pod, port)
            state, since = condition_of(pod, "Ready")
            alive = self.alive(pod["spec"].get("nodeName", ""))
            if container is None or not state or not alive:
                words = f"dial tcp4 {host}:{port}: i/o timeout" if not alive else refused
                return {"error": words, "pod": pod, "node": node, "since": since}
            return {"kind": image_of(container), "pod": pod, "node": node, "since": since}
        found = self.by_node_ip.get(host)
        if found is None:
            return {"error": f"dial tcp4 {host}:{port}: i/o timeout"}
        name = found["metadata"]["name"]
        ready, since = condition_of(found, "Ready")
        if not ready:
            return {"error": f"dial tcp4 {host}:{port}: i/o timeout", "node": name, "since": since}
        if port == KUBELET_PORT:
            return {"kind": "kubelet", "node": name, "since": since}
        control = "node-role.kubernetes.io/control-plane" in (found["metadata"].get("labels") or {})
        if port == 6443 and control:
            return {"kind": "kube-apiserver", "node": name, "since": since}
        return {"error": refused, "node": name, "since": since}

    def alive(self, node: str) -> bool:
        """Whether the node answers."""
        found = next((n for n in self.nodes if n["metadata"]["name"] == node), None)
        return found is None or condition_of(found, "Ready")[0]

    def named(self, host: str, namespace: str) -> Object | None:
        """The service that a host name stands for."""
        parts = host.split(".")
        if is_address(host):
            return None
        space = parts[1] if len(parts) > 1 else namespace
        return next(
            (s for s in self.services if s["metadata"]["name"] == parts[0] and s["metadata"]["namespace"] == space),
            None,
        )

    def pod_at(self, address: str, port: int) -> Object | None:
        """The pod at an address; of several on a node's own, the one that listens there."""
        found = self.by_ip.get(address) or []
        if len(found) == 1 and not found[0]["spec"].get("hostNetwork"):
            return found[0]
        return next((pod for pod in found if container_of(pod, port) is not None), None)

    def node_at(self, address: str) -> str:
        """The name of the node with this address."""
        found = self.by_node_ip.get(address)
        return str(found["metadata"]["name"]) if found else ""

    def of_pod(self, pod: Object | None, port: int, more: Iterable[str]) -> dict[str, str]:
        """The labels that tell a target's pod."""
        if pod is None:
            return {}
        labels = pod["metadata"].get("labels") or {}
        container = container_of(pod, port) or pod["spec"]["containers"][0]
        found = {"pod": pod["metadata"]["name"], "container": container["name"]}
        return found | {clean(name): labels[name] for name in more if name in labels}

    def meta(self, namespace: str, pod: Object | None, node: str) -> dict[str, str]:
        """What discovery tells before any rule."""
        found = {"__meta_kubernetes_namespace": namespace} if namespace else {}
        if node:
            found["__meta_kubernetes_node_name"] = node
        if pod is not None:
            found["__meta_kubernetes_pod_name"] = pod["metadata"]["name"]
            found["__meta_kubernetes_pod_node_name"] = pod["spec"].get("nodeName", "")
            found["__meta_kubernetes_pod_ip"] = (pod.get("status") or {}).get("podIP", "")
            labels = pod["metadata"].get("labels") or {}
            found |= {f"__meta_kubernetes_pod_label_{clean(k)}": v for k, v in labels.items()}
        return found


def clean(name: str) -> str:
    """A label's name as a metric may carry it."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def is_address(host: str) -> bool:
    """Whether a host is an address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def image_of(container: Object) -> str:
    """The last part of an image's name."""
    return str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[0]


def container_of(pod: Object, port: int) -> Object | None:
    """The container that declares the port."""
    for container in pod["spec"].get("containers") or ():
        if any(row.get("containerPort") == port for row in container.get("ports") or ()):
            return dict(container)
    return None


def ports_of(pod: Object, endpoint: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """The ports of a pod that an endpoint asks for."""
    wanted = endpoint.get("port", endpoint.get("targetPort", endpoint.get("portNumber")))
    for container in pod["spec"].get("containers") or ():
        for row in container.get("ports") or ():
            if wanted is None or wanted in (row.get("name"), row["containerPort"], str(row["containerPort"])):
                yield int(row["containerPort"]), row.get("name", "")


def fits_port(pod: Object | None, target: object, port: int) -> bool:
    """Whether an endpoint's port is the target port asked for, by number or by the container's name for it."""
    if str(target) == str(port):
        return True
    rows = [row for c in (pod or {"spec": {}})["spec"].get("containers") or () for row in c.get("ports") or ()]
    return any(row.get("name") == target and row["containerPort"] == port for row in rows)


def condition_of(item: Object, kind: str) -> tuple[bool, float]:
    """Whether a condition is True, and since when."""
    from datetime import datetime

    for row in (item.get("status") or {}).get("conditions") or ():
        if row["type"] == kind:
            text = row.get("lastTransitionTime")
            return row["status"] == "True", datetime.fromisoformat(text).timestamp() if text else 0.0
    return False, 0.0
