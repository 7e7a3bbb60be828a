"""Loads the images and labels of a task as arrays. They are decoded once, and come from the cache after that."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.names import NAME_RULE, is_name
from matu_flwr.seeds import generator
from matu_flwr.tasks.cache import Parts, TaskData, Undecoded, cached
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders import decoder
from matu_flwr.tasks.loaders.folder import two_parts
from matu_flwr.tasks.loaders.labels import class_names
from matu_flwr.tasks.loaders.registry import LOADERS, SKIP_BROKEN, check_options
from matu_flwr.tasks.loaders.sources import (
    BrokenImageError,
    Request,
    Source,
    Split,
    expanded,
    file_signature,
    is_left_behind,
)
from matu_flwr.tasks.loaders.torchvision_classes import RECIPES
from matu_flwr.tasks.prompts import words_version
from matu_flwr.tasks.suite import TaskSpec, load_suite
from matu_flwr.texts import shown

logger = logging.getLogger(__name__)

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
    return _told(read_task(spec, image_size=image_size, seed=seed, data_dir=data_dir, cache_dir=cache_dir))


def read_task(spec: TaskSpec, *, image_size: int, seed: int, data_dir: Path | None, cache_dir: Path) -> TaskData:
    """Load a task of a suite as `load_task` does, but leave it to the caller to tell of `TaskData.remarks`."""
    request = _request(spec, seed, data_dir, cache_dir)
    content = {
        "loader": spec.loader,
        "options": request.options,
        "recipe": repr(RECIPES.get(request.options.get("dataset", ""))),
        "caps": [spec.max_train, spec.max_test],
        "signature": LOADERS[spec.loader].signature(request),
    }

    def opened() -> Source:
        source = _opened(request, LOADERS[spec.loader].load)
        return Source(
            source.classes,
            _capped(source.train, spec.max_train, seed, spec.name, "train"),
            _capped(source.test, spec.max_test, seed, spec.name, "test"),
        )

    return _decoded(request, opened, content, image_size)


def _told(data: TaskData) -> TaskData:
    """Write what is odd about a task's files to the log, in one line."""
    if data.remarks:
        logger.warning("task %r: %s", data.name, data.remarks)
    return data


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
    task: str,
    root: Path,
    *,
    image_size: int,
    seed: int,
    cache_dir: Path,
    classes: Sequence[str] | None = None,
    skip_broken: bool = False,
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
        must be given the same list. Of some there may be no images here. By default it is the sorted names of the class
        folders in ``train``, of which some may be empty.
    skip_broken : bool
        Whether images that cannot be read are left out. By default they are an error.

    Returns
    -------
    TaskData
        All images of the node; there are no caps.

    Raises
    ------
    TaskError
        Files are missing or damaged, a class folder is not among `classes`, or `task` cannot be the name of a task.
    """
    if not is_name(task):
        raise TaskError(f"task {shown(task)!r} cannot be named so, expected {NAME_RULE}: rename its folder in {root}")
    folder = expanded(f"task {task!r}", root) / task
    if not (folder / "train").is_dir():
        raise TaskError(
            f"task {task!r}: {folder / 'train'} is missing, expected a folder with one folder of images per class; "
            f"tasks found in {root}: {', '.join(site_tasks(root)) or '(none)'}"
        )
    request = Request(task, {"path": str(folder.absolute()), SKIP_BROKEN: skip_broken}, seed, None, cache_dir)

    def opened() -> Source:
        # A site may have no test images of a class, as it may have none at all.
        load = partial(two_parts, train_dir=folder / "train", test_dir=folder / "test", classes=classes, seed=seed)
        return _opened(request, lambda request: load(request, skew=True)[0])

    content = {
        "site": True,
        "classes": list(classes or ()),
        SKIP_BROKEN: skip_broken,
        "signature": file_signature(task, folder),
    }
    return _told(_decoded(request, opened, content, image_size))


def site_tasks(root: Path) -> list[str]:
    """Names of the tasks in a node's own folder, sorted.

    A task is a sub-folder with a folder ``train`` that has at least one class folder.
    """
    root = expanded("site folder", root)
    if not root.is_dir():
        raise TaskError(
            f"site folder {root} does not exist, expected a folder with <task>/train/<class>/ in it: set it to the "
            "folder with this node's own images"
        )
    return sorted(
        folder.name
        for folder in root.iterdir()
        if not is_left_behind(folder.name)
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
    return _opened(_request(spec, seed, data_dir, cache_dir), LOADERS[spec.loader].load)


def _request(spec: TaskSpec, seed: int, data_dir: Path | None, cache_dir: Path) -> Request:
    return Request(spec.name, check_options(spec.name, spec.loader, spec.options), seed, data_dir, cache_dir)


def _opened(request: Request, load: Callable[[Request], Source]) -> Source:
    """Open a data set, check its class names, and leave broken images out if that is asked for."""
    try:
        source = load(request)
    except OSError as error:
        raise TaskError(
            f"task {request.task!r}: its files cannot be read ({error}), expected files that this user may read: put "
            "them there, or change their permissions"
        ) from error
    names = class_names(request.task, source.classes, request.oddities)
    train, test = source.train, source.test
    if request.options.get(SKIP_BROKEN):
        train, test = _intact(request, train), _intact(request, test)
    return Source(names, train, test)


def _intact(request: Request, split: Split) -> Split:
    """The split without the images that cannot be decoded. Each is decoded once more for this."""
    whole = []
    for index in range(len(split.labels)):
        try:
            split.images(np.array([index]), _SMALLEST)
            whole.append(index)
        except BrokenImageError as error:
            request.oddities.add("broken images left out", error.where.removeprefix(f"{request.path}/"))
    return split.part(np.array(whole, dtype=np.int64))


def _decoded(request: Request, opened: Callable[[], Source], content: Mapping[str, Any], image_size: int) -> TaskData:
    """Read the task from the cache. If it is not there, open it, decode it and put it there."""
    task = request.task
    if image_size < _SMALLEST:
        raise TaskError(f"task {task!r}: image_size is {image_size}, expected {_SMALLEST} pixels or more")

    def build() -> Undecoded:
        source = opened()
        images = {}
        for part, split in (("train", source.train), ("test", source.test)):
            if len(split.labels) == 0:
                raise TaskError(f"task {task!r}: no {part} examples were found, expected at least one: add images")
            images[part] = _in_parts(split, image_size)
        return Undecoded(
            source.classes,
            images["train"],
            source.train.labels,
            images["test"],
            source.test.labels,
            request.oddities.notes,
        )

    rules = {"words": words_version(), "decoder": decoder.VERSION, "image_size": image_size, "seed": request.seed}
    return cached(task, {**content, **rules}, request.cache_dir.expanduser(), build)
