"""Judgement of monitoring: who is there, whether its series say what Proxmox VE says, and whether anybody is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runbook_lib.checks import check, verdict
from runbook_lib.facts import (
    DashboardState,
    DrillStage,
    MonitoringService,
    Panel,
    RuleState,
    ScrapeTarget,
    Told,
)
from runbook_lib.model import Finding, Status

NEEDED = frozenset({"metrics", "collector"})
NAMES = {
    "metrics": "store of metrics",
    "collector": "collector",
    "rules": "evaluation of alert rules",
    "alerts": "alert manager",
    "logs": "store of logs",
    "dashboards": "dashboards",
}


@check(
    title="The cluster has monitoring that answers",
    remedy="Enable the monitoring package of the root tenant, and look at the pods of the service that is named.",
    source="Sprint 4.2; operator.victoriametrics.com, grafana.integreatly.org; the API server's service proxy",
)
def every_part_answers(services: Iterable[MonitoringService]) -> Iterator[Finding]:
    """One finding per role: the program that plays it, found by the object it was made of, and asked."""
    for row in services:
        name = NAMES.get(row.role, row.role)
        if row.answers:
            yield verdict(True, row.role, f"{name}: {row.kind} behind {row.namespace}/{row.service}:{row.port} answers")
        elif row.kind:
            yield verdict(
                False, row.role, f"{name}: {row.namespace}/{row.service}:{row.port} gives no answer: {row.told}"
            )
        else:
            worse = Status.FAIL if row.role in NEEDED else Status.WARN
            yield verdict(worse, row.role, f"{name}: none; {row.told}")


@check(
    title="The exporter can be installed",
    remedy="See the reason; a collector is wanted that reads VMServiceScrape or ServiceMonitor.",
    source="Sprint 4.2: Proxmox metrics",
)
def exporter_may_be_installed(problems: Sequence[str], changes: int) -> Iterator[Finding]:
    """One finding: nothing is in the way, or one fail per thing that is."""
    for problem in problems:
        yield verdict(False, problem.partition(":")[0], problem)
    if not problems:
        told = f"{changes} changes are wanted" if changes else "everything is as wanted already"
        yield verdict(True, "plan", told)


@check(
    title="The exporter knows whom it gives its token to",
    remedy="Name the CA of Proxmox VE in `proxmox.ca_file` (/etc/pve/pve-root-ca.pem); the exporter knows no "
    "fingerprints.",
    source="prometheus-pve-exporter, verify_ssl; REQUESTS_CA_BUNDLE",
)
def exporter_verifies_tls(verified: bool) -> Iterator[Finding]:
    """One finding: the certificate is verified; where it cannot be, the token goes to whoever answers: a warning."""
    told = "verifies the certificate of Proxmox VE" if verified else "takes any certificate"
    yield verdict(Status.PASS if verified else Status.WARN, "tls", f"the exporter {told}")


@check(
    title="The exporter runs",
    remedy="Read `kubectl -n <namespace> logs deploy/prometheus-pve-exporter`, and its pod's events.",
    source="Sprint 4.2: Proxmox metrics; Deployment prometheus-pve-exporter",
)
def exporter_runs(state: tuple[bool | None, str]) -> Iterator[Finding]:
    """One finding: a pod of it is available. Not installed is a skip."""
    yield verdict(state[0], "exporter", state[1])


@check(
    title="The collector gets what it asks for",
    remedy="`401` or `403`: the token; `certificate`: proxmox.ca_file; `timeout`: the way from pods to port 8006. The "
    "exporter answers 500 for all of these, and its log has the cause.",
    source="Sprint 4.2: Proxmox metrics; vmagent /api/v1/targets",
)
def targets_are_up(targets: Iterable[ScrapeTarget], *, wanted: int = 0) -> Iterator[Finding]:
    """One finding per target; fewer than there should be is a fail."""
    rows = list(targets)
    for row in rows:
        told = "was not asked yet" if row.up is None else f"gives {row.samples} samples" if row.up else row.error
        status = Status.WARN if row.up is None else Status.PASS if row.up else Status.FAIL
        yield verdict(status, f"{row.job} {row.instance}", f"{row.job} of {row.instance}: {told}")
    if len(rows) < wanted:
        yield verdict(False, "targets", f"the collector has {len(rows)} of {wanted} targets")


@check(
    title="Everything in Proxmox VE has its series",
    remedy="Missing: the exporter's token sees less than there is (VM.Audit, Datastore.Audit and Sys.Audit on /), or "
    "the scrape fails. Left over: two exporters write to one store, or one asks another cluster.",
    source="Sprint criterion: monitoring collects Proxmox metrics; GET /cluster/resources beside pve_up",
)
def everything_has_its_series(rows: Iterable[Told]) -> Iterator[Finding]:
    """One finding per kind of thing: every node, guest and storage has a series, and nothing else has."""
    mine = [row for row in rows if row.metric == "pve_up"]
    for kind, prefixes in (("nodes", ("node",)), ("guests", ("qemu", "lxc")), ("storages", ("storage",))):
        own = [row for row in mine if row.thing.split("/")[0] in prefixes]
        missing = [row.thing for row in own if row.series is None]
        extra = [row.thing for row in own if row.proxmox is None]
        there = sum(row.proxmox is not None for row in own)
        if missing:
            yield verdict(False, kind, f"{kind}: {len(missing)} of {there} without a series: {', '.join(missing[:10])}")
        if extra:
            yield verdict(False, f"{kind} left over", f"{kind}: series of what is not there: {', '.join(extra[:10])}")
        if own and not missing and not extra:
            yield verdict(True, kind, f"{kind}: all {there} have a series, and nothing else has")


@check(
    title="Series of Proxmox VE are fresh",
    remedy="Look at the collector's targets; a scrape that takes longer than its timeout brings nothing.",
    source="Sprint criterion: monitoring collects Proxmox metrics; timestamp(pve_up)",
)
def series_are_fresh(rows: Iterable[Told], *, series_seconds: float = 120.0) -> Iterator[Finding]:
    """One finding: the oldest newest sample is no older than this."""
    ages = {row.thing: row.age_seconds for row in rows if row.age_seconds is not None}
    if ages:
        thing = max(ages, key=lambda name: ages[name] or 0.0)
        oldest = ages[thing] or 0.0
        told = f"the newest samples of {len(ages)} things are at most {oldest:.0f} s old ({thing})"
        yield verdict(oldest <= series_seconds, "age", told)


@check(
    title="Series say what Proxmox VE says",
    remedy="Compare with `pvesh get /cluster/resources`; a store that mixes two clusters says both.",
    source="Sprint criterion: monitoring collects Proxmox metrics; GET /cluster/resources beside the series",
)
def series_agree(rows: Iterable[Told]) -> Iterator[Finding]:
    """One finding per metric: each value within its tolerance of what the API says at that time."""
    both = [row for row in rows if row.proxmox is not None and row.series is not None]
    for metric in sorted({row.metric for row in both}):
        mine = [row for row in both if row.metric == metric]
        wrong = [row for row in mine if abs((row.proxmox or 0) - (row.series or 0)) > row.tolerance]
        if wrong:
            told = "; ".join(f"{row.thing} {row.series:g}, Proxmox VE says {row.proxmox:g}" for row in wrong[:5])
            yield verdict(False, metric, f"{metric}: {len(wrong)} of {len(mine)} differ: {told}")
        else:
            yield verdict(True, metric, f"{metric}: {len(mine)} values agree")


@check(
    title="Alert rules are evaluated",
    remedy="`kubectl describe vmrule proxmox` has the operator's word; a VMAlert has to select the rule's namespace.",
    source="Sprint 4.2; VMRule status, vmalert /api/v1/rules",
)
def rules_are_evaluated(rules: Iterable[RuleState]) -> Iterator[Finding]:
    """One finding per rule: the alerter has it, and evaluates it without an error."""
    for row in rules:
        told = row.error or ("evaluated" if row.loaded else "the alerter does not have it")
        yield verdict(row.loaded and not row.error, row.name, f"{row.name}: {told}")


@check(
    title="Alert rules can fire",
    remedy="Without these series the rule stays silent whatever happens: find out who should have written them.",
    source="Sprint 4.2; each selector of a rule asked on its own",
)
def rules_can_fire(rules: Iterable[RuleState]) -> Iterator[Finding]:
    """One finding per rule: every series that it asks for is there."""
    for row in rules:
        if row.without_data:
            yield verdict(False, row.name, f"{row.name} can never fire: no series of {', '.join(row.without_data)}")
        else:
            yield verdict(True, row.name, f"{row.name}: what it asks for is there")


@check(
    title="Dashboards are in Grafana",
    remedy="`kubectl describe grafanadashboard` has the operator's word; a Grafana needs the label dashboards=grafana.",
    source="Sprint 4.2: dashboards; grafana.integreatly.org GrafanaDashboard",
)
def dashboards_are_applied(boards: Iterable[DashboardState]) -> Iterator[Finding]:
    """One finding per dashboard: the operator has given it to a Grafana."""
    for row in boards:
        if row.applied is None:
            yield verdict(Status.WARN, row.name, f"{row.name}: the operator has not spoken of it")
        else:
            told = "applied" if row.applied else row.told
            yield verdict(row.applied, row.name, f"{row.name}: {told}")


@check(
    title="Every panel shows something",
    remedy="Ask the query by hand in Grafana, under Explore; a panel without series is a question nobody answers.",
    source="Sprint 4.2: dashboards; each panel's query asked of the store",
)
def panels_have_data(panels: Iterable[Panel]) -> Iterator[Finding]:
    """One finding per dashboard: each of its queries gives at least one series."""
    rows = list(panels)
    for name in dict.fromkeys(row.dashboard for row in rows):
        mine = [row for row in rows if row.dashboard == name]
        empty = [f"{row.title} ({row.error or 'no series'})" for row in mine if not row.series]
        told = f"without data: {', '.join(empty)}" if empty else f"all {len(mine)} panels have data"
        yield verdict(not empty, name, f"{name}: {told}")


@check(
    title="An alert comes and goes",
    remedy="Not pending: the scrape or the rule; not firing: the alerter; not notified: the alert manager, or the "
    "alerter's `notifiers`; not resolved: who keeps the series alive.",
    source="Sprint 4.2; a fire drill: a VM that does not run, an alert about it, and its end",
)
def alert_comes_and_goes(stages: Iterable[DrillStage], *, alert_seconds: float = 300.0) -> Iterator[Finding]:
    """One finding per state: reached, and firing no later than this after its cause."""
    for row in stages:
        if row.machine != "alert":
            continue
        if not row.reached:
            yield verdict(False, row.stage, f"the alert was never seen {row.stage}: {row.told}")
        else:
            late = row.stage == "firing" and row.seconds > alert_seconds
            told = f"the alert was {row.stage} after {row.seconds:.1f} s"
            yield verdict(Status.WARN if late else Status.PASS, row.stage, told)


@check(
    title="Logs are central",
    remedy="Look at fluent-bit on the pod's node, then at vlinsert: one of them drops a line that never comes.",
    source="Sprint criterion: monitoring and logging are central; a word written by a pod, looked for in VictoriaLogs",
)
def logs_are_central(stages: Iterable[DrillStage], *, log_seconds: float = 60.0) -> Iterator[Finding]:
    """One finding per state: the pod wrote the line, and the central store has it no later than this."""
    for row in stages:
        if row.machine != "log line":
            continue
        took = row.seconds - row.since
        if not row.reached:
            yield verdict(False, row.stage, f"the line was never seen {row.stage}: {row.told}")
        else:
            late = row.stage == "found" and took > log_seconds
            yield verdict(
                Status.WARN if late else Status.PASS, row.stage, f"the line was {row.stage} after {took:.1f} s"
            )
