"""Judgement of the Cluster API provider for Proxmox VE: whether it can be here, whether it is, and whom it talks as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from runbook_lib.checks import check, verdict
from runbook_lib.facts import CapiProvider, Crd, ManagerIdentity, Webhook, Workload
from runbook_lib.model import Finding, Status
from runbook_lib.versions import Way

OPERATOR = "cluster-api-operator: preflight checks and phases of a provider (internal/controller)"
CAPMOX = "Cluster API provider Proxmox (CAPMOX)"

CAUSES: Mapping[str, str] = {
    "FetchConfigValidationError": "give at most one of capi.provider.url, oci and selector",
    "IncorrectVersionFormat": "capi.provider.version wants the form v0.7.7",
    "MoreThanOneExists": "another object of this name is there; delete the one nobody uses",
    "MoreThanOneProviderInstanceExists": "another object of this name is there; delete the one nobody uses",
    "WaitingForCoreProviderReady": "the CoreProvider comes first: see step 12, and its own conditions",
    "UnsupportedProviderDowngrade": "CAPMOX does not go back; ask for the installed release or a newer one",
    "UnsupportedProviderDowngradeReason": "CAPMOX does not go back; ask for the installed release or a newer one",
    "UnknownProvider": "the operator knows no provider of this name by itself; give capi.provider.url, oci or selector",
    "InvalidGithubTokenError": "GitHub refuses GITHUB_TOKEN of the Secret capmox-variables; renew it or take it out",
    "CAPIVersionIncompatibility": "the operator does not accept this contract; take the line that step 12 names",
    "ComponentsFetchError": "look at the address and the way out of the cluster; without internet, give a folder",
    "failed to load the repository": "no ConfigMap bears the labels of capi.provider.selector, or it is not complete",
    "ComponentsCustomizationError": "the components do not fit the customisation; compare spec.deployment",
    "ComponentsPatchError": "the patches of the provider object do not fit its components; compare both",
    "ComponentsImageOverrideError": "the operator's list of images does not fit; see its ConfigMap clusterctl-config",
    "ComponentsUpgradeError": "read the message; the release before goes on running",
    "OldComponentsDeletionError": "the release before could not be taken away; see what holds it, by the message",
    "NoDeploymentAvailableConditionReason": "the manager does not start: see its pods and their events",
    "MinimumReplicasUnavailable": "the manager does not run: see its pod's last words below, and its events",
}
"""What the reasons of a provider's conditions ask for, in one line each."""


@check(
    title="A release of CAPMOX fits this cluster",
    remedy="CAPMOX 0.7 wants Cluster API 1.8–1.10 (v1beta1), 0.8 and 0.9 want 1.11 or 1.12 (v1beta2). Never mix.",
    source=f"{CAPMOX}: metadata.yaml and the compatibility table of each release",
)
def a_release_fits(way: Way) -> Iterator[Finding]:
    """One finding: the release and why, or why there is none; a way of several releases is told."""
    if way.problem:
        yield verdict(False, "CAPMOX", way.problem)
        return
    road = f"; on the way: {' → '.join(way.steps)}, one each run" if len(way.steps) > 1 else ""
    yield verdict(True, "CAPMOX", f"{way.target} ({way.contract}): {way.why}{road}")


@check(
    title="cert-manager runs",
    remedy="See the HelmRelease cert-manager; without it no webhook gets a certificate, and every write is refused.",
    source="Certificates and Issuers in the components of CAPMOX and of the IPAM provider",
)
def cert_manager_runs(workloads: Iterable[Workload], crds: Iterable[Crd]) -> Iterator[Finding]:
    """One finding for its kinds, one per Deployment of it; no Deployment is a fail."""
    served = any(row.name == "certificates.cert-manager.io" and row.established for row in crds)
    yield verdict(served, "kinds", f"Certificate is {'served' if served else 'not served'}")
    rows = [row for row in workloads if row.kind == "Deployment" and any("cert-manager-" in i for i in row.images)]
    if not rows:
        yield verdict(False, "Deployment", "no Deployment of cert-manager was found")
    for row in rows:
        name = f"{row.namespace}/{row.name}"
        yield verdict(0 < row.desired <= row.ready, name, f"{name}: {row.ready} of {row.desired} ready")


@check(
    title="Nothing is in the way of the providers",
    remedy="See the reason; nothing was sent.",
    source="Sprint 2.2",
)
def may_be_installed(problems: Sequence[str], planned: int) -> Iterator[Finding]:
    """One finding per reason against it, or one for what is planned."""
    for problem in problems:
        yield verdict(False, problem.partition(":")[0], problem)
    if not problems:
        told = f"{planned} changes are planned" if planned else "both providers are there as wanted"
        yield verdict(True, "plan", told)


@check(
    title="CAPMOX and its IPAM provider are installed",
    remedy="The reason names the step that failed, and the finding the first thing to look at.",
    source=OPERATOR,
)
def both_are_installed(
    found: Mapping[str, CapiProvider], *, refused: str = "", chart: bool = False
) -> Iterator[Finding]:
    """One finding per provider, with the cause of what is not; a skip where nothing was allowed to be sent."""
    for name, kind in (("in-cluster", "IPAMProvider"), ("proxmox", "InfrastructureProvider")):
        row = found.get(name)
        if row is None:
            state = None if refused or chart else False
            why = refused or ("the chart brings it" if chart else "it was not asked for")
            yield verdict(state, name, f"{kind} {name} is not there: {why}")
        elif row.ready == "True" and row.installed_version == row.version:
            yield verdict(True, name, f"{kind} {name} {row.installed_version}, contract {row.contract or 'not told'}")
        else:
            hint = CAUSES.get(row.reason, "")
            told = f"{row.reason or 'no reason'}: {row.message or 'no message'}"
            yield verdict(False, name, f"{kind} {name} {row.version}: {told}{f' → {hint}' if hint else ''}")


@check(
    title="The kinds of both providers are served under the right contract",
    remedy="Install the release of this contract; a definition without the label is one that Cluster API cannot use.",
    source="Cluster API: contract labels of CustomResourceDefinitions",
)
def kinds_bear_the_contract(crds: Iterable[Crd], *, contract: str, refused: str = "") -> Iterator[Finding]:
    """One finding per kind: what is served, and what of it the contract names."""
    wanted = {"proxmoxclusters.infrastructure.cluster.x-k8s.io", "proxmoxmachines.infrastructure.cluster.x-k8s.io",
              "proxmoxmachinetemplates.infrastructure.cluster.x-k8s.io", "inclusterippools.ipam.cluster.x-k8s.io",
              "globalinclusterippools.ipam.cluster.x-k8s.io"}  # fmt: skip
    rows = {row.name: row for row in crds}
    for name in sorted(wanted):
        row = rows.get(name)
        if row is None:
            yield verdict(None if refused else False, name, f"{name}: not served{f': {refused}' if refused else ''}")
            continue
        named = row.contracts.get(contract, ())
        good = row.established and bool(row.served)
        needs_label = name.partition(".")[2].startswith("infrastructure")
        fits = not needs_label or bool(set(named) & set(row.served))
        label = f"contract {contract} → {', '.join(named) or 'no version'}" if needs_label else "no contract needed"
        yield verdict(good and fits, name, f"{name}: serves {', '.join(row.served) or 'nothing'}; {label}")


@check(
    title="The providers' webhooks answer under a valid CA",
    remedy="See the Deployment behind the Service, and the Certificate beside it; cert-manager's CA injector fills it.",
    source="Webhook configurations of both providers; EndpointSlices of their Services",
)
def webhooks_answer(webhooks: Sequence[Webhook], *, refused: str = "") -> Iterator[Finding]:
    """One finding per webhook; none at all is a fail, for both providers bring some."""
    if not webhooks:
        yield verdict(None if refused else False, "webhooks", refused or "no webhook of either provider was found")
    for row in webhooks:
        name = f"{row.configuration}/{row.name}"
        ready = row.ready_endpoints is None or row.ready_endpoints > 0
        told = row.ca_error or ("the CA is valid" if ready else f"no endpoint behind {row.service}")
        yield verdict(ready and not row.ca_error, name, f"{name} ({row.kind}): {told}")


@check(
    title="CAPMOX runs, and talks to this Proxmox VE as its own token",
    remedy="Write the Secret capmox-variables anew by this step, then restart the Deployment: it reads both at start.",
    source=f"{CAPMOX}: cmd/main.go (a manager with PROXMOX_URL asks for /version before it starts)",
)
def manager_is_known(manager: ManagerIdentity, *, url: str, token_id: str, refused: str = "") -> Iterator[Finding]:
    """One finding for the pod, one for whom it is; a pod that runs has reached Proxmox VE at its start."""
    if not manager.pods:
        yield verdict(None if refused else False, "pod", refused or "no pod of CAPMOX' manager is there")
        return
    last = f"; {manager.errors[-1]}" if manager.errors else ""
    told = f"{manager.ready} of {manager.pods} ready, {manager.restarts} restarts{last}"
    yield verdict(manager.ready == manager.pods and not manager.errors, "pod", f"CAPMOX: {told}")
    if not (manager.url or manager.token_id):
        message = "the manager has no credentials of its own: every ProxmoxCluster needs a credentialsRef"
        yield verdict(Status.WARN, "identity", message)
        return
    right = (manager.url.rstrip("/"), manager.token_id, manager.has_secret) == (url.rstrip("/"), token_id, True)
    yield verdict(right, "identity", f"{manager.token_id or 'no token'} at {manager.url or 'no address'}")


@check(
    title="CAPMOX verifies the certificate of Proxmox VE",
    remedy="Give Proxmox VE a certificate of a public authority, or give each cluster a Secret of its own with root_ca "
    'and insecure "false" (machines.credentials): the manager\'s Secret has no room for a CA.',
    source=f"{CAPMOX}: PROXMOX_INSECURE is true unless it is set; a Secret without `insecure` verifies nothing",
)
def manager_verifies_tls(manager: ManagerIdentity, *, refused: str = "") -> Iterator[Finding]:
    """One finding: verified, or a warning that its token can be read by whoever stands between."""
    if not manager.pods or not manager.url:
        yield verdict(None, "TLS", refused or "the manager talks to no Proxmox VE of its own")
        return
    set_to = manager.insecure or "not set"
    if manager.insecure.lower() in {"false", "0", "no", "off", "n"}:
        yield verdict(True, "TLS", f"PROXMOX_INSECURE is {set_to}: the certificate is verified")
    else:
        message = f"PROXMOX_INSECURE is {set_to}: whoever stands between can read the token"
        yield verdict(Status.WARN, "TLS", message)
