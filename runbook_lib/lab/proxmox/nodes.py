"""Nodes themselves: what they are made of, how they feel, what they run."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import storage as storages
from .drift import drift, phase
from .routing import Boolean, Call, Either, Integer, Param, PveError, String, one_of, only_9, perm, route
from .told import broadcast_at, burdens
from .worker import TaskContext

if TYPE_CHECKING:
    from .state import PveState

PRODUCT_URL = "https://www.proxmox.com/en/proxmox-virtual-environment/pricing"
SERVICES_8 = [
    "chrony",
    "corosync",
    "cron",
    "ksmtuned",
    "postfix",
    "pve-cluster",
    "pve-firewall",
    "pve-ha-crm",
    "pve-ha-lrm",
    "pvedaemon",
    "pvefw-logger",
    "pveproxy",
    "pvescheduler",
    "pvestatd",
    "spiceproxy",
    "sshd",
    "syslog",
    "systemd-journald",
]
SERVICES_9 = sorted([*SERVICES_8, "lxcfs", "proxmox-firewall", "qmeventd"])
SERVICE = {
    "service": Either(
        String(enum=(*SERVICES_8, "systemd-timesyncd")),
        String(enum=tuple(sorted([*SERVICES_9, "pve-lxc-syscalld", "systemd-timesyncd"]))),
    )
}

KERNELS = {"8.4": "6.8.12-20-pve", "9.2": "7.0.14-1-pve"}
FLAGS = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht syscall nx "
    "pdpe1gb rdtscp lm constant_tsc rep_good nopl cpuid pni pclmulqdq vmx ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic "
    "movbe popcnt aes xsave avx f16c rdrand lahf_lm abm fsgsbase bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap "
    "clflushopt xsaveopt xsavec xgetbv1 arat"
)


@dataclass
class NodeState:
    """One node. Sizes are bytes; `*_used` are what the node itself uses, guests come on top."""

    name: str
    nodeid: int
    ip: str
    online: bool = True
    unreachable: str = "No route to host"  # what a proxied request to it hears while it is offline
    lost_at: float = 0.0  # epoch: for a while the cluster still shows what it told last
    cpus: int = 16
    sockets: int = 1
    model: str = "Intel(R) Xeon(R) Silver 4314 CPU @ 2.40GHz"
    mhz: str = "2400.000"
    cpu: float = 0.03
    memory: int = 128 * 2**30
    memory_used: int = 6 * 2**30
    swap: int = 8 * 2**30
    root: int = 94 * 2**30
    root_used: int = 7 * 2**30
    booted: float = 0.0  # epoch
    kernel: str = ""
    timezone: str = "UTC"
    skew: float = 0.0  # seconds its clock is ahead
    search: str = "lab.test"
    dns: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    subscription: dict[str, Any] = field(default_factory=dict)
    updates: list[dict[str, Any]] = field(default_factory=list)
    certificates: list[dict[str, Any]] = field(default_factory=list)
    thin_pools: list[dict[str, Any]] = field(default_factory=list)
    disks: list[dict[str, Any]] = field(default_factory=list)
    stopped_services: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    salt: str = ""  # the lab's, see dice.Dice.salt
    told: tuple[float, dict[str, Any]] | None = field(default=None, compare=False, repr=False)


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the nodes from a scenario's `nodes:`, name → what differs from the defaults."""
    now = state.clock.now()
    for number, (name, entry) in enumerate((section.get("nodes") or {}).items(), 1):
        given = dict(entry or {})
        node = NodeState(
            name=name,
            nodeid=number if state.cluster_name else 0,
            ip=given.pop("ip", f"10.0.0.{number}"),
            salt=state.dice.salt,
            booted=now - 86400 * float(given.pop("uptime_days", 30)),
            kernel=given.pop("kernel", KERNELS[state.flavour]),
        )
        for size in ("memory", "memory_used", "swap", "root", "root_used"):
            if size in given:
                setattr(node, size, storages.parse_size(given.pop(size)))
        for key in ("interfaces",):  # the network's
            given.pop(key, None)
        for key, value in given.items():
            if not hasattr(node, key):
                raise ValueError(f"scenario: node {name}: no such key: {key}")
            setattr(node, key, value)
        state.nodes[name] = node
    state.areas["boot"] = now


# --- figures --------------------------------------------------------------------------------------


def guests_on(state: PveState, node: str) -> list[Any]:
    """The running guests of a node."""
    return [guest for guest in state.guests.values() if guest.node == node and guest.running]


def cpu_fraction(state: PveState, node: NodeState) -> float:
    """How busy the node's CPUs are, guests included, as a fraction."""
    moment = state.clock.now()
    busy = sum(guest.cpu_fraction(moment) * guest.cpus for guest in guests_on(state, node.name))
    return busy_share(node, moment, busy)


def busy_share(node: NodeState, moment: float, busy: float) -> float:
    """How busy the node's CPUs are, of which its guests keep `busy` busy."""
    return min(1.0, drift(f"{node.salt}{node.name}/cpu", node.cpu, moment) + busy / node.cpus)


def memory_used(state: PveState, node: NodeState) -> int:
    """Bytes of memory in use, guests included."""
    moment = state.clock.now()
    return taken_memory(node, moment, sum(guest.memory_used(moment) for guest in guests_on(state, node.name)))


def taken_memory(node: NodeState, moment: float, used: int) -> int:
    """Bytes of memory in use, of which its guests use `used`."""
    own = drift(f"{node.salt}{node.name}/memory", node.memory_used, moment, swing=0.05)
    return int(min(own + used, node.memory * 0.995))


def root_usage(state: PveState, node: NodeState) -> tuple[int, int, int]:
    """Total, used and available bytes of the root file system, on which `local` lies."""
    local = state.storages.get("local")
    if local is not None and local.type == "dir" and local.active(node.name):
        return storages.usage(state, local, node.name)
    return node.root, node.root_used, node.root - node.root_used


def uptime(state: PveState, node: NodeState) -> int:
    """Seconds since the node booted."""
    return max(1, int(state.clock.now() - node.booted))


def fingerprint(state: PveState, node: NodeState) -> str:
    """The SHA-256 fingerprint of the certificate the node serves."""
    rows = certificate_rows(state, node)
    for name in ("pveproxy-ssl.pem", "pve-ssl.pem"):
        for row in rows:
            if row["filename"] == name:
                return str(row["fingerprint"])
    return ""


def figures_of(state: PveState, nodes: Iterable[NodeState]) -> dict[str, dict[str, Any]]:
    """What nodes told the cluster about themselves last, by name; the guests are looked through once for all."""
    moments = {node.name: broadcast_at(state, node) for node in nodes}
    anew = {
        name: moment
        for name, moment in moments.items()
        if (told := state.nodes[name].told) is None or told[0] != moment
    }
    for name, (cpus, used) in burdens(state.guests.values(), anew).items():
        state.nodes[name].told = (moments[name], _figures(state, state.nodes[name], moments[name], cpus, used))
    return {name: dict(told[1]) for name in moments if (told := state.nodes[name].told)}


def _figures(state: PveState, node: NodeState, moment: float, cpus: float, used: int) -> dict[str, Any]:
    total, root_used, _ = root_usage(state, node)
    return {
        "cpu": busy_share(node, moment, cpus),
        "maxcpu": node.cpus,
        "mem": taken_memory(node, moment, used),
        "maxmem": node.memory,
        "disk": root_used,
        "maxdisk": total,
        "uptime": uptime(state, node),
    }


# --- lists ----------------------------------------------------------------------------------------


@route("GET", "/nodes", permission="any")
def list_nodes(call: Call) -> list[dict[str, Any]]:
    """The nodes; figures only for those the caller may audit."""
    rows = []
    told = figures_of(call.state, call.state.nodes.values())
    for node in call.state.nodes.values():
        row: dict[str, Any] = {
            "node": node.name,
            "type": "node",
            "id": f"node/{node.name}",
            "status": "online" if node.online else "offline",
            "level": level(node),
            "ssl_fingerprint": fingerprint(call.state, node),
        }
        if call.allowed(f"/nodes/{node.name}", "Sys.Audit"):
            known = told[node.name]
            row |= known if node.online else {key: known[key] for key in ("maxcpu", "maxmem", "maxdisk")}
        rows.append(row)
    return rows


def level(node: NodeState) -> str:
    """The subscription level as lists show it: "" without one."""
    return str(node.subscription.get("level", "")) if node.subscription.get("status") == "active" else ""


SUBDIRS = [
    "aplinfo",
    "apt",
    "capabilities",
    "ceph",
    "certificates",
    "config",
    "disks",
    "dns",
    "firewall",
    "hardware",
    "hosts",
    "journal",
    "lxc",
    "migrateall",
    "netstat",
    "network",
    "qemu",
    "query-url-metadata",
    "replication",
    "report",
    "rrd",
    "rrddata",
    "scan",
    "sdn",
    "services",
    "spiceshell",
    "startall",
    "status",
    "stopall",
    "storage",
    "subscription",
    "suspendall",
    "syslog",
    "tasks",
    "termproxy",
    "time",
    "version",
    "vncshell",
    "vzdump",
    "wakeonlan",
]


@route("GET", "/nodes/{node}", permission="any")
def node_index(call: Call) -> list[dict[str, str]]:
    """The names below one node."""
    names = SUBDIRS if call.flavour == "8.4" else sorted([*SUBDIRS, "query-oci-repo-tags"])
    return [{"name": name} for name in names]


AUDIT = perm("/nodes/{node}", "Sys.Audit")
MODIFY = perm("/nodes/{node}", "Sys.Modify")


def this(call: Call) -> NodeState:
    """The node a path names."""
    return call.state.nodes[call.node]


@route("GET", "/nodes/{node}/status", permission=AUDIT)
def status(call: Call) -> dict[str, Any]:
    """CPU, memory, disk, kernel and version of one node."""
    state, node = call.state, this(call)
    moment = state.clock.now()
    used = memory_used(state, node)
    total, root_used, root_free = root_usage(state, node)
    busy = cpu_fraction(state, node)
    load_average = [
        f"{drift(f'{node.salt}{node.name}/load{n}', busy * node.cpus, moment, swing=0.2):.2f}" for n in (1, 5, 15)
    ]
    version = state_version(state)
    memory = {"total": node.memory, "used": used, "free": int((node.memory - used) * 0.7)}
    if call.flavour != "8.4":
        memory["available"] = node.memory - used
    build = "#1 SMP PREEMPT_DYNAMIC PMX " + node.kernel.removesuffix("-pve") + " (2026-06-02T09:00Z)"
    return {
        "cpu": busy,
        "wait": drift(f"{node.salt}{node.name}/wait", 0.002, moment),
        "idle": 0,
        "uptime": uptime(state, node),
        "loadavg": load_average,
        "cpuinfo": {
            "cpus": node.cpus,
            "cores": max(1, node.cpus // node.sockets // 2),
            "sockets": node.sockets,
            "model": node.model,
            "mhz": node.mhz,
            "flags": FLAGS,
            "hvm": "1",
            "user_hz": 100,
            **({} if call.flavour == "8.4" else {"vendor": "GenuineIntel", "family": "6"}),
        },
        "memory": memory,
        "swap": {"total": node.swap, "used": 0, "free": node.swap},
        "rootfs": {"total": total, "used": root_used, "avail": root_free, "free": total - root_used},
        "ksm": {"shared": 0},
        "kversion": f"Linux {node.kernel} {build}",
        "current-kernel": {"sysname": "Linux", "release": node.kernel, "version": build, "machine": "x86_64"},
        "boot-info": {"mode": "efi", "secureboot": 0},
        "pveversion": f"pve-manager/{version['version']}/{version['repoid']}",
    }


def state_version(state: PveState) -> dict[str, str]:
    """What GET /version answers."""
    from .state import VERSIONS  # state imports the areas

    return dict(VERSIONS[state.flavour])


@route("GET", "/nodes/{node}/version", permission="any")
def node_version(call: Call) -> dict[str, str]:
    """The version the node runs."""
    return state_version(call.state)


@route("GET", "/nodes/{node}/time", permission=AUDIT)
def node_time(call: Call) -> dict[str, Any]:
    """The node's clock: UTC, the same as local time, and the zone."""
    node = this(call)
    moment = call.clock.now() + node.skew
    try:
        offset = dt.datetime.fromtimestamp(moment, zoneinfo.ZoneInfo(node.timezone)).utcoffset() or dt.timedelta()
    except zoneinfo.ZoneInfoNotFoundError:  # a machine without a time zone database
        offset = dt.timedelta()
    return {"timezone": node.timezone, "time": int(moment), "localtime": int(moment + offset.total_seconds())}


@route("PUT", "/nodes/{node}/time", params={"timezone": String()}, permission=MODIFY)
def set_time_zone(call: Call) -> None:
    """Nothing; the zone is set."""
    if call.params["timezone"] not in zoneinfo.available_timezones():
        raise PveError(500, f"No such timezone: {call.params['timezone']}")
    this(call).timezone = call.params["timezone"]


@route("GET", "/nodes/{node}/dns", permission=AUDIT)
def dns(call: Call) -> dict[str, str]:
    """The search domain and the name servers."""
    node = this(call)
    return {"search": node.search, **{f"dns{n}": server for n, server in enumerate(node.dns[:3], 1)}}


@route(
    "PUT",
    "/nodes/{node}/dns",
    params={
        "search": String(),
        "dns1": String(optional=True, format="ip"),
        "dns2": String(optional=True, format="ip"),
        "dns3": String(optional=True, format="ip"),
    },
    permission=MODIFY,
)
def set_dns(call: Call) -> None:
    """Nothing; resolv.conf is written."""
    node = this(call)
    node.search = call.params["search"]
    node.dns = [call.params[key] for key in ("dns1", "dns2", "dns3") if key in call.params]


@route("GET", "/nodes/{node}/hosts", permission=perm("/", "Sys.Audit"))
def hosts(call: Call) -> dict[str, str]:
    """/etc/hosts with its digest: as it was written, else as the installer wrote it."""
    lines = ["127.0.0.1 localhost.localdomain localhost"]
    lines += [f"{node.ip} {node.name}.{node.search} {node.name}" for node in call.state.nodes.values()]
    text = str(call.state.areas.get("hosts", {}).get(call.node, "\n".join(lines) + "\n"))
    return {"data": text, "digest": hashlib.sha1(text.encode()).hexdigest()}


OPTIONS_8 = (
    "acme",
    *(f"acmedomain{n}" for n in range(6)),
    "ballooning-target",
    "description",
    "startall-onboot-delay",
    "wakeonlan",
)
OPTIONS_9 = (*OPTIONS_8[:9], "location", *OPTIONS_8[9:])


@route(
    "GET",
    "/nodes/{node}/config",
    params={"property": Either(String(optional=True, enum=OPTIONS_8), String(optional=True, enum=OPTIONS_9))},
    permission=perm("/", "Sys.Audit"),
)
def node_config(call: Call) -> dict[str, Any]:
    """The node's own options: description, wake-on-LAN …"""
    config = this(call).config
    wanted = call.params.get("property")
    shown = {key: value for key, value in config.items() if wanted in (None, key)}
    if config:
        shown["digest"] = hashlib.sha1(repr(sorted(config.items())).encode()).hexdigest()
    return shown


@route(
    "PUT",
    "/nodes/{node}/config",
    params={
        "description": String(optional=True, max_length=65536),
        "startall-onboot-delay": Integer(optional=True, minimum=0, maximum=300),
        "ballooning-target": Integer(optional=True, minimum=0, maximum=100),
        "wakeonlan": String(
            optional=True,
            format={
                "mac": String(format="mac-addr", default_key=True),
                "bind-interface": String(optional=True, format="pve-iface"),
                "broadcast-address": String(optional=True, format="ipv4"),
            },
        ),
        "acme": String(
            optional=True,
            format={"account": String(optional=True, format="pve-configid"), "domains": String(optional=True)},
        ),
        "acmedomain[n]": String(
            optional=True,
            count=6,
            format={
                "domain": String(default_key=True),
                "plugin": String(optional=True, format="pve-configid"),
                "alias": String(optional=True),
            },
        ),
        "location": only_9(String(optional=True, format="pve-node-location")),
        "delete": String(optional=True, format="pve-configid-list"),
        "digest": String(optional=True, max_length=40),
    },
    permission=perm("/", "Sys.Modify"),
)
def set_node_config(call: Call) -> None:
    """Nothing; the options are written."""
    config = this(call).config
    for key in str(call.params.get("delete", "")).split(","):
        config.pop(key, None)
    config.update({k: v for k, v in call.params.items() if k not in ("node", "delete", "digest")})


@route("GET", "/nodes/{node}/subscription", permission="any")
def subscription(call: Call) -> dict[str, Any]:
    """The node's subscription, or that there is none."""
    node = this(call)
    if not node.subscription:
        return {
            "status": "notfound",
            "message": "There is no subscription key",
            "serverid": hashlib.md5(node.name.encode()).hexdigest().upper(),
            "url": PRODUCT_URL,
        }
    return {"serverid": hashlib.md5(node.name.encode()).hexdigest().upper(), "url": PRODUCT_URL, **node.subscription}


# --- services -------------------------------------------------------------------------------------


def service_row(call: Call, name: str) -> dict[str, str]:
    """One service's state."""
    node = this(call)
    up = name not in node.stopped_services
    if name == "corosync" and call.state.cluster_name is None:
        up = False
    return {
        "service": name,
        "name": name,
        "desc": {"pveproxy": "PVE API Proxy Server", "pvedaemon": "PVE API Daemon"}.get(name, f"{name} service"),
        "state": "running" if up else "dead",
        "active-state": "active" if up else "inactive",
        "unit-state": "enabled",
    }


def service_names(call: Call) -> list[str]:
    """The services a node of this flavour lists."""
    return SERVICES_8 if call.flavour == "8.4" else SERVICES_9


@route("GET", "/nodes/{node}/services", permission=AUDIT)
def services(call: Call) -> list[dict[str, str]]:
    """The services of a node."""
    return [service_row(call, name) for name in service_names(call)]


@route("GET", "/nodes/{node}/services/{service}", params=SERVICE, permission=AUDIT)
def service_index(call: Call) -> list[dict[str, str]]:
    """The names below one service."""
    return [{"subdir": name} for name in ("state", "start", "stop", "restart", "reload")]


@route("GET", "/nodes/{node}/services/{service}/state", params=SERVICE, permission=AUDIT)
def service_state(call: Call) -> dict[str, str]:
    """One service's state."""
    return service_row(call, call.params["service"])


# --- packages -------------------------------------------------------------------------------------

PACKAGES = {
    "proxmox-ve": "The Proxmox Virtual Environment",
    "pve-manager": "Proxmox Virtual Environment Management Tools",
    "corosync": "cluster engine daemon and utilities",
    "ifupdown2": "Network Interface Management tool similar to ifupdown",
    "libpve-access-control": "Proxmox VE access control library",
    "libpve-storage-perl": "Proxmox VE storage management library",
    "pve-cluster": "Proxmox Virtual Environment cluster infrastructure",
    "pve-container": "Proxmox VE Container management tool",
    "pve-firewall": "Proxmox VE Firewall",
    "pve-ha-manager": "Proxmox VE HA Manager",
    "pve-qemu-kvm": "Full virtualization on x86 hardware",
    "qemu-server": "Qemu Server Tools",
}
PACKAGE_VERSIONS = {
    "8.4": {"proxmox-ve": "8.4.0", "pve-manager": "8.4.21", "pve-qemu-kvm": "9.2.0-7", "corosync": "3.1.9-pve1"},
    "9.2": {"proxmox-ve": "9.2.0", "pve-manager": "9.2.11", "pve-qemu-kvm": "11.0.1-2", "corosync": "3.1.10-pve2"},
}


@route("GET", "/nodes/{node}/apt", permission="any")
def apt_index(call: Call) -> list[dict[str, str]]:
    """The names below apt."""
    return [{"id": name} for name in ("changelog", "repositories", "update", "versions")]


@route("GET", "/nodes/{node}/apt/versions", permission=AUDIT)
def apt_versions(call: Call) -> list[dict[str, Any]]:
    """The installed versions of the packages that matter."""
    known = PACKAGE_VERSIONS[call.flavour]
    rows = []
    for name, title in PACKAGES.items():
        version = known.get(name, f"{call.flavour}.{1 + int(phase(name) * 9)}")
        row: dict[str, Any] = {
            "Package": name,
            "Title": title,
            "Description": f"{title}.",
            "Version": version,
            "OldVersion": version,
            "CurrentState": "Installed",
            "Arch": "all" if name in ("proxmox-ve", "ifupdown2", "pve-manager") else "amd64",
            "Section": "admin",
            "Priority": "optional",
            "Origin": "Proxmox",
        }
        if name == "proxmox-ve":
            row["RunningKernel"] = this(call).kernel
        if name == "pve-manager":
            row["ManagerVersion"] = known["pve-manager"]
        rows.append(row)
    return rows


@route("GET", "/nodes/{node}/apt/update", permission=MODIFY)
def apt_updates(call: Call) -> list[dict[str, Any]]:
    """The packages that wait for an upgrade."""
    return [
        {
            "Package": update["package"],
            "Title": update.get("title", update["package"]),
            "Description": update.get("title", update["package"]),
            "OldVersion": update.get("old"),
            "Version": update["version"],
            "Origin": update.get("origin", "Proxmox"),
            "Section": update.get("section", "admin"),
            "Priority": "optional",
            "Arch": update.get("arch", "amd64"),
        }
        for update in this(call).updates
    ]


@route(
    "POST",
    "/nodes/{node}/apt/update",
    params={"notify": Boolean(optional=True), "quiet": Boolean(optional=True)},
    permission=MODIFY,
)
def refresh_packages(call: Call) -> str:
    """The UPID of `apt-get update`."""

    async def work(task: TaskContext) -> None:
        task.log("starting apt-get update")
        await task.sleep(5)
        task.log("Reading package lists...")

    return call.task("aptupdate", "", work)


@route("GET", "/nodes/{node}/apt/repositories", permission=AUDIT)
def repositories(call: Call) -> dict[str, Any]:
    """The package sources; the lab has none."""
    return {"digest": "0" * 64, "files": [], "standard-repos": [], "infos": [], "errors": []}


# --- certificates ---------------------------------------------------------------------------------


def _name_of(name: Any) -> str:
    """A distinguished name as OpenSSL's one-line form."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}
    return "".join(f"/{short.get(part.oid._name, part.oid._name)}={part.value}" for part in name)


def pem_rows(pem: str) -> list[dict[str, Any]]:
    """One row a certificate in the text, leaf first."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    rows = []
    for certificate in x509.load_pem_x509_certificates(pem.encode()):
        key: Any = certificate.public_key()
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = [*map(str, extension.get_values_for_type(x509.IPAddress))]
            names += extension.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            names = []
        raw = certificate.fingerprint(hashes.SHA256()).hex().upper()
        rows.append(
            {
                "filename": "pve-ssl.pem",
                "subject": _name_of(certificate.subject),
                "issuer": _name_of(certificate.issuer),
                "san": names,
                "notbefore": int(certificate.not_valid_before_utc.timestamp()),
                "notafter": int(certificate.not_valid_after_utc.timestamp()),
                "fingerprint": ":".join(raw[n : n + 2] for n in range(0, len(raw), 2)),
                "public-key-type": "rsaEncryption"
                if hasattr(key, "public_numbers") and hasattr(key.public_numbers(), "n")
                else "id-ecPublicKey",
                "public-key-bits": key.key_size,
                "pem": certificate.public_bytes(serialization.Encoding.PEM).decode(),
            }
        )
    return rows


def certificate_rows(state: PveState, node: NodeState) -> list[dict[str, Any]]:
    """The certificates of a node: the scenario's, else what the lab really serves, else a made-up healthy pair."""
    cache: dict[str, list[dict[str, Any]]] = state.areas.setdefault("certificates", {})
    if node.certificates:
        return [_made_up(state, node, **entry) for entry in node.certificates]
    if state.certificate_pem:
        if state.certificate_pem not in cache:
            rows = pem_rows(state.certificate_pem)
            for row in rows[1:]:
                row["filename"] = "pve-root-ca.pem"
            cache[state.certificate_pem] = rows
        # a certificate of its own authority is what a fresh node serves
        return [*cache[state.certificate_pem][1:], cache[state.certificate_pem][0]]
    return [
        _made_up(state, node, filename="pve-root-ca.pem", days_left=3650),
        _made_up(state, node, filename="pve-ssl.pem", days_left=700),
    ]


def _made_up(state: PveState, node: NodeState, *, filename: str, days_left: float, **given: Any) -> dict[str, Any]:
    began = int(state.areas["boot"])
    authority = "/CN=Proxmox Virtual Environment/OU=lab/O=PVE Cluster Manager CA"
    leaf = filename != "pve-root-ca.pem"
    digest = hashlib.sha256(f"{node.name if leaf else 'ca'}/{filename}".encode()).hexdigest().upper()
    row = {
        "filename": filename,
        "subject": f"/OU=PVE Cluster Node/O=Proxmox Virtual Environment/CN={node.name}.{node.search}"
        if leaf
        else authority,
        "issuer": authority,
        "san": ["127.0.0.1", "localhost", node.ip, node.name, f"{node.name}.{node.search}"] if leaf else [],
        "notbefore": began - 86400 * 30,
        "notafter": began + int(86400 * days_left),
        "fingerprint": ":".join(digest[n : n + 2] for n in range(0, 64, 2)),
        "public-key-type": "rsaEncryption",
        "public-key-bits": 2048 if leaf else 4096,
        "pem": "",
    }
    return row | given


@route("GET", "/nodes/{node}/certificates", permission="any")
def certificate_index(call: Call) -> list[dict[str, str]]:
    """The names below certificates."""
    return [{"name": name} for name in ("acme", "custom", "info")]


@route("GET", "/nodes/{node}/certificates/info", permission="any")
def certificates(call: Call) -> list[dict[str, Any]]:
    """The certificates of a node: its cluster's authority and its own."""
    return certificate_rows(call.state, this(call))


# --- history --------------------------------------------------------------------------------------

RESOLUTION = {"hour": 60, "day": 1800, "week": 10800, "month": 43200, "year": 604800, "decade": 604800 * 10}
HISTORY = 70
TIMEFRAME = {
    "timeframe": String(enum=("hour", "day", "week", "month", "year")),
    "cf": String(optional=True, enum=("AVERAGE", "MAX")),
}


def moments(call: Call) -> list[int]:
    """The times a history of the asked length has rows for."""
    step = RESOLUTION[call.params["timeframe"]]
    last = int(call.clock.now() // step * step)
    return [last - step * n for n in reversed(range(HISTORY))]


NODE_TIMEFRAME: dict[str, Param | Either] = {
    **TIMEFRAME,
    "timeframe": Either(
        String(enum=("hour", "day", "week", "month", "year")),
        String(enum=("hour", "day", "week", "month", "year", "decade")),
    ),
}


@route("GET", "/nodes/{node}/rrddata", params=NODE_TIMEFRAME, permission=AUDIT)
def node_history(call: Call) -> list[dict[str, Any]]:
    """The node's figures over time; before it booted a row has its time alone."""
    state, node = call.state, this(call)
    total, used, _ = root_usage(state, node)
    rows: list[dict[str, Any]] = []
    for moment in moments(call):
        if moment < node.booted:
            rows.append({"time": moment})
            continue
        busy = (
            drift(f"{node.salt}{node.name}/cpu", max(node.cpu, 0.01), moment)
            + 0.05 * len(guests_on(state, node.name)) / 4
        )
        row: dict[str, Any] = {
            "time": moment,
            "cpu": busy,
            "maxcpu": node.cpus,
            "loadavg": busy * node.cpus,
            "iowait": drift(f"{node.salt}{node.name}/wait", 0.002, moment),
            "memtotal": node.memory,
            "memused": drift(f"{node.salt}{node.name}/memory", memory_used(state, node), moment, swing=0.05),
            "swaptotal": node.swap,
            "swapused": 0,
            "roottotal": total,
            "rootused": used,
            "netin": drift(f"{node.salt}{node.name}/netin", 120_000, moment, swing=0.6),
            "netout": drift(f"{node.salt}{node.name}/netout", 90_000, moment, swing=0.6),
        }
        if call.flavour != "8.4":
            row |= {"memavailable": node.memory - row["memused"], "arcsize": 0}
            kinds = ("cpusome", "memorysome", "memoryfull", "iosome", "iofull")
            row |= {f"pressure{kind}": 0 for kind in kinds}
        rows.append(row)
    return rows


@route("GET", "/nodes/{node}/storage/{storage}/rrddata", params=TIMEFRAME, permission=storages.AUDIT)
def storage_history(call: Call) -> list[dict[str, Any]]:
    """Total and used bytes of a storage over time."""
    storage = storages.require_storage(call.state, call.params["storage"])
    total, used, _ = storages.usage(call.state, storage, call.node)
    seed = f"{call.state.dice.salt}{call.node}/{storage.storage}"
    return [{"time": moment, "total": total, "used": drift(seed, used, moment, swing=0.01)} for moment in moments(call)]


@route("GET", "/nodes/{node}/report", permission=AUDIT)
def report(call: Call) -> str:
    """The text of the node's system report."""
    node, version = this(call), state_version(call.state)
    when = dt.datetime.fromtimestamp(call.clock.now(), dt.UTC)
    return "\n".join(
        [
            "",
            f"{when:%a %d %b %Y %I:%M:%S %p} UTC",
            "==== general system info ====",
            "",
            "# hostname",
            node.name,
            "",
            "# pveversion --verbose",
            f"proxmox-ve: {PACKAGE_VERSIONS[call.flavour]['proxmox-ve']} (running kernel: {node.kernel})",
            f"pve-manager: {version['version']} (running version: {version['version']}/{version['repoid']})",
            "",
            "# cat /etc/hosts",
            hosts(call)["data"],
        ]
    )


# --- disks ----------------------------------------------------------------------------------------

ROOT_AUDIT = perm("/", "Sys.Audit")


@route("GET", "/nodes/{node}/disks", permission="any")
def disks_index(call: Call) -> list[dict[str, str]]:
    """The names below disks."""
    return [{"name": n} for n in ["list", "initgpt", "smart", "lvm", "lvmthin", "directory", "wipedisk", "zfs"]]


@route(
    "GET",
    "/nodes/{node}/disks/list",
    params={
        "include-partitions": Boolean(optional=True),
        "skipsmart": Boolean(optional=True),
        "type": String(optional=True, enum=("unused", "journal_disks")),
    },
    permission=one_of(ROOT_AUDIT, AUDIT),
)
def list_disks(call: Call) -> list[dict[str, Any]]:
    """The physical disks of a node."""
    rows = []
    for disk in this(call).disks:
        used = disk.get("used", "LVM")
        if call.params.get("type") == "unused" and used:
            continue
        row = {
            "devpath": disk["devpath"],
            "size": storages.parse_size(disk["size"]),
            "model": disk.get("model", "LAB SSD"),
            "serial": disk.get("serial", hashlib.md5(disk["devpath"].encode()).hexdigest()[:12].upper()),
            "vendor": disk.get("vendor", "ATA"),
            "type": disk.get("type", "ssd"),
            "rpm": disk.get("rpm", 0),
            "health": disk.get("health", "PASSED"),
            "wearout": disk.get("wearout", 97),
            "gpt": 1,
            "osdid": -1,
            "osdid-list": None,
            "wwn": "unknown",
        }
        if used:
            row["used"] = used
        rows.append(row)
    return rows


@route("GET", "/nodes/{node}/disks/lvmthin", permission=ROOT_AUDIT)
def list_thin_pools(call: Call) -> list[dict[str, Any]]:
    """The thin pools of a node; data used follows the storage that lies on the pool."""
    state, node = call.state, this(call)
    rows = []
    for pool in node.thin_pools:
        size = storages.parse_size(pool["size"])
        used = storages.parse_size(pool.get("used", 0))
        for storage in state.storages.values():
            if storage.options.get("thinpool") == pool["lv"] and storage.options.get("vgname", "pve") == pool["vg"]:
                size, used, _ = storages.usage(state, storage, node.name)
        metadata = storages.parse_size(pool.get("metadata", "1G"))
        share = pool.get("metadata_fraction", 0.02 + 0.2 * (used / size if size else 0))
        rows.append(
            {
                "lv": pool["lv"],
                "vg": pool["vg"],
                "lv_size": size,
                "used": used,
                "metadata_size": metadata,
                "metadata_used": math.floor(metadata * share),
            }
        )
    return rows


@route("GET", "/nodes/{node}/disks/lvm", permission=ROOT_AUDIT)
def list_volume_groups(call: Call) -> dict[str, Any]:
    """The volume groups of a node as a tree."""
    groups: dict[str, int] = {}
    own: dict[str, Any] = call.state.areas.get("made_of_disks", {}).get(call.node, {})
    whole = {**own.get("lvm", {}), **own.get("lvmthin", {})}
    for pool in this(call).thin_pools:
        if pool["vg"] in whole:
            continue
        groups[pool["vg"]] = groups.get(pool["vg"], 0) + storages.parse_size(pool["size"])
    children = [
        {
            "name": name,
            "size": size + 120 * 2**30,
            "free": 16 * 2**30,
            "lvcount": 3,
            "leaf": 0,
            "children": [{"name": "/dev/sda3", "size": size + 120 * 2**30, "free": 16 * 2**30, "leaf": 1}],
        }
        for name, size in groups.items()
    ]
    for name, entry in whole.items():
        free = entry["size"] if name in own.get("lvm", {}) else 0
        free -= sum(volume.size for volume in call.state.volumes.on(call.node, name)) if free else 0
        leaf = {"name": entry["devices"][0], "size": entry["size"], "free": free, "leaf": 1}
        children.append({**leaf, "name": name, "lvcount": 0 if free else 1, "leaf": 0, "children": [leaf]})
    return {"leaf": 0, "children": children}
