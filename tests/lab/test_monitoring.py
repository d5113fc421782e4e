"""The lab's monitoring: the query language, the collector, rules, dashboards and logs, through the service proxy."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import grafana as grafana_operator
from runbook_lib.lab.kubernetes.controllers import victoria_metrics
from runbook_lib.lab.kubernetes.controllers.container_logs import Logs
from runbook_lib.lab.kubernetes.server import create_app
from runbook_lib.lab.monitoring import logsql
from runbook_lib.lab.monitoring.alerting import filled
from runbook_lib.lab.monitoring.evaluation import instant, ranged
from runbook_lib.lab.monitoring.exposition import influx, rows
from runbook_lib.lab.monitoring.plug import Monitoring
from runbook_lib.lab.monitoring.promql import BadQuery, parse
from runbook_lib.lab.monitoring.relabel import relabel
from runbook_lib.lab.monitoring.store import Store

Object = dict[str, Any]
TOKEN = "a-token-of-the-test"
SELECT = "/api/v1/namespaces/tenant-root/services/vmselect-shortterm:8481/proxy/select/0/prometheus"
GROUP = "/apis/operator.victoriametrics.com/v1beta1/namespaces/cozy-monitoring"


# -- the query language ----------------------------------------------------------------------------


def stored() -> Store:
    """Three counters, a gauge and a histogram, each ten minutes long with a sample every 15 seconds."""
    store = Store(retention=1e12)
    for number in range(41):
        at = 1000.0 + 15 * number
        for code, pace in (("200", 2.0), ("500", 0.5)):
            store.append({"__name__": "requests_total", "code": code, "job": "api"}, pace * 15 * number, at)
        store.append({"__name__": "requests_total", "code": "200", "job": "web"}, float(15 * number % 300), at)
        store.append({"__name__": "disk_free", "node": "a"}, 1000.0 - number, at)
        store.append({"__name__": "disk_size", "node": "a"}, 2000.0, at)
        store.append({"__name__": "disk_size", "node": "b"}, 4000.0, at)
        store.append({"__name__": "node_info", "node": "a", "rack": "r1"}, 1.0, at)
        for bound, count in (("0.1", 5.0), ("1", 9.0), ("+Inf", 10.0)):
            store.append({"__name__": "took_bucket", "le": bound}, count * number, at)
    return store


NOW = 1600.0


def told(query: str, at: float = NOW) -> dict[str, float]:
    """The values of a query by their labels as text."""
    found = instant(parse(query), stored(), at)
    return {",".join(f"{k}={v}" for k, v in sorted(s.labels.items())): round(s.value, 6) for s in found}


@pytest.mark.parametrize(
    ("query", "result"),
    [
        ("1 + 2 * 3 ^ 2", {"": 19.0}),
        ("-2 ^ 2", {"": -4.0}),
        ("5 % 3 > bool 1", {"": 1.0}),
        ('rate(requests_total{code="200",job="api"}[5m])', {"code=200,job=api": 2.0}),
        ('increase(requests_total{code="500"}[5m])', {"code=500,job=api": 150.0}),
        ('sum(rate(requests_total{job="api"}[1m])) by (job)', {"job=api": 2.5}),
        ('sum without (code) (rate(requests_total{job="api"}[1m]))', {"job=api": 2.5}),
        ("disk_free / disk_size", {"node=a": 0.48}),
        ("disk_size > 3000", {"__name__=disk_size,node=b": 4000.0}),
        ("disk_size > bool 3000", {"node=a": 0.0, "node=b": 1.0}),
        ("disk_size unless disk_free", {"__name__=disk_size,node=b": 4000.0}),
        ("disk_size and on(node) disk_free", {"__name__=disk_size,node=a": 2000.0}),
        ("disk_size * on(node) group_left(rack) node_info", {"node=a,rack=r1": 2000.0}),
        ("deriv(disk_free[5m])", {"node=a": -0.066667}),
        ("predict_linear(disk_free[5m], 1500)", {"__name__=disk_free,node=a": 860.0}),
        ("max_over_time(disk_free[1m])", {"__name__=disk_free,node=a": 963.0}),
        ("avg_over_time(disk_free[30s])", {"__name__=disk_free,node=a": 960.5}),
        ("count_over_time(disk_free[1m])", {"node=a": 4.0}),
        ("disk_free offset 1m", {"__name__=disk_free,node=a": 964.0}),
        ("changes(disk_size{node='a'}[5m])", {"node=a": 0.0}),
        ("absent(nothing{a='b'})", {"a=b": 1.0}),
        ("absent(disk_free)", {}),
        ("topk(1, disk_size)", {"__name__=disk_size,node=b": 4000.0}),
        ("quantile(0.5, disk_size)", {"": 3000.0}),
        ("count(disk_size)", {"": 2.0}),
        ("histogram_quantile(0.5, rate(took_bucket[5m]))", {"": 0.1}),
        ("label_replace(disk_free, 'host', '$1-x', 'node', '(.*)')", {"__name__=disk_free,host=a-x,node=a": 960.0}),
        ("clamp_max(disk_size, 2500)", {"__name__=disk_size,node=a": 2000.0, "__name__=disk_size,node=b": 2500.0}),
        ("timestamp(disk_free)", {"node=a": 1600.0}),
        ("max_over_time(sum(disk_size)[5m:1m])", {"": 6000.0}),
        ("scalar(sum(disk_size)) / 2", {"": 3000.0}),
        ("time()", {"": 1600.0}),
    ],
)
def test_expression_is_worth(query: str, result: dict[str, float]) -> None:
    """Each construct gives what its documentation says over a store that is known."""
    assert told(query) == result


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sum(", 'singleExpr: unexpected token ""; want "(", "{", "-", "+"; unparsed data: ""'),
        ("up{}}", 'unparsed data left: "}"'),
        ("rate(up[5m)", 'windowAndStep: unexpected token ")"; want "]"; unparsed data: ")"'),
        ("nonsense(up)", 'unsupported function "nonsense"'),
    ],
)
def test_bad_expression_is_refused_as_metricsql_refuses(query: str, words: str) -> None:
    """The error names what was met and what was wanted."""
    with pytest.raises(BadQuery) as refused:
        parse(query)
    assert str(refused.value) == words


def test_series_that_ended_is_seen_no_more() -> None:
    """A stale mark ends a series at once; a series that just stops is seen for five minutes."""
    store = stored()
    store.end({"__name__": "disk_free", "node": "a"}, 1601.0)
    assert instant(parse("disk_free"), store, 1602.0) == []
    assert len(instant(parse("disk_size"), store, 1899.0)) == 2
    assert instant(parse("disk_size"), store, 1901.0) == []


def test_store_stays_within_its_bounds() -> None:
    """Old samples go by age."""
    store = Store(retention=100.0)
    for at in range(0, 1000, 10):
        store.append({"__name__": "x"}, 1.0, float(at))
    assert store.select(parse("x"), 0.0, 1000.0)[0].times[0] == 890.0  # type: ignore[arg-type]


PROMTOOL = shutil.which("promtool")
WITNESSED = (
    "disk_free / disk_size", "sum by (job) (requests_total)", "disk_size > 3000", "disk_size unless disk_free",
    "disk_size * on(node) group_left(rack) node_info", "max_over_time(disk_free[1m])", "topk(1, disk_size)",
    "quantile(0.5, disk_size)", "-2 ^ 2", "deriv(disk_free[5m])", "count(disk_size) or vector(3)",
)  # fmt: skip


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed")
@pytest.mark.parametrize("query", WITNESSED)
def test_prometheus_counts_the_same(query: str, tmp_path: Path) -> None:
    """Where both languages agree, promtool's own evaluation gives the same numbers."""
    series = [
        {"series": 'disk_free{node="a"}', "values": "1000-1x40"},
        {"series": 'disk_size{node="a"}', "values": "2000x40"},
        {"series": 'disk_size{node="b"}', "values": "4000x40"},
        {"series": 'node_info{node="a",rack="r1"}', "values": "1x40"},
        {"series": 'requests_total{job="api",code="200"}', "values": "0+30x40"},
    ]
    store = Store(retention=1e12)
    for number in range(41):
        for name, labels, value in (
            ("disk_free", {"node": "a"}, 1000.0 - number), ("disk_size", {"node": "a"}, 2000.0),
            ("disk_size", {"node": "b"}, 4000.0), ("node_info", {"node": "a", "rack": "r1"}, 1.0),
            ("requests_total", {"job": "api", "code": "200"}, 30.0 * number),
        ):  # fmt: skip
            store.append({"__name__": name, **labels}, value, 15.0 * number)
    # 592 s lies between samples, where windows that are open or closed at their ends hold the same
    expected: list[Object] = [
        {"labels": _written(sample.labels), "value": sample.value} for sample in instant(parse(query), store, 592.0)
    ]
    if query.startswith("max_over_time"):
        expected = [{**row, "labels": row["labels"].replace("disk_free", "")} for row in expected]
    case = {
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": [{"expr": query, "eval_time": "592s", "exp_samples": expected}],
    }
    (tmp_path / "rules.yml").write_text("groups: []\n")
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1s", "tests": [case]})
    )
    done = subprocess.run([str(PROMTOOL), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _written(labels: Any) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()) if key != "__name__")
    return f"{labels.get('__name__', '')}{{{inner}}}"


def test_range_has_a_point_for_each_step() -> None:
    """A range is as many moments."""
    found = ranged(parse("disk_size{node='a'}"), stored(), 1000.0, 1600.0, 60.0)
    assert len(found[0][1]) == 11


# -- formats ---------------------------------------------------------------------------------------


def test_text_format_is_read() -> None:
    """Labels with escapes, infinities, times."""
    text = '# HELP a b\na{x="1\\"2",y="z"} +Inf\nb 2.5 1700000000000\n'
    assert rows(text) == [({"__name__": "a", "x": '1"2', "y": "z"}, math.inf, None), ({"__name__": "b"}, 2.5, 1.7e9)]


def test_influx_line_becomes_series() -> None:
    """As Proxmox VE's own metric server writes them: tags become labels, each field a metric."""
    found = influx('cpustat,object=nodes,host=pve1 cpu=0.25,cpus=32i,level="" 1700000000000000000')
    assert [(row["__name__"], value) for row, value, _ in found] == [("cpustat_cpu", 0.25), ("cpustat_cpus", 32.0)]
    assert found[0][0]["host"] == "pve1"


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ({"sourceLabels": ["a"], "targetLabel": "b", "regex": "(.*)x", "replacement": "${1}y"}, {"a": "1x", "b": "1y"}),
        ({"action": "keep", "sourceLabels": ["a"], "regex": "2.*"}, None),
        ({"action": "labeldrop", "regex": "a"}, {}),
        ({"action": "labelmap", "regex": "(a)", "replacement": "c_$1"}, {"a": "1x", "c_a": "1x"}),
        ({"targetLabel": "job", "replacement": "pve"}, {"a": "1x", "job": "pve"}),
    ],
)
def test_relabeling(rule: Object, result: Object | None) -> None:
    """The usual actions."""
    assert relabel({"a": "1x"}, [rule]) == result


def test_template_of_an_annotation_is_filled() -> None:
    """Labels, value and the filters that rules use."""
    text = '{{ $labels.node }} has {{ $value | humanizePercentage }} ({{ printf "%.1f" $value }})'
    assert filled(text, {"node": "pve1"}, 0.125, "x") == "pve1 has 12.5% (0.1)"


# -- the operators' judgement ----------------------------------------------------------------------


def rule(expr: str, **more: Any) -> Object:
    """A VMRule with one alert."""
    alert = {"alert": "Drill", "expr": expr, **more}
    meta = {"name": "drill", "namespace": "cozy-monitoring", "generation": 1}
    return {"metadata": meta, "spec": {"groups": [{"name": "g", "rules": [alert]}]}}


def test_bad_rule_fails_with_the_operators_words() -> None:
    """A rule that cannot be parsed never reaches vmalert."""
    status = victoria_metrics.judged("vmrules", rule("non_exist_func(x) == 0"), "2026-01-01T00:00:00Z")
    assert status["updateStatus"] == "failed"
    assert status["reason"] == (
        'validation failed for VMRule: cozy-monitoring/drill group: g err: invalid expression for rule "Drill": '
        'bad MetricsQL expr: "non_exist_func(x) == 0", err: unsupported function "non_exist_func"'
    )


def test_good_rule_is_operational() -> None:
    """And its condition says that it was applied."""
    status = victoria_metrics.judged("vmrules", rule("up == 0"), "2026-01-01T00:00:00Z")
    assert (status["updateStatus"], status["conditions"][0]["status"]) == ("operational", "True")


INSTANCE = {"metadata": {"name": "grafana", "namespace": "tenant-root", "labels": {"dashboards": "grafana"}}}


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"json": '{"title": "x"}'}, "DashboardSynchronized"),
        ({"json": "{"}, "InvalidSpec"),
        ({"json": "{}", "instanceSelector": {"matchLabels": {"dashboards": "other"}}}, "NoMatchingInstance"),
    ],
)
def test_dashboard_is_judged(spec: Object, kind: str) -> None:
    """Applied, unreadable, or taken by no instance."""
    selector = {"instanceSelector": {"matchLabels": {"dashboards": "grafana"}}}
    item = {"metadata": {"name": "d", "namespace": "tenant-root", "uid": "u"}, "spec": {**selector, **spec}}
    status = grafana_operator.judged("grafanadashboards", item, [INSTANCE], "now")
    assert [row["type"] for row in status["conditions"]] == [kind]


# -- logs ------------------------------------------------------------------------------------------

ENTRIES = [
    {"_time": "2026-01-01T00:00:00Z", "_msg": "error: disk full", "app": "a", "code": "500"},
    {"_time": "2026-01-01T00:00:10Z", "_msg": "all is well", "app": "b", "code": "200"},
    {"_time": "2026-01-01T00:00:20Z", "_msg": "terror rules", "app": "a", "code": "200"},
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("error", [0]), ('"disk full"', [0]), ("err*", [0]), ("app:a", [0, 2]), ("app:=a -error", [2]),
        ("error OR well", [0, 1]), ("app:a AND code:200", [2]), ("NOT app:a", [1]), ("app:in(a, c)", [0, 2]),
        ("code:>300", [0]), ('_msg:~"^all"', [1]), ("_time:15s", [1, 2]), ("*", [0, 1, 2]),
        ("* | sort by (_time desc) | limit 1", [2]), ("(error or well) app:b", [1]), ('{app="b"}', [1]),
    ],
)  # fmt: skip
def test_logsql_finds(query: str, found: list[int]) -> None:
    """Words are whole words; filters join with AND."""
    now = logsql.moment(ENTRIES[2])
    read = logsql.parse(query, now)
    entries: list[Any] = [entry for entry in ENTRIES if read.passes(entry, logsql.moment(entry))]
    for pipe in read.pipes:
        entries = pipe(entries)
    assert entries == [ENTRIES[number] for number in found]


# -- through the API server ------------------------------------------------------------------------


@dataclass
class Site:
    """A cluster behind its API server, with its monitoring."""

    cluster: Cluster
    clock: Clock
    monitoring: Monitoring
    session: ClientSession
    url: str

    async def get(self, path: str, **query: str) -> Any:
        """The decoded answer."""
        async with self.session.get(self.url + path, params=query) as answer:
            text = await answer.text()
            return json.loads(text) if text.startswith(("{", "[")) and "\n{" not in text else text

    async def value(self, query: str) -> float | None:
        """The first value of an instant query."""
        found = (await self.get(f"{SELECT}/api/v1/query", query=query))["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    async def create(self, plural: str, kind: str, name: str, spec: Object) -> None:
        """Nothing; the object exists and its operator has settled it."""
        body = {"apiVersion": "operator.victoriametrics.com/v1beta1", "kind": kind, "metadata": {"name": name}}
        async with self.session.post(f"{self.url}{GROUP}/{plural}", json={**body, "spec": spec}) as answer:
            assert answer.status == 201, await answer.text()


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """The healthy cluster, without controllers."""
    section = scenario.load("healthy").kubernetes
    clock = Clock(60.0)
    cluster = Cluster(clock, version=seeds.kubernetes_version(section))
    cluster.load(seeds.cozystack(section))
    cluster.tokens[TOKEN] = User("admin", ("system:masters",))
    runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monitoring = Monitoring(cluster, clock)
    monitoring.logs = Logs()
    monitoring.plug()
    async with ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        try:
            yield Site(cluster, clock, monitoring, session, f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await monitoring.stop()
            await runner.cleanup()


def lived(story: Callable[[Site], Any]) -> None:
    """Runs a story in a site of its own."""

    async def run() -> None:
        async with site() as found:
            await story(found)

    asyncio.run(run())


def test_cluster_is_told_by_its_series() -> None:
    """Objects, nodes and containers have series that agree with the API."""

    async def story(at: Site) -> None:
        nodes, pods = len(list(at.cluster.each("/nodes"))), len(list(at.cluster.each("/pods")))
        ready = 'count(kube_node_status_condition{condition="Ready",status="true"} == 1)'
        assert await at.value(ready) == nodes
        assert await at.value('sum(kube_pod_status_phase{phase="Running"})') == pods
        assert await at.value("min(up)") == 1
        assert 0 < (await at.value('1 - avg(rate(node_cpu_seconds_total{mode="idle"}[5m]))') or 0) < 1

    lived(story)


def test_query_api_answers_in_its_shapes() -> None:
    """Vector, matrix, labels, values, series, and an error with its words."""

    async def story(at: Site) -> None:
        now = at.clock.now()
        spans = {"query": "up", "start": f"{now - 600}", "end": f"{now}", "step": "60s"}
        found = await at.get(f"{SELECT}/api/v1/query_range", **spans)
        assert found["data"]["resultType"] == "matrix" and len(found["data"]["result"][0]["values"]) == 11
        assert "kubelet" in (await at.get(f"{SELECT}/api/v1/label/job/values"))["data"]
        assert (await at.get(f"{SELECT}/api/v1/series", **{"match[]": 'up{job="etcd"}'}))["data"][0]["job"] == "etcd"
        bad = await at.get(f"{SELECT}/api/v1/query", query="sum(", time="1700000000")
        assert bad["errorType"] == "422"
        assert bad["error"].startswith(
            'error when executing query="sum(" for (time=1700000000000, step=300000): singleExpr: unexpected token'
        )

    lived(story)


def test_no_collector_no_series() -> None:
    """Without a running vmagent nothing new arrives."""

    async def story(at: Site) -> None:
        for pod in list(at.cluster.each("/pods", "cozy-monitoring")):
            if pod["metadata"]["name"].startswith("vmagent-"):
                path = f"{at.url}/api/v1/namespaces/cozy-monitoring/pods/{pod['metadata']['name']}"
                await at.session.delete(path, json={"gracePeriodSeconds": 0})
        assert await at.value("count(up)") is None

    lived(story)


class Page(BaseHTTPRequestHandler):
    """A program that is monitored."""

    value = 1.0
    status = 200

    def do_GET(self) -> None:
        """Its metrics, with the target it was asked for."""
        target = self.path.partition("target=")[2].partition("&")[0]
        body = f'pve_up{{id="node/pve1",target="{target}"}} {self.value}\n'.encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def program() -> Iterator[int]:
    """The port of a program on loopback."""
    Page.value, Page.status = 1.0, 200
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found.server_address[1]
        found.shutdown()


def static(port: int) -> Object:
    """A VMStaticScrape of a program on loopback."""
    endpoint = {"targets": [f"127.0.0.1:{port}"], "path": "/pve", "params": {"target": ["10.0.0.1"]}}
    rules = [{"sourceLabels": ["__param_target"], "targetLabel": "instance"}]
    return {"jobName": "pve", "targetEndpoints": [{**endpoint, "relabelConfigs": rules}]}


AGENT = "/api/v1/namespaces/cozy-monitoring/services/vmagent-vmagent:8429/proxy"


def test_real_program_is_scraped(program: int) -> None:
    """Over HTTP, with its parameters and rules; its failure is a target that is down with the reason."""

    async def story(at: Site) -> None:
        await at.create("vmstaticscrapes", "VMStaticScrape", "pve", static(program))
        hub = at.monitoring.hub()
        await hub.scrape_due()
        assert await at.value('pve_up{job="pve",instance="10.0.0.1",target="10.0.0.1"}') == 1
        Page.status = 500
        await hub.scrape(next(target for target in hub.targets() if target.dial))
        assert await at.value('up{job="pve"}') == 0
        assert await at.value("pve_up") is None
        rows_ = (await at.get(f"{AGENT}/api/v1/targets"))["data"]["activeTargets"]
        down = next(row for row in rows_ if row["labels"]["job"] == "pve")
        assert down["health"] == "down"
        assert down["lastError"].startswith("unexpected status code returned when scraping")

    lived(story)


ALERTS = "/api/v1/namespaces/tenant-root/services/vmalert-vmalert-shortterm:8080/proxy/api/v1/alerts"
MANAGER = "/api/v1/namespaces/tenant-root/services/vmalertmanager-alertmanager:9093/proxy/api/v2/alerts"


def test_alert_is_pending_then_fires_then_resolves(program: int) -> None:
    """A fire drill: the condition is made, waits for its time, reaches the alert manager, and goes."""

    async def story(at: Site) -> None:
        at.clock.rescale(0.0)
        await at.create("vmstaticscrapes", "VMStaticScrape", "pve", static(program))
        spec = rule("pve_up == 0", **{"for": "5m", "annotations": {"summary": "{{ $labels.id }} is down"}})["spec"]
        await at.create("vmrules", "VMRule", "drill", spec)
        Page.value = 0.0
        hub = at.monitoring.hub()
        hub.wake()
        target = next(target for target in hub.targets() if target.dial)
        await hub.scrape(target)
        hub.rules.evaluate()
        assert [row["state"] for row in (await at.get(ALERTS))["data"]["alerts"]] == ["pending"]
        at.clock.advance(301)
        await hub.scrape(target)
        hub.rules.evaluate()
        firing = (await at.get(ALERTS))["data"]["alerts"][0]
        assert (firing["state"], firing["annotations"]) == ("firing", {"summary": "node/pve1 is down"})
        assert await at.value('ALERTS{alertname="Drill",alertstate="firing"}') == 1
        assert [row["labels"]["alertname"] for row in await at.get(MANAGER)] == ["Drill"]
        Page.value = 1.0
        at.clock.advance(1)
        await hub.scrape(target)
        hub.rules.evaluate()
        at.clock.advance(1)
        assert (await at.get(ALERTS))["data"]["alerts"] == []
        assert await at.get(MANAGER) == []
        assert await at.value('ALERTS{alertname="Drill"}') is None

    lived(story)


def test_written_lines_are_found() -> None:
    """Samples through vminsert, log lines through vlinsert."""

    async def story(at: Site) -> None:
        base = f"{at.url}/api/v1/namespaces/tenant-root/services"
        inserted = f"{base}/vminsert-shortterm:8480/proxy/insert/0"
        await at.session.post(f"{inserted}/prometheus/api/v1/import/prometheus", data='x{a="b"} 7\n')
        await at.session.post(f"{inserted}/influx/write", data="cpustat,host=pve1 cpu=0.5\n")
        assert await at.value("x") == 7
        assert await at.value('cpustat_cpu{host="pve1"}') == 0.5
        fields = "_stream_fields=app&_msg_field=log&_time_field=date"
        line = json.dumps({"log": "hello token-4711", "app": "probe"})
        await at.session.post(f"{base}/vlinsert-generic:9481/proxy/insert/jsonline?{fields}", data=line)
        logs = "/api/v1/namespaces/tenant-root/services/vlselect-generic:9471/proxy/select/logsql"
        found = await at.get(f"{logs}/query", query='"token-4711" app:probe _time:5m')
        assert found["_msg"] == "hello token-4711"
        assert (await at.get(f"{logs}/hits", query="*", step="1h"))["hits"][0]["total"] == 1

    lived(story)


def test_container_log_is_shipped_with_its_labels() -> None:
    """What a container wrote is found by its words and by its pod a moment later."""

    async def story(at: Site) -> None:
        pod = next(p for p in at.cluster.each("/pods", "cozy-monitoring") if "fluent-bit" in p["metadata"]["name"])
        key = ("cozy-monitoring", pod["metadata"]["name"], pod["spec"]["containers"][0]["name"])
        stamp = "%Y-%m-%dT%H:%M:%S.%fZ"
        from datetime import UTC, datetime

        at.monitoring.logs.write(key, datetime.fromtimestamp(at.clock.now(), UTC).strftime(stamp), "token-4712 said")
        at.clock.advance(2)
        logs = "/api/v1/namespaces/tenant-root/services/vlselect-generic:9471/proxy/select/logsql/query"
        found = await at.get(logs, query=f'"token-4712" kubernetes_pod_name:="{key[1]}"')
        assert found["kubernetes_namespace_name"] == "cozy-monitoring"
        assert found["_stream"].startswith('{kubernetes_container_name="')

    lived(story)


def test_grafana_serves_what_its_operator_gave_it() -> None:
    """Health, a data source, and a query through it."""

    async def story(at: Site) -> None:
        base = "/api/v1/namespaces/tenant-root/services/grafana-service:3000/proxy/api"
        assert (await at.get(f"{base}/health"))["database"] == "ok"
        source = (await at.get(f"{base}/datasources"))[0]
        query = {"refId": "A", "expr": "count(up)", "datasource": {"uid": source["uid"]}, "instant": True}
        async with at.session.post(f"{at.url}{base}/ds/query", json={"queries": [query]}) as answer:
            frames = (await answer.json())["results"]["A"]["frames"]
        assert frames[0]["data"]["values"][1][0] == await at.value("count(up)")

    lived(story)
