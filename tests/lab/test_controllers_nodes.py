"""Pods, nodes and what stands around them: judgement by object pairs, then stories over HTTP."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import scenario
from runbook_lib.lab.kubernetes.controllers import (
    disruption,
    endpoints,
    files,
    heartbeats,
    metallb,
    metrics,
    node_fit,
    node_lifecycle,
    pod_life,
    pod_status,
    preemption,
    probes,
    programs,
    scheduler,
    volumes,
)
from runbook_lib.lab.kubernetes.controllers.client import KubeClient, Refused
from runbook_lib.lab.kubernetes.controllers.fitting import Board
from runbook_lib.lab.kubernetes.controllers.network import Outcome

from .living import NAMESPACE, PODS, TOKEN, condition, gone, living, phase, pod, reasons, until

Object = dict[str, Any]
NOW = "2026-08-01T10:00:00Z"
KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl") or ""


@pytest.fixture(scope="module")
def section() -> Object:
    """The healthy cluster's section."""
    return scenario.load("healthy").kubernetes


# --- the shell of probe pods ---------------------------------------------------------------------------------------


def disk(size: int = 1 << 30) -> tuple[programs.Place, files.Keep]:
    """A place with a volume at /data, and that volume."""

    async def connects(host: str, port: int, timeout: float) -> Outcome:
        return Outcome("connected", 0.0006, "10.0.0.1")

    keep, seen = files.Keep("vm-9999-pvc-1", size), files.Files.fresh()
    seen.mount("/data", keep)
    return programs.Place({"metadata": {"name": "p", "uid": "u"}}, {"A": "x y"}, connects, lambda: 0.0, seen), keep


def sh(script: str, place: programs.Place | None = None) -> programs.Ended | programs.Runs:
    """What a script does."""
    return asyncio.run(programs.execute(["sh", "-c", script], place or disk()[0]))


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("echo one > /tmp/a; echo two >> /tmp/a; cat /tmp/a", "one\ntwo\n"),
        ("echo hello | tee /data/x | wc -c", "6\n"),
        ('for i in 1 2 3; do echo "n$i"; done', "n1\nn2\nn3\n"),
        ("if [ -f /data/none ]; then echo yes; else echo no; fi", "no\n"),
        ("i=0; while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i", "3\n"),
        ('x=$(echo deep | cut -d e -f 1); echo "$x-$A"', "d-x y\n"),
        ("echo a && false || echo b", "a\nb\n"),
        ("mkdir -p /data/a/b && touch /data/a/b/c && ls /data/a/b", "c\n"),
        ("printf 'abc' | sha256sum", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -\n"),
        ("truncate -s 1M /data/z; stat -c %s /data/z", "1048576\n"),
        ("! false && echo inverted", "inverted\n"),
        ("cat /data/none 2>/dev/null || echo missing", "missing\n"),
        ("(echo inner; exit 3); echo after $?", "inner\nafter 3\n"),
        ("echo ${NOTHING:-default}", "default\n"),
    ],
)
def test_shell_runs_what_probes_write(script: str, output: str) -> None:
    """Redirections, pipes, loops, tests and substitutions give what a real shell gives."""
    ended = sh(script)
    assert isinstance(ended, programs.Ended)
    assert ended.output == output


def test_zeros_have_their_true_checksum() -> None:
    """A mebibyte of zeros sums up to what it sums up to everywhere."""
    ended = sh("dd if=/dev/zero of=/data/z bs=1M count=1 2>/dev/null; sha256sum /data/z")
    assert isinstance(ended, programs.Ended)
    assert ended.output.startswith("30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58")


def test_pattern_is_read_back_by_another_container() -> None:
    """What one container wrote to a volume another one reads with the same checksum, and df shows it."""
    place, keep = disk()
    first = sh("dd if=/dev/urandom of=/data/p bs=1M count=8 2>/dev/null; sha256sum /data/p", place)
    other, _ = disk()
    other.files.mount("/data", keep)
    assert sh("sha256sum /data/p", other).output == first.output
    assert "8216 " in sh("df -k /data", other).output


def test_full_volume_refuses_in_the_kernels_words() -> None:
    """Writing more than fits ends with ENOSPC."""
    ended = sh("dd if=/dev/zero of=/data/z bs=1M count=3", disk(2 << 20)[0])
    assert isinstance(ended, programs.Ended)
    assert ended.code == 1
    assert "No space left on device" in ended.stderr


def test_endless_loop_does_not_end() -> None:
    """`while true` runs until someone stops it."""
    assert isinstance(sh("while true; do date; sleep 5; done"), programs.Runs)


def test_device_keeps_what_was_written_in_its_middle() -> None:
    """A block device is read back where it was written, and zero elsewhere."""
    place, keep = disk()
    place.files.attach("/dev/xvda", keep)
    sh("echo -n hello | dd of=/dev/xvda bs=1 seek=4096", place)
    assert sh("dd if=/dev/xvda bs=1 skip=4096 count=5 2>/dev/null", place).output == "hello"
    assert sh("blockdev --getsize64 /dev/xvda", place).output == f"{1 << 30}\n"


# --- judgement -----------------------------------------------------------------------------------------------------


def status(state: str, code: int = 0, *, ready: bool = False) -> Object:
    """A container's status in a state."""
    states = {
        "running": {"startedAt": NOW},
        "waiting": {"reason": "ContainerCreating"},
        "terminated": {"exitCode": code},
    }
    return {"name": "c", "state": {state: states[state]}, "ready": ready, "lastState": {}}


@pytest.mark.parametrize(
    ("rows", "policy", "wanted"),
    [
        ([status("waiting")], "Always", "Pending"),
        ([status("running"), status("waiting")], "Always", "Pending"),
        ([status("running"), status("terminated", 1)], "Never", "Running"),
        ([status("terminated")], "Never", "Succeeded"),
        ([status("terminated", 3)], "Never", "Failed"),
        ([status("terminated", 3)], "OnFailure", "Running"),
        ([status("terminated")], "Always", "Running"),
    ],
)
def test_phase_follows_from_containers(rows: list[Object], policy: str, wanted: str) -> None:
    """The kubelet's own rules, also in a mixed pod."""
    assert pod_status.phase({"spec": {"restartPolicy": policy, "containers": []}}, rows, {}) == wanted


@pytest.mark.parametrize(("seconds", "words"), [(10, "10s"), (80, "1m20s"), (300, "5m0s")])
def test_back_off_is_spoken_as_go_does(seconds: float, words: str) -> None:
    """Minutes and seconds in one word."""
    assert pod_life.spoken(seconds) == words


def test_probe_needs_its_threshold() -> None:
    """Two failures of three do not turn a result, the third does."""
    tally = probes.Tally(result=True)
    for _ in range(2):
        tally = tally.after(False, {"failureThreshold": 3})
    assert tally.result is True
    assert tally.after(False, {"failureThreshold": 3}).result is False


def test_kubelet_refuses_what_does_not_fit() -> None:
    """A pod that names its node itself is still too large for it."""
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "pods": "110"}}}
    item = {"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "8"}}}]}}
    reason, words = node_fit.rejection(item, node, [])
    assert reason == "OutOfcpu"
    assert words.endswith("Node didn't have enough resource: cpu, requested: 8000, used: 0, capacity: 4000")


def held(*, ready: str = "True", taints: list[Object] | None = None, **spec: Any) -> Object:
    """A node with its Ready condition."""
    conditions = [{"type": "Ready", "status": ready}]
    return {"metadata": {"name": "n"}, "spec": {"taints": taints or [], **spec}, "status": {"conditions": conditions}}


def test_silent_node_becomes_unknown_once() -> None:
    """All conditions turn Unknown, and nothing is written a second time."""
    rows = node_lifecycle.silent_conditions(held(), NOW)
    assert {row["type"]: row["reason"] for row in rows}["Ready"] == "NodeStatusUnknown"
    silent = {"status": {"conditions": rows}}
    assert node_lifecycle.silent_conditions(silent, NOW) == []


def test_taints_follow_readiness_and_spare_others() -> None:
    """An unknown node is unreachable twice; what others put there stays, and a healed node loses only ours."""
    theirs = {"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule", "value": "true"}
    lost = node_lifecycle.wanted_taints(held(ready="Unknown", taints=[theirs]), NOW)
    assert [(taint["key"].rpartition("/")[2], taint["effect"]) for taint in lost] == [
        ("uninitialized", "NoSchedule"), ("unreachable", "NoSchedule"), ("unreachable", "NoExecute"),
    ]  # fmt: skip
    assert node_lifecycle.wanted_taints(held(taints=lost), NOW) == [theirs]


@pytest.mark.parametrize(
    ("tolerations", "left"),
    [
        ([], 0.0),
        ([{"operator": "Exists"}], None),
        ([{"key": "k", "operator": "Exists", "tolerationSeconds": 300}], 300.0),
        ([{"key": "other", "operator": "Exists"}], 0.0),
    ],
)
def test_pod_stays_as_long_as_it_tolerates(tolerations: list[Object], left: float | None) -> None:
    """Not at all, for ever, or for its seconds."""
    item = {"spec": {"tolerations": tolerations}}
    assert node_lifecycle.time_left(item, [{"key": "k", "effect": "NoExecute"}]) == left


def backend(name: str, *, ready: bool = True, leaving: bool = False, port: int = 8080) -> Object:
    """A running pod behind a service."""
    metadata = {"name": name, "namespace": "d", "uid": f"u-{name}", "labels": {"app": "web"}}
    if leaving:
        metadata["deletionTimestamp"] = NOW
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": metadata,
        "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": f"10.1.0.{len(name)}", "conditions": conditions},
    }


def service(**spec: Any) -> Object:
    """A service in front of the pods labelled app=web, by the name of their port."""
    ports = [{"name": "web", "port": 80, "targetPort": "http"}]
    metadata = {"name": "s", "namespace": "d", "uid": "s"}
    return {"metadata": metadata, "spec": {"selector": {"app": "web"}, "ports": ports, **spec}}


@pytest.mark.parametrize(
    ("item", "spec", "flags"),
    [
        (backend("a"), {}, (True, True, False)),
        (backend("a", ready=False), {}, (False, False, False)),
        (backend("a", leaving=True), {}, (False, True, True)),
        (backend("a", ready=False), {"publishNotReadyAddresses": True}, (True, False, False)),
    ],
)
def test_endpoint_says_ready_serving_terminating(item: Object, spec: Object, flags: tuple[bool, ...]) -> None:
    """A leaving pod may still serve; a headless service may publish what is not ready."""
    made = endpoints.endpoint(service(**spec), item)["conditions"]
    assert (made["ready"], made["serving"], made["terminating"]) == flags


def test_named_port_makes_a_slice_for_each_number() -> None:
    """Pods that give one name to two numbers are in two slices."""
    slices = endpoints.slices_of(service(), [backend("a"), backend("bb", port=9090)], {})
    assert [ports[0]["port"] for ports, _ in slices] == [8080, 9090]


@pytest.mark.parametrize(
    ("spec", "allowed", "desired"),
    [
        ({"minAvailable": 2}, 1, 2),
        ({"maxUnavailable": 1}, 1, 2),
        ({"maxUnavailable": 0}, 0, 3),
        ({"minAvailable": "50%"}, 1, 2),
    ],
)
def test_budget_counts_what_may_go(spec: Object, allowed: int, desired: int) -> None:
    """Numbers and shares, of three healthy pods."""
    budget = {"metadata": {"name": "b"}, "spec": spec}
    made = disruption.status(budget, [backend("a"), backend("bb"), backend("ccc")], 3, NOW)
    assert (made["disruptionsAllowed"], made["desiredHealthy"], made["currentHealthy"]) == (allowed, desired, 3)


def test_evicted_pod_is_not_healthy_while_it_leaves() -> None:
    """A granted eviction counts at once, before the pod is gone."""
    budget = {"metadata": {"name": "b"}, "spec": {"minAvailable": 2}, "status": {"disruptedPods": {"a": NOW}}}
    made = disruption.status(budget, [backend("a"), backend("bb"), backend("ccc")], 3, NOW)
    assert (made["disruptionsAllowed"], made["disruptedPods"]) == (0, {"a": NOW})


def test_address_pool_gives_what_is_free_or_wished() -> None:
    """The first free one, or the one that was asked for."""
    pool = {"metadata": {"name": "p"}, "spec": {"addresses": ["10.0.0.200-10.0.0.201"]}}
    assert metallb.choose(service(), [pool], {"10.0.0.200"}) == ("10.0.0.201", "p", "")
    assert metallb.choose(service(loadBalancerIP="10.0.0.201"), [pool], set())[0] == "10.0.0.201"
    assert metallb.choose(service(), [pool], {"10.0.0.200", "10.0.0.201"})[2].endswith("no available IPs")


def test_usage_stays_below_limits() -> None:
    """A container never uses more than it may."""
    limited = {"name": "c", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "100m", "memory": "10Mi"}}}
    cores, size = metrics.of_container("u", limited, 7)
    assert cores <= 0.1
    assert size < 10 << 20


# --- places --------------------------------------------------------------------------------------------------------


def spot(name: str, zone: str = "", cpu: str = "4") -> Object:
    """A node with room, perhaps in a zone."""
    labels = {"kubernetes.io/hostname": name, **({"topology.kubernetes.io/zone": zone} if zone else {})}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"allocatable": {"cpu": cpu, "pods": "9"}},
    }


def small(name: str, app: str = "a", node: str = "", cpu: str = "1", **spec: Any) -> Object:
    """A small pod, perhaps placed already."""
    metadata = {"name": name, "namespace": "d", "uid": name, "labels": {"app": app}}
    containers = [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]
    return {"metadata": metadata, "spec": {"containers": containers, **({"nodeName": node} if node else {}), **spec}}


APART = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
    {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]}}  # fmt: skip
EVEN = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "a"}}}  # fmt: skip


def test_anti_affinity_keeps_siblings_apart() -> None:
    """One to a node, and the scheduler's words when there are no nodes left."""
    there = [small("p1", node="n1"), small("p2", node="n2")]
    chosen, refusals = scheduler.choose(small("p3", affinity=APART), [spot("n1"), spot("n2")], there, {})
    assert chosen is None
    assert "2 node(s) didn't match pod anti-affinity rules." in scheduler.explain(refusals)


def test_spread_takes_the_emptier_zone() -> None:
    """The zone with fewer pods, although its node is fuller."""
    there = [small("p1", node="n1"), small("big", "other", node="n2", cpu="2")]
    item = small("p2", topologySpreadConstraints=[EVEN])
    assert scheduler.choose(item, [spot("n1", "a"), spot("n2", "b")], there, {})[0] == "n2"


def test_important_pod_takes_the_least_important_away() -> None:
    """Only as many go as must, the least important first."""
    there = [small("low", node="n1", cpu="2", priority=1), small("mid", node="n1", cpu="2", priority=5)]
    item = small("high", cpu="2", priority=100)
    board = Board([spot("n1")], {"n1": there})
    _, refused = scheduler.place(item, board)
    node, going = preemption.victims(item, board, refused)
    assert (node, [pod["metadata"]["name"] for pod in going]) == ("n1", ["low"])


def budget(allowed: int, app: str = "kept") -> Object:
    """A budget that has room for so many disruptions of the app's pods."""
    metadata, selector = {"name": app, "namespace": "d"}, {"matchLabels": {"app": app}}
    return {"metadata": metadata, "spec": {"selector": selector}, "status": {"disruptionsAllowed": allowed}}


def preempted(there: dict[str, list[Object]], budgets: list[Object], cpu: str = "4") -> tuple[str, list[str]]:
    """(node, names of the victims) for an important pod on full nodes."""
    item = small("high", "high", cpu=cpu, priority=100)
    board = Board([spot(name) for name in there], there)
    node, going = preemption.victims(item, board, scheduler.place(item, board)[1], budgets)
    return node, [pod["metadata"]["name"] for pod in going]


def test_a_node_without_broken_budgets_is_preferred() -> None:
    """Although the victims of the other node are less important."""
    there = {"n1": [small("a", "kept", "n1", "4", priority=1)], "n2": [small("b", "free", "n2", "4", priority=50)]}
    assert preempted(there, [budget(0)]) == ("n2", ["b"])


def test_a_budget_with_room_protects_nobody() -> None:
    """It is no violation as long as disruptions are allowed, so the priorities decide."""
    there = {"n1": [small("a", "kept", "n1", "4", priority=1)], "n2": [small("b", "free", "n2", "4", priority=50)]}
    assert preempted(there, [budget(1)]) == ("n1", ["a"])


def test_of_two_pods_the_unprotected_one_goes() -> None:
    """On one node the pods whose budget is spent are spared first, even before more important ones."""
    there = {"n1": [small("a", "kept", "n1", "2", priority=1), small("b", "free", "n1", "2", priority=50)]}
    assert preempted(there, [budget(0)], cpu="2") == ("n1", ["b"])


def test_a_budget_is_broken_where_nothing_else_helps() -> None:
    """Preemption honours budgets as best it can and no further."""
    there = {"n1": [small("a", "kept", "n1", "4", priority=1)]}
    assert preempted(there, [budget(0)]) == ("n1", ["a"])


def test_a_budget_counts_each_victim() -> None:
    """With room for one disruption, the second pod of the same app breaks the budget."""
    pods = [small("a", "kept", "n1"), small("b", "kept", "n1"), small("c", "free", "n1")]
    assert preemption.breaking_budgets(pods, [budget(1)]) == [pods[1]]


def test_bound_volume_draws_its_pod_to_its_zone() -> None:
    """A disk of one zone refuses nodes of another, in the scheduler's words."""
    terms = [{"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}]}]
    objects: dict[str, Object] = {
        "PersistentVolumeClaim": {"metadata": {"name": "c"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}},
        "PersistentVolume": {
            "metadata": {"name": "v"},
            "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
        },
    }
    item = small("p", volumes=[{"name": "x", "persistentVolumeClaim": {"claimName": "c"}}])
    board = Board([spot("n1", "a"), spot("n2", "b")], {}, lambda kind, *_: objects.get(kind))
    chosen, refused = scheduler.place(item, board)
    assert chosen == "n2"
    assert refused[0][1].reasons == ("node(s) didn't match PersistentVolume's node affinity",)


def test_volume_that_is_attached_elsewhere_is_waited_for() -> None:
    """The attacher's words while another node has the disk."""
    objects: dict[str, Object] = {
        "PersistentVolumeClaim": {"metadata": {"name": "c"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}},
        "PersistentVolume": {"metadata": {"name": "v"}, "spec": {"csi": {"driver": "d", "volumeHandle": "h"}}},
    }
    item = {**small("p", node="n2", volumes=[{"name": "x", "persistentVolumeClaim": {"claimName": "c"}}])}
    other = {"spec": {"nodeName": "n1"}, "status": {"attached": True}}
    (want,) = volumes.lacking(item, lambda kind, *_: objects.get(kind), lambda _: [other])
    assert want.reason == "FailedAttachVolume"
    assert want.words.startswith('Multi-Attach error for volume "v"')
    here = {"spec": {"nodeName": "n2"}, "status": {"attached": True}}
    assert volumes.lacking(item, lambda kind, *_: objects.get(kind), lambda _: [here]) == []


def test_pressed_node_says_so() -> None:
    """The condition of the resource that runs short turns True, with the kubelet's reason."""
    rows = {row["type"]: row for row in heartbeats.conditions(held(), NOW, "memory")}
    assert rows["MemoryPressure"]["reason"] == "KubeletHasInsufficientMemory"
    assert rows["Ready"]["status"] == "True"


def test_ailing_node_is_not_healed_by_a_heartbeat() -> None:
    """What a scenario made wrong stays wrong; only the time of the report moves on."""
    ill = {"status": {"conditions": [{"type": "DiskPressure", "status": "True", "reason": "KubeletHasDiskPressure"}]}}
    assert heartbeats.is_ailing(ill)
    rows = {row["type"]: row for row in heartbeats.conditions(ill, NOW, "", ailing=True)}
    assert rows["DiskPressure"] == {"type": "DiskPressure", "status": "True", "lastHeartbeatTime": NOW}


# --- stories over HTTP ---------------------------------------------------------------------------------------------


def test_missing_secret_holds_the_pod_until_it_is_there(section: Object) -> None:
    """FailedMount in the kubelet's words; the pod starts when the Secret comes."""

    async def story() -> None:
        async with living(section, scale=200) as (client, _):
            given = pod("p", volumes=[{"name": "v", "secret": {"secretName": "late"}}])
            await client.create(PODS, given)
            async with asyncio.timeout(8):
                while "FailedMount" not in (told := await reasons(client)):
                    await asyncio.sleep(0.02)
            assert told["FailedMount"] == 'MountVolume.SetUp failed for volume "v" : secret "late" not found'
            await client.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": "late"}})
            await until(client, f"{PODS}/p", phase("Running"))

    asyncio.run(story())


def test_readiness_and_liveness_follow_the_probes(section: Object) -> None:
    """A pod is ready when its file is there, and restarted when its second probe begins to fail."""

    async def story() -> None:
        async with living(section, scale=200) as (client, handles):
            ready = {"exec": {"command": ["test", "-f", "/tmp/ready"]}, "periodSeconds": 2}
            alive = {"exec": {"command": ["sh", "-c", "[ ! -f /tmp/dead ]"]}, "periodSeconds": 2, "failureThreshold": 2}
            await client.create(
                PODS, pod("p", "sleep infinity", container={"readinessProbe": ready, "livenessProbe": alive})
            )
            await until(client, f"{PODS}/p", phase("Running"))
            assert condition("Ready", "False")(await client.get(f"{PODS}/p"))
            await handles.kubelets.pod_exec(NAMESPACE, "p", ["touch", "/tmp/ready"])
            await until(client, f"{PODS}/p", condition("Ready"))
            await handles.kubelets.pod_exec(NAMESPACE, "p", ["touch", "/tmp/dead"])
            item = await until(
                client, f"{PODS}/p", lambda item: item["status"]["containerStatuses"][0]["restartCount"] > 0
            )
            assert item["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137

    asyncio.run(story())


def test_previous_log_is_kept(section: Object) -> None:
    """After a restart the log of the run before can still be read."""

    async def story() -> None:
        async with living(section, scale=400) as (client, handles):
            await client.create(PODS, pod("p", "echo run $(date +%s); exit 1"))
            await until(client, f"{PODS}/p", lambda item: any(
                row["restartCount"] > 0 for row in item["status"].get("containerStatuses") or ()))  # fmt: skip
            log = handles.kubelets.pod_log(NAMESPACE, "p", {"container": "c", "previous": "true"})
            assert log is not None
            assert log.startswith("run ")

    asyncio.run(story())


def test_init_containers_and_sidecars_come_first(section: Object) -> None:
    """Init containers run in order, a sidecar stays, and the pod succeeds although the sidecar would not end."""

    async def story() -> None:
        async with living(section) as (client, _):
            shared = {"volumeMounts": [{"name": "v", "mountPath": "/v"}], "image": "busybox"}
            inits = [
                {"name": "first", "command": ["sh", "-c", "echo made > /v/x"], **shared},
                {"name": "side", "image": "nginx", "restartPolicy": "Always"},
            ]
            given = pod("p", "cat /v/x", container={"volumeMounts": shared["volumeMounts"]}, restartPolicy="Never",
                        initContainers=inits, volumes=[{"name": "v", "emptyDir": {}}])  # fmt: skip
            await client.create(PODS, given)
            item = await until(client, f"{PODS}/p", phase("Succeeded", "Failed"))
            assert item["status"]["phase"] == "Succeeded"
            rows = {row["name"]: row for row in item["status"]["initContainerStatuses"]}
            assert rows["first"]["state"]["terminated"]["exitCode"] == 0
            assert "restartCount" in rows["side"]

    asyncio.run(story())


def test_dead_machine_is_noticed_its_pods_evicted_and_it_comes_back(section: Object) -> None:
    """NodeReady turns Unknown, taints come, pods without patience go; the machine's return heals the node."""

    async def story() -> None:
        async with living(section) as (client, handles):
            quick = [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 5}]
            place = {"nodeSelector": {"kubernetes.io/hostname": "worker-1"}}
            await client.create(PODS, pod("moves", tolerations=quick, **place))
            await until(client, f"{PODS}/moves", phase("Running"))
            handles.context.machines.set("worker-1", False)
            node = await until(client, "/api/v1/nodes/worker-1", condition("Ready", "Unknown"))
            node = await until(
                client, "/api/v1/nodes/worker-1", lambda item: len(item["spec"].get("taints") or ()) == 2
            )
            assert {taint["key"] for taint in node["spec"]["taints"]} == {"node.kubernetes.io/unreachable"}
            await until(client, f"{PODS}/moves", lambda item: "deletionTimestamp" in item["metadata"])
            handles.context.machines.set("worker-1", True)
            await until(client, "/api/v1/nodes/worker-1", condition("Ready"))
            await until(client, "/api/v1/nodes/worker-1", lambda item: not item["spec"].get("taints"))
            await gone(client, f"{PODS}/moves")

    asyncio.run(story())


def test_a_node_that_wakes_has_all_its_pods_ready_again(section: Object) -> None:
    """However soon after it fell silent, and whoever was just being marked as not ready."""

    async def story() -> None:
        async with living(section) as (client, handles):
            before = {pod["metadata"]["name"] for pod in handles.context.pods.items.values()
                      if pod["spec"].get("nodeName") == "worker-1"}  # fmt: skip
            handles.context.machines.set("worker-1", False)
            await until(client, "/api/v1/nodes/worker-1", condition("Ready", "Unknown"))
            handles.context.machines.set("worker-1", True)
            await until(client, "/api/v1/nodes/worker-1", condition("Ready"))
            path = "/api/v1/pods"
            await until(client, path, lambda answer: len(before) > 3 and not unready(answer, "worker-1"), 20)

    asyncio.run(story())


def test_what_happens_while_a_node_wakes_is_not_forgotten(section: Object) -> None:
    """A pod that is deleted after the kubelet's look at it, and before that look was over, ends all the same."""

    async def story() -> None:
        async with living(section) as (client, handles):
            await client.create(PODS, pod("p", "sleep infinity"))
            made = await until(client, f"{PODS}/p", condition("Ready"))
            looked = asyncio.Event()

            async def wake() -> None:
                await looked.wait()

            handles.kubelets._start(f"{made['spec']['nodeName']}/woken", wake())
            await client.delete(f"{PODS}/p")
            held = handles.context.pods
            assert await held.until(lambda: "deletionTimestamp" in held.items[(NAMESPACE, "p")]["metadata"])
            looked.set()
            await gone(client, f"{PODS}/p")

    asyncio.run(story())


def test_pod_whose_binding_is_refused_is_bound_later(section: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server refuses once; the scheduler tries again though nothing else changes."""

    async def story() -> None:
        async with living(section) as (client, handles):
            create, refusals = handles.context.client.create, []

            async def refused(path: str, body: Object) -> Object:
                if path.endswith("/p/binding") and not refusals:
                    refusals.append(path)
                    raise Refused(500, "InternalError", "etcdserver: request timed out")
                return await create(path, body)

            monkeypatch.setattr(handles.context.client, "create", refused)
            await client.create(PODS, pod("p", "sleep infinity"))
            await until(client, f"{PODS}/p", condition("Ready"))
            assert refusals

    asyncio.run(story())


def unready(answer: Object, node: str) -> list[str]:
    """The pods of a node that run and are not ready."""
    rows = [pod for pod in answer["items"] if pod["spec"].get("nodeName") == node]
    return [pod["metadata"]["name"] for pod in rows
            if pod["status"].get("phase") != "Succeeded" and not condition("Ready")(pod)]  # fmt: skip


def test_a_kubelet_insists_on_the_readiness_of_its_pod(section: Object) -> None:
    """Somebody else writes that it is not ready; its kubelet knows better."""

    async def story() -> None:
        async with living(section) as (client, _):
            await client.create(PODS, pod("p", "sleep infinity"))
            await until(client, f"{PODS}/p", condition("Ready"))
            row = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-24T10:00:00Z"}
            body = {"status": {"conditions": [row]}}
            strategic = "application/strategic-merge-patch+json"
            await client.patch(f"{PODS}/p/status", body, content_type=strategic)
            await until(client, f"{PODS}/p", condition("Ready"))

    asyncio.run(story())


def test_deleted_node_takes_its_pods_along(section: Object) -> None:
    """Nobody else could confirm their end."""

    async def story() -> None:
        async with living(section) as (client, _):
            await client.create(PODS, pod("p", nodeName="worker-2"))
            await until(client, f"{PODS}/p", phase("Running"))
            await client.delete("/api/v1/nodes/worker-2")
            await gone(client, f"{PODS}/p")

    asyncio.run(story())


def test_new_node_gets_a_kubelet(section: Object) -> None:
    """A Node that appears at run time runs pods and renews its own lease."""

    async def story() -> None:
        async with living(section) as (client, _):
            conditions = [{"type": "Ready", "status": "True"}]
            addresses = [{"type": "InternalIP", "address": "10.0.0.77"}]
            status = {"conditions": conditions, "addresses": addresses, "allocatable": {"cpu": "4", "pods": "110"}}
            await client.create("/api/v1/nodes", {"metadata": {"name": "new"}, "spec": {}})
            await client.patch("/api/v1/nodes/new/status", {"status": status})
            await client.create(PODS, pod("p", nodeName="new", hostNetwork=True))
            item = await until(client, f"{PODS}/p", phase("Running"))
            assert item["status"]["podIP"] == "10.0.0.77"
            lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/new"
            await until(client, lease, lambda item: item["spec"]["holderIdentity"] == "new")

    asyncio.run(story())


def test_service_follows_its_pods(section: Object) -> None:
    """A Service gets slices and Endpoints, and a LoadBalancer one an address of MetalLB's pool."""

    async def story() -> None:
        async with living(section) as (client, _):
            services = f"/api/v1/namespaces/{NAMESPACE}/services"
            ports = [{"port": 80, "targetPort": 8080}]
            spec = {"selector": {"app": "web"}, "ports": ports, "type": "LoadBalancer"}
            await client.create(services, {"metadata": {"name": "web"}, "spec": spec})
            await client.create(PODS, pod("web"))
            item = await until(client, f"/api/v1/namespaces/{NAMESPACE}/endpoints/web", lambda item: any(
                subset.get("addresses") for subset in item.get("subsets") or ()))  # fmt: skip
            address = (await client.get(f"{PODS}/web"))["status"]["podIP"]
            assert item["subsets"][0]["addresses"][0]["ip"] == address
            found = await until(client, f"{services}/web", lambda item: bool(item["status"]["loadBalancer"]))
            assert found["status"]["loadBalancer"]["ingress"][0]["ip"] == "10.0.0.200"

    asyncio.run(story())


def test_budget_lets_one_go_and_refuses_the_next(section: Object) -> None:
    """An eviction beyond the budget is refused with 429 until the budget has room again."""

    async def story() -> None:
        async with living(section) as (client, _):
            budgets = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
            selector = {"matchLabels": {"app": "a"}}
            for name in ("a1", "a2"):
                item = pod(name)
                item["metadata"]["labels"] = {"app": "a"}
                await client.create(PODS, item)
            await client.create(budgets, {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": selector}})
            await until(client, f"{budgets}/b", lambda item: item.get("status", {}).get("disruptionsAllowed") == 1)
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction"}
            await client.create(f"{PODS}/a1/eviction", {**eviction, "metadata": {"name": "a1"}})
            await gone(client, f"{PODS}/a1")
            await until(client, f"{budgets}/b", lambda item: item["status"]["disruptionsAllowed"] == 0)
            with pytest.raises(Exception, match="429"):
                await client.create(f"{PODS}/a2/eviction", {**eviction, "metadata": {"name": "a2"}})

    asyncio.run(story())


def test_waiting_claim_names_the_node_and_then_binds(section: Object) -> None:
    """WaitForFirstConsumer: the scheduler names the node, waits for the volume, and the content outlives the pod."""

    async def story() -> None:
        async with living(section) as (client, handles):
            claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
            wish = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            await client.create(claims, {"metadata": {"name": "c"}, "spec": {**wish, "storageClassName": "local"}})
            mounts = {"volumeMounts": [{"name": "v", "mountPath": "/data"}]}
            uses = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}
            await client.create(PODS, pod("one", "sleep infinity", container=mounts, **uses))
            key = "volume.kubernetes.io/selected-node"
            claim = await until(client, f"{claims}/c", lambda item: key in item["metadata"].get("annotations", {}))
            item = await until(client, f"{PODS}/one", phase("Running"))
            assert item["spec"]["nodeName"] == claim["metadata"]["annotations"][key]
            await handles.kubelets.pod_exec(NAMESPACE, "one", ["sh", "-c", "echo kept > /data/x"])
            await client.delete(f"{PODS}/one?gracePeriodSeconds=1")
            await gone(client, f"{PODS}/one")
            await client.create(PODS, pod("two", "sleep infinity", container=mounts, **uses))
            await until(client, f"{PODS}/two", phase("Running"))
            assert (await handles.kubelets.pod_exec(NAMESPACE, "two", ["cat", "/data/x"]))[0] == "kept\n"

    asyncio.run(story())


def test_pressed_node_evicts(section: Object) -> None:
    """A node short of memory says so and pods leave it with the kubelet's words."""

    async def story() -> None:
        async with living(section, scale=400) as (client, handles):
            await client.create(PODS, pod("p", nodeName="worker-1"))
            await until(client, f"{PODS}/p", phase("Running"))
            handles.context.machines.press("worker-1", "memory")
            await until(client, "/api/v1/nodes/worker-1", condition("MemoryPressure"))
            async with asyncio.timeout(8):
                while True:
                    pods = (await client.list("/api/v1/pods"))["items"]
                    evicted = [item for item in pods if item["status"].get("reason") == "Evicted"]
                    if evicted:
                        break
                    await asyncio.sleep(0.05)
            assert evicted[0]["status"]["message"].startswith("The node was low on resource: memory.")

    asyncio.run(story())


def test_healthy_lab_stands_still(section: Object) -> None:
    """After its start nothing is written but heartbeats: the seeded objects are what controllers would make."""

    async def story() -> None:
        async with living(section) as (client, _):
            paths = [
                "/api/v1/pods",
                "/api/v1/endpoints",
                "/apis/discovery.k8s.io/v1/endpointslices",
                "/api/v1/services",
            ]
            before = [versions(await client.list(path)) for path in paths]
            await asyncio.sleep(0.3)
            assert [versions(await client.list(path)) for path in paths] == before

    asyncio.run(story())


def versions(answer: Object) -> dict[str, str]:
    """Each object's version, by uid."""
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in answer["items"]}


# --- witnesses -----------------------------------------------------------------------------------------------------


async def kubectl(folder: Path, client: KubeClient, *words: str, seconds: float = 30.0) -> tuple[int, str]:
    """(exit code, output) of the real kubectl against the living cluster."""
    given = [
        "--server",
        client.base_url,
        "--token",
        TOKEN,
        "--certificate-authority",
        str(folder / "ca.pem"),
        "--cache-dir",
        str(folder / "cache"),
        *words,
    ]
    process = await asyncio.create_subprocess_exec(
        KUBECTL, *given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={"HOME": "/nonexistent"}
    )
    async with asyncio.timeout(seconds):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed")
def test_kubectl_rolls_out_waits_drains_and_reads(section: Object, tmp_path: Path) -> None:
    """`rollout status`, `wait`, `drain` against a budget, `logs` and `exec` end as on a real cluster."""

    async def story() -> None:
        async with living(section, tls=tmp_path) as (client, _):
            template = {"metadata": {"labels": {"app": "w"}}, "spec": pod("x", "echo up; sleep infinity")["spec"]}
            spec = {"replicas": 3, "selector": {"matchLabels": {"app": "w"}}, "template": template}
            await client.create(
                f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", {"metadata": {"name": "w"}, "spec": spec}
            )
            code, said = await kubectl(
                tmp_path, client, "-n", NAMESPACE, "rollout", "status", "deployment/w", "--timeout=20s"
            )
            assert (code, said.splitlines()[-1]) == (0, 'deployment "w" successfully rolled out')
            code, said = await kubectl(
                tmp_path, client, "-n", NAMESPACE, "wait", "pod", "-l", "app=w", "--for=condition=Ready"
            )
            assert (code, said.count("condition met")) == (0, 3)
            assert (await kubectl(tmp_path, client, "-n", NAMESPACE, "logs", "deployment/w"))[1].endswith("up\n")
            budgets = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
            budget = {"minAvailable": 2, "selector": {"matchLabels": {"app": "w"}}}
            await client.create(budgets, {"metadata": {"name": "w"}, "spec": budget})
            await until(client, f"{budgets}/w", lambda item: item.get("status", {}).get("disruptionsAllowed") == 1)
            rows = (await client.list(PODS))["items"]
            node = rows[0]["spec"]["nodeName"]
            code, said = await kubectl(
                tmp_path, client, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
                "--pod-selector=app=w", "--timeout=20s",
            )  # fmt: skip
            assert code == 0, said
            left = [item for item in (await client.list(PODS))["items"] if item["spec"].get("nodeName") == node]
            assert left == []

    asyncio.run(story())
