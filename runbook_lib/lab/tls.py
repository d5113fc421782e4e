"""The lab's own certificate authority, kept over restarts, and the certificates its servers show."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def write_private(path: Path, text: str) -> None:
    """Nothing; the file is replaced whole and was never readable by others."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def authority(folder: Path) -> trustme.CA:
    """The authority whose ca.pem and ca.key lie in the folder; made when they do not."""
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.is_file() and key.is_file():
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    made = trustme.CA(organization_name="PVE Cluster Manager CA", organization_unit_name="runbook lab")
    write_private(key, made.private_key_pem.bytes().decode())
    write_private(certificate, made.cert_pem.bytes().decode())
    return made


def server_certificate(
    ca: trustme.CA, names: Sequence[str], *, days_left: float = 730, loopback: bool = True
) -> tuple[ssl.SSLContext, str]:
    """A context that serves a new certificate for the names, and its chain as PEM, leaf first.

    `days_left` below zero gives an expired one; without `loopback` it names none of the addresses it is reached by.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    chain = show_certificate(ca, context, names, days_left=days_left, loopback=loopback)
    return context, chain


def show_certificate(
    ca: trustme.CA, context: ssl.SSLContext, names: Sequence[str], *, days_left: float = 730, loopback: bool = True
) -> str:
    """The chain that the context shows from now on, as PEM, leaf first; connections that are open keep theirs."""
    now = dt.datetime.now(dt.UTC)
    end = now + dt.timedelta(days=days_left)
    wanted = dict.fromkeys([*names, *(LOOPBACK if loopback else ())])
    leaf = ca.issue_cert(
        *wanted,
        common_name=names[0] if names else "localhost",
        organization_name="Proxmox Virtual Environment",
        organization_unit_name="PVE Cluster Node",
        not_before=min(now, end) - dt.timedelta(days=1),
        not_after=end,
    )
    leaf.configure_cert(context)
    chain = [blob.bytes().decode() for blob in leaf.cert_chain_pems]
    return "".join([*chain, ca.cert_pem.bytes().decode()])
