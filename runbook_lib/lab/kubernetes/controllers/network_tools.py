"""Programs that try the network: nc, wget, curl, ping, nslookup, dig, iperf3, agnhost."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tools import Call


async def _netcat(call: Call) -> int:
    waits = call.option("-w")
    targets = [word for word in call.rest if word != waits]
    if len(targets) < 2 or not targets[-1].isdigit():
        return call.error("nc: bad arguments\n")
    host, port = targets[-2], targets[-1]
    outcome = await call.place.connect(host, int(port), float(waits or 3))
    await call.spend(outcome.seconds)
    said = {
        "connected": f"{host} ({outcome.address}:{port}) open\n" if "v" in call.flags else "",
        "refused": f"nc: {host} ({outcome.address}:{port}): Connection refused\n",
        "timeout": f"nc: {host} ({outcome.address}:{port}): Connection timed out\n",
        "dns": f"nc: bad address '{host}'\n",
    }
    if outcome.result == "connected":
        call.out(said["connected"])
        return 0
    return call.error(said[outcome.result])


def _url(words: list[str]) -> tuple[str, str, int]:
    """(scheme, host, port) of the first word that looks like an address."""
    url = next((word for word in words if "://" in word), "") or next((word for word in words if "." in word), words[0])
    scheme, _, authority = url.rpartition("://")
    host, _, port = authority.partition("/")[0].partition(":")
    return scheme or "http", host, int(port or (443 if scheme == "https" else 80))


async def _fetch(call: Call) -> int:
    name = call.words[0].rpartition("/")[2]
    words = [word for word in call.rest if word not in {call.option("-w"), call.option("-o"), call.option("-H")}]
    if not words:
        return call.error(f"{name}: no URL specified\n")
    scheme, host, port = _url(words)
    limit = (
        call.option("--connect-timeout", "-m", "--max-time", "-T") if name == "curl" else call.option("-T", "--timeout")
    )
    outcome = await call.place.connect(host, port, float(limit or 5))
    await call.spend(outcome.seconds)
    if outcome.result == "connected" and outcome.narrow and any(len(word) > FULL_FRAME for word in words):
        return await _stalled(call, name, float(limit or 5))
    if outcome.result == "connected":
        return _answered(call, name, scheme, outcome.seconds, words)
    if name == "curl":
        told = {
            "refused": (7, f"Failed to connect to {host} port {port} after 0 ms: Could not connect to server"),
            "timeout": (28, f"Connection timed out after {int(outcome.seconds * 1000)} milliseconds"),
            "dns": (6, f"Could not resolve host: {host}"),
        }[outcome.result]
        form = call.option("-w", "--write-out")
        if form:
            call.out(_written(form, "000", outcome.seconds))
        call.error(f"curl: ({told[0]}) {told[1]}\n")
        return told[0]
    said = {"refused": "Connection refused", "timeout": "Operation timed out", "dns": "bad address"}[outcome.result]
    if outcome.result == "dns":
        return call.error(f"wget: bad address '{host}'\n")
    return call.error(f"{name}: can't connect to remote host ({outcome.address or host}): {said}\n")


FULL_FRAME = 1300
"""Bytes of a request that no longer go in one small frame."""


async def _stalled(call: Call, name: str, limit: float) -> int:
    """The connection opened, and what is sent over it is never acknowledged."""
    await call.spend(limit)
    if name != "curl":
        return call.error(f"{name}: download timed out\n")
    form = call.option("-w", "--write-out")
    if form:
        call.out(_written(form, "000", 0.0006))
    call.error(f"curl: (28) Operation timed out after {int(limit * 1000)} milliseconds with 0 bytes received\n")
    return 28


def _answered(call: Call, name: str, scheme: str, seconds: float, words: list[str]) -> int:
    form = call.option("-w", "--write-out") if name == "curl" else ""
    if form:
        # agnhost's netexec says back what it is told to echo
        told = next((word.partition("/echo?msg=")[2] for word in words if "/echo?msg=" in word), "")
        dice = random.Random(f"{call.place.pod['metadata'].get('uid', '')}/{words[0]}/{call.place.now()}")
        took = seconds * dice.uniform(0.8, 1.6)
        call.out(_written(form, "200", took, tls=scheme == "https", size=len(told)))
    elif name == "curl" and ("I" in call.flags or "i" in call.flags):
        call.out("HTTP/1.1 200 OK\r\n\r\n")
    return 0


def _written(form: str, code: str, seconds: float, *, tls: bool = False, size: int = 0) -> str:
    times = {"time_namelookup": 0.0011, "time_connect": 0.0011 + seconds, "time_appconnect": 0.0, "time_total": 0.0}
    times["time_appconnect"] = times["time_connect"] + 0.0042 if tls else 0.0
    times["time_starttransfer"] = max(times["time_connect"], times["time_appconnect"]) + 0.0013
    times["time_total"] = times["time_starttransfer"] + 0.0002
    for key, value in times.items():
        form = form.replace(f"%{{{key}}}", f"{value:.6f}")
    form = form.replace("%{size_download}", str(size))
    return form.replace("%{http_code}", code).replace("%{response_code}", code).replace("\\n", "\n")


async def _ping(call: Call) -> int:
    count, host = int(call.option("-c") or 4), call.rest[-1]
    outcome = await call.place.connect(host, 0, 1.0)
    if outcome.result == "dns":
        return call.error(f"ping: bad address '{host}'\n")
    call.out(f"PING {host} ({outcome.address}): 56 data bytes\n")
    dice = random.Random(f"{call.place.pod['metadata'].get('uid', '')}/{host}")
    # A refused port is an answer of the machine: it is there.
    times = [dice.uniform(0.18, 0.62) for _ in range(count)] if outcome.result != "timeout" else []
    for place, took in enumerate(times):
        call.out(f"64 bytes from {outcome.address}: seq={place} ttl=62 time={took:.3f} ms\n")
    await call.spend(count - 1 if times else count)
    lost = 0 if times else 100
    call.out(f"\n--- {host} ping statistics ---\n{count} packets transmitted, {len(times)} packets received, "
             f"{lost}% packet loss\n")  # fmt: skip
    if times:
        call.out(f"round-trip min/avg/max = {min(times):.3f}/{sum(times) / len(times):.3f}/{max(times):.3f} ms\n")
    return int(not times)


async def _nslookup(call: Call) -> int:
    host = call.rest[0]
    outcome = await call.place.connect(host, 0, 1.0)
    await call.spend(0.002)
    if call.words[0].endswith("dig"):
        call.out(f"{outcome.address}\n" if outcome.result != "dns" else "")
        return 0
    call.out("Server:\t\t10.96.0.10\nAddress:\t10.96.0.10:53\n\n")
    if outcome.result == "dns":
        call.out(f"** server can't find {host}: NXDOMAIN\n\n")
        return 1
    call.out(f"Name:\t{host}\nAddress: {outcome.address}\n\n")
    return 0


async def _iperf3(call: Call) -> int:
    if "s" in call.flags:
        call.out("-----------------------------------------------------------\nServer listening on 5201 (test #1)\n")
        call.endless = True
        return 0
    host, port = call.option("-c", "--client"), int(call.option("-p") or 5201)
    seconds = float(call.option("-t", "--time") or 10)
    outcome = await call.place.connect(host, port, 5.0)
    if outcome.result != "connected":
        why = {"refused": "Connection refused", "timeout": "Connection timed out", "dns": "Name does not resolve"}
        said = "unable to connect to server - server may have stopped running or use a different port, firewall issue, "
        said += f"etc.: {why[outcome.result]}"
        if "-J" in call.words or "--json" in call.words:
            call.out(json.dumps({"start": {}, "intervals": [], "end": {}, "error": said}, indent=1) + "\n")
        return call.error(f"iperf3: error - {said}\n")
    near = outcome.seconds < 0.0004
    dice = random.Random(f"{call.place.pod['metadata'].get('uid', '')}/{host}/{call.place.now()}")
    rate = dice.uniform(18e9, 24e9) if near else dice.uniform(8.6e9, 9.4e9)
    await call.spend(seconds)
    if "-J" not in call.words and "--json" not in call.words:
        call.out(f"[  5]   0.00-{seconds:.2f}  sec  {rate * seconds / 8 / 2**30:.1f} GBytes  {rate / 1e9:.2f} Gbits/sec"
                 "                  receiver\n")  # fmt: skip
        return 0
    sums: dict[str, Any] = {"start": 0, "end": seconds, "seconds": seconds, "bytes": int(rate * seconds / 8),
                            "bits_per_second": rate}  # fmt: skip
    end = {"sum_sent": {**sums, "retransmits": dice.randrange(0, 40)}, "sum_received": sums,
           "streams": [{"sender": {**sums, "mean_rtt": int(outcome.seconds * 1e6)}}]}  # fmt: skip
    start = {"connected": [{"remote_host": outcome.address, "remote_port": port}], "version": "iperf 3.17"}
    call.out(json.dumps({"start": start, "intervals": [], "end": end, "emulated": True}, indent=1) + "\n")
    return 0


async def _agnhost(call: Call) -> int:
    from .programs import Ended, agnhost

    result = await agnhost(list(call.words[1:]) or ["pause"], call.place)
    call.out(result.output)
    if not isinstance(result, Ended):
        call.endless = True
        return 0
    await call.spend(result.seconds)
    return result.code


TOOLS: dict[str, Callable[[Call], Awaitable[int]]] = {
    "nc": _netcat, "telnet": _netcat, "wget": _fetch, "curl": _fetch, "ping": _ping, "nslookup": _nslookup,
    "dig": _nslookup, "iperf3": _iperf3, "agnhost": _agnhost,
}  # fmt: skip
