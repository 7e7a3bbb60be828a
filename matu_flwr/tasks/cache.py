"""Decoded images on disk: built once, then memory-mapped by every process that asks for the same thing.

An entry is a folder ``<task>-<key>`` of four ``.npy`` files and a ``meta.json``. The key is a hash of everything that
decides the content, so an entry never has to be updated: another source, image size, cap or seed is another entry. The
cache folder may be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from matu_flwr import digests
from matu_flwr.files import new_folder
from matu_flwr.tasks.errors import TaskError

logger = logging.getLogger(__name__)

_FORMAT = 2
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class TaskData:
    """One task, decoded.

    Attributes
    ----------
    name : str
        Name of the task.
    classes : tuple of str
        Class names; a label is a position in it.
    train_images, test_images : ndarray of uint8, shape (N, S, S, 3)
        RGB; a read-only memory map of the cache.
    train_labels, test_labels : ndarray of int64, shape (N,)
        Labels.
    """

    name: str
    classes: tuple[str, ...]
    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Images that are decoded while they are written: a large set does not fit into memory.

    Attributes
    ----------
    shape : tuple of int
        (N, S, S, 3), of uint8.
    parts : callable
        Decodes them in order, some at a time: yields uint8 (n, S, S, 3).
    """

    shape: tuple[int, int, int, int]
    parts: Callable[[], Iterator[npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class Undecoded:
    """What an entry is made from: like `TaskData`, before."""

    classes: tuple[str, ...]
    train_images: Parts
    train_labels: npt.NDArray[np.int64]
    test_images: Parts
    test_labels: npt.NDArray[np.int64]


class _CorruptError(Exception):
    """An entry that cannot be used; never leaves this module."""


def cached(task: str, content: Mapping[str, Any], cache_dir: Path, build: Callable[[], Undecoded]) -> TaskData:
    """Return the entry of `content`, building it if it is not there or damaged.

    Parameters
    ----------
    task : str
        Name of the task; begins the folder's name.
    content : mapping
        JSON-able description of everything that decides the arrays.
    cache_dir : Path
        Folder of the cache; made if missing.
    build : callable
        Opens the data set, which is decoded while it is written. Called by one process at a time per entry, the others
        wait and then read.

    Returns
    -------
    TaskData
        Images are read-only memory maps.
    """
    content = {"format": _FORMAT, **content}
    entry = cache_dir / f"{task}-{digests.of_json(content)[: digests.SHORT]}"
    try:
        if found := _read(task, entry):
            return found
    except _CorruptError:
        pass  # looked at again, and mended, under the lock
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f".{entry.name}.lock"):
            try:
                if found := _read(task, entry):  # another process was faster
                    return found
            except _CorruptError as error:
                logger.warning("task %r: cache entry %s is damaged (%s) and is built again", task, entry, error)
                shutil.rmtree(entry)
            _write(build(), content, entry)
            found = _read(task, entry)
    except OSError as error:
        raise TaskError(
            f"task {task!r}: cannot write its decoded images to {cache_dir}: {error}; free space there or choose "
            "another cache folder"
        ) from error
    except _CorruptError as error:
        raise TaskError(
            f"task {task!r}: its decoded images in {entry} cannot be read back ({error}); look whether the disk "
            "works, or choose another cache folder"
        ) from error
    if found is None:
        raise TaskError(f"task {task!r}: {entry} has been removed while it was read: start again")
    return found


def _write(undecoded: Undecoded, content: dict[str, Any], entry: Path) -> None:
    """Write all files of an entry: whoever sees it sees all of it."""
    # a cache may be shared
    with new_folder(entry, mode=0o755) as work:
        shapes = {}
        for name in _ARRAYS:
            array = getattr(undecoded, name)
            if isinstance(array, Parts):
                _write_images(work / f"{name}.npy", array)
                shapes[name] = [list(array.shape), "uint8"]
            else:
                np.save(work / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
                shapes[name] = [list(array.shape), str(array.dtype)]
        meta = {
            "classes": undecoded.classes,
            "arrays": shapes,
            "labels": {name: _label_digest(getattr(undecoded, name)) for name in _ARRAYS if name.endswith("labels")},
            "content": content,
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _write_images(path: Path, images: Parts) -> None:
    """Like `numpy.save`, part by part. Not through a memory map: on a full disk that ends the process."""
    with path.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in images.parts():
            stream.write(np.ascontiguousarray(part).data)


def _read(task: str, entry: Path) -> TaskData | None:
    """The entry, or None if there is none."""
    if not entry.is_dir():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (shape, dtype) in meta["arrays"].items():
            # labels are small, and nicer as a plain array
            array = np.load(
                entry / f"{name}.npy", mmap_mode="r" if name.endswith("images") else None, allow_pickle=False
            )
            if [list(array.shape), str(array.dtype)] != [shape, dtype]:
                raise _CorruptError(
                    f"{name}.npy: expected {dtype} of shape {shape}, found {array.dtype} of {array.shape}"
                )
            arrays[name] = array
        for name, digest in meta["labels"].items():
            if _label_digest(arrays[name]) != digest:
                raise _CorruptError(f"{name}.npy: its content has changed")
        return TaskData(task, tuple(meta["classes"]), **{name: arrays[name] for name in _ARRAYS})
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:  # all that a damaged .npy or JSON raises
        raise _CorruptError(f"{type(error).__name__}: {error}") from error


def _label_digest(array: npt.NDArray[Any]) -> str:
    return digests.of_bytes(np.ascontiguousarray(array).tobytes())[: digests.SHORT]
