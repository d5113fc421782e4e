"""DaemonSets: one pod on each node that fits, and their roll-outs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import revisions
from .announce import Announcer
from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .pods_of import (
    Orphans,
    claim,
    delete_pods,
    is_ended,
    is_going,
    is_ready,
    owner_keys,
    phase_of,
    pod_from,
    pods_path,
    put_status,
    seconds_of,
    seen,
    share_of,
    slow_start,
)
from .reconcile import reconcile
from .replicasets import available_now
from .timers import Timers

PATH = "/apis/apps/v1/daemonsets"
COMPONENT = "daemonset-controller"
GENERATION, GENERATION_LABEL = "deprecated.daemonset.template.generation", "pod-template-generation"
BURST = 250
BACK_OFF_FIRST, BACK_OFF_MOST = 1.0, 900.0

_TOLERATED = (
    ("not-ready", "NoExecute"),
    ("unreachable", "NoExecute"),
    ("disk-pressure", "NoSchedule"),
    ("memory-pressure", "NoSchedule"),
    ("pid-pressure", "NoSchedule"),
    ("unschedulable", "NoSchedule"),
)


# --- judgement ----------------------------------------------------------------------------------------------------


def tolerations_of(spec: Object) -> list[Object]:
    """The tolerations of a daemon pod: its template's and those every daemon has."""
    rows = list(spec.get("tolerations") or ())
    every = [*_TOLERATED, *([("network-unavailable", "NoSchedule")] if spec.get("hostNetwork") else [])]
    for key, effect in every:
        row = {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": effect}
        if row not in rows:
            rows.append(row)
    return rows


def made_pod(item: Object, node: str, letters: str) -> Object:
    """The daemon's pod for that node."""
    pod = pod_from(item["spec"]["template"], item)
    labels = pod["metadata"].setdefault("labels", {})
    labels[revisions.LABEL] = letters
    generation = (item["metadata"].get("annotations") or {}).get(GENERATION)
    if generation:
        labels[GENERATION_LABEL] = generation
    spec = pod["spec"]
    spec["tolerations"] = tolerations_of(spec)
    spec["affinity"] = _pinned(spec.get("affinity") or {}, node)
    return pod


def _pinned(affinity: Object, node: str) -> Object:
    affinity = copy.deepcopy(affinity)
    field_ = {"key": "metadata.name", "operator": "In", "values": [node]}
    wish = affinity.setdefault("nodeAffinity", {})
    wish["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchFields": [field_]}]}
    return affinity


def node_of(pod: Object) -> str:
    """The node the pod is on or made for."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for row in term.get("matchFields") or ():
            if row["key"] == "metadata.name" and row.get("values"):
                return str(row["values"][0])
    return ""


def fits(item: Object, node: Object) -> tuple[bool, bool]:
    """(whether the daemon should run there, whether a pod that runs there may stay)."""
    spec = item["spec"]["template"]["spec"]
    if spec.get("nodeName") and spec["nodeName"] != node["metadata"]["name"]:
        return False, False
    if not _selected(spec, node):
        return False, False
    given = tolerations_of(spec)
    bad = [taint for taint in node["spec"].get("taints") or () if not _tolerated(taint, given)]
    if any(taint["effect"] == "NoExecute" for taint in bad):
        return False, False
    return not any(taint["effect"] == "NoSchedule" for taint in bad), True


def _tolerated(taint: Mapping[str, str], tolerations: Iterable[Mapping[str, str]]) -> bool:
    for row in tolerations:
        if row.get("effect") and row["effect"] != taint["effect"]:
            continue
        if row.get("key") and row["key"] != taint["key"]:
            continue
        if row.get("operator", "Equal") == "Exists" or (
            row.get("key") and row.get("value", "") == taint.get("value", "")
        ):
            return True
    return False


def _selected(spec: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    fields = {"metadata.name": node["metadata"]["name"]}
    return any(
        all(_expression(row, labels) for row in term.get("matchExpressions") or ())
        and all(_expression(row, fields) for row in term.get("matchFields") or ())
        for term in required["nodeSelectorTerms"]
        if term.get("matchExpressions") or term.get("matchFields")
    )


def _expression(row: Object, labels: Mapping[str, str]) -> bool:
    here, values = labels.get(row["key"]), row.get("values") or []
    match row["operator"]:
        case "In":
            return here in values
        case "NotIn":
            return here not in values
        case "Exists":
            return here is not None
        case "DoesNotExist":
            return here is None
    if here is None or not here.lstrip("-").isdigit():
        return False
    return int(here) > int(values[0]) if row["operator"] == "Gt" else int(here) < int(values[0])


@dataclass
class Steps:
    """What a DaemonSet does next: nodes to make pods for, pods to delete, ended pods to tell of and delete."""

    make: list[str] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    ended: list[Object] = field(default_factory=list)


def manage(item: Object, nodes: Iterable[Object], pods: Iterable[Object], update: str, fine: set[str]) -> Steps:
    """What is missing and what is too much. `fine` are uids of pods that have been ready for long enough."""
    here: dict[str, list[Object]] = {}
    for pod in pods:
        here.setdefault(node_of(pod), []).append(pod)
    steps, surge = Steps(), surge_of(item, len(here)) > 0
    names = set()
    for node in nodes:
        name = node["metadata"]["name"]
        names.add(name)
        there = here.get(name, [])
        run, stay = fits(item, node)
        if run and not there:
            steps.make.append(name)
        elif stay:
            living = []
            for pod in there:
                if is_going(pod):
                    continue
                if is_ended(pod):
                    steps.ended.append(pod)
                else:
                    living.append(pod)
            living.sort(key=lambda pod: (not is_ready(pod), seconds_of(pod["metadata"].get("creationTimestamp"))))
            if len(living) <= 1:
                continue
            if not surge:
                steps.delete += living[1:]
                continue
            new = [pod for pod in living if hash_of(pod) == update]
            old = [pod for pod in living if hash_of(pod) != update]
            steps.delete += new[1:] + old[1:]
            if new and old and new[0]["metadata"]["uid"] in fine:
                steps.delete.append(old[0])
        else:
            steps.delete += [pod for pod in there if not is_going(pod)]
    for name, there in here.items():  # what was made for a node that is gone and is not bound anywhere
        if name not in names:
            steps.delete += [pod for pod in there if not pod["spec"].get("nodeName") and not is_going(pod)]
    return steps


def _born(pod: Object) -> tuple[float, str]:
    return seconds_of(pod["metadata"].get("creationTimestamp")), pod["metadata"]["name"]


def hash_of(pod: Object) -> str:
    """The letters of the revision the pod is of."""
    return str((pod["metadata"].get("labels") or {}).get(revisions.LABEL, ""))


def surge_of(item: Object, wanted: int) -> int:
    """How many nodes may have two pods amid a roll-out."""
    strategy = item["spec"].get("updateStrategy") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return 0
    return share_of((strategy.get("rollingUpdate") or {}).get("maxSurge", 0), wanted, up=True)


def roll(item: Object, nodes: Iterable[Object], pods: Iterable[Object], update: str, fine: set[str]) -> Steps:
    """What a roll-out deletes now, or makes where it may surge."""
    strategy = item["spec"].get("updateStrategy") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return Steps()
    wanted = [node["metadata"]["name"] for node in nodes if fits(item, node)[0]]
    surge = surge_of(item, len(wanted))
    given = (strategy.get("rollingUpdate") or {}).get("maxUnavailable", 1)
    budget = share_of(given, len(wanted), up=True)
    if not surge and not budget:
        budget = 1
    here: dict[str, list[Object]] = {}
    for pod in pods:
        here.setdefault(node_of(pod), []).append(pod)
    lacking = 0
    at_once: list[Object] = []
    candidates: list[Object] = []
    made: list[str] = []
    surging = 0
    for name in wanted:
        there = [pod for pod in here.get(name, ()) if not is_ended(pod)]
        new = [pod for pod in there if hash_of(pod) == update and not is_going(pod)]
        old = [pod for pod in there if hash_of(pod) != update]
        if surge:
            if new and old:
                surging += 1
            elif old and not new and not is_going(old[0]):
                (at_once if old[0]["metadata"]["uid"] not in fine else candidates).append(old[0])
            continue
        if new or not old:
            lacking += not new or new[0]["metadata"]["uid"] not in fine
        elif is_going(old[0]):
            lacking += 1
        elif old[0]["metadata"]["uid"] not in fine:
            lacking += 1
            at_once.append(old[0])
        else:
            candidates.append(old[0])
    if surge:
        room = max(0, surge - surging)
        made = [node_of(pod) for pod in [*at_once, *candidates][:room]]
        return Steps(make=made)
    return Steps(delete=[*at_once, *candidates[: max(0, budget - lacking)]])


def status_of(
    item: Object, nodes: Iterable[Object], pods: Iterable[Object], update: str, fine: set[str], *, collisions: int = 0
) -> Object:
    """The status of a DaemonSet with these pods on these nodes."""
    here: dict[str, list[Object]] = {}
    for pod in pods:
        here.setdefault(node_of(pod), []).append(pod)
    wanted = current = wrong = ready = available = updated = 0
    for node in nodes:
        there = here.get(node["metadata"]["name"], [])
        if not fits(item, node)[0]:
            wrong += bool(there)
            continue
        wanted += 1
        if not there:
            continue
        current += 1
        first = min(there, key=lambda pod: (hash_of(pod) != update, _born(pod)))
        ready += is_ready(first)
        available += is_ready(first) and first["metadata"]["uid"] in fine
        updated += hash_of(first) == update
    status: Object = {
        "currentNumberScheduled": current,
        "numberMisscheduled": wrong,
        "desiredNumberScheduled": wanted,
        "numberReady": ready,
        "observedGeneration": item["metadata"].get("generation", 1),
    }
    more = {"updatedNumberScheduled": updated, "numberAvailable": available, "numberUnavailable": wanted - available}
    status |= {key: value for key, value in more.items() if value}
    if collisions:
        status["collisionCount"] = collisions
    return status


# --- work ---------------------------------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """Keeps every DaemonSet's pods until cancelled."""
    items, pods, nodes = context.cache(PATH), context.pods, context.nodes
    history = context.cache(revisions.PATH)
    await context.synced(items, pods, nodes, history)
    orphans, known = Orphans(pods), {name: _traits(node) for (_, name), node in nodes.items.items()}
    work = _Keeper(context, items, history, orphans, Announcer(context, COMPONENT), Timers(context))

    def of_node(node: Object) -> Iterable[Key]:
        """Every set, when a node came, went, or changed what decides where daemons run."""
        name = node["metadata"]["name"]
        traits = _traits(node) if ("", name) in nodes.items else None
        if known.get(name) == traits:
            return []
        known[name] = traits
        return list(items.items)

    also = [
        (pods, owner_keys("DaemonSet")),
        (pods, orphans.keys_for(items)),
        (nodes, of_node),
        (work.timers, Timers.keys),
    ]
    await reconcile(context, items, work, also=also, workers=2)


def _traits(node: Object) -> object:
    return str(node["metadata"].get("labels")), str(node["spec"].get("taints")), node["metadata"]["uid"]


@dataclass
class _Keeper:
    """One DaemonSet at a time, brought nearer to its spec."""

    context: Context
    items: Cache
    history: Cache
    orphans: Orphans
    told: Announcer
    timers: Timers
    ends: dict[tuple[Key, str], int] = field(default_factory=dict)

    async def __call__(self, key: Key, item: Object | None) -> float | None:
        if item is None:
            self.timers.forget(key)
            return None
        selector = item["spec"].get("selector") or {}
        if not (selector.get("matchLabels") or selector.get("matchExpressions")):
            said = "This daemon set is selecting all pods. A non-empty selector is required."
            self.told.say(item, "SelectingAll", said, kind="Warning")
            return None
        if "deletionTimestamp" in item["metadata"]:
            return None
        known, update, collisions = await revisions.history(self.context, item, self.history)
        letters = revisions.hash_of(update)
        mine = await claim(self.context, item, self.context.pods, self.orphans, "pods")
        refused = await self._take(
            key, item, manage(item, self._nodes(), mine, letters, self._fine(item, mine)), letters
        )
        if refused is None:
            mine = self.context.pods.owned_by(item)
            steps = roll(item, self._nodes(), mine, letters, self._fine(item, mine))
            refused = await self._take(key, item, steps, letters)
        mine = self.context.pods.owned_by(item)
        fine = self._fine(item, mine)
        status = status_of(item, self._nodes(), mine, letters, fine, collisions=collisions)
        path = f"/apis/apps/v1/namespaces/{key[0]}/daemonsets/{key[1]}"
        await put_status(self.context, path, item, status, self.items)
        live = {row["metadata"]["name"] for row in known if revisions.hash_of(row) in {hash_of(pod) for pod in mine}}
        await revisions.truncate(self.context, item, known, live | {update["metadata"]["name"]})
        if refused is not None:
            raise refused
        return None

    def _nodes(self) -> list[Object]:
        return [self.context.nodes.items[key] for key in sorted(self.context.nodes.items)]

    def _fine(self, item: Object, pods: Iterable[Object]) -> set[str]:
        seconds, now = item["spec"].get("minReadySeconds", 0), self.context.clock.now()
        return {pod["metadata"]["uid"] for pod in pods if available_now(key_of(item), pod, seconds, self.timers, now)}

    async def _take(self, key: Key, item: Object, steps: Steps, letters: str) -> Refused | None:
        delete = list(steps.delete)
        for pod in steps.ended:
            if self._may_end(key, pod):
                failed = phase_of(pod) == "Failed"
                name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                what = "failed" if failed else "succeeded"
                ending = "will try to kill it" if failed else "will try to delete it"
                said = f"Found {what} daemon pod {name} on node {node_of(pod)}, {ending}"
                reason = "FailedDaemonPod" if failed else "SucceededDaemonPod"
                self.told.say(item, reason, said, kind="Warning" if failed else "Normal")
                delete.append(pod)
        if steps.make:
            places: Sequence[str] = steps.make[:BURST]

            async def make(number: int) -> Object:
                try:
                    made = await self.context.client.create(pods_path(item), made_pod(item, places[number], letters))
                except Refused as refused:
                    self.told.say(item, "FailedCreate", f"Error creating: {refused.message}", kind="Warning")
                    raise
                self.told.say(item, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")
                return made

            made, refused = await slow_start(len(places), make)
            await seen(self.context.pods, made)
            if refused is not None:
                return None if "because it is being terminated" in refused.message else refused
        if delete:
            gone, refused = await delete_pods(self.context, delete)
            for pod in gone:
                self.told.say(item, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
            return refused
        return None

    def _may_end(self, key: Key, pod: Object) -> bool:
        """Whether an ended pod may be replaced now: at once the first time on a node, then after growing pauses."""
        place = (key, node_of(pod))
        count = self.ends.get(place, 0)
        since = seconds_of(pod["metadata"].get("creationTimestamp"))
        pause = min(BACK_OFF_FIRST * 2 ** (count - 1), BACK_OFF_MOST) if count else 0.0
        if pause and not self.timers.passed(key, f"ended/{pod['metadata']['uid']}", since, pause, real=0.2):
            return False
        self.ends[place] = count + 1
        return True
