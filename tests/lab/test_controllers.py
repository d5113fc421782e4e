"""The lab's controllers: pure judgement first, then the whole of it against the lab's own API server over TLS."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.controllers import network, programs, scheduler
from runbook_lib.lab.kubernetes.controllers.kubelet import pull_failure
from runbook_lib.lab.kubernetes.controllers.network import Outcome, View
from runbook_lib.lab.kubernetes.controllers.quantities import number, requests_of

Object = dict[str, Any]


@pytest.fixture(scope="module")
def section() -> Object:
    """The healthy cluster's section."""
    return scenario.load("healthy").kubernetes


@pytest.fixture(scope="module")
def view(section: Object) -> View:
    """The healthy cluster as a connection meets it."""
    objects = seeds.cozystack(section)
    return View(*([item for item in objects if item["kind"] == kind] for kind in KINDS))


KINDS = ("Pod", "Node", "Service", "EndpointSlice")
SOURCE = {"metadata": {"name": "probe", "namespace": "runbook-test"}, "spec": {"containers": [{"name": "probe"}]}}


@pytest.mark.parametrize(
    ("host", "port", "result"),
    [
        ("10.0.0.1", 8006, "connected"),
        ("10.0.0.3", 8006, "connected"),
        ("10.0.0.1", 8007, "refused"),
        ("192.0.2.1", 8006, "timeout"),
        ("10.96.0.1", 443, "connected"),
        ("10.96.0.1", 80, "timeout"),
        ("kubernetes.default.svc", 443, "connected"),
        ("kubernetes.default.svc.cozy.local", 443, "connected"),
        ("vmselect-shortterm.tenant-root", 8481, "connected"),
        ("nothing.of.that.name", 443, "dns"),
        ("10.0.0.41", 6443, "connected"),
        ("10.0.0.51", 6443, "refused"),
        ("127.0.0.1", 8006, "refused"),
        ("localhost", 22, "refused"),
    ],
)
def test_connection_ends_as_the_cluster_says(section: Object, view: View, host: str, port: int, result: str) -> None:
    """Services, nodes, pods and the world outside answer each in their own way."""
    assert network.connect(view, network.world(section), SOURCE, host, port).result == result


def test_blocked_address_times_out(view: View) -> None:
    """A firewall drops: nothing comes back until the client gives up."""
    outside = network.world(scenario.load("pods-cannot-reach-proxmox").kubernetes)
    outcome = network.connect(view, outside, SOURCE, "10.0.0.1", 8006, timeout=3.0)
    assert outcome == Outcome("timeout", 3.0, "10.0.0.1")


def test_names_need_a_ready_dns() -> None:
    """With CoreDNS down no name resolves, and addresses still connect."""
    given = scenario.load("kube-ovn-cascade").kubernetes
    objects = seeds.cozystack(given)
    broken = View(*([item for item in objects if item["kind"] == kind] for kind in KINDS))
    outside = network.world(given)
    assert network.connect(broken, outside, SOURCE, "kubernetes.default.svc", 443).result == "dns"
    assert network.connect(broken, outside, SOURCE, "10.96.0.1", 443).result == "connected"


def test_service_without_endpoints_refuses(section: Object, view: View) -> None:
    """A Service nobody stands behind refuses at once."""
    alone = View(view.pods, view.nodes, view.services, [])
    assert network.connect(alone, network.world(section), SOURCE, "10.96.0.1", 443).result == "refused"


AGNHOST = {"name": "probe", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53"}


def ran(container: Object, result: str = "connected") -> programs.Ended | programs.Runs:
    """What a container does where every connection ends with `result`."""

    async def connects(host: str, port: int, timeout: float) -> Outcome:
        return Outcome(result, 0.001, "10.0.0.1")

    place = programs.Place({"metadata": {"name": "pod-1"}}, {"GREETING": "hi"}, connects, lambda: 0.0)
    return asyncio.run(programs.run(container, place))


@pytest.mark.parametrize(
    ("result", "output", "code"),
    [("connected", "", 0), ("timeout", "TIMEOUT\n", 1), ("refused", "REFUSED\n", 1), ("dns", "DNS\n", 1)],
)
def test_agnhost_connect_speaks_in_one_word(result: str, output: str, code: int) -> None:
    """Nothing for a connection, else one word and exit code 1."""
    words = ["connect", "10.0.0.1:8006", "--timeout=3s", "--protocol=tcp"]
    ended = ran({**AGNHOST, "args": words}, result)
    assert isinstance(ended, programs.Ended)
    assert (ended.output, ended.code) == (output, code)


@pytest.mark.parametrize(
    ("words", "output", "code"),
    [
        (["echo", "hello", "world"], "hello world\n", 0),
        (["sh", "-c", "echo one; echo two"], "one\ntwo\n", 0),
        (["sh", "-c", "false && echo no || echo yes"], "yes\n", 0),
        (["sh", "-c", "echo $GREETING; exit 3"], "hi\n", 3),
        (["/bin/sh", "-c", "hostname"], "pod-1\n", 0),
        (["nc", "-z", "-v", "10.0.0.1", "8006"], "10.0.0.1 (10.0.0.1:8006) open\n", 0),
        (["frobnicate"], "sh: frobnicate: not found\n", 127),
        (["sh", "-c", 'echo "unfinished'], "sh: syntax error: unterminated quoted string\n", 2),
    ],
)
def test_busybox_runs_simple_commands(words: list[str], output: str, code: int) -> None:
    """What a person tries first with `kubectl run` behaves as expected."""
    ended = ran({"name": "c", "image": "busybox:1.37", "command": words})
    assert isinstance(ended, programs.Ended)
    assert (ended.output, ended.code) == (output, code)


@pytest.mark.parametrize(
    "container",
    [
        {"name": "c", "image": "registry.k8s.io/pause:3.10"},
        {"name": "c", "image": "nginx"},
        {"name": "c", "image": "busybox", "command": ["sleep", "infinity"]},
        AGNHOST,
    ],
)
def test_servers_keep_running(container: Object) -> None:
    """What serves does not end."""
    assert isinstance(ran(container), programs.Runs)


@pytest.mark.parametrize(
    ("image", "registries", "words"),
    [
        ("nginx", {}, ""),
        ("registry.k8s.io/pause:3.10", {}, ""),
        ("registry.example.org/thing:1", {}, "no such host"),
        ("registry.example.org/thing:1", {"registry.example.org": "ok"}, ""),
        ("quay.io/cilium/cilium:v1", {"quay.io": "timeout"}, "i/o timeout"),
        ("ghcr.io/a/b:1", {"ghcr.io": "denied"}, "pull access denied"),
        ("nginx:no-such", {"docker.io": "missing"}, "docker.io/library/nginx:no-such: not found"),
    ],
)
def test_pull_fails_in_the_runtimes_words(image: str, registries: dict[str, str], words: str) -> None:
    """An image comes or not by the state of its registry."""
    failure = pull_failure(image, registries)
    assert bool(failure) == bool(words)
    assert words in failure


@pytest.mark.parametrize(
    ("text", "value"), [("250m", 0.25), ("2", 2.0), ("1Gi", 2**30), ("1500M", 1.5e9), ("0", 0.0), (4, 4.0)]
)
def test_quantities_are_numbers(text: Any, value: float) -> None:
    """Every suffix the API knows."""
    assert number(text) == pytest.approx(value)


def pod(name: str = "p", *, cpu: str = "", **spec: Any) -> Object:
    """A pending pod."""
    resources = {"requests": {"cpu": cpu}} if cpu else {}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "resources": resources}], **spec},
        "status": {"phase": "Pending"},
    }


def node(name: str, *, cpu: str = "4", labels: Object | None = None, **spec: Any) -> Object:
    """A node with room."""
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
    }


def test_requests_count_the_larger_of_init_and_rest() -> None:
    """Init containers run before the others, so only the larger sum is asked for."""
    item = pod(cpu="200m", initContainers=[{"name": "i", "resources": {"requests": {"cpu": "1"}}}])
    assert requests_of(item) == {"cpu": 1.0}


def test_scheduler_takes_the_emptiest_node() -> None:
    """A pod goes where it leaves the most."""
    there = pod("other", cpu="3", nodeName="a")
    assert scheduler.choose(pod(cpu="500m"), [node("a"), node("b")], [there], {})[0] == "b"


def test_scheduler_counts_what_it_promised() -> None:
    """A pod that was bound a moment ago counts before the cache has seen it."""
    first = pod("first", cpu="3")
    chosen, _ = scheduler.choose(pod("second", cpu="3"), [node("a")], [first], {("default", "first"): "a"})
    assert chosen is None


@pytest.mark.parametrize(
    ("item", "nodes", "message"),
    [
        (
            pod(cpu="8"),
            [node("a"), node("b")],
            "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: "
            "2 No preemption victims found for incoming pod.",
        ),
        (
            pod(),
            [
                node("a", taints=[{"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}]),
                node("b", unschedulable=True),
            ],
            "0/2 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}, 1 node(s) were unschedulable. "
            "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
        ),
        (
            pod(nodeSelector={"disk": "ssd"}),
            [node("a", labels={"disk": "hdd"})],
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. "
            "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        ),
        (pod(), [], "no nodes available to schedule pods"),
    ],
)
def test_scheduler_says_why_nothing_fits(item: Object, nodes: list[Object], message: str) -> None:
    """FailedScheduling in the scheduler's own words."""
    chosen, refusals = scheduler.choose(item, nodes, [], {})
    assert chosen is None
    assert scheduler.explain(refusals) == message


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "dedicated", "operator": "Exists"}, True),
        ({"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}, True),
        ({"key": "dedicated", "value": "cpu"}, False),
        ({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}, False),
    ],
)
def test_taint_is_tolerated(toleration: Object, tolerated: bool) -> None:
    """Key, value and effect have to fit, an empty one fits everything."""
    tainted = node("a", taints=[{"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}])
    chosen, _ = scheduler.choose(pod(tolerations=[toleration]), [tainted], [], {})
    assert (chosen == "a") is tolerated
