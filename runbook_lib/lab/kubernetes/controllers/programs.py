"""What the programs in the runbook's probe images do: agnhost, busybox and the like, as far as a log shows it."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .network import Outcome

Object = dict[str, Any]
Connect = Callable[[str, int, float], Awaitable[Outcome]]


@dataclass(frozen=True)
class Ended:
    """A finished process: what it wrote, its exit code and how long it ran."""

    output: str = ""
    code: int = 0
    seconds: float = 0.05


@dataclass(frozen=True)
class Runs:
    """A process that does not end by itself, and what it wrote at its start."""

    output: str = ""


@dataclass(frozen=True)
class Place:
    """Where a program runs: its pod, its environment, how it connects and what time it is."""

    pod: Object
    environment: Mapping[str, str]
    connect: Connect
    now: Callable[[], float]


_SHELLS = {"busybox", "alpine", "debian", "ubuntu", "bash"}
_HELLO = "\nHello from Docker!\nThis message shows that your installation appears to be working correctly.\n"


def basename(image: str) -> str:
    """`registry.k8s.io/e2e-test-images/agnhost:2.53` → `agnhost`."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


async def run(container: Object, place: Place) -> Ended | Runs:
    """What the container's process does. An image that is not emulated runs and writes nothing."""
    name = basename(container["image"])
    command, args = list(container.get("command") or ()), list(container.get("args") or ())
    if name == "agnhost" and (not command or command[0].endswith("agnhost")):
        return await _agnhost((command[1:] + args) or ["pause"], place)
    words = command + args
    if not words:
        if name == "hello-world":
            return Ended(_HELLO)
        return Ended() if name in _SHELLS else Runs()
    if name in _SHELLS | {"agnhost", "curl", "netshoot"}:
        return await execute(words, place)
    return Runs()


async def _agnhost(words: Sequence[str], place: Place) -> Ended | Runs:
    if words[0] != "connect":
        return Runs()
    flags = [word for word in words[1:] if word.startswith("-")]
    targets = [word for word in words[1:] if not word.startswith("-")]
    timeout = next((_seconds(flag.partition("=")[2]) for flag in flags if flag.startswith("--timeout=")), 15.0)
    host, _, port = (targets[0] if targets else "").rpartition(":")
    if not host or not port.isdigit():
        return Ended("OTHER\n", 1)
    outcome = await place.connect(host.strip("[]"), int(port), timeout)
    if outcome.result == "connected":
        return Ended("", 0, outcome.seconds)
    return Ended(outcome.result.upper() + "\n", 1, outcome.seconds)


def _seconds(text: str) -> float:
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            text = text.removesuffix(unit)
            return float(text) * factor if text.replace(".", "", 1).isdigit() else 15.0
    return float(text) if text.isdigit() else 15.0


async def execute(words: Sequence[str], place: Place) -> Ended | Runs:
    """One command line: a program with arguments, or `sh -c` with a script."""
    if words[0].rpartition("/")[2] in {"sh", "bash", "ash"}:
        if len(words) < 3 or not words[1].startswith("-") or "c" not in words[1]:
            return Ended()
        return await _script(words[2], place)
    return await _program(words, place)


async def _script(text: str, place: Place) -> Ended | Runs:
    """Commands joined by `;`, `&&`, `||` and newlines; nothing deeper than that."""
    try:
        lexer = shlex.shlex(text.replace("\n", ";"), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        tokens = list(lexer)
    except ValueError:
        return Ended("sh: syntax error: unterminated quoted string\n", 2)
    output, seconds, code, joiner = "", 0.0, 0, ";"
    for command, following in _commands(tokens):
        wanted = {"&&": code == 0, "||": code != 0}.get(joiner, True)
        joiner = following
        if not wanted or not command:
            continue
        if command[0] == "exit":
            return Ended(output, int(command[1]) if len(command) > 1 else code, seconds or 0.05)
        result = await _program(command, place)
        output += result.output
        if isinstance(result, Runs):
            return Runs(output)
        seconds, code = seconds + result.seconds, result.code
    return Ended(output, code, seconds or 0.05)


def _commands(tokens: Sequence[str]) -> list[tuple[list[str], str]]:
    found: list[tuple[list[str], str]] = []
    current: list[str] = []
    for token in tokens:
        if token in {";", "&&", "||", ";;"}:
            found.append((current, token[:1] if token.startswith(";") else token))
            current = []
        else:
            current.append(token)
    return [*found, (current, ";")]


async def _program(words: Sequence[str], place: Place) -> Ended | Runs:
    name, rest = words[0].rpartition("/")[2], list(words[1:])
    if name == "echo":
        newline = "" if rest[:1] == ["-n"] else "\n"
        return Ended(" ".join(_expand(word, place) for word in (rest[1:] if not newline else rest)) + newline)
    if name == "sleep":
        return Runs() if rest[:1] in (["infinity"], ["inf"]) else Ended(seconds=sum(_seconds(word) for word in rest))
    if name in {"nc", "telnet"}:
        return await _netcat(rest, place)
    if name in {"wget", "curl"}:
        return await _fetch(name, rest, place)
    if name == "agnhost":
        return await _agnhost(rest or ["pause"], place)
    simple: dict[str, Ended | Runs] = {
        "true": Ended(),
        "false": Ended(code=1),
        "hostname": Ended(place.pod["metadata"]["name"] + "\n"),
        "whoami": Ended("root\n"),
        "uname": Ended("Linux\n"),
        "date": Ended(datetime.fromtimestamp(place.now(), UTC).strftime("%a %b %e %H:%M:%S UTC %Y\n")),
        "env": Ended("".join(f"{key}={value}\n" for key, value in place.environment.items())),
        "tail": Runs(),
        "pause": Runs(),
    }
    return simple.get(name, Ended(f"sh: {words[0]}: not found\n", 127))


def _expand(word: str, place: Place) -> str:
    for key, value in place.environment.items():
        word = word.replace(f"${{{key}}}", value).replace(f"${key}", value)
    return word


async def _netcat(rest: Sequence[str], place: Place) -> Ended:
    targets = [word for word in rest if not word.startswith("-")]
    if len(targets) < 2 or not targets[-1].isdigit():
        return Ended("nc: bad arguments\n", 1)
    outcome = await place.connect(targets[-2], int(targets[-1]), 3.0)
    said = {
        "connected": f"{targets[-2]} ({outcome.address}:{targets[-1]}) open\n",
        "refused": f"nc: {targets[-2]} ({outcome.address}:{targets[-1]}): Connection refused\n",
        "timeout": f"nc: {targets[-2]} ({outcome.address}:{targets[-1]}): Connection timed out\n",
        "dns": f"nc: bad address '{targets[-2]}'\n",
    }
    return Ended(said[outcome.result], int(outcome.result != "connected"), outcome.seconds)


async def _fetch(name: str, rest: Sequence[str], place: Place) -> Ended:
    url = next((word for word in rest if "://" in word or "." in word), "")
    scheme, _, authority = url.rpartition("://")
    host, _, port = authority.partition("/")[0].partition(":")
    outcome = await place.connect(host, int(port or (443 if scheme == "https" else 80)), 5.0)
    if outcome.result == "connected":
        return Ended("", 0, outcome.seconds)
    said = {"refused": "Connection refused", "timeout": "Operation timed out", "dns": "bad address"}[outcome.result]
    return Ended(f"{name}: can't connect to remote host ({host}): {said}\n", 1, outcome.seconds)
