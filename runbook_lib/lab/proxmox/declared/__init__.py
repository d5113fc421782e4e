"""What endpoints take and ask for, apart from what they do: one table an API area.

    endpoint = declared(TABLE)

    @endpoint("GET /cluster/ha/resources")
    def list_resources(call: Call) -> list[dict[str, Any]]: ...

An area that serves dozens of methods reads better when its functions stand without their parameters.
Source: the vendor's API viewer of both flavours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..routing import Either, H, Param, Rule, route

Params = dict[str, Param | Either]


@dataclass(frozen=True)
class Endpoint:
    """One method: who may call it, with what, and which flavour alone has it. `node` as in `route`."""

    permission: str | Rule
    params: Params = field(default_factory=dict)
    only: str | None = None
    node: bool | None = None
    tokens: bool = True


class Declare(Protocol):
    """What makes a function the handler of a method, under its own rule or the table's."""

    def __call__(self, key: str, permission: str | Rule | None = None) -> Callable[[H], H]:
        """The decorator for the method of that key."""


def declared(table: Mapping[str, Endpoint]) -> Declare:
    """A decorator factory: `endpoint("GET /path")` makes the function that method's handler."""

    def endpoint(key: str, permission: str | Rule | None = None) -> Callable[[H], H]:
        method, _, template = key.partition(" ")
        entry = table[key]
        return route(
            method,
            template,
            params=entry.params,
            permission=entry.permission if permission is None else permission,
            node=entry.node,
            tokens=entry.tokens,
            only=entry.only,
        )

    return endpoint


__all__ = ["Declare", "Endpoint", "Params", "declared"]
