"""Consoles: ports, tickets and tasks of terminals, and the websocket that leads to one on which nothing happens.

Nobody is at the other end, so the task of a console that no websocket comes to ends after ten seconds.
Source: the vendor's PVE/API2/Nodes.pm, Qemu.pm and LXC.pm.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .declared import declared
from .declared.consoles import TABLE
from .qemu.guest import find_guest
from .routing import AuthId, Call, PveError, permission_error, split_list
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

WAIT_SECONDS = 10.0
TICKET_SECONDS = 40
FIRST_PORT, PORTS = 5900, 100
SPICE_PORT = 61000


def ticket(state: PveState, user: str, path: str, *, at: int | None = None) -> str:
    """A ticket that lets the user watch what lies at that path, for forty seconds."""
    stamp = f"{int(state.clock.now()) if at is None else at:08X}"
    signed = hmac.digest(state.secret, f"PVEVNC:{stamp}:{user}:{path}".encode(), hashlib.sha512).hex()
    return f"PVEVNC:{stamp}::{signed}"


def check_ticket(state: PveState, given: str, user: str, path: str) -> None:
    """Nothing, or the 401 of a ticket that is forged, too old, or for something else."""
    given = given[given.find("PVEVNC:") :] if "PVEVNC:" in given else given
    stamp = given.partition(":")[2].partition(":")[0]
    try:
        made = int(stamp, 16)
    except ValueError:
        made = -1
    fits = made >= 0 and hmac.compare_digest(ticket(state, user, path, at=made).encode(), given.encode())
    if not fits or not -300 <= state.clock.now() - made <= TICKET_SECONDS:
        raise PveError(401, "permission denied - invalid PVEVNC ticket")


def free_port(state: PveState, node: str) -> int:
    """A port on the node that no running console holds."""
    taken = {port for (where, port), upid in _open(state).items() if where == node and _runs(state, upid)}
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        if port not in taken:
            return port
    raise PveError(500, "unable to find free vnc port")


def _open(state: PveState) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = state.areas.setdefault("console_ports", {})
    return found


def _runs(state: PveState, upid: str) -> bool:
    task = state.tasks.get(upid)
    return task is not None and task.running


def opened(call: Call, kind: str, name: str, path: str) -> dict[str, Any]:
    """Port, ticket and task of a new console."""
    port = free_port(call.state, call.node)

    watchers = seen(call.state)
    watchers.pop(f"{call.node}:{port}", None)

    async def work(task: TaskContext) -> None:
        await task.sleep(WAIT_SECONDS)
        if f"{call.node}:{port}" not in watchers:
            raise TaskError("connection timed out")
        while watchers.get(f"{call.node}:{port}"):
            await task.sleep(1)

    upid = call.task(kind, name, work)
    _open(call.state)[call.node, port] = upid
    return {"user": call.authid, "ticket": ticket(call.state, call.authid, path), "port": port, "upid": upid}


def seen(state: PveState) -> dict[str, bool]:
    """The consoles a websocket came to, by node:port, and whether it is still there."""
    found: dict[str, bool] = state.areas.setdefault("console_watchers", {})
    return found


async def quiet(state: PveState, node: str, port: int, socket: web.WebSocketResponse) -> None:
    """Hold a console on which nothing happens until the client leaves it; a terminal's login is answered."""
    place = f"{node}:{port}"
    seen(state)[place] = True
    try:
        async for message in socket:
            text = message.data if isinstance(message.data, bytes) else str(message.data).encode()
            if b":PVEVNC:" in text:
                await socket.send_bytes(b"OK")
    finally:
        seen(state)[place] = False


def watched(call: Call, path: str) -> dict[str, Any]:
    """The port a websocket leads to, once its ticket is found to be right."""
    check_ticket(call.state, call.params["vncticket"], call.authid, path)
    port = call.params["port"]
    if not _runs(call.state, _open(call.state).get((call.node, port), "")):
        raise PveError(500, f"connect to 'localhost:{port}' failed: Connection refused")
    return {"port": str(port)}


def spice(call: Call, name: str, title: str) -> dict[str, Any]:
    """The configuration a SPICE viewer is started with."""
    node = call.state.nodes[call.node]
    proxy = call.params.get("proxy") or node.ip
    stamp = f"{int(call.clock.now()):08x}"
    signed = hmac.digest(call.state.secret, f"{stamp}:{name}".encode(), hashlib.sha1).hex()
    return {
        "type": "spice",
        "title": title,
        "host": f"pvespiceproxy:{stamp}:{name.replace('/', '')}:{call.node}::{signed}",
        "proxy": f"http://{proxy}:3128",
        "tls-port": SPICE_PORT,
        "password": secrets.token_hex(20),
        "ca": call.state.certificate_pem.replace("\n", "\\n"),
        "host-subject": f"OU=PVE Cluster Node,O=Proxmox Virtual Environment,CN={call.node}",
        "delete-this-file": 1,
        "secure-attention": "Ctrl+Alt+Ins",
        "toggle-fullscreen": "Shift+F11",
        "release-cursor": "Ctrl+Alt+R",
    }


def with_certificate(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """The console with the certificate its encrypted traffic is checked by."""
    return {**row, "cert": call.state.certificate_pem}


# --- guests ---------------------------------------------------------------------------------------


@endpoint("POST /nodes/{node}/lxc/{vmid}/vncproxy")
def container_screen(call: Call) -> dict[str, Any]:
    """Port and ticket of a container's screen."""
    vmid = call.params["vmid"]
    find_guest(call.state, call.node, vmid, "lxc")
    return with_certificate(call, opened(call, "vncproxy", str(vmid), f"/vms/{vmid}"))


@endpoint("POST /nodes/{node}/lxc/{vmid}/termproxy")
def container_terminal(call: Call) -> dict[str, Any]:
    """Port and ticket of a container's terminal."""
    vmid = call.params["vmid"]
    find_guest(call.state, call.node, vmid, "lxc")
    return opened(call, "vncproxy", str(vmid), f"/vms/{vmid}")


@endpoint("POST /nodes/{node}/lxc/{vmid}/spiceproxy")
def container_spice(call: Call) -> dict[str, Any]:
    """What a SPICE viewer needs to show a running container."""
    vmid = call.params["vmid"]
    if not find_guest(call.state, call.node, vmid, "lxc").running:
        raise PveError(500, f"CT {vmid} not running")
    return spice(call, f"/vms/{vmid}", f"CT {vmid}")


@endpoint("POST /nodes/{node}/qemu/{vmid}/termproxy")
def vm_terminal(call: Call) -> dict[str, Any]:
    """Port and ticket of a VM's serial terminal."""
    vmid, serial = call.params["vmid"], call.params.get("serial")
    guest = find_guest(call.state, call.node, vmid)
    if serial is None and not str(guest.config.get("vga", "")).startswith("serial"):
        serial = next((f"serial{number}" for number in range(4) if f"serial{number}" in guest.config), None)
        if serial is None:
            raise PveError(500, "unable to find a serial interface")
    if serial is not None and serial not in guest.config:
        raise PveError(500, f"serial interface '{serial}' is not configured")
    return opened(call, "vncproxy", str(vmid), f"/vms/{vmid}")


@endpoint("POST /nodes/{node}/qemu/{vmid}/spiceproxy")
def vm_spice(call: Call) -> dict[str, Any]:
    """What a SPICE viewer needs to show a running VM that has a SPICE display."""
    vmid = call.params["vmid"]
    guest = find_guest(call.state, call.node, vmid)
    if not guest.running:
        raise PveError(500, f"VM {vmid} not running")
    if not str(guest.config.get("vga", "")).startswith("qxl"):
        raise PveError(500, "no spice port")
    call.task("spiceproxy", vmid, lambda task: None)
    return spice(call, f"/vms/{vmid}", f"VM {vmid} - {guest.name}")


@endpoint("GET /nodes/{node}/lxc/{vmid}/vncwebsocket")
@endpoint("GET /nodes/{node}/qemu/{vmid}/vncwebsocket")
def guest_websocket(call: Call) -> dict[str, Any]:
    """The port of a guest's console."""
    return watched(call, f"/vms/{call.params['vmid']}")


# --- nodes ----------------------------------------------------------------------------------------


def check_command(call: Call) -> None:
    """Nothing, or the 403 of a command that only root may run in a shell."""
    if call.params.get("cmd", "login") != "login" and not (call.auth and call.auth.is_root):
        raise permission_error("user != root@pam")


@endpoint("POST /nodes/{node}/vncshell")
def node_screen(call: Call) -> dict[str, Any]:
    """Port and ticket of a node's shell on a screen."""
    check_command(call)
    return with_certificate(call, opened(call, "vncshell", "", f"/nodes/{call.node}"))


@endpoint("POST /nodes/{node}/termproxy")
def node_terminal(call: Call) -> dict[str, Any]:
    """Port and ticket of a node's shell."""
    check_command(call)
    return opened(call, "vncshell", "", f"/nodes/{call.node}")


@endpoint("POST /nodes/{node}/spiceshell")
def node_spice(call: Call) -> dict[str, Any]:
    """What a SPICE viewer needs to show a node's shell."""
    check_command(call)
    return spice(call, f"/nodes/{call.node}", f"Shell on '{call.node}'")


@endpoint("GET /nodes/{node}/vncwebsocket")
def node_websocket(call: Call) -> dict[str, Any]:
    """The port of a node's console."""
    return watched(call, f"/nodes/{call.node}")


@endpoint("POST /access/vncticket")
def verify(call: Call) -> None:
    """Nothing when the ticket lets that user watch what lies at the path; else 401."""
    user, path = call.params["authid"], call.params["path"]
    check_ticket(call.state, call.params["vncticket"], user, path)
    name, _, token = user.partition("!")
    held = call.state.access.permissions(AuthId(name, token or None), path)
    if not all(priv in held for priv in split_list(call.params["privs"])):
        raise PveError(401, "permission denied - invalid PVEVNC ticket")


# --- tunnels between clusters ---------------------------------------------------------------------


def _tunnel(kind: str, word: str) -> None:
    def begin(call: Call) -> dict[str, Any]:
        vmid = call.params["vmid"]
        if vmid in call.state.guests:
            held = call.state.guests[vmid]
            name = "VM" if held.kind == "qemu" else "CT"
            raise PveError(500, f"{name} {vmid} already exists on node '{held.node}'")

        async def work(task: TaskContext) -> None:
            await task.sleep(300)
            raise TaskError("mtunnel exited unexpectedly")

        socket = f"/run/{'qemu-server' if kind == 'qemu' else 'pve-container'}/{vmid}.mtunnel"
        signed = ticket(call.state, call.authid, socket).replace("PVEVNC", "PVETUNNEL")
        return {"ticket": signed, "upid": call.task(f"{word}mtunnel", vmid, work), "socket": socket}

    def connect(call: Call) -> None:
        if call.flavour != "8.4" or kind == "lxc":
            find_guest(call.state, call.node, call.params["vmid"], kind)
        raise PveError(401, "permission denied - invalid PVETUNNEL ticket")

    begin.__doc__ = "Ticket and socket of a tunnel through which another cluster may send a guest."
    connect.__doc__ = "Refused: no other cluster sends anything here."
    endpoint(f"POST /nodes/{{node}}/{kind}/{{vmid}}/mtunnel")(begin)
    endpoint(f"GET /nodes/{{node}}/{kind}/{{vmid}}/mtunnelwebsocket")(connect)


_tunnel("qemu", "q")
_tunnel("lxc", "vz")
