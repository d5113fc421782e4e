"""A borrowed bridge of one node: whether it is there, and how it goes again whatever became of its making.

PVE keeps edits of the network in interfaces.new until they are applied, and applies all of them at once. So a bridge
may be asked for, in force, or on its way out, and somebody else's edit may wait beside it. Theirs is never applied
and never dropped: what cannot be taken back without touching it is left with the reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runbook_lib.errors import UnfinishedChange
from runbook_lib.plan import mark
from runbook_lib.proxmox_nodes import settings

Send = Callable[[str, str], None]
"""Sends a request (method, path), waits for its task, and raises what it raises."""


@dataclass(frozen=True)
class Seen:
    """One node's network, as far as one bridge is concerned."""

    row: Mapping[str, Any] | None  # of the bridge, in the edition that lists show
    rest: str  # digest of every other interface's settings in that edition
    waits: bool  # something is not applied
    coming: bool  # the bridge waits to be made
    going: bool  # the bridge is in force and waits to be removed
    diff: str

    @property
    def gone(self) -> bool:
        """Whether the bridge is neither listed nor in force."""
        return self.row is None and not self.going


def undo(node: str, name: str, run: str, rest: str = "") -> dict[str, Any]:
    """What the journal keeps to find the bridge again and take it away; `rest` is the network without it."""
    return {"bridge": {"node": node, "name": name, "text": mark(run), "rest": rest}}


def path(bridge: Mapping[str, Any]) -> str:
    """Where the bridge's node lists its interfaces."""
    return f"/nodes/{bridge['node']}/network"


def rest_of(rows: Any, name: str = "") -> str:
    """The digest of all interfaces' settings but those of `name`."""
    others = {row["iface"]: settings(row) for row in rows or [] if row["iface"] != name}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def look(pve: Any, bridge: Mapping[str, Any]) -> Seen:
    """The node's network now."""
    answer = pve.answer(path(bridge))
    name, rows, diff = bridge["name"], answer.get("data") or [], answer.get("changes") or ""
    row = next((dict(entry) for entry in rows if entry["iface"] == name), None)
    coming, going = (_stanza(sign, name, diff) for sign in "+-")
    return Seen(row, rest_of(rows, name), bool(diff), coming, going, diff)


def _stanza(sign: str, name: str, diff: str) -> bool:
    return bool(re.search(rf"^\{sign}iface {re.escape(name)}\s", diff, re.MULTILINE))


def is_ours(seen: Seen, bridge: Mapping[str, Any]) -> bool:
    """Whether the bridge carries the mark of its run: in its comment, or in the lines that wait to be removed."""
    if seen.row is not None:
        return bridge["text"] in str(seen.row.get("comments") or "").lower()
    return any(bridge["text"] in line.lower() for line in seen.diff.splitlines() if line.startswith("-#"))


def marked(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, comment) of every interface with a comment, listed or waiting to be removed."""
    for row in answer.get("data") or []:
        if row.get("comments"):
            yield str(row["iface"]), str(row["comments"])
    name = ""
    for line in str(answer.get("changes") or "").splitlines():
        if found := re.match(r"[-+ ]iface (\S+)", line):
            name = found[1] if line[0] == "-" else ""
        elif name and line.startswith("-#"):
            yield name, line[2:]


def take_back(
    pve: Any,
    bridge: Mapping[str, Any],
    send: Send,
    *,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
    patience: float,
) -> str:
    """The proof that the bridge is gone and nothing of it waits. Raises UnfinishedChange when it cannot go yet.

    Every turn looks first and does one thing, so it may begin anywhere, and again after a kill.
    """
    base, until, pause = path(bridge), clock() + patience, 0.1
    rest = str(bridge.get("rest") or "")
    removed = ""
    while True:
        reloads = _reloads(pve, str(bridge["node"]))  # asked first: a look from before its end would be stale
        seen = look(pve, bridge)
        if not seen.waits:
            rest = seen.rest
        if seen.gone and not reloads:
            return f"GET {base} {'no longer lists it' if removed else 'does not list it'}, nothing of it waits"
        if not seen.gone and not is_ours(seen, bridge):
            return f"GET {base} lists it without the mark of this run; left alone"
        if clock() > until:
            raise UnfinishedChange(f"take back {base}/{bridge['name']}", "it is still there", "`runbook sweep`")
        alone = seen.rest == rest
        if reloads:
            sleep(pause)
            pause = min(2.0, pause * 2)
            continue
        if seen.coming and alone:
            send("DELETE", base)  # only ours waits: drop interfaces.new
        elif seen.coming:
            send("DELETE", f"{base}/{bridge['name']}")  # out of what waits; the rest of it stays waiting
        elif seen.waits and not (seen.going and alone):
            raise UnfinishedChange(
                f"take back {base}/{bridge['name']}",
                "somebody else's network changes wait on this node, and would be applied with its removal",
                "apply or revert them (System, Network), then `runbook sweep`",
            )
        elif seen.going:
            send("PUT", base)
        else:
            send("DELETE", f"{base}/{bridge['name']}")
        removed = "yes"


def _reloads(pve: Any, node: str) -> bool:
    """Whether a reload of the node's network is under way: it may still put in force what lists show as waiting."""
    tasks = pve.get(f"/nodes/{node}/tasks", source="active", typefilter="srvreload", limit=50) or []
    return any(task.get("id") == "networking" and not task.get("endtime") for task in tasks)
