"""Custom resources: structural schemas (pruning, defaults, validation) and what makes a CRD a served kind."""

from __future__ import annotations

import ipaddress
import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import apply, cel, cel_check
from .schema import META, Decoder, Kind, canonical_quantity, from_openapi, json_type, version_rank
from .status import (
    ApiError,
    FieldError,
    bad_request,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    show,
    too_long,
    too_many,
    type_invalid,
    unsupported,
)

if TYPE_CHECKING:
    from .cluster import Cluster

Json = dict[str, Any]
BUCKET = "apiextensions.k8s.io/customresourcedefinitions"
UNCHECKED = FieldError(
    "FieldValueInvalid",
    "<nil>",
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
)
BLOCKING = {"FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"}


def schema_of(kind: Kind) -> Json:
    """The OpenAPI schema of a custom kind; {} when it has none."""
    return ((kind.custom or {}).get("schema") or {}).get("openAPIV3Schema") or {}


def at(obj: Any, path: str) -> Any:
    """The value under a simple JSON path (`.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`)."""
    for part in re.findall(
        r"\.([A-Za-z0-9_-]+)|\.?\['([^']+)'\]|\[(\d+)\]|\[\?\(@\.(\w+)\s*==\s*['\"]([^'\"]*)['\"]\)\]", path
    ):
        name, quoted, number, key, value = part
        if name or quoted:
            obj = obj.get((name or quoted).replace("\\.", ".")) if isinstance(obj, dict) else None
        elif number:
            obj = obj[int(number)] if isinstance(obj, list) and int(number) < len(obj) else None
        else:
            obj = next((i for i in obj or [] if isinstance(i, dict) and str(i.get(key)) == value), None)
        if obj is None:
            return None
    return obj


# -- pruning and defaults ---------------------------------------------------------------------------------------------


def prune(kind: Kind, body: Json) -> tuple[Json, list[str]]:
    """The body without what the schema does not declare, and the paths that went."""
    unknown: list[str] = []
    schema = schema_of(kind)
    result: Json = {key: body[key] for key in ("apiVersion", "kind") if key in body}
    meta = body.get("metadata")
    if isinstance(meta, dict):
        decoder = Decoder(kind)
        result["metadata"] = decoder._struct(meta, META, "metadata", "metadata")
        unknown += decoder.unknown
    rest = {key: value for key, value in body.items() if key not in ("apiVersion", "kind", "metadata")}
    if not schema:
        return result | rest, unknown
    result |= _prune(rest, schema, "", unknown, preserve=False)
    return result, unknown


def _prune(value: Any, schema: Json, path: str, unknown: list[str], *, preserve: bool) -> Any:
    preserve = bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        result = {}
        for key, item in value.items():
            here = f"{path}.{key}" if path else key
            sub = properties.get(key)
            if sub is None and isinstance(extra, dict):
                sub = extra
            if sub is None:
                embedded = schema.get("x-kubernetes-embedded-resource") and key in ("apiVersion", "kind", "metadata")
                if preserve or extra is True or embedded or not (properties or schema.get("type") == "object"):
                    result[key] = item
                else:
                    unknown.append(here)
                continue
            if item is None and not sub.get("nullable"):
                if "default" in sub or key in (schema.get("required") or []):
                    continue
                result[key] = None
                continue
            result[key] = _prune(item, sub, here, unknown, preserve=preserve)
        return result
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_prune(item, schema["items"], f"{path}[{n}]", unknown, preserve=False) for n, item in enumerate(value)]
    return value


def default(kind: Kind, obj: Json) -> Json:
    """The object with the schema's defaults."""
    schema = schema_of(kind)
    if not schema:
        return obj
    result: Json = _default(obj, schema)
    return result


def _default(value: Any, schema: Json) -> Any:
    if isinstance(value, dict):
        result = dict(value)
        for key, sub in (schema.get("properties") or {}).items():
            if key not in result and "default" in sub:
                result[key] = json.loads(json.dumps(sub["default"]))
            if key in result:
                result[key] = _default(result[key], sub)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            known = schema.get("properties") or {}
            result = {k: (_default(v, extra) if k not in known else v) for k, v in result.items()}
        return result
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_default(item, schema["items"]) for item in value]
    return value


# -- validation -------------------------------------------------------------------------------------------------------


def validate(kind: Kind, obj: Json, old: Json | None = None) -> list[FieldError]:
    """Every way the object breaks its schema, in the words of the API server."""
    schema = schema_of(kind)
    if not schema:
        return []
    errors: list[FieldError] = []
    trimmed = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind", "metadata")}
    lists: list[FieldError] = []
    _check(trimmed, {k: v for k, v in schema.items() if k != "type"} | {"type": "object"}, "", errors, lists)
    if not _kind_has_rules(kind, schema):
        return errors + lists
    if any(error.reason in BLOCKING for error in errors):
        errors.append(UNCHECKED)
    else:
        _judge(_rooted(obj), _rooted(old) if old else None, schema, "", errors)
    return errors + lists


def _kind_has_rules(kind: Kind, schema: Json) -> bool:
    if "rules" not in kind.extras:
        kind.extras["rules"] = _has_rules(schema)
    return bool(kind.extras["rules"])


def _has_rules(schema: Any) -> bool:
    if isinstance(schema, dict):
        return "x-kubernetes-validations" in schema or any(_has_rules(value) for value in schema.values())
    return isinstance(schema, list) and any(_has_rules(value) for value in schema)


def _rooted(obj: Json) -> Json:
    # Rules of the root see of the metadata only the name.
    meta = {k: v for k, v in (obj.get("metadata") or {}).items() if k in ("name", "generateName")}
    return obj | {"metadata": meta}


def _judge(value: Any, old: Any, schema: Json, path: str, errors: list[FieldError]) -> None:
    """Adds what the CEL rules of a schema find in a value; `old` is what it was, None when it is new."""
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations") or []:
        error = _verdict(value, old, rule, schema, path)
        if error is not None:
            errors.append(error)
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            sub = properties.get(name) or (extra if isinstance(extra, dict) else None)
            if sub:
                _judge(item, before.get(name), sub, f"{path}.{name}" if path else name, errors)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        keys = schema.get("x-kubernetes-list-map-keys")
        for number, item in enumerate(value):
            past = None
            if keys and isinstance(item, dict) and isinstance(old, list):
                past = next((o for o in old if all(o.get(key) == item.get(key) for key in keys)), None)
            _judge(item, past, schema["items"], f"{path}[{number}]", errors)


def _verdict(value: Any, old: Any, rule: Json, schema: Json, path: str) -> FieldError | None:
    text = rule["rule"]
    scope = {"self": value}
    if cel.uses_old(text):
        if rule.get("optionalOldSelf"):
            scope["oldSelf"] = cel.Maybe(old, old is not None)
        elif old is None:
            return None
        else:
            scope["oldSelf"] = old
    try:
        if cel.compile_rule(text)(scope) is True:
            return None
        message = _message(rule, scope)
    except cel.RuleError:
        return None  # words the lab does not know; a syntax error never gets past `definition_errors`
    except cel.EvalError as error:
        message = f"rule evaluation error: {error} evaluating rule: {rule.get('message') or text}"
    place = path + rule.get("fieldPath", "") if path else rule.get("fieldPath", "").lstrip(".")
    reason = rule.get("reason") or "FieldValueInvalid"
    shown = value if not isinstance(value, (dict, list)) else schema.get("type", "object")
    if reason == "FieldValueForbidden":
        return forbidden_field(place, message)
    if reason == "FieldValueRequired":
        return required(place, message)
    if reason == "FieldValueDuplicate":
        return duplicate(place, shown)
    return invalid_value(place, shown, message)


def _message(rule: Json, scope: Json) -> str:
    if rule.get("messageExpression"):
        try:
            found = cel.compile_rule(rule["messageExpression"])(scope)
        except (cel.RuleError, cel.EvalError):
            found = ""
        if isinstance(found, str) and found.strip() and "\n" not in found:
            return found
    return str(rule.get("message") or f"failed rule: {' '.join(rule['rule'].split())}")


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def _check(value: Any, schema: Json, path: str, errors: list[FieldError], lists: list[FieldError]) -> None:
    if value is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not (isinstance(value, (int, str)) and not isinstance(value, bool)):
            shown = _kind_of(value)
            errors.append(type_invalid(path, shown, f'{path} in body must be of type integer,string: "{shown}"'))
        elif isinstance(value, str) and schema.get("pattern"):
            _strings(value, {"pattern": schema["pattern"]}, path, errors)
        return
    wanted, actual = schema.get("type"), _kind_of(value)
    if wanted and actual != wanted and not (wanted == "number" and actual == "integer"):
        errors.append(type_invalid(path, actual, f'{path} in body must be of type {wanted}: "{actual}"'))
        return
    if "enum" in schema and value not in schema["enum"]:
        errors.append(unsupported(path, value, [str(item) for item in schema["enum"]]))
    if isinstance(value, str):
        _strings(value, schema, path, errors)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _numbers(value, schema, path, errors)
    elif isinstance(value, list):
        _items(value, schema, path, errors, lists)
    elif isinstance(value, dict):
        _properties(value, schema, path, errors, lists)
    _logic(value, schema, path, errors)


def _strings(value: str, schema: Json, path: str, errors: list[FieldError]) -> None:
    if len(value) > schema.get("maxLength", len(value)):
        errors.append(too_long(path, schema["maxLength"]))
    if len(value) < schema.get("minLength", 0):
        text = f"{path} in body should be at least {schema['minLength']} chars long"
        errors.append(invalid_value(path, value, text))
    if schema.get("pattern") and not _matches(schema["pattern"], value):
        errors.append(invalid_value(path, value, f"{path} in body should match '{schema['pattern']}'"))
    form = schema.get("format")
    if form and not _formatted(form, value):
        errors.append(type_invalid(path, value, f"{path} in body must be of type {form}: {show(value)}"))


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern.replace("\\z", "\\Z").replace("[[:alnum:]]", "[A-Za-z0-9]"), value) is not None
    except re.error:
        return True  # a pattern of Go's RE2 that Python cannot read refuses nothing


def _formatted(form: str, value: str) -> bool:
    try:
        if form == "date-time":
            datetime.fromisoformat(value.replace("Z", "+00:00"))
            return "T" in value
        if form == "date":
            datetime.strptime(value, "%Y-%m-%d")
        elif form == "ipv4":
            ipaddress.IPv4Address(value)
        elif form == "ipv6":
            ipaddress.IPv6Address(value)
        elif form == "cidr":
            ipaddress.ip_network(value, strict=False)
        elif form == "uri":
            return bool(re.match(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|/)", value))
        elif form in ("uuid", "uuid4"):
            return bool(re.fullmatch(r"(?i)[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", value))
    except ValueError:
        return False
    return True


def _numbers(value: float, schema: Json, path: str, errors: list[FieldError]) -> None:
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and (value > high or (schema.get("exclusiveMaximum") and value == high)):
        word = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        errors.append(invalid_value(path, value, f"{path} in body should be {word} {_plain(high)}"))
    if low is not None and (value < low or (schema.get("exclusiveMinimum") and value == low)):
        word = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        errors.append(invalid_value(path, value, f"{path} in body should be {word} {_plain(low)}"))
    step = schema.get("multipleOf")
    if step and value % step:
        errors.append(invalid_value(path, value, f"{path} in body should be a multiple of {_plain(step)}"))


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _items(value: list[Any], schema: Json, path: str, errors: list[FieldError], lists: list[FieldError]) -> None:
    if len(value) > schema.get("maxItems", len(value)):
        errors.append(too_many(path, len(value), schema["maxItems"]))
    if len(value) < schema.get("minItems", 0):
        text = f"{path} in body should have at least {schema['minItems']} items"
        errors.append(invalid_value(path, len(value), text))
    if schema.get("uniqueItems") and any(value.index(item) != n for n, item in enumerate(value)):
        errors.append(invalid_value(path, value, f"{path} in body shouldn't contain duplicates"))
    for number, item in enumerate(value):
        if isinstance(schema.get("items"), dict):
            _check(item, schema["items"], f"{path}[{number}]", errors, lists)
    keys = schema.get("x-kubernetes-list-map-keys")
    seen: list[Any] = []
    for number, item in enumerate(value):
        if keys and isinstance(item, dict):
            key = {name: item[name] for name in keys if name in item}
        elif schema.get("x-kubernetes-list-type") == "set":
            key = item
        else:
            return
        if key in seen:
            lists.append(duplicate(f"{path}[{number}]", key))
        seen.append(key)


def _properties(value: Json, schema: Json, path: str, errors: list[FieldError], lists: list[FieldError]) -> None:
    properties = schema.get("properties") or {}
    for name in schema.get("required") or []:
        if name not in value:
            errors.append(required(f"{path}.{name}" if path else name))
    if len(value) > schema.get("maxProperties", len(value)):
        errors.append(too_many(path, len(value), schema["maxProperties"]))
    if len(value) < schema.get("minProperties", 0):
        text = f"{path} in body should have at least {schema['minProperties']} properties"
        errors.append(invalid_value(path, len(value), text))
    extra = schema.get("additionalProperties")
    for name, item in value.items():
        sub = properties.get(name) or (extra if isinstance(extra, dict) else None)
        if sub is not None:
            _check(item, sub, f"{path}.{name}" if path else name, errors, lists)


def _logic(value: Any, schema: Json, path: str, errors: list[FieldError]) -> None:
    def fits(sub: Json) -> bool:
        found: list[FieldError] = []
        _check(value, sub, path, found, found)
        return not found

    if schema.get("anyOf") and not any(fits(sub) for sub in schema["anyOf"]):
        errors.append(invalid_value(path, value, f'"{path}" must validate at least one schema (anyOf)'))
    if schema.get("oneOf") and (fitting := sum(fits(sub) for sub in schema["oneOf"])) != 1:
        found = f"Found {fitting} valid alternatives" if fitting else "Found none valid"
        text = f'"{path}" must validate one and only one schema (oneOf). {found}'
        errors.append(invalid_value("<nil>", "", text))
    for sub in schema.get("allOf") or []:
        _check(value, sub, path, errors, errors)
    if schema.get("not") and fits(schema["not"]):
        errors.append(invalid_value(path, value, f'"{path}" must not validate the schema (not)'))


# -- definitions ------------------------------------------------------------------------------------------------------


def kinds_of(definition: Json) -> list[Kind]:
    """The kinds a CustomResourceDefinition serves, the preferred version first."""
    spec = definition["spec"]
    naming = spec["names"]
    storage = next((v["name"] for v in spec["versions"] if v.get("storage")), spec["versions"][0]["name"])
    found = []
    for version in sorted(spec["versions"], key=lambda v: version_rank(v["name"])):
        if not version.get("served", True):
            continue
        parts = version.get("subresources") or {}
        schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
        found.append(
            Kind(
                spec["group"], version["name"], naming["kind"], naming["plural"], spec.get("scope") == "Namespaced",
                bucket=f"{spec['group']}/{naming['plural']}", singular=naming.get("singular", naming["kind"].lower()),
                short=tuple(naming.get("shortNames") or ()), categories=tuple(naming.get("categories") or ()),
                verbs=("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"),
                subresources=tuple(name for name in ("status", "scale") if name in parts),
                node=apply.typed(from_openapi(schema)) if schema else {"m": "*"},
                custom=version, storage=f"{spec['group']}/{storage}", extras={"listKind": naming.get("listKind")},
            )
        )  # fmt: skip
    return found


def normalise(definition: Json) -> Json:
    """The definition with the API server's defaults."""
    spec = dict(definition["spec"])
    naming = dict(spec.get("names") or {})
    if naming.get("kind"):
        naming.setdefault("singular", naming["kind"].lower())
        naming.setdefault("listKind", naming["kind"] + "List")
    spec["names"] = naming
    spec.setdefault("conversion", {"strategy": "None"})
    return definition | {"spec": spec}


CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def unestablished(definition: Json) -> Json:
    """A new definition as it is first stored: not yet served."""
    stored = [v["name"] for v in definition["spec"]["versions"] if v.get("storage")]
    return normalise(definition) | {
        "status": {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored[:1]}
    }


def finalize(cluster: Cluster, name: str) -> None:
    """Serves a new definition; deletes the objects of a deleted one, and itself once they are gone."""
    from .cluster import Options

    stored = cluster.store.get(BUCKET, ("", name))
    if stored is None:
        return
    definition = stored.obj
    if not definition["metadata"].get("deletionTimestamp"):
        if not (definition.get("status") or {}).get("conditions"):
            cluster.store.put(BUCKET, ("", name), establish(cluster, definition))
        return
    bucket = f"{definition['spec']['group']}/{definition['spec']['names']['plural']}"
    kind = cluster.registry.of_bucket(bucket)
    for key, item in list(cluster.store.scan(bucket)):
        if kind is not None and not item.obj["metadata"].get("deletionTimestamp"):
            cluster.delete(kind, key[0], key[1], {"propagationPolicy": "Background"}, Options())
    definition = (cluster.store.get(BUCKET, ("", name)) or stored).obj
    finalizers = [f for f in definition["metadata"].get("finalizers") or [] if f != CLEANUP]
    if any(True for _ in cluster.store.scan(bucket)):
        text = "CustomResource deletion is in progress"
        after = terminating(cluster, definition, "InstanceDeletionInProgress", text)
        if after != definition:
            cluster.store.put(BUCKET, ("", name), after)
    elif finalizers:
        meta = definition["metadata"] | {"finalizers": finalizers}
        cluster.store.put(BUCKET, ("", name), definition | {"metadata": meta})
    else:
        meta = {k: v for k, v in definition["metadata"].items() if k != "finalizers"}
        cluster.store.remove(BUCKET, ("", name), definition | {"metadata": meta})
        forget(cluster, definition)


def terminating(cluster: Cluster, definition: Json, reason: str, message: str) -> Json:
    """The definition with the condition Terminating."""
    status = definition.get("status") or {}
    rows = status.get("conditions") or []
    before = next((row for row in rows if row["type"] == "Terminating"), None)
    row = _condition(cluster, "Terminating", reason, message)
    if before:
        row["lastTransitionTime"] = before["lastTransitionTime"]
    rows = [other for other in rows if other["type"] != "Terminating"]
    return definition | {"status": status | {"conditions": [*rows, row]}}


def delete(cluster: Cluster, definition: Json) -> Json:
    """The definition after a DELETE: Terminating, with the finalizer that waits for its objects."""
    name, meta = definition["metadata"]["name"], dict(definition["metadata"])
    if meta.get("deletionTimestamp"):
        return definition
    meta["deletionTimestamp"] = cluster.now()
    meta["finalizers"] = [*[f for f in meta.get("finalizers") or [] if f != CLEANUP], CLEANUP]
    text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
    after = terminating(cluster, definition | {"metadata": meta}, "InstanceDeletionPending", text)
    kept: Json = cluster.store.put(BUCKET, ("", name), after).obj
    cluster.dirty.add(("definition", name))
    return kept


def serve(cluster: Cluster, definition: Json) -> None:
    """Serves the kinds of a definition from now on, in place of those it had before."""
    plural, group = definition["spec"]["names"]["plural"], definition["spec"]["group"]
    for kind in [k for k in cluster.registry.order if k.group == group and k.plural == plural and k.custom]:
        cluster.registry.remove(kind)
    for kind in kinds_of(definition):
        cluster.registry.add(kind)
    bucket = cluster.store.bucket(f"{group}/{plural}")
    if not bucket.items and not bucket.history:
        bucket.forgotten = cluster.store.rv  # a watch cannot start before its kind was there


def establish(cluster: Cluster, definition: Json) -> Json:
    """The definition with its conditions; its kinds are served from now on."""
    definition = normalise(definition)
    serve(cluster, definition)
    naming = definition["spec"]["names"]
    status = dict(definition.get("status") or {})
    stored = next((v["name"] for v in definition["spec"]["versions"] if v.get("storage")), "")
    versions = [*(status.get("storedVersions") or [])]
    if stored and stored not in versions:
        versions.append(stored)
    if not status.get("conditions"):
        status["conditions"] = [
            _condition(cluster, "NamesAccepted", "NoConflicts", "no conflicts found"),
            _condition(cluster, "Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]
    accepted = {
        key: naming[key]
        for key in ("plural", "singular", "shortNames", "kind", "listKind", "categories")
        if naming.get(key)
    }
    return definition | {"status": status | {"acceptedNames": accepted, "storedVersions": versions}}


def _condition(cluster: Cluster, name: str, reason: str, message: str) -> Json:
    condition = {"type": name, "status": "True", "lastTransitionTime": cluster.now()}
    return condition | {"reason": reason, "message": message}


def forget(cluster: Cluster, definition: Json) -> None:
    """Stops serving the definition's kinds and removes their objects."""
    group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
    for kind in [k for k in cluster.registry.order if k.group == group and k.plural == plural and k.custom]:
        cluster.registry.remove(kind)
    bucket = cluster.store.bucket(f"{group}/{plural}")
    for key in list(bucket.items):
        cluster.store.remove(f"{group}/{plural}", key)


def definition_errors(definition: Json) -> list[FieldError]:
    """Why a CustomResourceDefinition is refused."""
    spec = definition.get("spec") or {}
    group, naming = spec.get("group", ""), spec.get("names") or {}
    errors: list[FieldError] = []
    name = definition["metadata"].get("name", "")
    if name != f"{naming.get('plural', '')}.{group}":
        errors.append(invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    protected = group.endswith((".k8s.io", ".kubernetes.io")) or group in ("k8s.io", "kubernetes.io")
    note = "api-approved.kubernetes.io"
    if protected and not (definition["metadata"].get("annotations") or {}).get(note):
        errors.append(
            required(
                f"metadata.annotations[{note}]",
                f'protected groups must have approval annotation "{note}", see '
                "https://github.com/kubernetes/enhancements/pull/1111",
            )
        )
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        errors.append(unsupported("spec.scope", spec.get("scope", ""), ["Cluster", "Namespaced"]))
    errors += _missing(spec)
    for number, version in enumerate(spec.get("versions") or []):
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if not schema:
            errors.append(required(f"spec.versions[{number}].schema.openAPIV3Schema"))
            if version.get("selectableFields"):
                single = len(spec["versions"]) == 1
                place = "spec.selectableFields" if single else f"spec.versions[{number}].selectableFields"
                errors.append(invalid_value(place, "", "may only be set when validations.schema is included"))
        else:
            _check_keywords(schema, "openAPIV3Schema")
            place = "spec.validation" if len(spec["versions"]) == 1 else f"spec.versions[{number}].schema"
            errors += _structural(schema, f"{place}.openAPIV3Schema", root=True)
    return errors


def _missing(spec: Json) -> list[FieldError]:
    naming = spec.get("names") or {}
    errors = [required("spec.group")] if not spec.get("group") else []
    errors += [
        required(f"spec.names.{name}") for name in ("plural", "singular", "kind", "listKind") if not naming.get(name)
    ]
    versions = spec.get("versions") or []
    for number, version in enumerate(versions):
        if not version.get("name"):
            errors.append(required(f"spec.versions[{number}].name"))
    if sum(bool(version.get("storage")) for version in versions) != 1:
        shown: Any = versions or None
        text = "must have exactly one version marked as storage version"
        errors.append(invalid_value("spec.versions", shown, text))
    return errors


_TEXTS = {"type", "format", "pattern", "title", "description", "x-kubernetes-list-type", "x-kubernetes-map-type"}
_COUNTS = {
    "maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties", "maximum", "minimum",
    "multipleOf",
}  # fmt: skip
_SCHEMAS = {"allOf", "oneOf", "anyOf"}


def _check_keywords(schema: Any, name: str) -> None:
    """Raises 400 where a schema says something in a form that Go's decoder does not take."""
    if not isinstance(schema, dict):
        raise _not_decoded(schema, name, "v1.JSONSchemaProps")
    for key, value in schema.items():
        if value is None:
            continue
        if key in _TEXTS and not isinstance(value, str):
            raise _not_decoded(value, key, "string")
        if key in _COUNTS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise _not_decoded(value, key, "int64")
        if key in ("required", "x-kubernetes-list-map-keys"):
            for word in value if isinstance(value, list) else [value]:
                if not isinstance(word, str):
                    raise _not_decoded(word, key, "string")
            if not isinstance(value, list):
                raise _not_decoded(value, key, "[]string")
        elif key in ("properties", "patternProperties", "definitions"):
            if not isinstance(value, dict):
                raise _not_decoded(value, key, "map[string]v1.JSONSchemaProps")
            for sub in value.values():
                _check_keywords(sub, key)
        elif key in _SCHEMAS or key == "x-kubernetes-validations":
            if not isinstance(value, list):
                raise _not_decoded(value, key, "[]v1.JSONSchemaProps")
            for sub in value:
                if key in _SCHEMAS:
                    _check_keywords(sub, key)
                elif not isinstance(sub, dict) or any(not isinstance(word, (str, bool)) for word in sub.values()):
                    raise _not_decoded(sub, key, "v1.ValidationRule")
        elif key in ("items", "not") or (key == "additionalProperties" and not isinstance(value, bool)):
            _check_keywords(value, key)
        elif key == "enum" and not isinstance(value, list):
            raise _not_decoded(value, key, "[]v1.JSON")


def _not_decoded(value: Any, name: str, wanted: str) -> ApiError:
    word = "CustomResourceDefinition"
    return bad_request(
        f'{word} in version "v1" cannot be handled as a {word}: json: cannot unmarshal {json_type(value)} into Go '
        f"struct field JSONSchemaProps.{name} of type {wanted}"
    )


def _structural(schema: Json, path: str, *, root: bool = False) -> list[FieldError]:
    errors: list[FieldError] = []
    loose = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if not schema.get("type") and not loose:
        errors.append(required(f"{path}.type", "must not be empty for specified object fields"))
    if "default" in schema and schema.get("type") and _kind_of(schema["default"]) != schema["type"]:
        actual = _kind_of(schema["default"])
        if not (schema["type"] == "number" and actual == "integer"):
            text = f' in body must be of type {schema["type"]}: "{actual}"'
            errors.append(type_invalid(f"{path}.default", actual, text))
    for number, rule in enumerate(schema.get("x-kubernetes-validations") or []):
        errors += _rule_errors(rule, f"{path}.x-kubernetes-validations[{number}].rule", schema, root=root)
    for name, sub in (schema.get("properties") or {}).items():
        if not (root and name in ("metadata", "apiVersion", "kind")):
            errors += _structural(sub, f"{path}.properties[{name}]")
    items = schema.get("items")
    if isinstance(items, dict):
        errors += _structural(items, f"{path}.items")
        for key in schema.get("x-kubernetes-list-map-keys") or []:
            sub = (items.get("properties") or {}).get(key) or {}
            if key not in (items.get("required") or []) and "default" not in sub:
                errors.append(
                    required(
                        f"{path}.items.properties[{key}].default",
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a "
                        "required property",
                    )
                )
    if isinstance(schema.get("additionalProperties"), dict):
        errors += _structural(schema["additionalProperties"], f"{path}.additionalProperties")
    return errors


def _rule_errors(rule: Json, path: str, schema: Json, *, root: bool) -> list[FieldError]:
    text = str(rule.get("rule", ""))
    if not text.strip():
        return [required(path, "rule is not specified")]
    try:
        _read_rule(text, schema, root)
    except cel.RuleError as error:
        shown = {
            "Rule": text, "Message": rule.get("message", ""), "MessageExpression": rule.get("messageExpression", ""),
            "Reason": rule.get("reason"), "FieldPath": rule.get("fieldPath", ""),
            "OptionalOldSelf": rule.get("optionalOldSelf"),
        }  # fmt: skip
        return [invalid_value(path, shown, cel.complaint(text, error))]
    if cel_check.is_costly(text, schema, root=root):
        return [forbidden_field(path, cel_check.TOO_COSTLY)]
    return []


def _read_rule(text: str, schema: Json, root: bool) -> None:
    try:
        cel.compile_rule(text)
    except cel.RuleError as error:
        if str(error).startswith("Syntax error"):
            raise
        # A function of Kubernetes that the lab cannot evaluate refuses nothing; one that nobody knows does.
    cel_check.check(text, schema, root=root)


def read_folder(folder: Path) -> list[Json]:
    """The CustomResourceDefinitions in the YAML and JSON files of a folder and those below it."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Json] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
            continue
        try:
            documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=loader))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue  # a template of a chart, not YAML
        for document in documents:
            rows = document.get("items") or [document] if isinstance(document, dict) else []
            for row in rows:
                if isinstance(row, dict) and row.get("kind") == "CustomResourceDefinition":
                    found[row["metadata"]["name"]] = row
    return list(found.values())


def canonical(value: Any) -> str:
    """A quantity as text, for printer columns."""
    return canonical_quantity(str(value))
