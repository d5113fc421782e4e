"""Clusters made, joined and left, and custom CPU models: what /cluster keeps besides guests.

Source: the vendor's PVE/API2/ClusterConfig.pm.
"""

from __future__ import annotations

from typing import Any

from .cluster import config_nodes, totem
from .declared import declared
from .declared.cpu_models import TABLE as CPU_TABLE
from .declared.joining import TABLE
from .hardware import FLAGS, cpu_flags
from .nodes import certificate_rows
from .routing import Call, PveError, param_error, split_list
from .schema import format_check
from .sections import Section, Sections, check_digest, digest_of, stored
from .worker import TaskContext, TaskError

endpoint, model_endpoint = declared(TABLE), declared(CPU_TABLE)


@format_check("pve-phys-bits")
def _physical_bits(value: str) -> None:
    if value != "host" and not (value.isdecimal() and 8 <= int(value) <= 64):
        raise ValueError(f"invalid value for phys-bits '{value}', expected 'host' or a number between 8 and 64\n")


@endpoint("GET /cluster/config/join")
def join_information(call: Call) -> dict[str, Any]:
    """What a node needs to know to join."""
    state = call.state
    if state.cluster_name is None:
        raise PveError(424, "node is not in a cluster, no join info available!", newline=False)
    preferred = call.params.get("node") or state.local_node
    if preferred not in state.nodes:
        raise PveError(500, f"unknown node '{preferred}'")
    rows = []
    for row in config_nodes(call):
        found = certificate_rows(state, state.nodes[row["name"]])[-1]
        kept = {key: value for key, value in row.items() if key != "node"}
        rows.append({**kept, "pve_addr": state.nodes[row["name"]].ip, "pve_fp": found["fingerprint"]})
    layout = totem(call)
    digest = digest_of([layout, [row["name"] for row in rows]])
    return {"config_digest": digest, "nodelist": rows, "preferred_node": preferred, "totem": layout}


@endpoint("POST /cluster/config", "root-only")
def create_cluster(call: Call) -> str:
    """The UPID of a cluster's making of a standalone node."""
    state, name = call.state, call.params["clustername"]
    if state.cluster_name is not None:
        raise PveError(500, "cluster config '/etc/pve/corosync.conf' already exists")

    async def work(task: TaskContext) -> None:
        task.log("Corosync Cluster Engine Authentication key generator.")
        await task.sleep(2)
        task.log("Writing corosync config to /etc/pve/corosync.conf")
        state.cluster_name = name
        task.log("Restart corosync and cluster filesystem")

    return call.task("clustercreate", name, work)


@endpoint("POST /cluster/config/join", "root-only")
def join_cluster(call: Call) -> str:
    """The UPID of a join, which fails: a node with a cluster or guests is refused, another one reaches nobody."""
    state, host = call.state, call.params["hostname"]

    def work(task: TaskContext) -> None:
        errors = []
        if state.cluster_name is not None:
            errors += ["cluster config '/etc/pve/corosync.conf' already exists"]
        if state.guests:
            errors += ["this host already contains virtual guests"]
        for error in errors:
            task.log(f"* {error}")
        if errors:
            raise TaskError("Check if node may join a cluster failed!")
        task.log("Establishing API connection with host '" + host + "'")
        raise TaskError(f"500 Can't connect to {host}:8006 (Connection refused)")

    return call.task("clusterjoin", "", work)


@endpoint("POST /cluster/config/nodes/{node}", "root-only")
def add_node(call: Call) -> dict[str, Any]:
    """Refused: no node of that name asks to be let in."""
    state, name = call.state, call.params["node"]
    if state.cluster_name is None:
        raise PveError(500, "unable to add node: not part of a cluster")
    if name in state.nodes and not call.params.get("force"):
        raise PveError(500, f"can't add existing node '{name}'")
    raise PveError(500, f"unable to add node '{name}': no join request was made")


@endpoint("DELETE /cluster/config/nodes/{node}", "root-only")
def remove_node(call: Call) -> None:
    """Nothing; a node that is off is no part of the cluster any more."""
    state, name = call.state, call.params["node"]
    if name not in state.nodes:
        raise PveError(500, f"Node/IP: {name} is not a known host of the cluster.")
    if name == state.local_node:
        raise PveError(500, "Cannot delete myself from cluster!")
    if any(guest.node == name for guest in state.guests.values()) and state.nodes[name].online:
        raise PveError(500, f"Cannot delete node '{name}': it is online and has guests")
    if state.nodes[name].online:
        raise PveError(500, f"Cannot delete node '{name}': it is still online")
    for vmid in [guest.vmid for guest in state.guests.values() if guest.node == name]:
        del state.guests[vmid]
    del state.nodes[name]


# --- CPU models -----------------------------------------------------------------------------------


def models(call: Call) -> Sections:
    """The custom CPU models, by name without their `custom-`."""
    found: Sections = call.state.areas.setdefault("cpu_models", {})
    return found


def short(call: Call) -> str:
    """The name a request means, with or without `custom-` before it."""
    return str(call.params["cputype"]).removeprefix("custom-")


def model_of(call: Call) -> Section:
    """The model a path names, or the 500 that there is none."""
    if short(call) not in models(call):
        raise PveError(500, f"Custom cputype '{short(call)}' not found")
    return models(call)[short(call)]


@model_endpoint("GET /cluster/qemu")
def qemu_index(call: Call) -> list[dict[str, str]]:
    """The names below qemu."""
    return [{"name": "cpu-flags"}, {"name": "custom-cpu-models"}]


@model_endpoint("GET /cluster/qemu/cpu-flags")
def all_flags(call: Call) -> list[dict[str, Any]]:
    """The CPU flags and the nodes that know them."""
    return cpu_flags(call) if FLAGS else []


@model_endpoint("GET /cluster/qemu/custom-cpu-models")
def list_models(call: Call) -> list[Section]:
    """The custom models the caller may see."""
    return [
        {"cputype": f"custom-{name}", **entry}
        for name, entry in models(call).items()
        if call.allowed(f"/mapping/cpu/{name}", "Mapping.Audit", "Mapping.Use", "Mapping.Modify", any_of=True)
    ]


@model_endpoint("GET /cluster/qemu/custom-cpu-models/{cputype}")
def get_model(call: Call) -> Section:
    """One custom model."""
    return {"cputype": f"custom-{short(call)}", **model_of(call), "digest": digest_of(models(call))}


@model_endpoint("POST /cluster/qemu/custom-cpu-models")
def create_model(call: Call) -> None:
    """Nothing; the model is there."""
    if short(call) in models(call):
        raise PveError(500, f"CPU model '{short(call)}' already exists")
    models(call)[short(call)] = stored(call.params, without=("cputype",))


@model_endpoint("PUT /cluster/qemu/custom-cpu-models/{cputype}")
def change_model(call: Call) -> None:
    """Nothing; the model is as asked."""
    check_digest(call.params.get("digest"), models(call))
    model = model_of(call)
    given = stored(call.params, without=("cputype",))
    for key in split_list(call.params.get("delete", "")):
        if key in given:
            raise param_error({"delete": f"cannot set and delete property '{key}' at the same time!"})
        if key == "reported-model":
            raise PveError(500, "unable to delete required option 'reported-model'")
        model.pop(key, None)
    model.update(given)


@model_endpoint("DELETE /cluster/qemu/custom-cpu-models/{cputype}")
def delete_model(call: Call) -> None:
    """Nothing; the model is gone, unless a VM has it."""
    model_of(call)
    for guest in call.state.guests.values():
        if f"custom-{short(call)}" in str(guest.config.get("cpu", "")):
            raise PveError(500, f"CPU model '{short(call)}' is still in use by VM {guest.vmid}")
    del models(call)[short(call)]
