"""Files that are there whole or not at all: the one way in which this package replaces a file.

What is written gets a temporary name beside its target, is flushed to the disk, and then takes the target's name; the
folder's entry is flushed too. Whoever reads sees the old content or the new one, also after a power cut. A temporary
name is `.<name>.<random>.tmp`: hidden, in the same folder (a rename does not cross file systems), and of one writer
alone. After an error nothing of it stays; only a killed process leaves one behind.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
"""How the temporary names end."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, for writers that want a path; it becomes `path` when the block ends well.

    Raises
    ------
    OSError
        It cannot be flushed or renamed; `path` is as it was.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # after an error: half a file takes the room that others need


def put(temporary: Path, path: Path) -> None:
    """Give a file that is written its name, in the same folder, once its content is on the disk."""
    _flush(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file by one with this content; `mode` is less what the umask takes away."""
    with replacing(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace a file by one with this text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace a file by one with this content as JSON for people: indented, in its own order, letters as they are."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: Path, *, mode: int) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` when the block ends well.

    Parameters
    ----------
    path : Path
        Must not be there, or be an empty folder.
    mode : int
        Of the folder, whatever the umask; while it is filled it is 0700.

    Raises
    ------
    OSError
        It cannot be flushed or renamed, because a folder with files has appeared there for instance.
    """
    temporary = temporary_name(path)
    try:
        temporary.mkdir(mode=0o700)
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        sync_folder(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: which names it has."""
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
