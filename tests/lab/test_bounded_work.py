"""How much the controllers work: a change wakes those it concerns, crowds call once, who has arrived is left alone."""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes import watch
from runbook_lib.lab.kubernetes.controllers import alarms, capmox, ipam, kubeadm_bootstrap
from runbook_lib.lab.kubernetes.controllers.capi import machines
from runbook_lib.lab.kubernetes.controllers.capi.manager import at_turns
from runbook_lib.lab.kubernetes.controllers.client import Cache, Key, KubeClient
from runbook_lib.lab.kubernetes.controllers.context import Context
from runbook_lib.lab.kubernetes.controllers.network import World
from runbook_lib.lab.kubernetes.controllers.reconcile import reconcile
from runbook_lib.lab.kubernetes.controllers.remote import RemoteClient
from runbook_lib.lab.tenants import Tenants

sys.path.insert(0, str(Path(__file__).parent))
from test_controllers_capi import living  # lies beside this file
from two_worlds import ready, worlds

Object = dict[str, Any]
HIDDEN = "http://127.0.0.1:9"


def cluster(**status: Any) -> Object:
    """A Cluster with that status."""
    metadata = {"namespace": "d", "name": "c", "uid": "u"}
    return {"apiVersion": "cluster.x-k8s.io/v1beta1", "kind": "Cluster", "metadata": metadata, "spec": {},
            "status": status}  # fmt: skip


def row(kind: str, status: str, message: str = "") -> Object:
    """A condition."""
    return {"type": kind, "status": status, "message": message}


WORKERS = [row("WorkersAvailable", "False", "* MachineDeployment md: 1 of 50")]


@pytest.mark.parametrize(
    ("after", "calls"),
    [
        (cluster(), 0),
        (cluster(v1beta2={"conditions": WORKERS}), 0),
        (cluster(infrastructureReady=True), 1),
        (cluster(conditions=[row("ControlPlaneInitialized", "True")]), 1),
        (cluster() | {"spec": {"paused": True}}, 1),
        (cluster() | {"metadata": {**cluster()["metadata"], "deletionTimestamp": "2026-08-01T08:00:00Z"}}, 1),
    ],
    ids=["nothing", "summary", "infrastructure", "control plane", "paused", "deletion"],
)
def test_members_are_called_when_their_cluster_takes_a_turn(after: Object, calls: int) -> None:
    """What a Cluster sums up of its members calls none of them; what they wait for calls all."""
    keys = at_turns(lambda _: [("d", "m")])
    assert list(keys(cluster())) == [("d", "m")]
    assert len(list(keys(after))) == calls


# --- queues and alarms --------------------------------------------------------------------------------


def unserved(clock: Clock) -> Context:
    """A context of an API server that nobody asks."""
    return Context(KubeClient(HIDDEN), clock, World())


def test_a_crowd_of_members_calls_its_owner_once() -> None:
    """Fifty members that change together cost their owner one pass beside the first."""

    async def story() -> int:
        context = unserved(Clock(math.inf))
        owners, members = Cache(context.client, ""), Cache(context.client, "")
        owners.items[("d", "o")] = {"metadata": {"namespace": "d", "name": "o"}}
        passes: list[Key] = []
        worked = asyncio.Event()

        async def work(key: Key, _item: Object | None) -> None:
            passes.append(key)
            worked.set()

        for cache in (owners, members):
            cache.synced.set()
        task = asyncio.create_task(reconcile(context, owners, work, crowds=[(members, lambda _: [("d", "o")])]))
        await worked.wait()
        worked.clear()
        for number in range(50):
            members.handlers[0]("MODIFIED", {"metadata": {"namespace": "d", "name": f"m{number}"}})
            await asyncio.sleep(0)
        await worked.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await context.client.close()
        return len(passes)

    assert asyncio.run(story()) == 2


def test_many_that_wait_share_what_one_would_have() -> None:
    """The pauses grow with the looks in vain and with the number of those that wait."""
    assert alarms.pause_of(1, 1) < alarms.pause_of(5, 1) < alarms.pause_of(99, 1) == alarms.SLOWEST
    assert alarms.pause_of(1, 1) < alarms.pause_of(1, 50) < alarms.pause_of(1, 100)


def test_what_has_arrived_is_left_alone_on_the_fastest_clock() -> None:
    """An object that moves is looked at, and looked at again, before one that rests."""

    async def story() -> list[str]:
        context = unserved(Clock(math.inf))
        bells, rung = alarms.Alarms(context), list[str]()
        again = asyncio.Event()

        def heard(_kind: str, item: Object) -> None:
            rung.append(item["metadata"]["name"])
            bells.set(("d", "moves"), 600)
            if len(rung) == 3:
                again.set()

        bells.handlers.append(heard)
        bells.rest(("d", "rests"), 600)
        bells.set(("d", "moves"), 600)
        await again.wait()
        bells.close()
        await context.client.close()
        return rung

    assert asyncio.run(story()) == ["moves"] * 3


# --- managers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
def test_a_node_that_changes_wakes_its_machine_alone(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three Machines only the one of the node is worked on for each of its changes, and sees them."""
    real, worked = machines._work, Counter[str]()

    async def noted(manager: Any, item: Object | None) -> float | None:
        worked[item["metadata"]["name"] if item else ""] += 1
        return await real(manager, item)

    async def story() -> None:
        async with living(version) as site:
            await site.cluster(3)
            name = (await site.running(3))[1]["metadata"]["name"]
            monkeypatch.setattr(machines, "_work", noted)
            for number in range(20):
                body = {"status": {"nodeInfo": {"kernelVersion": str(number)}}}
                await site.client.patch(f"/api/v1/nodes/{name}/status", body)
                wanted = str(number)
                await site.until(
                    site.path("machines", name),
                    lambda item, wanted=wanted: item["status"].get("nodeInfo", {}).get("kernelVersion") == wanted,
                )
            # the others may still be at what their own coming left to do
            assert worked.pop(name) >= 20
            assert max(worked.values(), default=0) < 10

    asyncio.run(story())


def test_a_tenant_is_watched_and_listed_once() -> None:
    """A manager hears of a tenant's new nodes over the tenant's own TLS, without listing them again."""

    async def story() -> tuple[int, set[str]]:
        tenants = Tenants(Clock(math.inf))
        endpoint = await tenants.start("d", "c", "v1.33.0")
        client = RemoteClient(endpoint.admin_kubeconfig)
        cache, lists = Cache(client, "/api/v1/nodes"), Counter[str]()
        listed = client.list

        async def counted(path: str, **query: str) -> Object:
            lists[path] += 1
            return await listed(path, **query)

        client.list = counted  # type: ignore[method-assign]
        task = asyncio.create_task(cache.run())
        try:
            await cache.synced.wait()
            for name in ("n1", "n2", "n3"):
                made = await client.create("/api/v1/nodes", {"metadata": {"name": name}})
                await cache.caught_up(made)
            return lists["/api/v1/nodes"], {key[1] for key in cache.items}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.close()
            await tenants.close()

    assert asyncio.run(story()) == (1, {"n1", "n2", "n3"})


def test_a_token_is_not_read_whenever_its_machine_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given a moment ago: five changes of the Machine are five passes and no question to the tenant."""
    passes, asked = Counter[str](), list[str]()
    refresh, find = kubeadm_bootstrap._refresh, RemoteClient.find

    async def counted(core: Any, item: Object, *rest: Any) -> float | None:
        passes[item["metadata"]["name"]] += 1
        return await refresh(core, item, *rest)

    async def noted(self: RemoteClient, path: str) -> Object | None:
        asked.append(path)
        return await find(self, path)

    async def story() -> None:
        async with living("v1beta1", kamaji=True) as site:
            site.nodes_join = False
            await site.managed_cluster("v1alpha1")
            machine = await site.first_machine()
            name, path = machine["metadata"]["name"], site.path("machines", machine["metadata"]["name"])
            monkeypatch.setattr(RemoteClient, "find", noted)
            monkeypatch.setattr(kubeadm_bootstrap, "_refresh", counted)
            for number in range(5):
                before = passes[name]
                await site.client.patch(path, {"metadata": {"annotations": {"n": str(number)}}})
                async with asyncio.timeout(5):
                    while passes[name] == before:
                        await asyncio.sleep(0.01)

    asyncio.run(story())
    assert sum(passes.values()) >= 5
    assert [path for path in asked if "bootstrap-token" in path] == []


@pytest.mark.parametrize(("old", "tags"), [(True, ("v0.7.7", "v1.0.3")), (False, ("v0.9.0", "v1.1.0"))])
def test_a_machine_is_made_in_few_passes(old: bool, tags: tuple[str, str]) -> None:
    """On a clock that does not wait, each pass finds its VM once, and no more than two dozen of them make a VM."""

    async def story() -> int:
        programs = ((capmox.PROGRAMS[0], tags[0]), (ipam.PROGRAMS[0], tags[1]))
        async with worlds(*programs, old=old, scale=math.inf) as made:
            await made.cluster_of_machines()
            await made.infrastructure_ready()
            await made.machine("demo-1")
            await made.until(made.own("proxmoxmachines", "demo-1"), ready)
            return sum(text.startswith("GET /nodes/pve1/qemu/100/status/current") for text in made.requests)

    assert 5 <= asyncio.run(story()) <= 24


# --- streams ------------------------------------------------------------------------------------------


def test_a_watch_that_is_cancelled_while_it_wakes_ends() -> None:
    """News and the cancellation come in one moment; the cancellation is not lost."""

    async def story() -> bool:
        store = SimpleNamespace(latest=lambda _: 0)
        watcher: Any = SimpleNamespace(
            cluster=SimpleNamespace(store=store), queue=deque[int](), bookmarks=False, wake=asyncio.Event(),
            lost=False, replaced=False, event=lambda change: b"x",
        )  # fmt: skip

        async def read() -> None:
            async for _ in watch._live(watcher, 0, asyncio.get_running_loop().time() + 60):
                pass

        task = asyncio.create_task(read())
        while not watcher.wake._waiters:
            await asyncio.sleep(0)
        watcher.wake.set()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1)
        task.cancel()
        return bool(done) and task.cancelled()

    assert asyncio.run(story())


def test_a_secret_of_a_control_plane_is_made_again() -> None:
    """Kamaji notices that it went, although nothing else of the control plane changed."""

    async def story() -> None:
        async with living("v1beta1", kamaji=True) as site:
            await site.managed_cluster("v1alpha1")
            await site.first_machine()
            path = site.secret("c-admin-kubeconfig")
            before = await site.client.get(path)
            await site.client.delete(path)
            await site.until(path, lambda item: item["metadata"]["uid"] != before["metadata"]["uid"])

    asyncio.run(story())
