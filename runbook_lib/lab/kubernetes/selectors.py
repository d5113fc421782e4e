"""Label and field selectors, parsed and refused in the words of apimachinery."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .status import ApiError, bad_request

Json = dict[str, Any]
TOKEN = re.compile(r"\s*(==|!=|=|!|,|\(|\)|<|>|[^\s,()=!<>]+)")


@dataclass(frozen=True)
class Requirement:
    """One clause of a label selector."""

    key: str
    operator: str  # in notin exists absent gt lt
    values: tuple[str, ...] = ()

    def matches(self, labels: Json) -> bool:
        """True when the labels satisfy the clause."""
        present = self.key in labels
        if self.operator == "exists":
            return present
        if self.operator == "absent":
            return not present
        if self.operator == "notin":
            return not present or labels[self.key] not in self.values
        if self.operator in ("gt", "lt"):
            return present and _compare(labels[self.key], self.operator, self.values[0])
        return present and labels[self.key] in self.values


def _compare(label: str, operator: str, value: str) -> bool:
    if not label.lstrip("-").isdigit():
        return False
    return int(label) > int(value) if operator == "gt" else int(label) < int(value)


def _refuse(found: str, expected: str) -> ApiError:
    return bad_request(f"unable to parse requirement: found '{found}', expected: {expected}")


def parse_labels(text: str) -> list[Requirement]:
    """The clauses of a label selector; ApiError 400 when it cannot be read."""
    tokens = TOKEN.findall(text)
    clauses: list[Requirement] = []
    position = 0

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1] if position <= len(tokens) else ""

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    while position < len(tokens):
        word = take()
        if word == "!":
            clauses.append(Requirement(_name(take()), "absent"))
        elif word in ("=", "==", "!=", "(", ")", ",", "<", ">"):
            raise _refuse(word, "!, identifier, or 'end of string'")
        elif peek() in ("", ","):
            clauses.append(Requirement(_name(word), "exists"))
        else:
            clauses.append(_operation(_name(word), take(), take, peek))
        if peek() and take() != ",":
            raise _refuse(tokens[position - 1], "',' or 'end of string'")
    return clauses


def _name(word: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9.-]+/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", word):
        raise bad_request(
            f'unable to parse requirement: <nil>: Invalid value: "{word}": name part must consist of alphanumeric '
            "characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or "
            "'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        )
    return word


def _operation(key: str, operator: str, take: Callable[[], str], peek: Callable[[], str]) -> Requirement:
    if operator in ("=", "==", "!="):
        value = peek()
        if value in ("=", "==", "!=", "!", "(", ")"):
            raise _refuse(value, "identifier")
        value = "" if value in ("", ",") else take()
        return Requirement(key, "notin" if operator == "!=" else "in", (value,))
    if operator in ("<", ">"):
        return Requirement(key, "gt" if operator == ">" else "lt", (take(),))
    if operator in ("in", "notin"):
        if take() != "(":
            raise _refuse(peek(), "'('")
        values = []
        while True:
            word = take()
            if word == ")":
                break
            if word == "":
                raise _refuse("", "',', or ')'")
            if word != ",":
                values.append(word)
        return Requirement(key, operator, tuple(values))
    raise _refuse(operator, "in, notin, =, ==, !=, gt, lt")


def from_selector(selector: Json | None) -> Callable[[Json], bool]:
    """A test of labels from a LabelSelector object; None selects nothing."""
    if selector is None:
        return lambda labels: False
    operators = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}
    clauses = [Requirement(k, "in", (v,)) for k, v in (selector.get("matchLabels") or {}).items()]
    for clause in selector.get("matchExpressions") or []:
        operator = operators.get(clause.get("operator", ""), "in")
        clauses.append(Requirement(clause.get("key", ""), operator, tuple(clause.get("values") or ())))
    return lambda labels: all(clause.matches(labels) for clause in clauses)


def at_path(obj: Any, path: str) -> str:
    """The value under a dotted path as a selector compares it: "" when absent."""
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    if obj is None:
        return ""
    return ("true" if obj else "false") if isinstance(obj, bool) else str(obj)


POD_FIELDS = [
    "metadata.name", "metadata.namespace", "spec.nodeName", "spec.restartPolicy", "spec.schedulerName",
    "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs",
    "status.nominatedNodeName",
]  # fmt: skip
FIELDS = {
    "Pod": POD_FIELDS,
    "Node": ["metadata.name", "spec.unschedulable"],
    "Namespace": ["metadata.name", "status.phase"],
    "Secret": ["metadata.name", "metadata.namespace", "type"],
    "Job": ["metadata.name", "metadata.namespace", "status.successful"],
    "ReplicaSet": ["metadata.name", "metadata.namespace", "status.replicas"],
    "ReplicationController": ["metadata.name", "metadata.namespace", "status.replicas"],
    "Service": ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
    "CertificateSigningRequest": ["metadata.name", "spec.signerName"],
    "Event": [
        "metadata.name", "metadata.namespace", "involvedObject.kind", "involvedObject.namespace", "involvedObject.name",
        "involvedObject.uid", "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
        "reason", "reportingComponent", "source", "type",
    ],
}  # fmt: skip
DEFAULTED = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.successful": "0"}


@dataclass(frozen=True)
class FieldRequirement:
    """One clause of a field selector."""

    path: str
    equal: bool
    value: str

    def matches(self, obj: Json) -> bool:
        """True when the object's field has (or has not) the value."""
        if self.path == "source":
            actual = at_path(obj, "source.component")
        else:
            actual = at_path(obj, self.path) or DEFAULTED.get(self.path, "")
        return (actual == self.value) is self.equal


def parse_fields(text: str, kind: str, extra: Iterable[str] = ()) -> list[FieldRequirement]:
    """The clauses of a field selector a kind supports; ApiError 400 otherwise."""
    known = FIELDS.get(kind, ["metadata.name", "metadata.namespace"])
    clauses = []
    for part in (p for p in text.split(",") if p):
        match = re.match(r"^([^=!]*)(!=|==|=)(.*)$", part)
        if not match:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path, operator, value = match.groups()
        if path not in known and path not in extra:
            raise bad_request(_unknown_field(path, kind))
        clauses.append(FieldRequirement(path, operator != "!=", value))
    return clauses


def _unknown_field(path: str, kind: str) -> str:
    if kind in FIELDS:
        return f"field label not supported: {path}"
    return f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"'
