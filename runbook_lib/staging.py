"""What a change of a plan waits for before it is sent, and what it is filled with that nobody knew when planning.

So that one plan, approved once, can make a tenant, then pods in it, then try connections to their addresses.
`after` is a list of `{"path", "until", "seconds"}`; `fill` maps a placeholder to `[path, field]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from runbook_lib.errors import NotFound, WaitTimeout

Object = Mapping[str, Any]
NOWHERE = "192.0.2.1"
"""What stands for an address that never came to be: TEST-NET-1, where nobody answers."""


def _is_there(thing: Object | None) -> bool:
    return thing is not None and not thing["metadata"].get("deletionTimestamp")


def _is_ready(thing: Object | None) -> bool:
    rows = ((thing or {}).get("status") or {}).get("conditions") or []
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)


def _has_ended(thing: Object | None) -> bool:
    rows = ((thing or {}).get("status") or {}).get("conditions") or []
    return any(row["type"] in {"Complete", "Failed"} and row["status"] == "True" for row in rows)


def _is_running(thing: Object | None) -> bool:
    return bool(((thing or {}).get("status") or {}).get("ready")) or _has_ended(thing)


STATES: Mapping[str, Callable[[Object | None], bool]] = {
    "there": _is_there,
    "ready": _is_ready,
    "running": _is_running,
    "ended": _has_ended,
}


def prepared(kube: Any, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request as it can be sent now: everything it waits for was waited for, and its placeholders are filled.

    A thing that must be `there` and never is raises WaitTimeout. Any other state that never comes is no reason to
    stop: what was to be tried is tried, and what it comes to is the finding.
    """
    for row in request.get("after") or ():
        try:
            kube.wait(row["path"], STATES[row["until"]], float(row.get("seconds", 120)))
        except WaitTimeout:
            if row["until"] == "there":
                raise
    filling = {name: _found(kube, path, field) for name, (path, field) in (request.get("fill") or {}).items()}
    if not filling:
        return request
    text = json.dumps(request["manifest"])
    for name, value in filling.items():
        text = text.replace(f"<{name}>", value)
    return {**request, "manifest": json.loads(text)}


def _found(kube: Any, path: str, field: str) -> str:
    try:
        thing = kube.get(path)
    except NotFound:
        return NOWHERE
    if field == "ingress":
        rows = ((thing.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        return next((str(row.get("ip") or row.get("hostname")) for row in rows), NOWHERE)
    if field == "nodePort":
        return str(next((row.get("nodePort", 0) for row in thing["spec"].get("ports") or ()), 0))
    addresses = [row["ip"] for row in (thing.get("status") or {}).get("podIPs") or ()]
    wanted = [address for address in addresses if (":" in address) == (field == "IPv6")]
    return wanted[0] if wanted else NOWHERE
