"""What befalls nodes and the world around a cluster while it runs, and which containers end of it.

A fault of a node is named as in a scenario's `node_faults`. What follows from one is the controllers' work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .programs import Ended, Runs

if TYPE_CHECKING:
    from .context import Context
    from .network import World

Object = dict[str, Any]

SOCKET = "/run/openvswitch/kube-ovn-daemon.sock"
PRESSURES = {"memory-pressure": "memory", "disk-pressure": "disk", "pid-pressure": "pids"}


@dataclass(frozen=True)
class Affliction:
    """What a fault does to the containers of pods with a label; `code` None means that they hang."""

    fault: str
    label: tuple[str, str]
    container: str
    said: str
    code: int | None = 1
    seconds: float = 5.0


AFFLICTIONS = (
    Affliction(
        "network", ("app", "ovs"), "ovs-ovn",
        "ovs-vswitchd: cannot open datapath: failed to open /run/openvswitch/db.sock (No such file or directory)\n",
    ),
    Affliction(
        "network", ("app", "kube-ovn-cni"), "kube-ovn-cni",
        f"failed to connect to ovs: dial unix {SOCKET}: connect: no such file or directory\n",
    ),
    # its first init container asks the API server by the address of a Service, which nothing routes any more
    Affliction(
        "network", ("k8s-app", "cilium"), "config",
        'level=error msg="Unable to contact k8s api-server" error="Get \\"https://10.96.0.1:443/api/v1/namespaces/'
        'kube-system\\": dial tcp 10.96.0.1:443: i/o timeout" subsys=cilium-dbg\n', None,
    ),
)  # fmt: skip


def affliction(world: World, pod: Object, container: Object) -> Affliction | None:
    """What ends or holds up a container where it is, or None."""
    fault = world.node_faults.get(pod["spec"].get("nodeName", ""))
    labels = pod["metadata"].get("labels") or {}
    for row in AFFLICTIONS:
        if row.fault == fault and labels.get(row.label[0]) == row.label[1] and container["name"] == row.container:
            return row
    return None


def outcome(world: World, pod: Object, container: Object) -> Ended | Runs | None:
    """How a container that is started now ends of its node's fault; None when it has nothing to do with it."""
    row = affliction(world, pod, container)
    if row is None:
        return None
    return Runs(row.said) if row.code is None else Ended(row.said, row.code, row.seconds)


def stricken(world: World, pod: Object) -> list[str]:
    """The containers of a running pod that a fault of its node ends now."""
    rows = [(container["name"], affliction(world, pod, container)) for container in pod["spec"]["containers"]]
    return [name for name, row in rows if row is not None and row.code is not None]


def changed(world: World, changes: Mapping[str, Any]) -> World:
    """The world with these changes: `node_faults`, `registries` and `names` by key ("" or None takes one away),
    `blocked` and `reachable` as new lists. Raises ValueError for another key."""
    found: dict[str, Any] = {}
    for key, value in changes.items():
        if key in {"node_faults", "registries", "names"}:
            merged = {**getattr(world, key), **value}
            found[key] = {name: what for name, what in merged.items() if what}
        elif key in {"blocked", "reachable"}:
            found[key] = tuple(value)
        else:
            raise ValueError(f"the world has no {key}; it has node_faults, registries, names, blocked, reachable")
    return replace(world, **found)


def befall(context: Context, changes: Mapping[str, Any]) -> None:
    """Nothing; the world is so from now on, and the machines whose fault changed are told."""
    before = context.world
    context.world = changed(before, changes)
    for node in sorted({*before.node_faults, *context.world.node_faults}):
        old, new = before.node_faults.get(node, ""), context.world.node_faults.get(node, "")
        if old == new:
            continue
        if "dead" in (old, new):
            context.machines.set(node, new != "dead")
        if old in PRESSURES or new in PRESSURES:
            context.machines.press(node, PRESSURES.get(new, ""))
        else:
            context.machines.told(node)
