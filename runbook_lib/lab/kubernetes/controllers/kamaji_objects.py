"""What Kamaji makes of a TenantControlPlane: a Service, a Deployment, certificates and kubeconfigs. Pure.

Names, labels and command lines are those of internal/resources and internal/builders of Kamaji.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .authorities import client_certificate, issued, make_authority
from .client import Object
from .control_planes import Endpoint

PORT = 6443
REGISTRY = "registry.k8s.io"
PARTS = ("kube-apiserver", "kube-scheduler", "kube-controller-manager")
COUNTS = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "unavailableReplicas")


def labels(name: str, component: str) -> dict[str, str]:
    """The labels of everything that Kamaji makes for a control plane."""
    return {
        "kamaji.clastix.io/project": "kamaji",
        "kamaji.clastix.io/name": name,
        "kamaji.clastix.io/component": component,
    }


def checksum(value: Any) -> str:
    """A digest of data, as Kamaji tells one from another."""
    return hashlib.md5(json.dumps(value, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def owned(item: Object, component: str) -> Object:
    """The metadata of an object of that control plane, but its name."""
    meta = item["metadata"]
    reference = {
        "apiVersion": item.get("apiVersion", "kamaji.clastix.io/v1alpha1"),
        "kind": item.get("kind", "TenantControlPlane"), "name": meta["name"], "uid": meta["uid"],
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    return {
        "namespace": meta["namespace"], "labels": labels(meta["name"], component), "ownerReferences": [reference],
    }  # fmt: skip


def port_of(item: Object) -> int:
    """The port that the control plane is to have inside the cluster."""
    return int((item["spec"].get("networkProfile") or {}).get("port") or PORT)


def service(item: Object) -> Object:
    """The Service before the control plane's pods."""
    wanted, port = (item["spec"].get("controlPlane") or {}).get("service") or {}, port_of(item)
    rows = [{"name": "kube-apiserver", "protocol": "TCP", "port": port, "targetPort": port}]
    for extra in wanted.get("additionalPorts") or ():
        rows.append({key: extra[key] for key in ("name", "protocol", "port", "targetPort") if key in extra})
    name = item["metadata"]["name"]
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **owned(item, "service")},
        "spec": {"type": wanted.get("serviceType") or "ClusterIP", "ports": rows,
                 "selector": {"kamaji.clastix.io/name": name}},
    }  # fmt: skip


def deployment(item: Object) -> Object:
    """The Deployment of the control plane: API server, scheduler and controller manager in one pod."""
    name, spec = item["metadata"]["name"], item["spec"]
    wanted = (spec.get("controlPlane") or {}).get("deployment") or {}
    version, port = str((spec.get("kubernetes") or {}).get("version", "v1.33.0")), port_of(item)
    network = spec.get("networkProfile") or {}
    services, pods = network.get("serviceCidr") or "10.96.0.0/16", network.get("podCidr") or "10.244.0.0/16"
    pki, home = "/etc/kubernetes/pki", "/etc/kubernetes"
    arguments = {
        "kube-apiserver": [
            "--allow-privileged=true", "--authorization-mode=Node,RBAC", f"--client-ca-file={pki}/ca.crt",
            "--enable-bootstrap-token-auth=true", f"--secure-port={port}", f"--service-cluster-ip-range={services}",
            f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
        ],
        "kube-scheduler": [f"--kubeconfig={home}/scheduler.conf", "--bind-address=0.0.0.0", "--leader-elect=true"],
        "kube-controller-manager": [
            "--allocate-node-cidrs=true", f"--kubeconfig={home}/controller-manager.conf", "--bind-address=0.0.0.0",
            f"--cluster-cidr={pods}", f"--cluster-name={name}", "--controllers=*,bootstrapsigner,tokencleaner",
            f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
            f"--root-ca-file={pki}/ca.crt", f"--service-account-private-key-file={pki}/sa.key",
            f"--service-cluster-ip-range={services}", "--leader-elect=true", "--use-service-account-credentials=true",
        ],
    }  # fmt: skip
    own = {"kube-apiserver": "apiServer", "kube-scheduler": "scheduler", "kube-controller-manager": "controllerManager"}
    resources = wanted.get("resources") or {}
    containers = [
        {
            "name": part, "image": f"{REGISTRY}/{part}:{version}", "command": [part], "args": sorted(arguments[part]),
            "resources": resources.get(own[part]) or {},
            **({"ports": [{"containerPort": port, "name": "kube-apiserver"}]} if part == PARTS[0] else {}),
        }
        for part in PARTS
    ]  # fmt: skip
    extra = wanted.get("additionalContainers") or wanted.get("extraContainers") or []
    more = (wanted.get("podAdditionalMetadata") or {}).get("labels") or {}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, **owned(item, "deployment")},
        "spec": {
            "replicas": int(wanted.get("replicas", 2)),
            "selector": {"matchLabels": {"kamaji.clastix.io/name": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {**labels(name, "deployment"), **more}},
                "spec": {"containers": [*extra, *containers], **_placed(wanted)},
            },
        },
    }  # fmt: skip


def _placed(wanted: Mapping[str, Any]) -> Object:
    names = ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "runtimeClassName")
    return {key: wanted[key] for key in names if wanted.get(key)}


def key_pair() -> dict[str, str]:
    """What service accounts' tokens are signed with: an RSA key and its public half."""
    key = rsa.generate_private_key(65537, 2048)
    form, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "sa.key": key.private_bytes(serialization.Encoding.PEM, form, none).decode(),
        "sa.pub": public.decode(),
    }


def secrets(item: Object, endpoint: Endpoint, missing: set[str]) -> dict[str, tuple[str, dict[str, str]]]:
    """Component and data of the Secrets that are missing, by their names after the control plane's."""
    name, space = item["metadata"]["name"], item["metadata"]["namespace"]
    ca = (endpoint.ca_pem, endpoint.ca_key)
    front = make_authority("front-proxy-ca") if "front-proxy-ca-certificate" in missing else ("", "")
    found: dict[str, tuple[str, dict[str, str]]] = {}

    def put(tail: str, data: dict[str, str]) -> None:
        found[tail] = (tail, data)

    if "ca" in missing:
        put("ca", {"ca.crt": ca[0], "ca.key": ca[1]})
    if "api-server-certificate" in missing:
        hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
                 name, f"{name}.{space}.svc", f"{name}.{space}.svc.cluster.local", "localhost",
                 endpoint.host]  # fmt: skip
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
        made = issued(*ca, subject, ExtendedKeyUsageOID.SERVER_AUTH, hosts)
        put("api-server-certificate", {"apiserver.crt": made[0], "apiserver.key": made[1]})
    if "api-server-kubelet-client-certificate" in missing:
        made = client_certificate(*ca, "kube-apiserver-kubelet-client", "kubeadm:cluster-admins")
        put("api-server-kubelet-client-certificate",
            {"apiserver-kubelet-client.crt": made[0], "apiserver-kubelet-client.key": made[1]})  # fmt: skip
    if front[0]:
        put("front-proxy-ca-certificate", {"front-proxy-ca.crt": front[0], "front-proxy-ca.key": front[1]})
        made = client_certificate(*front, "front-proxy-client", "")
        put("front-proxy-client-certificate", {"front-proxy-client.crt": made[0], "front-proxy-client.key": made[1]})
    if "sa-certificate" in missing:
        put("sa-certificate", key_pair())
    kinds = ("admin.conf", "admin.svc", "super-admin.conf", "super-admin.svc")
    if "admin-kubeconfig" in missing:
        put("admin-kubeconfig", dict.fromkeys(kinds, endpoint.admin_kubeconfig))
    for part in ("controller-manager", "scheduler"):
        if f"{part}-kubeconfig" in missing:
            put(f"{part}-kubeconfig", {f"{part}.conf": endpoint.admin_kubeconfig})
    return found


SECRETS = (
    "ca", "api-server-certificate", "api-server-kubelet-client-certificate", "front-proxy-ca-certificate",
    "front-proxy-client-certificate", "sa-certificate", "admin-kubeconfig", "controller-manager-kubeconfig",
    "scheduler-kubeconfig",
)  # fmt: skip
"""The Secrets of a control plane, by what follows its name."""
_CERTIFICATES = {
    "ca": "ca", "apiServer": "api-server-certificate",
    "apiServerKubeletClient": "api-server-kubelet-client-certificate", "frontProxyCA": "front-proxy-ca-certificate",
    "frontProxyClient": "front-proxy-client-certificate", "sa": "sa-certificate",
}  # fmt: skip
_KUBECONFIGS = {"admin": "admin", "controllerManager": "controller-manager", "scheduler": "scheduler"}


def state(item: Object, told: Mapping[str, Any], generation: int) -> str:
    """Ready, NotReady, Provisioning, Upgrading or Sleeping, as its Deployment says."""
    wanted = int(((item["spec"].get("controlPlane") or {}).get("deployment") or {}).get("replicas", 2))
    before = (((item.get("status") or {}).get("kubernetesResources") or {}).get("version") or {}).get("status")
    if wanted == 0:
        return "Sleeping"
    known = ((item.get("status") or {}).get("kubernetesResources") or {}).get("version") or {}
    version = str((item["spec"].get("kubernetes") or {}).get("version", ""))
    ready, fresh = int(told.get("readyReplicas", 0)), int(told.get("observedGeneration", 0)) >= generation
    done = fresh and int(told.get("updatedReplicas", 0)) >= wanted and ready >= 1
    if known.get("version") not in {None, "", version} and not done:
        return "Upgrading"
    if ready >= 1 and fresh:
        return "Ready"
    return "Provisioning" if before in {None, "Provisioning", "Sleeping"} else "NotReady"


def status(item: Object, endpoint: Endpoint | None, running: Object | None, before: Object | None, now: str) -> Object:
    """The status of a control plane: where it answers, and what its Deployment and Service (`before`) say."""
    meta, known = item["metadata"], item.get("status") or {}
    name, spec = meta["name"], item["spec"]
    held = known.get("kubernetesResources") or {}
    told = (running or {}).get("status") or {}
    kind = state(item, told, (running or {}).get("metadata", {}).get("generation", 1))
    wished = str((spec.get("kubernetes") or {}).get("version", ""))
    version = wished if kind != "Upgrading" else (held.get("version") or {}).get("version", wished)
    rows = {key: told.get(key, 0) for key in COUNTS}
    resources = {
        "version": {"version": version, "status": kind},
        "deployment": {
            "name": name, "namespace": meta["namespace"], "selector": f"kamaji.clastix.io/name={name}", **rows,
            **({"observedGeneration": told["observedGeneration"]} if "observedGeneration" in told else {}),
            **({"conditions": told["conditions"]} if told.get("conditions") else {}),
        },
        "service": {
            "name": name, "namespace": meta["namespace"], "port": port_of(item),
            **({"loadBalancer": lb} if (lb := ((before or {}).get("status") or {}).get("loadBalancer")) else {}),
        },
    }  # fmt: skip
    made = known.get("certificates") or {}

    def secret(part: Mapping[str, Any], tail: str) -> Object:
        return {"secretName": f"{name}-{tail}", "checksum": checksum([meta.get("uid"), tail]),
                "lastUpdate": part.get("lastUpdate", now)}  # fmt: skip

    return {
        **known,
        "observedGeneration": meta.get("generation", 1),
        "storage": {**(known.get("storage") or {}), "driver": "etcd", "dataStoreName": spec.get("dataStore", "default"),
                    "setup": {"schema": f"{meta['namespace']}_{name}".replace("-", "_"),
                              "user": f"{meta['namespace']}_{name}".replace("-", "_")}},
        "certificates": {key: secret(made.get(key) or {}, tail) for key, tail in _CERTIFICATES.items()},
        "kubeconfig": {
            key: secret((known.get("kubeconfig") or {}).get(key) or {}, f"{tail}-kubeconfig")
            for key, tail in _KUBECONFIGS.items()
        },
        "kubeadmconfig": {"configmapName": f"{name}-kubeadmconfig",
                          "checksum": checksum([meta.get("uid"), wished])},
        "kubernetesResources": resources,
        **({"controlPlaneEndpoint": f"{endpoint.host}:{endpoint.port}"} if endpoint else {}),
    }  # fmt: skip
