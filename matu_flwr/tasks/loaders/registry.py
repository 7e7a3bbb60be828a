"""The loaders by name, and their options. Each reads one kind of source. None of them downloads anything.

These are the options of each loader, the key ``options`` of a task in a suite file:

``sklearn-digits``
    No options. Scikit-learn's 1797 handwritten digits of 8 x 8 pixels. The same fifth of them is always the test set.
``generated``
    Images drawn by `matu_flwr.tasks.loaders.generated`. `family` and `style` are two of its names. `train` and `test`
    are numbers of images (480 and 200 by default).
``torchvision``
    A data set of torchvision. `dataset` is the name of a class of `torchvision.datasets`, and `path` the folder that
    torchvision calls root (by default the task's name). `train` and `test` are the keyword arguments with which the
    class opens each part: a mapping, or a list of mappings whose images are joined. They can be left out for the
    classes in `matu_flwr.tasks.loaders.torchvision_classes`. If there is no test part, a fifth is held out. `classes`
    has class names in the order of the labels, if those that are shipped or in the files are not wanted. Files of
    MNIST's kind may be packed as ``.gz``: they are unpacked into the cache folder.
``folder``
    Folders of images. `path` (by default the task's name) has ``train/<class>/*`` and ``test/<class>/*``. If there is
    no ``test``, a fifth of ``train`` is held out. `train` and `test` are other names for these two folders. `classes`
    is a list of all classes in the order of the labels: some may have no folder, and no other folder is allowed. Or it
    maps names of class folders to class names. Names of the other folders are turned into words by
    `matu_flwr.tasks.prompts.humanise`.
``hub``
    A data set of the Hugging Face Hub, as files ``train*.parquet`` and ``test*.parquet`` in or below `path` (by default
    the task's name). You put them there, or `matu data prepare` does. For that `dataset`, `config` and `revision` name
    the data set on the Hub. `train` and `test` are the names of its splits; ``test: ""`` means that a fifth is held
    out. `image` and `label` are names of columns. `classes` has class names in the order of the labels, if the files
    have none. This loader needs the extra ``hub``.
``npz``
    A .npz file at `path` with the arrays x_train, y_train, x_test, y_test and classes. Images are numbers, (N, H, W) or
    (N, H, W, C) with C = 1, 3 or 4; `matu_flwr.tasks.loaders.decoder.eight_bits` says how they become levels. Labels
    are whole numbers, or class names. If there is no x_test, a fifth is held out.

All loaders that read files have the option ``skip-broken``: true leaves images out that cannot be read, and tells how
many. By default such an image is an error.

A `path` is absolute, or relative to the data folder. A fifth that is held out does not depend on the seed of a run: it
is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.arrays import generated_signature, load_generated, load_npz, load_sklearn_digits
from matu_flwr.tasks.loaders.folder import load_folder
from matu_flwr.tasks.loaders.hub import load_hub
from matu_flwr.tasks.loaders.sources import Request, Source, file_signature
from matu_flwr.tasks.loaders.torchvision import load_torchvision


@dataclass(frozen=True)
class Loader:
    """How one kind of source is read.

    Attributes
    ----------
    options : dict of str to Any
        Known options with their defaults; `REQUIRED` for an option without one. For an option whose default is a list,
        a single mapping may be given.
    signature : callable
        Gives what tells this content from other content in the cache: sizes and times of files, or a version. It is
        called at every start, so it must be fast.
    load : callable
        Opens and checks the data set, without decoding its images.
    """

    options: dict[str, Any]
    signature: Callable[[Request], Any]
    load: Callable[[Request], Source]


REQUIRED: Any = object()
"""Stands in the place of a default, for an option that must be given."""

SKIP_BROKEN = "skip-broken"
# The options of all loaders that read files.
_FILES = {SKIP_BROKEN: False}


def check_options(task: str, loader: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a task, and add the loader's defaults for those that are not given.

    Raises
    ------
    TaskError
        The loader or an option is unknown, a required option is missing, or a value has the wrong type.
    """
    if loader not in LOADERS:
        raise TaskError(f"task {task!r}: unknown loader {loader!r}: {nearest(loader, LOADERS)}")
    known = LOADERS[loader].options
    for key in options:
        if key not in known:
            raise TaskError(f"task {task!r}: loader {loader!r} has no option {key!r}: {nearest(str(key), known)}")
    filled = {**known, **options}
    for key, value in filled.items():
        if value is REQUIRED:
            raise TaskError(f"task {task!r}: loader {loader!r} needs the option {key!r}")
        kind: Any = str if known[key] is REQUIRED else type(known[key])
        if kind is bool:
            if not isinstance(value, bool):
                raise TaskError(f"task {task!r}: option {key!r} is {value!r}, expected true or false")
            continue
        # A list of all classes, or other names for some folders.
        if key == "classes" and loader == "folder" and isinstance(value, list):
            kind = list
        if kind is list and isinstance(value, Mapping) and key != "classes":
            filled[key] = [value]
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TaskError(f"task {task!r}: option {key!r} is {value!r}, expected {kind.__name__}")
        if key == "classes":
            # YAML reads an unquoted 3 or yes as a number or a boolean.
            for word in [*value, *(value.values() if isinstance(value, Mapping) else ())]:
                if not isinstance(word, str):
                    raise TaskError(
                        f"task {task!r}: option 'classes' has {word!r}, expected text: quote numbers and words such as "
                        "yes and no"
                    )
    return filled


LOADERS: dict[str, Loader] = {
    "sklearn-digits": Loader({}, lambda request: None, load_sklearn_digits),
    "generated": Loader(
        {"family": REQUIRED, "style": REQUIRED, "train": 480, "test": 200}, generated_signature, load_generated
    ),
    "torchvision": Loader(
        {"dataset": REQUIRED, "path": "", "train": [], "test": [], "classes": [], **_FILES},
        lambda request: file_signature(request.task, request.path),
        load_torchvision,
    ),
    "folder": Loader(
        {"path": "", "train": "train", "test": "test", "classes": {}, **_FILES},
        lambda request: file_signature(request.task, request.path),
        load_folder,
    ),
    "hub": Loader(
        {
            "dataset": "",
            "config": "",
            "revision": "",
            "path": "",
            "train": "train",
            "test": "test",
            "image": "image",
            "label": "label",
            "classes": [],
            **_FILES,
        },
        lambda request: file_signature(request.task, request.path),
        load_hub,
    ),
    "npz": Loader({"path": REQUIRED, **_FILES}, lambda request: file_signature(request.task, request.path), load_npz),
}
