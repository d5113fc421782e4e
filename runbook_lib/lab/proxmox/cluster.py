"""The cluster as a whole: resources, status, next id, options, log, corosync."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .nodes import figures_of, level
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
from .told import Ages, guest_row, guest_texts, known_at_once, warm

if TYPE_CHECKING:
    from .state import PveState

AUDIT = perm("/", "Sys.Audit")
MODIFY = perm("/", "Sys.Modify")


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill datacenter options and the log from a scenario."""
    state.datacenter = dict(section.get("datacenter") or {})
    state.areas["cluster_log"] = list(section.get("cluster_log") or ())


async def live(state: PveState) -> None:
    """Return once the first list of resources is prepared."""
    await warm(state)


def names(*words: str, key: str = "name") -> list[dict[str, str]]:
    """An index: one row a name."""
    return [{key: word} for word in words]


# --- resources ------------------------------------------------------------------------------------


def guest_resource(state: PveState, guest: GuestState, *, pool: str | None = None) -> dict[str, Any]:
    """A guest's row: what the last broadcast said, which for a guest just made is nothing."""
    return guest_row(state, guest, Ages(state).of(guest)) | known_at_once(state, guest, pool)


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


def node_resource(call: Call, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """A node's row; figures, those that it told last, only for those who may audit it."""
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
        known = figures_of(state, state.nodes.values())
        rows += [node_resource(call, name, known[name]) for name in state.nodes]
    if kind in (None, "storage"):
        for storage in state.storages.values():
            if storage.disable or not call.allowed(
                f"/storage/{storage.storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True
            ):
                continue
            rows += [storage_resource(state, storage, node) for node in state.nodes if storage.on(node)]
    if kind in (None, "sdn") and call.allowed("/sdn/zones/localnetwork", "SDN.Audit", "SDN.Use", any_of=True):
        rows += [zone_resource(call, name) for name in state.nodes]
    if kind in (None, "sdn"):
        rows += [zone_resource(call, node, zone) for node in state.nodes for zone in visible_zones(call, node)]
    return Encoded.rows([*guests, *(encode(row) for row in rows)])


def visible_zones(call: Call, node: str) -> list[str]:
    """The running SDN zones of a node that the caller may see."""
    from .sdn import zones_on  # sdn.py loads after this module

    zones = zones_on(call.state, node)
    return [name for name in zones if call.allowed(f"/sdn/zones/{name}", "SDN.Audit", "SDN.Allocate", any_of=True)]


def zone_resource(call: Call, node: str, zone: str = "localnetwork") -> dict[str, Any]:
    """The row of a zone on a node; its plain bridges count as the zone `localnetwork`."""
    status = "ok"
    if zone != "localnetwork":
        from .sdn import zone_status  # sdn.py loads after this module

        status = zone_status(call.state, zone, node)
    if call.flavour == "8.4":
        return {"id": f"sdn/{node}/{zone}", "type": "sdn", "sdn": zone, "node": node, "status": status}
    return {
        "id": f"network/{node}/zone/{zone}",
        "type": "network",
        "network": zone,
        "network-type": "zone",
        "node": node,
        "status": status,
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
            "local": int(node.name == call.answering),
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
    "location": only_9(String(optional=True, format="pve-node-location")),
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
