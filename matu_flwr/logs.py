"""Logs that programs can read: with `MATU_LOG_FORMAT=json` every log line is one JSON object.

A line has `time`, `level`, `logger` and `message`. It also has those of the following fields that are known where it is
written: `run` (Flower's id of the run, the same on the server and at every client), `round`, `phase`, `client`,
`partition` and `task`.

The format comes from the environment and not from the run's settings, so that every site can choose its own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flwr.common.logger import ConsoleHandler, log
from pythonjsonlogger.json import JsonFormatter
from typing_extensions import override

from matu_flwr.texts import Brief

FORMAT = "MATU_LOG_FORMAT"
FORMATS = ("text", "json")
LOGGERS = ("flwr", "matu_flwr")

_subject: ContextVar[dict[str, Any] | None] = ContextVar("subject", default=None)


class LogError(Brief, ValueError):
    """`MATU_LOG_FORMAT` names a format that does not exist."""


def set_up() -> None:
    """Set this process's log to the format that the environment asks for. Only the first call has an effect.

    Raises
    ------
    LogError
        `MATU_LOG_FORMAT` is neither "text", which is Flower's own format, nor "json".
    """
    if log_format() == "text" or any(isinstance(handler, JsonLines) for handler in logging.getLogger("flwr").handlers):
        return
    level = logging.INFO
    for handler in list(logging.getLogger("flwr").handlers):
        if isinstance(handler, ConsoleHandler):
            # Flower has set this level from FLWR_LOG_LEVEL.
            level = handler.level
            logging.getLogger("flwr").removeHandler(handler)
    lines = JsonLines()
    lines.setLevel(level)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(lines)


def log_format() -> str:
    """Return the format that `MATU_LOG_FORMAT` names, "text" if it is not set; LogError if it is unknown."""
    chosen = os.environ.get(FORMAT, "") or "text"
    if chosen not in FORMATS:
        raise LogError(f"{FORMAT} = {chosen!r}: expected one of {', '.join(FORMATS)}")
    return chosen


class JsonLines(logging.StreamHandler[Any]):
    """Writes each record to the error stream as one JSON object a line. Flower's empty lines are left out."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(SubjectFormatter())

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().strip():
            super().emit(record)


class SubjectFormatter(JsonFormatter):
    """Formats a record as JSON and adds the fields that say what it is about, such as the run and the client."""

    def __init__(self) -> None:
        names = {"levelname": "level", "name": "logger"}
        super().__init__("{levelname}{name}{message}", style="{", rename_fields=names, timestamp="time")

    @override
    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        # Flower indents its lines with spaces and tabs for a terminal.
        log_data["message"] = str(log_data["message"]).strip()
        log_data.update(_subject.get() or {})


def now_about(**subject: Any) -> None:
    """Add fields to all following log lines. Inside a `with about(…)` block they are dropped when the block ends."""
    _subject.set({**(_subject.get() or {}), **subject})


@contextmanager
def about(**subject: Any) -> Iterator[None]:
    """Add fields to the log lines that are written inside this block."""
    token = _subject.set({**(_subject.get() or {}), **subject})
    try:
        yield
    finally:
        _subject.reset(token)


def detail(text: str, *values: Any) -> None:
    """Log a detail: at level INFO in JSON logs, at level DEBUG in text logs, where it would flood a terminal."""
    log(logging.INFO if log_format() == "json" else logging.DEBUG, text, *values)
