"""A run of step 23 that dies: what it installed is listed and stays, and a new run completes it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import homes
import pytest
from test_kill import Point, await_until, end, journal, processes, run_until

from runbook_lib.lab import control
from runbook_lib.model import Status

pytestmark = pytest.mark.xdist_group("kill-providers")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
KINDS = "operator.cluster.x-k8s.io/v1alpha2/"
POINTS = (
    Point(
        "namespace",
        "23",
        "kubernetes",
        "PATCH",
        r"/namespaces/capmox-system\?(?!.*dryRun)",
        "v1/Namespace/capmox-system",
    ),
    Point(
        "variables", "23", "kubernetes", "PATCH", r"/secrets/capmox-variables\?(?!.*dryRun)", "v1/Secret/capmox-system"
    ),
    Point("ipam", "23", "kubernetes", "PATCH", r"/ipamproviders/in-cluster\?(?!.*dryRun)", f"{KINDS}IPAMProvider"),
    Point(
        "capmox",
        "23",
        "kubernetes",
        "PATCH",
        r"/infrastructureproviders/proxmox\?(?!.*dryRun)",
        f"{KINDS}InfrastructureProvider",
    ),
)
SAMPLE = {"capmox"}


@pytest.fixture(params=POINTS, ids=str)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose run of step 23 was killed at this point, after step 13."""
    point: Point = request.param
    if point.name not in SAMPLE and not COMPLETE:
        pytest.skip("complete matrix; run with `make test-all`")
    home = homes.make(tmp_path_factory.mktemp("kill-providers"), scale=60)
    home.up()
    try:
        assert home.runbook("run", "--step", "13").returncode == 0
        try:
            running = run_until(home, point)
        finally:
            control.fault(None, home.lab)
        rows = journal(home)
        targets = [row["change"]["target"] for row in rows if row["event"] == "intent"]
        assert any(target.startswith(point.target) for target in targets), targets[-8:]
        end(running, home, kernels=point.name == "capmox")
        await_until(lambda: not processes(home))
        yield home
    finally:
        home.down()


def test_a_killed_installation_is_completed_by_the_next_run(killed: homes.Home) -> None:
    """The sweep leaves what is to stay; another run finds it, adds the rest, and proves the whole."""
    before = homes.inventory(killed)
    swept = killed.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert homes.inventory(killed) == before
    told = killed.runbook("run", "--step", "23")
    assert told.returncode == 0, told.stderr[-3000:]
    result = killed.runs()[-1].steps[0].result
    assert result is not None
    proved = {found.check for found in result.findings if found.status is Status.PASS}
    assert {"providers.both_are_installed", "providers.webhooks_answer", "providers.manager_is_known"} <= proved
