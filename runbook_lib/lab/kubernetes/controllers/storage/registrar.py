"""A node's CSI plugin and its registrar: the driver's entry in the node's CSINode."""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp

from ..client import Object, Refused
from ..context import Context
from ..klog import line
from ..processes import Exit, Process, Program
from . import proxmox_driver
from .provisioner import CSI_NODES

log = logging.getLogger(__name__)

MOST_LABEL = "csi.proxmox.sinextra.dev/max-volume-attachments"
MOST, MOST_EVER = 24, 30
PLUGIN, REGISTRAR = "proxmox-csi-node", "csi-node-driver-registrar"
NODE_IDS = "csi.volume.kubernetes.io/nodeid"


def image_of(container: Object) -> str:
    """The last part of the image's repository."""
    return str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[0]


def entry_of(node: Object) -> Object:
    """The driver's entry for the node. Raises ValueError with the plugin's words."""
    name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
    for label, word in ((proxmox_driver.REGION, "region"), (proxmox_driver.ZONE, "zone")):
        if not labels.get(label):
            raise ValueError(f"rpc error: code = Internal desc = failed to get {word} for node {name}")
    told = labels.get(MOST_LABEL, "")
    most = min(int(told), MOST_EVER) if told.isdigit() and int(told) > 0 else MOST
    return {
        "name": proxmox_driver.NAME,
        "nodeID": name,
        "topologyKeys": [proxmox_driver.REGION, proxmox_driver.ZONE],
        "allocatable": {"count": most},
    }


async def register(context: Context, node: Object) -> None:
    """Nothing; the node's CSINode has the driver. Raises ValueError when the plugin cannot tell where it is."""
    name, wanted = node["metadata"]["name"], entry_of(node)
    client, path = context.client, f"{CSI_NODES}/{node['metadata']['name']}"
    item = await client.find(path)
    if item is None:
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        await client.create(CSI_NODES, {
            "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "spec": {"drivers": [wanted]},
            "metadata": {"name": name, "ownerReferences": [owner]}})  # fmt: skip
    else:
        rows = (item.get("spec") or {}).get("drivers") or []
        rest = [row for row in rows if row["name"] != wanted["name"]]
        if wanted not in rows:
            await client.patch(path, {"metadata": {"resourceVersion": item["metadata"]["resourceVersion"]},
                                      "spec": {"drivers": [*rest, wanted]}})  # fmt: skip
    notes = node["metadata"].get("annotations") or {}
    known = json.loads(notes.get(NODE_IDS) or "{}")
    if known.get(wanted["name"]) != name:
        told = json.dumps({**known, wanted["name"]: name}, separators=(",", ":"), sort_keys=True)
        await client.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {NODE_IDS: told}}})


async def _register(context: Context, process: Process) -> None:
    name = process.env.get("NODE_NAME") or str((process.pod.get("spec") or {}).get("nodeName", ""))
    node = await context.client.find(f"/api/v1/nodes/{name}")
    say, now = process.write, context.clock.now
    say(line(now(), "I", "main.go:150", "Version", version=process.version))
    if node is None:
        await asyncio.Event().wait()
        return
    try:
        await register(context, node)
    except ValueError as error:
        said = f"RegisterPlugin error -- plugin registration failed with err: {error}"
        said = f"Registration process failed with error, restarting registration container: {said}"
        raise Exit(1, line(now(), "E", "main.go:108", said)) from error
    say(line(now(), "I", "main.go:101", "Received NotifyRegistrationStatus call", status="plugin_registered:true"))
    await asyncio.Event().wait()


async def plugin(context: Context, process: Process) -> None:
    """The node's plugin; it registers itself where its pod has no registrar."""
    siblings = (process.pod.get("spec") or {}).get("containers") or ()
    if any(image_of(entry) == REGISTRAR for entry in siblings):
        process.write(
            line(context.clock.now(), "I", "main.go:130", 'Listening for connection on address: "/csi/csi.sock"')
        )
        await asyncio.Event().wait()
    await _register(context, process)


async def registrar(context: Context, process: Process) -> None:
    """The registrar beside the plugin; beside another driver's plugin it finds everything registered."""
    siblings = (process.pod.get("spec") or {}).get("containers") or ()
    if not any(image_of(entry) == PLUGIN for entry in siblings):
        await asyncio.Event().wait()
    await _register(context, process)


# -- the kubelet's part ------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """A plugin's socket goes with its pod: the node's kubelet takes the driver out of the CSINode."""
    gone: asyncio.Queue[str] = asyncio.Queue()

    def changed(kind: str, pod: Object) -> None:
        if kind == "DELETED" and _has_plugin(pod):
            gone.put_nowait(str(pod["spec"].get("nodeName", "")))

    context.pods.handlers.append(changed)
    try:
        while True:
            node = await gone.get()
            try:
                await _unregister(context, node)
            except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("driver of %s: %s", node, error)
    finally:
        context.pods.handlers.remove(changed)


def _has_plugin(pod: Object) -> bool:
    return any(image_of(entry) == PLUGIN for entry in (pod.get("spec") or {}).get("containers") or ())


async def _unregister(context: Context, node: str) -> None:
    if any(pod["spec"].get("nodeName") == node and _has_plugin(pod) for pod in context.pods.items.values()):
        return
    item = await context.client.find(f"{CSI_NODES}/{node}")
    rows = ((item or {}).get("spec") or {}).get("drivers") or []
    rest = [row for row in rows if row["name"] != proxmox_driver.NAME]
    if item is not None and rest != rows:
        meta = {"resourceVersion": item["metadata"]["resourceVersion"]}
        await context.client.patch(f"{CSI_NODES}/{node}", {"metadata": meta, "spec": {"drivers": rest}})


PROGRAMS = (Program(PLUGIN, plugin, leads=False), Program(REGISTRAR, registrar, leads=False))
