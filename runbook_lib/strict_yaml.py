"""YAML as a parameters file may use it: plain data, each key once, nothing that grows or runs.

Aliases, anchors, tags and merge keys are refused, and so are files that are too large or too deep. Only true, false,
null and decimal numbers are not text: a version 1.26 given without quotes is still a number, but `no`, 0644, 10:30 and
2026-11-23 are text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionStartEvent, NodeEvent, ScalarEvent
from yaml.nodes import MappingNode, Node, ScalarNode

LARGEST_BYTES = 256 * 1024
DEEPEST = 20


class Malformed(Exception):
    """The text is not such YAML; the message is one line and quotes no value. `line` counts from 1, 0 = unknown."""

    def __init__(self, message: str, *, line: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.line, self.hint = line, hint


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (as yaml declares it)

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if isinstance(event, AliasEvent):
            raise _at(event, "an alias (*) is not allowed", "write the value out")
        if isinstance(event, NodeEvent) and event.anchor:
            raise _at(event, "an anchor (&) is not allowed", "write each value out; quote text that begins with &")
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            raise _at(event, "a tag (!) is not allowed", "quote text that begins with !")
        self.depth += 1
        if self.depth > DEEPEST:
            raise _at(event, f"nested deeper than {DEEPEST} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _at(key, "a key that is not text", "quote it")
            if key.value in seen:
                raise _at(key, f"the key {shown(key.value)} is given twice", "keep one of them")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: MappingNode) -> None:
        """Nothing: `<<` is a key like any other here, and then an unknown one."""


def _at(place: Any, message: str, hint: str = "") -> Malformed:
    return Malformed(message, line=place.start_mark.line + 1, hint=hint)


def _number(loader: _Loader, node: ScalarNode) -> int | float:
    text = node.value
    if len(text) > 40:
        raise _at(node, "a number with more than 40 digits")
    value = float(re.sub(r"\.(?=[iInN])", "", text))
    if not math.isfinite(value):
        raise _at(node, "a number that is not finite")
    return value if re.search(r"[.eE]", text) else int(text)


# The core schema of YAML 1.2, without octal and hexadecimal numbers.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def load(data: bytes) -> Any:
    """The plain data in `data`; None of an empty file. Raises Malformed."""
    if len(data) > LARGEST_BYTES:
        raise Malformed(f"larger than {LARGEST_BYTES // 1024} KiB")
    try:
        return yaml.load(data.decode("utf-8-sig"), _Loader)
    except UnicodeDecodeError:
        raise Malformed("not UTF-8 text") from None
    except yaml.reader.ReaderError:
        raise Malformed("it holds control characters") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Malformed(_words(error), line=mark.line + 1 if mark else 0, hint="a tab? a missing quote?") from None
    except RecursionError:
        raise Malformed(f"nested deeper than {DEEPEST} levels") from None


def _words(error: yaml.MarkedYAMLError) -> str:
    problem = (error.problem or error.context or "not YAML").partition("\n")[0]
    return f"not YAML: {shown(problem, quote='')}"


def shown(text: str, *, quote: str = "'", longest: int = 60) -> str:
    """`text` fit for a one-line message: no control characters, not too long."""
    flat = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", "�", text)
    return f"{quote}{flat if len(flat) <= longest else flat[: longest - 1] + '…'}{quote}"
