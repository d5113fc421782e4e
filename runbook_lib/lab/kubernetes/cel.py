"""The part of the Common Expression Language that real CRDs write their validation rules in.

`compile_rule(text)` gives a function of variables (`self`, `oldSelf`); a rule that cannot be read raises SyntaxError_,
one that cannot be evaluated EvalError. Integers and doubles stay apart as Python's do; there are no cost limits.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from .schema import QUANTITY_OK, quantity

Scope = Mapping[str, Any]
Node = Callable[[Scope], Any]
DEPTH = 250


class RuleError(Exception):
    """A rule that does not compile; `column` (1-based) is where."""

    def __init__(self, text: str, column: int) -> None:
        super().__init__(text)
        self.column = column


class EvalError(Exception):
    """An evaluation that has no value: no such key, no such overload, division by zero."""


@dataclass(frozen=True)
class Maybe:
    """An optional value (`oldSelf` of a rule with optionalOldSelf)."""

    value: Any = None
    there: bool = False


_TOKEN = re.compile(
    r"""\s*(?:(?P<num>0x[0-9a-fA-F]+u?|\d+\.\d+(?:[eE][+-]?\d+)?|\d+(?:[eE][+-]?\d+)|\d+u?)
    |(?P<str>[rR]?(?:\"\"\".*?\"\"\"|'''.*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<op>&&|\|\||==|!=|<=|>=|\?\.|[-+*/%<>!?:.,()\[\]{}]))""",
    re.X | re.S,
)
_EXPECTED = (
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _tokens(text: str) -> list[tuple[str, str, int]]:
    found, place = [], 0
    text = re.sub(r"//[^\n]*", "", text)
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise RuleError(f"Syntax error: token recognition error at: '{text[column - 1 : column + 4]}'", column)
        kind = str(match.lastgroup)
        found.append((kind, match[kind], match.start(kind) + 1))
        place = match.end()
    return [*found, ("end", "<EOF>", len(text) + 1)]


def tokens(text: str) -> list[tuple[str, str, int]]:
    """The words of a rule: kind (num, str, name, op, end), word and column."""
    return _tokens(text)


def _string(word: str) -> str:
    raw = word[0] in "rR"
    word = word[1:] if raw else word
    size = 3 if word[:3] in ('"""', "'''") else 1
    body = word[size:-size]
    if raw:
        return body

    def put(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "xuU":
            return chr(int(code[1:], 16))
        if code[0].isdigit():
            return chr(int(code, 8))
        return _ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", put, body)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.place = 0
        self.depth = 0

    def peek(self) -> str:
        kind, word, _ = self.tokens[self.place]
        return "" if kind in ("str", "end") else word

    def take(self) -> tuple[str, str, int]:
        found = self.tokens[self.place]
        self.place += found[0] != "end"
        return found

    def expect(self, word: str) -> None:
        _, found, column = self.tokens[self.place]
        if self.peek() != word:
            raise RuleError(f"Syntax error: mismatched input '{found}' expecting '{word}'", column)
        self.take()

    def whole(self) -> Node:
        node = self.choice()
        kind, word, column = self.tokens[self.place]
        if kind != "end":
            raise RuleError(f"Syntax error: extraneous input '{word}' expecting <EOF>", column)
        return node

    def choice(self) -> Node:
        self.depth += 1
        if self.depth > DEPTH:
            raise RuleError("expression recursion limit exceeded", 1)
        node = self.binary(0)
        if self.peek() == "?":
            self.take()
            yes = self.binary(0)
            self.expect(":")
            no = self.choice()
            test = node
            node = lambda scope: yes(scope) if _truth(test(scope)) else no(scope)  # noqa: E731
        self.depth -= 1
        return node

    def binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self.unary()
        node = self.binary(level + 1)
        while self.peek() in _LEVELS[level] and self.tokens[self.place][0] in ("op", "name"):
            node = _LEVELS[level][self.take()[1]](node, self.binary(level + 1))
        return node

    def unary(self) -> Node:
        if self.peek() == "!":
            self.take()
            inner = self.unary()
            return lambda scope: not _truth(inner(scope))
        if self.peek() == "-":
            self.take()
            inner = self.unary()
            return lambda scope: -_number(inner(scope))
        return self.postfix(self.primary())

    def postfix(self, node: Node) -> Node:
        while self.peek() in (".", "[", "?."):
            word = self.take()[1]
            if word == "[":
                optional = self.peek() == "?"
                if optional:
                    self.take()
                index = self.choice()
                self.expect("]")
                node = _index(node, index, optional=optional)
                continue
            kind, name, column = self.take()
            if word == "?.":
                node = _optional_field(node, name)
                continue
            if kind != "name":
                raise RuleError(f"Syntax error: no viable alternative at input '.{name}'", column)
            node = self.method(node, name) if self.peek() == "(" else _field(node, name)
        return node

    def method(self, target: Node, name: str) -> Node:
        self.expect("(")
        if name in _MACROS:
            kind, variable, column = self.take()
            if kind != "name":
                raise RuleError("argument must be a simple name", column)
            variables = [variable]
            self.expect(",")
            bodies = [self.choice()]
            while self.peek() == ",":
                self.take()
                bodies.append(self.choice())
            self.expect(")")
            return _MACROS[name](target, variables[0], bodies)
        rest = self.arguments()
        if name not in _FUNCTIONS:
            raise RuleError(f"undeclared reference to '{name}' (in container '')", self.tokens[self.place - 1][2])
        return _call(name, [target, *rest])

    def arguments(self) -> list[Node]:
        found: list[Node] = []
        while self.peek() != ")":
            found.append(self.choice())
            if self.peek() != ",":
                break
            self.take()
        self.expect(")")
        return found

    def primary(self) -> Node:
        kind, word, column = self.take()
        if kind == "num":
            return _constant(_literal(word))
        if kind == "str":
            return _constant(_string(word))
        if kind == "name":
            return self.named(word, column)
        if word == "(" and kind == "op":
            node = self.choice()
            self.expect(")")
            return node
        if word == "[" and kind == "op":
            return self.listing()
        if word == "{" and kind == "op":
            return self.mapping()
        raise RuleError(f"Syntax error: mismatched input '{word}' expecting {_EXPECTED}", column)

    def named(self, word: str, column: int) -> Node:
        if word in ("true", "false", "null"):
            return _constant({"true": True, "false": False, "null": None}[word])
        if self.peek() != "(":
            return _variable(word)
        self.take()
        if word == "has":
            start = self.place
            self.choice()
            end = self.place
            self.expect(")")
            return self.has(start, end, column)
        rest = self.arguments()
        if word not in _FUNCTIONS:
            raise RuleError(f"undeclared reference to '{word}' (in container '')", column)
        return _call(word, rest)

    def has(self, start: int, end: int, column: int) -> Node:
        if end - start < 3 or self.tokens[end - 2][1] != "." or self.tokens[end - 1][0] != "name":
            raise RuleError("invalid argument to has() macro", column)
        inner = _Parser("true")
        inner.tokens = [*self.tokens[start : end - 2], ("end", "<EOF>", self.tokens[end - 2][2])]
        holder, name = inner.whole(), _plain(self.tokens[end - 1][1])

        def test(scope: Scope) -> bool:
            value = holder(scope)
            if not isinstance(value, dict):
                raise EvalError("no such overload")
            return name in value

        return test

    def listing(self) -> Node:
        rows: list[Node] = []
        while self.peek() != "]":
            rows.append(self.choice())
            if self.peek() != ",":
                break
            self.take()
        self.expect("]")
        return lambda scope: [row(scope) for row in rows]

    def mapping(self) -> Node:
        rows: list[tuple[Node, Node]] = []
        while self.peek() != "}":
            key = self.choice()
            self.expect(":")
            rows.append((key, self.choice()))
            if self.peek() != ",":
                break
            self.take()
        self.expect("}")
        return lambda scope: {key(scope): value(scope) for key, value in rows}


def _literal(word: str) -> Any:
    if word.lower().startswith("0x"):
        return int(word.rstrip("uU"), 16)
    if re.search(r"[.eE]", word):
        return float(word)
    return int(word.rstrip("uU"))


def _constant(value: Any) -> Node:
    return lambda scope: value


def _plain(name: str) -> str:
    # CRDs escape names that are words of the language or hold other characters.
    if match := re.fullmatch(r"__(\w+)__", name):
        return match[1]
    for code, char in (("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__")):
        name = name.replace(code, char)
    return name


def plain(name: str) -> str:
    """The property that an escaped name in a rule stands for."""
    return _plain(name)


def _variable(name: str) -> Node:
    def read(scope: Scope) -> Any:
        if name not in scope:
            raise EvalError(f"no such attribute(s): {name}")
        return scope[name]

    return read


def _field(node: Node, name: str) -> Node:
    plain = _plain(name)

    def read(scope: Scope) -> Any:
        value = node(scope)
        if isinstance(value, Maybe):
            held = isinstance(value.value, dict) and plain in value.value
            return Maybe(value.value[plain], True) if held else Maybe()
        if isinstance(value, dict) and plain in value:
            return value[plain]
        raise EvalError(f"no such key: {plain}")

    return read


def _optional_field(node: Node, name: str) -> Node:
    plain = _plain(name)

    def read(scope: Scope) -> Any:
        value = node(scope)
        value = value.value if isinstance(value, Maybe) else value
        return Maybe(value[plain], True) if isinstance(value, dict) and plain in value else Maybe()

    return read


def _index(node: Node, index: Node, *, optional: bool) -> Node:
    def read(scope: Scope) -> Any:
        value, key = node(scope), index(scope)
        found: Any = None
        held = isinstance(value, dict) and key in value
        if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
            held, found = True, value[key]
        elif held:
            found = value[key]
        if optional:
            return Maybe(found, held)
        if not held:
            raise EvalError(f"no such key: {key}" if isinstance(value, dict) else f"index out of bounds: {key}")
        return found

    return read


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EvalError("no such overload")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise EvalError("no such overload")
    return value


def _or(left: Node, right: Node) -> Node:
    def test(scope: Scope) -> bool:
        try:
            if _truth(left(scope)):
                return True
        except EvalError:
            if _truth(right(scope)):
                return True
            raise
        return _truth(right(scope))

    return test


def _and(left: Node, right: Node) -> Node:
    def test(scope: Scope) -> bool:
        try:
            if not _truth(left(scope)):
                return False
        except EvalError:
            if not _truth(right(scope)):
                return False
            raise
        return _truth(right(scope))

    return test


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, bool) is not isinstance(right, bool):
        return False
    return bool(left == right)


def _operator(work: Callable[[Any, Any], Any]) -> Callable[[Node, Node], Node]:
    def make(left: Node, right: Node) -> Node:
        def read(scope: Scope) -> Any:
            try:
                return work(left(scope), right(scope))
            except (TypeError, OverflowError) as error:
                raise EvalError("no such overload") from error

        return read

    return make


def _within(left: Any, right: Any) -> bool:
    if not isinstance(right, (list, dict)):
        raise EvalError("no such overload")
    return any(_equal(left, item) for item in right)


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) is not isinstance(right, str) or isinstance(left, bool):
        raise EvalError("no such overload")
    return left + right


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, float) or isinstance(right, float):
        return left / right if right else float("inf")
    if right == 0:
        raise EvalError("division by zero")
    return int(left / right) if abs(left) < 1 << 52 else left // right


def _modulo(left: Any, right: Any) -> Any:
    if right == 0:
        raise EvalError("modulus by zero")
    return left - right * _divide(left, right)


def _compare(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def work(left: Any, right: Any) -> bool:
        if isinstance(left, (dict, list)) or isinstance(right, (dict, list)):
            raise EvalError("no such overload")
        return test(left, right)

    return work


_LEVELS: list[dict[str, Callable[[Node, Node], Node]]] = [
    {"||": _or},
    {"&&": _and},
    {
        "==": _operator(_equal), "!=": _operator(lambda a, b: not _equal(a, b)), "in": _operator(_within),
        "<": _operator(_compare(lambda a, b: bool(a < b))), "<=": _operator(_compare(lambda a, b: bool(a <= b))),
        ">": _operator(_compare(lambda a, b: bool(a > b))), ">=": _operator(_compare(lambda a, b: bool(a >= b))),
    },
    {"+": _operator(_add), "-": _operator(lambda a, b: a - b)},
    {"*": _operator(lambda a, b: _number(a) * _number(b)), "/": _operator(_divide), "%": _operator(_modulo)},
]  # fmt: skip


# -- macros -----------------------------------------------------------------------------------------------------------


def _each(value: Any) -> list[Any]:
    if not isinstance(value, (list, dict)):
        raise EvalError("no such overload")
    return list(value)


def _votes(target: Node, name: str, body: Node, scope: Scope, decisive: bool) -> bool:
    failure: EvalError | None = None
    for item in _each(target(scope)):
        try:
            if _truth(body({**scope, name: item})) is decisive:
                return decisive
        except EvalError as error:
            failure = error
    if failure:
        raise failure
    return not decisive


def _all(target: Node, name: str, bodies: list[Node]) -> Node:
    return lambda scope: _votes(target, name, bodies[0], scope, False)


def _exists(target: Node, name: str, bodies: list[Node]) -> Node:
    return lambda scope: _votes(target, name, bodies[0], scope, True)


def _exists_one(target: Node, name: str, bodies: list[Node]) -> Node:
    return lambda scope: sum(_truth(bodies[0]({**scope, name: item})) for item in _each(target(scope))) == 1


def _filter(target: Node, name: str, bodies: list[Node]) -> Node:
    return lambda scope: [item for item in _each(target(scope)) if _truth(bodies[0]({**scope, name: item}))]


def _map(target: Node, name: str, bodies: list[Node]) -> Node:
    def read(scope: Scope) -> list[Any]:
        rows = [{**scope, name: item} for item in _each(target(scope))]
        kept = rows if len(bodies) == 1 else [row for row in rows if _truth(bodies[0](row))]
        return [bodies[-1](row) for row in kept]

    return read


_MACROS: dict[str, Callable[[Node, str, list[Node]], Node]] = {
    "all": _all, "exists": _exists, "exists_one": _exists_one, "filter": _filter, "map": _map,
}  # fmt: skip


# -- functions --------------------------------------------------------------------------------------------------------


def _size(value: Any) -> int:
    if not isinstance(value, (str, list, dict)):
        raise EvalError("no such overload")
    return len(value)


def _matches(text: str, pattern: str) -> bool:
    try:
        return re.search(pattern.replace("\\z", "\\Z"), text) is not None
    except re.error as error:
        raise EvalError(f"error parsing regexp: {error}") from error


def _duration(text: str) -> timedelta:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    if not re.fullmatch(r"[-+]?(0|(\d+(\.\d*)?|\.\d+)(h|ms|us|µs|ns|m|s))+", text):
        raise EvalError(f'time: invalid duration "{text}"')
    rows = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|h|m|s)", text)
    seconds = sum(float(number) * units[unit] for number, unit in rows)
    return timedelta(seconds=-seconds if text.startswith("-") else seconds)


def _timestamp(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise EvalError(f"invalid timestamp: {text}") from error


def _integer(value: Any) -> int:
    try:
        return int(value.timestamp()) if isinstance(value, datetime) else int(value)
    except (ValueError, TypeError) as error:
        raise EvalError(f"strconv.ParseInt: parsing {value!r}: invalid syntax") from error


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _possible(work: Callable[[str], Any]) -> Callable[[str], bool]:
    def test(text: str) -> bool:
        try:
            work(text)
        except (ValueError, EvalError):
            return False
        return True

    return test


def _quantity(text: str) -> float:
    if not QUANTITY_OK.match(text):
        raise EvalError("quantities must match the regular expression")
    return quantity(text)


def _url(text: str) -> Any:
    found = urlsplit(text)
    if not found.scheme and not text.startswith("/"):
        raise EvalError(f"URL parse error: {text}")
    return found


def _value(item: Any) -> Any:
    if isinstance(item, Maybe):
        if not item.there:
            raise EvalError("optional.none() dereference")
        return item.value
    raise EvalError("no such overload")


def _slice(text: str, start: int, end: int | None = None) -> str:
    stop = len(text) if end is None else end
    if not 0 <= start <= stop <= len(text):
        raise EvalError(f"index out of range: {start}")
    return text[start:stop]


def _format(text: str, rows: list[Any]) -> str:
    left = iter(rows)
    return re.sub(r"%[a-z]", lambda match: _text(next(left, "")), text)


def _sorted(rows: list[Any]) -> bool:
    return all(a <= b for a, b in pairwise(rows))


def _type(value: Any) -> str:
    names = {bool: "bool", int: "int", float: "double", str: "string", list: "list", dict: "map"}
    return names.get(type(value), "null_type")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "size": _size, "matches": _matches, "int": _integer, "uint": _integer, "double": float, "string": _text,
    "bool": lambda v: v if isinstance(v, bool) else str(v).lower() == "true", "dyn": lambda v: v, "type": _type,
    "startsWith": lambda s, p: s.startswith(p), "endsWith": lambda s, p: s.endswith(p),
    "contains": lambda s, p: p in s, "lowerAscii": lambda s: s.lower(), "upperAscii": lambda s: s.upper(),
    "trim": lambda s: s.strip(), "split": lambda s, p, n=-1: list(s) if p == "" else s.split(p, max(n - 1, -1)),
    "join": lambda rows, p="": p.join(rows), "replace": lambda s, a, b, n=-1: s.replace(a, b, n),
    "indexOf": lambda s, p, n=0: s.find(p, n) if isinstance(s, str) else (s.index(p) if p in s else -1),
    "lastIndexOf": lambda s, p: s.rfind(p), "charAt": lambda s, n: s[n : n + 1], "substring": _slice,
    "find": lambda s, p: (re.search(p, s) or [""])[0], "findAll": lambda s, p: [m[0] for m in re.finditer(p, s)],
    "isSorted": _sorted, "sum": sum, "min": min, "max": max, "duration": _duration, "timestamp": _timestamp,
    "getSeconds": lambda d: int(d.total_seconds()), "getMinutes": lambda d: int(d.total_seconds() // 60),
    "getHours": lambda d: int(d.total_seconds() // 3600), "url": _url, "isURL": _possible(_url),
    "getScheme": lambda u: u.scheme, "getHost": lambda u: u.netloc, "getHostname": lambda u: u.hostname or "",
    "getPort": lambda u: str(u.port or ""), "getEscapedPath": lambda u: u.path, "isIP": _possible(ipaddress.ip_address),
    "ip": ipaddress.ip_address, "isCIDR": _possible(ipaddress.ip_network), "cidr": ipaddress.ip_network,
    "family": lambda v: v.version, "containsIP": lambda n, v: ipaddress.ip_address(str(v)) in n,
    "prefixLength": lambda n: n.prefixlen, "masked": lambda n: n, "quantity": _quantity,
    "isQuantity": _possible(_quantity), "isGreaterThan": lambda a, b: a > b, "isLessThan": lambda a, b: a < b,
    "compareTo": lambda a, b: (a > b) - (a < b), "asInteger": int, "sign": lambda v: (v > 0) - (v < 0),
    "isInteger": lambda v: float(v).is_integer(), "hasValue": lambda v: isinstance(v, Maybe) and v.there,
    "value": _value, "orValue": lambda v, other: v.value if v.there else other,
    "format": _format,
}  # fmt: skip


def is_function(name: str) -> bool:
    """Whether a function of that name can be evaluated here."""
    return name in _FUNCTIONS or name in _MACROS


def _call(name: str, arguments: list[Node]) -> Node:
    function = _FUNCTIONS[name]

    def read(scope: Scope) -> Any:
        values = [argument(scope) for argument in arguments]
        try:
            return function(*values)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise EvalError("no such overload") from error

    return read


@lru_cache(maxsize=4096)
def compile_rule(text: str) -> Node:
    """The rule as a function of its variables; RuleError when it cannot be read."""
    try:
        return _Parser(text).whole()
    except RecursionError as error:
        raise RuleError("expression recursion limit exceeded", 1) from error


def uses_old(text: str) -> bool:
    """True when a rule judges a change rather than a state."""
    return bool(re.search(r"\boldSelf\b", text))


def complaint(text: str, error: RuleError) -> str:
    """A RuleError as the API server shows it, with the place marked."""
    line = text.split("\n", maxsplit=1)[0]
    return f"compilation failed: ERROR: <input>:1:{error.column}: {error}\n | {line}\n | {'.' * (error.column - 1)}^"
