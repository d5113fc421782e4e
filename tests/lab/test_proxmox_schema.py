"""Parameter verification in the words of a real server."""

from __future__ import annotations

from typing import Any

import pytest

from runbook_lib.lab.proxmox.routing import Route, Router, split_list
from runbook_lib.lab.proxmox.schema import (
    FORMATS,
    MISSING,
    UNKNOWN,
    Array,
    Boolean,
    Integer,
    Number,
    Param,
    String,
    verify,
)
from runbook_lib.lab.proxmox.server import parse_form


@pytest.mark.parametrize(
    ("spec", "value", "complaint"),
    [
        (Integer(), "abc", "type check ('integer') failed - got 'abc'"),
        (Integer(), "1.5", "type check ('integer') failed - got '1.5'"),
        (Integer(minimum=1), "0", "value must have a minimum value of 1"),
        (Integer(maximum=5), "6", "value must have a maximum value of 5"),
        (Number(), "x", "type check ('number') failed - got 'x'"),
        (Boolean(), "maybe", "type check ('boolean') failed - got 'maybe'"),
        (String(), {"a": 1}, "type check ('string') failed - got HASH"),
        (String(), ["a"], "type check ('string') failed - got ARRAY"),
        (String(min_length=8), "short", "value must be at least 8 characters long"),
        (String(max_length=2), "abc", "value may only be 2 characters long"),
        (String(pattern="^a$"), "b", "value does not match the regex pattern"),
        (String(enum=("a", "b")), "c", "value 'c' does not have a value in the enumeration 'a, b'"),
        (String(format="pve-vmid"), "99", "invalid format - value does not look like a valid VM ID\n"),
        (String(format="pve-userid"), "bob", "invalid format - value 'bob' does not look like a valid user name\n"),
        (String(format="dns-name"), "a b", "invalid format - value does not look like a valid DNS name\n"),
        (String(format="CIDRv4"), "10.0.0.1", "invalid format - value does not look like a valid IPv4 network\n"),
        (String(format="pve-configid"), "1x", "invalid format - invalid configuration ID '1x'\n"),
    ],
)
def test_a_wrong_value_is_refused_with_the_servers_words(spec: Param, value: Any, complaint: str) -> None:
    """The complaint is what a real server says, its newline included."""
    assert verify({"p": spec}, {"p": value})[1] == {"p": complaint}


@pytest.mark.parametrize(
    ("spec", "value", "typed"),
    [
        (Integer(), "+7", 7),
        (Integer(), 7, 7),
        (Boolean(), "yes", True),
        (Boolean(), "OFF", False),
        (Boolean(), True, True),
        (Boolean(), 0, False),
        (String(), True, "1"),
        (String(), 5, "5"),
        (Array(), "one", ["one"]),
        (Array(), ["one", "two"], ["one", "two"]),
        (String(format="pve-vmid-list"), ["100", "101"], "100,101"),
        (String(format="email-opt"), "", ""),
    ],
)
def test_a_right_value_is_typed(spec: Param, value: Any, typed: Any) -> None:
    """Texts, JSON scalars and repeated keys all come out as the handler wants them."""
    assert verify({"p": spec}, {"p": value}) == ({"p": typed}, {})


def test_missing_and_unknown_parameters_are_named() -> None:
    """All complaints come at once."""
    assert verify({"a": String()}, {"b": "1"})[1] == {"a": MISSING, "b": UNKNOWN}


def test_a_null_counts_as_not_given() -> None:
    """JSON null does not satisfy a parameter that must be there."""
    assert verify({"a": String()}, {"a": None})[1] == {"a": MISSING}


def test_a_required_companion_is_asked_for() -> None:
    """`append` without `groups` makes no sense."""
    specs = {"append": Boolean(optional=True, requires="groups"), "groups": String(optional=True)}
    assert verify(specs, {"append": "1"})[1] == {"append": "missing property - 'groups' requires this property"}


@pytest.mark.parametrize(("name", "known"), [("net0", True), ("net31", True), ("net32", False), ("net01", False)])
def test_a_numbered_family_has_an_end(name: str, known: bool) -> None:
    """net0 … net31 are parameters, net32 is unknown."""
    assert (verify({"net[n]": String(optional=True, count=32)}, {name: "x"})[1] == {}) is known


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a=1&b=2", {"a": "1", "b": "2"}),
        ("a=1;b=2", {"a": "1", "b": "2"}),
        ("a=x%3By", {"a": "x;y"}),
        ("a=1&a=2&a=3", {"a": ["1", "2", "3"]}),
        ("a=virtio=BC&b", {"a": "virtio", "b": None}),
        ("a=h%C3%A9+l", {"a": "hé l"}),
        ("", {}),
    ],
)
def test_forms_are_split_as_the_server_splits_them(text: str, parsed: dict[str, Any]) -> None:
    """Semicolons separate, a second equals sign cuts, repeated keys gather."""
    assert parse_form(text) == parsed


def test_lists_may_be_separated_by_anything_usual() -> None:
    """Commas, semicolons and blanks."""
    assert split_list("a,b;c d,,") == ["a", "b", "c", "d"]


def test_a_literal_segment_wins_over_an_argument() -> None:
    """And {volume:rest} takes the rest of the path, slashes included."""
    router = Router()
    for template in ("/nodes/{node}", "/nodes/localhost", "/content/{volume:rest}"):
        router.add(Route("GET", template, lambda call: None, {}, "any"))

    def found(path: str) -> tuple[str, dict[str, str]] | None:
        match = router.find("GET", path)
        return (match[0].template, match[1]) if match else None

    assert found("/nodes/localhost") == ("/nodes/localhost", {})
    assert found("/nodes/pve1/") == ("/nodes/{node}", {"node": "pve1"})
    assert found("/content/local:iso/x.iso") == ("/content/{volume:rest}", {"volume": "local:iso/x.iso"})
    assert found("/nodes") is None
    assert router.find("POST", "/nodes/pve1") is None


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "lxc-ip-with-ll-iface",
            ("10.0.0.1", "fd00::1", "fe80::1", "fe80::1%eth0"),
            ("eth0", "fd00::1%eth0", "fe80::1%"),
        ),
        (
            "pve-node-location",
            ("latitude=48.2,longitude=16.3", "latitude=0,longitude=-180,name=Kyiv"),
            ("Kyiv", "latitude=91,longitude=0", "longitude=1", "latitude=1,longitude=x"),
        ),
    ],
)
def test_a_format_takes_what_it_means_and_no_other(name: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    """Name servers with an interface beside a link-local address alone; places on the globe."""
    for value in good:
        FORMATS[name](value)
    for value in bad:
        with pytest.raises(ValueError, match=r"\S"):
            FORMATS[name](value)
