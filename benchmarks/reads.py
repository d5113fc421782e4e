"""A hundred read checks against the lab, and the same requests through plain clients.

`python -m benchmarks.reads ours` and `… plain` are the two sides, run in a project whose lab is up;
each prints its sample as JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from benchmarks.homes import environment, home
from benchmarks.measure import Case, Contender, Sample, command, middle

COUNT = 100


def case() -> Case:
    """The comparison; its lab stays up until the process ends."""
    kept = contextlib.ExitStack()
    atexit.register(kept.close)

    @functools.cache
    def at() -> Path:
        return kept.enter_context(home())

    def side(name: str) -> Callable[[], Sample]:
        def measure() -> Sample:
            if name == "plain" and not (at() / "requests.json").exists():
                _side("ours", at())
            return _side(name, at())

        return measure

    return Case(
        name="reads",
        title=f"{COUNT} read checks",
        contenders=(
            Contender("runbook_lib", "facts of 11 and 12 read anew for every check, and judged", side("ours"), True),
            Contender(
                "proxmoxer + kubernetes",
                "the same requests one after the other, as plain dictionaries, judging nothing",
                side("plain"),
            ),
        ),
        columns={"requests": "requests"},
        target=f"{COUNT} checks within 2 s",
        met=lambda samples: middle(samples["runbook_lib"]) <= 2,
        notes=("Libraries are loaded before the clock starts; connecting and logging in count.",),
    )


def _side(name: str, folder: Path) -> Sample:
    command([sys.executable, "-m", "benchmarks.reads", name], cwd=folder, env=environment(folder))
    told = json.loads((folder / "measured.log").read_text(encoding="utf-8").splitlines()[-1])
    return Sample(told["wall"], told["cpu"], {"requests": told["requests"]})


# ---------------------------------------------------------------- inside the two processes


def ours() -> dict[str, float]:
    """Seconds of `COUNT` checks, and how many requests they took. Leaves the requests in requests.json."""
    from runbook_lib import forkserver, kubernetes, load_site, proxmox

    forkserver.preload(forkserver.PRELOAD)  # as the kernels of a run find them
    site = load_site("lab")
    checks = _checks()
    with _noted() as requests:
        began, used = time.perf_counter(), time.process_time()
        pve, k8s = proxmox.connect(site), kubernetes.connect(site)
        findings = [
            finding for judge in itertools.islice(itertools.cycle(checks), COUNT) for finding in judge(pve, k8s)
        ]
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    assert findings
    assert not [finding for finding in findings if finding.status == "error"]
    reads = [entry for entry in requests if entry[0] == "GET"]
    Path("requests.json").write_text(json.dumps(reads), encoding="utf-8")
    return {"wall": wall, "cpu": cpu, "requests": len(reads)}


def _checks() -> list[Callable[[Any, Any], Any]]:
    from runbook_lib import checks, kubernetes, proxmox

    return [
        lambda pve, k8s: checks.proxmox.version_is_supported(proxmox.version(pve)),
        lambda pve, k8s: checks.proxmox.cluster_is_quorate(proxmox.cluster(pve)),
        lambda pve, k8s: checks.proxmox.every_node_is_online(proxmox.nodes(pve)),
        lambda pve, k8s: checks.proxmox.cpu_has_headroom(proxmox.nodes(pve), proxmox.guests(pve)),
        lambda pve, k8s: checks.storage.storage_is_active(proxmox.storages(pve)),
        lambda pve, k8s: checks.storage.storage_has_room(proxmox.storages(pve)),
        lambda pve, k8s: checks.storage.thin_pool_has_room(proxmox.thin_pools(pve)),
        lambda pve, k8s: checks.network.bridges_are_vlan_aware(proxmox.interfaces(pve)),
        lambda pve, k8s: checks.network.no_network_change_waits(proxmox.pending_network(pve)),
        lambda pve, k8s: checks.security.certificates_are_current(proxmox.certificates(pve)),
        lambda pve, k8s: checks.proxmox.clocks_agree(proxmox.clocks(pve)),
        lambda pve, k8s: checks.proxmox.templates_are_fit(proxmox.templates(pve)),
        lambda pve, k8s: checks.kubernetes.version_is_supported(kubernetes.version(k8s), kubernetes.cozystack(k8s)),
        lambda pve, k8s: checks.kubernetes.nodes_are_ready(kubernetes.nodes(k8s)),
        lambda pve, k8s: checks.kubernetes.no_pod_is_stuck(kubernetes.pods(k8s)),
        lambda pve, k8s: checks.kubernetes.releases_are_ready(kubernetes.releases(k8s)),
        lambda pve, k8s: checks.kubernetes.packages_are_ready(kubernetes.packages(k8s)),
        lambda pve, k8s: checks.kubernetes.capi_operator_runs(kubernetes.workloads(k8s)),
        lambda pve, k8s: checks.kubernetes.api_services_are_available(kubernetes.api_services(k8s)),
        lambda pve, k8s: checks.kubernetes.storage_class_exists(kubernetes.storage_classes(k8s)),
    ]


@contextlib.contextmanager
def _noted() -> Iterator[list[tuple[str, str]]]:
    """Every request answered through urllib3, which both clients stand on: (method, path with query)."""
    from urllib3.connectionpool import HTTPConnectionPool

    seen: list[tuple[str, str]] = []
    original = HTTPConnectionPool.urlopen

    def urlopen(self: HTTPConnectionPool, method: str, url: str, *given: Any, **named: Any) -> Any:
        response = original(self, method, url, *given, **named)
        if response.status < 400:  # what is not there raises in the plain client; it would have to be asked for anew
            seen.append((method, url))
        return response

    HTTPConnectionPool.urlopen = urlopen  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        HTTPConnectionPool.urlopen = original  # type: ignore[method-assign]


def plain() -> dict[str, float]:
    """Seconds of the requests in requests.json through proxmoxer and the official client, verified TLS on both."""
    from kubernetes import client
    from proxmoxer import ProxmoxAPI

    from runbook_lib.lab import control

    reads = [urlsplit(url) for _, url in json.loads(Path("requests.json").read_text(encoding="utf-8"))]
    lab = control.connection(Path(".lab"))
    host = urlsplit(lab.proxmox.url)
    user, _, token = lab.proxmox.token_id.partition("!")
    began, used = time.perf_counter(), time.process_time()
    pve = ProxmoxAPI(
        host.hostname,
        port=host.port,
        user=user,
        token_name=token,
        token_value=lab.proxmox.token_secret,
        verify_ssl=lab.proxmox.ca_file,
    )
    settings = client.Configuration(host=lab.kubernetes.url)
    settings.ssl_ca_cert = lab.kubernetes.ca_file
    settings.api_key = {"authorization": f"Bearer {lab.kubernetes.token}"}
    k8s = client.ApiClient(settings)
    for url in reads:
        query = parse_qsl(url.query)
        if url.path.startswith("/api2/json"):
            pve(url.path.removeprefix("/api2/json")).get(**dict(query))
        else:
            sent = k8s.param_serialize(
                "GET",
                url.path,
                query_params=query,
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
            answer = k8s.call_api(*sent)
            answer.read()
            k8s.response_deserialize(answer, {"200": "object"})
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - used, "requests": len(reads)}


def main() -> None:
    """Print one side's sample."""
    print(json.dumps(ours() if sys.argv[1] == "ours" else plain()))


if __name__ == "__main__":
    main()
