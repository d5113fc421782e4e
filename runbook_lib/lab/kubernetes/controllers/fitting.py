"""Whether a pod fits a node, why not, and how well: the scheduler's filters and scores. Pure judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .matching import expression, matches
from .quantities import number, requests_of
from .volumes import claim_name

Object = dict[str, Any]
Find = Callable[[str, str, str], "Object | None"]
"""(kind, namespace, name) → a claim, volume, StorageClass, CSINode or Namespace."""
NO_PROVISIONER = "kubernetes.io/no-provisioner"
ZONES = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")


@dataclass(frozen=True)
class Refusal:
    """Why a node does not take a pod. `curable` where taking other pods away might help."""

    reasons: tuple[str, ...]
    curable: bool = False


@dataclass
class Board:
    """Nodes and the pods on them, as the scheduler sees them at one moment."""

    nodes: list[Object]
    pods: dict[str, list[Object]] = field(default_factory=dict)
    find: Find = field(default=lambda *_: None)
    volumes: Sequence[Object] = ()
    _sums: dict[str, dict[str, float]] = field(default_factory=dict)

    def used(self, node: str) -> dict[str, float]:
        """What the pods of a node ask for together."""
        if node not in self._sums:
            total: dict[str, float] = {}
            for pod in self.pods.get(node, ()):
                for name, value in requests_of(pod).items():
                    total[name] = total.get(name, 0.0) + value
            self._sums[node] = total
        return self._sums[node]

    def without(self, node: str, gone: Iterable[str]) -> Board:
        """The board after the pods with these uids left the node."""
        uids = set(gone)
        left = [pod for pod in self.pods.get(node, ()) if pod["metadata"].get("uid") not in uids]
        sums = {name: value for name, value in self._sums.items() if name != node}
        return Board(self.nodes, {**self.pods, node: left}, self.find, self.volumes, sums)


@dataclass
class Judge:
    """One pod's demands, counted once over the board, and asked of each node."""

    pod: Object
    board: Board

    def __post_init__(self) -> None:
        self.labels = {node["metadata"]["name"]: node["metadata"].get("labels") or {} for node in self.board.nodes}
        affinity = self.pod["spec"].get("affinity") or {}
        self.near = _terms(affinity.get("podAffinity"))
        self.far = _terms(affinity.get("podAntiAffinity"))
        self.near_counts = [self._counted(term) for term in self.near]
        self.far_counts = [self._counted(term) for term in self.far]
        self.repelled = self._repelled()
        self.spreads = [self._spread(entry) for entry in self.pod["spec"].get("topologySpreadConstraints") or ()]

    # -- what holds for the whole pod ------------------------------------------------------------

    def hopeless(self) -> str:
        """Why no node at all will do, whatever they are like; empty when one may."""
        space, find = self.pod["metadata"].get("namespace", "default"), self.board.find
        for volume in self.pod["spec"].get("volumes") or ():
            name = claim_name(self.pod, volume)
            if not name:
                continue
            claim = find("PersistentVolumeClaim", space, name)
            if claim is None:
                if "ephemeral" in volume:
                    return f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{name}"'
                return f'persistentvolumeclaim "{name}" not found'
            if "deletionTimestamp" in claim["metadata"]:
                return f'persistentvolumeclaim "{name}" is being deleted'
            if claim.get("status", {}).get("phase") == "Lost":
                bound = claim["spec"].get("volumeName", "")
                return f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{bound}"'
            if not is_bound(claim) and not self._waits(claim):
                return "pod has unbound immediate PersistentVolumeClaims"
        return ""

    def _waits(self, claim: Object) -> bool:
        item = self.board.find("StorageClass", "", claim["spec"].get("storageClassName") or "")
        return item is not None and item.get("volumeBindingMode") == "WaitForFirstConsumer"

    # -- filters, in the scheduler's order -------------------------------------------------------

    def refusal(self, node: Object) -> Refusal | None:
        """Why the pod cannot go there, in the scheduler's words; None when it can."""
        spec, name = self.pod["spec"], node["metadata"]["name"]
        tolerations = spec.get("tolerations") or ()
        unschedulable = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
        if node["spec"].get("unschedulable") and not tolerated(unschedulable, tolerations):
            return Refusal(("node(s) were unschedulable",))
        for taint in node["spec"].get("taints") or ():
            if taint["effect"] in {"NoSchedule", "NoExecute"} and not tolerated(taint, tolerations):
                return Refusal((f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}",))
        if not selected(spec, node):
            return Refusal(("node(s) didn't match Pod's node affinity/selector",))
        if self._port_taken(name):
            return Refusal(("node(s) didn't have free ports for the requested pod ports",), curable=True)
        if lacking := self._lacking(node):
            return Refusal(lacking, curable=True)
        return self._by_volumes(node) or self._by_spread(name) or self._by_neighbours(name)

    def _port_taken(self, node: str) -> bool:
        wanted = _host_ports(self.pod)
        return bool(wanted) and any(wanted & _host_ports(other) for other in self.board.pods.get(node, ()))

    def _lacking(self, node: Object) -> tuple[str, ...]:
        name, allocatable = node["metadata"]["name"], node["status"].get("allocatable") or {}
        found = []
        if len(self.board.pods.get(name, ())) >= number(allocatable.get("pods", "110")):
            found.append("Too many pods")
        used = self.board.used(name)
        for resource, wanted in requests_of(self.pod).items():
            if wanted and used.get(resource, 0.0) + wanted > number(allocatable.get(resource, "0")) + 1e-9:
                found.append(f"Insufficient {resource}")
        return tuple(found)

    def _by_volumes(self, node: Object) -> Refusal | None:
        space, find = self.pod["metadata"].get("namespace", "default"), self.board.find
        labels, name = self.labels[node["metadata"]["name"]], node["metadata"]["name"]
        fresh: Counter[str] = Counter()
        for volume in self.pod["spec"].get("volumes") or ():
            claim_ = claim_name(self.pod, volume)
            claim = find("PersistentVolumeClaim", space, claim_) if claim_ else None
            if claim is None:
                continue
            if "ReadWriteOncePod" in (claim["spec"].get("accessModes") or ()) and self._claim_used(space, claim_):
                said = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
                return Refusal((said,), curable=True)
            if is_bound(claim):
                held = find("PersistentVolume", "", claim["spec"]["volumeName"])
                if held is None:
                    return Refusal(("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",))
                if not _reaches(held, labels, name):
                    return Refusal(("node(s) didn't match PersistentVolume's node affinity",))
                if any(key in labels and not _zone_fits(held, key, labels[key]) for key in ZONES):
                    return Refusal(("node(s) had no available volume zone",))
                if driver := held["spec"].get("csi", {}).get("driver"):
                    fresh[driver] += 1
            elif refused := self._unbound(claim, labels, name):
                return refused
        return self._too_many(name, fresh)

    def _claim_used(self, space: str, name: str) -> bool:
        return any(
            claim_name(other, volume) == name
            for pods in self.board.pods.values()
            for other in pods
            if other["metadata"].get("namespace") == space
            for volume in other["spec"].get("volumes") or ()
        )

    def _unbound(self, claim: Object, labels: Mapping[str, str], node: str) -> Refusal | None:
        chosen = (claim["metadata"].get("annotations") or {}).get("volume.kubernetes.io/selected-node", "")
        if chosen and chosen != node:
            return Refusal(("node(s) didn't match PersistentVolume's node affinity",))
        class_name = claim["spec"].get("storageClassName") or ""
        item = self.board.find("StorageClass", "", class_name) or {}
        terms = item.get("allowedTopologies") or ()
        wanted = number(claim["spec"].get("resources", {}).get("requests", {}).get("storage", "0"))
        free = any(
            held["spec"].get("storageClassName", "") == class_name
            and held.get("status", {}).get("phase") == "Available"
            and number(held["spec"]["capacity"]["storage"]) >= wanted
            and _reaches(held, labels, node)
            for held in self.board.volumes
        )
        if free:
            return None
        fits = not terms or any(
            all(labels.get(row["key"]) in row["values"] for row in term.get("matchLabelExpressions") or ())
            for term in terms
        )
        if item.get("provisioner") == NO_PROVISIONER or not fits:
            return Refusal(("node(s) didn't find available persistent volumes to bind",))
        return None

    def _too_many(self, node: str, fresh: Counter[str]) -> Refusal | None:
        rows = (self.board.find("CSINode", "", node) or {"spec": {}})["spec"].get("drivers") or ()
        for row in rows:
            most = (row.get("allocatable") or {}).get("count")
            if most is None or not fresh[row["name"]]:
                continue
            held = set()
            for other in self.board.pods.get(node, ()):
                for volume in other["spec"].get("volumes") or ():
                    claim_ = claim_name(other, volume)
                    claim = claim_ and self.board.find("PersistentVolumeClaim", other["metadata"]["namespace"], claim_)
                    if claim and is_bound(claim):
                        held.add(claim["spec"]["volumeName"])
            if len(held) + fresh[row["name"]] > most:
                return Refusal(("node(s) exceed max volume count",), curable=True)
        return None

    # -- neighbours ------------------------------------------------------------------------------

    def _counted(self, term: Object) -> Counter[str]:
        """How many pods that the term means are in each domain of its topology key."""
        key, found = term["topologyKey"], Counter[str]()
        for node, pods in self.board.pods.items():
            domain = self.labels.get(node, {}).get(key)
            if domain is not None:
                found[domain] += sum(1 for other in pods if self._meant(term, self.pod, other))
        return found

    def _meant(self, term: Object, by: Object, other: Object) -> bool:
        space = other["metadata"].get("namespace", "default")
        spaces = term.get("namespaces") or ()
        chosen = term.get("namespaceSelector")
        if chosen is not None:
            held = (self.board.find("Namespace", "", space) or {"metadata": {}})["metadata"].get("labels") or {}
            if not matches(chosen, held) and space not in spaces:
                return False
        elif space not in (spaces or (by["metadata"].get("namespace", "default"),)):
            return False
        return matches(term.get("labelSelector"), other["metadata"].get("labels") or {})

    def _repelled(self) -> set[tuple[str, str]]:
        """The domains in which pods are that want this one far away."""
        found = set()
        for node, pods in self.board.pods.items():
            for other in pods:
                for term in _terms((other["spec"].get("affinity") or {}).get("podAntiAffinity")):
                    domain = self.labels.get(node, {}).get(term["topologyKey"])
                    if domain is not None and self._meant(term, other, self.pod):
                        found.add((term["topologyKey"], domain))
        return found

    def _by_neighbours(self, node: str) -> Refusal | None:
        labels = self.labels[node]
        for term, counts in zip(self.near, self.near_counts, strict=True):
            here = labels.get(term["topologyKey"])
            first = not sum(counts.values()) and self._meant(term, self.pod, self.pod)
            if here is None or (not counts[here] and not first):
                return Refusal(("node(s) didn't match pod affinity rules",))
        for term, counts in zip(self.far, self.far_counts, strict=True):
            here = labels.get(term["topologyKey"])
            if here is not None and counts[here]:
                return Refusal(("node(s) didn't match pod anti-affinity rules",), curable=True)
        if any(labels.get(key) == domain for key, domain in self.repelled):
            return Refusal(("node(s) didn't satisfy existing pods anti-affinity rules",), curable=True)
        return None

    def _spread(self, entry: Object) -> tuple[Object, Counter[str]]:
        """A constraint and how many of its pods each eligible domain has."""
        found: Counter[str] = Counter()
        space, own = self.pod["metadata"].get("namespace", "default"), self.pod["metadata"].get("labels") or {}
        selector = dict(entry.get("labelSelector") or {})
        keys = {key: own[key] for key in entry.get("matchLabelKeys") or () if key in own}
        selector["matchLabels"] = {**(selector.get("matchLabels") or {}), **keys}
        for node in self.board.nodes:
            name = node["metadata"]["name"]
            domain = self.labels[name].get(entry["topologyKey"])
            if domain is None or (
                entry.get("nodeAffinityPolicy", "Honor") == "Honor" and not selected(self.pod["spec"], node)
            ):
                continue
            found[domain] += sum(
                1
                for other in self.board.pods.get(name, ())
                if other["metadata"].get("namespace", "default") == space
                and "deletionTimestamp" not in other["metadata"]
                and matches(selector, other["metadata"].get("labels") or {})
            )
        return {**entry, "labelSelector": selector}, found

    def _by_spread(self, node: str) -> Refusal | None:
        labels = self.labels[node]
        for entry, counts in self.spreads:
            if entry.get("whenUnsatisfiable") == "ScheduleAnyway":
                continue
            here = labels.get(entry["topologyKey"])
            said = "node(s) didn't match pod topology spread constraints"
            if here is None:
                return Refusal((f"{said} (missing required label)",))
            least = min(counts.values(), default=0) if len(counts) >= entry.get("minDomains", 1) else 0
            own = matches(entry["labelSelector"], self.pod["metadata"].get("labels") or {})
            if counts[here] + int(own) - least > entry["maxSkew"]:
                return Refusal((said,), curable=True)
        return None

    # -- scores ----------------------------------------------------------------------------------

    def score(self, node: Object) -> float:
        """Lower is better: the CPU's share after placement, and what the pod would rather not have there."""
        name, labels = node["metadata"]["name"], self.labels[node["metadata"]["name"]]
        cores = number(node["status"].get("allocatable", {}).get("cpu", "1")) or 1.0
        asked = requests_of(self.pod).get("cpu", 0.0)
        total = (self.board.used(name).get("cpu", 0.0) + asked) / cores
        owners = {entry["uid"] for entry in self.pod["metadata"].get("ownerReferences") or ()}
        total += sum(
            1
            for other in self.board.pods.get(name, ())
            if owners & {entry["uid"] for entry in other["metadata"].get("ownerReferences") or ()}
        )
        for taint in node["spec"].get("taints") or ():
            if taint["effect"] == "PreferNoSchedule" and not tolerated(
                taint, self.pod["spec"].get("tolerations") or ()
            ):
                total += 3
        for entry, counts in self.spreads:
            if entry.get("whenUnsatisfiable") == "ScheduleAnyway":
                total += 2 * counts[labels.get(entry["topologyKey"], "")]
        return total - self._preferences(name, labels)

    def _preferences(self, name: str, labels: Mapping[str, str]) -> float:
        affinity, total = self.pod["spec"].get("affinity") or {}, 0.0
        for entry in (affinity.get("nodeAffinity") or {}).get(_PREFERRED) or ():
            if _term(entry["preference"], labels, name):
                total += entry["weight"] / 10
        for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
            for entry in (affinity.get(kind) or {}).get(_PREFERRED) or ():
                term = entry["podAffinityTerm"]
                here = labels.get(term["topologyKey"])
                if here is not None:
                    total += sign * entry["weight"] / 10 * min(self._counted(term)[here], 5)
        return total


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def is_bound(claim: Object) -> bool:
    """Whether a claim has its volume."""
    return bool(claim["spec"].get("volumeName")) and claim.get("status", {}).get("phase") == "Bound"


def tolerated(taint: Mapping[str, Any], tolerations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the tolerations fits the taint."""
    for entry in tolerations:
        if entry.get("effect") and entry["effect"] != taint["effect"]:
            continue
        if entry.get("operator") == "Exists" and entry.get("key", taint["key"]) in {taint["key"], ""}:
            return True
        if entry.get("key") == taint["key"] and entry.get("value", "") == (taint.get("value") or ""):
            return True
    return False


def selected(spec: Object, node: Object) -> bool:
    """Whether the node is one that the pod's selector and required affinity mean."""
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED)
    name = node["metadata"]["name"]
    return not required or any(_term(term, labels, name) for term in required["nodeSelectorTerms"])


def _term(term: Object, labels: Mapping[str, str], name: str) -> bool:
    by_label, by_field = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not by_label and not by_field:
        return False
    return all(expression(entry, labels) for entry in by_label) and all(
        expression(entry, {"metadata.name": name}) for entry in by_field
    )


def _terms(affinity: Object | None) -> list[Object]:
    return list((affinity or {}).get(_REQUIRED) or ())


def _reaches(volume: Object, labels: Mapping[str, str], node: str) -> bool:
    terms = ((volume["spec"].get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ()
    return not terms or any(_term(term, labels, node) for term in terms)


def _zone_fits(volume: Object, key: str, value: str) -> bool:
    wanted = (volume["metadata"].get("labels") or {}).get(key)
    return wanted is None or value in wanted.split("__")


def _host_ports(pod: Object) -> set[tuple[int, str]]:
    host = pod["spec"].get("hostNetwork")
    return {
        (entry.get("hostPort") or entry["containerPort"], entry.get("protocol", "TCP"))
        for container in pod["spec"]["containers"]
        for entry in container.get("ports") or ()
        if entry.get("hostPort") or host
    }


def explain(refusals: Sequence[Refusal], *, hopeless: str = "", nodes: int = 0, may_preempt: bool = True) -> str:
    """The message of FailedScheduling, as the scheduler writes it."""
    total = nodes or len(refusals)
    if not total:
        return "no nodes available to schedule pods"
    head = f"0/{total} nodes are available:"
    if hopeless:
        tail = f"{total} Preemption is not helpful for scheduling"
        return f"{head} {hopeless}. preemption: {head} {tail}."
    counts = Counter(reason for refusal in refusals for reason in refusal.reasons)
    counted = ", ".join(sorted(f"{count} {why}" for why, count in counts.items()))
    if not may_preempt:
        return f"{head} {counted}. preemption: not eligible due to preemptionPolicy=Never."
    curable = sum(1 for refusal in refusals if refusal.curable)
    parts = [f"{curable} No preemption victims found for incoming pod"] if curable else []
    parts += [f"{total - curable} Preemption is not helpful for scheduling"] if total - curable else []
    return f"{head} {counted}. preemption: {head} {', '.join(sorted(parts))}."
