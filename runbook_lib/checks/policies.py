"""Judgement of the pod network: who enforces policies, and whether packets go where the rules say they go."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, verdict
from runbook_lib.checks.preparation import Wanted
from runbook_lib.facts import CiliumSettings, Connection, Enforcement, OvnSettings, PairReading, Subnet
from runbook_lib.model import Finding, Status

SHIPPED = "as shipped"


# --- configuration -----------------------------------------------------------------------------------


@check(
    title="Cilium enforces policies",
    remedy="Set `policyEnforcementMode: default` and `policyAuditMode: false` for Cilium, and restart its agents.",
    source="Sprint 4.1; ConfigMap cilium-config, enable-policy and policy-audit-mode",
)
def cilium_enforces(settings: CiliumSettings | None) -> Iterator[Finding]:
    """One finding: enforcement is on, and not in audit mode, where everything is let through."""
    if settings is None:
        yield verdict(False, "cilium", "there is no ConfigMap cilium-config: nothing here enforces policies")
        return
    off = settings.enforcement == "never" or settings.audit
    how = "judged and not enforced (audit mode)" if settings.audit else f"enforced: {settings.enforcement}"
    yield verdict(not off, "cilium", f"policies are {how}")


@check(
    title="Cilium stands in for kube-proxy",
    remedy="CozyStack sets `kubeProxyReplacement: true`; without it, Services need a kube-proxy on every node.",
    source="Sprint 4.1; CozyStack packages/system/cilium; ConfigMap cilium-config",
)
def kube_proxy_is_replaced(settings: CiliumSettings | None) -> Iterator[Finding]:
    """One finding: Services are Cilium's, as CozyStack ships it."""
    if settings is not None:
        state = "stands in for" if settings.kube_proxy_replacement else "leaves Services to"
        found = Status.PASS if settings.kube_proxy_replacement else Status.WARN
        yield verdict(found, "cilium", f"Cilium {state} kube-proxy")


@check(
    title="Policies are the work of Cilium alone",
    remedy="Start kube-ovn-controller with --enable-np=false --enable-lb=false, as CozyStack ships it.",
    source="Sprint 4.1; CozyStack packages/system/kubeovn; arguments of kube-ovn-controller",
)
def kube_ovn_keeps_out(settings: OvnSettings | None) -> Iterator[Finding]:
    """One finding for policies and one for load balancing: Kube-OVN does neither."""
    for name, value in (
        (("policies", settings.policies), ("load balancing", settings.load_balancer)) if settings else ()
    ):
        told = {True: "on", False: "off", None: "not set, so it is on"}[value]
        found = Status.PASS if value is False else Status.WARN
        yield verdict(found, name, f"Kube-OVN: {name} {told}")


@check(
    title="Subnets of the pod network are ready",
    remedy="Read `kubectl describe subnet`; the gateway lies within the range, and kube-ovn-controller must run.",
    source="Sprint 4.1; kubeovn.io/v1 Subnet",
)
def subnets_are_ready(subnets: Iterable[Subnet]) -> Iterator[Finding]:
    """One finding per subnet: ready, and each gateway within its range."""
    for row in subnets:
        blocks = [ipaddress.ip_network(part.strip(), strict=False) for part in row.cidr.split(",") if part.strip()]
        gateways = [ipaddress.ip_address(part.strip()) for part in row.gateway.split(",") if part.strip()]
        outside = [str(way) for way in gateways if not any(way in block for block in blocks)]
        if outside:
            yield verdict(False, row.name, f"{row.name}: gateway {', '.join(outside)} lies outside of {row.cidr}")
            continue
        why = f" ({row.reason})" if row.reason and not row.ready else ""
        state = {True: "ready", False: "not ready", None: "of unknown state"}[row.ready]
        found = {True: Status.PASS, False: Status.FAIL, None: Status.WARN}[row.ready]
        yield verdict(found, row.name, f"{row.name} ({row.cidr}) is {state}{why}")


# --- packets -----------------------------------------------------------------------------------------


@check(
    title="Connections can be tried",
    remedy="The step makes its own tenants under tenant-root and needs a ready node; see the reason.",
    source="Sprint 4.1; apps.cozystack.io/v1alpha1 Tenant",
)
def connections_can_be_tried(wanted: Wanted) -> Iterator[Finding]:
    """One finding: what is planned, or one skip per reason why nothing is."""
    for problem in wanted.problems:
        yield verdict(None, problem.partition(":")[0], f"not tried; {problem}")
    if wanted.changes:
        spaces = sorted({row.target.split("/")[-2] for row in wanted.changes if "/Pod/" in row.target})
        yield verdict(True, "plan", f"{len(wanted.changes)} borrowed objects, all in {', '.join(spaces)}")


def _of(rows: Iterable[Connection], *relations: str) -> list[Connection]:
    return [row for row in rows if row.phase == SHIPPED and row.relation in relations]


def _by_source(rows: Sequence[Connection], *, worse: Status = Status.FAIL) -> Iterator[Finding]:
    """One finding per source: every connection of it is as expected; what was not tried is named and never a pass."""
    for source in sorted({row.source for row in rows}):
        mine = [row for row in rows if row.source == source]
        wrong = [row for row in mine if row.seen not in {row.expected, "unknown"}]
        untried = [row for row in mine if row.seen == "unknown"]
        if wrong:
            listing = "; ".join(dict.fromkeys(_words(row) for row in wrong))
            yield verdict(worse, source, f"from {source}: {listing}")
        elif untried:
            reasons = ", ".join(sorted({row.note for row in untried}))
            yield verdict(None, source, f"from {source}: {len(untried)} of {len(mine)} not tried; {reasons}")
        else:
            targets = ", ".join(dict.fromkeys(row.target for row in mine))
            yield verdict(True, source, f"from {source}: {mine[0].expected} as expected, {targets}")


def _words(row: Connection) -> str:
    return f"{row.protocol} to {row.target} is {row.seen} ({row.outcome}), {row.expected} was expected"


@check(
    title="Pods of one tenant reach each other",
    remedy="A node that fails alone: look at its kube-ovn-cni, ovs-ovn and cilium pods; all of them: at the tenant's "
    "policy allow-internal-communication.",
    source="Sprint 4.1: pod-to-pod connectivity; packets between pods on chosen nodes",
)
def tenant_is_whole(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source node: TCP and UDP reach the tenant's pods on every node."""
    yield from _by_source(_of(rows, "same tenant"))


@check(
    title="Siblings are apart",
    remedy="Isolation is the sender's: look at the Cilium agent of the source's node, then at the policy "
    "<tenant>-egress and the labels tenant.cozystack.io/… of both namespaces.",
    source="Sprint criterion: tenants are isolated; CozyStack packages/apps/tenant, <tenant>-egress",
)
def siblings_are_apart(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source: no packet gets to a sibling's pod, by its own address or by a node port."""
    yield from _by_source(_of(rows, "sibling", "sibling's node port"))


@check(
    title="A tenant reaches those below it, and they do not reach it",
    remedy="See the policies <tenant>-egress of both; the label tenant.cozystack.io/<tenant> makes a namespace its.",
    source="Sprint 4.1; CozyStack packages/apps/tenant, <tenant>-egress",
)
def tenants_go_one_way(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source: parent to child is open, child to parent closed."""
    yield from _by_source(_of(rows, "parent to child", "child to parent"))


@check(
    title="The API server wants the label",
    remedy="See the tenant's policy allow-to-apiserver: it opens for pods with policy.cozystack.io/allow-to-apiserver.",
    source="Sprint 4.1; CozyStack packages/apps/tenant, allow-to-apiserver",
)
def api_server_wants_the_label(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source: closed without the label, open with it."""
    yield from _by_source(_of(rows, "API server", "API server, labelled"))


@check(
    title="Tenants can ask DNS",
    remedy="See the tenant's policy allow-to-dns, whether CoreDNS carries k8s-app=kube-dns, and whether it runs.",
    source="Sprint 4.1; a Service's name looked up from tenants' pods",
)
def dns_answers_tenants(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source: a name of the cluster is found, and the DNS answers on TCP."""
    yield from _by_source(_of(rows, "DNS"))


@check(
    title="Tenants reach the internet",
    remedy="Where the site has none this is as it should be; else look at NAT of the subnet and at the nodes' way out.",
    source="Sprint 4.1; CozyStack packages/apps/tenant, allow-external-communication",
)
def internet_is_reached(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source; closed is a warning, for a site may have no internet."""
    yield from _by_source(_of(rows, "internet"), worse=Status.WARN)


@check(
    title="Nodes are closed to tenants",
    remedy="Look at the Cilium agent of the source's node; one that allows `host` or `remote-node` opens kubelets.",
    source="Sprint 4.1; CozyStack packages/apps/tenant: no rule names nodes",
)
def hosts_are_closed(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source: the kubelet of another node does not answer."""
    yield from _by_source(_of(rows, "host"))


@check(
    title="Proxmox VE is closed to tenants",
    remedy="Apply the policy that this step shows and tries (egressDeny of all tenants to the members' ports 22, 3128 "
    "and 8006), and the firewall rules beside it.",
    source="Sprint 4.1; to a tenant Proxmox VE is the world, and the world is open",
)
def proxmox_is_closed(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per source: a warning where port 8006 of a member answers, as it does on a stock CozyStack."""
    mine = _of(rows, "Proxmox VE API")
    for source in sorted({row.source for row in mine}):
        own = [row for row in mine if row.source == source]
        reached = [row.target for row in own if row.seen == "open"]
        if not reached and any(row.seen == "unknown" for row in own):
            yield verdict(None, source, f"from {source}: not tried; {own[0].note}")
        elif reached:
            yield verdict(Status.WARN, source, f"from {source}: port 8006 of {', '.join(reached)} answers")
        else:
            yield verdict(True, source, f"from {source}: no member's port 8006 answers")


# --- policies that were tried ------------------------------------------------------------------------


@check(
    title="A plain default-deny closes a tenant",
    remedy="Deny with a CiliumNetworkPolicy (`ingressDeny`), as this step does: permissions add up, and CozyStack's "
    "own allow-internal-communication permits what a NetworkPolicy leaves out.",
    source="Sprint 4.1: policy enforcement; Cilium: rules that allow are joined, rules that deny win",
)
def plain_deny_closes(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding: whether a NetworkPolicy without rules changed anything; a warning where it did not."""
    mine = [row for row in rows if row.phase == "plain deny" and row.relation == "same tenant"]
    if not mine:
        return
    still = [row for row in mine if row.seen == "open"]
    if not still and any(row.seen == "unknown" for row in mine):
        yield verdict(None, "default-deny", f"not tried; {mine[0].note}")
    else:
        told = f"{len(still)} of {len(mine)} connections still pass under a NetworkPolicy that permits none"
        yield verdict(Status.WARN if still else Status.PASS, "default-deny", told)


@check(
    title="Policies do what they say",
    remedy="Look at the Cilium agent of the node that is named: `cilium-dbg policy get` there, and its log.",
    source="Sprint criterion: network policies are enforced; connections before and after each policy",
)
def policies_are_enforced(rows: Iterable[Connection]) -> Iterator[Finding]:
    """One finding per policy: what it denies is closed, what it leaves is open."""
    named = {
        "deny": "ingressDeny",
        "deny but for a label": "ingressDeny with an exception",
        "egress rule": "egressDeny",
    }
    rows = list(rows)
    for phase, title in named.items():
        mine = [row for row in rows if row.phase == phase]
        wrong = [row for row in mine if row.seen not in {row.expected, "unknown"}]
        untried = [row for row in mine if row.seen == "unknown"]
        if wrong:
            listing = "; ".join(dict.fromkeys(f"from {row.source}: {_words(row)}" for row in wrong))
            yield verdict(False, phase, f"{title}: {listing}")
        elif untried:
            yield verdict(None, phase, f"{title}: not tried; {untried[0].note}")
        elif mine:
            closed = sum(row.expected == "closed" for row in mine)
            yield verdict(True, phase, f"{title}: {closed} connections closed, {len(mine) - closed} left open")


@check(
    title="A policy is in force soon",
    remedy="Agents that lag are short of CPU, or far behind in their queue: look at cilium_policy_regeneration_*.",
    source="Sprint 4.1: policy enforcement; connections that go on while the policy is applied",
)
def policy_is_soon_in_force(found: Enforcement | None, *, policy_seconds: float = 10.0) -> Iterator[Finding]:
    """One finding: the last connection that still passed came no later than this after the policy's answer."""
    if found is None:
        return
    if found.seconds is None:
        yield verdict(Status.FAIL, "policy", f"it was never seen in force: {found.note}")
    else:
        told = f"the last connection passed {found.seconds:.1f} s after the policy was answered"
        yield verdict(Status.PASS if found.seconds <= policy_seconds else Status.WARN, "policy", told)


@check(
    title="Frames of full size pass between nodes",
    remedy="Some MTU on the way is smaller than the pods believe: compare the nodes' cards, bridges and switches; "
    "Geneve takes 100 bytes of each frame.",
    source="Sprint 4.1 and risks: network trouble; a request of 8000 bytes and its echo between pods",
)
def full_frames_pass(readings: Iterable[PairReading]) -> Iterator[Finding]:
    """One finding per source node: a large request and its answer pass to pods on every node."""
    rows = list(readings)
    for source in sorted({row.source for row in rows}):
        mine = [row for row in rows if row.source == source]
        stuck = [row.target for row in mine if row.full_frames is False]
        untried = [row.target for row in mine if row.full_frames is None]
        if stuck:
            yield verdict(False, source, f"{source}: small frames pass and large ones do not, to {', '.join(stuck)}")
        elif untried:
            yield verdict(None, source, f"{source}: not tried to {', '.join(untried)}, where no connection opened")
        else:
            yield verdict(True, source, f"{source}: 8000 bytes and their echo pass to {len(mine)} nodes")


@check(
    title="Pods have one MTU on every node",
    remedy="Kube-OVN takes it from the node's card unless `--mtu` is set: make the cards agree.",
    source="Sprint 4.1; /sys/class/net/eth0/mtu of pods on each node",
)
def pod_mtu_agrees(readings: Iterable[PairReading]) -> Iterator[Finding]:
    """One finding: the MTU of the pods' interfaces, the same wherever it was read."""
    found = {row.source: row.mtu for row in readings if row.mtu}
    if found:
        told = ", ".join(f"{node} {mtu}" for node, mtu in sorted(found.items()))
        yield verdict(len(set(found.values())) == 1, "mtu", told)
