"""What all loaders share: a data set that is opened but not decoded, and the messages when that fails."""

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
"""Share of the examples that is tested on where a data set has no test part of its own."""


@dataclass(frozen=True)
class Split:
    """One half of a data set, not decoded yet.

    Attributes
    ----------
    labels : ndarray of int64, shape (N,)
        Label of every example; known without decoding an image.
    images : callable
        ``images(indices, size)`` decodes those examples: uint8 (len(indices), size, size, 3).
    """

    labels: Labels
    images: Callable[[Indices, int], Images]

    def part(self, indices: Indices) -> Split:
        """The same images, only those at `indices`."""
        return Split(self.labels[indices], lambda chosen, size: self.images(indices[chosen], size))


def joined(splits: Sequence[Split]) -> Split:
    """Several splits as one, in their order."""
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
    """A data set that was opened and looked over: class names and two splits."""

    classes: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True)
class Request:
    """What a loader is given.

    Attributes
    ----------
    task : str
        Name of the task, for messages and default paths.
    options : mapping
        The loader's options, its defaults filled in.
    seed : int
        Seed of the run; only generated tasks draw from it.
    data_dir : Path or None
        Folder that relative paths start from.
    cache_dir : Path
        Where a loader may unpack files.
    """

    task: str
    options: Mapping[str, Any]
    seed: int
    data_dir: Path | None
    cache_dir: Path

    @property
    def path(self) -> Path:
        """The option `path`, resolved; there must be something."""
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
    """Split off a stratified random fifth of each class for testing; a class of one example stays in training."""
    rng = generator(seed, "held-out", task)
    test = []
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        test.append(rng.permutation(members)[: max(round(HELD_OUT * len(members)), 1) if len(members) > 1 else 0])
    chosen = np.sort(np.concatenate(test))
    return split.part(np.setdiff1d(np.arange(len(split.labels)), chosen)), split.part(chosen)


def file_signature(path: Path) -> list[Any]:
    """Where `path` really lies, then relative name, size and time of change of every file at or under it, sorted.

    Links are followed, as the readers of the files do; hidden files are left out.

    Raises
    ------
    TaskError
        A file that cannot be looked at, such as a link that leads nowhere.
    """
    # plain text paths: this runs for every task at every start, over thousands of files
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


# What gzip, bz2, zipfile, PIL, numpy and torchvision raise, among them, for files that are not what they should be
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
    """Turn whatever a reader of broken files raises into one message."""
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
    """Return `labels` if there are any and each is a position in `classes`."""
    if len(labels) == 0:
        raise TaskError(f"task {request.task!r}: {where} holds no examples, expected at least one")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise TaskError(
            f"task {request.task!r}: {where} has labels {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(classes) - 1} for {len(classes)} classes: correct the labels or the class names"
        )
    return labels
