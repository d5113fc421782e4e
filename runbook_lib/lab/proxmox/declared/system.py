"""The system of a node: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, String, only_9, perm
from . import Endpoint

SERVICE = Either(
    String(
        enum=(
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
            "systemd-timesyncd",
        )
    ),
    String(
        enum=(
            "chrony",
            "corosync",
            "cron",
            "ksmtuned",
            "lxcfs",
            "postfix",
            "proxmox-firewall",
            "pve-cluster",
            "pve-firewall",
            "pve-ha-crm",
            "pve-ha-lrm",
            "pve-lxc-syscalld",
            "pvedaemon",
            "pvefw-logger",
            "pveproxy",
            "pvescheduler",
            "pvestatd",
            "qmeventd",
            "spiceproxy",
            "sshd",
            "syslog",
            "systemd-journald",
            "systemd-timesyncd",
        )
    ),
)
SINCE = String(optional=True, pattern=r"^\d{4}-\d{2}-\d{2}( \d{2}:\d{2}(:\d{2})?)?$")
MAX_WORKERS = only_9(Integer(optional=True, minimum=1, maximum=64))
VMS = String(optional=True, format="pve-vmid-list")
LASTENTRIES = Integer(optional=True, minimum=0)
IDENTIFIERS = only_9(Boolean(optional=True))


TABLE: dict[str, Endpoint] = {
    "GET /nodes/{node}/aplinfo": Endpoint("any"),
    "POST /nodes/{node}/aplinfo": Endpoint(
        perm("/storage/{storage}", "Datastore.AllocateTemplate"),
        {"storage": String(format="pve-storage-id"), "template": String(max_length=255)},
    ),
    "GET /nodes/{node}/apt": Endpoint("any", node=False),
    "GET /nodes/{node}/apt/changelog": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"),
        {"name": String(pattern="^[a-z0-9][-+.a-z0-9:]+$"), "version": String(optional=True)},
    ),
    "GET /nodes/{node}/apt/repositories": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "POST /nodes/{node}/apt/repositories": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"),
        {
            "digest": String(optional=True, max_length=80),
            "enabled": Boolean(optional=True),
            "index": Integer(),
            "path": String(),
        },
    ),
    "PUT /nodes/{node}/apt/repositories": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"), {"digest": String(optional=True, max_length=80), "handle": String()}
    ),
    "GET /nodes/{node}/apt/update": Endpoint(perm("/nodes/{node}", "Sys.Modify")),
    "POST /nodes/{node}/apt/update": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"), {"notify": Boolean(optional=True), "quiet": Boolean(optional=True)}
    ),
    "GET /nodes/{node}/apt/versions": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "GET /nodes/{node}/config": Endpoint(
        perm("/", "Sys.Audit"),
        {
            "property": Either(
                String(
                    optional=True,
                    enum=(
                        "acme",
                        "acmedomain0",
                        "acmedomain1",
                        "acmedomain2",
                        "acmedomain3",
                        "acmedomain4",
                        "acmedomain5",
                        "ballooning-target",
                        "description",
                        "startall-onboot-delay",
                        "wakeonlan",
                    ),
                ),
                String(
                    optional=True,
                    enum=(
                        "acme",
                        "acmedomain0",
                        "acmedomain1",
                        "acmedomain2",
                        "acmedomain3",
                        "acmedomain4",
                        "acmedomain5",
                        "ballooning-target",
                        "description",
                        "location",
                        "startall-onboot-delay",
                        "wakeonlan",
                    ),
                ),
            )
        },
    ),
    "PUT /nodes/{node}/config": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "acme": String(
                optional=True,
                format={
                    "account": String(optional=True, format="pve-configid"),
                    "domains": String(optional=True, format="pve-acme-domain-list"),
                },
            ),
            "acmedomain[n]": String(
                optional=True,
                format={
                    "alias": String(optional=True, format="pve-acme-alias"),
                    "domain": String(format="pve-acme-domain"),
                    "plugin": String(optional=True, format="pve-configid"),
                },
            ),
            "ballooning-target": Integer(optional=True, minimum=0, maximum=100),
            "delete": String(optional=True, format="pve-configid-list"),
            "description": String(optional=True, max_length=65536),
            "digest": String(optional=True, max_length=40),
            "location": only_9(String(optional=True, format="pve-node-location")),
            "startall-onboot-delay": Integer(optional=True, minimum=0, maximum=300),
            "wakeonlan": String(
                optional=True,
                format={
                    "bind-interface": String(optional=True, format="pve-iface"),
                    "broadcast-address": String(optional=True, format="ipv4"),
                    "mac": String(format="mac-addr"),
                },
            ),
        },
    ),
    "GET /nodes/{node}/dns": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "PUT /nodes/{node}/dns": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"),
        {
            "dns1": String(optional=True, format="ip"),
            "dns2": String(optional=True, format="ip"),
            "dns3": String(optional=True, format="ip"),
            "search": String(),
        },
    ),
    "GET /nodes/{node}/hosts": Endpoint(perm("/", "Sys.Audit")),
    "POST /nodes/{node}/hosts": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"), {"data": String(), "digest": String(optional=True, max_length=64)}
    ),
    "GET /nodes/{node}/journal": Endpoint(
        perm("/nodes/{node}", "Sys.Syslog"),
        {
            "endcursor": String(optional=True),
            "identifiers": IDENTIFIERS,
            "kernel": IDENTIFIERS,
            "lastentries": LASTENTRIES,
            "priority": only_9(String(optional=True, pattern=r"^([0-7](\.\.[0-7])?)?$")),
            "service": only_9(String(optional=True, pattern=r"^[A-Za-z0-9_.@:*?!\[\]\/-]+$", max_length=128)),
            "since": LASTENTRIES,
            "startcursor": String(optional=True),
            "structured": IDENTIFIERS,
            "unit": only_9(String(optional=True, pattern="^[A-Za-z0-9_.@:-]+$", max_length=256)),
            "units": IDENTIFIERS,
            "until": LASTENTRIES,
        },
    ),
    "POST /nodes/{node}/migrateall": Endpoint(
        "any",
        {
            "max-workers": MAX_WORKERS,
            "maxworkers": Either(Integer(optional=True, minimum=1), Integer(optional=True, minimum=1, maximum=64)),
            "target": String(format="pve-node"),
            "vms": VMS,
            "with-local-disks": Boolean(optional=True),
        },
    ),
    "GET /nodes/{node}/netstat": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "GET /nodes/{node}/report": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "GET /nodes/{node}/services": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "GET /nodes/{node}/services/{service}": Endpoint(
        perm("/nodes/{node}", "Sys.Audit"), {"service": SERVICE}, node=False
    ),
    "POST /nodes/{node}/services/{service}/reload": Endpoint(perm("/nodes/{node}", "Sys.Modify"), {"service": SERVICE}),
    "POST /nodes/{node}/services/{service}/restart": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"), {"service": SERVICE}
    ),
    "POST /nodes/{node}/services/{service}/start": Endpoint(perm("/nodes/{node}", "Sys.Modify"), {"service": SERVICE}),
    "GET /nodes/{node}/services/{service}/state": Endpoint(perm("/nodes/{node}", "Sys.Audit"), {"service": SERVICE}),
    "POST /nodes/{node}/services/{service}/stop": Endpoint(perm("/nodes/{node}", "Sys.Modify"), {"service": SERVICE}),
    "POST /nodes/{node}/startall": Endpoint(
        "any", {"force": Boolean(optional=True), "max-workers": MAX_WORKERS, "vms": VMS}
    ),
    "GET /nodes/{node}/status": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "POST /nodes/{node}/status": Endpoint(
        perm("/nodes/{node}", "Sys.PowerMgmt"), {"command": String(enum=("reboot", "shutdown"))}
    ),
    "POST /nodes/{node}/stopall": Endpoint(
        "any",
        {
            "force-stop": Boolean(optional=True),
            "max-workers": MAX_WORKERS,
            "timeout": Integer(optional=True, minimum=0, maximum=7200),
            "vms": VMS,
        },
    ),
    "DELETE /nodes/{node}/subscription": Endpoint(perm("/nodes/{node}", "Sys.Modify")),
    "GET /nodes/{node}/subscription": Endpoint("any"),
    "POST /nodes/{node}/subscription": Endpoint(perm("/nodes/{node}", "Sys.Modify"), {"force": Boolean(optional=True)}),
    "PUT /nodes/{node}/subscription": Endpoint(
        perm("/nodes/{node}", "Sys.Modify"),
        {
            "key": Either(
                String(pattern=r"^\s*pve([1248])([cbsp])-[0-9a-f]{10}\s*$", max_length=32),
                String(pattern=r"^\s*pve([1248])([cbsp])-(arm-)?[0-9a-f]{10}\s*$", max_length=32),
            )
        },
    ),
    "POST /nodes/{node}/suspendall": Endpoint("any", {"max-workers": MAX_WORKERS, "vms": VMS}),
    "GET /nodes/{node}/syslog": Endpoint(
        perm("/nodes/{node}", "Sys.Syslog"),
        {
            "limit": LASTENTRIES,
            "service": String(optional=True, max_length=128),
            "since": SINCE,
            "start": LASTENTRIES,
            "until": SINCE,
        },
    ),
    "GET /nodes/{node}/time": Endpoint(perm("/nodes/{node}", "Sys.Audit")),
    "PUT /nodes/{node}/time": Endpoint(perm("/nodes/{node}", "Sys.Modify"), {"timezone": String()}),
    "POST /nodes/{node}/wakeonlan": Endpoint(perm("/nodes/{node}", "Sys.PowerMgmt"), node=False),
}
