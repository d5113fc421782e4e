"""The blackbox exporter: it knocks at a TLS port when asked to, and tells until when the certificate holds."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

import yaml
from aiohttp import web

from .context import Context
from .processes import Exit, Process, Program
from .proxmox import gate
from .pve_exporter import config, config_path, where

PORT = 9115
USUAL = "/etc/blackbox_exporter/config.yml"


def page(found: dict[str, float]) -> str:
    """The metrics as the exporter writes them."""
    return "".join(f"# TYPE {name} gauge\n{name} {value:.10g}\n" for name, value in found.items())


async def knocked(host: str, port: int, timeout: float) -> dict[str, float]:
    """What one TLS connection tells, whoever signed the certificate."""
    from cryptography import x509

    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    begun, ends = time.monotonic(), 0.0
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=trusting)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        ends = x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
        writer.close()
    except (OSError, TimeoutError):
        pass  # probe_success tells
    told = {"probe_success": float(bool(ends)), "probe_duration_seconds": time.monotonic() - begun}
    return {**told, "probe_ssl_earliest_cert_expiry": ends} if ends else told


def modules(text: str) -> dict[str, Any]:
    """The modules of a configuration. Raises Exit as the exporter ends without a good one."""
    try:
        found = (yaml.safe_load(text) or {}).get("modules")
    except (yaml.YAMLError, AttributeError):
        found = None
    if not isinstance(found, dict) or any("prober" not in (module or {}) for module in found.values()):
        raise Exit(1, 'level=error msg="Error loading config" err="error parsing config file"')
    return found


async def run(context: Context, process: Process) -> None:
    """Works until cancelled. Raises Exit as the exporter ends without its file."""
    words = [*(process.container.get("command") or ()), *(process.container.get("args") or ())]
    path = config_path(words, USUAL)
    text = await config(context, process, path)
    if text is None:
        raise Exit(1, f'level=error msg="Error loading config" err="open {path}: no such file or directory"')
    known, passes = modules(text), gate(context, process)

    async def probe(request: web.Request) -> web.Response:
        name, target = request.query.get("module", "http_2xx"), request.query.get("target", "")
        if name not in known:
            return web.Response(status=400, text=f'Unknown module "{name}"\n')
        if not target:
            return web.Response(status=400, text="Target parameter is missing\n")
        timeout = float(str(known[name].get("timeout", "5s")).rstrip("s"))
        place = where(context, target)
        if place is None or not await passes():
            await context.clock.sleep(timeout)
            return web.Response(text=page({"probe_success": 0.0, "probe_duration_seconds": timeout}))
        return web.Response(text=page(await knocked(*place, timeout)))

    async def well(_: web.Request) -> web.Response:
        return web.Response(text="Healthy\n")

    app = web.Application()
    app.add_routes([web.get("/probe", probe), web.get("/-/healthy", well), web.get("/", well)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    key = (process.namespace, f"pod/{process.pod['metadata']['name']}", PORT)
    context.listeners[key] = runner.addresses[0][:2]
    process.write('level=info msg="Listening on" address=[::]:9115')
    try:
        await asyncio.Event().wait()
    finally:
        context.listeners.pop(key, None)
        await runner.cleanup()


PROGRAMS = (Program("blackbox-exporter", run, leads=False),)
