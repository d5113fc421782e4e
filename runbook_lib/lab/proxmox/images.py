"""What nodes and storages tell of files before they are fetched or restored, graphs, command batches, and the
repositories and appliance templates of a node.

The lab's nodes reach no network: what would be fetched is refused in the words of a server that is cut off.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import struct
import zlib
from typing import Any

from .backup import unpacked
from .declared import declared
from .declared.images import TABLE
from .declared.system import TABLE as SYSTEM_TABLE
from .routing import ROUTER, Call, PveError, param_error
from .schema import format_check
from .sections import digest_of
from .storage import VolumeState, add_volume, check_volume_access, find_volume, parse_size, require_active, volume_path
from .worker import TaskContext

endpoint, system_endpoint = declared(TABLE), declared(SYSTEM_TABLE)

MIRROR = "http://download.proxmox.com/images"
TEMPLATES = (
    ("debian-12-standard", "12.12-1", "debian-12", "zst", "Debian 12 Bookworm (standard)", 124),
    ("debian-13-standard", "13.1-2", "debian-13", "zst", "Debian 13 Trixie (standard)", 129),
    ("ubuntu-24.04-standard", "24.04-2", "ubuntu-24.04", "zst", "Ubuntu 24.04 Noble (standard)", 135),
    ("alpine-3.22-default", "20250617", "alpine", "xz", "LXC default image for alpine 3.22", 3),
)
"""Package, version, system, compression, headline and MiB of the appliance templates a node knows."""

GRAPHED = {
    "node": {"cpu", "iowait", "loadavg", "maxcpu", "memtotal", "memused", "netin", "netout", "roottotal", "rootused",
             "swaptotal", "swapused"},
    "vm": {"cpu", "disk", "diskread", "diskwrite", "maxcpu", "maxdisk", "maxmem", "mem", "netin", "netout"},
    "storage": {"total", "used"},
}  # fmt: skip


def blank_picture(width: int = 800, height: int = 200) -> str:
    """A white PNG, its bytes as characters, which is how the real server sends one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * width) * height)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return png.decode("latin-1")


def graph(call: Call, kind: str, file: str) -> dict[str, str]:
    """A picture of the asked figures; the lab draws no curves."""
    asked = re.split(r"[,;\s]+", call.params["ds"])
    for name in asked:
        if name not in GRAPHED[kind]:
            raise PveError(500, f"RRD error: No DS called '{name}' in '/var/lib/rrdcached/db/{file}'")
    return {"filename": f"/var/lib/rrdcached/db/{file}_{call.params['ds']}.png", "image": blank_picture()}


@endpoint("GET /nodes/{node}/rrd")
def node_graph(call: Call) -> dict[str, str]:
    """A picture of a node's figures over time."""
    return graph(call, "node", f"pve2-node/{call.node}")


@endpoint("GET /nodes/{node}/qemu/{vmid}/rrd")
@endpoint("GET /nodes/{node}/lxc/{vmid}/rrd")
def guest_graph(call: Call) -> dict[str, str]:
    """A picture of a guest's figures over time."""
    return graph(call, "vm", f"pve2-vm/{call.params['vmid']}")


@endpoint("GET /nodes/{node}/storage/{storage}/rrd")
def storage_graph(call: Call) -> dict[str, str]:
    """A picture of a storage's use over time."""
    if call.flavour != "8.4":  # it looks for the file where it lay before 9.0
        place = f"/var/lib/rrdcached/db/pve2-storage/{call.node}/{call.params['storage']}"
        raise PveError(500, f"RRD error: realpath({place}): No such file or directory")
    return graph(call, "storage", f"pve2-storage/{call.node}/{call.params['storage']}")


@format_check("pve-command-batch")
def _batch(value: str) -> None:
    try:
        commands = json.loads(value)
    except ValueError as error:
        raise ValueError(f"commands param did not contain valid JSON: {error}\n") from error
    if not isinstance(commands, list):
        raise ValueError("commands is not an array\n")
    for command in commands:
        if not isinstance(command, dict):
            raise ValueError("array element is not a hash\n")
        if not {"path", "method"} <= command.keys():
            raise ValueError("array element has no path or method\n")


@endpoint("POST /nodes/{node}/execute", "root-only")
def execute(call: Call) -> list[dict[str, Any]]:
    """The answers to a batch of calls, in order; one that is refused does not keep the rest."""
    commands = json.loads(call.params["commands"])
    return [_executed(call, command) for command in commands]


def _executed(call: Call, command: Any) -> dict[str, Any]:
    path, method = f"/nodes/{call.node}/{str(command['path']).strip('/')}", str(command["method"]).upper()
    found = ROUTER.find(method, path)
    try:
        if found is None:
            raise PveError(501, f"Method '{method} {path}' not implemented")
        route, arguments = found
        inner = Call(call.state, method, path, {**(command.get("args") or {}), **arguments}, call.auth)
        route.authorise(inner)
        inner.params = route.verified(inner)
        data = route.handler(inner)
        if inspect.iscoroutine(data):
            data.close()
            raise PveError(500, f"Method '{method} {path}' cannot be part of a batch")
    except PveError as error:
        row: dict[str, Any] = {"status": error.status, "message": error.message}
        return row | ({"errors": error.errors} if error.errors else {})
    return {"status": 200, "data": getattr(data, "data", data)}


# --- files ----------------------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/query-url-metadata")
def url_metadata(call: Call) -> dict[str, Any]:
    """Name and size of a file the scenario's `downloads` know; others are not reached."""
    url = call.params["url"]
    known = call.state.areas.get("downloads", {}).get(url)
    if known is None or known.get("error"):
        host = re.sub(r"^https?://([^/]+).*", r"\1", url)
        port = "" if ":" in host else ":443" if url.startswith("https") else ":80"
        raise PveError(500, f"invalid server response: '500 Can't connect to {host}{port} (Connection refused)'")
    name = url.rpartition("/")[2].partition("?")[0]
    return {"filename": name, "mimetype": "application/octet-stream", "size": parse_size(known.get("size", "350M"))}


@endpoint("GET /nodes/{node}/query-oci-repo-tags")
def registry_tags(call: Call) -> list[str]:
    """Refused: the tool that asks registries is not installed."""
    raise PveError(500, "Install 'skopeo' to list tags from OCI registries.")


@endpoint("POST /nodes/{node}/storage/{storage}/oci-registry-pull")
def registry_pull(call: Call) -> str:
    """Refused: the tool that asks registries is not installed."""
    require_active(call.state, call.params["storage"], call.node)
    raise PveError(500, "Install 'skopeo' to pull images from OCI registries.")


@endpoint("GET /nodes/{node}/storage/{storage}/identity")
def identity(call: Call) -> None:
    """Refused: no kind of storage here tells who it is."""
    require_active(call.state, call.params["storage"], call.node)
    where = "/usr/share/perl5/PVE/Storage/Plugin.pm line 2681."
    raise PveError(500, f"get_identity not implemented for this plugin at {where}")


@endpoint("GET /nodes/{node}/storage/{storage}/import-metadata")
def import_metadata(call: Call) -> dict[str, Any]:
    """Refused unless the file is a machine that can be imported, of which the lab has none."""
    volid = call.params["volume"]
    storage = require_active(call.state, call.params["storage"], call.node)
    volid = volid if ":" in volid else f"{storage.storage}:{volid}"
    volume = find_volume(call.state, call.node, volid)
    if volume is None or volume.content != "import":
        raise PveError(500, f"unable to parse directory volume name '{call.params['volume']}'")
    check_volume_access(call, volume)
    if not volid.endswith((".ova", ".ovf", ".vmx")):
        raise PveError(500, f"invalid format - '{volume.format}' - expected ova, ovf or vmx")
    raise PveError(500, f"command '/usr/bin/tar -xf {volume_path(storage, volid)}' failed: exit code 2")


def backup_of(call: Call) -> VolumeState:
    """The backup a file is asked from. Raises the 500 of anything else."""
    storage = require_active(call.state, call.params["storage"], call.node)
    volid = call.params["volume"] if ":" in call.params["volume"] else f"{storage.storage}:{call.params['volume']}"
    if not re.match(r"[^:]+:backup/", volid):
        raise PveError(500, f"unable to parse volume filename '{volid.rpartition('/')[2]}'")
    volume = find_volume(call.state, call.node, volid)
    if volume is None:
        raise PveError(500, f"volume '{volid}' does not exist")
    check_volume_access(call, volume)
    if storage.type != "pbs":
        raise param_error({"storage": "Only PBS storages supported for file-restore."})
    return volume


@endpoint("GET /nodes/{node}/storage/{storage}/file-restore/list")
def list_files(call: Call) -> list[dict[str, Any]]:
    """The disks in a backup; what is on them the lab does not know."""
    volume, path = backup_of(call), call.params["filepath"]
    if path not in ("/", base64.b64encode(b"/").decode()):
        raise PveError(500, "proxmox-file-restore failed: Error: no such file or directory")
    names = sorted(f"drive-{key}.img.fidx" for key in unpacked(call.state, volume)["disks"])
    return [
        {"filepath": base64.b64encode(f"/{name}".encode()).decode(), "leaf": 0, "text": name, "type": "v"}
        for name in names
    ]


@endpoint("GET /nodes/{node}/storage/{storage}/file-restore/download")
def download_file(call: Call) -> None:
    """Refused: no file of a backup is kept."""
    backup_of(call)
    raise PveError(500, "proxmox-file-restore failed: Error: no such file or directory")


# --- templates and repositories -------------------------------------------------------------------


@system_endpoint("GET /nodes/{node}/aplinfo")
def appliances(call: Call) -> list[dict[str, str]]:
    """The templates a node can fetch."""
    return [
        {
            "package": package, "version": version, "os": system, "type": "lxc", "section": "system",
            "architecture": "amd64", "template": (file := f"{package}_{version}_amd64.tar.{packed}"),
            "location": f"{MIRROR}/system/{file}", "source": MIRROR, "headline": title,
            "description": f"{title}.", "infopage": "https://pve.proxmox.com/wiki/Linux_Container",
            "maintainer": "Proxmox Support Team <support@proxmox.com>", "md5sum": digest_of(file)[:32],
            "sha512sum": (digest_of(file) * 4)[:128],
        }
        for package, version, system, packed, title, _ in TEMPLATES
    ]  # fmt: skip


@system_endpoint("POST /nodes/{node}/aplinfo")
def fetch_appliance(call: Call) -> str:
    """The UPID of a template's download; it comes from the lab itself."""
    state, node, name = call.state, call.node, call.params["template"]
    sizes = {f"{row[0]}_{row[1]}_amd64.tar.{row[3]}": row[5] for row in TEMPLATES}
    if name not in sizes:
        raise param_error({"template": "no such template"})
    storage = require_active(state, call.params["storage"], node)
    if "vztmpl" not in storage.content:
        raise PveError(500, f"storage '{storage.storage}' does not support 'vztmpl' content")
    volid = f"{storage.storage}:vztmpl/{name}"

    async def work(task: TaskContext) -> None:
        path = volume_path(storage, volid)
        task.log(f"downloading {MIRROR}/system/{name} to {path}")
        if find_volume(state, node, volid) is not None:
            task.log("OK, got correct file already, no need to download")
            return
        size = sizes[name] * 2**20
        await task.sleep(size / (50 * 2**20))
        made = VolumeState(volid, "vztmpl", "t" + name.rpartition(".")[2], size, size, int(state.clock.now()))
        add_volume(state, storage.at(node), made)
        task.log(f"download of '{MIRROR}/system/{name}' to '{path}' finished")

    return call.task("download", name, work)


@system_endpoint("GET /nodes/{node}/apt/changelog")
def changelog(call: Call) -> str:
    """Refused: the package mirror is not reached."""
    name = call.params["name"]
    raise PveError(500, f"command 'apt-get changelog -qq {name}' failed: exit code 100")


@system_endpoint("POST /nodes/{node}/apt/repositories")
def switch_repository(call: Call) -> None:
    """Refused: the node has no repository file of that name."""
    raise PveError(500, f"invalid path: {call.params['path']}")


@system_endpoint("PUT /nodes/{node}/apt/repositories")
def add_repository(call: Call) -> None:
    """Refused: the handle names no standard repository."""
    raise PveError(500, f"unknown repository handle '{call.params['handle']}'")
