"""What containers wrote, kept as a node keeps it: the present run, and the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Object = dict[str, Any]
Line = tuple[str, str]
MOST_LINES = 20_000


@dataclass
class Logs:
    """The logs of all containers of a cluster, by (namespace, pod, container)."""

    present: dict[tuple[str, str, str], list[Line]] = field(default_factory=dict)
    previous: dict[tuple[str, str, str], list[Line]] = field(default_factory=dict)

    def write(self, key: tuple[str, str, str], when: str, text: str) -> None:
        """Nothing; the lines stand at the end of the container's log."""
        lines = self.present.setdefault(key, [])
        lines.extend((when, line) for line in text.splitlines())
        if len(lines) > MOST_LINES:
            del lines[: len(lines) - MOST_LINES]

    def turn(self, key: tuple[str, str, str]) -> None:
        """Nothing; a new run of the container begins an empty log."""
        if key in self.present:
            self.previous[key] = self.present.pop(key)
        self.present[key] = []

    def forget(self, namespace: str, pod: str) -> None:
        """Nothing; a deleted pod has no logs."""
        for kept in (self.present, self.previous):
            for key in [key for key in kept if key[:2] == (namespace, pod)]:
                del kept[key]

    def tail(self, key: tuple[str, str, str], *, lines: int = 80, size: int = 2048) -> str:
        """The end of the present log, as a termination message may take it."""
        return "\n".join(line for _, line in self.present.get(key, ())[-lines:])[-size:]

    def read(self, key: tuple[str, str, str], options: Mapping[str, str]) -> str | None:
        """The text that the log endpoint answers with these options; None for a container that wrote nothing ever."""
        before = options.get("previous") in {"true", "1"}
        lines = (self.previous if before else self.present).get(key)
        if lines is None:
            return None
        return chosen(lines, options)


def chosen(lines: list[Line], options: Mapping[str, str]) -> str:
    """The lines that the options ask for, as text."""
    if since := options.get("sinceTime") or "":
        lines = [entry for entry in lines if entry[0] >= since]
    if options.get("sinceSeconds", "").isdigit() and lines:
        newest = datetime.fromisoformat(lines[-1][0]).timestamp()
        floor = newest - int(options["sinceSeconds"])
        lines = [entry for entry in lines if datetime.fromisoformat(entry[0]).timestamp() >= floor]
    if options.get("tailLines", "").isdigit():
        wanted = int(options["tailLines"])
        lines = lines[-wanted:] if wanted else []
    stamped = options.get("timestamps") in {"true", "1"}
    text = "".join(f"{when} {line}\n" if stamped else f"{line}\n" for when, line in lines)
    limit = options.get("limitBytes", "")
    return text[: int(limit)] if limit.isdigit() else text


def seeded(pod: Object, container: str) -> str:
    """What little a seeded container is known to have written: the message of its last end."""
    for entry in pod.get("status", {}).get("containerStatuses") or ():
        if entry["name"] == container:
            ended = entry.get("lastState", {}).get("terminated") or entry.get("state", {}).get("terminated") or {}
            return f"{ended['message']}\n" if ended.get("message") else ""
    return ""
