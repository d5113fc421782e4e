"""Chance in the lab: everything that looks random comes from one seed, so that a run repeats exactly.

What is thrown depends on the seed, on a name, and on how often that name was thrown before, never on what else
happens in between: two requests that overtake each other still get what they would have got.

Secrets do not come from here: passwords, token values, tickets and their keys are drawn by the operating system.
The lab's ports are open to every user of the machine, and whoever knew the seed would know how to log in.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping

SEED = 1
"""The seed of a lab that was not given one."""


class Dice:
    """The dice of one lab (or of one half of it)."""

    def __init__(self, seed: int = SEED, thrown: Mapping[str, int] | None = None) -> None:
        self.seed = seed
        self.thrown: dict[str, int] = dict(thrown or {})

    @property
    def salt(self) -> str:
        """What to put before the name of a figure that drifts; nothing for the usual seed."""
        return "" if self.seed == SEED else f"{self.seed}/"

    def fraction(self, name: str) -> float:
        """The next number in [0, 1) of that name."""
        return int.from_bytes(self._throw(name)[:7], "big") / 2**56

    def hex(self, name: str, length: int = 32) -> str:
        """The next word of that name, of up to 64 hexadecimal digits."""
        return self._throw(name).hex()[:length]

    def uuid(self, name: str) -> str:
        """The next UUID of that name; it says of itself that it is a random one."""
        return str(uuid.UUID(bytes=self._throw(name)[:16], version=4))

    def _throw(self, name: str) -> bytes:
        count = self.thrown[name] = self.thrown.get(name, 0) + 1
        return hashlib.sha256(f"{self.seed}/{name}/{count}".encode()).digest()
