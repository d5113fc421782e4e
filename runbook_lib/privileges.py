"""Who may do what in Proxmox VE, and no more: the least privileges of each component, as data and as `pveum` lines.

Each component has a user of its own without a password, one token with privilege separation, and one role a path.
With privilege separation a token has what its user *and* the token itself are granted, so every grant names both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any

from runbook_lib.errors import UsageError

_AGENT_READ = "agent: read"
_AGENT_RUN = "agent: run"

_BY_GENERATION: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    # PVE 9 split VM.Monitor and refuses a role that still names it; PVE 8 refuses the new names.
    _AGENT_READ: {8: ("VM.Monitor",), 9: ("VM.GuestAgent.Audit",)},
    _AGENT_RUN: {8: ("VM.Monitor",), 9: ("VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted")},
}


@dataclass(frozen=True)
class Grant:
    """One role of one component on one path."""

    path: str
    role: str
    privileges: tuple[str, ...]
    propagate: bool
    purpose: str


@dataclass(frozen=True)
class Account:
    """A component's user and token, with its grants on one site."""

    component: str
    title: str
    user: str  # "runbook-capmox@pve"
    token: str  # "capmox"
    privsep: bool
    grants: tuple[Grant, ...]

    @property
    def token_id(self) -> str:
        """The full token id: "runbook-capmox@pve!capmox"."""
        return f"{self.user}!{self.token}"


@dataclass(frozen=True)
class _Line:
    """A grant before the site's names are filled in."""

    part: str  # last word of the role's name
    path: str
    privileges: tuple[str, ...]
    purpose: str
    propagate: bool = True


@dataclass(frozen=True)
class Component:
    """What a component needs, wherever it is installed. `source` says how that is known."""

    name: str
    title: str
    lines: tuple[_Line, ...]
    source: str


_MACHINE = (
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.PowerMgmt",
)

COMPONENTS: tuple[Component, ...] = (
    Component(
        "capmox",
        "Cluster API provider (CAPMOX)",
        (
            _Line("cluster", "/", ("Sys.Audit",), "GET /cluster/status, which only the root path answers", False),
            _Line("nodes", "/nodes", ("Sys.Audit",), "free memory of each node, for the scheduler"),
            _Line("machines", "/pool/{pool}", (*_MACHINE, _AGENT_RUN), "clone, configure, start and remove machines"),
            _Line("template", "/vms/{template_vmid}", ("VM.Audit", "VM.Clone"), "clone the template, not change it"),
            _Line("network", "/sdn/zones/localnetwork/{bridge}", ("SDN.Use",), "attach machines to the bridge"),
            _Line(
                "iso",
                "/storage/{iso_storage}",
                ("Datastore.Allocate", "Datastore.AllocateTemplate", "Datastore.Audit"),
                "upload and delete the bootstrap ISO",
            ),
            _Line(
                "disks",
                "/storage/{disk_storage}",
                ("Datastore.AllocateSpace", "Datastore.Audit"),
                "disks of the machines",
            ),
        ),
        "CAPMOX documentation and the permission rules of the API it calls",
    ),
    Component(
        "csi",
        "Storage driver (proxmox-csi-plugin)",
        (
            _Line("machines", "/pool/{pool}", ("VM.Audit", "VM.Config.Disk"), "attach and detach disks of machines"),
            _Line(
                "disks",
                "/storage/{disk_storage}",
                ("Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.Audit"),
                "allocate, find and free volumes, whose owner is no VM of the pool",
            ),
        ),
        "proxmox-csi-plugin README, role CSI",
    ),
    Component(
        "ccm",
        "Cloud controller manager",
        (
            _Line("cluster", "/", ("Sys.Audit",), "GET /cluster/status and the HA groups", False),
            _Line("machines", "/pool/{pool}", ("VM.Audit", _AGENT_READ), "find the machine of a node, its addresses"),
        ),
        "proxmox-cloud-controller-manager README",
    ),
    Component(
        "exporter",
        "Metrics exporter (prometheus-pve-exporter)",
        (_Line("all", "/", ("Datastore.Audit", "Sys.Audit", "VM.Audit"), "read everything that is measured"),),
        "prometheus-pve-exporter README asks for PVEAuditor; these are the privileges its requests need",
    ),
    Component(
        "runbook",
        "The runbook itself, once the site is prepared",
        (
            _Line(
                "all",
                "/",
                ("Datastore.Audit", "Pool.Audit", "SDN.Audit", "Sys.Audit", "VM.Audit"),
                "the assessments; they change nothing",
            ),
            _Line("pool", "/pool/{pool}", ("Pool.Allocate", "Pool.Audit", *_MACHINE, _AGENT_RUN), "test machines"),
            _Line("template", "/vms/{template_vmid}", ("VM.Audit", "VM.Clone"), "clone the template"),
            _Line("network", "/sdn/zones/localnetwork/{bridge}", ("SDN.Audit", "SDN.Use"), "attach test machines"),
            _Line(
                "iso",
                "/storage/{iso_storage}",
                ("Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit"),
                "upload test images and remove them",
            ),
            _Line(
                "disks",
                "/storage/{disk_storage}",
                ("Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.Audit"),
                "test volumes, freed again",
            ),
        ),
        "The requests of this runbook's notebooks",
    ),
)


def component(name: str) -> Component:
    """The component of that name. Raises KeyError naming those there are."""
    found = {entry.name: entry for entry in COMPONENTS}
    if name not in found:
        raise KeyError(f"no component {name!r}; there are {', '.join(found)}")
    return found[name]


def generation(version: str) -> int:
    """8 or 9: which privilege names this Proxmox VE knows ("9.2.11" → 9, "7.4-3" → 8)."""
    match = re.match(r"(\d+)", version)
    return 9 if match and int(match[1]) >= 9 else 8


def privileges_of(names: Iterable[str], pve_generation: int) -> tuple[str, ...]:
    """The privileges spelled as that generation spells them, sorted, each once."""
    spelled = [own for name in names for own in _BY_GENERATION.get(name, {}).get(pve_generation, (name,))]
    return tuple(sorted(set(spelled)))


def account(name: str, site: Any, version: str) -> Account:
    """The user, token and grants of a component on this site and this version of Proxmox VE.

    Raises UsageError while the site leaves its storages open: `prepare.with_storages` chooses them.
    """
    found, names, spoken = component(name), site.names, generation(version)
    if not (names.iso_storage and names.disk_storage):
        raise UsageError(
            f"privileges of {name} on {site.name}",
            "the site leaves its storages to be chosen, and rights are given on a storage by name",
            "site = prepare.with_storages(step.site, proxmox.storages(step.proxmox))",
        )
    fill = {
        "pool": names.pool,
        "iso_storage": names.iso_storage,
        "disk_storage": names.disk_storage,
        "bridge": names.bridge,
        "template_vmid": names.template_vmid,
    }
    grants = tuple(
        Grant(
            line.path.format(**fill),
            f"{names.roles_prefix}-{found.name}-{line.part}",
            privileges_of(line.privileges, spoken),
            line.propagate,
            line.purpose,
        )
        for line in found.lines
        if not ("{template_vmid}" in line.path and names.template_vmid is None)
    )
    return Account(found.name, found.title, user_of(found.name, site), found.name, True, _merged(grants))


def user_of(name: str, site: Any) -> str:
    """The component's user: the site's own for the runbook, `<prefix>-<component>` in the same realm for the rest."""
    own = str(site.names.user)
    return own if name == "runbook" else f"{site.names.prefix}-{name}@{own.rpartition('@')[2]}"


def accounts(site: Any, version: str) -> list[Account]:
    """Every component's account on this site."""
    return [account(entry.name, site, version) for entry in COMPONENTS]


def needs(name: str, site: Any, version: str) -> dict[str, tuple[str, ...]]:
    """Path → privileges that the component cannot do without; what `/access/permissions` must show for its token."""
    return {grant.path: grant.privileges for grant in account(name, site, version).grants}


def table(given: Iterable[Account]) -> list[dict[str, str]]:
    """One row per grant: component, token, path, privileges, and what they are for."""
    return [
        {
            "component": entry.title,
            "token": entry.token_id,
            "path": grant.path + ("" if grant.propagate else " (not below)"),
            "privileges": ", ".join(grant.privileges),
            "purpose": grant.purpose,
        }
        for entry in given
        for grant in entry.grants
    ]


def pveum(given: Iterable[Account]) -> str:
    """The same as commands for a shell on a node, for those who would rather type it than have it done."""
    lines: list[str] = []
    for entry in given:
        lines.append(f"# {entry.title}")
        for grant in entry.grants:
            lines.append(f"pveum role add {quote(grant.role)} --privs {quote(','.join(grant.privileges))}")
        lines.append(f"pveum user add {quote(entry.user)}")
        lines.append(f"pveum user token add {quote(entry.user)} {quote(entry.token)} --privsep {int(entry.privsep)}")
        for grant in entry.grants:
            who = f"--users {quote(entry.user)} --tokens {quote(entry.token_id)}"
            lines.append(
                f"pveum acl modify {quote(grant.path)} --roles {quote(grant.role)} {who} "
                f"--propagate {int(grant.propagate)}"
            )
    return "\n".join(lines)


def _merged(grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """One grant a path: where ISO images and disks share a storage, its roles become one with both's privileges.

    On one path PVE gives a user the union of the roles too, but two roles there would hide what is really granted.
    """
    merged: dict[str, Grant] = {}
    for grant in grants:
        first = merged.get(grant.path)
        if first is None:
            merged[grant.path] = grant
            continue
        both = tuple(sorted({*first.privileges, *grant.privileges}))
        purpose = f"{first.purpose}; {grant.purpose}"
        merged[grant.path] = Grant(grant.path, first.role, both, first.propagate or grant.propagate, purpose)
    return tuple(merged.values())
