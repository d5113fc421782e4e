"""Software-defined networks: zones, vnets, subnets, controllers, ipams, dns and fabrics, and their application.

Every edit waits in the configuration files until PUT /cluster/sdn copies them to the running configuration and
reloads the network of every node; `pending=1` shows the difference. On 9 one caller may hold a lock meanwhile.
"""

from __future__ import annotations

import copy
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.sdn import TABLE
from .network import networks
from .quorum import require_quorum
from .routing import Call, PveError, param_error, split_list
from .schema import format_check
from .sections import Section, Sections, check_digest, digest_of, edit, stored
from .worker import TaskContext

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

COMMITTED = ("zones", "vnets", "subnets", "controllers", "fabrics", "fabric_nodes")
"""What PUT /cluster/sdn puts in force; ipams and dns servers are in force at once."""
LOCKED = "invalid lock token provided! at /usr/share/perl5/PVE/Network/SDN.pm line 305."
ZONE_COMMON = ("nodes", "ipam", "mtu", "dns", "reversedns", "dnszone", "dhcp")


@dataclass(frozen=True)
class Kind:
    """What a section of one type must have and may have."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """Every option it may have."""
        return self.required + self.optional


ZONES = {
    "simple": Kind(optional=ZONE_COMMON),
    "vlan": Kind(("bridge",), (*ZONE_COMMON, "bridge-disable-mac-learning")),
    "qinq": Kind(("tag", "bridge"), (*ZONE_COMMON, "vlan-protocol", "bridge-disable-mac-learning")),
    "vxlan": Kind((), (*ZONE_COMMON, "peers", "vxlan-port", "fabric")),
    "evpn": Kind(
        ("vrf-vxlan", "controller"),
        (
            *ZONE_COMMON,
            "exitnodes",
            "exitnodes-local-routing",
            "exitnodes-primary",
            "advertise-subnets",
            "disable-arp-nd-suppression",
            "rt-import",
            "mac",
            "vxlan-port",
        ),
    ),
    "faucet": Kind(("dp-id", "controller"), ("nodes", "mtu")),
}
CONTROLLERS = {
    "evpn": Kind(("asn",), ("peers", "fabric")),
    "bgp": Kind(("node", "asn"), ("peers", "bgp-multipath-as-path-relax", "ebgp", "ebgp-multihop", "loopback")),
    "isis": Kind(("isis-domain", "isis-ifaces", "isis-net", "node"), ("loopback",)),
    "faucet": Kind(("node",)),
}
DNS = {"powerdns": Kind(("url", "key"), ("ttl", "reversemaskv6", "reversev6mask", "fingerprint"))}
IPAMS = {
    "pve": Kind(),
    "netbox": Kind(("url", "token"), ("fingerprint",)),
    "phpipam": Kind(("url", "token", "section"), ("fingerprint",)),
}


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill SDN from a scenario's `sdn:` — zones, vnets, subnets … by id; all of it applied unless under `pending:`."""
    given = section.get("sdn") or {}
    area = sdn(state)
    for plural in (*COMMITTED, "dns", "ipams"):
        area["config"][plural].update({name: dict(entry) for name, entry in (given.get(plural) or {}).items()})
    for vnet in area["config"]["vnets"].values():
        vnet.setdefault("type", "vnet")
    commit(state)
    plug(state)
    for plural, entries in (given.get("pending") or {}).items():
        area["config"][plural].update({name: dict(entry) for name, entry in entries.items()})


def sdn(state: PveState) -> dict[str, Any]:
    """What is configured, what runs, who holds the lock, and the addresses the built-in ipam gave."""
    area: dict[str, Any] = state.areas.setdefault("sdn", {})
    if not area:
        config: dict[str, Sections] = {plural: {} for plural in (*COMMITTED, "dns", "ipams")}
        config["ipams"]["pve"] = {"type": "pve"}
        area |= {"config": config, "running": {plural: {} for plural in COMMITTED}, "lock": None, "ips": []}
    return area


def config(state: PveState, plural: str) -> Sections:
    """The configured sections of one kind."""
    found: Sections = sdn(state)["config"][plural]
    return found


def commit(state: PveState) -> None:
    """Make what is configured the running configuration."""
    area = sdn(state)
    area["running"] = {plural: copy.deepcopy(area["config"][plural]) for plural in COMMITTED}


def plug(state: PveState) -> None:
    """Let the bridges of the running vnets exist, so that guests can be plugged into them."""
    state.areas["vnets"] = sorted(sdn(state)["running"]["vnets"])


# --- formats --------------------------------------------------------------------------------------


def _identifier(kind: str, pattern: str = r"[a-z][a-z0-9]*[a-z0-9]", limit: int = 8) -> None:
    @format_check(f"pve-sdn-{kind}-id")
    def check(value: str) -> None:
        if not re.fullmatch(pattern, value, re.IGNORECASE):
            raise ValueError(f"{kind} ID '{value}' contains illegal characters\n")
        if len(value) > limit:
            raise ValueError(f"{kind} ID '{value}' can't be more length than {limit} characters\n")


_identifier("zone")
_identifier("vnet")
_identifier("controller", r"[a-z][a-z0-9_-]*[a-z0-9]", 64)
_identifier("dns", limit=10**6)
_identifier("ipam", limit=10**6)


@format_check("pve-sdn-subnet-id")
def _subnet_id(value: str) -> None:
    network = value if "/" in value else "/".join(value.split("-")[1:3])
    try:
        ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise ValueError("value does not look like a valid CIDR network\n") from None
    if "/" not in network:
        raise ValueError("value does not look like a valid CIDR network\n")


# --- lock and pending -----------------------------------------------------------------------------


def check_lock(call: Call, failed: str) -> None:
    """Nothing, or the 500 of a write while someone else holds the lock."""
    held = sdn(call.state)["lock"]
    if held and call.params.get("lock-token") != held:
        raise PveError(500, f"{failed}: {LOCKED}" if failed else LOCKED)
    require_quorum(call.state, "cluster not ready - no quorum?")


def inside(failed: str, errors: Mapping[str, str]) -> PveError:
    """A parameter error raised under the configuration's lock: its text becomes that of a plain 500."""
    lines = "".join(f"\n{key}: {text}" for key, text in errors.items())
    return PveError(500, f"{failed}: 400 Parameter verification failed.{lines}")


def pending(state: PveState, plural: str) -> Sections:
    """What runs, with what would change: `state` new, changed or deleted, and the new values under `pending`."""
    running: Sections = sdn(state)["running"].get(plural, {})
    wanted = config(state, plural)
    found: Sections = {}
    for name in sorted(running.keys() | wanted.keys()):
        now, then = running.get(name, {}), wanted.get(name, {})
        row: Section = dict(now)
        change = {key: then.get(key, "deleted") for key in now.keys() | then.keys() if now.get(key) != then.get(key)}
        if name not in wanted:
            row |= {"state": "deleted", "pending": {}}
        elif name not in running:
            row |= {key: then[key] for key in ("type", "vnet") if key in then}
            row |= {"state": "new", "pending": {key: value for key, value in change.items() if key not in row}}
        elif change:
            row |= {"state": "changed", "pending": change}
        found[name] = row
    return found


def edition(call: Call, plural: str) -> tuple[Sections, str | None]:
    """The sections a read asks for — configured, running or pending — and their digest."""
    if call.params.get("pending") and plural in COMMITTED:
        return pending(call.state, plural), None
    if call.params.get("running") and plural in COMMITTED:
        found: Sections = sdn(call.state)["running"][plural]
        return found, None
    return config(call.state, plural), digest_of(config(call.state, plural))


def row_of(call: Call, plural: str, key: str, name: str) -> Section:
    """One section as an answer holds it. Raises 500 when there is none."""
    sections, digest = edition(call, plural)
    if name not in sections:
        raise PveError(500, f"sdn {key} '{name}' does not exist")
    row = {**sections[name], key: name}
    return row | {"digest": digest} if digest else row


def visible(call: Call, path: str) -> bool:
    """Whether the caller may see what lies on the path."""
    return call.allowed(path, "SDN.Audit", "SDN.Allocate", any_of=True)


@endpoint("GET /cluster/sdn")
def index(call: Call) -> list[dict[str, str]]:
    """The names below sdn."""
    words = ["vnets", "zones", "controllers", "ipams", "dns"]
    return [{"id": name} for name in (words if call.flavour == "8.4" else [*words, "fabrics"])]


@endpoint("PUT /cluster/sdn")
def apply(call: Call) -> str:
    """The UPID of the reload of every node's network; what waited is the running configuration from now on."""
    state = call.state
    check_lock(call, "")
    commit(state)
    # `release-lock` has a default in the schema that the handler never sees
    if call.params.get("release-lock"):
        sdn(state)["lock"] = None

    async def work(task: TaskContext) -> None:
        for node in state.nodes.values():
            task.log(f"{node.name}: reloading network config")
            if not node.online:
                task.log(f"hostname lookup '{node.name}' failed - {node.unreachable}")
                continue
            await reload(task, node.name)
        plug(state)

    async def reload(task: TaskContext, node: str) -> None:
        network = networks(state).get(node)
        inner = state.tasks.new("srvreload", "networking", node=node, user=str(call.auth))
        await task.sleep(2)
        if network is not None and network.pending is not None:
            network.current, network.pending, network.by_hand = network.pending, None, False
        state.tasks.finish(inner, "OK")

    return call.task("reloadnetworkall", "", work, node=state.local_node)


@endpoint("GET /cluster/sdn/dry-run")
def dry_run(call: Call) -> dict[str, str]:
    """What the application would change on a node, as diffs; only the interfaces' here."""
    if call.params["node"] not in call.state.nodes:
        name = call.params["node"]
        why = "Temporary failure in name resolution"
        raise PveError(500, f"hostname lookup '{name}' failed - failed to get address info for: {name}: {why}")
    lines = [
        f"{'-' if row.get('state') == 'deleted' else '+'}auto {name}"
        for name, row in pending(call.state, "vnets").items()
        if row.get("state")
    ]
    return {"frr-diff": "", "interfaces-diff": "\n".join(lines)}


@endpoint("POST /cluster/sdn/lock")
def take_lock(call: Call) -> str:
    """The token that every further write has to carry."""
    area = sdn(call.state)
    if area["lock"]:
        raise PveError(500, "SDN configuration has already been locked!")
    waiting = any(row.get("state") for plural in COMMITTED for row in pending(call.state, plural).values())
    if waiting and not call.params.get("allow-pending"):
        raise PveError(500, "SDN configuration has pending changes!")
    area["lock"] = call.state.dice.hex("sdn/lock")
    return str(area["lock"])


@endpoint("DELETE /cluster/sdn/lock")
def release_lock(call: Call) -> None:
    """Nothing; whoever comes next may write."""
    area = sdn(call.state)
    if area["lock"] and not call.params.get("force") and call.params.get("lock-token") != area["lock"]:
        raise PveError(500, LOCKED)
    area["lock"] = None


@endpoint("POST /cluster/sdn/rollback")
def rollback(call: Call) -> None:
    """Nothing; what waited is forgotten."""
    check_lock(call, "")
    area = sdn(call.state)
    area["config"] |= copy.deepcopy(area["running"])
    if call.params.get("release-lock"):
        area["lock"] = None


# --- sections of every kind -----------------------------------------------------------------------

Check = Callable[[Call, str, Section, str], None]


def no_check(call: Call, name: str, section: Section, failed: str) -> None:
    """Nothing: sections of this kind refer to nothing else."""


@dataclass(frozen=True)
class Family:
    """One kind of objects with the usual five endpoints: zones, controllers, dns, ipams."""

    plural: str
    key: str
    kinds: Mapping[str, Kind]
    check: Check = no_check
    in_use: Check = no_check


def complete(family: Family, kind: str, given: Section) -> None:
    """Nothing, or the 500 of an option that is missing or does not belong to the type."""
    known = family.kinds[kind]
    for key in given:
        if key not in known.options and key != "type":
            raise PveError(500, f"unexpected property '{key}'")
    for key in known.required:
        if key not in given:
            raise PveError(500, f"missing value for required option '{key}'")


def family_endpoints(family: Family) -> None:
    """Nothing; the five endpoints of a family are registered."""
    plural, key = family.plural, family.key
    base, one = f"/cluster/sdn/{plural}", f"/cluster/sdn/{plural}/{{{key}}}"

    def list_all(call: Call) -> list[Section]:
        rows = []
        for name in edition(call, plural)[0]:
            row = row_of(call, plural, key, name)
            if visible(call, f"/sdn/{plural}/{name}") and call.params.get("type") in (None, row.get("type")):
                rows.append(row)
        return rows

    def read(call: Call) -> Section:
        return row_of(call, plural, key, call.params[key])

    def create(call: Call) -> None:
        name, failed = call.params[key], f"create sdn {key} object failed"
        section = stored(call.params, without=(key,))
        complete(family, section["type"], section)
        check_lock(call, failed)
        if name in config(call.state, plural):
            raise PveError(500, f"{failed}: sdn {key} object ID '{name}' already defined")
        family.check(call, name, section, failed)
        config(call.state, plural)[name] = section

    def update(call: Call) -> None:
        name, failed = call.params[key], f"update sdn {key} object failed"
        check_lock(call, failed)
        sections = config(call.state, plural)
        check_digest(call.params.get("digest"), sections)
        if name not in sections:
            raise PveError(500, f"{failed}: sdn {key} '{name}' does not exist")
        section = dict(sections[name])
        known = family.kinds[section["type"]]
        edit(section, call.params, options=known.options, required=known.required, without=(key,), failed=failed)
        complete(family, section["type"], section)
        family.check(call, name, section, failed)
        sections[name] = section

    def delete(call: Call) -> None:
        name, failed = call.params[key], f"delete sdn {key} object failed"
        check_lock(call, failed)
        if name not in config(call.state, plural):
            raise PveError(500, f"{failed}: sdn {key} '{name}' does not exist")
        family.in_use(call, name, config(call.state, plural)[name], failed)
        del config(call.state, plural)[name]

    for handler, method, path, says in (
        (list_all, "GET", base, f"The {plural} the caller may see; `pending` shows what waits."),
        (create, "POST", base, f"Nothing; the new {key} waits to be applied."),
        (read, "GET", one, f"One of the {plural}."),
        (update, "PUT", one, f"Nothing; the edit of the {key} waits to be applied."),
        (delete, "DELETE", one, f"Nothing; that the {key} goes waits to be applied."),
    ):
        handler.__doc__ = says
        endpoint(f"{method} {path}")(handler)


def check_zone(call: Call, name: str, zone: Section, failed: str) -> None:
    """Nothing, or the refusal of a zone that refers to what is not there."""
    state = call.state
    for key in ("dns", "reversedns"):
        if zone.get(key) and zone[key] not in config(state, "dns"):
            raise inside(failed, {key: f"{zone[key]} don't exist"})
    if zone.get("dnszone") and not zone.get("dns"):
        raise inside(failed, {"dnszone": "missing dns server"})
    if zone.get("ipam") and zone["ipam"] not in config(state, "ipams"):
        raise inside(failed, {"ipam": f"{zone['ipam']} not existing"})
    old = config(state, "zones").get(name)
    if old is not None and old.get("ipam") != zone.get("ipam") and subnets_of_zone(state, name):
        raise inside(failed, {"ipam": "can't change ipam if a subnet is already defined in this zone"})
    if zone["type"] == "vxlan" and bool(zone.get("peers")) == bool(zone.get("fabric")):
        text = "must have exactly one of peers / fabric defined"
        raise inside(failed, {"peers": text, "fabric": text} if state.flavour != "8.4" else {"peers": text})
    if zone["type"] == "evpn":
        controller = config(state, "controllers").get(zone["controller"])
        if controller is None:
            raise PveError(500, f"{failed}: controller {zone['controller']} don't exist")
        if controller["type"] != "evpn":
            raise PveError(500, f"{failed}: {zone['controller']} is not a evpn controller type")
        for other, each in config(state, "zones").items():
            if other != name and each.get("vrf-vxlan") == zone["vrf-vxlan"]:
                raise PveError(500, f"{failed}: vrf-vxlan {zone['vrf-vxlan']} is already declared in {other}")
        zone.setdefault("mac", f"{state.datacenter.get('mac_prefix', 'BC:24:11')}:{digest_of([name])[:6]}")
        raw = zone["mac"].replace(":", "").upper()
        zone["mac"] = ":".join(raw[n : n + 2] for n in range(0, 12, 2))


def zone_in_use(call: Call, name: str, zone: Section, failed: str) -> None:
    """Nothing, or the refusal of taking away a zone that has vnets."""
    del zone
    for vnet, each in config(call.state, "vnets").items():
        if each["zone"] == name:
            raise PveError(500, f"{failed}: zone {name} is used by vnet {vnet}")


def controller_in_use(call: Call, name: str, controller: Section, failed: str) -> None:
    """Nothing, or the refusal of taking away a controller that has zones."""
    del controller
    for zone, each in config(call.state, "zones").items():
        if each.get("controller") == name:
            raise PveError(500, f"{failed}: controller {name} is used by {zone}")


def check_controller(call: Call, name: str, controller: Section, failed: str) -> None:
    """Nothing, or the refusal of a second controller of the same kind for a node or a cluster."""
    for other, each in config(call.state, "controllers").items():
        if other == name or each["type"] != controller["type"]:
            continue
        if controller["type"] == "evpn" and call.flavour == "8.4":
            raise PveError(500, f"{failed}: only 1 global evpn controller can be defined")
        if controller["type"] == "bgp" and each.get("node") == controller.get("node"):
            raise PveError(500, f"{failed}: only 1 bgp controller can be defined by node")


def check_server(call: Call, name: str, section: Section, failed: str) -> None:
    """Nothing, or the refusal of a server that does not answer: only a scenario's `servers` do."""
    del name
    match = re.match(r"https?://([^/:]+)", str(section.get("url", "")))
    if match and match[1] not in call.state.areas.get("servers", ()):
        what = "dns api" if section["type"] == "powerdns" else f"{section['type']} api"
        why = f"Can't connect to {match[1]}:{443 if section['url'].startswith('https') else 80} (Connection refused)"
        raise PveError(500, f"{failed}: Can't connect to {what}: Invalid response from server: 500 {why}")


def server_in_use(call: Call, name: str, section: Section, failed: str) -> None:
    """Nothing, or the refusal of taking away a server that zones use."""
    keys = ("dns", "reversedns") if section["type"] == "powerdns" else ("ipam",)
    for zone, each in config(call.state, "zones").items():
        if any(each.get(key) == name for key in keys):
            raise PveError(500, f"{failed}: {keys[0]} {name} is used by {zone}")


for _family in (
    Family("zones", "zone", ZONES, check_zone, zone_in_use),
    Family("controllers", "controller", CONTROLLERS, check_controller, controller_in_use),
    Family("dns", "dns", DNS, check_server, server_in_use),
    Family("ipams", "ipam", IPAMS, check_server, server_in_use),
):
    family_endpoints(_family)


@endpoint("GET /cluster/sdn/ipams/{ipam}/status")
def ipam_status(call: Call) -> list[dict[str, Any]]:
    """The addresses the built-in ipam knows, where the caller may see the vnet."""
    if call.params["ipam"] not in config(call.state, "ipams"):
        raise PveError(500, f"sdn ipam '{call.params['ipam']}' does not exist")
    if config(call.state, "ipams")[call.params["ipam"]]["type"] != "pve":
        raise PveError(500, "Currently only PVE IPAM is supported")
    rows = []
    for name, subnet in config(call.state, "subnets").items():
        zone = config(call.state, "zones").get(subnet["zone"], {})
        where = {"zone": subnet["zone"], "vnet": subnet["vnet"], "subnet": cidr_of(name)}
        if not zone.get("ipam") or not visible(call, f"/sdn/zones/{subnet['zone']}/{subnet['vnet']}"):
            continue
        if "gateway" in subnet:
            rows.append({**where, "ip": subnet["gateway"], "gateway": 1, "hostname": f"{subnet['vnet']}-gw"})
        network = ipaddress.ip_network(cidr_of(name))
        rows += [
            {**where, **each}
            for each in sdn(call.state)["ips"]
            if each["vnet"] == subnet["vnet"] and ipaddress.ip_address(each["ip"]) in network
        ]
    return rows


# --- vnets ----------------------------------------------------------------------------------------

VNET_OPTIONS = ("zone", "tag", "alias", "vlanaware", "isolate-ports")


def require_vnet(call: Call, name: str, *privs: str) -> Section:
    """The configured vnet. Raises 500 when there is none, 403 when the caller may not."""
    vnet = config(call.state, "vnets").get(name)
    if vnet is None:
        raise PveError(500, f"sdn vnet '{name}' does not exist")
    call.check(f"/sdn/zones/{vnet['zone']}/{name}", *privs, any_of=True)
    return vnet


def subnets_of(state: PveState, vnet: str) -> list[str]:
    """The ids of a vnet's subnets."""
    return [name for name, each in config(state, "subnets").items() if each["vnet"] == vnet]


def subnets_of_zone(state: PveState, zone: str) -> list[str]:
    """The ids of a zone's subnets."""
    return [name for name, each in config(state, "subnets").items() if each["zone"] == zone]


@endpoint("GET /cluster/sdn/vnets")
def list_vnets(call: Call) -> list[Section]:
    """The vnets the caller may see; `pending` shows what waits."""
    rows = []
    for name in edition(call, "vnets")[0]:
        row = row_of(call, "vnets", "vnet", name)
        zone = row.get("zone") or row.get("pending", {}).get("zone")
        if visible(call, f"/sdn/zones/{zone}/{name}"):
            rows.append(row)
    return rows


@endpoint("GET /cluster/sdn/vnets/{vnet}")
def get_vnet(call: Call) -> Section:
    """One vnet."""
    require_vnet(call, call.params["vnet"], "SDN.Audit", "SDN.Allocate")
    return row_of(call, "vnets", "vnet", call.params["vnet"])


def check_tag(call: Call, name: str, vnet: Section, failed: str) -> None:
    """Nothing, or the refusal of a tag that the zone's type does not take, or that is taken."""
    zones, vnets = config(call.state, "zones"), config(call.state, "vnets")
    zone, tag = zones.get(vnet["zone"]), vnet.get("tag")
    if zone is None:
        raise PveError(500, f"{failed}: sdn zone '{vnet['zone']}' does not exist")
    kind = zone["type"]
    others = {other: each for other, each in vnets.items() if other != name}
    if kind == "simple" and tag is not None:
        raise inside(failed, {"tag": "vlan tag is not allowed on simple zone"})
    if kind == "vlan":
        if tag is None:
            raise inside(failed, {"tag": "missing vlan tag"})
        if tag > 4096:
            raise inside(failed, {"tag": "vlan tag max value is 4096"})
        for other, each in others.items():
            if each["zone"] == vnet["zone"] and each.get("tag") == tag:
                raise inside(failed, {"tag": f"tag {tag} already exist in vnet {other}"})
    if kind == "qinq" and tag is not None:
        if tag > 4096:
            raise inside(failed, {"tag": "VLAN tag maximal value is 4096"})
        for other, each in others.items():
            if each["zone"] == vnet["zone"] and each.get("tag") == tag:
                raise inside(failed, {"tag": f"tag {tag} already exist in zone {vnet['zone']} vnet {other}"})
    if kind in ("vxlan", "evpn"):
        if tag is None:
            raise inside(failed, {"tag": "missing vxlan tag"})
        if kind == "evpn" and vnet.get("vlanaware"):
            raise inside(failed, {"vlan-aware": "vlan-aware option can't be enabled with evpn"})
        for other, each in others.items():
            where = zones.get(each["zone"], {}).get("type")
            if where in ("vxlan", "evpn") and each.get("tag") == tag:
                raise inside(failed, {"tag": f"vxlan tag {tag} already exist in vnet {other}"})
    if vnet.get("vlanaware") and subnets_of(call.state, name):
        raise inside(failed, {"vlanaware": "vlanaware vnet is not compatible with subnets"})


@endpoint("POST /cluster/sdn/vnets")
def create_vnet(call: Call) -> None:
    """Nothing; the new vnet waits to be applied."""
    name, failed = call.params["vnet"], "create sdn vnet object failed"
    check_lock(call, failed)
    if name in config(call.state, "vnets"):
        raise PveError(500, f"{failed}: sdn vnet object ID '{name}' already defined")
    vnet = {"type": "vnet", **stored(call.params, without=("vnet", "type"))}
    check_tag(call, name, vnet, failed)
    config(call.state, "vnets")[name] = vnet


@endpoint("PUT /cluster/sdn/vnets/{vnet}")
def update_vnet(call: Call) -> None:
    """Nothing; the edit of the vnet waits to be applied."""
    name, failed = call.params["vnet"], "update sdn vnet object failed"
    old = require_vnet(call, name, "SDN.Allocate")
    check_lock(call, failed)
    check_digest(call.params.get("digest"), config(call.state, "vnets"))
    vnet = dict(old)
    edit(vnet, call.params, options=VNET_OPTIONS, required=("zone",), without=("vnet", "type"), failed=failed)
    if vnet["zone"] != old["zone"] and subnets_of(call.state, name):
        raise inside(failed, {"zone": "can't change zone if subnets exist"})
    check_tag(call, name, vnet, failed)
    config(call.state, "vnets")[name] = vnet


@endpoint("DELETE /cluster/sdn/vnets/{vnet}")
def delete_vnet(call: Call) -> None:
    """Nothing; that the vnet goes waits to be applied."""
    name, failed = call.params["vnet"], "delete sdn vnet object failed"
    require_vnet(call, name, "SDN.Allocate")
    check_lock(call, failed)
    if subnets_of(call.state, name):
        raise inside(failed, {"vnet": "Can't delete vnet if subnets exists"})
    del config(call.state, "vnets")[name]


# --- subnets --------------------------------------------------------------------------------------

SUBNET_OPTIONS = ("vnet", "gateway", "snat", "dnszoneprefix", "dhcp-range", "dhcp-dns-server")


def cidr_of(name: str) -> str:
    """The network of a subnet's id: `10.1.0.0/24` of `z1-10.1.0.0-24`."""
    return "/".join(name.rsplit("-", 2)[1:])


def subnet_row(call: Call, name: str) -> Section:
    """One subnet as an answer holds it."""
    row = row_of(call, "subnets", "subnet", name)
    network = ipaddress.ip_network(cidr_of(name), strict=False)
    row |= {"cidr": cidr_of(name), "network": str(network.network_address), "mask": str(network.prefixlen)}
    row["zone"] = name.rsplit("-", 2)[0]
    ranges = row.get("dhcp-range") or row.get("pending", {}).get("dhcp-range") or []
    row["dhcp-range"] = [dict(part.split("=", 1) for part in text.split(",")) for text in ranges]
    return row


def check_subnet(call: Call, name: str, subnet: Section, failed: str) -> None:
    """Nothing, or the refusal of addresses that are not in the subnet."""
    cidr = cidr_of(name)
    network = ipaddress.ip_network(cidr, strict=False)
    if config(call.state, "vnets")[subnet["vnet"]].get("vlanaware"):
        raise inside(failed, {"vnet": "you can't add a subnet on a vlanaware vnet"})
    gateway = subnet.get("gateway")
    if gateway and ipaddress.ip_address(gateway) not in network and network.prefixlen != 32:
        raise inside(failed, {"gateway": f"{gateway} is not in subnet {cidr}"})
    taken: list[tuple[int, int]] = []
    for text in subnet.get("dhcp-range", ()):
        part = dict(piece.split("=", 1) for piece in text.split(",") if "=" in piece)
        try:
            first, last = ipaddress.ip_address(part["start-address"]), ipaddress.ip_address(part["end-address"])
        except (KeyError, ValueError):
            raise inside(failed, {"dhcp-range": "invalid format - format error"}) from None
        if int(first) > int(last):
            raise inside(failed, {"dhcp-range": f"start-address {first} must be smaller than end-address {last}"})
        for word, address in (("start", first), ("end", last)):
            if address not in network:
                raise inside(failed, {"dhcp-range": f"{word}-address {address} is not in subnet {cidr}"})
        if any(int(first) <= end and begin <= int(last) for begin, end in taken):
            raise inside(failed, {"dhcp-range": "dhcp ranges must not overlap"})
        taken.append((int(first), int(last)))


@endpoint("GET /cluster/sdn/vnets/{vnet}/subnets")
def list_subnets(call: Call) -> list[Section]:
    """The subnets of a vnet; `pending` shows what waits."""
    require_vnet(call, call.params["vnet"], "SDN.Audit", "SDN.Allocate")
    sections = edition(call, "subnets")[0]
    mine = [n for n, each in sections.items() if call.params["vnet"] in (each.get("vnet"),
            each.get("pending", {}).get("vnet"))]  # fmt: skip
    return [subnet_row(call, name) for name in mine]


@endpoint("GET /cluster/sdn/vnets/{vnet}/subnets/{subnet}")
def get_subnet(call: Call) -> Section:
    """One subnet."""
    require_vnet(call, call.params["vnet"], "SDN.Audit", "SDN.Allocate")
    row = subnet_row(call, call.params["subnet"])
    if call.params["vnet"] not in (row.get("vnet"), row.get("pending", {}).get("vnet")):
        raise param_error({"vnet": "wrong vnet"})
    return row


@endpoint("POST /cluster/sdn/vnets/{vnet}/subnets")
def create_subnet(call: Call) -> None:
    """Nothing; the new subnet waits to be applied."""
    failed = "create sdn subnet object failed"
    vnet = require_vnet(call, call.params["vnet"], "SDN.Allocate")
    check_lock(call, failed)
    name = f"{vnet['zone']}-{call.params['subnet'].replace('/', '-')}"
    if name in config(call.state, "subnets"):
        raise PveError(500, f"{failed}: sdn subnet object ID '{name}' already defined")
    subnet = {"type": "subnet", **stored(call.params, without=("subnet", "type")), "zone": vnet["zone"]}
    check_subnet(call, name, subnet, failed)
    config(call.state, "subnets")[name] = subnet


@endpoint("PUT /cluster/sdn/vnets/{vnet}/subnets/{subnet}")
def update_subnet(call: Call) -> None:
    """Nothing; the edit of the subnet waits to be applied."""
    name, failed = call.params["subnet"], "update sdn subnet object failed"
    require_vnet(call, call.params["vnet"], "SDN.Allocate")
    check_lock(call, failed)
    sections = config(call.state, "subnets")
    if name not in sections:
        raise PveError(500, f"{failed}: sdn subnet '{name}' does not exist")
    check_digest(call.params.get("digest"), sections)
    subnet = dict(sections[name])
    edit(subnet, call.params, options=SUBNET_OPTIONS, required=("vnet",), without=("subnet", "type"), failed=failed)
    check_subnet(call, name, subnet, failed)
    sections[name] = subnet


@endpoint("DELETE /cluster/sdn/vnets/{vnet}/subnets/{subnet}")
def delete_subnet(call: Call) -> None:
    """Nothing; that the subnet goes waits to be applied."""
    failed = "delete sdn subnet object failed"
    require_vnet(call, call.params["vnet"], "SDN.Allocate")
    check_lock(call, failed)
    subnet = config(call.state, "subnets").get(call.params["subnet"])
    if subnet is not None:
        network = ipaddress.ip_network(cidr_of(call.params["subnet"]), strict=False)
        for each in sdn(call.state)["ips"]:
            if each["vnet"] == subnet["vnet"] and ipaddress.ip_address(each["ip"]) in network:
                text = f"cannot delete subnet '{cidr_of(call.params['subnet'])}', not empty"
                raise PveError(500, f"{failed}: {text}")
        del config(call.state, "subnets")[call.params["subnet"]]


# --- addresses ------------------------------------------------------------------------------------


def address(call: Call) -> dict[str, Any]:
    """The address a request is about. Raises 500 when no subnet of the vnet holds it."""
    params = call.params
    if params["vnet"] not in config(call.state, "vnets"):
        raise PveError(500, f"sdn vnet '{params['vnet']}' does not exist")
    ip = ipaddress.ip_address(params["ip"])
    held = any(ip in ipaddress.ip_network(cidr_of(name)) for name in subnets_of(call.state, params["vnet"]))
    if not held:
        raise PveError(500, f"can't find any subnet for ip {ip}")
    return {key: params[key] for key in ("zone", "vnet", "ip", "mac", "vmid") if key in params}


@endpoint("POST /cluster/sdn/vnets/{vnet}/ips")
def add_address(call: Call) -> None:
    """Nothing; the built-in ipam knows the address."""
    new = address(call)
    if any((each["vnet"], each["ip"]) == (new["vnet"], new["ip"]) for each in sdn(call.state)["ips"]):
        raise PveError(500, f"IP '{new['ip']}' already exist")
    sdn(call.state)["ips"].append(new)


@endpoint("PUT /cluster/sdn/vnets/{vnet}/ips")
def move_address(call: Call) -> None:
    """Nothing; the machine with that MAC has another address."""
    new = address(call)
    kept = [each for each in sdn(call.state)["ips"] if (each["vnet"], each.get("mac")) != (new["vnet"], new.get("mac"))]
    sdn(call.state)["ips"] = [*kept, new]


@endpoint("DELETE /cluster/sdn/vnets/{vnet}/ips")
def remove_address(call: Call) -> None:
    """Nothing; the address is free."""
    gone = address(call)
    sdn(call.state)["ips"] = [
        each for each in sdn(call.state)["ips"] if (each["vnet"], each["ip"]) != (gone["vnet"], gone["ip"])
    ]


# --- fabrics of 9 ---------------------------------------------------------------------------------


@endpoint("GET /cluster/sdn/fabrics")
def fabrics_index(call: Call) -> list[dict[str, str]]:
    """The names below fabrics."""
    return [{"subdir": name} for name in ("fabric", "node", "all")]


def fabric_rows(call: Call) -> list[Section]:
    """The fabrics the caller may see."""
    rows = []
    for name, fabric in edition(call, "fabrics")[0].items():
        if visible(call, f"/sdn/fabrics/{name}"):
            rows.append({"id": name, **fabric, "digest": digest_of(config(call.state, "fabrics"))})
    return rows


def fabric_node_rows(call: Call, fabric: str | None = None) -> list[Section]:
    """The nodes of fabrics the caller may see."""
    rows = []
    for name, node in edition(call, "fabric_nodes")[0].items():
        of, _, node_id = name.partition("_")
        if fabric in (None, of) and visible(call, f"/sdn/fabrics/{of}"):
            rows.append({"fabric_id": of, "node_id": node_id, **node})
    return rows


@endpoint("GET /cluster/sdn/fabrics/all")
def all_fabrics(call: Call) -> dict[str, Any]:
    """Fabrics and their nodes at once; the two protocols' files each add their digest."""
    digests = [{"digest": digest_of({})}] * 2 if not config(call.state, "fabrics") else []
    return {"fabrics": [*fabric_rows(call), *digests], "nodes": fabric_node_rows(call)}


@endpoint("GET /cluster/sdn/fabrics/fabric")
def list_fabrics(call: Call) -> list[Section]:
    """The fabrics."""
    return fabric_rows(call)


def require_fabric(call: Call, name: str) -> Section:
    """The fabric, or the 500 that there is none."""
    fabric = config(call.state, "fabrics").get(name)
    if fabric is None:
        raise PveError(500, f"fabric {name} does not exist in configuration")
    return fabric


@endpoint("GET /cluster/sdn/fabrics/fabric/{id}")
def get_fabric(call: Call) -> Section:
    """One fabric."""
    name = call.params["id"]
    return {"id": name, **require_fabric(call, name), "digest": digest_of(config(call.state, "fabrics"))}


@endpoint("POST /cluster/sdn/fabrics/fabric")
def create_fabric(call: Call) -> None:
    """Nothing; the new fabric waits to be applied."""
    name, failed = call.params["id"], "adding fabric failed"
    check_lock(call, failed)
    if name in config(call.state, "fabrics"):
        raise PveError(500, f"{failed}: fabric already exists in config: {name}")
    if call.params["protocol"] == "ospf" and "area" not in call.params:
        raise PveError(500, f"{failed}: missing field `area`")
    config(call.state, "fabrics")[name] = stored(call.params, without=("id",))


@endpoint("PUT /cluster/sdn/fabrics/fabric/{id}")
def update_fabric(call: Call) -> None:
    """Nothing; the edit of the fabric waits to be applied."""
    failed = "updating fabric failed"
    check_lock(call, failed)
    fabric = require_fabric(call, call.params["id"])
    given = {key: value for key, value in call.params.items() if key not in ("id", "protocol", "delete")}
    for key in call.params.get("delete") or ():
        fabric.pop(key, None)
    fabric.update(stored(given))


@endpoint("DELETE /cluster/sdn/fabrics/fabric/{id}")
def delete_fabric(call: Call) -> None:
    """Nothing; that the fabric and its nodes go waits to be applied."""
    name = call.params["id"]
    check_lock(call, "deleting fabric failed")
    require_fabric(call, name)
    del config(call.state, "fabrics")[name]
    for key in [key for key in config(call.state, "fabric_nodes") if key.startswith(f"{name}_")]:
        del config(call.state, "fabric_nodes")[key]


@endpoint("GET /cluster/sdn/fabrics/node")
def list_fabric_nodes(call: Call) -> list[Section]:
    """The nodes of all fabrics."""
    return fabric_node_rows(call)


@endpoint("GET /cluster/sdn/fabrics/node/{fabric_id}")
def list_nodes_of_fabric(call: Call) -> list[Section]:
    """The nodes of one fabric."""
    require_fabric(call, call.params["fabric_id"])
    return fabric_node_rows(call, call.params["fabric_id"])


def fabric_node_key(call: Call) -> str:
    """Where the node of a fabric is kept."""
    return f"{call.params['fabric_id']}_{call.params['node_id']}"


def require_fabric_node(call: Call) -> Section:
    """The node of a fabric, or the 500 that there is none."""
    require_fabric(call, call.params["fabric_id"])
    node = config(call.state, "fabric_nodes").get(fabric_node_key(call))
    if node is None:
        raise PveError(500, f"node {call.params['node_id']} does not exist in fabric {call.params['fabric_id']}")
    return node


@endpoint("GET /cluster/sdn/fabrics/node/{fabric_id}/{node_id}")
def get_fabric_node(call: Call) -> Section:
    """One node of a fabric."""
    node = require_fabric_node(call)
    return {"fabric_id": call.params["fabric_id"], "node_id": call.params["node_id"], **node}


@endpoint("POST /cluster/sdn/fabrics/node/{fabric_id}")
def create_fabric_node(call: Call) -> None:
    """Nothing; the fabric's new node waits to be applied."""
    failed = "adding node failed"
    check_lock(call, failed)
    require_fabric(call, call.params["fabric_id"])
    if fabric_node_key(call) in config(call.state, "fabric_nodes"):
        raise PveError(500, f"{failed}: node already exists in config: {call.params['node_id']}")
    node = stored(call.params, without=("fabric_id", "node_id"))
    config(call.state, "fabric_nodes")[fabric_node_key(call)] = node


@endpoint("PUT /cluster/sdn/fabrics/node/{fabric_id}/{node_id}")
def update_fabric_node(call: Call) -> None:
    """Nothing; the edit of the fabric's node waits to be applied."""
    check_lock(call, "updating node failed")
    node = require_fabric_node(call)
    for key in call.params.get("delete") or ():
        node.pop(key, None)
    node.update(stored(call.params, without=("fabric_id", "node_id", "protocol")))


@endpoint("DELETE /cluster/sdn/fabrics/node/{fabric_id}/{node_id}")
def delete_fabric_node(call: Call) -> None:
    """Nothing; that the node leaves the fabric waits to be applied."""
    check_lock(call, "deleting node failed")
    require_fabric_node(call)
    del config(call.state, "fabric_nodes")[fabric_node_key(call)]


# --- what a node says -----------------------------------------------------------------------------


def on_node(zone: Section, node: str) -> bool:
    """Whether a zone is offered on a node."""
    return not zone.get("nodes") or node in split_list(zone["nodes"])


def zone_status(state: PveState, name: str, node: str) -> str:
    """How a running zone is on a node: an error when the bridge it lies on is missing there."""
    bridge = sdn(state)["running"]["zones"][name].get("bridge")
    rows = networks(state)[node].current if node in networks(state) else {}
    return "available" if not bridge or bridge in rows else "error"


def zones_on(state: PveState, node: str) -> list[str]:
    """The running zones a node has."""
    return [name for name, zone in sdn(state)["running"]["zones"].items() if on_node(zone, node)]


@endpoint("GET /nodes/{node}/sdn")
def node_index(call: Call) -> list[dict[str, str]]:
    """The names below a node's sdn."""
    return [{"name": name} for name in (["zones"] if call.flavour == "8.4" else ["fabrics", "vnets", "zones"])]


@endpoint("GET /nodes/{node}/sdn/zones")
def node_zones(call: Call) -> list[dict[str, str]]:
    """How the running zones are on a node."""
    names = [name for name in zones_on(call.state, call.node) if visible(call, f"/sdn/zones/{name}")]
    return [{"zone": name, "status": zone_status(call.state, name, call.node)} for name in names]


@endpoint("GET /nodes/{node}/sdn/zones/{zone}")
def node_zone_index(call: Call) -> list[dict[str, str]]:
    """The names below a zone on a node."""
    return [{"subdir": n} for n in (["content"] if call.flavour == "8.4" else ["content", "bridges", "ip-vrf"])]


@endpoint("GET /nodes/{node}/sdn/zones/{zone}/content")
def node_zone_content(call: Call) -> list[dict[str, str]]:
    """How the vnets of a running zone are on a node."""
    running, name = sdn(call.state)["running"], call.params["zone"]
    if name not in running["zones"]:
        raise PveError(500, f"sdn zone '{name}' does not exist")
    bridge, rows = running["zones"][name].get("bridge"), []
    for vnet, each in running["vnets"].items():
        if each["zone"] != name or not visible(call, f"/sdn/zones/{name}/{vnet}"):
            continue
        row = {"vnet": vnet, "status": "available"}
        if zone_status(call.state, name, call.node) == "error":
            row |= {"status": "error", "statusmsg": f"missing {bridge}"}
        rows.append(row)
    return rows


@endpoint("GET /nodes/{node}/sdn/zones/{zone}/bridges")
def node_bridges(call: Call) -> list[dict[str, Any]]:
    """The bridges of a zone on a node with their ports; `localnetwork` are the plain ones."""
    state, name = call.state, call.params["zone"]
    if name != "localnetwork":
        vnets = sdn(state)["running"]["vnets"].items()
        return [
            {"name": vnet, "vlan_filtering": int(each.get("vlanaware", 0)), "ports": []}
            for vnet, each in vnets
            if each["zone"] == name
        ]
    return [
        {
            "name": iface,
            "vlan_filtering": int(row.get("bridge_vlan_aware", 0)),
            "ports": [{"name": port} for port in split_list(row.get("bridge_ports", ""))],
        }
        for iface, row in networks(state)[call.node].current.items()
        if row["type"] == "bridge"
    ]


@endpoint("GET /nodes/{node}/sdn/zones/{zone}/ip-vrf")
def node_routes(call: Call) -> list[dict[str, Any]]:
    """The routes of an EVPN zone: one for each subnet."""
    state, name = call.state, call.params["zone"]
    zone = sdn(state)["running"]["zones"].get(name)
    if zone is None:
        raise param_error({"zone": "zone does not exist"})
    if zone["type"] != "evpn":
        raise param_error({"zone": "zone is not an EVPN zone"})
    return [
        {"ip": cidr_of(subnet), "metric": 0, "protocol": "connected", "nexthops": [each["vnet"]]}
        for subnet, each in sdn(state)["running"]["subnets"].items()
        if each["zone"] == name
    ]


@endpoint("GET /nodes/{node}/sdn/vnets/{vnet}")
def node_vnet_index(call: Call) -> list[dict[str, str]]:
    """The names below a vnet on a node."""
    return [{"subdir": "mac-vrf"}]


@endpoint("GET /nodes/{node}/sdn/vnets/{vnet}/mac-vrf")
def node_macs(call: Call) -> list[dict[str, Any]]:
    """The MAC addresses an EVPN vnet has learned: those of the running guests plugged into it."""
    state, name = call.state, call.params["vnet"]
    vnet = sdn(state)["running"]["vnets"].get(name)
    if vnet is None:
        raise param_error({"vnet": "vnet does not exist"})
    if sdn(state)["running"]["zones"].get(vnet["zone"], {}).get("type") != "evpn":
        raise param_error({"vnet": "vnet is not part of an EVPN zone"})
    rows = []
    for guest in state.guests.values():
        for net in guest.nets().values():
            if guest.running and net.get("bridge") == name:
                rows.append({"mac": net["macaddr"].lower(), "nexthop": state.nodes[guest.node].ip})
    return rows


@endpoint("GET /nodes/{node}/sdn/fabrics/{fabric}")
def node_fabric_index(call: Call) -> list[dict[str, str]]:
    """The names below a fabric on a node."""
    return [{"subdir": name} for name in ("interfaces", "neighbors", "routes")]


def fabric_peers(call: Call) -> list[str]:
    """The other nodes of a running fabric. Raises 500 when there is no such fabric."""
    running, name = sdn(call.state)["running"], call.params["fabric"]
    if name not in running["fabrics"]:
        raise PveError(500, f"fabric {name} does not exist in configuration")
    nodes = [key.partition("_")[2] for key in running["fabric_nodes"] if key.startswith(f"{name}_")]
    return [node for node in nodes if node != call.node]


@endpoint("GET /nodes/{node}/sdn/fabrics/{fabric}/interfaces")
def fabric_interfaces(call: Call) -> list[dict[str, Any]]:
    """The interfaces of a fabric on a node."""
    fabric_peers(call)
    node = sdn(call.state)["running"]["fabric_nodes"].get(f"{call.params['fabric']}_{call.node}", {})
    names = [dict(p.split("=", 1) for p in text.split(",") if "=" in p) for text in node.get("interfaces", ())]
    return [{"name": each.get("name", ""), "state": "up", "type": "Point-To-Point"} for each in names]


@endpoint("GET /nodes/{node}/sdn/fabrics/{fabric}/neighbors")
def fabric_neighbors(call: Call) -> list[dict[str, Any]]:
    """The neighbours a fabric sees from a node."""
    return [
        {"neighbor": name, "status": "Up" if call.state.nodes[name].online else "Down", "uptime": "01:00:00"}
        for name in fabric_peers(call)
        if name in call.state.nodes
    ]


@endpoint("GET /nodes/{node}/sdn/fabrics/{fabric}/routes")
def fabric_routes(call: Call) -> list[dict[str, Any]]:
    """The routes a fabric has learned on a node."""
    nodes = sdn(call.state)["running"]["fabric_nodes"]
    rows = []
    for name in fabric_peers(call):
        ip = nodes[f"{call.params['fabric']}_{name}"].get("ip")
        if ip:
            rows.append({"route": f"{ip}/32", "via": [name]})
    return rows
