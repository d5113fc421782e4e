"""Step 42 on a site: what is to be installed, whether Proxmox VE's series say what Proxmox VE says, and the drills."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook_lib import alerts, dashboards, exporter, prepare, proofs
from runbook_lib import kubernetes_monitoring as reads
from runbook_lib.errors import ApiError, NotFound, RunbookError, SecretError, WaitTimeout
from runbook_lib.executors import BORROWED, guest_undo, labelled, reference, target_of
from runbook_lib.facts import (
    Cluster,
    DashboardState,
    DrillStage,
    MonitoringService,
    Panel,
    RuleState,
    ScrapeTarget,
    Told,
)
from runbook_lib.model import Change, ChangeKind, Measurement
from runbook_lib.plan import Applied, mark
from runbook_lib.prepare import Wanted
from runbook_lib.privileges import user_of

Object = dict[str, Any]

COMPONENT = "exporter"
RULES = "proxmox"
DRILL, DRILL_LASTS = "RunbookDrill", "30s"
ALERT, LOG_LINE = "alert", "log line"
CSI_DRIVER = "csi.proxmox.sinextra.dev"


@dataclass(frozen=True)
class Look:
    """The site as step 42 sees it."""

    services: tuple[MonitoringService, ...]
    cluster: Cluster
    components: tuple[str, ...]  # "proxmox", and "csi" and "capmox" where they are installed
    namespace: str
    cluster_target: str
    node_targets: tuple[str, ...]
    scrapes: tuple[str, str]  # (apiVersion, kind) of what tells the collector; empty where nothing can
    rules: tuple[str, str]
    dashboards: str  # apiVersion of GrafanaDashboard
    namespaces: Mapping[str, str]  # of the components

    @property
    def board_namespace(self) -> str:
        """Where dashboards go: beside the Grafana, for from elsewhere every tenant's Grafana would get them."""
        return next((row.namespace for row in self.services if row.role == "dashboards" and row.kind), self.namespace)

    @property
    def jobs(self) -> tuple[str, ...]:
        """What the exporter's targets are called."""
        return (alerts.JOB, alerts.NODE_JOB, alerts.OWN_JOB, alerts.TLS_JOB)


def look(pve: Any, k8s: Any, site: Any) -> Look:
    """The site as it is now, read from both sides."""
    from runbook_lib import proxmox

    cluster = proxmox.cluster(pve)
    spaces = {"csi": str(site.csi.namespace), "capmox": str(site.capi.namespace)}
    # a namespace is soon made: a component is where something of it is meant to run
    there = [name for name, space in spaces.items() if k8s.list(f"/apis/apps/v1/namespaces/{space}/deployments")]
    return Look(
        services=tuple(reads.stack(k8s)),
        cluster=cluster,
        components=("proxmox", *there),
        namespace=site.monitoring.namespace,
        cluster_target=exporter.address(str(site.proxmox.url)),
        node_targets=exporter.node_addresses(site, cluster),
        scrapes=_first(k8s, ((reads.VM, "VMServiceScrape"), (reads.COREOS, "ServiceMonitor"))),
        rules=_first(k8s, ((reads.VM, "VMRule"), (reads.COREOS, "PrometheusRule"))),
        dashboards=reads.served(k8s, reads.GRAFANA, "GrafanaDashboard"),
        namespaces=spaces,
    )


def _first(k8s: Any, kinds: Iterable[tuple[str, str]]) -> tuple[str, str]:
    for group, kind in kinds:
        version = reads.served(k8s, group, kind)
        if version:
            return version, kind
    return "", ""


# --- what is to be installed -------------------------------------------------------------------------


def installation(
    pve: Any, k8s: Any, site: Any, run: str, what: Look, *, root: Path | None = None, step: str = "42"
) -> Wanted:
    """Everything that is still to be done for Proxmox VE to be monitored; it stays."""
    root = root or prepare.project_folder()
    if problems := tuple(_in_the_way(what)):
        return Wanted(problems=problems)
    space = what.namespace
    pem = _authority_of(site)
    parts = [prepare.access(pve, site, run, components=(COMPONENT,), root=root)]
    parts.append(_object(k8s, exporter.namespace(space), run, "Namespace of the exporter"))
    if pem:
        parts.append(_object(k8s, exporter.authority(space, pem), run, "The CA that the exporter verifies by"))
    parts.append(_secret(k8s, site, run, what, root))
    image, pull = site.images.exporter, site.images.pull_policy or "IfNotPresent"
    parts.append(_object(k8s, exporter.probes(space), run, "How the certificates are looked at"))
    deployed = exporter.deployment(space, image, site.images.blackbox, trust=bool(pem), pull_policy=pull)
    parts.append(_object(k8s, deployed, run, "The exporter: reads Proxmox VE, and nothing of the cluster"))
    parts.append(_object(k8s, exporter.service(space), run, "How the collector finds it"))
    version, kind = what.scrapes
    asked = exporter.scrape(
        space,
        what.cluster_target,
        what.node_targets,
        api_version=version,
        kind=kind,
        interval=site.monitoring.interval_seconds,
    )
    parts.append(_object(k8s, asked, run, "One job for the cluster, one for each node"))
    if what.rules[1]:
        parts.append(_object(k8s, rule_manifest(site, what), run, "Alerts about Proxmox VE"))
    if what.dashboards:
        for board in dashboards.of(what.components):
            parts.append(_object(k8s, board_manifest(board, what), run, f"Dashboard: {board.title}"))
    return Wanted(
        tuple(change for part in parts for change in part.changes),
        tuple(name for part in parts for name in part.unchanged),
        tuple(dict.fromkeys(problem for part in parts for problem in part.problems)),
    ).numbered(step)


def _in_the_way(what: Look) -> Iterator[str]:
    if not what.scrapes[1]:
        yield f"collector: the cluster serves neither {reads.VM} VMServiceScrape nor {reads.COREOS} ServiceMonitor"
    for role in ("metrics", "collector"):
        row = next(row for row in what.services if row.role == role)
        if not row.answers:
            yield f"{role}: {row.told or 'does not answer'}"


def _object(k8s: Any, manifest: Object, run: str, summary: str) -> Wanted:
    return prepare.install_object(k8s, manifest, run, summary=summary)


def rule_manifest(site: Any, what: Look) -> Object:
    """The alerts of this site as the object that its alerter reads."""
    version, kind = what.rules
    given = alerts.of_site(site, what.components)
    return alerts.manifest(given, name=RULES, namespace=what.namespace, api_version=version, kind=kind)


def board_manifest(board: dashboards.Board, what: Look) -> Object:
    """A dashboard of this site."""
    return dashboards.manifest(
        board, namespace=what.board_namespace, api_version=what.dashboards, namespaces=what.namespaces
    )


def verifies(site: Any) -> bool:
    """Whether the exporter can verify the certificate: by the site's CA, or by an authority of the system."""
    return bool(site.proxmox.verify and not site.proxmox.fingerprint)


def _authority_of(site: Any) -> str:
    return Path(site.proxmox.ca_file).expanduser().read_text() if verifies(site) and site.proxmox.ca_file else ""


def _secret(k8s: Any, site: Any, run: str, what: Look, root: Path) -> Wanted:
    """The configuration as a Secret. Its value is compared and filled where it is sent, and written down nowhere."""
    from runbook_lib.secrets import resolve

    kept = prepare.secret_reference(site, COMPONENT)
    token_id = f"{user_of(COMPONENT, site)}!{COMPONENT}"
    text = exporter.config(token_id, verify=verifies(site))
    manifest = labelled(exporter.secret(what.namespace), run, "install")
    held = (k8s.find(f"/api/v1/namespaces/{what.namespace}/secrets/{exporter.NAME}") or {}).get("data") or {}
    if held.get(exporter.CONFIG_KEY):
        try:
            wanted = text.replace("{secret}", resolve(kept, base=root))
        except SecretError:  # the token is made by this very plan
            wanted = ""
        if base64.b64decode(held[exporter.CONFIG_KEY]).decode() == wanted:
            return Wanted(unchanged=(target_of(manifest),))
    change = Change(
        "",
        "kubernetes",
        "update" if held else "create",
        target_of(manifest),
        "Configuration of the exporter, filled from a reference when it is sent",
        ChangeKind.INSTALL,
        {"manifest": manifest, "secret_data": {exporter.CONFIG_KEY: {"text": text, "secret": kept}}},
        None,
        {exporter.CONFIG_KEY: text.replace("{secret}", f"value of {kept}")},
        None if held else {"delete": reference(manifest)},
    )
    return Wanted((change,))


# --- what became of it -------------------------------------------------------------------------------


def settled(
    k8s: Any,
    site: Any,
    what: Look,
    applied: Applied,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[ScrapeTarget]:
    """The exporter's targets, once each was scraped well, or the time is up."""
    if applied.refused and k8s.find(f"/api/v1/namespaces/{what.namespace}") is None:
        return []
    limit = clock() + (0.0 if applied.refused else float(site.monitoring.wait_seconds))
    if not applied.refused:
        _wait(
            k8s, f"/apis/apps/v1/namespaces/{what.namespace}/deployments/{exporter.NAME}", _is_available, limit, clock
        )
    wanted = _targets(what)
    while True:
        found = reads.targets(k8s, what.services, what.jobs)
        if (len(found) >= wanted and all(row.up for row in found)) or clock() > limit:
            return found
        if any(row.up is False for row in found) and clock() > limit - float(site.monitoring.wait_seconds) / 2:
            return found
        sleep(0.3)


def targets_wanted(k8s: Any, what: Look) -> int:
    """How many targets the collector should have: none while it was not told of any."""
    version, kind = what.scrapes
    if not kind:
        return 0
    asked = {"apiVersion": version, "kind": kind, "metadata": {"name": exporter.NAME, "namespace": what.namespace}}
    return _targets(what) if k8s.find(k8s.path_of(asked)) is not None else 0


def _targets(what: Look) -> int:
    """The cluster, each node by the exporter and by its certificate, and the exporter itself."""
    return 2 + 2 * len(what.node_targets)


def _wait(
    k8s: Any, path: str, predicate: Callable[[Object | None], bool], limit: float, clock: Callable[[], float]
) -> None:
    try:
        k8s.wait(path, predicate, max(1.0, limit - clock()))
    except (WaitTimeout, NotFound):
        return  # the check names what it is like


def _is_available(thing: Object | None) -> bool:
    status = (thing or {}).get("status") or {}
    fresh = status.get("observedGeneration") == ((thing or {}).get("metadata") or {}).get("generation")
    return bool(fresh and status.get("availableReplicas"))


def exporter_state(k8s: Any, what: Look) -> tuple[bool | None, str]:
    """Whether the exporter runs, and what it says; None where it is not installed."""
    path = f"/apis/apps/v1/namespaces/{what.namespace}/deployments/{exporter.NAME}"
    found = k8s.find(path)
    if found is None:
        return None, "it is not installed"
    if _is_available(found):
        return True, f"{exporter.NAME} is available in {what.namespace}"
    pods = k8s.list(
        f"/api/v1/namespaces/{what.namespace}/pods", labelSelector=f"app.kubernetes.io/name={exporter.NAME}"
    )
    return False, "; ".join(_trouble(k8s, pod) for pod in pods) or "it has no pod"


def _trouble(k8s: Any, pod: Object) -> str:
    name, space = pod["metadata"]["name"], pod["metadata"]["namespace"]
    rows = (pod.get("status") or {}).get("containerStatuses") or []
    waiting = [((row.get("state") or {}).get("waiting") or {}) for row in rows]
    told = ", ".join(f"{row.get('reason')}: {row.get('message', '')}" for row in waiting if row.get("reason"))
    try:
        last = k8s.logs(space, name, tail=1).strip()
    except ApiError:
        last = ""
    return f"{name}: {told or (pod.get('status') or {}).get('phase', '')}{f'; {last}' if last else ''}"


def rights(pve: Any, site: Any) -> list[proofs.Held]:
    """What the exporter's token may do beside what it needs; none while there is no token."""
    return [row for row in proofs.held(pve, site) if row.component == COMPONENT]


# --- both sides beside each other --------------------------------------------------------------------

_SIZES = {"pve_memory_size_bytes": "maxmem", "pve_disk_size_bytes": "maxdisk"}
_USED = {"pve_memory_usage_bytes": ("mem", "maxmem"), "pve_disk_usage_bytes": ("disk", "maxdisk")}
USED_TOLERANCE = 0.1
"""Of the size: between two scrapes a guest takes and gives back memory."""
SIZE_TOLERANCE = 0.01


def expected(pve: Any) -> dict[tuple[str, str], tuple[float, float]]:
    """(thing, metric) → (value, tolerance) as Proxmox VE tells it now."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    status = pve.get("/cluster/status") or []
    for row in status:
        if row["type"] == "node":
            found[f"node/{row['name']}", "pve_up"] = (float(row.get("online") or 0), 0.0)
    for row in pve.get("/cluster/resources") or []:
        thing = str(row["id"])
        if row["type"] not in {"node", "qemu", "lxc", "storage"}:
            continue
        if row["type"] != "node":
            well = row.get("status") == ("available" if row["type"] == "storage" else "running")
            found[thing, "pve_up"] = (float(well), 0.0)
        for metric, key in _SIZES.items():
            if key in row:
                found[thing, metric] = (float(row[key]), float(row[key]) * SIZE_TOLERANCE)
        for metric, (key, whole) in _USED.items():
            if key in row and row.get(whole):
                found[thing, metric] = (float(row[key]), float(row[whole]) * USED_TOLERANCE)
    return found


def compare(
    pve: Any,
    k8s: Any,
    site: Any,
    what: Look,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Told]:
    """Every quantity that either side tells, by thing and metric.

    Proxmox VE goes on meanwhile: where the sides differ they are looked at again, for two rounds of scrapes.
    """
    if reads.playing(what.services, "metrics") is None or not targets_wanted(k8s, what):
        return []
    limit = clock() + min(2.5 * float(site.monitoring.interval_seconds), float(site.monitoring.wait_seconds))
    while True:
        rows = _compared(pve, k8s, what)
        if not any(row.series is not None for row in rows):
            return rows
        if all(_agrees(row) for row in rows) or clock() > limit:
            return rows
        sleep(1.0)


def _agrees(row: Told) -> bool:
    return row.proxmox is not None and row.series is not None and abs(row.proxmox - row.series) <= row.tolerance


def _compared(pve: Any, k8s: Any, what: Look) -> list[Told]:
    metrics = ("pve_up", *_SIZES, *_USED)
    series: dict[tuple[str, str], float] = {}
    for metric in metrics:
        for sample in reads.query(k8s, what.services, f'{metric}{{job="{alerts.JOB}"}}'):
            series[sample.labels.get("id", ""), metric] = sample.value
    ages = {
        sample.labels.get("id", ""): max(0.0, sample.at - sample.value)
        for sample in reads.query(k8s, what.services, f'timestamp(pve_up{{job="{alerts.JOB}"}})')
    }
    wanted = expected(pve)
    things = sorted({key for key in (*wanted, *series) if key[0].split("/")[0] in {"node", "qemu", "lxc", "storage"}})
    return [
        Told(
            thing=thing,
            metric=metric,
            proxmox=wanted[thing, metric][0] if (thing, metric) in wanted else None,
            series=series.get((thing, metric)),
            tolerance=wanted[thing, metric][1] if (thing, metric) in wanted else 0.0,
            age_seconds=ages.get(thing),
        )
        for thing, metric in things
    ]


# --- rules and dashboards ----------------------------------------------------------------------------


def rule_states(k8s: Any, site: Any, what: Look, *, sleep: Callable[[float], None] = time.sleep) -> list[RuleState]:
    """Each alert of ours: whether the alerter evaluates it, and whether what it asks for is there."""
    if not what.rules[1] or reads.playing(what.services, "rules") is None:
        return []
    manifest = rule_manifest(site, what)
    refused = reads.rule_problem(k8s, manifest)
    if refused is None:
        return []
    given = alerts.of_site(site, what.components)
    loaded = reads.rules(k8s, what.services)
    for _ in range(10):
        if refused or all(rule.name in loaded for rule in given):
            break
        sleep(0.5)
        refused, loaded = reads.rule_problem(k8s, manifest), reads.rules(k8s, what.services)
    return [
        RuleState(
            name=rule.name,
            expression=rule.expression,
            loaded=rule.name in loaded and not refused,
            error=refused or loaded.get(rule.name, ""),
            without_data=tuple(ask for ask in rule.asks if not _has_data(k8s, what, ask)),
        )
        for rule in given
    ]


def _has_data(k8s: Any, what: Look, selector: str) -> bool:
    return bool(reads.query(k8s, what.services, f"count({selector})"))


def board_states(k8s: Any, what: Look, *, sleep: Callable[[float], None] = time.sleep) -> list[DashboardState]:
    """Our dashboards as the Grafana operator left them."""
    names = {board.name for board in dashboards.of(what.components)}
    for _ in range(10):
        found = [row for row in reads.dashboards(k8s, what.board_namespace) if row.name in names]
        if all(row.applied is not None for row in found):
            break
        sleep(0.5)
    return found


def panels(
    k8s: Any,
    site: Any,
    what: Look,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Panel]:
    """Every query of every panel, asked as Grafana would ask it, of the same store.

    A rate needs two scrapes: what gives nothing is asked again, for three of them.
    """
    if reads.playing(what.services, "metrics") is None or not targets_wanted(k8s, what):
        return []
    limit = clock() + min(3.0 * float(site.monitoring.interval_seconds), float(site.monitoring.wait_seconds))
    rows = [
        _panel(k8s, what, board.name, title, expression)
        for board in dashboards.of(what.components)
        for title, expression in dashboards.queries(dashboards.text(board, namespaces=what.namespaces))
    ]
    # where no panel has anything the scrape is to blame, and waiting helps nobody
    while any(row.series for row in rows) and any(_may_come(row) for row in rows) and clock() < limit:
        sleep(1.0)
        rows = [row if row.series else _panel(k8s, what, row.dashboard, row.title, row.expression) for row in rows]
    return rows


def _may_come(row: Panel) -> bool:
    return not row.series and "rate(" in row.expression


def _panel(k8s: Any, what: Look, dashboard: str, title: str, expression: str) -> Panel:
    try:
        return Panel(dashboard, title, expression, len(reads.query(k8s, what.services, expression)))
    except ApiError as refused:
        return Panel(dashboard, title, expression, None, str(refused.came or refused))


# --- drills ------------------------------------------------------------------------------------------


def drill(pve: Any, k8s: Any, site: Any, run: str, what: Look, *, step: str = "42") -> Wanted:
    """An alert from its cause to its end, and a line from a pod's log to the central store; all of it borrowed.

    The cause is real: an empty VM that is not running. When it goes, the alert has to go.
    """
    if reads.playing(what.services, "metrics") is None:
        return Wanted(problems=("drill: the cluster has no store of metrics that answers",))
    space = f"{site.names.prefix}-monitoring-{run.lower()}"
    made: list[Change] = [_borrow(run, _space(space), "Namespace of the drills")]
    if reads.playing(what.services, "logs") is not None:
        made.append(_log_probe(site, run, space))
    problems: list[str] = []
    vmid, node = _free(pve, site)
    if not what.rules[1] or reads.playing(what.services, "rules") is None:
        problems.append("alert: nothing evaluates rules here")
    elif vmid is None or node is None:
        problems.append("alert: no id of names.vmid_range is free, or no node is online")
    else:
        made += _alert(pve, site, run, what, space, vmid, node)
    return Wanted(tuple(made), (), tuple(problems)).numbered(step)


def _space(name: str) -> Object:
    return exporter.namespace(name)


def _borrow(run: str, manifest: Object, summary: str, **more: Any) -> Change:
    whole = labelled(manifest, run, "borrow")
    return Change(
        "",
        "kubernetes",
        "create",
        target_of(whole),
        summary,
        ChangeKind.BORROW,
        {"manifest": whole, **more},
        None,
        whole,
        {"delete": reference(whole)},
    )


def token_of(run: str) -> str:
    """The word that the probe writes into its log, once in the world."""
    return f"runbook-probe-{run.lower()}"


def _log_probe(site: Any, run: str, space: str) -> Change:
    container = {
        "name": "probe",
        "image": site.images.probe,
        "imagePullPolicy": site.images.pull_policy or "IfNotPresent",
        "command": ["/bin/sh", "-c", f"echo {token_of(run)}; sleep 300"],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "log-probe", "namespace": space}, "spec": spec}
    there = [{"path": f"/api/v1/namespaces/{space}/serviceaccounts/default", "until": "there", "seconds": 60}]
    sees = [{"drill": LOG_LINE, "stage": "written", "pod": "log-probe"}, {"drill": LOG_LINE, "stage": "found"}]
    words = "Pod that writes one word into its log"
    return _borrow(run, pod, words, after=there, see=[{**see, "namespace": space} for see in sees])


def _free(pve: Any, site: Any) -> tuple[int | None, str | None]:
    taken = {int(row["vmid"]) for row in pve.get("/cluster/resources", type="vm") or []}
    first, last = site.names.vmid_range.start, site.names.vmid_range.end
    vmid = next((number for number in range(last - 3, first - 1, -1) if number not in taken), None)
    online = sorted(str(row["node"]) for row in pve.get("/nodes") if row.get("status") == "online")
    usable = [node for node in online if site.names.nodes is None or node in site.names.nodes]
    return vmid, next(iter(usable), None)


def _alert(pve: Any, site: Any, run: str, what: Look, space: str, vmid: int, node: str) -> list[Change]:
    pools = {row["poolid"] for row in pve.get("/pools") or []}
    params = {
        "vmid": vmid, "name": f"{site.names.prefix}-drill", "memory": 64, "cores": 1, "ostype": "l26",
        "tags": f"{mark(run)};{BORROWED}", **({"pool": site.names.pool} if site.names.pool in pools else {}),
    }  # fmt: skip
    path, undo = f"/nodes/{node}/qemu", guest_undo(node, vmid, run)
    request = {"method": "POST", "path": path, "params": params, "cost": {"vms": 1}}
    cause = Change("", "proxmox", "create", f"{path}/{vmid}", "Empty VM that does not run: what the alert is about",
                   ChangeKind.BORROW, request, None, params, undo)  # fmt: skip
    name = f"{DRILL}{run.rpartition('-')[2].upper()}"
    rule = alerts.Rule(
        name, f'pve_up{{job="{alerts.JOB}",id="qemu/{vmid}"}} == 0', DRILL_LASTS, "none",
        "Drill of the runbook: VM {{ $labels.id }} does not run, as it should", "It ends by itself.", (),
    )  # fmt: skip
    version, kind = what.rules
    manifest = alerts.manifest([rule], name="drill", namespace=space, api_version=version, kind=kind)
    sees = [{"drill": ALERT, "stage": stage, "alert": name} for stage in ("pending", "firing", "notified")]
    made = _borrow(run, manifest, "Alert about that VM", see=sees)
    gone = Change("", "proxmox", "delete", f"{path}/{vmid}", "The VM goes, so that the alert has to go",
                  ChangeKind.BORROW, {"take_back": undo, "see": [{"drill": ALERT, "stage": "resolved", "alert": name}]},
                  params, None, {"nothing": "it is gone already"})  # fmt: skip
    return [cause, made, gone]


@dataclass
class Witness:
    """Looks after each change of the drills until what it is for has come, or the patience ends."""

    k8s: Any
    site: Any
    what: Look
    run: str
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    seen: list[DrillStage] = field(default_factory=list)
    _begun: dict[str, float] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _broken: set[str] = field(default_factory=set)

    def __call__(self, change: Change) -> None:
        """Nothing; what came of the change is among `seen`."""
        for see in change.request.get("see") or ():
            name, stage = str(see["drill"]), str(see["stage"])
            began = self._begun.setdefault(name, self.clock())
            reached, told = False, "not waited for: an earlier state was not reached"
            if name not in self._broken:
                reached, told = self._patiently(see)
            if not reached and stage != "notified":  # who evaluates and who tells people are two
                self._broken.add(name)
            seconds = round(self.clock() - began, 3)
            self.seen.append(DrillStage(name, stage, seconds, reached, told, self._last.get(name, 0.0)))
            self._last[name] = seconds

    def _patiently(self, see: Object) -> tuple[bool, str]:
        pause, limit = 0.1, self.clock() + float(self.site.monitoring.wait_seconds)
        while True:
            try:
                reached, told = getattr(self, f"_{see['stage']}")(see)
            except RunbookError as error:
                reached, told = False, str(error)
            if reached or self.clock() > limit:
                return reached, told
            self.sleep(pause)
            pause = min(1.0, pause * 1.3)

    def _pending(self, see: Object) -> tuple[bool, str]:
        state = reads.alert_state(self.k8s, self.what.services, see["alert"])
        return state in {"pending", "firing"}, f"the alerter has it {state}"

    def _firing(self, see: Object) -> tuple[bool, str]:
        state = reads.alert_state(self.k8s, self.what.services, see["alert"])
        return state == "firing", f"the alerter has it {state}"

    def _notified(self, see: Object) -> tuple[bool, str]:
        there = reads.is_notified(self.k8s, self.what.services, see["alert"])
        return there, f"the alert manager {'has' if there else 'does not have'} it"

    def _resolved(self, see: Object) -> tuple[bool, str]:
        state = reads.alert_state(self.k8s, self.what.services, see["alert"])
        there = reads.is_notified(self.k8s, self.what.services, see["alert"])
        told = f"the alerter has it {state}, the alert manager {'has it still' if there else 'no longer'}"
        return state == "inactive" and not there, told

    def _written(self, see: Object) -> tuple[bool, str]:
        text = self.k8s.logs(see["namespace"], see["pod"], tail=5)
        return token_of(self.run) in text, "the kubelet has the line" if text else "the pod wrote nothing yet"

    def _found(self, see: Object) -> tuple[bool, str]:
        rows = reads.log_lines(self.k8s, self.what.services, f'_time:15m "{token_of(self.run)}"')
        return bool(rows), f"{len(rows)} entries in the central store" if rows else "the central store has no such line"


def witness(k8s: Any, site: Any, run: str, what: Look) -> Witness:
    """Who looks on while the drills go."""
    return Witness(k8s, site, what, run)


def timings(stages: Iterable[DrillStage], site: Any) -> list[Measurement]:
    """How long each state took, with the site's limits."""
    limits = {"firing": site.thresholds.alert_seconds, "found": site.thresholds.log_seconds}
    return [
        Measurement(f"monitoring.{row.machine}: {row.stage}", "s", (round(row.seconds - row.since, 3),),
                    threshold=limits.get(row.stage))
        for row in stages
        if row.reached
    ]  # fmt: skip


# --- the alternative ---------------------------------------------------------------------------------


def native(pve: Any, what: Look) -> list[Object]:
    """Proxmox VE's own metric servers as they are set up, and one that would write to the cluster's store.

    It pushes lines of InfluxDB to vminsert, which CozyStack does not show outside of the cluster: it would have to be
    exposed first. It tells no quorum, no backup jobs and no storages that no node has.
    """
    rows: list[Object] = [
        {"state": "set up", **{key: row.get(key, "") for key in ("id", "type", "server", "port", "disable")}}
        for row in pve.get("/cluster/metrics/server") or []
    ]
    store = next((row for row in what.services if row.role == "metrics" and row.kind == "VMCluster"), None)
    if store is not None:
        server = store.service.replace("vmselect", "vminsert")
        rows.append(
            {"state": "possible", "id": "cozystack", "type": "influxdb", "port": 8480,
             "server": f"{server}.{store.namespace}, exposed", "api-path-prefix": "insert/0/influx"}
        )  # fmt: skip
    return rows


def kept_rules(site: Any, components: Sequence[str]) -> str:
    """The site's alerts as the file that promtool reads."""
    return alerts.file(alerts.of_site(site, components))
