"""The compatibility matrix as data, and what of it can work on a site. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from runbook_lib.facts import CapiProvider, Cozystack, Crd, KubeVersion, PveVersion, Workload

PVE_END_OF_LIFE = {
    # Proxmox VE FAQ, "How long will my Proxmox VE version be supported?"
    6: date(2022, 9, 30),
    7: date(2024, 7, 31),
    8: date(2026, 8, 31),
}
"""Last day of support by major version; a major that is absent is still supported."""


@dataclass(frozen=True)
class CapmoxLine:
    """One release line of cluster-api-provider-proxmox."""

    version: str
    contract: str
    api_versions: tuple[str, ...]
    capi: tuple[str, str]  # lowest and highest Cluster API minor it was built for
    ipam: str  # the in-cluster IPAM provider line that fits
    release: str  # the newest release of the line that the runbook knows
    ipam_release: str


# Its metadata.yaml, README compatibility table and go.mod at each tag.
CAPMOX = (
    CapmoxLine("0.6", "v1beta1", ("v1alpha1",), ("1.7", "1.8"), "1.0", "v0.6.2", "v1.0.3"),
    CapmoxLine("0.7", "v1beta1", ("v1alpha1",), ("1.8", "1.10"), "1.0", "v0.7.7", "v1.0.3"),
    CapmoxLine("0.8", "v1beta2", ("v1alpha1", "v1alpha2"), ("1.11", "1.11"), "1.1", "v0.8.2", "v1.1.0"),
    CapmoxLine("0.9", "v1beta2", ("v1alpha1", "v1alpha2"), ("1.11", "1.12"), "1.1", "v0.9.0", "v1.1.0"),
)

CSI_MINIMUM_PVE = (7, 0)
CSI_MINIMUM_KUBERNETES = (1, 26)
OPERATOR_CONTRACTS = (
    # cluster-api-operator: contracts its preflight accepts, by the lowest operator minor
    ((0, 28), ("v1beta1", "v1beta2")),
    ((0, 0), ("v1alpha4", "v1beta1")),
)


@dataclass(frozen=True)
class Verdict:
    """Whether one component can work here. `works` None: what decides it could not be read."""

    component: str
    works: bool | None
    why: str
    choice: str = ""  # the version to install


@dataclass(frozen=True)
class Way:
    """From what is installed to what fits the cluster: CAPMOX one line at a time, its IPAM provider beside it."""

    why: str
    contract: str = ""
    target: str = ""  # the CAPMOX release at the end of the way; empty where there is none
    steps: tuple[str, ...] = ()  # releases still to install, in order; empty when the target is there
    ipam: str = ""  # the IPAM provider's release for the first of them
    problem: str = ""  # what makes it impossible


def way(verdict: Verdict, *, installed: str = "", wish: str = "", ipam_wish: str = "") -> Way:
    """The way to the CAPMOX line that `assess` chose, or to the release the site asks for if that is of this line.

    0.7 → 0.8 → 0.9, never past a line: each converts only what the one before stored. Never back either.
    """
    line = next((row for row in CAPMOX if verdict.choice.startswith(f"v{row.version}.")), None)
    if line is None:
        return Way(verdict.why, problem=verdict.why)
    if wish and _minor(wish) != line.version:
        return Way(verdict.why, line.contract, problem=f"capi.provider.version asks for {wish}: {verdict.why}")
    target = wish or line.release
    have = numbers(installed)
    if have and have > numbers(target):
        told = f"{installed} is installed and is newer than {target}; CAPMOX does not go back"
        return Way(verdict.why, line.contract, target, problem=told)
    between = [row for row in CAPMOX if have and have[:2] < numbers(row.version) < numbers(line.version)]
    steps = [row.release for row in between] + ([target] if have != numbers(target) else [])
    first = next((row for row in CAPMOX if steps and _minor(steps[0]) == row.version), line)
    return Way(verdict.why, line.contract, target, tuple(steps), ipam_wish or first.ipam_release)


def numbers(text: str) -> tuple[int, ...]:
    """The leading dotted number of a version text, as a tuple that compares: "v1.10.1-core" → (1, 10, 1).

    An empty tuple when the text has none.
    """
    found = re.search(r"\d+(?:\.\d+)*", text or "")
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def at_least(version: str, floor: str) -> bool | None:
    """Whether a version text reaches the floor, compared to the floor's precision; None of no version."""
    have, want = numbers(version), numbers(floor)
    if not have or not want:
        return None
    width = max(len(have), len(want))
    return _pad(have, width) >= _pad(want, width)


def kubernetes_floor(release: str | None, *, floor: str = "1.26", floor_cozystack_15: str = "1.33") -> str:
    """The lowest Kubernetes that counts here: CozyStack ≥ 1.5 raises the sprint's floor."""
    recent = bool(release) and numbers(release or "") >= (1, 5)
    return max(floor, floor_cozystack_15, key=numbers) if recent else floor


def operator_version(workloads: Iterable[Workload]) -> str:
    """The Cluster API operator's version by its image tag; empty where there is none or it is not a version."""
    for workload in workloads:
        if workload.kind == "Deployment" and "cluster-api-operator" in workload.name:
            for image in workload.images:
                tag = image.partition("@")[0].rpartition(":")[2]
                if numbers(tag):
                    return tag
    return ""


def contracts_served(crds: Iterable[Crd]) -> list[str]:
    """The `cluster.x-k8s.io` versions the core serves: what a provider can be written for."""
    for crd in crds:
        if crd.name == "machines.cluster.x-k8s.io":
            return sorted(crd.served)
    return []


def assess(
    *,
    pve: PveVersion | None,
    kubernetes: KubeVersion | None,
    cozystack: Cozystack | None,
    crds: Sequence[Crd],
    providers: Sequence[CapiProvider],
    operator_version: str = "",
) -> list[Verdict]:
    """What can work here and why: CAPMOX, its IPAM provider, the CSI driver, the cloud controller."""
    served = contracts_served(crds)
    core = next((entry for entry in providers if entry.kind == "CoreProvider"), None)
    capi = _minor(core.installed_version or core.version) if core else ""
    line, why = _capmox(served, capi, operator_version)
    verdicts = [
        Verdict("CAPMOX", line is not None if served else None, why, f"v{line.version}.x" if line else ""),
        _ipam(line, crds, bool(served)),
        _csi(pve, kubernetes),
    ]
    if pve:
        major = numbers(pve.release)[0]
        privilege = "VM.GuestAgent.Audit" if major >= 9 else "VM.Monitor"
        verdicts.append(
            Verdict("CCM", True, f"Proxmox VE {pve.release} grants guest agent reads by {privilege}", "v0.13.x")
        )
    if cozystack and cozystack.generation == "half migrated":
        verdicts.append(
            Verdict(
                "CozyStack", False, "both the v0 bundle and the v1 Packages are present; finish the migration first"
            )
        )
    return verdicts


def _capmox(served: list[str], capi: str, operator_version: str) -> tuple[CapmoxLine | None, str]:
    if not served:
        return None, "Cluster API serves no machines.cluster.x-k8s.io, so no contract can be read"
    accepted = _operator_accepts(operator_version)
    fits = [line for line in CAPMOX if line.contract in served and (not accepted or line.contract in accepted)]
    if capi:
        inside = [line for line in fits if numbers(line.capi[0]) <= numbers(capi) <= numbers(line.capi[1])]
        fits = inside or []
    if not fits:
        return None, (
            f"the cluster serves cluster.x-k8s.io {', '.join(served)} with Cluster API {capi or 'of unknown version'}; "
            "no CAPMOX release line was built for that"
        )
    line = fits[-1]
    refused = [other for other in CAPMOX if numbers(other.version) > numbers(line.version)]
    because = f"cluster.x-k8s.io {', '.join(served)} is served, Cluster API {capi or 'unknown'}"
    if refused:
        newer = ", ".join(other.version for other in refused)
        because += f"; {newer} declare contract {refused[0].contract} and need Cluster API ≥ {refused[0].capi[0]}"
    return line, because


def _operator_accepts(version: str) -> tuple[str, ...]:
    have = numbers(version)
    if not have:
        return ()
    return next(contracts for lowest, contracts in OPERATOR_CONTRACTS if have >= lowest)


def _ipam(line: CapmoxLine | None, crds: Sequence[Crd], readable: bool) -> Verdict:
    names = {crd.name for crd in crds}
    if line is None:
        return Verdict("IPAM in-cluster", None if not readable else False, "follows CAPMOX, which has no line here")
    if "inclusterippools.ipam.cluster.x-k8s.io" in names:
        return Verdict("IPAM in-cluster", True, "InClusterIPPool is served already", f"v{line.ipam}.x")
    return Verdict(
        "IPAM in-cluster",
        True,
        "not installed; CozyStack ships none, and without it a machine waits for its address for ever",
        f"v{line.ipam}.x",
    )


def _csi(pve: PveVersion | None, kubernetes: KubeVersion | None) -> Verdict:
    if pve is None or kubernetes is None:
        return Verdict("Proxmox CSI", None, "one of the two versions could not be read")
    works = numbers(pve.release) >= CSI_MINIMUM_PVE and kubernetes.minor >= CSI_MINIMUM_KUBERNETES
    return Verdict(
        "Proxmox CSI",
        works,
        f"Proxmox VE {pve.release} and Kubernetes {kubernetes.version}; "
        "ReadWriteOnce only, and workers must be VMs of this Proxmox cluster",
        "v0.19.x" if works else "",
    )


def _minor(version: str) -> str:
    return ".".join(str(part) for part in numbers(version)[:2])


def _pad(version: tuple[int, ...], width: int) -> tuple[int, ...]:
    return version + (0,) * (width - len(version))
