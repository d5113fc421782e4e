"""What a CEL rule is refused for when its CRD is created, before any object is judged.

Names nobody declared, fields that the schema does not have, and walks within walks over lists without a bound.
The types of expressions and the exact cost are not worked out: a rule that fails for those is taken here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import cel

Json = Mapping[str, Any]
Token = tuple[str, str, int]
MACROS = {"all", "exists", "exists_one", "existsOne", "filter", "map", "sortBy", "transformList", "transformMap"}
NAMES = {
    "self", "oldSelf", "true", "false", "null", "in", "int", "uint", "double", "bool", "string", "bytes", "list", "map",
    "null_type", "type", "duration", "timestamp", "google", "cel", "optional", "sets", "math", "strings", "lists",
    "base64", "regex", "dyn", "ip", "cidr", "url", "quantity", "format", "semver",
}  # fmt: skip
# Functions of the language and of Kubernetes' libraries, also those that the lab cannot evaluate.
_LIBRARY = (
    "has bind block of ofNonZeroValue none or optMap optFlatMap unwrap distinct flatten reverse slice sort range first "
    "last transformMapEntry greatest least ceil floor round trunc abs isInf isNaN isFinite sqrt bitOr bitAnd bitXor "
    "bitNot bitShiftLeft bitShiftRight encode decode intersects equivalent getDate getDayOfMonth getDayOfWeek "
    "getDayOfYear getFullYear getMonth getMilliseconds getQuery bytes add sub asApproximateFloat isUnspecified "
    "isLoopback isLinkLocalMulticast isLinkLocalUnicast isGlobalUnicast isCanonical containsCIDR containsIP named "
    "validate semver isSemver major minor patch quote extract extractAll includes list"
)
FUNCTIONS = MACROS | set(_LIBRARY.split())
ROOT: dict[str, Any] = {
    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
    "metadata": {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}},
}  # fmt: skip
TOO_COSTLY = (
    "estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, "
    "maxProperties, and maxLength where arrays, maps, and strings are declared)"
)


def check(text: str, schema: Json, *, root: bool = False) -> None:
    """Nothing; RuleError for the first name that is not declared. `schema` is the one that the rule stands in."""
    tokens = cel.tokens(text)
    variables = {tokens[i + 2][1] for i in range(len(tokens) - 3) if _opens_macro(tokens, i)}
    bound = {tokens[i + 4][1] for i in range(len(tokens) - 5) if tokens[i][1] == "cel" and tokens[i + 2][1] == "bind"}
    for place, (kind, word, column) in enumerate(tokens):
        if kind != "name":
            continue
        after_dot = place > 0 and tokens[place - 1][1] in (".", "?.") and tokens[place - 1][0] == "op"
        if _is(tokens, place + 1, "("):
            if word not in FUNCTIONS and not cel.is_function(word):
                raise _undeclared(word, tokens[place + 1][2])
        elif not after_dot and not _is(tokens, place + 1, ":") and word not in NAMES | variables | bound:
            raise _undeclared(word, column)
        if word in ("self", "oldSelf") and not after_dot:
            _follow(tokens, place, _whole(schema, root))


def _undeclared(word: str, column: int) -> cel.RuleError:
    return cel.RuleError(f"undeclared reference to '{word}' (in container '')", column)


def _is(tokens: list[Token], place: int, word: str) -> bool:
    return place < len(tokens) and tokens[place][0] == "op" and tokens[place][1] == word


def _opens_macro(tokens: list[Token], place: int) -> bool:
    return tokens[place][1] in MACROS and _is(tokens, place + 1, "(") and _is(tokens, place + 3, ",")


def _whole(schema: Json, root: bool) -> Json:
    if not root:
        return schema
    return {**schema, "properties": {**(schema.get("properties") or {}), **ROOT}}


def _steps(tokens: list[Token], place: int) -> Iterator[tuple[int, str, int]]:
    """The fields selected one after the other from the name at a place: token, name, column of its dot."""
    while _is(tokens, place + 1, ".") and tokens[place + 2][0] == "name" and not _is(tokens, place + 3, "("):
        yield place + 2, cel.plain(tokens[place + 2][1]), tokens[place + 1][2]
        place += 2


def _follow(tokens: list[Token], place: int, schema: Json) -> tuple[int, Json | None]:
    """Where a chain of fields ends, and the schema there (None = of any shape)."""
    found: Json | None = schema
    steps = list(_steps(tokens, place))
    for _, name, column in steps:
        if found is None or found.get("x-kubernetes-embedded-resource"):
            found = None
            continue
        fields = found.get("properties")
        more = found.get("additionalProperties")
        if fields and name in fields:
            found = fields[name]
        elif isinstance(more, Mapping):
            found = more
        elif fields:
            raise cel.RuleError(f"undefined field '{name}'", column)
        else:
            found = None
    return (steps[-1][0] if steps else place), found


def is_costly(text: str, schema: Json, *, root: bool = False) -> bool:
    """Whether a rule goes over an unbounded list or map once for each item of another."""
    tokens = cel.tokens(text)
    frames: list[bool] = []
    endless: set[int] = set()  # parentheses that open a walk over something without a bound
    for place, (kind, word, _) in enumerate(tokens):
        if kind == "name" and word in ("self", "oldSelf") and not _is(tokens, place - 1, "."):
            end, found = _follow(tokens, place, _whole(schema, root))
            if _is(tokens, end + 1, ".") and _opens_macro(tokens, end + 2) and _endless(found):
                endless.add(end + 3)
        if kind == "op" and word == "(":
            if place in endless and any(frames):
                return True
            frames.append(place in endless)
        elif kind == "op" and word == ")" and frames:
            frames.pop()
    return False


def _endless(schema: Json | None) -> bool:
    if schema is None:
        return False
    if schema.get("type") == "array":
        return "maxItems" not in schema
    return isinstance(schema.get("additionalProperties"), Mapping) and "maxProperties" not in schema
