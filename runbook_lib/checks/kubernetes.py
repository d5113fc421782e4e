"""Judgement of Kubernetes and CozyStack: versions, nodes, releases, Cluster API, agents, webhooks, monitoring."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, graded, verdict
from runbook_lib.facts import (
    ApiService,
    CapiProvider,
    Cozystack,
    Crd,
    KubeNode,
    KubeVersion,
    MonitoringPart,
    Package,
    Pod,
    Release,
    StorageClass,
    Webhook,
    Workload,
)
from runbook_lib.model import Finding, Status
from runbook_lib.versions import Verdict, at_least, contracts_served, kubernetes_floor, numbers

PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
ORDINARY_TAINTS = frozenset({"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"})
TELLTALE_TAINTS = {
    "node.cilium.io/agent-not-ready": "Cilium's agent never came up there; see containerd's default runtime",
    "node.cloudprovider.kubernetes.io/uninitialized": "the cloud controller has not seen this node",
    "node.kubernetes.io/not-ready": "the kubelet reports not ready",
    "node.kubernetes.io/unreachable": "the kubelet does not report at all",
}
MAXIMUM_SKEW = 3  # Kubernetes version skew policy: a kubelet may be three minors older since 1.28, never newer
STACK = frozenset({"VMCluster", "VMSingle", "Prometheus"})
SHIPPING = frozenset({"VMAgent", "Prometheus"})


@check(
    title="Kubernetes is recent enough",
    remedy="Upgrade Kubernetes (on Talos: `talosctl upgrade-k8s`) one minor at a time.",
    source="Sprint 1.1 (minimum 1.26); CozyStack 1.5 requires 1.33; GET /version",
)
def version_is_supported(
    version: KubeVersion,
    cozystack: Cozystack,
    *,
    kubernetes_version: str = "1.26",
    kubernetes_version_cozystack_15: str = "1.33",
) -> Iterator[Finding]:
    """One finding: the API server's version against the floor that this CozyStack release sets."""
    floor = kubernetes_floor(
        cozystack.release, floor=kubernetes_version, floor_cozystack_15=kubernetes_version_cozystack_15
    )
    reached = at_least(version.version, floor)
    words = "reaches" if reached else "is below"
    yield verdict(reached, "API server", f"Kubernetes {version.version} {words} the floor {floor}")


@check(
    title="Kubelets are within the skew",
    remedy="Upgrade the node's kubelet, or the API server first where the kubelet is newer.",
    source="Kubernetes version skew policy; node.status.nodeInfo.kubeletVersion",
)
def kubelet_skew_is_supported(version: KubeVersion, nodes: Iterable[KubeNode]) -> Iterator[Finding]:
    """One finding per node: same minor is pass, up to three older a warning, anything else a fail."""
    for node in nodes:
        have = numbers(node.kubelet_version)[:2]
        message = f"{node.name}: kubelet {node.kubelet_version}, API server {version.version}"
        if len(have) < 2:
            yield verdict(None, node.name, message)
            continue
        older = version.minor[1] - have[1]
        if have[0] != version.minor[0] or older < 0 or older > MAXIMUM_SKEW:
            yield verdict(False, node.name, message)
        else:
            yield verdict(Status.WARN if older else Status.PASS, node.name, message)


@check(
    title="Every node is Ready",
    remedy="`kubectl describe node` and the kubelet's log (`talosctl logs kubelet`) tell why.",
    source="Sprint 1.1; node.status.conditions",
)
def nodes_are_ready(nodes: Iterable[KubeNode]) -> Iterator[Finding]:
    """One finding per node: Ready and schedulable; a cordoned node is a warning."""
    for node in nodes:
        if node.ready != "True":
            yield verdict(False, node.name, f"{node.name}: Ready is {node.ready}")
        elif node.unschedulable:
            yield verdict(Status.WARN, node.name, f"{node.name} is Ready and cordoned")
        else:
            yield verdict(True, node.name, f"{node.name} is Ready ({', '.join(node.roles) or 'worker'})")


@check(
    title="No node is under pressure",
    remedy="Free the resource that the condition names; pods are evicted until it passes.",
    source="node.status.conditions",
)
def no_node_is_under_pressure(nodes: Iterable[KubeNode]) -> Iterator[Finding]:
    """One finding per node: memory, disk, processes, network."""
    for node in nodes:
        pressing = [kind for kind in PRESSURES if node.conditions.get(kind) == "True"]
        message = f"{node.name}: {', '.join(pressing)}" if pressing else f"{node.name}: no pressure"
        yield verdict(not pressing, node.name, message)


@check(
    title="No taint tells of trouble",
    remedy="Mend what the taint tells; its controller removes it by itself. Removing it by hand hides the cause.",
    source="Incident 5 of the first attempt; node.spec.taints",
)
def taints_are_ordinary(nodes: Iterable[KubeNode]) -> Iterator[Finding]:
    """One finding per node: telltale taints fail, unknown ones are shown as warnings."""
    for node in nodes:
        telling = [taint.key for taint in node.taints if taint.key in TELLTALE_TAINTS]
        others = [
            taint.key for taint in node.taints if taint.key not in TELLTALE_TAINTS and taint.key not in ORDINARY_TAINTS
        ]
        if telling:
            why = "; ".join(f"{key}: {TELLTALE_TAINTS[key]}" for key in telling)
            yield verdict(False, node.name, f"{node.name}: {why}")
        elif others:
            yield verdict(
                Status.WARN, node.name, f"{node.name} carries {', '.join(others)}: only tolerating pods go there"
            )
        else:
            yield verdict(True, node.name, f"{node.name}: no unusual taint")


@check(
    title="Requests leave room on every node",
    remedy="Spread the load (a taint may keep pods off an idle node), lower requests, or add a node.",
    source="Incident 10 of the first attempt (97 % on one node, 4 % on another); sum of pod requests",
)
def requests_leave_room(
    nodes: Sequence[KubeNode], *, requests_warn: float = 0.85, requests_fail: float = 0.95
) -> Iterator[Finding]:
    """One finding per node and resource: requested over allocatable."""
    for node in nodes:
        for name, asked, there, unit in (
            ("CPU", node.requested_cpus, node.allocatable_cpus, ""),
            ("memory", node.requested_memory_bytes / 2**30, node.allocatable_memory_bytes / 2**30, " GiB"),
        ):
            subject = f"{node.name} {name}"
            share = asked / there if there else None
            shown = "unknown" if share is None else f"{share:.0%}"
            message = f"{subject}: {shown} requested ({asked:.1f} of {there:.1f}{unit})"
            yield graded(share, subject, message, warn_at=requests_warn, fail_at=requests_fail)


@check(
    title="CozyStack is recognised",
    remedy="Finish the migration (hack/migrate-to-version-1.0.sh of CozyStack), or install CozyStack first.",
    source="CRD packages.cozystack.io and ConfigMap cozy-system/cozystack",
)
def cozystack_is_recognised(cozystack: Cozystack) -> Iterator[Finding]:
    """One finding: which generation this is; half migrated and none are fails, v0 a warning."""
    seen = "; ".join(cozystack.evidence) or "nothing of it was found"
    what = f"CozyStack {cozystack.release or 'of unknown release'} ({cozystack.generation}"
    what += f", {cozystack.variant})" if cozystack.variant else ")"
    status = {"v1": Status.PASS, "v0": Status.WARN}.get(cozystack.generation, Status.FAIL)
    if cozystack.generation == "none":
        what = "this is not a CozyStack cluster"
    yield verdict(status, "CozyStack", f"{what}: {seen}")
    if cozystack.generation in ("v0", "v1") and cozystack.release is None:
        yield verdict(
            Status.WARN, "release", "the release cannot be told from the operator's image or COZYSTACK_VERSION"
        )


@check(
    title="Every HelmRelease is Ready",
    remedy="Mend the first broken one (`kubectl describe hr`); what depends on it follows by itself.",
    source="Sprint 1.1; helm.toolkit.fluxcd.io/v2 HelmRelease conditions",
)
def releases_are_ready(releases: Sequence[Release]) -> Iterator[Finding]:
    """One finding per release that is not Ready, naming the first broken dependency; one pass for the rest."""
    by_name = {f"{row.namespace}/{row.name}": row for row in releases}
    good = 0
    for name, row in by_name.items():
        if row.ready == "True":
            good += 1
            continue
        if row.suspended:
            yield verdict(Status.WARN, name, f"{name} is suspended: {row.reason or 'no reason given'}")
            continue
        roots = _roots(name, by_name)
        because = "" if roots == [name] else f"; first broken: {', '.join(roots)}"
        yield verdict(False, name, f"{name}: {row.reason}: {row.message}{because}", roots=roots)
    if good:
        yield verdict(True, "", f"{good} of {len(by_name)} HelmReleases are Ready")


@check(
    title="Every Package is Ready",
    remedy="See `kubectl describe package`; a variant or a dependency may be missing.",
    source="cozystack.io/v1alpha1 Package conditions",
)
def packages_are_ready(packages: Sequence[Package]) -> Iterator[Finding]:
    """One finding per package that is not Ready; one pass for the rest. CozyStack v0 has none."""
    good = [row for row in packages if row.ready == "True"]
    for row in packages:
        if row.ready == "True":
            continue
        waits = f" (waits for {', '.join(row.dependencies)})" if row.dependencies else ""
        yield verdict(False, row.name, f"{row.name}: {row.reason}: {row.message}{waits}")
    if good:
        yield verdict(True, "", f"{len(good)} of {len(packages)} Packages are Ready")


@check(
    title="The Cluster API operator runs",
    remedy="See the HelmRelease capi-operator and its Deployment in cozy-cluster-api.",
    source="Sprint 1.1; Deployment capi-operator-cluster-api-operator",
)
def capi_operator_runs(workloads: Iterable[Workload]) -> Iterator[Finding]:
    """One finding per Deployment of the operator; none at all is a fail."""
    found = [row for row in workloads if row.kind == "Deployment" and "cluster-api-operator" in row.name]
    if not found:
        yield verdict(False, "", "no Deployment of the Cluster API operator was found")
    for row in found:
        name = f"{row.namespace}/{row.name}"
        yield verdict(0 < row.desired <= row.ready, name, f"{name}: {row.ready} of {row.desired} ready")


@check(
    title="Every Cluster API provider is installed",
    remedy="The reason names the step that failed; see `kubectl describe` on the provider object.",
    source="operator.cluster.x-k8s.io/v1alpha2; a provider whose installedVersion differs from its version is not done",
)
def providers_are_installed(providers: Sequence[CapiProvider], crds: Sequence[Crd]) -> Iterator[Finding]:
    """One finding per provider, and one for the contract that the core serves."""
    for row in providers:
        name = f"{row.kind}/{row.name}"
        done = row.ready == "True" and row.installed_version == row.version
        state = f"{row.version}, installed {row.installed_version or 'nothing'}"
        why = "" if done else f"; {row.reason}: {row.message}"
        yield verdict(done, name, f"{name} {state}{why}")
    served = contracts_served(crds)
    if providers:
        message = (
            f"the core serves cluster.x-k8s.io {', '.join(served)}" if served else "the core serves no Machine API"
        )
        yield verdict(bool(served), "contract", message)


@check(
    title="Network agents run on every node",
    remedy="Look at the pod on that node; without its agent no pod there gets an address or a name.",
    source="Incidents 3 and 4 of the first attempt; pods of cozy-cilium, cozy-kubeovn, kube-system",
)
def agents_run_on_every_node(
    nodes: Sequence[KubeNode],
    pods: Sequence[Pod],
    *,
    agents: Sequence[tuple[str, str, str]] = (
        ("Cilium", "k8s-app", "cilium"),
        ("Kube-OVN", "app", "kube-ovn-cni"),
        ("Open vSwitch", "app", "ovs"),
    ),
) -> Iterator[Finding]:
    """One finding per agent: the nodes without a ready pod of it, by label and not by name."""
    for title, key, value in agents:
        mine = [pod for pod in pods if pod.labels.get(key) == value]
        if not mine:
            yield verdict(False, title, f"{title}: no pod with {key}={value} anywhere")
            continue
        ready_on = {pod.node for pod in mine if pod.ready}
        missing = sorted(node.name for node in nodes if node.name not in ready_on)
        reasons = sorted({reason for pod in mine if not pod.ready for reason in pod.reasons})
        why = f" ({', '.join(reasons)})" if reasons else ""
        message = f"not ready on {', '.join(missing)}{why}" if missing else f"ready on all {len(nodes)} nodes"
        yield verdict(not missing, title, f"{title}: {message}")


@check(
    title="Cluster DNS answers",
    remedy="Look at the CoreDNS pods; when they wait for an address, mend the pod network first.",
    source="Incident 3 of the first attempt (CoreDNS 0 of 4); pods with k8s-app=kube-dns",
)
def dns_is_ready(pods: Sequence[Pod]) -> Iterator[Finding]:
    """One finding: CoreDNS pods ready, on more than one node."""
    mine = [pod for pod in pods if pod.labels.get("k8s-app") == "kube-dns"]
    ready = [pod for pod in mine if pod.ready]
    places = {pod.node for pod in ready}
    message = f"CoreDNS: {len(ready)} of {len(mine)} ready on {len(places)} nodes"
    if len(ready) < max(1, len(mine)) / 2 or not ready:
        yield verdict(False, "CoreDNS", message)
    else:
        alone = len(ready) < len(mine) or len(places) < 2
        yield verdict(Status.WARN if alone else Status.PASS, "CoreDNS", message)


@check(
    title="Pods do not restart again and again",
    remedy="Read the last log with `kubectl logs --previous`.",
    source="Incident 4 of the first attempt (3,034 restarts in 179 days while nodes said Ready)",
)
def restarts_are_few(pods: Iterable[Pod], *, restarts_warn: int = 5, restarts_fail: int = 50) -> Iterator[Finding]:
    """One finding per pod above a threshold; one pass for the rest."""
    quiet = 0
    for pod in pods:
        if pod.restarts < restarts_warn:
            quiet += 1
            continue
        name = f"{pod.namespace}/{pod.name}"
        message = f"{name} on {pod.node} restarted {pod.restarts} times {', '.join(pod.reasons)}".strip()
        yield graded(pod.restarts, name, message, warn_at=restarts_warn, fail_at=restarts_fail)
    if quiet:
        yield verdict(True, "", f"{quiet} pods restarted fewer than {restarts_warn} times")


@check(
    title="No pod is stuck",
    remedy="Several pods with one reason have one cause: image, network, scheduling or runtime.",
    source="Incidents 3 to 7 of the first attempt; pod phases and container states",
)
def no_pod_is_stuck(pods: Sequence[Pod]) -> Iterator[Finding]:
    """One finding per reason with the pods it holds; one pass for the rest."""
    by_reason: dict[str, list[Pod]] = defaultdict(list)
    fine = 0
    for pod in pods:
        if pod.phase == "Succeeded" or (pod.phase == "Running" and pod.ready):
            fine += 1
        else:
            by_reason[pod.reasons[0] if pod.reasons else pod.phase].append(pod)
    for reason, stuck in sorted(by_reason.items(), key=lambda entry: -len(entry[1])):
        where = sorted({pod.node for pod in stuck if pod.node})
        shown = ", ".join(f"{pod.namespace}/{pod.name}" for pod in stuck[:3]) + (" …" if len(stuck) > 3 else "")
        on = f" on {', '.join(where)}" if where else ""
        detail = next((f": {pod.message}" for pod in stuck if pod.message), "")
        yield verdict(False, reason, f"{len(stuck)} pods{on}: {reason} ({shown}){detail}")
    if fine:
        yield verdict(True, "", f"{fine} of {len(pods)} pods are ready or done")


@check(
    title="Webhooks can be reached",
    remedy="Mend the Deployment behind the Service; do not delete the webhook, that loses its safety.",
    source="Incident 8 of the first attempt; EndpointSlices of the webhook's Service",
)
def webhooks_are_reachable(webhooks: Iterable[Webhook]) -> Iterator[Finding]:
    """One finding per webhook with a Service: ready endpoints; failurePolicy Ignore makes it a warning."""
    for hook in webhooks:
        if hook.ready_endpoints is None:
            continue
        name = f"{hook.configuration}/{hook.name}"
        message = f"{name} ({hook.kind}): {hook.ready_endpoints} ready endpoints behind {hook.service}"
        weak = Status.WARN if hook.failure_policy == "Ignore" else Status.FAIL
        yield verdict(Status.PASS if hook.ready_endpoints else weak, name, message)


@check(
    title="Webhooks carry a valid CA",
    remedy="Let cert-manager's CA injector renew it (`cmctl renew`), or re-install the component.",
    source="Incident 8 of the first attempt (x509: unknown authority); caBundle of the configuration",
)
def webhook_ca_is_valid(
    webhooks: Iterable[Webhook], *, now_epoch: float | None = None, certificate_warn_days: int = 30
) -> Iterator[Finding]:
    """One finding per webhook: a CA bundle that parses and has not expired."""
    now_epoch = time.time() if now_epoch is None else now_epoch
    for hook in webhooks:
        name = f"{hook.configuration}/{hook.name}"
        if hook.ca_error:
            yield verdict(False, name, f"{name}: {hook.ca_error}")
        elif hook.ca_not_after is None:
            yield verdict(None, name, f"{name}: no CA bundle, the system's roots are used")
        else:
            days = (hook.ca_not_after - now_epoch) / 86400
            status = Status.FAIL if days <= 0 else Status.WARN if days < certificate_warn_days else Status.PASS
            words = f"expired {-days:.0f} days ago" if days <= 0 else f"valid for {days:.0f} more days"
            yield verdict(status, name, f"{name}: CA {words}")


@check(
    title="Aggregated APIs are available",
    remedy="Mend the Service behind it; until then `kubectl get` hangs and namespaces cannot be deleted.",
    source="apiregistration.k8s.io/v1 APIService conditions",
)
def api_services_are_available(services: Iterable[ApiService]) -> Iterator[Finding]:
    """One finding per APIService that has a Service behind it."""
    for row in services:
        why = "" if row.available == "True" else f": {row.reason}: {row.message}"
        yield verdict(row.available == "True", row.name, f"{row.name} by {row.service}: {row.available}{why}")


@check(
    title="A storage class is there",
    remedy="Create the classes `local` and `replicated` as CozyStack's documentation shows; it ships none.",
    source="Sprint 1.1; storage.k8s.io/v1 StorageClass",
)
def storage_class_exists(classes: Sequence[StorageClass]) -> Iterator[Finding]:
    """One finding for the set, one more where not exactly one class is the default."""
    names = ", ".join(f"{row.name} ({row.provisioner})" for row in classes)
    yield verdict(bool(classes), "classes", names or "there is no StorageClass")
    default = [row.name for row in classes if row.default]
    if classes and len(default) != 1:
        message = f"default classes: {', '.join(default) or 'none'}; a claim without a class gets " + (
            "the newest of them" if default else "no volume"
        )
        yield verdict(Status.WARN, "default", message)


@check(
    title="Monitoring is there",
    remedy="Enable the monitoring package of the root tenant; CozyStack runs VictoriaMetrics, not Prometheus.",
    source="Sprint 4.2; operator.victoriametrics.com, grafana.integreatly.org",
)
def monitoring_is_present(parts: Sequence[MonitoringPart]) -> Iterator[Finding]:
    """One finding per part by kind, never by a name; no store or no collector is a fail."""
    for role, kinds in (("metrics store", STACK), ("collector", SHIPPING)):
        if not any(part.kind in kinds for part in parts):
            yield verdict(False, role, f"no {role}: none of {', '.join(sorted(kinds))} exists")
    for part in parts:
        name = f"{part.kind} {part.namespace}/{part.name}"
        state = {True: "operational", False: "not operational", None: "tells no state"}[part.operational]
        status = {True: Status.PASS, False: Status.FAIL, None: Status.WARN}[part.operational]
        yield verdict(status, name, f"{name}: {state}{': ' + part.detail if part.detail else ''}")


@check(
    title="The integration can work with these versions",
    remedy="Choose the version named here; for a newer line raise the operator, then the core, then the providers.",
    source="Compatibility matrix (runbook_lib/versions.py): CAPMOX metadata.yaml, CRD labels, served versions",
)
def versions_fit(verdicts: Iterable[Verdict]) -> Iterator[Finding]:
    """One finding per component: can it work here, which version, and why."""
    for row in verdicts:
        choice = f" {row.choice}" if row.choice else ""
        can = {True: "can work", False: "cannot work", None: "cannot be told"}[row.works]
        yield verdict(row.works, row.component, f"{row.component}{choice} {can}: {row.why}")


def _roots(name: str, releases: dict[str, Release]) -> list[str]:
    """The broken releases that depend on nothing broken, below `name`; a cycle counts as its own root."""
    roots: list[str] = []
    seen: set[str] = set()
    queue = [name]
    while queue:
        current = queue.pop(0)
        if current in seen:
            continue
        seen.add(current)
        row = releases.get(current)
        if row is None:
            roots.append(f"{current} (absent)")
            continue
        broken = [other for other in row.depends_on if other not in releases or releases[other].ready != "True"]
        queue += broken
        if not broken:
            roots.append(current)
    return sorted(roots) or [name]
