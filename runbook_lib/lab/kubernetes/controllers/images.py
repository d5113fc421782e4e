"""Images: whether a registry gives one, what its failure reads like, and what each node has already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

KNOWN_REGISTRIES = frozenset(
    {
        "docker.io", "registry.k8s.io", "ghcr.io", "quay.io", "gcr.io", "public.ecr.aws", "mirror.gcr.io",
        "cr.fluentbit.io", "docker-registry3.mariadb.com",
    }
)  # fmt: skip
_PULL_FAILURES = {
    "timeout": "dial tcp: i/o timeout",
    "denied": (
        "pull access denied, repository does not exist or may require authorization: "
        "authorization failed: no basic auth credentials"
    ),
    "missing": "not found",
    "unknown": "dial tcp: lookup {host}: no such host",
}


def pull_failure(image: str, registries: Mapping[str, str]) -> str:
    """Why the image cannot be pulled, in containerd's words; empty when it can.

    `registries` may name a registry's host or one image: the longest name that fits decides.
    """
    first, slash, _ = image.partition("/")
    host = first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"
    fitting = [
        name for name in registries if name == host or image == name or image.startswith((f"{name}:", f"{name}/"))
    ]
    state = registries[max(fitting, key=len)] if fitting else "ok" if host in KNOWN_REGISTRIES else "unknown"
    if state == "ok":
        return ""
    reference = image if slash else f"docker.io/library/{image}"
    why = _PULL_FAILURES[state].format(host=host)
    head = f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}": '
    if state in {"timeout", "unknown"}:
        return head + f'failed to do request: Head "https://{host}/v2/": {why}'
    return head + (f"{reference}: {why}" if state == "missing" else why)


def bytes_of(image: str) -> int:
    """How large the image is: an invented number, the same for the same image."""
    return 20_000_000 + int.from_bytes(hashlib.sha256(image.encode()).digest()[:4], "big") % 280_000_000


def pull_policy(container: Mapping[str, str]) -> str:
    """Always, IfNotPresent or Never; `:latest` and no tag mean Always."""
    bare = str(container["image"]).partition("@")
    tag = bare[0].rpartition("/")[2].partition(":")[2]
    default = "Always" if not bare[1] and tag in {"", "latest"} else "IfNotPresent"
    return container.get("imagePullPolicy") or default
