"""The loader for parquet files, as data sets on the Hugging Face Hub are published. It downloads nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.decoder import pictures, read_image
from matu_flwr.tasks.loaders.labels import labels_of, words_of
from matu_flwr.tasks.loaders.sources import Request, Source, Split, held_out, reading
from matu_flwr.tasks.prompts import humanised


def hub_package(task: str) -> Any:
    """Import the package `datasets`. If it is missing, the error says what to install."""
    try:
        import datasets
    except ImportError:
        raise TaskError(
            f"task {task!r}: the loader 'hub' needs the package datasets, which is not installed: "
            "pip install 'matu-flwr[hub]'"
        ) from None
    return datasets


def load_hub(request: Request) -> Source:
    """Open the parquet files of both parts. If there is no test part, a fifth is held out."""
    options, package = request.options, hub_package(request.task)
    if options["test"] and request.path.is_file():
        raise TaskError(
            f"task {request.task!r}: {request.path} is one file and would be both training and test part: set the "
            'option `test: ""` to have a fifth held out, or give a folder with a file for each part'
        )
    train = _rows(request, package, options["train"])
    classes = _class_names(request, train)
    if not options["test"]:
        return Source(classes, *held_out(_split(request, train, options["train"], classes), 0, request.task))
    test = _rows(request, package, options["test"])
    expected, found = (getattr(rows.features[options["label"]], "names", None) for rows in (train, test))
    if expected and found and expected != found:
        raise TaskError(
            f"task {request.task!r}: the test part has the classes {found[:8]}, expected {expected[:8]}, as in the "
            "training part: write both with the same class names"
        )
    return Source(
        classes, *(_split(request, rows, options[part], classes) for part, rows in (("train", train), ("test", test)))
    )


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Find the files of a split in or below a folder.

    They are called ``<split>.parquet``, or as on the Hub ``<split>-00000-of-00002.parquet``.
    """
    return sorted({*folder.rglob(f"{split}.parquet"), *folder.rglob(f"{split}-*.parquet")})


def _check_files(task: str, files: list[Path]) -> None:
    """Raise `TaskError` if the files of a split are in several folders, or if some of them are missing."""
    if len({file.parent for file in files}) > 1:
        places = ", ".join(sorted({str(file.parent) for file in files}))
        raise TaskError(
            f"task {task!r}: the split is in several folders ({places}), expected one: set the option 'config' or "
            "'path'"
        )
    for file in files:
        if (pieces := re.search(r"-of-(\d+)$", file.stem)) and len(files) != int(pieces[1]):
            raise TaskError(
                f"task {task!r}: {file.parent} has {len(files)} of {int(pieces[1])} pieces of the split: put the "
                "others there"
            )


def _rows(request: Request, package: Any, split: str) -> Any:
    """Open a split as a table. Its images are not decoded."""
    options, folder = request.options, request.path
    if options["config"] and (folder / options["config"]).is_dir():
        folder = folder / options["config"]
    files = [folder] if folder.is_file() else parquet_files(folder, split)
    if not files:
        raise TaskError(
            f"task {request.task!r}: {folder} holds no file {split}.parquet or {split}-*.parquet, expected the split "
            f"{split!r} there: run `matu data prepare`, put it there, or correct the options 'train' and 'test'"
        )
    _check_files(request.task, files)
    with reading(request, folder, f"parquet files of the split {split!r}"):
        try:
            rows = package.load_dataset(
                "parquet",
                data_files=[str(file) for file in files],
                split="train",
                cache_dir=str(request.cache_dir / "hub"),
            )
        except package.exceptions.DatasetGenerationError as error:
            raise OSError(str(error.__cause__ or error)) from error
    for key in ("image", "label"):
        if options[key] not in rows.column_names:
            raise TaskError(
                f"task {request.task!r}: {files[0]} has no column {options[key]!r}: "
                f"{nearest(options[key], rows.column_names)}; set the option {key!r}"
            )
    _check_cells(request, files[0], rows)
    # The package decodes whole rows. Cells of other columns may hold paths and addresses, which it would open.
    rows = rows.select_columns(list(dict.fromkeys((options["image"], options["label"]))))
    kind = rows.features[options["label"]]
    # Lists and mappings stay, for an error that names the row. Images, sounds and films would be opened to be read.
    if hasattr(kind, "decode_example"):
        raise TaskError(
            f"task {request.task!r}: {files[0]}, column {options['label']!r} holds {type(kind).__name__}, expected one "
            "class for each image: set the option 'label' to the column with the classes"
        )
    return rows.cast_column(options["image"], package.Image(decode=False))


def _check_cells(request: Request, file: Path, rows: Any) -> None:
    """Raise `TaskError` if the image column does not hold the bytes of one image file for each row.

    The package `datasets` would also take paths, and open whatever they name on this machine. It would turn lists of
    numbers into pictures.
    """
    column = request.options["image"]
    kind = rows.data.schema.field(column).type
    # As the Hub stores images: a pair of bytes and a file name.
    names = [kind.field(place).name for place in range(kind.num_fields)] if str(kind).startswith("struct") else []
    content = kind.field(names.index("bytes")).type if "bytes" in names else kind
    if str(content) not in ("binary", "large_binary"):
        raise TaskError(
            f"task {request.task!r}: {file}, column {column!r} holds {str(kind)[:200]}, expected the bytes of one "
            "image file in each row: write the images themselves into the table; paths in a table are not followed"
        )


def _class_names(request: Request, rows: Any) -> tuple[str, ...]:
    """The class names: those of the suite file, else those stored with the label column, else the labels, if words."""
    options = request.options
    if options["classes"]:
        return tuple(str(word) for word in options["classes"])
    names = getattr(rows.features[options["label"]], "names", None)
    if names:
        return humanised(names)
    return humanised(words_of(request, _column(request, options["train"]), rows[options["label"]]))


def _column(request: Request, split: str) -> str:
    return f"{request.path}, split {split!r}, column {request.options['label']!r}"


def _split(request: Request, rows: Any, split: str, classes: tuple[str, ...]) -> Split:
    values, column = list(rows[request.options["label"]]), _column(request, split)
    places = {name: label for label, name in enumerate(classes)}
    # A word may stand in the table as it is, or as the class name that was made of it.
    words = sorted({value for value in values if isinstance(value, str)})
    for word, name in zip(words, humanised(words), strict=True):
        if name in places:
            places.setdefault(word, places[name])
    labels = labels_of(request, column, values, classes, places)

    def where(index: int) -> str:
        return f"{request.path}, split {split!r}, row {index}"

    def opened(index: int) -> Image.Image:
        cell = rows[index][request.options["image"]]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError("the cell is empty")
        if cell["bytes"] is None:
            raise ValueError(f"the cell holds only the path {cell['path']!r} and no bytes; paths are not followed")
        return read_image(io.BytesIO(cell["bytes"]), request.oddities, where(index))

    return pictures(request, labels, where, opened)
