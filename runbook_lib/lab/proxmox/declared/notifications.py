"""Notifications: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Array, Boolean, Integer, String, all_of, one_of, perm
from . import Endpoint

DIGEST = String(optional=True, max_length=64)
NAME = String(format="pve-configid")


TABLE: dict[str, Endpoint] = {
    "GET /cluster/notifications": Endpoint("any"),
    "GET /cluster/notifications/endpoints": Endpoint("any"),
    "GET /cluster/notifications/endpoints/gotify": Endpoint(perm("/mapping/notifications", "Mapping.Audit")),
    "POST /cluster/notifications/endpoints/gotify": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "comment": String(optional=True),
            "disable": Boolean(optional=True),
            "name": NAME,
            "server": String(),
            "token": String(),
        },
    ),
    "DELETE /cluster/notifications/endpoints/gotify/{name}": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"), {"name": NAME}
    ),
    "GET /cluster/notifications/endpoints/gotify/{name}": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit")),
        {"name": NAME},
    ),
    "PUT /cluster/notifications/endpoints/gotify/{name}": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "comment": String(optional=True),
            "delete": Array(optional=True),
            "digest": DIGEST,
            "disable": Boolean(optional=True),
            "name": NAME,
            "server": String(optional=True),
            "token": String(optional=True),
        },
    ),
    "GET /cluster/notifications/endpoints/sendmail": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit"))
    ),
    "POST /cluster/notifications/endpoints/sendmail": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "author": String(optional=True),
            "comment": String(optional=True),
            "disable": Boolean(optional=True),
            "from-address": String(optional=True),
            "mailto": Array(optional=True),
            "mailto-user": Array(optional=True),
            "name": NAME,
        },
    ),
    "DELETE /cluster/notifications/endpoints/sendmail/{name}": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"), {"name": NAME}
    ),
    "GET /cluster/notifications/endpoints/sendmail/{name}": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit")),
        {"name": NAME},
    ),
    "PUT /cluster/notifications/endpoints/sendmail/{name}": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "author": String(optional=True),
            "comment": String(optional=True),
            "delete": Array(optional=True),
            "digest": DIGEST,
            "disable": Boolean(optional=True),
            "from-address": String(optional=True),
            "mailto": Array(optional=True),
            "mailto-user": Array(optional=True),
            "name": NAME,
        },
    ),
    "GET /cluster/notifications/endpoints/smtp": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit"))
    ),
    "POST /cluster/notifications/endpoints/smtp": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "author": String(optional=True),
            "comment": String(optional=True),
            "disable": Boolean(optional=True),
            "from-address": String(),
            "mailto": Array(optional=True),
            "mailto-user": Array(optional=True),
            "mode": String(optional=True, enum=("insecure", "starttls", "tls")),
            "name": NAME,
            "password": String(optional=True),
            "port": Integer(optional=True),
            "server": String(),
            "username": String(optional=True),
        },
    ),
    "DELETE /cluster/notifications/endpoints/smtp/{name}": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"), {"name": NAME}
    ),
    "GET /cluster/notifications/endpoints/smtp/{name}": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit")),
        {"name": NAME},
    ),
    "PUT /cluster/notifications/endpoints/smtp/{name}": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "author": String(optional=True),
            "comment": String(optional=True),
            "delete": Array(optional=True),
            "digest": DIGEST,
            "disable": Boolean(optional=True),
            "from-address": String(optional=True),
            "mailto": Array(optional=True),
            "mailto-user": Array(optional=True),
            "mode": String(optional=True, enum=("insecure", "starttls", "tls")),
            "name": NAME,
            "password": String(optional=True),
            "port": Integer(optional=True),
            "server": String(optional=True),
            "username": String(optional=True),
        },
    ),
    "GET /cluster/notifications/endpoints/webhook": Endpoint(perm("/mapping/notifications", "Mapping.Audit")),
    "POST /cluster/notifications/endpoints/webhook": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "body": String(optional=True),
            "comment": String(optional=True),
            "disable": Boolean(optional=True),
            "header": Array(optional=True),
            "method": String(enum=("post", "put", "get")),
            "name": NAME,
            "secret": Array(optional=True),
            "url": String(),
        },
    ),
    "DELETE /cluster/notifications/endpoints/webhook/{name}": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"), {"name": NAME}
    ),
    "GET /cluster/notifications/endpoints/webhook/{name}": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit")),
        {"name": NAME},
    ),
    "PUT /cluster/notifications/endpoints/webhook/{name}": Endpoint(
        all_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/", "Sys.AccessNetwork")),
        ),
        {
            "body": String(optional=True),
            "comment": String(optional=True),
            "delete": Array(optional=True),
            "digest": DIGEST,
            "disable": Boolean(optional=True),
            "header": Array(optional=True),
            "method": String(optional=True, enum=("post", "put", "get")),
            "name": NAME,
            "secret": Array(optional=True),
            "url": String(optional=True),
        },
    ),
    "GET /cluster/notifications/matcher-field-values": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit"))
    ),
    "GET /cluster/notifications/matcher-fields": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit"))
    ),
    "GET /cluster/notifications/matchers": Endpoint(
        one_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            perm("/mapping/notifications", "Mapping.Audit"),
            perm("/mapping/notifications", "Mapping.Use"),
        )
    ),
    "POST /cluster/notifications/matchers": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"),
        {
            "comment": String(optional=True),
            "disable": Boolean(optional=True),
            "invert-match": Boolean(optional=True),
            "match-calendar": Array(optional=True),
            "match-field": Array(optional=True),
            "match-severity": Array(optional=True),
            "mode": String(optional=True, enum=("all", "any")),
            "name": NAME,
            "target": Array(optional=True),
        },
    ),
    "DELETE /cluster/notifications/matchers/{name}": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"), {"name": NAME}
    ),
    "GET /cluster/notifications/matchers/{name}": Endpoint(
        one_of(perm("/mapping/notifications", "Mapping.Modify"), perm("/mapping/notifications", "Mapping.Audit")),
        {"name": NAME},
    ),
    "PUT /cluster/notifications/matchers/{name}": Endpoint(
        perm("/mapping/notifications", "Mapping.Modify"),
        {
            "comment": String(optional=True),
            "delete": Array(optional=True),
            "digest": DIGEST,
            "disable": Boolean(optional=True),
            "invert-match": Boolean(optional=True),
            "match-calendar": Array(optional=True),
            "match-field": Array(optional=True),
            "match-severity": Array(optional=True),
            "mode": String(optional=True, enum=("all", "any")),
            "name": NAME,
            "target": Array(optional=True),
        },
    ),
    "GET /cluster/notifications/targets": Endpoint(
        one_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            perm("/mapping/notifications", "Mapping.Audit"),
            perm("/mapping/notifications", "Mapping.Use"),
        )
    ),
    "POST /cluster/notifications/targets/{name}/test": Endpoint(
        one_of(
            perm("/mapping/notifications", "Mapping.Modify"),
            perm("/mapping/notifications", "Mapping.Audit"),
            perm("/mapping/notifications", "Mapping.Use"),
        ),
        {"name": NAME},
    ),
}
