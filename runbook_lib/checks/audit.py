"""Judgement of the security audit: Proxmox VE, Kubernetes and the runbook itself, with severity and benchmark numbers.

CIS numbers are those of the CIS Kubernetes Benchmark 1.11. Proxmox VE has no CIS benchmark; its numbers are those of
the community's Proxmox VE 9.x Hardening Guide (HomeSecExplorer). Pod Security Standards are Kubernetes' own. What a
stock installation has, and what needs somebody's decision, is a warning; what opens a door fails.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from runbook_lib.audit import (
    GUIDE,
    Account,
    AclEntry,
    AnonymousAnswer,
    ApiToken,
    BackupTarget,
    CanaryNote,
    Denial,
    Firewall,
    FirewallRule,
    GuestFence,
    ImageUse,
    KeptFile,
    PlainSecret,
    Power,
    Refusal,
    ServerFlags,
    Severity,
    Space,
    TrustUsed,
)
from runbook_lib.checks import check, verdict
from runbook_lib.facts import Interface, Webhook
from runbook_lib.model import Finding, Status
from runbook_lib.waivers import WaiverState

CIS, PSS, PVE_GUIDE = "CIS Kubernetes Benchmark", "Pod Security Standards", GUIDE
DAY = 86400
ROOT = "root@pam"
SHOWN = 4

Judged = Callable[..., list[Finding]]


def control(
    severity: Severity, *benchmarks: str, title: str, remedy: str, seen: str
) -> Callable[[Callable[..., Iterable[Finding]]], Judged]:
    """A check that tells its severity, the benchmark controls that it answers, and the request that shows it."""

    def decorate(judge: Callable[..., Iterable[Finding]]) -> Judged:
        judged = check(title=title, remedy=remedy, source="; ".join(("Sprint, security audit", *benchmarks, seen)))(
            judge
        )
        about = {"severity": str(severity), "benchmarks": list(benchmarks), "seen": seen}

        @functools.wraps(judged)
        def told(*facts: Any, **given: Any) -> list[Finding]:
            return [replace(row, evidence={**about, **row.evidence}) for row in judged(*facts, **given)]

        return told

    return decorate


# --- Proxmox VE: who may enter -----------------------------------------------------------------------


@control(
    Severity.CRITICAL,
    f"{PVE_GUIDE} 2.2.1",
    f"{PVE_GUIDE} 2.2.2",
    title="No token is as mighty as its user",
    remedy="Give the component a user of its own and a token with `pveum user token add <user> <name> --privsep 1`, "
    "grant it what notebook 13 shows, then remove this one.",
    seen="GET /access/users?full=1",
)
def tokens_are_separated(tokens: Iterable[ApiToken]) -> Iterator[Finding]:
    """One finding per token: root's without separation fails, another user's is a warning."""
    for row in tokens:
        if row.separated:
            yield verdict(True, row.id, f"{row.id} has privileges of its own")
        elif row.user == ROOT:
            told = f"{row.id} may do whatever root may, without a second factor"
            yield verdict(False, row.id, told)
        else:
            told = f"{row.id} may do whatever {row.user} may"
            yield verdict(Status.WARN, row.id, told, severity=str(Severity.MEDIUM))


@control(
    Severity.LOW,
    f"{PVE_GUIDE} 2.2.4",
    title="Tokens end",
    remedy="Set an end with `pveum user token modify <user> <name> --expire <epoch>`, and rotate in time; "
    "remove what has ended.",
    seen="GET /access/users?full=1",
)
def tokens_expire(
    tokens: Iterable[ApiToken], *, token_days: int = 400, now_epoch: float | None = None
) -> Iterator[Finding]:
    """One finding per token: it ends, and neither long ago nor only in years."""
    moment = time.time() if now_epoch is None else now_epoch
    for row in tokens:
        days = (row.expires - moment) / DAY
        if not row.expires:
            yield verdict(Status.WARN, row.id, f"{row.id} never ends")
        elif days <= 0:
            yield verdict(Status.WARN, row.id, f"{row.id} ended {-days:.0f} days ago and is still there")
        else:
            status = Status.PASS if days <= token_days else Status.WARN
            yield verdict(status, row.id, f"{row.id} ends in {days:.0f} days")


@control(
    Severity.HIGH,
    f"{PVE_GUIDE} 2.1.3",
    title="Administrators have a second factor",
    remedy="Datacenter → Permissions → Two Factor: add TOTP or WebAuthn and recovery keys; or ask for it in the realm.",
    seen="GET /access/tfa, /access/domains, /access/acl",
)
def administrators_have_a_second_factor(accounts: Iterable[Account], acl: Iterable[AclEntry]) -> Iterator[Finding]:
    """One finding per account that may give rights: root without a factor, as installed, is a warning; others fail."""
    lines = [row for row in acl if "Permissions.Modify" in row.privileges and row.path in {"/", "/access"}]
    for row in accounts:
        rules = row.userid == ROOT or any(
            line.who == row.userid if line.kind == "user" else line.kind == "group" and line.who in row.groups
            for line in lines
        )
        if not rules:
            continue
        if not row.enabled:
            yield verdict(True, row.userid, f"{row.userid} is switched off")
        elif row.factors or row.realm_factor:
            told = ", ".join(row.factors) or f"{row.realm_factor}, by its realm"
            yield verdict(True, row.userid, f"{row.userid} has a second factor: {told}")
        else:
            found = Status.WARN if row.userid == ROOT else Status.FAIL
            yield verdict(found, row.userid, f"{row.userid} enters with a password alone")


_HARMLESS = (".Audit",)


@control(
    Severity.HIGH,
    f"{PVE_GUIDE} 2.1.2",
    f"{PVE_GUIDE} 2.2.2",
    title="Nobody holds the whole tree without need",
    remedy="Grant on /pool/<pool>, /storage/<storage> or /nodes with `pveum acl modify`, then `pveum acl delete /`.",
    seen="GET /access/acl, /access/roles",
)
def root_path_is_kept(acl: Iterable[AclEntry]) -> Iterator[Finding]:
    """One finding per entry on `/`: a token that may change things everywhere fails, a person is a warning."""
    for row in acl:
        if row.path != "/":
            continue
        changes = sorted(name for name in row.privileges if not name.endswith(_HARMLESS))
        subject = f"{row.who} {row.role}"
        if not changes:
            yield verdict(True, subject, f"{row.kind} {row.who} may read everything ({row.role})")
        elif not row.propagates:
            yield verdict(True, subject, f"{row.kind} {row.who} has {row.role} on / alone, which spreads no further")
        else:
            found = Status.FAIL if row.kind == "token" else Status.WARN
            told = f"{row.kind} {row.who} has {row.role} on everything: {_some(changes)}"
            yield verdict(found, subject, told, privileges=changes)


@control(
    Severity.MEDIUM,
    f"{PVE_GUIDE} 2.1.1",
    title="The runbook does not work as root",
    remedy="Let notebook 13 make the runbook's own user and token, and name it in `proxmox.token_id` of the site.",
    seen="GET /access/permissions",
)
def runbook_is_not_root(identity: str) -> Iterator[Finding]:
    """One finding: as whom the runbook works."""
    name = identity.partition("!")[0]
    yield verdict(Status.WARN if name == ROOT else Status.PASS, identity, f"the runbook works as {identity}")


# --- Proxmox VE: doors and walls ---------------------------------------------------------------------


@control(
    Severity.MEDIUM,
    f"{PVE_GUIDE} 1.2.4",
    title="The firewall is on and closes",
    remedy="Let 8006 and 22 in from the management network first (IP set `management`), then switch the firewall on in "
    "the datacenter with the policy DROP; see the admin guide, Proxmox VE Firewall.",
    seen="GET /cluster/firewall/options, /nodes/{node}/firewall/options",
)
def firewall_is_on(firewalls: Sequence[Firewall]) -> Iterator[Finding]:
    """One finding per level: off, as installed, is a warning; on and letting everything in fails."""
    whole = next((row for row in firewalls if row.level == "datacenter"), None)
    for row in firewalls:
        if whole is not None and not whole.enabled and row is not whole:
            continue  # the datacenter's switch is the main switch
        if not row.enabled:
            yield verdict(Status.WARN, row.level, f"{row.level}: the firewall is off")
        elif row is whole and row.policy_in.upper() == "ACCEPT":
            yield verdict(False, row.level, f"{row.level}: the firewall is on and lets in whatever no rule forbids")
        else:
            yield verdict(True, row.level, f"{row.level}: the firewall is on")


PORTS = {8006: "web interface and API", 22: "SSH", 3128: "SPICE proxy"}
_MACROS = {"SSH": {22}, "Webcache": set(), "SPICEproxy": {3128}, "HTTPS": set()}
_ANYONE = {"", "0.0.0.0/0", "::/0"}


@control(
    Severity.HIGH,
    f"{PVE_GUIDE} 1.2.2",
    f"{PVE_GUIDE} 1.2.4",
    title="Management is not open to everyone",
    remedy="Give the rule a source, keep Proxmox VE off public addresses, and put management on a network of its own. "
    "The firewall lets its own local network in by itself: narrow the alias `local_network` where pods' machines live "
    "in it, and see notebook 41 for who reaches the API from a tenant.",
    seen="GET /cluster/firewall/rules, /nodes/{node}/firewall/rules, /nodes/{node}/network",
)
def management_is_not_exposed(firewalls: Sequence[Firewall], interfaces: Iterable[Interface]) -> Iterator[Finding]:
    """One finding per port: open to anyone by rule or on a public address fails, open to the network is a warning."""
    whole = next((row for row in firewalls if row.level == "datacenter"), None)
    if whole is None:
        return
    public = sorted({f"{row.node} {row.cidr}" for row in interfaces if row.cidr and _is_public(row.cidr)})
    for port, name in PORTS.items():
        subject, what = str(port), f"{port} ({name})"
        opened = [
            f"{row.level}: {rule.comment or rule.macro or rule.ports or 'every port'}"
            for row in firewalls
            for rule in row.rules
            if whole.enabled and rule.action.upper() == "ACCEPT" and rule.source in _ANYONE and _covers(rule, port)
        ]
        unwalled = not whole.enabled or whole.policy_in.upper() == "ACCEPT"
        if opened:
            yield verdict(False, subject, f"{what} is let in from anywhere by {_some(opened)}")
        elif unwalled and public:
            yield verdict(False, subject, f"{what} is open on public addresses: {_some(public)}")
        elif unwalled:
            yield verdict(Status.WARN, subject, f"{what} is open to whoever reaches the nodes' network")
        else:
            yield verdict(True, subject, f"{what} is closed but for what the rules name")


def _is_public(cidr: str) -> bool:
    try:
        return ipaddress.ip_interface(cidr).ip.is_global
    except ValueError:
        return False


def _covers(rule: FirewallRule, port: int) -> bool:
    if rule.macro:
        return port in _MACROS.get(rule.macro, set())
    if rule.protocol.lower() not in {"", "tcp", "6"}:
        return False
    if not rule.ports:
        return True
    for part in rule.ports.replace(" ", "").split(","):
        low, _, high = part.partition(":")
        if low.isdigit() and (high or low).isdigit() and int(low) <= port <= int(high or low):
            return True
    return False


@control(
    Severity.LOW,
    f"{PVE_GUIDE} 1.2.4",
    title="Guests have their own firewall",
    remedy="Set `firewall=1` at the guest's cards and switch the firewall on in its options; machines of the platform "
    "are guarded by Cilium on the inside, others by nothing else.",
    seen="GET /nodes/{node}/{qemu,lxc}/{vmid}/config and /firewall/options",
)
def guests_have_a_firewall(fences: Iterable[GuestFence]) -> Iterator[Finding]:
    """One finding per node: how many of its guests stand behind a firewall of their own."""
    for node, mine in _by_node(fences):
        bare = [f"{row.vmid} {row.name}" for row in mine if not row.firewalled]
        told = f"{node}: {len(mine) - len(bare)} of {len(mine)} guests have a firewall of their own"
        yield verdict(Status.WARN if bare else Status.PASS, node, told, without=bare)


@control(
    Severity.MEDIUM,
    f"{PVE_GUIDE} 1.2.2",
    title="Guests live apart from management",
    remedy="Give guests a VLAN tag or a bridge of their own, without an address of the node.",
    seen="GET /nodes/{node}/network, guests' configs",
)
def guests_live_apart(fences: Iterable[GuestFence], interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """One finding per node: no guest sits untagged on a bridge that carries the node's own address."""
    managed = {(row.node, row.name) for row in interfaces if row.cidr}
    for node, mine in _by_node(fences):
        beside = [f"{row.vmid} {row.name}" for row in mine if any((node, b) in managed for b in row.untagged_bridges)]
        told = f"{node}: {len(beside)} of {len(mine)} guests share a segment with the node's own address"
        yield verdict(Status.WARN if beside else Status.PASS, node, told, beside=beside)


@control(
    Severity.HIGH,
    f"{PVE_GUIDE} 1.2.7",
    f"{PVE_GUIDE} 1.2.8",
    title="No guest reaches past its hypervisor",
    remedy="Make containers unprivileged (restore a backup with `--unprivileged 1`); pass hardware and host folders "
    "only to guests that you trust like the node itself.",
    seen="GET /nodes/{node}/{qemu,lxc}/{vmid}/config",
)
def guests_are_contained(fences: Iterable[GuestFence]) -> Iterator[Finding]:
    """One finding per guest that is not contained: a privileged container fails, passed-through hardware warns."""
    rows = list(fences)
    for row in rows:
        subject = f"{row.vmid} {row.name}"
        if row.privileged:
            yield verdict(False, subject, f"{subject} is a privileged container: its root is {row.node}'s root")
        elif row.hardware:
            told = f"{subject} is given {_some(row.hardware)}, past the hypervisor"
            yield verdict(Status.WARN, subject, told, severity=str(Severity.MEDIUM))
    contained = sum(not row.privileged and not row.hardware for row in rows)
    if rows:
        yield verdict(Status.PASS if contained else None, "guests", f"{contained} of {len(rows)} guests are contained")


@control(
    Severity.MEDIUM,
    f"{PVE_GUIDE} 4.4",
    title="Backups are encrypted",
    remedy="Back up to Proxmox Backup Server with a key (`pvesm set <storage> --encryption-key autogen`), and "
    "keep the key somewhere else; a plain vzdump file is as readable as the disk.",
    seen="GET /cluster/backup, /storage",
)
def backups_are_encrypted(targets: Iterable[BackupTarget]) -> Iterator[Finding]:
    """One finding per backup job."""
    for row in targets:
        kind = row.kind or "a storage that is not there"
        told = f"{row.job} writes {'encrypted' if row.encrypted else 'in the clear'} to {row.storage} ({kind})"
        yield verdict(Status.PASS if row.encrypted else Status.WARN, row.job, told)


# --- Kubernetes: secrets and powers ------------------------------------------------------------------


@control(
    Severity.CRITICAL,
    f"{CIS} 5.4.1",
    f"{CIS} 5.4.2",
    title="No secret lies in plain sight",
    remedy="Move it into a Secret and name it with `valuesFrom` or `secretKeyRef`; then rotate it, because values stay "
    "in every revision of the release.",
    seen="GET helmreleases, packages, configmaps, pod templates",
)
def secrets_are_in_secrets(found: Iterable[PlainSecret]) -> Iterator[Finding]:
    """One finding per suspicious place, and a pass where there is none."""
    rows = list(found)
    for row in rows:
        where = f"{row.namespace}/{row.name}" if row.namespace else row.name
        told = f"{row.kind} {where} has {row.why} under {row.key}"
        seen = f"kubectl get {row.kind.lower()} {f'-n {row.namespace} ' if row.namespace else ''}{row.name} -o yaml"
        yield verdict(False, f"{row.kind} {where} {row.key}", told, seen=seen)
    if not rows:
        yield verdict(
            True, "cluster", "no HelmRelease, Package, ConfigMap or pod template holds what looks like a secret"
        )


@control(
    Severity.CRITICAL,
    f"{CIS} 5.1.1",
    f"{CIS} 5.1.2",
    f"{CIS} 5.1.3",
    f"{CIS} 5.1.8",
    title="Nobody rules the cluster without need",
    remedy="Bind a role with the verbs it uses, in its own namespace; `kubectl auth can-i --list --as=…` shows what it "
    "has. What the platform ships is its maker's choice: know it, and guard its namespace.",
    seen="GET clusterrolebindings, clusterroles",
)
def powers_are_needed(powers: Iterable[Power]) -> Iterator[Finding]:
    """One finding per subject and role: a tenant's fails, everybody's too; the platform's and people's are warnings.

    Accounts of the platform with a single power are many: they are one finding a power.
    """
    rows = list(powers)
    lesser = [row for row in rows if row.place == "platform" and "everything" not in row.powers]
    for power in sorted({power for row in lesser for power in row.powers}):
        names = [f"{row.namespace}/{row.name}" for row in lesser if power in row.powers]
        told = f"{len(names)} of the platform's accounts: {power} ({_some(names)})"
        yield verdict(Status.WARN, f"platform {power}", told, accounts=names, severity=str(Severity.MEDIUM))
    for row in rows:
        if row in lesser:
            continue
        told = f"{row.subject} {_power_words(row.powers)} ({row.role} by {row.binding})"
        seen = f"kubectl get clusterrolebinding {row.binding} -o yaml"
        everybody = row.name in {
            "system:anonymous", "system:unauthenticated", "system:authenticated", "system:serviceaccounts",
        }  # fmt: skip
        grave = row.place == "tenant" or everybody or (row.place == "other" and "everything" in row.powers)
        severity = Severity.CRITICAL if grave else Severity.MEDIUM
        found = Status.FAIL if grave else Status.WARN
        yield verdict(found, f"{row.subject} {row.binding}", told, seen=seen, severity=str(severity))
    if not rows:
        yield verdict(True, "cluster", "no account but Kubernetes' own has power over the whole cluster")


def _power_words(powers: Sequence[str]) -> str:
    return "may do everything" if "everything" in powers else ", ".join(powers)


# --- Kubernetes: pods and namespaces -----------------------------------------------------------------


@control(
    Severity.HIGH,
    f"{CIS} 5.2.1",
    f"{CIS} 5.2.2",
    f"{PSS} baseline",
    title="Tenants cannot run privileged pods",
    remedy="Label the namespace `pod-security.kubernetes.io/enforce: baseline`, or set the API server's default: Talos "
    "has it, kubeadm has not.",
    seen="POST pods?dryRun=All, namespace labels",
)
def privileged_pods_are_refused(spaces: Iterable[Space]) -> Iterator[Finding]:
    """One finding per tenant: a privileged pod is refused by a dry run. CozyStack lets its own accounts make pods, so
    a tenant without a level is a warning, and one that is labelled privileged fails."""
    for row in spaces:
        if row.place != "tenant":
            continue
        level = row.level or "none of its own"
        if row.privileged_refused:
            yield verdict(True, row.name, f"{row.name}: a privileged pod is refused (level: {level})")
        elif row.level == "privileged":
            yield verdict(False, row.name, f"{row.name} is labelled privileged: whoever makes pods there has the node")
        elif row.privileged_refused is None:
            yield verdict(None, row.name, f"{row.name}: not tried (level: {level}); {row.note}")
        else:
            yield verdict(Status.WARN, row.name, f"{row.name}: a privileged pod would be admitted (level: {level})")


SENSITIVE = ("/", "/etc", "/root", "/var/lib/kubelet", "/var/run", "/run", "/var/lib/etcd", "/proc", "/dev", "/boot")


@control(
    Severity.HIGH,
    f"{CIS} 5.2.2",
    f"{CIS} 5.2.3",
    f"{CIS} 5.2.5",
    f"{CIS} 5.2.12",
    f"{PSS} baseline",
    title="Only the platform touches the host",
    remedy="Take `privileged`, host namespaces and hostPath away; where a driver needs them, it belongs into a system "
    "namespace.",
    seen="GET pods",
)
def only_the_platform_touches_the_host(spaces: Iterable[Space]) -> Iterator[Finding]:
    """One finding per namespace outside of the platform with a hand on the host, and one that sums the platform up."""
    rows = list(spaces)
    for row in rows:
        if row.place == "platform" or not row.pods:
            continue
        hands = [f"{name} is privileged" for name in row.privileged]
        hands += [f"{name} is in a namespace of the host" for name in row.host_namespaces]
        hands += [f"{path} of the host" for path in row.host_paths]
        grave = bool(row.privileged or row.host_namespaces) or any(_is_sensitive(path) for path in row.host_paths)
        found = Status.FAIL if grave else Status.WARN if hands else Status.PASS
        told = f"{row.name}: {_some(hands) if hands else f'{row.pods} pods keep to themselves'}"
        yield verdict(found, row.name, told, hands=hands)
    ours = [row for row in rows if row.place == "platform"]
    if ours:
        told = (
            f"the platform runs {sum(len(row.privileged) for row in ours)} privileged pods, "
            f"{sum(len(row.host_namespaces) for row in ours)} in the host's namespaces and "
            f"{sum(len(row.host_paths) for row in ours)} mounts of the host's folders, in {len(ours)} namespaces"
        )
        yield verdict(True, "platform", told)


def _is_sensitive(mount: str) -> bool:
    path = mount.partition(": ")[2].rstrip("/") or "/"
    return any(path == entry or (entry != "/" and path.startswith(f"{entry}/")) for entry in SENSITIVE)


@control(
    Severity.LOW,
    f"{CIS} 5.1.5",
    f"{CIS} 5.1.6",
    title="Pods carry no token they do not use",
    remedy="Set `automountServiceAccountToken: false` at the account `default` and at pods that ask the API nothing.",
    seen="GET pods, serviceaccounts",
)
def tokens_are_mounted_where_needed(spaces: Iterable[Space]) -> Iterator[Finding]:
    """One finding per namespace of tenants and others: pods that carry a token of the account `default`."""
    for row in spaces:
        if row.place == "platform" or not row.pods:
            continue
        told = f"{row.name}: {row.with_default_account} of {row.pods} pods carry a token of the account default"
        yield verdict(Status.WARN if row.with_default_account else Status.PASS, row.name, told)


@control(
    Severity.LOW,
    f"{CIS} 5.5.1",
    title="Images are named by digest",
    remedy="Pin images as name:tag@sha256:…; `latest` runs whatever was pushed last, and differs from node to node.",
    seen="GET pods",
)
def images_are_pinned(images: Iterable[ImageUse]) -> Iterator[Finding]:
    """One finding per image called latest, which fails, and one per place that counts those without digest."""
    rows = list(images)
    for row in rows:
        if row.tag == "latest" and not row.pinned:
            told = f"{row.image} may be anything: {row.pods} pods of {_whose(row.place)}"
            yield verdict(False, f"{row.place} {row.image}", told, severity=str(Severity.HIGH))
    for place in sorted({row.place for row in rows}):
        mine = [row for row in rows if row.place == place]
        loose = [row.image for row in mine if not row.pinned]
        told = f"{_whose(place)}: {len(mine) - len(loose)} of {len(mine)} images are named by digest"
        yield verdict(Status.WARN if loose else Status.PASS, place, told, without=loose)


def _whose(place: str) -> str:
    return {"platform": "the platform", "tenant": "tenants", "other": "others"}.get(place, place)


@control(
    Severity.HIGH,
    f"{CIS} 5.3.2",
    title="Tenants deny by default",
    remedy="CozyStack writes these policies with every Tenant: look at its HelmRelease, and at who deleted them.",
    seen="GET networkpolicies, ciliumnetworkpolicies, ciliumclusterwidenetworkpolicies",
)
def tenants_deny_by_default(denials: Iterable[Denial]) -> Iterator[Finding]:
    """One finding per tenant: some policy chooses all its pods, for ingress and for egress. Packets: notebook 41."""
    for row in denials:
        missing = [way for way in ("ingress", "egress") if not getattr(row, way)]
        if missing:
            yield verdict(
                False, row.namespace, f"{row.namespace}: no policy chooses every pod for {' and '.join(missing)}"
            )
        else:
            told = f"{row.namespace}: closed by default, by {len(row.ingress)} policies in and {len(row.egress)} out"
            yield verdict(True, row.namespace, told)


# --- Kubernetes: the API server ----------------------------------------------------------------------


@control(
    Severity.LOW,
    f"{CIS} 5.1.12",
    title="Admission fails closed",
    remedy="Set `failurePolicy: Fail` where a refusal protects something, with two replicas and the webhook's own "
    "namespace left out; else whoever silences the webhook passes.",
    seen="GET validatingwebhookconfigurations, mutatingwebhookconfigurations",
)
def webhooks_fail_closed(webhooks: Iterable[Webhook]) -> Iterator[Finding]:
    """One finding per configuration: a validating webhook that is passed by when it does not answer is a warning."""
    by_name: dict[str, list[Webhook]] = {}
    for row in webhooks:
        if row.kind == "validating":
            by_name.setdefault(row.configuration, []).append(row)
    for name, mine in sorted(by_name.items()):
        open_ones = [row.name for row in mine if row.failure_policy == "Ignore"]
        told = f"{name}: {_some(open_ones)} is passed by when it is silent" if open_ones else f"{name} fails closed"
        yield verdict(Status.WARN if open_ones else Status.PASS, name, told)


@control(
    Severity.CRITICAL,
    f"{CIS} 1.2.1",
    title="A stranger learns nothing",
    remedy="Remove bindings of system:anonymous and system:unauthenticated; start the API server with "
    "--anonymous-auth=false, or with an AuthenticationConfiguration that lets strangers at /livez and /readyz alone.",
    seen="GET without credentials",
)
def strangers_learn_nothing(answers: Iterable[AnonymousAnswer]) -> Iterator[Finding]:
    """One finding per path: answered to a stranger fails; health and version, as most clusters have it, warn."""
    for row in answers:
        told = f"{row.path} answers {row.status} to a stranger"
        if row.status in {401, 403}:
            yield verdict(True, row.path, told)
        elif row.status == 200:
            found, severity = (Status.WARN, Severity.LOW) if row.public else (Status.FAIL, Severity.CRITICAL)
            yield verdict(found, row.path, told, severity=str(severity))
        else:
            yield verdict(None, row.path, f"{row.path}: no answer that tells ({row.status})")


@control(
    Severity.MEDIUM,
    f"{CIS} 1.2.6",
    f"{CIS} 1.2.16",
    f"{CIS} 1.2.27",
    title="The API server is started with care",
    remedy="Set --authorization-mode=Node,RBAC, --audit-log-path and --encryption-provider-config in its pod or in the "
    "machine config.",
    seen="GET pods of kube-apiserver",
)
def api_server_is_careful(servers: Iterable[ServerFlags]) -> Iterator[Finding]:
    """One finding per API server whose pod tells its flags: authorization, audit log, encryption at rest."""
    for row in servers:
        modes = row.flags.get("authorization-mode", "").split(",")
        missing = [
            what
            for flag, what in (("audit-log-path", "audit log"), ("encryption-provider-config", "encryption at rest"))
            if not row.flags.get(flag)
        ]
        careless = "AlwaysAllow" in modes
        if careless:
            yield verdict(False, row.pod, f"{row.pod} allows everybody everything", severity=str(Severity.CRITICAL))
        else:
            told = (
                f"{row.pod}: no {' and no '.join(missing)}" if missing else f"{row.pod} logs, encrypts and authorizes"
            )
            yield verdict(Status.WARN if missing else Status.PASS, row.pod, told)


# --- the runbook itself ------------------------------------------------------------------------------


@control(
    Severity.CRITICAL,
    title="Nothing is changed outside of a plan",
    remedy="A request went past the guard: stop, and report it; nothing here can be trusted to be read-only.",
    seen="a DELETE of what does not exist, made outside of a plan",
)
def nothing_is_changed_unasked(refusals: Iterable[Refusal]) -> Iterator[Finding]:
    """One finding per system: the change was refused, and nothing was sent."""
    for row in refusals:
        how = "refused" if row.refused else "let through"
        told = f"{row.system}: {row.request} outside of a plan was {how}: {row.came}"
        yield verdict(row.refused and not row.sent, row.system, told)


@control(
    Severity.CRITICAL,
    title="Redaction holds",
    remedy="A secret passed in the spelling named here: keep the run's files to yourself, rotate, and report it.",
    seen="a canary secret, through each door in each spelling",
)
def redaction_holds(notes: Iterable[CanaryNote]) -> Iterator[Finding]:
    """One finding per door: no spelling of the canary came through."""
    by_door: dict[str, list[CanaryNote]] = {}
    for row in notes:
        by_door.setdefault(row.door, []).append(row)
    for door, mine in by_door.items():
        seen = [row.spelled for row in mine if row.seen]
        told = f"{door}: seen {_some(seen)}" if seen else f"{door}: unseen in {len(mine)} spellings"
        yield verdict(not seen, door, told)


@control(
    Severity.HIGH,
    title="What the runbook keeps is its own",
    remedy="chmod -R go= on what is named here; a folder of credentials is 0700, its files 0600.",
    seen="modes of outputs/, .secrets/ and the credentials that the site names",
)
def files_are_private(files: Iterable[KeptFile]) -> Iterator[Finding]:
    """One finding for credentials, where any that others may read fails, one for results and one for what they hold."""
    rows = list(files)
    for what, secret in (("credentials", True), ("results", False)):
        mine = [row for row in rows if row.secret is secret]
        loose = [f"{row.path} ({row.mode:o})" for row in mine if row.mode & 0o077]
        if mine:
            found = Status.PASS if not loose else Status.FAIL if secret else Status.WARN
            told = f"{what}: {_some(loose)} may be read by others" if loose else f"{what}: {len(mine)} kept private"
            yield verdict(found, what, told, loose=loose)
    leaks = [row.path for row in rows if row.holds_known_secret]
    kept = sum(not row.secret for row in rows)
    if kept:
        told = f"a secret stands in {_some(leaks)}" if leaks else f"no known secret stands in {kept} files and folders"
        yield verdict(not leaks, "known secrets", told, severity=str(Severity.CRITICAL))


@control(
    Severity.HIGH,
    f"{PVE_GUIDE} 2.3.1",
    title="The runbook knows whom it talks to",
    remedy="Give the site a `ca_file` or a `fingerprint` and take `verify: false` away.",
    seen="the site's parameters",
)
def verification_is_on(trusts: Iterable[TrustUsed]) -> Iterator[Finding]:
    """One finding per system: its certificate is verified; not at all is a choice of the site's, and a warning."""
    for row in trusts:
        told = f"{row.system}: {'verified by ' + row.by if row.verified else 'anyone is believed, by this site'}"
        yield verdict(Status.PASS if row.verified else Status.WARN, row.system, told)


@control(
    Severity.MEDIUM,
    title="Changes are asked for",
    remedy="Leave `changes: forbid` where nothing is due, `ask` where a person approves each plan.",
    seen="the site's parameters",
)
def changes_are_asked_for(policy: str, emulated: bool) -> Iterator[Finding]:
    """One finding: a real site on which the runbook changes things by itself is a warning."""
    bold = policy == "allow" and not emulated
    yield verdict(Status.WARN if bold else Status.PASS, "changes", f"changes: {policy}{' on a rehearsal' * emulated}")


@control(
    Severity.HIGH,
    title="Every exception has an owner and an end",
    remedy="Mend what the waiver covers, or renew it with its owner's word; delete one that covers nothing.",
    seen="waivers of the site's parameters",
)
def waivers_hold(
    waivers: Iterable[WaiverState], *, waiver_days: int = 366, waiver_warn_days: int = 14
) -> Iterator[Finding]:
    """One finding per waiver: ended fails; soon to end, longer than a year, or covering nothing is a warning."""
    for row in waivers:
        subject = f"{row.check} {row.subject}"
        told = f"{row.owner} answers for {row.covers} findings of {subject} until {row.expires}"
        if row.days_left < 0:
            yield verdict(False, subject, f"{told}: ended {-row.days_left} days ago")
        elif not row.covers:
            yield verdict(Status.WARN, subject, f"{told}: it covers nothing any more")
        elif row.days_left > waiver_days:
            yield verdict(Status.WARN, subject, f"{told}: longer than a year is no exception")
        else:
            found = Status.WARN if row.days_left <= waiver_warn_days else Status.PASS
            yield verdict(found, subject, f"{told}: {row.days_left} days left")


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def _by_node(fences: Iterable[GuestFence]) -> list[tuple[str, list[GuestFence]]]:
    rows = list(fences)
    return [(node, [row for row in rows if row.node == node]) for node in sorted(Counter(row.node for row in rows))]
