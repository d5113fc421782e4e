"""A cluster as one file, and the faults only a Kubernetes API can have."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, UnixConnector, web

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.faults import Fault, Faults
from runbook_lib.lab.kubernetes import state, strict
from runbook_lib.lab.kubernetes.cluster import ADMIN, Cluster, Options
from runbook_lib.lab.kubernetes.server import create_app

Json = dict[str, Any]
MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def cluster() -> Cluster:
    """A cluster with a custom kind, one object of it, and a ConfigMap."""
    found = Cluster()
    found.tokens["admin"] = ADMIN
    found.load(
        [
            strict.definition("ex.io", "Thing", "things", ["v1"]),
            {"apiVersion": "ex.io/v1", "kind": "Thing", "metadata": {"name": "t", "namespace": "default"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}},
        ]
    )
    return found


def watch(cluster: Cluster, folder: Path, query: str, *rules: Fault, act: Any = None) -> tuple[list[Json], str]:
    """The events of one watch and how it ended: the name of the error, or ""."""

    async def run() -> tuple[list[Json], str]:
        app = create_app(cluster)
        app.middlewares.insert(0, Faults(Clock(), rules).middleware("kubernetes"))
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(folder / "s")).start()
        found: list[Json] = []
        try:
            async with ClientSession(connector=UnixConnector(str(folder / "s"))) as session:
                headers = {"Authorization": "Bearer admin"}
                async with session.get(f"http://lab{MAPS}?watch=1&{query}", headers=headers) as answer:
                    assert answer.status == 200
                    async for line in answer.content:
                        found.append(json.loads(line))
                        if act is not None and len(found) == 1:
                            act()
        except ClientError as error:
            return found, type(error).__name__
        finally:
            await runner.cleanup()
        return found, ""

    return asyncio.run(run())


def test_a_saved_cluster_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    """A file restores every object and every served kind, in another process too."""
    state.save(cluster, tmp_path / "state.json")
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0
    other = Cluster()
    state.read(other, tmp_path / "state.json")
    thing = other.registry.by_gvk[("ex.io/v1", "Thing")]
    assert other.get(thing, "default", "t") == cluster.get(thing, "default", "t")
    assert other.store.rv > cluster.store.rv


def test_what_came_later_is_gone_after_a_restore(cluster: Cluster) -> None:
    """Restoring forgets later objects and kinds, and collects owners' dependents as before."""
    before = state.snapshot(cluster)
    cluster.load([strict.definition("ex.io", "Late", "lates", ["v1"])])
    maps = cluster.registry.by_gvk[("v1", "ConfigMap")]
    cluster.delete(maps, "default", "a", {}, Options())
    state.restore(cluster, before)
    assert ("ex.io/v1", "Late") not in cluster.registry.by_gvk
    assert cluster.get(maps, "default", "a")["metadata"]["name"] == "a"


def test_a_restore_ends_open_watches(cluster: Cluster, tmp_path: Path) -> None:
    """A watch that was open over a restore is told to list again."""
    before = state.snapshot(cluster)
    found, _ = watch(cluster, tmp_path, "timeoutSeconds=5", act=lambda: state.restore(cluster, before))
    assert (found[-1]["type"], found[-1]["object"]["code"]) == ("ERROR", 410)


@pytest.mark.parametrize("saved", [{}, {"format": 2, "buckets": {}}, {"format": 1, "buckets": []}])
def test_what_is_no_snapshot_is_refused(cluster: Cluster, saved: Json) -> None:
    """Nothing changes when the value is not a snapshot."""
    version = cluster.store.rv
    with pytest.raises(ValueError, match="not a snapshot"):
        state.restore(cluster, saved)
    assert cluster.store.rv == version


def test_a_watch_can_be_told_of_an_error_in_its_stream(cluster: Cluster, tmp_path: Path) -> None:
    """The answer is 200, and after the first events an ERROR event ends it."""
    found, ended = watch(cluster, tmp_path, "timeoutSeconds=5", Fault(path="watch", watch="error", status=500))
    assert [event["type"] for event in found] == ["ADDED", "ADDED", "ERROR"]
    assert (found[-1]["object"]["code"], ended) == (500, "")


def test_a_watch_can_break(cluster: Cluster, tmp_path: Path) -> None:
    """The connection breaks in the middle of the stream."""
    _, ended = watch(cluster, tmp_path, "timeoutSeconds=5", Fault(path="watch", watch="drop"))
    assert ended


def test_a_list_can_lag_behind(cluster: Cluster) -> None:
    """A stale list is the one of some changes ago, with the version of then."""
    maps = cluster.registry.by_gvk[("v1", "ConfigMap")]
    cluster.create(maps, "default", {"metadata": {"name": "b"}}, Options())
    names = [item.obj["metadata"]["name"] for item in cluster.page(maps, "default", [], [], behind=1).items]
    assert names == ["a", "kube-root-ca.crt"]
