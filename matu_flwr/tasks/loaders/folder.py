"""The loader for folders of images, with one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.decoder import decode, read_image
from matu_flwr.tasks.loaders.sources import Request, Source, Split, held_out, reading
from matu_flwr.tasks.prompts import humanised


def load_folder(request: Request) -> Source:
    """Open ``train/<class>/*`` and ``test/<class>/*``. If there is no ``test``, a fifth of ``train`` is held out."""
    options = request.options
    train_dir, test_dir = request.path / options["train"], request.path / options["test"]
    folders, train = image_folder(request, train_dir)
    if test_dir.is_dir():
        test_folders, test = image_folder(request, test_dir, folders)
        if test_folders != folders:
            raise TaskError(
                f"task {request.task!r}: {test_dir} lacks the class folders {sorted(set(folders) - set(test_folders))} "
                f"of {train_dir}: add them, or rename {test_dir.name} to have a fifth of {train_dir.name} held out"
            )
    # A name that somebody chose must exist. The default name need not: then a fifth is held out.
    elif options["test"] != "test":
        raise TaskError(
            f"task {request.task!r}: {test_dir} is missing, expected the test images there because of the option "
            "'test': put them there, or correct the option"
        )
    else:
        train, test = held_out(train, 0, request.task)
    names = options["classes"]
    for folder in names:
        if folder not in folders:
            raise TaskError(
                f"task {request.task!r}: option 'classes' names {folder!r}, which is not a folder in {train_dir}: "
                f"{nearest(str(folder), folders)}"
            )
    words = dict(zip(folders, humanised(folders), strict=True)) | names
    return Source(tuple(str(words[folder]) for folder in folders), train, test)


def image_folder(request: Request, folder: Path, classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], Split]:
    """Open ``folder/<class>/*`` with torchvision's ImageFolder.

    Parameters
    ----------
    request : Request
        The task, for errors.
    folder : Path
        The folder with one folder per class.
    classes : sequence of str, optional
        The classes in the order of the labels. Some of their folders may be missing; a folder of another name is
        refused. By default the names of the folders, sorted.

    Returns
    -------
    found : tuple of str
        Names of the class folders that exist, sorted.
    split : Split
        The images. Their labels are positions in `classes`.

    Raises
    ------
    TaskError
        `folder` is missing or has no images, or has a folder that is not a class.
    """
    from matu_flwr._torchvision import ensure_importable

    ensure_importable()
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise TaskError(
            f"task {request.task!r}: {folder} is missing, expected a folder with one folder of images per class: "
            "put it there or correct the task's path"
        )
    with reading(request, folder, "one folder of images per class"):
        dataset = ImageFolder(folder, loader=partial(read_image, upright=True))
    found = tuple(dataset.classes)
    for name in found:
        if name.startswith("."):
            raise TaskError(
                f"task {request.task!r}: {folder / name} is a hidden folder with images and would be taken for a "
                "class, expected only folders of classes: remove it"
            )
    classes = found if classes is None else tuple(classes)
    for name in found:
        if name not in classes:
            raise TaskError(
                f"task {request.task!r}: {folder / name} is a class that the task does not have: "
                f"{nearest(name, classes)}; rename or remove it"
            )
    # ImageFolder numbers the folders that it finds. If some are missing, its numbers are not positions in `classes`.
    order = np.array([classes.index(name) for name in found], dtype=np.int64)
    labels = order[np.array(dataset.targets, dtype=np.int64)]

    def open_image(index: int) -> Image.Image:
        path = dataset.samples[index][0]
        with reading(request, path, "an image"):
            image: Image.Image = dataset[index][0]
            return image

    return found, Split(labels, partial(decode, open_image))
