"""The compatibility matrix, applied."""

from __future__ import annotations

import pytest

from runbook_lib import versions
from runbook_lib.facts import CapiProvider, Cozystack, Crd, KubeVersion, PveVersion, Workload

PVE = PveVersion("9.2.11", "9.2", "x")
KUBE = KubeVersion("v1.34.1", (1, 34))


def assess(served=("v1beta1",), core="v1.10.1-core", operator="v0.19.0", crds=(), **given):
    """The verdicts by component, on a stock CozyStack unless told otherwise."""
    machines = Crd(
        "machines.cluster.x-k8s.io", "cluster.x-k8s.io", "Machine", served, served[-1] if served else "", True
    )
    provider = CapiProvider("CoreProvider", "ns", "cluster-api", core, core, "v1beta1", "True", "", "")
    usual = {"pve": PVE, "kubernetes": KUBE, "cozystack": Cozystack("v1", "1.6.2", 54, "isp-full")}
    found = versions.assess(
        **{**usual, **given},
        crds=[*([machines] if served else []), *crds],
        providers=[provider],
        operator_version=operator,
    )
    return {row.component: row for row in found}


@pytest.mark.parametrize(
    ("served", "core", "operator", "choice"),
    [
        (("v1beta1",), "v1.10.1-core", "v0.19.0", "v0.7.x"),
        (("v1beta1",), "v1.9.5", "v0.17.0", "v0.7.x"),
        (("v1beta1",), "v1.7.4", "v0.17.0", "v0.6.x"),
        (("v1beta1", "v1beta2"), "v1.11.2", "v0.28.0", "v0.9.x"),
        (("v1beta1", "v1beta2"), "v1.12.9", "v0.28.0", "v0.9.x"),
        (("v1beta1", "v1beta2"), "v1.11.2", "v0.19.0", ""),
        (("v1beta1",), "v1.6.0", "v0.19.0", ""),
    ],
)
def test_capmox_line_follows_contract_core_and_operator(served, core, operator, choice):
    """Stock CozyStack takes 0.7; v1beta2 needs an operator that accepts it."""
    found = assess(served, core, operator)["CAPMOX"]
    assert (found.choice, found.works) == (choice, bool(choice))


def test_the_reason_names_what_newer_lines_need():
    """The reader learns why not the newest."""
    assert "0.8, 0.9 declare contract v1beta2 and need Cluster API ≥ 1.11" in assess()["CAPMOX"].why


def test_without_cluster_api_nothing_can_be_told():
    """No served version is unknown, not a refusal."""
    assert assess(served=())["CAPMOX"].works is None


def test_absent_ipam_provider_is_said():
    """CozyStack ships none."""
    assert "CozyStack ships none" in assess()["IPAM in-cluster"].why


@pytest.mark.parametrize(("release", "works"), [("6.4", False), ("7.0", True)])
def test_csi_needs_both_platforms(release, works):
    """The CSI driver's minimum is judged with both versions."""
    assert assess(pve=PveVersion(release, release, "x"))["Proxmox CSI"].works is works


def test_half_migrated_cozystack_cannot_work():
    """Finish the migration first."""
    assert assess(cozystack=Cozystack("half migrated", None, None, None))["CozyStack"].works is False


@pytest.mark.parametrize(
    ("text", "expected"), [("v1.10.1-core", (1, 10, 1)), ("8.4-15", (8, 4)), ("pve-manager/9.2", (9, 2)), ("", ())]
)
def test_numbers_of_a_version_text(text, expected):
    """The leading dotted number, wherever it stands."""
    assert versions.numbers(text) == expected


@pytest.mark.parametrize(
    ("have", "floor", "expected"), [("1.10", "1.9", True), ("1.9", "1.10", False), ("8", "8.0", True), ("x", "1", None)]
)
def test_versions_compare_as_numbers(have, floor, expected):
    """1.10 is newer than 1.9, and no version is neither."""
    assert versions.at_least(have, floor) is expected


def test_operator_version_is_its_image_tag():
    """A digest after the tag does not disturb."""
    image = "registry.example/capi-operator/cluster-api-operator:v0.19.0@sha256:00"
    row = Workload("Deployment", "cozy-cluster-api", "capi-operator-cluster-api-operator", 1, 1, (image,))
    assert versions.operator_version([row]) == "v0.19.0"
