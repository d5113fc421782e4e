"""Replication: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Integer, Number, String
from . import Endpoint

SCHEDULE = String(optional=True, format="pve-calendar-event", max_length=128)
ID = String(format="pve-replication-job-id")


TABLE: dict[str, Endpoint] = {
    "GET /cluster/replication": Endpoint("any"),
    "POST /cluster/replication": Endpoint(
        "any",
        {
            "comment": String(optional=True, max_length=4096),
            "disable": Boolean(optional=True),
            "id": ID,
            "rate": Number(optional=True, minimum=1),
            "remove_job": String(optional=True, enum=("local", "full")),
            "schedule": SCHEDULE,
            "source": String(optional=True, format="pve-node"),
            "target": String(format="pve-node"),
            "type": String(enum=("local",)),
        },
    ),
    "DELETE /cluster/replication/{id}": Endpoint(
        "any", {"force": Boolean(optional=True), "id": ID, "keep": Boolean(optional=True)}
    ),
    "GET /cluster/replication/{id}": Endpoint("any", {"id": ID}),
    "PUT /cluster/replication/{id}": Endpoint(
        "any",
        {
            "comment": String(optional=True, max_length=4096),
            "delete": String(optional=True, format="pve-configid-list", max_length=4096),
            "digest": String(optional=True, max_length=64),
            "disable": Boolean(optional=True),
            "id": ID,
            "rate": Number(optional=True, minimum=1),
            "remove_job": String(optional=True, enum=("local", "full")),
            "schedule": SCHEDULE,
            "source": String(optional=True, format="pve-node"),
        },
    ),
    "GET /nodes/{node}/replication": Endpoint(
        "any", {"guest": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999)}
    ),
    "GET /nodes/{node}/replication/{id}": Endpoint("any", {"id": ID}, node=False),
    "GET /nodes/{node}/replication/{id}/log": Endpoint(
        "any", {"id": ID, "limit": Integer(optional=True, minimum=0), "start": Integer(optional=True, minimum=0)}
    ),
    "POST /nodes/{node}/replication/{id}/schedule_now": Endpoint("any", {"id": ID}),
    "GET /nodes/{node}/replication/{id}/status": Endpoint("any", {"id": ID}),
}
