"""Bad input of every kind gets a real server's answer: never a traceback, never a dead process."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import control, scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import tickets
from runbook_lib.lab.proxmox.routing import ROUTER, Param, Route
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState, areas

sys.path.insert(0, str(Path(__file__).parent))
import proxmox_site  # lies beside this file

SEED, ROUNDS = 20261123, 1500
NASTY = (
    "", " ", "\x00", "\x1f\x7f", "\r\nX-Injected: 1", "é\N{SNOWMAN}\U0001f600", "\ud800", "../../../../etc/shadow",
    "local:../../etc/passwd", "local:iso/../../../etc/shadow", "%2e%2e%2f", "a" * 70_000, "-1", "0", "1e400", "NaN",
    "9" * 400, "{}", "[]", "null", "true", "';drop table", "a=b,c", ",,,=", "=", ";", "\\", "(((((", "[n]", "..", ".",
)  # fmt: skip
ODD_JSON: tuple[Any, ...] = (None, True, -1, 1e308, [], {}, [[]], {"a": {"b": []}}, [None], "x")

Send = Callable[..., Awaitable[tuple[int, str, bytes]]]


def with_server(
    work: Callable[[Send, aiohttp.ClientSession, Any], Awaitable[None]], *, flavour: str = "9.2"
) -> PveState:
    """The state of a lab after `work` was done with it, as root; the lab still answers then."""
    given = {**scenario.load("healthy").proxmox, "flavour": flavour}
    state = PveState.from_scenario(given, clock=Clock(float("inf")))
    now = state.clock.now()
    headers = {
        "Cookie": f"PVEAuthCookie={quote(tickets.ticket(state.secret, 'root@pam', now))}",
        "CSRFPreventionToken": tickets.csrf_token(state.secret, "root@pam", now),
    }

    async def run() -> None:
        async with (
            test_utils.TestServer(create_app(state)) as server,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            base = server.make_url("/")

            async def send(method: str, path: str, **options: Any) -> tuple[int, str, bytes]:
                options["headers"] = {**headers, **options.get("headers", {})}
                async with session.request(method, f"{base}api2/json{path}", **options) as response:
                    return response.status, response.reason or "", await response.read()

            await work(send, session, base)
            assert (await send("GET", "/version"))[0] == 200
            await state.tasks.idle()

    asyncio.run(run())
    return state


def test_a_seeded_storm_never_brings_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Random methods with nasty values in path, query, form and JSON; every answer is one a real server could give."""
    dice = random.Random(SEED)
    seen: set[int] = set()
    faults: list[str] = []

    def value() -> str:
        return dice.choice(NASTY)

    def segment(name: str) -> str:
        known = {"{node}": "pve1", "{vmid}": "101", "{storage}": "local", "{snapname}": "s1"}
        chosen = known.get(name, "x") if dice.random() < 0.6 else value()
        return quote(chosen.encode("utf-8", "replace")[:500], safe="") or "%20"

    async def storm(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        for _ in range(ROUNDS):
            route = dice.choice(ROUTER.routes)
            path = "/".join(segment(part) if part.startswith("{") else part for part in route.template.split("/"))
            names = [dice.choice([*route.params, "zz"]).replace("[n]", "0") for _ in range(dice.randint(0, 4))]
            options: dict[str, Any] = {}
            if route.method in ("GET", "DELETE"):
                options["params"] = {name: value().encode("utf-8", "replace")[:500].decode() for name in names}
            elif dice.random() < 0.5:
                options["json"] = {name: dice.choice(ODD_JSON) for name in names}
            else:
                text = "&".join(f"{name}={quote(value().encode('utf-8', 'replace'))}" for name in names)
                options |= {"data": text, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
            status, reason, _ = await send(route.method, path, **options)
            seen.add(status)
            if "internal error of the lab" in reason:
                faults.append(f"{route.method} {path[:200]} {str(options)[:300]}: {reason}")

    state = with_server(storm)
    dead = [task.exitstatus for task in state.tasks if "internal error of the lab" in (task.exitstatus or "")]
    assert not faults, "\n".join(faults[:20])
    assert not dead, dead[:10]
    assert seen <= {200, 400, 401, 403, 404, 500, 501, 595, 596}
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 500),
        (b'{"a": ' + b"[" * 5000, "application/json", 500),
        (b"[]", "application/json", 500),
        (b"\xff\xfe\x00", "application/json", 500),
        (b"<x/>", "application/xml", 506),
        (b"x" * (1 << 20), "application/x-www-form-urlencoded", 501),
        (b"description=" + b"x" * 500_000, "application/x-www-form-urlencoded", 400),
        (b"--b\r\nnonsense", "multipart/form-data; boundary=b", 506),
        (b"%zz=%&&&;;;=", "application/x-www-form-urlencoded", 400),
    ],
)
def test_odd_bodies_get_the_server_s_answer(body: bytes, kind: str, status: int) -> None:
    """Malformed, too large, of the wrong type: each has its code."""
    answers: list[int] = []

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        answer = await send("PUT", "/nodes/pve1/qemu/101/config", data=body, headers={"Content-Type": kind})
        answers.append(answer[0])

    with_server(work)
    assert answers == [status]


@pytest.mark.parametrize(
    "volume", ["../../etc/shadow", "iso/../../../etc/shadow", "/etc/shadow", "iso//x", "iso/..", "%00"]
)
def test_volumes_do_not_climb_out_of_their_storage(volume: str) -> None:
    """A volume id with a path in it finds nothing."""
    answers: list[tuple[int, str, bytes]] = []

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        path = f"/nodes/pve1/storage/local/content/{quote('local:' + volume, safe='')}"
        answers.extend([await send("GET", path), await send("DELETE", path)])

    with_server(work)
    assert answers[0][0] in (400, 500)
    assert all(b"root:" not in body for _, _, body in answers)


def test_half_requests_leave_the_server_alive() -> None:
    """Connections that end in the middle of a line, a header or a body."""

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        for text in (
            b"GE",
            b"GET / HTTP/1.1\r\nHo",
            b"POST /api2/json/x HTTP/1.1\r\nContent-Length: 99\r\n\r\nabc",
            b"\x16\x03\x01",
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", base.port)
            writer.write(text)
            await writer.drain()
            writer.close()

    with_server(work)


def test_a_json_answer_to_control_characters_is_still_json() -> None:
    """What was sent comes back escaped, and no header can be slipped in."""
    answers: list[tuple[int, str, bytes]] = []

    async def work(send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        answers.append(
            await send("POST", "/nodes/pve1/qemu", data={"vmid": "a\r\nX-Injected: 1\x00", "name": "\x1b[31m"})
        )

    with_server(work)
    status, _, body = answers[0]
    assert status == 400
    assert json.loads(body)["errors"]["vmid"].startswith("type check ('integer') failed")


# ---------------------------------------------------------------------------------------------- from valid calls on

EACH, PER_LAB = 3, 300
SAMPLES: dict[str, tuple[str, ...]] = {
    "node": ("pve1", "pve2", "pve3"), "target": ("pve1", "pve2", "pve3"), "vmid": ("101", "111", "120", "121", "9000"),
    "newid": ("3001", "3002", "3003", "101"), "storage": ("local", "nas", "local-lvm"), "iface": ("vmbr0", "vmbr9"),
    "disk": ("scsi0", "scsi1", "ide2"), "snapname": ("s1", "s2", "before"), "userid": ("eve@pve", "ops@pve"),
    "poolid": ("kubernetes", "new"), "pool": ("kubernetes",), "size": ("+1G", "5G", "1M"), "sid": ("vm:101", "vm:120"),
    "volume": ("local-lvm:vm-101-disk-0", "local:iso/x.iso", "nas:9999/vm-9999-pvc-1.raw", "vm-111-disk-0"),
    "filename": ("vm-101-extra", "x.iso", "vm-9999-pvc-1.raw"), "content": ("iso", "images", "import"),
    "targetstorage": ("nas", "1", "local-lvm:nas"), "idlist": ("scsi0", "unused0,ide2"), "command": ("hostname",),
    "scsi[n]": ("local-lvm:4", "nas:1,format=qcow2", "local-lvm:vm-101-disk-0", "none"), "memory": ("1024", "2048"),
    "ide[n]": ("local-lvm:cloudinit", "none,media=cdrom", "cdrom"), "net[n]": ("virtio,bridge=vmbr0", "e1000"),
    "ipconfig[n]": ("ip=dhcp", "ip=10.0.0.9/24,gw=10.0.0.1"), "boot": ("order=scsi0", "order=ide2;net0"),
    "delete": ("scsi1", "tags", "unused0", "net0,cores"), "revert": ("memory",), "tags": ("a;b", "b"), "name": ("m-1",),
    "schedule": ("mon 03:00", "*/15"), "roleid": ("Ops", "PVEAdmin"), "roles": ("PVEAuditor",), "path": ("/vms", "/"),
    "users": ("eve@pve",), "groupid": ("ops",), "groups": ("ops",), "tokenid": ("t1",), "type": (), "zone": ("z1",),
    "vnet": ("v1",), "subnet": ("z1-10.1.0.0-24",), "pos": ("0", "1"), "url": ("https://x.example/a.iso",),
    "id": ("100-0", "backup-1", "m1"), "cidr": ("10.0.0.0/24",), "timeframe": ("hour",), "bridge": ("vmbr0",),
    "archive": ("nas:backup/vzdump-qemu-120-x.vma.zst",), "key": ("ab",), "password": ("correct-horse-9",),
    "start": ("0", "1"), "limit": ("5",), "service": ("cron", "pveproxy"), "digest": ("0" * 40,), "pid": ("701",),
    "file": ("/etc/hosts",),
}  # fmt: skip
"""Values that mean something here, by parameter; other parameters get what their own rules allow."""
FORMATTED = {
    "CIDR": "10.0.0.1/24", "CIDRv4": "10.0.0.1/24", "CIDRv6": "fd00::1/64", "ip": "10.0.0.9", "ipv4": "10.0.0.9",
    "ipv6": "fd00::9", "address": "10.0.0.9", "dns-name": "host.example", "email": "a@b.example", "mac-addr":
    "BC:24:11:00:00:01", "pve-node": "pve2", "pve-vmid": "121", "pve-storage-id": "nas", "pve-configid": "thing",
    "pve-userid": "eve@pve", "pve-volume-id": "local:iso/x.iso", "disk-size": "4G", "pve-tfa-secret": "x",
}  # fmt: skip
NO_OFF_SWITCH = re.compile(r"/status$|/stopall|/suspendall|/nodes/\{node\}$|/access/password|/certificates")
"""What takes the lab's nodes or the caller's own login away is asked elsewhere."""


def valid(name: str, spec: Param, dice: random.Random) -> str:
    """A value that the parameter's own rules most likely allow."""
    base = re.sub(r"\d+$", "[n]", name)
    if known := SAMPLES.get(name) or SAMPLES.get(base):
        return dice.choice(known)
    if spec.enum:
        return dice.choice(list(spec.enum))
    if spec.type == "boolean":
        return dice.choice("01")
    if spec.type in ("integer", "number"):
        low = int(spec.minimum if spec.minimum is not None else 1)
        return str(min(low + dice.randint(0, 3), int(spec.maximum) if spec.maximum is not None else low + 3))
    form = spec.format if isinstance(spec.format, str) else ""
    return FORMATTED.get(form.removesuffix("-list"), "thing")


def call_of(route: Route, flavour: str, dice: random.Random) -> tuple[dict[str, str], dict[str, Any]]:
    """Path arguments and parameters of a call as somebody would make it."""
    specs = route.specs(flavour)
    arguments = re.findall(r"\{([^}:]+)(?::rest)?\}", route.template)
    path = {name: valid(name, specs.get(name, Param()), dice) for name in arguments}
    names = [name for name, spec in specs.items() if not spec.optional and name not in path]
    optional = [name for name, spec in specs.items() if spec.optional and name not in path]
    names += dice.sample(optional, min(len(optional), dice.choice((0, 0, 1, 2, 3))))
    return path, {n.replace("[n]", "1"): valid(n, specs[n], dice) for n in names}


def mutate(path: dict[str, str], values: dict[str, Any], names: list[str], dice: random.Random) -> None:
    """Change one thing: a value, a letter of it, its type, its name, or leave it out."""
    place: dict[str, Any] = path if path and (not values or dice.random() < 0.15) else values
    if not place:
        values[dice.choice(names or ["zz"]).replace("[n]", "0")] = dice.choice(NASTY)[:500]
        return
    name = dice.choice(sorted(place))
    old = str(place[name])
    match dice.randint(0, 6):
        case 0:
            place[name] = dice.choice(NASTY)[:500] or "x"
        case 1 if place is values:
            del place[name]
        case 2 if place is values:
            place[name] = [old, "other"]
        case 3:
            at = dice.randrange(len(old) + 1)
            place[name] = old[:at] + dice.choice("\x00é;,=:/%. -0") + old[at + 1 :]
        case 4:
            place[name] = old * dice.choice((2, 40))
        case 5 if names:
            values[dice.choice(names).replace("[n]", "0")] = dice.choice(("1", "none", "x,y=z", "local-lvm:1"))
        case _:
            place[name] = re.sub(
                r"\d+", lambda found: str(int(found[0][:9]) + dice.choice((-1, 1, 10**6))), old, count=1
            )


@pytest.mark.parametrize("flavour", ["8.4", "9.2"])
def test_valid_calls_with_one_thing_changed_are_answered(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pass the verification of parameters, so that what does the work meets odd values too."""
    areas()  # importing them registers the routes
    routes = [r for r in ROUTER.routes if not (r.method != "GET" and NO_OFF_SWITCH.search(r.template))]
    routes = [r for r in routes if r.only in (None, flavour) and not r.upload]
    calls = [(route, turn) for turn in range(EACH) for route in sorted(routes, key=lambda r: (r.template, r.method))]
    batches = [calls[start : start + PER_LAB] for start in range(0, len(calls), PER_LAB)]
    passed, odd, sent = [0], [], [0]
    verify = Route.verified

    def counted(self: Route, call: Any) -> dict[str, Any]:
        params = verify(self, call)
        passed[0] += 1
        return params

    monkeypatch.setattr(Route, "verified", counted)

    async def storm(batch: list[tuple[Route, int]], send: Send, session: aiohttp.ClientSession, base: Any) -> None:
        for route, turn in batch:
            # each has dice of its own, so that a new route leaves the others' calls as they are
            dice = random.Random(f"{SEED}/{route.method}/{route.template}/{turn}")
            path, values = call_of(route, flavour, dice)
            if dice.random() < 0.7:
                mutate(path, values, list(route.params), dice)
            uri = uri_of(route, path)
            values = {name: _text(value) for name, value in values.items()}
            reads = route.method in ("GET", "DELETE")
            options: dict[str, Any] = {"params": values} if reads else {"json": values}
            status, reason, body = await send(route.method, uri, **options)
            sent[0] += 1
            if problem := oddity(status, reason, body):
                odd.append(f"{route.method} {uri[:150]} {str(values)[:200]}: {problem}")

    for batch in batches:
        state = with_server(functools.partial(storm, batch), flavour=flavour)
        odd += [str(task.exitstatus) for task in state.tasks if "internal error of the lab" in (task.exitstatus or "")]
    assert not odd, "\n".join(odd[:20])
    assert passed[0] >= 0.4 * sent[0], f"{passed[0]} of {sent[0]}"


def uri_of(route: Route, path: dict[str, str]) -> str:
    """The path of a call, its arguments filled in."""
    return re.sub(r"\{([^}:]+)(?::rest)?\}", lambda found: _segment(path[found[1]]), route.template)


def _segment(value: str) -> str:
    return quote(_text(value), safe="") or "%20"


def _text(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def oddity(status: int, reason: str, body: bytes) -> str:
    """Why a real server would not have answered so; empty when it could have."""
    if "internal error of the lab" in reason or status not in (200, 400, 401, 403, 404, 500, 501, 595, 596):
        return f"{status} {reason}"
    if "\n" in reason or not body:
        return "" if not body and status in (401, 595, 596) else f"{status} with an empty body"
    try:
        answer = json.loads(body)
    except ValueError:
        same = re.sub(r"[\x00-\x1f\x7f]+", " ", body.decode().strip()) == reason.strip()
        return "" if same else f"{status} with {body[:80]!r}"
    if not isinstance(answer, dict) or "data" not in answer:
        return f"{status} without data"
    return "" if status == 200 or answer.get("message") else f"{status} without a message"


# ---------------------------------------------------------------------------------------------- raw sockets

FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
UPLOAD = b"POST /api2/json/nodes/pve1/storage/local/upload HTTP/1.1\r\nHost: x\r\n"
MULTIPART = b"Content-Type: multipart/form-data; boundary=b\r\n"
POOLS = b"POST /api2/json/pools HTTP/1.1\r\nHost: x\r\n%AUTH%"
VERSION = b"GET /api2/json/version HTTP/1.1\r\nHost: x\r\n"
CLOSED = 0
"""The server answered and closed before all was sent: the answer may be lost on its way, as with any server."""
RAW: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "a length that is no number": (POOLS + b"Content-Length: x\r\n\r\n", (400,)),
    "a negative length": (POOLS + b"Content-Length: -5\r\n\r\n", (400,)),
    "two lengths": (
        POOLS + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        (400,),
    ),
    "a length of terabytes": (
        POOLS + FORM + b"Content-Length: 99999999999999\r\n\r\n",
        (501,),
    ),
    "chunks": (
        POOLS + b"Transfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
        (501,),
    ),
    "chunks of odd sizes": (
        POOLS + b"Transfer-Encoding: chunked\r\n\r\nzz\r\na=b\r\n-1\r\n",
        (400, 501),
    ),
    "chunks and a length": (
        POOLS + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\na=b",
        (400, 501),
    ),
    "another method": (b"BREW /api2/json/version HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n", (400, 501)),
    "a method in small letters": (b"get /api2/json/version HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n", (200, 400, 501)),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", (400,)),
    "bytes of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
    "a header without end": (b"GET /api2/json/version HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", (400, CLOSED)),
    "a thousand headers": (b"GET /api2/json/version HTTP/1.1\r\n" + b"X: a\r\n" * 1000 + b"\r\n", (400, 401)),
    "a path of 60 KB": (b"GET /api2/json/" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n", (400, 501, CLOSED)),
    "control characters in the path": (b"GET /api2/json/\x01\x7f HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n", (400, 501)),
    "a zero byte in a header": (VERSION + b"X: a\x00b\r\n\r\n", (400,)),
    "a cookie of rubbish": (VERSION + b"Cookie: ;;=\xff;PVEAuthCookie\r\n\r\n", (400, 401)),
    "an upload without boundary": (
        UPLOAD + b"%AUTH%Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc",
        (500,),
    ),
    "an upload that never begins": (UPLOAD + b"%AUTH%" + MULTIPART + b"Content-Length: 9\r\n\r\nno border", (400, 500)),
    "an upload in another upload": (
        UPLOAD
        + b"%AUTH%"
        + MULTIPART
        + b"Content-Length: 68\r\n\r\n--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
        b"--c--\r\n--b--\r\n\r\n",
        (400, 500),
    ),
    "an upload as a form": (UPLOAD + b"%AUTH%" + FORM + b"Content-Length: 11\r\n\r\ncontent=iso", (400, 500)),
    "a proxy's request": (
        b"GET http://other.example/api2/json/version HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n",
        (200, 400, 500, 501),
    ),
    "a request for a tunnel": (b"CONNECT other.example:443 HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n", (400, 501)),
    "an unknown upgrade": (
        VERSION + b"%AUTH%Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        (200, 400),
    ),
}
"""What a socket sends, and the statuses it may be answered with."""


class Bare:
    """A lab of its own process, asked over TLS with bytes that no client would send."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, control.connection(folder).proxmox
        self.context = ssl.create_default_context(cafile=self.where.ca_file)
        self.auth = f"Authorization: PVEAPIToken={self.where.token_id}={self.where.token_secret}\r\n".encode()

    def open(self) -> ssl.SSLSocket:
        """A connection."""
        host, _, port = self.where.url.removeprefix("https://").partition(":")
        plain = socket.create_connection((host, int(port)), timeout=5)
        return self.context.wrap_socket(plain, server_hostname=host)

    def status(self, text: bytes) -> int:
        """The status these bytes are answered with; 0 when the connection just ends."""
        with self.open() as line:
            try:
                line.sendall(text.replace(b"%AUTH%", self.auth))
                found = re.match(rb"HTTP/1\.[01] (\d+) ", line.recv(400))
            except OSError:
                return 0
        return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A lab for requests that are none; after all of them it lives, and its log holds no traceback."""
    lab = proxmox_site.start(tmp_path_factory.mktemp("bare"))
    yield Bare(lab)
    alive = control.status(lab)
    log = (lab / "lab.log").read_text(encoding="utf-8")
    control.down(lab)
    assert alive is not None
    assert "Traceback" not in log


@pytest.mark.parametrize("name", RAW)
def test_odd_requests_over_a_bare_socket_are_answered(bare: Bare, name: str) -> None:
    """Each gets a status that a server may give it, and the next request is answered as ever."""
    text, allowed = RAW[name]
    assert bare.status(text) in allowed
    assert bare.status(b"GET /api2/json/version HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n") == 200


def test_requests_cut_anywhere_leave_the_server_whole(bare: Bare) -> None:
    """One request is cut in many places; nothing of it was done, and the next one is answered."""
    body = b"poolid=cut&comment=%C3%A9"
    whole = b"POST /api2/json/pools HTTP/1.1\r\nHost: x\r\n" + bare.auth + FORM
    whole += b"Content-Length: %d\r\n\r\n" % len(body) + body
    for end in (*range(1, 60, 7), *range(60, len(whole), 41), len(whole) - 1):
        with bare.open() as line:
            line.sendall(whole[:end])
    assert bare.status(b"GET /api2/json/pools/cut HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n") == 500


@pytest.mark.parametrize(("kind", "status"), [("form", 501), ("json", 501), ("query", 400)])
def test_a_parameter_of_a_megabyte_is_refused(bare: Bare, kind: str, status: int) -> None:
    """In a body it is more than the server reads; in the query it is more than a line may have.

    The answer may be lost with the connection, which ends before everything was sent.
    """
    long = b"x" * 2**20
    if kind == "query":
        text = b"GET /api2/json/pools?poolid=" + long + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    else:
        body = b"poolid=" + long if kind == "form" else b'{"poolid":"' + long + b'"}'
        head = FORM if kind == "form" else b"Content-Type: application/json\r\n"
        text = b"POST /api2/json/pools HTTP/1.1\r\nHost: x\r\n%AUTH%" + head
        text += b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert bare.status(text) in (status, 0)
    assert bare.status(b"GET /api2/json/version HTTP/1.1\r\nHost: x\r\n%AUTH%\r\n") == 200
