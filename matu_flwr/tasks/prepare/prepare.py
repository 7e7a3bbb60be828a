"""Prepares the data sets of a suite: downloads them where that is possible, and decodes their images into the cache.

If a data set cannot be downloaded, it says which files to put where. No other part of the package downloads data sets,
and this one only for `matu data prepare`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matu_flwr.files import replacing
from matu_flwr.tasks.cache import TaskData
from matu_flwr.tasks.canary import observe, verify
from matu_flwr.tasks.datasets import open_source, read_task
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.loaders.hub import hub_package, parquet_files
from matu_flwr.tasks.loaders.registry import check_options
from matu_flwr.tasks.loaders.sources import Request, reading, task_path
from matu_flwr.tasks.loaders.torchvision import unpacking_mark
from matu_flwr.tasks.loaders.torchvision_classes import RECIPES, remotes
from matu_flwr.tasks.prepare.download import Progress, fetch
from matu_flwr.tasks.suite import Suite, TaskSpec
from matu_flwr.texts import shown


@dataclass(frozen=True)
class Prepared:
    """The result of preparing one task.

    Attributes
    ----------
    task : str
        Name of the task.
    data : TaskData or None
        The decoded images and labels; None after an error.
    megabytes : float
        Size of the decoded images, in 10⁶ bytes.
    seconds : float
        Time taken, downloads included.
    error : str
        Why it failed; "" if it did not.
    to_place : str
        After an error, which files to put where; "" if the task has no files.
    """

    task: str
    data: TaskData | None
    megabytes: float
    seconds: float
    error: str = ""
    to_place: str = ""


def prepare_suite(
    suite: Suite,
    *,
    image_size: int,
    seed: int,
    data_dir: Path | None,
    cache_dir: Path,
    progress: Callable[[str, str], Progress] | None = None,
    done: Callable[[Prepared], None] | None = None,
) -> list[Prepared]:
    """Prepare one task after the other; a task that fails does not stop the others.

    Parameters
    ----------
    suite : Suite
        The tasks.
    image_size, seed, data_dir, cache_dir
        See `matu_flwr.tasks.load_task`. Files are downloaded into `data_dir`.
    progress : callable, optional
        Called before a download with the names of the task and the file. What it returns is called during the download;
        see `matu_flwr.tasks.prepare.download.Progress`.
    done : callable, optional
        Called with the result of each task as soon as it is ready.

    Returns
    -------
    list of Prepared
        In the order of the suite.
    """
    require_data_dir(suite, data_dir)
    results = []
    for spec in suite.tasks.values():
        start = time.perf_counter()
        data, error, to_place = None, "", ""
        try:
            _get(spec, data_dir, cache_dir, progress)
            data = read_task(spec, image_size=image_size, seed=seed, data_dir=data_dir, cache_dir=cache_dir)
        except TaskError as failure:
            error = str(failure)
            to_place = placement(spec, data_dir)
        size = (data.train_images.nbytes + data.test_images.nbytes) / 1e6 if data else 0.0
        results.append(Prepared(spec.name, data, size, time.perf_counter() - start, error, to_place))
        if done is not None:
            done(results[-1])
    return results


def require_data_dir(suite: Suite, data_dir: Path | None) -> None:
    """Raise `TaskError` if there is no data folder and a task needs one. One error names all such tasks."""
    needy = [
        spec.name for spec in suite.tasks.values() if (folder := folder_of(spec, None)) and not folder.is_absolute()
    ]
    if data_dir is None and needy:
        raise TaskError(
            f"suite {suite.name}: no data folder is set, expected one for the tasks {', '.join(needy)}: give "
            "--data-dir or set the environment variable MATU_DATA_DIR, or use the suite 'offline', which needs none"
        )


def folder_of(spec: TaskSpec, data_dir: Path | None) -> Path | None:
    """The folder or file where a task's data belongs; None for a task without files."""
    options = check_options(spec.name, spec.loader, spec.options)
    if "path" not in options:
        return None
    return task_path(spec.name, options["path"] or spec.name, data_dir)


def placement(spec: TaskSpec, data_dir: Path | None) -> str:
    """Say in words which files a task needs, where to put them and where they are published; "" if it needs none."""
    folder = folder_of(spec, data_dir)
    if folder is None:
        return ""
    options: dict[str, Any] = check_options(spec.name, spec.loader, spec.options)
    if spec.loader == "torchvision":
        recipe = RECIPES.get(options["dataset"])
        layout = ", ".join(recipe.files) if recipe else f"the files of torchvision's {options['dataset']}"
    elif spec.loader == "folder":
        layout = f"{options['train']}/<class>/*.jpg and {options['test']}/<class>/*.jpg (or only the first)"
    elif spec.loader == "hub":
        layout = f"{options['train']}.parquet" + (f" and {options['test']}.parquet" if options["test"] else "")
    else:
        layout = "a .npz file with x_train, y_train, x_test, y_test and classes"
    return f"{folder}: {layout}" + (f"; published: {spec.published}" if spec.published else "")


def _get(
    spec: TaskSpec, data_dir: Path | None, cache_dir: Path, progress: Callable[[str, str], Progress] | None
) -> None:
    """Make sure that a task's files are there, by a download if necessary, and that they fit the suite's canary."""
    folder = folder_of(spec, data_dir)
    try:
        source = open_source(spec, seed=0, data_dir=data_dir, cache_dir=cache_dir)
    except TaskError:
        if folder is None or not _download(spec, folder, progress):
            raise
        source = open_source(spec, seed=0, data_dir=data_dir, cache_dir=cache_dir)
    if spec.canary is not None:
        verify(spec.name, spec.canary, observe(source), folder or f"the loader {spec.loader!r}")


def _download(spec: TaskSpec, folder: Path, progress: Callable[[str, str], Progress] | None) -> bool:
    """Download a task's files. False if there is nothing to download them from."""
    if spec.loader == "hub" and spec.options.get("dataset"):
        _from_hub(spec, folder)
        return True
    if spec.loader != "torchvision" or not spec.download:
        return False
    name = spec.options["dataset"]
    files = remotes(name) if name in RECIPES else []
    for file in files:
        told = progress(spec.name, Path(file.target).name) if progress else None
        fetch(spec.name, file.urls, folder / file.target, file.md5, progress=told)
    if files:
        _unpack(spec, folder, name)
    return bool(files)


def _unpack(spec: TaskSpec, folder: Path, name: str) -> None:
    """Let torchvision unpack the archives that were downloaded."""
    from matu_flwr._torchvision import ensure_importable

    ensure_importable()
    from torchvision import datasets

    options, recipe = check_options(spec.name, spec.loader, spec.options), RECIPES[name]
    parts = (*options["train"], *options["test"]) if options["train"] else (*recipe.train, *recipe.test)
    mark = unpacking_mark(folder, name)
    # An earlier call was interrupted. torchvision would take the files that it left for the whole data set.
    if mark.exists():
        for path in unpacked_paths(name, folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    mark.touch()
    for arguments in parts:
        where = f"{folder} ({name}, {arguments or 'all'})"
        request = Request(spec.name, options, 0, folder, folder)
        with reading(request, where, "archives that can be unpacked"):
            # It downloads only what is not there, and the archives are there with the right checksum.
            getattr(datasets, name)(folder, download=True, **arguments)
    mark.unlink()


def unpacked_paths(name: str, folder: Path) -> list[Path]:
    """Files and folders that torchvision unpacks from the archives of a class. The archives are not among them."""
    archives = {folder / file.target for file in remotes(name)}
    found = []
    for file in RECIPES[name].files:
        path = folder / file.split(" | ")[0]
        if path in archives:
            continue
        # A folder that has archives in it is not removed itself, only what else is in it.
        if any(path in archive.parents for archive in archives):
            found += [entry for entry in path.glob("*") if entry not in archives]
            continue
        while path.parent != folder and not any(path.parent in archive.parents for archive in archives):
            path = path.parent
        found.append(path)
    return sorted(set(found))


def _from_hub(spec: TaskSpec, folder: Path) -> None:
    """Download the splits of a data set on the Hugging Face Hub, and write each as a parquet file if there is none."""
    options, package = check_options(spec.name, spec.loader, spec.options), hub_package(spec.name)
    for split in filter(None, (options["train"], options["test"])):
        if folder.is_dir() and parquet_files(folder, split):
            continue
        where = f"split {split!r} of {options['dataset']} on the Hugging Face Hub"
        try:
            rows = package.load_dataset(
                options["dataset"], options["config"] or None, split=split, revision=options["revision"] or None
            )
        # The package raises these for wrong names, and also without a network.
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            raise TaskError(
                f"task {spec.name!r}: {where} could not be downloaded ({type(error).__name__}: "
                f"{' '.join(str(error).split())}): connect to the network, correct the options, or put "
                f"{split}.parquet into {folder}"
            ) from error
        _refuse_foreign_paths(spec.name, package, rows, options["image"], where)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"{split}.parquet") as temporary:
                rows.to_parquet(str(temporary))
        except OSError as error:
            raise TaskError(
                f"task {spec.name!r}: cannot write {folder / split}.parquet: {error}; make room or choose another "
                "data folder"
            ) from error


def _refuse_foreign_paths(task: str, package: Any, rows: Any, column: str, where: str) -> None:
    """Raise `TaskError` if a table names image files that were not downloaded with it.

    When it is written, the package `datasets` puts the content of all named files into it, wherever they lie.
    """
    if not isinstance(rows.features.get(column), package.Image):
        return
    # Downloads go here. A file in an archive is named as file::archive.
    homes = [Path(home).resolve() for home in (package.config.HF_CACHE_HOME, package.config.HF_DATASETS_CACHE)]
    for row, cell in enumerate(rows.select_columns(column).cast_column(column, package.Image(decode=False))):
        if cell[column] is None or cell[column]["bytes"] is not None or not cell[column]["path"]:
            continue
        named = str(cell[column]["path"]).rpartition("::")[2]
        if not any(Path(named).resolve().is_relative_to(home) for home in homes):
            raise TaskError(
                f"task {task!r}: {where} names the file {shown(named)} in row {row}, counted from 0, expected images "
                "that are downloaded with it: do not use this data set"
            )
