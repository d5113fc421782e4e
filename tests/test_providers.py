"""Both providers as they are asked for: their objects, their components, their variables, and what became of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runbook_lib import prepare, providers
from runbook_lib.errors import WaitTimeout
from runbook_lib.facts import Crd
from runbook_lib.lab.kubernetes.controllers.capi_operator_rules import from_config_maps
from runbook_lib.providers import CAPMOX, GROUP, IPAM
from runbook_lib.site import ProviderSource, Site
from runbook_lib.versions import Way

RUN = "20261123T190312Z-4f2a"
API = f"{GROUP}/v1alpha2"
SPACES = {CAPMOX: "capmox-system", IPAM: "capi-ipam-in-cluster-system"}
WAY = Way("v1beta1 is served", "v1beta1", "v0.7.7", ("v0.7.7",), "v1.0.3")
CERTIFICATES = Crd("certificates.cert-manager.io", "cert-manager.io", "Certificate", ("v1",), "v1", True)
WHAT = providers.Setting(WAY, SPACES, {}, None, (), (CERTIFICATES,), ())
PATHS = {
    CAPMOX: f"/apis/{API}/namespaces/capmox-system/infrastructureproviders/proxmox",
    IPAM: f"/apis/{API}/namespaces/capi-ipam-in-cluster-system/ipamproviders/in-cluster",
}
TOKEN = "0f0e0d0c-1111-4222-8333-444455556666"


class Cluster:
    """A cluster that answers what it was told to."""

    def __init__(
        self,
        objects: Mapping[str, Any] | None = None,
        states: Mapping[str, Sequence[Any]] | None = None,
        groups: Sequence[str] = (GROUP,),
        log: str = "",
    ) -> None:
        self.objects, self.states, self.groups, self.log = objects or {}, states or {}, groups, log

    def group(self, name: str) -> str | None:
        return f"/apis/{name}/v1alpha2" if name in self.groups else None

    def resources(self, _: str) -> list[dict[str, str]]:
        return [{"kind": kind, "name": f"{kind.lower()}s"} for kind in providers.KINDS.values()]

    def find(self, path: str) -> Any:
        return self.objects.get(path)

    def list(self, path: str) -> Any:
        return self.objects.get(path, [])

    def logs(self, *_: str, tail: int) -> str:
        return "\n".join(self.log.splitlines()[-tail:])

    def wait(self, path: str, reached: Callable[[Any], bool], _: float) -> Any:
        for state in self.states.get(path, ()):
            if reached(state):
                return state
        raise WaitTimeout(path, "the time is up")


def site(**capi: Any) -> Site:
    """A real site."""
    endpoint = {"url": "https://pve1.example.com:8006/", "token_id": "runbook@pve!runbook", "token_secret": "env:X"}
    return Site(name="real", proxmox=endpoint, kubernetes={"kubeconfig": "kubeconfig"}, capi=capi)


def asked(name: str, source: ProviderSource | None = None, *, trusted: bool = True) -> dict[str, Any]:
    """A provider object as it is asked for."""
    return providers.provider(name, "v1.0.3", WHAT, source or ProviderSource(), API, trusted=trusted)


# --- objects ---------------------------------------------------------------------------------------------


def test_the_ipam_provider_is_asked_for_by_its_release_alone():
    """Where it comes from the operator knows by itself; it has neither variables nor a flag."""
    assert asked(IPAM) == {
        "apiVersion": API,
        "kind": "IPAMProvider",
        "metadata": {"name": "in-cluster", "namespace": "capi-ipam-in-cluster-system"},
        "spec": {"version": "v1.0.3"},
    }


def test_capmox_takes_its_variables_from_a_secret_beside_it():
    """The reference has both name and namespace: the operator looks nowhere else."""
    made = asked(CAPMOX)
    assert made["spec"]["configSecret"] == {"name": "capmox-variables", "namespace": made["metadata"]["namespace"]}
    assert made["kind"] == "InfrastructureProvider"


@pytest.mark.parametrize(("trusted", "flag"), [(True, "false"), (False, "true")])
def test_whether_proxmox_is_verified_is_always_said(trusted: bool, flag: str):
    """What is not said means that nothing is verified, so it is said in both cases, as a text."""
    [container] = asked(CAPMOX, trusted=trusted)["spec"]["deployment"]["containers"]
    assert container == {"name": "manager", "env": [{"name": "PROXMOX_INSECURE", "value": flag}]}


@pytest.mark.parametrize(
    ("source", "fetch"),
    [
        ({"url": "https://mirror.example.com/infrastructure-components.yaml"},
         {"url": "https://mirror.example.com/infrastructure-components.yaml"}),
        ({"oci": "registry.example.com/capmox"}, {"oci": "registry.example.com/capmox"}),
        ({"selector": {"infraprovider-components": "proxmox"}},
         {"selector": {"matchLabels": {"infraprovider-components": "proxmox"}}}),
    ],
)  # fmt: skip
def test_components_come_from_the_one_place_that_is_given(source: dict[str, Any], fetch: dict[str, Any]):
    """An address, an artifact, or labels of a ConfigMap."""
    assert asked(CAPMOX, ProviderSource(**source))["spec"]["fetchConfig"] == fetch


@pytest.mark.parametrize(
    ("given", "trusted"),
    [({}, True), ({"verify": False}, False), ({"fingerprint": "AA"}, False), ({"ca_file": "x"}, False)],
)
def test_only_a_public_authority_lets_the_manager_verify(given: dict[str, Any], trusted: bool):
    """Its Secret has no room for a CA or a fingerprint."""
    endpoint = SimpleNamespace(**{"verify": True, "fingerprint": None, "ca_file": None, **given})
    assert providers.trusts(SimpleNamespace(proxmox=endpoint)) is trusted


# --- components without internet -------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> ProviderSource:
    """A folder with a provider's two files."""
    (tmp_path / "components.yaml").write_text("kind: Namespace\n" * 1000, encoding="utf-8")
    (tmp_path / "metadata.yaml").write_text("releaseSeries: []\n", encoding="utf-8")
    return ProviderSource(folder=str(tmp_path), selector={"infraprovider-components": "proxmox"}, version="v0.7.7")


def test_packed_components_are_what_the_operator_unpacks(packed: ProviderSource, tmp_path: Path):
    """The operator's rules find the ConfigMap by the same labels, and both files in it."""
    made = providers.components(CAPMOX, packed, "capmox-system", root=tmp_path)
    found = from_config_maps(asked(CAPMOX, packed), [made], packed.selector)
    assert found.files == {"v0.7.7": ("releaseSeries: []\n", "kind: Namespace\n" * 1000)}
    assert len(made["binaryData"]["components"]) < 1000


def test_the_same_files_pack_to_the_same_object(packed: ProviderSource, tmp_path: Path):
    """Otherwise a second run would find a change."""
    first = providers.components(CAPMOX, packed, "capmox-system", root=tmp_path)
    assert providers.components(CAPMOX, packed, "capmox-system", root=tmp_path) == first


def test_a_folder_without_its_files_is_told_before_anything_is_planned(tmp_path: Path):
    """Both files are named, and nothing is planned."""
    source = {"folder": str(tmp_path), "selector": {"a": "b"}, "version": "v0.7.7"}
    wanted = providers.installation(None, Cluster(), site(provider=source), RUN, WHAT)
    assert wanted.changes == () and [text.partition(":")[0] for text in wanted.problems] == ["components"] * 2


# --- what is in the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "what", "words"),
    [
        (Cluster(groups=()), WHAT, "operator: the cluster does not serve operator.cluster.x-k8s.io"),
        (Cluster(), replace(WHAT, crds=()), "cert-manager: it is not installed"),
        (Cluster(), replace(WHAT, way=Way("x", problem="no line fits")), "versions: no line fits"),
    ],
)
def test_where_something_is_in_the_way_nothing_is_planned(cluster: Cluster, what: providers.Setting, words: str):
    """The one reason is told; Proxmox VE is not even asked."""
    wanted = providers.installation(None, cluster, site(), RUN, what)
    assert wanted.changes == () and len(wanted.problems) == 1 and wanted.problems[0].startswith(words)


# --- the token -------------------------------------------------------------------------------------------


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """A kept token of CAPMOX."""
    monkeypatch.setenv("RUNBOOK_TEST_CAPMOX", TOKEN)
    monkeypatch.setattr(prepare, "secret_reference", lambda *_: "env:RUNBOOK_TEST_CAPMOX")
    return TOKEN


def variables(cluster: Cluster, root: Path) -> prepare.Wanted:
    """What is to be done for the Secret."""
    return providers._variables(cluster, site(), RUN, WHAT, root)


def held(secret: str) -> Cluster:
    """A cluster that has the Secret with this token."""
    texts = {"PROXMOX_URL": "https://pve1.example.com:8006", "PROXMOX_TOKEN": "runbook-capmox@pve!capmox"}
    data = {key: base64.b64encode(text.encode()).decode() for key, text in {**texts, "PROXMOX_SECRET": secret}.items()}
    return Cluster({"/api/v1/namespaces/capmox-system/secrets/capmox-variables": {"data": data}})


def test_the_token_is_not_in_the_plan(token: str, tmp_path: Path):
    """The plan has its reference, and the address as CAPMOX wants it."""
    [change] = variables(Cluster(), tmp_path).changes
    text = repr(change)
    assert token not in text and base64.b64encode(token.encode()).decode() not in text
    assert "env:RUNBOOK_TEST_CAPMOX" in text and "'https://pve1.example.com:8006'" in text


def test_the_same_token_is_not_written_again(token: str, tmp_path: Path):
    """A second run has nothing to do."""
    wanted = variables(held(token), tmp_path)
    assert wanted.changes == () and wanted.unchanged == ("v1/Secret/capmox-system/capmox-variables",)


def test_another_token_is_replaced_and_never_taken_away(token: str, tmp_path: Path):
    """What was there before this run is not this run's to delete."""
    [change] = variables(held("another-token"), tmp_path).changes
    assert change.target == "v1/Secret/capmox-system/capmox-variables" and change.undo is None


# --- what became of it -----------------------------------------------------------------------------------


def seen(*rows: tuple[str, str, str], installed: str = "") -> dict[str, Any]:
    """A provider with these conditions."""
    conditions = [
        {"type": kind, "status": status, "reason": reason, "lastTransitionTime": "t"} for kind, status, reason in rows
    ]
    return {"spec": {"version": "v1.0.3"}, "status": {"conditions": conditions, "installedVersion": installed}}


def test_each_condition_is_listed_once_when_it_comes():
    """Told again it is no news; one provider that does not come does not keep the other from being told."""
    passed, done = ("PreflightCheckPassed", "True", ""), ("ProviderInstalled", "True", "")
    ready = seen(passed, done, ("Ready", "True", ""), installed="v1.0.3")
    failed = seen(passed, ("ProviderInstalled", "False", "ComponentsFetchError"))
    states = {PATHS[IPAM]: [None, seen(passed), seen(passed, done), ready], PATHS[CAPMOX]: [failed, failed]}
    stages = providers.settled(Cluster(states=states), WHAT, SimpleNamespace(refused=""))
    assert [(row.provider, row.condition, row.status, row.reason) for row in stages] == [
        (IPAM, "PreflightCheckPassed", "True", ""),
        (IPAM, "ProviderInstalled", "True", ""),
        (IPAM, "Ready", "True", ""),
        (CAPMOX, "PreflightCheckPassed", "True", ""),
        (CAPMOX, "ProviderInstalled", "False", "ComponentsFetchError"),
    ]


def test_ready_of_the_release_before_is_not_the_end():
    """An upgrade waits until what is installed is what is asked for."""
    before = seen(("Ready", "True", ""), installed="v1.0.2")
    states = {PATHS[IPAM]: [before, seen(("Ready", "False", "MinimumReplicasUnavailable"), installed="v1.0.3")]}
    stages = providers.settled(Cluster(states=states), WHAT, SimpleNamespace(refused=""))
    assert [row.status for row in stages if row.provider == IPAM] == ["True", "False"]


def test_nothing_is_waited_for_where_nothing_was_sent():
    """With changes forbidden there is nothing to come."""
    states = {PATHS[IPAM]: [seen(("Ready", "True", ""))]}
    assert providers.settled(Cluster(states=states), WHAT, SimpleNamespace(refused="changes: forbid")) == []


def test_the_manager_is_known_by_its_secret_and_its_environment():
    """Whether there is a secret is told, and not which."""
    data = {key: base64.b64encode(text.encode()).decode()
            for key, text in {"url": "https://pve1:8006", "token": "a@pve!b", "secret": TOKEN}.items()}  # fmt: skip
    pod = {
        "metadata": {"name": "capmox", "labels": {"cluster.x-k8s.io/provider": "infrastructure-proxmox"}},
        "spec": {"containers": [{"name": "manager", "env": [{"name": "PROXMOX_INSECURE", "value": "false"}]}]},
        "status": {"containerStatuses": [{"ready": False, "restartCount": 4}]},
    }
    other = {"metadata": {"name": "other"}, "spec": {"containers": []}, "status": {}}
    objects = {
        "/api/v1/namespaces/capmox-system/secrets/capmox-manager-credentials": {"data": data},
        "/api/v1/namespaces/capmox-system/pods": [pod, other],
    }
    found = providers.manager(Cluster(objects, log="I starting\nE 401 not authorized\nI stopping"), WHAT)
    assert (found.url, found.token_id, found.has_secret, found.insecure) == (
        "https://pve1:8006",
        "a@pve!b",
        True,
        "false",
    )
    assert (found.pods, found.ready, found.restarts, found.errors) == (1, 0, 4, ("E 401 not authorized",))
    assert TOKEN not in json.dumps(vars(found), default=str)
