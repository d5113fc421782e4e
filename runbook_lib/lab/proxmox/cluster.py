"""The cluster as a whole: resources, status, next id, options, log, HA, backup and replication jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import lxc as lxc  # registers the containers' endpoints, which no area loads by name
from .nodes import REPLICATION_ID, figures, level
from .qemu.guest import GuestState
from .qemu.options import KEYBOARDS
from .quorum import quorate
from .routing import (
    Boolean,
    Call,
    Either,
    Encoded,
    Integer,
    Number,
    PveError,
    String,
    audited,
    encode,
    only_9,
    param_error,
    perm,
    route,
    split_list,
)
from .storage import BANDWIDTH, StorageState, usage
from .told import Ages, guest_row, guest_texts, known_at_once

if TYPE_CHECKING:
    from .state import PveState

AUDIT = perm("/", "Sys.Audit")
MODIFY = perm("/", "Sys.Modify")


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill datacenter options, HA resources, backup and replication jobs from a scenario."""
    state.datacenter = dict(section.get("datacenter") or {})
    state.areas["ha"] = {"resources": dict((section.get("ha") or {}).get("resources") or {})}
    state.areas["backup"] = dict(section.get("backup_jobs") or {})
    state.areas["replication"] = {
        name: {"id": name, "type": "local", "guest": int(name.partition("-")[0]), **job}
        for name, job in (section.get("replication") or {}).items()
    }
    state.areas["cluster_log"] = list(section.get("cluster_log") or ())


def names(*words: str, key: str = "name") -> list[dict[str, str]]:
    """An index: one row a name."""
    return [{key: word} for word in words]


# --- resources ------------------------------------------------------------------------------------


def guest_resource(state: PveState, guest: GuestState, *, pool: str | None = None) -> dict[str, Any]:
    """A guest's row: what the last broadcast said, which for a guest just made is nothing."""
    return guest_row(state, guest, Ages(state).of(guest), known_at_once(state, guest, pool))


def guest_resources(call: Call) -> list[str]:
    """The rows of all guests the caller may audit, as JSON; of pools they may not audit the rows do not speak."""
    pools = {
        vmid: pool.poolid
        for pool in call.state.pools.values()
        if call.allowed(f"/pool/{pool.poolid}", "Pool.Audit")
        for vmid in pool.vms
    }
    return guest_texts(call.state, audited(call, call.state.guests.values(), "VM.Audit"), pools)


def storage_resource(state: PveState, storage: StorageState, node: str) -> dict[str, Any]:
    """A storage's row on one node."""
    row: dict[str, Any] = {
        "id": f"storage/{node}/{storage.storage}",
        "type": "storage",
        "storage": storage.storage,
        "node": node,
        "plugintype": storage.type,
        "content": ",".join(storage.content),
        "shared": int(storage.shared),
        "status": "unknown",
    }
    if state.nodes[node].online and storage.active(node):
        total, used, _ = usage(state, storage, node)
        row |= {"status": "available", "disk": used, "maxdisk": total}
    return row


def node_resource(call: Call, name: str) -> dict[str, Any]:
    """A node's row; figures only for those who may audit it."""
    node = call.state.nodes[name]
    row: dict[str, Any] = {
        "id": f"node/{name}",
        "type": "node",
        "node": name,
        "status": "online" if node.online else "offline",
        "level": level(node),
        "cgroup-mode": 2,
    }
    if call.allowed(f"/nodes/{name}", "Sys.Audit"):
        known = figures(call.state, node)
        row |= known if node.online else {key: known[key] for key in ("maxcpu", "maxmem", "maxdisk")}
    return row


@route(
    "GET",
    "/cluster/resources",
    params={"type": String(optional=True, enum=("vm", "storage", "node", "sdn"))},
    permission="any",
)
def resources(call: Call) -> Encoded:
    """Everything the caller may see, as of the last broadcast."""
    state, kind = call.state, call.params.get("type")
    rows: list[dict[str, Any]] = []
    if kind is None:
        rows += [
            {"id": f"/pool/{pool.poolid}", "type": "pool", "pool": pool.poolid}
            for pool in state.pools.values()
            if call.allowed(f"/pool/{pool.poolid}", "Pool.Audit")
        ]
    guests = guest_resources(call) if kind in (None, "vm") else []
    if kind in (None, "node"):
        rows += [node_resource(call, name) for name in state.nodes]
    if kind in (None, "storage"):
        for storage in state.storages.values():
            if storage.disable or not call.allowed(
                f"/storage/{storage.storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True
            ):
                continue
            rows += [storage_resource(state, storage, node) for node in state.nodes if storage.on(node)]
    if kind in (None, "sdn") and call.allowed("/sdn/zones/localnetwork", "SDN.Audit", "SDN.Use", any_of=True):
        rows += [zone_resource(call, name) for name in state.nodes]
    return Encoded.rows([*guests, *(encode(row) for row in rows)])


def zone_resource(call: Call, node: str) -> dict[str, Any]:
    """The row of a node's plain bridges, which count as the zone `localnetwork`."""
    if call.flavour == "8.4":
        return {"id": f"sdn/{node}/localnetwork", "type": "sdn", "sdn": "localnetwork", "node": node, "status": "ok"}
    return {
        "id": f"network/{node}/zone/localnetwork",
        "type": "network",
        "network": "localnetwork",
        "network-type": "zone",
        "node": node,
        "status": "ok",
    }


@route("GET", "/cluster", permission="any")
def index(call: Call) -> list[dict[str, str]]:
    """The names below cluster."""
    words = [
        "acme",
        "backup",
        "backup-info",
        "ceph",
        "config",
        "firewall",
        "ha",
        "jobs",
        "log",
        "mapping",
        "metrics",
        "notifications",
        "nextid",
        "options",
        "replication",
        "resources",
        "status",
        "tasks",
        "sdn",
    ]
    return names(*(words if call.flavour == "8.4" else sorted([*words, "bulk-action", "qemu"])))


# --- status ---------------------------------------------------------------------------------------


@route("GET", "/cluster/status", permission=AUDIT)
def status(call: Call) -> list[dict[str, Any]]:
    """The cluster's entry (none on a standalone node) and one for each node."""
    state = call.state
    rows: list[dict[str, Any]] = []
    if state.cluster_name is not None:
        rows.append(
            {
                "type": "cluster",
                "id": "cluster",
                "name": state.cluster_name,
                "version": len(state.nodes),
                "nodes": len(state.nodes),
                "quorate": int(quorate(state)),
            }
        )
    rows += [
        {
            "type": "node",
            "id": f"node/{node.name}",
            "name": node.name,
            "nodeid": node.nodeid,
            "ip": node.ip,
            "local": int(node.name == state.local_node),
            "online": int(node.online),
            "level": level(node),
        }
        for node in state.nodes.values()
    ]
    return rows


@route(
    "GET",
    "/cluster/nextid",
    params={"vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999)},
    permission="any",
)
def next_id(call: Call) -> str:
    """The first free id as text; with `vmid` that id when it is free."""
    wanted = call.params.get("vmid")
    if wanted is not None:
        if wanted in call.state.guests:
            raise param_error({"vmid": f"VM {wanted} already exists"})
        return str(wanted)
    limits = dict(
        part.split("=", 1) for part in str(call.state.datacenter.get("next-id", "")).split(",") if "=" in part
    )
    lower, upper = int(limits.get("lower", 100)), int(limits.get("upper", 1_000_000))
    for number in range(lower, upper):
        if number not in call.state.guests:
            return str(number)
    raise PveError(500, f"unable to get any free VMID in range [{lower}, {upper - 1}]")


_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9_\-+.]*"
_COLOUR = rf"{_TAG}:[0-9a-fA-F]{{6}}(:[0-9a-fA-F]{{6}})?"
_OFTEN = String(optional=True, enum=("always", "never"))
_FRACTION = Number(optional=True, minimum=0, maximum=100, requires="ha-auto-rebalance")
_SCHEDULING = {"ha-rebalance-on-start": Boolean(optional=True)}
_NETWORK = {
    "type": String(enum=("secure", "insecure"), default_key=True),
    "network": String(optional=True, format="CIDR"),
}
LANGUAGES = (
    "ar", "ca", "da", "de", "en", "es", "eu", "fa", "fr", "hr", "he", "it", "ja", "ka", "kr", "nb", "nl", "nn", "pl",
    "pt_BR", "ru", "sl", "sv", "tr", "ukr", "zh_CN", "zh_TW",
)  # fmt: skip
OPTIONS: dict[str, Any] = {
    "bwlimit": String(optional=True, format=BANDWIDTH),
    "consent-text": String(optional=True, max_length=65536),
    "console": String(optional=True, enum=("applet", "vv", "html5", "xtermjs")),
    "crs": Either(
        String(optional=True, format={**_SCHEDULING, "ha": String(optional=True, enum=("basic", "static"))}),
        String(
            optional=True,
            format={
                **_SCHEDULING,
                "ha": String(optional=True, enum=("basic", "static", "dynamic")),
                "ha-auto-rebalance": Boolean(optional=True),
                "ha-auto-rebalance-hold-duration": Number(optional=True, minimum=0, requires="ha-auto-rebalance"),
                "ha-auto-rebalance-margin": _FRACTION,
                "ha-auto-rebalance-method": String(
                    optional=True, enum=("bruteforce", "topsis"), requires="ha-auto-rebalance"
                ),
                "ha-auto-rebalance-threshold": _FRACTION,
            },
        ),
    ),
    "description": String(optional=True, max_length=65536),
    "email_from": String(optional=True, format="email-opt"),
    "fencing": String(optional=True, enum=("watchdog", "hardware", "both")),
    "ha": String(
        optional=True,
        format={"shutdown_policy": String(enum=("freeze", "failover", "conditional", "migrate"))},
    ),
    "http_proxy": String(optional=True, pattern=r"^http://.*$"),
    "keyboard": String(optional=True, enum=KEYBOARDS),
    "language": String(optional=True, enum=LANGUAGES),
    "location": only_9(String(optional=True)),
    "mac_prefix": String(optional=True, format="mac-prefix"),
    "migration": String(optional=True, format=_NETWORK),
    "migration_unsecure": Boolean(optional=True),
    "next-id": String(optional=True, format={"lower": Integer(optional=True), "upper": Integer(optional=True)}),
    "notify": String(
        optional=True,
        format={
            "fencing": _OFTEN,
            "replication": _OFTEN,
            "package-updates": String(optional=True, enum=("auto", "always", "never")),
            **{f"target-{word}": String(optional=True) for word in ("fencing", "package-updates", "replication")},
        },
    ),
    "registered-tags": String(optional=True, pattern=rf"^({_TAG};)*{_TAG}$"),
    "replication": only_9(String(optional=True, format=_NETWORK)),
    "tag-style": String(
        optional=True,
        format={
            "case-sensitive": Boolean(optional=True),
            "color-map": String(optional=True, pattern=rf"^{_COLOUR}(;{_COLOUR})*$"),
            "ordering": String(optional=True, enum=("config", "alphabetical")),
            "shape": String(optional=True, enum=("full", "circle", "dense", "none")),
        },
    ),
    "u2f": String(optional=True, format={"appid": String(optional=True), "origin": String(optional=True)}),
    "user-tag-access": String(
        optional=True,
        format={
            "user-allow": String(optional=True, enum=("none", "list", "existing", "free")),
            "user-allow-list": String(optional=True, pattern=rf"^{_TAG}(;{_TAG})*$"),
        },
    ),
    "webauthn": String(
        optional=True,
        format={
            "allow-subdomains": Boolean(optional=True),
            **{word: String(optional=True) for word in ("id", "origin", "rp")},
        },
    ),
}


@route("GET", "/cluster/options", permission="any")
def options(call: Call) -> dict[str, Any]:
    """The datacenter options; few of them without Sys.Audit."""
    shown: dict[str, Any] = {"mac_prefix": "BC:24:11", "description": "", **call.state.datacenter}
    shown["allowed-tags"] = split_list(str(call.state.datacenter.get("registered-tags", "")))
    if not call.allowed("/", "Sys.Audit"):
        visible = ("console", "tag-style", "allowed-tags", "user-tag-access")
        shown = {key: value for key, value in shown.items() if key in visible}
    return shown


@route(
    "PUT",
    "/cluster/options",
    params={
        **OPTIONS,
        "max_workers": Integer(optional=True, minimum=1),
        "delete": String(optional=True, format="pve-configid-list"),
    },
    permission=MODIFY,
)
def set_options(call: Call) -> None:
    """Nothing; datacenter.cfg is written."""
    for key in split_list(call.params.get("delete", "")):
        call.state.datacenter.pop(key, None)
    call.state.datacenter.update({key: value for key, value in call.params.items() if key != "delete"})


@route("GET", "/cluster/log", params={"max": Integer(optional=True, minimum=1)}, permission="any")
def log(call: Call) -> list[dict[str, Any]]:
    """The cluster's log, newest first: task starts and ends, which others see only with Sys.Syslog."""
    rows: list[dict[str, Any]] = []
    everyone = call.allowed("/", "Sys.Syslog")
    entries = []
    for task in call.state.tasks:
        entries.append((task.starttime, task.node, task.user, f"starting task {task.upid}", task.pid))
        if not task.running:
            line = f"end task {task.upid} {task.exitstatus}"
            entries.append((int(task.endtime or 0), task.node, task.user, line, task.pid))
    for number, (moment, node, user, line, pid) in enumerate(sorted(entries, key=lambda e: e[0]), 1):
        if not everyone and (call.auth is None or user.partition("!")[0] != call.auth.user):
            continue
        rows.append(
            {
                "id": f"{number}:{node}",
                "uid": str(number),
                "node": node,
                "pid": pid,
                "pri": 6,
                "tag": "pvedaemon",
                "time": moment,
                "user": user,
                "msg": line,
            }
        )
    return rows[::-1][: call.params.get("max", 500)]


# --- corosync -------------------------------------------------------------------------------------


@route("GET", "/cluster/config", permission=AUDIT)
def config_index(call: Call) -> list[dict[str, str]]:
    """The names below config."""
    return names("nodes", "totem", "join", "qdevice", "apiversion")


@route("GET", "/cluster/config/nodes", permission=AUDIT)
def config_nodes(call: Call) -> list[dict[str, str]]:
    """The nodes of corosync.conf; none on a standalone node."""
    if call.state.cluster_name is None:
        return []
    return [
        {"name": n.name, "node": n.name, "nodeid": str(n.nodeid), "quorum_votes": "1", "ring0_addr": n.ip}
        for n in call.state.nodes.values()
    ]


@route("GET", "/cluster/config/qdevice", permission=AUDIT)
def qdevice(call: Call) -> dict[str, Any]:
    """The quorum device; the lab has none."""
    return {}


@route("GET", "/cluster/config/totem", permission=AUDIT)
def totem(call: Call) -> dict[str, Any] | None:
    """The totem section of corosync.conf; None on a standalone node."""
    if call.state.cluster_name is None:
        return None
    return {
        "cluster_name": call.state.cluster_name,
        "config_version": str(len(call.state.nodes)),
        "interface": {"0": {"linknumber": "0"}},
        "ip_version": "ipv4-6",
        "link_mode": "passive",
        "secauth": "on",
        "token_coefficient": "125",
        "version": "2",
    }


@route("GET", "/cluster/config/apiversion", permission=AUDIT)
def api_version(call: Call) -> str:
    """The version of the join API."""
    return "1"


# --- high availability ----------------------------------------------------------------------------


@route("GET", "/cluster/ha", permission=AUDIT)
def ha_index(call: Call) -> list[dict[str, str]]:
    """The names below ha."""
    words = ["status", "resources", "groups"] + (["rules"] if call.flavour != "8.4" else [])
    return names(*words, key="id")


@route("GET", "/cluster/ha/status", permission="any")
def ha_status_index(call: Call) -> list[dict[str, str]]:
    """The names below ha/status."""
    words = ["current", "manager_status"] + (["disarm-ha", "arm-ha"] if call.flavour != "8.4" else [])
    return names(*words)


def ha_resources(state: PveState) -> dict[str, dict[str, Any]]:
    """The resources under HA, by sid."""
    found: dict[str, dict[str, Any]] = state.areas.setdefault("ha", {}).setdefault("resources", {})
    return found


@route("GET", "/cluster/ha/status/current", permission=AUDIT)
def ha_status(call: Call) -> list[dict[str, Any]]:
    """Quorum, master and local managers, and each resource."""
    state = call.state
    local = state.local_node
    has_quorum = quorate(state)
    rows: list[dict[str, Any]] = [
        {
            "id": "quorum",
            "type": "quorum",
            "node": local,
            "quorate": int(has_quorum),
            "status": "OK" if has_quorum else "No quorum on node",
        }
    ]
    managed = ha_resources(state)
    if call.flavour != "8.4":
        armed = "armed" if managed else "standby"
        text = "armed" if managed else "standby (CRM watchdog standby)"
        rows.append({"id": "fencing", "type": "fencing", "node": local, "status": text, "armed-state": armed})
    if managed:
        rows.append({"id": "master", "type": "master", "node": local, "status": f"{local} (active)"})
        for node in state.nodes.values():
            word = "active" if node.online else "old timestamp - dead?"
            rows.append({"id": f"lrm:{node.name}", "type": "lrm", "node": node.name, "status": f"{node.name} ({word})"})
        for sid, resource in managed.items():
            guest = state.guests.get(int(sid.partition(":")[2]))
            node_name = guest.node if guest else local
            wanted = resource.get("state", "started")
            rows.append(
                {
                    "id": f"service:{sid}",
                    "type": "service",
                    "sid": sid,
                    "node": node_name,
                    "state": wanted,
                    "crm_state": wanted,
                    "request_state": wanted,
                    "status": f"{sid} ({node_name}, {wanted})",
                }
            )
    return rows


@route("GET", "/cluster/ha/status/manager_status", permission=AUDIT)
def ha_manager_status(call: Call) -> dict[str, Any]:
    """The HA manager's own view."""
    state = call.state
    nodes = {n.name: "online" if n.online else "unknown" for n in state.nodes.values()} if ha_resources(state) else {}
    return {
        "manager_status": {"node_status": nodes},
        "quorum": {"node": state.local_node, "quorate": str(int(quorate(state)))},
    }


@route(
    "GET",
    "/cluster/ha/resources",
    params={"type": String(optional=True, enum=("ct", "vm"))},
    permission=AUDIT,
)
def list_ha_resources(call: Call) -> list[dict[str, Any]]:
    """The resources under HA."""
    wanted = call.params.get("type")
    return [
        {"sid": sid, "type": sid.partition(":")[0], "state": "started", "digest": "0" * 40, **resource}
        for sid, resource in ha_resources(call.state).items()
        if wanted in (None, sid.partition(":")[0])
    ]


@route("GET", "/cluster/ha/resources/{sid}", permission=AUDIT)
def get_ha_resource(call: Call) -> dict[str, Any]:
    """One resource under HA."""
    sid = call.params["sid"]
    if sid not in ha_resources(call.state):
        raise PveError(500, f"no such resource '{sid}'")
    return {"sid": sid, "type": sid.partition(":")[0], "state": "started", **ha_resources(call.state)[sid]}


@route("GET", "/cluster/ha/groups", permission=AUDIT)
def list_ha_groups(call: Call) -> list[dict[str, Any]]:
    """The HA groups of 8; on 9 they have become rules."""
    if call.flavour != "8.4" and call.state.cluster_name is not None:
        raise PveError(500, "cannot index groups: ha groups have been migrated to rules")
    return []


@route("GET", "/cluster/ha/rules", permission=AUDIT)
def list_ha_rules(call: Call) -> list[dict[str, Any]]:
    """The HA rules of 9."""
    if call.flavour == "8.4":
        raise PveError(501, "Method 'GET /cluster/ha/rules' not implemented", newline=False)
    return []


# --- backup and replication -----------------------------------------------------------------------


@route("GET", "/cluster/backup", permission=AUDIT)
def list_backup_jobs(call: Call) -> list[dict[str, Any]]:
    """The backup jobs."""
    return [{"id": name, "type": "vzdump", **job} for name, job in call.state.areas.get("backup", {}).items()]


@route("GET", "/cluster/backup/{id}", permission=AUDIT)
def get_backup_job(call: Call) -> dict[str, Any]:
    """One backup job."""
    name = call.params["id"]
    jobs = call.state.areas.get("backup", {})
    if name not in jobs:
        raise param_error({"id": f"No such job '{name}'"})
    return {"id": name, "type": "vzdump", **jobs[name]}


@route("GET", "/cluster/backup-info", permission="root-only")
def backup_info_index(call: Call) -> list[dict[str, str]]:
    """The names below backup-info."""
    return names("not-backed-up", key="subdir")


@route("GET", "/cluster/backup-info/not-backed-up", permission=AUDIT)
def not_backed_up(call: Call) -> list[dict[str, Any]]:
    """The guests that no backup job covers."""
    covered: set[int] = set()
    for job in call.state.areas.get("backup", {}).values():
        if not job.get("enabled", 1):
            continue
        if job.get("all"):
            excluded = {int(text) for text in split_list(str(job.get("exclude", "")))}
            covered |= set(call.state.guests) - excluded
        covered |= {int(text) for text in split_list(str(job.get("vmid", "")))}
        pool = call.state.pools.get(str(job.get("pool", "")))
        covered |= set(pool.vms) if pool else set()
    rows = []
    for guest in call.state.guests.values():
        if guest.vmid not in covered:
            row: dict[str, Any] = {"vmid": guest.vmid, "type": guest.kind}
            if "name" in guest.config or "hostname" in guest.config:
                row["name"] = guest.name
            rows.append(row)
    return rows


@route("GET", "/cluster/replication", permission="any")
def list_replication(call: Call) -> list[dict[str, Any]]:
    """The replication jobs of guests the caller may audit."""
    jobs = call.state.areas.get("replication", {}).values()
    return [dict(job) for job in jobs if call.allowed(f"/vms/{job['guest']}", "VM.Audit")]


@route("GET", "/cluster/replication/{id}", permission="any")
def get_replication(call: Call) -> dict[str, Any]:
    """One replication job."""
    name = call.params["id"]
    if not re.fullmatch(REPLICATION_ID, name):
        raise param_error({"id": f"invalid format - invalid replication job id '{name}'\n"})
    job = call.state.areas.get("replication", {}).get(name)
    if job is None:
        raise PveError(500, f"no such replication job '{name}'")
    call.check(f"/vms/{job['guest']}", "VM.Audit")
    return dict(job)


# --- metrics --------------------------------------------------------------------------------------


@route("GET", "/cluster/metrics", permission="any")
def metrics_index(call: Call) -> list[dict[str, str]]:
    """The names below metrics."""
    return names("server")


@route("GET", "/cluster/metrics/server", permission=AUDIT)
def list_metric_servers(call: Call) -> list[dict[str, Any]]:
    """The external metric servers; the lab has none."""
    return []
