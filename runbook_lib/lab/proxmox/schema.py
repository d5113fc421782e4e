"""Parameter types of the Proxmox VE API, verified with the words a real server uses.

Source: recordings of 8.4 and the API viewer's schema. A message that a real server ends with a newline
(the format checks) ends with one here too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MISSING = "property is missing and it is not optional"
UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"

_TRUE, _FALSE = re.compile(r"^(1|on|yes|true)$", re.I), re.compile(r"^(0|off|no|false)$", re.I)
_NUMBER = re.compile(r"^[+-]?(?=[.]?\d)\d*(\.\d*)?([eE][+-]?\d+)?$")


@dataclass(frozen=True)
class Param:
    """One parameter of an endpoint. `count` makes `net[n]` stand for net0 … net(count-1)."""

    type: str = "string"
    optional: bool = False
    format: str | Callable[[str], None] | None = None
    enum: tuple[str, ...] | None = None
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    requires: str | None = None
    count: int | None = None


def String(**options: Any) -> Param:
    """A text parameter; lists are comma separated text with a `…-list` format."""
    return Param("string", **options)


def Integer(**options: Any) -> Param:
    """A whole number, given as text or as JSON number."""
    return Param("integer", **options)


def Number(**options: Any) -> Param:
    """A number with an optional fraction."""
    return Param("number", **options)


def Boolean(**options: Any) -> Param:
    """A truth value: 1/0, on/off, yes/no, true/false; handlers get a bool."""
    return Param("boolean", **options)


def Array(**options: Any) -> Param:
    """A list of texts: a repeated form key, a JSON array, or one value."""
    return Param("array", **options)


def split_list(text: str) -> list[str]:
    """The items of a Proxmox VE list: separated by commas, semicolons, blanks or NUL."""
    return [item for item in re.split(r"[\0,;\s]+", text) if item]


# ---------------------------------------------------------------------------------------------- formats

FORMATS: dict[str, Callable[[str], None]] = {}


def format_check(name: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    """A decorator that makes the function the check of the format `name`; it raises ValueError(text)."""

    def register(check: Callable[[str], None]) -> Callable[[str], None]:
        FORMATS[name] = check
        return check

    return register


def _by_pattern(name: str, pattern: str, text: str, flags: int = 0) -> None:
    compiled = re.compile(pattern, flags)

    def check(value: str) -> None:
        if not compiled.fullmatch(value):
            raise ValueError(text.replace("%s", value) + "\n")

    FORMATS[name] = check


_by_pattern("pve-configid", r"[a-z][a-z0-9_-]+", "invalid configuration ID '%s'", re.I)
_by_pattern("pve-storage-id", r"[a-z][a-z0-9\-_.]*[a-z0-9]", "storage ID '%s' contains illegal characters", re.I)
_by_pattern("pve-vmid", r"[1-9][0-9]{2,8}", "value does not look like a valid VM ID")
_by_pattern("pve-node", r"[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?", "value does not look like a valid node name")
_by_pattern("pve-iface", r"[a-zA-Z][a-zA-Z0-9_]{1,20}([:.]\d+)?", "invalid network interface name '%s'")
_by_pattern("pve-bridge-id", r"[a-zA-Z][a-zA-Z0-9_]{1,20}([:.]\d+)?", "invalid network interface name '%s'")
_by_pattern("pve-realm", r"[A-Za-z][A-Za-z0-9.\-_]+", "value '%s' does not look like a valid realm")
_by_pattern("pve-groupid", r"[A-Za-z0-9.\-_]+", "group name '%s' contains invalid characters")
_by_pattern("pve-roleid", r"[A-Za-z0-9.\-_]+", "role name '%s' contains invalid characters")
_by_pattern("pve-poolid", r"[A-Za-z0-9.\-_]+(/[A-Za-z0-9.\-_]+){0,2}", "pool name '%s' contains invalid characters")
_by_pattern(
    "pve-userid",
    r"(?=.{3,64}$)[^\s:/@!]+@[A-Za-z][A-Za-z0-9.\-_]+",
    "value '%s' does not look like a valid user name",
)
_by_pattern(
    "pve-tokenid",
    r"[^\s:/!]+@[A-Za-z][A-Za-z0-9.\-_]+![A-Za-z][A-Za-z0-9.\-_]+",
    "value '%s' does not look like a valid token ID",
)
_by_pattern(
    "dns-name",
    r"(?=.{1,255}$)([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?",
    "value does not look like a valid DNS name",
)
_by_pattern(
    "email",
    r"[\w+\-~]+(\.[\w+\-~]+)*@[a-zA-Z0-9\-]+(\.[a-zA-Z0-9\-]+)*",
    "value does not look like a valid email address",
)
_by_pattern(
    "mac-addr", r"[a-f0-9][02468ace](:[a-f0-9]{2}){5}", "value does not look like a valid unicast MAC address", re.I
)
_by_pattern("disk-size", r"\d+(\.\d+)?[KMGT]?", "value does not look like a valid disk size: '%s'")
_by_pattern("pve-volume-id", r"[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]:.+", "unable to parse volume ID '%s'")
_by_pattern("pve-task-status-type", r"ok|error|warning|unknown", "invalid status '%s'", re.I)


@format_check("urlencoded")
def _urlencoded(value: str) -> None:
    if not re.fullmatch(r"[-%a-zA-Z0-9_.!~*'()]*", value):
        raise ValueError(f"invalid urlencoded string: {value}\n")


def _address(version: int | None, text: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(text) from None
        if version not in (None, address.version):
            raise ValueError(text)

    return check


def _network(version: int | None, text: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(text) from None
        if "/" not in value or version not in (None, network.version):
            raise ValueError(text)

    return check


FORMATS |= {
    "ip": _address(None, "value does not look like a valid IP address\n"),
    "ipv4": _address(4, "value does not look like a valid IPv4 address\n"),
    "ipv6": _address(6, "value does not look like a valid IPv6 address\n"),
    "CIDR": _network(None, "value does not look like a valid CIDR network\n"),
    "CIDRv4": _network(4, "value does not look like a valid IPv4 network\n"),
    "CIDRv6": _network(6, "value does not look like a valid IPv6 network\n"),
}


def is_list_format(spec: Param) -> bool:
    """Whether the parameter is a text that holds a list."""
    return isinstance(spec.format, str) and spec.format.endswith(("-list", "-alist"))


def _check_format(spec: Param, value: str) -> str:
    """The complaint about the format of `value`; empty when there is none. An unknown format accepts all."""
    check = spec.format
    items = [value]
    if isinstance(check, str):
        name = check
        if name in FORMATS:
            check = FORMATS[name]
        elif name.endswith("-list"):
            check, items = FORMATS.get(name.removesuffix("-list")), split_list(value)
        elif name.endswith("-opt"):
            check, items = FORMATS.get(name.removesuffix("-opt")), [value] if value else []
        else:
            check = None
    if check is None:
        return ""
    for item in items:
        try:
            check(item)
        except ValueError as complaint:
            return f"invalid format - {complaint}"
    return ""


# ---------------------------------------------------------------------------------------------- verification


def text_of(value: Any) -> Any:
    """A JSON scalar as Perl sees it: true is 1, false is 0, numbers are their text."""
    if isinstance(value, str):
        # JSON can name half a surrogate pair; no text that leaves here may hold one
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


def check_value(spec: Param, value: Any) -> tuple[Any, str]:
    """The typed value and an empty text, or the raw value and the server's complaint."""
    if spec.type == "array":
        items = value if isinstance(value, list) else [value]
        return [text_of(item) for item in items], ""
    if isinstance(value, list) and is_list_format(spec):
        value = ",".join(str(text_of(item)) for item in value)
    if isinstance(value, list | dict):
        kind = "ARRAY" if isinstance(value, list) else "HASH"
        return value, f"type check ('{spec.type}') failed - got {kind}"
    text = str(text_of(value))
    typed: Any = text
    if spec.type == "integer":
        if not re.fullmatch(r"[+-]?\d+", text):
            return value, f"type check ('integer') failed - got '{text}'"
        typed = int(text)
    elif spec.type == "number":
        if not _NUMBER.match(text):
            return value, f"type check ('number') failed - got '{text}'"
        typed = float(text)
    elif spec.type == "boolean":
        if not (_TRUE.match(text) or _FALSE.match(text)):
            return value, f"type check ('boolean') failed - got '{text}'"
        typed = bool(_TRUE.match(text))
    return typed, _complaint(spec, text, typed)


def _complaint(spec: Param, text: str, typed: Any) -> str:
    if spec.type in ("integer", "number"):
        if spec.maximum is not None and typed > spec.maximum:
            return f"value must have a maximum value of {spec.maximum}"
        if spec.minimum is not None and typed < spec.minimum:
            return f"value must have a minimum value of {spec.minimum}"
    if spec.max_length is not None and len(text) > spec.max_length:
        return f"value may only be {spec.max_length} characters long"
    if spec.min_length is not None and len(text) < spec.min_length:
        return f"value must be at least {spec.min_length} characters long"
    if spec.pattern is not None and not re.search(spec.pattern, text):
        return "value does not match the regex pattern"
    if complaint := _check_format(spec, text):
        return complaint
    if spec.enum is not None and text not in spec.enum:
        return f"value '{text}' does not have a value in the enumeration '{', '.join(spec.enum)}'"
    return ""


def spec_for(specs: Mapping[str, Param], name: str) -> Param | None:
    """The parameter that `name` belongs to: itself, or the numbered family `base[n]`."""
    if name in specs and "[" not in name:
        return specs[name]
    if numbered := re.fullmatch(r"([a-zA-Z_-]+)(\d+)", name):
        family = specs.get(f"{numbered[1]}[n]")
        if family and str(int(numbered[2])) == numbered[2] and int(numbered[2]) < (family.count or 1):
            return family
    return None


def verify(specs: Mapping[str, Param], raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The typed parameters, and what is wrong with them by name. Nulls count as not given."""
    typed: dict[str, Any] = {}
    errors: dict[str, str] = {}
    given = {name: value for name, value in raw.items() if value is not None}
    for name, value in given.items():
        spec = spec_for(specs, name)
        if spec is None:
            errors[name] = UNKNOWN
            continue
        typed[name], complaint = check_value(spec, value)
        if spec.requires and spec.requires not in given:
            complaint = complaint or f"missing property - '{spec.requires}' requires this property"
        if complaint:
            errors[name] = complaint
    for name, spec in specs.items():
        if "[" not in name and not spec.optional and name not in given:
            errors[name] = MISSING
    return typed, errors
