"""A VM's monitor, keys and the rarer calls of its agent."""

from __future__ import annotations

from ..routing import Boolean, Integer, String, perm
from . import Endpoint

TABLE: dict[str, Endpoint] = {
    "POST /nodes/{node}/qemu/{vmid}/agent": Endpoint(
        perm("/vms/{vmid}", "VM.GuestAgent.Unrestricted", "VM.GuestAgent.Unrestricted", any_of=True),
        {
            "command": String(
                enum=(
                    "fsfreeze-freeze",
                    "fsfreeze-status",
                    "fsfreeze-thaw",
                    "fstrim",
                    "get-fsinfo",
                    "get-host-name",
                    "get-memory-block-info",
                    "get-memory-blocks",
                    "get-osinfo",
                    "get-time",
                    "get-timezone",
                    "get-users",
                    "get-vcpus",
                    "info",
                    "network-get-interfaces",
                    "ping",
                    "shutdown",
                    "suspend-disk",
                    "suspend-hybrid",
                    "suspend-ram",
                )
            )
        },
    ),
    "POST /nodes/{node}/qemu/{vmid}/agent/set-user-password": Endpoint(
        perm("/vms/{vmid}", "VM.GuestAgent.Unrestricted"),
        {"crypted": Boolean(optional=True), "password": String(min_length=5, max_length=1024), "username": String()},
    ),
    "POST /nodes/{node}/qemu/{vmid}/agent/suspend-disk": Endpoint(
        perm("/vms/{vmid}", "VM.PowerMgmt", "VM.GuestAgent.Unrestricted", any_of=True)
    ),
    "POST /nodes/{node}/qemu/{vmid}/agent/suspend-hybrid": Endpoint(
        perm("/vms/{vmid}", "VM.PowerMgmt", "VM.GuestAgent.Unrestricted", any_of=True)
    ),
    "POST /nodes/{node}/qemu/{vmid}/agent/suspend-ram": Endpoint(
        perm("/vms/{vmid}", "VM.PowerMgmt", "VM.GuestAgent.Unrestricted", any_of=True)
    ),
    "POST /nodes/{node}/qemu/{vmid}/dbus-vmstate": Endpoint(
        perm("/vms/{vmid}", "VM.Migrate"), {"action": String(enum=("start", "stop"))}, only="9.2"
    ),
    "POST /nodes/{node}/qemu/{vmid}/monitor": Endpoint(
        perm("/vms/{vmid}", "Sys.Audit", "Sys.Modify", any_of=True), {"command": String()}
    ),
    "POST /nodes/{node}/qemu/{vmid}/remote_migrate": Endpoint(
        perm("/vms/{vmid}", "VM.Migrate"),
        {
            "bwlimit": Integer(optional=True, minimum=0),
            "delete": Boolean(optional=True),
            "online": Boolean(optional=True),
            "target-bridge": String(format="bridge-pair-list"),
            "target-endpoint": String(format="proxmox-remote"),
            "target-storage": String(format="storage-pair-list"),
            "target-vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
        },
    ),
    "PUT /nodes/{node}/qemu/{vmid}/sendkey": Endpoint(
        perm("/vms/{vmid}", "VM.Console"), {"key": String(), "skiplock": Boolean(optional=True)}
    ),
}
