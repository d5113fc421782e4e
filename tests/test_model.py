"""Results as plain JSON and back."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from runbook_lib import model
from runbook_lib.model import Change, ChangeKind, Finding, Measurement, Run, Status, StepRecord, StepResult


def result():
    """A result that holds one of everything."""
    return StepResult(
        "11",
        "Assess",
        "lab",
        "r",
        Status.WARN,
        "2026-11-23T10:00:00Z",
        "2026-11-23T10:00:01Z",
        1.0,
        (Finding("a.b", Status.WARN, "s", "m", evidence={"n": 1}),),
        (Measurement("GET", "ms", (1.0, 2.0), emulated=True, threshold=5.0),),
        (Change("11-01", "proxmox", "create", "/pools/x", "s", ChangeKind.INSTALL, undo={"method": "DELETE"}),),
        notes=("n",),
        emulated=True,
        requests={"proxmox": 3},
    )


def test_a_run_survives_the_way_to_json_and_back():
    """Nothing is lost and nothing changes its type."""
    run = Run(
        "r", "lab", "2026-11-23T10:00:00Z", (StepRecord("11", "Assess", "11.ipynb", Status.WARN, result=result()),)
    )
    assert model.run_from_dict(json.loads(json.dumps(model.to_dict(run), allow_nan=False))) == run


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.int64(3), 3),
        (np.float64("nan"), None),
        (np.array([1.5, float("nan")]), [1.5, None]),
        (pd.Series([1, 2]), [1, 2]),
        (pd.Timestamp("2026-11-23"), "2026-11-23T00:00:00"),
        (pd.NaT, None),
        (pd.NA, None),
        (pd.DataFrame({"a": [1, 2]}), [{"a": 1}, {"a": 2}]),
        ({"b", "a"}, ["a", "b"]),
        ((1, (2,)), [1, [2]]),
        ({1: Status.PASS}, {"1": "pass"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_foreign_types_become_plain_json(value, expected):
    """scrapbook refuses these, or stores "nan" as a text."""
    assert model.to_dict(value) == expected


def test_what_has_no_plain_form_is_refused_by_name():
    """The message names the type."""
    with pytest.raises(TypeError, match="holds a complex"):
        model.to_dict({"x": 1j})


def test_readings_that_were_no_numbers_are_counted_as_errors():
    """A lost reading is not a faster answer."""
    data = model.to_dict(Measurement("GET", "ms", (1.0, float("nan"), 3.0)))
    assert model.measurement_from_dict(data) == Measurement("GET", "ms", (1.0, 3.0), errors=1, time=data["time"])


def test_a_newer_schema_is_refused():
    """An old reader must not guess."""
    with pytest.raises(ValueError, match="newer release"):
        model.step_result_from_dict({**model.to_dict(result()), "schema": model.SCHEMA + 1})


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], "skip"),
        (["skip", "skip"], "skip"),
        (["skip", "pass"], "pass"),
        (["pass", "warn"], "warn"),
        (["warn", "fail", "pass"], "fail"),
        (["fail", "error"], "error"),
    ],
)
def test_the_worst_status_is_never_averaged_away(statuses, expected):
    """One failure among a hundred passes is a failure."""
    assert model.worst(map(Status, statuses)) == expected


def test_percentiles_of_few_readings():
    """None of none, itself of one."""
    assert Measurement("x", "ms", ()).percentile(95) is None
    assert Measurement("x", "ms", (7.0,)).percentile(95) == 7.0
    assert Measurement("x", "ms", tuple(map(float, range(101)))).percentile(95) == 95.0
