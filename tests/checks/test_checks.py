"""The decorator and the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runbook_lib import checks
from runbook_lib.checks import check, graded, verdict
from runbook_lib.model import Status

ROOT = Path(__file__).parents[2]


def judged(*statuses, error=None):
    """A throw-away check that yields these statuses, then raises."""

    def judge():
        for status in statuses:
            yield verdict(status, "subject", "message")
        if error:
            raise error

    judge.__module__ = "tests.area"
    return check(title="Title", remedy="Remedy", source="Source")(judge)


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch):
    checks.catalogue()
    monkeypatch.setattr(checks, "_catalogue", dict(checks._catalogue))


def test_a_check_without_findings_is_a_skip():
    """Looking at nothing never passes."""
    assert [finding.status for finding in judged()()] == [Status.SKIP]


def test_a_broken_judgement_is_an_error_and_not_a_failure():
    """Unfit and could-not-tell are different things."""
    found = judged(True, error=KeyError("x"))()
    assert [finding.status for finding in found] == [Status.ERROR]
    assert "KeyError" in found[0].message


def test_findings_carry_the_catalogue_words_and_a_remedy_only_when_needed():
    """Title and source always, the remedy for what is not well."""
    good, bad = judged(True, False)()
    assert (good.check, good.title, good.source, good.remedy) == ("area.judge", "Title", "Source", "")
    assert bad.remedy == "Remedy"


@pytest.mark.parametrize(("value", "expected"), [(None, "skip"), (0.79, "pass"), (0.8, "warn"), (0.9, "fail")])
def test_graded_meets_its_thresholds_inclusively(value, expected):
    """At the threshold counts as reached."""
    assert graded(value, "", "", warn_at=0.8, fail_at=0.9).status == expected


def test_every_check_in_the_catalogue_says_what_to_do_and_where_it_comes_from():
    """The catalogue page and the troubleshooting guide are made from these words."""
    entries = checks.catalogue()
    assert len(entries) > 40
    assert not [entry.id for entry in entries if not (entry.title and entry.remedy and entry.source and entry.summary)]


def test_check_ids_are_area_and_claim():
    """Ids are stable names that reports and scenarios refer to."""
    assert "storage.storage_has_room" in {entry.id for entry in checks.catalogue()}


def test_thresholds_are_named_like_the_parameters_of_a_site():
    """Every limit of a check is a field of the site's thresholds, requirements or names, or a notebook gives it."""
    from runbook_lib.parameters import Names, Requires, Thresholds

    known = {*Thresholds.model_fields, *Requires.model_fields, *Names.model_fields}
    units = re.compile(r"_(seconds|days|gib|mib|ms|percent|warn|fail|start)$")
    told = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
    limits = [(entry.id, name) for entry in checks.catalogue() for name in entry.thresholds if units.search(name)]
    strange = {(check, name) for check, name in limits if name not in known and f"{name}=" not in told}
    assert len(limits) > 20
    assert not strange
