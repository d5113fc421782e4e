"""prometheus-pve-exporter as a real process behind its pod: it asks the Proxmox VE API with the token it was given."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path

from .context import Context
from .processes import Exit, Process, Program
from .proxmox import Gate, gate

PORT = 9221
BUNDLE = "REQUESTS_CA_BUNDLE"
"""Where requests, which the exporter asks with, looks for authorities."""
DROPPED_SECONDS = 20.0


def config_path(words: list[str], usual: str = "/etc/prometheus/pve.yml") -> str:
    """The configuration file that the arguments name, else the image's own."""
    for place, word in enumerate(words):
        if word.startswith("--config.file="):
            return word.partition("=")[2]
        if word == "--config.file" and place + 1 < len(words):
            return words[place + 1]
    return usual


def flags(words: list[str]) -> list[str]:
    """The arguments that choose collectors."""
    return [word for word in words if word.startswith(("--collector.", "--no-collector."))]


async def config(context: Context, process: Process, path: str) -> str | None:
    """The text of a file that a Secret or ConfigMap is mounted as; None when there is none."""
    for mount in process.container.get("volumeMounts") or ():
        base = mount["mountPath"].rstrip("/")
        if not (path == base or path.startswith(base + "/")):
            continue
        volume = next(row for row in process.pod["spec"]["volumes"] if row["name"] == mount["name"])
        name = mount.get("subPath") or path.removeprefix(base).lstrip("/")
        for kind, plural, key in (("secret", "secrets", "secretName"), ("configMap", "configmaps", "name")):
            if kind in volume:
                given = volume[kind]
                item = await context.client.find(f"/api/v1/namespaces/{process.namespace}/{plural}/{given[key]}")
                names = {row["path"]: row["key"] for row in given.get("items") or ()}
                text = ((item or {}).get("data") or {}).get(names.get(name, name))
                if text is not None:
                    return base64.b64decode(text).decode() if kind == "secret" else str(text)
    return None


def where(context: Context, address: str) -> tuple[str, int] | None:
    """Where an address really answers; None where nobody does."""
    if context.outside is not None:
        return context.outside(address)
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


async def way_out(context: Context, passes: Gate) -> asyncio.Server:
    """A proxy on loopback that all the exporter's connections go through, where policies let its pod's packets pass.

    What is dropped is waited for as long as the exporter would, by the lab's clock.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = (await reader.readuntil(b"\r\n\r\n")).split(b" ")
            place = where(context, head[1].decode())
            if place is None or not await passes():
                await context.clock.sleep(DROPPED_SECONDS)
            else:
                there, back = await asyncio.open_connection(*place)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                try:
                    await asyncio.gather(_carried(reader, back), _carried(there, writer))
                finally:
                    back.close()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _carried(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


async def run(context: Context, process: Process) -> None:
    """Works until cancelled. Raises Exit as the exporter ends: without its file, or by itself."""
    words = [*(process.container.get("command") or ()), *(process.container.get("args") or ())]
    path = config_path(words)
    text = await config(context, process, path)
    from_environment = "PVE_USER" in process.env
    if text is None and not from_environment:
        raise Exit(1, f"FileNotFoundError: [Errno 2] No such file or directory: '{path}'")
    if importlib.util.find_spec("pve_exporter") is None:
        raise Exit(127, "the lab runs the real exporter, and the package prometheus-pve-exporter is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="lab-pve-exporter-") as folder,
        socket.create_server(("127.0.0.1", 0)) as at,
    ):
        port = at.getsockname()[1]
        at.close()
        file = Path(folder) / "pve.yml"
        file.touch(0o600)
        file.write_text(text or "", encoding="utf-8")
        given = [] if text is None else ["--config.file", str(file)]
        # a CA bundle in this process's environment would win over what the file says; the container's own counts
        kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "PYTHONPATH", "LANG"}}
        if bundle := process.env.get(BUNDLE):
            kept[BUNDLE] = str(Path(folder) / "ca.crt")
            Path(kept[BUNDLE]).write_text(await config(context, process, bundle) or "", encoding="utf-8")
        out = await way_out(context, gate(context, process))
        kept["HTTPS_PROXY"] = "http://{}:{}".format(*out.sockets[0].getsockname()[:2])
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pve_exporter", *given, "--web.listen-address", f"127.0.0.1:{port}", *flags(words),
            env={**kept, **{k: v for k, v in process.env.items() if k.startswith("PVE_")}},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        key = (process.namespace, f"pod/{process.pod['metadata']['name']}", PORT)
        context.listeners[key] = ("127.0.0.1", port)
        try:
            await _told(child, process)
            raise Exit(await child.wait() or 1, "")
        finally:
            context.listeners.pop(key, None)
            out.close()
            if child.returncode is None:
                child.terminate()
                await child.wait()


async def _told(child: asyncio.subprocess.Process, process: Process) -> None:
    """Returns when the exporter ends; what it says is the container's log."""
    if child.stdout is not None:
        async for line in child.stdout:
            process.write(line.decode(errors="replace").rstrip())


PROGRAMS = (Program("prometheus-pve-exporter", run, leads=False),)
