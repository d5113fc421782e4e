"""The monitoring of one cluster: its store, its collector, its rules. Handlers of the services ask it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from .emulated import Emulated
from .evaluation import Labels, key_of
from .exposition import BadLine, rows
from .promql import Selector
from .relabel import relabel
from .store import Store, fits
from .targets import GROUP, Dropped, Finder, Target

if TYPE_CHECKING:
    from ..kubernetes.cluster import Cluster

log = logging.getLogger(__name__)
Object = dict[str, Any]

SHORTEST_REAL_SECONDS = 2.0
MOST_SAMPLES_OF_A_SCRAPE = 50_000


class Clock(Protocol):
    """The lab's clock."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def elapsed(self) -> float:
        """Seconds of the lab."""
        ...

    def real(self, seconds: float) -> float:
        """Real seconds."""
        ...


@dataclass
class Health:
    """How the last scrape of a target went."""

    up: bool = False
    error: str = ""
    at: float = 0.0
    seconds: float = 0.0
    samples: int = 0
    due: float = 0.0
    labels: tuple[Labels, ...] = ()
    scraped: int = 0
    failed: int = 0


def pause(clock: Clock, lab_seconds: float) -> float:
    """Real seconds until something is done again that is done every so many of the lab: 2 at least."""
    return max(SHORTEST_REAL_SECONDS, min(clock.real(lab_seconds), lab_seconds))


class Hub:
    """One cluster's monitoring; `wake` begins the work that goes on without being asked."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self.cluster, self.clock = cluster, clock
        self.store = Store()
        self.emulated = Emulated(self)
        self.health: dict[Any, Health] = {}
        self.collected_until = 0.0
        self.logs: Any = None
        self.log_store: Any = None
        self.rules: Any = None
        self.tasks: list[asyncio.Task[None]] = []
        self._found: tuple[int, list[Target], list[Dropped]] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._stirred = asyncio.Event()

    # -- what the cluster says --------------------------------------------------------------------

    def agent(self) -> Object | None:
        """The collector of the cluster: the first VMAgent."""
        return next(iter(self.cluster.each(f"{GROUP}/vmagents")), None)

    def collecting(self) -> bool:
        """Whether a collector is at work."""
        agent = self.agent()
        if agent is None:
            return False
        name, space = agent["metadata"]["name"], agent["metadata"]["namespace"]
        return any(
            pod["metadata"]["name"].startswith(f"vmagent-{name}") and _ready(pod)
            for pod in self.cluster.each("/pods", space)
        )

    def storing(self) -> bool:
        """Whether what is collected gets into the store: in a cluster of them through its vminsert."""
        pods = [
            pod
            for pod in self.cluster.each("/pods")
            if (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/name") == "vminsert"
        ]
        clustered = any(True for _ in self.cluster.each(f"{GROUP}/vmclusters"))
        return not clustered or any(_ready(pod) for pod in pods)

    def targets(self) -> list[Target]:
        """The targets as the cluster is now."""
        return self._targets()[1]

    def dropped(self) -> list[Dropped]:
        """What discovery found and relabeling dropped."""
        return self._targets()[2]

    def _targets(self) -> tuple[int, list[Target], list[Dropped]]:
        version = self.cluster.store.rv
        if self._found is None or self._found[0] != version:
            agent = self.agent()
            found: list[Target] = []
            dropped: list[Dropped] = []
            if agent is not None:
                finder = Finder(self.cluster, agent)
                found, dropped = finder.all(), finder.dropped
            self._found = (version, found, dropped)
        return self._found

    def external(self) -> dict[str, str]:
        """Labels that the collector adds to all it sends."""
        agent = self.agent()
        if agent is None:
            return {}
        spec, meta = agent.get("spec") or {}, agent["metadata"]
        name = spec.get("vmAgentExternalLabelName", "prometheus")
        own = {name: f"{meta['namespace']}/{meta['name']}"} if name else {}
        return {**own, **(spec.get("externalLabels") or {})}

    def health_of(self, target: Target) -> Health:
        """How a target fares; an emulated one fares as its error says."""
        if target.dial:
            return self.health.get(target.key, Health(error=""))
        now = self.clock.now()
        took = 0.004 + (hash(target.url) % 90) / 10_000
        if target.error:
            return Health(False, self.problem(target, target.error), now - now % 30, took, 0)
        return Health(True, "", now - now % 30, took, self.emulated.size(target))

    def problem(self, target: Target, words: str) -> str:
        """A failed scrape as the collector reports it."""
        return f'cannot read data: cannot scrape "{target.url}": Get "{target.url}": {words}'

    # -- reading ----------------------------------------------------------------------------------

    def select(self, selector: Selector, start: float, end: float) -> Sequence[Any]:
        """Stored and emulated series together."""
        return [*self.store.select(selector, start, end), *self.emulated.select(selector, start, end)]

    # -- work that goes on ------------------------------------------------------------------------

    def wake(self) -> None:
        """Nothing; scraping and rules go on from now on, and look at once."""
        self._stirred.set()
        if not self.tasks:
            from .alerting import Rules

            self.rules = Rules(self)
            loop = asyncio.get_running_loop()
            self.tasks = [
                loop.create_task(self._scrape(), name="lab-vmagent"),
                loop.create_task(self.rules.run(), name="lab-vmalert"),
            ]
            for task in self.tasks:
                task.add_done_callback(_ended)

    async def stop(self) -> None:
        """Ends the work."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _scrape(self) -> None:
        while True:
            due = await self.scrape_due()
            self._stirred.clear()
            # not wait_for: it swallows a cancellation that comes as the event does
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.2, min(due - time.monotonic(), 5.0))):
                    await self._stirred.wait()

    async def scrape_due(self) -> float:
        """When the next real target is due, after scraping those that were."""
        real = {target.key: target for target in self.targets() if target.dial} if self.collecting() else {}
        for key in [key for key in self.health if key not in real]:
            self._forget(key)
        now = time.monotonic()
        due = [target for key, target in real.items() if self.health.setdefault(key, Health()).due <= now]
        for target in due:
            self.health[target.key].due = now + pause(self.clock, target.interval)
        await asyncio.gather(*(self.scrape(target) for target in due))
        return min((self.health[key].due for key in real), default=now + 5.0)

    def _forget(self, key: Any) -> None:
        for labels in self.health.pop(key).labels:
            self.store.end(labels, self.clock.now())

    async def scrape(self, target: Target) -> None:
        """Nothing; the target's samples of this moment are stored, or its error is known."""
        health = self.health.setdefault(target.key, Health())
        begun, at = time.monotonic(), self.clock.now()
        found: list[tuple[dict[str, str], float, float]] = []
        error = ""
        try:
            for labels, value, told in rows(await self.fetched(target)):
                merged = self.merged(target, labels)
                if merged is not None:
                    found.append((merged, value, told if told and target.honor_timestamps else at))
        except _Failed as failed:
            error = str(failed)
        except BadLine as bad:
            error = str(bad)
        if len(found) > MOST_SAMPLES_OF_A_SCRAPE:
            error = f"the response from {target.url!r} exceeds sample_limit={MOST_SAMPLES_OF_A_SCRAPE}"
        if error:
            found = []
        seconds = time.monotonic() - begun
        own = {
            "up": float(not error),
            "scrape_duration_seconds": seconds,
            "scrape_samples_scraped": float(len(found)),
            "scrape_timeout_seconds": target.timeout,
        }
        for name, value in own.items():
            found.append(({**target.labels, **self.external(), "__name__": name}, value, at))
        if not self.storing():  # the collector keeps it in its queue
            health.up, health.error, health.at, health.seconds = not error, error, at, seconds
            health.samples, health.scraped = len(found) - 4, health.scraped + 1
            health.failed += bool(error)
            return
        before = {key_of(labels): labels for labels in health.labels}
        for labels, value, when in found:
            self.store.append(labels, value, when)
            before.pop(key_of(labels), None)
        for gone in before.values():
            self.store.end(gone, at)
        health.up, health.error, health.at, health.seconds = not error, error, at, seconds
        health.samples, health.labels = len(found) - 4, tuple(labels for labels, *_ in found)
        health.scraped, health.failed = health.scraped + 1, health.failed + bool(error)

    def merged(self, target: Target, labels: Mapping[str, str]) -> dict[str, str] | None:
        """A sample's labels with those of its target; None where a rule drops it."""
        found = dict(labels)
        for key, value in target.labels.items():
            if key in found and not target.honor_labels:
                found[f"exported_{key}"] = found[key]
                found[key] = value
            elif not found.get(key):
                found[key] = value
        kept = relabel(found, target.metric_rules) if target.metric_rules else found
        if kept is None:
            return None
        return {**kept, **self.external()}

    async def fetched(self, target: Target) -> str:
        """The page of a real process. Raises _Failed in the words of the collector."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False, limit=16))
        scheme, _, rest = target.url.partition("://")
        _, slash, path = rest.partition("/")
        url = f"{scheme}://{target.dial}{slash}{path}"
        try:
            timeout = aiohttp.ClientTimeout(max(2.0, min(target.timeout, 30.0)))
            headers = {"Accept": "text/plain;version=0.0.4;q=1,*/*;q=0.1", **target.credentials}
            async with self._session.get(url, headers=headers, timeout=timeout) as answer:
                text = await answer.text(errors="replace")
                if answer.status != 200:
                    raise _Failed(
                        f'unexpected status code returned when scraping "{target.url}": {answer.status}; '
                        f'expected: 200; response body: "{text[:500]}"'
                    )
                return text
        except TimeoutError:
            raise _Failed(self.problem(target, "context deadline exceeded")) from None
        except aiohttp.ClientConnectorError as error:
            word = (
                "connect: connection refused" if isinstance(error.os_error, ConnectionRefusedError) else "i/o timeout"
            )
            raise _Failed(self.problem(target, f"dial tcp4 {target.dial}: {word}")) from None
        except aiohttp.ClientError as error:
            raise _Failed(self.problem(target, str(error) or "EOF")) from None


class _Failed(Exception):
    """A scrape that gave nothing."""


def _ready(pod: Object) -> bool:
    return any(
        row["type"] == "Ready" and row["status"] == "True" for row in (pod.get("status") or {}).get("conditions") or ()
    )


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        log.error("%s ended", task.get_name(), exc_info=task.exception())


__all__ = ["Health", "Hub", "fits", "pause"]
