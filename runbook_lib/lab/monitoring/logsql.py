"""Queries of LogsQL: a filter and what is done with the lines that pass it.

Understood: words, "phrases", prefixes (`err*`), `field:value`, `field:="exact"`, `field:~"regexp"`, `field:in(a,b)`,
`field:*`, `{stream="x"}`, `_time:5m`, `_time:[from, to]`, AND, OR, NOT (`-`, `!`), brackets; the pipes limit, head,
offset, fields, keep, delete, rm, sort, order, uniq, stats count() by, filter, where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from .promql import duration

Entry = Mapping[str, str]
Filter = Callable[[Entry, float], bool]
Pipe = Callable[[list[Entry]], list[Entry]]


class BadQuery(Exception):
    """The text is no query."""


@dataclass(frozen=True)
class Query:
    """A filter of (entry, time of the entry), pipes, and from when on entries matter."""

    passes: Filter
    pipes: tuple[Pipe, ...] = ()
    since: float = 0.0
    until: float = float("inf")


_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)|(?P<op>:=|:~|:|\||\(|\)|\[|\]|\{|\}|,|!=|!~|=~|=|!|>=|<=|>|<|\*)|(?P<word>[^\s:|()\[\]{},"'`!=<>*]+))"""
)
_WORDS = re.compile(r"\w+")


@dataclass
class _Reader:
    text: str
    now: float
    tokens: list[tuple[str, str, bool]] = field(default_factory=list)
    place: int = 0
    since: float = 0.0
    until: float = float("inf")

    def __post_init__(self) -> None:
        place = 0
        while place < len(self.text.rstrip()):
            match = _TOKEN.match(self.text, place)
            if match is None:
                raise BadQuery(f"cannot parse query [{self.text}]: unexpected token; context: [{self.text[place:]}]")
            kind = match.lastgroup or ""
            spaced = match.start(kind) > place
            text = match[kind]
            if kind == "string":
                text = re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] != "`" else text[1:-1]
            self.tokens.append((kind, text, spaced))
            place = match.end()
        self.tokens.append(("end", "", True))

    @property
    def token(self) -> tuple[str, str, bool]:
        return self.tokens[self.place]

    def take(self) -> str:
        text = self.token[1]
        self.place += self.token[0] != "end"
        return text

    def at(self, *texts: str) -> bool:
        return self.token[0] != "string" and self.token[1].lower() in texts and self.token[0] != "end"

    def want(self, text: str) -> None:
        if not self.at(text):
            raise self.bad(f"missing {text!r}")
        self.take()

    def bad(self, words: str) -> BadQuery:
        left = " ".join(text for _, text, _ in self.tokens[self.place :])
        return BadQuery(f"cannot parse query [{self.text}]: {words}; context: [{left}]")

    # filters

    def either(self) -> Filter:
        rows = [self.both()]
        while self.at("or"):
            self.take()
            rows.append(self.both())
        return rows[0] if len(rows) == 1 else lambda entry, at: any(row(entry, at) for row in rows)

    def both(self) -> Filter:
        rows = [self.one()]
        while not (self.token[0] == "end" or self.at("or", ")", "|")):
            if self.at("and"):
                self.take()
            rows.append(self.one())
        return rows[0] if len(rows) == 1 else lambda entry, at: all(row(entry, at) for row in rows)

    def one(self) -> Filter:
        if self.at("not", "!") or (
            self.token[0] == "word" and self.token[1].startswith("-") and len(self.token[1]) > 1
        ):
            if self.at("not", "!"):
                self.take()
            else:
                kind, text, spaced = self.token
                self.tokens[self.place] = (kind, text[1:], spaced)
            inner = self.one()
            return lambda entry, at: not inner(entry, at)
        if self.at("("):
            self.take()
            found = self.either()
            self.want(")")
            return found
        if self.at("{"):
            return self.stream()
        if self.token[0] == "end" or self.at("|", ")", ":", ","):
            raise self.bad("missing filter")
        kind, text, _ = self.token
        self.take()
        if self.at(":", ":=", ":~"):
            return self.of_field(text)
        if text == "*" and kind == "op":
            return lambda entry, at: True
        return self.value("_msg", kind, text)

    def of_field(self, name: str) -> Filter:
        op = self.take()
        name = "_msg" if name == "" else name
        if name == "_time" and op == ":":
            return self.time()
        if op == ":" and self.at("="):
            self.take()
            op = ":="
        if op == ":" and self.at("!"):
            self.take()
            inner = self.of_value(name, ":=" if self.at("=") and self.take() else ":")
            return lambda entry, at: not inner(entry, at)
        return self.of_value(name, op)

    def of_value(self, name: str, op: str) -> Filter:
        if op == ":~":
            try:
                pattern = re.compile(self.take())
            except re.error as error:
                raise self.bad(f"invalid regexp: {error}") from None
            return lambda entry, at: bool(pattern.search(entry.get(name, "")))
        if op == ":=":
            wanted = self.take()
            return lambda entry, at: entry.get(name, "") == wanted
        if self.at("("):
            self.take()
            rows = [self.inner(name)]
            while not self.at(")"):
                if self.at("or", "and"):
                    self.take()
                rows.append(self.inner(name))
            self.take()
            return lambda entry, at: any(row(entry, at) for row in rows)
        if self.at("in") and self.tokens[self.place + 1][1] == "(":
            self.take()
            self.take()
            given: set[str] = set()
            while not self.at(")"):
                given.add(self.take())
                if self.at(","):
                    self.take()
            self.take()
            return lambda entry, at: entry.get(name, "") in given
        if self.at(">", "<", ">=", "<="):
            return self.compared(name, self.take())
        if self.at("*"):
            self.take()
            return lambda entry, at: bool(entry.get(name))
        return self.inner(name)

    def compared(self, name: str, op: str) -> Filter:
        try:
            bound = float(self.take())
        except ValueError:
            raise self.bad("cannot parse number") from None

        def passes(entry: Entry, at: float) -> bool:
            try:
                value = float(entry.get(name, ""))
            except ValueError:
                return False
            return {">": value > bound, "<": value < bound, ">=": value >= bound, "<=": value <= bound}[op]

        return passes

    def inner(self, name: str) -> Filter:
        kind, text, _ = self.token
        if kind not in {"string", "word"}:
            raise self.bad("missing value")
        self.take()
        return self.value(name, kind, text)

    def value(self, name: str, kind: str, text: str) -> Filter:
        if self.at("*") and not self.token[2]:
            self.take()
            start = re.compile(rf"(?<!\w){re.escape(text)}")
            return lambda entry, at: bool(start.search(entry.get(name, "")))
        if not text:
            return lambda entry, at: not entry.get(name)
        # a phrase has to begin and end where words do
        head = r"(?<!\w)" if re.match(r"\w", text) else ""
        tail = r"(?!\w)" if re.search(r"\w\Z", text) else ""
        pattern = re.compile(head + re.escape(text) + tail)
        return lambda entry, at: bool(pattern.search(entry.get(name, "")))

    def stream(self) -> Filter:
        self.take()
        rows: list[Filter] = []
        while not self.at("}"):
            name, op = self.take(), self.take()
            value = self.take()
            pattern = re.compile(value if op in {"=~", "!~"} else re.escape(value))
            negative = op in {"!=", "!~"}

            def row(entry: Entry, at: float, n: str = name, p: re.Pattern[str] = pattern, no: bool = negative) -> bool:
                return bool(p.fullmatch(entry.get(n, ""))) != no

            rows.append(row)
            if self.at(","):
                self.take()
            if self.token[0] == "end":
                raise self.bad("missing '}'")
        self.take()
        return lambda entry, at: all(row(entry, at) for row in rows)

    def time(self) -> Filter:
        if self.at("[", "("):
            self.take()
            low = self.instant()
            self.want(",")
            high = self.instant()
            if not self.at("]", ")"):
                raise self.bad("missing ']'")
            self.take()
        else:
            text = self.take()
            try:
                low, high = self.now - duration(text).seconds, float("inf")
            except ValueError:
                raise self.bad(f"cannot parse duration {text}") from None
        self.since, self.until = max(self.since, low), min(self.until, high)
        return lambda entry, at: low <= at <= high

    def instant(self) -> float:
        words = []
        while not self.at(",", "]", ")") and self.token[0] != "end":
            words.append(self.take())
        text = "".join(words)
        if text.startswith("now"):
            rest = text.removeprefix("now").lstrip("-")
            return self.now - (duration(rest).seconds if rest else 0)
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise self.bad(f"cannot parse time {text}") from None

    # pipes

    def names(self) -> list[str]:
        found: list[str] = []
        bracket = self.at("(")
        if bracket:
            self.take()
        while not (self.token[0] == "end" or self.at("|", ")")):
            found.append(self.take())
            if not self.at(","):
                break
            self.take()
        if bracket:
            self.want(")")
        return found

    def count(self, otherwise: int) -> int:
        if self.token[1].isdigit():
            return int(self.take())
        return otherwise

    def pipe(self) -> Pipe:
        name = self.take().lower()
        if name in {"limit", "head"}:
            number = self.count(10)
            return lambda rows: rows[:number]
        if name in {"offset", "skip"}:
            first = self.count(0)
            return lambda rows: rows[first:]
        if name in {"fields", "keep"}:
            kept = self.names()
            return lambda rows: [{key: row[key] for key in kept if row.get(key)} for row in rows]
        if name in {"delete", "del", "rm", "drop"}:
            gone = set(self.names())
            return lambda rows: [{key: value for key, value in row.items() if key not in gone} for row in rows]
        if name in {"sort", "order"}:
            return self.sort()
        if name == "uniq":
            if self.at("by"):
                self.take()
            wanted = self.names()
            return lambda rows: _unique(rows, wanted)
        if name == "stats":
            return self.stats()
        if name in {"filter", "where"}:
            inner = self.either()
            return lambda rows: [row for row in rows if inner(row, moment(row))]
        self.place -= 1
        raise self.bad(f"unexpected pipe {name!r}")

    def sort(self) -> Pipe:
        if self.at("by"):
            self.take()
        keys: list[tuple[str, bool]] = []
        self.want("(")
        while not self.at(")"):
            key = self.take()
            down = self.at("desc")
            if self.at("desc", "asc"):
                self.take()
            keys.append((key, down))
            if self.at(","):
                self.take()
            if self.token[0] == "end":
                raise self.bad("missing ')'")
        self.take()
        if self.at("desc"):
            self.take()
            keys = [(key, not down) for key, down in keys]
        if self.at("asc"):
            self.take()
        limit = None
        if self.at("limit"):
            self.take()
            limit = self.count(10)
        return lambda rows: _sorted(rows, keys)[:limit]

    def stats(self) -> Pipe:
        by: list[str] = []
        if self.at("by"):
            self.take()
            by = self.names()
        if self.take().lower() != "count":
            raise self.bad("unknown stats func")
        self.names()
        label = "count(*)"
        if self.at("as"):
            self.take()
        if self.token[0] in {"word", "string"} and not self.at("by"):
            label = self.take()
        if self.at("by"):
            self.take()
            by = self.names()

        def work(rows: list[Entry]) -> list[Entry]:
            found: dict[tuple[str, ...], int] = {} if by else {(): 0}
            for row in rows:
                key = tuple(row.get(name, "") for name in by)
                found[key] = found.get(key, 0) + 1
            return [{**dict(zip(by, key, strict=True)), label: str(count)} for key, count in found.items()]

        return work


def moment(entry: Entry) -> float:
    """The time of an entry."""
    try:
        return datetime.fromisoformat(entry.get("_time", "")).timestamp()
    except ValueError:
        return 0.0


def _unique(rows: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    found = {tuple(row.get(name, "") for name in names): None for row in rows}
    return [dict(zip(names, key, strict=True)) for key in found]


def _sorted(rows: Iterable[Entry], keys: Sequence[tuple[str, bool]]) -> list[Entry]:
    found = list(rows)
    for key, down in reversed(keys):
        found.sort(key=lambda row: _order(row.get(key, "")), reverse=down)
    return found


def _order(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def parse(text: str, now: float) -> Query:
    """The query. Raises BadQuery."""
    reader = _Reader(text, now)
    passes = reader.either()
    pipes: list[Pipe] = []
    while reader.at("|"):
        reader.take()
        pipes.append(reader.pipe())
    if reader.token[0] != "end":
        raise reader.bad("unexpected token after the query")
    return Query(passes, tuple(pipes), reader.since, reader.until)
