"""A borrowed bridge and one node's interfaces.new: it goes from any state, and nobody else's edit goes with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import pytest

from runbook_lib import bridges
from runbook_lib.errors import UnfinishedChange
from runbook_lib.executors import ProxmoxExecutor
from runbook_lib.model import Change
from runbook_lib.proxmox_session import Reader
from runbook_lib.wire import Wire

RUN = "20261123T190312Z-4f2a"
NAME = "vmbr1000"
BASE = "/nodes/pve1/network"
COMMENT = f"runbook-{RUN.lower()} borrowed"
VMBR0 = {"type": "bridge", "bridge_ports": "eno1", "cidr": "10.0.0.1/24", "gateway": "10.0.0.254", "autostart": 1}
OURS = {"type": "bridge", "autostart": 1, "comments": COMMENT}
THEIRS = {**VMBR0, "mtu": "9000"}


class Killed(BaseException):
    """What stands for kill -9."""


class Node(Reader):
    """One node's interfaces as PVE keeps them: a file in force, and one that waits."""

    identity = "runbook@pve!runbook"

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire("proxmox")
        self.current: dict[str, dict[str, Any]] = {"vmbr0": dict(VMBR0)}
        self.pending: dict[str, dict[str, Any]] | None = None
        self.sent: list[str] = []
        self.dies: tuple[str, int] | None = None  # ("before" | "after", number of the request)
        self.reloads = 0  # looks for which a reload is still under way

    def file(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The rows as lines of /etc/network/interfaces."""
        lines = []
        for name, row in rows.items():
            options = [f"\t{key} {row[key]}\n" for key in ("cidr", "mtu", "bridge_ports") if key in row]
            note = [f"#{row['comments']}\n"] if "comments" in row else []
            lines += [f"auto {name}\n", f"iface {name} inet manual\n", *options, *note, "\n"]
        return lines

    def answer(self, path: str, /, **params: Any) -> Mapping[str, Any]:
        if path == "/nodes/pve1/tasks":
            self.reloads -= 1
            if self.reloads == 0 and self.pending is not None:
                self.current, self.pending = self.pending, None
            return {"data": [{"id": "networking", "type": "srvreload"}] if self.reloads > 0 else []}
        if path.startswith("/nodes/pve1/tasks/"):
            return {"data": {"status": "stopped", "exitstatus": "OK"}}
        assert path == BASE, path
        shown = self.current if self.pending is None else self.pending
        rows = [{"iface": name, **row, "priority": n, "active": 1} for n, (name, row) in enumerate(shown.items())]
        if self.pending is None:
            return {"data": rows}
        diff = "".join(difflib.unified_diff(self.file(self.current), self.file(self.pending), "a", "b"))
        return {"data": rows, "changes": diff}

    def request(self, method: str, path: str, /, **params: Any) -> Any:
        self.wire.guard(method, path)
        self.sent.append(f"{method} {path}")
        if self.dies == ("before", len(self.sent)):
            raise Killed
        answer = self._done(method, path, params)
        if self.dies == ("after", len(self.sent)):
            raise Killed
        return answer

    def _done(self, method: str, path: str, params: Mapping[str, Any]) -> Any:
        if (method, path) == ("PUT", BASE):
            if self.pending is not None:
                self.current, self.pending = self.pending, None
            return "UPID:pve1:00000001:00000002:6B0478DC:srvreload:networking:root@pam:"
        if (method, path) == ("DELETE", BASE):
            self.pending = None
        else:
            self.pending = self.pending or {name: dict(row) for name, row in self.current.items()}
            if method == "POST":
                self.pending[params["iface"]] = {key: value for key, value in params.items() if key != "iface"}
            else:
                del self.pending[path.rpartition("/")[2]]
        return None


def changes(node: Node) -> list[Change]:
    """What step 22 plans for this node."""
    undo = bridges.undo("pve1", NAME, RUN, bridges.rest_of(node.get(BASE), NAME))
    asked = {"method": "POST", "path": BASE, "params": {"iface": NAME, **OURS}}
    return [
        Change("22-01", "proxmox", "create", f"{BASE}/{NAME}", "", request=asked, undo=undo),
        Change("22-02", "proxmox", "apply", f"{BASE}/{NAME}", "", request={"method": "PUT", "path": BASE}, undo=undo),
    ]


def hands(node: Node, tmp_path: Any) -> ProxmoxExecutor:
    """The executor, whose clock goes on only while it waits."""
    now = [0.0]
    return ProxmoxExecutor(
        lambda: node, root=tmp_path, sleep=lambda s: now.__setitem__(0, now[0] + s), clock=lambda: now[0]
    )


def mentions(node: Node) -> bool:
    """Whether our bridge is in either file."""
    return NAME in node.current or NAME in (node.pending or {})


@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_any_request_the_bridge_goes_and_nothing_else_changes(number, when, tmp_path):
    """Make, apply, remove, apply: whichever is the last one sent, another process ends with the files as they were."""
    node = Node()
    planned, hand = changes(node), hands(node, tmp_path)
    node.dies = (when, number)
    with pytest.raises(Killed):
        for change in planned:
            hand.send(change)
        hand.undo(planned[1])
    node.dies = None
    proofs = [hand.undo(change) for change in reversed(planned)]
    assert (node.current, node.pending) == ({"vmbr0": VMBR0}, None)
    assert all("nothing of it waits" in proof for proof in proofs)


@pytest.mark.parametrize("sent", [1, 2])
def test_somebody_elses_waiting_edit_is_neither_applied_nor_dropped(sent, tmp_path):
    """Asked for only, ours leaves what waits; in force, it stays until they have decided, and the reason is said."""
    node = Node()
    planned, hand = changes(node), hands(node, tmp_path)
    for change in planned[:sent]:
        hand.send(change)
    node.pending = {**(node.pending or node.current), "vmbr0": dict(THEIRS)}
    if sent == 1:
        hand.undo(planned[0])
        assert not mentions(node)
    else:
        with pytest.raises(UnfinishedChange, match="somebody else's network changes wait"):
            hand.undo(planned[0])
        assert NAME in node.current
    assert node.pending["vmbr0"] == THEIRS and node.current["vmbr0"] == VMBR0


def test_an_edit_that_came_while_ours_was_on_its_way_out_is_not_applied(tmp_path):
    """Killed between removal and reload; meanwhile somebody edits: their edit would come into force with it."""
    node = Node()
    planned, hand = changes(node), hands(node, tmp_path)
    for change in planned:
        hand.send(change)
    node.pending = {"vmbr0": dict(THEIRS)}
    with pytest.raises(UnfinishedChange):
        hand.undo(planned[0])
    assert node.current["vmbr0"] == VMBR0
    node.pending = {"vmbr0": dict(VMBR0)}
    assert "nothing of it waits" in hand.undo(planned[0]) and not mentions(node)


def test_a_reload_under_way_is_waited_for(tmp_path):
    """Otherwise it would put in force what was just dropped."""
    node = Node()
    planned, hand = changes(node), hands(node, tmp_path)
    hand.send(planned[0])
    node.reloads = 3
    hand.undo(planned[0])
    assert not mentions(node) and node.current == {"vmbr0": VMBR0}
    assert node.sent[1:] == [f"DELETE {BASE}/{NAME}", f"PUT {BASE}"]


def test_a_bridge_without_the_mark_is_left_alone(tmp_path):
    """Whoever took the name meanwhile keeps it."""
    node = Node()
    planned, hand = changes(node), hands(node, tmp_path)
    node.current[NAME] = {"type": "bridge", "comments": "storage network"}
    assert "left alone" in hand.undo(planned[0])
    assert node.sent == [] and not hand.exists(planned[0])


def test_a_bridge_is_found_by_its_mark_without_the_journal(tmp_path):
    """In force, asked for, and on its way out; each can then be taken back by what was found."""
    for state in ("in force", "coming", "going"):
        node = Node()
        hand = hands(node, tmp_path)
        if state == "coming":
            node.pending = {**node.current, NAME: dict(OURS)}
        else:
            node.current[NAME] = dict(OURS)
            node.pending = {"vmbr0": dict(VMBR0)} if state == "going" else None
        found = list(bridges.marked(node.answer(BASE)))
        assert found == [(NAME, COMMENT)], state
        stray = Change("stray", "proxmox", "create", f"{BASE}/{NAME}", "", undo=bridges.undo("pve1", NAME, RUN))
        if state == "going":  # without a journal nobody knows whether only ours waits
            with pytest.raises(UnfinishedChange):
                hand.undo(stray)
        else:
            hand.undo(stray)
            assert not mentions(node), state
        assert node.current["vmbr0"] == VMBR0


def test_the_mark_is_looked_for_in_the_bridges_own_lines():
    """A comment of another interface that goes away is not taken for ours."""
    gone = "-iface vmbr7 inet manual\n-\tbridge-ports none\n-#old lab\n"
    diff = f"@@ -1,4 +1,1 @@\n auto lo\n{gone}+iface vmbr8 inet manual\n+#x\n"
    assert list(bridges.marked({"data": [], "changes": diff})) == [("vmbr7", "old lab")]
    assert re.fullmatch(r"[0-9a-f]{64}", bridges.rest_of([]))
