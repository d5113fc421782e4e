"""What a notebook shows: tables as HTML with a text twin, escaped, redacted, and quiet about control characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from runbook_lib.model import Finding, Measurement, Status
from runbook_lib.secrets import redact

MOST_ROWS = 200
"""Rows shown of a table; the rest is counted. A page with 50,000 rows helps nobody."""

Bundle = dict[str, Any]
"""Display data by mimetype."""

# C0 and C1 controls move a terminal's cursor or end a cell; bidirectional overrides make text lie about its order.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def plain(text: object) -> str:
    """`text` redacted and without control characters, fit for a terminal."""
    return _CONTROL.sub("�", redact(str(text)))


def table(rows: Any, *, columns: Sequence[str] | None = None, title: str = "") -> Bundle:
    """Rows (dataclasses, mappings, plain values), a DataFrame, one mapping or one dataclass, as a table to display.

    Columns that end in `_bytes`, `_fraction` or `_seconds` are spelled with their unit.
    """
    records = as_records(rows)
    names = list(columns) if columns else _names(records)
    shown = records[:MOST_ROWS]
    cells = [
        [_Cell(spelled(name, record.get(name)), _is_number(record.get(name))) for name in names] for record in shown
    ]
    note = f"… and {len(records) - len(shown)} more rows" if len(records) > len(shown) else ""
    return _bundle([heading(name) for name in names], cells, title=title, note=note, empty="nothing to show")


def findings_table(findings: Sequence[Finding]) -> Bundle:
    """Findings as a table: verdict, subject, what was seen, what to do; the worst first is left to the reader."""
    cells = [
        [
            _Cell(str(entry.status), status=entry.status),
            _Cell(entry.title or entry.check),
            _Cell(entry.subject),
            _Cell(entry.message),
            _Cell(entry.remedy),
        ]
        for entry in findings[:MOST_ROWS]
    ]
    note = f"… and {len(findings) - MOST_ROWS} more findings" if len(findings) > MOST_ROWS else ""
    if not any(entry.remedy for entry in findings):
        cells = [row[:-1] for row in cells]
    names = ["verdict", "check", "subject", "finding", "what to do"][: len(cells[0]) if cells else 4]
    return _bundle(names, cells, note=note, empty="no findings")


def measurements_table(measurements: Iterable[Measurement]) -> Bundle:
    """Measurements as a table of percentiles."""

    def row(entry: Measurement) -> dict[str, Any]:
        parts = {"p50": entry.percentile(50), "p95": entry.percentile(95), "p99": entry.percentile(99)}
        parts["max"] = max(entry.values, default=None)
        rounded = {name: None if value is None else round(value, 2) for name, value in parts.items()}
        return {
            "measurement": entry.name,
            "subject": entry.subject,
            "n": len(entry.values),
            **rounded,
            "unit": entry.unit,
            "p95 at most": entry.threshold,
            "errors": entry.errors,
            "emulated": entry.emulated,
        }

    rows = [row(entry) for entry in measurements]
    dull = [name for name in ("subject", "p95 at most") if all(entry[name] in ("", None) for entry in rows)]
    return table([{name: value for name, value in entry.items() if name not in dull} for entry in rows])


def sentence(text: str, *, css: str = "rb-note") -> Bundle:
    """One paragraph of plain text."""
    clean = plain(text)
    return {"text/html": f'<p class="{css}">{escape(clean)}</p>', "text/plain": clean}


def as_records(rows: Any) -> list[dict[str, Any]]:
    """The rows as dicts. A mapping becomes name/value rows, a single dataclass too."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a DataFrame, without importing pandas
        frame = rows if _plain_index(rows) else rows.reset_index()
        return [{str(key): value for key, value in record.items()} for record in frame.to_dict(orient="records")]
    if is_dataclass(rows) and not isinstance(rows, type):
        rows = {entry.name: getattr(rows, entry.name) for entry in fields(rows)}
    if isinstance(rows, Mapping):
        return [{"name": heading(str(key)), "value": spelled(str(key), value)} for key, value in rows.items()]
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        return [{"value": rows}]
    return [_record(row) for row in rows]


def _record(row: Any) -> dict[str, Any]:
    if is_dataclass(row) and not isinstance(row, type):
        return {entry.name: getattr(row, entry.name) for entry in fields(row)}
    if isinstance(row, Mapping):
        return {str(key): value for key, value in row.items()}
    if callable(getattr(row, "_asdict", None)):
        return dict(row._asdict())
    return {"value": row}


def _plain_index(frame: Any) -> bool:
    return type(frame.index).__name__ == "RangeIndex"


def _names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def heading(name: str) -> str:
    """A field's name as a column's: units that the cells spell are dropped."""
    for unit in ("_bytes", "_fraction", "_seconds"):
        name = name.removesuffix(unit)
    return "took" if name == "seconds" else name.replace("_", " ").strip()


def spelled(name: str, value: Any) -> str:
    """A value as a reader wants it: "31.2 GiB", "84 %", "yes", "–" for what the API did not tell."""
    if _is_missing(value):
        return "–"
    if isinstance(value, bool) or type(value).__name__ in {"bool_", "bool"}:
        return "yes" if value else "no"
    if name.endswith("_bytes") and _is_number(value):
        return human_bytes(float(value))
    if name.endswith("_fraction") and _is_number(value):
        return f"{float(value):.0%}".replace("%", " %")
    if (name == "seconds" or name.endswith("_seconds")) and _is_number(value):
        return human_seconds(float(value))
    if name in {"not_after", "not_before"} and _is_number(value):
        return datetime.fromtimestamp(float(value), UTC).strftime("%Y-%m-%d")
    if isinstance(value, float) or type(value).__name__.startswith("float"):
        return f"{float(value):.4g}" if abs(value) < 1e4 else f"{float(value):,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {spelled('', entry)}" for key, entry in value.items()) or "–"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(spelled("", entry) for entry in value) or "–"
    return str(value)


def human_bytes(count: float) -> str:
    """Bytes in the largest binary unit that leaves at least one whole."""
    index = 0
    while abs(count) >= 1024 and index < len(_UNITS) - 1:
        count, index = count / 1024, index + 1
    return f"{count:.0f} B" if index == 0 else f"{count:.1f} {_UNITS[index]}"


def human_seconds(seconds: float) -> str:
    """A duration in the unit a person would use: "35 ms", "2.4 s", "12 min", "5.2 h", "38.0 days"."""
    size = abs(seconds)
    if size < 1:
        return f"{seconds * 1000:.3g} ms"
    if size < 120:
        return f"{seconds:.1f} s"
    if size < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    if size < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in {"NaTType", "NAType"}:
        return True
    return _is_number(value) and value != value  # NaN is the one number that is not itself


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) or hasattr(value, "dtype")) and not isinstance(value, bool)


_LEFT = "text-align:left"
"""JupyterLab sets every cell to the right; the published pages have a style sheet of their own and drop this."""

_COLOURS = {
    Status.PASS: "#1a7f4b",
    Status.WARN: "#a45c00",
    Status.FAIL: "#c02a1d",
    Status.ERROR: "#7f3c8d",
    Status.SKIP: "#6b7280",
    Status.NOT_RUN: "#6b7280",
}


class _Cell:
    """One cell's text, already clean."""

    def __init__(self, text: str, number: bool = False, status: Status | None = None) -> None:
        self.text, self.number, self.status = plain(text), number, status

    @property
    def html(self) -> str:
        if self.status is not None:
            kind = self.status.value.replace(" ", "-")
            style = f"color:{_COLOURS[self.status]};font-weight:bold"
            word = f'<span class="rb-status rb-{kind}" style="{style}">{escape(self.text)}</span>'
            return f'<td style="{_LEFT}">{word}</td>'
        text = escape(self.text).replace("\n", "<br>")
        return f'<td class="rb-number">{text}</td>' if self.number else f'<td style="{_LEFT}">{text}</td>'


def _bundle(
    names: Sequence[str], rows: Sequence[Sequence[_Cell]], *, title: str = "", note: str = "", empty: str
) -> Bundle:
    clean = [plain(name) for name in names]
    if not rows:
        return sentence(f"{title}: {empty}" if title else empty)
    caption = f"<caption>{escape(plain(title))}</caption>" if title else ""
    numeric = [all(row[index].number for row in rows) for index in range(len(clean))]
    head = "".join(
        f'<th scope="col"{_align(right)}>{escape(name)}</th>' for name, right in zip(clean, numeric, strict=True)
    )
    body = "\n".join("<tr>" + "".join(cell.html for cell in row) + "</tr>" for row in rows)
    foot = f'<p class="rb-note">{escape(note)}</p>' if note else ""
    html = f'<table class="rb-table">{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>{foot}'
    text = "\n".join(part for part in (plain(title), _aligned(clean, rows), note) if part)
    return {"text/html": html, "text/plain": text}


def _align(right: bool) -> str:
    return ' class="rb-number"' if right else f' style="{_LEFT}"'


def _aligned(names: Sequence[str], rows: Sequence[Sequence[_Cell]]) -> str:
    one_line: Callable[[str], str] = lambda text: " ".join(text.split())  # noqa: E731
    lines = [list(names), *([one_line(cell.text) for cell in row] for row in rows)]
    widths = [min(60, max(len(line[index]) for line in lines)) for index in range(len(names))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
