"""A real Prometheus with our rules, and the real exporter, against the emulated Proxmox VE."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import homes
import pytest
import yaml
from test_kill import await_until

from runbook_lib import alerts, exporter
from runbook_lib.lab import control

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.xdist_group("prometheus"),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus (Debian package prometheus) is not installed"),
]
pytest.importorskip("pve_exporter", reason="prometheus-pve-exporter is not installed")
_SNAKE = {"sourceLabels": "source_labels", "targetLabel": "target_label", "replacement": "replacement"}


def free() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def configuration(target: str, port: int) -> dict[str, Any]:
    """What the scrape object asks of a collector, in Prometheus' own words."""
    made = exporter.scrape("m", target, (target,), api_version="v", kind="VMServiceScrape", interval=10)
    rows = [row for row in made["spec"]["endpoints"] if row["path"] == "/pve"]
    return {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": f"endpoint-{number}",
                "metrics_path": row["path"],
                "params": row["params"],
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                "relabel_configs": [{_SNAKE[key]: rule[key] for key in rule} for rule in row["relabelConfigs"]],
            }
            for number, row in enumerate(rows)
        ],
    }


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that watches the lab, in which pve3 is away."""
    folder = tmp_path_factory.mktemp("prometheus")
    place = homes.make(folder / "home", scenario="node-offline")
    place.up()
    there = control.connection(place.lab).proxmox
    secret = json.loads((place.lab / "secrets.json").read_text())["proxmox_token_secret"]
    config = folder / "pve.yml"
    config.touch(0o600)
    config.write_text(exporter.config(there.token_id, verify=True).replace("{secret}", secret))
    given = alerts.rules(components=("proxmox",))
    (folder / "rules.yaml").write_text(alerts.file(given))
    own, port = free(), free()
    target = exporter.address(there.url)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(target, own)))
    environment = {**os.environ, "REQUESTS_CA_BUNDLE": str(there.ca_file)}
    asks = [sys.executable, "-m", "pve_exporter", "--config.file", str(config), "--web.listen-address"]
    with (folder / "log").open("wb") as log:
        running = [
            subprocess.Popen([*asks, f"127.0.0.1:{own}"], env=environment, stdout=log, stderr=log),
            subprocess.Popen(
                [str(PROMETHEUS), "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}",
                 "--storage.tsdb.path=data"], cwd=folder, stdout=log, stderr=log),
        ]  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            for process in running:
                process.terminate()
                process.wait()
            place.down()


def asked(url: str, path: str, **query: str) -> Any:
    """The data of an answer, None while there is none."""
    try:
        with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=5) as answer:
            return json.load(answer)["data"]
    except (urllib.error.URLError, ConnectionError):
        return None


def test_prometheus_gets_what_the_collector_would(url: str) -> None:
    """Both jobs are up, and every node has its series once."""
    await_until(lambda: len((asked(url, "/api/v1/query", query="up == 1") or {}).get("result", ())) == 2)
    nodes = asked(url, "/api/v1/query", query='pve_up{job="proxmox",id=~"node/.*"}')["result"]
    assert {row["metric"]["id"]: row["value"][1] for row in nodes} == {
        "node/pve1": "1",
        "node/pve2": "1",
        "node/pve3": "0",
    }


def test_prometheus_evaluates_the_rules_and_sees_the_node_that_is_away(url: str) -> None:
    """Each rule is healthy, and the one about nodes waits for its time with the right name."""

    def evaluated() -> list[Any] | None:
        groups = (asked(url, "/api/v1/rules") or {}).get("groups") or []
        rules = [rule for group in groups for rule in group["rules"]]
        waiting = any(rule["name"] == "ProxmoxNodeDown" and rule["alerts"] for rule in rules)
        return rules if waiting and all(rule["health"] == "ok" for rule in rules) else None

    rules = await_until(evaluated)
    assert {rule["name"] for rule in rules} == {rule.name for rule in alerts.rules(components=("proxmox",))}
    [alert] = next(rule["alerts"] for rule in rules if rule["name"] == "ProxmoxNodeDown")
    assert (alert["state"], alert["annotations"]["summary"]) == ("pending", "Proxmox VE: node/pve3 is down")
