"""JSON, merge and strategic-merge patches; each returns the patched copy."""

from __future__ import annotations

import copy
from typing import Any

from .schema import child, resolve
from .status import ApiError, bad_request, internal

Json = dict[str, Any]


def rejected() -> ApiError:
    """422 for a JSON patch that cannot be applied."""
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {})


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def _pointer(path: str) -> list[str]:
    if path == "":
        return []
    if not path.startswith("/"):
        raise rejected()
    return [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]


def _step(holder: Any, part: str) -> Any:
    if isinstance(holder, dict) and part in holder:
        return holder[part]
    if isinstance(holder, list) and part.lstrip("-").isdigit() and -len(holder) <= int(part) < len(holder):
        return holder[int(part)]
    raise rejected()


def _walk(document: Any, parts: list[str]) -> Any:
    for part in parts:
        document = _step(document, part)
    return document


def _add(document: Any, path: str, value: Any, *, replace: bool = False) -> Any:
    parts = _pointer(path)
    if not parts:
        return value
    holder, last = _walk(document, parts[:-1]), parts[-1]
    if isinstance(holder, dict):
        holder[last] = value
    elif isinstance(holder, list):
        if replace:
            _step(holder, last)
            holder[int(last)] = value
        elif last == "-":
            holder.append(value)
        elif last.isdigit() and int(last) <= len(holder):
            holder.insert(int(last), value)
        else:
            raise rejected()
    else:
        raise rejected()
    return document


def _remove(document: Any, path: str) -> Any:
    parts = _pointer(path)
    if not parts:
        raise rejected()
    holder, last = _walk(document, parts[:-1]), parts[-1]
    value = _step(holder, last)
    del holder[last if isinstance(holder, dict) else int(last)]
    return value


def json_patch(document: Any, operations: Any) -> Any:
    """RFC 6902, with the API server's lenience: `replace` of a missing map key adds it."""
    if not isinstance(operations, list):
        kind = {dict: "object", str: "string", bool: "bool"}.get(type(operations), "number")
        raise bad_request(
            f"error decoding patch: json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
        )
    document = copy.deepcopy(document)
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise rejected()
        name, path = operation.get("op"), operation["path"]
        if name in ("add", "replace"):
            if "value" not in operation:
                raise rejected()
            document = _add(document, path, copy.deepcopy(operation["value"]), replace=name == "replace")
        elif name == "remove":
            _remove(document, path)
        elif name == "test":
            if _walk(document, _pointer(path)) != operation.get("value"):
                raise rejected()
        elif name == "copy":
            document = _add(document, path, copy.deepcopy(_walk(document, _pointer(str(operation.get("from", ""))))))
        elif name == "move":
            document = _add(document, path, _remove(document, str(operation.get("from", ""))))
        else:
            raise rejected()
    return document


def _go_map(value: Any) -> str:
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_go_map(value[k])}" for k in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_go_map(item) for item in value) + "]"
    return str(value)


def strategic(target: Any, patch: Json, node: Any) -> Any:
    """A strategic merge: lists merge by the key their shape declares; `$patch`, `$deleteFromPrimitiveList`,
    `$setElementOrder` and `$retainKeys` are obeyed."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise internal(f"unknown patch type: {directive} in map: {_go_map(patch)}")
    result = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key in ("$patch", "$retainKeys") or key.startswith("$setElementOrder/"):
            continue
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.split("/", 1)[1]
            kept = [item for item in result.get(name) or [] if item not in value]
            result[name] = kept
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = strategic(old if isinstance(old, dict) else {}, value, child(node, key))
        elif isinstance(value, list):
            result[key] = _lists(result.get(key), value, child(node, key))
        else:
            result[key] = value
    for key, order in patch.items():
        if key.startswith("$setElementOrder/"):
            name = key.split("/", 1)[1]
            if isinstance(result.get(name), list):
                result[name] = _ordered(result[name], order, child(node, name))
    return result


def _lists(target: Any, patch: list[Any], node: Any) -> list[Any]:
    shape = resolve(node)
    merges = isinstance(shape, dict) and "merge" in shape.get("ps", "")
    old = list(target) if isinstance(target, list) else []
    if not merges:
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    key = shape.get("mk")
    if not key or not all(isinstance(item, dict) for item in patch):
        return old + [item for item in patch if item not in old]
    if any(item.get("$patch") == "replace" and len(item) == 1 for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    if any(isinstance(item.get(key), (dict, list)) for item in patch):
        raise bad_request(f"the merge key {key} of an item is no scalar")
    places = {entry.get(key): number for number, entry in enumerate(old)}
    merged: list[Any] = []
    for item in patch:
        if key not in item:
            raise internal(f"map: {_go_map(item)} does not contain declared merge key: {key}")
        directive = item.get("$patch")
        if directive not in (None, "delete", "replace", "merge"):
            raise internal(f"unknown patch type: {directive} in map: {_go_map(item)}")
        if directive == "delete":
            continue
        plain = {k: v for k, v in item.items() if k != "$patch"}
        base = old[places[item[key]]] if item[key] in places and directive != "replace" else {}
        merged.append(strategic(base, plain, shape["a"]))
    mentioned = {item[key] for item in patch}
    rest = [entry for entry in old if entry.get(key) not in mentioned]
    return _interleave(merged, rest, key, places)


def _interleave(merged: list[Any], rest: list[Any], key: str, places: dict[Any, int]) -> list[Any]:
    # Patched items keep the patch's order, untouched ones their own; a new item comes before both.
    result: list[Any] = []
    while merged and rest:
        first = merged if places.get(merged[0].get(key), -1) < places[rest[0].get(key)] else rest
        result.append(first.pop(0))
    return result + merged + rest


def _ordered(items: list[Any], order: list[Any], node: Any) -> list[Any]:
    shape = resolve(node)
    key = shape.get("mk") if isinstance(shape, dict) else None
    wanted = [entry.get(key) if isinstance(entry, dict) else entry for entry in order]

    def rank(item: Any) -> int:
        value = item.get(key) if isinstance(item, dict) else item
        return wanted.index(value) if value in wanted else -1

    return sorted(items, key=lambda item: (rank(item) < 0, rank(item)))
