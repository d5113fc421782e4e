"""prometheus-pve-exporter, which nobody here wrote, scrapes the emulated cluster over TLS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
import proxmox_site  # lies beside this file

pve_exporter = pytest.importorskip("pve_exporter.collector", reason="prometheus-pve-exporter is not installed")

LABELS = {
    "pve_up": {"id"},
    "pve_cpu_usage_ratio": {"id"},
    "pve_cpu_usage_limit": {"id"},
    "pve_memory_size_bytes": {"id"},
    "pve_memory_usage_bytes": {"id"},
    "pve_disk_size_bytes": {"id"},
    "pve_disk_usage_bytes": {"id"},
    "pve_uptime_seconds": {"id"},
    "pve_storage_shared": {"id"},
    "pve_network_transmit_bytes_total": {"id"},
    "pve_network_receive_bytes_total": {"id"},
    "pve_disk_written_bytes_total": {"id"},
    "pve_disk_read_bytes_total": {"id"},
    "pve_guest_info": {"id", "node", "name", "type", "template", "tags"},
    "pve_node_info": {"id", "level", "name", "nodeid"},
    "pve_storage_info": {"id", "node", "storage", "plugintype", "content"},
    "pve_cluster_info": {"id", "nodes", "quorate", "version"},
    "pve_version_info": {"release", "repoid", "version"},
    "pve_onboot_status": {"id", "node", "type"},
    "pve_not_backed_up_total": {"id"},
    "pve_not_backed_up_info": {"id"},
    "pve_subscription_info": {"id", "level"},
    "pve_subscription_status": {"id", "status"},
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """One scrape of cluster and node collectors with the lab's token: the samples of each metric."""
    place = proxmox_site.start(tmp_path_factory.mktemp("exporter"))
    where = control.connection(place).proxmox
    user, _, name = where.token_id.partition("!")
    config = {"user": user, "token_name": name, "token_value": where.token_secret, "verify_ssl": where.ca_file}
    with pytest.MonkeyPatch.context() as environment:
        # a CA bundle in the environment would win over the lab's own
        for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            environment.delenv(variable, raising=False)
        found = scrape(where.url.removeprefix("https://"), config)
    yield found
    control.down(place)


def scrape(host: str, config: dict[str, Any]) -> dict[str, list[Any]]:
    """The samples by metric name, from every collector."""
    from prometheus_client.parser import text_string_to_metric_families

    everything = pve_exporter.CollectorsOptions(*[True] * len(pve_exporter.CollectorsOptions._fields))
    text = pve_exporter.collect_pve(config, host, True, True, everything).decode()
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


@pytest.mark.parametrize("metric", sorted(LABELS))
def test_the_metric_is_there_with_its_labels(samples: dict[str, list[Any]], metric: str) -> None:
    """The families a dashboard of this exporter draws from."""
    assert metric in samples, sorted(samples)
    assert {frozenset(sample.labels) for sample in samples[metric]} == {frozenset(LABELS[metric])}


def test_everything_the_site_has_is_up(samples: dict[str, list[Any]]) -> None:
    """Nodes, guests and storages are in the metrics under their ids."""
    up = {sample.labels["id"]: sample.value for sample in samples["pve_up"]}
    assert up["cluster/lab"] == up["node/pve3"] == up["qemu/101"] == up["lxc/130"] == 1
    assert up["qemu/121"] == 0
    shared = {sample.labels["id"]: sample.value for sample in samples["pve_storage_shared"]}
    assert shared["storage/pve1/nas"] == 1
    assert shared["storage/pve1/local-lvm"] == 0
