"""Events that are written once: a controller that tries again and again says the same thing only when it is new."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..client import Object
from ..context import Context


@dataclass
class Told:
    """What was said last about each object, by one component."""

    context: Context
    component: str
    _last: dict[tuple[str, str], str] = field(default_factory=dict)

    async def say(self, about: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Nothing; the event is written unless it was the last of that reason about this object."""
        key = (str(about["metadata"].get("uid", "")), reason)
        if self._last.get(key) == message:
            return
        self._last[key] = message
        kind = "Warning" if warning else "Normal"
        await self.context.event(about, reason, message, kind=kind, component=self.component)

    def forget(self, about: Object) -> None:
        """Nothing; whatever is said about the object from now on is news."""
        uid = str(about["metadata"].get("uid", ""))
        for key in [key for key in self._last if key[0] == uid]:
            del self._last[key]
