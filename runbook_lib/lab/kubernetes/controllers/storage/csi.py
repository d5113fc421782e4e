"""The words between a CSI driver and its sidecars, and the socket in their pod over which they speak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ..context import Context
from ..klog import line
from ..processes import Exit, Process

SOCKET = "unix:///csi/csi.sock"
Segments = Mapping[str, str]


class CsiError(Exception):
    """A driver refused: the gRPC code and its description, as sidecars show them."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"rpc error: code = {code} desc = {message}")
        self.code, self.message = code, message


@dataclass(frozen=True)
class Source:
    """What a new volume begins as a copy of: a "volume" or "snapshot", and its handle."""

    kind: str
    handle: str


@dataclass(frozen=True)
class Wanted:
    """A CreateVolumeRequest. `preferred` are the places, best first; None where topology is not known."""

    name: str
    size: int
    parameters: Mapping[str, str]
    preferred: Sequence[Segments] | None = None
    modes: Sequence[str] = ()
    block: bool = False
    source: Source | None = None


@dataclass(frozen=True)
class Made:
    """A CreateVolumeResponse."""

    handle: str
    size: int
    context: Mapping[str, str] = field(default_factory=dict)
    places: Sequence[Segments] = ()


@dataclass(frozen=True)
class Snapshot:
    """A CreateSnapshotResponse."""

    handle: str
    size: int
    ready: bool = True


class Driver(Protocol):
    """What sidecars ask of a driver. Every call may raise CsiError."""

    name: str

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can: topology, capacity, expand, snapshot, clone."""
        ...

    async def create_volume(self, wanted: Wanted) -> Made:
        """The volume, made now or before."""
        ...

    async def delete_volume(self, handle: str) -> None:
        """Nothing; the volume is gone."""
        ...

    async def publish(self, handle: str, node: str, context: Mapping[str, str], *, readonly: bool) -> dict[str, str]:
        """What the node must know of the attached volume."""
        ...

    async def unpublish(self, handle: str, node: str) -> None:
        """Nothing; the volume is not at the node."""
        ...

    async def expand(self, handle: str, size: int) -> tuple[int, bool]:
        """(the size now, whether the node has to grow the file system)."""
        ...

    async def capacity(self, parameters: Mapping[str, str], segments: Segments) -> int:
        """The bytes left at that place."""
        ...

    async def create_snapshot(self, handle: str, name: str, parameters: Mapping[str, str]) -> Snapshot:
        """The snapshot, made now or before."""
        ...

    async def delete_snapshot(self, handle: str) -> None:
        """Nothing; the snapshot is gone."""
        ...


@dataclass
class _Socket:
    """One pod's socket."""

    driver: Driver | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


_SOCKETS: dict[tuple[int, str], _Socket] = {}
"""The sockets of pods, by cluster and pod: containers of one pod share a directory, and nothing else does."""


def _socket(context: Context, process: Process) -> _Socket:
    return _SOCKETS.setdefault((id(context), str(process.pod["metadata"]["uid"])), _Socket())


@asynccontextmanager
async def listening(context: Context, process: Process, driver: Driver) -> AsyncIterator[None]:
    """The driver answers on its pod's socket."""
    socket = _socket(context, process)
    socket.driver = driver
    socket.opened.set()
    try:
        yield
    finally:
        _SOCKETS.pop((id(context), str(process.pod["metadata"]["uid"])), None)
        socket.closed.set()


async def sidecar(context: Context, process: Process, work: Callable[[Driver], Awaitable[None]]) -> None:
    """Does the work with the driver of the pod once it listens. Raises Exit when the driver goes."""
    socket = _socket(context, process)
    if socket.driver is None:
        process.write(line(context.clock.now(), "I", "connection.go:253", f"Still connecting to {SOCKET}"))
        await socket.opened.wait()
    assert socket.driver is not None
    doing = asyncio.ensure_future(work(socket.driver))
    lost = asyncio.ensure_future(socket.closed.wait())
    try:
        await asyncio.wait({doing, lost}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
            return
        said = line(context.clock.now(), "E", "connection.go:142", f"Lost connection to {SOCKET}.")
        raise Exit(1, said)
    finally:
        for task in (doing, lost):
            task.cancel()
        await asyncio.gather(doing, lost, return_exceptions=True)


def finalizer(driver: str) -> str:
    """The attacher's finalizer."""
    return "external-attacher/" + driver.replace(".", "-")
