"""Where images come from: one loader per kind of source, none of which downloads anything.

Options of each loader (``options:`` of a task in a suite file):

``sklearn-digits``
    None. Scikit-learn's 1797 handwritten digits, 8 x 8; a fixed fifth of them is the test set.
``generated``
    `family` and `style` of `matu_flwr.tasks.loaders.generated`; `train` and `test`, numbers of images (480 and 200).
``torchvision``
    `dataset`: name of a class of `torchvision.datasets`; `path`: the folder that torchvision calls root (default: the
    task's name). `train`, `test`: keyword arguments of the class for each part, as a mapping, or a list of mappings
    whose parts are joined; for the classes in `matu_flwr.tasks.loaders.torchvision_classes` they are known. Without a
    test part a fifth is held out. `classes`: class names in the order of the labels, instead of the shipped ones or
    the files'. MNIST-like files may be ``.gz``: they are unpacked into the cache folder.
``folder``
    `path` (default: the task's name) with ``train/<class>/*`` and ``test/<class>/*``, read with torchvision's
    ImageFolder; without ``test`` a fifth of ``train`` is held out. `train`, `test`: other names of the two folders.
    `classes`: mapping of folder name to class name; the other folders' names are turned into words by
    `matu_flwr.tasks.prompts.humanise`.
``hub``
    A data set of the Hugging Face Hub, as parquet files ``train*.parquet`` and ``test*.parquet`` in or below `path`
    (default: the task's name): `matu data prepare` puts them there, or you. `dataset`, `config`, `revision`: its name
    on the Hub (none for local files alone); `train`, `test`: names of its splits (``test: ""`` = hold out a fifth);
    `image`, `label`: names of the columns. `classes`: class names in the order of the labels, where the files have
    none. Needs the extra ``hub``.
``npz``
    `path` of a file with x_train, y_train, x_test, y_test (uint8 images (N, H, W) or (N, H, W, 3), integer labels) and
    `classes`; without x_test a fifth is held out.

A `path` is relative to the data folder, or absolute. A split that the files do not make is drawn once and for all: it
belongs to the data set, not to the seed of a run.
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
    """A kind of source.

    Attributes
    ----------
    options : dict of str to Any
        Known options with their defaults; `REQUIRED` where there is none. A list may be given as one mapping.
    signature : callable
        What identifies the content for the cache: file sizes and times, or a version. Must be cheap.
    load : callable
        Opens the data set and looks it over, without decoding images.
    """

    options: dict[str, Any]
    signature: Callable[[Request], Any]
    load: Callable[[Request], Source]


REQUIRED: Any = object()


def check_options(task: str, loader: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` with the defaults of `loader` filled in; refuse what it does not know.

    Raises
    ------
    TaskError
        For an unknown loader, an unknown or missing option, or a value of another type than the default's.
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
        kind = str if known[key] is REQUIRED else type(known[key])
        if kind is list and isinstance(value, Mapping) and key != "classes":
            filled[key] = [value]
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TaskError(f"task {task!r}: option {key!r} is {value!r}, expected {kind.__name__}")
        if key == "classes":
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
        {"dataset": REQUIRED, "path": "", "train": [], "test": [], "classes": []},
        lambda request: file_signature(request.path),
        load_torchvision,
    ),
    "folder": Loader(
        {"path": "", "train": "train", "test": "test", "classes": {}},
        lambda request: file_signature(request.path),
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
        },
        lambda request: file_signature(request.path),
        load_hub,
    ),
    "npz": Loader({"path": REQUIRED}, lambda request: file_signature(request.path), load_npz),
}
