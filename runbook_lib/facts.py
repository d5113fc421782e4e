"""The rows that facts come in: what `proxmox` and `kubernetes` read and `checks` judge. Values only, no I/O.

Sizes are bytes, times epoch seconds, fractions 0–1, unless the name says otherwise.
None means the API did not tell, which is not the same as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# --- Proxmox VE ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PveVersion:
    """GET /version."""

    version: str  # "8.4.21"
    release: str  # "8.4"
    repoid: str


@dataclass(frozen=True)
class ClusterMember:
    """One node entry of GET /cluster/status."""

    name: str
    node_id: int
    ip: str | None
    online: bool
    local: bool


@dataclass(frozen=True)
class Cluster:
    """GET /cluster/status. `name` is None on a standalone node, where quorum has no meaning (`quorate` None)."""

    name: str | None
    quorate: bool | None
    members: tuple[ClusterMember, ...]


@dataclass(frozen=True)
class Node:
    """GET /nodes with GET /nodes/{node}/status. `error` tells why the node itself did not answer."""

    name: str
    online: bool
    cpus: int | None = None
    cpu_fraction: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    root_bytes: int | None = None
    root_used_bytes: int | None = None
    uptime_seconds: int | None = None
    pve_version: str | None = None  # "pve-manager/8.4.21/…"
    kernel: str | None = None
    error: str = ""


@dataclass(frozen=True)
class Guest:
    """One guest of GET /cluster/resources?type=vm. `memory_bytes` is what it may use at most."""

    vmid: int
    name: str
    node: str
    kind: str  # "qemu" | "lxc"
    status: str  # "running" | "stopped" | "unknown" …
    template: bool
    cpus: float
    memory_bytes: int
    disk_bytes: int
    tags: tuple[str, ...] = ()
    pool: str = ""
    lock: str = ""


@dataclass(frozen=True)
class Storage:
    """One storage on one node: GET /nodes/{node}/storage. Sizes are None where it is not active."""

    node: str
    name: str
    type: str  # "dir", "lvmthin", "zfspool", "nfs", "rbd" …
    content: tuple[str, ...]  # sorted: "images", "iso", "rootdir" …
    active: bool
    enabled: bool
    shared: bool
    total_bytes: int | None = None
    used_bytes: int | None = None
    available_bytes: int | None = None


@dataclass(frozen=True)
class ThinPool:
    """GET /nodes/{node}/disks/lvmthin: a full metadata area stops writes as surely as a full pool."""

    node: str
    volume_group: str
    name: str
    size_bytes: int
    used_bytes: int
    metadata_bytes: int
    metadata_used_bytes: int


@dataclass(frozen=True)
class Volume:
    """One row of GET /nodes/{node}/storage/{storage}/content."""

    node: str
    storage: str
    volid: str
    content: str
    format: str
    size_bytes: int
    vmid: int | None = None


@dataclass(frozen=True)
class Interface:
    """One row of GET /nodes/{node}/network. `ports` are a bridge's or a bond's members."""

    node: str
    name: str
    type: str  # "bridge", "bond", "eth", "vlan", "OVSBridge" …
    active: bool
    autostart: bool
    vlan_aware: bool = False
    mtu: int | None = None  # None: the kernel's default, 1500
    ports: tuple[str, ...] = ()
    cidr: str | None = None
    cidr6: str | None = None
    gateway: str | None = None
    gateway6: str | None = None
    raw_device: str | None = None  # what a VLAN interface lies on
    comments: str = ""


@dataclass(frozen=True)
class NetworkConfig:
    """What one node's interfaces are set to, by name; what comes and goes by itself (link state) is left out."""

    node: str
    interfaces: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class SdnObject:
    """One zone or vnet of GET /cluster/sdn/{zones,vnets}. `waits` is "new", "changed" or "deleted" until applied."""

    kind: str  # "zone" | "vnet"
    name: str
    type: str  # "simple", "vlan", "qinq", "vxlan", "evpn"; "vnet"
    zone: str = ""  # of a vnet
    nodes: tuple[str, ...] = ()  # empty: all
    bridge: str | None = None
    tag: int | None = None
    mtu: int | None = None
    waits: str = ""


@dataclass(frozen=True)
class SdnStatus:
    """How one zone or vnet is on one node: GET /nodes/{node}/sdn/zones and …/{zone}/content."""

    node: str
    kind: str  # "zone" | "vnet"
    name: str
    status: str  # "available" | "pending" | "error"
    message: str = ""


@dataclass(frozen=True)
class PendingNetwork:
    """What waits in one node's interfaces.new, as PVE's unified diff; empty when nothing waits."""

    node: str
    diff: str


@dataclass(frozen=True)
class Certificate:
    """One row of GET /nodes/{node}/certificates/info."""

    node: str
    filename: str
    subject: str
    issuer: str
    san: tuple[str, ...]
    not_before: int
    not_after: int
    fingerprint: str  # SHA-256, "AA:BB:…"


@dataclass(frozen=True)
class ServedCertificate:
    """The certificate an endpoint really presents, and how we came to trust it."""

    endpoint: str  # "pve1:8006"
    host: str  # the name or address we connect to
    subject: str
    issuer: str
    san: tuple[str, ...]
    not_after: int
    fingerprint: str
    verified_by: str  # "ca_file" | "fingerprint" | "system" | "nothing"
    chain_error: str = ""  # why the configured trust does not accept it; empty when it does


@dataclass(frozen=True)
class Clock:
    """A node's clock against ours: positive when the node is ahead. `uncertainty` is half the round trip."""

    node: str
    offset_seconds: float
    uncertainty_seconds: float
    timezone: str


@dataclass(frozen=True)
class Task:
    """One row of GET /nodes/{node}/tasks. `status` is None while it runs."""

    node: str
    upid: str
    type: str
    id: str
    user: str
    started: int
    finished: int | None
    status: str | None  # "OK", "WARNINGS: 1", or the error's text


@dataclass(frozen=True)
class Update:
    """One pending package of GET /nodes/{node}/apt/update."""

    node: str
    package: str
    old_version: str | None
    version: str
    origin: str
    security: bool  # from Debian's security archive, or a stable update (+debXuY), which carries only fixes


@dataclass(frozen=True)
class Template:
    """A VM template's config as far as a machine made from it depends on it."""

    vmid: int
    name: str
    node: str
    agent: bool
    cloudinit_slot: str | None  # "ide2"; CAPMOX brings its own ISO on ide0
    scsi_controller: str | None  # "virtio-scsi-single"
    boot: str | None  # "order=scsi0"
    serial: bool
    disks: tuple[str, ...]  # "scsi0"
    networks: tuple[str, ...]  # "net0"
    os_type: str | None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoginAttempt:
    """One login that was tried on purpose. `reason` is the server's own phrase."""

    case: str  # "wrong password", "expired token" …
    expected: str  # "refused" | "accepted"
    status: int
    reason: str
    seconds: float
    note: str = ""  # why the case could not be tried; then status is 0


@dataclass(frozen=True)
class Permissions:
    """GET /access/permissions of one identity: path → privilege → propagates."""

    identity: str
    paths: Mapping[str, Mapping[str, bool]]


# --- Kubernetes and CozyStack --------------------------------------------------------------------


@dataclass(frozen=True)
class KubeVersion:
    """GET /version."""

    version: str  # "v1.33.4"
    minor: tuple[int, int]  # (1, 33)


@dataclass(frozen=True)
class Taint:
    """One taint of a Node."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}{'=' + self.value if self.value else ''}:{self.effect}"


@dataclass(frozen=True)
class KubeNode:
    """A Node with the requests of the pods bound to it."""

    name: str
    ready: str  # "True" | "False" | "Unknown"
    conditions: Mapping[str, str]  # type → status, Ready apart
    roles: tuple[str, ...]
    kubelet_version: str
    runtime: str
    os_image: str
    internal_ip: str | None
    provider_id: str
    system_uuid: str
    unschedulable: bool
    taints: tuple[Taint, ...]
    labels: Mapping[str, str]
    allocatable_cpus: float
    allocatable_memory_bytes: int
    allocatable_pods: int
    requested_cpus: float
    requested_memory_bytes: int
    pods: int


@dataclass(frozen=True)
class Pod:
    """A pod as far as health goes. `reasons` are waiting and termination reasons, worst first."""

    namespace: str
    name: str
    node: str
    phase: str
    ready: bool
    restarts: int
    reasons: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""  # "DaemonSet/cilium"
    message: str = ""


@dataclass(frozen=True)
class Quota:
    """A ResourceQuota: resource → quantity as Kubernetes spells it."""

    name: str
    hard: Mapping[str, str]
    used: Mapping[str, str]


@dataclass(frozen=True)
class Namespace:
    """A Namespace with its quotas."""

    name: str
    phase: str  # "Active" | "Terminating"
    labels: Mapping[str, str]
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True)
class TestVolume:
    """A volume that was allocated for a proof, and what the storage's own list says of it; None: not in it."""

    __test__ = False  # pytest would take the name for a test

    node: str
    storage: str
    volid: str
    found: Volume | None


@dataclass(frozen=True)
class TriedBridge:
    """A bridge that was made for a proof, as its node has it now. `waits` while something is not applied there."""

    node: str
    name: str
    found: Interface | None
    waits: bool


@dataclass(frozen=True)
class GrownDisk:
    """A disk that was made for a proof and then resized: the size asked for, and what config and storage say."""

    node: str
    vmid: int
    disk: str  # "scsi0"
    volid: str
    wanted_bytes: int
    config_bytes: int | None
    listed_bytes: int | None


@dataclass(frozen=True)
class Held:
    """What one identity may do, beside what its component needs there: path → privileges."""

    component: str
    permissions: Permissions
    needs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Workload:
    """A Deployment, DaemonSet or StatefulSet."""

    kind: str
    namespace: str
    name: str
    desired: int
    ready: int
    images: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cozystack:
    """Which CozyStack this is, and by what evidence."""

    generation: str  # "v1" | "v0" | "half migrated" | "none"
    release: str | None  # "1.6.2"
    migration: int | None  # ConfigMap cozystack-version: a migration number, not a version
    variant: str | None  # "isp-full", "paas-full" …
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Release:
    """A Flux HelmRelease. `depends_on` are namespace/name."""

    namespace: str
    name: str
    ready: str  # "True" | "False" | "Unknown"
    reason: str
    message: str
    suspended: bool
    depends_on: tuple[str, ...]
    chart_version: str | None = None
    package: str = ""


@dataclass(frozen=True)
class Package:
    """A CozyStack v1 Package. `dependencies` are names of the packages it waits for."""

    name: str
    variant: str
    ready: str
    reason: str
    message: str
    dependencies: tuple[str, ...] = ()


@dataclass(frozen=True)
class CapiProvider:
    """A provider object of the Cluster API operator."""

    kind: str  # "CoreProvider", "InfrastructureProvider" …
    namespace: str
    name: str
    version: str
    installed_version: str
    contract: str
    ready: str
    reason: str
    message: str


@dataclass(frozen=True)
class ProviderStage:
    """A condition of a provider object, when it came to be so."""

    provider: str  # "proxmox", "in-cluster"
    condition: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True)
class ManagerIdentity:
    """Whom CAPMOX' manager is to Proxmox VE. The token's secret is not read, only whether there is one."""

    pods: int
    ready: int
    restarts: int
    url: str
    token_id: str
    has_secret: bool
    insecure: str  # PROXMOX_INSECURE as it is set; empty means the default, which verifies nothing
    errors: tuple[str, ...] = ()  # last lines of its log that tell of errors


@dataclass(frozen=True)
class Crd:
    """A CustomResourceDefinition. `contracts` maps a Cluster API contract to the versions that satisfy it."""

    name: str  # "machines.cluster.x-k8s.io"
    group: str
    kind: str
    served: tuple[str, ...]
    storage_version: str
    established: bool
    contracts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Webhook:
    """One admission or conversion webhook with its Service behind it."""

    configuration: str
    kind: str  # "validating" | "mutating" | "conversion"
    name: str
    service: str  # "namespace/name:port"; empty when called by URL
    failure_policy: str
    ready_endpoints: int | None  # None when called by URL
    ca_not_after: int | None
    ca_error: str = ""  # why the CA bundle cannot be used; empty when it can


@dataclass(frozen=True)
class ApiService:
    """An APIService; local ones (no Service behind) are left out."""

    name: str
    available: str
    reason: str
    message: str
    service: str


@dataclass(frozen=True)
class StorageClass:
    """A StorageClass."""

    name: str
    provisioner: str
    default: bool
    binding_mode: str
    expandable: bool
    reclaim_policy: str


@dataclass(frozen=True)
class MonitoringPart:
    """One object of the monitoring stack, by what it is and not by what it is called."""

    kind: str  # "VMCluster", "VMAgent", "VLCluster", "Grafana" …
    namespace: str
    name: str
    operational: bool | None
    detail: str


@dataclass(frozen=True)
class NetworkRange:
    """One address range that must not meet another. `owner` says where it was read."""

    name: str  # "pods", "services", "join", "Proxmox LAN", "machine pool"
    cidr: str  # CIDR or "first-last"
    owner: str
    kind: str = ""  # ranges of one kind may meet each other: "lan"


@dataclass(frozen=True)
class Reach:
    """One connection that was tried. `outcome` says how it ended."""

    source: str  # "this machine", "pod on cp-1"
    target: str  # "10.0.0.1:8006"
    outcome: str  # "connected" | "refused" | "timeout" | "dns" | "tls" | "not tried"
    seconds: float | None = None
    note: str = ""


# --- Machines: Cluster API, CAPMOX and the VMs behind them, the same rows for both generations -----


@dataclass(frozen=True)
class Condition:
    """One condition of an object; `severity` only where the generation has it."""

    type: str
    status: str  # "True" | "False" | "Unknown"
    reason: str = ""
    message: str = ""
    severity: str = ""
    since: int | None = None


@dataclass(frozen=True)
class MachineApis:
    """Which versions of each kind that machines are made of the cluster serves, the newest first."""

    served: Mapping[str, tuple[str, ...]]  # "Machine" → ("v1beta2", "v1beta1")

    def version(self, kind: str) -> str:
        """The newest version of the kind, empty where it is not served."""
        return next(iter(self.served.get(kind, ())), "")

    @property
    def generation(self) -> str:
        """CAPMOX' own version: "v1alpha2" of 0.8 and later, "v1alpha1" before, empty where there is none."""
        return self.version("ProxmoxMachine")

    @property
    def core(self) -> str:
        """The version of `cluster.x-k8s.io` that fits this CAPMOX: contract v1beta2 came with v1alpha2."""
        found = self.served.get("Machine", ())
        wanted = "v1beta1" if self.generation == "v1alpha1" and "v1beta1" in found else ""
        return wanted or next(iter(found), "")


@dataclass(frozen=True)
class Machine:
    """A Machine of Cluster API."""

    namespace: str
    name: str
    uid: str = ""
    cluster: str = ""
    deployment: str = ""
    phase: str = ""
    created: int = 0
    deleting: bool = False
    version: str = ""
    data_secret: str = ""  # its bootstrap data; empty while there is none
    bootstrap: str = ""  # "KubeadmConfig/name"
    infrastructure: str = ""  # "ProxmoxMachine/name"
    provider_id: str = ""
    node: str = ""
    failure: str = ""
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class ProxmoxMachine:
    """A ProxmoxMachine of CAPMOX. `machine` is empty while no Machine owns it: then nobody works on it."""

    namespace: str
    name: str
    uid: str = ""
    machine: str = ""
    cluster: str = ""
    created: int = 0
    deleting: bool = False
    generation: str = ""
    ready: bool = False  # what the object claims
    vmid: int | None = None
    provider_id: str = ""
    node: str = ""
    task: str = ""  # the UPID it waits for
    retry_after: str = ""
    addresses: tuple[str, ...] = ()
    bootstrap_provided: bool = False
    reason: str = ""
    message: str = ""
    since: int | None = None
    failure: str = ""
    template: str = ""  # "9000 on pve1", "tags kubernetes, v1.34"
    vmid_range: tuple[int, int] | None = None
    finalizers: tuple[str, ...] = ()
    skips_agent: bool = False


@dataclass(frozen=True)
class ProxmoxHome:
    """A ProxmoxCluster. `cluster` is empty while no Cluster owns it."""

    namespace: str
    name: str
    cluster: str = ""
    ready: bool = False
    reason: str = ""
    message: str = ""
    addresses: tuple[str, ...] = ()
    allowed_nodes: tuple[str, ...] = ()
    memory_adjustment: int = 100
    endpoint: str = ""
    credentials: str = ""
    external_control_plane: bool = False


@dataclass(frozen=True)
class MachineGroup:
    """A MachineDeployment."""

    namespace: str
    name: str
    cluster: str
    wanted: int
    there: int
    ready: int
    updated: int
    template: str
    selector: str = ""


@dataclass(frozen=True)
class AddressPool:
    """An InClusterIPPool or GlobalInClusterIPPool."""

    namespace: str  # empty of a global one
    name: str
    addresses: tuple[str, ...]
    cluster: str = ""
    total: int | None = None
    used: int | None = None
    free: int | None = None


@dataclass(frozen=True)
class AddressClaim:
    """An IPAddressClaim with the IPAddress that answers it; `address` is empty while none does."""

    namespace: str
    name: str
    machine: str  # the ProxmoxMachine that owns it
    pool: str
    address: str = ""
    created: int = 0
    message: str = ""


@dataclass(frozen=True)
class MachineVm:
    """A VM as its list, its config and its agent tell it. `agent_addresses` is None while no agent answers."""

    vmid: int
    name: str
    node: str
    status: str
    uuid: str = ""  # SMBIOS uuid, what a providerID is made of
    tags: tuple[str, ...] = ()
    pool: str = ""
    lock: str = ""
    cores: int | None = None
    memory_mib: int | None = None
    iso: str = ""  # volid in the drive of the bootstrap data
    agent_addresses: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TaskTail:
    """A task with the last lines of its log. `vmid` is the VM it is about: a clone's own id is its template's."""

    task: Task
    lines: tuple[str, ...] = ()
    vmid: int | None = None

    @property
    def about(self) -> int | None:
        """The VM that the task is about, None of a task that is about none."""
        return self.vmid or (int(self.task.id) if self.task.id.isdigit() else None)


@dataclass(frozen=True)
class TenantNode:
    """A Node of the cluster that machines join."""

    cluster: str  # "namespace/name"
    name: str
    provider_id: str
    ready: str  # "True" | "False" | "Unknown"
    reason: str = ""
    message: str = ""
    created: int = 0
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """What the API server said to one manifest in a dry run; `refusal` is empty where it took it."""

    target: str
    refusal: str = ""
    untried: str = ""  # why it could not be tried


# --- storage of Kubernetes, and the disks behind it ------------------------------------------------


@dataclass(frozen=True)
class NodeMachine:
    """A Kubernetes node beside the Proxmox VM that it is. `vmid` is None where no VM has the node's uuid."""

    node: str
    ready: str
    schedulable: bool
    system_uuid: str
    provider_id: str
    region: str  # what the labels say
    zone: str
    address: str = ""
    vmid: int | None = None
    vm_name: str = ""
    host: str = ""  # the Proxmox node the VM is on; of a host that is a worker itself, that host
    pool: str = ""
    scsi_controller: str = ""
    slots: tuple[int, ...] = ()  # numbers of the SCSI drives in use
    is_host: bool = False  # a Proxmox server, no VM
    control_plane: bool = False
    max_volumes: int | None = None  # the driver's limit, None where the driver is not registered
    topology_keys: tuple[str, ...] = ()
    twins: tuple[int, ...] = ()  # other VMs with the same uuid


@dataclass(frozen=True)
class Claim:
    """A PersistentVolumeClaim with the last thing that an event says of it."""

    namespace: str
    name: str
    phase: str
    storage_class: str
    volume: str
    modes: tuple[str, ...]
    volume_mode: str
    requested_bytes: int
    capacity_bytes: int
    created: int | None
    deleting: bool = False
    conditions: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    binding_mode: str = ""


@dataclass(frozen=True)
class PersistentVolume:
    """A PersistentVolume. `handle` is the driver's own name for it, empty for other kinds of volumes."""

    name: str
    phase: str
    driver: str
    handle: str
    storage_class: str
    claim: str  # "namespace/name"
    reclaim_policy: str
    capacity_bytes: int
    modes: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    deleting: bool = False
    kept: bool = False  # annotated to outlive its claim's disk
    reason: str = ""
    message: str = ""

    @property
    def volid(self) -> str:
        """The disk as Proxmox VE names it, "storage:disk"; empty where the handle is none of the driver's."""
        parts = self.handle.split("/", 3)
        return f"{parts[2]}:{parts[3]}" if len(parts) == 4 else ""

    @property
    def zone(self) -> str:
        """The Proxmox node the disk lies on; empty for one that every node reaches."""
        parts = self.handle.split("/", 3)
        return parts[1] if len(parts) == 4 else ""


@dataclass(frozen=True)
class Attachment:
    """A VolumeAttachment."""

    name: str
    driver: str
    node: str
    volume: str
    attached: bool
    deleting: bool
    attach_error: str = ""
    detach_error: str = ""
    created: int | None = None
    deleted: int | None = None


@dataclass(frozen=True)
class CsiDriver:
    """A CSIDriver."""

    name: str
    attach_required: bool
    storage_capacity: bool


@dataclass(frozen=True)
class CsiCapacity:
    """A CSIStorageCapacity: what the driver says is free for a class at a place."""

    storage_class: str
    topology: Mapping[str, str]
    capacity_bytes: int | None


@dataclass(frozen=True)
class DriverPart:
    """One pod of the driver or of the cloud controller, with the last lines that it wrote where it is unwell."""

    namespace: str
    name: str
    node: str
    component: str  # "controller" | "node" | "ccm"
    images: tuple[str, ...]
    phase: str
    ready: bool
    restarts: int
    reasons: tuple[str, ...]
    message: str = ""
    log: str = ""


@dataclass(frozen=True)
class PodTrouble:
    """A pod that waits for a volume, with what was said of it."""

    namespace: str
    name: str
    node: str
    phase: str
    claims: tuple[str, ...]
    reason: str
    message: str


@dataclass(frozen=True)
class ClaimDisk:
    """A disk of the driver's own VM id, wherever it lies, and the VMs whose config names it."""

    node: str
    storage: str
    volid: str
    size_bytes: int
    volume: str  # the PersistentVolume by the disk's name
    vms: tuple[int, ...] = ()
    slots: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassCase:
    """A StorageClass that is wanted beside the storage it is on; `problems` says what cannot be."""

    name: str
    storage: str
    type: str
    shared: bool
    zones: tuple[str, ...]
    parameters: Mapping[str, str]
    reclaim_policy: str = "Delete"
    problems: tuple[str, ...] = ()
    made: bool = False  # the cluster has it
    default: bool = False
    differences: tuple[str, ...] = ()  # what the cluster's one has otherwise


@dataclass(frozen=True)
class Seen:
    """What was seen after one change of a trial, on either side. `seconds` is how long it was waited for."""

    trial: str  # "follow", "block" …
    storage_class: str
    stage: str  # "waits", "bound", "attached", "running", "grown", "detached", "gone", "kept", "refused" …
    subject: str  # the claim or pod
    reached: bool
    seconds: float
    told: str = ""
    node: str = ""
    vmid: int | None = None
    change: str = ""


@dataclass(frozen=True)
class Spoken:
    """What a command in a trial's pod said."""

    trial: str
    storage_class: str
    what: str  # "write", "read", "size", "moved" …
    pod: str
    code: int | None  # None: it was not run
    output: str = ""


@dataclass(frozen=True)
class Ability:
    """Something that not every site can: whether this one can, and what it would take."""

    name: str  # "snapshots"
    possible: bool
    why: str
    storage_class: str = ""


# --- Networks of pods: how they are set up, and who reached whom -----------------------------------


@dataclass(frozen=True)
class CiliumSettings:
    """What ConfigMap cilium-config tells the agents; a key that is not there is what Cilium takes for default."""

    namespace: str
    enforcement: str  # "default" | "always" | "never"
    audit: bool  # True: policies are judged and not enforced
    kube_proxy_replacement: bool
    routing: str  # "native" | "tunnel"
    chaining: str
    ipam: str
    families: tuple[str, ...]  # "IPv4", "IPv6"
    hubble: bool
    encryption: str  # "" | "wireguard" | "ipsec"
    host_firewall: bool
    mtu: int | None  # None: found out by the agent


@dataclass(frozen=True)
class OvnSettings:
    """What the arguments of Kube-OVN's controller and agents say; None where they say nothing."""

    policies: bool | None  # --enable-np
    load_balancer: bool | None  # --enable-lb
    mtu: int | None
    network_type: str


@dataclass(frozen=True)
class Subnet:
    """A Subnet of Kube-OVN."""

    name: str
    cidr: str
    gateway: str
    gateway_type: str
    protocol: str  # "IPv4" | "IPv6" | "Dual"
    nat_outgoing: bool
    private: bool
    vpc: str
    ready: bool | None
    reason: str = ""


@dataclass(frozen=True)
class PolicyCount:
    """How many policies a namespace has ("" is the cluster), by kind."""

    namespace: str
    network_policies: int
    cilium: int


@dataclass(frozen=True)
class Connection:
    """One connection that was tried from a pod, with what the rules of the platform let one expect of it."""

    phase: str  # "as shipped", "plain deny", "deny", "deny but for a label", "egress rule"
    relation: str  # "same tenant", "sibling" …; see reachability.RULES
    source: str  # "a on worker-1"
    node: str  # where the source ran
    target: str  # "b on worker-2"
    address: str
    protocol: str  # "TCP" | "UDP"
    family: str  # "IPv4" | "IPv6"
    expected: str  # "open" | "closed"
    outcome: str  # "connected" | "refused" | "timeout" | "dns" | "other" | "not tried"
    note: str = ""

    @property
    def seen(self) -> str:
        """open, closed, or unknown: a refusal is an answer of the other end, so the way there is open."""
        known = {"connected": "open", "refused": "open", "timeout": "closed", "dns": "closed", "other": "closed"}
        return known.get(self.outcome, "unknown")


@dataclass(frozen=True)
class PairReading:
    """Connections between pods of two nodes: how long opening took, and whether frames of full size pass both ways."""

    source: str
    target: str
    mtu: int | None  # of the source pod's interface
    connect_ms: tuple[float, ...]
    full_frames: bool | None  # None: not tried


@dataclass(frozen=True)
class Enforcement:
    """How long a policy took from its answer to the last connection that it should have stopped; None: not seen."""

    policy: str
    seconds: float | None
    note: str = ""


# --- A workload, end to end -------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request of the client that runs throughout. `code` is 0 where no answer came."""

    number: int
    code: int
    milliseconds: float

    @property
    def failed(self) -> bool:
        """Whether the client was not served."""
        return self.code != 200


@dataclass(frozen=True)
class Window:
    """What the client saw during one stage."""

    stage: str
    requests: int
    failed: int
    longest_row: int  # most failures in a row
    codes: tuple[int, ...] = ()  # of the failures, each once


@dataclass(frozen=True)
class Stage:
    """One stage of the workload's life: what was waited for, and what the client saw meanwhile."""

    stage: str
    what: str
    reached: bool
    seconds: float
    told: str = ""
    change: str = ""


@dataclass(frozen=True)
class Compared:
    """A measurement beside the same one of earlier. `low` and `high` are the 95 % interval of the median."""

    name: str
    subject: str
    unit: str
    n: int
    median: float | None
    p95: float | None
    low: float | None
    high: float | None
    before: float | None = None
    before_low: float | None = None
    before_high: float | None = None
    verdict: str = "new"  # "better" | "same" | "worse" | "new" | "too few"

    @property
    def ratio(self) -> float | None:
        """The median now by the median then; None where one is missing."""
        return round(self.median / self.before, 3) if self.median is not None and self.before else None


@dataclass(frozen=True)
class PairSpeed:
    """How fast pods of two nodes speak to each other, by iperf3. `note` is why there is no reading."""

    source: str
    target: str
    gbits: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """One thing that may be broken on purpose. `reason` is why it is not, and what would make it possible."""

    name: str
    hypothesis: str
    hits: str  # at most
    way_back: str
    planned: bool
    reason: str = ""


@dataclass(frozen=True)
class MonitoringService:
    """One program of the monitoring as the API server's proxy reaches it. `told` is why it does not answer."""

    role: str  # "metrics" | "collector" | "rules" | "alerts" | "logs" | "dashboards"
    kind: str  # of the object it was found by: "VMCluster", "Prometheus"; empty where nothing plays the role
    namespace: str = ""
    service: str = ""
    port: int = 0
    path: str = ""
    answers: bool = False
    told: str = ""


@dataclass(frozen=True)
class ScrapeTarget:
    """One target of the collector."""

    job: str
    instance: str
    url: str
    up: bool | None  # None: not scraped yet
    samples: int = 0
    error: str = ""


@dataclass(frozen=True)
class Told:
    """One quantity of one Proxmox thing on both sides. None is what a side does not tell."""

    thing: str  # "node/pve1", "qemu/100", "storage/pve1/local"
    metric: str  # "pve_memory_size_bytes"
    proxmox: float | None
    series: float | None
    tolerance: float  # largest difference that is none
    age_seconds: float | None = None


@dataclass(frozen=True)
class RuleState:
    """One alert rule of ours: as wanted, as the alerter has it, and whether what it asks for is there at all."""

    name: str
    expression: str
    loaded: bool
    error: str = ""
    without_data: tuple[str, ...] = ()  # selectors of it that match no series


@dataclass(frozen=True)
class Panel:
    """One query of one panel of a dashboard, and how many series it gave."""

    dashboard: str
    title: str
    expression: str
    series: int | None
    error: str = ""


@dataclass(frozen=True)
class DashboardState:
    """One GrafanaDashboard as the operator left it."""

    name: str
    namespace: str
    applied: bool | None  # None: the operator has not spoken
    told: str = ""


@dataclass(frozen=True)
class DrillStage:
    """One state of a drill that was waited for, as a bar of a timeline too."""

    machine: str  # the drill: "alert", "log line"
    stage: str  # "pending", "firing", "notified", "resolved"
    seconds: float
    reached: bool
    told: str = ""
    since: float = 0.0  # seconds of the cause; the stage took `seconds - since`
