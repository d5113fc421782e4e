"""Incidents: each of the first attempt's has a scenario that shows it where it was seen, and those that can grow do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib import checks
from runbook_lib.errors import LabError
from runbook_lib.lab import control, incident, scenario
from runbook_lib.lab.incident import Cause, Hands, Trace
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.controllers import afflictions, cilium_operator
from runbook_lib.lab.kubernetes.controllers.client import KubeClient
from runbook_lib.lab.kubernetes.controllers.network import World
from runbook_lib.lab.kubernetes.controllers.programs import Ended, Runs

Object = dict[str, Any]
GROWING = [name for name in scenario.names() if scenario.load(name).incident.causes]
GROWTH_SECONDS, SCALE = 60.0, 60.0

# What was seen in an incident → the scenario that shows it, where, and in which words. The checks that must notice are
# the scenario's own must_fail and must_warn; those marked "living" are shown by controllers and tested there.
TABLE: tuple[tuple[str, str, str, str], ...] = (
    ("1 false readiness", "false-readiness", "condition", "ProxmoxClusterReady"),
    (
        "2 a bare ProxmoxMachine: no OwnerRef",
        "machine-without-owner",
        "log",
        "Machine Controller has not yet set OwnerRef",
    ),
    ("2 qm list unchanged", "machine-without-owner", "condition", "WaitingForClusterInfrastructure"),
    ("3 missing RuntimeClass", "kube-ovn-cascade", "event", 'RuntimeClass "myruntime" not found'),
    ("3 no address for a pod", "kube-ovn-cascade", "event", "no address allocated to pod"),
    ("3 dead pods of the webhook", "kube-ovn-cascade", "pod", "Evicted"),
    ("3 DNS refused to Cilium's release", "kube-ovn-cascade", "condition", "operation not permitted"),
    ("4 the daemon's socket", "kube-ovn-socket", "log", "kube-ovn-daemon.sock"),
    ("4 thousands of restarts", "kube-ovn-socket", "restarts", "3034"),
    ("4 pulls that time out", "kube-ovn-socket", "pod", "i/o timeout"),
    ("5 no default runtime", "containerd-runtime", "event", "container.Runtime.Name must be set"),
    ("5 Cilium's taint", "containerd-runtime", "node", "node.cilium.io/agent-not-ready"),
    ("6 upgrade paralysis", "upgrade-stuck", "condition", "must appear in spec.versions"),
    ("7 CSI and CCM without an image", "registry-denied", "pod", "pull access denied"),
    ("8 webhook x509", "webhook-certificate", "condition", "x509: certificate signed by unknown authority"),
    ("8 webhook down", "webhook-down", "log", "dial tcp 10.96.0.1:443: i/o timeout"),
    ("10 OutOfcpu beside an idle node", "requests-skew", "pod", "OutOfcpu"),
    ("claim waits for its first consumer", "claims-pending", "event", "waiting for first consumer"),
    ("no topology region or zone", "claims-pending", "event", "no topology key found on CSINode"),
    ("DaemonSet desired 0", "daemonset-nowhere", "condition", '"desiredNumberScheduled": 0'),
    ("Proxmox VE says 401", "token-revoked", "log", "not authorized to access endpoint"),
    ("Proxmox VE says 403", "token-without-privileges", "log", "403 Permission check failed"),
    ("VMID lock", "guest-locked", "task", "can't lock file"),
    ("UPID failed", "failed-tasks", "task", "no such volume"),
    ("storage without images", "storage-without-images", "task", "does not support content-type 'images'"),
    ("many VMs for one Machine", "many-vms", "guest", "demo-md-0-x7k2p"),
    ("DependencyNotReady", "broken-release-chain", "condition", "DependencyNotReady"),
    ("etcd is slow", "etcd-slow", "event", "etcdserver: request timed out"),
)


def seen(name: str) -> dict[str, str]:
    """What a scenario shows from its first moment, by where it is seen."""
    given = scenario.load(name)
    objects = seeds.cozystack(given.kubernetes)
    told: dict[str, list[str]] = {place: [] for place in (*incident.EVIDENCE, "guest")}
    for item in objects:
        kind, status = item["kind"], item.get("status") or {}
        if kind == "Event":
            told["event"].append(item["message"])
        elif kind == "Pod":
            told["pod"].append(json.dumps(status))
            for row in status.get("containerStatuses") or ():
                told["restarts"].append(str(row.get("restartCount")))
                told["log"].append((row.get("lastState", {}).get("terminated") or {}).get("message", ""))
        elif kind == "Node":
            told["node"].append(json.dumps([item["metadata"]["name"], item["spec"], status.get("conditions")]))
        else:
            told["condition"].append(json.dumps(status))
    told["task"] = [json.dumps(row) for row in given.proxmox.get("tasks") or ()]
    told["guest"] = [str(row["config"].get("name")) for row in (given.proxmox.get("guests") or {}).values()]
    return {place: "\n".join(lines) for place, lines in told.items()}


@pytest.mark.parametrize(("what", "name", "where", "words"), TABLE, ids=[row[0].replace(" ", "-") for row in TABLE])
def test_every_signature_is_seen_where_it_was(what: str, name: str, where: str, words: str) -> None:
    """Events, conditions, logs, restart counts and task logs say what they said."""
    assert words in seen(name)[where].replace('\\"', '"'), f"{what}: {name} does not show it in {where}"


@pytest.mark.parametrize("name", scenario.names())
def test_every_check_a_scenario_names_exists(name: str) -> None:
    """A misspelt check would never be missed."""
    given = scenario.load(name)
    known = {info.id for info in checks.catalogue()}
    assert set(given.must_fail) | set(given.must_warn) <= known


# --- growth ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One lab for all incidents."""
    place = tmp_path_factory.mktemp("incidents") / "lab"
    control.up(place, scenario="healthy", scale=SCALE)
    yield place
    control.down(place)


async def evidence(client: KubeClient, proxmox: list[str], where: str) -> str:
    """What can be read in one place, a line for each thing."""
    rows: list[str] = list(proxmox) if where == "task" else []
    if where == "event":
        rows = [item["message"] for item in (await client.list("/api/v1/events"))["items"]]
    elif where == "node":
        for item in (await client.list("/api/v1/nodes"))["items"]:
            rows += [f"{item['metadata']['name']}: {taint['key']}" for taint in item["spec"].get("taints") or ()]
    elif where == "endpoints":
        for item in (await client.list("/api/v1/endpoints"))["items"]:
            if not any(part.get("addresses") for part in item.get("subsets") or ()):
                rows.append(f"{item['metadata']['namespace']}/{item['metadata']['name']}")
    elif where in {"pod", "restarts", "log"}:
        for item in (await client.list("/api/v1/pods"))["items"]:
            rows += await _of_pod(client, item, where)
    return "\n".join(rows)


async def _of_pod(client: KubeClient, item: Object, where: str) -> list[str]:
    name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
    status = item.get("status") or {}
    states = status.get("containerStatuses") or ()
    if where == "pod":
        waits = [row["state"].get("waiting", {}).get("reason", "") for row in states] or [""]
        return [f"{name}: {status.get('reason') or why}" for why in waits]
    if where == "restarts":
        return [name for row in states if row.get("restartCount", 0) >= 2]
    rows = []
    for row in states:
        if row.get("restartCount", 0) or (row.get("started") and item["metadata"]["namespace"] == "capmox-system"):
            path = (
                f"{client.base_url}/api/v1/namespaces/{item['metadata']['namespace']}/pods/{item['metadata']['name']}"
            )
            async with client._session.get(f"{path}/log?container={row['name']}") as answer:
                rows += [
                    f"{item['metadata']['namespace']}/{row['name']}: {line}"
                    for line in (await answer.text()).split("\n")
                ]
    return rows


async def grown(folder: Path, traces: tuple[Trace, ...], client: KubeClient) -> list[str]:
    """The traces in the order they were first seen; raises TimeoutError naming what never was."""
    found: list[str] = []
    connection = control.connection(folder).proxmox
    from runbook_lib import proxmox
    from runbook_lib.site import ProxmoxEndpoint

    secret = f"file:{folder}/secrets.json#proxmox_token_secret"
    endpoint = ProxmoxEndpoint(url=connection.url, ca_file=str(connection.ca_file), token_id=connection.token_id,
                               token_secret=secret)  # fmt: skip
    pve = proxmox.connect(endpoint)
    try:
        async with asyncio.timeout(GROWTH_SECONDS):
            while len(found) < len(traces):
                control.advance(20, folder)
                tasks = [row["type"] for row in pve.get("/cluster/tasks")]
                places = {where: await evidence(client, tasks, where) for where in {row.where for row in traces}}
                found += [row.words for row in traces if row.words not in found and row.words in places[row.where]]
                await asyncio.sleep(0.2)
    except TimeoutError:
        lacking = [f"{row.where}: {row.words}" for row in traces if row.words not in found]
        raise AssertionError(f"never seen: {lacking}; happened: {control.status(folder)}") from None
    return found


async def settled(client: KubeClient, folder: Path) -> None:
    """Returns once every pod that is meant to run is ready and no taint tells of trouble."""
    bad: list[str] = []
    try:
        async with asyncio.timeout(GROWTH_SECONDS):
            while True:
                control.advance(30, folder)
                bad = [
                    f"{item['metadata']['namespace']}/{item['metadata']['name']} {item['status'].get('phase')}"
                    for item in (await client.list("/api/v1/pods"))["items"]
                    if item["status"].get("phase") not in {"Succeeded", "Failed"}
                    and not any(
                        r["type"] == "Ready" and r["status"] == "True" for r in item["status"].get("conditions") or ()
                    )
                ]
                bad += [line for line in (await evidence(client, [], "node")).split("\n")
                        if line and "node-role.kubernetes.io" not in line]  # fmt: skip
                if not bad:
                    return
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"not healed: {bad[:12]}") from None


@pytest.mark.parametrize("name", GROWING)
def test_incident_grows_from_its_cause_and_heals_with_it(folder: Path, name: str) -> None:
    """Begun in a healthy lab, the cause alone brings every trace; taking it away brings the cluster back."""
    given = scenario.load(name)

    async def story() -> None:
        control.scenario(name, folder, grow=True)
        there = control.connection(folder).kubernetes
        async with KubeClient(there.url, there.token, str(there.ca_file)) as client:
            found = await grown(folder, given.incident.follows, client)
            assert set(found) == {row.words for row in given.incident.follows}
            control.cure(folder)
            await settled(client, folder)

    asyncio.run(story())


def test_scenario_without_causes_cannot_grow(folder: Path) -> None:
    """It says so, and the lab stays as it was."""
    with pytest.raises(LabError, match="tells no causes"):
        control.scenario("storage-full", folder, grow=True)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_causes_happen_in_order_on_the_labs_clock() -> None:
    """Each after what lies between it and the one before, and one that is refused does not stop the next."""
    slept: list[float] = []
    done: list[object] = []

    class Clock:
        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    async def refused(*_: Any) -> None:
        raise ValueError("no")

    hands = Hands(refused, refused, done.append, done.append)
    rows = [
        Cause(10, "a", "world", {"x": 1}),
        Cause(15, "b", "proxmox", {"path": "/p"}),
        Cause(40, "c", "fault", {"y": 2}),
    ]
    asyncio.run(incident.unfold(rows, hands, Clock()))
    assert slept == [10, 5, 25]
    assert done == [{"x": 1}, {"y": 2}]
    assert hands.told == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"reasons": []}, "no such key: reasons"),
        ({"causes": [{"at": 1, "says": "x"}]}, "one of kubernetes"),
        ({"causes": [{"at": 2, "world": {}}, {"at": 1, "world": {}}]}, "in the order of their time"),
        ({"follows": [{"where": "dreams", "words": "x"}]}, "nothing is seen in dreams"),
    ],
)
def test_mistake_in_an_incident_is_told(entry: Object, words: str) -> None:
    """What it cannot mean is said in words."""
    with pytest.raises(ValueError, match=words):
        incident.incident_from(entry)


def test_world_changes_by_key_and_forgets_what_is_empty() -> None:
    """A fault is set, another stays, an empty one goes; a key that is none is refused."""
    world = World(node_faults={"a": "dead", "b": "runtime"})
    assert afflictions.changed(world, {"node_faults": {"a": "", "c": "network"}}).node_faults == {
        "b": "runtime",
        "c": "network",
    }
    with pytest.raises(ValueError, match="the world has no weather"):
        afflictions.changed(world, {"weather": "bad"})


def test_lost_socket_ends_kube_ovn_and_holds_cilium_up() -> None:
    """On that node alone; what has nothing to do with it runs."""
    world = World(node_faults={"worker-2": "network"})

    def fate(app: str, value: str, container: str, node: str = "worker-2") -> Ended | Runs | None:
        pod = {"metadata": {"labels": {app: value}}, "spec": {"nodeName": node, "containers": []}}
        return afflictions.outcome(world, pod, {"name": container})

    assert isinstance(fate("app", "kube-ovn-cni", "kube-ovn-cni"), Ended)
    assert isinstance(fate("k8s-app", "cilium", "config"), Runs)
    assert fate("app", "kube-ovn-cni", "kube-ovn-cni", "worker-1") is None
    assert fate("app", "web", "web") is None


@pytest.mark.parametrize(
    ("ready", "before", "after"),
    [(False, [], [cilium_operator.TAINT]), (True, [cilium_operator.TAINT], []), (None, [], []), (True, [], [])],
)
def test_node_without_its_agent_is_tainted(ready: bool | None, before: list[str], after: list[str]) -> None:
    """Until the agent is ready; a cluster without Cilium is left alone."""
    node = {"spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in before]}}
    assert [taint["key"] for taint in cilium_operator.taints(node, ready)] == after
