"""The lab's API server without a client in between: verbs, refusals, deletion, admission, watches."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector, web

from runbook_lib.lab.kubernetes import watch
from runbook_lib.lab.kubernetes.cluster import ADMIN, Cluster, Options, User
from runbook_lib.lab.kubernetes.schema import canonical_quantity
from runbook_lib.lab.kubernetes.selectors import parse_labels
from runbook_lib.lab.kubernetes.server import create_app
from runbook_lib.lab.kubernetes.status import ApiError

Json = dict[str, Any]
PROTOBUF = "application/vnd.kubernetes.protobuf"
MERGE = "application/merge-patch+json"


@pytest.fixture
def cluster() -> Cluster:
    """An empty cluster with a namespace `work`."""
    found = Cluster()
    found.tokens["admin"] = ADMIN
    found.tokens["bob"] = User("bob", ("system:authenticated",))
    found.load([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "work"}}])
    return found


def create(cluster: Cluster, api_version: str, kind: str, name: str, **rest: Any) -> Json:
    """A created object of the namespace `work`."""
    body = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name} | rest.pop("metadata", {})} | rest
    return cluster.create(cluster.registry.by_gvk[(api_version, kind)], "work", body, Options())


def ask(
    cluster: Cluster, folder: Path, method: str, path: str, body: Any = None, token: str = "admin", **headers: str
) -> tuple[int, Json]:  # fmt: skip
    """Status and JSON of one request over HTTP."""

    async def run() -> tuple[int, Json]:
        runner = web.AppRunner(create_app(cluster))
        await runner.setup()
        await web.UnixSite(runner, str(folder / "s")).start()
        try:
            async with ClientSession(connector=UnixConnector(str(folder / "s"))) as session:
                named = {key.replace("_", "-"): value for key, value in headers.items()}
                named.setdefault("Content-Type", "application/json")
                if token:
                    named["Authorization"] = f"Bearer {token}"
                data = body if isinstance(body, (bytes, str)) or body is None else json.dumps(body)
                async with session.request(method, "http://lab" + path, data=data, headers=named) as answer:
                    raw = await answer.read()
                    lines = raw.decode().splitlines()
                    if "watch=" in path and answer.status == 200:
                        return answer.status, {"events": [json.loads(line) for line in lines]}
                    return answer.status, json.loads(raw)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_deleting_an_owner_takes_its_dependents(cluster: Cluster) -> None:
    """Background deletion collects what the owner owned."""
    owner = create(cluster, "v1", "ConfigMap", "owner")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    create(cluster, "v1", "ConfigMap", "child", metadata={"ownerReferences": [reference]})
    cluster.delete(cluster.registry.by_gvk[("v1", "ConfigMap")], "work", "owner", {}, Options())
    assert cluster.find("v1", "ConfigMap", "work", "child") is None


def test_a_finalizer_holds_an_object_and_its_namespace(cluster: Cluster) -> None:
    """A namespace stays Terminating, saying why, until the last finalizer is gone."""
    create(cluster, "v1", "ConfigMap", "held", metadata={"finalizers": ["lab.test/hold"]})
    namespaces = cluster.registry.by_gvk[("v1", "Namespace")]
    cluster.delete(namespaces, "", "work", {}, Options())
    status = cluster.get(namespaces, "", "work")["status"]
    assert status["phase"] == "Terminating"
    assert "lab.test/hold in 1 resource instances" in status["conditions"][-1]["message"]
    maps = cluster.registry.by_gvk[("v1", "ConfigMap")]
    cluster.patch(maps, "work", "held", MERGE, {"metadata": {"finalizers": None}}, Options())
    assert cluster.find("v1", "Namespace", "", "work") is None


def test_dry_run_stores_nothing(cluster: Cluster) -> None:
    """A dry run answers as the real call would and leaves no trace."""
    before = cluster.store.rv
    kind = cluster.registry.by_gvk[("v1", "ConfigMap")]
    made = cluster.create(kind, "work", {"metadata": {"name": "dry"}}, Options(dry_run=True))
    assert made["metadata"]["uid"] and cluster.store.rv == before


def test_apply_removes_what_its_manager_no_longer_says(cluster: Cluster) -> None:
    """A field omitted by the only manager that owned it vanishes; others stay."""
    kind = cluster.registry.by_gvk[("v1", "ConfigMap")]
    body: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1", "y": "1"}}
    form = "application/apply-patch+yaml"
    cluster.patch(kind, "work", "a", form, body, Options(manager="one"))
    cluster.patch(kind, "work", "a", form, body | {"data": {"z": "1"}}, Options(manager="two"))
    found, created = cluster.patch(kind, "work", "a", form, body | {"data": {"x": "1"}}, Options(manager="one"))
    assert found["data"] == {"x": "1", "z": "1"} and not created


@pytest.mark.parametrize(
    ("level", "spec", "said"),
    [
        ("baseline", {"hostNetwork": True}, "host namespaces (hostNetwork=true)"),
        ("restricted", {}, 'seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to'),
    ],
)
def test_pod_security_refuses(cluster: Cluster, level: str, spec: Json, said: str) -> None:
    """A pod that breaks its namespace's level is refused in the words of the real plug-in."""
    label = {"pod-security.kubernetes.io/enforce": level}
    kind = cluster.registry.by_gvk[("v1", "Namespace")]
    cluster.patch(kind, "", "work", MERGE, {"metadata": {"labels": label}}, Options())
    with pytest.raises(ApiError, match="violates PodSecurity") as refused:
        create(cluster, "v1", "Pod", "p", spec={"containers": [{"name": "c", "image": "i"}]} | spec)
    assert said in refused.value.message


def test_stale_update_conflicts(cluster: Cluster, tmp_path: Path) -> None:
    """A PUT with an old resourceVersion answers 409."""
    made = create(cluster, "v1", "ConfigMap", "a")
    kind = cluster.registry.by_gvk[("v1", "ConfigMap")]
    cluster.patch(kind, "work", "a", MERGE, {"data": {"k": "v"}}, Options())
    status, body = ask(cluster, tmp_path, "PUT", "/api/v1/namespaces/work/configmaps/a", made)
    assert (status, body["reason"]) == (409, "Conflict")


def test_plain_users_are_refused_in_the_real_words(cluster: Cluster, tmp_path: Path) -> None:
    """RBAC names the user, the verb, the resource and the place."""
    status, body = ask(cluster, tmp_path, "GET", "/api/v1/namespaces/work/pods", token="bob")
    assert status == 403
    text = 'pods is forbidden: User "bob" cannot list resource "pods" in API group "" in the namespace "work"'
    assert body["message"] == text


def test_watch_starts_with_what_is_there_and_ends_with_a_bookmark(cluster: Cluster, tmp_path: Path) -> None:
    """sendInitialEvents lists every object, then says that it is done."""
    create(cluster, "v1", "Secret", "s")
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    _, found = ask(cluster, tmp_path, "GET", f"/api/v1/namespaces/work/secrets?{query}")
    assert [event["type"] for event in found["events"]] == ["ADDED", "BOOKMARK"]
    assert found["events"][1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/api/v1/namespaces/work/pods", b"{", {}),
        ("POST", "/api/v1/namespaces/work/pods", b"[1]", {}),
        ("POST", "/api/v1/namespaces/work/pods", b"k8s\x00\xff\xff", {"Content_Type": PROTOBUF}),
        ("POST", "/api/v1/namespaces/work/pods", {"metadata": 1}, {}),
        ("POST", "/api/v1/namespaces/work/pods", {"metadata": {"name": "x"}, "spec": {"containers": [None]}}, {}),
        ("POST", "/api/v1/namespaces/work/pods", b"a: &a [*a]", {"Content_Type": "application/yaml"}),
        ("PATCH", "/api/v1/namespaces/work/configmaps/none", b"null", {"Content_Type": MERGE}),
        ("PATCH", "/api/v1/namespaces/work", [{"op": "add"}], {"Content_Type": "application/json-patch+json"}),
        ("GET", "/api/v1/pods?continue=%00%ff", None, {}),
        ("GET", "/api/v1/pods?labelSelector=((((", None, {}),
        ("GET", "/api/v1/namespaces/work/pods/../../nodes?limit=1e9", None, {}),
        ("DELETE", "/api/v1/namespaces/work/configmaps", b"\xff\xfe", {}),
        ("POST", "/api/v1/namespaces/work/pods/none/eviction", {"deleteOptions": 4}, {}),
        ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": []}, {}),
        ("POST", "/api/v1/namespaces/work/serviceaccounts/default/token", {"spec": {"expirationSeconds": "x"}}, {}),
    ],
)  # fmt: skip
def test_hostile_requests_get_a_status(
    cluster: Cluster, tmp_path: Path, method: str, path: str, body: Any, headers: Json
) -> None:  # fmt: skip
    """Malformed input is refused with a Status object, never an internal error."""
    status, answer = ask(cluster, tmp_path, method, path, body, **headers)
    assert 400 <= status < 500, answer
    assert answer["kind"] == "Status" and answer["code"] == status


@pytest.mark.parametrize(
    ("given", "shown"),
    [("0.5", "500m"), ("1024Mi", "1Gi"), ("1000m", "1"), ("2000", "2k"), ("1.5Gi", "1610612736"), ("100m", "100m")],
)
def test_quantities_are_shown_as_the_server_shows_them(given: str, shown: str) -> None:
    """A quantity comes back in canonical form."""
    assert canonical_quantity(given) == shown


@pytest.mark.parametrize(
    ("selector", "labels", "fits"),
    [
        ("a=1,b!=2", {"a": "1"}, True),
        ("a in (1,2),!c", {"a": "2"}, True),
        ("a notin (1)", {"a": "1"}, False),
        ("a,b", {"a": "1"}, False),
    ],
)
def test_label_selectors_select(selector: str, labels: dict[str, str], fits: bool) -> None:
    """Equality, sets and existence are read together."""
    assert all(clause.matches(labels) for clause in parse_labels(selector)) is fits


def watched(cluster: Cluster, act: Any, *, timeout: float, since: int | None = None) -> list[Json]:
    """The events of a watch of the ConfigMaps of `work` with bookmarks, while `act` is done to them."""

    async def run() -> list[Json]:
        kind = cluster.registry.by_gvk[("v1", "ConfigMap")]
        watcher = watch.Watcher(cluster, kind, "work", "", "Metadata", None, True)
        asyncio.get_running_loop().call_soon(act)
        version = str(cluster.store.rv if since is None else since)
        return [json.loads(line) async for part in watch.events(watcher, version, "", timeout) for line in lines(part)]

    def lines(part: bytes) -> list[bytes]:
        return part.splitlines()

    return asyncio.run(run())


def test_a_watch_ends_with_a_bookmark_at_its_last_event(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookmark comes after every event and names the version of the last one, so that nothing is missed."""
    monkeypatch.setattr(watch, "FAREWELL_SECONDS", 0.1)
    seen = watched(cluster, lambda: [create(cluster, "v1", "ConfigMap", name) for name in "abc"], timeout=0.2)
    assert [event["type"] for event in seen] == ["ADDED"] * 3 + ["BOOKMARK"]
    assert seen[-1]["object"]["metadata"]["resourceVersion"] == seen[-2]["object"]["metadata"]["resourceVersion"]


def test_a_quiet_watch_gets_no_bookmark(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to other resources is no progress of this one."""
    monkeypatch.setattr(watch, "FAREWELL_SECONDS", 0.1)
    assert watched(cluster, lambda: create(cluster, "v1", "Secret", "other"), timeout=0.2) == []


def test_a_watch_goes_on_where_another_ended(cluster: Cluster) -> None:
    """A watch from a version sees what happened after it, and nothing twice."""
    first = create(cluster, "v1", "ConfigMap", "first")
    create(cluster, "v1", "ConfigMap", "second")
    since = int(first["metadata"]["resourceVersion"])
    seen = watched(cluster, lambda: create(cluster, "v1", "ConfigMap", "third"), timeout=0.1, since=since)
    assert [event["object"]["metadata"]["name"] for event in seen] == ["second", "third"]


def test_an_object_given_to_nobody_is_collected(cluster: Cluster) -> None:
    """An owner reference that is added later and points to nothing lets the object go, as one given at creation."""
    kept = create(cluster, "v1", "ConfigMap", "kept")
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "00000000-0000-0000-0000-000000000000"}
    kind = cluster.registry.by_gvk[("v1", "ConfigMap")]
    changed = kept | {"metadata": kept["metadata"] | {"ownerReferences": [owner]}}
    cluster.update(kind, "work", "kept", changed, Options())
    assert cluster.store.get("/configmaps", ("work", "kept")) is None


@pytest.mark.parametrize(
    ("accept", "status", "form"),
    [
        (f"{PROTOBUF},application/json", 200, "application/json"),
        (f"{PROTOBUF}, */*", 200, "application/json"),
        ("application/cbor,application/json;q=0.9", 200, "application/json"),
        (f"application/json;as=Table;v=v1;g=meta.k8s.io,{PROTOBUF}", 200, "application/json"),
        ("application/yaml", 200, "application/yaml"),
        (PROTOBUF, 406, "application/json"),
    ],
)
def test_clients_that_prefer_protobuf_take_what_there_is(
    cluster: Cluster, tmp_path: Path, accept: str, status: int, form: str
) -> None:  # fmt: skip
    """client-go lists JSON behind protobuf and gets it; a client that takes nothing else is told the choices."""

    async def run() -> tuple[int, str]:
        runner = web.AppRunner(create_app(cluster))
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        headers = {"Accept": accept, "Authorization": "Bearer admin"}
        try:
            async with (
                ClientSession(connector=UnixConnector(str(tmp_path / "s"))) as session,
                session.get("http://lab/api/v1/namespaces", headers=headers) as answer,
            ):
                return answer.status, answer.content_type
        finally:
            await runner.cleanup()

    assert asyncio.run(run()) == (status, form)
