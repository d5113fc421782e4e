"""Expressions of PromQL as VictoriaMetrics reads them: text in, a tree out, refusals in the words of MetricsQL.

Understood: selectors with `=`, `!=`, `=~`, `!~` and `or`, windows, subqueries, `offset`, `@`, every binary operator of
PromQL with `bool`, `on`, `ignoring`, `group_left`, `group_right`, aggregations with `by` and `without`, the functions
of `FUNCTIONS`. Left out: WITH templates, `keep_metric_names`, `limit`, `default`, `if`, `ifnot`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache


class BadQuery(Exception):
    """The text is no expression; the message is VictoriaMetrics' own."""


class _Unsupported(BadQuery):
    """A function that does not exist: found after the text was read, so nothing of it is left."""


@dataclass(frozen=True)
class Matcher:
    """One label filter. `pattern` is set for the two that take a regular expression."""

    label: str
    op: str
    value: str
    pattern: re.Pattern[str] | None = None

    def fits(self, value: str) -> bool:
        """Whether the label's value passes; a label that is missing has an empty one."""
        if self.pattern is not None:
            return bool(self.pattern.fullmatch(value)) == (self.op == "=~")
        return (value == self.value) == (self.op == "=")


@dataclass(frozen=True)
class Number:
    """A number."""

    value: float


@dataclass(frozen=True)
class Text:
    """A string, as some functions take it."""

    value: str


@dataclass(frozen=True)
class Selector:
    """Series by their labels: any one of the groups has to fit."""

    groups: tuple[tuple[Matcher, ...], ...]

    @property
    def name(self) -> str:
        """The metric's name, where there is one and only one."""
        names = {m.value for group in self.groups for m in group if m.label == "__name__" and m.op == "="}
        return names.pop() if len(names) == 1 else ""


@dataclass(frozen=True)
class Duration:
    """Seconds, or as many steps of the query."""

    seconds: float = 0.0
    steps: float = 0.0

    def value(self, step: float) -> float:
        """Seconds."""
        return self.seconds + self.steps * step


@dataclass(frozen=True)
class Rollup:
    """An expression over time: `x[window:step] @ at offset offset`."""

    inner: Expr
    window: Duration | None = None
    step: Duration | None = None
    subquery: bool = False
    offset: Duration | None = None
    at: Expr | None = None


@dataclass(frozen=True)
class Call:
    """A function."""

    name: str
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class Aggregate:
    """An aggregation; `labels` are those to keep, or to drop with `without`."""

    name: str
    args: tuple[Expr, ...]
    without: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binary:
    """Two sides. `side` is the one that may have many: left, right or neither."""

    op: str
    left: Expr
    right: Expr
    as_bool: bool = False
    on: bool = False
    labels: tuple[str, ...] = ()
    side: str = ""
    include: tuple[str, ...] = ()


Expr = Number | Text | Selector | Rollup | Call | Aggregate | Binary

PRECEDENCE = {
    "or": 1, "and": 2, "unless": 2, "==": 3, "!=": 3, "<": 3, ">": 3, "<=": 3, ">=": 3,
    "+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "atan2": 5, "^": 6,
}  # fmt: skip
COMPARISONS = {"==", "!=", "<", ">", "<=", ">="}
SETS = {"and", "or", "unless"}
AGGREGATES = {
    "sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "topk", "bottomk", "quantile", "median", "any",
    "count_values", "distinct",
}  # fmt: skip
ROLLUPS = {
    "rate", "irate", "increase", "delta", "idelta", "deriv", "predict_linear", "avg_over_time", "max_over_time",
    "min_over_time", "sum_over_time", "count_over_time", "last_over_time", "first_over_time", "present_over_time",
    "stddev_over_time", "stdvar_over_time", "quantile_over_time", "median_over_time", "changes", "resets",
    "absent_over_time", "default_rollup", "lag", "lifetime", "range_over_time", "distinct_over_time",
}  # fmt: skip
FUNCTIONS = ROLLUPS | {
    "abs", "absent", "ceil", "floor", "round", "exp", "ln", "log2", "log10", "sqrt", "sgn", "clamp", "clamp_min",
    "clamp_max", "scalar", "vector", "time", "now", "timestamp", "label_replace", "label_join", "label_set",
    "label_del", "label_keep", "histogram_quantile", "sort", "sort_desc", "minute", "hour", "day_of_week",
    "day_of_month", "day_of_year", "days_in_month", "month", "year", "pi", "start", "end", "step", "union",
}  # fmt: skip

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdwyi]))+", re.I)
_NUMBER = re.compile(
    r"0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:[KMGT]i?B?)?", re.ASCII
)  # fmt: skip
_IDENT = re.compile(r"[a-zA-Z_:][\w:.]*", re.ASCII)
_OPERATOR = re.compile(r"==|!=|=~|!~|<=|>=|[-+*/%^<>=(){}\[\],@:]")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`[^`]*`", re.S)
_SIZES = {"K": 1e3, "Ki": 2.0**10, "M": 1e6, "Mi": 2.0**20, "G": 1e9, "Gi": 2.0**30, "T": 1e12, "Ti": 2.0**40}


def quoted(text: str) -> str:
    """A text in double quotes, as Go's %q writes it."""
    return json.dumps(text, ensure_ascii=False)


def duration(text: str) -> Duration:
    """ "1h30m", "5i" or a plain number of seconds."""
    if not _DURATION.fullmatch(text):
        return Duration(float(text))
    seconds = steps = 0.0
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdwyi])", text.lower()):
        if unit == "i":
            steps += float(number)
        else:
            seconds += float(number) * _UNITS[unit]
    return Duration(seconds, steps)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place, inside = 0, 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        if text[place] == "#":
            place = (text.find("\n", place) + 1) or len(text)
            continue
        kind, match = "", None
        for kind, pattern in _PATTERNS:
            if kind == "ident" and inside and text[place] == ":":
                continue
            if match := pattern.match(text, place):
                break
        if match is None:
            if text[place] in "\"'`":
                raise BadQuery(f"cannot find closing quote {text[place]} for the string {quoted(text[place:])}")
            raise BadQuery(f"cannot recognize {quoted(text[place:])}")
        word = match.group()
        inside += (word == "[") - (word == "]") if kind == "op" else 0
        found.append(_Token(kind, word, place))
        place = match.end()
    found.append(_Token("end", "", len(text)))
    return found


_PATTERNS = (
    ("string", _STRING), ("duration", _DURATION), ("number", _NUMBER), ("ident", _IDENT), ("op", _OPERATOR),
)  # fmt: skip


@lru_cache(maxsize=512)
def parse(text: str) -> Expr:
    """The expression's tree. Raises BadQuery."""
    try:
        parser = _Parser(text, _tokens(text))
    except BadQuery as error:
        raise BadQuery(f"cannot find the first token: {error}") from None
    try:
        found = parser.expression(0)
    except _Unsupported:
        raise
    except BadQuery as error:
        raise BadQuery(f"{error}; unparsed data: {quoted(parser.rest())}") from None
    if parser.now.kind != "end":
        raise BadQuery(f"unparsed data left: {quoted(parser.rest())}")
    return found


class _Parser:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self.text, self.tokens, self.place = text, tokens, 0

    @property
    def now(self) -> _Token:
        return self.tokens[self.place]

    def rest(self) -> str:
        return self.text[self.now.at :]

    def take(self) -> _Token:
        token = self.now
        self.place += token.kind != "end"
        return token

    def at(self, *texts: str) -> bool:
        return self.now.kind in {"op", "ident"} and self.now.text.lower() in texts

    def want(self, where: str, text: str, *others: str) -> None:
        if not (self.now.kind == "op" and self.now.text == text):
            wishes = ", ".join(f'"{wish}"' for wish in (*others, text))
            raise BadQuery(f"{where}: unexpected token {quoted(self.now.text)}; want {wishes}")
        self.take()

    def expression(self, least: int) -> Expr:
        left = self.unary()
        while self.now.kind in {"op", "ident"} and (rank := PRECEDENCE.get(self.now.text.lower(), 0)) > least:
            left = self.binary(left, rank)
        return left

    def unary(self) -> Expr:
        if self.at("-"):
            self.take()
            inner = self.expression(PRECEDENCE["*"])
            if isinstance(inner, Number):
                return Number(-inner.value)
            return Binary("*", inner, Number(-1.0))
        if self.at("+"):
            self.take()
            return self.expression(PRECEDENCE["*"])
        return self.rolled(self.single())

    def binary(self, left: Expr, rank: int) -> Expr:
        op = self.take().text.lower()
        as_bool = on = False
        labels: tuple[str, ...] = ()
        include: tuple[str, ...] = ()
        side = ""
        if self.at("bool"):
            if op not in COMPARISONS:
                raise BadQuery(f"bool modifier cannot be applied to {quoted(op)}")
            self.take()
            as_bool = True
        if self.at("on", "ignoring"):
            on = self.take().text.lower() == "on"
            labels = self.names()
            if self.at("group_left", "group_right"):
                word = self.take().text.lower()
                if op in SETS:
                    raise BadQuery(f"modifier {quoted(word)} isn't allowed for {quoted(op)}")
                side = word.removeprefix("group_")
                include = self.names() if self.at("(") else ()
        right = self.expression(rank - 1 if op == "^" else rank)
        return Binary(op, left, right, as_bool, on, labels, side, include)

    def names(self) -> tuple[str, ...]:
        self.want("ModifierExpr: identList", "(")
        found: list[str] = []
        while not self.at(")"):
            if self.now.kind != "ident":
                raise BadQuery(f'ModifierExpr: identList: unexpected token {quoted(self.now.text)}; want "ident"')
            found.append(self.take().text)
            if self.at(","):
                self.take()
            elif not self.at(")"):
                raise BadQuery(f'ModifierExpr: identList: unexpected token {quoted(self.now.text)}; want ",", ")"')
        self.take()
        return tuple(found)

    def single(self) -> Expr:
        token = self.now
        if token.kind == "number":
            return self.number()
        if token.kind == "duration":
            self.take()
            return Number(duration(token.text).seconds)
        if token.kind == "string":
            return Text(self.string())
        if token.kind == "ident":
            return self.named()
        if token.text == "(" and token.kind == "op":
            self.take()
            inner = self.expression(0)
            self.want("argList", ")", ",")
            return inner
        if token.text == "{" and token.kind == "op":
            return self.selector("")
        raise BadQuery(f'singleExpr: unexpected token {quoted(token.text)}; want "(", "{{", "-", "+"')

    def number(self) -> Number:
        text = self.take().text
        match = re.fullmatch(r"(.*?)([KMGT]i?)B?", text)
        if match and not text.lower().startswith("0x"):
            return Number(float(match[1]) * _SIZES[match[2]])
        return Number(float(int(text, 16)) if text[:2].lower() == "0x" else float(text))

    def string(self) -> str:
        token = self.take()
        return _unquoted(token.text)

    def named(self) -> Expr:
        name = self.take().text
        low = name.lower()
        if low in {"inf", "nan"} and not self.at("{", "("):
            return Number(math.inf if low == "inf" else math.nan)
        if low in AGGREGATES and self.at("by", "without", "("):
            return self.aggregate(low)
        if self.at("("):
            if low not in FUNCTIONS:
                self.args()
                raise _Unsupported(f"unsupported function {quoted(name)}")
            return Call(low, self.args())
        if self.now.kind in {"string", "number", "duration"}:
            raise BadQuery(f'identExpr: unexpected token {quoted(self.now.text)}; want "(", "{{", "[", ")", "," or "@"')
        return self.selector(name)

    def aggregate(self, name: str) -> Aggregate:
        without = False
        labels: tuple[str, ...] = ()
        given = self.at("by", "without")
        if given:
            without = self.take().text.lower() == "without"
            labels = self.names()
        args = self.args()
        if not given and self.at("by", "without"):
            without = self.take().text.lower() == "without"
            labels = self.names()
        return Aggregate(name, args, without, labels)

    def args(self) -> tuple[Expr, ...]:
        self.want("argList", "(")
        found: list[Expr] = []
        while not self.at(")"):
            found.append(self.expression(0))
            if self.at(","):
                self.take()
            elif not self.at(")"):
                raise BadQuery(f'argList: unexpected token {quoted(self.now.text)}; want ",", ")"')
        self.take()
        return tuple(found)

    def selector(self, name: str) -> Selector:
        first = (Matcher("__name__", "=", name),) if name else ()
        if not self.at("{"):
            return Selector((first,))
        self.take()
        groups: list[tuple[Matcher, ...]] = []
        filters: list[Matcher] = []
        while not self.at("}"):
            filters.append(self.matcher())
            if self.at("or"):
                self.take()
                groups.append((*first, *filters))
                filters = []
            elif self.at(","):
                self.take()
            elif not self.at("}"):
                raise BadQuery(f'labelFilters: unexpected token {quoted(self.now.text)}; want ",", "or", "}}"')
        self.take()
        return Selector((*groups, (*first, *filters)))

    def matcher(self) -> Matcher:
        if self.now.kind == "string" and self.tokens[self.place + 1].text in {",", "}"}:
            return Matcher("__name__", "=", self.string())
        if self.now.kind not in {"ident", "string"}:
            raise BadQuery(f'labelFilterExpr: unexpected token {quoted(self.now.text)}; want "ident"')
        label = self.string() if self.now.kind == "string" else self.take().text
        if not self.at("=", "!=", "=~", "!~"):
            wishes = '"=", "!=", "=~", "!~", ",", "or", "}"'
            raise BadQuery(f"labelFilterExpr: unexpected token {quoted(self.now.text)}; want {wishes}")
        op = self.take().text
        if self.now.kind != "string":
            raise BadQuery(f"StringExpr: unexpected token {quoted(self.now.text)}; want string")
        value = self.string()
        if op not in {"=~", "!~"}:
            return Matcher(label, op, value)
        try:
            return Matcher(label, op, value, re.compile(value.replace("(?i)", "", 1), re.I if "(?i)" in value else 0))
        except re.error as error:
            reason = f"error parsing regexp: {error}"
            raise BadQuery(f"invalid regexp in {label}={quoted(value)}: {reason}") from None

    def rolled(self, inner: Expr) -> Expr:
        if not self.at("[", "@", "offset"):
            return inner
        found = Rollup(inner)
        if self.at("["):
            self.take()
            window = None if self.at(":") else self.duration()
            subquery, step = self.at(":"), None
            if subquery:
                self.take()
                step = None if self.at("]") else self.duration()
            self.want("windowAndStep", "]")
            found = replace(found, window=window, step=step, subquery=subquery)
        while self.at("@", "offset"):
            if self.take().text == "@":
                found = replace(found, at=self.single())
            else:
                sign = -1.0 if self.at("-") else 1.0
                if self.at("-"):
                    self.take()
                given = self.duration()
                found = replace(found, offset=Duration(sign * given.seconds, sign * given.steps))
        return found

    def duration(self) -> Duration:
        if self.now.kind not in {"duration", "number"}:
            raise BadQuery(f"duration: unexpected token {quoted(self.now.text)}; want valid duration")
        return duration(self.take().text)


def _unquoted(text: str) -> str:
    body = text[1:-1]
    if text[0] == "`":
        return body
    named = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}

    def put(match: re.Match[str]) -> str:
        if match[1] in named:
            return named[match[1]]
        raise BadQuery(f"cannot parse string literal {quoted(text)}: invalid syntax")

    return re.sub(r"\\(.)", put, body, flags=re.S)


def selectors(expr: Expr) -> list[Selector]:
    """Every selector in a tree."""
    if isinstance(expr, Selector):
        return [expr]
    if isinstance(expr, Rollup):
        return selectors(expr.inner) + (selectors(expr.at) if expr.at else [])
    if isinstance(expr, Call | Aggregate):
        return [found for arg in expr.args for found in selectors(arg)]
    if isinstance(expr, Binary):
        return selectors(expr.left) + selectors(expr.right)
    return []
