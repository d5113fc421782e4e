"""Judgement of Proxmox VE: version, quorum, headroom, clocks, tasks, updates, templates, response time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Protocol

from runbook_lib.checks import check, graded, verdict
from runbook_lib.facts import Clock, Cluster, Guest, Node, PveVersion, Task, Template, Update
from runbook_lib.model import Finding, Measurement, Status
from runbook_lib.versions import PVE_END_OF_LIFE, at_least, numbers

GIB = 1024**3
SOON_DAYS = 90


@check(
    title="Proxmox VE is recent enough",
    remedy="Upgrade Proxmox VE along the vendor's path (7 to 8, 8 to 9), one major at a time.",
    source="Sprint 1.1 (minimum 7.0); Proxmox VE FAQ, support life cycle; GET /version",
)
def version_is_supported(
    version: PveVersion, *, proxmox_version: str = "7.0", today: date | None = None
) -> Iterator[Finding]:
    """One finding for the floor and one for the end of life of the major version."""
    reached = at_least(version.version, proxmox_version)
    words = "reaches" if reached else "is below"
    yield verdict(
        reached, "floor", f"Proxmox VE {version.version} {words} the floor {proxmox_version}", version=version.version
    )
    today = today or datetime.now(UTC).date()
    major = numbers(version.version)[0]
    end = PVE_END_OF_LIFE.get(major)
    if end is None:
        known = major > max(PVE_END_OF_LIFE)
        message = f"Proxmox VE {major} is supported" if known else f"Proxmox VE {major} is older than the support table"
        yield verdict(known, "end of life", message)
        return
    left = (end - today).days
    if left >= 0:
        status = Status.WARN if left < SOON_DAYS else Status.PASS
        yield verdict(status, "end of life", f"support of Proxmox VE {major} ends on {end}, in {left} days")
    else:
        yield verdict(Status.WARN, "end of life", f"support of Proxmox VE {major} ended on {end}, {-left} days ago")


@check(
    title="The cluster has quorum",
    remedy="Bring the missing nodes back; see `pvecm status`. Without quorum every write is refused.",
    source="Proxmox VE Cluster Manager; GET /cluster/status",
)
def cluster_is_quorate(cluster: Cluster) -> Iterator[Finding]:
    """One finding for the cluster; a standalone node has no quorum to lose."""
    if cluster.name is None:
        only = ", ".join(member.name for member in cluster.members)
        yield verdict(Status.PASS, only, "a standalone node: no quorum is needed, and nothing survives its loss")
        return
    online = sum(member.online for member in cluster.members)
    words = "has" if cluster.quorate else "has lost"
    message = f"cluster {cluster.name} {words} quorum with {online} of {len(cluster.members)} nodes online"
    yield verdict(bool(cluster.quorate), cluster.name, message)


@check(
    title="Every node is online",
    remedy="See the node's console and `systemctl status pve-cluster pveproxy`; 595 means the API cannot reach it.",
    source="GET /cluster/status, GET /nodes/{node}/status",
)
def every_node_is_online(nodes: Iterable[Node]) -> Iterator[Finding]:
    """One finding per node: online in the cluster's view and answering for itself."""
    for node in nodes:
        if not node.online:
            yield verdict(False, node.name, f"{node.name} is offline. {node.error}".strip())
        elif node.error:
            yield verdict(False, node.name, f"{node.name} counts as online but does not answer: {node.error}")
        else:
            yield verdict(True, node.name, f"{node.name} is online, up {_days(node.uptime_seconds)}")


@check(
    title="Every node runs the same release",
    remedy="Finish the rolling upgrade; mixed releases break live migration and hide API differences.",
    source="GET /nodes/{node}/status",
)
def releases_agree(nodes: Iterable[Node]) -> Iterator[Finding]:
    """One finding over all nodes that answered."""
    by_version: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node.pve_version:
            by_version["/".join(node.pve_version.split("/")[:2])].append(node.name)
    if not by_version:
        return
    listing = "; ".join(f"{version}: {', '.join(sorted(names))}" for version, names in sorted(by_version.items()))
    yield verdict(Status.PASS if len(by_version) == 1 else Status.WARN, "", listing)


@check(
    title="Processors have headroom",
    remedy="Move guests or add a node; contention shows as steal time in the guests.",
    source="Sprint 1.1; GET /nodes/{node}/status, GET /cluster/resources",
)
def cpu_has_headroom(
    nodes: Iterable[Node],
    guests: Sequence[Guest],
    *,
    cpu_warn: float = 0.80,
    cpu_overcommit_warn: float = 4.0,
    cpu_overcommit_fail: float = 8.0,
) -> Iterator[Finding]:
    """Two findings per node: use now (never worse than a warning) and virtual CPUs promised per real one."""
    for node in nodes:
        if not node.cpus:
            yield verdict(None, node.name, f"{node.name} gave no figures: {node.error or 'no Sys.Audit on it?'}")
            continue
        if node.cpu_fraction is not None:
            status = Status.WARN if node.cpu_fraction >= cpu_warn else Status.PASS
            yield verdict(status, node.name, f"{node.name} uses {node.cpu_fraction:.0%} of {node.cpus} CPUs now")
        promised = sum(guest.cpus for guest in _running(guests, node.name))
        ratio = promised / node.cpus
        yield graded(
            ratio,
            node.name,
            f"{node.name} promises {promised:g} virtual CPUs on {node.cpus}: {ratio:.1f} each",
            warn_at=cpu_overcommit_warn,
            fail_at=cpu_overcommit_fail,
            ratio=ratio,
        )


@check(
    title="Memory has headroom",
    remedy="Stop or move guests, or add memory; an overcommitted node ends guests when they all want their share.",
    source="Sprint 1.1; GET /nodes/{node}/status, GET /cluster/resources",
)
def memory_has_headroom(
    nodes: Iterable[Node],
    guests: Sequence[Guest],
    *,
    memory_warn: float = 0.85,
    memory_fail: float = 0.95,
    memory_overcommit_warn: float = 1.0,
) -> Iterator[Finding]:
    """Two findings per node: use now, and memory promised to running guests against what is there."""
    for node in nodes:
        if not node.memory_bytes or node.memory_used_bytes is None:
            yield verdict(None, node.name, f"{node.name} gave no figures: {node.error or 'no Sys.Audit on it?'}")
            continue
        used = node.memory_used_bytes / node.memory_bytes
        yield graded(
            used,
            node.name,
            f"{node.name} uses {used:.0%} of {_gib(node.memory_bytes)} GiB",
            warn_at=memory_warn,
            fail_at=memory_fail,
            used=used,
        )
        promised = sum(guest.memory_bytes for guest in _running(guests, node.name))
        ratio = promised / node.memory_bytes
        status = Status.WARN if ratio > memory_overcommit_warn else Status.PASS
        yield verdict(
            status,
            node.name,
            f"{node.name} promises {_gib(promised)} of {_gib(node.memory_bytes)} GiB to running guests: {ratio:.2f}",
            ratio=ratio,
        )


@check(
    title="The site has room for what is planned",
    remedy="Free memory, or lower the budget in the site's parameters.",
    source="Sprint, risks: too few resources; GET /nodes/{node}/status",
)
def room_for_the_plan(nodes: Iterable[Node], *, cpus_free: float = 4, memory_free_gib: float = 8) -> Iterator[Finding]:
    """One finding each for CPUs and memory free over all online nodes, against what the site requires."""
    known = [node for node in nodes if node.online and node.cpus and node.memory_bytes]
    if not known:
        return
    cpus = sum((node.cpus or 0) * (1 - (node.cpu_fraction or 0)) for node in known)
    memory = sum((node.memory_bytes or 0) - (node.memory_used_bytes or 0) for node in known)
    yield verdict(cpus >= cpus_free, "CPU", f"{cpus:.1f} CPUs are idle; the site requires {cpus_free:g}")
    enough = memory >= memory_free_gib * GIB
    yield verdict(enough, "memory", f"{_gib(memory)} GiB are free; the site requires {memory_free_gib:g}")


@check(
    title="The largest node may fail",
    remedy="Keep the memory of the largest node free over the others, or accept in writing that guests will stay down.",
    source="Sprint, risks: too few resources; GET /nodes, GET /cluster/resources",
)
def largest_node_may_fail(nodes: Sequence[Node], guests: Sequence[Guest]) -> Iterator[Finding]:
    """One finding: whether the running guests' memory fits in what remains without the largest node."""
    known = [node for node in nodes if node.online and node.memory_bytes]
    if not known:
        return
    if len(known) == 1:
        yield verdict(Status.WARN, known[0].name, f"{known[0].name} is the only node: its loss stops every guest")
        return
    largest = max(known, key=lambda node: node.memory_bytes or 0)
    remains = sum(node.memory_bytes or 0 for node in known) - (largest.memory_bytes or 0)
    needed = sum(guest.memory_bytes for guest in guests if guest.status == "running")
    words = "fit" if needed <= remains else "do not fit"
    yield verdict(
        Status.PASS if needed <= remains else Status.WARN,
        largest.name,
        f"without {largest.name}, {_gib(remains)} GiB remain; running guests of {_gib(needed)} GiB {words}",
        remains_bytes=remains,
        needed_bytes=needed,
    )


@check(
    title="Clocks agree",
    remedy="Check chrony on the node (`chronyc tracking`); skew breaks tickets, certificates and etcd.",
    source="GET /nodes/{node}/time",
)
def clocks_agree(
    clocks: Iterable[Clock], *, clock_skew_warn_seconds: float = 1, clock_skew_fail_seconds: float = 5
) -> Iterator[Finding]:
    """One finding per node: its offset from this machine beyond what the measurement cannot tell apart."""
    for clock in clocks:
        certain = max(0.0, abs(clock.offset_seconds) - clock.uncertainty_seconds)
        where = "ahead" if clock.offset_seconds > 0 else "behind"
        yield graded(
            certain,
            clock.node,
            f"{clock.node} is {abs(clock.offset_seconds):.2f} s {where} (± {clock.uncertainty_seconds:.2f} s)",
            warn_at=clock_skew_warn_seconds,
            fail_at=clock_skew_fail_seconds,
            offset_seconds=clock.offset_seconds,
        )


@check(
    title="No task failed lately",
    remedy="Open the task's log in the web interface or with GET /nodes/{node}/tasks/{upid}/log.",
    source="GET /nodes/{node}/tasks?errors=1",
)
def no_task_failed(tasks: Sequence[Task], nodes: Sequence[Node]) -> Iterator[Finding]:
    """One warning per failed task of the last day, or one pass per node that answered and has none."""
    failed_on = {task.node for task in tasks}
    for task in tasks:
        what = f"{task.type} {task.id}".strip()
        yield verdict(Status.WARN, task.upid, f"{what} on {task.node} by {task.user} ended with: {task.status}")
    for node in nodes:
        if node.online and not node.error and node.name not in failed_on:
            yield verdict(True, node.name, f"no task failed on {node.name} in the last day")


@check(
    title="No security update waits",
    remedy="Apply with `apt update && apt dist-upgrade` node by node, guests moved away first.",
    source="GET /nodes/{node}/apt/update",
)
def no_security_update_waits(updates: Sequence[Update], nodes: Sequence[Node]) -> Iterator[Finding]:
    """One finding per node that answered: security updates warn, others are only counted."""
    for node in nodes:
        if not node.online or node.error:
            continue
        waiting = [update for update in updates if update.node == node.name]
        grave = sorted(update.package for update in waiting if update.security)
        if grave:
            yield verdict(
                Status.WARN,
                node.name,
                f"{node.name}: {len(grave)} security updates wait: {_some(grave)}",
                packages=grave,
            )
        else:
            yield verdict(True, node.name, f"{node.name}: {len(waiting)} updates wait, none of them for security")


@check(
    title="Templates are fit for use",
    remedy="Enable the agent, add a cloud-init drive, use VirtIO SCSI single and `boot: order=…` (qm set, then retry).",
    source="CAPMOX docs and issue #225; CSI driver requirements; GET /nodes/{node}/qemu/{vmid}/config",
)
def templates_are_fit(templates: Iterable[Template]) -> Iterator[Finding]:
    """One finding per template: what breaks a machine is a fail, what only hinders it a warning."""
    for template in templates:
        breaks, hinders = _faults(template)
        subject = f"{template.vmid} ({template.name})"
        if breaks:
            yield verdict(False, subject, f"{subject}: {'; '.join(breaks + hinders)}")
        elif hinders:
            yield verdict(Status.WARN, subject, f"{subject}: {'; '.join(hinders)}")
        else:
            yield verdict(True, subject, f"{subject}: agent, cloud-init, {template.scsi_controller}, {template.boot}")


@check(
    title="The API answers quickly",
    remedy="Look at pveproxy's load and at the network between here and the node; see the histogram.",
    source="Sprint 2.1 (response time); targets of the integration plan: 2 s",
)
def api_is_quick(measurements: Iterable[Measurement], *, api_p95_ms: float = 2000) -> Iterator[Finding]:
    """One finding per endpoint class: its p95 against the threshold; any failed request is a fail."""
    for measurement in measurements:
        p50, p95, p99 = (measurement.percentile(percent) for percent in (50, 95, 99))
        if p50 is None or p95 is None or p99 is None:
            yield verdict(None, measurement.name, f"{measurement.name}: no request was answered")
            continue
        figures = f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms of {len(measurement.values)} requests"
        if measurement.errors:
            yield verdict(False, measurement.name, f"{measurement.name}: {measurement.errors} failed; {figures}")
        else:
            threshold = measurement.threshold or api_p95_ms
            yield verdict(p95 <= threshold, measurement.name, f"{measurement.name}: {figures}; limit {threshold:g} ms")


class Unread(Protocol):
    """A fact that a node did not give: `proxmox.Unread`."""

    @property
    def fact(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def reason(self) -> str: ...


@check(
    title="Everything could be read",
    remedy="Grant the privilege that the reason names, or bring the node back; what was not read was not judged.",
    source="Answers of the nodes; 403 names the missing privilege, 595 an unreachable node",
)
def everything_was_read(unread: Sequence[Unread]) -> Iterator[Finding]:
    """One warning per fact and node that could not be read; one pass where nothing was left out."""
    for row in unread:
        yield verdict(Status.WARN, f"{row.node} {row.fact}", f"{row.fact} of {row.node}: {row.reason}")
    if not unread:
        yield verdict(True, "", "every node gave every fact that was asked of it")


def _faults(template: Template) -> tuple[list[str], list[str]]:
    breaks, hinders = [], []
    if not template.boot or not template.boot.startswith("order="):
        breaks.append(f"boot is {template.boot or 'not set'}, CAPMOX wants order=…")
    elif not set(template.boot.removeprefix("order=").split(";")) & set(template.disks):
        breaks.append(f"{template.boot} names none of its disks ({', '.join(template.disks) or 'none'})")
    if not template.networks:
        breaks.append("no network device")
    if not template.scsi_controller or not template.scsi_controller.startswith("virtio-scsi"):
        breaks.append(f"SCSI controller is {template.scsi_controller or 'the default lsi'}, CSI needs VirtIO SCSI")
    if not template.agent:
        breaks.append("the guest agent is off")
    if not template.cloudinit_slot:
        hinders.append("no cloud-init drive (CAPMOX brings its own, other tools need one)")
    if not template.serial:
        hinders.append("no serial port, cloud images expect serial0")
    return breaks, hinders


def _running(guests: Iterable[Guest], node: str) -> list[Guest]:
    return [guest for guest in guests if guest.node == node and guest.status == "running" and not guest.template]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def _days(seconds: int | None) -> str:
    return "for an unknown time" if seconds is None else f"{seconds / 86400:.1f} days"


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
