"""The loader for the classes of `torchvision.datasets`. It reads files that are already there and downloads nothing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.decoder import pictures, read_image, reading_image, to_rgb
from matu_flwr.tasks.loaders.idx_files import unpacked
from matu_flwr.tasks.loaders.labels import labels_of
from matu_flwr.tasks.loaders.sources import Labels, Request, Source, Split, held_out, joined, reading
from matu_flwr.tasks.loaders.torchvision_classes import RECIPES, Recipe
from matu_flwr.tasks.prompts import humanised, written_class_names

# Attributes in which torchvision's classes keep the labels of all examples. Where only a private one has them, the
# public way would be to decode every image.
_LABELS = ("targets", "labels", "_labels", "_samples", "samples")
# Attributes in which those classes that open image files in their own way keep the paths, alone or with the label.
_PATHS = {"GTSRB": "_samples", "OxfordIIITPet": "_images"}


def load_torchvision(request: Request) -> Source:
    """Open one of torchvision's data sets, after a check that its files are there."""
    name = request.options["dataset"]
    recipe = _recipe(request)
    root = request.path
    if unpacking_mark(root, name).exists():
        raise TaskError(
            f"task {request.task!r}: unpacking into {root} was cut off, expected all files of torchvision's {name}: "
            "run `matu data prepare` again"
        )
    for file in recipe.files:
        if not any((root / f"{one}{end}").exists() for one in file.split(" | ") for end in _ends(recipe)):
            raise TaskError(
                f"task {request.task!r}: {root / file} is missing, expected there by torchvision's {name}"
                f"{' (or the same with .gz)' if recipe.idx else ''}: put it there, or set the task's path or "
                "MATU_DATA_DIR to where it is"
            )
    if recipe.package and importlib.util.find_spec(recipe.package) is None:
        raise TaskError(
            f"task {request.task!r}: torchvision's {name} reads its files with the package {recipe.package}, which is "
            f"not installed: pip install {recipe.package}"
        )
    if recipe.idx:
        root = unpacked(request, root, recipe.files)
    parts = [_Part(request, root, recipe, arguments) for arguments in (*recipe.train, *recipe.test)]
    classes = _class_names(request, parts[0])
    splits = [part.split(classes) for part in parts]
    train = joined(splits[: len(recipe.train)])
    if not recipe.test:
        return Source(classes, *held_out(train, 0, name))
    return Source(classes, train, joined(splits[len(recipe.train) :]))


def unpacking_mark(root: Path, name: str) -> Path:
    """Path of a file that exists only while archives of a torchvision class are being unpacked.

    If it is there later, unpacking was interrupted.
    """
    return root / f".unpacking-{name}"


def _ends(recipe: Recipe) -> tuple[str, ...]:
    """Endings that a file of this class may have."""
    return ("", ".gz") if recipe.idx else ("",)


def _recipe(request: Request) -> Recipe:
    """How the class is opened: as `RECIPES` says, but with the suite's training and test parts if it gives some."""
    from matu_flwr._torchvision import ensure_importable

    ensure_importable()
    from torchvision import datasets

    name, options = request.options["dataset"], request.options
    if name == "Omniglot":
        raise TaskError(
            f"task {request.task!r}: torchvision numbers Omniglot's characters in the order in which the disk lists "
            "them, so labels would differ between nodes: copy the images into one folder per character and use the "
            "loader 'folder'"
        )
    if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name)):
        raise TaskError(
            f"task {request.task!r}: dataset {name!r} is not among the classes of torchvision.datasets, "
            f"{nearest(name, RECIPES)}; others can be read with the loaders 'folder', 'npz' and 'hub'"
        )
    for key in ("train", "test"):
        for arguments in options[key]:
            if not isinstance(arguments, Mapping):
                raise TaskError(
                    f"task {request.task!r}: option {key!r} holds {arguments!r}, expected keyword arguments of "
                    f"torchvision's {name} such as {{split: train}}"
                )
    if name not in RECIPES and not options["train"]:
        raise TaskError(
            f"task {request.task!r}: the parts of torchvision's {name} are not known here: give its keyword arguments, "
            "e.g. options: {train: {split: train}, test: {split: test}}"
        )
    if options["test"] and not options["train"]:
        raise TaskError(
            f"task {request.task!r}: option 'test' without 'train': the usual training part of torchvision's {name} "
            "may share images with it, so give both"
        )
    known = RECIPES.get(name, Recipe((), (), ()))
    return Recipe(
        tuple(options["train"]) or known.train,
        tuple(options["test"]) if options["train"] else known.test,
        known.files,
        known.idx,
        known.package,
    )


class _Part:
    """One part of a data set as torchvision opens it, with all labels read. Images are decoded when they are needed."""

    def __init__(self, request: Request, root: Path, recipe: Recipe, arguments: Mapping[str, Any]) -> None:
        from torchvision import datasets

        self.request, self.arguments = request, arguments
        name = request.options["dataset"]
        self.where = f"{root} ({', '.join(f'{key}={value!r}' for key, value in arguments.items()) or 'all'})"
        cls = getattr(datasets, name)
        # MNIST and the classes derived from it take `download`, also where their signature does not list it.
        known = inspect.signature(cls.__init__).parameters
        if "download" in known or issubclass(cls, datasets.MNIST):
            arguments = {**arguments, "download": False}
        # Image files go through the one decoder. Classes derived from ImageFolder pass `loader` on.
        if "loader" in known or issubclass(cls, datasets.ImageFolder):
            arguments = {**arguments, "loader": self._opened}
        try:
            inspect.signature(cls).bind(root, **arguments)
        except TypeError as error:
            raise TaskError(
                f"task {request.task!r}: torchvision's {name} does not take {dict(self.arguments)} ({error}), expected "
                "keyword arguments of it: correct the options 'train' and 'test'"
            ) from None
        expected = f"the files of torchvision's {name}{f' ({files})' if (files := ', '.join(recipe.files)) else ''}"
        with reading(request, self.where, expected):
            self.dataset = cls(root, **arguments)
            self.targets = self._targets(root)
        # torchvision lists the files of SUN397 in the order in which the disk gives them. Sorting makes it the same on
        # all machines.
        self.order = np.arange(len(self.targets))
        if name == "SUN397":
            self.order = np.argsort([path.as_posix() for path in self.dataset._image_files], kind="stable")

    def _opened(self, path: str | Path) -> Image.Image:
        with reading_image(self.request, str(path)):
            return read_image(path, self.request.oddities, str(path))

    def _targets(self, root: Path) -> Sequence[Any]:
        # torchvision's PCAM opens its file of labels anew for every example. Here all labels are read at once.
        if self.request.options["dataset"] == "PCAM":
            h5py: Any = importlib.import_module("h5py")

            file = root / "pcam" / self.dataset._FILES[self.arguments["split"]]["targets"][0]
            with h5py.File(file) as content:
                return list(np.asarray(content["y"]).reshape(-1))
        for attribute in _LABELS:
            if (targets := getattr(self.dataset, attribute, None)) is not None:
                return list(targets)
        # The class has no list of labels, so every example is decoded for its label.
        return [self.dataset[index][1] for index in range(len(self.dataset))]

    def _labels(self, classes: tuple[str, ...]) -> Labels:
        numbers = [target[1] if isinstance(target, tuple) else target for target in self.targets]
        if any(number is None for number in numbers):
            raise TaskError(
                f"task {self.request.task!r}: {self.where} has no labels, expected one for each image: put the "
                "file that has labels there (for FER2013 fer2013.csv or icml_face_data.csv)"
            )
        # EMNIST's files number the letters from 1.
        if self.request.options["dataset"] == "EMNIST" and self.arguments["split"] == "letters":
            numbers = [number - 1 for number in numbers]
        return labels_of(self.request, self.where, numbers, classes, {})

    def split(self, classes: tuple[str, ...]) -> Split:
        name, labels = self.request.options["dataset"], self._labels(classes)
        if len(self.dataset) != len(labels):
            raise TaskError(
                f"task {self.request.task!r}: {self.where} has {len(self.dataset)} images and {len(labels)} "
                "labels, expected as many of each: replace the files by undamaged copies"
            )
        if name == "GTSRB" and self.arguments["split"] == "train":
            _check_gtsrb_folders(self.request, self.targets)
        paths = getattr(self.dataset, _PATHS[name]) if name in _PATHS else None

        def where(index: int) -> str:
            target = self.targets[index]
            return str(target[0]) if isinstance(target, tuple) else f"{self.where}, example {index}"

        def opened(index: int) -> Image.Image:
            if paths is not None:
                return self._opened(paths[index][0] if isinstance(paths[index], tuple) else paths[index])
            image: Image.Image = self.dataset[index][0]
            # EMNIST's files have images with rows and columns swapped, and torchvision does not swap them back.
            return to_rgb(image.transpose(Image.Transpose.TRANSPOSE) if name == "EMNIST" else image)

        return pictures(self.request, labels, where, opened).part(self.order)


def _class_names(request: Request, part: _Part) -> tuple[str, ...]:
    """The class names: those of the suite file, else those of class_names.yaml, else those of the files, as words."""
    name = request.options["dataset"]
    found = [item[0] if isinstance(item, tuple) else str(item) for item in getattr(part.dataset, "classes", ())]
    written = request.options["classes"] or written_class_names().get(name)
    if name == "EMNIST":
        written = written or [letter for letter in found if letter != "N/A"]
    # A mapping goes from the names of the class folders to words. torchvision numbers the folders that it finds, so a
    # missing or additional one would shift the labels.
    if isinstance(written, Mapping):
        if found != list(written):
            missing, strange = sorted(set(written) - set(found)), sorted(set(found) - set(written))
            raise TaskError(
                f"task {request.task!r}: {part.where} has other class folders than torchvision's {name}: missing "
                f"{missing or 'none'}, not expected {strange or 'none'}: labels would be shifted, so put them right"
            )
        return tuple(written.values())
    if written:
        return tuple(str(word) for word in written)
    if not found:
        raise TaskError(
            f"task {request.task!r}: torchvision's {name} has no class names: give them in the order of the labels, "
            "options: {classes: [...]}"
        )
    return humanised(found)


def _check_gtsrb_folders(request: Request, samples: Sequence[tuple[str, int]]) -> None:
    """Check that no class folder of GTSRB is missing.

    torchvision numbers the folders that it finds, so without 00000 every label would be wrong by one.
    """
    for path, label in samples:
        folder = Path(path).parent
        if folder.name != f"{label:05d}":
            raise TaskError(
                f"task {request.task!r}: {folder} is class folder number {label} of GTSRB's training images, expected "
                f"the folders 00000, 00001, ... without a gap: put {label:05d} back"
            )
