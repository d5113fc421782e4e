"""What aiohttp says of requests that are no HTTP or end half-way: one line each, for the fault is the sender's."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError


class Quiet(logging.Filter):
    """Takes the traceback away from records about requests that cannot be answered."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true: nothing is left out, only made short."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, HttpProcessingError | ConnectionError):
            told = getattr(error, "message", None) or str(error)
            record.msg, record.args = "malformed request: %s", (str(told).split("\n", 1)[0][:200],)
            record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
        return True


def calm() -> None:
    """Nothing; from now on malformed requests leave one line in the log."""
    logger = logging.getLogger("aiohttp.server")
    if not any(isinstance(each, Quiet) for each in logger.filters):
        logger.addFilter(Quiet())
