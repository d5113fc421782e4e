"""Software-defined networks: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Array, Boolean, Either, Integer, Number, String, all_of, only_9, perm
from . import Endpoint, Params

ISIS_NET = Either(
    String(optional=True, format="pve-sdn-isis-net"),
    String(
        optional=True,
        format="pve-sdn-isis-net",
        pattern=r"^[a-fA-F0-9]{2}(\.[a-fA-F0-9]{4}){3,9}\.[a-fA-F0-9]{2}$",
        min_length=20,
        max_length=50,
    ),
)
CONTROLLER = Either(
    String(format="pve-sdn-controller-id"),
    String(pattern="^[a-zA-Z][a-zA-Z0-9_-]*[a-zA-Z0-9]$", min_length=2, max_length=64),
)
VNET = Either(
    String(format="pve-sdn-vnet-id"), String(pattern="^[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]$", min_length=2, max_length=8)
)
ZONE = Either(
    String(format="pve-sdn-zone-id"), String(pattern="^[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]$", min_length=2, max_length=8)
)
ASN = Either(
    Integer(optional=True, minimum=0, maximum=4294967296), Integer(optional=True, minimum=0, maximum=4294967295)
)
ID = String(format="pve-sdn-fabric-id", pattern="^[a-zA-Z0-9][a-zA-Z0-9-]{0,6}[a-zA-Z0-9]$", min_length=2, max_length=8)
IPAM = Either(String(format="pve-sdn-ipam-id"), String(pattern="^[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]$", min_length=2))
DNS = Either(String(format="pve-sdn-dns-id"), String(pattern="^[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]$", min_length=2))
TAG = Either(Integer(optional=True), Integer(optional=True, minimum=1, maximum=16777215))
VNET_IN_PATH = String(pattern="^[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]$", min_length=2, max_length=8)
ALIAS = String(optional=True, pattern=r"(?i)^[\(\)-_.\w\d\s]{0,256}$", max_length=256)
FINGERPRINT = String(optional=True, pattern="^([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}$")
DELETE = String(optional=True, format="pve-configid-list", max_length=4096)
FABRIC = only_9(String(optional=True, format="pve-sdn-fabric-id"))
CSNP_INTERVAL = Number(optional=True, minimum=1, maximum=600)
EXITNODES = String(optional=True, format="pve-node-list")
NODE = String(optional=True, format="pve-node")
MAC = String(optional=True, format="mac-addr")
DNSZONEPREFIX = String(optional=True, format="dns-name")
PEERS = String(optional=True, format="ip-list")
DIGEST = String(optional=True, max_length=64)
IP6_PREFIX = String(optional=True, format="CIDR")
PROTOCOL = String(enum=("openfabric", "ospf"))
DHCP_DNS_SERVER = String(optional=True, format="ip")
SUBNET = String(format="pve-sdn-subnet-id")
LOCK_TOKEN = only_9(String(optional=True))

READ_ALL: Params = {"pending": Boolean(optional=True), "running": Boolean(optional=True)}
DELETE_NODE_ID: Params = {"fabric_id": ID, "node_id": String(format="pve-node")}
READ_VNET: Params = {"pending": Boolean(optional=True), "running": Boolean(optional=True), "vnet": VNET}
DELETE_IPS: Params = {"ip": String(format="ip"), "mac": MAC, "vnet": VNET, "zone": ZONE}

TABLE: dict[str, Endpoint] = {
    "GET /cluster/sdn": Endpoint(perm("/sdn", "SDN.Audit")),
    "PUT /cluster/sdn": Endpoint(
        perm("/sdn", "SDN.Allocate"), {"lock-token": LOCK_TOKEN, "release-lock": only_9(Boolean(optional=True))}
    ),
    "GET /cluster/sdn/controllers": Endpoint(
        "any",
        {
            "pending": Boolean(optional=True),
            "running": Boolean(optional=True),
            "type": String(optional=True, enum=("bgp", "evpn", "faucet", "isis")),
        },
    ),
    "POST /cluster/sdn/controllers": Endpoint(
        perm("/sdn/controllers", "SDN.Allocate"),
        {
            "asn": ASN,
            "bgp-multipath-as-path-relax": Boolean(optional=True),
            "controller": CONTROLLER,
            "ebgp": Boolean(optional=True),
            "ebgp-multihop": Integer(optional=True),
            "fabric": FABRIC,
            "isis-domain": String(optional=True),
            "isis-ifaces": String(optional=True, format="pve-iface-list"),
            "isis-net": ISIS_NET,
            "lock-token": LOCK_TOKEN,
            "loopback": String(optional=True),
            "node": NODE,
            "peers": PEERS,
            "type": String(format="pve-configid", enum=("bgp", "evpn", "faucet", "isis")),
        },
    ),
    "DELETE /cluster/sdn/controllers/{controller}": Endpoint(
        perm("/sdn/controllers", "SDN.Allocate"), {"controller": CONTROLLER, "lock-token": LOCK_TOKEN}
    ),
    "GET /cluster/sdn/controllers/{controller}": Endpoint(
        perm("/sdn/controllers/{controller}", "SDN.Allocate"),
        {"controller": CONTROLLER, "pending": Boolean(optional=True), "running": Boolean(optional=True)},
    ),
    "PUT /cluster/sdn/controllers/{controller}": Endpoint(
        perm("/sdn/controllers", "SDN.Allocate"),
        {
            "asn": ASN,
            "bgp-multipath-as-path-relax": Boolean(optional=True),
            "controller": CONTROLLER,
            "delete": DELETE,
            "digest": DIGEST,
            "ebgp": Boolean(optional=True),
            "ebgp-multihop": Integer(optional=True),
            "fabric": FABRIC,
            "isis-domain": String(optional=True),
            "isis-ifaces": String(optional=True, format="pve-iface-list"),
            "isis-net": ISIS_NET,
            "lock-token": LOCK_TOKEN,
            "loopback": String(optional=True),
            "node": NODE,
            "peers": PEERS,
        },
    ),
    "GET /cluster/sdn/dns": Endpoint("any", {"type": String(optional=True, enum=("powerdns",))}),
    "POST /cluster/sdn/dns": Endpoint(
        perm("/sdn/dns", "SDN.Allocate"),
        {
            "dns": DNS,
            "fingerprint": FINGERPRINT,
            "key": String(),
            "lock-token": LOCK_TOKEN,
            "reversemaskv6": Integer(optional=True),
            "reversev6mask": Integer(optional=True),
            "ttl": Integer(optional=True),
            "type": String(format="pve-configid", enum=("powerdns",)),
            "url": String(),
        },
    ),
    "DELETE /cluster/sdn/dns/{dns}": Endpoint(perm("/sdn/dns", "SDN.Allocate"), {"dns": DNS, "lock-token": LOCK_TOKEN}),
    "GET /cluster/sdn/dns/{dns}": Endpoint(perm("/sdn/dns/{dns}", "SDN.Allocate"), {"dns": DNS}),
    "PUT /cluster/sdn/dns/{dns}": Endpoint(
        perm("/sdn/dns", "SDN.Allocate"),
        {
            "delete": DELETE,
            "digest": DIGEST,
            "dns": DNS,
            "fingerprint": FINGERPRINT,
            "key": String(optional=True),
            "lock-token": LOCK_TOKEN,
            "reversemaskv6": Integer(optional=True),
            "ttl": Integer(optional=True),
            "url": String(optional=True),
        },
    ),
    "GET /cluster/sdn/dry-run": Endpoint(
        perm("/nodes/{node}", "Sys.Audit"), {"node": String(format="pve-node")}, only="9.2"
    ),
    "GET /cluster/sdn/fabrics": Endpoint(perm("/sdn/fabrics", "SDN.Audit"), only="9.2"),
    "GET /cluster/sdn/fabrics/all": Endpoint("any", READ_ALL, only="9.2"),
    "GET /cluster/sdn/fabrics/fabric": Endpoint("any", READ_ALL, only="9.2"),
    "POST /cluster/sdn/fabrics/fabric": Endpoint(
        perm("/sdn/fabrics", "SDN.Allocate"),
        {
            "area": String(optional=True),
            "csnp_interval": CSNP_INTERVAL,
            "digest": DIGEST,
            "hello_interval": CSNP_INTERVAL,
            "id": ID,
            "ip6_prefix": IP6_PREFIX,
            "ip_prefix": IP6_PREFIX,
            "lock-token": String(optional=True),
            "protocol": PROTOCOL,
        },
        only="9.2",
    ),
    "DELETE /cluster/sdn/fabrics/fabric/{id}": Endpoint(
        perm("/sdn/fabrics/{id}", "SDN.Allocate"), {"id": ID}, only="9.2"
    ),
    "GET /cluster/sdn/fabrics/fabric/{id}": Endpoint(
        perm("/sdn/fabrics/{id}", "SDN.Audit", "SDN.Allocate", any_of=True), {"id": ID}, only="9.2"
    ),
    "PUT /cluster/sdn/fabrics/fabric/{id}": Endpoint(
        perm("/sdn/fabrics/{id}", "SDN.Allocate"),
        {
            "area": String(optional=True),
            "csnp_interval": CSNP_INTERVAL,
            "delete": Array(),
            "digest": DIGEST,
            "hello_interval": CSNP_INTERVAL,
            "id": ID,
            "ip6_prefix": IP6_PREFIX,
            "ip_prefix": IP6_PREFIX,
            "lock-token": String(optional=True),
            "protocol": PROTOCOL,
        },
        only="9.2",
    ),
    "GET /cluster/sdn/fabrics/node": Endpoint("any", READ_ALL, only="9.2"),
    "GET /cluster/sdn/fabrics/node/{fabric_id}": Endpoint(
        perm("/sdn/fabrics/{fabric_id}", "SDN.Audit"),
        {"fabric_id": ID, "pending": Boolean(optional=True), "running": Boolean(optional=True)},
        only="9.2",
    ),
    "POST /cluster/sdn/fabrics/node/{fabric_id}": Endpoint(
        all_of(perm("/sdn/fabrics/{fabric_id}", "SDN.Allocate"), perm("/nodes/{node_id}", "Sys.Modify")),
        {
            "digest": DIGEST,
            "fabric_id": ID,
            "interfaces": Array(),
            "ip": String(optional=True, format="ipv4"),
            "ip6": String(optional=True, format="ipv6"),
            "lock-token": String(optional=True),
            "node_id": String(format="pve-node"),
            "protocol": PROTOCOL,
        },
        only="9.2",
    ),
    "DELETE /cluster/sdn/fabrics/node/{fabric_id}/{node_id}": Endpoint(
        all_of(perm("/sdn/fabrics/{fabric_id}", "SDN.Allocate"), perm("/nodes/{node_id}", "Sys.Modify")),
        DELETE_NODE_ID,
        only="9.2",
    ),
    "GET /cluster/sdn/fabrics/node/{fabric_id}/{node_id}": Endpoint(
        all_of(
            perm("/sdn/fabrics/{fabric_id}", "SDN.Audit", "SDN.Allocate", any_of=True),
            perm("/nodes/{node_id}", "Sys.Audit", "Sys.Modify", any_of=True),
        ),
        DELETE_NODE_ID,
        only="9.2",
    ),
    "PUT /cluster/sdn/fabrics/node/{fabric_id}/{node_id}": Endpoint(
        all_of(perm("/sdn/fabrics/{fabric_id}", "SDN.Allocate"), perm("/nodes/{node_id}", "Sys.Modify")),
        {
            "delete": Array(optional=True),
            "digest": DIGEST,
            "fabric_id": ID,
            "interfaces": Array(),
            "ip": String(optional=True, format="ipv4"),
            "ip6": String(optional=True, format="ipv6"),
            "lock-token": String(optional=True),
            "node_id": String(format="pve-node"),
            "protocol": PROTOCOL,
        },
        only="9.2",
    ),
    "GET /cluster/sdn/ipams": Endpoint("any", {"type": String(optional=True, enum=("netbox", "phpipam", "pve"))}),
    "POST /cluster/sdn/ipams": Endpoint(
        perm("/sdn/ipams", "SDN.Allocate"),
        {
            "fingerprint": FINGERPRINT,
            "ipam": IPAM,
            "lock-token": LOCK_TOKEN,
            "section": Integer(optional=True),
            "token": String(optional=True),
            "type": String(format="pve-configid", enum=("netbox", "phpipam", "pve")),
            "url": String(optional=True),
        },
    ),
    "DELETE /cluster/sdn/ipams/{ipam}": Endpoint(
        perm("/sdn/ipams", "SDN.Allocate"), {"ipam": IPAM, "lock-token": LOCK_TOKEN}
    ),
    "GET /cluster/sdn/ipams/{ipam}": Endpoint(perm("/sdn/ipams/{ipam}", "SDN.Allocate"), {"ipam": IPAM}),
    "PUT /cluster/sdn/ipams/{ipam}": Endpoint(
        perm("/sdn/ipams", "SDN.Allocate"),
        {
            "delete": DELETE,
            "digest": DIGEST,
            "fingerprint": FINGERPRINT,
            "ipam": IPAM,
            "lock-token": LOCK_TOKEN,
            "section": Integer(optional=True),
            "token": String(optional=True),
            "url": String(optional=True),
        },
    ),
    "GET /cluster/sdn/ipams/{ipam}/status": Endpoint("any", {"ipam": IPAM}),
    "DELETE /cluster/sdn/lock": Endpoint(
        perm("/sdn", "SDN.Allocate"), {"force": Boolean(optional=True), "lock-token": String(optional=True)}, only="9.2"
    ),
    "POST /cluster/sdn/lock": Endpoint(
        perm("/sdn", "SDN.Allocate"), {"allow-pending": Boolean(optional=True)}, only="9.2"
    ),
    "POST /cluster/sdn/rollback": Endpoint(
        perm("/sdn", "SDN.Allocate"),
        {"lock-token": String(optional=True), "release-lock": Boolean(optional=True)},
        only="9.2",
    ),
    "GET /cluster/sdn/vnets": Endpoint("any", READ_ALL),
    "POST /cluster/sdn/vnets": Endpoint(
        perm("/sdn/zones/{zone}", "SDN.Allocate"),
        {
            "alias": ALIAS,
            "isolate-ports": Boolean(optional=True),
            "lock-token": LOCK_TOKEN,
            "tag": TAG,
            "type": String(optional=True, enum=("vnet",)),
            "vlanaware": Boolean(optional=True),
            "vnet": VNET,
            "zone": String(),
        },
    ),
    "DELETE /cluster/sdn/vnets/{vnet}": Endpoint("any", {"lock-token": LOCK_TOKEN, "vnet": VNET}),
    "GET /cluster/sdn/vnets/{vnet}": Endpoint("any", READ_VNET),
    "PUT /cluster/sdn/vnets/{vnet}": Endpoint(
        "any",
        {
            "alias": ALIAS,
            "delete": DELETE,
            "digest": DIGEST,
            "isolate-ports": Boolean(optional=True),
            "lock-token": LOCK_TOKEN,
            "tag": TAG,
            "vlanaware": Boolean(optional=True),
            "vnet": VNET,
            "zone": String(optional=True),
        },
    ),
    "DELETE /cluster/sdn/vnets/{vnet}/ips": Endpoint(perm("/sdn/zones/{zone}/{vnet}", "SDN.Allocate"), DELETE_IPS),
    "POST /cluster/sdn/vnets/{vnet}/ips": Endpoint(perm("/sdn/zones/{zone}/{vnet}", "SDN.Allocate"), DELETE_IPS),
    "PUT /cluster/sdn/vnets/{vnet}/ips": Endpoint(
        perm("/sdn/zones/{zone}/{vnet}", "SDN.Allocate"),
        {
            "ip": String(format="ip"),
            "mac": MAC,
            "vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
            "vnet": VNET,
            "zone": ZONE,
        },
    ),
    "GET /cluster/sdn/vnets/{vnet}/subnets": Endpoint("any", READ_VNET),
    "POST /cluster/sdn/vnets/{vnet}/subnets": Endpoint(
        "any",
        {
            "dhcp-dns-server": DHCP_DNS_SERVER,
            "dhcp-range": Array(optional=True),
            "dnszoneprefix": DNSZONEPREFIX,
            "gateway": DHCP_DNS_SERVER,
            "lock-token": LOCK_TOKEN,
            "snat": Boolean(optional=True),
            "subnet": SUBNET,
            "type": String(enum=("subnet",)),
        },
    ),
    "DELETE /cluster/sdn/vnets/{vnet}/subnets/{subnet}": Endpoint(
        "any", {"lock-token": LOCK_TOKEN, "subnet": SUBNET, "vnet": VNET}
    ),
    "GET /cluster/sdn/vnets/{vnet}/subnets/{subnet}": Endpoint(
        "any", {"pending": Boolean(optional=True), "running": Boolean(optional=True), "subnet": SUBNET, "vnet": VNET}
    ),
    "PUT /cluster/sdn/vnets/{vnet}/subnets/{subnet}": Endpoint(
        "any",
        {
            "delete": DELETE,
            "dhcp-dns-server": DHCP_DNS_SERVER,
            "dhcp-range": Array(optional=True),
            "digest": DIGEST,
            "dnszoneprefix": DNSZONEPREFIX,
            "gateway": DHCP_DNS_SERVER,
            "lock-token": LOCK_TOKEN,
            "snat": Boolean(optional=True),
            "subnet": SUBNET,
            "vnet": String(optional=True),
        },
    ),
    "GET /cluster/sdn/zones": Endpoint(
        "any",
        {
            "pending": Boolean(optional=True),
            "running": Boolean(optional=True),
            "type": String(optional=True, enum=("evpn", "faucet", "qinq", "simple", "vlan", "vxlan")),
        },
    ),
    "POST /cluster/sdn/zones": Endpoint(
        perm("/sdn/zones", "SDN.Allocate"),
        {
            "advertise-subnets": Boolean(optional=True),
            "bridge": String(optional=True),
            "bridge-disable-mac-learning": Boolean(optional=True),
            "controller": String(optional=True),
            "dhcp": String(optional=True, enum=("dnsmasq",)),
            "disable-arp-nd-suppression": Boolean(optional=True),
            "dns": String(optional=True),
            "dnszone": DNSZONEPREFIX,
            "dp-id": Integer(optional=True),
            "exitnodes": EXITNODES,
            "exitnodes-local-routing": Boolean(optional=True),
            "exitnodes-primary": NODE,
            "fabric": FABRIC,
            "ipam": String(optional=True),
            "lock-token": LOCK_TOKEN,
            "mac": MAC,
            "mtu": Integer(optional=True),
            "nodes": EXITNODES,
            "peers": PEERS,
            "reversedns": String(optional=True),
            "rt-import": String(optional=True, format="pve-sdn-bgp-rt-list"),
            "tag": Integer(optional=True, minimum=0),
            "type": String(format="pve-configid", enum=("evpn", "faucet", "qinq", "simple", "vlan", "vxlan")),
            "vlan-protocol": String(optional=True, enum=("802.1q", "802.1ad")),
            "vrf-vxlan": TAG,
            "vxlan-port": Integer(optional=True, minimum=1, maximum=65536),
            "zone": ZONE,
        },
    ),
    "DELETE /cluster/sdn/zones/{zone}": Endpoint(
        perm("/sdn/zones/{zone}", "SDN.Allocate"), {"lock-token": LOCK_TOKEN, "zone": ZONE}
    ),
    "GET /cluster/sdn/zones/{zone}": Endpoint(
        perm("/sdn/zones/{zone}", "SDN.Allocate"),
        {"pending": Boolean(optional=True), "running": Boolean(optional=True), "zone": ZONE},
    ),
    "PUT /cluster/sdn/zones/{zone}": Endpoint(
        perm("/sdn/zones/{zone}", "SDN.Allocate"),
        {
            "advertise-subnets": Boolean(optional=True),
            "bridge": String(optional=True),
            "bridge-disable-mac-learning": Boolean(optional=True),
            "controller": String(optional=True),
            "delete": DELETE,
            "dhcp": String(optional=True, enum=("dnsmasq",)),
            "digest": DIGEST,
            "disable-arp-nd-suppression": Boolean(optional=True),
            "dns": String(optional=True),
            "dnszone": DNSZONEPREFIX,
            "dp-id": Integer(optional=True),
            "exitnodes": EXITNODES,
            "exitnodes-local-routing": Boolean(optional=True),
            "exitnodes-primary": NODE,
            "fabric": FABRIC,
            "ipam": String(optional=True),
            "lock-token": LOCK_TOKEN,
            "mac": MAC,
            "mtu": Integer(optional=True),
            "nodes": EXITNODES,
            "peers": PEERS,
            "reversedns": String(optional=True),
            "rt-import": String(optional=True, format="pve-sdn-bgp-rt-list"),
            "tag": Integer(optional=True, minimum=0),
            "vlan-protocol": String(optional=True, enum=("802.1q", "802.1ad")),
            "vrf-vxlan": TAG,
            "vxlan-port": Integer(optional=True, minimum=1, maximum=65536),
            "zone": ZONE,
        },
    ),
    "GET /nodes/{node}/sdn": Endpoint("any"),
    "GET /nodes/{node}/sdn/fabrics/{fabric}": Endpoint(
        perm("/sdn/fabrics/{fabric}", "SDN.Audit"), {"fabric": ID}, only="9.2", node=False
    ),
    "GET /nodes/{node}/sdn/fabrics/{fabric}/interfaces": Endpoint(
        perm("/sdn/fabrics/{fabric}", "SDN.Audit"), {"fabric": ID}, only="9.2"
    ),
    "GET /nodes/{node}/sdn/fabrics/{fabric}/neighbors": Endpoint(
        perm("/sdn/fabrics/{fabric}", "SDN.Audit"), {"fabric": ID}, only="9.2"
    ),
    "GET /nodes/{node}/sdn/fabrics/{fabric}/routes": Endpoint(
        perm("/sdn/fabrics/{fabric}", "SDN.Audit"), {"fabric": ID}, only="9.2"
    ),
    "GET /nodes/{node}/sdn/vnets/{vnet}": Endpoint("any", {"vnet": VNET_IN_PATH}, only="9.2", node=False),
    "GET /nodes/{node}/sdn/vnets/{vnet}/mac-vrf": Endpoint("any", {"vnet": VNET_IN_PATH}, only="9.2"),
    "GET /nodes/{node}/sdn/zones": Endpoint("any"),
    "GET /nodes/{node}/sdn/zones/{zone}": Endpoint(perm("/sdn/zones/{zone}", "SDN.Audit"), {"zone": ZONE}, node=False),
    "GET /nodes/{node}/sdn/zones/{zone}/bridges": Endpoint(perm("/sdn/zones/{zone}", "SDN.Audit"), only="9.2"),
    "GET /nodes/{node}/sdn/zones/{zone}/content": Endpoint(perm("/sdn/zones/{zone}", "SDN.Audit"), {"zone": ZONE}),
    "GET /nodes/{node}/sdn/zones/{zone}/ip-vrf": Endpoint(perm("/sdn/zones/{zone}", "SDN.Audit"), only="9.2"),
}
