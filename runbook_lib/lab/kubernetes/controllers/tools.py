"""The programs a probe's shell finds: files, sums, figures of disks, text."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import operator
import posixpath
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from . import files, network_tools
from .files import Content, FileError, Run, content, length, raw
from .quantities import number

if TYPE_CHECKING:
    from .programs import Place

DISK_BYTES_PER_SECOND = 210e6


class Forever(Exception):
    """The program does not end by itself."""


@dataclass
class Call:
    """One program's run: its words, what it reads, where it is, and what it wrote so far."""

    words: Sequence[str]
    stdin: bytes
    place: Place
    variables: dict[str, str]
    spend: Callable[[float], Awaitable[None]]
    written: list[tuple[int, Content]] = field(default_factory=list)
    endless: bool = False
    reason: str = ""

    @property
    def rest(self) -> list[str]:
        """The arguments that are no flags."""
        return [word for word in self.words[1:] if not word.startswith("-") or word == "-"]

    @property
    def flags(self) -> str:
        """The letters of all short flags."""
        return "".join(word[1:] for word in self.words[1:] if word.startswith("-") and not word.startswith("--"))

    def option(self, *names: str) -> str:
        """The value after a flag, or behind its equals sign; empty when it is not given."""
        for place, word in enumerate(self.words):
            for name in names:
                if word == name and place + 1 < len(self.words):
                    return self.words[place + 1]
                if word.startswith(f"{name}=" if name.startswith("--") else name) and word != name:
                    return word[len(name) :].lstrip("=")
        return ""

    def out(self, text: str | Content) -> None:
        """Nothing; it was written to standard output."""
        self.written.append((1, content(text) if isinstance(text, str) else text))

    def error(self, text: str) -> int:
        """1, after the text was written to standard error."""
        self.written.append((2, content(text)))
        return 1

    def inputs(self, paths: Sequence[str]) -> list[tuple[str, Content]]:
        """The contents of the files, or of standard input without any. Raises FileError."""
        found = []
        for path in paths or ["-"]:
            if path == "-":
                found.append((path, content(self.stdin)))
                continue
            try:
                found.append((path, self.place.files.read(path)))
            except FileError as error:
                raise FileError(f"{path}: {error}") from error
        return found


Tool = Callable[[Call], "int | Awaitable[int]"]


async def run(call: Call) -> int:
    """The exit code of the program that the call's first word names."""
    name = call.words[0].rpartition("/")[2]
    if name in network_tools.TOOLS:
        return await network_tools.TOOLS[name](call)
    tool = _TOOLS.get(name)
    if tool is None:
        call.error(f"sh: {call.words[0]}: not found\n")
        return 127
    try:
        code = tool(call)
        return code if isinstance(code, int) else await code
    except FileError as error:
        return call.error(f"{name}: {error}\n")
    except (ValueError, IndexError, KeyError):
        return call.error(f"{name}: invalid argument\n")


def arithmetic(text: str) -> str:
    """What $((…)) gives for numbers and + - * / % and comparisons; "0" for anything else."""
    kinds = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod,
             ast.FloorDiv: operator.floordiv, ast.Div: operator.floordiv}  # fmt: skip

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in kinds:
            return int(kinds[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(text)

    try:
        return str(value(ast.parse(text.strip(), mode="eval").body))
    except (ValueError, SyntaxError, ZeroDivisionError):
        return "0"


def size_of(text: str) -> int:
    """ "4k", "1M", "16MiB", "512" → bytes."""
    text = text.removesuffix("iB").removesuffix("B") if not text[-1:].isdigit() else text
    factors = {"c": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "m": 1 << 20, "G": 1 << 30, "g": 1 << 30, "T": 1 << 40}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1:] in factors else int(text)


# -- files ------------------------------------------------------------------------------------------


def _echo(call: Call) -> int:
    words = list(call.words[1:])
    ending = "\n"
    while words and words[0] in {"-n", "-e", "-ne", "-en"}:
        ending = "" if "n" in words[0] else ending
        words.pop(0)
    text = " ".join(words)
    if "-e" in call.words or "-ne" in call.words:
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    call.out(text + ending)
    return 0


def _printf(call: Call) -> int:
    form, arguments = call.words[1].replace("\\n", "\n").replace("\\t", "\t"), list(call.words[2:])
    while arguments and (padded := re.search(r"%0(\d+)d", form)):
        form = form.replace(padded[0], arguments.pop(0).zfill(int(padded[1])), 1)
    for spec in ("%s", "%d", "%i"):
        while spec in form:
            form = form.replace(spec, arguments.pop(0) if arguments else "", 1)
    call.out(form.replace("%%", "%"))
    return 0


def _cat(call: Call) -> int:
    for _, found in call.inputs(call.rest):
        call.out(found)
    return 0


def _sum(algorithm: str) -> Tool:
    def tool(call: Call) -> int:
        if "c" in call.flags or "--check" in call.words:
            return _check(call, algorithm)
        for path, found in call.inputs(call.rest):
            call.out(f"{files.summed(found, algorithm)}  {path}\n")
        return 0

    return tool


def _check(call: Call, algorithm: str) -> int:
    bad = 0
    for _, listing in call.inputs(call.rest):
        for line in raw(listing).decode().splitlines():
            wanted, _, path = line.partition("  ")
            good = files.summed(call.place.files.read(path), algorithm) == wanted
            bad += not good
            call.out(f"{path}: {'OK' if good else 'FAILED'}\n")
    if bad:
        call.error(f"{call.words[0]}: WARNING: {bad} computed checksum did NOT match\n")
    return int(bool(bad))


async def _dd(call: Call) -> int:
    given = dict(word.partition("=")[::2] for word in call.words[1:])
    block = size_of(given.get("bs", "512"))
    source, target = given.get("if", "-"), given.get("of", "-")
    count = int(given["count"]) if "count" in given else None
    skip, seek = int(given.get("skip", 0)) * block, int(given.get("seek", 0)) * block
    wanted = None if count is None else count * block
    if source == "/dev/zero":
        data: Content = (Run(wanted or 0),) if wanted else ()
    elif source in {"/dev/urandom", "/dev/random"}:
        meta = call.place.pod["metadata"]
        seed = f"{meta.get('uid', meta['name'])}/{target}/{call.place.now()}"
        data = (Run(wanted or 0, None, hashlib.sha256(seed.encode()).hexdigest()),) if wanted else ()
    else:
        whole = content(call.stdin) if source == "-" else call.inputs([source])[0][1]
        size = length(whole) - skip
        data = files.part(whole, skip, size if wanted is None else min(size, wanted))
    full, rest = divmod(length(data), block)
    seconds = max(length(data) / DISK_BYTES_PER_SECOND, 0.0002)
    code = 0
    if target == "-":
        call.out(data)
    else:
        keep = "notrunc" in given.get("conv", "") or seek or target in call.place.files.devices
        try:
            call.place.files.write(target, data, at=seek if keep else None)
        except FileError as error:
            call.error(f"dd: error writing '{target}': {error}\n")
            code = 1
    await call.spend(seconds)
    told = f"{full}+{int(bool(rest))} records in\n{full}+{int(bool(rest))} records out\n"
    call.error(f"{told}{length(data)} bytes ({_human(length(data))}B) copied, {seconds:.6f} seconds, "
               f"{_human(length(data) / seconds)}B/s\n")  # fmt: skip
    return code


def _human(size: float) -> str:
    for unit in ("", "K", "M", "G"):
        if size < 1024 or unit == "G":
            return f"{size:.1f}{unit}" if unit else f"{size:.0f}"
        size /= 1024
    return ""


def _df(call: Call) -> int:
    place = call.place.files
    points = {point: mount.keep for point, mount in place.mounts.items()}
    asked = [word for word in call.rest if word != call.option("-B")]
    rows = []
    for path in asked or ["/", *points]:
        if not place.exists(path):
            return call.error(f"df: {path}: No such file or directory\n")
        mount, _ = place.at(path)
        rows.append((mount.path, mount.keep))
    unit = 1024
    if "B" in call.flags or "--block-size" in " ".join(call.words):
        unit = size_of(call.option("-B", "--block-size") or "1K")
    elif "m" in call.flags:
        unit = 1 << 20
    if (wanted := call.option("--output")) or "i" in call.flags:
        return _df_output(call, rows, wanted or "size,used,avail,pcent,target", unit)
    human = "h" in call.flags
    heading = (
        "Size" if human else f"{unit}-blocks" if unit != 1024 else "1024-blocks" if "P" in call.flags else "1K-blocks"
    )
    call.out(f"Filesystem           {heading:>10} {'Used':>9} {'Available':>9} Use% Mounted on\n")
    for point, keep in rows:
        found = files.figures(keep)
        shown = [_human(found[key]) if human else str(found[key] // unit) for key in ("size", "used", "free")]
        share = -(-found["used"] * 100 // max(found["used"] + found["free"], 1))
        call.out(f"{_source(keep):<20} {shown[0]:>10} {shown[1]:>9} {shown[2]:>9} {share:>3}% {point}\n")
    return 0


def _df_output(call: Call, rows: Sequence[tuple[str, files.Keep]], wanted: str, unit: int) -> int:
    heads = {"size": "1K-blocks" if unit == 1024 else f"{unit}B-blocks", "used": "Used", "avail": "Avail",
             "pcent": "Use%", "target": "Mounted on", "source": "Filesystem", "fstype": "Type"}  # fmt: skip
    names = [name for name in wanted.split(",") if name in heads]
    call.out(" ".join(f"{heads[name]:>12}" for name in names) + "\n")
    for point, keep in rows:
        found = files.figures(keep)
        share = -(-found["used"] * 100 // max(found["used"] + found["free"], 1))
        shown = {"size": found["size"] // unit, "used": found["used"] // unit, "avail": found["free"] // unit,
                 "pcent": f"{share}%", "target": point, "source": _source(keep), "fstype": keep.kind}  # fmt: skip
        call.out(" ".join(f"{shown[name]:>12}" for name in names) + "\n")
    return 0


def _source(keep: files.Keep) -> str:
    if keep.kind in {"overlay", "tmpfs"}:
        return keep.kind
    letter = "bcdefghijklmnopqrstuvwxyz"[hashlib.sha256(keep.name.encode()).digest()[0] % 25]
    return f"/dev/sd{letter}"


def _mount(call: Call) -> int:
    call.out("overlay on / type overlay (rw,relatime)\n")
    for point, mount in sorted(call.place.files.mounts.items()):
        mode = "ro" if mount.read_only else "rw"
        call.out(f"{_source(mount.keep)} on {point} type {mount.keep.kind} ({mode},relatime)\n")
    return 0


def _stat(call: Call) -> int:
    form = call.option("-c", "--format", "--printf")
    for path in [word for word in call.rest if word != form]:
        if not call.place.files.exists(path):
            return call.error(f"stat: can't stat '{path}': No such file or directory\n")
        folder = call.place.files.is_folder(path)
        size = 4096 if folder else length(call.place.files.read(path))
        kind = "directory" if folder else "block special file" if path in call.place.files.devices else "regular file"
        mode = "755" if folder else "644"
        values = {"%s": str(size), "%n": path, "%F": kind, "%a": mode, "%b": str(-(-size // 512)), "%U": "root"}
        if not form:
            call.out(f"  File: {path}\n  Size: {size}\tBlocks: {-(-size // 512)}\tIO Block: 4096   {kind}\n")
            continue
        text = form
        for key, value in values.items():
            text = text.replace(key, value)
        call.out(text.replace("\\n", "\n") + ("" if "--printf" in " ".join(call.words) else "\n"))
    return 0


def _ls(call: Call) -> int:
    for path in call.rest or ["/"]:
        place = call.place.files
        if not place.exists(path):
            return call.error(f"ls: {path}: No such file or directory\n")
        found = place.listed(path) if place.is_folder(path) and "d" not in call.flags else {path: _maybe(place, path)}
        for name, held in found.items():
            if "l" not in call.flags:
                call.out(f"{name}\n")
                continue
            size = 4096 if held is None else length(held)
            mode = "drwxr-xr-x" if held is None else "-rw-r--r--"
            when = datetime.fromtimestamp(call.place.now(), UTC).strftime("%b %e %H:%M")
            call.out(f"{mode}    1 root     root     {size:>9} {when} {name}\n")
    return 0


def _maybe(place: files.Files, path: str) -> Content | None:
    return None if place.is_folder(path) else place.read(path)


def _mkdir(call: Call) -> int:
    for path in call.rest:
        try:
            call.place.files.make_folder(path, parents="p" in call.flags)
        except FileError as error:
            return call.error(f"mkdir: can't create directory '{path}': {error}\n")
    return 0


def _rm(call: Call) -> int:
    place = call.place.files
    for given in call.rest:
        folder = posixpath.dirname(given) or "/"
        names = place.listed(folder) if "*" in given and place.is_folder(folder) else {}
        paths = [posixpath.join(folder, name) for name in fnmatch.filter(names, posixpath.basename(given))] or [given]
        for path in paths:
            try:
                place.remove(path, tree="r" in call.flags or "R" in call.flags)
            except FileError as error:
                if "f" not in call.flags:
                    return call.error(f"rm: can't remove '{path}': {error}\n")
    return 0


def _touch(call: Call) -> int:
    for path in call.rest:
        if not call.place.files.exists(path):
            try:
                call.place.files.write(path, ())
            except FileError as error:
                return call.error(f"touch: {path}: {error}\n")
    return 0


def _cp(call: Call) -> int:
    *sources, target = call.rest
    for source in sources:
        _, found = call.inputs([source])[0]
        path = posixpath.join(target, posixpath.basename(source)) if call.place.files.is_folder(target) else target
        call.place.files.write(path, found)
        if call.words[0].endswith("mv"):
            call.place.files.remove(source)
    return 0


def _head(call: Call) -> int:
    size, lines = call.option("-c"), call.option("-n")
    paths = [word for word in call.rest if word not in {size, lines}]
    if call.words[0].endswith("tail") and ("f" in call.flags or "F" in call.flags):
        call.endless = True
    from_end = call.words[0].endswith("tail")
    for _, found in call.inputs([path for path in paths if not (call.endless and path == "/dev/null")]):
        if size:
            wanted = size_of(size.lstrip("+-"))
            call.out(files.part(found, max(length(found) - wanted, 0) if from_end else 0, wanted))
            continue
        rows = raw(found).decode(errors="replace").splitlines(keepends=True)
        count = int(lines or next((word[1:] for word in call.words if word[1:].isdigit() and word[0] == "-"), 10))
        call.out("".join(rows[-count:] if from_end else rows[:count]))
    return 0


def _wc(call: Call) -> int:
    for path, found in call.inputs(call.rest):
        text = raw(found)
        figures = {"l": text.count(b"\n"), "w": len(text.split()), "c": length(found)}
        shown = [str(figures[letter]) for letter in "lwc" if letter in (call.flags or "lwc")]
        call.out(" ".join([*shown, *([path] if path != "-" else [])]) + "\n")
    return 0


def _tee(call: Call) -> int:
    call.out(content(call.stdin))
    for path in call.rest:
        call.place.files.write(path, content(call.stdin), append="a" in call.flags)
    return 0


def _grep(call: Call) -> int:
    pattern, *paths = call.rest
    rows = [line for _, found in call.inputs(paths) for line in raw(found).decode(errors="replace").splitlines()]
    plain = pattern.strip("^$").replace("\\", "")
    chosen = [line for line in rows if (plain in line) is not ("v" in call.flags)]
    if "c" in call.flags:
        call.out(f"{len(chosen)}\n")
    elif "q" not in call.flags:
        call.out("".join(f"{line}\n" for line in chosen))
    return int(not chosen)


def _cut(call: Call) -> int:
    between, wanted = call.option("-d") or "\t", call.option("-f", "-c")
    for line in call.stdin.decode(errors="replace").splitlines():
        pieces = line.split(between)
        first, _, last = wanted.partition("-")
        stop = int(last) if last else (len(pieces) if "-" in wanted else int(first))
        call.out(between.join(pieces[int(first) - 1 : stop]) + "\n")
    return 0


def _awk(call: Call) -> int:
    script = call.rest[0]
    numbers = [word.strip("{}, ;") for word in script.split() if word.strip("{}, ;").startswith("$")]
    for line in call.stdin.decode(errors="replace").splitlines():
        pieces = line.split()
        chosen = [int(word[1:]) for word in numbers if word[1:].isdigit()]
        call.out(" ".join(line if at == 0 else pieces[at - 1] for at in chosen if at <= len(pieces)) + "\n")
    return 0


def _test(call: Call) -> int:
    words = [word for word in call.words[1:] if word not in {"]", "]]"}]
    if words[:1] == ["!"]:
        return int(_judge(call, words[1:]))
    return int(not _judge(call, words))


def _judge(call: Call, words: Sequence[str]) -> bool:
    place = call.place.files
    if len(words) == 1:
        return bool(words[0])
    if len(words) == 2:
        flag, word = words
        kinds: dict[str, Callable[[], bool]] = {
            "-f": lambda: place.exists(word) and not place.is_folder(word) and word not in place.devices,
            "-e": lambda: place.exists(word), "-d": lambda: place.is_folder(word),
            "-b": lambda: word in place.devices, "-s": lambda: place.exists(word) and length(place.read(word)) > 0,
            "-n": lambda: bool(word), "-z": lambda: not word, "-w": lambda: not place.at(word)[0].read_only,
        }  # fmt: skip
        return kinds.get(flag, lambda: place.exists(word))()
    if len(words) != 3:
        return False
    left, sign, right = words
    if sign in {"=", "=="}:
        return left == right
    if sign == "!=":
        return left != right
    signs = {"-eq": operator.eq, "-ne": operator.ne, "-lt": operator.lt, "-le": operator.le, "-gt": operator.gt,
             "-ge": operator.ge}  # fmt: skip
    return bool(signs[sign](int(left), int(right)))


def _seq(call: Call) -> int:
    numbers = [int(word) for word in call.words[1:]]
    first, step, last = (
        (1, 1, *numbers) if len(numbers) == 1 else (numbers[0], 1, numbers[1]) if len(numbers) == 2 else numbers
    )
    call.out("".join(f"{number}\n" for number in range(first, last + (1 if step > 0 else -1), step)))
    return 0


def _truncate(call: Call) -> int:
    size = size_of(call.option("-s", "-l"))
    for path in [word for word in call.rest if word != call.option("-s", "-l")]:
        before = call.place.files.read(path) if call.place.files.exists(path) else ()
        have = length(before)
        call.place.files.write(
            path, files.part(before, 0, size) if size <= have else files.joined([*before, Run(size - have)])
        )
    return 0


def _cmp(call: Call) -> int:
    (first, left), (second, right) = call.inputs(call.rest[:2])
    if files.summed(left) == files.summed(right):
        return 0
    if "s" not in call.flags:
        call.out(f"{first} {second} differ: char 1, line 1\n")
    return 1


def _du(call: Call) -> int:
    for path in call.rest:
        mount, inner = call.place.files.at(path)
        size = sum(-(-length(found) // 4096) * 4 for name, found in mount.keep.files.items() if name.startswith(inner))
        call.out(f"{_human(size * 1024) if 'h' in call.flags else size + 4}\t{path}\n")
    return 0


def _blockdev(call: Call) -> int:
    path = call.rest[0]
    keep = call.place.files.devices.get(path)
    if keep is None:
        return call.error(f"blockdev: cannot open {path}: No such file or directory\n")
    call.out(f"{keep.size if '--getsize64' in call.words else keep.size // 512}\n")
    return 0


def _lsblk(call: Call) -> int:
    call.out("NAME MAJ:MIN RM SIZE RO TYPE MOUNTPOINTS\n")
    held = [(keep, path) for path, keep in call.place.files.devices.items()]
    held += [
        (mount.keep, point) for point, mount in call.place.files.mounts.items() if mount.keep.kind in {"ext4", "xfs"}
    ]
    for place, (keep, path) in enumerate(held):
        call.out(f"{_source(keep).rpartition('/')[2]}  8:{16 * (place + 1)}  0 {_human(keep.size)} 0 disk {path}\n")
    return 0


# -- time, the system, benchmarks --------------------------------------------------------------------


async def _sleep(call: Call) -> int:
    from .programs import seconds_of

    if call.rest[:1] in (["infinity"], ["inf"]):
        raise Forever
    await call.spend(sum(seconds_of(word, 0.0) for word in call.rest))
    return 0


def _date(call: Call) -> int:
    moment = datetime.fromtimestamp(call.place.now(), UTC)
    form = next((word[1:] for word in call.words[1:] if word.startswith("+")), "")
    if form:
        form = form.replace("%s", str(int(moment.timestamp()))).replace("%N", f"{moment.microsecond * 1000:09d}")
    call.out(moment.strftime(form or "%a %b %e %H:%M:%S UTC %Y") + "\n")
    return 0


def _forever(_: Call) -> int:
    raise Forever


async def _fio(call: Call) -> int:
    """What fio would measure: seeded figures of a good disk, marked as emulated."""
    given = {word[2:].partition("=")[0]: word.partition("=")[2] for word in call.words[1:] if word.startswith("--")}
    for path in call.rest:
        given = _fio_job(call, path, given.get("section", "")) | given
        if "name" not in given:
            return call.error(f"fio: job file {path} has no section {given.get('section', '')}\n")
    rw, block = given.get("rw", given.get("readwrite", "randread")), size_of(given.get("bs", "4k"))
    path = given.get("filename") or posixpath.join(given.get("directory", "/tmp"), f"{given.get('name', 'job')}.0.0")
    size = size_of(given.get("size", "256M"))
    seconds = float(given.get("runtime", "0").rstrip("s") or 0) or size / DISK_BYTES_PER_SECOND
    dice = random.Random(f"{call.place.pod['metadata'].get('uid', '')}/{rw}/{block}/{call.place.now()}")
    depth = int(given.get("iodepth", 1)) * int(given.get("numjobs", 1))
    sequential = "rand" not in rw
    rate = min(3200 * depth**0.75, 48_000.0) if not sequential else 420e6 / block
    rate *= dice.uniform(0.92, 1.08) * (0.7 if "write" in rw else 1.0)
    rate = min(rate, 900e6 / block)
    if "write" in rw or "rw" in rw:
        call.place.files.write(path, (Run(size, None, hashlib.sha256(path.encode()).hexdigest()),))
    await call.spend(seconds)
    sides = {"read": 0.0, "write": 0.0}
    mix = float(given.get("rwmixread", 50)) / 100
    if rw in {"rw", "randrw", "readwrite"}:
        sides = {"read": rate * mix, "write": rate * (1 - mix)}
    else:
        sides["write" if "write" in rw else "read"] = rate
    job = {side: _fio_side(iops, block, seconds, depth) for side, iops in sides.items()}
    if "json" not in given.get("output-format", "normal"):
        for side, iops in sides.items():
            if iops:
                call.out(f"  {side}: IOPS={iops:.0f}, BW={_human(iops * block)}iB/s (emulated)\n")
        return 0
    report = {"fio version": "fio-3.36", "timestamp": int(call.place.now()), "emulated": True,
              "global options": {key: value for key, value in given.items() if key != "output-format"},
              "jobs": [{"jobname": given.get("name", "job"), "groupid": 0, "error": 0, "elapsed": int(seconds) + 1,
                        "job options": {"rw": rw, "bs": given.get("bs", "4k")}, **job,
                        "usr_cpu": 1.9, "sys_cpu": 6.2}]}  # fmt: skip
    call.out(json.dumps(report, indent=2) + "\n")
    return 0


def _fio_job(call: Call, path: str, wanted: str) -> dict[str, str]:
    """The options of one section of a job file, over those of [global]; the first section unless one is named."""
    sections: dict[str, dict[str, str]] = {}
    section = "global"
    for line in raw(call.inputs([path])[0][1]).decode(errors="replace").splitlines():
        text = line.partition(";")[0].partition("#")[0].strip()
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1]
        elif text:
            key, _, value = text.partition("=")
            sections.setdefault(section, {})[key.strip()] = value.strip()
    jobs = [name for name in sections if name != "global" and wanted in {"", name}]
    if not jobs:
        return {}
    return {**sections.get("global", {}), **sections[jobs[0]], "name": jobs[0]}


def _fio_side(iops: float, block: int, seconds: float, depth: int) -> dict[str, object]:
    mean = depth / iops * 1e9 if iops else 0.0
    points = {"50.000000": 0.9, "95.000000": 1.7, "99.000000": 2.9, "99.900000": 6.5}
    lat = {"min": mean * 0.4, "max": mean * 14, "mean": mean, "stddev": mean * 0.35, "N": int(iops * seconds),
           "percentile": {name: int(mean * factor) for name, factor in points.items()}}  # fmt: skip
    return {"io_bytes": int(iops * block * seconds), "io_kbytes": int(iops * block * seconds / 1024),
            "bw_bytes": int(iops * block), "bw": int(iops * block / 1024), "iops": round(iops, 2),
            "runtime": int(seconds * 1000), "total_ios": int(iops * seconds), "clat_ns": lat,
            "lat_ns": lat}  # fmt: skip


_TOOLS: dict[str, Tool] = {
    "[": _test, "[[": _test, "awk": _awk, "blockdev": _blockdev, "cat": _cat, "cmp": _cmp, "cp": _cp, "cut": _cut,
    "date": _date, "dd": _dd, "df": _df, "du": _du, "echo": _echo, "fallocate": _truncate, "false": lambda _: 1,
    "fio": _fio, "grep": _grep, "head": _head, "ls": _ls, "lsblk": _lsblk, "md5sum": _sum("md5"), "mkdir": _mkdir,
    "mount": _mount, "mv": _cp, "pause": _forever, "printf": _printf, "rm": _rm, "seq": _seq, "sha1sum": _sum("sha1"),
    "sha256sum": _sum("sha256"), "sha512sum": _sum("sha512"), "sleep": _sleep, "stat": _stat, "sync": lambda _: 0,
    "tail": _head, "tee": _tee, "test": _test, "touch": _touch, "true": lambda _: 0, "truncate": _truncate, "wc": _wc,
    "chmod": lambda _: 0, "chown": lambda _: 0,
}  # fmt: skip


def _said(text: Callable[[Call], str]) -> Tool:
    def tool(call: Call) -> int:
        call.out(text(call))
        return 0

    return tool


_TOOLS |= {
    "hostname": _said(lambda call: call.place.pod["metadata"]["name"] + "\n"),
    "whoami": _said(lambda _: "root\n"),
    "id": _said(lambda call: "0\n" if "u" in call.flags else "uid=0(root) gid=0(root) groups=0(root)\n"),
    "nproc": _said(lambda _: "4\n"),
    "uname": _said(lambda call: "Linux\n" if call.flags != "r" else "6.12.43-talos\n"),
    "pwd": _said(lambda _: "/\n"),
    "env": _said(lambda call: "".join(f"{key}={value}\n" for key, value in call.variables.items())),
    "printenv": _said(
        lambda call: "".join(f"{value}\n" for key, value in call.variables.items() if key in call.rest or not call.rest)
    ),
}


__all__ = ["Call", "Forever", "Tool", "arithmetic", "number", "run", "size_of"]
