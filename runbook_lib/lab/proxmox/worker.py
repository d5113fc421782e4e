"""Tasks: what a real node forks a worker for, and the UPID that names it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .routing import PveError

if TYPE_CHECKING:
    from ..clock import Clock

log = logging.getLogger(__name__)

_UPID = re.compile(
    r"UPID:([a-zA-Z0-9](?:[a-zA-Z0-9\-]*[a-zA-Z0-9])?):([0-9A-Fa-f]{8}):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8}):"
    r"([^:\s]+):([^:\s]*):([^:\s]+):"
)


class TaskError(Exception):
    """What a worker dies of; its text is the exit status."""


@dataclass
class TaskState:
    """One task: its identity, log lines and how it ended (`exitstatus` None while it runs)."""

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str
    log: list[str] = field(default_factory=list)
    exitstatus: str | None = None
    endtime: int | None = None

    @property
    def running(self) -> bool:
        """Whether the worker still works."""
        return self.exitstatus is None


class TaskContext:
    """What the work of a task holds: its log and the lab's time."""

    def __init__(self, state: TaskState, clock: Clock, doom: str | None = None, *, stuck: bool = False) -> None:
        self.state, self.clock, self.warnings = state, clock, 0
        self.doom, self._stuck = doom, stuck

    def log(self, line: str) -> None:
        """Add lines to the task's log."""
        self.state.log.extend(line.rstrip("\n").split("\n"))

    def warn(self, line: str = "") -> None:
        """Add a warning; the task then ends with "WARNINGS: n"."""
        self.warnings += 1
        if line:
            self.log(f"WARN: {line}")

    async def sleep(self, seconds: float) -> None:
        """Pass `seconds` of the lab's time; a task that is to fail does so in its first pause, a stuck one stays."""
        if self._stuck:
            await asyncio.Event().wait()
        if self.doom is not None:
            await self.clock.sleep(min(seconds, 1.0))
            raise TaskError(self.doom)
        await self.clock.sleep(seconds)


Work = Callable[[TaskContext], Awaitable[None] | None]


def parse_upid(upid: str) -> tuple[str, str, str, str] | None:
    """Node, type, id and user of a UPID; None when it is none."""
    match = _UPID.fullmatch(upid)
    return (match[1], match[5], match[6], match[7]) if match else None


class TaskFault(Protocol):
    """What is wrong with a task: it fails with a text, or never ends."""

    @property
    def text(self) -> str:
        """The exit status it fails with."""

    @property
    def stuck(self) -> bool:
        """Whether it never ends by itself."""


class Tasks:
    """All tasks of a cluster, oldest first. Iterate to see them; `start` to add one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_upid: dict[str, TaskState] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._pid = 1000
        self.fault: Callable[[str], TaskFault | None] = lambda kind: None

    def __iter__(self) -> Iterator[TaskState]:
        return iter(list(self._by_upid.values()))

    def __len__(self) -> int:
        return len(self._by_upid)

    def get(self, upid: str) -> TaskState | None:
        """The task of that UPID, if there is or was one."""
        return self._by_upid.get(upid)

    def new(self, kind: str, id: str, *, node: str, user: str, starttime: float | None = None) -> TaskState:
        """A task that nothing works on yet: for history in a scenario, or for `start`."""
        self._pid += 7
        began = int(self._clock.now() if starttime is None else starttime)
        # pstart counts hundredths of a second since boot; a fixed boot time keeps it monotonic.
        pstart = (int(self._clock.elapsed() * 100) + 0x41000 + self._pid) & 0x1FFFFFFFF
        upid = f"UPID:{node}:{self._pid:08X}:{pstart:08X}:{began:08X}:{kind}:{id.replace(':', chr(92) + 'x3a')}:{user}:"
        task = TaskState(upid, node, self._pid, pstart, began, kind, id, user)
        self._by_upid[upid] = task
        return task

    def remember(self, task: TaskState) -> None:
        """Take in a task that another process ran."""
        self._by_upid[task.upid] = task
        self._pid = max(self._pid, task.pid)

    def start(self, kind: str, id: str, work: Work, *, node: str, user: str) -> str:
        """The UPID of a task that has begun; like a forked worker it outlives the request."""
        task = self.new(kind, id, node=node, user=user)
        worker = asyncio.get_running_loop().create_task(self._run(task, work), name=task.upid)
        self._workers[task.upid] = worker
        worker.add_done_callback(lambda _: self._gone(task))
        return task.upid

    def _gone(self, task: TaskState) -> None:
        self._workers.pop(task.upid, None)
        if task.running:  # interrupted before its first step
            self.finish(task, "received interrupt")

    async def _run(self, task: TaskState, work: Work) -> None:
        fault = self.fault(task.type)
        doom = fault.text if fault and not fault.stuck else None
        context = TaskContext(task, self._clock, doom, stuck=bool(fault and fault.stuck))
        try:
            outcome = work(context)
            if inspect.isawaitable(outcome):
                await outcome
            await context.sleep(0)  # a task without a pause meets its fault here
        except (PveError, TaskError) as error:
            self.finish(task, str(error).strip() or "unknown error")
        except asyncio.CancelledError:
            self.finish(task, "received interrupt")
        except Exception as error:  # a worker that dies must end its task, not the lab
            log.exception("task %s died", task.upid)
            self.finish(task, f"internal error of the lab: {type(error).__name__}: {error}")
        else:
            self.finish(task, f"WARNINGS: {context.warnings}" if context.warnings else "OK")

    def finish(self, task: TaskState, exitstatus: str, *, endtime: float | None = None) -> None:
        """End the task: exit status, end time and the last line of its log."""
        if not task.running:
            return  # its node has died meanwhile
        first = exitstatus.split("\n", 1)[0]
        if first == "OK":
            task.log.append("TASK OK")
        elif first.startswith("WARNINGS: "):
            task.log.append(f"TASK {first}")
        else:
            task.log.extend(f"TASK ERROR: {exitstatus}".split("\n"))
        task.exitstatus = first
        task.endtime = int(self._clock.now() if endtime is None else endtime)

    def stop(self, upid: str) -> None:
        """Interrupt a running task, as DELETE /nodes/{node}/tasks/{upid} does."""
        if worker := self._workers.get(upid):
            worker.cancel()

    def die(self, node: str) -> None:
        """End what runs on a node that lost its power: its logs stop in the middle of the work.

        A real node finds such tasks when it is back, with no worker and no last line that tells how they ended.
        """
        for task in self:
            if task.node == node and task.running:
                task.exitstatus = "unexpected status" if task.log else "unable to read tail (got 0 bytes)"
                task.endtime = int(self._clock.now())
                self.stop(task.upid)

    async def idle(self) -> None:
        """Return when no task runs; for tests and for the end of the lab."""
        while self._workers:
            await asyncio.gather(*list(self._workers.values()), return_exceptions=True)

    async def cancel(self) -> None:
        """Interrupt everything that runs."""
        for worker in list(self._workers.values()):
            worker.cancel()
        await self.idle()
