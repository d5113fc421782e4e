"""How the Cluster API operator judges: preflight, versions, contracts, variables. Objects in, words out; no HTTP."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..charts import cluster_api
from .client import Object
from .installing import is_true, selected, without

KINDS = {
    "CoreProvider": "coreproviders", "BootstrapProvider": "bootstrapproviders",
    "ControlPlaneProvider": "controlplaneproviders", "InfrastructureProvider": "infrastructureproviders",
    "IPAMProvider": "ipamproviders", "AddonProvider": "addonproviders",
    "RuntimeExtensionProvider": "runtimeextensionproviders",
}  # fmt: skip
LABELS = {
    "CoreProvider": "", "BootstrapProvider": "bootstrap-", "ControlPlaneProvider": "control-plane-",
    "InfrastructureProvider": "infrastructure-", "IPAMProvider": "ipam-", "AddonProvider": "addon-",
    "RuntimeExtensionProvider": "runtime-extension-",
}  # fmt: skip
TYPES = {
    "CoreProvider": "core", "BootstrapProvider": "bootstrap", "ControlPlaneProvider": "controlplane",
    "InfrastructureProvider": "infrastructure", "IPAMProvider": "ipam", "AddonProvider": "addon",
    "RuntimeExtensionProvider": "runtimeextension",
}  # fmt: skip
PREFLIGHT, INSTALLED, UPGRADED, READY = "PreflightCheckPassed", "ProviderInstalled", "ProviderUpgraded", "Ready"
PREFIX = "provider.cluster.x-k8s.io/"
COMPRESSED = PREFIX + "compressed"
_SEMVER = re.compile(r"^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$")
_VARIABLE = re.compile(r"\$\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:(?::=|:-|=|-)([^}]*))?\}")


class Failed(Exception):
    """A phase failed: the condition that turns False, its reason and its message. `quiet` is not an error."""

    def __init__(self, kind: str, reason: str, message: str, *, quiet: bool = False, severity: str = "Error") -> None:
        super().__init__(message)
        self.kind, self.reason, self.message, self.quiet, self.severity = kind, reason, message, quiet, severity


@dataclass(frozen=True)
class Era:
    """What an operator's version makes different."""

    raised: bool

    @property
    def contracts(self) -> frozenset[str]:
        """Contracts of providers that it installs."""
        return frozenset({"v1beta1", "v1beta2"} if self.raised else {"v1alpha4", "v1beta1"})


def era(tag: str) -> Era:
    """The Era of an image's tag; what is not a version counts as the newest."""
    found = parsed(tag)
    return Era(found is None or found[:2] >= (0, 25))


def parsed(version: str) -> tuple[int, int, int, str] | None:
    """The numbers of a semantic version and what follows them, or None."""
    found = _SEMVER.match(version)
    return (int(found[1]), int(found[2]), int(found[3]), (found[4] or "")) if found else None


def label_of(provider: Object) -> str:
    """The value of cluster.x-k8s.io/provider on what the provider is made of."""
    return LABELS[provider["kind"]] + name_of(provider)


def name_of(provider: Object) -> str:
    """The provider's name as clusterctl knows it: metadata.name with the type's words before it taken off."""
    return str(provider["metadata"]["name"]).removeprefix(LABELS[provider["kind"]] or "\0")


def settled(provider: Object) -> bool:
    """Whether what is wished is what was installed, so that nothing is to be done."""
    spec, status = provider.get("spec") or {}, provider.get("status") or {}
    done = status.get("installedVersion") == spec.get("version") and is_true(provider, INSTALLED)
    return bool(done and status.get("observedGeneration") == provider["metadata"].get("generation"))


def preflight(
    provider: Object, everyone: Iterable[Object], secret: Object | None = None, *, asked_secret: bool = False
) -> None:
    """Nothing, or Failed with the words of the check that does not pass."""
    spec, meta, kind = provider.get("spec") or {}, provider["metadata"], provider["kind"]
    if spec.get("version"):
        _check_version(provider, str(spec["version"]))
    if kind == "CoreProvider" and name_of(provider) != "cluster-api":
        words = f"Incorrect CoreProvider name: {name_of(provider)}. It should be cluster-api"
        raise Failed(PREFLIGHT, "IncorrectCoreProviderName", words)
    fetch = spec.get("fetchConfig") or {}
    known = (kind.removesuffix("Provider"), name_of(provider)) in cluster_api.PREDEFINED
    if not known and not any(fetch.get(key) for key in ("selector", "url", "oci")):
        words = "Either Selector, OCI URL or provider URL must be provided for a not predefined provider"
        raise Failed(PREFLIGHT, "FetchConfigValidationError", words)
    if fetch.get("selector") and fetch.get("url"):
        words = "Only one of Selector and URL must be provided, not both"
        raise Failed(PREFLIGHT, "FetchConfigValidationError", words)
    if asked_secret and secret is None:
        reference = spec.get("configSecret") or {}
        words = f'failed to get providers secret: Secret "{reference.get("name", "")}" not found'
        raise Failed("", "", words)
    others = [item for item in everyone if item["metadata"]["uid"] != meta["uid"]]
    for other in others:
        if kind == "CoreProvider" and other["kind"] == "CoreProvider":
            words = "CoreProvider already exists in the cluster. Only one is allowed."
            raise Failed(PREFLIGHT, "MoreThanOneProviderInstanceExists", words)
        if other["kind"] == kind and other["metadata"]["name"] == meta["name"]:
            space = other["metadata"].get("namespace", "")
            words = f"There is already a {meta['name']} with name {space} in the cluster. Only one is allowed."
            raise Failed(PREFLIGHT, "MoreThanOneProviderInstanceExists", words)
    if kind != "CoreProvider" and not any(other["kind"] == "CoreProvider" and is_true(other) for other in others):
        words = "Waiting for the CoreProvider to be installed."
        raise Failed(PREFLIGHT, "WaitingForCoreProviderReady", words, quiet=True, severity="Info")


def _check_version(provider: Object, version: str) -> None:
    wanted = parsed(version)
    if wanted is None:
        raise Failed(PREFLIGHT, "IncorrectVersionFormat", f'could not parse "{version}" as version')
    installed = parsed(str((provider.get("status") or {}).get("installedVersion") or ""))
    if installed is not None and wanted[:2] < installed[:2]:
        # the message keeps its %s: the real one forgets to fill it in
        raise Failed(PREFLIGHT, "UnsupportedProviderDowngrade", "Downgrade is not supported for provider %s")


@dataclass(frozen=True)
class Repository:
    """Versions of a provider, each with its metadata and its components file."""

    files: Mapping[str, tuple[str, str]]
    origin: str = ""

    @property
    def latest(self) -> str:
        """The highest version."""
        return max(self.files, key=lambda version: (parsed(version) or (0, 0, 0, ""))[:3], default="")


def from_config_maps(provider: Object, maps: Iterable[Object], labels: Mapping[str, str]) -> Repository:
    """The repository that ConfigMaps of the provider's namespace make. Raises Failed."""
    space = provider["metadata"]["namespace"]
    found = [
        item
        for item in maps
        if item["metadata"].get("namespace") == space and selected(item["metadata"].get("labels"), labels)
    ]
    if not found:
        shown = "&LabelSelector{MatchLabels:map[string]string{%s},MatchExpressions:[]LabelSelectorRequirement{},}"
        pairs = ",".join(f"{key}: {value}" for key, value in sorted(labels.items())) + ("," if labels else "")
        raise Failed(INSTALLED, "ComponentsFetchError", f"no ConfigMaps found with selector {shown % pairs}")
    files = {}
    for item in sorted(found, key=lambda item: item["metadata"]["name"]):
        meta = item["metadata"]
        name, given = meta["name"], (meta.get("labels") or {}).get(PREFIX + "version")
        version = given or name
        if parsed(version) is None:
            source = f"from the Label {PREFIX}version" if given else "from the Name"
            words = f"ConfigMap {space}/{name} has invalid version:{version} ({source})"
            raise Failed(INSTALLED, "ComponentsFetchError", words)
        if "metadata" not in (item.get("data") or {}):
            raise Failed(INSTALLED, "ComponentsFetchError", f"ConfigMap {space}/{name} has no metadata")
        files[version] = (item["data"]["metadata"], _components(item))
    return Repository(files, "configmap")


def _components(item: Object) -> str:
    place = f"ConfigMap {item['metadata']['namespace']}/{item['metadata']['name']}"
    if (item["metadata"].get("annotations") or {}).get(COMPRESSED) != "true":
        if "components" not in (item.get("data") or {}):
            raise Failed(INSTALLED, "ComponentsFetchError", f"{place} Data has no components")
        return str(item["data"]["components"])
    packed = (item.get("binaryData") or {}).get("components")
    if packed is None:
        raise Failed(INSTALLED, "ComponentsFetchError", f"{place} BinaryData has no components")
    try:
        return gzip.decompress(base64.b64decode(packed)).decode()
    except (ValueError, OSError, EOFError):
        raise Failed(INSTALLED, "ComponentsFetchError", f"cannot decompress data from {place}") from None


def contract_of(provider: Object, repository: Repository, version: str, accepted: frozenset[str]) -> str:
    """The contract that a version of the repository follows. Raises Failed when the operator does not take it."""
    name = provider["metadata"]["name"]

    def refused(words: str) -> Failed:
        return Failed(INSTALLED, "CAPIVersionIncompatibility", words)

    if version not in repository.files:
        words = f'failed to read "metadata.yaml" from the repository for provider "{name}": '
        raise refused(words + f"unable to get files for version {version}")
    try:
        series = (yaml.safe_load(repository.files[version][0]) or {}).get("releaseSeries") or []
    except (yaml.YAMLError, AttributeError) as error:
        raise refused(f'error decoding "metadata.yaml" for provider "{name}": {error}') from None
    numbers = parsed(version)
    row = next((row for row in series if numbers and (row["major"], row["minor"]) == numbers[:2]), None)
    if row is None:
        words = (
            f"invalid provider metadata: version {version} for the provider {name} does not match any release series"
        )
        raise refused(words)
    contract = str(row.get("contract", ""))
    if contract not in accepted:
        words = f"CAPI operator is only compatible with v1beta{2 if 'v1beta2' in accepted else 1} providers, "
        raise refused(words + f"detected {contract} for provider {name}.")
    return contract


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables replaced. Raises Failed that names those without a value or a default."""
    missing: set[str] = set()

    def one(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name in values and (values[name] or default is None):
            return values[name]
        if default is None:
            missing.add(name)
            return ""
        return default[1:-1] if len(default) > 1 and default[0] == default[-1] == '"' else default

    done = _VARIABLE.sub(one, text)
    if missing:
        words = f"value for variables [{', '.join(sorted(missing))}] is not set. Please set the value using os "
        raise Failed(INSTALLED, "ComponentsFetchError", words + "environment variables or the clusterctl config file")
    return done


def components(provider: Object, text: str, values: Mapping[str, str]) -> list[Object]:
    """The objects of a components file: variables filled, in the provider's namespace, with its labels and owner."""
    try:
        found = [item for item in yaml.load_all(filled(text, values), Loader=_Loader) if item]
    except yaml.YAMLError as error:
        words = f"failed to parse yaml: {' '.join(str(error).split())}"
        raise Failed(INSTALLED, "ComponentsFetchError", words) from None
    space, label = provider["metadata"]["namespace"], label_of(provider)
    old = {item["metadata"]["name"] for item in found if item["kind"] == "Namespace"}
    items = [_moved(item, space, old) for item in found]
    if not old:
        items.insert(0, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
    for item in items:
        labels = item["metadata"].setdefault("labels", {})
        labels |= {"cluster.x-k8s.io/provider": label, "clusterctl.cluster.x-k8s.io": ""}
        if item["metadata"].get("namespace") == space:
            item["metadata"]["ownerReferences"] = [_owner(provider)]
    return _customized(items, provider.get("spec") or {})


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _owner(provider: Object) -> Object:
    keys = {key: provider["metadata"][key] for key in ("name", "uid")}
    return {"apiVersion": provider["apiVersion"], "kind": provider["kind"], **keys}


def _moved(item: Object, space: str, old: set[str]) -> Object:
    """The object with every mention of the project's own namespace turned to the wanted one."""

    def turned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: turned(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [turned(inner, key) for inner in value]
        if isinstance(value, str):
            if key == "namespace" and value in old:
                return space
            if key == "cert-manager.io/inject-ca-from" and value.partition("/")[0] in old:
                return f"{space}/{value.partition('/')[2]}"
            if key == "dnsNames":
                for name in old:
                    value = value.replace(f".{name}.svc", f".{space}.svc")
        return value

    done: Object = turned(item)
    if done["kind"] == "Namespace":
        done["metadata"]["name"] = space
    elif "namespace" in done["metadata"]:
        done["metadata"]["namespace"] = space
    return done


def _customized(items: list[Object], spec: Object) -> list[Object]:
    """What spec.deployment and spec.manager change of the manager."""
    wanted, manager = spec.get("deployment") or {}, spec.get("manager") or {}
    for item in items:
        if item["kind"] != "Deployment":
            continue
        pod = item["spec"]["template"]["spec"]
        if "replicas" in wanted:
            item["spec"]["replicas"] = wanted["replicas"]
        for key in ("nodeSelector", "tolerations", "affinity", "serviceAccountName", "imagePullSecrets"):
            if key in wanted:
                pod[key] = wanted[key]
        for given in wanted.get("containers") or ():
            for container in pod["containers"]:
                if container["name"] == given["name"]:
                    _change_container(container, given)
        if "verbosity" in manager:
            args = pod["containers"][0].setdefault("args", [])
            args[:] = [word for word in args if not word.startswith("--v=")] + [f"--v={manager['verbosity']}"]
    return items


def _change_container(container: Object, given: Object) -> None:
    if given.get("imageUrl"):
        container["image"] = given["imageUrl"]
    if given.get("args"):
        names = {name.lstrip("-") for name in given["args"]}
        kept = [word for word in container.get("args") or () if word.lstrip("-").partition("=")[0] not in names]
        container["args"] = kept + [f"{name}={value}" for name, value in given["args"].items()]
    for row in given.get("env") or ():
        rows = [known for known in container.get("env") or () if known["name"] != row["name"]]
        container["env"] = [*rows, row]
    if given.get("resources"):
        container["resources"] = given["resources"]


def told(provider: Object, wanted: Sequence[tuple[str, str, str, str, str]], *, now: str, raised: bool) -> list[Object]:
    """The provider's conditions with these (type, status, reason, message, severity) in them, in their order."""
    rows = {row["type"]: row for row in (provider.get("status") or {}).get("conditions") or ()}
    for kind, status, reason, message, severity in wanted:
        row: Object = {"type": kind, "status": status, "lastTransitionTime": now}
        if reason and (raised or status != "True"):
            row["reason"] = reason
        if message:
            row["message"] = message
        if not raised and status == "False" and severity:
            row["severity"] = severity
        before = rows.get(kind)
        same = before is not None and before.get("status") == status and before.get("reason") == row.get("reason")
        if same and before is not None:
            row["lastTransitionTime"] = before["lastTransitionTime"]
        rows[kind] = row
    first = [rows[READY]] if READY in rows else []
    return first + sorted(without(list(rows.values()), READY), key=lambda row: str(row["type"]))
