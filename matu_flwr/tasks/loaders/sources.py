"""What all loaders share: a data set that is opened but not decoded, and the errors for files that cannot be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError
from matu_flwr.texts import shown

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

HELD_OUT = 0.2
"""Share of the examples that is held out for testing, if a data set has no test part."""

# What Windows, macOS and Synology leave in folders. Names that begin with a dot are left out everywhere too.
_LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r", "$recycle.bin"}
# How many files a note names.
_NAMED = 3


class BrokenImageError(TaskError):
    """The image at `where` cannot be read. With the option `skip-broken` it is left out."""

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(text)
        self.where = where


class Oddities:
    """What a person should know about a task's files, although they can be used: files passed over, and the like."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}

    def add(self, what: str, *places: str) -> None:
        """Add files, folders or names to what is told of `what`. A place that was added before is not counted again."""
        self._found.setdefault(what, {}).update(dict.fromkeys(places))

    def notes(self) -> tuple[str, ...]:
        """One text for each kind, with a number and the first places, such as ``no image: 2 (a.txt, b.txt)``."""
        found = []
        for what, places in self._found.items():
            named = ", ".join(list(places)[:_NAMED]) + (", …" if len(places) > _NAMED else "")
            found.append(f"{what}: {len(places)} ({shown(named)})" if places else what)
        return tuple(found)


@dataclass(frozen=True)
class Split:
    """The training part or the test part of a data set. Its images are not decoded yet.

    Attributes
    ----------
    labels : ndarray of int64, shape (N,)
        The label of every example.
    images : callable
        ``images(indices, size)`` decodes the examples at `indices`: uint8 (len(indices), size, size, 3).
    """

    labels: Labels
    images: Callable[[Indices, int], Images]

    def part(self, indices: Indices) -> Split:
        """The split that has only the examples at `indices`."""
        return Split(self.labels[indices], lambda chosen, size: self.images(indices[chosen], size))


def joined(splits: Sequence[Split]) -> Split:
    """Join several splits into one, in their order."""
    if len(splits) == 1:
        return splits[0]
    starts = np.cumsum([0, *(len(split.labels) for split in splits)])

    def images(indices: Indices, size: int) -> Images:
        out = np.empty((len(indices), size, size, 3), dtype=np.uint8)
        for split, start, end in zip(splits, starts[:-1], starts[1:], strict=True):
            mine = np.flatnonzero((indices >= start) & (indices < end))
            if len(mine):
                out[mine] = split.images(indices[mine] - start, size)
        return out

    return Split(np.concatenate([split.labels for split in splits]), images)


@dataclass(frozen=True)
class Source:
    """A data set that was opened and checked: its class names, and its training and test images."""

    classes: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True)
class Request:
    """What a loader needs to know about a task.

    Attributes
    ----------
    task : str
        Name of the task, for errors and for the default path.
    options : mapping
        The loader's options, with its defaults.
    seed : int
        Seed of the run. Only generated tasks use it.
    data_dir : Path or None
        Folder that relative paths start from; None if there is none.
    cache_dir : Path
        Folder into which a loader may unpack files.
    oddities : Oddities
        Loaders and the decoder add to it what they pass over.
    """

    task: str
    options: Mapping[str, Any]
    seed: int
    data_dir: Path | None
    cache_dir: Path
    oddities: Oddities = field(default_factory=Oddities, compare=False)

    @property
    def path(self) -> Path:
        """Path of the task's files: the option `path`, or else the task's name.

        Raises
        ------
        TaskError
            Nothing is there, or the path is relative and there is no data folder.
        """
        path = task_path(self.task, self.options["path"] or self.task, self.data_dir)
        if not path.is_absolute():
            raise TaskError(
                f"task {self.task!r}: no data folder is set, expected one that contains {path}: set the environment "
                "variable MATU_DATA_DIR or the run's data-dir to it, or use the suite 'offline', which needs none"
            )
        with _looking(self.task, path):
            found = path.exists()
        if not found:
            raise TaskError(
                f"task {self.task!r}: {path} does not exist, expected the task's files there: put them there, or set "
                "MATU_DATA_DIR or the run's data-dir to the folder that contains them"
            )
        return path


def task_path(task: str, path: str, data_dir: Path | None) -> Path:
    """Where a task's files belong: `path` in the data folder; still relative if it is and there is no such folder.

    Raises
    ------
    TaskError
        The path begins with ``~``, and there is no such home folder.
    """
    what = f"task {task!r}"
    home, below = expanded(what, Path(path)), data_dir and expanded(what, data_dir)
    return below / home if below else home


def expanded(what: str, path: Path) -> Path:
    """A path with ``~`` replaced by the home folder; TaskError if there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise TaskError(
            f"{what}: {path} begins with a home folder that does not exist (is HOME set?): give the path from / on"
        ) from None


def held_out(split: Split, seed: int, task: str) -> tuple[Split, Split]:
    """Hold out a random fifth of each class for testing, at least one example. A class of one example is not held out.

    Returns
    -------
    train, test : Split
        Both keep the order of the examples.
    """
    rng = generator(seed, "held-out", task)
    test = []
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        test.append(rng.permutation(members)[: max(round(HELD_OUT * len(members)), 1) if len(members) > 1 else 0])
    chosen = np.sort(np.concatenate(test))
    return split.part(np.setdiff1d(np.arange(len(split.labels)), chosen)), split.part(chosen)


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left behind by a system: nobody means it as data."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def everything_under(task: str, folder: str | Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file and folder below a folder of a task, with its path and its `os.stat`; what is hidden is left out.

    Links are followed, also those that lead out of the folder: whoever put them there means what they lead to.

    Raises
    ------
    TaskError
        A folder or a file cannot be looked at, such as a link that leads nowhere, or a link leads back to a folder
        above it.
    """
    with _looking(task, folder):
        status = os.stat(folder)  # noqa: PTH116 - as below
    yield from _everything_under(task, str(folder), ((status.st_dev, status.st_ino),))


def _everything_under(
    task: str, folder: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    # os instead of pathlib, for speed: this runs for every task at every start, over thousands of files.
    with _looking(task, folder), os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_left_behind(entry.name)]
    for entry in found:
        with _looking(task, entry.path):
            status = entry.stat()
        yield entry.path, status
        if not stat.S_ISDIR(status.st_mode):
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise TaskError(
                f"task {task!r}: {shown(entry.path)} is a link that leads back to a folder above it, expected folders "
                "that end somewhere: remove the link"
            )
        yield from _everything_under(task, entry.path, (*above, here))


@contextmanager
def _looking(task: str, path: str | Path) -> Iterator[None]:
    """Turn the errors of looking at a file or a folder into a `TaskError`."""
    try:
        yield
    except OSError as error:
        raise TaskError(
            f"task {task!r}: {shown(path)} cannot be looked at ({error.strerror}), expected a file or a folder that "
            "this user may read, or a link to one: put it there, change its permissions, or remove it"
        ) from error


def file_signature(task: str, path: Path) -> list[Any]:
    """Describe the files at or under `path`, so that the cache notices when one changes.

    The first item is the real location of `path`. The second is a sorted list with the relative name, the size and the
    time of change of every file, and the name alone of every folder, because an empty one may be a class. Links are
    followed, as the loaders follow them. Hidden files are left out.

    Raises
    ------
    TaskError
        A file cannot be looked at; see `everything_under`.
    """
    if path.is_file():
        found = [(path.name, path.stat())]
    else:
        start = len(str(path)) + 1
        found = [(file[start:].replace(os.sep, "/"), status) for file, status in everything_under(task, path)]
    described = [
        [f"{name}/", 0, 0] if stat.S_ISDIR(status.st_mode) else [name, status.st_size, status.st_mtime_ns]
        for name, status in found
    ]
    return [str(path.resolve()), sorted(described)]


@contextmanager
def reading(
    request: Request, what: Path | str, expected: str, advice: str = "replace it by an undamaged copy"
) -> Iterator[None]:
    """Turn the errors of libraries that read a damaged file into a `TaskError`.

    Parameters
    ----------
    request : Request
        The task, for the error.
    what : Path or str
        What is read.
    expected : str
        What it should be.
    advice : str
        What to do about it.
    """
    try:
        yield
    except TaskError:
        raise
    # gzip, zipfile, PIL, numpy, torchvision and pyarrow raise whatever their parsers stumble over, also struct.error
    # and OverflowError: there is no list of it. The text names the error's class, and the error is its cause.
    except Exception as error:
        raise TaskError(
            f"task {request.task!r}: {shown(what)} cannot be read ({type(error).__name__}: {shown(error)}), expected "
            f"{expected}: {advice}"
        ) from error
