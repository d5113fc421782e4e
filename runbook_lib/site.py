"""What a parameters file may say: the Site and its parts. Unknown keys and loose types are refused.

The descriptions end in parameters/schema.json, where editors show them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from runbook_lib.secrets import is_reference

SPRINT_PROXMOX, SPRINT_KUBERNETES, COZYSTACK_15_KUBERNETES = "7.0", "1.26", "1.33"


def _wrong(message: str, hint: str = "") -> PydanticCustomError:
    """A refusal whose message never repeats the value where the value may be a secret."""
    # the message is a template to pydantic
    return PydanticCustomError("site", "{message}", {"message": message, "hint": hint})


# --- kinds of text -----------------------------------------------------------------------------------------------


def _reference(text: str) -> str:
    if not is_reference(text):
        raise _wrong(
            "a secret as a literal; a reference is expected",
            "write env:NAME, file:path#key, keyring:service/user or k8s:namespace/secret/key",
        )
    return text


def _https(text: str) -> str:
    if not text:
        return text  # the lab fills it in
    parts = urlsplit(text)
    try:
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if parts.username or parts.password:
        raise _wrong("a url without user and password is expected", "give them by token or by reference")
    if parts.scheme != "https" or not parts.hostname or not port_is_right or parts.query or parts.fragment:
        raise _wrong("expected https://host[:port]", f"did you mean https://{text.rpartition('//')[2]}?")
    return text.rstrip("/")


def _cidr(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        try:
            hint = f"did you mean {ip_network(text, strict=False)}?"
        except ValueError:
            hint = "as in 10.0.0.0/24"
        raise _wrong(f"{text!r} is not a network", hint) from None
    return text


def _address(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        raise _wrong(f"{text!r} is not an IP address", "as in 10.0.0.10") from None
    return text


def _addresses(text: str) -> str:
    try:
        span(text)
    except ValueError as error:
        raise _wrong(str(error), "as in 10.0.0.150-10.0.0.180, 10.0.0.128/27 or 10.0.0.150") from None
    return text


def _fingerprint(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text.replace(":", "")):
        raise _wrong("not a SHA-256 fingerprint", "64 hex digits with or without colons, as in `pvenode cert info`")
    return text


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise _wrong(f"{text!r} is not a day", "as in 2027-03-31, in quotes") from None


def _matching(pattern: str, what: str, example: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise _wrong(f"{text!r} is not {what}", f"as in {example}")
        return text

    return check


def _shown(pattern: str) -> Any:
    """The pattern for editors; the refusal in words is ours."""
    return Field(json_schema_extra={"pattern": f"^(?:{pattern})$"})


_VERSION = r"\d{1,3}(?:\.\d{1,3}){0,2}"
_USER = r"[^\s:/@!]+@[A-Za-z][A-Za-z0-9._-]+"
_TOKEN = _USER + r"![A-Za-z][A-Za-z0-9._-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PVE_ID = r"[A-Za-z][A-Za-z0-9._-]{0,62}"
_CHECKSUM = r"sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128})"

Secret = Annotated[
    str,
    AfterValidator(_reference),
    Field(json_schema_extra={"pattern": "^(env|file|keyring|k8s):\\S.*$", "examples": ["env:PVE_TOKEN_SECRET"]}),
]
Https = Annotated[str, AfterValidator(_https), Field(json_schema_extra={"pattern": "^(https://.+)?$"})]
Cidr = Annotated[str, AfterValidator(_cidr)]
Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[str, AfterValidator(_addresses)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
Version = Annotated[str, AfterValidator(_matching(_VERSION, "a version", '"8.4", in quotes')), _shown(_VERSION)]
PveUser = Annotated[
    str, AfterValidator(_matching(_USER, "a Proxmox VE user with its realm", "root@pam")), _shown(_USER)
]
TokenId = Annotated[str, AfterValidator(_matching(_TOKEN, "a token id", "runbook@pve!runbook")), _shown(_TOKEN)]
Label = Annotated[str, AfterValidator(_matching(_LABEL, "a DNS label", "runbook-test")), _shown(_LABEL)]
PveId = Annotated[str, AfterValidator(_matching(_PVE_ID, "a Proxmox VE name", "local-lvm")), _shown(_PVE_ID)]
Checksum = Annotated[
    str, AfterValidator(_matching(_CHECKSUM, "a checksum", "sha256:<64 hex digits>")), _shown(_CHECKSUM)
]
Day = Annotated[
    str,
    AfterValidator(_day),
    Field(json_schema_extra={"pattern": r"^\d{4}-\d{2}-\d{2}$", "examples": ["2027-03-31"]}),
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Vmid = Annotated[int, Field(ge=100, le=999_999_999)]


Network = IPv4Network | IPv6Network
Ip = IPv4Address | IPv6Address


def span(text: str) -> tuple[Ip, Ip]:
    """First and last address of `10.0.0.1`, `10.0.0.0/24` or `10.0.0.5-10.0.0.9`. Raises ValueError, in one line."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        if not dash:
            network = ip_network(text)
            return network[0], network[-1]
        start, end = ip_address(first), ip_address(last)
    except ValueError:
        raise ValueError(f"{text!r} is not a range of addresses") from None
    if start.version != end.version:
        raise ValueError(f"{text!r} mixes IPv4 and IPv6")
    if int(start) > int(end):
        raise ValueError(f"{text!r} ends before it begins")
    return start, end


def _meet(one: str, other: str) -> bool:
    (start, end), (begin, finish) = span(one), span(other)
    return start.version == begin.version and int(start) <= int(finish) and int(begin) <= int(end)


def _together(part: Part, *names: str) -> None:
    given = [name for name in names if getattr(part, name)]
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise _wrong(f"{given[0]} is given without {missing}")


Named = tuple[str, str]


def _pairs(items: list[Named]) -> Iterator[tuple[Named, Named]]:
    return ((one, other) for index, one in enumerate(items) for other in items[index + 1 :])


def _cross(ones: Iterable[Named], others: Iterable[Named]) -> Iterator[tuple[Named, Named]]:
    kept = list(others)
    return ((one, other) for one in ones for other in kept)


# --- the parts ---------------------------------------------------------------------------------------------------


def option(default: Any, description: str, **rules: Any) -> Any:
    """A field that may be left out."""
    return Field(default=default, description=description, **rules)


class Part(BaseModel):
    """Strict, closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class LabSettings(Part):
    """An emulated site: the lab is started on demand and fills the endpoints in."""

    scenario: str = option("healthy", "Starting state and faults: a name or a YAML file.", min_length=1)
    scale: float = option(60, "Lab seconds per real second for tasks and boots; 0 = frozen.", ge=0, le=100_000)
    dir: str | None = option(None, "Where the lab's state lies; default .lab in the project's root.")


class PasswordLogin(Part):
    """A user and password used only to prove that password login works (step 21)."""

    user: PveUser = Field(description="User with realm.")
    password: Secret = Field(description="Reference to the password.")


class ProxmoxEndpoint(Part):
    """How to reach Proxmox VE, whom to trust, and as whom: an API token (better) or user and password."""

    url: Https = option("", "https://host:8006 of any node, or of a balancer in front of them.")
    token_id: TokenId | None = option(None, "API token, user@realm!name.")
    token_secret: Secret | None = option(None, "Reference to the token's secret.")
    user: PveUser | None = option(None, "User with realm, for a login by password.")
    password: Secret | None = option(None, "Reference to the user's password.")
    password_login: PasswordLogin | None = option(None, "Who proves password login in step 21.")
    ca_file: str | None = option(None, "CA in PEM; PVE's own is /etc/pve/pve-root-ca.pem.")
    fingerprint: Fingerprint | None = option(
        None, "SHA-256 fingerprint of the certificate, instead of a CA (`pvenode cert info`)."
    )
    verify: bool = option(True, "false trusts anyone; it is recorded and turns the security finding to warn.")
    timeout_seconds: float = option(30, "Longest wait for one answer.", gt=0, le=3600)

    @model_validator(mode="after")
    def _fits_together(self) -> ProxmoxEndpoint:
        _together(self, "token_id", "token_secret")
        _together(self, "user", "password")
        if self.ca_file and self.fingerprint:
            raise _wrong("ca_file and fingerprint are given, one is expected", "a pinned fingerprint needs no CA")
        if not self.verify and (self.ca_file or self.fingerprint):
            raise _wrong("verify: false, and yet ca_file or fingerprint", "take verify away to use them")
        return self


class KubernetesEndpoint(Part):
    """How to reach the CozyStack cluster: a kubeconfig, or url, CA and token."""

    kubeconfig: str | None = option(None, "Path of a kubeconfig.")
    context: str | None = option(None, "Context within it; default its current one.")
    url: Https | None = option(None, "https://host:6443, where there is no kubeconfig.")
    ca_file: str | None = option(None, "CA of the API server in PEM, with url.")
    token: Secret | None = option(None, "Reference to a bearer token, with url.")
    verify: bool = option(True, "false accepts any certificate, also where the kubeconfig says so.")
    timeout_seconds: float = option(30, "Longest wait for one answer.", gt=0, le=3600)

    @model_validator(mode="after")
    def _fits_together(self) -> KubernetesEndpoint:
        if self.kubeconfig and self.url:
            raise _wrong("kubeconfig and url are given, one is expected", "a kubeconfig names its server itself")
        if self.url and not self.token:
            raise _wrong("url is given without token", "token: env:KUBE_TOKEN")
        if self.context and not self.kubeconfig:
            raise _wrong("context is given without kubeconfig")
        return self


class Requires(Part):
    """What a site must have at least."""

    proxmox_version: Version = option(SPRINT_PROXMOX, "Lowest Proxmox VE release.")
    kubernetes_version: Version = option(SPRINT_KUBERNETES, "Lowest Kubernetes release.")
    kubernetes_version_cozystack_15: Version = option(
        COZYSTACK_15_KUBERNETES, "Lowest Kubernetes release for CozyStack 1.5 and later."
    )
    cpus_free: Count = option(4, "CPUs that must be free on the Proxmox cluster.")
    memory_free_gib: float = option(16, "Memory that must be free on the Proxmox cluster, GiB.", ge=0)
    storage_free_gib: float = option(100, "Room that must be free on disk_storage, GiB.", ge=0)


class Thresholds(Part):
    """Where a finding turns to warn, and where to fail. Fractions are 0–1."""

    storage_warn: Fraction = option(0.80, "Used fraction of a storage that warns.")
    storage_fail: Fraction = option(0.90, "Used fraction of a storage that fails.")
    memory_warn: Fraction = option(0.85, "Used fraction of a node's memory that warns.")
    memory_fail: Fraction = option(0.95, "Used fraction of a node's memory that fails.")
    cpu_warn: Fraction = option(0.80, "CPU load of a node, as a fraction, that warns.")
    cpu_overcommit_warn: Positive = option(4.0, "Virtual CPUs per thread that warn.")
    cpu_overcommit_fail: Positive = option(8.0, "Virtual CPUs per thread that fail.")
    memory_overcommit_warn: Positive = option(1.0, "Memory promised to guests per memory present that warns.")
    certificate_warn_days: Count = option(30, "Days before a certificate's end that warn.")
    certificate_fail_days: Count = option(7, "Days before a certificate's end that fail.")
    clock_skew_warn_seconds: Positive = option(1, "Difference of clocks that warns.")
    clock_skew_fail_seconds: Positive = option(5, "Difference of clocks that fails.")
    restarts_warn: Count = option(5, "Restarts of a system pod that warn.")
    restarts_fail: Count = option(50, "Restarts of a system pod that fail.")
    api_p95_ms: Positive = option(2000, "Largest acceptable p95 of an API request (the sprint's figure).")
    requests_warn: Fraction = option(0.85, "Requested fraction of a node's capacity that warns.")
    requests_fail: Fraction = option(0.95, "Requested fraction of a node's capacity that fails.")
    volume_seconds: Positive = option(30, "Longest a volume may take to be there (the sprint's figure).")
    pod_seconds: Positive = option(120, "Longest a pod with a volume may take to run (the sprint's figure).")
    slower_warn: Positive = option(1.5, "How many times slower than in the run before that warns.")
    policy_seconds: Positive = option(10, "Longest acceptable time from a policy to its effect.")
    series_seconds: Positive = option(120, "Oldest acceptable sample of a series.")
    alert_seconds: Positive = option(300, "Longest acceptable time from a condition to the alert about it.")
    log_seconds: Positive = option(60, "Longest acceptable time from a line in a log to the central store.")
    token_days: Count = option(400, "Longest a token may be valid from now.")
    waiver_days: Count = option(366, "Longest a waiver may hold.")
    waiver_warn_days: Count = option(14, "Days before a waiver's end that warn.")

    @model_validator(mode="after")
    def _warn_before_fail(self) -> Thresholds:
        for warn in (name for name in type(self).model_fields if "_warn" in name):
            fail = warn.replace("_warn", "_fail")
            if not hasattr(self, fail):
                continue
            # of what runs out, the smaller figure is the worse
            worse_below = warn == "certificate_warn_days"
            low, high = (fail, warn) if worse_below else (warn, fail)
            if getattr(self, low) > getattr(self, high):
                order = "more" if worse_below else "less"
                raise _wrong(
                    f"{warn} is {getattr(self, warn):g}, expected no {'less' if worse_below else 'more'} than"
                    f" {fail} ({getattr(self, fail):g})",
                    f"a warning comes at {order} than a failure",
                )
        return self


class VmidRange(Part):
    """VM ids the runbook may take."""

    start: Vmid = option(9100, "First id.")
    end: Vmid = option(9199, "Last id.")

    @model_validator(mode="after")
    def _ordered(self) -> VmidRange:
        if self.start > self.end:
            raise _wrong(f"start {self.start} is larger than end {self.end}")
        return self


class CloudImage(Part):
    """Where a VM template comes from."""

    url: Https | None = option(None, "Address the Proxmox node downloads from.")
    file: str | None = option(None, "Image on this machine, to be uploaded.")
    checksum: Checksum | None = option(None, "sha256:… or sha512:… of the image.")

    @model_validator(mode="after")
    def _one_source(self) -> CloudImage:
        if bool(self.url) == bool(self.file):
            raise _wrong(
                "url and file are both given" if self.url else "neither url nor file is given",
                "one of them is expected",
            )
        if self.url and not self.checksum:
            raise _wrong("url is given without checksum", "the vendor's SHA256SUMS has it")
        return self


class Names(Part):
    """What the runbook calls its things, and which of the site's things it uses."""

    prefix: Label = option("runbook", "Begins the name of everything the runbook makes.")
    namespace: Label = option("runbook-test", "Kubernetes namespace for proofs.")
    pool: PveId = option("runbook", "Proxmox resource pool.")
    roles_prefix: PveId = option("Runbook", "Begins the names of the Proxmox roles.")
    user: PveUser = option("runbook@pve", "Proxmox user that owns the runbook's tokens.")
    iso_storage: PveId | None = option(None, "Storage for ISO images; default the first that takes them.")
    disk_storage: PveId | None = option(None, "Storage for disks; default the largest that takes them.")
    bridge: PveId = option("vmbr0", "Bridge of the test machines.")
    nodes: tuple[PveId, ...] | None = option(None, "Proxmox nodes that may be used; default all.")
    template_vmid: Vmid | None = option(9000, "VM id of the template; null lets the runbook look for one.")
    vmid_range: VmidRange = option(VmidRange(), "VM ids for machines that come and go.")
    cloud_image: CloudImage | None = option(None, "Image to make the template of, where there is none.")

    @model_validator(mode="after")
    def _template_outside(self) -> Names:
        if self.template_vmid is not None and self.vmid_range.start <= self.template_vmid <= self.vmid_range.end:
            raise _wrong("template_vmid lies in vmid_range", "the range is for machines that come and go")
        return self


class Networks(Part):
    """Ranges of addresses; no two of different use may meet."""

    machine_pool: tuple[Addresses, ...] = option(
        (), "Addresses for worker machines, in the Proxmox LAN and outside of DHCP."
    )
    proxmox_lan: tuple[Cidr, ...] | None = option(None, "The Proxmox LAN; default what the bridges tell.")
    pods: Cidr | None = option(None, "Pod network; default what the cluster tells.")
    services: Cidr | None = option(None, "Service network; default what the cluster tells.")
    join: Cidr | None = option(None, "Kube-OVN's join network; default what the cluster tells.")
    api_vip: Address | None = option(None, "Address of the tenant's API server.")

    @model_validator(mode="after")
    def _apart(self) -> Networks:
        pool = [(f"machine_pool[{index}]", entry) for index, entry in enumerate(self.machine_pool)]
        lan = [(f"proxmox_lan[{index}]", entry) for index, entry in enumerate(self.proxmox_lan or ())]
        inner = [(name, entry) for name in ("pods", "services", "join") if (entry := getattr(self, name))]
        vip = [("api_vip", self.api_vip)] if self.api_vip else []
        for one, other in (*_pairs(pool), *_pairs(lan), *_pairs(inner), *_cross(pool, inner), *_cross(lan, inner),
                           *_cross(vip, [*pool, *inner])):  # fmt: skip
            if _meet(one[1], other[1]):
                raise _wrong(f"{one[0]} ({one[1]}) overlaps {other[0]} ({other[1]})", "give each a range of its own")
        return self


class Images(Part):
    """Images of test pods."""

    probe: str = option(
        "registry.k8s.io/e2e-test-images/agnhost:2.53", "Image of the pods that probe networks.", min_length=1
    )
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = option("IfNotPresent", "As in a pod.")
    fio: str | None = option(None, "Image with fio on its path, for step 32; without one no throughput is measured.")
    iperf3: str | None = option(
        None, "Image with iperf3 on its path, for step 43; without one the pod network's speed is not measured."
    )
    blackbox: str = option(
        "quay.io/prometheus/blackbox-exporter:v0.27.0", "Image of the blackbox exporter beside it.", min_length=1
    )
    exporter: str = option(
        "docker.io/prompve/prometheus-pve-exporter:3.10.2",
        "Image of prometheus-pve-exporter, for step 42.",
        min_length=1,
    )


class Chart(Part):
    """Where a chart comes from."""

    repo: Https | None = option(None, "Address of a chart repository.")
    oci: str | None = option(None, "oci://registry/path.", pattern=r"^oci://\S+$")
    version: str = Field(min_length=1, description="Version, exactly.")

    @model_validator(mode="after")
    def _one_source(self) -> Chart:
        if bool(self.repo) == bool(self.oci):
            raise _wrong("one of repo and oci is expected")
        return self


class ClassWish(Part):
    """A StorageClass of the Proxmox CSI driver. What is left out stays with the driver's default."""

    storage: PveId = Field(description="Proxmox storage that its disks lie on.")
    name: Label | None = option(None, "Name of the class; default proxmox-<storage>.")
    fstype: Literal["ext4", "xfs"] = option("ext4", "File system.")
    format: Literal["raw", "qcow2"] | None = option(None, "Disk format, where disks are files.")
    cache: Literal["none", "writethrough", "writeback", "directsync", "unsafe"] | None = option(None, "Cache mode.")
    aio: Literal["native", "threads", "io_uring"] | None = option(None, "How the host does its I/O.")
    ssd: bool = option(False, "Tell the machine it is an SSD, and discard what is freed.")
    iothread: bool = option(True, "A thread of its own for each disk.")
    backup: bool = option(False, "Backups of the machine take the volume along.")
    iops: Annotated[int, Field(ge=1)] | None = option(None, "Most operations a second.")
    mbps: Annotated[int, Field(ge=1)] | None = option(None, "Most megabytes a second.")
    block_size: Literal[1024, 2048, 4096, 65536] | None = option(None, "Block size of mkfs.")
    inode_size: Literal[128, 256, 512, 1024, 2048] | None = option(None, "Inode size of mkfs.")
    replicate: bool = option(False, "Replicate between nodes; ZFS only.")
    replicate_schedule: str | None = option(None, "When to replicate, as in */15.", min_length=1)
    replicate_zones: tuple[PveId, ...] = option((), "The two nodes to replicate between.")
    reclaim: Literal["Delete", "Retain"] = option("Delete", "What becomes of the disk when its claim goes.")

    @model_validator(mode="after")
    def _fits_together(self) -> ClassWish:
        for name in ("replicate_schedule", "replicate_zones"):
            if getattr(self, name) and not self.replicate:
                raise _wrong(f"{name} is given without replicate: true")
        return self

    @property
    def class_name(self) -> str:
        """The name of the class, as Kubernetes allows it."""
        return self.name or "proxmox-" + re.sub(r"[^a-z0-9-]+", "-", self.storage.lower()).strip("-")


class Csi(Part):
    """The Proxmox CSI driver and the cloud controller beside it (step 32)."""

    namespace: Label = option("csi-proxmox", "Namespace of both.")
    region: Label | None = option(None, "Region label of the nodes; default the name of the Proxmox cluster.")
    provider: Literal["auto", "default", "capmox"] = option(
        "auto", "How a node is told its VM: capmox beside machines that CAPMOX made; auto looks at the nodes."
    )
    classes: tuple[ClassWish, ...] | None = option(
        None, "StorageClasses; default one for each storage that holds images."
    )
    root_password: Secret | None = option(
        None, "Reference to root@pam's password, which snapshots and clones need; without it the driver has a token."
    )
    size_gib: Annotated[int, Field(ge=1, le=64)] = option(1, "Size of a test volume, GiB.")
    parallel: Annotated[int, Field(ge=1, le=20)] = option(4, "Volumes that are asked for at once.")
    wait_seconds: float = option(300, "Longest wait for one state of a test volume.", gt=0, le=3600)
    power_off: str | None = option(
        None, "Kubernetes node whose VM may be switched off with a volume attached; none unless named.", min_length=1
    )

    @model_validator(mode="after")
    def _once_each(self) -> Csi:
        names = [wish.class_name for wish in self.classes or ()]
        for name in names:
            if names.count(name) > 1:
                raise _wrong(f"two classes are called {name}", "give each a name of its own")
        return self


class Budget(Part):
    """The most a run may take at once; a larger plan is refused before anything is sent."""

    vms: Count = option(2, "Virtual machines.")
    gib: float = option(64, "Disk, GiB.", ge=0)
    minutes: float = option(30, "Time of one plan.", ge=0)


class ProviderSource(Part):
    """A Cluster API provider: which release, and where its components come from unless from its project."""

    version: str | None = option(None, "Release; default the newest known that fits.", pattern=r"^v\d+\.\d+\.\d+\S*$")
    url: Https | None = option(None, "Address of the release's components.yaml.")
    oci: str | None = option(None, "OCI artifact with the components.", min_length=1)
    selector: dict[str, str] = option({}, "Labels of a ConfigMap that holds them, as on a site without internet.")
    folder: str | None = option(
        None, "Folder with components.yaml and metadata.yaml, from which that ConfigMap is made.", min_length=1
    )

    @model_validator(mode="after")
    def _one_place(self) -> ProviderSource:
        if sum(map(bool, (self.url, self.oci, self.selector))) > 1:
            raise _wrong("at most one of url, oci and selector is expected")
        if self.folder and not (self.selector and self.version):
            raise _wrong("folder is given without selector and version", "the ConfigMap is named after the version")
        return self


class Capi(Part):
    """The Cluster API provider for Proxmox VE and the IPAM provider beside it (step 23)."""

    provider: ProviderSource = option(ProviderSource(), "CAPMOX.")
    ipam: ProviderSource = option(ProviderSource(), "The in-cluster IPAM provider.")
    namespace: Label = option("capmox-system", "Namespace of CAPMOX.")
    ipam_namespace: Label = option("capi-ipam-in-cluster-system", "Namespace of the IPAM provider.")
    wait_seconds: float = option(300, "Longest wait for one provider.", gt=0, le=3600)


class Machines(Part):
    """The cluster of machines that step 24 makes, changes and takes away again."""

    count: int = option(3, "Machines at most: the step scales from one to so many and back.", ge=1, le=50)
    cores: int = option(2, "Cores of a machine.", ge=1, le=512)
    memory_mib: int = option(4096, "Memory of a machine, MiB; a multiple of 8.", ge=1024, multiple_of=8)
    disk_gib: int = option(20, "Boot disk of a machine, GiB; not smaller than the template's.", ge=5)
    template_tags: tuple[str, ...] = option((), "Tags of the template, instead of names.template_vmid.")
    full_clone: bool = option(True, "false clones linked, where the storage can.")
    bootstrap: Literal["kubeadm", "talos"] = option("kubeadm", "What the machines join with.")
    control_plane: Literal["kamaji", "kubeadm"] = option(
        "kamaji", "Where the control plane runs: in pods, on machines."
    )
    kubernetes_version: str | None = option(
        None, "Version of the new cluster; default the management cluster's.", pattern=r"^v\d+\.\d+\.\d+$"
    )
    namespace: Label | None = option(None, "Namespace that is there already; default one of the run's own.")
    credentials: Label | None = option(None, "Secret for CAPMOX in that namespace; default the manager's own.")
    network: Literal["cozystack", "none"] = option(
        "cozystack", "What makes Nodes Ready: the network chart CozyStack has for tenant clusters, or nothing."
    )
    datastore: str | None = option(None, "Kamaji's DataStore; default the first there is.", min_length=1)
    prefix: int | None = option(None, "Prefix length of the machines' network; default the bridge's.", ge=1, le=128)
    gateway: Address | None = option(None, "Gateway of the machines; default the bridge's.")
    dns_servers: tuple[Address, ...] = option((), "Name servers of the machines; default the gateway.")
    pods: Cidr = option("10.243.0.0/16", "Pod network of the new cluster.")
    services: Cidr = option("10.95.0.0/16", "Service network of the new cluster.")
    memory_adjustment: int | None = option(
        None, "Percent of a node's memory that CAPMOX' scheduler promises; 0 looks at no memory.", ge=0, le=10_000
    )
    skip_agent: bool = option(False, "true where the template has no guest agent.")
    unhealthy_seconds: int = option(120, "How long a Node may be silent before it is replaced.", ge=10)
    wait_minutes: float = option(20, "Longest wait for one stage of the life cycle.", gt=0, le=240)
    vm_seconds: Positive = option(300, "Longest acceptable time from the order to a running VM.")
    clone_samples: int = option(3, "Clones of each kind that are timed; 0 leaves them out.", ge=0, le=20)

    @model_validator(mode="after")
    def _fits_together(self) -> Machines:
        if self.credentials and not self.namespace:
            raise _wrong("credentials is given without namespace", "CAPMOX' Secret lies beside the ProxmoxCluster")
        return self


class Benchmarks(Part):
    """How much is measured."""

    requests: int = option(100, "Requests per endpoint class.", ge=1, le=100_000)
    concurrency: tuple[Annotated[int, Field(ge=1, le=64)], ...] = option(
        (1, 4, 16), "Numbers of requests at a time.", min_length=1
    )
    pods: int = option(5, "Pods that are started one after the other; twice as many at once.", ge=1, le=50)
    vm_starts: int = option(3, "Starts of an empty VM; 0 leaves them out.", ge=0, le=20)
    network_samples: int = option(3, "Readings of the network's speed for each pair of nodes.", ge=1, le=20)
    network_seconds: int = option(2, "How long each of them takes, after a second of warm-up.", ge=1, le=60)
    baseline: str | None = option(
        None, "File with the measurements to compare with; default the last run. Step 43 writes one.", min_length=1
    )


class Monitoring(Part):
    """How Proxmox VE is monitored (step 42)."""

    namespace: Label = option("proxmox-monitoring", "Namespace of the exporter, its rules and dashboards.")
    interval_seconds: int = option(30, "How often Proxmox VE is asked.", ge=10, le=600)
    targets: tuple[str, ...] = option(
        (), "Addresses of the Proxmox nodes, host or host:port; default those of the cluster's members."
    )
    wait_seconds: float = option(300, "Longest wait for one state.", gt=0, le=3600)


class Experiments(Part):
    """What may be broken on purpose in step 43, to see that it heals. Nothing, unless it is named."""

    allow: tuple[
        Literal[
            "controller-restarted",
            "token-expired",
            "api-unreachable",
            "storage-full",
            "node-drained",
            "worker-killed",
            "proxmox-node-lost",
        ],
        ...,
    ] = option((), "Experiments that this site consents to; each is shown with what it can hit before it is made.")
    window_seconds: float = option(600, "Longest acceptable recovery (the sprint's figure).", gt=0, le=7200)
    outage_seconds: float = option(60, "How long an API is kept out of reach.", gt=0, le=600)
    worker: str | None = option(
        None, "Worker that may be switched off and drained; default one on which the workload runs.", min_length=1
    )
    proxmox_node: PveId | None = option(
        None, "Proxmox node that may be restarted; default one whose loss leaves quorum and control plane."
    )

    @model_validator(mode="after")
    def _once_each(self) -> Experiments:
        for name in self.allow:
            if self.allow.count(name) > 1:
                raise _wrong(f"allow names {name} twice")
        return self


class Waiver(Part):
    """A finding of the security audit that somebody answers for, until a day."""

    check: str = Field(
        pattern=r"^[a-z_*]+\.[a-z_*]+$", description="Id of the check, as in audit.firewall_is_on; * stands for any."
    )
    subject: str = option("*", "Subject of the finding; * stands for any.", min_length=1)
    owner: str = Field(min_length=2, description="Who answers for it: a person or a team that can be asked.")
    reason: str = Field(min_length=10, description="Why it is accepted, and what stands in for it.")
    expires: Day = Field(description="Last day on which it holds. An ended waiver fails.")


class Site(Part):
    """One Proxmox VE cluster and one CozyStack cluster."""

    name: Label = Field(description="The file's name without .yaml; may be left out.")
    title: str = option("", "What people call the site.")
    emulated: bool = option(False, "A rehearsal: marked as one on every page.")
    lab: LabSettings | None = option(None, "Set for an emulated site; the endpoints are then left out.")
    proxmox: ProxmoxEndpoint = option(ProxmoxEndpoint(), "How to reach Proxmox VE.")
    kubernetes: KubernetesEndpoint = option(KubernetesEndpoint(), "How to reach the CozyStack cluster.")
    requires: Requires = option(Requires(), "What the site must have at least.")
    thresholds: Thresholds = option(Thresholds(), "Where findings turn to warn and to fail.")
    names: Names = option(Names(), "Names the runbook uses and gives.")
    networks: Networks = option(Networks(), "Ranges of addresses.")
    machines: Machines = option(Machines(), "The cluster that step 24 makes and takes away again.")
    images: Images = option(Images(), "Which images test pods use.")
    charts: Mapping[Label, Chart] = option({}, "Chart sources by component, where not the usual ones.")
    changes: Literal["forbid", "ask", "allow"] = option(
        "forbid", "Whether the runbook may change anything: never, after `runbook approve`, or by itself."
    )
    budget: Budget = option(Budget(), "The most a run may take.")
    capi: Capi = option(Capi(), "The Cluster API provider for Proxmox VE.")
    csi: Csi = option(Csi(), "The storage driver and what is tried with it.")
    benchmarks: Benchmarks = option(Benchmarks(), "How much the benchmarks measure.")
    monitoring: Monitoring = option(Monitoring(), "How Proxmox VE is monitored.")
    experiments: Experiments = option(Experiments(), "What may be broken on purpose, to see that it heals.")
    waivers: tuple[Waiver, ...] = option((), "Findings of the security audit that somebody answers for (step 44).")

    @model_validator(mode="after")
    def _reachable(self) -> Site:
        if self.lab is not None:
            if not self.emulated:
                raise _wrong("lab is set, so emulated: true is expected", "a rehearsal must show as one")
            return self
        if not self.proxmox.url:
            raise _wrong("proxmox.url is missing", "https://host:8006, or lab: {} for an emulated site")
        if not self.proxmox.token_id and not self.proxmox.user:
            raise _wrong("proxmox.token_id is missing", "token_id and token_secret, or user and password")
        if not self.kubernetes.kubeconfig and not self.kubernetes.url:
            raise _wrong("kubernetes.kubeconfig is missing", "a path, or url, ca_file and token")
        return self


def summary(site: Site) -> dict[str, str]:
    """What a reader wants to know of a site before anything runs; secrets only by name."""
    pve, kube = site.proxmox, site.kubernetes
    trust = "fingerprint" if pve.fingerprint else "CA file" if pve.ca_file else "the system's authorities"
    return {
        "site": f"{site.name}: {site.title}" if site.title else site.name,
        "kind": f"rehearsal in the lab, scenario {site.lab.scenario}" if site.lab else "real site",
        "Proxmox VE": f"{pve.url or 'set when the lab is up'} as {pve.token_id or pve.user or 'whom the lab names'}",
        "TLS": f"verified by {trust}" if pve.verify else "NOT verified, by this site's parameters",
        "Kubernetes": _kubernetes_named(kube),
        "changes": site.changes,
        "budget of one run": f"{site.budget.vms} VMs, {site.budget.gib:g} GiB, {site.budget.minutes:g} minutes",
        "floors": f"Proxmox VE {site.requires.proxmox_version}, Kubernetes {site.requires.kubernetes_version}",
    }


def _kubernetes_named(kube: KubernetesEndpoint) -> str:
    if not kube.kubeconfig:
        return kube.url or "set when the lab is up"
    # the file's name alone: results are handed on, and name no machine's folders
    context = f", context {kube.context}" if kube.context else ""
    return f"as in {kube.kubeconfig.rpartition('/')[2]}{context}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most likely a slip of; None when none is near."""
    folded = {re.sub(r"[-_ ]", "", entry).lower(): entry for entry in known}
    found = difflib.get_close_matches(re.sub(r"[-_ ]", "", word).lower(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None
