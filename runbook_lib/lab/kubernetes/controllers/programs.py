"""What the programs in the runbook's probe images do: agnhost, busybox and the like, as far as a log shows it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .files import Files
from .network import Outcome
from .quantities import number

Object = dict[str, Any]
Connect = Callable[..., Awaitable[Outcome]]
"""(host, port, seconds to wait, protocol="TCP") → how it ended."""


@dataclass(frozen=True)
class Ended:
    """A finished process: what it wrote, its exit code and how long it still runs.

    `streams` holds the same output as pairs of 1 (standard output) or 2 (standard error) and a text.
    """

    output: str = ""
    code: int = 0
    seconds: float = 0.05
    reason: str = ""
    streams: tuple[tuple[int, str], ...] = ()

    @property
    def stdout(self) -> str:
        """What went to standard output."""
        return "".join(text for stream, text in self.streams if stream == 1)

    @property
    def stderr(self) -> str:
        """What went to standard error."""
        return "".join(text for stream, text in self.streams if stream == 2)


@dataclass(frozen=True)
class Runs:
    """A process that does not end by itself, and what it wrote at its start."""

    output: str = ""


@dataclass(frozen=True)
class Place:
    """Where a program runs: its pod, its environment, how it connects, what time it is, its files.

    With `sleep` it takes the time it takes; without, `Ended.seconds` says how long. With `write` a program that goes
    on says what it says as it goes.
    """

    pod: Object
    environment: Mapping[str, str]
    connect: Connect
    now: Callable[[], float]
    files: Files = field(default_factory=Files.fresh)
    sleep: Callable[[float], Awaitable[None]] | None = None
    write: Callable[[str], None] | None = None
    container: Object = field(default_factory=dict)


_EXEC = re.compile(r"(?:^|[;&\n])\s*exec [^;&\n]+$")
"""A script that ends by becoming another program, which then is PID 1."""

_SHELLS = {"busybox", "alpine", "debian", "ubuntu", "bash"}
_TOOLS = _SHELLS | {"agnhost", "curl", "netshoot", "fio", "iperf3", "network-multitool", "jessie-dnsutils"}
_HELLO = "\nHello from Docker!\nThis message shows that your installation appears to be working correctly.\n"


def basename(image: str) -> str:
    """`registry.k8s.io/e2e-test-images/agnhost:2.53` → `agnhost`."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def heeds_signals(container: Object) -> bool:
    """Whether the container's first process ends when it is asked to; a shell or sleep as PID 1 does not."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    if not words:
        return basename(container["image"]) not in _SHELLS
    first = words[0].rpartition("/")[2]
    if first in {"sh", "bash", "ash"}:
        return any("trap " in word or _EXEC.search(word) for word in words[1:])
    return first not in {"sleep", "tail"}


async def run(container: Object, place: Place) -> Ended | Runs:
    """What the container's process does. An image that is not emulated runs and writes nothing."""
    name = basename(container["image"])
    command, args = list(container.get("command") or ()), list(container.get("args") or ())
    if name == "agnhost" and (not command or command[0].endswith("agnhost")):
        return await agnhost((command[1:] + args) or ["pause"], place)
    words = command + args
    if name in {"fio", "iperf3"} and not command:
        words = [name, *args]
    if name in {"stress", "stress-ng", "polinux-stress"} or (words and "stress" in words[0]):
        return _stress(words, container)
    if not words:
        if name == "hello-world":
            return Ended(_HELLO)
        return Ended() if name in _SHELLS else Runs()
    if name in _TOOLS:
        return await execute(words, place)
    return Runs()


def _stress(words: Sequence[str], container: Object) -> Ended | Runs:
    """Takes as much memory as it was told to, and is killed where that is more than its limit."""
    limit = (container.get("resources", {}).get("limits") or {}).get("memory")
    sizes = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--vm-bytes"]
    wanted = sum(number(size if size[-1].isdigit() else size.rstrip("B") + "i") for size in sizes)
    if limit and wanted > number(limit):
        return Ended("", 137, 2.0, "OOMKilled")
    return Runs("stress: info: [1] dispatching hogs: 0 cpu, 0 io, 1 vm, 0 hdd\n")


async def agnhost(words: Sequence[str], place: Place) -> Ended | Runs:
    """What agnhost's subcommand does: `connect` tries, everything else serves."""
    if words[0] != "connect":
        return Runs()
    flags = [word for word in words[1:] if word.startswith("-")]
    targets = [word for word in words[1:] if not word.startswith("-")]
    timeout = next((seconds_of(flag.partition("=")[2]) for flag in flags if flag.startswith("--timeout=")), 15.0)
    protocol = next((flag.partition("=")[2] for flag in flags if flag.startswith("--protocol=")), "tcp").upper()
    host, _, port = (targets[0] if targets else "").rpartition(":")
    if not host or not port.isdigit():
        return Ended(f"UNKNOWN: address {targets[0] if targets else ''}: missing port in address\n", 1)
    outcome = await place.connect(host.strip("[]"), int(port), timeout, protocol)
    if outcome.result == "connected":
        return Ended("", 0, outcome.seconds)
    return Ended(_complaint(outcome, host, int(port), place, protocol), 1, outcome.seconds)


def _complaint(outcome: Outcome, host: str, port: int, place: Place, protocol: str) -> str:
    """What agnhost writes of a connection that failed; for TCP mostly a bare word, for UDP with the error behind it."""
    if outcome.result == "dns":
        return f"DNS: lookup {host}: no such host\n"
    if protocol == "TCP":
        return outcome.result.upper() + "\n"
    own = place.pod.get("status", {}).get("podIP", "0.0.0.0")
    words = {"timeout": "i/o timeout", "refused": "read: connection refused"}[outcome.result]
    return f"{outcome.result.upper()}: read udp {own}:41000->{outcome.address}:{port}: {words}\n"


def seconds_of(text: str, otherwise: float = 15.0) -> float:
    """ "500ms", "3s", "2m", "7" → seconds; `otherwise` for anything else."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if text.endswith(unit):
            text = text.removesuffix(unit)
            return float(text) * factor if text.replace(".", "", 1).isdigit() else otherwise
    return float(text) if text.replace(".", "", 1).isdigit() else otherwise


async def execute(words: Sequence[str], place: Place) -> Ended | Runs:
    """One command line: a program with arguments, or `sh -c` with a script."""
    from .shell import Shell  # the shell runs programs, and a program may be a shell

    return await Shell(place).main(list(words))
