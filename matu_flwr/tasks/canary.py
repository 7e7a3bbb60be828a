"""Canaries: a few facts about a data set, by which wrong or damaged files are noticed when it is opened.

A suite file can have a canary for each task. It holds what is known of the published set, such as ``canary: {train:
73257, test: 26032, classes: 10}``. If the author of the suite had the set, it also holds what `observe` found in it:

``names``
    The first 16 hexadecimal digits of the SHA-256 of the class names, in the order of the labels.
``labels``
    The same for all labels, training before test, in the order of the files.
``pixels``
    The colours of 4 training and 4 test images, evenly spaced over the set. For each image these are the mean red,
    green and blue of its upper half and of its lower half, in hexadecimal digits. They may differ by up to `TOLERANCE`
    levels, because versions of JPEG decoders and resizing filters differ a little. Swapped channels, inverted colours
    or other images differ by far more.
``disjoint``
    True if no image of the whole set is in both parts. Then `matu data check` reports a duplicate as an error. Without
    it a duplicate is only a warning, because some published sets do share images between their parts.

The canary of a generated task is for seed 0, whatever the seed of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict

from matu_flwr import digests
from matu_flwr.config.closed import Closed
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.sources import Images, Source, Split

# Largest difference of two mean colours, which lie in 0 .. 255.
TOLERANCE = 4
# The sampled images are decoded to this many pixels a side.
_SIZE = 32
# Sampled images of each part.
_SAMPLES = 4


class Canary(Closed):
    """Facts about a data set: expected ones in a suite file, or those that `observe` found. None or "" means unknown.

    Attributes
    ----------
    train, test : int or None
        Numbers of images in the whole set, before any cap.
    total : int or None
        Number of images in both parts together, if only that is known.
    classes : int or None
        Number of classes.
    names, labels, pixels : str
        See the module's text.
    disjoint : bool or None
        True if no image is in both parts.
    """

    model_config = ConfigDict(strict=True)

    train: int | None = None
    test: int | None = None
    total: int | None = None
    classes: int | None = None
    names: str = ""
    labels: str = ""
    pixels: str = ""
    disjoint: bool | None = None

    def described(self) -> dict[str, Any]:
        """The known facts by key, as a suite file has them."""
        return {key: value for key, value in self.model_dump().items() if value not in (None, "")}


def observe(source: Source) -> Canary:
    """Find sizes, classes, labels and colours of an opened data set. Decodes 8 images. Does not find `disjoint`."""
    train, test = source.train, source.test
    # (N_train + N_test,), little-endian on every machine, so that the digest is the same everywhere.
    labels = np.concatenate([train.labels, test.labels]).astype("<i8")
    return Canary(
        train=len(train.labels),
        test=len(test.labels),
        total=len(labels),
        classes=len(source.classes),
        names=digests.of_json(source.classes)[: digests.SHORT],
        labels=digests.of_bytes(labels.tobytes())[: digests.SHORT],
        pixels=b"".join(_looks(_sample(split)) for split in (train, test)).hex(),
    )


def verify(task: str, expected: Canary, found: Canary, where: Path | str) -> None:
    """Compare the canary of a suite with what was found.

    Parameters
    ----------
    task : str
        Name of the task, for the error.
    expected, found : Canary
        The suite's canary, and that of `observe`.
    where : Path or str
        Where the files are, for the error.

    Raises
    ------
    TaskError
        They differ. One error lists all differences.
    """
    wrong = []
    for key in ("train", "test", "total", "classes"):
        wanted, seen = getattr(expected, key), getattr(found, key)
        if wanted is not None and wanted != seen:
            what = {"classes": "classes", "total": "images"}.get(key, f"{key} images")
            wrong.append(f"expected {wanted} {what}, found {seen}")
    sizes_fit = not wrong
    for key, what in (
        ("names", "class names in the order of the labels"),
        ("labels", "labels in the order of the files"),
    ):
        wanted, seen = getattr(expected, key), getattr(found, key)
        if wanted and wanted != seen:
            wrong.append(f"expected {what} with digest {wanted}, found {seen}")
    # If the sizes differ, other images are sampled, so comparing their colours would tell nothing new.
    if sizes_fit and expected.pixels and (difference := _difference(expected.pixels, found.pixels)) > TOLERANCE:
        wrong.append(
            f"expected sampled images whose mean colours differ by at most {TOLERANCE} levels, found a difference of "
            f"{difference}"
        )
    if wrong:
        raise TaskError(
            f"task {task!r}: {where} does not hold the data set that the suite means: {'; '.join(wrong)}: put the "
            "files of that data set there (docs/data.md says which). If you want to use your own files, write a suite "
            "file with the canary that `matu data check --record` prints"
        )


def _sample(split: Split) -> Images:
    """Decode 4 evenly spaced images, with the first and the last: uint8 (4, 32, 32, 3). Fewer if there are fewer."""
    places = np.unique(np.linspace(0, len(split.labels) - 1, _SAMPLES).round().astype(np.int64))
    return split.images(places, _SIZE)


def _looks(images: Images) -> bytes:
    """Mean colours of the upper and the lower half of each image, rounded down: uint8 (n, 32, 32, 3) -> n * 6 bytes."""
    halves = images.reshape(len(images), 2, _SIZE // 2 * _SIZE, 3)
    means: Images = (halves.sum(axis=2, dtype=np.int64) // (_SIZE // 2 * _SIZE)).astype(np.uint8)
    return means.tobytes()


def _difference(expected: str, found: str) -> int:
    """Largest difference between two lists of colour levels, each in hexadecimal; 255 if they cannot be compared."""
    try:
        wanted, seen = bytes.fromhex(expected), bytes.fromhex(found)
    except ValueError:
        return 255
    if len(wanted) != len(seen):
        return 255
    return max((abs(a - b) for a, b in zip(wanted, seen, strict=True)), default=0)
