"""Loaders for images that are arrays: scikit-learn's digits, generated images, and .npz files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.seeds import generator
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.decoder import pictures, rgb_of_array
from matu_flwr.tasks.loaders.labels import labels_of, names_in_array
from matu_flwr.tasks.loaders.sources import Images, Indices, Request, Source, Split, held_out, reading

# Whole numbers that are no larger, in all pictures of an array, are most likely not meant as levels of 0 .. 255.
_DARK = 16


def load_sklearn_digits(request: Request) -> Source:
    """Open scikit-learn's handwritten digits. The same fifth is always held out for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # (1797, 8, 8), from 0 .. 16 to 0 .. 255
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    whole = pictures(request, labels, lambda index: f"digit {index}", lambda index: rgb_of_array(pixels[index]))
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
    with reading(request, path, "a numpy .npz file"), path.open("rb") as stream:
        if not stream.read(4).startswith(b"PK"):
            stream.seek(0)
            raise ValueError(f"it is no zip archive, it begins {stream.read(24)!r}")
        stream.seek(0)
        archive = np.load(stream, allow_pickle=False)
        needed = ["x_train", "y_train", "classes"] + (["y_test"] if "x_test" in archive else [])
        for key in needed:
            if key not in archive:
                raise TaskError(
                    f"task {request.task!r}: {path} has no array {key!r} (found {', '.join(sorted(archive.files))}), "
                    "expected x_train, y_train, x_test, y_test and classes: rename or add it"
                )
        arrays = {key: _array(request, archive, key) for key in archive.files if key in (*needed, "x_test")}
    classes = names_in_array(request, f"{path}, classes", arrays["classes"])
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    for part in parts:
        _check_images(request, f"{path}, x_{part}", arrays[f"x_{part}"])
    # Over all pictures, because a dark one of 0 .. 255 may have no value above 1.
    floats = [images for part in parts if (images := arrays[f"x_{part}"]).dtype.kind == "f"]
    unit = all(images.min(initial=0) >= 0 and images.max(initial=0) <= 1 for images in floats)
    splits = [_npz_split(request, arrays, part, classes, unit) for part in parts]
    return Source(classes, *(splits if len(splits) == 2 else held_out(splits[0], 0, request.task)))


def _array(request: Request, archive: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    """Read one array of an archive. `TaskError` if it holds Python objects, or is no array."""
    named = f"task {request.task!r}: {request.path}, {key}"
    try:
        array = archive[key]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise TaskError(
            f"{named} holds Python objects, which can run code when they are read, expected numbers or text: save it "
            f"as {key}.astype(str), or as one array of numbers"
        ) from None
    if not isinstance(array, np.ndarray):
        raise TaskError(f"{named} is no numpy array, it begins {array[:24]!r}: write the file with numpy.savez")
    return array


def _check_images(request: Request, where: str, images: npt.NDArray[Any]) -> None:
    """Raise `TaskError` if an array does not hold pictures: its type, its shape, or values that are no levels."""
    found = f"task {request.task!r}: {where} is {images.dtype} of shape {images.shape}"
    expected = "expected numbers (N, H, W) or (N, H, W, C) with C = 1, 3 or 4"
    if images.dtype.kind not in "buif":
        raise TaskError(f"{found}, {expected}: store it in that form")
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))):
        channels_first = images.ndim == 4 and images.shape[1] in (1, 3, 4)
        advice = "turn it by x.transpose(0, 2, 3, 1)" if channels_first else "store it in that form"
        raise TaskError(f"{found}, {expected}: {advice}")
    if 0 in images.shape[1:]:
        raise TaskError(f"{found}, expected pictures of at least one pixel")
    most = images.max(initial=0)
    if images.dtype.kind in "ui" and 0 < most <= _DARK and images.min(initial=0) >= 0:
        request.oddities.add(f"{where} has no level above {most} of 255, so the pictures are nearly black: scale them")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        row = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))[0])
        raise TaskError(
            f"{found} and has NaN or infinity in picture {row}, counted from 0, expected levels of brightness: replace "
            "or remove it"
        )


def _npz_split(
    request: Request, arrays: Mapping[str, npt.NDArray[Any]], part: str, classes: tuple[str, ...], unit: bool
) -> Split:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    where = f"{request.path}, y_{part}"
    # Some programs store labels as a column, (N, 1).
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),):
        advice = "; if its rows are one-hot, turn them into numbers by y.argmax(axis=1)" if labels.ndim == 2 else ""
        raise TaskError(
            f"task {request.task!r}: {request.path}: y_{part} is {labels.dtype} of shape {labels.shape}, expected one "
            f"label for each of the {len(images)} images of x_{part}{advice}"
        )
    found = labels_of(request, where, labels.tolist(), classes, {name: label for label, name in enumerate(classes)})
    return pictures(
        request,
        found,
        lambda index: f"{request.path}, x_{part}, picture {index}",
        lambda index: rgb_of_array(images[index], unit=unit),
    )
