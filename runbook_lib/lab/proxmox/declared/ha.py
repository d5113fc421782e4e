"""High availability: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, String, only_9, perm
from . import Endpoint, Params

STATE = String(optional=True, enum=("started", "stopped", "enabled", "disabled", "ignored"))
DELETE = String(optional=True, format="pve-configid-list", max_length=4096)
SID = String(format="pve-ha-resource-or-vm-id")
COMMENT = String(optional=True, max_length=4096)
MAX_RELOCATE = Integer(optional=True, minimum=0)
GROUP = String(format="pve-configid")

AFFINITY = String(optional=True, enum=("positive", "negative"))
RULE_TYPE = String(enum=("node-affinity", "resource-affinity"))

CREATE_MIGRATE: Params = {"node": String(format="pve-node"), "sid": SID}

TABLE: dict[str, Endpoint] = {
    "GET /cluster/ha": Endpoint(perm("/", "Sys.Audit")),
    "GET /cluster/ha/groups": Endpoint(perm("/", "Sys.Audit")),
    "POST /cluster/ha/groups": Endpoint(
        perm("/", "Sys.Console"),
        {
            "comment": COMMENT,
            "group": GROUP,
            "nodes": Either(String(format="pve-ha-group-node-list"), String(format="pve-ha-node-list")),
            "nofailback": Boolean(optional=True),
            "restricted": Boolean(optional=True),
            "type": String(optional=True, enum=("group",)),
        },
    ),
    "DELETE /cluster/ha/groups/{group}": Endpoint(perm("/", "Sys.Console"), {"group": GROUP}),
    "GET /cluster/ha/groups/{group}": Endpoint(perm("/", "Sys.Audit"), {"group": GROUP}),
    "PUT /cluster/ha/groups/{group}": Endpoint(
        perm("/", "Sys.Console"),
        {
            "comment": COMMENT,
            "delete": DELETE,
            "digest": String(optional=True, max_length=64),
            "group": GROUP,
            "nodes": Either(
                String(optional=True, format="pve-ha-group-node-list"), String(optional=True, format="pve-ha-node-list")
            ),
            "nofailback": Boolean(optional=True),
            "restricted": Boolean(optional=True),
        },
    ),
    "GET /cluster/ha/resources": Endpoint(perm("/", "Sys.Audit"), {"type": String(optional=True, enum=("ct", "vm"))}),
    "POST /cluster/ha/resources": Endpoint(
        perm("/", "Sys.Console"),
        {
            "comment": COMMENT,
            "failback": only_9(Boolean(optional=True)),
            "group": String(optional=True, format="pve-configid"),
            "max_relocate": MAX_RELOCATE,
            "max_restart": MAX_RELOCATE,
            "sid": SID,
            "state": STATE,
            "type": String(optional=True, enum=("ct", "vm")),
        },
    ),
    "DELETE /cluster/ha/resources/{sid}": Endpoint(
        perm("/", "Sys.Console"), {"purge": only_9(Boolean(optional=True)), "sid": SID}
    ),
    "GET /cluster/ha/resources/{sid}": Endpoint(perm("/", "Sys.Audit"), {"sid": SID}),
    "PUT /cluster/ha/resources/{sid}": Endpoint(
        perm("/", "Sys.Console"),
        {
            "comment": COMMENT,
            "delete": DELETE,
            "digest": String(optional=True, max_length=64),
            "failback": only_9(Boolean(optional=True)),
            "group": String(optional=True, format="pve-configid"),
            "max_relocate": MAX_RELOCATE,
            "max_restart": MAX_RELOCATE,
            "sid": SID,
            "state": STATE,
        },
    ),
    "POST /cluster/ha/resources/{sid}/migrate": Endpoint(perm("/", "Sys.Console"), CREATE_MIGRATE),
    "POST /cluster/ha/resources/{sid}/relocate": Endpoint(perm("/", "Sys.Console"), CREATE_MIGRATE),
    "GET /cluster/ha/rules": Endpoint(
        perm("/", "Sys.Audit"),
        {"resource": String(optional=True), "type": String(optional=True, enum=("node-affinity", "resource-affinity"))},
        only="9.2",
    ),
    "POST /cluster/ha/rules": Endpoint(
        perm("/", "Sys.Console"),
        {
            "affinity": AFFINITY,
            "comment": COMMENT,
            "disable": Boolean(optional=True),
            "nodes": String(optional=True, format="pve-ha-node-list"),
            "resources": String(format="pve-ha-resource-id-list"),
            "rule": GROUP,
            "strict": Boolean(optional=True),
            "type": RULE_TYPE,
        },
        only="9.2",
    ),
    "DELETE /cluster/ha/rules/{rule}": Endpoint(perm("/", "Sys.Console"), {"rule": GROUP}, only="9.2"),
    "GET /cluster/ha/rules/{rule}": Endpoint(perm("/", "Sys.Audit"), {"rule": GROUP}, only="9.2"),
    "PUT /cluster/ha/rules/{rule}": Endpoint(
        perm("/", "Sys.Console"),
        {
            "affinity": AFFINITY,
            "comment": COMMENT,
            "delete": DELETE,
            "digest": String(optional=True, max_length=64),
            "disable": Boolean(optional=True),
            "nodes": String(optional=True, format="pve-ha-node-list"),
            "resources": String(optional=True, format="pve-ha-resource-id-list"),
            "rule": GROUP,
            "strict": Boolean(optional=True),
            "type": RULE_TYPE,
        },
        only="9.2",
    ),
    "GET /cluster/ha/status": Endpoint("any"),
    "POST /cluster/ha/status/arm-ha": Endpoint(perm("/", "Sys.Console"), only="9.2"),
    "GET /cluster/ha/status/current": Endpoint(perm("/", "Sys.Audit")),
    "POST /cluster/ha/status/disarm-ha": Endpoint(
        perm("/", "Sys.Console"), {"resource-mode": String(enum=("freeze", "ignore"))}, only="9.2"
    ),
    "GET /cluster/ha/status/manager_status": Endpoint(perm("/", "Sys.Audit")),
}
