"""Loaders for images that are arrays: scikit-learn's digits, generated images, and .npz files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.decoder import decode
from matu_flwr.tasks.loaders.sources import (
    Images,
    Indices,
    Request,
    Source,
    Split,
    check_labels,
    held_out,
    reading,
)


def load_sklearn_digits(request: Request) -> Source:
    """Open scikit-learn's handwritten digits. The same fifth is always held out for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # (1797, 8, 8), from 0 .. 16 to 0 .. 255
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    whole = Split(digits.target.astype(np.int64), partial(decode, lambda index: Image.fromarray(pixels[index])))
    return Source(tuple("0123456789"), *held_out(whole, 0, "sklearn-digits"))


def load_generated(request: Request) -> Source:
    """Open one family and style of `generated`. Training and test images are drawn from separate random streams."""
    from matu_flwr.tasks.loaders.generated import FAMILIES, draw_images, draw_labels

    options = request.options
    where = f"task {request.task!r}"
    if options["family"] not in FAMILIES:
        raise TaskError(f"{where}: unknown family {options['family']!r}: {nearest(options['family'], FAMILIES)}")
    family = FAMILIES[options["family"]]
    if options["style"] not in family.styles:
        raise TaskError(
            f"{where}: family {options['family']!r} has no style {options['style']!r}: "
            f"{nearest(options['style'], family.styles)}"
        )

    def split(part: str) -> Split:
        if options[part] < len(family.classes):
            raise TaskError(f"{where}: option {part!r} is {options[part]}, expected at least one image per class")
        names = ("generated", request.task, part)
        labels = draw_labels(family, options[part], generator(request.seed, *names, "labels"))

        def images(indices: Indices, size: int) -> Images:
            # All images are drawn, whatever the indices: an image depends on the random numbers drawn before it.
            everything = draw_images(family, options["style"], labels, size, generator(request.seed, *names, "images"))
            return everything[indices]  # (options[part], S, S, 3) -> (n, S, S, 3)

        return Split(labels, images)

    return Source(family.classes, split("train"), split("test"))


def generated_signature(request: Request) -> object:
    """Return the version of the drawings. They depend on nothing else but the options, the seed and the image size."""
    from matu_flwr.tasks.loaders.generated import VERSION

    return VERSION


def load_npz(request: Request) -> Source:
    """Open a .npz file with the arrays x_train, y_train, classes, and optionally x_test and y_test."""
    path = request.path
    # The file is opened here and not by numpy, which does not close a file that turns out not to be a zip archive.
    with (
        reading(request, path, "a numpy .npz file"),
        path.open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        needed = ["x_train", "y_train", "classes"] + (["y_test"] if "x_test" in archive else [])
        for key in needed:
            if key not in archive:
                raise TaskError(
                    f"task {request.task!r}: {path} has no array {key!r} (found {', '.join(sorted(archive.files))}), "
                    "expected x_train, y_train, x_test, y_test and classes: rename or add it"
                )
        classes = tuple(str(name) for name in archive["classes"])
        splits = [_npz_split(request, archive, part, classes) for part in ("train", "test") if f"x_{part}" in archive]
    return Source(classes, *(splits if len(splits) == 2 else held_out(splits[0], 0, request.task)))


def _npz_split(request: Request, archive: Mapping[str, npt.NDArray[Any]], part: str, classes: tuple[str, ...]) -> Split:
    images, labels = archive[f"x_{part}"], archive[f"y_{part}"]
    where = f"task {request.task!r}: {request.path}"
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
        raise TaskError(
            f"{where}: x_{part} is {images.dtype} of shape {images.shape}, expected uint8 (N, H, W) or (N, H, W, 3): "
            "store it in that form"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise TaskError(
            f"{where}: y_{part} is {labels.dtype} of shape {labels.shape}, expected one integer for each of the "
            f"{len(images)} images of x_{part}"
        )
    checked = check_labels(request, f"{request.path}, y_{part}", labels.astype(np.int64), classes)
    return Split(checked, partial(decode, lambda index: Image.fromarray(images[index])))
