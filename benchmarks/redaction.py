"""The redactor against two ways in which one would write it."""

from __future__ import annotations

import functools
import re
import secrets as random_tokens
import time
from collections.abc import Callable

from benchmarks.measure import Broken, Case, Contender, Sample

SECRETS = 10
MEGABYTES = 4
LINE = (
    "2026-11-23T19:03:{0:02d}Z INFO pveproxy[{0}]: GET /api2/json/nodes/pve1/qemu/{0}/status/current 200 0.013 s "
    "user=root@pam!rehearsal id={0:06d}\n"
)


def case() -> Case:
    """The comparison, on a log with one secret in a hundred lines."""
    return Case(
        name="redaction",
        title=f"Redacting {MEGABYTES} MB of log, {SECRETS} secrets known",
        contenders=(
            Contender("secrets.redact", "every encoding and every shape of a secret", _side(_ours), True),
            Contender("str.replace of the same forms", "no shapes: an unknown token stays", _side(_replace)),
            Contender("one alternation of the same forms", "no shapes: an unknown token stays", _side(_alternation)),
        ),
        columns={"speed": "MB/s"},
        notes=("The peers are given all our encodings; with the plain values alone, one of them would leak base64.",),
    )


@functools.cache
def _text() -> tuple[str, tuple[str, ...]]:
    known = tuple(random_tokens.token_urlsafe(24) for _ in range(SECRETS))
    lines = [LINE.format(number) for number in range(MEGABYTES * 1_000_000 // len(LINE.format(0)))]
    for number in range(0, len(lines), 100):
        lines[number] = lines[number].replace("rehearsal", known[number // 100 % SECRETS])
    return "".join(lines), known


@functools.cache
def _forms() -> tuple[str, ...]:
    from runbook_lib import secrets

    _, known = _text()
    for value in known:
        secrets.register(value)
    return tuple(form for value in known for form in {value, *secrets._encodings(value)})


def _side(redact: Callable[[str, tuple[str, ...]], str]) -> Callable[[], Sample]:
    def measure() -> Sample:
        (text, known), forms = _text(), _forms()
        began, used = time.perf_counter(), time.process_time()
        clean = redact(text, forms)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        if any(value in clean for value in known):
            raise Broken("a secret was left")
        return Sample(wall, cpu, {"speed": len(text) / 1e6 / wall})

    return measure


def _ours(text: str, _: tuple[str, ...]) -> str:
    from runbook_lib.secrets import redact

    return redact(text)


def _replace(text: str, forms: tuple[str, ...]) -> str:
    for form in forms:
        text = text.replace(form, "***")
    return text


def _alternation(text: str, forms: tuple[str, ...]) -> str:
    return re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), "***", text)
