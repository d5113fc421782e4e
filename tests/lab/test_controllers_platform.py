"""What brings a platform its parts: the Cluster API operator, cert-manager, Flux, and CozyStack's own operator."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from aiohttp import web
from cryptography import x509

from runbook_lib.lab import scenario
from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes import seeds
from runbook_lib.lab.kubernetes.charts import book, cluster_api
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import (
    Handles,
    cert_manager,
    cozystack_packages,
    cozystack_workloads,
    flux_helm,
    installing,
    internet,
    start_all,
)
from runbook_lib.lab.kubernetes.controllers import capi_operator_rules as rules
from runbook_lib.lab.kubernetes.controllers.client import KubeClient
from runbook_lib.lab.kubernetes.controllers.network import World
from runbook_lib.lab.kubernetes.server import create_app

Object = dict[str, Any]
TOKEN = "a-token-of-the-test"
OPERATOR = "/apis/operator.cluster.x-k8s.io/v1alpha2/namespaces"


@dataclass
class Living:
    """A seeded cluster with every controller at work."""

    client: KubeClient
    handles: Handles
    cluster: Cluster

    async def until(self, path: str, wanted: Callable[[Object], Any], seconds: float = 20.0) -> Object:
        """The object once it is as wanted."""
        item: Object = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    item = await self.client.find(path) or {}
                    if item and wanted(item):
                        return item
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{path} never became so: {item.get('status')}") from None

    async def gone(self, path: str, seconds: float = 20.0) -> None:
        """Returns once there is nothing at the path."""
        try:
            async with asyncio.timeout(seconds):
                while await self.client.find(path) is not None:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{path} stays") from None

    async def make(self, path: str, api_version: str, kind: str, name: str, **body: Any) -> Object:
        """The object as created."""
        meta = {"name": name, **body.pop("metadata", {})}
        return await self.client.create(path, {"apiVersion": api_version, "kind": kind, "metadata": meta, **body})

    async def space(self, name: str) -> None:
        """A namespace of that name."""
        await self.client.create("/api/v1/namespaces", {"metadata": {"name": name}})


@asynccontextmanager
async def living(scale: float = 600.0, **section: Any) -> AsyncIterator[Living]:
    """The healthy cluster behind its API server; an hour takes six seconds."""
    given = {**scenario.load("healthy").kubernetes, **section}
    cluster = Cluster(version=seeds.kubernetes_version(given))
    cluster.load(seeds.cozystack(given))
    cluster.tokens[TOKEN] = User("lab-controllers", ("system:masters",))
    runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    handles = await start_all(url, TOKEN, None, Clock(scale), given)
    client = KubeClient(url, TOKEN)
    try:
        await handles.ready()
        yield Living(client, handles, cluster)
    finally:
        await client.close()
        await handles.stop()
        await runner.cleanup()


def story(told: Callable[[], Any]) -> None:
    """Runs a story to its end."""
    asyncio.run(told())


# --- the Cluster API operator: judgement ------------------------------------------------------------------------------


def provider(kind: str = "InfrastructureProvider", name: str = "proxmox", **more: Any) -> Object:
    """A provider as asked for."""
    spec = {"version": "v0.7.7", **more.pop("spec", {})}
    meta = {"name": name, "namespace": "capmox-system", "uid": f"{kind}-{name}", "generation": 1, **more}
    return {"apiVersion": "operator.cluster.x-k8s.io/v1alpha2", "kind": kind, "metadata": meta, "spec": spec}


CORE = provider("CoreProvider", "cluster-api", spec={"version": "v1.10.1"}) | {
    "status": {"conditions": [{"type": "Ready", "status": "True"}]}
}


@pytest.mark.parametrize(
    ("item", "others", "reason", "words"),
    [
        (provider(spec={"version": "0.seven"}), [CORE], "IncorrectVersionFormat", 'could not parse "0.seven"'),
        (provider("CoreProvider", "core"), [], "IncorrectCoreProviderName", "It should be cluster-api"),
        (provider(name="own"), [CORE], "FetchConfigValidationError", "for a not predefined provider"),
        (
            provider(spec={"fetchConfig": {"url": "https://a/b", "selector": {"matchLabels": {"a": "b"}}}}),
            [CORE],
            "FetchConfigValidationError",
            "not both",
        ),
        (provider(), [CORE, provider(namespace="else", uid="2")], "MoreThanOneProviderInstanceExists", "name else in"),
        (provider(), [], "WaitingForCoreProviderReady", "Waiting for the CoreProvider to be installed."),
        (
            provider() | {"status": {"installedVersion": "v0.8.1"}},
            [CORE],
            "UnsupportedProviderDowngrade",
            "Downgrade is not supported",
        ),
    ],
)
def test_preflight_refuses_in_the_operators_words(item: Object, others: list[Object], reason: str, words: str) -> None:
    """Each check has its reason and its text."""
    with pytest.raises(rules.Failed, match=words) as failed:
        rules.preflight(item, others)
    assert failed.value.reason == reason


def test_preflight_lets_a_good_wish_pass() -> None:
    """A predefined provider beside a core that is ready."""
    passing = provider()
    rules.preflight(passing, [CORE])
    with pytest.raises(rules.Failed):
        rules.preflight(passing, [])


@pytest.mark.parametrize(
    ("version", "tag", "contract"),
    [("v0.7.7", "v0.19.0", "v1beta1"), ("v0.7.7", "v0.28.0", "v1beta1"), ("v0.9.0", "v0.28.0", "v1beta2")],
)
def test_operator_takes_the_contracts_of_its_time(version: str, tag: str, contract: str) -> None:
    """0.19 takes v1beta1, 0.28 takes both."""
    row = cluster_api.project("Infrastructure", "proxmox")
    assert row is not None
    files = {version: (yaml.safe_dump(cluster_api.metadata(row)), "")}
    taken = rules.contract_of(provider(), rules.Repository(files), version, rules.era(tag).contracts)
    assert taken == contract


def test_old_operator_refuses_the_new_contract() -> None:
    """CAPMOX 0.9 on operator 0.19, in its words."""
    row = cluster_api.project("Infrastructure", "proxmox")
    assert row is not None
    files = {"v0.9.0": (yaml.safe_dump(cluster_api.metadata(row)), "")}
    words = "CAPI operator is only compatible with v1beta1 providers, detected v1beta2 for provider proxmox."
    with pytest.raises(rules.Failed, match=words):
        rules.contract_of(provider(), rules.Repository(files), "v0.9.0", rules.era("v0.19.0").contracts)


@pytest.mark.parametrize(
    ("text", "values", "result"),
    [
        ("a: ${A}", {"A": "1"}, "a: 1"),
        ("a: ${A:=two}", {}, "a: two"),
        ("a: ${A:=two}", {"A": ""}, "a: two"),
        ('a: ${A:=""}', {}, "a: "),
        ("a: ${A:-x}/${B=y}", {"B": "z"}, "a: x/z"),
    ],
)
def test_variables_are_filled(text: str, values: dict[str, str], result: str) -> None:
    """As clusterctl fills them: with a value, else with the default."""
    assert rules.filled(text, values) == result


def test_variables_without_a_value_are_named() -> None:
    """All of them at once."""
    with pytest.raises(rules.Failed, match=r"value for variables \[A, B\] is not set"):
        rules.filled("${B} ${A} ${C:=1}", {})


def test_components_move_to_the_providers_namespace() -> None:
    """Objects, certificates and annotations follow; the provider owns what lies in its namespace."""
    row = cluster_api.project("IPAM", "in-cluster")
    assert row is not None
    wish = provider("IPAMProvider", "in-cluster", namespace="elsewhere")
    made = rules.components(wish, yaml.safe_dump_all(cluster_api.release(row, "v1.0.3")), {})
    assert {item["metadata"].get("namespace", "elsewhere") for item in made} == {"elsewhere"}
    assert "capi-ipam-in-cluster-system" not in yaml.safe_dump(made)
    assert all(item["metadata"]["labels"]["cluster.x-k8s.io/provider"] == "ipam-in-cluster" for item in made)


@pytest.mark.parametrize("row", cluster_api.PROJECTS, ids=lambda row: row.label)
def test_every_release_can_be_made(row: cluster_api.Project) -> None:
    """Each version of each project has a contract, one manager of its own tag, and definitions with schemas."""
    for version in row.versions:
        made = cluster_api.release(row, version)
        managers = [item for item in made if item["kind"] == "Deployment"]
        assert cluster_api.contract(row, version) in {"v1beta1", "v1beta2"}
        assert managers[0]["spec"]["template"]["spec"]["containers"][0]["image"] == f"{row.image}:{version}"
        assert any(item["kind"] == "CustomResourceDefinition" for item in made)


def test_world_says_what_answers() -> None:
    """A known host answers, a blocked one is silent, another has no address."""
    blocked = World(blocked=("*:443",))
    assert internet.unreachable(World(), "github.com") == ""
    assert "i/o timeout" in internet.unreachable(blocked, "github.com")
    assert "no such host" in internet.unreachable(World(), "charts.example.org")


# --- the Cluster API operator: over HTTP ------------------------------------------------------------------------------


def packed(kind: str, name: str, version: str, label: str) -> Object:
    """A ConfigMap as CozyStack feeds the operator."""
    row = cluster_api.project(kind, name)
    assert row is not None
    text = yaml.safe_dump_all(cluster_api.release(row, version))
    return {
        "metadata": {
            "name": version,
            "labels": {label: "proxmox"},
            "annotations": {"provider.cluster.x-k8s.io/compressed": "true"},
        },
        "data": {"metadata": yaml.safe_dump(cluster_api.metadata(row))},
        "binaryData": {"components": base64.b64encode(gzip.compress(text.encode())).decode()},
    }


def row(item: Object, kind: str = "Ready") -> Object:
    """A condition."""
    return installing.row_of(item, kind)


def test_proxmox_and_ipam_come_from_config_maps_and_are_ready() -> None:
    """CozyStack's scheme: packed ConfigMaps, and in the end managers that run with certificates of cert-manager."""

    async def told() -> None:
        async with living() as made:
            await made.space("capmox-system")
            for kind, plural, name, version in (
                ("IPAM", "ipamproviders", "in-cluster", "v1.0.3"),
                ("Infrastructure", "infrastructureproviders", "proxmox", "v0.7.7"),
            ):
                label = f"{kind.lower()}-components"
                await made.client.create(
                    "/api/v1/namespaces/capmox-system/configmaps", packed(kind, name, version, label)
                )
                await made.make(
                    f"{OPERATOR}/capmox-system/{plural}",
                    "operator.cluster.x-k8s.io/v1alpha2",
                    f"{kind}Provider",
                    name,
                    spec={"version": version, "fetchConfig": {"selector": {"matchLabels": {label: "proxmox"}}}},
                )
            paths = ("infrastructureproviders/proxmox", "ipamproviders/in-cluster")
            for path in paths:
                item = await made.until(
                    f"{OPERATOR}/capmox-system/{path}", lambda item: row(item).get("status") == "True"
                )
                assert item["status"]["contract"] == "v1beta1"
                assert item["status"]["installedVersion"] == item["spec"]["version"]
                assert item["status"]["observedGeneration"] == item["metadata"]["generation"]
            pods = (await made.client.list("/api/v1/namespaces/capmox-system/pods"))["items"]
            assert sorted(pod["status"]["phase"] for pod in pods) == ["Running", "Running"]
            hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
            hook = await made.until(
                f"{hooks}/capmox-validating-webhook-configuration",
                lambda item: item["webhooks"][0]["clientConfig"].get("caBundle"),
            )
            x509.load_pem_x509_certificate(base64.b64decode(hook["webhooks"][0]["clientConfig"]["caBundle"]))

    story(told)


async def wish(made: Living, version: str, **spec: Any) -> str:
    """The path of a provider asked for by its version alone."""
    await made.space("capmox-system")
    plural = f"{OPERATOR}/capmox-system/infrastructureproviders"
    await made.make(
        plural,
        "operator.cluster.x-k8s.io/v1alpha2",
        "InfrastructureProvider",
        "proxmox",
        spec={"version": version, **spec},
    )
    return f"{plural}/proxmox"


def test_default_url_installs_upgrades_and_goes() -> None:
    """From the project's releases; a new version replaces the manager; deletion leaves the definitions."""

    async def told() -> None:
        async with living() as made:
            path = await wish(made, "v0.6.2")
            await made.until(path, lambda item: row(item).get("status") == "True")
            await made.client.patch(path, {"spec": {"version": "v0.7.7"}})
            item = await made.until(path, lambda item: item["status"].get("installedVersion") == "v0.7.7")
            assert row(item, "ProviderUpgraded")["status"] == "True"
            manager = "/apis/apps/v1/namespaces/capmox-system/deployments/capmox-controller-manager"
            await made.until(manager, lambda item: "v0.7.7" in str(item["spec"]["template"]["spec"]["containers"]))
            await made.client.delete(path)
            await made.gone(path)
            await made.gone(manager)
            assert await made.client.find(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/proxmoxmachines.infrastructure.cluster.x-k8s.io"
            )

    story(told)


@pytest.mark.parametrize(
    ("version", "section", "reason", "words"),
    [
        ("v0.9.0", {}, "CAPIVersionIncompatibility", "detected v1beta2 for provider proxmox"),
        ("v0.7.99", {}, "ComponentsFetchError", "release not found for version v0.7.99"),
        ("v0.7.7", {"registries": {"proxy.golang.org": "timeout"}}, "ComponentsFetchError", "i/o timeout"),
    ],
)
def test_provider_says_why_it_is_not_installed(version: str, section: Object, reason: str, words: str) -> None:
    """The reason is in ProviderInstalled, after a preflight that passed."""

    async def told() -> None:
        async with living(**section) as made:
            path = await wish(made, version)
            item = await made.until(path, lambda item: row(item, "ProviderInstalled").get("reason") == reason)
            assert words in row(item, "ProviderInstalled")["message"]
            assert row(item, "PreflightCheckPassed")["status"] == "True"
            assert "installedVersion" not in item["status"]

    story(told)


# --- cert-manager -----------------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_certificate_has_the_names_and_the_time_asked_for() -> None:
    """What is issued can be read back."""
    spec = {"dnsNames": ["a.svc"], "commonName": "a", "duration": "24h0m0s", "privateKey": {"algorithm": "ECDSA"}}
    read = x509.load_pem_x509_certificate(cert_manager.issue(spec, NOW).certificate)
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.svc"]
    assert read.not_valid_after_utc == NOW + timedelta(days=1)


def test_ca_issuer_signs_with_its_pair() -> None:
    """The issuer's certificate stands above, and is the CA that others trust."""
    fast = {"privateKey": {"algorithm": "ECDSA"}}
    root = cert_manager.issue({"isCA": True, "commonName": "root", **fast}, NOW)
    pair = {"tls.crt": root.certificate, "tls.key": root.key}
    leaf = cert_manager.issue({"dnsNames": ["a.svc"], **fast}, NOW, pair)
    read = x509.load_pem_x509_certificate(leaf.certificate)
    read.verify_directly_issued_by(x509.load_pem_x509_certificate(root.certificate))
    assert leaf.authority == root.certificate


@pytest.mark.parametrize(("days", "reason"), [(10, None), (70, "Renewing")])
def test_certificate_is_renewed_after_two_thirds(days: int, reason: str | None) -> None:
    """Of ninety days the last thirty."""
    spec = {"dnsNames": ["a.svc"], "privateKey": {"algorithm": "ECDSA"}}
    made = cert_manager.issue(spec, NOW)
    data = {"tls.crt": base64.b64encode(made.certificate).decode(), "tls.key": "a2V5"}
    why = cert_manager.why_issue({"spec": spec}, {"data": data}, NOW + timedelta(days=days))
    assert (why[0] if why else None) == reason


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "constraint", "result"),
    [
        ("1.2.3", "*", True), ("1.2.3", "1.2.3", True), ("1.2.3", "1.2.4", False), ("1.2.3", "1.2.x", True),
        ("1.2.3", "^1.0.0", True), ("2.0.0", "^1.0.0", False), ("0.3.5", "^0.3.0", True), ("0.4.0", "^0.3.0", False),
        ("1.2.3", "~1.2.0", True), ("1.3.0", "~1.2.0", False), ("1.2.3", ">= 1.0.0 < 2.0.0", True),
        ("0.0.0", ">= 0.0.0-0", True), ("1.2.3", "1", True),
    ],
)  # fmt: skip
def test_constraints_choose_versions(version: str, constraint: str, result: bool) -> None:
    """The forms that people write."""
    assert book.fits(version, constraint) is result


def test_values_lie_over_values() -> None:
    """Maps are laid deep, lists replaced, null takes away."""
    assert book.merged({"a": {"b": 1, "c": 2}, "d": [1], "e": 1}, {"a": {"b": 3}, "d": [2], "e": None}) == {
        "a": {"b": 3, "c": 2},
        "d": [2],
    }


@pytest.mark.parametrize("chart", [row for row in book.CHARTS if row.name.startswith("pro")], ids=lambda row: row.name)
def test_charts_render_in_their_release(chart: book.Chart) -> None:
    """Every version renders workloads whose selectors fit their pods, in the namespace of the release."""
    for version, app in chart.versions.items():
        made = book.rendered(chart, book.Given("own", "space", {}, chart.name, version, app))
        workloads = [item for item in made if item["kind"] in {"Deployment", "DaemonSet"}]
        assert workloads
        for item in workloads:
            labels = item["spec"]["template"]["metadata"]["labels"]
            assert item["spec"]["selector"]["matchLabels"].items() <= labels.items()
            assert item["metadata"]["namespace"] == "space"


def test_tenants_lie_in_each_other() -> None:
    """A tenant of a tenant carries both names, and no name may hold a dash."""
    assert book.tenant_name("tenant-a", "tenant-root") == "tenant-a"
    assert book.tenant_name("tenant-b", "tenant-a") == "tenant-a-b"
    chart = book.of_platform("tenant")
    assert chart is not None
    with pytest.raises(book.Broken, match="must not contain dashes"):
        book.rendered(chart, book.Given("tenant-a-b", "tenant-root", {}, "tenant", "1", "1"))


# --- Flux: judgement --------------------------------------------------------------------------------------------------


def test_history_keeps_the_last_that_went_well() -> None:
    """What is replaced is superseded; a failure leaves what was deployed."""
    first = {"version": 1, "status": "deployed"}
    assert flux_helm.snapshots([first], {"version": 2, "status": "deployed"})[1]["status"] == "superseded"
    assert flux_helm.snapshots([first], {"version": 2, "status": "failed"})[1]["status"] == "deployed"


@pytest.mark.parametrize(
    ("kind", "status", "waits"),
    [
        ("Deployment", {"observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 2}, False),
        ("Deployment", {"observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 1}, True),
        ("Deployment", {}, True),
        ("DaemonSet", {"observedGeneration": 1}, False),
        (
            "DaemonSet",
            {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberReady": 2},
            True,
        ),
        ("StatefulSet", {"observedGeneration": 1, "readyReplicas": 2}, False),
    ],
)
def test_helm_waits_for_workloads(kind: str, status: Object, waits: bool) -> None:
    """Until all of the wanted pods are ready."""
    item = {"kind": kind, "metadata": {"generation": 1}, "spec": {"replicas": 2}, "status": status}
    assert flux_helm.unready(item) is waits


# --- Flux: over HTTP --------------------------------------------------------------------------------------------------

HELM = "/apis/helm.toolkit.fluxcd.io/v2/namespaces"
SOURCE = "/apis/source.toolkit.fluxcd.io/v1/namespaces"
SPACE = "charts"


async def repository(made: Living, url: str = "https://charts.christianhuth.de", **spec: Any) -> None:
    """A namespace with a Helm repository."""
    await made.space(SPACE)
    await made.make(
        f"{SOURCE}/{SPACE}/helmrepositories", "source.toolkit.fluxcd.io/v1", "HelmRepository", "repo",
        spec={"interval": "5m", "url": url, **spec},
    )  # fmt: skip


async def helm_release(
    made: Living, name: str, *, chart: str = "prometheus-pve-exporter", version: str = "*", **spec: Any
) -> str:
    """The path of a release of that repository."""
    reference = {"chart": chart, "version": version, "sourceRef": {"kind": "HelmRepository", "name": "repo"}}
    wanted = {"interval": "5m", "chart": {"spec": reference}, **spec}
    plural = f"{HELM}/{SPACE}/helmreleases"
    await made.make(plural, "helm.toolkit.fluxcd.io/v2", "HelmRelease", name, spec=wanted)
    return f"{plural}/{name}"


def because(reason: str, kind: str = "Ready") -> Callable[[Object], bool]:
    """Whether the condition has this reason."""
    return lambda item: row(item, kind).get("reason") == reason


def test_release_lives_and_leaves_nothing() -> None:
    """Installed, upgraded, uninstalled: history, Helm's Secrets and the objects follow."""

    async def told() -> None:
        async with living() as made:
            await repository(made)
            path = await helm_release(made, "pve")
            item = await made.until(path, because("InstallSucceeded"))
            full = "charts/pve.v1 with chart prometheus-pve-exporter@2.6.1"
            assert row(item)["message"] == f"Helm install succeeded for release {full}"
            await made.client.patch(path, {"spec": {"values": {"replicaCount": 2}}})
            item = await made.until(path, because("UpgradeSucceeded"))
            assert [entry["status"] for entry in item["status"]["history"]] == ["deployed", "superseded"]
            deployment = f"/apis/apps/v1/namespaces/{SPACE}/deployments/pve-prometheus-pve-exporter"
            assert (await made.client.get(deployment))["status"]["readyReplicas"] == 2
            await made.client.delete(path)
            for gone in (path, deployment, f"{SOURCE}/{SPACE}/helmcharts/{SPACE}-pve"):
                await made.gone(gone)
            secrets = await made.client.list(f"/api/v1/namespaces/{SPACE}/secrets", labelSelector="owner=helm")
            assert secrets["items"] == []

    story(told)


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"chart": "no-such"}, "SourceNotReady", "no 'no-such' chart with version matching '*' found"),
        ({"version": "9.9.9"}, "SourceNotReady", "invalid chart reference: failed to get chart version"),
        (
            {"valuesFrom": [{"kind": "Secret", "name": "none"}]},
            "ValuesError",
            "could not resolve Secret chart values reference 'charts/none' with key 'values.yaml': "
            'secrets "none" not found',
        ),
        (
            {"dependsOn": [{"name": "other"}]},
            "DependencyNotReady",
            "unable to get 'charts/other' dependency: helmreleases.helm.toolkit.fluxcd.io \"other\" not found",
        ),
        ({"install": {"createNamespace": False}, "targetNamespace": "nowhere"}, "InstallFailed", "not found"),
    ],
)
def test_release_says_what_it_lacks(spec: Object, reason: str, words: str) -> None:
    """In Flux's words."""

    async def told() -> None:
        async with living() as made:
            await repository(made)
            path = await helm_release(made, "pve", **spec)
            item = await made.until(path, lambda item: words in row(item).get("message", ""))
            assert row(item)["reason"] == reason

    story(told)


def test_release_waits_for_the_one_below() -> None:
    """What depends goes on once the other is ready; what is suspended stays as it is."""

    async def told() -> None:
        async with living() as made:
            await repository(made)
            below = await helm_release(made, "below", suspend=True)
            path = await helm_release(made, "above", dependsOn=[{"name": "below"}])
            item = await made.until(path, because("DependencyNotReady"))
            assert row(item)["message"] == "dependency 'charts/below' is not ready"
            assert "status" not in await made.client.get(below)
            await made.client.patch(below, {"spec": {"suspend": None}})
            await made.until(path, because("InstallSucceeded"))

    story(told)


def test_repository_that_does_not_answer_says_so() -> None:
    """The dialer's words, in Ready and FetchFailed."""

    async def told() -> None:
        async with living() as made:
            await repository(made, "https://charts.example.org")
            item = await made.until(f"{SOURCE}/{SPACE}/helmrepositories/repo", because("Failed"))
            assert "dial tcp: lookup charts.example.org: no such host" in row(item)["message"]
            assert row(item, "FetchFailed")["status"] == "True"

    story(told)


def test_release_whose_pods_never_start_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without retries it stalls after one attempt; a failed upgrade with retries goes back to what worked."""
    monkeypatch.setattr(flux_helm, "LEAST", 1.0)

    async def told() -> None:
        async with living(registries={"docker.io/prompve/prometheus-pve-exporter:none": "missing"}) as made:
            await repository(made)
            bad = {"image": {"tag": "none"}}
            path = await helm_release(made, "stuck", values=bad, timeout="1m")
            item = await made.until(path, because("RetriesExceeded", "Stalled"))
            words = "Helm install failed for release charts/stuck with chart prometheus-pve-exporter@2.6.1: "
            assert row(item)["message"] == f"{words}context deadline exceeded"
            assert row(item, "Stalled")["message"] == "Failed to install after 1 attempt(s)"
            path = await helm_release(made, "good", timeout="10m", upgrade={"remediation": {"retries": 3}})
            await made.until(path, because("InstallSucceeded"))
            await made.client.patch(path, {"spec": {"values": bad, "timeout": "1m"}})
            item = await made.until(path, because("RollbackSucceeded", "Remediated"))
            deployment = f"/apis/apps/v1/namespaces/{SPACE}/deployments/good-prometheus-pve-exporter"
            await made.until(deployment, lambda item: "none" not in str(item["spec"]["template"]))

    story(told)


# --- CozyStack --------------------------------------------------------------------------------------------------------


def package(name: str = "p", *, ready: bool = False, **spec: Any) -> Object:
    """A package."""
    rows = [{"type": "Ready", "status": "True"}] if ready else []
    return {"metadata": {"name": name, "uid": name}, "spec": spec, "status": {"conditions": rows}}


def package_source(name: str = "p", *, needs: tuple[str, ...] = (), space: str = "s", **install: Any) -> Object:
    """A source with one component."""
    part = {"name": "c", "path": "system/c", "install": {"namespace": space, **install}}
    variant = {"name": "default", "components": [part], "dependsOn": list(needs)}
    reference = {"kind": "OCIRepository", "name": "repo", "namespace": "cozy-system", "path": "/"}
    return {"metadata": {"name": name, "uid": name}, "spec": {"sourceRef": reference, "variants": [variant]}}


@pytest.mark.parametrize(
    ("item", "source", "reason", "message"),
    [
        (package(), None, "PackageSourceNotFound", "PackageSource p not found"),
        (package(variant="x"), package_source(), "VariantNotFound", "Variant x not found in PackageSource p"),
        (package(), package_source(needs=("q",)), "DependenciesNotReady", "One or more dependencies are not ready"),
        (package(), package_source(space=""), "InvalidConfiguration",
         "Component c has empty namespace in Install section"),
        (package(), package_source(dependsOn=["d"]), "DependsOnFailed", "Failed to build DependsOn for component c: "
         "component d not found in variant for dependency c"),
        (package(), package_source(), "ReconciliationSucceeded",
         "reconciliation succeeded, generated 1 helmrelease(s)"),
        (package(ignoreDependencies=["q"]), package_source(needs=("q",)), "ReconciliationSucceeded",
         "reconciliation succeeded, generated 1 helmrelease(s)"),
        (package(components={"c": {"enabled": False}}), package_source(), "ReconciliationSucceeded",
         "reconciliation succeeded, generated 0 helmrelease(s)"),
    ],
)  # fmt: skip
def test_package_says_what_it_came_to(item: Object, source: Object | None, reason: str, message: str) -> None:
    """Each reason with the operator's words."""
    verdict = cozystack_packages.decide(item, source, {"p": item}, {"p": source} if source else {})
    assert (verdict.reason, verdict.message) == (reason, message)


def test_package_passes_values_and_dependencies_on() -> None:
    """A component's release depends on all of the package below, and takes its values."""
    item, below = package(components={"c": {"values": {"a": 1}}}), package("q", ready=True)
    sources = {"p": package_source(needs=("q",)), "q": package_source("q", space="t", releaseName="r")}
    verdict = cozystack_packages.decide(item, sources["p"], {"p": item, "q": below}, sources)
    assert verdict.releases is not None
    spec = verdict.releases[0]["spec"]
    assert spec["dependsOn"] == [{"name": "r", "namespace": "t"}]
    assert spec["values"] == {"a": 1}
    assert spec["chartRef"]["name"] == "p-default-c"


def test_monitor_counts_what_it_selects() -> None:
    """Ready pods of its namespace with its labels; fewer than the least is not operational."""
    monitor = {
        "metadata": {"name": "m", "namespace": "s", "uid": "1"},
        "spec": {"selector": {"a": "b"}, "minReplicas": 2},
    }

    def pod(status: str, space: str = "s") -> Object:
        rows = [{"type": "Ready", "status": status}]
        return {"metadata": {"namespace": space, "labels": {"a": "b"}}, "status": {"conditions": rows}}

    pods = cozystack_workloads.seen(monitor, [pod("True"), pod("False"), pod("True", "else")])
    told = {"observedReplicas": 2, "availableReplicas": 1, "operational": False}
    assert cozystack_workloads.counted(monitor, pods) == told


TENANTS = "/apis/apps.cozystack.io/v1alpha1/namespaces"


async def tenant_in(made: Living, space: str, name: str, **spec: Any) -> None:
    """A tenant below another."""
    await made.make(f"{TENANTS}/{space}/tenants", "apps.cozystack.io/v1alpha1", "Tenant", name, spec=spec)


def test_tenants_appear_and_go() -> None:
    """Namespace, labels of all ancestors, policies; the outer one takes the inner one with it."""

    async def told() -> None:
        async with living() as made:
            await tenant_in(made, "tenant-root", "blue")
            await made.until("/api/v1/namespaces/tenant-blue", bool)
            await made.until(f"{TENANTS}/tenant-root/tenants/blue", lambda item: row(item).get("status") == "True")
            await tenant_in(made, "tenant-blue", "sky")
            space = await made.until("/api/v1/namespaces/tenant-blue-sky", bool)
            above = {name for name in space["metadata"]["labels"] if name.startswith("tenant.cozystack.io/")}
            assert above == {f"tenant.cozystack.io/tenant-{name}" for name in ("root", "blue", "blue-sky")}
            wide = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies"
            await made.until(f"{wide}/tenant-blue-sky-egress", bool)
            own = await made.client.list("/apis/cilium.io/v2/namespaces/tenant-blue/ciliumnetworkpolicies")
            assert {"allow-internal-communication", "allow-to-dns"} <= {
                item["metadata"]["name"] for item in own["items"]
            }
            await made.client.delete(f"{TENANTS}/tenant-root/tenants/blue")
            for gone in ("/api/v1/namespaces/tenant-blue-sky", "/api/v1/namespaces/tenant-blue"):
                await made.gone(gone)
            for name in ("tenant-blue-egress", "tenant-blue-sky-egress"):
                await made.gone(f"{wide}/{name}")

    story(told)


def test_package_brings_a_provider() -> None:
    """From the source to the artifact, the release, the operator, and a manager that runs."""

    async def told() -> None:
        async with living() as made:
            name = "example.proxmox"
            part = {"name": "capi-providers-proxmox", "path": "system/capi-providers-proxmox",
                    "install": {"namespace": "cozy-cluster-api"}}  # fmt: skip
            reference = {"kind": "OCIRepository", "name": "cozystack-packages", "namespace": "cozy-system", "path": "/"}
            group = "cozystack.io/v1alpha1"
            await made.make(f"/apis/{group}/packages", group, "Package", name, spec={"variant": "default"})
            path = f"/apis/{group}/packages/{name}"
            await made.until(path, because("PackageSourceNotFound"))
            variants = [{"name": "default", "components": [part], "dependsOn": ["cozystack.capi-operator"]}]
            spec = {"sourceRef": reference, "variants": variants}
            await made.make(f"/apis/{group}/packagesources", group, "PackageSource", name, spec=spec)
            await made.until(path, because("ReconciliationSucceeded"))
            provider_path = f"{OPERATOR}/cozy-cluster-api/infrastructureproviders/proxmox"
            await made.until(provider_path, lambda item: row(item).get("status") == "True")
            await made.client.delete(path)
            await made.gone(provider_path)

    story(told)


def test_monitor_shows_its_pods_as_workloads() -> None:
    """Each pod of the selector is a Workload, and the monitor counts them."""

    async def told() -> None:
        async with living() as made:
            group = "cozystack.io/v1alpha1"
            spec = {"selector": {"app.kubernetes.io/name": "etcd"}, "kind": "etcd", "type": "etcd", "minReplicas": 2}
            path = f"/apis/{group}/namespaces/tenant-root/workloadmonitors"
            await made.make(path, group, "WorkloadMonitor", "own", spec=spec)
            item = await made.until(f"{path}/own", lambda item: (item.get("status") or {}).get("operational"))
            assert item["status"]["availableReplicas"] == 3
            shown = (await made.client.list(f"/apis/{group}/namespaces/tenant-root/workloads"))["items"]
            assert {entry["metadata"]["name"] for entry in shown} == {f"pod-etcd-{number}" for number in range(3)}

    story(told)


@pytest.mark.parametrize("flavour", ["cozystack-1.6", "cozystack-0.41", "capi-v1beta2"])
def test_settled_platform_is_left_alone(flavour: str) -> None:
    """Providers, releases, packages, sources and monitors of a seeded cluster are not written at start."""
    kept = (
        "operator.cluster.x-k8s.io",
        "toolkit.fluxcd.io",
        "cozystack.io",
        "cert-manager.io",
        "admissionregistration",
    )

    async def told() -> None:
        async with living(flavour=flavour) as made:
            before = versions(made.cluster, kept)
            await asyncio.sleep(1.0)
            assert versions(made.cluster, kept) == before

    def versions(cluster: Cluster, groups: tuple[str, ...]) -> dict[Any, str]:
        return {
            (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]): item["metadata"][
                "resourceVersion"
            ]
            for kind in cluster.registry.order
            if any(group in kind.group for group in groups) and "view" not in kind.extras
            for item in cluster.each(kind.bucket)
        }

    story(told)
