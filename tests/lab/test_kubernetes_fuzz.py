"""Seeded rubbish against the lab's API server: every answer is one an API server could give."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, ClientTimeout, UnixConnector, web
from yarl import URL

from runbook_lib.lab.kubernetes import strict
from runbook_lib.lab.kubernetes.cluster import ADMIN, Cluster
from runbook_lib.lab.kubernetes.server import create_app

Json = dict[str, Any]
ROUNDS = 800
INFRA = "infrastructure.cluster.x-k8s.io"
TYPES = (
    "application/json", "application/yaml", "application/merge-patch+json", "application/json-patch+json",
    "application/strategic-merge-patch+json", "application/apply-patch+yaml", "application/vnd.kubernetes.protobuf",
    "text/plain", "",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, 0, -1, 1 << 70, 1.5, True, "", "x", "a/b", "\x00", "💥" * 3, "9" * 400, "-", ".", "..", "10Ei", "1e99999",
    "2026-02-30T25:61:00Z", [], {}, [[]], [None], [{}], {"": ""}, {"a": None}, {"$patch": "delete"}, {"$patch": 1},
    [{"$patch": "replace"}], {"matchLabels": 1}, {"matchExpressions": [{"operator": "In"}]},
)  # fmt: skip
BODIES: tuple[Json, ...] = (
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "f", "labels": {"a": "b"}}, "data": {"k": "v"}},
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "f"}, "stringData": {"k": "v"}, "type": "Opaque"},
    {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "f", "ownerReferences": [], "finalizers": ["a.b/c"]},
        "spec": {
            "containers": [
                {"name": "c", "image": "i", "ports": [{"containerPort": 80}], "env": [{"name": "a", "value": "b"}],
                 "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "k", "operator": "Exists"}],
        },
    },
    {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "f"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": 1}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    },
    {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "f"},
        "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "x"}]},
    },
    {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "f"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    },
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fuzz"}, "spec": {"finalizers": ["a/b"]}},
    {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "f"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}},
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "f"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    },
    {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "f"},
        "spec": {"hard": {"pods": "9", "requests.cpu": "4"}, "scopes": ["BestEffort"]},
    },
    {
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "f"},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "max": {"cpu": "2"}}]},
    },
    {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "f"}, "involvedObject": {"namespace": "default"}},
    {
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "f"},
        "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}},
    },
    strict.definition("fuzz.io", "Fuzz", "fuzzes", ["v1"]),
    {
        "apiVersion": f"{INFRA}/v1alpha2", "kind": "ProxmoxCluster", "metadata": {"name": "f"},
        "spec": {"dnsServers": ["1.1.1.1"], "ipv4Config": {"addresses": ["10.0.0.1"], "prefix": 24, "gateway": "g"}},
    },
)  # fmt: skip
PARTS = ("", "/status", "/scale", "/log", "/exec", "/eviction", "/binding", "/token", "/proxy/x", "/resize", "/nope")
QUERIES = (
    "limit", "continue", "resourceVersion", "resourceVersionMatch", "labelSelector", "fieldSelector", "fieldManager",
    "fieldValidation", "dryRun", "force", "propagationPolicy", "gracePeriodSeconds", "pretty", "container", "tailLines",
)  # fmt: skip
VALUES = (
    "", "0", "-1", "abc", "All", "true", "1e9", "9" * 30, "a=b,c", "((", "a in (", "metadata.name=f", "Exact",
    "NotOlderThan", "Orphan", "Strict", "%00", "eyJydiI6MX0", "💥", "!", "spec.nodeName!=", "x" * 300,
)  # fmt: skip


def spoiled(value: Any, dice: random.Random, depth: int = 0) -> Any:
    """A body with something in it that does not belong there."""
    if depth and dice.random() < 0.1:
        return dice.choice(ODD)
    if isinstance(value, dict):
        keep = ("apiVersion", "kind") if not depth and dice.random() < 0.95 else ()
        found = {
            key: item if key in keep else spoiled(item, dice, depth + 1)
            for key, item in value.items() if key in keep or dice.random() > 0.03
        }  # fmt: skip
        return found | ({dice.choice(("bogus", "status", "spec", "")): dice.choice(ODD)} if dice.random() < 0.1 else {})
    if isinstance(value, list):
        return [spoiled(item, dice, depth + 1) for item in value]
    return value


def raw_body(body: Any, dice: random.Random) -> bytes:
    """The bytes of a body, sometimes cut or torn."""
    kind = dice.random()
    if kind < 0.004:
        return b"[" * 20_000
    if kind < 0.008:
        return b'{"a":' * 5_000
    if kind < 0.02:
        return dice.randbytes(60)
    raw = json.dumps(body).encode()
    return raw[: dice.randrange(len(raw))] if kind < 0.05 else raw


def operations(dice: random.Random) -> list[Any]:
    """A JSON patch that may mean nothing."""
    places = ("/metadata/labels/a", "/spec", "", "/", "/spec/containers/0", "/spec/containers/-1", "/data/~2", "x", 5)
    return [
        {"op": dice.choice(("add", "remove", "replace", "move", "copy", "test", "", 7)), "path": dice.choice(places),
         "value": dice.choice(ODD), "from": dice.choice(places)}
        for _ in range(dice.randrange(3))
    ]  # fmt: skip


def call(dice: random.Random, cluster: Cluster) -> tuple[str, str, bytes | None, str]:
    """Method, target, body and content type of one call."""
    body = dice.choice(BODIES)
    kind = cluster.registry.by_gvk[(body["apiVersion"], body["kind"])]
    prefix = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    space = (
        "/namespaces/" + dice.choice(("default", "default", "default", "none", "%00", "a%2fb"))
        if kind.namespaced
        else ""
    )
    method = dice.choice(("GET", "POST", "POST", "PUT", "PATCH", "PATCH", "DELETE", "OPTIONS"))
    name = (
        "" if method == "POST" and dice.random() < 0.8 else "/" + dice.choice((body["metadata"]["name"], "zz", "%ff"))
    )
    path = f"{prefix}{space}/{kind.plural}{name}" + (dice.choice(PARTS) if name and dice.random() < 0.4 else "")
    query = "&".join(f"{dice.choice(QUERIES)}={quote(dice.choice(VALUES))}" for _ in range(dice.randrange(3)))
    form = dice.choice(TYPES[2:6]) if method == "PATCH" else dice.choice(TYPES[:2] if dice.random() < 0.9 else TYPES)
    given: Any = operations(dice) if form == TYPES[3] and dice.random() < 0.8 else spoiled(body, dice)
    data = None if method == "GET" else raw_body(given, dice)
    return method, path + (f"?{query}" if query else ""), data, form


async def fuzz(seed: int, folder: Path) -> list[str]:
    """What was wrong with the answers."""
    dice = random.Random(seed)
    cluster = Cluster()
    cluster.tokens["admin"] = ADMIN
    cluster.load([strict.definition(INFRA, "ProxmoxCluster", "proxmoxclusters", ["v1alpha2", "v1alpha1"])])
    runner = web.AppRunner(create_app(cluster), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "s")).start()
    found: list[str] = []
    headers = {"Authorization": "Bearer admin"}
    try:
        async with ClientSession(connector=UnixConnector(str(folder / "s")), timeout=ClientTimeout(5)) as session:
            for number in range(ROUNDS):
                method, target, data, form = call(dice, cluster)
                mine = headers | ({"Content-Type": form} if form else {})
                async with session.request(
                    method, URL("http://lab" + target, encoded=True), data=data, headers=mine
                ) as answer:
                    text = await answer.text()
                told = f"#{number} {method} {target} {form} {data!r:.300} -> {answer.status} {text:.200}"
                if "Internal error occurred" in text:
                    found.append(told)
                elif answer.status >= 400 and "404 page not found" not in text:
                    status = json.loads(text)
                    if status.get("kind") != "Status" or status.get("code") != answer.status:
                        found.append(told)
            async with session.get("http://lab/api/v1/pods", headers=headers) as answer:
                assert answer.status == 200
    finally:
        await runner.cleanup()
    return found


@pytest.mark.parametrize("seed", [1, 30, 47])
def test_rubbish_gets_a_status(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No request, however malformed, makes the server lose its thread; each refusal is a Status."""
    caplog.set_level(logging.ERROR)
    found = asyncio.run(fuzz(seed, tmp_path))
    assert not found, "\n".join(found[:10])
