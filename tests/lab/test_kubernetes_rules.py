"""Rules of CustomResourceDefinitions: what is refused when the definition is created, in the real words."""

from __future__ import annotations

from typing import Any

import pytest

from runbook_lib.lab.kubernetes import cel, cel_check, crd, strict

Json = dict[str, Any]
NAMES = {"type": "array", "items": {"type": "string"}}
SPEC: Json = {
    "type": "object",
    "properties": {
        "size": {"type": "integer"}, "names": NAMES, "few": NAMES | {"maxItems": 5},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "inner": {"type": "object", "properties": {"deep-name": {"type": "string"}}},
    },
}  # fmt: skip


def refusal(rule: str) -> str:
    """Why a definition whose spec has the rule is refused; "" when it is taken."""
    definition = strict.definition("ex.io", "Thing", "things", ["v1"])
    spec = SPEC | {"x-kubernetes-validations": [{"rule": rule, "message": "no"}]}
    version = definition["spec"]["versions"][0]
    version["schema"] = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    errors = crd.definition_errors(definition)
    return errors[0].message if errors else ""


@pytest.mark.parametrize(
    ("rule", "column", "said"),
    [
        ("self.sise > 1", 5, "undefined field 'sise'"),
        ("has(self.inner.depth)", 15, "undefined field 'depth'"),
        ("slf.size > 1", 1, "undeclared reference to 'slf' (in container '')"),
        ("self.size > limit", 13, "undeclared reference to 'limit' (in container '')"),
        ("lenght(self.names) > 1", 7, "undeclared reference to 'lenght' (in container '')"),
        ("self.names.every(n, n != '')", 17, "undeclared reference to 'every' (in container '')"),
        ("self.size >", 12, "Syntax error"),
        ("oldSelf.gone == 1", 8, "undefined field 'gone'"),
    ],
)
def test_a_name_that_nobody_declared_is_marked(rule: str, column: int, said: str) -> None:
    """The refusal names the word, its column and draws an arrow below it."""
    text = refusal(rule)
    assert f"compilation failed: ERROR: <input>:1:{column}: {said}" in text
    assert text.endswith(f"\n | {rule}\n | {'.' * (column - 1)}^")


@pytest.mark.parametrize(
    "rule",
    [
        "self.size > 1", "self.size == oldSelf.size", "self.names.all(n, n.startsWith('a') && size(n) < 9)",
        "self.labels.all(k, self.labels[k] != '')", "self.open.anything.at.all == 1", "self.labels.some == 'a'",
        "self.inner.deep__dash__name != ''", "has(self.inner) ? self.inner.deep__dash__name == 'a' : true",
        "self.names.exists_one(n, n == 'a')", "sets.contains(['a'], self.names)", "math.greatest(self.size, 1) > 0",
        "cel.bind(n, self.names, size(n) > 0)", "optional.of(self.size).hasValue()", "isQuantity('1Gi')",
        "self.names.map(n, {'name': n}).size() > 0", "self.few.all(a, self.few.exists(b, a == b))",
        "self.few.all(a, self.names.exists(b, a == b))", "type(self.size) == int", "self.size in [1, 2]",
        "self.names.all(n, n in self.few) && self.names.exists(n, n == 'a')",
    ],
)  # fmt: skip
def test_a_right_rule_is_taken(rule: str) -> None:
    """Nothing the real compiler takes is refused for its words."""
    assert refusal(rule) == ""


@pytest.mark.parametrize(
    "rule",
    ["self.names.all(a, self.names.exists_one(b, a == b))", "self.labels.all(k, self.names.exists(n, n == k))"],
)
def test_a_walk_within_a_walk_needs_a_bound(rule: str) -> None:
    """Two lists without maxItems, one within the other, cost too much."""
    assert refusal(rule) == "Forbidden: " + cel_check.TOO_COSTLY


def test_metadata_shows_its_name_alone() -> None:
    """At the root a rule may read metadata.name and generateName, and nothing else of it."""
    root = {"type": "object", "properties": {"spec": SPEC}}
    cel_check.check("self.metadata.name.size() < 9 && self.kind != ''", root, root=True)
    with pytest.raises(cel.RuleError, match="undefined field 'labels'"):
        cel_check.check("self.metadata.labels.a == 'b'", root, root=True)
