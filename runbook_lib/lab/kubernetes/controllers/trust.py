"""The authorities a container trusts beside the system's: a bundle mounted from a ConfigMap or a Secret."""

from __future__ import annotations

import base64

from .client import Object
from .context import Context
from .processes import Process

FOLDERS = ("/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/ssl/cert.pem")
"""Where Go's crypto/x509 looks on Linux."""


async def authority(context: Context, process: Process) -> str:
    """The PEM text of what is mounted where Go looks for authorities; empty when nothing is."""
    found = []
    volumes = {entry["name"]: entry for entry in (process.pod.get("spec") or {}).get("volumes") or ()}
    for mount in process.container.get("volumeMounts") or ():
        if not str(mount["mountPath"]).startswith(FOLDERS):
            continue
        volume, key = volumes.get(mount["name"]) or {}, str(mount.get("subPath") or "")
        for kind, field, plural in (("configMap", "name", "configmaps"), ("secret", "secretName", "secrets")):
            if kind in volume:
                path = f"/api/v1/namespaces/{process.namespace}/{plural}/{volume[kind][field]}"
                data = _texts(await context.client.find(path) or {}, plural)
                found += [text for name, text in data.items() if key in {"", name}]
    return "\n".join(text for text in found if "BEGIN CERTIFICATE" in text)


def _texts(item: Object, plural: str) -> dict[str, str]:
    data = item.get("data") or {}
    if plural == "configmaps":
        return dict(data)
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
