"""The lab's process: two APIs over TLS on loopback, and a control socket beside them.

`python -m runbook_lib.lab.server --dir …` is what `control` starts; nothing else needs to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import math
import os
import secrets
import signal
import socket
import ssl
import sys
import time
import uuid
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..errors import LabError
from . import incident as incidents
from . import scenario as scenarios
from .apiserver import Real
from .clock import Clock
from .control import socket_path
from .faults import Fault, Faults, fault_from
from .kubernetes import certificates, crd
from .kubernetes import state as kubernetes_kept
from .kubernetes.controllers import afflictions
from .kubernetes.controllers.client import KubeClient
from .kubernetes.controllers.proxmox import ProxmoxClient
from .machines import Home, Machines, endpoints
from .planes import SPACE as ON_MACHINES
from .platform import NAMES, Platform, build, kubeconfig
from .proxmox import kept as proxmox_kept
from .proxmox import outage
from .proxmox.permissions import Token, hash_password
from .proxmox.server import create_app as create_proxmox
from .proxmox.state import PveState
from .tls import authority, server_certificate, show_certificate, write_private

log = logging.getLogger("runbook_lib.lab")
PVE_PORT = "8006"

COLLECTOR = (10_000, 20, 20)
"""How many new objects, and how many rounds of the younger ones, until the collector looks for cycles."""

ROOT = "root@pam"
TOKEN = "rehearsal"
REAL_TOKEN = "kubernetes_real_token"
KEPT = "kept.json"
"""Where a lab that was asked to keep its state leaves it for the next one in the folder."""
GRACE_SECONDS = 0.1
LOOK_SECONDS = 2.0
TLS_BUFFER = 32 * 1024
"""Bytes that a TLS connection reads into: asyncio's own 256 KiB would be 40 MB for all watches of the controllers."""


class Site:
    """One API on one TLS port; the application behind it can be exchanged while the port stays."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._runner: web.AppRunner | None = None

    async def serve(self, app: web.Application, context: ssl.SSLContext) -> None:
        """Answer with this application from now on."""
        await self.pause()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket.dup(), ssl_context=context).start()

    async def pause(self) -> None:
        """Stop answering; new connections wait in the queue."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def close(self) -> None:
        """Stop answering for good."""
        await self.pause()
        self._socket.close()


class Lab:
    """The rehearsal site of one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        scenario: str,
        scale: float,
        proxmox_port: int = 0,
        kubernetes_port: int = 0,
        seed: int | None = None,
        real: Real | None = None,
    ) -> None:
        self.folder = folder
        self.real = real
        self.scenario = scenarios.load(scenario)
        self.clock = Clock(scale)
        self._seed = seed  # asked for at the start; else each scenario brings its own
        self.faults = Faults(self.clock)
        self.started = time.time()
        self.ca = authority(folder)
        self.secrets = _secrets(folder)
        ports = _last_ports(folder)
        self.proxmox_site = _site(proxmox_port, ports.get("proxmox", 0))
        self.kubernetes_site = _site(kubernetes_port, ports.get("kubernetes", 0))
        _remember_ports(folder, {"proxmox": self.proxmox_site.port, "kubernetes": self.kubernetes_site.port})
        self.crds: str | None = None
        self.state: PveState | None = None
        self._platform: Platform | None = None
        self.machines: Machines | None = None
        self._inside: asyncio.Task[None] | None = None
        self._unfolding: asyncio.Task[None] | None = None
        self._happened: list[str] = []
        self._changing = asyncio.Lock()
        self._shown: dict[str, tuple[ssl.SSLContext, Sequence[str], Mapping[str, Any]]] = {}
        self._spoiled: set[str] = set()

    async def load(self, name: str | None = None, *, grow: bool = False) -> None:
        """Begin anew: with the named scenario, or with the one that is loaded. A bad scenario changes nothing.

        With `grow` it begins with what the scenario builds on, and its incident happens from now on.
        """
        async with self._changing:
            if self.real is not None and self.real.reached is not None:
                raise _not_ours("begin anew")
            wanted = scenarios.load(name) if name else scenarios.load(self.scenario.name)
            wanted = wanted.beginning() if grow else wanted
            rules = [fault_from(entry) for entry in wanted.faults]
            await self._replace(wanted, rules, *self._built(wanted))
            if grow:
                self._unfold(wanted.incident.causes)

    def cure(self) -> None:
        """What the scenario tells as the cure of its incident is done from now on, and nothing more of its causes."""
        if not self.scenario.incident.cures:
            raise LabError("cure the incident", f"scenario {self.scenario.name} tells no cure")
        self._unfold(self.scenario.incident.cures)

    def _unfold(self, causes: Sequence[incidents.Cause]) -> None:
        if self._unfolding is not None:
            self._unfolding.cancel()
        self._unfolding = asyncio.get_running_loop().create_task(self._play(causes))

    async def _play(self, causes: Sequence[incidents.Cause]) -> None:
        ca, home = str(self.folder / "ca.pem"), self._platform and self._platform.controllers
        token = f"{ROOT}!{TOKEN}"
        pem = self.ca.cert_pem.bytes().decode()
        secret = self.secrets["proxmox_token_secret"]
        async with (
            KubeClient(self.kubernetes_site.url, self.secrets["kubernetes_token"], ca, name="kubectl") as kube,
            ProxmoxClient(self.proxmox_site.url, token, secret, ca=pem, agent="engineer") as pve,
        ):

            async def ask_kubernetes(method: str, path: str, body: Any, kind: str) -> Any:
                return await kube.request(method, path, body, content_type=kind or "application/json")

            async def ask_proxmox(method: str, path: str, body: Mapping[str, Any]) -> Any:
                if method == "DELETE":
                    return await pve.delete(path, **body)
                return await (pve.put if method == "PUT" else pve.post)(path, body)

            def change(given: Mapping[str, Any]) -> None:
                if home:
                    afflictions.befall(home.context, given)

            def break_api(given: Mapping[str, Any]) -> None:
                if given.get("clear"):
                    self.faults.clear()
                else:
                    self.faults.add(fault_from(given))
                self.show_certificates()

            hands = incidents.Hands(ask_kubernetes, ask_proxmox, change, break_api, self._happened)
            await incidents.unfold(causes, hands, self.clock)

    def _built(self, wanted: scenarios.Scenario) -> tuple[PveState, Platform]:
        seed = wanted.seed if self._seed is None else self._seed
        state = PveState.from_scenario(wanted.proxmox, clock=self.clock, spool=self.folder / "spool", seed=seed)
        platform = build(
            {**wanted.kubernetes, **({"crds": self.crds} if self.crds else {})},
            clock=self.clock,
            admin_token=self.secrets["kubernetes_token"],
            ca_pem=self.ca.cert_pem.bytes().decode(),
            elsewhere=self.real is not None,
        )
        return state, platform

    async def _replace(
        self, wanted: scenarios.Scenario, rules: list[Fault], state: PveState, platform: Platform
    ) -> None:
        await self._stop()
        gc.unfreeze()
        self.scenario, self.faults = wanted, Faults(self.clock, rules, seed=state.dice.seed)
        await self._serve_proxmox(state)
        await self._serve_kubernetes(platform)
        self._write()
        # What the lab begins with stays for as long as it does: the collector need not look at it again and again.
        gc.freeze()
        gc.set_threshold(*COLLECTOR)

    async def define(self, folder: Path) -> int:
        """How many CustomResourceDefinitions of a folder are served now, and after every reset to come."""
        if self.real is not None:
            raise _not_ours("load definitions")
        found = await asyncio.to_thread(crd.read_folder, folder)
        if not found:
            raise LabError(f"load definitions from {folder}", "no YAML or JSON file there holds one")
        async with self._changing:
            if self._platform is None:
                raise LabError("load definitions", "the lab is not up yet")
            self._platform.cluster.load(found)
            self.crds = str(folder)
            self._write()
        return len(found)

    def kept(self) -> dict[str, Any]:
        """Everything the lab knows now: scenario, faults, both clusters."""
        if self.real is not None:
            raise _not_ours("keep the lab's state")
        if self.state is None or self._platform is None:
            raise LabError("keep the lab's state", "the lab is not up yet")
        return {
            "scenario": self.scenario.name,
            "faults": self.faults.rules(),
            "proxmox": proxmox_kept.taken(self.state),
            "kubernetes": kubernetes_kept.snapshot(self._platform.cluster),
            "tenants": self._platform.tenants.taken(),
        }

    async def give_back(self, kept: Mapping[str, Any]) -> None:
        """Put what `kept` told in the place of everything, or change nothing; its scenario tells what is not kept."""
        if self.real is not None:
            raise _not_ours("restore the lab's state")
        missing = {"scenario", "faults", "proxmox", "kubernetes"} - kept.keys()
        if missing:
            raise ValueError(f"no snapshot of a lab: it lacks {', '.join(sorted(missing))}")
        async with self._changing:
            wanted = scenarios.load(str(kept["scenario"]))
            empty, platform = self._built(wanted)
            try:
                rules = [fault_from(entry) for entry in kept["faults"]]
                state = proxmox_kept.given_back(empty, dict(kept["proxmox"]))
                kubernetes_kept.restore(platform.cluster, dict(kept["kubernetes"]))
                platform.tenants.kept = dict(kept.get("tenants") or {})
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ValueError(f"no snapshot of a lab: {error}") from error
            await self._replace(wanted, rules, state, platform)

    async def _serve_proxmox(self, state: PveState) -> None:
        settings = dict(self.scenario.proxmox.get("tls") or {})
        hosts = list(settings.pop("names", None) or [f"{name}.lab.test" for name in state.nodes] + list(state.nodes))
        hosts += [node.ip for node in state.nodes.values()] if settings.get("loopback", True) else []
        context, state.certificate_pem = server_certificate(self.ca, hosts, **settings)
        give_credentials(state, self.secrets, hidden=bool(self.scenario.proxmox.get("hide_lab_token")))
        self.state = state
        state.tasks.fault = self.faults.task
        self._shown["proxmox"] = (context, hosts, settings)
        self.show_certificates()
        await self.proxmox_site.serve(create_proxmox(state, [self.faults.middleware("proxmox")]), context)

    async def _join_real(self, real: Real, platform: Platform) -> None:
        """Nothing; the cluster lives on the API server that was asked for."""
        reached = await real.start(self.ca)
        self._platform = platform
        real.write_authority()
        self.secrets[REAL_TOKEN] = reached.token
        write_private(self.folder / "secrets.json", json.dumps(self.secrets, indent=1) + "\n")
        await platform.start_on(reached, self.clock)
        self._inhabit(platform)

    @property
    def kubernetes_url(self) -> str:
        """Where the cluster's API server answers."""
        if self.real is not None and self.real.reached is not None:
            return self.real.reached.url
        return self.kubernetes_site.url

    async def _serve_kubernetes(self, platform: Platform) -> None:
        if self.real is not None:
            await self._join_real(self.real, platform)
            return
        settings = dict(self.scenario.kubernetes.get("tls") or {})
        names = settings.pop("names", None) or NAMES
        context, _ = server_certificate(self.ca, names, **settings)
        # A client certificate of the lab's authority names its user, as with any API server.
        context.verify_mode = ssl.CERT_OPTIONAL
        self.ca.configure_trust(context)
        platform.cluster.signer = certificates.signer(self.ca.cert_pem.bytes(), self.ca.private_key_pem.bytes())
        self._platform = platform
        self._shown["kubernetes"] = (context, names, settings)
        self.show_certificates()
        platform.app.middlewares.insert(0, self.faults.middleware("kubernetes"))
        await self.kubernetes_site.serve(platform.app, context)
        await platform.start(self.kubernetes_site.url, str(self.folder / "ca.pem"), self.clock)
        self._inhabit(platform)

    def _inhabit(self, platform: Platform) -> None:
        """Nothing; the VMs have operating systems from now on, which may join the cluster."""
        if self.state is None or platform.controllers is None:
            return
        self.machines = Machines(self.state, self.clock)
        home = Home(self.kubernetes_url, platform.controllers.context)
        platform.controllers.context.outside = self._outside
        self.machines.add(home, *endpoints(platform.section), self.kubernetes_url.removeprefix("https://"))
        inside = self.machines
        platform.tenants.listen(lambda place, url, context: inside.add(Home(url, context), place))
        inside.routes = platform.controllers.context.routes
        kept = [key.partition("/")[2] for key in platform.tenants.kept if key.startswith(f"{ON_MACHINES}/")]
        inside.serve(platform.tenants, kept)
        self._inside = asyncio.get_running_loop().create_task(self.machines.run())

    def _outside(self, address: str) -> tuple[str, int] | None:
        """Where an address outside of the cluster really answers: the Proxmox nodes' on the lab's one port."""
        host, _, port = address.rpartition(":")
        node = next((row for row in self.state.nodes.values() if row.ip == host), None) if self.state else None
        if node is None:
            return host.strip("[]"), int(port)
        own = urlsplit(self.proxmox_site.url)
        return (str(own.hostname), int(own.port or 0)) if node.online and port == PVE_PORT else None

    def show_certificates(self) -> None:
        """Nothing; new connections see the certificate that the faults in force ask for."""
        for system, (context, names, settings) in self._shown.items():
            wrong = self.faults.certificate(system)
            if wrong is None and system not in self._spoiled:
                continue
            if wrong == "expired":
                show_certificate(self.ca, context, names, days_left=-3)
            elif wrong == "wrong-host":
                show_certificate(self.ca, context, ["elsewhere.lab.test"], loopback=False)
            else:
                show_certificate(self.ca, context, names, **settings)
            (self._spoiled.add if wrong else self._spoiled.discard)(system)

    async def _stop(self) -> None:
        if self._unfolding is not None:
            self._unfolding.cancel()
            await asyncio.gather(self._unfolding, return_exceptions=True)
            self._unfolding = None
        self._happened.clear()
        if self._inside is not None:
            self._inside.cancel()
            await asyncio.gather(self._inside, return_exceptions=True)
            self._inside = None
        if self.state is not None:
            await self.state.tasks.cancel()
        if self._platform is not None:
            await self._platform.stop()
        if self.real is not None:
            await self.real.stop()

    async def close(self) -> None:
        """End both APIs and everything that runs behind them."""
        await self._stop()
        await asyncio.gather(self.proxmox_site.close(), self.kubernetes_site.close())

    # ------------------------------------------------------------------------------------- files

    def _write(self) -> None:
        config = kubeconfig(
            self.kubernetes_site.url, self.ca.cert_pem.bytes().decode(), self.secrets["kubernetes_token"]
        )
        if self.real is not None and (reached := self.real.reached) is not None:
            config = reached.kubeconfig or kubeconfig(reached.url, reached.ca_pem, reached.token)
        write_private(self.folder / "kubeconfig", config)
        write_private(
            self.folder / "state.json",
            json.dumps(self.status(), indent=1, sort_keys=True) + "\n",
        )

    def status(self) -> dict[str, Any]:
        """What `runbook lab status` tells, and what the folder's state.json holds."""
        return {
            "pid": os.getpid(),
            "started": self.started,
            "scenario": self.scenario.name,
            "title": self.scenario.title,
            "seed": self.state.dice.seed if self.state else self.scenario.seed,
            "scale": self.clock.scale if math.isfinite(self.clock.scale) else "inf",
            "offset_seconds": self.clock.offset,
            "proxmox_url": self.proxmox_site.url,
            "kubernetes_url": self.kubernetes_url,
            "apiserver": "own" if self.real is None else "real",
            "proxmox_version": self.state.flavour if self.state else "",
            "faults": self.faults.rules(),
            "happened": list(self._happened),
            "crds": self.crds,
        }


def _not_ours(asked: str) -> LabError:
    """What cannot be done to an API server that is not the lab's own."""
    hint = "take the lab down and bring it up anew; an API server of a kubeconfig is emptied by its owner"
    return LabError(asked, "the API server is not the lab's own", hint)


def _site(port: int, last: int) -> Site:
    """A site on the port that was asked for; else on the one this folder had, if it is still free; else on any."""
    if not port and last:
        with contextlib.suppress(OSError):
            return Site(last)
    try:
        return Site(port)
    except OSError as error:
        raise LabError(f"listen on 127.0.0.1:{port}", error.strerror or str(error), "choose another port") from error


def _last_ports(folder: Path) -> dict[str, int]:
    """The ports this folder's lab had, so that clients pointed at it find it again after a restart."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((folder / "ports.json").read_text(encoding="utf-8"))
        return {str(name): int(port) for name, port in known.items()}
    return {}


def _remember_ports(folder: Path, ports: Mapping[str, int]) -> None:
    write_private(folder / "ports.json", json.dumps(ports) + "\n")


def _secrets(folder: Path) -> dict[str, str]:
    """The lab's passwords and tokens, the same over restarts of the same folder."""
    path = folder / "secrets.json"
    known: dict[str, str] = {}
    if path.is_file():
        with contextlib.suppress(ValueError):
            known = json.loads(path.read_text(encoding="utf-8"))
    fresh = {
        "proxmox_password": secrets.token_urlsafe(15),
        "proxmox_token_secret": str(uuid.uuid4()),
        "kubernetes_token": secrets.token_urlsafe(24),
    }
    merged = fresh | {key: value for key, value in known.items() if key in fresh and isinstance(value, str)}
    if merged != known:
        write_private(path, json.dumps(merged, indent=1) + "\n")
    return merged


def give_credentials(state: PveState, known: Mapping[str, str], *, hidden: bool) -> None:
    """Nothing; root gets the lab's password and a token. A hidden token is in no list, as on a fresh install."""
    root = state.access.users[ROOT]
    root.password = hash_password(known["proxmox_password"])
    root.tokens[TOKEN] = Token(known["proxmox_token_secret"], privsep=False, hidden=hidden)


# ---------------------------------------------------------------------------------------------- control


def control_app(lab: Lab, stop: asyncio.Event) -> web.Application:
    """The control plane: small JSON over a unix socket that only its owner can open."""

    def answer(handler: Callable[[Mapping[str, Any]], Awaitable[Any]]) -> Callable[..., Awaitable[web.Response]]:
        async def respond(request: web.Request) -> web.Response:
            try:
                body = await request.json() if request.can_read_body else {}
                return web.json_response(await handler(body))
            except LabError as error:
                return web.json_response({"asked": error.asked, "came": error.came, "hint": error.hint}, status=400)
            except (ValueError, TypeError, KeyError) as error:
                return web.json_response({"asked": "control the lab", "came": str(error), "hint": ""}, status=400)

        return respond

    async def status(_: Mapping[str, Any]) -> Any:
        return lab.status()

    async def reset(_: Mapping[str, Any]) -> Any:
        await lab.load()
        return lab.status()

    async def scenario(body: Mapping[str, Any]) -> Any:
        await lab.load(str(body["name"]), grow=bool(body.get("grow")))
        return lab.status()

    async def cure(_: Mapping[str, Any]) -> Any:
        lab.cure()
        return lab.status()

    async def fault(body: Mapping[str, Any]) -> Any:
        if body.get("clear"):
            lab.faults.clear()
        else:
            lab.faults.add(fault_from(body))
        lab.show_certificates()
        return {"faults": lab.faults.rules()}

    async def advance(body: Mapping[str, Any]) -> Any:
        lab.clock.advance(float(body["seconds"]))
        return {"offset_seconds": lab.clock.offset}

    async def scale(body: Mapping[str, Any]) -> Any:
        lab.clock.rescale(float(body["scale"]))
        return lab.status()

    async def snapshot(body: Mapping[str, Any]) -> Any:
        path = Path(str(body["file"]))
        text = await asyncio.to_thread(json.dumps, lab.kept(), separators=(",", ":"))
        write_private(path, text)
        return {"file": str(path), "bytes": len(text)}

    async def restore(body: Mapping[str, Any]) -> Any:
        await lab.give_back(_read_kept(Path(str(body["file"]))))
        return lab.status()

    async def crds(body: Mapping[str, Any]) -> Any:
        return {"crds": await lab.define(Path(str(body["folder"])))}

    async def node(body: Mapping[str, Any]) -> Any:
        if lab.state is None:
            raise LabError("change a node", "the lab is not up yet")
        (outage.give_back if body["online"] else outage.lose)(lab.state, str(body["name"]))
        return {"nodes": {name: each.online for name, each in lab.state.nodes.items()}}

    async def shutdown(body: Mapping[str, Any]) -> Any:
        if body.get("keep"):
            await snapshot({"file": lab.folder / KEPT})
        asyncio.get_running_loop().call_later(0.01, stop.set)
        return {"pid": os.getpid()}

    app = web.Application()
    app.router.add_get("/status", answer(status))
    for path, handler in (
        ("/reset", reset),
        ("/scenario", scenario),
        ("/cure", cure),
        ("/fault", fault),
        ("/clock/advance", advance),
        ("/clock/scale", scale),
        ("/node", node),
        ("/crds", crds),
        ("/snapshot", snapshot),
        ("/restore", restore),
        ("/shutdown", shutdown),
    ):
        app.router.add_post(path, answer(handler))
    return app


def _read_kept(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"read the lab's state from {path}", " ".join(str(error).split())) from error
    if not isinstance(found, dict):
        raise LabError(f"read the lab's state from {path}", "no snapshot of a lab")
    return found


async def run(lab: Lab, ready: Callable[[], None]) -> None:
    """Return when the lab was asked to stop, by the socket or by a signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    runner = web.AppRunner(control_app(lab, stop), access_log=None, shutdown_timeout=GRACE_SECONDS)
    path = socket_path(lab.folder)
    try:
        if not await _unless_stopped(lab.load(), stop):
            return
        kept = lab.folder / KEPT
        if kept.is_file():
            await lab.give_back(_read_kept(kept))
            kept.unlink()
        path.unlink(missing_ok=True)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
        ready()
        orphaned = loop.create_task(_until_gone(lab.folder / "state.json", stop))
        await stop.wait()
        orphaned.cancel()
    finally:
        path.unlink(missing_ok=True)
        (lab.folder / "state.json").unlink(missing_ok=True)
        await runner.cleanup()
        await lab.close()


async def _unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether the work was done; it is cancelled when the lab is asked to stop before."""
    task, asked = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, asked], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        await task
        return True
    finally:
        asked.cancel()


async def _until_gone(file: Path, stop: asyncio.Event) -> None:
    """Ask the lab to stop when its folder was taken away: nobody could find it any more."""
    while file.exists():
        await asyncio.sleep(LOOK_SECONDS)
    stop.set()


def serve(args: argparse.Namespace) -> int:
    """The exit code of a lab that ran until it was asked to stop."""
    folder = Path(args.dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def ready() -> None:
        if args.ready_fd is not None:
            os.write(args.ready_fd, b"ready\n")
            os.close(args.ready_fd)

    async def main() -> None:
        sslproto.SSLProtocol.max_size = TLS_BUFFER
        lab = Lab(
            folder,
            scenario=args.scenario,
            scale=args.scale,
            proxmox_port=args.proxmox_port,
            kubernetes_port=args.kubernetes_port,
            seed=args.seed,
            real=Real(folder, Path(args.kubeconfig) if args.kubeconfig else None) if args.apiserver == "real" else None,
        )
        await run(lab, ready)

    try:
        asyncio.run(main())
    except LabError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def main(argv: list[str] | None = None) -> int:
    """The exit code; the command line is `control`'s, not for people."""
    parser = argparse.ArgumentParser(prog="python -m runbook_lib.lab.server")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--scenario", default="healthy")
    parser.add_argument("--scale", type=float, default=60.0)
    parser.add_argument("--proxmox-port", type=int, default=0)
    parser.add_argument("--kubernetes-port", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--apiserver", choices=("own", "real"), default="own")
    parser.add_argument("--kubeconfig")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    return serve(args)


if __name__ == "__main__":
    sys.exit(main())
