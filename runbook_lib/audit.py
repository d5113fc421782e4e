"""What a security audit looks at, as rows, and what it found, as a checklist. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runbook_lib.model import Finding, Status, worst


class Severity(StrEnum):
    """What the breach of a control lets happen, the gravest first."""

    CRITICAL = "critical"  # someone else may rule one of the two systems
    HIGH = "high"  # one step away from that
    MEDIUM = "medium"  # a second line of defence is missing
    LOW = "low"  # good order


GUIDE = "Proxmox VE Hardening Guide"
OF_OTHER_STEPS: Mapping[str, tuple[Severity, tuple[str, ...]]] = {
    "security.privileges_are_least": (Severity.HIGH, (f"{GUIDE} 2.1.2", f"{GUIDE} 2.2.2")),
    "security.certificates_are_current": (Severity.HIGH, (f"{GUIDE} 2.3.2",)),
    "security.certificate_names_host": (Severity.MEDIUM, (f"{GUIDE} 2.3.1",)),
    "proxmox.no_security_update_waits": (Severity.HIGH, (f"{GUIDE} 1.1.3",)),
}
"""Checks of other steps that an audit asks too: their severity, and the controls that they answer."""


# --- Proxmox VE --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """One user of Proxmox VE. `factors` are the kinds of second factors that are switched on."""

    userid: str
    enabled: bool
    expires: int  # 0: never
    groups: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    realm_factor: str = ""  # what the realm asks of everybody: "oath", "yubico"


@dataclass(frozen=True)
class ApiToken:
    """One API token. One that is not separated may do whatever its user may."""

    id: str  # "user@realm!name"
    user: str
    separated: bool
    expires: int  # 0: never


@dataclass(frozen=True)
class AclEntry:
    """One line of the access list, with the privileges of its role."""

    path: str
    kind: str  # "user" | "group" | "token"
    who: str
    role: str
    propagates: bool
    privileges: tuple[str, ...] = ()


@dataclass(frozen=True)
class FirewallRule:
    """One incoming rule that is switched on; those of a security group stand in its place."""

    action: str
    source: str = ""  # empty: anyone
    macro: str = ""
    protocol: str = ""
    ports: str = ""  # as written: "22", "8000:8100,443"; empty: every port
    comment: str = ""


@dataclass(frozen=True)
class Firewall:
    """The firewall of the datacenter ("datacenter") or of one node."""

    level: str
    enabled: bool
    policy_in: str = "DROP"
    rules: tuple[FirewallRule, ...] = ()


@dataclass(frozen=True)
class GuestFence:
    """What stands between one guest, its node and the other guests."""

    vmid: int
    name: str
    node: str
    kind: str  # "qemu" | "lxc"
    firewalled: bool  # the guest's firewall is on, and on each of its cards
    untagged_bridges: tuple[str, ...] = ()
    privileged: bool = False  # a container whose root is the node's root
    hardware: tuple[str, ...] = ()  # "hostpci0", "usb1", "args", "mp0": ways past the hypervisor


@dataclass(frozen=True)
class BackupTarget:
    """Where one backup job writes, and whether what lies there is encrypted."""

    job: str
    storage: str
    kind: str  # type of the storage; empty when it is not known
    encrypted: bool


# --- Kubernetes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainSecret:
    """A place that anyone may read, and that looks as if it held a secret. Never the value itself."""

    kind: str
    namespace: str
    name: str
    key: str  # "values.proxmox.password"
    why: str  # "named like a password", "a private key in PEM"


@dataclass(frozen=True)
class Power:
    """What one subject may do everywhere in the cluster, summed up in words."""

    kind: str  # "ServiceAccount" | "User" | "Group"
    namespace: str
    name: str
    binding: str
    role: str
    powers: tuple[str, ...]  # "everything", "reads every Secret" …
    place: str  # "platform" | "tenant" | "other" | "outside" (users and groups)

    @property
    def subject(self) -> str:
        """ "ServiceAccount cozy-system/cozystack", "Group admins"."""
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {where}"


@dataclass(frozen=True)
class Space:
    """One namespace: whose it is, what admission holds it to, and what runs there with a hand on the host."""

    name: str
    place: str  # "platform" | "tenant" | "other"
    level: str  # of pod-security.kubernetes.io/enforce; empty: what the API server has as its default
    privileged_refused: bool | None = None  # by a dry run of a privileged pod; None: not tried
    note: str = ""
    pods: int = 0
    privileged: tuple[str, ...] = ()
    host_namespaces: tuple[str, ...] = ()
    host_paths: tuple[str, ...] = ()  # "pod: /etc"
    with_token: int = 0  # pods with a mounted token of the API server
    with_default_account: int = 0  # those of them that run as the account "default"


@dataclass(frozen=True)
class ImageUse:
    """One image as pods name it."""

    image: str
    tag: str  # empty with a digest alone, "latest" where nothing is said
    pinned: bool  # by digest
    pods: int
    place: str


@dataclass(frozen=True)
class Denial:
    """The policies that choose every pod of a tenant, by direction: whatever they do not allow is closed."""

    namespace: str
    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnonymousAnswer:
    """What the API server says to someone without credentials. `public` paths are open in most clusters."""

    path: str
    status: int
    public: bool


@dataclass(frozen=True)
class ServerFlags:
    """What one API server was started with, where its pod tells."""

    pod: str
    flags: Mapping[str, str]


# --- the runbook itself ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A request that would change something, made outside of a plan: refused here, and nothing was sent."""

    system: str
    request: str
    refused: bool
    sent: int
    came: str


@dataclass(frozen=True)
class CanaryNote:
    """A secret made up on purpose, on its way out through one door in one spelling."""

    door: str  # "text", "JSON", "log"
    spelled: str
    seen: bool


@dataclass(frozen=True)
class KeptFile:
    """A file or folder of the runbook's with its mode."""

    path: str  # from the project's root where it lies below it, else its name alone
    mode: int
    secret: bool  # it holds a secret, not only results
    holds_known_secret: bool = False


@dataclass(frozen=True)
class TrustUsed:
    """How the runbook knows whom it talks to."""

    system: str
    verified: bool
    by: str


# --- the checklist -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    severity: str
    verdict: Status
    item: str
    subject: str
    evidence: str
    seen: str  # the request that shows it
    benchmarks: str
    remedy: str
    waiver: str


@dataclass(frozen=True)
class Covered:
    """One numbered control of a public benchmark, and what the findings that bear on it came to."""

    benchmark: str
    verdict: Status
    findings: int
    checks: tuple[str, ...]


_ORDER = (Status.ERROR, Status.FAIL, Status.WARN, Status.SKIP, Status.NOT_RUN, Status.PASS)


def checklist(findings: Iterable[Finding]) -> list[Item]:
    """Every finding as a line, the gravest verdict and severity first; of one seen twice, the later."""
    latest = {(finding.check, finding.subject): finding for finding in findings}
    items = [_item(finding) for finding in latest.values()]
    severities = [str(entry) for entry in Severity]
    return sorted(items, key=lambda row: (_ORDER.index(row.verdict), severities.index(row.severity), row.item))


def tally(findings: Iterable[Finding]) -> list[dict[str, int | str]]:
    """How many findings of each severity came to what, and how many of them are waived."""
    rows = checklist(findings)
    told = []
    for severity in Severity:
        mine = [row for row in rows if row.severity == severity]
        counts: dict[str, int | str] = {"severity": str(severity)}
        counts |= {str(status): sum(row.verdict is status for row in mine) for status in _ORDER[:4]}
        counts |= {"pass": sum(row.verdict is Status.PASS for row in mine), "waived": sum(bool(r.waiver) for r in mine)}
        told.append(counts)
    return told


def coverage(findings: Iterable[Finding]) -> list[Covered]:
    """Every benchmark number that some finding bears on, sorted, with the worst of their verdicts."""
    by_number: dict[str, list[Finding]] = {}
    for finding in findings:
        for number in benchmarks_of(finding):
            by_number.setdefault(str(number), []).append(finding)
    return [
        Covered(
            number,
            worst(finding.status for finding in found),
            len(found),
            tuple(sorted({finding.check for finding in found})),
        )
        for number, found in sorted(by_number.items(), key=lambda entry: _numbered(entry[0]))
    ]


def severity_of(finding: Finding) -> Severity:
    """How grave a breach of the finding's control is."""
    known = OF_OTHER_STEPS.get(finding.check, (Severity.MEDIUM, ()))[0]
    return Severity(str(finding.evidence.get("severity") or known))


def benchmarks_of(finding: Finding) -> tuple[str, ...]:
    """The numbered controls that a finding bears on."""
    known = OF_OTHER_STEPS.get(finding.check, (Severity.MEDIUM, ()))[1]
    return tuple(map(str, finding.evidence.get("benchmarks") or known))


def document(findings: Iterable[Finding], *, site: str, run: str) -> str:
    """The checklist as a Markdown document, to be signed, filed or sent: what is open first, what holds after it."""
    rows = checklist(findings)
    parts = [
        f"# Security checklist: {site}",
        f"From run {run}. Times, requests and full evidence are in its notebook 44.",
    ]
    head = ("severity", *(str(status) for status in _ORDER[:4]), "pass", "waived")
    parts.append(_table(head, [[str(entry[key]) for key in head] for entry in tally(findings)]))
    for title, statuses in (
        ("Open", {Status.ERROR, Status.FAIL, Status.WARN}),
        ("Not looked at", {Status.SKIP, Status.NOT_RUN}),
        ("Holds", {Status.PASS}),
    ):
        mine = [row for row in rows if row.verdict in statuses]
        if mine:
            names: tuple[str, ...] = ("verdict", "severity", "item", "evidence", "benchmarks", "remedy", "waiver")
            if title == "Holds":
                names = names[:5]
            parts += [f"## {title}", _table(names, [[str(getattr(row, name)) for name in names] for row in mine])]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _item(finding: Finding) -> Item:
    waiver = finding.evidence.get("waiver") or {}
    return Item(
        severity=str(severity_of(finding)),
        verdict=finding.status,
        item=finding.title,
        subject=finding.subject,
        evidence=finding.message,
        seen=str(finding.evidence.get("seen") or finding.source),
        benchmarks=", ".join(benchmarks_of(finding)),
        remedy=finding.remedy,
        waiver=f"{waiver['owner']}, until {waiver['expires']}: {waiver['reason']}" if waiver else "",
    )


def _numbered(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, number = text.rpartition(" ")
    return (name, tuple(int(part) for part in number.split("."))) if number.replace(".", "").isdigit() else (text, ())
