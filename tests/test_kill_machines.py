"""Step 24 killed in the middle of a machine's life: a sweep leaves no object on either side, whoever was at work."""

from __future__ import annotations

import re
from collections.abc import Iterator

import homes
import pytest
from test_kill import COMPLETE, Point, await_until, begin_anew, end, journal, processes, run_until

from benchmarks.machines import OLD, SPACE
from benchmarks.machines import Site as Lab
from runbook_lib.lab import control
from runbook_lib.model import Status

pytestmark = pytest.mark.xdist_group("kill-machines")

SCALE = 60
POINTS = (
    Point("first-object", "24", "kubernetes", "PATCH", r"/proxmoxclusters/runbook-[^?]*\?(?!.*dryRun)", ""),
    Point("cluster-joined", "24", "kubernetes", "PATCH", r"/clusters/runbook-[^?]*\?(?!.*dryRun)", ""),
    Point("clone-begun", "24", "proxmox", "POST", r"/qemu/9000/clone", ""),
    Point("image-uploaded", "24", "proxmox", "POST", r"/upload", ""),
    Point("machine-started", "24", "proxmox", "POST", r"/status/start", ""),
    Point("machine-stopped", "24", "proxmox", "POST", r"/status/stop", ""),
    Point("template-rolled", "24", "kubernetes", "PATCH", r"/proxmoxmachinetemplates/runbook-[^?]*-v2\?", ""),
    Point("clone-taken-back", "24", "proxmox", "DELETE", r"/qemu/919\d", ""),
    Point("deployment-deleted", "24", "kubernetes", "DELETE", r"/machinedeployments/runbook-", ""),
)
SAMPLE = {"clone-begun", "template-rolled"}
every_point = pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point,
            marks=()
            if point.name in SAMPLE
            else (
                pytest.mark.slow,
                pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`"),
            ),
        )
        for point in POINTS
    ],
    ids=str,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose site has machines in a namespace that is there already."""
    wish = {"namespace": SPACE, "credentials": "proxmox-credentials", "count": 2, "clone_samples": 1}
    wish |= {"unhealthy_seconds": 60, "wait_minutes": 1}
    place = homes.make(tmp_path_factory.mktemp("kill24"), scale=SCALE, machines=wish)
    place.up()
    yield place
    place.down()


@pytest.fixture
def lab(home: homes.Home) -> Iterator[Lab]:
    """The lab as on the day after the provider was installed."""
    begin_anew(home)
    fresh = Lab(home.lab, OLD)
    fresh.install()
    yield fresh
    control.fault(None, home.lab)
    await_until(lambda: not processes(home))


def left(lab: Lab) -> list[str]:
    """Every object of Cluster API and its neighbours that bears a run's mark, asked by a client that is not ours."""
    paths = [lab.core(plural) for plural in ("clusters", "machinedeployments", "machinesets", "machines")]
    paths += [lab.core("machinehealthchecks")]
    paths += [lab.own(plural) for plural in ("proxmoxclusters", "proxmoxmachines", "proxmoxmachinetemplates")]
    paths += [lab.ipam(plural) for plural in ("ipaddressclaims", "ipaddresses")]
    paths += [
        f"/apis/controlplane.cluster.x-k8s.io/v1alpha1/namespaces/{SPACE}/kamajicontrolplanes",
        f"/apis/bootstrap.cluster.x-k8s.io/v1beta1/namespaces/{SPACE}/kubeadmconfigtemplates",
        f"/apis/kamaji.clastix.io/v1alpha1/namespaces/{SPACE}/tenantcontrolplanes",
        f"/apis/helm.toolkit.fluxcd.io/v2/namespaces/{SPACE}/helmreleases",
        f"/api/v1/namespaces/{SPACE}/secrets",
    ]
    names = [f"{path.rpartition('/')[2]}/{row['metadata']['name']}" for path in paths for row in lab.items(path)]
    return [name for name in names if re.search(r"/runbook-\d{8}t", name)]


@every_point
def test_a_killed_life_leaves_nothing_on_either_side(home: homes.Home, lab: Lab, point: Point):
    """At once after the kill, with requests of the runner or of CAPMOX still under way."""
    before = homes.inventory(home)
    running = run_until(home, point)
    assert any(row["event"] == "intent" for row in journal(home))
    end(running, home, kernels=len(point.name) % 2 == 0)
    swept = home.runbook("sweep")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "clean: nothing borrowed remains" in swept.stdout
    await_until(lambda: not left(lab))
    assert homes.inventory(home) - before == set()
    assert before - homes.inventory(home) == set()


def test_a_killed_life_can_be_lived_again(home: homes.Home, lab: Lab):
    """Resumed after a sweep the step comes to its end as if nothing had happened."""
    before = homes.inventory(home)
    running = run_until(home, POINTS[4])
    end(running, home, kernels=True)
    assert home.runbook("sweep").returncode == 0
    await_until(lambda: not processes(home))
    resumed = home.runbook("resume")
    result = home.runs()[-1].steps[0]
    assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-2000:]
    assert result.status in {Status.PASS, Status.WARN}
    assert homes.inventory(home) == before and left(lab) == []
