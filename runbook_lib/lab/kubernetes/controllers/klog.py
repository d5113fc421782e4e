"""Log lines as programs written in Go with klog write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any


def line(moment: float, level: str, place: str, message: str, **values: Any) -> str:
    """`I1123 22:26:10.123456       1 controller.go:178] "Ready" machine="a/b"`; the level is I, W or E."""
    when = datetime.fromtimestamp(moment, UTC).strftime("%m%d %H:%M:%S.%f")
    pairs = "".join(f" {name}={shown(value)}" for name, value in values.items())
    return f"{level}{when}       1 {place}] {json.dumps(message, ensure_ascii=False)}{pairs}"


def shown(value: Any) -> str:
    """A value as klog shows it: text quoted, the rest as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
