"""Loads the images and labels of a task as arrays. They are decoded once, and come from the cache after that."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import generator
from matu_flwr.tasks.cache import Parts, TaskData, Undecoded, cached
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.folder import image_folder
from matu_flwr.tasks.loaders.registry import LOADERS, check_options
from matu_flwr.tasks.loaders.sources import Request, Source, Split, file_signature, held_out
from matu_flwr.tasks.loaders.torchvision_classes import RECIPES
from matu_flwr.tasks.prompts import words_version
from matu_flwr.tasks.suite import TaskSpec, load_suite

# Smallest side of an image in pixels. In smaller ones nothing can be told apart.
_SMALLEST = 8
# Bytes of images that are decoded at once, before they are written to the cache.
_AT_ONCE = 2**28


def load_task(spec: TaskSpec, *, image_size: int, seed: int, data_dir: Path | None, cache_dir: Path) -> TaskData:
    """Load a task of a suite.

    Parameters
    ----------
    spec : TaskSpec
        The task.
    image_size : int
        Side S of the images in pixels, 8 or more.
    seed : int
        Seed of the run. It chooses which images are kept if the task has caps, and draws the generated tasks.
    data_dir : Path or None
        Folder that relative paths of the suite start from. Nothing is written there. None if there is no such folder.
    cache_dir : Path
        Folder for decoded images; made if missing.

    Returns
    -------
    TaskData
        At most `spec.max_train` training and `spec.max_test` test images.

    Raises
    ------
    TaskError
        Files are missing or damaged, or their layout is not the one that the loader expects.
    """
    options = check_options(spec.name, spec.loader, spec.options)
    loader = LOADERS[spec.loader]
    request = Request(spec.name, options, seed, data_dir, cache_dir)
    content = {
        "loader": spec.loader,
        "options": options,
        "recipe": repr(RECIPES.get(options.get("dataset", ""))),
        "words": words_version(),
        "caps": [spec.max_train, spec.max_test],
        "signature": loader.signature(request),
    }

    def opened() -> Source:
        source = loader.load(request)
        return Source(
            source.classes,
            _capped(source.train, spec.max_train, seed, spec.name, "train"),
            _capped(source.test, spec.max_test, seed, spec.name, "test"),
        )

    return _decoded(spec.name, opened, content, image_size=image_size, seed=seed, cache_dir=cache_dir)


@functools.lru_cache(maxsize=64)
def task_data(suite: str, task: str, image_size: int, seed: int, data: str, cache: str) -> TaskData:
    """Load a task of a suite, once per process: a later call with the same arguments returns the same object.

    `data` is the data folder, "" if there is none, and `cache` the folder for decoded images.
    """
    return load_task(
        load_suite(suite).tasks[task],
        image_size=image_size,
        seed=seed,
        data_dir=Path(data) if data else None,
        cache_dir=Path(cache),
    )


def load_site_task(
    task: str, root: Path, *, image_size: int, seed: int, cache_dir: Path, classes: Sequence[str] | None = None
) -> TaskData:
    """Load a node's own images from ``root/<task>/train/<class>/*`` and ``root/<task>/test/<class>/*``.

    If there is no ``test`` folder, a fifth of each class in ``train``, chosen by `seed`, is held out for testing.

    Parameters
    ----------
    task : str
        Name of the sub-folder.
    root : Path
        Folder of this node's data.
    image_size, seed, cache_dir
        See `load_task`.
    classes : sequence of str, optional
        All classes of the task, in the order of the labels. If nodes have different classes of one task, all of them
        must be given the same list. By default it is the sorted names of the class folders in ``train``.

    Returns
    -------
    TaskData
        All images of the node; there are no caps.

    Raises
    ------
    TaskError
        Files are missing or damaged, or a class folder is not among `classes`.
    """
    folder = root.expanduser() / task
    if not (folder / "train").is_dir():
        raise TaskError(
            f"task {task!r}: {folder / 'train'} is missing, expected a folder with one folder of images per class; "
            f"tasks found in {root}: {', '.join(site_tasks(root)) or '(none)'}"
        )
    request = Request(task, {"path": str(folder.absolute())}, seed, None, cache_dir)

    def opened() -> Source:
        found, train = image_folder(request, folder / "train", classes)
        known = tuple(classes or found)
        if (folder / "test").is_dir():
            return Source(known, train, image_folder(request, folder / "test", known)[1])
        return Source(known, *held_out(train, seed, task))

    content = {
        "site": True,
        "words": words_version(),
        "classes": list(classes or ()),
        "signature": file_signature(folder),
    }
    return _decoded(task, opened, content, image_size=image_size, seed=seed, cache_dir=cache_dir)


def site_tasks(root: Path) -> list[str]:
    """Names of the tasks in a node's own folder, sorted.

    A task is a sub-folder with a folder ``train`` that has at least one class folder.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise TaskError(
            f"site folder {root} does not exist, expected a folder with <task>/train/<class>/ in it: set it to the "
            "folder with this node's own images"
        )
    return sorted(
        folder.name
        for folder in root.iterdir()
        if (folder / "train").is_dir() and any(entry.is_dir() for entry in (folder / "train").iterdir())
    )


def stratified(labels: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose `count` examples at random, so that each class keeps its share of the examples as nearly as possible.

    Returns
    -------
    ndarray of int64, shape (count,)
        Indices, ascending. If `count` is at least the number of classes, every class is among them.
    """
    order = rng.permutation(len(labels))
    # The k-th of a class's m examples, shuffled and counted from 0, gets the place (k + 1/2) / m. The examples with the
    # lowest places are chosen, so each class loses the same share. The first of each class comes before all others,
    # so that rare classes are kept.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[0]] = -1
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])


def _capped(split: Split, cap: int, seed: int, task: str, part: str) -> Split:
    """At most `cap` examples of a split, chosen by the seed; all of them if `cap` is 0."""
    if cap == 0 or cap >= len(split.labels):
        return split
    return split.part(stratified(split.labels, cap, generator(seed, "cap", task, part)))


def _in_parts(split: Split, size: int) -> Parts:
    """The images of a split, to be decoded about `_AT_ONCE` bytes at a time."""
    count = len(split.labels)
    step = max(_AT_ONCE // (size * size * 3), 1)

    def parts() -> Iterator[npt.NDArray[np.uint8]]:
        for start in range(0, count, step):
            yield split.images(np.arange(start, min(start + step, count)), size)

    return Parts((count, size, size, 3), parts)


def open_source(spec: TaskSpec, *, seed: int, data_dir: Path | None, cache_dir: Path) -> Source:
    """Open a task of a suite without decoding it and without caps. Arguments and errors are those of `load_task`."""
    options = check_options(spec.name, spec.loader, spec.options)
    return LOADERS[spec.loader].load(Request(spec.name, options, seed, data_dir, cache_dir))


def _decoded(
    task: str,
    opened: Callable[[], Source],
    content: Mapping[str, Any],
    *,
    image_size: int,
    seed: int,
    cache_dir: Path,
) -> TaskData:
    """Read the task from the cache. If it is not there, open it, decode it and put it there."""
    if image_size < _SMALLEST:
        raise TaskError(f"task {task!r}: image_size is {image_size}, expected {_SMALLEST} pixels or more")

    def build() -> Undecoded:
        source = opened()
        images = {}
        for part, split in (("train", source.train), ("test", source.test)):
            if len(split.labels) == 0:
                raise TaskError(f"task {task!r}: no {part} examples were found, expected at least one: add images")
            images[part] = _in_parts(split, image_size)
        return Undecoded(source.classes, images["train"], source.train.labels, images["test"], source.test.labels)

    return cached(task, {**content, "image_size": image_size, "seed": seed}, cache_dir.expanduser(), build)
