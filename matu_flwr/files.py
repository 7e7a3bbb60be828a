"""Replacing files in one step, and who may read them. All of this package replaces files through these functions.

The new content is written to a temporary file, flushed to the disk, and renamed to the target's name. Then the folder's
entry is flushed too. A reader sees either the old content or the new content, never a mix, even after a power cut.

A temporary file is called `.<name>.<random>.tmp`. It is hidden, in the same folder (a file can only be renamed within
one file system), and used by one writer only. It is removed after an error. Only a killed process leaves one behind.

Who may read what: one rule. What a run writes, tensors too, gets the permissions that any new file gets there, so the
person's umask (or the folder's access list) decides. What is secret or personal, which means keys and what a client
keeps for itself, is for its owner only, whatever the umask is: 0600 for files, 0700 for folders.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import stat
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
SHARED = 0o666
"""Permissions of the files of a run; the umask takes away what others may not do."""
PRIVATE, PRIVATE_FOLDER = 0o600, 0o700
"""Permissions of files and folders that are for their owner only."""


@contextmanager
def replacing(path: Path, *, mode: int = SHARED) -> Iterator[Path]:
    """Give a temporary path to write to. It becomes `path` if the block ends without an error.

    Parameters
    ----------
    path : Path
        The file to replace.
    mode : int
        Its permissions, reduced by the umask, whoever wrote the temporary file. (safetensors, for one, makes its files
        0600.)

    Raises
    ------
    OSError
        The file cannot be flushed or renamed. `path` is unchanged.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        give_mode(temporary, mode)
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


def give_mode(path: Path, mode: int = SHARED) -> None:
    """Give a file the permissions of a new file that is made with `mode` in its folder."""
    # Python can only read the umask by changing it, also for the other threads. A new file shows it, and shows the
    # folder's access list too.
    probe = temporary_name(path)
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        path.chmod(stat.S_IMODE(os.fstat(handle).st_mode))
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, mode: int = SHARED) -> None:
    """Replace a file's content; `mode` are its permissions, reduced by the umask."""
    with replacing(path, mode=mode) as temporary:
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
        Permissions of the folder, reduced by the umask. While it is being filled they are 0700.

    Raises
    ------
    OSError
        The folder cannot be flushed or renamed, for instance because a folder with files has appeared at `path`.
    """
    temporary, probe = temporary_name(path), temporary_name(path)
    try:
        # The umask is seen at a folder of this mode; see `give_mode`.
        probe.mkdir(mode=mode)
        granted = stat.S_IMODE(probe.stat().st_mode)
        probe.rmdir()
        temporary.mkdir(mode=PRIVATE_FOLDER)
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        sync_folder(temporary)
        temporary.chmod(granted)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exclusive_folder(path: Path) -> Path:
    """Make a folder that nobody else has: `path`, or else the first of `path`-2, `path`-3, … that is free.

    Two processes that want the same name at the same moment get two folders. The folders above are made if missing.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("never reached: there is always a next number")


def private_folder(path: Path) -> None:
    """Make a folder for its owner only, with those above that are missing. Folders that are there stay as they are.

    Raises
    ------
    OSError
        A folder cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def obstacle(folder: Path) -> str:
    """Say why nothing can be written into a folder, or why it cannot be made; "" if it can. Nothing is changed."""
    there = folder
    if "\0" in str(folder):
        return "its name has a zero byte in it"
    try:
        # A dead link is in the way too, although what it names does not exist.
        while not there.exists() and not there.is_symlink() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            kind = "a link that leads nowhere" if there.is_symlink() and not there.exists() else "a file"
            return f"{there} is {kind}, expected a folder"
    # A path through a file or a locked folder, a circle of links, a name that is too long.
    except (OSError, RuntimeError, ValueError) as error:
        return str(error)
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    return f"{there} is on a read-only file system" if read_only else f"{there} may not be written by this user"


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
