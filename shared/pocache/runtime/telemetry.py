"""Structured logs: one JSON object a line on standard error, with the service and, in handlers, the job id.

Configured once, by a process's entry point; importing this changes nothing.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str, *, stream: TextIO | None = None, as_json: bool = True) -> None:
    """Send structlog and standard logging to ``stream`` (standard error) from ``level`` upwards."""
    number = getattr(logging, level.upper())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    target = stream if stream is not None else sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _hex_bytes,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=target, force=True)


def _hex_bytes(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Write digests as hexadecimal digits, so that a job id in a log is the one in a subject."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in event.items()}
