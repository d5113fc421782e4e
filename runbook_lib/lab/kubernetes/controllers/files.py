"""Small file systems and block devices: what pods write is there to be read again, on whatever node.

Large contents are never held: a run of zeros or of random bytes is its length and where it came from.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .quantities import number

Object = dict[str, Any]
GIB = 1 << 30
BLOCK = 4096
REAL_LIMIT = 64 << 20
"""Zeros up to here are summed as the real bytes; longer runs and random bytes by what they stand for."""


@dataclass(frozen=True)
class Run:
    """A stretch of content: bytes as they are, or `length` bytes of a source named by `seed` ("" is zeros)."""

    length: int
    data: bytes | None = None
    seed: str = ""
    start: int = 0

    def part(self, start: int, length: int) -> Run:
        """A stretch of the stretch."""
        if self.data is not None:
            return Run(length, self.data[start : start + length])
        return Run(length, None, self.seed, self.start + start)

    def raw(self) -> bytes:
        """The bytes; those of a random source are made from its name."""
        if self.data is not None:
            return self.data
        if not self.seed:
            return bytes(self.length)
        first = self.start // 32
        blocks = range(first, first + self.length // 32 + 2)
        found = b"".join(hashlib.sha256(f"{self.seed}/{number}".encode()).digest() for number in blocks)
        return found[self.start % 32 :][: self.length]


Content = tuple[Run, ...]


def content(text: str | bytes) -> Content:
    """The content of a text."""
    raw = text.encode() if isinstance(text, str) else text
    return (Run(len(raw), raw),) if raw else ()


def length(whole: Content) -> int:
    """How many bytes."""
    return sum(run.length for run in whole)


def part(whole: Content, start: int, size: int) -> Content:
    """At most `size` bytes from `start` on."""
    found, at = [], 0
    for run in whole:
        begin, end = max(start, at), min(start + size, at + run.length)
        if begin < end:
            found.append(run.part(begin - at, end - begin))
        at += run.length
    return joined(found)


def joined(runs: Sequence[Run]) -> Content:
    """The runs with neighbours of one source made one."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last and run.data is not None and last.data is not None:
            found[-1] = Run(last.length + run.length, last.data + run.data)
        elif last and run.data is last.data is None and (run.seed, run.start) == (
            last.seed, last.start + last.length if last.seed else run.start
        ):  # fmt: skip
            found[-1] = Run(last.length + run.length, None, last.seed, last.start)
        elif run.length:
            found.append(run)
    return tuple(found)


def overwritten(whole: Content, at: int, new: Content) -> Content:
    """The content with something written over it from `at` on, longer if need be."""
    size, end = length(whole), at + length(new)
    gap = (Run(at - size),) if at > size else ()
    return joined([*part(whole, 0, at), *gap, *new, *part(whole, end, max(size - end, 0))])


def raw(whole: Content, limit: int = 1 << 20) -> bytes:
    """The bytes, at most so many."""
    return b"".join(run.raw() for run in part(whole, 0, limit))


def summed(whole: Content, algorithm: str = "sha256") -> str:
    """The checksum. Equal contents have equal sums however they were written."""
    digest = hashlib.new(algorithm)
    for run in whole:
        if run.data is not None:
            digest.update(run.data)
        elif run.length <= (REAL_LIMIT if not run.seed else 1 << 16):
            whole_blocks, rest = divmod(run.length, 1 << 20)
            for _ in range(whole_blocks):
                digest.update(bytes(1 << 20))
            digest.update(bytes(rest) if not run.seed else run.raw())
        else:
            digest.update(f"{run.seed}/{run.start}/{run.length}".encode())
    return digest.hexdigest()


@dataclass
class Keep:
    """One volume's content: a tree of files, or the bytes of a device. `size` is the whole room in bytes."""

    name: str
    size: int
    kind: str = "ext4"
    files: dict[str, Content] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    device: Content = ()
    read_only: bool = False

    def used(self) -> int:
        """Bytes in use by files, in whole blocks."""
        return sum(-(-length(found) // BLOCK) * BLOCK for found in self.files.values())

    def copy(self, name: str, size: int) -> Keep:
        """The same content under another name, as a clone or a restored snapshot begins."""
        return Keep(name, max(size, self.size), self.kind, dict(self.files), set(self.folders), self.device)


@dataclass
class Disks:
    """The contents of all volumes: persistent ones by their handle, the others by pod and volume."""

    kept: dict[str, Keep] = field(default_factory=dict)

    def persistent(self, handle: str, size: str, kind: str, origin: Callable[[], str]) -> Keep:
        """The content behind a volume handle, of at least that size now; new ones are blank or copies of `origin`."""
        room = int(number(size))
        found = self.kept.get(handle)
        if found is None:
            source = self.kept.get(origin())
            found = source.copy(handle, room) if source else Keep(handle, room, kind)
            self.kept[handle] = found
        found.size = max(found.size, room)
        return found

    def empty(self, key: str, limit: str) -> Keep:
        """The room of an emptyDir."""
        size = int(number(limit)) if limit else 40 * GIB
        return self.kept.setdefault(f"pod/{key}", Keep(key, size))

    def filled(self, key: str, kind: str, item: Object, items: Sequence[Object] | None) -> Keep:
        """What a Secret or ConfigMap looks like as files."""
        data: dict[str, bytes] = {}
        for name, value in (item.get("data") or {}).items():
            data[name] = base64.b64decode(value) if kind == "Secret" else str(value).encode()
        for name, value in (item.get("binaryData") or {}).items():
            data[name] = base64.b64decode(value)
        if items:
            data = {entry["path"]: data[entry["key"]] for entry in items if entry["key"] in data}
        files = {name: content(value) for name, value in data.items()}
        self.kept[f"pod/{key}"] = Keep(key, GIB, "tmpfs", files, read_only=True)
        return self.kept[f"pod/{key}"]

    def snapshot(self, name: str, handle: str) -> None:
        """Nothing; what the volume holds now is kept under the snapshot's name."""
        if (found := self.kept.get(handle)) is not None:
            self.kept[name] = found.copy(name, found.size)

    def forget(self, handle: str) -> None:
        """Nothing; a deleted volume's content is gone."""
        self.kept.pop(handle, None)

    def forget_pod(self, uid: str) -> None:
        """Nothing; what lived with the pod is gone with it."""
        for key in [key for key in self.kept if key.startswith(f"pod/{uid}/")]:
            del self.kept[key]


@dataclass(frozen=True)
class Mount:
    """A volume at a path of a container; `below` is the folder of it that is seen."""

    path: str
    keep: Keep
    below: str = ""
    read_only: bool = False


class FileError(Exception):
    """An operation was refused; the text is the one of strerror."""


POD_MTU = 1400
"""What Kube-OVN gives pods on nodes of 1500: Geneve takes up to 100 bytes of each frame."""


@dataclass
class Files:
    """What one container sees under /."""

    root: Keep
    mounts: dict[str, Mount] = field(default_factory=dict)
    devices: dict[str, Keep] = field(default_factory=dict)

    @classmethod
    def fresh(cls) -> Files:
        """A container's own layer, with the folders every image has."""
        folders = {"bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr", "var", "var/log", "mnt", "opt"}
        root = Keep("overlay", 46 * GIB, "overlay", folders=folders)
        root.files["etc/resolv.conf"] = content(
            "search default.svc.cozy.local svc.cozy.local cozy.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        )
        root.files["sys/class/net/eth0/mtu"] = content(f"{POD_MTU}\n")
        root.folders |= {"sys/class", "sys/class/net", "sys/class/net/eth0"}
        return cls(root)

    def mount(self, path: str, keep: Keep, below: str = "", *, read_only: bool = False) -> None:
        """Nothing; the volume is seen at the path."""
        path = posixpath.normpath(path)
        self.mounts[path] = Mount(path, keep, below.strip("/"), read_only or keep.read_only)

    def attach(self, path: str, keep: Keep) -> None:
        """Nothing; the volume's device is at the path."""
        self.devices[posixpath.normpath(path)] = keep

    def at(self, path: str) -> tuple[Mount, str]:
        """(the mount a path lies on, the path within its volume)."""
        path = posixpath.normpath(posixpath.join("/", path))
        for point in sorted(self.mounts, key=len, reverse=True):
            if path == point or path.startswith(point.rstrip("/") + "/"):
                mount = self.mounts[point]
                inner = path[len(point) :].strip("/")
                return mount, "/".join(piece for piece in (mount.below, inner) if piece)
        return Mount("/", self.root), path.strip("/")

    def is_folder(self, path: str) -> bool:
        """Whether a folder is there."""
        mount, inner = self.at(path)
        if not inner or inner == mount.below or inner in mount.keep.folders:
            return True
        under = f"{inner}/"
        held = (*mount.keep.files, *mount.keep.folders)
        points = (point.strip("/") + "/" for point in self.mounts)
        return any(name.startswith(under) for name in held) or any(
            name.startswith(posixpath.normpath(path).strip("/") + "/") for name in points
        )

    def exists(self, path: str) -> bool:
        """Whether a file, folder or device is there."""
        return self.is_folder(path) or posixpath.normpath(path) in self.devices or self._file(path) is not None

    def _file(self, path: str) -> Content | None:
        mount, inner = self.at(path)
        return mount.keep.files.get(inner)

    def read(self, path: str) -> Content:
        """What a file or device holds. Raises FileError."""
        path = posixpath.normpath(posixpath.join("/", path))
        if path in self.devices:
            keep = self.devices[path]
            missing = keep.size - length(keep.device)
            return joined([*keep.device, Run(missing)]) if missing > 0 else keep.device
        found = self._file(path)
        if found is None:
            raise FileError("Is a directory" if self.is_folder(path) else "No such file or directory")
        return found

    def text(self, path: str) -> str:
        """A file as text, empty when there is none."""
        found = self._file(path)
        return raw(found).decode(errors="replace") if found else ""

    def write(self, path: str, new: Content, *, append: bool = False, at: int | None = None) -> None:
        """Nothing; the file holds it, or the device from `at` on. Raises FileError."""
        path = posixpath.normpath(posixpath.join("/", path))
        if path in {"/dev/null", "/dev/stdout", "/dev/stderr"}:
            return
        if path in self.devices:
            keep = self.devices[path]
            room = max(keep.size - (at or 0), 0)
            keep.device = overwritten(keep.device, at or 0, part(new, 0, room))
            if length(new) > room:
                raise FileError("No space left on device")
            return
        mount, inner = self.at(path)
        if self.is_folder(path):
            raise FileError("Is a directory")
        if mount.read_only:
            raise FileError("Read-only file system")
        if not self.is_folder(posixpath.dirname(path)):
            raise FileError("No such file or directory")
        before = mount.keep.files.get(inner, ())
        whole = joined([*before, *new]) if append else new if at is None else overwritten(before, at, new)
        room = mount.keep.size - mount.keep.used() + -(-length(before) // BLOCK) * BLOCK
        if length(whole) > room:
            mount.keep.files[inner] = part(whole, 0, room)
            raise FileError("No space left on device")
        mount.keep.files[inner] = whole

    def make_folder(self, path: str, *, parents: bool = False) -> None:
        """Nothing; the folder is there. Raises FileError."""
        mount, inner = self.at(path)
        if self.exists(path):
            if parents and self.is_folder(path):
                return
            raise FileError("File exists")
        if mount.read_only:
            raise FileError("Read-only file system")
        above = posixpath.dirname(posixpath.normpath(path)) or "/"
        if not self.is_folder(above):
            if not parents:
                raise FileError("No such file or directory")
            self.make_folder(above, parents=True)
        mount.keep.folders.add(inner)

    def remove(self, path: str, *, tree: bool = False) -> None:
        """Nothing; the file, or the folder with all in it, is gone. Raises FileError."""
        mount, inner = self.at(path)
        if mount.read_only:
            raise FileError("Read-only file system")
        if inner in mount.keep.files:
            del mount.keep.files[inner]
            return
        if not self.is_folder(path):
            raise FileError("No such file or directory")
        if not tree:
            raise FileError("Is a directory")
        for name in [name for name in mount.keep.files if name.startswith(f"{inner}/")]:
            del mount.keep.files[name]
        mount.keep.folders -= {name for name in mount.keep.folders if name == inner or name.startswith(f"{inner}/")}

    def listed(self, path: str) -> dict[str, Content | None]:
        """What lies in a folder, by name; None is a folder. Raises FileError."""
        if not self.is_folder(path):
            raise FileError("No such file or directory")
        mount, inner = self.at(path)
        head = f"{inner}/" if inner else ""
        found: dict[str, Content | None] = {}
        for name in (*mount.keep.folders, *mount.keep.files):
            if name.startswith(head) and name != inner:
                first, deeper, _ = name[len(head) :].partition("/")
                found[first] = None if deeper or name in mount.keep.folders else mount.keep.files[name]
        here = posixpath.normpath(posixpath.join("/", path)).rstrip("/") + "/"
        for point in (*self.mounts, *self.devices):
            if point.startswith(here):
                found[point[len(here) :].partition("/")[0]] = None if point in self.mounts else ()
        return dict(sorted(found.items()))


def figures(keep: Keep) -> Mapping[str, int]:
    """What df says of a volume, in bytes: size, used, free. ext4 keeps a little for itself."""
    own = keep.size // 64 + 24576 if keep.kind in {"ext4", "xfs"} else 0
    size = keep.size - own
    used = keep.used() + 24576
    kept_back = 16 << 20 if keep.kind == "ext4" else 0
    return {"size": size, "used": used, "free": max(size - used - kept_back, 0)}
