"""Keeps decoded images on disk. They are decoded once, and all processes that need them share one memory map.

An entry is a folder ``<task>-<key>`` with four ``.npy`` files and a ``meta.json``. The key is a hash of everything that
the content depends on, such as the files, the rules by which they are decoded, the image size, the caps and the seed.
If one of these changes, a new entry is made, so an entry is never updated. The cache folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
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

# Part of the key: raise it when the files of an entry change, so that old entries are not read.
_FORMAT = 3
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class TaskData:
    """The decoded images and labels of one task.

    Attributes
    ----------
    name : str
        Name of the task.
    classes : tuple of str
        Class names, in the order of the labels.
    train_images, test_images : ndarray of uint8, shape (N, S, S, 3)
        RGB images of S x S pixels: read-only memory maps of files in the cache.
    train_labels, test_labels : ndarray of int64, shape (N,)
        The label of each image: the position of its class in `classes`.
    duplicates : int
        Number of test images whose decoded pixels are exactly those of a training image.
    notes : tuple of str
        What a person should know about the files, although they can be used.
    """

    name: str
    classes: tuple[str, ...]
    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]
    duplicates: int = 0
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> str:
        """All notes and the duplicates in one line; "" if there is nothing to say."""
        copies = f"{self.duplicates} of {len(self.test_labels)} test images are training images too"
        return "; ".join([*self.notes, *([copies] if self.duplicates else [])])


@dataclass(frozen=True)
class Parts:
    """Images that are decoded a few at a time while they are written, because a large set does not fit into memory.

    Attributes
    ----------
    shape : tuple of int
        Shape of all images together, (N, S, S, 3).
    parts : callable
        Yields the images in order, as uint8 arrays (n, S, S, 3) with n in all equal to N.
    """

    shape: tuple[int, int, int, int]
    parts: Callable[[], Iterator[npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class Undecoded:
    """What a cache entry is made from: the fields of `TaskData`, with images that are not decoded yet.

    `notes` is called after all images were decoded, because some is only noticed then.
    """

    classes: tuple[str, ...]
    train_images: Parts
    train_labels: npt.NDArray[np.int64]
    test_images: Parts
    test_labels: npt.NDArray[np.int64]
    notes: Callable[[], tuple[str, ...]] = tuple


class _CorruptError(Exception):
    """A cache entry is damaged. Callers of this module never see this error."""


def cached(task: str, content: Mapping[str, Any], cache_dir: Path, build: Callable[[], Undecoded]) -> TaskData:
    """Read a task from the cache. If its entry is missing or damaged, build it first.

    Parameters
    ----------
    task : str
        Name of the task. The entry's folder begins with it.
    content : mapping
        Everything that the arrays depend on, as values that JSON can hold. Its hash is the entry's key.
    cache_dir : Path
        Folder of the cache; made if missing.
    build : callable
        Opens the data set. Only one process at a time calls it for an entry. Others wait, and then read the entry.

    Returns
    -------
    TaskData
        Its images are read-only memory maps.

    Raises
    ------
    TaskError
        The entry cannot be written or read back, or was removed in the meantime.
    """
    content = {"format": _FORMAT, **content}
    entry = cache_dir / f"{task}-{digests.of_json(content)[: digests.SHORT]}"
    try:
        if found := _read(task, entry):
            return found
    except _CorruptError:
        # It is read once more under the lock, and rebuilt there if it is still damaged.
        pass
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f".{entry.name}.lock"):
            try:
                # Another process may have built the entry while this one waited for the lock.
                if found := _read(task, entry):
                    return found
            except _CorruptError as error:
                logger.warning("task %r: cache entry %s is damaged (%s) and will be built again", task, entry, error)
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
            f"task {task!r}: its decoded images in {entry} cannot be read back ({error}); check the disk, or choose "
            "another cache folder"
        ) from error
    if found is None:
        raise TaskError(f"task {task!r}: {entry} was removed while it was being read: start again")
    return found


def _write(undecoded: Undecoded, content: dict[str, Any], entry: Path) -> None:
    """Write all files of an entry. Other processes see either the whole entry or none."""
    # Several users may share one cache, if their umask lets others read.
    with new_folder(entry, mode=0o777) as work:
        shapes = {}
        pictures: dict[str, list[bytes]] = {}
        for name in _ARRAYS:
            array = getattr(undecoded, name)
            if isinstance(array, Parts):
                pictures[name] = _write_images(work / f"{name}.npy", array)
                shapes[name] = [list(array.shape), "uint8"]
            else:
                np.save(work / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
                shapes[name] = [list(array.shape), str(array.dtype)]
        known = set(pictures["train_images"])
        meta = {
            "classes": undecoded.classes,
            "duplicates": sum(picture in known for picture in pictures["test_images"]),
            "notes": undecoded.notes(),
            "arrays": shapes,
            "labels": {name: _label_digest(getattr(undecoded, name)) for name in _ARRAYS if name.endswith("labels")},
            "content": content,
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _write_images(path: Path, images: Parts) -> list[bytes]:
    """Write a .npy file, as `numpy.save` does, but part by part. Returns a digest of each image."""
    pictures = []
    # Not through a memory map: on a full disk, writing to one kills the process instead of raising an error.
    with path.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in images.parts():
            stream.write(np.ascontiguousarray(part).data)
            pictures += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part]
    return pictures


def _read(task: str, entry: Path) -> TaskData | None:
    """Read an entry. None if there is none; `_CorruptError` if it is damaged."""
    if not entry.is_dir():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (shape, dtype) in meta["arrays"].items():
            # Only images are large enough to need a memory map. Labels are read as plain arrays.
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
        told: dict[str, Any] = {"duplicates": meta["duplicates"], "notes": tuple(meta["notes"])}
        return TaskData(task, tuple(meta["classes"]), **{name: arrays[name] for name in _ARRAYS} | told)
    # Damaged .npy and JSON files raise one of these.
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _CorruptError(f"{type(error).__name__}: {error}") from error


def _label_digest(array: npt.NDArray[Any]) -> str:
    return digests.of_bytes(np.ascontiguousarray(array).tobytes())[: digests.SHORT]
