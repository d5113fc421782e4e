"""The firewall at every level: datacenter, security groups, nodes, guests and vnets.

Each level has options and ordered rules; the datacenter and guests also aliases and IP sets. One set of handlers
serves them all, as one set of the vendor's modules does.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.firewall import TABLE
from .routing import Call, PveError, param_error, split_list
from .schema import FORMATS, format_check
from .sdn import require_vnet
from .sections import check_digest, digest_of, stored

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)
Rule = dict[str, Any]

WITH_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "6", "17", "33", "132", "136")
PROTOCOLS = [
    "ip",
    "icmp",
    "igmp",
    "ggp",
    "ipencap",
    "st",
    "tcp",
    "egp",
    "igp",
    "pup",
    "udp",
    "hmp",
    "xns-idp",
    "rdp",
    "iso-tp4",
    "dccp",
    "xtp",
    "ddp",
    "idpr-cmtp",
    "ipv6",
    "ipv6-route",
    "ipv6-frag",
    "idrp",
    "rsvp",
    "gre",
    "esp",
    "ah",
    "skip",
    "ipv6-icmp",
    "icmpv6",
    "ipv6-nonxt",
    "ipv6-opts",
    "vmtp",
    "eigrp",
    "ospf",
    "ax.25",
    "ipip",
    "etherip",
    "encap",
    "pim",
    "ipcomp",
    "vrrp",
    "l2tp",
    "isis",
    "sctp",
    "fc",
    "mobility-header",
    "udplite",
    "mpls-in-ip",
    "hip",
    "shim6",
    "wesp",
    "rohc",
]
MACROS = {
    "Amanda": "Amanda Backup",
    "Auth": "Auth (identd) traffic",
    "BGP": "Border Gateway Protocol traffic",
    "BitTorrent": "BitTorrent traffic for BitTorrent 3.1 and earlier",
    "BitTorrent32": "BitTorrent traffic for BitTorrent 3.2 and later",
    "CVS": "Concurrent Versions System pserver traffic",
    "Ceph": "Ceph Storage Cluster traffic (Ceph Monitors, OSD & MDS Daemons)",
    "Citrix": "Citrix/ICA traffic (ICA, ICA browser, CGP)",
    "DAAP": "Digital Audio Access Protocol traffic",
    "DCC": "Distributed Checksum Clearinghouse spam filtering mechanism",
    "DHCPfwd": "Forwarded DHCP traffic",
    "DHCPv6": "DHCPv6 traffic",
    "DNS": "Domain Name System traffic (upd and tcp)",
    "Distcc": "Distributed compiler service",
    "FTP": "File Transfer Protocol",
    "Finger": "Finger protocol (RFC 742)",
    "GNUnet": "GNUnet secure peer-to-peer networking traffic",
    "GRE": "Generic Routing Encapsulation tunneling protocol",
    "Git": "Git distributed revision control traffic",
    "HKP": "OpenPGP HTTP keyserver protocol traffic",
    "HTTP": "Hypertext Transfer Protocol (WWW)",
    "HTTPS": "Hypertext Transfer Protocol (WWW) over SSL",
    "ICPV2": "Internet Cache Protocol V2 (Squid) traffic",
    "ICQ": "ICQ instant messenger traffic",
    "IMAP": "Internet Message Access Protocol",
    "IMAPS": "Internet Message Access Protocol over SSL",
    "IPIP": "IPIP capsulation traffic",
    "IPsec": "IPsec traffic",
    "IPsecah": "IPsec authentication (AH) traffic",
    "IPsecnat": "IPsec traffic and NAT traversal",
    "IRC": "Internet Relay Chat traffic",
    "Jetdirect": "HP Jetdirect printing",
    "L2TP": "Layer 2 Tunneling Protocol traffic",
    "LDAP": "Lightweight Directory Access Protocol traffic",
    "LDAPS": "Secure Lightweight Directory Access Protocol traffic",
    "MDNS": "Multicast DNS",
    "MSNP": "Microsoft Notification Protocol",
    "MSSQL": "Microsoft SQL Server",
    "Mail": "Mail traffic (SMTP, SMTPS, Submission)",
    "Munin": "Munin networked resource monitoring traffic",
    "MySQL": "MySQL server",
    "NNTP": "NNTP traffic (Usenet)",
    "NNTPS": "Encrypted NNTP traffic (Usenet)",
    "NTP": "Network Time Protocol (ntpd)",
    "NeighborDiscovery": "IPv6 neighbor solicitation, neighbor and router advertisement",
    "OSPF": "OSPF multicast traffic",
    "OpenVPN": "OpenVPN traffic",
    "PCA": "PCAnywhere traffic",
    "PMG": "Proxmox Mail Gateway web interface",
    "POP3": "POP3 traffic",
    "POP3S": "Encrypted POP3 traffic",
    "PPtP": "Point-to-Point Tunneling Protocol",
    "Ping": "ICMP echo request",
    "PostgreSQL": "PostgreSQL server",
    "Printer": "Line Printer protocol printing",
    "RDP": "Microsoft Remote Desktop Protocol traffic",
    "RIP": "Routing Information Protocol (bidirectional)",
    "RNDC": "BIND remote management protocol",
    "Razor": "Razor antispam system",
    "Rdate": "Remote time retrieval (rdate)",
    "Rsync": "Rsync server",
    "SANE": "SANE network scanning",
    "SMB": "Microsoft SMB traffic",
    "SMBswat": "Samba Web Administration Tool",
    "SMTP": "Simple Mail Transfer Protocol",
    "SMTPS": "Encrypted Simple Mail Transfer Protocol",
    "SNMP": "Simple Network Management Protocol",
    "SPAMD": "Spam Assassin traffic",
    "SPICEproxy": "Proxmox VE SPICE display proxy traffic",
    "SSH": "Secure shell traffic",
    "SVN": "Subversion server (svnserve)",
    "SixXS": "SixXS IPv6 Deployment and Tunnel Broker",
    "Squid": "Squid web proxy traffic",
    "Submission": "Mail message submission traffic",
    "Syslog": "Syslog protocol (RFC 5424) traffic",
    "TFTP": "Trivial File Transfer Protocol traffic",
    "Telnet": "Telnet traffic",
    "Telnets": "Telnet over SSL",
    "Time": "RFC 868 Time protocol",
    "Trcrt": "Traceroute (for up to 30 hops) traffic",
    "VNC": "VNC traffic for VNC display's 0 - 99",
    "VNCL": "VNC traffic from servers to viewers in listen mode",
    "Web": "WWW traffic (HTTP and HTTPS)",
    "Webcache": "Web cache and proxy traffic (port 8080)",
    "Webmin": "Webmin traffic",
    "Whois": "Whois (nicname, RFC 3912) traffic",
}
ACTIONS = ("ACCEPT", "DROP", "REJECT")


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the firewall from a scenario's `firewall:` — "cluster", "node/pve1", "vm/101", "vnet/v1" → its content."""
    for where, given in (section.get("firewall") or {}).items():
        conf = configuration(state, where)
        for key, value in (given or {}).items():
            if key not in conf:
                raise ValueError(f"scenario: firewall {where}: no such key: {key}")
            conf[key] = value


def configuration(state: PveState, where: str) -> dict[str, Any]:
    """What one .fw file holds."""
    area: dict[str, dict[str, Any]] = state.areas.setdefault("firewall", {})
    fresh: dict[str, Any] = {"options": {}, "rules": [], "aliases": {}, "ipset": {}, "ipset_comments": {}}
    if where == "cluster":
        fresh |= {"groups": {}, "group_comments": {}}
    return area.setdefault(where, fresh)


# --- formats --------------------------------------------------------------------------------------

ALIAS = r"(dc/|guest/|sdn/)?[A-Za-z][A-Za-z0-9\-_]+"


def is_network(value: str) -> bool:
    """Whether the text is an address or a network."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return True


@format_check("IPorCIDR")
def _address(value: str) -> None:
    if not is_network(value):
        raise ValueError("value does not look like a valid IP address or CIDR network\n")


@format_check("IPorCIDRorAlias")
def _address_or_alias(value: str) -> None:
    # one letter is no alias, so `x` is a bad address
    if not is_network(value) and not re.fullmatch(ALIAS, value):
        raise ValueError("value does not look like a valid IP address or CIDR network\n")


@format_check("pve-fw-addr-spec")
def _addresses(value: str) -> None:
    if re.fullmatch(rf"\+{ALIAS}(-v4|-v6)?|{ALIAS}", value):
        return
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if dash and is_network(first) and is_network(last) and "/" not in part:
            continue
        if not is_network(part.strip()):
            raise ValueError(f"invalid address or network '{part}'\n" if part else "invalid empty address\n")


@format_check("pve-fw-protocol-spec")
def _protocol(value: str) -> None:
    if value.lower() not in PROTOCOLS and not (value.isdigit() and int(value) < 256):
        raise ValueError(f"value does not look like a valid protocol: '{value}'\n")


def _ports(value: str) -> None:
    for part in value.split(","):
        if not re.fullmatch(r"\d+(:\d+)?|[a-zA-Z][a-zA-Z0-9\-]*", part):
            raise ValueError(f"invalid port '{part}'\n")
        for number in part.split(":"):
            if number.isdigit() and int(number) > 65535:
                raise ValueError(f"invalid port '{number}'\n")


FORMATS |= {"pve-fw-sport-spec": _ports, "pve-fw-dport-spec": _ports}


@format_check("pve-fw-icmp-type-spec")
def _icmp(value: str) -> None:
    if not re.fullmatch(r"\d{1,3}(/\d{1,3})?|[a-z][a-z\-]*", value):
        raise ValueError(f"invalid icmp-type '{value}'\n")


# --- levels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """Where a set of endpoints lives: its path, what the vendor calls it, and how its file is found."""

    path: str
    env: str
    where: Callable[[Call], str]


def of_vnet(call: Call) -> str:
    """The file of a vnet's firewall, once the caller may touch it."""
    privs = ("SDN.Audit", "SDN.Allocate") if call.method == "GET" else ("SDN.Allocate",)
    require_vnet(call, call.params["vnet"], *privs)
    return f"vnet/{call.params['vnet']}"


CLUSTER = Level("/cluster/firewall", "cluster", lambda call: "cluster")
NODE = Level("/nodes/{node}/firewall", "host", lambda call: f"node/{call.node}")
QEMU = Level("/nodes/{node}/qemu/{vmid}/firewall", "vm", lambda call: f"vm/{call.params['vmid']}")
LXC = Level("/nodes/{node}/lxc/{vmid}/firewall", "ct", lambda call: f"vm/{call.params['vmid']}")
VNET = Level("/cluster/sdn/vnets/{vnet}/firewall", "vnet", of_vnet)
LEVELS = (CLUSTER, NODE, QEMU, LXC, VNET)
PATH_KEYS = ("node", "vmid", "vnet", "group", "name")


def conf_of(call: Call, level: Level) -> dict[str, Any]:
    """The file a request is about."""
    return configuration(call.state, level.where(call))


def listed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a list, each with the digest of the whole."""
    sha = hashlib.sha1()
    for row in rows:
        for key in sorted(row):
            sha.update(f"{key}:{row[key]}\n".encode())
    return [{**row, "digest": sha.hexdigest()} for row in rows]


def check_list_digest(given: str | None, rows: list[dict[str, Any]]) -> None:
    """Nothing, or the 500 of an edit made of an older list."""
    marked = listed(rows)
    current = marked[0]["digest"] if marked else digest_of(())
    if given and given != current:
        raise PveError(500, "detected modified configuration - file changed by other user? Try again.")


def index(words: str) -> list[dict[str, str]]:
    """The names below a level."""
    return [{"name": word} for word in words.split()]


@endpoint("GET /cluster/firewall")
def cluster_index(call: Call) -> list[dict[str, str]]:
    """The names below the datacenter's firewall."""
    return index("aliases rules options groups ipset macros refs")


@endpoint("GET /nodes/{node}/firewall")
def node_index(call: Call) -> list[dict[str, str]]:
    """The names below a node's firewall."""
    return index("rules options log")


@endpoint("GET /nodes/{node}/qemu/{vmid}/firewall")
@endpoint("GET /nodes/{node}/lxc/{vmid}/firewall")
def guest_index(call: Call) -> list[dict[str, str]]:
    """The names below a guest's firewall."""
    return index("rules aliases ipset refs options")


@endpoint("GET /cluster/sdn/vnets/{vnet}/firewall")
def vnet_index(call: Call) -> list[dict[str, str]]:
    """The names below a vnet's firewall."""
    of_vnet(call)
    return index("rules options")


@endpoint("GET /cluster/firewall/macros")
def macros(call: Call) -> list[dict[str, str]]:
    """The macros rules may name."""
    return [{"macro": name, "descr": text} for name, text in MACROS.items()]


# --- options --------------------------------------------------------------------------------------


def options_endpoints(level: Level) -> None:
    """Nothing; reading and writing a level's options is registered."""

    @endpoint(f"GET {level.path}/options")
    def read(call: Call) -> dict[str, Any]:
        """The options that are set at this level."""
        options = conf_of(call, level)["options"]
        return {**options, "digest": digest_of(options)}

    @endpoint(f"PUT {level.path}/options")
    def write(call: Call) -> None:
        """Nothing; the options are as asked."""
        options = conf_of(call, level)["options"]
        check_digest(call.params.get("digest"), options)
        for key in split_list(call.params.get("delete", "")):
            if key not in TABLE[f"PUT {level.path}/options"].params:
                raise param_error({"delete": f"no such option '{key}'"})
            options.pop(key, None)
        options.update(stored(call.params, without=PATH_KEYS))


# --- rules ----------------------------------------------------------------------------------------

RULE_KEYS = (
    "type",
    "action",
    "macro",
    "source",
    "dest",
    "proto",
    "dport",
    "sport",
    "icmp-type",
    "iface",
    "log",
    "comment",
    "enable",
)


def copied(rule: Rule, params: Mapping[str, Any]) -> None:
    """Nothing; the rule has what the request gives, and lacks what it empties."""
    for key in RULE_KEYS:
        if key not in params:
            continue
        if params[key] == "":
            rule.pop(key, None)
        else:
            rule[key] = params[key]


def verify_rule(state: PveState, rule: Rule, env: str) -> None:
    """Nothing, or the 400 that names what is wrong with a rule."""
    errors: dict[str, str] = {}
    kind, action = rule.get("type"), str(rule.get("action", ""))
    if kind == "group":
        if env == "group":
            errors["type"] = "security groups not allowed"
        elif action not in configuration(state, "cluster")["groups"]:
            errors["action"] = "no such security group"
    elif kind == "forward" and env in ("vm", "ct"):
        errors["type"] = "Forwarding rules are not allowed in VMs or CTs"
    elif kind in ("in", "out") and env == "vnet":
        errors["type"] = "Only forwarding rules are allowed in VNets"
    if kind != "group" and action.upper() not in ACTIONS:
        errors["action"] = f"unknown action '{action}'"
    elif kind != "group":
        rule["action"] = action.upper()
    if rule.get("macro") and rule["macro"].lower() not in {name.lower() for name in MACROS}:
        errors["macro"] = f"unknown macro '{rule['macro']}'"
    for key in ("dport", "sport"):
        if rule.get(key) and not rule.get("macro"):
            if not rule.get("proto"):
                errors["proto"] = f"missing property - '{key}' requires this property"
            elif str(rule["proto"]).lower() not in WITH_PORTS:
                errors[key] = f"protocol '{rule['proto']}' does not support ports"
    if rule.get("iface") and env in ("vm", "ct") and not re.fullmatch(r"net\d+", rule["iface"]):
        errors["iface"] = "value does not match the regex pattern 'net\\d+'"
    versions = set()
    for key in ("source", "dest"):
        if rule.get(key):
            errors |= verify_reference(state, key, str(rule[key]), env)
            versions |= set(versions_of(str(rule[key])))
    if len(versions) > 1:
        errors["source"] = "detected mixed ipv4/ipv6 addresses in address list"
    if errors:
        raise param_error(errors)
    if versions:
        rule["ipversion"] = versions.pop()
    else:
        rule.pop("ipversion", None)


def versions_of(text: str) -> Iterator[int]:
    """The IP versions of the addresses in a list; names have none."""
    for part in re.split(r"[,-]", text):
        if is_network(part.strip()):
            yield ipaddress.ip_network(part.strip(), strict=False).version


def verify_reference(state: PveState, key: str, text: str, env: str) -> dict[str, str]:
    """What is wrong with the alias or IP set a rule names."""
    cluster = configuration(state, "cluster")
    name = re.sub(r"^\+?(dc/|guest/)?", "", text)
    if env in ("vm", "ct", "group", "vnet"):
        return {}  # a guest's own names are looked up when the rules are compiled
    if text.startswith("+") and not text.startswith("+sdn/") and name not in cluster["ipset"]:
        return {key: f"no such ipset '{name}'"}
    if re.fullmatch(ALIAS, text) and name.lower() not in cluster["aliases"] and not is_network(text):
        return {key: f"no such alias '{name}'"}
    return {}


def rule_at(rules: list[Rule], position: int) -> Rule:
    """The rule at a position, or the 500 that there is none."""
    if position >= len(rules):
        raise PveError(500, f"no rule at position {position}")
    return rules[position]


def rules_endpoints(base: str, env: str, find: Callable[[Call], list[Rule]]) -> None:
    """Nothing; the five endpoints of one list of rules are registered."""

    @endpoint(f"GET {base}")
    def read_all(call: Call) -> list[Rule]:
        """The rules in order, each with its position and the list's digest."""
        return [{**rule, "pos": number} for number, rule in enumerate(listed(find(call)))]

    @endpoint(f"GET {base}/{{pos}}")
    def read(call: Call) -> Rule:
        """One rule."""
        return {**rule_at(listed(find(call)), call.params["pos"]), "pos": call.params["pos"]}

    @endpoint(f"POST {base}")
    def create(call: Call) -> None:
        """Nothing; the new rule is the first one."""
        rules, rule = find(call), {"enable": 0}
        check_list_digest(call.params.get("digest"), rules)
        copied(rule, call.params)
        verify_rule(call.state, rule, env)
        rules.insert(0, rule)

    @endpoint(f"PUT {base}/{{pos}}")
    def update(call: Call) -> None:
        """Nothing; the rule is as asked, or at another place."""
        rules, position, goal = find(call), call.params["pos"], call.params.get("moveto")
        check_list_digest(call.params.get("digest"), rules)
        rule = rule_at(rules, position)
        if goal is not None and goal != position:
            # the goal counts positions of the old list, as the vendor's loop does
            rules.pop(position)
            rules.insert(goal - 1 if goal > position else goal, rule)
            return
        changed = dict(rule)
        copied(changed, call.params)
        for key in split_list(call.params.get("delete", "")):
            if key not in RULE_KEYS:
                raise param_error({"delete": f"no such property ('{key}')"})
            if key in ("type", "action"):
                raise param_error({"delete": f"unable to delete required property '{key}'"})
            changed.pop(key, None)
        verify_rule(call.state, changed, env)
        rules[position] = changed

    @endpoint(f"DELETE {base}/{{pos}}")
    def delete(call: Call) -> None:
        """Nothing; the rule is gone, those after it move up."""
        rules = find(call)
        check_list_digest(call.params.get("digest"), rules)
        rule_at(rules, call.params["pos"])
        del rules[call.params["pos"]]


def rules_of(level: Level) -> Callable[[Call], list[Rule]]:
    """How a request finds the rules of a level."""

    def find(call: Call) -> list[Rule]:
        rules: list[Rule] = conf_of(call, level)["rules"]
        return rules

    return find


# --- security groups ------------------------------------------------------------------------------


def group_rules(call: Call) -> list[Rule]:
    """The rules of a security group, or the 500 that there is none."""
    groups = configuration(call.state, "cluster")["groups"]
    if call.params["group"] not in groups:
        raise PveError(500, f"no such security group '{call.params['group']}'")
    rules: list[Rule] = groups[call.params["group"]]
    return rules


@endpoint("GET /cluster/firewall/groups")
def list_groups(call: Call) -> list[dict[str, Any]]:
    """The security groups."""
    conf = configuration(call.state, "cluster")
    rows = []
    for name in sorted(conf["groups"]):
        row = {"group": name}
        if name in conf["group_comments"]:
            row["comment"] = conf["group_comments"][name]
        rows.append(row)
    return listed(rows)


@endpoint("POST /cluster/firewall/groups")
def create_group(call: Call) -> None:
    """Nothing; the group is there, or has another name or comment."""
    conf, params = configuration(call.state, "cluster"), call.params
    name, old = params["group"], params.get("rename")
    check_list_digest(params.get("digest"), [{"group": each} for each in sorted(conf["groups"])] if old else [])
    if old:
        if old not in conf["groups"]:
            raise param_error({"group": f"Security group '{old}' does not exist"})
        if name != old and name in conf["groups"]:
            raise param_error({"group": f"Security group '{name}' already exists"})
        conf["groups"][name] = conf["groups"].pop(old)
        comment = conf["group_comments"].pop(old, None)
        if comment is not None:
            conf["group_comments"][name] = comment
    elif name in conf["groups"]:
        raise param_error({"group": f"Security group '{name}' already exists"})
    else:
        conf["groups"][name] = []
    if "comment" in params:
        conf["group_comments"][name] = params["comment"]


@endpoint("DELETE /cluster/firewall/groups/{group}")
def delete_group(call: Call) -> None:
    """Nothing; the group, which must be empty, is gone."""
    if group_rules(call):
        raise PveError(500, f"Security group '{call.params['group']}' is not empty")
    conf = configuration(call.state, "cluster")
    del conf["groups"][call.params["group"]]
    conf["group_comments"].pop(call.params["group"], None)


# --- aliases --------------------------------------------------------------------------------------


def alias_rows(conf: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The aliases of a file, by name."""
    return [conf["aliases"][name] for name in sorted(conf["aliases"])]


def new_alias(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """An alias as lists show it."""
    network = ipaddress.ip_network(params["cidr"], strict=False)
    alias = {"name": name, "cidr": params["cidr"], "ipversion": network.version}
    return alias | ({"comment": params["comment"]} if params.get("comment") else {})


def aliases_endpoints(level: Level) -> None:
    """Nothing; the endpoints of a level's aliases are registered."""
    base = f"{level.path}/aliases"

    @endpoint(f"GET {base}")
    def read_all(call: Call) -> list[dict[str, Any]]:
        """The aliases of this level."""
        return listed(alias_rows(conf_of(call, level)))

    @endpoint(f"POST {base}")
    def create(call: Call) -> None:
        """Nothing; the alias is there."""
        aliases, name = conf_of(call, level)["aliases"], call.params["name"]
        if name.lower() in aliases:
            raise param_error({"name": f"alias '{name}' already exists"})
        aliases[name.lower()] = new_alias(name, call.params)

    @endpoint(f"GET {base}/{{name}}")
    def read(call: Call) -> dict[str, Any]:
        """One alias."""
        aliases = conf_of(call, level)["aliases"]
        if call.params["name"].lower() not in aliases:
            raise param_error({"name": "no such alias"})
        return dict(aliases[call.params["name"].lower()])

    @endpoint(f"PUT {base}/{{name}}")
    def update(call: Call) -> None:
        """Nothing; the alias is as asked."""
        conf, name = conf_of(call, level), call.params["name"].lower()
        check_list_digest(call.params.get("digest"), alias_rows(conf))
        if name not in conf["aliases"]:
            raise param_error({"name": "no such alias"})
        new = call.params.get("rename") or call.params["name"]
        if new.lower() != name and new.lower() in conf["aliases"]:
            raise param_error({"name": f"alias '{new}' already exists"})
        del conf["aliases"][name]
        conf["aliases"][new.lower()] = new_alias(new, call.params)

    @endpoint(f"DELETE {base}/{{name}}")
    def delete(call: Call) -> None:
        """Nothing; the alias is gone, if there was one."""
        conf = conf_of(call, level)
        check_list_digest(call.params.get("digest"), alias_rows(conf))
        conf["aliases"].pop(call.params["name"].lower(), None)


# --- IP sets --------------------------------------------------------------------------------------


def set_rows(conf: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The IP sets of a file."""
    rows = []
    for name in sorted(conf["ipset"]):
        row = {"name": name}
        if name in conf["ipset_comments"]:
            row["comment"] = conf["ipset_comments"][name]
        rows.append(row)
    return rows


def members(call: Call, level: Level) -> list[dict[str, Any]]:
    """What an IP set holds, or the 500 that there is no such set."""
    sets = conf_of(call, level)["ipset"]
    if call.params["name"] not in sets:
        raise PveError(500, f"no such IPSet '{call.params['name']}'")
    found: list[dict[str, Any]] = sets[call.params["name"]]
    return found


def member(rows: list[dict[str, Any]], cidr: str) -> dict[str, Any]:
    """The entry of an IP set, or the 400 that it has none."""
    for row in rows:
        if row["cidr"] == cidr:
            return row
    raise param_error({"cidr": "no such IP/Network"})


def sets_endpoints(level: Level) -> None:
    """Nothing; the endpoints of a level's IP sets are registered."""
    base = f"{level.path}/ipset"

    @endpoint(f"GET {base}")
    def read_all(call: Call) -> list[dict[str, Any]]:
        """The IP sets of this level."""
        return listed(set_rows(conf_of(call, level)))

    @endpoint(f"POST {base}")
    def create(call: Call) -> None:
        """Nothing; the IP set is there, or has another name or comment."""
        conf, params = conf_of(call, level), call.params
        name, old = params["name"], params.get("rename")
        check_list_digest(params.get("digest"), set_rows(conf))
        if old:
            if old not in conf["ipset"]:
                raise param_error({"name": f"IPSet '{old}' does not exist"})
            if name != old and name in conf["ipset"]:
                raise param_error({"name": f"IPSet '{name}' already exists"})
            conf["ipset"][name] = conf["ipset"].pop(old)
            if old in conf["ipset_comments"]:
                conf["ipset_comments"][name] = conf["ipset_comments"].pop(old)
        elif name in conf["ipset"]:
            raise param_error({"name": f"IPSet '{name}' already exists"})
        else:
            conf["ipset"][name] = []
        if "comment" in params:
            conf["ipset_comments"][name] = params["comment"]

    @endpoint(f"DELETE {base}/{{name}}")
    def delete(call: Call) -> None:
        """Nothing; the IP set, which must be empty unless forced, is gone."""
        conf, name = conf_of(call, level), call.params["name"]
        if members(call, level) and not call.params.get("force"):
            raise PveError(500, f"IPSet '{name}' is not empty")
        del conf["ipset"][name]
        conf["ipset_comments"].pop(name, None)

    @endpoint(f"GET {base}/{{name}}")
    def read(call: Call) -> list[dict[str, Any]]:
        """What an IP set holds."""
        return listed(members(call, level))

    @endpoint(f"POST {base}/{{name}}")
    def add(call: Call) -> None:
        """Nothing; the set holds the address or network."""
        rows, cidr = members(call, level), call.params["cidr"]
        if any(row["cidr"] == cidr for row in rows):
            raise param_error({"cidr": f"address '{cidr}' already exists"})
        if is_network(cidr) and ipaddress.ip_network(cidr, strict=False).prefixlen == 0:
            raise param_error({"cidr": f"a zero prefix is not allowed in ipset entries: '{cidr}'"})
        rows.insert(0, {key: int(value) if isinstance(value, bool) else value for key, value in call.params.items()
                        if key in ("cidr", "comment", "nomatch") and value})  # fmt: skip

    @endpoint(f"GET {base}/{{name}}/{{cidr:rest}}")
    def read_one(call: Call) -> dict[str, Any]:
        """One entry of an IP set."""
        return member(listed(members(call, level)), call.params["cidr"])

    @endpoint(f"PUT {base}/{{name}}/{{cidr:rest}}")
    def update(call: Call) -> None:
        """Nothing; the entry is as asked."""
        rows = members(call, level)
        check_list_digest(call.params.get("digest"), rows)
        row = member(rows, call.params["cidr"])
        for key in ("comment", "nomatch"):
            row.pop(key, None)
            if call.params.get(key):
                row[key] = int(call.params[key]) if key == "nomatch" else call.params[key]

    @endpoint(f"DELETE {base}/{{name}}/{{cidr:rest}}")
    def remove(call: Call) -> None:
        """Nothing; the set does not hold the entry any more."""
        rows = members(call, level)
        check_list_digest(call.params.get("digest"), rows)
        rows.remove(member(rows, call.params["cidr"]))


# --- references and logs --------------------------------------------------------------------------


def references(conf: Mapping[str, Any], scope: str, wanted: str | None) -> list[dict[str, Any]]:
    """The aliases and IP sets of a file as rules may name them."""
    rows: list[dict[str, Any]] = []
    if wanted in (None, "ipset"):
        for row in set_rows(conf):
            name = row["name"]
            rows.append({"type": "ipset", **row, "ref": f"+{scope}/{name}", "scope": scope})
    if wanted in (None, "alias"):
        for alias in alias_rows(conf):
            row = {"type": "alias", "name": alias["name"], "ref": f"{scope}/{alias['name']}", "scope": scope}
            rows.append(row | ({"comment": alias["comment"]} if "comment" in alias else {}))
    return rows


@endpoint("GET /cluster/firewall/refs")
def cluster_references(call: Call) -> list[dict[str, Any]]:
    """The datacenter's aliases and IP sets."""
    return references(configuration(call.state, "cluster"), "dc", call.params.get("type"))


def references_endpoint(level: Level) -> None:
    """Nothing; what a guest's rules may name is registered."""

    @endpoint(f"GET {level.path}/refs")
    def read(call: Call) -> list[dict[str, Any]]:
        """The aliases and IP sets a guest's rules may name: the datacenter's and its own."""
        wanted = call.params.get("type")
        own = references(conf_of(call, level), "guest", wanted)
        return [*references(configuration(call.state, "cluster"), "dc", wanted), *own]


def log_endpoint(level: Level) -> None:
    """Nothing; a level's log is registered."""

    @endpoint(f"GET {level.path}/log")
    def read(call: Call) -> Any:
        """The log of dropped packets; the lab's firewalls drop none, so the file is not there."""
        call.extra["total"] = 1
        row = {"n": 1, "t": "unable to open file - No such file or directory"}
        return row if call.flavour == "8.4" else [row]


for _level in LEVELS:
    options_endpoints(_level)
    rules_endpoints(f"{_level.path}/rules", _level.env, rules_of(_level))
rules_endpoints("/cluster/firewall/groups/{group}", "group", group_rules)
for _level in (CLUSTER, QEMU, LXC):
    aliases_endpoints(_level)
    sets_endpoints(_level)
for _level in (QEMU, LXC):
    references_endpoint(_level)
for _level in (NODE, QEMU, LXC):
    log_endpoint(_level)
