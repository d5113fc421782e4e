"""`kubectl port-forward`: a pod's ports through one WebSocket, in the two forms that clients speak.

kubectl tunnels SPDY/3.1 frames (`SPDY/3.1+portforward.k8s.io`), the official Python client numbers channels
(`v4.channel.k8s.io`). What a port leads to is the pair registered in `Cluster.backends` (see `proxy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from .proxy import pod_backend
from .status import bad_request

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
Send = Callable[[bytes], Awaitable[None]]
TUNNEL, CHANNELS = "SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io"
PIECE = 1 << 15
HEADERS = 1 << 16  # what the headers of one stream may unfold to
SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY = 1, 2, 3, 6, 7
FIN = 1
VERSION = 0x8003
# Both ends of SPDY/3 compress headers against the same words (section 2.6.10.1 of its specification).
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_REST = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug "
    "Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _counted(word: bytes) -> bytes:
    return struct.pack(">I", len(word)) + word


DICTIONARY = b"".join(_counted(word.replace("_", " ").encode()) for word in _WORDS.split()) + _REST.encode()


async def serve(cluster: Cluster, request: web.Request, pod: Json) -> web.StreamResponse:
    """The WebSocket, once it is over; ApiError 400 for a pod without a node or a client without WebSocket."""
    if not (pod.get("spec") or {}).get("nodeName"):
        raise bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("Upgrade request required")
    offered = [word.strip() for word in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    chosen = next((word for word in (TUNNEL, CHANNELS) if word in offered), "")
    if not chosen:
        raise bad_request(f"unable to upgrade: unsupported protocols {offered}, supported are {TUNNEL}, {CHANNELS}")
    ports = _ports(request) if chosen == CHANNELS else []
    socket = web.WebSocketResponse(protocols=(chosen,), max_msg_size=0)
    await socket.prepare(request)
    way = Way(cluster, pod)
    try:
        if chosen == TUNNEL:
            await Tunnel(socket, way).run()
        else:
            await _channels(socket, way, ports)
    except ConnectionError:
        pass  # the client left in the middle of a word
    return socket


def _ports(request: web.Request) -> list[int]:
    words = [word for value in request.query.getall("ports", []) for word in value.split(",")]
    if not words or not all(word.isdigit() and 0 < int(word) < 65536 for word in words):
        raise bad_request('query parameter "ports" is required and holds port numbers')
    return [int(word) for word in words]


@dataclass(frozen=True)
class Way:
    """How connections into one pod are made."""

    cluster: Cluster
    pod: Json

    async def open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the pod's port; ConnectionError in the kubelet's words when nothing listens."""
        found = pod_backend(self.cluster, self.pod, port)
        meta = self.pod["metadata"]
        refused = ConnectionError(
            f"error forwarding port {port} to pod {meta['uid']}, uid : failed to execute portforward in network "
            f'namespace "/var/run/netns/cni-{meta["uid"]}": failed to connect to localhost:{port} inside namespace '
            f'"{meta["uid"]}", IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused'
        )
        if not isinstance(found, tuple):
            raise refused
        try:
            return await asyncio.open_connection(*found)
        except OSError as error:
            raise refused from error


async def _pump(way: Way, port: int, given: asyncio.Queue[bytes], send: Send) -> str:
    """What went wrong, or nothing, after both directions of one connection have ended."""
    try:
        reader, writer = await way.open(port)
    except ConnectionError as error:
        return str(error)

    async def up() -> None:
        with contextlib.suppress(OSError):
            while piece := await given.get():
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    rising = asyncio.create_task(up())
    try:
        while piece := await reader.read(PIECE):
            await send(piece)
    except OSError:
        return "error reading from the pod's port: connection reset by peer"
    finally:
        rising.cancel()
        writer.close()
    return ""


# -- numbered channels ------------------------------------------------------------------------------------------------


async def _channels(socket: web.WebSocketResponse, way: Way, ports: list[int]) -> None:
    queues: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in ports]

    async def one(number: int, port: int) -> None:
        data, errors = bytes([2 * number]), bytes([2 * number + 1])
        for channel in (data, errors):
            await socket.send_bytes(channel + struct.pack("<H", port))
        wrong = await _pump(way, port, queues[number], lambda piece: socket.send_bytes(data + piece))
        if wrong:
            await socket.send_bytes(errors + wrong.encode())

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number, port) for number, port in enumerate(ports)), return_exceptions=True)
        await socket.close()

    work = asyncio.create_task(all_of_them())
    try:
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data and message.data[0] // 2 < len(ports):
                queues[message.data[0] // 2].put_nowait(message.data[1:] or b"")
    finally:
        work.cancel()


# -- SPDY in a WebSocket ----------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """One stream of a tunnel: its headers and, for data, what the client has sent."""

    headers: dict[str, str]
    given: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    work: asyncio.Task[None] | None = None


class Tunnel:
    """The server's end of one SPDY connection."""

    def __init__(self, socket: web.WebSocketResponse, way: Way) -> None:
        self.socket, self.way = socket, way
        self.streams: dict[int, Stream] = {}
        self.unpack = zlib.decompressobj(zdict=DICTIONARY)
        self.pack = zlib.compressobj(zdict=DICTIONARY)

    async def run(self) -> None:
        """Nothing; serves until the client goes."""
        held = b""
        try:
            async for message in self.socket:
                if message.type is not WSMsgType.BINARY:
                    continue
                held += message.data
                while len(held) >= 8 and len(held) >= 8 + (size := int.from_bytes(held[5:8], "big")):
                    await self._frame(held[:8], held[8 : 8 + size])
                    held = held[8 + size :]
        except (zlib.error, struct.error, ValueError):
            await self._control(GOAWAY, struct.pack(">II", 0, 1))
        finally:
            for stream in self.streams.values():
                if stream.work is not None:
                    stream.work.cancel()

    async def _frame(self, head: bytes, body: bytes) -> None:
        if not head[0] & 0x80:
            stream = self.streams.get(int.from_bytes(head[:4], "big"))
            if stream is not None:
                if body:
                    stream.given.put_nowait(body)
                if head[4] & FIN:
                    stream.given.put_nowait(b"")
            return
        kind = int.from_bytes(head[2:4], "big")
        if kind == SYN_STREAM:
            await self._opened(int.from_bytes(body[:4], "big"), dict(self._headers(body[10:])))
        elif kind == PING:
            await self._control(PING, body)
        elif kind == RST_STREAM:
            gone = self.streams.pop(int.from_bytes(body[:4], "big"), None)
            if gone is not None and gone.work is not None:
                gone.work.cancel()

    def _headers(self, packed: bytes) -> Iterator[tuple[str, str]]:
        raw = self.unpack.decompress(packed, HEADERS)
        (count,) = struct.unpack_from(">I", raw)
        place = 4
        words: list[str] = []
        for _ in range(2 * count):
            (size,) = struct.unpack_from(">I", raw, place)
            words.append(raw[place + 4 : place + 4 + size].decode("utf-8", "replace"))
            place += 4 + size
        return zip(words[::2], words[1::2], strict=True)

    async def _opened(self, number: int, headers: dict[str, str]) -> None:
        stream = self.streams[number] = Stream(headers)
        reply = self.pack.compress(struct.pack(">I", 0)) + self.pack.flush(zlib.Z_SYNC_FLUSH)
        await self._control(SYN_REPLY, struct.pack(">I", number) + reply)
        if headers.get("streamtype") == "data":
            stream.work = asyncio.create_task(self._forward(number, stream))

    async def _forward(self, number: int, stream: Stream) -> None:
        asked = stream.headers.get("requestid", "")
        given = stream.headers.get("port", "")
        port = int(given) if given.isascii() and given.isdigit() else 0
        wrong = await _pump(self.way, port, stream.given, lambda piece: self._data(number, piece))
        for other, each in list(self.streams.items()):
            if each.headers.get("streamtype") == "error" and each.headers.get("requestid", "") == asked:
                await self._data(other, wrong.encode(), FIN)
                self.streams.pop(other)
        await self._data(number, b"", FIN)
        self.streams.pop(number, None)

    async def _data(self, number: int, piece: bytes, flags: int = 0) -> None:
        await self.socket.send_bytes(struct.pack(">IB", number, flags) + len(piece).to_bytes(3, "big") + piece)

    async def _control(self, kind: int, body: bytes) -> None:
        await self.socket.send_bytes(struct.pack(">HHB", VERSION, kind, 0) + len(body).to_bytes(3, "big") + body)
