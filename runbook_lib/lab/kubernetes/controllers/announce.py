"""Events of a controller as client-go's recorder sends them: in the background, counted, combined, and not too many.

Source: tools/record/events_cache.go. The tenth of ten similar ones within ten minutes and all after it are combined
into one; of one object a source tells 25 at once, and one more every five minutes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from .client import Object, Refused
from .context import Context

log = logging.getLogger(__name__)

SIMILAR, WITHIN_SECONDS = 10, 600.0
BURST, REFILL_SECONDS = 25, 300.0
REMEMBERED = 4096
COMBINED = "(combined from similar events): "


@dataclass
class _Similar:
    """What was said about one object for one reason."""

    at: float
    messages: set[str] = field(default_factory=set)


@dataclass
class _Told:
    """One event as it was written."""

    name: str
    count: int


class Announcer:
    """Tells events of one component. `say` does not wait."""

    def __init__(self, context: Context, component: str) -> None:
        self._context, self._component = context, component
        self._queue: asyncio.Queue[tuple[Object, str, str, str]] = asyncio.Queue()
        self._similar: dict[tuple[str, str, str], _Similar] = {}
        self._told: dict[tuple[str, str, str, str], _Told] = {}
        self._tokens: dict[str, tuple[float, float]] = {}
        self._number = 0
        context.spawn(self._run(), name=f"lab-events {component}")

    def say(self, about: Object, reason: str, message: str, *, kind: str = "Normal") -> None:
        """Tells it sooner or later, unless too much was told of this object already."""
        uid = about["metadata"].get("uid", "")
        if not self._allowed(uid):
            return
        now = self._context.clock.now()
        known = self._similar.get((uid, kind, reason))
        if known is None or now - known.at > WITHIN_SECONDS:
            known = self._similar[uid, kind, reason] = _Similar(now)
        known.at = now
        known.messages.add(message)
        if len(known.messages) >= SIMILAR:
            message = COMBINED + message
        self._queue.put_nowait((about, kind, reason, message))

    def _allowed(self, uid: str) -> bool:
        now = self._context.clock.now()
        left, at = self._tokens.get(uid, (float(BURST), now))
        left = min(float(BURST), left + max(0.0, now - at) / REFILL_SECONDS)
        self._tokens[uid] = (max(0.0, left - 1.0) if left >= 1.0 else left, now)
        return left >= 1.0

    async def _run(self) -> None:
        while True:
            about, kind, reason, message = await self._queue.get()
            try:
                await self._tell(about, kind, reason, message)
            except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("event %s about %s: %s", reason, about["metadata"]["name"], error)
            for memory in (self._similar, self._told, self._tokens):
                _forget_oldest(memory)

    async def _tell(self, about: Object, kind: str, reason: str, message: str) -> None:
        metadata, context = about["metadata"], self._context
        key = (metadata.get("uid", ""), kind, reason, COMBINED if message.startswith(COMBINED) else message)
        namespace = metadata.get("namespace", "default")
        path = f"/api/v1/namespaces/{namespace}/events"
        now = context.stamp()
        if (told := self._told.get(key)) is not None:
            told.count += 1
            try:
                body = {"count": told.count, "lastTimestamp": now, "message": message}
                await context.client.patch(f"{path}/{told.name}", body)
                return
            except Refused as error:
                if error.code != 404:
                    raise
                del self._told[key]
        self._number += 1
        name = f"{metadata['name']}.{int(context.clock.now() * 1e9) + self._number:016x}"
        await context.client.create(path, _body(about, name, namespace, kind, reason, message, now, self._component))
        self._told[key] = _Told(name, 1)


def _forget_oldest(memory: dict[Any, Any]) -> None:
    while len(memory) > REMEMBERED:
        del memory[next(iter(memory))]


def _body(
    about: Object, name: str, namespace: str, kind: str, reason: str, message: str, now: str, component: str
) -> Object:
    metadata = about["metadata"]
    involved = {
        "apiVersion": about.get("apiVersion", "v1"),
        "kind": about.get("kind", "Pod"),
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    if "namespace" in metadata:
        involved["namespace"] = metadata["namespace"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "",
    }
