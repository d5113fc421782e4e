"""Ceph as far as a health check reads it: status, metadata, flags, monitors, OSDs, pools.

A site without `ceph:` in its scenario answers as a node on which Ceph was never installed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.ceph import TABLE
from .drift import drift
from .routing import Call, PveError
from .storage import parse_size

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

NOT_INSTALLED = "binary not installed: /usr/bin/ceph-mon"
FLAGS = {
    "nobackfill": "Backfilling of PGs is suspended.",
    "nodeep-scrub": "Deep Scrubbing is disabled.",
    "nodown": "OSD failure reports are being ignored, such that the monitors will not mark OSDs down.",
    "noin": "OSDs that were previously marked out will not be marked back in when they start.",
    "noout": "OSDs will not automatically be marked out after the configured interval.",
    "norebalance": "Rebalancing of PGs is suspended.",
    "norecover": "Recovery of PGs is suspended.",
    "noscrub": "Scrubbing is disabled.",
    "notieragent": "Cache tiering activity is suspended.",
    "noup": "OSDs are not allowed to start.",
    "pause": "Pauses read and writes.",
}
VERSIONS = {"8.4": "19.2.3", "9.2": "20.2.0"}
RELEASES = (
    ("octopus", "15.2"),
    ("pacific", "16.2"),
    ("quincy", "17.2"),
    ("reef", "18.2"),
    ("squid", "19.2"),
    ("tentacle", "20.2"),
)


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill Ceph from a scenario's `ceph:` — {size, used, osds_per_node, pools, down: [osd ids], health, checks}."""
    given = section.get("ceph")
    if given is None:
        return
    state.areas["ceph"] = {
        "fsid": str(given.get("fsid") or uuid.uuid5(uuid.NAMESPACE_DNS, str(state.cluster_name))),
        "size": parse_size(given.get("size", "10T")),
        "used": parse_size(given.get("used", "2T")),
        "per_node": int(given.get("osds_per_node", 2)),
        "pools": dict(given.get("pools") or {"rbd": {}}),
        "down": [int(each) for each in given.get("down") or ()],
        "health": given.get("health"),
        "checks": dict(given.get("checks") or {}),
        "flags": list(given.get("flags") or ()),
        "out": [int(each) for each in given.get("out") or ()],
        "added": [],  # OSDs made since
        "gone": [],  # and those destroyed
        "fs": list(given.get("fs") or ()),
        "daemons": {
            "mon": [{"name": name, "host": name} for name in state.nodes],
            "mgr": [{"name": name, "host": name} for name in state.nodes],
            "mds": [{"name": name, "host": name} for name in given.get("mds") or ()],
        },
    }


def ceph(state: PveState) -> dict[str, Any]:
    """What is known of Ceph, or the 500 of a node without it."""
    found: dict[str, Any] | None = state.areas.get("ceph")
    if found is None:
        raise PveError(500, NOT_INSTALLED)
    return found


def osds(state: PveState) -> list[dict[str, Any]]:
    """Every OSD with its host; those of a silent node are down."""
    area, rows = ceph(state), []
    places = [
        {"id": number * area["per_node"] + place, "host": node}
        for number, node in enumerate(state.nodes)
        for place in range(area["per_node"])
    ]
    places = [each for each in places if each["id"] not in area["gone"]] + area["added"]
    size = area["size"] // max(1, len(places))
    for each in sorted(places, key=lambda row: int(row["id"])):
        up = state.nodes[each["host"]].online and each["id"] not in area["down"]
        rows.append({**each, "up": up, "in": each["id"] not in area["out"], "size": size})
    return rows


def daemons(state: PveState, kind: str) -> list[dict[str, str]]:
    """The monitors, managers or metadata servers: their names and hosts."""
    found: list[dict[str, str]] = ceph(state)["daemons"][kind]
    return found


def health_of(state: PveState) -> dict[str, Any]:
    """HEALTH_OK, or what is wrong."""
    area = ceph(state)
    checks: dict[str, Any] = {
        name: {"severity": "HEALTH_WARN", "summary": {"message": text, "count": 1}, "detail": [], "muted": False}
        for name, text in area["checks"].items()
    }
    down = [row for row in osds(state) if not row["up"]]
    if down:
        text = f"{len(down)} osds down"
        detail = [{"message": f"osd.{row['id']} (root=default,host={row['host']}) is down"} for row in down]
        checks["OSD_DOWN"] = {
            "severity": "HEALTH_WARN",
            "summary": {"message": text, "count": len(down)},
            "detail": detail,
            "muted": False,
        }
    silent = [node.name for node in state.nodes.values() if not node.online]
    if silent:
        checks["MON_DOWN"] = {
            "severity": "HEALTH_WARN",
            "summary": {"message": f"{len(silent)}/{len(state.nodes)} mons down", "count": len(silent)},
            "detail": [],
            "muted": False,
        }
    if area["flags"]:
        text = f"{','.join(area['flags'])} flag(s) set"
        summary = {"message": text, "count": len(area["flags"])}
        checks["OSDMAP_FLAGS"] = {"severity": "HEALTH_WARN", "summary": summary, "detail": [], "muted": False}
    return {"status": area["health"] or ("HEALTH_WARN" if checks else "HEALTH_OK"), "checks": checks, "mutes": []}


def status_of(state: PveState) -> dict[str, Any]:
    """What `ceph status` says."""
    area, moment, salt = ceph(state), state.clock.now(), state.dice.salt
    rows = osds(state)
    up = sum(1 for row in rows if row["up"])
    online = [node for node in state.nodes.values() if node.online]
    pgs = 32 * len(area["pools"]) + 1
    ok = up == len(rows)
    states = [{"state_name": "active+clean" if ok else "active+undersized+degraded", "count": pgs}]
    return {
        "fsid": area["fsid"],
        "health": health_of(state),
        "election_epoch": 42,
        "quorum": [number for number, node in enumerate(state.nodes.values()) if node.online],
        "quorum_names": [node.name for node in online],
        "quorum_age": 86400,
        "monmap": {
            "epoch": 3,
            "fsid": area["fsid"],
            "mons": [
                {"name": node.name, "rank": number, "addr": f"{node.ip}:6789/0", "public_addr": f"{node.ip}:6789/0"}
                for number, node in enumerate(state.nodes.values())
            ],
        },
        "osdmap": {
            "epoch": 120,
            "num_osds": len(rows),
            "num_up_osds": up,
            "num_in_osds": sum(1 for row in rows if row["in"]),
        },
        "pgmap": {
            "pgs_by_state": states,
            "num_pgs": pgs,
            "num_pools": len(area["pools"]) + 1,
            "num_objects": area["used"] // (4 * 2**20),
            "data_bytes": area["used"] // 3,
            "bytes_used": area["used"],
            "bytes_avail": area["size"] - area["used"],
            "bytes_total": area["size"],
            "read_bytes_sec": int(drift(f"{salt}ceph/read", 4e6, moment, swing=0.5)),
            "write_bytes_sec": int(drift(f"{salt}ceph/write", 9e6, moment, swing=0.5)),
            "read_op_per_sec": int(drift(f"{salt}ceph/rops", 120, moment, swing=0.5)),
            "write_op_per_sec": int(drift(f"{salt}ceph/wops", 340, moment, swing=0.5)),
        },
        "mgrmap": {
            "available": bool(online),
            "active_name": online[0].name if online else "",
            "standbys": [{"name": node.name} for node in online[1:]],
        },
        "servicemap": {"epoch": 7, "services": {}},
        "progress_events": {},
    }


@endpoint("GET /cluster/ceph")
def cluster_index(call: Call) -> list[dict[str, str]]:
    """The names below the cluster's ceph."""
    names = (
        ["metadata", "status", "flags"] if call.flavour == "8.4" else ["flags", "metadata", "restart-bulk", "status"]
    )
    return [{"name": name} for name in names]


@endpoint("GET /cluster/ceph/status")
@endpoint("GET /nodes/{node}/ceph/status")
def status(call: Call) -> dict[str, Any]:
    """What `ceph status` says."""
    return status_of(call.state)


@endpoint("GET /cluster/ceph/metadata")
def metadata(call: Call) -> dict[str, Any]:
    """Each daemon with its version and host."""
    ceph(call.state)
    version = VERSIONS[call.flavour]
    long = f"ceph version {version} (f0a1c1e6d7a) stable"
    common = {"ceph_version": long, "ceph_version_short": version, "ceph_release": "squid"}
    nodes = list(call.state.nodes.values())
    daemons = {
        f"{node.name}@{node.name}": {**common, "name": node.name, "hostname": node.name, "addr": node.ip}
        for node in nodes
    }
    return {
        "mon": daemons,
        "mgr": daemons,
        "mds": {},
        "node": {
            node.name: {"version": {"str": version, "parts": version.split(".")}, "buildcommit": "f0a1c1e6d7a"}
            for node in nodes
        },
        "osd": [{**common, "id": row["id"], "hostname": row["host"]} for row in osds(call.state)],
        "version": {"str": version, "parts": version.split(".")},
    }


@endpoint("GET /cluster/ceph/flags")
def list_flags(call: Call) -> list[dict[str, Any]]:
    """The flags and whether each is set."""
    held = ceph(call.state)["flags"]
    return [{"name": name, "description": text, "value": int(name in held)} for name, text in FLAGS.items()]


@endpoint("GET /cluster/ceph/flags/{flag}")
def get_flag(call: Call) -> int:
    """Whether one flag is set."""
    return int(call.params["flag"] in ceph(call.state)["flags"])


@endpoint("PUT /cluster/ceph/flags/{flag}")
def set_flag(call: Call) -> None:
    """Nothing; the flag is set or not."""
    held, name = ceph(call.state)["flags"], call.params["flag"]
    if call.params["value"] and name not in held:
        held.append(name)
    elif not call.params["value"] and name in held:
        held.remove(name)


@endpoint("GET /nodes/{node}/ceph")
def index(call: Call) -> list[dict[str, str]]:
    """The names below a node's ceph."""
    names = ["cmd-safety", "cfg", "crush", "fs", "init", "log", "mds", "mgr", "mon", "osd", "pool"]
    names += [] if call.flavour == "8.4" else ["releases"]
    return [{"name": name} for name in [*names, "restart", "rules", "start", "status", "stop"]]


@endpoint("GET /nodes/{node}/ceph/releases")
def releases(call: Call) -> list[dict[str, Any]]:
    """The releases of Ceph and which can be installed."""
    return [
        {
            "release": name,
            "version": version,
            "available": int(name in ("squid", "tentacle")),
            "is-default": int(name == "tentacle"),
            "unsupported": 0,
        }
        for name, version in RELEASES
    ]


def daemon_rows(call: Call, kind: str) -> list[dict[str, Any]]:
    """One row a daemon of that kind."""
    version = VERSIONS[call.flavour]
    found = [(row["name"], call.state.nodes[row["host"]]) for row in daemons(call.state, kind)]
    return [
        {
            "name": name,
            "host": node.name,
            "addr": f"{node.ip}:6789/0",
            "state": "running" if node.online else "unknown",
            "service": 1,
            "direxists": 1,
            "ceph_version": f"ceph version {version}",
            "ceph_version_short": version,
        }
        for name, node in found
    ]


@endpoint("GET /nodes/{node}/ceph/mon")
def list_monitors(call: Call) -> list[dict[str, Any]]:
    """The monitors."""
    rows = daemon_rows(call, "mon")
    return [{**row, "rank": number, "quorum": int(row["state"] == "running")} for number, row in enumerate(rows)]


@endpoint("GET /nodes/{node}/ceph/mgr")
def list_managers(call: Call) -> list[dict[str, Any]]:
    """The managers; the first that runs is active."""
    rows = daemon_rows(call, "mgr")
    first = next((row["name"] for row in rows if row["state"] == "running"), "")
    for row in rows:
        row["state"] = "active" if row["name"] == first else "standby" if row["state"] == "running" else "unknown"
    return rows


@endpoint("GET /nodes/{node}/ceph/mds")
def list_metadata_servers(call: Call) -> list[dict[str, Any]]:
    """The metadata servers; one a file system is active."""
    rows, wanted = daemon_rows(call, "mds"), len(ceph(call.state)["fs"])
    for number, row in enumerate(rows):
        row["state"] = "up:active" if number < wanted else "up:standby"
    return rows


@endpoint("GET /nodes/{node}/ceph/fs")
def list_filesystems(call: Call) -> list[dict[str, Any]]:
    """The file systems with their pools."""
    rows = []
    for name in ceph(call.state)["fs"]:
        data = f"{name}_data"
        rows.append({"name": name, "data_pool": data, "data_pools": [data], "metadata_pool": f"{name}_metadata"})
    return rows


@endpoint("GET /nodes/{node}/ceph/osd")
def osd_tree(call: Call) -> dict[str, Any]:
    """The OSDs as a tree of hosts."""
    area = ceph(call.state)
    hosts: dict[str, list[dict[str, Any]]] = {}
    rows = osds(call.state)
    size = area["size"] // max(1, len(rows))
    share = area["used"] / area["size"] if area["size"] else 0
    version = VERSIONS[call.flavour]
    for row in rows:
        hosts.setdefault(row["host"], []).append(
            {
                "id": str(row["id"]),
                "name": f"osd.{row['id']}",
                "type": "osd",
                "status": "up" if row["up"] else "down",
                "in": int(row["in"]),
                "host": row["host"],
                "device_class": "ssd",
                "crush_weight": round(size / 2**40, 5),
                "reweight": int(row["in"]),
                "total_space": size,
                "bytes_used": int(size * share),
                "percent_used": 100 * share,
                "ceph_version": f"ceph version {version}",
                "ceph_version_short": version,
                "leaf": 1,
            }
        )
    children = [
        {"id": str(-3 - 2 * number), "name": name, "type": "host", "leaf": 0, "version": version, "children": found}
        for number, (name, found) in enumerate(hosts.items())
    ]
    root = {"id": "-1", "name": "default", "type": "root", "leaf": 0, "children": children}
    return {"root": {"leaf": 0, "children": [root]}, "flags": ",".join(area["flags"])}


@endpoint("GET /nodes/{node}/ceph/osd/{osdid}")
def osd_index(call: Call) -> list[dict[str, str]]:
    """The names below one OSD."""
    return [{"name": "metadata"}, {"name": "lv-info"}]


@endpoint("GET /nodes/{node}/ceph/pool")
def list_pools(call: Call) -> list[dict[str, Any]]:
    """The pools with their sizes."""
    area = ceph(call.state)
    rows = []
    for number, (name, given) in enumerate(area["pools"].items(), 2):
        entry = given or {}
        used = area["used"] // max(1, len(area["pools"]))
        rows.append(
            {
                "pool": number,
                "pool_name": name,
                "type": "replicated",
                "size": entry.get("size", 3),
                "min_size": entry.get("min_size", 2),
                "pg_num": entry.get("pg_num", 32),
                "pg_num_final": entry.get("pg_num", 32),
                "pg_autoscale_mode": entry.get("pg_autoscale_mode", "on"),
                "crush_rule": 0,
                "crush_rule_name": "replicated_rule",
                "application_metadata": {entry.get("application", "rbd"): {}},
                "bytes_used": used,
                "percent_used": used / area["size"] if area["size"] else 0,
            }
        )
    return rows


@endpoint("GET /nodes/{node}/ceph/pool/{name}")
def pool_index(call: Call) -> list[dict[str, str]]:
    """The names below one pool."""
    return [{"name": "status"}]


@endpoint("GET /nodes/{node}/ceph/pool/{name}/status")
def pool_status(call: Call) -> dict[str, Any]:
    """One pool."""
    for row in list_pools(call):
        if row["pool_name"] == call.params["name"]:
            return {"id": row["pool"], "name": row["pool_name"], "application": "rbd", **row}
    raise PveError(500, f"error with 'osd pool get': pool '{call.params['name']}' does not exist")


@endpoint("GET /nodes/{node}/ceph/rules")
def rules(call: Call) -> list[dict[str, str]]:
    """The CRUSH rules."""
    ceph(call.state)
    return [{"name": "replicated_rule"}]


@endpoint("GET /nodes/{node}/ceph/cfg")
def config_index(call: Call) -> list[dict[str, str]]:
    """The names below cfg."""
    return [{"name": "raw"}, {"name": "db"}, {"name": "value"}]


@endpoint("GET /nodes/{node}/ceph/cfg/raw")
def raw_config(call: Call) -> str:
    """ceph.conf."""
    nodes = call.state.nodes.values()
    hosts = " ".join(node.ip for node in nodes)
    return f"[global]\n\tfsid = {ceph(call.state)['fsid']}\n\tmon_host = {hosts}\n\tosd_pool_default_size = 3\n"


@endpoint("GET /nodes/{node}/ceph/cfg/db")
def config_database(call: Call) -> list[dict[str, Any]]:
    """The monitors' configuration database."""
    ceph(call.state)
    row = {"section": "global", "name": "osd_pool_default_pg_autoscale_mode", "value": "on", "level": "advanced"}
    return [{**row, "mask": "", "can_update_at_runtime": 1}]


@endpoint("GET /nodes/{node}/ceph/crush")
def crush(call: Call) -> str:
    """The CRUSH map."""
    ceph(call.state)
    return "# begin crush map\ntunable chooseleaf_stable 1\n\n# end crush map\n"


@endpoint("GET /nodes/{node}/ceph/log")
def log(call: Call) -> list[dict[str, Any]]:
    """The cluster's log."""
    health = health_of(call.state)["status"]
    call.extra["total"] = 1
    return [{"n": 1, "t": f"mon.{call.state.local_node} (mon.0) 1 : cluster [INF] overall {health}"}]
