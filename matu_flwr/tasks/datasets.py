"""A task's images and labels as arrays, ready to be trained on; decoded once and memory-mapped afterwards."""

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

_SMALLEST = 8  # pixels; below, nothing can be told apart
_AT_ONCE = 2**28  # bytes of images that are decoded before they are written


def load_task(spec: TaskSpec, *, image_size: int, seed: int, data_dir: Path | None, cache_dir: Path) -> TaskData:
    """Load a task of a suite.

    Parameters
    ----------
    spec : TaskSpec
        The task.
    image_size : int
        Side S of the images, in pixels, 8 or more.
    seed : int
        Seed of the run: chooses the examples that stay under the caps, and draws the generated tasks.
    data_dir : Path or None
        Folder that relative paths of the suite start from; only read. None if there is none.
    cache_dir : Path
        Folder for decoded images; made if missing.

    Returns
    -------
    TaskData
        Sizes after the caps of `spec`.

    Raises
    ------
    TaskError
        For files that are missing, damaged or not in the layout that the loader expects.
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
    """One task's images, loaded once per process; `data` is "" if nobody named a data folder."""
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
    """Load a node's own images, ``root/<task>/train/<class>/*`` and ``root/<task>/test/<class>/*``.

    Without a ``test`` folder a stratified fifth of ``train``, chosen by `seed`, is held out.

    Parameters
    ----------
    task : str
        Name of the sub-folder.
    root : Path
        Folder of this node's data.
    image_size, seed, cache_dir
        See `load_task`.
    classes : sequence of str, optional
        All classes of the task in the order of their labels. Nodes that hold different classes of one task must all
        be given the same; by default the class folders of ``train`` are taken, sorted.

    Returns
    -------
    TaskData
        All images of the node; there are no caps.
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
    """Names of the sub-folders of `root` that hold a folder ``train`` with at least one class folder, sorted."""
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
    """Choose `count` examples so that each class keeps its share as nearly as whole numbers allow.

    Returns
    -------
    ndarray of int64, shape (count,)
        Indices, ascending. With at least one place per class no class is lost.
    """
    order = rng.permutation(len(labels))
    # The k-th of the m examples of a class (in shuffled order) stands at (k + 1/2) / m on a common scale; the lowest
    # are taken. The first of each class stands before all others, so that rare classes survive.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[0]] = -1
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])


def _capped(split: Split, cap: int, seed: int, task: str, part: str) -> Split:
    if cap == 0 or cap >= len(split.labels):
        return split
    return split.part(stratified(split.labels, cap, generator(seed, "cap", task, part)))


def _in_parts(split: Split, size: int) -> Parts:
    count = len(split.labels)
    step = max(_AT_ONCE // (size * size * 3), 1)

    def parts() -> Iterator[npt.NDArray[np.uint8]]:
        for start in range(0, count, step):
            yield split.images(np.arange(start, min(start + step, count)), size)

    return Parts((count, size, size, 3), parts)


def open_source(spec: TaskSpec, *, seed: int, data_dir: Path | None, cache_dir: Path) -> Source:
    """Open a task of a suite without decoding it and before any cap; arguments and errors as of `load_task`."""
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
    """Take the task from the cache, or open and decode it."""
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
