"""The Talos bootstrap provider 0.6: a machine config per TalosConfig, and the token in the tenant it names."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .capi import conditions
from .capi.manager import Manager, api_of, at_turns
from .capi.objects import CLUSTER_NAME, is_paused
from .client import Key, Object, Refused
from .context import Context
from .kubeadm_bootstrap import cluster_name, machine_of, token_for, waits_for
from .processes import Process, Program
from .reconcile import reconcile

PATH = "/apis/bootstrap.cluster.x-k8s.io/v1alpha3/talosconfigs"
JOINS = frozenset({"join", "worker"})
KINDS = frozenset({"controlplane", "init", "none"}) | JOINS
TOKENS = "/api/v1/namespaces/kube-system/secrets"


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    newer = context.cache("/apis/cluster.x-k8s.io/v1beta2/clusters")
    await newer.synced.wait()
    version, contracts = api_of("v1.11.0" if newer.known else "v1.10.0")
    core = Manager(context, process, version, contracts)
    cache = context.cache(PATH)

    def of_machine(item: Object) -> list[Key]:
        reference = (item["spec"].get("bootstrap") or {}).get("configRef") or {}
        return [(item["metadata"]["namespace"], reference["name"])] if reference.get("kind") == "TalosConfig" else []

    def of_cluster(item: Object) -> list[Key]:
        at = (item["metadata"]["namespace"], item["metadata"]["name"])
        return [key for key, config in cache.items.items() if (key[0], cluster_name(config)) == at]

    def outside(item: Object) -> list[Key]:
        return of_cluster(item) if item["kind"] == "Remote" else []

    async def work(key: Key, item: Object | None) -> float | None:
        return await _work(core, item)

    also = [
        (core.cache("machines"), of_machine),
        (core.cache("clusters"), at_turns(of_cluster)),
        (core.outside, outside),
    ]
    try:
        await reconcile(context, cache, work, also=also)
    finally:
        await core.remotes.close()


async def _work(core: Manager, item: Object | None) -> float | None:
    if item is None or "deletionTimestamp" in item["metadata"]:
        return None
    cache, space = core.context.cache(PATH), item["metadata"]["namespace"]
    machine, cluster = machine_of(core, item), core.cache("clusters").get(space, cluster_name(item))
    status = dict(item.get("status") or {})
    if machine is None or cluster is None or is_paused(item, cluster) or status.get("dataSecretName"):
        return None
    judged = conditions.Conditions(
        core.context.stamp(), old={entry["type"]: entry for entry in status.get("conditions") or ()}
    )

    async def report() -> None:
        judged.summarize("DataSecretAvailable")
        await core.report(cache, item, {**status, "conditions": judged.lists()[0]})

    kind = str(item["spec"].get("generateType", ""))
    waiting = waits_for(cluster)
    if waiting and (waiting == "WaitingForClusterInfrastructure" or kind in JOINS):
        judged.mark("DataSecretAvailable", waiting, severity="Info")
        await report()
        return None
    host = (cluster["spec"].get("controlPlaneEndpoint") or {}).get("host")
    if kind not in KINDS or not host:
        said = (
            f"unknown generate type specified: {kind!r}".replace("'", '"')
            if host
            else "cluster control plane endpoint is not set"
        )
        judged.mark("DataSecretAvailable", "DataSecretGenerationFailed", said, severity="Error")
        status |= {"failureReason": "CreateBootstrapError", "failureMessage": said} if host else {}
        await report()
        return None if host else 10.0
    try:
        text = await _document(core, item, machine, cluster, kind)
    except ValueError as error:
        judged.mark("DataSecretAvailable", "DataSecretGenerationFailed", str(error), severity="Error")
        await report()
        return None
    if text is None:
        return 5.0
    name = f"{machine['metadata']['name']}-bootstrap-data"
    await _keep(core, item, name, text)
    status |= {"dataSecretName": name, "ready": True, "observedGeneration": item["metadata"].get("generation", 1)}
    judged.mark("DataSecretAvailable")
    await report()
    core.log("talosconfig_controller", "Successfully generated machine config", TalosConfig=item["metadata"]["name"])
    return None


async def _document(core: Manager, item: Object, machine: Object, cluster: Object, kind: str) -> str | None:
    """The machine config; None while the cluster that is to know its token cannot be asked."""
    spec, space = item["spec"], item["metadata"]["namespace"]
    if kind == "none":
        return str(spec.get("data", ""))
    token = token_for(core.context.seed, f"{space}/{cluster['metadata']['name']}/talos/{cluster['metadata']['uid']}")
    authority = await core.context.client.find(f"/api/v1/namespaces/{space}/secrets/{cluster['metadata']['name']}-ca")
    if kind in JOINS:
        remote = core.remotes.get((space, cluster["metadata"]["name"]))
        if remote is None or not remote.connected:
            return None
        identifier, _, secret = token.partition(".")
        rows = {"token-id": identifier, "token-secret": secret, "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:nodes"}  # fmt: skip
        body = {"metadata": {"name": f"bootstrap-token-{identifier}"}, "type": "bootstrap.kubernetes.io/token",
                "data": {key: _packed(value) for key, value in rows.items()}}  # fmt: skip
        try:
            await remote.client.create(TOKENS, body)
        except Refused as error:
            if error.code != 409:
                raise
    config = machine_config(machine, cluster, kind, token, ((authority or {}).get("data") or {}).get("tls.crt", ""))
    hostname = (spec.get("hostname") or {}).get("source")
    if hostname == "MachineName":
        config["machine"].setdefault("network", {})["hostname"] = machine["metadata"]["name"]
    return yaml.safe_dump(
        patched(config, spec.get("strategicPatches") or (), spec.get("configPatches") or ()), sort_keys=False
    )


def machine_config(machine: Object, cluster: Object, kind: str, token: str, authority: str) -> Object:
    """What `talosctl gen config` writes, as far as a machine that joins needs it."""
    endpoint, network = cluster["spec"]["controlPlaneEndpoint"], cluster["spec"].get("clusterNetwork") or {}
    version = str(machine["spec"].get("version") or "v1.33.0")
    pods = (network.get("pods") or {}).get("cidrBlocks") or ["10.244.0.0/16"]
    services = (network.get("services") or {}).get("cidrBlocks") or ["10.96.0.0/12"]
    digest = hashlib.sha256(f"{token}/cluster".encode()).digest()
    return {
        "version": "v1alpha1",
        "debug": False,
        "persist": True,
        "machine": {
            "type": "worker" if kind in JOINS else "controlplane",
            "token": token[::-1],
            "certSANs": [],
            "kubelet": {"image": f"ghcr.io/siderolabs/kubelet:{version}", "defaultRuntimeSeccompProfileEnabled": True},
            "install": {"disk": "/dev/sda", "wipe": False},
            "features": {"rbac": True, "stableHostname": True},
        },
        "cluster": {
            "id": base64.urlsafe_b64encode(digest).decode(),
            "secret": base64.b64encode(digest[::-1]).decode(),
            "controlPlane": {"endpoint": f"https://{endpoint['host']}:{endpoint['port']}"},
            "clusterName": cluster["metadata"]["name"],
            "network": {"dnsDomain": "cluster.local", "podSubnets": pods, "serviceSubnets": services},
            "token": token,
            "ca": {"crt": authority, "key": ""},
        },
    }


def patched(config: Object, strategic: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> Object:
    """The machine config after its patches. Raises ValueError for one that does not fit."""
    made: Object = json.loads(json.dumps(config))
    for step in steps:
        _step(made, step)
    for text in strategic:
        given = yaml.safe_load(text)
        if not isinstance(given, dict):
            raise ValueError("failure applying strategic patches: delegate: not a document")
        made = _merged(made, given)
    return made


def _step(config: Object, step: Mapping[str, Any]) -> None:
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in str(step["path"]).strip("/").split("/")]
    holder: Any = config
    for part in way:
        holder = holder[int(part)] if isinstance(holder, list) else holder.get(part)
        if holder is None:
            raise ValueError(
                f"failure applying rfc6902 patches to talos machine config: {step['op']} operation does not apply: "
                f"doc is missing path: {step['path']}: missing value"
            )
    if isinstance(holder, list):
        if step["op"] == "add":
            holder.insert(len(holder) if last == "-" else int(last), step["value"])
        elif step["op"] == "remove":
            holder.pop(int(last))
        else:
            holder[int(last)] = step["value"]
    elif step["op"] == "remove":
        holder.pop(last, None)
    else:
        holder[last] = step.get("value")


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    return new


def _packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _keep(core: Manager, item: Object, name: str, text: str) -> None:
    path = f"/api/v1/namespaces/{item['metadata']['namespace']}/secrets"
    reference = {
        "apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    label = {CLUSTER_NAME: cluster_name(item)}
    body = {
        "metadata": {"name": name, "labels": label, "ownerReferences": [reference]},
        "data": {"value": _packed(text)},
    }
    try:
        await core.context.client.create(path, body)
    except Refused as error:
        if error.code != 409:
            raise
        await core.context.client.patch(f"{path}/{name}", {"data": body["data"]})


PROGRAMS = (Program("cluster-api-talos-controller", run),)
