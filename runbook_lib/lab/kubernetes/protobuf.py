"""Protobuf bodies of the few kinds kubectl sends that way; field numbers from the published .proto files.

A message is `{number: (name, type)}`; a type is s (string), b (bool), i (int), B (bytes as base64), a message name,
`[type]` for repeated, `{type}` for a map from strings.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]
Fields = dict[int, tuple[str, str]]
MAGIC = b"k8s\x00"


def _fields(text: str) -> Fields:
    found: Fields = {}
    for part in text.split():
        number, name, kind = part.split(":")
        found[int(number)] = (name, kind)
    return found


_ATTRIBUTES = "1:namespace:s 2:verb:s 3:group:s 4:version:s 5:resource:s 6:subresource:s 7:name:s"
_META = (
    "1:name:s 2:generateName:s 3:namespace:s 5:uid:s 6:resourceVersion:s 11:labels:{s} 12:annotations:{s} "
    "13:ownerReferences:[Owner] 14:finalizers:[s]"
)
MESSAGES: dict[str, Fields] = {
    name: _fields(text)
    for name, text in {
        "Meta": _META,
        "Owner": "1:kind:s 3:name:s 4:uid:s 5:apiVersion:s 6:controller:b 7:blockOwnerDeletion:b",
        "ConfigMap": "1:metadata:Meta 2:data:{s} 3:binaryData:{B} 4:immutable:b",
        "Secret": "1:metadata:Meta 2:data:{B} 3:type:s 4:stringData:{s} 5:immutable:b",
        "Namespace": "1:metadata:Meta 2:spec:NamespaceSpec 3:status:NamespaceStatus",
        "NamespaceSpec": "1:finalizers:[s]",
        "NamespaceStatus": "1:phase:s",
        "ServiceAccount": "1:metadata:Meta 4:automountServiceAccountToken:b",
        "ResourceQuota": "1:metadata:Meta 2:spec:QuotaSpec",
        "QuotaSpec": "1:hard:{Quantity} 2:scopes:[s]",
        "Quantity": "1:string:s",
        "SelfSubjectAccessReview": "1:metadata:Meta 2:spec:SelfAccessSpec",
        "SelfAccessSpec": "1:resourceAttributes:Attributes 2:nonResourceAttributes:PathAttributes",
        "Attributes": _ATTRIBUTES,
        "PathAttributes": "1:path:s 2:verb:s",
        "SubjectAccessReview": "1:metadata:Meta 2:spec:AccessSpec",
        "LocalSubjectAccessReview": "1:metadata:Meta 2:spec:AccessSpec",
        "AccessSpec": (
            "1:resourceAttributes:Attributes 2:nonResourceAttributes:PathAttributes 3:user:s 4:groups:[s] 6:uid:s"
        ),
        "SelfSubjectRulesReview": "1:metadata:Meta 2:spec:RulesSpec",
        "RulesSpec": "1:namespace:s",
        "SelfSubjectReview": "1:metadata:Meta",
        "TokenReview": "1:metadata:Meta 2:spec:TokenReviewSpec",
        "TokenReviewSpec": "1:token:s 2:audiences:[s]",
        "TokenRequest": "1:metadata:Meta 2:spec:TokenSpec",
        "TokenSpec": "1:audiences:[s] 3:boundObjectRef:Bound 4:expirationSeconds:i",
        "Bound": "1:kind:s 2:apiVersion:s 3:name:s 4:uid:s",
        "Eviction": "1:metadata:Meta 2:deleteOptions:DeleteOptions",
        "DeleteOptions": (
            "1:gracePeriodSeconds:i 2:preconditions:Preconditions 3:orphanDependents:b 4:propagationPolicy:s "
            "5:dryRun:[s]"
        ),
        "Preconditions": "1:uid:s 2:resourceVersion:s",
        "Binding": "1:metadata:Meta 2:target:Target",
        "Target": "1:kind:s 2:namespace:s 3:name:s",
        "Scale": "1:metadata:Meta 2:spec:ScaleSpec",
        "ScaleSpec": "1:replicas:i",
        "Role": "1:metadata:Meta 2:rules:[Rule]",
        "ClusterRole": "1:metadata:Meta 2:rules:[Rule]",
        "Rule": "1:verbs:[s] 2:apiGroups:[s] 3:resources:[s] 4:resourceNames:[s] 5:nonResourceURLs:[s]",
        "RoleBinding": "1:metadata:Meta 2:subjects:[Subject] 3:roleRef:RoleRef",
        "ClusterRoleBinding": "1:metadata:Meta 2:subjects:[Subject] 3:roleRef:RoleRef",
        "Subject": "1:kind:s 2:apiGroup:s 3:name:s 4:namespace:s",
        "RoleRef": "1:apiGroup:s 2:kind:s 3:name:s",
        "PriorityClass": "1:metadata:Meta 2:value:i 3:globalDefault:b 4:description:s 5:preemptionPolicy:s",
        "PodDisruptionBudget": "1:metadata:Meta 2:spec:BudgetSpec",
        "BudgetSpec": "1:minAvailable:IntOrString 2:selector:Selector 3:maxUnavailable:IntOrString",
        "IntOrString": "1:type:i 2:intVal:i 3:strVal:s",
        "Selector": "1:matchLabels:{s} 2:matchExpressions:[Expression]",
        "Expression": "1:key:s 2:operator:s 3:values:[s]",
        "Lease": "1:metadata:Meta 2:spec:LeaseSpec",
        "LeaseSpec": (
            "1:holderIdentity:s 2:leaseDurationSeconds:i 3:acquireTime:Time 4:renewTime:Time 5:leaseTransitions:i"
        ),
        "Time": "1:seconds:i 2:nanos:i",
        "TypeMeta": "1:apiVersion:s 2:kind:s",
    }.items()
}


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("proto: integer overflow")


def _parts(raw: bytes) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value: Any
            value, place = _varint(raw, place)
        elif wire == 2:
            size, place = _varint(raw, place)
            if place + size > len(raw):
                raise ValueError("unexpected EOF")
            value, place = raw[place : place + size], place + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, place = raw[place : place + size], place + size
        else:
            raise ValueError(f"proto: illegal wireType {wire}")
        found.append((number, value))
    return found


def _value(kind: str, value: Any) -> Any:
    if kind == "s":
        return bytes(value).decode("utf-8", "replace")
    if kind == "B":
        return base64.b64encode(value).decode()
    if kind == "b":
        return bool(value)
    if kind == "i":
        return value - (1 << 64) if value >= 1 << 63 else value
    return _message(kind, value)


def _message(name: str, raw: bytes) -> Any:
    fields = MESSAGES[name]
    found: Json = {}
    for number, value in _parts(raw):
        if number not in fields:
            continue
        label, kind = fields[number]
        if kind.startswith("["):
            found.setdefault(label, []).append(_value(kind[1:-1], value))
        elif kind.startswith("{"):
            pair = dict(_parts(value))
            found.setdefault(label, {})[_value("s", pair.get(1, b""))] = _value(kind[1:-1], pair.get(2, b""))
        else:
            found[label] = _value(kind, value)
    if name == "Quantity":
        return found.get("string", "0")
    if name == "IntOrString":
        return found.get("strVal", "") if found.get("type") else found.get("intVal", 0)
    if name == "Time":
        stamp = datetime.fromtimestamp(found.get("seconds", 0), UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{stamp}.{found.get('nanos', 0) // 1000:06d}Z"
    return {key: item for key, item in found.items() if item != "" or key in ("apiGroup",)}


def read(raw: bytes) -> Json | None:
    """The object in a protobuf body; None for a kind that is not known here, ValueError for a broken one."""
    if not raw.startswith(MAGIC):
        raise ValueError("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = dict(_parts(raw[4:]))
        head: Json = _message("TypeMeta", envelope.get(1, b""))
        if head.get("kind") not in MESSAGES:
            return None
        body: Json = _message(head["kind"], envelope.get(2, b""))
    except (IndexError, TypeError, AttributeError) as error:
        raise ValueError("proto: cannot parse invalid wire-format data") from error
    return head | body
