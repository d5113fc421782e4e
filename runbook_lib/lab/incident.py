"""How an incident came about: causes on the lab's clock, from a healthy lab; what follows is the controllers' work.

A scenario's `incident:` holds

causes:                        # what was done or happened, in order; `at` in lab seconds from the beginning
  - {at: 60, says: …, kubernetes: {method: PATCH, path: …, body: …}}
  - {at: 90, says: …, delete_pods: {namespace: …, labels: {…}}}
  - {at: 120, says: …, proxmox: {method: POST, path: …, body: …}}
  - {at: 150, says: …, world: {node_faults: {worker-2: network}}}
  - {at: 180, says: …, fault: {system: …, …}}
cures: […]                     # the same, for what an engineer does about it
follows: [{where: …, words: …}]  # what is to be seen afterwards, in this order
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

import aiohttp

from .kubernetes.controllers.client import Refused
from .kubernetes.controllers.proxmox import ProxmoxRefused

log = logging.getLogger(__name__)

VERBS = ("kubernetes", "delete_pods", "proxmox", "world", "fault")
EVIDENCE = ("event", "condition", "pod", "restarts", "log", "task", "node", "endpoints")
"""Where the traces of an incident can be seen."""


@dataclass(frozen=True)
class Cause:
    """One thing that happens at a moment: `verb` with its arguments."""

    at: float
    says: str
    verb: str
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """Words that are to be seen somewhere (see EVIDENCE) once the incident has grown."""

    where: str
    words: str


@dataclass(frozen=True)
class Incident:
    """What a scenario tells of how it came about and how it ends."""

    causes: tuple[Cause, ...] = ()
    cures: tuple[Cause, ...] = ()
    follows: tuple[Trace, ...] = ()


class Sleeper(Protocol):
    """The lab's clock."""

    async def sleep(self, seconds: float) -> None:
        """Returns after so many seconds of the lab."""
        ...


@dataclass(frozen=True)
class Hands:
    """How things are done in the lab: requests as JSON over both APIs, the world outside, faults."""

    kubernetes: Callable[[str, str, Any, str], Awaitable[Any]]
    proxmox: Callable[[str, str, Mapping[str, Any]], Awaitable[Any]]
    world: Callable[[Mapping[str, Any]], None]
    fault: Callable[[Mapping[str, Any]], None]
    told: list[str] = field(default_factory=list)


def incident_from(entry: Mapping[str, Any]) -> Incident:
    """The incident a scenario describes; raises ValueError for what it cannot mean."""
    unknown = set(entry) - {"causes", "cures", "follows"}
    if unknown:
        raise ValueError(f"incident: no such key: {', '.join(sorted(unknown))}; known are causes, cures, follows")
    traces = tuple(Trace(str(row["where"]), str(row["words"])) for row in entry.get("follows") or ())
    for trace in traces:
        if trace.where not in EVIDENCE:
            raise ValueError(f"incident: nothing is seen in {trace.where}; known are {', '.join(EVIDENCE)}")
    return Incident(_causes(entry.get("causes") or ()), _causes(entry.get("cures") or ()), traces)


def _causes(rows: Iterable[Mapping[str, Any]]) -> tuple[Cause, ...]:
    found = []
    for row in rows:
        verbs = [verb for verb in VERBS if verb in row]
        if len(verbs) != 1 or set(row) - {"at", "says", *VERBS}:
            raise ValueError(f"incident: one of {', '.join(VERBS)} with at and says, not {', '.join(map(str, row))}")
        found.append(Cause(float(row.get("at", 0)), str(row.get("says", "")), verbs[0], row[verbs[0]]))
    if [row.at for row in found] != sorted(row.at for row in found):
        raise ValueError("incident: causes are told in the order of their time")
    return tuple(found)


async def unfold(causes: Iterable[Cause], hands: Hands, clock: Sleeper) -> None:
    """Returns when everything was done that the causes say, each at its time. What is refused is logged."""
    passed = 0.0
    for cause in causes:
        await clock.sleep(cause.at - passed)
        passed = max(passed, cause.at)
        try:
            await act(cause, hands)
        except (Refused, ProxmoxRefused, aiohttp.ClientError, OSError, LookupError, ValueError) as error:
            log.warning("incident: %s: %s", cause.says or cause.verb, error)
        hands.told.append(cause.says)


async def act(cause: Cause, hands: Hands) -> None:
    """Nothing; it is done."""
    given = cause.given
    if cause.verb == "world":
        hands.world(given)
    elif cause.verb == "fault":
        hands.fault(given)
    elif cause.verb == "proxmox":
        await hands.proxmox(str(given.get("method", "POST")), str(given["path"]), given.get("body") or {})
    elif cause.verb == "kubernetes":
        kind = str(given.get("type", "application/merge-patch+json"))
        await hands.kubernetes(str(given.get("method", "PATCH")), str(given["path"]), given.get("body"), kind)
    else:
        await _delete_pods(given, hands)


async def _delete_pods(given: Mapping[str, Any], hands: Hands) -> None:
    path = f"/api/v1/namespaces/{given['namespace']}/pods"
    rows = (await hands.kubernetes("GET", path, None, ""))["items"]
    for row in rows:
        metadata = row["metadata"]
        labels, phase = metadata.get("labels") or {}, row.get("status", {}).get("phase")
        if (
            fnmatchcase(metadata["name"], given.get("name", "*"))
            and all(labels.get(key) == value for key, value in (given.get("labels") or {}).items())
            and phase in given.get("phases", (phase,))
        ):
            await hands.kubernetes("DELETE", f"{path}/{metadata['name']}", None, "")


def shown(incident: Incident) -> str:
    """The causes as a person reads them, one a line."""
    return "\n".join(f"+{cause.at:.0f}s {cause.says or json.dumps(dict(cause.given))}" for cause in incident.causes)
