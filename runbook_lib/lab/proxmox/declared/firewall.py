"""The firewall: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, String, perm
from . import Endpoint, Params

VNET = Either(
    String(format="pve-sdn-vnet-id"), String(pattern="^[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]$", min_length=2, max_length=8)
)
LOG = String(optional=True, enum=("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog"))
RENAME = String(optional=True, pattern=r"^[A-Za-z][A-Za-z0-9\-\_]+$", min_length=2, max_length=64)
ACTION_TO_CHANGE = String(optional=True, pattern=r"^[A-Za-z][A-Za-z0-9\-\_]+$", min_length=2, max_length=20)
NAME = String(pattern=r"^[A-Za-z][A-Za-z0-9\-\_]+$", min_length=2, max_length=64)
GROUP = String(pattern=r"^[A-Za-z][A-Za-z0-9\-\_]+$", min_length=2, max_length=18)
ACTION = String(pattern=r"^[A-Za-z][A-Za-z0-9\-\_]+$", min_length=2, max_length=20)
IFACE = String(optional=True, format="pve-iface", min_length=2, max_length=20)
DEST = String(optional=True, format="pve-fw-addr-spec", max_length=512)
TYPE = String(optional=True, enum=("in", "out", "forward", "group"))
POLICY_IN = String(optional=True, enum=("ACCEPT", "REJECT", "DROP"))
ICMP_TYPE = String(optional=True, format="pve-fw-icmp-type-spec")
PROTO = String(optional=True, format="pve-fw-protocol-spec")
DPORT = String(optional=True, format="pve-fw-dport-spec")
SPORT = String(optional=True, format="pve-fw-sport-spec")
DELETE = String(optional=True, format="pve-configid-list")
MACRO = String(optional=True, max_length=128)
DIGEST = String(optional=True, max_length=64)
POS = Integer(optional=True, minimum=0)
CIDR = String(format="IPorCIDRorAlias")

CREATE_ALIASES: Params = {"cidr": String(format="IPorCIDR"), "comment": String(optional=True), "name": NAME}
DELETE_NAME: Params = {"digest": DIGEST, "name": NAME}
UPDATE_NAME: Params = {
    "cidr": String(format="IPorCIDR"),
    "comment": String(optional=True),
    "digest": DIGEST,
    "name": NAME,
    "rename": RENAME,
}
CREATE_IPSET: Params = {"comment": String(optional=True), "digest": DIGEST, "name": NAME, "rename": RENAME}
DELETE_SET: Params = {"force": Boolean(optional=True), "name": NAME}
CREATE_NAME: Params = {"cidr": CIDR, "comment": String(optional=True), "name": NAME, "nomatch": Boolean(optional=True)}
DELETE_CIDR: Params = {"cidr": CIDR, "digest": DIGEST, "name": NAME}
READ_CIDR: Params = {"cidr": CIDR, "name": NAME}
UPDATE_CIDR: Params = {
    "cidr": CIDR,
    "comment": String(optional=True),
    "digest": DIGEST,
    "name": NAME,
    "nomatch": Boolean(optional=True),
}
CREATE_RULES: Params = {
    "action": ACTION,
    "comment": String(optional=True),
    "dest": DEST,
    "digest": DIGEST,
    "dport": DPORT,
    "enable": POS,
    "icmp-type": ICMP_TYPE,
    "iface": IFACE,
    "log": LOG,
    "macro": MACRO,
    "pos": POS,
    "proto": PROTO,
    "source": DEST,
    "sport": SPORT,
    "type": String(enum=("in", "out", "forward", "group")),
}
DELETE_POS: Params = {"digest": DIGEST, "pos": POS}
UPDATE_POS: Params = {
    "action": ACTION_TO_CHANGE,
    "comment": String(optional=True),
    "delete": DELETE,
    "dest": DEST,
    "digest": DIGEST,
    "dport": DPORT,
    "enable": POS,
    "icmp-type": ICMP_TYPE,
    "iface": IFACE,
    "log": LOG,
    "macro": MACRO,
    "moveto": POS,
    "pos": POS,
    "proto": PROTO,
    "source": DEST,
    "sport": SPORT,
    "type": TYPE,
}
READ_LOG: Params = {"limit": POS, "since": POS, "start": POS, "until": POS}
UPDATE_OPTIONS: Params = {
    "delete": DELETE,
    "dhcp": Boolean(optional=True),
    "digest": DIGEST,
    "enable": Boolean(optional=True),
    "ipfilter": Boolean(optional=True),
    "log_level_in": LOG,
    "log_level_out": LOG,
    "macfilter": Boolean(optional=True),
    "ndp": Boolean(optional=True),
    "policy_in": POLICY_IN,
    "policy_out": POLICY_IN,
    "radv": Boolean(optional=True),
}

TABLE: dict[str, Endpoint] = {
    "GET /cluster/firewall": Endpoint("any"),
    "GET /cluster/firewall/aliases": Endpoint(perm("/", "Sys.Audit")),
    "POST /cluster/firewall/aliases": Endpoint(perm("/", "Sys.Modify"), CREATE_ALIASES),
    "DELETE /cluster/firewall/aliases/{name}": Endpoint(perm("/", "Sys.Modify"), DELETE_NAME),
    "GET /cluster/firewall/aliases/{name}": Endpoint(perm("/", "Sys.Audit"), {"name": NAME}),
    "PUT /cluster/firewall/aliases/{name}": Endpoint(perm("/", "Sys.Modify"), UPDATE_NAME),
    "GET /cluster/firewall/groups": Endpoint("any"),
    "POST /cluster/firewall/groups": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "comment": String(optional=True),
            "digest": DIGEST,
            "group": GROUP,
            "rename": String(optional=True, pattern=r"^[A-Za-z][A-Za-z0-9\-\_]+$", min_length=2, max_length=18),
        },
    ),
    "DELETE /cluster/firewall/groups/{group}": Endpoint(perm("/", "Sys.Modify"), {"group": GROUP}),
    "GET /cluster/firewall/groups/{group}": Endpoint(perm("/", "Sys.Audit"), {"group": GROUP}),
    "POST /cluster/firewall/groups/{group}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "action": ACTION,
            "comment": String(optional=True),
            "dest": DEST,
            "digest": DIGEST,
            "dport": DPORT,
            "enable": POS,
            "group": GROUP,
            "icmp-type": ICMP_TYPE,
            "iface": IFACE,
            "log": LOG,
            "macro": MACRO,
            "pos": POS,
            "proto": PROTO,
            "source": DEST,
            "sport": SPORT,
            "type": String(enum=("in", "out", "forward", "group")),
        },
    ),
    "DELETE /cluster/firewall/groups/{group}/{pos}": Endpoint(
        perm("/", "Sys.Modify"), {"digest": DIGEST, "group": GROUP, "pos": POS}
    ),
    "GET /cluster/firewall/groups/{group}/{pos}": Endpoint(perm("/", "Sys.Audit"), {"group": GROUP, "pos": POS}),
    "PUT /cluster/firewall/groups/{group}/{pos}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "action": ACTION_TO_CHANGE,
            "comment": String(optional=True),
            "delete": DELETE,
            "dest": DEST,
            "digest": DIGEST,
            "dport": DPORT,
            "enable": POS,
            "group": GROUP,
            "icmp-type": ICMP_TYPE,
            "iface": IFACE,
            "log": LOG,
            "macro": MACRO,
            "moveto": POS,
            "pos": POS,
            "proto": PROTO,
            "source": DEST,
            "sport": SPORT,
            "type": TYPE,
        },
    ),
    "GET /cluster/firewall/ipset": Endpoint(perm("/", "Sys.Audit")),
    "POST /cluster/firewall/ipset": Endpoint(perm("/", "Sys.Modify"), CREATE_IPSET),
    "DELETE /cluster/firewall/ipset/{name}": Endpoint(perm("/", "Sys.Modify"), DELETE_SET),
    "GET /cluster/firewall/ipset/{name}": Endpoint(perm("/", "Sys.Audit"), {"name": NAME}),
    "POST /cluster/firewall/ipset/{name}": Endpoint(perm("/", "Sys.Modify"), CREATE_NAME),
    "DELETE /cluster/firewall/ipset/{name}/{cidr:rest}": Endpoint(perm("/", "Sys.Modify"), DELETE_CIDR),
    "GET /cluster/firewall/ipset/{name}/{cidr:rest}": Endpoint(perm("/", "Sys.Audit"), READ_CIDR),
    "PUT /cluster/firewall/ipset/{name}/{cidr:rest}": Endpoint(perm("/", "Sys.Modify"), UPDATE_CIDR),
    "GET /cluster/firewall/macros": Endpoint("any"),
    "GET /cluster/firewall/options": Endpoint(perm("/", "Sys.Audit")),
    "PUT /cluster/firewall/options": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "delete": DELETE,
            "digest": DIGEST,
            "ebtables": Boolean(optional=True),
            "enable": POS,
            "log_ratelimit": String(
                optional=True,
                format={
                    "burst": POS,
                    "enable": Boolean(),
                    "rate": String(optional=True, pattern=r"^(?:[1-9][0-9]*\/(second|minute|hour|day))$"),
                },
            ),
            "policy_forward": String(optional=True, enum=("ACCEPT", "DROP")),
            "policy_in": POLICY_IN,
            "policy_out": POLICY_IN,
        },
    ),
    "GET /cluster/firewall/refs": Endpoint(
        perm("/", "Sys.Audit"), {"type": String(optional=True, enum=("alias", "ipset"))}
    ),
    "GET /cluster/firewall/rules": Endpoint(perm("/", "Sys.Audit")),
    "POST /cluster/firewall/rules": Endpoint(perm("/", "Sys.Modify"), CREATE_RULES),
    "DELETE /cluster/firewall/rules/{pos}": Endpoint(perm("/", "Sys.Modify"), DELETE_POS),
    "GET /cluster/firewall/rules/{pos}": Endpoint(perm("/", "Sys.Audit"), {"pos": POS}),
    "PUT /cluster/firewall/rules/{pos}": Endpoint(perm("/", "Sys.Modify"), UPDATE_POS),
    "GET /cluster/sdn/vnets/{vnet}/firewall": Endpoint("root-only", {"vnet": VNET}),
    "GET /cluster/sdn/vnets/{vnet}/firewall/options": Endpoint("any", {"vnet": VNET}),
    "PUT /cluster/sdn/vnets/{vnet}/firewall/options": Endpoint(
        "any",
        {
            "delete": DELETE,
            "digest": DIGEST,
            "enable": Boolean(optional=True),
            "log_level_forward": LOG,
            "policy_forward": String(optional=True, enum=("ACCEPT", "DROP")),
            "vnet": VNET,
        },
    ),
    "GET /cluster/sdn/vnets/{vnet}/firewall/rules": Endpoint("any", {"vnet": VNET}),
    "POST /cluster/sdn/vnets/{vnet}/firewall/rules": Endpoint(
        "any",
        {
            "action": ACTION,
            "comment": String(optional=True),
            "dest": DEST,
            "digest": DIGEST,
            "dport": DPORT,
            "enable": POS,
            "icmp-type": ICMP_TYPE,
            "iface": IFACE,
            "log": LOG,
            "macro": MACRO,
            "pos": POS,
            "proto": PROTO,
            "source": DEST,
            "sport": SPORT,
            "type": String(enum=("in", "out", "forward", "group")),
            "vnet": VNET,
        },
    ),
    "DELETE /cluster/sdn/vnets/{vnet}/firewall/rules/{pos}": Endpoint(
        "any", {"digest": DIGEST, "pos": POS, "vnet": VNET}
    ),
    "GET /cluster/sdn/vnets/{vnet}/firewall/rules/{pos}": Endpoint("any", {"pos": POS, "vnet": VNET}),
    "PUT /cluster/sdn/vnets/{vnet}/firewall/rules/{pos}": Endpoint(
        "any",
        {
            "action": ACTION_TO_CHANGE,
            "comment": String(optional=True),
            "delete": DELETE,
            "dest": DEST,
            "digest": DIGEST,
            "dport": DPORT,
            "enable": POS,
            "icmp-type": ICMP_TYPE,
            "iface": IFACE,
            "log": LOG,
            "macro": MACRO,
            "moveto": POS,
            "pos": POS,
            "proto": PROTO,
            "source": DEST,
            "sport": SPORT,
            "type": TYPE,
            "vnet": VNET,
        },
    ),
    "GET /nodes/{node}/firewall": Endpoint("any", node=False),
    "GET /nodes/{node}/firewall/log": Endpoint(perm("/nodes/{node}", "Sys.Syslog"), READ_LOG),
    "GET /nodes/{node}/firewall/options": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "PUT /nodes/{node}/firewall/options": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"),
        {
            "delete": DELETE,
            "digest": DIGEST,
            "enable": Boolean(optional=True),
            "log_level_forward": LOG,
            "log_level_in": LOG,
            "log_level_out": LOG,
            "log_nf_conntrack": Boolean(optional=True),
            "ndp": Boolean(optional=True),
            "nf_conntrack_allow_invalid": Boolean(optional=True),
            "nf_conntrack_helpers": String(optional=True, format="pve-fw-conntrack-helper"),
            "nf_conntrack_max": Integer(optional=True, minimum=32768),
            "nf_conntrack_tcp_timeout_established": Integer(optional=True, minimum=7875),
            "nf_conntrack_tcp_timeout_syn_recv": Integer(optional=True, minimum=30, maximum=60),
            "nftables": Boolean(optional=True),
            "nosmurfs": Boolean(optional=True),
            "protection_synflood": Boolean(optional=True),
            "protection_synflood_burst": Integer(optional=True),
            "protection_synflood_rate": Integer(optional=True),
            "smurf_log_level": LOG,
            "tcp_flags_log_level": LOG,
            "tcpflags": Boolean(optional=True),
        },
    ),
    "GET /nodes/{node}/firewall/rules": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "POST /nodes/{node}/firewall/rules": Endpoint(perm("/nodes/{node}", "Sys.Modify"), CREATE_RULES),
    "DELETE /nodes/{node}/firewall/rules/{pos}": Endpoint(perm("/nodes/{node}", "Sys.Modify"), DELETE_POS),
    "GET /nodes/{node}/firewall/rules/{pos}": Endpoint(perm("/nodes/{node}", "Sys.Audit"), {"pos": POS}),
    "PUT /nodes/{node}/firewall/rules/{pos}": Endpoint(perm("/nodes/{node}", "Sys.Modify"), UPDATE_POS),
    "GET /nodes/{node}/lxc/{vmid}/firewall": Endpoint("any", node=False),
    "GET /nodes/{node}/lxc/{vmid}/firewall/aliases": Endpoint(perm("/vms/{vmid}", "VM.Audit"), node=False),
    "POST /nodes/{node}/lxc/{vmid}/firewall/aliases": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_ALIASES, node=False
    ),
    "DELETE /nodes/{node}/lxc/{vmid}/firewall/aliases/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_NAME, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/aliases/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"name": NAME}, node=False
    ),
    "PUT /nodes/{node}/lxc/{vmid}/firewall/aliases/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_NAME, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/ipset": Endpoint(perm("/vms/{vmid}", "VM.Audit"), node=False),
    "POST /nodes/{node}/lxc/{vmid}/firewall/ipset": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_IPSET, node=False
    ),
    "DELETE /nodes/{node}/lxc/{vmid}/firewall/ipset/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_SET, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/ipset/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"name": NAME}, node=False
    ),
    "POST /nodes/{node}/lxc/{vmid}/firewall/ipset/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_NAME, node=False
    ),
    "DELETE /nodes/{node}/lxc/{vmid}/firewall/ipset/{name}/{cidr:rest}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_CIDR, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/ipset/{name}/{cidr:rest}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), READ_CIDR, node=False
    ),
    "PUT /nodes/{node}/lxc/{vmid}/firewall/ipset/{name}/{cidr:rest}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_CIDR, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/log": Endpoint(perm("/vms/{vmid}", "VM.Console"), READ_LOG),
    "GET /nodes/{node}/lxc/{vmid}/firewall/options": Endpoint(perm("/vms/{vmid}", "VM.Audit")),
    "PUT /nodes/{node}/lxc/{vmid}/firewall/options": Endpoint(perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_OPTIONS),
    "GET /nodes/{node}/lxc/{vmid}/firewall/refs": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"type": String(optional=True, enum=("alias", "ipset"))}, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/rules": Endpoint(perm("/vms/{vmid}", "VM.Audit"), node=False),
    "POST /nodes/{node}/lxc/{vmid}/firewall/rules": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_RULES, node=False
    ),
    "DELETE /nodes/{node}/lxc/{vmid}/firewall/rules/{pos}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_POS, node=False
    ),
    "GET /nodes/{node}/lxc/{vmid}/firewall/rules/{pos}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"pos": POS}, node=False
    ),
    "PUT /nodes/{node}/lxc/{vmid}/firewall/rules/{pos}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_POS, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall": Endpoint("any", node=False),
    "GET /nodes/{node}/qemu/{vmid}/firewall/aliases": Endpoint(perm("/vms/{vmid}", "VM.Audit"), node=False),
    "POST /nodes/{node}/qemu/{vmid}/firewall/aliases": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_ALIASES, node=False
    ),
    "DELETE /nodes/{node}/qemu/{vmid}/firewall/aliases/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_NAME, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/aliases/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"name": NAME}, node=False
    ),
    "PUT /nodes/{node}/qemu/{vmid}/firewall/aliases/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_NAME, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/ipset": Endpoint(perm("/vms/{vmid}", "VM.Audit"), node=False),
    "POST /nodes/{node}/qemu/{vmid}/firewall/ipset": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_IPSET, node=False
    ),
    "DELETE /nodes/{node}/qemu/{vmid}/firewall/ipset/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_SET, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/ipset/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"name": NAME}, node=False
    ),
    "POST /nodes/{node}/qemu/{vmid}/firewall/ipset/{name}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_NAME, node=False
    ),
    "DELETE /nodes/{node}/qemu/{vmid}/firewall/ipset/{name}/{cidr:rest}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_CIDR, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/ipset/{name}/{cidr:rest}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), READ_CIDR, node=False
    ),
    "PUT /nodes/{node}/qemu/{vmid}/firewall/ipset/{name}/{cidr:rest}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_CIDR, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/log": Endpoint(perm("/vms/{vmid}", "VM.Console"), READ_LOG),
    "GET /nodes/{node}/qemu/{vmid}/firewall/options": Endpoint(perm("/vms/{vmid}", "VM.Audit")),
    "PUT /nodes/{node}/qemu/{vmid}/firewall/options": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_OPTIONS
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/refs": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"type": String(optional=True, enum=("alias", "ipset"))}, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/rules": Endpoint(perm("/vms/{vmid}", "VM.Audit"), node=False),
    "POST /nodes/{node}/qemu/{vmid}/firewall/rules": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), CREATE_RULES, node=False
    ),
    "DELETE /nodes/{node}/qemu/{vmid}/firewall/rules/{pos}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), DELETE_POS, node=False
    ),
    "GET /nodes/{node}/qemu/{vmid}/firewall/rules/{pos}": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"), {"pos": POS}, node=False
    ),
    "PUT /nodes/{node}/qemu/{vmid}/firewall/rules/{pos}": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Network"), UPDATE_POS, node=False
    ),
}
