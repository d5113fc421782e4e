"""The lab's controllers: pure judgement first, then the whole of it against the lab's own API server over TLS."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import Handles, network, programs, scheduler, start_all
from runbook_lib.lab.kubernetes.controllers.client import KubeClient, Refused
from runbook_lib.lab.kubernetes.controllers.kubelet import pull_failure
from runbook_lib.lab.kubernetes.controllers.network import Outcome, View
from runbook_lib.lab.kubernetes.controllers.quantities import number, requests_of
from runbook_lib.lab.kubernetes.seeds.objects import stamp
from runbook_lib.lab.kubernetes.server import create_app

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

    async def connects(host: str, port: int, timeout: float, protocol: str = "TCP") -> Outcome:
        return Outcome(result, 0.001, "10.0.0.1")

    place = programs.Place({"metadata": {"name": "pod-1"}}, {"GREETING": "hi"}, connects, lambda: 0.0)
    return asyncio.run(programs.run(container, place))


@pytest.mark.parametrize(
    ("result", "output", "code"),
    [
        ("connected", "", 0),
        ("timeout", "TIMEOUT\n", 1),
        ("refused", "REFUSED\n", 1),
        ("dns", "DNS: lookup 10.0.0.1: no such host\n", 1),
    ],
)
def test_agnhost_connect_speaks_in_one_word(result: str, output: str, code: int) -> None:
    """Nothing for a connection, else exit code 1 with what was wrong: one word, of DNS the error too."""
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


# --- the whole of it, over HTTP -----------------------------------------------------------------------------------

TOKEN = "a-token-of-the-test"
NAMESPACE = "runbook-test"


@asynccontextmanager
async def running(section: Object, scale: float = math.inf) -> AsyncIterator[tuple[KubeClient, Handles]]:
    """The seeded cluster behind its API server, with every controller at work; time does not wait."""
    cluster = Cluster(version=seeds.kubernetes_version(section))
    cluster.load(seeds.cozystack(section))
    cluster.tokens[TOKEN] = User("lab-controllers", ("system:masters",))
    runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    handles = await start_all(url, TOKEN, None, Clock(scale), section)
    cluster.pod_log, cluster.pod_exec = handles.kubelets.pod_log, handles.kubelets.pod_exec
    client = KubeClient(url, TOKEN)
    try:
        await handles.ready()
        await client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        yield client, handles
    finally:
        await client.close()
        await handles.stop()
        await runner.cleanup()


async def until(client: KubeClient, path: str, wanted: Callable[[Object], bool], seconds: float = 8.0) -> Object:
    """The object once it is as wanted."""
    async with asyncio.timeout(seconds):
        while True:
            item = await client.get(path)
            if wanted(item):
                return item
            await asyncio.sleep(0.005)


def phase(*names: str) -> Callable[[Object], bool]:
    """Whether a pod is in one of the phases."""
    return lambda item: item["status"].get("phase") in names


def probe(name: str, target: str, node_name: str) -> Object:
    """The pod by which the runbook tries a connection."""
    return {
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node_name,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 60,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{**AGNHOST, "args": ["connect", target, "--timeout=3s", "--protocol=tcp"]}],
        },
    }


PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


async def log_of(client: KubeClient, name: str) -> str:
    """What the pod wrote."""
    async with client._session.get(f"{client.base_url}{PODS}/{name}/log") as answer:
        return await answer.text()


@pytest.mark.parametrize(
    ("target", "ended", "output"),
    [
        ("10.0.0.1:8006", "Succeeded", ""),
        ("192.0.2.9:443", "Failed", "TIMEOUT\n"),
        ("10.0.0.2:22", "Failed", "REFUSED\n"),
    ],
)
def test_probe_pod_tells_how_its_connection_ended(section: Object, target: str, ended: str, output: str) -> None:
    """Pending, then Succeeded without a word, or Failed with one word in its log."""

    async def story() -> None:
        async with running(section) as (client, _):
            await client.create(PODS, probe("probe-1", target, "cp-2"))
            item = await until(client, f"{PODS}/probe-1", phase("Succeeded", "Failed"))
            assert item["status"]["phase"] == ended
            assert item["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == (1 if output else 0)
            assert item["status"]["hostIP"] == "10.0.0.42"
            assert await log_of(client, "probe-1") == output

    asyncio.run(story())


def test_pod_without_a_node_is_scheduled_and_runs(section: Object) -> None:
    """`kubectl run --restart=Never`: scheduled, pulled, started, succeeded, each with its event."""

    async def story() -> None:
        async with running(section) as (client, _):
            container = {"name": "hello", "image": "busybox:1.37", "command": ["sh", "-c", "echo hello"]}
            spec = {"restartPolicy": "Never", "containers": [container]}
            await client.create(PODS, {"metadata": {"name": "hello"}, "spec": spec})
            item = await until(client, f"{PODS}/hello", phase("Succeeded"))
            assert item["spec"]["nodeName"] in {"cp-1", "cp-2", "cp-3", "worker-1", "worker-2"}
            assert await log_of(client, "hello") == "hello\n"
            events = await client.list(f"/api/v1/namespaces/{NAMESPACE}/events")
            reasons = {event["reason"] for event in events["items"]}
            assert {"Scheduled", "Pulling", "Pulled", "Created", "Started"} <= reasons

    asyncio.run(story())


def test_server_pod_becomes_ready_and_can_be_deleted(section: Object) -> None:
    """A pod that serves is Running and Ready with an address of its own; a deletion is confirmed by its kubelet."""

    async def story() -> None:
        async with running(section) as (client, handles):
            await client.create(
                PODS, {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "nginx"}]}}
            )
            item = await until(client, f"{PODS}/web", phase("Running"))
            assert {entry["type"]: entry["status"] for entry in item["status"]["conditions"]}["Ready"] == "True"
            assert item["status"]["podIP"].startswith("10.244.")
            assert (await handles.kubelets.pod_exec(NAMESPACE, "web", ["echo", "hi"]))[0] == "hi\n"
            await client.delete(f"{PODS}/web")
            with pytest.raises(Refused, match="404"):
                await until(client, f"{PODS}/web", lambda _: False)

    asyncio.run(story())


def test_impossible_pod_waits_and_says_why(section: Object) -> None:
    """A pod that fits nowhere stays Pending with the scheduler's sentence, until there is room."""

    async def story() -> None:
        async with running(section) as (client, _):
            spec = {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "nginx"}]}
            await client.create(PODS, {"metadata": {"name": "picky"}, "spec": spec})
            item = await until(client, f"{PODS}/picky", lambda item: bool(item["status"].get("conditions")))
            assert item["status"]["conditions"][0]["message"].startswith(
                "0/5 nodes are available: 5 node(s) didn't match"
            )
            await client.patch("/api/v1/nodes/worker-2", {"metadata": {"labels": {"disk": "ssd"}}})
            item = await until(client, f"{PODS}/picky", phase("Running"))
            assert item["spec"]["nodeName"] == "worker-2"

    asyncio.run(story())


def test_image_of_an_unreachable_registry_backs_off(section: Object) -> None:
    """ErrImagePull, then ImagePullBackOff, with the runtime's words; the pod stays Pending."""

    async def story() -> None:
        async with running({**section, "registries": {"quay.io": "timeout"}}, scale=200) as (client, _):
            spec = {"containers": [{"name": "c", "image": "quay.io/some/thing:1"}]}
            await client.create(PODS, {"metadata": {"name": "stuck"}, "spec": spec})

            def backs_off(item: Object) -> bool:
                states = [entry["state"].get("waiting", {}) for entry in item["status"].get("containerStatuses", ())]
                return any(state.get("reason") == "ImagePullBackOff" for state in states)

            item = await until(client, f"{PODS}/stuck", backs_off)
            assert item["status"]["phase"] == "Pending"
            assert "i/o timeout" in item["status"]["containerStatuses"][0]["state"]["waiting"]["message"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kube-ovn-socket", "kube-ovn-daemon.sock"),
        ("kube-ovn-cascade", "no address allocated to pod"),
        ("containerd-runtime", "container.Runtime.Name must be set"),
    ],
)
def test_nothing_starts_where_the_node_is_broken(name: str, words: str) -> None:
    """A probe on a node that cannot make a sandbox never runs, its event says why, and its deadline ends it."""

    async def story() -> None:
        node_name = "worker-1" if name == "containerd-runtime" else "worker-2"
        async with running(scenario.load(name).kubernetes) as (client, handles):
            handles.kubelets.shortest_deadline = 0.2
            await client.create(PODS, probe("probe-1", "10.0.0.1:8006", node_name))
            item = await until(client, f"{PODS}/probe-1", phase("Failed"))
            assert item["status"]["reason"] == "DeadlineExceeded"
            events = await client.list(f"/api/v1/namespaces/{NAMESPACE}/events")
            told = [event["message"] for event in events["items"] if event["reason"] == "FailedCreatePodSandBox"]
            assert words in told[0]

    asyncio.run(story())


def test_crashing_container_is_restarted(section: Object) -> None:
    """Under restartPolicy Always a process that ends goes into CrashLoopBackOff and comes back."""

    async def story() -> None:
        async with running(section, scale=400) as (client, _):
            container = {"name": "c", "image": "busybox", "command": ["sh", "-c", "echo oops; exit 2"]}
            await client.create(PODS, {"metadata": {"name": "crash"}, "spec": {"containers": [container]}})
            item = await until(
                client,
                f"{PODS}/crash",
                lambda item: any(entry["restartCount"] > 1 for entry in item["status"].get("containerStatuses", ())),
            )
            last = item["status"]["containerStatuses"][0]["lastState"]["terminated"]
            assert (last["exitCode"], last["reason"]) == (2, "Error")

    asyncio.run(story())


def test_seeded_pods_are_left_alone(section: Object) -> None:
    """The kubelets change nothing about what the scenario put there, and renew the leases."""

    async def story() -> None:
        began = stamp(time.time(), micro=True)
        async with running(section) as (client, _):
            lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cp-1"
            await until(client, lease, lambda item: item["spec"]["renewTime"] > began)
            pods = await client.list("/api/v1/namespaces/kube-system/pods")
            assert {item["status"]["phase"] for item in pods["items"]} == {"Running"}
            seeded = [item for item in seeds.cozystack(section) if item["kind"] == "Pod"]
            assert len((await client.list("/api/v1/pods"))["items"]) == len(seeded)
            assert {
                entry.get("manager") for item in pods["items"] for entry in item["metadata"].get("managedFields", ())
            } == set()

    asyncio.run(story())
