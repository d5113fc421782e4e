"""Clusters made, joined and left."""

from __future__ import annotations

from ..routing import Boolean, Integer, String, only_9, perm
from . import Endpoint

TABLE: dict[str, Endpoint] = {
    "POST /cluster/config": Endpoint(
        "any",
        {
            "clustername": String(format="pve-node", max_length=15),
            "link[n]": String(
                optional=True,
                format={
                    "address": String(format="address"),
                    "priority": Integer(optional=True, minimum=0, maximum=255),
                },
                count=8,
            ),
            "nodeid": Integer(optional=True, minimum=1),
            "token-coefficient": only_9(Integer(optional=True, minimum=0)),
            "votes": Integer(optional=True, minimum=1),
        },
    ),
    "GET /cluster/config/join": Endpoint(perm("/", "Sys.Audit"), {"node": String(optional=True, format="pve-node")}),
    "POST /cluster/config/join": Endpoint(
        "any",
        {
            "fingerprint": String(pattern="^([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}$"),
            "force": Boolean(optional=True),
            "hostname": String(),
            "link[n]": String(
                optional=True,
                format={
                    "address": String(format="address"),
                    "priority": Integer(optional=True, minimum=0, maximum=255),
                },
                count=8,
            ),
            "nodeid": Integer(optional=True, minimum=1),
            "password": String(max_length=128),
            "votes": Integer(optional=True, minimum=0),
        },
    ),
    "DELETE /cluster/config/nodes/{node}": Endpoint("any"),
    "POST /cluster/config/nodes/{node}": Endpoint(
        "any",
        {
            "apiversion": Integer(optional=True),
            "force": Boolean(optional=True),
            "link[n]": String(
                optional=True,
                format={
                    "address": String(format="address"),
                    "priority": Integer(optional=True, minimum=0, maximum=255),
                },
                count=8,
            ),
            "new_node_ip": String(optional=True, format="ip"),
            "nodeid": Integer(optional=True, minimum=1),
            "votes": Integer(optional=True, minimum=0),
        },
    ),
}
