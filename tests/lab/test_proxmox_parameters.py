"""Each parameter of each served method against the real schema of both flavours: what is wrong is refused in words."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import test_utils

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.proxmox import tickets
from runbook_lib.lab.proxmox.routing import ROUTER, Route
from runbook_lib.lab.proxmox.schema import MISSING, UNKNOWN
from runbook_lib.lab.proxmox.server import create_app
from runbook_lib.lab.proxmox.state import PveState

SCHEMAS = {"8.4": "proxmox/schema-8.4.21.json", "9.2": "proxmox/schema-9.2.11.json"}
COMPLETE = os.environ.get("RUNBOOK_COMPLETE") == "1"
SAMPLED = 4
"""Without RUNBOOK_COMPLETE=1 every fourth method is asked."""

UNTOLD = "the schema at hand lists no parameters of the methods of HA rules"
DIFFERS: dict[str, str] = {
    "9.2 POST /cluster/ha/rules": UNTOLD,
    "9.2 PUT /cluster/ha/rules/{rule}": UNTOLD,
}
"""Refusals known to differ, by `flavour METHOD /path parameter`, with the reason."""

STANDS_FOR = {
    "node": "pve1", "vmid": "100", "storage": "local", "userid": "root@pam", "iface": "vmbr0", "service": "cron",
    "upid": "UPID:pve1:00000001:00000001:00000001:x::root@pam:", "volume": "local:iso/x.iso",
}  # fmt: skip
"""Path arguments of a request whose other parameters are wrong."""

NOT_ASKED = {"node"}
"""A wrong node name is refused by the proxy before any parameter is looked at."""

HASH = {"a": "hash"}
BAD_TEXTS = ("\N{SNOWMAN} !", "x", "9", "not at all")
FREE_FORMATS = {
    "graphite-path": "only where its dots stand is looked at",
    "string-list": "any text is a list of texts",
    "pve-node-location": "the real check of a location is not known from the schema",
    "lxc-ip-with-ll-iface-list": "a container's addresses are not looked at by the lab",
}
"""Formats of which no text is known here to be wrong, with the reason."""


@dataclass(frozen=True)
class Probe:
    """One wrong value and the complaint that it deserves; `exact` complaints are compared as a whole."""

    name: str
    value: Any
    complaint: str
    exact: bool = True


def shape(template: str) -> str:
    """A path template without the names of its arguments."""
    return re.sub(r"\{[^}]+\}", "{}", template)


def probes(name: str, spec: Mapping[str, Any]) -> Iterator[Probe]:
    """Wrong values for one parameter: of the wrong type, out of range, not in the enumeration, ill-formed."""
    kind, name = spec.get("type", "string"), name.replace("[n]", "0")
    if kind in ("integer", "number", "boolean"):
        yield Probe(name, "abc", f"type check ('{kind}') failed - got 'abc'")
    if kind == "integer":
        yield Probe(name, "1.5", "type check ('integer') failed - got '1.5'")
    formatted = spec.get("format") is not None
    if kind in ("integer", "number") and "maximum" in spec:
        over = int(float(spec["maximum"])) + 1
        bound = f"value must have a maximum value of {spec['maximum']}"
        yield Probe(name, str(over), "" if formatted else bound, not formatted)
    if kind in ("integer", "number") and "minimum" in spec:
        under = int(float(spec["minimum"])) - 1
        bound = f"value must have a minimum value of {spec['minimum']}"
        yield Probe(name, str(under), "" if formatted else bound, not formatted)
    if kind == "string":
        yield Probe(name, HASH, "type check ('string') failed - got HASH")
        yield from _texts(name, spec)


def _texts(name: str, spec: Mapping[str, Any]) -> Iterator[Probe]:
    form, pattern = str(spec.get("format", "")), _python(spec.get("pattern"))
    plain = form in {"", *FREE_FORMATS}
    if "maxLength" in spec:
        complaint = f"value may only be {spec['maxLength']} characters long"
        yield Probe(name, "a" * (int(spec["maxLength"]) + 1), complaint, plain and not pattern)
    if form and form not in FREE_FORMATS and form != "pve-storage-path":
        yield Probe(name, "nothing=like=this" if "{" in form else "\N{SNOWMAN} !/", "", False)
    if pattern:
        text = next((text for text in BAD_TEXTS if not re.fullmatch(pattern, text)), None)
        if text is not None:
            yield Probe(name, text, "value does not match the regex pattern", plain)
    if spec.get("enum") and plain and not pattern:
        listed = ", ".join(spec["enum"])
        yield Probe(name, "neither", f"value 'neither' does not have a value in the enumeration '{listed}'")


def _python(pattern: str | None) -> str:
    """A Perl pattern as Python reads it."""
    return re.sub(r"\(\?\^([a-z]*):", lambda m: f"(?{m[1]}:" if m[1] else "(?:", pattern) if pattern else ""


class Server:
    """The lab in this process, asked as root."""

    def __init__(self, state: PveState, base: Any, session: aiohttp.ClientSession) -> None:
        self.state, self.base, self.session = state, base, session
        now = state.clock.now()
        self.headers = {
            "Cookie": f"PVEAuthCookie={quote(tickets.ticket(state.secret, 'root@pam', now))}",
            "CSRFPreventionToken": tickets.csrf_token(state.secret, "root@pam", now),
        }

    async def errors(self, method: str, path: str, values: Mapping[str, Any]) -> tuple[int, dict[str, str]]:
        """Status and error map of the answer."""
        url = f"{self.base}api2/json{path}"
        sent = {"params" if method in ("GET", "DELETE") else "json": dict(values)}
        async with self.session.request(method, url, headers=self.headers, **sent) as response:
            body = await response.json(content_type=None) if response.status == 400 else {}
            return response.status, (body or {}).get("errors") or {}


def served(schema: Mapping[str, Any], flavour: str) -> list[tuple[Route, str, Mapping[str, Any]]]:
    """Each served method of the flavour, its key in the schema and its parameters by our names."""
    known = {(key.split(" ")[0], shape(key.split(" ")[1])): key for key in schema}
    found = []
    for route in sorted(ROUTER.routes, key=lambda each: (each.template, each.method)):
        key = known.get((route.method, shape(route.template)))
        if key is None or route.upload or getattr(route, "only", None) not in (None, flavour):
            continue
        theirs = re.findall(r"\{([^}]+)\}", key)
        ours = [name.removesuffix(":rest") for name in re.findall(r"\{([^}]+)\}", route.template)]
        renamed = dict(zip(theirs, ours, strict=True))
        given = {renamed.get(name, name): spec for name, spec in (schema[key].get("params") or {}).items()}
        found.append((route, key, given))
    return found


def address(route: Route, replaced: Mapping[str, str]) -> str:
    """The path of a request, its arguments filled in."""

    def fill(match: re.Match[str]) -> str:
        name = match[1].removesuffix(":rest")
        return quote(replaced.get(name, STANDS_FOR.get(name, "abc")), safe="")

    return re.sub(r"\{([^}]+)\}", fill, route.template)


async def ask(server: Server, route: Route, key: str, params: Mapping[str, Any]) -> list[str]:
    """How the refusals of one method differ from what its schema promises."""
    arguments = {name.removesuffix(":rest") for name in re.findall(r"\{([^}]+)\}", route.template)}
    reads = route.method in ("GET", "DELETE")
    waiting = {
        name: [probe for probe in probes(name, spec) if not (probe.value is HASH and (reads or name in arguments))]
        for name, spec in params.items()
        if name not in NOT_ASKED
    }
    complaints: list[str] = []
    batch: dict[str, Probe] = {}  # the first request is wrong in what it lacks
    while True:
        path = {name: str(probe.value).replace("/", "") for name, probe in batch.items() if name in arguments}
        values = {probe.name: probe.value for name, probe in batch.items() if name not in arguments}
        status, errors = await server.errors(route.method, address(route, path), values | {"n0-such": "1"})
        if status != 400:
            complaints.append(f"{key} {'|'.join(batch)}: status {status}, should be 400")
        else:
            needed = set() if batch else _needed(params) - arguments
            complaints += [f"{key} {line}" for line in _differences(errors, batch, needed)]
        batch = {name: rest.pop(0) for name, rest in waiting.items() if rest}
        if not batch:
            return complaints


def _needed(params: Mapping[str, Any]) -> set[str]:
    return {name for name, spec in params.items() if not spec.get("optional") and "[" not in name}


def _differences(errors: Mapping[str, str], batch: Mapping[str, Probe], needed: set[str]) -> Iterator[str]:
    if errors.get("n0-such") != UNKNOWN:
        yield f"n0-such: {errors.get('n0-such')!r}, should be {UNKNOWN!r}"
    for name in sorted(needed):
        if errors.get(name) != MISSING:
            yield f"{name}: {errors.get(name)!r} when missing"
    for name, probe in batch.items():
        said = errors.get(probe.name)
        if said is None or (probe.exact and said.rstrip("\n") != probe.complaint):
            yield f"{name}: {said!r} to {probe.value!r:.40}, should be {probe.complaint or 'refused'!r}"


async def all_differences(schema: Mapping[str, Any], flavour: str, step: int) -> tuple[list[str], int]:
    """Everything that differs, and how many methods were asked."""
    given = {**scenario.load("healthy").proxmox, "flavour": flavour}
    state = PveState.from_scenario(given, clock=Clock(float("inf")))
    async with (
        test_utils.TestServer(create_app(state)) as local,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        server = Server(state, local.make_url("/"), session)
        methods = served(schema, flavour)[::step]
        found = [line for route, key, params in methods for line in await ask(server, route, key, params)]
        await state.tasks.cancel()
    return found, len(methods)


def missing_only(schema: Mapping[str, Any], flavour: str) -> list[str]:
    """Names in one of the two tables of parameters alone."""
    lines = []
    for route, key, params in served(schema, flavour):
        ours = set(route.specs(flavour))
        lines += [f"{key} {name}: not known here" for name in sorted(params.keys() - ours)]
        lines += [f"{key} {name}: not known to the real server" for name in sorted(ours - params.keys())]
    return lines


def unexpected(lines: list[str], flavour: str) -> list[str]:
    """The differences without those that are listed with a reason."""
    return [line for line in lines if not any(f"{flavour} {line}".startswith(known) for known in DIFFERS)]


@pytest.mark.parametrize("flavour", SCHEMAS)
def test_wrong_parameters_are_refused_as_the_schema_says(oracle: Path, flavour: str) -> None:
    """Ill-typed, out-of-range, ill-formed, missing and unknown parameters all get the real 400, by name."""
    schema = json.loads((oracle / SCHEMAS[flavour]).read_text(encoding="utf-8"))
    lines, methods = asyncio.run(all_differences(schema, flavour, 1 if COMPLETE else SAMPLED))
    assert methods > 40
    assert not unexpected(lines, flavour), "\n".join(unexpected(lines, flavour))


@pytest.mark.parametrize("flavour", SCHEMAS)
def test_every_parameter_is_known_by_name(oracle: Path, flavour: str) -> None:
    """No served method lacks a parameter of the real one, nor takes one more."""
    schema = json.loads((oracle / SCHEMAS[flavour]).read_text(encoding="utf-8"))
    lines = unexpected(missing_only(schema, flavour), flavour)
    assert not lines, "\n".join(lines)
