"""Large sites from a few lines: a scenario's `crowd:` as the nodes and guests it stands for.

    crowd: {nodes: 32, guests: 10000, first: 1000, running: 0.6, storage: local-lvm, config: {cores: 2, memory: 1024}}

Further nodes are like the scenario's last one; guests are spread over all nodes in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS: dict[str, Any] = {
    "ostype": "l26",
    "cores": 2,
    "memory": 1024,
    "scsihw": "virtio-scsi-single",
    "boot": "order=scsi0",
    "net0": "virtio,bridge=vmbr0",
    "tags": "crowd",
}
MOST_NODES = 32


def expanded(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `proxmox:` section with its crowd told one by one; the section itself when it has none."""
    crowd = section.get("crowd")
    if not crowd:
        return section
    nodes = dict(section.get("nodes") or {"pve1": {}})
    wanted = int(crowd.get("nodes", len(nodes)))
    if not 1 <= wanted <= MOST_NODES:
        raise ValueError(f"scenario: a cluster has 1 to {MOST_NODES} nodes, not {wanted}")
    pattern = dict(nodes[list(nodes)[-1]] or {})
    pattern.pop("ip", None)
    for number in range(len(nodes) + 1, wanted + 1):
        nodes[f"pve{number}"] = pattern
    # the scenario's own guests keep their ids
    guests = {**_guests(crowd, list(nodes)), **(section.get("guests") or {})}
    return {**section, "nodes": nodes, "guests": guests}


def _guests(crowd: Mapping[str, Any], nodes: list[str]) -> dict[int, dict[str, Any]]:
    first, count, running = int(crowd.get("first", 1000)), int(crowd.get("guests", 0)), float(crowd.get("running", 0.6))
    storage, config = str(crowd.get("storage", "local-lvm")), {**DEFAULTS, **(crowd.get("config") or {})}
    return {
        vmid: {
            "node": nodes[vmid % len(nodes)],
            # every guest's own fraction of a turn, so that the share holds on each node
            "running": (vmid - first) * 0.618 % 1.0 < running,
            "config": {**config, "name": f"crowd-{vmid}", "scsi0": f"{storage}:vm-{vmid}-disk-0,size=8G"},
        }
        for vmid in range(first, first + count)
    }
