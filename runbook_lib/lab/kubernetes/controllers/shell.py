"""A small POSIX shell: lists, pipes, redirections, variables, $(…), if, for and while, as much as probes use."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import tools
from .files import Content, FileError, content, joined, raw
from .tools import Call, Forever

if TYPE_CHECKING:
    from .programs import Ended, Place, Runs

MOST_TURNS = 10_000
_TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*)?(?:(?P<op>\n|;;|;|&&|\|\||\||2>&1|&>>?|>>|2>>|2>|1>|>|<|&|\(|\)|\{(?=\s)|\}(?=[\s;)]|$))"""
    r"""|(?P<word>(?:'[^']*'|"(?:\\.|\$\((?:[^()]|\([^()]*\))*\)|[^"\\])*"|\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"""
    r"""|`[^`]*`|\$\{[^}]*\}|\\.|[^\s;&|<>()'"`\\])+))"""
)


class Syntax(Exception):
    """The script cannot be read; the text is what the shell says."""


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


Tokens = list[tuple[str, str]]  # ("op" or "word", text)


def tokens(text: str) -> Tokens:
    """The words and operators of a script. Raises Syntax."""
    found: Tokens = []
    at = 0
    text = text.replace("\\\n", " ")
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or (match.end() == at):
            rest = text[at:].strip()
            if not rest or rest.startswith("#"):
                break
            kind = "unterminated quoted string" if rest[0] in "'\"`" or '"' in rest or "'" in rest else "unexpected end"
            raise Syntax(f"sh: syntax error: {kind}\n")
        at = match.end()
        if match.group("op") is not None:
            found.append(("op", match.group("op").replace("\n", ";")))
        elif match.group("word") is not None:
            word = match.group("word")
            if word == "1" and text[at : at + 1] == ">":
                continue
            found.append(("word", word))
    return found


@dataclass
class Shell:
    """One shell process. A class because variables, streams and elapsed time go through every command."""

    place: Place
    said: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    variables: dict[str, str] = field(default_factory=dict)
    code: int = 0
    reason: str = ""
    turns: int = 0

    def __post_init__(self) -> None:
        self.variables = dict(self.place.environment)

    async def main(self, words: list[str]) -> Ended | Runs:
        """What the command line does, as a process of its own."""
        from .programs import Ended, Runs

        try:
            if words and words[0].rpartition("/")[2] in {"sh", "bash", "ash"}:
                if len(words) < 3 or not words[1].startswith("-") or "c" not in words[1]:
                    return Ended()
                await self.script(words[2])
            else:
                await self.simple(words, b"", 1)
        except Forever:
            return Runs(self._text())
        except _Exit as ended:
            self.code = ended.code
        except Syntax as error:
            self._say(2, str(error))
            self.code = 2
        streams = tuple(self.said)
        return Ended(self._text(), self.code, 0.0 if self.place.sleep else self.seconds or 0.05, self.reason, streams)

    def _text(self) -> str:
        return "" if self.place.write else "".join(text for _, text in self.said)

    def _say(self, stream: int, text: str) -> None:
        self.said.append((stream, text))
        if self.place.write and text:
            self.place.write(text)

    async def spend(self, seconds: float) -> None:
        """Returns when so many seconds of the lab have passed for this process."""
        self.seconds += seconds
        if self.place.sleep is not None:
            await self.place.sleep(seconds)

    # -- the language ----------------------------------------------------------------------------

    async def script(self, text: str) -> None:
        """Runs the whole script."""
        await self._list(tokens(text), b"", 1)

    async def _list(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        at, joiner = 0, ";"
        while at < len(given):
            end = self._end_of_command(given, at)
            piece, following = given[at:end], given[end][1] if end < len(given) else ";"
            at = end + 1
            if piece and {"&&": self.code == 0, "||": self.code != 0}.get(joiner, True):
                await self._pipeline(piece, stdin, out)
            if piece or following in {"&&", "||"}:
                joiner = following

    def _end_of_command(self, given: Tokens, at: int) -> int:
        """Where the pipeline that begins here ends: the next separator outside compound commands."""
        depth, start = 0, True
        while at < len(given):
            kind, text = given[at]
            if (kind == "word" and start and text in _OPENING) or (kind, text) in {("op", "("), ("op", "{")}:
                depth += 1
            elif (kind == "word" and start and text in _CLOSING) or (kind, text) in {("op", ")"), ("op", "}")}:
                depth -= 1
            if depth <= 0 and kind == "op" and text in {";", "&&", "||", "&", ";;"}:
                return at
            start = (kind == "op" and text not in {">", ">>", "<", "2>"}) or text in _LEADING
            at += 1
        if depth > 0:
            raise Syntax("sh: syntax error: unexpected end of file\n")
        return at

    async def _pipeline(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        stages: list[Tokens] = [[]]
        depth = 0
        for index, token in enumerate(given):
            first = not stages[-1] or given[index - 1][0] == "op" or given[index - 1][1] in _LEADING
            if (token[0] == "word" and first and token[1] in _OPENING) or token in {("op", "("), ("op", "{")}:
                depth += 1
            elif (token[0] == "word" and first and token[1] in _CLOSING) or token in {("op", ")"), ("op", "}")}:
                depth -= 1
            if token == ("op", "|") and depth == 0:
                stages.append([])
            else:
                stages[-1].append(token)
        for stage in stages[:-1]:
            passed: list[bytes] = []
            await self._command(stage, stdin, passed)
            stdin = b"".join(passed)
        await self._command(stages[-1], stdin, out)

    async def _command(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        if not given:
            return
        kind, first = given[0]
        if kind == "word" and first == "!":
            await self._command(given[1:], stdin, out)
            self.code = int(self.code == 0)
        elif kind == "op" and first in {"(", "{"}:
            closing = len(given) - 1 - [text for _, text in reversed(given)].index(")" if first == "(" else "}")
            given, stdin, out, flush = await self._redirected(given[: closing + 1], given[closing + 1 :], stdin, out)
            try:
                await self._list(given[1:-1], stdin, out)
            except _Exit as ended:
                if first == "{":
                    raise
                self.code = ended.code
            finally:
                flush()
        elif kind == "word" and first in {"if", "for", "while", "until"}:
            ends = {"if": "fi"}.get(first, "done")
            closing = len(given) - 1 - [text for _, text in reversed(given)].index(ends)
            given, stdin, out, flush = await self._redirected(given[: closing + 1], given[closing + 1 :], stdin, out)
            try:
                await {"if": self._if, "for": self._for}.get(first, self._while)(given, stdin, out)
            finally:
                flush()
        else:
            await self._simple_with_redirections(given, stdin, out)

    async def _if(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        parts = _split(given[1:-1], {"then", "elif", "else"})
        head: Tokens | None = parts[0][1]
        for word, body in parts[1:]:
            if word == "then" and head is not None:
                await self._list(head, stdin, out)
                if self.code == 0:
                    await self._list(body, stdin, out)
                    return
                head = None
            elif word == "elif":
                head = body
            elif word == "else":
                await self._list(body, stdin, out)
                return
        self.code = 0

    async def _for(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        parts = dict(_split(given[2:-1], {"in", "do"}))
        name = given[1][1]
        for value in [
            word for token in parts.get("in", []) if token[0] == "word" for word in await self.expand(token[1])
        ]:
            self.variables[name] = value
            try:
                await self._turn(parts["do"], stdin, out)
            except _Break:
                break

    async def _while(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        wanted = given[0][1] == "while"
        parts = dict(_split(given[1:-1], {"do"}))
        endless = all(token[1] in {"true", ":", ";"} for token in parts[""])
        while True:
            await self._list(parts[""], stdin, out)
            if (self.code == 0) is not wanted:
                self.code = 0
                return
            spent = self.seconds
            try:
                await self._turn(parts["do"], stdin, out)
            except _Break:
                return
            if endless and (self.place.sleep is None or self.place.write is None):
                raise Forever
            if self.seconds == spent or self.place.sleep is None:
                await self.spend(0.01)
            await asyncio.sleep(0.02)

    async def _turn(self, body: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS and self.place.write is None:
            raise Forever
        with contextlib.suppress(_Continue):
            await self._list(body, stdin, out)

    async def _redirected(
        self, given: Tokens, rest: Tokens, stdin: bytes, out: int | list[bytes]
    ) -> tuple[Tokens, bytes, int | list[bytes], Callable[[], None]]:
        """The compound command with its redirections in force, and what puts its output where it goes."""
        if not rest:
            return given, stdin, out, lambda: None
        passed: list[bytes] = []
        target, append = "", False
        for place in range(len(rest) - 1):
            if rest[place][1] in {">", ">>"}:
                target, append = (await self.expand(rest[place + 1][1]))[0], rest[place][1] == ">>"
            elif rest[place][1] == "<":
                stdin = raw(self.place.files.read((await self.expand(rest[place + 1][1]))[0]))
        if not target:
            return given, stdin, out, lambda: None

        def flush() -> None:
            self._store(target, content(b"".join(passed)), append=append)

        return given, stdin, passed, flush

    def _store(self, path: str, new: Content, *, append: bool) -> None:
        try:
            if path in {"/dev/stdout", "/proc/1/fd/1"}:
                self._say(1, raw(new).decode(errors="replace"))
            elif path in {"/dev/stderr", "/proc/1/fd/2"}:
                self._say(2, raw(new).decode(errors="replace"))
            else:
                self.place.files.write(path, new, append=append)
        except FileError as error:
            self._say(2, f"sh: can't create {path}: {error}\n")
            self.code = 1

    async def _simple_with_redirections(self, given: Tokens, stdin: bytes, out: int | list[bytes]) -> None:
        words: list[str] = []
        target, error_target, append, together = "", "", False, False
        at = 0
        while at < len(given):
            kind, text = given[at]
            if kind == "op" and text == "2>&1":
                together = True
            elif kind == "op" and text in {">", ">>", "1>", "2>", "2>>", "<", "&>", "&>>"} and at + 1 < len(given):
                at += 1
                path = "".join(await self.expand(given[at][1]))
                if text == "<":
                    try:
                        stdin = raw(self.place.files.read(path), 64 << 20)
                    except FileError as error:
                        self._say(
                            2, f"sh: can't open {path}: {error}\n".replace("No such file or directory", "no such file")
                        )
                        self.code = 1
                        return
                elif text.startswith("2"):
                    error_target = path
                elif text.startswith("&"):
                    target, together = path, True
                elif path == "&2":
                    target = "/dev/stderr"
                else:
                    target, append = path, text == ">>"
            elif kind == "word":
                words.extend(await self.expand(text) if words or not _ASSIGNMENT.match(text) else [text])
            at += 1
        while words and (match := _ASSIGNMENT.match(words[0])):
            value = "".join(await self.expand(match.group(2), split=False))
            self.variables[match.group(1)] = value
            words.pop(0)
        if not words:
            if not given or not any("$(" in text for _, text in given):
                self.code = 0
            if target:
                self._store(target, (), append=append)
            return
        await self.simple(words, stdin, out, target=target, append=append, errors=error_target, together=together)

    async def simple(
        self,
        words: list[str],
        stdin: bytes,
        out: int | list[bytes],
        *,
        target: str = "",
        append: bool = False,
        errors: str = "",
        together: bool = False,
    ) -> None:
        """Runs one program with its arguments."""
        name = words[0].rpartition("/")[2]
        if name == "exit":
            raise _Exit(int(words[1]) if words[1:] and words[1].isdigit() else self.code)
        if name in {"break", "continue"}:
            raise _Break if name == "break" else _Continue
        if name in {"set", "export", "trap", ":", "ulimit", "umask", "wait", "cd", "shift"}:
            for word in words[1:] if name == "export" else ():
                if match := _ASSIGNMENT.match(word):
                    self.variables[match.group(1)] = match.group(2)
            self.code = 0
            return
        if name in {"exec", "command", "time", "nice", "sudo"} and len(words) > 1:
            await self.simple(words[1:], stdin, out, target=target, append=append, errors=errors, together=together)
            return
        if name == "timeout" and len(words) > 2:
            await self._timeout(words, stdin, out)
            return
        if name in {"sh", "bash", "ash"} and len(words) > 2 and "c" in words[1]:
            await self._list(tokens(words[2]), stdin, out)
            return
        call = Call(words, stdin, self.place, self.variables, self.spend)
        self.code = await tools.run(call)
        self.reason = self.reason or call.reason
        held: list[Content] = []
        for stream, written in call.written:
            if stream == 2 and errors:
                if errors != "/dev/null":
                    self._store(errors, written, append=True)
            elif target and (stream == 1 or together):
                held.append(written)
            elif isinstance(out, list) and (stream == 1 or together):
                out.append(raw(written, 64 << 20))
            else:
                self._say(stream if not together else 1, raw(written).decode(errors="replace"))
        if target:
            self._store(target, joined([run for piece in held for run in piece]), append=append)
        if call.endless:
            raise Forever

    async def _timeout(self, words: list[str], stdin: bytes, out: int | list[bytes]) -> None:
        from .programs import seconds_of

        rest = [word for word in words[1:] if not word.startswith("-")]
        began = self.seconds
        limit = seconds_of(rest[0])
        try:
            await self.simple(words[words.index(rest[0]) + 1 :], stdin, out)
        except Forever:
            await self.spend(limit)
            self.code = 143
            return
        if self.seconds - began > limit:
            self.code = 143

    # -- words -----------------------------------------------------------------------------------

    async def expand(self, word: str, *, split: bool = True) -> list[str]:
        """The words that a word of the script stands for, quotes removed."""
        pieces: list[tuple[str, bool]] = []
        for match in _PIECE.finditer(word):
            text = match.group()
            if text.startswith("'"):
                pieces.append((text[1:-1], True))
            elif text.startswith('"'):
                pieces.append((await self._substitute(text[1:-1], quoted=True), True))
            elif text.startswith("\\"):
                pieces.append((text[1:], True))
            elif text.startswith(("$", "`")):
                pieces.append((await self._substitute(text), not split))
            else:
                pieces.append((text, True))
        if not pieces:
            return [word] if word else []
        found, current, started = [], "", False
        for text, whole in pieces:
            if whole:
                current, started = current + text, True
                continue
            parts = text.split()
            if not parts:
                continue
            if text[:1].isspace() and started:
                found.append(current)
                current = ""
            current += parts[0]
            for piece in parts[1:]:
                found.append(current)
                current = piece
            started = True
        return [*found, current] if started else []

    async def _substitute(self, text: str, *, quoted: bool = False) -> str:
        found, at = "", 0
        for match in _DOLLAR.finditer(text):
            found += text[at : match.start()]
            at = match.end()
            found += await self._value(match.group(), quoted=quoted)
        return found + text[at:]

    async def _value(self, text: str, *, quoted: bool) -> str:
        if text.startswith("\\"):
            return text[1:] if text[1] in '"\\$`' else text
        if text.startswith("$(("):
            return self._arithmetic(text[3:-2])
        if text.startswith(("$(", "`")):
            passed: list[bytes] = []
            await self._list(tokens(text[2:-1] if text.startswith("$(") else text[1:-1]), b"", passed)
            return b"".join(passed).decode(errors="replace").rstrip("\n")
        name = text.strip("${}")
        name, _, default = name.partition(":-")
        special = {"?": str(self.code), "$": "1", "#": "0", "@": "", "*": "", "RANDOM": "16807"}
        return self.variables.get(name) or special.get(name) or default

    def _arithmetic(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match.group().lstrip("$").strip("{}")
            return self.variables.get(name, "0") or "0"

        text = re.sub(r"\$?\{?[A-Za-z_]\w*\}?", value, text)
        if not re.fullmatch(r"[\d\s+\-*/%()<>=!]+", text) or "**" in text or len(text) > 200:
            return "0"
        return tools.arithmetic(text)


_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_OPENING = {"if", "for", "while", "until"}
_CLOSING = {"fi", "done"}
_LEADING = {"then", "do", "else", "elif", "if", "while", "until", "!"}
_PIECE = re.compile(
    r"""'[^']*'|"(?:\\.|\$\((?:[^()]|\([^()]*\))*\)|[^"\\])*"|\\.|\$\(\((?:[^()]|\([^()]*\))*\)\)"""
    r"""|\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|`[^`]*`|\$\{[^}]*\}|\$[A-Za-z_]\w*|\$[?$#@*]|[^'"\\$`]+|\$""",
    re.DOTALL,
)
_DOLLAR = re.compile(
    r"\\.|\$\(\((?:[^()]|\([^()]*\))*\)\)|\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|`[^`]*`|\$\{[^}]*\}"
    r"|\$[A-Za-z_]\w*|\$[?$#@*]",
    re.DOTALL,
)


def _split(given: Tokens, words: set[str]) -> list[tuple[str, Tokens]]:
    """The tokens between keywords at this depth, each with the keyword before it."""
    found: list[tuple[str, Tokens]] = [("", [])]
    depth, start = 0, True
    for kind, text in given:
        if kind == "word" and start and text in _OPENING:
            depth += 1
        elif kind == "word" and start and text in _CLOSING:
            depth -= 1
        if depth == 0 and kind == "word" and text in words and (start or text == "in"):
            found.append((text, []))
        else:
            found[-1][1].append((kind, text))
        start = kind == "op" or text in _LEADING
    return found


__all__ = ["Awaitable", "Sequence", "Shell", "Syntax", "tokens"]
