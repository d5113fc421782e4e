"""Webhooks and aggregated APIs as rows: whoever the API server must ask before it answers."""

from __future__ import annotations

import base64
import binascii
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from runbook_lib.facts import ApiService, Webhook
from runbook_lib.kubernetes_platform import CRDS, condition
from runbook_lib.kubernetes_reading import Reader

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
SERVICE_LABEL = "kubernetes.io/service-name"


def webhooks(k8s: Reader, *, clock: Callable[[], float] = time.time) -> list[Webhook]:
    """Every admission and conversion webhook, by kind, configuration and name.

    Whether the CA has signed what the webhook serves cannot be seen from outside; that it could have, can.
    """
    ready = _ready_endpoints(k8s)
    rows = []
    for kind, configuration, name, call, policy in _declared(k8s):
        service = call.get("service") or {}
        key = f"{service.get('namespace')}/{service.get('name')}"
        not_after, error = authority(call.get("caBundle"), clock(), needed=bool(service))
        rows.append(
            Webhook(
                configuration=configuration,
                kind=kind,
                name=name,
                service=f"{key}:{service.get('port', 443)}" if service else "",
                failure_policy=policy,
                ready_endpoints=ready[key] if service else None,
                ca_not_after=not_after,
                ca_error=error,
            )
        )
    return sorted(rows, key=lambda row: (row.kind, row.configuration, row.name))


def _declared(k8s: Reader) -> Iterator[tuple[str, str, str, Mapping[str, Any], str]]:
    for kind in ("validating", "mutating"):
        for entry in k8s.list(f"{ADMISSION}/{kind}webhookconfigurations"):
            for hook in entry.get("webhooks") or []:
                policy = hook.get("failurePolicy", "Fail")
                yield kind, entry["metadata"]["name"], hook["name"], hook.get("clientConfig") or {}, policy
    for entry in k8s.list(CRDS):
        conversion = entry["spec"].get("conversion") or {}
        if conversion.get("strategy") == "Webhook":
            name = entry["metadata"]["name"]
            yield "conversion", name, name, (conversion.get("webhook") or {}).get("clientConfig") or {}, "Fail"


def _ready_endpoints(k8s: Reader) -> Mapping[str, int]:
    addresses: dict[str, set[str]] = defaultdict(set)
    for entry in k8s.list("/apis/discovery.k8s.io/v1/endpointslices"):
        metadata = entry["metadata"]
        service = (metadata.get("labels") or {}).get(SERVICE_LABEL)
        if not service:
            continue
        for endpoint in entry.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready") is not False:  # nothing told means ready
                addresses[f"{metadata['namespace']}/{service}"].update(endpoint.get("addresses") or [])
    return defaultdict(int, {key: len(found) for key, found in addresses.items()})


def authority(bundle: str | None, now: float, *, needed: bool = True) -> tuple[int | None, str]:
    """When a CA bundle ends, and why it cannot be used (empty when it can).

    Of several certificates one that is valid is enough. An empty bundle is an error only where the webhook is a
    Service, whose certificate no public authority signs.
    """
    try:
        text = base64.b64decode(bundle or "", validate=True)
    except (binascii.Error, ValueError):
        return None, "the CA bundle is not base64"
    if not text.strip():
        return None, "the CA bundle is empty" if needed else ""
    try:
        found = x509.load_pem_x509_certificates(text)
    except ValueError:
        return None, "the CA bundle holds no certificate that can be read"
    current = [
        one for one in found if one.not_valid_before_utc.timestamp() <= now < one.not_valid_after_utc.timestamp()
    ]
    best = max(current or found, key=lambda one: one.not_valid_after_utc)
    not_after = int(best.not_valid_after_utc.timestamp())
    if current:
        return not_after, ""
    if best.not_valid_before_utc.timestamp() > now:
        return not_after, f"the CA is not valid before {_day(best.not_valid_before_utc.timestamp())}"
    return not_after, f"the CA expired on {_day(not_after)}"


def _day(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).date().isoformat()


def api_services(k8s: Reader) -> list[ApiService]:
    """Every aggregated API by name; those the API server serves itself are left out."""
    rows = []
    for entry in k8s.list("/apis/apiregistration.k8s.io/v1/apiservices"):
        service = (entry.get("spec") or {}).get("service")
        if not service:
            continue
        available, reason, message = condition(entry, "Available")
        where = f"{service['namespace']}/{service['name']}"
        rows.append(ApiService(entry["metadata"]["name"], available, reason, message, where))
    return sorted(rows, key=lambda row: row.name)
