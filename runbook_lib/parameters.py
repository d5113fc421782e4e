"""Sites by name: parameters/<site>.yaml becomes a Site, and what is wrong with it one line.

`python -m runbook_lib.parameters` prints the JSON schema that parameters/schema.json holds.
"""

from __future__ import annotations

import json
import keyword
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from runbook_lib import strict_yaml
from runbook_lib.errors import ParameterError, SecretError
from runbook_lib.secrets import is_reference, resolve
from runbook_lib.site import (
    Benchmarks,
    Budget,
    Chart,
    CloudImage,
    Images,
    KubernetesEndpoint,
    LabSettings,
    Machines,
    Names,
    Networks,
    PasswordLogin,
    ProxmoxEndpoint,
    Requires,
    Site,
    Thresholds,
    VmidRange,
    nearest,
    summary,
)
from runbook_lib.strict_yaml import shown

__all__ = [
    "Benchmarks",
    "Budget",
    "Chart",
    "CloudImage",
    "Images",
    "KubernetesEndpoint",
    "LabSettings",
    "Machines",
    "Names",
    "Networks",
    "PasswordLogin",
    "ProxmoxEndpoint",
    "Requires",
    "Site",
    "Thresholds",
    "VmidRange",
    "check_notebook_parameters",
    "check_references",
    "load_site",
    "project_root",
    "schema",
    "site_names",
    "summary",
]

FOLDER = "parameters"
_PATHS = (("proxmox", "ca_file"), ("kubernetes", "ca_file"), ("kubernetes", "kubeconfig"))
_SECRET_KEYS = frozenset({"password", "token_secret", "token"})


# --- where things are --------------------------------------------------------------------------------------------


def project_root() -> Path:
    """The folder with notebooks/ and parameters/: $RUNBOOK_HOME, else the nearest upwards, else the library's own.

    Raises ParameterError when $RUNBOOK_HOME names something else.
    """
    named = os.environ.get("RUNBOOK_HOME")
    if named:
        root = Path(named).expanduser().resolve()
        if not _is_root(root):
            raise ParameterError("RUNBOOK_HOME", f"{named} has no notebooks/ and {FOLDER}/", "unset it, or correct it")
        return root
    here, library = Path.cwd().resolve(), Path(__file__).resolve().parent.parent
    return next((folder for folder in (here, *here.parents) if _is_root(folder)), library)


def _is_root(folder: Path) -> bool:
    return (folder / "notebooks").is_dir() and (folder / FOLDER).is_dir()


def site_names(root: Path | None = None) -> list[str]:
    """The sites that have a parameters file, sorted; files that begin with `fleet` list sites and are none."""
    folder = (root or project_root()) / FOLDER
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("fleet"))


# --- a site ------------------------------------------------------------------------------------------------------


def load_site(name_or_path: str | Path, *, root: Path | None = None, start_lab: bool = True) -> Site:
    """The Site of parameters/<name>.yaml, or of a path to such a file.

    Paths within it start at the project's root (of a file elsewhere: at its folder) and come back absolute.
    For an emulated site the lab is started where it is not up, and its endpoints are filled in; `start_lab=False`
    leaves them empty.
    Raises ParameterError with one line that names file, key, what was expected and the nearest valid name.
    """
    home = (root or project_root()).resolve()
    path = _file_of(name_or_path, home)
    site = _validated(_read(path, home), path, home)
    if site.lab is not None and start_lab:
        site = _with_lab(site, site.lab, home)
    return site


def _file_of(name_or_path: str | Path, home: Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        candidates = [path if path.is_absolute() else Path.cwd() / path, home / path]
        found = next((entry for entry in candidates if entry.suffix in {".yaml", ".yml"} and entry.is_file()), None)
        if found is None:
            raise ParameterError(f"site {shown(text)}", "there is no such file", _known_sites(home, path.stem))
        return found
    path = home / FOLDER / f"{text}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text) or not path.is_file():
        raise ParameterError(f"site {shown(text)}", f"there is no {FOLDER}/{shown(text, quote='')}.yaml",
                             _known_sites(home, text))  # fmt: skip
    return path


def _known_sites(home: Path, text: str) -> str:
    names = site_names(home)
    near = nearest(text, names)
    return f"did you mean {near}?" if near else "known sites: " + (", ".join(names) or "none")


def _read(path: Path, home: Path) -> dict[str, Any]:
    where = _shown_file(path, home)
    try:
        with path.open("rb") as file:
            data = strict_yaml.load(file.read(strict_yaml.LARGEST_BYTES + 1))
    except OSError as error:
        raise ParameterError(where, f"cannot be read: {error.strerror}") from error
    except strict_yaml.Malformed as error:
        raise ParameterError(f"{where}: line {error.line}" if error.line else where, str(error), error.hint) from error
    if not isinstance(data, dict):
        raise ParameterError(where, "expected a mapping of keys", "begin with title: and proxmox:")
    given = data.setdefault("name", path.stem)
    if given != path.stem:
        # results lie under the site's name: a copied file would write among another site's
        raise ParameterError(
            f"{where}: name", f"expected the file's own name, {shown(path.stem, quote='')}", "leave it out"
        )
    return data


def _shown_file(path: Path, home: Path) -> str:
    try:
        text = str(path.resolve().relative_to(home))
    except ValueError:
        text = str(path)
    return shown(text, quote="", longest=200)


def _validated(data: dict[str, Any], path: Path, home: Path) -> Site:
    try:
        # by way of JSON, where strict mode takes a list for a tuple
        site = Site.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise _as_parameter_error(error, _shown_file(path, home)) from None
    except ValueError as error:  # a lone surrogate
        raise ParameterError(_shown_file(path, home), "it holds text that is not Unicode") from error
    return _with_absolute_paths(site, home if path.resolve().is_relative_to(home) else path.resolve().parent)


def _with_absolute_paths(site: Site, base: Path) -> Site:
    """The site with files found from anywhere; `file:` references too."""

    def absolute(text: str) -> str:
        return str(base / Path(text).expanduser())

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(entry) for key, entry in value.items()}
        if isinstance(value, str) and value.startswith("file:"):
            name, mark, key = value.removeprefix("file:").partition("#")
            return f"file:{absolute(name)}{mark}{key}"
        return value

    data = {part: walk(getattr(site, part).model_dump(exclude_unset=True)) for part in ("proxmox", "kubernetes")}
    for part, key in _PATHS:
        if data[part].get(key):
            data[part][key] = absolute(data[part][key])
    site = _updated(site, data)
    if site.lab is not None and site.lab.scenario.endswith((".yaml", ".yml")):
        scenario = site.lab.model_copy(update={"scenario": absolute(site.lab.scenario)})
        return site.model_copy(update={"lab": scenario})
    return site


def _updated(site: Site, data: Mapping[str, Mapping[str, Any]]) -> Site:
    return site.model_copy(
        update={
            "proxmox": ProxmoxEndpoint.model_validate(data["proxmox"]),
            "kubernetes": KubernetesEndpoint.model_validate(data["kubernetes"]),
        }
    )


def _with_lab(site: Site, lab: LabSettings, home: Path) -> Site:
    from runbook_lib.lab import control

    folder = home / Path(lab.dir or ".lab").expanduser()
    connection, scenario = control.ensure(folder, scenario=lab.scenario, scale=lab.scale)
    secrets = f"file:{folder.resolve() / 'secrets.json'}"
    pve, kube = connection.proxmox, connection.kubernetes
    met = site.model_copy(update={"lab": lab.model_copy(update={"scenario": scenario})})
    return _updated(
        met,
        {
            "proxmox": {
                "timeout_seconds": site.proxmox.timeout_seconds,
                "url": pve.url,
                "ca_file": pve.ca_file,
                "token_id": pve.token_id,
                "token_secret": f"{secrets}#proxmox_token_secret",
                "password_login": {"user": pve.username, "password": f"{secrets}#proxmox_password"},
            },
            "kubernetes": {"timeout_seconds": site.kubernetes.timeout_seconds, "kubeconfig": kube.kubeconfig},
        },
    )


def check_references(site: Site) -> None:
    """None, when every secret of the site resolves and every file it names is there; nothing is sent.

    `k8s:` references are left out: they need the connection. Raises SecretError or ParameterError naming the key.
    """
    for part, key in _PATHS:
        path = getattr(getattr(site, part), key)
        if path and not Path(path).is_file():
            raise ParameterError(f"site {site.name}: {part}.{key}", f"there is no file {path}")
    for key, text in _texts(site.model_dump(mode="json"), ""):
        if key.rpartition(".")[2] in _SECRET_KEYS and is_reference(text) and not text.startswith("k8s:"):
            try:
                resolve(text)
            except SecretError as error:
                came = ": ".join(filter(None, (error.asked, error.came)))
                raise SecretError(f"site {site.name}: {key}", came, error.hint) from error


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _texts(entry, f"{key}.{name}" if key else name)
    elif isinstance(value, str):
        yield key, value


# --- what is wrong, in one line ----------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "mapping_type": "a mapping of keys",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def _as_parameter_error(error: ValidationError, where: str) -> ParameterError:
    # a mistyped key explains a missing one, so it is told first
    found = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    first = found[0]
    others = [_key(entry["loc"]) for entry in found[1:] if entry["loc"] != first["loc"][: len(entry["loc"])]]
    came, hint = _words(first)
    if others:
        hint = f"{hint}; " if hint else ""
        hint += f"also wrong: {', '.join(others[:5])}" + (", …" if len(others) > 5 else "")
    key = _key(first["loc"])
    return ParameterError(f"{where}: {key}" if key else where, came, hint)


def _key(loc: tuple[int | str, ...]) -> str:
    text = ""
    for entry in loc:
        if isinstance(entry, int):
            text += f"[{entry}]"
        elif entry != "[key]":  # pydantic's word for the key of a free mapping
            text += ("." if text else "") + shown(entry, quote="")
    return text


def _words(error: Any) -> tuple[str, str]:
    """What came, and the hint."""
    kind, context, value, loc = error["type"], error.get("ctx") or {}, error["input"], error["loc"]
    if kind == "extra_forbidden":
        return "unknown key", _known_key_hint(loc)
    if kind == "missing":
        return "missing", _description(loc)
    if kind == "site":
        return context["message"], context["hint"]
    given = "" if loc and loc[-1] in _SECRET_KEYS else f", got {_given(value)}"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        near = nearest(value, words) if isinstance(value, str) else None
        return f"expected one of {', '.join(words)}{given}", f"did you mean {near}?" if near else ""
    if kind in _BOUNDS:
        bound, word = _BOUNDS[kind]
        return f"expected {word} {context[bound]:g}{given}", _scale_hint(loc, value)
    if kind in _EXPECTED:
        hint = _type_hint(kind, value, loc) if given else "write where it is found, as in env:NAME"
        return f"expected {_EXPECTED[kind]}{given}", hint
    message = str(error["msg"])
    return f"{message[:1].lower()}{message[1:]}{given}", ""


def _given(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return shown(json.dumps(value, ensure_ascii=False), quote="")


def _type_hint(kind: str, value: Any, loc: tuple[int | str, ...]) -> str:
    if kind == "string_type" and not isinstance(value, Mapping | list) and value is not None:
        return f'quote it: "{_given(value)}"'
    if not isinstance(value, str):
        return ""
    if kind == "bool_type":
        meant = {"yes": "true", "on": "true", "1": "true", "true": "true", "no": "false", "off": "false", "0": "false"}
        return f"did you mean {meant[value.lower()]}?" if value.lower() in meant else ""
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return f"write {value} without quotes"
    unit = next((word for end, word in _UNITS.items() if str(loc[-1]).endswith(end)), "")
    if re.match(r"\d", value):
        return f"the number alone{', in ' + unit if unit else ''}"
    return ""


_UNITS = {"gib": "GiB", "_seconds": "seconds", "_days": "days", "minutes": "minutes", "_ms": "milliseconds"}


def _scale_hint(loc: tuple[int | str, ...], value: Any) -> str:
    if loc and loc[0] == "thresholds" and isinstance(value, int | float) and 1 < value <= 100:
        return f"a fraction: did you mean {value / 100:g}?"
    return ""


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The part of Site that `loc` names."""
    model: type[BaseModel] | None = Site
    for entry in loc:
        if model is None:
            return Chart  # charts.<name>
        field = model.model_fields.get(str(entry))
        model = _part_of(field.annotation) if field else None
    return model


def _part_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for entry in getattr(annotation, "__args__", ()) if (part := _part_of(entry)) is not None
                 and part is not Chart), None)  # fmt: skip


def _known_key_hint(loc: tuple[int | str, ...]) -> str:
    model, key = _model_at(loc[:-1]), str(loc[-1])
    known = list(model.model_fields) if model else []
    near = nearest(key, known)
    if near:
        return f"did you mean {near}?"
    homes = [path for path, fields in _sections() if key in fields]
    if homes:
        return f"it belongs under {homes[0]}" if homes[0] else "it belongs at the top"
    return f"known here: {', '.join(known)}"


def _sections() -> Iterator[tuple[str, set[str]]]:
    yield "", set(Site.model_fields)
    for name, field in Site.model_fields.items():
        part = _part_of(field.annotation)
        if part is not None:
            yield name, set(part.model_fields)


def _description(loc: tuple[int | str, ...]) -> str:
    model = _model_at(loc[:-1])
    field = model.model_fields.get(str(loc[-1])) if model else None
    return (field.description or "").rstrip(".") if field else ""


# --- notebook parameters -----------------------------------------------------------------------------------------

_KINDS: Mapping[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def check_notebook_parameters(given: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """None, when the notebooks declare every given parameter and each value is plain data.

    papermill pastes names into code and only warns of unknown ones, so both are refused here. `declared` maps a name
    to its annotation as text ("str"), or to anything else where there is none. Raises ParameterError.
    """
    for name, value in given.items():
        what = f"notebook parameter {shown(str(name))}"
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
            raise ParameterError(what, "not a plain identifier", "letters, digits and _, not beginning with a digit")
        if name not in declared:
            near = nearest(name, declared)
            hint = f"did you mean {near}?" if near else f"declared: {', '.join(sorted(declared)) or 'none'}"
            raise ParameterError(what, "no notebook declares it", hint)
        flaw = _not_plain(value)
        if flaw:
            raise ParameterError(
                what, f"{flaw} is not plain data", "text, numbers, true, false, null, lists and mappings"
            )
        _check_kind(what, value, str(declared[name]))


def _check_kind(what: str, value: Any, kind: str) -> None:
    expected = _KINDS.get(kind)
    if expected is None or value is None:
        return
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise ParameterError(what, f"expected {kind}, got {_given(value)}")


def _not_plain(value: Any, depth: int = 0) -> str:
    """What of `value` JSON has no word for; empty when nothing."""
    if depth > strict_yaml.DEEPEST:
        return f"nesting deeper than {strict_yaml.DEEPEST} levels"
    if value is None or isinstance(value, bool | int):
        return ""
    if isinstance(value, str):
        return "a lone surrogate" if re.search(r"[\ud800-\udfff]", value) else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"the number {value}"
    if isinstance(value, list | tuple):
        return next(filter(None, (_not_plain(entry, depth + 1) for entry in value)), "")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return "a key that is not text"
        return next(filter(None, (_not_plain(entry, depth + 1) for entry in value.values())), "")
    return f"a {type(value).__name__}"


# --- the schema --------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The JSON schema of a parameters file, for editors; parameters/schema.json holds it."""
    made = Site.model_json_schema()
    made["required"] = [name for name in made.get("required", []) if name != "name"]  # taken from the file's name
    if not made["required"]:
        del made["required"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Runbook site parameters"} | {
        key: value for key, value in made.items() if key != "title"
    }


def main() -> None:
    """None; the schema is on standard output."""
    sys.stdout.write(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
