"""Recordings of a real API server, replayed in order on an empty lab server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, UnixConnector, web
from yarl import URL

from runbook_lib.lab.kubernetes import watch
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.server import create_app

Json = dict[str, Any]
# Kinds whose other half controllers write. They have tests of their own: here their part comes from the recording.
CONTROLLED = {
    "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "PodDisruptionBudget", "Node", "Pod",
    "PersistentVolumeClaim", "PersistentVolume", "Event",
}  # fmt: skip
COMPACTED = 739  # the first call that found the recorded store compacted and nothing cached
GRACE_SECONDS = 0.03  # how long a watch is looked at for events that should not come
MASKED = {
    "uid", "resourceVersion", "creationTimestamp", "time", "deletionTimestamp", "lastTransitionTime",
    "lastHeartbeatTime", "lastUpdateTime", "token", "expirationTimestamp", "continue", "storageVersionHash", "ca.crt",
    "lastPhaseTransitionTime", "renewTime", "controller-uid", "batch.kubernetes.io/controller-uid", "firstTimestamp",
    "lastTimestamp", "clusterIP", "clusterIPs", "nodePort", "observedGeneration",
}  # fmt: skip
# managedFields are compared by tests of their own; the annotations are written by controllers.
DROPPED = {
    "managedFields", "description", "deployment.kubernetes.io/revision", "node.alpha.kubernetes.io/ttl",
    "pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller",
    "volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner",
}  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SHOTS = {"shape": 0.97, "status": 0.99}
# What stays different, and why.
KNOWN = {
    187: "another order of fields in the quoted object",
    408: "the recorded build grants one more path to everybody",
    557: "the recorded cluster's own events",
    580: "what the volume controller did to the volume is in no earlier answer",
    599: "the difference of two Go structures is not printed",
    601: "the difference of two Go structures is not printed",
    680: "the replica set is in no earlier answer",
    704: "a Go structure is not printed",
    289: "answers are JSON or YAML; a client that takes nothing but protobuf is told so",
    437: "the syntax error of a CEL rule is worded by another parser",
    566: "the lab's own components are healthy",
}


def recordings(oracle: Path) -> list[Json]:
    """The recorded calls, in order."""
    path = oracle / "kubernetes" / "recordings-1.36.2.jsonl"
    if not path.is_file():
        pytest.skip("no recordings of a real Kubernetes API server here")
    return [json.loads(line) for line in path.read_text().splitlines()]


def masked(value: Any, key: str = "") -> Any:
    """A value without what differs between any two servers."""
    if key in MASKED:
        return "*"
    if isinstance(value, dict):
        kept = {name: masked(item, name) for name, item in value.items() if name not in DROPPED}
        return {name: item for name, item in kept.items() if not (name == "annotations" and item == {})}
    if isinstance(value, list):
        # A deviation of the recorded build: one more source in the token volume.
        return [masked(item, key) for item in value if "openshift-service-ca.crt" not in str(item)[:60]]
    if isinstance(value, str):
        text = re.sub(
            r"(current: |record \(|version: |resourceVersion\\*\":\\*\")\d+( \(\d+\))?",
            r"\1<version>",
            UUID.sub("<uuid>", value),
        )
        text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>", text)
        text = re.sub(r"^(\d+[smh])+( \(.*\))?$|^10\.96\.\d+\.\d+$|(?<=80:)3\d{4}(?=/TCP)", "<measured>", text)
        return re.sub(r"\b(kube-api-access|g|dg)-[a-z0-9]{5}\b", r"\1-*", text)
    return value


class Replay:
    """Replays calls and remembers how uids, versions and generated names map to ours."""

    def __init__(self, session: ClientSession, cluster: Cluster) -> None:
        self.session, self.cluster = session, cluster
        self.known: dict[str, str] = {}
        self.versions: dict[int, int] = {}
        self.token = ""

    def learn(self, theirs: Any, ours: Any) -> None:
        """Remembers pairs of identifiers in two answers to the same call."""
        if isinstance(theirs, dict) and isinstance(ours, dict):
            left, right = theirs.get("metadata"), ours.get("metadata")
            if isinstance(left, dict) and isinstance(right, dict):
                generated = ("name",) if left.get("generateName") else ()
                for key in ("uid", "continue", *generated):
                    if isinstance(left.get(key), str) and isinstance(right.get(key), str) and left[key] != right[key]:
                        self.known[left[key]] = right[key]
                if str(left.get("resourceVersion", "")).isdigit() and str(right.get("resourceVersion", "")).isdigit():
                    self.versions[int(left["resourceVersion"])] = int(right["resourceVersion"])
            for key in theirs.keys() & ours.keys():
                self.learn(theirs[key], ours[key])
        elif isinstance(theirs, list) and isinstance(ours, list):
            for left, right in zip(theirs, ours, strict=False):
                self.learn(left, right)

    def version(self, text: str) -> str:
        """Our resource version for one of theirs."""
        number = int(text)
        if number in (0, 1) or number > 1_000_000:
            return text
        past = [theirs for theirs in self.versions if theirs <= number]
        if not past:
            return text
        nearest = max(past)
        return str(min(self.versions[nearest] + (1 if number > nearest else 0), self.cluster.store.rv))

    def translate(self, text: str) -> str:
        """A path, query or body with our identifiers."""
        for theirs, ours in self.known.items():
            if len(theirs) > 6:
                text = text.replace(theirs, ours)
        return re.sub(r'(resourceVersion=|"resourceVersion": ?")(\d+)', lambda m: m[1] + self.version(m[2]), text)

    def headers(self, call: Json) -> list[tuple[str, str]]:
        """The headers of a call."""
        rows = [("User-Agent", "recorder")]
        who = call["as"]
        token = {"admin": "admin", "user:alice": "alice", "user:bob": "bob", "bad-token": "bad"}.get(who, "")
        if who.startswith("serviceaccount"):
            token = self.token
        if token:
            rows.append(("Authorization", f"Bearer {token}"))
        rows += list((call.get("request_headers") or {}).items())
        if call.get("accept"):
            rows.append(("Accept", call["accept"]))
        if call.get("content_type"):
            rows.append(("Content-Type", call["content_type"]))
        return rows

    def body(self, call: Json) -> bytes | None:
        """The body of a call."""
        value = call.get("body")
        if value is None:
            return None
        if isinstance(value, dict) and "$body" in value:
            match = re.match(r"ConfigMap (\w+) with (data\.a|annotation a) of (\d+) times x", value["$body"])
            if not match:
                return None
            name, place, count = match[1], match[2], int(match[3])
            part = {"data": {"a": "x" * count}} if place == "data.a" else {}
            meta: Json = {"name": name} | ({} if part else {"annotations": {"a": "x" * count}})
            return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta} | part).encode()
        text = value if isinstance(value, str) else self.translate(json.dumps(value))
        return text.replace("<jwt>", self.token).encode()

    def play(self, call: Json) -> None:
        """Puts into the store what controllers had written by the time of this call, as its answer shows."""
        answer = call.get("json")
        if call["n"] >= COMPACTED and not self.cluster.store.compacted:
            self.cluster.store.rv += 1  # others wrote meanwhile
            self.cluster.store.compact()
        if not isinstance(answer, dict) or call["status"] >= 400 or call["method"] == "POST":
            return
        if "kind" not in answer or "apiVersion" not in answer:
            return
        rows = answer.get("items") or [row.get("object") for row in answer.get("rows") or []] or [answer]
        kind = answer["kind"].removesuffix("List")
        if kind == "Table" and (call["query"] or "").find("includeObject=Object") < 0:
            return
        for row in rows:
            if not row:
                continue
            head = {"kind": row.get("kind", kind), "apiVersion": row.get("apiVersion", answer["apiVersion"])}
            if head["kind"] in CONTROLLED and "dryRun" not in (call["query"] or ""):
                self._play(head | row, call)

    def _play(self, theirs: Json, call: Json) -> None:
        kind = self.cluster.registry.by_gvk[(theirs["apiVersion"], theirs["kind"])]
        obj = json.loads(self.translate(json.dumps(theirs)))
        meta = obj["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        stored = self.cluster.store.get(kind.bucket, key)
        if stored is None:
            if meta.get("ownerReferences") or kind.kind in ("Event", "PersistentVolumeClaim"):
                self.cluster.store.put(kind.bucket, key, obj)
                self.cluster.dirty = {mark for mark in self.cluster.dirty if mark[0] != "owned"}
            return
        old = stored.obj
        new = old | {name: obj[name] for name in ("status",) if name in obj}
        spec = obj.get("spec") or {}
        if kind.kind == "Node" and "taints" not in json.dumps(call.get("body")):
            new["spec"] = {k: v for k, v in (old.get("spec") or {}).items() if k != "taints"}
            new["spec"] |= {k: v for k, v in spec.items() if k == "taints"}
        elif kind.kind in ("PersistentVolumeClaim", "PersistentVolume"):
            new["spec"] = (old.get("spec") or {}) | {k: v for k, v in spec.items() if k in ("volumeName", "claimRef")}
        kept = {"deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "generation"}
        if kind.kind == "Pod" and (call["name"].startswith("act as node agent") or call["method"] == "GET"):
            meta_left = {k: v for k, v in old["metadata"].items() if k != "finalizers"}
            new["metadata"] = meta_left | {k: v for k, v in meta.items() if k in kept}
        if new != old:
            self.cluster.store.put(kind.bucket, key, new)

    def _token(self, match: re.Match[str]) -> str:
        token = match[1]
        if token in self.known:
            return f"continue={self.known[token]}"
        try:
            data = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        except ValueError:
            return match[0]
        data["rv"] = int(self.version(str(data["rv"]))) if data["rv"] > 0 else data["rv"]
        return "continue=" + base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")

    def _request(self, call: Json) -> Any:
        query = re.sub(r"continue=([A-Za-z0-9_-]{20,})", self._token, call["query"] or "")
        query = self.translate(query)
        query = re.sub(r"timeoutSeconds=\d+", "timeoutSeconds=2", query)
        url = "http://lab" + self.translate(call["path"]) + (f"?{query}" if query else "")
        skip = ["Content-Type"] if not call.get("content_type") else []
        return self.session.request(
            call["method"], URL(url, encoded=True), headers=self.headers(call), data=self.body(call),
            skip_auto_headers=skip,
        )  # fmt: skip

    async def watch(self, call: Json, meanwhile: list[Json], found: dict[int, str]) -> str:
        """Why a watch differs from the recorded one; "" when it does not."""
        wanted = call["events"]
        events: list[Json] = []
        async with self._request(call) as answer:
            if answer.status != call["status"]:
                return f"status {call['status']} != {answer.status}"
            for other in meanwhile:
                await self.judge(other, found)
            while True:
                late = len(events) >= len(wanted)
                try:
                    line = await asyncio.wait_for(answer.content.readline(), GRACE_SECONDS if late else 2.5)
                except TimeoutError:
                    break
                if not line:
                    break
                events.append(json.loads(line))
        left, right = masked(wanted), masked(events)
        self.learn([e.get("object") for e in wanted], [e.get("object") for e in events])
        return "" if left == right else "shape: " + difference(left, right)

    async def judge(self, call: Json, found: dict[int, str]) -> None:
        """Replays a call and keeps how its answer differs."""
        self.play(call)
        status, value = await self.call(call)
        found[call["n"]] = differs(call, status, value)

    async def call(self, call: Json) -> tuple[int, Any]:
        """Status and answer of one call."""
        async with self._request(call) as answer:
            raw = await answer.read()
            try:
                value = json.loads(raw)
            except ValueError:
                value = raw.decode("utf-8", "replace")
            if isinstance(value, dict) and (value.get("status") or {}) and value.get("kind") == "TokenRequest":
                self.token = value["status"]["token"]
            self.learn(call.get("json"), value)
            return answer.status, value


def same_refusal(theirs: Json, ours: Any) -> bool:
    """True when two Status objects carry the same message, reason and causes."""
    if not isinstance(ours, dict):
        return False
    keys = ("message", "reason", "code")
    left, right = masked(theirs), masked(ours)
    if any(left.get(key) != right.get(key) for key in keys):
        return False

    def causes(status: Json) -> Any:
        found = (status.get("details") or {}).get("causes") or []
        return sorted({json.dumps(cause, sort_keys=True) for cause in found})

    return bool(causes(left) == causes(right))


def differs(call: Json, status: int, value: Any) -> str:
    """Why an answer differs from the recorded one; "" when it does not."""
    if status != call["status"]:
        message = value.get("message", "") if isinstance(value, dict) else str(value)[:80]
        return f"status {call['status']} != {status} {str(message)[:160]}"
    theirs = call.get("json")
    if theirs is None or call["group"] == "discovery":
        return ""
    if status >= 400:
        if same_refusal(theirs, value):
            return ""
        return f"words: {theirs.get('message', '')[:300]!r} != {value.get('message', '')[:300]!r}"
    left, right = masked(theirs), masked(value)
    return "" if left == right else "shape: " + difference(left, right)


def difference(left: Any, right: Any, path: str = "") -> str:
    """The first place where two values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            if key not in left:
                return f"{path}.{key} only ours: {str(right[key])[:80]}"
            if key not in right:
                return f"{path}.{key} only theirs: {str(left[key])[:80]}"
            if left[key] != right[key]:
                return difference(left[key], right[key], f"{path}.{key}")
    if isinstance(left, list) and isinstance(right, list):
        for number, (a, b) in enumerate(zip(left, right, strict=False)):
            if a != b:
                return difference(a, b, f"{path}[{number}]")
        return f"{path} length {len(left)} != {len(right)}"
    return f"{path}: {str(left)[:100]!r} != {str(right)[:100]!r}"


async def replay(calls: list[Json], folder: Path) -> dict[int, str]:
    """Call number → difference, over every call that is replayed."""
    cluster = Cluster()
    cluster.tokens |= {
        "admin": User("admin", ("system:masters", "system:authenticated")),
        "alice": User("alice", ("dev", "system:authenticated"), "alice-uid"),
        "bob": User("bob", ("system:authenticated",)),
    }
    runner = web.AppRunner(create_app(cluster))
    await runner.setup()
    address = str(folder / "api.sock")
    await web.UnixSite(runner, address).start()
    found: dict[int, str] = {}
    try:
        async with ClientSession(connector=UnixConnector(address), timeout=ClientTimeout(20)) as session:
            run = Replay(session, cluster)
            for call in calls:
                if call["n"] in found:
                    continue
                if "events" not in call:
                    await run.judge(call, found)
                    continue
                first, last = call.get("during") or (0, -1)
                meanwhile = [other for other in calls if first <= other["n"] <= last]
                run.play(call)
                found[call["n"]] = await run.watch(call, meanwhile, found)
    finally:
        await runner.cleanup()
    return found


def test_recorded_calls_get_the_recorded_answers(
    oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Replayed in order, 99 % of the calls get the same status, 97 % the same answer; the rest is listed."""
    calls = recordings(oracle)
    monkeypatch.setattr(watch, "FAREWELL_SECONDS", 1.0)  # every recorded watch is cut to two seconds
    found = asyncio.run(replay(calls, tmp_path))
    by_number = {call["n"]: call for call in calls}
    groups: dict[str, Counter[str]] = {}
    for number, text in found.items():
        tally = groups.setdefault(by_number[number]["group"], Counter())
        tally["total"] += 1
        tally["matched"] += not text
        tally["status"] += not text.startswith("status")
    for name, tally in groups.items():
        print(f"{name}: {tally['matched']}/{tally['total']} (status {tally['status']})")
    print("skipped:", ", ".join(sorted({c["group"] for c in calls} - groups.keys())))
    if os.environ.get("RUNBOOK_ORACLE_VERBOSE"):
        for number, text in found.items():
            if text:
                print(f"#{number} [{by_number[number]['group']}] {by_number[number]['name']}: {text}")
    total = len(found)
    statuses = sum(not text.startswith("status") for text in found.values())
    matched = sum(not text for text in found.values())
    print(f"status {statuses}/{total}, answers {matched}/{total}")
    assert statuses / total >= SHOTS["status"]
    assert matched / total >= SHOTS["shape"]
    unexplained = {number: text for number, text in found.items() if text and number not in KNOWN}
    assert not unexplained
