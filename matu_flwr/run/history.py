"""`history.jsonl`, the record of a run: one event a line, as a JSON object.

Console lines, summary and pictures are all made from this file. `matu_flwr.events` describes the events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, cast

from pydantic import Field

from matu_flwr import digests
from matu_flwr.events import KINDS, Event
from matu_flwr.files import write_bytes
from matu_flwr.texts import Brief, short

HISTORY = "history.jsonl"


class HistoryError(Brief, ValueError):
    """A history that cannot be read or written."""


@dataclass(frozen=True)
class HistoryMark:
    """A position in a history: the number of bytes before it, and the SHA-256 of those bytes."""

    bytes: Annotated[int, Field(strict=True, ge=0)]
    sha256: str


class HistoryWriter:
    """Appends events to a file, one line each. If the process is killed, only the last line can be incomplete.

    Parameters
    ----------
    path : Path
        The file to write. Without `after` it must not exist yet.
    after : HistoryMark, optional
        Continue an existing file from this position. Everything behind it is removed first, in one step.

    Raises
    ------
    HistoryError
        The file exists already (a run never overwrites another one), or it does not match `after`.
    """

    def __init__(self, path: Path, after: HistoryMark | None = None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = b"" if after is None else kept_part(path, after)
        if after is not None:
            cut_off(path, kept)
        try:
            # Unbuffered: an event is in the file as soon as `write` returns, even if the process is killed next.
            self._file = path.open("xb" if after is None else "r+b", buffering=0)
        except FileExistsError:
            raise HistoryError(f"{path} exists already: give every run an out-dir of its own") from None
        self._length = self._file.seek(0, os.SEEK_END)
        self._digest = hashlib.sha256(kept)

    def write(self, event: Event) -> None:
        """Append one event. NaN and infinity are written as null, because JSON has no word for them.

        Halves of characters (lone surrogates), which a file cannot hold, are written as question marks.

        Raises
        ------
        HistoryError
            The event is of an unknown kind, it holds what is not JSON, or it cannot be written, for instance because
            the disk is full. No part of its line stays in the file.
        """
        if event.get("event") not in KINDS:
            raise HistoryError(f"unknown event {event.get('event')!r}: expected one of {list(KINDS)}")
        try:
            text = json.dumps(_finite(event), ensure_ascii=False, allow_nan=False)
        # RecursionError: nested too deeply, or in itself.
        except (TypeError, ValueError, RecursionError) as error:
            raise HistoryError(f"{event['event']!r} event: {error}; expected what JSON can hold") from error
        line = (text + "\n").encode(errors="replace")
        rest = memoryview(line)
        try:
            # An unbuffered file may take only a part of the bytes at a time.
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            # Take the started line out again: whatever is written next has to begin on a line of its own.
            self._file.truncate(self._length)
            self._file.seek(self._length)
            raise HistoryError(f"{self._path} cannot be written: {error}") from error
        self._length += len(line)
        self._digest.update(line)

    def mark(self) -> HistoryMark:
        """Return the current end of the file. Everything before it has been flushed to the disk."""
        os.fsync(self._file.fileno())
        return HistoryMark(self._length, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def kept_part(path: Path, after: HistoryMark) -> bytes:
    """Read a history up to a mark.

    Raises
    ------
    HistoryError
        The file cannot be read, or its bytes do not match the mark.
    """
    try:
        # Opening a pipe would wait for ever.
        if path.exists() and not path.is_file():
            raise HistoryError(f"{path} is no file, expected the history that a resumed run continues")
        with path.open("rb") as file:
            kept = file.read(min(after.bytes, path.stat().st_size))
    except OSError as error:
        raise HistoryError(f"cannot read {path}, the history that a resumed run continues: {error}") from error
    if len(kept) < after.bytes:
        raise HistoryError(
            f"{path} is not the history that belongs to the checkpoint: it has {len(kept)} bytes, expected at least "
            f"{after.bytes}; restore the file, or start a new run"
        )
    if digests.of_bytes(kept) != after.sha256:
        raise HistoryError(
            f"{path} is not the history that belongs to the checkpoint: {_what_was_changed(kept, path)}; restore the "
            "file, or start a new run"
        )
    return kept


def _what_was_changed(kept: bytes, path: Path) -> str:
    """Say where a history was changed, as far as it shows."""
    for number, line in enumerate(kept.split(b"\n")[:-1], start=1):
        try:
            _parse(line, path, number)
        except HistoryError as error:
            return str(error)
    return f"one or more of its first {len(kept)} bytes were changed, though every line is still an event"


def last_event_after(path: Path, after: HistoryMark) -> Event | None:
    """Read the last event behind a mark, if there is one. Lines that are no events are passed over.

    A resumed run removes everything behind the mark, so it does not matter what a killed run or a full disk left there.
    """
    with path.open("rb") as file:
        file.seek(after.bytes)
        for line in reversed(file.read().split(b"\n")):
            with contextlib.suppress(HistoryError):
                return _parse(line, path, 0)
    return None


def cut_off(path: Path, kept: bytes) -> None:
    """Replace a history by its first part, in one step."""
    # The new file has another inode. `follow` waits for that before it reads a resumed run.
    write_bytes(path, kept)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def read_history(path: Path) -> list[Event]:
    """Read all events of a history. An incomplete last line, as a killed run leaves it, is ignored.

    Raises
    ------
    HistoryError
        The file does not exist, cannot be read, or a line before the last one is no event.
    """
    events, broken = read_what_is_whole(path)
    if broken is not None:
        raise broken
    return events


def read_what_is_whole(path: Path) -> tuple[list[Event], HistoryError | None]:
    """Read the events of a history up to the first line that is no event.

    Returns
    -------
    tuple
        The events, and what is wrong with the line after them: None if all lines are events, but for an incomplete
        last one, as a killed run leaves it.

    Raises
    ------
    HistoryError
        The file does not exist, or cannot be read.
    """
    try:
        if not path.is_file():
            raise HistoryError(f"{path} does not exist: expected the output folder of a run")
        # Split bytes, not text: an incomplete line may end in the middle of a character, and a JSON string may contain
        # characters at which str.splitlines() would split.
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise HistoryError(f"{path} cannot be read: {error.strerror}") from error
    events: list[Event] = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_parse(line, path, number))
        except HistoryError as error:
            return events, error
    with contextlib.suppress(HistoryError):
        events.append(_parse(last, path, len(lines) + 1))
    return events, None


def _parse(line: bytes, path: Path, number: int) -> Event:
    try:
        # Decoded here: from bytes, the parser would take UTF-16 too.
        event = json.loads(line.decode("utf-8"))
    # RecursionError: thousands of nested brackets. ValueError: anything else that is not JSON in UTF-8.
    except (ValueError, RecursionError) as error:
        raise HistoryError(
            f"{path}, line {number}: expected a JSON object, found {short(line)} ({error.__class__.__name__})"
        ) from None
    if not isinstance(event, dict) or event.get("event") not in KINDS:
        raise HistoryError(
            f"{path}, line {number}: expected a JSON object with an event of {', '.join(KINDS)}, found {short(line)}"
        )
    # The fields are not checked again: an earlier release may have written others.
    return cast(Event, event)


def follow(path: Path, stop: Callable[[], bool], interval: float = 0.1, replaces: int | None = None) -> Iterator[Event]:
    """Yield the events of a history as they are appended.

    It ends after the end event, or once `stop()` is true and nothing more is in the file. Only complete lines are
    read.

    Parameters
    ----------
    path : Path
        The history; it need not exist yet.
    stop : callable
        Says whether the run is over.
    interval : float
        Seconds between two looks at the file.
    replaces : int, optional
        Inode of the file that an earlier attempt left. This file is not read: a resumed run puts a new one in its
        place.
    """

    def there() -> bool:
        return path.exists() and path.stat().st_ino != replaces

    while not there():
        # Look once more: the file may have come while `stop` was asked.
        if stop() and not there():
            return
        time.sleep(interval)
    rest, number = b"", 0
    with path.open("rb") as file:
        while True:
            # Asked before reading: what the run wrote last is then still read.
            stopping = stop()
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                number += 1
                event = _parse(line, path, number)
                yield event
                if event["event"] == "end":
                    return
            if stopping and not lines:
                return
            if not lines:
                time.sleep(interval)
