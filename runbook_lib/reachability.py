"""Who reaches whom in the pod network: what the platform's rules promise, and what packets say.

Everything happens in tenants made for it, through CozyStack's own Tenant resource, and is borrowed: two siblings, and
one below the first. Every connection is opened from inside a tenant's pod, because isolation between siblings is the
sender's: a pod of no tenant would be let in everywhere and prove nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from runbook_lib import kubernetes_policies
from runbook_lib.errors import NotFound, RunbookError, WaitTimeout
from runbook_lib.executors import labelled, reference, target_of
from runbook_lib.facts import Cluster, Connection, Cozystack, Enforcement, KubeNode, PairReading
from runbook_lib.model import Change, ChangeKind, Measurement
from runbook_lib.plan import Applied
from runbook_lib.prepare import Wanted
from runbook_lib.staging import NOWHERE, STATES

Object = dict[str, Any]

ROOT = "tenant-root"
APPS = "apps.cozystack.io/v1alpha1"
ROLE = "runbook.cozystack.io/role"
ALLOWED = "runbook.cozystack.io/allowed"
TO_API = "policy.cozystack.io/allow-to-apiserver"
SPACE = "k8s:io.kubernetes.pod.namespace"

TCP_PORT, UDP_PORT, PVE_PORT, KUBELET_PORT = 8080, 8081, 8006, 10250
SECONDS = 3
MOST_NODES = 6
"""Nodes that are probed from: with more of them the connections grow too many, and workers on Proxmox go first."""

TENANT_SECONDS, POD_SECONDS, JOB_SECONDS = 600, 180, 300
SETTLE_SECONDS = 5
WATCH_TURNS = 400
FRAME_BYTES = 8000
SAMPLES = 5
INTERNET = ("1.1.1.1", 443)

SHIPPED, PLAIN, DENY, LABEL, EGRESS = "as shipped", "plain deny", "deny", "deny but for a label", "egress rule"
PHASES = (SHIPPED, PLAIN, DENY, LABEL, EGRESS)

RULES: Mapping[str, tuple[str, str]] = {
    "same tenant": ("open", "allow-internal-communication"),
    "sibling": ("closed", "<tenant>-egress lets out to the tenant and those below it alone"),
    "sibling's node port": ("closed", "a node port leads to the sibling's pod, and counts as one"),
    "parent to child": ("open", "<tenant>-egress lets out to tenants below"),
    "child to parent": ("closed", "<tenant>-egress of the child knows no pod of the parent but shared services"),
    "API server": ("closed", "allow-to-apiserver wants a label"),
    "API server, labelled": ("open", "allow-to-apiserver"),
    "DNS": ("open", "allow-to-dns"),
    "internet": ("open", "allow-external-communication lets out to the world"),
    "host": ("closed", "no rule lets out to nodes"),
    "Proxmox VE API": ("open", "allow-external-communication: Proxmox VE is the world to a tenant"),
}
"""What CozyStack's policies promise of each relation, and the policy that says so."""


@dataclass(frozen=True)
class Probe:
    """One connection as planned. `job` is where it is tried, `key` its line in the log."""

    key: str
    job: str
    connection: Connection
    host: str  # an address, or a placeholder that is filled when the plan is carried out
    port: str


@dataclass(frozen=True)
class Trial:
    """What step 41 would do, and how its logs are to be read."""

    wanted: Wanted
    probes: tuple[Probe, ...] = ()
    pairs: tuple[tuple[str, str, str, str], ...] = ()  # key, job, node from, node to
    jobs: Mapping[str, str] = field(default_factory=dict)  # name of the job → namespace
    watch: str = ""
    policy: str = ""  # the change whose enforcement is timed: its target


def expected(relation: str, phase: str = SHIPPED, *, labelled_source: bool = False) -> str:
    """open or closed: what the platform's rules, and after `SHIPPED` those of the phase too, make of a relation."""
    if phase in {DENY, LABEL, EGRESS} and relation == "same tenant":  # the exception stays while the last is tried
        return "open" if phase != DENY and labelled_source else "closed"
    if phase == EGRESS and relation == "Proxmox VE API":
        return "closed"
    return RULES[relation][0]


def proxmox_workers(nodes: Iterable[KubeNode], cluster: Cluster) -> list[str]:
    """Nodes that Cluster API made on Proxmox VE, and members of the Proxmox cluster that are nodes themselves."""
    members = {member.ip for member in cluster.members if member.ip}
    return [n.name for n in nodes if n.provider_id.startswith("proxmox://") or n.internal_ip in members]


def chosen_nodes(nodes: Sequence[KubeNode], cluster: Cluster, *, most: int = MOST_NODES) -> list[KubeNode]:
    """The nodes to probe from and to: workers on Proxmox first, then workers, then control planes; ready ones alone."""
    first = set(proxmox_workers(nodes, cluster))
    ready = [node for node in nodes if node.ready == "True"]
    ordered = sorted(ready, key=lambda n: (n.name not in first, "control-plane" in n.roles, n.name))
    return ordered[:most]


# --- the plan ----------------------------------------------------------------------------------------


def trial(
    k8s: Any, site: Any, run: str, *, nodes: Sequence[KubeNode], cluster: Cluster, platform: Cozystack, step: str = "41"
) -> Trial:
    """Tenants, pods, connections, policies, connections again: one plan, so that one approval covers the step."""
    problems = tuple(_problems(k8s, nodes, platform))
    if problems:
        return Trial(Wanted(problems=problems))
    work = _Work(k8s, site, run, chosen_nodes(nodes, cluster), cluster, platform)
    work.tenants()
    work.servers()
    work.matrix()
    work.policies()
    wanted = Wanted(tuple(work.changes)).numbered(step)
    return Trial(wanted, tuple(work.probes), tuple(work.pairs), dict(work.jobs), work.watch, work.policy)


def _problems(k8s: Any, nodes: Sequence[KubeNode], platform: Cozystack) -> Iterator[str]:
    if platform.generation == "none":
        yield "platform: there is no CozyStack here, and so no tenant to try from"
    elif not k8s.find("/apis/apps.cozystack.io/v1alpha1"):
        yield "tenants: apps.cozystack.io/v1alpha1 is not served, so none can be made"
    elif k8s.find(f"/api/v1/namespaces/{ROOT}") is None:
        yield f"tenants: there is no namespace {ROOT} to make them in"
    if not any(node.ready == "True" for node in nodes):
        yield "nodes: none is ready"


@dataclass
class _Work:
    """The plan as it grows. A class because every part refers to names that another one gave."""

    k8s: Any
    site: Any
    run: str
    nodes: Sequence[KubeNode]
    cluster: Cluster
    platform: Cozystack
    changes: list[Change] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    pairs: list[tuple[str, str, str, str]] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    fills: dict[str, list[str]] = field(default_factory=dict)
    watch: str = ""
    policy: str = ""

    def __post_init__(self) -> None:
        stem = re.sub(r"[^a-z0-9]", "", self.site.names.prefix.lower())[:8] or "runbook"
        tail = self.run.rpartition("-")[2].lower()
        self.a, self.b, self.below = f"{stem}{tail}a", f"{stem}{tail}b", "below"
        self.space_of = {"a": f"tenant-{self.a}", "b": f"tenant-{self.b}", "child": f"tenant-{self.a}-{self.below}"}
        settings = kubernetes_policies.cilium_settings(self.k8s)
        self.families = kubernetes_policies.pod_families(settings, kubernetes_policies.subnets(self.k8s))
        self.first, self.last = self.nodes[0].name, self.nodes[-1 if len(self.nodes) < 2 else 1].name

    # -- things

    def add(self, manifest: Object, summary: str, *, action: str = "create", **request: Any) -> None:
        """One borrowed object more."""
        whole = labelled(manifest, self.run, "borrow")
        shown = {key: value for key, value in whole.items() if key != "status"}
        self.changes.append(
            Change(
                "",
                "kubernetes",
                action,
                target_of(manifest),
                summary,
                ChangeKind.BORROW,
                {"manifest": whole, **request},
                None,
                shown,
                {"delete": reference(whole)},
            )
        )

    def tenants(self) -> None:
        """Two siblings under the root tenant, and one below the first."""
        spec: Object = {"isolated": True} if self.platform.generation == "v0" else {}
        for name, space, words in (
            (self.a, ROOT, "Tenant to try from"),
            (self.b, ROOT, "Its sibling"),
            (self.below, self.space_of["a"], "Tenant below the first"),
        ):
            manifest = {
                "apiVersion": APPS,
                "kind": "Tenant",
                "metadata": {"name": name, "namespace": space},
                "spec": spec,
            }
            whole = labelled(manifest, self.run, "borrow")
            request: Object = {
                "method": "POST",
                "path": f"/apis/{APPS}/namespaces/{space}/tenants",
                "body": whole,
                "after": [_after(f"/api/v1/namespaces/{space}", "there", TENANT_SECONDS)],
            }
            undo = {"delete": reference(whole)}
            self.changes.append(
                Change(
                    "",
                    "kubernetes",
                    "create",
                    target_of(manifest),
                    words,
                    ChangeKind.BORROW,
                    request,
                    None,
                    whole,
                    undo,
                )
            )

    def servers(self) -> None:
        """A pod that answers on TCP and UDP: of the first tenant on every node, of the others on one."""
        for node in self.nodes:
            self._server("a", node.name)
        self._server("b", self.first)
        self._server("child", self.last)
        for tenant in ("a", "b"):
            self.add(
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": "by-node-port", "namespace": self.space_of[tenant]},
                    "spec": {
                        "type": "NodePort",
                        "selector": {ROLE: "server"},
                        "ports": [{"name": "http", "port": TCP_PORT, "targetPort": TCP_PORT, "protocol": "TCP"}],
                    },
                },
                "Node port of the pods of this tenant",
            )
            path = f"/api/v1/namespaces/{self.space_of[tenant]}/services/by-node-port"
            self.fills[f"{tenant}-node-port"] = [path, "nodePort"]

    def _server(self, tenant: str, node: str) -> None:
        space, name = self.space_of[tenant], _name(f"server-{node}")
        container = self._container("server", ["netexec", f"--http-port={TCP_PORT}", f"--udp-port={UDP_PORT}"])
        container["ports"] = [
            {"containerPort": TCP_PORT, "name": "http", "protocol": "TCP"},
            {"containerPort": UDP_PORT, "name": "udp", "protocol": "UDP"},
        ]
        meta = {"name": name, "namespace": space, "labels": {ROLE: "server"}}
        spec = {**self._pod(node), "containers": [container]}
        after = [_after(f"/api/v1/namespaces/{space}", "there", TENANT_SECONDS),
                 _after(f"/api/v1/namespaces/{space}/serviceaccounts/default", "there", TENANT_SECONDS)]  # fmt: skip
        words = f"Answers on {node}, TCP {TCP_PORT} and UDP {UDP_PORT}"
        self.add({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}, words, after=after)
        for family in self.families:
            self.fills[f"{tenant}-{node}-{family}"] = [f"/api/v1/namespaces/{space}/pods/{name}", family]

    def _pod(self, node: str) -> Object:
        """What every pod of this step has: it passes the `restricted` Pod Security level."""
        return {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }

    def _container(self, name: str, args: list[str]) -> Object:
        return {
            "name": name,
            "image": self.site.images.probe,
            "imagePullPolicy": self.site.images.pull_policy or "IfNotPresent",
            "args": args,
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }

    def _job(
        self, name: str, tenant: str, node: str, lines: Iterable[str], words: str, *, after: list[Object],
        labels: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """A Job whose log has a line a try."""
        space = self.space_of[tenant]
        script = "; ".join(lines)
        container = self._container("probe", [])
        container |= {"command": ["/bin/sh", "-c", script]}
        del container["args"]
        mine = {ROLE: "probe", **(labels or {})}
        manifest = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": space},
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": 3 * JOB_SECONDS,
                "template": {"metadata": {"labels": mine}, "spec": {**self._pod(node), "containers": [container]}},
            },
        }
        fill = {mark: where for mark, where in self.fills.items() if f"<{mark}>" in script}
        self.jobs[name] = space
        self.add(manifest, words, after=after, fill=fill)

    # -- connections

    def _probe(
        self, job: str, phase: str, relation: str, source: str, node: str, target: str, host: str, port: int | str,
        *, protocol: str = "TCP", family: str = "IPv4", allowed: bool = False,
    ) -> str:  # fmt: skip
        """One more connection of a job; its line of the script."""
        key = f"p{len(self.probes) + 1:03d}"
        hope = expected(relation, phase, labelled_source=allowed)
        shown = f"{host}:{port}" if not host.startswith("<") else f"{target}, port {port}"
        row = Connection(phase, relation, source, node, target, shown, protocol, family, hope, "not tried")
        self.probes.append(Probe(key, job, row, host, str(port)))
        where = f"[{host}]" if family == "IPv6" else host
        flags = f"--timeout={SECONDS}s --protocol={protocol.lower()}"
        return f'echo "{key} $(/agnhost connect {where}:{port} {flags} 2>&1)"'

    def _to_pods(self, job: str, phase: str, relation: str, source: str, node: str, tenant: str, end: str) -> list[str]:
        return [
            self._probe(job, phase, relation, source, node, f"{tenant} on {end}", f"<{tenant}-{end}-{family}>", port,
                        protocol=protocol, family=family)
            for family in self.families
            for port, protocol in ((TCP_PORT, "TCP"), (UDP_PORT, "UDP"))
        ]  # fmt: skip

    def matrix(self) -> None:
        """The whole matrix as the platform ships it."""
        ends = [*(("a", node.name) for node in self.nodes), ("b", self.first), ("child", self.last)]
        paths = [self.fills[f"{tenant}-{node}-{self.families[0]}"][0] for tenant, node in ends]
        ready = [_after(path, "ready", POD_SECONDS) for path in paths]
        api = kubernetes_policies.service_address(self.k8s, "default", "kubernetes")
        for node in self.nodes:
            job, source = _name(f"from-{node.name}"), f"a on {node.name}"
            lines = ["m=$(printf '%0" + str(FRAME_BYTES) + "d' 0)", 'echo "mtu $(cat /sys/class/net/eth0/mtu)"']
            for other in self.nodes:
                lines += self._to_pods(job, SHIPPED, "same tenant", source, node.name, "a", other.name)
                lines += self._pair(job, node.name, other.name)
            lines += self._to_pods(job, SHIPPED, "sibling", source, node.name, "b", self.first)
            lines += self._to_pods(job, SHIPPED, "parent to child", source, node.name, "child", self.last)
            lines += [
                self._probe(job, SHIPPED, "sibling's node port", source, node.name, "b by node port",
                            self.nodes[0].internal_ip or NOWHERE, "<b-node-port>"),
                self._probe(job, SHIPPED, "API server", source, node.name, "API server", api or NOWHERE, 443),
                self._probe(job, SHIPPED, "DNS", source, node.name, "cluster DNS", "kube-dns.kube-system.svc", 53),
                self._probe(job, SHIPPED, "internet", source, node.name, "internet", *INTERNET),
                self._probe(job, SHIPPED, "host", source, node.name, f"kubelet of {self.last}",
                            next(n.internal_ip for n in self.nodes if n.name == self.last) or NOWHERE, KUBELET_PORT),
            ]  # fmt: skip
            lines += self._to_proxmox(job, SHIPPED, source, node.name)
            self._job(job, "a", node.name, lines, f"Every connection from the first tenant on {node.name}", after=ready)
        lines = [self._probe("labelled", SHIPPED, "API server, labelled", f"a on {self.first}, labelled", self.first,
                             "API server", api or NOWHERE, 443)]  # fmt: skip
        words = "The API server from a pod with the label"
        self._job("labelled", "a", self.first, lines, words, after=ready, labels={TO_API: "true"})
        for tenant, place, relation in (("child", self.last, "child to parent"), ("b", self.first, "sibling")):
            job, source = f"from-{tenant}", f"{tenant} on {place}"
            lines = self._to_pods(job, SHIPPED, relation, source, place, "a", self.first)
            lines.append(self._probe(job, SHIPPED, "DNS", source, place, "cluster DNS", "kube-dns.kube-system.svc", 53))
            self._job(job, tenant, place, lines, f"From {source} to the first tenant", after=ready)

    def _to_proxmox(self, job: str, phase: str, source: str, node: str) -> list[str]:
        hosts = [(member.name, member.ip) for member in self.cluster.members if member.online and member.ip]
        return [
            self._probe(job, phase, "Proxmox VE API", source, node, f"Proxmox VE {name}", ip, PVE_PORT,
                        family="IPv6" if ":" in ip else "IPv4")
            for name, ip in hosts
        ]  # fmt: skip

    def _pair(self, job: str, node: str, other: str) -> list[str]:
        key = f"n{len(self.pairs) + 1:03d}"
        self.pairs.append((key, job, node, other))
        host = f"<a-{other}-{self.families[0]}>"
        url = f"http://{f'[{host}]' if self.families[0] == 'IPv6' else host}:{TCP_PORT}"
        ask = "curl -s -o /dev/null -m 5 -w '%{http_code} %{time_connect} %{size_download}'"
        turns = " ".join(map(str, range(SAMPLES)))
        return [
            f'for i in {turns}; do echo "{key} $({ask} "{url}/echo?msg=small")"; done',
            f'echo "{key} full $({ask} "{url}/echo?msg=$m")"',
        ]

    # -- policies

    def policies(self) -> None:
        """A plain default-deny, one that denies, one with an exception, one for what goes out; tries after each."""
        ended = [_after(f"/apis/batch/v1/namespaces/{space}/jobs/{name}", "ended", JOB_SECONDS)
                 for name, space in self.jobs.items()]  # fmt: skip
        space = self.space_of["a"]
        servers = {"matchLabels": {ROLE: "server"}}
        plain: Object = {"podSelector": {}, "policyTypes": ["Ingress"]}
        self.add(
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
             "metadata": {"name": "default-deny", "namespace": space}, "spec": plain},
            "The default-deny that every tutorial shows", after=ended,
        )  # fmt: skip
        self._again(PLAIN)
        self._watcher()
        watching = [_after(f"/apis/batch/v1/namespaces/{space}/jobs/{self.watch}", "running", POD_SECONDS)]
        everyone: list[Object] = [{"key": SPACE, "operator": "Exists"}]
        denial = self._cilium("deny", {
            "endpointSelector": servers, "ingressDeny": [{"fromEndpoints": [{"matchExpressions": everyone}]}],
        })  # fmt: skip
        self.policy = target_of(denial)
        self.add(denial, "Denies what comes from any pod to the servers", after=[*self._ends(PLAIN), *watching])
        watched = [_after(f"/apis/batch/v1/namespaces/{space}/jobs/{self.watch}", "ended", JOB_SECONDS)]
        self._again(DENY, after=watched)
        others = [*everyone, {"key": ALLOWED, "operator": "DoesNotExist"}]
        but = self._cilium("deny", {
            "endpointSelector": servers, "ingressDeny": [{"fromEndpoints": [{"matchExpressions": others}]}],
        })  # fmt: skip
        self.add(but, "The same, but for pods with a label", action="update", after=self._ends(DENY))
        self._again(LABEL)
        closing = closing_policy(self.cluster, space)
        if closing is not None:
            self.add(closing, "Nothing goes out to Proxmox VE any more", after=self._ends(LABEL))
            self._again(EGRESS)

    def _cilium(self, name: str, spec: Object) -> Object:
        meta = {"name": name, "namespace": self.space_of["a"]}
        return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": meta, "spec": spec}

    def _ends(self, phase: str) -> list[Object]:
        names = {probe.job for probe in self.probes if probe.connection.phase == phase}
        return [_after(f"/apis/batch/v1/namespaces/{self.jobs[name]}/jobs/{name}", "ended", JOB_SECONDS)
                for name in sorted(names)]  # fmt: skip

    def _again(self, phase: str, *, after: list[Object] | None = None) -> None:
        """The connections that the policies of a phase are about, with and without the label."""
        for allowed in (False, True):
            number = PHASES.index(phase)
            job = f"phase-{number}-{'allowed' if allowed else 'other'}"
            source = f"a on {self.last}{', allowed' if allowed else ''}"
            lines = [f"sleep {SETTLE_SECONDS}"]
            for family in self.families:
                for port, protocol in ((TCP_PORT, "TCP"), (UDP_PORT, "UDP")):
                    lines.append(self._probe(
                        job, phase, "same tenant", source, self.last, f"a on {self.first}",
                        f"<a-{self.first}-{family}>", port, protocol=protocol, family=family, allowed=allowed,
                    ))  # fmt: skip
            lines.append(
                self._probe(job, phase, "DNS", source, self.last, "cluster DNS", "kube-dns.kube-system.svc", 53)
            )
            lines += self._to_proxmox(job, phase, source, self.last) if phase == EGRESS else []
            labels = {ALLOWED: "true"} if allowed else {}
            words = f"Tries again, {phase}{', with the label' if allowed else ''}"
            self._job(job, "a", self.last, lines, words, after=list(after or []), labels=labels)

    def _watcher(self) -> None:
        """A job that connects again and again until it no longer can; its log tells when that was."""
        self.watch = "watch"
        where = f"<a-{self.first}-{self.families[0]}>"
        where = f"[{where}]" if self.families[0] == "IPv6" else where
        ask = f"$(/agnhost connect {where}:{TCP_PORT} --timeout=1s --protocol=tcp 2>&1)"
        script = (
            f'n=0; while [ $n -lt {WATCH_TURNS} ]; do r="{ask}"; echo "w $r"; if [ -n "$r" ]; then exit 0; fi; '
            "n=$((n+1)); sleep 0.5; done"
        )
        self._job(self.watch, "a", self.last, [script], "Connects until it no longer can", after=self._ends(PLAIN))


def _after(path: str, until: str, seconds: float) -> Object:
    return {"path": path, "until": until, "seconds": seconds}


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:52].rstrip("-")


def closing_policy(cluster: Cluster, namespace: str = "") -> Object | None:
    """The policy that keeps pods from Proxmox VE: of one namespace, or without a name of all tenants. None where
    the cluster told no addresses."""
    addresses = sorted({member.ip for member in cluster.members if member.ip})
    if not addresses:
        return None
    blocks = [f"{address}/{128 if ':' in address else 32}" for address in addresses]
    ports = [{"port": str(port), "protocol": "TCP"} for port in (22, 3128, PVE_PORT)]
    rules = {"egressDeny": [{"toCIDR": blocks, "toPorts": [{"ports": ports}]}]}
    meta = {"name": "deny-proxmox"}
    if namespace:
        spec = {"endpointSelector": {}, **rules}
        return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
                "metadata": {**meta, "namespace": namespace}, "spec": spec}  # fmt: skip
    tenants = {"matchExpressions": [
        {"key": f"k8s:io.cilium.k8s.namespace.labels.tenant.cozystack.io/{ROOT}", "operator": "Exists"},
    ]}  # fmt: skip
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": meta,
            "spec": {"endpointSelector": tenants, **rules}}  # fmt: skip


def firewall_rules(cluster: Cluster, nodes: Iterable[KubeNode], site: Any) -> list[dict[str, str]]:
    """Rules of the Proxmox firewall (Datacenter, Firewall) that leave the API to those who need it.

    Packets of pods carry their node's address there, so the firewall cannot tell a tenant from a controller; it closes
    the API to everything else, and the policy closes it to tenants.
    """
    sources = sorted({node.internal_ip for node in nodes if node.internal_ip})
    members = sorted({member.ip for member in cluster.members if member.ip})
    rows = [("IN", "ACCEPT", ",".join(members), "22,8006,3128", "members of the cluster among themselves")]
    rows += [("IN", "ACCEPT", ",".join(sources), "8006", "controllers of CAPMOX and CSI, which run on these nodes")]
    rows += [("IN", "DROP", "", "22,8006,3128", "everybody else; add your own workplace above this line")]
    return [dict(zip(("type", "action", "source", "dport", "comment"), row, strict=True)) for row in rows]


# --- what came of it ---------------------------------------------------------------------------------


def connections(k8s: Any, planned: Trial, applied: Applied) -> list[Connection]:
    """Every connection of the plan with how it ended; "not tried" with the reason where its job said nothing."""
    if applied.refused:
        return [replace(probe.connection, note=applied.refused) for probe in planned.probes]
    for name, space in planned.jobs.items():  # nothing of the plan waited for the last ones
        with contextlib.suppress(WaitTimeout):
            k8s.wait(f"/apis/batch/v1/namespaces/{space}/jobs/{name}", STATES["ended"], JOB_SECONDS)
    logs = {name: _log(k8s, space, name) for name, space in planned.jobs.items()}
    rows = []
    for probe in planned.probes:
        lines, reason = logs[probe.job]
        told = next((line.partition(" ")[2].strip() for line in lines if line.partition(" ")[0] == probe.key), None)
        outcome, note = ("not tried", reason or "its job wrote no line of it") if told is None else outcome_of(told)
        rows.append(replace(probe.connection, outcome=outcome, note=note))
    return rows


def outcome_of(told: str) -> tuple[str, str]:
    """(outcome, note) of what agnhost wrote about one connection: nothing means that it was made."""
    word, _, rest = told.partition(" ")
    known = {"TIMEOUT": "timeout", "REFUSED": "refused", "DNS": "dns", "OTHER": "other"}
    if not told:
        return "connected", ""
    outcome = known.get(word.rstrip(":"))
    return (outcome, rest) if outcome else ("not tried", told)


def pair_readings(k8s: Any, planned: Trial, applied: Applied) -> list[PairReading]:
    """Every pair of nodes: time to connect, and whether frames of full size pass; nothing where nothing was sent."""
    if applied.refused:
        return []
    logs = {job: _log(k8s, planned.jobs[job], job)[0] for job in {row[1] for row in planned.pairs}}
    return [_reading(key, logs[job], source, target) for key, job, source, target in planned.pairs]


def _reading(key: str, lines: Iterable[str], source: str, target: str) -> PairReading:
    times: list[float] = []
    full: bool | None = None
    mtu: int | None = None
    for words in (line.split() for line in lines):
        if words[:1] == ["mtu"] and len(words) > 1 and words[1].isdigit():
            mtu = int(words[1])
        if words[:2] == [key, "full"]:
            full = words[2:3] == ["200"] and words[4:5] == [str(FRAME_BYTES)]
        elif words[:2] == [key, "200"] and len(words) > 2:
            times.append(float(words[2]) * 1000)
    return PairReading(source, target, mtu, tuple(times), full if times else None)


def latencies(readings: Iterable[PairReading]) -> list[Measurement]:
    """Opening a TCP connection between pods, by pair of nodes."""
    return [
        Measurement("open a connection", "ms", row.connect_ms, subject=f"{row.source} → {row.target}")
        for row in readings
        if row.connect_ms
    ]


def enforcement(k8s: Any, planned: Trial, applied: Applied) -> Enforcement | None:
    """How long after its answer the denying policy still let connections through; None where nothing was sent."""
    if applied.refused or not planned.watch:
        return None
    change = next((row for row in applied.plan.changes if row.target == planned.policy), None)
    sent = [row for row in k8s.wire.exchanges if change and row.change == change.id and row.method == "PATCH"]
    lines, reason = _log(k8s, planned.jobs[planned.watch], planned.watch, timestamps=True)
    tries = [(line.partition(" ")[0], line.split()[2:]) for line in lines if line.split()[1:2] == ["w"]]
    if not sent or not tries or not tries[-1][1]:
        return Enforcement(planned.policy, None, reason or "the connections never ended")
    answered = datetime.fromisoformat(sent[0].started).timestamp() + sent[0].seconds
    last_open = [_moment(stamp) for stamp, said in tries if not said]
    return Enforcement(planned.policy, max(0.0, (last_open[-1] if last_open else answered) - answered))


def _moment(text: str) -> float:
    """Seconds since the epoch of a kubelet's stamp, which has nanoseconds."""
    return datetime.fromisoformat(re.sub(r"\.(\d{6})\d*", r".\1", text)).timestamp()


def _log(k8s: Any, space: str, job: str, **options: Any) -> tuple[list[str], str]:
    """The lines that a job's pod wrote, and why there are none."""
    try:
        pods = k8s.list(f"/api/v1/namespaces/{space}/pods", labelSelector=f"job-name={job}")
    except NotFound:
        pods = []
    if not pods:
        return [], "its job has no pod"
    status = pods[0].get("status") or {}
    waiting = [(row.get("state") or {}).get("waiting") or {} for row in status.get("containerStatuses") or []]
    reason = next(filter(None, [row.get("reason", "") for row in waiting]), f"the pod is {status.get('phase')}")
    try:
        return str(k8s.logs(space, pods[0]["metadata"]["name"], **options)).splitlines(), reason
    except RunbookError as error:
        return [], reason if isinstance(error, NotFound) else f"{reason}; {error.came}"
