"""How the runbook itself behaves, by proof: it writes nothing unasked, tells no secret, keeps its files to itself."""

from __future__ import annotations

import base64
import json
import logging
import secrets as randomness
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runbook_lib import errors, secrets
from runbook_lib.audit import CanaryNote, KeptFile, Refusal, TrustUsed

NEWEST_RUNS = 3
LARGEST_BYTES = 20_000_000


def refusals(pve: Any, kube: Any) -> list[Refusal]:
    """A change of each system, tried outside of any plan. What is named does not exist, should it be sent after all."""
    name = f"runbook-{randomness.token_hex(4)}"
    tries = (
        ("Proxmox VE", pve, "DELETE", f"/access/groups/{name}"),
        ("Kubernetes", kube, "DELETE", f"/api/v1/namespaces/default/configmaps/{name}"),
    )
    return [_tried(system, client, method, path) for system, client, method, path in tries]


def _tried(system: str, client: Any, method: str, path: str) -> Refusal:
    before = client.wire.count
    refused, came = False, "it was sent"
    try:
        client.request(method, path)
    except errors.ReadOnly as refusal:
        refused, came = True, refusal.came
    except errors.ApiError as error:
        came = f"it was sent, and the server said: {error.came}"
    return Refusal(system, method, refused, client.wire.count - before, came)


def canary() -> list[CanaryNote]:
    """A secret made up now and given to the redactor, sent out through each door in each spelling."""
    value = randomness.token_urlsafe(24)
    secrets.register(value)
    try:
        return [
            CanaryNote(door, spelled, _spelled_in(text, value))
            for spelled, written in _spellings(value)
            for door, text in _doors(f"the value is {written} and no other")
        ]
    finally:
        secrets.forget([value])


def _spellings(value: str) -> Iterator[tuple[str, str]]:
    raw = value.encode()
    yield "as it is", value
    yield "URL", quote(value, safe="")
    yield "JSON", json.dumps(value)
    yield "hex", raw.hex()
    for shift in range(3):
        yield f"base64 at {shift}", base64.b64encode(b"x" * shift + raw).decode()
        yield f"urlsafe base64 at {shift}", base64.urlsafe_b64encode(b"x" * shift + raw).decode()


def _doors(text: str) -> Iterator[tuple[str, str]]:
    yield "text", secrets.redact(text)
    yield "JSON", json.dumps(secrets.redact_json({"rows": [{"note": text}], text: 1}))
    record = logging.LogRecord(__name__, logging.INFO, __file__, 0, "%s", (text,), None)
    secrets.RedactingFilter().filter(record)
    yield "log", record.getMessage()


def _spelled_in(text: str, value: str) -> bool:
    raw = value.encode()
    middles = {value, raw.hex()}
    for shift in range(3):  # the part of base64 that depends on nothing around the value
        first, last = -(-shift * 8 // 6), (shift + len(raw)) * 8 // 6
        middles |= {f(b"x" * shift + raw).decode()[first:last] for f in (base64.b64encode, base64.urlsafe_b64encode)}
    return any(middle in text for middle in middles)


def kept_files(site: Any, *, root: Path | None = None) -> list[KeptFile]:
    """What the runbook keeps of this site with its modes: credentials, and folders and files of its newest runs.

    Text of the runs is searched for every secret that is known by now.
    """
    top = root or _root()
    rows = [_kept(path, top, secret=True) for path in _credentials(site, top) if path.exists()]
    folder = top / "outputs" / str(site.name)
    runs = sorted((path for path in folder.glob("*") if (path / "run.json").is_file()), reverse=True)[:NEWEST_RUNS]
    for path in (entry for run in runs for entry in (run, *sorted(run.rglob("*")))):
        if not path.is_symlink():
            rows.append(_kept(path, top, secret=False))
    return rows


def _credentials(site: Any, top: Path) -> Iterator[Path]:
    pve, kube = site.proxmox, site.kubernetes
    login = pve.password_login
    for reference in (pve.token_secret, pve.password, login.password if login else None, kube.token):
        if reference and reference.startswith("file:"):
            yield _path(reference.removeprefix("file:").partition("#")[0], top)
    if kube.kubeconfig:
        yield _path(kube.kubeconfig, top)
    kept = top / ".secrets" / str(site.name)
    yield kept
    yield from sorted(kept.glob("*"))


def _path(text: str, top: Path) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() else top / path


def _kept(path: Path, top: Path, *, secret: bool) -> KeptFile:
    info = path.lstat()
    shown = str(path.relative_to(top)) if path.is_relative_to(top) else path.name
    readable = not secret and stat.S_ISREG(info.st_mode) and info.st_size <= LARGEST_BYTES
    leaks = readable and secrets.holds_secret(path.read_text(encoding="utf-8", errors="replace"))
    return KeptFile(shown, stat.S_IMODE(info.st_mode), secret, leaks)


def trusts(site: Any) -> list[TrustUsed]:
    """How each system is known to be itself."""
    pve, kube = site.proxmox, site.kubernetes
    by = "a pinned fingerprint" if pve.fingerprint else "a CA file" if pve.ca_file else "the system's authorities"
    kube_by = "the kubeconfig's CA" if kube.kubeconfig else "a CA file" if kube.ca_file else "the system's authorities"
    return [
        TrustUsed("Proxmox VE", bool(pve.verify), by if pve.verify else "nothing"),
        TrustUsed("Kubernetes", bool(kube.verify), kube_by if kube.verify else "nothing"),
    ]


def _root() -> Path:
    from runbook_lib.parameters import project_root

    return project_root()
