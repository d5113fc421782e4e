"""Whether the cluster may write: without a majority of nodes /etc/pve is read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .routing import PveError

if TYPE_CHECKING:
    from .state import PveState


def quorate(state: PveState) -> bool:
    """Whether more than half of the nodes are online; a standalone node always is."""
    if state.cluster_name is None:
        return True
    online = sum(1 for node in state.nodes.values() if node.online)
    return online * 2 > len(state.nodes)


def require_quorum(state: PveState, message: str) -> None:
    """Nothing, or the 500 a real node answers a write with when quorum is lost."""
    if not quorate(state):
        raise PveError(500, message)
