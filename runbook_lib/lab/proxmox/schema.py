"""Parameter types of the Proxmox VE API, verified with the words a real server uses.

Source: recordings of 8.4 and the API viewer's schema. A message that a real server ends with a newline
(the format checks) ends with one here too.
"""

from __future__ import annotations

import functools
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
    format: str | Callable[[str], None] | Mapping[str, Param] | None = None
    enum: tuple[str, ...] | None = None
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    requires: str | None = None
    count: int | None = None
    default_key: bool = False  # of a property string: the part that may stand without its key
    alias: str | None = None  # of a property string: this key's value is that one's


@dataclass(frozen=True)
class Either:
    """A parameter that the two flavours know in different forms; None where one does not know it at all."""

    eight: Param | None
    nine: Param | None

    def of(self, flavour: str) -> Param | None:
        """The form this flavour knows."""
        return self.eight if flavour == "8.4" else self.nine


def only_8(spec: Param) -> Either:
    """A parameter that 9.x has no more."""
    return Either(spec, None)


def only_9(spec: Param) -> Either:
    """A parameter that 8.4 does not have yet."""
    return Either(None, spec)


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
_by_pattern("pve-tag", r"[a-z0-9_][a-z0-9_\-+.]*", "invalid characters in tag", re.I)
_by_pattern("pve-qm-bootdisk", r"(ide|sata|scsi|virtio)\d+", "invalid boot disk '%s'")
_by_pattern(
    "pve-startup-order",
    r"((order=)?\d+|up=\d+|down=\d+)(,((order=)?\d+|up=\d+|down=\d+))*",
    "unable to parse startup options",
)
_by_pattern(
    "pve-hotplug-features",
    r"0|1|(network|disk|cpu|memory|usb|cloudinit)([,;\s]+\w+)*",
    "unable to parse hotplug option",
)
_by_pattern(
    "mac-prefix", r"[a-f0-9][02468ace](:[a-f0-9]{2}){0,2}:?", "value is not a valid unicast MAC address prefix", re.I
)
_by_pattern(
    "pve-storage-content", r"images|rootdir|vztmpl|iso|backup|snippets|import|none", "invalid content type '%s'"
)
_by_pattern("pve-storage-path", r"/.*", "value does not look like a valid absolute path")
_by_pattern("pve-storage-vgname", r"[a-zA-Z0-9.\-_]+", "lvm volume group name '%s' contains illegal characters")
_by_pattern("pve-storage-options", r"\S+", "invalid options '%s'")
_by_pattern("pve-ct-timezone", r"host|[A-Za-z_+\-0-9]+(/[A-Za-z_+\-0-9]+)*", "invalid time zone '%s'")
_by_pattern("ipv4mask", r"((255|254|252|248|240|224|192|128|0)\.?){4}", "value does not look like a valid IP netmask")
_by_pattern("pve-cpuset", r"\d+(-\d+)?(,\d+(-\d+)?)*", "unable to parse cpu range '%s'")
_by_pattern(
    "storage-pair",
    r"1|[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9](:[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9])?",
    "storage ID '%s' contains illegal characters",
)
_by_pattern("bridge-pair", r"1|[a-zA-Z][\w:.]*", "bridge ID '%s' contains illegal characters")
_by_pattern("storagepair", r".+", "")
_by_pattern("pve-command-batch", r"[\s\S]*", "")
_by_pattern("pve-vlan-id-or-range", r"[1-9]\d{0,3}(-[1-9]\d{0,3})?", "invalid VLAN tag '%s'")
_by_pattern("pve-replication-job-id", r"[1-9]\d{2,8}-\d{1,9}", "invalid replication job id '%s'")


_by_pattern("pve-priv", r"[A-Za-z.]+", "invalid privilege '%s'")
_by_pattern("pve-storage-zfs-blocksize", r"\d+[kKmM]?", "value does not look like a valid ZFS block size")
_by_pattern("pve-dir-override", r"[a-z]+=[^=,]+", "invalid directory override '%s'")
_by_pattern(
    "pve-storage-portal-dns",
    r"[A-Za-z0-9.\-]+(:\d+)?|\[?[0-9a-fA-F:.]+\]?(:\d+)?",
    "value does not look like a valid portal address",
)
_by_pattern(
    "prune-backups",
    r"(keep-(all|last|hourly|daily|weekly|monthly|yearly)=\d+(,|$))+",
    "format error",
)


_by_pattern("pve-sdn-fabric-id", r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?", "invalid fabric ID '%s'")
_by_pattern("pve-sdn-isis-net", r"[a-fA-F0-9]{2}(\.[a-fA-F0-9]{4}){3,9}\.[a-fA-F0-9]{2}", "invalid IS-IS net '%s'")
_by_pattern("pve-sdn-bgp-rt", r"\d+:\d+|\d+(\.\d+){3}:\d+", "invalid route target '%s'")
_by_pattern("pve-fw-conntrack-helper", r"amanda|ftp|irc|netbios-ns|pptp|sane|sip|snmp|tftp", "invalid helper '%s'")


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


def _either(names: tuple[str, ...], text: str) -> Callable[[str], None]:
    """A check that holds when one of the named formats does."""

    def check(value: str) -> None:
        for name in names:
            try:
                FORMATS[name](value)
            except ValueError:
                continue
            return
        raise ValueError(text.replace("%s", value) + "\n")

    return check


FORMATS |= {
    "address": _either(("ip", "dns-name"), "value does not look like a valid address: %s"),
    "pve-storage-server": _either(("ip", "dns-name"), "value does not look like a valid server name or IP address"),
    "ip": _address(None, "value does not look like a valid IP address\n"),
    "ipv4": _address(4, "value does not look like a valid IPv4 address\n"),
    "ipv6": _address(6, "value does not look like a valid IPv6 address\n"),
    "CIDR": _network(None, "value does not look like a valid CIDR network\n"),
    "CIDRv4": _network(4, "value does not look like a valid IPv4 network\n"),
    "CIDRv6": _network(6, "value does not look like a valid IPv6 network\n"),
}


@format_check("lxc-ip-with-ll-iface")
def _name_server(value: str) -> None:
    # a link-local address may name the interface it is on
    address, percent, interface = value.partition("%")
    if percent and address.startswith("fe80:"):
        try:
            FORMATS["ip"](address)
            FORMATS["pve-iface"](interface)
        except ValueError:
            pass
        else:
            return
    if percent:
        raise ValueError("value does not look like a valid IP address\n")
    FORMATS["ip"](value)


def is_list_format(spec: Param) -> bool:
    """Whether the parameter is a text that holds a list."""
    return isinstance(spec.format, str) and spec.format.endswith(("-list", "-alist"))


def _check_format(spec: Param, value: str) -> str:
    """The complaint about the format of `value`; empty when there is none. An unknown format accepts all."""
    check = spec.format
    items = [value]
    if isinstance(check, Mapping):
        try:
            parse_property_string(check, value)
        except ValueError as complaint:
            return f"invalid format - {complaint}"
        return ""
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


def _parsed(parts: Mapping[str, Param], value: str) -> None:
    parse_property_string(parts, value)


def parse_property_string(parts: Mapping[str, Param], text: str) -> dict[str, Any]:
    """The typed parts of `key=value,…`; raises ValueError with the complaint of the real parser."""
    raw: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not part.strip():
            continue
        if not equals:
            default = next((name for name, spec in parts.items() if spec.default_key), None)
            if default is None:
                raise ValueError("value without key, but schema does not define a default key\n")
            key, value = default, part
        elif not key or not value:
            raise ValueError("missing key in comma-separated list property\n")
        if key not in parts:
            raise ValueError(f"invalid key in comma-separated list property: {key}\n")
        goal = parts[key].alias
        if goal and parts[key].type == "key":
            raw[goal] = key  # e.g. virtio=MAC says both the model and the address
            key = "macaddr"
        elif goal:
            key = goal
        if key in raw:
            raise ValueError(f"duplicate key in comma-separated list property: {key}\n")
        raw[key] = value
    typed, errors = verify({name: spec for name, spec in parts.items() if not spec.alias}, raw)
    if errors:
        raise ValueError("format error\n" + "".join(f"{name}: {errors[name].rstrip()}\n" for name in sorted(errors)))
    return typed


PROPERTY_STRINGS: dict[str, Mapping[str, Param]] = {
    "backup-fleecing": {
        "enabled": Boolean(optional=True, default_key=True),
        "storage": String(optional=True, format="pve-storage-id"),
    },
    "pve-tfa-config": {
        "type": String(enum=("yubico", "oath")),
        "id": String(optional=True),
        "key": String(optional=True),
        "url": String(optional=True),
        "digits": Integer(optional=True, minimum=6, maximum=8),
        "step": Integer(optional=True, minimum=10),
    },
    "realm-sync-options": {
        "enable-new": Boolean(optional=True),
        "full": Boolean(optional=True),
        "purge": Boolean(optional=True),
        "remove-vanished": String(
            optional=True, pattern=r"^((?:(?:acl|properties|entry);)*(?:acl|properties|entry)|none)$"
        ),
        "scope": String(optional=True, enum=("users", "groups", "both")),
    },
    "pve-node-location": {
        "latitude": Number(minimum=-90, maximum=90),
        "longitude": Number(minimum=-180, maximum=180),
        "name": String(optional=True, max_length=128),
    },
    "backup-performance": {
        "max-workers": Integer(optional=True, minimum=1, maximum=256),
        "pbs-entries-max": Integer(optional=True, minimum=1),
    },
}
FORMATS |= {name: functools.partial(_parsed, parts) for name, parts in PROPERTY_STRINGS.items()}


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
    """The first thing that is wrong, in the order in which the real server looks."""
    if complaint := _check_format(spec, text):
        return complaint
    if spec.pattern is not None and not re.search(spec.pattern, text):
        return "value does not match the regex pattern"
    if spec.max_length is not None and len(text) > spec.max_length:
        return f"value may only be {spec.max_length} characters long"
    if spec.min_length is not None and len(text) < spec.min_length:
        return f"value must be at least {spec.min_length} characters long"
    if spec.type in ("integer", "number"):
        if spec.maximum is not None and typed > spec.maximum:
            return f"value must have a maximum value of {spec.maximum}"
        if spec.minimum is not None and typed < spec.minimum:
            return f"value must have a minimum value of {spec.minimum}"
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
