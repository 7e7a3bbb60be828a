"""Class names and labels as tables have them. What is not one class for each image is refused, never rounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from matu_flwr.names import CLASS_RULE, clashing, composed, is_class_name, repeated_class
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.sources import Labels, Oddities, Request
from matu_flwr.texts import shown

MOST_CLASSES = 100_000
"""Largest number of classes of a task. More cannot travel to the server."""

# What stands in an error in the place of a value that is longer.
_LONGEST = 60


def class_names(task: str, names: Iterable[str], oddities: Oddities) -> tuple[str, ...]:
    """Check the class names of a task, whatever loader found them, and write accents in one way only (NFC).

    Raises
    ------
    TaskError
        There is no class, there are too many, one cannot be printed, or two are the same.
    """
    found = tuple(composed(name) for name in names)
    if not 1 <= len(found) <= MOST_CLASSES:
        raise TaskError(f"task {task!r}: it has {len(found)} classes, expected 1 to {MOST_CLASSES:,}")
    for name in found:
        if not is_class_name(name):
            raise TaskError(f"task {task!r}: class {_brief(name)} cannot be named so, expected {CLASS_RULE}: rename it")
    if (twice := repeated_class(found)) is not None:
        raise TaskError(f"task {task!r}: class {twice!r} is there twice, expected every class once: rename one of them")
    if len(found) == 1:
        oddities.add(f"only one class, {found[0]!r}, so every answer is right: is a folder missing, or one too many?")
    # Allowed, because letters are a task.
    if pair := clashing(found):
        oddities.add(f"the classes {pair[0]!r} and {pair[1]!r} differ only in how they are written")
    return found


def names_in_array(request: Request, where: str, array: npt.NDArray[Any]) -> tuple[str, ...]:
    """Read the class names in an array: text, bytes of UTF-8 as h5py and MATLAB leave them, or whole numbers.

    Raises
    ------
    TaskError
        It is something else, or not a list.
    """
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise TaskError(
            f"task {request.task!r}: {where} is {array.dtype} of shape {array.shape}, expected a list of class names"
        )
    return tuple(str(_plain(request, where, row, name)) for row, name in enumerate(array.tolist()))


def words_of(request: Request, column: str, values: Sequence[Any]) -> tuple[str, ...]:
    """The different words of a label column, sorted; as numbers, if all of them are numbers.

    Raises
    ------
    TaskError
        A label is missing, or the column has numbers, which need names.
    """
    found = set()
    for row, value in enumerate(values):
        word = _plain(request, column, row, value)
        if not isinstance(word, str):
            raise TaskError(
                f"task {request.task!r}: {column} has numbers without class names: give the names in the order of the "
                "labels, options: {classes: [...]}"
            )
        found.add(word)
    numbers = all(word.isascii() and word.isdigit() for word in found)
    return tuple(sorted(found, key=lambda word: (int(word), word) if numbers else (0, word)))


def labels_of(
    request: Request, column: str, values: Iterable[Any], classes: Sequence[str], places: Mapping[str, int]
) -> Labels:
    """Read the labels of a table: whole numbers that are positions in `classes`, or words.

    Parameters
    ----------
    request : Request
        The task, for errors.
    column : str
        Where the labels stand, for errors.
    values : iterable
        One value for each image, of any type.
    classes : sequence of str
        The class names, in the order of the labels.
    places : mapping of str to int
        The label of each word.

    Returns
    -------
    ndarray of int64, shape (N,)
        The labels.

    Raises
    ------
    TaskError
        A row does not have exactly one of the classes. The text names the row.
    """
    found = []
    # As `class_names` writes them: a label may have its accents in the other way, or a space at its end.
    written = {composed(name): label for name, label in places.items()} | dict(places)
    for row, value in enumerate(values):
        label = _plain(request, column, row, value)
        if isinstance(label, str):
            place = written.get(label, written.get(composed(label)))
            if place is None:
                raise _wrong(request, column, row, _brief(label), f"one of its classes ({nearest(label, places)})")
            label = place
        found.append(label)
    if not found:
        raise TaskError(f"task {request.task!r}: {column} holds no examples, expected at least one")
    low, high = min(found), max(found)
    if low < 0 or high >= len(classes):
        row = next(row for row, label in enumerate(found) if not 0 <= label < len(classes))
        hint = "; -1 often stands for a label that is kept secret" if found[row] == -1 else ""
        raise TaskError(
            f"task {request.task!r}: {column} has labels {_brief(low)} to {_brief(high)}, expected 0 to "
            f"{len(classes) - 1} for {len(classes)} classes: correct the labels or the class names; the first such "
            f"label is {_brief(found[row])} in row {row}, counted from 0{hint}"
        )
    return np.array(found, dtype=np.int64)


def _plain(request: Request, column: str, row: int, value: Any) -> int | str:
    """One label as a whole number or as a word."""
    # A single number of numpy or torch.
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise _wrong(request, column, row, repr(value)[:_LONGEST], "text in UTF-8, or a whole number") from None
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    ):
        raise _wrong(request, column, row, "no label", "one for each image: remove the image, or give it a label")
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise _wrong(request, column, row, repr(value), "a whole number: nothing is rounded")
        return int(value)
    if isinstance(value, Sequence | Mapping) or hasattr(value, "ndim"):
        raise _wrong(
            request,
            column,
            row,
            _brief(value),
            "one class for each image: images with several labels are no task here, and one-hot rows are turned into "
            "numbers by argmax",
        )
    raise _wrong(request, column, row, f"{_brief(value)}, a {type(value).__name__}", "a whole number or a word")


def _wrong(request: Request, column: str, row: int, found: str, expected: str) -> TaskError:
    return TaskError(f"task {request.task!r}: {column} has {found} in row {row}, counted from 0; expected {expected}")


def _brief(value: object) -> str:
    text = shown(repr(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
