"""Tenant control planes: each another cluster with its own authority, served on a loopback port of its own."""

from __future__ import annotations

import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .clock import Clock
from .kubernetes import certificates, state
from .kubernetes.cluster import Cluster, User
from .kubernetes.controllers import Handles, start_all
from .kubernetes.controllers.authorities import client_certificate, issued, kubeconfig, make_authority
from .kubernetes.controllers.context import Context
from .kubernetes.controllers.control_planes import Endpoint
from .kubernetes.server import create_app

Json = dict[str, Any]
Key = tuple[str, str]
Told = Callable[[str, str, Context], None]
"""Hears of a control plane that answers: its "host:port", its URL and what runs its controllers."""

FIRST_PORT, LAST_PORT = 16443, 32767  # Kamaji's provider 0.19 reads the port into 16 signed bits
CONTROLLERS = ("system:masters", "system:authenticated")
SERVICES = "10.95.0.0/16"


@dataclass
class Tenant:
    """One served control plane."""

    cluster: Cluster
    runner: web.AppRunner
    endpoint: Endpoint
    handles: Handles


@dataclass
class Tenants:
    """The control planes of one lab, by namespace and name. `kept` holds what those that are down will begin with."""

    clock: Clock
    section: Mapping[str, Any] = field(default_factory=dict)
    kept: dict[str, Json] = field(default_factory=dict)
    _running: dict[Key, Tenant] = field(default_factory=dict)
    _told: list[Told] = field(default_factory=list)

    def listen(self, told: Told) -> None:
        """Nothing; it hears of every control plane that answers, now and later."""
        self._told.append(told)
        for tenant in self._running.values():
            self._tell(tenant, told)

    def _tell(self, tenant: Tenant, told: Told) -> None:
        endpoint = tenant.endpoint
        told(f"{endpoint.host}:{endpoint.port}", f"https://{endpoint.host}:{endpoint.port}", tenant.handles.context)

    async def start(
        self,
        namespace: str,
        name: str,
        version: str,
        *,
        authority: tuple[str, str] | None = None,
        place: str = "",
        configuration: Mapping[str, Any] | None = None,
    ) -> Endpoint:
        """Where the control plane answers; it is started if it does not yet, with this authority or a new one.

        `place` is the "host:port" that its clients know; on loopback it is where it answers. `configuration` is the
        ClusterConfiguration of a cluster that kubeadm made.
        """
        key = (namespace, name)
        if known := self._running.get(key):
            known.cluster.version = version
            return known.endpoint
        kept = self.kept.pop(f"{namespace}/{name}", {})
        told = kept.get("authority")
        ca_pem, ca_key = authority or ((told[0], told[1]) if told else make_authority())
        host, _, wish = place.rpartition(":")
        listening = _listen(int(kept.get("port", 0)) or (int(wish) if on_loopback(host) else 0))
        port = int(listening.getsockname()[1])
        title = str((configuration or {}).get("clusterName") or name)
        context = _serving(ca_pem, ca_key, [host] if place else [name, f"{name}.{namespace}.svc"])
        services = str(((configuration or {}).get("networking") or {}).get("serviceSubnet") or SERVICES)
        cluster = Cluster(self.clock, version=version, services=services)
        cluster.ca_pem = ca_pem
        cluster.signer = certificates.signer(ca_pem.encode(), ca_key.encode())
        url = f"https://127.0.0.1:{port}"
        if "cluster" in kept:
            state.restore(cluster, kept["cluster"])
        else:
            named = f"https://{place}" if place else url
            cluster.load(first_objects(title, named, ca_pem, version, configuration))
        token = secrets.token_urlsafe(24)
        cluster.tokens[token] = User("system:kube-controller-manager", CONTROLLERS)
        runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listening, ssl_context=context).start()
        admin = kubeconfig(
            title, url, ca_pem, *client_certificate(ca_pem, ca_key, "kubernetes-admin", "system:masters")
        )
        endpoint = Endpoint("127.0.0.1", port, ca_pem, ca_key, admin)
        with tempfile.TemporaryDirectory() as folder:
            ca_file = Path(folder) / "ca.pem"
            ca_file.write_text(ca_pem)
            handles = await start_all(url, token, str(ca_file), self.clock, _inside(self.section))
        cluster.pod_log = handles.kubelets.pod_log
        cluster.pod_exec = cast(Any, handles.kubelets.pod_exec)
        tenant = self._running[key] = Tenant(cluster, runner, endpoint, handles)
        for told in self._told:
            self._tell(tenant, told)
        return endpoint

    async def stop(self, namespace: str, name: str, *, forget: bool = True) -> None:
        """Nothing answers there any more; what it knew is forgotten unless it is only down."""
        tenant = self._running.pop((namespace, name), None)
        if forget:
            self.kept.pop(f"{namespace}/{name}", None)
        if tenant is None:
            return
        if not forget:
            self.kept[f"{namespace}/{name}"] = _taken(tenant)
        await tenant.handles.stop()
        await tenant.runner.cleanup()

    async def close(self) -> None:
        """Nothing answers any more."""
        for namespace, name in list(self._running):
            await self.stop(namespace, name)

    def taken(self) -> dict[str, Json]:
        """What every control plane knows, for `kept` of another Tenants."""
        return {**self.kept, **{"/".join(key): _taken(tenant) for key, tenant in self._running.items()}}


def _taken(tenant: Tenant) -> Json:
    endpoint = tenant.endpoint
    authority = [endpoint.ca_pem, endpoint.ca_key]
    return {"port": endpoint.port, "authority": authority, "cluster": state.snapshot(tenant.cluster)}


def _inside(section: Mapping[str, Any]) -> Json:
    """What of a scenario holds in its tenants too: the world around, not the faults of nodes they do not have."""
    return {key: value for key, value in section.items() if key in {"network", "registries", "seed"}}


def on_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    return host == "localhost" or host.startswith("127.")


def _listen(wish: int) -> socket.socket:
    for port in (*((wish,) if wish else ()), *range(FIRST_PORT, LAST_PORT)):
        try:
            return socket.create_server(("127.0.0.1", port), backlog=128)
        except OSError:
            continue
    raise OSError("no free port for a tenant control plane")


# --- certificates -------------------------------------------------------------------------------------------------


def _serving(ca_pem: str, ca_key: str, names: list[str]) -> ssl.SSLContext:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    wanted = [*names, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1"]
    certificate, key = issued(ca_pem, ca_key, subject, ExtendedKeyUsageOID.SERVER_AUTH, wanted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:  # ssl reads a key from files alone
        file.write(certificate.encode() + key.encode())
        file.flush()
        context.load_cert_chain(file.name)
    context.verify_mode = ssl.CERT_OPTIONAL  # a client certificate of the authority names its user
    context.load_verify_locations(cadata=ca_pem)
    return context


# --- what a fresh cluster holds -----------------------------------------------------------------------------------


def first_objects(
    name: str, url: str, ca_pem: str, version: str, configuration: Mapping[str, Any] | None = None
) -> list[Json]:
    """What `kubeadm init` leaves in a cluster: cluster-info, the kubeadm and kubelet configs, and who may read them."""
    cluster = {
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "clusterName": name,
        "kubernetesVersion": version, "controlPlaneEndpoint": url.removeprefix("https://"),
        "networking": {"dnsDomain": "cluster.local", "podSubnet": "10.243.0.0/16", "serviceSubnet": SERVICES},
        **(configuration or {}),
    }  # fmt: skip
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "cgroupDriver": "systemd",
        "clusterDNS": ["10.95.0.10"], "clusterDomain": "cluster.local", "rotateCertificates": True,
    }  # fmt: skip
    tokens = "system:bootstrappers:kubeadm:default-node-token"
    read_map = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}

    def role(space: str, title: str, only: str, *subjects: tuple[str, str]) -> list[Json]:
        return [
            _thing("Role", title, space, rules=[{**read_map, "resourceNames": [only]}]),
            _thing(
                "RoleBinding", title, space, roleRef=_role("Role", title), subjects=[_subject(*row) for row in subjects]
            ),
        ]

    signing = [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"],
                "verbs": ["create", "get", "list", "watch"]}]  # fmt: skip

    def approve(kind: str) -> list[Json]:
        return [
            {
                "apiGroups": ["certificates.k8s.io"],
                "resources": [f"certificatesigningrequests/{kind}"],
                "verbs": ["create"],
            }
        ]

    client = "system:certificates.k8s.io:certificatesigningrequests:"
    rules = [
        ("system:node-bootstrapper", signing, "kubeadm:kubelet-bootstrap", tokens),
        (f"{client}nodeclient", approve("nodeclient"), "kubeadm:node-autoapprove-bootstrap", tokens),
        (
            f"{client}selfnodeclient",
            approve("selfnodeclient"),
            "kubeadm:node-autoapprove-certificate-rotation",
            "system:nodes",
        ),
        (
            "kubeadm:get-nodes",
            [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}],
            "kubeadm:get-nodes",
            tokens,
        ),
    ]
    found = [
        _thing("ConfigMap", "cluster-info", "kube-public", data={"kubeconfig": kubeconfig(name, url, ca_pem)}),
        _thing("ConfigMap", "kubeadm-config", "kube-system", data={"ClusterConfiguration": yaml.safe_dump(cluster)}),
        _thing("ConfigMap", "kubelet-config", "kube-system", data={"kubelet": yaml.safe_dump(kubelet)}),
        *role("kube-public", "kubeadm:bootstrap-signer-clusterinfo", "cluster-info", ("User", "system:anonymous")),
        *role(
            "kube-system",
            "kubeadm:nodes-kubeadm-config",
            "kubeadm-config",
            ("Group", tokens),
            ("Group", "system:nodes"),
        ),
        *role("kube-system", "kubeadm:kubelet-config", "kubelet-config", ("Group", tokens), ("Group", "system:nodes")),
    ]
    for title, given, binding, group in rules:
        found.append(_thing("ClusterRole", title, rules=given))
        found.append(
            _thing(
                "ClusterRoleBinding", binding, roleRef=_role("ClusterRole", title), subjects=[_subject("Group", group)]
            )
        )
    return found


def _thing(kind: str, name: str, space: str = "", **body: Any) -> Json:
    group = "v1" if kind == "ConfigMap" else "rbac.authorization.k8s.io/v1"
    return {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": name, **({"namespace": space} if space else {})},
        **body,
    }


def _role(kind: str, name: str) -> Json:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}


def _subject(kind: str, name: str) -> Json:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
