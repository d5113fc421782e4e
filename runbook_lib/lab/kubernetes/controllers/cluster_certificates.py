"""The authorities of a cluster that kubeadm makes: Secrets with certificate and key, and the files they become."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from .authorities import client_certificate, kubeconfig, make_authority, make_pair
from .capi.objects import CLUSTER_NAME
from .client import Cache, Refused
from .context import Context

Object = dict[str, Any]
SECRETS = "/api/v1/secrets"
KIND = "cluster.x-k8s.io/secret"
PURPOSES = {"ca": "kubernetes", "etcd": "etcd-ca", "proxy": "front-proxy-ca", "sa": ""}
"""What the Secrets `<cluster>-<purpose>` hold, and whom the authority in it is named after."""
PATHS = {
    "ca": "/etc/kubernetes/pki/ca",
    "etcd": "/etc/kubernetes/pki/etcd/ca",
    "proxy": "/etc/kubernetes/pki/front-proxy-ca",
    "sa": "/etc/kubernetes/pki/sa",
}
Pairs = Mapping[str, tuple[str, str]]


async def known(context: Context, namespace: str, cluster: str) -> dict[str, tuple[str, str]]:
    """The certificates and keys there are, by their purpose."""
    cache = context.cache(SECRETS)
    await cache.synced.wait()
    found = {}
    for purpose in PURPOSES:
        data = (cache.get(namespace, f"{cluster}-{purpose}") or {}).get("data") or {}
        if {"tls.crt", "tls.key"} <= data.keys():
            found[purpose] = (plain(data["tls.crt"]), plain(data["tls.key"]))
    return found


async def complete(context: Context, namespace: str, cluster: str, owner: Object) -> dict[str, tuple[str, str]]:
    """All certificates and keys; those that were missing are made, and belong to the owner."""
    found = await known(context, namespace, cluster)
    for purpose, title in PURPOSES.items():
        if purpose not in found:
            pair = await asyncio.to_thread(make_authority, title) if title else make_pair()
            data = {"tls.crt": pair[0], "tls.key": pair[1]}
            await keep(context, namespace, f"{cluster}-{purpose}", cluster, owner, data)
            found[purpose] = pair
    return found


async def keep(
    context: Context, namespace: str, name: str, cluster: str, owner: Object, data: Mapping[str, str]
) -> None:
    """Nothing; the Secret is there. One that somebody else made first is left as it is."""
    cache: Cache = context.cache(SECRETS)
    body = {
        "metadata": {"name": name, "labels": {CLUSTER_NAME: cluster}, "ownerReferences": [owner]},
        "type": KIND, "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }  # fmt: skip
    try:
        await cache.caught_up(await context.client.create(f"/api/v1/namespaces/{namespace}/secrets", body))
    except Refused as error:
        if error.reason != "AlreadyExists":
            raise


def admin_kubeconfig(cluster: str, place: str, authority: tuple[str, str]) -> str:
    """The kubeconfig of the cluster's administrator, as Cluster API writes it."""
    user = f"{cluster}-admin"
    certificate, key = client_certificate(*authority, "kubernetes-admin", "system:masters")
    return kubeconfig(cluster, f"https://{place}", authority[0], certificate, key, user)


def files(pairs: Pairs) -> list[Object]:
    """The rows of `write_files` that put the certificates where kubeadm looks for them."""
    rows = []
    for purpose, path in PATHS.items():
        public, private = pairs[purpose]
        ends = (("pub" if purpose == "sa" else "crt", public, "0640"), ("key", private, "0600"))
        rows += [
            {"path": f"{path}.{end}", "owner": "root:root", "permissions": mode, "content": text}
            for end, text, mode in ends
        ]
    return rows


def plain(text: str) -> str:
    """A value of a Secret's data as text."""
    return base64.b64decode(text).decode()
