"""Objects of any kind over HTTP: where a kind is served, putting many objects in place, taking them away again."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .client import Key, KubeClient, Object, Refused

FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount", "Secret", "ConfigMap")
"""What is put in place before all else, in this order."""

FRESH = 3.0  # real seconds in which a kind that was just defined begins to be served


class NoMatch(Exception):
    """The server does not serve the kind; the text is the client library's."""


@dataclass
class Places:
    """Where kinds are served, asked from the server once for each group and version."""

    client: KubeClient
    _rows: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)

    async def find(self, api_version: str, kind: str) -> tuple[str, bool] | None:
        """Plural name, and whether objects lie in namespaces; None for a kind that is not served."""
        if (api_version, kind) not in self._rows:
            listing = await self.client.find(_root(api_version))
            for row in (listing or {}).get("resources") or ():
                if "/" not in row["name"]:
                    self._rows[(api_version, row["kind"])] = (row["name"], bool(row["namespaced"]))
        return self._rows.get((api_version, kind))

    async def path(self, item: Object, *, namespace: str = "default") -> str:
        """Where the object lies or will lie. Raises NoMatch."""
        api_version, kind = item["apiVersion"], item["kind"]
        found = await self.find(api_version, kind)
        if found is None:
            raise NoMatch(f'no matches for kind "{kind}" in version "{api_version}"')
        plural, namespaced = found
        space = f"/namespaces/{item['metadata'].get('namespace') or namespace}" if namespaced else ""
        return f"{_root(api_version)}{space}/{plural}/{item['metadata']['name']}"

    async def namespaced(self, item: Object) -> bool:
        """Whether the object lies in a namespace; of an unknown kind, whether it names one."""
        found = await self.find(item["apiVersion"], item["kind"])
        return found[1] if found else "namespace" in item["metadata"]


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def ordered(objects: Iterable[Object]) -> list[list[Object]]:
    """The objects in waves: each of FIRST by itself, then the rest, and what others must answer for at last."""
    waves: dict[int, list[Object]] = {}
    for item in objects:
        kind = item["kind"]
        late = len(FIRST) + (kind.endswith("WebhookConfiguration"))
        waves.setdefault(FIRST.index(kind) if kind in FIRST else late, []).append(item)
    return [waves[rank] for rank in sorted(waves)]


async def put(places: Places, objects: Sequence[Object], *, manager: str, namespace: str = "default") -> list[Object]:
    """The objects as the server has them after applying each. Raises NoMatch, Refused.

    A kind that was defined in the same breath is waited for.
    """
    defined = {
        (f"{item['spec']['group']}/{version['name']}", item["spec"]["names"]["kind"])
        for item in objects
        if item["kind"] == "CustomResourceDefinition"
        for version in item["spec"]["versions"]
    }

    async def one(item: Object) -> Object:
        if (item["apiVersion"], item["kind"]) in defined:
            await _served(places, item)
        path = await places.path(item, namespace=namespace)
        return await places.client.apply(path, item, manager=manager)

    made: list[Object] = []
    for wave in ordered(objects):
        made += await asyncio.gather(*(one(item) for item in wave))
    return made


async def _served(places: Places, item: Object) -> None:
    try:
        async with asyncio.timeout(FRESH):
            while await places.find(item["apiVersion"], item["kind"]) is None:
                await asyncio.sleep(0.02)
    except TimeoutError:
        return


async def take_away(places: Places, objects: Iterable[Object], *, namespace: str = "default") -> None:
    """Nothing; the objects are deleted or on their way. What is gone already, or of no known kind, is not missed."""
    for item in objects:
        try:
            await places.client.delete(
                await places.path(item, namespace=namespace), {"propagationPolicy": "Background"}
            )
        except NoMatch:
            continue
        except Refused as error:
            if error.code != 404:
                raise


def condition(kind: str, status: str, reason: str, message: str, *, at: str, generation: int | None = None) -> Object:
    """One metav1 condition."""
    row: Object = {
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at,
    }  # fmt: skip
    return row if generation is None else row | {"observedGeneration": generation}


def with_conditions(rows: Sequence[Object], *wanted: Object) -> list[Object]:
    """The rows with the wanted ones in place of those of their types; a status that stays keeps its time."""
    found = {row["type"]: row for row in rows}
    for row in wanted:
        before = found.get(row["type"])
        if before is not None and before.get("status") == row["status"]:
            row = row | {"lastTransitionTime": before.get("lastTransitionTime", row["lastTransitionTime"])}
        found[row["type"]] = row
    return list(found.values())


def without(rows: Sequence[Object], *kinds: str) -> list[Object]:
    """The rows but those of these types."""
    return [row for row in rows if row["type"] not in kinds]


def row_of(item: Object | None, kind: str) -> Object:
    """The condition of that type, or an empty one."""
    rows = ((item or {}).get("status") or {}).get("conditions") or ()
    return next((row for row in rows if row.get("type") == kind), {})


def is_true(item: Object | None, kind: str = "Ready") -> bool:
    """Whether the condition holds."""
    return row_of(item, kind).get("status") == "True"


def selected(labels: Mapping[str, str] | None, selector: Mapping[str, str]) -> bool:
    """Whether all labels of the selector are there."""
    return all((labels or {}).get(name) == value for name, value in selector.items())


def key_in(namespace: str, reference: Object) -> Key:
    """The key of what is referred to from a namespace."""
    return str(reference.get("namespace") or namespace), str(reference["name"])


@dataclass
class Pace:
    """Seconds until a next look; none where time does not wait and the last look was a moment ago."""

    _last: dict[Any, float] = field(default_factory=dict)

    def again(self, key: Any, seconds: float) -> float | None:
        """The seconds, or None: then only a change brings the key back."""
        now = time.monotonic()
        last, self._last[key] = self._last.get(key, 0.0), now
        return None if now - last < MOMENT else seconds


MOMENT = 0.005  # real seconds


def seconds_of(text: Any, default: float) -> float:
    """Seconds of a Go duration: "5m0s", "1h30m"."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    found = re.findall(r"([\d.]+)(ms|h|m|s)", str(text or ""))
    return sum(float(number) * units[unit] for number, unit in found) if found else default


def spoken(seconds: float) -> str:
    """A duration as Go writes it: "5m0s"."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{left}s"
