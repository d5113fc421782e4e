"""Step 23 through its notebook: what a fresh install proves, a second run, and what stands in the way of a first."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import homes
import pytest
import yaml

from runbook_lib.lab import control
from runbook_lib.model import Status, StepResult

pytestmark = pytest.mark.xdist_group("step-23")

COMPLETE = bool(os.environ.get("RUNBOOK_COMPLETE"))
slow = pytest.mark.skipif(not COMPLETE, reason="complete matrix; run with `make test-all`")
PROOFS = {
    "providers.a_release_fits",
    "providers.cert_manager_runs",
    "providers.may_be_installed",
    "providers.both_are_installed",
    "providers.kinds_bear_the_contract",
    "providers.webhooks_answer",
    "providers.manager_is_known",
}
NOWHERE = "https://github.com/ionos-cloud/no-such-provider/releases/latest/infrastructure-components.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A project whose lab begins anew with each case."""
    place = homes.make(tmp_path_factory.mktemp("step23"), scale=600)
    place.up()
    yield place
    place.down()


def begin(home: homes.Home, given: Mapping[str, Any] | None = None, **parameters: Any) -> None:
    """Let the lab begin anew on a site with these parameters."""
    case = home.root / "case.yaml"
    case.write_text(yaml.safe_dump({"title": "A case", "extends": "healthy", **(given or {})}), encoding="utf-8")
    wish(home, **parameters)
    shutil.rmtree(home.root / ".secrets", ignore_errors=True)
    control.scenario(str(case), home.lab)


def wish(home: homes.Home, **parameters: Any) -> None:
    """Write the site's parameters: those of the lab, and these on top."""
    site = yaml.safe_load((homes.ROOT / "parameters" / "lab.yaml").read_text(encoding="utf-8"))
    site["lab"] = {"scenario": str(home.root / "case.yaml"), "scale": 600}
    site |= {"changes": "allow", "capi": {"wait_seconds": 30}, **parameters}
    (home.root / "parameters" / "lab.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")


def run(home: homes.Home) -> StepResult:
    """The result of the step on the lab as it is."""
    told = home.runbook("run", "--step", "23")
    result = home.runs()[-1].steps[0].result
    assert result is not None, told.stdout[-2000:] + told.stderr[-2000:]
    return result


def found(result: StepResult, *statuses: Status) -> dict[str, str]:
    """Check → messages and remedies of the findings with one of the statuses."""
    told: dict[str, str] = {}
    for entry in result.findings:
        if entry.status in statuses:
            told[entry.check] = f"{told.get(entry.check, '')}{entry.message} | {entry.remedy}\n"
    return told


def asked_for(home: homes.Home) -> dict[str, Any]:
    """Both provider objects by a client that is not ours: what is asked for, and in which generation."""
    from kubernetes import client

    api = client.CustomObjectsApi(homes.kubernetes(home).api_client)
    rows = [
        row
        for plural in ("infrastructureproviders", "ipamproviders")
        for row in api.list_cluster_custom_object("operator.cluster.x-k8s.io", "v1alpha2", plural)["items"]
    ]
    return {row["metadata"]["name"]: (row["metadata"]["generation"], row["spec"]) for row in rows}


@dataclass(frozen=True)
class Twice:
    """Two runs of the step, one after the other, and both sides after each."""

    first: StepResult
    between: tuple[set[str], dict[str, Any]]
    second: StepResult
    after: tuple[set[str], dict[str, Any]]


@pytest.fixture(scope="module")
def twice(home: homes.Home) -> Twice:
    """A fresh install, and the same again."""
    begin(home)
    first = run(home)
    between = homes.inventory(home), asked_for(home)
    return Twice(first, between, run(home), (homes.inventory(home), asked_for(home)))


def test_a_fresh_install_proves_both_providers(twice: Twice):
    """Every proof passes; that a CA of the site's own cannot be verified is a warning, and the only one."""
    assert found(twice.first, Status.FAIL, Status.ERROR) == {}
    assert set(found(twice.first, Status.PASS)) >= PROOFS
    assert set(found(twice.first, Status.WARN)) == {"providers.manager_verifies_tls"}
    assert set(twice.between[1]) >= {"proxmox", "in-cluster"}


def test_a_missing_insecure_is_told_with_its_consequence(twice: Twice):
    """Proxmox VE signs for itself here: the warning says who can read the token, and the remedy names root_ca."""
    told = found(twice.first, Status.WARN)["providers.manager_verifies_tls"]
    assert "PROXMOX_INSECURE is true" in told and "root_ca" in told


def test_a_second_run_changes_nothing(twice: Twice):
    """It plans nothing, and both sides are as they were."""
    assert twice.first.changes and twice.second.changes == ()
    assert twice.after == twice.between
    assert found(twice.second, Status.FAIL, Status.ERROR) == {}


def test_with_changes_forbidden_only_the_plan_is_shown(home: homes.Home):
    """Nothing is sent, and what cannot be there is a skip."""
    begin(home, changes="forbid")
    before = homes.inventory(home)
    result = run(home)
    assert result.changes == () and homes.inventory(home) == before
    assert "changes are planned" in found(result, Status.PASS)["providers.may_be_installed"]
    assert "providers.both_are_installed" in found(result, Status.SKIP)
    assert found(result, Status.FAIL, Status.ERROR) == {}


@pytest.mark.parametrize(
    ("flavour", "version", "words"),
    [
        ("healthy", "v0.9.0", "0.8, 0.9 declare contract v1beta2 and need Cluster API ≥ 1.11"),
        pytest.param("capi-v1beta2", "v0.7.7", "cluster.x-k8s.io v1beta1, v1beta2 is served", marks=slow),
    ],
)
def test_a_release_of_the_wrong_contract_is_not_even_tried(home: homes.Home, flavour: str, version: str, words: str):
    """The wish, what is served and what to take instead are told, and nothing is sent."""
    begin(home, {"extends": flavour}, capi={"wait_seconds": 5, "provider": {"version": version}})
    result = run(home)
    failed = found(result, Status.FAIL)
    assert result.changes == () and f"asks for {version}" in failed["providers.a_release_fits"]
    assert words in failed["providers.a_release_fits"] and "Never mix" in failed["providers.a_release_fits"]


SELECTOR = {"version": "v0.7.7", "selector": {"infraprovider-components": "proxmox"}}
NO_WAY_OUT = {"kubernetes": {"registries": {"github.com": "timeout", "proxy.golang.org": "timeout"}}}
UNFETCHED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bad-url": ({}, {"url": NOWHERE, "version": "v0.7.7"}, "no-such-provider"),
    "no-way-out": (NO_WAY_OUT, {}, "i/o timeout"),
    "no-config-map": ({}, SELECTOR, "no ConfigMaps found with selector"),
    "no-such-release": ({}, {"version": "v0.7.99"}, "v0.7.99"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "bad-url" else slow) for name in UNFETCHED])
def test_components_that_do_not_come_are_told_with_the_reason(home: homes.Home, name: str):
    """The operator's own words, and where to look; the way without internet is among it."""
    given, provider, words = UNFETCHED[name]
    begin(home, given, capi={"wait_seconds": 5, "provider": provider})
    told = found(run(home), Status.FAIL)["providers.both_are_installed"]
    assert words in told and "→" in told and "ComponentsFetchError" in told


@slow
@pytest.mark.parametrize("flavour", ["cozystack-v0", "capi-v1beta2"])
def test_every_generation_of_the_platform_gets_its_provider(home: homes.Home, flavour: str):
    """All proofs pass, and a second run has nothing to do."""
    begin(home, {"extends": flavour})
    result = run(home)
    assert found(result, Status.FAIL, Status.ERROR) == {} and set(found(result, Status.PASS)) >= PROOFS
    assert run(home).changes == ()


@slow
def test_a_wrong_release_asked_for_by_hand_is_explained(home: homes.Home):
    """Somebody's own provider object is not overruled: who wants what is told, and why the operator refuses that."""
    begin(home, {"extends": "capmox-wrong-version"})
    result = run(home)
    failed = found(result, Status.FAIL)
    assert result.changes == () and ".spec.version" in failed["providers.may_be_installed"]
    told = failed["providers.both_are_installed"]
    assert "CAPIVersionIncompatibility" in told and "does not accept this contract" in told


@slow
def test_no_token_is_written_anywhere(home: homes.Home):
    """Neither the lab's secrets nor CAPMOX' token lie in plan, journal, notebook or events."""
    begin(home)
    run(home)
    texts = [path.read_bytes() for path in homes.files(home.root / "outputs")]
    values = [value.encode() for value in homes.secrets(home).values() if len(value) > 7]
    assert len(values) > 1 and not [value for value in values for text in texts if value in text]


# --- what has to be there first -------------------------------------------------------------------------


def gone(*rows: tuple[str, str]) -> dict[str, Any]:
    """A lab without these objects, by kind and name."""
    return {"kubernetes": {"edits": [{"delete": {"kind": kind, "name": name}} for kind, name in rows]}}


ABSENT = {
    "operator": (
        gone(
            ("*Provider", "*"), ("CustomResourceDefinition", "*.operator.cluster.x-k8s.io"),
            ("Deployment", "capi-operator-*"), ("ReplicaSet", "capi-operator-*"), ("Pod", "capi-operator-*"),
            ("*WebhookConfiguration", "capi-operator-*"),
        ),
        "kubernetes.capi_operator_runs", "operator: the cluster does not serve operator.cluster.x-k8s.io",
    ),
    "cert-manager": (
        gone(
            ("CustomResourceDefinition", "*.cert-manager.io"), ("Deployment", "cert-manager*"),
            ("ReplicaSet", "cert-manager*"), ("Pod", "cert-manager*"), ("*WebhookConfiguration", "cert-manager*"),
        ),
        "providers.cert_manager_runs", "cert-manager: it is not installed",
    ),
}  # fmt: skip


@slow
@pytest.mark.parametrize("name", ABSENT)
def test_what_has_to_be_there_first_is_named(home: homes.Home, name: str):
    """Nothing is sent; the finding says what is missing, and its remedy where it comes from."""
    given, check, words = ABSENT[name]
    begin(home, given, capi={"wait_seconds": 5})
    result = run(home)
    failed = found(result, Status.FAIL)
    assert result.changes == () and check in failed and words in failed["providers.may_be_installed"]
    assert all(entry.remedy for entry in result.findings if entry.status is Status.FAIL)


# --- what broke since -----------------------------------------------------------------------------------


LONGEST_SECONDS = 30.0
HOME = "capmox-system"


def expired() -> str:
    """A CA that ended yesterday, as a webhook's bundle."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "capmox-ca")])
    one = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    one = one.not_valid_before(now - timedelta(days=90)).not_valid_after(now - timedelta(days=1))
    text = one.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return base64.b64encode(text).decode()


def the_ca_expires(home: homes.Home) -> None:
    """The webhooks' CA ends, and nobody injects a new one."""
    from kubernetes import client

    api = client.AdmissionregistrationV1Api(homes.kubernetes(home).api_client)
    name = "capmox-validating-webhook-configuration"
    hooks = api.read_validating_webhook_configuration(name).webhooks
    api.patch_validating_webhook_configuration(
        name,
        {
            "metadata": {"annotations": {"cert-manager.io/inject-ca-from": None}},
            "webhooks": [{"name": hook.name, "clientConfig": {"caBundle": expired()}} for hook in hooks],
        },
    )


def the_token_is_revoked(home: homes.Home) -> None:
    """The token goes, and the manager is started anew."""
    homes.proxmox(home).access.users("runbook-capmox@pve").token("capmox").delete()
    for pod in managers(home):
        homes.kubernetes(home).delete_namespaced_pod(pod.metadata.name, HOME)
    until(lambda: ill(home))


def it_shall_verify(home: homes.Home) -> None:
    """Somebody lets the manager verify a certificate that no authority of its image has signed."""
    from kubernetes import client

    api = client.AppsV1Api(homes.kubernetes(home).api_client)
    [row] = api.list_namespaced_deployment(HOME).items
    env = [{"name": "PROXMOX_INSECURE", "value": "false"}]
    wanted = {"spec": {"template": {"spec": {"containers": [{"name": "manager", "env": env}]}}}}
    api.patch_namespaced_deployment(row.metadata.name, HOME, wanted)
    until(lambda: ill(home))


def managers(home: homes.Home) -> list[Any]:
    """The pods of CAPMOX."""
    return list(homes.kubernetes(home).list_namespaced_pod(HOME).items)


def ill(home: homes.Home) -> bool:
    """Whether a container of CAPMOX has ended and was started again."""
    return any(state.restart_count and not state.ready
               for pod in managers(home) for state in pod.status.container_statuses or ())  # fmt: skip


def until(reached: Callable[[], bool]) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


BROKEN: dict[str, tuple[Callable[[homes.Home], None], str, str, str]] = {
    "webhook-ca": (the_ca_expires, "providers.webhooks_answer", "the CA expired on", "cert-manager's CA injector"),
    "token-revoked": (
        the_token_is_revoked, "providers.manager_is_known", "not authorized", "Write the Secret capmox-variables anew",
    ),
    "not-trusted": (it_shall_verify, "providers.manager_is_known", "x509", "Secret"),
}  # fmt: skip


@slow
@pytest.mark.parametrize("name", BROKEN)
def test_what_broke_since_is_told_with_cause_and_remedy(home: homes.Home, name: str):
    """Its own check fails with the words of whoever refused, and says what to do; nothing is changed for that."""
    breaks, check, words, remedy = BROKEN[name]
    begin(home)
    assert found(run(home), Status.FAIL, Status.ERROR) == {}
    breaks(home)
    wish(home, changes="forbid")
    # a container that is started once more runs for a moment, so one look may come just then
    looks = (run(home) for _ in range(3))
    result = next(look for look in looks if check in found(look, Status.FAIL))
    told = found(result, Status.FAIL)[check]
    assert words in told and remedy in told and result.changes == ()
