"""The kubeadm bootstrap provider: a cloud-init document per KubeadmConfig, and the token in the tenant it names."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from . import cluster_certificates
from .alarms import Alarms
from .capi import conditions
from .capi.conditions import Conditions
from .capi.manager import Manager, api_of, at_turns
from .capi.objects import CLUSTER_NAME, CONTROL_PLANE, is_paused, moment
from .client import Key, Object, Refused, key_of
from .context import Context
from .kubeadm_documents import INIT_FILE, init_file
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "bootstrap.cluster.x-k8s.io"
TOKEN_SECONDS = 900.0
DEFAULT_VERSION = "v1.33.0"
LOCK = "lock-information"
JOIN_FILE = "/run/kubeadm/kubeadm-join-config.yaml"
DONE = "/run/cluster-api/bootstrap-success.complete"
PLACEHOLDER = (
    "This placeholder file is used to create the /run/cluster-api sub directory in a way that is compatible with both "
    "Linux and Windows (mkdir -p /run/cluster-api does not work with Windows)"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TOKENS = "/api/v1/namespaces/kube-system/secrets"


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    version, contracts = api_of(process.version)
    core = Manager(context, process, version, contracts)
    manager = Manager(context, process, version, contracts, group=GROUP)
    cache = manager.cache("kubeadmconfigs")

    def of_machine(item: Object) -> list[Key]:
        reference = (item["spec"].get("bootstrap") or {}).get("configRef") or {}
        return [(item["metadata"]["namespace"], reference["name"])] if reference.get("kind") == "KubeadmConfig" else []

    def of_cluster(item: Object) -> list[Key]:
        at = (item["metadata"]["namespace"], item["metadata"]["name"])
        return [key for key, config in cache.items.items() if (key[0], cluster_name(config)) == at]

    alarms = Alarms(context)  # tokens live in real time: a clock that does not wait must not spin

    looked: dict[Key, float] = {}  # when a token was last looked after, on the lab's clock

    async def work(key: Key, item: Object | None) -> None:
        after = await _work(core, manager, item, looked)
        if item is None:
            looked.pop(key, None)
        alarms.cancel(key) if after is None else alarms.set(key, after)

    also = [
        (alarms, Alarms.keys),
        (core.cache("machines"), of_machine),
        (core.cache("clusters"), at_turns(of_cluster)),
        (core.outside, lambda item: of_cluster(item) if item["kind"] == "Remote" else []),
    ]
    try:
        await reconcile(context, cache, work, also=also)
    finally:
        alarms.close()
        await core.remotes.close()


def cluster_name(config: Object) -> str:
    """The Cluster a bootstrap config belongs to."""
    return str((config["metadata"].get("labels") or {}).get(CLUSTER_NAME, ""))


def machine_of(core: Manager, config: Object) -> Object | None:
    """The Machine that owns a bootstrap config."""
    names = [entry["name"] for entry in config["metadata"].get("ownerReferences") or () if entry["kind"] == "Machine"]
    return core.cache("machines").get(config["metadata"]["namespace"], names[0]) if names else None


async def _work(core: Manager, manager: Manager, item: Object | None, looked: dict[Key, float]) -> float | None:
    if item is None or "deletionTimestamp" in item["metadata"]:
        return None
    cache, space = manager.cache("kubeadmconfigs"), item["metadata"]["namespace"]
    machine, cluster = machine_of(core, item), core.cache("clusters").get(space, cluster_name(item))
    if machine is None or cluster is None or is_paused(item, cluster):
        return None
    status = dict(item.get("status") or {})
    if status.get("dataSecretName"):
        return await _refresh(core, item, machine, cluster, looked)
    judged = conditions.read(item, core.context.stamp())
    waiting, plane = waits_for(cluster), CONTROL_PLANE in (machine["metadata"].get("labels") or {})
    if waiting == "WaitingForControlPlaneAvailable" and plane:
        return await _first(core, manager, item, machine, cluster)
    if waiting:
        judged.mark("DataSecretAvailable", waiting, severity="Info")
        judged.put("DataSecretAvailable", False, "NotAvailable", _why(waiting))
        _summarize(judged)
        await manager.report(cache, item, status, judged)
        manager.log("kubeadmconfig_controller", f"{_why(waiting)}, requeuing", KubeadmConfig=item["metadata"]["name"])
        return None
    name = cluster["metadata"]["name"]
    remote = core.remotes.get((space, name))
    if plane:
        await _unlock(core, space, name)
    pairs = await cluster_certificates.known(core.context, space, name)
    if "ca" not in pairs or (plane and len(pairs) < len(cluster_certificates.PURPOSES)):
        judged.mark("CertificatesAvailable", "CertificatesCorrupted", "missing certificate: ca", severity="Error")
        judged.put("CertificatesAvailable", False, "InternalError", "Please check controller logs for errors")
        _summarize(judged)
        await manager.report(cache, item, status, judged)
        return 10.0
    judged.mark("CertificatesAvailable")
    judged.put("CertificatesAvailable", True, "Available")
    if remote is None or not remote.connected:
        _summarize(judged)
        await manager.report(cache, item, status, judged)
        return 5.0
    token = token_for(core.context.seed, f"{space}/{item['metadata']['name']}/{item['metadata']['uid']}")
    await _give(core, remote.client, token)
    said = f"Creating BootstrapData for the {'joining control plane' if plane else 'worker node'}"
    manager.log("kubeadmconfig_controller", said, KubeadmConfig=item["metadata"]["name"])
    discovery = {
        "apiServerEndpoint": "{host}:{port}".format(**cluster["spec"]["controlPlaneEndpoint"]),
        "token": token,
        "caCertHashes": [hash_of(pairs["ca"][0].encode())],
    }
    version, spec = str(machine["spec"].get("version") or DEFAULT_VERSION), item["spec"]
    if plane:
        join = {"controlPlane": {}, **(spec.get("joinConfiguration") or {})}
        more = cluster_certificates.files(pairs)
        text = document({**spec, "joinConfiguration": join}, discovery, version=version, more=more)
    else:
        text = document(spec, discovery, version=version)
    await _available(core, manager, item, status, judged, text)
    looked[key_of(item)] = core.context.clock.now()
    return TOKEN_SECONDS / 3


async def _available(
    core: Manager, manager: Manager, item: Object, status: Object, judged: Conditions, text: str
) -> None:
    """Nothing; the config's document is in its Secret, and its status says so."""
    cache = manager.cache("kubeadmconfigs")
    await keep_data(core, item, text, str(item["spec"].get("format") or "cloud-config"))
    status |= {"dataSecretName": item["metadata"]["name"], "observedGeneration": item["metadata"].get("generation", 1)}
    if manager.version == "v1beta2":
        status["initialization"] = {"dataSecretCreated": True}
    else:
        status["ready"] = True
    judged.mark("DataSecretAvailable")
    judged.put("DataSecretAvailable", True, "Available")
    _summarize(judged)
    await manager.report(cache, item, status, judged)


# --- the first machine of a control plane ---------------------------------------------------------


async def _first(core: Manager, manager: Manager, item: Object, machine: Object, cluster: Object) -> float | None:
    """Makes the document of `kubeadm init` for one machine; the others wait until it has done its work."""
    space, name = item["metadata"]["namespace"], cluster["metadata"]["name"]
    if not await _lock(core, space, cluster, machine["metadata"]["name"]):
        said = "A control plane is already being initialized, requeuing until control plane is ready"
        manager.log("kubeadmconfig_controller", said, KubeadmConfig=item["metadata"]["name"])
        return 30.0
    said = "Creating BootstrapData for the first control plane"
    manager.log("kubeadmconfig_controller", said, KubeadmConfig=item["metadata"]["name"])
    judged = conditions.read(item, core.context.stamp())
    reference = {
        "apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"], "controller": True,
    }  # fmt: skip
    pairs = await cluster_certificates.complete(core.context, space, name, reference)
    judged.mark("CertificatesAvailable")
    judged.put("CertificatesAvailable", True, "Available")
    version = str(machine["spec"].get("version") or DEFAULT_VERSION)
    config = init_file(item["spec"], cluster, version)
    command = f"kubeadm init --config {INIT_FILE}{_verbosity(item['spec'])} && echo success > {DONE}"
    text = cloud_config(item["spec"], cluster_certificates.files(pairs), config, command)
    await _available(core, manager, item, dict(item.get("status") or {}), judged, text)
    return None


async def _lock(core: Manager, space: str, cluster: Object, machine: str) -> bool:
    """Whether this machine may run `kubeadm init`: a ConfigMap names the one that may."""
    name = cluster["metadata"]["name"]
    path = f"/api/v1/namespaces/{space}/configmaps"
    known = await core.context.client.find(f"{path}/{name}-lock")
    if known is None:
        owner = {part: cluster[part] for part in ("apiVersion", "kind")}
        owner |= {part: cluster["metadata"][part] for part in ("name", "uid")}
        body = {
            "metadata": {"name": f"{name}-lock", "labels": {CLUSTER_NAME: name}, "ownerReferences": [owner]},
            "data": {LOCK: json.dumps({"machineName": machine}, separators=(",", ":"))},
        }
        try:
            known = await core.context.client.create(path, body)
        except Refused as error:
            if error.code != 409:
                raise
            return False
    return bool(json.loads((known.get("data") or {}).get(LOCK, "{}")).get("machineName") == machine)


async def _unlock(core: Manager, space: str, cluster: str) -> None:
    """Nothing; nobody initializes the cluster any more."""
    try:
        await core.context.client.delete(f"/api/v1/namespaces/{space}/configmaps/{cluster}-lock")
    except Refused as error:
        if error.code != 404:
            raise


def waits_for(cluster: Object) -> str:
    """What a config has to wait for: the cluster's infrastructure, then its control plane; empty for neither."""
    status = cluster.get("status") or {}
    started = status.get("initialization") or {}
    if not (status.get("infrastructureReady") or started.get("infrastructureProvisioned")):
        return "WaitingForClusterInfrastructure"
    if conditions.old_of(cluster).get("ControlPlaneInitialized", {}).get("status") != "True":
        return "WaitingForControlPlaneAvailable"
    return ""


def _why(reason: str) -> str:
    return {
        "WaitingForClusterInfrastructure": "Waiting for Cluster status.infrastructureReady to be true",
        "WaitingForControlPlaneAvailable": "Waiting for Cluster control plane to be initialized",
    }[reason]


def _summarize(judged: Conditions) -> None:
    judged.summarize("DataSecretAvailable", "CertificatesAvailable")
    judged.summarize_new(("DataSecretAvailable", "CertificatesAvailable"), optional=("CertificatesAvailable",))


async def keep_data(core: Manager, item: Object, text: str, form: str) -> None:
    """Nothing; the Secret of the config's name holds its document."""
    space, name = item["metadata"]["namespace"], item["metadata"]["name"]
    path = f"/api/v1/namespaces/{space}/secrets"
    data = {"value": base64.b64encode(text.encode()).decode(), "format": base64.b64encode(form.encode()).decode()}
    reference = {
        "apiVersion": item["apiVersion"], "kind": item["kind"], "name": name, "uid": item["metadata"]["uid"],
        "controller": True,
    }  # fmt: skip
    label = {CLUSTER_NAME: cluster_name(item)}
    body = {"metadata": {"name": name, "labels": label, "ownerReferences": [reference]}, "data": data,
            "type": "cluster.x-k8s.io/secret"}  # fmt: skip
    try:
        await core.context.client.create(path, body)
    except Refused as error:
        if error.code != 409:
            raise
        await core.context.client.patch(f"{path}/{name}", {"data": data})


async def _refresh(
    core: Manager, item: Object, machine: Object, cluster: Object, looked: dict[Key, float]
) -> float | None:
    """Keeps the token alive until the machine is a node: a VM may take its time.

    A Machine changes often while its VM is made; the token is looked at again when a third of its life has gone.
    """
    if (machine.get("status") or {}).get("nodeRef"):
        return None
    space = item["metadata"]["namespace"]
    remote = core.remotes.get((space, cluster["metadata"]["name"]))
    if remote is None or not remote.connected:
        return TOKEN_SECONDS / 3
    now = core.context.clock.now()
    rest = looked.get(key_of(item), 0.0) + TOKEN_SECONDS / 3 - now
    if rest > 0:
        return rest
    token = token_for(core.context.seed, f"{space}/{item['metadata']['name']}/{item['metadata']['uid']}")
    path = f"{TOKENS}/bootstrap-token-{token[:6]}"
    known = await remote.client.find(path)
    looked[key_of(item)] = now
    if known is None:
        return None
    until = base64.b64decode((known.get("data") or {}).get("expiration", "")).decode()
    if moment(until) - now < TOKEN_SECONDS / 2:
        core.log("kubeadmconfig_controller", "Refreshing token until the infrastructure has a chance to consume it")
        await remote.client.patch(path, {"data": {"expiration": _packed(_expiry(core))}})
    return TOKEN_SECONDS / 3


def _expiry(core: Manager) -> str:
    at = datetime.fromtimestamp(core.context.clock.now() + TOKEN_SECONDS, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _give(core: Manager, client: Any, token: str) -> None:
    """The tenant knows the token."""
    identifier, _, secret = token.partition(".")
    rows = {
        "token-id": identifier, "token-secret": secret, "expiration": _expiry(core),
        "usage-bootstrap-signing": "true", "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        "description": "token generated by cluster-api-bootstrap-provider-kubeadm",
    }  # fmt: skip
    body = {"metadata": {"name": f"bootstrap-token-{identifier}"}, "type": "bootstrap.kubernetes.io/token",
            "data": {key: _packed(value) for key, value in rows.items()}}  # fmt: skip
    try:
        await client.create(TOKENS, body)
    except Refused as error:
        if error.code != 409:
            raise


def token_for(seed: object, words: str) -> str:
    """A bootstrap token, the same for the same words."""
    dice = random.Random(f"{seed}/token/{words}")
    return "".join(dice.choice(LETTERS) for _ in range(6)) + "." + "".join(dice.choice(LETTERS) for _ in range(16))


def hash_of(pem: bytes) -> str:
    """The pin of an authority's public key, as kubeadm writes it."""
    key = x509.load_pem_x509_certificate(pem).public_key()
    return "sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def join_configuration(spec: Mapping[str, Any], discovery: Object, version: str) -> Object:
    """What `kubeadm join` reads, in the API version of that Kubernetes."""
    given = {
        key: value for key, value in (spec.get("joinConfiguration") or {}).items() if key not in {"apiVersion", "kind"}
    }
    minor = int(version.lstrip("v").split(".")[1]) if version.count(".") else 33
    newer = minor >= 31
    registration = dict(given.get("nodeRegistration") or {})
    extra = registration.get("kubeletExtraArgs")
    if isinstance(extra, dict) and newer:
        registration["kubeletExtraArgs"] = [{"name": key, "value": value} for key, value in sorted(extra.items())]
    elif isinstance(extra, list) and not newer:
        registration["kubeletExtraArgs"] = {row["name"]: row["value"] for row in extra}
    asked = (given.get("discovery") or {}).get("bootstrapToken") or {}
    return {
        "apiVersion": f"kubeadm.k8s.io/{'v1beta4' if newer else 'v1beta3'}",
        **given,
        "discovery": {"bootstrapToken": {**discovery, **{key: value for key, value in asked.items() if value}}},
        "kind": "JoinConfiguration",
        "nodeRegistration": {"imagePullPolicy": "IfNotPresent", **registration},
    }


def document(spec: Mapping[str, Any], discovery: Object, *, version: str, more: Sequence[Object] = ()) -> str:
    """The cloud-init document of a machine that joins, with `more` files for one of the control plane."""
    config = yaml.safe_dump(join_configuration(spec, discovery, version), sort_keys=True)
    join = {"path": JOIN_FILE, "owner": "root:root", "permissions": "0640", "content": f"---\n{config}"}
    command = f"kubeadm join --config {JOIN_FILE}{_verbosity(spec)} && echo success > {DONE}"
    return cloud_config(spec, more, join, command)


def cloud_config(spec: Mapping[str, Any], certificates: Sequence[Object], config: Object, command: str) -> str:
    """The cloud-init document with kubeadm's own files and its command among what the config asks for."""
    files = [
        *certificates,
        *(dict(row) for row in spec.get("files") or () if "contentFrom" not in row),
        config,
        {"path": "/run/cluster-api/placeholder", "owner": "root:root", "permissions": "0640", "content": PLACEHOLDER},
    ]
    commands = [
        *(spec.get("preKubeadmCommands") or ()),
        command,
        *(spec.get("postKubeadmCommands") or ()),
    ]
    rest = {
        name: spec[given]
        for name, given in (("bootcmd", "bootCommands"), ("ntp", "ntp"), ("users", "users"), ("mounts", "mounts"))
        if spec.get(given)
    }
    body = yaml.dump({"write_files": files, "runcmd": commands, **rest}, Dumper=_Blocks, sort_keys=False, width=1000)
    return f"## template: jinja\n#cloud-config\n\n{body}"


def _verbosity(spec: Mapping[str, Any]) -> str:
    return f" --v {spec['verbosity']}" if spec.get("verbosity") else " "


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that people can read them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Blocks.add_representer(str, _text)

PROGRAMS = (Program("kubeadm-bootstrap-controller", run),)
