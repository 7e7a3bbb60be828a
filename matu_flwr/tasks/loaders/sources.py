"""What all loaders share: a data set that is opened but not decoded, and the errors for files that cannot be read."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

HELD_OUT = 0.2
"""Share of the examples that is held out for testing, if a data set has no test part."""


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
    """

    task: str
    options: Mapping[str, Any]
    seed: int
    data_dir: Path | None
    cache_dir: Path

    @property
    def path(self) -> Path:
        """Path of the task's files: the option `path`, or else the task's name.

        Raises
        ------
        TaskError
            Nothing is there, or the path is relative and there is no data folder.
        """
        path = Path(self.options["path"] or self.task).expanduser()
        if not path.is_absolute():
            if self.data_dir is None:
                raise TaskError(
                    f"task {self.task!r}: no data folder is set, expected one that contains {path}: set the "
                    "environment variable MATU_DATA_DIR or the run's data-dir to it, or use the suite 'offline', which "
                    "needs none"
                )
            path = self.data_dir.expanduser() / path
        if not path.exists():
            raise TaskError(
                f"task {self.task!r}: {path} does not exist, expected the task's files there: put them there, or set "
                "MATU_DATA_DIR or the run's data-dir to the folder that contains them"
            )
        return path


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


def file_signature(path: Path) -> list[Any]:
    """Describe the files at or under `path`, so that the cache notices when one changes.

    The first item is the real location of `path`. The second is a sorted list with the relative name, the size and the
    time of change of every file. Links are followed, as the loaders follow them. Hidden files are left out.

    Raises
    ------
    TaskError
        A file cannot be looked at, such as a link that leads nowhere.
    """
    # os.path instead of pathlib, for speed: this runs for every task at every start, over thousands of files.
    if path.is_file():
        files = [str(path)]
    else:
        walk = os.walk(path, followlinks=True)
        files = [os.path.join(folder, name) for folder, _, names in walk for name in names if name[0] != "."]  # noqa: PTH118
    try:
        stats = [(file[len(str(path)) + 1 :].replace(os.sep, "/"), os.stat(file)) for file in files]  # noqa: PTH116
    except OSError as error:
        raise TaskError(
            f"{error.filename} cannot be looked at ({error.strerror}), expected a file, or a link to one: put the file "
            "there, or remove the link"
        ) from error
    return [str(path.resolve()), sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


# What gzip, bz2, zipfile, PIL, numpy and torchvision raise for damaged files and files of another kind.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    pickle.UnpicklingError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)


@contextmanager
def reading(request: Request, what: Path | str, expected: str) -> Iterator[None]:
    """Turn the errors of libraries that read a damaged file into a `TaskError`.

    Parameters
    ----------
    request : Request
        The task, for the error.
    what : Path or str
        What is read.
    expected : str
        What it should be.
    """
    try:
        yield
    except TaskError:
        raise
    except _DAMAGE as error:
        raise TaskError(
            f"task {request.task!r}: {what} cannot be read ({type(error).__name__}: {error}), expected {expected}: "
            "replace it by an undamaged copy"
        ) from error


def check_labels(request: Request, where: object, labels: Labels, classes: Sequence[str]) -> Labels:
    """Return `labels`, after a check that there is at least one and that each is a position in `classes`."""
    if len(labels) == 0:
        raise TaskError(f"task {request.task!r}: {where} holds no examples, expected at least one")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise TaskError(
            f"task {request.task!r}: {where} has labels {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(classes) - 1} for {len(classes)} classes: correct the labels or the class names"
        )
    return labels
