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
from runbook_lib.lab.kubernetes.charts import cluster_api
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import Handles, cert_manager, installing, internet, start_all
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
    assert rules.preflight(provider(), [CORE]) is None


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
