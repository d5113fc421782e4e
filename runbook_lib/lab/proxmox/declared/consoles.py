"""Consoles: tickets and ports of graphical and text terminals."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, String, all_of, perm
from . import Endpoint

TABLE: dict[str, Endpoint] = {
    "POST /access/vncticket": Endpoint(
        "world",
        {
            "authid": String(max_length=64),
            "path": String(max_length=64),
            "port": Integer(optional=True),
            "privs": String(format="pve-priv-list", max_length=64),
            "vncticket": String(),
        },
    ),
    "POST /nodes/{node}/lxc/{vmid}/mtunnel": Endpoint(
        all_of(perm("/vms/{vmid}", "VM.Allocate"), perm("/", "Sys.Incoming")),
        {
            "bridges": String(optional=True, format="pve-bridge-id-list"),
            "storages": String(optional=True, format="pve-storage-id-list"),
        },
    ),
    "GET /nodes/{node}/lxc/{vmid}/mtunnelwebsocket": Endpoint("any", {"socket": String(), "ticket": String()}),
    "POST /nodes/{node}/lxc/{vmid}/spiceproxy": Endpoint(
        perm("/vms/{vmid}", "VM.Console"), {"proxy": String(optional=True, format="address")}
    ),
    "POST /nodes/{node}/lxc/{vmid}/termproxy": Endpoint(perm("/vms/{vmid}", "VM.Console")),
    "POST /nodes/{node}/lxc/{vmid}/vncproxy": Endpoint(
        perm("/vms/{vmid}", "VM.Console"),
        {
            "height": Integer(optional=True, minimum=16, maximum=2160),
            "websocket": Boolean(optional=True),
            "width": Integer(optional=True, minimum=16, maximum=4096),
        },
    ),
    "GET /nodes/{node}/lxc/{vmid}/vncwebsocket": Endpoint(
        perm("/vms/{vmid}", "VM.Console"),
        {"port": Integer(minimum=5900, maximum=5999), "vncticket": String(max_length=512)},
    ),
    "POST /nodes/{node}/qemu/{vmid}/mtunnel": Endpoint(
        all_of(perm("/vms/{vmid}", "VM.Allocate"), perm("/", "Sys.Incoming")),
        {
            "bridges": String(optional=True, format="pve-bridge-id-list"),
            "storages": String(optional=True, format="pve-storage-id-list"),
        },
    ),
    "GET /nodes/{node}/qemu/{vmid}/mtunnelwebsocket": Endpoint("any", {"socket": String(), "ticket": String()}),
    "POST /nodes/{node}/qemu/{vmid}/spiceproxy": Endpoint(
        perm("/vms/{vmid}", "VM.Console"), {"proxy": String(optional=True, format="address")}
    ),
    "POST /nodes/{node}/qemu/{vmid}/termproxy": Endpoint(
        perm("/vms/{vmid}", "VM.Console"),
        {"serial": String(optional=True, enum=("serial0", "serial1", "serial2", "serial3"))},
    ),
    "GET /nodes/{node}/qemu/{vmid}/vncwebsocket": Endpoint(
        perm("/vms/{vmid}", "VM.Console"),
        {"port": Integer(minimum=5900, maximum=5999), "vncticket": String(max_length=512)},
    ),
    "POST /nodes/{node}/spiceshell": Endpoint(
        perm("/nodes/{node}", "Sys.Console"),
        {
            "cmd": Either(
                String(optional=True, enum=("upgrade", "login", "ceph_install")),
                String(optional=True, enum=("ceph_install", "login", "upgrade")),
            ),
            "cmd-opts": String(optional=True, requires="cmd"),
            "proxy": String(optional=True, format="address"),
        },
    ),
    "POST /nodes/{node}/termproxy": Endpoint(
        perm("/nodes/{node}", "Sys.Console"),
        {
            "cmd": Either(
                String(optional=True, enum=("upgrade", "login", "ceph_install")),
                String(optional=True, enum=("ceph_install", "login", "upgrade")),
            ),
            "cmd-opts": String(optional=True, requires="cmd"),
        },
    ),
    "POST /nodes/{node}/vncshell": Endpoint(
        perm("/nodes/{node}", "Sys.Console"),
        {
            "cmd": Either(
                String(optional=True, enum=("upgrade", "login", "ceph_install")),
                String(optional=True, enum=("ceph_install", "login", "upgrade")),
            ),
            "cmd-opts": String(optional=True, requires="cmd"),
            "height": Integer(optional=True, minimum=16, maximum=2160),
            "websocket": Boolean(optional=True),
            "width": Integer(optional=True, minimum=16, maximum=4096),
        },
    ),
    "GET /nodes/{node}/vncwebsocket": Endpoint(
        perm("/nodes/{node}", "Sys.Console"),
        {"port": Integer(minimum=5900, maximum=5999), "vncticket": String(max_length=512)},
    ),
}
