"""Clients no one here wrote, against the lab's API server: the official Python client and kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from runbook_lib.lab.kubernetes.cluster import Cluster
from tests.lab.kubernetes_server import Server, serve

Kubectl = Callable[..., subprocess.CompletedProcess[str]]
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "probe", "labels": {"app": "probe"}},
    "spec": {"containers": [{"name": "main", "image": "registry.test/probe:1"}], "restartPolicy": "Never"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server over TLS whose pods answer logs and exec."""
    cluster = Cluster()
    cluster.pod_log = lambda namespace, name, options: f"{namespace}/{name} {options['container']}\n"
    cluster.pod_exec = lambda namespace, name, command, container: (" ".join(command) + "\n", "", 0)
    with serve(tmp_path_factory.mktemp("kubernetes"), cluster) as found:
        yield found


@pytest.fixture(scope="module")
def api(server: Server) -> client.ApiClient:
    """The official client of the administrator."""
    return config.new_client_from_config(str(server.kubeconfig))


@pytest.fixture(scope="module")
def kubectl(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """Runs kubectl from the virtual environment (or the path)."""
    binary = Path(sys.executable).parent / "kubectl"
    found = str(binary) if binary.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl here")
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: str, given: Any = None) -> subprocess.CompletedProcess[str]:
        command = [found, "--kubeconfig", str(server.kubeconfig), "--cache-dir", str(cache), *arguments]
        text = given if isinstance(given, str) or given is None else json.dumps(given)
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)

    return run


def running(core: client.CoreV1Api, namespace: str, name: str) -> None:
    """Does what a scheduler and a kubelet do for one pod."""
    core.create_namespaced_binding(
        namespace,
        {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}},
        _preload_content=False,
    )
    state = {"name": "main", "ready": True, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}}
    core.patch_namespaced_pod_status(name, namespace, {"status": {"phase": "Running", "containerStatuses": [state]}})


def test_typed_client_creates_reads_and_deletes(api: client.ApiClient) -> None:
    """A ConfigMap and a Secret live through the typed API."""
    core = client.CoreV1Api(api)
    core.create_namespaced_secret("default", {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    assert core.read_namespaced_secret("s", "default").data == {"a": "Yg=="}
    core.delete_namespaced_secret("s", "default")
    with pytest.raises(ApiException) as refused:
        core.read_namespaced_secret("s", "default")
    assert json.loads(refused.value.body)["message"] == 'secrets "s" not found'


def test_list_is_paged(api: client.ApiClient) -> None:
    """limit and continue walk over every item once."""
    core = client.CoreV1Api(api)
    for number in range(5):
        core.create_namespaced_config_map("kube-public", {"metadata": {"name": f"page-{number}"}})
    first = core.list_namespaced_config_map("kube-public", limit=4)
    rest = core.list_namespaced_config_map("kube-public", limit=4, _continue=first.metadata._continue)
    names = [item.metadata.name for item in first.items + rest.items]
    assert len(names) == len(set(names)) == 6
    assert rest.metadata._continue is None


def test_watch_sees_every_change(api: client.ApiClient) -> None:
    """A watch from a list's version reports what happens after it, in order."""
    core = client.CoreV1Api(api)
    version = core.list_namespaced_config_map("default").metadata.resource_version

    def act() -> None:
        core.create_namespaced_config_map("default", {"metadata": {"name": "seen"}})
        core.patch_namespaced_config_map("seen", "default", {"data": {"a": "1"}})
        core.delete_namespaced_config_map("seen", "default")

    threading.Thread(target=act).start()
    found = []
    stream_ = watch.Watch().stream(
        core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=5
    )
    for event in stream_:
        found.append(event["type"])
        if event["type"] == "DELETED":
            break
    assert found == ["ADDED", "MODIFIED", "DELETED"]


def test_expired_version_answers_410(server: Server, api: client.ApiClient) -> None:
    """A watch older than the history gets an ERROR event of code 410, as the client expects it."""
    server.cluster.store.compact()
    core = client.CoreV1Api(api)
    with pytest.raises(ApiException) as refused:
        list(watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version="1", timeout_seconds=2))
    assert refused.value.status == 410


def test_dynamic_client_finds_custom_kinds(api: client.ApiClient) -> None:
    """A CRD is served, defaulted and validated as soon as it exists."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "maximum": 9},
                    "color": {"type": "string", "default": "red"},
                },
            }
        },
    }
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.lab.test"},
        "spec": {
            "group": "lab.test",
            "scope": "Namespaced",
            "names": {"plural": "gadgets", "kind": "Gadget"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }
    client.ApiextensionsV1Api(api).create_custom_resource_definition(definition)
    gadgets = dynamic.DynamicClient(api).resources.get(api_version="lab.test/v1", kind="Gadget")
    body = {"apiVersion": "lab.test/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": 1, "odd": 1}}
    made = gadgets.create(body=body, namespace="default")
    assert made.spec.to_dict() == {"size": 1, "color": "red"}
    with pytest.raises(ApiException) as refused:
        gadgets.create(body=body | {"metadata": {"name": "h"}, "spec": {"size": 10}}, namespace="default")
    assert "spec.size in body should be less than or equal to 9" in str(refused.value.body)


def test_access_reviews_follow_rbac(server: Server, api: client.ApiClient) -> None:
    """A rules review and an access review tell a plain user what the roles say."""
    role = {"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}
    rbac = client.RbacAuthorizationV1Api(api)
    rbac.create_namespaced_role("default", role)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subjects = [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}]
    rbac.create_namespaced_role_binding(
        "default", {"metadata": {"name": "reader"}, "roleRef": reference, "subjects": subjects}
    )
    settings = client.Configuration(host=server.url)
    settings.ssl_ca_cert = str(server.ca_file)
    settings.api_key = {"authorization": "Bearer bob-token"}
    reviews = client.AuthorizationV1Api(client.ApiClient(settings))

    def may(verb: str) -> bool:
        spec = {"resourceAttributes": {"namespace": "default", "verb": verb, "resource": "pods"}}
        return bool(reviews.create_self_subject_access_review({"spec": spec}).status.allowed)

    assert may("get") and not may("delete")
    rules = reviews.create_self_subject_rules_review({"spec": {"namespace": "default"}}).status.resource_rules
    assert any(rule.resources == ["pods"] and rule.verbs == ["get"] for rule in rules)


def test_service_account_token_is_accepted(server: Server, api: client.ApiClient) -> None:
    """A token from TokenRequest authenticates as its service account."""
    spec = {"spec": {"expirationSeconds": 600}}
    token = client.CoreV1Api(api).create_namespaced_service_account_token("default", "default", spec).status.token
    settings = client.Configuration(host=server.url)
    settings.ssl_ca_cert = str(server.ca_file)
    settings.api_key = {"authorization": f"Bearer {token}"}
    who = client.AuthenticationV1Api(client.ApiClient(settings)).create_self_subject_review({})
    assert who.status.user_info.username == "system:serviceaccount:default:default"


def test_exec_speaks_websocket(api: client.ApiClient) -> None:
    """The client's stream() runs a command in a pod."""
    core = client.CoreV1Api(api)
    core.create_namespaced_pod("kube-public", POD)
    running(core, "kube-public", "probe")
    said = stream(
        core.connect_get_namespaced_pod_exec,
        "probe",
        "kube-public",
        command=["echo", "hello"],
        stdout=True,
        stderr=True,
    )
    assert said == "echo hello\n"
    assert core.read_namespaced_pod_log("probe", "kube-public") == "kube-public/probe main\n"


def test_kubectl_applies_on_both_sides(kubectl: Kubectl) -> None:
    """Client-side and server-side apply create, then configure, then leave alone."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "both"}, "data": {"a": "1"}}
    for flags in (("--server-side",), ()):
        kubectl("delete", "configmap", "both", "--ignore-not-found")
        assert "both" in kubectl("apply", *flags, "-f", "-", given=body).stdout
        changed = kubectl("apply", *flags, "-f", "-", given=body | {"data": {"b": "2"}})
        assert changed.returncode == 0, changed.stderr
        assert json.loads(kubectl("get", "cm", "both", "-o", "json").stdout)["data"] == {"b": "2"}


def test_kubectl_conflict_names_the_owner(kubectl: Kubectl) -> None:
    """Server-side apply by a second manager is refused with the first one's name."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned"}, "data": {"a": "1"}}
    kubectl("apply", "--server-side", "--field-manager=first", "-f", "-", given=body)
    refused = kubectl("apply", "--server-side", "--field-manager=second", "-f", "-", given=body | {"data": {"a": "2"}})
    assert 'conflict with "first": .data.a' in refused.stderr
    forced = kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=second", "-f", "-",
        given=body | {"data": {"a": "2"}},
    )  # fmt: skip
    assert forced.returncode == 0, forced.stderr


def test_kubectl_refuses_unknown_fields(kubectl: Kubectl) -> None:
    """Strict validation names the field that does not exist."""
    body = POD | {"metadata": {"name": "odd"}, "spec": POD["spec"] | {"containerz": []}}  # type: ignore[operator]
    refused = kubectl("apply", "-f", "-", given=body)
    assert 'unknown field "spec.containerz"' in refused.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("get", "namespaces"), "kube-system"),
        (("get", "namespaces", "-o", "wide"), "STATUS"),
        (("get", "ns", "default", "-o", "yaml"), "kubernetes.io/metadata.name: default"),
        (("explain", "pod.spec.containers.image"), "Container image name"),
        (("explain", "deployment.spec.strategy"), "rollingUpdate"),
        (("auth", "can-i", "create", "pods"), "yes"),
        (("auth", "can-i", "--list"), "selfsubjectreviews"),
        (("auth", "whoami"), "system:masters"),
        (("create", "token", "default"), "ey"),
        (("api-resources",), "customresourcedefinitions"),
        (("version",), "Server Version: v1.36.2"),
        (("describe", "namespace", "default"), "Status:"),
        (("get", "--raw", "/readyz?verbose"), "readyz check passed"),
        (("wait", "--for=jsonpath={.status.phase}=Active", "ns/default", "--timeout=5s"), "condition met"),
    ],
)
def test_kubectl_reads(kubectl: Kubectl, command: tuple[str, ...], said: str) -> None:
    """kubectl's reading commands work and print what they print elsewhere."""
    done = kubectl(*command)
    assert said in done.stdout, done.stderr


def test_kubectl_logs_and_deletes(kubectl: Kubectl, api: client.ApiClient) -> None:
    """A pod's log is read and its namespace goes with everything in it."""
    assert kubectl("create", "namespace", "work").returncode == 0
    assert kubectl("create", "quota", "small", "--hard=pods=1", "-n", "work").returncode == 0
    assert kubectl("apply", "-n", "work", "-f", "-", given=POD).returncode == 0
    refused = kubectl("apply", "-n", "work", "-f", "-", given=POD | {"metadata": {"name": "more"}})
    assert "exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1" in refused.stderr
    core = client.CoreV1Api(api)
    running(core, "work", "probe")
    assert kubectl("logs", "probe", "-n", "work").stdout == "work/probe main\n"
    assert kubectl("exec", "probe", "-n", "work", "--", "id", "-u").stdout == "id -u\n"
    assert "1/1     Running" in kubectl("get", "pods", "-n", "work").stdout
    kubectl("delete", "namespace", "work", "--wait=false")
    waiting = core.read_namespaced_pod("probe", "work")
    assert waiting.metadata.deletion_timestamp is not None
    core.delete_namespaced_pod("probe", "work", grace_period_seconds=0)
    assert kubectl("get", "namespace", "work").returncode == 1


def test_kubectl_diff_changes_nothing(kubectl: Kubectl) -> None:
    """A diff shows the change and dry-runs it."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "diffed"}, "data": {"a": "1"}}
    kubectl("apply", "-f", "-", given=body)
    shown = kubectl("diff", "-f", "-", given=body | {"data": {"a": "2"}})
    assert '+  a: "2"' in shown.stdout
    assert json.loads(kubectl("get", "cm", "diffed", "-o", "json").stdout)["data"] == {"a": "1"}


def test_kubectl_rolls_scales_and_drains(kubectl: Kubectl, api: client.ApiClient) -> None:
    """A rollout is followed, a workload scaled, and a node cordoned and emptied by eviction."""
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}
    assert kubectl("apply", "-f", "-", given=body).returncode == 0
    assert "scaled" in kubectl("scale", "deployment/web", "--replicas=3").stdout
    assert kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}").stdout == "3"
    assert "image updated" in kubectl("set", "image", "deployment/web", "c=i:2").stdout
    status = {"observedGeneration": 3, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3, "availableReplicas": 3}
    client.AppsV1Api(api).patch_namespaced_deployment_status("web", "default", {"status": status})
    followed = kubectl("rollout", "status", "deployment/web", "--timeout=5s")
    assert "successfully rolled out" in followed.stdout, followed.stderr
    core = client.CoreV1Api(api)
    core.create_node({"metadata": {"name": "drained"}})
    core.create_namespaced_pod("default", POD | {"metadata": {"name": "leaves"}})
    target = {"apiVersion": "v1", "kind": "Node", "name": "drained"}
    binding = {"metadata": {"name": "leaves"}, "target": target}
    core.create_namespaced_binding("default", binding, _preload_content=False)
    drained = kubectl("drain", "drained", "--force", "--ignore-daemonsets", "--grace-period=0", "--timeout=10s")
    assert "node/drained drained" in drained.stdout, drained.stderr
    assert "SchedulingDisabled" in kubectl("get", "node", "drained").stdout
