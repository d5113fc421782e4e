"""Judgement of machines: both sides of the evidence chain against each other, and why a machine does not go on."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from runbook_lib.checks import check, verdict
from runbook_lib.evidence import Chain, Scene, chains, is_node_ready, same_names
from runbook_lib.facts import (
    Accepted,
    AddressPool,
    Guest,
    Interface,
    MachineApis,
    MachineVm,
    NetworkRange,
    Node,
    ProxmoxHome,
    ProxmoxMachine,
    Storage,
    Template,
    TenantNode,
    Volume,
)
from runbook_lib.model import Finding, Measurement, Status

MIB, GIB = 1024**2, 1024**3

NEEDED = ("Cluster", "Machine", "MachineDeployment", "MachineHealthCheck", "ProxmoxCluster", "ProxmoxMachine",
          "ProxmoxMachineTemplate", "IPAddressClaim", "InClusterIPPool")  # fmt: skip

CAPMOX = "Cluster API provider Proxmox (CAPMOX)"


# --- before anything is made -------------------------------------------------------------------------


@check(
    title="The kinds that machines are made of are served",
    remedy="Run step 23: it installs the Cluster API provider and the IPAM provider that CozyStack does not bring.",
    source="Sprint 2.2; discovery of the Cluster API groups",
)
def apis_are_served(
    apis: MachineApis, *, control_plane: str = "KamajiControlPlane", bootstrap: str = "KubeadmConfigTemplate"
) -> Iterator[Finding]:
    """One finding per kind: the versions that are served, or that it is missing; one skip where no provider is."""
    if not apis.generation:
        yield verdict(None, "CAPMOX", "no Proxmox provider is installed, so no machine can be asked for: step 23")
        return
    for kind in (*NEEDED, control_plane, bootstrap):
        found = apis.served.get(kind, ())
        yield verdict(bool(found), kind, f"{kind}: {', '.join(found) or 'not served'}")


@check(
    title="Cluster API and its Proxmox provider speak of one contract",
    remedy="CAPMOX 0.7 wants Cluster API 1.8–1.10 (v1beta1), 0.8 and 0.9 want 1.11 or 1.12 (v1beta2); see step 23.",
    source=f"{CAPMOX}: compatibility table of its README",
)
def generations_fit(apis: MachineApis) -> Iterator[Finding]:
    """One finding: CAPMOX' own version and the version of Cluster API that goes with it."""
    if not apis.generation or not apis.core:
        return
    wanted = "v1beta2" if apis.generation == "v1alpha2" else "v1beta1"
    served = ", ".join(apis.served.get("Machine", ()))
    yield verdict(
        wanted in apis.served.get("Machine", ()),
        "contract",
        f"CAPMOX serves {apis.generation}, which goes with cluster.x-k8s.io/{wanted}; served is {served}",
    )


@check(
    title="The template can be cloned",
    remedy="Name the template in names.template_vmid or by tags that exactly one has; step 13 makes one.",
    source=f"{CAPMOX}: templateSelector; issue #225 (boot order)",
)
def template_is_chosen(
    templates: Sequence[Template], *, vmid: int | None = None, tags: Sequence[str] = ()
) -> Iterator[Finding]:
    """One finding: exactly one template answers to the number or to the tags, with a disk to grow and a boot order."""
    if tags:
        asked = {tag.lower() for tag in tags}
        hits = [row for row in templates if {tag.lower() for tag in row.tags} == asked]
        name = f"tags {', '.join(tags)}"
    else:
        hits, name = [row for row in templates if row.vmid == vmid], f"VMID {vmid}"
    if len(hits) != 1:
        listing = ", ".join(f"{row.vmid} ({row.name})" for row in hits) or "none"
        yield verdict(False, name, f"{len(hits)} templates answer to {name}: {listing}; exactly one must")
        return
    row = hits[0]
    lacks = [word for word, good in (
        ("no disk", row.disks), ("no `boot: order=…`", str(row.boot or "").startswith("order=")),
        ("no net0", "net0" in row.networks),
    ) if not good]  # fmt: skip
    said = "; ".join(lacks) or f"disk {row.disks[0]}, {row.boot}"
    yield verdict(not lacks, name, f"{row.vmid} ({row.name}) on {row.node}: {said}")


@check(
    title="VM ids are free, and no other cluster takes from them",
    remedy="Give each cluster a vmIDRange of its own: names.vmid_range here, spec.vmIDRange in others' templates.",
    source=f"{CAPMOX}: issue #842 (two clusters ask for the next id at once), #856 (an id is used again)",
)
def vmids_are_free(
    guests: Iterable[Guest], others: Iterable[ProxmoxMachine], *, vmids: tuple[int, int], count: int = 1
) -> Iterator[Finding]:
    """One finding for the range's free ids, one per cluster whose range meets it or which has none."""
    first, last = vmids
    taken = {guest.vmid for guest in guests}
    free = last - first + 1 - sum(first <= vmid <= last for vmid in taken)
    yield verdict(free >= count, f"{first}-{last}", f"{free} of {last - first + 1} ids are free, {count} are wanted")
    ranges: dict[str, set[tuple[int, int] | None]] = defaultdict(set)
    for row in others:
        ranges[f"{row.namespace}/{row.cluster}"].add(row.vmid_range)
    for cluster, spans in sorted(ranges.items()):
        for span in sorted(spans, key=str):
            if span is None:
                message = f"machines of {cluster} have no vmIDRange: they take the next free id, whoever else does so"
                yield verdict(Status.WARN, cluster, message)
            elif span[0] <= last and first <= span[1]:
                yield verdict(False, cluster, f"{cluster} takes ids {span[0]}-{span[1]}, which meet {first}-{last}")


@check(
    title="No two machines have one VM id",
    remedy="Find out whose VM it is by its name; give the other machine up (delete its Machine) only after its "
    "virtualMachineID no longer names that VM, else CAPMOX destroys it.",
    source=f"{CAPMOX}: issue #842",
)
def vmids_do_not_collide(scene: Scene) -> Iterator[Finding]:
    """One finding per VM id that several ProxmoxMachines name, or one pass for all."""
    owners: dict[int, list[str]] = defaultdict(list)
    for row in scene.proxmox_machines:
        if row.vmid:
            owners[row.vmid].append(f"{row.namespace}/{row.name}")
    shared = {vmid: names for vmid, names in owners.items() if len(names) > 1}
    for vmid, names in sorted(shared.items()):
        yield verdict(False, str(vmid), f"{' and '.join(sorted(names))} both name VM {vmid}", machines=sorted(names))
    if owners and not shared:
        yield verdict(True, "VM ids", f"{len(owners)} machines name {len(owners)} VMs")


@check(
    title="The address pool is free",
    remedy="Give machines a range of their own in networks.machine_pool, outside of DHCP and of every other pool.",
    source=f"{CAPMOX}: issue #16 (overlapping pools are not detected), #412 (the API's address must be kept out)",
)
def address_pool_is_free(
    pool: Sequence[str],
    *,
    interfaces: Sequence[Interface] = (),
    pools: Sequence[AddressPool] = (),
    vms: Sequence[MachineVm] = (),
    ranges: Sequence[NetworkRange] = (),
    api_vip: str | None = None,
    gateway: str = "",
    count: int = 1,
) -> Iterator[Finding]:
    """One finding per range of the pool: every neighbour it meets by name, and whether it is large enough."""
    if not pool:
        yield verdict(False, "networks.machine_pool", "no addresses are named for machines")
        return
    used: dict[str, str] = {}
    for row in interfaces:
        used |= {str(ipaddress.ip_interface(c).ip): f"{row.node}/{row.name}" for c in (row.cidr, row.cidr6) if c}
    for vm in vms:
        used |= dict.fromkeys(vm.agent_addresses or (), f"VM {vm.vmid} ({vm.name})")
    used |= {address: what for address, what in ((api_vip, "the API's address"), (gateway, "the gateway")) if address}
    size = 0
    for entry in pool:
        low, high, version = _span(entry)
        size += high - low + 1
        met = [f"{address} is {owner}" for address, owner in sorted(used.items())
               if ipaddress.ip_address(address).version == version
               and low <= int(ipaddress.ip_address(address)) <= high]  # fmt: skip
        others = [(f"pool {row.namespace}/{row.name}", text) for row in pools for text in row.addresses]
        others += [(f"{row.name} ({row.owner})", row.cidr) for row in ranges if row.kind not in {"lan", ""}]
        for owner, text in others:
            begin, end, kind = _span(text)
            if kind == version and begin <= high and low <= end:
                met.append(f"{owner} has {text}")
        yield verdict(not met, entry, f"{entry}: {'; '.join(met) or 'nobody else uses it'}")
    if size < count:
        yield verdict(False, "size", f"{size} addresses for {count} machines")


@check(
    title="The scheduler will find memory",
    remedy="Free memory, allow more nodes, or set schedulerHints.memoryAdjustment (percent; 0 looks at no memory): "
    "CAPMOX counts what is promised to every VM, also to those that are off.",
    source=f"{CAPMOX}: issues #71, #36, #37; internal/service/scheduler",
)
def scheduler_finds_memory(
    nodes: Iterable[Node],
    guests: Sequence[Guest],
    *,
    allowed: Sequence[str] = (),
    memory_mib: int = 4096,
    count: int = 1,
    memory_adjustment: int | None = None,
) -> Iterator[Finding]:
    """One finding per allowed node as CAPMOX counts it, and one for whether all machines fit."""
    percent = 100 if memory_adjustment is None else memory_adjustment
    fits = 0
    for node in nodes:
        if node.memory_bytes is None or (allowed and node.name not in allowed):
            continue
        promised = sum(row.memory_bytes for row in guests if row.node == node.name and not row.template)
        free = node.memory_bytes * percent // 100 - promised if percent else node.memory_bytes
        room = max(0, free) // (memory_mib * MIB)
        fits += room
        message = f"{node.name}: {max(0, free) / GIB:.0f} GiB to promise, room for {room} of {memory_mib} MiB"
        yield verdict(Status.PASS if room else Status.WARN, node.name, message)
    if fits < count:
        yield verdict(False, "all", f"{fits} machines of {memory_mib} MiB fit, {count} are wanted")


@check(
    title="A node's bootstrap image has a place",
    remedy="Add content type `iso` to a storage the node has: `pvesm set local --content iso,vztmpl,backup`.",
    source=f"{CAPMOX}: the first enabled storage of the VM's node that takes iso; issues #569, #112",
)
def isos_have_a_place(storages: Sequence[Storage], *, nodes: Sequence[str] = ()) -> Iterator[Finding]:
    """One finding per node that machines may be on: its storage for ISO images, as CAPMOX will choose it."""
    for node in nodes or sorted({row.node for row in storages}):
        takers = [row for row in storages if row.node == node and row.enabled and "iso" in row.content]
        active = [row for row in takers if row.active]
        names = ", ".join(row.name for row in active)
        yield verdict(bool(active), node, f"{node}: {names or 'no active storage takes ISO images'}")


@check(
    title="The API server takes the manifests",
    remedy="Compare with the schema it serves: `kubectl explain --recursive`; fields differ between v1alpha1 and "
    "v1alpha2.",
    source="Sprint 2.2; server-side apply with dryRun=All and strict validation",
)
def manifests_are_accepted(answers: Iterable[Accepted]) -> Iterator[Finding]:
    """One finding per object: taken in a dry run, refused with the server's own words, or not tried and why."""
    for row in answers:
        if row.untried:
            yield verdict(None, row.target, f"not tried: {row.untried}")
        else:
            yield verdict(not row.refusal, row.target, row.refusal or "accepted in a dry run")


# --- the chain ---------------------------------------------------------------------------------------


@check(
    title="Every machine has a Machine",
    remedy="Delete the bare object and make a MachineDeployment: a ProxmoxMachine on its own never becomes a VM.",
    source=f'{CAPMOX}: proxmoxmachine_controller.go, "Machine Controller has not yet set OwnerRef"',
)
def owners_are_set(scene: Scene) -> Iterator[Finding]:
    """One finding per ProxmoxMachine: the Machine that owns it, or that none does and nobody will work on it."""
    for row in scene.proxmox_machines:
        subject = f"{row.namespace}/{row.name}"
        if row.machine:
            yield verdict(True, subject, f"owned by Machine {row.machine}")
        else:
            message = f"no Machine owns {subject}, so CAPMOX waits for an OwnerRef for ever and makes no VM"
            yield verdict(False, subject, message, vmid=row.vmid)


@check(
    title="Every machine has its VM",
    remedy="See the ProxmoxMachine's condition and its task; a VM that was deleted behind its back is not made "
    "again: delete the Machine, or let a MachineHealthCheck do it.",
    source="Two-sided evidence: Machine, spec.virtualMachineID, GET /nodes/{node}/qemu",
)
def every_machine_has_a_vm(scene: Scene) -> Iterator[Finding]:
    """One finding per Machine: its VM by number, name and UUID; a young one that is on its way is a skip."""
    for chain in chains(scene):
        if chain.machine is None:
            continue
        own, vm = chain.proxmox, chain.vm
        subject = f"{chain.namespace}/{chain.name}"
        if own is None:
            told = chain.machine.infrastructure or "no infrastructureRef"
            yield verdict(False, subject, f"Machine without a ProxmoxMachine ({told})")
        elif vm is None and own.vmid is None and not own.ready:
            yield verdict(None, subject, f"no VM yet: {own.reason or chain.machine.phase or 'nothing said'}")
        elif vm is None:
            yield verdict(
                False, subject, f"Machine without a VM: it names VM {own.vmid}, which Proxmox VE does not list"
            )
        else:
            yield verdict(True, subject, f"VM {vm.vmid} on {vm.node}")


@check(
    title="Every VM of a machine has its machine",
    remedy="Make sure by its name and tags that no cluster knows it, then stop and remove it: `qm stop`, `qm destroy`.",
    source="Two-sided evidence; CAPMOX issues #733, #742 (VMs left behind)",
)
def every_vm_has_a_machine(scene: Scene) -> Iterator[Finding]:
    """One finding per VM that looks as if CAPMOX made it and that no ProxmoxMachine names, or one pass for all."""
    rows = chains(scene)
    named = {row.vmid for row in scene.proxmox_machines if row.vmid}
    orphans = {vm.vmid: vm for row in rows for vm in (*row.namesakes, *([row.vm] if row.vm else []))
               if vm.vmid not in named}  # fmt: skip
    for vm in orphans.values():
        message = f"VM {vm.vmid} ({vm.name}) on {vm.node} is {vm.status}, and no ProxmoxMachine names it"
        yield verdict(False, f"{vm.node}/{vm.vmid}", message)
    if named and not orphans:
        yield verdict(True, "VMs", f"{len(named)} VMs, each named by one ProxmoxMachine")


@check(
    title="Every machine has one VM",
    remedy="Keep the VM that spec.virtualMachineID names and whose UUID is in providerID; remove the others by hand.",
    source=f"{CAPMOX}: issue #733 (clones again and again after a refused status)",
)
def one_vm_a_machine(scene: Scene, guests: Sequence[Guest] = ()) -> Iterator[Finding]:
    """One finding per name that several VMs have: a fail for a machine's, a warning where no machine is known."""
    found: dict[str, list[int]] = {}
    machines = {row.name for row in scene.proxmox_machines} | {row.name for row in scene.machines}
    for name in machines:
        found[name] = sorted(vm.vmid for vm in scene.vms if vm.name == name)
    for name, rows in same_names(guests).items():
        found[name] = sorted({*found.get(name, ()), *(row.vmid for row in rows)})
    several = {name: vmids for name, vmids in found.items() if len(vmids) > 1}
    for name, vmids in sorted(several.items()):
        listing = ", ".join(map(str, vmids))
        if name in machines:
            yield verdict(False, name, f"{len(vmids)} VMs are called {name}: {listing}", vmids=vmids)
        else:
            message = f"{len(vmids)} VMs are called {name}: {listing}; no machine of that name is known"
            yield verdict(Status.WARN, name, message, vmids=vmids)
    if machines and not any(name in machines for name in several):
        yield verdict(True, "names", f"{len(machines)} machines, none with two VMs")


@check(
    title="A machine called provisioned runs",
    remedy="Give each ProxmoxMachineTemplate a tag of its own, so that a config change follows every clone; replace "
    "the Machine (`kubectl delete machine`).",
    source=f"{CAPMOX}: issue #848 (a stopped VM is called provisioned)",
)
def provisioned_machines_run(scene: Scene) -> Iterator[Finding]:
    """One finding per ProxmoxMachine that claims to be ready: its VM runs, or the claim is false."""
    for chain in chains(scene):
        own, vm = chain.proxmox, chain.vm
        if own is None or not own.ready or own.deleting or vm is None:
            continue
        subject = f"{own.namespace}/{own.name}"
        if chain.runs:
            yield verdict(True, subject, f"ready, and VM {vm.vmid} runs")
            continue
        never = not own.bootstrap_provided and not any(row.task.type == "qmstart" for row in chain.tasks)
        why = "and was never started" if never else "though it was started once"
        yield verdict(False, subject, f"called provisioned, but VM {vm.vmid} on {vm.node} is {vm.status} {why}")


@check(
    title="A machine's number names its own VM",
    remedy="Do not delete the Machine yet: CAPMOX would destroy whatever VM has that number now. Remove "
    "spec.virtualMachineID by hand or give the other VM another id first.",
    source=f"{CAPMOX}: issue #856 (a failed clone keeps virtualMachineID)",
)
def vmid_is_its_own(scene: Scene) -> Iterator[Finding]:
    """One finding per ProxmoxMachine with a number: its VM bears its name and UUID, or the number is stale."""
    for chain in chains(scene):
        own, vm = chain.proxmox, chain.vm
        if own is None or own.vmid is None:
            continue
        subject = f"{own.namespace}/{own.name}"
        failed = [row.task for row in chain.tasks if row.task.type == "qmclone" and _has_failed(row.task.status)]
        if vm is None:
            if failed:
                message = f"names VM {own.vmid}, whose clone failed ({failed[-1].status}); the number stays behind"
                yield verdict(False, subject, message)
            continue
        uuid = own.provider_id.removeprefix("proxmox://").lower()
        if vm.name != own.name and vm.lock != "clone":
            message = f"names VM {vm.vmid}, which is {vm.name or 'nameless'} and not its own"
            yield verdict(False, subject, message)
        elif uuid and vm.uuid and uuid != vm.uuid:
            yield verdict(False, subject, f"VM {vm.vmid} has UUID {vm.uuid}, the machine believes in {uuid}")
        else:
            yield verdict(True, subject, f"VM {vm.vmid} bears its name{' and UUID' if uuid and vm.uuid else ''}")


@check(
    title="Every claimed address is used, and only once",
    remedy="Delete the claim if no ProxmoxMachine owns it: `kubectl delete ipaddressclaim`; if the guest has another "
    "address, look at its network-config and at the MAC in net0.",
    source="Two-sided evidence: IPAddressClaim, IPAddress, guest agent network-get-interfaces",
)
def addresses_are_used(scene: Scene) -> Iterator[Finding]:
    """One finding per claim: its machine has the address, or who does; an address given twice is a fail."""
    holders: dict[str, list[str]] = defaultdict(list)
    for vm in scene.vms:
        for address in vm.agent_addresses or ():
            holders[address].append(vm.name)
    given: dict[str, list[str]] = defaultdict(list)
    for claim in scene.claims:
        if claim.address:
            given[claim.address].append(claim.name)
    by_name = {(chain.namespace, chain.name): chain for chain in chains(scene)}
    for claim in scene.claims:
        subject = f"{claim.namespace}/{claim.name}"
        chain = by_name.get((claim.namespace, claim.machine))
        if not claim.address:
            if claim.message:
                yield verdict(Status.WARN, subject, f"no address yet: {claim.message}")
            continue
        twice = [name for name in given[claim.address] if name != claim.name]
        strangers = sorted({name for name in holders[claim.address] if name != claim.machine})
        if twice:
            yield verdict(False, subject, f"{claim.address} was also given to {', '.join(twice)}")
        elif chain is None or chain.proxmox is None:
            message = f"{claim.address} is claimed for {claim.machine or 'nobody'}, which is not there"
            yield verdict(False, subject, message)
        elif strangers:
            yield verdict(False, subject, f"{claim.address} is on {', '.join(strangers)} too")
        elif chain.vm is None or chain.vm.agent_addresses is None:
            continue  # no agent to ask; whether it should answer is another check's business
        elif claim.address not in chain.vm.agent_addresses:
            has = ", ".join(chain.vm.agent_addresses) or "none"
            yield verdict(False, subject, f"{claim.address} was given, the guest has {has}")
        else:
            yield verdict(True, subject, f"{claim.address} is on VM {chain.vm.vmid}")


@check(
    title="No bootstrap image is left behind",
    remedy="It holds a join token: delete it, `pvesm free <storage>:iso/user-data-<vmid>.iso`.",
    source=f"{CAPMOX}: the ISO is removed once the Node is there; of several ISO storages only the first is cleaned",
)
def no_iso_is_left(scene: Scene) -> Iterator[Finding]:
    """One finding per image: its VM is still on its way, or it should be gone; one pass when there is none."""
    known = {chain.proxmox.vmid: chain for chain in chains(scene) if chain.proxmox and chain.proxmox.vmid}
    for iso in scene.isos:
        vmid = _vmid_of(iso)
        chain = known.get(vmid) if vmid is not None else None
        own = chain.proxmox if chain else None
        if chain is None or own is None:
            yield verdict(False, iso.volid, f"{iso.volid} on {iso.node} is of no machine that is there")
        elif own.ready and chain.registered:
            yield verdict(Status.WARN, iso.volid, f"{iso.volid} is still there though {own.name} has joined")
        else:
            yield verdict(True, iso.volid, f"{own.name} still needs {iso.volid}")
    if not scene.isos and scene.proxmox_machines:
        yield verdict(True, "images", "no bootstrap image lies on any storage")


@check(
    title="Every machine is a Node",
    remedy="Compare the providerIDs: the kubelet needs `provider-id: proxmox://<uuid>`; and see cloud-init's log on "
    "the machine's console.",
    source=f"Two-sided evidence; {CAPMOX}: issue #400 (without a providerID no Node is ever found)",
)
def machines_are_nodes(scene: Scene) -> Iterator[Finding]:
    """One finding per provisioned Machine: its Node by providerID; a Node that is not Ready warns with its reason."""
    for chain in chains(scene):
        machine, own = chain.machine, chain.proxmox
        if machine is None or own is None or not own.ready or machine.deleting:
            continue
        subject = f"{machine.namespace}/{machine.name}"
        if not chain.registered:
            alien = _alien(scene.nodes, chain)
            yield verdict(False, subject, f"provisioned, but no Node has its providerID {own.provider_id}{alien}")
        elif is_node_ready(chain):
            yield verdict(True, subject, f"Node {chain.registered} is Ready")
        else:
            why = _why_not_ready(chain.node)
            remedy = "Install a CNI in the tenant: a Node is Ready only once its network agent runs."
            yield verdict(Status.WARN, subject, f"Node {chain.registered} is not Ready: {why}", remedy=remedy)


def _alien(nodes: Iterable[TenantNode], chain: Chain) -> str:
    row = next((row for row in nodes if row.name == chain.name), None)
    return f"; the Node of that name has {row.provider_id or 'none'}" if row else ""


def _why_not_ready(node: TenantNode | None) -> str:
    if node is None:
        return "the Machine says NodeHealthy is not True"
    return f"{node.reason} {node.message}".strip() or node.ready


# --- why it does not go on ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """What a reason of CAPMOX mostly means, and the first step that breaks nothing."""

    why: str
    step: str
    after_seconds: int = 300
    status: Status = Status.WARN


CAUSES: Mapping[str, Cause] = {
    "WaitingForClusterInfrastructure": Cause(
        "the ProxmoxCluster is not ready, so no machine is begun",
        "See the ProxmoxCluster's condition: credentials, the Proxmox API, or a missing control plane endpoint.",
    ),
    "WaitingForBootstrapData": Cause(
        "the bootstrap provider has not written the Secret with the join data",
        "Look at the Machine's bootstrap.configRef: is the provider installed, and is the control plane up?",
    ),
    "Cloning": Cause(
        "the clone is under way, or its VM does not answer to the machine's name",
        "Open the task named in status.taskRef; a full clone takes as long as its disk is large.",
        900,
    ),
    "CloningFailed": Cause(
        "the clone was refused: template, rights, ids, or no free memory by the scheduler's count",
        "Read the message; then the template and the token's rights (VM.Clone on it, VM.Allocate on the pool).",
        0,
        Status.FAIL,
    ),
    "WaitingForDiskReconciliation": Cause(
        "the VM's config was changed and its disk is to be resized",
        "Is spec.disks.bootVolume.disk the name of a disk of the template, and not smaller than it?",
    ),
    "WaitingForStaticIPAllocation": Cause(
        "no address was given: no IPAM provider, an empty pool, or a pool that is not there",
        "Is the IPAM provider `in-cluster` installed? Then `kubectl get ipaddressclaims,inclusterippools -A`.",
        120,
    ),
    "WaitingForBootstrapDataReconciliation": Cause(
        "the bootstrap image could not be put in the drive: no storage takes ISO images, or the upload fails",
        "Check `content iso` of the node's storages, and that the node of the API address reaches the VM's by ssh.",
        120,
    ),
    "WaitingForVMPowerUp": Cause("the VM is to be started", "Open its qmstart task in Proxmox VE.", 120),
    "PoweringOn": Cause("the VM is to be started", "Open its qmstart task in Proxmox VE.", 120),
    "PoweringOnFailed": Cause(
        "the VM could not be started",
        "Read the qmstart task's log: memory on the node, a missing bridge, KVM that is switched off.",
        0,
        Status.FAIL,
    ),
    "WaitingForClusterAPIMachineAddresses": Cause("its addresses are to be told", "Is the VM running?", 120),
    "WaitingForNetworkAddresses": Cause("its addresses are to be told", "Is the VM running?", 120),
    "WaitingForCloudInit": Cause(
        "the guest agent does not answer, or cloud-init is still at work",
        "Does the template have qemu-guest-agent installed and `agent: 1`? Else set checks.skipQemuGuestAgent.",
    ),
    "WaitingForBootstrapReady": Cause(
        "cloud-init is done, and Cluster API has not seen a Node yet",
        "Look at the kubelet on the machine; see the tenant's Nodes.",
    ),
    "TaskFailed": Cause(
        "a task of Proxmox VE failed; CAPMOX 0.8 and later do not go on from here by themselves",
        "Read the task's last lines, mend the cause, then delete the Machine so that it is made anew.",
        0,
        Status.FAIL,
    ),
    "TaskFailure": Cause(
        "a task of Proxmox VE failed; it is tried again after a minute",
        "Read the task's last lines and mend the cause.",
        0,
        Status.FAIL,
    ),
    "VMProvisionFailed": Cause(
        "the machine was given up",
        "Mend what the message says, then delete the Machine: a given up one is never tried again.",
        0,
        Status.FAIL,
    ),
    "NotFound": Cause("its VM is gone", "Delete the Machine; it is not made again by itself.", 0, Status.FAIL),
    "Deleting": Cause(
        "it is being deleted, and its VM is not gone yet",
        "See the VM's qmstop and qmdestroy tasks and the controller's log; a lock or a running backup keeps a VM.",
    ),
    "DeletionFailed": Cause(
        "its VM could not be deleted",
        "Read the message; the finalizer is right to wait, so do not remove it while the VM is there.",
        0,
        Status.FAIL,
    ),
    "Unknown": Cause("CAPMOX cannot tell the VM's state", "Read the controller's log.", 300),
}
CAUSES = {**CAUSES, "WaitingForClusterInfrastructureReady": CAUSES["WaitingForClusterInfrastructure"]}
"""Every waiting reason of both generations: v1alpha1's VMProvisioned and v1alpha2's VirtualMachineProvisioned."""

SILENT = Cause("CAPMOX has not said anything about it yet", "Read the controller's log.", 120)

WORDS: tuple[tuple[str, str, str], ...] = (
    ("found 0 VM templates", "no template has the tags asked for",
     "Compare spec.templateSelector.matchTags with the template's tags: all of them, and no others, must agree."),
    ("VM templates with tags", "several templates have the tags asked for",
     "Let exactly one template have these tags, or name it by sourceNode and templateID."),
    ("unable to find vm template", "the template is not on the node that sourceNode names",
     "Correct templateID and sourceNode; a template that was migrated is on another node."),
    ("cannot reserve", "the scheduler counts no free memory, since it counts what stopped VMs were promised too",
     "Set schedulerHints.memoryAdjustment above 100, or 0, or free memory on the allowed nodes."),
    ("No free vmid", "the vmIDRange is used up", "Widen spec.vmIDRange in a new ProxmoxMachineTemplate."),
    ("vmIDRange", "the vmIDRange is used up", "Widen spec.vmIDRange in a new ProxmoxMachineTemplate."),
    ("unable to find inclusterpool", "the cluster's address pool is not there",
     "Install the IPAM provider, then see whether the ProxmoxCluster has made its pool."),
    ("unable to find the item you are looking for", "no storage of the VM's node takes ISO images",
     "Add content type iso to one: `pvesm set local --content iso,vztmpl,backup`."),
    ("can't lock file", "too many clones of one template at a time",
     "Wait: it is tried again; lower maxSurge, or clone linked."),
    ("got timeout", "a lock of Proxmox VE was held too long", "Wait: it is tried again; lower maxSurge."),
    ("QEMU guest agent is not running", "the guest agent does not answer",
     "Install qemu-guest-agent in the template, or set checks.skipQemuGuestAgent."),
    ("error waiting for agent", "the guest agent does not answer",
     "Install qemu-guest-agent in the template, or set checks.skipQemuGuestAgent."),
    ("cloud-init failed", "cloud-init ended with an error", "Read /var/log/cloud-init-output.log on its console."),
    ("not authorized", "the token may not do it, or is not valid any more",
     "Compare the token's rights with step 13's table; a revoked token gives 401."),
    ("Permission check failed", "the token may not do it", "Compare the token's rights with step 13's table."),
    ("does not exist", "what it names is not there", "Compare names with what Proxmox VE lists."),
    ("x509", "the certificate of Proxmox VE is not trusted", "Give its CA in the credentials Secret, key root_ca."),
    ("volume_size_info", "its bootstrap image is gone already, and CAPMOX does not get over that",
     "Stop and destroy the VM by hand: once its id is free, the Machine goes by itself."),
    ("no space left", "a storage is full", "Free space; see step 22."),
    ("out of space", "a storage is full", "Free space; see step 22."),
    ("Cannot allocate memory", "the node has no memory left for another VM", "Free memory on the node, or allow more."),
)  # fmt: skip
"""Words of messages and task logs that tell more than the reason: fragment, cause, first safe step."""


@check(
    title="No machine is stuck",
    remedy="Take the first step that is named; every one of them only looks, or can be undone.",
    source=f"{CAPMOX}: conditions VMProvisioned (v1alpha1) and VirtualMachineProvisioned (v1alpha2)",
)
def no_machine_is_stuck(scene: Scene, *, at: float | None = None, patience: float = 1.0) -> Iterator[Finding]:
    """One finding per machine: ready, on its way, or stuck with the likely cause and the first safe step.

    `at` is now in seconds since the epoch; `patience` stretches how long a reason may last before it is a warning.
    """
    homes = {(row.namespace, row.cluster): row for row in scene.homes}
    for chain in chains(scene):
        own, machine = chain.proxmox, chain.machine
        subject = f"{chain.namespace}/{chain.name}" if chain.namespace else chain.name
        if own is None:
            if machine is not None and machine.failure:
                yield verdict(False, subject, machine.failure)
            continue
        if own.ready and not own.deleting:
            yield verdict(True, subject, "provisioned")
            continue
        if not own.machine:
            step = "Delete it and make a MachineDeployment; a bare ProxmoxMachine is never worked on."
            yield verdict(False, subject, "waits for an owner: no Machine refers to it", remedy=step)
            continue
        yield _explained(chain, own, homes.get((own.namespace, own.cluster)), at, patience)


def _explained(
    chain: Chain, own: ProxmoxMachine, home: ProxmoxHome | None, at: float | None, patience: float
) -> Finding:
    subject = f"{chain.namespace}/{chain.name}"
    failed = [row for row in chain.tasks if _has_failed(row.task.status)]
    log = " / ".join(failed[-1].lines) if failed else ""
    told = own.failure or own.message
    cause = CAUSES.get(
        own.reason, Cause("CAPMOX has not said anything about it yet", "Read the controller's log.", 120)
    )
    why, step, status = cause.why, cause.step, cause.status
    if own.reason == "WaitingForBootstrapData" and chain.machine is not None and not chain.machine.bootstrap:
        why, step = "the Machine names no bootstrap config", "Give it spec.bootstrap.configRef; it cannot be empty."
    if own.reason in {"PoweringOn", "WaitingForNetworkAddresses"} and chain.runs and _is_mute(chain):
        # v1alpha1 has no reason of its own for a machine that runs and whose agent is waited for
        why, step = CAUSES["WaitingForCloudInit"].why, CAUSES["WaitingForCloudInit"].step
    if "Infrastructure" in own.reason and home is not None and home.reason:
        why = f"{why} ({home.reason}{': ' + home.message if home.message else ''})"
        why, step = _home_cause(home, why, step)
    words = " ".join((told, log, home.message if home and "Infrastructure" in own.reason else ""))
    for fragment, likely, first in WORDS:
        if fragment.lower() in words.lower():
            why, step = likely, first
            break
    since = own.since or own.created
    waited = None if at is None or not since else max(0.0, at - since)
    if own.failure:
        status = Status.FAIL
    young = status is Status.WARN and waited is not None and waited < cause.after_seconds * patience
    tail = f"; task {failed[-1].task.type} ended: {failed[-1].task.status}; its log: {log or 'empty'}" if failed else ""
    words_of = f" ({told})" if told else ""
    lasting = f" for {waited:.0f} s" if waited is not None else ""
    message = f"{own.reason or 'nothing said'}{lasting}{words_of}: {why}{tail}"
    if young and not failed:
        return verdict(None, subject, f"on its way: {own.reason or 'begun'}{lasting}")
    return verdict(status, subject, message, remedy=step, reason=own.reason, task=own.task)


def _is_mute(chain: Chain) -> bool:
    """Whether its agent should answer and does not."""
    skips = chain.proxmox is not None and chain.proxmox.skips_agent
    return chain.vm is not None and chain.vm.agent_addresses is None and not skips


def _home_cause(home: ProxmoxHome, why: str, step: str) -> tuple[str, str]:
    if home.reason == "MissingControlPlaneEndpoint":
        return why, "See the control plane: Kamaji fills the endpoint in once its Service has an address (MetalLB)."
    if home.reason in {"CredentialsNotFound", "ProxmoxUnreachable"}:
        return why, "See the credentials Secret (url, token, secret), and whether pods reach the Proxmox API."
    return why, step


# --- what was done -----------------------------------------------------------------------------------


@check(
    title="The machines came up",
    remedy="See `No machine is stuck` for the cause and the first safe step.",
    source="Sprint 2.2, step 3: validate VM provisioning",
)
def machines_came_up(scene: Scene, *, count: int, refused: str = "", node: bool = True) -> Iterator[Finding]:
    """One finding: so many machines, each with a running VM, an address and a Node, and none besides."""
    if refused:
        yield verdict(None, "machines", refused)
        return
    rows = [row for row in chains(scene) if row.machine and not row.machine.deleting]
    good = [row for row in rows if row.runs and row.addresses and row.proxmox and row.proxmox.ready
            and (row.registered or not node)]  # fmt: skip
    ready = sum(is_node_ready(row) for row in good)
    message = f"{len(good)} of {count} machines run, have an address and are Nodes, {ready} of them Ready"
    if len(rows) != count:
        message += f"; {len(rows)} Machines are there"
    yield verdict(len(good) == len(rows) == count, "machines", message)


@check(
    title="The new template reached the VMs",
    remedy="See the MachineDeployment's conditions; a roll waits for machines that do not become available.",
    source="Sprint 2.2, step 3: roll a template; GET /nodes/{node}/qemu/{vmid}/config",
)
def roll_reached_the_vms(before: Scene, after: Scene, *, memory_mib: int, refused: str = "") -> Iterator[Finding]:
    """One finding per machine of the roll: its VM's config has the new memory, and none of the old ones remains."""
    if refused:
        yield verdict(None, "roll", refused)
        return
    old = {row.name for row in chains(before) if row.machine}
    for chain in chains(after):
        if chain.machine is None or chain.machine.deleting:
            continue
        has = chain.vm.memory_mib if chain.vm else None
        good = chain.name not in old and has == memory_mib
        told = f"VM {chain.vm.vmid} has {has} MiB" if chain.vm else "no VM"
        extra = "; it is the machine from before" if chain.name in old else ""
        yield verdict(good, chain.name, f"{told}, wanted {memory_mib} MiB{extra}")


@check(
    title="A lost VM was replaced",
    remedy="See the MachineHealthCheck's status (expectedMachines, currentHealthy) and its maxUnhealthy.",
    source="Sprint 2.2, step 3: remediation by MachineHealthCheck",
)
def lost_machine_was_replaced(before: Scene, after: Scene, *, count: int, refused: str = "") -> Iterator[Finding]:
    """One finding: the machine whose VM was taken away is gone, and another one runs in its place."""
    if refused:
        yield verdict(None, "remediation", refused)
        return
    old = {row.name for row in chains(before) if row.machine}
    rows = [row for row in chains(after) if row.machine and not row.machine.deleting]
    fresh = [row for row in rows if row.name not in old]
    gone = sorted(old - {row.name for row in rows})
    good = bool(gone) and len(rows) == count and all(row.runs for row in rows) and bool(fresh)
    message = f"{', '.join(gone) or 'no machine'} gone, {', '.join(row.name for row in fresh) or 'none'} in its place"
    yield verdict(good, "remediation", message)


@check(
    title="Nothing of the machines is left",
    remedy="`runbook sweep` takes away what bears the run's mark, on both sides; then look for finalizers.",
    source="Sprint 2.2, step 3: life cycle; both APIs after deletion",
)
def nothing_is_left(scene: Scene, *, refused: str = "") -> Iterator[Finding]:
    """One finding per thing of the cluster that is still there on either side, or one pass that names what was looked
    at."""
    if refused:
        yield verdict(None, "machines", refused)
        return
    left = [f"Machine {row.namespace}/{row.name}" for row in scene.machines]
    left += [f"ProxmoxMachine {row.namespace}/{row.name}" for row in scene.proxmox_machines]
    left += [f"ProxmoxCluster {row.namespace}/{row.name}" for row in scene.homes]
    left += [f"MachineDeployment {row.namespace}/{row.name}" for row in scene.groups]
    left += [f"IPAddressClaim {row.namespace}/{row.name}" for row in scene.claims]
    left += [f"VM {row.vmid} ({row.name})" for row in scene.vms]
    left += [f"image {row.volid}" for row in scene.isos]
    for thing in left:
        yield verdict(False, thing, f"{thing} is still there")
    if not left:
        yield verdict(True, "both sides", "no Machine, ProxmoxMachine, claim, VM and bootstrap image is left")


@check(
    title="Machines come up quickly enough",
    remedy="Clone linked, use faster storage, or bake what cloud-init installs into the template.",
    source="Targets of the integration plan: a VM in less than 5 minutes",
)
def machines_are_quick(measurements: Iterable[Measurement], *, vm_seconds: float = 300) -> Iterator[Finding]:
    """One finding per measurement that has a limit: its slowest sample against it; without samples a skip."""
    for row in measurements:
        if row.threshold is None:
            continue
        if not row.values:
            yield verdict(None, row.name, f"{row.name}: no machine came so far")
            continue
        slowest = max(row.values)
        limit = row.threshold or vm_seconds
        figures = f"slowest {slowest:.1f} s of {len(row.values)}, limit {limit:g} s"
        yield verdict(slowest <= limit, row.name, f"{row.name}: {figures}")


@check(
    title="A clone storm is survived",
    remedy="Lower maxSurge, clone linked, or spread templates over nodes; each clone locks its template.",
    source=f"{CAPMOX}: issue #389 (can't lock file … got timeout)",
)
def clone_storm_is_survived(scene: Scene) -> Iterator[Finding]:
    """One finding per task that failed on a lock, or one pass for the clones that ran."""
    clones = [row.task for row in scene.tasks if row.task.type == "qmclone"]
    locked = [row.task for row in scene.tasks if _is_lock(row.task.status) or any(map(_is_lock, row.lines))]
    for task in locked:
        yield verdict(Status.WARN, task.upid, f"{task.type} of {task.id} on {task.node}: {task.status}")
    if clones and not locked:
        yield verdict(True, "clones", f"{len(clones)} clones, none of them met a lock")


def _is_lock(text: str | None) -> bool:
    return "can't lock file" in str(text) or "got timeout" in str(text)


def _has_failed(status: str | None) -> bool:
    return status is not None and status != "OK" and not status.startswith("WARNINGS")


def _vmid_of(volume: Volume) -> int | None:
    digits = volume.volid.rpartition("user-data-")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else None


def _span(text: str) -> tuple[int, int, int]:
    """First and last address as numbers, and the IP version."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if dash:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
    else:
        network = ipaddress.ip_network(first, strict=False)
        low, high = network[0], network[-1]
    return int(low), int(high), low.version
