"""The evidence chain: what both sides say of one machine, joined into one row, and what belongs to no row. No I/O.

Machine ↔ ProxmoxMachine ↔ VM ↔ tasks ↔ address ↔ Node. An object's status is a claim; the row beside it is the proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runbook_lib.facts import (
    AddressClaim,
    AddressPool,
    Condition,
    Guest,
    Machine,
    MachineGroup,
    MachineVm,
    ProxmoxHome,
    ProxmoxMachine,
    TaskTail,
    TenantNode,
    Volume,
)

CAPMOX_TAG = "go-proxmox+cloud-init"
"""What CAPMOX tags a VM with while its bootstrap image is in the drive."""

ADDRESS_TAG = "ip_net0_"
PROVIDER = "proxmox://"

STAGES = (
    "Machine",
    "bootstrap data",
    "clone begun",
    "cloned",
    "address",
    "bootstrap image",
    "running",
    "agent",
    "provisioned",
    "Node",
    "Node Ready",
)
"""What a machine goes through, in this order; each has its evidence on one side or the other."""


@dataclass(frozen=True)
class Scene:
    """What both sides said at one moment."""

    machines: tuple[Machine, ...] = ()
    proxmox_machines: tuple[ProxmoxMachine, ...] = ()
    homes: tuple[ProxmoxHome, ...] = ()
    groups: tuple[MachineGroup, ...] = ()
    claims: tuple[AddressClaim, ...] = ()
    pools: tuple[AddressPool, ...] = ()
    vms: tuple[MachineVm, ...] = ()
    tasks: tuple[TaskTail, ...] = ()
    isos: tuple[Volume, ...] = ()
    nodes: tuple[TenantNode, ...] = ()
    untold: Mapping[str, str] | None = None  # cluster "namespace/name" → why its nodes could not be read

    def of(self, namespace: str, cluster: str) -> Scene:
        """What belongs to one cluster; VMs by the names and numbers its machines have, or by their name's beginning."""
        place = f"{namespace}/{cluster}"
        machines = tuple(row for row in self.machines if (row.namespace, row.cluster) == (namespace, cluster))
        owned = {(row.namespace, row.name) for row in machines}
        mine = tuple(
            row
            for row in self.proxmox_machines
            if row.namespace == namespace
            and (row.cluster == cluster or (row.namespace, row.machine) in owned or row.name.startswith(f"{cluster}-"))
        )
        names = {row.name for row in machines} | {row.name for row in mine}
        numbers = {row.vmid for row in mine if row.vmid}
        vms = tuple(
            vm for vm in self.vms if vm.name in names or vm.vmid in numbers or vm.name.startswith(f"{cluster}-")
        )
        known = {vm.vmid for vm in vms} | numbers
        return replace(
            self,
            machines=machines,
            proxmox_machines=mine,
            homes=tuple(row for row in self.homes if row.namespace == namespace and row.cluster in {cluster, ""}),
            groups=tuple(row for row in self.groups if (row.namespace, row.cluster) == (namespace, cluster)),
            claims=tuple(row for row in self.claims if row.namespace == namespace and row.machine in names | {""}),
            pools=tuple(row for row in self.pools if row.namespace == namespace),
            vms=vms,
            tasks=tuple(row for row in self.tasks if row.about in known),
            isos=tuple(row for row in self.isos if _vmid(row) in known),
            nodes=tuple(row for row in self.nodes if row.cluster == place),
        )


@dataclass(frozen=True)
class Chain:
    """One machine as far as it reaches; a part that is None is where the chain breaks."""

    name: str
    namespace: str = ""
    machine: Machine | None = None
    proxmox: ProxmoxMachine | None = None
    vm: MachineVm | None = None  # the VM that the ProxmoxMachine names
    namesakes: tuple[MachineVm, ...] = ()  # every VM of the machine's name
    claims: tuple[AddressClaim, ...] = ()
    tasks: tuple[TaskTail, ...] = ()
    isos: tuple[Volume, ...] = ()
    node: TenantNode | None = None
    node_told: bool = False  # whether the tenant's nodes could be read

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that were allocated for it."""
        return tuple(claim.address for claim in self.claims if claim.address)

    @property
    def runs(self) -> bool:
        """Whether its VM runs."""
        return self.vm is not None and self.vm.status == "running"

    @property
    def reached(self) -> tuple[str, ...]:
        """The stages of `STAGES` that both sides show it has come through."""
        return tuple(stage for stage in STAGES if _proof(self, stage))

    @property
    def registered(self) -> str:
        """The name of its Node: as the tenant lists it, else as the Machine tells it; empty while there is none."""
        return self.node.name if self.node else (self.machine.node if self.machine and not self.node_told else "")


def chains(scene: Scene) -> list[Chain]:
    """One row per machine by name: from Machines first, then ProxmoxMachines that none owns, then VMs nobody names."""
    by_key = {(row.namespace, row.name): row for row in scene.proxmox_machines}
    rows: list[Chain] = []
    used: set[tuple[str, str]] = set()
    for machine in scene.machines:
        kind, _, name = machine.infrastructure.partition("/")
        if kind and kind not in {"ProxmoxMachine", "ProxmoxMachineTemplate"}:
            continue  # another provider's
        own = by_key.get((machine.namespace, name or machine.name))
        used |= {(own.namespace, own.name)} if own else set()
        rows.append(_chain(scene, machine, own))
    rows += [_chain(scene, None, row) for key, row in by_key.items() if key not in used]
    held = {vm.vmid for row in rows for vm in (*row.namesakes, *([row.vm] if row.vm else []))}
    for vm in scene.vms:
        if vm.vmid not in held and is_machines(vm, scene):
            rows.append(Chain(vm.name, vm=vm, namesakes=_namesakes(scene, vm.name), tasks=_tasks(scene, vm.vmid)))
    return rows


def is_machines(vm: MachineVm, scene: Scene) -> bool:
    """Whether a VM looks as if CAPMOX had made it: its tags, or a name that begins like a cluster that is there."""
    if any(tag == CAPMOX_TAG or tag.startswith(ADDRESS_TAG) for tag in vm.tags):
        return True
    groups = {row.name for row in scene.groups} | {row.cluster for row in scene.groups if row.cluster}
    return any(vm.name.startswith(f"{name}-") for name in groups)


def _chain(scene: Scene, machine: Machine | None, own: ProxmoxMachine | None) -> Chain:
    name = own.name if own else machine.name if machine else ""
    space = own.namespace if own else machine.namespace if machine else ""
    vm = next((row for row in scene.vms if own and own.vmid and row.vmid == own.vmid), None)
    cluster = f"{space}/{(machine.cluster if machine else '') or (own.cluster if own else '')}"
    identity = own.provider_id if own and own.provider_id else machine.provider_id if machine else ""
    nodes = [row for row in scene.nodes if row.cluster == cluster]
    node = next((row for row in nodes if identity and row.provider_id == identity), None)
    node = node or next((row for row in nodes if row.name == (machine.node if machine else name) and row.name), None)
    told = cluster not in (scene.untold or {}) and any(row.cluster == cluster for row in scene.nodes)
    vmid = own.vmid if own and own.vmid else None
    return Chain(
        name,
        space,
        machine,
        own,
        vm,
        _namesakes(scene, name),
        tuple(row for row in scene.claims if row.namespace == space and row.machine == name),
        _tasks(scene, vmid),
        tuple(row for row in scene.isos if vmid is not None and _vmid(row) == vmid),
        node,
        told,
    )


def _namesakes(scene: Scene, name: str) -> tuple[MachineVm, ...]:
    return tuple(vm for vm in scene.vms if vm.name == name)


def _tasks(scene: Scene, vmid: int | None) -> tuple[TaskTail, ...]:
    return tuple(row for row in scene.tasks if vmid is not None and row.about == vmid)


def _vmid(volume: Volume) -> int | None:
    digits = volume.volid.rpartition("user-data-")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else None


# --- stages --------------------------------------------------------------------------------------------


def _proof(chain: Chain, stage: str) -> str:
    """What shows that the stage was reached, on either side; empty while nothing does."""
    machine, own, vm = chain.machine, chain.proxmox, chain.vm
    if vm is not None and vm.name != chain.name:
        vm = None  # its number names somebody else's VM
    if stage == "Machine":
        return f"Machine {machine.phase or 'created'}" if machine else ""
    if stage == "bootstrap data":
        return f"Secret {machine.data_secret}" if machine and machine.data_secret else ""
    if stage == "clone begun":
        return f"VMID {own.vmid}" if own and own.vmid else ""
    if stage == "cloned":
        return f"VM {vm.vmid} on {vm.node}" if vm and vm.lock != "clone" and vm.name else ""
    if stage == "address":
        return ", ".join(chain.addresses)
    if stage == "bootstrap image":
        given = own is not None and own.bootstrap_provided
        return (vm.iso if vm and vm.iso else "removed again") if given or (vm and vm.iso) else ""
    if stage == "running":
        return f"status {vm.status}" if vm and vm.status == "running" else ""
    if stage == "agent":
        return ", ".join(vm.agent_addresses or ()) or "it answers" if vm and vm.agent_addresses is not None else ""
    if stage == "provisioned":
        return own.provider_id or "ready" if own and own.ready else ""
    if stage == "Node":
        return chain.registered
    return "Ready" if is_node_ready(chain) else ""


def is_node_ready(chain: Chain) -> bool:
    """Whether its Node is Ready: as the tenant says, or as the Machine repeats it where the tenant cannot be asked."""
    if chain.node is not None:
        return chain.node.ready == "True"
    machine = chain.machine
    told = machine is not None and not chain.node_told and machine.node
    return bool(told and machine and state_of(machine.conditions, "NodeHealthy") == "True")


def state_of(conditions: Iterable[Condition], kind: str) -> str:
    """The status of the condition of that type, empty where there is none."""
    return next((row.status for row in conditions if row.type == kind), "")


@dataclass(frozen=True)
class Moment:
    """When one machine was first seen to have reached a stage, in seconds after the begin, and what showed it."""

    machine: str
    stage: str
    seconds: float
    evidence: str


def moments(seen: Iterable[Moment], scene: Scene, seconds: float) -> list[Moment]:
    """The moments so far with those added that this scene shows for the first time."""
    found = list(seen)
    known = {(row.machine, row.stage) for row in found}
    for chain in chains(scene):
        for stage in STAGES:
            proof = _proof(chain, stage)
            if proof and (chain.name, stage) not in known:
                found.append(Moment(chain.name, stage, seconds, proof))
    return found


def spans(seen: Iterable[Moment], begin: str, end: str) -> list[float]:
    """For each machine that reached both stages the seconds in between, by name."""
    at: dict[str, dict[str, float]] = {}
    for row in seen:
        at.setdefault(row.machine, {})[row.stage] = row.seconds
    return [rows[end] - rows[begin] for _, rows in sorted(at.items()) if begin in rows and end in rows]


def table(rows: Iterable[Chain]) -> list[dict[str, Any]]:
    """The chain as a reader sees it: one line a machine, both sides beside each other."""
    return [
        {
            "machine": chain.name,
            "Machine": chain.machine.phase if chain.machine else "none",
            "ProxmoxMachine": _claim(chain.proxmox),
            "VM": f"{chain.vm.vmid} on {chain.vm.node}, {chain.vm.status}" if chain.vm else "none",
            "last task": _last(chain.tasks),
            "address": ", ".join(chain.addresses) or "none",
            "agent": ", ".join(chain.vm.agent_addresses or ()) if chain.vm and chain.vm.agent_addresses else "",
            "Node": f"{chain.registered}, {'Ready' if is_node_ready(chain) else 'not Ready'}"
            if chain.registered
            else "",
            "reached": chain.reached[-1] if chain.reached else "",
        }
        for chain in rows
    ]


def stages(seen: Iterable[Moment]) -> list[dict[str, Any]]:
    """Every moment as a line: the machine, the stage, when, how long after the one before, and its evidence."""
    rows, last = [], dict[str, float]()
    for row in sorted(seen, key=lambda row: (row.machine, row.seconds, STAGES.index(row.stage))):
        before = last.get(row.machine, row.seconds)
        rows.append(
            {
                "machine": row.machine,
                "stage": row.stage,
                "after_seconds": round(row.seconds, 2),
                "took_seconds": round(row.seconds - before, 2),
                "evidence": row.evidence,
            }
        )
        last[row.machine] = row.seconds
    return rows


def _claim(own: ProxmoxMachine | None) -> str:
    if own is None:
        return "none"
    return "ready" if own.ready else own.reason or "nothing said"


def _last(tasks: Sequence[TaskTail]) -> str:
    if not tasks:
        return ""
    task = tasks[-1].task
    return f"{task.type}: {task.status or 'running'}"


def same_names(guests: Iterable[Guest]) -> dict[str, list[Guest]]:
    """The VMs that share a name with another one, by name; templates and containers left out."""
    found: dict[str, list[Guest]] = {}
    for guest in guests:
        if guest.kind == "qemu" and not guest.template and guest.name:
            found.setdefault(guest.name, []).append(guest)
    return {name: rows for name, rows in found.items() if len(rows) > 1}
