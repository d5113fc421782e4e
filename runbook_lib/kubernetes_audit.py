"""What an audit reads of Kubernetes: plain secrets, powers of accounts, namespaces, images, answers to strangers."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from runbook_lib import errors, wire
from runbook_lib.audit import (
    AnonymousAnswer,
    Denial,
    ImageUse,
    PlainSecret,
    Power,
    ServerFlags,
    Space,
)
from runbook_lib.kubernetes_reading import Object, Reader
from runbook_lib.kubernetes_session import Kubernetes

RBAC = "/apis/rbac.authorization.k8s.io/v1"
PLATFORM, TENANT, OTHER, OUTSIDE = "platform", "tenant", "other", "outside"
SYSTEM_LABEL, TENANT_LABEL = "cozystack.io/system", "tenant.cozystack.io/"
ENFORCE = "pod-security.kubernetes.io/enforce"
OF_KUBERNETES = {"kube-system", "kube-public", "kube-node-lease"}
TENANTS_AT_MOST = 20


def places(k8s: Reader, own: Iterable[str] = ()) -> dict[str, str]:
    """Whose each namespace is: the platform's, a tenant's, or some other's. `own` are those of the integration."""
    ours = {*OF_KUBERNETES, *own}
    return {
        entry["metadata"]["name"]: _place(entry["metadata"], ours)
        for entry in sorted(k8s.list("/api/v1/namespaces"), key=lambda entry: str(entry["metadata"]["name"]))
    }


def _place(metadata: Mapping[str, Any], ours: set[str]) -> str:
    labels = metadata.get("labels") or {}
    if metadata["name"] in ours or labels.get(SYSTEM_LABEL) == "true":
        return PLATFORM
    return TENANT if any(key.startswith(TENANT_LABEL) for key in labels) else OTHER


# --- secrets in plain sight --------------------------------------------------------------------------

_LAST_WORD = re.compile(
    r"(?:^|[._-]|(?<=[a-z0-9])(?=[A-Z]))(password|passwd|passphrase|secret|token|apikey|api_key|api-key|accesskey|"
    r"access_key|access-key|secretkey|secret_key|secret-key|privatekey|private_key|private-key|credentials?)\Z",
    re.IGNORECASE,
)
_SHAPES = (
    ("a private key in PEM", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    ("a token of Proxmox VE", re.compile(r"PVEAPIToken=\S+?![\w.-]+=[0-9a-f-]{36}")),
    ("a JSON Web Token", re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")),
    ("a bootstrap token", re.compile(r"(?<![\w.-])[a-z0-9]{6}\.(?=[a-z]{0,15}[0-9])[a-z0-9]{16}(?![\w.-])")),
)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_NOT_A_VALUE = re.compile(
    r"\A\s*(?:\$[({].*[)}]|\{\{.*\}\}|<.*>|\*+|(?:true|false|null|none|changeme)?)\s*\Z", re.I | re.S
)
_SHORTEST, _LIKE_CHANCE = 4, 3.0


def plain_secrets(k8s: Reader) -> list[PlainSecret]:
    """Places in HelmReleases, Packages, ConfigMaps and pod templates that look as if they held a secret.

    Judged by name and by shape; the value goes nowhere. References (`…SecretName`, `valueFrom`) are what belongs there.
    """
    rows: set[PlainSecret] = set()
    for kind, entry, where, values in _readable(k8s):
        metadata = entry["metadata"]
        for key, why in _suspects(values, where):
            rows.add(PlainSecret(kind, metadata.get("namespace", ""), metadata["name"], key, why))
    return sorted(rows, key=lambda row: (row.kind, row.namespace, row.name, row.key))


def _readable(k8s: Reader) -> Iterator[tuple[str, Object, str, Any]]:
    base = k8s.group("helm.toolkit.fluxcd.io")
    for entry in k8s.list(f"{base}/helmreleases") if base else ():
        yield "HelmRelease", entry, "values", (entry.get("spec") or {}).get("values") or {}
    for entry in k8s.list("/apis/cozystack.io/v1alpha1/packages"):
        yield "Package", entry, "components", (entry.get("spec") or {}).get("components") or {}
    for entry in k8s.list("/api/v1/configmaps"):
        yield "ConfigMap", entry, "data", entry.get("data") or {}
    for kind in ("deployments", "daemonsets", "statefulsets"):
        for entry in k8s.list(f"/apis/apps/v1/{kind}"):
            spec = entry["spec"]["template"]["spec"]
            for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
                told = {row["name"]: row["value"] for row in container.get("env") or () if row.get("value")}
                yield kind[:-1].title().replace("set", "Set"), entry, f"{container['name']}.env", told


def _suspects(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _suspects(inner, f"{where}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from _suspects(inner, f"{where}[{number}]")
    elif isinstance(value, str):
        inner = _written_in(where, value)
        if inner is not None:
            yield from _suspects(inner, where)
        why = _why_suspect(where, value)
        if why:
            yield where, why


_DOCUMENT = re.compile(r"\.(?:values[\w-]*|[^.\[]*\.(?:ya?ml|json))\Z")
_ALIAS = re.compile(r"(?:^|[\s:\[,-])[&*][\w-]", re.M)
_LARGEST = 256 * 1024


def _written_in(where: str, text: str) -> Any:
    """The maps and lists within a text that is YAML by its key, as CozyStack 0.x keeps values; None of any other."""
    if not _DOCUMENT.search(where) or len(text) > _LARGEST or _ALIAS.search(text):
        return None  # aliases may unfold without end
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, Mapping | list) else None


def _why_suspect(where: str, text: str) -> str:
    for why, shape in _SHAPES:
        if shape.search(text):
            return why
    named = _LAST_WORD.search(where)
    if named is None or _NOT_A_VALUE.match(text) or len(text) < _SHORTEST or "\n" in text.strip():
        return ""
    word = named[1].lower()
    # under "secret" or "token" a short plain word is most often the name of a Secret; a password may be anything
    if word.startswith("pass") or _UUID.fullmatch(text) or _by_chance(text):
        return f"a value named {named[1]}"
    return ""


def _by_chance(text: str) -> bool:
    """Whether a text looks drawn by lot: long, mixed, and of many different characters."""
    if len(text) < 16 or not re.fullmatch(r"[\w+/=.~-]+", text) or not re.search(r"\d", text):
        return False
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values()) >= _LIKE_CHANCE


# --- who may do what ---------------------------------------------------------------------------------

_OF_CLUSTER = re.compile(r"system:(?!authenticated|unauthenticated|anonymous|serviceaccounts)")
_PUBLIC_ROLES = {"system:public-info-viewer", "system:discovery", "system:basic-user"}
_READING = {"get", "list", "watch", "*"}


def powers(k8s: Reader, where: Mapping[str, str]) -> list[Power]:
    """Subjects with a power over the whole cluster that an attacker would want, but for Kubernetes' own.

    `where` is what `places` tells. A service account of a namespace that is gone counts as some other's.
    """
    roles = {entry["metadata"]["name"]: entry.get("rules") or [] for entry in k8s.list(f"{RBAC}/clusterroles")}
    rows = []
    for entry in k8s.list(f"{RBAC}/clusterrolebindings"):
        role = entry["roleRef"]["name"]
        held = _powers(roles.get(role, []))
        for subject in entry.get("subjects") or []:
            kind, name = subject["kind"], subject["name"]
            everybody = name in {
                "system:anonymous",
                "system:unauthenticated",
                "system:authenticated",
                "system:serviceaccounts",
            }
            if everybody and role not in _PUBLIC_ROLES and role != "system:service-account-issuer-discovery":
                held_here = held or ("holds a role that is bound to everybody",)
            elif not held or everybody or _OF_CLUSTER.match(name) or subject.get("namespace") == "kube-system":
                continue
            else:
                held_here = held
            namespace = subject.get("namespace", "")
            place = where.get(namespace, OTHER) if kind == "ServiceAccount" else OUTSIDE
            rows.append(Power(kind, namespace, name, entry["metadata"]["name"], role, held_here, place))
    return sorted(rows, key=lambda row: (row.kind, row.namespace, row.name, row.binding))


def _powers(rules: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    found = {power: None for rule in rules for power in _of_rule(rule)}
    return ("everything",) if "everything" in found else tuple(found)


def _of_rule(rule: Mapping[str, Any]) -> Iterator[str]:
    groups, verbs = set(rule.get("apiGroups") or ()), set(rule.get("verbs") or ())
    resources = set(rule.get("resources") or ())
    if rule.get("resourceNames"):
        return  # single things, named
    core, access = bool(groups & {"", "*"}), bool(groups & {"rbac.authorization.k8s.io", "*"})
    if "*" in groups and "*" in resources and "*" in verbs:
        yield "everything"
    if core and resources & {"secrets", "*"} and verbs & _READING:
        yield "reads every Secret"
    if core and resources & {"pods/exec", "pods/attach", "*"} and verbs & {"create", "get", "*"}:
        yield "runs commands in every pod"
    if core and resources & {"nodes/proxy", "*"} and verbs & {"get", "create", "*"}:
        yield "talks to every kubelet"
    if core and resources & {"serviceaccounts/token", "*"} and verbs & {"create", "*"}:
        yield "makes tokens of every account"
    if access and resources & {"clusterroles", "roles", "*"} and verbs & {"escalate", "bind", "*"}:
        yield "gives itself any role"
    if core and resources & {"users", "groups", "serviceaccounts", "*"} and verbs & {"impersonate", "*"}:
        yield "acts as anyone"


# --- namespaces and their pods -----------------------------------------------------------------------

_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def spaces(k8s: Kubernetes, where: Mapping[str, str]) -> list[Space]:
    """Every namespace with what its pods may do to the host; tenants are tried with a privileged pod as a dry run."""
    levels = {
        entry["metadata"]["name"]: (entry["metadata"].get("labels") or {}).get(ENFORCE, "")
        for entry in k8s.list("/api/v1/namespaces")
    }
    accounts = {
        (entry["metadata"]["namespace"], entry["metadata"]["name"]): entry.get("automountServiceAccountToken", True)
        for entry in k8s.list("/api/v1/serviceaccounts")
    }
    pods: dict[str, list[Object]] = defaultdict(list)
    for entry in k8s.list("/api/v1/pods"):
        pods[entry["metadata"]["namespace"]].append(entry)
    tenants = [name for name, place in where.items() if place == TENANT][:TENANTS_AT_MOST]
    tried = {name: _privileged_refused(k8s, name) for name in tenants}
    return [
        _space(name, place, levels.get(name, ""), tried.get(name, (None, "")), pods[name], accounts)
        for name, place in where.items()
    ]


def _space(
    name: str,
    place: str,
    level: str,
    tried: tuple[bool | None, str],
    pods: Sequence[Object],
    accounts: Mapping[tuple[str, str], bool],
) -> Space:
    mounted = [pod for pod in pods if _has_token(pod, accounts)]
    return Space(
        name=name,
        place=place,
        level=level,
        privileged_refused=tried[0],
        note=tried[1],
        pods=len(pods),
        privileged=_names(pod for pod in pods if any(map(_is_privileged, _containers(pod)))),
        host_namespaces=_names(pod for pod in pods if any(pod["spec"].get(key) for key in _HOST)),
        host_paths=tuple(sorted(f"{pod['metadata']['name']}: {path}" for pod in pods for path in _host_paths(pod))),
        with_token=len(mounted),
        with_default_account=sum(pod["spec"].get("serviceAccountName", "default") == "default" for pod in mounted),
    )


_HOST = ("hostNetwork", "hostPID", "hostIPC")


def _containers(pod: Object) -> list[Object]:
    spec = pod["spec"]
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _is_privileged(container: Object) -> bool:
    return bool((container.get("securityContext") or {}).get("privileged"))


def _names(pods: Iterable[Object]) -> tuple[str, ...]:
    return tuple(sorted(str(pod["metadata"]["name"]) for pod in pods))


def _host_paths(pod: Object) -> list[str]:
    return [str(row["hostPath"]["path"]) for row in pod["spec"].get("volumes") or () if "hostPath" in row]


def _has_token(pod: Object, accounts: Mapping[tuple[str, str], bool]) -> bool:
    spec = pod["spec"]
    own = spec.get("automountServiceAccountToken")
    if own is None:
        own = accounts.get((pod["metadata"]["namespace"], spec.get("serviceAccountName") or "default"), True)
    return bool(own)


PRIVILEGED_POD: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "runbook-audit"},
    "spec": {
        "hostPID": True,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "audit",
                "image": "registry.k8s.io/pause:3.10",
                "securityContext": {"privileged": True},
                "resources": {
                    "requests": {"cpu": "1m", "memory": "8Mi"},
                    "limits": {"cpu": "10m", "memory": "16Mi"},  # quotas ask for both
                },
            }
        ],
    },
}


def _privileged_refused(k8s: Kubernetes, namespace: str) -> tuple[bool | None, str]:
    """Whether admission refuses a privileged pod there, by a dry run, which leaves nothing behind."""
    pod = copy.deepcopy(PRIVILEGED_POD)
    try:
        k8s.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=pod, dryRun="All")
    except errors.ApiError as error:
        text = f"{error.came} {error.reason}"
        if "PodSecurity" in text or "denied the request" in text:
            return True, error.came or error.reason
        return None, error.came or str(error)
    return False, "accepted by a dry run"


# --- images ------------------------------------------------------------------------------------------


def images(k8s: Reader, where: Mapping[str, str]) -> list[ImageUse]:
    """Every image that pods name, with how many do; by place, then by name."""
    uses: Counter[tuple[str, str]] = Counter()
    for pod in k8s.list("/api/v1/pods"):
        place = where.get(pod["metadata"]["namespace"], OTHER)
        uses.update({(place, str(container["image"])) for container in _containers(pod)})
    return [_image(place, image, count) for (place, image), count in sorted(uses.items())]


def _image(place: str, image: str, count: int) -> ImageUse:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return ImageUse(image, tag or ("" if digest else "latest"), bool(digest), count, place)


# --- policies ----------------------------------------------------------------------------------------


def denials(k8s: Reader, where: Mapping[str, str]) -> list[Denial]:
    """Each tenant with the policies that choose all of its pods, by direction. Ports and peers are not weighed here."""
    found: dict[str, tuple[list[str], list[str]]] = {n: ([], []) for n, place in where.items() if place == TENANT}
    for entry in k8s.list("/apis/networking.k8s.io/v1/networkpolicies"):
        space, spec = entry["metadata"]["namespace"], entry.get("spec") or {}
        if space in found and not any((spec.get("podSelector") or {}).values()):
            types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
            _note(found[space], entry["metadata"]["name"], "Ingress" in types, "Egress" in types)
    for path in ("ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies"):
        for entry in k8s.list(f"/apis/cilium.io/v2/{path}"):
            for spec in [entry["spec"]] if entry.get("spec") else entry.get("specs") or []:
                for space in _chosen(entry, spec, found):
                    ways = [any(key in spec for key in (way, f"{way}Deny")) for way in ("ingress", "egress")]
                    _note(found[space], entry["metadata"]["name"], *ways)
    return [Denial(name, tuple(sorted(ways[0])), tuple(sorted(ways[1]))) for name, ways in sorted(found.items())]


def _note(ways: tuple[list[str], list[str]], name: str, ingress: bool, egress: bool) -> None:
    if ingress:
        ways[0].append(name)
    if egress:
        ways[1].append(name)


_NAMESPACE_LABELS = ("k8s:io.kubernetes.pod.namespace", "io.kubernetes.pod.namespace")


def _chosen(entry: Object, spec: Mapping[str, Any], tenants: Mapping[str, Any]) -> list[str]:
    """The tenants whose every pod the policy's endpoint selector takes."""
    selector = spec.get("endpointSelector")
    if selector is None or selector.get("matchExpressions"):
        return []
    labels = dict(selector.get("matchLabels") or {})
    space = entry["metadata"].get("namespace") or next((labels.pop(k) for k in _NAMESPACE_LABELS if k in labels), None)
    if labels:
        return []
    return list(tenants) if space is None else [space] if space in tenants else []


# --- the API server ----------------------------------------------------------------------------------

_ASKED = (
    ("/healthz", True),
    ("/version", True),
    ("/api", False),
    ("/api/v1/namespaces", False),
    ("/api/v1/secrets", False),
    ("/api/v1/nodes", False),
    ("/metrics", False),
)


def anonymous_answers(k8s: Kubernetes) -> list[AnonymousAnswer]:
    """What the API server answers to someone without token or certificate, over the same trust."""
    from kubernetes import client

    configuration, ours = client.Configuration(), k8s.api_client.configuration
    for name in ("host", "verify_ssl", "ssl_ca_cert", "proxy", "tls_server_name"):
        setattr(configuration, name, getattr(ours, name, None))
    configuration.api_key, configuration.retries = {}, False
    stranger_wire = wire.Wire("kubernetes", timeout=k8s.timeout)
    api_client = client.ApiClient(configuration)
    wire.attach_kubernetes(stranger_wire, api_client)
    stranger = Kubernetes(api_client, stranger_wire, timeout=k8s.timeout)
    return [AnonymousAnswer(path, _status(stranger, path), public) for path, public in _ASKED]


def _status(k8s: Kubernetes, path: str) -> int:
    try:
        k8s.get(path)
    except errors.BadAnswer:
        return 200  # it answered with text
    except errors.ApiError as error:
        return error.status
    return 200


def server_flags(k8s: Reader) -> list[ServerFlags]:
    """What the API servers were started with, where their pods tell; none where they are no pods."""
    rows = []
    for pod in k8s.list("/api/v1/namespaces/kube-system/pods"):
        metadata = pod["metadata"]
        labels = metadata.get("labels") or {}
        if "kube-apiserver" not in {labels.get("component"), labels.get("k8s-app")}:
            continue
        words = [str(w) for c in _containers(pod) for w in (*(c.get("command") or ()), *(c.get("args") or ()))]
        pairs = (word.removeprefix("--").partition("=") for word in words if word.startswith("--"))
        flags = {key: value for key, _, value in pairs}
        if flags:
            rows.append(ServerFlags(metadata["name"], flags))
    return sorted(rows, key=lambda row: row.pod)
