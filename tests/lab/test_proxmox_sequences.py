"""The REST calls of the official providers, literally and in their order, with what each of them waits for.

CAPMOX v0.9 (go-proxmox), the CSI plugin v0.19 and the cloud controller manager v0.13 send JSON with an API token;
what go-proxmox demands of an answer is checked on every call.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox.permissions import Token, User
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

SECRET = "11111111-2222-3333-4444-555555555555"
FLAVOURS = ("8.4", "9.2")


@dataclass(frozen=True)
class Call:
    """One call, what its answer must be, and what is kept of it for later calls as `{name}`."""

    method: str
    path: str
    body: Any = None
    status: int = 200
    reason: str = "OK"
    holds: Callable[[Any], object] = lambda data: True
    keep: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    wait: bool = False  # for the task whose UPID came back: it must end OK
    later: float = 0  # lab seconds that pass first
    scale: float = float("inf")  # of the lab's time during the call; 0 stops it


def is_upid(data: Any) -> bool:
    """Whether the value names a task the way go-proxmox splits it: eight parts at least."""
    return isinstance(data, str) and data.startswith("UPID:") and len(data.split(":")) >= 8


async def replay(calls: Sequence[Call], flavour: str, spool: Path, *, privs: str) -> None:
    """Nothing; raises AssertionError at the first call that is not answered as the provider needs it."""
    given = {**scenario.load("healthy").proxmox, "flavour": flavour}
    state = PveState.from_scenario(given, clock=Clock(float("inf")), spool=spool)
    state.access.users["capmox@pve"] = User("capmox@pve", tokens={"capi": Token(SECRET, privsep=False)})
    state.access.custom["Provider"] = frozenset(privs.split())
    state.access.acl["/"] = {"user": {"capmox@pve": {"Provider": True}}}
    headers = {"Authorization": f"PVEAPIToken=capmox@pve!capi={SECRET}"}
    kept: dict[str, Any] = {}
    async with (
        test_utils.TestServer(create_app(state)) as server,
        aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        base = f"{server.make_url('/')}api2/json"

        async def send(method: str, path: str, **options: Any) -> tuple[int, str, Any]:
            async with session.request(method, base + path, **options) as response:
                body = await response.read()
                return response.status, response.reason or "", json.loads(body) if body else None

        for number, call in enumerate(calls, 1):
            state.clock.rescale(call.scale)
            state.clock.advance(call.later)
            path = _filled(call.path, kept, quoted=True)
            options = _options(call, kept)
            status, reason, answer = await send(call.method, path, **options)
            label = f"{number}: {call.method} {path} → {status} {reason} {answer!r:.400}"
            assert (status, re.search(call.reason, reason) is not None) == (call.status, True), label
            assert isinstance(answer, dict), label
            data = answer["data"] if status == 200 else answer
            assert call.holds(data), label
            kept |= {name: pick(data) for name, pick in call.keep.items()}
            if call.wait:
                assert is_upid(data), label
                await _ended_well(state, send, data)


async def _ended_well(state: PveState, send: Callable[..., Awaitable[Any]], upid: str) -> None:
    await state.tasks.idle()
    _, _, answer = await send("GET", f"/nodes/{upid.split(':')[1]}/tasks/{quote(upid, safe='')}/status")
    assert (answer["data"]["status"], answer["data"]["exitstatus"]) == ("stopped", "OK"), answer


def _filled(text: str, kept: dict[str, Any], *, quoted: bool = False) -> str:
    for name, value in kept.items():
        text = text.replace(f"{{{name}}}", quote(str(value), safe="") if quoted else str(value))
    return text


def _options(call: Call, kept: dict[str, Any]) -> dict[str, Any]:
    if call.body is None:
        return {}
    if isinstance(call.body, bytes):
        form = aiohttp.FormData()
        form.add_field("content", "iso")
        form.add_field("filename", call.body, filename=f"user-data-{kept['id']}.iso")
        return {"data": form}
    return {"json": json.loads(_filled(json.dumps(call.body), kept))}


# ---------------------------------------------------------------------------------------------- CAPMOX

CAPMOX = (
    "Sys.Audit VM.Audit VM.Clone VM.Allocate VM.Config.CPU VM.Config.Memory VM.Config.Network VM.Config.Disk "
    "VM.Config.CDROM VM.Config.Options VM.Config.HWType VM.Config.Cloudinit VM.PowerMgmt Datastore.Audit "
    "Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Allocate SDN.Use Pool.Audit"
)
GUEST_AGENT = {"8.4": "VM.Monitor", "9.2": "VM.GuestAgent.Audit VM.GuestAgent.Unrestricted"}
VM, CLONE = "/nodes/pve1/qemu/{id}", "/nodes/pve1/qemu/9000/clone"
FIND = [
    Call("GET", "/nodes/pve1/status", holds=lambda row: isinstance(row["memory"]["total"], int)),
    Call("GET", f"{VM}/status/current", holds=lambda row: row["name"] == "machine-1"),
    Call("GET", f"{VM}/config", holds=lambda row: row["name"] == "machine-1"),
]
MACHINE = [
    Call("GET", "/version", holds=lambda row: set(row) >= {"version", "release", "repoid"}),
    Call("GET", "/cluster/status", holds=lambda rows: rows[0]["type"] == "cluster"),
    Call(
        "GET",
        "/cluster/nextid?vmid=101",
        status=400,
        reason="Parameter verification failed.",
        holds=lambda body: body["errors"]["vmid"] == "VM 101 already exists",
    ),
    Call("GET", "/cluster/nextid?vmid=2001", holds=lambda data: data == "2001", keep={"id": int}),
    Call("GET", "/nodes/pve1/qemu", holds=lambda rows: all("template" not in row or row["template"] for row in rows)),
    Call("GET", "/nodes/pve1/lxc", holds=lambda rows: isinstance(rows, list)),
    Call(
        "GET",
        "/cluster/resources?type=vm",
        holds=lambda rows: [row["vmid"] for row in rows if row.get("template") == 1] == [9000],
    ),
    Call("GET", "/nodes/pve1/qemu/9000/status/current", holds=lambda row: row["status"] == "stopped"),
    Call("GET", "/nodes/pve1/qemu/9000/config", holds=lambda row: row["template"] == 1),
    Call(
        "POST",
        CLONE,
        {
            "newid": "{id}",
            "name": "machine-1",
            "full": 1,
            "storage": "local-lvm",
            "description": "",
            "pool": "kubernetes",
        },
        wait=True,
    ),
    *FIND,
    Call(
        "GET",
        f"{VM}/config",
        holds=lambda row: re.search(r"uuid=[0-9a-f-]{36}", row["smbios1"]),
        keep={"mac": lambda row: row["net0"].split(",")[0].split("=")[1]},
    ),
    Call(
        "POST",
        f"{VM}/config",
        {"sockets": 1, "cores": 2, "memory": 4096, "net0": "virtio={mac},bridge=vmbr0,tag=20", "tags": "capi;tenant_a"},
        wait=True,
    ),
    Call("PUT", f"{VM}/resize", {"disk": "scsi0", "size": "40G"}, wait=True),
    Call("POST", f"{VM}/config", {"tags": "capi;tenant_a;ip_net0_10.0.0.150"}, wait=True),
    Call("GET", f"{VM}/config", holds=lambda row: "size=40G" in row["scsi0"] and "ip_net0_10.0.0.150" in row["tags"]),
    Call(
        "GET",
        "/nodes/pve1/storage",
        holds=lambda rows: any(row["enabled"] == 1 and "iso" in row["content"] for row in rows),
    ),
    Call("POST", "/nodes/pve1/storage/local/upload", b"\x00" * 4096, wait=True),
    Call("POST", f"{VM}/config", {"tags": "capi;tenant_a;ip_net0_10.0.0.150;go-proxmox+cloud-init"}, wait=True),
    Call(
        "POST",
        f"{VM}/config",
        {"ide0": "local:iso/user-data-{id}.iso,media=cdrom", "boot": "order=scsi0;ide0"},
        wait=True,
    ),
    Call("POST", f"{VM}/status/start", {}, wait=True),
    Call("GET", f"{VM}/agent/get-osinfo", status=500, reason="^QEMU guest agent is not running$", scale=0),
    Call("GET", f"{VM}/agent/get-osinfo", holds=lambda data: "result" in data, later=60),
    Call(
        "POST",
        f"{VM}/agent/exec",
        {"command": ["cloud-init", "status"], "input-data": ""},
        holds=lambda data: isinstance(data["pid"], int),
        keep={"pid": lambda data: data["pid"]},
    ),
    Call(
        "GET",
        f"{VM}/agent/exec-status?pid={{pid}}",
        holds=lambda data: data["exited"] == 1 and data["exitcode"] == 0 and "status: done" in data["out-data"],
        later=60,
    ),
    Call("POST", f"{VM}/config", {"ide0": "none,media=cdrom"}, wait=True),
    Call("GET", "/nodes/pve1/storage/local/content/local:iso%2Fuser-data-{id}.iso", holds=lambda row: row["size"] > 0),
    Call("DELETE", "/nodes/pve1/storage/local/content/local:iso%2Fuser-data-{id}.iso", wait=True),
    *FIND,
    Call("POST", f"{VM}/status/stop", {}, wait=True),
    Call("DELETE", VM, wait=True),
    Call("GET", f"{VM}/status/current", status=500, reason="does not exist$"),
    Call("GET", "/cluster/nextid?vmid={id}", holds=lambda data: data == "2001"),
]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_calls_of_capmox_make_a_machine_and_remove_it(flavour: str, tmp_path: Path) -> None:
    """From the free id to the removed VM, each answer is what go-proxmox accepts."""
    asyncio.run(replay(MACHINE, flavour, tmp_path, privs=f"{CAPMOX} {GUEST_AGENT[flavour]}"))


REFUSED = [
    Call("POST", CLONE, {"newid": 101, "full": True}, 500, "VM 101: config file already exists"),
    Call("POST", CLONE, {"newid": 2001, "full": True, "target": "pve2"}, 500, "can't clone VM to node 'pve2'"),
    Call("POST", CLONE, {"newid": 2001, "storage": "none"}, 500, "storage 'none' does not exist|'storage'"),
    Call("POST", CLONE, {"newid": 2001, "full": 0, "format": "raw"}, 500, "not allowed for linked clones"),
    Call("DELETE", "/nodes/pve1/qemu/101", None, 500, "VM 101 is running - destroy failed"),
    Call("GET", "/nodes/pve1/qemu/4711/config", None, 500, "file 'nodes/pve1/qemu-server/4711.conf' does not exist"),
    Call("GET", "/nodes/nowhere/status", None, 500, "hostname lookup 'nowhere' failed"),
    Call("POST", CLONE, {"newid": "x"}, 400, "Parameter verification failed."),
]  # fmt: skip


@pytest.mark.parametrize("call", REFUSED, ids=lambda call: call.reason[:40])
def test_what_capmox_matches_on_stands_in_the_reason(call: Call, tmp_path: Path) -> None:
    """go-proxmox reads the status line of a refusal and nothing else."""
    asyncio.run(replay([call], "9.2", tmp_path, privs=f"{CAPMOX} {GUEST_AGENT['9.2']}"))


# ---------------------------------------------------------------------------------------------- CSI and CCM

CSI = "VM.Audit VM.Config.Disk Datastore.Allocate Datastore.AllocateSpace Datastore.Audit"
STORE = "/nodes/pve1/storage/local-lvm"
DISK = "vm-9999-pvc-0b7a1c1e-3d65-4f10-9d57-3f1f5e1c2a77"
WORKER = "/nodes/pve1/qemu/111"
VOLUME = [
    Call(
        "GET",
        "/cluster/resources?type=storage",
        holds=lambda rows: any(row["id"] == "storage/pve1/local-lvm" and row["status"] == "available" for row in rows),
    ),
    Call("GET", f"{STORE}/status", holds=lambda row: row["avail"] > 0 and row["type"] == "lvmthin"),
    Call("GET", f"{STORE}/content", holds=lambda rows: all(DISK not in row["volid"] for row in rows)),
    Call(
        "POST",
        f"{STORE}/content",
        {"vmid": 9999, "filename": DISK, "size": str(5 * 2**20), "node": "pve1", "storage": "local-lvm"},
        holds=lambda data: data == f"local-lvm:{DISK}",
    ),
    Call("GET", f"{STORE}/content", holds=lambda rows: [r["size"] for r in rows if DISK in r["volid"]] == [5 * 2**30]),
    Call("GET", "/cluster/resources?type=vm", holds=lambda rows: any(row.get("name") == "worker-1" for row in rows)),
    Call("GET", f"{WORKER}/status/current", holds=lambda row: row["status"] == "running"),
    Call("GET", f"{WORKER}/config", holds=lambda row: "scsi1" not in row and row["scsihw"] == "virtio-scsi-single"),
    Call(
        "POST",
        f"{WORKER}/config",
        {"scsi1": f"local-lvm:{DISK},backup=0,iothread=1,wwn=0x5056432d49443031"},
        wait=True,
    ),
    Call("GET", f"{WORKER}/config", holds=lambda row: DISK in row["scsi1"] and "wwn=0x5056" in row["scsi1"]),
    Call("PUT", f"{WORKER}/resize", {"disk": "scsi1", "size": "6144M"}, wait=True),
    Call("GET", f"{STORE}/content", holds=lambda rows: [r["size"] for r in rows if DISK in r["volid"]] == [6 * 2**30]),
    Call("PUT", f"{WORKER}/unlink", {"idlist": "scsi1"}, holds=lambda data: data is None),
    Call("GET", f"{WORKER}/config", holds=lambda row: "scsi1" not in row),
    Call("POST", f"{STORE}/content/{DISK}", {"target": "vm-9999-pvc-copy"}, 403, "Permission check failed"),
    Call("DELETE", f"{STORE}/content/{DISK}", wait=True),
    Call("GET", f"{STORE}/content", holds=lambda rows: all(DISK not in row["volid"] for row in rows)),
]

SHARED_DISK = f"9999/{DISK}.raw"
SHARED_STORE = "/nodes/pve1/storage/nas"
SHARED_VOLUME = [
    Call(
        "GET",
        "/cluster/resources?type=storage",
        holds=lambda rows: any(row["id"] == "storage/pve1/nas" for row in rows),
    ),
    Call("GET", "/storage/nas", holds=lambda row: row["type"] == "nfs" and "images" in row["content"]),
    Call("GET", f"{SHARED_STORE}/status", holds=lambda row: row["shared"] == 1 and row["avail"] > 0),
    Call(
        "POST",
        f"{SHARED_STORE}/content",
        {"vmid": 9999, "filename": f"{DISK}.raw", "size": str(5 * 2**20), "format": "raw"},
        holds=lambda data: data == f"nas:{SHARED_DISK}",
    ),
    Call("GET", "/nodes/pve2/storage/nas/content", holds=lambda rows: any(DISK in row["volid"] for row in rows)),
    Call(
        "POST",
        f"{WORKER}/config",
        {"scsi1": f"nas:{SHARED_DISK},backup=0,iothread=1,wwn=0x5056432d49443031"},
        wait=True,
    ),
    Call("GET", f"{WORKER}/config", holds=lambda row: SHARED_DISK in row["scsi1"]),
    Call("PUT", f"{WORKER}/resize", {"disk": "scsi1", "size": "6144M"}, wait=True),
    Call("PUT", f"{WORKER}/unlink", {"idlist": "scsi1"}, holds=lambda data: data is None),
    Call("GET", f"{WORKER}/config", holds=lambda row: "scsi1" not in row),
    Call("DELETE", f"{SHARED_STORE}/content/nas:9999%2F{DISK}.raw", wait=True),
    Call("GET", f"{SHARED_STORE}/content", holds=lambda rows: all(DISK not in row["volid"] for row in rows)),
]

CCM = [
    Call("GET", "/version", holds=lambda row: re.fullmatch(r"[89]\.\d+\.\d+", row["version"])),
    Call("GET", "/cluster/status", holds=lambda rows: {"name", "online", "nodeid", "local"} <= rows[1].keys()),
    Call("GET", "/cluster/resources?type=vm", holds=lambda rows: all(isinstance(row["vmid"], int) for row in rows)),
    Call("GET", f"{WORKER}/status/current", holds=lambda row: row["maxmem"] > 0 and row["cpus"] > 0),
    Call("GET", f"{WORKER}/config", holds=lambda row: re.search(r"uuid=[0-9a-f-]{36}", row["smbios1"])),
    Call(
        "GET",
        f"{WORKER}/agent/network-get-interfaces",
        holds=lambda data: any("ip-addresses" in entry for entry in data["result"]),
    ),
]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_calls_of_the_csi_plugin_live_a_volume_s_life(flavour: str, tmp_path: Path) -> None:
    """Made, attached, grown, detached, removed; a copy is root's alone."""
    asyncio.run(replay(VOLUME, flavour, tmp_path, privs=CSI))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_volume_of_shared_storage_is_seen_from_every_node(flavour: str, tmp_path: Path) -> None:
    """The same life on NFS, whose volumes are files in the owner's folder."""
    asyncio.run(replay(SHARED_VOLUME, flavour, tmp_path, privs=CSI))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_calls_of_the_cloud_controller_find_a_machine(flavour: str, tmp_path: Path) -> None:
    """Name, identity, size and addresses of a node's VM."""
    agent = GUEST_AGENT[flavour].split()[0]
    asyncio.run(replay(CCM, flavour, tmp_path, privs=f"VM.Audit Sys.Audit {agent}"))
