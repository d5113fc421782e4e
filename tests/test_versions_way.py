"""From what is installed to what fits: the releases of CAPMOX still to come, in their order, and when none can."""

from __future__ import annotations

import pytest

from runbook_lib.versions import CAPMOX, Verdict, way

OLD, NEW = (
    Verdict("CAPMOX", True, "v1beta1 is served", "v0.7.x"),
    Verdict("CAPMOX", True, "v1beta2 is served", "v0.9.x"),
)


@pytest.mark.parametrize(
    ("verdict", "installed", "steps", "ipam"),
    [
        (OLD, "", ("v0.7.7",), "v1.0.3"),
        (OLD, "v0.7.2", ("v0.7.7",), "v1.0.3"),
        (OLD, "v0.7.7", (), "v1.0.3"),
        (OLD, "v0.6.2", ("v0.7.7",), "v1.0.3"),
        (NEW, "", ("v0.9.0",), "v1.1.0"),
        (NEW, "v0.8.2", ("v0.9.0",), "v1.1.0"),
        (NEW, "v0.8.0", ("v0.9.0",), "v1.1.0"),
        (NEW, "v0.7.7", ("v0.8.2", "v0.9.0"), "v1.1.0"),
        (NEW, "v0.6.2", ("v0.7.7", "v0.8.2", "v0.9.0"), "v1.0.3"),
    ],
)
def test_no_line_is_passed_over(verdict: Verdict, installed: str, steps: tuple[str, ...], ipam: str):
    """A fresh site takes the newest that fits at once; an old one goes line by line, with the IPAM provider of each."""
    found = way(verdict, installed=installed)
    assert (found.steps, found.ipam, found.problem) == (steps, ipam, "")


@pytest.mark.parametrize(("verdict", "contract", "target"), [(OLD, "v1beta1", "v0.7.7"), (NEW, "v1beta2", "v0.9.0")])
def test_the_way_ends_at_the_line_of_the_contract(verdict: Verdict, contract: str, target: str):
    """Contract and target are told also where nothing is left to do."""
    found = way(verdict, installed=target)
    assert (found.contract, found.target, found.steps) == (contract, target, ())


def test_a_wish_of_the_same_line_is_granted():
    """An older patch release may be asked for, and another IPAM release beside it."""
    found = way(OLD, wish="v0.7.5", ipam_wish="v1.0.1")
    assert (found.target, found.steps, found.ipam) == ("v0.7.5", ("v0.7.5",), "v1.0.1")


@pytest.mark.parametrize(
    ("verdict", "wish", "contract"),
    [(OLD, "v0.9.0", "v1beta1"), (OLD, "v0.8.2", "v1beta1"), (NEW, "v0.7.7", "v1beta2")],
)
def test_a_wish_of_another_line_is_refused_with_the_reason(verdict: Verdict, wish: str, contract: str):
    """The problem names the parameter and what the cluster serves; nothing is left to install."""
    found = way(verdict, wish=wish)
    assert (found.contract, found.steps) == (contract, ())
    assert f"capi.provider.version asks for {wish}" in found.problem and verdict.why in found.problem


@pytest.mark.parametrize(("installed", "wish"), [("v0.9.0", ""), ("v0.8.2", ""), ("v0.7.7", "v0.7.5")])
def test_capmox_never_goes_back(installed: str, wish: str):
    """Also not by a patch release: what it stored, the one before may not read."""
    found = way(OLD, installed=installed, wish=wish)
    assert found.steps == () and installed in found.problem and "does not go back" in found.problem


def test_where_no_line_fits_the_verdict_is_the_problem():
    """The reader learns what would have to be raised."""
    found = way(Verdict("CAPMOX", False, "Cluster API 1.6 is too old"))
    assert (found.problem, found.target, found.steps) == ("Cluster API 1.6 is too old", "", ())


def test_each_line_names_a_release_of_its_own():
    """The newest release of a line is of that line, and so is its IPAM provider."""
    assert all(row.release.startswith(f"v{row.version}.") for row in CAPMOX)
    assert all(row.ipam_release.startswith(f"v{row.ipam}.") for row in CAPMOX)
