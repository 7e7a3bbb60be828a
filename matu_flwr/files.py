"""Replacing files in one step. All of this package replaces files through these functions.

The new content is written to a temporary file, flushed to the disk, and renamed to the target's name. Then the folder's
entry is flushed too. A reader sees either the old content or the new content, never a mix, even after a power cut.

A temporary file is called `.<name>.<random>.tmp`. It is hidden, in the same folder (a file can only be renamed within
one file system), and used by one writer only. It is removed after an error. Only a killed process leaves one behind.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

TEMPORARY = ".tmp"
"""Ending of the names of temporary files."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to. It becomes `path` if the block ends without an error.

    Raises
    ------
    OSError
        The file cannot be flushed or renamed. `path` is unchanged.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        put(temporary, path)
    finally:
        # Half a file would be of no use, and on a full disk other files need its space.
        temporary.unlink(missing_ok=True)


def put(temporary: Path, path: Path) -> None:
    """Rename a finished temporary file to `path`, which is in the same folder, and make sure that it is on the disk."""
    # Flush first: otherwise a power cut after the rename could leave an empty file under the final name.
    _flush(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file's content; `mode` are its permissions, reduced by the umask."""
    with replacing(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by this text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON that people can read: indented, keys in the given order, no escaped letters."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_picture(path: Path, figure: Figure, *, dpi: int = 110, **options: Any) -> None:
    """Replace a file by a PNG of a matplotlib figure; `options` are those of `savefig`.

    All texts are drawn letter by letter: names of classes, tasks and clients may look like formulas, and are none.
    """
    # Matplotlib is loaded only where a picture is drawn: it takes a second.
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with replacing(path) as temporary, warnings.catch_warnings():
        # Letters that the font does not have are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, dpi=dpi, format="png", **options)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a file's content by these tensors, as safetensors. Equal tensors and metadata give equal bytes.

    Raises
    ------
    OSError, SafetensorError
        The file cannot be written. `path` is unchanged.
    """
    # Imported here, because it loads PyTorch, and most who replace files have no tensors.
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        with temporary.open("r+b") as file:
            # safetensors writes the metadata in an order that differs from call to call. The header is JSON, padded
            # with spaces, and the same entries in another order are as long.
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            assert len(text) <= length, "JSON that other escapes make longer"
            file.seek(8)
            file.write(text.ljust(length))


@contextmanager
def new_folder(path: Path, *, mode: int) -> Iterator[Path]:
    """Give a temporary folder to fill. It becomes `path` if the block ends without an error.

    Parameters
    ----------
    path : Path
        The folder to make. It must not exist yet, or be empty.
    mode : int
        Permissions of the folder, whatever the umask is. While it is being filled they are 0700.

    Raises
    ------
    OSError
        The folder cannot be flushed or renamed, for instance because a folder with files has appeared at `path`.
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
    """Return a random hidden name in the folder of `path`, which no other writer uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk: after a power cut, a rename or a removal then still holds."""
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
