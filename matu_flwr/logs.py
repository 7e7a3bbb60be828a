"""Logs for machines: with `MATU_LOG_FORMAT=json` every line is one JSON object that says what it is about.

Besides `time`, `level`, `logger` and `message` a line carries what is known where it is written: `run` (Flower's id of
it, the same on the server and at every client), `round`, `phase`, `client`, `partition`, `task`. The format is a matter
of whoever operates a process, not of a run, so it comes from the environment: a site decides for itself.
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

FORMAT = "MATU_LOG_FORMAT"
FORMATS = ("text", "json")
LOGGERS = ("flwr", "matu_flwr")

_subject: ContextVar[dict[str, Any] | None] = ContextVar("subject", default=None)


class LogError(ValueError):
    """A log format that does not exist."""


def set_up() -> None:
    """Put this process's log into the format that its environment asks for; the first call counts.

    Raises
    ------
    LogError
        Neither "text", which is Flower's own format, nor "json".
    """
    if log_format() == "text" or any(isinstance(handler, JsonLines) for handler in logging.getLogger("flwr").handlers):
        return
    level = logging.INFO
    for handler in list(logging.getLogger("flwr").handlers):
        if isinstance(handler, ConsoleHandler):
            level = handler.level  # as FLWR_LOG_LEVEL has set it
            logging.getLogger("flwr").removeHandler(handler)
    lines = JsonLines()
    lines.setLevel(level)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(lines)


def log_format() -> str:
    """What `MATU_LOG_FORMAT` says, "text" if nothing."""
    chosen = os.environ.get(FORMAT, "") or "text"
    if chosen not in FORMATS:
        raise LogError(f"{FORMAT} = {chosen!r}: expected one of {', '.join(FORMATS)}")
    return chosen


class JsonLines(logging.StreamHandler[Any]):
    """Writes each record as one JSON object a line; Flower's empty lines are left out."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(SubjectFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if record.getMessage().strip():
            super().emit(record)


class SubjectFormatter(JsonFormatter):
    """JSON with what the line is about."""

    def __init__(self) -> None:
        names = {"levelname": "level", "name": "logger"}
        super().__init__("{levelname}{name}{message}", style="{", rename_fields=names, timestamp="time")

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Enter the time first, then the record, then the subject."""
        super().add_fields(log_data, record, message_dict)
        log_data["message"] = str(log_data["message"]).strip()
        log_data.update(_subject.get() or {})


def now_about(**subject: Any) -> None:
    """Add to what log lines are about, from here on; inside a `with about(…)`, until its end."""
    _subject.set({**(_subject.get() or {}), **subject})


@contextmanager
def about(**subject: Any) -> Iterator[None]:
    """Add to what log lines are about, for the lines that are written inside."""
    token = _subject.set({**(_subject.get() or {}), **subject})
    try:
        yield
    finally:
        _subject.reset(token)


def detail(text: str, *values: Any) -> None:
    """Log a detail that would flood a terminal: at level INFO in JSON logs, at level DEBUG in text."""
    log(logging.INFO if log_format() == "json" else logging.DEBUG, text, *values)
