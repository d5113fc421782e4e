"""Step 42 before anything is sent, and its witnesses: promtool for the rules, Grafana's SDK for the dashboards."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook_lib import alerts, dashboards, exporter, kubernetes_monitoring, monitoring, privileges
from runbook_lib.errors import NotFound
from runbook_lib.facts import Cluster, ClusterMember, DrillStage, MonitoringService
from runbook_lib.kubernetes_reading import Reader
from runbook_lib.lab.monitoring.promql import parse
from runbook_lib.model import Change, ChangeKind
from runbook_lib.site import Site

RUN = "20261124T080000Z-00aa"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed")
MEMBERS = tuple(ClusterMember(f"pve{n}", n, f"10.0.0.{n}", True, n == 1) for n in (1, 2, 3))
CLUSTER = Cluster("lab", True, MEMBERS)


def site(**given: Any) -> Site:
    """A site as it comes."""
    return Site(name="lab", lab={}, emulated=True, changes="allow", **given)


def at(url: str, **given: Any) -> Site:
    """A site whose Proxmox VE is there."""
    return site(proxmox={"url": url}, monitoring=given)


# --- the exporter ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "given", "targets"),
    [
        ("https://10.0.0.2:8006", {}, ("10.0.0.1", "10.0.0.2", "10.0.0.3")),
        ("https://pve1:8006", {}, ("10.0.0.1", "10.0.0.2", "10.0.0.3")),
        ("https://balancer.example.org:443", {}, ("10.0.0.1", "10.0.0.2", "10.0.0.3")),
        ("https://balancer.example.org:8006", {"targets": ("pve1", "pve2")}, ("pve1", "pve2")),
    ],
)
def test_each_node_is_asked_about_itself_where_it_can_be(url: str, given: dict[str, Any], targets: tuple[str, ...]):
    """Whatever the site's own way in is: pveproxy listens on port 8006 of every node."""
    assert exporter.node_addresses(at(url, **given), CLUSTER) == targets


def test_a_cluster_that_tells_no_addresses_is_asked_where_the_site_says():
    """One node of it is better than none."""
    silent = Cluster(None, None, (ClusterMember("pve", 1, None, True, True),))
    assert exporter.node_addresses(at("https://pve.example.org:443"), silent) == ("pve.example.org:443",)


def scrape(kind: str = "VMServiceScrape") -> dict[str, Any]:
    """The scrapes of two nodes."""
    version = "operator.victoriametrics.com/v1beta1" if kind == "VMServiceScrape" else "monitoring.coreos.com/v1"
    return exporter.scrape("m", "10.0.0.1", ("10.0.0.1", "10.0.0.2"), api_version=version, kind=kind, interval=30)


def test_the_cluster_is_asked_once_and_each_node_about_itself():
    """Else the cluster's series would come once a node."""
    rows = [row["params"] for row in scrape()["spec"]["endpoints"] if row["path"] == "/pve"]
    asked = [(row["target"], row["cluster"], row["node"]) for row in rows]
    assert asked == [(["10.0.0.1"], ["1"], ["0"]), (["10.0.0.1"], ["0"], ["1"]), (["10.0.0.2"], ["0"], ["1"])]


@pytest.mark.parametrize(("kind", "field"), [("VMServiceScrape", "relabelConfigs"), ("ServiceMonitor", "relabelings")])
def test_each_operator_spells_its_rules_in_its_own_way(kind: str, field: str):
    """A field of the other would be refused or, worse, dropped."""
    assert all(field in row for row in scrape(kind)["spec"]["endpoints"])
    others = {"relabelConfigs", "relabelings"} - {field}
    assert not any(others & row.keys() for row in scrape(kind)["spec"]["endpoints"])


def test_the_token_stands_in_no_object():
    """pve.yml has a place for it, which is filled when the Secret is sent."""
    text = exporter.config("runbook-exporter@pve!exporter", verify=True)
    assert yaml.safe_load(text)["default"] == {
        "user": "runbook-exporter@pve", "token_name": "exporter", "token_value": "{secret}", "verify_ssl": True,
        "timeout": 20,
    }  # fmt: skip
    assert "data" not in exporter.secret("m") and "stringData" not in exporter.secret("m")


def test_the_exporters_own_reader_takes_the_configuration():
    """prometheus-pve-exporter, which nobody here wrote."""
    reader = pytest.importorskip("pve_exporter.config", reason="prometheus-pve-exporter is not installed")
    text = exporter.config("runbook-exporter@pve!exporter", verify=True).replace("{secret}", "s3cret")
    assert reader.config_from_yaml(yaml.safe_load(text)).valid


def test_the_exporter_may_read_and_nothing_else():
    """Each of its privileges is one of reading, on the root path, for its own user."""
    held = {"iso_storage": "local", "disk_storage": "nas"}
    account = privileges.account("exporter", site(names=held), "9.2.0")
    assert account.token_id == "runbook-exporter@pve!exporter" and account.privsep
    assert {name.rpartition(".")[2] for grant in account.grants for name in grant.privileges} == {"Audit"}


def test_the_pod_passes_the_restricted_level():
    """No right on the node: every field that Pod Security asks for."""
    spec = exporter.deployment("m", "image", "other", trust=True)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = [row["securityContext"] for row in spec["containers"]]
    assert all(not row["allowPrivilegeEscalation"] and row["capabilities"] == {"drop": ["ALL"]} for row in own)
    assert {"name": "REQUESTS_CA_BUNDLE", "value": "/etc/proxmox-ca/ca.crt"} in spec["containers"][0]["env"]


# --- alerts ------------------------------------------------------------------------------------------


def test_every_rule_asks_only_for_what_it_names():
    """A metric of the expression that `asks` leaves out could be missing without anybody knowing."""
    for rule in alerts.rules():
        for ask in rule.asks:
            parse(f"count({ask})")
            assert ask.partition("{")[0] in rule.expression
        assert rule.asks and rule.summary and rule.description and rule.severity in {"warning", "critical"}


def test_rules_of_what_is_not_installed_are_left_out():
    """They could never fire."""
    assert {group["name"] for group in alerts.groups(alerts.rules(components=("proxmox", "csi")))} == {
        "proxmox",
        "proxmox-csi",
    }


def promtool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What promtool says of files in the folder."""
    return subprocess.run([str(PROMTOOL), *words], cwd=folder, capture_output=True, text=True, check=False)


@needs_promtool
def test_promtool_takes_the_rules(tmp_path: Path):
    """Syntax, templates and duplicates, judged by those who made the format."""
    (tmp_path / "rules.yaml").write_text(alerts.file(alerts.rules()))
    done = promtool(tmp_path, "check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts.rules())} rules found" in done.stdout


@needs_promtool
def test_promtool_finds_a_rule_that_is_none(tmp_path: Path):
    """The witness does refuse."""
    bad = alerts.Rule("Bad", "sum(", "1m", "warning", "s", "d", ("up",))
    (tmp_path / "rules.yaml").write_text(alerts.file([bad]))
    assert promtool(tmp_path, "check", "rules", "rules.yaml").returncode != 0


N, S = 'job="proxmox",id="node/pve2"', 'job="proxmox",id="storage/pve1/local"'
TLS = 'job="proxmox-tls",instance="10.0.0.1:8006"'
CASES: dict[str, tuple[dict[str, str], str, dict[str, str]]] = {
    # rule: series, when, labels of the alert
    "ProxmoxExporterDown": ({'up{job="proxmox",instance="10.0.0.1"}': "0x60"}, "6m",
                            {"job": "proxmox", "instance": "10.0.0.1"}),
    "ProxmoxSeriesMissing": ({"other": "1x60"}, "11m", {"job": "proxmox"}),
    "ProxmoxNodeDown": ({f"pve_up{{{N}}}": "1x4 0x60"}, "10m", {"job": "proxmox", "id": "node/pve2"}),
    "ProxmoxQuorumLost": ({'pve_up{job="proxmox",id="cluster/lab"}': "0x60"}, "2m",
                          {"job": "proxmox", "id": "cluster/lab"}),
    "ProxmoxStorageUnavailable": ({f"pve_up{{{S}}}": "0x60"}, "6m", {"job": "proxmox", "id": "storage/pve1/local"}),
    "ProxmoxStorageFull": ({f"pve_disk_usage_bytes{{{S}}}": "95x60", f"pve_disk_size_bytes{{{S}}}": "100x60"}, "11m",
                           {"job": "proxmox", "id": "storage/pve1/local"}),
    "ProxmoxStorageFillsUp": ({f"pve_disk_usage_bytes{{{S}}}": "6000+1x600",
                               f"pve_disk_size_bytes{{{S}}}": "10000x600"},
                              "480m", {"job": "proxmox", "id": "storage/pve1/local"}),
    "ProxmoxNodeMemory": ({f"pve_memory_usage_bytes{{{N}}}": "97x60", f"pve_memory_size_bytes{{{N}}}": "100x60"}, "16m",
                          {"job": "proxmox", "id": "node/pve2"}),
    "ProxmoxGuestsNotBackedUp": ({'pve_not_backed_up_total{job="proxmox",id="cluster/lab"}': "2x1500"}, "1441m",
                                 {"job": "proxmox", "id": "cluster/lab"}),
    "ProxmoxCertificateEnds": ({f"probe_ssl_earliest_cert_expiry{{{TLS}}}": "604800x100"}, "61m",
                               {"job": "proxmox-tls", "instance": "10.0.0.1:8006"}),
    "ProxmoxApiUnreachable": ({f"probe_success{{{TLS}}}": "0x60"}, "4m",
                              {"job": "proxmox-tls", "instance": "10.0.0.1:8006"}),
    "ProxmoxCsiPodNotReady": ({'kube_pod_container_status_ready{namespace="csi-proxmox",pod="p",container="c"}':
                               "0x60"},
                              "11m", {"namespace": "csi-proxmox", "pod": "p", "container": "c"}),
    "ProxmoxCsiRestarts": ({'kube_pod_container_status_restarts_total{namespace="csi-proxmox",pod="p",container="c"}':
                            "0+1x90"}, "70m", {"namespace": "csi-proxmox", "pod": "p", "container": "c"}),
    "ProxmoxCapmoxUnavailable": ({'kube_deployment_status_replicas_unavailable{namespace="capmox-system",'
                                  'deployment="d"}':
                                  "1x60"}, "11m", {"namespace": "capmox-system", "deployment": "d"}),
    "ProxmoxCapmoxRestarts": ({'kube_pod_container_status_restarts_total{namespace="capmox-system",pod="p"}':
                               "0+1x90"},
                              "70m", {"namespace": "capmox-system", "pod": "p"}),
}  # fmt: skip


def tried(rule: alerts.Rule, *, fires: bool) -> str:
    """A file of promtool in which the rule's condition is there, and its alert is expected or not."""
    series, when, labels = CASES[rule.name]
    given = series if fires else {}
    if not fires and rule.name == "ProxmoxSeriesMissing":
        given = {f"pve_up{{{N}}}": "1x60"}
    filled = {"severity": rule.severity, **labels}
    expected = {"exp_labels": filled}
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "alert_rule_test": [{"eval_time": when, "alertname": rule.name, "exp_alerts": [expected] if fires else []}],
    }
    return json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]})


def without_words(rule: alerts.Rule) -> str:
    """The rule's file without annotations, which promtool would compare word by word."""
    found = yaml.safe_load(alerts.file([rule]))
    del found["groups"][0]["rules"][0]["annotations"]
    return str(yaml.safe_dump(found))


def test_every_rule_has_a_condition_that_is_tried():
    """A rule that nobody ever saw fire may never fire."""
    assert CASES.keys() == {rule.name for rule in alerts.rules()}


@needs_promtool
@pytest.mark.parametrize("rule", alerts.rules(), ids=lambda rule: rule.name)
def test_a_rule_fires_under_its_condition_and_not_without(rule: alerts.Rule, tmp_path: Path):
    """As Prometheus itself evaluates it."""
    (tmp_path / "rules.yaml").write_text(without_words(rule))
    for fires in (True, False):
        (tmp_path / "test.yaml").write_text(tried(rule, fires=fires))
        done = promtool(tmp_path, "test", "rules", "test.yaml")
        assert done.returncode == 0, done.stdout + done.stderr


# --- dashboards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", dashboards.BOARDS, ids=lambda board: board.name)
def test_a_dashboard_is_what_the_sdk_makes_of_it(board: dashboards.Board):
    """The JSON that is kept is never edited by hand: `python -m runbook_lib.dashboards`."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    assert dashboards.built(board) == (dashboards.FOLDER / f"{board.name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("board", dashboards.BOARDS, ids=lambda board: board.name)
def test_every_query_of_a_dashboard_can_be_asked(board: dashboards.Board):
    """Nothing of Grafana's own is left in it, and every chart has its panel."""
    asked = dashboards.queries(dashboards.text(board, namespaces={"csi": "elsewhere"}))
    assert [title for title, _ in asked] == [chart.title for chart in board.charts]
    assert not [query for _, query in asked if "$" in query]
    assert [parse(query) for _, query in asked]


def test_a_dashboard_knows_the_namespace_of_this_site():
    """A driver in another namespace has its panels too."""
    [board] = dashboards.of(("csi",))
    told = dict(dashboards.queries(dashboards.text(board, namespaces={"csi": "elsewhere"})))
    assert told["Driver's containers ready"] == 'sum(kube_pod_container_status_ready{namespace="elsewhere"})'


def test_a_dashboard_goes_to_no_grafana_of_a_tenant():
    """Every Grafana of the platform has the label: what is imported across namespaces would be in all of them."""
    made = dashboards.manifest(dashboards.BOARDS[0], namespace="m", api_version="grafana.integreatly.org/v1beta1")
    assert "allowCrossNamespaceImport" not in made["spec"]
    assert made["spec"]["instanceSelector"] == {"matchLabels": {"dashboards": "grafana"}}


# --- reads -------------------------------------------------------------------------------------------


class Answers:
    """Programs behind services, from a dictionary of paths."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def get(self, path: str, **query: Any) -> Any:
        """The answer of a path."""
        self.asked.append((path, query))
        return self.answers[path]

    def text(self, path: str, **query: Any) -> str:
        """The same as text."""
        self.asked.append((path, query))
        return str(self.answers[path])


STORE = MonitoringService("metrics", "VMCluster", "t", "vmselect-a", 8481, "/select/0/prometheus", True)
BASE = "/api/v1/namespaces/t/services"


class ManyTenants(Reader):
    """A platform in which two tenants and the root have monitoring; every program answers."""

    def __init__(self) -> None:
        group = "operator.victoriametrics.com"
        spaces = ("tenant-a", "tenant-root", "tenant-z")
        thing = lambda space, name, **spec: {"metadata": {"namespace": space, "name": name}, "spec": spec}  # noqa: E731
        writes = [{"url": f"http://vminsert-{name}.tenant-root.svc:8480/i"} for name in ("shortterm", "longterm")]
        self.kinds: dict[str, list[Any]] = {
            "VMCluster": [thing(space, name) for space in spaces for name in ("longterm", "shortterm")],
            "VMAgent": [thing("tenant-a", "vmagent", remoteWrite=[{"url": "http://vminsert-shortterm.tenant-a.svc/i"}]),
                        thing("cozy-monitoring", "vmagent", selectAllByDefault=True, remoteWrite=writes)],
            "VMAlert": [thing(space, "vmalert-shortterm", datasource={"url": f"http://vmselect-shortterm.{space}.svc/s"})
                        for space in spaces],
            "VMAlertmanager": [thing(space, "alertmanager") for space in spaces],
            "VLogs": [thing(space, "generic") for space in spaces],
        }  # fmt: skip
        self.group_ = group

    def get(self, path: str, /, **query: Any) -> Any:
        """Discovery and lists."""
        version = f"{self.group_}/v1beta1"
        if path == f"/apis/{self.group_}":
            return {"versions": [{"groupVersion": version}]}
        if path == f"/apis/{version}":
            return {"resources": [{"kind": kind, "name": kind.lower()} for kind in self.kinds]}
        for kind, items in self.kinds.items():
            if path == f"/apis/{version}/{kind.lower()}":
                return {"items": items}
        raise NotFound(path, system="kubernetes", method="GET", path=path, status=404)

    def text(self, path: str, **query: Any) -> str:
        """Well."""
        return "OK"


def test_of_several_stacks_the_one_that_the_whole_cluster_is_collected_for():
    """Tenants have monitoring of their own, and names that come first in the alphabet."""
    found = {row.role: (row.namespace, row.service) for row in kubernetes_monitoring.stack(ManyTenants())}
    assert found == {
        "metrics": ("tenant-root", "vmselect-shortterm"),
        "collector": ("cozy-monitoring", "vmagent-vmagent"),
        "rules": ("tenant-root", "vmalert-vmalert-shortterm"),
        "alerts": ("tenant-root", "vmalertmanager-alertmanager"),
        "logs": ("tenant-root", "vlogs-generic"),
        "dashboards": ("", ""),
    }


def test_a_query_goes_through_the_service_proxy():
    """The path of a cluster's select is put before the API's own."""
    row = {"metric": {"id": "node/pve1"}, "value": [1700000000, "1"]}
    path = f"{BASE}/vmselect-a:8481/proxy/select/0/prometheus/api/v1/query"
    api = Answers({path: {"data": {"resultType": "vector", "result": [row]}}})
    [sample] = kubernetes_monitoring.query(api, [STORE], "pve_up")
    assert (sample.labels, sample.value, sample.at) == ({"id": "node/pve1"}, 1.0, 1.7e9)
    assert api.asked == [(path, {"query": "pve_up"})]


def test_nobody_is_asked_where_nobody_answers():
    """No store is no error here: who watches was judged before."""
    silent = MonitoringService("metrics", "VMCluster", "t", "vmselect-a", 8481, "", False, "503")
    assert kubernetes_monitoring.query(Answers({}), [silent], "pve_up") == []


@pytest.mark.parametrize(
    ("states", "state"),
    [([], "inactive"), (["pending"], "pending"), (["pending", "firing"], "firing")],
)
def test_an_alert_stands_as_its_gravest_instance(states: list[str], state: str):
    """Of several instances one that fires is enough."""
    service = MonitoringService("rules", "VMAlert", "t", "vmalert-a", 8080, "", True)
    rows = [{"state": each, "labels": {"alertname": "Drill"}} for each in states]
    rows.append({"state": "firing", "labels": {"alertname": "Another"}})
    api = Answers({f"{BASE}/vmalert-a:8080/proxy/api/v1/alerts": {"data": {"alerts": rows}}})
    assert kubernetes_monitoring.alert_state(api, [service], "Drill") == state


def test_lines_of_logs_are_read_one_by_one():
    """VictoriaLogs answers a line of JSON an entry."""
    service = MonitoringService("logs", "VLCluster", "t", "vlselect-a", 9471, "", True)
    api = Answers({f"{BASE}/vlselect-a:9471/proxy/select/logsql/query": '{"_msg": "a"}\n{"_msg": "b"}\n'})
    assert [row["_msg"] for row in kubernetes_monitoring.log_lines(api, [service], "word")] == ["a", "b"]


# --- drills ------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Nothing; so much time has passed."""
        self.now += seconds


def watched(monkeypatch: pytest.MonkeyPatch, *, fires: bool, notified: bool = True) -> list[DrillStage]:
    """What the witness saw of an alert that comes, or does not."""
    clock = Clock()
    what = monitoring.Look((STORE,), CLUSTER, ("proxmox",), "m", "h", ("h",), ("", ""), ("", ""), "", {})
    state = {"pending": "pending", "firing": "firing" if fires else "pending", "notified": "", "resolved": "inactive"}
    at_stage = iter(state)
    now = {"stage": ""}
    monkeypatch.setattr(kubernetes_monitoring, "alert_state", lambda *_: state[now["stage"]])
    monkeypatch.setattr(
        kubernetes_monitoring, "is_notified", lambda *_: notified if now["stage"] == "notified" else False
    )
    seen = monitoring.Witness(None, site(monitoring={"wait_seconds": 5}), what, RUN, clock.sleep, clock)
    for stage in at_stage:
        now["stage"] = stage
        see = {"drill": "alert", "stage": stage, "alert": "Drill"}
        seen(Change("42-01", "kubernetes", "create", "x", "x", ChangeKind.BORROW, {"see": [see]}))
    return seen.seen


def test_a_drill_is_watched_to_its_end(monkeypatch: pytest.MonkeyPatch):
    """Each state in its order."""
    assert [(row.stage, row.reached) for row in watched(monkeypatch, fires=True)] == [
        ("pending", True), ("firing", True), ("notified", True), ("resolved", True),
    ]  # fmt: skip


def test_what_builds_on_a_state_that_never_came_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    """And none of it counts as reached."""
    seen = watched(monkeypatch, fires=False)
    assert [row.reached for row in seen] == [True, False, False, False]
    assert seen[-1].told.startswith("not waited for") and seen[-1].seconds < 10


def test_an_alert_manager_that_keeps_silent_does_not_hide_the_end(monkeypatch: pytest.MonkeyPatch):
    """Who evaluates and who tells people are two."""
    assert [row.reached for row in watched(monkeypatch, fires=True, notified=False)] == [True, True, False, True]
