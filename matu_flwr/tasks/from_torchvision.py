"""Tasks from the classes of `torchvision.datasets`, from files that are there already: nothing is downloaded."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from matu_flwr.tasks.cache import digest
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.sources import Request, Source, Split, check_labels, decode, file_signature, held_out, reading

GTSRB_CLASSES = (
    "20 km/h speed limit",
    "30 km/h speed limit",
    "50 km/h speed limit",
    "60 km/h speed limit",
    "70 km/h speed limit",
    "80 km/h speed limit",
    "end of 80 km/h speed limit",
    "100 km/h speed limit",
    "120 km/h speed limit",
    "no passing",
    "no passing for vehicles over 3.5 tons",
    "right-of-way at the next intersection",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no vehicles over 3.5 tons",
    "no entry",
    "general caution",
    "dangerous curve to the left",
    "dangerous curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road work",
    "traffic signals",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "beware of ice and snow",
    "wild animals crossing",
    "end of all speed and passing limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "go straight or right",
    "go straight or left",
    "keep right",
    "keep left",
    "roundabout mandatory",
    "end of no passing",
    "end of no passing for vehicles over 3.5 tons",
)
_DIGITS = tuple("0123456789")
_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


@dataclass(frozen=True)
class _Torchvision:
    """How one class of `torchvision.datasets` is opened without a download.

    Attributes
    ----------
    classes : tuple of str
        Class names in the order of the labels, in words.
    train, test : dict
        Keyword arguments of the two splits; no `test` if the class has none.
    labels : str
        The attribute with the labels of all examples.
    files : tuple of str
        Files that must be there, below root.
    idx : bool
        The files are MNIST's IDX files, which may also be there as ``.gz``.
    """

    classes: tuple[str, ...]
    train: dict[str, Any]
    test: dict[str, Any] | None
    labels: str
    files: tuple[str, ...]
    idx: bool = False


def _mnist_like(name: str, classes: tuple[str, ...]) -> _Torchvision:
    files = tuple(f"{name}/raw/{file}" for file in _IDX_FILES)
    return _Torchvision(classes, {"train": True}, {"train": False}, "targets", files, idx=True)


_TORCHVISION = {
    "MNIST": _mnist_like("MNIST", _DIGITS),
    "FashionMNIST": _mnist_like("FashionMNIST", _FASHION),
    "KMNIST": _mnist_like("KMNIST", _KUZUSHIJI),
    "USPS": _Torchvision(_DIGITS, {"train": True}, {"train": False}, "targets", ("usps.bz2", "usps.t.bz2")),
    "SEMEION": _Torchvision(_DIGITS, {}, None, "labels", ("semeion.data",)),
    "GTSRB": _Torchvision(
        GTSRB_CLASSES,
        {"split": "train"},
        {"split": "test"},
        "_samples",  # (path, label) pairs; torchvision has no public way to the labels but to decode every image
        ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
    ),
}


def load_torchvision(request: Request) -> Source:
    """Open one of torchvision's data sets, after a look whether its files are there."""
    name = request.options["dataset"]
    if name not in _TORCHVISION:
        raise TaskError(
            f"task {request.task!r}: dataset {name!r} is not among torchvision's classes that are read here, "
            f"{nearest(name, _TORCHVISION)}; others can be read with the loaders 'folder' and 'npz'"
        )
    recipe = _TORCHVISION[name]
    root = request.path
    for file in recipe.files:
        if not (root / file).exists() and not (recipe.idx and (root / f"{file}.gz").exists()):
            raise TaskError(
                f"task {request.task!r}: {root / file} is missing, expected there by torchvision's {name}"
                f"{' (or the same with .gz)' if recipe.idx else ''}: put it there, or set the task's path or "
                "MATU_DATA_DIR to where it is"
            )
    if recipe.idx:
        root = _unpacked(request, root, recipe.files)
    train = _torchvision_split(request, root, recipe, recipe.train)
    if recipe.test is None:
        return Source(recipe.classes, *held_out(train, 0, name))
    return Source(recipe.classes, train, _torchvision_split(request, root, recipe, recipe.test))


def _torchvision_split(request: Request, root: Path, recipe: _Torchvision, arguments: dict[str, Any]) -> Split:
    from matu_flwr._torchvision import ensure_importable

    ensure_importable()
    from torchvision import datasets

    name = request.options["dataset"]
    where = f"{root} ({', '.join(f'{key}={value!r}' for key, value in arguments.items()) or 'all'})"
    expected = f"the files of torchvision's {name} ({', '.join(recipe.files)})"
    with reading(request, where, expected):
        dataset = getattr(datasets, name)(root, download=False, **arguments)
        targets = getattr(dataset, recipe.labels)
    labels = np.array([target[1] if isinstance(target, tuple) else int(target) for target in targets], dtype=np.int64)
    if name == "GTSRB" and arguments["split"] == "train":
        _check_gtsrb_folders(request, targets)

    def open_image(index: int) -> Image.Image:
        target = targets[index]
        with reading(request, target[0] if isinstance(target, tuple) else f"{where}, example {index}", "an image"):
            image: Image.Image = dataset[index][0]
            return image

    return Split(check_labels(request, where, labels, recipe.classes), partial(decode, open_image))


def _unpacked(request: Request, root: Path, files: Sequence[str]) -> Path:
    """Check the IDX files; where one is only there as .gz, unpack all into the cache and return the folder there."""
    if all((root / file).exists() for file in files):
        for file in files:
            _check_idx(request, root / file)
        return root
    target_root = request.cache_dir / "unpacked" / f"{request.task}-{digest(file_signature(root))}"
    for file in files:
        target, plain, packed = target_root / file, root / file, root / f"{file}.gz"
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent)
        try:
            with (
                reading(request, plain if plain.exists() else packed, "an IDX file of MNIST's kind"),
                plain.open("rb") if plain.exists() else gzip.open(packed) as source,
                os.fdopen(handle, "wb") as sink,
            ):
                shutil.copyfileobj(source, sink)
            _check_idx(request, Path(temporary), packed)
            Path(temporary).replace(target)  # two processes may do this at once: both bring the same file
        finally:
            Path(temporary).unlink(missing_ok=True)
    return target_root


def _check_idx(request: Request, file: Path, origin: Path | None = None) -> None:
    """Compare the length of an IDX file with what its header says; torchvision's own message would name no file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = stream.read(16)
    axes = header[3] if header[:3] == b"\x00\x00\x08" else 0  # two zeros, 8 = unsigned byte, number of axes
    if axes not in (1, 3) or len(header) < 4 + 4 * axes:
        raise TaskError(
            f"task {request.task!r}: {origin or file} is no IDX file of bytes (it starts with {header[:4].hex(' ')!r}, "
            "expected '00 00 08 01' or '00 00 08 03'): replace it by an undamaged copy"
        )
    shape = struct.unpack(f">{axes}I", header[4 : 4 + 4 * axes])
    expected = 4 + 4 * axes + int(np.prod(shape, dtype=np.int64))
    if size != expected:
        raise TaskError(
            f"task {request.task!r}: {origin or file} is damaged: its header promises shape {shape}, {expected} bytes, "
            f"but {size} bytes were found: replace it by an undamaged copy"
        )


def _check_gtsrb_folders(request: Request, samples: Sequence[tuple[str, int]]) -> None:
    """Torchvision numbers the class folders as it finds them: without 00000 every label would be off by one."""
    for path, label in samples:
        folder = Path(path).parent
        if folder.name != f"{label:05d}":
            raise TaskError(
                f"task {request.task!r}: {folder} is class folder number {label} of GTSRB's training images, expected "
                f"the folders 00000, 00001, ... without a gap: put {label:05d} back"
            )
