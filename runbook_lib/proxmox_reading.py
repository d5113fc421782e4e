"""What facts need of a Proxmox VE, and the way it writes values."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from runbook_lib import errors

MAX_WORKERS = 8
TRUE_WORDS = {"1", "true", "yes", "on"}  # what PVE::JSONSchema::parse_boolean takes for true

Row = TypeVar("Row")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Unread:
    """What a fact could not read of one node, and why; the rows of the other nodes are complete."""

    fact: str  # "clocks"
    node: str
    reason: str


class Reader:
    """What facts ask of a Proxmox VE: one GET at a time. Tests put a dictionary behind it."""

    identity = ""

    def __init__(self) -> None:
        self._unread: dict[tuple[str, str], Unread] = {}

    def answer(self, path: str, /, **params: Any) -> Mapping[str, Any]:
        """The whole JSON answer of a GET, with `changes` and `total` beside `data`."""
        raise NotImplementedError

    def get(self, path: str, /, **params: Any) -> Any:
        """The `data` of a GET."""
        return self.answer(path, **params).get("data")

    def for_thread(self) -> Reader:
        """A reader for one more thread."""
        return self

    @property
    def unread(self) -> list[Unread]:
        """What the facts read so far had to leave out, sorted by fact and node."""
        return [self._unread[key] for key in sorted(self._unread)]

    def leave_out(self, fact: str, node: str, reason: str) -> None:
        """Remember that `fact` has no rows of `node`."""
        self._unread[fact, node] = Unread(fact, node, reason)

    def each(
        self, fact: str, items: Iterable[Item], ask: Callable[[Reader, Item], Row], *, name: Callable[[Item], str] = str
    ) -> list[tuple[Item, Row]]:
        """`ask(reader, item)` for every item, in a bounded pool, in the items' order.

        An item that is refused or does not answer is left out and remembered in `unread`; a login or a
        certificate that is not accepted ends the whole read, because no item could be read then.
        """
        todo = list(items)
        if not todo:
            return []
        mine = threading.local()

        def one(item: Item) -> Row | errors.ApiError:
            reader = getattr(mine, "reader", None)
            if reader is None:
                reader = mine.reader = self.for_thread()
            try:
                return ask(reader, item)
            except (errors.NotAuthenticated, errors.TlsError):
                raise
            except errors.ApiError as error:
                return error

        with ThreadPoolExecutor(min(MAX_WORKERS, len(todo)), thread_name_prefix="pve") as pool:
            answers = list(pool.map(one, todo))
        rows: list[tuple[Item, Row]] = []
        for item, found in zip(todo, answers, strict=True):
            if isinstance(found, errors.ApiError):
                self.leave_out(fact, name(item), str(found))
            else:
                self._unread.pop((fact, name(item)), None)
                rows.append((item, found))
        return rows

    def each_node(self, fact: str, ask: Callable[[Reader, str], Row]) -> list[tuple[str, Row]]:
        """`ask(reader, node)` for every node that is online, sorted by name; the others are remembered in `unread`."""
        names = []
        for node in sorted(self.get("/nodes") or [], key=lambda row: row["node"]):
            if node.get("status") == "offline":
                self.leave_out(fact, node["node"], "the node is offline")
            else:
                names.append(node["node"])
        return self.each(fact, names, ask)


def pages(reader: Reader, path: str, *, size: int = 500, most: int = 5000, **params: Any) -> Iterator[Any]:
    """Rows of a list that PVE hands out by `start` and `limit`, at most `most` of them."""
    for start in range(0, most, size):
        rows = reader.get(path, start=start, limit=size, **params) or []
        yield from rows
        if len(rows) < size:
            return


def true(value: Any) -> bool:
    """Whether a flag is set, which PVE writes as 0, 1, "0", "1", true, or not at all."""
    return value is True or str(value).lower() in TRUE_WORDS if value is not None else False


def integer(value: Any) -> int | None:
    """A whole number, which PVE may write as text; None where it is left out."""
    try:
        return int(value) if value not in (None, "") else None
    except (TypeError, ValueError) as error:
        raise errors.BadAnswer("Proxmox VE gave something else where a number belongs", repr(value)) from error


def decimal(value: Any) -> float | None:
    """A number, which PVE may write as text; None where it is left out."""
    return float(value) if value not in (None, "") else None


def words(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Parts of a list as PVE writes them: by comma, semicolon or blank."""
    text = value if isinstance(value, str) else " ".join(value or ())
    return tuple(part for part in re.split(r"[,;\s]+", text) if part)
