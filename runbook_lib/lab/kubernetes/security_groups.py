"""`sdn.cozystack.io` SecurityGroups: a tenant's view of CiliumNetworkPolicies with a marker label.

Peers and attachments are named as applications and groups; the policy behind holds label selectors and, in an
annotation, what the group is attached to. Platform policies without the marker stay out of sight.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

from .status import FieldError, invalid_value, required, unsupported

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
BUCKET = "cilium.io/ciliumnetworkpolicies"
API = "sdn.cozystack.io/v1alpha1"
MARKER, ATTACHED = "sdn.cozystack.io/securitygroup", "sdn.cozystack.io/attachments"
MEMBER = "securitygroup.sdn.cozystack.io/"
FINALIZER = "sdn.cozystack.io/securitygroup-membership"
APPS = "apps.cozystack.io"
LINEAGE = tuple(f"apps.cozystack.io/application.{part}" for part in ("group", "kind", "name"))
RESERVED = {"world", "cluster", "kube-apiserver", "host", "remote-node", "health", "init", "unmanaged", "all"}
DIRECTIONS = (("ingress", "from", "fromEndpoints"), ("egress", "to", "toEndpoints"))
CARRIED = ("fromCIDR", "toCIDR", "toFQDNs", "toPorts")


def is_group(policy: Json) -> bool:
    """Whether a policy is the other side of a SecurityGroup."""
    return (policy["metadata"].get("labels") or {}).get(MARKER) == "true"


def show(policy: Json, cluster: Cluster) -> Json:
    """The SecurityGroup that a policy is."""
    meta = {k: v for k, v in policy["metadata"].items() if k not in ("managedFields", "generation")}
    kept = {
        "labels": {k: v for k, v in (meta.get("labels") or {}).items() if k != MARKER},
        "annotations": {k: v for k, v in (meta.get("annotations") or {}).items() if k != ATTACHED},
    }
    meta = {k: v for k, v in meta.items() if k not in kept} | {k: v for k, v in kept.items() if v}
    given, spec = policy.get("spec") or {}, {}
    attached = (policy["metadata"].get("annotations") or {}).get(ATTACHED)
    if attached:
        spec["attachments"] = json.loads(attached)
    for direction, prefix, peers in DIRECTIONS:
        if direction in given:
            spec[direction] = [_rule(rule, prefix, peers) for rule in given[direction]]
    return {"kind": "SecurityGroup", "apiVersion": API, "metadata": meta, "spec": spec}


def _rule(rule: Json, prefix: str, peers: str) -> Json:
    found: Json = {}
    for selector in rule.get(peers) or []:
        labels = selector.get("matchLabels") or {}
        if set(labels) == set(LINEAGE):
            group, kind, name = (labels[key] for key in LINEAGE)
            found.setdefault(f"{prefix}App", []).append({"apiGroup": group, "kind": kind, "name": name})
        elif len(labels) == 1 and next(iter(labels)).startswith(MEMBER):
            found.setdefault(f"{prefix}SG", []).append(next(iter(labels)).removeprefix(MEMBER))
    return found | {key: rule[key] for key in CARRIED if rule.get(key)}


def policy(shown: Json, old: Json | None) -> Json:
    """The policy behind a SecurityGroup; what the platform owns of it is put back."""
    meta, spec = shown.get("metadata") or {}, shown.get("spec") or {}
    labels = (meta.get("labels") or {}) | {MARKER: "true"}
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k != ATTACHED}
    if spec.get("attachments"):
        rows = [{"apiGroup": APPS} | {k: v for k, v in row.items() if v} for row in spec["attachments"]]
        annotations[ATTACHED] = json.dumps(rows, separators=(",", ":"))
    finalizers = list(meta.get("finalizers") or [])
    if old and FINALIZER in (old["metadata"].get("finalizers") or []) and FINALIZER not in finalizers:
        finalizers.append(FINALIZER)
    system = {k: v for k, v in (old or {"metadata": {}})["metadata"].items() if k not in ("annotations", "finalizers")}
    system |= {k: meta[k] for k in ("name", "namespace", "resourceVersion", "ownerReferences") if meta.get(k)}
    inner: Json = {"endpointSelector": {"matchLabels": {MEMBER + str(meta.get("name", "")): ""}}}
    for direction, prefix, peers in DIRECTIONS:
        if direction in spec:
            inner[direction] = [_policy_rule(rule, prefix, peers) for rule in spec[direction]]
    meta = system | {"labels": labels} | ({"annotations": annotations} if annotations else {})
    meta |= {"finalizers": finalizers} if finalizers else {}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": meta, "spec": inner}


def _policy_rule(rule: Json, prefix: str, peers: str) -> Json:
    selectors = [
        {"matchLabels": dict(zip(LINEAGE, (row.get("apiGroup") or APPS, row["kind"], row["name"]), strict=True))}
        for row in rule.get(f"{prefix}App") or []
    ]
    selectors += [{"matchLabels": {MEMBER + name: ""}} for name in rule.get(f"{prefix}SG") or []]
    found: Json = {peers: selectors} if selectors else {}
    return found | {key: rule[key] for key in CARRIED if rule.get(key)}


def errors(shown: Json) -> list[FieldError]:
    """Why a SecurityGroup is refused: what Cilium would otherwise drop without a word."""
    spec = shown.get("spec") or {}
    found = _references("spec.attachments", spec.get("attachments"))
    for direction, prefix, _ in DIRECTIONS:
        for number, rule in enumerate(spec.get(direction) or []):
            place = f"spec.{direction}[{number}]"
            found += _references(f"{place}.{prefix}App", rule.get(f"{prefix}App"))
            found += _groups(f"{place}.{prefix}SG", rule.get(f"{prefix}SG"))
            found += _ranges(f"{place}.{prefix}CIDR", rule.get(f"{prefix}CIDR"))
            found += _ports(f"{place}.toPorts", rule.get("toPorts"))
    return found


def _references(place: str, rows: Any) -> list[FieldError]:
    found = []
    for number, row in enumerate(rows or []):
        for name in ("kind", "name"):
            if not row.get(name):
                found.append(required(f"{place}[{number}].{name}", f"must reference an application {name}"))
        if str(row.get("name", "")).lower() in RESERVED:
            text = "must not name a reserved Cilium entity"
            found.append(invalid_value(f"{place}[{number}].name", row["name"], text))
    return found


def _groups(place: str, names: Any) -> list[FieldError]:
    found = []
    for number, name in enumerate(names or []):
        if not name:
            found.append(required(f"{place}[{number}]", "must name a SecurityGroup"))
        elif name.lower() in RESERVED:
            found.append(invalid_value(f"{place}[{number}]", name, "must not name a reserved Cilium entity"))
    return found


def _ranges(place: str, rows: Any) -> list[FieldError]:
    found = []
    for number, text in enumerate(rows or []):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            found.append(invalid_value(f"{place}[{number}]", text, "must be a valid CIDR or IP address"))
    return found


def _ports(place: str, rules: Any) -> list[FieldError]:
    found = []
    for number, rule in enumerate(rules or []):
        for index, row in enumerate(rule.get("ports") or []):
            here = f"{place}[{number}].ports[{index}]"
            port, protocol = str(row.get("port", "")), row.get("protocol", "")
            if port.lstrip("-").isdigit() and not 1 <= int(port) <= 65535:
                found.append(invalid_value(f"{here}.port", port, "port number must be between 1 and 65535"))
            if protocol and protocol.upper() not in ("TCP", "UDP", "SCTP", "ANY"):
                found.append(unsupported(f"{here}.protocol", protocol, ["TCP", "UDP", "SCTP", "ANY"]))
    return found
