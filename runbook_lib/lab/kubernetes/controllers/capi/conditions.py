"""Both kinds of conditions that Cluster API writes: its own with a severity, and those of metav1; pure judgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

NEGATIVE = frozenset({"Deleting", "Paused", "RollingOut", "Remediating", "ScalingUp", "ScalingDown", "Updating"})
"""Conditions of the new kind that are bad when they are true."""
ORDER = (
    "Available", "Ready", "UpToDate", "RemoteConnectionProbe", "BootstrapConfigReady", "InfrastructureReady",
    "ControlPlaneInitialized", "ControlPlaneAvailable", "WorkersAvailable", "NodeHealthy", "NodeReady",
    "HealthCheckSucceeded", "OwnerRemediated", "RollingOut", "Remediating", "ScalingDown", "ScalingUp",
    "CertificatesAvailable", "EtcdClusterHealthy", "ControlPlaneComponentsHealthy",
    "APIServerPodHealthy", "ControllerManagerPodHealthy", "SchedulerPodHealthy", "EtcdPodHealthy", "EtcdMemberHealthy",
    "MachinesReady", "ControlPlaneMachinesReady", "WorkerMachinesReady", "MachinesUpToDate",
    "ControlPlaneMachinesUpToDate", "WorkerMachinesUpToDate", "Updating", "Paused", "Deleting",
)  # fmt: skip
NO_INFO = "No additional info provided"


@dataclass
class Conditions:
    """The conditions of one object while they are judged. `old` carry a severity, `new` a generation."""

    now: str
    generation: int = 0
    old: dict[str, Object] = field(default_factory=dict)
    new: dict[str, Object] = field(default_factory=dict)

    def mark(self, kind: str, reason: str = "", message: str = "", *, severity: str = "", ok: bool = False) -> None:
        """Nothing; the old condition is true (`ok`, or no reason) or false for a reason."""
        body: Object = {"type": kind, "status": "True" if ok or not reason else "False"}
        if severity and body["status"] == "False":
            body["severity"] = severity
        body |= {key: value for key, value in (("reason", reason), ("message", message)) if value}
        known = self.old.get(kind)
        same = known is not None and {**known, "lastTransitionTime": ""} == {**body, "lastTransitionTime": ""}
        self.old[kind] = known if same and known else {**body, "lastTransitionTime": self.now}

    def drop(self, *kinds: str) -> None:
        """Nothing; these conditions are of neither kind any more."""
        for kind in kinds:
            self.old.pop(kind, None)
            self.new.pop(kind, None)

    def put(self, kind: str, status: str | bool, reason: str, message: str = "") -> None:
        """Nothing; the new condition has this status, reason and message."""
        status = str(status)
        known = self.new.get(kind, {})
        since = known["lastTransitionTime"] if known.get("status") == status else self.now
        self.new[kind] = {
            "type": kind,
            "status": status,
            "observedGeneration": self.generation,
            "lastTransitionTime": since,
            "reason": reason,
            "message": message,
        }

    def of(self, kind: str) -> Object:
        """The new condition, or an empty one."""
        return self.new.get(kind, {})

    def mirror(self, kind: str, source: Mapping[str, Any], ready: bool, fallback: str) -> None:
        """Nothing; the old condition repeats the `Ready` of a referenced object, or tells its readiness."""
        found = _ready(source)
        if found is None:
            self.mark(kind, "" if ready else fallback, severity="Info")
            return
        status = found.get("status")
        self.mark(
            kind, found.get("reason", ""), found.get("message", ""), severity=found.get("severity", ""),
            ok=status == "True",
        )  # fmt: skip

    def mirror_new(self, kind: str, source: Mapping[str, Any], ready: bool, name: str, path: str) -> None:
        """Nothing; the new condition repeats the `Ready` of a referenced object, or tells its readiness."""
        found = _ready(source)
        if found is None:
            said = "" if ready else f"{name} {path} is {str(ready).lower()}"
            self.put(kind, ready, "Ready" if ready else "NotReady", said)
            return
        status = str(found.get("status", "Unknown"))
        reason = found.get("reason") or ("Ready" if status == "True" else "NoReasonReported")
        self.put(kind, status, reason, found.get("message", ""))

    def summarize(self, *kinds: str, steps: int = 0, target: str = "Ready") -> None:
        """Nothing; the old `Ready` is the worst of these, with how many steps are done when there are steps."""
        present = [self.old[kind] for kind in kinds if kind in self.old]
        if not present:
            return
        bad = [entry for entry in present if entry["status"] != "True"]
        if not bad:
            self.mark(target, "", "")
            return
        rank = {"Error": 0, "Warning": 1, "Info": 2}
        worst = min(bad, key=lambda entry: rank.get(entry.get("severity", ""), 3))
        message = worst.get("message", "")
        if steps:
            message = f"{len(present) - len(bad)} of {steps} completed"
        self.mark(target, worst.get("reason", ""), message, severity=worst.get("severity", ""))

    def summarize_new(
        self,
        kinds: Sequence[str],
        *,
        target: str = "Ready",
        reasons: tuple[str, str, str] = ("Ready", "NotReady", "ReadyUnknown"),
        optional: Iterable[str] = (),
        told: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing; the new `Ready` joins these conditions, `told` replacing a message."""
        false, unknown, messages = 0, 0, []
        for kind in kinds:
            entry = self.new.get(kind)
            if entry is None and kind in optional:
                continue
            status = (entry or {"status": "Unknown"})["status"]
            good = "False" if kind in NEGATIVE else "True"
            if status == good:
                continue
            said = (
                (told or {}).get(kind)
                or (entry or {}).get("message")
                or ("" if entry else "Condition not yet reported")
            )
            messages.append(f"* {kind}:{_indented(said or NO_INFO)}")
            false, unknown = false + (status != "Unknown"), unknown + (status == "Unknown")
        status, reason = (
            ("False", reasons[1]) if false else ("Unknown", reasons[2]) if unknown else ("True", reasons[0])
        )
        self.put(target, status, reason, "\n".join(messages))

    def lists(self) -> tuple[list[Object], list[Object]]:
        """The old conditions, Ready first and the rest by name; the new ones in Cluster API's order."""
        old = sorted(self.old.values(), key=lambda entry: (entry["type"] != "Ready", entry["type"]))
        place = {kind: number for number, kind in enumerate(ORDER)}
        new = sorted(self.new.values(), key=lambda entry: (place.get(entry["type"], len(ORDER)), entry["type"]))
        return old, new


def _indented(message: str) -> str:
    if message.startswith("* "):
        return "\n" + "\n".join(f"  {line}" for line in message.splitlines())
    return f" {message}"


def _ready(source: Mapping[str, Any]) -> Object | None:
    status = source.get("status") or {}
    newer = (status.get("v1beta2") or {}).get("conditions") or ()
    for entry in (*newer, *(status.get("conditions") or ())):
        if entry.get("type") == "Ready":
            return dict(entry)
    return None


def aggregate(machines: Iterable[Object], kind: str) -> tuple[str, str]:
    """(status, message) of one new condition over many machines, grouped by message as Cluster API shows it."""
    false, unknown = False, False
    groups: dict[str, list[str]] = {}
    for machine in machines:
        entry = new_of(machine).get(kind, {"status": "Unknown", "message": f"Condition {kind} not yet reported"})
        if entry["status"] == "True":
            continue
        false, unknown = false or entry["status"] == "False", unknown or entry["status"] == "Unknown"
        groups.setdefault(entry.get("message") or NO_INFO, []).append(machine["metadata"]["name"])
    lines = []
    for said, names in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[1])):
        shown = ", ".join(sorted(names)[:3]) + (f", ... ({len(names) - 3} more)" if len(names) > 3 else "")
        lines.append(f"* Machine{'s' if len(names) > 1 else ''} {shown}:{_indented(said)}")
    return "False" if false else "Unknown" if unknown else "True", "\n".join(lines)


def new_of(item: Mapping[str, Any]) -> dict[str, Object]:
    """The metav1 conditions of an object by type, whichever version it is written in."""
    status = item.get("status") or {}
    rows = (status.get("v1beta2") or {}).get("conditions")
    if rows is None:
        rows = [entry for entry in status.get("conditions") or () if "severity" not in entry]
        if item.get("apiVersion", "").endswith("/v1beta1"):
            rows = []
    return {entry["type"]: entry for entry in rows}


def old_of(item: Mapping[str, Any]) -> dict[str, Object]:
    """The conditions with a severity of an object by type, whichever version it is written in."""
    status = item.get("status") or {}
    deprecated = (status.get("deprecated") or {}).get("v1beta1") or {}
    if item.get("apiVersion", "").endswith("/v1beta2"):
        return {entry["type"]: entry for entry in deprecated.get("conditions") or ()}
    return {entry["type"]: entry for entry in status.get("conditions") or ()}


def read(item: Mapping[str, Any], now: str) -> Conditions:
    """The conditions an object has, to be judged anew."""
    generation = item["metadata"].get("generation", 0)
    return Conditions(now, generation, dict(old_of(item)), dict(new_of(item)))


def write(item: Mapping[str, Any], status: Object, conditions: Conditions) -> Object:
    """The status with the conditions where the object's API version keeps them."""
    old, new = conditions.lists()
    if item["apiVersion"].endswith("/v1beta2"):
        deprecated = dict((status.get("deprecated") or {}).get("v1beta1") or {})
        if old:
            deprecated["conditions"] = old
        rest = {"deprecated": {"v1beta1": deprecated}} if deprecated else {}
        return {**status, **rest, "conditions": new}
    newer: Object = {"v1beta2": {**(status.get("v1beta2") or {}), "conditions": new}}
    return {**status, **({"conditions": old} if old else {}), **newer}
