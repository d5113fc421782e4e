"""What monitored programs write: Prometheus' text format and InfluxDB's line protocol, in and out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from .evaluation import written

Row = tuple[dict[str, str], float, float | None]
"""Labels with `__name__`, value, and seconds where the line told a time."""

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{.*\})?\s+(\S+)(?:\s+(-?\d+))?(?:\s+#.*)?$", re.ASCII)
_PAIR = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?', re.ASCII)
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class BadLine(Exception):
    """A line that cannot be read."""


def number(text: str) -> float:
    """A value of the text format."""
    return {"+Inf": math.inf, "-Inf": -math.inf, "NaN": math.nan}.get(text) or float(text)


def rows(text: str) -> list[Row]:
    """The samples of a scraped page. Raises BadLine."""
    found: list[Row] = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise BadLine(f'cannot parse Prometheus line "{line}"')
        labels = {"__name__": match[1]}
        if match[2]:
            for key, value in _PAIR.findall(match[2][1:-1]):
                labels[key] = re.sub(r'\\[\\"n]', lambda m: _ESCAPES[m[0]], value)
        try:
            value = number(match[3])
        except ValueError:
            raise BadLine(f'cannot parse Prometheus line "{line}": cannot parse value "{match[3]}"') from None
        found.append((labels, value, int(match[4]) / 1000 if match[4] else None))
    return found


def page(families: Iterable[tuple[str, Iterable[tuple[Mapping[str, str], float]]]]) -> str:
    """The text format of these families."""
    lines: list[str] = []
    for name, samples in families:
        kind = "counter" if name.endswith("_total") else "gauge"
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{inner}}} {written(value)}" if inner else f"{name} {written(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def influx(text: str, precision: str = "ns") -> list[Row]:
    """The samples of InfluxDB lines, named measurement_field as VictoriaMetrics names them. Raises BadLine."""
    factor = {"ns": 1e-9, "u": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}.get(precision, 1e-9)
    found: list[Row] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        parts = re.split(r"(?<!\\) ", line.strip())
        if len(parts) < 2:
            raise BadLine(f'cannot find Whitespace I in "{line}"')
        measurement, *tags = re.split(r"(?<!\\),", parts[0])
        labels = {key: value for key, _, value in (tag.partition("=") for tag in tags) if value}
        at = int(parts[2]) * factor if len(parts) > 2 else None
        for pair in re.split(r"(?<!\\),", parts[1]):
            key, equals, value = pair.partition("=")
            if not equals:
                raise BadLine(f'missing field value for "{pair}" in "{line}"')
            if value.startswith('"'):
                continue  # a text is no number, and VictoriaMetrics leaves it out
            shown = {"t": 1.0, "true": 1.0, "f": 0.0, "false": 0.0}.get(value.lower())
            name = f"{measurement}_{key}" if measurement else key
            try:
                read = float(value.rstrip("iu")) if shown is None else shown
            except ValueError:
                raise BadLine(f'cannot parse field value for "{key}": "{value}"') from None
            found.append(({**labels, "__name__": name.replace("\\", "")}, read, at))
    return found
