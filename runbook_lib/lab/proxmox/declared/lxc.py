"""Writes of containers: what they take and who may."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, Number, String, all_of, one_of, only_9, perm
from . import Endpoint, Params

MOUNTS = ("rootfs", *(f"mp{n}" for n in range(256)))
VOLUMES = (*MOUNTS, *(f"unused{n}" for n in range(256)))

OPTIONS: Params = {
    "arch": String(optional=True, enum=("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64")),
    "cmode": String(optional=True, enum=("shell", "console", "tty")),
    "console": Boolean(optional=True),
    "cores": Integer(optional=True, minimum=1, maximum=8192),
    "cpulimit": Number(optional=True, minimum=0, maximum=8192),
    "cpuunits": Integer(optional=True, minimum=0, maximum=500000),
    "debug": Boolean(optional=True),
    "description": String(optional=True, max_length=8192),
    "dev[n]": String(
        optional=True,
        format={
            "deny-write": Boolean(optional=True),
            "gid": Integer(optional=True, minimum=0),
            "mode": String(optional=True, pattern="^0[0-7]{3}$"),
            "path": String(optional=True, format="pve-lxc-dev-string", default_key=True),
            "uid": Integer(optional=True, minimum=0),
        },
        count=256,
    ),
    "entrypoint": only_9(String(optional=True, pattern=r"^(?:[^\x00-\x08\x0a-\x1F\x7F]+)$")),
    "env": only_9(
        String(optional=True, pattern=r"^(?:(?:\w+=[^\x00-\x08\x0a-\x1F\x7F]*)(?:\0\w+=[^\x00-\x08\x0a-\x1F\x7F]*)*)$")
    ),
    "features": String(
        optional=True,
        format={
            "force_rw_sys": Boolean(optional=True),
            "fuse": Boolean(optional=True),
            "keyctl": Boolean(optional=True),
            "mknod": Boolean(optional=True),
            "mount": String(optional=True, pattern="^(?:[a-zA-Z0-9_; ]+)$"),
            "nesting": Boolean(optional=True),
        },
    ),
    "hookscript": String(optional=True, format="pve-volume-id"),
    "hostname": String(optional=True, format="dns-name", max_length=255),
    "lock": String(
        optional=True,
        enum=(
            "backup",
            "create",
            "destroyed",
            "disk",
            "fstrim",
            "migrate",
            "mounted",
            "rollback",
            "snapshot",
            "snapshot-delete",
        ),
    ),
    "memory": Integer(optional=True, minimum=16),
    "mp[n]": Either(
        String(
            optional=True,
            format={
                "acl": Boolean(optional=True),
                "backup": Boolean(optional=True),
                "mountoptions": String(
                    optional=True,
                    pattern="^(?:(?:(discard|lazytime|noatime|nodev|noexec|nosuid))(;(?:(discard|lazytime|noatime|nodev|noexec|nosuid)))*)$",
                ),
                "mp": String(format="pve-lxc-mp-string"),
                "quota": Boolean(optional=True),
                "replicate": Boolean(optional=True),
                "ro": Boolean(optional=True),
                "shared": Boolean(optional=True),
                "size": String(optional=True, format="disk-size"),
                "volume": String(format="pve-lxc-mp-string", default_key=True),
            },
            count=256,
        ),
        String(
            optional=True,
            format={
                "acl": Boolean(optional=True),
                "backup": Boolean(optional=True),
                "idmap": String(
                    optional=True,
                    pattern="^(?:^(?:passthrough|[ug]:[0-9]+:[0-9]+:[1-9][0-9]*(?:;[ug]:[0-9]+:[0-9]+:[1-9][0-9]*)*)$)$",
                ),
                "keepattrs": Boolean(optional=True),
                "mountoptions": String(
                    optional=True,
                    pattern="^(?:(?:(discard|lazytime|noatime|nodev|noexec|nosuid))(;(?:(discard|lazytime|noatime|nodev|noexec|nosuid)))*)$",
                ),
                "mp": String(format="pve-lxc-mp-string"),
                "quota": Boolean(optional=True),
                "replicate": Boolean(optional=True),
                "ro": Boolean(optional=True),
                "shared": Boolean(optional=True),
                "size": String(optional=True, format="disk-size"),
                "volume": String(format="pve-lxc-mp-string", default_key=True),
            },
            count=256,
        ),
    ),
    "nameserver": String(optional=True, format="lxc-ip-with-ll-iface-list"),
    "net[n]": Either(
        String(
            optional=True,
            format={
                "bridge": String(optional=True, pattern=r"^[-_.\w\d]+$"),
                "firewall": Boolean(optional=True),
                "gw": String(optional=True, format="ipv4"),
                "gw6": String(optional=True, format="ipv6"),
                "hwaddr": String(optional=True, format="mac-addr"),
                "ip": String(optional=True, format="pve-ipv4-config"),
                "ip6": String(optional=True, format="pve-ipv6-config"),
                "link_down": Boolean(optional=True),
                "mtu": Integer(optional=True, minimum=64, maximum=65535),
                "name": String(pattern=r"^[-_.\w\d]+$"),
                "rate": Number(optional=True),
                "tag": Integer(optional=True, minimum=1, maximum=4094),
                "trunks": String(optional=True, pattern=r"^(?:\d+(?:;\d+)*)$"),
                "type": String(optional=True, enum=("veth",)),
            },
            count=32,
        ),
        String(
            optional=True,
            format={
                "bridge": String(optional=True, pattern=r"^[-_.\w\d]+$"),
                "firewall": Boolean(optional=True),
                "gw": String(optional=True, format="ipv4"),
                "gw6": String(optional=True, format="ipv6"),
                "host-managed": Boolean(optional=True),
                "hwaddr": String(optional=True, format="mac-addr"),
                "ip": String(optional=True, format="pve-ipv4-config"),
                "ip6": String(optional=True, format="pve-ipv6-config"),
                "link_down": Boolean(optional=True),
                "mtu": Integer(optional=True, minimum=64, maximum=65535),
                "name": String(pattern=r"^[-_.\w\d]+$"),
                "rate": Number(optional=True),
                "tag": Integer(optional=True, minimum=1, maximum=4094),
                "trunks": String(optional=True, pattern=r"^(?:\d+(?:;\d+)*)$"),
                "type": String(optional=True, enum=("veth",)),
            },
            count=32,
        ),
    ),
    "onboot": Boolean(optional=True),
    "ostype": String(
        optional=True,
        enum=(
            "debian",
            "devuan",
            "ubuntu",
            "centos",
            "fedora",
            "opensuse",
            "archlinux",
            "alpine",
            "gentoo",
            "nixos",
            "unmanaged",
        ),
    ),
    "protection": Boolean(optional=True),
    "rootfs": Either(
        String(
            optional=True,
            format={
                "acl": Boolean(optional=True),
                "mountoptions": String(
                    optional=True,
                    pattern="^(?:(?:(discard|lazytime|noatime|nodev|noexec|nosuid))(;(?:(discard|lazytime|noatime|nodev|noexec|nosuid)))*)$",
                ),
                "quota": Boolean(optional=True),
                "replicate": Boolean(optional=True),
                "ro": Boolean(optional=True),
                "shared": Boolean(optional=True),
                "size": String(optional=True, format="disk-size"),
                "volume": String(format="pve-lxc-mp-string", default_key=True),
            },
        ),
        String(
            optional=True,
            format={
                "acl": Boolean(optional=True),
                "idmap": String(
                    optional=True,
                    pattern="^(?:^(?:passthrough|[ug]:[0-9]+:[0-9]+:[1-9][0-9]*(?:;[ug]:[0-9]+:[0-9]+:[1-9][0-9]*)*)$)$",
                ),
                "mountoptions": String(
                    optional=True,
                    pattern="^(?:(?:(discard|lazytime|noatime|nodev|noexec|nosuid))(;(?:(discard|lazytime|noatime|nodev|noexec|nosuid)))*)$",
                ),
                "quota": Boolean(optional=True),
                "replicate": Boolean(optional=True),
                "ro": Boolean(optional=True),
                "shared": Boolean(optional=True),
                "size": String(optional=True, format="disk-size"),
                "volume": String(format="pve-lxc-mp-string", default_key=True),
            },
        ),
    ),
    "searchdomain": String(optional=True, format="dns-name-list"),
    "startup": String(optional=True, format="pve-startup-order"),
    "swap": Integer(optional=True, minimum=0),
    "tags": String(optional=True, format="pve-tag-list"),
    "template": Boolean(optional=True),
    "timezone": String(optional=True, format="pve-ct-timezone"),
    "tty": Integer(optional=True, minimum=0, maximum=6),
    "unprivileged": Boolean(optional=True),
    "unused[n]": String(optional=True, format={"volume": String(format="pve-volume-id", default_key=True)}, count=256),
}


TABLE: dict[str, Endpoint] = {
    "POST /nodes/{node}/lxc": Endpoint(
        "any",
        {
            **OPTIONS,
            "bwlimit": Number(optional=True, minimum=0),
            "force": Boolean(optional=True),
            "ha-managed": only_9(Boolean(optional=True)),
            "ignore-unpack-errors": Boolean(optional=True),
            "ostemplate": String(max_length=255),
            "password": String(optional=True, min_length=5),
            "pool": String(optional=True, format="pve-poolid"),
            "restore": Boolean(optional=True),
            "ssh-public-keys": String(optional=True),
            "start": Boolean(optional=True),
            "storage": String(optional=True, format="pve-storage-id"),
            "unique": Boolean(optional=True, requires="restore"),
            "vmid": Integer(format="pve-vmid", minimum=100, maximum=999999999),
        },
    ),
    "DELETE /nodes/{node}/lxc/{vmid}": Endpoint(
        perm("/vms/{vmid}", "VM.Allocate"),
        {
            "destroy-unreferenced-disks": Boolean(optional=True),
            "force": Boolean(optional=True),
            "purge": Boolean(optional=True),
        },
    ),
    "POST /nodes/{node}/lxc/{vmid}/clone": Endpoint(
        all_of(
            perm("/vms/{vmid}", "VM.Clone"),
            one_of(perm("/vms/{newid}", "VM.Allocate"), perm("/pool/{pool}", "VM.Allocate")),
        ),
        {
            "bwlimit": Number(optional=True, minimum=0),
            "description": String(optional=True),
            "full": Boolean(optional=True),
            "hostname": String(optional=True, format="dns-name"),
            "newid": Integer(format="pve-vmid", minimum=100, maximum=999999999),
            "pool": String(optional=True, format="pve-poolid"),
            "snapname": String(optional=True, format="pve-configid", max_length=40),
            "storage": String(optional=True, format="pve-storage-id"),
            "target": String(optional=True, format="pve-node"),
        },
    ),
    "PUT /nodes/{node}/lxc/{vmid}/config": Endpoint(
        perm(
            "/vms/{vmid}",
            "VM.Config.Disk",
            "VM.Config.CPU",
            "VM.Config.Memory",
            "VM.Config.Network",
            "VM.Config.Options",
            any_of=True,
        ),
        {
            **OPTIONS,
            "delete": String(optional=True, format="pve-configid-list"),
            "digest": String(optional=True, max_length=40),
            "revert": String(optional=True, format="pve-configid-list"),
        },
    ),
    "GET /nodes/{node}/lxc/{vmid}/feature": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"),
        {
            "feature": String(enum=("snapshot", "clone", "copy")),
            "snapname": String(optional=True, format="pve-configid", max_length=40),
        },
    ),
    "GET /nodes/{node}/lxc/{vmid}/migrate": Endpoint(
        perm("/vms/{vmid}", "VM.Migrate"), {"target": String(optional=True, format="pve-node")}, only="9.2"
    ),
    "POST /nodes/{node}/lxc/{vmid}/migrate": Endpoint(
        perm("/vms/{vmid}", "VM.Migrate"),
        {
            "bwlimit": Number(optional=True, minimum=0),
            "online": Boolean(optional=True),
            "restart": Boolean(optional=True),
            "target": String(format="pve-node"),
            "target-storage": String(optional=True, format="storage-pair-list"),
            "timeout": Integer(optional=True),
        },
    ),
    "POST /nodes/{node}/lxc/{vmid}/move_volume": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Disk"),
        {
            "bwlimit": Number(optional=True, minimum=0),
            "delete": Boolean(optional=True),
            "digest": String(optional=True, max_length=40),
            "storage": String(optional=True, format="pve-storage-id"),
            "target-digest": String(optional=True, max_length=40),
            "target-vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
            "target-volume": String(optional=True, enum=VOLUMES),
            "volume": String(enum=VOLUMES),
        },
    ),
    "POST /nodes/{node}/lxc/{vmid}/remote_migrate": Endpoint(
        perm("/vms/{vmid}", "VM.Migrate"),
        {
            "bwlimit": Number(optional=True, minimum=0),
            "delete": Boolean(optional=True),
            "online": Boolean(optional=True),
            "restart": Boolean(optional=True),
            "target-bridge": String(format="bridge-pair-list"),
            "target-endpoint": String(format="proxmox-remote"),
            "target-storage": String(format="storage-pair-list"),
            "target-vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
            "timeout": Integer(optional=True),
        },
    ),
    "PUT /nodes/{node}/lxc/{vmid}/resize": Endpoint(
        perm("/vms/{vmid}", "VM.Config.Disk", any_of=True),
        {
            "digest": String(optional=True, max_length=40),
            "disk": String(enum=MOUNTS),
            "size": String(pattern=r"^\+?\d+(\.\d+)?[KMGT]?$"),
        },
    ),
    "POST /nodes/{node}/lxc/{vmid}/snapshot": Endpoint(
        perm("/vms/{vmid}", "VM.Snapshot"),
        {"description": String(optional=True), "snapname": String(format="pve-configid", max_length=40)},
    ),
    "DELETE /nodes/{node}/lxc/{vmid}/snapshot/{snapname}": Endpoint(
        perm("/vms/{vmid}", "VM.Snapshot"),
        {"force": Boolean(optional=True), "snapname": String(format="pve-configid", max_length=40)},
    ),
    "GET /nodes/{node}/lxc/{vmid}/snapshot/{snapname}": Endpoint(
        "any", {"snapname": String(format="pve-configid", max_length=40)}
    ),
    "GET /nodes/{node}/lxc/{vmid}/snapshot/{snapname}/config": Endpoint(
        perm("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit", any_of=True),
        {"snapname": String(format="pve-configid", max_length=40)},
    ),
    "PUT /nodes/{node}/lxc/{vmid}/snapshot/{snapname}/config": Endpoint(
        perm("/vms/{vmid}", "VM.Snapshot"),
        {"description": String(optional=True), "snapname": String(format="pve-configid", max_length=40)},
    ),
    "POST /nodes/{node}/lxc/{vmid}/snapshot/{snapname}/rollback": Endpoint(
        perm("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", any_of=True),
        {"snapname": String(format="pve-configid", max_length=40), "start": Boolean(optional=True)},
    ),
    "POST /nodes/{node}/lxc/{vmid}/status/resume": Endpoint(perm("/vms/{vmid}", "VM.PowerMgmt")),
    "POST /nodes/{node}/lxc/{vmid}/status/suspend": Endpoint(perm("/vms/{vmid}", "VM.PowerMgmt")),
    "POST /nodes/{node}/lxc/{vmid}/template": Endpoint(perm("/vms/{vmid}", "VM.Allocate")),
}
