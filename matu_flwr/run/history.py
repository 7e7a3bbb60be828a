"""`history.jsonl`: one JSON object a line, the truth of a run. Console lines, summary, pictures are drawn from it.

Which events there are stands in `matu_flwr.events`.
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
from typing import Any, cast

from matu_flwr import digests
from matu_flwr.events import KINDS, Event
from matu_flwr.files import write_bytes

HISTORY = "history.jsonl"


class HistoryError(ValueError):
    """A history that cannot be read or written."""


@dataclass(frozen=True)
class HistoryMark:
    """A place in a history: bytes of the file up to there, and their SHA-256."""

    bytes: int
    sha256: str


class HistoryWriter:
    """Appends events to a file, one line each: a killed run leaves all but its last line whole.

    Parameters
    ----------
    path : Path
        The file; must not exist.
    after : HistoryMark, optional
        Go on after this place of a file that is there. What follows it is taken out, atomically.

    Raises
    ------
    HistoryError
        The file exists (a run never overwrites another); or it is not the one of the mark.
    """

    def __init__(self, path: Path, after: HistoryMark | None = None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = b"" if after is None else kept_part(path, after)
        if after is not None:
            cut_off(path, kept)
        try:
            self._file = path.open("xb" if after is None else "r+b", buffering=0)
        except FileExistsError:
            raise HistoryError(f"{path} exists: give every run an out-dir of its own") from None
        self._length = self._file.seek(0, os.SEEK_END)
        self._digest = hashlib.sha256(kept)

    def write(self, event: Event) -> None:
        """Append one event; NaN and infinity become null.

        Raises
        ------
        HistoryError
            It cannot be written, on a full disk for instance; no part of its line stays.
        """
        if event.get("event") not in KINDS:
            raise HistoryError(f"event {event.get('event')!r} is none of {list(KINDS)}")
        line = (json.dumps(_finite(event), ensure_ascii=False, allow_nan=False) + "\n").encode()
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._length)
            self._file.seek(self._length)
            raise HistoryError(f"{self._path} cannot be written: {error}") from error
        self._length += len(line)
        self._digest.update(line)

    def mark(self) -> HistoryMark:
        """Where it is now; what was written until here is on the disk."""
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
    """The bytes of a history up to a mark.

    Raises
    ------
    HistoryError
        There is no such file, or it is another one.
    """
    try:
        with path.open("rb") as file:
            kept = file.read(after.bytes)
    except OSError as error:
        raise HistoryError(f"{path} cannot be read ({error}); a resumed run continues its history") from error
    if len(kept) < after.bytes or digests.of_bytes(kept) != after.sha256:
        raise HistoryError(
            f"{path} is not the history of the checkpoint: its first {after.bytes} bytes are others, or fewer"
        )
    return kept


def cut_off(path: Path, kept: bytes) -> None:
    """Replace a history by its first part, whole or not at all; it is another file then, which `follow` waits for."""
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
    """All events of a file; a torn last line, as a killed run leaves it, is passed over.

    Raises
    ------
    HistoryError
        No such file, or a broken line before the last.
    """
    if not path.is_file():
        raise HistoryError(f"{path} does not exist: expected the output folder of a run")
    # Bytes: a torn line may end within a character, and a JSON string may hold what str.splitlines() splits at.
    *lines, last = path.read_bytes().split(b"\n")
    events = [_parse(line, path, number) for number, line in enumerate(lines, start=1)]
    with contextlib.suppress(HistoryError):
        events.append(_parse(last, path, len(lines) + 1))
    return events


def _parse(line: bytes, path: Path, number: int) -> Event:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise HistoryError(f"{path}, line {number}: not a JSON object ({error})") from None
    if not isinstance(event, dict):
        raise HistoryError(f"{path}, line {number}: not a JSON object but {line.decode()}")
    return cast(Event, event)  # as some release wrote it; its fields are not checked again


def follow(path: Path, stop: Callable[[], bool], interval: float = 0.1, replaces: int | None = None) -> Iterator[Event]:
    """Yield events as they are appended, until the end event or until `stop()` is true and nothing is left.

    The file need not exist yet; a line is read only once it is complete. `replaces` is the inode of a file of an
    earlier attempt: it is not read, but the one that a resumed run puts in its place.
    """

    def there() -> bool:
        return path.exists() and path.stat().st_ino != replaces

    while not there():
        if stop() and not there():  # it may have come since
            return
        time.sleep(interval)
    rest, number = b"", 0
    with path.open("rb") as file:
        while True:
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
