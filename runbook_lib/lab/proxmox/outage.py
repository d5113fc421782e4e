"""A node that dies and returns: what `runbook lab node` does to the emulated cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .system import come_up

if TYPE_CHECKING:
    from .nodes import NodeState
    from .state import PveState


def found(state: PveState, name: str) -> NodeState:
    """The node; raises ValueError for one that is not there, or that answers for all others."""
    if name not in state.nodes:
        raise ValueError(f"no such node: {name}; there are {', '.join(state.nodes)}")
    if name == state.local_node:
        raise ValueError(f"{name} is the node that answers; without it there is no API")
    return state.nodes[name]


def lose(state: PveState, name: str) -> None:
    """Nothing; the node is gone: requests about it answer 595, its tasks have died, its guests are unknown in time."""
    node = found(state, name)
    if not node.online:
        return
    node.online, node.lost_at = False, state.clock.now()
    state.tasks.die(name)


def give_back(state: PveState, name: str) -> None:
    """Nothing; the node has booted, as after any other boot."""
    node = found(state, name)
    if not node.online:
        come_up(state, node)
