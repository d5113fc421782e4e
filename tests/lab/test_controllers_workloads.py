"""Workload controllers: what they decide, from object pairs, and what comes of it against the lab's API server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aiohttp import web

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import (
    cronjobs,
    daemonsets,
    deployments,
    jobs,
    start_all,
    statefulsets,
)
from runbook_lib.lab.kubernetes.controllers.client import KubeClient, Refused
from runbook_lib.lab.kubernetes.controllers.pods_of import matches, ranked_for_deletion, share_of, template_hash
from runbook_lib.lab.kubernetes.server import create_app

Object = dict[str, Any]
NAMESPACE, TOKEN = "workloads", "a-token-of-the-test"
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
BATCH = f"/apis/batch/v1/namespaces/{NAMESPACE}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def deployment(replicas: int = 4, **spec: Any) -> Object:
    """A Deployment of that size."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": NAMESPACE, "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {}}, **spec},
    }


def replica_set(name: str, size: int, available: int, *, image: str = "", **notes: str) -> Object:
    """A ReplicaSet of that size."""
    return {
        "metadata": {"name": name, "annotations": notes, "creationTimestamp": f"2026-01-01T00:00:0{len(name)}Z"},
        "spec": {"replicas": size, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"image": image}}},
        "status": {"replicas": size, "availableReplicas": available},
    }


@pytest.mark.parametrize(
    ("value", "total", "up", "share"),
    [("25%", 10, True, 3), ("25%", 10, False, 2), (2, 10, True, 2), ("0%", 9, True, 0)],
)
def test_percentages_round_as_asked(value: int | str, total: int, up: bool, share: int) -> None:
    """A surge rounds up, what may be unavailable rounds down."""
    assert share_of(value, total, up=up) == share


@pytest.mark.parametrize(
    ("rolling", "surge", "lacking"),
    [({}, 1, 1), ({"maxSurge": 0, "maxUnavailable": "10%"}, 0, 1), ({"maxSurge": 2, "maxUnavailable": 0}, 2, 0)],
)
def test_a_rollout_can_always_take_a_step(rolling: Object, surge: int, lacking: int) -> None:
    """Where both bounds round to nothing, one pod may be unavailable."""
    item = deployment(4, strategy={"type": "RollingUpdate", "rollingUpdate": rolling})
    assert (deployments.surge_of(item), deployments.unavailable_of(item)) == (surge, lacking)


def test_a_rollout_makes_room_before_it_grows() -> None:
    """The new set gets the surge, the old one shrinks by what may be unavailable."""
    item = deployment(4)
    old, new = replica_set("old", 4, 4, image="1"), replica_set("newer", 0, 0)
    assert deployments.size_of_new(item, [old, new], new) == 1
    new["spec"]["replicas"] = 1
    assert deployments.shrink_old(item, [old, new], new) == {"old": 3}


def test_scaling_amid_a_rollout_is_proportional() -> None:
    """Ten to fifteen with 8 old and 5 new: each set grows by its share, and the surge is kept."""
    item = deployment(15, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}})
    noted = {deployments.MOST: "13"}
    sets = [replica_set("old", 8, 8, image="1", **noted), replica_set("newer", 5, 0, **noted)]
    assert deployments.proportional(item, sets) == {"old": 11, "newer": 7}


def test_progress_that_stands_still_exceeds_its_deadline() -> None:
    """Progressing turns False with the real reason and message; what has progressed does not."""
    item = deployment(2, progressDeadlineSeconds=600)
    new = replica_set("web-1", 2, 0)
    before = [deployments.condition("Progressing", "True", "ReplicaSetUpdated", "", stamp="2026-01-01T00:00:00Z")]
    item["status"] = {"replicas": 2, "updatedReplicas": 2, "conditions": before}
    status = deployments.status_of(item, [new], new, stamp="2026-01-01T00:11:00Z")
    late = deployments.progress_of(item, status, new, late=True, stamp="2026-01-01T00:11:00Z")["conditions"]
    assert [(row["type"], row["status"], row["reason"]) for row in late] == [
        ("Available", "False", "MinimumReplicasUnavailable"),
        ("Progressing", "False", "ProgressDeadlineExceeded"),
    ]
    assert late[1]["message"] == 'ReplicaSet "web-1" has timed out progressing.'


def pod(name: str, *, node: str = "a", ready: bool = True, phase: str = "Running", **metadata: Any) -> Object:
    """A pod as its kubelet reports it."""
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}]}
    return {"metadata": {"name": name, "uid": name, **metadata}, "spec": {"nodeName": node}, "status": status}


def test_pods_are_deleted_in_the_real_order() -> None:
    """Unassigned, pending, not ready, cheap to delete, and crowded pods go first, in this order."""
    cheap: Any = {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}
    pods = [pod("fine", node="b"), pod("crowded"), pod("crowd"), pod("cheap", node="c", **cheap),
            pod("unready", ready=False), pod("pending", phase="Pending", ready=False),
            pod("unbound", node="", phase="Pending", ready=False)]  # fmt: skip
    order = [item["metadata"]["name"] for item in ranked_for_deletion(pods, pods)]
    assert order == ["unbound", "pending", "unready", "cheap", "crowd", "crowded", "fine"]


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, True),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}, False),
    ],
)
def test_selectors_fit_as_the_api_says(selector: Object, fits: bool) -> None:
    """Every clause has to fit."""
    assert matches(selector, {"app": "web"}) is fits


def test_template_hash_uses_the_real_alphabet() -> None:
    """Ten letters of which none is a vowel, other ones after a collision."""
    letters = template_hash({"spec": {}})
    assert set(letters) <= set("bcdf456789")
    assert letters != template_hash({"spec": {}}, 1)


def stateful_set(replicas: int, **spec: Any) -> Object:
    """A StatefulSet of that size."""
    template = {"metadata": {"labels": {"app": "db"}}, "spec": {}}
    return {
        "metadata": {"name": "db", "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "template": template, **spec},
    }


def member(number: int, revision: str = "db-1", *, ready: bool = True) -> Object:
    """A pod of the set."""
    return pod(f"db-{number}", ready=ready, labels={"controller-revision-hash": revision})


@pytest.mark.parametrize(
    ("item", "pods", "make", "delete"),
    [
        (stateful_set(3), [], (0,), ()),
        (stateful_set(3), [member(0, ready=False)], (), ()),
        (stateful_set(3), [member(0)], (1,), ()),
        (stateful_set(3, podManagementPolicy="Parallel"), [member(0, ready=False)], (1, 2), ()),
        (stateful_set(1), [member(0), member(1), member(2)], (), ("db-2",)),
        (stateful_set(2), [member(0, "db-0"), member(1, "db-0")], (), ("db-1",)),
        (stateful_set(2), [member(0, "db-0"), member(1, ready=False)], (), ()),
        (stateful_set(2, updateStrategy={"rollingUpdate": {"partition": 1}}), [member(0, "db-0"), member(1)], (), ()),
        (stateful_set(2, updateStrategy={"type": "OnDelete"}), [member(0, "db-0"), member(1, "db-0")], (), ()),
    ],
)
def test_a_stateful_set_takes_one_step(item: Object, pods: list[Object], make: Any, delete: Any) -> None:
    """Up in order, down and over from the highest number, each waiting for the one before."""
    ready = [row["metadata"]["name"] for row in pods if row["status"]["conditions"][0]["status"] == "True"]
    steps = statefulsets.next_steps(item, pods, "db-1", ready)
    assert (steps.make, tuple(row["metadata"]["name"] for row in steps.delete)) == (make, delete)


def node(name: str, *taints: Object, **labels: str) -> Object:
    """A node."""
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": list(taints)}}


@pytest.mark.parametrize(
    ("taint", "run", "stay"),
    [
        ({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}, True, True),
        ({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}, True, True),
        ({"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}, False, True),
        ({"key": "dedicated", "effect": "NoSchedule"}, False, True),
        ({"key": "dedicated", "effect": "NoExecute"}, False, False),
    ],
)
def test_daemons_tolerate_what_daemons_tolerate(taint: Object, run: bool, stay: bool) -> None:
    """Node trouble does not move a daemon; a foreign NoExecute does."""
    item: Object = {"spec": {"template": {"spec": {}}}}
    assert daemonsets.fits(item, node("a", taint)) == (run, stay)


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("0-2,5", {0, 1, 2, 5}), ("3", {3}), ("1-2,4-5", {1, 2, 4, 5})]
)
def test_completed_indexes_read_and_write(text: str, numbers: set[int]) -> None:
    """Intervals both ways."""
    assert (jobs.indexes_of(text), jobs.text_of(numbers)) == (numbers, text)


def test_failed_pods_are_tried_again_with_growing_pauses() -> None:
    """Ten seconds, doubled, ten minutes at most."""
    assert [jobs.pause_after(count) for count in (0, 1, 2, 3, 9)] == [0, 10, 20, 40, 600]


@pytest.mark.parametrize(
    ("schedule", "zone", "wanted"),
    [
        ("*/5 * * * *", "", "2026-03-28T22:35:00"),
        ("0 3 * * sun", "", "2026-03-29T03:00:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-30T00:30:00"),  # 02:30 on the 29th is skipped by the clocks
        ("@monthly", "", "2026-04-01T00:00:00"),
        ("0 0 13 * fri", "", "2026-04-03T00:00:00"),  # either day suffices
    ],
)
def test_schedules_are_due_when_cron_says(schedule: str, zone: str, wanted: str) -> None:
    """Steps, names, macros, zones and both kinds of days."""
    now = datetime(2026, 3, 28, 22, 31, tzinfo=UTC).timestamp()
    found = cronjobs.parsed(schedule).after(now, ZoneInfo(zone) if zone else None)
    assert found == datetime.fromisoformat(wanted).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("text", ["* * * *", "61 * * * *", "a * * * *", "*/0 * * * *"])
def test_schedules_that_make_no_sense_are_refused(text: str) -> None:
    """Four fields, numbers out of range, words."""
    with pytest.raises(ValueError, match=r"field|range|parse"):
        cronjobs.parsed(text)


# --- against the API server ---------------------------------------------------------------------------------------


@asynccontextmanager
async def living(name: str = "healthy", scale: float = math.inf) -> AsyncIterator[tuple[KubeClient, Cluster, Clock]]:
    """A seeded cluster with every controller at work."""
    section = scenario.load(name).kubernetes
    cluster, clock = Cluster(version=seeds.kubernetes_version(section)), Clock(scale)
    cluster.clock = clock
    cluster.load(seeds.cozystack(section, now=clock.now()))
    cluster.tokens[TOKEN] = User("lab-controllers", ("system:masters",))
    runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    handles = await start_all(url, TOKEN, None, clock, section)
    client = KubeClient(url, TOKEN)
    try:
        await handles.ready()
        await client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        yield client, cluster, clock
    finally:
        await client.close()
        await handles.stop()
        await runner.cleanup()


async def until(client: KubeClient, path: str, wanted: Callable[[Object], Any], seconds: float = 15.0) -> Object:
    """The object once it is as wanted."""
    item: Object = {}
    try:
        async with asyncio.timeout(seconds):
            while True:
                item = await client.get(path)
                if wanted(item):
                    return item
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{path} stays {item.get('status')}") from None


def template(image: str = "nginx:1", **spec: Any) -> Object:
    """A pod template with one container."""
    container = {"name": "c", "image": image, **({"command": spec.pop("command")} if "command" in spec else {})}
    return {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container], **spec}}


def wish(name: str, image: str = "nginx:1", **spec: Any) -> Object:
    """A workload of that name."""
    return {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(image), **spec},
    }


WORKLOADS = ("deployments", "replicasets", "statefulsets", "daemonsets", "controllerrevisions", "jobs")


def versions(cluster: Cluster) -> dict[Any, Any]:
    """The resource version of every workload and pod."""
    buckets = ["/pods", *(f"apps/{name}" for name in WORKLOADS)]
    return {
        (bucket, key): row.obj["metadata"]["resourceVersion"]
        for bucket in buckets
        for key, row in cluster.store.scan(bucket, "")
    }


@pytest.mark.parametrize("name", ["healthy", "cozystack-v0", "capi-v1beta2", "webhook-down", "requests-skew"])
def test_seeded_workloads_are_left_alone(name: str) -> None:
    """What is seeded is settled: no workload, revision or pod changes when the controllers start."""

    async def story() -> None:
        async with living(name, scale=60) as (client, cluster, _):
            before = versions(cluster)
            await client.create(f"{APPS}/deployments", wish("mark", replicas=1))
            await until(client, f"{APPS}/deployments/mark", lambda item: item["status"].get("availableReplicas"))
            after = versions(cluster)
            assert {key: after.get(key) for key in before} == before

    asyncio.run(story())


def test_deployment_rolls_over_and_back() -> None:
    """A new template gets a new ReplicaSet and revision 2; the old template again gets revision 3."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            path = f"{APPS}/deployments/web"
            await client.create(f"{APPS}/deployments", wish("web", replicas=3))
            done = lambda item: deployments.is_complete(item, item["status"])  # noqa: E731
            await until(client, path, done)
            for image, revision in (("nginx:2", "2"), ("nginx:1", "3")):
                await client.patch(path, {"spec": {"template": template(image)}})
                item = await until(client, path, done)
                assert item["metadata"]["annotations"][deployments.REVISION] == revision
            sets = (await client.list(f"{APPS}/replicasets"))["items"]
            assert sorted(row["spec"]["replicas"] for row in sets) == [0, 3]
            assert [row["metadata"]["annotations"].get(deployments.HISTORY) for row in sets].count("1") == 1

    asyncio.run(story())


def test_quota_shows_in_the_deployment() -> None:
    """FailedCreate with the API server's words on the ReplicaSet, ReplicaFailure on both."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
            await client.create(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas", quota)
            await client.create(f"{APPS}/deployments", wish("web", replicas=3))

            def failing(item: Object) -> bool:
                return any(row["type"] == "ReplicaFailure" for row in item["status"].get("conditions") or ())

            item = await until(client, f"{APPS}/deployments/web", failing)
            row = next(row for row in item["status"]["conditions"] if row["type"] == "ReplicaFailure")
            assert row["reason"] == "FailedCreate"
            assert "exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2" in row["message"]

    asyncio.run(story())


def test_replica_set_adopts_and_releases() -> None:
    """An orphan that fits is taken in; a pod whose labels are changed is let go and replaced."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            orphan = {"metadata": {"name": "orphan", "labels": {"app": "web"}}, "spec": template()["spec"]}
            await client.create(PODS, orphan)
            await client.create(f"{APPS}/replicasets", wish("web", replicas=2))
            path = f"{APPS}/replicasets/web"
            await until(client, path, lambda item: item["status"].get("readyReplicas") == 2)
            adopted = await client.get(f"{PODS}/orphan")
            assert adopted["metadata"]["ownerReferences"][0]["name"] == "web"
            await client.patch(f"{PODS}/orphan", {"metadata": {"labels": {"app": "other"}}})
            await until(client, f"{PODS}/orphan", lambda item: not item["metadata"].get("ownerReferences"))
            await until(client, path, lambda item: item["status"].get("readyReplicas") == 2)
            assert len((await client.list(PODS))["items"]) == 3

    asyncio.run(story())


def test_stateful_set_makes_claims_and_rolls_from_the_top() -> None:
    """Pods db-0 and db-1 with a claim each; a new template replaces them and becomes the current revision."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            claims = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            body = wish("db", replicas=2, serviceName="db")
            await client.create(f"{APPS}/statefulsets", body)
            path = f"{APPS}/statefulsets/db"
            first = await until(client, path, lambda item: item["status"].get("readyReplicas") == 2)
            await client.patch(path, {"spec": {"template": template("nginx:2")}})

            def rolled(item: Object) -> bool:
                status = item["status"]
                old = first["status"]["currentRevision"]
                return status["currentRevision"] == status["updateRevision"] != old and status.get("readyReplicas") == 2

            await until(client, path, rolled)
            images = [row["spec"]["containers"][0]["image"] for row in (await client.list(PODS))["items"]]
            assert images == ["nginx:2", "nginx:2"]
            await client.create(
                f"{APPS}/statefulsets",
                wish("kept", volumeClaimTemplates=[{"metadata": {"name": "data"}, "spec": claims}]),
            )
            await until(client, f"{APPS}/statefulsets/kept", lambda item: item["status"]["replicas"])
            made = await client.get(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/data-kept-0")
            assert made["metadata"]["labels"] == {"app": "web"}

    asyncio.run(story())


def test_a_deleted_daemon_comes_back() -> None:
    """A DaemonSet has a pod on each node; one that is deleted is made again on the same node."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            path = f"{APPS}/daemonsets/agent"
            await client.create(f"{APPS}/daemonsets", wish("agent"))
            await until(client, path, lambda item: item["status"].get("numberReady") == 5)
            gone = (await client.list(PODS))["items"][0]
            await client.delete(f"{PODS}/{gone['metadata']['name']}")
            with pytest.raises(Refused, match="404"):
                await until(client, f"{PODS}/{gone['metadata']['name']}", lambda _: False)
            await until(client, path, lambda item: item["status"].get("numberReady") == 5)
            rows = (await client.list(PODS))["items"]
            assert sorted(row["spec"]["nodeName"] for row in rows) == ["cp-1", "cp-2", "cp-3", "worker-1", "worker-2"]

    asyncio.run(story())


def job(name: str, command: list[str], **spec: Any) -> Object:
    """A Job whose pods run the command."""
    return {"metadata": {"name": name}, "spec": {
        "template": template("busybox:1.37", command=command, restartPolicy="Never"), **spec}}  # fmt: skip


def test_indexed_job_completes_and_counts_each_pod_once() -> None:
    """Four indexes, two at a time; no finalizer stays behind."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            wanted = job("sum", ["true"], completions=4, parallelism=2, completionMode="Indexed")
            await client.create(f"{BATCH}/jobs", wanted)
            item = await until(client, f"{BATCH}/jobs/sum", jobs.is_finished)
            assert (item["status"]["succeeded"], item["status"]["completedIndexes"]) == (4, "0-3")
            assert [(row["type"], row["reason"]) for row in item["status"]["conditions"]] == [
                ("SuccessCriteriaMet", "CompletionsReached"),
                ("Complete", "CompletionsReached"),
            ]
            rows = (await client.list(PODS))["items"]
            assert [row["metadata"].get("finalizers") for row in rows] == [None] * 4

    asyncio.run(story())


def test_failing_job_gives_up_at_its_limit() -> None:
    """Two failures with backoffLimit 1: FailureTarget, then Failed, both with BackoffLimitExceeded."""

    async def story() -> None:
        async with living() as (client, _, _clock):
            await client.create(f"{BATCH}/jobs", job("bad", ["false"], backoffLimit=1))
            item = await until(client, f"{BATCH}/jobs/bad", jobs.is_finished)
            assert item["status"]["failed"] == 2
            assert [(row["type"], row["reason"]) for row in item["status"]["conditions"]] == [
                ("FailureTarget", "BackoffLimitExceeded"),
                ("Failed", "BackoffLimitExceeded"),
            ]

    asyncio.run(story())


def test_advancing_the_clock_makes_a_cron_job_due() -> None:
    """Nothing runs until an hour is skipped by hand; then a Job of that hour does, and its end is seen."""

    async def story() -> None:
        async with living(scale=60) as (client, _, clock):
            spec = {"schedule": "@hourly", "jobTemplate": {"spec": job("", ["true"])["spec"]}}
            await client.create(f"{BATCH}/cronjobs", {"metadata": {"name": "tick"}, "spec": spec})
            assert (await client.list(f"{BATCH}/jobs"))["items"] == []
            clock.advance(3600)
            item = await until(client, f"{BATCH}/cronjobs/tick", lambda item: item["status"].get("lastSuccessfulTime"))
            made = (await client.list(f"{BATCH}/jobs"))["items"]
            at = datetime.fromisoformat(item["status"]["lastScheduleTime"])
            assert [row["metadata"]["name"] for row in made] == [f"tick-{int(at.timestamp()) // 60}"]
            assert at.minute == 0

    asyncio.run(story())
