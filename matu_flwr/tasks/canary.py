"""Canaries: what a data set must look like when it is opened, so that other files do not pass for it in silence.

A suite file holds, per task, what is certain of the published set (``canary: {train: 73257, test: 26032, classes:
10}``), and for sets that were at hand while the suite was written also what `observe` saw in them:

``names``
    16 digits of a SHA-256 of the class names in the order of the labels.
``labels``
    16 digits of a SHA-256 of all labels, training before test, in the order of the files.
``pixels``
    What 4 training and 4 test images look like, evenly spaced over the set: for each the mean red, green and blue of
    the upper and of the lower half, as hexadecimal digits. They are compared within `TOLERANCE` levels, because
    decoders of JPEG and resizing filters differ in the last bits between versions; exchanged channels, an inversion or
    other images differ by far more.
``disjoint``
    True where no image of the whole set is in both parts; `matu data check` then takes a duplicate for an error. The
    published parts of other sets are known to share images, so that there it is a warning.

Generated tasks are looked at with seed 0, whatever the seed of the run.
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

TOLERANCE = 4  # levels of 255
_SIZE = 32  # pixels at which the sampled images are looked at
_SAMPLES = 4  # per part


class Canary(Closed):
    """What is expected of a data set, or was found in it; None (or empty) = not said.

    Attributes
    ----------
    train, test : int or None
        Numbers of images of the whole set, before any cap.
    total : int or None
        Both together, where only that is certain.
    classes : int or None
        Number of classes.
    names, labels, pixels : str
        See the module.
    disjoint : bool or None
        True: no image is in both parts.
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
        """Only what is said, as it stands in a suite file."""
        return {key: value for key, value in self.model_dump().items() if value not in (None, "")}


def observe(source: Source) -> Canary:
    """Look at an opened data set: sizes, classes, labels, and 8 decoded images. `disjoint` is not looked at."""
    train, test = source.train, source.test
    labels = np.concatenate([train.labels, test.labels]).astype("<i8")  # (N_train + N_test,)
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
    """Compare what is said in the suite with what was found.

    Raises
    ------
    TaskError
        One for all differences: it names the task, both values, and what to do.
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
    # with other sizes other images are sampled, and the comparison would say nothing new
    if sizes_fit and expected.pixels and (difference := _difference(expected.pixels, found.pixels)) > TOLERANCE:
        wrong.append(
            f"expected sampled images whose mean colours fit within {TOLERANCE} levels, found a difference of "
            f"{difference}"
        )
    if wrong:
        raise TaskError(
            f"task {task!r}: {where} does not hold the data set that the suite means: {'; '.join(wrong)}: put the "
            "files of the named data set there (docs/data.md says which), or, if yours are meant, give the task a "
            "suite file of its own with the canary that `matu data check --record` prints"
        )


def _sample(split: Split) -> Images:
    """Evenly spaced images, first and last among them: uint8 (4, 32, 32, 3); of a smaller part all that it has."""
    places = np.unique(np.linspace(0, len(split.labels) - 1, _SAMPLES).round().astype(np.int64))
    return split.images(places, _SIZE)


def _looks(images: Images) -> bytes:
    """Mean colours of upper and lower half, rounded down: uint8 (n, 32, 32, 3) -> n * 6 bytes."""
    halves = images.reshape(len(images), 2, _SIZE // 2 * _SIZE, 3)
    means: Images = (halves.sum(axis=2, dtype=np.int64) // (_SIZE // 2 * _SIZE)).astype(np.uint8)
    return means.tobytes()


def _difference(expected: str, found: str) -> int:
    """Largest distance of two lists of levels; 255 if they cannot be compared."""
    try:
        wanted, seen = bytes.fromhex(expected), bytes.fromhex(found)
    except ValueError:
        return 255
    if len(wanted) != len(seen):
        return 255
    return max((abs(a - b) for a, b in zip(wanted, seen, strict=True)), default=0)
