"""Ceph: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, Number, String, perm
from . import Endpoint

FLAG = String(
    enum=(
        "nobackfill",
        "nodeep-scrub",
        "nodown",
        "noin",
        "noout",
        "norebalance",
        "norecover",
        "noscrub",
        "notieragent",
        "noup",
        "pause",
    )
)
SERVICE = String(optional=True, pattern=r"^(?:(ceph|mon|mds|osd|mgr)(\.[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)?)$")
NAME = String(optional=True, pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?$", max_length=200)
MIN_SIZE = Integer(optional=True, minimum=1, maximum=7)


TABLE: dict[str, Endpoint] = {
    "GET /cluster/ceph": Endpoint("any"),
    "GET /cluster/ceph/flags": Endpoint(perm("/", "Sys.Audit")),
    "PUT /cluster/ceph/flags": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "nobackfill": Boolean(optional=True),
            "nodeep-scrub": Boolean(optional=True),
            "nodown": Boolean(optional=True),
            "noin": Boolean(optional=True),
            "noout": Boolean(optional=True),
            "norebalance": Boolean(optional=True),
            "norecover": Boolean(optional=True),
            "noscrub": Boolean(optional=True),
            "notieragent": Boolean(optional=True),
            "noup": Boolean(optional=True),
            "pause": Boolean(optional=True),
        },
    ),
    "GET /cluster/ceph/flags/{flag}": Endpoint(perm("/", "Sys.Audit"), {"flag": FLAG}),
    "PUT /cluster/ceph/flags/{flag}": Endpoint(perm("/", "Sys.Modify"), {"flag": FLAG, "value": Boolean()}),
    "GET /cluster/ceph/metadata": Endpoint(
        perm("/", "Sys.Audit", "Datastore.Audit", any_of=True),
        {"scope": String(optional=True, enum=("all", "versions"))},
    ),
    "POST /cluster/ceph/restart-bulk": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "dry-run": Boolean(optional=True),
            "force": Boolean(optional=True),
            "only-outdated": Boolean(optional=True),
            "service-type": String(enum=("mon", "mgr", "mds", "osd")),
            "timeout": Integer(optional=True, minimum=30, maximum=1800),
        },
        only="9.2",
    ),
    "GET /cluster/ceph/status": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "GET /nodes/{node}/ceph": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True), node=False),
    "GET /nodes/{node}/ceph/cfg": Endpoint("any", node=False),
    "GET /nodes/{node}/ceph/cfg/db": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "GET /nodes/{node}/ceph/cfg/raw": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "GET /nodes/{node}/ceph/cfg/value": Endpoint(
        perm("/", "Sys.Audit"),
        {
            "config-keys": Either(
                String(
                    pattern=r"^(:?(?i:[0-9a-z\-_\.]+:[0-9a-zA-Z\-_]+))(:?[;, ](?i:[0-9a-z\-_\.]+:[0-9a-zA-Z\-_]+))*$"
                ),
                String(
                    pattern=r"^(?:(?i:[0-9a-z\-_\.]+:[0-9a-zA-Z\-_]+))(?:[;, ](?i:[0-9a-z\-_\.]+:[0-9a-zA-Z\-_]+))*$",
                    max_length=4096,
                ),
            )
        },
    ),
    "GET /nodes/{node}/ceph/cmd-safety": Endpoint(
        perm("/", "Sys.Audit"),
        {"action": String(enum=("stop", "destroy")), "id": String(), "service": String(enum=("osd", "mon", "mds"))},
    ),
    "GET /nodes/{node}/ceph/crush": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "GET /nodes/{node}/ceph/fs": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "DELETE /nodes/{node}/ceph/fs/{name}": Endpoint(
        perm("/", "Sys.Modify"),
        {"remove-pools": Boolean(optional=True), "remove-storages": Boolean(optional=True)},
        only="9.2",
    ),
    "POST /nodes/{node}/ceph/fs/{name}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "add-storage": Boolean(optional=True),
            "name": String(optional=True, pattern=r"^[^:/\s]+$"),
            "pg_num": Integer(optional=True, minimum=8, maximum=32768),
        },
    ),
    "POST /nodes/{node}/ceph/init": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "cluster-network": String(optional=True, format="CIDR", max_length=128, requires="network"),
            "disable_cephx": Boolean(optional=True),
            "min_size": MIN_SIZE,
            "network": String(optional=True, format="CIDR", max_length=128),
            "pg_bits": Integer(optional=True, minimum=6, maximum=14),
            "size": MIN_SIZE,
        },
    ),
    "GET /nodes/{node}/ceph/log": Endpoint(
        perm("/nodes/{node}", "Sys.Syslog"),
        {"limit": Integer(optional=True, minimum=0), "start": Integer(optional=True, minimum=0)},
    ),
    "GET /nodes/{node}/ceph/mds": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "DELETE /nodes/{node}/ceph/mds/{name}": Endpoint(
        perm("/", "Sys.Modify"), {"name": String(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?$")}
    ),
    "POST /nodes/{node}/ceph/mds/{name}": Endpoint(
        perm("/", "Sys.Modify"), {"hotstandby": Boolean(optional=True), "name": NAME}
    ),
    "GET /nodes/{node}/ceph/mgr": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "DELETE /nodes/{node}/ceph/mgr/{id}": Endpoint(
        perm("/", "Sys.Modify"), {"id": String(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?$")}
    ),
    "POST /nodes/{node}/ceph/mgr/{id}": Endpoint(perm("/", "Sys.Modify"), {"id": NAME}),
    "GET /nodes/{node}/ceph/mon": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "DELETE /nodes/{node}/ceph/mon/{monid}": Endpoint(
        perm("/", "Sys.Modify"), {"monid": String(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?$")}
    ),
    "POST /nodes/{node}/ceph/mon/{monid}": Endpoint(
        perm("/", "Sys.Modify"), {"mon-address": String(optional=True, format="ip-list"), "monid": NAME}
    ),
    "GET /nodes/{node}/ceph/osd": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "POST /nodes/{node}/ceph/osd": Endpoint(
        "root-only",
        {
            "crush-device-class": String(optional=True),
            "db_dev": String(optional=True),
            "db_dev_size": Number(optional=True, minimum=1, requires="db_dev"),
            "dev": String(),
            "encrypted": Boolean(optional=True),
            "osds-per-device": Integer(optional=True, minimum=1),
            "wal_dev": String(optional=True),
            "wal_dev_size": Number(optional=True, minimum=0.5, requires="wal_dev"),
        },
    ),
    "DELETE /nodes/{node}/ceph/osd/{osdid}": Endpoint(
        "root-only", {"cleanup": Boolean(optional=True), "osdid": Integer()}
    ),
    "GET /nodes/{node}/ceph/osd/{osdid}": Endpoint("any", {"osdid": Integer()}, node=False),
    "POST /nodes/{node}/ceph/osd/{osdid}/in": Endpoint(perm("/", "Sys.Modify"), {"osdid": Integer()}),
    "GET /nodes/{node}/ceph/osd/{osdid}/lv-info": Endpoint(
        perm("/", "Sys.Audit", any_of=True),
        {"osdid": Integer(), "type": String(optional=True, enum=("block", "db", "wal"))},
    ),
    "GET /nodes/{node}/ceph/osd/{osdid}/metadata": Endpoint(perm("/", "Sys.Audit", any_of=True), {"osdid": Integer()}),
    "POST /nodes/{node}/ceph/osd/{osdid}/out": Endpoint(perm("/", "Sys.Modify"), {"osdid": Integer()}),
    "POST /nodes/{node}/ceph/osd/{osdid}/scrub": Endpoint(
        perm("/", "Sys.Modify"), {"deep": Boolean(optional=True), "osdid": Integer()}
    ),
    "GET /nodes/{node}/ceph/pool": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "POST /nodes/{node}/ceph/pool": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "add_storages": Boolean(optional=True),
            "application": String(optional=True, enum=("rbd", "cephfs", "rgw")),
            "crush_rule": String(optional=True),
            "erasure-coding": String(
                optional=True,
                format={
                    "device-class": String(optional=True),
                    "failure-domain": String(optional=True),
                    "k": Integer(minimum=2),
                    "m": Integer(minimum=1),
                    "profile": String(optional=True),
                },
            ),
            "min_size": MIN_SIZE,
            "name": String(pattern=r"^[^:/\s]+$"),
            "pg_autoscale_mode": String(optional=True, enum=("on", "off", "warn")),
            "pg_num": Integer(optional=True, minimum=1, maximum=32768),
            "pg_num_min": Integer(optional=True, maximum=32768),
            "size": MIN_SIZE,
            "target_size": String(optional=True, pattern=r"^(\d+(\.\d+)?)([KMGT])?$"),
            "target_size_ratio": Number(optional=True),
        },
    ),
    "DELETE /nodes/{node}/ceph/pool/{name}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "force": Boolean(optional=True),
            "remove_ecprofile": Boolean(optional=True),
            "remove_storages": Boolean(optional=True),
        },
    ),
    "GET /nodes/{node}/ceph/pool/{name}": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True), node=False),
    "PUT /nodes/{node}/ceph/pool/{name}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "application": String(optional=True, enum=("rbd", "cephfs", "rgw")),
            "crush_rule": String(optional=True),
            "min_size": MIN_SIZE,
            "name": String(pattern=r"^[^:/\s]+$"),
            "pg_autoscale_mode": String(optional=True, enum=("on", "off", "warn")),
            "pg_num": Integer(optional=True, minimum=1, maximum=32768),
            "pg_num_min": Integer(optional=True, maximum=32768),
            "size": MIN_SIZE,
            "target_size": String(optional=True, pattern=r"^(\d+(\.\d+)?)([KMGT])?$"),
            "target_size_ratio": Number(optional=True),
        },
    ),
    "GET /nodes/{node}/ceph/pool/{name}/status": Endpoint(
        perm("/", "Sys.Audit", "Datastore.Audit", any_of=True), {"verbose": Boolean(optional=True)}
    ),
    "GET /nodes/{node}/ceph/releases": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True), only="9.2"),
    "POST /nodes/{node}/ceph/restart": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "service": Either(
                String(optional=True, pattern=r"^(?:(mon|mds|osd|mgr)(\.[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)?)$"),
                String(
                    optional=True, pattern=r"^(?:(ceph|mon|mds|osd|mgr)(\.[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)?)$"
                ),
            )
        },
    ),
    "POST /nodes/{node}/ceph/restart-bulk": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "dry-run": Boolean(optional=True),
            "force": Boolean(optional=True),
            "only-outdated": Boolean(optional=True),
            "resume": Boolean(optional=True),
            "service-type": String(enum=("osd",)),
            "set-noout": Boolean(optional=True),
            "timeout": Integer(optional=True, minimum=30, maximum=1800),
        },
        only="9.2",
    ),
    "GET /nodes/{node}/ceph/rules": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "POST /nodes/{node}/ceph/start": Endpoint(perm("/", "Sys.Modify"), {"service": SERVICE}),
    "GET /nodes/{node}/ceph/status": Endpoint(perm("/", "Sys.Audit", "Datastore.Audit", any_of=True)),
    "POST /nodes/{node}/ceph/stop": Endpoint(perm("/", "Sys.Modify"), {"service": SERVICE}),
}
