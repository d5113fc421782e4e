"""Server-side apply: field ownership as sets of paths, conflicts, force, removal by omission.

A path is a tuple of the elements of FieldsV1: `f:name`, `k:{"name":"a"}`, `v:"x"`; a leaf `.` marks the holder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .schema import child, resolve
from .status import ApiError, internal, show

Json = dict[str, Any]
Path = tuple[str, ...]
SYSTEM = {
    ("f:apiVersion",), ("f:kind",), ("f:metadata",), ("f:metadata", "f:name"), ("f:metadata", "f:namespace"),
    ("f:metadata", "f:creationTimestamp"), ("f:metadata", "f:selfLink"), ("f:metadata", "f:uid"),
    ("f:metadata", "f:clusterName"), ("f:metadata", "f:generation"), ("f:metadata", "f:managedFields"),
    ("f:metadata", "f:resourceVersion"), ("f:metadata", "f:deletionTimestamp"),
    ("f:metadata", "f:deletionGracePeriodSeconds"),
}  # fmt: skip
META_NODE = {"r": "apimachinery.pkg.apis.meta.v1.ObjectMeta"}


def typed(node: Any) -> Any:
    """The root shape with metadata known, for custom kinds too."""
    entry = resolve(node)
    if isinstance(entry, dict) and "p" in entry and "metadata" in entry["p"]:
        found = entry["p"]["metadata"]
        return node if isinstance(found, dict) and "r" in found else entry | {"p": entry["p"] | {"metadata": META_NODE}}
    if isinstance(entry, dict):
        return {"m": "*"} | entry | {"p": entry.get("p", {}) | {"metadata": META_NODE, "apiVersion": "s", "kind": "s"}}
    return {"p": {"metadata": META_NODE, "apiVersion": "s", "kind": "s"}, "m": "*"}


def _map_key(item: Json, keys: list[str], node: Any) -> str:
    found = {name: item[name] for name in keys if name in item}
    if "protocol" in keys and "protocol" not in found:
        found["protocol"] = "TCP"
    return "k:" + json.dumps(dict(sorted(found.items())), separators=(",", ":"), ensure_ascii=False)


def paths(value: Any, node: Any, *, holders: bool = True) -> set[Path]:
    """Every path an object holds; without `holders` only leaves and list items, as an applied configuration owns."""
    found: set[Path] = set()
    plain = _INLINE if isinstance(node, dict) and "r" in node else frozenset[str]()
    _collect(value, typed(node), (), found, plain if holders else None)
    return {path for path in found if path not in SYSTEM}


def _collect(value: Any, node: Any, here: Path, found: set[Path], plain: frozenset[str] | None) -> None:
    # `plain` names the structures that do not own themselves; None means that no holder does.
    entry = resolve(node)
    shape = entry if isinstance(entry, dict) else {}
    atomic = bool(shape.get("atomic") or (isinstance(node, dict) and node.get("atomic")))
    held = node == "*" or (plain is not None and bool(here) and here[-1] not in plain)
    own = bool(here) and (not value or _is_item(here) or held)
    if isinstance(value, dict) and not atomic:
        if own:
            found.add(here)
        for name, sub in value.items():
            _collect(sub, child(node, name) if node != "*" else "*", (*here, f"f:{name}"), found, plain)
    elif isinstance(value, list) and shape.get("t") == "map":
        if own:
            found.add(here)
        for item in value:
            if isinstance(item, dict):
                _collect(item, shape["a"], (*here, _map_key(item, shape.get("k", ["name"]), shape["a"])), found, plain)
    elif isinstance(value, list) and shape.get("t") == "set":
        if own:
            found.add(here)
        for item in value:
            found.add((*here, "v:" + json.dumps(item, separators=(",", ":"), ensure_ascii=False)))
    else:
        found.add(here)


def _is_item(path: Path) -> bool:
    return bool(path) and path[-1].startswith("k:")


# Pointers to structures own themselves (`.`) beside their fields; fields of Go that are always there do not.
_INLINE = frozenset(
    f"f:{name}"
    for name in [
        "metadata",
        "spec",
        "status",
        "template",
        "strategy",
        "updateStrategy",
        "involvedObject",
        "source",
        "roleRef",
        "jobTemplate",
        "names",
        "nodeInfo",
        "daemonEndpoints",
        "kubeletEndpoint",
        "loadBalancer",
        "podSelector",
        "target",
        "scaleTargetRef",
        "state",
        "lastState",
        "resources",
        "containers",
        "webhooks",
    ]
)


def to_fields(found: Iterable[Path]) -> Json:
    """Paths as a FieldsV1 tree."""
    tree: Json = {}
    ordered = sorted(found)
    prefixes = {path[:n] for path in ordered for n in range(1, len(path))}
    for path in ordered:
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        if path in prefixes:
            node["."] = {}
    return _sorted(tree)


def _sorted(tree: Json) -> Json:
    return {key: _sorted(tree[key]) for key in sorted(tree)}


def from_fields(tree: Json, here: Path = ()) -> set[Path]:
    """A FieldsV1 tree as paths."""
    found: set[Path] = set()
    for key, sub in tree.items():
        if key == ".":
            found.add(here)
        elif not sub:
            found.add((*here, key))
        else:
            found |= from_fields(sub, (*here, key))
    return found


def show_path(path: Path) -> str:
    """`.spec.containers[name="b"].image`, as conflicts name it."""
    text = ""
    for part in path:
        if part.startswith("f:"):
            text += "." + part[2:]
        elif part.startswith("k:"):
            text += "[" + ",".join(f"{k}={show(v)}" for k, v in json.loads(part[2:]).items()) + "]"
        else:
            text += "[=" + part[2:] + "]"
    return text


_MISSING: Any = object()


def _value(obj: Any, path: Path) -> Any:
    for part in path:
        if part.startswith("f:"):
            obj = obj.get(part[2:], _MISSING) if isinstance(obj, dict) else _MISSING
        elif part.startswith("k:") and isinstance(obj, list):
            key = json.loads(part[2:])
            obj = next((i for i in obj if isinstance(i, dict) and _has(i, key)), _MISSING)
        elif part.startswith("v:") and isinstance(obj, list):
            wanted = json.loads(part[2:])
            obj = wanted if wanted in obj else _MISSING
        else:
            return _MISSING
        if obj is _MISSING:
            return _MISSING
    return obj


def _has(item: Json, key: Json) -> bool:
    return all(item.get(name, "TCP" if name == "protocol" else None) == value for name, value in key.items())


def merge(live: Any, applied: Any, node: Any) -> Any:
    """The live object with everything the applied one says."""
    entry = resolve(node)
    shape = entry if isinstance(entry, dict) else {}
    atomic = shape.get("atomic") or (isinstance(node, dict) and node.get("atomic"))
    if isinstance(applied, dict) and isinstance(live, dict) and not atomic:
        return live | {name: merge(live.get(name), sub, child(node, name)) for name, sub in applied.items()}
    if isinstance(applied, list) and isinstance(live, list) and shape.get("t") == "map":
        return _merge_items(live, applied, shape)
    if isinstance(applied, list) and isinstance(live, list) and shape.get("t") == "set":
        return live + [item for item in applied if item not in live]
    return applied


def _merge_items(live: list[Any], applied: list[Any], shape: Json) -> list[Any]:
    keys = shape.get("k", ["name"])
    index = {_map_key(item, keys, shape["a"]): n for n, item in enumerate(live) if isinstance(item, dict)}
    result = list(live)
    for item in applied:
        place = index.get(_map_key(item, keys, shape["a"]))
        if place is None:
            result.append(item)
        else:
            result[place] = merge(live[place], item, shape["a"])
    return result


def remove(obj: Any, gone: set[Path], kept: set[Path]) -> Any:
    """The object without the named paths; a holder that is left empty goes too, unless someone keeps it."""
    result = obj
    keep = kept | holders(kept)
    for path in sorted(gone, key=len):
        result = _without(result, path)
        for size in range(len(path) - 1, 0, -1):
            above = path[:size]
            if above in keep or above in SYSTEM or _value(result, above) not in ({}, []):
                break
            result = _without(result, above)
    return result


def _without(obj: Any, path: Path) -> Any:
    if not path:
        return obj
    head, rest = path[0], path[1:]
    if head.startswith("f:") and isinstance(obj, dict):
        name = head[2:]
        if name not in obj:
            return obj
        if not rest:
            return {k: v for k, v in obj.items() if k != name}
        return obj | {name: _without(obj[name], rest)}
    if head.startswith("k:") and isinstance(obj, list):
        key = json.loads(head[2:])
        if not rest:
            return [item for item in obj if not (isinstance(item, dict) and _has(item, key))]
        return [_without(item, rest) if isinstance(item, dict) and _has(item, key) else item for item in obj]
    if head.startswith("v:") and isinstance(obj, list):
        wanted = json.loads(head[2:])
        return [item for item in obj if item != wanted]
    return obj


def typed_errors(value: Any, node: Any, path: str = "", owner: str = "") -> str:
    """Why an applied configuration does not fit its schema; "" when it does."""
    entry = resolve(node)
    if node == "*" or entry == "*" or value is None:
        return ""
    if isinstance(node, str):
        return _scalar_error(value, node, path)
    shape = entry
    if "a" in shape:
        if not isinstance(value, list):
            return f"{path}: expected list, got {_typed_name(value)}"
        return _list_errors(value, shape, path)
    if not isinstance(value, dict):
        return f"{path}: expected map, got {_typed_name(value)}"
    for name, sub in value.items():
        if "p" in shape and name not in shape["p"] and "m" not in shape:
            return f"{path}.{name}: field not declared in schema"
        error = typed_errors(sub, child(node, name), f"{path}.{name}")
        if error:
            return error
    return ""


def _list_errors(value: list[Any], shape: Json, path: str) -> str:
    if shape.get("t") == "map":
        seen = set()
        for item in value:
            if not isinstance(item, dict):
                return f"{path}: expected map, got {_typed_name(item)}"
            key = _map_key(item, shape.get("k", ["name"]), shape["a"])
            if key in seen:
                return f"{path}: duplicate entries for key {show_path((key,))}"
            seen.add(key)
    for number, item in enumerate(value):
        label = f"{path}[{number}]"
        if shape.get("t") == "map":
            label = path + show_path((_map_key(item, shape.get("k", ["name"]), shape["a"]),))
        error = typed_errors(item, shape["a"], label)
        if error:
            return error
    return ""


def _typed_name(value: Any) -> str:
    if isinstance(value, bool):
        return f"&value.valueUnstructured{{Value:{str(value).lower()}}}"
    known: dict[type, str] = {str: "string", list: "list", dict: "map"}
    return known.get(type(value), f"&value.valueUnstructured{{Value:{value}}}")


def _scalar_error(value: Any, node: str, path: str) -> str:
    if node in ("s", "t", "m", "B") and not isinstance(value, str):
        return f"{path}: expected string, got {_typed_name(value)}"
    if node in ("i", "n") and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return f"{path}: expected numeric (int or float), got {_typed_name(value)}"
    if node == "b" and not isinstance(value, bool):
        return f"{path}: expected boolean, got {_typed_name(value)}"
    return ""


Entry = Json


def _entry(manager: str, operation: str, version: str, time: str, subresource: str, found: set[Path]) -> Entry:
    entry: Entry = {"manager": manager, "operation": operation, "apiVersion": version, "time": time}
    entry |= {"fieldsType": "FieldsV1", "fieldsV1": to_fields(found)}
    return entry | ({"subresource": subresource} if subresource else {})


def _same(entry: Entry, manager: str, operation: str, version: str, subresource: str) -> bool:
    return (
        entry.get("manager") == manager
        and entry.get("operation") == operation
        and entry.get("subresource", "") == subresource
        and (operation == "Apply" or entry.get("apiVersion") == version)
    )


def _order(entries: list[Entry]) -> list[Entry]:
    return sorted(
        entries,
        key=lambda e: (e.get("operation", ""), e.get("time", ""), e.get("manager", ""), e.get("apiVersion", "")),
    )


def holders(every: set[Path]) -> set[Path]:
    """The paths that hold others; the rest are leaves, owned as one."""
    return {path[:n] for path in every for n in range(1, len(path))}


def changed(old: Any, new: Any, before: set[Path], after: set[Path], same: frozenset[Path] = frozenset()) -> set[Path]:
    """Paths that are new, and leaves whose value differs; what lies under `same` is known to be equal."""
    inner = holders(after)
    return {
        p
        for p in after
        if p[:1] not in same
        and p[:2] not in same
        and (p not in before or (p not in inner and _value(old, p) != _value(new, p)))
    }


def equal_parts(old: Json, new: Json) -> frozenset[Path]:
    """Paths of one part or two under which both objects hold the same: most writes change little of an object."""
    found: set[Path] = set()
    for name, value in new.items():
        if name not in old:
            continue
        if old[name] == value:
            found.add((f"f:{name}",))
        elif isinstance(value, dict) and isinstance(old[name], dict):
            found |= {
                (f"f:{name}", f"f:{inner}")
                for inner, part in value.items()
                if inner in old[name] and old[name][inner] == part
            }
    return frozenset(found)


def after_update(
    old: Json | None, new: Json, node: Any, manager: str, version: str, time: str, subresource: str = ""
) -> list[Entry]:
    """managedFields after a plain write: the manager owns what it changed, others lose it."""
    entries = list(new["metadata"].get("managedFields") or [])
    after = paths(new, node)
    same = equal_parts(old, new) if old else frozenset()
    rest = {name: value for name, value in (old or {}).items() if (f"f:{name}",) not in same}
    before = paths(rest, node) if rest else set()
    mine = changed(old, new, before, after, same)
    inner = holders(after)
    kept: list[Entry] = []
    found = False
    for entry in entries:
        owned = from_fields(entry.get("fieldsV1") or {})
        if _same(entry, manager, "Update", version, subresource):
            found = True
            total = (owned | mine) & after
            if total:
                stamp = time if total != owned or mine else entry.get("time", time)
                kept.append(_entry(manager, "Update", version, stamp, subresource, total))
            continue
        left = (owned - (mine - inner)) & after
        if left:
            kept.append(entry | {"fieldsV1": to_fields(left)} if left != owned else entry)
    if not found and mine:
        kept.append(_entry(manager, "Update", version, time, subresource, mine))
    return _order(kept)


def apply(
    live: Json | None, applied: Json, node: Any, manager: str, version: str, time: str,
    *, force: bool = False, subresource: str = "",
) -> tuple[Json, list[Entry]]:  # fmt: skip
    """The merged object and its managedFields; ApiError 409 names every conflict."""
    root = typed(node)
    mine = paths(applied, node, holders=False)
    base = live or {}
    entries = list((base.get("metadata") or {}).get("managedFields") or [])
    if live is not None and not entries:
        old = paths(live, node)
        if old:
            entries = [_entry("before-first-apply", "Update", version, time, "", old)]
    clashes: list[tuple[Entry, list[Path]]] = []
    inner = holders(mine)
    for entry in entries:
        if _same(entry, manager, "Apply", version, subresource):
            continue
        owned = from_fields(entry.get("fieldsV1") or {})
        overlap = [p for p in sorted(owned & mine - inner) if not _agree(base, applied, p)]
        if overlap:
            clashes.append((entry, overlap))
    if clashes and not force:
        raise _conflict(clashes)
    merged = merge(base, applied, root)
    previous = next((e for e in entries if _same(e, manager, "Apply", version, subresource)), None)
    taken = {id(entry): set(overlap) for entry, overlap in clashes}
    others: set[Path] = set()
    kept: list[Entry] = []
    for entry in entries:
        if entry is previous:
            continue
        owned = from_fields(entry.get("fieldsV1") or {})
        left = owned - taken.get(id(entry), set())
        others |= left
        if left:
            kept.append(entry | {"fieldsV1": to_fields(left)} if left != owned else entry)
    if previous is not None:
        dropped = from_fields(previous.get("fieldsV1") or {}) - mine - others
        dropped = {p for p in dropped if not _kept_by(p, mine | others)}
        merged = remove(merged, dropped, mine | others)
        if from_fields(previous.get("fieldsV1") or {}) == mine:
            time = previous.get("time", time)
    if mine:
        kept.append(_entry(manager, "Apply", version, time, subresource, mine))
    return merged, _order(kept)


def _kept_by(path: Path, owned: set[Path]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in owned)


def _agree(live: Json, applied: Json, path: Path) -> bool:
    wanted, actual = _value(applied, path), _value(live, path)
    return actual is _MISSING or wanted == actual or (wanted in ({}, []) and isinstance(actual, type(wanted)))


def _conflict(clashes: list[tuple[Entry, list[Path]]]) -> ApiError:
    def name(entry: Entry) -> str:
        text = f'"{entry["manager"]}"'
        if entry.get("subresource"):
            text += f' with subresource "{entry["subresource"]}"'
        if entry.get("operation") == "Update":
            text += f" using {entry.get('apiVersion')}"
        return text

    rows = sorted(((name(entry), path) for entry, found in clashes for path in found), key=lambda r: (r[0], r[1]))
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": show_path(path)}
        for who, path in rows
    ]
    if len(rows) == 1:
        message = f"Apply failed with 1 conflict: conflict with {rows[0][0]}: {show_path(rows[0][1])}"
    else:
        message = f"Apply failed with {len(rows)} conflicts: "
        blocks = []
        for who in dict.fromkeys(row[0] for row in rows):
            blocks.append(f"conflicts with {who}:\n" + "\n".join(f"- {show_path(p)}" for w, p in rows if w == who))
        message += "\n".join(blocks)
    return ApiError(409, "Conflict", message, {"causes": causes})


def untypable(namespace: str, name: str, version: str, kind: str, error: str) -> ApiError:
    """500 for a configuration that does not fit the schema (as structured-merge-diff reports it)."""
    return internal(f"failed to create typed patch object ({namespace}/{name}; {version}, Kind={kind}): {error}")
