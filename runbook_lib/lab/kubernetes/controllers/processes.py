"""The programs of controller images: a controller runs where, and only while, a container of its image runs.

A kubelet hands such a container here. Of several replicas one leads and works; the others wait for its end. So a
controller whose pods are gone, crash or cannot be pulled does nothing, as on a real cluster.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from .client import Key, Object
from .context import Context
from .programs import Ended

Write = Callable[[str], None]


class Exit(Exception):
    """A program gives up: the container ends with this code, and what it said last is its log."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code, self.said = code, said


@dataclass(frozen=True)
class Process:
    """One running container: its pod, its spec, its environment with references resolved, and its log.

    `version` is the image's tag as written, "v0.7.7".
    """

    pod: Object
    container: Object
    env: dict[str, str]
    write: Write

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return str(self.pod["metadata"]["namespace"])

    @property
    def version(self) -> str:
        """The image's tag."""
        return str(self.container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[2]


@dataclass(frozen=True)
class Program:
    """What an image runs. `image` is the end of its repository's name; `args` must all be among the words.

    `run` works until it is cancelled; it raises Exit when the real program would end.
    """

    image: str
    run: Callable[[Context, Process], Awaitable[None]]
    leads: bool = True
    args: tuple[str, ...] = ()


@dataclass
class Processes:
    """The controllers' containers of one cluster."""

    context: Context
    programs: Sequence[Program]
    _locks: dict[Key, asyncio.Lock] = field(default_factory=dict)

    def knows(self, container: Object) -> Program | None:
        """The program of the container's image, or None."""
        path, _, last = str(container["image"]).partition("@")[0].rpartition("/")
        name = f"{path}/{last.partition(':')[0]}"
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        for program in self.programs:
            if name.endswith(f"/{program.image}") and all(
                any(word in given for given in words) for word in program.args
            ):
                return program
        return None

    async def serve(self, program: Program, pod: Object, container: Object, write: Write) -> Ended:
        """How the program ended. Returns only when it gave up by itself."""
        process = Process(pod, container, await self.environment(pod, container), write)
        lock = self._locks.setdefault((process.namespace, f"{program.image} {' '.join(program.args)}"), asyncio.Lock())
        try:
            if not program.leads:
                await program.run(self.context, process)
            else:
                async with lock:
                    await program.run(self.context, process)
        except Exit as ended:
            return Ended(ended.said, ended.code)
        return Ended()

    async def environment(self, pod: Object, container: Object) -> dict[str, str]:
        """The container's variables, with Secrets and ConfigMaps read from the API server."""
        space = pod["metadata"]["namespace"]
        found: dict[str, str] = {}
        for source in container.get("envFrom") or ():
            for kind, key in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
                if kind in source:
                    data = await self._data(space, key, source[kind]["name"])
                    found |= {source.get("prefix", "") + name: value for name, value in data.items()}
        for entry in container.get("env") or ():
            given = entry.get("valueFrom") or {}
            if "value" in entry:
                found[entry["name"]] = entry["value"]
            elif "fieldRef" in given:
                found[entry["name"]] = _field(pod, given["fieldRef"]["fieldPath"])
            for kind, key in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if kind in given:
                    data = await self._data(space, key, given[kind]["name"])
                    if given[kind]["key"] in data:
                        found[entry["name"]] = data[given[kind]["key"]]
        return found

    async def _data(self, space: str, resource: str, name: str) -> dict[str, str]:
        item = await self.context.client.find(f"/api/v1/namespaces/{space}/{resource}/{name}")
        data = (item or {}).get("data") or {}
        if resource == "secrets":
            return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
        return dict(data)


def _field(pod: Object, path: str) -> str:
    found: object = pod
    for part in path.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return str(found)
