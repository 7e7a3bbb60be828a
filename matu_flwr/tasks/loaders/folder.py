"""The loader for folders of images, with one folder per class.

What lies in these folders is looked at. What is passed over is told (`Oddities`), and what cannot be meant is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from matu_flwr.names import composed
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.decoder import endings, pictures, read_image
from matu_flwr.tasks.loaders.sources import Request, Source, Split, everything_under, held_out
from matu_flwr.tasks.prompts import humanise, humanised
from matu_flwr.texts import shown

# Usual names of the parts of a data set. A class of such a name is most likely a part that lies too deep.
_PARTS = {"train", "training", "test", "testing", "tests", "val", "valid", "validation", "dev", "eval", "evaluation"}


def load_folder(request: Request) -> Source:
    """Open ``train/<class>/*`` and ``test/<class>/*``. If there is no ``test``, a fifth of ``train`` is held out."""
    options = request.options
    train_dir, test_dir = request.path / options["train"], request.path / options["test"]
    if not test_dir.is_dir() and options["test"] != "test":
        # A name that somebody chose must exist. The default name need not: then a fifth is held out.
        raise TaskError(
            f"task {request.task!r}: {test_dir} is missing, expected the test images there because of the option "
            "'test': put them there, or correct the option"
        )
    names = options["classes"]
    declared = None if isinstance(names, Mapping) else tuple(names)
    source, folders = two_parts(request, train_dir, test_dir, declared or None, seed=0)
    if declared:
        return source
    for folder in names:
        if folder not in folders:
            raise TaskError(
                f"task {request.task!r}: option 'classes' names {folder!r}, which is not a folder in {train_dir}: "
                f"{nearest(str(folder), folders)}"
            )
    words = dict(zip(folders, humanised(folders), strict=True)) | dict(names)
    return Source(tuple(str(words[folder]) for folder in folders), source.train, source.test)


def two_parts(
    request: Request, train_dir: Path, test_dir: Path, classes: Sequence[str] | None, *, seed: int, skew: bool = False
) -> tuple[Source, tuple[str, ...]]:
    """Open the training and the test part of a task. Without a folder `test_dir`, a fifth of each class is held out.

    Parameters
    ----------
    request : Request
        The task.
    train_dir, test_dir : Path
        The folders with one folder per class.
    classes : sequence of str or None
        The declared classes, in the order of the labels; see `image_folder`.
    seed : int
        Chooses the images that are held out.
    skew : bool
        Whether test images of a class may be missing although there are training images of it.

    Returns
    -------
    source : Source
        Its classes are `classes`, or the names of the class folders.
    folders : tuple of str
        The classes that have a folder in `train_dir`.
    """
    folders, train = image_folder(request, train_dir, classes)
    known = tuple(classes or folders)
    _tell_of_other_parts(request, train_dir, test_dir)
    if not test_dir.is_dir():
        return Source(known, *held_out(train, seed, request.task)), folders
    tested, test = image_folder(request, test_dir, known)
    have_images = {known[label] for label in np.unique(train.labels)}
    if (lacking := sorted(have_images - set(tested))) and not (skew or classes):
        raise TaskError(
            f"task {request.task!r}: {test_dir} lacks the class folders {lacking} of {train_dir}: add them, declare "
            f"the option 'classes', or rename {test_dir.name} to have a fifth of {train_dir.name} held out"
        )
    return Source(known, train, test), folders


def image_folder(request: Request, folder: Path, classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], Split]:
    """Open ``folder/<class>/**``: all files with an ending of `endings`, in the order of their paths.

    Parameters
    ----------
    request : Request
        The task, for errors and for what is to be told.
    folder : Path
        The folder with one folder per class. A class folder may be empty.
    classes : sequence of str, optional
        The classes in the order of the labels. Some of their folders may be missing; a folder of another name is
        refused. A folder's name may be written as in the folder or in words: ``red_ash`` is the class "red ash". By
        default the names of the folders, sorted.

    Returns
    -------
    found : tuple of str
        The classes that have a folder, sorted.
    split : Split
        The images. Their labels are positions in `classes`.

    Raises
    ------
    TaskError
        `folder` is missing or has no images, has a folder that is not a class, or has its classes one level deeper.
    """
    if not folder.is_dir():
        raise TaskError(
            f"task {request.task!r}: {folder} is missing, expected a folder with one folder of images per class: "
            "put it there or correct the task's path"
        )
    seen = _look(request, folder)
    _refuse_another_level(request, folder, seen)
    names = _labels_by_folder(request, folder, seen.folders, classes)
    files = [(path, names[name]) for name in seen.folders for path in seen.images[name]]
    if not files:
        others = ", ".join(f"{len(paths)} with {ending}" for ending, paths in seen.others.items())
        raise TaskError(
            f"task {request.task!r}: {folder} has {len(seen.folders)} class folders and no images in them (other "
            f"files: {others or 'none'}), expected one folder of images per class, with endings such as .jpg and .png: "
            "put them there or correct the task's path"
        )
    known = tuple(classes) if classes is not None else tuple(seen.folders)
    labels = np.array([label for _, label in files], dtype=np.int64)

    def opened(index: int) -> Image.Image:
        path = files[index][0]
        return read_image(path, request.oddities, path[len(str(folder.parent)) + 1 :])

    split = pictures(request, labels, lambda index: files[index][0], opened)
    return tuple(sorted(known[label] for label in names.values())), split


@dataclass
class _Seen:
    """What lies in a folder of class folders.

    Attributes
    ----------
    folders : list of str
        Names of the class folders, sorted.
    images : dict of str to list of str
        The paths of the images below each class folder, in the order of their folders and names.
    inner : dict of str to set of str
        For each class folder, the sub-folders that have images in or below them; "" for the class folder itself.
    others : dict of str to list of str
        The files that are passed over, by their ending.
    """

    folders: list[str] = field(default_factory=list)
    images: dict[str, list[str]] = field(default_factory=dict)
    inner: dict[str, set[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)


def _look(request: Request, folder: Path) -> _Seen:
    """Find all images below the class folders, and tell of all that is none."""
    # Strings instead of pathlib, for speed.
    root, real, taken, seen = str(folder), os.path.realpath(folder), endings(), _Seen()
    loose, links = [], []
    found = [(*os.path.split(path), status) for path, status in everything_under(request.task, folder)]
    # Sorted as torchvision's ImageFolder sorts: by the folder's path, then by name.
    for parent, name, status in sorted(found, key=lambda item: item[:2]):
        path = f"{parent}/{name}"
        below = path[len(root) + 1 :]
        inner = below.split("/")
        # Paths stay strings here, without pathlib: a data set may have a million of them.
        if os.path.islink(path) and not os.path.realpath(path).startswith(f"{real}/"):  # noqa: PTH114
            links.append(below)
        if stat.S_ISDIR(status.st_mode):
            if len(inner) == 1:
                seen.folders.append(name)
                seen.images[name], seen.inner[name] = [], set()
            continue
        ending = os.path.splitext(name)[1].lower() if stat.S_ISREG(status.st_mode) else "no plain file"  # noqa: PTH122
        if ending not in taken:
            seen.others.setdefault(ending or "no ending", []).append(below)
        elif len(inner) == 1:
            loose.append(below)
        else:
            seen.images[inner[0]].append(path)
            seen.inner[inner[0]].add(inner[1] if len(inner) > 2 else "")
    for ending, paths in seen.others.items():
        request.oddities.add(f"{folder.name}: files passed over, {ending}", *paths)
    nested = [f"{name}/{sub}" for name in seen.folders for sub in sorted(seen.inner[name] - {""})]
    for what, paths in (
        ("images passed over, because they lie in no class folder", loose),
        ("folders in class folders, whose images count for the class", nested),
        ("class folders without images", [name for name in seen.folders if not seen.images[name]]),
        ("links that lead out of the folder, followed", links),
    ):
        if paths:
            request.oddities.add(f"{folder.name}: {what}", *paths)
    return seen


def _refuse_another_level(request: Request, folder: Path, seen: _Seen) -> None:
    """Raise `TaskError` if the class folders seem to lie one level deeper than `folder`."""
    with_images = [name for name in seen.folders if seen.images[name]]
    for name in with_images:
        inner = seen.inner[name]
        # One folder of several folders of images, or one that is called like a part of a data set.
        if "" not in inner and (name.lower() in _PARTS or (len(with_images) == 1 and len(inner) > 1)):
            raise TaskError(
                f"task {request.task!r}: {shown(folder / name)} would be a class, but its images lie in the folders "
                f"{', '.join(sorted(inner)[:5])}{', …' if len(inner) > 5 else ''}, which look like the classes: the "
                f"class folders are one level too deep, so move them into {folder}, or name the folder in the option "
                f"'train' or 'test'"
            )


def _labels_by_folder(
    request: Request, folder: Path, folders: Sequence[str], classes: Sequence[str] | None
) -> dict[str, int]:
    """The label of each class folder; `TaskError` if one is not among the declared classes, or two are the same."""
    if classes is None:
        return {name: label for label, name in enumerate(folders)}
    places = {composed(name): label for label, name in enumerate(classes)}
    found: dict[str, int] = {}
    for name in folders:
        label = places.get(composed(name), places.get(composed(humanise(name))))
        if label is None:
            raise TaskError(
                f"task {request.task!r}: {shown(folder / name)} is a class that the task does not have: "
                f"{nearest(name, classes)}; rename or remove it"
            )
        if label in found.values():
            raise TaskError(
                f"task {request.task!r}: two folders in {folder} are the class {classes[label]!r}, expected one: put "
                "their images together"
            )
        found[name] = label
    return found


def _tell_of_other_parts(request: Request, train_dir: Path, test_dir: Path) -> None:
    """Tell of folders beside the training part that are called like a part of a data set and are not used."""
    beside = [
        entry.name
        for entry in sorted(train_dir.parent.iterdir())
        if entry.name.lower() in _PARTS and entry.is_dir() and not entry.samefile(train_dir)
        if not (test_dir.is_dir() and entry.samefile(test_dir))
    ]
    if beside and test_dir.is_dir():
        request.oddities.add("parts of the data set that are not used", *beside)
    elif beside:
        request.oddities.add(
            f"{test_dir.name} is missing and a fifth of {train_dir.name} is tested instead of the parts", *beside
        )
