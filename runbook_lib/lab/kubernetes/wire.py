"""Reading requests and writing answers: paths, media types, bodies with duplicate keys, YAML."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from . import protobuf
from .status import ApiError, bad_request

Json = dict[str, Any]
JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
MEDIA = f"{JSON}, {YAML}, {PROTOBUF}"
LIMIT = 3145728
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get", "HEAD": "get"}


@dataclass(frozen=True)
class Target:
    """What a path names: group, version, resource, namespace, name, subresource and what follows it."""

    group: str
    version: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    watch: bool = False


def target(path: str) -> Target | None:
    """The resource a path names, or None for any other path."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    watch = rest[0] == "watch" and len(rest) > 1
    if watch:
        rest = rest[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        if len(rest) == 2 or (rest[2] in ("status", "finalize") and len(rest) == 3):
            part = rest[2] if len(rest) == 3 else ""
            return Target(group, version, "namespaces", rest[1], rest[1], part, watch=watch)
        namespace, rest = rest[1], rest[2:]
    found = Target(group, version, rest[0], namespace, watch=watch)
    if len(rest) > 1:
        found = replace(found, name=rest[1])
    if len(rest) > 2:
        tail = "/".join(path.strip("/").split("/")[len(parts) - len(rest) + 3 :])
        found = replace(found, subresource=rest[2], rest=tail)
    return found


# -- accept -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accept:
    """What a client wants: JSON or YAML, and a transformation (Table, PartialObjectMetadata…)."""

    media: str = JSON
    kind: str = ""
    pretty: bool = False


def accept(header: str, pretty: str = "", agent: str = "") -> Accept:
    """The first form the server can give; ApiError 406 when there is none."""
    clauses = []
    for number, clause in enumerate(header.split(",") if header else ["*/*"]):
        media, *parameters = [part.strip() for part in clause.split(";")]
        values = dict(p.split("=", 1) for p in parameters if "=" in p)
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            quality = 1.0
        clauses.append((-quality, number, media, values))
    nice = pretty in ("true", "1") or (not pretty and agent.startswith(("curl/", "Wget/", "Mozilla/")))
    for _, _, media, values in sorted(clauses, key=lambda c: c[:2]):
        kind = values.get("as", "")
        if kind and (values.get("g"), values.get("v")) not in (
            ("meta.k8s.io", "v1"), ("meta.k8s.io", "v1beta1"), ("apidiscovery.k8s.io", "v2"),
        ):  # fmt: skip
            continue
        if media in (JSON, "application/*", "*/*"):
            return Accept(JSON, kind, nice)
        if media == YAML:
            return Accept(YAML, kind, nice)
    raise ApiError(406, "NotAcceptable", f"406: Not Acceptable\n\nAvailable representations: {MEDIA}", {})


# -- bodies -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Body:
    """A decoded body and the keys that came twice."""

    value: Any
    duplicates: tuple[str, ...] = ()
    yaml: bool = False


class _Twice:
    """Collects the paths of repeated keys while JSON is read."""

    def __init__(self) -> None:
        self.pairs: dict[int, list[str]] = {}

    def hook(self, pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            self.pairs[id(found)] = [name for name in found for _ in range(names.count(name) - 1)]
        return found

    def paths(self, value: Any, path: str = "") -> list[str]:
        """Every repeated key below a value, as dotted paths."""
        found: list[str] = []
        if isinstance(value, dict):
            found += [f"{path}{key}" for key in self.pairs.get(id(value), [])]
            for key, item in value.items():
                found += self.paths(item, f"{path}{key}.")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                found += self.paths(item, f"{path.rstrip('.')}[{number}].")
        return found


def read_json(raw: bytes) -> Body:
    """A JSON body; ValueError when it cannot be read."""
    twice = _Twice()
    value = json.loads(raw.decode("utf-8", "replace"), object_pairs_hook=twice.hook, parse_constant=_no_constant)
    return Body(value, tuple(twice.paths(value)) if twice.pairs else ())


def _no_constant(text: str) -> Any:
    raise ValueError(f"invalid constant {text}")


_LOADERS: list[Any] = []


def _loader() -> Any:
    if _LOADERS:
        return _LOADERS[0]
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        """YAML 1.1 as the API server reads it: `y` is true, dates stay text, keys that come twice are remembered."""

        twice: list[str]

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    line = key.start_mark.line + 1
                    self.twice.append(f'line {line}: key "{key.value}" already set in map')
                seen.add(key.value)
            found = super().construct_mapping(node, deep)
            return {k if isinstance(k, str) else json.dumps(k): v for k, v in found.items()}

    Loader.yaml_implicit_resolvers = {
        key: [row for row in rows if row[0] != "tag:yaml.org,2002:timestamp"]
        for key, rows in base.yaml_implicit_resolvers.items()
    }
    boolean = "tag:yaml.org,2002:bool"
    Loader.add_implicit_resolver(boolean, re.compile(r"^(?:y|Y|n|N)$"), list("yYnN"))
    Loader.bool_values = base.bool_values | {"y": True, "n": False}
    _LOADERS.append(Loader)
    return Loader


def read_yaml(raw: bytes) -> Body:
    """A YAML body; ValueError when it cannot be read."""
    import yaml

    text = raw.decode("utf-8", "replace")
    if text.count("*") > 100 and text.count("&") > 5 and re.search(r"\*\w+(\s*,\s*\*\w+){5}", text):
        raise ValueError("yaml: document contains excessive aliasing")
    loader = _loader()(text)
    loader.twice = []
    try:
        value = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("yaml: " + str(error).split("\n")[0]) from error
    finally:
        loader.dispose()
    lines = [f"yaml: unmarshal errors:\n  {text}" for text in loader.twice]
    return Body(value, tuple(lines), yaml=True)


def media_type(header: str | None) -> str:
    """The content type without parameters, lower case."""
    return (header or "").split(";")[0].strip().lower()


def read(raw: bytes, content_type: str, kind: str) -> Body:
    """The body of a create or update; ApiError in the words of the real decoder."""
    if content_type in ("", JSON):
        try:
            body = read_json(raw)
        except (ValueError, RecursionError) as error:
            raise _unreadable(raw, kind, _go_syntax(raw, error)) from error
    elif content_type == YAML:
        try:
            body = read_yaml(raw)
        except ValueError as error:
            raise _unreadable(raw, kind, str(error)) from error
    elif content_type == PROTOBUF:
        body = _read_protobuf(raw)
    else:
        raise ApiError(
            415, "UnsupportedMediaType",
            f"the body of the request was in an unknown format - accepted media types include: {MEDIA}",
        )  # fmt: skip
    if isinstance(body.value, dict):
        for name in ("kind", "apiVersion"):
            given = body.value.get(name)
            if given is not None and not isinstance(given, str):
                text = f"json: cannot unmarshal {_word(given)} into Go struct field .{name} of type string"
                raise _unreadable(raw, kind, text)
    else:
        word = {str: "string", list: "array", bool: "bool", type(None): "null"}.get(type(body.value), "number")
        shape = (
            'struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }'
        )
        text = f"json: cannot unmarshal {word} into Go value of type {shape}"
        if body.value is None:
            return Body({})
        raise _unreadable(raw, kind, text)
    return body


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    known: dict[type, str] = {dict: "object", list: "array", str: "string"}
    return known.get(type(value), "number")


def _read_protobuf(raw: bytes) -> Body:
    try:
        value = protobuf.read(raw)
    except ValueError as error:
        raise bad_request(f"the object provided is unrecognized: {error}") from error
    if value is None:
        raise ApiError(
            415, "UnsupportedMediaType",
            f"the body of the request was in an unknown format - accepted media types include: {JSON}, {YAML}",
        )  # fmt: skip
    return Body(value)


def _unreadable(raw: bytes, kind: str, text: str) -> ApiError:
    shown = raw[:1024].decode("utf-8", "replace") if _plain(raw) else raw[:1024].hex()
    if text.startswith("json: cannot unmarshal"):
        shown = raw[:1024].hex()
    return bad_request(
        f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: "
        f"{text} ({shown or '<empty>'})"
    )


def _plain(raw: bytes) -> bool:
    return raw[:1] in (b"{", b"")


def _go_syntax(raw: bytes, error: Exception) -> str:
    text = raw.decode("utf-8", "replace")
    place = getattr(error, "pos", None)
    if isinstance(error, RecursionError):
        return "exceeded max depth"
    if place is None or place >= len(text.rstrip()):
        return "unexpected end of JSON input"
    char = text[place]
    message = str(error)
    if "property name" in message:
        return f"invalid character '{char}' looking for beginning of object key string"
    if "',' delimiter" in message:
        return f"invalid character '{char}' after object key:value pair"
    if "':' delimiter" in message:
        return f"invalid character '{char}' after object key"
    if "Extra data" in message:
        return f"invalid character '{char}' after top-level value"
    return f"invalid character '{char}' looking for beginning of value"


def read_patch(raw: bytes, content_type: str) -> Body:
    """The body of a patch."""
    try:
        if content_type.startswith("application/apply-patch"):
            return read_yaml(raw) if raw[:1] not in (b"{", b"[") else read_json(raw)
        return read_json(raw)
    except (ValueError, RecursionError) as error:
        if content_type.startswith("application/apply-patch"):
            raise bad_request(f"error decoding YAML: {error}") from error
        raise bad_request(f"error decoding patch: {_go_syntax(raw, error)}") from error


def write_yaml(value: Any) -> bytes:
    """YAML with sorted keys, as the API server writes it."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        """Indents sequences as the API server does and quotes strings that look like other types."""

    def text(dumper: Any, data: str) -> Any:
        odd = re.fullmatch(r"[0-9].*|true|false|yes|no|on|off|y|n|null|~|", data, re.I) or ": " in data
        style = "|" if "\n" in data else ('"' if odd and not re.fullmatch(r"[0-9a-f]{8}-.*", data) else None)
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    found: bytes = yaml.dump(
        value, Dumper=Dumper, sort_keys=True, default_flow_style=False, encoding="utf-8", width=1 << 20
    )
    return found
