"""How a machine joins a cluster: what kubeadm and Talos read from their documents, check, and make of it."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .kubernetes.controllers import network_plugins
from .kubernetes.controllers.bootstrap_tokens import signature
from .kubernetes.controllers.client import Refused
from .kubernetes.controllers.context import Context

Json = dict[str, Any]
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PREFLIGHT = "error execution phase preflight: "
IDENTITY = PREFLIGHT + "couldn't validate the identity of the API Server: "
REJECTED = PREFLIGHT + "unable to fetch the kubeadm-config ConfigMap: failed to get config map: Unauthorized"
UNINITIALIZED = {"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"}
PLANE_TAINT = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
PKI = "/etc/kubernetes/pki"
NEEDED = tuple(f"{PKI}/{name}" for name in ("ca.crt", "ca.key", "sa.pub", "sa.key"))
TALOS = "v1.13.6"
KUBELET_FAILED = "kubelet: failed to run Kubelet: cannot create certificate signing request: "
NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


class NotJoined(Exception):
    """The machine is no node; the text is what stands in its log."""


@dataclass(frozen=True)
class Join:
    """What a join document asks for. `hashes` pin the cluster's authority.

    Talos tells its own `version` of kubelet and its `system`, and pins the authority itself (`trust`, PEM).
    A machine of the control plane is a `plane`; `initial` is the ClusterConfiguration for the one that is its first.
    """

    endpoint: str
    token: str = ""
    hashes: tuple[str, ...] = ()
    unsafe: bool = False
    name: str = ""
    taints: tuple[Json, ...] = ()
    kubelet: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    talos: bool = False
    trust: str = ""
    version: str = ""
    system: str = ""
    plane: bool = False
    initial: Mapping[str, Any] | None = None

    @property
    def authority(self) -> tuple[str, str] | None:
        """Certificate and key of the cluster's authority, which only machines of its control plane hold."""
        found = tuple(self.files.get(f"{PKI}/ca.{end}", "") for end in ("crt", "key"))
        return (found[0], found[1]) if all(found) else None


@dataclass(frozen=True)
class Node:
    """The machine that is to become a node."""

    name: str
    hostname: str
    uuid: str
    cpus: int
    memory: int
    disk: int
    addresses: tuple[str, ...]
    version: str
    image: str


# -- documents ----------------------------------------------------------------------------------------


def join_of(text: str, meta: Mapping[str, Any]) -> Join | None:
    """What user-data ask for; None when they name no cluster. Raises NotJoined for what cannot be understood."""
    if text.startswith("## template: jinja"):
        text = rendered(text, meta)
    try:
        given = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise NotJoined(f"Failed loading yaml blob. Invalid format at line 1 column 1: {words}") from error
    if not isinstance(given, dict):
        return None
    if isinstance(given.get("machine"), dict) and "type" in given["machine"]:
        return _talos(given)
    files = {str(row["path"]): _content(row) for row in given.get("write_files") or () if "path" in row}
    commands = [_command(row) for row in given.get("runcmd") or ()]
    runs = next((row for row in commands if "kubeadm join" in row or "kubeadm init" in row), None)
    if runs is None:
        return None
    match = re.search(r"--config[= ](\S+)", runs)
    if match is None or match[1] not in files:
        path = match[1] if match else ""
        raise NotJoined(f'{PREFLIGHT}unable to read config from "{path}": open {path}: no such file or directory')
    return _initial(match[1], files) if "kubeadm init" in runs else _kubeadm(match[1], files)


def _content(row: Mapping[str, Any]) -> str:
    text = str(row.get("content", ""))
    if str(row.get("encoding", "")) in ("b64", "base64"):
        return base64.b64decode(text).decode(errors="replace")
    return text


def _command(row: Any) -> str:
    return " ".join(map(str, row)) if isinstance(row, list) else str(row)


def rendered(text: str, meta: Mapping[str, Any]) -> str:
    """The text with what cloud-init's templates know in the place of their names."""
    known = {f"ds.meta_data.{str(key).replace('-', '_')}": str(value) for key, value in meta.items()}
    host = str(meta.get("local-hostname", ""))
    known |= {"local_hostname": host, "v1.local_hostname": host, "v1.instance_id": str(meta.get("instance-id", ""))}
    return re.sub(
        r"\{\{\s*([\w.]+)\s*\}\}", lambda match: known.get(match[1], f"CI_MISSING_JINJA_VAR/{match[1]}"), text
    )


def _documents(path: str, files: Mapping[str, str]) -> list[Json]:
    try:
        return [row for row in yaml.load_all(files[path], Loader=LOADER) if isinstance(row, dict)]
    except yaml.YAMLError as error:
        raise NotJoined(f"{PREFLIGHT}error converting YAML to JSON: yaml: {error}") from error


def _initial(path: str, files: Mapping[str, str]) -> Join:
    documents = {row.get("kind"): row for row in _documents(path, files)}
    cluster, init = documents.get("ClusterConfiguration") or {}, documents.get("InitConfiguration") or {}
    node = init.get("nodeRegistration") or {}
    return Join(
        endpoint=str(cluster.get("controlPlaneEndpoint") or ""),
        name=str(node.get("name") or ""),
        taints=_plane_taints(node),
        kubelet=_arguments(node.get("kubeletExtraArgs")),
        files=dict(files),
        plane=True,
        initial={key: value for key, value in cluster.items() if key not in {"apiVersion", "kind"}},
    )


def _plane_taints(node: Mapping[str, Any]) -> tuple[Json, ...]:
    """What keeps pods off a control plane: kubeadm's own taint, unless the document names others or none."""
    return (PLANE_TAINT,) if node.get("taints") is None else tuple(node["taints"])


def _kubeadm(path: str, files: Mapping[str, str]) -> Join:
    documents = _documents(path, files)
    config = next((row for row in documents if row.get("kind") == "JoinConfiguration"), None)
    if config is None:
        raise NotJoined(f"{PREFLIGHT}no JoinConfiguration found in {path}")
    found = (config.get("discovery") or {}).get("bootstrapToken") or {}
    token = str(found.get("token") or "")
    if not re.fullmatch(r"[a-z0-9]{6}\.[a-z0-9]{16}", token):
        raise NotJoined('discovery.bootstrapToken.token: Invalid value: "": the bootstrap token is invalid')
    hashes = tuple(found.get("caCertHashes") or ())
    if not hashes and not found.get("unsafeSkipCAVerification"):
        raise NotJoined(
            'discovery.bootstrapToken.caCertHashes: Invalid value: "": using token-based discovery without '
            "caCertHashes can be unsafe. Set unsafeSkipCAVerification as true in your kubeadm config file to continue"
        )
    node, plane = config.get("nodeRegistration") or {}, config.get("controlPlane") is not None
    if plane and (missing := [name for name in NEEDED if name not in files]):
        said = ", ".join(f"couldn't load the certificate file {name}: open {name}: no such file or directory"
                         for name in missing)  # fmt: skip
        head = f"{PREFLIGHT}\nOne or more conditions for hosting a new control plane instance is not satisfied."
        raise NotJoined(f"{head}\n\n[failure loading certificate for CA: {said}]")
    return Join(
        endpoint=str(found.get("apiServerEndpoint", "")),
        token=token,
        hashes=hashes,
        unsafe=bool(found.get("unsafeSkipCAVerification")),
        name=str(node.get("name") or ""),
        taints=_plane_taints(node) if plane else tuple(node.get("taints") or ()),
        kubelet=_arguments(node.get("kubeletExtraArgs")),
        files=dict(files),
        plane=plane,
    )


def _arguments(given: Any) -> dict[str, str]:
    if isinstance(given, list):  # kubeadm v1beta4
        return {str(row["name"]): str(row.get("value", "")) for row in given}
    return {str(key): str(value) for key, value in (given or {}).items()}


def _talos(given: Mapping[str, Any]) -> Join:
    machine, cluster = given["machine"], given.get("cluster") or {}
    endpoint = str((cluster.get("controlPlane") or {}).get("endpoint", "")).removeprefix("https://").rstrip("/")
    kubelet = dict((machine.get("kubelet") or {}).get("extraArgs") or {})
    labels = ",".join(f"{key}={value}" for key, value in (machine.get("nodeLabels") or {}).items())
    if labels:
        kubelet["node-labels"] = labels
    taints = tuple(
        {"key": key, "value": str(value).partition(":")[0], "effect": str(value).rpartition(":")[2]}
        for key, value in (machine.get("nodeTaints") or {}).items()
    )
    name = str((machine.get("network") or {}).get("hostname") or "")
    image = str((machine.get("kubelet") or {}).get("image") or "").partition("@")[0]
    installer = str((machine.get("install") or {}).get("image") or "").partition("@")[0]
    return Join(
        endpoint, str(cluster.get("token") or ""), unsafe=True, name=name, taints=taints,
        kubelet={key: str(value) for key, value in kubelet.items()}, talos=True,
        trust=_decoded(str((cluster.get("ca") or {}).get("crt") or "")),
        version=image.rpartition(":")[2] if ":" in image else "",
        system=f"Talos ({installer.rpartition(':')[2] if ':' in installer else TALOS})",
    )  # fmt: skip


def _decoded(text: str) -> str:
    """What base64 holds; empty for what is none."""
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return ""


@dataclass
class Doors:
    """Connections to API servers that machines share: each of them would shake hands twice. Close them when done."""

    _sessions: dict[str, aiohttp.ClientSession] = field(default_factory=dict)

    def trusting(self, authority: str) -> aiohttp.ClientSession:
        """Requests to whoever has a certificate of that authority; of anyone for an empty one."""
        known = self._sessions.get(authority)
        if known is None:
            # create_default_context without an authority would read the system's
            context = ssl.create_default_context(cadata=authority) if authority else ssl.SSLContext(
                ssl.PROTOCOL_TLS_CLIENT)  # fmt: skip
            context.check_hostname = False
            if not authority:
                context.verify_mode = ssl.CERT_NONE
            known = self._sessions[authority] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=8), timeout=aiohttp.ClientTimeout(10),
                cookie_jar=aiohttp.DummyCookieJar(),
            )  # fmt: skip
        return known

    async def close(self) -> None:
        """Ends every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()


# -- what joining does --------------------------------------------------------------------------------


async def follow(join: Join, node: Node, url: str, context: Context | None, doors: Doors) -> None:
    """Returns once the machine is a node, which waits for its network. Raises NotJoined with the reason."""
    base = url or f"https://{join.endpoint}"
    place = f"https://{join.endpoint}"
    if not url and not join.endpoint.startswith(("127.", "localhost")):
        path = "/api/v1/namespaces/kube-public/configmaps/cluster-info?timeout=10s"
        raise NotJoined(
            f'{IDENTITY}failed to request the cluster-info ConfigMap: Get "{place}{path}": dial tcp {join.endpoint}: '
            "connect: no route to host"
        )
    await (_knock if join.talos else _discover)(join, base, place, doors)
    if context is None:
        raise NotJoined(
            f"{PREFLIGHT}unable to fetch the kubeadm-config ConfigMap: failed to get config map: Unauthorized"
        )
    await enroll(join, node, context)


async def enroll(join: Join, node: Node, context: Context) -> None:
    """Returns once the machine is a node, with the pods of a control plane if it is to be part of one."""
    path, body = f"/api/v1/nodes/{node.name}", node_object(join, node)
    if not node.version:
        version = str((await context.client.get("/version")).get("gitVersion", ""))
        body["status"]["nodeInfo"]["kubeletVersion"] = version
    status = body.pop("status")
    try:
        await context.client.create("/api/v1/nodes", body)
    except Refused as error:
        if error.reason != "AlreadyExists":
            raise NotJoined(f"error execution phase kubelet-start: {error.message}") from error
    # From here on its kubelet speaks for it, and lets it be Ready once a network plugin is there.
    told = status | {"conditions": conditions(context.stamp())}
    await context.client.patch(f"{path}/status", {"status": told})
    if join.plane:
        for pod in static_pods(join, node, str(status["nodeInfo"]["kubeletVersion"])):
            try:
                await context.client.create("/api/v1/namespaces/kube-system/pods", pod)
            except Refused as error:
                if error.reason != "AlreadyExists":
                    raise NotJoined(f"error execution phase control-plane-prepare: {error.message}") from error


async def _knock(join: Join, base: str, place: str, doors: Doors) -> None:
    """Returns once the API server took the bootstrap token of a Talos machine, and the machine its certificate."""
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    failed = f'{KUBELET_FAILED}Post "{place}{path}": '
    if not join.trust:
        raise NotJoined(f"{KUBELET_FAILED}cluster.ca.crt of the machine config holds no certificate")
    try:
        headers = {"Authorization": f"Bearer {join.token}"}
        async with doors.trusting(join.trust).get(base + path, headers=headers) as answer:
            if answer.status == 401:
                raise NotJoined(f"{KUBELET_FAILED}Unauthorized")
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
        text = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        raise NotJoined(failed + text) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotJoined(f"{failed}dial tcp {join.endpoint}: connect: connection refused") from error


async def _discover(join: Join, base: str, place: str, doors: Doors) -> None:
    path = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
    failed = f'{IDENTITY}failed to request the cluster-info ConfigMap: Get "{place}{path}?timeout=10s": '
    try:
        async with doors.trusting("").get(base + path) as answer:
            found = await answer.json(content_type=None)
            if answer.status != 200:
                raise NotJoined(f"{IDENTITY}failed to request the cluster-info ConfigMap: {found.get('message')}")
        authority = _authority(join, found)
        headers = {"Authorization": f"Bearer {join.token}"}
        where = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"
        async with doors.trusting(authority).get(base + where, headers=headers) as answer:
            if answer.status == 401:
                raise NotJoined(REJECTED)
    except aiohttp.ClientConnectorCertificateError as error:
        text = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        raise NotJoined(failed + text) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotJoined(f"{failed}dial tcp {join.endpoint}: connect: connection refused") from error


def _authority(join: Join, info: Json) -> str:
    """The authority's certificate from cluster-info, once it is signed by the token and pinned by a hash."""
    data = info.get("data") or {}
    identifier = join.token.partition(".")[0]
    if f"jws-kubeconfig-{identifier}" not in data:
        raise NotJoined(
            f'{IDENTITY}could not find a JWS signature in the cluster-info ConfigMap for token ID "{identifier}"'
        )
    signed = data[f"jws-kubeconfig-{identifier}"]
    if signed != signature(str(data.get("kubeconfig", "")), identifier, join.token.partition(".")[2]):
        raise NotJoined(
            f"{IDENTITY}failed to verify JWS signature of received cluster info object, can't trust this API Server"
        )
    try:
        config = yaml.load(data["kubeconfig"], Loader=LOADER)
        pem = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"])
        certificate = x509.load_pem_x509_certificate(pem)
    except (KeyError, IndexError, TypeError, ValueError, yaml.YAMLError) as error:
        raise NotJoined(f"{IDENTITY}couldn't parse the kubeconfig file in the cluster-info ConfigMap") from error
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = "sha256:" + hashlib.sha256(spki).hexdigest()
    if not join.unsafe and digest not in join.hashes:
        raise NotJoined(
            f"{IDENTITY}cluster CA found in cluster-info ConfigMap is invalid: none of the public keys "
            f'"{digest}" are pinned'
        )
    return pem.decode()


def conditions(now: str) -> list[Json]:
    """A node's conditions while no network plugin is there."""
    rows = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
    found = [(kind, "False", reason, text) for kind, reason, text in rows]
    found.append(("Ready", "False", "KubeletNotReady", network_plugins.MESSAGE))
    return [
        {"type": kind, "status": status, "reason": reason, "message": text, "lastHeartbeatTime": now,
         "lastTransitionTime": now}
        for kind, status, reason, text in found
    ]  # fmt: skip


def node_object(join: Join, node: Node) -> Json:
    """The Node that the machine's kubelet registers."""
    given = join.kubelet
    labels = {
        "kubernetes.io/hostname": node.hostname, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
    }  # fmt: skip
    if join.plane:
        labels |= {
            "node-role.kubernetes.io/control-plane": "", "node.kubernetes.io/exclude-from-external-load-balancers": "",
        }  # fmt: skip
    labels |= dict(part.partition("=")[::2] for part in given.get("node-labels", "").split(",") if part)
    taints = [*join.taints, *map(_taint, filter(None, given.get("register-with-taints", "").split(","))), NOT_READY]
    if given.get("cloud-provider") == "external":
        taints.append(UNINITIALIZED)
    provider = given.get("provider-id", "").strip("'\"")
    spec: Json = {"taints": [dict(row) for row in taints]}
    if provider:
        spec["providerID"] = provider
    capacity = {
        "cpu": str(node.cpus), "memory": f"{node.memory // 1024}Ki", "pods": given.get("max-pods", "110"),
        "ephemeral-storage": f"{node.disk // 1024}Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
    }  # fmt: skip
    allocatable = capacity | {
        "memory": f"{node.memory // 1024 - 100 * 1024}Ki",
        "ephemeral-storage": str(int(node.disk * 0.9)),
    }
    digest = hashlib.md5(node.uuid.encode(), usedforsecurity=False).hexdigest()
    external = given.get("cloud-provider") == "external"
    own = (
        []
        if external and not given.get("node-ip")
        else [
            {"type": "InternalIP", "address": address} for address in (given.get("node-ip"), *node.addresses) if address
        ]
    )
    first = list({row["address"]: row for row in own}.values())
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node.name, "labels": labels,
            "annotations": {
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                **({"alpha.kubernetes.io/provided-node-ip": given["node-ip"]} if given.get("node-ip") else {}),
            },
        },
        "spec": spec,
        "status": {
            "capacity": capacity, "allocatable": allocatable,
            "addresses": [*first, {"type": "Hostname", "address": node.hostname}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "systemUUID": node.uuid, "machineID": digest,
                "bootID": f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:]}",
                "kernelVersion": "6.8.0-79-generic", "osImage": node.image, "kubeletVersion": node.version,
                "kubeProxyVersion": node.version, "containerRuntimeVersion": "containerd://2.1.4",
            },
        },
    }  # fmt: skip


def static_pods(join: Join, node: Node, version: str) -> list[Json]:
    """The mirrors of a control plane machine's own pods, as its kubelet shows them."""
    address = next(iter(node.addresses), "")
    rows = {
        "kube-apiserver": (f"registry.k8s.io/kube-apiserver:{version}", "250m"),
        "kube-controller-manager": (f"registry.k8s.io/kube-controller-manager:{version}", "200m"),
        "kube-scheduler": (f"registry.k8s.io/kube-scheduler:{version}", "100m"),
        "etcd": ("registry.k8s.io/etcd:3.5.24-0", "100m"),
    }
    found = []
    for name, (image, cpu) in rows.items():
        digest = hashlib.md5(f"{name}/{node.uuid}/{version}".encode(), usedforsecurity=False).hexdigest()
        notes = {"kubernetes.io/config.hash": digest, "kubernetes.io/config.mirror": digest,
                 "kubernetes.io/config.source": "file"}  # fmt: skip
        if name == "etcd":
            notes["kubeadm.kubernetes.io/etcd.advertise-client-urls"] = f"https://{address}:2379"
        if name == "kube-apiserver":
            notes["kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint"] = f"{address}:6443"
        container = {"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": [name],
                     "resources": {"requests": {"cpu": cpu}}}  # fmt: skip
        labels = {"component": name, "tier": "control-plane"}
        found.append({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"{name}-{node.name}", "namespace": "kube-system", "labels": labels,
                         "annotations": notes},
            "spec": {
                "nodeName": node.name, "hostNetwork": True, "priorityClassName": "system-node-critical",
                "containers": [container], "enableServiceLinks": False, "restartPolicy": "Always",
                "tolerations": [{"effect": "NoExecute", "operator": "Exists"}],
            },
        })  # fmt: skip
    return found


def _taint(text: str) -> Json:
    body, _, effect = text.rpartition(":")
    key, _, value = body.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}
