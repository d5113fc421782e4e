"""The Cluster API provider as it is judged: whether it may come, whether it came, and whom it talks as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from runbook_lib.checks import providers
from runbook_lib.facts import CapiProvider, Crd, ManagerIdentity, Webhook, Workload
from runbook_lib.model import Status
from runbook_lib.versions import Way

PASS, FAIL, WARN, SKIP = Status.PASS, Status.FAIL, Status.WARN, Status.SKIP
WAY = Way("v1beta1 is served", "v1beta1", "v0.7.7", ("v0.7.7",), "v1.0.3")
CERTIFICATES = Crd("certificates.cert-manager.io", "cert-manager.io", "Certificate", ("v1",), "v1", True)
IMAGE = "quay.io/jetstack/cert-manager-controller:v1.18.2"
CAPMOX = CapiProvider(
    "InfrastructureProvider", "capmox-system", "proxmox", "v0.7.7", "v0.7.7", "v1beta1", "True", "", ""
)
IPAM = CapiProvider("IPAMProvider", "ipam", "in-cluster", "v1.0.3", "v1.0.3", "v1beta1", "True", "", "")
HOOK = Webhook("capmox", "validating", "v.proxmoxmachine", "capmox-system/hook:443", "Fail", 1, 1_900_000_000)
URL, TOKEN = "https://pve1:8006", "runbook-capmox@pve!capmox"
MANAGER = ManagerIdentity(1, 1, 0, URL, TOKEN, True, "false")
REASONS = (
    "MoreThanOneExists", "IncorrectVersionFormat", "FetchConfigValidationError", "UnknownProvider",
    "CAPIVersionIncompatibility", "ComponentsFetchError", "ComponentsCustomizationError", "ComponentsPatchError",
    "ComponentsImageOverrideError", "ComponentsUpgradeError", "OldComponentsDeletionError",
    "WaitingForCoreProviderReady", "InvalidGithubTokenError", "NoDeploymentAvailableConditionReason",
    "UnsupportedProviderDowngradeReason", "failed to load the repository", "MinimumReplicasUnavailable",
)  # fmt: skip
"""What the operator's source gives as reasons, and what its health check copies from a Deployment."""


def statuses(findings: Any) -> list[Status]:
    """The statuses in order."""
    return [finding.status for finding in findings]


def deployment(ready: int, desired: int = 1) -> Workload:
    """cert-manager's Deployment."""
    return Workload(
        kind="Deployment", namespace="cert-manager", name="cert-manager", desired=desired, ready=ready, images=(IMAGE,)
    )


def test_a_way_that_is_not_there_is_a_failure_with_its_reason():
    """What would have to be raised is the message."""
    [found] = providers.a_release_fits(Way("x", problem="Cluster API 1.6 is too old"))
    assert found.status is FAIL and found.message == "Cluster API 1.6 is too old" and found.remedy


@pytest.mark.parametrize(("steps", "told"), [(("v0.8.2", "v0.9.0"), True), (("v0.9.0",), False)])
def test_a_way_of_several_releases_is_told(steps: tuple[str, ...], told: bool):
    """The reader learns that this step is to be run once more."""
    [found] = providers.a_release_fits(replace(WAY, target="v0.9.0", steps=steps))
    assert found.status is PASS and ("v0.8.2 → v0.9.0, one each run" in found.message) is told


@pytest.mark.parametrize(
    ("workloads", "crds", "wanted"),
    [
        ([deployment(1)], [CERTIFICATES], [PASS, PASS]),
        ([deployment(0)], [CERTIFICATES], [PASS, FAIL]),
        ([deployment(0, 0)], [CERTIFICATES], [PASS, FAIL]),
        ([deployment(1)], [replace(CERTIFICATES, established=False)], [FAIL, PASS]),
        ([], [], [FAIL, FAIL]),
    ],
)
def test_cert_manager_has_its_kinds_and_runs(workloads: list[Workload], crds: list[Crd], wanted: list[Status]):
    """Scaled to nothing it does not run either."""
    assert statuses(providers.cert_manager_runs(workloads, crds)) == wanted


def test_each_reason_against_the_plan_is_a_finding_of_its_own():
    """Named by the word before the colon."""
    found = list(providers.may_be_installed(["operator: not served", "cert-manager: absent"], 0))
    assert [(entry.subject, entry.status) for entry in found] == [("operator", FAIL), ("cert-manager", FAIL)]


@pytest.mark.parametrize(("planned", "words"), [(5, "5 changes are planned"), (0, "there as wanted")])
def test_what_is_planned_is_told(planned: int, words: str):
    """Nothing to do is as good as something."""
    [found] = providers.may_be_installed([], planned)
    assert found.status is PASS and words in found.message


def test_both_providers_installed_pass():
    """Each with its release and its contract."""
    found = list(providers.both_are_installed({"proxmox": CAPMOX, "in-cluster": IPAM}))
    assert statuses(found) == [PASS, PASS] and "v0.7.7, contract v1beta1" in found[1].message


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, FAIL, "it was not asked for"),
        ({"refused": "changes: forbid"}, SKIP, "changes: forbid"),
        ({"chart": True}, SKIP, "the chart brings it"),
    ],
)
def test_an_absent_provider_is_a_failure_unless_it_could_not_be(given: Mapping[str, Any], status: Status, words: str):
    """A site that forbids changes proves nothing, and a chart needs no provider objects."""
    found = list(providers.both_are_installed({}, **given))
    assert statuses(found) == [status] * 2 and words in found[0].message


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_of_the_operator_has_its_first_step(reason: str):
    """Reason, message and what to do stand in one line."""
    broken = replace(CAPMOX, ready="False", installed_version="", reason=reason, message="its words")
    found = list(providers.both_are_installed({"proxmox": broken, "in-cluster": IPAM}))
    assert statuses(found) == [PASS, FAIL]
    assert f"{reason}: its words → {providers.CAUSES[reason]}" in found[1].message


def test_ready_in_the_release_before_is_not_installed():
    """Ready alone says nothing of the release that was asked for."""
    found = list(
        providers.both_are_installed({"proxmox": replace(CAPMOX, installed_version="v0.7.6"), "in-cluster": IPAM})
    )
    assert statuses(found) == [PASS, FAIL]


def kinds(contract: str = "v1beta1", *, served: tuple[str, ...] = ("v1alpha1",), established: bool = True) -> list[Crd]:
    """The five kinds."""
    own, pools = "infrastructure.cluster.x-k8s.io", "ipam.cluster.x-k8s.io"
    names = [f"{name}.{own}" for name in ("proxmoxclusters", "proxmoxmachines", "proxmoxmachinetemplates")]
    rows = [Crd(name, own, "K", served, "v1alpha1", established, {contract: ("v1alpha1",)}) for name in names]
    others = [f"{name}.{pools}" for name in ("inclusterippools", "globalinclusterippools")]
    return rows + [Crd(name, pools, "K", ("v1alpha2",), "v1alpha2", True) for name in others]


@pytest.mark.parametrize(
    ("rows", "failed"),
    [
        (kinds(), 0),
        (kinds("v1beta2"), 3),
        (kinds(served=()), 3),
        (kinds(served=("v1alpha2",)), 3),
        (kinds(established=False), 3),
        ([], 5),
    ],
)
def test_a_kind_is_served_in_the_version_its_label_names(rows: list[Crd], failed: int):
    """A label of another contract, or one that names a version nobody serves, is as good as none."""
    found = statuses(providers.kinds_bear_the_contract(rows, contract="v1beta1"))
    assert len(found) == 5 and found.count(FAIL) == failed


def test_kinds_of_what_was_not_installed_are_no_failure():
    """With changes forbidden they cannot be there."""
    assert statuses(providers.kinds_bear_the_contract([], contract="v1beta1", refused="forbidden")) == [SKIP] * 5


@pytest.mark.parametrize(
    ("hook", "status", "words"),
    [
        ({}, PASS, "the CA is valid"),
        ({"ready_endpoints": 0}, FAIL, "no endpoint behind capmox-system/hook:443"),
        ({"ready_endpoints": None, "service": ""}, PASS, "the CA is valid"),
        ({"ca_error": "the CA expired on 2026-01-01"}, FAIL, "expired on 2026-01-01"),
    ],
)
def test_a_webhook_answers_under_a_valid_ca(hook: Mapping[str, Any], status: Status, words: str):
    """One that is called by URL has no endpoints to count."""
    [found] = providers.webhooks_answer([replace(HOOK, **hook)])
    assert found.status is status and words in found.message


@pytest.mark.parametrize(("refused", "status"), [("", FAIL), ("forbidden", SKIP)])
def test_no_webhook_at_all_is_a_failure(refused: str, status: Status):
    """Both providers bring some."""
    assert statuses(providers.webhooks_answer([], refused=refused)) == [status]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, [PASS, PASS]),
        ({"url": f"{URL}/"}, [PASS, PASS]),
        ({"ready": 0, "restarts": 9}, [FAIL, PASS]),
        ({"errors": ("E 401 not authorized",)}, [FAIL, PASS]),
        ({"token_id": "root@pam!all"}, [PASS, FAIL]),
        ({"url": "https://other:8006"}, [PASS, FAIL]),
        ({"has_secret": False}, [PASS, FAIL]),
        ({"url": "", "token_id": ""}, [PASS, WARN]),
    ],
)
def test_the_manager_runs_as_its_own_token(given: Mapping[str, Any], wanted: list[Status]):
    """Somebody else's token or address is a failure; none at all is left to each cluster."""
    assert statuses(providers.manager_is_known(replace(MANAGER, **given), url=URL, token_id=TOKEN)) == wanted


def test_the_managers_last_words_are_told():
    """The reader need not look for them in the log."""
    [pod, _] = providers.manager_is_known(
        replace(MANAGER, ready=0, errors=("E first", "E x509: unknown authority")), url=URL, token_id=TOKEN
    )
    assert "x509: unknown authority" in pod.message and pod.remedy


@pytest.mark.parametrize(("refused", "status"), [("", FAIL), ("forbidden", SKIP)])
def test_no_manager_is_a_failure_where_one_could_be(refused: str, status: Status):
    """And its certificate check is then nobody's."""
    nobody = replace(MANAGER, pods=0)
    assert statuses(providers.manager_is_known(nobody, url=URL, token_id=TOKEN, refused=refused)) == [status]
    assert statuses(providers.manager_verifies_tls(nobody, refused=refused)) == [SKIP]


@pytest.mark.parametrize(
    ("insecure", "status"), [("false", PASS), ("False", PASS), ("0", PASS), ("", WARN), ("true", WARN), ("1", WARN)]
)
def test_what_is_not_set_verifies_nothing(insecure: str, status: Status):
    """A missing key is as bad as a true one, and the remedy tells of root_ca."""
    [found] = providers.manager_verifies_tls(replace(MANAGER, insecure=insecure))
    assert found.status is status and (insecure or "not set") in found.message
    assert status is PASS or "root_ca" in found.remedy
