"""The kinds the server knows and the shapes of their fields.

A shape ("node") is compact JSON: a letter for a scalar (s i n b q x t m B, `*` = anything), `{"r": name}` a
structure, `{"a": node, "t": list type, "k": map keys, "mk": patch merge key, "ps": patch strategy}` a list,
`{"m": node}` a map; `"atomic": 1` owns as one. Custom resources are turned into the same shapes.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .status import ApiError, bad_request

Json = dict[str, Any]
FOLDER = Path(__file__).parent / "schemas"
ALL = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
META = "apimachinery.pkg.apis.meta.v1.ObjectMeta"


@dataclass(frozen=True, eq=False)
class Kind:
    """One served kind: its names, scope, verbs and shape."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    bucket: str
    singular: str = ""
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL
    subresources: tuple[str, ...] = ()
    node: Any = "*"
    custom: Json | None = None  # the CRD version: schema, subresources, additionalPrinterColumns, selectableFields
    storage: str = ""  # the apiVersion objects are kept in
    extras: Json = field(default_factory=dict)

    @property
    def api_version(self) -> str:
        """`apps/v1`, or `v1` in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        """The kind of its lists."""
        return str(self.extras.get("listKind") or self.kind + "List")


@cache
def builtin() -> Json:
    """The generated table: kinds → definition, definition → fields."""
    data: Json = json.loads((FOLDER / "builtin.json").read_text())
    return data


def definitions() -> Json:
    """Shapes of built-in structures by name."""
    found: Json = builtin()["definitions"]
    return found


@cache
def descriptions() -> Json:
    """First sentences of the fields' documentation; read only when OpenAPI is asked."""
    data: Json = json.loads(gzip.decompress((FOLDER / "descriptions.json.gz").read_bytes()))
    return data


# group | version | plural | Kind | scope | short | categories | subresources | verbs (none = all)
_TABLE = """
|v1|bindings|Binding|N||||create
|v1|componentstatuses|ComponentStatus|C|cs|||get,list
|v1|configmaps|ConfigMap|N|cm||
|v1|endpoints|Endpoints|N|ep||
|v1|events|Event|N|ev||
|v1|limitranges|LimitRange|N|limits||
|v1|namespaces|Namespace|C|ns||finalize,status|create,delete,get,list,patch,update,watch
|v1|nodes|Node|C|no||proxy,status
|v1|persistentvolumeclaims|PersistentVolumeClaim|N|pvc||status
|v1|persistentvolumes|PersistentVolume|C|pv||status
|v1|pods|Pod|N|po|all|attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status
|v1|podtemplates|PodTemplate|N|||
|v1|replicationcontrollers|ReplicationController|N|rc|all|scale,status
|v1|resourcequotas|ResourceQuota|N|quota||status
|v1|secrets|Secret|N|||
|v1|serviceaccounts|ServiceAccount|N|sa||token
|v1|services|Service|N|svc|all|proxy,status
apiregistration.k8s.io|v1|apiservices|APIService|C||api-extensions|status
apps|v1|controllerrevisions|ControllerRevision|N|||
apps|v1|daemonsets|DaemonSet|N|ds|all|status
apps|v1|deployments|Deployment|N|deploy|all|scale,status
apps|v1|replicasets|ReplicaSet|N|rs|all|scale,status
apps|v1|statefulsets|StatefulSet|N|sts|all|scale,status
events.k8s.io|v1|events|Event|N|ev||
authentication.k8s.io|v1|selfsubjectreviews|SelfSubjectReview|C||||create
authentication.k8s.io|v1|tokenreviews|TokenReview|C||||create
authorization.k8s.io|v1|localsubjectaccessreviews|LocalSubjectAccessReview|N||||create
authorization.k8s.io|v1|selfsubjectaccessreviews|SelfSubjectAccessReview|C||||create
authorization.k8s.io|v1|selfsubjectrulesreviews|SelfSubjectRulesReview|C||||create
authorization.k8s.io|v1|subjectaccessreviews|SubjectAccessReview|C||||create
autoscaling|v2|horizontalpodautoscalers|HorizontalPodAutoscaler|N|hpa|all|status
autoscaling|v1|horizontalpodautoscalers|HorizontalPodAutoscaler|N|hpa|all|status
batch|v1|cronjobs|CronJob|N|cj|all|status
batch|v1|jobs|Job|N||all|status
certificates.k8s.io|v1|certificatesigningrequests|CertificateSigningRequest|C|csr||approval,status
networking.k8s.io|v1|ingressclasses|IngressClass|C|||
networking.k8s.io|v1|ingresses|Ingress|N|ing||status
networking.k8s.io|v1|ipaddresses|IPAddress|C|ip||
networking.k8s.io|v1|networkpolicies|NetworkPolicy|N|netpol||
networking.k8s.io|v1|servicecidrs|ServiceCIDR|C|||status
policy|v1|poddisruptionbudgets|PodDisruptionBudget|N|pdb||status
rbac.authorization.k8s.io|v1|clusterrolebindings|ClusterRoleBinding|C|||
rbac.authorization.k8s.io|v1|clusterroles|ClusterRole|C|||
rbac.authorization.k8s.io|v1|rolebindings|RoleBinding|N|||
rbac.authorization.k8s.io|v1|roles|Role|N|||
storage.k8s.io|v1|csidrivers|CSIDriver|C|||
storage.k8s.io|v1|csinodes|CSINode|C|||
storage.k8s.io|v1|csistoragecapacities|CSIStorageCapacity|N|||
storage.k8s.io|v1|storageclasses|StorageClass|C|sc||
storage.k8s.io|v1|volumeattachments|VolumeAttachment|C|||status
storage.k8s.io|v1|volumeattributesclasses|VolumeAttributesClass|C|vac||
admissionregistration.k8s.io|v1|mutatingadmissionpolicies|MutatingAdmissionPolicy|C||api-extensions|
admissionregistration.k8s.io|v1|mutatingadmissionpolicybindings|MutatingAdmissionPolicyBinding|C||api-extensions|
admissionregistration.k8s.io|v1|mutatingwebhookconfigurations|MutatingWebhookConfiguration|C||api-extensions|
admissionregistration.k8s.io|v1|validatingadmissionpolicies|ValidatingAdmissionPolicy|C||api-extensions|status
admissionregistration.k8s.io|v1|validatingadmissionpolicybindings|ValidatingAdmissionPolicyBinding|C||api-extensions|
admissionregistration.k8s.io|v1|validatingwebhookconfigurations|ValidatingWebhookConfiguration|C||api-extensions|
apiextensions.k8s.io|v1|customresourcedefinitions|CustomResourceDefinition|C|crd,crds|api-extensions|status
scheduling.k8s.io|v1|priorityclasses|PriorityClass|C|pc||
coordination.k8s.io|v1|leases|Lease|N|||
node.k8s.io|v1|runtimeclasses|RuntimeClass|C|||
discovery.k8s.io|v1|endpointslices|EndpointSlice|N|||
resource.k8s.io|v1|deviceclasses|DeviceClass|C|||
resource.k8s.io|v1|resourceclaims|ResourceClaim|N|||status
resource.k8s.io|v1|resourceclaimtemplates|ResourceClaimTemplate|N|||
resource.k8s.io|v1|resourceslices|ResourceSlice|C|||
flowcontrol.apiserver.k8s.io|v1|flowschemas|FlowSchema|C|||status
flowcontrol.apiserver.k8s.io|v1|prioritylevelconfigurations|PriorityLevelConfiguration|C|||status
"""


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def builtin_kinds() -> list[Kind]:
    """Every built-in kind, in the order discovery shows them."""
    table = builtin()["kinds"]
    found = []
    for line in _TABLE.strip().splitlines():
        parts = [*line.split("|"), "", ""]
        group, version, plural, kind, scope, short, categories, subresources, verbs = parts[:9]
        name = table.get(f"{group}/{version}/{kind}")
        api_version = f"{group}/{version}" if group else version
        storage = {"events.k8s.io": "v1", "autoscaling": "autoscaling/v2"}.get(group, api_version)
        found.append(
            Kind(
                group, version, kind, plural, scope == "N",
                bucket="/events" if plural == "events" else f"{group}/{plural}",
                singular=kind.lower(), short=_split(short), categories=_split(categories),
                verbs=_split(verbs) or ALL, subresources=_split(subresources),
                node={"r": name} if name else "*", storage=storage,
            )
        )  # fmt: skip
    return found


class Registry:
    """Kinds by URL and by apiVersion + kind; custom ones come and go."""

    def __init__(self) -> None:
        self.by_url: dict[tuple[str, str, str], Kind] = {}
        self.by_gvk: dict[tuple[str, str], Kind] = {}
        self.order: list[Kind] = []
        self.generation = 0
        for kind in builtin_kinds():
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serves a kind from now on (an older one of the same name is replaced)."""
        url = (kind.group, kind.version, kind.plural)
        if url in self.by_url:
            self.remove(self.by_url[url])
        self.by_url[url] = kind
        self.by_gvk[(kind.api_version, kind.kind)] = kind
        self.order.append(kind)
        self.generation += 1

    def remove(self, kind: Kind) -> None:
        """Stops serving a kind."""
        self.by_url.pop((kind.group, kind.version, kind.plural), None)
        self.by_gvk.pop((kind.api_version, kind.kind), None)
        self.order.remove(kind)
        self.generation += 1

    def groups(self) -> list[tuple[str, list[str]]]:
        """Each named group with its versions, the preferred one first."""
        found: dict[str, list[str]] = {}
        for kind in self.order:
            if kind.group:
                versions = found.setdefault(kind.group, [])
                if kind.version not in versions:
                    versions.append(kind.version)
        return [(group, sorted(versions, key=version_rank)) for group, versions in found.items()]

    def of(self, group: str, version: str) -> list[Kind]:
        """The kinds of one group and version."""
        return [kind for kind in self.order if kind.group == group and kind.version == version]

    def of_bucket(self, bucket: str) -> Kind | None:
        """Any kind kept in a bucket, the storage version first."""
        kinds = [kind for kind in self.order if kind.bucket == bucket]
        return next((kind for kind in kinds if kind.api_version == kind.storage), kinds[0] if kinds else None)


def version_rank(version: str) -> tuple[int, int, int]:
    """Sort key: GA before beta before alpha, newest first."""
    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not match:
        return (3, 0, 0)
    stage = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (stage, -int(match[1]), -int(match[3] or 0))


GO_NAMES = {"s": "string", "b": "bool", "q": "resource.Quantity", "t": "time.Time", "B": "[]uint8"}
QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$")
QUANTITY_OK = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)((Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?)|[eE][+-]?\d+)$")
INT64 = ("seconds", "generation", "rev", "uid", "runasuser", "runasgroup", "fsgroup", "capacitybytes", "volumelimits")


def json_type(value: Any) -> str:
    """What Go's decoder calls a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    known: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return known.get(type(value), "null")


def _go_type(node: Any, name: str) -> str:
    if isinstance(node, str):
        if node == "i":
            return "int64" if name.lower().endswith(INT64) else "int32"
        return GO_NAMES.get(node, "string")
    if "r" in node:
        return _package(node["r"])
    if "a" in node:
        return "[]" + _go_type(node["a"], name)
    return "map[string]" + _go_type(node["m"], name)


def _package(name: str) -> str:
    parts = name.split(".")
    package = {"meta": "v1"}.get(parts[-3], parts[-2]) if len(parts) > 2 else "v1"
    return f"{package}.{parts[-1]}"


def _zero(node: Any) -> Any:
    """What Go makes of a null in a list."""
    return {"s": "", "i": 0, "n": 0, "b": False, "q": "0", "x": 0}.get(node) if isinstance(node, str) else {}


class Decoder:
    """Reads a body into a kind's shape as Go's decoder does: unknown fields are dropped and remembered, nulls and
    empty lists vanish, a wrong type is a 400."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.unknown: list[str] = []

    def read(self, body: Json) -> Json:
        """The object in the kind's shape."""
        found: Json = self._struct(body, self.kind.node["r"], "", "")
        return found

    def _fail(self, text: str) -> ApiError:
        kind = self.kind
        return bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {text}')

    def _wrong(self, value: Any, node: Any, owner: str, go_path: str) -> ApiError:
        name = go_path.split(".")[-1]
        return self._fail(
            f"json: cannot unmarshal {json_type(value)} into Go struct field {owner}.{go_path} "
            f"of type {_go_type(node, name)}"
        )

    def _struct(self, value: Json, name: str, path: str, go_path: str) -> Json:
        entry = definitions()[name]
        if entry == "*":
            return value
        fields = entry["p"]
        owner = name.split(".")[-1]
        result: Json = {}
        for key, item in value.items():
            node = fields.get(key)
            here = f"{path}.{key}" if path else key
            if node is None:
                self.unknown.append(here)
                continue
            if item is None:
                if isinstance(node, str) and node in "tm" and key != "creationTimestamp":
                    result[key] = None
                continue
            found = self._value(item, node, here, owner, f"{go_path}.{key}" if go_path else key)
            if found == [] or (found == {} and isinstance(node, dict) and "m" in node):
                continue
            result[key] = found
        return result

    def _value(self, value: Any, node: Any, path: str, owner: str, go_path: str) -> Any:
        if isinstance(node, str):
            return self._scalar(value, node, owner, go_path)
        if "r" in node:
            if not isinstance(value, dict):
                raise self._wrong(value, node, owner, go_path)
            return self._struct(value, node["r"], path, go_path)
        if "a" in node:
            if not isinstance(value, list):
                raise self._wrong(value, node, owner, go_path)
            return [
                self._value(item, node["a"], f"{path}[{number}]", owner, go_path)
                if item is not None
                else _zero(node["a"])
                for number, item in enumerate(value)
            ]
        if not isinstance(value, dict):
            raise self._wrong(value, node, owner, go_path)
        return {
            key: self._value(item, node["m"], f"{path}.{key}", owner, go_path) if item is not None else ""
            for key, item in value.items()
        }

    def _scalar(self, value: Any, node: str, owner: str, go_path: str) -> Any:
        if node == "*":
            return value
        if node == "s" and isinstance(value, str):
            return value
        if node == "i" and isinstance(value, int) and not isinstance(value, bool):
            return value
        if node == "i" and isinstance(value, float) and value.is_integer():
            return int(value)
        if node == "n" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        if node == "b" and isinstance(value, bool):
            return value
        if node == "x" and isinstance(value, (str, int)) and not isinstance(value, bool):
            return value
        if node == "q" and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return self._quantity(str(value))
        if node in ("t", "m") and isinstance(value, str):
            return self._time(value)
        if node == "B" and isinstance(value, str):
            return self._bytes(value)
        if node in ("t", "m"):
            raise self._fail(f"json: cannot unmarshal {json_type(value)} into Go value of type string")
        if node == "q":
            raise self._fail("quantities must match the regular expression '" + QUANTITY.pattern + "'")
        raise self._wrong(value, node, owner, go_path)

    def _quantity(self, value: str) -> str:
        if not QUANTITY_OK.match(value):
            if not QUANTITY.match(value) or re.search(r"[a-zA-Z]", value):
                raise self._fail("quantities must match the regular expression '" + QUANTITY.pattern + "'")
            raise self._fail("unable to parse quantity's suffix")
        return canonical_quantity(value)

    def _time(self, value: str) -> str:
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value):
            return value
        raise self._fail(f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" as "2006"')

    def _bytes(self, value: str) -> str:
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            bad = next((n for n, c in enumerate(value) if not re.match(r"[A-Za-z0-9+/=]", c)), len(value))
            raise self._fail(f"illegal base64 data at input byte {bad}") from error
        return value


_SUFFIX = {
    "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "m": -3, "u": -6, "n": -9,
}  # fmt: skip
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def quantity(value: Any) -> float:
    """The number a quantity means; nan-free: unreadable text is 0."""
    text = str(value)
    match = re.match(r"^([+-]?[0-9.]+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?$", text)
    if not match:
        return 0.0
    number, suffix = float(match[1]), match[2] or ""
    if suffix in _BINARY:
        return number * float(1024 ** _BINARY[suffix])
    if suffix in _SUFFIX:
        return number * 10.0 ** _SUFFIX[suffix]
    return number * 10.0 ** int(suffix[1:])


def canonical_quantity(text: str) -> str:
    """The text an API server prints back: `0.5` becomes `500m`, `1024Mi` becomes `1Gi`."""
    match = re.match(r"^([+-]?)([0-9.]+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?$", text)
    if not match:
        return text
    sign, digits, suffix = match[1].replace("+", ""), match[2], match[3] or ""
    if suffix in _BINARY and "." not in digits:
        number, power = int(digits), _BINARY[suffix]
        while number and number % 1024 == 0 and power < 6:
            number, power = number // 1024, power + 1
        return sign + (f"{number}{list(_BINARY)[power - 1]}" if number else "0")
    if suffix in _BINARY:
        value = float(digits) * 1024 ** _BINARY[suffix]
        return canonical_quantity(sign + str(int(value)))
    if "." not in digits and suffix in _SUFFIX and not (digits.endswith("000") or digits.startswith("0")):
        return text.replace("+", "")
    return sign + _decimal(digits, suffix)


def _decimal(digits: str, suffix: str) -> str:
    whole, _, fraction = digits.partition(".")
    exponent = (_SUFFIX[suffix] if suffix in _SUFFIX else int(suffix[1:])) - len(fraction)
    number = int((whole + fraction) or "0")
    if number == 0:
        return "0"
    while number % 10 == 0:
        number, exponent = number // 10, exponent + 1
    while exponent % 3:
        number, exponent = number * 10, exponent - 1
    names = {power: name for name, power in _SUFFIX.items()}
    if exponent < -9:
        return "0"
    return f"{number}{names[min(exponent, 18)]}"


def format_quantity(number: float, like: str = "") -> str:
    """A quantity's text for a computed sum, in the binary or decimal family of an example."""
    if re.search(r"[KMGTPE]i$", like) and float(number).is_integer():
        value, power = int(number), 0
        while value and value % 1024 == 0 and power < 6:
            value, power = value // 1024, power + 1
        return f"{value}{['', *_BINARY][power]}" if value else "0"
    return canonical_quantity(f"{number:.9f}".rstrip("0").rstrip(".") or "0")


def resolve(node: Any) -> Any:
    """The structure behind a reference: {"p": fields, …}; other shapes unchanged."""
    return definitions()[node["r"]] if isinstance(node, dict) and "r" in node else node


def child(node: Any, name: str) -> Any:
    """The shape of a field of a structure or map; `*` where it is not known."""
    entry = resolve(node)
    if not isinstance(entry, dict):
        return "*"
    if "p" in entry:
        found = entry["p"].get(name)
        return found if found is not None else entry.get("m", "*")
    return entry.get("m", "*")


def from_openapi(schema: Json) -> Any:
    """The compact shape of a structural schema, for strategic-free merging and ownership."""
    if schema.get("x-kubernetes-int-or-string"):
        return "x"
    kind = schema.get("type")
    if kind == "array":
        node: Json = {"a": from_openapi(schema.get("items") or {}), "t": schema.get("x-kubernetes-list-type", "atomic")}
        if schema.get("x-kubernetes-list-map-keys"):
            node["k"] = schema["x-kubernetes-list-map-keys"]
        return node
    if kind == "object" or schema.get("x-kubernetes-preserve-unknown-fields"):
        node = {}
        if schema.get("x-kubernetes-map-type") == "atomic":
            node["atomic"] = 1
        if schema.get("properties"):
            node["p"] = {name: from_openapi(sub) for name, sub in schema["properties"].items()}
            if schema.get("x-kubernetes-preserve-unknown-fields"):
                node["m"] = "*"
            return node
        extra = schema.get("additionalProperties")
        node["m"] = from_openapi(extra) if isinstance(extra, dict) else "*"
        if "m" in node and schema.get("x-kubernetes-preserve-unknown-fields"):
            node["open"] = 1
        return node
    return {"string": "s", "integer": "i", "number": "n", "boolean": "b"}.get(str(kind), "*")


def names(kinds: Iterable[Kind]) -> list[str]:
    """`plural.group` of each kind."""
    return [f"{kind.plural}.{kind.group}" if kind.group else kind.plural for kind in kinds]
