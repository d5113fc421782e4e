"""Proxmox VE: facts as rows, and verbs. This module is the one door; logins and verbs have a file of their own.

Facts over nodes leave a node out that does not answer and remember why in `pve.unread`, unless the row can say it.
Verbs send nothing outside an approved plan: see `wire.permit`.
"""

from __future__ import annotations

from runbook_lib.facts import Cluster, ClusterMember, Permissions, PveVersion
from runbook_lib.proxmox_access import login_attempts, served_certificate, stranger_attempts, ticket_renewal
from runbook_lib.proxmox_disks import claim_disks, node_machines
from runbook_lib.proxmox_guests import guests, templates
from runbook_lib.proxmox_nodes import (
    certificates,
    clocks,
    failed_tasks,
    interfaces,
    network_config,
    nodes,
    pending_network,
    updates,
)
from runbook_lib.proxmox_reading import Reader, Unread, true
from runbook_lib.proxmox_sdn import sdn_objects, sdn_status
from runbook_lib.proxmox_session import Proxmox, connect, quoted
from runbook_lib.proxmox_storage import storages, thin_pools, volumes
from runbook_lib.proxmox_verbs import (
    Progress,
    allocate_volume,
    create_pool,
    create_role,
    create_token,
    create_user,
    delete_pool,
    delete_role,
    delete_token,
    delete_user,
    free_volume,
    set_acl,
    upload,
    wait_task,
)

__all__ = [
    "Progress",
    "Proxmox",
    "Reader",
    "Unread",
    "allocate_volume",
    "certificates",
    "claim_disks",
    "clocks",
    "cluster",
    "connect",
    "create_pool",
    "create_role",
    "create_token",
    "create_user",
    "delete_pool",
    "delete_role",
    "delete_token",
    "delete_user",
    "failed_tasks",
    "free_volume",
    "guests",
    "interfaces",
    "login_attempts",
    "network_config",
    "node_machines",
    "nodes",
    "pending_network",
    "permissions",
    "quoted",
    "sdn_objects",
    "sdn_status",
    "served_certificate",
    "set_acl",
    "storages",
    "stranger_attempts",
    "templates",
    "thin_pools",
    "ticket_renewal",
    "updates",
    "upload",
    "version",
    "volumes",
    "wait_task",
]


def version(pve: Reader) -> PveVersion:
    """The release the answering node runs."""
    found = pve.get("/version")
    return PveVersion(found["version"], found.get("release", ""), found.get("repoid", ""))


def cluster(pve: Reader) -> Cluster:
    """The cluster and its members by name. A standalone node has no name and no quorum. Needs Sys.Audit on /."""
    name, quorate, members = None, None, []
    for row in pve.get("/cluster/status") or []:
        if row["type"] == "cluster":
            name, quorate = row["name"], true(row.get("quorate"))
        elif row["type"] == "node":
            members.append(
                ClusterMember(
                    row["name"],
                    int(row.get("nodeid", 0)),
                    row.get("ip") or None,
                    true(row.get("online")),
                    true(row.get("local")),
                )
            )
    return Cluster(name, quorate, tuple(sorted(members, key=lambda member: member.name)))


def permissions(pve: Reader, identity: str | None = None) -> Permissions:
    """What one identity may do, by path; ourselves unless named. Naming another needs Sys.Audit on /access."""
    asked = {"userid": identity} if identity else {}
    paths = pve.get("/access/permissions", **asked) or {}
    return Permissions(
        identity or pve.identity,
        {path: {name: true(spreads) for name, spreads in privileges.items()} for path, privileges in paths.items()},
    )
