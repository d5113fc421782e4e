"""Actions on many guests at once."""

from __future__ import annotations

from ..routing import Array, Boolean, Integer, String
from . import Endpoint

TABLE: dict[str, Endpoint] = {
    "GET /cluster/bulk-action": Endpoint("any", only="9.2"),
    "GET /cluster/bulk-action/guest": Endpoint("any", only="9.2"),
    "POST /cluster/bulk-action/guest/migrate": Endpoint(
        "any",
        {
            "max-workers": Integer(optional=True, minimum=1, maximum=64),
            "maxworkers": Integer(optional=True, minimum=1, maximum=64),
            "online": Boolean(optional=True),
            "target": String(format="pve-node"),
            "vms": Array(optional=True),
            "with-local-disks": Boolean(optional=True),
        },
        only="9.2",
    ),
    "POST /cluster/bulk-action/guest/shutdown": Endpoint(
        "any",
        {
            "force-stop": Boolean(optional=True),
            "max-workers": Integer(optional=True, minimum=1, maximum=64),
            "maxworkers": Integer(optional=True, minimum=1, maximum=64),
            "timeout": Integer(optional=True),
            "vms": Array(optional=True),
        },
        only="9.2",
    ),
    "POST /cluster/bulk-action/guest/start": Endpoint(
        "any",
        {
            "max-workers": Integer(optional=True, minimum=1, maximum=64),
            "maxworkers": Integer(optional=True, minimum=1, maximum=64),
            "timeout": Integer(optional=True),
            "vms": Array(optional=True),
        },
        only="9.2",
    ),
    "POST /cluster/bulk-action/guest/suspend": Endpoint(
        "any",
        {
            "max-workers": Integer(optional=True, minimum=1, maximum=64),
            "maxworkers": Integer(optional=True, minimum=1, maximum=64),
            "statestorage": String(optional=True, format="pve-storage-id", requires="to-disk"),
            "to-disk": Boolean(optional=True),
            "vms": Array(optional=True),
        },
        only="9.2",
    ),
}
