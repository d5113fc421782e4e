"""Which nodes' machines run: whoever knows says so, kubelets and the node life cycle listen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Handler = Callable[[str, bool], None]


@dataclass
class Machines:
    """The machines behind nodes, by node name. One that nobody spoke of runs.

    `handlers` are called with (node, alive) when a machine stops or starts. `pressure` maps a node to what it runs
    short of: memory, disk or pids; set it with `press`. `known` are those that someone spoke of; `ailing` those that a
    scenario left in a bad way, which they stay in until someone speaks of them; `unplugged` those that no network
    plugin was put on yet.
    """

    dead: set[str] = field(default_factory=set)
    handlers: list[Handler] = field(default_factory=list)
    pressure: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    ailing: set[str] = field(default_factory=set)
    unplugged: set[str] = field(default_factory=set)

    @classmethod
    def with_faults(cls, faults: Mapping[str, str]) -> Machines:
        """Machines as a scenario's `node_faults` leave them."""
        short = {"memory-pressure": "memory", "disk-pressure": "disk", "pid-pressure": "pids"}
        return cls(
            {node for node, fault in faults.items() if fault == "dead"},
            pressure={node: short[fault] for node, fault in faults.items() if fault in short},
        )

    def alive(self, node: str) -> bool:
        """Whether the node's machine runs."""
        return node not in self.dead

    def set(self, node: str, alive: bool) -> None:
        """Nothing; the machine runs or not from now on, and whoever listens is told when that is new."""
        self.known.add(node)
        self.ailing.discard(node)
        if alive == (node not in self.dead):
            return
        (self.dead.discard if alive else self.dead.add)(node)
        self._tell([node])

    def press(self, node: str, what: str) -> None:
        """Nothing; the node runs short of memory, disk or pids from now on, or of nothing for ""."""
        self.pressure.pop(node, None)
        self.ailing.discard(node)
        if what:
            self.pressure[node] = what
        self._tell([node])

    def told(self, node: str) -> None:
        """Nothing; whoever listens looks at the node again."""
        self._tell([node])

    def _tell(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            for handler in list(self.handlers):
                handler(node, self.alive(node))
